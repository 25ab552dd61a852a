//! Settings: a TOML file, read once and resolved into one validated [`Config`] that the rest trusts.
//!
//! [`document`] reads the text and knows keys and lines, [`substitute`] fills in `${...}`, [`resolve`] checks every value
//! and every pair of values. What only a server can tell (topics, rights, columns) is `dinnerbell check`'s business.
//! Passwords are held so that no `Debug` or error text shows them.

mod document;
mod kafka;
mod postgres;
mod resolve;
mod substitute;
mod values;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use kafka::KafkaProperties;
pub use postgres::{PostgresSettings, SslMode, Tls};
pub use values::{Secret, Start, TableName, quote_identifier};

use crate::{Error, Result};

/// The settings file that is read where `--config` names none.
pub const DEFAULT_FILE: &str = "dinnerbell.toml";

/// Ten times a campaign with ten million subscribers.
pub const DEFAULT_MAX_ROWS: usize = 100_000_000;

/// Everything that an operator decides, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where campaigns come from.
    pub source: Source,
    /// Where triggers go for the push service.
    pub sink_kafka: KafkaSink,
    /// Where triggers are recorded.
    pub sink_postgres: PostgresSink,
    /// The one Postgres server of sink table, ledger and lookups: exactly-once rests on their sharing transactions.
    pub postgres: PostgresSettings,
    /// Where messages go that cannot be processed.
    pub dead_letters: DeadLetters,
    /// `[sql] directory`, default `sql`; a relative path counts from the settings file's own directory, so that the
    /// pair can be moved together.
    pub sql_directory: PathBuf,
    /// `[lookup] refresh`, default `5m`, at least `1s`; `None` for `never`. How long a change in a lookup's tables may
    /// take to be seen; each refresh costs Postgres one full read of the query.
    pub lookup_refresh: Option<Duration>,
    /// How much one commit takes at most.
    pub batch: Batch,
    /// How this process takes part in the consumer group.
    pub job: Job,
    /// `[ledger] schema`, default `dinnerbell`: the Postgres schema of the job's own tables. A plain lower-case
    /// identifier, so that it needs no quotes anywhere. Two jobs may share it: rows are told apart by group and topic.
    pub ledger_schema: String,
    /// `[admin] listen`, default `127.0.0.1:9464`; `None` where it is `""`. Serves `/healthz`, `/readyz`, `/metrics`
    /// without authentication, hence loopback unless it says otherwise.
    pub admin_listen: Option<SocketAddr>,
    /// `[transform] memory` in bytes, default `512MiB`: what the SQL engine may hold for sorts, aggregates and stock
    /// joins before it refuses. The shipped query needs next to none: it streams. Lookup tables are not counted here.
    pub memory_limit: usize,
    /// `[transform] max_rows`, default 100 million: the rows that any join of the SQL may make for one commit's
    /// messages. Where they are more, fewer messages are taken at once; the job halts where a single message makes more.
    pub max_rows: usize,
}

/// `[source]`
#[derive(Debug, Clone)]
pub struct Source {
    /// Default `campaigns`.
    pub topic: String,
    /// Default `dinnerbell`. The consumer group, and with it the ledger's key and the prefix of all transactional ids:
    /// a new name is a new job that starts at [`Source::start`].
    pub group_id: String,
    /// Default `earliest`; looked at only while the group has no ledger.
    pub start: Start,
    /// librdkafka's properties for the consumer: `[kafka]`, and over them `[source.kafka]`.
    pub kafka: KafkaProperties,
}

/// `[sink.kafka]`
#[derive(Debug, Clone)]
pub struct KafkaSink {
    /// Default `triggers`.
    pub topic: String,
    /// The output column whose value becomes the record's key; by default records have none and spread over all
    /// partitions.
    pub key: Option<String>,
    /// librdkafka's properties for the producers: `[kafka]`, and over them the rest of `[sink.kafka]`.
    pub kafka: KafkaProperties,
}

/// `[sink.postgres]`
#[derive(Debug, Clone)]
pub struct PostgresSink {
    /// Default `public.subscribers_feedback`.
    pub table: TableName,
}

/// `[dead_letters]`
#[derive(Debug, Clone)]
pub struct DeadLetters {
    /// Default `campaigns.dead_letters`.
    pub topic: String,
}

/// `[batch]`: ceilings, not targets. A batch is what has arrived; it grows under load, and nobody waits when idle.
#[derive(Debug, Clone, Copy)]
pub struct Batch {
    /// Messages in one commit, all partitions together: 1 to 10 million, default 100,000.
    pub max_messages: usize,
    /// Bytes of keys and values in one commit: 1 KiB to 1 GiB, default 64 MiB. A single larger message still goes
    /// through, alone. Offsets into the batch are 32 bits wide, hence the ceiling. After a backlog each lane keeps up to twice
    /// as much for the next one.
    pub max_bytes: usize,
}

/// `[job]`
#[derive(Debug, Clone)]
pub struct Job {
    /// Default none. Where set, group membership is static: a restart under the same name gets its partitions back
    /// without a rebalance. Every replica needs its own.
    pub instance: Option<String>,
    /// Members of the consumer group in this process, each with a Postgres connection and two producers: 1 to 64,
    /// default 1. More lanes than partitions idle.
    pub lanes: usize,
}

impl Config {
    /// Reads the settings from `path`, or from [`DEFAULT_FILE`] where that exists, or takes the defaults.
    pub fn load(path: Option<&Path>) -> Result<Config> {
        let file = path.unwrap_or(Path::new(DEFAULT_FILE));
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if path.is_none() && error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => {
                return Err(Error::Setting {
                    key: "--config".into(),
                    problem: format!("cannot read {}: {error}", file.display()),
                    remedy: format!("name a readable TOML file; without --config, {DEFAULT_FILE} is read if it exists"),
                });
            }
        };
        Config::parse(&text, file, &|name| std::env::var(name).ok())
    }

    /// Resolves the settings in `text`; `file` is named in errors and is what relative paths count from, `variable`
    /// answers for the environment.
    pub fn parse(text: &str, file: &Path, variable: &dyn Fn(&str) -> Option<String>) -> Result<Config> {
        resolve::resolve(document::Document { text, file, variable })
    }
}
