//! What can go wrong between us and the outside.

use arrow::datatypes::DataType;

/// Each variant says what its reader must do: correct the SQL, correct the set-up, or wait.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectorError {
    #[error("unknown connector '{connector}': this engine has 'kafka' and 'datagen'")]
    UnknownConnector { connector: String },

    #[error("unknown option {option}{}", match .nearest { Some(n) => format!(": did you mean {n}?"), None => String::new() })]
    UnknownOption { option: String, nearest: Option<String> },

    #[error("option {option} is missing: {hint}")]
    MissingOption { option: String, hint: String },

    #[error("option {option}: {reason}")]
    InvalidOption { option: String, reason: String },

    #[error("column {column} of type {data_type} cannot be read from {from}: {instead}")]
    UnsupportedColumn { column: String, data_type: DataType, from: &'static str, instead: &'static str },

    /// No broker answers. Retry.
    #[error(
        "cannot reach Kafka at {servers}: {reason}; check properties.bootstrap.server, properties.security.protocol, the network, and that the broker runs"
    )]
    Unreachable { servers: String, reason: String },

    /// A broker answers and refuses us. Retrying helps once the credentials are right on either side.
    #[error(
        "Kafka at {servers} refused to authenticate: {reason}; check properties.security.protocol and properties.sasl.*"
    )]
    AuthenticationFailed { servers: String, reason: String },

    /// TLS could not be set up. Retrying helps once the certificates are right.
    #[error(
        "no TLS connection to Kafka at {servers}: {reason}; check properties.security.protocol and properties.ssl.*"
    )]
    Tls { servers: String, reason: String },

    /// Retry: somebody may create it.
    #[error("topic {topic} does not exist at {servers}; create it, or correct the option topic")]
    TopicMissing { servers: String, topic: String },

    #[error("not authorized to read topic {topic}: {reason}; grant READ and DESCRIBE on it to this user")]
    NotAuthorized { topic: String, reason: String },

    /// Records were removed from the log before they were read, or the topic was made anew.
    #[error("offset {offset} of partition {partition} is no longer in the log: {reason}")]
    OffsetLost { partition: i32, offset: i64, reason: String },

    /// Anything else Kafka says. Retry.
    #[error("Kafka: {doing}: {reason}")]
    Kafka { doing: &'static str, reason: String },
}

impl ConnectorError {
    /// True if the same call may succeed later without a change to the SQL.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::UnknownConnector { .. }
            | Self::UnknownOption { .. }
            | Self::MissingOption { .. }
            | Self::InvalidOption { .. }
            | Self::UnsupportedColumn { .. }
            | Self::OffsetLost { .. } => false,
            Self::Unreachable { .. }
            | Self::AuthenticationFailed { .. }
            | Self::Tls { .. }
            | Self::TopicMissing { .. }
            | Self::NotAuthorized { .. }
            | Self::Kafka { .. } => true,
        }
    }
}

/// The known name closest to `name`, if it is close enough to be what was meant.
pub(super) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let limit = (name.len() / 3).max(1);
    known
        .into_iter()
        .map(|k| (edit_distance(name.as_bytes(), k.as_bytes()), k))
        .filter(|(distance, k)| *distance <= limit && *distance < k.len())
        .min()
        .map(|(_, k)| k.to_string())
}

fn edit_distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_name() {
        let known = ["scan.startup.mode", "topic", "servers"];
        assert_eq!(nearest("scan.start.mode", known), Some("scan.startup.mode".into()));
        assert_eq!(nearest("topics", known), Some("topic".into()));
        assert_eq!(nearest("something else", known), None);
        assert_eq!(nearest("a", ["b"]), None);
    }
}
