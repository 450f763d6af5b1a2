//! The slice store: aggregate states by slice and key, for every window over them.
//!
//! Time is cut on a fixed [`Grid`]; an event touches one slice, however many windows cover it. Slices that can still
//! change are open: dense columns of states, private to their owner. A slice that is final becomes a [`ClosedSlice`],
//! immutable, shared by snapshots, and in a file once it was saved. A window's value is the merge of its slices' states.
//!
//! A store without a grid has one slice, number 0, which never closes: that is an aggregation without windows.

#[path = "slice_repair.rs"]
mod repair;

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use arrow::array::{Array, ArrayRef, BooleanArray, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::FieldRef;

use super::ExecError;
use super::closed_slice::{ClosedSlice, GONE, Renumbering, Shared};
use super::id_set::IdSet;
use super::keys::{KeyDictionary, KeySnapshot};
use super::open_slice::{OpenSlice, Tracks};
use super::panes::{Closed, Panes};
use super::session_store::SessionLayout;
use super::slice_batch::{Merged, Merging, by_chunk, slices_in};
use super::slice_cache::SliceCache;
use super::state::Measure;
use super::store_saved::Saves;
use super::store_snapshot::StoreSnapshot;

/// Slices `[phase + n * width, phase + (n + 1) * width)`, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Grid {
    pub width_us: i64,
    /// In `0..width_us`.
    pub phase_us: i64,
}

impl Grid {
    /// The number of a slice is its time.
    pub const MICROSECONDS: Grid = Grid { width_us: 1, phase_us: 0 };

    #[inline]
    pub fn slice_of(&self, time_us: i64) -> i64 {
        // The shift cannot overflow for times that fit a timestamp of this century or any near it; at the very ends of the
        // range the clamp keeps the slice number right to one slice instead of wrapping round.
        time_us.saturating_sub(self.phase_us).div_euclid(self.width_us)
    }

    pub fn start_us(&self, slice: i64) -> i64 {
        slice.saturating_mul(self.width_us).saturating_add(self.phase_us)
    }

    /// Where the slice ends: the start of the next one, or the end of time.
    pub fn end_us(&self, slice: i64) -> i64 {
        self.start_us(slice.saturating_add(1))
    }
}

/// What a store keeps.
#[derive(Debug, Clone)]
pub struct StoreLayout {
    pub keys: Vec<FieldRef>,
    pub grid: Option<Grid>,
    pub measures: Vec<Measure>,
    /// Of a [`super::session_store::SessionStore`]; its grid is [`Grid::MICROSECONDS`].
    pub sessions: Option<SessionLayout>,
}

/// Raw rows on their way into a store.
#[derive(Debug, Clone)]
pub struct StoreRows {
    pub rows: usize,
    /// Slice number of each row.
    pub slices: Vec<i64>,
    /// One array per key column.
    pub keys: Vec<ArrayRef>,
    /// Arguments by measure.
    pub args: Vec<Vec<ArrayRef>>,
    /// `FILTER` by measure.
    pub filters: Vec<Option<BooleanArray>>,
    /// `None`: +1 each.
    pub weights: Option<Vec<i64>>,
}

/// Partial states on their way into a store: row `i` is the state of key `i` in slice `slices[i]`.
#[derive(Debug, Clone)]
pub struct PartialRows {
    pub slices: Vec<i64>,
    pub keys: Vec<ArrayRef>,
    pub counts: Vec<i64>,
    /// One array per measure, in the measure's Arrow form.
    pub states: Vec<ArrayRef>,
}

pub struct SliceStore {
    pub(super) layout: Arc<StoreLayout>,
    pub(super) keys: KeyDictionary,
    /// As of the last time that somebody looked.
    keys_in_use: usize,
    /// So many are not looked at.
    pub(super) few_keys: usize,
    pub(super) open: BTreeMap<i64, OpenSlice>,
    /// Ascending. Snapshots share it.
    pub(super) closed: Arc<Vec<Arc<ClosedSlice>>>,
    pub(super) shared: Shared,
    /// Every slice below this is closed.
    pub(super) closed_before: i64,
    /// By id: the number of the last closed slice that has it, counted from 1 on as they close; 0 for none. Ids past the end
    /// are in none. So it is known which keys are out of use although slices are not in memory.
    pub(super) last_seen: Vec<u32>,
    /// How many closed slices have been forgotten since that count began.
    pub(super) closed_gone: u32,
    pub(super) panes: Arc<Panes>,
    pub(super) tracks: Tracks,
    /// Slices below this one are forgotten.
    pub(super) first_kept: Option<i64>,
    pub(super) forgotten_rows: u64,
    /// If it is saved.
    pub(super) saves: Option<Saves>,
    ids: Vec<u32>,
    slots: Vec<u32>,
}

