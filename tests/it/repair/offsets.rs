//! The group's offsets are not what the job left there.

use super::*;

const OTHER: &str = "0b0b0b0b-0000-4000-8000-000000000001;3;0b0b0b0b-0000-4000-8000-000000000002";

#[test]
fn an_offset_set_by_an_operator_is_put_back() {
    let stack = stack("reset");
    produce(&stack, 0..30);
    delivers(&stack, 30);
    let next = next_offset(&stack, 1);
    assert_eq!(next, 10);
    let ours = offsets(&stack)[&1].1.clone();
    for (offset, metadata, words) in [
        (
            4,
            "",
            "the group's offset was not committed by this job: somebody has reset it. Found: Kafka offset 4 (\"\"); ledger next_offset 10",
        ),
        (
            10,
            "",
            "the group's offset was not committed by this job: somebody has reset it. Found: Kafka offset 10 (\"\"); ledger next_offset 10",
        ),
        (
            2,
            OTHER,
            "the group's offset was committed by another job, whose ledger is ID: two jobs share the group. Found: Kafka offset 2",
        ),
    ] {
        set_offset(&stack, 1, offset, metadata);
        assert_halts(&stack, &[&format!("campaigns[1]: {words}")], "--offsets");
        let told = repairs(
            &stack,
            "--offsets",
            &[
                "no stored batch waits",
                &format!("campaigns[1]: Kafka's offset {offset} becomes 10"),
                "--offsets --execute",
            ],
        );
        assert!(told.contains("becomes 10"), "{told}");
        assert_eq!(offsets(&stack)[&1], (10, ours.clone()));
    }
    // To a later one: no sign of a restored database, the metadata is gone.
    produce(&stack, 30..60);
    set_offset(&stack, 1, 15, "");
    assert_halts(&stack, &["campaigns[1]: the group's offset was not committed by this job"], "--offsets");
    repairs(&stack, "--offsets", &["campaigns[1]: Kafka's offset 15 becomes 10"]);
    recovers(&stack, 60);
    let kept = "SELECT string_agg(verb || ' ' || (kept->'facts'->'kafka_offsets'->1->>'offset'), ',' ORDER BY id) FROM dinnerbell.repairs";
    assert_eq!(stack.psql(kept).trim(), "--offsets 4,--offsets 10,--offsets 2,--offsets 15");
}

#[test]
fn a_group_that_was_deleted_with_nothing_stored_goes_on_by_itself() {
    let stack = stack("no_group");
    produce(&stack, 0..15);
    delivers(&stack, 15);
    delete_group(&stack);
    produce(&stack, 15..30);
    recovers(&stack, 30);
}

/// The one case where only the output topic knows: was the stored batch's Kafka transaction committed or not?
#[test]
fn a_stored_batch_without_an_offset_is_looked_for_in_the_output_topic() {
    let stack = stack("no_offset");
    produce(&stack, 0..30);
    // Not sent: the process died between the commits.
    dies_between_the_commits(&stack, 2);
    delete_group(&stack);
    let waiting = stack.number("SELECT sum(rows)::int8 FROM dinnerbell.parts p WHERE to_offset = (SELECT next_offset FROM dinnerbell.progress g WHERE g.partition = p.partition)");
    assert!(waiting > 0);
    assert_halts(
        &stack,
        &[
            "the group's offset is gone (expired, or the group was deleted), and a stored batch waits for its Kafka commit. Found: no Kafka offset",
        ],
        "--offsets",
    );
    let before = stack.read_triggers().len();
    let told = repairs(&stack, "--offsets", &["are in the topics: it is sent"]);
    let sent = stack.read_triggers().len() - before;
    assert!(sent > 0, "{told}");
    recovers(&stack, 30);

    // Sent: the process died after the Kafka commit, with the stored part still there.
    produce(&stack, 30..60);
    let mut job = Job::spawn_with(&stack, &["run"], &[("FAILPOINTS", "S10=2*off->return")]);
    assert_eq!(job.wait(PATIENCE).signal(), Some(libc::SIGKILL), "{}", job.stderr());
    delete_group(&stack);
    assert_halts(&stack, &["a stored batch waits for its Kafka commit"], "--offsets");
    let before = stack.read_triggers().len();
    repairs(&stack, "--offsets", &["are in the topics: it is not sent again"]);
    assert_eq!(stack.read_triggers().len(), before, "it was sent twice");
    recovers(&stack, 60);
}

