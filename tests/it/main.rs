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
mod ledger_ddl;
mod lookup_refresh;
mod million;
mod network;
mod proxy;
mod refused_rows;
mod security;
mod sql_edits;
mod stack;
mod start_errors;
#[cfg(feature = "failpoints")]
mod steps;
#[cfg(target_os = "linux")]
mod surroundings;
mod telemetry;
#[cfg(feature = "failpoints")]
mod zombies;
