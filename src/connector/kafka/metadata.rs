//! Questions to the cluster: which partitions there are, where they begin and end.

use std::ops::Deref;
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rdkafka_sys as sys;
use rdkafka_sys::rd_kafka_resp_err_t as Code;

use super::cleanup_policy;
use super::closing::drop_aside;
use super::native::{Client, Queue, Topic, last_error, millis};
use super::offsets::{self, Spec};
use super::options::{KafkaOptions, Start};
use super::topic_id;
use crate::connector::error::ConnectorError;
use crate::connector::{PartitionOffset, Watermarks};

/// A connection for questions, apart from those that read. Every call blocks for at most its timeout; a broker that is known
/// to be away is an error sooner.
pub struct Metadata {
    /// Until it is dropped.
    connection: Option<Box<Connection>>,
    options: KafkaOptions,
    /// One that was there when somebody last asked for partitions; negative if nobody has.
    broker: AtomicI32,
}

/// Fields in the order they must be dropped.
pub struct Connection {
    topic: Topic,
    client: Client,
}

impl Metadata {
    /// Connects in the background; errors are those of the options.
    pub fn new(options: &KafkaOptions) -> Result<Metadata, ConnectorError> {
        let client = Client::new(options)?;
        let connection = Box::new(Connection { topic: Topic::new(&client)?, client });
        Ok(Metadata { connection: Some(connection), options: options.clone(), broker: AtomicI32::new(-1) })
    }

