//! Every named step of the protocol, S0 to S17: kill -9 there and a restart; then, in a process that goes on, the reply of
//! what the step asks of a server is lost and its connection reset. Needs `--features failpoints`, as `make test` has it.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use crate::support::{
    Campaign, Job, Load, Match, Message, Network, Stack, TWO_COPIES, Witness, api, long_id, restaurant, stop, taken,
    wait_until,
};

const PATIENCE: Duration = Duration::from_secs(90);
const LOAD: Load = Load { restaurants: 5, subscribers: 20 };

#[test]
fn s00_polled() {
    in_a_commit("S0", [Match::kafka(api::FETCH)]);
}

/// Nothing is asked of anyone while rows are made; what may be lost meanwhile is the member's heartbeat.
#[test]
fn s01_transformed() {
    in_a_commit("S1", [Match::kafka(api::HEARTBEAT)]);
}

#[test]
fn s02_both_transactions_open() {
    in_a_commit("S2", [Match::postgres("BEGIN"), Match::kafka(api::ADD_PARTITIONS_TO_TXN)]);
}

#[test]
fn s03_first_row() {
    in_a_commit("S3", [Match::postgres("COPY "), Match::kafka(api::PRODUCE), Match::kafka(api::PRODUCE).nth(2)]);
}

#[test]
fn s04_chunk_stored() {
    in_a_commit("S4", [Match::postgres(".chunks (commit_id")]);
}

/// Most of a commit's rows are copied and their chunk is stored.
#[test]
fn s04_between_two_copies() {
    let mut stack = Stack::new("step_s4_two");
    stack.set("job", "instance", "steps");
    stack.subscribe((0..TWO_COPIES).map(|n| (long_id(n), restaurant(0))));
    stack.produce([Message::of(Campaign::new(0, restaurant(0)).json())]);
    dies_at(&stack, "S4", 0);
    assert_eq!((Witness::DOCUMENTED.rows(&stack).len(), stored(&stack)), (0, 0));
    let mut job = Job::spawn(&stack, &["run"]);
    taken(&mut job, 1);
    stop(job);
    assert_eq!((Witness::DOCUMENTED.rows(&stack).len(), stored(&stack)), (TWO_COPIES, 0));
}

#[test]
fn s05_all_acknowledged() {
    in_a_commit("S5", [Match::postgres("SET CONSTRAINTS ALL IMMEDIATE"), Match::postgres(".parts (commit_id")]);
}

#[test]
fn s06_commit_sent() {
    in_a_commit("S6", [Match::postgres(".advance(")]);
}

#[test]
fn s07_after_postgres() {
    in_a_commit("S7", [Match::postgres(".advance(").nth(2), Match::kafka(api::ADD_OFFSETS_TO_TXN)]);
}

#[test]
fn s08_offsets_sent() {
    in_a_commit("S8", [Match::kafka(api::TXN_OFFSET_COMMIT), Match::kafka(api::TXN_OFFSET_COMMIT).nth(2)]);
}

#[test]
fn s09_end_sent() {
    in_a_commit("S9", [Match::kafka(api::END_TXN)]);
}

#[test]
fn s10_after_kafka() {
    in_a_commit("S10", [Match::kafka(api::END_TXN).nth(2)]);
}

#[test]
fn s11_parts_deleted() {
    in_a_commit("S11", [Match::postgres("WITH gone AS"), Match::postgres("WITH gone AS").nth(2)]);
}

#[test]
fn s12_before_the_release() {
    let mut trial = Trial::new("s12");
    let mut job = trial.catches_up(30);
    let release = trial.network.postgres.lose_reply(Match::postgres("SET transactional_ids ="));
    job.term();
    assert_eq!(job.wait(PATIENCE).code(), Some(0), "{}", job.stderr());
    assert!(job.stderr().contains("given up without a release"), "{}", job.stderr());
    assert_eq!(release.injected(), 1);

    trial.produce(30);
    let mut job = Job::spawn_with(&trial.stack, &["run"], &[("FAILPOINTS", "S12=return")]);
    trial.wait_for_all();
    job.term();
    is_killed(&mut job, "S12");
    let job = trial.catches_up(30);
    trial.ends(job);
}

#[test]
fn s13_claimed() {
    let mut trial = Trial::new("s13");
    trial.a_stored_part_waits();
    trial.dies_at("S13", 0);
    let lost = [Match::postgres("epoch = epoch + 1"), Match::postgres("COMMIT").nth(2)];
    trial.loses_in_a_claim(lost);
}

#[test]
fn s14_last_owner_fenced() {
    let mut trial = Trial::new("s14");
    trial.a_stored_part_waits();
    trial.dies_at("S14", 0);
    // Two of its own, then those of the last owner.
    let init = || Match::kafka(api::INIT_PRODUCER_ID);
    trial.loses_in_a_claim([init(), init().nth(3), Match::kafka(api::OFFSET_FETCH)]);
}

#[test]
fn s15_sent_again() {
    let mut trial = Trial::new("s15");
    trial.a_stored_part_waits();
    trial.dies_at("S15", 0);
    trial.dies_at("S15", 0);
    let lost = [Match::postgres("SELECT kind, body"), Match::kafka(api::PRODUCE), Match::kafka(api::END_TXN)];
    trial.loses_in_a_claim(lost);
}

#[test]
fn s16_lookup_swapped() {
    let mut trial = Trial::new("s16");
    trial.stack.set("lookup", "refresh", "1s");
    trial.produce(30);
    trial.dies_at("S16", 3);
    let mut job = trial.catches_up(10);
    let lookup = trial.network.postgres.lose_reply(Match::postgres("subscribers_restaurants"));
    wait_until("the refresh fails", PATIENCE, || job.stderr().contains("the lookup refresh failed"));
    assert_eq!(lookup.injected(), 1);
    wait_until("the next one does not", PATIENCE, || job.stderr().contains("fresh again"));
    trial.goes_on(&mut job, 10);
    trial.ends(job);
}

