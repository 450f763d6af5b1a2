//! A worker's share of a source: reads records, decides which count, and evaluates what consumers want of them.
//!
//! The main reader goes on for ever. A consumer that comes when it has already read something gets a second reader for the
//! offsets before that, a [`Backfill`]. Since what a consumer makes of rows does not depend on their order, both feed it at once.

use std::collections::BTreeMap;
use std::time::Duration;

use arrow::datatypes::SchemaRef;

use super::backfill::{Backfill, Mark, Marks, Replay, Settled};
use super::checkpoint::PartitionNotes;
use super::clock::Stopwatch;
use super::decoding::{Attached, Consumer, Decoding};
use super::duplicates::{TakenIn, take_in};
use super::judge::{complete_behind, judge};
use super::orders::PassId;
use super::partition::Partition;
use super::stats::PartitionStats;
use super::verdicts::{LateInto, Verdicts};
use super::worker::ReadRows;
use crate::catalog::Oid;
use crate::connector::{
    ColumnSpec, ConnectorError, Health, JsonOptions, PartitionOffset, Records, SourceOptions, SteadyReader,
};
use crate::exec::ExecError;
use crate::exec::dedup::{AcceptedRows, Deduplicate, OffsetSet, WithinPartition};
use crate::exec::durable::Saved;
use crate::exec::exchange::SourceProgress;
use crate::exec::feed::Shortfall;
use crate::exec::law::{Bounds, PartitionLaw, PartitionProgress, Terms};

/// One poll brings about this much at most: enough to amortise a batch, little enough to stay in cache.
pub(super) const POLL_BYTES: usize = 4 << 20;

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
    pub late_into: Option<LateInto>,
    pub deduplicate: Option<Deduplicate>,
}

impl SourceSetup {
    /// The clause, if rows must go to the owners of their ids to be judged by it.
    pub fn across_partitions(&self) -> Option<&Deduplicate> {
        self.deduplicate.as_ref().filter(|deduplicate| !deduplicate.same_partition)
    }
}

/// What ALTER SOURCE does to reading.
#[derive(Debug, Clone)]
pub enum SourceChange {
    Bounds(Bounds),
    /// RESET WATERMARK, to a time or to what plausible rows say.
    Watermark {
        to_us: Option<i64>,
    },
    /// Partitions whose position is lost go on at these offsets.
    Restart(Vec<(i32, i64)>),
}

/// How a partition's law stands from an offset on, after an ALTER SOURCE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Altered {
    pub partition: i32,
    pub offset: i64,
    pub before_us: Option<i64>,
    pub terms: Terms,
}

/// Who has not read for longer looks at the topic first.
const LONGEST_GAP: Duration = Duration::from_secs(3);

/// Before anything is read.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Awaits {
    Nothing,
    /// That the topic is seen.
    ALook,
    /// That it is seen by a look which begins now.
    ALookSince(Stopwatch),
}

pub struct SourceReader {
    pub(super) setup: SourceSetup,
    /// What changes is noted for checkpoints.
    lasts: bool,
    reader: Option<SteadyReader>,
    pub(super) partitions: BTreeMap<i32, Partition>,
    pub(super) decoding: Option<Decoding>,
    backfills: Vec<Backfill>,
    /// Consumers that begin at the end of the tick.
    waiting: Vec<Attached>,
    /// Nothing is read while something is repaired.
    pub held: bool,
    /// Nothing is read until the topic has been seen: by now another may have its name.
    awaits_topic: Awaits,
    last_read: Stopwatch,
    /// For the owners of their ids.
    pub(super) accepted: Vec<AcceptedRows>,
    /// Consumers whose history the log did not hold whole, with the event time they are complete from; told once.
    incomplete: BTreeMap<Consumer, i64>,
    /// Of steps that have been replaced, and of backfills that have ended.
    shortfalls: BTreeMap<Consumer, Shortfall>,
    records: Records,
    verdicts: Verdicts,
    trouble: Option<String>,
    /// What was final when the bounds or the watermark were changed: later partitions obey it too.
    floor_us: Option<i64>,
    /// Told once.
    altered: Vec<Altered>,
}

