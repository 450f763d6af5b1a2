//! The edge of the slice store: where windows become rows.
//!
//! [`WindowView`] says how one aggregation of a plan is read from a store; [`WindowView::read`] gives its rows as of a
//! snapshot, [`Changes`] gives them as deltas for whatever stands downstream.

#[path = "window_correction.rs"]
mod correction;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, SchemaRef};
use arrow::row::{OwnedRow, RowConverter, SortField};
use serde::{Deserialize, Serialize};

use super::id_set::IdSet;
use super::keys::KeySnapshot;
use super::overflows::Overflows;
use super::slice_batch::{Merged, by_chunk};
use super::slice_store::{Grid, SliceStore, StoreLayout};
use super::store_snapshot::StoreSnapshot;
use super::window::{Windows, windows_of};
use super::window_cursor::WindowCursor;
use super::{Delta, ExecError};
use crate::planner::stream_plan::{Emit, Window};

/// A group column of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Index of the store's key column.
    Key(usize),
    WindowStart,
    WindowEnd,
}

/// How one aggregation is read from a store.
#[derive(Debug, Clone)]
pub struct WindowView {
    /// `None`: no windows, the store has no grid.
    pub window: Option<Window>,
    pub group: Vec<Group>,
    /// The store's measures in the order of the output.
    pub measures: Vec<usize>,
    /// Group columns, then measures.
    pub schema: SchemaRef,
    pub emit: Emit,
    /// An aggregation without GROUP BY has one row even over no input. True in the one part that is to give it.
    pub shows_empty: bool,
    pub overflows: Arc<Overflows>,
}

/// Which windows a view shows, by event time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shown {
    /// Windows that end at or before this are forgotten (`retention`).
    pub horizon_us: Option<i64>,
    /// Nothing changes before this time. EMIT ON WINDOW CLOSE shows windows that end at or before it.
    pub final_until_us: Option<i64>,
}

impl Shown {
    /// Without the windows that end at or before a floor, which a temporal filter above has taken back.
    pub fn above(self, floor_us: Option<i64>) -> Shown {
        Shown { horizon_us: self.horizon_us.max(floor_us), ..self }
    }
}

/// The windows that a reader asks for.
#[derive(Debug, Clone)]
pub struct Within {
    pub starts: Range<i64>,
    pub ends: Range<i64>,
}

impl Default for Within {
    /// All.
    fn default() -> Self {
        Within { starts: i64::MIN..i64::MAX, ends: i64::MIN..i64::MAX }
    }
}

impl WindowView {
    /// The slices that make up the window that ends at `end_us`.
    pub fn slices_of(&self, grid: Option<Grid>, end_us: i64) -> Range<i64> {
        match (self.window, grid) {
            (Some(window), Some(grid)) => grid.slice_of(window.start_of(end_us))..grid.slice_of(end_us),
            _ => 0..1,
        }
    }

    /// Ends of the windows that cover a slice, ascending. What contains its first moment covers all of it: the width
    /// divides the window and the phases agree.
    pub(super) fn windows_over(&self, grid: Option<Grid>, slice: i64) -> Windows {
        match (self.window, grid) {
            (Some(window), Some(grid)) => windows_of(grid.start_us(slice), window),
            _ => Windows::once(0),
        }
    }

    pub(super) fn shows(&self, first_kept_us: Option<i64>, shown: &Shown, end_us: i64) -> bool {
        let Some(window) = self.window else { return true };
        let whole = first_kept_us.is_none_or(|kept| window.start_of(end_us) >= kept);
        let kept = shown.horizon_us.is_none_or(|horizon| end_us > horizon);
        let closed = self.emit == Emit::OnUpdate || shown.final_until_us.is_some_and(|f| end_us <= f);
        whole && kept && closed
    }

    /// Nothing changes the window that ends at `end_us` any more, or it is forgotten.
    pub(super) fn is_done(&self, shown: &Shown, end_us: i64) -> bool {
        let is_past = |bound_us: Option<i64>| bound_us.is_some_and(|bound_us| end_us <= bound_us);
        self.window.is_some() && (is_past(shown.final_until_us) || is_past(shown.horizon_us))
    }

