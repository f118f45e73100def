//! The nodes of the running kernel's device tree below `/cpus`, as the shim writes them down.

/// Nodes, one record after the other: three numbers of 4 bytes, in the machine's byte order (kind, size of the name, size of the
/// value), then name and value.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nodes<'a> {
    records: &'a [u8],
}

/// A record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// A node begins. Nodes of `/cpus` that are no CPU are caches.
    Node {
        /// Its name with the unit address.
        name: &'a [u8],
        /// Whether it is a CPU.
        is_cpu: bool,
    },
    /// The open node has this property.
    Property {
        /// Its name.
        name: &'a [u8],
        /// Its value.
        value: &'a [u8],
    },
    /// The node ends.
    End,
}

/// Kinds of records.
mod kind {
    pub(super) const CPU: u32 = 0;
    pub(super) const CACHE: u32 = 1;
    pub(super) const PROPERTY: u32 = 2;
    pub(super) const END: u32 = 3;
}

impl<'a> Nodes<'a> {
    /// Nodes in these records. What cannot be read ends them.
    pub fn new(records: &'a [u8]) -> Self {
        Self { records }
    }

    /// Whether there are none.
    pub(crate) fn is_empty(self) -> bool {
        self.records.is_empty()
    }

    /// Names of the CPUs, in order.
    pub(crate) fn cpus(self) -> impl Iterator<Item = &'a [u8]> {
        self.filter_map(|part| match part {
            Part::Node { name, is_cpu: true } => Some(name),
            _ => None,
        })
    }
}

impl<'a> Iterator for Nodes<'a> {
    type Item = Part<'a>;

    fn next(&mut self) -> Option<Part<'a>> {
        let mut rest = self.records;
        let kind = number(&mut rest)?;
        let (name_size, value_size) = (number(&mut rest)?, number(&mut rest)?);
        let (name, rest) = rest.split_at_checked(name_size as usize)?;
        let (value, rest) = rest.split_at_checked(value_size as usize)?;
        self.records = rest;
        match kind {
            kind::CPU | kind::CACHE => Some(Part::Node { name, is_cpu: kind == kind::CPU }),
            kind::PROPERTY => Some(Part::Property { name, value }),
            kind::END => Some(Part::End),
            _ => None,
        }
    }
}

fn number(bytes: &mut &[u8]) -> Option<u32> {
    let (number, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(u32::from_ne_bytes(*number))
}
