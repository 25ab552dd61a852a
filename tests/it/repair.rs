//! What the ledger cannot explain, made to happen: the job halts and says what it is, `dinnerbell repair` tells what it
//! would do and changes nothing, with `--execute` it does it, and the job goes on with nothing lost and nothing doubled
//! (or exactly what was given up). Crashes need `--features failpoints`, as `make test` has it.

mod batches;
mod ledger;
mod offsets;
mod topics;

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::bindings as ffi;
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::support::{
    Campaign, Job, Kafka, KafkaOptions, Load, Message, PATIENCE, Postgres, Stack, block_on, restaurant, stop,
    wait_until,
};

const LOAD: Load = Load { restaurants: 5, subscribers: 20 };

fn stack(name: &str) -> Stack {
    prepared(Stack::new(&format!("repair_{name}")))
}

fn prepared(mut stack: Stack) -> Stack {
    stack.set("batch", "max_messages", 5);
    // The least that the broker takes: a repair waits until a member that was killed has gone.
    stack.set("source.kafka", "session.timeout.ms", "6000");
    LOAD.subscribe(&stack);
    stack
}

/// Campaigns of [`LOAD`], one after the other into partitions 0, 1 and 2.
fn produce(stack: &Stack, campaigns: std::ops::Range<usize>) {
    produce_to(stack, campaigns, |n| n as i32 % 3);
}

fn produce_to(stack: &Stack, campaigns: std::ops::Range<usize>, partition: impl Fn(usize) -> i32) {
    let campaign = |n: usize| Campaign::new(n, restaurant(n % LOAD.restaurants)).json();
    stack.produce(campaigns.map(|n| Message::of(campaign(n)).partition(partition(n))));
}

/// Runs until both sinks hold all rows of so many campaigns, and stops.
#[track_caller]
fn delivers(stack: &Stack, campaigns: usize) {
    let rows = campaigns * LOAD.subscribers;
    let mut job = Job::spawn(stack, &["run"]);
    wait_until("all rows", PATIENCE, || {
        assert!(job.is_running(), "the job has ended: {}", job.stderr());
        LOAD.is_in_postgres(stack, campaigns) && stack.read_triggers().len() >= rows
    });
    stop(job);
}

/// As [`delivers`]; then each trigger is there once, in both sinks, and nothing is stored any more.
#[track_caller]
fn recovers(stack: &Stack, campaigns: usize) {
    delivers(stack, campaigns);
    LOAD.verify(stack, campaigns);
    let clean = "SELECT (SELECT count(*) FROM dinnerbell.parts) + (SELECT count(*) FROM dinnerbell.chunks)";
    assert_eq!(stack.number(clean), 0, "stored parts are left");
}

/// Runs until the process dies right after a Postgres commit: a stored part waits for its Kafka commit.
#[track_caller]
fn dies_between_the_commits(stack: &Stack, after: u32) {
    dies_at(stack, "S7", after);
}

/// Runs until the process dies at this step of a commit.
#[track_caller]
fn dies_at(stack: &Stack, step: &str, after: u32) {
    let points = format!("{step}={after}*off->return");
    let mut job = Job::spawn_with(stack, &["run"], &[("FAILPOINTS", &points)]);
    let status = job.wait(PATIENCE);
    assert_eq!(status.signal(), Some(libc::SIGKILL), "{}", job.stderr());
    assert!(stack.number("SELECT count(*) FROM dinnerbell.parts") > 0, "nothing was stored");
}

/// The transactional ids of the job that died: with the ledger's rows nobody knows them any more.
fn transactional_ids(stack: &Stack) -> Vec<String> {
    let rows = stack.rows("SELECT DISTINCT unnest(transactional_ids) FROM dinnerbell.progress");
    rows.into_iter().map(|mut row| row.remove(0).expect("not null")).collect()
}

/// Ends open transactions as the broker does after transaction.timeout.ms, 15 minutes, for which no test waits.
fn time_out(stack: &Stack, transactional_ids: &[String]) {
    use rdkafka::producer::{BaseProducer, Producer};
    assert!(!transactional_ids.is_empty());
    for id in transactional_ids {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &stack.bootstrap).set("transactional.id", id);
        let producer: BaseProducer = config.create().expect("the settings are valid");
        producer.init_transactions(PATIENCE).expect("the broker answers");
    }
}

/// Names and ids as they are in no other run, out of a text.
fn plain(stack: &Stack, text: &str) -> String {
    let mut text = text.to_owned();
    for (name, short) in [
        (&stack.campaigns, "campaigns"),
        (&stack.triggers, "triggers"),
        (&stack.dead_letters, "letters"),
        (&stack.group, "GROUP"),
    ] {
        text = text.replace(name.as_str(), short);
    }
    let mut at = 0;
    while let Some(id) = text.get(at..at + 36) {
        if uuid::Uuid::try_parse(id).is_ok() && id.contains('-') {
            text.replace_range(at..at + 36, "ID");
        }
        at += text[at..].chars().next().map_or(1, char::len_utf8);
    }
    text
}

