//! What there is: ledger, group, topics and stored batches, as one picture. Only reads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::config::{Config, Start, quote_identifier};
use crate::error::{Error, Result};
use crate::job::setup::{self, Brokers};
use crate::kafka;
use crate::ledger::claim::{read_group_offsets, watermarks};
use crate::ledger::decide::{KafkaOffset, Seen};
use crate::ledger::repairs::Row;
use crate::ledger::replay;
use crate::ledger::store::{self, Ledger, PartHead};
use crate::postgres::Connection;

/// The servers, as long as the repair lasts.
pub struct Site {
    pub config: Arc<Config>,
    pub postgres: Connection,
    /// Asks for offsets and never joins.
    pub reader: Arc<BaseConsumer>,
    pub cluster_id: String,
    /// The last owners' transactions are over: from here on one that is still open is in the way.
    pub fenced: AtomicBool,
}

impl Site {
    /// # Errors
    /// Where a server does not answer.
    pub async fn connect(config: Config) -> Result<Site> {
        let config = Arc::new(config);
        let postgres = store::connect(&config.postgres).await?;
        let asked = config.clone();
        let (cluster_id, reader) = kafka::blocking(move || {
            let Brokers { cluster_id, .. } = setup::connect_kafka(&asked, kafka::CALL_TIMEOUT)?;
            Ok((cluster_id, setup::group_reader(&asked)?))
        })
        .await?;
        Ok(Site { config, postgres, reader: Arc::new(reader), cluster_id, fenced: AtomicBool::new(false) })
    }
}

/// How much of the ledger there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Books {
    Whole,
    /// Tables, but no row that says whose they are.
    WithoutIdentity,
    None,
}

/// All that findings are made from.
#[derive(Debug, Clone)]
pub struct Picture {
    pub group: String,
    pub topic: String,
    pub start: Start,
    pub books: Books,
    /// The ledger's id; "" without one.
    pub job: String,
    /// Id and number of partitions, if the input topic is there.
    pub source: Option<(String, i32)>,
    pub missing_topics: Vec<String>,
    /// Progress of the group, of this topic and of earlier ones of its name.
    pub rows: Vec<Row>,
    /// Stored batches of the present topic, and of earlier ones.
    pub parts: Vec<PartHead>,
    pub old_parts: Vec<PartHead>,
    pub offsets: BTreeMap<i32, KafkaOffset>,
    pub marks: BTreeMap<i32, (i64, i64)>,
    /// Unconfirmed batches that cannot be read, and why.
    pub unreadable: Vec<(PartHead, String)>,
    pub members: Vec<String>,
}

impl Picture {
    /// The picture of one registered partition.
    pub fn seen(&self, partition: i32) -> Option<Seen> {
        let (id, _) = self.source.as_ref()?;
        let row = self.rows.iter().find(|row| row.partition == partition && row.topic_id == *id)?;
        let (low, high) = self.marks.get(&partition).copied().unwrap_or_default();
        Some(Seen {
            progress: row.progress.clone(),
            parts: self.parts.iter().filter(|part| part.partition == partition).cloned().collect(),
            kafka: self.offsets.get(&partition).cloned(),
            low,
            high,
        })
    }

    pub fn is_unreadable(&self, part: &PartHead) -> bool {
        let same = |other: &PartHead| (other.commit_id, other.partition) == (part.commit_id, part.partition);
        self.unreadable.iter().any(|(other, _)| same(other))
    }

    /// Earlier topics of the same name that the ledger knows.
    pub fn old_topics(&self) -> BTreeSet<&str> {
        let now = self.source.as_ref().map_or("", |source| source.0.as_str());
        self.rows.iter().map(|row| row.topic_id.as_str()).filter(|id| *id != now).collect()
    }
}

/// Looks at everything.
///
/// # Errors
/// Where a server does not answer, or does not let us look.
pub async fn inspect(site: &Site) -> Result<(Picture, Option<Ledger>)> {
    let config = &site.config;
    let (source, missing_topics) = topics(site).await?;
    let partitions: Vec<i32> = (0..source.as_ref().map_or(0, |source| source.1)).collect();
    let mut picture = Picture {
        group: config.source.group_id.clone(),
        topic: config.source.topic.clone(),
        start: config.source.start,
        books: books(site).await?,
        job: String::new(),
        missing_topics,
        rows: Vec::new(),
        parts: Vec::new(),
        old_parts: Vec::new(),
        offsets: offsets(site, &partitions).await?,
        marks: match &source {
            Some(_) => watermarks(&site.reader, &config.source.topic, partitions).await?,
            None => BTreeMap::new(),
        },
        unreadable: Vec::new(),
        members: members(site).await?,
        source,
    };
    let ledger = match picture.books {
        Books::Whole => Some(open(site, &picture).await?),
        Books::WithoutIdentity | Books::None => None,
    };
    if let Some(ledger) = &ledger {
        picture.job = ledger.job.clone();
        read_books(site, ledger, &mut picture).await?;
    }
    Ok((picture, ledger))
}

