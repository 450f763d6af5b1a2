//! Reads assigned partitions in batches into one buffer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rdkafka_sys as sys;
use rdkafka_sys::rd_kafka_resp_err_t as Code;

use super::closing::drop_aside;
use super::native::{Client, PartitionList, Queue, Topic, code_text, last_error, millis, text};
use super::offsets::{self, Spec};
use super::options::KafkaOptions;
use crate::connector::error::ConnectorError;
use crate::connector::records::{RecordMeta, Records};
use crate::connector::{Health, PartitionOffset};

/// One consumer for the partitions assigned to it. It joins no group, commits nothing and never moves to an offset of its
/// own accord. librdkafka fetches ahead in the background, within the limits of the options.
///
/// Cost per record: librdkafka allocates one object, which is copied here and freed at once.
pub struct Reader {
    shared: Arc<Shared>,
    options: KafkaOptions,
    assigned: Vec<Assigned>,
    /// Index into `assigned` of the last record's partition: records come in runs.
    last: usize,
    messages: Vec<*mut sys::rd_kafka_message_t>,
    /// A running mean, to ask for no more messages than the caller has bytes for.
    mean_bytes: usize,
    health: Health,
    probe: Probe,
    /// Partitions whose position the log no longer holds, and that the topic is not there: one to be told by each poll.
    untold: Vec<ConnectorError>,
}

// SAFETY: the message pointers are only held within one call of `poll`.
unsafe impl Send for Reader {}

/// Fields in the order they must be dropped.
struct Shared {
    /// Set before the queue is told to yield: a poll that is about to wait has taken the queue's own mark already.
    woken: AtomicBool,
    topic: Topic,
    queue: Queue,
    replies: Queue,
    client: Client,
}

#[derive(Debug)]
struct Assigned {
    partition: i32,
    /// The next offset to read, past control records and gaps once the end has been seen.
    position: i64,
    paused: bool,
    /// A part of the log could not be decoded.
    broken: Option<Broken>,
}

/// The library would go on behind the damage; we drop what it brings and begin again at the damage after a pause, which
/// doubles each time.
#[derive(Debug)]
struct Broken {
    since: Instant,
    pause: Duration,
    /// Not begun again yet: what comes is from behind the damage.
    dropping: bool,
}

/// A question to the brokers while nothing comes, to know whether they are there.
#[derive(Default)]
struct Probe {
    waiting: bool,
    last: Option<Instant>,
}

const PROBE_EVERY: Duration = Duration::from_secs(1);
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
const BATCH: usize = 1024;
const BROKEN_PAUSE: Duration = Duration::from_secs(1);
const BROKEN_PAUSE_MAX: Duration = Duration::from_secs(60);

/// Interrupts a [`Reader::poll`] from another thread.
#[derive(Clone)]
pub struct Waker(Weak<Shared>);

impl Waker {
    /// The poll under way, or else the next one, returns at once.
    pub fn wake(&self) {
        if let Some(shared) = self.0.upgrade() {
            shared.woken.store(true, Ordering::SeqCst);
            // SAFETY: the queue is alive as long as `shared`.
            unsafe { sys::rd_kafka_queue_yield(shared.queue.ptr()) }
        }
    }
}

impl Reader {
    /// Connects in the background; errors are those of the options.
    pub fn new(options: &KafkaOptions) -> Result<Reader, ConnectorError> {
        let client = Client::new(options)?;
        let (topic, queue, replies) = (Topic::new(&client)?, Queue::new(&client), Queue::new(&client));
        Ok(Reader {
            shared: Arc::new(Shared { woken: AtomicBool::new(false), topic, queue, replies, client }),
            options: options.clone(),
            assigned: Vec::new(),
            last: 0,
            messages: Vec::with_capacity(BATCH),
            mean_bytes: 128,
            health: Health::Running,
            probe: Probe::default(),
            untold: Vec::new(),
        })
    }

    /// Reads exactly these partitions from these offsets on. Partitions read before are left or taken back there.
    pub fn assign(&mut self, partitions: &[PartitionOffset]) -> Result<(), ConnectorError> {
        for i in 0..self.assigned.len() {
            self.stop(self.assigned[i].partition);
        }
        self.assigned.clear();
        self.untold.clear();
        self.last = 0;
        self.add(partitions)
    }

    fn forget_loss(&mut self, partition: i32) {
        self.untold.retain(|e| !matches!(e, ConnectorError::OffsetLost { partition: lost, .. } if *lost == partition));
    }

