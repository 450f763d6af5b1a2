//! The exchange: rows on their way to the owner of their key, and the end of a tick.
//!
//! A key hashes into one of 256 [`super::bucket`]s; every bucket has one owner. In a tick each sender sends each owner numbered
//! [`Message`]s and then an end that says how many there were. An [`Inbox`] completes a tick when every sender has ended it
//! and every message is there; it may be given messages late, in any order and more than once.
//!
//! A tick has a second round where a source is deduplicated: in the first its rows go to the owners of their ids, in the second
//! what these make of them goes on to the owners of the keys.
//!
//! How messages travel is a [`Transport`]: channels between threads, or anything that may delay and redeliver.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use super::dedup::{AcceptedRows, Place};
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
    /// From 0.
    pub round: u8,
    /// Number of this message among the sender's to this owner in this round, from 0.
    pub number: u32,
    pub body: Body,
}

#[derive(Debug, Clone)]
pub enum Body {
    /// Rows for the buckets of the receiver.
    Rows { store: StoreId, buckets: RangeInclusive<u8>, batch: Batch },
    /// Accepted rows for the owner of their ids.
    Accepted { source: Oid, buckets: RangeInclusive<u8>, rows: AcceptedRows },
    /// For the reader of the partitions: rows that have become duplicates, or are none any more.
    Verdicts { source: Oid, changed: Vec<(Place, bool)> },
    /// The sender has sent everything of this round.
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

/// All that came for one round of a tick.
#[derive(Debug, Default)]
pub struct RoundInput {
    pub rows: Vec<(StoreId, Batch)>,
    pub accepted: Vec<(Oid, AcceptedRows)>,
    pub verdicts: Vec<(Oid, Vec<(Place, bool)>)>,
    pub progress: Vec<SourceProgress>,
}

/// One owner's side of the exchange.
pub struct Inbox {
    senders: u32,
    epoch: u64,
    /// The tick and round that complete next.
    next: (u64, u8),
    pending: BTreeMap<(u64, u8), BTreeMap<u32, FromSender>>,
}

#[derive(Default)]
struct FromSender {
    seen: BTreeSet<u32>,
    bodies: Vec<Body>,
    end: Option<(u32, Vec<SourceProgress>)>,
}

impl Inbox {
    pub fn new(senders: u32, epoch: u64, first_tick: u64) -> Self {
        Inbox { senders, epoch, next: (first_tick, 0), pending: BTreeMap::new() }
    }

    /// Takes a message in; a copy of one already taken, or one of an earlier epoch, tick or round, changes nothing.
    pub fn accept(&mut self, message: Message) {
        let at = (message.tick, message.round);
        if message.epoch != self.epoch || at < self.next {
            return;
        }
        let from = self.pending.entry(at).or_default().entry(message.sender).or_default();
        match message.body {
            Body::End { messages, progress } => from.end = Some((messages, progress)),
            body => {
                if from.seen.insert(message.number) {
                    from.bodies.push(body);
                }
            }
        }
    }

    /// The next round, once it is whole. All know alike which is the tick's `last`.
    pub fn complete(&mut self, last: bool) -> Option<RoundInput> {
        let senders = self.pending.get(&self.next)?;
        let whole = |from: &FromSender| from.end.as_ref().is_some_and(|(n, _)| *n as usize == from.seen.len());
        if senders.len() < self.senders as usize || !senders.values().all(whole) {
            return None;
        }
        let mut input = RoundInput::default();
        for from in self.pending.remove(&self.next)?.into_values() {
            for body in from.bodies {
                match body {
                    Body::Rows { store, batch, .. } => input.rows.push((store, batch)),
                    Body::Accepted { source, rows, .. } => input.accepted.push((source, rows)),
                    Body::Verdicts { source, changed } => input.verdicts.push((source, changed)),
                    Body::End { .. } => {}
                }
            }
            input.progress.extend(from.end.into_iter().flat_map(|(_, progress)| progress));
        }
        let (tick, round) = self.next;
        self.next = if last { (tick + 1, 0) } else { (tick, round + 1) };
        Some(input)
    }
}
