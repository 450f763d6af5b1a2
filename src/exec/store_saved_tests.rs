//! Stores of several workers take random rows, close and forget slices, are saved, and are loaded again by as many workers or
//! others, with what came after the last save lost and given again. Each window then reads as in one store that was never saved.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use arrow::util::display::array_value_to_string;
use datafusion::functions_aggregate::bit_and_or_xor::bit_xor_udaf;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::aggregate::AggregateExprBuilder;
use datafusion::physical_expr::expressions::Column;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::ExecError;
use super::bucket;
use super::closed_slice::{ClosedSlice, SliceFile};
use super::durable::{Buckets, Saved, Section};
use super::keys::KeySnapshot;
use super::panes_in_files::{PaneEntry, PaneToKeep};
use super::session_store::SessionLayout;
use super::slice_cache::SliceCache;
use super::slice_store::{Grid, SliceStore, StoreLayout, StoreRows};
use super::state::Measure;
use super::store_saved::{ClosedEntry, SavedPart};
use super::store_snapshot::StoreSnapshot;
use super::window_cursor::WindowCursor;
use super::window_view::{Changes, Group, Shown, Told, WindowView};
use crate::planner::stream_plan::{Call, Emit, Function, Session, Window};

/// (slice, key, name, value, weight).
type Row = (i64, i64, Option<u8>, i64, i64);
/// What the measures show, by key.
type Lines = BTreeMap<String, String>;

fn layout(keys: usize, grid: Option<Grid>, retracts: bool) -> Arc<StoreLayout> {
    let input = Schema::new(vec![Field::new("v", DataType::Int64, true), Field::new("f", DataType::Float64, true)]);
    let value = || Arc::new(Column::new("v", 0)) as Arc<dyn PhysicalExpr>;
    let float = || Arc::new(Column::new("f", 1)) as Arc<dyn PhysicalExpr>;
    let of = |udaf, args: Vec<Arc<dyn PhysicalExpr>>| {
        let builder = AggregateExprBuilder::new(udaf, args).schema(Arc::new(input.clone())).alias("x");
        Function::DataFusion(Arc::new(builder.build().unwrap()))
    };
    let call = |function, args, output: DataType| Call {
        function,
        args,
        filter: None,
        distinct: false,
        output: Arc::new(Field::new("x", output, true)),
    };
    let mut calls = vec![
        call(Function::Count, vec![], DataType::Int64),
        call(Function::Sum, vec![value()], DataType::Int64),
        call(Function::Sum, vec![float()], DataType::Float64),
        call(Function::Max, vec![value()], DataType::Int64),
        call(Function::ApproxDistinct, vec![value()], DataType::Int64),
    ];
    if !retracts {
        calls.push(call(of(bit_xor_udaf(), vec![value()]), vec![value()], DataType::Int64));
    }
    let fields = [Field::new("k", DataType::Int64, true), Field::new("s", DataType::Utf8, true)];
    Arc::new(StoreLayout {
        keys: fields.into_iter().take(keys).map(Arc::new).collect(),
        grid,
        measures: calls.iter().map(|c| Measure::new(c, &input, retracts).unwrap()).collect(),
        sessions: None,
    })
}

fn batch(rows: &[Row], keys: usize, measures: usize) -> StoreRows {
    let ints = |get: fn(&Row) -> i64| Arc::new(rows.iter().map(get).collect::<Int64Array>()) as ArrayRef;
    let floats: ArrayRef = Arc::new(rows.iter().map(|r| r.3 as f64 / 8.0).collect::<Float64Array>());
    let names: ArrayRef = Arc::new(rows.iter().map(|r| r.2.map(|s| format!("name {s}"))).collect::<StringArray>());
    let values = ints(|r| r.3);
    let args =
        vec![vec![], vec![values.clone()], vec![floats], vec![values.clone()], vec![values.clone()], vec![values]];
    StoreRows {
        rows: rows.len(),
        slices: rows.iter().map(|r| r.0).collect(),
        keys: [ints(|r| r.1), names].into_iter().take(keys).collect(),
        args: args.into_iter().take(measures).collect(),
        filters: vec![None; measures],
        weights: rows.iter().any(|r| r.4 != 1).then(|| rows.iter().map(|r| r.4).collect()),
    }
}

/// As a file would give it back.
fn written(saved: &Saved) -> Saved {
    let rows = |rows: &RecordBatch| {
        let mut writer = StreamWriter::try_new(Vec::new(), &rows.schema()).unwrap();
        writer.write(rows).unwrap();
        let bytes = writer.into_inner().unwrap();
        let mut reader = StreamReader::try_new(bytes.as_slice(), None).unwrap();
        reader.next().unwrap().unwrap()
    };
    let sections = saved.sections.iter().map(|s| Section { name: s.name.clone(), rows: rows(&s.rows) });
    Saved { whole: saved.whole, sections: sections.collect(), notes: saved.notes.clone() }
}

/// The storage: counts what is read, and fails when told to.
#[derive(Debug, Default)]
struct Storage {
    reads: AtomicUsize,
    fails: AtomicBool,
}

