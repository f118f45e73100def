//! The device trees of an image: the one in force, and the place for the next.
//!
//! A tree cannot be changed in place. The next one is made in memory of our own and copied to the place that is not in
//! force; one store to the word that purgatory follows puts it in force. Until then a crash finds the old tree, which nobody
//! touches before the next one after that.

use abi::Reason;
use devtree::{Node, Outline, Tree, WriteError, Writer, has_thread, is_cpu, replace_cpus};
use elfcorehdr::PhysRange;

use crate::Live;
use crate::arming::Refused;
use crate::nodes::{Nodes, Part};

/// The two places for trees in reserved memory, with a copy of each of what was last written there.
#[derive(Debug)]
pub struct Trees<'m> {
    places: [PhysRange; 2],
    shadows: [&'m mut [u8]; 2],
    /// Which of the two is in force.
    current: usize,
    /// Where in its shadow is what; none until that was found to be a tree.
    outline: Option<Outline>,
}

impl<'m> Trees<'m> {
    /// The trees in `places`, the first of which is in force. The first of `shadows` is a copy of it; both are as large as the places.
    pub fn new(places: [PhysRange; 2], shadows: [&'m mut [u8]; 2]) -> Self {
        Self { places, shadows, current: 0, outline: None }
    }

    /// Address of the tree in force.
    pub(crate) fn in_force(&self) -> u64 {
        self.places.get(self.current).map_or(0, |place| place.start().0)
    }

    /// Takes in the tree, if it is one that can be followed, and the one that purgatory would take.
    pub(crate) fn check(&mut self, live: &impl Live) -> Result<(), Refused> {
        let bad = |found| Refused { found, ..Reason::BadTree.into() };
        if live.tree_pointer() != self.in_force() {
            return Err(bad(0));
        }
        let outline = Outline::parse(self.shadow()).map_err(|error| bad(error.offset as u32))?;
        if outline.tree(self.shadow()).root().child(b"cpus").is_none() {
            return Err(bad(0));
        }
        self.outline = Some(outline);
        Ok(())
    }

    /// Whether the word that purgatory follows is as last written.
    pub(crate) fn check_pointer(&self, live: &impl Live) -> Result<(), Reason> {
        if live.tree_pointer() == self.in_force() { Ok(()) } else { Err(Reason::Changed) }
    }

    /// Whether the tree in force lists the CPU that has this hardware number.
    pub(crate) fn lists(&self, hardware: u32) -> bool {
        self.tree().is_some_and(|tree| lists(&tree, hardware))
    }

    /// Whether the tree in force has the CPUs of `nodes`, by their names, and no other.
    pub(crate) fn names(&self, nodes: Nodes<'_>) -> bool {
        self.tree().is_some_and(|tree| cpus(&tree).map(|node| node.name()).eq(nodes.cpus()))
    }

    /// Writes a tree with the CPUs of `nodes`, among which `comer` must be, by its hardware number, and puts it in force. Gives
    /// the number of steps: a crash after each finds a whole tree in force.
    pub(crate) fn rebuild(
        &mut self,
        live: &mut impl Live,
        nodes: Nodes<'_>,
        comer: Option<u32>,
    ) -> Result<u64, Reason> {
        self.check_pointer(live)?;
        let spare = 1 - self.current.min(1);
        let [first, second] = &mut self.shadows;
        let (from, to) = if spare == 1 { (&**first, &mut **second) } else { (&**second, &mut **first) };
        let tree = self.outline.ok_or(Reason::Update)?.tree(from);
        let used = from.get(..tree.total_size().next_multiple_of(8)).ok_or(Reason::Update)?;
        if !live.tree_has(self.current, used) {
            return Err(Reason::Changed);
        }
        let size =
            replace_cpus(&tree, to, |writer| fill(writer, &tree, nodes)).map_err(|error| match error {
                WriteError::Full => Reason::TreeFull,
                _ => Reason::Update,
            })?;
        let new = to.get(..size.next_multiple_of(8)).ok_or(Reason::TreeFull)?;
        let outline = Outline::parse(new).map_err(|_| Reason::Update)?;
        let tree = outline.tree(new);
        // It comes whether or not the kernel told of its node.
        if comer.is_some_and(|comer| !lists(&tree, comer)) {
            return Err(Reason::Update);
        }
        // As far as the place is concerned one store is like another: a debugging parameter can stop after the first, after
        // half of them and after the last.
        let pieces = [0, 8, new.len() / 16 * 8, new.len()];
        let mut steps = 0;
        for window in pieces.windows(2) {
            if let &[start, end] = window {
                live.write_tree(spare, start, new.get(start..end).unwrap_or_default());
                steps += 1;
            }
        }
        (self.current, self.outline) = (spare, Some(outline));
        live.set_tree_pointer(self.in_force());
        Ok(steps + 1)
    }

    /// The tree in force.
    fn tree(&self) -> Option<Tree<'_>> {
        self.outline.map(|outline| outline.tree(self.shadow()))
    }

    fn shadow(&self) -> &[u8] {
        self.shadows.get(self.current).map_or(&[], |shadow| shadow)
    }
}

/// Writes the machine's CPUs, and caches that the tree does not have.
fn fill(writer: &mut Writer<'_, '_>, tree: &Tree<'_>, nodes: Nodes<'_>) -> Result<(), WriteError> {
    let cpus = tree.root().child(b"cpus").ok_or(WriteError::NoCpus)?;
    let mut is_wanted = false;
    for part in nodes {
        match part {
            Part::Node { name, is_cpu } => {
                is_wanted = is_cpu || cpus.child(name).is_none();
                if is_wanted {
                    writer.begin_node(name)?;
                }
            }
            Part::Property { name, value } if is_wanted => writer.property(name, value)?,
            Part::End if is_wanted => writer.end_node()?,
            Part::Property { .. } | Part::End => {}
        }
    }
    Ok(())
}

fn cpus<'a>(tree: &Tree<'a>) -> impl Iterator<Item = Node<'a>> {
    tree.root().child(b"cpus").into_iter().flat_map(|cpus| cpus.children()).filter(is_cpu)
}

/// Whether a CPU of the tree has a thread of this hardware number.
fn lists(tree: &Tree<'_>, hardware: u32) -> bool {
    cpus(tree).any(|cpu| has_thread(&cpu, hardware))
}
