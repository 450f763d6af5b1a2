//! A worker's share of a source: reads records, decides which count, and evaluates what consumers want of them.
//!
//! The main reader goes on for ever. A consumer that comes when it has already read something gets a second reader for the
//! offsets before that, a [`Backfill`]. Since what a consumer makes of rows does not depend on their order, both feed it at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, BooleanArray, BooleanBufferBuilder, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::SchemaRef;

use super::backfill::{Backfill, Mark, Marks, Replay};
use super::stats::PartitionStats;
use super::worker::{PassId, ReadRows};
use crate::catalog::Oid;
use crate::connector::{
    self, ColumnSpec, ConnectorError, Decoded, Health, JsonDecoder, JsonOptions, PartitionOffset, Records,
    SourceOptions,
};
use crate::exec::exchange::{SourceProgress, StoreId};
use crate::exec::feed::{FeedStep, PassStep, Shortfall, micros};
use crate::exec::flow::{Feed, Pass};
use crate::exec::law::{Bounds, LateReason, PartitionLaw, PartitionProgress, Row};
use crate::exec::{Delta, ExecError};

/// One poll brings about this much at most: enough to amortise a batch, little enough to stay in cache.
pub(super) const POLL_BYTES: usize = 4 << 20;

/// What reads rows of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Consumer {
    Store(StoreId),
    Pass(PassId),
}

/// A consumer with what it wants.
#[derive(Debug, Clone)]
pub enum Attached {
    Feed(StoreId, Arc<Feed>),
    Pass(PassId, Arc<Pass>),
}

impl Attached {
    pub fn consumer(&self) -> Consumer {
        match self {
            Attached::Feed(store, _) => Consumer::Store(*store),
            Attached::Pass(pass, _) => Consumer::Pass(*pass),
        }
    }

    fn columns(&self) -> Vec<usize> {
        match self {
            Attached::Feed(_, feed) => feed.source_columns(),
            Attached::Pass(_, pass) => pass.source_columns(),
        }
    }
}

/// What a worker must know of a source.
#[derive(Clone)]
pub struct SourceSetup {
    pub source: Oid,
    pub options: SourceOptions,
    pub decode: JsonOptions,
    pub columns: Vec<ColumnSpec>,
    pub schema: SchemaRef,
    /// Index of the event-time column.
    pub time_column: Option<usize>,
    pub bounds: Bounds,
}

/// How many records of a partition got which verdict.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub read: u64,
    pub accepted: u64,
    pub late: u64,
    pub duplicate: u64,
    pub dead: u64,
    pub skipped: u64,
}

/// A record that does not count, with why.
#[derive(Debug, Clone)]
pub struct LateRow {
    pub source: Oid,
    pub partition: i32,
    pub offset: i64,
    pub event_time_us: Option<i64>,
    pub watermark_us: Option<i64>,
    pub payload: Vec<u8>,
    pub reason: LateReason,
}

#[derive(Debug, Clone)]
pub struct DeadLetter {
    pub source: Oid,
    pub partition: i32,
    pub offset: i64,
    /// The record's own timestamp, -1 if it has none.
    pub timestamp_ms: i64,
    pub payload: Vec<u8>,
    pub reason: String,
}

/// Records of a tick that do not count.
#[derive(Debug, Default)]
pub struct Verdicts {
    pub late: Vec<LateRow>,
    pub dead: Vec<DeadLetter>,
}

struct Partition {
    start: i64,
    position: i64,
    end: Option<i64>,
    /// Since when it has stood at its end.
    at_end_since_us: Option<i64>,
    idle: bool,
    law: PartitionLaw,
    marks: Marks,
    counts: Counts,
    error: Option<String>,
}

/// Records → rows, for a set of columns.
pub(super) struct Decoding {
    pub decoder: JsonDecoder,
    /// Columns built, ascending.
    pub present: Vec<usize>,
    consumers: Vec<(Attached, Step)>,
}

