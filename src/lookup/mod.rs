//! Lookup tables: results of Postgres queries, kept in memory and joined by key.
//!
//! What this promises: a run of the SQL sees one [`LookupSet`], whole and unchanging; a refresh replaces the set at
//! once or not at all. A table has the rows that its query says, duplicates as well; where the query says `DISTINCT`, either
//! Postgres removes them or [`distinct`] does, to the same result.
//!
//! Plans that join a table by one equal column read it by index ([`optimizer_rules`]); all others scan it. What a plan
//! joins by is known before a table is loaded ([`LookupKeys`]): it is loaded into the order of its key.

mod bound;
mod column;
mod copy;
mod distinct;
mod index;
mod join;
#[cfg(test)]
mod join_tests;
mod load;
mod probe;
mod refresh;
mod rule;
mod sql;
mod table;
#[cfg(test)]
mod tests;
mod text;

pub(crate) use bound::{BATCH_ROWS, BoundTable, columns_read};
pub use copy::{CopyDecoder, SOME_ROWS};
pub use load::{LookupQuery, describe, load};
pub use refresh::{LookupStatus, Lookups};
pub(crate) use rule::{lookup_keys, optimizer_rules, scanned_lookups};
pub use table::{LookupKeys, LookupSet, LookupTable};

/// Stands for a row of a lookup table that is not there; a table has fewer rows.
const NO_ROW: u32 = u32::MAX;
