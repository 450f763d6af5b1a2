//! Ids kept over a restart.
//!
//! | section | rows | columns |
//! |---|---|---|
//! | `ids` | ids that are new or have changed | pending, time_us, offset, partition, then the id |
//! | `pending` | behind each `ids`: the pending rows of these, `pending` of each, in their order | partition, offset, fate, then the source's columns |
//!
//! `time_us` and the place are those of the last kept row that is final, NULL if there is none. An id that has changed and gone is
//! one without rows. One that has gone because it expired is not named: by the times it has expired for whoever loads it too.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int32Array, Int64Array, RecordBatch, UInt8Array, UInt32Array};
use arrow::compute::{interleave_record_batch, take};
use arrow::datatypes::{DataType, Int32Type, Int64Type, SchemaRef, UInt8Type, UInt32Type};
use serde::{Deserialize, Serialize};

use super::Deduplicate;
use super::across_partitions::{AcrossPartitions, BATCH_ROWS, Batch, Fate, NEVER, NONE, Pending, Settled};
use super::id_key::IdKeys;
use super::id_table::IdRef;
use super::unsaved_ids::UnsavedIds;
use crate::exec::durable::{Buckets, Saved};
use crate::exec::feed::micros;
use crate::exec::rows::batch_of;
use crate::exec::saved_columns::{SavedColumns, only_sections, section_before, since_whole, wrong};
use crate::exec::{ExecError, bucket};

#[derive(Serialize, Deserialize)]
struct Notes {
    /// First and last.
    buckets: (u8, u8),
    final_until_us: Option<i64>,
    /// Rows of the sections.
    ids: usize,
    pending: usize,
}

/// So many ids are saved in one piece.
const SECTION_IDS: usize = 32_768;

impl AcrossPartitions {
    /// From now on [`AcrossPartitions::save`] can be asked. These are the buckets of the worker. Cost: an entry in a hash map for
    /// each id of which rows come or become final.
    pub fn track_saves(&mut self, buckets: Buckets) {
        if self.buckets.as_ref() == Some(&buckets) {
            return;
        }
        self.buckets = Some(buckets);
        self.unsaved = Some(UnsavedIds::new(true));
        self.noted_until_us = None;
    }

    /// See [`crate::exec::durable`]. After an error the next gives all. Errors: what does not track what is saved.
    pub fn save(&mut self, whole: bool) -> Result<Saved, ExecError> {
        let (Some(unsaved), Some(buckets)) = (&mut self.unsaved, &self.buckets) else {
            return Err(ExecError::Invariant("ids that are not tracked were to be saved".into()));
        };
        let buckets = (*buckets.start(), *buckets.end());
        let changed = Some(std::mem::replace(unsaved, UnsavedIds::new(true))).filter(|u| !whole && !u.needs_whole);
        let mut saved = Saved { whole: changed.is_none(), ..Saved::default() };
        let ids = changed.as_ref().map_or_else(|| self.ids.refs().collect(), UnsavedIds::ids);
        let mut notes = Notes { buckets, final_until_us: self.final_until_us, ids: 0, pending: 0 };
        for ids in ids.chunks(SECTION_IDS) {
            self.save_ids(ids, &mut saved, &mut notes)?;
        }
        let gone = changed.map_or_else(Vec::new, |changed| changed.gone);
        for keys in gone.chunks(SECTION_IDS) {
            let settled = Settled { time_us: NEVER, offset: 0, partition: 0, first: NONE };
            let keys: Vec<(&[u8], Settled)> = keys.iter().map(|key| (key.as_ref(), settled)).collect();
            self.save_settled(&keys, &mut saved, &mut notes)?;
        }
        if !saved.is_empty() || self.noted_until_us != self.final_until_us {
            saved.notes = serde_json::json!(notes);
        }
        self.noted_until_us = self.final_until_us;
        self.unsaved = Some(UnsavedIds::new(false));
        Ok(saved)
    }

    fn save_ids(&self, ids: &[IdRef], saved: &mut Saved, notes: &mut Notes) -> Result<(), ExecError> {
        let known = ids.iter().filter_map(|&id| Some((self.ids.key(id)?, self.ids.get(id)?)));
        self.save_settled(&known.collect::<Vec<_>>(), saved, notes)
    }

