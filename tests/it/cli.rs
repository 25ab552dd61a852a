//! `check`, `init` and `preview`: what they say, what they make, and that nothing else happens.

use std::fs;
use std::process::Output;
use std::time::Duration;

use insta::assert_snapshot;

use crate::support::{Campaign, Job, Message, Stack, client, restaurant, sample, wait_until};

/// Exit code and standard output, names of the test's own replaced.
fn said(stack: &Stack, args: &[&str]) -> (i32, String) {
    let Output { status, stdout, stderr } = Job::output(stack, args);
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    (status.code().expect("it exits"), masked(stack, &format!("{stdout}{stderr}")))
}

fn masked(stack: &Stack, text: &str) -> String {
    text.replace(&stack.directory.display().to_string(), "DIR")
        .replace(&stack.bootstrap, "KAFKA")
        .replace(&stack.group, "TEST")
}

/// The lines that begin with one of `marks`, each with its remedy.
fn lines(text: &str, marks: &[&str]) -> String {
    let mut ours = false;
    let kept = text.lines().filter(|line| {
        ours = marks.iter().any(|mark| line.starts_with(mark)) || (ours && line.starts_with(' '));
        ours
    });
    kept.collect::<Vec<_>>().join("\n")
}

/// What every line says up to the first colon, bracket or size: the rest differs from server to server.
fn beginnings(text: &str) -> String {
    let end = |line: &str| line.find([':', '(']).into_iter().chain(line.find(" takes ")).min();
    let kept = |line: &str| {
        let line = end(line).map_or(line, |end| &line[..end]);
        line.split_once(", cluster ").map_or(line, |(begin, _)| begin).trim_end().to_owned()
    };
    text.lines().map(kept).collect::<Vec<_>>().join("\n")
}

fn groups(stack: &Stack) -> Vec<String> {
    use rdkafka::consumer::{BaseConsumer, Consumer};
    let consumer: BaseConsumer = rdkafka::ClientConfig::new()
        .set("bootstrap.servers", &stack.bootstrap)
        .create()
        .expect("the settings are valid");
    let list = consumer.fetch_group_list(None, Duration::from_secs(30)).expect("the broker answers");
    list.groups().iter().map(|group| group.name().to_owned()).collect()
}