impl SliceStore {
    /// With a cache of its own.
    pub fn new(layout: Arc<StoreLayout>) -> Result<Self, ExecError> {
        Self::with_cache(layout, Arc::default())
    }

    pub fn with_cache(layout: Arc<StoreLayout>, cache: Arc<SliceCache>) -> Result<Self, ExecError> {
        Ok(SliceStore {
            keys: KeyDictionary::new(&layout.keys)?,
            keys_in_use: 0,
            few_keys: super::keys::CHUNK,
            shared: Shared { layout: layout.clone(), cache: cache.clone(), tally: Arc::default() },
            layout,
            open: BTreeMap::new(),
            closed: Arc::default(),
            closed_before: i64::MIN,
            last_seen: Vec::new(),
            closed_gone: 0,
            panes: Arc::new(Panes::new(cache)),
            tracks: Tracks::default(),
            first_kept: None,
            forgotten_rows: 0,
            saves: None,
            ids: Vec::new(),
            slots: Vec::new(),
        })
    }

    pub fn layout(&self) -> &Arc<StoreLayout> {
        &self.layout
    }

    /// From now on [`SliceStore::take_dirty`] tells what changed. What is in open slices already counts as changed.
    pub fn track_changes(&mut self) {
        self.tracks.changes = true;
        self.open.values_mut().for_each(OpenSlice::all_dirty);
    }

    /// Adds raw rows. Cost: one look-up of the key and one of the slot a row, then a loop per measure.
    pub fn apply(&mut self, rows: &StoreRows) -> Result<(), ExecError> {
        let mut ids = std::mem::take(&mut self.ids);
        ids.clear();
        self.keys.intern(&rows.keys, rows.rows, &mut ids)?;
        let result = self.by_slice(&rows.slices, &ids, |open, ids, selected, tracks, slots| {
            open.slots(ids, tracks, slots);
            let weights = rows.weights.as_deref().map(|w| select(w, selected));
            match &weights {
                None => slots.iter().for_each(|&slot| open.counts[slot as usize] += 1),
                Some(weights) => {
                    for (&slot, weight) in slots.iter().zip(weights.iter()) {
                        open.counts[slot as usize] += weight;
                    }
                }
            }
            for (measure, states) in open.states.iter_mut().enumerate() {
                let args = take_all(&rows.args[measure], selected)?;
                let filter = match (&rows.filters[measure], selected) {
                    (Some(filter), Some(selected)) => {
                        let taken = take(filter, selected, None)?;
                        Some(taken.as_any().downcast_ref::<BooleanArray>().expect("take keeps the type").clone())
                    }
                    (filter, _) => filter.clone(),
                };
                states.update(slots, &args, filter.as_ref(), weights.as_deref())?;
            }
            Ok(())
        });
        self.ids = ids;
        result
    }

    /// Adds partial states of another store with the same layout.
    pub fn merge(&mut self, rows: &PartialRows) -> Result<(), ExecError> {
        let mut ids = std::mem::take(&mut self.ids);
        ids.clear();
        self.keys.intern(&rows.keys, rows.slices.len(), &mut ids)?;
        let result = self.by_slice(&rows.slices, &ids, |open, ids, selected, tracks, slots| {
            open.slots(ids, tracks, slots);
            let counts = select(&rows.counts, selected);
            for (&slot, count) in slots.iter().zip(counts.iter()) {
                open.counts[slot as usize] += count;
            }
            for (states, column) in open.states.iter_mut().zip(&rows.states) {
                match selected {
                    None => states.merge(slots, column)?,
                    Some(selected) => states.merge(slots, &take(column, selected, None)?)?,
                }
            }
            Ok(())
        });
        self.ids = ids;
        result
    }

    /// Calls `add` once per slice with its ids and, unless that is every row, the rows selected.
    fn by_slice(
        &mut self,
        slices: &[i64],
        ids: &[u32],
        mut add: impl FnMut(&mut OpenSlice, &[u32], Option<&UInt32Array>, Tracks, &mut Vec<u32>) -> Result<(), ExecError>,
    ) -> Result<(), ExecError> {
        let mut slots = std::mem::take(&mut self.slots);
        let result = self.add_by_slice(slices, ids, &mut slots, &mut add);
        self.slots = slots;
        result
    }