    /// Ends of all windows that may hold rows and are shown, ascending.
    pub fn windows(&self, snapshot: &StoreSnapshot, shown: &Shown, within: &Within) -> Vec<i64> {
        let grid = snapshot.layout.grid;
        let first_kept_us = kept_from(grid, snapshot.first_kept);
        let slices = match (self.window, grid) {
            (Some(window), Some(grid)) => {
                // A window touches nothing before its start and nothing past its end.
                let from = within.starts.start.max(within.ends.start.saturating_sub(window.size_us));
                let to = within.ends.end.min(within.starts.end.saturating_add(window.size_us));
                grid.slice_of(from)..grid.slice_of(to).saturating_add(1)
            }
            _ => i64::MIN..i64::MAX,
        };
        let mut ends: Vec<i64> = Vec::new();
        for slice in snapshot.slices(slices) {
            let mut windows = self.windows_over(grid, slice.number());
            if let Some(&last) = ends.last() {
                windows.skip_past(last);
            }
            ends.extend(windows.filter(|&end| self.within(within, end) && self.shows(first_kept_us, shown, end)));
        }
        if self.shows_empty && ends.is_empty() {
            ends.push(0);
        }
        ends
    }

    /// What [`WindowView::read`] reads `outputs` from; `only`: of these keys.
    pub fn cursor(&self, snapshot: StoreSnapshot, only: Option<Arc<IdSet>>, outputs: &[usize]) -> WindowCursor {
        WindowCursor::new(snapshot, outputs.iter().filter_map(|&o| self.measure_of(o)).collect(), only)
    }

    fn within(&self, within: &Within, end_us: i64) -> bool {
        let Some(window) = self.window else { return true };
        within.ends.contains(&end_us) && within.starts.contains(&window.start_of(end_us))
    }

    /// The rows of the window that ends at `end_us`, in batches of at most [`super::keys::CHUNK`] rows, ascending by id, each with its
    /// number of rows. `outputs` selects columns of the schema. `next_us`: the window that will be asked for next of this
    /// cursor, which [`WindowView::cursor`] gives.
    pub fn read(
        &self,
        cursor: &mut WindowCursor,
        end_us: i64,
        next_us: Option<i64>,
        outputs: &[usize],
    ) -> Result<Vec<(usize, Vec<ArrayRef>)>, ExecError> {
        let grid = cursor.snapshot().layout.grid;
        let slices = |end_us| self.slices_of(grid, end_us);
        let mut merged = cursor.merge(slices(end_us), next_us.map(slices).as_ref())?;
        let snapshot = cursor.snapshot();
        let asked = outputs.iter().filter(|&&output| output >= self.group.len());
        asked.zip(&merged.overflowed).for_each(|(&output, &n)| self.overflows.add(n, self.schema.field(output)));
        if self.shows_empty && merged.ids.is_empty() && cursor.reads_all() {
            merged = self.empty_group(&snapshot.layout, cursor.measures())?;
            return Ok(vec![(1, self.columns(&[], 1, end_us, &merged.outputs, outputs)?)]);
        }
        let mut batches = Vec::new();
        let mut at = 0;
        for ids in by_chunk(&merged.ids) {
            let keys = snapshot.keys.take(ids)?;
            let values: Vec<ArrayRef> = merged.outputs.iter().map(|c| c.slice(at, ids.len())).collect();
            batches.push((ids.len(), self.columns(&keys, ids.len(), end_us, &values, outputs)?));
            at += ids.len();
        }
        Ok(batches)
    }

    fn measure_of(&self, output: usize) -> Option<usize> {
        output.checked_sub(self.group.len()).map(|call| self.measures[call])
    }

    fn empty_group(&self, layout: &StoreLayout, measures: &[usize]) -> Result<Merged, ExecError> {
        let outputs = measures
            .iter()
            .map(|&m| {
                let mut states = layout.measures[m].create();
                states.resize(1);
                states.finish()
            })
            .collect::<Result<_, _>>()?;
        Ok(Merged { ids: vec![0], counts: vec![0], outputs, overflowed: vec![0; measures.len()] })
    }

