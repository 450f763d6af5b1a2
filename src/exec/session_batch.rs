//! Sessions as immutable columns, and what a reader makes of them.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, TimestampMicrosecondArray, UInt32Array};
use arrow::compute::{concat, take};
use arrow::datatypes::DataType;

use super::ExecError;
use super::id_set::IdSet;
use super::keys::KeySnapshot;
use super::slice_batch::by_chunk;
use super::slice_store::StoreLayout;
use super::window_view::{Group, Shown, WindowView, Within};
use crate::planner::stream_plan::Emit;

/// This many batches of like size become one.
const FAN_IN: usize = 8;
/// But none of more rows than this, so that what is forgotten goes batch by batch.
const MOST_ROWS: usize = 65_536;
/// Up to this many keys are looked up one by one.
const FEW: usize = 64;

/// Sessions, ascending by key id, then by start: 20 bytes each and the values that SQL shows.
#[derive(Debug, Default)]
pub struct SessionBatch {
    pub ids: Vec<u32>,
    pub starts_us: Vec<i64>,
    pub ends_us: Vec<i64>,
    /// One array per measure of the layout.
    pub outputs: Vec<ArrayRef>,
    /// By measure: how many values do not fit their type, and so are NULL.
    pub overflowed: Vec<usize>,
    /// (smallest, largest), of an empty batch (0, 0).
    pub start_span_us: (i64, i64),
    pub end_span_us: (i64, i64),
}

/// Final sessions, newest last.
#[derive(Debug, Default)]
pub struct ClosedSessions {
    batches: Vec<Arc<SessionBatch>>,
}

/// Sessions as of one tick.
#[derive(Clone)]
pub struct SessionSnapshot {
    pub layout: Arc<StoreLayout>,
    pub keys: KeySnapshot,
    /// Nothing changes them any more.
    pub closed: Vec<Arc<SessionBatch>>,
    pub open: Arc<SessionBatch>,
}

impl SessionBatch {
    /// The columns must be sorted as the batch is to be.
    pub fn new(ids: Vec<u32>, starts_us: Vec<i64>, ends_us: Vec<i64>, outputs: Vec<ArrayRef>) -> Self {
        let span = |times: &[i64]| {
            let least = times.iter().copied().min().unwrap_or(0);
            (least, times.iter().copied().max().unwrap_or(0))
        };
        let (start_span_us, end_span_us) = (span(&starts_us), span(&ends_us));
        let overflowed = vec![0; outputs.len()];
        SessionBatch { ids, starts_us, ends_us, outputs, overflowed, start_span_us, end_span_us }
    }

