//! Input messages that cannot be processed, kept whole with the reason.

/// Where a message was found to be bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The value does not fit the schema of `campaigns.sql`.
    Decode,
    /// A row made from it does not fit the sink table's types.
    Encode,
    /// Postgres refused one of its rows.
    Postgres,
    /// Kafka refused one of its records.
    Kafka,
}

/// The verdict on one message of a micro-batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    /// The message's row number in its micro-batch.
    pub row: u32,
    pub stage: Stage,
    /// The field, as a JSON path such as `$.adv_campaign_datetime_start`; `$` for the whole message.
    pub path: String,
    /// What was expected and what was found.
    pub reason: String,
}
