use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, UInt32Array};
use arrow::datatypes::{DataType, Int64Type, UInt32Type};
use serde::{Deserialize, Serialize};

use super::id_key::IdKeys;
use super::id_table::{IdTable, PARTS};
use super::unsaved_ids::UnsavedIds;
use crate::exec::ExecError;
use crate::exec::durable::Saved;
use crate::exec::saved_columns::{SavedColumns, only_sections, section, section_before, since_whole, wrong};

/// The rule where equal ids share a partition: a row is a duplicate if a kept row of its id that came before it in the log lies
/// less than the interval away in event time, before or after. So a verdict is for good when the row is read.
///
/// - State: each kept row's id, time and offset, until rows that are late by then could alone repeat it, and at most an eighth of the
///   interval longer.
/// - Cost: a look-up a row.
pub struct WithinPartition {
    interval_us: i64,
    ids: IdTable<First>,
    more: Vec<More>,
    free: Vec<u32>,
    swept: Option<i64>,
    next_part: u8,
    /// Of the columns of an id.
    types: Vec<DataType>,
    until_us: Option<i64>,
    unsaved: Option<UnsavedIds>,
    noted_until_us: Option<i64>,
}

#[derive(Serialize, Deserialize)]
struct Notes {
    /// Nothing of an earlier time is accepted any more.
    until_us: Option<i64>,
    /// Rows of the sections.
    ids: usize,
    kept: usize,
}

/// So many ids are saved in one piece.
const SECTION_IDS: usize = 65_536;

/// A kept row of an id, and where others of the same id are, which are rare.
#[derive(Debug, Clone, Copy)]
struct First {
    time_us: i64,
    offset: i64,
    more: u32,
}

#[derive(Debug, Clone, Copy)]
struct More {
    time_us: i64,
    offset: i64,
    next: u32,
}

const NONE: u32 = u32::MAX;

impl WithinPartition {
    /// `types`: those of the columns of an id.
    pub fn new(interval_us: i64, types: Vec<DataType>) -> Self {
        WithinPartition {
            interval_us,
            ids: IdTable::new(),
            more: Vec::new(),
            free: Vec::new(),
            swept: None,
            next_part: 0,
            types,
            until_us: None,
            unsaved: None,
            noted_until_us: None,
        }
    }

    /// The verdict on the next accepted row of the log: the offset of the kept row that it repeats.
    pub fn judge(&mut self, key: &[u8], time_us: i64, offset: i64) -> Result<Option<i64>, ExecError> {
        let before = self.ids.len();
        let id = self.ids.find_or_insert(key, First { time_us, offset, more: NONE })?;
        if self.ids.len() > before {
            if let Some(unsaved) = &mut self.unsaved {
                unsaved.note(id, true);
            }
            return Ok(None);
        }
        let near = |other_us: i64| time_us.abs_diff(other_us) < self.interval_us.unsigned_abs();
        let first = self.ids.get_mut(id).expect("just found");
        if near(first.time_us) {
            return Ok(Some(first.offset));
        }
        let mut at = first.more;
        while at != NONE {
            let more = self.more[at as usize];
            if near(more.time_us) {
                return Ok(Some(more.offset));
            }
            at = more.next;
        }
        if let Some(unsaved) = &mut self.unsaved {
            unsaved.note(id, false);
        }
        // The newest is first: the next copy most likely repeats that.
        let older = More { time_us: first.time_us, offset: first.offset, next: first.more };
        let at = match self.free.pop() {
            Some(at) => {
                self.more[at as usize] = older;
                at
            }
            None => {
                self.more.push(older);
                (self.more.len() - 1) as u32
            }
        };
        *first = First { time_us, offset, more: at };
        Ok(None)
    }

    /// No row of an earlier time than this is accepted any more.
    pub fn settle(&mut self, until_us: i64) {
        self.until_us = self.until_us.max(Some(until_us));
        let interval_us = self.interval_us;
        let expired = |time_us: i64| time_us.saturating_add(interval_us) <= until_us;
        for part in parts_due(&mut self.swept, &mut self.next_part, until_us, interval_us) {
            let (more, free, unsaved) = (&mut self.more, &mut self.free, &mut self.unsaved);
            self.ids.sweep(part, |id, key, first| {
                let mut at = first.more;
                let mut live = !expired(first.time_us);
                while at != NONE {
                    live |= !expired(more[at as usize].time_us);
                    at = more[at as usize].next;
                }
                if !live {
                    if let Some(unsaved) = unsaved {
                        unsaved.forget(id, key);
                    }
                    at = first.more;
                    while at != NONE {
                        free.push(at);
                        at = more[at as usize].next;
                    }
                }
                live
            });
        }
        if self.free.len() == self.more.len() {
            self.more.clear();
            self.free.clear();
        }
    }