#[derive(Debug)]
struct File {
    saved: Saved,
    storage: Arc<Storage>,
}

impl SliceFile for File {
    fn read(&self) -> Result<Saved, ExecError> {
        self.storage.reads.fetch_add(1, Relaxed);
        match self.storage.fails.load(Relaxed) {
            true => Err(ExecError::Storage { what: "the disk is away".into() }),
            false => Ok(self.saved.clone()),
        }
    }
}

fn file(slice: &ClosedSlice, storage: &Arc<Storage>) -> Arc<dyn SliceFile> {
    Arc::new(File { saved: written(&slice.to_save().unwrap()), storage: storage.clone() })
}

fn buckets_of(worker: usize, workers: usize) -> Buckets {
    ((worker * 256).div_ceil(workers)) as u8..=(((worker + 1) * 256).div_ceil(workers) - 1) as u8
}

/// Those of a worker's buckets.
fn own_rows(rows: &StoreRows, worker: usize, workers: usize) -> StoreRows {
    let buckets = bucket::buckets(&rows.keys, rows.rows);
    let own = buckets_of(worker, workers);
    let mine: UInt32Array = (0..rows.rows as u32).filter(|&row| own.contains(&buckets[row as usize])).collect();
    let pick = |c: &ArrayRef| take(c, &mine, None).unwrap();
    let at = |values: &[i64]| mine.values().iter().map(|&row| values[row as usize]).collect();
    StoreRows {
        rows: mine.len(),
        slices: at(&rows.slices),
        keys: rows.keys.iter().map(pick).collect(),
        args: rows.args.iter().map(|args| args.iter().map(pick).collect()).collect(),
        filters: rows.filters.clone(),
        weights: rows.weights.as_ref().map(|weights| at(weights)),
    }
}

fn key_of(keys: &KeySnapshot, id: u32) -> String {
    let columns = keys.take(&[id]).unwrap();
    columns.iter().map(|c| array_value_to_string(c, 0).unwrap()).collect::<Vec<_>>().join(" ")
}

fn lines(snapshot: &StoreSnapshot, merged: &super::slice_batch::Merged) -> Lines {
    let line = |row: usize| {
        let outputs = merged.outputs.iter().map(|o| array_value_to_string(o, row).unwrap());
        (key_of(&snapshot.keys, merged.ids[row]), outputs.collect::<Vec<_>>().join(" "))
    };
    (0..merged.ids.len()).map(line).collect()
}

fn read(snapshot: &StoreSnapshot, range: Range<i64>) -> Result<Lines, ExecError> {
    let measures: Vec<usize> = (0..snapshot.layout.measures.len()).collect();
    Ok(lines(snapshot, &snapshot.merge(range, &measures, None)?))
}

#[derive(Clone)]
enum Op {
    Add(Vec<Row>),
    Close(i64),
    Forget(i64),
    /// These slices are repaired: they get these rows.
    Replace(Range<i64>, Vec<Row>),
}

struct Case {
    random: StdRng,
    layout: Arc<StoreLayout>,
    cache: Arc<SliceCache>,
    storage: Arc<Storage>,
    stores: Vec<SliceStore>,
    /// What was never saved, and how it came about.
    plain: SliceStore,
    ops: Vec<Op>,
    /// By worker; and how many operations they hold.
    saved: Vec<SavedPart>,
    saved_ops: usize,
    /// Slices whose files are written, but not told of.
    in_flight: Vec<(Arc<ClosedSlice>, Arc<dyn SliceFile>)>,
    /// By worker, panes that nobody has made yet.
    to_keep: Vec<(usize, PaneToKeep)>,
    panes: usize,
    /// Old snapshots with what they say of a range.
    old: Vec<(StoreSnapshot, Range<i64>, Lines)>,
    renumberings: usize,
    increments: usize,
}

impl Case {
    fn new(seed: u64) -> Case {
        let mut random = StdRng::seed_from_u64(seed);
        let keys = [2, 2, 2, 1, 0][random.random_range(0..5)];
        let grid = random.random_bool(0.9).then_some(Grid { width_us: 1, phase_us: 0 });
        let layout = layout(keys, grid, random.random_bool(0.4));
        let workers = random.random_range(1..4);
        let cache = Arc::new(SliceCache::new([0, 4000, 1 << 20][random.random_range(0..3)]));
        let mut case = Case {
            plain: SliceStore::new(layout.clone()).unwrap(),
            random,
            cache,
            storage: Arc::default(),
            stores: Vec::new(),
            ops: Vec::new(),
            saved: Vec::new(),
            saved_ops: 0,
            in_flight: Vec::new(),
            to_keep: Vec::new(),
            panes: 0,
            old: Vec::new(),
            renumberings: 0,
            increments: 0,
            layout,
        };
        for worker in 0..workers {
            let mut store = SliceStore::with_cache(case.layout.clone(), case.cache.clone()).unwrap();
            store.track_saves(buckets_of(worker, workers));
            store.few_keys = 4;
            case.stores.push(store);
            case.saved.push(SavedPart::default());
        }
        case
    }

