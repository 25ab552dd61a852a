//! The guards of the delivery protocol, one by one, each in the situation that it is there for. `scripts/mutants.sh` takes
//! them away one by one and shows that these tests, or those of the steps and faults, notice.

use std::collections::BTreeMap;
#[cfg(feature = "failpoints")]
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use dinnerbell::config::Config;
use dinnerbell::error::{Action, Error, Result};
use dinnerbell::kafka::GroupMetadata;
#[cfg(feature = "failpoints")]
use dinnerbell::ledger::claim::{Claimant, claim};
use dinnerbell::ledger::store::{Ledger, Step, create};
use dinnerbell::sink::kafka::{OffsetCommit, Producer};
#[cfg(feature = "failpoints")]
use dinnerbell::source::{Event, Source};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use uuid::Uuid;

use crate::support::{
    Campaign, Job, Load, Match, Message, Stack, alter_topic, api, block_on, client, connect, restaurant, stop,
    wait_until,
};

const PATIENCE: Duration = Duration::from_secs(60);
const LOAD: Load = Load { restaurants: 5, subscribers: 4 };

/// A ledger without a job: partition 0 of a topic is registered at offset 10 and claimed once (epoch 1).
async fn ledger(url: &str) -> Ledger {
    let session = connect(url).await;
    create(&session, "dinnerbell").await.unwrap();
    let ledger = Ledger::open(&session, "dinnerbell", "cluster", "group", "topic", "id").await.unwrap();
    ledger.register(&session, &[(0, 10)]).await.unwrap();
    assert_eq!(ledger.take(&session, &[0], &["owner".into()]).await.unwrap()[0].progress.epoch, 1);
    ledger
}

fn step(ledger: &Ledger, epoch: i64, from: i64, to: i64) -> Step {
    let metadata = ledger.metadata(epoch, Uuid::new_v4());
    Step { partition: 0, epoch, from, to, has_output: true, metadata }
}

/// BEGIN, `advance`, COMMIT on a connection of its own.
async fn advance(url: &str, ledger: &Ledger, step: Step) -> Result<()> {
    let session = connect(url).await;
    session.batch_execute("BEGIN").await.unwrap();
    ledger.advance_and_commit(&session, &[step]).await
}

#[track_caller]
fn is_refused(outcome: Result<()>) {
    assert!(matches!(&outcome, Err(error) if error.action() == Action::Claim), "{outcome:?}");
}

fn next_offset(stack: &Stack) -> i64 {
    stack.number("SELECT next_offset FROM dinnerbell.progress")
}

/// Waits until some session of this database waits for a lock: then it stands where the test wants it.
fn somebody_waits_for_a_lock(stack: &Stack) {
    wait_until("a session waits for a lock", PATIENCE, || {
        stack.number(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
        ) == 1
    });
}

#[test]
fn an_advance_under_an_older_epoch_is_refused() {
    let stack = Stack::new("epoch");
    let url = stack.url.clone();
    let (late, present) = block_on(async move {
        let ledger = ledger(&url).await;
        let session = connect(&url).await;
        assert_eq!(ledger.take(&session, &[0], &["next owner".into()]).await.unwrap()[0].progress.epoch, 2);
        let late = advance(&url, &ledger, step(&ledger, 1, 10, 20)).await;
        (late, advance(&url, &ledger, step(&ledger, 2, 10, 15)).await)
    });
    is_refused(late);
    present.unwrap();
    assert_eq!(next_offset(&stack), 15);
}

#[test]
fn an_advance_from_elsewhere_than_next_offset_is_refused() {
    let stack = Stack::new("compare");
    let url = stack.url.clone();
    let outcomes = block_on(async move {
        let ledger = ledger(&url).await;
        advance(&url, &ledger, step(&ledger, 1, 10, 20)).await.unwrap();
        // The same again, as after a COMMIT whose reply was lost; one that leaves a gap; one that goes back.
        let mut outcomes = Vec::new();
        for (from, to) in [(10, 20), (25, 30), (5, 15)] {
            outcomes.push(advance(&url, &ledger, step(&ledger, 1, from, to)).await);
        }
        outcomes
    });
    outcomes.into_iter().for_each(is_refused);
    assert_eq!(next_offset(&stack), 20);
}