    fn save_settled(&self, ids: &[(&[u8], Settled)], saved: &mut Saved, notes: &mut Notes) -> Result<(), ExecError> {
        let Some(schema) = self.schema.as_ref().filter(|_| !ids.is_empty()) else { return Ok(()) };
        let (mut counts, mut rows) = (Vec::with_capacity(ids.len()), Vec::new());
        for (_, settled) in ids {
            let before = rows.len();
            let mut at = settled.first;
            while at != NONE {
                rows.push(self.pending[at as usize]);
                at = self.pending[at as usize].next;
            }
            counts.push((rows.len() - before) as u32);
        }
        let keys: Vec<&[u8]> = ids.iter().map(|(key, _)| *key).collect();
        let time = |settled: &Settled| (settled.time_us != NEVER).then_some(settled.time_us);
        let own = vec![
            ("pending", Arc::new(UInt32Array::from(counts)) as ArrayRef),
            ("time_us", Arc::new(ids.iter().map(|(_, s)| time(s)).collect::<Int64Array>())),
            ("offset", Arc::new(ids.iter().map(|(_, s)| s.offset).collect::<Int64Array>())),
            ("partition", Arc::new(ids.iter().map(|(_, s)| s.partition).collect::<Int32Array>())),
        ];
        saved.push("ids", section_before(own, &IdKeys::read(&id_types(schema, &self.columns), &keys)?)?);
        saved.push("pending", self.pending_rows(schema, &rows)?);
        notes.ids += ids.len();
        notes.pending += rows.len();
        Ok(())
    }

    fn pending_rows(&self, schema: &SchemaRef, rows: &[Pending]) -> Result<RecordBatch, ExecError> {
        let mut numbers: Vec<u32> = rows.iter().map(|row| row.batch).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let batches: Vec<&RecordBatch> = numbers.iter().map(|number| &self.batches[number].rows).collect();
        let place = |row: &Pending| (numbers.partition_point(|&number| number < row.batch), row.row as usize);
        let whole = match batches.is_empty() {
            true => RecordBatch::new_empty(schema.clone()),
            false => interleave_record_batch(&batches, &rows.iter().map(place).collect::<Vec<_>>())?,
        };
        let own = vec![
            ("partition", Arc::new(rows.iter().map(|row| row.partition).collect::<Int32Array>()) as ArrayRef),
            ("offset", Arc::new(rows.iter().map(|row| row.offset).collect::<Int64Array>())),
            ("fate", Arc::new(rows.iter().map(|row| row.fate as u8).collect::<UInt8Array>())),
        ];
        section_before(own, whole.columns())
    }

    /// The ids in some buckets, of whichever workers have saved them; tracked from there on. `schema`: every column of the
    /// source.
    pub fn load(
        deduplicate: &Deduplicate,
        time_column: usize,
        schema: SchemaRef,
        parts: &[Vec<Saved>],
        buckets: Buckets,
    ) -> Result<Self, ExecError> {
        let mut all = AcrossPartitions::new(deduplicate, time_column);
        let mut same = parts.len() == 1;
        for part in parts {
            let notes = all.load_part(&schema, part, &buckets)?;
            same &= notes.buckets == (*buckets.start(), *buckets.end());
            all.final_until_us = all.final_until_us.max(notes.final_until_us);
        }
        all.schema = Some(schema);
        all.drop_expired();
        all.noted_until_us = all.final_until_us;
        all.buckets = Some(buckets);
        all.unsaved = Some(UnsavedIds::new(!same));
        Ok(all)
    }

    fn load_part(&mut self, schema: &SchemaRef, part: &[Saved], buckets: &Buckets) -> Result<Notes, ExecError> {
        let mut last: Option<Notes> = None;
        // What was said last of an id counts.
        for saved in since_whole(part)?.iter().rev().filter(|saved| !saved.is_empty()) {
            only_sections(saved, &["ids", "pending"])?;
            let notes: Notes = saved.notes()?;
            let rows_of = |name| saved.rows(name).map(RecordBatch::num_rows).sum::<usize>();
            if (rows_of("ids"), rows_of("pending")) != (notes.ids, notes.pending) {
                return Err(wrong("sections of ids do not have the rows that their notes name"));
            }
            for (ids, pending) in saved.rows("ids").zip(saved.rows("pending")) {
                self.load_ids(schema, &SavedColumns::of("ids", ids), &SavedColumns::of("pending", pending), buckets)?;
            }
            last.get_or_insert(notes);
        }
        last.ok_or_else(|| wrong("ids without notes"))
    }

