use std::collections::BTreeMap;

use uuid::Uuid;

use super::*;
use crate::ledger::decide::KafkaOffset;
use crate::ledger::repairs::Row;
use crate::ledger::store::{PartHead, Progress};

const JOB: &str = "0a0a0a0a-0000-4000-8000-000000000001";
const OTHER: &str = "0b0b0b0b-0000-4000-8000-000000000002";

fn metadata(job: &str) -> String {
    format!("{job};3;0c0c0c0c-0000-4000-8000-000000000003")
}

fn offset(offset: i64, metadata: String) -> KafkaOffset {
    KafkaOffset { offset, metadata }
}

fn row(topic_id: &str, partition: i32, next_offset: i64) -> Row {
    let progress = Progress { next_offset, last_output_to: next_offset, epoch: 3, metadata: metadata(JOB) };
    Row { topic_id: topic_id.into(), partition, progress, commit: None }
}

/// Two partitions, ledger and Kafka at 50 in both.
fn sound() -> Picture {
    Picture {
        group: "g".into(),
        topic: "campaigns".into(),
        start: Start::Earliest,
        books: Books::Whole,
        job: JOB.into(),
        source: Some(("now".into(), 2)),
        missing_topics: Vec::new(),
        rows: vec![row("now", 0, 50), row("now", 1, 50)],
        parts: Vec::new(),
        old_parts: Vec::new(),
        offsets: [0, 1].map(|partition| (partition, offset(50, metadata(JOB)))).into(),
        marks: [0, 1].map(|partition| (partition, (0, 100))).into(),
        unreadable: Vec::new(),
        members: Vec::new(),
    }
}

/// Where something is wrong, and the repair for it.
fn wrong(picture: &Picture) -> Vec<(String, Option<Verb>)> {
    findings(picture).0.into_iter().map(|finding| (finding.place, finding.verb)).collect()
}

fn one(place: &str, verb: Verb) -> Vec<(String, Option<Verb>)> {
    vec![(place.into(), Some(verb))]
}

#[test]
fn nothing_is_wrong_with_a_job_that_works_or_has_never_run() {
    let (none, fine) = findings(&sound());
    assert_eq!((none, fine.len()), (vec![], 2));
    let never = Picture { books: Books::None, rows: Vec::new(), offsets: BTreeMap::new(), ..sound() };
    assert_eq!(wrong(&never), []);
    // A partition that was added to the topic.
    let added = Picture { source: Some(("now".into(), 3)), ..sound() };
    assert_eq!(wrong(&added), []);
}

#[test]
fn a_ledger_that_lost_everything_is_adopted_from_whoever_wrote_the_offsets() {
    for (books, job, writer) in [
        (Books::None, "", OTHER),
        (Books::Whole, JOB, OTHER),
        (Books::Whole, JOB, JOB),
        (Books::WithoutIdentity, "", JOB),
    ] {
        let offsets = [(0, offset(50, metadata(writer)))].into();
        let lost = Picture { books, job: job.into(), rows: Vec::new(), offsets, ..sound() };
        assert_eq!(wrong(&lost), one("ledger", Verb::Adopt), "{books:?} {job} {writer}");
    }
    let foreign = Picture { rows: Vec::new(), offsets: [(0, offset(50, String::new()))].into(), ..sound() };
    assert_eq!(wrong(&foreign), [("group g".to_owned(), None)]);
    assert_eq!(wrong(&Picture { start: Start::Committed, ..foreign }), []);
}

#[test]
fn a_missing_row_is_deleted_or_new_by_its_number_and_its_offset() {
    let first = Picture { rows: vec![row("now", 1, 50)], ..sound() };
    assert_eq!(wrong(&first), one("campaigns[0]", Verb::Adopt));
    let first = Picture { offsets: [(1, offset(50, metadata(JOB)))].into(), ..first };
    assert_eq!(wrong(&first), one("campaigns[0]", Verb::Adopt), "partitions are added at the end");
    let last = Picture { rows: vec![row("now", 0, 50)], ..sound() };
    assert_eq!(wrong(&last), one("campaigns[1]", Verb::Adopt));
    // In a restored database its rows are missing as well.
    let restored = Picture { rows: vec![row("now", 0, 40)], ..sound() };
    let both = [one("campaigns[0]", Verb::RebuildTable), one("campaigns[1]", Verb::RebuildTable)].concat();
    assert_eq!(wrong(&restored), both);
}

#[test]
fn a_topic_made_anew_comes_before_all_partitions() {
    let anew = Picture { rows: vec![row("old", 0, 50)], offsets: BTreeMap::new(), ..sound() };
    assert_eq!(wrong(&anew), one("topic campaigns", Verb::NewTopic));
    let gone = Picture { source: None, missing_topics: vec!["campaigns".into()], ..sound() };
    assert_eq!(wrong(&gone), [("topic campaigns".to_owned(), None)]);
}

#[test]
fn an_unreadable_batch_matters_only_where_it_is_needed() {
    let part = PartHead { commit_id: Uuid::nil(), ..PartHead::example(40, 50, &metadata(JOB)) };
    let with = |kafka: KafkaOffset| Picture {
        parts: vec![part.clone()],
        unreadable: vec![(part.clone(), "damaged".into())],
        offsets: [(0, kafka), (1, offset(50, metadata(JOB)))].into(),
        ..sound()
    };
    assert_eq!(wrong(&with(offset(50, metadata(JOB)))), [], "confirmed");
    assert_eq!(wrong(&with(offset(40, metadata(JOB)))), one("campaigns[0]", Verb::ResendFromTable));
    assert_eq!(wrong(&with(offset(40, String::new()))), one("campaigns[0]", Verb::ResendFromTable));
    let readable = Picture { unreadable: Vec::new(), ..with(offset(40, String::new())) };
    assert_eq!(wrong(&readable), one("campaigns[0]", Verb::Offsets));
    // Retention costs messages, never the stored batch.
    let mut passed = with(offset(40, metadata(JOB)));
    passed.marks.insert(0, (60, 100));
    assert_eq!(wrong(&passed), one("campaigns[0]", Verb::ResendFromTable));
    let mut beyond = with(offset(40, metadata(JOB)));
    beyond.marks.insert(0, (0, 45));
    assert_eq!(wrong(&beyond), one("campaigns[0]", Verb::ResendFromTable));
    passed.unreadable.clear();
    assert_eq!(wrong(&passed), one("campaigns[0]", Verb::AcceptLostMessages));
}
