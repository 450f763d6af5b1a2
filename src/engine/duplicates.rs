//! Duplicates of a source: rows that the law accepts go to the owners of their ids, and from there on to what reads the source.
//!
//! A tick of such a source has two rounds. In the first, readers send accepted rows to the owners of ids, who decide by
//! [`AcrossPartitions`]. In the second, what that changes goes through the feeds to the owners of keys like any rows, and the verdicts
//! go back to the readers of the partitions, who count them and note the offsets, so that a second reader comes to the same.

use std::collections::BTreeMap;

use arrow::array::{BooleanArray, BooleanBufferBuilder, UInt32Array};
use arrow::compute::{filter_record_batch, take_record_batch};

use super::decoding::Consumer;
use super::judge::Accepted;
use super::owners::{buckets_of, by_owner};
use super::partition::Partition;
use super::reader::{SourceReader, SourceSetup};
use super::stats::Ids;
use super::verdicts::{DuplicateRow, Verdicts};
use super::worker::Worker;
use crate::catalog::Oid;
use crate::exec::dedup::{AcceptedRows, AcrossPartitions, DuplicateOf, IdKeys, Place, Resolved, WithinPartition};
use crate::exec::exchange::Body;
use crate::exec::feed::micros;
use crate::exec::{Delta, ExecError};

/// The accepted rows of a read.
pub(super) struct TakenIn {
    /// Those that count.
    pub counts: arrow::array::RecordBatch,
    /// Those of which the owners of their ids must say that.
    pub open: Option<AcceptedRows>,
}

/// Leaves duplicates out, or to the owners of ids. A row without an id counts.
pub(super) fn take_in(
    setup: &SourceSetup,
    accepted: Accepted,
    partitions: &mut BTreeMap<i32, Partition>,
    verdicts: &mut Verdicts,
    lasts: bool,
) -> Result<TakenIn, ExecError> {
    let Accepted { rows, present, places } = accepted;
    let Some(deduplicate) = setup.deduplicate.as_ref().filter(|_| rows.num_rows() > 0) else {
        return Ok(TakenIn { counts: rows, open: None });
    };
    let at = |column: &usize| present.binary_search(column).expect("every column of the id is built");
    let keys = IdKeys::of(&rows, &deduplicate.columns.iter().map(at).collect::<Vec<_>>())?;
    let mut counts = BooleanBufferBuilder::new(rows.num_rows());
    if !deduplicate.same_partition {
        (0..rows.num_rows()).for_each(|row| counts.append(keys.is_null(row)));
        let without = BooleanArray::new(counts.finish(), None);
        let with = arrow::compute::not(&without)?;
        let of_id = || places.iter().enumerate().filter(|(row, _)| with.value(*row)).map(|(_, place)| place);
        let open = AcceptedRows {
            rows: filter_record_batch(&rows, &with)?,
            partitions: of_id().map(|place| place.partition).collect(),
            offsets: of_id().map(|place| place.offset).collect(),
        };
        return Ok(TakenIn { counts: filter_record_batch(&rows, &without)?, open: Some(open) });
    }
    let times = micros(rows.column(at(&setup.time_column.unwrap_or_default())))?;
    let mut key = Vec::new();
    for (row, &place) in places.iter().enumerate() {
        let partition = partitions.get_mut(&place.partition).filter(|_| !keys.is_null(row));
        let Some(partition) = partition else {
            counts.append(true);
            continue;
        };
        keys.write(row, &mut key);
        let types = || keys.columns().iter().map(|column| column.data_type().clone()).collect();
        let ids = partition.ids.get_or_insert_with(|| {
            let mut ids = WithinPartition::new(deduplicate.interval_us, types());
            if lasts {
                ids.track_saves();
            }
            ids
        });
        let repeats = ids.judge(&key, times.value(row), place.offset)?;
        counts.append(repeats.is_none());
        if let Some(kept) = repeats {
            partition.note(place.offset, true);
            let kept = Place { offset: kept, ..place };
            let of = DuplicateOf { id: keys.describe(row)?, event_time_us: times.value(row), kept };
            verdicts.duplicates.push(DuplicateRow { source: setup.source, place, of });
        }
    }
    let counts = filter_record_batch(&rows, &BooleanArray::new(counts.finish(), None))?;
    Ok(TakenIn { counts, open: None })
}

