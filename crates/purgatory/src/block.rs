//! The parameter block in this program's memory, and the stack it runs on.
//!
//! In assembly, for the loader fills the block: what a Rust static holds the compiler may take for known.
#![expect(unsafe_code, reason = "memory that assembly sets aside")]

use core::arch::global_asm;

use purgatory::PARAMS_SIZE;

unsafe extern "C" {
    static purgatory_params: [u8; PARAMS_SIZE];
}

/// The block as the loader left it.
pub(crate) fn bytes() -> &'static [u8; PARAMS_SIZE] {
    // SAFETY: it lies in this program's own data; the loader fills it before the program can run, and nothing here writes to it.
    unsafe { &purgatory_params }
}

// The loader finds the block by its name, the entry code of each architecture the stack.
global_asm!(
    r#"
    .pushsection .data.purgatory, "aw", @progbits
    .balign 64
    .globl purgatory_params
    .type purgatory_params, @object
purgatory_params:
    .zero {params_size}
    .size purgatory_params, . - purgatory_params
    .popsection

    .pushsection .bss.purgatory, "aw", @nobits
    .balign 4096
    .zero 32768
    .globl purgatory_stack_top
purgatory_stack_top:
    .popsection
"#,
    params_size = const PARAMS_SIZE,
);
