//! What `dinnerbell demo` runs on: an in-process broker, a private Postgres and a trickle of campaigns.
//!
//! The broker is librdkafka's mock cluster: it speaks the protocol, transactions included, and keeps nothing; it shows
//! the job at work and is no witness for delivery. The private Postgres is a real one, and the tests use it too.

pub mod broker;
pub mod generator;
pub mod postgres;
pub mod process;
