//! A process that is stopped in the middle of a commit, or of a claim, for longer than the group waits, replaced, and let go
//! on: both sinks refuse what it still has to say. Needs `--features failpoints`.

use std::time::Duration;

use crate::support::{Job, Load, Stack, wait_until};

const PATIENCE: Duration = Duration::from_secs(90);
const LOAD: Load = Load { restaurants: 5, subscribers: 20 };

/// Postgres has ended its idle transaction, and Kafka's is fenced.
#[test]
fn stopped_before_the_commit_to_postgres() {
    let checking = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                    AND state = 'idle in transaction' AND query LIKE 'SET CONSTRAINTS%'";
    comes_back("S5", |stack, _| stack.number(checking) > 0);
}

/// The one who takes over sends the stored rows; the zombie's own are still in an open transaction.
#[test]
fn stopped_between_the_two_commits() {
    comes_back("S7", |stack, campaigns| LOAD.is_in_postgres(stack, campaigns));
}

/// As before, with the zombie's offsets in its transaction as well.
#[test]
fn stopped_before_the_commit_to_kafka() {
    comes_back("S9", |stack, campaigns| LOAD.is_in_postgres(stack, campaigns));
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
    is_a_member_again(&stack, zombie, heir);
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

fn comes_back(step: &str, is_there: impl Fn(&Stack, usize) -> bool) {
    let stack = stack(&format!("zombie_{}", step.to_lowercase()));
    // It waits there, at its fourth commit, until it is stopped; stopped, time goes on for it.
    let points = format!("{step}=3*off->1*sleep(9000)");
    let zombie = Job::spawn_with(&stack, &["run"], &[("FAILPOINTS", &points)]);
    for n in 0..3 {
        LOAD.produce(&stack, n..n + 1);
        LOAD.arrives(&stack, n + 1);
    }
    LOAD.produce(&stack, 3..4);
    wait_until("it is at the step", Duration::from_secs(8), || is_there(&stack, 4));
    zombie.signal(libc::SIGSTOP);
    assert_eq!(stack.read_triggers().len(), 3 * LOAD.subscribers, "{step} is before the commit to Kafka");
    let heir = takes_over(&stack, 4);
    assert_eq!(heir.stderr().contains("sending a stored batch to Kafka again"), step != "S5", "{}", heir.stderr());
    is_a_member_again(&stack, zombie, heir);
}

/// Another process finishes what the zombie has left, and more.
fn takes_over(stack: &Stack, produced: usize) -> Job {
    let heir = Job::spawn(stack, &["run"]);
    LOAD.produce(stack, produced..30);
    LOAD.arrives(stack, 30);
    heir
}

/// The zombie goes on: refused at first, and then a member like any other.
fn is_a_member_again(stack: &Stack, mut zombie: Job, mut heir: Job) {
    zombie.signal(libc::SIGCONT);
    wait_until("the zombie notices", PATIENCE, || {
        assert!(zombie.is_running(), "the zombie has ended: {}", zombie.stderr());
        ["given up", "claiming the partitions anew", "given these partitions to others", "paused"]
            .iter()
            .any(|word| zombie.stderr().contains(word))
    });
    LOAD.produce(stack, 30..40);
    LOAD.arrives(stack, 40);
    wait_until("both have partitions", PATIENCE, || {
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