    fn retracts(&self) -> bool {
        self.layout.measures.len() == 5
    }

    fn apply(&mut self, op: Op) {
        let shape = (self.layout.keys.len(), self.layout.measures.len());
        let workers = self.stores.len();
        match &op {
            Op::Add(rows) => {
                let rows = batch(rows, shape.0, shape.1);
                self.plain.apply(&rows).unwrap();
                for (worker, store) in self.stores.iter_mut().enumerate() {
                    store.apply(&own_rows(&rows, worker, workers)).unwrap();
                }
            }
            Op::Replace(slices, rows) => {
                let rows = batch(rows, shape.0, shape.1);
                let layout = self.layout.clone();
                let replace = |store: &mut SliceStore, rows: &StoreRows| {
                    let mut shadow = SliceStore::new(layout.clone()).unwrap();
                    shadow.apply(rows).unwrap();
                    store.replace(slices.clone(), &shadow.drain().unwrap()).unwrap();
                };
                replace(&mut self.plain, &rows);
                for (worker, store) in self.stores.iter_mut().enumerate() {
                    replace(store, &own_rows(&rows, worker, workers));
                }
            }
            Op::Close(at) => {
                self.plain.close(*at).unwrap();
                self.stores.iter_mut().for_each(|store| store.close(*at).unwrap());
            }
            Op::Forget(at) => {
                self.plain.forget(*at).unwrap();
                for store in &mut self.stores {
                    if store.forget(*at).unwrap().is_some() {
                        self.renumberings += 1;
                        let closed = store.closed.iter().flat_map(|slice| slice.batch().unwrap().ids.clone());
                        let open = store.open.values().flat_map(|open| open.ids.iter().copied());
                        let used: BTreeSet<u32> = closed.chain(open).collect();
                        // Which keys slices lost by a repair is found out when the last of those that were there goes.
                        let repaired = self.ops.iter().any(|op| matches!(op, Op::Replace(..)));
                        let exact = used.iter().copied().eq(0..store.num_keys() as u32);
                        assert!(repaired || exact, "only keys in use are left");
                    }
                }
            }
        }
        self.ops.push(op);
    }

    fn add(&mut self, from: i64) {
        let mut rows: Vec<Row> = Vec::new();
        // Keys come and go.
        let first = from / 2;
        for _ in 0..self.random.random_range(0..40) {
            let random = &mut self.random;
            let slice = match (self.layout.grid, self.plain.first_kept()) {
                (None, _) => 0,
                (Some(_), Some(kept)) if random.random_bool(0.05) => kept - random.random_range(1..5),
                _ => from + random.random_range(0..12),
            };
            let name = random.random_bool(0.8).then(|| random.random_range(0..3));
            rows.push((slice, first + random.random_range(0..9), name, random.random_range(-20..20), 1));
        }
        if self.retracts() {
            let mut net: BTreeMap<Row, i64> = BTreeMap::new();
            let before = self.ops.iter().filter_map(|op| if let Op::Add(rows) = op { Some(rows) } else { None });
            for row in before.flatten().chain(&rows).filter(|row| row.0 >= from || self.layout.grid.is_none()) {
                *net.entry((row.0, row.1, row.2, row.3, 0)).or_default() += row.4;
            }
            for (row, n) in net {
                if n > 0 && self.random.random_bool(0.3) {
                    rows.push((row.0, row.1, row.2, row.3, -n));
                }
            }
        }
        self.apply(Op::Add(rows));
    }

    /// Every worker saves at the same moment.
    fn save(&mut self) {
        self.saved.resize_with(self.stores.len(), SavedPart::default);
        for worker in 0..self.stores.len() {
            let whole = self.random.random_bool(0.2);
            let given = self.stores[worker].save(whole).unwrap();
            let part = &mut self.saved[worker];
            if given.saved.whole {
                part.saved.clear();
            } else {
                self.increments += 1;
            }
            assert!(given.saved.whole || !given.renumbered);
            if given.renumbered {
                part.closed.clear();
                part.panes.clear();
                self.to_keep.retain(|(of, _)| *of != worker);
            }
            self.to_keep.extend(given.panes.into_iter().map(|pane| (worker, pane)));
            if !given.saved.is_empty() {
                part.saved.push(written(&given.saved));
            }
            for slice in given.closed {
                let file = file(&slice, &self.storage);
                part.closed.retain(|entry| entry.slice != slice.slice);
                let (rows, bytes) = (slice.rows(), slice.bytes());
                part.closed.push(ClosedEntry { slice: slice.slice, rows, bytes, file: file.clone() });
                self.in_flight.push((slice, file));
            }
            // Who keeps the files may be slow to let go of them.
            if let Some(first) = self.stores[worker].first_kept()
                && self.random.random_bool(0.5)
            {
                part.closed.retain(|entry| entry.slice >= first);
                part.panes.retain(|pane| pane.entry.slice >= first);
            }
        }
        self.saved_ops = self.ops.len();
        if self.random.random_bool(0.7) {
            self.in_flight.drain(..).for_each(|(slice, file)| slice.keep_in(file));
        }
    }

