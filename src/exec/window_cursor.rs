//! Many windows in a row, each from the one before it.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::ExecError;
use super::id_set::IdSet;
use super::panes::Step;
use super::slice_batch::{Merged, Merging};
use super::store_snapshot::StoreSnapshot;

/// Merges ranges of slices that move on and overlap, one after the other, in place: the slices that come are added, those
/// that go are subtracted. Where that is not possible (states that cannot be subtracted, ranges that do not overlap) each
/// range is merged by itself.
pub struct WindowCursor {
    snapshot: StoreSnapshot,
    measures: Vec<usize>,
    only: Option<Arc<IdSet>>,
    /// Of the measures those that can be subtracted, and the others. No `moving`: nothing is to be gained.
    moving: Vec<usize>,
    others: Vec<usize>,
    run: Option<Run>,
    /// How far the next run looks ahead into slices that are in files: farther each time.
    ahead: i64,
}

struct Run {
    range: Range<i64>,
    /// Ids of all slices below this have a slot.
    known_before: i64,
    ids: IdSet,
    merging: Merging,
}

impl WindowCursor {
    /// `only`: for these keys, if given.
    pub fn new(snapshot: StoreSnapshot, measures: Vec<usize>, only: Option<Arc<IdSet>>) -> Self {
        // Few keys are found by binary search, which beats going over the slices.
        let few = only.as_ref().is_some_and(|only| only.len() <= StoreSnapshot::FEW_KEYS);
        let (moving, others) = measures.iter().partition(|&&m| !few && snapshot.layout.measures[m].invertible());
        WindowCursor { snapshot, measures, only, moving, others, run: None, ahead: 0 }
    }

    pub fn snapshot(&self) -> &StoreSnapshot {
        &self.snapshot
    }

    /// Whether it reads all keys.
    pub fn reads_all(&self) -> bool {
        self.only.is_none()
    }

    pub fn measures(&self) -> &[usize] {
        &self.measures
    }

    /// What the slices of `range` say; `next`: the range that will be asked for after it. Keys with no rows are left out.
    pub fn merge(&mut self, range: Range<i64>, next: Option<&Range<i64>>) -> Result<Merged, ExecError> {
        let moves_on = self.run.as_ref().is_some_and(|run| {
            (run.range.start..run.range.end).contains(&range.start)
                && (run.range.end..=run.known_before).contains(&range.end)
        });
        let overlaps = next.is_some_and(|next| (range.start..range.end).contains(&next.start) && next.end >= range.end);
        let moved = if moves_on {
            self.move_on(range.clone())?
        } else if let Some(next) = next.filter(|_| overlaps && !self.moving.is_empty()) {
            self.begin(range.clone(), next.end)?
        } else {
            self.run = None;
            return self.snapshot.merge(range, &self.measures, self.only.as_deref());
        };
        if self.others.is_empty() {
            return Ok(moved);
        }
        let merged = self.snapshot.merge(range, &self.others, self.only.as_deref())?;
        self.joined(moved, merged)
    }

    /// What the two kinds of measures say of the same range, in the order of the measures.
    fn joined(&self, moved: Merged, merged: Merged) -> Result<Merged, ExecError> {
        if moved.ids != merged.ids {
            return Err(ExecError::Invariant("the keys of a range depend on how it is merged".into()));
        }
        let moved_columns = self.moving.iter().zip(moved.outputs.iter().zip(&moved.overflowed));
        let merged_columns = self.others.iter().zip(merged.outputs.iter().zip(&merged.overflowed));
        let columns: HashMap<&usize, _> = moved_columns.chain(merged_columns).collect();
        let (outputs, overflowed) = self.measures.iter().map(|m| (columns[m].0.clone(), *columns[m].1)).unzip();
        Ok(Merged { ids: moved.ids, counts: moved.counts, outputs, overflowed })
    }

