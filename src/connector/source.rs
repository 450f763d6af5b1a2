//! One face for every connector. Engine threads own [`Reader`]s; any thread may hold a [`Waker`] or ask a [`Metadata`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::datagen::{self, DatagenOptions};
use super::error::ConnectorError;
use super::json::ColumnSpec;
use super::kafka::{self, KafkaOptions};
use super::records::Records;
use super::{Health, PartitionOffset, Watermarks};

/// Checked options of `WITH (connector = ..., ...)`.
#[derive(Debug, Clone, PartialEq)]
pub enum SourceOptions {
    Kafka(KafkaOptions),
    Datagen(Arc<DatagenOptions>),
}

/// Reads records of assigned partitions.
pub enum Reader {
    Kafka(kafka::Reader),
    Datagen(datagen::Reader),
}

/// Answers questions about the topic. Calls block for at most the timeout given.
pub enum Metadata {
    Kafka(kafka::Metadata),
    Datagen(datagen::Metadata),
}

/// Interrupts a [`Reader::poll`] from another thread.
#[derive(Clone)]
pub enum Waker {
    Kafka(kafka::Waker),
    Datagen(datagen::Waker),
}

impl SourceOptions {
    /// Adds to the options of a new source what must be the same whenever they are parsed again, a restart included: the
    /// beginning of a generator. To be called once, at CREATE SOURCE, with the time then.
    pub fn fix_start(options: &mut BTreeMap<String, String>, now_ms: i64) {
        if options.get("connector").is_some_and(|c| c.trim().eq_ignore_ascii_case("datagen")) {
            DatagenOptions::fix_start(options, now_ms);
        }
    }

    /// Checks every option of ours by name and value; connects to nothing. The caller has taken out what is not the connector's.
    /// `columns` are those declared: a generator's options name them.
    pub fn parse(options: &BTreeMap<String, String>, columns: &[ColumnSpec]) -> Result<SourceOptions, ConnectorError> {
        match options.get("connector").map(|c| c.trim().to_ascii_lowercase()).as_deref() {
            Some("kafka") => KafkaOptions::parse(options).map(SourceOptions::Kafka),
            Some("datagen") => DatagenOptions::parse(options, columns).map(Arc::new).map(SourceOptions::Datagen),
            Some(other) => Err(ConnectorError::UnknownConnector { connector: other.to_string() }),
            None => Err(ConnectorError::MissingOption {
                option: "connector".into(),
                hint: "write connector = 'kafka' or connector = 'datagen'".into(),
            }),
        }
    }

    /// Checks what belongs to the connector's library, and files that options name; connects to nothing. To be called once, at
    /// CREATE SOURCE: what fails another day is retried.
    pub fn check(&self) -> Result<(), ConnectorError> {
        match self {
            SourceOptions::Kafka(options) => options.check(),
            SourceOptions::Datagen(_) => Ok(()),
        }
    }

    /// What dead letters and `riverrun.sources` call the origin of the records: the topic.
    pub fn topic(&self) -> &str {
        match self {
            SourceOptions::Kafka(options) => &options.topic,
            SourceOptions::Datagen(_) => "datagen",
        }
    }

    /// True if where reading begins depends on the moment of CREATE SOURCE: then the brokers must answer there and then.
    pub fn starts_at_a_moment(&self) -> bool {
        match self {
            SourceOptions::Kafka(options) => options.start != kafka::Start::Earliest,
            SourceOptions::Datagen(_) => false,
        }
    }

    /// A connection for questions. Connects in the background.
    pub fn metadata(&self) -> Result<Metadata, ConnectorError> {
        match self {
            SourceOptions::Kafka(options) => kafka::Metadata::new(options).map(Metadata::Kafka),
            SourceOptions::Datagen(options) => Ok(Metadata::Datagen(datagen::Metadata::new(options))),
        }
    }

    /// A reader with no partitions yet. Connects in the background.
    pub fn reader(&self) -> Result<Reader, ConnectorError> {
        match self {
            SourceOptions::Kafka(options) => kafka::Reader::new(options).map(Reader::Kafka),
            SourceOptions::Datagen(options) => Ok(Reader::Datagen(datagen::Reader::new(options))),
        }
    }
}

impl Metadata {
    /// The partitions in order. Also the check that everything about the source is right: unreachable brokers, refused
    /// credentials, TLS, a missing topic and missing rights are different errors.
    pub fn partitions(&self, timeout: Duration) -> Result<Vec<i32>, ConnectorError> {
        match self {
            Metadata::Kafka(metadata) => metadata.partitions(timeout),
            Metadata::Datagen(metadata) => Ok(metadata.partitions()),
        }
    }

    /// What tells the topic from another of the same name; `None` if that is not known.
    pub fn topic_id(&self, timeout: Duration) -> Result<Option<String>, ConnectorError> {
        match self {
            Metadata::Kafka(metadata) => metadata.topic_id(timeout),
            Metadata::Datagen(_) => Ok(None),
        }
    }

