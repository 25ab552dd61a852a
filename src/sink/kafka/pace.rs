//! Whether a producer's records are being acknowledged.

use std::time::{Duration, Instant};

/// What they were doing when they were last looked at.
pub(super) struct Pace {
    handed: u64,
    acknowledged: u64,
    /// When an acknowledgement was last seen, or missed for too long, or there was nothing to acknowledge.
    since: Instant,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Pace {
        Pace { handed: 0, acknowledged: 0, since: now }
    }

    /// Looks at them: `handed` records are new, `waiting` are not acknowledged, the new ones included. Whether the others have
    /// stood still for as long as `limit`; from then on they have as long again.
    pub(super) fn stood_still(&mut self, handed: u64, waiting: u64, limit: Duration, now: Instant) -> bool {
        self.handed += handed;
        let acknowledged = self.handed.saturating_sub(waiting);
        let stand = waiting > handed && acknowledged == self.acknowledged;
        let for_too_long = stand && now.duration_since(self.since) >= limit;
        if for_too_long || !stand {
            self.since = now;
        }
        self.acknowledged = acknowledged;
        for_too_long
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_stand_still_while_none_is_acknowledged() {
        let (start, limit) = (Instant::now(), Duration::from_millis(250));
        let mut pace = Pace::new(start);
        let mut at =
            |millis, handed, waiting| pace.stood_still(handed, waiting, limit, start + Duration::from_millis(millis));
        // The first ones, long after the producer was opened, are new.
        assert!(!at(9_000, 100, 100));
        assert!(!at(9_249, 100, 200));
        assert!(at(9_250, 100, 300));
        // Then they have as long again.
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
