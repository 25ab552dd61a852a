//! SQL that fails on what a message holds, and SQL that fails whatever it holds.

use crate::support::{Campaign, Job, Message, PATIENCE, Stack, Witness, client, restaurant, stop, taken};

/// Replaces the owner's column of the documented query.
fn with_owner(stack: &Stack, expression: &str) {
    let sql = stack.read_sql("triggers.sql");
    let changed = sql.replace("c.adv_campaign_owner,", &format!("{expression} AS adv_campaign_owner,"));
    assert_ne!(sql, changed);
    stack.write_sql("triggers.sql", &changed);
}

fn ring(n: usize, owner: &str) -> Message {
    Message::of(Campaign { owner: owner.to_owned(), ..Campaign::new(n, restaurant(1)) }.json()).partition(0)
}

/// Runs a job that must halt; what it said.
fn halted(stack: &Stack) -> String {
    let mut job = Job::spawn(stack, &["run"]);
    assert_eq!(job.wait(PATIENCE).code(), Some(1), "{}", job.stderr());
    assert_eq!(stack.number("SELECT coalesce(sum(next_offset), 0) FROM dinnerbell.progress"), 0);
    assert!(stack.read_triggers().is_empty() && stack.read_dead_letters().is_empty());
    job.stderr()
}

#[test]
fn values_on_which_the_sql_fails_are_dead_letters() {
    // A division by zero, a function that refuses its argument, a cast: three kinds of errors for the engine.
    for (name, expression, good, bad) in [
        ("by_zero", "CAST(10 / CAST(c.adv_campaign_owner AS BIGINT) AS VARCHAR)", "65", "0"),
        ("function", "CAST(to_timestamp(c.adv_campaign_owner) AS VARCHAR)", "2022-07-31", "soon"),
        ("character", "chr(CAST(c.adv_campaign_owner AS BIGINT))", "65", "-7"),
    ] {
        let stack = Stack::new(name);
        with_owner(&stack, expression);
        stack.subscribe([(client(1), restaurant(1)), (client(2), restaurant(1))]);
        stack.produce((0..50).map(|n| ring(n, if n % 20 == 3 { bad } else { good })));
        let mut job = Job::spawn(&stack, &["run"]);
        taken(&mut job, 50);
        assert_eq!(job.metric("dinnerbell_dead_letters_total", r#"stage="transform""#), 3.0);
        stop(job);
        let letters = stack.read_dead_letters();
        let offsets: Vec<_> = letters.iter().map(|letter| letter.header("dinnerbell.offset").expect("it")).collect();
        assert_eq!(offsets, ["3", "23", "43"], "{name}");
        assert!(letters.iter().all(|letter| letter.header("dinnerbell.stage") == Some("transform")));
        assert_eq!(Witness::DOCUMENTED.rows(&stack).len(), 47 * 2, "{name}");
    }
}

#[test]
fn sql_that_fails_whatever_the_messages_hold_halts_and_keeps_them() {
    let stack = Stack::new("always_fails");
    let good = stack.read_sql("triggers.sql");
    // Fails on a row of the lookup table: no message is to blame.
    stack.write_sql(
        "lookups/subscribers_restaurants.sql",
        "SELECT client_id, restaurant_id, 0::int8 AS zero FROM subscribers_restaurants",
    );
    with_owner(&stack, "CAST((SELECT max(1 / t.zero) FROM subscribers_restaurants t) AS VARCHAR)");
    stack.subscribe([(client(1), restaurant(1))]);
    stack.produce((0..5).map(|n| ring(n, "Ann")));
    let told = halted(&stack);
    assert!(told.contains("the SQL fails whatever the messages hold"), "{told}");
    assert!(told.contains("the messages are kept"), "{told}");

    stack.write_sql("triggers.sql", &good);
    let mut job = Job::spawn(&stack, &["run"]);
    taken(&mut job, 5);
    stop(job);
    assert_eq!(Witness::DOCUMENTED.rows(&stack).len(), 5);
}

#[test]
fn an_aggregate_that_fails_on_a_message_halts_and_says_why() {
    let mut stack = Stack::new("aggregate_fails");
    stack.write_sql(
        "triggers.sql",
        "SELECT restaurant_id, max(10 / CAST(adv_campaign_owner AS BIGINT)) AS most FROM campaigns GROUP BY restaurant_id",
    );
    stack.execute("CREATE TABLE totals (restaurant_id text NOT NULL, most int8)");
    stack.set("sink.postgres", "table", "public.totals");
    stack.produce([ring(0, "5"), ring(1, "0")]);
    let told = halted(&stack);
    assert!(told.contains("this SELECT does not tell on which"), "{told}");
    assert!(told.contains("TRY_CAST, NULLIF"), "{told}");
}
