//! A tree with other CPUs.

use crate::read::{Node, Tree};
use crate::write::{WriteError, Writer};

/// Depth of what lies in `/cpus`: root and `/cpus` are open.
const IN_CPUS: usize = 2;

/// Whether a node of `/cpus` is a CPU: caches lie there, too.
pub fn is_cpu(node: &Node<'_>) -> bool {
    node.property(b"device_type") == Some(b"cpu\0")
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