    /// Reads these partitions too. One that is assigned already is taken to the offset given.
    pub fn add(&mut self, partitions: &[PartitionOffset]) -> Result<(), ConnectorError> {
        for PartitionOffset { partition, offset } in partitions {
            self.forget_loss(*partition);
            if let Some(i) = self.assigned.iter().position(|a| a.partition == *partition) {
                self.stop(*partition);
                self.assigned.remove(i);
                self.last = 0;
            }
            self.start(*partition, *offset)?;
            self.assigned.push(Assigned { partition: *partition, position: *offset, paused: false, broken: None });
        }
        Ok(())
    }

    /// Stops reading these partitions.
    pub fn remove(&mut self, partitions: &[i32]) {
        for partition in partitions {
            self.forget_loss(*partition);
            if let Some(i) = self.assigned.iter().position(|a| a.partition == *partition) {
                self.stop(*partition);
                self.assigned.remove(i);
            }
        }
        self.last = 0;
    }

    /// No records of these partitions until [`Reader::resume`]; what was fetched ahead of them is dropped and fetched again.
    pub fn pause(&mut self, partitions: &[i32]) -> Result<(), ConnectorError> {
        self.set_paused(partitions, true)
    }

    pub fn resume(&mut self, partitions: &[i32]) -> Result<(), ConnectorError> {
        self.set_paused(partitions, false)
    }

    /// The next offset to read of an assigned partition. At the end of a log this is the end offset, also where the last
    /// records are transaction markers, aborted, or gone by compaction. `None` until it is known where a log begins that is
    /// read from [`PartitionOffset::EARLIEST`].
    pub fn position(&self, partition: i32) -> Option<i64> {
        self.assigned.iter().find(|a| a.partition == partition && a.position >= 0).map(|a| a.position)
    }

    pub fn positions(&self) -> Vec<PartitionOffset> {
        let known = self.assigned.iter().filter(|a| a.position >= 0);
        known.map(|a| PartitionOffset { partition: a.partition, offset: a.position }).collect()
    }

    pub fn health(&self) -> &Health {
        &self.health
    }

    pub fn waker(&self) -> Waker {
        Waker(Arc::downgrade(&self.shared))
    }

    /// Appends what has arrived to `into`, until it holds about `max_bytes`; if nothing has, waits up to `timeout` for the
    /// first record. Returns early when woken. Trouble that passes by itself is [`Reader::health`], not an error. After
    /// [`ConnectorError::OffsetLost`] the partition needs another [`Reader::add`]; after [`ConnectorError::TopicMissing`] what comes may be of
    /// another topic of that name. Records appended before an error count.
    pub fn poll(&mut self, into: &mut Records, max_bytes: usize, timeout: Duration) -> Result<(), ConnectorError> {
        let max_bytes = max_bytes.min(Records::MAX_BYTES);
        let mut heard = false;
        let mut wait = Duration::ZERO;
        let outcome = loop {
            if into.bytes.len() >= max_bytes {
                break Ok(());
            }
            let room = (max_bytes - into.bytes.len()) / self.mean_bytes.max(1) + 1;
            // The library waits until it has as many as are asked for: so for one, if it is to wait.
            let wanted = if wait.is_zero() { room.min(BATCH) } else { 1 };
            let taken = self.take(wanted, wait);
            self.copy(into);
            heard |= taken > 0;
            if let Some(error) = self.untold.pop() {
                break Err(error);
            }
            wait = match taken {
                0 if heard || !wait.is_zero() || timeout.is_zero() => break Ok(()),
                0 if self.shared.woken.swap(false, Ordering::SeqCst) => break Ok(()),
                0 => timeout,
                n if n < wanted => break Ok(()),
                // A first record has ended the wait: take what came with it.
                _ => Duration::ZERO,
            };
        };
        self.watch(heard && outcome.is_ok());
        self.retry_broken();
        outcome
    }

    fn take(&mut self, wanted: usize, wait: Duration) -> usize {
        debug_assert!(self.messages.is_empty(), "every message taken is copied and destroyed");
        // SAFETY: the buffer has room for `BATCH` pointers; the library fills the first `n`.
        unsafe {
            let n = sys::rd_kafka_consume_batch_queue(
                self.shared.queue.ptr(),
                millis(wait),
                self.messages.as_mut_ptr(),
                wanted.min(BATCH),
            );
            let n = usize::try_from(n).unwrap_or(0);
            self.messages.set_len(n);
            n
        }
    }