#[test]
fn a_rehearsal_moves_nothing_and_is_refused_as_a_commit_is() {
    let stack = Stack::new("rehearsal");
    let (url, ledger) = opened(&stack);
    let settings = Config::load(Some(&stack.config())).unwrap().postgres;
    let progress = || stack.rows("SELECT progress, xmin FROM dinnerbell.progress");
    let before = progress();
    let (session, ledger) = block_on(async move {
        let session = dinnerbell::ledger::store::connect(&settings).await.unwrap();
        ledger.rehearse(&session, &[step(&ledger, 1, 10, 20)]).await.unwrap();
        (session, ledger)
    });
    assert_eq!(progress(), before);
    let refused = block_on(async move {
        // The row is free for others, and the session for what comes.
        advance(&url, &ledger, step(&ledger, 1, 10, 15)).await.unwrap();
        session.batch_execute("BEGIN; COMMIT").await.unwrap();
        ledger.rehearse(&session, &[step(&ledger, 1, 10, 10)]).await
    });
    is_refused(refused);
    assert_eq!(next_offset(&stack), 15);
}

#[test]
fn of_two_advances_at_once_the_second_sees_the_first() {
    let stack = Stack::new("at_once");
    let (url, ledger) = opened(&stack);
    let first = block_on(in_the_middle_of_an_advance(url.clone(), ledger.clone()));
    let second =
        std::thread::spawn(move || block_on(async move { advance(&url, &ledger, step(&ledger, 1, 10, 30)).await }));
    somebody_waits_for_a_lock(&stack);
    block_on(async move { first.batch_execute("COMMIT").await.unwrap() });
    is_refused(second.join().unwrap());
    assert_eq!(next_offset(&stack), 20);
}

/// What a crash leaves for a moment: a COMMIT that the server has not finished while the next owner claims already.
#[test]
fn a_claim_waits_for_a_commit_under_way() {
    let stack = Stack::new("under_way");
    let (url, ledger) = opened(&stack);
    let first = block_on(in_the_middle_of_an_advance(url.clone(), ledger.clone()));
    let claim = std::thread::spawn(move || {
        block_on(async move {
            let session = connect(&url).await;
            ledger.take(&session, &[0], &["next owner".into()]).await.unwrap()
        })
    });
    somebody_waits_for_a_lock(&stack);
    block_on(async move { first.batch_execute("COMMIT").await.unwrap() });
    let claimed = claim.join().unwrap();
    assert_eq!((claimed[0].progress.next_offset, claimed[0].progress.epoch), (20, 2));
}

fn opened(stack: &Stack) -> (String, Ledger) {
    let url = stack.url.clone();
    let ledger = block_on(async move { ledger(&url).await });
    (stack.url.clone(), ledger)
}

/// A session that has advanced partition 0 from 10 to 20 and has not committed yet.
async fn in_the_middle_of_an_advance(url: String, ledger: Ledger) -> tokio_postgres::Client {
    let session = connect(&url).await;
    let metadata = ledger.metadata(1, Uuid::nil());
    let advance = format!(
        "BEGIN; SELECT dinnerbell.advance(1, 'cluster', 'group', 'id', '{{0}}', '{{1}}', '{{10}}', '{{20}}', '{{true}}', \
         ARRAY['{metadata}'])"
    );
    session.batch_execute(&advance).await.unwrap();
    session
}

fn member(stack: &Stack) -> BaseConsumer {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &stack.bootstrap).set("group.id", &stack.group);
    config.set("enable.auto.commit", "false").set("session.timeout.ms", "10000");
    config.set("partition.assignment.strategy", "range");
    config.create().unwrap()
}

fn has_partitions(member: &BaseConsumer) -> bool {
    member.assignment().unwrap().count() > 0
}

fn producer(stack: &Stack, id: &str) -> Producer {
    let user = BTreeMap::from([("bootstrap.servers".to_owned(), stack.bootstrap.clone())]);
    Producer::open(&user, &format!("{}.{id}", stack.group)).unwrap()
}

fn offset(offset: i64) -> [OffsetCommit; 1] {
    [OffsetCommit { partition: 0, offset, metadata: "of a test".into() }]
}

