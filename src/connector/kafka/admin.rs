//! Making topics, for benchmarks, demos and tests.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::RDKafkaErrorCode;

use crate::connector::error::ConnectorError;

/// Makes a topic with one replica on the brokers at `servers`. Blocks for at most half a minute.
pub fn create_topic(servers: &str, topic: &str, partitions: i32) -> Result<(), ConnectorError> {
    match ensure_topic(servers, topic, partitions)? {
        true => Ok(()),
        false => Err(failed(format!("{topic} exists already"))),
    }
}

/// Like [`create_topic`]; false if there is a topic of that name, which stays as it is.
pub fn ensure_topic(servers: &str, topic: &str, partitions: i32) -> Result<bool, ConnectorError> {
    let client: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", servers).create().map_err(|e| failed(e.to_string()))?;
    let wanted = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)));
    let made = futures::executor::block_on(client.create_topics([&wanted], &options));
    match made.map_err(|e| failed(e.to_string()))?.pop() {
        Some(Ok(_)) => Ok(true),
        Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => Ok(false),
        Some(Err((topic, code))) => Err(failed(format!("{topic}: {code}"))),
        None => Err(failed("the broker did not answer for the topic".into())),
    }
}

fn failed(reason: String) -> ConnectorError {
    ConnectorError::Kafka { doing: "making a topic", reason }
}