    /// Copies the messages taken and destroys them.
    fn copy(&mut self, into: &mut Records) {
        let before = into.bytes.len();
        let mut copied = 0;
        for i in 0..self.messages.len() {
            let pointer = self.messages[i];
            // SAFETY: the message is ours until destroyed below.
            let message = unsafe { &*pointer };
            if message.err != Code::RD_KAFKA_RESP_ERR_NO_ERROR {
                self.note(message);
            } else if let Some(at) = self.find(message.partition) {
                let assigned = &mut self.assigned[at];
                let dropping = assigned.broken.as_ref().is_some_and(|b| b.dropping);
                if !dropping && message.offset >= assigned.position {
                    // SAFETY: pointer and length are those of the message.
                    unsafe { push(into, message) };
                    assigned.position = message.offset + 1;
                    assigned.broken = None;
                    copied += 1;
                }
            }
            // SAFETY: taken from the library and not used again.
            unsafe { sys::rd_kafka_message_destroy(pointer) };
        }
        self.messages.clear();
        if let Some(bytes) = (into.bytes.len() - before).checked_div(copied) {
            self.mean_bytes = (self.mean_bytes * 7 + bytes) / 8;
        }
    }

    fn find(&mut self, partition: i32) -> Option<usize> {
        if self.assigned.get(self.last).is_none_or(|a| a.partition != partition) {
            self.last = self.assigned.iter().position(|a| a.partition == partition)?;
        }
        Some(self.last)
    }

    /// Takes note of a message that tells of an end or an error.
    fn note(&mut self, message: &sys::rd_kafka_message_t) {
        let Some(at) = self.find(message.partition) else { return };
        let assigned = &mut self.assigned[at];
        // SAFETY: the payload of an error is its text, which ends in a zero.
        let reason = match unsafe { text(message.payload.cast()) } {
            reason if reason.is_empty() => code_text(message.err),
            reason => reason,
        };
        match message.err {
            Code::RD_KAFKA_RESP_ERR__PARTITION_EOF => {
                if assigned.broken.as_ref().is_none_or(|b| !b.dropping) {
                    assigned.position = assigned.position.max(message.offset);
                    assigned.broken = None;
                }
                return;
            }
            Code::RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET | Code::RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE => {
                let (partition, offset) = (assigned.partition, assigned.position);
                self.forget_loss(partition);
                self.untold.push(ConnectorError::OffsetLost { partition, offset, reason });
                return;
            }
            Code::RD_KAFKA_RESP_ERR__BAD_MSG
            | Code::RD_KAFKA_RESP_ERR__BAD_COMPRESSION
            | Code::RD_KAFKA_RESP_ERR__NOT_IMPLEMENTED
            | Code::RD_KAFKA_RESP_ERR__UNDERFLOW
            | Code::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE => {
                let pause = match &assigned.broken {
                    None => BROKEN_PAUSE,
                    Some(broken) if broken.dropping => broken.pause,
                    Some(broken) => (broken.pause * 2).min(BROKEN_PAUSE_MAX),
                };
                assigned.broken = Some(Broken { since: Instant::now(), pause, dropping: true });
            }
            _ => {}
        }
        let error = self.shared.client.classify("reading the topic", message.err, reason);
        self.set_health(Health::Retrying { message: error.to_string() });
        if matches!(error, ConnectorError::TopicMissing { .. }) && !self.untold.contains(&error) {
            self.untold.push(error);
        }
    }

    fn retry_broken(&mut self) {
        for i in 0..self.assigned.len() {
            let assigned = &mut self.assigned[i];
            let (partition, position) = (assigned.partition, assigned.position);
            match &mut assigned.broken {
                Some(broken) if broken.dropping && broken.since.elapsed() >= broken.pause => broken.dropping = false,
                _ => continue,
            }
            self.stop(partition);
            if let Err(error) = self.start(partition, position) {
                self.set_health(Health::Retrying { message: error.to_string() });
            }
        }
    }

    /// Keeps the health: what has been heard from a broker clears it, silence after an error is asked about.
    fn watch(&mut self, heard: bool) {
        let client = &self.shared.client;
        client.serve();
        let broken = self.assigned.iter().any(|a| a.broken.is_some());
        if heard && !broken {
            client.clear_error();
            self.set_health(Health::Running);
        }
        if self.probe.waiting
            && let Some(reply) = offsets::reply(&self.shared.replies, Duration::ZERO)
        {
            self.probe.waiting = false;
            self.settle(reply, broken);
        }
        let error = self.shared.client.error();
        if let Some(error) = error.as_ref().filter(|e| e.decisive) {
            let error = self.shared.client.classify("reading the topic", error.code, error.reason.clone());
            self.set_health(Health::Retrying { message: error.to_string() });
        }
        let due = self.probe.last.is_none_or(|last| last.elapsed() >= PROBE_EVERY);
        if (error.is_some() || self.health != Health::Running)
            && !self.probe.waiting
            && due
            && !self.assigned.is_empty()
        {
            let partitions: Vec<i32> = self.assigned.iter().map(|a| a.partition).collect();
            let (client, options) = (&self.shared.client, &self.options);
            let replies = &self.shared.replies;
            offsets::request(client, &options.topic, &partitions, Spec::End, options.isolation, PROBE_TIMEOUT, replies);
            self.probe = Probe { waiting: true, last: Some(Instant::now()) };
        }
    }

