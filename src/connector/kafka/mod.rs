//! Kafka through librdkafka. Only this folder, the embedded broker and their tests know rdkafka.
//!
//! | part | what it does |
//! |---|---|
//! | [`KafkaOptions`] | `WITH (...)` checked by name, and with librdkafka itself |
//! | [`Metadata`] | partitions, first and end offsets, offsets at a time |
//! | [`Reader`] | records of assigned partitions, in batches, into one buffer |
//!
//! Whatever passes by itself (a broker away, a topic that is not there yet, refused credentials) is a state that is
//! retried, with a text that says what to do; nothing here ends the process.

mod admin;
mod cleanup_policy;
mod closing;
mod metadata;
mod native;
mod offsets;
mod options;
mod reader;
#[cfg(test)]
mod tests;
mod topic_id;

pub use admin::{create_topic, ensure_topic};
pub use closing::wait_until_closed;
pub use metadata::Metadata;
pub use options::{Isolation, KafkaOptions, Start};
pub use reader::{Reader, Waker};
