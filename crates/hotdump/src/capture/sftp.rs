//! Files on a server by SFTP (draft-ietf-secsh-filexfer-02, version 3, which all servers speak), through the system's own `ssh`.
//!
//! No shell of the server runs, so nothing is quoted for one, and an account that may do nothing but transfer files is enough.
//! Writes go to any offset: a dump on the server is the same file as on a disk, with holes.

use std::collections::BTreeSet;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use vmcore::dump::Sink;

/// Bytes in one write: every server takes as much (section 3 of the draft).
const PIECE: usize = 32 << 10;
/// Writes that are on the way at a time: 4 MiB.
const ON_THE_WAY: usize = 128;
/// The longest packet that a server may send; it has no reason to send more than names and numbers.
const LONGEST: usize = 256 << 10;

const INIT: u8 = 1;
const VERSION: u8 = 2;
const OPEN: u8 = 3;
const CLOSE: u8 = 4;
const READ: u8 = 5;
const WRITE: u8 = 6;
const FSETSTAT: u8 = 10;
const OPENDIR: u8 = 11;
const READDIR: u8 = 12;
const REMOVE: u8 = 13;
const MKDIR: u8 = 14;
const RMDIR: u8 = 15;
const STAT: u8 = 17;
const RENAME: u8 = 18;
const EXTENDED: u8 = 200;
const STATUS: u8 = 101;
const HANDLE: u8 = 102;
const DATA: u8 = 103;
const NAME: u8 = 104;
const ATTRS: u8 = 105;
const EXTENDED_REPLY: u8 = 201;

/// Flags of an open: for writing, made new, and it must not be there.
const NEW_FILE: u32 = 0x02 | 0x08 | 0x20;
/// The flag of an open for reading.
const OLD_FILE: u32 = 0x01;
/// Flags of attributes: the size, the owners, the permissions, the times, and what a server adds.
const SIZE: u32 = 1;
const OWNERS: u32 = 2;
const PERMISSIONS: u32 = 4;
const TIMES: u32 = 8;
const EXTENSIONS: u32 = 1 << 31;

/// What OpenSSH's server can besides, if it says so.
const FSYNC: &str = "fsync@openssh.com";
const POSIX_RENAME: &str = "posix-rename@openssh.com";
const STATVFS: &str = "statvfs@openssh.com";

/// A session with a server.
#[derive(Debug)]
pub(crate) struct Sftp {
    child: Child,
    wire: Mutex<Wire<BufWriter<ChildStdin>, BufReader<ChildStdout>>>,
}