    /// Puts output columns together; `values` holds the measures among `outputs`, in their order.
    fn columns(
        &self,
        keys: &[ArrayRef],
        rows: usize,
        end_us: i64,
        values: &[ArrayRef],
        outputs: &[usize],
    ) -> Result<Vec<ArrayRef>, ExecError> {
        let mut values = values.iter();
        outputs
            .iter()
            .map(|&output| {
                Ok(match self.group.get(output) {
                    Some(Group::Key(key)) => keys[*key].clone(),
                    Some(side) => self.window_column(*side, output, rows, end_us)?,
                    None => values.next().expect("one value per measure asked for").clone(),
                })
            })
            .collect()
    }

    fn window_column(&self, side: Group, output: usize, rows: usize, end_us: i64) -> Result<ArrayRef, ExecError> {
        let bound_us = match (side, self.window) {
            (Group::WindowStart, Some(window)) => window.start_of(end_us),
            _ => end_us,
        };
        let times = TimestampMicrosecondArray::from_value(bound_us, rows);
        match self.schema.field(output).data_type() {
            DataType::Timestamp(_, zone) => Ok(Arc::new(times.with_timezone_opt(zone.clone()))),
            other => Err(ExecError::Invariant(format!("a window column has type {other}"))),
        }
    }
}

fn kept_from(grid: Option<Grid>, first_kept: Option<i64>) -> Option<i64> {
    Some(grid?.start_us(first_kept?))
}

/// A view's output as deltas: remembers what it last said of each key and window that can still change.
///
/// State: one row per key and window that is not final. Cost per tick: the keys that changed times the windows over them
/// times the slices of a window.
pub struct Changes {
    view: WindowView,
    /// By the window's end.
    emitted: BTreeMap<i64, HashMap<u32, OwnedRow>>,
    converter: RowConverter,
    /// EMIT ON WINDOW CLOSE: windows that end at or before this have been shown.
    closed_until_us: Option<i64>,
    shown_empty: bool,
}

/// How far a consumer has been told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    closed_until_us: Option<i64>,
    shown_empty: bool,
}

impl Told {
    /// Of a consumer that has been told of everything that is shown.
    pub fn all(shown: &Shown) -> Told {
        Told { closed_until_us: shown.final_until_us, shown_empty: true }
    }
}

impl Changes {
    pub fn new(view: WindowView) -> Result<Self, ExecError> {
        let fields = view.schema.fields().iter().map(|f| SortField::new(f.data_type().clone())).collect();
        Ok(Changes {
            view,
            emitted: BTreeMap::new(),
            converter: RowConverter::new(fields)?,
            closed_until_us: None,
            shown_empty: false,
        })
    }

    pub fn rows(&self) -> usize {
        self.emitted.values().map(HashMap::len).sum()
    }

    pub fn bytes(&self) -> usize {
        self.emitted.values().flat_map(HashMap::values).map(|row| row.as_ref().len() + 48).sum()
    }

    /// All that the view shows now, for a consumer that begins here. Call it once, before the first [`Changes::step`].
    pub fn begin(&mut self, store: &mut SliceStore, shown: &Shown) -> Result<Delta, ExecError> {
        let all = self.slices_under(store, shown, |_| true)?;
        self.step(store, &all, shown)
    }

    /// The ids in the slices of those windows that are shown. What no window shows need not be read.
    fn slices_under(
        &self,
        store: &mut SliceStore,
        shown: &Shown,
        wanted: impl Fn(i64) -> bool,
    ) -> Result<Vec<(i64, Vec<u32>)>, ExecError> {
        let mut slices = Vec::new();
        if self.view.emit == Emit::OnWindowClose {
            return Ok(slices);
        }
        let snapshot = store.snapshot()?;
        let grid = snapshot.layout.grid;
        let first_kept_us = kept_from(grid, snapshot.first_kept);
        for slice in snapshot.slices(i64::MIN..i64::MAX) {
            let mut windows = self.view.windows_over(grid, slice.number());
            if windows.any(|end| wanted(end) && self.view.shows(first_kept_us, shown, end)) {
                slices.push((slice.number(), slice.batch()?.ids.clone()));
            }
        }
        Ok(slices)
    }

