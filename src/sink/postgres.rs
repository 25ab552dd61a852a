//! The Postgres sink: rows by COPY BINARY, and after each slice of rows their stored chunk, on one connection and in the
//! transaction that the caller has opened.

use std::pin::Pin;
use std::time::Instant;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use bytes::{Bytes, BytesMut};
use futures::SinkExt;
use tokio::sync::mpsc;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, CopyInSink, Statement};
use uuid::Uuid;

use super::Piece;
use crate::dead_letter;
use crate::encode::chunk;
use crate::encode::copy::{self, CopyEncoder};
use crate::error::{Error, Result};
use crate::ledger::store::{ChunkKind, Ledger};
use crate::postgres::Connection;

/// Rows in one COPY and at most in one stored chunk: large enough that the statements around it cost nothing, small
/// enough (some 10 MB of views and bytes) that a campaign with ten million subscribers needs no more memory than this.
pub const SLICE_ROWS: usize = 65_536;

/// How the sink table is written: fixed for the life of a job.
#[derive(Debug, Clone)]
pub struct CopyPlan {
    pub statement: String,
    /// The table's name for messages.
    pub table: String,
    pub schema: SchemaRef,
    /// The columns' types in Postgres, in the schema's order.
    pub types: Vec<Type>,
}

/// What one commit has written, per part.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Written {
    pub rows: i64,
    pub letters: i64,
    chunks: i32,
}

/// Writes one commit's pieces.
pub struct Writer<'a> {
    client: &'a Connection,
    ledger: &'a Ledger,
    plan: &'a CopyPlan,
    copy: Statement,
    commit: Uuid,
    partitions: &'a [i32],
    written: Vec<Written>,
    slice: Vec<(usize, RecordBatch)>,
    slice_rows: usize,
    begun: bool,
    started: bool,
}

