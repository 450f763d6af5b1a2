//! What readers have put together from closed slices, for the next reader.
//!
//! A **pane** is [`FANOUT`], [`FANOUT`]², ... aligned slices as one batch: whatever the size of a window, it is the merge of
//! few panes (a window of 360 slices: at most 20). A **total** is the closed part of a window as somebody read it. The
//! next window is that total, with the slices added that came in and those subtracted that went out, where all states asked
//! for can be subtracted; sums of floats are kept exactly, so a total does not drift.
//!
//! Both are made when a reader wants them, never by the owner of the slices, and are shared by all snapshots of the store.
//! They are a cache: closed slices do not change, so what is here can be dropped at any time. It lies in the
//! [`SliceCache`] beside slices that are in files: a pane that is read keeps none of its slices in memory. Panes get into files
//! as well ([`super::panes_in_files`]), so that a long window is few reads also after a restart.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use parking_lot::Mutex;

use super::ExecError;
use super::closed_slice::{ClosedSlice, Shared};
use super::slice_batch::{Piece, SliceBatch, merge_batches, slices_in};
use super::slice_cache::{Shelf, SliceCache};
use super::slice_store::StoreLayout;

/// Panes of one level in a pane of the next. On a grid of 10 s: 1 m, 6 m, 36 m, ...
pub const FANOUT: i64 = 6;

/// Windows whose totals are kept: those of a handful of views and sizes.
const MOST_TOTALS: usize = 16;

/// To read a slice from a file costs so many times what it costs to merge it.
const FROM_FILE: usize = 8;

/// The closed slices of a store, at one moment.
#[derive(Clone, Copy)]
pub struct Closed<'a> {
    pub layout: &'a Arc<StoreLayout>,
    /// All ids are below this.
    pub num_keys: usize,
    /// Slices below this are forgotten.
    pub first_kept: i64,
    /// Every slice below this is closed.
    pub before: i64,
    /// Ascending.
    pub slices: &'a [Arc<ClosedSlice>],
}

/// The closed part of a window, for some measures.
struct Total {
    range: Range<i64>,
    measures: Arc<[usize]>,
    /// Its states are those of `measures`, in their order.
    shelf: Arc<Shelf>,
    used: u64,
}

/// Something that is merged into a window, or taken away from it.
#[derive(Clone)]
pub struct Step {
    batch: Arc<SliceBatch>,
    /// Of which measures it has states, if not of all.
    measures: Option<Arc<[usize]>>,
    pub taken_away: bool,
}

pub struct Panes {
    pub(super) cache: Arc<SliceCache>,
    /// Bytes of what is in memory.
    tally: Arc<AtomicUsize>,
    pub(super) made: Mutex<Made>,
}

/// What has been made; if it is in no file, it may have been dropped since.
#[derive(Default)]
pub(super) struct Made {
    /// Each as the slice that it begins with.
    pub panes: HashMap<PaneKey, Arc<ClosedSlice>>,
    /// At so many panes, those that were dropped are looked for.
    look_at: usize,
    totals: Vec<Total>,
    clock: u64,
}

impl Step {
    pub fn add(batch: Arc<SliceBatch>) -> Step {
        Step { batch, measures: None, taken_away: false }
    }

    pub fn ids(&self) -> &[u32] {
        &self.batch.ids
    }

    /// Its states of `measures`.
    pub fn piece(&self, measures: &[usize]) -> Piece<'_> {
        let Some(have) = &self.measures else { return self.batch.piece(measures) };
        let at = |m| have.iter().position(|have| have == m).expect("chosen because it has them");
        self.batch.piece(&measures.iter().map(at).collect::<Vec<_>>())
    }
}