    /// What it has told, besides the rows that can still change.
    pub fn told(&self) -> Told {
        Told { closed_until_us: self.closed_until_us, shown_empty: self.shown_empty }
    }

    /// For a consumer that has been told all of this before, as of `shown`: from here on [`Changes::step`] tells what changes.
    /// Cost: a look at the windows that can still change.
    pub fn resume(&mut self, store: &mut SliceStore, shown: &Shown, told: Told) -> Result<(), ExecError> {
        // Before the first step nothing has been told.
        if self.view.emit == Emit::OnUpdate && (told.shown_empty || !self.view.shows_empty) {
            // What is final is not remembered.
            let changing = Shown { horizon_us: shown.horizon_us.max(shown.final_until_us), ..*shown };
            self.begin(store, &changing)?;
        }
        Told { closed_until_us: self.closed_until_us, shown_empty: self.shown_empty } = told;
        Ok(())
    }

    /// The change that `dirty` (ids by slice, from [`SliceStore::take_dirty`]) makes in what the view shows.
    pub fn step(
        &mut self,
        store: &mut SliceStore,
        dirty: &[(i64, Vec<u32>)],
        shown: &Shown,
    ) -> Result<Delta, ExecError> {
        let mut out = DeltaRows::default();
        match self.view.emit {
            Emit::OnUpdate => self.update(store, dirty, shown, |_, _| true, &mut out)?,
            Emit::OnWindowClose => self.close(store, shown, &mut out)?,
        }
        // What cannot change any more need not be remembered; what retention forgets goes without a retraction.
        self.emitted.retain(|&end, _| !self.view.is_done(shown, end));
        out.finish(&self.converter, &self.view.schema)
    }

    /// Follows a renumbering of the store's keys.
    pub fn renumber(&mut self, renumbered: &[u32]) {
        for rows in self.emitted.values_mut() {
            *rows = rows
                .drain()
                .filter_map(|(id, row)| match renumbered.get(id as usize) {
                    Some(&id) if id != u32::MAX => Some((id, row)),
                    _ => None,
                })
                .collect();
        }
    }

    fn update(
        &mut self,
        store: &mut SliceStore,
        dirty: &[(i64, Vec<u32>)],
        shown: &Shown,
        wanted: impl Fn(&WindowView, i64) -> bool,
        out: &mut DeltaRows,
    ) -> Result<(), ExecError> {
        let grid = store.layout().grid;
        let first_kept_us = kept_from(grid, store.first_kept());
        let mut by_window: BTreeMap<i64, BTreeSet<u32>> = BTreeMap::new();
        for (slice, ids) in dirty {
            for end in self.view.windows_over(grid, *slice) {
                if wanted(&self.view, end) && self.view.shows(first_kept_us, shown, end) {
                    by_window.entry(end).or_default().extend(ids);
                }
            }
        }
        if self.view.shows_empty && !self.shown_empty {
            by_window.entry(0).or_default();
            self.shown_empty = true;
        }
        let keys = store.keys()?;
        for (end, ids) in by_window {
            let ids: Vec<u32> = ids.into_iter().collect();
            self.update_window(store, &keys, end, ids, out)?;
        }
        Ok(())
    }

