//! Time to follow N memory blocks as they come and go: `cargo bench -p elfcorehdr --bench follow`.
//!
//! Each event is planned, and its stores done twice, in the shadow and in the header, as the kernel module does.

use elfcorehdr::update::{Change, Index, Node};
use elfcorehdr::{Contents, Load, MAX_ENTRIES, Machine, Note, PhysAddr, PhysRange, build, size_for};
use std::hint::black_box;
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

fn follow(changes: &[Change]) -> Run {
    let ram = Load { paddr: PhysAddr(0x10_0000), vaddr: 0, offset: PhysAddr(0x10_0000), size: 0x10_0000 };
    let contents = Contents { machine: Machine::X86_64, cpu_notes: &[NOTE], vmcoreinfo: NOTE, loads: &[ram] };
    let mut header = vec![0; size_for(MAX_ENTRIES)];
    build(&contents, &mut header).unwrap();
    let mut shadow = header.clone();
    let mut nodes = vec![Node::default(); Index::nodes_for(shadow.len())];
    let mut index = Index::rebuild(&shadow, &mut nodes).unwrap();
    let mut run = Run::default();
    let start = Instant::now();
    let mut last = start;
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
    run.time = last - start;
    run.most_entries = index.phnum();
    black_box(&header);
    run
}

fn main() {
    let add = |number: u64| Change::Add { range: block(number), vaddr: 0 };
    let remove = |number: u64| Change::Remove(block(number));
    println!(
        "{:<34} {:>7} {:>9} {:>9} {:>11} {:>12} {:>7} {:>8}",
        "pattern", "events", "ms", "ns/event", "ns/event/lg", "slowest us", "stores", "e_phnum"
    );
    for count in [64, 1024, 8192, 65536_u64] {
        // Apart, each block takes a slot, and a header has 65,534.
        let apart = count.min(MAX_ENTRIES as u64 - 3);
        let all = || (0..count).collect::<Vec<_>>();
        let scattered = shuffled((0..apart).map(|number| 2 * number).collect());
        let halves: Vec<u64> = (0..count).step_by(2).chain((1..count).step_by(2)).collect();
        let in_and_out = |order: &[u64], back: Vec<u64>| -> Vec<Change> {
            order.iter().copied().map(add).chain(back.into_iter().map(remove)).collect()
        };
        let patterns: [(&str, Vec<Change>); 6] = [
            ("upwards", all().into_iter().map(add).collect()),
            ("downwards", all().into_iter().rev().map(add).collect()),
            ("shuffled", shuffled(all()).into_iter().map(add).collect()),
            ("every second, then the others", halves.into_iter().map(add).collect()),
            ("apart, shuffled", scattered.iter().copied().map(add).collect()),
            ("shuffled, out in another order", in_and_out(&shuffled(all()), shuffled(shuffled(all())))),
        ];
        for (name, changes) in patterns {
            // The best of a few runs: others use this machine too.
            let runs = (0..5).map(|_| follow(&changes));
            let run = runs.min_by_key(|run| run.time).unwrap();
            let each = run.time.as_nanos() as f64 / changes.len() as f64;
            println!(
                "{name:<34} {:>7} {:>9.3} {each:>9.1} {:>11.2} {:>12.1} {:>7} {:>8}",
                changes.len(),
                run.time.as_secs_f64() * 1e3,
                each / (changes.len() as f64).log2(),
                run.slowest.as_secs_f64() * 1e6,
                run.stores,
                run.most_entries
            );
        }
    }
}