impl Sftp {
    /// Starts `command`, an `ssh` that asks for the subsystem sftp, and greets the server.
    ///
    /// # Errors
    /// `ssh` does not start, or ends before the server answers: it has said why on standard error.
    pub(crate) fn start(command: &mut Command) -> io::Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (Some(out), Some(input)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("no pipes to ssh"));
        };
        match Wire::greet(BufWriter::new(out), BufReader::new(input)) {
            Ok(wire) => Ok(Self { child, wire: Mutex::new(wire) }),
            Err(error) => {
                let _ = child.kill();
                let status = child.wait()?;
                Err(io::Error::new(error.kind(), format!("no session ({error}); ssh: {status}")))
            }
        }
    }

    /// Makes a directory for its owner alone. One that is there is fine.
    ///
    /// # Errors
    /// What the server says.
    pub(crate) fn make_directory(&self, path: &str) -> io::Result<()> {
        self.with(|wire| {
            let mut request = Packet::new(MKDIR);
            request.text(path).number(PERMISSIONS).number(0o700);
            match wire.ask(request)?.status() {
                Err(error) if wire.ask_about(path).is_err() => Err(error),
                _ => Ok(()),
            }
        })
    }

    /// Makes a file for its owner alone, which must not be there yet.
    ///
    /// # Errors
    /// What the server says.
    pub(crate) fn create(&self, path: &str) -> io::Result<RemoteFile<'_>> {
        let handle = self.with(|wire| {
            let mut request = Packet::new(OPEN);
            request.text(path).number(NEW_FILE).number(PERMISSIONS).number(0o600);
            wire.ask(request)?.handle()
        })?;
        Ok(RemoteFile { session: self, handle })
    }

    /// The names in a directory, in no order.
    ///
    /// # Errors
    /// What the server says.
    pub(crate) fn names(&self, path: &str) -> io::Result<Vec<String>> {
        self.with(|wire| {
            let mut request = Packet::new(OPENDIR);
            request.text(path);
            let handle = wire.ask(request)?.handle()?;
            let mut names = Vec::new();
            let listed = until_end(|| {
                let mut request = Packet::new(READDIR);
                request.bytes(&handle);
                let mut answer = wire.ask(request)?.expect(NAME)?;
                let count = answer.take_number()?;
                if count == 0 {
                    return Err(io::Error::other("the server sent no name, and not that there are no more"));
                }
                for _ in 0..count {
                    names.push(String::from_utf8_lossy(&answer.take_bytes()?).into_owned());
                    // A line as of `ls -l`, for people.
                    answer.take_bytes()?;
                    answer.skip_attributes()?;
                }
                Ok(())
            });
            listed.and(wire.close(&handle)).map(|()| names)
        })
    }

    /// The first `most` bytes of a file, or all where it has not as many.
    ///
    /// # Errors
    /// What the server says.
    pub(crate) fn read(&self, path: &str, most: usize) -> io::Result<Vec<u8>> {
        self.with(|wire| {
            let mut request = Packet::new(OPEN);
            request.text(path).number(OLD_FILE).number(0);
            let handle = wire.ask(request)?.handle()?;
            let mut bytes = Vec::new();
            let read = until_end(|| {
                let length = PIECE.min(most - bytes.len());
                if length == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                let mut request = Packet::new(READ);
                request.bytes(&handle).long(bytes.len() as u64).number(length as u32);
                let mut piece = wire.ask(request)?.expect(DATA)?.take_bytes()?;
                if piece.is_empty() {
                    return Err(io::Error::other("the server sent nothing, and not that the file ends"));
                }
                piece.truncate(length);
                bytes.append(&mut piece);
                Ok(())
            });
            read.and(wire.close(&handle)).map(|()| bytes)
        })
    }

    /// Renames a file, in place of another of that name where the server can.
    ///
    /// # Errors
    /// What the server says.
    pub(crate) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.with(|wire| {
            let mut request = if wire.can(POSIX_RENAME) {
                let mut request = Packet::new(EXTENDED);
                request.text(POSIX_RENAME);
                request
            } else {
                Packet::new(RENAME)
            };
            request.text(from).text(to);
            wire.ask(request)?.status()
        })
    }

    /// Removes a file.
    ///
    /// # Errors
    /// What the server says.
    pub(crate) fn remove(&self, path: &str) -> io::Result<()> {
        self.request(REMOVE, path)
    }

    /// Removes a directory that is empty.
    ///
    /// # Errors
    /// What the server says.
    pub(crate) fn remove_directory(&self, path: &str) -> io::Result<()> {
        self.request(RMDIR, path)
    }

    /// Makes a request that has nothing but a path.
    fn request(&self, kind: u8, path: &str) -> io::Result<()> {
        self.with(|wire| {
            let mut request = Packet::new(kind);
            request.text(path);
            wire.ask(request)?.status()
        })
    }

    /// Bytes that may still be written below `path`; none where the server does not tell.
    ///
    /// # Errors
    /// What the server says.
    pub(crate) fn free_space(&self, path: &str) -> io::Result<Option<u64>> {
        self.with(|wire| {
            if !wire.can(STATVFS) {
                return Ok(None);
            }
            let mut request = Packet::new(EXTENDED);
            request.text(STATVFS).text(path);
            // Block size, fragment size, blocks, free blocks, blocks free to others than root.
            let mut answer = wire.ask(request)?.expect(EXTENDED_REPLY)?;
            let numbers: Vec<u64> = (0..5).map(|_| answer.take_long()).collect::<io::Result<_>>()?;
            Ok(numbers.get(1).zip(numbers.get(4)).map(|(size, free)| size.saturating_mul(*free)))
        })
    }

    /// Does something at the wire; only one does at a time.
    fn with<T>(
        &self,
        job: impl FnOnce(&mut Wire<BufWriter<ChildStdin>, BufReader<ChildStdout>>) -> io::Result<T>,
    ) -> io::Result<T> {
        job(&mut self.wire.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Sftp {
    fn drop(&mut self) {
        // All that counts has been answered for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A file on the server that is being written.
#[derive(Debug)]
pub(crate) struct RemoteFile<'a> {
    session: &'a Sftp,
    handle: Vec<u8>,
}

impl RemoteFile<'_> {
    /// Waits until the server has all and, where it can, until its disk has; then closes the file.
    ///
    /// # Errors
    /// What the server says of any write since the file was made.
    pub(crate) fn close(self) -> io::Result<()> {
        self.session.with(|wire| {
            let synced = self.sync_by(wire);
            let closed = wire.close(&self.handle);
            synced.and(closed)
        })
    }

    fn sync_by<O: Write, I: Read>(&self, wire: &mut Wire<O, I>) -> io::Result<()> {
        wire.settle()?;
        if wire.can(FSYNC) {
            let mut request = Packet::new(EXTENDED);
            request.text(FSYNC).bytes(&self.handle);
            wire.ask(request)?.status()?;
        }
        Ok(())
    }
}

impl Sink for RemoteFile<'_> {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        for (number, piece) in bytes.chunks(PIECE).enumerate() {
            let mut request = Packet::new(WRITE);
            request.bytes(&self.handle).long(offset + (number * PIECE) as u64).bytes(piece);
            self.session.with(|wire| wire.post(request))?;
        }
        Ok(())
    }

    fn reserve(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.session.with(|wire| self.sync_by(wire))
    }

    fn finish(&self, len: u64) -> io::Result<()> {
        self.session.with(|wire| {
            wire.settle()?;
            let mut request = Packet::new(FSETSTAT);
            request.bytes(&self.handle).number(SIZE).long(len);
            wire.ask(request)?.status()
        })
    }
}

