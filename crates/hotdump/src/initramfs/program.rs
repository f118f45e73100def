//! Programs to put in: whether they stand alone, and which libraries they need where they do not.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use object::elf::{FileHeader64, PT_DYNAMIC, PT_INTERP};
use object::read::elf::{Dyn as _, FileHeader as _, ProgramHeader as _};
use object::{LittleEndian as LE, StringTable, elf};

/// Where glibc's loader looks without its cache, which a small initramfs has not; the first two are Debian's.
const LIBRARY_DIRS: [&str; 6] = {
    let [lib, usr_lib] = if cfg!(target_arch = "powerpc64") {
        ["/lib/powerpc64le-linux-gnu", "/usr/lib/powerpc64le-linux-gnu"]
    } else {
        ["/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu"]
    };
    [lib, usr_lib, "/lib64", "/usr/lib64", "/lib", "/usr/lib"]
};

/// What a program asks of the system before it runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Needs {
    /// The loader; none for a static program.
    interpreter: Option<String>,
    libraries: Vec<String>,
    /// Directories of its own to look in.
    search: Vec<String>,
}

impl Needs {
    /// Reads the needs of a program; none for what is no 64-bit ELF file, such as a script.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let header = FileHeader64::<LE>::parse(bytes).ok()?;
        let endian = header.endian().ok()?;
        let segments = header.program_headers(endian, bytes).ok()?;
        let mut needs = Self::default();
        for segment in segments {
            if segment.p_type(endian) == PT_INTERP {
                let name = segment.data(endian, bytes).ok()?;
                needs.interpreter = Some(text(name.split(|byte| *byte == 0).next()?));
            }
        }
        let dynamic = segments.iter().find(|segment| segment.p_type(endian) == PT_DYNAMIC);
        let Some(entries) = dynamic.and_then(|segment| segment.dynamic(endian, bytes).ok()?) else {
            return Some(needs);
        };
        let value =
            |tag| entries.iter().find(|entry| entry.tag(endian) == tag).map(|entry| entry.val(endian));
        // Addresses in the dynamic section are those of the loaded program.
        let names = segments.iter().find_map(|segment| {
            segment.data_range(endian, bytes, value(elf::DT_STRTAB)?, value(elf::DT_STRSZ)?).ok()?
        })?;
        let names = StringTable::new(names, 0, names.len() as u64);
        for entry in entries {
            let name = || u32::try_from(entry.val(endian)).ok().and_then(|at| names.get(at).ok()).map(text);
            match entry.tag(endian) {
                elf::DT_NEEDED => needs.libraries.extend(name()),
                elf::DT_RPATH | elf::DT_RUNPATH => {
                    needs.search.extend(name().iter().flat_map(|dirs| dirs.split(':')).map(str::to_owned));
                }
                _ => {}
            }
        }
        Some(needs)
    }

    /// Whether the program runs on its own.
    pub(super) fn is_static(&self) -> bool {
        self.interpreter.is_none() && self.libraries.is_empty()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Why a program's libraries cannot be put in.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProgramError {
    /// A file cannot be read.
    #[error("cannot read {path}, needed by {by}: {source}")]
    Read {
        /// The file.
        path: String,
        /// What needs it.
        by: String,
        /// The system's error.
        source: io::Error,
    },
    /// A library is nowhere.
    #[error("cannot find the library {name}, needed by {by}; looked in {dirs}")]
    NoLibrary {
        /// The library.
        name: String,
        /// What needs it.
        by: String,
        /// Where it was looked for.
        dirs: String,
    },
}

/// The libraries that a program needs, those that they need, and the loader: by the path they must have.
///
/// # Errors
/// The first that is missing.
pub(super) fn libraries(program: &Path, bytes: &[u8]) -> Result<BTreeMap<PathBuf, Vec<u8>>, ProgramError> {
    let mut found: BTreeMap<PathBuf, Vec<u8>> = BTreeMap::new();
    let mut to_do = vec![(program.to_owned(), Needs::read(bytes).unwrap_or_default())];
    while let Some((of, needs)) = to_do.pop() {
        let by = of.display().to_string();
        let interpreter = needs.interpreter.iter().map(|name| Ok(PathBuf::from(name)));
        let libraries = needs.libraries.iter().map(|name| locate(name, &needs.search, &of, &by));
        for path in interpreter.chain(libraries) {
            let path = path?;
            if found.contains_key(&path) {
                continue;
            }
            let bytes = fs::read(&path).map_err(|source| ProgramError::Read {
                path: path.display().to_string(),
                by: by.clone(),
                source,
            })?;
            to_do.push((path.clone(), Needs::read(&bytes).unwrap_or_default()));
            found.insert(path, bytes);
        }
    }
    Ok(found)
}

fn locate(name: &str, search: &[String], of: &Path, by: &str) -> Result<PathBuf, ProgramError> {
    let origin = of.parent().unwrap_or(Path::new("/")).display().to_string();
    let own = search.iter().map(|dir| dir.replace("$ORIGIN", &origin).replace("${ORIGIN}", &origin));
    let dirs: Vec<String> = own.chain(LIBRARY_DIRS.map(str::to_owned)).collect();
    let place = dirs.iter().map(|dir| Path::new(dir).join(name)).find(|path| path.is_file());
    place.ok_or_else(|| ProgramError::NoLibrary {
        name: name.to_owned(),
        by: by.to_owned(),
        dirs: dirs.join(", "),
    })
}

/// Where a command is, by its path or as a shell would find it.
pub(super) fn find_command(name: &str) -> Option<PathBuf> {
    const PATH: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(|path| path.is_file());
    }
    PATH.iter().map(|dir| Path::new(dir).join(name)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_running_shell_is_understood() {
        let path = find_command("sh").unwrap();
        let bytes = fs::read(&path).unwrap();
        let needs = Needs::read(&bytes).unwrap();
        let libraries = libraries(&path, &bytes).unwrap();
        // Whatever shell this is: static and alone, or with its loader and the C library.
        let names: Vec<_> = libraries.keys().filter_map(|path| path.file_name()?.to_str()).collect();
        assert_eq!(needs.is_static(), names.is_empty(), "{names:?}");
        if let Some(interpreter) = &needs.interpreter {
            assert!(libraries.contains_key(Path::new(interpreter)), "{names:?}");
            assert!(needs.libraries.iter().all(|library| names.contains(&library.as_str())), "{names:?}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let error =
            locate("libnone.so.1", &["$ORIGIN/x".into()], Path::new("/opt/p/run"), "/opt/p/run").unwrap_err();
        let text = error.to_string();
        assert!(text.contains("libnone.so.1") && text.contains("/opt/p/x"), "{text}");
        assert_eq!(find_command("no-such-command"), None);
        assert_eq!(Needs::read(b"#!/bin/sh\n"), None);
    }

    proptest! {
        #[test]
        fn damaged_programs_do_no_harm(damage in proptest::collection::vec((0usize..2048, any::<u8>()), 0..50), cut in 0usize..200_000) {
            let mut bytes = fs::read(find_command("sh").unwrap()).unwrap();
            for (at, byte) in damage {
                bytes[at] = byte;
            }
            bytes.truncate(cut);
            Needs::read(&bytes);
        }
    }
}