/// The broker takes offsets without any fence from who is no member, so such a membership is never handed out.
#[test]
fn who_is_no_member_has_no_membership() {
    let stack = Stack::new("no_member");
    let member = member(&stack);
    assert!(GroupMetadata::capture(&member).is_none(), "not even subscribed");
    member.subscribe(&[&stack.campaigns]).unwrap();
    assert!(GroupMetadata::capture(&member).is_none(), "not joined yet");
    wait_until("it has joined", PATIENCE, || {
        member.poll(Duration::from_millis(50));
        has_partitions(&member)
    });
    let group = GroupMetadata::capture(&member).expect("a member");
    let producer = producer(&stack, "a");
    producer.begin().unwrap();
    producer.send_offsets(&stack.campaigns, &offset(1), group.get()).unwrap();
    producer.commit().unwrap();
}

/// Offsets go with the membership under which their messages were read, not with that of the moment.
#[test]
fn a_membership_of_an_older_generation_is_refused() {
    let stack = Stack::new("generation");
    let (one, other) = (member(&stack), member(&stack));
    one.subscribe(&[&stack.campaigns]).unwrap();
    wait_until("one has joined", PATIENCE, || {
        one.poll(Duration::from_millis(50));
        has_partitions(&one)
    });
    let captured = GroupMetadata::capture(&one).expect("a member");
    other.subscribe(&[&stack.campaigns]).unwrap();
    wait_until("both have partitions", PATIENCE, || {
        one.poll(Duration::from_millis(50));
        other.poll(Duration::from_millis(50));
        has_partitions(&one) && has_partitions(&other)
    });
    let producer = producer(&stack, "a");
    producer.begin().unwrap();
    let refused = producer.send_offsets(&stack.campaigns, &offset(1), captured.get());
    assert!(matches!(&refused, Err(Error::Kafka { .. })), "{refused:?}");
    producer.abort().unwrap();
}

/// An offset that an open transaction may still change is no offset yet.
#[test]
fn a_claim_waits_for_offsets_to_be_stable() {
    let stack = Stack::new("unstable");
    LOAD.subscribe(&stack);
    LOAD.produce(&stack, 0..10);
    let mut job = Job::spawn(&stack, &["run"]);
    wait_until("all rows", PATIENCE, || LOAD.is_in_postgres(&stack, 10));
    job.term();
    assert_eq!(job.wait(PATIENCE).code(), Some(0), "{}", job.stderr());

    let stranger = producer(&stack, "stranger");
    let outside = member(&stack).group_metadata().expect("metadata of no member, which the broker takes");
    stranger.begin().unwrap();
    stranger.send_offsets(&stack.campaigns, &offset(3), &outside).unwrap();
    LOAD.produce(&stack, 10..20);
    let mut job = Job::spawn(&stack, &["run"]);
    wait_until("the claim waits", PATIENCE, || job.stderr().contains("reading the group's committed offsets"));
    assert!(!LOAD.is_in_postgres(&stack, 11), "it has gone on");
    stranger.abort().unwrap();
    wait_until("all rows", PATIENCE, || LOAD.is_in_postgres(&stack, 20));
    job.term();
    assert_eq!(job.wait(PATIENCE).code(), Some(0), "{}", job.stderr());
    LOAD.verify(&stack, 20);
}

