//! Every metric: its name, its labels, its help, and the one function that changes it.
//!
//! What is known at start is registered at start, so that it shows at 0 and an alert on its rate works from the first
//! minute. Labels have few values: outcomes and lookups come from the SQL files, partitions from the topic.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use crate::dead_letter::Stage;
use crate::{Error, Result};

const MESSAGES_IN: &str = "dinnerbell_messages_in_total";
const MESSAGES: &str = "dinnerbell_messages_total";
const ROWS: &str = "dinnerbell_rows_total";
const DEAD_LETTERS: &str = "dinnerbell_dead_letters_total";
const BATCH_SECONDS: &str = "dinnerbell_batch_seconds";
const COMMITS: &str = "dinnerbell_commits_total";
const LAG: &str = "dinnerbell_consumer_lag";
const LOOKUP_ROWS: &str = "dinnerbell_lookup_rows";
const LOOKUP_AGE: &str = "dinnerbell_lookup_age_seconds";
const RECONNECTS: &str = "dinnerbell_reconnects_total";
const REBALANCES: &str = "dinnerbell_rebalances_total";
const REPLAYED: &str = "dinnerbell_replayed_parts_total";
const BUILD_INFO: &str = "dinnerbell_build_info";

/// Seconds. Planning is 1 to 3 ms, a commit's Kafka half 8 to 100 ms; 60 s is where Kafka's own timeouts begin.
const BUCKETS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// Where triggers go, and what may be reconnected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Server {
    Postgres,
    Kafka,
}

impl Server {
    const ALL: [Server; 2] = [Server::Postgres, Server::Kafka];

    fn label(self) -> &'static str {
        match self {
            Server::Postgres => "postgres",
            Server::Kafka => "kafka",
        }
    }
}

/// The parts of a commit that are timed. They overlap: rows stream to both sinks while the transform runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchStage {
    Decode,
    Transform,
    /// COPYs, stored chunks and stored parts, from the first statement to the last answer.
    Postgres,
    /// Producing, from the transaction's begin to the last acknowledgement.
    Kafka,
    /// `advance` and COMMIT.
    PostgresCommit,
    /// The offsets and the end of the transaction; where that came too late, its abort and the rows sent anew.
    KafkaCommit,
    /// Decoding, and from its end in the lane's hands to the end of the Kafka transaction.
    Total,
}

impl BatchStage {
    const ALL: [BatchStage; 7] = [
        BatchStage::Decode,
        BatchStage::Transform,
        BatchStage::Postgres,
        BatchStage::Kafka,
        BatchStage::PostgresCommit,
        BatchStage::KafkaCommit,
        BatchStage::Total,
    ];

    fn label(self) -> &'static str {
        match self {
            BatchStage::Decode => "decode",
            BatchStage::Transform => "transform",
            BatchStage::Postgres => "postgres",
            BatchStage::Kafka => "kafka",
            BatchStage::PostgresCommit => "postgres_commit",
            BatchStage::KafkaCommit => "kafka_commit",
            BatchStage::Total => "total",
        }
    }
}

const LETTER_STAGES: [Stage; 5] = [Stage::Decode, Stage::Transform, Stage::Encode, Stage::Postgres, Stage::Kafka];

/// Makes all metrics of this process readable through the handle, and registers those that are known by now; again, the
/// same handle. Until then, all functions here do nothing. The reader must call `run_upkeep` every few seconds, as
/// [`super::Admin`] does: samples of histograms pile up otherwise.
pub fn install() -> Result<PrometheusHandle> {
    // The `metrics` crate has one recorder per process, whatever we do; this remembers ours.
    static INSTALLED: Mutex<Option<PrometheusHandle>> = Mutex::new(None);
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(handle) = installed.as_ref() {
        return Ok(handle.clone());
    }
    let failed =
        |error: BuildError| Error::Halt { what: format!("cannot set up metrics: {error}"), remedy: String::new() };
    let handle = builder().map_err(failed)?.install_recorder().map_err(failed)?;
    register();
    *installed = Some(handle.clone());
    Ok(handle)
}

fn builder() -> Result<PrometheusBuilder, BuildError> {
    PrometheusBuilder::new().set_buckets_for_metric(Matcher::Full(BATCH_SECONDS.into()), BUCKETS)
}

fn register() {
    describe_counter!(MESSAGES_IN, "Campaign messages read and committed.");
    describe_counter!(MESSAGES, "Campaign messages by what became of them; their sum is dinnerbell_messages_in_total.");
    describe_counter!(ROWS, "Rows committed to each sink.");
    describe_counter!(DEAD_LETTERS, "Dead letters by the stage that refused the message.");
    describe_histogram!(BATCH_SECONDS, "Seconds that a commit spent, by stage; stages overlap.");
    describe_counter!(COMMITS, "Commits: one Postgres and one Kafka transaction each.");
    describe_gauge!(LAG, "Messages between the next to be read and the partition's end; NaN once it is another's.");
    describe_gauge!(LOOKUP_ROWS, "Rows of the lookup table in memory.");
    describe_gauge!(LOOKUP_AGE, "Seconds since the lookup table was loaded.");
    describe_counter!(RECONNECTS, "Times that a lost connection was made anew.");
    describe_counter!(REBALANCES, "Times that this process's partitions changed.");
    describe_counter!(REPLAYED, "Stored parts that were sent to Kafka again after a crash.");
    describe_gauge!(BUILD_INFO, "1, with the version as its label.");

    counter!(MESSAGES_IN).absolute(0);
    outcomes(["triggered", "dead_letter"]);
    for server in Server::ALL {
        counter!(ROWS, "sink" => server.label()).absolute(0);
        counter!(RECONNECTS, "server" => server.label()).absolute(0);
    }
    for stage in LETTER_STAGES {
        counter!(DEAD_LETTERS, "stage" => stage.as_str()).absolute(0);
    }
    for stage in BatchStage::ALL {
        let _ = histogram!(BATCH_SECONDS, "stage" => stage.label());
    }
    for name in [COMMITS, REBALANCES, REPLAYED] {
        counter!(name).absolute(0);
    }
    gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
}