pub(super) type Out = Vec<(Consumer, Result<ReadRows, ExecError>)>;

impl SourceReader {
    pub fn new(setup: SourceSetup, lasts: bool) -> Self {
        SourceReader {
            setup,
            lasts,
            reader: None,
            partitions: BTreeMap::new(),
            decoding: None,
            backfills: Vec::new(),
            waiting: Vec::new(),
            held: false,
            awaits_topic: Awaits::Nothing,
            last_read: Stopwatch::start(),
            accepted: Vec::new(),
            incomplete: BTreeMap::new(),
            shortfalls: BTreeMap::new(),
            records: Records::default(),
            verdicts: Verdicts::default(),
            trouble: None,
            floor_us: None,
            altered: Vec::new(),
        }
    }

    pub fn bounds(&self) -> &Bounds {
        &self.setup.bounds
    }

    /// Partitions with where to begin, while the source stands at this watermark.
    pub fn add_partitions(&mut self, partitions: &[(i32, i64)], source_watermark_us: Option<i64>) {
        let terms = Terms { bounds: self.setup.bounds, floor_us: self.floor_us, watermark_us: None };
        for &(partition, start) in partitions {
            let mut law = PartitionLaw::new(start, terms);
            // Its first row may come before the tick ends.
            law.source_stands_at(source_watermark_us, true);
            self.partitions.entry(partition).or_insert_with(|| Partition::new(start, law, self.lasts));
        }
        self.read_on(partitions);
    }

    fn read_on(&mut self, partitions: &[(i32, i64)]) {
        match &mut self.reader {
            Some(reader) => {
                let added = partitions.iter().map(|&(partition, offset)| PartitionOffset { partition, offset });
                reader.add(&added.collect::<Vec<_>>());
            }
            None => self.open(),
        }
    }

    /// A partition as it was saved; see [`SourceReader::restored`].
    pub fn restore(
        &mut self,
        partition: i32,
        notes: &PartitionNotes,
        ids: &[Saved],
        duplicates: &[Saved],
    ) -> Result<(), ExecError> {
        let mut state = Partition::new(notes.start, notes.law.clone(), self.lasts);
        state.position = notes.position;
        (state.marks, state.counts) = (notes.marks.clone(), notes.counts);
        (state.error, state.complete_from_us) = (notes.error.clone(), notes.complete_from_us);
        if let (Some(deduplicate), false) = (&self.setup.deduplicate, ids.is_empty()) {
            let type_of = |column: &usize| self.setup.schema.field(*column).data_type().clone();
            let types = deduplicate.columns.iter().map(type_of).collect();
            state.ids = Some(WithinPartition::load(deduplicate.interval_us, types, ids)?);
        }
        if !duplicates.is_empty() {
            state.duplicates = OffsetSet::load(duplicates)?;
        }
        if self.lasts {
            state.duplicates.track_saves();
            state.ids.iter_mut().for_each(WithinPartition::track_saves);
        }
        self.partitions.insert(partition, state);
        Ok(())
    }

    /// All partitions have been taken up: reading goes on once somebody wants rows, and with `topic_known` once it is seen that
    /// the topic is the same.
    pub fn restored(&mut self, floor_us: Option<i64>, topic_known: bool) {
        (self.floor_us, self.awaits_topic) = (floor_us, if topic_known { Awaits::ALook } else { Awaits::Nothing });
        self.open();
    }

    /// What must never be accepted any more, since bounds or the watermark were changed.
    pub fn floor_us(&self) -> Option<i64> {
        self.floor_us
    }

