use std::collections::BTreeMap;

use arrow::array::{Array, BooleanArray, BooleanBufferBuilder, RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, filter_record_batch, interleave_record_batch, take_record_batch};
use arrow::datatypes::SchemaRef;

use super::id_key::IdKeys;
use super::id_table::{IdRef, IdTable, PARTS};
use super::unsaved_ids::UnsavedIds;
use super::within_partition::parts_due;
use super::{AcceptedRows, Deduplicate, DuplicateOf, Place, Verdict};
use crate::exec::durable::Buckets;
use crate::exec::feed::micros;
use crate::exec::{Delta, ExecError};

/// The rule in the order (event time, partition, offset), for the ids of one worker's buckets.
///
/// - Input: accepted rows of a tick, in any order. Output: what the kept rows gain and lose, and the verdicts that changed.
/// - State: rows that are not below `final_until` are *pending*, whole, kept or not: one that sorts before them may still come. Of
///   what is below it an id, its last kept row's time and place remain, until the interval has passed, and at most an eighth of it
///   longer.
/// - Cost: a look-up a row when it comes and steps over the id's pending rows, mostly one; a few steps more when it is settled.
/// - A row that takes the place of an equal one, as far as anybody looks, changes nothing downstream.
pub struct AcrossPartitions {
    pub(super) columns: Vec<usize>,
    pub(super) time_column: usize,
    pub(super) interval_us: i64,
    pub(super) ids: IdTable<Settled>,
    pub(super) pending: Vec<Pending>,
    free: Vec<u32>,
    /// By age.
    pub(super) batches: BTreeMap<u32, Batch>,
    pub(super) next_batch: u32,
    /// Ids of which rows came since [`AcrossPartitions::resolve`], some twice.
    pub(super) touched: Vec<IdRef>,
    pub(super) final_until_us: Option<i64>,
    swept: Option<i64>,
    next_part: u8,
    /// Of the rows, once some have come.
    pub(super) schema: Option<SchemaRef>,
    /// Of the worker; what follows is of what is saved.
    pub(super) buckets: Option<Buckets>,
    pub(super) unsaved: Option<UnsavedIds>,
    pub(super) noted_until_us: Option<i64>,
}

/// The last kept row of an id below `final_until`, and the first of its pending ones.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settled {
    pub time_us: i64,
    pub offset: i64,
    pub partition: i32,
    pub first: u32,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Pending {
    pub time_us: i64,
    pub offset: i64,
    pub partition: i32,
    pub batch: u32,
    pub row: u32,
    /// The next of the same id, in order.
    pub next: u32,
    pub fate: Fate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    New,
    Kept,
    Duplicate,
}

pub(super) struct Batch {
    pub rows: RecordBatch,
    pub ids: Vec<IdRef>,
    pub latest_us: i64,
}

/// What a tick's rows have changed.
#[derive(Debug, Default)]
pub struct Resolved {
    /// Of the kept rows; every column of the source.
    pub deltas: Vec<Delta>,
    pub verdicts: Vec<Verdict>,
}

pub(super) const NONE: u32 = u32::MAX;
/// No row is kept yet: so long ago that nothing repeats it.
pub(super) const NEVER: i64 = i64::MIN;
/// Batches are put together up to about so many rows.
pub(super) const BATCH_ROWS: usize = 16_384;

impl Fate {
    /// By the number that is saved.
    pub fn of(number: u8) -> Option<Self> {
        [Fate::New, Fate::Kept, Fate::Duplicate].into_iter().find(|&fate| fate as u8 == number)
    }
}

impl Pending {
    pub fn order(&self) -> (i64, i32, i64) {
        (self.time_us, self.partition, self.offset)
    }

    fn place(&self) -> Place {
        Place { partition: self.partition, offset: self.offset }
    }
}

