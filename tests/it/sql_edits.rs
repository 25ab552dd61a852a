//! What another set of SQL files makes of the same binary.

use std::collections::BTreeSet;
use std::fs;

use crate::support::{Campaign, Job, Message, PATIENCE, Stack, Witness, client, restaurant, stop, taken, wait_until};

#[test]
fn sql_edited_between_two_runs_is_what_the_second_run_does() {
    let stack = Stack::new("edited");
    stack.subscribe([(client(1), restaurant(1))]);
    let ring = |n: usize, owner: &str| {
        let campaign = Campaign { owner: owner.to_owned(), ..Campaign::new(n, restaurant(1)) };
        Message::of(campaign.json())
    };
    stack.produce([ring(1, "Ann"), ring(2, "Ben")]);
    let mut job = Job::spawn(&stack, &["run"]);
    taken(&mut job, 2);
    stop(job);
    let first = Witness::DOCUMENTED.rows(&stack);
    assert_eq!(first.len(), 2);

    let sql = stack
        .read_sql("triggers.sql")
        .replace("c.adv_campaign_owner,", "upper(c.adv_campaign_owner) AS adv_campaign_owner,");
    stack.write_sql("triggers.sql", &format!("{sql}  AND c.adv_campaign_owner <> 'Ben' -- outcome: not_ben\n"));
    stack.produce([ring(3, "Ann"), ring(4, "Ben")]);
    let mut job = Job::spawn(&stack, &["run"]);
    taken(&mut job, 2);
    assert_eq!(job.metric("dinnerbell_messages_total", r#"outcome="not_ben""#), 1.0);
    stop(job);
    let both = Witness::DOCUMENTED.rows(&stack);
    assert_eq!(both.len(), 3);
    assert!(first.iter().all(|row| both.contains(row)), "what was delivered stays");
    assert_eq!(both.iter().filter(|row| row.contains(r#""adv_campaign_owner":"ANN""#)).count(), 1);
}

/// Orders and couriers: other fields, types, names, nulls, and records with a key. Not one line of code knows of it.
fn another_mission(name: &str, key: &str) -> Stack {
    let mut stack = Stack::new(name);
    fs::remove_file(stack.directory.join("sql/lookups/subscribers_restaurants.sql")).expect("the mission's own");
    stack.write_sql(
        "campaigns.sql",
        "CREATE TABLE campaigns (number BIGINT NOT NULL, city VARCHAR, weight DOUBLE, express BOOLEAN, due TIMESTAMP)",
    );
    stack.write_sql("lookups/couriers.sql", "SELECT name, town, age FROM couriers WHERE NOT away");
    stack.write_sql(
        "triggers.sql",
        "SELECT o.number AS order_number, c.name AS courier, o.weight * 2 AS price, o.express, o.due, c.age
         FROM campaigns o LEFT JOIN couriers c ON c.town = o.city
         WHERE o.weight IS NULL OR o.weight < 100 -- outcome: too_heavy",
    );
    stack.execute(
        "CREATE TABLE couriers (name text, town text, age int2, away bool NOT NULL DEFAULT false);
         INSERT INTO couriers VALUES ('Ann', 'Ulm', 30), ('Ben', 'Ulm', NULL), ('Cid', 'Bonn', 40), ('Dee', 'Ulm', 9);
         UPDATE couriers SET away = true WHERE name = 'Dee';
         CREATE SCHEMA trade;
         CREATE TABLE trade.jobs (age int4, courier varchar(20), order_number int8 NOT NULL, due timestamp, price float8,
                                  express bool, note text DEFAULT 'none', id uuid DEFAULT gen_random_uuid())",
    );
    stack.set("sink.postgres", "table", "trade.jobs");
    stack.set("sink.kafka", "key", key);
    stack.produce(
        [
            r#"{"number": 1, "city": "Ulm", "weight": 1.5, "express": true, "due": "2022-07-31T22:00:28Z"}"#,
            r#"{"number": 2, "city": "Rome", "weight": null}"#,
            r#"{"number": 3, "weight": 250}"#,
            r#"{"number": 4, "city": "Bonn", "express": false}"#,
        ]
        .map(Message::of),
    );
    stack
}

const JOBS: Witness = Witness { table: "trade.jobs", columns: "order_number, courier, price, express, due, age" };

#[test]
fn another_mission_is_another_set_of_files() {
    let stack = another_mission("mission", "courier");
    let mut job = Job::spawn(&stack, &["run"]);
    taken(&mut job, 4);
    for (outcome, messages) in [("triggered", 3.0), ("too_heavy", 1.0), ("dead_letter", 0.0)] {
        assert_eq!(job.metric("dinnerbell_messages_total", &format!("outcome=\"{outcome}\"")), messages, "{outcome}");
    }
    stop(job);
    let mut records: Vec<(Option<Vec<u8>>, String)> =
        stack.read_triggers().iter().map(|record| (record.key.clone(), record.text().to_owned())).collect();
    records.sort_by(|a, b| a.1.cmp(&b.1));
    let key = |name: &str| Some(name.as_bytes().to_vec());
    // A null field is left out, a null key is null.
    assert_eq!(
        records,
        [
            (key("Ann"), r#"{"order_number":1,"courier":"Ann","price":3.0,"express":true,"due":"2022-07-31T22:00:28.000Z","age":30}"#.to_owned()),
            (key("Ben"), r#"{"order_number":1,"courier":"Ben","price":3.0,"express":true,"due":"2022-07-31T22:00:28.000Z"}"#.to_owned()),
            (None, r#"{"order_number":2}"#.to_owned()),
            (key("Cid"), r#"{"order_number":4,"courier":"Cid","express":false,"age":40}"#.to_owned()),
        ]
    );
    assert_eq!(
        stack.psql(
            "SELECT order_number, courier, price, express, due, age, note, id IS NULL FROM trade.jobs ORDER BY 1, 2"
        ),
        "1|Ann|3|t|2022-07-31 22:00:28|30|none|f\n1|Ben|3|t|2022-07-31 22:00:28||none|f\n2||||||none|f\n4|Cid||f||40|none|f\n"
    );
    assert!(JOBS.query().contains("trade.jobs"));
}

#[test]
fn the_key_may_be_a_number() {
    let stack = another_mission("number_key", "order_number");
    let mut job = Job::spawn(&stack, &["run"]);
    taken(&mut job, 4);
    stop(job);
    let mut keys: Vec<_> = stack.read_triggers().into_iter().map(|record| record.key.expect("a key")).collect();
    keys.sort();
    assert_eq!(keys, [b"1", b"1", b"2", b"4"]);
}

/// Rows that no longer belong to one message: their messages are `processed`.
#[test]
fn an_aggregate_reports_its_messages_as_processed() {
    let mut stack = Stack::new("aggregate");
    stack.write_sql(
        "triggers.sql",
        "SELECT restaurant_id, count(*) AS campaigns, max(datetime_created) AS latest FROM campaigns GROUP BY restaurant_id",
    );
    stack.execute("CREATE TABLE totals (restaurant_id text NOT NULL, campaigns int4 NOT NULL, latest int8)");
    stack.set("sink.postgres", "table", "public.totals");
    let messages = (0..30).map(|n| Message::of(Campaign::new(n, restaurant(n % 3)).json()));
    stack.produce(messages.chain([Message::of("bad")]));
    let mut job = Job::spawn(&stack, &["run"]);
    taken(&mut job, 31);
    assert_eq!(job.metric("dinnerbell_messages_total", r#"outcome="processed""#), 30.0);
    assert_eq!(job.metric("dinnerbell_messages_total", r#"outcome="dead_letter""#), 1.0);
    stop(job);
    let rows = Witness { table: "totals", columns: "restaurant_id, campaigns, latest" }.rows(&stack);
    assert!(rows.len() >= 3, "{rows:?}");
    // How the messages fall into batches is open; their sum is not.
    assert_eq!(
        stack.psql("SELECT restaurant_id, sum(campaigns) FROM totals GROUP BY 1 ORDER BY 1"),
        (0..3).map(|n| format!("{}|10\n", restaurant(n))).collect::<String>()
    );
}

/// A query that wants more memory than it may have stops the job, not the machine; nothing is lost by it.
#[test]
fn a_cross_join_that_explodes_is_stopped_and_its_batch_is_kept() {
    let mut stack = Stack::new("explode");
    stack.set("transform", "memory", "16MiB");
    stack.subscribe((0..1000).map(|n| (client(n), restaurant(n % 10))));
    let good = stack.read_sql("triggers.sql");
    let bad = good.replace(
        "JOIN subscribers_restaurants s ON s.restaurant_id = c.restaurant_id",
        "CROSS JOIN subscribers_restaurants s CROSS JOIN subscribers_restaurants t",
    );
    stack.write_sql("triggers.sql", &format!("{bad}\nORDER BY t.client_id, s.client_id"));
    stack.produce((0..3).map(|n| Message::of(Campaign::new(n, restaurant(n)).json())));
    let mut job = Job::spawn(&stack, &["run"]);
    assert_eq!(job.wait(PATIENCE).code(), Some(1), "{}", job.stderr());
    let told = job.stderr();
    assert!(told.contains("one run needs more than the 16 MiB it may hold"), "{told}");
    assert!(told.contains("let the query hold less"), "{told}");
    kept_and_delivered_once_mended(&stack, &good, 3, 300);
}

/// Nothing has happened yet; with the good query, everything does, once.
fn kept_and_delivered_once_mended(stack: &Stack, good: &str, messages: usize, rows: usize) {
    assert_eq!(stack.number("SELECT coalesce(sum(next_offset), 0) FROM dinnerbell.progress"), 0);
    assert_eq!(Witness::DOCUMENTED.rows(stack), Vec::<String>::new());
    stack.write_sql("triggers.sql", good);
    let mut job = Job::spawn(stack, &["run"]);
    taken(&mut job, messages);
    stop(job);
    let found = Witness::DOCUMENTED.timeless(stack);
    assert_eq!((found.len(), BTreeSet::from_iter(&found).len()), (rows, rows));
    wait_until("progress is durable", PATIENCE, || {
        stack.number("SELECT sum(next_offset) FROM dinnerbell.progress") == messages as i64
    });
}

/// These hold next to nothing and would go on for ever: only the number of their rows tells.
#[test]
fn joins_that_multiply_without_end_are_stopped_and_their_batch_is_kept() {
    let mut stack = Stack::new("multiply");
    stack.set("transform", "max_rows", 100_000);
    stack.subscribe((0..1000).map(|n| (client(n), restaurant(n % 10))));
    let good = stack.read_sql("triggers.sql");
    let join = "JOIN subscribers_restaurants s ON s.restaurant_id = c.restaurant_id";
    let line = 1 + good.lines().position(|line| line.contains(join)).expect("the join");
    stack.produce((0..3).map(|n| Message::of(Campaign::new(n, restaurant(n)).json())));
    for (from, order) in [
        ("CROSS JOIN subscribers_restaurants s CROSS JOIN subscribers_restaurants t", ""),
        ("JOIN subscribers_restaurants s ON 1 = 1 JOIN subscribers_restaurants t ON t.client_id <> s.client_id", ""),
        (
            "CROSS JOIN subscribers_restaurants s CROSS JOIN subscribers_restaurants t",
            "ORDER BY c.datetime_created LIMIT 3",
        ),
    ] {
        stack.write_sql("triggers.sql", &format!("{}\n{order}", good.replace(join, from)));
        let mut job = Job::spawn(&stack, &["run"]);
        assert_eq!(job.wait(PATIENCE).code(), Some(1), "{}", job.stderr());
        let told = job.stderr();
        assert!(told.contains(&format!("triggers.sql:{line}:")), "{told}");
        assert!(told.contains("makes more than the 100000 rows it may make in a join"), "{told}");
        assert!(told.contains("raise [transform] max_rows"), "{told}");
        assert_eq!(Witness::DOCUMENTED.rows(&stack), Vec::<String>::new());
    }
    kept_and_delivered_once_mended(&stack, &good, 3, 300);
}

/// Each of these campaigns is honest, and all of them together are more than one commit may make.
#[test]
fn campaigns_that_are_too_many_rows_together_go_a_few_at_a_time() {
    let mut stack = Stack::new("a_few");
    stack.set("transform", "max_rows", 1_000);
    stack.subscribe((0..1000).map(|n| (client(n), restaurant(n % 10))));
    let bad = |n: usize| {
        if n % 50 == 7 { Message::of("bad") } else { Message::of(Campaign::new(n, restaurant(n % 10)).json()) }
    };
    stack.produce((0..90).map(|n| bad(n).partition(n as i32 % 3)));
    let mut job = Job::spawn(&stack, &["run"]);
    taken(&mut job, 90);
    assert_eq!(job.metric("dinnerbell_messages_total", r#"outcome="triggered""#), 88.0);
    assert_eq!(job.metric("dinnerbell_messages_total", r#"outcome="dead_letter""#), 2.0);
    assert!(job.metric("dinnerbell_commits_total", "") > 2.0, "8,800 rows, at most 1,000 of a partition in a commit");
    let told = stop(job);
    assert!(told.contains("taking fewer messages at once"), "{told}");
    let rows = Witness::DOCUMENTED.timeless(&stack);
    assert_eq!((rows.len(), BTreeSet::from_iter(&rows).len()), (8_800, 8_800));
    let letters: BTreeSet<_> =
        stack.read_dead_letters().iter().map(|letter| letter.header("dinnerbell.offset").map(str::to_owned)).collect();
    assert_eq!((stack.read_dead_letters().len(), letters.len()), (2, 2));
}