    pub fn len(&self) -> usize {
        self.ids.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    pub fn bytes(&self) -> usize {
        let outputs: usize = self.outputs.iter().map(|o| o.get_array_memory_size()).sum();
        outputs + self.ids.capacity() * 4 + (self.starts_us.capacity() + self.ends_us.capacity()) * 8
    }

    /// All rows of several batches as one.
    fn merged(batches: &[Arc<SessionBatch>]) -> Result<SessionBatch, ExecError> {
        let mut order: Vec<(u32, i64, u32)> = Vec::with_capacity(batches.iter().map(|b| b.len()).sum());
        for batch in batches {
            let first = order.len();
            let rows = batch.ids.iter().zip(&batch.starts_us).enumerate();
            order.extend(rows.map(|(row, (&id, &start_us))| (id, start_us, (first + row) as u32)));
        }
        order.sort_unstable();
        let picked: UInt32Array = order.iter().map(|&(_, _, row)| row).collect::<Vec<_>>().into();
        let ends_us: Vec<i64> = batches.iter().flat_map(|b| b.ends_us.iter().copied()).collect();
        let measures = batches.first().map_or(0, |b| b.outputs.len());
        let outputs = (0..measures)
            .map(|measure| {
                let parts: Vec<&dyn Array> = batches.iter().map(|b| b.outputs[measure].as_ref()).collect();
                Ok(take(&concat(&parts)?, &picked, None)?)
            })
            .collect::<Result<_, ExecError>>()?;
        let mut merged = SessionBatch::new(
            order.iter().map(|&(id, _, _)| id).collect(),
            order.iter().map(|&(_, start_us, _)| start_us).collect(),
            picked.values().iter().map(|&row| ends_us[row as usize]).collect(),
            outputs,
        );
        for batch in batches {
            merged.overflowed.iter_mut().zip(&batch.overflowed).for_each(|(sum, n)| *sum += n);
        }
        Ok(merged)
    }

    fn taken(&self, rows: &[u32]) -> Result<SessionBatch, ExecError> {
        let picked = UInt32Array::from(rows.to_vec());
        let times = |times_us: &[i64]| rows.iter().map(|&row| times_us[row as usize]).collect();
        Ok(SessionBatch::new(
            rows.iter().map(|&row| self.ids[row as usize]).collect(),
            times(&self.starts_us),
            times(&self.ends_us),
            self.outputs.iter().map(|output| Ok(take(output, &picked, None)?)).collect::<Result<_, ExecError>>()?,
        ))
    }

    /// The same rows under new ids, which keep the order of the old.
    fn renumbered(&self, renumbered: &[u32]) -> SessionBatch {
        SessionBatch {
            ids: self.ids.iter().map(|&id| renumbered[id as usize]).collect(),
            starts_us: self.starts_us.clone(),
            ends_us: self.ends_us.clone(),
            outputs: self.outputs.clone(),
            overflowed: self.overflowed.clone(),
            ..*self
        }
    }

    /// Rows that lie within the bounds, of the keys in `only` if given, ascending. Cost: a look at each row, or a binary search
    /// for each of a few keys.
    fn select(&self, within: &Within, only: Option<&IdSet>) -> Vec<u32> {
        let apart = |(least, most): (i64, i64), wanted: &Range<i64>| most < wanted.start || least >= wanted.end;
        if apart(self.start_span_us, &within.starts) || apart(self.end_span_us, &within.ends) {
            return Vec::new();
        }
        let wanted = |row: &u32| {
            let row = *row as usize;
            within.starts.contains(&self.starts_us[row]) && within.ends.contains(&self.ends_us[row])
        };
        let all = 0..self.len() as u32;
        match only {
            None => all.filter(wanted).collect(),
            Some(only) if only.len() <= FEW => {
                let rows_of = |id: u32| {
                    let first = self.ids.partition_point(|&other| other < id);
                    let next = self.ids.partition_point(|&other| other <= id);
                    first as u32..next as u32
                };
                only.ids().into_iter().flat_map(rows_of).filter(wanted).collect()
            }
            Some(only) => all.filter(|&row| only.contains(self.ids[row as usize])).filter(wanted).collect(),
        }
    }

    /// Columns of the view (by position in its schema) of some rows, ascending, in batches with their number of rows.
    pub fn columns(
        &self,
        keys: &KeySnapshot,
        view: &WindowView,
        rows: &[u32],
        outputs: &[usize],
    ) -> Result<Vec<(usize, Vec<ArrayRef>)>, ExecError> {
        for &output in outputs.iter().filter(|_| !rows.is_empty()) {
            if let Some(&measure) = output.checked_sub(view.group.len()).and_then(|call| view.measures.get(call)) {
                view.overflows.add(self.overflowed[measure], view.schema.field(output));
            }
        }
        let ids: Vec<u32> = rows.iter().map(|&row| self.ids[row as usize]).collect();
        let mut at = 0;
        let mut batches = Vec::new();
        for ids in by_chunk(&ids) {
            let rows = &rows[at..at + ids.len()];
            at += ids.len();
            let picked = UInt32Array::from(rows.to_vec());
            let key_columns = keys.take_each(ids)?;
            let times = |times_us: &[i64]| -> Vec<i64> { rows.iter().map(|&row| times_us[row as usize]).collect() };
            let column = |&output: &usize| {
                Ok(match view.group.get(output) {
                    Some(Group::Key(key)) => key_columns[*key].clone(),
                    Some(Group::WindowStart) => time_column(view, output, times(&self.starts_us))?,
                    Some(Group::WindowEnd) => time_column(view, output, times(&self.ends_us))?,
                    None => take(&self.outputs[view.measures[output - view.group.len()]], &picked, None)?,
                })
            };
            batches.push((rows.len(), outputs.iter().map(column).collect::<Result<_, ExecError>>()?));
        }
        Ok(batches)
    }
}

fn time_column(view: &WindowView, output: usize, times_us: Vec<i64>) -> Result<ArrayRef, ExecError> {
    match view.schema.field(output).data_type() {
        DataType::Timestamp(_, zone) => {
            Ok(Arc::new(TimestampMicrosecondArray::from(times_us).with_timezone_opt(zone.clone())))
        }
        other => Err(ExecError::Invariant(format!("a window column has type {other}"))),
    }
}

impl ClosedSessions {
    /// Takes a batch in. Batches of like size are joined, so that each row is copied some five times in all.
    pub fn push(&mut self, batch: Arc<SessionBatch>) -> Result<(), ExecError> {
        if batch.is_empty() {
            return Ok(());
        }
        self.batches.push(batch);
        let tier = |batch: &Arc<SessionBatch>| batch.len().ilog(FAN_IN);
        while let Some(first) = self.batches.len().checked_sub(FAN_IN) {
            let newest = &self.batches[first..];
            let alike = newest.iter().all(|batch| tier(batch) <= tier(&newest[0]));
            if !alike || newest.iter().map(|b| b.len()).sum::<usize>() > MOST_ROWS {
                break;
            }
            let joined = SessionBatch::merged(newest)?;
            self.batches.truncate(first);
            self.batches.push(Arc::new(joined));
        }
        Ok(())
    }

    /// Drops sessions that end at or before this: of a batch, once they are about half of it. True if there were any.
    pub fn forget(&mut self, horizon_us: i64) -> Result<bool, ExecError> {
        let before = self.batches.len();
        self.batches.retain(|batch| batch.end_span_us.1 > horizon_us);
        let mut forgot = self.batches.len() < before;
        for batch in &mut self.batches {
            let (least, most) = batch.end_span_us;
            if horizon_us >= least && horizon_us.abs_diff(least) >= most.abs_diff(horizon_us) {
                let kept = Within { ends: horizon_us.saturating_add(1)..i64::MAX, ..Within::default() };
                *batch = Arc::new(batch.taken(&batch.select(&kept, None))?);
                forgot = true;
            }
        }
        Ok(forgot)
    }

