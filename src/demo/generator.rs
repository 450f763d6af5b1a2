//! The thread that writes events.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{AD_EVENTS, DemoError, PAGE_VIEWS};
use crate::connector::{AdGenerator, AdOptions, ConnectorError, EmbeddedBroker, PageViews, Producer};
use crate::engine::{Engine, Stats, now_us};

/// How often it writes.
const TURN: Duration = Duration::from_millis(10);
/// It begins with the events of so long ago, as fast as they are read: the last minute and what windows wait for late rows,
/// so that the views have something to show at once.
const HEAD_START_US: i64 = 70_000_000;
/// Once it has caught up, what it could not write in time is left out but for the last second.
const MOST_BEHIND_US: i64 = 1_000_000;
/// An embedded broker's partition may hold this much that is not read: well below what it keeps.
const MOST_UNREAD_BYTES: usize = EmbeddedBroker::KEPT_BYTES * 2 / 5;
/// What a record takes in the log besides its value.
const OVERHEAD_BYTES: u64 = 16;
/// The producer's own queue holds twice as many, so that it never blocks.
const MOST_PENDING: usize = 50_000;

/// What is to be written.
#[derive(Debug, Clone)]
pub struct Plan {
    pub ads: u64,
    pub seed: u64,
    pub events_per_second: u64,
    pub events: Option<u64>,
    /// The partitions of each topic whose readers are waited for; none for a broker that keeps what is written.
    pub paced_partitions: Option<i32>,
}

/// A running thread.
pub struct Generator {
    stop: Sender<()>,
    thread: JoinHandle<()>,
    finished: watch::Receiver<bool>,
    trouble: Arc<Mutex<Option<String>>>,
}

impl Generator {
    pub fn start(engine: Engine, servers: &str, plan: Plan) -> Result<Generator, DemoError> {
        let producer = Producer::new(servers, &[])?;
        let (stop, stopped) = bounded(1);
        let (finish, finished) = watch::channel(false);
        let trouble = Arc::new(Mutex::new(None));
        let writing = Writing { engine, producer, streams: streams(&plan), stopped, trouble: trouble.clone() };
        let run = move || writing.run(&finish);
        let thread = thread::Builder::new().name("generator".into()).spawn(run).map_err(DemoError::Thread)?;
        Ok(Generator { stop, thread, finished, trouble })
    }

    /// Why nothing is written just now.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().clone()
    }

    /// Returns when everything has been written, or the thread has ended.
    pub async fn finished(&mut self) {
        // A sender that is gone means the same.
        let _told = self.finished.wait_for(|finished| *finished).await;
    }

    /// Blocks until the thread has ended.
    pub fn stop(self) {
        // Full or closed: it stops already.
        let _ = self.stop.try_send(());
        if self.thread.join().is_err() {
            tracing::error!("the generator panicked");
        }
    }
}

type Write = Box<dyn FnMut(i64, &mut Vec<u8>) + Send>;

/// One topic's events.
struct Stream {
    topic: &'static str,
    left: Option<u64>,
    write: Write,
    /// When the next event happens, in microseconds since the epoch, and how far it is from one to the next.
    at_us: f64,
    step_us: f64,
    caught_up: bool,
    /// By partition, records written; empty if readers are not waited for.
    written: Vec<u64>,
    /// The partition of the next record.
    next: usize,
    records: u64,
    bytes: u64,
}

fn streams(plan: &Plan) -> Vec<Stream> {
    let stream = |topic, per_second: f64, left, write| Stream {
        topic,
        left,
        write,
        at_us: (now_us() - HEAD_START_US) as f64,
        step_us: 1e6 / per_second,
        caught_up: false,
        written: vec![0; plan.paced_partitions.map_or(0, |n| n as usize)],
        next: 0,
        records: 0,
        bytes: 0,
    };
    let mut ads = AdGenerator::new(AdOptions { seed: plan.seed, ads: plan.ads, ..AdOptions::default() });
    let mut pages = PageViews::new(plan.seed);
    let write_ad: Write = Box::new(move |now_ms, out| {
        ads.write(now_ms, out);
    });
    let write_page: Write = Box::new(move |now_ms, out| pages.write(now_ms, out));
    vec![
        stream(AD_EVENTS, plan.events_per_second as f64, plan.events, write_ad),
        stream(PAGE_VIEWS, plan.events_per_second as f64 / 10.0, plan.events.map(|n| n / 10), write_page),
    ]
}

impl Stream {
    /// The partition to write to next, if it has room. `Some(None)`: whichever the producer takes.
    fn partition(&self, positions: &[i64]) -> Option<Option<i32>> {
        let Some(written) = self.written.get(self.next) else { return Some(None) };
        let mean = self.bytes / self.records.max(1) + OVERHEAD_BYTES;
        let unread = written.saturating_sub(positions[self.next].max(0) as u64);
        (unread * mean < MOST_UNREAD_BYTES as u64).then_some(Some(self.next as i32))
    }

    fn count(&mut self, bytes: usize) {
        self.at_us += self.step_us;
        self.left = self.left.map(|left| left - 1);
        self.records += 1;
        self.bytes += bytes as u64;
        if let Some(written) = self.written.get_mut(self.next) {
            *written += 1;
            self.next = (self.next + 1) % self.written.len();
        }
    }
}

struct Writing {
    engine: Engine,
    producer: Producer,
    streams: Vec<Stream>,
    stopped: Receiver<()>,
    trouble: Arc<Mutex<Option<String>>>,
}

impl Writing {
    fn run(mut self, finish: &watch::Sender<bool>) {
        let mut buffer = Vec::new();
        while self.stopped.recv_timeout(TURN) == Err(RecvTimeoutError::Timeout) {
            let outcome = self.turn(&mut buffer);
            *self.trouble.lock() = outcome.err().map(|error| error.to_string());
            if self.producer.pending() == 0 && self.streams.iter().all(|s| s.left == Some(0)) {
                finish.send_replace(true);
            }
        }
    }

    fn turn(&mut self, buffer: &mut Vec<u8>) -> Result<(), ConnectorError> {
        let stats = self.engine.stats();
        let now_us = now_us() as f64;
        for stream in &mut self.streams {
            let positions = positions(&stats, stream.topic, stream.written.len());
            let behind_us = if stream.caught_up { MOST_BEHIND_US } else { HEAD_START_US };
            stream.at_us = stream.at_us.max(now_us - behind_us as f64);
            while stream.at_us <= now_us && stream.left != Some(0) && self.producer.pending() < MOST_PENDING {
                let Some(partition) = stream.partition(&positions) else { break };
                let at_ms = (stream.at_us / 1000.0) as i64;
                (stream.write)(at_ms, buffer);
                stream.count(buffer.len());
                self.producer.send(stream.topic, partition, None, Some(buffer), at_ms)?;
            }
            stream.caught_up |= stream.at_us > now_us;
        }
        self.producer.poll()
    }
}

/// How far each partition of the source over `topic` has been read.
fn positions(stats: &Stats, topic: &str, partitions: usize) -> Vec<i64> {
    let mut positions = vec![0; partitions];
    for read in stats.sources.iter().filter(|s| s.name == topic).flat_map(|s| &s.partitions) {
        if let Some(position) = usize::try_from(read.partition).ok().and_then(|p| positions.get_mut(p)) {
            *position = read.position;
        }
    }
    positions
}
