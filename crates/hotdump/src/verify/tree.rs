//! Holds the image's device tree against the CPUs of the machine: a PowerPC capture kernel boots on the CPU that crashed, and
//! only if its tree lists that one.

use devtree::{Tree, is_cpu};

use super::compare::{CpuFact, Finding};

/// What is wrong with the trees of an image; more than one where which of them is in force is not known: then each has to do.
/// A CPU without a hardware number is of a machine that boots its kernels without a tree.
pub(crate) fn findings(trees: &[Vec<u8>], cpus: &[CpuFact]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for bytes in trees {
        let listed = match listed(bytes) {
            Ok(listed) => listed,
            Err(reason) => {
                findings.push(Finding::UnreadableTree { reason });
                continue;
            }
        };
        let left_out = |cpu: &&CpuFact| cpu.online && cpu.hardware.is_some_and(|id| !listed.contains(&id));
        for cpu in cpus.iter().filter(left_out).map(|cpu| cpu.number) {
            let finding = Finding::CpuNotInTree { cpu };
            if !findings.contains(&finding) {
                findings.push(finding);
            }
        }
    }
    findings
}

/// Hardware numbers of the CPUs that a tree lists: one for each thread of a core.
fn listed(bytes: &[u8]) -> Result<Vec<u32>, String> {
    let tree = Tree::parse(bytes).map_err(|error| error.to_string())?;
    let cpus = tree.node("/cpus").ok_or("it has no node /cpus")?;
    let threads = |node: devtree::Node<'_>| {
        let property = node.property(b"ibm,ppc-interrupt-server#s").or_else(|| node.property(b"reg"));
        let cells = property.unwrap_or_default().as_chunks::<4>().0;
        cells.iter().map(|cell| u32::from_be_bytes(*cell)).collect::<Vec<u32>>()
    };
    Ok(cpus.children().filter(is_cpu).flat_map(threads).collect())
}

#[cfg(test)]
mod tests {
    use devtree::{WriteError, Writer};
    use elfcorehdr::{Note, PhysAddr};

    use super::*;

    fn cpu(number: u32, hardware: Option<u32>, online: bool) -> CpuFact {
        CpuFact { number, online, note: Note { paddr: PhysAddr(0x1000), size: 0x200 }, hardware }
    }

    /// A tree with cores of these threads.
    fn tree(cores: &[&[u32]]) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        let write = |bytes: &mut [u8]| -> Result<usize, WriteError> {
            let mut writer = Writer::new(bytes, 0, [])?;
            writer.begin_node(b"")?;
            writer.begin_node(b"cpus")?;
            writer.begin_node(b"l2-cache@2000")?;
            writer.property(b"reg", &[0, 0, 0, 9])?;
            writer.end_node()?;
            for (index, threads) in cores.iter().enumerate() {
                writer.begin_node(format!("PowerPC,POWER9@{index}").as_bytes())?;
                writer.property(b"device_type", b"cpu\0")?;
                let cells: Vec<u8> = threads.iter().flat_map(|thread| thread.to_be_bytes()).collect();
                writer.property(b"ibm,ppc-interrupt-server#s", &cells)?;
                writer.end_node()?;
            }
            writer.end_node()?;
            writer.end_node()?;
            writer.finish()
        };
        let size = write(&mut bytes).unwrap();
        bytes.truncate(size);
        bytes
    }

    #[test]
    fn a_cpu_that_could_not_boot_is_found() {
        let cpus =
            [cpu(0, Some(0), true), cpu(1, Some(1), true), cpu(2, Some(8), true), cpu(3, Some(9), false)];
        let whole = tree(&[&[0, 1, 2, 3], &[8]]);
        assert_eq!(findings(std::slice::from_ref(&whole), &cpus), []);
        let old = tree(&[&[0, 1]]);
        let missing = [Finding::CpuNotInTree { cpu: 2 }];
        assert_eq!(
            findings(std::slice::from_ref(&old), &cpus),
            missing,
            "CPU 3 is offline and will not crash"
        );
        assert_eq!(findings(&[whole, old.clone(), old], &cpus), missing, "each has to do, each is told once");
        assert_eq!(findings(&[], &cpus), []);
        let reason = "it has no node /cpus".to_owned();
        let mut bytes = vec![0; 256];
        let mut writer = Writer::new(&mut bytes, 0, []).unwrap();
        writer.begin_node(b"").unwrap();
        writer.end_node().unwrap();
        let size = writer.finish().unwrap();
        assert_eq!(findings(&[bytes[..size].to_vec()], &cpus), [Finding::UnreadableTree { reason }]);
        assert!(matches!(findings(&[vec![0xd0; 64]], &cpus)[..], [Finding::UnreadableTree { .. }]));
    }
}
