//! Every byte string is a row or a reject, and which of them agrees with a second opinion.

use proptest::prelude::*;

use super::judge::judge;
use super::*;

/// Members that are right, nearly right or strange, put together in any order and number.
fn almost_messages() -> impl Strategy<Value = String> {
    const KEYS: &[&str] = &[
        "id", "at", "note", "tiny", "small", "plain", "big", "narrow", "wide", "flag", "moment", "instant", "day",
        "Case é", "\\u0069d", "a\\u0074", "x", "y", "\\u0079", "\\ud800", "", "ID",
    ];
    const VALUES: &[&str] = &[
        "\"\"",
        "\"text\"",
        "\"a longer text than a view holds\"",
        "\"esc\\u0061ped and longer than a view\"",
        "\"\\ud83d\\udd14\"",
        "\"\\ud800\"",
        "\"🔔\"",
        "0",
        "-0",
        "1",
        "-1",
        "127",
        "128",
        "-129",
        "40000",
        "3000000000",
        "9223372036854775807",
        "9223372036854775808",
        "-9223372036854775809",
        "1.0",
        "1.5",
        "1e2",
        "1e39",
        "1e400",
        "01",
        "-",
        "true",
        "false",
        "null",
        "nul",
        "[]",
        "{}",
        "[1,{\"a\":[]}]",
        "[1,]",
        "{\"a\":1,\"a\":2}",
        "\"2022-07-30\"",
        "\"2022-07-31T00:00:00Z\"",
        "\"2022-07-31T00:00:00.123456789+03:00\"",
        "\"2022-02-30\"",
        "\"\t\"",
        "NaN",
    ];
    let member = (prop::sample::select(KEYS).prop_map(str::to_owned), prop::sample::select(VALUES), "[ \t\r\n]?");
    let members = prop::collection::vec(member, 0..12);
    let needed = prop::bool::weighted(0.8);
    (members, needed, "[ \n]?", prop::sample::select(&["", " ", "}", "{}", ","][..])).prop_map(
        |(members, needed, before, after)| {
            let mut all: Vec<String> = members
                .into_iter()
                .map(|(key, value, space)| format!("\"{key}\"{space}:{space}{value}{space}"))
                .collect();
            if needed {
                all.retain(|member| !member.starts_with("\"id") && !member.starts_with("\"at"));
                all.push("\"at\":5".to_owned());
                all.insert(0, "\"id\":\"i\"".to_owned());
            }
            let after = if needed && !all.len().is_multiple_of(4) { "" } else { after };
            format!("{before}{{{}}}{after}", all.join(","))
        },
    )
}

/// The text with a few bytes replaced, put in or taken out, or cut off.
pub fn mutated(texts: impl Strategy<Value = String>) -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![any::<u8>(), prop::sample::select(&b"{}[]\",:\\0-e. \xc3\xa9u"[..])];
    let changes = prop::collection::vec((0..4_u8, any::<prop::sample::Index>(), byte), 0..4);
    (texts, changes).prop_map(|(text, changes)| {
        let mut bytes = text.into_bytes();
        for (kind, index, byte) in changes {
            let at = index.index(bytes.len() + 1);
            match kind {
                0 if at < bytes.len() => bytes[at] = byte,
                1 if at < bytes.len() => _ = bytes.remove(at),
                2 => bytes.truncate(at.max(bytes.len() / 2)),
                _ => bytes.insert(at, byte),
            }
        }
        bytes
    })
}

/// Every message is a row or a reject, in order, and a row exactly where the judge says so and with its values.
fn agrees_with_the_judge(values: Vec<Option<Vec<u8>>>) {
    let decoder = decoder(EVERY_TYPE);
    let messages = messages(values.iter().map(Option::as_deref));
    let decoded = decoder.decode(&messages).unwrap();
    let mut accepted = rows(&decoded.batch).into_iter().enumerate().peekable();
    let mut rejects = decoded.rejects.iter().peekable();
    let declared = CampaignSchema::parse(Path::new("campaigns.sql"), EVERY_TYPE).unwrap().schema();
    for (number, value) in values.iter().enumerate() {
        let verdict = value.as_deref().and_then(|value| judge(&declared, value, LIMITS.max_value_bytes));
        let shown = value.as_deref().map(String::from_utf8_lossy);
        if let Some((position, _)) = accepted.next_if(|(_, row)| *row as usize == number) {
            assert_eq!(Some(row(&decoded.batch, position)), verdict, "{shown:?}");
        } else {
            let reject = rejects.next_if(|reject| reject.row as usize == number);
            assert!(
                reject.is_some_and(|reject| reject.path.starts_with('$') && !reject.reason.is_empty()),
                "{shown:?}"
            );
            assert_eq!(verdict, None, "{shown:?} {reject:?}");
        }
    }
    assert_eq!((accepted.next(), rejects.next()), (None, None));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_bytes(values in prop::collection::vec(prop::option::of(prop::collection::vec(any::<u8>(), 0..64)), 0..8)) {
        agrees_with_the_judge(values);
    }

    #[test]
    fn any_json_like_text(values in prop::collection::vec(prop::option::of("[{}\\[\\]\",:\\\\0-9eE.+a-u \n-]{0,40}"), 0..8)) {
        agrees_with_the_judge(values.into_iter().map(|value| value.map(String::into_bytes)).collect());
    }

    #[test]
    fn whole_and_broken_messages_side_by_side(
        values in prop::collection::vec(
            prop_oneof![almost_messages().prop_map(String::into_bytes), mutated(almost_messages())], 0..24)
    ) {
        agrees_with_the_judge(values.into_iter().map(Some).collect());
    }
}

/// What fuzzing began with and what it found: no nightly compiler is needed to try it again.
#[test]
fn the_fuzzers_corpus() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/decode");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap());
    let values: Vec<_> = files.map(Some).collect();
    assert!(values.len() > 20, "{} files", values.len());
    agrees_with_the_judge(values);
}
