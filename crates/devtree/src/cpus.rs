//! A tree with other CPUs.

use crate::read::{Node, Outline, Tree, TreeError};
use crate::write::{WriteError, Writer};

/// Depth of what lies in `/cpus`: root and `/cpus` are open.
const IN_CPUS: usize = 2;

/// Whether a node of `/cpus` is a CPU: caches lie there, too.
pub fn is_cpu(node: &Node<'_>) -> bool {
    node.property(b"device_type") == Some(b"cpu\0")
}

/// The property of a CPU's node that lists the hardware numbers of its threads, 4 bytes each, big-endian.
const THREADS: &[u8] = b"ibm,ppc-interrupt-server#s";

/// Whether a CPU has a thread of this hardware number; one without the list of them has only its own (`reg`).
pub fn has_thread(cpu: &Node<'_>, hardware: u32) -> bool {
    let threads = cpu.property(THREADS).or_else(|| cpu.property(b"reg"));
    threads.is_some_and(|threads| threads.as_chunks::<4>().0.contains(&hardware.to_be_bytes()))
}

/// Puts the CPU that has a thread of this hardware number before the other CPUs of the tree that starts at the first of
/// `bytes`. Whether there is one.
///
/// # Errors
/// What is no tree stays as it is.
pub fn put_cpu_first(bytes: &mut [u8], hardware: u32) -> Result<bool, TreeError> {
    let outline = Outline::parse(bytes)?;
    let Some((first, start, behind)) = places(&outline.tree(bytes), hardware) else { return Ok(false) };
    let in_tree = |at: usize| outline.structure().wrapping_add(at);
    if let Some(nodes) = bytes.get_mut(in_tree(first)..in_tree(behind)) {
        nodes.rotate_right(behind.wrapping_sub(start));
    }
    Ok(true)
}

/// Where in the structure block the first CPU starts; where that one starts that has this thread, and where it is behind it.
fn places(tree: &Tree<'_>, hardware: u32) -> Option<(usize, usize, usize)> {
    let mut cpus = tree.root().child(b"cpus")?.children().filter(is_cpu).peekable();
    let first = cpus.peek()?.start();
    let wanted = cpus.find(|cpu| has_thread(cpu, hardware))?;
    Some((first, wanted.start(), wanted.behind()))
}

/// Copies `tree` into `to` with other nodes for its CPUs, and gives the copy's size in bytes.
///
/// `fill` writes the new nodes ([`Writer::begin_node`], [`Writer::property`], [`Writer::end_node`]); they take the
/// place of the first CPU. All other nodes, the reserve map and the boot CPU are copied as they are. The copy has no
/// free space. The source's strings are taken over whole and in front, so a name that it knows costs no room, and no
/// search where the new CPUs have their properties in the same order as the old.
///
/// # Errors
/// [`WriteError::NoCpus`], [`WriteError::Full`], and what `fill` says. What is in `to` is then no tree.
pub fn replace_cpus<'n, E: From<WriteError>>(
    tree: &Tree<'n>,
    to: &mut [u8],
    fill: impl FnOnce(&mut Writer<'_, 'n>) -> Result<(), E>,
) -> Result<usize, E> {
    let cpus = tree.root().child(b"cpus").ok_or(WriteError::NoCpus)?;
    let mut old = cpus.children().filter(is_cpu);
    let first = old.next();
    let mut writer = Writer::copying(tree, to)?;
    let mut copied = first.map_or(cpus.end(), |first| first.start());
    writer.copy(tree.structure().get(..copied).unwrap_or_default())?;
    writer.lend(IN_CPUS, first.map(|first| first.properties()), fill)?;
    for node in first.into_iter().chain(old) {
        writer.copy(tree.structure().get(copied..node.start()).unwrap_or_default())?;
        copied = node.behind();
    }
    writer.copy(tree.structure().get(copied..tree.last()).unwrap_or_default())?;
    Ok(writer.finish()?)
}