    /// Panes get into files, some of which will be damaged.
    fn keep_panes(&mut self) {
        let some = self.random.random_range(0..=self.to_keep.len());
        for (worker, pane) in self.to_keep.drain(..some) {
            let Some((slice, saved)) = pane.save().unwrap() else { continue };
            let (rows, bytes, storage) = (slice.rows(), slice.bytes(), self.storage.clone());
            let file: Arc<dyn SliceFile> = match self.random.random_bool(0.1) {
                true => Arc::new(File { saved: Saved::default(), storage }),
                false => Arc::new(File { saved: written(&saved), storage }),
            };
            slice.keep_in(file.clone());
            let entry = ClosedEntry { slice: slice.slice, rows, bytes, file };
            self.saved[worker].panes.push(PaneEntry { level: pane.level(), entry });
            self.panes += 1;
        }
    }

    /// What was not saved is lost; other workers go on.
    fn load(&mut self) {
        let before = self.saved.len();
        let workers = if self.random.random_bool(0.5) { before } else { self.random.random_range(1..4) };
        let reads = self.storage.reads.load(Relaxed);
        self.in_flight.clear();
        self.to_keep.clear();
        self.stores = (0..workers)
            .map(|worker| {
                let parts = self.saved.clone();
                // Where nothing has changed, parts of others need not be given.
                let parts = if workers == before { vec![parts[worker].clone()] } else { parts };
                let own = buckets_of(worker, workers);
                SliceStore::load(self.layout.clone(), parts, own, self.cache.clone()).unwrap()
            })
            .collect();
        assert_eq!(self.storage.reads.load(Relaxed), reads, "closed slices are not read");
        if workers == before {
            for store in &mut self.stores {
                let next = store.save(false).unwrap();
                assert!(next.closed.is_empty() && next.saved.is_empty() || self.saved_ops == 0, "{next:?}");
            }
        }
        self.stores.iter_mut().for_each(|store| store.few_keys = 4);
        let ops = self.ops[..self.saved_ops].to_vec();
        self.plain = SliceStore::new(self.layout.clone()).unwrap();
        let loaded = std::mem::take(&mut self.stores);
        self.ops.clear();
        ops.into_iter().for_each(|op| self.apply(op));
        self.stores = loaded;
    }

    fn read(&mut self, range: Range<i64>) -> Lines {
        let mut all = Lines::new();
        for store in &mut self.stores {
            let snapshot = store.snapshot().unwrap();
            for (key, line) in read(&snapshot, range.clone()).unwrap() {
                assert!(all.insert(key, line).is_none(), "a key belongs to one worker");
            }
        }
        all
    }

    fn check(&mut self, seed: u64) {
        let plain = self.plain.snapshot().unwrap();
        let counts = |store: &SliceStore| store.forgotten_rows();
        assert_eq!(self.stores.iter().map(counts).sum::<u64>(), counts(&self.plain), "seed {seed}");
        for store in &self.stores {
            assert_eq!(store.first_kept(), self.plain.first_kept());
        }
        let least = plain.first_kept.unwrap_or(-20);
        for i in 0..4 {
            let start = least + self.random.random_range(0..80);
            let range = match (self.layout.grid, i) {
                (None, _) => 0..1,
                (_, 0) => least..least + 100,
                _ => start..start + self.random.random_range(1..70),
            };
            let expected = read(&plain, range.clone()).unwrap();
            assert_eq!(self.read(range.clone()), expected, "seed {seed} {range:?}");
            self.check_cursor(&range, seed);
            self.check_look_up(&range, seed);
        }
        for (snapshot, range, lines) in &self.old {
            assert_eq!(&read(snapshot, range.clone()).unwrap(), lines, "seed {seed}: an old snapshot");
        }
        if self.random.random_bool(0.2) {
            let snapshot = self.stores[0].snapshot().unwrap();
            let range = least..least + 60;
            let lines = read(&snapshot, range.clone()).unwrap();
            self.old.push((snapshot, range, lines));
        }
        for store in &self.stores {
            let figures: Vec<_> = store.slices().collect();
            assert!(figures.windows(2).all(|w| w[0].0 < w[1].0), "slices ascend");
            assert!(figures.iter().all(|figure| store.first_kept().is_none_or(|first| figure.0 >= first)));
        }
        let cached = self.cache.bytes();
        assert!(cached <= self.cache.limit_bytes(), "{cached}");
    }

    /// Windows one after the other.
    fn check_cursor(&mut self, range: &Range<i64>, seed: u64) {
        let measures: Vec<usize> = (0..self.layout.measures.len()).collect();
        for store in &mut self.stores {
            let snapshot = store.snapshot().unwrap();
            let mut cursor = WindowCursor::new(snapshot.clone(), measures.clone(), None);
            for by in 0..4 {
                let window = range.start + by..range.end + by;
                let merged = cursor.merge(window.clone(), Some(&(window.start + 1..window.end + 1))).unwrap();
                assert_eq!(lines(&snapshot, &merged), read(&snapshot, window).unwrap(), "seed {seed}: a cursor");
            }
        }
    }

