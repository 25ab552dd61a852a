//! The ledger's rows in Postgres: its making, and what claims read and write of it. What the rows mean is decided elsewhere.

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use uuid::Uuid;

use super::ailment::{Verb, topic_anew};
use crate::config::{PostgresSettings, quote_identifier};
use crate::error::{Error, Result};
use crate::postgres::{self, Connection};

/// The protocol that this binary speaks; an `advance` under another one is refused.
pub const PROTOCOL: i32 = 1;

/// The format of stored parts that this binary writes. It reads this one and all older ones.
pub const PART_FORMAT: i32 = 3;

const SCHEMA: &str = include_str!("schema.sql");

/// DDL of several processes at once: `CREATE SCHEMA IF NOT EXISTS` fails for all but one of them without a lock.
const DDL_LOCK: i64 = 0x64696e6e6572; // "dinner"

/// One ledger and the rows of it that belong to this job: one consumer group on one topic of one cluster.
#[derive(Debug, Clone)]
pub struct Ledger {
    /// Quoted for SQL.
    pub schema: String,
    /// The ledger's identity, which stands in each offset that the job commits.
    pub job: String,
    pub cluster_id: String,
    pub group_id: String,
    pub topic: String,
    pub topic_id: String,
}

/// A partition's progress as the ledger has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    pub next_offset: i64,
    pub last_output_to: i64,
    pub epoch: i64,
    pub metadata: String,
}

impl Progress {
    /// Whether nothing has been committed since the partition was registered.
    pub fn is_new(&self, job: &str) -> bool {
        self.metadata == metadata(job, 0, Uuid::nil())
    }
}

/// A claimed partition: its progress under the new epoch, its unconfirmed parts, and who may still write for it.
#[derive(Debug)]
pub struct Claimed {
    pub partition: i32,
    pub progress: Progress,
    pub parts: Vec<PartHead>,
    pub last_owner: Vec<String>,
}

/// A stored part without its chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartHead {
    pub commit_id: Uuid,
    pub partition: i32,
    pub from: i64,
    pub to: i64,
    pub format: i32,
    pub previous_metadata: String,
    pub output_topic: String,
    pub output_key: Option<String>,
    pub letter_topic: String,
    pub rows: i64,
    pub letters: i64,
}

/// What a new part records beside its head.
#[derive(Debug)]
pub struct PartFacts {
    pub outcomes: serde_json::Value,
    pub triggered_at: std::time::SystemTime,
    pub sql_hash: String,
    pub sink_table: String,
}

/// One partition's step in an `advance`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub partition: i32,
    pub epoch: i64,
    pub from: i64,
    pub to: i64,
    pub has_output: bool,
    pub metadata: String,
}

/// What a chunk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChunkKind {
    Rows,
    Letters,
}

impl ChunkKind {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            ChunkKind::Rows => "rows",
            ChunkKind::Letters => "letters",
        }
    }
}

/// The ledger's DDL for a schema of this name.
pub fn ddl(schema: &str) -> String {
    SCHEMA.replace("{schema}", &quote_identifier(schema)).replace("{protocol}", &PROTOCOL.to_string())
}

/// Creates what is missing of the ledger. Nothing is changed, and no right to create is needed, where all is there.
///
/// # Errors
/// [`Error::Postgres`]; without the right to create: with what an administrator has to run.
pub async fn create(client: &Client, schema: &str) -> Result<()> {
    if is_complete(client, schema).await? {
        return Ok(());
    }
    let doing = || Error::postgres(format!("waiting for another process that creates the ledger in schema {schema}"));
    // Held by the session, in a statement before the transaction: one that waits inside its transaction goes on with what
    // its caches said of the catalog before, and creates again what the other has just committed.
    client.execute("SELECT pg_advisory_lock($1)", &[&DDL_LOCK]).await.map_err(doing())?;
    let created = create_locked(client, schema).await;
    let unlocked = client.execute("SELECT pg_advisory_unlock($1)", &[&DDL_LOCK]).await.map_err(doing());
    created.and(unlocked.map(drop))
}