    /// A new run. It has slots for the keys of one more window's length, so that it lasts until the windows no longer overlap
    /// with the first, and holds at most twice the keys; fewer where slices would have to be read for it that may not be asked
    /// for.
    fn begin(&mut self, range: Range<i64>, next_end: i64) -> Result<Merged, ExecError> {
        let most = range.end.saturating_add(range.end.saturating_sub(range.start));
        self.ahead = next_end.saturating_sub(range.end).max(self.ahead.saturating_mul(2));
        let least = range.end.saturating_add(self.ahead).min(most);
        let in_file = self.snapshot.slices(least..most).find(|slice| !slice.is_in_memory());
        let known_before = in_file.map_or(most, |slice| slice.number());
        let steps = self.snapshot.steps(range.clone(), &self.moving)?;
        // A total that slices are taken away from knows keys of those, too.
        let mut ids = IdSet::new(self.snapshot.keys.len);
        steps.iter().flat_map(Step::ids).for_each(|&id| ids.insert(id));
        // One after the other: they need not all be in memory at once.
        for slice in self.snapshot.slices(range.start..known_before) {
            slice.batch()?.ids.iter().for_each(|&id| ids.insert(id));
        }
        ids.seal();
        if let Some(only) = &self.only {
            ids.keep_only(only);
            ids.seal();
        }
        let merging = Merging::new(&self.snapshot.layout, ids.ids(), &self.moving);
        let mut run = Run { range: range.start..range.start, known_before, ids, merging };
        for step in &steps {
            run.merging.add(&step.piece(&self.moving), &run.ids, self.only.is_none(), step.taken_away)?;
        }
        run.range = range;
        let merged = run.merging.finish()?;
        self.run = Some(run);
        merged.without_empty()
    }

    fn move_on(&mut self, range: Range<i64>) -> Result<Merged, ExecError> {
        let run = self.run.as_mut().expect("asked before");
        let all = self.only.is_none();
        let come = self.snapshot.slices(run.range.end..range.end).map(|s| (s, false));
        let gone = self.snapshot.slices(run.range.start..range.start).map(|s| (s, true));
        for (slice, taken_away) in come.chain(gone) {
            run.merging.add(&slice.batch()?.piece(&self.moving), &run.ids, all, taken_away)?;
        }
        run.range = range;
        run.merging.finish()?.without_empty()
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, Int64Array};
    use arrow::datatypes::{DataType, Field, Int64Type, Schema};

    use super::*;
    use crate::exec::slice_store::{Grid, SliceStore, StoreLayout, StoreRows};
    use crate::exec::state::Measure;
    use crate::planner::stream_plan::{Call, Function};

    /// Counts of key 1 in slice 0, and of key 2 in every slice.
    fn counts() -> StoreSnapshot {
        let output = Arc::new(Field::new("n", DataType::Int64, true));
        let call = Call { function: Function::Count, args: Vec::new(), filter: None, distinct: false, output };
        let layout = StoreLayout {
            sessions: None,
            keys: vec![Arc::new(Field::new("k", DataType::Int64, true))],
            grid: Some(Grid { width_us: 1, phase_us: 0 }),
            measures: vec![Measure::new(&call, &Schema::empty(), false).unwrap()],
        };
        let mut store = SliceStore::new(Arc::new(layout)).unwrap();
        let keys: Vec<i64> = (0..60).map(|_| 2).chain([1]).collect();
        let rows = StoreRows {
            rows: keys.len(),
            slices: (0..60).chain([0]).collect(),
            keys: vec![Arc::new(Int64Array::from(keys))],
            args: vec![Vec::new()],
            filters: vec![None],
            weights: None,
        };
        store.apply(&rows).unwrap();
        store.close(60).unwrap();
        store.snapshot().unwrap()
    }

    #[test]
    fn a_run_begins_with_the_total_of_a_window_that_had_other_keys() {
        let snapshot = counts();
        let before = snapshot.merge(0..40, &[0], None).unwrap();
        assert_eq!(before.ids.len(), 2);
        let mut cursor = WindowCursor::new(snapshot, vec![0], None);
        for start in 1..9 {
            let merged = cursor.merge(start..start + 40, Some(&(start + 1..start + 41))).unwrap();
            assert_eq!(merged.outputs[0].as_primitive::<Int64Type>().values(), &[40]);
        }
    }
}
