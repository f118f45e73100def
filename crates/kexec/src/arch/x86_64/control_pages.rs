//! What the running kernel takes of the crash reservation for itself.
//!
//! While it loads an image it takes free pages of the reservation, from the bottom up (kimage_alloc_crash_control_pages),
//! for: the code that jumps (one page; two in one piece up to 6.1 or so), a copy of vmcoreinfo (one page), and page tables
//! that map all memory one to one (init_pgtable in arch/x86/kernel/machine_kexec_64.c). Those map 2 MiB with an entry
//! where the CPU has no 1 GiB pages: one table a GiB, one above these for 512 GiB, and one or two on top.

use std::collections::BTreeSet;

use elfcorehdr::PhysRange;
use host::{Host, HostError};

use super::PAGE;

const GIB: u64 = 1 << 30;

/// The code, vmcoreinfo, the top tables, and some room: ACPI's and EFI's tables are mapped too, and differ by machine.
const FIXED: u64 = 24;

/// Bytes that the running kernel may need. CPUs with 1 GiB pages need less.
pub(crate) fn control_pages(host: &Host) -> Result<u64, HostError> {
    let iomem = host.iomem()?;
    let firmware =
        ["ACPI Tables", "ACPI Non-volatile Storage"].into_iter().flat_map(|name| iomem.named(name));
    Ok(bytes_for(iomem.ram().iter().chain(firmware)))
}

fn bytes_for(mapped: impl Iterator<Item = PhysRange>) -> u64 {
    let mut gibs = BTreeSet::new();
    for range in mapped.filter(|range| !range.is_empty()) {
        gibs.extend(range.start().0 / GIB..=(range.end().0 - 1) / GIB);
    }
    let tables: BTreeSet<u64> = gibs.iter().map(|gib| gib / 512).collect();
    (gibs.len() as u64 + tables.len() as u64 + FIXED) * PAGE
}

#[cfg(test)]
mod tests {
    use super::*;
    use elfcorehdr::PhysAddr;

    #[test]
    fn every_gib_touched_costs_a_page() {
        let range = |start, len| PhysRange::from_len(PhysAddr(start), len).unwrap();
        assert_eq!(bytes_for([].into_iter()), FIXED * PAGE);
        assert_eq!(bytes_for([range(0, 1)].into_iter()), (FIXED + 2) * PAGE);
        assert_eq!(bytes_for([range(0, GIB), range(GIB - 1, 2)].into_iter()), (FIXED + 3) * PAGE);
        assert_eq!(bytes_for([range(0, 3 * GIB), range(600 * GIB, GIB)].into_iter()), (FIXED + 6) * PAGE);
    }
}
