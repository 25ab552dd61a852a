//! The job's stages one by one, in memory, by criterion; then the bars that need no servers.
//!
//! ```console
//! cargo bench --bench stages                        # all
//! cargo bench --bench stages -- 'join/'             # those of that name, by criterion
//! cargo bench --bench stages -- --bars              # the bars alone
//! cargo bench --bench stages -- --null-sinks 20     # 20 commits of 100,000 rows and nothing else: for profilers
//! cargo bench --bench stages -- --decode 20         # 20 batches of 1,000 plain messages decoded, as above
//! ```
//!
//! `STAGES_MAX_SUBSCRIPTIONS` leaves out larger lookup tables (10 million need 2 GB).

// A bench that goes wrong stops with a panic; it is no part of the job.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bars;
mod load;
mod pipeline;

use std::hint::black_box;
use std::time::Duration;

use arrow::compute::concat_batches;
use criterion::{BatchSize, Criterion, Throughput};
use dinnerbell::encode::chunk;

use pipeline::{Pipeline, campaign, campaigns, lookups, messages};

fn main() {
    // As the job does.
    dinnerbell::allocator::keep_freed_memory();
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--bars"] => return bars::print(),
        ["--decode", batches] => return decode_only(batches.parse().expect("a number of batches")),
        ["--null-sinks", commits] => return bars::null_sinks(commits.parse().expect("a number of commits")),
        _ => {}
    }
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    decode(&mut criterion);
    sql(&mut criterion);
    join(&mut criterion);
    encode(&mut criterion);
    load::bench(&mut criterion);
    null_sinks(&mut criterion);
    criterion.final_summary();
    if arguments.is_empty() {
        bars::print();
    }
}

/// Subscriptions in the largest lookup table.
pub fn largest() -> usize {
    std::env::var("STAGES_MAX_SUBSCRIPTIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(10_000_000)
}

const MESSAGES: usize = 1_000;

/// Plain messages to columns, for profilers.
fn decode_only(batches: usize) {
    let pipeline = Pipeline::new(&lookups(1, 1));
    let messages = messages((0..MESSAGES).map(|n| campaign(n, n, "a second dessert")));
    let rows: usize = (0..batches).map(|_| pipeline.decode(black_box(&messages)).num_rows()).sum();
    assert_eq!(rows, batches * MESSAGES);
}

fn decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Elements(MESSAGES as u64));
    let pipeline = Pipeline::new(&lookups(1, 1));
    let each = |make: &dyn Fn(usize) -> String| messages((0..MESSAGES).map(make));
    let long = "a second dessert for everyone who comes before noon; ".repeat(40);
    for (shape, messages) in [
        ("plain", each(&|n| campaign(n, n, "a second dessert"))),
        ("escapes", each(&|n| campaign(n, n, "a \"second\"\ndessert \u{1f370} \\ / half price"))),
        ("2 KB of text", each(&|n| campaign(n, n, &long))),
        ("unknown fields", each(&|n| campaign(n, n, "x").replacen('{', r#"{"more": {"a": [1, 2, {"b": null}]}, "#, 1))),
        ("dead letters", each(&|n| campaign(n, n, "x").replace("1659203516", "\"soon\""))),
    ] {
        group.bench_function(shape, |bench| bench.iter(|| pipeline.decoder.decode(black_box(&messages))));
    }
}

fn sql(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sql");
    let table = lookups(1_000, 10);
    let pipeline = Pipeline::new(&table);
    group.bench_function("plan", |bench| bench.iter(|| pipeline.compile(&table)));
    let expired = messages((0..1_000).map(|n| campaign(n, n, "x").replace("2659207116", "1659203517")));
    for (shape, messages) in [
        ("1 campaign, 10 rows", campaigns([7])),
        ("1 campaign, no match", campaigns([1_000_000])),
        ("1,000 campaigns, 10,000 rows", campaigns(0..1_000)),
        ("1,000 campaigns, all expired", expired),
    ] {
        let batch = pipeline.decode(&messages);
        group.bench_function(shape, |bench| bench.iter(|| pipeline.run(&batch, &table)));
    }
}

fn join(criterion: &mut Criterion) {
    for subscriptions in [10_000, 100_000, 1_000_000, 10_000_000].into_iter().filter(|&n| n <= largest()) {
        for matches in [1, 1_000, 100_000].into_iter().filter(|&n| n <= subscriptions) {
            join_of(criterion, subscriptions, matches);
        }
    }
}

fn join_of(criterion: &mut Criterion, subscriptions: usize, matches: usize) {
    let restaurants = subscriptions / matches;
    let table = lookups(restaurants, matches);
    let pipeline = Pipeline::new(&table);
    let mut group = criterion.benchmark_group(format!("join/{matches} of {subscriptions}"));
    group.throughput(Throughput::Elements(matches as u64));
    let one = pipeline.decode(&campaigns([restaurants / 2]));
    group.bench_function("one key", |bench| bench.iter(|| assert_eq!(pipeline.run(&one, &table), matches)));
    // Other keys each time, all over the table: where that is larger than the caches, its rows come from memory.
    let mut order = bars::shuffled(restaurants).into_iter().cycle();
    for (name, keys) in [("cold keys", 1), ("1,000 cold keys", 1_000)] {
        if keys > 1 && matches > 1 {
            continue;
        }
        group.throughput(Throughput::Elements((keys * matches) as u64));
        let mut next = || pipeline.decode(&campaigns(order.by_ref().take(keys)));
        group.bench_function(name, |bench| {
            let run = |batch| assert_eq!(pipeline.run(&batch, &table), keys * matches);
            bench.iter_batched(&mut next, run, BatchSize::SmallInput)
        });
    }
}

fn encode(criterion: &mut Criterion) {
    for (shape, restaurants, subscribers) in [("fan-out", 8, 1_024), ("selective", 8_192, 1)] {
        let table = lookups(restaurants, subscribers);
        let pipeline = Pipeline::new(&table);
        let batch = pipeline.decode(&campaigns(0..restaurants));
        let rows = pipeline.rows(&batch, &table);
        let rows = concat_batches(rows[0].schema_ref(), &rows).expect("one schema");
        let mut sinks = pipeline.sinks();
        let mut group = criterion.benchmark_group(format!("encode/{shape}"));
        group.throughput(Throughput::Elements(rows.num_rows() as u64));
        group.bench_function("JSON", |bench| bench.iter(|| sinks.json(black_box(&rows))));
        group.bench_function("COPY BINARY", |bench| bench.iter(|| sinks.copy(black_box(&rows))));
        group.bench_function("stored chunk", |bench| bench.iter(|| chunk::pack(black_box(&rows))));
    }
}

/// Decode to encode, with sinks that keep nothing.
fn null_sinks(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("null sinks");
    let expired = |campaign: String| campaign.replace("2659207116", "1659203517");
    for (shape, restaurants, subscribers, active) in
        [("fan-out", 100, 1_000, 1), ("crowd", 1, 100_000, 1), ("selective", 100_000, 1, 10)]
    {
        let table = lookups(restaurants, subscribers);
        let pipeline = Pipeline::new(&table);
        let campaign = |n: usize| campaign(n, n, "a second dessert");
        let messages = messages((0..restaurants).map(|n| match n % active {
            0 => campaign(n),
            _ => expired(campaign(n)),
        }));
        let mut sinks = pipeline.sinks();
        group.throughput(Throughput::Elements((restaurants * subscribers / active) as u64));
        group.bench_function(shape, |bench| bench.iter(|| pipeline.ring(&messages, &table, &mut sinks)));
    }
}
