//! The integration tests: one binary, on a real Kafka and a real Postgres (see `tests/support`).

// A test's failure is a panic; the helpers around it are tests too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;

mod bad_messages;
#[cfg(feature = "failpoints")]
mod chaos;
mod checker;
mod cli;
mod deliver;
mod demo;
mod faults;
mod flood;
mod guards;
mod ledger_ddl;
mod lookup_load;
mod lookup_memory;
mod lookup_refresh;
mod million;
mod network;
mod proxy;
mod refused_rows;
#[cfg(feature = "failpoints")]
mod repair;
mod secrets;
mod security;
mod sizes;
mod sql_edits;
mod sql_errors;
mod sql_reads_only;
mod stack;
mod start_errors;
#[cfg(feature = "failpoints")]
mod steps;
#[cfg(target_os = "linux")]
mod surroundings;
mod telemetry;
mod tls;
#[cfg(feature = "failpoints")]
mod zombies;
