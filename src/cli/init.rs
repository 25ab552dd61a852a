//! `dinnerbell init`: creates what is missing, and leaves alone what is there.
//!
//! Promises: run twice, or several at once, it does the same as run once. Does not change topics or tables that are
//! there, and registers nothing in the ledger: where a group begins is decided at its first `run`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::Consumer;
use rdkafka::error::RDKafkaErrorCode;
use tokio_postgres::Client;
use tokio_postgres::error::ErrorPosition;

use super::check::letter_room;
use super::report::{Report, plural};
use crate::config::{Config, KafkaProperties};
use crate::error::{Error, Result};
use crate::job::setup::{self, Brokers, DEFAULT_MAX_MESSAGE_BYTES, LETTER_ROOM};
use crate::kafka;
use crate::ledger::store;

/// One `init` at a time in a database: `CREATE TABLE IF NOT EXISTS` fails for one of two that run at once.
const INIT_LOCK: i64 = 0x62656c6c; // "bell"

/// How long a broker may take to show a topic that it has just made.
const APPEARS_WITHIN: Duration = Duration::from_secs(10);

/// Creates topics, tables and ledger; each of the three is tried whatever became of the others.
pub async fn run(config: Config) -> Result<()> {
    let (config, mut report) = (Arc::new(config), Report::new("init"));
    if let Err(error) = topics(&mut report, &config).await {
        report.fail("topics", &error);
    }
    match store::connect(&config.postgres).await {
        Err(error) => report.fail("Postgres", &error),
        Ok(postgres) => {
            if let Err(error) = tables(&mut report, &config, &postgres).await {
                report.fail("tables", &error);
            }
            if let Err(error) = ledger(&mut report, &config, &postgres).await {
                report.fail("ledger", &error);
            }
            // The DDL may have made other tables than the settings name.
            if let Err(error) = setup::describe_table(&config, &postgres).await {
                report.fail("sink table", &error);
            }
        }
    }
    report.end("All is there; `dinnerbell check` proves that it fits together")
}

/// What `init` would run, as a script for psql with Kafka's commands in comments. Asks no server.
pub fn print(config: &Config) -> Result<()> {
    let mut script = topic_commands(config);
    for file in ddl_files(config)? {
        script.push_str(&format!("\n-- {}\n{}\n", file.display(), read(&file)?.trim_end()));
    }
    script.push_str(&format!("\n-- the ledger, [ledger] schema\n{}", store::ddl(&config.ledger_schema)));
    super::say(script.trim_end())
}

fn topic_commands(config: &Config) -> String {
    let servers = |properties: &KafkaProperties| properties.get("bootstrap.servers").cloned().unwrap_or_default();
    let create = |properties, topic: &str| {
        format!(
            "-- kafka-topics.sh --bootstrap-server {} --create --if-not-exists --topic {topic}",
            servers(properties)
        )
    };
    format!(
        "-- Topics, with the brokers' defaults for partitions and replicas. The one of dead letters takes the largest message\n\
         -- of {} and {LETTER_ROOM} bytes of headers: raise the number where that topic's max.message.bytes is not the default.\n\
         {}\n{}\n{} --config max.message.bytes={}\n",
        config.source.topic,
        create(&config.source.kafka, &config.source.topic),
        create(&config.sink_kafka.kafka, &config.sink_kafka.topic),
        create(&config.sink_kafka.kafka, &config.dead_letters.topic),
        DEFAULT_MAX_MESSAGE_BYTES + LETTER_ROOM,
    )
}

async fn topics(report: &mut Report, config: &Arc<Config>) -> Result<()> {
    let asked = config.clone();
    let brokers = Arc::new(kafka::blocking(move || setup::connect_kafka(&asked, kafka::CALL_TIMEOUT)).await?);
    let (source, output, letters) = (&config.source.topic, &config.sink_kafka.topic, &config.dead_letters.topic);
    create_topic(report, &brokers, &config.source.kafka, source, None).await?;
    create_topic(report, &brokers, &config.sink_kafka.kafka, output, None).await?;
    let limits = setup::max_message_bytes(config, &[source]).await.unwrap_or_default();
    let largest = limits.get(source).copied().unwrap_or(DEFAULT_MAX_MESSAGE_BYTES) + LETTER_ROOM;
    if !create_topic(report, &brokers, &config.sink_kafka.kafka, letters, Some(largest)).await? {
        // One that was there may be too small, and stays as it is.
        letter_room(report, config).await;
    }
    Ok(())
}

/// Whether it was created; a line says which.
async fn create_topic(
    report: &mut Report,
    brokers: &Arc<Brokers>,
    properties: &KafkaProperties,
    topic: &str,
    max_message_bytes: Option<usize>,
) -> Result<bool> {
    if let Some(partitions) = partitions(brokers, topic).await? {
        report.line("there", "topic", format!("{topic}: {}", plural(partitions as u64, "partition")));
        return Ok(false);
    }
    let admin: AdminClient<DefaultClientContext> = kafka::client_config(properties, &[])
        .create()
        .map_err(Error::kafka("creating the admin client from [kafka]"))?;
    let bytes = max_message_bytes.map(|bytes| bytes.to_string());
    // -1: the brokers' own defaults.
    let mut new = NewTopic::new(topic, -1, TopicReplication::Fixed(-1));
    if let Some(bytes) = &bytes {
        new = new.set("max.message.bytes", bytes);
    }
    let options =
        AdminOptions::new().request_timeout(Some(kafka::CALL_TIMEOUT)).operation_timeout(Some(APPEARS_WITHIN));
    let doing = || Error::kafka(format!("creating the topic {topic}"));
    let answers = admin.create_topics([&new], &options).await.map_err(doing())?;
    let mut made = true;
    for answer in answers {
        match answer {
            Ok(_) => {}
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => made = false,
            Err((_, code)) => return Err(doing()(rdkafka::error::KafkaError::AdminOp(code))),
        }
    }
    let partitions = wait_for(brokers, topic).await?;
    let size = bytes.map_or(String::new(), |bytes| format!(", max.message.bytes={bytes}"));
    let text = format!("{topic}: {}", plural(partitions as u64, "partition"));
    match made {
        true => report.line("made", "topic", text + &size),
        false => report.line("there", "topic", text),
    }
    Ok(made)
}

