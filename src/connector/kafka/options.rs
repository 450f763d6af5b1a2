//! The options of `WITH (connector = 'kafka', ...)`.

use std::collections::BTreeMap;
use std::fmt;

use super::native;
use crate::connector::error::{ConnectorError, nearest};

/// A checked set of options. Secrets among the properties never appear in `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct KafkaOptions {
    pub topic: String,
    /// `host:port[,host:port]`.
    pub servers: String,
    pub start: Start,
    pub isolation: Isolation,
    /// What goes to librdkafka beside our own settings, in its own spelling.
    properties: BTreeMap<String, String>,
}

/// Where a source begins to read. Fixed as offsets once, at CREATE SOURCE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    Earliest,
    Latest,
    /// The first record whose timestamp is at or after this many milliseconds since the epoch.
    TimestampMs(i64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    ReadCommitted,
    ReadUncommitted,
}

const KNOWN: [&str; 7] = [
    "connector",
    "topic",
    "servers",
    "scan.startup.mode",
    "scan.startup.timestamp.millis",
    "properties.bootstrap.server",
    "properties.bootstrap.servers",
];

/// Properties that are not the user's to set, and why. Keys as librdkafka spells them, aliases included.
const REFUSED: &[(&[&str], &str)] = &[
    (
        &[
            "enable.auto.commit",
            "auto.commit.enable",
            "auto.commit.interval.ms",
            "enable.auto.offset.store",
            "offset.store.method",
            "offset.store.path",
            "offset.store.sync.interval.ms",
        ],
        "offsets are committed with the state they belong to, not in Kafka",
    ),
    (
        &[
            "group.id",
            "group.instance.id",
            "group.protocol",
            "group.protocol.type",
            "group.remote.assignor",
            "partition.assignment.strategy",
            "session.timeout.ms",
            "heartbeat.interval.ms",
            "max.poll.interval.ms",
            "coordinator.query.interval.ms",
        ],
        "the source reads its partitions itself and joins no consumer group",
    ),
    (
        &["auto.offset.reset"],
        "a jump to another offset would lose or repeat records; where to begin is scan.startup.mode",
    ),
    (&["enable.partition.eof"], "the engine needs it on, to know when a partition has been read to its end"),
    (
        &["plugin.library.paths", "interceptors", "ssl.engine.location", "ssl.providers"],
        "it would load code into the server",
    ),
    (&["sasl.kerberos.kinit.cmd"], "it would run a command on the server"),
    (
        &[
            "opaque",
            "enabled_events",
            "error_cb",
            "throttle_cb",
            "stats_cb",
            "log_cb",
            "socket_cb",
            "connect_cb",
            "closesocket_cb",
            "open_cb",
            "resolve_cb",
            "consume_cb",
            "rebalance_cb",
            "offset_commit_cb",
            "background_event_cb",
            "oauthbearer_token_refresh_cb",
            "default_topic_conf",
            "log.queue",
            "log_level",
            "log.thread.name",
            "internal.termination.signal",
            "builtin.features",
            "statistics.interval.ms",
            "consume.callback.max.messages",
            "allow.auto.create.topics",
            "test.mock.num.brokers",
        ],
        "it is set by the engine",
    ),
    (&["bootstrap.servers", "metadata.broker.list"], "the servers are named once, in properties.bootstrap.server"),
];

const SECRETS: [&str; 9] = [
    "sasl.password",
    "ssl.key.password",
    "ssl.key.pem",
    "ssl.keystore.password",
    "sasl.oauthbearer.config",
    "sasl.oauthbearer.client.secret",
    "sasl.oauthbearer.client.credentials.client.secret",
    "sasl.oauthbearer.assertion.private.key.passphrase",
    "sasl.oauthbearer.assertion.private.key.pem",
];

/// Ours, unless the user sets another. Memory per consumer is bounded by the queue (32 MiB and 100 000 messages) plus one
/// response (8 MiB); an idle broker answers every 100 ms, which is how soon the end of a log after a transaction marker is
/// known.
const DEFAULTS: &[(&str, &str)] = &[
    ("client.id", "riverrun"),
    ("queued.min.messages", "100000"),
    ("queued.max.messages.kbytes", "32768"),
    ("fetch.message.max.bytes", "1048576"),
    ("fetch.max.bytes", "8388608"),
    ("fetch.wait.max.ms", "100"),
    ("fetch.queue.backoff.ms", "5"),
    ("fetch.error.backoff.ms", "200"),
    ("check.crcs", "true"),
    ("topic.metadata.propagation.max.ms", "2000"),
    ("reconnect.backoff.max.ms", "3000"),
    ("socket.keepalive.enable", "true"),
    ("log.connection.close", "false"),
    ("enable.metrics.push", "false"),
];

