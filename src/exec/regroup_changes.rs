//! What changes in a view that is regrouped, as deltas for whatever stands downstream.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::row::{OwnedRow, RowConverter, SortField};

use super::regroup::{Regrouped, first_kept};
use super::slice_store::{SliceBatch, StoreSnapshot};
use super::window_view::{Shown, WindowView};
use super::{Delta, ExecError};
use crate::planner::stream_plan::Emit;

/// A regrouped view's output as deltas: reads the windows over slices that have changed, and tells how their rows differ from
/// what it said before.
///
/// State: the rows of each window that can still change. Cost per tick: the groups of every window over a changed slice, times
/// the slices of a window.
pub struct RegroupedChanges {
    view: WindowView,
    converter: RowConverter,
    told: BTreeMap<i64, HashSet<OwnedRow>>,
    /// The slices as they were when last looked at, by part and number.
    seen: HashMap<(usize, i64), Arc<SliceBatch>>,
    /// Windows that end at or before this have been told for good.
    final_until_us: Option<i64>,
}

impl RegroupedChanges {
    pub fn new(view: WindowView) -> Result<Self, ExecError> {
        let fields = view.schema.fields().iter().map(|f| SortField::new(f.data_type().clone())).collect();
        Ok(RegroupedChanges {
            view,
            converter: RowConverter::new(fields)?,
            told: BTreeMap::new(),
            seen: HashMap::new(),
            final_until_us: None,
        })
    }

    pub fn bytes(&self) -> usize {
        self.told.values().flatten().map(|row| row.as_ref().len() + 48).sum()
    }

    /// The change since the last call; at the first, all that the view shows.
    pub fn step(
        &mut self,
        regrouped: &mut Regrouped,
        parts: &[StoreSnapshot],
        shown: &Shown,
    ) -> Result<Delta, ExecError> {
        let mut windows = match self.view.emit {
            Emit::OnUpdate => self.changed_windows(regrouped, parts, shown),
            Emit::OnWindowClose => self.closed_windows(regrouped, parts, shown),
        };
        // The slices under what is final may be numbered anew, which changes nothing.
        if let (Some(window), Some(final_until_us)) = (self.view.window, self.final_until_us) {
            windows.retain(|start| start.saturating_add(window.size_us) > final_until_us);
        }
        self.final_until_us = shown.final_until_us.or(self.final_until_us);
        let (mut rows, mut weights) = (Vec::new(), Vec::new());
        for start in windows {
            let now = self.rows(regrouped, parts, start)?;
            let before = self.told.remove(&start).unwrap_or_default();
            for (row, weight) in before.difference(&now).map(|r| (r, -1)).chain(now.difference(&before).map(|r| (r, 1)))
            {
                rows.push(row.clone());
                weights.push(weight);
            }
            self.told.insert(start, now);
        }
        // What cannot change any more need not be remembered; what retention forgets goes without a retraction.
        if let Some(window) = self.view.window {
            let done =
                |end: i64| shown.final_until_us.is_some_and(|f| end <= f) || shown.horizon_us.is_some_and(|h| end <= h);
            self.told.retain(|start, _| !done(start.saturating_add(window.size_us)));
        }
        let columns = self.converter.convert_rows(rows.iter().map(OwnedRow::row))?;
        Ok(Delta::weighted(RecordBatch::try_new(self.view.schema.clone(), columns)?, weights))
    }

    fn changed_windows(&mut self, regrouped: &Regrouped, parts: &[StoreSnapshot], shown: &Shown) -> BTreeSet<i64> {
        let grid = regrouped.plan().layout.grid;
        let kept_us = grid.zip(first_kept(parts)).map(|(grid, first)| grid.start_us(first));
        let mut windows = BTreeSet::new();
        let mut seen = HashMap::with_capacity(self.seen.len());
        for (part, snapshot) in parts.iter().enumerate() {
            for slice in &snapshot.slices {
                let key = (part, slice.slice);
                if !self.seen.get(&key).is_some_and(|before| Arc::ptr_eq(before, slice)) {
                    let over = self.view.windows_over(grid, slice.slice);
                    windows.extend(over.filter(|&start| self.view.shows(kept_us, shown, start)));
                }
                seen.insert(key, slice.clone());
            }
        }
        if self.view.shows_empty {
            windows.insert(0);
        }
        self.seen = seen;
        windows
    }

    /// The windows that are final.
    fn closed_windows(&self, regrouped: &Regrouped, parts: &[StoreSnapshot], shown: &Shown) -> BTreeSet<i64> {
        if self.final_until_us.is_some() && self.final_until_us == shown.final_until_us {
            return BTreeSet::new();
        }
        let grid = regrouped.plan().layout.grid;
        let kept_us = grid.zip(first_kept(parts)).map(|(grid, first)| grid.start_us(first));
        let slices = parts.iter().flat_map(|part| &part.slices);
        let over = slices.flat_map(|slice| self.view.windows_over(grid, slice.slice));
        over.filter(|start| self.view.shows(kept_us, shown, *start)).collect()
    }

    fn rows(
        &self,
        regrouped: &mut Regrouped,
        parts: &[StoreSnapshot],
        start: i64,
    ) -> Result<HashSet<OwnedRow>, ExecError> {
        let range = self.view.slices_of(regrouped.plan().layout.grid, start);
        let snapshot = regrouped.snapshot(parts, range, None)?;
        let all: Vec<usize> = (0..self.view.schema.fields().len()).collect();
        let mut rows = HashSet::new();
        for (_, columns) in self.view.read(&snapshot, start, None, &all)? {
            rows.extend(self.converter.convert_columns(&columns)?.iter().map(|row| row.owned()));
        }
        Ok(rows)
    }
}