/// A claim reads the ledger first and Kafka then. Another one in between makes them contradict each other, which is nothing
/// that a person has to look at.
#[cfg(feature = "failpoints")]
#[test]
fn a_claim_that_another_one_has_overtaken_is_made_again() {
    let stack = Stack::new("overtaken");
    LOAD.subscribe(&stack);
    LOAD.produce(&stack, 0..10);
    let job = Job::spawn(&stack, &["run"]);
    LOAD.arrives(&stack, 10);
    stop(job);
    let keys = stack.rows("SELECT cluster_id, topic_id FROM dinnerbell.progress WHERE partition = 0");
    let [cluster, topic] = [0, 1].map(|column| keys[0][column].clone().unwrap());
    let other = producer(&stack, "other");
    let refused = block_on(async move {
        let config = Arc::new(Config::load(Some(&stack.config())).unwrap());
        let session = connect(&stack.url).await;
        let ledger =
            Ledger::open(&session, "dinnerbell", &cluster, &stack.group, &stack.campaigns, &topic).await.unwrap();
        let mut source = Source::open(&config, 0, 3).unwrap();
        let (partitions, group) = loop {
            if let Event::Assigned { partitions, group: Some(group), .. } = source.next().await {
                break (partitions, Arc::new(group));
            }
        };
        let claimant = Claimant {
            config,
            producer: Arc::new([("bootstrap.servers".into(), stack.bootstrap.clone())].into()),
            ledger: Arc::new(ledger.clone()),
            transactional_ids: ["a", "b"].map(|id| format!("{}.{id}", stack.group)),
            consumer: source.consumer(),
        };
        // The last owner is fenced, and before Kafka's offsets are read another one has claimed and committed.
        let (settings, topic, member) = (claimant.config.postgres.clone(), stack.campaigns.clone(), group.clone());
        let overtake = move || {
            // On a runtime of its own: the claim's stands still meanwhile.
            let (ledger, settings) = (ledger.clone(), settings.clone());
            let take = async move {
                let session = dinnerbell::ledger::store::connect(&settings).await.unwrap();
                ledger.take(&session, &[0, 1, 2], &["other".into()]).await.unwrap()
            };
            let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let claimed = std::thread::spawn(move || runtime().block_on(take)).join().unwrap();
            let next = claimed.iter().find(|claimed| claimed.partition == 0).unwrap().progress.next_offset;
            let offset = OffsetCommit { partition: 0, offset: next + 1, metadata: "other".into() };
            other.begin().unwrap();
            other.send_offsets(&topic, &[offset], member.get()).unwrap();
            other.commit().unwrap();
        };
        fail::cfg_callback("S14", overtake).unwrap();
        let outcome = claim(&claimant, &partitions, group).await.map(drop);
        fail::remove("S14");
        drop(claimant);
        tokio::task::spawn_blocking(move || source.close()).await.unwrap();
        outcome
    });
    let told = refused.as_ref().unwrap_err().to_string();
    assert!(told.contains("another member has claimed the partitions meanwhile"), "{told}");
    is_refused(refused);
}

/// Campaigns of a transaction that was aborted have never been announced.
#[test]
fn aborted_campaigns_ring_no_bell() {
    let stack = Stack::new("aborted_input");
    LOAD.subscribe(&stack);
    let announcer = producer(&stack, "announcer");
    for (n, announced) in [(100, false), (0, true), (101, false), (1, true)] {
        announcer.begin().unwrap();
        let campaign = Campaign::new(n, restaurant(n % LOAD.restaurants)).json();
        announcer.produce(&stack.campaigns, None, Some(campaign.as_bytes()), None).unwrap();
        // Aborted ones are in the log as well.
        assert!(announcer.acknowledged(Instant::now() + PATIENCE).unwrap());
        if announced { announcer.commit().unwrap() } else { announcer.abort().unwrap() }
    }
    let mut job = Job::spawn(&stack, &["run"]);
    wait_until("all rows", PATIENCE, || LOAD.is_in_postgres(&stack, 2));
    job.term();
    assert_eq!(job.wait(PATIENCE).code(), Some(0), "{}", job.stderr());
    LOAD.verify(&stack, 2);
}

/// What Kafka does not take must not stand in Postgres: here a record that its topic took when the job looked, and does
/// not take any more.
#[test]
fn nothing_is_committed_before_kafka_has_acknowledged_it() {
    let stack = Stack::new("acknowledged");
    stack.subscribe([("client".to_owned(), restaurant(0))]);
    let mut job = Job::spawn(&stack, &["run"]);
    wait_until("ready", PATIENCE, || job.is_ready());
    alter_topic(&stack.bootstrap, &stack.triggers, &[("max.message.bytes", "20000")]);
    // Random text, which no compression makes small.
    let long: String = std::iter::repeat_with(fastrand::alphanumeric).take(50_000).collect();
    let campaign = Campaign { content: long, ..Campaign::new(1, restaurant(0)) };
    stack.produce([Message::of(campaign.json())]);
    let status = job.wait(PATIENCE);
    assert_eq!(status.code(), Some(1), "{}", job.stderr());
    assert!(job.stderr().contains(&stack.triggers), "{}", job.stderr());
    assert_eq!(stack.number("SELECT count(*) FROM subscribers_feedback"), 0);

    // A start looks at the topic anew, and knows what to do with the message.
    let mut job = Job::spawn(&stack, &["run"]);
    wait_until("a dead letter", PATIENCE, || {
        assert!(job.is_running(), "the job has ended: {}", job.stderr());
        stack.read_dead_letters().len() == 1
    });
    stop(job);
    assert_eq!(stack.read_triggers().len(), 0);
    assert_eq!(stack.number("SELECT count(*) FROM subscribers_feedback"), 0);
}

