//! What one lane computes with: everything between Kafka's bytes and the sinks, compiled once per lane.

use crate::decode::Decoder;
use crate::encode::conform::Conform;
use crate::sink::kafka::Destination;
use crate::sink::postgres::CopyPlan;
use crate::transform::Transform;

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
