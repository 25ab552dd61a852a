//! The two sinks. Each takes the same rows; neither computes any.

pub mod kafka;
pub mod postgres;
pub mod rows;
pub mod table;

use std::sync::Arc;

use arrow::array::RecordBatch;

use crate::dead_letter::Letter;

/// A piece of a commit's output on its way to both sinks. `part` counts the commit's micro-batches.
#[derive(Debug, Clone)]
pub enum Piece {
    /// Rows as the sink table wants them, and the message that each one came from, where that is known.
    Rows { part: usize, batch: RecordBatch, messages: Option<Arc<[u32]>> },
    /// Dead letters that fit into their topic.
    Letters { part: usize, letters: Arc<[Letter]> },
}
