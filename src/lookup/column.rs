//! One column of a lookup table, and how it grows while the table is loaded.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, BooleanBufferBuilder, UInt32Array, new_null_array};
use arrow::buffer::{BooleanBuffer, NullBuffer};
use arrow::compute::{filter, take};
use arrow::datatypes::DataType;
use datafusion::common::{Result, internal_err};

use super::NO_ROW;
use super::index::{Key, KeyIndex, Keys, NO_KEY, each_key};
use super::text::{TextBuilder, TextColumn};
use crate::pages;

#[derive(Debug)]
pub(super) enum Column {
    Text(TextColumn),
    /// Everything that has no shorter form than Arrow's.
    Array(ArrayRef),
    /// The key that the table is in the order of.
    Key(Arc<KeyIndex>),
}

impl Column {
    /// The values of `rows`; null for [`NO_ROW`]. What comes out shares nothing with the table.
    pub(super) fn gather(&self, data_type: &DataType, rows: &[u32]) -> Result<ArrayRef> {
        match self {
            Column::Text(texts) => Ok(Arc::new(texts.gather(rows))),
            Column::Key(index) => index.gather(rows),
            Column::Array(array) if array.is_empty() => Ok(new_null_array(data_type, rows.len())),
            Column::Array(array) => {
                let there = BooleanBuffer::collect_bool(rows.len(), |place| rows[place] != NO_ROW);
                let nulls = rows.contains(&NO_ROW).then(|| NullBuffer::new(there));
                Ok(take(array, &UInt32Array::new(rows.to_vec().into(), nulls), None)?)
            }
        }
    }

    /// The values of `len` rows from `start` on.
    pub(super) fn slice(&self, data_type: &DataType, start: u32, len: u32) -> Result<ArrayRef> {
        match self {
            Column::Array(array) => Ok(array.slice(start as usize, len as usize)),
            _ => self.gather(data_type, &(start..start + len).collect::<Vec<_>>()),
        }
    }

    /// An index over this column, which is not the key that the table is in the order of.
    pub(super) fn index(&self, data_type: &DataType) -> Result<KeyIndex> {
        let mut keys = Keys::new(data_type)?;
        let mut numbers = Vec::new();
        let mut number = |key: Option<Key<'_>>| numbers.push(key.map_or(NO_KEY, |key| keys.number(key)));
        match self {
            Column::Text(texts) => (0..texts.len()).for_each(|row| number(texts.get(row).map(Key::Text))),
            Column::Array(array) => each_key(array, number)?,
            Column::Key(_) => {}
        }
        Ok(KeyIndex::listed(keys, &numbers))
    }

    /// The column without these rows, which are in ascending order.
    pub(super) fn without(self, rows: &[u32]) -> Result<Column> {
        Ok(match self {
            Column::Text(texts) => Column::Text(texts.without(rows)),
            Column::Array(array) => {
                let mut stays = BooleanBufferBuilder::new(array.len());
                stays.append_n(array.len(), true);
                rows.iter().for_each(|&row| stays.set_bit(row as usize, false));
                Column::Array(filter(&array, &BooleanArray::new(stays.finish(), None))?)
            }
            Column::Key(index) => Column::Key(Arc::new(KeyIndex::unshared(index)?.without(rows))),
        })
    }

    /// See [`crate::pages`].
    pub(super) fn collapse(&self) {
        match self {
            Column::Text(texts) => texts.collapse(),
            Column::Array(array) => array.to_data().buffers().iter().for_each(|buffer| pages::collapse(buffer)),
            Column::Key(index) => index.collapse(),
        }
    }

    /// Memory held, in bytes.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Column::Text(texts) => texts.bytes(),
            Column::Array(array) => array.get_array_memory_size(),
            Column::Key(index) => index.bytes(),
        }
    }
}

/// A column whose rows stand as they came.
pub(super) enum Loaded {
    Text(TextBuilder),
    Array(ArrayRef),
    /// The key to put the table in the order of: its values, and by row the number of its own.
    Key(Keys, Vec<u32>),
}

/// The columns of a table, in the order of its key if there is one. Each is freed as soon as the next form of it is
/// there: this needs one column more than the table.
pub(super) fn finish(loaded: Vec<Loaded>) -> Result<Vec<Column>> {
    let mut order = None;
    let mut keyed = Vec::with_capacity(loaded.len());
    for column in loaded {
        keyed.push(match column {
            Loaded::Key(keys, numbers) if order.is_none() => {
                let (index, rows) = KeyIndex::ordered(keys, &numbers);
                order = Some(UInt32Array::from(rows));
                Ok(Column::Key(Arc::new(index)))
            }
            other => Err(other),
        });
    }
    keyed.into_iter().map(|column| column.or_else(|loaded| loaded.finish(order.as_ref()))).collect()
}

impl Loaded {
    fn finish(self, order: Option<&UInt32Array>) -> Result<Column> {
        Ok(match (self, order) {
            (Loaded::Text(texts), order) => Column::Text(texts.finish(order.map(|order| order.values().as_ref()))),
            (Loaded::Array(array), Some(order)) => Column::Array(take(&array, order, None)?),
            (Loaded::Array(array), None) => Column::Array(array),
            (Loaded::Key(..), _) => return internal_err!("a table stands in the order of one key"),
        })
    }
}
