//! What has to be right before the first message is read. `run` and `check` go through the same functions; `check` only
//! leaves out what writes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::engine::Engine;
use super::progress::LoadProgress;
use crate::config::{Config, Start};
use crate::decode::{self, CampaignSchema, Decoder};
use crate::encode::conform::Conform;
use crate::encode::copy;
use crate::error::{Error, Result};
use crate::kafka::{self, Asker};
use crate::ledger::ailment::ledger_lost;
use crate::ledger::claim::read_group_offsets;
use crate::ledger::decide;
use crate::ledger::store::{self, Ledger};
use crate::lookup::{self, LookupKeys, LookupSet, Lookups};
use crate::postgres::Connection;
use crate::sink::kafka::{Destination, QUEUE_KBYTES};
use crate::sink::postgres::CopyPlan;
use crate::sink::rows::RowProducer;
use crate::sink::table::{self, TableShape};
use crate::transform::{SqlFiles, Transform};

/// The broker's own default for `max.message.bytes`, where it does not tell.
pub const DEFAULT_MAX_MESSAGE_BYTES: usize = 1_048_588;

/// How long the first connection may take before the wait is told: whoever starts a job watches it.
const FIRST_ANSWER: Duration = Duration::from_secs(3);

/// What a dead letter needs beyond the message it holds: its headers.
pub const LETTER_ROOM: usize = 64 * 1024;

/// The SQL files, read and parsed as far as that goes without a server.
pub struct Mission {
    pub files: SqlFiles,
    pub campaigns: CampaignSchema,
}

impl Mission {
    pub fn load(config: &Config) -> Result<Mission> {
        let files = SqlFiles::load(&config.sql_directory)?;
        let campaigns = CampaignSchema::parse(&files.campaigns.path, &files.campaigns.text)?;
        Ok(Mission { files, campaigns })
    }
}

/// What Kafka says of the topics.
#[derive(Debug, Clone)]
pub struct Topics {
    pub cluster_id: String,
    pub topic_id: String,
    pub partitions: i32,
    pub source_max_bytes: usize,
    pub output_to: Destination,
    pub letters_to: Destination,
}

/// Clients of the one cluster that the job works on, by source's and by sink's properties: one client where they are equal.
/// Clones share them.
#[derive(Clone)]
pub struct Brokers {
    pub source: Arc<BaseConsumer<Asker>>,
    pub sink: Arc<BaseConsumer<Asker>>,
    pub cluster_id: String,
}

/// Asks both sides' brokers who they are; blocks for at most `limit` a side.
///
/// # Errors
/// [`Error::Halt`] for two clusters, [`Error::Kafka`] where no broker answers.
pub fn connect_kafka(config: &Config, limit: Duration) -> Result<Brokers> {
    let source = Arc::new(kafka::probe_within(&config.source.kafka, limit)?);
    let sink = match config.sink_kafka.kafka == config.source.kafka {
        true => source.clone(),
        false => Arc::new(kafka::probe_within(&config.sink_kafka.kafka, limit)?),
    };
    let (from, to) = (kafka::cluster_id(source.client())?, kafka::cluster_id(sink.client())?);
    if from != to {
        return Err(Error::Halt {
            what: format!("source and sink are two Kafka clusters ({from} and {to})"),
            remedy: "one transaction cannot span clusters: give [source.kafka] and [sink.kafka] the same brokers, and mirror \
                     the topic if it lives elsewhere"
                .into(),
        });
    }
    Ok(Brokers { source, sink, cluster_id: from })
}

/// As [`connect_kafka`], with the patience of whoever watches a start.
pub async fn brokers(config: &Arc<Config>) -> Result<Brokers> {
    let asked = config.clone();
    kafka::blocking(move || connect_kafka(&asked, FIRST_ANSWER)).await
}

