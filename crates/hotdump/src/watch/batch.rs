//! When to load again, from the times of events: no clock, no system calls.
//!
//! All times are since one common start.

use std::time::Duration;

/// How events are gathered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Policy {
    /// No event for so long: the machine is taken to have settled.
    pub(super) settle: Duration,
    /// So long after the first event that no reload has answered, one begins, settled or not.
    pub(super) bound: Duration,
}

/// After a reload that failed the next try comes after so long, and after twice as long each time that follows.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// But never after more than this.
const LAST_RETRY: Duration = Duration::from_secs(60);

/// Events that no reload has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Unanswered {
    first: Duration,
    last: Duration,
}

/// Gathers events and says when they are to be answered.
#[derive(Debug)]
pub(super) struct Batch {
    policy: Policy,
    unanswered: Option<Unanswered>,
    /// When to try again what failed.
    retry: Option<Duration>,
    failures: u32,
}

impl Batch {
    pub(super) fn new(policy: Policy) -> Self {
        Self { policy, unanswered: None, retry: None, failures: 0 }
    }

    /// Something changed, or may have.
    pub(super) fn event(&mut self, now: Duration) {
        let first = self.unanswered.map_or(now, |before| before.first);
        self.unanswered = Some(Unanswered { first, last: now });
    }

    /// When a reload is to begin; none as long as nothing happens.
    pub(super) fn due(&self) -> Option<Duration> {
        let Policy { settle, bound } = self.policy;
        let answer = self.unanswered.map(|events| (events.last + settle).min(events.first + bound));
        answer.into_iter().chain(self.retry).min()
    }

    /// A reload begins: it answers all events so far. Whatever happens from now on wants another.
    pub(super) fn begin(&mut self) {
        self.unanswered = None;
        self.retry = None;
    }

    /// The reload that began last has succeeded.
    pub(super) fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// The reload that began last has failed, or did not make the image true.
    pub(super) fn failed(&mut self, now: Duration) {
        let wait = FIRST_RETRY.saturating_mul(1 << self.failures.min(16)).min(LAST_RETRY);
        self.failures = self.failures.saturating_add(1);
        self.retry = Some(now + wait);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn ms(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    const POLICY: Policy = Policy { settle: ms(500), bound: ms(3000) };

    /// Lets `events` happen and reloads take `takes` each; gives the beginnings of the reloads.
    fn reloads(events: &[u64], takes: u64) -> Vec<u64> {
        let mut batch = Batch::new(POLICY);
        let (mut begun, mut free) = (Vec::new(), Duration::ZERO);
        let mut coming = events.iter().map(|at| ms(*at)).peekable();
        loop {
            // What happens while a reload runs waits in the socket, and is heard of when it has ended.
            let due = batch.due().map(|due| due.max(free));
            match (coming.peek().copied(), due) {
                (Some(event), due) if due.is_none_or(|due| event <= due) => {
                    coming.next();
                    batch.event(event.max(free));
                }
                (_, Some(due)) => {
                    batch.begin();
                    batch.succeeded();
                    begun.push(u64::try_from(due.as_millis()).unwrap());
                    free = due + ms(takes);
                }
                (_, None) => return begun,
            }
        }
    }

    #[test]
    fn events_and_the_reloads_that_answer_them() {
        let storm: Vec<u64> = (0..64).map(|event| event * 31).collect();
        let endless: Vec<u64> = (0..100).map(|event| event * 100).collect();
        for (what, events, takes, expected) in [
            ("nothing", &[][..], 100, &[][..]),
            ("one", &[1000], 100, &[1500]),
            ("two that are close", &[1000, 1400], 100, &[1900]),
            ("two that are not", &[1000, 2000], 100, &[1500, 2500]),
            ("64 in two seconds", &storm, 100, &[2453]),
            ("ten seconds without rest", &endless, 100, &[3000, 6100, 9200, 10400]),
            ("one while a reload runs", &[0, 600], 1000, &[500, 2000]),
            ("as the reload begins", &[0, 500], 1000, &[1000]),
        ] {
            assert_eq!(reloads(events, takes), expected, "{what}");
        }
    }

    #[test]
    fn what_failed_is_tried_again_less_and_less_often_and_events_do_not_wait_for_that() {
        let mut batch = Batch::new(POLICY);
        let mut waits = Vec::new();
        for _ in 0..8 {
            batch.begin();
            batch.failed(ms(0));
            waits.push(batch.due().unwrap().as_secs());
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        batch.event(ms(100));
        assert_eq!(batch.due(), Some(ms(600)));
        batch.begin();
        batch.succeeded();
        assert_eq!(batch.due(), None);
        batch.failed(ms(700));
        assert_eq!(batch.due(), Some(ms(1700)), "a success begins the count anew");
    }

    proptest! {
        #[test]
        fn each_event_is_answered_in_time_and_there_are_few_reloads(
            gaps in proptest::collection::vec(0u64..2000, 0..200),
            takes in 0u64..3000,
        ) {
            let events: Vec<u64> = gaps.iter().scan(0, |at, gap| { *at += gap; Some(*at) }).collect();
            let begun = reloads(&events, takes);
            let bound = 3000;
            for event in &events {
                let answer = begun.iter().find(|begin| *begin >= event);
                // Heard of when a running reload has ended, and answered within the bound of that.
                prop_assert!(answer.is_some_and(|begin| begin - event <= takes + bound), "{event}: {begun:?}");
            }
            for pair in begun.windows(2) {
                prop_assert!(pair[1] - pair[0] >= takes, "one at a time: {begun:?}");
                prop_assert!(pair[1] - pair[0] >= 500, "{begun:?}");
            }
            prop_assert!(begun.len() <= events.len());
        }
    }
}
