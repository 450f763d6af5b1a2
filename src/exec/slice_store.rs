//! The slice store: aggregate states by slice and key, for every window over them.
//!
//! Time is cut on a fixed [`Grid`]; an event touches one slice, however many windows cover it. Slices that can still
//! change are open: dense columns of states, private to their owner. A slice that is final becomes a [`SliceBatch`],
//! immutable and shared by snapshots. A window's value is the merge of its slices' states.
//!
//! A store without a grid has one slice, number 0, which never closes: that is an aggregation without windows.

#[path = "slice_repair.rs"]
mod repair;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::FieldRef;

use super::ExecError;
use super::id_set::{IdIndex, IdSet};
use super::keys::{KeyDictionary, KeySnapshot};
use super::panes::{Closed, Panes};
use super::session_store::SessionLayout;
use super::slice_batch::{Merged, Merging, SliceBatch, by_chunk};
use super::state::{Measure, States};
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

struct OpenSlice {
    index: IdIndex,
    ids: Vec<u32>,
    counts: Vec<i64>,
    states: Vec<Box<dyn States>>,
    /// Slots changed since the last [`SliceStore::take_dirty`], if anybody asks.
    dirty: Vec<u32>,
    is_dirty: Vec<bool>,
    /// The immutable form, until the next change.
    cached: Option<Arc<SliceBatch>>,
}

pub struct SliceStore {
    layout: Arc<StoreLayout>,
    keys: KeyDictionary,
    /// As of the last time that somebody looked.
    keys_in_use: usize,
    open: BTreeMap<i64, OpenSlice>,
    /// Ascending. Snapshots share it.
    closed: Arc<Vec<Arc<SliceBatch>>>,
    closed_bytes: usize,
    /// Every slice below this is closed.
    closed_before: i64,
    panes: Arc<Panes>,
    tracks_changes: bool,
    /// Slices below this one are forgotten.
    first_kept: Option<i64>,
    forgotten_rows: u64,
    ids: Vec<u32>,
    slots: Vec<u32>,
}

impl OpenSlice {
    fn new(layout: &StoreLayout) -> Self {
        OpenSlice {
            index: IdIndex::default(),
            ids: Vec::new(),
            counts: Vec::new(),
            states: layout.measures.iter().map(Measure::create).collect(),
            dirty: Vec::new(),
            is_dirty: Vec::new(),
            cached: None,
        }
    }

    /// Finds the slot of each id, making new ones.
    fn slots(&mut self, ids: &[u32], track: bool, slots: &mut Vec<u32>) {
        slots.clear();
        slots.reserve(ids.len());
        for &id in ids {
            let fresh = self.ids.len() as u32;
            let slot = self.index.get_or_insert(id, fresh);
            if slot == fresh {
                self.ids.push(id);
            }
            slots.push(slot);
        }
        self.counts.resize(self.ids.len(), 0);
        for states in &mut self.states {
            states.resize(self.ids.len());
        }
        if track {
            self.is_dirty.resize(self.ids.len(), false);
            for &slot in slots.iter() {
                if !std::mem::replace(&mut self.is_dirty[slot as usize], true) {
                    self.dirty.push(slot);
                }
            }
        }
        self.cached = None;
    }

    fn batch(&mut self, slice: i64) -> Result<Arc<SliceBatch>, ExecError> {
        if let Some(batch) = &self.cached {
            return Ok(batch.clone());
        }
        let mut order: Vec<u32> = (0..self.ids.len() as u32).filter(|&slot| self.counts[slot as usize] != 0).collect();
        order.sort_unstable_by_key(|&slot| self.ids[slot as usize]);
        let in_order = order.len() == self.ids.len() && order.windows(2).all(|w| w[0] < w[1]);
        let order = UInt32Array::from(order);
        let mut states = Vec::with_capacity(self.states.len());
        for column in &self.states {
            let column = column.states()?;
            states.push(if in_order { column } else { take(&column, &order, None)? });
        }
        let ids = order.values().iter().map(|&slot| self.ids[slot as usize]).collect();
        let counts = order.values().iter().map(|&slot| self.counts[slot as usize]).collect();
        let batch = Arc::new(SliceBatch::new(slice, ids, counts, states));
        self.cached = Some(batch.clone());
        Ok(batch)
    }

    fn bytes(&self) -> usize {
        let states: usize = self.states.iter().map(|s| s.bytes()).sum();
        states + self.index.bytes() + self.ids.capacity() * 4 + self.counts.capacity() * 8 + self.dirty.capacity() * 4
    }
}

impl SliceStore {
    pub fn new(layout: Arc<StoreLayout>) -> Result<Self, ExecError> {
        Ok(SliceStore {
            keys: KeyDictionary::new(&layout.keys)?,
            keys_in_use: 0,
            layout,
            open: BTreeMap::new(),
            closed: Arc::default(),
            closed_bytes: 0,
            closed_before: i64::MIN,
            panes: Arc::default(),
            tracks_changes: false,
            first_kept: None,
            forgotten_rows: 0,
            ids: Vec::new(),
            slots: Vec::new(),
        })
    }

    pub fn layout(&self) -> &Arc<StoreLayout> {
        &self.layout
    }

    /// From now on [`SliceStore::take_dirty`] tells what changed. What is in open slices already counts as changed.
    pub fn track_changes(&mut self) {
        self.tracks_changes = true;
        for open in self.open.values_mut() {
            open.dirty = (0..open.ids.len() as u32).collect();
            open.is_dirty = vec![true; open.ids.len()];
        }
    }

