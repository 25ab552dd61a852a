//! The messages of one micro-batch, copied once out of librdkafka into one arena.
//!
//! All values stand end to end in one Arrow [`Buffer`], so that decoded strings can be views into it: a string without
//! escapes is never copied again.

use std::collections::BTreeMap;
use std::ops::Range;

use arrow::buffer::Buffer;

use crate::offsets::OffsetRange;

/// A message header as Kafka has it: names may repeat, a value may be null.
pub type Header = (String, Option<Vec<u8>>);

/// One partition's messages of one poll cycle: the unit that is decoded and that the transform runs on.
#[derive(Debug, Clone)]
pub struct MicroBatch {
    pub partition: i32,
    pub range: OffsetRange,
    pub messages: Messages,
}

/// Messages by row number, `0..len()`, in offset order.
#[derive(Debug, Clone)]
pub struct Messages {
    values: Buffer,
    keys: Vec<u8>,
    headers: BTreeMap<u32, Vec<Header>>,
    entries: Vec<Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    offset: i64,
    timestamp: Option<i64>,
    value: Option<Range<u32>>,
    key: Option<Range<u32>>,
}

impl Messages {
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All values end to end; [`Messages::value_range`] says where each one lies.
    pub fn values(&self) -> &Buffer {
        &self.values
    }

    /// Where the value of `row` lies in [`Messages::values`]; `None` for a null value (a tombstone).
    pub fn value_range(&self, row: usize) -> Option<Range<usize>> {
        self.entries[row].value.as_ref().map(|range| range.start as usize..range.end as usize)
    }

    pub fn value(&self, row: usize) -> Option<&[u8]> {
        self.value_range(row).map(|range| &self.values[range])
    }

    pub fn key(&self, row: usize) -> Option<&[u8]> {
        self.entries[row].key.as_ref().map(|range| &self.keys[range.start as usize..range.end as usize])
    }

    pub fn headers(&self, row: usize) -> &[Header] {
        self.headers.get(&(row as u32)).map_or(&[], Vec::as_slice)
    }

    pub fn offset(&self, row: usize) -> i64 {
        self.entries[row].offset
    }

    /// Milliseconds since the epoch, as Kafka recorded them.
    pub fn timestamp(&self, row: usize) -> Option<i64> {
        self.entries[row].timestamp
    }
}

/// Collects one micro-batch. Positions are 32 bits wide, as Arrow's string views are: the caller ends a batch well
/// before 4 GiB (`[batch] max_bytes` may be at most 1 GiB, and one Kafka message at most 2).
#[derive(Debug, Default)]
pub struct MessagesBuilder {
    values: Vec<u8>,
    keys: Vec<u8>,
    headers: BTreeMap<u32, Vec<Header>>,
    entries: Vec<Entry>,
}

impl MessagesBuilder {
    /// Puts values into `arena`, which is empty, and has room for so many messages.
    pub fn with_room(arena: Vec<u8>, messages: usize) -> Self {
        MessagesBuilder { values: arena, entries: Vec::with_capacity(messages), ..MessagesBuilder::default() }
    }

    pub fn push(
        &mut self,
        offset: i64,
        timestamp: Option<i64>,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: Vec<Header>,
    ) {
        if !headers.is_empty() {
            self.headers.insert(self.entries.len() as u32, headers);
        }
        let value = value.map(|bytes| append(&mut self.values, bytes));
        let key = key.map(|bytes| append(&mut self.keys, bytes));
        self.entries.push(Entry { offset, timestamp, value, key });
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of keys and values so far.
    pub fn bytes(&self) -> usize {
        self.values.len() + self.keys.len()
    }

    pub fn finish(self) -> Messages {
        self.finish_with(Buffer::from_vec)
    }

    /// As [`MessagesBuilder::finish`]; `buffer` says how the arena becomes the buffer of values.
    pub fn finish_with(self, buffer: impl FnOnce(Vec<u8>) -> Buffer) -> Messages {
        Messages { values: buffer(self.values), keys: self.keys, headers: self.headers, entries: self.entries }
    }
}

fn append(arena: &mut Vec<u8>, bytes: &[u8]) -> Range<u32> {
    let start = arena.len() as u32;
    arena.extend_from_slice(bytes);
    start..arena.len() as u32
}
