//! Ten million subscriptions: resident memory and the time to load them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dinnerbell::config::Config;
use dinnerbell::job::setup::{self, Mission};
use dinnerbell::lookup;
use dinnerbell::postgres;
use futures::TryStreamExt;

use crate::Options;
use crate::encoded::runtime;
use crate::process::{Usage, forget_peak};
use crate::race::{Program, by_turns, fresh, verify};
use crate::report::{Bar, Report, median};
use crate::support::{Job, Message, Stack, wait_until};
use crate::watch::Watch;
use crate::workload::{Subscribers, UUID_CLIENTS, message};

/// As bench and memory bars have them: 10,000 restaurants of 1,000 subscribers.
const RESTAURANTS: usize = 10_000;
const SUBSCRIBERS: usize = 1_000;

/// Expired campaigns, enough to fill all queues and buffers more than once.
const BACKLOG: usize = 500_000;

/// Two ids in a hundred are free text, as in tables that were filled by hand once.
const MIXED_CLIENTS: &str = "CASE WHEN (r * 1000 + c) % 50 = 0 THEN 'imported client ' || r || '/' || c \
                             ELSE md5('c' || r || '.' || c)::uuid::text END";

/// No UUID among them.
const TEXT_CLIENTS: &str = "'client ' || md5('c' || r || '.' || c)";

/// The table as it is, without the shipped query's DISTINCT: the least that Postgres can be asked, so the most that
/// shows of the job.
const PLAIN_QUERY: &str = "SELECT restaurant_id, client_id FROM public.subscribers_restaurants";

fn with_table(name: &str, options: &Options, client: &str) -> Stack {
    let stack = Stack::new(name);
    let restaurants = ((RESTAURANTS as f64 * options.scale) as usize).max(1);
    Subscribers::Each { restaurants, subscribers: SUBSCRIBERS }.insert(&stack, client);
    stack
}

/// With the shipped query and its DISTINCT.
pub fn memory(options: &Options, report: &mut Report) {
    for (kind, client, twice, judged) in [
        ("98 % UUID ids", MIXED_CLIENTS, false, true),
        ("98 % UUID ids, each twice in the table", MIXED_CLIENTS, true, false),
        ("text ids", TEXT_CLIENTS, false, false),
    ] {
        let mut stack = with_table("memory", options, client);
        let rows = stack.number("SELECT count(*) FROM public.subscribers_restaurants");
        if twice {
            let again = "INSERT INTO public.subscribers_restaurants (restaurant_id, client_id) \
                         SELECT restaurant_id, client_id FROM public.subscribers_restaurants";
            stack.execute(again);
        }
        fresh(&mut stack, 0);
        stack.set("lookup", "refresh", "5s");
        let [idle, peak, worked] = resident(&stack, options);
        let bar = |limit: f64| if judged { Bar::AtMost(limit) } else { Bar::Told };
        report.bar(&format!("memory: resident with {rows} subscriptions ({kind})"), bar(500.0), idle, " MB");
        report.bar(&format!("memory: most while they are refreshed ({kind})"), bar(900.0), peak, " MB");
        report.bar(&format!("memory: resident after a backlog ({kind})"), Bar::Told, worked, " MB");
    }
    one_campaign(options, report);
}

/// Resident memory once all is loaded and used, the most during a refresh, and what stays after a backlog of messages.
fn resident(stack: &Stack, options: &Options) -> [f64; 3] {
    let program = Program::job(stack);
    let Program::Job(job) = &program else { unreachable!("it is a job") };
    // The index is built by the first batch that asks for it.
    stack.produce([message(0, 0, true)]);
    let read = |messages: usize| {
        wait_until("the campaigns", Duration::from_secs(120), || {
            job.metric("dinnerbell_messages_in_total", "") == messages as f64
        });
    };
    read(1);
    let idle = Usage::of(job.id()).rss;
    forget_peak(job.id());
    refresh_seen(job);
    let peak = Usage::of(job.id()).peak;
    let backlog = (BACKLOG as f64 * options.scale) as usize;
    stack.produce((0..backlog).map(|n| message(n, n % RESTAURANTS, false)));
    read(1 + backlog);
    [idle, peak, Usage::of(job.id()).rss]
}

/// Waits for a whole refresh that began after the call.
fn refresh_seen(job: &Job) {
    for _ in 0..2 {
        let age = || job.metric("dinnerbell_lookup_age_seconds", "");
        let mut last = age();
        wait_until("a refresh", Duration::from_secs(300), || {
            let now = age();
            let younger = now < last;
            last = now;
            younger
        });
    }
}

