//! A view of windows as a table: its rows are merged from slices, one window after the other.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::ArrayRef;
use parking_lot::Mutex;

use super::pushdown::{Physical, keys_where};
use super::view_table::{ViewPart, ViewTable};
use crate::exec::ExecError;
use crate::exec::id_set::IdSet;
use crate::exec::regroup::Regrouped;
use crate::exec::store_snapshot::StoreSnapshot;
use crate::exec::window_cursor::WindowCursor;
use crate::exec::window_view::{Shown, WindowView, Within};

pub type WindowTable = ViewTable<Part>;

/// A part of a store, or a whole one, and how it is read.
#[derive(Clone)]
pub struct Part {
    pub view: WindowView,
    pub rows: Rows,
}

/// Where the groups of a [`Part`] are.
#[derive(Clone)]
pub enum Rows {
    Store(StoreSnapshot),
    /// They are made of the finer ones of all parts of a store.
    Regrouped {
        parts: Arc<[StoreSnapshot]>,
        by: Arc<Mutex<Regrouped>>,
    },
}

/// The keys that a scan is about.
#[derive(Clone)]
pub enum Only {
    /// `None`: all.
    Ids(Option<Arc<IdSet>>),
    /// Those for which these are true, worked out when the first window is read; ids are of the numbering that stands beside
    /// them.
    Where(Vec<Physical>, Arc<Mutex<Option<KnownIds>>>),
}

/// Ids, all if `None`, and the numbering that they are of.
type KnownIds = (u64, Option<Arc<IdSet>>);

/// What is to be read of a part.
struct Scan {
    part: Part,
    only: Only,
    shown: Shown,
    within: Within,
    needed: Vec<usize>,
}

impl ViewPart for Part {
    type Only = Only;

    fn view(&self) -> &WindowView {
        &self.view
    }

    fn only(&self, key_filters: Vec<Physical>) -> Result<Only, ExecError> {
        Ok(match &self.rows {
            Rows::Store(snapshot) => Only::Ids(keys_where(&snapshot.layout, &snapshot.keys, &key_filters)?),
            Rows::Regrouped { .. } => Only::Where(key_filters, Arc::default()),
        })
    }

    fn read(
        self,
        only: Only,
        shown: Shown,
        within: Within,
        needed: Vec<usize>,
    ) -> impl Iterator<Item = Result<Vec<(usize, Vec<ArrayRef>)>, ExecError>> + Send + 'static {
        // A regrouped snapshot is of one window.
        let one_for_all = matches!(self.rows, Rows::Store(_));
        let scan = Scan { part: self, only, shown, within, needed };
        let windows = scan.windows();
        let mut kept = None;
        (0..windows.len()).map(move |i| {
            let mut cursor = match kept.take() {
                Some(cursor) => cursor,
                None => scan.cursor(windows[i])?,
            };
            let next_us = windows.get(i + 1).filter(|_| one_for_all).copied();
            let batches = scan.part.view.read(&mut cursor, windows[i], next_us, &scan.needed);
            kept = one_for_all.then_some(cursor);
            batches
        })
    }
}

impl Scan {
    fn windows(&self) -> Vec<i64> {
        match &self.part.rows {
            Rows::Store(snapshot) => self.part.view.windows(snapshot, &self.shown, &self.within),
            Rows::Regrouped { parts, .. } => {
                let of_part = |part| self.part.view.windows(part, &self.shown, &self.within);
                parts.iter().flat_map(of_part).collect::<BTreeSet<_>>().into_iter().collect()
            }
        }
    }

    /// What the window that ends at `end_us` is read from, with the keys wanted of it.
    fn cursor(&self, end_us: i64) -> Result<WindowCursor, ExecError> {
        let (snapshot, only) = match (&self.part.rows, &self.only) {
            (Rows::Store(snapshot), Only::Ids(only)) => (snapshot.clone(), only.clone()),
            (Rows::Regrouped { parts, by }, Only::Where(filters, known)) => {
                let mut by = by.lock();
                let layout = by.plan().layout.clone();
                let (numbering, keys) = by.keys(parts)?;
                let mut known = known.lock();
                let only = match &*known {
                    Some((of, only)) if *of == numbering => only.clone(),
                    _ => keys_where(&layout, &keys, filters)?,
                };
                *known = Some((numbering, only.clone()));
                let range = self.part.view.slices_of(layout.grid, end_us);
                (by.snapshot(parts, range, only.as_deref())?, only)
            }
            _ => return Err(ExecError::Invariant("a scan looks for keys where they are not".into())),
        };
        Ok(self.part.view.cursor(snapshot, only, &self.needed))
    }
}