enum Step {
    Feed(FeedStep),
    Pass(PassStep),
}

pub struct SourceReader {
    setup: SourceSetup,
    reader: Option<connector::Reader>,
    partitions: BTreeMap<i32, Partition>,
    decoding: Option<Decoding>,
    backfills: Vec<Backfill>,
    /// Consumers whose history the log did not hold whole, with the event time they are complete from; told once.
    incomplete: BTreeMap<Consumer, i64>,
    /// Of steps that have been replaced, and of backfills that have ended.
    shortfalls: BTreeMap<Consumer, Shortfall>,
    records: Records,
    verdicts: Verdicts,
    trouble: Option<String>,
}

pub(super) type Out = Vec<(Consumer, Result<ReadRows, ExecError>)>;

impl SourceReader {
    pub fn new(setup: SourceSetup) -> Self {
        SourceReader {
            setup,
            reader: None,
            partitions: BTreeMap::new(),
            decoding: None,
            backfills: Vec::new(),
            incomplete: BTreeMap::new(),
            shortfalls: BTreeMap::new(),
            records: Records::default(),
            verdicts: Verdicts::default(),
            trouble: None,
        }
    }

    pub fn bounds(&self) -> &Bounds {
        &self.setup.bounds
    }

    pub fn add_partitions(&mut self, partitions: &[(i32, i64)]) {
        for &(partition, start) in partitions {
            self.partitions.entry(partition).or_insert_with(|| Partition {
                start,
                position: start,
                end: None,
                at_end_since_us: None,
                idle: false,
                law: PartitionLaw::default(),
                marks: Marks::default(),
                counts: Counts::default(),
                error: None,
            });
        }
        let added: Vec<_> =
            partitions.iter().map(|&(partition, offset)| PartitionOffset { partition, offset }).collect();
        let result = match &mut self.reader {
            Some(reader) => reader.add(&added),
            None => self.setup.options.reader().and_then(|mut reader| {
                reader.assign(&added)?;
                self.reader = Some(reader);
                Ok(())
            }),
        };
        if let Err(error) = result {
            self.trouble = Some(error.to_string());
        }
    }

    /// Learns where partitions end.
    pub fn set_ends(&mut self, ends: &[(i32, i64)], now_us: i64) {
        for &(partition, end) in ends {
            if let Some(state) = self.partitions.get_mut(&partition) {
                state.end = Some(end);
                state.note_end(now_us);
            }
        }
    }

    pub fn attach(&mut self, attached: Attached) {
        let begun = self.partitions.values().any(|p| p.position > p.start);
        if begun {
            match self.backfill(&attached) {
                Ok(backfill) => self.backfills.push(backfill),
                Err(error) => self.trouble = Some(error),
            }
        }
        let mut consumers = self.consumers();
        consumers.push(attached);
        self.decode_for(consumers);
    }

    pub fn detach(&mut self, consumer: Consumer) {
        self.backfills.retain(|b| b.consumer() != consumer);
        let consumers = self.consumers().into_iter().filter(|a| a.consumer() != consumer).collect();
        self.decode_for(consumers);
        self.shortfalls.remove(&consumer);
    }

    fn consumers(&self) -> Vec<Attached> {
        self.decoding.iter().flat_map(|d| d.consumers.iter().map(|(attached, _)| attached.clone())).collect()
    }

    fn decode_for(&mut self, consumers: Vec<Attached>) {
        for (consumer, shortfall) in self.decoding.iter().flat_map(Decoding::shortfalls) {
            self.shortfalls.entry(consumer).or_default().add(shortfall);
        }
        if consumers.is_empty() {
            self.decoding = None;
            return;
        }
        match Decoding::new(&self.setup, consumers) {
            Ok(decoding) => self.decoding = Some(decoding),
            Err(error) => self.trouble = Some(error),
        }
    }