    /// Key by key, as change streams do.
    fn check_look_up(&mut self, range: &Range<i64>, seed: u64) {
        let measures: Vec<usize> = (0..self.layout.measures.len()).collect();
        for store in &mut self.stores {
            let snapshot = store.snapshot().unwrap();
            let ids: Vec<u32> = (0..snapshot.keys.len as u32).collect();
            let merged = store.look_up(range.clone(), &ids, &measures).unwrap().without_empty().unwrap();
            assert_eq!(lines(&snapshot, &merged), read(&snapshot, range.clone()).unwrap(), "seed {seed}: look_up");
        }
    }
}

#[test]
fn what_is_loaded_reads_as_what_was_never_saved() {
    let (mut renumberings, mut increments, mut reads, mut repairs, mut panes) = (0, 0, 0, 0, 0);
    for seed in 0..120 {
        let mut case = Case::new(seed);
        let mut closed = 0;
        let mut kept = 0;
        for _ in 0..case.random.random_range(3..14) {
            case.add(closed);
            if case.random.random_bool(0.6) {
                closed += case.random.random_range(0..12);
                case.apply(Op::Close(closed));
            }
            if case.random.random_bool(0.3) {
                kept = kept.max(closed - case.random.random_range(0..16));
                case.apply(Op::Forget(kept));
            }
            if case.random.random_bool(0.15) && case.layout.grid.is_some() {
                let random = &mut case.random;
                // What is open may be taken back row by row.
                let least = if case.layout.measures.len() == 5 { closed - 8 } else { closed - 4 };
                let slices = least..least + random.random_range(1..8);
                let row = |random: &mut StdRng| {
                    let slice = random.random_range(slices.clone());
                    (slice, random.random_range(0..12), Some(1u8), random.random_range(-20..20), 1)
                };
                let rows = (0..random.random_range(0..20)).map(|_| row(random)).collect();
                repairs += 1;
                case.apply(Op::Replace(slices, rows));
            }
            if case.random.random_bool(0.7) {
                case.keep_panes();
            }
            match case.random.random_range(0..4) {
                0 => case.save(),
                1 if case.saved_ops > 0 => {
                    case.load();
                    let of = |op: &Op| if let Op::Close(at) = op { Some(*at) } else { None };
                    closed = case.ops.iter().filter_map(of).max().unwrap_or(0);
                    let of = |op: &Op| if let Op::Forget(at) = op { Some(*at) } else { None };
                    kept = case.ops.iter().filter_map(of).max().unwrap_or(0);
                }
                2 => {
                    case.in_flight.drain(..).for_each(|(slice, file)| slice.keep_in(file));
                    case.cache.set_limit_bytes(case.cache.limit_bytes());
                }
                _ => {}
            }
            case.check(seed);
        }
        renumberings += case.renumberings;
        increments += case.increments;
        reads += case.storage.reads.load(Relaxed);
        panes += case.panes;
    }
    assert!(renumberings > 20 && increments > 50 && reads > 500, "{renumberings} {increments} {reads}");
    assert!(repairs > 50 && panes > 50, "{repairs} {panes}");
}

/// One key a slice, 200 of them closed and in files; nothing stays in memory.
fn in_files(limit_bytes: usize) -> (SliceStore, Arc<Storage>, Arc<SliceCache>) {
    let cache = Arc::new(SliceCache::new(limit_bytes));
    let layout = layout(1, Some(Grid { width_us: 1, phase_us: 0 }), false);
    let mut store = SliceStore::with_cache(layout.clone(), cache.clone()).unwrap();
    store.track_saves(0..=255);
    let rows: Vec<Row> = (0..210).map(|slice| (slice, slice % 7, None, slice, 1)).collect();
    store.apply(&batch(&rows, 1, layout.measures.len())).unwrap();
    store.close(200).unwrap();
    let storage = Arc::new(Storage::default());
    for slice in store.save(false).unwrap().closed {
        slice.keep_in(file(&slice, &storage));
    }
    (store, storage, cache)
}

#[test]
fn what_is_not_used_goes_and_is_read_again() {
    let (mut store, storage, cache) = in_files(1 << 30);
    assert_eq!((cache.pinned_bytes(), store.in_files().0), (0, 200));
    let resident = store.bytes();
    let cached = cache.bytes();
    cache.set_limit_bytes(0);
    assert_eq!((cache.bytes(), store.bytes()), (0, resident - cached));
    assert_eq!(storage.reads.load(Relaxed), 0);
    let snapshot = store.snapshot().unwrap();
    assert_eq!(read(&snapshot, 0..200).unwrap().len(), 7);
    assert_eq!(storage.reads.load(Relaxed), 200);
    assert_eq!(cache.bytes(), 0, "a pane keeps nothing in memory that has no room");
    read(&snapshot, 0..200).unwrap();
    assert_eq!(storage.reads.load(Relaxed), 400);
    cache.set_limit_bytes(1 << 30);
    read(&snapshot, 0..200).unwrap();
    read(&snapshot, 0..200).unwrap();
    assert_eq!(storage.reads.load(Relaxed), 600, "what is there is not read");
    // The panes remain when their slices go.
    snapshot.closed.iter().for_each(|slice| slice.keep_in(slice.file().unwrap()));
    assert_eq!(read(&snapshot, 0..200).unwrap().len(), 7);
    assert_eq!(storage.reads.load(Relaxed), 600);
}