    fn add_by_slice(
        &mut self,
        slices: &[i64],
        ids: &[u32],
        slots: &mut Vec<u32>,
        add: &mut AddToSlice<'_>,
    ) -> Result<(), ExecError> {
        let Some(&first) = slices.first() else { return Ok(()) };
        let tracks = self.tracks;
        if slices.iter().all(|&slice| slice == first) {
            return match self.open_slice(first, slices.len())? {
                Some(open) => add(open, ids, None, tracks, slots),
                None => Ok(()),
            };
        }
        let mut by_slice: BTreeMap<i64, Vec<u32>> = BTreeMap::new();
        let mut row = 0;
        while row < slices.len() {
            let end = row + slices[row..].iter().take_while(|&&slice| slice == slices[row]).count();
            by_slice.entry(slices[row]).or_default().extend(row as u32..end as u32);
            row = end;
        }
        for (slice, rows) in by_slice {
            let selected = UInt32Array::from(rows);
            let ids: Vec<u32> = selected.values().iter().map(|&row| ids[row as usize]).collect();
            if let Some(open) = self.open_slice(slice, ids.len())? {
                add(open, &ids, Some(&selected), tracks, slots)?;
            }
        }
        Ok(())
    }

    /// The open slice, or `None` if it has been forgotten (its rows are counted).
    fn open_slice(&mut self, slice: i64, rows: usize) -> Result<Option<&mut OpenSlice>, ExecError> {
        if self.first_kept.is_some_and(|first| slice < first) {
            self.forgotten_rows += rows as u64;
            return Ok(None);
        }
        if slice < self.closed_before {
            return Err(ExecError::Invariant(format!("a row came for slice {slice}, which is final")));
        }
        Ok(Some(self.open.entry(slice).or_insert_with(|| OpenSlice::new(&self.layout))))
    }

    /// Closes the slices that end at or before `final_until_us`: nothing changes them any more.
    pub fn close(&mut self, final_until_us: i64) -> Result<(), ExecError> {
        let Some(grid) = self.layout.grid else { return Ok(()) };
        let mut closed_before = grid.slice_of(final_until_us);
        while let Some(mut first) = self.open.first_entry() {
            let slice = *first.key();
            if slice >= closed_before {
                break;
            }
            if !first.get().dirty.is_empty() {
                closed_before = slice;
                break;
            }
            let batch = first.get_mut().batch(slice)?;
            first.remove();
            if !batch.ids.is_empty() {
                let closed = ClosedSlice::in_memory(&self.shared, batch.clone(), self.keys.len());
                Arc::make_mut(&mut self.closed).push(Arc::new(closed));
                self.saw(&batch.ids);
            }
        }
        self.closed_before = self.closed_before.max(closed_before);
        Ok(())
    }

    /// Notes that the closed slice that came last has these ids, which ascend.
    fn saw(&mut self, ids: &[u32]) {
        if self.closed_gone > u32::MAX / 2 {
            let gone = std::mem::take(&mut self.closed_gone);
            self.last_seen.iter_mut().for_each(|seen| *seen = seen.saturating_sub(gone));
        }
        let Some(&last) = ids.last() else { return };
        if self.last_seen.len() <= last as usize {
            self.last_seen.resize(self.keys.len(), 0);
        }
        let number = self.closed_gone + self.closed.len() as u32;
        ids.iter().for_each(|&id| self.last_seen[id as usize] = number);
    }

    /// Drops slices that begin before `horizon_us`; rows for them are counted and left out from now on.
    pub fn forget(&mut self, horizon_us: i64) -> Result<Option<Vec<u32>>, ExecError> {
        let Some(grid) = self.layout.grid else { return Ok(None) };
        let first = grid.slice_of(horizon_us.saturating_add(grid.width_us - 1));
        if self.first_kept.is_some_and(|kept| kept >= first) {
            return Ok(None);
        }
        self.first_kept = Some(first);
        let gone = self.closed.partition_point(|s| s.slice < first);
        Arc::make_mut(&mut self.closed).drain(..gone);
        self.closed_gone += gone as u32;
        self.open = self.open.split_off(&first);
        self.panes.forget(first);
        self.compact()
    }

