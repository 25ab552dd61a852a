//! The integration tests: one binary, on a real Kafka and a real Postgres (see `support`).

mod support;

mod deliver;
mod stack;
