//! What the demo prints: plain lines that scroll, with colours on a terminal unless NO_COLOR is set.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use super::outcomes::Outcomes;
use super::seen::Arrival;
use super::stage::Stage;
use super::verdict::Check;
use crate::error::{Error, Result};

/// What came of a campaign, read back from where it went.
#[derive(Debug)]
pub enum Came {
    Triggers { rows: u64, records: u64 },
    Letter { stage: String, path: String, reason: String, aborted: u64 },
    Nothing { why: String },
}

/// The state of things, for summaries.
#[derive(Debug)]
pub struct Totals {
    pub outcomes: Outcomes,
    pub rows: u64,
    pub records: u64,
    pub aborted: u64,
}

/// SGR codes.
const BOLD: &str = "1";
const DIM: &str = "2";
const RED: &str = "31";
const GREEN: &str = "32";
const YELLOW: &str = "33";

/// Longer texts are cut: a line is a line.
const WIDTH: usize = 100;

pub struct Screen {
    colours: bool,
}

impl Screen {
    pub fn new() -> Screen {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Screen { colours: std::io::stdout().is_terminal() && !refused }
    }

    pub fn opening(&self) -> Result<()> {
        let title = self.paint(BOLD, "dinnerbell demo");
        self.line(format!("{title}: the real job between an in-process Kafka and a private Postgres; starting ..."))
    }

    /// What runs where, and how to look at it.
    pub fn header(&self, stage: &Stage) -> Result<()> {
        let config = &stage.config;
        let (broker, url, admin) = (stage.bootstrap(), &stage.database_url, &stage.admin);
        let (source, output, letters) = (&config.source.topic, &config.sink_kafka.topic, &config.dead_letters.topic);
        let table = &config.sink_postgres.table;
        let restaurant = stage.subscriptions.rows.first().map_or("", |(_, restaurant)| restaurant.as_str());
        let own = own_campaign(restaurant);
        let bold = |text: &str| self.paint(BOLD, text);
        let shown = [
            String::new(),
            format!("  {}     {broker}, topics {source}, {output}, {letters}", bold("Kafka")),
            format!("  {}  127.0.0.1, tables public.subscribers_restaurants, {table}", bold("Postgres")),
            format!("  {}       {} (edit triggers.sql and start again)", bold("SQL"), config.sql_directory.display()),
            String::new(),
            format!("  {}", bold("Look while it runs, from another terminal:")),
            format!("    kcat -b {broker} -t {output} -C -o beginning"),
            format!("    kcat -b {broker} -t {letters} -C -o beginning -f '%k: %h\\n'"),
            format!("    psql {url} -c 'SELECT * FROM {table} ORDER BY id DESC LIMIT 5'"),
            format!("    curl -s http://{admin}/metrics | grep ^dinnerbell_"),
            format!("  {}", bold("Ring yourself:")),
            format!("    echo 'mine:{own}' | kcat -b {broker} -t {source} -P -K:"),
            String::new(),
        ];
        shown.into_iter().try_for_each(|line| self.line(line))
    }

    pub fn ready(&self, subscriptions: i64, once: bool) -> Result<()> {
        let until = if once { "every kind of campaign once through" } else { "Ctrl-C ends it" };
        self.line(format!(
            "The job is ready: {subscriptions} subscriptions, some of them in the table twice; {until}.\n"
        ))
    }

