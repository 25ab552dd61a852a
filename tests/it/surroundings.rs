//! What changes or runs out around a running job: disk, clock, subscriptions, the time that Kafka takes.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, chown};
use std::process::Command;
use std::time::{Duration, Instant};

#[cfg(feature = "failpoints")]
use crate::support::{Campaign, Match, Message, Witness, api, client, restaurant};
use crate::support::{Disk, Job, LONG_PATIENCE as PATIENCE, Load, Postgres, Stack, now, run, wait_until};

const LOAD: Load = Load { restaurants: 10, subscribers: 50 };

/// The sink table stands on a file system that fills up. Only root may mount one.
#[test]
fn a_full_disk_pauses_the_job_until_there_is_space() {
    let Some(disk) = Disk::of_megabytes(24) else { return };
    let postgres = Postgres::start(Default::default());
    let mut stack = Stack::private("disk", crate::support::shared_kafka(), &postgres);
    stack.set("batch", "max_messages", 5);
    LOAD.subscribe(&stack);
    let owner = fs::metadata(postgres.data()).expect("the server runs");
    chown(disk.path(), Some(owner.uid()), Some(owner.gid())).expect("we are root");
    stack.execute(&format!("CREATE TABLESPACE small LOCATION '{}'", disk.path().display()));
    stack.execute("ALTER TABLE subscribers_feedback SET TABLESPACE small");
    stack.execute("ALTER INDEX id_pk SET TABLESPACE small");

    let mut job = Job::spawn(&stack, &["run"]);
    LOAD.produce(&stack, 0..20);
    LOAD.arrives(&stack, 20);
    let ballast = disk.path().join("ballast");
    let mut file = File::create(&ballast).expect("the disk has space");
    while file.write_all(&[0; 4096]).is_ok() {}
    drop(file);

    // More than what fits into pages that are begun already.
    LOAD.produce(&stack, 20..120);
    wait_until("the job pauses", PATIENCE, || job.stderr().contains("SQLSTATE 53100"));
    assert!(job.stderr().contains("paused: "), "{}", job.stderr());
    wait_until("it is not ready", PATIENCE, || !job.is_ready());
    assert!(!LOAD.is_in_postgres(&stack, 120));
    assert!(job.is_running());

    fs::remove_file(&ballast).expect("it is ours");
    LOAD.arrives(&stack, 120);
    wait_until("it is ready again", PATIENCE, || job.is_ready());
    assert_eq!(job.stderr().matches("paused: ").count(), 1, "an outage is told once: {}", job.stderr());
    assert!(stack.read_dead_letters().is_empty());
    LOAD.ends(job, &stack, 120);
}

/// Two hours back, again and again, in mid-load and at rest, as by an administrator or a bad time server.
#[test]
fn a_clock_that_is_set_back() {
    let mut stack = Stack::new("clock");
    stack.set("batch", "max_messages", 5);
    stack.set("source.kafka", "session.timeout.ms", "6000");
    LOAD.subscribe(&stack);
    let offset = stack.directory.join("clock");
    let set = |text: &str| {
        let new = offset.with_extension("new");
        fs::write(&new, text).and_then(|()| fs::rename(&new, &offset)).expect("the directory is ours");
    };
    set("+0\n");
    let preload = faketime(&stack);
    let environment = [
        ("LD_PRELOAD", preload.as_str()),
        ("FAKETIME_TIMESTAMP_FILE", offset.to_str().expect("UTF-8")),
        ("FAKETIME_CACHE_DURATION", "1"),
        // A clock that is set leaves the monotonic one alone.
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ];
    let mut job = Job::spawn_with(&stack, &["run"], &environment);
    let start = now();
    // A step is two hours, so that the minutes of the test do not count.
    let back = |steps: i64| {
        let before = start - 7200 * steps + 3600;
        format!("SELECT count(*) FROM subscribers_feedback WHERE trigger_datetime_created < {before}")
    };
    let mut produced = 0;
    for step in 1..=8 {
        let more = || {
            LOAD.produce(&stack, produced..produced + 10);
            produced += 10;
            stack.number(&back(step)) > 0
        };
        assert_eq!(stack.number(&back(step)), 0);
        set(&format!("-{}\n", 7200 * step));
        wait_until("rows of two hours ago", PATIENCE, more);
    }
    LOAD.arrives(&stack, produced);

    // With nothing to do, librdkafka's threads are all in a wait; by the wall clock it would now last hours longer, and no
    // heartbeat would be sent meanwhile.
    let rebalances = || job.metric("dinnerbell_rebalances_total", "");
    assert_eq!(rebalances(), 1.0);
    set("-72000\n");
    let at_rest = Instant::now();
    wait_until("twice the session's time has passed", PATIENCE, || at_rest.elapsed() > Duration::from_secs(12));
    LOAD.produce(&stack, produced..produced + 50);
    LOAD.arrives(&stack, produced + 50);
    assert_eq!(rebalances(), 1.0, "it has lost its place in the group: {}", job.stderr());
    set("+0\n");
    LOAD.produce(&stack, produced + 50..produced + 100);
    LOAD.arrives(&stack, produced + 100);
    assert!(job.is_running());
    LOAD.ends(job, &stack, produced + 100);
}

