//! A decoded micro-batch, and how it is made smaller.

use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::UInt32Type;

use super::{Decoder, ROW};
use crate::dead_letter::Reject;
use crate::error::{Error, Result};
use crate::messages::{Messages, MicroBatch};
use crate::offsets::OffsetRange;

impl Decoder {
    /// As [`Decoder::decode`], for all that a micro-batch holds.
    pub fn work(&self, micro: MicroBatch) -> Result<Work> {
        let decoded = self.decode(&micro.messages)?;
        Ok(Work {
            partition: micro.partition,
            range: micro.range,
            messages: Arc::new(micro.messages),
            batch: decoded.batch,
            rejects: decoded.rejects,
        })
    }
}

/// A micro-batch on its way: decoded, with what had to be left out of it.
#[derive(Debug, Clone)]
pub struct Work {
    pub partition: i32,
    pub range: OffsetRange,
    pub messages: Arc<Messages>,
    /// Accepted messages, by the declared columns and their row numbers.
    pub batch: RecordBatch,
    pub rejects: Vec<Reject>,
}

impl Work {
    /// How many messages it covers: each is a row or a reject.
    pub fn messages(&self) -> usize {
        self.batch.num_rows() + self.rejects.len()
    }

    /// The first `most` messages of all works, in their order, and the rest.
    pub fn split_all(works: &[Work], most: usize) -> Result<(Vec<Work>, Vec<Work>)> {
        let (mut first, mut rest, mut left) = (Vec::new(), Vec::new(), most);
        for work in works {
            match work.messages() {
                // Ranges may cover more offsets than messages: a work without any goes along.
                all if all <= left => first.push(work.clone()),
                _ if left == 0 => rest.push(work.clone()),
                _ => {
                    let (head, tail) = work.split(left)?;
                    first.push(head);
                    rest.push(tail);
                }
            }
            left = left.saturating_sub(work.messages());
        }
        Ok((first, rest))
    }

    /// Its first `count` messages, fewer than all and more than none, and the others.
    fn split(&self, count: usize) -> Result<(Work, Work)> {
        let rows = row_numbers(&self.batch);
        let mut all: Vec<u32> = rows.iter().copied().chain(self.rejects.iter().map(|reject| reject.row)).collect();
        all.sort_unstable();
        let Some(&row) = all.get(count) else {
            return Err(Error::Claim { what: "a batch has fewer messages than were counted".into() });
        };
        let boundary = self.messages.offset(row as usize);
        let accepted = rows.partition_point(|number| *number < row);
        let refused = self.rejects.partition_point(|reject| reject.row < row);
        let part = |range, start: usize, len, rejects: &[Reject]| Work {
            partition: self.partition,
            range,
            messages: self.messages.clone(),
            batch: self.batch.slice(start, len),
            rejects: rejects.to_vec(),
        };
        let head = OffsetRange { to: boundary, ..self.range };
        let tail = OffsetRange { from: boundary, ..self.range };
        let (before, after) = self.rejects.split_at(refused);
        Ok((part(head, 0, accepted, before), part(tail, accepted, rows.len() - accepted, after)))
    }

    /// Takes messages out of the batch that a sink has refused.
    pub fn exclude(&mut self, rejects: impl IntoIterator<Item = Reject>) -> Result<()> {
        self.rejects.extend(rejects);
        self.rejects.sort_by_key(|reject| reject.row);
        self.rejects.dedup_by_key(|reject| reject.row);
        let rows = row_numbers(&self.batch);
        let keep = BooleanArray::from_iter(
            rows.iter().map(|row| Some(self.rejects.binary_search_by_key(row, |reject| reject.row).is_err())),
        );
        self.batch = filter_record_batch(&self.batch, &keep)
            .map_err(|error| Error::engine("leaving out refused messages")(error.into()))?;
        Ok(())
    }
}

/// The hidden row numbers, which are the last column.
pub fn row_numbers(batch: &RecordBatch) -> &[u32] {
    let last = batch.columns().last();
    debug_assert_eq!(batch.schema().fields().last().map(|field| field.name().as_str()), Some(ROW));
    last.filter(|column| column.null_count() == 0)
        .and_then(|column| column.as_primitive_opt::<UInt32Type>())
        .map_or(&[], |rows| rows.values())
}
