//! The loop: one member of the consumer group, with its own Postgres connection and producers.
//!
//! ```text
//! assigned ──► claim ──► read ──► commit ──┐
//!    ▲           ▲        ▲────────────────┘
//!    │           └── doubt: drop all that is held, wait if a server is away
//!    └── revoked: finish or abandon, release
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use rdkafka::consumer::Consumer;
use tokio_util::sync::CancellationToken;

use super::commit::commit;
use super::engine::{Blueprint, Engine};
use crate::error::{Action, Error, Result};
use crate::kafka::{self, GroupMetadata};
use crate::ledger::claim::{Claimant, Tenure, claim};
use crate::lookup::Lookups;
use crate::source::{Cycle, Event, REVOKE_WAIT, Source};
use crate::telemetry::Health;
use crate::telemetry::metrics::{self, Server};

/// How long a stop waits for the commit in flight and the release. 10 s in all, with the goodbyes to brokers and scrapers.
const STOP_WAIT: Duration = Duration::from_secs(7);

/// Progress without output is written this often: what a crash would read again, for nothing.
const FLUSH_EVERY: Duration = Duration::from_secs(5);

/// And at the latest after so many messages.
const FLUSH_MESSAGES: i64 = 100_000;

/// A member that has heard nothing for this long while Kafka answers others is deaf: librdkafka was seen to stay without
/// any connection after its brokers had gone and come back many times. Where the group only waits for another member,
/// joining anew costs it nothing.
const DEAF_AFTER: Duration = Duration::from_secs(120);

/// A member whose name is taken again within this time shares it with another process.
const REFUSED_AGAIN: Duration = Duration::from_secs(60);

pub struct Lane {
    pub blueprint: Arc<Blueprint>,
    /// Made when it is needed first.
    pub engine: Option<Engine>,
    pub claimant: Claimant,
    pub source: Source,
    pub lookups: Arc<Lookups>,
    pub number: usize,
    pub health: Health,
    pub stop: CancellationToken,
    pub outage: Outage,
    /// When the broker last refused this member because another has its name.
    pub refused: Option<Instant>,
}

/// Partitions that are ours until they are revoked.
struct Assignment {
    session: u64,
    partitions: Vec<i32>,
    group: Arc<GroupMetadata>,
}

/// Why a lane lets go of what it holds, and since when it should.
struct Interrupt {
    reason: Reason,
    since: Instant,
}

enum Reason {
    /// Dropped at the end, `done` lets the group go on.
    Revoked {
        lost: bool,
        #[expect(dead_code, reason = "held for its drop alone")]
        done: std::sync::mpsc::Sender<()>,
    },
    Stopped,
}

impl Interrupt {
    fn new(reason: Reason) -> Interrupt {
        Interrupt { reason, since: Instant::now() }
    }

    /// How long the work in flight and the release may still take, together.
    fn patience(&self) -> Duration {
        let whole = match self.reason {
            Reason::Revoked { lost: true, .. } => Duration::ZERO,
            Reason::Revoked { lost: false, .. } => REVOKE_WAIT,
            Reason::Stopped => STOP_WAIT,
        };
        whole.saturating_sub(self.since.elapsed())
    }

    fn is_stop(&self) -> bool {
        matches!(self.reason, Reason::Stopped)
    }
}

impl Lane {
    /// Works until stopped.
    ///
    /// # Errors
    /// What needs a person.
    pub async fn run(mut self) -> Result<()> {
        let result = self.run_assignments().await;
        match &result {
            Ok(()) => self.health.stopped(self.number, "drained"),
            Err(error) => self.health.stopped(self.number, error.to_string()),
        }
        let Lane { source, claimant, .. } = self;
        // Its handle on the consumer has to go before the consumer can close.
        drop(claimant);
        let closing = tokio::task::spawn_blocking(move || source.close());
        // Brokers that are away must not hold up the exit.
        let _ = tokio::time::timeout(Duration::from_secs(2), closing).await;
        result
    }

