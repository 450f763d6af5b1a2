//! A store as readers see it: immutable, as of one tick.

use std::ops::Range;
use std::sync::Arc;

use super::ExecError;
use super::id_set::IdSet;
use super::keys::KeySnapshot;
use super::panes::{Closed, Panes, Step};
use super::slice_batch::{Merged, Merging, SliceBatch, ids_of, slices_in};
use super::slice_store::StoreLayout;

/// A store as of one tick.
#[derive(Clone)]
pub struct StoreSnapshot {
    pub layout: Arc<StoreLayout>,
    pub keys: KeySnapshot,
    /// Ascending by slice; the same in every later snapshot, until they are forgotten.
    pub closed: Arc<Vec<Arc<SliceBatch>>>,
    /// Ascending by slice, all behind the closed.
    pub open: Vec<Arc<SliceBatch>>,
    /// Windows that begin before this slice are no longer whole.
    pub first_kept: Option<i64>,
    /// Slices below this are closed, with rows or without.
    pub closed_before: i64,
    pub panes: Arc<Panes>,
}

impl StoreSnapshot {
    /// The slices of a range that have rows, ascending.
    pub fn slices(&self, range: Range<i64>) -> impl Iterator<Item = &Arc<SliceBatch>> {
        slices_in(&self.closed, &range).iter().chain(slices_in(&self.open, &range))
    }

    /// Merges the slices of a range, for the keys in `only` if given; keys with no rows are left out. Cost: the rows of the
    /// panes that cover it, or of the last reader's total and what has changed since; a binary search per pane and key where
    /// `only` holds few.
    pub fn merge(&self, range: Range<i64>, measures: &[usize], only: Option<&IdSet>) -> Result<Merged, ExecError> {
        const FEW: usize = 64;
        let closed = Closed {
            layout: &self.layout,
            num_keys: self.keys.len,
            first_kept: self.first_kept.unwrap_or(i64::MIN),
            before: self.closed_before,
            slices: &self.closed,
        };
        let closed_range = range.start..range.end.min(self.closed_before).max(range.start);
        let open: Vec<Step> = slices_in(&self.open, &range).iter().cloned().map(Step::add).collect();
        let few = only.filter(|only| only.len() <= FEW);
        let steps = self.panes.steps(&closed, closed_range.clone(), measures)?;
        if let Some(only) = few {
            let mut merging = Merging::new(&self.layout, only.ids(), measures);
            for step in steps.iter().chain(&open) {
                merging.add_looked_up(&step.piece(measures), step.taken_away)?;
            }
            return merging.finish()?.without_empty();
        }
        let mut present = ids_of(steps.iter().chain(&open).map(Step::ids), self.keys.len);
        if let Some(only) = only {
            present.keep_only(only);
            present.seal();
        }
        let all = only.is_none();
        let mut merging = Merging::new(&self.layout, present.ids(), measures);
        for step in &steps {
            merging.add(&step.piece(measures), &present, all, step.taken_away)?;
        }
        if all && steps.len() > 2 {
            self.panes.keep_total(closed_range.clone(), measures, merging.batch(closed_range.start)?);
        }
        for step in &open {
            merging.add(&step.piece(measures), &present, all, false)?;
        }
        merging.finish()?.without_empty()
    }
}
