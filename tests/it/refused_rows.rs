//! Messages that are well-formed and make rows that a sink refuses: the whole message becomes a dead letter, with none
//! of its rows in either sink, and its neighbours go through.

use std::collections::BTreeSet;

use crate::support::{
    Campaign, Job, Message, Record, Stack, TWO_COPIES, Witness, client, consume_all, long_id, restaurant, stop, taken,
};

fn ring(n: usize, content: &str) -> Campaign {
    Campaign { content: content.to_owned(), ..Campaign::new(n, restaurant(1)) }
}

/// Produces to partition 0, runs the job over it all, and gives back rows (the campaign's id of each) and letters.
fn run_over(stack: &Stack, campaigns: &[Campaign]) -> (Vec<String>, Vec<Record>) {
    let before = stack.read_dead_letters().len();
    stack.produce(campaigns.iter().map(|campaign| Message::of(campaign.json()).partition(0).key("k")));
    let mut job = Job::spawn(stack, &["run"]);
    taken(&mut job, campaigns.len());
    let letters = stack.read_dead_letters();
    let counted = |outcome: &str| job.metric("dinnerbell_messages_total", &format!("outcome=\"{outcome}\"")) as usize;
    assert_eq!(counted("dead_letter"), letters.len() - before);
    assert_eq!(counted("triggered"), campaigns.len() - (letters.len() - before));
    let told = stop(job);
    assert!(!told.contains("paused: ") && !told.contains("claiming the partitions anew"), "{told}");
    let id = |row: &String| {
        let row: serde_json::Value = serde_json::from_str(row).expect("JSON");
        row["adv_campaign_id"].as_str().expect("an id").to_owned()
    };
    (Witness::DOCUMENTED.rows(stack).iter().map(id).collect(), letters)
}

/// The letters' offsets, with stage and reason; each is the original message, whole.
fn explained(stack: &Stack, letters: &[Record]) -> Vec<(usize, String, String)> {
    let sent = consume_all(&stack.bootstrap, &stack.campaigns, true);
    let explain = |letter: &Record| {
        let header = |name: &str| letter.header(&format!("dinnerbell.{name}")).expect("the header").to_owned();
        let offset: usize = header("offset").parse().expect("a number");
        let original = sent.iter().find(|record| record.partition == 0 && record.offset == offset as i64);
        let original = original.expect("the message");
        assert_eq!((&letter.key, &letter.value), (&original.key, &original.value));
        (offset, header("stage"), header("reason"))
    };
    let mut explained: Vec<_> = letters.iter().map(explain).collect();
    explained.sort();
    explained
}

#[test]
fn a_refused_row_takes_its_whole_message_out_and_no_other() {
    let stack = Stack::new("refused");
    // Only the second client's row of a campaign is refused: the first one's must not stay behind.
    stack.execute(&format!(
        "ALTER TABLE subscribers_feedback ADD CONSTRAINT manners CHECK (adv_campaign_content <> 'rude' OR client_id <> '{}')",
        client(2)
    ));
    stack.subscribe((1..=3).map(|n| (client(n), restaurant(1))));
    let campaigns = [ring(0, "good"), ring(1, "rude"), ring(2, "good"), ring(3, "nul \0 in text"), ring(4, "good")];
    let (rows, letters) = run_over(&stack, &campaigns);
    let expected: Vec<String> = [0, 2, 4].iter().flat_map(|n| vec![campaigns[*n].adv_campaign_id.clone(); 3]).collect();
    assert_eq!(rows, expected);
    let [rude, nul] = explained(&stack, &letters).try_into().expect("two letters");
    assert_eq!((rude.0, rude.1.as_str(), nul.0, nul.1.as_str()), (1, "postgres", 3, "encode"));
    // To its end: the failing row would show a serial id, another one each time that the row is tried.
    assert!(rude.2.ends_with("violates check constraint \"manners\" (SQLSTATE 23514)"), "{}", rude.2);
    // Postgres would refuse it, too; the job knows beforehand.
    assert!(nul.2.contains("U+0000"), "{}", nul.2);
}

#[test]
fn many_refused_ones_are_found_among_many_good_ones() {
    let stack = Stack::new("bisection");
    stack.execute("ALTER TABLE subscribers_feedback ADD CHECK (adv_campaign_content <> 'rude')");
    stack.subscribe([(client(1), restaurant(1))]);
    // Some that Postgres refuses, and many that the job itself knows Postgres would.
    let rude: BTreeSet<usize> = [0, 1, 2, 500, 777, 778, 1024, 1999].into();
    let content = |n: usize| match n % 10 {
        _ if rude.contains(&n) => "rude",
        5 => "nul \0",
        _ => "good",
    };
    let campaigns: Vec<_> = (0..2000).map(|n| ring(n, content(n))).collect();
    let (rows, letters) = run_over(&stack, &campaigns);
    let found = |at: &str| -> BTreeSet<usize> {
        let explained = explained(&stack, &letters).into_iter();
        explained.filter(|(_, stage, _)| stage == at).map(|(offset, ..)| offset).collect()
    };
    assert_eq!(found("postgres"), rude);
    assert_eq!(found("encode"), (0..200).map(|n| n * 10 + 5).collect());
    let good = campaigns.iter().filter(|campaign| campaign.content == "good");
    assert_eq!(rows, good.map(|campaign| campaign.adv_campaign_id.clone()).collect::<Vec<_>>());
}

