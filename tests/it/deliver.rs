//! Campaigns in, triggers out: what both sinks hold.

use crate::support::{Campaign, Job, Message, PATIENCE, Stack, Witness, client, now, restaurant, sample, stop, taken};

const SAMPLE_CLIENT: &str = "023e4567-e89b-12d3-a456-426614174000";
const SAMPLE_RESTAURANT: &str = "123e4567-e89b-12d3-a456-426614174000";

/// As a newcomer would: the documented message in by kcat, what comes out seen by kcat and psql.
#[test]
fn the_sample_reaches_both_sinks_byte_for_byte() {
    let stack = Stack::new("sample");
    stack.psql(&format!(
        "INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('{SAMPLE_CLIENT}', '{SAMPLE_RESTAURANT}')"
    ));
    stack.psql("SELECT setval('subscribers_feedback_id_seq', 41)");
    let before = now();
    let mut job = Job::spawn(&stack, &["run"]);
    stack.kcat(&format!("-P -t {} -K:", stack.campaigns), &format!("first_message:{}\n", sample()));
    taken(&mut job, 1);
    let after = now();
    stop(job);

    let row = stack.psql("SELECT * FROM public.subscribers_feedback");
    let made: i64 = row.trim_end().split('|').nth(10).expect("11 columns").parse().expect("a number");
    assert!((before..=after).contains(&made), "{before} <= {made} <= {after}");
    assert_eq!(
        row,
        format!(
            "42|123e4567-e89b-12d3-a456-426614174000|123e4567-e89b-12d3-a456-426614174003|first campaign|\
             Ivanov Ivan Ivanovich|iiivanov@restaurant.ru|1659203516|2659207116|1659131516|\
             023e4567-e89b-12d3-a456-426614174000|{made}|\n"
        )
    );
    assert_eq!(stack.psql("SELECT feedback IS NULL FROM public.subscribers_feedback"), "t\n");

    // Length of the key (-1: null), number of headers, length of the value, the value.
    let documented = format!(
        r#"{{"restaurant_id":"123e4567-e89b-12d3-a456-426614174000","adv_campaign_id":"123e4567-e89b-12d3-a456-426614174003","adv_campaign_content":"first campaign","adv_campaign_owner":"Ivanov Ivan Ivanovich","adv_campaign_owner_contact":"iiivanov@restaurant.ru","adv_campaign_datetime_start":1659203516,"adv_campaign_datetime_end":2659207116,"client_id":"023e4567-e89b-12d3-a456-426614174000","datetime_created":1659131516,"trigger_datetime_created":{made}}}"#
    );
    let read = stack.kcat(&format!("-C -t {} -e -q -f %K|%h|%S|%s\\n", stack.triggers), "");
    assert_eq!(read, format!("-1||{}|{documented}\n", documented.len()));
    assert!(stack.read_dead_letters().is_empty());
}

#[test]
fn one_client_gets_one_trigger_however_often_it_subscribed() {
    let stack = Stack::new("duplicates");
    let pair = |c: usize, r: usize| (client(c), restaurant(r));
    stack.subscribe([pair(1, 1), pair(1, 1), pair(2, 1), pair(1, 2), pair(1, 1), pair(2, 1)]);
    let campaigns = [Campaign::new(1, restaurant(1)), Campaign::new(2, restaurant(2))];
    // The same campaign in two messages is two announcements.
    stack.produce(campaigns.iter().chain([&campaigns[1]]).map(|campaign| Message::of(campaign.json())));
    let mut job = Job::spawn(&stack, &["run"]);
    taken(&mut job, 3);
    let rows = Witness::DOCUMENTED.rows(&stack);
    let made =
        |row: &String| row.rsplit(':').next().and_then(|end| end.trim_end_matches('}').parse().ok()).expect("a time");
    let mut expected = vec![
        campaigns[0].trigger(&client(1), made(&rows[0])),
        campaigns[0].trigger(&client(2), made(&rows[1])),
        campaigns[1].trigger(&client(1), made(&rows[2])),
        campaigns[1].trigger(&client(1), made(&rows[3])),
    ];
    expected.sort();
    assert_eq!(rows, expected);
    stop(job);
}

/// Progress is what a new start goes by: nothing is made again, and what came meanwhile is.
#[test]
fn a_job_that_starts_again_goes_on_where_it_stopped() {
    let stack = Stack::new("again");
    stack.subscribe([(client(1), restaurant(1))]);
    for round in 0..3 {
        let messages = (0..5).map(|n| Campaign::new(round * 5 + n, restaurant(1)));
        stack.produce(messages.map(|campaign| Message::of(campaign.json())));
        let mut job = Job::spawn(&stack, &["run"]);
        taken(&mut job, 5);
        stop(job);
        assert_eq!(Witness::DOCUMENTED.rows(&stack).len(), 5 * (round + 1));
        assert_eq!(stack.number("SELECT sum(next_offset) FROM dinnerbell.progress"), 5 * (round as i64 + 1));
    }
    // Nothing to do is no reason to fail, either.
    let job = Job::spawn(&stack, &["run"]);
    crate::support::wait_until("ready", PATIENCE, || job.is_ready());
    stop(job);
    assert_eq!(Witness::DOCUMENTED.rows(&stack).len(), 15);
}