impl<'a> Writer<'a> {
    /// `partitions` names the partition of each part.
    pub async fn new(
        client: &'a Connection,
        ledger: &'a Ledger,
        plan: &'a CopyPlan,
        commit: Uuid,
        partitions: &'a [i32],
    ) -> Result<Writer<'a>> {
        let copy = client
            .prepared(&plan.statement)
            .await
            .map_err(Error::postgres(format!("preparing the COPY into {}", plan.table)))?;
        ledger.prepare(client).await?;
        let written = vec![Written::default(); partitions.len()];
        Ok(Writer {
            client,
            ledger,
            plan,
            copy,
            commit,
            partitions,
            written,
            slice: Vec::new(),
            slice_rows: 0,
            begun: false,
            started: false,
        })
    }

    /// Opens the transaction, writes all that comes, and checks deferred constraints at the end. Nothing is committed.
    ///
    /// # Errors
    /// [`Error::Postgres`]; whether it is a refusal of the rows is for [`refusal`] to say.
    pub async fn write(mut self, mut inbox: mpsc::Receiver<Piece>) -> Result<(Vec<Written>, f64)> {
        let began = Instant::now();
        let mut checked = false;
        let mut next = inbox.recv().await;
        while let Some(piece) = next {
            next = match piece {
                Piece::Letters { part, letters } => {
                    self.begin().await?;
                    let batch = dead_letter::to_record_batch(&letters)?;
                    self.written[part].letters += letters.len() as i64;
                    let number = self.number(part);
                    self.store(part, number, ChunkKind::Letters, &[batch]).await?;
                    inbox.recv().await
                }
                Piece::Rows { part, batch, .. } => {
                    let (copy, next) = self.copy(part, batch, &mut inbox).await?;
                    // The end of everything is known here unless the slice was full.
                    checked = next.is_none() && self.slice_rows < SLICE_ROWS;
                    self.end_slice(copy, checked).await?;
                    if checked || next.is_some() { next } else { inbox.recv().await }
                }
            };
        }
        if !checked {
            self.begin().await?;
            self.check_constraints().await?;
        }
        Ok((self.written, began.elapsed().as_secs_f64()))
    }

    /// One COPY: this batch and those after it, until the slice is full or something else comes, which is returned.
    async fn copy(
        &mut self,
        part: usize,
        batch: RecordBatch,
        inbox: &mut mpsc::Receiver<Piece>,
    ) -> Result<(Copy, Option<Piece>)> {
        // COPY follows BEGIN without waiting; its rows wait for both answers.
        let (client, statement, plan) = (self.client, self.copy.clone(), self.plan);
        let ((), mut copy) = futures::try_join!(self.begin(), Copy::begin(client, &statement, plan))?;
        let mut next = Some(Piece::Rows { part, batch, messages: None });
        while let Some(Piece::Rows { part, batch, .. }) = next {
            copy.rows(&batch).await?;
            self.slice_rows += batch.num_rows();
            self.slice.push((part, batch));
            if !self.started {
                self.started = true;
                crate::step!("S3");
            }
            next = if self.slice_rows < SLICE_ROWS { inbox.recv().await } else { None };
        }
        Ok((copy, next))
    }

    /// Ends a COPY and stores its rows, and checks constraints where it is the last: sent one after the other, without
    /// waiting for answers in between. Chunks are packed while Postgres takes what is left of the rows.
    async fn end_slice(&mut self, copy: Copy, last: bool) -> Result<()> {
        let (slice, rows) = (std::mem::take(&mut self.slice), std::mem::take(&mut self.slice_rows));
        let mut chunks = Vec::new();
        for run in slice.chunk_by(|a, b| a.0 == b.0) {
            let part = run[0].0;
            self.written[part].rows += run.iter().map(|(_, batch)| batch.num_rows() as i64).sum::<i64>();
            chunks.push((part, self.number(part), run));
        }
        let store = chunks.iter().map(async |(part, number, run)| {
            let rows: Vec<RecordBatch> = run.iter().map(|(_, batch)| batch.clone()).collect();
            self.store(*part, *number, ChunkKind::Rows, &rows).await
        });
        let store = futures::future::try_join_all(store);
        let check = async { if last { self.check_constraints().await } else { Ok(()) } };
        // Polled in this order: of several errors the first is the cause.
        let (copied, _, ()) = futures::try_join!(copy.finish(), store, check)?;
        if copied != rows as u64 {
            return Err(Error::Halt {
                what: format!("Postgres copied {copied} rows of {rows} into {}", self.plan.table),
                remedy:
                    "a trigger or rule of the table swallows rows: the two sinks would differ. Remove it, or write to \
                         another table"
                        .into(),
            });
        }
        crate::step!("S4");
        Ok(())
    }

    /// BEGIN, once.
    async fn begin(&mut self) -> Result<()> {
        if !std::mem::replace(&mut self.begun, true) {
            let begun = self.client.batch_execute("BEGIN").await;
            begun.map_err(Error::postgres("beginning a Postgres transaction"))?;
        }
        Ok(())
    }

    async fn check_constraints(&self) -> Result<()> {
        self.client
            .batch_execute("SET CONSTRAINTS ALL IMMEDIATE")
            .await
            .map_err(Error::postgres(format!("checking the constraints of {}", self.plan.table)))
    }

    /// The number of the part's next chunk.
    fn number(&mut self, part: usize) -> i32 {
        let number = self.written[part].chunks;
        self.written[part].chunks += 1;
        number
    }

    async fn store(&self, part: usize, number: i32, kind: ChunkKind, batches: &[RecordBatch]) -> Result<()> {
        let body = chunk::pack_all(batches)?;
        self.ledger.insert_chunk(self.client, self.commit, self.partitions[part], number, kind, &body).await
    }
}

/// One COPY BINARY under way. Dropped before [`Copy::finish`], it is cancelled.
pub struct Copy {
    sink: Pin<Box<CopyInSink<Bytes>>>,
    encoder: CopyEncoder,
    buffer: BytesMut,
    table: String,
}

