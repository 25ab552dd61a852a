//! The messages of one micro-batch, copied once out of librdkafka into one arena.
//!
//! All values stand end to end in one Arrow [`Buffer`], so that decoded strings can be views into it: a string without
//! escapes is never copied again.

use std::collections::BTreeMap;
use std::ops::Range;

use arrow::array::NullBufferBuilder;
use arrow::buffer::{Buffer, NullBuffer};

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
    /// Which values and keys are there; without an entry all of them are.
    has_value: Option<NullBuffer>,
    has_key: Option<NullBuffer>,
}

/// Values stand end to end, and so do keys: each begins where the one before ended. A cycle of a backlog has 100,000 of
/// these, and every page of them costs its first touch.
#[derive(Debug, Clone, Copy)]
struct Entry {
    offset: i64,
    timestamp: i64,
    value_end: u32,
    key_end: u32,
}

/// Before anything that a clock or a producer says.
const NO_TIMESTAMP: i64 = i64::MIN;

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
        let is_there = self.has_value.as_ref().is_none_or(|has_value| has_value.is_valid(row));
        is_there.then(|| self.range(row, |entry| entry.value_end))
    }

    pub fn value(&self, row: usize) -> Option<&[u8]> {
        self.value_range(row).map(|range| &self.values[range])
    }

    pub fn key(&self, row: usize) -> Option<&[u8]> {
        let is_there = self.has_key.as_ref().is_none_or(|has_key| has_key.is_valid(row));
        is_there.then(|| &self.keys[self.range(row, |entry| entry.key_end)])
    }

    /// From the end of the row before to the end of this one.
    fn range(&self, row: usize, end: impl Fn(&Entry) -> u32) -> Range<usize> {
        let start = row.checked_sub(1).map_or(0, |before| end(&self.entries[before]));
        start as usize..end(&self.entries[row]) as usize
    }

    pub fn headers(&self, row: usize) -> &[Header] {
        self.headers.get(&(row as u32)).map_or(&[], Vec::as_slice)
    }

    pub fn offset(&self, row: usize) -> i64 {
        self.entries[row].offset
    }

    /// Milliseconds since the epoch, as Kafka recorded them.
    pub fn timestamp(&self, row: usize) -> Option<i64> {
        Some(self.entries[row].timestamp).filter(|&timestamp| timestamp != NO_TIMESTAMP)
    }
}

/// Collects one micro-batch. Positions are 32 bits wide, as Arrow's string views are: the caller ends a batch well
/// before 4 GiB (`[batch] max_bytes` may be at most 1 GiB, and one Kafka message at most 2).
#[derive(Debug)]
pub struct MessagesBuilder {
    values: Vec<u8>,
    keys: Vec<u8>,
    headers: BTreeMap<u32, Vec<Header>>,
    entries: Vec<Entry>,
    has_value: NullBufferBuilder,
    has_key: NullBufferBuilder,
}

impl Default for MessagesBuilder {
    fn default() -> Self {
        MessagesBuilder::with_room(Vec::new(), 0)
    }
}

impl MessagesBuilder {
    /// Puts values into `arena`, which is empty, and has room for so many messages.
    pub fn with_room(arena: Vec<u8>, messages: usize) -> Self {
        MessagesBuilder {
            values: arena,
            keys: Vec::new(),
            headers: BTreeMap::new(),
            entries: Vec::with_capacity(messages),
            has_value: NullBufferBuilder::new(messages),
            has_key: NullBufferBuilder::new(messages),
        }
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
        self.has_value.append(value.is_some());
        self.has_key.append(key.is_some());
        self.values.extend_from_slice(value.unwrap_or_default());
        self.keys.extend_from_slice(key.unwrap_or_default());
        self.entries.push(Entry {
            offset,
            timestamp: timestamp.unwrap_or(NO_TIMESTAMP),
            value_end: self.values.len() as u32,
            key_end: self.keys.len() as u32,
        });
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
        Messages {
            values: buffer(self.values),
            keys: self.keys,
            headers: self.headers,
            entries: self.entries,
            has_value: self.has_value.build(),
            has_key: self.has_key.build(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_and_empty_stay_two_things() {
        let there = |text: &'static str| Some(text.as_bytes());
        let cases = [
            (Some(5), there("k"), there("one")),
            (None, None, there("")),
            (Some(-1), there(""), None),
            (Some(0), None, None),
            (Some(i64::MAX), there("key"), there("two")),
        ];
        // Also with all of them there, and with none.
        for cases in [&cases[..], &cases[..1], &cases[3..4], &[]] {
            let mut builder = MessagesBuilder::default();
            for (row, &(timestamp, key, value)) in cases.iter().enumerate() {
                builder.push(10 + 2 * row as i64, timestamp, key, value, Vec::new());
            }
            let messages = builder.finish();
            assert_eq!(messages.len(), cases.len());
            for (row, case) in cases.iter().enumerate() {
                assert_eq!((messages.timestamp(row), messages.key(row), messages.value(row)), *case, "row {row}");
                assert_eq!(messages.offset(row), 10 + 2 * row as i64);
            }
        }
    }
}
