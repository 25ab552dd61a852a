//! JSON messages to one Arrow batch, by the schema that `campaigns.sql` declares.
//!
//! Promises: every message becomes exactly one row or one [`Reject`], whatever its bytes; a bad message leaves nothing
//! of itself behind and changes nothing about its neighbours; strings without escapes are views into the messages and
//! are never copied. Does not: talk to Kafka, convert between types, or look at keys and headers.

mod columns;
mod message;
mod plain;
mod schema;
#[cfg(test)]
mod tests;
mod value;
mod words;
mod work;

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, UInt32Array};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;

pub use message::MAX_DEPTH;
use message::Rows;
pub use schema::{CampaignSchema, ROW, TABLE};
pub use work::{Work, row_numbers};

use crate::dead_letter::{Reject, Stage};
use crate::messages::Messages;
use crate::{Error, Result};

/// What a message may be at most; its nesting is limited by [`MAX_DEPTH`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a message's value.
    pub max_value_bytes: usize,
}

/// Decodes micro-batches of one schema. Holds no state between them.
#[derive(Debug, Clone)]
pub struct Decoder {
    schema: SchemaRef,
    columns: Vec<schema::Column>,
    by_name: HashMap<String, usize>,
    limits: Limits,
}

/// What became of a micro-batch: `batch.num_rows() + rejects.len()` is the number of messages.
#[derive(Debug, Clone)]
pub struct Decoded {
    /// The good messages in their order, in the shape of [`CampaignSchema::full_schema`]: the last column, [`ROW`],
    /// says which message a row came from. Its strings keep the messages' values alive.
    pub batch: RecordBatch,
    /// The bad ones in their order, all of [`Stage::Decode`], each with the first fault that was met.
    pub rejects: Vec<Reject>,
}

impl Decoder {
    pub fn new(schema: &CampaignSchema, limits: Limits) -> Decoder {
        let columns = schema.columns().to_vec();
        let by_name = columns.iter().enumerate().map(|(position, column)| (column.name.clone(), position)).collect();
        Decoder { schema: schema.full_schema(), columns, by_name, limits }
    }

    /// Reads every message once.
    ///
    /// # Errors
    /// [`Error::Engine`] if Arrow refuses the columns, which would be a fault in this program: no message can cause it.
    pub fn decode(&self, messages: &Messages) -> Result<Decoded> {
        self.decode_by(messages, Rows::append)
    }

    /// With `append` as the way from a message to a row.
    fn decode_by<'m>(
        &'m self,
        messages: &'m Messages,
        append: impl Fn(&mut Rows<'m>, &'m [u8]) -> Result<(), words::Problem>,
    ) -> Result<Decoded> {
        let mut rows = Rows::new(&self.columns, &self.by_name, messages.values(), messages.len());
        let mut numbers = Vec::with_capacity(messages.len());
        let mut rejects = Vec::new();
        for row in 0..messages.len() {
            match self.readable(messages.value(row)).and_then(|value| append(&mut rows, value)) {
                Ok(()) => numbers.push(row as u32),
                Err(problem) => rejects.push(Reject {
                    row: row as u32,
                    stage: Stage::Decode,
                    path: problem.path,
                    reason: problem.reason,
                }),
            }
        }
        let batch = self.batch(rows, numbers).map_err(|source| Error::Engine {
            doing: format!("building a batch of {} messages", messages.len()),
            source: source.into(),
        })?;
        Ok(Decoded { batch, rejects })
    }

    /// What needs no look into the value.
    fn readable<'m>(&self, value: Option<&'m [u8]>) -> Result<&'m [u8], words::Problem> {
        let Some(value) = value else {
            return Err(words::whole("a JSON object", "a null value (a tombstone)"));
        };
        if value.is_empty() {
            return Err(words::whole("a JSON object", "an empty value"));
        }
        let limit = self.limits.max_value_bytes;
        if value.len() > limit {
            return Err(words::whole(&format!("at most {limit} bytes"), &value.len().to_string()));
        }
        Ok(value)
    }

    fn batch(&self, rows: Rows, numbers: Vec<u32>) -> Result<RecordBatch, ArrowError> {
        let (builders, strings) = rows.finish();
        let buffers = strings.finish();
        let mut arrays = Vec::with_capacity(builders.len() + 1);
        for builder in builders {
            arrays.push(builder.finish(&buffers)?);
        }
        arrays.push(Arc::new(UInt32Array::from(numbers)) as ArrayRef);
        RecordBatch::try_new(self.schema.clone(), arrays)
    }
}
