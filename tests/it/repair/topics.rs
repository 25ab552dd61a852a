//! A topic has lost messages, was made anew, or is gone.

use super::*;
use crate::support::{create_topic, rows_of_table};

fn campaigns_in_table(stack: &Stack) -> Vec<String> {
    let rows = rows_of_table(stack);
    let ids: std::collections::BTreeSet<String> =
        rows.iter().map(|row| row["adv_campaign_id"].as_str().unwrap().to_owned()).collect();
    ids.into_iter().collect()
}

fn ids(campaigns: impl IntoIterator<Item = usize>) -> Vec<String> {
    campaigns.into_iter().map(|n| Campaign::new(n, "").adv_campaign_id).collect()
}

#[test]
fn retention_that_has_passed_the_job_is_accepted_and_nothing_more_is_lost() {
    let stack = stack("retention");
    produce_to(&stack, 0..10, |_| 0);
    delivers(&stack, 10);
    produce_to(&stack, 10..20, |_| 0);
    delete_records(&stack, 0, 14);
    assert_halts(
        &stack,
        &[
            "campaigns[0]: Kafka's retention has passed the job: messages are gone that it had not read. Found: Kafka offset 10",
            "the topic holds [14, 20)",
        ],
        "--accept-lost-messages",
    );
    repairs(&stack, "--accept-lost-messages", &["campaigns[0]: gives up 4 offsets, [10, 14): next_offset becomes 14"]);
    delivers(&stack, 16);
    assert_eq!(campaigns_in_table(&stack), ids((0..10).chain(14..20)));
    assert_eq!(stack.read_triggers().len(), 16 * LOAD.subscribers);
}

#[test]
fn retention_beside_a_stored_batch_loses_the_messages_and_not_the_batch() {
    let stack = stack("retention_stored");
    produce_to(&stack, 0..20, |_| 0);
    dies_between_the_commits(&stack, 0);
    let next = next_offset(&stack, 0);
    assert_eq!(next, 5);
    delete_records(&stack, 0, 12);
    assert_halts(&stack, &["Kafka's retention has passed the job", "stored batches: [0, 5)"], "--accept-lost-messages");
    repairs(
        &stack,
        "--accept-lost-messages",
        &["the stored batch of 100 rows is sent first", "gives up 7 offsets, [5, 12)"],
    );
    delivers(&stack, 13);
    assert_eq!(campaigns_in_table(&stack), ids((0..5).chain(12..20)));
    assert_eq!(stack.read_triggers().len(), 13 * LOAD.subscribers);
}

#[test]
fn an_input_topic_made_anew_while_the_job_was_stopped() {
    let stack = stack("anew");
    produce_to(&stack, 0..10, |_| 0);
    dies_between_the_commits(&stack, 1);
    assert_eq!(next_offset(&stack, 0), 10);
    delete_topic(&stack, &stack.campaigns);
    let (what, remedy) = halts(&stack);
    assert!(
        what.contains("topic campaigns does not exist in Kafka") && remedy.contains("dinnerbell init"),
        "{what} {remedy}"
    );
    let (code, text) = repair(&stack, &[]);
    assert!(code == 1 && text.contains("`dinnerbell init` creates it"), "{text}");
    Job::run(&stack, &["init"]);
    produce_to(&stack, 10..20, |_| 0);
    assert_halts(
        &stack,
        &["topic campaigns was deleted and made anew: the ledger knows the one with id "],
        "--new-topic",
    );
    repairs(
        &stack,
        "--new-topic",
        &[
            "1 stored batches of the old one, with 100 rows",
            "none of its 100 rows and 0 dead letters are in the topics: it is sent",
            "campaigns[0]: begins at 0",
        ],
    );
    recovers(&stack, 20);
    let kept = "SELECT (jsonb_array_length(kept->'progress') || ' ' || jsonb_array_length(kept->'parts')) FROM dinnerbell.repairs";
    assert_eq!(stack.psql(kept).trim(), "3 1");
}

