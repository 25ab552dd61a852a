use std::path::Path;

use arrow::array::{Array, AsArray, StringViewArray};
use arrow::datatypes::{
    DataType, Date32Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    TimestampMicrosecondType, UInt32Type,
};
use serde_json::{Value, json};

use super::*;
use crate::messages::MessagesBuilder;

mod judge;
mod plain;
mod property;

const LIMITS: Limits = Limits { max_value_bytes: 4096 };

const EVERY_TYPE: &str = "CREATE TABLE campaigns (id VARCHAR NOT NULL, at BIGINT NOT NULL, note TEXT, tiny TINYINT, \
    small SMALLINT, plain INT, big BIGINT, narrow REAL, wide DOUBLE, flag BOOLEAN, moment TIMESTAMP, \
    instant TIMESTAMPTZ, day DATE, \"Case é\" INT)";

fn decoder(sql: &str) -> Decoder {
    Decoder::new(&CampaignSchema::parse(Path::new("campaigns.sql"), sql).unwrap(), LIMITS)
}

fn messages<'a>(values: impl IntoIterator<Item = Option<&'a [u8]>>) -> Messages {
    let mut builder = MessagesBuilder::default();
    for (offset, value) in values.into_iter().enumerate() {
        builder.push(offset as i64, None, Some(b"key"), value, Vec::new());
    }
    builder.finish()
}

fn texts(values: &[&str]) -> Messages {
    messages(values.iter().map(|value| Some(value.as_bytes())))
}