impl KafkaOptions {
    /// Checks every option by name and every property with librdkafka itself; connects to nothing.
    pub fn parse(options: &BTreeMap<String, String>) -> Result<KafkaOptions, ConnectorError> {
        let mut topic = None;
        let mut servers: Option<(&str, &str)> = None;
        let mut mode = None;
        let mut timestamp = None;
        let mut properties = BTreeMap::new();
        for (key, value) in options {
            match key.as_str() {
                "connector" => {}
                "topic" => topic = Some(value.trim()),
                "servers" | "properties.bootstrap.server" | "properties.bootstrap.servers" => {
                    if let Some((other, _)) = servers {
                        return Err(invalid(key, format!("the servers are already given by {other}")));
                    }
                    servers = Some((key, value.trim()));
                }
                "scan.startup.mode" => mode = Some(value.as_str()),
                "scan.startup.timestamp.millis" => timestamp = Some(value.as_str()),
                other => match other.strip_prefix("properties.") {
                    Some(property) => {
                        if let Some((_, why)) = REFUSED.iter().find(|(names, _)| names.contains(&property)) {
                            return Err(invalid(key, why.to_string()));
                        }
                        properties.insert(property.to_string(), value.clone());
                    }
                    None => {
                        return Err(ConnectorError::UnknownOption {
                            option: other.to_string(),
                            nearest: nearest(other, KNOWN),
                        });
                    }
                },
            }
        }
        let missing =
            |option: &str, hint: &str| ConnectorError::MissingOption { option: option.into(), hint: hint.into() };
        let topic = topic.ok_or_else(|| missing("topic", "name the topic to read"))?.to_string();
        check_topic(&topic)?;
        let servers = match servers {
            Some((key, "")) => return Err(invalid(key, "it is empty; write host:port".into())),
            Some((_, servers)) => servers.to_string(),
            None => return Err(missing("properties.bootstrap.server", "write host:port of a broker")),
        };
        let isolation = match properties.remove("isolation.level").as_deref() {
            None | Some("read_committed") => Isolation::ReadCommitted,
            Some("read_uncommitted") => Isolation::ReadUncommitted,
            Some(other) => {
                return Err(invalid(
                    "properties.isolation.level",
                    format!("'{other}' is neither read_committed nor read_uncommitted"),
                ));
            }
        };
        Ok(KafkaOptions { topic, servers, start: parse_start(mode, timestamp)?, isolation, properties })
    }

    /// Tries the properties with librdkafka, files of certificates included. What it says may be otherwise another day: a file may go,
    /// or come.
    pub fn check(&self) -> Result<(), ConnectorError> {
        native::Config::check(self)
    }

    /// All that librdkafka is told, later entries overriding earlier ones.
    pub(super) fn settings(&self) -> impl Iterator<Item = (&str, &str)> {
        let isolation = match self.isolation {
            Isolation::ReadCommitted => "read_committed",
            Isolation::ReadUncommitted => "read_uncommitted",
        };
        DEFAULTS.iter().copied().chain(self.properties.iter().map(|(k, v)| (k.as_str(), v.as_str()))).chain([
            ("bootstrap.servers", self.servers.as_str()),
            ("isolation.level", isolation),
            ("enable.partition.eof", "true"),
            ("enable.auto.offset.store", "false"),
            ("enable.auto.commit", "false"),
            ("auto.offset.reset", "error"),
            ("allow.auto.create.topics", "false"),
        ])
    }
}

pub(super) fn is_secret(property: &str) -> bool {
    SECRETS.contains(&property)
}

fn invalid(option: &str, reason: String) -> ConnectorError {
    ConnectorError::InvalidOption { option: option.to_string(), reason }
}

/// Kafka's own rule for names, checked here so that a typing error is not taken for a topic that is yet to come.
fn check_topic(topic: &str) -> Result<(), ConnectorError> {
    let valid = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if topic.is_empty() || topic == "." || topic == ".." || topic.len() > 249 || !topic.bytes().all(valid) {
        return Err(invalid(
            "topic",
            format!("'{topic}' is no topic name: 1 to 249 letters, digits, dots, underscores and hyphens"),
        ));
    }
    Ok(())
}

fn parse_start(mode: Option<&str>, timestamp: Option<&str>) -> Result<Start, ConnectorError> {
    let timestamp = timestamp
        .map(|text| match text.trim().parse::<i64>() {
            Ok(ms) if ms >= 0 => Ok(ms),
            _ => Err(invalid(
                "scan.startup.timestamp.millis",
                format!("'{text}' is not a number of milliseconds since the epoch"),
            )),
        })
        .transpose()?;
    match (mode.map(str::to_ascii_lowercase).as_deref(), timestamp) {
        (None | Some("earliest"), None) => Ok(Start::Earliest),
        (Some("latest"), None) => Ok(Start::Latest),
        (None | Some("earliest"), Some(ms)) => Ok(Start::TimestampMs(ms)),
        (Some("latest"), Some(_)) => Err(invalid(
            "scan.startup.timestamp.millis",
            "it contradicts scan.startup.mode = 'latest'; leave one of them out".into(),
        )),
        (Some(other), _) => Err(invalid("scan.startup.mode", format!("'{other}' is neither 'earliest' nor 'latest'"))),
    }
}