    /// What came in, and what came of it.
    pub fn campaign(&self, arrival: &Arrival, came: &Came) -> Result<()> {
        let key = String::from_utf8_lossy(arrival.record.key.as_deref().unwrap_or(b"(no key)")).into_owned();
        let kind = arrival.campaign.as_ref().map_or("yours".to_owned(), |campaign| campaign.kind.to_string());
        let restaurant = arrival.campaign.as_ref().map(|campaign| campaign.restaurant_id.as_str());
        let restaurant: String = restaurant.or(arrival.text("restaurant_id")).unwrap_or("?").chars().take(8).collect();
        let content = arrival.text("adv_campaign_content").map(|text| format!("{:?}", one_line(text, 50)));
        let content = self.paint(DIM, &content.unwrap_or_default());
        let (key, kind) = (clean(&key), self.paint(BOLD, &format!("{kind:<22}")));
        self.line(format!("{} {key:<12} {kind} restaurant {restaurant}  {content}", self.paint(DIM, "in ")))?;
        let out = match came {
            Came::Triggers { rows, records } if rows == records => {
                self.paint(GREEN, &format!("triggered: {rows} rows in Postgres, {records} records in Kafka"))
            }
            Came::Triggers { rows, records } => {
                self.paint(RED, &format!("triggered: {rows} rows in Postgres, but {records} records in Kafka"))
            }
            Came::Nothing { why } => self.paint(YELLOW, &format!("filtered: {why}")),
            Came::Letter { stage, path, reason, .. } => {
                self.paint(RED, &one_line(&format!("dead letter ({stage}) {path}: {reason}"), WIDTH))
            }
        };
        let took = arrival.record.timestamp.map_or(String::new(), |sent| format!("{} ms", since(sent)));
        self.line(format!("{} {} {out}", self.paint(DIM, "out"), self.paint(DIM, &format!("{took:<12}"))))?;
        match came {
            Came::Letter { aborted: 1.., .. } => self
                .note("its first attempt was aborted: this broker still shows those records, a real Kafka hides them"),
            _ => Ok(()),
        }
    }

    pub fn note(&self, text: &str) -> Result<()> {
        self.line(format!("{:16} {}", "", self.paint(DIM, text)))
    }

    /// In equals the sum of what came of it.
    pub fn summary(&self, totals: &Totals) -> Result<()> {
        let Totals { outcomes, rows, records, aborted } = totals;
        let parts: Vec<String> = outcomes.by_name.iter().map(|(name, count)| format!("{count} {name}")).collect();
        let equals = if outcomes.sum() == outcomes.messages { "=" } else { "but not" };
        let aborted = if *aborted > 0 { format!(" (and {aborted} aborted ones)") } else { String::new() };
        self.line(format!(
            "\n{} {} in {equals} {}\n    {rows} rows in Postgres, {records} records in Kafka{aborted}\n",
            self.paint(BOLD, "so far:"),
            outcomes.messages,
            parts.join(" + "),
        ))
    }

    pub fn verdict(&self, checks: &[Check], aborted: u64) -> Result<()> {
        self.line(self.paint(BOLD, "verdict"))?;
        for check in checks {
            let mark = if check.holds { self.paint(GREEN, "ok    ") } else { self.paint(RED, "FAILED") };
            self.line(format!("  {mark} {}", check.what))?;
        }
        if aborted > 0 {
            self.line(format!(
                "  {}",
                self.paint(DIM, &format!("{aborted} records of refused campaigns are left out: they were aborted"))
            ))?;
        }
        match checks.iter().all(|check| check.holds) {
            true => self.line(self.paint(GREEN, "Both sinks hold the same, and all of it.")),
            false => self.line(self.paint(RED, "The sinks do not hold what they should.")),
        }
    }

    pub fn goodbye(&self, totals: &Totals) -> Result<()> {
        self.summary(totals)?;
        self.line("Stopping: the job finishes what it holds, and Postgres goes with its directory.")
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn line(&self, text: impl Display) -> Result<()> {
        writeln!(std::io::stdout().lock(), "{text}").map_err(Error::io("writing to standard output"))
    }
}

/// A campaign to paste, on for the next years.
fn own_campaign(restaurant: &str) -> String {
    format!(
        r#"{{"restaurant_id":"{restaurant}","adv_campaign_id":"my-own","adv_campaign_content":"Soup for all","adv_campaign_owner":"Me","adv_campaign_owner_contact":"me@home.example","adv_campaign_datetime_start":1659203516,"adv_campaign_datetime_end":2659207116,"datetime_created":1659131516}}"#
    )
}

/// Milliseconds since `sent`, which are milliseconds since the epoch.
fn since(sent: i64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as i64;
    (now - sent).max(0)
}

/// Without what could move the cursor.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn one_line(text: &str, most: usize) -> String {
    let text = clean(text);
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_from_outside_stay_on_one_line() {
        assert_eq!(one_line("a\n\x1b[31mb", 100), "a  [31mb");
        assert_eq!(one_line("éé long", 2), "éé...");
        assert!(serde_json::from_str::<serde_json::Value>(&own_campaign("r")).is_ok());
    }
}
