//! What lies on a CPU's stack: on x86_64, whose kernels keep no frame pointers as a rule, every word that can be a return address;
//! on ppc64 the chain of frames.

use elfcorehdr::Machine;

use crate::elf::CpuState;
use crate::kallsyms::{Symbol, Symbols};
use crate::source::{VirtAddr, VirtualMemory};
use crate::vmcoreinfo::VmcoreInfo;

/// THREAD_SIZE of x86_64 and the most of ppc64, in bytes; kernel stacks are aligned to it. Other stacks (of interrupts, of exceptions) are
/// smaller, and end where what follows is not mapped.
const STACK: u64 = 1 << 14;
/// The furthest that one frame of ppc64 can be from the next.
const MAX_STEP: u64 = 1 << 16;
/// Entries after which the walk ends.
const MAX_ENTRIES: usize = 64;
/// The longest call instruction that is looked for before a return address, on x86_64.
const LONGEST_CALL: u64 = 7;
/// Where no symbols bound the kernel's functions: they and all else of the image are within this many bytes from `_stext`.
const MAX_IMAGE: u64 = 1 << 30;

/// How a stack was walked, and so what its entries are worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Walk {
    /// Words that are addresses behind a call in the kernel's functions: some may be left over from calls that have returned.
    Scan,
    /// The chain of frames that the calling convention prescribes.
    Chain,
}

/// An address on a stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StackEntry {
    /// Where on the stack it lies.
    pub place: VirtAddr,
    /// The return address.
    pub address: VirtAddr,
    /// Its function; none where symbols are not to be had, or the function is a module's.
    pub symbol: Option<Symbol>,
}

/// The way the stacks of `machine` are walked.
#[must_use]
pub fn walk_of(machine: Machine) -> Walk {
    match machine {
        Machine::Ppc64 => Walk::Chain,
        _ => Walk::Scan,
    }
}

/// The return addresses on `cpu`'s stack, the innermost first; at most 64. What cannot be read ends it.
pub fn backtrace<M: VirtualMemory>(
    machine: Machine,
    memory: &M,
    info: &VmcoreInfo,
    symbols: Option<&Symbols<'_, M>>,
    cpu: &CpuState,
) -> Vec<StackEntry> {
    let is_text = |address: VirtAddr| match symbols {
        Some(symbols) => symbols.is_text(address),
        None => info
            .symbol("_stext")
            .is_ok_and(|start| (start.0..start.0.saturating_add(MAX_IMAGE)).contains(&address.0)),
    };
    let found: Vec<(VirtAddr, VirtAddr)> = match walk_of(machine) {
        Walk::Scan => scan(memory, cpu.sp)
            .filter(|(_, address)| is_text(*address) && is_behind_call(memory, *address))
            .take(MAX_ENTRIES)
            .collect(),
        Walk::Chain => chain(memory, cpu.sp).take(MAX_ENTRIES).collect(),
    };
    let entry = |(place, address): (VirtAddr, VirtAddr)| StackEntry {
        place,
        address,
        // The call lies before the address, and may be its function's last instruction.
        symbol: address
            .0
            .checked_sub(1)
            .and_then(|call| symbols?.function(VirtAddr(call)))
            .map(|symbol| Symbol { offset: symbol.offset + 1, ..symbol }),
    };
    found.into_iter().map(entry).collect()
}

/// The words from `sp` to the stack's end: where, what.
fn scan<M: VirtualMemory>(memory: &M, sp: VirtAddr) -> impl Iterator<Item = (VirtAddr, VirtAddr)> + '_ {
    let start = sp.0 & !7;
    let end = start.checked_next_multiple_of(STACK).unwrap_or(start);
    (start..end)
        .step_by(8)
        .map_while(|at| Some((VirtAddr(at), VirtAddr(memory.read_u64(VirtAddr(at)).ok()?))))
}

/// Whether a call instruction ends at `address`.
fn is_behind_call<M: VirtualMemory>(memory: &M, address: VirtAddr) -> bool {
    let mut code = [0; LONGEST_CALL as usize];
    let Some(start) = address.0.checked_sub(LONGEST_CALL) else { return false };
    if memory.read_virt(VirtAddr(start), &mut code).is_err() {
        return false;
    }
    // call rel32; call *reg; call *disp8(reg); call *disp32(reg); call *disp32.
    matches!(
        code,
        [_, _, 0xe8, ..]
            | [.., 0xff, 0xd0..=0xd7]
            | [.., 0xff, 0x50..=0x57, _]
            | [_, 0xff, 0x90..=0x97, ..]
            | [0xff, 0x14, 0x25, ..]
    )
}

