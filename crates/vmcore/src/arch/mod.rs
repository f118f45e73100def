//! What differs between architectures: how the crashed kernel's virtual addresses become physical ones.

pub mod x86_64;