    /// A consumer that holds what has been read so far.
    pub fn attach_whole(&mut self, attached: Attached) -> Result<(), ExecError> {
        let mut consumers = self.consumers();
        consumers.push(attached);
        self.decode_for(consumers)?;
        if self.reader.is_none() {
            self.open();
        }
        Ok(())
    }

    /// Begins to read where every partition stands, if anybody wants rows.
    fn open(&mut self) {
        if self.decoding.is_none() || self.partitions.is_empty() || self.awaits_topic != Awaits::Nothing {
            return;
        }
        // One that has lost its place waits to be told where to go on: by now another log may hold such an offset.
        let stands = self.partitions.iter().filter(|(_, p)| p.error.is_none());
        let assigned: Vec<PartitionOffset> =
            stands.map(|(&partition, p)| PartitionOffset { partition, offset: p.position }).collect();
        self.reader = Some(SteadyReader::new(&self.setup.options, &assigned));
        self.last_read = Stopwatch::start();
    }

    /// The topic is not there, or was not when a broker was asked for records. What is read from its name before it has been seen
    /// again would be of another log, at offsets that mean something else there.
    pub fn doubt_topic(&mut self) {
        if self.awaits_topic == Awaits::Nothing {
            tracing::warn!(
                topic = self.setup.options.topic(),
                "the topic is not there: nothing is read until it has been seen"
            );
        }
        self.awaits_topic = Awaits::ALookSince(Stopwatch::start());
        self.reader = None;
    }

    /// It is the log that has been read, by a look at the topic that began so long ago.
    pub fn topic_seen(&mut self, asked: Stopwatch) {
        let seen = match self.awaits_topic {
            Awaits::Nothing => false,
            Awaits::ALook => true,
            Awaits::ALookSince(doubted) => asked > doubted,
        };
        if seen {
            self.awaits_topic = Awaits::Nothing;
            self.open();
        }
    }

    /// Learns where partitions end, and from where on the log has them.
    pub fn set_ends(&mut self, ends: &[(i32, i64)], lows: &[(i32, i64)], now_us: i64) {
        if let Some(reader) = &mut self.reader {
            reader.told_ends(ends);
        }
        for &(partition, end) in ends {
            if let Some(state) = self.partitions.get_mut(&partition) {
                state.end = Some(end);
                state.note_end(now_us);
                state.end_seen_us = now_us;
            }
        }
        for &(partition, low) in lows {
            if let Some(state) = self.partitions.get_mut(&partition).filter(|p| p.error.is_none()) {
                state.law.trim(low);
                state.duplicates.trim(low);
            }
        }
    }

    pub fn attach(&mut self, attached: Attached) -> Result<(), ExecError> {
        match self.setup.across_partitions() {
            Some(_) => self.waiting.push(attached),
            None => self.begin(attached, None)?,
        }
        Ok(())
    }

    /// Consumers that begin now that the tick has ended: they take what is not final from the owners of ids and the rest from the
    /// log, so that what is taken back later has always been given before.
    pub fn begin_waiting(&mut self, final_until_us: Option<i64>) -> Vec<(Consumer, Result<(), ExecError>)> {
        let settled = Some(Settled { until_us: final_until_us });
        let waiting = std::mem::take(&mut self.waiting);
        waiting.into_iter().map(|attached| (attached.consumer(), self.begin(attached, settled))).collect()
    }

    fn begin(&mut self, attached: Attached, settled: Option<Settled>) -> Result<(), ExecError> {
        let lost_us = self.partitions.values().filter_map(|p| p.complete_from_us).max();
        self.tell_incomplete(attached.consumer(), lost_us);
        let begun = self.partitions.values().any(|p| p.position > p.start);
        if begun {
            let backfill = self.backfill(&attached, settled)?;
            self.backfills.push(backfill);
        }
        self.attach_whole(attached)
    }

    fn tell_incomplete(&mut self, consumer: Consumer, from_us: Option<i64>) {
        if let Some(from_us) = from_us {
            let known = self.incomplete.entry(consumer).or_insert(from_us);
            *known = from_us.max(*known);
        }
    }

