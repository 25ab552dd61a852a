//! Stored chunks: the output rows of one slice, as the ledger keeps them for re-emission.
//!
//! Promises: [`unpack`] gives back exactly the values, types and nulls that [`pack`] got, so that the rows encode to the
//! same bytes again; bytes that were damaged give an error, never a panic and never wrong rows (zstd's checksum, without
//! which nothing is read). A chunk holds only what its rows refer to, however large the buffers behind their string views
//! are, and of what repeats from row to row one copy, see [`thin`]. Does not keep anything about the job: the ledger's
//! tables do.

// Also found where the fuzz targets take this file by its path.
#[path = "chunk/ids.rs"]
mod ids;
#[path = "chunk/thin.rs"]
mod thin;

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, GenericByteViewArray, RecordBatch};
use arrow::buffer::{Buffer, ScalarBuffer};
use arrow::datatypes::{BinaryViewType, ByteViewType, DataType, StringViewType};
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamDecoder;
use arrow::ipc::writer::StreamWriter;

use super::arrow;
use crate::{Error, Result, view};

/// A light level: chunks live for one commit, and repeated text was already removed.
const LEVEL: i32 = 1;

/// Bytes of a chunk before compression at most. A slice of rows has a few MiB; a single row may be as large as Kafka's
/// and Postgres's largest values (1 GiB), of which no job makes sensible use.
pub const MAX_UNPACKED: usize = 1 << 30;

/// The bit of a zstd frame's descriptor, its fifth byte, that says a checksum stands at the end.
/// <https://datatracker.ietf.org/doc/html/rfc8878#section-3.1.1.1.1>
const CHECKSUM_FLAG: u8 = 0b100;

/// One batch as a zstd-compressed Arrow IPC stream.
pub fn pack(batch: &RecordBatch) -> Result<Vec<u8>> {
    pack_all(std::slice::from_ref(batch))
}

/// Batches of one schema, one after the other, as one chunk.
pub fn pack_all(batches: &[RecordBatch]) -> Result<Vec<u8>> {
    let batch = thin::thin(batches).map_err(arrow("compacting rows"))?;
    let mut ipc = Vec::new();
    write(&batch, &mut ipc).map_err(arrow("writing a stored chunk"))?;
    if ipc.len() > MAX_UNPACKED {
        return Err(Error::Halt {
            what: format!(
                "{} output rows take {} bytes, more than a stored chunk may have",
                batch.num_rows(),
                ipc.len()
            ),
            remedy: "make the SELECT's columns smaller, or lower [batch] max_messages".into(),
        });
    }
    let compress = || {
        let mut compressor = zstd::bulk::Compressor::new(LEVEL)?;
        compressor.include_checksum(true)?;
        compressor.compress(&ipc)
    };
    compress().map_err(Error::io("compressing a stored chunk"))
}

/// The batch that was packed. [`Error::Halt`] where the bytes are not a chunk or were damaged.
pub fn unpack(bytes: &[u8]) -> Result<RecordBatch> {
    let ipc = decompress(bytes)?;
    // Damaged bytes end above, at the checksum. What passes it and is no chunk was made by another hand, and Arrow panics
    // on some of that; nothing outlives the panic that it could leave half done.
    let read = std::panic::catch_unwind(move || read(Buffer::from_vec(ipc)));
    read.unwrap_or_else(|_| Err(damaged("its bytes are whole, but Arrow cannot read them")))
}

fn write(batch: &RecordBatch, out: &mut Vec<u8>) -> Result<(), ArrowError> {
    let mut writer = StreamWriter::try_new(out, batch.schema_ref())?;
    writer.write(batch)?;
    writer.finish()
}

fn decompress(bytes: &[u8]) -> Result<Vec<u8>> {
    // The frame says its size: room is made for that and no more, whatever the rest of the bytes would unfold to.
    let size = match zstd::zstd_safe::get_frame_content_size(bytes) {
        Ok(Some(size)) if size <= MAX_UNPACKED as u64 => size as usize,
        Ok(Some(size)) => return Err(damaged(format!("it claims to hold {size} bytes"))),
        Ok(None) | Err(_) => return Err(damaged("it does not begin as one")),
    };
    if bytes.get(4).is_none_or(|descriptor| descriptor & CHECKSUM_FLAG == 0) {
        return Err(damaged("it has no checksum"));
    }
    let unpacked = zstd::bulk::decompress(bytes, size).map_err(damaged)?;
    if unpacked.len() != size {
        return Err(damaged(format!("{} bytes instead of {size}", unpacked.len())));
    }
    Ok(unpacked)
}