    async fn run_assignments(&mut self) -> Result<()> {
        loop {
            self.health.waiting(self.number, "waiting for the group to assign partitions");
            match self.run_assignment().await {
                Ok(Some(interrupt)) if !interrupt.is_stop() => {}
                Ok(_) => return Ok(()),
                Err(error) if self.may_come_back(&error) => {
                    tracing::warn!("{error}; joining the group again, once");
                    self.replace_consumer()?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// One assignment, from the group's word to the end of it; `None` when stopped before it came.
    async fn run_assignment(&mut self) -> Result<Option<Interrupt>> {
        let Some(assignment) = self.assigned().await? else { return Ok(None) };
        tracing::info!(partitions = ?assignment.partitions, "partitions assigned");
        self.hold(&assignment).await.map(Some)
    }

    /// A named member that stood still for longer than its session is refused in the same words as a second process of its
    /// name. The first comes back and stays; of two that run, the one that was first refused is so again at once.
    fn may_come_back(&mut self, error: &Error) -> bool {
        let recently = self.refused.is_some_and(|last| last.elapsed() < REFUSED_AGAIN);
        let refused = error.is_fenced_instance();
        if refused {
            self.refused = Some(Instant::now());
        }
        refused && !recently
    }

    /// The next assignment with partitions in it; `None` when stopped before.
    async fn assigned(&mut self) -> Result<Option<Assignment>> {
        let mut stands_by = false;
        loop {
            let event = tokio::select! {
                () = self.stop.cancelled() => return Ok(None),
                event = self.source.next() => event,
                () = tokio::time::sleep(deaf_after()), if !stands_by => {
                    self.join_anew().await?;
                    continue;
                }
            };
            stands_by = false;
            match event {
                Event::Assigned { partitions, .. } if partitions.is_empty() => {
                    stands_by = true;
                    self.health.working(self.number);
                    tracing::info!("more members than partitions: this lane stands by");
                }
                Event::Assigned { session, partitions, group: Some(group) } => {
                    metrics::rebalance();
                    return Ok(Some(Assignment { session, partitions, group: Arc::new(group) }));
                }
                Event::Failed(error) if error.action() == Action::Halt => return Err(error),
                Event::Failed(error) => {
                    self.outage.pause(&error);
                    self.health.waiting(self.number, error.to_string());
                }
                // Lost again before it was captured, or an old cycle: the next assignment tells.
                Event::Assigned { .. } | Event::Revoked { .. } | Event::Cycle(_) => {}
            }
        }
    }

    /// Replaces the consumer, if a new client is answered: then it is ours that does not hear.
    async fn join_anew(&mut self) -> Result<()> {
        let config = self.claimant.config.clone();
        if let Err(error) = kafka::blocking(move || kafka::probe(&config.source.kafka).map(drop)).await {
            tracing::debug!("Kafka does not answer a new client either: {error}");
            return Ok(());
        }
        tracing::warn!("nothing was heard of the group for long, and Kafka answers: joining it anew");
        self.replace_consumer()
    }

    fn replace_consumer(&mut self) -> Result<()> {
        let source = self.source.again(&self.claimant.config, self.number)?;
        self.claimant.consumer = source.consumer();
        let last = std::mem::replace(&mut self.source, source);
        // Its goodbye may take as long as it likes.
        tokio::task::spawn_blocking(move || last.close());
        Ok(())
    }

    /// Claims and works, again and again, until the assignment is taken away or the job stops.
    async fn hold(&mut self, assignment: &Assignment) -> Result<Interrupt> {
        loop {
            let error = match self.claim_and_work(assignment).await {
                Ok(interrupt) => return Ok(interrupt),
                Err(error) => error,
            };
            if error.action() == Action::Halt {
                return Err(error);
            }
            let pause = self.outage.pause(&error);
            self.health.waiting(self.number, error.to_string());
            tokio::select! {
                interrupt = interrupted(&mut self.source, &self.stop) => return interrupt,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn claim_and_work(&mut self, assignment: &Assignment) -> Result<Interrupt> {
        let tenure = tokio::select! {
            tenure = claim(&self.claimant, &assignment.partitions, assignment.group.clone()) => tenure?,
            interrupt = interrupted(&mut self.source, &self.stop) => return interrupt,
        };
        self.work(tenure, assignment.session).await
    }

    /// Reads and commits until interrupted; then gives up cleanly what it can.
    async fn work(&mut self, tenure: Tenure, session: u64) -> Result<Interrupt> {
        let positions = tenure.held.iter().map(|(&partition, held)| (partition, held.next_offset)).collect();
        let reading = self.source.start(session, positions, self.blueprint.decoder());
        self.source.fetch();
        if self.engine.is_none() {
            self.health.waiting(self.number, "waiting for the lookup tables");
        }
        // The first messages are fetched and decoded meanwhile.
        let ready = async {
            tenure.rehearse().await?;
            match self.engine.take() {
                Some(engine) => Ok(engine),
                None => self.blueprint.engine(&self.lookups).await,
            }
        };
        let mut engine = tokio::select! {
            engine = ready => engine?,
            interrupt = interrupted(&mut self.source, &self.stop) => return self.let_go(tenure, interrupt?).await,
        };
        metrics::outcomes(engine.transform.outcome_names().iter().map(String::as_str));
        self.health.working(self.number);
        let ended = self.ring(&mut engine, tenure, reading).await;
        self.engine = Some(engine);
        ended
    }

    async fn ring(&mut self, engine: &mut Engine, mut tenure: Tenure, reading: u64) -> Result<Interrupt> {
        // After a claim there mostly is a backlog.
        let mut more = true;
        let mut flush = tokio::time::interval(FLUSH_EVERY);
        flush.reset();
        loop {
            let event = tokio::select! {
                event = self.source.next() => Some(event),
                _ = flush.tick() => None,
                () = self.stop.cancelled() => return self.let_go(tenure, Interrupt::new(Reason::Stopped)).await,
            };
            let ended = match event {
                Some(Event::Cycle(cycle)) if cycle.reading == reading => {
                    // In a backlog the next cycle is assembled while this one is committed. Otherwise it is asked for after
                    // the commit: it would hold the first message that comes, and all others would wait for two commits.
                    let ahead = std::mem::take(&mut more) || cycle.full;
                    if ahead {
                        self.source.fetch();
                    }
                    let ended = self.commit(engine, &mut tenure, cycle).await?;
                    if !ahead {
                        self.source.fetch();
                    }
                    ended
                }
                Some(Event::Revoked { lost, done }) => {
                    Ended::Whole(Some(Interrupt::new(Reason::Revoked { lost, done })))
                }
                Some(Event::Failed(error)) => return Err(error),
                Some(Event::Cycle(_) | Event::Assigned { .. }) => Ended::Whole(None),
                None if tenure.postgres.is_closed() => {
                    return Err(Error::Claim { what: "Postgres closed the connection".into() });
                }
                None => uninterrupted(tenure.flush(), &mut self.source, &self.stop).await?,
            };
            self.report_lag(&tenure);
            match ended {
                // A claim alone proves little: a commit, or some quiet seconds, end the trouble that led to it.
                Ended::Whole(None) => self.outage.over(),
                Ended::Whole(Some(interrupt)) => return self.let_go(tenure, interrupt).await,
                Ended::Abandoned(interrupt) => return Ok(interrupt),
            }
        }
    }

    async fn commit(&mut self, engine: &mut Engine, tenure: &mut Tenure, cycle: Cycle) -> Result<Ended> {
        // A refreshed lookup takes effect here, between two batches.
        let lookups = self.lookups.current().await;
        crate::step!("S16");
        let work = async {
            commit(engine, tenure, cycle, &lookups).await?;
            if tenure.pending_messages() > FLUSH_MESSAGES { tenure.flush().await } else { Ok(()) }
        };
        uninterrupted(work, &mut self.source, &self.stop).await
    }

    /// Releases the partitions within the interrupt's patience. Failing that, the next owner fences us: nothing is lost
    /// by it but a moment.
    async fn let_go(&mut self, tenure: Tenure, interrupt: Interrupt) -> Result<Interrupt> {
        let partitions: Vec<i32> = tenure.held.keys().copied().collect();
        for partition in &partitions {
            metrics::consumer_lag(*partition, None);
        }
        if let Reason::Revoked { lost: true, .. } = interrupt.reason {
            tracing::warn!(
                ?partitions,
                "the group has given these partitions to others; what was in flight is abandoned"
            );
            return Ok(interrupt);
        }
        match tokio::time::timeout(interrupt.patience(), tenure.release()).await {
            Ok(Ok(())) => tracing::info!(?partitions, "partitions released"),
            Ok(Err(error)) => tracing::warn!(?partitions, "partitions given up without a release: {error}"),
            Err(_) => tracing::warn!(?partitions, "partitions given up without a release: no answer in time"),
        }
        Ok(interrupt)
    }

    fn report_lag(&self, tenure: &Tenure) {
        let ends = self.claimant.consumer.client().context().ends();
        for (partition, held) in &tenure.held {
            if let Some(end) = ends.get(partition) {
                metrics::consumer_lag(*partition, Some((end - held.read_to).max(0)));
            }
        }
    }
}

/// Tests are less patient: `FAILPOINTS="deaf_after=return(2000)"`, in milliseconds.
fn deaf_after() -> Duration {
    fail::fail_point!("deaf_after", |millis| {
        millis.and_then(|millis| millis.parse().ok()).map_or(DEAF_AFTER, Duration::from_millis)
    });
    DEAF_AFTER
}

/// How work ended.
enum Ended {
    /// Done, and perhaps interrupted meanwhile.
    Whole(Option<Interrupt>),
    /// Interrupted and not done in time, or failed then: everything it touched is in doubt.
    Abandoned(Interrupt),
}

/// Runs work to its end. An interrupt meanwhile gives it its patience.
///
/// # Errors
/// The work's own; after an interrupt only those that need a person.
async fn uninterrupted(
    work: impl Future<Output = Result<()>>,
    source: &mut Source,
    stop: &CancellationToken,
) -> Result<Ended> {
    let mut work = std::pin::pin!(work);
    let interrupt = tokio::select! {
        done = &mut work => return done.map(|()| Ended::Whole(None)),
        interrupt = interrupted(source, stop) => interrupt?,
    };
    match tokio::time::timeout(interrupt.patience(), work).await {
        Ok(Ok(())) => Ok(Ended::Whole(Some(interrupt))),
        Ok(Err(error)) if error.action() == Action::Halt => Err(error),
        Ok(Err(error)) => {
            tracing::warn!("the batch in flight is given up: {error}");
            Ok(Ended::Abandoned(interrupt))
        }
        Err(_) => {
            tracing::warn!(
                "the batch in flight is given up: no end in time; the next owner does it again or completes it"
            );
            Ok(Ended::Abandoned(interrupt))
        }
    }
}

/// Waits for a reason to let go; other events keep.
async fn interrupted(source: &mut Source, stop: &CancellationToken) -> Result<Interrupt> {
    let event = tokio::select! {
        () = stop.cancelled() => return Ok(Interrupt::new(Reason::Stopped)),
        event = source.next_urgent() => event,
    };
    match event {
        Event::Revoked { lost, done } => Ok(Interrupt::new(Reason::Revoked { lost, done })),
        Event::Failed(error) => Err(error),
        Event::Cycle(_) | Event::Assigned { .. } => {
            Err(Error::Claim { what: "the polling thread told something out of turn".into() })
        }
    }
}

/// One stretch of trouble, told once at its start and once at its end.
#[derive(Default)]
pub struct Outage {
    since: Option<Instant>,
    /// The server that was away, once one was: from then on this is a pause, and told as one.
    away: Option<Server>,
    delays: Option<backon::ExponentialBackoff>,
}

impl Outage {
    /// Takes note of the trouble; how long to wait before the next try.
    fn pause(&mut self, error: &Error) -> Duration {
        let claims = error.action() == Action::Claim;
        if !claims && self.away.is_none() {
            tracing::warn!("paused: {error}; trying again with backoff until it works");
            let postgres = matches!(error, Error::Postgres { .. });
            self.away = Some(if postgres { Server::Postgres } else { Server::Kafka });
        } else if claims && self.since.is_none() {
            tracing::info!("claiming the partitions anew: {error}");
        } else {
            tracing::debug!("still paused: {error}");
        }
        self.since.get_or_insert_with(Instant::now);
        let delays = self.delays.get_or_insert_with(|| {
            ExponentialBuilder::default()
                .with_min_delay(Duration::from_millis(100))
                .with_max_delay(Duration::from_secs(10))
                .with_jitter()
                .without_max_times()
                .build()
        });
        delays.next().unwrap_or(Duration::from_secs(10))
    }

    fn over(&mut self) {
        if let (Some(since), Some(server)) = (self.since, self.away) {
            tracing::info!(seconds = since.elapsed().as_secs(), "resumed");
            metrics::reconnect(server);
        }
        *self = Outage::default();
    }
}
