//! A slice that can still change.

use std::sync::Arc;

use arrow::array::UInt32Array;
use arrow::compute::take;

use super::ExecError;
use super::id_set::IdIndex;
use super::slice_batch::SliceBatch;
use super::slice_store::StoreLayout;
use super::state::{Measure, States};

/// The states of one slice's keys, by slot: dense columns, private to their owner.
pub(super) struct OpenSlice {
    pub index: IdIndex,
    pub ids: Vec<u32>,
    pub counts: Vec<i64>,
    pub states: Vec<Box<dyn States>>,
    /// Slots changed since they were last asked for, if anybody asks.
    pub dirty: Vec<u32>,
    is_dirty: Vec<bool>,
    /// A bit for each slot: changed since it was last saved.
    unsaved: Vec<u64>,
    /// The immutable form, until the next change.
    cached: Option<Arc<SliceBatch>>,
}

/// What is noted of a slot that changes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tracks {
    pub changes: bool,
    pub saves: bool,
}

impl OpenSlice {
    pub fn new(layout: &StoreLayout) -> Self {
        OpenSlice {
            index: IdIndex::default(),
            ids: Vec::new(),
            counts: Vec::new(),
            states: layout.measures.iter().map(Measure::create).collect(),
            dirty: Vec::new(),
            is_dirty: Vec::new(),
            unsaved: Vec::new(),
            cached: None,
        }
    }

    /// Finds the slot of each id, making new ones.
    pub fn slots(&mut self, ids: &[u32], tracks: Tracks, slots: &mut Vec<u32>) {
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
        if tracks.changes {
            self.is_dirty.resize(self.ids.len(), false);
            for &slot in slots.iter() {
                if !std::mem::replace(&mut self.is_dirty[slot as usize], true) {
                    self.dirty.push(slot);
                }
            }
        }
        if tracks.saves {
            // A bit a slot: those of a million lie in the second cache level, and no branch depends on them.
            self.unsaved.resize(self.ids.len().div_ceil(64), 0);
            for &slot in slots.iter() {
                self.unsaved[slot as usize / 64] |= 1 << (slot % 64);
            }
        }
        self.cached = None;
    }

    /// Everything counts as changed for [`OpenSlice::take_dirty`].
    pub fn all_dirty(&mut self) {
        self.dirty = (0..self.ids.len() as u32).collect();
        self.is_dirty = vec![true; self.ids.len()];
    }

    /// The ids that have changed since the last call.
    pub fn take_dirty(&mut self) -> Vec<u32> {
        let slots = std::mem::take(&mut self.dirty);
        slots.iter().for_each(|&slot| self.is_dirty[slot as usize] = false);
        slots.iter().map(|&slot| self.ids[slot as usize]).collect()
    }

    /// The slots that have changed since the last call, ascending.
    pub fn take_unsaved(&mut self) -> Vec<u32> {
        let mut slots = Vec::new();
        for (i, word) in self.unsaved.iter_mut().enumerate() {
            let mut rest = std::mem::take(word);
            while rest != 0 {
                slots.push((i * 64) as u32 + rest.trailing_zeros());
                rest &= rest - 1;
            }
        }
        slots
    }

    /// Gives its keys other ids.
    pub fn renumber(&mut self, renumbering: &[u32]) {
        self.index = IdIndex::default();
        for (slot, id) in self.ids.iter_mut().enumerate() {
            *id = renumbering[*id as usize];
            self.index.get_or_insert(*id, slot as u32);
        }
        self.cached = None;
    }

    pub fn batch(&mut self, slice: i64) -> Result<Arc<SliceBatch>, ExecError> {
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

    pub fn bytes(&self) -> usize {
        let states: usize = self.states.iter().map(|s| s.bytes()).sum();
        let notes = self.dirty.capacity() * 4 + self.unsaved.capacity() * 8;
        states + self.index.bytes() + self.ids.capacity() * 4 + self.counts.capacity() * 8 + notes
    }
}