/// What to preload: Debian's package `faketime`, and what it lacks.
fn faketime(stack: &Stack) -> String {
    let waits = stack.directory.join("wall_clock.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/wall_clock.c");
    run(Command::new("cc").args(["-O1", "-shared", "-fPIC", "-o"]).arg(&waits).args([source, "-ldl"]), "");
    let multiarch = fs::read_dir("/usr/lib").expect("/usr/lib").flatten().map(|entry| entry.path());
    let libraries = multiarch.chain(["/usr/lib64".into()]);
    let found = libraries.map(|path| path.join("faketime/libfaketimeMT.so.1")).find(|path| path.is_file());
    let faketime = found.expect("libfaketime: scripts/setup.sh installs it");
    format!("{}:{}", waits.display(), faketime.display())
}

/// The stored rows go out as they were, whatever the subscriptions are by then.
#[cfg(feature = "failpoints")]
#[test]
fn subscriptions_that_change_before_rows_are_sent_again() {
    let mut stack = Stack::new("replayed_lookup");
    stack.set("job", "instance", "bell");
    stack.set("lookup", "refresh", "1s");
    let rung = |stack: &Stack, n: usize| -> Vec<String> {
        let id = Campaign::new(n, restaurant(1)).adv_campaign_id;
        let rows = Witness::DOCUMENTED.rows(stack).into_iter().filter(|row| row.contains(&id));
        rows.map(|row| row.split("\"client_id\":\"").nth(1).expect("a client")[..36].to_owned()).collect()
    };
    stack.subscribe((0..3).map(|n| (client(n), restaurant(1))));
    stack.produce([Message::of(Campaign::new(1, restaurant(1)).json())]);
    let mut job = Job::spawn_with(&stack, &["run"], &[("FAILPOINTS", "S7=return")]);
    job.wait(PATIENCE);
    let stored = "SELECT count(*) FROM dinnerbell.parts";
    assert_eq!((stack.number(stored), stack.read_triggers().len()), (1, 0));
    stack.execute(&format!("DELETE FROM subscribers_restaurants WHERE client_id = '{}'", client(0)));
    stack.subscribe([(client(7), restaurant(1))]);

    // It reads what it is to send while the subscriptions change once more.
    let slowly = [("FAILPOINTS", "S15.chunk=sleep(3000)")];
    let job = Job::spawn_with(&stack, &["run"], &slowly);
    wait_until("it begins to send again", PATIENCE, || job.stderr().contains("to Kafka again"));
    stack.subscribe([(client(8), restaurant(1))]);
    let rows = || job.metric("dinnerbell_lookup_rows", "");
    wait_until("the lookup is refreshed", PATIENCE, || rows() == 4.0);
    wait_until("it is sent", PATIENCE, || stack.read_triggers().len() == 3);
    assert_eq!(rung(&stack, 1), [0, 1, 2].map(client));

    stack.produce([Message::of(Campaign::new(2, restaurant(1)).json())]);
    wait_until("the new one is sent", PATIENCE, || stack.read_triggers().len() == 7);
    assert_eq!(rung(&stack, 2), [1, 2, 7, 8].map(client));
    crate::support::stop(job);
}

/// Kafka has not acknowledged the rows at half the transaction's timeout: Postgres commits, and the rows follow in a
/// transaction of their own.
#[cfg(feature = "failpoints")]
#[test]
fn a_kafka_that_is_too_slow_is_served_from_the_ledger() {
    let (mut stack, network) = Stack::behind_proxies("slow_kafka");
    stack.set("batch", "max_messages", 5);
    LOAD.subscribe(&stack);
    let mut job = Job::spawn_with(&stack, &["run"], &[("FAILPOINTS", "kafka_patience=return(4000)")]);
    LOAD.produce(&stack, 0..10);
    LOAD.arrives(&stack, 10);
    let held = network.kafka.hold(Match::kafka(api::PRODUCE).every());
    LOAD.produce(&stack, 10..13);
    wait_until("rows are held", PATIENCE, || held.injected() > 0);
    wait_until("Kafka is given up", PATIENCE, || job.stderr().contains("Kafka was too slow"));
    assert!(stack.number("SELECT count(*) FROM subscribers_feedback") > 10 * 50, "Postgres has committed");
    assert_eq!(stack.read_triggers().len(), 10 * 50);
    held.release();
    LOAD.arrives(&stack, 13);
    assert!(job.metric("dinnerbell_replayed_parts_total", "") >= 1.0);
    LOAD.produce(&stack, 13..40);
    LOAD.arrives(&stack, 40);
    assert!(job.is_running());
    LOAD.ends(job, &stack, 40);
}