/// As above, by the broker's own clock: nobody has deleted anything.
#[test]
fn offsets_that_have_expired_beside_a_stored_batch() {
    // A minute is the least that the broker takes.
    let properties = ["offsets.retention.minutes=1", "offsets.retention.check.interval.ms=1000"].map(str::to_owned);
    let kafka = Kafka::start(KafkaOptions { properties: properties.into(), ..KafkaOptions::default() });
    let postgres = Postgres::start(Default::default());
    let stack = prepared(Stack::private("repair_expired", &kafka, &postgres));
    produce(&stack, 0..30);
    dies_between_the_commits(&stack, 2);
    assert_eq!(offsets(&stack).len(), 3);
    wait_until("the offsets have expired", Duration::from_secs(150), || offsets(&stack).is_empty());
    assert_halts(
        &stack,
        &[
            "the group's offset is gone (expired, or the group was deleted), and a stored batch waits for its Kafka commit",
        ],
        "--offsets",
    );
    repairs(&stack, "--offsets", &["are in the topics: it is sent"]);
    recovers(&stack, 30);
}

#[test]
fn a_reset_offset_beside_a_stored_batch_sends_it_once() {
    let stack = stack("reset_stored");
    produce_to(&stack, 0..20, |_| 0);
    dies_between_the_commits(&stack, 1);
    let next = next_offset(&stack, 0);
    for offset in [0, next] {
        set_offset(&stack, 0, offset, "");
        assert_halts(&stack, &[&format!("Kafka offset {offset} (\"\"); ledger next_offset {next}")], "--offsets");
    }
    repairs(&stack, "--offsets", &["none of its 100 rows", &format!("Kafka's offset {next} becomes {next}")]);
    recovers(&stack, 20);
}

/// Its only copy is the stored batch: what has become of its rows in the sink table does not say that readers have them.
#[test]
fn a_stored_batch_is_sent_whatever_has_become_of_its_rows_in_the_table() {
    for (name, change) in [
        ("stored_deleted", "DELETE FROM subscribers_feedback WHERE adv_campaign_id >= '00000005'"),
        ("stored_some", "DELETE FROM subscribers_feedback WHERE adv_campaign_id = '00000007'"),
        ("stored_changed", "UPDATE subscribers_feedback SET restaurant_id = 'x' WHERE adv_campaign_id >= '00000005'"),
    ] {
        let stack = stack(name);
        produce_to(&stack, 0..10, |_| 0);
        dies_between_the_commits(&stack, 1);
        delete_group(&stack);
        stack.execute(change);
        repairs(&stack, "--offsets", &["none of its 100 rows and 0 dead letters are in the topics: it is sent"]);
        assert_eq!(stack.read_triggers().len(), 200, "{name}");
    }
}

