//! What must be right before the first message: the job ends by itself, says what to do, and has touched nothing.

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::{Offset, TopicPartitionList};

use crate::support::{
    Campaign, Job, Message, PATIENCE, Postgres, PostgresOptions, Stack, Witness, client, restaurant, stop, taken,
};

/// Runs the job, which must end by itself: exit code, error and remedy.
#[track_caller]
fn refused(stack: &Stack) -> (i32, String, String) {
    let mut job = Job::spawn(stack, &["run"]);
    let code = job.wait(PATIENCE).code().expect("no signal");
    let told = job.stderr();
    // Settings are read before the log is there: those errors are plain text.
    if let Some((error, remedy)) = told.strip_prefix("error: ").and_then(|text| text.split_once("\nwhat to do: ")) {
        return (code, error.to_owned(), remedy.trim_end().to_owned());
    }
    let last = told.lines().last().unwrap_or_else(|| panic!("{code} and not a word"));
    let line: serde_json::Value = serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: {told}"));
    assert_eq!(line["level"], "ERROR", "{told}");
    let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
    (code, text("message"), text("what_to_do"))
}

#[track_caller]
fn assert_refused(stack: &Stack, code: i32, error: &str, remedy: &str) {
    let seen = refused(stack);
    assert!(seen.0 == code && seen.1.contains(error) && seen.2.contains(remedy), "{seen:?}");
    let ledger = "SELECT count(*) FROM information_schema.tables WHERE table_schema = 'dinnerbell'";
    assert_eq!(stack.number(ledger), 0, "nothing was made before everything was right");
}

