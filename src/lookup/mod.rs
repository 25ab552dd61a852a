//! Lookup tables: results of Postgres queries, kept in memory and joined by key.
//!
//! What this promises: a run of the SQL sees one [`LookupSet`], whole and unchanging; a refresh replaces the set at
//! once or not at all. What it does not do: merge rows or remove duplicates. The query's `DISTINCT` does that, in
//! Postgres.

mod bound;
mod copy;
mod load;
mod refresh;
mod table;
#[cfg(test)]
mod tests;

pub(crate) use bound::{BATCH_ROWS, BoundTable};
pub use load::{LookupQuery, load};
pub use refresh::{LookupStatus, Lookups};
pub use table::{LookupSet, LookupTable};