    /// From now on [`WithinPartition::save`] gives what has changed. Cost: an entry in a hash map a kept row.
    pub fn track_saves(&mut self) {
        self.unsaved.get_or_insert_with(|| UnsavedIds::new(true));
    }

    /// See [`crate::exec::durable`]. Section `ids`: of each id that changed how many kept rows it has, then the id; behind each a
    /// section `kept` of these rows, time_us and offset, the newest first. Ids that have gone are not named: they have expired
    /// for whoever loads what was said of them too.
    pub fn save(&mut self, whole: bool) -> Result<Saved, ExecError> {
        let changed = self.unsaved.as_mut().map(|unsaved| std::mem::replace(unsaved, UnsavedIds::new(true)));
        let changed = changed.filter(|changed| !whole && !changed.needs_whole);
        let mut saved = Saved { whole: changed.is_none(), ..Saved::default() };
        let ids = changed.map_or_else(|| self.ids.refs().collect(), |changed| changed.ids());
        let mut notes = Notes { until_us: self.until_us, ids: ids.len(), kept: 0 };
        for ids in ids.chunks(SECTION_IDS) {
            let (mut keys, mut counts) = (Vec::with_capacity(ids.len()), Vec::with_capacity(ids.len()));
            let (mut times, mut offsets) = (Vec::new(), Vec::new());
            for (key, first) in ids.iter().filter_map(|&id| Some((self.ids.key(id)?, self.ids.get(id)?))) {
                let before = times.len();
                times.push(first.time_us);
                offsets.push(first.offset);
                let mut at = first.more;
                while at != NONE {
                    let more = self.more[at as usize];
                    times.push(more.time_us);
                    offsets.push(more.offset);
                    at = more.next;
                }
                keys.push(key);
                counts.push((times.len() - before) as u32);
            }
            notes.kept += times.len();
            let counts: ArrayRef = Arc::new(UInt32Array::from(counts));
            saved.push("ids", section_before(vec![("kept", counts)], &IdKeys::read(&self.types, &keys)?)?);
            let (times, offsets) = (Int64Array::from(times), Int64Array::from(offsets));
            saved.push("kept", section(vec![("time_us", Arc::new(times)), ("offset", Arc::new(offsets))])?);
        }
        if !saved.is_empty() || self.noted_until_us != self.until_us {
            saved.notes = serde_json::json!(notes);
        }
        self.noted_until_us = self.until_us;
        self.unsaved = self.unsaved.take().map(|_| UnsavedIds::new(false));
        Ok(saved)
    }

    /// What was saved, tracked from there on.
    pub fn load(interval_us: i64, types: Vec<DataType>, saves: &[Saved]) -> Result<Self, ExecError> {
        let mut all = WithinPartition::new(interval_us, types);
        // What was said last of an id counts.
        for saved in since_whole(saves)?.iter().rev().filter(|saved| !saved.is_empty()) {
            only_sections(saved, &["ids", "kept"])?;
            let notes: Notes = saved.notes()?;
            let rows_of = |name| saved.rows(name).map(RecordBatch::num_rows).sum::<usize>();
            if (rows_of("ids"), rows_of("kept")) != (notes.ids, notes.kept) {
                return Err(wrong("sections of ids do not have the rows that their notes name"));
            }
            all.until_us = all.until_us.max(notes.until_us);
            for (ids, kept) in saved.rows("ids").zip(saved.rows("kept")) {
                all.load_ids(&SavedColumns::of("ids", ids), &SavedColumns::of("kept", kept))?;
            }
        }
        all.noted_until_us = all.until_us;
        all.unsaved = Some(UnsavedIds::new(false));
        Ok(all)
    }

