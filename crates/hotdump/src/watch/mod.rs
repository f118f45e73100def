//! `hotdump watch`: loads the crash image again after CPUs or memory came or went, where neither kernel nor module does what is
//! needed.

mod batch;
mod uevent;

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use host::Host;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sd_notify::NotifyState;

use crate::exit;
use crate::load::{self, Contents, LoadError};
use crate::text::tell;
use crate::verify::{Standing, Verdict, standing};
use batch::{Batch, Policy};
use uevent::{Heard, Uevents};

const ABOUT: &str = "\
Where the kernel or the module hotdump.ko keeps the image current, there is nothing to do: the command says so and ends. Should \
the module let go, the udev rules have hotdump.service load again. hotdump.service starts hotdump-watch.service after it has loaded, and so do \
the udev rules at a change that nobody took care of.

Otherwise it listens to the kernel's uevents. After events of memory or CPUs it waits until none has come for --settle, but never longer \
than --max-delay after the first, checks whether a dump taken now would be complete, as `hotdump verify` does, and loads again \
if it would not. What comes meanwhile is looked at after that load. Kernel and initramfs stay in this process's \
memory, with their digests, and are read again only when the files have changed, so that a load costs little more than the \
kernel's copying. What fails is said once, and tried again after a while and at the next events.

It leaves an image alone that another program loaded, and loads none where somebody unloaded it.";

/// Options of `hotdump watch`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = ABOUT)]
// Its usual name, that of the structure, is taken by the options of a load.
#[group(skip)]
pub(crate) struct Args {
    /// Load when no event has come for so many seconds
    #[arg(long, value_name = "SECONDS", default_value = "0.5", value_parser = seconds)]
    settle: Duration,
    /// But wait no longer than so many seconds after the first event
    #[arg(long, value_name = "SECONDS", default_value = "3", value_parser = seconds)]
    max_delay: Duration,
    #[command(flatten)]
    load: load::Args,
}

/// Watches until a signal ends it or there is nothing to watch.
///
/// # Errors
/// The kernel's events cannot be heard.
pub(crate) fn run(args: &Args) -> anyhow::Result<u8> {
    args.load.loads_for_real()?;
    // Before anything is looked at: no event falls in between.
    let uevents = Uevents::open().context("listening to the kernel's uevents (NETLINK_KOBJECT_UEVENT)")?;
    let stop = stop_signals().context("setting up signals")?;
    let mut watch = Watch::new(args);
    watch.begin();
    while !watch.is_over {
        let (heard, stopped) = wait(&uevents, &stop, watch.next())?;
        if stopped {
            break;
        }
        watch.step(heard);
    }
    notify(&[NotifyState::Stopping]);
    Ok(exit::OK)
}

/// What is known between two events.
struct Watch<'a> {
    args: &'a Args,
    host: Host,
    start: Instant,
    batch: Batch,
    /// Kernel and initramfs, as they were read.
    known: Option<Contents>,
    /// Whether a load of ours failed after the kernel had let go of the image before.
    lost: bool,
    /// What was said last: the same is not said again.
    said: String,
    /// Whether there is nothing left to watch.
    is_over: bool,
}

/// What to do about an image.
#[derive(Debug, PartialEq, Eq)]
enum Action {
    /// Somebody else takes care of every change, and the image is as it must be.
    End,
    /// The image is as it must be.
    Rest,
    /// It is not ours to replace.
    Leave(&'static str),
    Load,
}

/// Settles what to do; `lost` is whether a load of ours left the machine without an image.
fn action(standing: &Standing, lost: bool) -> Action {
    match standing.verdict {
        Verdict::NotLoaded if lost => Action::Load,
        Verdict::NotLoaded => Action::Leave(
            "no crash image is loaded: `hotdump load`, or `systemctl restart hotdump`, loads one",
        ),
        _ if standing.is_foreign => Action::Leave(
            "the crash image is not hotdump's: whoever loaded it has to load it again when CPUs or memory change",
        ),
        // Where nobody lets us look, as under lockdown, its keeper's word has to do.
        Verdict::Complete | Verdict::Unknown if standing.kept_current == Some(true) => Action::End,
        Verdict::Complete => Action::Rest,
        Verdict::Stale | Verdict::Unknown => Action::Load,
    }
}

impl<'a> Watch<'a> {
    fn new(args: &'a Args) -> Self {
        let policy = Policy { settle: args.settle, bound: args.max_delay };
        Self {
            args,
            host: Host::live(),
            start: Instant::now(),
            batch: Batch::new(policy),
            known: None,
            lost: false,
            said: String::new(),
            is_over: false,
        }
    }

    /// Looks at what is there, makes ready for the first reload, and says that it watches.
    fn begin(&mut self) {
        let standing = standing(&self.host);
        match action(&standing, self.lost) {
            Action::End => self.end(&standing),
            Action::Leave(why) => self.say(why),
            Action::Rest => self.prepare(),
            Action::Load => {
                self.say(&format!("loading again: {}", standing.words));
                self.batch.event(Duration::ZERO);
                self.prepare();
            }
        }
        notify(&[NotifyState::Ready]);
    }

    fn prepare(&mut self) {
        match load::prepare(&self.args.load, &mut self.known) {
            Ok(()) => self.say("neither kernel nor module keeps the crash image current: watching, and loading again after changes"),
            Err(error) => self.say(&format!("a reload would fail: {error:#}")),
        }
    }

    /// How long to wait if nothing comes; forever if none.
    fn next(&self) -> Option<Duration> {
        self.batch.due().map(|due| due.saturating_sub(self.start.elapsed()))
    }

