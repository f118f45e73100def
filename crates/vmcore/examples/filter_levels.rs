//! Writes the second bitmap of each dump level to a file, as a kdump-compressed file has it: for a comparison with that of another tool.
//!
//! `filter_levels CORE DIRECTORY` makes `DIRECTORY/LEVEL.bitmap` for the levels 0 to 31, and prints what was left out.

use std::fs::File;
use std::io::{self, Error};
use std::path::Path;

use vmcore::{Core, DumpLevel, Selection};

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [core, directory] = arguments.as_slice() else {
        return Err(Error::other("usage: filter_levels CORE DIRECTORY"));
    };
    let core = Core::open(File::open(core)?).map_err(Error::other)?;
    for number in 0..=31 {
        let start = std::time::Instant::now();
        let selection = Selection::filtered(&core, DumpLevel::new(number).map_err(Error::other)?);
        let mut bits = vec![0; usize::try_from(selection.exists.end().0.div_ceil(8)).map_err(Error::other)?];
        selection.kept.write_bytes(0, &mut bits);
        std::fs::write(Path::new(directory).join(format!("{number}.bitmap")), bits)?;
        println!(
            "{number}: {:.1} ms, kept {}, {:?}",
            start.elapsed().as_secs_f64() * 1000.0,
            selection.kept.count(),
            selection.report
        );
    }
    Ok(())
}
