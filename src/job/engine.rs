//! What one lane computes with: everything between Kafka's bytes and the sinks, compiled once per lane.

use std::sync::Arc;

use super::setup::{self, Mission, Topics};
use crate::config::Config;
use crate::decode::Decoder;
use crate::encode::conform::Conform;
use crate::error::Result;
use crate::lookup::Lookups;
use crate::sink::kafka::Destination;
use crate::sink::postgres::CopyPlan;
use crate::sink::table::TableShape;
use crate::transform::Transform;

/// What all lanes' engines are made from.
pub struct Blueprint {
    pub config: Arc<Config>,
    pub mission: Mission,
    pub shape: TableShape,
    pub topics: Topics,
}

impl Blueprint {
    /// Needs no lookup tables: messages can be decoded while those are still on their way.
    pub fn decoder(&self) -> Decoder {
        setup::decoder(&self.config, &self.mission)
    }

    /// Waits for the lookup tables, whose sizes decide how they are joined.
    ///
    /// # Errors
    /// As for [`setup::compile`].
    pub async fn engine(&self, lookups: &Lookups) -> Result<Engine> {
        let lookups = lookups.current().await;
        setup::compile(&self.config, &self.mission, &lookups, &self.shape, &self.topics).await
    }
}

/// A lane's own: a compiled plan runs one batch at a time.
pub struct Engine {
    pub decoder: Decoder,
    pub transform: Transform,
    pub conform: Conform,
    pub copy: CopyPlan,
    /// The sink table's columns that the job writes.
    pub columns: Vec<String>,
    pub source_topic: String,
    pub sql_hash: String,
    pub output_to: Destination,
    pub output_key: Option<String>,
    pub letters_to: Destination,
}
