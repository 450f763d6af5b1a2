//! Making topics, for benchmarks, demos and tests.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;

use crate::connector::error::ConnectorError;

/// Makes a topic with one replica on the brokers at `servers`. Blocks for at most half a minute.
pub fn create_topic(servers: &str, topic: &str, partitions: i32) -> Result<(), ConnectorError> {
    const DOING: &str = "making a topic";
    let failed = |reason: String| ConnectorError::Kafka { doing: DOING, reason };
    let client: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", servers).create().map_err(|e| failed(e.to_string()))?;
    let wanted = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)));
    let made = futures::executor::block_on(client.create_topics([&wanted], &options));
    match made.map_err(|e| failed(e.to_string()))?.pop() {
        Some(Ok(_)) => Ok(()),
        Some(Err((topic, code))) => Err(failed(format!("{topic}: {code}"))),
        None => Err(failed("the broker did not answer for the topic".into())),
    }
}