/// Rows of the others wait in librdkafka's queue when Postgres refuses one, and are thrown away with the transaction: Kafka
/// must not miss them in the next one, which has its records numbered on.
#[test]
fn a_refusal_while_rows_are_queued_for_kafka_is_no_trouble() {
    let mut stack = Stack::new("refused_queued");
    stack.set("sink.kafka", "linger.ms", "300");
    stack.set("sink.kafka", "key", "client_id");
    stack.execute("ALTER TABLE subscribers_feedback ADD CHECK (adv_campaign_content <> 'rude')");
    stack.subscribe((1..=20).map(|n| (client(n), restaurant(1))));
    let content = |n: usize| if n == 5 { "rude" } else { "good" };
    let campaigns: Vec<_> = (0..10).map(|n| ring(n, content(n))).collect();
    let message = |campaign: &Campaign| Message::of(campaign.json()).partition(0);
    let mut job = Job::spawn(&stack, &["run"]);
    // Both producers have written to every partition before.
    for (n, campaign) in campaigns.iter().enumerate().take(4) {
        stack.produce([message(campaign)]);
        taken(&mut job, n + 1);
    }
    stack.produce(campaigns[4..].iter().map(message));
    taken(&mut job, 10);
    let told = stop(job);
    assert!(!told.contains("paused: ") && !told.contains("claiming the partitions anew"), "{told}");
    assert_eq!(stack.read_dead_letters().len(), 1);
    assert_eq!(Witness::DOCUMENTED.rows(&stack).len(), 9 * 20);
}

/// The first commit on a new connection has confirmed parts to delete: what a crash after Kafka's commit leaves.
#[cfg(feature = "failpoints")]
#[test]
fn a_refusal_in_the_first_commit_after_a_crash_is_no_trouble() {
    use std::os::unix::process::ExitStatusExt;

    use crate::support::PATIENCE;
    let stack = Stack::new("refused_first");
    stack.execute("ALTER TABLE subscribers_feedback ADD CHECK (adv_campaign_content <> 'rude')");
    stack.subscribe((1..=20).map(|n| (client(n), restaurant(1))));
    stack.produce([Message::of(ring(0, "good").json()).partition(0)]);
    let mut job = Job::spawn_with(&stack, &["run"], &[("FAILPOINTS", "S10=return")]);
    assert_eq!(job.wait(PATIENCE).signal(), Some(libc::SIGKILL), "{}", job.stderr());
    assert_eq!(stack.number("SELECT count(*) FROM dinnerbell.parts"), 1);
    let more = [ring(1, "good"), ring(2, "rude"), ring(3, "good")];
    stack.produce(more.map(|campaign| Message::of(campaign.json()).partition(0)));
    let mut job = Job::spawn(&stack, &["run"]);
    taken(&mut job, 3);
    let told = stop(job);
    assert!(!told.contains("paused: ") && !told.contains("claiming the partitions anew"), "{told}");
    assert_eq!(stack.read_dead_letters().len(), 1);
    assert_eq!(Witness::DOCUMENTED.rows(&stack).len(), 3 * 20);
}

#[test]
fn of_those_that_conflict_with_each_other_the_first_stands() {
    let stack = Stack::new("conflict");
    stack.execute("CREATE UNIQUE INDEX once ON subscribers_feedback (adv_campaign_id)");
    stack.subscribe([(client(1), restaurant(1))]);
    let campaigns = [ring(1, "a"), ring(7, "first"), ring(2, "a"), ring(7, "second"), ring(3, "a"), ring(7, "third")];
    let (rows, letters) = run_over(&stack, &campaigns);
    let ids = [1, 2, 3, 7].map(|n| ring(n, "").adv_campaign_id);
    assert_eq!(rows, ids);
    assert_eq!(stack.psql("SELECT count(*) FROM subscribers_feedback WHERE adv_campaign_content = 'first'"), "1\n");
    let explained = explained(&stack, &letters);
    assert_eq!(explained.iter().map(|(offset, ..)| *offset).collect::<Vec<_>>(), [3, 5]);
    assert!(explained.iter().all(|(_, _, reason)| reason.contains("\"once\" (SQLSTATE 23505)")), "{explained:?}");

    // A later run meets what stands already.
    stack.produce([Message::of(ring(7, "fourth").json()).partition(0)]);
    let mut job = Job::spawn(&stack, &["run"]);
    taken(&mut job, 1);
    stop(job);
    assert_eq!(stack.read_dead_letters().len(), 3);
    assert_eq!(Witness::DOCUMENTED.rows(&stack).len(), 4);
}

