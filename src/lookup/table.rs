//! Lookup tables in memory, and the snapshot of all of them that one run of the SQL sees.
//!
//! A table stands in the order of the key that it is joined by, so each key is there once and its rows follow one
//! another:
//!
//! ```text
//! SELECT restaurant_id, client_id: joined by restaurant_id
//!
//! KeyIndex                                    client_id, a TextColumn
//!   hash ─► 0  r1 ──────────── starts 0 ────► c1 c2 c3      16 bytes a row where it is a UUID,
//!           1  r2 ──────────── starts 3 ────► c9            else 16 and its text
//!           2  r3 ──────────── starts 4 ────► c1 c7
//!   25 to 31 bytes a key                      (rows without a key)
//! ```
//!
//! Ten million subscriptions of ten thousand restaurants take 160 MB, of a million restaurants 190 MB. Numbers and
//! times are Arrow arrays in the same order. Any further key that a table is joined by has an index of row numbers of its
//! own: 4 bytes a row more.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use arrow::array::{ArrayRef, AsArray, RecordBatch, RecordBatchOptions, new_empty_array};
use arrow::compute::concat;
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::{Result, exec_datafusion_err, exec_err};

use super::column::{Column, Loaded, finish};
use super::index::{Key, KeyIndex, Keys, NO_KEY, each_key};
use super::text::TextBuilder;
use super::{BATCH_ROWS, NO_ROW};

/// The columns that tables are joined by, as the plan of `triggers.sql` has it: by table, columns in their order there.
pub type LookupKeys = BTreeMap<String, Vec<usize>>;

/// One lookup table as it was when it was loaded. Never changed, only replaced.
#[derive(Debug)]
pub struct LookupTable {
    pub name: String,
    pub schema: SchemaRef,
    pub rows: u64,
    /// Memory held by the rows and by the index whose order they are in, in bytes.
    pub bytes: u64,
    pub loaded_at: Instant,
    columns: Vec<Column>,
    /// By column: its index. Beside the one that the table is in the order of, from the first time that a plan asks.
    indexes: Vec<OnceLock<Result<Arc<KeyIndex>, String>>>,
}

impl LookupTable {
    /// Takes batches that all have `schema`, and `key`, a column that the table is joined by.
    pub fn new(
        name: impl Into<String>,
        schema: SchemaRef,
        batches: Vec<RecordBatch>,
        key: Option<usize>,
    ) -> Result<Self> {
        let rows = batches.iter().map(RecordBatch::num_rows).sum();
        let load = |column: usize| -> Result<Loaded> {
            let arrays: Vec<_> = batches.iter().map(|batch| batch.column(column)).collect();
            let data_type = schema.field(column).data_type();
            if key == Some(column) {
                let (mut keys, mut numbers) = (Keys::new(data_type)?, Vec::with_capacity(rows));
                let mut number = |key: Option<Key<'_>>| numbers.push(key.map_or(NO_KEY, |key| keys.number(key)));
                arrays.into_iter().try_for_each(|array| each_key(array, &mut number))?;
                return Ok(Loaded::Key(keys, numbers));
            }
            Ok(match data_type {
                DataType::Utf8View => {
                    let mut texts = TextBuilder::new();
                    let values = arrays.into_iter().flat_map(|array| array.as_string_view());
                    values.for_each(|text| texts.push(text.map(Into::into)));
                    Loaded::Text(texts)
                }
                _ if arrays.is_empty() => Loaded::Array(new_empty_array(data_type)),
                _ => Loaded::Array(concat(&arrays.into_iter().map(AsRef::as_ref).collect::<Vec<_>>())?),
            })
        };
        let loaded = (0..schema.fields().len()).map(load).collect::<Result<_>>()?;
        Self::of_columns(name, Arc::clone(&schema), rows, finish(loaded)?)
    }

    /// A table that knows its columns and has no rows.
    pub fn empty(name: impl Into<String>, schema: SchemaRef) -> Self {
        let columns = schema.fields().iter().map(|field| Column::Array(new_empty_array(field.data_type())));
        Self::of(name.into(), Arc::clone(&schema), 0, columns.collect())
    }

    /// Of columns of `schema` with `rows` rows each, in the order of the key if there is one among them.
    pub(super) fn of_columns(
        name: impl Into<String>,
        schema: SchemaRef,
        rows: usize,
        columns: Vec<Column>,
    ) -> Result<Self> {
        if rows >= NO_ROW as usize {
            return exec_err!("{rows} rows are too many for a lookup table");
        }
        Ok(Self::of(name.into(), schema, rows, columns))
    }

    fn of(name: String, schema: SchemaRef, rows: usize, columns: Vec<Column>) -> Self {
        columns.iter().for_each(Column::collapse);
        let bytes = columns.iter().map(|column| column.bytes() as u64).sum();
        let index = |column: &Column| match column {
            Column::Key(index) => OnceLock::from(Ok(Arc::clone(index))),
            _ => OnceLock::new(),
        };
        let indexes = columns.iter().map(index).collect();
        Self { name, schema, rows: rows as u64, bytes, loaded_at: Instant::now(), columns, indexes }
    }