    /// What ALTER SOURCE says; `floor_us` is what is final by now.
    pub fn alter(&mut self, change: SourceChange, floor_us: Option<i64>) {
        self.floor_us = self.floor_us.max(floor_us);
        if let SourceChange::Bounds(bounds) = change {
            self.setup.bounds = bounds;
        }
        match change {
            SourceChange::Bounds(_) | SourceChange::Watermark { .. } => {
                for (&partition, state) in &mut self.partitions {
                    let (offset, before_us) = (state.position, state.law.watermark_us());
                    match change {
                        SourceChange::Bounds(bounds) => state.law.alter(offset, bounds, floor_us),
                        SourceChange::Watermark { to_us } => {
                            state.law.take_back(offset, to_us, floor_us);
                        }
                        SourceChange::Restart(_) => {}
                    }
                    self.altered.push(Altered { partition, offset, before_us, terms: state.law.terms() });
                }
            }
            SourceChange::Restart(partitions) => {
                for (partition, offset) in partitions {
                    self.restart(partition, offset, floor_us);
                }
            }
        }
    }

    fn restart(&mut self, partition: i32, offset: i64, floor_us: Option<i64>) {
        let Some(state) = self.partitions.get_mut(&partition) else { return };
        state.complete_from_us = complete_behind(&self.setup, state.law.watermark_us()).max(state.complete_from_us);
        state.law.restart(offset, floor_us);
        (state.start, state.position, state.end) = (offset, offset, None);
        (state.at_end_since_us, state.idle_us, state.error) = (None, None, None);
        state.marks = Marks::default();
        state.duplicates = OffsetSet::default();
        if self.lasts {
            state.duplicates.track_saves();
        }
        if let Some(reader) = &mut self.reader {
            reader.add(&[PartitionOffset { partition, offset }]);
        }
    }

    /// The log no longer holds where a partition stands. Nor does it then hold what came before; or it is another log of the
    /// same name, whose records the main reader will read once it is told where to go on.
    fn lose(&mut self, partition: i32, error: &ConnectorError) {
        let Some(state) = self.partitions.get_mut(&partition) else { return };
        state.error = Some(error.to_string());
        let lost_us = complete_behind(&self.setup, state.law.watermark_us());
        let consumers: Vec<Consumer> =
            self.backfills.iter_mut().filter_map(|b| b.give_up(partition).then(|| b.consumer())).collect();
        for consumer in consumers {
            self.tell_incomplete(consumer, lost_us);
        }
    }

    /// The topic's name belongs to another: no partition has its place.
    pub fn lose_topic(&mut self) {
        let stand: Vec<(i32, i64, i64)> = self
            .partitions
            .iter()
            .filter(|(_, p)| p.error.is_none())
            .map(|(&n, p)| (n, p.position, p.end.map_or(0, |end| p.position - end)))
            .collect();
        for (partition, offset, unseen) in stand {
            let mut reason = "the topic was deleted, and another made under its name".to_string();
            if unseen > 0 {
                // They came after the last look that found the old one.
                reason += &format!("; the last {unseen} records read may be of the new one already");
            }
            let error = ConnectorError::OffsetLost { partition, offset, reason };
            self.lose(partition, &error);
            self.trouble = Some(error.to_string());
        }
        // By another connection: what answers now may be another cluster, too.
        (self.awaits_topic, self.reader) = (Awaits::Nothing, None);
        self.open();
    }

    pub fn detach(&mut self, consumer: Consumer) {
        self.waiting.retain(|a| a.consumer() != consumer);
        self.backfills.retain(|b| b.consumer() != consumer);
        let consumers = self.consumers().into_iter().filter(|a| a.consumer() != consumer).collect();
        if let Err(error) = self.decode_for(consumers) {
            // The others are fed as before, and this one for nobody.
            tracing::error!(source = self.setup.source, %error, "broken invariant: what was decoded cannot be decoded");
        }
        self.shortfalls.remove(&consumer);
    }

