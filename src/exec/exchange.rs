//! The exchange: rows on their way to the owner of their key, and the end of a tick.
//!
//! A key hashes into one of 256 [`super::bucket`]s; every bucket has one owner. In a tick each sender sends each owner numbered
//! [`Message`]s and then an end that says how many there were. An [`Inbox`] completes a tick when every sender has ended it
//! and every message is there; it may be given messages late, in any order and more than once.
//!
//! How messages travel is a [`Transport`]: channels between threads, or anything that may delay and redeliver.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use super::law::PartitionProgress;
use super::slice_store::{PartialRows, StoreRows};
use crate::planner::stream_plan::Oid;

/// Names a store within one process.
pub type StoreId = u64;

#[derive(Debug, Clone)]
pub struct Message {
    pub sender: u32,
    pub epoch: u64,
    pub tick: u64,
    /// Number of this message among the sender's to this owner in this tick, from 0.
    pub number: u32,
    pub body: Body,
}

#[derive(Debug, Clone)]
pub enum Body {
    /// Rows for the buckets of the receiver.
    Rows { store: StoreId, buckets: RangeInclusive<u8>, batch: Batch },
    /// The sender has sent everything of this tick.
    End { messages: u32, progress: Vec<SourceProgress> },
}

#[derive(Debug, Clone)]
pub enum Batch {
    Raw(StoreRows),
    Partial(PartialRows),
}

/// How far one sender has come in a source: its partitions' event time, and the offsets its rows of this tick reach to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceProgress {
    pub source: Oid,
    pub partitions: Vec<PartitionProgress>,
    pub offsets: Vec<(i32, i64)>,
}

/// Carries messages to owners. Never loses one for good; may delay, reorder and repeat.
pub trait Transport: Send {
    fn send(&mut self, owner: usize, message: Message);
}

/// All that came for one tick.
#[derive(Debug, Default)]
pub struct TickInput {
    pub rows: Vec<(StoreId, Batch)>,
    pub progress: Vec<SourceProgress>,
}

/// One owner's side of the exchange.
pub struct Inbox {
    senders: u32,
    epoch: u64,
    /// The tick that completes next.
    tick: u64,
    pending: BTreeMap<u64, BTreeMap<u32, FromSender>>,
}

#[derive(Default)]
struct FromSender {
    seen: BTreeSet<u32>,
    rows: Vec<(StoreId, Batch)>,
    end: Option<(u32, Vec<SourceProgress>)>,
}

impl Inbox {
    pub fn new(senders: u32, epoch: u64, first_tick: u64) -> Self {
        Inbox { senders, epoch, tick: first_tick, pending: BTreeMap::new() }
    }

    /// Takes a message in; a copy of one already taken, or one of an earlier epoch or tick, changes nothing.
    pub fn accept(&mut self, message: Message) {
        if message.epoch != self.epoch || message.tick < self.tick {
            return;
        }
        let from = self.pending.entry(message.tick).or_default().entry(message.sender).or_default();
        match message.body {
            Body::Rows { store, batch, .. } => {
                if from.seen.insert(message.number) {
                    from.rows.push((store, batch));
                }
            }
            Body::End { messages, progress } => from.end = Some((messages, progress)),
        }
    }

    /// The next tick, once it is whole.
    pub fn complete(&mut self) -> Option<TickInput> {
        let senders = self.pending.get(&self.tick)?;
        let whole = |from: &FromSender| from.end.as_ref().is_some_and(|(n, _)| *n as usize == from.seen.len());
        if senders.len() < self.senders as usize || !senders.values().all(whole) {
            return None;
        }
        let mut input = TickInput::default();
        for from in self.pending.remove(&self.tick)?.into_values() {
            input.rows.extend(from.rows);
            input.progress.extend(from.end.into_iter().flat_map(|(_, progress)| progress));
        }
        self.tick += 1;
        Some(input)
    }
}