    /// The rows, [`BATCH_ROWS`] at a time, each batch made when it is asked for.
    pub fn scan(self: &Arc<Self>) -> impl Iterator<Item = Result<RecordBatch>> + Send + use<> {
        self.scan_columns((0..self.columns.len()).collect(), Arc::clone(&self.schema))
    }

    /// The same of `columns`, under `schema`: names and metadata do not matter, types do.
    pub(super) fn scan_columns(
        self: &Arc<Self>,
        columns: Vec<usize>,
        schema: SchemaRef,
    ) -> impl Iterator<Item = Result<RecordBatch>> + Send + use<> {
        let table = Arc::clone(self);
        let rows = self.rows as u32;
        (0..rows).step_by(BATCH_ROWS).map(move |start| {
            let len = (rows - start).min(BATCH_ROWS as u32);
            let slice = |&column: &usize| {
                let (column, data_type) = table.column(column)?;
                column.slice(data_type, start, len)
            };
            let options = RecordBatchOptions::new().with_row_count(Some(len as usize));
            let arrays = columns.iter().map(slice).collect::<Result<_>>()?;
            Ok(RecordBatch::try_new_with_options(Arc::clone(&schema), arrays, &options)?)
        })
    }

    /// The values of `rows` in `column`; null for [`NO_ROW`].
    pub(super) fn gather(&self, column: usize, rows: &[u32]) -> Result<ArrayRef> {
        let (column, data_type) = self.column(column)?;
        column.gather(data_type, rows)
    }

    fn column(&self, column: usize) -> Result<(&Column, &DataType)> {
        let missing = || exec_datafusion_err!("the lookup table {} has no column {column}", self.name);
        Ok((self.columns.get(column).ok_or_else(missing)?, self.schema.field(column).data_type()))
    }

    /// Memory held by further indexes that there are, in bytes.
    pub fn index_bytes(&self) -> u64 {
        let further = self.indexes.iter().zip(&self.columns).filter(|(_, column)| !matches!(column, Column::Key(_)));
        further.filter_map(|(index, _)| index.get()?.as_ref().ok()).map(|index| index.bytes() as u64).sum()
    }

    /// The index over `column`, if it is built.
    pub(super) fn built_index(&self, column: usize) -> Option<&Arc<KeyIndex>> {
        self.indexes.get(column)?.get()?.as_ref().ok()
    }

    /// The index over `column`. Builds it the first time, which takes a second for some ten million rows: not for a
    /// thread that others wait for.
    pub(super) fn index(&self, column: usize) -> Result<Arc<KeyIndex>> {
        let (values, data_type) = self.column(column)?;
        let built = self.indexes[column].get_or_init(|| {
            let index = values.index(data_type).map_err(|error| error.to_string())?;
            index.collapse();
            Ok(Arc::new(index))
        });
        built.clone().map_err(|problem| exec_datafusion_err!("indexing the lookup table {}: {problem}", self.name))
    }

    /// Builds the indexes over `columns`.
    pub(super) fn index_all(&self, columns: &[usize]) {
        for &column in columns {
            // One that fails here fails again, and is reported, where it is needed.
            let _ = self.index(column);
        }
    }

    /// The columns that have an index.
    pub(super) fn indexed(&self) -> Vec<usize> {
        (0..self.indexes.len()).filter(|&column| self.built_index(column).is_some()).collect()
    }
}

/// A snapshot of all lookup tables: immutable, cheap to clone, with a version of its own. Two sets with the same
/// version are the same set.
#[derive(Debug, Clone)]
pub struct LookupSet {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    version: u64,
    tables: BTreeMap<String, Arc<LookupTable>>,
}

impl LookupSet {
    pub fn new(tables: impl IntoIterator<Item = LookupTable>) -> Self {
        Self::shared(tables.into_iter().map(Arc::new))
    }

    /// Tables that other sets may have too.
    pub fn shared(tables: impl IntoIterator<Item = Arc<LookupTable>>) -> Self {
        static VERSIONS: AtomicU64 = AtomicU64::new(0);
        let tables = tables.into_iter().map(|table| (table.name.clone(), table)).collect();
        Self { inner: Arc::new(Inner { version: VERSIONS.fetch_add(1, Ordering::Relaxed), tables }) }
    }

    pub fn version(&self) -> u64 {
        self.inner.version
    }

    pub fn get(&self, name: &str) -> Option<&Arc<LookupTable>> {
        self.inner.tables.get(name)
    }

    /// Builds the indexes that `old` has in use, so that no run waits for them. Takes the time that
    /// [`LookupTable::index`] does.
    pub(super) fn index_as(&self, old: &LookupSet) {
        for (new, old) in self.tables().filter_map(|table| Some((table, old.get(&table.name)?))) {
            new.index_all(&old.indexed());
        }
    }

    /// By name, in alphabetical order.
    pub fn tables(&self) -> impl Iterator<Item = &Arc<LookupTable>> {
        self.inner.tables.values()
    }
}
