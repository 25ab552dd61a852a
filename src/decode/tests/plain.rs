//! Plain reading changes nothing but the time: with and without it, the same rows and the same rejects.

use proptest::prelude::*;
use proptest::strategy::Union;

use super::property::mutated;
use super::*;

/// Values that fit [`EVERY_TYPE`] and, but for the words, need no parser, by column. Nullable columns are in any message or not.
const FITTING: &[(&str, &[&str])] = &[
    ("tiny", &["-128", "127", "0", "-1"]),
    ("small", &["-32768", "32767", "10"]),
    ("plain", &["-2147483648", "2147483647"]),
    ("big", &["999999999999999999", "-999999999999999999", "100000000000000000", "-7"]),
    ("narrow", &["1", "-16777217", "999999999999999999"]),
    ("wide", &["0", "9007199254740993"]),
    ("flag", &["true", "false"]),
    ("moment", &["\"2022-07-31T00:00:00Z\"", "\"1969-12-31T23:59:59.123456789+03:00\""]),
    ("instant", &["\"2022-07-31t00:00:00z\""]),
    ("day", &["\"2022-07-30\"", "\"0000-01-01\""]),
    ("Case é", &["5"]),
];

/// Values that are cut out for the parser, do not fit, or are no JSON.
const ODD: &[&str] = &[
    "-0",
    "01",
    "-01",
    "00",
    "+1",
    "-",
    "--1",
    "1.0",
    "1.",
    ".5",
    "1e2",
    "-1.5E-3",
    "1e39",
    "1e400",
    "128",
    "-129",
    "32768",
    "2147483648",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775808",
    "-9223372036854775809",
    "1000000000000000000",
    "18446744073709551615",
    "18446744073709551616",
    "99999999999999999999",
    "0123456789012345678",
    "true",
    "false",
    "null",
    "nul",
    "nullx",
    "\"\\u0416\\n\\\"\\\\ and more than a view\"",
    "\"\\ud83d\\udd14\"",
    "\"\\ud800\"",
    "\"\\x\"",
    "\"\\",
    "\"\\\"",
    "\"\t\"",
    "\"\u{1f}\"",
    "\"\u{7f}\"",
    "\"2022-02-30\"",
    "\"2022-07-3\\u0030\"",
    "\"12\"",
    "[]",
    "{}",
    "[1]",
    "{\"a\":1}",
    "1]",
    "1 2",
    "\"a\"\"b\"",
    "",
];

/// Keys that are not those of [`EVERY_TYPE`], or not as it writes them.
const STRANGE_KEYS: &[&str] = &[
    "\"x\"",
    "\"\"",
    "\"ID\"",
    "\"i\\u0064\"",
    "\"a\\u0074\"",
    "\"tiny",
    "tiny\"",
    "\"id\"",
    "\"at\"",
    "\"day\"",
    "5",
];

/// Messages of every needed field and some of the others, by turns, with any white space.
fn plain_fields() -> impl Strategy<Value = Vec<(String, String)>> {
    let text = "[ !#-\\[\\]-~а-яё🔔\u{7f}]{0,40}".prop_map(|text| format!("\"{text}\""));
    let id = text.clone().prop_map(|text| Some(("\"id\"".to_owned(), text)));
    let at = (-999_999_999_999_999_999..=999_999_999_999_999_999_i64)
        .prop_map(|at| Some(("\"at\"".to_owned(), at.to_string())));
    let note = prop::option::of(text.prop_map(|text| ("\"note\"".to_owned(), text)));
    let others: Vec<_> = FITTING
        .iter()
        .map(|(name, values)| {
            prop::option::of(
                prop::sample::select(*values).prop_map(move |value| (format!("\"{name}\""), value.to_owned())),
            )
        })
        .collect();
    let shuffle = prop::bool::weighted(0.5);
    (id, at, note, others, shuffle, any::<prop::sample::Index>()).prop_map(|(id, at, note, others, shuffle, index)| {
        let mut fields: Vec<_> = [id, at, note].into_iter().chain(others).flatten().collect();
        if shuffle {
            let half = index.index(fields.len());
            fields.rotate_left(half);
            fields[half..].reverse();
        }
        fields
    })
}

