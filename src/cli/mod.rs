//! The command line: what was asked for, the settings, a runtime, and then the one function that does it.

mod check;
mod init;
mod preview;
mod repair;
mod report;
mod signals;

use std::io::Write;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args, Parser, Subcommand};

use crate::config::Config;
use crate::demo;
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
    Check(Check),
    /// Show what the SQL makes of campaigns; nothing is written anywhere
    Preview(Preview),
    /// Create what is missing: topics, tables, the ledger
    Init(Init),
    /// Say what keeps the job from running, and put it right; without --execute nothing is changed
    Repair(RepairArgs),
    /// See it work: an in-process broker, a private Postgres, and a trickle of campaigns
    Demo(Demo),
}

#[derive(Debug, Args)]
pub struct Check {
    /// Show the plan of triggers.sql as well, as EXPLAIN would
    #[arg(long)]
    pub explain: bool,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("what").required(true).multiple(true).args(["file", "from_kafka", "lookup"])))]
#[command(group(ArgGroup::new("messages").args(["file", "from_kafka"])))]
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

    /// Take a lookup table from a file of JSON lines or CSV instead of Postgres; may be repeated
    #[arg(long, value_name = "NAME=FILE", value_parser = LookupFile::parse)]
    pub lookup_file: Vec<LookupFile>,

    /// Show at most this many rows of each table [default: 20; with --json all]
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,

    /// What now() is, instead of the clock
    #[arg(long, value_name = "UNIX_SECONDS", allow_negative_numbers = true)]
    pub now: Option<i64>,

    /// Print output rows as the Kafka sink sends them, one a line, and nothing else on standard output
    #[arg(long, requires = "messages")]
    pub json: bool,
}

/// A lookup table's name and the file that it is read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LookupFile {
    pub name: String,
    pub file: PathBuf,
}

impl LookupFile {
    fn parse(text: &str) -> Result<LookupFile, String> {
        let (name, file) = text.split_once('=').ok_or("expected NAME=FILE")?;
        Ok(LookupFile { name: name.into(), file: file.into() })
    }
}

#[derive(Debug, Args)]
pub struct Init {
    /// Print the DDL instead of running it
    #[arg(long)]
    pub print: bool,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("repair").multiple(true).args([
    "accept_lost_messages", "new_topic", "offsets", "rebuild_table", "adopt", "resend_from_table",
])))]
pub struct RepairArgs {
    /// Retention has passed the job: give up the messages that are gone
    #[arg(long)]
    pub accept_lost_messages: bool,

    /// The input topic was deleted and made anew: read the new one from its beginning
    #[arg(long)]
    pub new_topic: bool,

    /// The group's offsets were reset or deleted: put them back, after a look into the output topic
    #[arg(long)]
    pub offsets: bool,

    /// Postgres was restored to an older state: insert the rows that only the output topic has
    #[arg(long)]
    pub rebuild_table: bool,

    /// Rows of the ledger, or all of it, are gone: go on from Kafka's offsets
    #[arg(long)]
    pub adopt: bool,

    /// A stored batch is unreadable or gone: send its rows from the sink table
    #[arg(long)]
    pub resend_from_table: bool,

    /// Do it, instead of saying what would be done
    #[arg(long, requires = "repair")]
    pub execute: bool,
}

#[derive(Debug, Args)]
pub struct Demo {
    /// Stop after the last campaign, and verify that both sinks hold the same rows
    #[arg(long)]
    pub once: bool,
}

/// Does what the command line says. Wrong usage and `--help` end the process here, with 2 and 0.
pub fn execute() -> Result<()> {
    // Before librdkafka does it its way, with a cleanup at exit: threads that end at that moment would use what is freed.
    openssl::init();
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(Error::io("cannot start the threads of the runtime"))?;
    let done = runtime.block_on(dispatch(cli));
    // Threads that block (a librdkafka call, a read of standard input) must not hold up the exit.
    runtime.shutdown_background();
    match done {
        // Whoever read our output has read enough.
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}

async fn dispatch(cli: Cli) -> Result<()> {
    let file = cli.config.as_deref();
    let config = || Config::load(file);
    match cli.command {
        Command::Run => run(config()?).await,
        Command::Check(asked) => check::run(file, asked.explain).await,
        Command::Preview(asked) => preview::run(config()?, asked).await,
        Command::Init(Init { print: true }) => init::print(&config()?),
        Command::Init(_) => init::run(config()?).await,
        Command::Repair(args) => repair::run(config()?, file, args).await,
        // Needs no settings: a file that is meant for other places must not keep it from starting.
        Command::Demo(options) => show(&options, file).await,
    }
}

async fn show(options: &Demo, file: Option<&Path>) -> Result<()> {
    logs::init_with(demo::LOG_FILTER)?;
    let sql = demo::sql_directory(file)?;
    demo::run(&sql, options.once, signals::shutdown()?).await
}

/// Prints what was asked for.
fn say(text: &str) -> Result<()> {
    write_out(format!("{}\n", text.trim_end()).as_bytes())
}

/// Prints what goes beside it, and is no reason to fail.
fn say_aside(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn write_out(bytes: &[u8]) -> Result<()> {
    std::io::stdout().write_all(bytes).map_err(Error::io("writing to standard output"))
}

async fn run(config: Config) -> Result<()> {
    logs::init()?;
    let shutdown = signals::shutdown()?;
    job::run(config, shutdown).await
}

#[cfg(test)]
mod tests;