    /// The partitions of the topic in order. This is also the check that brokers, credentials and topic are right: each has
    /// its own error.
    pub fn partitions(&self, timeout: Duration) -> Result<Vec<i32>, ConnectorError> {
        const DOING: &str = "asking for the partitions";
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Short waits, so that a refusal is seen before the whole time is spent.
            let slice = left.clamp(Duration::from_millis(1), Duration::from_millis(400));
            let mut metadata = ptr::null();
            // SAFETY: client and topic are alive; on success `metadata` is ours until destroyed.
            let code =
                unsafe { sys::rd_kafka_metadata(self.client.ptr(), 0, self.topic.ptr(), &mut metadata, millis(slice)) };
            if code == Code::RD_KAFKA_RESP_ERR_NO_ERROR {
                self.client.clear_error();
                // SAFETY: as above; counts and pointers are the library's.
                let (code, partitions) = unsafe {
                    self.broker.store(some_broker(&*metadata), Relaxed);
                    let found = read_topic(&*metadata);
                    sys::rd_kafka_metadata_destroy(metadata);
                    found
                };
                return match code {
                    Code::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(partitions),
                    _ if !partitions.is_empty() => Ok(partitions),
                    code => Err(self.client.explain(DOING, code, None)),
                };
            }
            let refused = self.client.error().is_some_and(|e| e.decisive);
            if refused || left <= slice {
                return Err(self.client.explain(DOING, code, None));
            }
        }
    }

    /// Another topic of the same name has another. `None`: the brokers know no ids.
    pub fn topic_id(&self, timeout: Duration) -> Result<Option<String>, ConnectorError> {
        let deadline = Instant::now() + timeout;
        // Any broker knows, and this one was there the last time.
        let broker = Some(self.broker.load(Relaxed)).filter(|broker| *broker >= 0);
        let replies = Queue::new(&self.client);
        topic_id::request(&self.client, broker, &self.options.topic, timeout, &replies);
        self.answer("asking for the topic's id", deadline, |wait| topic_id::reply(&replies, wait))
    }

    /// Does the log drop a record once a newer one has its key? `None`: the brokers do not tell.
    pub fn is_compacted(&self, timeout: Duration) -> Result<Option<bool>, ConnectorError> {
        let deadline = Instant::now() + timeout;
        let broker = Some(self.broker.load(Relaxed)).filter(|broker| *broker >= 0);
        let replies = Queue::new(&self.client);
        cleanup_policy::request(&self.client, broker, &self.options.topic, timeout, &replies);
        self.answer("asking for the topic's settings", deadline, |wait| cleanup_policy::reply(&replies, wait))
    }

    /// First offset and end of each partition, the end under the source's isolation level: what a reader can reach now.
    pub fn watermarks(&self, partitions: &[i32], timeout: Duration) -> Result<Vec<Watermarks>, ConnectorError> {
        let deadline = Instant::now() + timeout;
        let low = self.offsets(partitions, Spec::First, deadline)?;
        let high = self.offsets(partitions, Spec::End, deadline)?;
        Ok(low
            .iter()
            .zip(&high)
            .map(|(low, high)| Watermarks { partition: low.partition, low: low.offset, high: high.offset })
            .collect())
    }

    /// Where a new source begins in each partition, by its options: an offset that is fixed from then on.
    pub fn start_offsets(&self, partitions: &[i32], timeout: Duration) -> Result<Vec<PartitionOffset>, ConnectorError> {
        let deadline = Instant::now() + timeout;
        match self.options.start {
            Start::Earliest => self.offsets(partitions, Spec::First, deadline),
            Start::Latest => self.offsets(partitions, Spec::End, deadline),
            Start::TimestampMs(ms) => self.offsets_for_time(partitions, ms, timeout),
        }
    }

    /// The first record at or after `time_ms` in each partition, or the partition's end if none is that young.
    pub fn offsets_for_time(
        &self,
        partitions: &[i32],
        time_ms: i64,
        timeout: Duration,
    ) -> Result<Vec<PartitionOffset>, ConnectorError> {
        let deadline = Instant::now() + timeout;
        let mut found = self.offsets(partitions, Spec::AtMs(time_ms), deadline)?;
        let none: Vec<i32> = found.iter().filter(|p| p.offset < 0).map(|p| p.partition).collect();
        let ends = self.offsets(&none, Spec::End, deadline)?;
        for end in ends {
            for entry in found.iter_mut().filter(|p| p.partition == end.partition) {
                entry.offset = end.offset;
            }
        }
        Ok(found)
    }

    /// In the order of `partitions`.
    fn offsets(
        &self,
        partitions: &[i32],
        spec: Spec,
        deadline: Instant,
    ) -> Result<Vec<PartitionOffset>, ConnectorError> {
        const DOING: &str = "asking for offsets";
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        // A queue of its own, so that a late reply to an earlier question is not taken for this one's.
        let replies = Queue::new(&self.client);
        let timeout = deadline.saturating_duration_since(Instant::now());
        let options = &self.options;
        offsets::request(&self.client, &options.topic, partitions, spec, options.isolation, timeout, &replies);
        let answers = self.answer(DOING, deadline, |wait| offsets::reply(&replies, wait))?;
        partitions
            .iter()
            .map(|partition| {
                let answer = answers.iter().find(|(p, _)| p == partition).map(|(_, offset)| *offset);
                let offset = answer.unwrap_or(Err(Code::RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION));
                let offset = offset.map_err(|code| self.client.explain(DOING, code, None))?;
                Ok(PartitionOffset { partition: *partition, offset })
            })
            .collect()
    }

    fn answer<T>(
        &self,
        doing: &'static str,
        deadline: Instant,
        reply: impl Fn(Duration) -> Option<Result<T, (Code, String)>>,
    ) -> Result<T, ConnectorError> {
        let reply = loop {
            if let Some(reply) = reply(Duration::from_millis(100)) {
                break reply;
            }
            if self.client.error().is_some_and(|e| e.decisive) || Instant::now() >= deadline {
                break Err((Code::RD_KAFKA_RESP_ERR__TIMED_OUT, "no answer in time".into()));
            }
        };
        let answer = reply.map_err(|(code, reason)| self.client.explain(doing, code, Some(reason)))?;
        self.client.clear_error();
        Ok(answer)
    }
}

impl Deref for Metadata {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.connection.as_ref().expect("taken when it is dropped")
    }
}

impl Drop for Metadata {
    fn drop(&mut self) {
        drop_aside(self.connection.take());
    }
}

/// The one that has answered, if it has told its number; negative if there is none.
///
/// # Safety
/// The metadata comes from the library and is alive.
unsafe fn some_broker(metadata: &sys::rd_kafka_metadata) -> i32 {
    if metadata.orig_broker_id >= 0 || metadata.broker_cnt == 0 {
        return metadata.orig_broker_id;
    }
    // SAFETY: there is at least one.
    unsafe { (*metadata.brokers).id }
}

/// # Safety
/// The metadata comes from the library and is alive.
unsafe fn read_topic(metadata: &sys::rd_kafka_metadata) -> (Code, Vec<i32>) {
    if metadata.topic_cnt == 0 {
        return (last_error(), Vec::new());
    }
    // SAFETY: the counts belong to the arrays.
    unsafe {
        let topic = &*metadata.topics;
        let mut ids: Vec<i32> = (0..topic.partition_cnt as usize).map(|i| (*topic.partitions.add(i)).id).collect();
        ids.sort_unstable();
        (topic.err, ids)
    }
}
