//! What was read back from the topics so far. Only what is not told yet is kept, and with `once` all of it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::generator::Campaign;
use super::watch::Record;
use crate::config::Config;

/// A message in the topic of campaigns: one of the demo's own, or one that somebody else put there.
#[derive(Debug)]
pub struct Arrival {
    pub record: Record,
    pub campaign: Option<Campaign>,
    /// Its value, as far as that is JSON.
    pub json: Option<Value>,
}

impl Arrival {
    /// A field of the value, where it is a text.
    pub fn text(&self, field: &str) -> Option<&str> {
        self.json.as_ref()?.get(field)?.as_str()
    }

    /// What its triggers carry as `adv_campaign_id`.
    pub fn id(&self) -> &str {
        self.text("adv_campaign_id").unwrap_or_default()
    }

    pub fn place(&self) -> (i32, i64) {
        (self.record.partition, self.record.offset)
    }
}

/// Everything, for the verdict.
#[derive(Debug, Default)]
pub struct Kept {
    pub triggers: Vec<Value>,
    pub letters: Vec<Record>,
}

#[derive(Debug)]
pub struct Seen {
    source: String,
    output: String,
    /// Campaigns that are not told yet.
    pub arrived: Vec<Arrival>,
    /// Messages in the topic of campaigns.
    pub messages: u64,
    /// Records by campaign, until it is told.
    pub triggers: BTreeMap<String, u64>,
    /// Records of campaigns that were not refused.
    pub records: u64,
    /// Records of refused campaigns: they were aborted.
    pub aborted: u64,
    /// Dead letters by partition and offset of their message, until they are told.
    pub letters: BTreeMap<(i32, i64), Record>,
    pub kept: Option<Kept>,
    /// Campaigns of the demo that were sent and not read back.
    sent: BTreeMap<Vec<u8>, Campaign>,
    refused: BTreeSet<String>,
}

impl Seen {
    pub fn new(config: &Config, keep: bool) -> Seen {
        Seen {
            source: config.source.topic.clone(),
            output: config.sink_kafka.topic.clone(),
            arrived: Vec::new(),
            messages: 0,
            triggers: BTreeMap::new(),
            records: 0,
            aborted: 0,
            letters: BTreeMap::new(),
            kept: keep.then(Kept::default),
            sent: BTreeMap::new(),
            refused: BTreeSet::new(),
        }
    }

    /// To be called before it is sent.
    pub fn expect(&mut self, campaign: Campaign) {
        self.sent.insert(campaign.key.clone().into_bytes(), campaign);
    }

    /// Whether all that was sent was read back.
    pub fn has_all(&self) -> bool {
        self.sent.is_empty()
    }

    pub fn take(&mut self, record: Record) {
        let json = record.value.as_deref().and_then(|value| serde_json::from_slice(value).ok());
        if record.topic == self.source {
            self.messages += 1;
            let campaign = record.key.as_ref().and_then(|key| self.sent.remove(key));
            self.arrived.push(Arrival { record, campaign, json });
        } else if record.topic == self.output {
            self.take_trigger(json.unwrap_or_default());
        } else {
            if let Some(kept) = &mut self.kept {
                kept.letters.push(record.clone());
            }
            let number = |name: &str| record.header(name).and_then(|text| text.parse().ok()).unwrap_or(-1);
            let place = (number("dinnerbell.partition") as i32, number("dinnerbell.offset"));
            self.letters.insert(place, record);
        }
    }

    fn take_trigger(&mut self, json: Value) {
        let id = json.get("adv_campaign_id").and_then(Value::as_str).unwrap_or_default().to_owned();
        if self.refused.contains(&id) {
            self.aborted += 1;
            return;
        }
        self.records += 1;
        *self.triggers.entry(id).or_default() += 1;
        if let Some(kept) = &mut self.kept {
            kept.triggers.push(json);
        }
    }

    /// A campaign of which a sink refused a row: nothing of it is committed anywhere, but the demo broker shows readers
    /// what was aborted. How many such records there are so far.
    pub fn refuse(&mut self, id: &str) -> u64 {
        if id.is_empty() {
            return 0;
        }
        let aborted = self.triggers.remove(id).unwrap_or(0);
        self.records -= aborted;
        self.aborted += aborted;
        if let Some(kept) = &mut self.kept {
            kept.triggers.retain(|trigger| trigger.get("adv_campaign_id").and_then(Value::as_str) != Some(id));
        }
        self.refused.insert(id.to_owned());
        aborted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_a_refused_campaign_do_not_count() {
        let config = Config::parse("", std::path::Path::new("x"), &|_| None).unwrap();
        let mut seen = Seen::new(&config, true);
        let trigger = |id: &str| Record {
            topic: "triggers".into(),
            partition: 0,
            offset: 0,
            timestamp: None,
            key: None,
            value: Some(format!(r#"{{"adv_campaign_id":"{id}"}}"#).into_bytes()),
            headers: Vec::new(),
        };
        for id in ["a", "b", "a"] {
            seen.take(trigger(id));
        }
        assert_eq!((seen.refuse("a"), seen.records, seen.aborted), (2, 1, 2));
        seen.take(trigger("a"));
        seen.take(trigger("b"));
        assert_eq!((seen.records, seen.aborted, seen.triggers["b"]), (2, 3, 2));
        assert_eq!(seen.kept.unwrap().triggers.len(), 2);
    }
}
