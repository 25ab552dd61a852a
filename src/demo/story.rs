//! The demo's course: a campaign goes in, the job is done with it, what came of it is read back and told.
//!
//! Campaigns go in one at a time. That names each one's outcome by the change of the job's counters, and keeps what the
//! demo broker cannot hide, the records of an aborted transaction, to the campaign that was refused.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rdkafka::producer::{BaseRecord, DefaultProducerContext, ThreadedProducer};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use super::generator::{Campaign, DECK, Generator};
use super::outcomes::Outcomes;
use super::screen::{Came, Screen, Totals};
use super::seen::{Arrival, Seen};
use super::stage::Stage;
use super::verdict::{self, Evidence};
use super::watch::Watch;
use crate::error::{Error, Result};
use crate::kafka;
use crate::postgres::{self, Connection};

/// Between two campaigns, so that a person can read along.
const PACE: Duration = Duration::from_millis(500);

/// With `once`.
const FAST_PACE: Duration = Duration::from_millis(20);

/// How long a campaign may take before something must be wrong. One takes 50 ms here.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long records may take from their commit to the reader.
const READ_BACK: Duration = Duration::from_secs(10);

/// Campaigns between two summaries.
const SUMMARY_EVERY: usize = 20;

pub struct Story<'a> {
    stage: &'a Stage,
    once: bool,
    /// Cancelled when the demo is to end, or the job did.
    ended: CancellationToken,
    generator: Generator,
    producer: ThreadedProducer<DefaultProducerContext>,
    watch: Watch,
    postgres: Connection,
    seen: Seen,
    /// All that were sent; kept for the verdict only.
    campaigns: Vec<Campaign>,
    told: Outcomes,
    last_row: i32,
}

/// How waiting ended.
#[derive(PartialEq, Eq)]
enum Waited {
    Done,
    TooLong,
    Ended,
}

impl<'a> Story<'a> {
    /// Connects to both servers, as any other client would.
    pub async fn begin(stage: &'a Stage, once: bool, ended: CancellationToken) -> Result<Story<'a>> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() as i64;
        let generator = Generator::new(stage.seed, now, &stage.subscriptions);
        let config = kafka::client_config(&stage.config.source.kafka, &[("linger.ms", "0")]);
        let producer = config.create().map_err(Error::kafka("creating the demo's producer"))?;
        let watch = Watch::start(stage)?;
        let postgres = postgres::connect(&stage.config.postgres, "dinnerbell demo").await?;
        let seen = Seen::new(&stage.config, once);
        let (campaigns, told) = (Vec::new(), Outcomes::default());
        Ok(Story { stage, once, ended, generator, producer, watch, postgres, seen, campaigns, told, last_row: 0 })
    }

    /// Runs until `shutdown`, or until the job halts; with `once` until every kind of campaign went through.
    ///
    /// # Errors
    /// Where the job does not get on with a campaign, or the verdict finds a difference.
    pub async fn tell(&mut self, screen: &mut Screen, shutdown: &CancellationToken) -> Result<()> {
        let mut whole = self.is_ready().await && self.greet(screen).await?;
        let pace = if self.once { FAST_PACE } else { PACE };
        for count in 1.. {
            if !whole {
                break;
            }
            let next = Instant::now() + pace;
            self.send()?;
            whole = self.settle(screen).await?;
            if whole && self.once && count == DECK {
                return self.judge(screen).await;
            }
            if whole && count % SUMMARY_EVERY == 0 {
                screen.summary(&self.totals().await?)?;
            }
            whole = whole && self.rest(next, screen).await?;
        }
        if self.once {
            return Err(Error::Halt {
                what: "the demo was stopped before its last campaign: nothing is verified".into(),
                remedy: String::new(),
            });
        }
        if shutdown.is_cancelled() { screen.goodbye(&self.totals().await?) } else { Ok(()) }
    }