    fn load_ids(&mut self, ids: &SavedColumns<'_>, kept: &SavedColumns<'_>) -> Result<(), ExecError> {
        let keys = IdKeys::of_columns(ids.rest(1, &self.types)?.to_vec())?;
        let (times, offsets) = (kept.values::<Int64Type>("time_us")?, kept.values::<Int64Type>("offset")?);
        let (mut key, mut behind) = (Vec::new(), 0);
        for (row, &count) in ids.values::<UInt32Type>("kept")?.iter().enumerate() {
            let rows = behind..behind + count as usize;
            behind = rows.end;
            if count == 0 || behind > times.len() || keys.is_null(row) {
                return Err(ids.wrong("an id is NULL, or its rows are missing"));
            }
            let expired = |time_us: &i64| {
                self.until_us.is_some_and(|until_us| time_us.saturating_add(self.interval_us) <= until_us)
            };
            if times[rows.clone()].iter().all(expired) {
                continue;
            }
            keys.write(row, &mut key);
            let known = self.ids.len();
            let first = First { time_us: times[rows.start], offset: offsets[rows.start], more: NONE };
            let id = self.ids.find_or_insert(&key, first)?;
            if self.ids.len() == known {
                continue;
            }
            let mut next = NONE;
            for row in (rows.start + 1..rows.end).rev() {
                self.more.push(More { time_us: times[row], offset: offsets[row], next });
                next = (self.more.len() - 1) as u32;
            }
            self.ids.get_mut(id).expect("just inserted").more = next;
        }
        match behind == times.len() {
            true => Ok(()),
            false => Err(kept.wrong("there are rows without an id")),
        }
    }

    /// Kept rows that are remembered, by id.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn bytes(&self) -> usize {
        self.ids.bytes() + self.more.capacity() * size_of::<More>() + self.free.capacity() * size_of::<u32>()
    }
}

/// The parts of a table to look for expired ids in, now that time has come to `until_us`: each once in an eighth of the interval.
pub(super) fn parts_due(
    swept: &mut Option<i64>,
    next_part: &mut u8,
    until_us: i64,
    interval_us: i64,
) -> impl Iterator<Item = u8> + use<> {
    let since = *swept.get_or_insert(until_us);
    let step = (interval_us / (8 * PARTS as i64)).max(1);
    let due = (until_us.saturating_sub(since) / step).clamp(0, PARTS as i64);
    let first = *next_part;
    if due == PARTS as i64 {
        *swept = Some(until_us);
    } else {
        *swept = Some(since.saturating_add(due * step));
        *next_part = first.wrapping_add(due as u8);
    }
    (0..due).map(move |n| first.wrapping_add(n as u8))
}

#[cfg(test)]
mod tests {
    use arrow::array::StringArray;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    /// Rows `(id, time)` at offsets 0, 1, ...: what each repeats.
    fn check(interval_us: i64, rows: &[(&str, i64)]) -> Vec<Option<i64>> {
        let mut ids = WithinPartition::new(interval_us, Vec::new());
        rows.iter().zip(0..).map(|((id, time), offset)| ids.judge(id.as_bytes(), *time, offset).unwrap()).collect()
    }

    #[test]
    fn what_comes_first_in_the_log_is_kept() {
        let rows = [("a", 100), ("b", 100), ("a", 159), ("a", 160), ("a", 41), ("a", 40), ("a", 219), ("a", 220)];
        assert_eq!(check(60, &rows), [None, None, Some(0), None, Some(0), None, Some(3), None]);
    }

