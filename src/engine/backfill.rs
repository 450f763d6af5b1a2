//! History for a consumer that comes when the main reader has already read something: a second reader for the offsets before that.
//!
//! It applies the same law with the same facts, comes to the same verdicts, records none, and ends where the main reader stood.
//! Where the log no longer reaches back it begins at the first [`Mark`] that it still holds, for there the watermark is known.

use std::collections::BTreeMap;

use arrow::array::{Array, ArrayRef, BooleanBufferBuilder};
use serde::{Deserialize, Serialize};

use super::decoding::{Attached, Consumer, Decoding};
use super::judge::{complete_behind, event_times, kept};
use super::reader::{Out, SourceSetup};
use crate::connector::{ConnectorError, PartitionOffset, Record, Records, SteadyReader};
use crate::exec::ExecError;
use crate::exec::dedup::OffsetSet;
use crate::exec::feed::Shortfall;
use crate::exec::law::{PartitionLaw, Row};

/// The most marks that a partition keeps.
const MOST_MARKS: usize = 4096;
/// Offsets from one mark to the next, at least.
const MARK_EVERY: i64 = 16;

/// A partition's watermark as it was before the record at an offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(i64, Option<i64>)", into = "(i64, Option<i64>)")]
pub struct Mark {
    pub offset: i64,
    pub watermark_us: Option<i64>,
}

impl From<(i64, Option<i64>)> for Mark {
    fn from((offset, watermark_us): (i64, Option<i64>)) -> Self {
        Mark { offset, watermark_us }
    }
}

impl From<Mark> for (i64, Option<i64>) {
    fn from(mark: Mark) -> Self {
        (mark.offset, mark.watermark_us)
    }
}

/// Marks in order: dense among the last offsets, the sparser the older. It takes at most 100 KiB.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks(Vec<Mark>);

impl Marks {
    pub fn add(&mut self, mark: Mark) {
        if self.0.last().is_some_and(|last| mark.offset < last.offset + MARK_EVERY) {
            return;
        }
        if self.0.len() == MOST_MARKS {
            let mut index = 0;
            self.0.retain(|_| {
                index += 1;
                index > MOST_MARKS / 2 || index % 2 == 1
            });
        }
        self.0.push(mark);
    }

    /// In the order of offsets.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Mark> {
        self.0.iter().copied()
    }

    /// The first at or after an offset.
    pub fn at_or_after(&self, offset: i64) -> Option<Mark> {
        self.0.get(self.0.partition_point(|mark| mark.offset < offset)).copied()
    }
}

/// One partition's history.
pub struct Replay {
    pub start: i64,
    pub position: i64,
    /// Where the main reader stood.
    pub until: i64,
    pub law: PartitionLaw,
    /// Accepted, but duplicates as of the end.
    pub duplicates: OffsetSet,
    /// Records before it do not count; `None` until it is known where the log begins.
    pub from: Option<i64>,
}

impl Replay {
    fn done(&self) -> bool {
        self.position >= self.until
    }
}

/// How far a partition's history has been read.
#[derive(Debug, Clone, Copy)]
pub struct HistoryProgress {
    pub partition: i32,
    pub start: i64,
    pub position: i64,
    pub until: i64,
}

/// For a consumer that is given by others the rows of a deduplicated source that may still be taken back: those with an id that are
/// not final.
#[derive(Debug, Clone, Copy)]
pub struct Settled {
    /// What is before this is final; `None`: nothing.
    pub until_us: Option<i64>,
}

pub struct Backfill {
    reader: SteadyReader,
    decoding: Decoding,
    consumer: Consumer,
    partitions: BTreeMap<i32, Replay>,
    settled: Option<Settled>,
    /// Rows of earlier event times may be missing, as the log no longer has them.
    complete_from_us: Option<i64>,
}

impl Backfill {
    pub fn new(
        setup: &SourceSetup,
        attached: &Attached,
        partitions: BTreeMap<i32, Replay>,
        settled: Option<Settled>,
    ) -> Result<Backfill, ExecError> {
        let assigned: Vec<PartitionOffset> =
            partitions.iter().map(|(&partition, r)| PartitionOffset { partition, offset: r.position }).collect();
        let ends: Vec<(i32, i64)> = partitions.iter().map(|(&partition, r)| (partition, r.until)).collect();
        let mut reader = SteadyReader::new(&setup.options, &assigned);
        reader.told_ends(&ends);
        Ok(Backfill {
            reader,
            decoding: Decoding::new(setup, vec![attached.clone()])?,
            consumer: attached.consumer(),
            partitions,
            settled,
            complete_from_us: None,
        })
    }

    pub fn consumer(&self) -> Consumer {
        self.consumer
    }

