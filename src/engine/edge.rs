//! The change stream of one view over a worker's part of a store.

use std::collections::{BTreeMap, BTreeSet};

use super::orders::EdgeId;
use crate::exec::slice_store::Grid;
use crate::exec::window_view::Changes;

pub(super) struct Edge {
    pub id: EdgeId,
    pub changes: Changes,
    pub retention_us: Option<i64>,
    /// Of a window.
    pub size_us: i64,
    pub is_new: bool,
    pub tells_all: bool,
    /// It is stepped only when it is asked; until then it notes what has changed, by slice.
    pub waits: bool,
    pub dirty: BTreeMap<i64, BTreeSet<u32>>,
}

impl Edge {
    /// For the step that is asked. One that is new tells all then.
    pub fn note(&mut self, dirty: &[(i64, Vec<u32>)]) {
        if !self.is_new {
            dirty.iter().for_each(|(slice, ids)| self.dirty.entry(*slice).or_default().extend(ids));
        }
    }

    /// Are there changes in windows that will not be whole once what lies before this time is forgotten?
    pub fn loses(&self, grid: Option<Grid>, forgets_us: Option<i64>) -> bool {
        let first = self.dirty.keys().next().zip(grid);
        let first_us = first.map(|(&slice, grid)| grid.start_us(slice).saturating_sub(self.size_us));
        first_us.zip(forgets_us).is_some_and(|(first_us, forgets_us)| first_us < forgets_us)
    }

    /// What has changed by slice, with what was noted; `None` if nothing was.
    pub fn noted(&mut self, dirty: &[(i64, Vec<u32>)]) -> Option<Vec<(i64, Vec<u32>)>> {
        if self.dirty.is_empty() {
            return None;
        }
        self.note(dirty);
        Some(
            std::mem::take(&mut self.dirty)
                .into_iter()
                .map(|(slice, ids)| (slice, ids.into_iter().collect()))
                .collect(),
        )
    }

    /// Follows a renumbering of the store's keys.
    pub fn renumber(&mut self, renumbered: &[u32]) {
        self.changes.renumber(renumbered);
        let kept = |id: u32| renumbered.get(id as usize).copied().filter(|&id| id != u32::MAX);
        for ids in self.dirty.values_mut() {
            *ids = ids.iter().filter_map(|&id| kept(id)).collect();
        }
    }

    pub fn bytes(&self) -> usize {
        self.changes.bytes() + self.dirty.values().map(|ids| ids.len() * size_of::<u32>()).sum::<usize>()
    }
}