/// A number that the table's int4 cannot hold, in a column that the engine narrows.
#[test]
fn a_number_that_does_not_fit_the_column_takes_its_message_out() {
    let stack = Stack::new("narrow");
    let narrowed = "c.datetime_created AS trigger_datetime_created";
    stack.write_sql("triggers.sql", &stack.read_sql("triggers.sql").replace(CAST, narrowed));
    out_of_range(&stack, "encode");
}

/// The same, in a CAST of the user's.
#[test]
fn a_cast_that_fails_takes_its_message_out() {
    let stack = Stack::new("cast");
    let cast = "CAST(c.datetime_created AS INT) AS trigger_datetime_created";
    stack.write_sql("triggers.sql", &stack.read_sql("triggers.sql").replace(CAST, cast));
    out_of_range(&stack, "transform");
}

const CAST: &str = "CAST(to_unixtime(now()) AS INT) AS trigger_datetime_created";

fn out_of_range(stack: &Stack, stage: &str) {
    stack.subscribe((1..=2).map(|n| (client(n), restaurant(1))));
    let mut campaigns: Vec<_> = (0..40).map(|n| ring(n, "good")).collect();
    for late in [3, 20, 21] {
        campaigns[late].created = 3_000_000_000;
    }
    let (rows, letters) = run_over(stack, &campaigns);
    assert_eq!(rows.len(), 37 * 2);
    let explained = explained(stack, &letters);
    assert_eq!(explained.iter().map(|(offset, ..)| *offset).collect::<Vec<_>>(), [3, 20, 21]);
    for (_, at, reason) in &explained {
        assert_eq!(at, stage);
        assert!(reason.contains("3000000000"), "{reason}");
    }
}

/// While the refused message is looked for, the query turns out to make too many rows at once: fewer messages are taken,
/// on the same connection.
#[test]
fn a_refusal_in_a_batch_that_makes_too_many_rows() {
    let mut stack = Stack::new("too_many");
    stack.set("transform", "max_rows", 70_000);
    stack.execute("ALTER TABLE subscribers_feedback ADD CHECK (adv_campaign_content <> 'rude')");
    stack.subscribe((0..40_000).map(|n| (client(n), restaurant(1))));
    stack.subscribe([(client(0), restaurant(2))]);
    let rude = Campaign { content: "rude".into(), ..Campaign::new(1, restaurant(2)) };
    let (rows, letters) = run_over(&stack, &[ring(0, "good"), rude, ring(2, "good")]);
    assert_eq!(rows.len(), 80_000);
    let [rude] = explained(&stack, &letters).try_into().expect("one letter");
    assert_eq!((rude.0, rude.1.as_str()), (1, "postgres"));
}

#[test]
fn a_row_refused_in_the_first_or_the_second_copy_of_a_commit() {
    let stack = Stack::new("copies_refused");
    stack.execute("ALTER TABLE subscribers_feedback ADD CHECK (adv_campaign_content <> 'rude')");
    stack.subscribe((0..TWO_COPIES).map(|n| (long_id(n), restaurant(1))));
    stack.subscribe([(client(0), restaurant(2))]);
    // A statement's trigger is called once for each COPY, and no rollback takes a sequence back.
    stack.execute(
        "CREATE SEQUENCE copies; \
         CREATE FUNCTION counted() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM nextval(''copies''); RETURN NULL; END'; \
         CREATE TRIGGER counted BEFORE INSERT ON subscribers_feedback FOR EACH STATEMENT EXECUTE FUNCTION counted()",
    );
    let (rows, _) = run_over(&stack, &[ring(0, "good")]);
    assert_eq!((rows.len(), stack.number("SELECT last_value FROM copies")), (TWO_COPIES, 2));

    let rude = |n| Campaign { content: "rude".into(), ..Campaign::new(n, restaurant(2)) };
    run_over(&stack, &[rude(1), ring(2, "good")]);
    let (rows, letters) = run_over(&stack, &[ring(3, "good"), rude(4)]);
    assert_eq!(rows.len(), 3 * TWO_COPIES);
    let refused = explained(&stack, &letters);
    assert_eq!(refused.iter().map(|(offset, ..)| *offset).collect::<Vec<_>>(), [1, 4]);
    let is_the_cause = |at: &str, why: &str| at == "postgres" && why.contains("check constraint");
    assert!(refused.iter().all(|(_, at, why)| is_the_cause(at, why)), "{refused:?}");
}