#[test]
fn check_says_that_all_is_ready_and_changes_nothing() {
    let stack = Stack::new("check_ready");
    stack.subscribe([(client(1), restaurant(1)), (client(2), restaurant(1))]);
    let (code, text) = said(&stack, &["check"]);
    assert_eq!(code, 0, "{text}");
    assert_snapshot!(beginnings(&text), @r"
    ok    settings        DIR/dinnerbell.toml
    ok    SQL files       DIR/sql
    ok    Kafka           KAFKA
    ok    source topic    TEST.campaigns
    ok    output topic    TEST.triggers
    ok    dead letters    TEST.dead_letters
    ok    message sizes   TEST.dead_letters
    ok    Postgres        postgres
    ok    sink table      public.subscribers_feedback
    ok    serial numbers  column id
    ok    lookup          subscribers_restaurants
    ok    query           outcomes
    ok    joins           subscribers_restaurants by index on restaurant_id
    ok    output columns  10 columns, as public.subscribers_feedback
    ok    ledger          schema dinnerbell
    ok    group           group TEST is new and begins at the oldest messages

    All is ready
    ");
    assert_eq!(stack.number("SELECT count(*) FROM pg_namespace WHERE nspname = 'dinnerbell'"), 0);
    assert!(!groups(&stack).contains(&stack.group));
}

#[test]
fn check_tells_how_lookup_tables_are_joined_and_shows_the_plan() {
    let stack = Stack::new("check_joins");
    let (code, text) = said(&stack, &["check", "--explain"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("ok    joins           subscribers_restaurants by index on restaurant_id\n"), "{text}");
    assert!(
        text.contains("\nplan  triggers.sql ") && text.contains("LookupJoinExec: lookup=subscribers_restaurants"),
        "{text}"
    );

    let sql = stack.read_sql("triggers.sql");
    let scanned = sql.replace("s.restaurant_id = c.restaurant_id", "lower(s.restaurant_id) = c.restaurant_id");
    assert_ne!(scanned, sql);
    stack.write_sql("triggers.sql", &scanned);
    let (code, text) = said(&stack, &["check"]);
    assert_eq!(code, 0, "{text}");
    assert_snapshot!(lines(&text, &["warn", "plan"]), @r"
    warn  joins           every batch reads all of subscribers_restaurants
                          -> it is read by index where a text, UUID or integer column of it equals one of the campaigns' and nothing else decides the match: let sql/lookups compute the column, or leave the rows out; `check --explain` shows the plan
    ");
}

#[test]
fn check_goes_on_after_a_failure() {
    let mut stack = Stack::new("check_missing");
    stack.set("sink.kafka", "topic", "no_such_topic");
    stack.set("sink.postgres", "table", "public.no_such_table");
    let (code, text) = said(&stack, &["check"]);
    assert_eq!(code, 1, "{text}");
    assert_snapshot!(lines(&text, &["FAIL", "skip", "error"]), @r#"
    FAIL  output topic    topic no_such_topic does not exist in Kafka, or this user may not see it
                          -> create it (`dinnerbell init` does), correct its name in the settings, or grant DESCRIBE on it
    FAIL  sink table      the sink table "public"."no_such_table" does not exist
                          -> run `dinnerbell init` to create it, or correct [sink.postgres] table
    skip  output columns  there is no sink table to compare them with
    error: check: 2 failures, 1 skipped
    "#);
    assert!(text.contains("ok    query"), "{text}");
}

#[test]
fn check_reports_a_wrong_password_and_a_server_that_is_away() {
    let mut stack = Stack::new("check_servers");
    stack.execute(&format!("CREATE ROLE {0} LOGIN PASSWORD 'right'", stack.group));
    let host = stack.url.split('@').next_back().expect("a URL").to_owned();
    stack.set("postgres", "url", format!("postgres://{}:wrong@{host}", stack.group));
    stack.set("kafka", "bootstrap.servers", "127.0.0.1:1");
    let (code, text) = said(&stack, &["check"]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("FAIL  Kafka") && text.contains("127.0.0.1:1"), "{text}");
    assert!(!text.contains("wrong"), "{text}");
}

#[test]
fn check_says_how_to_grant_what_is_missing() {
    let mut stack = Stack::new("check_rights");
    let role = stack.group.clone();
    stack.execute(&format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'x'; GRANT SELECT ON public.subscribers_restaurants TO {role}; \
         GRANT SELECT ON public.subscribers_feedback TO {role}"
    ));
    let host = stack.url.split('@').next_back().expect("a URL").to_owned();
    stack.set("postgres", "url", format!("postgres://{role}:x@{host}"));
    let (code, text) = said(&stack, &["check"]);
    assert_eq!(code, 1, "{text}");
    assert_snapshot!(lines(&text, &["FAIL", "error"]), @r#"
    FAIL  output columns  "TEST" may not insert into column "restaurant_id" of "public"."subscribers_feedback"
                          -> GRANT INSERT ON "public"."subscribers_feedback" TO "TEST";
    FAIL  ledger          there is no ledger in schema dinnerbell, and "TEST" may not create it
                          -> GRANT CREATE ON DATABASE "TEST" TO "TEST"; or let an administrator run what `dinnerbell init --print` shows
    error: check: 2 failures
    "#);
}

#[test]
fn check_warns_of_a_dead_letter_topic_that_takes_too_little() {
    let mut stack = Stack::new("check_sizes");
    let (triggers, dead_letters) = (stack.triggers.clone(), stack.dead_letters.clone());
    stack.set("sink.kafka", "topic", dead_letters);
    stack.set("dead_letters", "topic", triggers.clone());
    let (code, text) = said(&stack, &["check"]);
    assert_eq!(code, 0, "{text}");
    let warning = lines(&text, &["warn"]);
    assert!(warning.contains("warn  message sizes") && warning.contains("-> kafka-configs.sh"), "{text}");
}

#[test]
fn check_knows_whether_the_group_may_start() {
    use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
    use rdkafka::{Offset, TopicPartitionList};
    let mut stack = Stack::new("check_group");
    let consumer: BaseConsumer = rdkafka::ClientConfig::new()
        .set("bootstrap.servers", &stack.bootstrap)
        .set("group.id", &stack.group)
        .create()
        .expect("the settings are valid");
    let mut offsets = TopicPartitionList::new();
    offsets.add_partition_offset(&stack.campaigns, 0, Offset::Offset(0)).expect("a valid offset");
    wait_until("the group has a coordinator", Duration::from_secs(30), || {
        consumer.commit(&offsets, CommitMode::Sync).is_ok()
    });
    let (code, text) = said(&stack, &["check"]);
    assert_eq!(code, 1, "{text}");
    assert_snapshot!(lines(&text, &["FAIL"]), @r#"
    FAIL  group           group TEST has offsets in Kafka, but the ledger knows nothing of it
                          -> if another job left them and this one shall go on from there, set [source] start = "committed"; otherwise choose another [source] group_id. If this job had a ledger, find out where it went first
    "#);

    stack.set("source", "start", "committed");
    let (code, text) = said(&stack, &["check"]);
    assert_eq!(code, 0, "{text}");
    let mut job = Job::spawn(&stack, &["run"]);
    wait_until("the job is ready", Duration::from_secs(60), || job.is_ready());
    job.term();
    assert_eq!(job.wait(Duration::from_secs(30)).code(), Some(0));
    let (code, text) = said(&stack, &["check"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("goes on from the ledger, which knows 3 of 3 partitions"), "{text}");
}

#[test]
fn wrong_settings_and_wrong_sql_exit_with_2() {
    let mut stack = Stack::new("check_wrong");
    let query = stack.read_sql("triggers.sql");
    stack.write_sql("triggers.sql", &query.replace("c.adv_campaign_owner,", "c.adv_campain_owner,"));
    let (code, text) = said(&stack, &["check"]);
    assert_eq!(code, 2, "{text}");
    assert_snapshot!(lines(&text, &["FAIL", "error"]), @r"
    FAIL  query           DIR/sql/triggers.sql:8:3: there is no column c.adv_campain_owner
                          -> did you mean c.adv_campaign_owner?
    error: check: 1 failure
    ");
    stack.write_sql("triggers.sql", &query.replace("s.client_id,", "s.client_id AS klient_id,"));
    let (code, text) = said(&stack, &["check"]);
    assert_eq!(code, 2, "{text}");
    assert_snapshot!(lines(&text, &["FAIL", "error"]), @r#"
    FAIL  output columns  DIR/sql/triggers.sql:12:18: the sink table "public"."subscribers_feedback" has no column "klient_id"
                          -> did you mean "client_id"? Name the output column with AS "client_id"
    error: check: 1 failure
    "#);
    stack.write_sql("triggers.sql", &query);

    stack.set("source", "start", 7);
    let (code, text) = said(&stack, &["check"]);
    assert_eq!(code, 2);
    assert_snapshot!(text, @r"
    FAIL  settings        source.start: expected a string, found an integer (DIR/dinnerbell.toml, line 18)
                          -> put it in double quotes
    error: check: 1 failure
    ");
    stack.set("source", "start", "earliest");
    stack.set("source", "topik", "campaigns");
    let (code, text) = said(&stack, &["check"]);
    assert_eq!(code, 2);
    assert_snapshot!(text, @r"
    FAIL  settings        source.topik: unknown setting (DIR/dinnerbell.toml, line 20)
                          -> did you mean source.topic?
    error: check: 1 failure
    ");
}

#[test]
fn init_makes_what_is_missing_and_no_more() {
    let mut stack = Stack::new("init");
    for (section, name) in [("source", "in"), ("sink.kafka", "out"), ("dead_letters", "dead")] {
        stack.set(section, "topic", format!("{}.new.{name}", stack.group));
    }
    stack.execute("DROP TABLE public.subscribers_feedback, public.subscribers_restaurants");
    let inits: Vec<_> = (0..3).map(|_| Job::spawn(&stack, &["init"])).collect();
    for mut init in inits {
        let status = init.wait(Duration::from_secs(60));
        assert_eq!(status.code(), Some(0), "{}{}", init.stdout(), init.stderr());
    }
    let (code, text) = said(&stack, &["check"]);
    assert_eq!(code, 0, "{text}");
    assert!(!text.contains("warn"), "{text}");
    let (code, text) = said(&stack, &["init"]);
    assert_eq!(code, 0, "{text}");
    assert_snapshot!(beginnings(&text), @r"
    there topic           TEST.new.in
    there topic           TEST.new.out
    there topic           TEST.new.dead
    ok    message sizes   TEST.new.dead
    there tables          DIR/sql/postgres/01_subscribers_restaurants.sql made nothing new
    there tables          DIR/sql/postgres/02_subscribers_feedback.sql made nothing new
    there ledger          schema dinnerbell

    All is there; `dinnerbell check` proves that it fits together
    ");
}

#[test]
fn init_prints_what_it_would_run_without_a_server() {
    let mut stack = Stack::new("init_print");
    let script = Job::run(&stack, &["init", "--print"]);
    for wanted in
        ["kafka-topics.sh", "CREATE TABLE IF NOT EXISTS public.subscribers_feedback", "FUNCTION \"dinnerbell\".advance"]
    {
        assert!(script.contains(wanted), "{script}");
    }
    stack.execute("DROP TABLE public.subscribers_feedback, public.subscribers_restaurants");
    stack.execute(&script);
    stack.set("postgres", "url", "postgres://nobody@127.0.0.1:1/none");
    stack.set("kafka", "bootstrap.servers", "127.0.0.1:1");
    assert_eq!(
        masked(&stack, &script),
        masked(&stack, &Job::run(&stack, &["init", "--print"])).replace("127.0.0.1:1", "KAFKA")
    );
}

const FIXTURE: &str = "client_id,restaurant_id\na,r1\nb,r1\n";

/// A stack whose servers are out of reach, with campaigns and subscriptions in files.
fn offline(name: &str) -> Stack {
    let mut stack = Stack::new(name);
    stack.set("postgres", "url", "postgres://nobody@127.0.0.1:1/none");
    stack.set("kafka", "bootstrap.servers", "127.0.0.1:1");
    let campaign = |n, to: &str| Campaign { content: "dessert".into(), ..Campaign::new(n, to) };
    let lines = [
        campaign(1, "r1").json(),
        campaign(2, "r1").expired().json(),
        campaign(3, "r2").json(),
        String::new(),
        "{\"restaurant_id\": 7}".into(),
    ];
    fs::write(stack.directory.join("campaigns.jsonl"), lines.join("\n")).expect("the directory is ours");
    fs::write(stack.directory.join("subscribers.csv"), FIXTURE).expect("the directory is ours");
    stack
}

#[test]
fn preview_tries_the_sql_with_no_server() {
    let stack = offline("preview_files");
    let lookup = "--lookup-file=subscribers_restaurants=subscribers.csv";
    let (code, text) = said(&stack, &["preview", "campaigns.jsonl", lookup, "--now", "1700000000"]);
    assert_eq!(code, 0, "{text}");
    assert_snapshot!(text, @r"
    4 messages came in, 3 can be read
    +------+---------------+--------------------------------------+----------------------+-----------------------+----------------------------+-----------------------------+---------------------------+------------------+
    | line | restaurant_id | adv_campaign_id                      | adv_campaign_content | adv_campaign_owner    | adv_campaign_owner_contact | adv_campaign_datetime_start | adv_campaign_datetime_end | datetime_created |
    +------+---------------+--------------------------------------+----------------------+-----------------------+----------------------------+-----------------------------+---------------------------+------------------+
    | 1    | r1            | 00000001-0000-4000-9000-426614174003 | dessert              | Ivanov Ivan Ivanovich | iiivanov@restaurant.ru     | 1659203516                  | 2659207116                | 1659131516       |
    | 2    | r1            | 00000002-0000-4000-9000-426614174003 | dessert              | Ivanov Ivan Ivanovich | iiivanov@restaurant.ru     | 1659203516                  | 1659203517                | 1659131516       |
    | 3    | r2            | 00000003-0000-4000-9000-426614174003 | dessert              | Ivanov Ivan Ivanovich | iiivanov@restaurant.ru     | 1659203516                  | 2659207116                | 1659131516       |
    +------+---------------+--------------------------------------+----------------------+-----------------------+----------------------------+-----------------------------+---------------------------+------------------+

    1 dead letter
    +------+--------+-----------------+---------------------------------------+
    | line | stage  | field           | reason                                |
    +------+--------+-----------------+---------------------------------------+
    | 5    | decode | $.restaurant_id | expected a string, found the number 7 |
    +------+--------+-----------------+---------------------------------------+

    2 triggers
    +---------------+--------------------------------------+----------------------+-----------------------+----------------------------+-----------------------------+---------------------------+-----------+------------------+--------------------------+
    | restaurant_id | adv_campaign_id                      | adv_campaign_content | adv_campaign_owner    | adv_campaign_owner_contact | adv_campaign_datetime_start | adv_campaign_datetime_end | client_id | datetime_created | trigger_datetime_created |
    +---------------+--------------------------------------+----------------------+-----------------------+----------------------------+-----------------------------+---------------------------+-----------+------------------+--------------------------+
    | r1            | 00000001-0000-4000-9000-426614174003 | dessert              | Ivanov Ivan Ivanovich | iiivanov@restaurant.ru     | 1659203516                  | 2659207116                | a         | 1659131516       | 1700000000               |
    | r1            | 00000001-0000-4000-9000-426614174003 | dessert              | Ivanov Ivan Ivanovich | iiivanov@restaurant.ru     | 1659203516                  | 2659207116                | b         | 1659131516       | 1700000000               |
    +---------------+--------------------------------------+----------------------+-----------------------+----------------------------+-----------------------------+---------------------------+-----------+------------------+--------------------------+

    +----------------------------------+----------+
    | outcome                          | messages |
    +----------------------------------+----------+
    | triggered                        | 1        |
    | not_started                      | 0        |
    | expired                          | 1        |
    | no_match:subscribers_restaurants | 1        |
    | dead_letter                      | 1        |
    +----------------------------------+----------+
    ");
    let (code, text) = said(&stack, &["preview", "campaigns.jsonl", lookup, "--now", "1700000000", "--json"]);
    assert_eq!(code, 0, "{text}");
    assert_snapshot!(text, @r#"
    {"restaurant_id":"r1","adv_campaign_id":"00000001-0000-4000-9000-426614174003","adv_campaign_content":"dessert","adv_campaign_owner":"Ivanov Ivan Ivanovich","adv_campaign_owner_contact":"iiivanov@restaurant.ru","adv_campaign_datetime_start":1659203516,"adv_campaign_datetime_end":2659207116,"client_id":"a","datetime_created":1659131516,"trigger_datetime_created":1700000000}
    {"restaurant_id":"r1","adv_campaign_id":"00000001-0000-4000-9000-426614174003","adv_campaign_content":"dessert","adv_campaign_owner":"Ivanov Ivan Ivanovich","adv_campaign_owner_contact":"iiivanov@restaurant.ru","adv_campaign_datetime_start":1659203516,"adv_campaign_datetime_end":2659207116,"client_id":"b","datetime_created":1659131516,"trigger_datetime_created":1700000000}
    dead letter: line 5: $.restaurant_id: expected a string, found the number 7
    4 messages: triggered 1, not_started 0, expired 1, no_match:subscribers_restaurants 1, dead_letter 1
    "#);
    let (code, text) = said(&stack, &["preview", lookup, "--lookup", "subscribers_restaurants", "--limit", "1"]);
    assert_eq!(code, 0, "{text}");
    assert_snapshot!(text, @r"
    Lookup table subscribers_restaurants: 2 rows, 68 B in memory (the first one shown)
    +-----------+---------------+
    | client_id | restaurant_id |
    +-----------+---------------+
    | a         | r1            |
    +-----------+---------------+
    ");
    let (code, text) = said(&stack, &["preview", "--lookup", "subscriptions"]);
    assert_eq!(code, 2, "{text}");
    assert_snapshot!(text, @r#"
    error: --lookup: there is no lookup table "subscriptions"
    what to do: name one of subscribers_restaurants: the files in lookups/
    "#);
}

#[test]
fn preview_shows_what_the_live_topic_would_trigger_and_writes_nothing() {
    let stack = Stack::new("preview_live");
    stack.subscribe([(client(1), restaurant(1)), (client(2), restaurant(1)), (client(2), restaurant(1))]);
    let old = (0..30).map(|n| Message::of(Campaign::new(n, restaurant(9)).json()).partition(n as i32 % 3));
    stack.produce(old);
    let new = [Campaign::new(31, restaurant(1)).json(), sample().to_owned(), "not JSON".to_owned()];
    std::thread::sleep(Duration::from_millis(5));
    stack.produce(new.map(|value| Message::of(value).partition(1)));
    let args = ["preview", "--from-kafka", "3", "--lookup", "subscribers_restaurants"];
    let (code, text) = said(&stack, &args);
    assert_eq!(code, 0, "{text}");
    for wanted in [
        "3 messages came in, 2 can be read",
        "1 dead letter",
        "2 triggers",
        "Lookup table subscribers_restaurants: 2 rows",
    ] {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    let json = Job::run(&stack, &["preview", "--from-kafka", "100", "--json", "--now", "1700000000"]);
    let mut lines: Vec<&str> = json.lines().collect();
    lines.sort_unstable();
    let expected = [1, 2].map(|n| Campaign::new(31, restaurant(1)).trigger(&client(n), 1_700_000_000));
    assert_eq!(lines, expected);

    assert_eq!(stack.number("SELECT count(*) FROM public.subscribers_feedback"), 0);
    assert_eq!(stack.number("SELECT count(*) FROM pg_namespace WHERE nspname = 'dinnerbell'"), 0);
    assert!(stack.read_triggers().is_empty() && stack.read_dead_letters().is_empty());
    assert!(!groups(&stack).contains(&stack.group));
}

#[test]
fn preview_leaves_out_a_message_that_the_table_would_refuse() {
    let stack = Stack::new("preview_refused");
    stack.subscribe([(client(1), restaurant(1))]);
    let bad = Campaign { content: "a\0b".into(), ..Campaign::new(1, restaurant(1)) };
    let lines = [bad.json(), Campaign::new(2, restaurant(1)).json()].join("\n");
    fs::write(stack.directory.join("campaigns.jsonl"), lines).expect("the directory is ours");
    let text = Job::run(&stack, &["preview", "campaigns.jsonl"]);
    for wanted in ["2 messages came in, all can be read", "1 dead letter", "U+0000", "1 trigger\n"] {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
}
