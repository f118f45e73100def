//! Writes BTF.

/// Types in the making. A type's number is what the methods that add one return.
#[derive(Clone, Default)]
pub(crate) struct Builder {
    types: Vec<u8>,
    count: u32,
    names: Vec<u8>,
}

const INT: u32 = 1;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;

impl Builder {
    fn name(&mut self, name: &str) -> u32 {
        if self.names.is_empty() {
            self.names.push(0);
        }
        if name.is_empty() {
            return 0;
        }
        let at = self.names.len() as u32;
        self.names.extend(name.as_bytes());
        self.names.push(0);
        at
    }

    fn add(&mut self, name: &str, info: u32, size: u32, rest: &[u32]) -> u32 {
        let name = self.name(name);
        for word in [name, info, size].iter().chain(rest) {
            self.types.extend(word.to_le_bytes());
        }
        self.count += 1;
        self.count
    }

    pub(crate) fn int(&mut self, name: &str, size: u32) -> u32 {
        self.add(name, INT << 24, size, &[size * 8])
    }

    /// Members with name, type, and offset in bytes.
    pub(crate) fn structure(&mut self, name: &str, size: u32, members: &[(&str, u32, u32)]) -> u32 {
        self.compound(STRUCT, name, size, members)
    }

    pub(crate) fn union(&mut self, name: &str, size: u32, members: &[(&str, u32, u32)]) -> u32 {
        self.compound(UNION, name, size, members)
    }

    fn compound(&mut self, kind: u32, name: &str, size: u32, members: &[(&str, u32, u32)]) -> u32 {
        let rest: Vec<u32> =
            members.iter().flat_map(|(name, kind, at)| [self.name(name), *kind, at * 8]).collect();
        self.add(name, kind << 24 | members.len() as u32, size, &rest)
    }

    /// A structure of bit fields: name, type, first bit, bits.
    pub(crate) fn bit_fields(&mut self, name: &str, size: u32, members: &[(&str, u32, u32, u32)]) -> u32 {
        let rest: Vec<u32> = members
            .iter()
            .flat_map(|(name, kind, at, bits)| [self.name(name), *kind, bits << 24 | at])
            .collect();
        self.add(name, 1 << 31 | STRUCT << 24 | members.len() as u32, size, &rest)
    }

    pub(crate) fn enumeration(&mut self, name: &str, values: &[(&str, i32)]) -> u32 {
        let rest: Vec<u32> =
            values.iter().flat_map(|(name, value)| [self.name(name), value.cast_unsigned()]).collect();
        self.add(name, ENUM << 24 | values.len() as u32, 4, &rest)
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let (types, names) = (self.types.len() as u32, self.names.len() as u32);
        let mut bytes: Vec<u8> = vec![0x9f, 0xeb, 1, 0];
        for number in [24, 0, types, types, names] {
            bytes.extend(number.to_le_bytes());
        }
        [bytes, self.types.clone(), self.names.clone()].concat()
    }
}

/// The types of a kernel of 6.12, as far as pages are told by them.
pub(crate) fn kernel() -> Builder {
    let mut btf = Builder::default();
    let long = btf.int("unsigned long", 8);
    let int = btf.int("int", 4);
    let types = btf.union("", 4, &[("page_type", int, 0), ("_mapcount", int, 0)]);
    let cache = btf.structure("", 40, &[("lru", long, 0), ("mapping", long, 16), ("private", long, 32)]);
    let tail = btf.structure("", 8, &[("compound_head", long, 0)]);
    let words = btf.union("", 40, &[("", cache, 0), ("", tail, 0)]);
    btf.structure("page", 64, &[("flags", long, 0), ("", words, 8), ("", types, 48)]);
    btf.structure("mem_section", 32, &[("section_mem_map", long, 0), ("usage", long, 8)]);
    btf.enumeration(
        "pageflags",
        &[
            ("PG_lru", 5),
            ("PG_head", 6),
            ("PG_swapcache", 10),
            ("PG_private", 14),
            ("PG_swapbacked", 17),
            ("PG_hwpoison", 20),
        ],
    );
    btf.enumeration(
        "pagetype",
        &[("PGTY_buddy", 0xf0), ("PGTY_offline", 0xf1), ("PGTY_hugetlb", 0xf4), ("PGTY_slab", 0xf5)],
    );
    btf
}