    fn load_ids(
        &mut self,
        schema: &SchemaRef,
        ids: &SavedColumns<'_>,
        pending: &SavedColumns<'_>,
        buckets: &Buckets,
    ) -> Result<(), ExecError> {
        let keys = ids.rest(4, &id_types(schema, &self.columns))?;
        let owner = bucket::buckets(keys, ids.num_rows());
        let keys = IdKeys::of_columns(keys.to_vec())?;
        let (counts, times) = (ids.values::<UInt32Type>("pending")?, ids.nullable::<Int64Type>("time_us")?);
        let (offsets, partitions) = (ids.values::<Int64Type>("offset")?, ids.values::<Int32Type>("partition")?);
        let mut behind: usize = 0;
        let (mut key, mut rows) = (Vec::new(), Vec::new());
        for row in 0..ids.num_rows() {
            let first = behind;
            behind += counts[row] as usize;
            if !buckets.contains(&owner[row]) {
                continue;
            }
            if keys.is_null(row) || behind > pending.num_rows() {
                return Err(ids.wrong("an id is NULL, or its rows are missing"));
            }
            keys.write(row, &mut key);
            let time_us = if times.is_null(row) { NEVER } else { times.value(row) };
            let (offset, partition, known) = (offsets[row], partitions[row], self.ids.len());
            let id = self.ids.find_or_insert(&key, Settled { time_us, offset, partition, first: NONE })?;
            if self.ids.len() > known {
                rows.extend((first..behind).map(|row| (row as u32, id)));
            }
        }
        if behind != pending.num_rows() {
            return Err(pending.wrong("there are rows without an id"));
        }
        self.load_pending(schema, pending, &rows)
    }

    /// Rows, ascending, with the ids to which they belong.
    fn load_pending(
        &mut self,
        schema: &SchemaRef,
        pending: &SavedColumns<'_>,
        rows: &[(u32, IdRef)],
    ) -> Result<(), ExecError> {
        let types: Vec<DataType> = schema.fields().iter().map(|field| field.data_type().clone()).collect();
        let columns = pending.rest(3, &types)?;
        let (partitions, offsets) = (pending.values::<Int32Type>("partition")?, pending.values::<Int64Type>("offset")?);
        let fates = pending.values::<UInt8Type>("fate")?;
        let times = micros(&columns[self.time_column])?;
        // Batches become final as a whole, so that rows of like times are to stand together.
        let mut by_time: Vec<usize> = (0..rows.len()).collect();
        by_time.sort_by_key(|&i| times.value(rows[i].0 as usize));
        let mut places = vec![(0, 0); rows.len()];
        for of_batch in by_time.chunks(BATCH_ROWS) {
            let picked = UInt32Array::from_iter_values(of_batch.iter().map(|&i| rows[i].0));
            let taken = columns.iter().map(|column| take(column, &picked, None)).collect::<Result<Vec<_>, _>>()?;
            let taken = batch_of(schema, taken, picked.len()).map_err(|error| pending.wrong(&error.to_string()))?;
            let number = self.next_batch;
            self.next_batch = self.next_batch.wrapping_add(1);
            of_batch.iter().zip(0..).for_each(|(&i, row)| places[i] = (number, row));
            let ids = of_batch.iter().map(|&i| rows[i].1).collect();
            let latest_us = of_batch.last().map_or(NEVER, |&i| times.value(rows[i].0 as usize));
            self.batches.insert(number, Batch { rows: taken, ids, latest_us });
        }
        for (&(row, id), (batch, at)) in rows.iter().zip(places) {
            let row = row as usize;
            let fate = Fate::of(fates[row]).ok_or_else(|| pending.wrong("a fate that no row has"))?;
            if times.is_null(row) {
                return Err(pending.wrong("a row has no time"));
            }
            let (time_us, offset, partition) = (times.value(row), offsets[row], partitions[row]);
            self.insert(id, Pending { time_us, offset, partition, batch, row: at, next: NONE, fate });
            if fate == Fate::New {
                self.touched.push(id);
            }
        }
        Ok(())
    }

    /// Ids of which nothing can be repeated any more.
    fn drop_expired(&mut self) {
        let Some(until_us) = self.final_until_us else { return };
        for id in self.ids.refs().collect::<Vec<_>>() {
            let Some(mut settled) = self.ids.get(id) else { continue };
            let mut all_final = true;
            while settled.first != NONE {
                let row = self.pending[settled.first as usize];
                all_final &= row.time_us < until_us;
                settled.first = row.next;
                if row.fate == Fate::Kept {
                    settled.time_us = row.time_us;
                }
            }
            if all_final && settled.has_expired(self.interval_us, until_us) {
                self.settle_id(id, until_us);
            }
        }
    }
}

