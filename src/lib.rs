//! `dinnerbell` rings the bell when a restaurant announces a promotion: campaigns come in from Kafka, are joined in
//! SQL with cached Postgres tables, and every trigger goes out exactly once to Postgres and to Kafka.
//!
//! Data flows one way, and each folder imports only what stands to its left in the flow:
//!
//! ```text
//! source (+ decode) ──► transform (+ lookup) ──► encode ──► sink::postgres, sink::kafka
//!     │ rejects                                      └──► ledger (one Postgres transaction, then one of Kafka)
//!     ▼
//! dead_letter
//! ```
//!
//! [`job`] alone joins the parts, and [`repair`] what is left of them when a job has halted; [`ledger`] states the delivery
//! promise and the protocol that keeps it.

mod id;
mod json;
mod pages;
mod steps;
#[cfg(test)]
mod testdb;
mod view;

pub mod allocator;
pub mod config;
pub mod error;
pub mod offsets;

pub mod messages;

pub mod kafka;
pub mod postgres;

pub mod dead_letter;
pub mod decode;
pub mod source;

pub mod lookup;
pub mod transform;

pub mod encode;

pub mod ledger;
pub mod sink;

pub mod job;
pub mod repair;

pub mod cli;
pub mod demo;
pub mod telemetry;

pub use error::{Error, Result};
pub(crate) use steps::step;