/// Both ends of the connection.
#[derive(Debug)]
struct Wire<O, I> {
    out: O,
    input: I,
    next: u32,
    /// Writes that are not yet answered for.
    unanswered: BTreeSet<u32>,
    /// The first of them that failed.
    failed: Option<io::Error>,
    extensions: Vec<String>,
}

impl<O: Write, I: Read> Wire<O, I> {
    fn greet(out: O, input: I) -> io::Result<Self> {
        let mut wire =
            Self { out, input, next: 0, unanswered: BTreeSet::new(), failed: None, extensions: Vec::new() };
        let mut hello = vec![INIT];
        hello.extend(3u32.to_be_bytes());
        wire.send(&hello)?;
        wire.out.flush()?;
        let mut answer = wire.receive()?.expect(VERSION)?;
        let version = answer.take_number()?;
        if version != 3 {
            return Err(io::Error::other(format!("the server speaks version {version} of SFTP, not 3")));
        }
        while !answer.0.is_empty() {
            let name = String::from_utf8_lossy(&answer.take_bytes()?).into_owned();
            answer.take_bytes()?;
            wire.extensions.push(name);
        }
        Ok(wire)
    }

    fn can(&self, extension: &str) -> bool {
        self.extensions.iter().any(|have| have == extension)
    }

    /// Sends a request and waits for its answer.
    fn ask(&mut self, request: Packet) -> io::Result<Answer> {
        let number = self.send_request(request)?;
        self.out.flush()?;
        loop {
            let mut answer = self.receive()?;
            if self.take_number_of(&mut answer)? == number {
                return Ok(answer);
            }
        }
    }

    /// Lets go of a file or a directory.
    fn close(&mut self, handle: &[u8]) -> io::Result<()> {
        let mut request = Packet::new(CLOSE);
        request.bytes(handle);
        self.ask(request)?.status()
    }

    fn ask_about(&mut self, path: &str) -> io::Result<()> {
        let mut request = Packet::new(STAT);
        request.text(path);
        self.ask(request)?.expect(ATTRS).map(drop)
    }

    /// Sends a write without waiting for its answer, unless too many are on the way.
    fn post(&mut self, request: Packet) -> io::Result<()> {
        self.collect(ON_THE_WAY - 1)?;
        let number = self.send_request(request)?;
        self.unanswered.insert(number);
        Ok(())
    }

    /// Waits until all writes are answered for.
    fn settle(&mut self) -> io::Result<()> {
        self.collect(0)
    }

    /// Reads answers until no more than `most` writes are without.
    fn collect(&mut self, most: usize) -> io::Result<()> {
        if self.unanswered.len() > most {
            self.out.flush()?;
        }
        while self.unanswered.len() > most {
            let mut answer = self.receive()?;
            self.take_number_of(&mut answer)?;
        }
        self.failed.take().map_or(Ok(()), Err)
    }

    /// The number of the request that is answered. Answers to writes are noted.
    fn take_number_of(&mut self, answer: &mut Answer) -> io::Result<u32> {
        // Behind the type.
        let kind = answer.take(1)?;
        let number = answer.take_number()?;
        if self.unanswered.remove(&number) {
            let mut status = kind.clone();
            status.extend_from_slice(&answer.0);
            if let Err(error) = Answer(status).status() {
                self.failed.get_or_insert(error);
            }
        }
        answer.0.splice(0..0, kind);
        Ok(number)
    }