    fn settle(&mut self, reply: Result<Vec<offsets::PartitionOffset>, (Code, String)>, broken: bool) {
        const DOING: &str = "asking for the end of the log";
        let client = &self.shared.client;
        let failed = match reply {
            Err((code, reason)) => Some(client.explain(DOING, code, Some(reason))),
            Ok(answers) => answers
                .into_iter()
                .find_map(|(_, offset)| offset.err())
                .map(|code| client.classify(DOING, code, code_text(code))),
        };
        match failed {
            Some(error) => self.set_health(Health::Retrying { message: error.to_string() }),
            None => {
                client.clear_error();
                if !broken {
                    self.set_health(Health::Running);
                }
            }
        }
    }

    fn set_health(&mut self, health: Health) {
        if self.health == health {
            return;
        }
        match &health {
            Health::Running => tracing::info!(topic = self.options.topic, "reading again"),
            Health::Retrying { message } => tracing::warn!(topic = self.options.topic, message, "cannot read"),
        }
        self.health = health;
    }

    fn set_paused(&mut self, partitions: &[i32], paused: bool) -> Result<(), ConnectorError> {
        let mut changed = Vec::new();
        for partition in partitions {
            if let Some(i) = self.assigned.iter().position(|a| a.partition == *partition && a.paused != paused) {
                self.assigned[i].paused = paused;
                changed.push((*partition, self.assigned[i].position));
            }
        }
        if changed.is_empty() {
            return Ok(());
        }
        let client = &self.shared.client;
        let list = PartitionList::new(&self.options.topic, changed.iter().copied());
        // SAFETY: client and list are alive.
        let code = unsafe {
            match paused {
                true => sys::rd_kafka_pause_partitions(client.ptr(), list.ptr()),
                false => sys::rd_kafka_resume_partitions(client.ptr(), list.ptr()),
            }
        };
        match code {
            Code::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(()),
            code => Err(client.explain("pausing partitions", code, None)),
        }
    }

    fn start(&self, partition: i32, offset: i64) -> Result<(), ConnectorError> {
        let (topic, queue) = (self.shared.topic.ptr(), self.shared.queue.ptr());
        // SAFETY: topic and queue are alive.
        match unsafe { sys::rd_kafka_consume_start_queue(topic, partition, offset, queue) } {
            0 => Ok(()),
            _ => Err(self.shared.client.explain("starting to read a partition", last_error(), None)),
        }
    }

    fn stop(&self, partition: i32) {
        self.shared.stop(partition);
    }
}

impl Shared {
    /// Returns when the library has stopped: no record of the partition comes from the queue after this.
    fn stop(&self, partition: i32) {
        // SAFETY: the topic is alive. It fails only for a partition that was not started.
        unsafe { sys::rd_kafka_consume_stop(self.topic.ptr(), partition) };
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let partitions = self.assigned.iter().map(|assigned| assigned.partition).collect();
        drop_aside(Ending { shared: self.shared.clone(), partitions });
    }
}

/// A reader's connection at its end: its partitions are stopped before it goes.
struct Ending {
    shared: Arc<Shared>,
    partitions: Vec<i32>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.partitions.iter().for_each(|&partition| self.shared.stop(partition));
    }
}

/// # Safety
/// The message is alive and no error.
unsafe fn push(into: &mut Records, message: &sys::rd_kafka_message_t) {
    let mut kind = sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
    // SAFETY: the caller's promise; a null key or payload means none.
    unsafe {
        let timestamp_ms = sys::rd_kafka_message_timestamp(message, &mut kind);
        let meta = RecordMeta {
            partition: message.partition,
            offset: message.offset,
            timestamp_ms,
            log_append_time: kind == sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_LOG_APPEND_TIME,
        };
        let bytes = |pointer: *mut std::ffi::c_void, len: usize| {
            (!pointer.is_null()).then(|| std::slice::from_raw_parts(pointer.cast::<u8>(), len))
        };
        into.push(meta, bytes(message.key, message.key_len), bytes(message.payload, message.len));
    }
}
