//! Rows of the ledger, or all of Postgres, are not what they were.

use super::*;

#[test]
fn a_deleted_progress_row_is_adopted_from_kafka() {
    let stack = stack("row");
    produce(&stack, 0..30);
    delivers(&stack, 30);
    for partition in [0, 2] {
        stack.execute(&format!("DELETE FROM dinnerbell.progress WHERE partition = {partition}"));
        assert_halts(
            &stack,
            &[&format!(
                "campaigns[{partition}]: Kafka has an offset of this job, the ledger's progress table no row: it was deleted by \
                 hand. Found: Kafka offset 10"
            )],
            "--adopt",
        );
        repairs(&stack, "--adopt", &[&format!("campaigns[{partition}]: goes on at 10")]);
    }
    produce(&stack, 30..60);
    recovers(&stack, 60);
}

/// Once the transactions of the dead job have ended: 30 campaigns, of which a batch is stored. Its rows are not in the topic
/// yet, and need not be.
#[track_caller]
fn is_adopted_with_its_batch(stack: &Stack, open: &[String]) {
    time_out(stack, open);
    repairs(
        stack,
        "--adopt",
        &["no batch was half done when the ledger was lost", "goes on at", "`run` then sends its stored batch of"],
    );
    recovers(stack, 30);
}

#[test]
fn all_progress_rows_deleted_beside_a_stored_batch() {
    let mut stack = stack("rows");
    // What took an offset over once must not take over half a state later.
    stack.set("source", "start", "committed");
    produce(&stack, 0..30);
    dies_between_the_commits(&stack, 2);
    let open = transactional_ids(&stack);
    stack.execute("DELETE FROM dinnerbell.progress");
    assert_halts(
        &stack,
        &["the ledger has no progress of group GROUP, but Kafka holds offsets that it has committed"],
        "--adopt",
    );
    is_adopted_with_its_batch(&stack, &open);
}

#[test]
fn all_progress_rows_deleted_beside_a_commit_that_kafka_still_holds_open() {
    let stack = stack("open");
    produce(&stack, 0..30);
    dies_at(&stack, "S8", 2);
    let open = transactional_ids(&stack);
    stack.execute("DELETE FROM dinnerbell.progress");
    let there = || {
        ["dinnerbell.progress", "dinnerbell.parts", "dinnerbell.chunks", "subscribers_feedback"]
            .map(|table| stack.number(&format!("SELECT count(*) FROM {table}")))
    };
    let before = there();
    // The offsets may become what the dead job was about to commit, or stay what they are: nothing is said, and nothing done,
    // before that is settled.
    for args in [&[][..], &["--adopt", "--execute"]] {
        let (code, text) = repair(&stack, args);
        assert_eq!(code, 1, "{text}");
        assert!(text.contains("reading the group's committed offsets of campaigns"), "{text}");
        assert!(
            text.contains("an open transaction holds the offsets back") && text.contains("within 15 minutes"),
            "{text}"
        );
        assert_eq!(there(), before);
    }
    is_adopted_with_its_batch(&stack, &open);
}

#[test]
fn a_dropped_ledger_is_made_again_from_the_group_s_offsets() {
    let stack = stack("dropped");
    produce(&stack, 0..30);
    delivers(&stack, 30);
    let job = stack.psql("SELECT job FROM dinnerbell.ledger");
    stack.execute("DROP SCHEMA dinnerbell CASCADE");
    let (code, text) = repair(&stack, &[]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("were committed under the ledger ID, and there is none"), "{text}");
    assert_eq!(stack.number("SELECT count(*) FROM pg_namespace WHERE nspname = 'dinnerbell'"), 0);
    assert_halts(
        &stack,
        &["group GROUP has offsets in Kafka of a ledger that is not this one: theirs is ID, this one ID"],
        "--adopt",
    );
    repairs(
        &stack,
        "--adopt",
        &["every row of \"public\".\"subscribers_feedback\" is in triggers", "campaigns[0]: goes on at 10"],
    );
    assert_ne!(stack.psql("SELECT job FROM dinnerbell.ledger"), job);
    produce(&stack, 30..60);
    recovers(&stack, 60);
}

