//! Subscriptions that change while the job runs.

use crate::support::{Campaign, Job, Message, PATIENCE, Stack, Witness, client, restaurant, stop, taken, wait_until};

fn rows_in_memory(job: &Job) -> f64 {
    job.metric("dinnerbell_lookup_rows", r#"lookup="subscribers_restaurants""#)
}

/// The clients that campaign `n` rang for.
fn rung(stack: &Stack, n: usize) -> usize {
    let id = Campaign::new(n, restaurant(1)).adv_campaign_id;
    Witness::DOCUMENTED.rows(stack).iter().filter(|row| row.contains(&id)).count()
}

#[test]
fn a_new_subscriber_is_seen_and_a_failed_refresh_keeps_the_old_ones() {
    let mut stack = Stack::new("refresh");
    stack.set("lookup", "refresh", "1s");
    stack.subscribe([(client(1), restaurant(1))]);
    let mut job = Job::spawn(&stack, &["run"]);
    let mut sent = 0;
    let mut announce = |job: &mut Job| {
        sent += 1;
        stack.produce([Message::of(Campaign::new(sent, restaurant(1)).json())]);
        taken(job, sent);
        rung(&stack, sent)
    };
    assert_eq!(announce(&mut job), 1);
    assert_eq!(rows_in_memory(&job), 1.0);

    stack.subscribe([(client(2), restaurant(1))]);
    wait_until("the new subscriber is in memory", PATIENCE, || rows_in_memory(&job) == 2.0);
    assert_eq!(announce(&mut job), 2);

    stack.execute("ALTER TABLE subscribers_restaurants RENAME TO away");
    wait_until("a refresh has failed", PATIENCE, || job.stderr().contains("the lookup refresh failed"));
    assert_eq!(announce(&mut job), 2);
    assert!(job.is_ready(), "what is in memory still serves");
    // The age goes on growing while nothing fresh comes.
    wait_until("the age tells", PATIENCE, || job.metric("dinnerbell_lookup_age_seconds", "") > 2.0);

    stack.execute("ALTER TABLE away RENAME TO subscribers_restaurants");
    stack.execute("DELETE FROM subscribers_restaurants");
    stack.subscribe((3..8).map(|n| (client(n), restaurant(1))));
    wait_until("the table is fresh again", PATIENCE, || rows_in_memory(&job) == 5.0);
    assert_eq!(announce(&mut job), 5);
    let told = stop(job);
    assert_eq!(told.matches("the lookup refresh failed").count(), 1, "{told}");
    assert_eq!(told.matches("the lookup tables are fresh again").count(), 1, "{told}");
}