/// Looks at the three topics: that they exist, and how large their messages may be.
///
/// # Errors
/// [`Error::Halt`] for a topic that is missing, [`Error::Kafka`] where no broker answers.
pub async fn inspect_topics(config: &Arc<Config>, brokers: Brokers) -> Result<Topics> {
    let asked = config.clone();
    let facts = kafka::blocking(move || {
        let Brokers { source, sink, cluster_id } = brokers;
        let partitions = kafka::partition_count(source.client(), &asked.source.topic)?;
        kafka::partition_count(sink.client(), &asked.sink_kafka.topic)?;
        kafka::partition_count(sink.client(), &asked.dead_letters.topic)?;
        Ok((cluster_id, kafka::topic_id(source.client(), &asked.source.topic)?, partitions))
    });
    let names = [&config.source.topic, &config.sink_kafka.topic, &config.dead_letters.topic];
    let topics = names.map(String::as_str);
    let (facts, limits) = tokio::join!(facts, max_message_bytes(config, &topics));
    let (cluster_id, topic_id, partitions) = facts?;
    let limits = limits.unwrap_or_else(|error| {
        tracing::warn!("{error}; Kafka's default is assumed");
        names.iter().map(|name| (name.to_string(), DEFAULT_MAX_MESSAGE_BYTES)).collect()
    });
    if let Some(untold) = untold(&limits, &topics) {
        tracing::warn!("{untold}: Kafka's default is assumed; grant DESCRIBE_CONFIGS on it");
    }
    let destination = |topic: &str| Destination {
        topic: topic.into(),
        max_record_bytes: limits.get(topic).copied().unwrap_or(DEFAULT_MAX_MESSAGE_BYTES),
    };
    let [source, output, letters] = names.map(|name| destination(name));
    Ok(Topics {
        cluster_id,
        topic_id,
        partitions,
        source_max_bytes: source.max_record_bytes,
        output_to: output,
        letters_to: letters,
    })
}

/// Says of which topics `limits` has nothing.
pub fn untold(limits: &BTreeMap<String, usize>, topics: &[&str]) -> Option<String> {
    let untold: Vec<&str> = topics.iter().copied().filter(|topic| !limits.contains_key(*topic)).collect();
    (!untold.is_empty())
        .then(|| format!("the broker does not tell this user max.message.bytes of {}", untold.join(", ")))
}

/// `max.message.bytes` by topic; without those of which the broker does not tell this user.
///
/// # Errors
/// [`Error::Kafka`] where it tells nothing at all.
pub async fn max_message_bytes(config: &Config, topics: &[&str]) -> Result<BTreeMap<String, usize>> {
    let admin: AdminClient<DefaultClientContext> = kafka::client_config(&config.sink_kafka.kafka, &[])
        .create()
        .map_err(Error::kafka("creating the admin client from [kafka] and [sink.kafka]"))?;
    let asked: Vec<ResourceSpecifier<'_>> = topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
    let (properties, any) = (config.sink_kafka.kafka.clone(), config.sink_kafka.topic.clone());
    let broker = kafka::blocking(move || kafka::answering_broker(kafka::probe(&properties)?.client(), &any)).await?;
    let options = AdminOptions::new().request_timeout(Some(kafka::CALL_TIMEOUT)).broker_id(broker);
    let answers = admin
        .describe_configs(&asked, &options)
        .await
        .map_err(Error::kafka("reading the topics' max.message.bytes"))?;
    let mut limits = BTreeMap::new();
    for (topic, answer) in topics.iter().zip(answers) {
        let value = answer.ok().and_then(|found| found.get("max.message.bytes")?.value.clone()?.parse().ok());
        limits.extend(value.map(|value: usize| (topic.to_string(), value)));
    }
    Ok(limits)
}

/// The producers' properties: the user's, with sizes that the topics take. librdkafka refuses larger messages than it is
/// told of, and brokers larger batches than their topic allows.
pub fn producer_properties(config: &Config, topics: &Topics) -> BTreeMap<String, String> {
    let limits = [topics.output_to.max_record_bytes, topics.letters_to.max_record_bytes];
    let largest = limits.into_iter().max().unwrap_or(DEFAULT_MAX_MESSAGE_BYTES);
    let batch = limits.into_iter().min().unwrap_or(DEFAULT_MAX_MESSAGE_BYTES).min(1_000_000);
    let mut properties = BTreeMap::clone(&config.sink_kafka.kafka);
    properties.entry("message.max.bytes".into()).or_insert_with(|| largest.clamp(1_000, 1_000_000_000).to_string());
    // Room for the largest record, or it would wait for ever.
    let queue = (largest as u64 / 512).max(QUEUE_KBYTES);
    properties.entry("queue.buffering.max.kbytes".into()).or_insert_with(|| queue.to_string());
    properties.entry("batch.size".into()).or_insert_with(|| batch.max(1).to_string());
    properties
}