/// Runs the job, which must end by itself with exit code 1; what it found, and what to do.
#[track_caller]
fn halts(stack: &Stack) -> (String, String) {
    let mut job = Job::spawn(stack, &["run"]);
    halted(stack, &mut job)
}

#[track_caller]
fn halted(stack: &Stack, job: &mut Job) -> (String, String) {
    let code = job.wait(PATIENCE).code();
    assert_eq!(code, Some(1), "{}", job.stderr());
    let told = job.stderr();
    let last = told.lines().last().expect("a last word");
    let line: serde_json::Value = serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: {told}"));
    assert_eq!(line["level"], "ERROR", "{told}");
    let text = |key: &str| plain(stack, line[key].as_str().unwrap_or_default());
    (text("message"), text("what_to_do"))
}

/// The job halts with these words, and names the repair.
#[track_caller]
fn assert_halts(stack: &Stack, words: &[&str], flag: &str) {
    let (what, remedy) = halts(stack);
    for words in words {
        assert!(what.contains(words), "{what}\nshould say: {words}");
    }
    assert!(remedy.contains(&format!("`dinnerbell repair {flag} --execute`")), "{remedy}");
}

/// Exit code and standard output.
fn repair(stack: &Stack, args: &[&str]) -> (i32, String) {
    let output = Job::output(stack, &[&["repair"], args].concat());
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().expect("no signal"), plain(stack, &text))
}

/// What a repair may change: the ledger, the group's offsets, both sinks.
fn everything(stack: &Stack) -> Vec<String> {
    let schema = "SELECT count(*) FROM information_schema.tables WHERE table_schema = 'dinnerbell'";
    let mut all = vec![stack.number(schema).to_string(), format!("{:?}", offsets(stack))];
    if stack.number(schema) > 0 {
        for table in ["ledger", "progress", "parts", "chunks"] {
            let sql = format!("SELECT coalesce(json_agg(t ORDER BY t::text), '[]')::text FROM dinnerbell.{table} t");
            all.push(stack.psql(&sql));
        }
    }
    all.push(stack.psql("SELECT coalesce(json_agg(t ORDER BY id), '[]')::text FROM subscribers_feedback t"));
    all.push(stack.read_triggers().len().to_string());
    all.push(stack.read_dead_letters().len().to_string());
    all
}

/// The same but for what says who is at work: epochs, transactional ids, and the table of repairs.
fn substance(stack: &Stack) -> Vec<String> {
    let progress = "SELECT coalesce(json_agg(p ORDER BY p::text), '[]')::text FROM \
                    (SELECT to_jsonb(t) - 'epoch' - 'transactional_ids' AS p FROM dinnerbell.progress t) t";
    let mut all = everything(stack);
    all.remove(0);
    if all.len() == 8 {
        all[2] = stack.psql(progress);
    }
    all
}

/// The dry run says what it would do and names the next command, and changes nothing; then that command does it.
#[track_caller]
fn repairs(stack: &Stack, flag: &str, says: &[&str]) -> String {
    let before = everything(stack);
    let (code, text) = repair(stack, &[]);
    assert_eq!(code, 1, "{text}");
    for words in says {
        assert!(text.contains(words), "{text}\nshould say: {words}");
    }
    assert!(text.contains("WRONG") && text.contains("nothing was changed"), "{text}");
    let next = text.lines().find(|line| line.starts_with("next")).unwrap_or_else(|| panic!("no next command: {text}"));
    assert!(next.contains("dinnerbell repair --config") && next.contains(&format!("{flag} --execute")), "{next}");
    assert_eq!(everything(stack), before, "a dry run has changed something");
    let (code, text) = repair(stack, &[flag, "--execute"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("done"), "{text}");
    let (code, fine) = repair(stack, &[]);
    assert_eq!(code, 0, "{fine}");
    text
}

/// The group's committed offsets by partition.
fn offsets(stack: &Stack) -> BTreeMap<i32, (i64, String)> {
    let consumer = group_consumer(stack);
    let mut asked = TopicPartitionList::new();
    let found = consumer.fetch_metadata(Some(&stack.campaigns), PATIENCE).expect("the broker answers");
    let partitions = found.topics()[0].partitions().len() as i32;
    for partition in 0..partitions {
        asked.add_partition(&stack.campaigns, partition);
    }
    let mut found = None;
    wait_until("the group's offsets", PATIENCE, || {
        found = consumer.committed_offsets(asked.clone(), Duration::from_secs(10)).ok();
        found.is_some()
    });
    let elements = found.expect("it was waited for");
    let offset = |offset| if let Offset::Offset(offset) = offset { Some(offset) } else { None };
    let elements = elements.elements();
    let entries = elements
        .iter()
        .filter_map(|element| Some((element.partition(), (offset(element.offset())?, element.metadata().to_owned()))));
    entries.collect()
}

fn group_consumer(stack: &Stack) -> BaseConsumer {
    ClientConfig::new()
        .set("bootstrap.servers", &stack.bootstrap)
        .set("group.id", &stack.group)
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .create()
        .expect("the settings are valid")
}

/// Sets the group's offset as an operator's tool does, with `metadata` beside it; once the group has no member.
fn set_offset(stack: &Stack, partition: i32, offset: i64, metadata: &str) {
    let consumer = group_consumer(stack);
    let mut offsets = TopicPartitionList::new();
    {
        let mut element = offsets.add_partition(&stack.campaigns, partition);
        element.set_offset(Offset::Offset(offset)).expect("a valid offset");
        element.set_metadata(metadata);
    }
    wait_until("the group is empty and takes offsets", PATIENCE, || {
        consumer.commit(&offsets, CommitMode::Sync).is_ok()
    });
}

fn admin(stack: &Stack) -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", &stack.bootstrap).create().expect("the settings are valid")
}