    pub(super) fn consumers(&self) -> Vec<Attached> {
        self.decoding.iter().flat_map(|d| d.consumers.iter().map(|(attached, _)| attached.clone())).collect()
    }

    fn decode_for(&mut self, consumers: Vec<Attached>) -> Result<(), ExecError> {
        for (consumer, shortfall) in self.decoding.iter().flat_map(Decoding::shortfalls) {
            self.shortfalls.entry(consumer).or_default().add(shortfall);
        }
        if consumers.is_empty() {
            // Nothing is fetched ahead for nobody.
            (self.decoding, self.reader) = (None, None);
            return Ok(());
        }
        self.decoding = Some(Decoding::new(&self.setup, consumers)?);
        Ok(())
    }

    fn backfill(&mut self, attached: &Attached, settled: Option<Settled>) -> Result<Backfill, ExecError> {
        let mut partitions = BTreeMap::new();
        let mut lost_us = None;
        for (&partition, state) in &self.partitions {
            if state.error.is_some() {
                lost_us = lost_us.max(complete_behind(&self.setup, state.law.watermark_us()));
            } else if state.position > state.start {
                let law = PartitionLaw::replaying(state.law.facts().clone());
                let (position, until) = (state.start, state.position);
                let duplicates = state.duplicates.clone();
                let from = Some(position);
                partitions.insert(partition, Replay { start: position, position, until, law, duplicates, from });
            }
        }
        self.tell_incomplete(attached.consumer(), lost_us);
        Backfill::new(&self.setup, attached, partitions, settled)
    }

    /// Consumers whose history is not being read.
    pub fn has_whole_consumers(&self) -> bool {
        self.decoding.as_ref().is_some_and(|d| d.consumers.len() > self.backfills.len())
    }

    pub fn reads_history(&self) -> bool {
        !self.backfills.is_empty()
    }

    /// Reads up to about `max_bytes` for each consumer whose history is not read yet. Returns the bytes that came.
    pub fn read_history(&mut self, max_bytes: usize, out: &mut Out) -> usize {
        let mut bytes = 0;
        if self.awaits_topic != Awaits::Nothing {
            return bytes;
        }
        let partitions = &self.partitions;
        let mark = |partition: i32, offset: i64| {
            let state = partitions.get(&partition)?;
            let now = Mark { offset: state.position, watermark_us: state.law.watermark_us() };
            Some(state.marks.at_or_after(offset).unwrap_or(now))
        };
        let mut doubt = false;
        for backfill in &mut self.backfills {
            let (read, error) = backfill.read(&self.setup, &mark, max_bytes, &mut self.records, out);
            bytes += read;
            if let Some(error) = error {
                doubt |= matches!(error, ConnectorError::TopicMissing { .. });
                self.trouble = Some(error.to_string());
            }
            if let Some(from_us) = backfill.complete_from_us() {
                let known = self.incomplete.entry(backfill.consumer()).or_insert(from_us);
                *known = from_us.max(*known);
            }
        }
        if doubt {
            self.doubt_topic();
        }
        for backfill in self.backfills.extract_if(.., |b| b.done()) {
            self.shortfalls.entry(backfill.consumer()).or_default().add(backfill.shortfall());
        }
        bytes
    }