#[test]
fn a_long_window_is_few_reads_after_a_restart() {
    let storage = Arc::new(Storage::default());
    let layout = layout(1, Some(Grid { width_us: 1, phase_us: 0 }), false);
    let start = |parts| SliceStore::load(layout.clone(), parts, 0..=255, Arc::new(SliceCache::new(0))).unwrap();
    let mut store = start(vec![]);
    let rows: Vec<Row> = (0..1300).map(|slice| (slice, slice % 7, None, slice, 1)).collect();
    store.apply(&batch(&rows, 1, layout.measures.len())).unwrap();
    store.close(1299).unwrap();
    let given = store.save(false).unwrap();
    let entry = |slice: &ClosedSlice, saved: &Saved| {
        let (rows, bytes) = (slice.rows(), slice.bytes());
        let file: Arc<dyn SliceFile> = Arc::new(File { saved: written(saved), storage: storage.clone() });
        slice.keep_in(file.clone());
        ClosedEntry { slice: slice.slice, rows, bytes, file }
    };
    let closed = given.closed.iter().map(|slice| entry(slice, &slice.to_save().unwrap())).collect();
    let kept = |pane: &PaneToKeep| {
        let (slice, saved) = pane.save().unwrap()?;
        Some(PaneEntry { level: pane.level(), entry: entry(&slice, &saved) })
    };
    let panes: Vec<PaneEntry> = given.panes.iter().filter_map(kept).collect();
    let levels = (1..=4).map(|level| panes.iter().filter(|pane| pane.level == level).count());
    assert_eq!(levels.collect::<Vec<_>>(), [216, 36, 6, 1]);
    assert!(store.save(true).unwrap().panes.is_empty(), "they are given once");
    let mut parts = vec![SavedPart { saved: vec![given.saved], closed, panes }];
    let reads = |store: &mut SliceStore, range: Range<i64>| {
        let before = storage.reads.load(Relaxed);
        assert_eq!(read(&store.snapshot().unwrap(), range).unwrap().len(), 7);
        storage.reads.load(Relaxed) - before
    };
    let mut loaded = start(parts.clone());
    assert!(loaded.save(false).unwrap().panes.is_empty(), "they are in files");
    assert_eq!((0..900).map(|first| reads(&mut loaded, first..first + 360)).max(), Some(20));
    assert_eq!(reads(&mut loaded, 0..1296), 1);
    // Those that are missing are given again, those that cannot be read are made of what they say.
    parts[0].panes.retain(|pane| pane.level != 4);
    let broken = Arc::new(File { saved: Saved::default(), storage: storage.clone() });
    parts[0].panes.iter_mut().filter(|pane| pane.level == 3).take(1).for_each(|pane| pane.entry.file = broken.clone());
    let mut loaded = start(parts);
    assert_eq!(reads(&mut loaded, 0..1296), 1 + 6 + 5);
    assert_eq!(reads(&mut loaded, 0..1296), 6 + 5, "and not tried again");
    assert_eq!(loaded.save(false).unwrap().panes.iter().map(PaneToKeep::level).collect::<Vec<_>>(), [3, 4]);
}

#[test]
fn windows_in_a_row_read_what_they_are_made_of() {
    let (mut store, storage, cache) = in_files(0);
    cache.set_limit_bytes(1 << 30);
    let mut cursor = WindowCursor::new(store.snapshot().unwrap(), vec![0, 1], None);
    let mut window = |start: i64| {
        let merged = cursor.merge(start..start + 50, Some(&(start + 1..start + 51))).unwrap();
        assert_eq!(merged.counts.iter().sum::<i64>(), 50);
        storage.reads.load(Relaxed)
    };
    assert_eq!(window(0), 51);
    assert_eq!(window(1), 51);
    // The longer it goes on, the more is looked at beforehand.
    assert_eq!([window(2), window(3), window(4), window(5)], [54, 54, 54, 59]);
    assert_eq!((6..100).map(window).max(), Some(169));
}

#[test]
fn readers_of_one_slice_read_it_once() {
    let (mut store, storage, cache) = in_files(0);
    cache.set_limit_bytes(1 << 30);
    let snapshot = store.snapshot().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| snapshot.closed.iter().for_each(|slice| assert_eq!(slice.batch().unwrap().ids.len(), 1)));
        }
    });
    assert_eq!(storage.reads.load(Relaxed), 200);
}