async fn is_complete(client: &Client, schema: &str) -> Result<bool> {
    let row = client
        .query_one("SELECT to_regclass($1) IS NOT NULL", &[&format!("{}.letters", quote_identifier(schema))])
        .await
        .map_err(Error::postgres(format!("looking for the ledger in schema {schema}")))?;
    Ok(row.get(0))
}

async fn create_locked(client: &Client, schema: &str) -> Result<()> {
    if is_complete(client, schema).await? {
        return Ok(());
    }
    let doing = format!("creating the ledger in schema {schema}");
    let Err(error) = client.batch_execute(&format!("BEGIN; {} COMMIT;", ddl(schema))).await else { return Ok(()) };
    // The session goes on to be used; where the connection is gone, the first error says so.
    let _ = client.batch_execute("ROLLBACK").await;
    if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) {
        return Err(Error::Halt {
            what: Error::postgres(doing)(error).to_string(),
            remedy: "let an administrator run what `dinnerbell init --print` shows, or grant CREATE on the database"
                .into(),
        });
    }
    Err(Error::postgres(doing)(error))
}

/// Connects, with a session as the protocol needs it.
pub async fn connect(settings: &PostgresSettings) -> Result<Connection> {
    let connection = postgres::connect(settings, "dinnerbell").await?;
    prepare_session(&connection).await?;
    Ok(connection)
}

/// Settings that the protocol needs of each session, whatever the server's defaults are.
async fn prepare_session(client: &Client) -> Result<()> {
    // A stopped process must not hold the row locks of its partitions: 10 s is longer than any honest pause.
    client
        .batch_execute(
            "SET default_transaction_isolation = 'read committed'; \
             SET idle_in_transaction_session_timeout = '10s'; \
             SET statement_timeout = 0; \
             SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') IN ('off', 'local')",
        )
        .await
        .map_err(Error::postgres("setting up the Postgres session"))
}

impl Ledger {
    /// Reads the ledger's identity and checks that it speaks this binary's protocol.
    pub async fn open(
        client: &Client,
        schema: &str,
        cluster_id: &str,
        group_id: &str,
        topic: &str,
        topic_id: &str,
    ) -> Result<Ledger> {
        let quoted = quote_identifier(schema);
        let row = client
            .query_opt(&format!("SELECT job::text, protocol FROM {quoted}.ledger"), &[])
            .await
            .map_err(Error::postgres(format!("reading the ledger in schema {schema}")))?
            .ok_or_else(|| Error::Halt {
                what: format!("the ledger in schema {schema} has lost its identity: its table ledger is empty"),
                remedy: Verb::Adopt.advice(),
            })?;
        let protocol: i32 = row.get(1);
        if protocol != PROTOCOL {
            return Err(Error::Halt {
                what: format!("the ledger in schema {schema} speaks protocol {protocol}, this binary {PROTOCOL}"),
                remedy:
                    "run the version of dinnerbell that the ledger belongs to, or give this one another [ledger] schema"
                        .into(),
            });
        }
        Ok(Ledger {
            schema: quoted,
            job: row.get(0),
            cluster_id: cluster_id.into(),
            group_id: group_id.into(),
            topic: topic.into(),
            topic_id: topic_id.into(),
        })
    }

    /// Partitions that have a progress row.
    ///
    /// # Errors
    /// [`Error::Halt`] where the ledger knows the topic under another id: it was deleted and made anew.
    pub async fn registered(&self, client: &Client) -> Result<Vec<i32>> {
        let rows = client
            .query(
                &format!(
                    "SELECT topic_id, partition FROM {}.progress WHERE cluster_id = $1 AND group_id = $2 AND topic = $3",
                    self.schema
                ),
                &[&self.cluster_id, &self.group_id, &self.topic],
            )
            .await
            .map_err(Error::postgres("reading the ledger's progress"))?;
        let mut partitions = Vec::new();
        for row in &rows {
            let topic_id: String = row.get(0);
            if topic_id != self.topic_id {
                return Err(topic_anew(&self.topic, &topic_id, &self.topic_id));
            }
            partitions.push(row.get(1));
        }
        Ok(partitions)
    }