#[test]
fn an_input_topic_made_anew_while_the_job_runs() {
    let stack = stack("anew_running");
    produce(&stack, 0..15);
    let mut job = Job::spawn(&stack, &["run"]);
    wait_until("rows", PATIENCE, || LOAD.is_in_postgres(&stack, 15) && stack.read_triggers().len() >= 300);
    delete_topic(&stack, &stack.campaigns);
    create_topic(&stack.bootstrap, &stack.campaigns, 3, &[]);
    let (what, remedy) = halted(&stack, &mut job);
    assert!(what.contains("topic campaigns was deleted and made anew"), "{what}");
    assert!(remedy.contains("`dinnerbell repair --new-topic --execute`"), "{remedy}");
    produce(&stack, 15..30);
    repairs(&stack, "--new-topic", &["campaigns[2]: begins at 0"]);
    recovers(&stack, 30);
}

#[test]
fn topics_that_go_while_the_job_runs() {
    for (name, topic) in [("gone_in", 0), ("gone_out", 1), ("gone_letters", 2)] {
        let stack = stack(name);
        let topic = [&stack.campaigns, &stack.triggers, &stack.dead_letters][topic].clone();
        produce(&stack, 0..6);
        let mut job = Job::spawn(&stack, &["run"]);
        wait_until("rows", PATIENCE, || job.is_ready() && LOAD.is_in_postgres(&stack, 6));
        delete_topic(&stack, &topic);
        let (what, remedy) = halted(&stack, &mut job);
        assert!(what.contains("does not exist in Kafka"), "{name}: {what}");
        assert!(remedy.contains("`dinnerbell init` does"), "{name}: {remedy}");
    }
}

/// A producer would wait minutes for a topic that does not come back.
#[test]
fn an_output_topic_that_goes_under_load_is_told_and_made_anew() {
    let stack = stack("gone_load");
    produce(&stack, 0..15);
    delivers(&stack, 15);
    let before = stack.read_triggers().len();
    let mut job = Job::spawn(&stack, &["run"]);
    wait_until("ready", PATIENCE, || job.is_ready());
    delete_topic(&stack, &stack.triggers);
    produce(&stack, 15..30);
    let (what, _) = halted(&stack, &mut job);
    assert!(what.contains("topic triggers does not exist in Kafka"), "{what}");
    Job::run(&stack, &["init"]);
    let job = Job::spawn(&stack, &["run"]);
    let rows = 15 * LOAD.subscribers;
    wait_until("the rest", PATIENCE, || stack.read_triggers().len() >= rows);
    stop(job);
    // What the deleted topic held is gone with it; each of the others is there once.
    assert_eq!((before, stack.read_triggers().len()), (rows, rows));
    assert_eq!(stack.number("SELECT count(*) FROM subscribers_feedback"), 2 * rows as i64);
}

#[test]
fn a_sink_s_topic_made_anew_while_the_job_runs() {
    for (name, topic, gone) in [("anew_out", "triggers", 15), ("anew_letters", "letters", 0)] {
        let stack = stack(name);
        let made_anew = if topic == "triggers" { &stack.triggers } else { &stack.dead_letters };
        produce(&stack, 0..15);
        let mut job = Job::spawn_with(&stack, &["run"], &[("RUST_LOG", "info,dinnerbell::job::watch=debug")]);
        LOAD.arrives(&stack, 15);
        wait_until("the job knows the topic", PATIENCE, || job.stderr().contains("looked at the topics"));
        delete_topic(&stack, made_anew);
        create_topic(&stack.bootstrap, made_anew, 3, &[]);
        let (what, remedy) = halted(&stack, &mut job);
        assert!(what.contains(&format!("topic {topic} was deleted and made anew while the job ran")), "{what}");
        assert!(remedy.contains("`dinnerbell run` goes on with the new topic"), "{remedy}");
        produce(&stack, 15..30);
        let rows = (30 - gone) * LOAD.subscribers;
        let job = Job::spawn(&stack, &["run"]);
        wait_until("the rest", PATIENCE, || stack.read_triggers().len() >= rows);
        stop(job);
        assert_eq!(stack.read_triggers().len(), rows);
        assert_eq!(stack.number("SELECT count(*) FROM subscribers_feedback"), 30 * LOAD.subscribers as i64);
    }
}