    fn backfill(&self, attached: &Attached) -> Result<Backfill, String> {
        let mut partitions = BTreeMap::new();
        for (&partition, state) in &self.partitions {
            if state.position > state.start {
                let law = PartitionLaw::replaying(state.law.facts().clone());
                let (position, until) = (state.start, state.position);
                partitions.insert(partition, Replay { position, until, law, from: Some(position) });
            }
        }
        Backfill::new(&self.setup, attached, partitions)
    }

    /// Reads once, main reader and backfills. Returns the bytes that came.
    pub fn read(&mut self, now_us: i64, out: &mut Out) -> usize {
        let mut bytes = self.read_main(now_us, out);
        let partitions = &self.partitions;
        let mark = |partition: i32, offset: i64| {
            let state = partitions.get(&partition)?;
            let now = Mark { offset: state.position, watermark_us: state.law.watermark_us() };
            Some(state.marks.at_or_after(offset).unwrap_or(now))
        };
        for backfill in &mut self.backfills {
            match backfill.read(&self.setup, &mark, &mut self.records, out) {
                Ok(read) => bytes += read,
                Err(error) => self.trouble = Some(error.to_string()),
            }
            if let Some(from_us) = backfill.complete_from_us() {
                self.incomplete.insert(backfill.consumer(), from_us);
            }
        }
        for backfill in self.backfills.extract_if(.., |b| b.done()) {
            self.shortfalls.entry(backfill.consumer()).or_default().add(backfill.shortfall());
        }
        bytes
    }

    fn read_main(&mut self, now_us: i64, out: &mut Out) -> usize {
        let (Some(reader), Some(decoding)) = (&mut self.reader, &mut self.decoding) else { return 0 };
        self.records.clear();
        if let Err(error) = reader.poll(&mut self.records, POLL_BYTES, Duration::ZERO) {
            if let ConnectorError::OffsetLost { partition, .. } = &error
                && let Some(state) = self.partitions.get_mut(partition)
            {
                state.error = Some(error.to_string());
            }
            self.trouble = Some(error.to_string());
        } else if let Health::Retrying { message } = reader.health() {
            self.trouble = Some(message.clone());
        } else if self.partitions.values().all(|p| p.error.is_none()) {
            self.trouble = None;
        }
        let bytes = self.records.bytes.len();
        if !self.records.is_empty() {
            judge_and_feed(&self.setup, decoding, &self.records, &mut self.partitions, now_us, &mut self.verdicts, out);
        }
        for (&partition, state) in &mut self.partitions {
            if let Some(position) = reader.position(partition) {
                state.position = state.position.max(position);
            }
            state.note_end(now_us);
        }
        bytes.max(self.records.len())
    }

    /// Where this worker's partitions stand; decides which are idle.
    pub fn progress(&mut self, source: Oid, now_us: i64) -> SourceProgress {
        let idle_timeout_us = self.setup.bounds.idle_timeout_us;
        let mut progress = SourceProgress { source, partitions: Vec::new(), offsets: Vec::new() };
        for (&partition, state) in &mut self.partitions {
            state.note_end(now_us);
            state.idle = state.at_end_since_us.is_some_and(|since| now_us.saturating_sub(since) >= idle_timeout_us);
            progress.partitions.push(PartitionProgress {
                partition,
                watermark_us: state.law.watermark_us(),
                idle: state.idle,
            });
            progress.offsets.push((partition, state.position));
        }
        progress
    }

    /// An idle partition, and one from which nothing has come, begin at the source's watermark when a row comes.
    pub fn source_stands_at(&mut self, watermark_us: Option<i64>) {
        for state in self.partitions.values_mut() {
            let begins = state.idle || state.position == state.start;
            state.law.raise_when_it_returns(if begins { watermark_us } else { None });
        }
    }