    /// Registers partitions at their first offsets; those that are there already stay as they are.
    pub async fn register(&self, client: &Client, starts: &[(i32, i64)]) -> Result<()> {
        let partitions: Vec<i32> = starts.iter().map(|start| start.0).collect();
        let offsets: Vec<i64> = starts.iter().map(|start| start.1).collect();
        client
            .execute(
                &format!(
                    "INSERT INTO {}.progress (cluster_id, group_id, topic_id, partition, topic, next_offset, last_output_to, epoch, metadata) \
                     SELECT $1, $2, $3, p, $4, o, o, 0, $5 FROM unnest($6::int4[], $7::int8[]) AS start(p, o) \
                     ON CONFLICT DO NOTHING",
                    self.schema
                ),
                &[
                    &self.cluster_id,
                    &self.group_id,
                    &self.topic_id,
                    &self.topic,
                    &self.metadata(0, Uuid::nil()),
                    &partitions,
                    &offsets,
                ],
            )
            .await
            .map_err(Error::postgres("registering partitions in the ledger"))?;
        Ok(())
    }

    /// The string that goes with an offset into Kafka. An operator's reset erases it.
    pub fn metadata(&self, epoch: i64, commit: Uuid) -> String {
        metadata(&self.job, epoch, commit)
    }

    /// Takes partitions under a new epoch, in a short transaction of its own: from here on an `advance` of the last owner
    /// is refused. The last owner's transactional ids stay in the row beside ours until [`Ledger::settle`] says that
    /// they have been fenced: a crash in between must not lose them.
    pub async fn take(&self, client: &Client, partitions: &[i32], ours: &[String]) -> Result<Vec<Claimed>> {
        let doing = || Error::postgres("claiming partitions in the ledger");
        client.batch_execute("BEGIN").await.map_err(doing())?;
        let sql = format!(
            "SELECT partition, next_offset, last_output_to, epoch, metadata, coalesce(transactional_ids, '{{}}') \
             FROM {}.progress WHERE cluster_id = $1 AND group_id = $2 AND topic_id = $3 AND partition = ANY($4) \
             ORDER BY partition FOR UPDATE",
            self.schema
        );
        let rows = client
            .query(&sql, &[&self.cluster_id, &self.group_id, &self.topic_id, &partitions])
            .await
            .map_err(doing())?;
        let sql = format!(
            "UPDATE {}.progress SET epoch = epoch + 1, updated_at = now(), transactional_ids = \
               (SELECT array_agg(DISTINCT id) FROM unnest(coalesce(transactional_ids, '{{}}') || $5::text[]) AS id) \
             WHERE cluster_id = $1 AND group_id = $2 AND topic_id = $3 AND partition = ANY($4)",
            self.schema
        );
        client
            .execute(&sql, &[&self.cluster_id, &self.group_id, &self.topic_id, &partitions, &ours])
            .await
            .map_err(doing())?;
        let mut claimed: Vec<Claimed> = rows
            .iter()
            .map(|row| Claimed {
                partition: row.get(0),
                progress: Progress {
                    next_offset: row.get(1),
                    last_output_to: row.get(2),
                    epoch: row.get::<_, i64>(3) + 1,
                    metadata: row.get(4),
                },
                parts: Vec::new(),
                last_owner: row.get(5),
            })
            .collect();
        for part in self.parts(client, partitions).await? {
            if let Some(owner) = claimed.iter_mut().find(|claimed| claimed.partition == part.partition) {
                owner.parts.push(part);
            }
        }
        client.batch_execute("COMMIT").await.map_err(doing())?;
        Ok(claimed)
    }

    pub(super) async fn parts(&self, client: &Client, partitions: &[i32]) -> Result<Vec<PartHead>> {
        let sql = format!(
            "SELECT commit_id, partition, from_offset, to_offset, format, previous_metadata, output_topic, output_key, letter_topic, \
               rows, letters FROM {}.parts WHERE cluster_id = $1 AND group_id = $2 AND topic_id = $3 AND partition = ANY($4) \
             ORDER BY partition, from_offset",
            self.schema
        );
        let rows = client
            .query(&sql, &[&self.cluster_id, &self.group_id, &self.topic_id, &partitions])
            .await
            .map_err(Error::postgres("reading the ledger's stored parts"))?;
        Ok(rows
            .iter()
            .map(|row| PartHead {
                commit_id: row.get(0),
                partition: row.get(1),
                from: row.get(2),
                to: row.get(3),
                format: row.get(4),
                previous_metadata: row.get(5),
                output_topic: row.get(6),
                output_key: row.get(7),
                letter_topic: row.get(8),
                rows: row.get(9),
                letters: row.get(10),
            })
            .collect())
    }

