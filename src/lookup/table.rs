//! Lookup tables in memory, and the snapshot of all of them that one run of the SQL sees.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;

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
}

impl LookupTable {
    /// Takes batches that all have `schema`.
    pub fn new(name: impl Into<String>, schema: SchemaRef, batches: Vec<RecordBatch>) -> Self {
        let rows = batches.iter().map(|batch| batch.num_rows() as u64).sum();
        let bytes = batches.iter().map(|batch| batch.get_array_memory_size() as u64).sum();
        Self { name: name.into(), schema, batches, rows, bytes, loaded_at: Instant::now() }
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

    /// By name, in alphabetical order.
    pub fn tables(&self) -> impl Iterator<Item = &Arc<LookupTable>> {
        self.inner.tables.values()
    }
}