#[test]
fn a_dropped_ledger_with_a_batch_half_done_is_not_guessed_about() {
    let stack = stack("half");
    produce_to(&stack, 0..15, |_| 0);
    dies_between_the_commits(&stack, 1);
    let open = transactional_ids(&stack);
    stack.execute("DROP SCHEMA dinnerbell CASCADE");
    time_out(&stack, &open);
    let before = everything(&stack);
    for args in [&[][..], &["--adopt", "--execute"]] {
        let (code, text) = repair(&stack, args);
        assert_eq!(code, 1, "{text}");
        assert!(text.contains("100 rows of \"public\".\"subscribers_feedback\" are not in triggers"), "{text}");
        assert_eq!(everything(&stack), before);
    }
    // The way out that it names: those rows are made again by the job.
    stack.execute("DELETE FROM subscribers_feedback WHERE adv_campaign_id >= '00000005'");
    repairs(&stack, "--adopt", &["campaigns[0]: goes on at 5"]);
    recovers(&stack, 15);
}

#[test]
fn progress_and_a_stored_batch_deleted_together_are_not_adopted_half_way() {
    let stack = stack("half_own");
    produce_to(&stack, 0..15, |_| 0);
    dies_between_the_commits(&stack, 1);
    let open = transactional_ids(&stack);
    stack.execute("DELETE FROM dinnerbell.progress; DELETE FROM dinnerbell.parts; DELETE FROM dinnerbell.chunks");
    time_out(&stack, &open);
    refuses(
        &stack,
        &[&[], &["--adopt", "--execute"]],
        &["100 rows of \"public\".\"subscribers_feedback\" are not in triggers"],
    );
    stack.execute("DELETE FROM subscribers_feedback WHERE adv_campaign_id >= '00000005'");
    repairs(&stack, "--adopt", &["campaigns[0]: goes on at 5"]);
    recovers(&stack, 15);
}

