//! From the SELECT's rows to what the sinks and the ledger take: rows fitted to the sink table ([`conform`]), COPY
//! BINARY ([`copy`]), JSON ([`json`]) and stored chunks ([`chunk`]), in pieces that bound the memory.
//!
//! Pure: Arrow in, bytes out. A batch is conformed once, and everything after that works on the conformed batch, so that
//! both sinks and a later re-emission show the same values.

pub mod chunk;
pub mod conform;
pub mod copy;
pub mod json;

mod repeats;
mod stamp;

#[cfg(test)]
mod samples;

use arrow::error::ArrowError;
use datafusion::error::DataFusionError;

use crate::Error;

/// An Arrow error that says nothing about a single row.
fn arrow(doing: &'static str) -> impl FnOnce(ArrowError) -> Error {
    move |source| Error::Engine { doing: doing.into(), source: DataFusionError::from(source) }
}
