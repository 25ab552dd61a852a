//! Output topic and sink table beside each other, as multisets of whole rows.
//!
//! Postgres compares: the topic's records go into a temporary table of the sink table's types, and `EXCEPT ALL` does the
//! rest, however many rows there are and whatever their types. Does not change anything but temporary tables; they go
//! with the session.

use std::sync::atomic::Ordering;

use bytes::{BufMut, Bytes, BytesMut};
use futures::SinkExt;
use rdkafka::message::Message;
use tokio::sync::mpsc;
use tokio_postgres::types::Type;

use super::inspect::Site;
use super::topic;
use crate::config::quote_identifier;
use crate::encode::copy;
use crate::encode::json::JsonRows;
use crate::error::{Error, Result};
use crate::kafka;
use crate::ledger::replay;
use crate::ledger::store::{self, ChunkKind, Ledger, PartHead};
use crate::sink::table::TableShape;

/// Bytes in one message of a COPY.
const CHUNK: usize = 256 * 1024;

/// The topic's rows.
const SENT: &str = "pg_temp.dinnerbell_sent";
/// The rows of stored batches.
const STORED: &str = "pg_temp.dinnerbell_stored";
/// Rows that are to be sent.
pub const LOST: &str = "pg_temp.dinnerbell_lost";

/// The comparison of one table's columns.
pub struct Compare<'a> {
    site: &'a Site,
    /// Quoted.
    table: String,
    columns: Vec<Column>,
}

struct Column {
    /// Quoted.
    name: String,
    /// Its value out of the JSON object `value`.
    from_json: String,
    /// What is compared: JSON has no equality.
    compared: String,
    /// How a compared value is written back.
    restored: String,
}

