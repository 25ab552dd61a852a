//! Input messages that cannot be processed, kept whole with the reason.
//!
//! A [`Letter`] is what the dead-letter topic gets. [`to_record_batch`] and [`from_record_batch`] are its form in the
//! ledger; letters are sent again from there after a crash, so the way there and back is exact, byte for byte.
//! Nothing here decides whether a message is bad, or sends anything.

use std::fmt;
use std::sync::{Arc, LazyLock};

use arrow::array::{
    Array, ArrayRef, AsArray, LargeBinaryBuilder, LargeListArray, LargeStringBuilder, RecordBatch, StructArray,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use arrow::error::ArrowError;

use crate::messages::{Header, Messages};
use crate::{Error, Result};

/// Where a message was found to be bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The value does not fit the schema of `campaigns.sql`.
    Decode,
    /// The SQL fails on it, such as a CAST that overflows.
    Transform,
    /// A row made from it does not fit the sink table's types.
    Encode,
    /// Postgres refused one of its rows.
    Postgres,
    /// Kafka refused one of its records.
    Kafka,
}

impl Stage {
    /// The name in headers, metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Stage::Decode => "decode",
            Stage::Transform => "transform",
            Stage::Encode => "encode",
            Stage::Postgres => "postgres",
            Stage::Kafka => "kafka",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The verdict on one message of a micro-batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    /// The message's row number in its micro-batch.
    pub row: u32,
    pub stage: Stage,
    /// The field, as a JSON path such as `$.adv_campaign_datetime_start`; `$` for the whole message.
    pub path: String,
    /// What was expected and what was found.
    pub reason: String,
}

/// A record of the dead-letter topic: key, value and headers as they came, then the job's own headers
/// (`dinnerbell.topic`, `.partition`, `.offset`, `.timestamp`, `.stage`, `.path`, `.reason`, `.sql_hash`), all of them
/// text. `dinnerbell.timestamp` is in milliseconds since the epoch and left out where the message had none. A letter
/// that came in again as a message has them twice: the last ones are the newest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<Header>,
}

/// The letters of one micro-batch, in the order of `rejects`, whose rows are those of `messages`. `topic` and
/// `partition` are where the messages came from; `sql_hash` names the SQL that was in force.
pub fn collect(topic: &str, partition: i32, messages: &Messages, rejects: &[Reject], sql_hash: &str) -> Vec<Letter> {
    rejects.iter().map(|reject| letter(topic, partition, messages, reject, sql_hash)).collect()
}

fn letter(topic: &str, partition: i32, messages: &Messages, reject: &Reject, sql_hash: &str) -> Letter {
    let row = reject.row as usize;
    let timestamp = messages.timestamp(row).map(|timestamp| timestamp.to_string());
    let own = [
        ("dinnerbell.topic", Some(topic.to_owned())),
        ("dinnerbell.partition", Some(partition.to_string())),
        ("dinnerbell.offset", Some(messages.offset(row).to_string())),
        ("dinnerbell.timestamp", timestamp),
        ("dinnerbell.stage", Some(reject.stage.to_string())),
        ("dinnerbell.path", Some(reject.path.clone())),
        ("dinnerbell.reason", Some(reject.reason.clone())),
        ("dinnerbell.sql_hash", Some(sql_hash.to_owned())),
    ];
    let mut headers = messages.headers(row).to_vec();
    headers.extend(own.into_iter().filter_map(|(name, text)| Some((name.to_owned(), Some(text?.into_bytes())))));
    Letter { key: messages.key(row).map(<[u8]>::to_vec), value: messages.value(row).map(<[u8]>::to_vec), headers }
}

/// The columnar form. All lengths are 64 bits wide: a batch of letters may be larger than 2 GiB.
static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        Field::new("key", DataType::LargeBinary, true),
        Field::new("value", DataType::LargeBinary, true),
        Field::new("headers", DataType::LargeList(header_item()), false),
    ]))
});

fn header_fields() -> Fields {
    vec![Field::new("name", DataType::LargeUtf8, false), Field::new("value", DataType::LargeBinary, true)].into()
}

fn header_item() -> Arc<Field> {
    Arc::new(Field::new("item", DataType::Struct(header_fields()), false))
}

/// The letters as columns `key`, `value` (LargeBinary, null where they are) and `headers` (a list of `name` and
/// nullable `value`, in order, repeated names included), one row each.
///
/// # Errors
/// [`Error::Engine`] if Arrow refuses the columns, which would be a fault in this program.
pub fn to_record_batch(letters: &[Letter]) -> Result<RecordBatch> {
    build(letters).map_err(|source| Error::Engine { doing: "storing dead letters".to_owned(), source: source.into() })
}

fn build(letters: &[Letter]) -> Result<RecordBatch, ArrowError> {
    let key = binary(letters.iter().map(|letter| letter.key.as_deref()));
    let value = binary(letters.iter().map(|letter| letter.value.as_deref()));
    let headers = || letters.iter().flat_map(|letter| &letter.headers);
    let mut names = LargeStringBuilder::new();
    headers().for_each(|(name, _)| names.append_value(name));
    let values = binary(headers().map(|(_, value)| value.as_deref()));
    let items = StructArray::try_new(header_fields(), vec![Arc::new(names.finish()), values], None)?;
    let offsets = OffsetBuffer::from_lengths(letters.iter().map(|letter| letter.headers.len()));
    let headers = LargeListArray::try_new(header_item(), offsets, Arc::new(items), None)?;
    RecordBatch::try_new(SCHEMA.clone(), vec![key, value, Arc::new(headers)])
}

fn binary<'a>(values: impl Iterator<Item = Option<&'a [u8]>>) -> ArrayRef {
    let mut builder = LargeBinaryBuilder::new();
    values.for_each(|value| builder.append_option(value));
    Arc::new(builder.finish())
}