    /// Adds raw rows. Cost: one look-up of the key and one of the slot a row, then a loop per measure.
    pub fn apply(&mut self, rows: &StoreRows) -> Result<(), ExecError> {
        let mut ids = std::mem::take(&mut self.ids);
        ids.clear();
        self.keys.intern(&rows.keys, rows.rows, &mut ids)?;
        let result = self.by_slice(&rows.slices, &ids, |open, ids, selected, track, slots| {
            open.slots(ids, track, slots);
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
        let result = self.by_slice(&rows.slices, &ids, |open, ids, selected, track, slots| {
            open.slots(ids, track, slots);
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
        mut add: impl FnMut(&mut OpenSlice, &[u32], Option<&UInt32Array>, bool, &mut Vec<u32>) -> Result<(), ExecError>,
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
        let track = self.tracks_changes;
        if slices.iter().all(|&slice| slice == first) {
            return match self.open_slice(first, slices.len())? {
                Some(open) => add(open, ids, None, track, slots),
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
                add(open, &ids, Some(&selected), track, slots)?;
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
                self.closed_bytes += batch.bytes;
                Arc::make_mut(&mut self.closed).push(batch);
            }
        }
        self.closed_before = self.closed_before.max(closed_before);
        Ok(())
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
        self.closed_bytes -= self.closed[..gone].iter().map(|s| s.bytes).sum::<usize>();
        Arc::make_mut(&mut self.closed).drain(..gone);
        self.open = self.open.split_off(&first);
        self.panes.forget(first);
        self.compact()
    }

    /// Rebuilds the dictionary once at most half of it is in use, so that keys no slice names do not stay. Returns the new
    /// id of each old one, `u32::MAX` for those that went.
    fn compact(&mut self) -> Result<Option<Vec<u32>>, ExecError> {
        // Who is in use is looked at when there may be twice as many keys as were in use the last time.
        if self.layout.keys.is_empty() || self.keys.len() < 2 * self.keys_in_use.max(super::keys::CHUNK) {
            return Ok(None);
        }
        let mut live = IdSet::new(self.keys.len());
        self.closed.iter().flat_map(|s| &s.ids).for_each(|&id| live.insert(id));
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
        let mut renumbered = vec![u32::MAX; old.len];
        for id in live.ids() {
            renumbered[id as usize] = live.rank(id);
        }
        // Snapshots that were taken go on with the old numbers.
        self.panes = Arc::default();
        for slice in Arc::make_mut(&mut self.closed) {
            let ids = slice.ids.iter().map(|&id| renumbered[id as usize]).collect();
            *slice = Arc::new(SliceBatch::new(slice.slice, ids, slice.counts.clone(), slice.states.clone()));
        }
        for open in self.open.values_mut() {
            open.index = IdIndex::default();
            for (slot, id) in open.ids.iter_mut().enumerate() {
                *id = renumbered[*id as usize];
                open.index.get_or_insert(*id, slot as u32);
            }
            open.cached = None;
        }
        Ok(Some(renumbered))
    }

    /// What changed since the last call: ids by slice. Empty unless [`SliceStore::track_changes`].
    pub fn take_dirty(&mut self) -> Vec<(i64, Vec<u32>)> {
        let mut changed = Vec::new();
        for (&slice, open) in &mut self.open {
            if open.dirty.is_empty() {
                continue;
            }
            let slots = std::mem::take(&mut open.dirty);
            slots.iter().for_each(|&slot| open.is_dirty[slot as usize] = false);
            changed.push((slice, slots.iter().map(|&slot| open.ids[slot as usize]).collect()));
        }
        changed
    }

    /// What the slices `range` say of `ids` (ascending): counts and outputs by position in `ids`, zero where nothing is.
    pub fn look_up(&self, range: Range<i64>, ids: &[u32], measures: &[usize]) -> Result<Merged, ExecError> {
        let mut merged = Merging::new(&self.layout, ids.to_vec(), measures);
        let closed = Closed {
            layout: &self.layout,
            num_keys: self.keys.len(),
            first_kept: self.first_kept.unwrap_or(i64::MIN),
            before: self.closed_before,
            slices: &self.closed,
        };
        for batch in self.panes.cover(&closed, range.clone())? {
            merged.add_looked_up(&batch.piece(measures), false)?;
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

    pub fn snapshot(&mut self) -> Result<StoreSnapshot, ExecError> {
        self.panes.limit(self.closed_bytes);
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
        self.closed_bytes = 0;
        self.panes = Arc::default();
        self.keys = KeyDictionary::new(&self.layout.keys)?;
        Ok(all)
    }

    pub fn bytes(&self) -> usize {
        let open: usize = self.open.values().map(OpenSlice::bytes).sum();
        self.keys.bytes() + self.closed_bytes + open + self.panes.bytes()
    }

    /// (slice number, rows, bytes, closed) of every slice.
    pub fn slices(&self) -> impl Iterator<Item = (i64, usize, usize, bool)> {
        let closed = self.closed.iter().map(|s| (s.slice, s.ids.len(), s.bytes, true));
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
    dyn FnMut(&mut OpenSlice, &[u32], Option<&UInt32Array>, bool, &mut Vec<u32>) -> Result<(), ExecError> + 'a;

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