#[test]
fn what_cannot_be_read_is_told_and_can_be_read_later() {
    let (mut store, storage, _) = in_files(0);
    let snapshot = store.snapshot().unwrap();
    storage.fails.store(true, Relaxed);
    let error = read(&snapshot, 0..200).unwrap_err();
    assert!(matches!(error, ExecError::Storage { .. }), "{error}");
    assert!(store.look_up(0..200, &[1], &[0]).is_err());
    assert_eq!(read(&snapshot, 200..210).unwrap().len(), 7, "what is open is there");
    // The store goes on meanwhile.
    let rows: Vec<Row> = (205..215).map(|slice| (slice, 1, None, slice, 1)).collect();
    store.apply(&batch(&rows, 1, store.layout().measures.len())).unwrap();
    store.close(212).unwrap();
    assert_eq!(store.save(false).unwrap().closed.len(), 12);
    storage.fails.store(false, Relaxed);
    assert_eq!(read(&store.snapshot().unwrap(), 0..220).unwrap().len(), 7);
}

#[test]
fn who_goes_on_telling_changes_reads_what_can_still_change() {
    let time = DataType::Timestamp(TimeUnit::Microsecond, None);
    let fields = vec![
        Field::new("k", DataType::Int64, true),
        Field::new("window_end", time, true),
        Field::new("n", DataType::Int64, true),
    ];
    let view = |size_us, emit| WindowView {
        window: Some(Window::hop(size_us, 1, 0)),
        group: vec![Group::Key(0), Group::WindowEnd],
        measures: vec![0],
        schema: Arc::new(Schema::new(fields.clone())),
        emit,
        shows_empty: false,
        overflows: Arc::default(),
    };
    let reads = |size_us, emit, from_us: Option<i64>| {
        let (mut store, storage, cache) = in_files(0);
        cache.set_limit_bytes(1 << 30);
        store.track_changes();
        store.take_dirty();
        let mut changes = Changes::new(view(size_us, emit)).unwrap();
        let shown = Shown { horizon_us: from_us, final_until_us: Some(200) };
        changes.resume(&mut store, &shown, Told::all(&shown)).unwrap();
        let resumed = storage.reads.load(Relaxed);
        let dirty = store.take_dirty();
        assert!(changes.step(&mut store, &dirty, &shown).unwrap().is_empty());
        let mut begun = Changes::new(view(size_us, emit)).unwrap();
        begun.begin(&mut store, &shown).unwrap();
        (resumed, storage.reads.load(Relaxed))
    };
    assert_eq!(reads(1, Emit::OnUpdate, None), (0, 200));
    assert_eq!(reads(10, Emit::OnUpdate, None), (9, 200));
    assert_eq!(reads(10, Emit::OnUpdate, Some(150)), (9, 59), "what is forgotten is not read");
    assert_eq!(reads(10, Emit::OnWindowClose, None), (0, 200));
}

/// Workers close alike, but a store that failed before it closed is no reason to lose its rows.
#[test]
fn what_has_closed_in_one_part_closes_in_the_others() {
    let layout = layout(1, Some(Grid { width_us: 1, phase_us: 0 }), false);
    let storage = Arc::new(Storage::default());
    let rows: Vec<Row> = (0..400).map(|i| (i % 10, i % 97, None, i, 1)).collect();
    let mut plain = SliceStore::new(layout.clone()).unwrap();
    plain.apply(&batch(&rows, 1, layout.measures.len())).unwrap();
    let mut parts = Vec::new();
    for (worker, closed) in [(0, 3), (1, 7)] {
        let mut store = SliceStore::new(layout.clone()).unwrap();
        store.track_saves(buckets_of(worker, 2));
        let rows = batch(&rows, 1, layout.measures.len());
        let buckets = bucket::buckets(&rows.keys, rows.rows);
        let own = buckets_of(worker, 2);
        let mine: Vec<Row> = (0..400)
            .filter(|&i| own.contains(&buckets[i]))
            .map(|i| (i as i64 % 10, i as i64 % 97, None, i as i64, 1))
            .collect();
        store.apply(&batch(&mine, 1, layout.measures.len())).unwrap();
        store.close(closed).unwrap();
        let given = store.save(false).unwrap();
        let entry = |slice: &Arc<ClosedSlice>| {
            let (rows, bytes) = (slice.rows(), slice.bytes());
            ClosedEntry { slice: slice.slice, rows, bytes, file: file(slice, &storage) }
        };
        parts.push(SavedPart {
            closed: given.closed.iter().map(entry).collect(),
            saved: vec![given.saved],
            panes: vec![],
        });
    }
    let mut store = SliceStore::load(layout, parts, 0..=255, Arc::new(SliceCache::new(0))).unwrap();
    assert_eq!(store.slices().map(|(slice, .., closed)| (slice, closed)).collect::<Vec<_>>(), {
        (0..10).map(|slice| (slice, slice < 7)).collect::<Vec<_>>()
    });
    let (of_store, of_plain) = (store.snapshot().unwrap(), plain.snapshot().unwrap());
    for from in 0..10 {
        assert_eq!(read(&of_store, from..10).unwrap(), read(&of_plain, from..10).unwrap());
    }
    let given = store.save(false).unwrap();
    assert!(given.saved.whole && given.renumbered && given.closed.len() == 7);
}