    fn send_request(&mut self, request: Packet) -> io::Result<u32> {
        self.next = self.next.wrapping_add(1);
        let Packet { kind, body } = request;
        let mut bytes = Vec::with_capacity(body.len() + 5);
        bytes.push(kind);
        bytes.extend(self.next.to_be_bytes());
        bytes.extend(body);
        self.send(&bytes)?;
        Ok(self.next)
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        self.out.write_all(&length.to_be_bytes())?;
        self.out.write_all(bytes)
    }

    fn receive(&mut self) -> io::Result<Answer> {
        let mut length = [0; 4];
        self.input.read_exact(&mut length).map_err(closed)?;
        let length = u32::from_be_bytes(length) as usize;
        if length == 0 || length > LONGEST {
            return Err(io::Error::other(format!("the server sent no SFTP: a packet of {length} bytes")));
        }
        let mut bytes = vec![0; length];
        self.input.read_exact(&mut bytes).map_err(closed)?;
        Ok(Answer(bytes))
    }
}

/// Does a step again and again until one says that the end has come.
fn until_end(mut step: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    loop {
        match step() {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            done => done?,
        }
    }
}

/// What the end of the stream means here.
fn closed(error: io::Error) -> io::Error {
    match error.kind() {
        // Not the end of a file.
        io::ErrorKind::UnexpectedEof => {
            io::Error::new(io::ErrorKind::ConnectionAborted, "the connection ended")
        }
        _ => error,
    }
}

/// A request without length and number.
struct Packet {
    kind: u8,
    body: Vec<u8>,
}

impl Packet {
    fn new(kind: u8) -> Self {
        Self { kind, body: Vec::new() }
    }

    fn number(&mut self, number: u32) -> &mut Self {
        self.body.extend(number.to_be_bytes());
        self
    }

    fn long(&mut self, number: u64) -> &mut Self {
        self.body.extend(number.to_be_bytes());
        self
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        // Nothing that is sent comes near 4 GiB.
        self.number(bytes.len() as u32);
        self.body.extend(bytes);
        self
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes())
    }
}

/// An answer: its type, and what follows its number.
struct Answer(Vec<u8>);

impl Answer {
    /// The answer without its type, which must be `kind`. A status in its place is the server's refusal.
    fn expect(mut self, kind: u8) -> io::Result<Self> {
        match self.0.first() {
            Some(&found) if found == kind => {
                self.0.remove(0);
                Ok(self)
            }
            Some(&STATUS) => {
                Err(self.status().err().unwrap_or_else(|| io::Error::other("no answer but \"fine\"")))
            }
            found => Err(io::Error::other(format!(
                "the server answered by a packet of type {found:?}, not {kind}"
            ))),
        }
    }

    /// Whether all went well.
    fn status(mut self) -> io::Result<()> {
        if self.take(1)? != [STATUS] {
            return Err(io::Error::other("the server answered by something else than a status"));
        }
        let code = self.take_number()?;
        let why = self.take_bytes().map(|why| String::from_utf8_lossy(&why).into_owned()).unwrap_or_default();
        let kind = match code {
            0 => return Ok(()),
            1 => io::ErrorKind::UnexpectedEof,
            2 => io::ErrorKind::NotFound,
            3 => io::ErrorKind::PermissionDenied,
            _ => io::ErrorKind::Other,
        };
        Err(io::Error::new(kind, format!("the server says: {why} (SFTP status {code})")))
    }

    fn handle(self) -> io::Result<Vec<u8>> {
        self.expect(HANDLE)?.take_bytes()
    }

    fn take(&mut self, count: usize) -> io::Result<Vec<u8>> {
        if count > self.0.len() {
            return Err(io::Error::other("the server's answer is cut short"));
        }
        Ok(self.0.drain(..count).collect())
    }

    fn take_number(&mut self) -> io::Result<u32> {
        Ok(self.take(4)?.iter().fold(0, |number, byte| number << 8 | u32::from(*byte)))
    }

    fn take_long(&mut self) -> io::Result<u64> {
        Ok(u64::from(self.take_number()?) << 32 | u64::from(self.take_number()?))
    }

    fn take_bytes(&mut self) -> io::Result<Vec<u8>> {
        let length = self.take_number()? as usize;
        self.take(length)
    }