fn id_types(schema: &SchemaRef, columns: &[usize]) -> Vec<DataType> {
    columns.iter().map(|&column| schema.field(column).data_type().clone()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::super::across_partitions::tests::{Row, accepted, new, schema};
    use super::super::{AcceptedRows, Resolved};
    use super::*;

    /// What is remembered of the ids that have not expired. Rows below what is final stay pending until their batch is done;
    /// `split`: it is told which do.
    fn remembered(ids: &AcrossPartitions, split: bool) -> BTreeMap<Vec<u8>, String> {
        let until = ids.final_until_us.unwrap_or(NEVER);
        let mut all = BTreeMap::new();
        for id in ids.ids.refs() {
            let settled = ids.ids.get(id).unwrap();
            let (mut at, mut last, mut pending) = (settled.first, settled, Vec::new());
            while at != NONE {
                let row = ids.pending[at as usize];
                let rows = ids.batches[&row.batch].rows.slice(row.row as usize, 1);
                if split || row.time_us >= until {
                    let values: Vec<String> = rows.columns().iter().map(|column| format!("{column:?}")).collect();
                    pending.push((row.order(), row.fate, values));
                }
                if row.fate == Fate::Kept && row.time_us < until {
                    last = Settled { time_us: row.time_us, offset: row.offset, partition: row.partition, ..last };
                }
                at = row.next;
            }
            if pending.iter().any(|(order, _, _)| order.0 >= until) || !last.has_expired(ids.interval_us, until) {
                let kept = if split { settled } else { last };
                // One that nothing can repeat any more is swept sooner or later.
                let swept = !split && kept.has_expired(ids.interval_us, until);
                let kept = (kept.time_us != NEVER && !swept).then_some((kept.time_us, kept.partition, kept.offset));
                all.insert(ids.ids.key(id).unwrap().to_vec(), format!("{kept:?} {pending:?}"));
            }
        }
        all
    }

    /// Logs of partitions read in random pieces by ids that are saved and loaded now and then, by one worker or by several, and
    /// by ids that are not: the same deltas, the same verdicts, the same is remembered.
    #[test]
    fn ids_that_were_saved_go_on_as_they_were() {
        let (mut loads, mut increments, mut pending, mut settled) = (0, 0, 0, 0);
        for seed in 0..80 {
            let mut random = StdRng::seed_from_u64(seed);
            let interval = [1, 40, 300, 2_000][random.random_range(0..4)];
            let (partitions, slack) = (random.random_range(1..4), random.random_range(1..200));
            let (mut straight, mut cut) = (new(interval), new(interval));
            cut.track_saves(0..=255);
            let clause = Deduplicate { columns: vec![0], interval_us: interval, same_partition: false };
            let mut saves: Vec<Saved> = Vec::new();
            let mut clocks = vec![0i64; partitions];
            let mut offset = 0;
            for tick in 0..60 {
                let mut rows_of_tick: Vec<AcceptedRows> = Vec::new();
                for _ in 0..random.random_range(0..4) {
                    let partition = random.random_range(0..partitions);
                    let rows: Vec<Row> = (0..random.random_range(0..12))
                        .map(|_| {
                            offset += 1;
                            let clock = &mut clocks[partition];
                            *clock += random.random_range(0..20);
                            let time = random.random_range(*clock - slack..=*clock);
                            let (id, value) = (random.random_range(0..30), offset / 2);
                            Row { time, partition: partition as i32, offset, id, value }
                        })
                        .collect();
                    rows_of_tick.push(accepted(&rows));
                }
                let until = clocks.iter().min().unwrap() - slack;
                let told = [&mut straight, &mut cut].map(|ids| {
                    ids.add(&rows_of_tick).unwrap();
                    let Resolved { deltas, mut verdicts } = ids.resolve(&[0, 1, 2]).unwrap();
                    ids.settle(until).unwrap();
                    let delta = deltas.iter().map(crate::exec::text::print).collect::<Vec<_>>().join("\n");
                    let mut lines: Vec<String> = delta.lines().map(str::to_string).collect();
                    lines.sort();
                    verdicts.sort_by_key(|verdict| verdict.place);
                    let mut open: Vec<String> = ids
                        .kept_pending()
                        .unwrap()
                        .iter()
                        .flat_map(|rows| {
                            crate::exec::text::print_rows(&schema(), std::slice::from_ref(rows))
                                .lines()
                                .map(str::to_string)
                                .collect::<Vec<_>>()
                        })
                        .collect();
                    open.sort();
                    (lines, verdicts, open, remembered(ids, false))
                });
                assert_eq!(told[0], told[1], "seed {seed}, tick {tick}");
                if random.random_bool(0.4) {
                    let saved = cut.save(random.random_bool(0.1)).unwrap();
                    assert!(saved.whole || !saves.is_empty());
                    assert!(cut.save(false).unwrap().is_empty(), "nothing has changed");
                    increments += usize::from(!saved.whole && !saved.sections.is_empty());
                    pending += saved.rows("pending").map(RecordBatch::num_rows).sum::<usize>();
                    let ids = saved.rows("ids").map(|rows| rows.column(1).len() - rows.column(1).null_count());
                    settled += ids.sum::<usize>();
                    saves.push(saved);
                    if random.random_bool(0.6) {
                        loads += 1;
                        let load = |parts: &[Vec<Saved>], buckets| {
                            AcrossPartitions::load(&clause, 2, schema(), parts, buckets).unwrap()
                        };
                        let before = remembered(&cut, true);
                        cut = load(&[saves.clone()], 0..=255);
                        assert_eq!(remembered(&cut, true), before, "seed {seed}, tick {tick}");
                        assert_eq!(cut.ids(), before.len(), "what has expired is not loaded");
                        if random.random_bool(0.3) {
                            let parts = [0..=99, 100..=200, 201..=255].map(|buckets| {
                                let mut part = load(&[saves.clone()], buckets);
                                let saved = part.save(false).unwrap();
                                assert!(saved.whole, "another's");
                                vec![saved]
                            });
                            cut = load(&parts, 0..=255);
                            saves = vec![cut.save(false).unwrap()];
                            assert!(saves[0].whole, "of several");
                        }
                    }
                }
            }
        }
        assert!(
            loads > 500 && increments > 500 && pending > 500 && settled > 500,
            "{loads} {increments} {pending} {settled}"
        );
    }

    #[test]
    fn what_are_no_ids_is_refused() {
        let mut ids = new(50);
        ids.track_saves(0..=255);
        let row = |id, time| Row { time, partition: 0, offset: time, id, value: time };
        ids.add(&[accepted(&[row(1, 5), row(2, 40)])]).unwrap();
        ids.resolve(&[0]).unwrap();
        ids.settle(10).unwrap();
        let good = ids.save(false).unwrap();
        let clause = Deduplicate { columns: vec![0], interval_us: 50, same_partition: false };
        let load = |change: &dyn Fn(&mut Saved)| {
            let mut saved = good.clone();
            change(&mut saved);
            match AcrossPartitions::load(&clause, 2, schema(), &[vec![saved]], 0..=255) {
                Ok(_) => "loaded".to_string(),
                Err(error @ ExecError::Saved { .. }) => error.to_string(),
                Err(error) => panic!("{error:?}"),
            }
        };
        let mut tries = vec![load(&|_| ())];
        for at in 0..good.sections.len() {
            tries.push(load(&|saved| drop(saved.sections.remove(at))));
            tries.push(load(&|saved| drop(saved.sections[at].rows.remove_column(0))));
            tries.push(load(&|saved| drop(saved.sections[at].rows.remove_column(4))));
        }
        tries.push(load(&|saved| saved.notes = serde_json::json!({})));
        tries.push(load(&|saved| saved.whole = false));
        insta::assert_snapshot!(tries.join("\n"), @r"
        loaded
        a saved state cannot be read: sections of ids do not have the rows that their notes name
        a saved state cannot be read: section ids: it has not the columns [Utf8]
        a saved state cannot be read: section ids: it has not the columns [Utf8]
        a saved state cannot be read: sections of ids do not have the rows that their notes name
        a saved state cannot be read: section pending: it has not the columns [Utf8, Int64, Timestamp(Microsecond, None)]
        a saved state cannot be read: section pending: it has not the columns [Utf8, Int64, Timestamp(Microsecond, None)]
        a saved state cannot be read: notes: missing field `buckets`
        a saved state cannot be read: there is no whole one to begin with
        ");
    }
}
