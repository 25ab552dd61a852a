//! The checker can fail: a small run is written down by hand, all of it right, and then spoilt in one place after the other.

use std::collections::BTreeMap;

use crate::support::checker::{
    Change, Evidence, Examination, GroupOffset, History, Part, Told, decode_group_offset, examine,
};
use crate::support::model::Model;
use crate::support::{Campaign, Record, client, restaurant};

const JOB: &str = "job";
const MADE: i64 = 1_700_000_000;
/// The time of an attempt that was rolled back.
const EARLIER: i64 = MADE - 1;

/// What a run has left. Partition 0 holds, in two advances with a part each and one without: [triggered, dead letter], [expired,
/// triggered], [no match]; partition 1 one triggered message.
#[derive(Clone)]
struct Left {
    input: Vec<Record>,
    table: Vec<String>,
    committed: Vec<Record>,
    aborted: Vec<Record>,
    letters: Vec<Record>,
    aborted_letters: Vec<Record>,
    history: History,
    offsets: Vec<GroupOffset>,
    sent_again: Vec<(i32, i64, i64)>,
    told: Vec<Told>,
    /// `[sink.kafka] key`
    key: Option<String>,
}

fn model() -> Model {
    let subscriptions = (1..=2).map(|n| (restaurant(n), (0..3).map(|c| client(10 * n + c)).collect())).collect();
    Model { subscriptions, refused_content: Some("rude".into()), key: None, now: MADE }
}

fn record(partition: i32, offset: i64, value: impl Into<Vec<u8>>) -> Record {
    Record { partition, offset, timestamp: None, key: None, value: Some(value.into()), headers: Vec::new() }
}

/// A record of the output topic, under its client's id.
fn output(partition: i32, offset: i64, row: &str) -> Record {
    let (_, after) = row.split_once(r#""client_id":""#).expect("a client");
    Record { key: after.split('"').next().map(Into::into), ..record(partition, offset, row) }
}

fn campaign(n: usize) -> Campaign {
    Campaign::new(n, restaurant(if n == 9 { 1 } else { 2 }))
}

fn rows(n: usize, made: i64) -> Vec<String> {
    let campaign = campaign(n);
    let clients = model().clients(&campaign).expect("it has some").clone();
    clients.iter().map(|client| campaign.trigger(client, made)).collect()
}

/// When and under which key the bad message was sent, and what came with it: a letter that came in again.
const SENT: i64 = 1_699_999_999_999;
const KEY: &[u8] = b"first_message";

fn sent_with() -> Vec<(String, Option<Vec<u8>>)> {
    let header = |name: &str, value: Option<&str>| (name.to_owned(), value.map(Into::into));
    vec![header("trace", Some("1")), header("trace", None), header("dinnerbell.offset", Some("77"))]
}

fn letter(partition: i32, offset: i64, value: &str, stage: &str, path: &str) -> Record {
    let own = [
        ("topic", "campaigns".to_owned()),
        ("partition", partition.to_string()),
        ("offset", offset.to_string()),
        ("timestamp", SENT.to_string()),
        ("stage", stage.into()),
        ("path", path.into()),
        ("reason", "it is bad".into()),
        ("sql_hash", "0123".into()),
    ];
    let own = own.map(|(name, value)| (format!("dinnerbell.{name}"), Some(value.into_bytes())));
    Record { key: Some(KEY.into()), headers: [sent_with(), own.into()].concat(), ..record(0, 0, value) }
}

/// The header of a letter's that the job has written.
fn label<'a>(left: &'a mut Left, name: &str) -> &'a mut (String, Option<Vec<u8>>) {
    let mut own = left.letters[0].headers.iter_mut().skip(sent_with().len());
    own.find(|(header, _)| header.strip_prefix("dinnerbell.") == Some(name)).expect("a label")
}

fn metadata(epoch: i64, commit: &str) -> String {
    format!("{JOB};{epoch};{commit}")
}

