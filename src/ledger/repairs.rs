//! The ledger's SQL that only `dinnerbell repair` needs: looking at rows whatever their state, taking all partitions at
//! once, and changing rows by hand, with what was there kept in the table `repairs`.

use serde_json::Value;
use tokio_postgres::Client;
use uuid::Uuid;

use super::store::{Ledger, PartHead, Progress, metadata};
use crate::error::{Error, Result};

/// A row of progress, of the present topic or of an earlier one of the same name.
#[derive(Debug, Clone)]
pub struct Row {
    pub topic_id: String,
    pub partition: i32,
    pub progress: Progress,
    /// The commit that made `next_offset`, by its metadata.
    pub commit: Option<Uuid>,
}

/// Where a repair puts a partition.
#[derive(Debug, Clone)]
pub struct Position {
    pub partition: i32,
    pub next_offset: i64,
    pub last_output_to: i64,
    pub metadata: String,
}

const REPAIRS: &str = "CREATE TABLE IF NOT EXISTS {schema}.repairs (
  id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  at      timestamptz NOT NULL DEFAULT now(),
  verb    text  NOT NULL,
  reason  text  NOT NULL,
  kept    jsonb NOT NULL  -- the ledger's rows as they were before; the bodies of chunks are in repaired_chunks
);
CREATE TABLE IF NOT EXISTS {schema}.repaired_chunks (
  repair    bigint NOT NULL,
  commit_id uuid   NOT NULL,
  partition int4   NOT NULL,
  number    int4   NOT NULL,
  kind      text   NOT NULL,
  body      bytea  NOT NULL,
  PRIMARY KEY (repair, commit_id, partition, number)
);
ALTER TABLE {schema}.repaired_chunks ALTER COLUMN body SET STORAGE EXTERNAL";

impl Ledger {
    /// All progress of the group on topics of this name, in order of partitions.
    pub async fn rows(&self, client: &Client) -> Result<Vec<Row>> {
        let sql = format!(
            "SELECT topic_id, partition, next_offset, last_output_to, epoch, metadata FROM {}.progress \
             WHERE cluster_id = $1 AND group_id = $2 AND topic = $3 ORDER BY partition",
            self.schema
        );
        let rows = client
            .query(&sql, &[&self.cluster_id, &self.group_id, &self.topic])
            .await
            .map_err(Error::postgres("reading the ledger's progress"))?;
        Ok(rows
            .iter()
            .map(|row| {
                let metadata: String = row.get(5);
                Row {
                    topic_id: row.get(0),
                    partition: row.get(1),
                    commit: metadata.rsplit(';').next().and_then(|id| Uuid::try_parse(id).ok()),
                    progress: Progress {
                        next_offset: row.get(2),
                        last_output_to: row.get(3),
                        epoch: row.get(4),
                        metadata,
                    },
                }
            })
            .collect())
    }

    /// The same ledger, seen for a topic of another id.
    pub fn of_topic(&self, topic_id: &str) -> Ledger {
        Ledger { topic_id: topic_id.into(), ..self.clone() }
    }

    /// Every stored part of the group on this topic.
    pub async fn all_parts(&self, client: &Client) -> Result<Vec<PartHead>> {
        let sql = format!(
            "SELECT coalesce(array_agg(DISTINCT partition), '{{}}') FROM {}.parts \
             WHERE cluster_id = $1 AND group_id = $2 AND topic_id = $3",
            self.schema
        );
        let row = client
            .query_one(&sql, &[&self.cluster_id, &self.group_id, &self.topic_id])
            .await
            .map_err(Error::postgres("reading the ledger's stored parts"))?;
        self.parts(client, &row.get::<_, Vec<i32>>(0)).await
    }

    pub async fn has_parts(&self, client: &Client) -> Result<bool> {
        Ok(!self.all_parts(client).await?.is_empty())
    }

    /// Raises the epochs of all partitions, so that whoever held them cannot advance any more, and notes our own
    /// transactional id; all ids that are to be fenced. They stay in the rows: the next claim fences them again.
    pub async fn seize(&self, client: &Client, ours: &str) -> Result<Vec<String>> {
        let sql = format!(
            "UPDATE {}.progress SET epoch = epoch + 1, transactional_ids = \
               (SELECT array_agg(DISTINCT id) FROM unnest(coalesce(transactional_ids, '{{}}') || $4::text) AS id) \
             WHERE cluster_id = $1 AND group_id = $2 AND topic = $3 RETURNING transactional_ids",
            self.schema
        );
        let rows = client
            .query(&sql, &[&self.cluster_id, &self.group_id, &self.topic, &ours])
            .await
            .map_err(Error::postgres("claiming partitions in the ledger"))?;
        Ok(rows.iter().flat_map(|row| row.get::<_, Vec<String>>(0)).collect())
    }

