//! How the lanes and the lookup tables are doing, as they say it and the admin port shows it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::metrics;

/// What a lane says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LaneStatus {
    /// Not yet a member with connections to both servers.
    Starting,
    /// Processing, or idle with nothing to process.
    Working,
    /// Alive, and cannot go on for now: a server is away, a claim is under way.
    Waiting { reason: String },
    /// It will not go on. Unless the process is about to end, it must be restarted.
    Stopped { reason: String },
}

/// Shared between lanes, lookups and the admin port; clones are the same state.
#[derive(Debug, Clone)]
pub struct Health(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    lanes: Vec<(LaneStatus, Instant)>,
    /// What the first load of the lookup tables waits for; `None` once they are there. Not a lane's status: lanes that
    /// stand by need no tables, and those that work may not be told otherwise by the load.
    loading: Option<String>,
    /// When each lookup table was loaded.
    lookups: BTreeMap<String, Instant>,
}

impl Health {
    /// All lanes are starting, and no lookup table is there.
    pub fn new(lanes: usize) -> Self {
        let lanes = vec![(LaneStatus::Starting, Instant::now()); lanes];
        let loading = Some("Kafka and Postgres are asked first".into());
        Self(Arc::new(Mutex::new(State { lanes, loading, lookups: BTreeMap::new() })))
    }

    /// Lanes count from 0; one that does not exist is ignored.
    pub fn set(&self, lane: usize, status: LaneStatus) {
        if let Some(current) = self.lock().lanes.get_mut(lane)
            && current.0 != status
        {
            *current = (status, Instant::now());
        }
    }

    pub fn working(&self, lane: usize) {
        self.set(lane, LaneStatus::Working);
    }

    pub fn waiting(&self, lane: usize, reason: impl Into<String>) {
        self.set(lane, LaneStatus::Waiting { reason: reason.into() });
    }

    /// None can go on for now.
    pub fn all_waiting(&self, reason: &str) {
        let lanes = self.lock().lanes.len();
        (0..lanes).for_each(|lane| self.waiting(lane, reason));
    }

    pub fn stopped(&self, lane: usize, reason: impl Into<String>) {
        self.set(lane, LaneStatus::Stopped { reason: reason.into() });
    }

    /// What the first load of the lookup tables does, and why it failed before.
    pub fn lookups_waiting(&self, reason: &str) {
        self.lock().loading = Some(reason.to_string());
    }

    /// Every lookup table is there.
    pub fn lookups_ready(&self) {
        self.lock().loading = None;
    }

    /// A lookup table was swapped in; its age counts from now.
    pub fn lookup_loaded(&self, lookup: &str, rows: usize) {
        self.lock().lookups.insert(lookup.to_string(), Instant::now());
        metrics::lookup_rows(lookup, rows);
        metrics::lookup_age(lookup, Duration::ZERO);
    }

    /// Whether no lane has stopped.
    pub fn is_alive(&self) -> bool {
        !self.lock().lanes.iter().any(|(status, _)| matches!(status, LaneStatus::Stopped { .. }))
    }

    /// Whether the lookup tables are there and every lane works.
    pub fn is_ready(&self) -> bool {
        let state = self.lock();
        state.loading.is_none() && state.lanes.iter().all(|(status, _)| *status == LaneStatus::Working)
    }

    /// The lanes, each with its status, for how long, and why; what the lookup tables wait for, if they do, and their ages.
    pub fn to_json(&self) -> Value {
        let state = self.lock();
        let lane = |(number, (status, since)): (usize, &(LaneStatus, Instant))| {
            let (name, reason) = match status {
                LaneStatus::Starting => ("starting", None),
                LaneStatus::Working => ("working", None),
                LaneStatus::Waiting { reason } => ("waiting", Some(reason)),
                LaneStatus::Stopped { reason } => ("stopped", Some(reason)),
            };
            let mut shown = json!({"lane": number, "status": name, "seconds": since.elapsed().as_secs()});
            if let Some(reason) = reason {
                shown["reason"] = json!(reason);
            }
            shown
        };
        let lanes: Vec<Value> = state.lanes.iter().enumerate().map(lane).collect();
        let lookups: BTreeMap<&str, u64> =
            state.lookups.iter().map(|(name, loaded)| (name.as_str(), loaded.elapsed().as_secs())).collect();
        let mut shown = json!({"lanes": lanes, "lookup_age_seconds": lookups});
        if let Some(reason) = &state.loading {
            shown["lookups"] = json!({"status": "loading", "reason": reason});
        }
        shown
    }

    /// Brings the ages of the lookups up to date in the metrics.
    pub(super) fn record_ages(&self) {
        for (lookup, loaded) in &self.lock().lookups {
            metrics::lookup_age(lookup, loaded.elapsed());
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing is left half done under this lock, so a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_every_lane_works_and_alive_until_one_stops() {
        let health = Health::new(2);
        health.lookups_ready();
        assert!(health.is_alive() && !health.is_ready());
        health.working(0);
        assert!(!health.is_ready());
        health.working(1);
        assert!(health.is_ready());
        health.waiting(1, "Postgres is away");
        assert!(health.is_alive() && !health.is_ready());
        health.stopped(0, "halted");
        assert!(!health.is_alive());
        health.working(7);
        assert_eq!(
            health.to_json()["lanes"],
            json!([
                {"lane": 0, "status": "stopped", "seconds": 0, "reason": "halted"},
                {"lane": 1, "status": "waiting", "seconds": 0, "reason": "Postgres is away"},
            ])
        );
    }

    #[test]
    fn not_ready_before_the_lookup_tables_are_there_and_says_why() {
        let health = Health::new(1);
        health.working(0);
        assert!(!health.is_ready() && health.is_alive());
        assert_eq!(
            health.to_json()["lookups"],
            json!({"status": "loading", "reason": "Kafka and Postgres are asked first"})
        );
        health.lookups_waiting("Postgres is away");
        assert_eq!(health.to_json()["lookups"]["reason"], json!("Postgres is away"));
        health.lookups_ready();
        assert!(health.is_ready() && health.to_json().get("lookups").is_none());
    }
}
