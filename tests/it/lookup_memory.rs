//! What a lookup table costs: memory at rest and during a refresh, and the time to load it beside a bare COPY.
//!
//! Of 200,000 subscriptions, or as many as DINNERBELL_LOOKUP_ROWS says: the bounds are those of ten million.

use std::time::{Duration, Instant};

use crate::support::{Job, Stack, block_on, connect, stop, wait_until};

const TABLE: &str = r#"lookup="subscribers_restaurants""#;

/// For ten million rows, and an unoptimised build.
const PATIENCE: Duration = Duration::from_secs(600);

fn rows() -> u64 {
    std::env::var("DINNERBELL_LOOKUP_ROWS").map_or(200_000, |rows| rows.parse().expect("a number"))
}

/// `subscriptions` in an order of their own, each twice for one in a hundred; two ids in a hundred are no canonical
/// UUIDs. `id` makes an id of the number `n`.
fn fill(stack: &Stack, subscriptions: u64, restaurants: u64) {
    let id = |n: &str, tail: &str| {
        format!(
            "CASE {n} % 200
               WHEN 3 THEN upper(to_hex({n} + 4000000000)) || '-E89B-12D3-A456-{tail}'
               WHEN 5 THEN to_hex({n}) || 'e89b12d3a456{tail}'
               WHEN 7 THEN 'ресторан «У {n}», ' || {n}
               WHEN 9 THEN '{{' || lpad(to_hex({n}), 8, '0') || '-e89b-12d3-a456-{tail}}}'
               ELSE lpad(to_hex({n}), 8, '0') || '-e89b-12d3-a456-{tail}' END"
        )
    };
    let (restaurant, client) = (id("r", "426614174000"), id("c", "426614174001"));
    stack.execute(&format!(
        "INSERT INTO subscribers_restaurants (restaurant_id, client_id)
         SELECT {restaurant}, {client}
         FROM (SELECT (i::int8 * 7919) % {restaurants} AS r, i AS c FROM generate_series(0, {subscriptions} - 1) i) s;
         INSERT INTO subscribers_restaurants (restaurant_id, client_id)
         SELECT restaurant_id, client_id FROM subscribers_restaurants WHERE id % 100 = 1;
         ANALYZE subscribers_restaurants"
    ));
}

/// The time that `COPY (query) TO STDOUT` takes, and its rows.
fn bare_copy(stack: &Stack) -> (Duration, u64) {
    let (url, query) = (stack.url.clone(), stack.read_sql("lookups/subscribers_restaurants.sql"));
    block_on(async move {
        use futures::TryStreamExt;
        let client = connect(&url).await;
        let began = Instant::now();
        let stream = client.copy_out(&format!("COPY ({query}) TO STDOUT")).await.expect("COPY starts");
        let rows = stream.try_fold(0, async |rows, _| Ok(rows + 1)).await.expect("COPY ends");
        (began.elapsed(), rows)
    })
}

/// A line of /proc/PID/status, in MB of a million bytes.
fn memory(job: &Job, line: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", job.id())).expect("the job runs");
    let line = status.lines().find_map(|found| found.strip_prefix(line)).expect("Linux says so");
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024 / 1_000_000
}

#[test]
fn a_lookup_table_and_its_refresh_fit_into_memory() {
    let rows = rows();
    let mut stack = Stack::new("lookup_memory");
    fill(&stack, rows, (rows / 1000).max(1));
    bare_copy(&stack);
    let (copied, distinct) = bare_copy(&stack);
    assert_eq!(distinct, rows, "DISTINCT took away what was there twice");

    stack.set("lookup", "refresh", "3s");
    let began = Instant::now();
    let job = Job::spawn(&stack, &["run"]);
    wait_until("ready", PATIENCE, || job.is_ready());
    let (ready, idle, loading) = (began.elapsed(), memory(&job, "VmRSS"), memory(&job, "VmHWM"));
    assert_eq!(job.metric("dinnerbell_lookup_rows", TABLE), rows as f64);

    stack.subscribe([("another".to_owned(), "one".to_owned())]);
    wait_until("a refresh", PATIENCE, || job.metric("dinnerbell_lookup_rows", TABLE) == rows as f64 + 1.0);
    let (refreshed, most) = (memory(&job, "VmRSS"), memory(&job, "VmHWM"));
    println!(
        "{rows} rows: COPY {copied:.1?}, ready after {ready:.1?}; {loading} MB at most before the first message, \
         {idle} MB then, {most} MB at most by the refresh, {refreshed} MB after it"
    );
    let told = stop(job);
    println!("{}", told.lines().filter(|line| line.contains("lookups loaded")).collect::<String>());

    // A process without rows holds about 100 MB, an optimised one less. Ten million subscriptions may take it to 500,
    // their refresh to 900.
    assert!(idle <= 120 + 38 * rows / 1_000_000, "{idle} MB at rest");
    assert!(most <= 120 + 78 * rows / 1_000_000, "{most} MB during a refresh");
}
