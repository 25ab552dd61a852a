//! Sends stored parts to Kafka: the stored bytes, with nothing recomputed. Neither settings nor SQL, clock or lookup tables
//! have a say; they may have changed since.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_postgres::Client;

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
    let sending = kafka::blocking(move || {
        producer.begin()?;
        send(&producer, inbox)?;
        producer.acknowledged(kafka::TRANSACTION_TIMEOUT)?;
        crate::step!("S15");
        producer.send_offsets(&topic, &offsets, group.get())?;
        producer.commit()
    });
    let reading = async {
        for part in parts {
            read(ledger, postgres, part, &chunks).await?;
        }
        drop(chunks);
        Ok(())
    };
    tokio::try_join!(sending, reading)?;
    metrics::replayed_parts(parts.len() as u64);
    Ok(())
}

type Stored = (PartHead, ChunkKind, Vec<u8>);

async fn read(ledger: &Ledger, postgres: &Client, part: &PartHead, to: &mpsc::Sender<Stored>) -> Result<()> {
    if part.format > PART_FORMAT {
        return Err(Error::Halt {
            what: format!(
                "the stored batch {} has format {}, this binary reads up to {PART_FORMAT}",
                name(part),
                part.format
            ),
            remedy: "run the newer dinnerbell that wrote it, at least until it has confirmed the batch".into(),
        });
    }
    let mut number = 0;
    while let Some((kind, body)) = ledger.chunk(postgres, part, number).await? {
        if to.send((part.clone(), kind, body)).await.is_err() {
            // The sender has failed; its error is the one that counts.
            return Ok(());
        }
        number += 1;
    }
    Ok(())
}

fn send(producer: &Producer, mut inbox: mpsc::Receiver<Stored>) -> Result<()> {
    while let Some((part, kind, body)) = inbox.blocking_recv() {
        let broken = |what: String| {
            Error::Halt {
            what: format!("the stored batch {} cannot be sent again: {what}", name(&part)),
            remedy: "its rows are in the sink table but not confirmed in the output topic; please keep the ledger's parts and \
                     chunks tables and report it"
                .into(),
        }
        };
        let batch = chunk::unpack(&body).map_err(|error| broken(error.to_string()))?;
        match kind {
            ChunkKind::Rows => {
                // What the topic takes was checked when the rows were stored; should it take less now, the broker says so.
                let to = Destination { topic: part.output_topic.as_str().into(), max_record_bytes: usize::MAX };
                RowProducer::new(&batch.schema(), to, part.output_key.as_deref())?.produce(producer, &batch)?;
            }
            ChunkKind::Letters => {
                for letter in dead_letter::from_record_batch(&batch).map_err(|error| broken(error.to_string()))? {
                    produce_letter(producer, &part.letter_topic, &letter)?;
                }
            }
        }
    }
    Ok(())
}

fn name(part: &PartHead) -> String {
    format!("{} of partition {}, offsets [{}, {})", part.commit_id, part.partition, part.from, part.to)
}
