//! Entry and hand-over.
//!
//! The kernel enters with interrupts off and memory mapped one to one, but with a stack of a few hundred bytes, no
//! descriptor tables, and the vector unit off in CR4. Compiled code for the Linux target uses SSE, so it is turned on
//! before any Rust runs. CR0 and CR4 are put back before the capture kernel is entered.
//!
//! The capture kernel wants (Documentation/arch/x86/boot.rst, 64-bit boot protocol): flat segments under the selectors
//! 0x10 (code) and 0x18 (data), interrupts off, rsi = boot_params.
#![expect(unsafe_code, reason = "entry code and the calls from it")]

use core::arch::global_asm;
use core::convert::Infallible;

/// How to enter the capture kernel. The entry code takes the two numbers from registers, in this order.
#[repr(C)]
pub(crate) struct Entry {
    /// Physical address of its 64-bit entry.
    pub(crate) address: u64,
    /// Physical address of its boot_params.
    pub(crate) boot_params: u64,
}

/// Called once by the entry code below.
#[unsafe(no_mangle)]
extern "C" fn purgatory_run() -> Entry {
    crate::run(|params| Ok::<_, Infallible>(Entry { address: params.entry, boot_params: params.boot_params }))
}

/// Called by the entry code's exception stubs: `vector` as the CPU numbers them, `at` the instruction pointer or the error
/// code that the CPU pushed first, `address` the page fault address.
#[unsafe(no_mangle)]
extern "C" fn purgatory_exception(vector: u64, at: u64, address: u64) -> ! {
    crate::refuse(
        super::Serial::COMMON,
        format_args!("CPU exception {vector}, {at:#x}, address {address:#x}"),
    )
}

// Labels local to this file start with .L. Global are the entry and the calls into Rust above; the stack is in block.rs.
global_asm!(
    r#"
    .pushsection .text.purgatory_start, "ax", @progbits
    .globl purgatory_start
    .type purgatory_start, @function
purgatory_start:
    cli
    cld
    lea rsp, [rip + purgatory_stack_top]

    // Flat segments. Where the tables are is not known before load time.
    lea rax, [rip + .Lgdt]
    mov [rip + .Lgdt_pointer + 2], rax
    lgdt [rip + .Lgdt_pointer]
    mov eax, 0x18
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    lea rax, [rip + .Lflat]
    push 0x10
    push rax
    retfq
.Lflat:

    // 32 interrupt gates, 16 bytes each, to the stubs below. An NMI (a watchdog, an operator) must not reset the machine
    // while it computes digests; any other exception is worth a line on the console.
    lea rax, [rip + .Lstubs]
    lea rdi, [rip + .Lidt]
    mov ecx, 32
.Lgate:
    mov rdx, rax
    mov [rdi], dx
    mov word ptr [rdi + 2], 0x10
    mov word ptr [rdi + 4], 0x8e00
    shr rdx, 16
    mov [rdi + 6], rdx
    mov dword ptr [rdi + 12], 0
    mov rdx, rax
    shr rdx, 32
    mov [rdi + 8], edx
    add rax, 16
    add rdi, 16
    dec ecx
    jnz .Lgate
    lea rax, [rip + .Lidt]
    mov [rip + .Lidt_pointer + 2], rax
    lidt [rip + .Lidt_pointer]

    // Vector unit on: CR0 without EM (bit 2) and TS (bit 3), with MP (bit 1); CR4 with OSFXSR (bit 9) and OSXMMEXCPT
    // (bit 10). What was there stays in registers that a C call preserves.
    mov r12, cr0
    mov r13, cr4
    mov rax, r12
    and eax, 0xfffffff3
    or eax, 2
    mov cr0, rax
    mov rax, r13
    or eax, 0x600
    mov cr4, rax
    fninit
    // MXCSR as at reset: all exceptions masked.
    push 0x1f80
    ldmxcsr [rsp]
    pop rax

    call purgatory_run

    // rax: where to enter, rdx: boot_params. The interrupt table stays until the capture kernel loads its own.
    mov cr0, r12
    mov cr4, r13
    mov rsi, rdx
    xor ebx, ebx
    xor ecx, ecx
    xor edx, edx
    xor edi, edi
    xor ebp, ebp
    xor r8d, r8d
    xor r9d, r9d
    xor r10d, r10d
    xor r11d, r11d
    xor r12d, r12d
    xor r13d, r13d
    xor r14d, r14d
    xor r15d, r15d
    jmp rax
    .size purgatory_start, . - purgatory_start

    .balign 16
.Lstubs:
    .set .Lvector, 0
    .rept 32
    .balign 16
    .if .Lvector == 2
    iretq
    .else
    push .Lvector
    jmp .Lexception
    .endif
    .set .Lvector, .Lvector + 1
    .endr
    .balign 16
.Lexception:
    pop rdi
    mov rsi, [rsp]
    mov rdx, cr2
    and rsp, -16
    call purgatory_exception
    ud2
    .popsection

    .pushsection .data.purgatory, "aw", @progbits
    .balign 16
.Lgdt:
    .quad 0
    .quad 0
    // 0x10: code, execute and read, 64-bit, base 0, limit 4 GiB; 0x18: data, read and write, base 0, limit 4 GiB.
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
.Lgdt_pointer:
    .word .Lgdt_pointer - .Lgdt - 1
    .quad 0
.Lidt_pointer:
    .word 32 * 16 - 1
    .quad 0
    .popsection

    .pushsection .bss.purgatory, "aw", @nobits
    .balign 16
.Lidt:
    .zero 32 * 16
    .popsection
"#
);
