//! How a slice store is kept and comes back.
//!
//! | section | columns | of |
//! |---|---|---|
//! | `keys` | the key columns | the keys that were not saved yet, in the order of their ids |
//! | `open` | slice, id, count, the states `m0`, ... | slots of open slices that changed, also those without rows now |
//! | `seen` | slice | whole: by id the last closed slice that has it, the least number for none |
//! | `seen N` | delta | else: the ids of slice N, which has closed |
//!
//! Closed slices are given beside that, each to be written to a file of its own or to a part of one: they hold ids, so that
//! what was saved belongs together. When keys are numbered anew, all is saved anew.
//!
//! A store is loaded from the parts that several workers have saved. Keys of other buckets are left out, the others are numbered
//! anew, and closed slices follow when they are read.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, take};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, UInt32Type};
use serde::{Deserialize, Serialize};

use super::ExecError;
use super::bucket::{self, EMPTY_KEY};
use super::closed_slice::{
    ClosedSlice, GONE, Renumbering, SliceFile, Source, deltas, ids as ids_of_deltas, state_fields, states_of,
};
use super::durable::{Buckets, Saved};
use super::keys::CHUNK;
use super::open_slice::{OpenSlice, Tracks};
use super::panes_in_files::{PaneEntry, PaneToKeep};
use super::rows::batch_of;
use super::slice_batch::{SliceBatch, merge_batches};
use super::slice_cache::SliceCache;
use super::slice_store::{SliceStore, StoreLayout};

/// What [`SliceStore::save`] gives.
#[derive(Debug)]
pub struct StoreSaved {
    pub saved: Saved,
    /// Slices that are to be put into files, [`ClosedSlice::keep_in`]: those closed since the last `save`; if `saved` is whole,
    /// all that are in none.
    pub closed: Vec<Arc<ClosedSlice>>,
    /// What was saved before is of no use to what comes now, no slice of it either: `closed` has all there are, also those that
    /// lie as they are in a file ([`ClosedSlice::file`]). Nor are panes that were saved.
    pub renumbered: bool,
    /// Panes that may be put into files, when there is time. They are of no use any more once a later save is `renumbered`.
    pub panes: Vec<PaneToKeep>,
}

/// What one worker had saved.
#[derive(Debug, Clone, Default)]
pub struct SavedPart {
    /// A whole one and what changed after it, in order.
    pub saved: Vec<Saved>,
    /// The closed slices that are kept, each once, in any order.
    pub closed: Vec<ClosedEntry>,
    pub panes: Vec<PaneEntry>,
}

/// A closed slice in a file.
#[derive(Debug, Clone)]
pub struct ClosedEntry {
    pub slice: i64,
    pub rows: usize,
    /// In memory.
    pub bytes: usize,
    pub file: Arc<dyn SliceFile>,
}

/// What a store knows of what is saved of it.
pub(super) struct Saves {
    buckets: Buckets,
    /// An error has lost what is to be saved: all is.
    whole_next: bool,
    /// What was saved is of no use to the next.
    pub renumbered: bool,
    /// Ids below this are saved.
    keys: usize,
    /// Closed slices below this were given to be saved.
    given_before: i64,
    /// Panes that end at or before this slice were given to be kept.
    panes_before: i64,
    last: Option<Notes>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Notes {
    /// First and last.
    buckets: (u8, u8),
    closed_before: i64,
    first_kept: Option<i64>,
    forgotten_rows: u64,
    /// The id of the first key in it.
    first_key: usize,
    /// How many keys there are in all.
    keys: usize,
}

const KEYS: &str = "keys";
const OPEN: &str = "open";
const SEEN: &str = "seen";

/// Batches of fewer rows are put together.
const FEW_ROWS: usize = 8192;

impl SliceStore {
    /// From now on [`SliceStore::save`] can be asked. The store belongs to a worker that owns these buckets.
    pub fn track_saves(&mut self, buckets: Buckets) {
        self.tracks.saves = true;
        self.saves = Some(Saves {
            buckets,
            whole_next: true,
            renumbered: true,
            keys: 0,
            given_before: i64::MIN,
            panes_before: i64::MIN,
            last: None,
        });
    }

