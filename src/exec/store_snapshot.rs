//! A store as readers see it: immutable, as of one tick.

use std::ops::Range;
use std::sync::Arc;

use super::ExecError;
use super::closed_slice::ClosedSlice;
use super::id_set::IdSet;
use super::keys::KeySnapshot;
use super::panes::{Closed, Panes, Run, Step, runs};
use super::slice_batch::{Merged, Merging, SliceBatch, ids_of, slices_in};
use super::slice_store::StoreLayout;

/// A store as of one tick.
#[derive(Clone)]
pub struct StoreSnapshot {
    pub layout: Arc<StoreLayout>,
    pub keys: KeySnapshot,
    /// Ascending by slice; the same in every later snapshot, until they are forgotten.
    pub closed: Arc<Vec<Arc<ClosedSlice>>>,
    /// Ascending by slice, all behind the closed.
    pub open: Vec<Arc<SliceBatch>>,
    /// Windows that begin before this slice are no longer whole.
    pub first_kept: Option<i64>,
    /// Slices below this are closed, with rows or without.
    pub closed_before: i64,
    pub panes: Arc<Panes>,
}

/// One of few parts of a range.
#[derive(Clone, Copy)]
pub enum Part<'a> {
    Closed(Run<'a>),
    Open(&'a Arc<SliceBatch>),
}

/// A slice of a snapshot, in memory or not.
#[derive(Debug, Clone, Copy)]
pub enum Slice<'a> {
    Closed(&'a Arc<ClosedSlice>),
    Open(&'a Arc<SliceBatch>),
}

impl Slice<'_> {
    pub fn number(&self) -> i64 {
        match self {
            Slice::Closed(closed) => closed.slice,
            Slice::Open(open) => open.slice,
        }
    }

    /// Its rows, which are read from a file if they are not in memory.
    pub fn batch(&self) -> Result<Arc<SliceBatch>, ExecError> {
        match self {
            Slice::Closed(closed) => closed.batch(),
            Slice::Open(open) => Ok(Arc::clone(open)),
        }
    }

    pub fn is_in_memory(&self) -> bool {
        match self {
            Slice::Closed(closed) => closed.is_in_memory(),
            Slice::Open(_) => true,
        }
    }

    /// Whether it is still what it was when it was open.
    pub fn is(&self, before: &Arc<SliceBatch>) -> bool {
        match self {
            Slice::Closed(closed) => closed.is(before),
            Slice::Open(open) => Arc::ptr_eq(open, before),
        }
    }
}

impl StoreSnapshot {
    /// The slices of a range that have rows, ascending.
    pub fn slices(&self, range: Range<i64>) -> impl Iterator<Item = Slice<'_>> {
        let closed = slices_in(&self.closed, &range).iter().map(Slice::Closed);
        closed.chain(slices_in(&self.open, &range).iter().map(Slice::Open))
    }

    /// Of so few keys each is found by binary search.
    pub const FEW_KEYS: usize = 64;

    fn closed(&self) -> Closed<'_> {
        Closed {
            layout: &self.layout,
            num_keys: self.keys.len,
            first_kept: self.first_kept.unwrap_or(i64::MIN),
            before: self.closed_before,
            slices: &self.closed,
        }
    }

    fn closed_part(&self, range: &Range<i64>) -> Range<i64> {
        range.start..range.end.min(self.closed_before).max(range.start)
    }

    fn open_steps(&self, range: &Range<i64>) -> impl Iterator<Item = Step> {
        slices_in(&self.open, range).iter().cloned().map(Step::add)
    }

    /// What to merge for a range: panes or a total for what is closed, and the open slices.
    pub fn steps(&self, range: Range<i64>, measures: &[usize]) -> Result<Vec<Step>, ExecError> {
        let mut steps = self.panes.steps(&self.closed(), self.closed_part(&range), measures)?;
        steps.extend(self.open_steps(&range));
        Ok(steps)
    }

    /// Parts that together are the slices of the range, few and large: panes of the closed ones, and the open ones. Nothing is
    /// read or put together yet.
    pub fn parts(&self, range: Range<i64>) -> impl Iterator<Item = Part<'_>> {
        let closed = runs(&self.closed(), &self.closed_part(&range)).into_iter().map(Part::Closed);
        closed.chain(slices_in(&self.open, &range).iter().map(Part::Open))
    }

    pub fn batch(&self, part: Part<'_>) -> Result<Arc<SliceBatch>, ExecError> {
        match part {
            Part::Closed(run) => self.panes.batch(&self.closed(), run),
            Part::Open(open) => Ok(Arc::clone(open)),
        }
    }

    /// Merges the slices of a range, for the keys in `only` if given; keys with no rows are left out. Cost: the rows of the
    /// panes that cover it, or of the last reader's total and what has changed since; a binary search per pane and key where
    /// `only` holds few.
    pub fn merge(&self, range: Range<i64>, measures: &[usize], only: Option<&IdSet>) -> Result<Merged, ExecError> {
        if let Some(only) = only.filter(|only| only.len() <= Self::FEW_KEYS) {
            let mut merging = Merging::new(&self.layout, only.ids(), measures);
            for step in self.steps(range, measures)? {
                merging.add_looked_up(&step.piece(measures), step.taken_away)?;
            }
            return merging.finish()?.without_empty();
        }
        let closed_part = self.closed_part(&range);
        let closed = self.panes.steps(&self.closed(), closed_part.clone(), measures)?;
        let open: Vec<Step> = self.open_steps(&range).collect();
        let mut present = ids_of(closed.iter().chain(&open).map(Step::ids), self.keys.len);
        if let Some(only) = only {
            present.keep_only(only);
            present.seal();
        }
        let all = only.is_none();
        let mut merging = Merging::new(&self.layout, present.ids(), measures);
        for step in &closed {
            merging.add(&step.piece(measures), &present, all, step.taken_away)?;
        }
        if all && closed.len() > 2 {
            self.panes.keep_total(closed_part.clone(), measures, merging.batch(closed_part.start)?);
        }
        for step in &open {
            merging.add(&step.piece(measures), &present, all, false)?;
        }
        merging.finish()?.without_empty()
    }
}
