//! Lookup tables: results of Postgres queries, kept in memory and joined by key.
//!
//! What this promises: a run of the SQL sees one [`LookupSet`], whole and unchanging; a refresh replaces the set at
//! once or not at all. What it does not do: merge rows or remove duplicates. The query's `DISTINCT` does that, in
//! Postgres.
//!
//! Plans that join a table by one equal column read it by index ([`optimizer_rules`]); all others scan it.

mod bound;
mod copy;
mod index;
mod join;
#[cfg(test)]
mod join_tests;
mod load;
mod probe;
mod refresh;
mod rule;
mod table;
#[cfg(test)]
mod tests;

pub(crate) use bound::{BATCH_ROWS, BoundTable};
pub use load::{LookupQuery, load};
pub use refresh::{LookupStatus, Lookups};
pub(crate) use rule::optimizer_rules;
pub use table::{LookupSet, LookupTable};
