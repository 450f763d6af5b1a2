//! What changes in a view that is regrouped, as deltas for whatever stands downstream.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::row::{OwnedRow, RowConverter, SortField};

use super::regroup::{Regrouped, first_kept};
use super::slice_batch::SliceBatch;
use super::store_snapshot::{Slice, StoreSnapshot};
use super::window_view::{Shown, WindowView, Within};
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
    /// By the window's end.
    told: BTreeMap<i64, HashSet<OwnedRow>>,
    /// By part: where the open slices began when last looked at, and what was in them.
    seen: Vec<(i64, HashMap<i64, Arc<SliceBatch>>)>,
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
            seen: Vec::new(),
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
        let windows = match self.view.emit {
            Emit::OnUpdate => self.changed_windows(regrouped, parts, shown),
            Emit::OnWindowClose => self.closed_windows(parts, shown),
        };
        self.final_until_us = shown.final_until_us.or(self.final_until_us);
        let (mut rows, mut weights) = (Vec::new(), Vec::new());
        for end in windows {
            let now = self.rows(regrouped, parts, end)?;
            let before = self.told.remove(&end).unwrap_or_default();
            for (row, weight) in before.difference(&now).map(|r| (r, -1)).chain(now.difference(&before).map(|r| (r, 1)))
            {
                rows.push(row.clone());
                weights.push(weight);
            }
            self.told.insert(end, now);
        }
        // What cannot change any more need not be remembered; what retention forgets goes without a retraction.
        self.told.retain(|&end, _| !self.view.is_done(shown, end));
        let columns = self.converter.convert_rows(rows.iter().map(OwnedRow::row))?;
        Ok(Delta::weighted(RecordBatch::try_new(self.view.schema.clone(), columns)?, weights))
    }

    /// For a consumer that has all that the view shows now. Call it instead of the first [`RegroupedChanges::step`]; only the
    /// windows that can still change are read.
    pub fn resume(
        &mut self,
        regrouped: &mut Regrouped,
        parts: &[StoreSnapshot],
        shown: &Shown,
    ) -> Result<(), ExecError> {
        if self.view.emit == Emit::OnUpdate {
            let windows = self.changed_windows(regrouped, parts, shown);
            for end in windows.into_iter().filter(|&end| !self.view.is_done(shown, end)) {
                let now = self.rows(regrouped, parts, end)?;
                self.told.insert(end, now);
            }
        }
        self.final_until_us = shown.final_until_us;
        Ok(())
    }

    /// Ends of the windows over slices that have changed since the last call.
    fn changed_windows(&mut self, regrouped: &Regrouped, parts: &[StoreSnapshot], shown: &Shown) -> BTreeSet<i64> {
        let grid = regrouped.plan().layout.grid;
        let kept_us = grid.zip(first_kept(parts)).map(|(grid, first)| grid.start_us(first));
        let mut windows = BTreeSet::new();
        let before = std::mem::take(&mut self.seen);
        for (part, snapshot) in parts.iter().enumerate() {
            let (from, before) = before.get(part).map_or((i64::MIN, None), |(from, slices)| (*from, Some(slices)));
            let same =
                |slice: &Slice<'_>| before.and_then(|b| b.get(&slice.number())).is_some_and(|before| slice.is(before));
            for slice in snapshot.slices(from..i64::MAX).filter(|slice| !same(slice)) {
                let over = self.view.windows_over(grid, slice.number());
                windows.extend(over.filter(|&end| self.view.shows(kept_us, shown, end)));
            }
            let open = snapshot.open.iter().map(|slice| (slice.slice, slice.clone())).collect();
            self.seen.push((snapshot.closed_before, open));
        }
        if self.view.shows_empty {
            windows.insert(0);
        }
        windows
    }

    /// Ends of the windows that have become final since the last call.
    fn closed_windows(&self, parts: &[StoreSnapshot], shown: &Shown) -> BTreeSet<i64> {
        let Some(final_until_us) = shown.final_until_us else { return BTreeSet::new() };
        let after = self.final_until_us.map_or(i64::MIN, |us| us.saturating_add(1));
        let within = Within { ends: after..final_until_us.saturating_add(1), ..Within::default() };
        parts.iter().flat_map(|part| self.view.windows(part, shown, &within)).collect()
    }

    fn rows(
        &self,
        regrouped: &mut Regrouped,
        parts: &[StoreSnapshot],
        end_us: i64,
    ) -> Result<HashSet<OwnedRow>, ExecError> {
        let range = self.view.slices_of(regrouped.plan().layout.grid, end_us);
        let snapshot = regrouped.snapshot(parts, range, None)?;
        let all: Vec<usize> = (0..self.view.schema.fields().len()).collect();
        let mut rows = HashSet::new();
        let mut cursor = self.view.cursor(snapshot, None, &all);
        for (_, columns) in self.view.read(&mut cursor, end_us, None, &all)? {
            rows.extend(self.converter.convert_columns(&columns)?.iter().map(|row| row.owned()));
        }
        Ok(rows)
    }
}