    /// What has changed since the last `save`, or all. Cost: a copy of the states that changed, and with `whole` of all that are
    /// open; keys and closed slices are shared. Errors: a store that does not track what is saved; nothing is lost by one, the
    /// next gives all.
    pub fn save(&mut self, whole: bool) -> Result<StoreSaved, ExecError> {
        let Some(saves) = &mut self.saves else {
            return Err(ExecError::Invariant("a store that does not track what is saved was asked for it".into()));
        };
        let renumbered = saves.renumbered;
        let whole = std::mem::replace(&mut saves.whole_next, true) || renumbered || whole;
        let (first_key, given_before) = if whole { (0, i64::MIN) } else { (saves.keys, saves.given_before) };
        let panes_before = if renumbered { i64::MIN } else { saves.panes_before };
        let notes = Notes {
            buckets: (*saves.buckets.start(), *saves.buckets.end()),
            closed_before: self.closed_before,
            first_kept: self.first_kept,
            forgotten_rows: self.forgotten_rows,
            first_key,
            keys: self.keys.len(),
        };
        let mut saved = Saved { whole, ..Saved::default() };
        if !self.layout.keys.is_empty() {
            let schema = self.key_schema();
            for columns in self.keys.since(first_key)? {
                let rows = columns[0].len();
                saved.push(KEYS, batch_of(&schema, columns, rows)?);
            }
        }
        for rows in self.open_rows(whole)? {
            saved.push(OPEN, rows);
        }
        let mut closed = self.closed[self.closed.partition_point(|s| s.slice < given_before)..].to_vec();
        if whole {
            closed.retain(|slice| renumbered || slice.file().is_none());
            if !self.last_seen.is_empty() {
                saved.push(SEEN, self.seen_rows()?);
            }
        } else {
            for slice in &closed {
                let deltas: ArrayRef = Arc::new(UInt32Array::from(deltas(&slice.batch()?.ids)));
                let schema = Arc::new(Schema::new(vec![Field::new("delta", DataType::UInt32, false)]));
                saved.push(format!("{SEEN} {}", slice.slice), batch_of(&schema, vec![deltas.clone()], deltas.len())?);
            }
        }
        let saves = self.saves.as_mut().expect("looked at above");
        let same = saves.last.as_ref().is_some_and(|last| notes == Notes { first_key, ..last.clone() });
        if whole || !same || !saved.is_empty() {
            saved.notes = serde_json::json!(notes);
        }
        *saves = Saves {
            buckets: saves.buckets.clone(),
            whole_next: false,
            renumbered: false,
            keys: notes.keys,
            given_before: self.closed_before,
            panes_before: self.closed_before,
            last: Some(notes),
        };
        let panes = self.panes.to_keep(&self.closed_slices(), panes_before);
        Ok(StoreSaved { saved, closed, renumbered, panes })
    }

    fn key_schema(&self) -> SchemaRef {
        Arc::new(Schema::new(self.layout.keys.clone()))
    }

    /// The slots of open slices that changed, or all.
    fn open_rows(&mut self, whole: bool) -> Result<Vec<RecordBatch>, ExecError> {
        let schema = open_schema(&self.layout);
        let mut batches: Vec<RecordBatch> = Vec::new();
        // Many slices of few rows each are put together; at the end of `batches`.
        let mut few: Vec<RecordBatch> = Vec::new();
        for (&slice, open) in &mut self.open {
            let changed = open.take_unsaved();
            let all = whole || changed.len() == open.ids.len();
            let rows = if all { open.ids.len() } else { changed.len() };
            if rows == 0 {
                continue;
            }
            let slots = (!all).then_some(changed.as_slice());
            let ids: UInt32Array = match slots {
                None => open.ids.clone().into(),
                Some(slots) => slots.iter().map(|&slot| open.ids[slot as usize]).collect(),
            };
            let counts: Int64Array = match slots {
                None => open.counts.clone().into(),
                Some(slots) => slots.iter().map(|&slot| open.counts[slot as usize]).collect(),
            };
            let slices = Int64Array::from_value(slice, rows);
            let mut columns: Vec<ArrayRef> = vec![Arc::new(slices), Arc::new(ids), Arc::new(counts)];
            for states in &open.states {
                columns.push(states.form(slots)?);
            }
            let batch = batch_of(&schema, columns, rows)?;
            if rows >= FEW_ROWS {
                batches.push(batch);
                continue;
            }
            few.push(batch);
            if few.iter().map(RecordBatch::num_rows).sum::<usize>() >= FEW_ROWS {
                batches.push(concat_batches(&schema, &few)?);
                few.clear();
            }
        }
        if !few.is_empty() {
            batches.push(concat_batches(&schema, &few)?);
        }
        Ok(batches)
    }

