//! One run of a lookup join: input batches in, at most `batch_rows` rows out at a time, however many rows a key has.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::SchemaRef;
use datafusion::common::Result;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::metrics::{BaselineMetrics, Count, RecordOutput};
use futures::TryStreamExt;

use super::NO_ROW;
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
    table: Arc<LookupTable>,
    index: Arc<KeyIndex>,
    shape: Shape,
    current: Option<Current>,
    output: BaselineMetrics,
    /// Counts lookup rows that came out.
    rows_read: Count,
}

/// The input batch at work and how far it has come.
struct Current {
    batch: RecordBatch,
    /// By row: where the lookup rows of its key are listed.
    places: Vec<Option<Range<u32>>>,
    row: usize,
    /// How many of the row's lookup rows are out already.
    taken: u32,
}

/// Rows of the next output batch: of the input, and of the lookup table where its columns are wanted.
#[derive(Default)]
struct Picked {
    input: Vec<u32>,
    lookup: Vec<u32>,
}

impl Probe {
    pub(super) fn new(
        input: SendableRecordBatchStream,
        table: Arc<LookupTable>,
        index: Arc<KeyIndex>,
        shape: Shape,
        output: BaselineMetrics,
        rows_read: Count,
    ) -> Self {
        Self { input, table, index, shape, current: None, output, rows_read }
    }

    /// The next output batch, never an empty one.
    pub(super) async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            if let Some(current) = &mut self.current {
                let _timer = self.output.elapsed_compute().timer();
                let picked = current.pick(&self.index, self.shape.kind, self.shape.batch_rows.max(1));
                if !picked.input.is_empty() {
                    self.rows_read.add(picked.lookup.len());
                    let batch = build(&current.batch, picked, &self.shape, &self.table)?;
                    return Ok(Some(batch.record_output(&self.output)));
                }
                self.current = None;
            }
            let Some(batch) = self.input.try_next().await? else { return Ok(None) };
            let _timer = self.output.elapsed_compute().timer();
            let places = self.index.find(batch.column(self.shape.key))?;
            self.current = Some(Current { batch, places, row: 0, taken: 0 });
        }
    }
}

impl Current {
    /// Up to `limit` rows, going on where the last call ended, be it in the middle of a key. None at the end.
    fn pick(&mut self, index: &KeyIndex, kind: Kind, limit: usize) -> Picked {
        let mut picked = Picked::default();
        while picked.input.len() < limit
            && let Some(places) = self.places.get(self.row)
        {
            let row = self.row as u32;
            match (kind, places) {
                (Kind::Inner | Kind::Outer, Some(all)) => {
                    let room = u32::try_from(limit - picked.input.len()).unwrap_or(u32::MAX);
                    let from = all.start + self.taken;
                    let to = all.end.min(from.saturating_add(room));
                    picked.input.extend(std::iter::repeat_n(row, (to - from) as usize));
                    index.list(from..to, &mut picked.lookup);
                    if to < all.end {
                        self.taken = to - all.start;
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

fn build(input: &RecordBatch, picked: Picked, shape: &Shape, table: &LookupTable) -> Result<RecordBatch> {
    let rows = picked.input.len();
    let input_rows = UInt32Array::from(picked.input);
    let columns = shape.columns.iter().map(|column| match column {
        Source::Input(column) => Ok(take(input.column(*column), &input_rows, None)?),
        Source::Lookup(column) => table.gather(*column, &picked.lookup),
    });
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    let columns = columns.collect::<Result<Vec<_>>>()?;
    Ok(RecordBatch::try_new_with_options(Arc::clone(&shape.schema), columns, &options)?)
}
