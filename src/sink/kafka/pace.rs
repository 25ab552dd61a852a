//! When records have lingered for long enough.

use std::time::{Duration, Instant};

/// Where none was acknowledged for so long, those that wait for a full batch are sent as they are.
const NO_NEWS: Duration = Duration::from_millis(250);

/// What a producer's records were doing when they were last looked at.
pub(super) struct Pace {
    handed: u64,
    acknowledged: u64,
    /// Since when no other has been acknowledged, or else flushed.
    since: Instant,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Pace {
        Pace { handed: 0, acknowledged: 0, since: now }
    }

    /// Whether to flush, now that `handed` records more wait in librdkafka's queue, which holds `waiting`.
    pub(super) fn is_stuck(&mut self, handed: u64, waiting: u64, now: Instant) -> bool {
        self.handed += handed;
        let acknowledged = self.handed.saturating_sub(waiting);
        let waited_for = waiting > handed && acknowledged == self.acknowledged;
        let is_stuck = waited_for && now.duration_since(self.since) >= NO_NEWS;
        if is_stuck || !waited_for {
            self.since = now;
        }
        self.acknowledged = acknowledged;
        is_stuck
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_stuck_once_none_was_acknowledged_for_a_while() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let mut at =
            |millis: u64, handed, waiting| pace.is_stuck(handed, waiting, start + Duration::from_millis(millis));
        // The first ones, long after the producer was opened, are new.
        assert!(!at(9_000, 100, 100));
        assert!(!at(9_249, 100, 200));
        assert!(at(9_250, 100, 300));
        // Once flushed, they have as long again.
        assert!(!at(9_499, 0, 300));
        // Some are acknowledged, and as many come.
        assert!(!at(9_500, 50, 300));
        assert!(!at(9_749, 50, 350));
        assert!(at(9_750, 0, 350));
        // All are, and the next ones are new.
        assert!(!at(9_990, 0, 0));
        assert!(!at(20_000, 10, 10));
        assert!(at(20_250, 0, 10));
    }
}