impl<'a> Compare<'a> {
    /// For the columns that the SELECT writes.
    ///
    /// # Errors
    /// [`Error::Halt`] for a column that the table does not have.
    pub fn new(site: &'a Site, shape: &TableShape, names: &[String]) -> Result<Compare<'a>> {
        let columns = names.iter().map(|name| {
            let column = shape.column(name).ok_or_else(|| Error::Halt {
                what: format!("the sink table {} has no column {name:?} any more", shape.quoted()),
                remedy: "put the column back until the repair is done".into(),
            })?;
            let quoted = quote_identifier(name);
            let text = format!("value->>'{}'", name.replace('\'', "''"));
            let is_json = matches!(column.wire_type, Type::JSON | Type::JSONB);
            Ok(Column {
                from_json: match column.wire_type {
                    Type::BYTEA => format!("decode({text}, 'base64')"),
                    _ => format!("CAST({text} AS {})", column.sql_type),
                },
                compared: if is_json { format!("{quoted}::text AS {quoted}") } else { quoted.clone() },
                restored: if is_json { format!("{quoted}::{}", column.sql_type) } else { quoted.clone() },
                name: quoted,
            })
        });
        Ok(Compare { site, table: shape.quoted(), columns: columns.collect::<Result<_>>()? })
    }

    fn list(&self, of: impl Fn(&Column) -> &String) -> String {
        self.columns.iter().map(|column| of(column).as_str()).collect::<Vec<_>>().join(", ")
    }

    fn rows_of(&self, table: &str) -> String {
        format!("SELECT {} FROM {table}", self.list(|column| &column.compared))
    }

    /// Reads the whole topic into a temporary table; the number of records.
    ///
    /// # Errors
    /// [`Error::Halt`] where a transaction is open that is nobody's we know: what it hides may be what is looked for.
    pub async fn stage_topic(&self, topic: &str) -> Result<i64> {
        if let Some(place) = topic::open_transaction(self.site, topic).await? {
            if self.site.fenced.load(Ordering::SeqCst) {
                return Err(Error::Halt {
                    what: format!("a transaction is open in {place}: what comes after it cannot be seen"),
                    remedy:
                        "it ends by itself within 15 minutes (transaction.timeout.ms of the process that died), or by \
                             kafka-transactions.sh --abort; then repair"
                            .into(),
                });
            }
            tracing::warn!(
                "a transaction is open in {place}: --execute ends this job's own first, and then counts again"
            );
        }
        let (to, inbox) = mpsc::channel(2);
        let (reader, name) = (self.site.config.source.clone(), topic.to_owned());
        // The COPY ends with the last sender. A topic that can't be read must not end it: Postgres would complain of half a
        // COPY before it is known why.
        let unread = to.clone();
        let reading = async {
            let skipped = kafka::blocking(move || {
                let mut rows = Rows::new(to);
                topic::read(&reader, &name, |message| rows.push(message.payload().unwrap_or_default()))?;
                rows.end()
            });
            let skipped = skipped.await?;
            drop(unread);
            Ok(skipped)
        };
        let (skipped, ()) = tokio::try_join!(reading, self.copy_in(inbox))?;
        if skipped > 0 {
            tracing::warn!(topic, skipped, "records that are no JSON objects were left out: they are not this job's");
        }
        self.type_into(SENT).await
    }

    /// Reads the rows of stored batches into a temporary table; the number of rows.
    pub async fn stage_parts(&self, ledger: &Ledger, parts: &[PartHead]) -> Result<i64> {
        let (to, inbox) = mpsc::channel(2);
        let mut rows = Rows::new(to);
        let reading = async {
            // Read over a connection of its own: this one is busy with the COPY.
            let reader = store::connect(&self.site.config.postgres).await?;
            for part in parts {
                replay::each_chunk(ledger, &reader, part, async |kind, batch| {
                    if kind == ChunkKind::Letters {
                        return Ok(());
                    }
                    for row in JsonRows::new(&batch.schema())?.encode(&batch)?.rows() {
                        rows.add(row);
                        if rows.is_full() {
                            rows.flush().await?;
                        }
                    }
                    Ok(())
                })
                .await?;
            }
            rows.finish().await
        };
        tokio::try_join!(reading, self.copy_in(inbox))?;
        self.type_into(STORED).await
    }

    async fn copy_in(&self, mut inbox: mpsc::Receiver<Bytes>) -> Result<()> {
        let doing = || Error::postgres("copying rows into a temporary table");
        let client = &self.site.postgres;
        client
            .batch_execute("DROP TABLE IF EXISTS pg_temp.dinnerbell_raw; CREATE TEMP TABLE dinnerbell_raw (value json)")
            .await
            .map_err(doing())?;
        let sink = client.copy_in("COPY pg_temp.dinnerbell_raw FROM STDIN (FORMAT binary)").await.map_err(doing())?;
        let mut sink = std::pin::pin!(sink);
        while let Some(chunk) = inbox.recv().await {
            sink.send(chunk).await.map_err(doing())?;
        }
        sink.finish().await.map_err(doing())?;
        Ok(())
    }

    async fn type_into(&self, table: &str) -> Result<i64> {
        let columns: Vec<String> =
            self.columns.iter().map(|column| format!("{} AS {}", column.from_json, column.name)).collect();
        let sql = format!("SELECT {} FROM pg_temp.dinnerbell_raw", columns.join(", "));
        self.keep_as(table, &sql).await
    }

    /// Keeps a query's rows in a temporary table; the number of them.
    async fn keep_as(&self, table: &str, sql: &str) -> Result<i64> {
        let name = table.trim_start_matches("pg_temp.");
        let sql = format!("DROP TABLE IF EXISTS {table}; CREATE TEMP TABLE {name} AS {sql}; ANALYZE {table}");
        self.site
            .postgres
            .batch_execute(&sql)
            .await
            .map_err(Error::postgres(format!("comparing rows with the columns of {}", self.table)))?;
        self.count(&format!("SELECT FROM {table}")).await
    }

    async fn count(&self, sql: &str) -> Result<i64> {
        let row = self
            .site
            .postgres
            .query_one(&format!("SELECT count(*) FROM ({sql}) counted"), &[])
            .await
            .map_err(Error::postgres(format!("comparing {} with the output topic", self.table)))?;
        Ok(row.get(0))
    }

    /// Rows of the topic that the table does not have.
    pub async fn missing_in_table(&self) -> Result<i64> {
        self.count(&format!("{} EXCEPT ALL {}", self.rows_of(SENT), self.rows_of(&self.table))).await
    }

    /// Inserts what the topic has and the table does not, in the open transaction.
    pub async fn insert_missing(&self) -> Result<u64> {
        let sql = format!(
            "INSERT INTO {} ({}) SELECT {} FROM ({} EXCEPT ALL {}) missing",
            self.table,
            self.list(|column| &column.name),
            self.list(|column| &column.restored),
            self.rows_of(SENT),
            self.rows_of(&self.table),
        );
        let doing = Error::postgres(format!("inserting rows of the output topic into {}", self.table));
        self.site.postgres.execute(&sql, &[]).await.map_err(doing)
    }

    /// How many of the staged batches' rows the table has more often than the topic.
    pub async fn stored_and_not_sent(&self) -> Result<i64> {
        let (table, sent, stored) = (self.rows_of(&self.table), self.rows_of(SENT), self.rows_of(STORED));
        self.count(&format!("({table} EXCEPT ALL {sent}) INTERSECT ALL ({stored})")).await
    }

    /// How many of the staged batches' rows the topic does not have, whatever has become of them in the table.
    pub async fn stored_and_not_in_topic(&self) -> Result<i64> {
        self.count(&format!("{} EXCEPT ALL {}", self.rows_of(STORED), self.rows_of(SENT))).await
    }

    /// Rows of the table that neither the topic nor the staged batches have.
    pub async fn missing_in_topic_and_stored(&self) -> Result<i64> {
        let (table, sent, stored) = (self.rows_of(&self.table), self.rows_of(SENT), self.rows_of(STORED));
        self.count(&format!("{table} EXCEPT ALL {sent} EXCEPT ALL {stored}")).await
    }

    /// How many of the staged batches' rows the table has also from elsewhere: such rows cannot be told apart.
    pub async fn stored_twice(&self) -> Result<i64> {
        let (table, stored) = (self.rows_of(&self.table), self.rows_of(STORED));
        self.count(&format!("({table} EXCEPT ALL {stored}) INTERSECT ALL ({stored})")).await
    }

    /// The table's rows of some transactions but for those of the staged batches: kept as [`LOST`].
    pub async fn lost_of_transactions(&self, xmins: &[String]) -> Result<i64> {
        let ids: Vec<String> = xmins.iter().map(|xmin| format!("'{xmin}'::xid")).collect();
        let rows = format!("{} WHERE xmin IN ({})", self.rows_of(&self.table), ids.join(", "));
        self.keep_as(LOST, &format!("{rows} EXCEPT ALL {}", self.rows_of(STORED))).await
    }

    /// [`LOST`] without what the topic has.
    pub async fn lost_and_not_sent(&self) -> Result<i64> {
        let name = "pg_temp.dinnerbell_left";
        let sql = format!("SELECT * FROM {LOST} EXCEPT ALL {}", self.rows_of(SENT));
        let left = self.keep_as(name, &sql).await?;
        self.keep_as(LOST, &format!("SELECT * FROM {name}")).await?;
        Ok(left)
    }

    /// The table's rows that the topic does not have: kept as [`LOST`], with the transactions that wrote them.
    pub async fn lost_of_table(&self) -> Result<(i64, Vec<String>)> {
        let sql = format!("{} EXCEPT ALL {}", self.rows_of(&self.table), self.rows_of(SENT));
        let count = self.keep_as(LOST, &sql).await?;
        let names: Vec<&str> = self.columns.iter().map(|column| column.name.as_str()).collect();
        let text = |of: &str| {
            let cells: Vec<String> = names.iter().map(|name| format!("{of}.{name}::text")).collect();
            format!("ROW({})::text", cells.join(", "))
        };
        let sql = format!(
            "SELECT DISTINCT s.xmin::text FROM {} s JOIN {LOST} d ON {} = {}",
            self.table,
            text("s"),
            text("d")
        );
        let doing = Error::postgres(format!("looking for the transactions that wrote rows of {}", self.table));
        let rows = self.site.postgres.query(&sql, &[]).await.map_err(doing)?;
        Ok((count, rows.iter().map(|row| row.get(0)).collect()))
    }

    /// A query for [`LOST`] as the columns of the SELECT; what Arrow has no exact form for comes as text.
    pub fn lost_query(&self, text: impl Fn(&str) -> bool) -> String {
        let cells: Vec<String> = self
            .columns
            .iter()
            .map(|column| {
                let name = &column.name;
                if text(name) { format!("{name}::text AS {name}") } else { name.clone() }
            })
            .collect();
        format!("SELECT {} FROM {LOST}", cells.join(", "))
    }

    /// No batches are staged.
    pub async fn stage_nothing(&self) -> Result<()> {
        self.keep_as(STORED, &format!("{} LIMIT 0", self.rows_of(&self.table))).await.map(drop)
    }
}

/// JSON values on their way into a COPY of one column.
struct Rows {
    to: mpsc::Sender<Bytes>,
    buffer: BytesMut,
    skipped: u64,
}

impl Rows {
    fn new(to: mpsc::Sender<Bytes>) -> Rows {
        let mut buffer = BytesMut::new();
        copy::header(&mut buffer);
        Rows { to, buffer, skipped: 0 }
    }