/// Postgres is first: where it fails at the last moment, Kafka has nothing yet either.
#[test]
fn what_postgres_did_not_commit_is_not_in_kafka() {
    let (stack, network) = Stack::behind_proxies("postgres_first");
    LOAD.subscribe(&stack);
    let job = Job::spawn(&stack, &["run"]);
    wait_until("ready", PATIENCE, || job.is_ready());
    let commit = network.postgres.hold(Match::postgres(".advance("));
    LOAD.produce(&stack, 0..20);
    wait_until("all is written and nothing committed", PATIENCE, || commit.injected() == 1);
    assert!(stack.kill_sessions() > 0);
    commit.release();
    LOAD.arrives(&stack, 20);
    stop(job);
    LOAD.verify(&stack, 20);
}

/// Kafka's commits come in the order of Postgres's: the next one does not begin before the last one has ended.
#[test]
fn the_next_commit_waits_for_the_end_of_the_last() {
    const HELD: Duration = Duration::from_secs(3);
    let (stack, network) = Stack::behind_proxies("in_order");
    LOAD.subscribe(&stack);
    let job = Job::spawn(&stack, &["run"]);
    LOAD.produce(&stack, 0..1);
    LOAD.arrives(&stack, 1);
    let armed = SystemTime::now();
    let end = network.kafka.delay(Match::kafka(api::END_TXN), HELD);
    LOAD.produce(&stack, 1..2);
    wait_until("the end of a transaction is held", PATIENCE, || end.injected() == 1);
    LOAD.produce(&stack, 2..3);
    LOAD.arrives(&stack, 3);
    // `now()` of the transaction that has advanced last is the time of its BEGIN.
    let begun = stack.number("SELECT (extract(epoch FROM max(updated_at)) * 1e6)::int8 FROM dinnerbell.progress");
    let ended = (armed + HELD).duration_since(SystemTime::UNIX_EPOCH).unwrap().as_micros() as i64;
    assert!(begun >= ended, "the next commit began {} us before the last one had ended", ended - begun);
    stop(job);
    LOAD.verify(&stack, 3);
}

/// A trigger of the table that swallows rows would make the sinks differ in silence.
#[test]
fn a_table_that_swallows_rows_halts_the_job() {
    let stack = Stack::new("swallowed");
    LOAD.subscribe(&stack);
    stack.execute(&format!(
        "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
         CREATE TRIGGER swallow BEFORE INSERT ON subscribers_feedback FOR EACH ROW
           WHEN (NEW.client_id = '{}') EXECUTE FUNCTION swallow()",
        client(2)
    ));
    LOAD.produce(&stack, 0..1);
    let mut job = Job::spawn(&stack, &["run"]);
    assert_eq!(job.wait(PATIENCE).code(), Some(1), "{}", job.stderr());
    let told = job.stderr();
    assert!(told.contains("Postgres copied 3 rows of 4 into") && told.contains("swallows rows"), "{told}");
    assert_eq!(stack.number("SELECT count(*) FROM subscribers_feedback"), 0);
    assert_eq!(stack.read_triggers().len(), 0);
    stack.execute("DROP TRIGGER swallow ON subscribers_feedback");
    let mut job = Job::spawn(&stack, &["run"]);
    wait_until("all rows", PATIENCE, || LOAD.is_in_postgres(&stack, 1));
    job.term();
    assert_eq!(job.wait(PATIENCE).code(), Some(0), "{}", job.stderr());
    LOAD.verify(&stack, 1);
}
