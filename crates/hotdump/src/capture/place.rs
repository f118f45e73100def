//! The directory that takes one dump.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use vmcore::dump::Sink as _;

use super::report::sync_directory;
use super::sftp::{RemoteFile, Sftp};
use super::system;
use super::target::{CHECK_STAGE, LOCAL_MOUNT_POINT, MOUNT_POINT, STAGE};

/// Kept back in the dump's directory, so that a full disk still takes the report.
const RESERVE: u64 = 256 << 10;
/// Dumps of one second; more is no coincidence.
const MOST_OF_A_SECOND: u32 = 100;

/// A dump's directory.
#[derive(Debug)]
pub(crate) struct Place {
    dir: PathBuf,
    /// The server that gets what is made in the directory, when it is whole.
    session: Option<Sftp>,
}

impl Place {
    /// Makes a new directory for a dump started at `time` in the directory `path` below `root`, with what is missing of
    /// `path`, all for root only and synced.
    ///
    /// # Errors
    /// The system's error; `path` leading out of `root` by a symbolic link.
    pub(crate) fn create(root: &Path, path: &Path, time: jiff::Timestamp) -> io::Result<Self> {
        let mut parent = root.to_owned();
        let relative = path.components().filter(|part| matches!(part, std::path::Component::Normal(_)));
        for part in relative {
            parent.push(part);
            make_directory(&parent).or_else(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => Ok(()),
                _ => Err(error),
            })?;
            if !parent.canonicalize()?.starts_with(root.canonicalize()?) {
                let link = parent.display();
                return Err(io::Error::other(format!("{link} is a link that leads out of the target")));
            }
        }
        for number in 1..=MOST_OF_A_SECOND {
            match make_first(&parent, &names(time, number)) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => return made.map(|dir| Self { dir, session: None }),
            }
        }
        Err(io::Error::other(format!("{} holds {MOST_OF_A_SECOND} dumps of this second", parent.display())))
    }

    /// Has the place's files go to a server, into a directory of the same name; makes that.
    ///
    /// # Errors
    /// What the server says.
    pub(crate) fn send_to(self, session: Sftp) -> io::Result<Self> {
        let mut parents: Vec<PathBuf> = self.shown().ancestors().map(Path::to_owned).collect();
        parents.pop();
        for dir in parents.iter().rev() {
            session.make_directory(&dir.to_string_lossy())?;
        }
        Ok(Self { session: Some(session), ..self })
    }

    /// Sends a finished file to the server, if there is one: under another name first.
    ///
    /// # Errors
    /// The system's error, or what the server says.
    pub(crate) fn publish(&self, name: &str) -> io::Result<()> {
        let Some(session) = &self.session else { return Ok(()) };
        let bytes = fs::read(self.path(name))?;
        let (new, old) = (self.remote_path(&format!("{name}.new")), self.remote_path(name));
        let file = session.create(&new)?;
        file.write_at(0, &bytes)?;
        file.close()?;
        session.rename(&new, &old).or_else(|_| session.remove(&old).and_then(|()| session.rename(&new, &old)))
    }

    /// Removes the place and the files `names` in it, on the server too.
    ///
    /// # Errors
    /// The system's error, or what the server says.
    pub(crate) fn discard(self, names: &[&str]) -> io::Result<()> {
        let here = fs::remove_dir_all(&self.dir);
        if let Some(session) = &self.session {
            for name in names {
                session.remove(&self.remote_path(name))?;
            }
            session.remove_directory(&self.shown().to_string_lossy())?;
        }
        here
    }

    /// Makes a file on the server, for its owner alone; none where the place is on this machine.
    ///
    /// # Errors
    /// What the server says.
    pub(crate) fn create_remote(&self, name: &str) -> io::Result<Option<RemoteFile<'_>>> {
        self.session.as_ref().map(|session| session.create(&self.remote_path(name))).transpose()
    }

    /// Bytes that may still be written there.
    ///
    /// # Errors
    /// The system's error, or what the server says.
    pub(crate) fn free_space(&self) -> io::Result<u64> {
        match &self.session {
            Some(session) => {
                let free = session.free_space(&self.shown().to_string_lossy())?;
                free.ok_or_else(|| io::Error::other("the server does not say"))
            }
            None => system::free_space(&self.dir),
        }
    }

    fn remote_path(&self, name: &str) -> String {
        self.shown().join(name).to_string_lossy().into_owned()
    }

    /// A file's path in the directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The directory as it is to be named to people: on the target, where the target is mounted for the capture only.
    pub(crate) fn shown(&self) -> PathBuf {
        let mounted = [MOUNT_POINT, LOCAL_MOUNT_POINT, STAGE, CHECK_STAGE];
        match mounted.iter().find_map(|point| self.dir.strip_prefix(point).ok()) {
            Some(on_target) => Path::new("/").join(on_target),
            None => self.dir.clone(),
        }
    }

    /// Makes a file in the directory, for root only.
    ///
    /// # Errors
    /// The system's error.
    pub(crate) fn create_file(&self, name: &str) -> io::Result<File> {
        File::options().read(true).write(true).create_new(true).mode(0o600).open(self.path(name))
    }

    /// Sets room aside for the report. Filesystems that cannot are let be: it is only a help.
    pub(crate) fn set_aside(&self) {
        if self.session.is_none()
            && let Ok(file) = self.create_file(".reserve")
        {
            let _ = system::reserve(&file, RESERVE);
        }
    }

    /// Gives that room back.
    pub(crate) fn give_back(&self) {
        let _ = fs::remove_file(self.path(".reserve"));
    }

    /// Gives a finished file its final name, and syncs the name.
    ///
    /// # Errors
    /// The system's error.
    pub(crate) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        if let Some(session) = &self.session {
            return session.rename(&self.remote_path(from), &self.remote_path(to));
        }
        fs::rename(self.path(from), self.path(to))?;
        sync_directory(&self.path(to))
    }
}