    /// By id the last closed slice that has it.
    fn seen_rows(&self) -> Result<RecordBatch, ExecError> {
        let slice = |seen: &u32| match seen.checked_sub(self.closed_gone + 1) {
            Some(at) => self.closed[at as usize].slice,
            None => i64::MIN,
        };
        let slices: Int64Array = self.last_seen.iter().map(slice).collect();
        let schema = Arc::new(Schema::new(vec![Field::new("slice", DataType::Int64, false)]));
        Ok(batch_of(&schema, vec![Arc::new(slices)], self.last_seen.len())?)
    }
}

fn open_schema(layout: &StoreLayout) -> SchemaRef {
    let fields = [("slice", DataType::Int64), ("id", DataType::UInt32), ("count", DataType::Int64)];
    let fields = fields.into_iter().map(|(name, data_type)| Field::new(name, data_type, false));
    Arc::new(Schema::new(fields.chain(state_fields(layout)).collect::<Vec<_>>()))
}

fn wrong(what: impl Into<String>) -> ExecError {
    ExecError::Saved { what: what.into() }
}

/// A part whose keys are taken in.
struct Numbered<'a> {
    /// A whole one and what came after it.
    saved: &'a [Saved],
    /// The last of them.
    notes: Notes,
    /// New ids by old; `None`: they are the same.
    renumbering: Option<Renumbering>,
    /// How many of the keys are ours.
    ours: usize,
}

impl Numbered<'_> {
    /// The new id of one that was saved; `GONE` if it is not ours.
    fn id(&self, old: u32) -> Result<u32, ExecError> {
        let new = match &self.renumbering {
            None => ((old as usize) < self.notes.keys).then_some(old),
            Some(renumbering) => renumbering.get(old as usize).copied(),
        };
        new.ok_or_else(|| wrong("an id without a key"))
    }
}

impl SliceStore {
    /// The store of a worker that owns `buckets`, from what workers had saved: [`SliceStore::track_saves`] is done. Cost: an
    /// interning for each key and a merge for each row of an open slice; closed slices are not read. Errors:
    /// [`ExecError::Saved`] if the parts do not fit together or are of another layout (see [`StoreLayout::fingerprint`]).
    pub fn load(
        layout: Arc<StoreLayout>,
        parts: Vec<SavedPart>,
        buckets: Buckets,
        cache: Arc<SliceCache>,
    ) -> Result<SliceStore, ExecError> {
        let mut store = SliceStore::with_cache(layout, cache)?;
        store.track_saves(buckets.clone());
        let mut numbered = Vec::new();
        for part in &parts {
            if part.saved.is_empty() && part.closed.is_empty() {
                continue;
            }
            numbered.push((store.load_keys(part, &buckets)?, part.closed.as_slice()));
        }
        for (part, _) in &numbered {
            store.closed_before = store.closed_before.max(part.notes.closed_before);
            store.first_kept = store.first_kept.max(part.notes.first_kept);
            // One of those that share the part's buckets goes on with its count.
            if buckets.contains(&part.notes.buckets.0) {
                store.forgotten_rows += part.notes.forgotten_rows;
            }
        }
        for (part, _) in &numbered {
            store.load_open(part)?;
        }
        store.load_closed(&numbered)?;
        if let [(part, _)] = numbered.as_slice() {
            let same = part.notes.buckets == (*buckets.start(), *buckets.end()) && part.renumbering.is_none();
            store.saves = Some(Saves {
                whole_next: false,
                renumbered: !same,
                keys: store.keys.len(),
                given_before: store.closed_before,
                panes_before: i64::MIN,
                last: Some(part.notes.clone()),
                buckets,
            });
            if same {
                let panes = parts.iter().flat_map(|part| &part.panes);
                let kept = |pane: &&PaneEntry| store.first_kept.is_none_or(|kept| pane.entry.slice >= kept);
                let panes: Vec<PaneEntry> = panes.filter(kept).cloned().collect();
                store.panes.load(&store.layout, store.keys.len(), &panes);
            }
        }
        Ok(store)
    }

