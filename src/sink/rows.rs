//! Output rows as Kafka records: the same code for rows that were just made and for stored ones.

use std::borrow::Cow;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::Schema;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::common::DataFusionError;

use super::kafka::{Destination, Producer};
use crate::encode::json::JsonRows;
use crate::error::{Error, Result};

/// Encodes rows of one schema as JSON and produces them to one topic.
pub struct RowProducer {
    to: Destination,
    key: Option<usize>,
    rows: JsonRows,
}

impl RowProducer {
    /// `key` names the column whose value becomes the record's key.
    ///
    /// # Errors
    /// [`Error::Setting`] where there is no such column.
    pub fn new(schema: &Schema, to: Destination, key: Option<&str>) -> Result<RowProducer> {
        let key = key.map(|name| schema.index_of(name).map_err(|_| no_such_key(schema, name))).transpose()?;
        Ok(RowProducer { to, key, rows: JsonRows::new(schema)? })
    }

    /// Produces each row of the batch; returns the rows that are too large for the topic, which were left out.
    ///
    /// # Errors
    /// Encoding's or Kafka's.
    pub fn produce(&self, producer: &Producer, batch: &RecordBatch) -> Result<Vec<usize>> {
        let (mut row, mut too_large) = (0, Vec::new());
        self.rows.pieces(batch, |texts| {
            let column = self.key.map(|index| batch.column(index).slice(row, texts.len()));
            let keys = column.as_ref().map(keys).transpose()?;
            let records = texts.rows().enumerate().filter_map(|(n, value)| {
                let key = keys.as_ref().and_then(|keys| keys[n].as_deref());
                let fits = self.to.fits(key, Some(value), 0);
                if !fits {
                    too_large.push(row + n);
                }
                fits.then_some((key, value))
            });
            producer.produce_all(&self.to.topic, records)?;
            row += texts.len();
            Ok(())
        })?;
        Ok(too_large)
    }
}

fn no_such_key(schema: &Schema, name: &str) -> Error {
    let columns: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    Error::Setting {
        key: "sink.kafka.key".into(),
        problem: format!("triggers.sql has no output column {name:?}"),
        remedy: format!("name one of {}, or remove the setting for records without a key", columns.join(", ")),
    }
}

/// Key bytes by row: text as it is, other types as SQL would print them. A null value gives a null key.
fn keys(column: &ArrayRef) -> Result<Vec<Option<Cow<'_, [u8]>>>> {
    if let Some(texts) = column.as_string_view_opt() {
        return Ok(texts.iter().map(|text| text.map(|text| text.as_bytes().into())).collect());
    }
    let formatter = ArrayFormatter::try_new(column.as_ref(), &FormatOptions::new())
        .map_err(|error| Error::engine("printing the record key")(DataFusionError::from(error)))?;
    let key = |row| column.is_valid(row).then(|| formatter.value(row).to_string().into_bytes().into());
    Ok((0..column.len()).map(key).collect())
}
