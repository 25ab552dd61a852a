//! Sends stored parts to Kafka: the stored bytes, with nothing recomputed. Neither settings nor SQL, clock or lookup tables
//! have a say; they may have changed since.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use arrow::array::RecordBatch;
use tokio::sync::mpsc;
use tokio_postgres::Client;

use super::ailment::Verb;
use super::store::{ChunkKind, Ledger, PART_FORMAT, PartHead};
use crate::dead_letter;
use crate::encode::chunk;
use crate::error::{Error, Result};
use crate::kafka::{self, GroupMetadata};
use crate::sink::kafka::{Destination, OffsetCommit, Producer, produce_letter};
use crate::sink::rows::RowProducer;
use crate::telemetry::metrics;

/// Chunks read from Postgres ahead of the producer.
const AHEAD: usize = 2;

/// One Kafka transaction with the rows and letters of `parts` and with `offsets`.
///
/// # Errors
/// [`Error::Halt`] for a part that cannot be read or sent; what the servers say otherwise.
pub async fn emit(
    ledger: &Ledger,
    postgres: &Client,
    producer: Arc<Producer>,
    parts: &[PartHead],
    offsets: Vec<OffsetCommit>,
    group: Arc<GroupMetadata>,
) -> Result<()> {
    let (chunks, inbox) = mpsc::channel(AHEAD);
    let topic = ledger.topic.clone();
    let expected = parts.to_vec();
    let sending = kafka::blocking(move || {
        producer.begin()?;
        send(&producer, &expected, inbox)?;
        if !producer.acknowledged(Instant::now() + kafka::TRANSACTION_TIMEOUT)? {
            return Err(Error::Away { what: "Kafka did not acknowledge the records of a stored batch".into() });
        }
        crate::step!("S15");
        producer.send_offsets(&topic, &offsets, group.get())?;
        producer.commit()
    });
    let reading = async {
        for part in parts {
            read(ledger, postgres, part, &chunks).await?;
        }
        // Only this says that all is there: a channel that just closes is a re-emission that was given up.
        let _ = chunks.send(Feed::End).await;
        Ok(())
    };
    tokio::try_join!(sending, reading)?;
    metrics::replayed_parts(parts.len() as u64);
    Ok(())
}

enum Feed {
    Chunk(PartHead, ChunkKind, Vec<u8>),
    /// All chunks of all parts have come.
    End,
}

async fn read(ledger: &Ledger, postgres: &Client, part: &PartHead, to: &mpsc::Sender<Feed>) -> Result<()> {
    readable_format(part)?;
    let mut number = 0;
    loop {
        crate::step!("S15.chunk");
        let Some((kind, body)) = ledger.chunk(postgres, part, number).await? else { return Ok(()) };
        if to.send(Feed::Chunk(part.clone(), kind, body)).await.is_err() {
            // The sender has failed; its error is the one that counts.
            return Ok(());
        }
        number += 1;
    }
}

fn send(producer: &Producer, parts: &[PartHead], mut inbox: mpsc::Receiver<Feed>) -> Result<()> {
    let mut sent = BTreeMap::new();
    loop {
        let (part, kind, body) = match inbox.blocking_recv() {
            Some(Feed::Chunk(part, kind, body)) => (part, kind, body),
            Some(Feed::End) => break,
            None => return Err(Error::Claim { what: "sending a stored batch again was given up on the way".into() }),
        };
        let batch = chunk::unpack(&body).map_err(|error| broken(&part, &error.to_string()))?;
        let count: &mut (i64, i64) = sent.entry((part.commit_id, part.partition)).or_default();
        match kind {
            ChunkKind::Rows => {
                count.0 += batch.num_rows() as i64;
                // What the topic takes was checked when the rows were stored; should it take less now, the broker says so.
                let to = Destination { topic: part.output_topic.as_str().into(), max_record_bytes: usize::MAX };
                RowProducer::new(&batch.schema(), to, part.output_key.as_deref())?.produce(producer, &batch)?;
            }
            ChunkKind::Letters => {
                count.1 += batch.num_rows() as i64;
                for letter in
                    dead_letter::from_record_batch(&batch).map_err(|error| broken(&part, &error.to_string()))?
                {
                    produce_letter(producer, &part.letter_topic, &letter)?;
                }
            }
        }
    }
    for part in parts {
        check_counts(part, sent.get(&(part.commit_id, part.partition)).copied().unwrap_or_default())?;
    }
    Ok(())
}

/// Whether this binary knows the part's format.
fn readable_format(part: &PartHead) -> Result<()> {
    if part.format <= PART_FORMAT {
        return Ok(());
    }
    Err(Error::Halt {
        what: format!(
            "the stored batch {} has format {}, this binary reads up to {PART_FORMAT}",
            name(part),
            part.format
        ),
        remedy: format!(
            "run the newer dinnerbell that wrote it, at least until it has confirmed the batch; otherwise {}",
            Verb::ResendFromTable.advice()
        ),
    })
}

/// Reads all of a stored part, and sends nothing.
///
/// # Errors
/// [`Error::Halt`] with what is wrong with it; [`Error::Postgres`].
pub async fn verify(ledger: &Ledger, postgres: &Client, part: &PartHead) -> Result<()> {
    let (mut rows, mut letters) = (0, 0);
    each_chunk(ledger, postgres, part, async |kind, batch| {
        match kind {
            ChunkKind::Rows => rows += batch.num_rows() as i64,
            ChunkKind::Letters => letters += dead_letter::from_record_batch(&batch)?.len() as i64,
        }
        Ok(())
    })
    .await?;
    check_counts(part, (rows, letters))
}

/// Hands out the chunks of a stored part.
///
/// # Errors
/// As for [`verify`].
pub async fn each_chunk(
    ledger: &Ledger,
    postgres: &Client,
    part: &PartHead,
    mut each: impl AsyncFnMut(ChunkKind, RecordBatch) -> Result<()>,
) -> Result<()> {
    readable_format(part)?;
    let mut number = 0;
    while let Some((kind, body)) = ledger.chunk(postgres, part, number).await? {
        let batch = chunk::unpack(&body).map_err(|error| broken(part, &error.to_string()))?;
        each(kind, batch).await?;
        number += 1;
    }
    Ok(())
}

/// Chunks that went missing must not pass for a batch that was sent.
fn check_counts(part: &PartHead, (rows, letters): (i64, i64)) -> Result<()> {
    if (rows, letters) == (part.rows, part.letters) {
        return Ok(());
    }
    let stored = format!("{rows} rows and {letters} letters are stored of {} and {}", part.rows, part.letters);
    Err(broken(part, &stored))
}

fn broken(part: &PartHead, what: &str) -> Error {
    Error::Halt {
        what: format!("the stored batch {} cannot be sent again: {what}", name(part)),
        remedy: format!(
            "its rows are in the sink table and not in the output topic. Restore the ledger's parts and chunks tables if \
             you can; otherwise {}",
            Verb::ResendFromTable.advice()
        ),
    }
}

fn name(part: &PartHead) -> String {
    format!("{} of partition {}, offsets [{}, {})", part.commit_id, part.partition, part.from, part.to)
}
