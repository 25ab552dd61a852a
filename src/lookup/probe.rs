//! One run of a lookup join: input batches in, at most `batch_rows` rows out at a time, however many rows a key has.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions, UInt32Array, new_null_array};
use arrow::compute::{interleave, take};
use arrow::datatypes::SchemaRef;
use datafusion::common::Result;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::metrics::{BaselineMetrics, Count, RecordOutput};
use futures::TryStreamExt;

use super::index::KeyIndex;
use super::join::{Kind, Source};
use super::table::LookupTable;

/// What a run does, apart from where its rows come from.
pub(super) struct Shape {
    pub kind: Kind,
    /// The input's key column.
    pub key: usize,
    pub columns: Vec<Source>,
    pub schema: SchemaRef,
    pub batch_rows: usize,
}

pub(super) struct Probe {
    input: SendableRecordBatchStream,
    index: Arc<KeyIndex>,
    shape: Shape,
    current: Option<Current>,
    gather: Gather,
    output: BaselineMetrics,
    /// Counts lookup rows that came out.
    rows_read: Count,
}

/// The input batch at work and how far it has come.
struct Current {
    batch: RecordBatch,
    /// By row: the number of its key.
    keys: Vec<Option<u32>>,
    row: usize,
    /// How many of the row's lookup rows are out already.
    taken: usize,
}

/// Rows of the next output batch: of the input, and of the lookup table where its columns are wanted.
#[derive(Default)]
struct Picked {
    input: Vec<u32>,
    lookup: Vec<u32>,
}

/// Stands for a lookup row that is not there.
const NO_ROW: u32 = u32::MAX;

impl Probe {
    pub(super) fn new(
        input: SendableRecordBatchStream,
        table: Arc<LookupTable>,
        index: Arc<KeyIndex>,
        shape: Shape,
        output: BaselineMetrics,
        rows_read: Count,
    ) -> Self {
        Self { input, index, shape, current: None, gather: Gather::new(table), output, rows_read }
    }

    /// The next output batch, never an empty one.
    pub(super) async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            if let Some(current) = &mut self.current {
                let _timer = self.output.elapsed_compute().timer();
                let picked = current.pick(&self.index, self.shape.kind, self.shape.batch_rows.max(1));
                if !picked.input.is_empty() {
                    self.rows_read.add(picked.lookup.len());
                    let batch = build(&current.batch, &picked, &self.shape, &mut self.gather)?;
                    return Ok(Some(batch.record_output(&self.output)));
                }
                self.current = None;
            }
            let Some(batch) = self.input.try_next().await? else { return Ok(None) };
            let _timer = self.output.elapsed_compute().timer();
            let keys = self.index.find(batch.column(self.shape.key))?;
            self.current = Some(Current { batch, keys, row: 0, taken: 0 });
        }
    }
}

impl Current {
    /// Up to `limit` rows, going on where the last call ended, be it in the middle of a key. None at the end.
    fn pick(&mut self, index: &KeyIndex, kind: Kind, limit: usize) -> Picked {
        let mut picked = Picked::default();
        while picked.input.len() < limit
            && let Some(&key) = self.keys.get(self.row)
        {
            let row = self.row as u32;
            match (kind, key) {
                (Kind::Inner | Kind::Outer, Some(key)) => {
                    let rest = &index.rows(key)[self.taken..];
                    let now = &rest[..rest.len().min(limit - picked.input.len())];
                    picked.input.extend(std::iter::repeat_n(row, now.len()));
                    picked.lookup.extend_from_slice(now);
                    if now.len() < rest.len() {
                        self.taken += now.len();
                        return picked;
                    }
                    self.taken = 0;
                }
                (Kind::Outer, None) => {
                    picked.input.push(row);
                    picked.lookup.push(NO_ROW);
                }
                (Kind::Semi, Some(_)) | (Kind::Anti, None) => picked.input.push(row),
                (Kind::Inner | Kind::Semi, None) | (Kind::Anti, Some(_)) => {}
            }
            self.row += 1;
        }
        picked
    }
}

