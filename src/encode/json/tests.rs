use std::sync::Arc;

use arrow::array::{
    ArrayRef, DictionaryArray, Int32Array, StringArray, StringViewArray, TimestampNanosecondArray, TimestampSecondArray,
};
use arrow::datatypes::{DataType, Field, Int32Type};
use chrono::{DateTime, NaiveDate};
use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::encode::samples;

fn encode(batch: &RecordBatch) -> Vec<String> {
    strings(&JsonRows::new(batch.schema_ref()).unwrap().encode(batch).unwrap())
}

fn strings(texts: &Texts) -> Vec<String> {
    texts.rows().map(|row| String::from_utf8(row.to_vec()).unwrap()).collect()
}

#[test]
fn the_documented_form_byte_for_byte() {
    let batch = RecordBatch::try_from_iter([
        ("restaurant_id", Arc::new(StringArray::from(vec!["123e4567-e89b-12d3-a456-426614174000"])) as ArrayRef),
        ("adv_campaign_content", Arc::new(StringArray::from(vec!["first campaign"]))),
        ("adv_campaign_datetime_end", Arc::new(arrow::array::Int64Array::from(vec![2_659_207_116]))),
        ("trigger_datetime_created", Arc::new(Int32Array::from(vec![1_659_304_828]))),
    ])
    .unwrap();
    assert_eq!(
        encode(&batch),
        [concat!(
            r#"{"restaurant_id":"123e4567-e89b-12d3-a456-426614174000","adv_campaign_content":"first campaign","#,
            r#""adv_campaign_datetime_end":2659207116,"trigger_datetime_created":1659304828}"#
        )]
    );
}