async fn wait_for(brokers: &Arc<Brokers>, topic: &str) -> Result<i32> {
    let deadline = tokio::time::Instant::now() + APPEARS_WITHIN;
    loop {
        match partitions(brokers, topic).await? {
            Some(partitions) => return Ok(partitions),
            None if tokio::time::Instant::now() > deadline => return Err(kafka::missing_topic(topic)),
            None => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// How many partitions the topic has, if it is there.
async fn partitions(brokers: &Arc<Brokers>, topic: &str) -> Result<Option<i32>> {
    let (brokers, topic) = (brokers.clone(), topic.to_owned());
    let counted = kafka::blocking(move || kafka::partition_count(brokers.sink.client(), &topic)).await;
    match counted {
        Ok(partitions) => Ok(Some(partitions)),
        Err(Error::Halt { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The files of `sql/postgres`, in the order of their names.
fn ddl_files(config: &Config) -> Result<Vec<PathBuf>> {
    let directory = config.sql_directory.join("postgres");
    let doing = || Error::io(format!("reading {}", directory.display()));
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(doing()(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(doing())?.path();
        if path.extension().is_some_and(|extension| extension == "sql") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).map_err(Error::io(format!("reading {}", file.display())))
}

/// Runs the DDL of `sql/postgres` under a lock, and tells by the catalog what it made.
async fn tables(report: &mut Report, config: &Config, postgres: &Client) -> Result<()> {
    let files = ddl_files(config)?;
    if files.is_empty() {
        report.line("there", "tables", format!("no {}/postgres/*.sql to run", config.sql_directory.display()));
        return Ok(());
    }
    let doing = || Error::postgres("waiting for another `init`");
    postgres.execute("SELECT pg_advisory_lock($1)", &[&INIT_LOCK]).await.map_err(doing())?;
    let outcome = run_ddl(report, postgres, &files).await;
    let unlocked = postgres.execute("SELECT pg_advisory_unlock($1)", &[&INIT_LOCK]).await.map_err(doing());
    outcome.and(unlocked.map(drop))
}

async fn run_ddl(report: &mut Report, postgres: &Client, files: &[PathBuf]) -> Result<()> {
    let mut before = relations(postgres).await?;
    for file in files {
        let text = read(file)?;
        postgres.batch_execute(&text).await.map_err(|error| refused(file, &text, error))?;
        let after = relations(postgres).await?;
        let made: Vec<&str> = after.difference(&before).map(String::as_str).collect();
        match made.as_slice() {
            [] => report.line("there", "tables", format!("{} made nothing new", file.display())),
            made => report.line("made", "tables", format!("{} by {}", made.join(", "), file.display())),
        }
        before = after;
    }
    Ok(())
}

/// Tables, views and their like of this database, but for the system's own.
async fn relations(postgres: &Client) -> Result<BTreeSet<String>> {
    let sql = "SELECT format('%I.%I', n.nspname, c.relname) \
               FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
               WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'";
    let rows = postgres.query(sql, &[]).await.map_err(Error::postgres("listing the tables"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// What Postgres says of a statement is the file's error; a missing right or a broken connection is not.
fn refused(file: &Path, text: &str, error: tokio_postgres::Error) -> Error {
    let position = error.as_db_error().and_then(|db| match db.position() {
        Some(ErrorPosition::Original(position)) => {
            Some((*position as usize, db.message().to_owned(), db.code().code().to_owned()))
        }
        _ => None,
    });
    let Some((position, message, code)) = position.filter(|(.., code)| code != "42501") else {
        return Error::postgres(format!("running {}", file.display()))(error);
    };
    let before: String = text.chars().take(position.saturating_sub(1)).collect();
    let column = before.chars().rev().take_while(|c| *c != '\n').count() as u64 + 1;
    Error::Sql {
        file: file.to_owned(),
        line: Some(1 + before.matches('\n').count() as u64),
        column: Some(column),
        problem: format!("Postgres says: {message} (SQLSTATE {code})"),
        remedy: "correct the file; it runs in Postgres, as the job's user".into(),
    }
}

async fn ledger(report: &mut Report, config: &Config, postgres: &Client) -> Result<()> {
    let exists = async || -> Result<bool> {
        let sql = "SELECT EXISTS (SELECT FROM pg_catalog.pg_tables WHERE schemaname = $1 AND tablename = 'letters')";
        let row = postgres.query_one(sql, &[&config.ledger_schema]).await;
        row.map(|row| row.get(0)).map_err(Error::postgres("looking for the ledger"))
    };
    let was_there = exists().await?;
    store::create(postgres, &config.ledger_schema).await?;
    report.line(if was_there { "there" } else { "made" }, "ledger", format!("schema {}", config.ledger_schema));
    Ok(())
}
