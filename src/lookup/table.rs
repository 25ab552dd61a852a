//! Lookup tables in memory, and the snapshot of all of them that one run of the SQL sees.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::common::{Result, exec_datafusion_err};

use super::index::KeyIndex;

/// One lookup table as it was when it was loaded. Never changed, only replaced.
#[derive(Debug)]
pub struct LookupTable {
    pub name: String,
    pub schema: SchemaRef,
    pub batches: Vec<RecordBatch>,
    pub rows: u64,
    /// Memory held by the batches, in bytes.
    pub bytes: u64,
    pub loaded_at: Instant,
    /// By column: its index, from the first time that a plan asks for it.
    indexes: Vec<OnceLock<Result<Arc<KeyIndex>, String>>>,
}

impl LookupTable {
    /// Takes batches that all have `schema`.
    pub fn new(name: impl Into<String>, schema: SchemaRef, batches: Vec<RecordBatch>) -> Self {
        let rows = batches.iter().map(|batch| batch.num_rows() as u64).sum();
        let bytes = batches.iter().map(|batch| batch.get_array_memory_size() as u64).sum();
        let indexes = schema.fields().iter().map(|_| OnceLock::new()).collect();
        Self { name: name.into(), schema, batches, rows, bytes, loaded_at: Instant::now(), indexes }
    }

    /// Memory held by the indexes that there are, in bytes.
    pub fn index_bytes(&self) -> u64 {
        self.indexes.iter().filter_map(|index| index.get()?.as_ref().ok()).map(|index| index.bytes()).sum()
    }

    /// The index over `column`, if it is built.
    pub(super) fn built_index(&self, column: usize) -> Option<&Arc<KeyIndex>> {
        self.indexes.get(column)?.get()?.as_ref().ok()
    }

    /// The index over `column`. Builds it the first time, which takes a second for some ten million rows: not for a
    /// thread that others wait for.
    pub(super) fn index(&self, column: usize) -> Result<Arc<KeyIndex>> {
        let missing = || exec_datafusion_err!("the lookup table {} has no column {column}", self.name);
        let index = self.indexes.get(column).ok_or_else(missing)?;
        let built = index.get_or_init(|| {
            let keys: Vec<_> = self.batches.iter().map(|batch| Arc::clone(batch.column(column))).collect();
            KeyIndex::build(self.schema.field(column).data_type(), &keys)
                .map(Arc::new)
                .map_err(|error| error.to_string())
        });
        built.clone().map_err(|problem| exec_datafusion_err!("indexing the lookup table {}: {problem}", self.name))
    }

    /// Builds the indexes that `old`, this table's predecessor, has in use.
    fn index_as(&self, old: &LookupTable) {
        for column in (0..old.indexes.len()).filter(|&column| old.built_index(column).is_some()) {
            // One that fails here fails again, and is reported, where it is needed.
            let _ = self.index(column);
        }
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
        static VERSIONS: AtomicU64 = AtomicU64::new(0);
        let tables = tables.into_iter().map(|table| (table.name.clone(), Arc::new(table))).collect();
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
        self.tables().filter_map(|table| Some((table, old.get(&table.name)?))).for_each(|(new, old)| new.index_as(old));
    }

    /// By name, in alphabetical order.
    pub fn tables(&self) -> impl Iterator<Item = &Arc<LookupTable>> {
        self.inner.tables.values()
    }
}