    /// Leaves out a file's attributes (section 5 of the draft).
    fn skip_attributes(&mut self) -> io::Result<()> {
        let flags = self.take_number()?;
        for (flag, length) in [(SIZE, 8), (OWNERS, 8), (PERMISSIONS, 4), (TIMES, 8)] {
            if flags & flag != 0 {
                self.take(length)?;
            }
        }
        if flags & EXTENSIONS != 0 {
            for _ in 0..self.take_number()? {
                self.take_bytes()?;
                self.take_bytes()?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    /// OpenSSH's server, where it is installed, without any network.
    fn server() -> Option<Sftp> {
        let places = ["/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server"];
        let place = places.into_iter().find(|place| Path::new(place).exists())?;
        Some(Sftp::start(&mut Command::new(place)).unwrap())
    }

    #[test]
    fn a_file_arrives_with_its_holes_for_its_owner_alone() {
        let Some(sftp) = server() else { return };
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        sftp.make_directory(&path("new dir'; $x")).unwrap();
        sftp.make_directory(&path("new dir'; $x")).unwrap();
        let name = path("new dir'; $x/vmcore.incomplete");
        let file = sftp.create(&name).unwrap();
        let data: Vec<u8> = (0..9_000_000u32).map(|number| (number / 3) as u8).collect();
        file.write_at(1 << 20, &data).unwrap();
        file.finish(64 << 20).unwrap();
        file.close().unwrap();
        sftp.create(&name).unwrap_err();
        sftp.rename(&name, &path("vmcore")).unwrap();
        assert!(sftp.free_space(&path("")).unwrap().unwrap() > 0);

        let there = std::fs::read(path("vmcore")).unwrap();
        assert_eq!(there.len(), 64 << 20);
        assert!(there[1 << 20..].starts_with(&data) && there[..1 << 20].iter().all(|byte| *byte == 0));
        assert_eq!(std::fs::metadata(path("vmcore")).unwrap().permissions().mode() & 0o777, 0o600);
        sftp.remove(&path("vmcore")).unwrap();
        assert_eq!(sftp.remove(&path("vmcore")).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(sftp.make_directory(&path("no/such")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn what_lies_there_is_listed_and_read() {
        let Some(sftp) = server() else { return };
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let data: Vec<u8> = (0..200_000u32).map(|number| (number / 3) as u8).collect();
        std::fs::write(path("log"), &data).unwrap();
        std::fs::write(path("empty"), b"").unwrap();
        // More than one answer lists.
        let many = (0..300).map(|number| format!("2026-11-22-15:32:10-{number}"));
        many.clone().for_each(|name| std::fs::create_dir(path(&name)).unwrap());

        let mut names = sftp.names(&path("")).unwrap();
        names.sort();
        let mut want: Vec<String> = many.chain([".", "..", "log", "empty"].map(str::to_owned)).collect();
        want.sort();
        assert_eq!(names, want);
        assert_eq!(sftp.read(&path("log"), 1 << 20).unwrap(), data);
        assert_eq!(sftp.read(&path("log"), 100_000).unwrap(), &data[..100_000]);
        assert_eq!(sftp.read(&path("empty"), 10).unwrap(), b"");
        assert_eq!(sftp.read(&path("none"), 10).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(sftp.names(&path("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_write_that_fails_is_told_later() {
        let Some(sftp) = server() else { return };
        let file = sftp.create("/dev/shm/hotdump-sftp-test");
        let Ok(file) = file else { return };
        let wrong = RemoteFile { session: &sftp, handle: vec![0xff; 4] };
        let told = wrong.write_at(0, b"x").and_then(|()| wrong.finish(1));
        told.unwrap_err();
        file.close().unwrap();
        sftp.remove("/dev/shm/hotdump-sftp-test").unwrap();
    }

    #[test]
    fn what_is_no_server_is_an_error() {
        for script in
            ["exit 255", "echo You are not welcome here, this account is closed", "printf '\\0\\0\\0\\0'"]
        {
            Sftp::start(Command::new("/bin/sh").args(["-c", script])).unwrap_err();
        }
    }

    proptest! {
        /// Any answers end, in an error or not.
        #[test]
        fn any_answer_is_read(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), known in any::<bool>()) {
            if known {
                bytes.splice(0..0, [0, 0, 0, 5, VERSION, 0, 0, 0, 3]);
            }
            if let Ok(mut wire) = Wire::greet(Vec::new(), bytes.as_slice()) {
                while wire.post(Packet::new(WRITE)).and_then(|()| wire.settle()).is_ok() {}
                let _ = wire.ask(Packet::new(STAT)).and_then(Answer::handle);
            }
        }
    }
}
