//! Records from outside: Kafka (sole user of rdkafka), the generator, and the formats.
//!
//! ```text
//! WITH (...) ── SourceOptions::parse ──┬── metadata() ── partitions, watermarks, start offsets
//!                                      └── reader()  ── poll ──> Records ── JsonDecoder::decode ──> Arrow + verdicts
//! ```
//!
//! This room knows no catalog, no SQL and no plan: it is given option maps, column types and offsets. It keeps no offsets
//! either: who reads says where to begin, and asks for the position. Records leave it in one contiguous buffer with
//! ranges ([`Records`]), never as an object each.

mod ad_events;
#[allow(clippy::disallowed_methods, reason = "rows of a generator come into being with the clock")]
mod datagen;
#[allow(clippy::disallowed_methods, reason = "a time-out of the network, not a time that rows see")]
mod embedded;
mod error;
mod json;
#[allow(clippy::disallowed_methods, reason = "time-outs of the network, not times that rows see")]
mod kafka;
mod page_views;
mod random;
mod records;
mod source;
#[allow(clippy::disallowed_methods, reason = "patience with the network, not a time that rows see")]
mod steady;
mod text;

pub use ad_events::{AdEvent, AdGenerator, AdOptions};
pub use datagen::DatagenOptions;
pub use embedded::{EmbeddedBroker, Producer};
pub use error::ConnectorError;
pub use json::{ColumnSpec, Dead, Decoded, EpochUnit, IncludeKind, JsonDecoder, JsonOptions, TimestampMode};
pub use kafka::{Isolation, KafkaOptions, Start, create_topic, ensure_topic, wait_until_closed};
pub use page_views::PageViews;
pub use records::{Record, RecordMeta, Records, Span};
pub use source::{Metadata, Reader, SourceOptions, Waker};
pub use steady::SteadyReader;

/// An offset of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PartitionOffset {
    pub partition: i32,
    pub offset: i64,
}

impl PartitionOffset {
    /// In the place of an offset: wherever the log begins by now.
    pub const EARLIEST: i64 = -2;
}

/// The first offset of a partition that can be read, and the one after the last: the end under the source's isolation level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watermarks {
    pub partition: i32,
    pub low: i64,
    pub high: i64,
}

/// Whether a source can be read just now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    Running,
    /// It is tried again and again; `message` says what is wrong and what to do.
    Retrying {
        message: String,
    },
}