/// The decoder over bytes at hand makes room for none that it is only told of, as the reader of a stream would.
fn read(mut ipc: Buffer) -> Result<RecordBatch> {
    let mut decoder = StreamDecoder::new();
    let batch = decoder.decode(&mut ipc).map_err(damaged)?.ok_or_else(|| damaged("it holds no batch"))?;
    let batch = thin::thick(&batch).map_err(damaged)?;
    // What remains is the end of the stream.
    let more = if ipc.is_empty() { None } else { decoder.decode(&mut ipc).map_err(damaged)? };
    if more.is_some() || !ipc.is_empty() {
        return Err(damaged("it holds more than one batch"));
    }
    decoder.finish().map_err(damaged)?;
    Ok(batch)
}

fn damaged(why: impl std::fmt::Display) -> Error {
    Error::Halt {
        what: format!("a stored chunk in the ledger is damaged or of another format: {why}"),
        remedy: "restore the ledger's tables, or run the version of dinnerbell that wrote them".into(),
    }
}

/// A column of string or binary views rewritten to hold only the bytes that its rows refer to; a view that repeats is copied
/// once. The cost is that of the rows, not of the buffers behind them. Other columns stay as they are, and so do views inside
/// lists and structs (no conformed batch has any).
fn compact(column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    match column.data_type() {
        DataType::Utf8View => compact_views::<StringViewType>(column.as_string_view()),
        DataType::BinaryView => compact_views::<BinaryViewType>(column.as_binary_view()),
        _ => Ok(column.clone()),
    }
}

fn compact_views<T: ByteViewType>(array: &GenericByteViewArray<T>) -> Result<ArrayRef, ArrowError> {
    let mut arena = Arena::default();
    let mut recent = [(0u128, 0u128); RECENT];
    let mut views = Vec::with_capacity(array.len());
    for (row, &view) in array.views().iter().enumerate() {
        views.push(if array.is_null(row) {
            0
        } else if view::len(view) <= view::INLINE {
            view
        } else {
            let slot = &mut recent[slot(view)];
            if slot.0 != view {
                let value: &T::Native = array.value(row);
                *slot = (view, arena.push(value.as_ref(), view));
            }
            slot.1
        });
    }
    let views = ScalarBuffer::from(views);
    Ok(Arc::new(GenericByteViewArray::<T>::try_new(views, arena.finish(), array.nulls().cloned())?))
}

/// Views remembered, as (old, new) by [`slot`]. Enough for the campaigns that take turns within one slice; 0 marks an
/// empty slot, because it is the empty string, which is inline.
const RECENT: usize = 64;

/// Where a view is remembered: its upper half, buffer and offset, spread by Fibonacci hashing to 6 bits.
fn slot(view: u128) -> usize {
    (view::place(view).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58) as usize
}

/// Value bytes end to end, in buffers that positions of 31 bits can address.
#[derive(Default)]
struct Arena {
    full: Vec<Buffer>,
    bytes: Vec<u8>,
}

impl Arena {
    /// Copies `value` and gives its view: length and prefix of the old one, with a new place.
    fn push(&mut self, value: &[u8], old: u128) -> u128 {
        if self.bytes.len() + value.len() > i32::MAX as usize {
            self.full.push(Buffer::from_vec(std::mem::take(&mut self.bytes)));
        }
        let (buffer, offset) = (self.full.len() as u32, self.bytes.len() as u32);
        self.bytes.extend_from_slice(value);
        view::moved(old, buffer, offset)
    }

    fn finish(mut self) -> Vec<Buffer> {
        if !self.bytes.is_empty() {
            self.full.push(Buffer::from_vec(self.bytes));
        }
        self.full
    }
}

#[cfg(test)]
mod tests;
