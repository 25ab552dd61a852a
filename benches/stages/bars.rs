//! The bars that need no servers. Each compares two sides that are measured by turns, so that what else the machine does
//! falls on both.

use std::sync::Barrier;
use std::time::Instant;

use arrow::array::RecordBatch;
use dinnerbell::lookup::LookupSet;
use dinnerbell::transform::Transform;

use crate::largest;
use crate::pipeline::{Pipeline, campaigns, lookups, rows_of};

/// Rows that every batch comes to.
const MATCHES: usize = 1_000;
const SMALL: usize = 10_000;

/// Nothing but the join. What a run costs without one is measured beside it, and taken off.
const JOIN: &str =
    "SELECT s.client_id FROM campaigns c JOIN subscribers_restaurants s ON s.restaurant_id = c.restaurant_id";
const SCAN: &str = "SELECT c.restaurant_id AS client_id FROM campaigns c";

pub fn print() {
    println!("\n| bar | wanted | measured | |\n|---|---|---|---|");
    joins("a campaign of 1,000 matches", 1, 300);
    joins("1,000 campaigns of one match", MATCHES, 100);
    lanes();
}

/// One line of the table; without a verdict where nothing is wanted.
fn tell(what: &str, wanted: &str, value: f64, is_met: Option<bool>) {
    let verdict = is_met.map_or("", |is_met| if is_met { "met" } else { "MISSED" });
    println!("| {what} | {wanted} | {value:.3} | {verdict} |");
}

/// Restaurants in an order that leads all over the table.
pub fn shuffled(restaurants: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..restaurants).collect();
    fastrand::Rng::with_seed(7).shuffle(&mut order);
    order
}

/// A table, the shipped query and the bare ones over it, and batches that each have other keys than the one before.
struct Side {
    table: LookupSet,
    pipeline: Pipeline,
    join: (Transform, tokio::runtime::Runtime),
    scan: (Transform, tokio::runtime::Runtime),
    cold: Vec<RecordBatch>,
}

impl Side {
    /// A table of so many rows, and `batches` batches of so many campaigns each: as many for a small table, so that the batches
    /// themselves are as cold. That one's keys come again and again, and stay in the caches.
    fn new(subscriptions: usize, campaigns_each: usize, batches: usize) -> Side {
        let matches = MATCHES / campaigns_each;
        let restaurants = subscriptions / matches;
        let table = lookups(restaurants, matches);
        let pipeline = Pipeline::new(&table);
        let (join, scan) = (Pipeline::of_query(JOIN, &table), Pipeline::of_query(SCAN, &table));
        let mut order = shuffled(restaurants).into_iter().cycle();
        let mut next = || pipeline.decode(&campaigns(order.by_ref().take(campaigns_each)));
        let cold = (0..batches).map(|_| next()).collect();
        Side { table, pipeline, join, scan, cold }
    }

    /// Seconds of one batch of the shipped query.
    fn batch(&self, batch: usize) -> f64 {
        timed(|| assert_eq!(self.pipeline.run(&self.cold[batch], &self.table), MATCHES))
    }

    /// Seconds of the join operator alone, and of a run without it.
    fn operator(&self, round: usize) -> (f64, f64) {
        let batch = &self.cold[round];
        let run = |query: &(Transform, tokio::runtime::Runtime)| {
            timed(|| assert!(rows_of(&query.0, &query.1, batch, &self.table) > 0))
        };
        (run(&self.join), run(&self.scan))
    }
}

fn timed(work: impl FnOnce()) -> f64 {
    let began = Instant::now();
    work();
    began.elapsed().as_secs_f64()
}

/// The middle one; of an even number the mean of both.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    if values.len().is_multiple_of(2) { (values[half - 1] + values[half]) / 2.0 } else { values[half] }
}

/// Both sides by turns, `rounds` times; their medians are compared.
fn joins(shape: &str, campaigns_each: usize, rounds: usize) {
    let [small, large] = [SMALL, largest()].map(|rows| Side::new(rows, campaigns_each, 2 * rounds));
    let mut times: [Vec<f64>; 8] = Default::default();
    for round in 0..rounds {
        for (side, offset) in [(&small, 0), (&large, 4)] {
            times[offset].push(side.batch(0));
            times[offset + 1].push(side.batch(round));
            // Other keys, which the batches have not brought into the caches.
            let (join, scan) = side.operator(rounds + round);
            times[offset + 2].push(join);
            times[offset + 3].push(scan);
        }
    }
    let [a_one, a_cold, a_join, a_scan, b_one, b_cold, b_join, b_scan] = times.map(median);
    let name = format!("{shape}, {} subscriptions against {SMALL}", largest());
    let ratio = b_cold / a_cold;
    tell(&format!("one batch, cold keys: {name}"), "<= 1.1", ratio, Some(ratio <= 1.1));
    tell(&format!("one batch, always the same: {name}"), "", b_one / a_one, None);
    let ratio = (b_join - b_scan) / (a_join - a_scan);
    tell(&format!("join operator alone, cold keys: {name}"), "<= 2", ratio, Some(ratio <= 2.0));
    let micros = |seconds: f64| seconds * 1e6;
    println!(
        "\nmicroseconds, small and large: the same batch {:.0} and {:.0}, with cold keys {:.0} and {:.0}; operator with \
         cold keys {:.0} and {:.0}; a run without join {:.0} and {:.0}; of this process {} MiB in large pages\n",
        micros(a_one),
        micros(b_one),
        micros(a_cold),
        micros(b_cold),
        micros(a_join - a_scan),
        micros(b_join - b_scan),
        micros(a_scan),
        micros(b_scan),
        in_large_pages() >> 10,
    );
}

