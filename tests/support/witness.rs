//! What both sinks hold, read by other means than the job's, and how far the job has come.

use std::time::{Duration, SystemTime};

use super::job::Job;
use super::run::wait_until;
use super::stack::Stack;

/// What nothing here should ever need, also while the machine compiles.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Longer than a dead member's session, a server's restart and a backoff, on a machine that does other things as well.
pub const LONG_PATIENCE: Duration = Duration::from_secs(90);

/// Unix seconds.
pub fn now() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs() as i64
}

/// Waits until this process of the job has dealt with `messages` messages, whatever became of them.
#[track_caller]
pub fn taken(job: &mut Job, messages: usize) {
    wait_until(&format!("{messages} messages taken"), PATIENCE, || {
        assert!(job.is_running(), "the job has ended: {}", job.stderr());
        job.get("/metrics").is_some() && job.metric("dinnerbell_messages_in_total", "") as usize >= messages
    });
    assert_eq!(job.metric("dinnerbell_messages_in_total", ""), messages as f64);
}

/// Stops the job in order, which exits with 0.
#[track_caller]
pub fn stop(mut job: Job) -> String {
    job.term();
    assert_eq!(job.wait(PATIENCE).code(), Some(0), "{}", job.stderr());
    job.stderr()
}

/// How to read one mission's sink table: its name and the SELECT's columns in their order.
#[derive(Debug, Clone, Copy)]
pub struct Witness<'a> {
    pub table: &'a str,
    pub columns: &'a str,
}

impl Witness<'static> {
    /// The documented mission.
    pub const DOCUMENTED: Witness<'static> = Witness {
        table: "public.subscribers_feedback",
        columns: "restaurant_id, adv_campaign_id, adv_campaign_content, adv_campaign_owner, \
                  adv_campaign_owner_contact, adv_campaign_datetime_start, adv_campaign_datetime_end, client_id, \
                  datetime_created, trigger_datetime_created",
    };
}

impl Witness<'_> {
    /// A query for the table's rows as JSON, by Postgres's own writer.
    pub fn query(&self) -> String {
        let Witness { table, columns } = self;
        format!("SELECT json_strip_nulls(row_to_json(t))::text FROM (SELECT {columns} FROM {table}) t")
    }

    /// The values of both sinks, sorted: they must be the same.
    #[track_caller]
    pub fn rows(&self, stack: &Stack) -> Vec<String> {
        let mut postgres: Vec<String> =
            stack.rows(&self.query()).into_iter().map(|mut row| row.remove(0).expect("no null")).collect();
        let mut kafka: Vec<String> = stack.read_triggers().iter().map(|record| record.text().to_owned()).collect();
        postgres.sort();
        kafka.sort();
        assert_eq!(postgres, kafka, "the sinks differ");
        kafka
    }

    /// As [`Witness::rows`], without the end of each row: when it was made.
    #[track_caller]
    pub fn timeless(&self, stack: &Stack) -> Vec<String> {
        let cut = |row: String| row.split(",\"trigger_datetime_created\"").next().unwrap_or_default().to_owned();
        self.rows(stack).into_iter().map(cut).collect()
    }
}