/// Lets outcomes that the SQL can lead to show at 0.
pub fn outcomes<'a>(names: impl IntoIterator<Item = &'a str>) {
    for outcome in names {
        messages(outcome, 0);
    }
}

/// Campaign messages of a commit, all outcomes together.
pub fn messages_in(count: u64) {
    counter!(MESSAGES_IN).increment(count);
}

/// Campaign messages of a commit that had this outcome.
pub fn messages(outcome: &str, count: u64) {
    counter!(MESSAGES, "outcome" => outcome.to_string()).increment(count);
}

/// Rows of a commit that are now in a sink.
pub fn rows(sink: Server, count: u64) {
    counter!(ROWS, "sink" => sink.label()).increment(count);
}

pub fn dead_letters(stage: Stage, count: u64) {
    counter!(DEAD_LETTERS, "stage" => stage.as_str()).increment(count);
}

pub fn batch_seconds(stage: BatchStage, took: Duration) {
    histogram!(BATCH_SECONDS, "stage" => stage.label()).record(took.as_secs_f64());
}

pub fn commit() {
    counter!(COMMITS).increment(1);
}

/// `None` once the partition has gone to another member: a lag that nobody updates would be read as one that stands.
pub fn consumer_lag(partition: i32, messages: Option<i64>) {
    gauge!(LAG, "partition" => partition.to_string()).set(messages.map_or(f64::NAN, |messages| messages as f64));
}

/// Rows of a lookup table that was just loaded. Tell [`super::Health::lookup_loaded`], which calls this.
pub(super) fn lookup_rows(lookup: &str, rows: usize) {
    gauge!(LOOKUP_ROWS, "lookup" => lookup.to_string()).set(rows as f64);
}

/// Ages pass by themselves: set whenever somebody reads the metrics.
pub(super) fn lookup_age(lookup: &str, age: Duration) {
    gauge!(LOOKUP_AGE, "lookup" => lookup.to_string()).set(age.as_secs_f64());
}

pub fn reconnect(server: Server) {
    counter!(RECONNECTS, "server" => server.label()).increment(1);
}

pub fn rebalance() {
    counter!(REBALANCES).increment(1);
}

pub fn replayed_parts(count: u64) {
    counter!(REPLAYED).increment(count);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(change: impl FnOnce()) -> String {
        let recorder = builder().unwrap().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            register();
            change();
        });
        recorder.handle().render()
    }

    #[test]
    fn all_that_is_known_shows_at_zero() {
        let text = rendered(|| {});
        for line in [
            "dinnerbell_messages_in_total 0",
            "dinnerbell_messages_total{outcome=\"triggered\"} 0",
            "dinnerbell_messages_total{outcome=\"dead_letter\"} 0",
            "dinnerbell_rows_total{sink=\"postgres\"} 0",
            "dinnerbell_rows_total{sink=\"kafka\"} 0",
            "dinnerbell_dead_letters_total{stage=\"encode\"} 0",
            "dinnerbell_batch_seconds_count{stage=\"total\"} 0",
            "dinnerbell_batch_seconds_bucket{stage=\"kafka\",le=\"0.001\"} 0",
            "dinnerbell_commits_total 0",
            "dinnerbell_reconnects_total{server=\"kafka\"} 0",
            "dinnerbell_rebalances_total 0",
            "dinnerbell_replayed_parts_total 0",
            concat!("dinnerbell_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
            "# TYPE dinnerbell_batch_seconds histogram",
        ] {
            assert!(text.lines().any(|have| have == line), "{line}\n{text}");
        }
    }

    #[test]
    fn each_function_changes_its_metric() {
        let text = rendered(|| {
            outcomes(["expired"]);
            messages_in(3);
            messages("triggered", 2);
            rows(Server::Kafka, 7);
            dead_letters(Stage::Postgres, 1);
            batch_seconds(BatchStage::Decode, Duration::from_millis(2));
            commit();
            consumer_lag(4, Some(10));
            consumer_lag(5, None);
            lookup_rows("l", 9);
            lookup_age("l", Duration::from_secs(2));
            reconnect(Server::Postgres);
            rebalance();
            replayed_parts(2);
        });
        for line in [
            "dinnerbell_messages_total{outcome=\"expired\"} 0",
            "dinnerbell_messages_in_total 3",
            "dinnerbell_messages_total{outcome=\"triggered\"} 2",
            "dinnerbell_rows_total{sink=\"kafka\"} 7",
            "dinnerbell_dead_letters_total{stage=\"postgres\"} 1",
            "dinnerbell_batch_seconds_bucket{stage=\"decode\",le=\"0.001\"} 0",
            "dinnerbell_batch_seconds_bucket{stage=\"decode\",le=\"0.0025\"} 1",
            "dinnerbell_commits_total 1",
            "dinnerbell_consumer_lag{partition=\"4\"} 10",
            "dinnerbell_consumer_lag{partition=\"5\"} NaN",
            "dinnerbell_lookup_rows{lookup=\"l\"} 9",
            "dinnerbell_lookup_age_seconds{lookup=\"l\"} 2",
            "dinnerbell_reconnects_total{server=\"postgres\"} 1",
            "dinnerbell_rebalances_total 1",
            "dinnerbell_replayed_parts_total 2",
        ] {
            assert!(text.lines().any(|have| have == line), "{line}\n{text}");
        }
    }
}
