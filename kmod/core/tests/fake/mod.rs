//! An image in ordinary memory, which a test can look at and change behind the core's back.

use std::cell::RefCell;
use std::rc::Rc;

use elfcorehdr::update::{Index, Node, Store};
use elfcorehdr::{Contents, EHDR_SIZE, Load, Machine, Note, PhysAddr, PhysRange, build};
use judge::capture_kernel;
use kmod_core::Live;

#[path = "../../../../crates/elfcorehdr/tests/judge/mod.rs"]
pub(crate) mod judge;

/// Bytes that the header has room for.
pub(crate) const ROOM: usize = 4096;
/// A memory block of x86.
pub(crate) const BLOCK: u64 = 0x800_0000;
/// Virtual address of physical address 0.
pub(crate) const DIRECT_MAP: u64 = 0xffff_8880_0000_0000;
/// Blocks that are there at boot: four, less low memory.
pub(crate) const BOOT_BLOCKS: u64 = 4;
/// The notes of two CPUs and of vmcoreinfo. The second CPU's is one that the loader could not know.
pub(crate) const NOTES: [u64; 3] = [0x20_0000, 0xc000_0000, 0x30_0000];

/// Reserved memory. Every store is held against the rules: the image must be loaded and ours, and what is written over,
/// and the file header, as last written.
#[derive(Clone)]
pub(crate) struct Fake {
    pub(crate) header: Rc<RefCell<Vec<u8>>>,
    pub(crate) loaded: Rc<RefCell<bool>>,
    pub(crate) ours: Rc<RefCell<bool>>,
    /// The header without what others wrote.
    own: Rc<RefCell<Vec<u8>>>,
}

impl Live for Fake {
    fn word(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.header.borrow()[offset..offset + 8].try_into().unwrap())
    }

    fn store(&mut self, store: Store) {
        assert!(self.is_loaded() && self.is_ours(), "{store:x?} to an image of others");
        assert_eq!(store.offset as usize % store.width.bytes(), 0, "{store:x?} is not aligned");
        let (mut header, mut own) = (self.header.borrow_mut(), self.own.borrow_mut());
        let at = store.offset as usize & !7;
        assert_eq!(header[..EHDR_SIZE], own[..EHDR_SIZE], "{store:x?} to a file header that others changed");
        assert_eq!(header[at..at + 8], own[at..at + 8], "{store:x?} over what others wrote");
        let is_whole = *header == *own;
        store.write_to(&mut header).unwrap();
        store.write_to(&mut own).unwrap();
        if is_whole {
            capture_kernel(&header).unwrap_or_else(|fault| panic!("after {store:x?}: {fault}"));
        }
    }

    fn is_loaded(&self) -> bool {
        *self.loaded.borrow()
    }

    fn is_ours(&self) -> bool {
        *self.ours.borrow()
    }
}

impl Fake {
    /// Two CPUs, and 512 MiB of memory.
    pub(crate) fn new() -> Self {
        let note = |paddr| Note { paddr: PhysAddr(paddr), size: 368 };
        let [first, second, vmcoreinfo] = NOTES.map(note);
        let load = |paddr, vaddr, size| Load { paddr: PhysAddr(paddr), vaddr, offset: PhysAddr(paddr), size };
        let text = load(0x100_0000, 0xffff_ffff_8100_0000, 0x20_0000);
        let ram = load(0x10_0000, DIRECT_MAP + 0x10_0000, BOOT_BLOCKS * BLOCK - 0x10_0000);
        let contents = Contents {
            machine: Machine::X86_64,
            cpu_notes: &[first, second],
            vmcoreinfo,
            loads: &[text, ram],
        };
        let mut header = vec![0; ROOM];
        build(&contents, &mut header).unwrap();
        Self::of(header)
    }

    /// An image with this header.
    pub(crate) fn of(header: Vec<u8>) -> Self {
        let shared = |is| Rc::new(RefCell::new(is));
        let own = Rc::new(RefCell::new(header.clone()));
        Self { header: Rc::new(RefCell::new(header)), loaded: shared(true), ours: shared(true), own }
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
