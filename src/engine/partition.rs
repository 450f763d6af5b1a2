//! A partition as its reader has it.

use super::backfill::Marks;
use super::checkpoint::PartitionNotes;
use super::verdicts::Counts;
use crate::exec::dedup::{OffsetSet, WithinPartition};
use crate::exec::law::PartitionLaw;

pub(super) struct Partition {
    pub start: i64,
    pub position: i64,
    pub end: Option<i64>,
    /// When the topic last told its end.
    pub end_seen_us: i64,
    /// Since when it has stood at its end.
    pub at_end_since_us: Option<i64>,
    /// How long it is known to have stood there, if it is idle.
    pub idle_us: Option<i64>,
    pub law: PartitionLaw,
    pub marks: Marks,
    pub counts: Counts,
    /// Where the ids of one are in no other.
    pub ids: Option<WithinPartition>,
    /// Accepted by the law, and yet they do not count.
    pub duplicates: OffsetSet,
    /// The log no longer holds the position.
    pub error: Option<String>,
    /// Before its start there were rows of earlier event times, which no reader finds any more.
    pub complete_from_us: Option<i64>,
}

impl Partition {
    pub fn new(start: i64, law: PartitionLaw, lasts: bool) -> Partition {
        let mut duplicates = OffsetSet::default();
        if lasts {
            duplicates.track_saves();
        }
        Partition {
            start,
            position: start,
            end: None,
            end_seen_us: i64::MIN,
            at_end_since_us: None,
            idle_us: None,
            law,
            marks: Marks::default(),
            counts: Counts::default(),
            ids: None,
            duplicates,
            error: None,
            complete_from_us: None,
        }
    }

    pub fn notes(&self, floor_us: Option<i64>) -> PartitionNotes {
        PartitionNotes {
            start: self.start,
            position: self.position,
            counts: self.counts,
            law: self.law.clone(),
            marks: self.marks.clone(),
            error: self.error.clone(),
            complete_from_us: self.complete_from_us,
            floor_us,
        }
    }

    pub fn note_end(&mut self, now_us: i64) {
        match self.end {
            Some(end) if self.position >= end => {
                self.at_end_since_us.get_or_insert(now_us);
            }
            _ => self.at_end_since_us = None,
        }
    }
}