/// The sink table, with its serial columns' headroom looked at.
pub async fn describe_table(config: &Config, postgres: &Connection) -> Result<TableShape> {
    let name = &config.sink_postgres.table;
    let shape = table::describe(postgres, &name.schema, &name.name).await?;
    let headroom = table::serial_headroom(postgres, &name.schema, &name.name).await?;
    for warning in table::judge_headroom(&headroom)? {
        tracing::warn!("{warning}");
    }
    Ok(shape)
}

/// Compiles the SQL against lookup tables and sink table: one engine, for one lane.
///
/// # Errors
/// [`Error::Sql`] with file, line and column.
pub async fn compile(
    config: &Config,
    mission: &Mission,
    lookups: &LookupSet,
    shape: &TableShape,
    topics: &Topics,
) -> Result<Engine> {
    let transform = compile_query(config, mission, lookups).await?;
    let conform = fit(config, mission, &transform, shape)?;
    let schema = conform.schema().clone();
    let columns: Vec<String> = schema.fields().iter().map(|field| field.name().clone()).collect();
    let copy = CopyPlan {
        statement: copy::statement(shape, &schema),
        table: shape.quoted(),
        schema: schema.clone(),
        types: conform.types().to_vec(),
    };
    Ok(Engine {
        decoder: decoder(config, mission),
        transform,
        conform,
        copy,
        columns,
        source_topic: config.source.topic.clone(),
        sql_hash: mission.files.hash(),
        output_to: topics.output_to.clone(),
        output_key: config.sink_kafka.key.clone(),
        letters_to: topics.letters_to.clone(),
    })
}

/// The decoder of the declared campaigns.
pub fn decoder(config: &Config, mission: &Mission) -> Decoder {
    Decoder::new(&mission.campaigns, decode::Limits { max_value_bytes: config.batch.max_bytes })
}

/// Compiles `triggers.sql` over campaigns and lookup tables.
pub async fn compile_query(config: &Config, mission: &Mission, lookups: &LookupSet) -> Result<Transform> {
    let schema = mission.campaigns.schema();
    let transform = Transform::compile(&mission.files, schema, lookups, config.memory_limit).await?;
    transform.limit_rows(config.max_rows);
    Ok(transform)
}

/// Checks the SELECT's columns against both sinks.
pub fn fit(config: &Config, mission: &Mission, transform: &Transform, shape: &TableShape) -> Result<Conform> {
    let conform =
        Conform::new(&transform.output_schema(), shape, &mission.files.triggers.path, |name| transform.place(name))?;
    // Finds a wrong [sink.kafka] key now, not at the first row.
    let to =
        Destination { topic: config.sink_kafka.topic.as_str().into(), max_record_bytes: DEFAULT_MAX_MESSAGE_BYTES };
    RowProducer::new(conform.schema(), to, config.sink_kafka.key.as_deref())?;
    Ok(conform)
}

/// Compiles the SQL against tables without rows, and says what it joins the lookup tables by: all that the SQL can be
/// blamed for shows here.
///
/// # Errors
/// As for [`compile`].
pub async fn check_sql(
    config: &Config,
    mission: &Mission,
    postgres: &Connection,
    shape: &TableShape,
) -> Result<LookupKeys> {
    let transform = compile_query(config, mission, &describe_lookups(mission, postgres).await?).await?;
    fit(config, mission, &transform, shape)?;
    Ok(transform.lookup_keys())
}

/// The lookup tables' columns, without rows: enough to compile the SQL.
pub async fn describe_lookups(mission: &Mission, postgres: &Connection) -> Result<LookupSet> {
    let mut tables = Vec::with_capacity(mission.files.lookups.len());
    for query in &mission.files.lookups {
        tables.push(lookup::describe(postgres, query).await?);
    }
    Ok(LookupSet::new(tables))
}

/// What `triggers.sql` joins the lookup tables by.
pub async fn lookup_keys(config: &Config, mission: &Mission, postgres: &Connection) -> Result<LookupKeys> {
    Ok(compile_query(config, mission, &describe_lookups(mission, postgres).await?).await?.lookup_keys())
}

/// Every lookup table as it is now, to be joined by `keys`.
pub async fn load_lookups(mission: &Mission, postgres: &Connection, keys: LookupKeys) -> Result<LookupSet> {
    let lookups = Lookups::new(mission.files.lookups.clone(), keys);
    load(&lookups, postgres).await?;
    Ok(lookups.current().await)
}

