//! A process that is stopped in the middle of a commit, or of a claim, for longer than the group waits, replaced, and let go
//! on: what it still has to say is refused, each time by the guard that is there for it, as the zombie's own log tells. Needs
//! `--features failpoints`.

use std::time::Duration;

use crate::support::{Job, LONG_PATIENCE as PATIENCE, Load, Match, Network, Stack, stop, wait_until};

const LOAD: Load = Load { restaurants: 5, subscribers: 20 };

/// Words of one line in the zombie's log: what it was about to do, and, one or the other, who did not let it.
type Refusal = (&'static str, &'static [&'static str]);

/// Postgres has ended its idle transaction. The session's task may have heard it before the commit goes on.
const IDLE_FOR_LONG: Refusal = ("committing to Postgres: ", &["(SQLSTATE 25P03)", "connection closed"]);
/// The ledger has the epoch of another claim.
const OLD_EPOCH: Refusal = ("advancing in the ledger: ", &["(SQLSTATE DB001)"]);
/// Kafka's word for records that were still on their way, the ledger's where none was.
const FENCED_RECORDS: Refusal = ("", &["fenced by a newer instance", "(SQLSTATE DB001)"]);
/// Kafka has the producer epoch of the one who fenced it.
const FENCED_OFFSETS: Refusal = ("adding offsets to the Kafka transaction: ", &["fenced by a newer instance"]);
const FENCED_COMMIT: Refusal = ("committing the Kafka transaction of ", &["fenced by a newer instance"]);
/// Kafka's group has another member of its name.
const OLD_MEMBER: Refusal = ("adding offsets to the Kafka transaction: ", &["Static consumer fenced"]);
/// The ledger has other epochs than the claim has read.
const OLD_CLAIM: Refusal = ("claiming the partitions anew: ", &["another member has claimed the partitions meanwhile"]);

/// Its own session has run out by its own clock, before a sink could say anything.
const GIVEN_UP: Refusal = ("the batch in flight is given up: ", &["no end in time"]);

/// Postgres waits for the rest of its rows for as long as its connection lives; whoever takes over must not wait for that.
#[test]
fn stopped_in_the_middle_of_its_rows() {
    comes_back("S3", FENCED_RECORDS, |stack, _| {
        let copying = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'COPY%' \
                       AND state = 'active' AND wait_event = 'ClientRead'";
        stack.number(copying) > 0
    });
}

#[test]
fn stopped_before_the_commit_to_postgres() {
    comes_back("S5", IDLE_FOR_LONG, is_before_the_commit_to_postgres);
}

/// The one who takes over sends the stored rows; the zombie's own are still in an open transaction.
#[test]
fn stopped_between_the_two_commits() {
    comes_back("S7", FENCED_OFFSETS, is_in_postgres);
}

/// As before, with the zombie's offsets in its transaction as well.
#[test]
fn stopped_before_the_commit_to_kafka() {
    comes_back("S8", FENCED_COMMIT, is_in_postgres);
}

/// Postgres would take its rows, but not its advance.
#[test]
fn replaced_before_the_commit_to_postgres() {
    let told = is_replaced("S5", OLD_EPOCH, Heir::Claims, is_before_the_commit_to_postgres);
    assert!(told.contains("the ledger has epoch 2 and offset"), "{told}");
    assert!(told.contains("this commit epoch 1 and offset"), "{told}");
}

#[test]
fn replaced_between_the_two_commits() {
    is_replaced("S7", FENCED_OFFSETS, Heir::Claims, is_in_postgres);
}

#[test]
fn replaced_before_the_commit_to_kafka() {
    is_replaced("S8", FENCED_COMMIT, Heir::Claims, is_in_postgres);
}

/// The one in its place dies before it claims: Postgres takes the commit, and the offsets of its membership are refused.
#[test]
fn replaced_before_both_commits_and_fenced_by_nobody() {
    let told = is_replaced("S5", OLD_MEMBER, Heir::DiesBefore, is_before_the_commit_to_postgres);
    assert!(!told.contains("newer instance"), "{told}");
}

/// What it has read of the ledger is older than what it reads of Kafka then.
#[test]
fn stopped_in_the_middle_of_a_claim() {
    let stack = stack("zombie_claim");
    let zombie = Job::spawn_with(&stack, &["run"], &[("FAILPOINTS", "S13=1*sleep(9000)")]);
    wait_until("it may claim", PATIENCE, || zombie.stderr().contains("partitions assigned"));
    let claimed = "SELECT count(*) FROM dinnerbell.progress WHERE epoch = 1";
    wait_until("it has claimed", PATIENCE, || stack.number(claimed) == 3);
    zombie.signal(libc::SIGSTOP);
    let heir = takes_over(&stack, 0);
    // Unless the group tells it first: then it lets the claim go without a word, and waits for its next partitions.
    if let Some(told) = goes_on(&zombie, || zombie.stderr().matches("partitions assigned").count() > 1) {
        is_told(&told, &[OLD_CLAIM]);
    }
    both_work(&stack, zombie, heir);
}

/// The broker refuses it in the same words as a second process of its name.
#[test]
fn a_named_member_that_stood_still_comes_back() {
    let mut stack = stack("zombie_named");
    stack.set("job", "instance", "bell");
    LOAD.produce(&stack, 0..10);
    let mut named = Job::spawn(&stack, &["run"]);
    LOAD.arrives(&stack, 10);
    named.signal(libc::SIGSTOP);
    // Another member, of another name, gets the partitions when the session has run out.
    stack.set("job", "instance", "other");
    let mut heir = Job::spawn(&stack, &["run"]);
    LOAD.produce(&stack, 10..30);
    LOAD.arrives(&stack, 30);
    named.signal(libc::SIGCONT);
    LOAD.produce(&stack, 30..40);
    LOAD.arrives(&stack, 40);
    wait_until("both have partitions", PATIENCE, || {
        assert!(named.is_running(), "it has ended: {}", named.stderr());
        let owners = "SELECT count(DISTINCT transactional_ids) FROM dinnerbell.progress";
        named.is_ready() && heir.is_ready() && stack.number(owners) == 2
    });
    for job in [&mut named, &mut heir] {
        job.term();
        assert_eq!(job.wait(PATIENCE).code(), Some(0), "{}", job.stderr());
    }
    LOAD.verify(&stack, 40);
}

fn stack(name: &str) -> Stack {
    let mut stack = Stack::new(name);
    stack.set("batch", "max_messages", 5);
    LOAD.subscribe(&stack);
    stack
}

fn is_in_postgres(stack: &Stack, campaigns: usize) -> bool {
    LOAD.is_in_postgres(stack, campaigns)
}

fn is_before_the_commit_to_postgres(stack: &Stack, _: usize) -> bool {
    let checking = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                    AND state = 'idle in transaction' AND query LIKE 'INSERT INTO \"dinnerbell\".parts%'";
    stack.number(checking) > 0
}

/// Stopped for longer than its session lasts.
fn comes_back(step: &str, refusal: Refusal, is_there: impl Fn(&Stack, usize) -> bool) {
    let stack = stack(&format!("zombie_{}", step.to_lowercase()));
    let zombie = stops_at(step, &stack, &[], is_there);
    let heir = takes_over(&stack, 4);
    let has_committed = !["S3", "S5"].contains(&step);
    assert_eq!(heir.stderr().contains("sending a stored batch to Kafka again"), has_committed, "{}", heir.stderr());
    // An heir that is done sooner than Postgres would leave the refusal to the ledger's epoch.
    let is_left_open = || is_before_the_commit_to_postgres(&stack, 0);
    wait_until("Postgres has ended the zombie's idle transaction", PATIENCE, || !is_left_open());
    let told = goes_on(&zombie, || false).unwrap_or_default();
    is_told(&told, &[refusal, GIVEN_UP]);
    both_work(&stack, zombie, heir);
}

/// Who comes in the zombie's place first.
enum Heir {
    Claims,
    /// Killed when it is about to lock the ledger's rows.
    DiesBefore,
}

/// Stopped, and another one of its name comes, which the group takes in its place at once. The zombie hears nothing of the
/// group, and its session has not run out by its own clock: it goes on as if nothing had been, and the sinks refuse it.
fn is_replaced(step: &str, refusal: Refusal, first_heir: Heir, is_there: impl Fn(&Stack, usize) -> bool) -> String {
    let (mut stack, network) = Stack::behind_proxies(&format!("replaced_{}", step.to_lowercase()));
    LOAD.subscribe(&stack);
    for (section, name) in [("source.kafka", "DINNERBELL_TEST_GROUP"), ("sink.kafka", "DINNERBELL_TEST_SINK")] {
        let value = format!("${{{name}:-{}}}", stack.bootstrap);
        stack.set(section, "bootstrap.servers", value);
    }
    stack.set("postgres", "url", format!("${{DINNERBELL_TEST_POSTGRES:-{}}}", stack.url));
    stack.set("job", "instance", "bell");
    stack.set("source.kafka", "session.timeout.ms", "60000");
    // Nobody is at the second address: source and sink must share one to be one cluster.
    let [group, sink] = [&network.kafka.address(), &stack.bootstrap].map(|address| format!("{address},127.0.0.1:1"));
    let ways = [("DINNERBELL_TEST_GROUP", group.as_str()), ("DINNERBELL_TEST_SINK", &sink)];
    let mut zombie = stops_at(step, &stack, &ways, is_there);
    let mut heir = match first_heir {
        Heir::Claims => Job::spawn(&stack, &["run"]),
        Heir::DiesBefore => dies_before_it_claims(&stack, &network),
    };
    if heir.is_running() {
        wait_until("the heir has claimed", PATIENCE, || {
            assert!(heir.is_running(), "{}", heir.stderr());
            heir.is_ready() && stack.number("SELECT count(*) FROM dinnerbell.progress WHERE epoch > 1") == 3
        });
    }
    network.kafka.black_hole();
    let told = goes_on(&zombie, || false).unwrap_or_default();
    is_told(&told, &[refusal]);
    zombie.kill9();
    if !heir.is_running() {
        assert_eq!(stack.read_triggers().len(), 3 * LOAD.subscribers, "the fourth campaign is not in Kafka yet");
        heir = Job::spawn(&stack, &["run"]);
    }
    LOAD.produce(&stack, 4..30);
    LOAD.arrives(&stack, 30);
    stop(heir);
    LOAD.verify(&stack, 30);
    told
}

fn dies_before_it_claims(stack: &Stack, network: &Network) -> Job {
    let claim = network.postgres.hold(Match::postgres("FOR UPDATE"));
    let url = network.postgres.url(&stack.url);
    let mut heir = Job::spawn_with(stack, &["run"], &[("DINNERBELL_TEST_POSTGRES", &url)]);
    wait_until("the heir is about to claim", PATIENCE, || claim.injected() == 1);
    heir.kill9();
    claim.cut();
    assert_eq!(stack.number("SELECT count(*) FROM dinnerbell.progress WHERE epoch = 1"), 3);
    heir
}

/// A job that is stopped at a step of its fourth commit.
fn stops_at(step: &str, stack: &Stack, environment: &[(&str, &str)], is_there: impl Fn(&Stack, usize) -> bool) -> Job {
    // It waits there until it is stopped; stopped, time goes on for it.
    let points = format!("{step}=3*off->1*sleep(4000)");
    let zombie = Job::spawn_with(stack, &["run"], &[environment, &[("FAILPOINTS", &points)]].concat());
    for n in 0..3 {
        LOAD.produce(stack, n..n + 1);
        LOAD.arrives(stack, n + 1);
    }
    LOAD.produce(stack, 3..4);
    wait_until("it is at the step", Duration::from_secs(3), || is_there(stack, 4));
    zombie.signal(libc::SIGSTOP);
    assert_eq!(stack.read_triggers().len(), 3 * LOAD.subscribers, "{step} is before the commit to Kafka");
    zombie
}

/// Another process finishes what the zombie has left, and more.
fn takes_over(stack: &Stack, produced: usize) -> Job {
    let heir = Job::spawn(stack, &["run"]);
    LOAD.produce(stack, produced..30);
    LOAD.arrives(stack, 30);
    heir
}

/// The zombie goes on until it tells of trouble, in this line, or something else happens.
#[track_caller]
fn goes_on(zombie: &Job, something_else: impl Fn() -> bool) -> Option<String> {
    let before = zombie.stderr().len();
    zombie.signal(libc::SIGCONT);
    let mut told = None;
    wait_until("the zombie tells of trouble", PATIENCE, || {
        let log = zombie.stderr();
        let trouble =
            ["given up", "claiming the partitions anew", "given these partitions to others", "paused", "again, once"];
        let line = log[before..].lines().find(|line| trouble.iter().any(|words| line.contains(words)));
        told = line.map(str::to_owned);
        line.is_some() || something_else()
    });
    told
}

#[track_caller]
fn is_told(told: &str, refusals: &[Refusal]) {
    let is = |(doing, words): &Refusal| told.contains(doing) && words.iter().any(|words| told.contains(words));
    assert!(refusals.iter().any(is), "expected one of {refusals:?}, and it was: {told}");
}

/// Refused at first, the zombie is a member like any other then.
fn both_work(stack: &Stack, mut zombie: Job, mut heir: Job) {
    LOAD.produce(stack, 30..40);
    LOAD.arrives(stack, 40);
    wait_until("both have partitions", PATIENCE, || {
        assert!(zombie.is_running(), "the zombie has ended: {}", zombie.stderr());
        let owners = "SELECT count(DISTINCT transactional_ids) FROM dinnerbell.progress";
        zombie.is_ready() && heir.is_ready() && stack.number(owners) == 2
    });
    LOAD.produce(stack, 40..60);
    LOAD.arrives(stack, 60);
    for job in [&mut zombie, &mut heir] {
        job.term();
        assert_eq!(job.wait(PATIENCE).code(), Some(0), "{}", job.stderr());
    }
    LOAD.verify(stack, 60);
}