    fn step(&mut self, heard: Heard) {
        let now = self.start.elapsed();
        if heard.overrun {
            tell(
                "hotdump watch: more events came than the socket holds: some were lost, which is as good as one",
            );
        }
        if heard.events > 0 || heard.overrun {
            self.batch.event(now);
        }
        if self.batch.due().is_some_and(|due| due <= now) {
            self.batch.begin();
            self.answer();
        }
    }

    /// Looks at the image, and loads again if that is needed.
    fn answer(&mut self) {
        let standing = standing(&self.host);
        match action(&standing, self.lost) {
            Action::End => self.end(&standing),
            Action::Rest => self.batch.succeeded(),
            Action::Leave(why) => self.say(why),
            Action::Load => self.load(&standing),
        }
    }

    fn load(&mut self, before: &Standing) {
        let begun = Instant::now();
        let loaded = load::load(&self.args.load, &mut self.known);
        if let Err(error) = loaded {
            self.lost |= matches!(error.downcast_ref(), Some(LoadError::Syscall { disarmed: true, .. }));
            self.say(&format!(
                "cannot load the crash image again, which is needed ({}): {error:#}",
                before.words
            ));
            self.batch.failed(self.start.elapsed());
            return;
        }
        self.lost = false;
        let took = begun.elapsed();
        let after = standing(&self.host);
        match (action(&after, false), after.verdict) {
            (Action::End, _) => self.end(&after),
            (_, Verdict::Stale) => {
                // Changed again meanwhile: the event of that is on its way, and this answers without it.
                tell(format_args!("hotdump watch: loaded again, and it changed meanwhile: {}", after.words));
                self.batch.failed(self.start.elapsed());
            }
            _ => {
                self.batch.succeeded();
                self.said.clear();
                tell(format_args!(
                    "hotdump watch: loaded again in {} ms: {}",
                    took.as_millis(),
                    before.words
                ));
                notify(&[NotifyState::Status("current: loaded again after the last change")]);
            }
        }
    }

    fn end(&mut self, standing: &Standing) {
        self.is_over = true;
        self.say(&format!("nothing to watch: {}", standing.words));
    }

    /// Says what is new.
    fn say(&mut self, text: &str) {
        if self.said != text {
            tell(format_args!("hotdump watch: {text}"));
            notify(&[NotifyState::Status(text)]);
            text.clone_into(&mut self.said);
        }
    }
}

/// Waits for events, a signal to stop, or the end of `timeout`. Says what was heard, and whether to stop.
fn wait(uevents: &Uevents, stop: &UnixStream, timeout: Option<Duration>) -> anyhow::Result<(Heard, bool)> {
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    let stop = stop.as_fd();
    let mut fds = [PollFd::new(uevents, PollFlags::IN), PollFd::from_borrowed_fd(stop, PollFlags::IN)];
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error).context("waiting for the kernel's uevents"),
    }
    let stopped = !fds[1].revents().is_empty();
    Ok((uevents.hear().context("reading the kernel's uevents")?, stopped))
}

/// Something to read from as soon as somebody asks this process to end. A load that runs is brought to its end, and
/// written down, before that.
fn stop_signals() -> io::Result<UnixStream> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let (ours, signals) = UnixStream::pair()?;
    for signal in [SIGINT, SIGTERM] {
        signal_hook::low_level::pipe::register(signal, signals.try_clone()?)?;
    }
    Ok(ours)
}

/// Tells systemd, where it started us.
fn notify(state: &[NotifyState<'_>]) {
    // Without systemd there is nobody to tell.
    let _ = sd_notify::notify(state);
}

/// A time in seconds, which may be broken.
fn seconds(text: &str) -> Result<Duration, String> {
    const MOST: Duration = Duration::from_secs(3600);
    let time = text.parse::<f64>().ok().and_then(|number| Duration::try_from_secs_f64(number).ok());
    time.filter(|time| *time <= MOST)
        .ok_or_else(|| format!("\"{text}\" is no time in seconds from 0 to {}", MOST.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(verdict: Verdict, kept_current: Option<bool>, is_foreign: bool) -> Standing {
        Standing { verdict, kept_current, is_foreign, words: String::new() }
    }

    #[test]
    fn what_is_done_about_an_image() {
        use Verdict::{Complete, NotLoaded, Stale, Unknown};
        let (none, foreign) = ("no crash image is loaded", "the crash image is not hotdump's");
        for (verdict, kept, is_foreign, lost, expected) in [
            (Complete, Some(true), false, false, Ok(Action::End)),
            (Complete, Some(false), false, false, Ok(Action::Rest)),
            (Complete, None, false, false, Ok(Action::Rest)),
            (Stale, Some(true), false, false, Ok(Action::Load)),
            (Stale, Some(false), false, false, Ok(Action::Load)),
            (Unknown, Some(true), false, false, Ok(Action::End)),
            (Unknown, Some(false), false, false, Ok(Action::Load)),
            (Stale, Some(false), true, false, Err(foreign)),
            (Complete, Some(true), true, false, Err(foreign)),
            (NotLoaded, None, false, false, Err(none)),
            (NotLoaded, None, false, true, Ok(Action::Load)),
        ] {
            let standing = standing(verdict, kept, is_foreign);
            match (action(&standing, lost), expected) {
                (Action::Leave(why), Err(start)) => assert!(why.starts_with(start), "{why}"),
                (action, expected) => assert_eq!(Ok(action), expected, "{standing:?}, lost: {lost}"),
            }
        }
    }

    #[test]
    fn times_in_seconds() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(seconds("3"), Ok(Duration::from_secs(3)));
        for wrong in ["", "-1", "nan", "inf", "1e99", "3601", "5s"] {
            assert!(seconds(wrong).unwrap_err().contains("is no time in seconds from 0 to 3600"), "{wrong}");
        }
    }
}