#[test]
fn nulls_are_left_out_wherever_they_stand() {
    let column = |values: Vec<Option<i32>>| Arc::new(Int32Array::from(values)) as ArrayRef;
    let batch = RecordBatch::try_from_iter([
        ("a", column(vec![None, Some(1), Some(1), None, None, Some(1)])),
        ("b", column(vec![Some(2), Some(2), None, None, None, Some(2)])),
        ("c", column(vec![Some(3), None, None, None, None, Some(3)])),
    ])
    .unwrap();
    let expected = [r#"{"b":2,"c":3}"#, r#"{"a":1,"b":2}"#, r#"{"a":1}"#, "{}", "{}", r#"{"a":1,"b":2,"c":3}"#];
    assert_eq!(encode(&batch), expected);
}

#[test]
fn times_are_utc_in_rfc_3339_and_lose_nothing_above_a_microsecond() {
    let nanos = TimestampNanosecondArray::from(vec![1_659_261_600_000_000_000, 1_659_261_600_123_456_789, -1_000]);
    let seconds = TimestampSecondArray::from(vec![1_659_261_600, 0, -1]).with_timezone("+02:00");
    let batch =
        RecordBatch::try_from_iter([("n", Arc::new(nanos) as ArrayRef), ("s", Arc::new(seconds) as ArrayRef)]).unwrap();
    assert_eq!(
        encode(&batch),
        [
            r#"{"n":"2022-07-31T10:00:00.000Z","s":"2022-07-31T10:00:00.000Z"}"#,
            r#"{"n":"2022-07-31T10:00:00.123456Z","s":"1970-01-01T00:00:00.000Z"}"#,
            r#"{"n":"1969-12-31T23:59:59.999999Z","s":"1969-12-31T23:59:59.000Z"}"#,
        ]
    );
}

#[test]
fn what_is_not_finite_is_a_quoted_name() {
    let values = arrow::array::Float64Array::from(vec![f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1.0, -0.0, 1e300]);
    let batch = RecordBatch::try_from_iter([("f", Arc::new(values) as ArrayRef)]).unwrap();
    let expected = [r#""NaN""#, r#""Infinity""#, r#""-Infinity""#, "1.0", "-0.0", "1e+300"];
    assert_eq!(encode(&batch), expected.map(|value| format!("{{\"f\":{value}}}")));
}

#[test]
fn dictionaries_are_written_as_their_values() {
    let values: DictionaryArray<Int32Type> = vec![Some("x"), None, Some("x")].into_iter().collect();
    let batch = RecordBatch::try_from_iter_with_nullable([("d", Arc::new(values) as ArrayRef, true)]).unwrap();
    assert_eq!(encode(&batch), [r#"{"d":"x"}"#, "{}", r#"{"d":"x"}"#]);
}

/// After each of them as the first row of a run: shorter, longer, of the same length, with escapes, empty, none.
#[test]
fn texts_take_the_place_of_any_other() {
    let long = [Some("abcdefghijklmnopqrst"), Some("a\"cdefghijklmnopqrst"), Some("abcdefghijklmnopqrs\n")];
    let texts = [Some("abc"), Some("xyz"), Some("a\nb"), Some("a"), Some(""), None].into_iter().chain(long);
    let texts: Vec<_> = texts.collect();
    for &first in &texts {
        let clients: Vec<_> = [first].into_iter().chain(texts.clone()).collect();
        // Short, so that its views are equal, as a campaign's are.
        let contents = StringViewArray::from_iter_values(vec![r#"one "text""#; clients.len()]);
        let ends = Int32Array::from(vec![5; clients.len()]);
        let batch = RecordBatch::try_from_iter_with_nullable([
            ("content", Arc::new(contents) as ArrayRef, true),
            ("client", Arc::new(StringViewArray::from(clients.clone())) as ArrayRef, true),
            ("end", Arc::new(ends) as ArrayRef, true),
        ]);
        let cell = |text: &str| format!(r#""client":{},"#, Value::from(text));
        let row =
            |text: &Option<&str>| format!(r#"{{"content":"one \"text\"",{}"end":5}}"#, text.map_or("".into(), cell));
        assert_eq!(encode(&batch.unwrap()), clients.iter().map(row).collect::<Vec<_>>(), "after {first:?}");
    }
}

/// Both differ from row to row, now the one and now the other.
#[test]
fn two_texts_of_the_same_length_take_the_place_of_others() {
    let rows: Vec<_> = (0..20).map(|row| (format!("client {:02}", row / 2), format!("city {:02}", row / 3))).collect();
    let texts = |text: &dyn Fn(usize) -> String| {
        Arc::new(StringViewArray::from_iter_values((0..rows.len()).map(text))) as ArrayRef
    };
    let batch = RecordBatch::try_from_iter([
        ("client", texts(&|row| rows[row].0.clone())),
        ("content", texts(&|_| "one text".into())),
        ("end", texts(&|_| "one text".into())),
        ("city", texts(&|row| rows[row].1.clone())),
    ]);
    let row = |(client, city): &(String, String)| {
        format!(r#"{{"client":"{client}","content":"one text","end":"one text","city":"{city}"}}"#)
    };
    assert_eq!(encode(&batch.unwrap()), rows.iter().map(row).collect::<Vec<_>>());
}

#[test]
fn more_columns_than_a_word_has_bits() {
    let columns = (0..130).map(|n| {
        let values = (0..5).map(|row| if n % 63 == 0 { row } else { n });
        (format!("c{n}"), Arc::new(Int32Array::from_iter_values(values)) as ArrayRef)
    });
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    for (row, text) in encode(&batch).iter().enumerate() {
        let cells = (0..130).map(|n| format!("\"c{n}\":{}", if n % 63 == 0 { row } else { n }));
        assert_eq!(*text, format!("{{{}}}", cells.collect::<Vec<_>>().join(",")));
    }
}

#[test]
fn lists_are_refused_when_the_schema_is_seen() {
    let item = Field::new("item", DataType::Int32, true);
    let error = JsonRows::new(&Schema::new(vec![Field::new("l", DataType::List(Arc::new(item)), true)])).unwrap_err();
    assert!(error.to_string().starts_with("column \"l\" of type List"), "{error}");
    assert_eq!(error.remedy(), Some("write CAST(... AS VARCHAR) AS l in the SELECT"));
}

#[test]
fn a_time_beyond_the_calendar_is_refused() {
    let times = arrow::array::TimestampMicrosecondArray::from(vec![0, i64::MAX]);
    let batch = RecordBatch::try_from_iter([("t", Arc::new(times) as ArrayRef)]).unwrap();
    let error = JsonRows::new(batch.schema_ref()).unwrap().encode(&batch).unwrap_err();
    assert!(error.to_string().contains("writing JSON"), "{error}");
}

#[test]
fn pieces_are_whole_rows_of_about_the_size_promised() {
    let batch = samples::fan_out(5, 1000);
    let rows = JsonRows::new(batch.schema_ref()).unwrap();
    let (mut pieces, mut sizes) = (Vec::new(), Vec::new());
    let take = |texts: &Texts| {
        pieces.extend(strings(texts));
        sizes.push(texts.bytes.len());
        Ok(())
    };
    rows.pieces(&batch, take).unwrap();
    assert_eq!(pieces, encode(&batch));
    let (last, full) = sizes.split_last().unwrap();
    assert!(full.len() > 2 && full.iter().all(|size| (PIECE..PIECE + 300).contains(size)), "{sizes:?}");
    assert!((1..PIECE + 300).contains(last), "{sizes:?}");

    let taken = |number: usize| {
        let mut taken = 0;
        let take = |texts: &Texts| {
            taken += texts.len();
            Ok(())
        };
        rows.pieces(&batch.slice(0, number), take).unwrap();
        taken
    };
    assert_eq!([taken(0), taken(1)], [0, 1]);
}

/// Written cell by cell, with none of the encoder's code.
fn reference(row: &samples::Row) -> String {
    let float = |json: String, value: f64| match value {
        value if value.is_nan() => "\"NaN\"".into(),
        value if value.is_infinite() => format!("\"{}Infinity\"", if value < 0.0 { "-" } else { "" }),
        _ => json,
    };
    let text = |value: &Option<String>| value.as_ref().map(|it| serde_json::to_string(it).unwrap());
    let ((a, b, bytes, truth), (int2, int4, int8, float4, float8), (date, time, micros, decimal)) = row;
    let fraction =
        |micros: i64| if micros % 1000 == 0 { format!("{:03}", micros / 1000) } else { format!("{micros:06}") };
    let cells = [
        ("\"text\"", text(a)),
        (r#""odd \"name\"""#, text(b)),
        ("\"bytes\"", bytes.as_ref().map(|it| format!("\"{}\"", openssl::base64::encode_block(it)))),
        ("\"bool\"", truth.map(|it| it.to_string())),
        ("\"int2\"", int2.map(|it| it.to_string())),
        ("\"int4\"", int4.map(|it| it.to_string())),
        ("\"int8\"", int8.map(|it| it.to_string())),
        ("\"float4\"", float4.map(|it| float(serde_json::to_string(&it).unwrap(), it.into()))),
        ("\"float8\"", float8.map(|it| float(serde_json::to_string(&it).unwrap(), it))),
        (
            "\"date\"",
            date.map(|it| {
                NaiveDate::from_num_days_from_ce_opt(it + 719_163).unwrap().format("\"%Y-%m-%d\"").to_string()
            }),
        ),
        (
            "\"time\"",
            time.map(|it| {
                let (seconds, rest) = (it / 1_000_000, fraction(it % 1_000_000));
                format!("\"{:02}:{:02}:{:02}.{rest}\"", seconds / 3600, seconds / 60 % 60, seconds % 60)
            }),
        ),
        (
            "\"timestamptz\"",
            micros.map(|it| {
                let whole = DateTime::from_timestamp(it.div_euclid(1_000_000), 0).unwrap().format("%Y-%m-%dT%H:%M:%S");
                format!("\"{whole}.{}Z\"", fraction(it.rem_euclid(1_000_000)))
            }),
        ),
        (
            "\"numeric\"",
            decimal.map(|it| {
                let sign = if it < 0 { "-" } else { "" };
                format!("{sign}{}.{:02}", it.unsigned_abs() / 100, it.unsigned_abs() % 100)
            }),
        ),
    ];
    let cells = cells.into_iter().filter_map(|(key, value)| value.map(|value| format!("{key}:{value}")));
    format!("{{{}}}", cells.collect::<Vec<_>>().join(","))
}

proptest! {
    #[test]
    fn equals_an_independent_encoding_and_is_json(rows in samples::rows()) {
        let written = encode(&samples::batch(&rows));
        prop_assert_eq!(&written, &rows.iter().map(reference).collect::<Vec<_>>());
        for text in written {
            prop_assert!(serde_json::from_str::<Value>(&text).is_ok(), "{}", text);
        }
    }
}