/// KiB, as the kernel has it.
fn in_large_pages() -> u64 {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").expect("procfs");
    let line = rollup.lines().find_map(|line| line.strip_prefix("AnonHugePages:")).expect("a kernel that knows them");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// One lane's work on a thread of its own: decode, join, encode for both sinks and the ledger. Beside it threads that only
/// compute, to tell what the machine's second core is worth at this hour.
fn lanes() {
    const CAMPAIGNS: usize = 200;
    const COMMITS: usize = 5;
    let table = lookups(CAMPAIGNS, MATCHES);
    let messages = campaigns(0..CAMPAIGNS);
    let pipelines = [Pipeline::new(&table), Pipeline::new(&table)];
    let ring = |threads: usize| {
        side_by_side(threads, |number| {
            let pipeline = &pipelines[number];
            let (mut sinks, messages, table) = (pipeline.sinks(), &messages, &table);
            // A job at work has made its buffers long ago.
            pipeline.ring(messages, table, &mut sinks);
            move || {
                let rows: usize = (0..COMMITS).map(|_| pipeline.ring(messages, table, &mut sinks)).sum();
                assert_eq!(rows, COMMITS * CAMPAIGNS * MATCHES);
            }
        })
    };
    let compute = |threads: usize| {
        side_by_side(threads, |number| {
            let mut random = fastrand::Rng::with_seed(number as u64);
            move || _ = std::hint::black_box((0..200_000_000).fold(0, |sum: u64, _| sum ^ random.u64(..)))
        })
    };
    let mut seconds: [Vec<f64>; 4] = Default::default();
    for _ in 0..10 {
        let round = [ring(1), ring(2), compute(1), compute(2)];
        seconds.iter_mut().zip(round).for_each(|(seconds, taken)| seconds.push(taken));
    }
    let [one, two, alone, together] = seconds.map(median);
    let gain = 2.0 * one / two;
    tell("rows/s decode to encode, 2 lanes against 1", ">= 1.8", gain, Some(gain >= 1.8));
    tell("2 threads that only compute against 1", "", 2.0 * alone / together, None);
    let rows = (COMMITS * CAMPAIGNS * MATCHES) as f64;
    println!("\nrows/s: {:.0} with one lane, {:.0} with two\n", rows / one, 2.0 * rows / two);
}

/// Seconds that `threads` threads take that begin together, to the end of the last. Each makes its work ready before.
fn side_by_side<W: FnOnce()>(threads: usize, prepare: impl Fn(usize) -> W + Sync) -> f64 {
    let start = Barrier::new(threads + 1);
    std::thread::scope(|scope| {
        let (start, prepare) = (&start, &prepare);
        let working: Vec<_> = (0..threads)
            .map(|number| {
                scope.spawn(move || {
                    let work = prepare(number);
                    start.wait();
                    work();
                })
            })
            .collect();
        start.wait();
        let began = Instant::now();
        working.into_iter().for_each(|thread| thread.join().expect("a thread's work"));
        began.elapsed().as_secs_f64()
    })
}

/// Commits of 100 campaigns with 1,000 subscribers each, with no server and nothing measured.
pub fn null_sinks(commits: usize) {
    const CAMPAIGNS: usize = 100;
    let table = lookups(CAMPAIGNS, MATCHES);
    let pipeline = Pipeline::new(&table);
    let messages = campaigns(0..CAMPAIGNS);
    let mut sinks = pipeline.sinks();
    let began = Instant::now();
    let rows: usize = (0..commits).map(|_| pipeline.ring(&messages, &table, &mut sinks)).sum();
    let seconds = began.elapsed().as_secs_f64();
    println!("{rows} rows, {} bytes in {seconds:.2} s: {:.0} rows/s", sinks.bytes, rows as f64 / seconds);
}