#[test]
fn a_table_that_lacks_rows_of_the_topic_is_not_adopted_in_silence() {
    let stack = stack("adopt_lost");
    produce(&stack, 0..30);
    delivers(&stack, 30);
    // As in a backup that is older than the ledger.
    stack.execute(
        "DROP SCHEMA dinnerbell CASCADE; DELETE FROM subscribers_feedback WHERE adv_campaign_id >= '00000014'",
    );
    refuses(
        &stack,
        &[&[], &["--adopt", "--execute"]],
        &["200 of the 600 rows in triggers are not in \"public\".\"subscribers_feedback\"", "add --rebuild-table"],
    );
    let (code, text) = repair(&stack, &["--adopt", "--rebuild-table", "--execute"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("200 of the 600 rows in triggers") && text.contains("they are inserted"), "{text}");
    LOAD.verify(&stack, 30);
    produce(&stack, 30..45);
    recovers(&stack, 45);
}

#[test]
fn rows_that_were_deleted_on_purpose_stay_deleted_where_that_is_said() {
    let stack = stack("adopt_without");
    produce(&stack, 0..30);
    delivers(&stack, 30);
    stack.execute(
        "DELETE FROM dinnerbell.progress WHERE partition = 1; DELETE FROM subscribers_feedback WHERE adv_campaign_id < '0000000a'",
    );
    refuses(&stack, &[&[], &["--adopt", "--execute"]], &["200 of the 600 rows in triggers are not in"]);
    let (code, text) = repair(&stack, &["--adopt", "--accept-lost-messages", "--execute"]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(stack.number("SELECT count(*) FROM subscribers_feedback"), 400);
    assert_eq!(next_offset(&stack, 1), 10);
}

#[test]
fn a_ledger_without_identity_gets_its_own_back() {
    let stack = stack("identity");
    produce(&stack, 0..30);
    dies_between_the_commits(&stack, 2);
    let job = stack.psql("SELECT job FROM dinnerbell.ledger");
    stack.execute("DELETE FROM dinnerbell.ledger");
    assert_halts(
        &stack,
        &["the ledger in schema dinnerbell has lost its identity: its table ledger is empty"],
        "--adopt",
    );
    repairs(&stack, "--adopt", &["the ledger gets its identity back"]);
    assert_eq!(stack.psql("SELECT job FROM dinnerbell.ledger"), job);
    recovers(&stack, 30);
}

/// The database as it was, byte for byte: a copy that was made while nobody was connected.
struct Backup {
    admin: String,
    name: String,
}

impl Backup {
    fn take(stack: &Stack) -> Backup {
        let name = stack.group.clone();
        let (server, _) = stack.url.rsplit_once(&name).expect("the database's name ends its address");
        let backup = Backup { admin: format!("{server}postgres"), name };
        stack.kill_sessions();
        backup.sql(&format!("CREATE DATABASE \"{0}_backup\" TEMPLATE \"{0}\"", backup.name));
        backup
    }

    fn restore(&self) {
        self.sql(&format!("DROP DATABASE \"{}\" WITH (FORCE)", self.name));
        self.sql(&format!("CREATE DATABASE \"{0}\" TEMPLATE \"{0}_backup\"", self.name));
    }

    fn sql(&self, sql: &str) {
        use std::process::Command;
        crate::support::run(
            Command::new("psql").args([&self.admin, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", sql]),
            "",
        );
    }
}

#[test]
fn a_restored_database_gets_its_rows_back_from_the_output_topic() {
    let stack = stack("restored");
    produce(&stack, 0..15);
    delivers(&stack, 15);
    let backup = Backup::take(&stack);
    produce(&stack, 15..60);
    delivers(&stack, 60);
    backup.restore();
    assert_eq!(stack.number("SELECT count(*) FROM subscribers_feedback"), 300);
    assert_halts(
        &stack,
        &[
            "Kafka is ahead of the ledger, by this job's own commits: Postgres has lost commits (restored from a backup, or failed \
           over). Found: Kafka offset 20",
            "ledger next_offset 5",
        ],
        "--rebuild-table",
    );
    repairs(
        &stack,
        "--rebuild-table",
        &[
            "900 of the 1200 rows in triggers are not in \"public\".\"subscribers_feedback\"",
            "campaigns[2]: next_offset 5 becomes 20",
        ],
    );
    LOAD.verify(&stack, 60);
    produce(&stack, 60..75);
    recovers(&stack, 75);
}

#[test]
fn a_database_restored_from_before_the_first_commit() {
    let stack = stack("restored_new");
    let job = Job::spawn(&stack, &["run"]);
    let registered = "SELECT count(*) FROM dinnerbell.progress WHERE next_offset = 0";
    wait_until("partitions are registered", PATIENCE, || job.is_ready() && stack.number(registered) == 3);
    stop(job);
    let backup = Backup::take(&stack);
    produce(&stack, 0..15);
    delivers(&stack, 15);
    backup.restore();
    assert_eq!(stack.number("SELECT count(*) FROM subscribers_feedback"), 0);
    assert_halts(&stack, &["Kafka is ahead of the ledger, by this job's own commits"], "--rebuild-table");
    repairs(
        &stack,
        "--rebuild-table",
        &["300 of the 300 rows in triggers are not in", "campaigns[2]: next_offset 0 becomes 5"],
    );
    LOAD.verify(&stack, 15);
    produce(&stack, 15..30);
    recovers(&stack, 30);
}

#[test]
fn a_restored_database_with_a_stored_batch_of_the_past() {
    let stack = stack("restored_part");
    produce_to(&stack, 0..20, |n| (n >= 10) as i32);
    dies_between_the_commits(&stack, 1);
    let backup = Backup::take(&stack);
    delivers(&stack, 20);
    backup.restore();
    assert!(stack.number("SELECT count(*) FROM dinnerbell.parts") > 0);
    let (_, remedy) = halts(&stack);
    assert!(remedy.contains("--rebuild-table --execute"), "{remedy}");
    repairs(&stack, "--rebuild-table", &["rows in triggers are not in"]);
    recovers(&stack, 20);
}

#[test]
fn rebuilding_from_a_topic_that_retention_has_cut_says_what_it_cannot_know() {
    let stack = stack("restored_cut");
    produce_to(&stack, 0..10, |_| 0);
    delivers(&stack, 10);
    let backup = Backup::take(&stack);
    produce_to(&stack, 10..20, |_| 0);
    delivers(&stack, 20);
    backup.restore();
    let lost = 10 * LOAD.subscribers;
    // All but each partition's last record: what the table lacks cannot be whole any more.
    let sent = stack.read_triggers().len();
    let gone = keep_last_triggers(&stack);
    assert!(gone > lost, "{gone} of {sent} records went");
    let before = everything(&stack);
    for args in [&[][..], &["--rebuild-table", "--execute"]] {
        let (code, text) = repair(&stack, args);
        assert_eq!(code, 1, "{text}");
        assert!(text.contains("cannot be known: retention has taken what triggers["), "{text}");
        assert_eq!(everything(&stack), before);
    }
    let (code, text) = repair(&stack, &["--rebuild-table", "--accept-lost-messages", "--execute"]);
    assert_eq!(code, 0, "{text}");
    produce_to(&stack, 20..25, |_| 0);
    let mut job = Job::spawn(&stack, &["run"]);
    crate::support::taken(&mut job, 5);
}
