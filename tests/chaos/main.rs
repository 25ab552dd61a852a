//! `make chaos`: see `tests/support/chaos/mod.rs` for what it does.

// A failure of the harness is a panic, as in a test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use support::chaos::{Options, report, run};

/// Kills replicas of the job and breaks its servers, again and again, then checks every promise of delivery
#[derive(Debug, Parser)]
#[command(name = "chaos", args_override_self = true)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    /// Appends the report to this file; runs that are in it already are added up
    #[arg(long)]
    report: Option<PathBuf>,
}

fn main() -> ExitCode {
    let Arguments { mut options, report } = Arguments::parse();
    if (options.minutes, options.cycles, options.rows, options.per_step) == (0.0, 0, 0, 0) {
        options.minutes = 2.0;
    }
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..1_000_000_000));
    let command = report::command(&options, seed);
    println!("{command}");
    let outcome = run(&options, seed);
    println!("\n{}", outcome.tally.markdown());
    if let Some(file) = report {
        report::append(&file, &outcome.tally);
    }
    if outcome.examination.findings.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("The logs are in {}. The same plan again:\n{command}", outcome.logs.display());
    ExitCode::FAILURE
}