    pub fn report(&mut self, source: Oid, verdicts: &mut Verdicts) -> super::worker::SourceReport {
        verdicts.late.append(&mut self.verdicts.late);
        verdicts.dead.append(&mut self.verdicts.dead);
        let partitions = self
            .partitions
            .iter()
            .map(|(&partition, p)| PartitionStats {
                partition,
                position: p.position,
                end: p.end,
                counts: p.counts,
                watermark_us: p.law.watermark_us(),
                idle: p.idle,
                error: p.error.clone(),
            })
            .collect();
        super::worker::SourceReport {
            source,
            partitions,
            trouble: self.trouble.clone(),
            unseen_columns: self.decoding.as_ref().map(|d| d.decoder.unseen_columns()).unwrap_or_default(),
            backfills: self.backfills.iter().map(|b| (b.consumer(), b.read_so_far(), b.to_read())).collect(),
            incomplete: std::mem::take(&mut self.incomplete).into_iter().collect(),
        }
    }

    /// What could not be taken for a consumer so far, its history included.
    pub fn shortfall(&self, consumer: Consumer) -> Shortfall {
        let mut total = self.shortfalls.get(&consumer).cloned().unwrap_or_default();
        let now = self.decoding.iter().flat_map(Decoding::shortfalls).filter(|(c, _)| *c == consumer);
        now.for_each(|(_, shortfall)| total.add(shortfall));
        let history = self.backfills.iter().filter(|b| b.consumer() == consumer);
        history.for_each(|backfill| total.add(backfill.shortfall()));
        total
    }

    /// [`SourceReader::shortfall`] of each pass.
    pub fn pass_shortfalls(&self) -> Vec<(PassId, Shortfall)> {
        let consumers = self.decoding.iter().flat_map(|d| &d.consumers).map(|(attached, _)| attached.consumer());
        let pass = |consumer| match consumer {
            Consumer::Pass(pass) => Some((pass, self.shortfall(consumer))),
            Consumer::Store(_) => None,
        };
        consumers.filter_map(pass).collect()
    }
}

impl Partition {
    fn note_end(&mut self, now_us: i64) {
        match self.end {
            Some(end) if self.position >= end => {
                self.at_end_since_us.get_or_insert(now_us);
            }
            _ => self.at_end_since_us = None,
        }
    }
}

impl Decoding {
    pub fn new(setup: &SourceSetup, consumers: Vec<Attached>) -> Result<Decoding, String> {
        let mut present: BTreeSet<usize> = consumers.iter().flat_map(Attached::columns).collect();
        present.extend(setup.time_column);
        let present: Vec<usize> = present.into_iter().collect();
        let decoder = JsonDecoder::new(&setup.columns, &present, setup.decode).map_err(|error| error.to_string())?;
        let mut steps = Vec::new();
        for attached in consumers {
            let step = match &attached {
                Attached::Feed(_, feed) => FeedStep::of_feed(feed, &present).map(Step::Feed),
                Attached::Pass(_, pass) => PassStep::of(pass, &present).map(Step::Pass),
            };
            steps.push((attached, step.map_err(|error| error.to_string())?));
        }
        Ok(Decoding { decoder, present, consumers: steps })
    }

    pub fn shortfalls(&self) -> impl Iterator<Item = (Consumer, Shortfall)> {
        self.consumers.iter().map(|(attached, step)| {
            let shortfall = match step {
                Step::Feed(step) => step.shortfall(),
                Step::Pass(step) => step.shortfall(),
            };
            (attached.consumer(), shortfall)
        })
    }

    pub fn feed(&mut self, rows: RecordBatch, out: &mut Out) {
        if rows.num_rows() == 0 {
            return;
        }
        let delta = Delta::inserts(rows);
        for (attached, step) in &mut self.consumers {
            let rows = match step {
                Step::Feed(step) => step.rows(&delta).map(ReadRows::Store),
                Step::Pass(step) => step.rows(&delta).map(ReadRows::Pass),
            };
            out.push((attached.consumer(), rows));
        }
    }
}

