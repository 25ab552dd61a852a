//! The whole job on a real Kafka and a real Postgres, beside the null job: a program that sends the same triggers, already
//! encoded, through the same client libraries in the same transactions, and computes nothing. What the job takes longer
//! than the null job is its own; the rest belongs to Kafka, Postgres and their clients.
//!
//! Both are processes of their own, started in turns on fresh topics and an emptied table, and measured alike from
//! outside: /proc for CPU and memory, the servers for when the last row is visible. Every run checks that both sinks hold
//! each trigger once.
//!
//! ```console
//! cargo bench --bench end_to_end -- --workload fan-out,trickle --runs 3 --scale 0.1 --report /tmp/report.md
//! ```

// A bench that goes wrong stops with a panic; it is no part of the job.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../tests/support/mod.rs"]
mod support;

mod encoded;
mod latency;
mod memory;
mod null_job;
mod process;
mod race;
mod report;
mod watch;
mod workload;

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use report::Report;

#[derive(Debug, Parser)]
struct Options {
    /// Which ones; all without it.
    #[arg(long, value_enum, value_delimiter = ',')]
    workload: Vec<Workload>,
    /// Runs of job and null job each; figures are medians.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Shrinks every workload: 0.1 suits an unoptimised build.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Writes tables and bars as Markdown.
    #[arg(long)]
    report: Option<PathBuf>,
    /// Lets `perf record` look at the job in the last run of each workload, into FILE.
    #[arg(long, value_name = "FILE")]
    perf: Option<PathBuf>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
    /// This process is the null job.
    #[arg(long, hide = true)]
    null_job: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Workload {
    /// 1,000 campaigns of 1,000 subscribers each, in a lookup table of a million.
    FanOut,
    /// 20 campaigns of 100,000 subscribers each.
    Crowd,
    /// A million campaigns, one in ten active, with one subscriber each.
    Selective,
    /// 10,000 campaigns with a million subscribers in all, by Zipf's law with exponent 1.1.
    Zipf,
    /// One campaign a batch, of 1,000 subscribers in a lookup table of ten million.
    Big,
    /// One small campaign every 100 ms: latency; then 20 s of nothing.
    Trickle,
    /// Resident memory with ten million subscriptions: loaded, refreshed, and all of them for one campaign.
    Memory,
    /// Loading ten million subscriptions, beside a bare COPY TO STDOUT of the same query.
    Load,
}

fn main() {
    // As the job does: for the null job, and for the table that is loaded in this process.
    dinnerbell::allocator::keep_freed_memory();
    let options = Options::parse();
    if let Some(spec) = &options.null_job {
        return null_job::run(spec);
    }
    let mut report = Report::new(&options);
    let chosen = if options.workload.is_empty() { Workload::value_variants() } else { &options.workload };
    for &workload in chosen {
        match workload {
            Workload::Trickle => latency::trickle(&options, &mut report),
            Workload::Memory => memory::memory(&options, &mut report),
            Workload::Load => memory::load(&options, &mut report),
            bulk => race::race(bulk, &options, &mut report),
        }
        // What is known so far is worth having when a later workload fails.
        report.write(options.report.as_deref());
    }
}
