//! Any bytes as a message: a row exactly where a second opinion says so, with its values, and neighbours untouched.

#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{
    DataType, Date32Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, SchemaRef,
    TimestampMicrosecondType,
};
use dinnerbell_fuzz::decode::{CampaignSchema, Decoder, Limits};
use dinnerbell_fuzz::judge::judge;
use dinnerbell_fuzz::messages::MessagesBuilder;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

const MAX_VALUE_BYTES: usize = 4096;

/// A declared schema, and a message that is good by it.
struct Mission {
    schema: SchemaRef,
    decoder: Decoder,
    good: &'static [u8],
}

static MISSIONS: LazyLock<[Mission; 2]> = LazyLock::new(|| {
    let mission = |sql, good: &'static str| {
        let campaigns = CampaignSchema::parse(Path::new("campaigns.sql"), sql).expect("a schema");
        let decoder = Decoder::new(&campaigns, Limits { max_value_bytes: MAX_VALUE_BYTES });
        Mission { schema: campaigns.schema(), decoder, good: good.as_bytes() }
    };
    [
        mission(include_str!("../../sql/campaigns.sql"), include_str!("../corpus/decode/sample.json")),
        mission(
            "CREATE TABLE campaigns (id VARCHAR NOT NULL, at BIGINT NOT NULL, note TEXT, tiny TINYINT, small SMALLINT,
             plain INT, big BIGINT, narrow REAL, wide DOUBLE, flag BOOLEAN, moment TIMESTAMP, instant TIMESTAMPTZ,
             day DATE, \"Case é\" INT)",
            include_str!("../corpus/decode/every_type.json"),
        ),
    ]
});

fuzz_target!(|message: &[u8]| {
    for mission in MISSIONS.iter() {
        let mut messages = MessagesBuilder::default();
        for value in [mission.good, message, mission.good] {
            messages.push(0, None, None, Some(value), Vec::new());
        }
        let decoded = mission.decoder.decode(&messages.finish()).expect("no message breaks the decoder");
        let verdict = judge(&mission.schema, message, MAX_VALUE_BYTES);
        assert_eq!(decoded.rejects.is_empty(), verdict.is_some(), "{:?}", decoded.rejects);
        assert_eq!(decoded.batch.num_rows() + decoded.rejects.len(), 3);
        let good = judge(&mission.schema, mission.good, MAX_VALUE_BYTES).expect("it is good");
        let last = decoded.batch.num_rows() - 1;
        assert_eq!(row(&decoded.batch, 0), good);
        assert_eq!(row(&decoded.batch, last), good);
        if let Some(values) = verdict {
            assert_eq!(row(&decoded.batch, 1), values);
        }
        for reject in &decoded.rejects {
            assert_eq!(reject.row, 1);
            assert!(reject.path.starts_with('$') && !reject.reason.is_empty());
            // What is told of a message is not as large as the message.
            assert!(reject.path.len() + reject.reason.len() < 1024, "{} bytes", reject.reason.len());
        }
    }
});

/// The declared columns; times as microseconds, dates as days.
fn row(batch: &RecordBatch, row: usize) -> Vec<Value> {
    let (_, declared) = batch.columns().split_last().expect("columns");
    declared.iter().map(|array| if array.is_null(row) { Value::Null } else { cell(array, row) }).collect()
}

fn cell(array: &ArrayRef, row: usize) -> Value {
    match array.data_type() {
        DataType::Utf8View => array.as_string_view().value(row).into(),
        DataType::Boolean => array.as_boolean().value(row).into(),
        DataType::Int8 => array.as_primitive::<Int8Type>().value(row).into(),
        DataType::Int16 => array.as_primitive::<Int16Type>().value(row).into(),
        DataType::Int32 => array.as_primitive::<Int32Type>().value(row).into(),
        DataType::Int64 => array.as_primitive::<Int64Type>().value(row).into(),
        DataType::Float32 => array.as_primitive::<Float32Type>().value(row).into(),
        DataType::Float64 => array.as_primitive::<Float64Type>().value(row).into(),
        DataType::Timestamp(..) => array.as_primitive::<TimestampMicrosecondType>().value(row).into(),
        DataType::Date32 => array.as_primitive::<Date32Type>().value(row).into(),
        other => unreachable!("{other}"),
    }
}