impl Partition {
    /// An accepted row has become a duplicate, or is none any more.
    fn note(&mut self, offset: i64, duplicate: bool) {
        if duplicate && self.duplicates.insert(offset) {
            self.counts.duplicate += 1;
            self.counts.accepted -= 1;
        } else if !duplicate && self.duplicates.remove(offset) {
            self.counts.duplicate -= 1;
            self.counts.accepted += 1;
        }
    }
}

impl SourceReader {
    fn note_verdicts(&mut self, changed: &[(Place, bool)]) {
        for &(place, duplicate) in changed {
            if let Some(partition) = self.partitions.get_mut(&place.partition) {
                partition.note(place.offset, duplicate);
            }
        }
    }

    /// No row of an earlier event time is accepted any more.
    fn settle_ids(&mut self, until_us: i64) {
        self.partitions.values_mut().flat_map(|p| &mut p.ids).for_each(|ids| ids.settle(until_us));
    }

    /// What is kept here for DEDUPLICATE BY: where ids share a partition all of it, otherwise the offsets of duplicates.
    pub(super) fn ids(&self) -> Ids {
        let mut sum = Ids::default();
        for partition in self.partitions.values() {
            let (ids, bytes) = partition.ids.as_ref().map_or((0, 0), |ids| (ids.len(), ids.bytes()));
            sum.ids += ids as u64;
            sum.bytes += (bytes + partition.duplicates.bytes()) as u64;
        }
        sum
    }
}

impl Worker {
    pub(super) fn add_deduplication(&mut self, setup: &SourceSetup) {
        if let (Some(deduplicate), Some(time_column)) = (setup.across_partitions(), setup.time_column) {
            let mut ids = AcrossPartitions::new(deduplicate, time_column);
            if self.lasts {
                ids.track_saves(buckets_of(self.index, self.workers));
            }
            self.deduplications.insert(setup.source, ids);
        }
    }

    /// The first round: sends what was read to the owners of its ids. Returns this worker's own share.
    pub(super) fn send_accepted(&mut self) -> Vec<(Oid, AcceptedRows)> {
        let mut own = Vec::new();
        let accepted: Vec<_> = self
            .sources
            .iter_mut()
            .flat_map(|(&source, reader)| {
                let columns = reader.setup.deduplicate.iter().flat_map(|d| d.columns.clone()).collect::<Vec<_>>();
                std::mem::take(&mut reader.accepted).into_iter().map(move |rows| (source, columns.clone(), rows))
            })
            .collect();
        for (source, columns, rows) in accepted {
            let keys: Vec<_> = columns.iter().map(|&column| rows.rows.column(column).clone()).collect();
            for (owner, selected) in by_owner(&keys, rows.rows.num_rows(), self.workers) {
                let Some(selected) = selected else { continue };
                let rows = match select(&rows, &selected) {
                    Ok(rows) => rows,
                    Err(error) => {
                        self.fail_source(source, &error);
                        continue;
                    }
                };
                if owner == self.index {
                    own.push((source, rows));
                } else {
                    let buckets = buckets_of(owner, self.workers);
                    self.send_body(owner, Body::Accepted { source, buckets, rows });
                }
            }
        }
        own
    }

    /// Between the rounds: decides on the rows of the ids that this worker owns, and sends on what that changes.
    pub(super) fn deduplicate(&mut self, accepted: Vec<(Oid, AcceptedRows)>) {
        let mut by_source: BTreeMap<Oid, Vec<AcceptedRows>> = BTreeMap::new();
        for (source, rows) in accepted {
            by_source.entry(source).or_default().push(rows);
        }
        for (source, rows) in by_source {
            let (Some(reader), Some(ids)) = (self.sources.get_mut(&source), self.deduplications.get_mut(&source))
            else {
                continue;
            };
            let mut used: Vec<usize> = reader.consumers().iter().flat_map(|attached| attached.columns()).collect();
            used.sort_unstable();
            used.dedup();
            match ids.add(&rows).and_then(|()| ids.resolve(&used)) {
                Ok(Resolved { deltas, verdicts }) => {
                    let mut out = Vec::new();
                    if let Some(decoding) = &mut reader.decoding {
                        deltas.iter().for_each(|delta| decoding.feed_delta(delta, None, &mut out));
                    }
                    self.take_in(out);
                    self.send_verdicts(source, verdicts);
                }
                Err(error) => self.fail_source(source, &error),
            }
        }
    }