/// One row without the row number, as JSON; times are microseconds, dates days.
fn row(batch: &RecordBatch, row: usize) -> Vec<Value> {
    let declared = batch.columns().split_last().unwrap().1;
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

fn rows(batch: &RecordBatch) -> Vec<u32> {
    batch.column_by_name(ROW).unwrap().as_primitive::<UInt32Type>().values().to_vec()
}

/// Path and reason for one message that must be bad.
fn reject(decoder: &Decoder, value: &[u8]) -> (String, String) {
    let decoded = decoder.decode(&messages([Some(value)])).unwrap();
    assert_eq!(decoded.batch.num_rows(), 0, "{}", String::from_utf8_lossy(value));
    let [reject] = &decoded.rejects[..] else { panic!("{} rejects", decoded.rejects.len()) };
    assert_eq!((reject.row, reject.stage), (0, Stage::Decode));
    (reject.path.clone(), reject.reason.clone())
}

#[test]
fn the_sample_message_becomes_a_row_of_views_into_itself() {
    let sample = r#"{"restaurant_id": "123e4567-e89b-12d3-a456-426614174000","adv_campaign_id": "123e4567-e89b-12d3-a456-426614174003","adv_campaign_content": "first campaign","adv_campaign_owner": "Ivanov Ivan Ivanovich","adv_campaign_owner_contact": "iiivanov@restaurant.ru","adv_campaign_datetime_start": 1659203516,"adv_campaign_datetime_end": 2659207116,"datetime_created": 1659131516}"#;
    let messages = texts(&[sample, sample]);
    let decoded = decoder(include_str!("../../sql/campaigns.sql")).decode(&messages).unwrap();
    assert_eq!(decoded.rejects, []);
    assert_eq!(rows(&decoded.batch), [0, 1]);
    assert_eq!(
        row(&decoded.batch, 1),
        [
            json!("123e4567-e89b-12d3-a456-426614174000"),
            json!("123e4567-e89b-12d3-a456-426614174003"),
            json!("first campaign"),
            json!("Ivanov Ivan Ivanovich"),
            json!("iiivanov@restaurant.ru"),
            json!(1659203516),
            json!(2659207116_i64),
            json!(1659131516),
        ]
    );
    for column in 0..5 {
        let strings = decoded.batch.column(column).as_string_view();
        assert_eq!(buffers(strings), [messages.values().as_ptr()], "column {column}");
    }
}

fn buffers(strings: &StringViewArray) -> Vec<*const u8> {
    strings.data_buffers().iter().map(|buffer| buffer.as_ptr()).collect()
}

#[test]
fn only_strings_with_escapes_are_copied_and_only_long_ones() {
    let decoder = decoder("CREATE TABLE campaigns (a VARCHAR, b VARCHAR)");
    let long = r#"{"a":"no escape in this one","b":"an \"escape\" in this \ud83d\udd14 one"}"#;
    let short = r#"{"a":"\u0041","b":""}"#;
    let messages = texts(&[long, short]);
    let batch = decoder.decode(&messages).unwrap().batch;
    assert_eq!(row(&batch, 0), [json!("no escape in this one"), json!("an \"escape\" in this 🔔 one")]);
    assert_eq!(row(&batch, 1), [json!("A"), json!("")]);
    let buffers = batch.column(0).as_string_view().data_buffers();
    assert_eq!((buffers.len(), buffers[1].len()), (2, "an \"escape\" in this 🔔 one".len()));
}

#[test]
fn every_type_takes_its_extremes() {
    let decoder = decoder(EVERY_TYPE);
    let least = r#"{"id":"","at":-9223372036854775808,"tiny":-128,"small":-32768,"plain":-2147483648,"narrow":-3.4028235e38,
        "wide":-1.7976931348623157e308,"flag":false,"moment":"0001-01-01T00:00:00Z","instant":"1970-01-01T00:00:00+01:00","day":"0000-01-01"}"#;
    let most = r#"{"Case é":7,"day":"1970-01-02","instant":"1970-01-01t00:00:00.000001z","moment":"1970-01-01T00:00:01Z","flag":true,
        "wide":18446744073709551616,"narrow":1,"plain":2147483647,"small":32767,"tiny":127,"note":null,"at":9223372036854775807,"id":"x"}"#;
    let decoded = decoder.decode(&texts(&[least, most])).unwrap();
    assert_eq!(decoded.rejects, []);
    let null = Value::Null;
    assert_eq!(
        row(&decoded.batch, 0),
        [
            json!(""),
            json!(i64::MIN),
            null.clone(),
            json!(-128),
            json!(-32768),
            json!(-2147483648),
            null.clone(),
            json!(f32::MIN),
            json!(f64::MIN),
            json!(false),
            json!(-62_135_596_800_000_000_i64),
            json!(-3_600_000_000_i64),
            json!(-719_528),
            null.clone(),
        ]
    );
    assert_eq!(
        row(&decoded.batch, 1),
        [
            json!("x"),
            json!(i64::MAX),
            null.clone(),
            json!(127),
            json!(32767),
            json!(2147483647),
            null,
            json!(1.0),
            json!(18446744073709551616.0),
            json!(true),
            json!(1_000_000),
            json!(1),
            json!(1),
            json!(7),
        ]
    );
    assert_eq!(decoded.batch.schema().field(11).data_type().to_string(), r#"Timestamp(µs, "+00:00")"#);
}

