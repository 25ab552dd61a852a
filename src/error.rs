//! Every error of the job, and the one place that says what each of them leads to.

use std::path::PathBuf;

use tokio_postgres::error::SqlState;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What failed, where, and (in [`Error::remedy`]) what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting that is unknown, of the wrong type or out of range.
    #[error("{key}: {problem}")]
    Setting { key: String, problem: String, remedy: String },

    /// A file under `[sql] directory` that cannot be used. Line and column count from 1.
    #[error("{}{}: {problem}", file.display(), position(*line, *column))]
    Sql { file: PathBuf, line: Option<u64>, column: Option<u64>, problem: String, remedy: String },

    #[error("{doing}: {}", explain_postgres(source))]
    Postgres { doing: String, source: tokio_postgres::Error },

    #[error("{doing}: {source}")]
    Kafka { doing: String, source: rdkafka::error::KafkaError },

    #[error("{doing}: {source}")]
    Engine { doing: String, source: datafusion::error::DataFusionError },

    #[error("{doing}: {source}")]
    Io { doing: String, source: std::io::Error },

    /// Something that the ledger or the environment shows and the job must not decide by itself.
    #[error("{what}")]
    Halt { what: String, remedy: String },

    /// The SQL wants more for one batch than it may have. It may do with fewer messages; for one alone, a person is needed.
    #[error("{what}")]
    Exceeded { what: String, remedy: String },

    /// What this lane holds is no longer its own, or its outcome is unknown: only a new claim tells.
    #[error("{what}")]
    Claim { what: String },

    /// A server that is away or not ready, seen by other means than a client library's error.
    #[error("{what}")]
    Away { what: String },
}

/// What an error leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The server is away or busy: wait with backoff, then claim the partitions anew.
    Retry,
    /// The lane's hold is lost or its outcome unknown: claim the partitions anew, at once.
    Claim,
    /// A person is needed: stop with the error and its remedy.
    Halt,
}

impl Error {
    pub fn postgres(doing: impl Into<String>) -> impl FnOnce(tokio_postgres::Error) -> Error {
        let doing = doing.into();
        move |source| Error::Postgres { doing, source }
    }

    pub fn kafka(doing: impl Into<String>) -> impl FnOnce(rdkafka::error::KafkaError) -> Error {
        let doing = doing.into();
        move |source| Error::Kafka { doing, source }
    }

    pub fn engine(doing: impl Into<String>) -> impl FnOnce(datafusion::error::DataFusionError) -> Error {
        let doing = doing.into();
        move |source| Error::Engine { doing, source }
    }

    pub fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
        let doing = doing.into();
        move |source| Error::Io { doing, source }
    }

    /// The same, with the place in the SQL file where it does not have one yet.
    pub fn at(self, place: Option<(u64, u64)>) -> Error {
        match (self, place) {
            (Error::Sql { file, line: None, problem, remedy, .. }, Some((line, column))) => {
                Error::Sql { file, line: Some(line), column: Some(column), problem, remedy }
            }
            (error, _) => error,
        }
    }

    /// The one classification: every error leads to exactly one action.
    pub fn action(&self) -> Action {
        match self {
            Error::Postgres { source, .. } => postgres_action(source),
            Error::Kafka { source, .. } => kafka_action(source),
            Error::Away { .. } => Action::Retry,
            Error::Claim { .. } => Action::Claim,
            Error::Setting { .. }
            | Error::Sql { .. }
            | Error::Engine { .. }
            | Error::Io { .. }
            | Error::Exceeded { .. }
            | Error::Halt { .. } => Action::Halt,
        }
    }

    /// Whether the broker says that another member of the group has this one's `[job] instance`.
    pub fn is_fenced_instance(&self) -> bool {
        use rdkafka::error::RDKafkaErrorCode as Code;
        matches!(self, Error::Kafka { source, .. } if source.rdkafka_error_code() == Some(Code::FencedInstanceId))
    }

    /// What the operator can do, where that is known.
    pub fn remedy(&self) -> Option<&str> {
        let text = match self {
            Error::Setting { remedy, .. }
            | Error::Sql { remedy, .. }
            | Error::Exceeded { remedy, .. }
            | Error::Halt { remedy, .. } => remedy.as_str(),
            Error::Postgres { source, .. } => postgres_remedy(source.code()),
            Error::Kafka { source, .. } => kafka_remedy(source),
            _ => "",
        };
        (!text.is_empty()).then_some(text)
    }

    /// 2 for wrong usage or settings (the SQL files are settings too), 1 for everything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Setting { .. } | Error::Sql { .. } => 2,
            _ => 1,
        }
    }
}

fn position(line: Option<u64>, column: Option<u64>) -> String {
    match (line, column) {
        (Some(line), Some(column)) => format!(":{line}:{column}"),
        (Some(line), None) => format!(":{line}"),
        _ => String::new(),
    }
}