    /// In the open transaction: locks the group's rows, which must be those that the repair was decided on.
    ///
    /// # Errors
    /// [`Error::Halt`] where another process has been at them.
    pub async fn lock(&self, client: &Client, expected: &[Row]) -> Result<()> {
        let sql = format!(
            "SELECT topic_id, partition, epoch, next_offset FROM {}.progress \
             WHERE cluster_id = $1 AND group_id = $2 AND topic = $3 ORDER BY partition, topic_id FOR UPDATE",
            self.schema
        );
        let rows = client
            .query(&sql, &[&self.cluster_id, &self.group_id, &self.topic])
            .await
            .map_err(Error::postgres("locking the ledger's progress"))?;
        let mut expected: Vec<(String, i32, i64, i64)> = expected
            .iter()
            .map(|row| (row.topic_id.clone(), row.partition, row.progress.epoch, row.progress.next_offset))
            .collect();
        let mut found: Vec<(String, i32, i64, i64)> =
            rows.iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3))).collect();
        expected.sort();
        found.sort();
        if expected == found {
            return Ok(());
        }
        Err(Error::Halt {
            what: "the ledger has changed while it was being repaired; nothing of this step was done".into(),
            remedy: "stop every other process of this group, and start `dinnerbell repair` again".into(),
        })
    }

    /// The transactions (`xmin`) that have written a commit's parts and chunks. One of them wrote its rows in the sink
    /// table, too; another one is somebody's who has changed them since, and wrote no rows there.
    pub async fn transactions_of(&self, client: &Client, commit: Uuid) -> Result<Vec<String>> {
        let sql = format!(
            "SELECT xmin::text FROM {0}.parts WHERE commit_id = $1 UNION SELECT xmin::text FROM {0}.chunks WHERE commit_id = $1",
            self.schema
        );
        let rows = client.query(&sql, &[&commit]).await.map_err(Error::postgres("reading who stored a batch"))?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// When a commit's batch was made, in milliseconds: no record of it is older.
    pub async fn made_at(&self, client: &Client, commit: Uuid) -> Result<Option<i64>> {
        let sql = format!(
            "SELECT floor(extract(epoch FROM min(triggered_at)) * 1000)::int8 FROM {}.parts WHERE commit_id = $1",
            self.schema
        );
        let row = client.query_one(&sql, &[&commit]).await.map_err(Error::postgres("reading a stored batch"))?;
        Ok(row.get(0))
    }

    /// The hash of the SQL that a stored part was made with.
    pub async fn sql_hash_of(&self, client: &Client, commit: Uuid) -> Result<Option<String>> {
        let sql = format!("SELECT sql_hash FROM {}.parts WHERE commit_id = $1 LIMIT 1", self.schema);
        let row = client.query_opt(&sql, &[&commit]).await.map_err(Error::postgres("reading a stored batch"))?;
        Ok(row.map(|row| row.get(0)))
    }

    /// Makes the table of repairs, and the ledger's identity where that is gone: `job` where it is known.
    pub async fn prepare_repair(client: &Client, schema: &str, job: Option<&str>, protocol: i32) -> Result<()> {
        let job = job.and_then(|job| Uuid::try_parse(job).ok()).unwrap_or_else(Uuid::new_v4);
        let doing = || Error::postgres("preparing the ledger's table of repairs");
        // Where both are there, nobody needs the right to create tables.
        let there =
            "SELECT to_regclass($1 || '.repairs') IS NOT NULL AND to_regclass($1 || '.repaired_chunks') IS NOT NULL";
        if !client.query_one(there, &[&schema]).await.map_err(doing())?.get::<_, bool>(0) {
            client.batch_execute(&REPAIRS.replace("{schema}", schema)).await.map_err(doing())?;
        }
        let sql = format!("INSERT INTO {schema}.ledger (job, protocol) VALUES ($1, $2) ON CONFLICT DO NOTHING");
        client.execute(&sql, &[&job, &protocol]).await.map_err(doing())?;
        Ok(())
    }

    /// In the open transaction: keeps all rows of the group on topics of this name, beside why.
    pub async fn keep(&self, client: &Client, verb: &str, reason: &str, facts: &Value) -> Result<()> {
        let rows = |columns: &str, table: &str, which: &str| {
            let found = format!("SELECT {columns} FROM {}.{table} WHERE {which}", self.schema);
            format!("(SELECT coalesce(jsonb_agg(to_jsonb(t)), '[]') FROM ({found}) t)")
        };
        let ids = format!(
            "SELECT topic_id FROM {}.progress WHERE cluster_id = $1 AND group_id = $2 AND topic = $3 UNION SELECT $4",
            self.schema
        );
        let of_group = format!("cluster_id = $1 AND group_id = $2 AND topic_id IN ({ids})");
        let commits = format!("commit_id IN (SELECT commit_id FROM {}.parts WHERE {of_group})", self.schema);
        let sql = format!(
            "INSERT INTO {}.repairs (verb, reason, kept) SELECT $5, $6, jsonb_build_object('facts', $7::text::jsonb, \
               'progress', {}, 'parts', {}, 'chunks', {}) RETURNING id",
            self.schema,
            rows("*", "progress", &of_group),
            rows("*", "parts", &of_group),
            rows("commit_id, partition, number, kind, octet_length(body) AS bytes", "chunks", &commits),
        );
        let doing = || Error::postgres("keeping the ledger's rows in its table of repairs");
        let repair: i64 = client
            .query_one(
                &sql,
                &[&self.cluster_id, &self.group_id, &self.topic, &self.topic_id, &verb, &reason, &facts.to_string()],
            )
            .await
            .map_err(doing())?
            .get(0);
        // Row by row: all of them in one value would be more than Postgres takes.
        let sql = format!(
            "INSERT INTO {0}.repaired_chunks (repair, commit_id, partition, number, kind, body) \
             SELECT $5, commit_id, partition, number, kind, body FROM {0}.chunks WHERE {commits}",
            self.schema
        );
        client
            .execute(&sql, &[&self.cluster_id, &self.group_id, &self.topic, &self.topic_id, &repair])
            .await
            .map_err(doing())?;
        Ok(())
    }

    /// In the open transaction: takes away progress, parts and chunks of earlier topics of this name.
    pub async fn forget_old_topics(&self, client: &Client) -> Result<()> {
        let old = "cluster_id = $1 AND group_id = $2 AND topic_id IN \
                   (SELECT topic_id FROM {s}.progress WHERE cluster_id = $1 AND group_id = $2 AND topic = $3 AND topic_id <> $4)";
        let statements = [
            format!("DELETE FROM {{s}}.chunks WHERE commit_id IN (SELECT commit_id FROM {{s}}.parts WHERE {old})"),
            format!("DELETE FROM {{s}}.parts WHERE {old}"),
            format!("DELETE FROM {{s}}.progress WHERE {old}"),
        ];
        for sql in statements {
            client
                .execute(
                    &sql.replace("{s}", &self.schema),
                    &[&self.cluster_id, &self.group_id, &self.topic, &self.topic_id],
                )
                .await
                .map_err(Error::postgres("taking the old topic's rows out of the ledger"))?;
        }
        Ok(())
    }

    /// In the open transaction: puts partitions where the repair wants them, registered or not.
    pub async fn place(&self, client: &Client, positions: &[Position]) -> Result<()> {
        let sql = format!(
            "INSERT INTO {}.progress (cluster_id, group_id, topic_id, partition, topic, next_offset, last_output_to, epoch, metadata) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, 1, $8) \
             ON CONFLICT (cluster_id, group_id, topic_id, partition) DO UPDATE \
               SET next_offset = $6, last_output_to = $7, metadata = $8, epoch = progress.epoch + 1, updated_at = now()",
            self.schema
        );
        for to in positions {
            client
                .execute(
                    &sql,
                    &[
                        &self.cluster_id,
                        &self.group_id,
                        &self.topic_id,
                        &to.partition,
                        &self.topic,
                        &to.next_offset,
                        &to.last_output_to,
                        &to.metadata,
                    ],
                )
                .await
                .map_err(Error::postgres("placing a partition in the ledger"))?;
        }
        Ok(())
    }

    /// The metadata of a partition that was registered and never committed.
    pub fn fresh_metadata(&self) -> String {
        metadata(&self.job, 0, Uuid::nil())
    }
}