    /// Reads up to about `max_bytes`. `mark` gives a partition's first mark at or after an offset, or how it stands now if there is none. Returns the
    /// bytes that came, and what went wrong after them.
    pub fn read(
        &mut self,
        setup: &SourceSetup,
        mark: &dyn Fn(i32, i64) -> Option<Mark>,
        max_bytes: usize,
        records: &mut Records,
        out: &mut Out,
    ) -> (usize, Option<ConnectorError>) {
        records.clear();
        let polled = self.reader.poll(records, max_bytes);
        let bytes = records.bytes.len();
        for run in records.records.chunk_by(|a, b| a.partition == b.partition) {
            self.find_beginning(setup, mark, run[0].partition, run[0].offset);
        }
        let partitions = &self.partitions;
        let counts =
            |r: &Record, replay: &Replay| r.offset < replay.until && replay.from.is_some_and(|f| r.offset >= f);
        records.records.retain(|r| partitions.get(&r.partition).is_some_and(|replay| counts(r, replay)));
        if !records.is_empty() {
            self.feed(setup, records, out);
        }
        let reached: Vec<(i32, i64)> =
            self.partitions.keys().filter_map(|&p| Some((p, self.reader.position(p)?))).collect();
        let mut finished = Vec::new();
        for (partition, position) in reached {
            if position >= self.partitions[&partition].until {
                // A log may begin behind all that there was to read.
                self.find_beginning(setup, mark, partition, position);
                finished.push(partition);
            }
            let Some(replay) = self.partitions.get_mut(&partition) else { continue };
            replay.position = replay.position.max(position.min(replay.until));
        }
        self.reader.remove(&finished);
        let partition = match polled {
            Ok(()) => return (bytes, None),
            Err(ConnectorError::OffsetLost { partition, .. }) => partition,
            Err(error) => return (bytes, Some(error)),
        };
        if let Some(replay) = self.partitions.get_mut(&partition).filter(|replay| !replay.done()) {
            // The log has lost where it was to be read.
            replay.from = None;
            self.reader.add(&[PartitionOffset { partition, offset: PartitionOffset::EARLIEST }]);
            self.reader.told_ends(&[(partition, replay.until)]);
        }
        (bytes, None)
    }

    /// Of this partition there is nothing more to be had. False if there was nothing left to read.
    pub fn give_up(&mut self, partition: i32) -> bool {
        let Some(replay) = self.partitions.get_mut(&partition).filter(|replay| !replay.done()) else { return false };
        replay.position = replay.until;
        self.reader.remove(&[partition]);
        true
    }

    /// Now that it is known that the log begins at `offset`.
    fn find_beginning(
        &mut self,
        setup: &SourceSetup,
        mark: &dyn Fn(i32, i64) -> Option<Mark>,
        partition: i32,
        offset: i64,
    ) {
        let Some(replay) = self.partitions.get_mut(&partition).filter(|replay| replay.from.is_none()) else { return };
        let mark = mark(partition, offset).unwrap_or(Mark { offset, watermark_us: None });
        replay.law = PartitionLaw::resuming(replay.law.facts().clone(), mark.offset, mark.watermark_us);
        replay.from = Some(mark.offset.min(replay.until));
        self.complete_from_us = self.complete_from_us.max(complete_behind(setup, mark.watermark_us));
        tracing::warn!(source = setup.source, partition, from = mark.offset, "history is no longer in the log");
    }

    fn feed(&mut self, setup: &SourceSetup, records: &Records, out: &mut Out) {
        let decoded = self.decoding.decoder.decode(records, 0..records.len());
        let times = event_times(setup, &self.decoding.present, &decoded);
        let mut keep = BooleanBufferBuilder::new(decoded.rows.len());
        // All columns of such a source are there.
        let id = setup.across_partitions().map_or(&[][..], |deduplicate| &deduplicate.columns);
        let ids: Vec<ArrayRef> = id.iter().map(|&column| decoded.batch.column(column).clone()).collect();
        for (row, &record) in decoded.rows.iter().enumerate() {
            let record = &records.records[record as usize];
            let replay = self.partitions.get_mut(&record.partition).expect("records were chosen by partition");
            let at = row;
            let row = Row {
                offset: record.offset,
                event_time_us: times.as_ref().and_then(|t| t.is_valid(row).then(|| t.value(row))),
                arrival_us: record.timestamp_ms.saturating_mul(1000),
                arrival_in_log: record.log_append_time,
            };
            let accepted = replay.law.judge(row).is_ok() && !replay.duplicates.contains(record.offset);
            // The others are given to the consumer by the owners of their ids.
            let here = self.settled.is_none_or(|settled| {
                row.event_time_us < settled.until_us || ids.iter().any(|column| column.is_null(at))
            });
            keep.append(accepted && here);
        }
        self.decoding.feed(kept(decoded.batch, keep), out);
    }

    pub fn shortfall(&self) -> Shortfall {
        self.decoding.shortfalls().map(|(_, shortfall)| shortfall).next().unwrap_or_default()
    }

    /// Why it cannot be opened.
    pub fn trouble(&self) -> Option<&str> {
        self.reader.trouble()
    }

    pub fn done(&self) -> bool {
        self.partitions.values().all(Replay::done)
    }

    pub fn progress(&self) -> impl Iterator<Item = HistoryProgress> {
        self.partitions.iter().map(|(&partition, replay)| HistoryProgress {
            partition,
            start: replay.start,
            position: replay.position,
            until: replay.until,
        })
    }

    pub fn complete_from_us(&self) -> Option<i64> {
        self.complete_from_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_marks_grow_sparse() {
        let mut marks = Marks::default();
        for n in 0..100_000 {
            marks.add(Mark { offset: n * MARK_EVERY, watermark_us: Some(n) });
            marks.add(Mark { offset: n * MARK_EVERY + 1, watermark_us: None });
        }
        assert!(marks.0.len() <= MOST_MARKS && marks.0.iter().all(|m| m.watermark_us.is_some()));
        let found = |offset| marks.at_or_after(offset).map(|m| m.offset);
        assert_eq!(found(0), Some(0));
        assert_eq!(found(99_990 * MARK_EVERY - 1), Some(99_990 * MARK_EVERY));
        assert_eq!(found(99_999 * MARK_EVERY + 1), None);
        assert!(marks.0[1].offset > 10 * MARK_EVERY, "{:?}", marks.0[1]);
    }
}