impl AcrossPartitions {
    pub fn new(deduplicate: &Deduplicate, time_column: usize) -> Self {
        AcrossPartitions {
            columns: deduplicate.columns.clone(),
            time_column,
            interval_us: deduplicate.interval_us,
            ids: IdTable::new(),
            pending: Vec::new(),
            free: Vec::new(),
            batches: BTreeMap::new(),
            next_batch: 0,
            touched: Vec::new(),
            final_until_us: None,
            swept: None,
            next_part: 0,
            schema: None,
            buckets: None,
            unsaved: None,
            noted_until_us: None,
        }
    }

    /// Takes in rows of this tick, none of them without an id.
    pub fn add(&mut self, rows: &[AcceptedRows]) -> Result<(), ExecError> {
        let rows: Vec<&AcceptedRows> = rows.iter().filter(|rows| rows.rows.num_rows() > 0).collect();
        let Some(first) = rows.first() else { return Ok(()) };
        let batch = concat_batches(&first.rows.schema(), rows.iter().map(|rows| &rows.rows))?;
        let partitions: Vec<i32> = rows.iter().flat_map(|rows| rows.partitions.iter().copied()).collect();
        let offsets: Vec<i64> = rows.iter().flat_map(|rows| rows.offsets.iter().copied()).collect();
        let times = micros(batch.column(self.time_column))?;
        let keys = IdKeys::of(&batch, &self.columns)?;
        self.schema.get_or_insert_with(|| batch.schema());
        let number = self.next_batch;
        self.next_batch = self.next_batch.wrapping_add(1);
        let (mut key, mut ids) = (Vec::new(), Vec::with_capacity(batch.num_rows()));
        for row in 0..batch.num_rows() {
            keys.write(row, &mut key);
            let known = self.ids.len();
            let id = self.ids.find_or_insert(&key, Settled { time_us: NEVER, offset: 0, partition: 0, first: NONE })?;
            if let Some(unsaved) = &mut self.unsaved {
                unsaved.note(id, self.ids.len() > known);
            }
            ids.push(id);
            let pending = Pending {
                time_us: times.value(row),
                offset: offsets[row],
                partition: partitions[row],
                batch: number,
                row: row as u32,
                next: NONE,
                fate: Fate::New,
            };
            self.insert(id, pending);
        }
        self.touched.extend_from_slice(&ids);
        let latest_us = times.values().iter().copied().max().unwrap_or(NEVER);
        self.batches.insert(number, Batch { rows: batch, ids, latest_us });
        Ok(())
    }

    pub(super) fn insert(&mut self, id: IdRef, mut new: Pending) {
        let first = self.ids.get(id).map_or(NONE, |settled| settled.first);
        // A record that is read once more, as after a reset of the source, repeats itself: it goes behind.
        let (mut before, mut at) = (NONE, first);
        while at != NONE && self.pending[at as usize].order() <= new.order() {
            (before, at) = (at, self.pending[at as usize].next);
        }
        new.next = at;
        let place = match self.free.pop() {
            Some(place) => {
                self.pending[place as usize] = new;
                place
            }
            None => {
                self.pending.push(new);
                (self.pending.len() - 1) as u32
            }
        };
        match before {
            NONE => {
                if let Some(settled) = self.ids.get_mut(id) {
                    settled.first = place;
                }
            }
            before => self.pending[before as usize].next = place,
        }
    }

    /// Decides on the rows that came. `used` are the columns that somebody downstream looks at.
    pub fn resolve(&mut self, used: &[usize]) -> Result<Resolved, ExecError> {
        let mut touched = std::mem::take(&mut self.touched);
        touched.sort_unstable();
        touched.dedup();
        let mut resolved = Resolved::default();
        let (mut gained, mut lost): (Vec<u32>, Vec<u32>) = (Vec::new(), Vec::new());
        let (mut all_gained, mut all_lost) = (Vec::new(), Vec::new());
        for id in touched {
            gained.clear();
            lost.clear();
            self.decide(id, &mut gained, &mut lost, &mut resolved.verdicts)?;
            for &old in &lost {
                // One for the other, if nobody sees the difference.
                match gained.iter().position(|&new| self.look_alike(old, new, used)) {
                    Some(at) => drop(gained.swap_remove(at)),
                    None => all_lost.push(self.pending[old as usize]),
                }
            }
            all_gained.extend(gained.iter().map(|&new| self.pending[new as usize]));
        }
        all_gained.sort_unstable_by_key(|row| (row.batch, row.row));
        resolved.deltas = self.deltas(&all_gained, &all_lost)?;
        Ok(resolved)
    }