    /// Reads once. Returns the bytes that came.
    pub fn read(&mut self, now_us: i64, out: &mut Out) -> usize {
        if self.held {
            return 0;
        }
        let gap = std::mem::replace(&mut self.last_read, Stopwatch::start()).elapsed();
        if gap > LONGEST_GAP && self.awaits_topic == Awaits::Nothing {
            // The process was stopped, or reading rested: meanwhile the topic may have been made anew.
            self.awaits_topic = Awaits::ALookSince(Stopwatch::start());
        }
        if self.awaits_topic != Awaits::Nothing {
            return 0;
        }
        let (Some(reader), Some(decoding)) = (&mut self.reader, &mut self.decoding) else { return 0 };
        self.records.clear();
        let polled = reader.poll(&mut self.records, POLL_BYTES);
        let trouble = match (&polled, reader.health()) {
            (Err(error), _) => Some(error.to_string()),
            (Ok(()), Health::Retrying { message }) => Some(message.clone()),
            (Ok(()), Health::Running) => None,
        };
        let bytes = self.records.bytes.len();
        if !self.records.is_empty() {
            let accepted =
                judge(&self.setup, decoding, &self.records, &mut self.partitions, now_us, &mut self.verdicts);
            match take_in(&self.setup, accepted, &mut self.partitions, &mut self.verdicts, self.lasts) {
                Ok(TakenIn { counts, open }) => {
                    decoding.feed(counts, out);
                    self.accepted.extend(open);
                }
                Err(error) => decoding.fail(&error, out),
            }
        }
        for (&partition, state) in &mut self.partitions {
            if let Some(position) = reader.position(partition) {
                state.position = state.position.max(position);
            }
            state.note_end(now_us);
        }
        match &polled {
            Err(error @ ConnectorError::OffsetLost { partition, .. }) => self.lose(*partition, error),
            Err(ConnectorError::TopicMissing { .. }) => self.doubt_topic(),
            Err(_) | Ok(()) => {}
        }
        if trouble.is_some() || self.partitions.values().all(|p| p.error.is_none()) {
            self.trouble = trouble;
        }
        bytes.max(self.records.len())
    }

    /// Where this worker's partitions stand; decides which are idle.
    pub fn progress(&mut self, source: Oid, now_us: i64) -> SourceProgress {
        let idle_timeout_us = self.setup.bounds.idle_timeout_us;
        let mut progress = SourceProgress { source, partitions: Vec::new(), offsets: Vec::new() };
        for (&partition, state) in &mut self.partitions {
            state.note_end(now_us);
            // As far as the topic has told: while nobody answers, nothing is known of its end.
            let stood_us = state.at_end_since_us.map(|since| state.end_seen_us.saturating_sub(since));
            state.idle_us = stood_us.filter(|us| *us >= idle_timeout_us);
            progress.partitions.push(PartitionProgress {
                partition,
                watermark_us: state.law.watermark_us(),
                idle_us: state.idle_us,
            });
            progress.offsets.push((partition, state.position));
        }
        progress
    }

    pub fn source_stands_at(&mut self, watermark_us: Option<i64>) {
        for state in self.partitions.values_mut() {
            state.law.source_stands_at(watermark_us, state.idle_us.is_some());
        }
    }

    pub fn report(&mut self, source: Oid, verdicts: &mut Verdicts) -> super::orders::SourceReport {
        verdicts.append(&mut self.verdicts);
        let partitions = self
            .partitions
            .iter()
            .map(|(&partition, p)| PartitionStats {
                partition,
                position: p.position,
                end: p.end,
                counts: p.counts,
                watermark_us: p.law.watermark_us(),
                idle: p.idle_us.is_some(),
                error: p.error.clone(),
            })
            .collect();
        super::orders::SourceReport {
            source,
            partitions,
            trouble: self
                .trouble
                .clone()
                .or_else(|| self.backfills.iter().find_map(Backfill::trouble).map(str::to_string)),
            unseen_columns: self.decoding.as_ref().map(|d| d.decoder.unseen_columns()).unwrap_or_default(),
            ids: self.ids(),
            backfills: self.backfills.iter().map(|b| (b.consumer(), b.progress().collect())).collect(),
            incomplete: std::mem::take(&mut self.incomplete).into_iter().collect(),
            altered: std::mem::take(&mut self.altered),
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

#[cfg(test)]
#[path = "reader_tests.rs"]
mod tests;