#[test]
fn a_topic_that_has_lost_the_batch_does_not_prove_that_it_was_not_sent() {
    let stack = stack("trimmed");
    produce_to(&stack, 0..5, |_| 0);
    let mut job = Job::spawn_with(&stack, &["run"], &[("FAILPOINTS", "S10=0*off->return")]);
    assert_eq!(job.wait(PATIENCE).signal(), Some(libc::SIGKILL), "{}", job.stderr());
    assert_eq!(stack.number("SELECT sum(rows)::int8 FROM dinnerbell.parts"), 100);
    let records = stack.read_triggers();
    assert_eq!(records.len(), 100, "readers have had it");
    delete_group(&stack);
    for partition in 0..3 {
        let last = records.iter().filter(|record| record.partition == partition).map(|record| record.offset).max();
        if let Some(last) = last {
            delete_records_of(&stack, &stack.triggers, partition, last + 1);
        }
    }
    refuses(
        &stack,
        &[&[], &["--offsets", "--execute"]],
        &[
            "whether readers have had the stored batch [0, 5) of partition 0 cannot be known",
            "Add --accept-lost-messages",
        ],
    );
    let (code, text) = repair(&stack, &["--offsets", "--accept-lost-messages", "--execute"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("it is given up, and not sent again"), "{text}");
    assert_eq!(stack.read_triggers().len(), 0);
    produce_to(&stack, 5..10, |_| 0);
    let job = Job::spawn(&stack, &["run"]);
    wait_until("the rest", PATIENCE, || stack.read_triggers().len() >= 100 && LOAD.is_in_postgres(&stack, 10));
    stop(job);
    assert_eq!(stack.number("SELECT count(*) FROM subscribers_feedback"), 200);
    assert_eq!(stack.read_triggers().len(), 100);
}

#[test]
fn dead_letters_that_their_topic_has_lost_are_not_sent_again() {
    let stack = stack("trimmed_letters");
    stack.produce((0..2).map(|n| Message::of(format!("no JSON {n}")).partition(0).key(format!("k{n}"))));
    let mut job = Job::spawn_with(&stack, &["run"], &[("FAILPOINTS", "S10=0*off->return")]);
    assert_eq!(job.wait(PATIENCE).signal(), Some(libc::SIGKILL), "{}", job.stderr());
    let letters = stack.read_dead_letters();
    assert_eq!(letters.len(), 2, "readers have had them");
    delete_group(&stack);
    for letter in &letters {
        delete_records_of(&stack, &stack.dead_letters, letter.partition, letter.offset + 1);
    }
    refuses(
        &stack,
        &[&[], &["--offsets", "--execute"]],
        &["dead letters cannot be known", "Add --accept-lost-messages"],
    );
}

#[test]
fn a_topic_that_was_trimmed_before_the_batch_was_made_still_tells() {
    let stack = stack("trimmed_before");
    produce_to(&stack, 0..10, |_| 0);
    delivers(&stack, 10);
    assert!(keep_last_triggers(&stack) > 0);
    let left = stack.read_triggers().len();
    produce_to(&stack, 10..15, |_| 0);
    dies_between_the_commits(&stack, 0);
    delete_group(&stack);
    repairs(&stack, "--offsets", &["none of its 100 rows and 0 dead letters are in the topics: it is sent"]);
    assert_eq!(stack.read_triggers().len(), left + 100);
}

/// A chunk may have 1 GiB and a batch many of them: more than one value of Postgres takes.
#[test]
fn stored_batches_are_kept_however_large_they_are() {
    let stack = stack("large");
    produce_to(&stack, 0..10, |_| 0);
    dies_between_the_commits(&stack, 1);
    delete_group(&stack);
    // Behind a gap in the numbers, so that nobody reads them as part of the batch.
    stack.execute(
        "INSERT INTO dinnerbell.chunks SELECT commit_id, partition, 1000 + n, 'rows', convert_to(repeat('x', 50000000), 'UTF8') \
         FROM dinnerbell.parts, generate_series(1, 3) n WHERE to_offset = 10",
    );
    let (code, text) = repair(&stack, &["--offsets", "--execute"]);
    assert_eq!(code, 0, "{text}");
    let kept = stack.rows(
        "SELECT count(*) FILTER (WHERE number > 1000), sum(octet_length(body)) > 150000000, \
         (SELECT count(*) FROM dinnerbell.repairs, jsonb_array_elements(kept->'chunks') c WHERE (c->>'bytes')::int8 = 50000000) \
         FROM dinnerbell.repaired_chunks",
    );
    assert_eq!(kept, [["3", "t", "3"].map(|text| Some(text.to_owned()))]);
    recovers(&stack, 10);
}

#[test]
fn what_postgres_refuses_it_refuses_before_anything_is_sent() {
    let stack = stack("refused");
    produce_to(&stack, 0..10, |_| 0);
    dies_between_the_commits(&stack, 1);
    delete_group(&stack);
    stack.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not now'; END $$; \
         CREATE TRIGGER refuse BEFORE DELETE ON dinnerbell.parts FOR EACH ROW EXECUTE FUNCTION refuse()",
    );
    let before = substance(&stack);
    let (code, text) = repair(&stack, &["--offsets", "--execute"]);
    assert_ne!(code, 0, "{text}");
    assert!(text.contains("not now"), "{text}");
    assert_eq!(substance(&stack), before);
    stack.execute("DROP TRIGGER refuse ON dinnerbell.parts");
    repairs(&stack, "--offsets", &["none of its 100 rows"]);
    recovers(&stack, 10);
}

#[test]
fn nothing_is_repaired_under_a_running_job() {
    let stack = stack("members");
    produce(&stack, 0..15);
    let mut job = Job::spawn(&stack, &["run"]);
    wait_until("rows", PATIENCE, || LOAD.is_in_postgres(&stack, 15) && job.is_ready());
    // A healthy job needs no repair, and the command says so beside it.
    let (code, text) = repair(&stack, &[]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("it has active members"), "{text}");
    let (code, text) = repair(&stack, &["--offsets", "--execute"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("nothing was changed"), "{text}");
    let clean = "SELECT count(*) FROM dinnerbell.parts";
    wait_until("confirmed batches are deleted", PATIENCE, || stack.number(clean) == 0);
    // Something is wrong that the running job has not noticed yet.
    stack.execute("INSERT INTO dinnerbell.progress SELECT cluster_id, group_id, 'another', partition, topic, 0, 0, 0, '', NULL, now() FROM dinnerbell.progress");
    let before = everything(&stack);
    let (code, text) = repair(&stack, &["--new-topic", "--execute"]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("has active members, and only one may change"), "{text}");
    let changed: Vec<_> = everything(&stack).into_iter().zip(before).filter(|(now, before)| now != before).collect();
    assert_eq!(changed, [], "it has changed something");
    assert!(job.is_running());
    job.kill9();
}

#[test]
fn wrong_usage_is_wrong_usage() {
    let stack = stack("usage");
    for args in [&["--execute"][..], &["--offset"], &["--offsets", "now"]] {
        let (code, text) = repair(&stack, args);
        assert_eq!(code, 2, "{text}");
    }
    let (code, text) = repair(&stack, &[]);
    assert_eq!(code, 0, "a job that never ran needs no repair: {text}");
}