    /// Goes over an id's pending rows in order and says of each whether it is kept.
    fn decide(
        &mut self,
        id: IdRef,
        gained: &mut Vec<u32>,
        lost: &mut Vec<u32>,
        verdicts: &mut Vec<Verdict>,
    ) -> Result<(), ExecError> {
        let Some(settled) = self.ids.get(id) else { return Ok(()) };
        let mut last = (settled.time_us, Place { partition: settled.partition, offset: settled.offset });
        let mut at = settled.first;
        while at != NONE {
            let row = self.pending[at as usize];
            let fate = match row.time_us.saturating_sub(last.0) < self.interval_us {
                true => Fate::Duplicate,
                false => Fate::Kept,
            };
            match (row.fate, fate) {
                (Fate::New | Fate::Kept, Fate::Duplicate) => {
                    if row.fate == Fate::Kept {
                        lost.push(at);
                    }
                    let id = IdKeys::of(&self.batches[&row.batch].rows.slice(row.row as usize, 1), &self.columns)?;
                    let duplicate = DuplicateOf { id: id.describe(0)?, event_time_us: row.time_us, kept: last.1 };
                    verdicts.push(Verdict { place: row.place(), duplicate: Some(duplicate) });
                }
                (Fate::New, Fate::Kept) => gained.push(at),
                (Fate::Duplicate, Fate::Kept) => {
                    gained.push(at);
                    verdicts.push(Verdict { place: row.place(), duplicate: None });
                }
                _ => {}
            }
            self.pending[at as usize].fate = fate;
            if fate == Fate::Kept {
                last = (row.time_us, row.place());
            }
            at = row.next;
        }
        Ok(())
    }

    fn look_alike(&self, one: u32, other: u32, used: &[usize]) -> bool {
        let (one, other) = (self.pending[one as usize], self.pending[other as usize]);
        let (left, right) = (&self.batches[&one.batch].rows, &self.batches[&other.batch].rows);
        let value = |rows: &RecordBatch, column: usize, row: u32| rows.column(column).slice(row as usize, 1);
        used.iter().all(|&column| *value(left, column, one.row) == *value(right, column, other.row))
    }

    /// `gained` in the order of batches and rows.
    fn deltas(&self, gained: &[Pending], lost: &[Pending]) -> Result<Vec<Delta>, ExecError> {
        let mut deltas = Vec::new();
        for run in gained.chunk_by(|a, b| a.batch == b.batch) {
            let batch = &self.batches[&run[0].batch].rows;
            let rows = match run.len() == batch.num_rows() {
                true => batch.clone(),
                false => take_record_batch(batch, &run.iter().map(|row| row.row).collect::<UInt32Array>())?,
            };
            deltas.push(Delta::inserts(rows));
        }
        if !lost.is_empty() {
            let numbers: BTreeMap<u32, usize> = lost
                .iter()
                .map(|row| row.batch)
                .collect::<std::collections::BTreeSet<_>>()
                .into_iter()
                .zip(0..)
                .collect();
            let batches: Vec<&RecordBatch> = numbers.keys().map(|number| &self.batches[number].rows).collect();
            let places: Vec<(usize, usize)> = lost.iter().map(|row| (numbers[&row.batch], row.row as usize)).collect();
            let rows = interleave_record_batch(&batches, &places)?;
            deltas.push(Delta::weighted(rows, vec![-1; lost.len()]));
        }
        Ok(deltas)
    }