    fn send_verdicts(&mut self, source: Oid, verdicts: Vec<crate::exec::dedup::Verdict>) {
        let mut by_reader: BTreeMap<usize, Vec<(Place, bool)>> = BTreeMap::new();
        for verdict in verdicts {
            let reader = verdict.place.partition.unsigned_abs() as usize % self.workers;
            by_reader.entry(reader).or_default().push((verdict.place, verdict.duplicate.is_some()));
            match verdict.duplicate {
                Some(of) => self.duplicates.push(DuplicateRow { source, place: verdict.place, of }),
                None => self.kept_after_all.push((source, verdict.place)),
            }
        }
        for (reader, changed) in by_reader {
            if reader == self.index {
                self.note_verdicts(source, &changed);
            } else {
                self.send_body(reader, Body::Verdicts { source, changed });
            }
        }
    }

    pub(super) fn note_verdicts(&mut self, source: Oid, changed: &[(Place, bool)]) {
        if let Some(reader) = self.sources.get_mut(&source) {
            reader.note_verdicts(changed);
        }
    }

    /// Lets ids go whose time has passed.
    pub(super) fn settle_ids(&mut self) {
        let mut failed = Vec::new();
        for (&source, reader) in &mut self.sources {
            let Some(until_us) = self.times.get(&source).and_then(|time| time.final_until_us) else { continue };
            reader.settle_ids(until_us);
            let settled = self.deduplications.get_mut(&source).map(|ids| ids.settle(until_us));
            failed.extend(settled.and_then(Result::err).map(|error| (source, error)));
        }
        failed.iter().for_each(|(source, error)| self.fail_source(*source, error));
    }

    /// Consumers that have waited for the end of the tick begin.
    pub(super) fn begin_waiting(&mut self) {
        let mut out = Vec::new();
        let mut failed = Vec::new();
        for (&source, ids) in &self.deduplications {
            let Some(reader) = self.sources.get_mut(&source) else { continue };
            let begun = reader.begin_waiting(self.times.get(&source).and_then(|time| time.final_until_us));
            let mut consumers = Vec::new();
            for (consumer, begun) in begun {
                match begun {
                    Ok(()) => consumers.push(consumer),
                    Err(error) => out.push((consumer, Err(error))),
                }
            }
            let Some(decoding) = reader.decoding.as_mut().filter(|_| !consumers.is_empty()) else { continue };
            match ids.kept_pending() {
                Ok(batches) => {
                    for delta in batches.into_iter().map(Delta::inserts) {
                        consumers.iter().for_each(|&consumer| decoding.feed_delta(&delta, Some(consumer), &mut out));
                    }
                }
                Err(error) => failed.push((source, error)),
            }
        }
        self.take_in(out);
        failed.iter().for_each(|(source, error)| self.fail_source(*source, error));
    }

    /// What this worker remembers of the ids of its buckets.
    pub(super) fn owned_ids(&self, source: Oid) -> Ids {
        let of = |ids: &AcrossPartitions| Ids { ids: ids.ids() as u64, bytes: ids.bytes() as u64 };
        self.deduplications.get(&source).map(of).unwrap_or_default()
    }

    fn fail_source(&mut self, source: Oid, error: &ExecError) {
        let consumers: Vec<Consumer> = self
            .sources
            .get(&source)
            .map(|reader| reader.consumers().iter().map(|attached| attached.consumer()).collect())
            .unwrap_or_default();
        consumers.into_iter().for_each(|consumer| self.fail(consumer, error));
    }
}

fn select(rows: &AcceptedRows, selected: &UInt32Array) -> Result<AcceptedRows, ExecError> {
    let pick = |row: &u32| *row as usize;
    Ok(AcceptedRows {
        rows: take_record_batch(&rows.rows, selected)?,
        partitions: selected.values().iter().map(pick).map(|row| rows.partitions[row]).collect(),
        offsets: selected.values().iter().map(pick).map(|row| rows.offsets[row]).collect(),
    })
}
