//! Time to follow N memory blocks as they come and go: `cargo bench -p elfcorehdr --bench follow`.
//!
//! Each event is planned, and its stores done twice, in the shadow and in the header, as the kernel module does. The
//! bench fails where a pattern's processor time grows faster than N log N, or following 8,192 blocks takes 10 ms or more.

use elfcorehdr::update::{Change, Index, Node};
use elfcorehdr::{Contents, Load, MAX_ENTRIES, Machine, Note, PhysAddr, PhysRange, build, size_for};
use rustix::time::{ClockId, clock_gettime};
use std::hint::black_box;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// A memory block of x86.
const BLOCK: u64 = 128 << 20;
const NOTE: Note = Note { paddr: PhysAddr(0x1000), size: 368 };

fn block(number: u64) -> PhysRange {
    PhysRange::from_len(PhysAddr((number + 8) * BLOCK), BLOCK).unwrap()
}

/// Numbers in an order that only looks random (xorshift64), the same each time.
fn shuffled(mut numbers: Vec<u64>) -> Vec<u64> {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for last in (1..numbers.len()).rev() {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        numbers.swap(last, usize::try_from(random % (last as u64 + 1)).unwrap());
    }
    numbers
}

/// What one run did.
#[derive(Default)]
struct Run {
    time: Duration,
    slowest: Duration,
    stores: usize,
    most_entries: usize,
}

/// Time that the processor worked for this thread: others use the machine too.
fn spent() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap()
}

fn follow(changes: &[Change]) -> Run {
    let ram = Load { paddr: PhysAddr(0x10_0000), vaddr: 0, offset: PhysAddr(0x10_0000), size: 0x10_0000 };
    let contents = Contents { machine: Machine::X86_64, cpu_notes: &[NOTE], vmcoreinfo: NOTE, loads: &[ram] };
    let mut header = vec![0; size_for(MAX_ENTRIES)];
    build(&contents, &mut header).unwrap();
    let mut shadow = header.clone();
    let mut nodes = vec![Node::default(); Index::nodes_for(shadow.len())];
    let mut index = Index::rebuild(&shadow, &mut nodes).unwrap();
    let mut run = Run::default();
    let start = spent();
    let mut last = Instant::now();
    for change in changes {
        let mut next = Some(*change);
        while let Some(change) = next {
            let plan = index.plan(&shadow, change).unwrap();
            run.stores += plan.stores().len();
            for store in plan.stores() {
                store.write_to(&mut shadow).unwrap();
                store.write_to(&mut header).unwrap();
            }
            next = plan.commit();
        }
        let now = Instant::now();
        run.slowest = run.slowest.max(now - last);
        last = now;
    }
    run.time = spent() - start;
    run.most_entries = index.phnum();
    black_box(&header);
    run
}

/// Patterns in which about `count` blocks come, and go.
fn patterns(count: u64) -> [(&'static str, Vec<Change>); 6] {
    let add = |number: u64| Change::Add { range: block(number), vaddr: 0 };
    let remove = |number: u64| Change::Remove(block(number));
    // Apart, each block takes a slot, and a header has 65,534.
    let apart = count.min(MAX_ENTRIES as u64 - 3);
    let all = || (0..count).collect::<Vec<_>>();
    let scattered = shuffled((0..apart).map(|number| 2 * number).collect());
    let halves = (0..count).step_by(2).chain((1..count).step_by(2));
    let (order, back) = (shuffled(all()), shuffled(shuffled(all())));
    [
        ("upwards", all().into_iter().map(add).collect()),
        ("downwards", all().into_iter().rev().map(add).collect()),
        ("shuffled", order.iter().copied().map(add).collect()),
        ("every second, then the others", halves.map(add).collect()),
        ("apart, shuffled", scattered.into_iter().map(add).collect()),
        (
            "shuffled, out in another order",
            order.into_iter().map(add).chain(back.into_iter().map(remove)).collect(),
        ),
    ]
}

/// Blocks that are to be followed within [`MOST_TIME`].
const FOLLOWED: u64 = 8192;
const MOST_TIME: Duration = Duration::from_millis(10);
/// How much more time per event and doubling of N a larger N may take than a smaller one: 1 is N log N. Larger headers
/// leave the processor's caches, and others use this machine too.
const MOST_GROWTH: f64 = 5.0;

fn main() -> ExitCode {
    println!(
        "{:<34} {:>7} {:>9} {:>9} {:>11} {:>12} {:>7} {:>8}",
        "pattern", "events", "ms", "ns/event", "ns/event/lg", "slowest us", "stores", "e_phnum"
    );
    let (mut faults, mut fewer) = (Vec::new(), Vec::new());
    for count in [64, 1024, FOLLOWED, 65536] {
        let mut now = Vec::new();
        for (name, changes) in patterns(count) {
            // The best of a few runs.
            let run = (0..7).map(|_| follow(&changes)).min_by_key(|run| run.time).unwrap();
            let events = changes.len();
            let each = run.time.as_nanos() as f64 / events as f64;
            let scaled = each / (events as f64).log2();
            let ms = run.time.as_secs_f64() * 1e3;
            let slowest = run.slowest.as_secs_f64() * 1e6;
            let Run { stores, most_entries, .. } = run;
            println!(
                "{name:<34} {events:>7} {ms:>9.3} {each:>9.1} {scaled:>11.2} {slowest:>12.1} {stores:>7} {most_entries:>8}"
            );
            if count == FOLLOWED && run.time >= MOST_TIME {
                faults.push(format!("{name}: {events} events took {ms:.3} ms, not under {MOST_TIME:?}"));
            }
            now.push(scaled);
        }
        // With 64 blocks it is the first touch of the header's pages that is measured.
        for (at, (now, fewer)) in now.iter().zip(&fewer).enumerate().filter(|_| count >= FOLLOWED) {
            if *now > MOST_GROWTH * fewer {
                let name = patterns(1)[at].0;
                faults.push(format!(
                    "{name}: {now:.2} ns an event and doubling at {count} blocks, {fewer:.2} at fewer: N log N is the same"
                ));
            }
        }
        fewer = now;
    }
    faults.iter().for_each(|fault| eprintln!("follow: {fault}"));
    if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