    fn add(&mut self, json: &[u8]) {
        self.buffer.put_i16(1);
        self.buffer.put_i32(json.len() as i32);
        self.buffer.put_slice(json);
    }

    fn is_full(&self) -> bool {
        self.buffer.len() >= CHUNK
    }

    async fn flush(&mut self) -> Result<()> {
        self.to.send(self.buffer.split().freeze()).await.map_err(|_| closed())
    }

    async fn finish(mut self) -> Result<()> {
        copy::trailer(&mut self.buffer);
        self.flush().await
    }

    /// Takes a record, blocking where Postgres is slower than Kafka. What is no JSON object is counted and left out.
    fn push(&mut self, json: &[u8]) -> Result<()> {
        if serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(json).is_err() {
            self.skipped += 1;
            return Ok(());
        }
        self.add(json);
        if self.is_full() { self.to.blocking_send(self.buffer.split().freeze()).map_err(|_| closed()) } else { Ok(()) }
    }

    fn end(mut self) -> Result<u64> {
        copy::trailer(&mut self.buffer);
        self.to.blocking_send(self.buffer.freeze()).map_err(|_| closed())?;
        Ok(self.skipped)
    }
}

/// The other side has failed; its error comes as well.
fn closed() -> Error {
    Error::Away { what: "Postgres has stopped taking rows".into() }
}
