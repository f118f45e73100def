//! The `hotdump` program; see the library beside it.

use std::process::ExitCode;

fn main() -> ExitCode {
    hotdump::main()
}
