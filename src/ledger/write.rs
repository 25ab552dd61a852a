//! What a commit writes into the ledger, in the statements' order.

use std::task::Poll;

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::store::{ChunkKind, Ledger, PROTOCOL, PartFacts, PartHead, Step};
use crate::error::{Error, Result};
use crate::postgres::Connection;

impl Ledger {
    /// Prepares the statements of a commit, once per connection. None of them may have to be prepared when it is sent behind
    /// another without waiting: it would come late, and its error might hide the cause.
    pub async fn prepare(&self, client: &Connection) -> Result<()> {
        let [delete, chunk, part] = [self.delete_sql(), self.chunk_sql(), self.part_sql()];
        let prepared = futures::try_join!(client.prepared(&delete), client.prepared(&chunk), client.prepared(&part));
        prepared.map(drop).map_err(Error::postgres("preparing the ledger's statements"))
    }

    fn delete_sql(&self) -> String {
        format!(
            "WITH gone AS (DELETE FROM {0}.chunks WHERE commit_id = $1 AND partition = ANY($2)) \
             DELETE FROM {0}.parts WHERE commit_id = $1 AND partition = ANY($2)",
            self.schema
        )
    }

    fn chunk_sql(&self) -> String {
        format!(
            "INSERT INTO {}.chunks (commit_id, partition, number, kind, body) VALUES ($1, $2, $3, $4, $5)",
            self.schema
        )
    }

    fn part_sql(&self) -> String {
        format!(
            "INSERT INTO {}.parts (commit_id, cluster_id, group_id, topic_id, partition, from_offset, to_offset, format, \
               previous_metadata, rows, letters, outcomes, triggered_at, sql_hash, sink_table, output_topic, output_key, letter_topic) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12::text::jsonb, $13, $14, $15, $16, $17, $18)",
            self.schema
        )
    }

    /// Deletes parts whose Kafka commit was seen.
    pub async fn delete_parts(&self, client: &Connection, commits: &[(Uuid, i32)]) -> Result<()> {
        let sql = self.delete_sql();
        // All of one commit, but for those that were found at a claim.
        for parts in commits.chunk_by(|a, b| a.0 == b.0) {
            let partitions: Vec<i32> = parts.iter().map(|part| part.1).collect();
            let deleted = async { client.execute(&client.prepared(&sql).await?, &[&parts[0].0, &partitions]).await };
            deleted.await.map_err(Error::postgres("deleting confirmed parts"))?;
        }
        Ok(())
    }

    pub async fn insert_chunk(
        &self,
        client: &Connection,
        commit: Uuid,
        partition: i32,
        number: i32,
        kind: ChunkKind,
        body: &[u8],
    ) -> Result<()> {
        let sql = self.chunk_sql();
        let values: [&(dyn ToSql + Sync); 5] = [&commit, &partition, &number, &kind.as_str(), &body];
        let stored = async { client.execute(&client.prepared(&sql).await?, &values).await };
        stored.await.map(drop).map_err(Error::postgres("storing a chunk in the ledger"))
    }

    pub async fn insert_part(&self, client: &Connection, part: &PartHead, facts: &PartFacts) -> Result<()> {
        let sql = self.part_sql();
        let outcomes = facts.outcomes.to_string();
        let values: [&(dyn ToSql + Sync); 18] = [
            &part.commit_id,
            &self.cluster_id,
            &self.group_id,
            &self.topic_id,
            &part.partition,
            &part.from,
            &part.to,
            &part.format,
            &part.previous_metadata,
            &part.rows,
            &part.letters,
            &outcomes,
            &facts.triggered_at,
            &facts.sql_hash,
            &facts.sink_table,
            &part.output_topic,
            &part.output_key,
            &part.letter_topic,
        ];
        let stored = async { client.execute(&client.prepared(&sql).await?, &values).await };
        stored.await.map(drop).map_err(Error::postgres("storing a part in the ledger"))
    }