    fn update_window(
        &mut self,
        store: &SliceStore,
        keys: &KeySnapshot,
        end: i64,
        ids: Vec<u32>,
        out: &mut DeltaRows,
    ) -> Result<(), ExecError> {
        let merged = store.look_up(self.view.slices_of(store.layout().grid, end), &ids, &self.view.measures)?;
        for (call, &n) in merged.overflowed.iter().enumerate() {
            self.view.overflows.add(n, self.view.schema.field(self.view.group.len() + call));
        }
        let emitted = self.emitted.entry(end).or_default();
        if self.view.shows_empty {
            // One group, id 0, there whether it has rows or not.
            let merged = match merged.counts.first() {
                Some(&count) if count > 0 => merged,
                _ => self.view.empty_group(store.layout(), &self.view.measures)?,
            };
            let all: Vec<usize> = (0..self.view.schema.fields().len()).collect();
            let columns = self.view.columns(&[], 1, end, &merged.outputs, &all)?;
            let row = self.converter.convert_columns(&columns)?.row(0).owned();
            out.replace(emitted.insert(0, row.clone()), row);
            return Ok(());
        }
        for &id in ids.iter().zip(&merged.counts).filter(|(_, count)| **count <= 0).map(|(id, _)| id) {
            if let Some(old) = emitted.remove(&id) {
                out.add(old, -1);
            }
        }
        let merged = merged.without_empty()?;
        let all: Vec<usize> = (0..self.view.schema.fields().len()).collect();
        let mut at = 0;
        for ids in by_chunk(&merged.ids) {
            let values: Vec<ArrayRef> = merged.outputs.iter().map(|c| c.slice(at, ids.len())).collect();
            let columns = self.view.columns(&keys.take(ids)?, ids.len(), end, &values, &all)?;
            let rows = self.converter.convert_columns(&columns)?;
            for (row, &id) in rows.iter().zip(ids) {
                let row = row.owned();
                out.replace(emitted.insert(id, row.clone()), row);
            }
            at += ids.len();
        }
        Ok(())
    }

    /// Shows the windows that have become final since the last call, whole and once.
    fn close(&mut self, store: &mut SliceStore, shown: &Shown, out: &mut DeltaRows) -> Result<(), ExecError> {
        let (Some(_), Some(final_until_us)) = (self.view.window, shown.final_until_us) else { return Ok(()) };
        if self.closed_until_us.is_some_and(|c| c >= final_until_us) {
            return Ok(());
        }
        // Those that end past the last call's and at or before this one's.
        let from = self.closed_until_us.map_or(i64::MIN, |c| c.saturating_add(1));
        let within = Within { ends: from..final_until_us.saturating_add(1), ..Within::default() };
        self.closed_until_us = Some(final_until_us);
        let snapshot = store.snapshot()?;
        let all: Vec<usize> = (0..self.view.schema.fields().len()).collect();
        let windows = self.view.windows(&snapshot, shown, &within);
        let mut cursor = self.view.cursor(snapshot, None, &all);
        for (i, &end) in windows.iter().enumerate() {
            for (_, columns) in self.view.read(&mut cursor, end, windows.get(i + 1).copied(), &all)? {
                out.whole.push(RecordBatch::try_new(self.view.schema.clone(), columns)?);
            }
        }
        Ok(())
    }
}

/// Rows on their way into a delta.
#[derive(Default)]
struct DeltaRows {
    rows: Vec<OwnedRow>,
    weights: Vec<i64>,
    whole: Vec<RecordBatch>,
}

impl DeltaRows {
    fn add(&mut self, row: OwnedRow, weight: i64) {
        self.rows.push(row);
        self.weights.push(weight);
    }

    fn replace(&mut self, old: Option<OwnedRow>, new: OwnedRow) {
        if old.as_ref() == Some(&new) {
            return;
        }
        if let Some(old) = old {
            self.add(old, -1);
        }
        self.add(new, 1);
    }

