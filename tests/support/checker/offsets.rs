//! The group's offsets in Kafka against the ledger's history (I4), from the log of `__consumer_offsets` itself.

use std::collections::{BTreeMap, HashMap};

use super::history::History;
use super::{Examination, Examples};

/// One committed offset of the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupOffset {
    pub partition: i32,
    pub offset: i64,
    pub metadata: String,
    /// Milliseconds since the epoch, by the broker's clock when it wrote the record.
    pub at: i64,
}

/// Each offset with its metadata must be one that the ledger had, and had before: the trigger's clock is read before
/// Postgres commits, the broker's after. Both are the same machine's, or this proves nothing about the order.
pub fn check(offsets: &[GroupOffset], history: &History, to: &mut Examination) {
    let mut known: HashMap<(i32, i64, &str), i64> = HashMap::new();
    let mut last: BTreeMap<i32, i64> = BTreeMap::new();
    for change in &history.changes {
        let state = (change.partition, change.next_offset, change.metadata.as_str());
        known.entry(state).or_insert(change.at);
        last.insert(change.partition, change.next_offset);
    }
    let (mut unknown, mut early, mut back) = (Examples::default(), Examples::default(), Examples::default());
    let mut reached: BTreeMap<i32, i64> = BTreeMap::new();
    for found in offsets {
        match known.get(&(found.partition, found.offset, found.metadata.as_str())) {
            None => unknown.add(|| format!("{found:?}")),
            Some(at) if found.at < *at => early.add(|| format!("{found:?}, in the ledger at {at}")),
            Some(_) => {}
        }
        let before = reached.insert(found.partition, found.offset);
        if before.is_some_and(|before| before > found.offset) {
            back.add(|| format!("{found:?} after {before:?}"));
        }
    }
    let mut behind = Examples::default();
    for (partition, next) in &last {
        let kafka = reached.get(partition);
        if kafka != Some(next) {
            behind.add(|| format!("partition {partition}: Kafka {kafka:?}, ledger {next}"));
        }
    }
    unknown.report("I4", "offsets in Kafka that the ledger never had", to);
    early.report("I4", "offsets were in Kafka before they were in the ledger", to);
    back.report("I4", "times Kafka's offset went back", to);
    behind.report("I4", "partitions where Kafka and the ledger end at different offsets", to);
    to.fact("offsets committed to Kafka", offsets.len() as u64);
}

/// Reads one record of `__consumer_offsets`; `None` for another group, another topic, or what is no offset.
///
/// Key: int16 version (0 or 1), then group, topic (int16 length and bytes each), int32 partition. Value: int16 version,
/// int64 offset, from version 3 on an int32 leader epoch, then the metadata: int16 length and bytes, from version 4 on a
/// varint of the length plus one and bytes. The rest is time stamps.
pub fn decode(group: &str, topic: &str, key: &[u8], value: Option<&[u8]>) -> Option<(i32, i64, String)> {
    let mut key = Reader(key);
    if !matches!(key.int16()?, 0 | 1) || key.string()? != group || key.string()? != topic {
        return None;
    }
    let partition = key.int32()?;
    let Some(value) = value else { return Some((partition, -1, "tombstone".into())) };
    let mut value = Reader(value);
    let version = value.int16()?;
    let offset = value.int64()?;
    if version >= 3 {
        value.int32()?;
    }
    let metadata = if version >= 4 { value.compact_string()? } else { value.string()? };
    Some((partition, offset, metadata))
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    fn int16(&mut self) -> Option<i16> {
        self.take().map(i16::from_be_bytes)
    }

    fn int32(&mut self) -> Option<i32> {
        self.take().map(i32::from_be_bytes)
    }

    fn int64(&mut self) -> Option<i64> {
        self.take().map(i64::from_be_bytes)
    }

    fn text(&mut self, length: usize) -> Option<String> {
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        String::from_utf8(text.to_vec()).ok()
    }

    fn string(&mut self) -> Option<String> {
        let length = usize::try_from(self.int16()?).ok()?;
        self.text(length)
    }

    fn compact_string(&mut self) -> Option<String> {
        let (mut length, mut shift) = (0_usize, 0);
        loop {
            let [byte] = self.take()?;
            length |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                return self.text(length.checked_sub(1)?);
            }
        }
    }
}
