//! A process that is stopped in the middle of a commit for longer than the group waits, replaced, and let go on: both sinks
//! refuse what it still has to say. Needs `--features failpoints`.

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
    comes_back("S8", |stack, campaigns| LOAD.is_in_postgres(stack, campaigns));
}

fn comes_back(step: &str, is_there: impl Fn(&Stack, usize) -> bool) {
    let mut stack = Stack::new(&format!("zombie_{}", step.to_lowercase()));
    stack.set("batch", "max_messages", 5);
    LOAD.subscribe(&stack);
    // It waits there, at its fourth commit, until it is stopped; stopped, time goes on for it.
    let points = format!("{step}=3*off->1*sleep(9000)");
    let mut zombie = Job::spawn_with(&stack, &["run"], &[("FAILPOINTS", &points)]);
    for n in 0..3 {
        LOAD.produce(&stack, n..n + 1);
        everything_arrives(&stack, n + 1);
    }
    LOAD.produce(&stack, 3..4);
    wait_until("it is at the step", Duration::from_secs(8), || is_there(&stack, 4));
    zombie.signal(libc::SIGSTOP);
    assert_eq!(stack.read_triggers().len(), 3 * LOAD.subscribers, "{step} is before the commit to Kafka");

    let mut heir = Job::spawn(&stack, &["run"]);
    LOAD.produce(&stack, 4..30);
    everything_arrives(&stack, 30);
    assert_eq!(heir.stderr().contains("sending a stored batch to Kafka again"), step != "S5", "{}", heir.stderr());

    zombie.signal(libc::SIGCONT);
    wait_until("the zombie notices", PATIENCE, || {
        ["given up", "claiming the partitions anew", "given these partitions to others", "paused"]
            .iter()
            .any(|word| zombie.stderr().contains(word))
    });
    // It is a member like any other again.
    LOAD.produce(&stack, 30..40);
    everything_arrives(&stack, 40);
    wait_until("both have partitions", PATIENCE, || {
        let owners = "SELECT count(DISTINCT transactional_ids) FROM dinnerbell.progress";
        zombie.is_ready() && heir.is_ready() && stack.number(owners) == 2
    });
    LOAD.produce(&stack, 40..60);
    everything_arrives(&stack, 60);
    for job in [&mut zombie, &mut heir] {
        job.term();
        assert_eq!(job.wait(PATIENCE).code(), Some(0), "{}", job.stderr());
    }
    LOAD.verify(&stack, 60);
}

fn everything_arrives(stack: &Stack, campaigns: usize) {
    wait_until("all rows in both sinks", PATIENCE, || {
        LOAD.is_in_postgres(stack, campaigns) && stack.read_triggers().len() >= campaigns * LOAD.subscribers
    });
}