/// Most messages come without white space or with a little of it.
fn message(fields: impl Strategy<Value = Vec<(String, String)>>) -> impl Strategy<Value = String> {
    (fields, prop_oneof![Just(String::new()), "[ \t\r\n]{1,3}"]).prop_map(|(fields, space)| {
        let fields: Vec<_> =
            fields.iter().map(|(key, value)| format!("{space}{key}{space}:{space}{value}{space}")).collect();
        format!("{space}{{{}}}{space}", fields.join(","))
    })
}

/// Plain messages with an odd value or a strange key somewhere.
fn odd_fields() -> impl Strategy<Value = Vec<(String, String)>> {
    let odd = prop::sample::select(ODD).prop_map(|value| (None, Some(value.to_owned())));
    let strange = prop::sample::select(STRANGE_KEYS).prop_map(|key| (Some(key.to_owned()), None));
    let change = Union::new_weighted(vec![(3, odd.boxed()), (1, strange.boxed())]);
    (plain_fields(), any::<prop::sample::Index>(), change).prop_map(|(mut fields, index, (key, value))| {
        let field = index.get_mut(&mut fields);
        field.0 = key.unwrap_or(field.0.clone());
        field.1 = value.unwrap_or(field.1.clone());
        fields
    })
}

fn plain_or_strict<'m>(rows: &mut Rows<'m>, message: &'m [u8]) -> Result<(), words::Problem> {
    rows.append_plain(message).map_or_else(|| rows.append_strictly(message), Ok)
}

/// All that can be seen of what was decoded: also the copied strings, of which nothing may be left over.
fn seen(decoded: Decoded) -> (RecordBatch, Vec<Reject>, Vec<u8>) {
    let buffers = decoded.batch.column(0).as_string_view().data_buffers();
    let copied = buffers.get(1).map(|copied| copied.to_vec()).unwrap_or_default();
    (decoded.batch, decoded.rejects, copied)
}

fn agree(values: &[Vec<u8>]) {
    agree_in(EVERY_TYPE, values);
}

fn agree_in(sql: &str, values: &[Vec<u8>]) {
    let decoder = decoder(sql);
    let messages = messages(values.iter().map(|value| Some(value.as_slice())));
    let strictly = seen(decoder.decode_by(&messages, Rows::append_strictly).unwrap());
    assert_eq!(seen(decoder.decode_by(&messages, plain_or_strict).unwrap()), strictly);
    assert_eq!(seen(decoder.decode(&messages).unwrap()), strictly);
}

/// Whether plain reading takes the last of these messages, which may be learned from the ones before.
fn is_read_plainly(values: &[&str]) -> bool {
    let decoder = decoder(EVERY_TYPE);
    let messages = texts(values);
    let mut rows = Rows::new(&decoder.columns, &decoder.by_name, messages.values(), messages.len());
    let taken = (0..messages.len()).map(|row| rows.append_plain(messages.value(row).unwrap()).is_some());
    taken.last().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn plain_messages_are_read_plainly(one in message(plain_fields()), other in message(plain_fields())) {
        assert!(is_read_plainly(&[&one]), "{one}");
        assert!(is_read_plainly(&[&one, &other]), "{one} {other}");
        agree(&[one.into_bytes(), other.into_bytes()]);
    }

    #[test]
    fn with_and_without_plain_reading_all_is_the_same(
        values in prop::collection::vec(
            prop_oneof![
                message(plain_fields()).prop_map(String::into_bytes),
                message(odd_fields()).prop_map(String::into_bytes),
                mutated(message(plain_fields())),
                mutated(message(odd_fields())),
            ], 1..32)
    ) {
        agree(&values);
    }
}

/// The message with a byte replaced, left out or put in anywhere, and all that it begins with.
fn small_changes(good: &str) -> Vec<Vec<u8>> {
    let mut values = Vec::new();
    for at in 0..=good.len() {
        let (before, behind) = good.as_bytes().split_at(at);
        let rest = behind.get(1..).unwrap_or_default();
        values.push(before.to_vec());
        values.push([before, rest].concat());
        for byte in 0..=u8::MAX {
            values.push([before, &[byte], rest].concat());
            values.push([before, &[byte], behind].concat());
        }
    }
    values
}

/// Every odd value in every column, and every small change.
#[test]
fn every_small_change_of_a_message_is_judged_alike() {
    let good = "{\"id\":\"Й\", \"at\":-10,\"note\":\"\\n\",\"day\":\"2022-07-30\",\"wide\":1.5,\"flag\":true}";
    let mut values = Vec::new();
    for name in ["id", "at", "tiny", "small", "plain", "big", "narrow", "wide", "flag", "moment", "day"] {
        values.extend(ODD.iter().map(|odd| format!("{{\"{name}\":{odd},\"id\":\"i\",\"at\":1}}").into_bytes()));
        values.extend(ODD.iter().map(|odd| format!("{{\"at\":1,\"{name}\":{odd}}}").into_bytes()));
    }
    values.extend(small_changes(good));
    agree(&values);
}

