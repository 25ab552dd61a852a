//! The command line: what was asked for, the settings, a runtime, and then the one function that does it.

mod signals;

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::Config;
use crate::job;
use crate::telemetry::logs;
use crate::{Error, Result};

/// Campaigns from Kafka, joined in SQL with cached Postgres tables, delivered exactly once to Postgres and Kafka.
#[derive(Debug, Parser)]
#[command(name = "dinnerbell", version, about)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,

    /// The settings file [default: dinnerbell.toml if there is one, otherwise built-in defaults]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the job until SIGTERM or Ctrl-C; a second signal exits at once
    Run,
    /// Prove settings, SQL, topics, table and rights, without moving an offset
    Check,
    /// Show what the SQL makes of campaigns; nothing is written anywhere
    Preview(Preview),
    /// Create what is missing: topics, tables, the ledger
    Init(Init),
    /// See it work: an in-process broker, a private Postgres, and a trickle of campaigns
    Demo(Demo),
}

#[derive(Debug, Args)]
pub struct Preview {
    /// Campaigns, one JSON object a line; `-` for standard input
    #[arg(value_name = "FILE", conflicts_with = "from_kafka")]
    pub file: Option<PathBuf>,

    /// Read the last N campaigns of the topic instead, without joining the group
    #[arg(long, value_name = "N")]
    pub from_kafka: Option<NonZeroUsize>,

    /// Show the head and the size of this lookup table
    #[arg(long, value_name = "NAME")]
    pub lookup: Option<String>,

    /// Show at most this many rows of each table
    #[arg(long, value_name = "N", default_value = "20")]
    pub limit: usize,

    /// What now() is, instead of the clock
    #[arg(long, value_name = "UNIX_SECONDS", allow_negative_numbers = true)]
    pub now: Option<i64>,
}

#[derive(Debug, Args)]
pub struct Init {
    /// Print the DDL instead of running it
    #[arg(long)]
    pub print: bool,
}

#[derive(Debug, Args)]
pub struct Demo {
    /// Stop after the last campaign, and verify that both sinks hold the same rows
    #[arg(long)]
    pub once: bool,
}

/// Does what the command line says. Wrong usage and `--help` end the process here, with 2 and 0.
pub fn execute() -> Result<()> {
    let cli = Cli::parse();
    let config = Config::load(cli.config.as_deref())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(Error::io("cannot start the threads of the runtime"))?;
    let done = runtime.block_on(dispatch(cli.command, config));
    // Threads that block (a librdkafka call, a read of standard input) must not hold up the exit.
    runtime.shutdown_background();
    done
}

async fn dispatch(command: Command, config: Config) -> Result<()> {
    match command {
        Command::Run => run(config).await,
        Command::Check => Err(not_built("check", &config)),
        Command::Preview(_) => Err(not_built("preview", &config)),
        Command::Init(_) => Err(not_built("init", &config)),
        Command::Demo(_) => Err(not_built("demo", &config)),
    }
}

async fn run(config: Config) -> Result<()> {
    logs::init()?;
    let shutdown = signals::shutdown()?;
    job::run(config, shutdown).await
}

fn not_built(command: &str, _config: &Config) -> Error {
    Error::Halt { what: format!("`dinnerbell {command}` is not built yet"), remedy: String::new() }
}

#[cfg(test)]
mod tests;
