//! From a document to a [`Config`]: each value, then what pairs of values must keep to.

use std::fmt::Display;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;

use super::document::{Document, Section, Setting};
use super::values::is_plain_identifier;
use super::{
    Batch, Config, DEFAULT_MAX_ROWS, DeadLetters, Job, KafkaProperties, KafkaSink, PostgresSettings, PostgresSink,
    Secret, Source, kafka,
};
use crate::{Error, Result};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;

const DEFAULT_SERVERS: &str = r#"[kafka]
"bootstrap.servers" = "${KAFKA_BOOTSTRAP_SERVERS:-localhost:9092}"
"#;

pub fn resolve(document: Document) -> Result<Config> {
    let mut root = document.root()?;

    let mut common = root.section("kafka")?.properties()?;
    kafka::check(&common, &[])?;
    if !common.contains_key("bootstrap.servers") {
        let defaults = Document { text: DEFAULT_SERVERS, file: Path::new("the defaults"), ..document };
        common.extend(defaults.root()?.section("kafka")?.properties()?);
    }

    let postgres = postgres(root.section("postgres")?)?;

    let mut source = root.section("source")?;
    let source_topic = topic(source.text("topic", "campaigns")?)?;
    let group_id = name(source.text("group_id", "dinnerbell")?)?;
    let start = parsed(source.text("start", "earliest")?, "write \"earliest\", \"latest\" or \"committed\"")?;
    let source_kafka = source.section("kafka")?.properties()?;
    kafka::check(&source_kafka, &[])?;
    source.finish()?;

    let mut sink = root.section("sink")?;
    let mut sink_postgres = sink.section("postgres")?;
    let table = parsed(
        sink_postgres.text("table", "public.subscribers_feedback")?,
        "name the schema and the table, such as \"public.subscribers_feedback\"",
    )?;
    sink_postgres.finish()?;
    let mut sink_kafka = sink.section("kafka")?;
    sink.finish()?;
    // `topic.metadata.refresh.interval.ms`, unquoted, is a table named `topic`: a property, not the topic.
    let sink_topic = if sink_kafka.has_value("topic") { sink_kafka.text("topic", "")? } else { sink_topic_default() };
    let sink_topic = topic(sink_topic)?;
    let key = optional(sink_kafka.text("key", "")?);
    let sink_kafka = sink_kafka.properties()?;
    kafka::check(&sink_kafka, &["topic", "key"])?;

    let mut dead_letters = root.section("dead_letters")?;
    let dead_letter_topic = topic(dead_letters.text("topic", "campaigns.dead_letters")?)?;
    dead_letters.finish()?;
    three_topics(&source_topic, &sink_topic, &dead_letter_topic)?;

    let source_kafka = KafkaProperties::merged(&common, &source_kafka);
    let sink_kafka = KafkaProperties::merged(&common, &sink_kafka);
    one_cluster(&source_kafka, &sink_kafka)?;

    let (memory_limit, max_rows) = transform(root.section("transform")?)?;
    let config = Config {
        source: Source { topic: source_topic.value, group_id, start, kafka: source_kafka },
        sink_kafka: KafkaSink { topic: sink_topic.value, key, kafka: sink_kafka },
        sink_postgres: PostgresSink { table },
        postgres,
        dead_letters: DeadLetters { topic: dead_letter_topic.value },
        sql_directory: sql_directory(root.section("sql")?, document.file)?,
        lookup_refresh: lookup_refresh(root.section("lookup")?)?,
        batch: batch(root.section("batch")?)?,
        job: job(root.section("job")?)?,
        ledger_schema: ledger_schema(root.section("ledger")?)?,
        admin_listen: admin_listen(root.section("admin")?)?,
        memory_limit,
        max_rows,
    };
    root.finish()?;
    Ok(config)
}

fn postgres(mut section: Section) -> Result<PostgresSettings> {
    let url = section.text("url", "${DATABASE_URL:-postgres://localhost/postgres}")?;
    section.finish()?;
    // The problem is told without the text: it holds the password.
    PostgresSettings::parse(Secret::new(url.value.clone())).map_err(|problem| {
        url.refuse(problem, "write postgres://user:password@host:5432/database or host=... user=...")
    })
}

fn sink_topic_default() -> Setting<String> {
    Setting { key: "sink.kafka.topic".into(), place: "the default".into(), value: "triggers".into() }
}

fn sql_directory(mut section: Section, file: &Path) -> Result<PathBuf> {
    let directory = section.text("directory", "sql")?;
    section.finish()?;
    if directory.value.is_empty() {
        return Err(directory.refuse("must not be empty", "name the directory that holds triggers.sql"));
    }
    Ok(file.parent().unwrap_or(Path::new("")).join(directory.value))
}

fn lookup_refresh(mut section: Section) -> Result<Option<Duration>> {
    let text = section.text("refresh", "5m")?;
    section.finish()?;
    if text.value == "never" {
        return Ok(None);
    }
    let hint = "write a time such as \"30s\", \"5m\" or \"1h 30m\", at least \"1s\", or \"never\"";
    let refresh = humantime::parse_duration(&text.value)
        .map_err(|error| text.refuse(format!("{:?} is no duration: {error}", text.value), hint))?;
    if refresh < Duration::from_secs(1) {
        return Err(text.refuse(format!("must be at least 1s, and is {}", text.value), hint));
    }
    Ok(Some(refresh))
}