    fn finish(self, converter: &RowConverter, schema: &SchemaRef) -> Result<Delta, ExecError> {
        if self.rows.is_empty() {
            let rows = arrow::compute::concat_batches(schema, &self.whole)?;
            return Ok(Delta::inserts(rows));
        }
        let columns = converter.convert_rows(self.rows.iter().map(OwnedRow::row))?;
        Ok(Delta::weighted(RecordBatch::try_new(schema.clone(), columns)?, self.weights))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap as Map;

    use arrow::array::{AsArray, Int64Array};
    use arrow::datatypes::{Field, Int64Type, Schema, TimestampMicrosecondType};
    use datafusion::physical_expr::expressions::Column;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::exec::slice_store::StoreRows;
    use crate::exec::state::Measure;
    use crate::planner::stream_plan::{Call, Function};

    /// (window end, key) → (count, sum, max).
    type Expected = Map<(i64, i64), (i64, i64, i64)>;

    struct Case {
        window: Window,
        store: SliceStore,
        changes: Changes,
        /// What the deltas so far add up to.
        told: Map<(i64, i64, i64, i64, i64), i64>,
        rows: Vec<(i64, i64, i64, i64)>,
    }

    fn layout(grid: Grid, retracts: bool) -> Arc<StoreLayout> {
        let input = Schema::new(vec![Field::new("k", DataType::Int64, true), Field::new("v", DataType::Int64, true)]);
        let value = || vec![Arc::new(Column::new("v", 1)) as Arc<dyn datafusion::physical_expr::PhysicalExpr>];
        let call = |function, args| Call {
            function,
            args,
            filter: None,
            distinct: false,
            output: Arc::new(Field::new("x", DataType::Int64, true)),
        };
        let calls = [call(Function::Count, Vec::new()), call(Function::Sum, value()), call(Function::Max, value())];
        Arc::new(StoreLayout {
            keys: vec![Arc::new(Field::new("k", DataType::Int64, true))],
            grid: Some(grid),
            measures: calls.iter().map(|c| Measure::new(c, &input, retracts).unwrap()).collect(),
            sessions: None,
        })
    }

    impl Case {
        fn new(window: Window, grid: Grid, retracts: bool, emit: Emit) -> Case {
            let store = SliceStore::new(layout(grid, retracts)).unwrap();
            let time = DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, None);
            let mut fields = vec![Field::new("k", DataType::Int64, true), Field::new("window_end", time, true)];
            fields.extend(["n", "s", "m"].map(|name| Field::new(name, DataType::Int64, true)));
            let view = WindowView {
                window: Some(window),
                group: vec![Group::Key(0), Group::WindowEnd],
                measures: vec![0, 1, 2],
                schema: Arc::new(Schema::new(fields)),
                emit,
                shows_empty: false,
                overflows: Arc::default(),
            };
            let mut case =
                Case { window, store, changes: Changes::new(view).unwrap(), told: Map::new(), rows: Vec::new() };
            case.store.track_changes();
            case
        }

        fn batch(&self, rows: &[(i64, i64, i64, i64)]) -> StoreRows {
            let grid = self.store.layout().grid.unwrap();
            let values: ArrayRef = Arc::new(rows.iter().map(|r| r.2).collect::<Int64Array>());
            StoreRows {
                rows: rows.len(),
                slices: rows.iter().map(|r| grid.slice_of(r.1)).collect(),
                keys: vec![Arc::new(rows.iter().map(|r| r.0).collect::<Int64Array>())],
                args: vec![Vec::new(), vec![values.clone()], vec![values]],
                filters: vec![None, None, None],
                weights: rows.iter().any(|r| r.3 != 1).then(|| rows.iter().map(|r| r.3).collect()),
            }
        }

        fn tell(&mut self, delta: &Delta) {
            for row in 0..delta.num_rows() {
                *self.told.entry(line(&delta.rows, row)).or_default() += delta.weight(row);
            }
            self.told.retain(|_, weight| *weight != 0);
        }

        /// The slices of a range get these rows instead of theirs.
        fn replace(&mut self, slices: Range<i64>, rows: &[(i64, i64, i64, i64)], final_until_us: Option<i64>) {
            let grid = self.store.layout().grid.unwrap();
            self.rows.retain(|row| !slices.contains(&grid.slice_of(row.1)));
            self.rows.extend(rows.iter().filter(|row| slices.contains(&grid.slice_of(row.1))));
            let mut shadow = SliceStore::new(self.store.layout().clone()).unwrap();
            shadow.apply(&self.batch(rows)).unwrap();
            let before = self.store.snapshot().unwrap();
            let touched = self.store.replace(slices, &shadow.drain().unwrap()).unwrap();
            let shown = Shown { horizon_us: None, final_until_us };
            let delta = self.changes.correct(&mut self.store, &before, &touched, &shown).unwrap();
            self.tell(&delta);
        }

        /// One tick: rows of (key, time, value, weight), then everything before `final_until_us` is final.
        fn tick(&mut self, rows: &[(i64, i64, i64, i64)], final_until_us: Option<i64>) {
            self.store.apply(&self.batch(rows)).unwrap();
            self.rows.extend(rows);
            let shown = Shown { horizon_us: None, final_until_us };
            let dirty = self.store.take_dirty();
            let delta = self.changes.step(&mut self.store, &dirty, &shown).unwrap();
            self.tell(&delta);
            if let Some(us) = final_until_us {
                self.store.close(us).unwrap();
            }
        }

        fn expected(&self, only_final: Option<i64>) -> Expected {
            let mut by_window: Map<(i64, i64), Vec<(i64, i64)>> = Map::new();
            for &(key, time, value, weight) in &self.rows {
                for end in self.window.ends(time) {
                    by_window.entry((end, key)).or_default().push((value, weight));
                }
            }
            let mut all = Expected::new();
            for ((end, key), rows) in by_window {
                let count: i64 = rows.iter().map(|r| r.1).sum();
                let closed = only_final.is_none_or(|f| end <= f);
                if count > 0 && closed {
                    let mut net: Map<i64, i64> = Map::new();
                    rows.iter().for_each(|(v, w)| *net.entry(*v).or_default() += w);
                    let max = *net.iter().filter(|(_, w)| **w > 0).map(|(v, _)| v).max().unwrap();
                    all.insert((end, key), (count, rows.iter().map(|(v, w)| v * w).sum(), max));
                }
            }
            all
        }

        fn check(&mut self, final_until_us: Option<i64>, seed: u64) {
            let only_final =
                (self.changes.view.emit == Emit::OnWindowClose).then(|| final_until_us.unwrap_or(i64::MIN));
            let expected = self.expected(only_final);
            let snapshot = self.store.snapshot().unwrap();
            let shown = Shown { horizon_us: None, final_until_us };
            let mut read = Expected::new();
            let view = &self.changes.view;
            let windows = view.windows(&snapshot, &shown, &Within::default());
            let mut cursor = view.cursor(snapshot, None, &[0, 1, 2, 3, 4]);
            for (i, &end) in windows.iter().enumerate() {
                let next = windows.get(i + 1).copied();
                for (_, columns) in view.read(&mut cursor, end, next, &[0, 1, 2, 3, 4]).unwrap() {
                    let batch = RecordBatch::try_new(view.schema.clone(), columns).unwrap();
                    for row in 0..batch.num_rows() {
                        let (end, key, n, s, m) = line(&batch, row);
                        assert!(read.insert((end, key), (n, s, m)).is_none(), "seed {seed}: a row twice");
                    }
                }
            }
            assert_eq!(read, expected, "seed {seed}: what is read, {:?}", self.window);
            let told: Expected = self.told.keys().map(|&(end, key, n, s, m)| ((end, key), (n, s, m))).collect();
            assert!(self.told.values().all(|w| *w == 1), "seed {seed}: {:?}", self.told);
            assert_eq!(told, expected, "seed {seed}: what the deltas add up to, {:?}", self.window);
        }
    }

