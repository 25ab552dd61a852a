//! kill -9 at every named step of the protocol, then a restart: needs `--features failpoints`, as `make test` has it.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use crate::support::{Campaign, Job, Load, Message, Stack, restaurant, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);
const LOAD: Load = Load { restaurants: 5, subscribers: 20 };

/// Steps that a load passes by itself, and at the how many-eth time the process dies there.
const IN_A_COMMIT: &[(&str, u32)] = &[
    ("S0", 3),
    ("S1", 3),
    ("S2", 3),
    ("S3", 3),
    ("S4", 3),
    ("S5", 3),
    ("S6", 3),
    ("S7", 3),
    ("S8", 3),
    ("S9", 3),
    ("S10", 3),
    ("S16", 3),
];

fn stack(name: &str) -> Stack {
    let mut stack = Stack::new(name);
    stack.set("batch", "max_messages", 5);
    // A restart gets its partitions at once, instead of when the dead member's session has run out.
    stack.set("job", "instance", "steps");
    LOAD.subscribe(&stack);
    stack
}

/// Runs until the process dies at the step.
fn dies_at(stack: &Stack, step: &str, passes: u32) {
    let points = format!("{step}={passes}*off->return");
    let mut job = Job::spawn_with(stack, &["run"], &[("FAILPOINTS", &points)]);
    is_killed(&mut job, step);
}

fn is_killed(job: &mut Job, step: &str) {
    let status = job.wait(PATIENCE);
    assert_eq!(status.signal(), Some(libc::SIGKILL), "{step}: {}", job.stderr());
}

fn recovers(stack: &Stack, campaigns: usize) {
    recovers_of(LOAD, stack, campaigns);
}

fn recovers_of(load: Load, stack: &Stack, campaigns: usize) {
    let mut job = Job::spawn(stack, &["run"]);
    let rows = campaigns * load.subscribers;
    wait_until("all rows", PATIENCE, || load.is_in_postgres(stack, campaigns) && stack.read_triggers().len() >= rows);
    job.term();
    assert_eq!(job.wait(PATIENCE).code(), Some(0), "{}", job.stderr());
    load.verify(stack, campaigns);
    let clean = "SELECT (SELECT count(*) FROM dinnerbell.parts) + (SELECT count(*) FROM dinnerbell.chunks)";
    assert_eq!(stack.number(clean), 0, "stored parts are left");
}

#[test]
fn every_step_of_a_commit() {
    let stack = stack("steps");
    let mut produced = 0;
    for (step, passes) in IN_A_COMMIT {
        LOAD.produce(&stack, produced..produced + 30);
        produced += 30;
        dies_at(&stack, step, *passes);
    }
    recovers(&stack, produced);
}

#[test]
fn every_step_of_a_claim() {
    let stack = stack("claim_steps");
    LOAD.produce(&stack, 0..30);
    // A stored part waits; each of the next owners dies further on.
    dies_at(&stack, "S7", 2);
    for step in ["S13", "S14", "S15", "S15"] {
        dies_at(&stack, step, 0);
    }
    recovers(&stack, 30);
}

#[test]
fn progress_without_output_and_the_release() {
    let stack = stack("quiet_steps");
    LOAD.produce(&stack, 0..10);
    recovers(&stack, 10);
    for step in ["S17", "S11", "S12"] {
        // Nobody has subscribed to these: progress is all there is to write.
        let nobodys = |n| Campaign::new(n, restaurant(n)).json();
        stack.produce((1_000..1_010).map(|n| Message::of(nobodys(n))));
        let mut job = Job::spawn_with(&stack, &["run"], &[("FAILPOINTS", &format!("{step}=return"))]);
        if step == "S12" {
            wait_until("the campaigns are read", PATIENCE, || {
                job.is_ready() && job.metric("dinnerbell_messages_in_total", "") >= 10.0
            });
            job.term();
        }
        is_killed(&mut job, step);
    }
    recovers(&stack, 10);
    assert_eq!(stack.number("SELECT sum(next_offset)::int8 FROM dinnerbell.progress"), 40);
}

#[test]
fn a_re_emission_that_is_cut_short_commits_nothing() {
    // One campaign of four chunks.
    let load = Load { restaurants: 1, subscribers: 200_000 };
    let stack = Stack::new("cut_short");
    load.subscribe(&stack);
    load.produce(&stack, 0..1);
    dies_at(&stack, "S7", 0);
    assert_eq!(stack.number("SELECT count(*) FROM dinnerbell.chunks"), 4);

    // Stopped between two chunks: Kafka must not take what came before for the whole.
    let slowly = [("FAILPOINTS", "S15.chunk=2*off->sleep(2000)")];
    let mut job = Job::spawn_with(&stack, &["run"], &slowly);
    wait_until("it begins to send again", PATIENCE, || job.stderr().contains("to Kafka again"));
    job.term();
    assert_eq!(job.wait(PATIENCE).code(), Some(0), "{}", job.stderr());
    assert_eq!(stack.read_triggers().len(), 0);

    // Cut off from Postgres between two chunks: the same, and then it goes on by itself.
    let mut job = Job::spawn_with(&stack, &["run"], &slowly);
    wait_until("it begins to send again", PATIENCE, || job.stderr().contains("to Kafka again"));
    assert!(stack.kill_sessions() > 0);
    wait_until("it claims anew", PATIENCE, || job.stderr().contains("paused: "));
    assert_eq!(stack.read_triggers().len(), 0);
    job.kill9();
    recovers_of(load, &stack, 1);
}