    /// Keeps a dead letter that no topic can take.
    pub async fn insert_letter(
        &self,
        client: &Client,
        partition: i32,
        offset: i64,
        facts: [&str; 4],
        body: &[u8],
    ) -> Result<()> {
        let [topic, stage, path, reason] = facts;
        let sql = format!(
            "INSERT INTO {}.letters (cluster_id, group_id, topic_id, partition, \"offset\", topic, body, stage, path, reason) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) \
             ON CONFLICT (cluster_id, group_id, topic_id, partition, \"offset\") DO UPDATE \
               SET topic = $6, body = $7, stage = $8, path = $9, reason = $10, created_at = now()",
            self.schema
        );
        client
            .execute(
                &sql,
                &[
                    &self.cluster_id,
                    &self.group_id,
                    &self.topic_id,
                    &partition,
                    &offset,
                    &topic,
                    &body,
                    &stage,
                    &path,
                    &reason,
                ],
            )
            .await
            .map_err(Error::postgres("keeping an over-size dead letter in the ledger"))?;
        Ok(())
    }

    /// Moves partitions forward and commits the open transaction, as one message: the row locks live no longer than that.
    /// `steps` in ascending order of partitions.
    ///
    /// # Errors
    /// [`Error::Claim`] where another owner has taken a partition; [`Error::Postgres`] without SQLSTATE where the outcome
    /// is unknown. The server answers COMMIT of a failed transaction with ROLLBACK and no error; it cannot come to that
    /// here, because `advance` fails first, and with it the message.
    pub async fn advance_and_commit(&self, client: &Client, steps: &[Step]) -> Result<()> {
        let sql = format!("{}; COMMIT", self.advance_sql(steps));
        let mut reply = std::pin::pin!(client.simple_query(&sql));
        // The first poll hands the message over.
        let outcome = match futures::poll!(&mut reply) {
            Poll::Ready(outcome) => outcome,
            Poll::Pending => {
                crate::step!("S6");
                reply.await
            }
        };
        outcome.map(drop).map_err(|error| refused(error, "committing to Postgres"))
    }

    fn advance_sql(&self, steps: &[Step]) -> String {
        let list = |item: &dyn Fn(&Step) -> String| steps.iter().map(item).collect::<Vec<_>>().join(",");
        format!(
            "SELECT {}.advance({PROTOCOL}, {}, {}, {}, '{{{}}}', '{{{}}}', '{{{}}}', '{{{}}}', '{{{}}}', ARRAY[{}]::text[])",
            self.schema,
            literal(&self.cluster_id),
            literal(&self.group_id),
            literal(&self.topic_id),
            list(&|step| step.partition.to_string()),
            list(&|step| step.epoch.to_string()),
            list(&|step| step.from.to_string()),
            list(&|step| step.to.to_string()),
            list(&|step| step.has_output.to_string()),
            list(&|step| literal(&step.metadata)),
        )
    }

    /// Prepares a commit's statements, and calls `advance` for `steps` in a transaction that is rolled back. At a session's first
    /// time Postgres reads its catalog, compiles and plans, for some ten milliseconds: the first commit would take that longer.
    ///
    /// # Errors
    /// [`Error::Claim`] where another owner has taken a partition; [`Error::Postgres`]. The transaction has failed then, and the
    /// session ends with the claim; were the partitions released on it, that would fail too, and the next owner fence us.
    pub async fn rehearse(&self, client: &Connection, steps: &[Step]) -> Result<()> {
        self.prepare(client).await?;
        let sql = format!("BEGIN; {}; ROLLBACK", self.advance_sql(steps));
        client.batch_execute(&sql).await.map_err(|error| refused(error, "rehearsing a commit in Postgres"))
    }
}

fn refused(error: tokio_postgres::Error, doing: &str) -> Error {
    match error.code().map(SqlState::code) {
        Some("DB001") => Error::Claim { what: Error::postgres("advancing in the ledger")(error).to_string() },
        _ => Error::postgres(doing)(error),
    }
}

/// A string literal that holds whatever `standard_conforming_strings` is.
fn literal(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('\'', "''");
    format!("E'{escaped}'")
}