impl fmt::Debug for KafkaOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown: BTreeMap<&str, &str> = self
            .properties
            .iter()
            .map(|(key, value)| (key.as_str(), if is_secret(key) { "***" } else { value.as_str() }))
            .collect();
        f.debug_struct("KafkaOptions")
            .field("topic", &self.topic)
            .field("servers", &self.servers)
            .field("start", &self.start)
            .field("isolation", &self.isolation)
            .field("properties", &shown)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses `key=value` lines on top of a valid pair and shows the outcome.
    fn check(lines: &str) -> String {
        let mut options: BTreeMap<String, String> = [
            ("connector".to_string(), "kafka".to_string()),
            ("topic".to_string(), "t".to_string()),
            ("servers".to_string(), "h:9092".to_string()),
        ]
        .into();
        for line in lines.lines() {
            let (key, value) = line.split_once('=').expect("key=value");
            match value {
                "DROP" => drop(options.remove(key)),
                value => drop(options.insert(key.into(), value.into())),
            }
        }
        match KafkaOptions::parse(&options).and_then(|options| options.check().map(|()| options)) {
            Ok(options) => format!("{options:?}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn accepts() {
        insta::assert_snapshot!(check(""), @r#"KafkaOptions { topic: "t", servers: "h:9092", start: Earliest, isolation: ReadCommitted, properties: {} }"#);
        insta::assert_snapshot!(
            check("servers=DROP\nproperties.bootstrap.server=a:1,b:2\nscan.startup.mode=latest\nproperties.isolation.level=read_uncommitted"),
            @r#"KafkaOptions { topic: "t", servers: "a:1,b:2", start: Latest, isolation: ReadUncommitted, properties: {} }"#);
        insta::assert_snapshot!(
            check("scan.startup.timestamp.millis=17\nproperties.security.protocol=SASL_PLAINTEXT\nproperties.sasl.mechanism=PLAIN\nproperties.sasl.username=u\nproperties.sasl.password=hunter2"),
            @r#"KafkaOptions { topic: "t", servers: "h:9092", start: TimestampMs(17), isolation: ReadCommitted, properties: {"sasl.mechanism": "PLAIN", "sasl.password": "***", "sasl.username": "u", "security.protocol": "SASL_PLAINTEXT"} }"#);
    }

    #[test]
    fn refuses() {
        insta::assert_snapshot!(check("topic=DROP"), @"option topic is missing: name the topic to read");
        insta::assert_snapshot!(check("servers=DROP"), @"option properties.bootstrap.server is missing: write host:port of a broker");
        insta::assert_snapshot!(check("properties.bootstrap.servers=x:1"), @"option servers: the servers are already given by properties.bootstrap.servers");
        insta::assert_snapshot!(check("topic=a b"), @"option topic: 'a b' is no topic name: 1 to 249 letters, digits, dots, underscores and hyphens");
        insta::assert_snapshot!(check("scan.start.mode=latest"), @"unknown option scan.start.mode: did you mean scan.startup.mode?");
        insta::assert_snapshot!(check("scan.startup.mode=newest"), @"option scan.startup.mode: 'newest' is neither 'earliest' nor 'latest'");
        insta::assert_snapshot!(check("scan.startup.mode=latest\nscan.startup.timestamp.millis=1"), @"option scan.startup.timestamp.millis: it contradicts scan.startup.mode = 'latest'; leave one of them out");
        insta::assert_snapshot!(check("properties.group.id=g"), @"option properties.group.id: the source reads its partitions itself and joins no consumer group");
        insta::assert_snapshot!(check("properties.enable.auto.commit=true"), @"option properties.enable.auto.commit: offsets are committed with the state they belong to, not in Kafka");
        insta::assert_snapshot!(check("properties.fetch.max.byte=1"), @"unknown option properties.fetch.max.byte: did you mean properties.fetch.max.bytes?");
        insta::assert_snapshot!(check("properties.fetch.max.bytes=many"), @r#"option properties.fetch.max.bytes: Invalid value for configuration property "fetch.max.bytes""#);
        insta::assert_snapshot!(check("properties.security.protocol=telnet"), @r#"option properties.security.protocol: Invalid value "telnet" for configuration property "security.protocol""#);
        insta::assert_snapshot!(check("properties.ssl.truststore.location=/x"), @"option properties.ssl.truststore.location: Java TrustStores are not supported, use `ssl.ca.location` and a certificate file instead. See https://github.com/confluentinc/librdkafka/wiki/Using-SSL-with-librdkafka for more information.");
        insta::assert_snapshot!(check("properties.linger.ms=5"), @"option properties.*: Configuration property queue.buffering.max.ms is a producer property and will be ignored by this consumer instance");
        insta::assert_snapshot!(check("properties.sasl.mechanism=PLAIN\nproperties.sasl.username=u"), @"option properties.*: Configuration property `sasl.mechanism` set to `PLAIN` but `security.protocol` is not configured for SASL: recommend setting `security.protocol` to SASL_SSL or SASL_PLAINTEXT");
        insta::assert_snapshot!(check("properties.security.protocol=SASL_PLAINTEXT\nproperties.sasl.mechanism=GSSAPI"), @"option properties.*: No provider for SASL mechanism GSSAPI: recompile librdkafka with libsasl2 or openssl support. Current build options: PLAIN SASL_SCRAM OAUTHBEARER");
    }
}