    /// Rebuilds the dictionary once at most half of it is in use, so that keys no slice names do not stay. Returns the new
    /// id of each old one, `u32::MAX` for those that went.
    fn compact(&mut self) -> Result<Option<Vec<u32>>, ExecError> {
        // Who is in use is looked at when there may be twice as many keys as were in use the last time.
        if self.layout.keys.is_empty() || self.keys.len() < 2 * self.keys_in_use.max(self.few_keys) {
            return Ok(None);
        }
        let mut live = IdSet::new(self.keys.len());
        let seen = (0..).zip(&self.last_seen).filter(|(_, seen)| **seen > self.closed_gone);
        seen.for_each(|(id, _)| live.insert(id));
        self.open.values().flat_map(|s| &s.ids).for_each(|&id| live.insert(id));
        live.seal();
        self.keys_in_use = live.len();
        if live.len() * 2 > self.keys.len() {
            return Ok(None);
        }
        let old = self.keys.snapshot()?;
        let mut keys = KeyDictionary::new(&self.layout.keys)?;
        let mut fresh = Vec::new();
        for ids in by_chunk(&live.ids()) {
            keys.intern(&old.take(ids)?, ids.len(), &mut fresh)?;
        }
        self.keys = keys;
        // Interned in ascending order, so that the new id is the rank and sorted slices stay sorted.
        let mut renumbered = vec![GONE; old.len];
        for id in live.ids() {
            renumbered[id as usize] = live.rank(id);
        }
        self.renumber(Arc::new(renumbered.clone()), live.len());
        Ok(Some(renumbered))
    }

    /// Gives the keys other ids, in the same order; no slice has one that goes. Snapshots that were taken go on with the old
    /// ones, and so do saves: what is given to be saved from now on is other slices, and all of them.
    fn renumber(&mut self, renumbering: Renumbering, num_keys: usize) {
        self.panes = Arc::new(Panes::new(self.shared.cache.clone()));
        // Files that have a renumbering share it with others.
        let mut composed: HashMap<*const Vec<u32>, Renumbering> = HashMap::new();
        let mut compose = |before: Option<&Renumbering>| match before {
            None => renumbering.clone(),
            Some(before) => {
                let after = || {
                    let after = |id: &u32| renumbering.get(*id as usize).copied().unwrap_or(GONE);
                    Arc::new(before.iter().map(after).collect())
                };
                composed.entry(Arc::as_ptr(before)).or_insert_with(after).clone()
            }
        };
        for slice in Arc::make_mut(&mut self.closed) {
            *slice = Arc::new(slice.renumbered(&self.shared, &renumbering, num_keys, &mut compose));
        }
        self.open.values_mut().for_each(|open| open.renumber(&renumbering));
        let mut last_seen = vec![0; num_keys];
        for (&id, &seen) in renumbering.iter().zip(&self.last_seen) {
            if id != GONE {
                last_seen[id as usize] = seen;
            }
        }
        self.last_seen = last_seen;
        if let Some(saves) = &mut self.saves {
            saves.renumbered = true;
        }
    }

    /// What changed since the last call: ids by slice. Empty unless [`SliceStore::track_changes`].
    pub fn take_dirty(&mut self) -> Vec<(i64, Vec<u32>)> {
        let mut changed = Vec::new();
        for (&slice, open) in &mut self.open {
            if !open.dirty.is_empty() {
                changed.push((slice, open.take_dirty()));
            }
        }
        changed
    }

    /// What the slices `range` say of `ids` (ascending): counts and outputs by position in `ids`, zero where nothing is.
    pub fn look_up(&self, range: Range<i64>, ids: &[u32], measures: &[usize]) -> Result<Merged, ExecError> {
        let mut merged = Merging::new(&self.layout, ids.to_vec(), measures);
        let closed = self.closed_slices();
        if measures.iter().all(|&m| self.layout.measures[m].is_exact()) {
            for batch in self.panes.cover(&closed, range.clone())? {
                merged.add_looked_up(&batch.piece(measures), false)?;
            }
        } else {
            // One after the other, so that what comes out depends on what the slices say alone, not on which of them are closed:
            // it is what will be taken back, also after a restart.
            for slice in slices_in(&self.closed, &range) {
                merged.add_looked_up(&slice.batch()?.piece(measures), false)?;
            }
        }
        for (_, open) in self.open.range(range) {
            let (mut at, mut slots) = (Vec::new(), Vec::new());
            for (position, &id) in ids.iter().enumerate() {
                if let Some(slot) = open.index.get(id) {
                    at.push(position as u32);
                    slots.push(slot);
                }
            }
            for (&position, &slot) in at.iter().zip(&slots) {
                merged.counts[position as usize] += open.counts[slot as usize];
            }
            for (states, &measure) in merged.states.iter_mut().zip(measures) {
                states.merge(&at, &open.states[measure].take(&slots)?)?;
            }
        }
        merged.finish()
    }