/// One campaign of every subscriber there is, on top of what the job holds anyway.
fn one_campaign(options: &Options, report: &mut Report) {
    let subscribers = ((10_000_000.0 * options.scale) as usize).max(1);
    let mut stack = Stack::new("one_campaign");
    Subscribers::Each { restaurants: 1, subscribers }.insert(&stack, UUID_CLIENTS);
    stack.set("lookup", "refresh", "never");
    fresh(&mut stack, 0);
    let mut program = Program::job(&stack);
    let watch = Watch::new(&stack);
    // One for a restaurant that nobody keeps: plans and index are there before the memory is looked at.
    let nobody: Vec<Message> = (0..3).map(|n| message(n, 1, true)).collect();
    stack.produce(nobody);
    watch.wait(3, || program.is_running());
    let idle = Usage::of(program.pid()).rss;
    forget_peak(program.pid());
    let began = Instant::now();
    stack.produce([message(3, 0, true)]);
    let end = watch.wait(4, || program.is_running());
    let peak = Usage::of(program.pid()).peak;
    drop(program);
    verify(&stack, subscribers as u64);
    let seconds = (end - began).as_secs_f64();
    report.figure(&format!(
        "one campaign of {subscribers} subscribers: {idle:.0} MB idle, {peak:.0} MB at most, {seconds:.1} s"
    ));
    report.bar("memory: one campaign of all subscribers, on top of idle", Bar::AtMost(200.0), peak - idle, " MB");
}

pub fn load(options: &Options, report: &mut Report) {
    let stack = with_table("load", options, UUID_CLIENTS);
    let config = Arc::new(Config::load(Some(&stack.config())).expect("the stack's settings"));
    let shipped = include_str!("../../sql/lookups/subscribers_restaurants.sql");
    for (kind, sql, bar) in [("as shipped", shipped, Bar::AtMost(1.2)), ("without DISTINCT", PLAIN_QUERY, Bar::Told)] {
        stack.write_sql("lookups/subscribers_restaurants.sql", sql);
        let (load, copy) = loads(&config, options.runs, kind);
        report.figure(&format!("load, {kind}: {load:.2} s, a bare COPY TO STDOUT {copy:.2} s"));
        report.bar(&format!("load, {kind}: against a bare COPY TO STDOUT of the same query"), bar, load / copy, "");
    }
}

/// Seconds that loading takes, and the bare COPY, each by turns first and second.
fn loads(config: &Arc<Config>, runs: usize, kind: &str) -> (f64, f64) {
    let mission = Mission::load(config).expect("the SQL");
    let query = &mission.files.lookups[0];
    let runtime = runtime();
    let (loads, copies) = by_turns(runs, |n, is_load| {
        let client = runtime.block_on(postgres::connect(&config.postgres, "bench")).expect("Postgres");
        let keys = runtime.block_on(setup::lookup_keys(config, &mission, &client)).expect("what the SQL joins by");
        let began = Instant::now();
        // The table is dropped behind the clock.
        let (rows, _table) = runtime.block_on(async {
            if is_load {
                let table = lookup::load(&client, query, &keys[&query.name], |_, _| {}).await.expect("a lookup table");
                return (table.rows, Some(table));
            }
            (bare(&client, &query.sql).await, None)
        });
        let seconds = began.elapsed().as_secs_f64();
        println!("  load {kind} {n}: {rows} rows in {seconds:.3} s, {}", if is_load { "loaded" } else { "bare COPY" });
        (rows, seconds)
    });
    assert!(loads.iter().all(|(rows, _)| *rows == copies[0].0), "rows of the COPYs and of the tables");
    let middle = |runs: Vec<(u64, f64)>| median(runs.into_iter().map(|(_, seconds)| seconds));
    (middle(loads), middle(copies))
}

/// The query's binary COPY, read and thrown away; its rows.
async fn bare(client: &tokio_postgres::Client, sql: &str) -> u64 {
    let stream = client.copy_out(&format!("COPY ({sql}) TO STDOUT (FORMAT binary)")).await.expect("COPY starts");
    let mut stream = std::pin::pin!(stream);
    let mut messages = 0;
    while let Some(chunk) = stream.try_next().await.expect("COPY goes on") {
        // Postgres sends a message for each row, beside header and trailer: the header comes with the first row.
        messages += u64::from(!chunk.is_empty());
    }
    messages - 1
}