    /// One chunk of a stored part; `None` past the last one.
    pub async fn chunk(&self, client: &Client, part: &PartHead, number: i32) -> Result<Option<(ChunkKind, Vec<u8>)>> {
        let sql = format!(
            "SELECT kind, body FROM {}.chunks WHERE commit_id = $1 AND partition = $2 AND number = $3",
            self.schema
        );
        let row = client
            .query_opt(&sql, &[&part.commit_id, &part.partition, &number])
            .await
            .map_err(Error::postgres("reading a stored chunk"))?;
        Ok(row.map(|row| {
            let kind = if row.get::<_, &str>(0) == "letters" { ChunkKind::Letters } else { ChunkKind::Rows };
            (kind, row.get(1))
        }))
    }

    /// The claim is complete: nobody but us can write for these partitions any more.
    pub async fn settle(&self, client: &Client, epochs: &[(i32, i64)], ours: &[String]) -> Result<()> {
        self.set_owner(client, epochs, Some(ours)).await
    }

    /// Gives partitions up cleanly: nothing is unconfirmed and no transaction open, so the next owner need not fence us.
    pub async fn release(&self, client: &Client, epochs: &[(i32, i64)]) -> Result<()> {
        self.set_owner(client, epochs, None).await
    }

    /// Whether nobody has taken these partitions since, of which each is given with its epoch.
    pub async fn is_present(&self, client: &Client, epochs: &[(i32, i64)]) -> Result<bool> {
        let (partitions, held): (Vec<i32>, Vec<i64>) = epochs.iter().copied().unzip();
        let sql = format!(
            "SELECT count(*) FROM {}.progress, unnest($4::int4[], $5::int8[]) AS held(p, e) \
             WHERE cluster_id = $1 AND group_id = $2 AND topic_id = $3 AND partition = p AND epoch = e",
            self.schema
        );
        let row = client
            .query_one(&sql, &[&self.cluster_id, &self.group_id, &self.topic_id, &partitions, &held])
            .await
            .map_err(Error::postgres("reading the owners of partitions in the ledger"))?;
        Ok(row.get::<_, i64>(0) == epochs.len() as i64)
    }

    /// Only under our own epochs: whoever has taken a partition since must keep what was noted then.
    async fn set_owner(&self, client: &Client, epochs: &[(i32, i64)], ids: Option<&[String]>) -> Result<()> {
        let (partitions, held): (Vec<i32>, Vec<i64>) = epochs.iter().copied().unzip();
        let sql = format!(
            "UPDATE {}.progress SET transactional_ids = $6 FROM unnest($4::int4[], $5::int8[]) AS held(p, e) \
             WHERE cluster_id = $1 AND group_id = $2 AND topic_id = $3 AND partition = p AND epoch = e",
            self.schema
        );
        client
            .execute(&sql, &[&self.cluster_id, &self.group_id, &self.topic_id, &partitions, &held, &ids])
            .await
            .map_err(Error::postgres("noting the owner of partitions in the ledger"))?;
        Ok(())
    }
}

pub fn metadata(job: &str, epoch: i64, commit: Uuid) -> String {
    format!("{job};{epoch};{commit}")
}

#[cfg(test)]
impl PartHead {
    pub fn example(from: i64, to: i64, previous: &str) -> PartHead {
        PartHead {
            commit_id: Uuid::nil(),
            partition: 0,
            from,
            to,
            format: PART_FORMAT,
            previous_metadata: previous.into(),
            output_topic: "triggers".into(),
            output_key: None,
            letter_topic: "campaigns.dead_letters".into(),
            rows: 1,
            letters: 0,
        }
    }
}