impl Closed<'_> {
    /// The largest pane that begins at or before `slice`, holds it, and lies in the range: level and slices.
    fn largest_pane(&self, slice: i64, range: &Range<i64>) -> Option<(u32, Range<i64>)> {
        let mut largest = None;
        let mut width = FANOUT;
        for level in 1.. {
            let Some(end) = slice.div_euclid(width).checked_add(1).and_then(|n| n.checked_mul(width)) else { break };
            let Some(start) = end.checked_sub(width) else { break };
            if start < range.start || end > range.end.min(self.before) {
                break;
            }
            largest = Some((level, start..end));
            let Some(next) = width.checked_mul(FANOUT) else { break };
            width = next;
        }
        largest
    }
}

/// Where a run of slices that makes a pane lies: its level and number. What is in it does not change, unless slices are
/// forgotten or keys numbered anew.
pub type PaneKey = (u32, i64);

/// A part of the closed slices of a range.
#[derive(Clone, Copy)]
pub struct Run<'a> {
    /// `None`: it is one slice.
    pub pane: Option<PaneKey>,
    pub slices: &'a [Arc<ClosedSlice>],
}

/// The runs of slices whose panes make up the range: a run of one slice needs no pane.
pub fn runs<'a>(closed: &Closed<'a>, range: &Range<i64>) -> Vec<Run<'a>> {
    let mut rest = slices_in(closed.slices, range);
    let mut runs = Vec::new();
    while let Some(first) = rest.first() {
        let pane = closed.largest_pane(first.slice, range);
        let end = pane.as_ref().map_or(1, |(_, pane)| rest.partition_point(|s| s.slice < pane.end));
        let pane = pane.filter(|_| end > 1).map(|(level, pane)| (level, pane.start.div_euclid(pane.end - pane.start)));
        runs.push(Run { pane, slices: &rest[..end] });
        rest = &rest[end..];
    }
    runs
}

impl Panes {
    pub fn new(cache: Arc<SliceCache>) -> Panes {
        Panes { cache, tally: Arc::default(), made: Mutex::default() }
    }

    /// Batches that together are the closed slices of the range, few and large.
    pub fn cover(&self, closed: &Closed<'_>, range: Range<i64>) -> Result<Vec<Arc<SliceBatch>>, ExecError> {
        runs(closed, &range).into_iter().map(|run| self.batch(closed, run)).collect()
    }

    /// The least work that gives the closed slices of the range: panes alone, or a total and the slices that it has too
    /// many or too few.
    pub fn steps(&self, closed: &Closed<'_>, range: Range<i64>, measures: &[usize]) -> Result<Vec<Step>, ExecError> {
        let invertible = measures.iter().all(|&m| closed.layout.measures[m].invertible());
        let total = {
            let mut made = self.made.lock();
            let mut least = made.cost(closed, &range);
            let mut best = None;
            for (i, total) in made.totals.iter().enumerate() {
                let overlaps = total.range.start < range.end && range.start < total.range.end;
                // Made from a snapshot with slices that are open in this one, or that this one no longer has.
                let foreign = total.range.end > closed.before || total.range.start < closed.first_kept;
                if !overlaps || foreign || !measures.iter().all(|m| total.measures.contains(m)) {
                    continue;
                }
                let gone = [total.range.start..range.start, range.end..total.range.end];
                let come = [range.start..total.range.start, total.range.end..range.end];
                if !invertible && gone.iter().any(|r| !slices_in(closed.slices, r).is_empty()) {
                    continue;
                }
                let moves: usize = gone.iter().chain(&come).map(|r| made.cost(closed, r)).sum();
                if moves >= least {
                    continue;
                }
                if let Some(batch) = total.shelf.get().filter(|batch| batch.bytes + moves < least) {
                    least = batch.bytes + moves;
                    best = Some((i, batch, gone, come));
                }
            }
            best.map(|(i, batch, gone, come)| {
                let used = made.tick();
                made.totals[i].used = used;
                (batch, made.totals[i].measures.clone(), gone, come)
            })
        };
        let Some((batch, measures, gone, come)) = total else {
            return Ok(self.cover(closed, range)?.into_iter().map(Step::add).collect());
        };
        let mut steps = vec![Step { batch, measures: Some(measures), taken_away: false }];
        for (ranges, taken_away) in [(come, false), (gone, true)] {
            for range in ranges {
                let batches = self.cover(closed, range)?;
                steps.extend(batches.into_iter().map(|batch| Step { taken_away, ..Step::add(batch) }));
            }
        }
        Ok(steps)
    }