/// Behind the last of all columns only the object's end may come.
#[test]
fn a_message_of_all_columns_ends_with_its_object() {
    let mut values = small_changes("{\"id\":\"i\",\"at\":1}");
    for tail in
        ["", "}", "} \t\r\n", " }", "]", ",", ",}", "}}", "} x", "},", ",\"at\":2}", ",\"id\":\"i\"}", ",\"x\":2}"]
    {
        values.push(format!("{{\"id\":\"i\",\"at\":1{tail}").into_bytes());
        values.push(format!("{{\"at\":1,\"id\":\"i\"{tail}").into_bytes());
    }
    agree_in("CREATE TABLE campaigns (id VARCHAR NOT NULL, at BIGINT NOT NULL)", &values);
}

/// What stood between two values the last time is a guess, whatever stands there now.
#[test]
fn what_was_learned_of_other_messages_is_only_a_guess() {
    let shapes = [
        r#"{"id":"i","at":1}"#,
        r#"{"id": "i", "at": 1}"#,
        r#"{"id":  "i" ,"at":   1 }"#,
        r#"{"at":1,"id":"i"}"#,
        r#"{"id":"i","note":"n","at":1}"#,
        r#"{"id":"i","at":1,"at":1}"#,
        r#"{"id":"i","at":,"at":1}"#,
        r#"{"id":"i","at": }"#,
        r#"{"id":,"id":"i","at":1}"#,
        r#"{"id":"i","atx":1,"at":1}"#,
        r#"{"id":"i"{"id":"i","at":1}"#,
        r#"{"id":"i","at":1}{"id":"i"}"#,
        r#"{"id":"i","at":"#,
        r#"{"id":"#,
    ];
    let pairs = shapes.iter().flat_map(|one| shapes.iter().flat_map(move |other| [one, other]));
    agree(&pairs.map(|shape| shape.as_bytes().to_vec()).collect::<Vec<_>>());
    for one in &shapes[..5] {
        for other in &shapes[..5] {
            assert!(is_read_plainly(&[one, other]), "{one} {other}");
        }
    }
}

#[test]
fn what_is_not_plain_is_left_to_the_strict_pass() {
    for (message, plain) in [
        (r#"{"id":"i","at":1}"#, true),
        (r#" { "at" : -1 , "id" : "Ж" } "#, true),
        (r#"{"id":"an \"escape\"","at":9223372036854775807,"flag":true,"wide":1.5e3,"note":null}"#, true),
        (r#"{"id":"i","at":1,"x":2}"#, false),
        (r#"{"i\u0064":"i","at":1}"#, false),
        (r#"{"id":"i","at":1,"at":1}"#, false),
        (r#"{"id":"i"}"#, false),
        (r#"{"id":"i","at":01}"#, false),
        (r#"{"id":"i","at":-0}"#, false),
        (r#"{"id":"i","at":null}"#, false),
        (r#"{"id":[],"at":1}"#, false),
        (r#"{"id":"i","at":1}}"#, false),
        (r#"{"id":"i","at":1,}"#, false),
        (r#"["id","at"]"#, false),
        ("{}", false),
        ("", false),
    ] {
        assert_eq!(is_read_plainly(&[message]), plain, "{message}");
    }
}

/// A column whose name has a quote in it is found as JSON writes it, and not by its bare characters.
#[test]
fn names_that_json_escapes() {
    let decoder = decoder(r#"CREATE TABLE campaigns ("a""b" INT, "c\d" INT)"#);
    let messages = texts(&[r#"{"a\"b":1,"c\\d":2}"#, r#"{"a"b":1}"#, r#"{"c\d":1}"#, r#"{"a\u0022b":1}"#]);
    let decoded = decoder.decode_by(&messages, plain_or_strict).unwrap();
    assert_eq!(rows(&decoded.batch), [0, 3]);
    assert_eq!(row(&decoded.batch, 0), [json!(1), json!(2)]);
    assert_eq!(decoded.rejects, decoder.decode_by(&messages, Rows::append_strictly).unwrap().rejects);
}