/// Deletes the group once it has no member.
fn delete_group(stack: &Stack) {
    wait_until("the group is empty and goes", PATIENCE, || {
        let (admin, group) = (admin(stack), stack.group.clone());
        let deleted = block_on(async move { admin.delete_groups(&[&group], &AdminOptions::new()).await });
        deleted.is_ok_and(|answers| answers.iter().all(Result::is_ok))
    });
    assert_eq!(offsets(stack), BTreeMap::new());
}

fn delete_topic(stack: &Stack, topic: &str) {
    let (admin, name) = (admin(stack), topic.to_owned());
    block_on(async move {
        let answers = admin.delete_topics(&[&name], &AdminOptions::new()).await.expect("the broker answers");
        answers.into_iter().next().expect("one answer").unwrap_or_else(|error| panic!("{error:?}"));
    });
    let consumer = group_consumer(stack);
    wait_until("the topic is gone", PATIENCE, || {
        let found = consumer.fetch_metadata(Some(topic), PATIENCE).expect("the broker answers");
        found.topics()[0].partitions().is_empty()
    });
}

/// Kafka's DeleteRecords: what retention does, at once.
fn delete_records(stack: &Stack, partition: i32, before: i64) {
    delete_records_of(stack, &stack.campaigns, partition, before);
}

fn delete_records_of(stack: &Stack, topic: &str, partition: i32, before: i64) {
    let consumer = group_consumer(stack);
    let mut offsets = TopicPartitionList::new();
    offsets.add_partition_offset(topic, partition, Offset::Offset(before)).expect("a valid offset");
    let native = consumer.client().native_ptr();
    // SAFETY: all pointers come from librdkafka and are destroyed once, after their last use.
    unsafe {
        let queue = ffi::rd_kafka_queue_new(native);
        let mut request = ffi::rd_kafka_DeleteRecords_new(offsets.ptr());
        ffi::rd_kafka_DeleteRecords(native, &mut request, 1, std::ptr::null(), queue);
        let event = ffi::rd_kafka_queue_poll(queue, 30_000);
        assert!(!event.is_null(), "no answer");
        let error: rdkafka::error::RDKafkaErrorCode = ffi::rd_kafka_event_error(event).into();
        assert_eq!(error, rdkafka::error::RDKafkaErrorCode::NoError);
        ffi::rd_kafka_event_destroy(event);
        ffi::rd_kafka_DeleteRecords_destroy(request);
        ffi::rd_kafka_queue_destroy(queue);
    }
    let marks = consumer.fetch_watermarks(topic, partition, PATIENCE).expect("the broker answers");
    assert_eq!(marks.0, before);
}

/// Takes all records but each partition's last one out of the output topic; how many went.
fn keep_last_triggers(stack: &Stack) -> usize {
    let records = stack.read_triggers();
    let of = |partition| records.iter().filter(move |record| record.partition == partition).map(|record| record.offset);
    let mut gone = 0;
    for partition in 0..3 {
        if let Some(last) = of(partition).max() {
            delete_records_of(stack, &stack.triggers, partition, last);
            gone += of(partition).count() - 1;
        }
    }
    gone
}

/// These are refused with these words, and nothing is changed.
#[track_caller]
fn refuses(stack: &Stack, args: &[&[&str]], words: &[&str]) {
    let before = everything(stack);
    for args in args {
        let (code, text) = repair(stack, args);
        assert_eq!(code, 1, "{text}");
        for words in words {
            assert!(text.contains(words), "{text}\nshould say: {words}");
        }
        assert_eq!(everything(stack), before, "{args:?} has changed something");
    }
}

/// One number of the ledger's progress.
fn next_offset(stack: &Stack, partition: i32) -> i64 {
    stack.number(&format!("SELECT next_offset FROM dinnerbell.progress WHERE partition = {partition}"))
}