    /// Keeps the closed part of a window for the next one.
    pub fn keep_total(&self, range: Range<i64>, measures: &[usize], batch: SliceBatch) {
        let shelf = self.shelf(Arc::new(batch));
        let mut made = self.made.lock();
        made.totals.retain(|total| !total.shelf.is_empty());
        if made.totals.iter().any(|t| t.range == range && *t.measures == *measures) {
            return;
        }
        if made.totals.len() == MOST_TOTALS {
            let oldest = (0..MOST_TOTALS).min_by_key(|&i| made.totals[i].used).unwrap_or(0);
            made.totals.swap_remove(oldest);
        }
        let used = made.tick();
        made.totals.push(Total { range, measures: measures.into(), shelf, used });
    }

    /// Drops what reaches below this slice.
    pub fn forget(&self, first_kept: i64) {
        let mut made = self.made.lock();
        made.panes.retain(|_, pane| pane.slice >= first_kept);
        made.totals.retain(|total| total.range.start >= first_kept);
    }

    pub fn bytes(&self) -> usize {
        self.tally.load(Relaxed)
    }

    fn shelf(&self, batch: Arc<SliceBatch>) -> Arc<Shelf> {
        Shelf::with(self.cache.clone(), self.tally.clone(), Some(batch), false)
    }

    pub(super) fn shared(&self, layout: &Arc<StoreLayout>) -> Shared {
        Shared { layout: layout.clone(), cache: self.cache.clone(), tally: self.tally.clone() }
    }

    /// The slices of a run as one.
    pub fn batch(&self, closed: &Closed<'_>, run: Run<'_>) -> Result<Arc<SliceBatch>, ExecError> {
        let Run { pane, slices: run } = run;
        let Some((level, number)) = pane.filter(|_| run.len() > 1) else { return run[0].batch() };
        if let Some(batch) = self.known((level, number), run) {
            return Ok(batch);
        }
        let parts: Vec<Arc<SliceBatch>> = if level == 1 {
            run.iter().map(|slice| slice.batch()).collect::<Result<_, _>>()?
        } else {
            let width = FANOUT.pow(level - 1);
            let of = |s: &Arc<ClosedSlice>| s.slice.div_euclid(width);
            run.chunk_by(|a, b| of(a) == of(b))
                .map(|run| self.batch(closed, Run { pane: Some((level - 1, of(&run[0]))), slices: run }))
                .collect::<Result<_, _>>()?
        };
        if let [alone] = parts.as_slice() {
            // It is a pane of the level below, and found there the next time.
            return Ok(alone.clone());
        }
        let batch = merge_batches(closed.layout, &parts, closed.num_keys)?;
        let pane = ClosedSlice::cached(&self.shared(closed.layout), batch.clone(), closed.num_keys);
        let mut made = self.made.lock();
        if made.panes.len() > made.look_at {
            made.panes.retain(|_, pane| pane.is_there());
            made.look_at = (2 * made.panes.len()).max(64);
        }
        // Somebody else may have made it meanwhile, and even put it in a file.
        made.panes.entry((level, number)).and_modify(|known| known.put(batch.clone())).or_insert(Arc::new(pane));
        Ok(batch)
    }

