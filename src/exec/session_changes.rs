//! A session view's output as deltas.

use std::collections::BTreeMap;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::row::{OwnedRow, RowConverter, SortField};

use super::rows::batch_of;
use super::session_batch::SessionBatch;
use super::session_store::{DirtyKey, Found, SessionStore};
use super::slice_batch::by_chunk;
use super::window_view::{Shown, WindowView, Within};
use super::{Delta, ExecError};
use crate::planner::stream_plan::Emit;

/// Remembers what it last said of each session that can still change. A session that grows is taken back and added again; so
/// are two that merge.
///
/// State: one row per open session. Cost per tick: the sessions that changed.
pub struct SessionChanges {
    view: WindowView,
    /// By key and start.
    emitted: BTreeMap<(u32, i64), OwnedRow>,
    converter: RowConverter,
}

impl SessionChanges {
    pub fn new(view: WindowView) -> Result<Self, ExecError> {
        let fields = view.schema.fields().iter().map(|f| SortField::new(f.data_type().clone())).collect();
        Ok(SessionChanges { view, emitted: BTreeMap::new(), converter: RowConverter::new(fields)? })
    }

    /// All that the view shows now, for a consumer that begins here. Call it once, before the first [`SessionChanges::step`].
    pub fn begin(&mut self, store: &mut SessionStore, shown: &Shown) -> Result<Delta, ExecError> {
        let snapshot = store.snapshot()?;
        let mut whole = Vec::new();
        let all: Vec<usize> = (0..self.view.schema.fields().len()).collect();
        for batch in &snapshot.closed {
            for (rows, columns) in snapshot.read(batch, &self.view, shown, &Within::default(), None, &all)? {
                whole.push(batch_of(&self.view.schema, columns, rows)?);
            }
        }
        if self.view.emit == Emit::OnUpdate {
            for (columns, keys) in self.rows_of(store, &snapshot.open)? {
                let rows = self.converter.convert_columns(&columns)?;
                self.emitted.extend(keys.into_iter().zip(rows.iter().map(|row| row.owned())));
                let rows = columns.first().map_or(0, |column| column.len());
                whole.push(batch_of(&self.view.schema, columns, rows)?);
            }
        }
        Ok(Delta::inserts(arrow::compute::concat_batches(&self.view.schema, &whole)?))
    }

    /// For a consumer that has been told all of this before: what changes from here on is told.
    pub fn resume(&mut self, store: &mut SessionStore) -> Result<(), ExecError> {
        if self.view.emit == Emit::OnUpdate {
            let open = store.snapshot()?.open;
            for (columns, keys) in self.rows_of(store, &open)? {
                let rows = self.converter.convert_columns(&columns)?;
                self.emitted.extend(keys.into_iter().zip(rows.iter().map(|row| row.owned())));
            }
        }
        Ok(())
    }

    /// What changed in open sessions. Nothing for EMIT ON WINDOW CLOSE.
    pub fn step(&mut self, store: &mut SessionStore, dirty: &[DirtyKey]) -> Result<Delta, ExecError> {
        let (mut rows, mut weights) = (Vec::new(), Vec::new());
        if self.view.emit == Emit::OnUpdate && !dirty.is_empty() {
            let mut found = Found::default();
            let mut before: BTreeMap<(u32, i64), OwnedRow> = BTreeMap::new();
            for &key in dirty {
                let (from_us, to_us) = store.touched(key, &mut found);
                let old: Vec<(u32, i64)> =
                    self.emitted.range((key.id, from_us)..=(key.id, to_us)).map(|(at, _)| *at).collect();
                before.extend(old.into_iter().filter_map(|at| self.emitted.remove_entry(&at)));
            }
            let now = store.evaluate(&found)?;
            for (columns, keys) in self.rows_of(store, &now)? {
                for (row, at) in self.converter.convert_columns(&columns)?.iter().zip(keys) {
                    let row = row.owned();
                    match before.remove(&at) {
                        Some(old) if old == row => {}
                        old => {
                            weights.extend(old.iter().map(|_| -1).chain([1]));
                            rows.extend(old.into_iter().chain([row.clone()]));
                        }
                    }
                    self.emitted.insert(at, row);
                }
            }
            weights.extend(before.values().map(|_| -1));
            rows.extend(before.into_values());
        }
        let columns = self.converter.convert_rows(rows.iter().map(OwnedRow::row))?;
        Ok(Delta::weighted(batch_of(&self.view.schema, columns, weights.len())?, weights))
    }

    /// What sessions that have become final ([`SessionStore::close`]) do: EMIT ON WINDOW CLOSE shows them, once.
    pub fn close(&mut self, store: &mut SessionStore, closed: &SessionBatch) -> Result<Delta, ExecError> {
        if self.view.emit == Emit::OnUpdate {
            for at in closed.ids.iter().copied().zip(closed.starts_us.iter().copied()) {
                self.emitted.remove(&at);
            }
            return Ok(Delta::empty(self.view.schema.clone()));
        }
        let mut whole = Vec::new();
        for (columns, keys) in self.rows_of(store, closed)? {
            whole.push(batch_of(&self.view.schema, columns, keys.len())?);
        }
        Ok(Delta::inserts(arrow::compute::concat_batches(&self.view.schema, &whole)?))
    }

    /// Follows a renumbering of the store's keys.
    pub fn renumber(&mut self, renumbered: &[u32]) {
        let new = |id: u32| renumbered.get(id as usize).copied().filter(|&id| id != u32::MAX);
        let emitted = std::mem::take(&mut self.emitted);
        self.emitted = emitted.into_iter().filter_map(|((id, us), row)| Some(((new(id)?, us), row))).collect();
    }

    pub fn bytes(&self) -> usize {
        self.emitted.values().map(|row| row.as_ref().len() + 64).sum()
    }

    /// The view's columns of sessions in any order, with (key, start) of each.
    fn rows_of(&self, store: &mut SessionStore, batch: &SessionBatch) -> Result<Vec<Columns>, ExecError> {
        let all: Vec<usize> = (0..self.view.schema.fields().len()).collect();
        let keys = store.keys()?;
        let rows: Vec<u32> = (0..batch.len() as u32).collect();
        let mut at = 0;
        let mut out = Vec::new();
        for ids in by_chunk(&batch.ids) {
            let rows = &rows[at..at + ids.len()];
            let starts = batch.starts_us[at..at + ids.len()].iter().copied();
            at += ids.len();
            let named: Vec<(u32, i64)> = ids.iter().copied().zip(starts).collect();
            let columns = batch.columns(&keys, &self.view, rows, &all)?;
            out.extend(columns.into_iter().map(|(_, columns)| (columns, named.clone())));
        }
        Ok(out)
    }
}

type Columns = (Vec<ArrayRef>, Vec<(u32, i64)>);

/// One delta of several that follow each other.
pub fn joined(first: Delta, second: Delta) -> Result<Delta, ExecError> {
    if second.is_empty() {
        return Ok(first);
    }
    if first.is_empty() {
        return Ok(second);
    }
    let rows: RecordBatch = arrow::compute::concat_batches(&first.rows.schema(), [&first.rows, &second.rows])?;
    let weights =
        (0..first.num_rows()).map(|row| first.weight(row)).chain((0..second.num_rows()).map(|row| second.weight(row)));
    let weights = weights.collect();
    Ok(Delta::weighted(rows, weights))
}
