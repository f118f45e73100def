//! Looks at the dumps on a server from the running system, on the way that `hotdump target check` goes.

use std::fs;
use std::io;
use std::path::Path;

use super::check::MOUNT_POINT;
use super::{Outcome, Steps, network};
use crate::capture::{LOG, Sftp, Target};
use crate::dumps::store;
use crate::prepared::Prepared;

/// How many dumps are looked at, the newest.
const MOST_DUMPS: usize = 10;
/// How much is read of a file.
const MOST_BYTES: usize = 16 << 20;

/// Has `look` look at a directory that shows the dumps on the server of `prepared`, which was read from `initramfs`: the server's own,
/// mounted, or one with copies of reports and logs of the newest.
///
/// # Errors
/// Why the server cannot be asked.
pub(crate) fn look_at_server<T>(
    initramfs: &Path,
    prepared: &Prepared,
    look: impl FnOnce(&Path) -> T,
) -> Result<T, String> {
    let mut steps = Steps::default();
    let path = &prepared.config.path;
    let looked = match &prepared.config.target {
        Some(Target::Nfs(export)) => network::mount(export, &prepared.config, &mut steps)
            .map(|_mounted| look(&Path::new(MOUNT_POINT).join(path.strip_prefix("/").unwrap_or(path)))),
        Some(Target::Ssh(server)) => {
            network::log_in(server, initramfs, prepared, &mut steps).and_then(|(session, stage)| {
                let copies = stage.path().join("dumps");
                let copied = copy(&session, &path.to_string_lossy(), &copies);
                steps.take("read", copied, |()| String::new()).map(|()| look(&copies))
            })
        }
        _ => None,
    };
    let failed = |steps: Steps| steps.steps.into_iter().find(|step| step.outcome == Outcome::Failed);
    looked.ok_or_else(|| failed(steps).map_or_else(|| "it is no server".to_owned(), |step| step.detail))
}

/// Copies reports and logs of the newest dumps in the server's directory `from` to the new directory `to`.
fn copy(session: &Sftp, from: &str, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    let names = match session.names(from) {
        // No dump has come there yet.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        names => store::dumps_among(names?),
    };
    for name in names.iter().rev().take(MOST_DUMPS) {
        fs::create_dir(to.join(name))?;
        for file in [store::REPORT, LOG] {
            match session.read(&format!("{from}/{name}/{file}"), MOST_BYTES) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                bytes => fs::write(to.join(name).join(file), bytes?)?,
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn reports_and_logs_of_the_newest_dumps_are_copied() {
        let Some(program) = ["/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server"]
            .into_iter()
            .find(|path| Path::new(path).exists())
        else {
            return;
        };
        let session = Sftp::start(&mut Command::new(program)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("server"), dir.path().join("copies"));
        for number in 10..22 {
            let dump = from.join(format!("2026-11-22-15:32:{number}"));
            fs::create_dir_all(&dump).unwrap();
            fs::write(dump.join(LOG), format!("log {number}")).unwrap();
            fs::write(dump.join(store::WHOLE), "memory").unwrap();
        }
        fs::write(from.join("2026-11-22-15:32:21").join(store::REPORT), "{}").unwrap();
        fs::create_dir(from.join("other")).unwrap();

        copy(&session, from.to_str().unwrap(), &to).unwrap();
        let copied = store::list(&to).unwrap();
        assert_eq!(copied.len(), MOST_DUMPS);
        assert_eq!(copied[0].name, "2026-11-22-15:32:12");
        let newest = to.join("2026-11-22-15:32:21");
        assert_eq!(fs::read_to_string(newest.join(LOG)).unwrap(), "log 21");
        assert_eq!(fs::read_dir(newest).unwrap().count(), 2, "the memory stays there");

        copy(&session, dir.path().join("none").to_str().unwrap(), &dir.path().join("empty")).unwrap();
        assert_eq!(store::list(&dir.path().join("empty")).unwrap().len(), 0);
    }
}