    /// A pane that has been made, if it is quicker to have than its slices. From a file that cannot be read it is not: the slices
    /// say the same, and it is made of them once more.
    fn known(&self, key: PaneKey, slices: &[Arc<ClosedSlice>]) -> Option<Arc<SliceBatch>> {
        let pane = self.made.lock().panes.get(&key).cloned()?;
        if let Some(batch) = pane.in_memory_now() {
            return Some(batch);
        }
        if pane.file().is_none() || slices.iter().all(|slice| slice.is_in_memory()) {
            return None;
        }
        let read = pane.batch();
        if read.is_err() {
            self.made.lock().panes.retain(|_, known| !Arc::ptr_eq(known, &pane));
        }
        read.ok()
    }
}

impl Made {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// What it costs to merge a range, in bytes: those of its panes, or of their slices where the panes have yet to be made.
    fn cost(&self, closed: &Closed<'_>, range: &Range<i64>) -> usize {
        let slice =
            |s: &Arc<ClosedSlice>| if s.is_in_memory() { s.bytes() } else { s.bytes().saturating_mul(FROM_FILE) };
        let bytes = |run: Run<'_>| match run.pane.and_then(|key| self.panes.get(&key)) {
            Some(pane) if pane.is_there() => slice(pane),
            _ => run.slices.iter().map(slice).sum(),
        };
        if range.is_empty() { 0 } else { runs(closed, range).into_iter().map(bytes).sum() }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, AsArray, Float64Array, Int64Array};
    use arrow::datatypes::{DataType, Field, Float64Type, Int64Type, Schema};
    use datafusion::physical_expr::PhysicalExpr;
    use datafusion::physical_expr::expressions::Column;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::exec::id_set::IdSet;
    use crate::exec::slice_store::{Grid, SliceStore, StoreRows};
    use crate::exec::state::Measure;
    use crate::exec::store_snapshot::StoreSnapshot;
    use crate::planner::stream_plan::{Call, Function};

    /// count, sum of floats, max of a whole number.
    fn layout() -> Arc<StoreLayout> {
        let input = Schema::new(vec![
            Field::new("k", DataType::Int64, true),
            Field::new("v", DataType::Int64, true),
            Field::new("f", DataType::Float64, true),
        ]);
        let call = |function, args: &[(&str, usize)], output: DataType| Call {
            function,
            args: args.iter().map(|&(name, i)| Arc::new(Column::new(name, i)) as Arc<dyn PhysicalExpr>).collect(),
            filter: None,
            distinct: false,
            output: Arc::new(Field::new("x", output, true)),
        };
        let calls = [
            call(Function::Count, &[], DataType::Int64),
            call(Function::Sum, &[("f", 2)], DataType::Float64),
            call(Function::Max, &[("v", 1)], DataType::Int64),
        ];
        Arc::new(StoreLayout {
            keys: vec![Arc::new(Field::new("k", DataType::Int64, true))],
            grid: Some(Grid { width_us: 1, phase_us: 0 }),
            measures: calls.iter().map(|c| Measure::new(c, &input, false).unwrap()).collect(),
            sessions: None,
        })
    }

    /// Rows of (slice, key, value).
    fn add(store: &mut SliceStore, rows: &[(i64, i64, i64)]) {
        let values: ArrayRef = Arc::new(rows.iter().map(|r| r.2).collect::<Int64Array>());
        let floats: ArrayRef = Arc::new(rows.iter().map(|r| float(r.2)).collect::<Float64Array>());
        store
            .apply(&StoreRows {
                rows: rows.len(),
                slices: rows.iter().map(|r| r.0).collect(),
                keys: vec![Arc::new(rows.iter().map(|r| r.1).collect::<Int64Array>())],
                args: vec![Vec::new(), vec![floats], vec![values]],
                filters: vec![None, None, None],
                weights: None,
            })
            .unwrap();
    }

    /// Values whose naive running sum drifts.
    fn float(value: i64) -> f64 {
        if value % 3 == 0 { 1e16 } else { value as f64 / 10.0 }
    }

    /// (key, count, sum, max), as read; the sum is exact, rounded once.
    type Lines = Vec<(i64, i64, Option<f64>, Option<i64>)>;

    fn read(snapshot: &StoreSnapshot, range: Range<i64>, measures: &[usize], only: Option<&IdSet>) -> Lines {
        let merged = snapshot.merge(range, measures, only).unwrap();
        let at = |m: usize| measures.iter().position(|&have| have == m).map(|i| &merged.outputs[i]);
        let key = |id: u32| snapshot.keys.take(&[id]).unwrap()[0].as_primitive::<Int64Type>().value(0);
        let mut lines: Lines = (0..merged.ids.len())
            .map(|row| {
                let sum = at(1).map(|a| a.as_primitive::<Float64Type>().value(row));
                let max = at(2).map(|a| a.as_primitive::<Int64Type>().value(row));
                (key(merged.ids[row]), merged.counts[row], sum, max)
            })
            .collect();
        lines.sort_by_key(|line| line.0);
        lines
    }

    fn expected(rows: &[(i64, i64, i64)], range: Range<i64>, measures: &[usize], only: Option<i64>) -> Lines {
        let mut keys: Vec<i64> = rows.iter().filter(|r| range.contains(&r.0)).map(|r| r.1).collect();
        keys.sort_unstable();
        keys.dedup();
        keys.retain(|key| only.is_none_or(|only| only == *key));
        keys.into_iter()
            .map(|key| {
                let of: Vec<i64> = rows.iter().filter(|r| r.1 == key && range.contains(&r.0)).map(|r| r.2).collect();
                // Large and small apart: each is summed without loss.
                let large = of.iter().filter(|v| *v % 3 == 0).count() as f64 * 1e16;
                let tenths: i64 = of.iter().filter(|v| *v % 3 != 0).sum();
                let sum = if large == 0.0 { tenths as f64 / 10.0 } else { large + tenths as f64 / 10.0 };
                let sum = measures.contains(&1).then_some(sum);
                (key, of.len() as i64, sum, measures.contains(&2).then(|| *of.iter().max().unwrap()))
            })
            .collect()
    }

    fn check(read: &Lines, expected: &Lines, context: &str) {
        assert_eq!(read.len(), expected.len(), "{context}");
        for (r, e) in read.iter().zip(expected) {
            assert_eq!((r.0, r.1, r.3), (e.0, e.1, e.3), "{context}");
            assert_eq!(r.2.is_some(), e.2.is_some(), "{context}");
            if let (Some(r), Some(e)) = (r.2, e.2) {
                assert!((r - e).abs() <= e.abs() * 1e-14, "{context}: {r} {e}");
            }
        }
    }

    #[test]
    fn what_is_read_is_what_the_rows_say_however_readers_come() {
        for seed in 0..60 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut store = SliceStore::new(layout()).unwrap();
            let mut rows = Vec::new();
            let mut snapshots: Vec<(StoreSnapshot, usize, i64)> = Vec::new();
            let (mut final_until, mut first_kept) = (-20, i64::MIN);
            for _ in 0..12 {
                let fresh: Vec<(i64, i64, i64)> = (0..random.random_range(0..60))
                    .map(|_| {
                        (
                            final_until + random.random_range(0..30),
                            random.random_range(0..9),
                            random.random_range(0..50),
                        )
                    })
                    .collect();
                add(&mut store, &fresh);
                rows.extend(fresh);
                final_until += random.random_range(0..40);
                store.close(final_until).unwrap();
                if random.random_bool(0.2) {
                    first_kept = final_until - 50;
                    store.forget(first_kept).unwrap();
                }
                snapshots.push((store.snapshot().unwrap(), rows.len(), first_kept));
                for _ in 0..10 {
                    // Old snapshots are read beside new ones, windows in any order.
                    let (snapshot, rows_then, first_kept) = &snapshots[random.random_range(0..snapshots.len())];
                    let start = (final_until - random.random_range(0..90)).max(*first_kept);
                    let range = start..start + [1, 6, 36, 45, 100][random.random_range(0..5)];
                    let measures: &[usize] = [&[0usize, 1, 2][..], &[1], &[0], &[2]][random.random_range(0..4)];
                    let context = format!("seed {seed} {range:?} {measures:?}");
                    let read_all = read(snapshot, range.clone(), measures, None);
                    check(&read_all, &expected(&rows[..*rows_then], range.clone(), measures, None), &context);
                    let Some(slice) = snapshot.slices(range.clone()).next() else { continue };
                    let id = slice.batch().unwrap().ids[0];
                    let mut only = IdSet::new(snapshot.keys.len);
                    only.insert(id);
                    only.seal();
                    let key = snapshot.keys.take(&[id]).unwrap()[0].as_primitive::<Int64Type>().value(0);
                    let one = read(snapshot, range.clone(), measures, Some(&only));
                    check(&one, &expected(&rows[..*rows_then], range, measures, Some(key)), &context);
                }
            }
        }
    }

    /// One key, one row in each of 1 200 closed slices.
    fn long() -> SliceStore {
        let mut store = SliceStore::new(layout()).unwrap();
        add(&mut store, &(0..1200).map(|slice| (slice, 1, slice)).collect::<Vec<_>>());
        store.close(1200).unwrap();
        store
    }

    fn closed(snapshot: &StoreSnapshot) -> Closed<'_> {
        Closed {
            layout: &snapshot.layout,
            num_keys: snapshot.keys.len,
            first_kept: i64::MIN,
            before: snapshot.closed_before,
            slices: &snapshot.closed,
        }
    }

    #[test]
    fn a_window_of_360_slices_is_few_panes() {
        let snapshot = long().snapshot().unwrap();
        let most = (0..840).map(|s| snapshot.panes.cover(&closed(&snapshot), s..s + 360).unwrap().len()).max();
        assert_eq!(most, Some(20));
    }

    #[test]
    fn the_next_window_is_the_last_one_moved_on() {
        let snapshot = long().snapshot().unwrap();
        let steps =
            |range, measures: &[usize]| snapshot.panes.steps(&closed(&snapshot), range, measures).unwrap().len();
        read(&snapshot, 7..367, &[0, 1], None);
        assert_eq!(steps(7..367, &[0]), 1, "the same again");
        assert_eq!(steps(8..368, &[0, 1]), 3, "one slice came and one went");
        assert_eq!(steps(6..366, &[0, 1]), 3, "and backwards");
        assert!(steps(8..368, &[2]) > 3, "max cannot be subtracted");
        read(&snapshot, 7..367, &[2], None);
        assert_eq!(steps(7..369, &[2]), 2 + 1, "but more can be added");
    }

    #[test]
    fn the_cache_keeps_to_its_limit() {
        let mut store = long();
        let mut snapshot = store.snapshot().unwrap();
        for start in 0..800 {
            read(&snapshot, start..start + 360, &[0, 1, 2], None);
        }
        let panes = snapshot.panes.clone();
        let counted = || {
            let made = panes.made.lock();
            let totals = made.totals.iter().filter_map(|total| total.shelf.get());
            let all = made.panes.values().filter_map(|pane| pane.in_memory_now()).chain(totals);
            all.map(|batch| batch.bytes).sum::<usize>()
        };
        assert!(panes.made.lock().totals.len() <= MOST_TOTALS);
        let before = counted();
        assert_eq!((panes.bytes(), panes.cache.bytes()), (before, before));
        drop(store);
        snapshot = StoreSnapshot { closed: Arc::default(), ..snapshot };
        assert_eq!(snapshot.panes.cache.pinned_bytes(), 0, "slices that are gone make no room");
        snapshot.panes.cache.set_limit_bytes(before / 2);
        assert!(snapshot.panes.bytes() <= before / 2 && snapshot.panes.bytes() > 0, "{}", snapshot.panes.bytes());
    }
}