    fn load_keys<'a>(&mut self, part: &'a SavedPart, buckets: &Buckets) -> Result<Numbered<'a>, ExecError> {
        let Some(from) = part.saved.iter().rposition(|saved| saved.whole) else {
            return Err(wrong("what changed is there, but not what it changed"));
        };
        let saved = &part.saved[from..];
        let mut notes: Notes = saved[0].notes()?;
        let before = self.keys.len();
        let mut new_ids: Vec<u32> = Vec::new();
        for saved in saved.iter().filter(|saved| !saved.notes.is_null()) {
            notes = saved.notes()?;
            if notes.first_key != new_ids.len() {
                return Err(wrong(format!("keys from {} on after {} keys", notes.first_key, new_ids.len())));
            }
            if self.layout.keys.is_empty() && notes.keys > new_ids.len() {
                new_ids.push(if buckets.contains(&EMPTY_KEY) { 0 } else { GONE });
                if buckets.contains(&EMPTY_KEY) {
                    self.keys.intern(&[], 1, &mut Vec::new())?;
                }
            }
            let (first, last) = notes.buckets;
            let all_ours = buckets.contains(&first) && buckets.contains(&last);
            let none_ours = last < *buckets.start() || first > *buckets.end();
            for rows in saved.rows(KEYS) {
                if none_ours {
                    new_ids.extend(std::iter::repeat_n(GONE, rows.num_rows()));
                } else {
                    self.load_keys_of(rows, (!all_ours).then_some(buckets), &mut new_ids)?;
                }
            }
            if new_ids.len() != notes.keys {
                return Err(wrong(format!("{} keys of {}", new_ids.len(), notes.keys)));
            }
        }
        let ours = self.keys.len() - before;
        let same = before == 0 && ours == new_ids.len();
        Ok(Numbered { saved, notes, renumbering: (!same).then(|| Arc::new(new_ids)), ours })
    }

    /// Interns keys, those of `only` if given, and appends their ids.
    fn load_keys_of(
        &mut self,
        rows: &RecordBatch,
        only: Option<&Buckets>,
        new_ids: &mut Vec<u32>,
    ) -> Result<(), ExecError> {
        let types = self.layout.keys.iter().map(|key| key.data_type());
        if !types.eq(rows.columns().iter().map(|column| column.data_type())) {
            return Err(wrong("keys of other types"));
        }
        let mut interned = Vec::with_capacity(CHUNK);
        for from in (0..rows.num_rows()).step_by(CHUNK) {
            let num_rows = CHUNK.min(rows.num_rows() - from);
            let mut columns: Vec<ArrayRef> = rows.columns().iter().map(|c| c.slice(from, num_rows)).collect();
            let at = new_ids.len();
            new_ids.resize(at + num_rows, GONE);
            let mut ours: Option<UInt32Array> = None;
            if let Some(only) = only {
                let buckets = bucket::buckets(&columns, num_rows);
                let rows: UInt32Array =
                    (0..num_rows as u32).filter(|&row| only.contains(&buckets[row as usize])).collect();
                columns = columns.iter().map(|c| take(c, &rows, None)).collect::<Result<_, _>>()?;
                ours = Some(rows);
            }
            let (first, num_ours) = (self.keys.len(), ours.as_ref().map_or(num_rows, |rows| rows.len()));
            interned.clear();
            self.keys.intern(&columns, num_ours, &mut interned)?;
            if !interned.iter().enumerate().all(|(row, &id)| id as usize == first + row) {
                return Err(wrong("a key is there twice"));
            }
            match ours {
                None => new_ids[at..].copy_from_slice(&interned),
                Some(rows) => {
                    rows.values().iter().zip(&interned).for_each(|(&row, &id)| new_ids[at + row as usize] = id)
                }
            }
        }
        Ok(())
    }

    /// What was saved last of each slot of the slices that are still open.
    fn load_open(&mut self, part: &Numbered<'_>) -> Result<(), ExecError> {
        let mut slots = Vec::new();
        for rows in part.saved.iter().rev().flat_map(|saved| saved.rows(OPEN)) {
            let columns = rows.columns();
            let [slices, ids, counts, states @ ..] = columns else { return Err(wrong("open slices of other columns")) };
            let (Some(slices), Some(ids), Some(counts)) = (
                slices.as_primitive_opt::<Int64Type>(),
                ids.as_primitive_opt::<UInt32Type>(),
                counts.as_primitive_opt::<Int64Type>(),
            ) else {
                return Err(wrong("open slices of other types"));
            };
            if states.len() != self.layout.measures.len() {
                return Err(wrong("open slices of another number of states"));
            }
            let states = states_of(&self.layout, states).map_err(wrong)?;
            let mut end = 0;
            for run in slices.values().chunk_by(|a, b| a == b) {
                let (slice, first) = (run[0], end);
                end += run.len();
                if slice < part.notes.closed_before || self.first_kept.is_some_and(|kept| slice < kept) {
                    continue;
                }
                let open = self.open.entry(slice).or_insert_with(|| OpenSlice::new(&self.layout));
                let (mut new_ids, mut chosen) = (Vec::new(), Vec::new());
                for row in first..end {
                    let id = part.id(ids.value(row))?;
                    // Later words come first; other parts have other keys.
                    if id != GONE && open.index.get(id).is_none() {
                        new_ids.push(id);
                        chosen.push(row as u32);
                    }
                }
                open.slots(&new_ids, Tracks::default(), &mut slots);
                for (&slot, &row) in slots.iter().zip(&chosen) {
                    open.counts[slot as usize] = counts.value(row as usize);
                }
                let is_all = chosen.len() == rows.num_rows();
                let chosen = UInt32Array::from(chosen);
                for (into, column) in open.states.iter_mut().zip(&states) {
                    let taken = if is_all { column.clone() } else { take(column, &chosen, None)? };
                    into.merge(&slots, &taken)?;
                }
            }
        }
        self.open.retain(|_, open| !open.ids.is_empty());
        Ok(())
    }

    fn load_closed(&mut self, parts: &[(Numbered<'_>, &[ClosedEntry])]) -> Result<(), ExecError> {
        #[derive(Default)]
        struct Files {
            rows: usize,
            bytes: usize,
            sources: Vec<Source>,
        }
        let mut in_files: BTreeMap<i64, Files> = BTreeMap::new();
        for (part, entries) in parts {
            let mut there = HashSet::new();
            for entry in *entries {
                if !there.insert(entry.slice) || entry.slice >= part.notes.closed_before {
                    return Err(wrong(format!("slice {} is there twice, or open", entry.slice)));
                }
                if part.ours == 0 || self.first_kept.is_some_and(|kept| entry.slice < kept) {
                    continue;
                }
                let share = |n: usize| (n as u128 * part.ours as u128 / part.notes.keys as u128) as usize;
                let files = in_files.entry(entry.slice).or_default();
                files.rows += share(entry.rows);
                files.bytes += share(entry.bytes);
                files.sources.push(Source { file: entry.file.clone(), renumbering: part.renumbering.clone() });
            }
        }
        let num_keys = self.keys.len();
        let of_files = in_files.into_iter().map(|(slice, files)| {
            let Files { rows, bytes, sources } = files;
            (slice, Arc::new(ClosedSlice::in_files(&self.shared, slice, rows, bytes, sources, num_keys)))
        });
        let mut closed: BTreeMap<i64, Arc<ClosedSlice>> = of_files.collect();
        let mut seen = self.load_seen(parts)?;
        // Open in one part and closed by now in another: as if it had closed there, too.
        while let Some(mut first) = self.open.first_entry().filter(|open| *open.key() < self.closed_before) {
            let slice = *first.key();
            let mut batch: Arc<SliceBatch> = first.get_mut().batch(slice)?;
            first.remove();
            batch.ids.iter().for_each(|&id| seen[id as usize] = seen[id as usize].max(slice));
            if let Some(other) = closed.get(&slice) {
                batch = merge_batches(&self.layout, &[other.batch()?, batch], num_keys)?;
            }
            if !batch.ids.is_empty() {
                closed.insert(slice, Arc::new(ClosedSlice::in_memory(&self.shared, batch, num_keys)));
            }
        }
        let numbers: Vec<i64> = closed.keys().copied().collect();
        self.closed = Arc::new(closed.into_values().collect());
        if !numbers.is_empty() {
            let mut last = (i64::MIN, 0);
            self.last_seen = seen
                .into_iter()
                .map(|slice| {
                    if slice != last.0 {
                        last = (slice, numbers.partition_point(|&number| number <= slice) as u32);
                    }
                    last.1
                })
                .collect();
        }
        Ok(())
    }

    /// By id the last closed slice that has it.
    fn load_seen(&self, parts: &[(Numbered<'_>, &[ClosedEntry])]) -> Result<Vec<i64>, ExecError> {
        let mut seen = vec![i64::MIN; self.keys.len()];
        let mut see = |part: &Numbered<'_>, old: usize, slice: i64| -> Result<(), ExecError> {
            let id = part.id(u32::try_from(old).map_err(|_| wrong("an id without a key"))?)?;
            if id != GONE {
                seen[id as usize] = seen[id as usize].max(slice);
            }
            Ok(())
        };
        for (part, _) in parts.iter().filter(|(part, _)| part.ours > 0) {
            for section in part.saved.iter().flat_map(|saved| &saved.sections) {
                let Some(of) = section.name.strip_prefix(SEEN) else { continue };
                let Some(column) = section.rows.columns().first() else { return Err(wrong("nothing is seen")) };
                if of.is_empty() {
                    let slices =
                        column.as_primitive_opt::<Int64Type>().ok_or_else(|| wrong("slices of another type"))?;
                    for (id, &slice) in slices.values().iter().enumerate() {
                        see(part, id, slice)?;
                    }
                    continue;
                }
                let slice = of.trim_start().parse().map_err(|_| wrong(format!("section {}", section.name)))?;
                let deltas = column.as_primitive_opt::<UInt32Type>().ok_or_else(|| wrong("ids of another type"))?;
                for id in ids_of_deltas(deltas.values()).ok_or_else(|| wrong("ids do not ascend"))? {
                    see(part, id as usize, slice)?;
                }
            }
        }
        Ok(seen)
    }
}

impl StoreLayout {
    /// What of the layout decides how states are kept, as text that stays the same from version to version. What was saved under
    /// another cannot be loaded.
    pub fn fingerprint(&self) -> String {
        let keys: Vec<String> = self.keys.iter().map(|k| format!("{} {}", k.name(), k.data_type())).collect();
        let keys = if keys.is_empty() { "no keys".into() } else { format!("keys: {}", keys.join(", ")) };
        let mut lines = vec![keys];
        lines.extend(self.grid.map(|grid| format!("grid: {} us from {} us", grid.width_us, grid.phase_us)));
        lines.extend(self.measures.iter().map(|measure| measure.fingerprint()));
        lines.extend(self.sessions.map(|of| {
            let most = of.session.max_us.map_or(String::new(), |max_us| format!(" up to {max_us} us"));
            let by_time = if of.by_time { " by time" } else { "" };
            format!("sessions: gap {} us{most}{by_time}", of.session.gap_us)
        }));
        lines.join("\n")
    }
}