/// The server's own words where it spoke; tokio-postgres says only "db error" for those.
fn explain_postgres(error: &tokio_postgres::Error) -> String {
    let Some(db) = error.as_db_error() else {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(inner) = source {
            text.push_str(": ");
            text.push_str(&inner.to_string());
            source = inner.source();
        }
        return text;
    };
    let mut text = format!("{} (SQLSTATE {})", db.message(), db.code().code());
    for extra in [db.detail(), db.hint(), db.where_()].into_iter().flatten() {
        text.push_str("; ");
        text.push_str(extra);
    }
    text
}

/// Classes by SQLSTATE: 08 connection, 53 resources, 57 operator (restarting), 40 rollback (serialization, deadlock),
/// 55 object in use and 25 transaction state pass by themselves; credentials, rights and missing objects do not.
/// <https://www.postgresql.org/docs/current/errcodes-appendix.html>
fn postgres_action(error: &tokio_postgres::Error) -> Action {
    match error.code() {
        // No SQLSTATE: the connection broke or was never made.
        None => Action::Retry,
        Some(code) => match &code.code()[..2] {
            "08" | "53" | "57" | "40" | "55" | "25" | "58" => Action::Retry,
            _ => Action::Halt,
        },
    }
}

fn postgres_remedy(code: Option<&SqlState>) -> &'static str {
    match code.map(SqlState::code) {
        Some("28P01" | "28000") => "check the user, the password and pg_hba.conf for [postgres] url",
        Some("3D000") => "create the database, or name another one in [postgres] url",
        Some("42501") => "grant the job's user the right named above",
        Some("42P01" | "3F000") => {
            "create it (`dinnerbell init --print` shows the DDL), or correct the setting that names it"
        }
        // But 22023: a parameter of the session, from [postgres] url.
        Some(code) if code.starts_with("22") && code != "22023" => {
            "correct the query, or the values that it stumbles over"
        }
        _ => "",
    }
}

fn kafka_action(error: &rdkafka::error::KafkaError) -> Action {
    use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
    if let KafkaError::ClientConfig(..) | KafkaError::ClientCreation(_) = error {
        return Action::Halt;
    }
    let code = match error {
        KafkaError::AdminOp(code) => Some(*code),
        error => error.rdkafka_error_code(),
    };
    match code {
        Some(
            Code::Authentication
            | Code::SaslAuthenticationFailed
            | Code::UnsupportedSASLMechanism
            | Code::TopicAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::TransactionalIdAuthorizationFailed
            | Code::UnsupportedVersion
            | Code::FencedInstanceId
            | Code::SSL
            // What is sent or asked stays as it is, and so does the answer.
            | Code::MessageSizeTooLarge
            | Code::InvalidRecord
            | Code::PolicyViolation
            | Code::InvalidTransactionTimeout
            | Code::InvalidSessionTimeout
            | Code::InconsistentGroupProtocol
            | Code::GroupMaxSizeReached
            | Code::BadMessage
            | Code::BadCompression,
        ) => Action::Halt,
        Some(
            Code::Fenced
            | Code::Fatal
            | Code::ProducerFenced
            | Code::InvalidProducerEpoch
            | Code::IllegalGeneration
            | Code::UnknownMemberId
            | Code::RebalanceInProgress,
        ) => Action::Claim,
        _ => Action::Retry,
    }
}

fn kafka_remedy(error: &rdkafka::error::KafkaError) -> &'static str {
    use rdkafka::error::RDKafkaErrorCode as Code;
    match error.rdkafka_error_code() {
        Some(Code::Authentication | Code::SaslAuthenticationFailed | Code::UnsupportedSASLMechanism) => {
            "check sasl.username, sasl.password and sasl.mechanism under [kafka]"
        }
        Some(Code::SSL) => "check ssl.ca.location, ssl.certificate.location and ssl.key.location under [kafka]",
        Some(Code::TopicAuthorizationFailed) => {
            "grant the principal READ on the source topic and WRITE on the output topics"
        }
        Some(Code::GroupAuthorizationFailed) => "grant the principal READ on the consumer group [source] group_id",
        Some(Code::TransactionalIdAuthorizationFailed) => {
            "grant the principal WRITE and DESCRIBE on transactional ids that start with [source] group_id"
        }
        Some(Code::UnknownTopicOrPartition | Code::UnknownTopic) => {
            "create the topic (`dinnerbell init` does), or correct its name"
        }
        Some(Code::BrokerTransportFailure | Code::AllBrokersDown | Code::Resolve) => {
            "check \"bootstrap.servers\" under [kafka], and that a broker listens there"
        }
        Some(Code::MessageSizeTooLarge) => {
            "message.max.bytes or batch.size under [sink.kafka] exceeds the topic's max.message.bytes, or the other way round: \
             leave them out, and the job takes what fits"
        }
        Some(Code::InvalidTransactionTimeout) => {
            "set the brokers' transaction.max.timeout.ms to 900000 (Kafka's default) or more"
        }
        Some(Code::InconsistentGroupProtocol) => {
            "other members of the group use another assignor or protocol: choose another [source] group_id"
        }
        Some(Code::FencedInstanceId) => "another process runs under the same [job] instance: give each its own",
        _ => "",
    }
}