    /// Does the log drop a record once a newer one has its key? `None`: that is not known.
    pub fn is_compacted(&self, timeout: Duration) -> Result<Option<bool>, ConnectorError> {
        match self {
            Metadata::Kafka(metadata) => metadata.is_compacted(timeout),
            Metadata::Datagen(_) => Ok(Some(false)),
        }
    }

    /// First offset and end of each partition given.
    pub fn watermarks(&self, partitions: &[i32], timeout: Duration) -> Result<Vec<Watermarks>, ConnectorError> {
        match self {
            Metadata::Kafka(metadata) => metadata.watermarks(partitions, timeout),
            Metadata::Datagen(metadata) => Ok(metadata.watermarks(partitions)),
        }
    }

    /// Where a new source begins by its options. To be asked once, at CREATE SOURCE.
    pub fn start_offsets(&self, partitions: &[i32], timeout: Duration) -> Result<Vec<PartitionOffset>, ConnectorError> {
        match self {
            Metadata::Kafka(metadata) => metadata.start_offsets(partitions, timeout),
            Metadata::Datagen(metadata) => Ok(metadata.start_offsets(partitions)),
        }
    }

    /// The first record at or after `time_ms` (milliseconds since the epoch), or the end if there is none.
    pub fn offsets_for_time(
        &self,
        partitions: &[i32],
        time_ms: i64,
        timeout: Duration,
    ) -> Result<Vec<PartitionOffset>, ConnectorError> {
        match self {
            Metadata::Kafka(metadata) => metadata.offsets_for_time(partitions, time_ms, timeout),
            Metadata::Datagen(metadata) => Ok(metadata.offsets_for_time(partitions, time_ms)),
        }
    }
}

impl Reader {
    /// Reads exactly these partitions, each from its offset on.
    pub fn assign(&mut self, partitions: &[PartitionOffset]) -> Result<(), ConnectorError> {
        match self {
            Reader::Kafka(reader) => reader.assign(partitions),
            Reader::Datagen(reader) => reader.assign(partitions),
        }
    }

    /// Reads these partitions too; one that is assigned already is taken to the offset given.
    pub fn add(&mut self, partitions: &[PartitionOffset]) -> Result<(), ConnectorError> {
        match self {
            Reader::Kafka(reader) => reader.add(partitions),
            Reader::Datagen(reader) => reader.add(partitions),
        }
    }

    pub fn remove(&mut self, partitions: &[i32]) {
        match self {
            Reader::Kafka(reader) => reader.remove(partitions),
            Reader::Datagen(reader) => reader.remove(partitions),
        }
    }

    /// No records of these partitions until they are resumed.
    pub fn pause(&mut self, partitions: &[i32]) -> Result<(), ConnectorError> {
        match self {
            Reader::Kafka(reader) => reader.pause(partitions),
            Reader::Datagen(reader) => {
                reader.set_paused(partitions, true);
                Ok(())
            }
        }
    }

    pub fn resume(&mut self, partitions: &[i32]) -> Result<(), ConnectorError> {
        match self {
            Reader::Kafka(reader) => reader.resume(partitions),
            Reader::Datagen(reader) => {
                reader.set_paused(partitions, false);
                Ok(())
            }
        }
    }

    /// Appends records to `into` until it holds about `max_bytes` (one record, or what one batch brings, may exceed it) or
    /// nothing more has arrived; waits up to `timeout` for the first. Returns early when woken. Records appended before an
    /// error count.
    pub fn poll(&mut self, into: &mut Records, max_bytes: usize, timeout: Duration) -> Result<(), ConnectorError> {
        match self {
            Reader::Kafka(reader) => reader.poll(into, max_bytes, timeout),
            Reader::Datagen(reader) => {
                reader.poll(into, max_bytes, timeout);
                Ok(())
            }
        }
    }

    /// The next offset to read of an assigned partition: at the end of the log its end offset, whatever the last records are.
    pub fn position(&self, partition: i32) -> Option<i64> {
        match self {
            Reader::Kafka(reader) => reader.position(partition),
            Reader::Datagen(reader) => reader.position(partition),
        }
    }

    /// The position of every assigned partition of which it is known.
    pub fn positions(&self) -> Vec<PartitionOffset> {
        match self {
            Reader::Kafka(reader) => reader.positions(),
            Reader::Datagen(reader) => reader.positions(),
        }
    }

    /// As of the last poll.
    pub fn health(&self) -> &Health {
        match self {
            Reader::Kafka(reader) => reader.health(),
            Reader::Datagen(reader) => reader.health(),
        }
    }

    pub fn waker(&self) -> Waker {
        match self {
            Reader::Kafka(reader) => Waker::Kafka(reader.waker()),
            Reader::Datagen(reader) => Waker::Datagen(reader.waker()),
        }
    }
}

impl Waker {
    /// The poll under way, or else the next one, returns at once.
    pub fn wake(&self) {
        match self {
            Waker::Kafka(waker) => waker.wake(),
            Waker::Datagen(waker) => waker.wake(),
        }
    }
}