    pub(super) fn closed_slices(&self) -> Closed<'_> {
        Closed {
            layout: &self.layout,
            num_keys: self.keys.len(),
            first_kept: self.first_kept.unwrap_or(i64::MIN),
            before: self.closed_before,
            slices: &self.closed,
        }
    }

    pub fn snapshot(&mut self) -> Result<StoreSnapshot, ExecError> {
        let mut open = Vec::with_capacity(self.open.len());
        for (&slice, states) in &mut self.open {
            let batch = states.batch(slice)?;
            if !batch.ids.is_empty() {
                open.push(batch);
            }
        }
        Ok(StoreSnapshot {
            layout: self.layout.clone(),
            keys: self.keys.snapshot()?,
            closed: self.closed.clone(),
            open,
            first_kept: self.first_kept,
            closed_before: self.closed_before,
            panes: self.panes.clone(),
        })
    }

    /// Takes everything out, as partial states: what a sender that aggregates before the exchange sends.
    pub fn drain(&mut self) -> Result<Vec<PartialRows>, ExecError> {
        let snapshot = self.snapshot()?;
        let mut all = Vec::new();
        for slice in snapshot.slices(i64::MIN..i64::MAX) {
            let slice = slice.batch()?;
            let mut at = 0;
            for ids in by_chunk(&slice.ids) {
                all.push(PartialRows {
                    slices: vec![slice.slice; ids.len()],
                    keys: snapshot.keys.take(ids)?,
                    counts: slice.counts[at..at + ids.len()].to_vec(),
                    states: slice.states.iter().map(|s| s.slice(at, ids.len())).collect(),
                });
                at += ids.len();
            }
        }
        self.open.clear();
        self.closed = Arc::default();
        self.panes = Arc::new(Panes::new(self.shared.cache.clone()));
        (self.last_seen, self.closed_gone) = (Vec::new(), 0);
        self.keys = KeyDictionary::new(&self.layout.keys)?;
        Ok(all)
    }

    /// Memory: closed slices count while they are there.
    pub fn bytes(&self) -> usize {
        let open: usize = self.open.values().map(OpenSlice::bytes).sum();
        let closed = self.shared.tally.load(Relaxed) + self.last_seen.capacity() * 4;
        self.keys.bytes() + closed + open + self.panes.bytes()
    }

    /// How many closed slices are in a file, and their bytes when they are in memory.
    pub fn in_files(&self) -> (usize, usize) {
        let in_files = self.closed.iter().filter(|slice| slice.file().is_some());
        in_files.fold((0, 0), |(slices, bytes), slice| (slices + 1, bytes + slice.bytes()))
    }

    /// (slice number, rows, bytes in memory, closed) of every slice; closed ones may be in files only.
    pub fn slices(&self) -> impl Iterator<Item = (i64, usize, usize, bool)> {
        let closed = self.closed.iter().map(|s| (s.slice, s.rows(), s.bytes(), true));
        closed.chain(self.open.iter().map(|(&slice, s)| (slice, s.ids.len(), s.bytes(), false)))
    }

    pub fn first_kept(&self) -> Option<i64> {
        self.first_kept
    }

    /// Rows that came for slices already forgotten.
    pub fn forgotten_rows(&self) -> u64 {
        self.forgotten_rows
    }

    pub fn num_keys(&self) -> usize {
        self.keys.len()
    }

    pub fn keys(&mut self) -> Result<KeySnapshot, ExecError> {
        self.keys.snapshot()
    }
}

type AddToSlice<'a> =
    dyn FnMut(&mut OpenSlice, &[u32], Option<&UInt32Array>, Tracks, &mut Vec<u32>) -> Result<(), ExecError> + 'a;

fn select<'a>(values: &'a [i64], selected: Option<&UInt32Array>) -> std::borrow::Cow<'a, [i64]> {
    match selected {
        None => values.into(),
        Some(rows) => rows.values().iter().map(|&row| values[row as usize]).collect::<Vec<_>>().into(),
    }
}

fn take_all(columns: &[ArrayRef], selected: Option<&UInt32Array>) -> Result<Vec<ArrayRef>, ExecError> {
    match selected {
        None => Ok(columns.to_vec()),
        Some(rows) => Ok(columns.iter().map(|c| take(c, rows, None)).collect::<Result<_, _>>()?),
    }
}