impl Copy {
    pub async fn begin(client: &Client, statement: &Statement, plan: &CopyPlan) -> Result<Copy> {
        let sink = client
            .copy_in::<_, Bytes>(statement)
            .await
            .map_err(Error::postgres(format!("copying rows into {}", plan.table)))?;
        let encoder = CopyEncoder::new(&plan.schema, &plan.types)?;
        let mut buffer = BytesMut::new();
        copy::header(&mut buffer);
        Ok(Copy { sink: Box::pin(sink), encoder, buffer, table: plan.table.clone() })
    }

    pub async fn rows(&mut self, batch: &RecordBatch) -> Result<()> {
        for chunk in self.encoder.chunks(batch, &mut self.buffer)? {
            self.sink.send(chunk?).await.map_err(Error::postgres(format!("copying rows into {}", self.table)))?;
        }
        Ok(())
    }

    /// The number of rows that Postgres says it has copied.
    pub async fn finish(self) -> Result<u64> {
        let Copy { mut sink, mut buffer, table, .. } = self;
        let doing = || Error::postgres(format!("copying rows into {table}"));
        copy::trailer(&mut buffer);
        sink.send(buffer.freeze()).await.map_err(doing())?;
        sink.as_mut().finish().await.map_err(doing())
    }
}

/// Whether Postgres refused the rows for what they hold: data exceptions (22), constraint violations (23), limits (54) and
/// what a trigger raises (P0); then Postgres's words. Not the rows' fault: an exhausted sequence; a unique key or a NOT NULL over
/// columns that the job does not write (a serial id whose sequence lags behind, a column that was added); a missing partition of
/// the table.
pub fn refusal(error: &Error, columns: &[String]) -> Option<String> {
    let Error::Postgres { doing, source } = error else { return None };
    let db = source.as_db_error()?;
    let code = db.code().code();
    if !matches!(&code[..2], "22" | "23" | "54" | "P0") || code == "2200H" {
        return None;
    }
    let ours = |column: Option<&str>| column.is_some_and(|column| columns.iter().any(|written| written == column));
    if (code == "23502" && !ours(db.column())) || (code == "23514" && db.constraint().is_none()) {
        return None;
    }
    if code == "23505" && !key_columns(db.detail()).is_some_and(|key| key.iter().any(|column| columns.contains(column)))
    {
        return None;
    }
    // What a failing row looks like is left out: it shows serial ids and times, which every try has anew. So is where in the
    // COPY it stood, but for the column. The dead letter has the message whole.
    let shows_the_row = matches!(code, "23502" | "23514");
    let more = [db.where_().and_then(column_of), db.detail().filter(|_| !shows_the_row), db.hint()];
    let more: String = more.into_iter().flatten().map(|more| format!("; {more}")).collect();
    Some(format!("{doing}: {} (SQLSTATE {code}){more}", db.message()))
}

/// `column c` in `COPY t, line 1, column c: "..."`.
fn column_of(context: &str) -> Option<&str> {
    let at = context.find("column ")?;
    context[at..].split([':', '\n']).next()
}

/// The columns in `Key (a, b)=(1, 2) already exists.`
fn key_columns(detail: Option<&str>) -> Option<Vec<String>> {
    let (_, rest) = detail?.split_once('(')?;
    let (columns, _) = rest.split_once(")=")?;
    Some(columns.split(", ").map(|column| column.trim_matches('"').to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_column_of_a_refused_value_is_read() {
        assert_eq!(column_of("COPY t, line 3, column c"), Some("column c"));
        assert_eq!(column_of("COPY t, line 3, column c: \"text\"\nSQL function"), Some("column c"));
        assert_eq!(column_of("COPY t, line 3"), None);
    }

    #[test]
    fn the_columns_of_a_violated_key_are_read() {
        assert_eq!(key_columns(Some("Key (id)=(1) already exists.")), Some(vec!["id".into()]));
        assert_eq!(key_columns(Some("Key (a, \"B c\")=(1, 2) already exists.")), Some(vec!["a".into(), "B c".into()]));
        assert_eq!(key_columns(Some("something else")), None);
    }
}