    fn line(batch: &RecordBatch, row: usize) -> (i64, i64, i64, i64, i64) {
        let int = |i: usize| batch.column(i).as_primitive::<Int64Type>().value(row);
        (batch.column(1).as_primitive::<TimestampMicrosecondType>().value(row), int(0), int(2), int(3), int(4))
    }

    #[test]
    fn windows_equal_those_worked_out_from_the_rows() {
        for seed in 0..300 {
            let mut random = StdRng::seed_from_u64(seed);
            let width = random.random_range(1..6);
            let cumulates = random.random_bool(0.3);
            let slide_us = width * random.random_range(1..8);
            let size_us = if cumulates { slide_us } else { width } * random.random_range(1..8);
            let window = Window { cumulates, ..Window::hop(size_us, slide_us, random.random_range(-9..9)) };
            // The store may be finer than the view needs.
            let own = window.slice_us();
            let finer = (1..=own).filter(|w| own % w == 0).nth(random.random_range(0..2)).unwrap_or(own);
            let grid = Grid { width_us: finer, phase_us: window.offset_us.rem_euclid(finer) };
            let retracts = random.random_bool(0.5);
            let emit = if !retracts && random.random_bool(0.3) { Emit::OnWindowClose } else { Emit::OnUpdate };
            let mut case = Case::new(window, grid, retracts, emit);
            let mut final_until = None;
            for _ in 0..random.random_range(1..8) {
                let least = final_until.unwrap_or(-30);
                let mut rows: Vec<_> = (0..random.random_range(0..12))
                    .map(|_| {
                        (random.random_range(0..4), least + random.random_range(0..40), random.random_range(-5..5), 1)
                    })
                    .collect();
                if retracts {
                    for &(key, time, value, _) in case.rows.clone().iter().filter(|r| r.3 > 0) {
                        let net: i64 = case
                            .rows
                            .iter()
                            .chain(&rows)
                            .filter(|r| (r.0, r.1, r.2) == (key, time, value))
                            .map(|r| r.3)
                            .sum();
                        if net > 0 && random.random_bool(0.2) {
                            rows.push((key, time, value, -1));
                        }
                    }
                } else if random.random_bool(0.7) {
                    final_until = Some(least + random.random_range(0..15));
                }
                case.tick(&rows, final_until);
                if random.random_bool(0.2) {
                    // As after a restart.
                    case.changes = Changes::new(case.changes.view.clone()).unwrap();
                    let shown = Shown { horizon_us: None, final_until_us: final_until };
                    case.changes.resume(&mut case.store, &shown, Told::all(&shown)).unwrap();
                }
                case.check(final_until, seed);
                if random.random_bool(0.3) {
                    let first = grid.slice_of(random.random_range(-40..40));
                    let slices = first..first + random.random_range(1..9);
                    let rows: Vec<_> = (0..random.random_range(0..12))
                        .map(|_| {
                            let slice = random.random_range(slices.clone());
                            (random.random_range(0..6), grid.start_us(slice), random.random_range(-5..5), 1)
                        })
                        .collect();
                    case.replace(slices, &rows, final_until);
                    case.check(final_until, seed);
                }
            }
        }
    }