    /// No row of an earlier time than this is accepted any more: what lies below it stays as it is.
    pub fn settle(&mut self, until_us: i64) -> Result<(), ExecError> {
        self.final_until_us = self.final_until_us.max(Some(until_us));
        let done: Vec<u32> = self.batches.iter().filter(|(_, b)| b.latest_us < until_us).map(|(&n, _)| n).collect();
        for number in done {
            let batch = self.batches.remove(&number).expect("just found");
            batch.ids.into_iter().for_each(|id| self.settle_id(id, until_us));
        }
        let interval_us = self.interval_us;
        for part in parts_due(&mut self.swept, &mut self.next_part, until_us, interval_us) {
            let unsaved = &mut self.unsaved;
            self.ids.sweep(part, |id, key, settled| {
                let stays = settled.first != NONE || !settled.has_expired(interval_us, until_us);
                if let Some(unsaved) = unsaved.as_mut().filter(|_| !stays) {
                    unsaved.forget(id, key);
                }
                stays
            });
        }
        self.merge_batches()?;
        if self.free.len() * 4 > self.pending.len() * 3 {
            self.compact_pending();
        }
        Ok(())
    }

    pub(super) fn settle_id(&mut self, id: IdRef, until_us: i64) {
        let interval_us = self.interval_us;
        let Some(settled) = self.ids.get_mut(id) else { return };
        let first = settled.first;
        while settled.first != NONE && self.pending[settled.first as usize].time_us < until_us {
            let row = self.pending[settled.first as usize];
            self.free.push(settled.first);
            let next = row.next;
            if row.fate == Fate::Kept {
                *settled = Settled { time_us: row.time_us, offset: row.offset, partition: row.partition, first: next };
            }
            settled.first = next;
        }
        let goes = settled.first == NONE && settled.has_expired(interval_us, until_us);
        if let Some(unsaved) = self.unsaved.as_mut().filter(|_| settled.first != first) {
            unsaved.note(id, false);
        }
        if goes {
            if let (Some(unsaved), Some(key)) = (&mut self.unsaved, self.ids.key(id)) {
                unsaved.forget(id, key);
            }
            self.ids.remove(id);
        }
    }

    /// Rows of a trickle come a few a tick: batches are put together, each with the one before it while that is not much larger.
    fn merge_batches(&mut self) -> Result<(), ExecError> {
        loop {
            let mut newest = self.batches.iter().rev();
            let (Some((&second, b)), Some((&first, a))) = (newest.next(), newest.next()) else { return Ok(()) };
            let (rows, before) = (b.rows.num_rows(), a.rows.num_rows());
            if before > 2 * rows || rows + before > BATCH_ROWS {
                return Ok(());
            }
            let both = [(first, self.batches.remove(&first)), (second, self.batches.remove(&second))];
            let mut merged =
                Batch { rows: RecordBatch::new_empty(self.schema_of(&both)), ids: vec![], latest_us: NEVER };
            let mut parts = Vec::new();
            for (number, batch) in both {
                let Some(Batch { rows, ids, latest_us }) = batch else { continue };
                let mut still = BooleanBufferBuilder::new(rows.num_rows());
                for (row, &id) in ids.iter().enumerate() {
                    let found = self.find(id, number, row as u32);
                    still.append(found.is_some());
                    if let Some(found) = found {
                        let pending = &mut self.pending[found as usize];
                        (pending.batch, pending.row) = (first, merged.ids.len() as u32);
                        merged.ids.push(id);
                    }
                }
                merged.latest_us = merged.latest_us.max(latest_us);
                parts.push(filter_record_batch(&rows, &BooleanArray::new(still.finish(), None))?);
            }
            merged.rows = concat_batches(&merged.rows.schema(), &parts)?;
            if !merged.ids.is_empty() {
                self.batches.insert(first, merged);
            }
        }
    }

    /// Gives back the room of the many that were pending, as while one partition was read ahead of another.
    fn compact_pending(&mut self) {
        let mut ids: Vec<IdRef> = self.batches.values().flat_map(|batch| batch.ids.iter().copied()).collect();
        ids.sort_unstable();
        ids.dedup();
        let mut pending = Vec::with_capacity(self.pending.len() - self.free.len());
        for id in ids {
            let Some(settled) = self.ids.get_mut(id) else { continue };
            let mut at = std::mem::replace(&mut settled.first, NONE);
            let first = pending.len() as u32;
            while at != NONE {
                let row = self.pending[at as usize];
                at = row.next;
                let next = if at == NONE { NONE } else { pending.len() as u32 + 1 };
                pending.push(Pending { next, ..row });
            }
            if pending.len() as u32 > first {
                settled.first = first;
            }
        }
        debug_assert_eq!(pending.len(), self.pending.len() - self.free.len(), "every pending row is in a batch");
        self.pending = pending;
        self.free = Vec::new();
    }

