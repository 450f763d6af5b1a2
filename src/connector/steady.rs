//! A reader that stays at it: what cannot be opened now is opened later, and a connection that brings nothing although the log has
//! more is made anew.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::error::ConnectorError;
use super::records::Records;
use super::source::{Reader, SourceOptions};
use super::{Health, PartitionOffset};

/// After a failure to open the pause doubles, from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));
/// How long a partition may bring nothing though its log has more, before the connection is made anew; it doubles while that does
/// not help, up to the second.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(600));
/// A longer time between two polls is not the connection's.
const MOST_BETWEEN_POLLS: Duration = Duration::from_millis(100);

/// Like a [`Reader`], which it opens as often as it takes: nothing that is asked of it fails but [`SteadyReader::poll`], where the log
/// has lost a partition's place. Such a partition is no longer read until it is added again.
pub struct SteadyReader {
    options: SourceOptions,
    reader: Option<Reader>,
    /// How many there have been.
    connections: u64,
    wanted: BTreeMap<i32, Wanted>,
    retry: Retry,
    health: Health,
    patience: Duration,
    last_poll: Instant,
    /// Time spent polling, as far as it may count against a connection.
    polled: Duration,
}

struct Wanted {
    /// The next offset to read, or [`PartitionOffset::EARLIEST`].
    next: i64,
    /// As far as it has been told.
    end: i64,
    /// [`SteadyReader::polled`] when it last came further, or stood at its end.
    moved_at: Duration,
    patience: Duration,
}

struct Retry {
    since: Instant,
    pause: Duration,
}

impl SteadyReader {
    /// Connects in the background.
    pub fn new(options: &SourceOptions, partitions: &[PartitionOffset]) -> SteadyReader {
        let mut reader = SteadyReader {
            options: options.clone(),
            reader: None,
            connections: 0,
            wanted: BTreeMap::new(),
            retry: Retry { since: Instant::now(), pause: Duration::ZERO },
            health: Health::Running,
            patience: PATIENCE.0,
            last_poll: Instant::now(),
            polled: Duration::ZERO,
        };
        reader.want(partitions);
        reader.open();
        reader
    }

    fn want(&mut self, partitions: &[PartitionOffset]) {
        let (moved_at, patience) = (self.polled, self.patience);
        let wanted = |p: &PartitionOffset| (p.partition, Wanted { next: p.offset, end: i64::MIN, moved_at, patience });
        self.wanted.extend(partitions.iter().map(wanted));
    }

    fn open(&mut self) {
        let assigned: Vec<PartitionOffset> =
            self.wanted.iter().map(|(&partition, w)| PartitionOffset { partition, offset: w.next }).collect();
        let opened = self.options.reader().and_then(|mut reader| reader.assign(&assigned).map(|()| reader));
        match opened {
            Ok(reader) => {
                (self.reader, self.retry.pause) = (Some(reader), Duration::ZERO);
                (self.health, self.connections) = (Health::Running, self.connections + 1);
            }
            Err(error) => self.close(&error),
        }
    }

    fn close(&mut self, error: &ConnectorError) {
        self.reader = None;
        let pause = (self.retry.pause * 2).clamp(RETRY.0, RETRY.1);
        self.retry = Retry { since: Instant::now(), pause };
        let health = Health::Retrying { message: error.to_string() };
        if self.health != health {
            tracing::warn!(topic = self.options.topic(), %error, "cannot read");
        }
        self.health = health;
    }

    /// Reads these partitions too; one that is read already is taken to the offset given.
    pub fn add(&mut self, partitions: &[PartitionOffset]) {
        self.want(partitions);
        if let Some(Err(error)) = self.reader.as_mut().map(|reader| reader.add(partitions)) {
            self.close(&error);
        }
    }

    pub fn remove(&mut self, partitions: &[i32]) {
        self.wanted.retain(|partition, _| !partitions.contains(partition));
        if let Some(reader) = &mut self.reader {
            reader.remove(partitions);
        }
    }

    /// Where logs end, as far as is known: a partition that stands before its end is expected to bring something.
    pub fn told_ends(&mut self, ends: &[(i32, i64)]) {
        for (partition, end) in ends {
            self.wanted.entry(*partition).and_modify(|wanted| wanted.end = *end);
        }
    }

    /// Appends what has arrived to `into`, until it holds about `max_bytes`. Records appended before an error count.
    pub fn poll(&mut self, into: &mut Records, max_bytes: usize) -> Result<(), ConnectorError> {
        self.polled += self.last_poll.elapsed().min(MOST_BETWEEN_POLLS);
        self.last_poll = Instant::now();
        if self.reader.is_none() && self.retry.since.elapsed() >= self.retry.pause {
            self.open();
        }
        let Some(reader) = &mut self.reader else { return Ok(()) };
        let polled = reader.poll(into, max_bytes, Duration::ZERO);
        for PartitionOffset { partition, offset } in reader.positions() {
            if let Some(wanted) = self.wanted.get_mut(&partition).filter(|wanted| wanted.next < offset) {
                (wanted.next, wanted.moved_at, wanted.patience) = (offset, self.polled, self.patience);
            }
        }
        // One that is not connected says so itself.
        let expects_more = *reader.health() == Health::Running;
        if let Err(ConnectorError::OffsetLost { partition, .. }) = &polled {
            // By now another log may hold such an offset.
            self.remove(&[*partition]);
        }
        if expects_more && self.stands() {
            self.reader = None;
            self.open();
        }
        polled
    }

    /// Has a partition brought nothing for too long?
    fn stands(&mut self) -> bool {
        let mut stands = false;
        for (partition, wanted) in &mut self.wanted {
            if wanted.next >= wanted.end {
                wanted.moved_at = self.polled;
            } else if self.polled - wanted.moved_at > wanted.patience {
                stands = true;
                (wanted.moved_at, wanted.patience) = (self.polled, (wanted.patience * 2).min(PATIENCE.1));
                let (topic, next, end) = (self.options.topic(), wanted.next, wanted.end);
                let text = "nothing comes though there is more: connecting anew";
                tracing::warn!(topic, partition, next, end, connection = self.connections, "{text}");
            }
        }
        stands
    }

    /// The next offset to read of a partition that is read; `None` until it is known where a log begins that is read from there.
    pub fn position(&self, partition: i32) -> Option<i64> {
        self.wanted.get(&partition).map(|wanted| wanted.next).filter(|next| *next >= 0)
    }

    /// Why it cannot be opened.
    pub fn trouble(&self) -> Option<&str> {
        match (&self.reader, &self.health) {
            (None, Health::Retrying { message }) => Some(message),
            _ => None,
        }
    }

    /// As of the last poll.
    pub fn health(&self) -> &Health {
        match &self.reader {
            Some(reader) => reader.health(),
            None => &self.health,
        }
    }
}

#[cfg(test)]
#[path = "steady_tests.rs"]
mod tests;
