//! vmcoreinfo: the text note in which a kernel tells dump tools where things are.

use std::collections::BTreeMap;

use crate::source::VirtAddr;

/// Something that vmcoreinfo lacks, or has in a form that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InfoError {
    /// The key is absent.
    #[error("vmcoreinfo has no {0}: this kernel is older or newer than what is known here")]
    Missing(String),
    /// The value is no number.
    #[error("vmcoreinfo has {key}={value}, which is no number")]
    NotANumber {
        /// The key.
        key: String,
        /// Its value.
        value: String,
    },
}

/// The lines of vmcoreinfo, `KEY=value`.
#[derive(Debug, Clone, Default)]
pub struct VmcoreInfo {
    lines: BTreeMap<String, String>,
}

impl VmcoreInfo {
    /// Takes the note's text apart; what is no `KEY=value` line is left out.
    #[must_use]
    pub fn parse(text: &[u8]) -> Self {
        let lines = String::from_utf8_lossy(text)
            .split(['\n', '\0'])
            .filter_map(|line| line.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        Self { lines }
    }

    /// A line's value, by its whole key, as in `OSRELEASE` or `SYMBOL(prb)`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.lines.get(key).map(String::as_str)
    }

    /// The crashed kernel's release (`uname -r`).
    #[must_use]
    pub fn release(&self) -> Option<&str> {
        self.get("OSRELEASE")
    }

    /// `SYMBOL(name)`: a symbol's virtual address.
    ///
    /// # Errors
    /// [`InfoError`] where it is absent or no number.
    pub fn symbol(&self, name: &str) -> Result<VirtAddr, InfoError> {
        self.number_with(format!("SYMBOL({name})"), |text| u64::from_str_radix(text, 16).ok()).map(VirtAddr)
    }

    /// `SIZE(name)`: a structure's size, in bytes.
    ///
    /// # Errors
    /// [`InfoError`] where it is absent or no number.
    pub fn size(&self, name: &str) -> Result<u64, InfoError> {
        self.number_with(format!("SIZE({name})"), |text| text.parse().ok())
    }

    /// `LENGTH(name)`: how many elements an array has.
    ///
    /// # Errors
    /// [`InfoError`] where it is absent or no number.
    pub fn length(&self, name: &str) -> Result<u64, InfoError> {
        self.number_with(format!("LENGTH({name})"), |text| text.parse().ok())
    }

    /// `OFFSET(struct.field)`: a field's offset, in bytes.
    ///
    /// # Errors
    /// [`InfoError`] where it is absent or no number.
    pub fn offset(&self, field: &str) -> Result<u64, InfoError> {
        self.number_with(format!("OFFSET({field})"), |text| text.parse().ok())
    }

    /// `NUMBER(name)`: kernels print it as a signed decimal; the bits are handed on.
    ///
    /// # Errors
    /// [`InfoError`] where it is absent or no number.
    pub fn number(&self, name: &str) -> Result<u64, InfoError> {
        self.number_with(format!("NUMBER({name})"), |text| {
            text.parse::<i64>().map(i64::cast_unsigned).ok().or_else(|| text.parse().ok())
        })
    }

    fn number_with(&self, key: String, parse: impl Fn(&str) -> Option<u64>) -> Result<u64, InfoError> {
        let Some(value) = self.get(&key) else { return Err(InfoError::Missing(key)) };
        parse(value).ok_or_else(|| InfoError::NotANumber { key, value: value.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_in_the_base_that_the_kernel_prints() {
        let info = VmcoreInfo::parse(
            b"OSRELEASE=6.12.107\nSYMBOL(prb)=ffffffff82e6e5a0\nSIZE(page)=64\nOFFSET(prb_desc.state_var)=8\n\
              NUMBER(phys_base)=-1048576\nNUMBER(sme_mask)=140737488355328\nnonsense\n\0\0",
        );
        assert_eq!(info.release(), Some("6.12.107"));
        assert_eq!(info.symbol("prb"), Ok(VirtAddr(0xffff_ffff_82e6_e5a0)));
        assert_eq!(info.size("page"), Ok(64));
        assert_eq!(info.offset("prb_desc.state_var"), Ok(8));
        assert_eq!(info.number("phys_base"), Ok(0u64.wrapping_sub(0x10_0000)));
        assert_eq!(info.number("sme_mask"), Ok(1 << 47));
    }

    #[test]
    fn what_is_absent_or_garbled_is_named() {
        let info = VmcoreInfo::parse(b"SIZE(page)=x\n");
        assert_eq!(info.symbol("prb"), Err(InfoError::Missing("SYMBOL(prb)".into())));
        assert_eq!(
            info.size("page"),
            Err(InfoError::NotANumber { key: "SIZE(page)".into(), value: "x".into() })
        );
    }
}