    fn schema_of(&self, batches: &[(u32, Option<Batch>)]) -> arrow::datatypes::SchemaRef {
        let first = batches.iter().find_map(|(_, batch)| batch.as_ref());
        first.expect("both were found above").rows.schema()
    }

    /// The pending row of an id that stands in this row of this batch.
    fn find(&self, id: IdRef, batch: u32, row: u32) -> Option<u32> {
        let mut at = self.ids.get(id)?.first;
        while at != NONE {
            let pending = &self.pending[at as usize];
            if (pending.batch, pending.row) == (batch, row) {
                return Some(at);
            }
            at = pending.next;
        }
        None
    }

    /// The kept rows that may still be taken back: those not below what is final. Whoever begins to read the kept rows now takes
    /// these from here and the others from the log.
    pub fn kept_pending(&self) -> Result<Vec<RecordBatch>, ExecError> {
        let mut all = Vec::new();
        for (&number, batch) in &self.batches {
            let mut kept = BooleanBufferBuilder::new(batch.rows.num_rows());
            for (row, &id) in batch.ids.iter().enumerate() {
                let found = self.find(id, number, row as u32).map(|at| self.pending[at as usize]);
                kept.append(found.is_some_and(|row| {
                    row.fate == Fate::Kept && self.final_until_us.is_none_or(|until_us| row.time_us >= until_us)
                }));
            }
            let kept = filter_record_batch(&batch.rows, &BooleanArray::new(kept.finish(), None))?;
            if kept.num_rows() > 0 {
                all.push(kept);
            }
        }
        Ok(all)
    }

    /// Ids that are remembered.
    pub fn ids(&self) -> usize {
        self.ids.len()
    }

    pub fn bytes(&self) -> usize {
        let batch = |b: &Batch| b.rows.get_array_memory_size() + b.ids.capacity() * size_of::<IdRef>();
        self.ids.bytes()
            + self.pending.capacity() * size_of::<Pending>()
            + self.free.capacity() * size_of::<u32>()
            + self.batches.values().map(batch).sum::<usize>()
    }
}

impl Settled {
    pub fn has_expired(&self, interval_us: i64, until_us: i64) -> bool {
        self.time_us == NEVER || self.time_us.saturating_add(interval_us) <= until_us
    }
}

const _: () = assert!(PARTS == 256, "a part is named by a byte");