#[test]
fn a_missing_table_or_topic_is_named_with_what_to_do() {
    let mut stack = Stack::new("missing");
    stack.set("sink.postgres", "table", "public.nowhere");
    assert_refused(&stack, 1, r#"the sink table "public"."nowhere" does not exist"#, "init");
    stack.set("sink.postgres", "table", "public.subscribers_feedback");
    let given = [("source", stack.campaigns.clone()), ("sink.kafka", stack.triggers.clone())];
    for (section, topic) in given.into_iter().chain([("dead_letters", stack.dead_letters.clone())]) {
        stack.set(section, "topic", format!("{topic}.nowhere"));
        assert_refused(&stack, 1, &format!("topic {topic}.nowhere does not exist in Kafka"), "dinnerbell init");
        stack.set(section, "topic", topic);
    }
}

#[test]
fn wrong_settings_and_wrong_sql_are_wrong_usage() {
    let mut stack = Stack::new("wrong");
    let good = stack.read_sql("triggers.sql");
    stack.write_sql("triggers.sql", &good.replace("c.adv_campaign_owner,", "c.adv_campaign_ownr,"));
    assert_refused(&stack, 2, "triggers.sql:8:", "adv_campaign_owner");
    stack.write_sql("triggers.sql", &good.replace("  s.client_id,\n", ""));
    assert_refused(&stack, 2, "client_id", "client_id");
    stack.write_sql("triggers.sql", &good);
    stack.execute("ALTER TABLE subscribers_restaurants RENAME TO elsewhere");
    assert_refused(&stack, 2, "subscribers_restaurants.sql:4:", "dinnerbell init");
    stack.execute("ALTER TABLE elsewhere RENAME TO subscribers_restaurants");
    stack.set("sink.kafka", "key", "clientid");
    assert_refused(&stack, 2, "sink.kafka.key: triggers.sql has no output column \"clientid\"", "client_id");
    stack.set("sink.kafka", "key", "client_id");
    stack.set("source", "topik", "campaigns");
    assert_refused(&stack, 2, "topik", "topic");
}

#[test]
fn a_wrong_password_for_postgres_halts() {
    let mut stack = Stack::new("password");
    let server = Postgres::start(PostgresOptions { no_fsync: true, ..PostgresOptions::default() });
    let url = server.url("postgres");
    let (user, host) = url.split_once('@').expect("user and host");
    let password = user.rsplit(':').next().expect("a password");
    stack.set("postgres", "url", format!("{}@{host}", user.replace(password, "wrong")));
    assert_refused(&stack, 1, "password authentication failed", "pg_hba.conf");
    stack.set("postgres", "url", server.url("nowhere"));
    assert_refused(&stack, 1, "database \"nowhere\" does not exist", "create the database");
}

/// A user with no rights is told, step by step, each one that the job needs; with those the job runs.
#[test]
fn a_user_without_rights_is_told_which_to_grant() {
    let mut stack = Stack::new("rights");
    let role = format!("clerk_{}", stack.group);
    let admin_url = stack.url.clone();
    stack.execute(&format!("CREATE ROLE \"{role}\" LOGIN PASSWORD 'clerk'"));
    let (_, host) = admin_url.split_once('@').expect("user and host");
    stack.set("postgres", "url", format!("postgres://{role}:clerk@{host}"));
    stack.subscribe([(client(1), restaurant(1))]);

    let mut granted = Vec::new();
    let mut job = None;
    // More rounds than there are rights: each refusal has to name one that was not granted yet.
    for _ in 0..8 {
        let mut started = Job::spawn(&stack, &["run"]);
        crate::support::wait_until("ready or refused", PATIENCE, || started.is_ready() || !started.is_running());
        if started.is_running() {
            job = Some(started);
            break;
        }
        let (code, error, remedy) = refused(&stack);
        assert_eq!(code, 1, "{error}");
        let grant = match remedy.split_once("GRANT ").map(|(_, rest)| rest.split(';').next().unwrap_or(rest)) {
            Some(grant) => format!("GRANT {grant}"),
            None if error.contains("subscribers_restaurants") => {
                format!("GRANT SELECT ON subscribers_restaurants TO \"{role}\"")
            }
            None if error.contains("permission denied for database") => {
                format!("GRANT CREATE ON DATABASE \"{}\" TO \"{role}\"", stack.group)
            }
            None => panic!("{error}: {remedy}"),
        };
        assert!(!granted.contains(&grant), "{grant} was granted: {error}");
        stack.execute(&grant);
        granted.push(grant);
    }
    let mut job = job.unwrap_or_else(|| panic!("still refused after {granted:?}"));
    assert!(granted.len() >= 3, "{granted:?}");
    stack.produce([Message::of(Campaign::new(1, restaurant(1)).json())]);
    taken(&mut job, 1);
    stop(job);
    assert_eq!(Witness::DOCUMENTED.rows(&stack).len(), 1);
}

/// The group has been somewhere, and this ledger knows nothing of it: guessing would lose or repeat.
#[test]
fn offsets_without_a_ledger_halt_until_the_settings_say_what_they_mean() {
    let mut stack = Stack::new("offsets");
    stack.subscribe([(client(1), restaurant(1))]);
    stack.produce((0..6).map(|n| Message::of(Campaign::new(n, restaurant(1)).json()).partition(2)));
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &stack.bootstrap)
        .set("group.id", &stack.group)
        .set("enable.auto.commit", "false")
        .create()
        .expect("the settings are valid");
    let mut offsets = TopicPartitionList::new();
    offsets.add_partition_offset(&stack.campaigns, 2, Offset::Offset(4)).expect("a valid offset");
    consumer.commit(&offsets, CommitMode::Sync).expect("the broker answers");
    drop(consumer);

    let (code, error, remedy) = refused(&stack);
    assert_eq!(code, 1);
    assert_eq!(error, format!("group {} has offsets in Kafka, but the ledger knows nothing of it", stack.group));
    assert!(remedy.contains("set [source] start = \"committed\""), "{remedy}");
    assert_eq!(stack.number("SELECT count(*) FROM dinnerbell.progress"), 0);

    stack.set("source", "start", "committed");
    let mut job = Job::spawn(&stack, &["run"]);
    taken(&mut job, 2);
    stop(job);
    let rows = Witness::DOCUMENTED.rows(&stack);
    let ids = [4, 5].map(|n| Campaign::new(n, restaurant(1)).adv_campaign_id);
    assert!(rows.len() == 2 && ids.iter().zip(&rows).all(|(id, row)| row.contains(id)), "{rows:?}");
}

#[test]
fn start_latest_leaves_out_what_is_there_already() {
    let mut stack = Stack::new("latest");
    stack.set("source", "start", "latest");
    stack.subscribe([(client(1), restaurant(1))]);
    let ring = |n: usize| Message::of(Campaign::new(n, restaurant(1)).json());
    stack.produce((0..6).map(ring));
    let mut job = Job::spawn(&stack, &["run"]);
    crate::support::wait_until("ready", PATIENCE, || job.is_ready());
    stack.produce([ring(6)]);
    taken(&mut job, 1);
    stop(job);
    let rows = Witness::DOCUMENTED.rows(&stack);
    assert!(rows.len() == 1 && rows[0].contains(&Campaign::new(6, "").adv_campaign_id), "{rows:?}");
}
