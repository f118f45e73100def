//! Our filter beside makedumpfile's: which pages each keeps of the same raw dump, at all 32 levels.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::setup;

/// Where makedumpfile's dumps and our bitmaps are written, in memory.
const DIRECTORY: &str = "/dev/shm";
/// Fields of a kdump-compressed file's first block, in bytes: block_size, sub_hdr_size, bitmap_blocks.
const BLOCK_SIZE: usize = 428;
const SUB_HDR_SIZE: usize = 432;
const BITMAP_BLOCKS: usize = 436;

/// Prints, for each level, how many pages only one of the two keeps.
///
/// # Errors
/// Where a program fails, or ours leaves out a page that makedumpfile keeps.
pub(crate) fn levels(core: &Path) -> Result<()> {
    setup::install_missing(["makedumpfile"].iter())?;
    let work = Path::new(DIRECTORY).join(format!("hotdump-levels-{}", std::process::id()));
    fs::create_dir(&work).with_context(|| format!("making {}", work.display()))?;
    let compared = compare(core, &work);
    fs::remove_dir_all(&work)?;
    let lost = compared?;
    ensure!(lost == 0, "{lost} pages in all that makedumpfile keeps are left out");
    Ok(())
}

/// Gives the number of pages that only makedumpfile keeps, over all levels.
fn compare(core: &Path, work: &Path) -> Result<u32> {
    let cargo = std::env::var("CARGO").unwrap_or("cargo".into());
    let ours = Command::new(cargo)
        .args(["run", "--quiet", "--release", "--package", "vmcore", "--example", "filter_levels", "--"])
        .args([core, work])
        .stdout(Stdio::null())
        .status()?;
    ensure!(ours.success(), "the example filter_levels of vmcore fails");
    let dump = work.join("dump");
    let mut lost = 0;
    println!("| level | both keep | only hotdump | only makedumpfile |");
    println!("|---|---|---|---|");
    for level in 0..32 {
        let theirs = Command::new("makedumpfile")
            .args(["-l", "-f", "-d", &level.to_string()])
            .args([core, &dump])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()?;
        ensure!(theirs.success(), "makedumpfile -d {level} fails");
        let ours = fs::read(work.join(format!("{level}.bitmap")))?;
        let theirs = second_bitmap(&fs::read(&dump)?)?;
        let (mut both, mut only_ours, mut only_theirs) = (0, 0, 0);
        for at in 0..ours.len().max(theirs.len()) {
            let byte = |map: &[u8]| map.get(at).copied().unwrap_or(0);
            let (our, their) = (byte(&ours), byte(&theirs));
            both += (our & their).count_ones();
            only_ours += (our & !their).count_ones();
            only_theirs += (their & !our).count_ones();
        }
        println!("| {level} | {both} | {only_ours} | {only_theirs} |");
        lost += only_theirs;
    }
    Ok(lost)
}

/// The second bitmap of a kdump-compressed file: it follows the first block, the sub-header and the first bitmap.
fn second_bitmap(file: &[u8]) -> Result<Vec<u8>> {
    let field = |at: usize| -> Option<usize> {
        usize::try_from(u32::from_le_bytes(*file.get(at..)?.first_chunk()?)).ok()
    };
    let found = || {
        let (block, sub, blocks) = (field(BLOCK_SIZE)?, field(SUB_HDR_SIZE)?, field(BITMAP_BLOCKS)?);
        let start = block.checked_mul(1 + sub + blocks / 2)?;
        file.get(start..start.checked_add(blocks / 2 * block)?)
    };
    Ok(found().context("makedumpfile's file has no second bitmap where it should be")?.to_vec())
}
