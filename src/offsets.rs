//! Offset ranges: half-open, per partition, pure.

use std::fmt;

/// The offsets `[from, to)` of one partition. Offsets that compaction or transaction markers took away lie inside it
/// like all others: a range says what has been dealt with, not how many messages there were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OffsetRange {
    pub from: i64,
    pub to: i64,
}

impl OffsetRange {
    pub fn new(from: i64, to: i64) -> Self {
        debug_assert!(from <= to, "{from} > {to}");
        Self { from, to }
    }

    pub fn is_empty(self) -> bool {
        self.from == self.to
    }

    /// The range that begins where this one does and ends where `next` does, if `next` follows without a gap.
    pub fn then(self, next: OffsetRange) -> Option<OffsetRange> {
        (self.to == next.from).then_some(OffsetRange { from: self.from, to: next.to })
    }
}

impl fmt::Display for OffsetRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {})", self.from, self.to)
    }
}
