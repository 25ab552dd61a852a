//! Batches for the tests of this folder.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float32Array, Float64Array, Int16Array,
    Int32Array, Int64Array, RecordBatch, StringViewArray, StringViewBuilder, Time64MicrosecondArray,
    TimestampMicrosecondArray,
};
use proptest::prelude::*;

/// Rows of campaigns times clients, with views as the lookup join makes them: of the whole buffer of each table.
pub fn fan_out(campaigns: usize, clients: usize) -> RecordBatch {
    let content: Vec<String> =
        (0..campaigns).map(|n| format!("{n}: half price on \"everything\" until Sunday")).collect();
    let ids: Vec<String> = (0..clients).map(|n| format!("023e4567-e89b-12d3-a456-{n:012}")).collect();
    let take = |texts: &[String], pick: &dyn Fn(usize) -> usize| -> ArrayRef {
        let whole = StringViewArray::from_iter_values(texts);
        let views: Vec<u128> = (0..campaigns * clients).map(|row| whole.views()[pick(row)]).collect();
        Arc::new(StringViewArray::try_new(views.into(), whole.data_buffers().to_vec(), None).unwrap())
    };
    let start =
        Int64Array::from_iter_values((0..campaigns * clients).map(|row| 1_659_203_516 + (row / clients) as i64));
    let now = Int32Array::from_iter_values((0..campaigns * clients).map(|_| 1_659_304_828));
    RecordBatch::try_from_iter([
        ("adv_campaign_content", take(&content, &|row| row / clients)),
        ("adv_campaign_datetime_start", Arc::new(start) as ArrayRef),
        ("client_id", take(&ids, &|row| row % clients)),
        ("trigger_datetime_created", Arc::new(now) as ArrayRef),
    ])
    .unwrap()
}

/// A row of every conformed type, each nullable. Values come from small pools now and then, so that neighbours repeat.
pub type Row = (
    (Option<String>, Option<String>, Option<Vec<u8>>, Option<bool>),
    (Option<i16>, Option<i32>, Option<i64>, Option<f32>, Option<f64>),
    (Option<i32>, Option<i64>, Option<i64>, Option<i128>),
);

pub fn rows() -> impl Strategy<Value = Vec<Row>> {
    let nasty = prop_oneof![
        Just(String::new()),
        Just("exactly12byt".to_string()),
        Just("thirteen byte".to_string()),
        Just("\"\\/\u{8}\u{c}\n\r\t\u{1}\u{1f}\u{7f}\u{2028}é𝄞".to_string()),
        any::<String>(),
        "[ -~]{0,40}",
    ];
    let text = || proptest::option::weighted(0.8, nasty.clone());
    let row = (
        (text(), text(), any::<Option<Vec<u8>>>(), any::<Option<bool>>()),
        (
            any::<Option<i16>>(),
            proptest::option::of(0..3i32),
            any::<Option<i64>>(),
            any::<Option<f32>>(),
            any::<Option<f64>>(),
        ),
        (
            proptest::option::of(-719_162..=2_932_896i32),
            proptest::option::of(0..86_400_000_000i64),
            proptest::option::of(-62_135_596_800_000_000i64..=253_402_300_799_999_999),
            proptest::option::of(-10i128.pow(20)..10i128.pow(20)),
        ),
    );
    proptest::collection::vec((row, 0..12usize), 0..12)
        .prop_map(|runs| runs.into_iter().flat_map(|(row, times)| std::iter::repeat_n(row, times)).collect())
}

/// One column per type, in the order of [`Row`]. Repeated texts share one view, as in a fan-out.
pub fn batch(rows: &[Row]) -> RecordBatch {
    let texts = |pick: &dyn Fn(&Row) -> Option<String>| -> ArrayRef {
        let mut builder = StringViewBuilder::new().with_deduplicate_strings();
        rows.iter().for_each(|row| builder.append_option(pick(row)));
        Arc::new(builder.finish())
    };
    let bytes: Vec<_> = rows.iter().map(|row| row.0.2.as_deref()).collect();
    let micros: TimestampMicrosecondArray = rows.iter().map(|row| row.2.2).collect();
    let decimals: Decimal128Array = rows.iter().map(|row| row.2.3).collect();
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("text", texts(&|row| row.0.0.clone())),
        ("odd \"name\"", texts(&|row| row.0.1.clone())),
        ("bytes", Arc::new(BinaryArray::from(bytes))),
        ("bool", Arc::new(rows.iter().map(|row| row.0.3).collect::<BooleanArray>())),
        ("int2", Arc::new(rows.iter().map(|row| row.1.0).collect::<Int16Array>())),
        ("int4", Arc::new(rows.iter().map(|row| row.1.1).collect::<Int32Array>())),
        ("int8", Arc::new(rows.iter().map(|row| row.1.2).collect::<Int64Array>())),
        ("float4", Arc::new(rows.iter().map(|row| row.1.3).collect::<Float32Array>())),
        ("float8", Arc::new(rows.iter().map(|row| row.1.4).collect::<Float64Array>())),
        ("date", Arc::new(rows.iter().map(|row| row.2.0).collect::<Date32Array>())),
        ("time", Arc::new(rows.iter().map(|row| row.2.1).collect::<Time64MicrosecondArray>())),
        ("timestamptz", Arc::new(micros.with_timezone("+00:00"))),
        ("numeric", Arc::new(decimals.with_precision_and_scale(38, 2).unwrap())),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true))).unwrap()
}
