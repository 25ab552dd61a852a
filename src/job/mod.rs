//! The job: sets everything up, runs one loop per lane, and ends when it is told to or when a person is needed.

pub mod setup;

mod commit;
mod engine;
mod lane;
mod lookups;
pub(crate) mod output;
mod parts;
mod progress;
mod refusal;
mod stream;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::config::Config;
use crate::error::{Action, Error, Result};
use crate::ledger::claim::Claimant;
use crate::ledger::store::{self, Ledger};
use crate::lookup::{LookupKeys, LookupStatus, Lookups};
use crate::sink::table::TableShape;
use crate::source::Source;
use crate::telemetry::{Health, Telemetry};

use engine::Blueprint;
pub use engine::Engine;
use lane::Lane;
use setup::{Brokers, Mission, Topics};

/// Runs until `stop` is cancelled (then all lanes drain) or something needs a person.
///
/// # Errors
/// The first error that no waiting can mend; the other lanes are drained first.
pub async fn run(config: Config, stop: CancellationToken) -> Result<()> {
    let mission = Mission::load(&config)?;
    let config = Arc::new(config);
    let telemetry = Telemetry::start(config.admin_listen, config.job.lanes).await?;
    let result = ring(&config, mission, &telemetry.health, &stop).await;
    telemetry.stop().await;
    result
}

async fn ring(config: &Arc<Config>, mission: Mission, health: &Health, stop: &CancellationToken) -> Result<()> {
    let looked = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        looked = patiently(|| look(config, &mission), |reason| health.all_waiting(reason)) => looked?,
    };
    let mut tasks = JoinSet::new();
    let lookups = Arc::new(Lookups::new(mission.files.lookups.clone(), looked.keys));
    tasks.spawn(lookups::keep(config.clone(), lookups.clone(), health.clone(), stop.clone()));
    let opened = tokio::select! {
        opened = open(config, &looked.brokers, &lookups, health) => opened?,
        // Stopped, or the tables can't be loaded.
        Some(ended) = tasks.join_next() => return whole(ended),
    };
    let (topics, ledger) = opened;
    let blueprint = Arc::new(Blueprint { config: config.clone(), mission, shape: looked.shape, topics });
    start_lanes(&blueprint, &ledger, &lookups, health, stop, &mut tasks)?;
    tasks.spawn(watch::topics(config.clone(), ledger, looked.brokers, stop.clone()));
    let announced = async {
        tokio::select! {
            _ = lookups.current() => announce(&blueprint, &lookups.status()),
            () = stop.cancelled() => {}
        }
    };
    tokio::join!(join(tasks, stop), announced).0
}

/// What is known before anything is loaded or written.
struct Looked {
    brokers: Brokers,
    shape: TableShape,
    keys: LookupKeys,
}

async fn look(config: &Arc<Config>, mission: &Mission) -> Result<Looked> {
    let (postgres, brokers) = tokio::try_join!(store::connect(&config.postgres), setup::brokers(config))?;
    let shape = setup::describe_table(config, &postgres).await?;
    // Everything the SQL can be blamed for comes before millions of rows are loaded and the ledger says where the job begins.
    let keys = setup::check_sql(config, mission, &postgres, &shape).await?;
    Ok(Looked { brokers, shape, keys })
}

/// Opens the ledger, while Postgres makes the lookup tables' rows. Returns once the lanes may join the group.
async fn open(
    config: &Arc<Config>,
    brokers: &Brokers,
    lookups: &Lookups,
    health: &Health,
) -> Result<(Topics, Arc<Ledger>)> {
    let opening = || async {
        let topics = setup::inspect_topics(config, brokers.clone()).await?;
        let ledger = setup::open_ledger(config, &topics).await?;
        Ok((topics, Arc::new(ledger)))
    };
    let opened = patiently(opening, |reason| health.all_waiting(reason)).await?;
    // Lanes that join before they can work take partitions from those who do.
    let nobody_else = async {
        if setup::group_has_members(config, brokers).await {
            tracing::info!("other members may be at work: this one joins the group once its lookup tables are there");
            health.all_waiting("waiting for the lookup tables");
            std::future::pending().await
        }
    };
    tokio::select! {
        _ = lookups.current() => {}
        () = nobody_else => {}
    }
    Ok(opened)
}

fn start_lanes(
    blueprint: &Arc<Blueprint>,
    ledger: &Arc<Ledger>,
    lookups: &Arc<Lookups>,
    health: &Health,
    stop: &CancellationToken,
    tasks: &mut JoinSet<Result<()>>,
) -> Result<()> {
    let Blueprint { config, topics, .. } = blueprint.as_ref();
    let process = Uuid::new_v4();
    let producer = Arc::new(setup::producer_properties(config, topics));
    for number in 0..config.job.lanes {
        let source = Source::open(config, number, topics.partitions)?;
        let claimant = Claimant {
            config: config.clone(),
            producer: producer.clone(),
            ledger: ledger.clone(),
            transactional_ids: [0, 1].map(|k| format!("{}.{process}.{number}.{k}", config.source.group_id)),
            consumer: source.consumer(),
        };
        let lane = Lane {
            blueprint: blueprint.clone(),
            engine: None,
            claimant,
            source,
            number,
            lookups: lookups.clone(),
            health: health.clone(),
            stop: stop.clone(),
            outage: lane::Outage::default(),
            refused: None,
        };
        tasks.spawn(lane.run());
    }
    Ok(())
}

/// Tries until it works, waiting for servers that are away. `waiting` is told why, each time.
///
/// # Errors
/// What no waiting can mend.
async fn patiently<T, F>(mut attempt: impl FnMut() -> F, waiting: impl Fn(&str)) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let mut delays = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(200))
        .with_max_delay(Duration::from_secs(10))
        .with_jitter()
        .without_max_times()
        .build();
    let mut told = false;
    loop {
        let error = match attempt().await {
            Ok(done) => return Ok(done),
            Err(error) if error.action() == Action::Halt => return Err(error),
            Err(error) => error,
        };
        waiting(&error.to_string());
        if told {
            tracing::debug!("still waiting: {error}");
        } else {
            tracing::warn!("waiting to start: {error}; trying again with backoff until it works");
        }
        told = true;
        tokio::time::sleep(delays.next().unwrap_or(Duration::from_secs(10))).await;
    }
}

fn announce(blueprint: &Blueprint, lookups: &[LookupStatus]) {
    let Blueprint { config, topics, .. } = blueprint;
    let lookups: Vec<String> = lookups.iter().map(|table| format!("{} ({} rows)", table.name, table.rows)).collect();
    tracing::info!(
        source = config.source.topic,
        partitions = topics.partitions,
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

/// Waits for all tasks. The first that ends stops the others; lanes drain.
async fn join(mut tasks: JoinSet<Result<()>>, stop: &CancellationToken) -> Result<()> {
    let mut first = Ok(());
    while let Some(ended) = tasks.join_next().await {
        let ended = whole(ended);
        if ended.is_err() && first.is_ok() {
            first = ended;
        }
        stop.cancel();
    }
    first
}

/// How a task ended.
fn whole(ended: std::result::Result<Result<()>, JoinError>) -> Result<()> {
    ended.unwrap_or_else(|failure| {
        Err(Error::Halt { what: format!("a task ended abnormally: {failure}"), remedy: "please report it".into() })
    })
}
