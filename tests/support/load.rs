//! A load whose outcome is known: campaigns of a few restaurants, each with the same number of subscribers, and the check
//! that both sinks hold each trigger once.

use std::collections::BTreeMap;

use serde_json::Value;

use super::campaigns::{Campaign, client, restaurant};
use super::job::Job;
use super::messages::Message;
use super::run::wait_until;
use super::stack::Stack;
use super::witness::{LONG_PATIENCE, stop};

/// Campaign n is of restaurant n modulo `restaurants`; each restaurant has its own `subscribers`.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub restaurants: usize,
    pub subscribers: usize,
}

impl Load {
    /// Puts the subscriptions into the stack's table.
    pub fn subscribe(self, stack: &Stack) {
        let pairs = (0..self.restaurants * self.subscribers).map(|n| (client(n), restaurant(n / self.subscribers)));
        stack.subscribe(pairs);
    }

    /// Produces these campaigns.
    pub fn produce(self, stack: &Stack, campaigns: std::ops::Range<usize>) {
        stack.produce(campaigns.map(|n| self.message(n)));
    }

    /// The message of campaign n.
    pub fn message(self, n: usize) -> Message {
        Message::of(self.campaign(n).json())
    }

    fn campaign(self, n: usize) -> Campaign {
        Campaign::new(n, restaurant(n % self.restaurants))
    }

    fn expected(self, campaigns: usize) -> BTreeMap<(String, String), usize> {
        let clients = |n: usize| {
            let first = (n % self.restaurants) * self.subscribers;
            (first..first + self.subscribers).map(client)
        };
        (0..campaigns)
            .flat_map(|n| clients(n).map(move |client| ((self.campaign(n).adv_campaign_id, client), 1)))
            .collect()
    }

    /// Whether the table holds as many rows as `campaigns` make.
    pub fn is_in_postgres(self, stack: &Stack, campaigns: usize) -> bool {
        stack.number("SELECT count(*) FROM subscribers_feedback") >= (campaigns * self.subscribers) as i64
    }

    /// Waits until both sinks hold as many rows as `campaigns` make.
    #[track_caller]
    pub fn arrives(self, stack: &Stack, campaigns: usize) {
        wait_until("all rows in both sinks", LONG_PATIENCE, || {
            self.is_in_postgres(stack, campaigns) && stack.read_triggers().len() >= campaigns * self.subscribers
        });
    }

    /// Stops the job in order; then as [`Load::verify`].
    #[track_caller]
    pub fn ends(self, job: Job, stack: &Stack, campaigns: usize) {
        stop(job);
        self.verify(stack, campaigns);
    }

    /// Each trigger once in each sink, and both sinks equal, row for row.
    pub fn verify(self, stack: &Stack, campaigns: usize) {
        let table = rows_of_table(stack);
        let records = stack.read_triggers();
        let plain = records.iter().all(|record| record.key.is_none() && record.headers.is_empty());
        assert!(plain, "records have keys or headers");
        let topic: Vec<Value> = records.iter().map(|record| parse(record.text())).collect();
        let expected = self.expected(campaigns);
        for (sink, rows) in [("Postgres", &table), ("Kafka", &topic)] {
            let mut found: BTreeMap<(String, String), usize> = BTreeMap::new();
            for row in rows {
                let text = |column: &str| row[column].as_str().expect("text").to_owned();
                *found.entry((text("adv_campaign_id"), text("client_id"))).or_default() += 1;
            }
            let missing = expected.keys().filter(|key| !found.contains_key(*key)).count();
            let doubled = found.values().filter(|count| **count > 1).count();
            assert!(
                missing == 0 && doubled == 0 && found.len() == expected.len(),
                "{sink}: {missing} of {} triggers are missing, {doubled} doubled, {} found",
                expected.len(),
                found.len(),
            );
        }
        assert_eq!(sorted(table), sorted(topic), "the two sinks differ");
    }
}

/// The sink table's rows without `id` and `feedback`.
pub fn rows_of_table(stack: &Stack) -> Vec<Value> {
    let rows = stack.query("SELECT (to_jsonb(f) - 'id' - 'feedback')::text FROM subscribers_feedback f");
    rows.iter().map(|row| parse(row.get(0))).collect()
}

fn parse(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

fn sorted(rows: Vec<Value>) -> Vec<String> {
    let mut rows: Vec<String> = rows.iter().map(Value::to_string).collect();
    rows.sort();
    rows
}