    pub fn renumber(&mut self, renumbered: &[u32]) {
        for batch in &mut self.batches {
            *batch = Arc::new(batch.renumbered(renumbered));
        }
    }

    pub fn batches(&self) -> &[Arc<SessionBatch>] {
        &self.batches
    }
}

impl SessionSnapshot {
    /// The batches that a view may show.
    pub fn batches(&self, view: &WindowView) -> impl Iterator<Item = &Arc<SessionBatch>> {
        let open = (view.emit == Emit::OnUpdate).then_some(&self.open);
        self.closed.iter().chain(open)
    }

    /// The rows of one of the batches, as [`SessionBatch::columns`] gives them. What retention has forgotten is left out.
    pub fn read(
        &self,
        batch: &SessionBatch,
        view: &WindowView,
        shown: &Shown,
        within: &Within,
        only: Option<&IdSet>,
        outputs: &[usize],
    ) -> Result<Vec<(usize, Vec<ArrayRef>)>, ExecError> {
        let mut within = within.clone();
        if let Some(forgotten_us) = forgotten_until(shown) {
            within.ends.start = within.ends.start.max(forgotten_us.saturating_add(1));
        }
        batch.columns(&self.keys, view, &batch.select(&within, only), outputs)
    }
}

/// Sessions that end at or before this are forgotten: by retention, once they are final.
pub fn forgotten_until(shown: &Shown) -> Option<i64> {
    shown.horizon_us.zip(shown.final_until_us).map(|(horizon_us, final_us)| horizon_us.min(final_us))
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, Int64Array};
    use arrow::datatypes::Int64Type;

    use super::*;

    /// Sessions (id, start) of length 10 that count their start.
    fn batch(rows: &[(u32, i64)]) -> Arc<SessionBatch> {
        let starts: Vec<i64> = rows.iter().map(|r| r.1).collect();
        Arc::new(SessionBatch::new(
            rows.iter().map(|r| r.0).collect(),
            starts.clone(),
            starts.iter().map(|s| s + 10).collect(),
            vec![Arc::new(Int64Array::from(starts))],
        ))
    }

    fn rows(batches: &[Arc<SessionBatch>]) -> Vec<(u32, i64, i64)> {
        let values = |b: &Arc<SessionBatch>| b.outputs[0].as_primitive::<Int64Type>().values().to_vec();
        let of = |b: &Arc<SessionBatch>| {
            let columns = b.ids.clone().into_iter().zip(b.ends_us.clone()).zip(values(b));
            columns.map(|((id, end), value)| (id, end, value)).collect::<Vec<_>>()
        };
        batches.iter().flat_map(of).collect()
    }

    #[test]
    fn batches_of_like_size_are_joined_in_the_order_of_keys() {
        let mut closed = ClosedSessions::default();
        for n in 0..100 {
            closed.push(batch(&[((n * 7) % 10, i64::from(n))])).unwrap();
        }
        assert!(closed.batches().len() <= 12, "{}", closed.batches().len());
        assert!(closed.batches().iter().all(|b| b.ids.is_sorted()));
        let mut all = rows(closed.batches());
        all.sort_unstable_by_key(|r| r.2);
        let expected = (0..100i64).map(|n| (((n * 7) % 10) as u32, n + 10, n));
        assert!(all.into_iter().eq(expected));
        assert!(!closed.forget(20).unwrap(), "too few for a rewrite");
        assert!(closed.forget(73).unwrap());
        let left: Vec<i64> = rows(closed.batches()).iter().map(|r| r.2).collect();
        assert!(left.len() < 60 && (64..100).all(|n| left.contains(&n)), "{left:?}");
        assert!(closed.forget(109).unwrap() && closed.batches().is_empty());
    }

    #[test]
    fn rows_are_found_by_key_and_by_bounds() {
        let batch = batch(&[(0, 5), (0, 40), (3, 1), (3, 20), (9, 7)]);
        let check = |starts: Range<i64>, ends: Range<i64>, ids: &[u32]| {
            let mut only = IdSet::new(10);
            ids.iter().for_each(|&id| only.insert(id));
            only.seal();
            let only = (!ids.is_empty()).then_some(&only);
            batch.select(&Within { starts, ends }, only)
        };
        let any = i64::MIN..i64::MAX;
        assert_eq!(check(any.clone(), any.clone(), &[]), [0, 1, 2, 3, 4]);
        assert_eq!(check(any.clone(), any.clone(), &[3, 9]), [2, 3, 4]);
        assert_eq!(check(6..41, any.clone(), &[]), [1, 3, 4]);
        assert_eq!(check(any.clone(), 15..31, &[0, 3]), [0, 3]);
        assert_eq!(check(any, 51..99, &[]), [0u32; 0]);
    }
}
