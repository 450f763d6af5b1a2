//! Reads the computed log as it comes into being.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::{Condvar, Mutex};

use super::options::DatagenOptions;
use crate::connector::error::ConnectorError;
use crate::connector::records::{RecordMeta, Records};
use crate::connector::{Health, PartitionOffset, Watermarks};

/// Answers what a broker would.
pub struct Metadata {
    options: Arc<DatagenOptions>,
}

/// Makes the records of assigned partitions when they are due.
pub struct Reader {
    options: Arc<DatagenOptions>,
    assigned: Vec<Assigned>,
    /// The partition to begin with, so that a small buffer starves none.
    turn: usize,
    waker: Waker,
    value: Vec<u8>,
}

#[derive(Debug)]
struct Assigned {
    partition: i32,
    position: i64,
    paused: bool,
}

/// Interrupts a [`Reader::poll`] from another thread.
#[derive(Clone, Default)]
pub struct Waker(Arc<(Mutex<bool>, Condvar)>);

impl Waker {
    /// The poll under way, or else the next one, returns at once.
    pub fn wake(&self) {
        *self.0.0.lock() = true;
        self.0.1.notify_all();
    }

    /// Returns when woken, or after `timeout`; tells which.
    fn wait(&self, timeout: Duration) -> bool {
        let mut woken = self.0.0.lock();
        if !*woken {
            self.0.1.wait_for(&mut woken, timeout);
        }
        std::mem::take(&mut *woken)
    }
}

/// Rows of one partition before the next one's turn.
const RUN: usize = 1024;

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64)
}

impl Metadata {
    pub fn new(options: &Arc<DatagenOptions>) -> Metadata {
        Metadata { options: Arc::clone(options) }
    }

    pub fn partitions(&self) -> Vec<i32> {
        (0..self.options.partitions).collect()
    }

    pub fn watermarks(&self, partitions: &[i32]) -> Vec<Watermarks> {
        let now_ms = now_ms();
        let of = |p: &i32| Watermarks { partition: *p, low: 0, high: self.options.end(*p, now_ms) };
        partitions.iter().map(of).collect()
    }

    pub fn start_offsets(&self, partitions: &[i32]) -> Vec<PartitionOffset> {
        partitions.iter().map(|p| PartitionOffset { partition: *p, offset: 0 }).collect()
    }

    /// The first row at or after `time_ms`, or the end as of now.
    pub fn offsets_for_time(&self, partitions: &[i32], time_ms: i64) -> Vec<PartitionOffset> {
        let now_ms = now_ms();
        let of = |p: &i32| PartitionOffset { partition: *p, offset: self.options.end(*p, (time_ms - 1).min(now_ms)) };
        partitions.iter().map(of).collect()
    }
}

impl Reader {
    pub fn new(options: &Arc<DatagenOptions>) -> Reader {
        Reader {
            options: Arc::clone(options),
            assigned: Vec::new(),
            turn: 0,
            waker: Waker::default(),
            value: Vec::new(),
        }
    }

    pub fn assign(&mut self, partitions: &[PartitionOffset]) -> Result<(), ConnectorError> {
        self.assigned.clear();
        self.add(partitions)
    }

    pub fn add(&mut self, partitions: &[PartitionOffset]) -> Result<(), ConnectorError> {
        for PartitionOffset { partition, offset } in partitions {
            if !(0..self.options.partitions).contains(partition) || *offset < 0 {
                let reason = format!("a generator of {} partitions has no such offset", self.options.partitions);
                return Err(ConnectorError::OffsetLost { partition: *partition, offset: *offset, reason });
            }
            self.remove(&[*partition]);
            self.assigned.push(Assigned { partition: *partition, position: *offset, paused: false });
        }
        Ok(())
    }

    pub fn remove(&mut self, partitions: &[i32]) {
        self.assigned.retain(|a| !partitions.contains(&a.partition));
    }

    pub fn set_paused(&mut self, partitions: &[i32], paused: bool) {
        for assigned in self.assigned.iter_mut().filter(|a| partitions.contains(&a.partition)) {
            assigned.paused = paused;
        }
    }

    pub fn poll(&mut self, into: &mut Records, max_bytes: usize, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        loop {
            let now_ms = now_ms();
            let before = into.len();
            self.poll_at(into, max_bytes, now_ms);
            let left = deadline.saturating_duration_since(Instant::now());
            if into.len() > before || left.is_zero() {
                return;
            }
            // Clocks may be set: look again at least every second.
            let wait =
                self.next_due_ms().map_or(left, |due| left.min(Duration::from_millis((due - now_ms).max(1) as u64)));
            if self.waker.wait(wait.min(Duration::from_secs(1))) {
                return;
            }
        }
    }

    /// What is due at `now_ms` and fits.
    pub(super) fn poll_at(&mut self, into: &mut Records, max_bytes: usize, now_ms: i64) {
        let count = self.assigned.len();
        let mut nothing_for = 0;
        while nothing_for < count && into.bytes.len() < max_bytes.min(Records::MAX_BYTES) {
            let i = self.turn % count;
            self.turn = (self.turn + 1) % count;
            if self.run(i, into, max_bytes, now_ms) { nothing_for = 0 } else { nothing_for += 1 }
        }
    }

    fn run(&mut self, i: usize, into: &mut Records, max_bytes: usize, now_ms: i64) -> bool {
        let Assigned { partition, position, paused } = &mut self.assigned[i];
        let end = self.options.end(*partition, now_ms);
        if *paused || *position >= end {
            return false;
        }
        for _ in 0..RUN {
            if *position >= end || into.bytes.len() >= max_bytes {
                break;
            }
            let row = self.options.row(*partition, *position);
            let time_us = self.options.time_us(row);
            self.value.clear();
            self.value.push(b'{');
            for (i, field) in self.options.fields.iter().enumerate() {
                if i > 0 {
                    self.value.push(b',');
                }
                field.write(&mut self.value, row, time_us);
            }
            self.value.push(b'}');
            let timestamp_ms = time_us.div_euclid(1000);
            let meta = RecordMeta { partition: *partition, offset: *position, timestamp_ms, log_append_time: true };
            into.push(meta, None, Some(&self.value));
            *position += 1;
        }
        true
    }

    fn next_due_ms(&self) -> Option<i64> {
        let due = |a: &Assigned| self.options.time_us(self.options.row(a.partition, a.position)).div_euclid(1000) + 1;
        self.assigned.iter().filter(|a| !a.paused).map(due).min()
    }

    pub fn position(&self, partition: i32) -> Option<i64> {
        self.assigned.iter().find(|a| a.partition == partition).map(|a| a.position)
    }

    pub fn positions(&self) -> Vec<PartitionOffset> {
        self.assigned.iter().map(|a| PartitionOffset { partition: a.partition, offset: a.position }).collect()
    }

    /// A computed log is always there.
    pub fn health(&self) -> &Health {
        &Health::Running
    }

    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }
}