#[test]
fn s17_progress_without_output() {
    let mut trial = Trial::new("s17");
    let job = trial.catches_up(10);
    trial.ends(job);
    for step in ["S17", "S11"] {
        trial.produce_quietly();
        trial.dies_at(step, 0);
    }
    let mut job = trial.catches_up(10);
    for which in [Match::postgres(".advance("), Match::kafka(api::TXN_OFFSET_COMMIT), Match::kafka(api::END_TXN)] {
        // What the last commit has left to do is done: the next flush is about the quiet campaigns alone.
        wait_until("all is flushed", PATIENCE, || trial.stored() == 0);
        let lost = trial.network_of(&which).lose_reply(which.clone());
        trial.produce_quietly();
        wait_until("the reply is lost", PATIENCE, || lost.injected() == 1);
        trial.goes_on(&mut job, 10);
    }
    trial.ends(job);
    let read = "SELECT sum(next_offset)::int8 FROM dinnerbell.progress";
    assert_eq!(trial.stack.number(read), trial.produced as i64 + 5 * QUIET as i64);
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
    let job = Job::spawn(&stack, &["run"]);
    wait_until("all rows", PATIENCE, || load.is_in_postgres(&stack, 1) && !stack.read_triggers().is_empty());
    ends(job, load, &stack, 1);
}

/// A step that every commit passes.
fn in_a_commit<const N: usize>(step: &str, lost: [Match; N]) {
    let mut trial = Trial::new(step);
    if step == "S11" {
        // The first flush comes after 5 s.
        let job = trial.catches_up(5);
        drop(job);
        trial.dies_at(step, 0);
    } else {
        trial.produce(30);
        trial.dies_at(step, 3);
    }
    let mut job = trial.catches_up(5);
    for which in lost {
        let lost = trial.network_of(&which).lose_reply(which.clone());
        trial.goes_on(&mut job, 15);
        wait_until(&format!("a reply is lost: {which:?}"), PATIENCE, || lost.injected() == 1);
        trial.goes_on(&mut job, 5);
    }
    trial.ends(job);
}

/// A stack, and how many campaigns it has had.
struct Trial {
    stack: Stack,
    network: Network,
    produced: usize,
}

const QUIET: usize = 10;

impl Trial {
    fn new(step: &str) -> Trial {
        let (mut stack, network) = Stack::behind_proxies(&format!("step_{}", step.to_lowercase()));
        stack.set("batch", "max_messages", 5);
        // A restart gets its partitions at once, instead of when the dead member's session has run out.
        stack.set("job", "instance", "steps");
        LOAD.subscribe(&stack);
        Trial { stack, network, produced: 0 }
    }

    fn network_of(&self, which: &Match) -> &crate::support::Proxy {
        if which.is_for_kafka() { &self.network.kafka } else { &self.network.postgres }
    }

    fn produce(&mut self, campaigns: usize) {
        LOAD.produce(&self.stack, self.produced..self.produced + campaigns);
        self.produced += campaigns;
    }

    /// Campaigns that nobody has subscribed to: progress is all there is to write.
    fn produce_quietly(&self) {
        let nobodys = |n| Message::of(Campaign::new(n, restaurant(n)).json());
        self.stack.produce((1_000..1_000 + QUIET).map(nobodys));
    }

    fn dies_at(&self, step: &str, passes: u32) {
        dies_at(&self.stack, step, passes);
    }

    fn a_stored_part_waits(&mut self) {
        self.produce(30);
        self.dies_at("S7", 2);
        assert!(self.stored() > 0);
    }

    fn stored(&self) -> i64 {
        stored(&self.stack)
    }

    /// A process that gets all there is and so many campaigns more.
    fn catches_up(&mut self, campaigns: usize) -> Job {
        let mut job = Job::spawn(&self.stack, &["run"]);
        self.goes_on(&mut job, campaigns);
        job
    }

    fn goes_on(&mut self, job: &mut Job, campaigns: usize) {
        self.produce(campaigns);
        self.wait_for_all();
        assert!(job.is_running(), "{}", job.stderr());
    }

    /// All rows are in both sinks.
    fn wait_for_all(&self) {
        let rows = self.produced * LOAD.subscribers;
        wait_until("all rows", PATIENCE, || {
            LOAD.is_in_postgres(&self.stack, self.produced) && self.stack.read_triggers().len() >= rows
        });
    }

    /// Each reply in a claim of its own, with a stored part to send again.
    fn loses_in_a_claim<const N: usize>(&mut self, lost: [Match; N]) {
        for which in lost {
            let lost = self.network_of(&which).lose_reply(which.clone());
            let mut job = self.catches_up(5);
            assert_eq!(lost.injected(), 1, "{which:?}");
            job.kill9();
            self.a_stored_part_waits();
        }
        let job = self.catches_up(5);
        self.ends(job);
    }

    fn ends(&self, job: Job) {
        ends(job, LOAD, &self.stack, self.produced);
    }
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

fn ends(mut job: Job, load: Load, stack: &Stack, campaigns: usize) {
    job.term();
    assert_eq!(job.wait(PATIENCE).code(), Some(0), "{}", job.stderr());
    load.verify(stack, campaigns);
    assert_eq!(stored(stack), 0, "stored parts are left");
}

fn stored(stack: &Stack) -> i64 {
    stack.number("SELECT (SELECT count(*) FROM dinnerbell.parts) + (SELECT count(*) FROM dinnerbell.chunks)")
}