/// Names for a dump, the better one first: FAT takes no colons.
fn names(time: jiff::Timestamp, number: u32) -> [String; 2] {
    let suffix = if number > 1 { format!("-{number}") } else { String::new() };
    ["%Y-%m-%d-%H:%M:%S", "%Y-%m-%d-%H.%M.%S"].map(|form| format!("{}{suffix}", time.strftime(form)))
}

/// Makes the first directory that the filesystem takes the name of.
fn make_first(parent: &Path, names: &[String; 2]) -> io::Result<PathBuf> {
    let [first, second] = names.each_ref().map(|name| parent.join(name));
    match make_directory(&first) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => make_directory(&second).map(|()| second),
        made => made.map(|()| first),
    }
}

fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)?;
    sync_directory(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn time() -> jiff::Timestamp {
        "2026-11-22T15:32:10.9Z".parse().unwrap()
    }

    #[test]
    fn dumps_of_the_same_second_get_their_own_directories_for_root_only() {
        let root = tempfile::tempdir().unwrap();
        let make = || Place::create(root.path(), Path::new("/var/crash"), time()).unwrap();
        let places = [make(), make(), make()];
        let parent = root.path().join("var/crash");
        for (place, name) in
            places.iter().zip(["2026-11-22-15:32:10", "2026-11-22-15:32:10-2", "2026-11-22-15:32:10-3"])
        {
            assert_eq!(place.dir(), parent.join(name));
        }
        assert_eq!(names(time(), 1)[1], "2026-11-22-15.32.10");
        places[0].create_file("vmcore.incomplete").unwrap();
        places[0].rename("vmcore.incomplete", "vmcore").unwrap();
        for (path, mode) in
            [(parent, 0o700), (places[0].dir().to_owned(), 0o700), (places[0].path("vmcore"), 0o600)]
        {
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode, "{}", path.display());
        }
    }

    #[test]
    fn a_link_out_of_the_target_is_refused_one_inside_is_followed() {
        let (root, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir(root.path().join("data")).unwrap();
        std::os::unix::fs::symlink("data", root.path().join("inside")).unwrap();
        std::os::unix::fs::symlink(other.path(), root.path().join("outside")).unwrap();
        Place::create(root.path(), Path::new("inside/crash"), time()).unwrap();
        assert!(root.path().join("data/crash/2026-11-22-15:32:10").is_dir());
        let error = Place::create(root.path(), Path::new("outside/crash"), time()).unwrap_err();
        assert!(error.to_string().contains("outside"), "{error}");
        assert_eq!(fs::read_dir(other.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_place_is_named_as_it_is_on_the_target() {
        for (dir, want) in [("/run/hotdump/target/crash/x", "/crash/x"), ("/mnt/crash/x", "/mnt/crash/x")] {
            assert_eq!(Place { dir: dir.into(), session: None }.shown(), Path::new(want));
        }
    }

    #[test]
    fn room_set_aside_is_given_back() {
        let root = tempfile::tempdir().unwrap();
        let place = Place::create(root.path(), Path::new(""), time()).unwrap();
        place.set_aside();
        assert_eq!(fs::metadata(place.path(".reserve")).unwrap().len(), RESERVE);
        place.give_back();
        assert_eq!(fs::read_dir(place.dir()).unwrap().count(), 0);
    }
}