fn build(input: &RecordBatch, picked: &Picked, shape: &Shape, gather: &mut Gather) -> Result<RecordBatch> {
    let rows = picked.input.len();
    if shape.columns.iter().any(|column| matches!(column, Source::Lookup(_))) {
        gather.locate(&picked.lookup);
    }
    let input_rows = UInt32Array::from(picked.input.clone());
    let columns = shape.columns.iter().map(|column| match column {
        Source::Input(column) => Ok(take(input.column(*column), &input_rows, None)?),
        Source::Lookup(column) => gather.column(*column),
    });
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    let columns = columns.collect::<Result<Vec<_>>>()?;
    Ok(RecordBatch::try_new_with_options(Arc::clone(&shape.schema), columns, &options)?)
}

/// Collects rows of a table from those of its batches that hold them, and touches no others.
struct Gather {
    table: Arc<LookupTable>,
    /// By batch: the number of its first row.
    starts: Vec<usize>,
    /// By batch: its place in `touched`, or [`NO_ROW`].
    places: Vec<u32>,
    touched: Vec<usize>,
    /// Where each wanted row is: place in `touched`, row in the batch. The place after the last is a single null.
    wanted: Vec<(usize, usize)>,
    /// Whether any of them is that null.
    nulls: bool,
}

impl Gather {
    fn new(table: Arc<LookupTable>) -> Self {
        let starts = table.batches.iter().scan(0, |next, batch| {
            let start = *next;
            *next += batch.num_rows();
            Some(start)
        });
        let starts = starts.collect();
        let places = vec![NO_ROW; table.batches.len()];
        Self { table, starts, places, touched: Vec::new(), wanted: Vec::new(), nulls: false }
    }

    fn locate(&mut self, rows: &[u32]) {
        self.touched.drain(..).for_each(|batch| self.places[batch] = NO_ROW);
        self.wanted.clear();
        let mut here = (0, 0..0);
        for &row in rows {
            if row == NO_ROW {
                // Its place is known once all batches are.
                self.wanted.push((usize::MAX, 0));
                continue;
            }
            let row = row as usize;
            if !here.1.contains(&row) {
                // The last batch that starts at or before the row; empty ones before it start where it does.
                let batch = self.starts.partition_point(|&start| start <= row) - 1;
                let start = self.starts[batch];
                here = (batch, start..start + self.table.batches[batch].num_rows());
                if self.places[batch] == NO_ROW {
                    self.places[batch] = self.touched.len() as u32;
                    self.touched.push(batch);
                }
            }
            self.wanted.push((self.places[here.0] as usize, row - here.1.start));
        }
        let null = self.touched.len();
        self.nulls = false;
        for (place, _) in self.wanted.iter_mut().filter(|(place, _)| *place == usize::MAX) {
            *place = null;
            self.nulls = true;
        }
    }

    fn column(&self, column: usize) -> Result<ArrayRef> {
        let null = new_null_array(self.table.schema.field(column).data_type(), 1);
        let mut arrays: Vec<&dyn Array> =
            self.touched.iter().map(|&batch| self.table.batches[batch].column(column).as_ref()).collect();
        arrays.extend(self.nulls.then_some(null.as_ref()));
        Ok(compact(interleave(&arrays, &self.wanted)?))
    }
}

/// Copies strings together where they would hold more than twice their bytes. A few rows from all over a table hold
/// all of it otherwise: a refreshed table could not go, and an operator that holds rows would count it as its own.
fn compact(array: ArrayRef) -> ArrayRef {
    let Some(strings) = array.as_string_view_opt() else { return array };
    let held: usize = strings.data_buffers().iter().map(|buffer| buffer.len()).sum();
    if held > 2 * strings.total_buffer_bytes_used() { Arc::new(strings.gc()) } else { array }
}
