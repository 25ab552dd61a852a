//! The Postgres sink: rows by COPY BINARY, and behind each COPY the stored chunks of its rows, on one connection and in the
//! transaction that the caller has opened.

use std::pin::Pin;

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

/// Rows in one stored chunk, at most a batch more: so few (some 10 MB of views and bytes) are held until they are packed, however
/// many subscribers a campaign has.
pub const SLICE_ROWS: usize = 65_536;

/// Bytes of stored chunks that wait for the end of their COPY, at most a slice's more, and twice as many while they are sent. From the
/// end of a COPY until the next one's first rows Postgres waits for us, so that a COPY is long: about half a million rows of ordinary
/// campaigns. (Also, all of them are sent where Postgres refuses one: its error is seen at the end.)
pub const WAITING_CHUNKS: usize = 8 << 20;

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
    /// Rows that were sent and are not yet packed, each batch with its part.
    slice: Vec<(usize, RecordBatch)>,
    slice_rows: usize,
    /// Chunks of the COPY under way.
    chunks: Vec<Chunk>,
    begun: bool,
    started: bool,
}

/// A stored chunk, packed.
struct Chunk {
    part: usize,
    number: i32,
    kind: ChunkKind,
    body: Vec<u8>,
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
            chunks: Vec::new(),
            begun: false,
            started: false,
        })
    }

    /// Opens the transaction, writes all that comes, and checks deferred constraints at the end. Nothing is committed.
    ///
    /// # Errors
    /// [`Error::Postgres`]; whether it is a refusal of the rows is for [`refusal`] to say.
    pub async fn write(mut self, mut inbox: mpsc::Receiver<Piece>) -> Result<Vec<Written>> {
        let mut checked = false;
        let mut next = inbox.recv().await;
        while let Some(piece) = next {
            next = match piece {
                Piece::Letters { part, letters } => {
                    self.begin().await?;
                    self.written[part].letters += letters.len() as i64;
                    let letters =
                        self.next_chunk(part, ChunkKind::Letters, &[dead_letter::to_record_batch(&letters)?])?;
                    self.store(&letters).await?;
                    inbox.recv().await
                }
                Piece::Rows { part, batch, .. } => {
                    let (copy, next) = self.copy(part, batch, &mut inbox).await?;
                    checked = next.is_none();
                    self.end(copy, checked).await?;
                    next
                }
            };
        }
        if !checked {
            self.begin().await?;
            self.check_constraints().await?;
        }
        Ok(self.written)
    }

    /// One COPY: this batch and those after it, until enough chunks wait for its end or something else than rows comes; with
    /// what came last.
    async fn copy(
        &mut self,
        mut part: usize,
        mut batch: RecordBatch,
        inbox: &mut mpsc::Receiver<Piece>,
    ) -> Result<(Copy, Option<Piece>)> {
        // COPY follows BEGIN without waiting; its rows wait for both answers.
        let (client, statement, plan) = (self.client, self.copy.clone(), self.plan);
        let ((), mut copy) = futures::try_join!(self.begin(), Copy::begin(client, &statement, plan))?;
        loop {
            copy.rows(&batch).await?;
            self.slice_rows += batch.num_rows();
            self.slice.push((part, batch));
            if !self.started {
                self.started = true;
                crate::step!("S3");
            }
            if self.slice_rows >= SLICE_ROWS {
                // Postgres still has rows to take, in the connection's buffers.
                self.pack()?;
            }
            let waiting: usize = self.chunks.iter().map(|chunk| chunk.body.len()).sum();
            match inbox.recv().await {
                Some(Piece::Rows { part: of, batch: more, .. }) if waiting < WAITING_CHUNKS => {
                    (part, batch) = (of, more)
                }
                next => return Ok((copy, next)),
            }
        }
    }

    /// Ends a COPY and stores its rows, and checks constraints where it is the last: sent one after the other, without
    /// waiting for answers in between. The last chunks are packed while Postgres takes what is left of the rows.
    async fn end(&mut self, copy: Copy, last: bool) -> Result<()> {
        let (sent, table) = (copy.sent, &self.plan.table);
        let store = async {
            self.pack()?;
            let chunks = std::mem::take(&mut self.chunks);
            let inserts = futures::future::join_all(chunks.iter().map(|chunk| self.store(chunk)));
            let check = async { if last { self.check_constraints().await } else { Ok(()) } };
            let (inserted, checked) = futures::join!(inserts, check);
            inserted.into_iter().collect::<Result<()>>().and(checked)
        };
        // Polled in this order, so that the last rows are on their way before the packing begins. All answers are waited for: of
        // several errors the first is the cause, and those after it say no more than that the transaction is lost.
        let (copied, stored) = futures::join!(copy.finish(), store);
        let copied = copied?;
        stored?;
        if copied != sent {
            return Err(Error::Halt {
                what: format!("Postgres copied {copied} rows of {sent} into {table}"),
                remedy:
                    "a trigger or rule of the table swallows rows: the two sinks would differ. Remove it, or write to \
                         another table"
                        .into(),
            });
        }
        crate::step!("S4");
        Ok(())
    }

    /// Makes chunks of the slice: one for each run of rows of one part.
    fn pack(&mut self) -> Result<()> {
        self.slice_rows = 0;
        for run in std::mem::take(&mut self.slice).chunk_by(|a, b| a.0 == b.0) {
            let part = run[0].0;
            let rows: Vec<RecordBatch> = run.iter().map(|(_, batch)| batch.clone()).collect();
            self.written[part].rows += rows.iter().map(|batch| batch.num_rows() as i64).sum::<i64>();
            let chunk = self.next_chunk(part, ChunkKind::Rows, &rows)?;
            self.chunks.push(chunk);
        }
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

    /// Packs the part's next chunk.
    fn next_chunk(&mut self, part: usize, kind: ChunkKind, batches: &[RecordBatch]) -> Result<Chunk> {
        let number = self.written[part].chunks;
        self.written[part].chunks += 1;
        Ok(Chunk { part, number, kind, body: chunk::pack_all(batches)? })
    }

    async fn store(&self, chunk: &Chunk) -> Result<()> {
        let Chunk { part, number, kind, body } = chunk;
        self.ledger.insert_chunk(self.client, self.commit, self.partitions[*part], *number, *kind, body).await
    }
}

/// One COPY BINARY under way. Dropped before [`Copy::finish`], it is cancelled.
pub struct Copy {
    sink: Pin<Box<CopyInSink<Bytes>>>,
    encoder: CopyEncoder,
    buffer: BytesMut,
    table: String,
    /// Rows.
    sent: u64,
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
        Ok(Copy { sink: Box::pin(sink), encoder, buffer, table: plan.table.clone(), sent: 0 })
    }

    pub async fn rows(&mut self, batch: &RecordBatch) -> Result<()> {
        for chunk in self.encoder.chunks(batch, &mut self.buffer)? {
            self.sink.send(chunk?).await.map_err(Error::postgres(format!("copying rows into {}", self.table)))?;
        }
        self.sent += batch.num_rows() as u64;
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
