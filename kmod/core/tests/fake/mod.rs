//! An image in ordinary memory, which a test can look at and change behind the core's back.

use std::cell::RefCell;
use std::rc::Rc;

use elfcorehdr::update::{Index, Node, Store};
use elfcorehdr::{EHDR_SIZE, PhysAddr, PhysRange};
use judge::capture_kernel;
use kmod_core::Live;

#[path = "../../../../crates/elfcorehdr/tests/judge/mod.rs"]
pub(crate) mod judge;

/// Bytes that the header has room for.
pub(crate) const ROOM: usize = 4096;
/// A memory block.
pub(crate) const BLOCK: u64 = 0x800_0000;
/// Reserved memory. Every store is held against the rules: the image must be loaded and ours, and what is written over,
/// and the file header, as last written.
#[derive(Clone)]
pub(crate) struct Fake {
    pub(crate) header: Rc<RefCell<Vec<u8>>>,
    pub(crate) loaded: Rc<RefCell<bool>>,
    pub(crate) ours: Rc<RefCell<bool>>,
    pub(crate) trees: Rc<RefCell<Trees>>,
    /// The header without what others wrote.
    own: Rc<RefCell<Vec<u8>>>,
}

/// The device trees in reserved memory, if there are any. Every step of writing one is held against the rules: the tree in
/// force stays as it is, and is whole.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trees {
    /// What purgatory follows.
    pub(crate) pointer: u64,
    /// Where the two places are.
    pub(crate) starts: [u64; 2],
    pub(crate) places: [Vec<u8>; 2],
    /// The CPUs of the tree in force after each step.
    pub(crate) seen: Vec<Vec<u32>>,
}

impl Trees {
    /// Which place is in force.
    pub(crate) fn in_force(&self) -> usize {
        self.starts.iter().position(|start| *start == self.pointer).expect("the word names no tree")
    }

    /// Hardware numbers of the CPUs that a capture kernel would find.
    pub(crate) fn cpus(&self) -> Vec<u32> {
        let tree = devtree::Tree::parse(&self.places[self.in_force()]).unwrap();
        let cpus = tree.node("/cpus").unwrap().children().filter(devtree::is_cpu);
        let threads = cpus.flat_map(|cpu| {
            cpu.property(b"ibm,ppc-interrupt-server#s").unwrap_or_default().as_chunks::<4>().0
        });
        threads.copied().map(u32::from_be_bytes).collect()
    }
}

impl Live for Fake {
    fn header_has(&self, bytes: &[u8]) -> bool {
        assert_eq!(bytes.len() % 8, 0);
        self.header.borrow()[..bytes.len()] == *bytes
    }

    fn store(&mut self, store: Store, written: [u8; 8]) -> bool {
        assert!(self.is_loaded() && self.is_ours(), "{store:x?} to an image of others");
        assert_eq!(store.offset as usize % store.width.bytes(), 0, "{store:x?} is not aligned");
        let (mut header, mut own) = (self.header.borrow_mut(), self.own.borrow_mut());
        let at = store.offset as usize & !7;
        if header[at..at + 8] != written {
            return false;
        }
        assert_eq!(header[..EHDR_SIZE], own[..EHDR_SIZE], "{store:x?} to a file header that others changed");
        assert_eq!(header[at..at + 8], own[at..at + 8], "{store:x?} over what others wrote");
        let is_whole = *header == *own;
        store.write_to(&mut header).unwrap();
        store.write_to(&mut own).unwrap();
        if is_whole {
            capture_kernel(&header).unwrap_or_else(|fault| panic!("after {store:x?}: {fault}"));
        }
        true
    }

    fn tree_pointer(&self) -> u64 {
        self.trees.borrow().pointer
    }

    fn set_tree_pointer(&mut self, address: u64) {
        assert!(self.is_loaded() && self.is_ours(), "a tree for an image of others");
        let mut trees = self.trees.borrow_mut();
        trees.pointer = address;
        let cpus = trees.cpus();
        trees.seen.push(cpus);
    }

    fn tree_has(&self, place: usize, bytes: &[u8]) -> bool {
        assert_eq!(bytes.len() % 8, 0);
        self.trees.borrow().places[place][..bytes.len()] == *bytes
    }

    fn write_tree(&mut self, place: usize, offset: usize, bytes: &[u8]) {
        assert!(self.is_loaded() && self.is_ours(), "a tree to an image of others");
        assert_eq!((offset % 8, bytes.len() % 8), (0, 0));
        let mut trees = self.trees.borrow_mut();
        assert_ne!(place, trees.in_force(), "the tree in force is written to");
        trees.places[place][offset..offset + bytes.len()].copy_from_slice(bytes);
        let cpus = trees.cpus();
        trees.seen.push(cpus);
    }

    fn is_loaded(&self) -> bool {
        *self.loaded.borrow()
    }

    fn is_ours(&self) -> bool {
        *self.ours.borrow()
    }
}

impl Fake {
    /// An image with this header.
    pub(crate) fn of(header: Vec<u8>) -> Self {
        let shared = |is| Rc::new(RefCell::new(is));
        let own = Rc::new(RefCell::new(header.clone()));
        Self {
            header: Rc::new(RefCell::new(header)),
            loaded: shared(true),
            ours: shared(true),
            trees: Rc::default(),
            own,
        }
    }

    /// The header as the core takes it in.
    pub(crate) fn shadow(&self) -> &'static mut [u8] {
        self.own.borrow_mut().clone_from(&self.header.borrow());
        self.header.borrow().clone().leak()
    }
}

/// Nodes for the index, for as long as the test runs.
pub(crate) fn nodes() -> &'static mut [Node] {
    vec![Node::default(); Index::nodes_for(ROOM)].leak()
}

pub(crate) fn range(start: u64, end: u64) -> PhysRange {
    PhysRange::new(PhysAddr(start), PhysAddr(end)).unwrap()
}

pub(crate) fn block(number: u64) -> PhysRange {
    range(number * BLOCK, (number + 1) * BLOCK)
}
