//! What must come out of the documented mission, message by message, in plain Rust: an independent witness, with nothing in
//! it of the job's decoder, SQL or lookup.
//!
//! The clock has no say: campaigns of a chaos run are active from 2022 to 2054, or ended in 2022, or start in 2054.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use super::campaigns::Campaign;

/// The name of the lookup table, as in `sql/lookups/`.
const LOOKUP: &str = "subscribers_restaurants";

const TEXTS: [&str; 5] =
    ["restaurant_id", "adv_campaign_id", "adv_campaign_content", "adv_campaign_owner", "adv_campaign_owner_contact"];
const NUMBERS: [&str; 3] = ["adv_campaign_datetime_start", "adv_campaign_datetime_end", "datetime_created"];

/// What becomes of one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// One row for each of these clients.
    Triggered {
        campaign: Box<Campaign>,
    },
    NotStarted,
    Expired,
    NoMatch,
    /// Where it fails, and the field that is to blame, as the letter's headers name them.
    DeadLetter {
        stage: &'static str,
        path: String,
    },
}

impl Verdict {
    /// As the ledger and the metrics call it.
    pub fn outcome(&self) -> String {
        match self {
            Verdict::Triggered { .. } => "triggered".into(),
            Verdict::NotStarted => "not_started".into(),
            Verdict::Expired => "expired".into(),
            Verdict::NoMatch => format!("no_match:{LOOKUP}"),
            Verdict::DeadLetter { .. } => "dead_letter".into(),
        }
    }
}

/// All that the verdicts depend on beside the message.
#[derive(Debug, Clone, Default)]
pub struct Model {
    /// The clients of each restaurant, each once.
    pub subscriptions: BTreeMap<String, BTreeSet<String>>,
    /// The sink table has a CHECK constraint against this content.
    pub refused_content: Option<String>,
    /// `[sink.kafka] key`: the column that is the key of each record; without one records have none.
    pub key: Option<String>,
    /// Unix seconds at which campaigns are judged; any moment of the run will do, see above.
    pub now: i64,
}

impl Model {
    pub fn judge(&self, value: Option<&[u8]>) -> Verdict {
        let campaign = match value.ok_or_else(|| "$".to_owned()).and_then(parse) {
            Ok(campaign) => campaign,
            Err(path) => return Verdict::DeadLetter { stage: "decode", path },
        };
        if campaign.start > self.now {
            return Verdict::NotStarted;
        }
        if campaign.end < self.now {
            return Verdict::Expired;
        }
        if self.clients(&campaign).is_none_or(BTreeSet::is_empty) {
            return Verdict::NoMatch;
        }
        // Only now: what makes no row is refused by nobody.
        if let Some(path) = nul(&campaign) {
            return Verdict::DeadLetter { stage: "encode", path };
        }
        if self.refused_content.as_deref() == Some(&campaign.content) {
            return Verdict::DeadLetter { stage: "postgres", path: "$".into() };
        }
        Verdict::Triggered { campaign: Box::new(campaign) }
    }

    /// The campaign of a message that Postgres refuses: its rows were made, and must stay aborted.
    pub fn refused(&self, value: Option<&[u8]>) -> Option<Campaign> {
        match self.judge(value) {
            Verdict::DeadLetter { stage: "postgres", .. } => parse(value?).ok(),
            _ => None,
        }
    }

    pub fn clients(&self, campaign: &Campaign) -> Option<&BTreeSet<String>> {
        self.subscriptions.get(&campaign.restaurant_id)
    }

    /// The rows of a triggered campaign without the time of their making, up to the comma before it.
    pub fn rows(&self, campaign: &Campaign, mut each: impl FnMut(&[u8])) {
        const MARK: &str = "@client@";
        let row = campaign.trigger(MARK, 0);
        // The ids of chaos runs hold no such mark, and the client's column is the only one left.
        let (before, after) = row.rsplit_once(MARK).expect("the client's place");
        let end = after.rfind(TIME).expect("the time's place");
        let mut text = Vec::with_capacity(row.len() + 64);
        for client in self.clients(campaign).into_iter().flatten() {
            text.clear();
            text.extend_from_slice(before.as_bytes());
            text.extend_from_slice(client.as_bytes());
            text.extend_from_slice(&after.as_bytes()[..end]);
            each(&text);
        }
    }
}

impl Model {
    /// The key of a row's record: text as it is, a number by its digits.
    pub fn key_of(&self, row: &[u8]) -> Option<Vec<u8>> {
        let column = self.key.as_deref()?;
        match &serde_json::from_slice::<Value>(row).ok()?[column] {
            Value::Null => None,
            Value::String(text) => Some(text.clone().into_bytes()),
            other => Some(other.to_string().into_bytes()),
        }
    }
}

/// What stands between a row and the time of its making.
const TIME: &str = r#","trigger_datetime_created":"#;

/// A row of either sink, taken apart: without the time of its making, and that time.
pub fn split_time(row: &[u8]) -> Option<(&[u8], i64)> {
    let row = row.strip_suffix(b"}")?;
    let digits = row.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    let (rest, time) = row.split_at(row.len() - digits);
    let timeless = rest.strip_suffix(TIME.as_bytes())?;
    Some((timeless, std::str::from_utf8(time).ok()?.parse().ok()?))
}

/// One text column of a row, where its value has no escapes (ids have none).
pub fn id_in<'a>(row: &'a [u8], column: &str) -> Option<&'a [u8]> {
    let mark = format!("\"{column}\":\"");
    let at = row.windows(mark.len()).position(|window| window == mark.as_bytes())? + mark.len();
    let length = row[at..].iter().position(|byte| *byte == b'"')?;
    Some(&row[at..at + length])
}

/// The declared fields of a message; what is wrong is told by its path.
fn parse(value: &[u8]) -> Result<Campaign, String> {
    let whole = || "$".to_owned();
    let text = std::str::from_utf8(value).map_err(|_| whole())?;
    let Fields(fields) = serde_json::from_str(text).map_err(|_| whole())?;
    let mut seen: BTreeMap<&str, &Value> = BTreeMap::new();
    for (key, value) in &fields {
        let fits = match key.as_str() {
            key if TEXTS.contains(&key) => value.is_string(),
            key if NUMBERS.contains(&key) => value.is_i64(),
            _ => true,
        };
        if seen.insert(key, value).is_some() || !fits {
            return Err(format!("$.{key}"));
        }
    }
    if let Some(missing) = TEXTS.iter().chain(&NUMBERS).find(|column| !seen.contains_key(**column)) {
        return Err(format!("$.{missing}"));
    }
    let text = |column: &str| seen[column].as_str().unwrap_or_default().to_owned();
    let number = |column: &str| seen[column].as_i64().unwrap_or_default();
    Ok(Campaign {
        restaurant_id: text(TEXTS[0]),
        adv_campaign_id: text(TEXTS[1]),
        content: text(TEXTS[2]),
        owner: text(TEXTS[3]),
        owner_contact: text(TEXTS[4]),
        start: number(NUMBERS[0]),
        end: number(NUMBERS[1]),
        created: number(NUMBERS[2]),
    })
}

/// U+0000 is no text for Postgres.
fn nul(campaign: &Campaign) -> Option<String> {
    let Campaign { restaurant_id, adv_campaign_id, content, owner, owner_contact, .. } = campaign;
    let texts = [restaurant_id, adv_campaign_id, content, owner, owner_contact];
    let at = texts.iter().position(|text| text.contains('\0'))?;
    Some(format!("$.{}", TEXTS[at]))
}

/// An object's fields in their order, repeated ones included.
struct Fields(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Fields, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Object)
    }
}