/// The first load, shown to whoever waits for it.
pub async fn load(lookups: &Lookups, postgres: &Connection) -> Result<()> {
    let mut progress = LoadProgress::new();
    lookups.load(postgres, |name, rows, bytes| progress.show(name, rows, bytes)).await?;
    progress.end();
    Ok(())
}

/// Opens the ledger, and registers all partitions at once at the first start of this group on this topic: from then on it
/// says where the job begins.
///
/// # Errors
/// [`Error::Halt`] where Kafka holds offsets for a group that the ledger doesn't know, unless `start = "committed"`.
pub async fn open_ledger(config: &Arc<Config>, topics: &Topics) -> Result<Ledger> {
    let postgres = store::connect(&config.postgres).await?;
    store::create(&postgres, &config.ledger_schema).await?;
    let (group, topic) = (&config.source.group_id, &config.source.topic);
    let (cluster, topic_id) = (&topics.cluster_id, &topics.topic_id);
    let ledger = Ledger::open(&postgres, &config.ledger_schema, cluster, group, topic, topic_id).await?;
    if ledger.registered(&postgres).await?.is_empty() {
        if ledger.has_parts(&postgres).await? {
            return Err(ledger_lost(group, &ledger.job, &ledger.job));
        }
        let (asked, count, job) = (config.clone(), topics.partitions, ledger.job.clone());
        let starts = kafka::blocking(move || first_offsets(&asked, count, Some(&job))).await?;
        ledger.register(&postgres, &starts).await?;
        tracing::info!(group, topic, ?starts, "first start: partitions registered in the ledger");
    }
    Ok(ledger)
}

/// Whether anybody is in the group now. Where Kafka doesn't say, somebody may be.
pub async fn group_has_members(config: &Config, brokers: &Brokers) -> bool {
    let (source, group) = (brokers.source.clone(), config.source.group_id.clone());
    match kafka::blocking(move || kafka::group_members(source.client(), &group)).await {
        Ok(members) => !members.is_empty(),
        Err(error) => {
            tracing::debug!("{error}");
            true
        }
    }
}

/// A consumer that asks for the group's offsets and never joins it.
pub fn group_reader(config: &Config) -> Result<BaseConsumer> {
    kafka::client_config(
        &config.source.kafka,
        &[
            ("group.id", &config.source.group_id),
            ("isolation.level", "read_committed"),
            ("enable.auto.commit", "false"),
        ],
    )
    .create()
    .map_err(Error::kafka("creating a consumer from [kafka] and [source.kafka]"))
}

/// Where each partition starts, by `[source] start`. Blocks; joins no group and commits nothing. `job` is the ledger's
/// id, if there is a ledger.
///
/// # Errors
/// As for [`open_ledger`].
pub fn first_offsets(config: &Config, partitions: i32, job: Option<&str>) -> Result<Vec<(i32, i64)>> {
    let (topic, group) = (&config.source.topic, &config.source.group_id);
    let consumer = group_reader(config)?;
    let committed = read_group_offsets(&consumer, topic, &(0..partitions).collect::<Vec<_>>())?;
    // Whatever the settings say: these offsets are half of a state whose other half was in a ledger.
    if let Some(writer) = committed.values().find_map(|kafka| decide::writer(&kafka.metadata)) {
        return Err(ledger_lost(group, job.unwrap_or("not there yet"), writer));
    }
    if !committed.is_empty() && config.source.start != Start::Committed {
        return Err(Error::Halt {
            what: format!("group {group} has offsets in Kafka, but the ledger knows nothing of it"),
            remedy: "if another job left them and this one shall go on from there, set [source] start = \"committed\"; otherwise \
                     choose another [source] group_id. If this job had a ledger, find out where it went first"
                .into(),
        });
    }
    (0..partitions)
        .map(|partition| {
            let (low, high) = consumer
                .fetch_watermarks(topic, partition, kafka::CALL_TIMEOUT)
                .map_err(Error::kafka(format!("reading the first and last offset of {topic}[{partition}]")))?;
            let start = match config.source.start {
                Start::Earliest => low,
                Start::Latest => high,
                Start::Committed => committed.get(&partition).map_or(low, |kafka| kafka.offset),
            };
            Ok((partition, start))
        })
        .collect()
}
