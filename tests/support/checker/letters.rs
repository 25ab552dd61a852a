//! The dead letters: the committed ones against the model (I2), the aborted ones against those (I6).
//!
//! What I6 proves: an aborted letter has the message that it names, untouched, and stands committed too, byte for byte, its
//! headers included. A letter depends neither on the time nor on the batch that it came in, so unlike rows the letters of
//! every attempt are held to that, of those that Postgres rolled back as well.

use std::collections::{BTreeMap, HashSet};

use super::super::messages::Record;
use super::digests::{Digest, digest};
use super::expected::{Expected, whole};
use super::places::Places;
use super::{Evidence, Examination, Examples};

/// The last one of this name, as text: the newest, where a letter came in again as a message.
fn last_header(record: &Record, name: &str) -> String {
    let found = record.headers.iter().rfind(|(header, _)| header == name).and_then(|(_, value)| value.as_deref());
    String::from_utf8_lossy(found.unwrap_or_default()).into_owned()
}

/// What is wrong with the headers that the job has added: these and no other, in this order, each with something to say.
fn labels(own: &[(String, Option<Vec<u8>>)], source: &str, timestamp: Option<i64>) -> Option<String> {
    let mut names = vec!["topic", "partition", "offset", "timestamp", "stage", "path", "reason", "sql_hash"];
    names.retain(|name| *name != "timestamp" || timestamp.is_some());
    if !own.iter().map(|(name, _)| name.strip_prefix("dinnerbell.")).eq(names.into_iter().map(Some)) {
        return Some(format!("{own:?}"));
    }
    let text = |name: &str| {
        let (_, value) = own.iter().find(|(header, _)| header.ends_with(name)).expect("it is one of the names");
        String::from_utf8_lossy(value.as_deref().unwrap_or_default())
    };
    let silent = own.iter().any(|(_, value)| value.as_deref().is_none_or(<[u8]>::is_empty));
    let elsewhere = text(".topic") != source;
    let then = timestamp.is_some_and(|timestamp| text(".timestamp") != timestamp.to_string());
    (silent || elsewhere || then).then(|| format!("{own:?}; expected {source}, {timestamp:?}"))
}

/// What is wrong with letters, each beside the message that it names.
#[derive(Default)]
struct Faults {
    foreign: Examples,
    changed: Examples,
    stripped: Examples,
    mislabelled: Examples,
    misjudged: Examples,
}

impl Faults {
    /// Where the message of this letter stands, if there is one that the model condemns.
    fn look_at(&mut self, record: &Record, evidence: &Evidence<'_>, expected: &Expected) -> Option<(i32, i64)> {
        let header = |name: &str| last_header(record, &format!("dinnerbell.{name}"));
        let number = |name: &str| header(name).parse::<i64>().unwrap_or(-1);
        let place = (number("partition") as i32, number("offset"));
        let Some(letter) = expected.letters.get(&place) else {
            self.foreign.add(|| format!("{place:?}: {}", header("reason")));
            return None;
        };
        if letter.original != whole(record) {
            self.changed.add(|| format!("{place:?}"));
        }
        match record.headers.strip_prefix(letter.headers.as_slice()) {
            None => self.stripped.add(|| format!("{place:?}: {:?} instead of {:?}", record.headers, letter.headers)),
            Some(own) => {
                let wrong = labels(own, evidence.source, letter.timestamp);
                wrong.into_iter().for_each(|wrong| self.mislabelled.add(|| format!("{place:?}: {wrong}")));
            }
        }
        let (stage, path) = (header("stage"), header("path"));
        if (letter.stage, letter.path.as_str()) != (&stage, &path) {
            self.misjudged.add(|| {
                let reason = header("reason");
                format!("{place:?}: {stage} {path} ({reason}) instead of {} {}", letter.stage, letter.path)
            });
        }
        Some(place)
    }

    fn report(self, invariant: &'static str, kind: &str, to: &mut Examination) {
        for (faults, what) in [
            (self.foreign, "of messages that are none"),
            (self.changed, "differ from their message"),
            (self.stripped, "have not kept the headers of their message"),
            (self.mislabelled, "are labelled wrongly"),
            (self.misjudged, "give another stage or path than the model"),
        ] {
            faults.report(invariant, &format!("{kind} {what}"), to);
        }
    }
}

/// Every message that the model condemns has one letter, with the message untouched and the reason's place; there is no
/// other letter, and none was ever sent.
pub fn check(evidence: &Evidence<'_>, expected: &Expected, to: &mut Examination) {
    let (mut faults, mut committed, mut places) = (Faults::default(), HashSet::new(), Places::default());
    let mut found: BTreeMap<(i32, i64), u64> = BTreeMap::new();
    (evidence.letters)(&mut |record| {
        places.insert(record.partition, record.offset);
        committed.insert(with_headers(&record));
        if let Some(place) = faults.look_at(&record, evidence, expected) {
            *found.entry(place).or_default() += 1;
        }
    });
    let (mut missing, mut doubled) = (Examples::default(), Examples::default());
    for place in expected.letters.keys() {
        match found.get(place) {
            None => missing.add(|| format!("{place:?}")),
            Some(1) => {}
            Some(times) => doubled.add(|| format!("{place:?}, {times} times")),
        }
    }
    faults.report("I2", "dead letters", to);
    missing.report("I2", "dead letters are lost", to);
    doubled.report("I2", "dead letters are doubled", to);
    to.fact("dead letters", found.values().sum());
    aborted(evidence, expected, &committed, &places, to);
}

/// Looks at every letter that a `read_committed` reader does not see.
fn aborted(
    evidence: &Evidence<'_>,
    expected: &Expected,
    committed: &HashSet<Digest>,
    places: &Places,
    to: &mut Examination,
) {
    let (mut faults, mut differing, mut count) = (Faults::default(), Examples::default(), 0);
    (evidence.uncommitted_letters)(&mut |record| {
        if places.contains(record.partition, record.offset) {
            return;
        }
        count += 1;
        let place = faults.look_at(&record, evidence, expected);
        if !committed.contains(&with_headers(&record)) {
            differing.add(|| format!("{place:?}: {record:?}"));
        }
    });
    faults.report("I6", "aborted dead letters", to);
    differing.report("I6", "aborted dead letters do not stand committed, byte for byte", to);
    to.fact("aborted dead letters", count);
}

/// All of a letter.
fn with_headers(record: &Record) -> Digest {
    let headers = format!("{:?}", record.headers);
    digest(&[&whole(record).to_be_bytes()[..], headers.as_bytes()].concat())
}
