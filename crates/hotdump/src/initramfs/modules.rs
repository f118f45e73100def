//! The kernel's modules as depmod describes them: modules.dep, modules.softdep, modules.alias, modules.builtin.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::glob;

/// What depmod knows of a kernel's modules. Names are without `.ko` and have `_` for `-`, as the kernel has them.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// A module's file, and the files that it needs, all below the modules' directory.
    files: BTreeMap<String, (PathBuf, Vec<String>)>,
    builtin: BTreeSet<String>,
    /// Modules by patterns of what they drive or provide.
    aliases: Vec<(String, String)>,
    /// What a module wants before and after itself, if it is there.
    soft: BTreeMap<String, Vec<String>>,
}

/// Why modules cannot be put in.
#[derive(Debug, thiserror::Error)]
pub(super) enum ModuleError {
    /// A table cannot be read.
    #[error("cannot read {path}: {source}; are the modules of that kernel installed, and was depmod run?")]
    Table {
        /// The table.
        path: String,
        /// The system's error.
        source: io::Error,
    },
    /// No such module.
    #[error(
        "the kernel has no module {name}: it is neither in modules.dep nor in modules.builtin, nor the alias of one that is"
    )]
    Unknown {
        /// Its name.
        name: String,
    },
}

impl Index {
    /// Reads the tables in a modules' directory. Only modules.dep must be there.
    pub(super) fn read(dir: &Path) -> Result<Self, ModuleError> {
        let table = |name: &str| {
            let path = dir.join(name);
            fs::read_to_string(&path)
                .map_err(|source| ModuleError::Table { path: path.display().to_string(), source })
        };
        let optional = |name: &str| table(name).unwrap_or_default();
        Ok(Self::parse(
            &table("modules.dep")?,
            &optional("modules.builtin"),
            &optional("modules.alias"),
            &optional("modules.softdep"),
        ))
    }

    /// Takes the tables' text apart; lines of another form are left out.
    fn parse(dep: &str, builtin: &str, alias: &str, softdep: &str) -> Self {
        let mut index = Self::default();
        for (file, needs) in dep.lines().filter_map(|line| line.split_once(':')) {
            if let Some(name) = name_of(file.trim()) {
                let needs = needs.split_ascii_whitespace().filter_map(name_of).collect();
                index.files.insert(name, (PathBuf::from(file.trim()), needs));
            }
        }
        index.builtin = builtin.lines().filter_map(|line| name_of(line.trim())).collect();
        for line in alias.lines() {
            if let ["alias", pattern, module] = *line.split_ascii_whitespace().collect::<Vec<_>>() {
                index.aliases.push((normal(pattern), normal(module)));
            }
        }
        for line in softdep.lines() {
            let mut words = line.split_ascii_whitespace();
            if words.next() == Some("softdep")
                && let Some(module) = words.next()
            {
                let wanted = words.filter(|word| !word.ends_with(':')).map(normal);
                index.soft.entry(normal(module)).or_default().extend(wanted);
            }
        }
        index
    }

    /// Puts the module called `name`, or those that have it as an alias, and all they need into `plan`.
    ///
    /// # Errors
    /// [`ModuleError::Unknown`]. A module that is built into the kernel is fine.
    pub(super) fn add(&self, plan: &mut Plan, name: &str) -> Result<(), ModuleError> {
        let name = normal(name);
        if self.files.contains_key(&name) {
            self.add_file(plan, &name);
            return Ok(());
        }
        let by_alias: Vec<&str> = self.aliased(&name).collect();
        if by_alias.is_empty() && !self.builtin.contains(&name) {
            return Err(ModuleError::Unknown { name });
        }
        by_alias.into_iter().for_each(|module| self.add_file(plan, module));
        Ok(())
    }

    /// The same for what would be good to have.
    pub(super) fn add_if_known(&self, plan: &mut Plan, name: &str) {
        // What the kernel does not know it does not need.
        let _ = self.add(plan, name);
    }

    /// Puts a module into the plan behind what it needs. One that is met again on the way there (depmod refuses circles of
    /// needs, not of wishes) is in the plan already, or will be.
    fn add_file(&self, plan: &mut Plan, name: &str) {
        let Some((file, needs)) = self.files.get(name) else { return };
        if !plan.seen.insert(name.to_owned()) {
            return;
        }
        // modules.dep lists the innermost need last.
        needs.iter().rev().for_each(|need| self.add_file(plan, need));
        for wanted in self.soft.get(name).into_iter().flatten() {
            self.add_if_known(plan, wanted);
        }
        plan.files.push(file.clone());
    }

    fn aliased<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let matching = self.aliases.iter().filter(move |(pattern, _)| glob::matches(pattern, name));
        matching.map(|(_, module)| module.as_str())
    }
}