/// (partition, old (offset, epoch), new offset, last output, epoch, commit)
type Row = (i32, Option<(i64, i64)>, i64, i64, i64, &'static str);

fn changes(rows: &[Row]) -> Vec<Change> {
    let change = |(at, &(partition, old, next_offset, last_output_to, epoch, commit)): (usize, &Row)| {
        // A claim raises the epoch and leaves the metadata as it is.
        let written = if commit.is_empty() { metadata(0, "nil") } else { metadata(1, commit) };
        Change { partition, old, next_offset, last_output_to, epoch, metadata: written, at: 1_000 + at as i64 }
    };
    rows.iter().enumerate().map(change).collect()
}

fn part(partition: i32, from: i64, to: i64, commit: &str, rows: u64, letters: u64, outcomes: &[(&str, u64)]) -> Part {
    let (commit, outcomes) = (commit.to_owned(), self::outcomes(outcomes));
    Part { partition, from, to, commit, rows, letters, outcomes, triggered_at: MADE, deleted: 1 }
}

fn outcomes(counts: &[(&str, u64)]) -> BTreeMap<String, u64> {
    counts.iter().map(|(name, count)| (name.to_string(), *count)).collect()
}

fn told(partition: i32, from: i64, to: i64, counts: &[(&str, u64)]) -> Told {
    Told { partition, from, to, outcomes: outcomes(counts) }
}

fn good() -> Left {
    let nobodys = Campaign::new(4, restaurant(77));
    let input = vec![
        record(0, 0, campaign(0).json()),
        Record { timestamp: Some(SENT), key: Some(KEY.into()), headers: sent_with(), ..record(0, 1, "{no JSON") },
        record(0, 2, campaign(2).expired().json()),
        record(0, 3, campaign(3).json()),
        record(0, 4, nobodys.json()),
        record(1, 0, campaign(9).json()),
    ];
    let table: Vec<String> = [0, 3, 9].iter().flat_map(|n| rows(*n, MADE)).collect();
    // The rows of campaign 0 stand aborted before they stand committed, and there was an attempt before that.
    let aborted = [rows(0, EARLIER), rows(0, MADE)].concat();
    let aborted: Vec<Record> = aborted.iter().enumerate().map(|(n, row)| output(0, n as i64, row)).collect();
    let committed = table.iter().enumerate().map(|(n, row)| output(0, 100 + n as i64, row)).collect();
    let history = History {
        changes: changes(&[
            (0, None, 0, 0, 0, ""),
            (1, None, 0, 0, 0, ""),
            (0, Some((0, 0)), 0, 0, 1, ""),
            (1, Some((0, 0)), 0, 0, 1, ""),
            (0, Some((0, 1)), 2, 2, 1, "a"),
            (0, Some((2, 1)), 4, 4, 1, "b"),
            (1, Some((0, 1)), 1, 1, 1, "b"),
            (0, Some((4, 1)), 5, 4, 1, "c"),
        ]),
        parts: vec![
            part(0, 0, 2, "a", 3, 1, &[("triggered", 1)]),
            // What came before its last message was counted by itself.
            part(0, 2, 4, "b", 3, 0, &[("triggered", 1)]),
            part(1, 0, 1, "b", 3, 0, &[("triggered", 1)]),
        ],
        ends: [(0, 5), (1, 1)].into(),
    };
    let offset = |partition, offset, metadata, at| GroupOffset { partition, offset, metadata, at };
    let offsets = vec![
        offset(0, 0, metadata(0, "nil"), 1_010),
        offset(1, 0, metadata(0, "nil"), 1_010),
        offset(0, 2, metadata(1, "a"), 1_011),
        offset(0, 4, metadata(1, "b"), 1_012),
        offset(1, 1, metadata(1, "b"), 1_012),
        offset(0, 5, metadata(1, "c"), 1_013),
    ];
    // The dead letter stands aborted as often as the rows beside it.
    let dead = letter(0, 1, "{no JSON", "decode", "$");
    let aborted_letters = (1..3).map(|offset| Record { offset, ..dead.clone() }).collect();
    let told = vec![
        told(0, 0, 2, &[("triggered", 1), ("dead_letter", 1)]),
        told(0, 0, 2, &[("triggered", 1), ("dead_letter", 1)]),
        told(0, 2, 3, &[("expired", 1)]),
        told(0, 3, 4, &[("triggered", 1)]),
        told(1, 0, 1, &[("triggered", 1)]),
        told(0, 4, 5, &[("no_match:subscribers_restaurants", 1)]),
    ];
    let (letters, sent_again, key) = (vec![dead], vec![(0, 0, 2)], Some("client_id".to_owned()));
    Left { input, table, committed, aborted, letters, aborted_letters, history, offsets, sent_again, told, key }
}

fn look_at(left: &Left) -> Examination {
    let model = Model { key: left.key.clone(), ..model() };
    let records = |list: &Vec<Record>| {
        let list = list.clone();
        Box::new(move |each: &mut dyn FnMut(Record)| list.iter().cloned().for_each(each)) as _
    };
    let table = left.table.clone();
    examine(&Evidence {
        model: &model,
        source: "campaigns",
        input: records(&left.input),
        table: Box::new(move |each| table.iter().cloned().for_each(each)),
        committed: records(&left.committed),
        uncommitted: records(&[left.aborted.clone(), left.committed.clone()].concat()),
        letters: records(&left.letters),
        uncommitted_letters: records(&[left.letters.clone(), left.aborted_letters.clone()].concat()),
        history: left.history.clone(),
        offsets: left.offsets.clone(),
        sent_again: left.sent_again.clone(),
        told: left.told.clone(),
    })
}

/// Spoils the good run and asserts that a finding of this name says this.
#[track_caller]
fn finds(invariant: &str, says: &str, spoil: impl FnOnce(&mut Left)) {
    let mut left = good();
    spoil(&mut left);
    let Examination { findings, .. } = look_at(&left);
    let named = findings.iter().any(|finding| finding.invariant == invariant && finding.what.contains(says));
    assert!(named, "nothing of {invariant} says {says:?}: {findings:#?}");
}

#[test]
fn a_run_that_is_right_passes() {
    let Examination { findings, facts } = look_at(&good());
    assert_eq!(findings, []);
    let fact = |name: &str| facts[name];
    assert_eq!(
        [fact("rows"), fact("rows in the table"), fact("rows in the topic"), fact("dead letters")],
        [9, 9, 9, 1]
    );
    assert_eq!([fact("advances"), fact("claims of a partition"), fact("stored parts")], [4, 2, 3]);
    assert_eq!([fact("aborted records"), fact("aborted dead letters")], [6, 2]);
    assert_eq!(fact("micro-batches that the job told of"), 6);
    assert_eq!(fact("aborted records of stored parts, committed with the same bytes"), 3);
    assert_eq!([fact("outcome triggered"), fact("outcome expired"), fact("outcome dead_letter")], [3, 1, 1]);
}

#[test]
fn rows_that_are_lost_doubled_or_different() {
    let table = "the sink table and the model: ";
    let topic = "the output topic and the model: ";
    let between = "the sink table and the output topic, whole rows: ";
    finds("I1", &format!("{table}1 rows lost, 0 doubled, 0 differing, 0 of no message; lost: {{"), |left| {
        left.table.remove(4);
    });
    finds("I1", &format!("{topic}1 rows lost, 0 doubled, 0 differing, 0 of no message; lost: {{"), |left| {
        left.committed.remove(0);
    });
    // Lost in both: the sinks are equal, and still wrong.
    finds("I1", &format!("{topic}2 rows lost"), |left| {
        left.table.drain(..2);
        left.committed.drain(..2);
    });
    finds("I1", &format!("{table}0 rows lost, 1 doubled, 0 differing, 0 of no message; doubled: {{"), |left| {
        left.table.push(left.table[1].clone());
    });
    finds("I1", &format!("{topic}0 rows lost, 2 doubled"), |left| {
        let row = left.committed[2].value.clone().unwrap();
        left.committed.extend([200, 201].map(|offset| record(0, offset, row.clone())));
    });
    finds("I1", &format!("{table}0 rows lost, 0 doubled, 1 differing, 0 of no message; differing: {{"), |left| {
        left.table[0] = left.table[0].replace("a second dessert", "a third dessert");
    });
    finds("I1", &format!("{topic}0 rows lost, 0 doubled, 0 differing, 1 of no message"), |left| {
        left.committed.push(record(0, 200, campaign(55).trigger(&client(3), MADE)));
    });
    // The time alone: the model does not know it, the other sink does, and so does the ledger.
    finds("I1", &format!("{between}0 rows lost, 0 doubled, 1 differing"), |left| {
        left.table[0] = left.table[0].replace(&MADE.to_string(), &EARLIER.to_string());
    });
    finds("I1", "another time than the stored part", |left| {
        let other = |row: String| row.replace(&MADE.to_string(), &EARLIER.to_string());
        left.table[0] = other(left.table[0].clone());
        left.committed[0] = record(0, 100, other(left.committed[0].text().to_owned()));
    });
    finds("I2", "(0, 3): 2 rows, its outcome is triggered with 3", |left| {
        left.committed.remove(4);
    });
}

#[test]
fn dead_letters_that_are_lost_doubled_or_wrong() {
    finds("I2", "1 dead letters are lost; the first: (0, 1)", |left| left.letters.clear());
    finds("I2", "dead letters are doubled", |left| left.letters.push(left.letters[0].clone()));
    finds("I2", "dead letters of messages that are none", |left| {
        left.letters.push(letter(0, 3, "x", "decode", "$"));
    });
    finds("I2", "dead letters differ from their message", |left| left.letters[0].value = Some(b"{no".to_vec()));
    finds("I2", "another stage or path", |left| left.letters[0] = letter(0, 1, "{no JSON", "encode", "$"));
}

#[test]
fn records_under_the_wrong_key_or_with_headers() {
    let wrong = "1 records of the output topic have another key than their row; the first: ";
    let nine = "9 records of the output topic have another key than their row; the first: ";
    let none = format!("{wrong}None instead of Some({:?}) with {{", client(10));
    finds("I1", &none, |left| left.committed[6].key = None);
    let others = format!("{wrong}Some({:?}) instead of Some({:?}) with {{", client(11), client(10));
    finds("I1", &others, |left| left.committed[6].key = left.committed[7].key.clone());
    finds("I1", wrong, |left| left.committed[6].key = Some(Vec::new()));
    // The right value of another column, and the right keys where the settings name none.
    finds("I1", nine, |left| left.key = Some("restaurant_id".into()));
    finds("I1", nine, |left| left.key = None);
    finds("I6", wrong, |left| left.aborted[4].key = None);
    let headers = "1 records of the output topic have headers; the first: [(\"trace\", Some(";
    finds("I1", headers, |left| left.committed[0].headers = vec![sent_with().remove(0)]);
    finds("I6", headers, |left| left.aborted[0].headers = vec![sent_with().remove(0)]);
}

#[test]
fn numbers_are_keys_by_their_digits_and_without_a_setting_there_is_none() {
    for (key, bytes) in [(None, None), (Some("adv_campaign_datetime_start"), Some(b"1659203516"))] {
        let mut left = good();
        left.key = key.map(Into::into);
        for record in left.committed.iter_mut().chain(&mut left.aborted) {
            record.key = bytes.map(|bytes| bytes.to_vec());
        }
        assert_eq!(look_at(&left).findings, []);
    }
}

#[test]
fn dead_letters_without_their_key_or_headers() {
    finds("I2", "dead letters differ from their message", |left| left.letters[0].key = None);
    finds("I2", "dead letters differ from their message", |left| left.letters[0].key = Some(b"second".to_vec()));
    let stripped = "1 dead letters have not kept the headers of their message; the first: (0, 1)";
    finds("I2", stripped, |left| drop(left.letters[0].headers.remove(0)));
    finds("I2", stripped, |left| left.letters[0].headers.swap(0, 1));
    finds("I2", stripped, |left| left.letters[0].headers[1].1 = Some(Vec::new()));
    finds("I2", stripped, |left| drop(left.letters[0].headers.drain(..sent_with().len())));
    let labelled = "1 dead letters are labelled wrongly; the first: (0, 1)";
    finds("I2", labelled, |left| label(left, "topic").1 = Some(b"triggers".to_vec()));
    finds("I2", labelled, |left| label(left, "timestamp").1 = Some(b"0".to_vec()));
    finds("I2", labelled, |left| label(left, "reason").1 = None);
    finds("I2", labelled, |left| label(left, "sql_hash").0 = "sql_hash".into());
    finds("I2", labelled, |left| left.letters[0].headers.push(sent_with().remove(0)));
    finds("I2", labelled, |left| drop(left.letters[0].headers.pop()));
}

#[test]
fn a_ledger_that_counts_wrongly() {
    finds("I2", "outcomes are not the model's", |left| left.history.parts[0].outcomes = outcomes(&[("expired", 1)]));
    // It counts the expired one as well, which is right, or two of them, which is not.
    finds("I2", "outcomes are not the model's", |left| {
        left.history.parts[1].outcomes = outcomes(&[("expired", 2), ("triggered", 1)]);
    });
    finds("I2", "other rows or letters", |left| left.history.parts[1].rows = 2);
    finds("I2", "other rows or letters", |left| left.history.parts[0].letters = 0);
    finds("I2", "part is missing", |left| drop(left.history.parts.remove(1)));
    finds("I2", "other rows or letters", |left| left.history.parts[1].commit = "z".into());
    finds("I5", "belong to no advance", |left| left.history.parts.push(part(0, 1, 3, "d", 1, 0, &[])));
    finds("I5", "not deleted exactly once", |left| left.history.parts[0].deleted = 0);
}

#[test]
fn a_job_that_tells_something_else() {
    let other = "1 micro-batches have other outcomes by the job's own count";
    // Another reason, and a message less; no part says anything about either.
    finds("I2", other, |left| left.told[5] = told(0, 4, 5, &[("expired", 1)]));
    finds("I2", other, |left| left.told[5].outcomes.clear());
    // Of two attempts the first one counted differently.
    finds("I2", other, |left| left.told[0] = told(0, 0, 2, &[("triggered", 2)]));
    let silent = "1 ranges of offsets have no outcome by the job's own count; the first: partition ";
    finds("I2", &format!("{silent}0: [2, 3)"), |left| drop(left.told.remove(2)));
    finds("I2", &format!("{silent}0: told of up to 4, it ends at 5"), |left| drop(left.told.pop()));
    finds("I2", &format!("{silent}1: told of up to 0, it ends at 1"), |left| drop(left.told.remove(4)));
    finds("I2", &format!("{silent}0: told of up to 6, it ends at 5"), |left| left.told[5].to = 6);
}

#[test]
fn advances_with_gaps_overlaps_or_steps_back() {
    let spoilt = |left: &mut Left, at: usize, row: Row| {
        left.history.changes[at] = Change { at: 1_000, ..changes(&[row]).remove(0) };
    };
    // From 2 straight to 4 is one thing, from 3 to 4 with nothing before is a gap.
    finds("I5", "do not tile", |left| spoilt(left, 5, (0, Some((3, 1)), 4, 4, 1, "b")));
    finds("I5", "do not tile", |left| drop(left.history.changes.remove(5)));
    finds("I5", "partition 0 ends at 5, the ledger at Some(4)", |left| drop(left.history.changes.pop()));
    finds("I5", "reaches beyond the input", |left| {
        spoilt(left, 7, (0, Some((4, 1)), 6, 4, 1, "c"));
        left.history.ends.insert(0, 6);
    });
    finds("I3", "next_offset or an epoch went back", |left| spoilt(left, 7, (0, Some((4, 1)), 3, 4, 1, "c")));
    finds("I3", "next_offset or an epoch went back", |left| spoilt(left, 7, (0, Some((4, 1)), 5, 4, 0, "c")));
    finds("I5", "neither a claim nor an advance", |left| spoilt(left, 7, (0, Some((4, 1)), 5, 4, 2, "c")));
    finds("I5", "neither a claim nor an advance", |left| spoilt(left, 2, (0, Some((0, 0)), 0, 0, 2, "")));
}

#[test]
fn offsets_in_kafka_that_the_ledger_does_not_know() {
    finds("I4", "the ledger never had", |left| left.offsets[3].offset = 3);
    finds("I4", "the ledger never had", |left| left.offsets[3].metadata = metadata(1, "x"));
    finds("I4", "before they were in the ledger", |left| left.offsets[3].at = 1_000);
    finds("I4", "went back", |left| left.offsets.swap(2, 3));
    finds("I4", "end at different offsets", |left| drop(left.offsets.pop()));
}

#[test]
fn aborted_records_with_other_bytes() {
    finds("I6", "no rows of the model", |left| {
        left.aborted.push(record(0, 50, rows(0, MADE)[0].replace("second", "third")));
    });
    // The aborted one is right by itself, and what stands committed is not the same.
    finds("I6", "committed, byte for byte", |left| {
        let row = left.committed.remove(0);
        left.committed.push(record(0, 100, row.text().replace(&MADE.to_string(), &EARLIER.to_string())));
    });
    finds("I6", "no part that Postgres has committed", |left| left.sent_again.push((0, 2, 3)));
}

#[test]
fn aborted_dead_letters_with_other_bytes() {
    let differing = "1 aborted dead letters do not stand committed, byte for byte; the first: ";
    let spoilt = |left: &mut Left, with: Record| left.aborted_letters[1] = Record { offset: 2, ..with };
    finds("I6", differing, |left| left.aborted_letters[0].value = Some(b"{no".to_vec()));
    finds("I6", differing, |left| left.aborted_letters[0].key = None);
    finds("I6", "1 aborted dead letters differ from their message", |left| left.aborted_letters[0].key = None);
    finds("I6", differing, |left| drop(left.aborted_letters[1].headers.pop()));
    // The header says something else than the one that stands committed: only the bytes tell.
    finds("I6", differing, |left| {
        let own = left.aborted_letters[1].headers.iter_mut().find(|(name, _)| name == "dinnerbell.reason");
        own.expect("a reason").1 = Some(b"another reason".to_vec());
    });
    finds("I6", "1 aborted dead letters give another stage or path", |left| {
        spoilt(left, letter(0, 1, "{no JSON", "encode", "$"));
    });
    finds("I6", "1 aborted dead letters of messages that are none", |left| {
        spoilt(left, letter(0, 3, "x", "decode", "$"));
    });
}

#[test]
fn the_log_of_offsets_is_read_as_kafka_writes_it() {
    let text = |text: &str| [&(text.len() as i16).to_be_bytes()[..], text.as_bytes()].concat();
    let key = [&[0, 1][..], &text("group"), &text("topic"), &[0, 0, 0, 7]].concat();
    let third = [&[0, 3][..], &42_i64.to_be_bytes(), &[0xff; 4], &text("job;1;a"), &[0; 8]].concat();
    let fourth = [&[0, 4][..], &42_i64.to_be_bytes(), &[0xff; 4], &[8], b"job;1;a", &[0; 9]].concat();
    for value in [third, fourth] {
        let found = decode_group_offset("group", "topic", &key, Some(&value));
        assert_eq!(found, Some((7, 42, "job;1;a".into())));
    }
    assert_eq!(decode_group_offset("other", "topic", &key, None), None);
    // The group's own record, not an offset.
    assert_eq!(decode_group_offset("group", "topic", &[&[0, 2][..], &text("group")].concat(), None), None);
}