    #[test]
    fn at_the_ends_of_time_no_window_shows() {
        let window = Window::hop(60, 10, 3);
        let mut case = Case::new(window, Grid { width_us: 10, phase_us: 3 }, false, Emit::OnUpdate);
        case.tick(
            &[(1, i64::MIN, 1, 1), (1, i64::MIN + 50, 1, 1), (1, i64::MAX - 50, 1, 1), (1, i64::MAX, 1, 1)],
            None,
        );
        case.rows.clear();
        case.tick(&[(1, 25, 1, 1)], Some(90));
        case.check(Some(90), 0);
    }

    #[test]
    fn forgetting_takes_windows_that_are_no_longer_whole() {
        let window = Window::hop(20, 10, 0);
        let mut case = Case::new(window, Grid { width_us: 10, phase_us: 0 }, false, Emit::OnUpdate);
        case.tick(&[(1, 5, 1, 1), (1, 15, 1, 1), (1, 25, 1, 1)], Some(30));
        case.store.forget(10).unwrap();
        let snapshot = case.store.snapshot().unwrap();
        let view = &case.changes.view;
        assert_eq!(view.windows(&snapshot, &Shown::default(), &Within::default()), [30, 40]);
        let shown = Shown { horizon_us: Some(30), ..Shown::default() };
        assert_eq!(view.windows(&snapshot, &shown, &Within::default()), [40]);
    }
}