    /// Whether the job reads from its partitions; false if the demo is to end before it does.
    async fn is_ready(&self) -> bool {
        while !self.ended.is_cancelled() {
            if answers_ready(&self.stage.admin).await.unwrap_or(false) {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        false
    }

    async fn greet(&self, screen: &mut Screen) -> Result<bool> {
        let rows = self.postgres.query_one("SELECT count(*) FROM public.subscribers_restaurants", &[]).await;
        let rows: i64 = rows.map_err(reading())?.get(0);
        screen.ready(rows, self.once).map(|()| true)
    }

    fn send(&mut self) -> Result<()> {
        let Some(campaign) = self.generator.next() else { return Ok(()) };
        if self.once {
            self.campaigns.push(campaign.clone());
        }
        self.seen.expect(campaign.clone());
        let mut record = BaseRecord::to(&self.stage.config.source.topic).key(campaign.key.as_bytes());
        if let Some(json) = &campaign.json {
            record = record.payload(json.as_slice());
        }
        self.producer.send(record).map_err(|(error, _)| Error::kafka("sending a campaign")(error))
    }

    /// Waits until the job is done with all that is in the topic, and tells what came of it. False if the demo is to end.
    async fn settle(&mut self, screen: &mut Screen) -> Result<bool> {
        let is_done =
            |seen: &Seen| Ok(seen.has_all() && !seen.arrived.is_empty() && Outcomes::now()?.messages == seen.messages);
        loop {
            match self.until(PATIENCE, is_done).await? {
                Waited::Done => break,
                Waited::Ended => return Ok(false),
                Waited::TooLong if self.once => {
                    return Err(Error::Halt {
                        what: format!("the job has not dealt with a campaign for {PATIENCE:?}"),
                        remedy: "see what it logs: RUST_LOG=info dinnerbell demo".into(),
                    });
                }
                Waited::TooLong => screen.note("the job has not dealt with the last campaign yet; still waiting")?,
            }
        }
        let outcomes = Outcomes::now()?;
        let added = outcomes.since(&self.told);
        self.told = outcomes;
        let rows = self.new_rows().await?;
        let all_read = |seen: &Seen| {
            let has = |(id, rows): (&String, &u64)| seen.triggers.get(id).is_some_and(|records| records >= rows);
            Ok(rows.iter().all(has) && seen.letters.len() as u64 >= added.dead_letters())
        };
        if self.until(READ_BACK, all_read).await? == Waited::Ended {
            return Ok(false);
        }
        for arrival in std::mem::take(&mut self.seen.arrived) {
            let came = self.came_of(&arrival, &rows, &added);
            screen.campaign(&arrival, &came)?;
        }
        Ok(true)
    }

    fn came_of(&mut self, arrival: &Arrival, rows: &BTreeMap<String, u64>, added: &Outcomes) -> Came {
        if let Some(letter) = self.seen.letters.remove(&arrival.place()) {
            let aborted = self.seen.refuse(arrival.id());
            let header = |name: &str| letter.header(name).unwrap_or_default().to_owned();
            return Came::Letter {
                stage: header("dinnerbell.stage"),
                path: header("dinnerbell.path"),
                reason: header("dinnerbell.reason"),
                aborted,
            };
        }
        let records = self.seen.triggers.remove(arrival.id()).unwrap_or(0);
        let rows = rows.get(arrival.id()).copied().unwrap_or(0);
        if rows + records > 0 { Came::Triggers { rows, records } } else { Came::Nothing { why: added.filters() } }
    }

    /// Lets time pass. Campaigns that somebody else sends meanwhile are told. False if the demo is to end.
    async fn rest(&mut self, end: Instant, screen: &mut Screen) -> Result<bool> {
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.until(left, |seen| Ok(!seen.arrived.is_empty())).await? {
                Waited::TooLong => return Ok(true),
                Waited::Ended => return Ok(false),
                Waited::Done if !self.settle(screen).await? => return Ok(false),
                Waited::Done => {}
            }
        }
    }

    /// Takes in what the reader brings until `is_done`.
    async fn until(&mut self, patience: Duration, is_done: impl Fn(&Seen) -> Result<bool>) -> Result<Waited> {
        let end = Instant::now() + patience;
        loop {
            while let Ok(record) = self.watch.records.try_recv() {
                self.seen.take(record);
            }
            if self.ended.is_cancelled() {
                return Ok(Waited::Ended);
            }
            if is_done(&self.seen)? {
                return Ok(Waited::Done);
            }
            if Instant::now() >= end {
                return Ok(Waited::TooLong);
            }
            tokio::select! {
                Some(record) = self.watch.records.recv() => self.seen.take(record),
                () = self.ended.cancelled() => {}
                // The job's counters change without a record.
                () = tokio::time::sleep(Duration::from_millis(5)) => {}
            }
        }
    }

    /// Rows by campaign that came to the table since the last look.
    async fn new_rows(&mut self) -> Result<BTreeMap<String, u64>> {
        let sql = format!(
            "SELECT adv_campaign_id::text, count(*), max(id) FROM {} WHERE id > $1 GROUP BY 1",
            self.stage.config.sink_postgres.table
        );
        let found = self.postgres.query(&sql, &[&self.last_row]).await.map_err(reading())?;
        let mut rows = BTreeMap::new();
        for row in found {
            self.last_row = self.last_row.max(row.get(2));
            rows.insert(row.get(0), row.get::<_, i64>(1) as u64);
        }
        Ok(rows)
    }

    async fn totals(&self) -> Result<Totals> {
        let sql = format!("SELECT count(*) FROM {}", self.stage.config.sink_postgres.table);
        let rows: i64 = self.postgres.query_one(&sql, &[]).await.map_err(reading())?.get(0);
        let Seen { records, aborted, .. } = self.seen;
        Ok(Totals { outcomes: Outcomes::now()?, rows: rows as u64, records, aborted })
    }

    /// Compares both sinks with each other and with what the generator knows.
    async fn judge(&mut self, screen: &mut Screen) -> Result<()> {
        screen.summary(&self.totals().await?)?;
        let sql = format!(
            "SELECT jsonb_strip_nulls(to_jsonb(t) - 'id' - 'feedback')::text FROM {} t",
            self.stage.config.sink_postgres.table
        );
        let found = self.postgres.query(&sql, &[]).await.map_err(reading())?;
        let rows: Vec<Value> = found.iter().map(|row| serde_json::from_str(row.get(0)).unwrap_or_default()).collect();
        // All was waited for, campaign by campaign; this is for what should not come at all.
        let stop = self.until(Duration::from_millis(300), |_| Ok(false)).await?;
        if stop == Waited::Ended {
            return Err(Error::Halt { what: "stopped before the verdict".into(), remedy: String::new() });
        }
        let kept = self.seen.kept.take().unwrap_or_default();
        let checks = verdict::judge(&Evidence {
            campaigns: &self.campaigns,
            rows: &rows,
            records: &kept.triggers,
            letters: &kept.letters,
            outcomes: &Outcomes::now()?,
        });
        screen.verdict(&checks, self.seen.aborted)?;
        match checks.iter().filter(|check| !check.holds).count() {
            0 => Ok(()),
            failed => Err(Error::Halt {
                what: format!("{failed} of {} checks failed", checks.len()),
                remedy: "if the SQL files were edited, the generator does not know it: it counts by the shipped ones; \
                         otherwise please report it"
                    .into(),
            }),
        }
    }
}

fn reading() -> impl FnOnce(tokio_postgres::Error) -> Error {
    Error::postgres("reading back from the demo's Postgres")
}

/// Asks /readyz.
async fn answers_ready(admin: &str) -> std::io::Result<bool> {
    let mut socket = tokio::net::TcpStream::connect(admin).await?;
    let request = format!("GET /readyz HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await?;
    Ok(answer.starts_with(b"HTTP/1.1 200"))
}
