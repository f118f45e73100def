//! The kernel log out of rings written by the kernel's own rules, and out of rings that were damaged.

mod support;

use proptest::prelude::*;
use support::Ring;
use vmcore::{Log, LogError, VmcoreInfo};

/// The ring's messages as text, and how many could not be read.
fn read(ring: &Ring) -> (Vec<(u64, Vec<u8>)>, usize) {
    let (memory, info) = ring.lay_out();
    let log = Log::open(&memory, &VmcoreInfo::parse(info.as_bytes())).unwrap();
    let (good, bad): (Vec<_>, Vec<_>) = log.records().partition(Result::is_ok);
    (good.into_iter().flatten().map(|record| (record.time_ns, record.text)).collect(), bad.len())
}

#[test]
fn a_ring_never_written_to_has_no_messages() {
    assert_eq!(read(&Ring::new(3, 9, false)), (vec![], 0));
}

#[test]
fn a_message_that_was_still_being_added_to_counts_a_reserved_one_does_not() {
    for (state, want) in [(0, 1), (1, 2), (2, 2), (3, 1)] {
        let mut ring = Ring::new(3, 9, false);
        ring.push(1, b"first");
        ring.push(2, b"Kernel panic - not");
        ring.set_newest_state(state);
        assert_eq!(read(&ring).0.len(), want, "state {state}");
    }
}

#[test]
fn the_log_is_printed_as_dmesg_prints_it() {
    let mut ring = Ring::new(3, 9, false);
    ring.push(0, b"Linux version 6.12.107");
    ring.push(12_345_678_901, b"two\nlines");
    ring.push(12_345_678_999_999, b"");
    let (memory, info) = ring.lay_out();
    let log = Log::open(&memory, &VmcoreInfo::parse(info.as_bytes())).unwrap();
    let mut out = Vec::new();
    let stats = log.write_dmesg(&mut out).unwrap();
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "[    0.000000] Linux version 6.12.107\n[   12.345678] two\n[   12.345678] lines\n[12345.678999] \n"
    );
    assert_eq!((stats.records, stats.lost), (3, 0));
}

#[test]
fn sizes_that_make_no_sense_are_refused_by_name() {
    let mut ring = Ring::new(3, 9, false);
    ring.push(1, b"x");
    ring.count_bits = 60;
    let (memory, info) = ring.lay_out();
    let error = Log::open(&memory, &VmcoreInfo::parse(info.as_bytes())).unwrap_err();
    assert!(
        matches!(error, LogError::Damaged { field: "prb_desc_ring.count_bits", found: 60, .. }),
        "{error}"
    );
}

fn messages() -> impl Strategy<Value = Vec<Vec<u8>>> {
    proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 0..80)
}

proptest! {
    /// Whatever was logged, the newest messages come back, whole and in order; none is made up.
    #[test]
    fn the_newest_messages_come_back(messages in messages(), count_bits in 1u32..6, text_bits in 8u32..10, tight: bool) {
        let mut ring = Ring::new(count_bits, text_bits, tight);
        for (time, text) in messages.iter().enumerate() {
            ring.push(time as u64, text);
        }
        let (found, bad) = read(&ring);
        prop_assert_eq!(bad, 0);
        let all: Vec<_> = messages.into_iter().enumerate().map(|(time, text)| (time as u64, text)).collect();
        // Messages without text outlive older ones with text, so what is found is what is left of the newest `count`.
        let newest = &all[all.len().saturating_sub(1 << count_bits)..];
        let mut left = newest.iter();
        for one in &found {
            prop_assert!(left.any(|message| message == one), "{one:?} is out of order or was never logged");
        }
        let with_text = |list: &[(u64, Vec<u8>)]| list.iter().rev().take_while(|one| !one.1.is_empty()).count();
        if let Some(last) = newest.last() {
            prop_assert_eq!(found.last(), Some(last), "the last message is there");
            // What fits into half the text ring is certain to be there: 68 bytes a message at most.
            let sure = with_text(newest).min((1 << text_bits) / 2 / 72);
            prop_assert_eq!(&found[found.len() - sure..], &newest[newest.len() - sure..]);
        }
    }

    /// A damaged ring yields fewer or other messages, and always an end.
    #[test]
    fn a_damaged_ring_ends(messages in messages(), damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..40)) {
        let mut ring = Ring::new(4, 9, false);
        for text in &messages {
            ring.push(1, text);
        }
        let (mut memory, info) = ring.lay_out();
        for (at, byte) in damage {
            let at = at.index(memory.bytes.len());
            memory.bytes[at] = byte;
        }
        if let Ok(log) = Log::open(&memory, &VmcoreInfo::parse(info.as_bytes())) {
            let stats = log.write_dmesg(&mut std::io::sink()).unwrap();
            prop_assert!(stats.lost <= 4096 + 16, "{stats:?}");
        }
    }
}