/// The ledger for the topic as it is now.
pub async fn open(site: &Site, picture: &Picture) -> Result<Ledger> {
    let (schema, source) = (&site.config.ledger_schema, &site.config.source);
    let id = picture.source.as_ref().map_or("", |source| source.0.as_str());
    Ledger::open(&site.postgres, schema, &site.cluster_id, &source.group_id, &source.topic, id).await
}

async fn read_books(site: &Site, ledger: &Ledger, picture: &mut Picture) -> Result<()> {
    let postgres = &site.postgres;
    picture.rows = ledger.rows(postgres).await?;
    picture.parts = ledger.all_parts(postgres).await?;
    let old: Vec<String> = picture.old_topics().into_iter().map(str::to_owned).collect();
    for id in old {
        picture.old_parts.extend(ledger.of_topic(&id).all_parts(postgres).await?);
    }
    let mut waiting = picture.old_parts.clone();
    let numbers: BTreeSet<i32> = picture.parts.iter().map(|part| part.partition).collect();
    for partition in numbers {
        waiting.extend(picture.seen(partition).map(|seen| seen.unconfirmed(&ledger.job)).unwrap_or_default());
    }
    for part in waiting {
        match replay::verify(ledger, postgres, &part).await {
            Err(Error::Halt { what, .. }) => picture.unreadable.push((part, what)),
            other => other?,
        }
    }
    Ok(())
}

async fn topics(site: &Site) -> Result<(Option<(String, i32)>, Vec<String>)> {
    let (reader, config) = (site.reader.clone(), site.config.clone());
    kafka::blocking(move || {
        let exists = |topic: &str| match kafka::partition_count(reader.client(), topic) {
            Ok(partitions) => Ok(Some(partitions)),
            Err(Error::Halt { .. }) => Ok(None),
            Err(error) => Err(error),
        };
        let mut missing = Vec::new();
        let source = match exists(&config.source.topic)? {
            Some(partitions) => Some((kafka::topic_id(reader.client(), &config.source.topic)?, partitions)),
            None => {
                missing.push(config.source.topic.clone());
                None
            }
        };
        for topic in [&config.sink_kafka.topic, &config.dead_letters.topic] {
            if exists(topic)?.is_none() {
                missing.push(topic.clone());
            }
        }
        Ok((source, missing))
    })
    .await
}

async fn offsets(site: &Site, partitions: &[i32]) -> Result<BTreeMap<i32, KafkaOffset>> {
    if partitions.is_empty() {
        return Ok(BTreeMap::new());
    }
    let (reader, topic, partitions) = (site.reader.clone(), site.config.source.topic.clone(), partitions.to_vec());
    kafka::blocking(move || read_group_offsets(&reader, &topic, &partitions)).await
}

/// Who is in the group now.
pub async fn members(site: &Site) -> Result<Vec<String>> {
    let (reader, group) = (site.reader.clone(), site.config.source.group_id.clone());
    kafka::blocking(move || kafka::group_members(reader.client(), &group)).await
}

async fn books(site: &Site) -> Result<Books> {
    let schema = quote_identifier(&site.config.ledger_schema);
    let doing = || Error::postgres(format!("looking for the ledger in schema {}", site.config.ledger_schema));
    let sql = "SELECT to_regclass($1 || '.letters') IS NOT NULL AND to_regclass($1 || '.ledger') IS NOT NULL";
    let there: bool = site.postgres.query_one(sql, &[&schema]).await.map_err(doing())?.get(0);
    if !there {
        return Ok(Books::None);
    }
    let sql = format!("SELECT EXISTS (SELECT FROM {schema}.ledger)");
    let whole: bool = site.postgres.query_one(&sql, &[]).await.map_err(doing())?.get(0);
    Ok(if whole { Books::Whole } else { Books::WithoutIdentity })
}