    #[test]
    fn ids_that_were_saved_go_on_as_they_were() {
        const INTERVAL: i64 = 8_000;
        let types = vec![DataType::Utf8, DataType::Int64];
        let mut increments = 0;
        for seed in 0..20 {
            let mut random = StdRng::seed_from_u64(seed);
            let new = || WithinPartition::new(INTERVAL, types.clone());
            let (mut straight, mut cut) = (new(), new());
            cut.track_saves();
            let mut saves: Vec<Saved> = Vec::new();
            let mut now = 0;
            for offset in 0..6_000 {
                now += random.random_range(0..15);
                let until = now - 2_000;
                let (id, time): (i64, i64) = (random.random_range(0..100), random.random_range(until..=now));
                let columns: Vec<ArrayRef> =
                    vec![Arc::new(StringArray::from(vec![format!("id-{id}")])), Arc::new(Int64Array::from(vec![id]))];
                let mut key = Vec::new();
                IdKeys::of_columns(columns).unwrap().write(0, &mut key);
                let verdicts = [&mut straight, &mut cut].map(|ids| {
                    ids.settle(until);
                    ids.judge(&key, time, offset).unwrap()
                });
                assert_eq!(verdicts[0], verdicts[1], "seed {seed}, offset {offset}");
                if random.random_bool(0.01) {
                    let saved = cut.save(random.random_bool(0.1)).unwrap();
                    assert!(saved.whole || !saves.is_empty());
                    assert!(cut.save(false).unwrap().is_empty(), "nothing has changed");
                    increments += usize::from(!saved.whole && !saved.sections.is_empty());
                    saves.push(saved);
                    if random.random_bool(0.5) {
                        cut = WithinPartition::load(INTERVAL, types.clone(), &saves).unwrap();
                    }
                }
            }
        }
        assert!(increments > 500, "{increments}");
    }

    #[test]
    fn what_are_no_ids_is_refused() {
        let mut ids = WithinPartition::new(60, vec![DataType::Utf8]);
        ids.judge(b"\x01a", 100, 1).unwrap();
        ids.judge(b"\x01a", 200, 2).unwrap();
        let good = ids.save(true).unwrap();
        let load = |types: Vec<DataType>, change: &dyn Fn(&mut Saved)| {
            let mut saved = good.clone();
            change(&mut saved);
            match WithinPartition::load(60, types, &[saved]) {
                Ok(ids) => format!("{} ids", ids.len()),
                Err(error @ ExecError::Saved { .. }) => error.to_string(),
                Err(error) => panic!("{error:?}"),
            }
        };
        let text = || vec![DataType::Utf8];
        let tries = [
            load(text(), &|_| ()),
            load(vec![DataType::Int64], &|_| ()),
            load(text(), &|saved| drop(saved.sections.remove(0))),
            load(text(), &|saved| drop(saved.sections.remove(1))),
            load(text(), &|saved| drop(saved.sections[0].rows.remove_column(0))),
            load(text(), &|saved| drop(saved.sections[1].rows.remove_column(1))),
            load(text(), &|saved| saved.notes = serde_json::Value::Null),
            load(text(), &|saved| saved.whole = false),
        ];
        insta::assert_snapshot!(tries.join("\n"), @r"
        1 ids
        a saved state cannot be read: section ids: it has not the columns [Int64]
        a saved state cannot be read: sections of ids do not have the rows that their notes name
        a saved state cannot be read: sections of ids do not have the rows that their notes name
        a saved state cannot be read: section ids: it has not the columns [Utf8]
        a saved state cannot be read: section kept: column offset is missing or of another type
        a saved state cannot be read: notes: invalid type: null, expected struct Notes
        a saved state cannot be read: there is no whole one to begin with
        ");
    }

    /// Against a list of all that was kept; the state holds no more than what can still matter.
    #[test]
    fn ids_are_forgotten_no_sooner_than_they_may() {
        const INTERVAL: i64 = 8_000;
        for seed in 0..20 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut ids = WithinPartition::new(INTERVAL, Vec::new());
            let mut kept: Vec<(u32, i64, i64)> = Vec::new();
            let mut now = 0;
            for offset in 0..20_000 {
                now += random.random_range(0..10);
                let until = now - 2_000;
                let (id, time): (u32, i64) = (random.random_range(0..200), random.random_range(until..=now));
                let plain = kept.iter().rfind(|k| k.0 == id && (k.1 - time).abs() < INTERVAL).map(|k| k.2);
                let verdict = ids.judge(&id.to_be_bytes(), time, offset).unwrap();
                assert_eq!(verdict.is_some(), plain.is_some(), "seed {seed}, offset {offset}");
                if plain.is_none() {
                    kept.push((id, time, offset));
                    kept.retain(|k| k.1 + INTERVAL > until);
                }
                ids.settle(until);
            }
            ids.settle(now + 2 * INTERVAL);
            ids.settle(now + 4 * INTERVAL);
            assert!(ids.is_empty() && ids.more.is_empty(), "seed {seed}: {} ids", ids.len());
        }
    }
}