/// Modules to load, each behind what it needs.
#[derive(Debug, Default)]
pub(super) struct Plan {
    files: Vec<PathBuf>,
    seen: BTreeSet<String>,
}

impl Plan {
    /// The modules' files, relative to their directory, in the order in which they are to be loaded.
    pub(super) fn files(&self) -> &[PathBuf] {
        &self.files
    }
}

/// A module's name from its file's path: `kernel/fs/ext4/ext4.ko.xz` is `ext4`.
fn name_of(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let (name, _) = file.split_once(".ko")?;
    (!name.is_empty()).then(|| normal(name))
}

fn normal(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DEP: &str = "kernel/fs/ext4/ext4.ko.xz: kernel/fs/jbd2/jbd2.ko.xz kernel/lib/crc16.ko.xz kernel/fs/mbcache.ko.xz\n\
                       kernel/fs/jbd2/jbd2.ko.xz:\nkernel/lib/crc16.ko.xz:\nkernel/fs/mbcache.ko.xz:\n\
                       kernel/crypto/crc32c-generic.ko:\nkernel/arch/x86/crypto/crc32c-intel.ko.zst:\n\
                       kernel/drivers/virtio/virtio.ko:\nkernel/drivers/block/virtio_blk.ko: kernel/drivers/virtio/virtio.ko\n\
                       kernel/a.ko: kernel/b.ko kernel/c.ko\nkernel/b.ko: kernel/c.ko\nkernel/c.ko:\n";
    const ALIAS: &str = "# Aliases\nalias crypto-crc32c crc32c_generic\nalias crypto-crc32c crc32c_intel\n\
                         alias virtio:d00000002v* virtio_blk\nalias fs-ext4 ext4\n";
    const SOFTDEP: &str =
        "# Soft dependencies\nsoftdep ext4 pre: crypto-crc32c post: not-there\nsoftdep jbd2 post: ext4\n";

    fn plan(names: &[&str]) -> Vec<String> {
        let index = Index::parse(DEP, "kernel/fs/xfs/xfs.ko\n", ALIAS, SOFTDEP);
        let mut plan = Plan::default();
        names.iter().for_each(|name| index.add(&mut plan, name).unwrap());
        plan.files().iter().map(|file| name_of(file.to_str().unwrap()).unwrap()).collect()
    }

    #[test]
    fn modules_come_behind_what_they_need() {
        for (names, want) in [
            (&["ext4"][..], &["mbcache", "crc16", "jbd2", "crc32c_generic", "crc32c_intel", "ext4"][..]),
            (&["virtio:d00000002v00001AF4", "virtio-blk"], &["virtio", "virtio_blk"]),
            (&["a"], &["c", "b", "a"]),
            (&["crc32c-intel"], &["crc32c_intel"]),
            (&["xfs"], &[]),
        ] {
            assert_eq!(plan(names), want, "{names:?}");
        }
    }

    #[test]
    fn an_unknown_module_is_named() {
        let index = Index::parse(DEP, "", ALIAS, SOFTDEP);
        let error = index.add(&mut Plan::default(), "no-such").unwrap_err();
        assert!(error.to_string().contains("no_such"), "{error}");
    }

    proptest! {
        /// Any acyclic table: every module once, behind all that it needs.
        #[test]
        fn any_table_gives_an_order_that_loads(needs in proptest::collection::vec(proptest::collection::vec(0usize..30, 0..5), 1..30)) {
            let file = |number: usize| format!("kernel/m{number}.ko");
            let below = |number: usize| needs[number].iter().copied().filter(move |need| *need < number);
            let lines = (0..needs.len()).map(|number| {
                format!("{}:{}\n", file(number), below(number).map(|need| format!(" {}", file(need))).collect::<String>())
            });
            let index = Index::parse(&lines.collect::<String>(), "", "", "");
            let mut plan = Plan::default();
            (0..needs.len()).rev().for_each(|number| index.add(&mut plan, &format!("m{number}")).unwrap());
            prop_assert_eq!(plan.files().len(), needs.len());
            let place = |number| plan.files().iter().position(|found| *found == Path::new(&file(number))).unwrap();
            for number in 0..needs.len() {
                for need in below(number) {
                    prop_assert!(place(need) < place(number), "m{need} comes before m{number}");
                }
            }
        }

        /// Any text, with its lines and words in any order, is read to an end.
        #[test]
        fn any_text_is_read(text in "([a-z/:*.\\[\\]-]{0,12}|kernel/[ab].ko|softdep|alias|pre:|[ :\n]){0,60}") {
            let index = Index::parse(&text, &text, &text, &text);
            let mut plan = Plan::default();
            for name in index.files.keys() {
                index.add(&mut plan, name).unwrap();
            }
            prop_assert_eq!(plan.files().len(), index.files.len());
            index.add_if_known(&mut plan, &text);
        }
    }
}