/// The letters that [`to_record_batch`] stored.
///
/// # Errors
/// [`Error::Halt`] if the columns are not those that it writes.
pub fn from_record_batch(batch: &RecordBatch) -> Result<Vec<Letter>> {
    let same = |(found, expected): (&Arc<Field>, &Arc<Field>)| {
        found.name() == expected.name() && found.data_type() == expected.data_type()
    };
    let fields = batch.schema_ref().fields();
    if fields.len() != SCHEMA.fields().len() || !fields.iter().zip(SCHEMA.fields()).all(same) {
        return Err(Error::Halt {
            what: format!("stored dead letters have the columns {:?}, not those of this version", fields),
            remedy: "run the version of dinnerbell that stored them until its ledger is empty".to_owned(),
        });
    }
    let (keys, values) = (batch.column(0).as_binary::<i64>(), batch.column(1).as_binary::<i64>());
    let headers = batch.column(2).as_list::<i64>();
    let bytes =
        |array: &arrow::array::LargeBinaryArray, row: usize| array.is_valid(row).then(|| array.value(row).to_vec());
    let mut letters = Vec::with_capacity(batch.num_rows());
    for row in 0..batch.num_rows() {
        let items = headers.value(row);
        let items = items.as_struct();
        let (names, contents) = (items.column(0).as_string::<i64>(), items.column(1).as_binary::<i64>());
        let headers = (0..items.len()).map(|item| (names.value(item).to_owned(), bytes(contents, item))).collect();
        letters.push(Letter { key: bytes(keys, row), value: bytes(values, row), headers });
    }
    Ok(letters)
}

#[cfg(test)]
mod tests {
    use arrow::ipc::reader::StreamReader;
    use arrow::ipc::writer::StreamWriter;
    use proptest::prelude::*;

    use super::*;
    use crate::messages::MessagesBuilder;

    fn header(name: &str, value: &str) -> Header {
        (name.to_owned(), Some(value.as_bytes().to_vec()))
    }

    #[test]
    fn a_letter_is_the_message_untouched_and_then_where_and_why() {
        let theirs = vec![header("trace", "1"), ("trace".to_owned(), None), header("dinnerbell.stage", "kafka")];
        let mut builder = MessagesBuilder::default();
        builder.push(41, Some(5), None, Some(b"good"), Vec::new());
        builder.push(43, Some(1_659_131_516_000), Some(b"k\xff"), Some(b""), theirs.clone());
        builder.push(44, None, None, None, Vec::new());
        let messages = builder.finish();
        let reject = |row| Reject { row, stage: Stage::Decode, path: "$.é".to_owned(), reason: "why".to_owned() };
        let letters = collect("campaigns", 7, &messages, &[reject(1), reject(2)], "abc");

        let ours = |offset: &str, timestamp: Option<&str>| {
            let mut headers = vec![
                header("dinnerbell.topic", "campaigns"),
                header("dinnerbell.partition", "7"),
                header("dinnerbell.offset", offset),
            ];
            headers.extend(timestamp.map(|timestamp| header("dinnerbell.timestamp", timestamp)));
            headers.push(header("dinnerbell.stage", "decode"));
            headers.push(header("dinnerbell.path", "$.é"));
            headers.push(header("dinnerbell.reason", "why"));
            headers.push(header("dinnerbell.sql_hash", "abc"));
            headers
        };
        let first = Letter {
            key: Some(b"k\xff".to_vec()),
            value: Some(Vec::new()),
            headers: [theirs, ours("43", Some("1659131516000"))].concat(),
        };
        assert_eq!(letters, [first, Letter { key: None, value: None, headers: ours("44", None) }]);
    }

    #[test]
    fn foreign_columns_are_refused_and_not_guessed_at() {
        let good = to_record_batch(&[]).unwrap();
        assert_eq!(from_record_batch(&good).unwrap(), []);
        let fewer = good.project(&[0, 1]).unwrap();
        let swapped = good.project(&[1, 0, 2]).unwrap();
        for batch in [fewer, swapped] {
            assert!(matches!(from_record_batch(&batch), Err(Error::Halt { .. })));
        }
    }

    fn bytes() -> impl Strategy<Value = Option<Vec<u8>>> {
        prop::option::of(prop::collection::vec(any::<u8>(), 0..20))
    }

    fn letters() -> impl Strategy<Value = Vec<Letter>> {
        let name = prop_oneof![Just("again".to_owned()), Just(String::new()), ".{0,12}"];
        let headers = prop::collection::vec((name, bytes()), 0..6);
        let letter = (bytes(), bytes(), headers).prop_map(|(key, value, headers)| Letter { key, value, headers });
        prop::collection::vec(letter, 0..12)
    }

    proptest! {
        #[test]
        fn the_way_through_the_ledger_and_back_is_exact(letters in letters(), from in 0..12_usize) {
            let batch = to_record_batch(&letters).unwrap();
            let mut writer = StreamWriter::try_new(Vec::new(), batch.schema_ref()).unwrap();
            writer.write(&batch).unwrap();
            let stored = writer.into_inner().unwrap();
            let read: Vec<_> = StreamReader::try_new(&stored[..], None).unwrap().map(Result::unwrap).collect();
            prop_assert_eq!(read.len(), 1);
            prop_assert_eq!(&from_record_batch(&read[0]).unwrap(), &letters);
            // A slice is not a fresh batch: its offsets do not begin at 0.
            let from = from.min(letters.len());
            let slice = batch.slice(from, letters.len() - from);
            prop_assert_eq!(&from_record_batch(&slice).unwrap()[..], &letters[from..]);
        }
    }
}
