//! The job: sets everything up, runs one loop per lane, and ends when it is told to or when a person is needed.

pub mod setup;

mod commit;
mod engine;
mod lane;
pub(crate) mod output;
mod parts;
mod progress;
mod refusal;
mod stream;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::config::Config;
use crate::error::{Action, Error, Result};
use crate::ledger::claim::Claimant;
use crate::ledger::store::{self, Ledger};
use crate::lookup::{LookupStatus, Lookups};
use crate::postgres;
use crate::sink::table::TableShape;
use crate::source::Source;
use crate::telemetry::{Health, Telemetry, metrics};

pub use engine::Engine;
use lane::Lane;
use setup::{Mission, Topics};

/// Runs until `stop` is cancelled (then all lanes drain) or something needs a person.
///
/// # Errors
/// The first error that no waiting can mend; the other lanes are drained first.
pub async fn run(config: Config, stop: CancellationToken) -> Result<()> {
    let mission = Mission::load(&config)?;
    let config = Arc::new(config);
    let telemetry = Telemetry::start(config.admin_listen, config.job.lanes).await?;
    let result = ring(&config, &mission, &telemetry.health, &stop).await;
    telemetry.stop().await;
    result
}

async fn ring(config: &Arc<Config>, mission: &Mission, health: &Health, stop: &CancellationToken) -> Result<()> {
    let Some(ready) = prepare(config, mission, health, stop).await? else { return Ok(()) };
    report_lookups(health, &ready.lookups.status());
    for empty in ready.lookups.status().iter().filter(|table| table.rows == 0) {
        tracing::warn!(
            lookup = empty.name,
            "the lookup table is empty: nothing can match it before a refresh fills it"
        );
    }
    let refresher = tokio::spawn(refresh(config.clone(), ready.lookups.clone(), health.clone()));
    let mut lanes = JoinSet::new();
    let process = Uuid::new_v4();
    let producer = Arc::new(setup::producer_properties(config, &ready.topics));
    for number in 0..config.job.lanes {
        let source = Source::open(config, number, ready.topics.partitions)?;
        let claimant = Claimant {
            config: config.clone(),
            producer: producer.clone(),
            ledger: ready.ledger.clone(),
            transactional_ids: [0, 1].map(|k| format!("{}.{process}.{number}.{k}", config.source.group_id)),
            consumer: source.consumer(),
        };
        let engine = setup::compile(config, mission, &ready.lookups.current(), &ready.shape, &ready.topics).await?;
        metrics::outcomes(engine.transform.outcome_names().iter().map(String::as_str));
        let lane = Lane {
            engine,
            claimant,
            source,
            number,
            lookups: ready.lookups.clone(),
            health: health.clone(),
            stop: stop.clone(),
            outage: lane::Outage::default(),
            refused: None,
        };
        lanes.spawn(lane.run());
    }
    lanes.spawn(watch::topics(config.clone(), ready.ledger.clone(), stop.clone()));
    announce(config, &ready);
    let result = join(lanes, stop).await;
    refresher.abort();
    result
}

/// All that `run` needs before its first message.
struct Ready {
    topics: Topics,
    shape: TableShape,
    lookups: Arc<Lookups>,
    ledger: Arc<Ledger>,
}

/// Sets up, waiting for servers that are away. `None` if stopped meanwhile.
async fn prepare(
    config: &Arc<Config>,
    mission: &Mission,
    health: &Health,
    stop: &CancellationToken,
) -> Result<Option<Ready>> {
    let mut delays = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(200))
        .with_max_delay(Duration::from_secs(10))
        .with_jitter()
        .without_max_times()
        .build();
    let mut told = false;
    loop {
        let attempt = tokio::select! {
            () = stop.cancelled() => return Ok(None),
            attempt = try_prepare(config, mission) => attempt,
        };
        match attempt {
            Ok(ready) => return Ok(Some(ready)),
            Err(error) if error.action() == Action::Halt => return Err(error),
            Err(error) if !told => {
                (0..config.job.lanes).for_each(|lane| health.waiting(lane, error.to_string()));
                tracing::warn!("waiting to start: {error}; trying again with backoff until it works");
            }
            Err(error) => tracing::debug!("still waiting: {error}"),
        }
        told = true;
        tokio::select! {
            () = stop.cancelled() => return Ok(None),
            () = tokio::time::sleep(delays.next().unwrap_or(Duration::from_secs(10))) => {}
        }
    }
}

async fn try_prepare(config: &Arc<Config>, mission: &Mission) -> Result<Ready> {
    let (postgres, brokers) = tokio::try_join!(store::connect(&config.postgres), setup::brokers(config))?;
    let shape = setup::describe_table(config, &postgres).await?;
    // Everything the SQL can be blamed for comes before millions of rows are loaded, and those before the ledger says where
    // the job begins.
    let keys = setup::check_sql(config, mission, &postgres, &shape).await?;
    // Kafka is asked while Postgres makes the lookup tables' rows.
    let rest = async {
        let topics = setup::inspect_topics(config, brokers).await?;
        let opened = setup::open_ledger(config, &topics).await?;
        Ok((topics, opened))
    };
    let (lookups, (topics, opened)) = tokio::try_join!(setup::load_lookups(mission, &postgres, keys), rest)?;
    let ledger = opened.register().await?;
    Ok(Ready { topics, shape, lookups: Arc::new(lookups), ledger: Arc::new(ledger) })
}

fn report_lookups(health: &Health, tables: &[LookupStatus]) {
    for table in tables {
        health.lookup_loaded(&table.name, table.rows as usize);
    }
}

/// Keeps the lookup tables fresh, where the settings say so.
async fn refresh(config: Arc<Config>, lookups: Arc<Lookups>, health: Health) {
    let Some(every) = config.lookup_refresh else { return };
    let connect = async || postgres::connect(&config.postgres, "dinnerbell lookups").await;
    lookups.refresh_forever(every, connect, |tables| report_lookups(&health, tables)).await;
}

fn announce(config: &Config, ready: &Ready) {
    let lookups: Vec<String> =
        ready.lookups.status().iter().map(|table| format!("{} ({} rows)", table.name, table.rows)).collect();
    tracing::info!(
        source = config.source.topic,
        partitions = ready.topics.partitions,
        group = config.source.group_id,
        kafka = config.source.kafka.get("bootstrap.servers").map_or("", String::as_str),
        postgres = config.postgres.display(),
        table = %config.sink_postgres.table,
        output = config.sink_kafka.topic,
        dead_letters = config.dead_letters.topic,
        lookups = lookups.join(", "),
        lanes = config.job.lanes,
        "dinnerbell is ringing"
    );
}

/// Waits for all lanes. The first error stops the others, which drain.
async fn join(mut lanes: JoinSet<Result<()>>, stop: &CancellationToken) -> Result<()> {
    let mut first = Ok(());
    while let Some(ended) = lanes.join_next().await {
        let ended = ended.unwrap_or_else(|failure| {
            Err(Error::Halt { what: format!("a lane ended abnormally: {failure}"), remedy: "please report it".into() })
        });
        if ended.is_err() && first.is_ok() {
            first = ended;
        }
        stop.cancel();
    }
    first
}
