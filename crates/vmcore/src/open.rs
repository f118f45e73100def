//! A dump of any kind, opened as a core.

use std::io;
use std::sync::Arc;

use crate::compressed::{Compressed, DumpFileError, DumpHeader};
use crate::elf::{Core, CoreError};
use crate::flattened::{FlattenedError, Rearranged};
use crate::source::ReadAt;

/// What a dump is read from once its kind is known.
pub type Source = Box<dyn ReadAt + Send + Sync>;

/// A dump of any kind: ELF (/proc/vmcore too), kdump-compressed, either of them flattened.
pub struct Dump {
    /// The dump, as a core.
    pub core: Core<Source>,
    /// What the headers of a kdump-compressed dump say; none for ELF. Frames that exist and are not in `kept` cannot be read from `core`.
    pub header: Option<Arc<DumpHeader>>,
    /// For a flattened stream, whether it has its end; none for others.
    pub flattened: Option<bool>,
}

/// Why a dump could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The system's error.
    #[error("cannot read the dump: {0}")]
    Read(#[from] io::Error),
    /// A flattened stream that is damaged.
    #[error(transparent)]
    Flattened(#[from] FlattenedError),
    /// A kdump-compressed dump that is damaged, or of a kind that is not known.
    #[error(transparent)]
    Compressed(#[from] DumpFileError),
    /// No ELF core either.
    #[error(transparent)]
    Core(#[from] CoreError),
}

impl Dump {
    /// Finds out what `source` is, and opens it.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(source: impl ReadAt + Send + Sync + 'static) -> Result<Self, OpenError> {
        if !Rearranged::is_one(&source)? {
            return Self::open_plain(Box::new(source), None);
        }
        let stream = Rearranged::open(source)?;
        let whole = stream.is_complete();
        Self::open_plain(Box::new(stream), Some(whole))
    }

    fn open_plain(source: Source, flattened: Option<bool>) -> Result<Self, OpenError> {
        if !Compressed::is_one(&source)? {
            return Ok(Self { core: Core::open(source)?, header: None, flattened });
        }
        let dump = Compressed::open(source)?;
        let header = Some(Arc::clone(dump.header()));
        Ok(Self { core: Core::open(Box::new(dump) as Source)?, header, flattened })
    }
}