#[cfg(test)]
pub(super) mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use arrow::array::{AsArray, Int64Array, StringArray, TimestampMicrosecondArray};
    use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimeUnit};
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    use std::sync::Arc;

    use super::*;

    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
    pub struct Row {
        pub time: i64,
        pub partition: i32,
        pub offset: i64,
        pub id: i64,
        pub value: i64,
    }

    /// SEMANTICS 2.8, as simple as it can be written: the kept rows.
    fn naive(rows: &[Row], interval: i64) -> Vec<Row> {
        let mut sorted = rows.to_vec();
        sorted.sort();
        let mut kept: Vec<Row> = Vec::new();
        for row in sorted {
            if !kept.iter().any(|k| k.id == row.id && row.time - k.time < interval) {
                kept.push(row);
            }
        }
        kept
    }

    pub fn schema() -> SchemaRef {
        Arc::new(Schema::new(vec![
            Field::new("id", DataType::Utf8, true),
            Field::new("value", DataType::Int64, true),
            Field::new("ts", DataType::Timestamp(TimeUnit::Microsecond, None), true),
        ]))
    }

    pub fn accepted(rows: &[Row]) -> AcceptedRows {
        let batch = RecordBatch::try_new(
            schema(),
            vec![
                Arc::new(rows.iter().map(|r| Some(format!("id-{}", r.id))).collect::<StringArray>()),
                Arc::new(rows.iter().map(|r| r.value).collect::<Int64Array>()),
                Arc::new(rows.iter().map(|r| Some(r.time)).collect::<TimestampMicrosecondArray>()),
            ],
        );
        AcceptedRows {
            rows: batch.unwrap(),
            partitions: rows.iter().map(|r| r.partition).collect(),
            offsets: rows.iter().map(|r| r.offset).collect(),
        }
    }

    pub fn new(interval_us: i64) -> AcrossPartitions {
        AcrossPartitions::new(&Deduplicate { columns: vec![0], interval_us, same_partition: false }, 2)
    }

    /// Ticks of rows `id time partition`, values being the offsets: the changes and verdicts of each.
    fn check(interval_us: i64, used: &[usize], ticks: &[&[(i64, i64, i32)]]) -> String {
        let mut ids = new(interval_us);
        let (mut offset, mut out) = (0, Vec::new());
        for tick in ticks {
            let rows: Vec<Row> = tick
                .iter()
                .map(|&(id, time, partition)| {
                    offset += 1;
                    Row { time, partition, offset, id, value: offset }
                })
                .collect();
            ids.add(&[accepted(&rows)]).unwrap();
            let resolved = ids.resolve(used).unwrap();
            let mut lines: Vec<String> = Vec::new();
            for delta in resolved.deltas {
                let (id, value) = (delta.column(0).as_string::<i32>(), delta.column(1).as_primitive::<Int64Type>());
                lines.extend(
                    (0..delta.num_rows())
                        .map(|row| format!("{:+} {} #{}", delta.weight(row), id.value(row), value.value(row))),
                );
            }
            lines.extend(resolved.verdicts.iter().map(|verdict| match &verdict.duplicate {
                Some(of) => format!("#{} repeats #{}", verdict.place.offset, of.kept.offset),
                None => format!("#{} is kept after all", verdict.place.offset),
            }));
            out.push(lines.join(", "));
        }
        out.join("\n")
    }

    #[test]
    fn a_copy_that_sorts_first_takes_the_place_and_the_chain_behind_it_follows() {
        // Kept at 50 and 110; a row at 20 makes duplicates of those and gives 100 its place back.
        insta::assert_snapshot!(check(60, &[0, 1, 2], &[
            &[(1, 50, 0), (1, 100, 0), (1, 110, 0), (2, 50, 1)],
            &[(1, 20, 1)],
            &[(1, 50, 0)],
        ]), @r"
        +1 id-1 #1, +1 id-1 #3, +1 id-2 #4, #2 repeats #1
        +1 id-1 #2, +1 id-1 #5, -1 id-1 #1, -1 id-1 #3, #1 repeats #5, #2 is kept after all, #3 repeats #2
        #6 repeats #5
        ");
    }

    #[test]
    fn equal_times_go_by_partition_and_offset_and_the_interval_is_open() {
        insta::assert_snapshot!(check(60, &[0, 1, 2], &[
            &[(1, 50, 1), (1, 110, 1), (1, 109, 1)],
            &[(1, 50, 0)],
        ]), @r"
        +1 id-1 #1, +1 id-1 #2, #3 repeats #1
        +1 id-1 #4, -1 id-1 #1, #1 repeats #4
        ");
    }

    #[test]
    fn what_nobody_sees_is_no_change() {
        insta::assert_snapshot!(check(60, &[0], &[&[(1, 50, 1)], &[(1, 50, 0)], &[(1, 49, 0)]]), @r"
        +1 id-1 #1
        #1 repeats #2
        #2 repeats #3
        ");
    }

    /// Logs of partitions read in random pieces: after each tick the kept rows and the verdicts are those of the naive rule over the
    /// rows so far, nothing changes below what is final, and in the end nothing is left.
    #[test]
    fn it_is_the_rule_whatever_the_pieces() {
        for seed in 0..60 {
            let mut random = StdRng::seed_from_u64(seed);
            let interval = [1, 40, 300, 2_000][random.random_range(0..4)];
            let (partitions, slack) = (random.random_range(1..4), random.random_range(1..200));
            let mut ids = new(interval);
            let mut seen: Vec<Row> = Vec::new();
            let mut kept: BTreeMap<(i64, i64, i64), i64> = BTreeMap::new();
            let mut duplicates = BTreeSet::new();
            let mut clocks = vec![0i64; partitions];
            let (mut offset, mut value_of) = (0, 0);
            for _ in 0..60 {
                let until = clocks.iter().min().unwrap() - slack;
                let mut tick: Vec<AcceptedRows> = Vec::new();
                for _ in 0..random.random_range(0..4) {
                    let partition = random.random_range(0..partitions);
                    let rows: Vec<Row> = (0..random.random_range(0..12))
                        .map(|_| {
                            offset += 1;
                            value_of += i64::from(random.random_bool(0.5));
                            let clock = &mut clocks[partition];
                            *clock += random.random_range(0..20);
                            let time = random.random_range(*clock - slack..=*clock);
                            let id = random.random_range(0..6);
                            Row { time, partition: partition as i32, offset, id, value: value_of }
                        })
                        .collect();
                    seen.extend(&rows);
                    tick.push(accepted(&rows));
                }
                ids.add(&tick).unwrap();
                let resolved = ids.resolve(&[0, 1, 2]).unwrap();
                for delta in resolved.deltas {
                    let time = micros(delta.column(2)).unwrap();
                    let value = delta.column(1).as_primitive::<Int64Type>();
                    for row in 0..delta.num_rows() {
                        assert!(time.value(row) >= until, "seed {seed}: a change below what is final");
                        let id = delta.column(0).as_string::<i32>().value(row)[3..].parse().unwrap();
                        *kept.entry((id, time.value(row), value.value(row))).or_default() += delta.weight(row);
                    }
                }
                for verdict in resolved.verdicts {
                    let new = match verdict.duplicate {
                        Some(_) => duplicates.insert(verdict.place.offset),
                        None => duplicates.remove(&verdict.place.offset),
                    };
                    assert!(new, "seed {seed}: a verdict that changes nothing");
                }
                let wanted = naive(&seen, interval);
                let mut plain: BTreeMap<(i64, i64, i64), i64> = BTreeMap::new();
                wanted.iter().for_each(|r| *plain.entry((r.id, r.time, r.value)).or_default() += 1);
                kept.retain(|_, weight| *weight != 0);
                assert_eq!(kept, plain, "seed {seed}");
                let plain: BTreeSet<i64> = seen.iter().filter(|r| !wanted.contains(r)).map(|r| r.offset).collect();
                assert_eq!(duplicates, plain, "seed {seed}");
                let until = clocks.iter().min().unwrap() - slack;
                ids.settle(until).unwrap();
                let pending: usize = ids.kept_pending().unwrap().iter().map(RecordBatch::num_rows).sum();
                assert_eq!(pending, wanted.iter().filter(|r| r.time >= until).count(), "seed {seed}");
            }
            let end = clocks.iter().max().unwrap() + interval + 1;
            ids.settle(end).unwrap();
            ids.settle(end + interval + PARTS as i64).unwrap();
            assert_eq!((ids.ids(), ids.batches.len(), ids.pending.len()), (0, 0, 0), "seed {seed}");
        }
    }

    /// A trickle with a long lateness: what is pending is a few batches, and what is remembered is bounded.
    #[test]
    fn batches_of_a_trickle_are_put_together() {
        let mut ids = new(1_000);
        for tick in 0..20_000i64 {
            let rows: Vec<Row> = (0..3)
                .map(|n| Row { time: tick * 10 + n, partition: 0, offset: tick * 3 + n, id: tick * 3 + n, value: 0 })
                .collect();
            ids.add(&[accepted(&rows)]).unwrap();
            ids.resolve(&[0]).unwrap();
            ids.settle(tick * 10 - 100_000).unwrap();
            assert!(ids.batches.len() < 40, "{} batches", ids.batches.len());
        }
        assert!((30_000..=36_000).contains(&ids.ids()), "{}", ids.ids());
    }
}