fn batch(mut section: Section) -> Result<Batch> {
    let max_messages = section.integer("max_messages", 100_000, 1..=10_000_000)?.value;
    let max_bytes = size(section.text("max_bytes", "64MiB")?, KIB, GIB)?;
    section.finish()?;
    Ok(Batch { max_messages, max_bytes })
}

fn job(mut section: Section) -> Result<Job> {
    let instance = section.text("instance", "")?;
    let instance = if instance.value.is_empty() { None } else { Some(name(instance)?) };
    let lanes = section.integer("lanes", 1, 1..=64)?.value;
    section.finish()?;
    Ok(Job { instance, lanes })
}

fn ledger_schema(mut section: Section) -> Result<String> {
    let schema = section.text("schema", "dinnerbell")?;
    section.finish()?;
    if !is_plain_identifier(&schema.value) || schema.value.starts_with("pg_") {
        return Err(schema.refuse(
            format!("{:?} cannot name the ledger's schema", schema.value),
            "use lower-case letters, digits and `_`, not a digit first, not `pg_` first, at most 63 characters",
        ));
    }
    Ok(schema.value)
}

fn admin_listen(mut section: Section) -> Result<Option<SocketAddr>> {
    let listen = section.text("listen", "127.0.0.1:9464")?;
    section.finish()?;
    if listen.value.is_empty() {
        return Ok(None);
    }
    let hint = "write an IP address and a port, such as \"127.0.0.1:9464\" or \"0.0.0.0:9464\", or \"\" for none";
    parsed(listen, hint).map(Some)
}

fn transform(mut section: Section) -> Result<(usize, usize)> {
    // Below 16 MiB not even one batch of 8192 rows is sure to fit; the ceiling only catches a wrong unit.
    let memory = size(section.text("memory", "512MiB")?, 16 * MIB, 1024 * GIB)?;
    let most = section.integer("max_rows", DEFAULT_MAX_ROWS, 1..=1_000_000_000_000)?.value;
    section.finish()?;
    Ok((memory, most))
}

fn size(text: Setting<String>, least: u64, most: u64) -> Result<usize> {
    let (low, high) = (ByteSize(least).display().iec(), ByteSize(most).display().iec());
    let hint = format!("write a size such as \"64MiB\" or \"1GB\", from {low} to {high}");
    let size: ByteSize =
        text.value.parse().map_err(|_| text.refuse(format!("{:?} is no size in bytes", text.value), hint.as_str()))?;
    if !(least..=most).contains(&size.0) {
        return Err(text.refuse(format!("must be from {low} to {high}, and is {}", text.value), hint));
    }
    Ok(size.0 as usize)
}

/// A value that its own type reads, with the type's own complaint.
fn parsed<T>(text: Setting<String>, remedy: &str) -> Result<T>
where
    T: FromStr,
    T::Err: Display,
{
    text.value.parse().map_err(|error: T::Err| text.refuse(format!("{:?} will not do: {error}", text.value), remedy))
}

fn optional(text: Setting<String>) -> Option<String> {
    Some(text.value).filter(|value| !value.is_empty())
}

/// A topic's name, by Kafka's own rule.
fn topic(text: Setting<String>) -> Result<Setting<String>> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let name = text.value.as_str();
    if name.is_empty() || name.len() > 249 || name == "." || name == ".." || !name.chars().all(legal) {
        return Err(text
            .refuse(format!("{name:?} cannot name a topic"), "use 1 to 249 ASCII letters, digits, `.`, `_` and `-`"));
    }
    Ok(text)
}

/// A name that goes into ids and logs: not empty, and on one line.
fn name(text: Setting<String>) -> Result<String> {
    if text.value.trim().is_empty() || text.value.len() > 200 || text.value.chars().any(char::is_control) {
        return Err(text.refuse(
            format!("{:?} will not do as a name", text.value),
            "use 1 to 200 characters, none of them a control character",
        ));
    }
    Ok(text.value)
}

fn three_topics(source: &Setting<String>, sink: &Setting<String>, dead: &Setting<String>) -> Result<()> {
    for (one, other) in [(sink, source), (dead, source), (dead, sink)] {
        if one.value == other.value {
            return Err(one.refuse(
                format!("{:?} is {} too", one.value, other.key),
                "campaigns, triggers and dead letters need a topic each",
            ));
        }
    }
    Ok(())
}

/// One transaction carries the rows and the source's offsets, so both must be one cluster. Two lists that share an
/// address are taken to be; the cluster ids are compared once connected.
fn one_cluster(source: &KafkaProperties, sink: &KafkaProperties) -> Result<()> {
    let (read, written) = (source.bootstrap_servers(), sink.bootstrap_servers());
    let refuse = |key: &str, problem: &dyn Display| Error::Setting {
        key: key.into(),
        problem: problem.to_string(),
        remedy: "set \"bootstrap.servers\" once, under [kafka]".into(),
    };
    if read.is_empty() || written.is_empty() {
        return Err(refuse("kafka.\"bootstrap.servers\"", &"names no server"));
    }
    if read.is_disjoint(&written) {
        return Err(refuse(
            "sink.kafka.\"bootstrap.servers\"",
            &"names other servers than the source's: rows and offsets share a transaction, so it must be one cluster",
        ));
    }
    Ok(())
}