/// ppc64: the word at a frame's start is the address of the caller's, in which the return address lies 16 bytes on.
fn chain<M: VirtualMemory>(memory: &M, sp: VirtAddr) -> impl Iterator<Item = (VirtAddr, VirtAddr)> + '_ {
    let mut frame = sp;
    std::iter::from_fn(move || {
        let caller = memory.read_u64(frame).ok()?;
        let step = caller.checked_sub(frame.0)?;
        if step == 0 || step > MAX_STEP || caller % 16 != 0 {
            return None;
        }
        frame = VirtAddr(caller);
        let place = frame.checked_add(16)?;
        Some((place, VirtAddr(memory.read_u64(place).ok()?)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::CoreError;

    /// A stack that ends at the next multiple of 16 KiB, and code at [`TEXT`].
    struct Memory {
        stack_at: u64,
        stack: Vec<u64>,
        code: Vec<u8>,
    }

    const TEXT: u64 = 0xffff_ffff_8100_0000;

    impl VirtualMemory for Memory {
        fn read_virt(&self, address: VirtAddr, buf: &mut [u8]) -> Result<(), CoreError> {
            let stack: Vec<u8> = self.stack.iter().flat_map(|word| word.to_le_bytes()).collect();
            let pieces = [(self.stack_at, &stack), (TEXT, &self.code)];
            let found = pieces.iter().find_map(|(start, bytes)| {
                let at = usize::try_from(address.0.checked_sub(*start)?).ok()?;
                bytes.get(at..at.checked_add(buf.len())?)
            });
            buf.copy_from_slice(found.ok_or(CoreError::NotMapped { address, level: 1, entry: 0 })?);
            Ok(())
        }
    }

    fn walk(machine: Machine, memory: &Memory) -> Vec<u64> {
        let cpu =
            CpuState { pid: 1, ip: VirtAddr(TEXT), sp: VirtAddr(memory.stack_at), registers: Vec::new() };
        let info = VmcoreInfo::parse(format!("SYMBOL(_stext)={TEXT:x}\n").as_bytes());
        backtrace(machine, memory, &info, None, &cpu).iter().map(|entry| entry.address.0).collect()
    }

    #[test]
    fn a_scan_takes_what_lies_behind_a_call_only() {
        let mut code = vec![0x90; 64];
        code[11] = 0xe8; // call rel32 ends at 16
        code[30..32].copy_from_slice(&[0xff, 0xd0]); // call *%rax ends at 32
        let stack_at = 0xffff_c900_0000_3f00;
        let stack = vec![TEXT + 16, 7, TEXT + 17, TEXT + 32, 0x41, TEXT + 3];
        let memory = Memory { stack_at, stack, code };
        assert_eq!(walk(Machine::X86_64, &memory), [TEXT + 16, TEXT + 32]);
    }

    #[test]
    fn a_scan_ends_with_the_stack() {
        let mut code = vec![0x90; 32];
        code[11] = 0xe8;
        let stack = vec![TEXT + 16; 400];
        let at = |stack_at| Memory { stack_at, stack: stack.clone(), code: code.clone() };
        assert_eq!(walk(Machine::X86_64, &at(0xffff_c900_0000_3ff0)).len(), 2);
        assert_eq!(walk(Machine::X86_64, &at(0xffff_c900_0000_0008)).len(), MAX_ENTRIES);
        assert_eq!(walk(Machine::X86_64, &at(u64::MAX - 7)).len(), 0);
    }

    #[test]
    fn a_chain_goes_from_frame_to_frame_and_does_not_turn_back() {
        let stack_at = 0xc000_0000_0001_0000;
        // Frames of 32 bytes: back chain, condition register, return address, a word.
        let stack = vec![
            stack_at + 32,
            0,
            1,
            0, // the return address in the innermost frame is not its own
            stack_at + 64,
            0,
            TEXT + 4,
            0,
            stack_at,
            0,
            TEXT + 8,
            0,
        ];
        let memory = Memory { stack_at, stack, code: Vec::new() };
        assert_eq!(walk(Machine::Ppc64, &memory), [TEXT + 4, TEXT + 8]);
    }
}