#[test]
fn files_that_do_not_fit_are_refused() {
    let (mut store, storage, _) = in_files(0);
    let layout = store.layout().clone();
    let given = store.save(true).unwrap();
    let entry = |at: usize, slice: i64| {
        let file = store.closed[at].file().unwrap();
        ClosedEntry { slice, rows: 1, bytes: 1, file }
    };
    let load = |saved: Vec<Saved>, closed: Vec<ClosedEntry>, layout: &Arc<StoreLayout>| {
        let part = SavedPart { saved, closed, panes: vec![] };
        SliceStore::load(layout.clone(), vec![part], 0..=255, Arc::new(SliceCache::new(0)))
    };
    let refusal = |result: Result<SliceStore, ExecError>| match result {
        Err(ExecError::Saved { what }) => what,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("taken"),
    };
    let whole = given.saved;
    let mut part = whole.clone();
    part.whole = false;
    insta::assert_snapshot!(refusal(load(vec![part], vec![], &layout)), @"what changed is there, but not what it changed");
    insta::assert_snapshot!(refusal(load(vec![], vec![entry(0, 0)], &layout)), @"what changed is there, but not what it changed");
    let mut again = whole.clone();
    again.whole = false;
    insta::assert_snapshot!(refusal(load(vec![whole.clone(), again], vec![], &layout)), @"keys from 0 on after 7 keys");
    let mut without = whole.clone();
    without.sections.retain(|section| section.name != "keys");
    insta::assert_snapshot!(refusal(load(vec![without], vec![], &layout)), @"0 keys of 7");
    let mut twice = whole.clone();
    let keys = twice.sections[0].clone();
    twice.sections.insert(0, keys);
    insta::assert_snapshot!(refusal(load(vec![twice], vec![], &layout)), @"a key is there twice");
    let of_two = self::layout(2, layout.grid, false);
    insta::assert_snapshot!(refusal(load(vec![whole.clone()], vec![], &of_two)), @"keys of other types");
    let retracting = self::layout(1, layout.grid, true);
    insta::assert_snapshot!(refusal(load(vec![whole.clone()], vec![], &retracting)), @"open slices of another number of states");
    let both = vec![entry(0, 0), entry(1, 0)];
    insta::assert_snapshot!(refusal(load(vec![whole.clone()], both, &layout)), @"slice 0 is there twice, or open");
    insta::assert_snapshot!(refusal(load(vec![whole.clone()], vec![entry(0, 205)], &layout)), @"slice 205 is there twice, or open");
    // What is in a file is looked at when it is read.
    let mut wrong = load(vec![whole], vec![entry(0, 1)], &layout).unwrap();
    let error = read(&wrong.snapshot().unwrap(), 0..3).unwrap_err();
    insta::assert_snapshot!(error, @"a saved state cannot be read: slice 1: the file holds another slice");
    assert_eq!(storage.reads.load(Relaxed), 1);
}

#[test]
fn a_layout_has_a_fingerprint() {
    let grid = Some(Grid { width_us: 10_000_000, phase_us: 5 });
    let text = layout(2, grid, false).fingerprint();
    insta::assert_snapshot!(text.replace(datafusion::DATAFUSION_VERSION, "VERSION"), @r#"
    keys: k Int64, s Utf8
    grid: 10000000 us from 5 us
    count() -> Int64 append-only: Int64
    sum(v@0) -> Int64 append-only: Struct("sum": non-null Int64, "count": non-null Int64, "carry": non-null Int8)
    sum(f@1) -> Float64 append-only: Struct("fixed": non-null FixedSizeBinary(16), "count": non-null Int64, "wide": Binary)
    max(v@0) -> Int64 append-only: Int64
    approx_distinct(v@0) -> Int64 append-only: Binary
    bit_xor[ false false](v@0) -> Int64 append-only: Struct("s0": Int64), of DataFusion VERSION
    "#);
    insta::assert_snapshot!(layout(0, None, true).fingerprint(), @r#"
    no keys
    count() -> Int64 retracting: Int64
    sum(v@0) -> Int64 retracting: Struct("sum": non-null Int64, "count": non-null Int64, "carry": non-null Int8)
    sum(f@1) -> Float64 retracting: Struct("fixed": non-null FixedSizeBinary(16), "count": non-null Int64, "wide": Binary)
    max(v@0) -> Int64 retracting: List(non-null Struct("v0": Int64, "weight": non-null Int64))
    approx_distinct(v@0) -> Int64 retracting: List(non-null Struct("v0": UInt64, "weight": non-null Int64))
    "#);
    let session = Session { gap_us: 1000, max_us: Some(5000) };
    let sessions = Some(SessionLayout { session, by_time: true });
    let layout = StoreLayout { keys: vec![], grid: None, measures: vec![], sessions };
    insta::assert_snapshot!(layout.fingerprint(), @"
    no keys
    sessions: gap 1000 us up to 5000 us by time
    ");
}