/// Kafka's own default makes every topic that a producer asks for.
#[test]
fn an_output_topic_that_goes_does_not_come_back_by_itself() {
    let properties = vec!["auto.create.topics.enable=true".to_owned()];
    let kafka = Kafka::start(KafkaOptions { properties, ..KafkaOptions::default() });
    let postgres = Postgres::start(Default::default());
    let stack = prepared(Stack::private("repair_back", &kafka, &postgres));
    produce(&stack, 0..15);
    delivers(&stack, 15);
    let mut job = Job::spawn(&stack, &["run"]);
    wait_until("ready", PATIENCE, || job.is_ready());
    delete_topic(&stack, &stack.triggers);
    // The next claim opens its producers for the topic that is gone.
    stack.kill_sessions();
    produce(&stack, 15..30);
    let (what, _) = halted(&stack, &mut job);
    assert!(what.contains("topic triggers does not exist in Kafka"), "{what}");
}

#[test]
fn a_stored_batch_that_waits_for_a_topic_that_is_gone() {
    let mut stack = stack("gone_stored");
    produce_to(&stack, 0..10, |_| 0);
    dies_between_the_commits(&stack, 0);
    let old = stack.triggers.clone();
    delete_topic(&stack, &old);
    // The job is to write elsewhere from now on; the stored batch is still for the old topic.
    let new = format!("{old}.new");
    create_topic(&stack.bootstrap, &new, 3, &[]);
    stack.set("sink.kafka", "topic", new);
    let (what, remedy) = halts(&stack);
    assert!(what.contains("a stored batch waits for its topic: topic triggers does not exist in Kafka"), "{what}");
    assert!(remedy.contains("create triggers again"), "{remedy}");
    create_topic(&stack.bootstrap, &old, 3, &[]);
    stack.set("sink.kafka", "topic", old);
    recovers(&stack, 10);
}

#[test]
fn a_ledger_beyond_the_topic_s_end() {
    let stack = stack("beyond");
    produce_to(&stack, 0..10, |_| 0);
    delivers(&stack, 10);
    // As after an unclean election: Kafka has fewer records than it had acknowledged.
    let metadata = offsets(&stack)[&0].1.clone();
    stack.execute("UPDATE dinnerbell.progress SET next_offset = 17, last_output_to = 17 WHERE partition = 0");
    set_offset(&stack, 0, 17, &metadata);
    assert_halts(
        &stack,
        &[
            "campaigns[0]: the ledger stands beyond the topic's end: Kafka has lost records that it had acknowledged. Found: Kafka offset 17",
            "the topic holds [0, 10)",
        ],
        "--accept-lost-messages",
    );
    repairs(&stack, "--accept-lost-messages", &["campaigns[0]: next_offset 17 becomes 10, the topic's end"]);
    produce_to(&stack, 10..20, |_| 0);
    recovers(&stack, 20);
}

#[test]
fn a_ledger_beyond_the_topic_s_end_beside_a_stored_batch_that_cannot_be_read() {
    let stack = stack("beyond_unread");
    produce_to(&stack, 0..10, |_| 0);
    dies_between_the_commits(&stack, 1);
    stack.execute(
        "UPDATE dinnerbell.progress SET next_offset = 17, last_output_to = 17 WHERE partition = 0; \
         UPDATE dinnerbell.parts SET to_offset = 17, format = 99 WHERE from_offset = 5",
    );
    let (code, text) = repair(&stack, &[]);
    assert!(code == 1 && text.contains("the ledger stands beyond the topic's end"), "{text}");
    let (code, text) = repair(&stack, &["--resend-from-table", "--execute"]);
    assert!(code == 1 && text.contains("100 rows are in"), "{text}");
    assert!(text.lines().any(|line| line.starts_with("next") && line.contains("--accept-lost-messages")), "{text}");
    assert_eq!(stack.read_triggers().len(), 200);
    repairs(&stack, "--accept-lost-messages", &["campaigns[0]: next_offset 17 becomes 10, the topic's end"]);
    produce_to(&stack, 10..20, |_| 0);
    recovers(&stack, 20);
}