#[test]
fn a_declared_value_that_does_not_fit_is_named_with_what_was_expected_and_found() {
    let decoder = decoder(EVERY_TYPE);
    let cases = [
        (r#""id":5"#, "$.id", "expected a string, found the number 5"),
        (r#""id":null"#, "$.id", "expected a string, found null"),
        (r#""id":["x"]"#, "$.id", "expected a string, found an array"),
        (r#""id":{"x":1}"#, "$.id", "expected a string, found an object"),
        (r#""note":true"#, "$.note", "expected a string or null, found true"),
        (r#""at":"123""#, "$.at", r#"expected an integer of 64 bits, found the string "123""#),
        (r#""at":1.0"#, "$.at", "expected an integer of 64 bits, found the number 1.0"),
        (r#""at": -0 "#, "$.at", "expected an integer of 64 bits, found the number -0"),
        (r#""at":1e3 "#, "$.at", "expected an integer of 64 bits, found the number 1e3"),
        (r#""at":9223372036854775808"#, "$.at", "expected an integer of 64 bits, found the number 9223372036854775808"),
        (
            r#""at":-99999999999999999999"#,
            "$.at",
            "expected an integer of 64 bits, found the number -99999999999999999999",
        ),
        (r#""tiny":128"#, "$.tiny", "expected an integer from -128 to 127 or null, found the number 128"),
        (r#""small":-32769"#, "$.small", "expected an integer from -32768 to 32767 or null, found the number -32769"),
        (
            r#""plain":2147483648"#,
            "$.plain",
            "expected an integer from -2147483648 to 2147483647 or null, found the number 2147483648",
        ),
        (r#""narrow":1e39"#, "$.narrow", "expected a number (a float of 32 bits) or null, found the number 1e39"),
        (r#""wide":1e999"#, "$.wide", "expected a number (a float of 64 bits) or null, found the number 1e999"),
        (r#""at":-1E+999999"#, "$.at", "expected an integer of 64 bits, found the number -1E+999999"),
        (r#""wide":"1""#, "$.wide", r#"expected a number (a float of 64 bits) or null, found the string "1""#),
        (r#""flag":1"#, "$.flag", "expected true or false or null, found the number 1"),
        (
            r#""moment":"yesterday""#,
            "$.moment",
            r#"expected a time such as "2022-07-30T17:51:56Z" (RFC 3339) or null, found the string "yesterday""#,
        ),
        (
            r#""day":"2023-02-29""#,
            "$.day",
            r#"expected a date such as "2022-07-30" or null, found the string "2023-02-29""#,
        ),
        (r#""day":19000"#, "$.day", r#"expected a date such as "2022-07-30" or null, found the number 19000"#),
        (
            r#""Case é":"\u0007\n'""#,
            r#"$["Case é"]"#,
            r#"expected an integer from -2147483648 to 2147483647 or null, found the string "\u{7}\n'""#,
        ),
    ];
    for (field, path, reason) in cases {
        let message = format!("\n{{\n{field}\n}}");
        assert_eq!(reject(&decoder, message.as_bytes()), (path.to_owned(), reason.to_owned()), "{field}");
    }
}

#[test]
fn a_message_that_is_no_object_is_refused_as_a_whole() {
    let decoder = decoder(EVERY_TYPE);
    let good = r#"{"id":"i","at":1}"#;
    let json = "expected one JSON object, found something else: ";
    let cases = [
        ("[]".to_owned(), "expected a JSON object, found an array".to_owned()),
        (" \"x\"".to_owned(), "expected a JSON object, found the string \"x\"".to_owned()),
        ("null".to_owned(), "expected a JSON object, found null".to_owned()),
        ("17".to_owned(), "expected a JSON object, found 17".to_owned()),
        (format!("{good} x"), format!("{json}trailing characters at byte 19 of 19, near {good} x")),
        (format!("{good}{good}"), format!("{json}trailing characters at byte 18 of 34, near {good}{good}")),
        ("{".to_owned(), format!("{json}EOF while parsing an object at byte 1 of 1, near {{")),
        (" ".to_owned(), format!("{json}EOF while parsing a value at byte 1 of 1, near  ")),
        ("\u{feff}{}".to_owned(), format!("{json}expected value at byte 1 of 5, near \\u{{feff}}{{}}")),
        (
            "{\"id\":\"i\",\n\"at\":}".to_owned(),
            format!("{json}expected value at byte 17 of 17, near {{\"id\":\"i\",\\n\"at\":}}"),
        ),
        (
            "{\"id\":\"a\nb\"}".to_owned(),
            format!(
                "{json}control character (\\u0000-\\u001F) found while parsing a string at byte 9 of 12, near {{\"id\":\"a\\nb\"}}"
            ),
        ),
        ("{\"at\":007}".to_owned(), format!("{json}invalid number at byte 8 of 10, near {{\"at\":007}}")),
        ("{\"wide\":NaN}".to_owned(), format!("{json}expected value at byte 9 of 12, near {{\"wide\":NaN}}")),
        ("{\"x\":[1,]}".to_owned(), format!("{json}expected value at byte 9 of 10, near {{\"x\":[1,]}}")),
        ("{\"x\":1,}".to_owned(), format!("{json}trailing comma at byte 8 of 8, near {{\"x\":1,}}")),
        (
            "{\"x\":1 \"y\":2}".to_owned(),
            format!("{json}expected `,` or `}}` at byte 8 of 13, near {{\"x\":1 \"y\":2}}"),
        ),
        (
            "{\"id\":\"\\ud800\"}".to_owned(),
            format!("{json}unexpected end of hex escape at byte 14 of 15, near {{\"id\":\"\\ud800\"}}"),
        ),
    ];
    let mut wrong = Vec::new();
    for (message, reason) in cases {
        let found = reject(&decoder, message.as_bytes());
        if found != ("$".to_owned(), reason.clone()) {
            wrong.push((message, found, reason));
        }
    }
    assert_eq!(wrong, []);
}

#[test]
fn null_empty_oversize_and_foreign_bytes_are_refused() {
    let decoder = decoder(EVERY_TYPE);
    let decoded = decoder.decode(&messages([None, Some(b"".as_slice())])).unwrap();
    let reasons: Vec<_> = decoded.rejects.iter().map(|reject| reject.reason.as_str()).collect();
    assert_eq!(
        reasons,
        ["expected a JSON object, found a null value (a tombstone)", "expected a JSON object, found an empty value"]
    );
    let fill = |length: usize| format!(r#"{{"id":"i","at":1,"x":"{}"}}"#, "x".repeat(length - 24));
    assert_eq!(fill(4096).len(), 4096);
    assert_eq!(decoder.decode(&texts(&[&fill(4096)])).unwrap().rejects, []);
    assert_eq!(reject(&decoder, fill(4097).as_bytes()).1, "expected at most 4096 bytes, found 4097");
    let foreign = b"{\"id\":\"i\",\"at\":1,\"x\":\"\xff\"}";
    assert_eq!(reject(&decoder, foreign).1, "expected UTF-8, found the byte 0xff at byte 23 of 25");
}

#[test]
fn fields_come_once_and_the_needed_ones_come() {
    let decoder = decoder(EVERY_TYPE);
    let again = "expected every field once, found this one again";
    let many: String = (0..100).map(|number| format!(r#""k{number}":{number},"#)).collect();
    for (message, path, reason) in [
        (r#"{"id":"i","at":1,"id":"i"}"#.to_owned(), "$.id", again),
        (r#"{"id":"i","at":1,"i\u0064":"i"}"#.to_owned(), "$.id", again),
        (r#"{"id":"i","at":1,"x":1,"y":2,"x":1}"#.to_owned(), "$.x", again),
        (r#"{"id":"i","at":1,"x":1,"\u0078":1}"#.to_owned(), "$.x", again),
        (format!(r#"{{{many}"id":"i","at":1,"k99":1}}"#), "$.k99", again),
        (format!(r#"{{{many}"id":"i","at":1,"k3":1}}"#), "$.k3", again),
        (r#"{"id":"i"}"#.to_owned(), "$.at", "expected an integer of 64 bits, but the field is missing"),
        (r#"{"ID":"i","at":1}"#.to_owned(), "$.id", "expected a string, but the field is missing"),
        ("{}".to_owned(), "$.id", "expected a string, but the field is missing"),
    ] {
        assert_eq!(reject(&decoder, message.as_bytes()), (path.to_owned(), reason.to_owned()), "{message}");
    }
    let good = format!(r#"{{{many}"id":"i","at":1,"x":{{"x":1,"x":2}}}}"#);
    assert_eq!(decoder.decode(&texts(&[&good, &good])).unwrap().batch.num_rows(), 2);
}

#[test]
fn unknown_fields_may_nest_to_the_limit_and_hold_any_json() {
    let decoder = decoder(EVERY_TYPE);
    let nested = |levels: usize| {
        let (open, close) = ("[{\"[\\\"\":".repeat(levels / 2), "}]".repeat(levels / 2));
        let odd = if levels % 2 == 1 { ("[", "]") } else { ("1", "") };
        format!(r#"{{"id":"i","at":1,"x":{open}{}{}{close}}}"#, odd.0, odd.1)
    };
    let wide = format!(r#"{{"id":"i","at":1,"x":[{}[]]}}"#, "[],".repeat(300));
    let odd = r#"{"id":"i","at":1,"x":1e999,"y":"\ud800","z":[-0.0E-0,"[[{",true,false,null,{}]}"#;
    let decoded = decoder.decode(&texts(&[&nested(127), &wide, odd])).unwrap();
    assert_eq!(decoded.rejects, []);
    for levels in [128, 500] {
        let found = reject(&decoder, nested(levels).as_bytes());
        assert_eq!(found, ("$".to_owned(), "expected at most 128 levels of nesting, found more".to_owned()));
    }
    // Deep and broken, with no stack to overflow.
    let deep = "[".repeat(1_000_000);
    let large = Decoder { limits: Limits { max_value_bytes: 2_000_000 }, ..decoder };
    assert_eq!(reject(&large, format!(r#"{{"x":{deep}"#).as_bytes()).0, "$");
    assert_eq!(reject(&large, format!(r#"{{"id":{deep}"#).as_bytes()).1, "expected a string, found an array");
}

#[test]
fn a_bad_message_leaves_its_neighbours_alone() {
    let decoder = decoder(EVERY_TYPE);
    let good = [
        r#"{"id":"the first \u0061nd escaped one","at":1,"flag":true,"day":"2022-07-30"}"#,
        r#"{"id":"the second and plain one","at":2,"note":"with a \"quoted\" note","tiny":3,"wide":0.5}"#,
        r#"{"id":"third","at":3}"#,
    ];
    let bad = r#"{"id":"a row that \u0062reaks off","note":"after some \"values\"","tiny":1,"small":null,"wide":2.5,"flag":true,"day":"2022-07-30","at":"x"}"#;
    let mixed = decoder.decode(&texts(&[bad, good[0], bad, &bad[..60], good[1], bad, good[2], "{}"])).unwrap();
    let pure = decoder.decode(&texts(&good)).unwrap();
    assert_eq!(rows(&mixed.batch), [1, 4, 6]);
    assert_eq!(mixed.rejects.iter().map(|reject| reject.row).collect::<Vec<_>>(), [0, 2, 3, 5, 7]);
    for number in 0..3 {
        assert_eq!(row(&mixed.batch, number), row(&pure.batch, number));
    }
    let copied = |batch: &RecordBatch| batch.column(0).as_string_view().data_buffers()[1].to_vec();
    assert_eq!(copied(&mixed.batch), copied(&pure.batch));
}

#[test]
fn reasons_and_paths_stay_short_and_printable() {
    let decoder = decoder(EVERY_TYPE);
    let long = "\u{202e}\u{1}é".repeat(600);
    for message in [
        format!(r#"{{"at":"{long}"}}"#).replace('\u{1}', "\\u0001"),
        format!(r#"{{"{long}":1,"{long}":2}}"#).replace('\u{1}', "\\u0001"),
        format!(r#"{{"{long}":1,"{long}":2}}"#),
        format!(r#""{long}""#).replace('\u{1}', "\\u0001"),
        format!(r#"{{"at":{}}}"#, "9".repeat(3000)),
    ] {
        let (path, reason) = reject(&decoder, message.as_bytes());
        assert!(path.len() + reason.len() < 1000, "{path} {reason}");
        assert!((path + &reason).chars().all(|shown| !shown.is_control() && shown != '\u{202e}'));
    }
}

#[test]
fn no_messages_make_an_empty_batch_of_the_full_schema() {
    let decoder = decoder(EVERY_TYPE);
    for messages in [messages([]), messages([None])] {
        let decoded = decoder.decode(&messages).unwrap();
        assert_eq!((decoded.batch.num_rows(), decoded.batch.schema()), (0, decoder.schema.clone()));
    }
}
