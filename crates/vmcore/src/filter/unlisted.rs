//! Memory that a kernel used and its crash header does not list.

use elfcorehdr::PhysRange;

use super::walk::Sections;
use super::{frames_of, page_size};
use crate::bitmap::Frame;
use crate::elf::{Core, CoreError};
use crate::source::ReadAt;
use crate::space::AddressSpace;

/// Memory that was added to the crashed kernel and in use, by its own books, and of which `core` has not one page, lowest first: it came
/// after the header was written, and nobody brought the header up to date. In units of the kernel's sections (128 MiB on x86_64).
///
/// # Errors
/// The kernel's books cannot be found or read.
pub fn unlisted_memory<S: ReadAt>(core: &Core<S>) -> Result<Vec<PhysRange>, CoreError> {
    let info = core.vmcoreinfo()?;
    let page_size = page_size(core);
    let sections = Sections::of(&info, page_size)?;
    let memory = AddressSpace::new(core, &info)?;
    let listed = frames_of(core, page_size);
    let mut unlisted: Vec<PhysRange> = Vec::new();
    sections.each_added(&memory, |section| {
        let frames = sections.frames(section);
        let [start, end] = [frames.start, frames.end].map(|frame| Frame(frame).address(page_size));
        let Some(range) = start.zip(end).and_then(|(start, end)| PhysRange::new(start, end)) else { return };
        if listed.next_in(Frame(frames.start)).is_some_and(|next| next.0 < frames.end) {
            return;
        }
        match unlisted.last_mut() {
            Some(last) if last.end() == range.start() => {
                *last = PhysRange::new(last.start(), range.end()).unwrap_or(*last);
            }
            _ => unlisted.push(range),
        }
    })?;
    Ok(unlisted)
}