fn judge_and_feed(
    setup: &SourceSetup,
    decoding: &mut Decoding,
    records: &Records,
    partitions: &mut BTreeMap<i32, Partition>,
    now_us: i64,
    verdicts: &mut Verdicts,
    out: &mut Out,
) {
    let decoded = decoding.decoder.decode(records, 0..records.len());
    count_records(records, partitions);
    for dead in &decoded.dead {
        let record = &records.records[dead.record as usize];
        if let Some(partition) = partitions.get_mut(&record.partition) {
            partition.counts.dead += 1;
        }
        verdicts.dead.push(DeadLetter {
            source: setup.source,
            partition: record.partition,
            offset: record.offset,
            timestamp_ms: record.timestamp_ms,
            payload: records.value(dead.record as usize).unwrap_or_default().to_vec(),
            reason: dead.reason.clone(),
        });
    }
    for &record in &decoded.skipped {
        if let Some(partition) = partitions.get_mut(&records.records[record as usize].partition) {
            partition.counts.skipped += 1;
        }
    }
    let times = event_times(setup, &decoding.present, &decoded);
    let mut keep = BooleanBufferBuilder::new(decoded.rows.len());
    let mut row = 0;
    while row < decoded.rows.len() {
        let of = records.records[decoded.rows[row] as usize].partition;
        // Records come in runs of one partition.
        let Some(state) = partitions.get_mut(&of) else {
            keep.append(false);
            row += 1;
            continue;
        };
        let first = &records.records[decoded.rows[row] as usize];
        state.marks.add(Mark { offset: first.offset, watermark_us: state.law.watermark_us() });
        while row < decoded.rows.len() {
            let index = decoded.rows[row] as usize;
            let record = &records.records[index];
            if record.partition != of {
                break;
            }
            let event_time_us = times.as_ref().and_then(|t| t.is_valid(row).then(|| t.value(row)));
            let arrival_us = if record.log_append_time { record.timestamp_ms.saturating_mul(1000) } else { now_us };
            let seen = Row { offset: record.offset, event_time_us, arrival_us, arrival_in_log: record.log_append_time };
            match state.law.judge(&setup.bounds, seen) {
                Ok(()) => {
                    state.counts.accepted += 1;
                    keep.append(true);
                }
                Err((reason, watermark_us)) => {
                    state.counts.late += 1;
                    keep.append(false);
                    verdicts.late.push(LateRow {
                        source: setup.source,
                        partition: of,
                        offset: record.offset,
                        event_time_us,
                        watermark_us,
                        payload: records.value(index).unwrap_or_default().to_vec(),
                        reason,
                    });
                }
            }
            row += 1;
        }
    }
    decoding.feed(kept(decoded.batch, keep), out);
}

fn count_records(records: &Records, partitions: &mut BTreeMap<i32, Partition>) {
    for run in records.records.chunk_by(|a, b| a.partition == b.partition) {
        if let Some(state) = partitions.get_mut(&run[0].partition) {
            state.counts.read += run.len() as u64;
            state.position = state.position.max(run[run.len() - 1].offset + 1);
            state.idle = false;
            state.at_end_since_us = None;
        }
    }
}

/// Event times of the decoded rows in microseconds; `None` for a source without a watermark.
pub(super) fn event_times(
    setup: &SourceSetup,
    present: &[usize],
    decoded: &Decoded,
) -> Option<arrow::array::Int64Array> {
    let at = present.binary_search(&setup.time_column?).expect("the time column is always built");
    Some(micros(decoded.batch.column(at)).expect("the planner checked that the column is a time"))
}

pub(super) fn kept(batch: RecordBatch, mut keep: BooleanBufferBuilder) -> RecordBatch {
    let mask = BooleanArray::new(keep.finish(), None);
    if mask.true_count() == batch.num_rows() {
        return batch;
    }
    filter_record_batch(&batch, &mask).expect("one bit per row")
}
