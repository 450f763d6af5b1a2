//! Reading coarser groups from a store of finer ones.
//!
//! A [`Regrouping`] says how; [`Regrouped`] does it and remembers. Each open slice and each pane of closed ones has an **image**:
//! the same states grouped by the coarser keys, worked out when a read first needs it and used until the slice changes. So a
//! read of a window costs the store's rows in those of its slices that have changed since they were last read, and then what it
//! would cost in a store of its own. Everything that reads a store reads the images: they make up a [`StoreSnapshot`].
//!
//! A key of the store belongs to one worker; a coarser one is made of keys of several. So all parts are regrouped together.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Weak};

use arrow::array::{ArrayRef, BooleanArray, Int64Array, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::compute::{filter, take};
use arrow::datatypes::{Schema, SchemaRef};
use datafusion::physical_expr::PhysicalExpr;

use super::ExecError;
use super::expr::Evaluator;
use super::feed::Shortfall;
use super::id_set::IdSet;
use super::keys::{CHUNK, KeyDictionary, KeySnapshot};
use super::panes::{PaneKey, Panes, Run};
use super::slice_batch::SliceBatch;
use super::slice_store::StoreLayout;
use super::store_snapshot::{self as snapshot, StoreSnapshot};

type Expr = Arc<dyn PhysicalExpr>;

/// How groups are made of a store's. Expressions are over the store's key columns.
#[derive(Debug)]
pub struct Regrouping {
    /// The store that is read.
    pub fine: Arc<StoreLayout>,
    /// Keys for which one of these is not true are left out.
    pub filters: Vec<Expr>,
    /// The coarser keys.
    pub keys: Vec<Expr>,
    pub measures: Vec<Origin>,
    /// What comes out, on the store's grid.
    pub layout: Arc<StoreLayout>,
}

/// Where a call's states come from.
#[derive(Debug, Clone)]
pub struct Origin {
    pub held: Held,
    /// Only those of keys for which this is true.
    pub when: Option<Expr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// The rows of each group.
    Rows,
    /// The store's measure at this index.
    Measure(usize),
}

/// Images are kept up to this size for each view; those that were not used for longest go first.
const MAX_IMAGE_BYTES: usize = 64 << 20;
/// Up to so many of the store's keys are looked up one by one instead of working out a whole image.
const FEW_KEYS: usize = 256;
/// The group of a key that is left out.
const NONE: u32 = u32::MAX;

/// A regrouping at work. State: the coarser keys, 4 bytes for each of the store's keys, and the images.
pub struct Regrouped {
    plan: Arc<Regrouping>,
    keys: KeyDictionary,
    parts: Vec<Part>,
    images: HashMap<ImageOf, Image>,
    image_bytes: usize,
    reads: u64,
    /// Raised when groups are numbered anew.
    numbering: u64,
    shortfall: Shortfall,
}

/// What is known of the keys of one part of the store, by id.
#[derive(Default)]
struct Part {
    identity: Option<Arc<()>>,
    /// As long as they are the same, so are its closed slices.
    panes: Weak<Panes>,
    groups: Vec<u32>,
    /// By measure with a condition: is it true for the key?
    conditions: Vec<Vec<bool>>,
}

/// What an image is of. Closed slices need not be in memory for theirs to be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum ImageOf {
    /// The address of an open slice's rows.
    Open(usize),
    /// Part of the store, and a closed slice in it.
    Slice(usize, i64),
    /// Part of the store, and a pane of it.
    Pane(usize, PaneKey),
}

struct Image {
    /// Of an open slice: keeps its address from being used again, not its states.
    open: Option<Weak<SliceBatch>>,
    image: Arc<SliceBatch>,
    bytes: usize,
    used: u64,
}

impl Regrouped {
    pub fn new(plan: Arc<Regrouping>) -> Result<Regrouped, ExecError> {
        Ok(Regrouped {
            keys: KeyDictionary::new(&plan.layout.keys)?,
            plan,
            parts: Vec::new(),
            images: HashMap::new(),
            image_bytes: 0,
            reads: 0,
            numbering: 0,
            shortfall: Shortfall::default(),
        })
    }

    pub fn plan(&self) -> &Arc<Regrouping> {
        &self.plan
    }

    pub fn bytes(&self) -> usize {
        let known =
            |p: &Part| p.groups.capacity() * size_of::<u32>() + p.conditions.iter().map(Vec::capacity).sum::<usize>();
        self.keys.bytes() + self.image_bytes + self.parts.iter().map(known).sum::<usize>()
    }

    /// Keys of the store for which an expression failed and gave NULL, with a sample of the first.
    pub fn shortfall(&self) -> Shortfall {
        self.shortfall.clone()
    }

    /// The coarser keys as of these parts, and the number of the numbering that their ids are of.
    pub fn keys(&mut self, parts: &[StoreSnapshot]) -> Result<(u64, KeySnapshot), ExecError> {
        self.follow(parts)?;
        Ok((self.numbering, self.keys.snapshot()?))
    }

    /// The slices of a range, regrouped; with `only`, at least the groups in it.
    pub fn snapshot(
        &mut self,
        parts: &[StoreSnapshot],
        range: Range<i64>,
        only: Option<&IdSet>,
    ) -> Result<StoreSnapshot, ExecError> {
        self.follow(parts)?;
        self.reads += 1;
        let mut slices = Vec::new();
        for (part, snapshot) in parts.iter().enumerate() {
            let few = only.and_then(|only| self.few_ids(part, only));
            for of in snapshot.parts(range.clone()) {
                slices.push(self.image(part, snapshot, of, few.as_deref())?);
            }
        }
        slices.sort_by_key(|slice| slice.slice);
        self.forget_images(first_kept(parts));
        Ok(StoreSnapshot {
            layout: self.plan.layout.clone(),
            keys: self.keys.snapshot()?,
            closed: Arc::default(),
            open: slices,
            first_kept: first_kept(parts),
            closed_before: i64::MIN,
            panes: Arc::new(Panes::new(Arc::default())),
        })
    }

    /// Finds the group of every key that is new.
    fn follow(&mut self, parts: &[StoreSnapshot]) -> Result<(), ExecError> {
        let is_known = |(part, snapshot): (&Part, &StoreSnapshot)| {
            part.identity.as_ref().is_none_or(|identity| Arc::ptr_eq(identity, &snapshot.keys.identity))
        };
        if self.parts.len() != parts.len() || !self.parts.iter().zip(parts).all(is_known) {
            self.keys = KeyDictionary::new(&self.plan.layout.keys)?;
            self.parts = parts.iter().map(|_| Part::default()).collect();
            self.images.clear();
            self.image_bytes = 0;
            self.shortfall = Shortfall::default();
            self.numbering += 1;
        }
        let schema: SchemaRef = Arc::new(Schema::new(self.plan.fine.keys.to_vec()));
        for (number, (part, snapshot)) in self.parts.iter_mut().zip(parts).enumerate() {
            if !std::ptr::eq(part.panes.as_ptr(), Arc::as_ptr(&snapshot.panes)) {
                part.panes = Arc::downgrade(&snapshot.panes);
                self.images.retain(|of, _| !matches!(of, ImageOf::Slice(p, _) | ImageOf::Pane(p, _) if *p == number));
                self.image_bytes = self.images.values().map(|image| image.bytes).sum();
            }
            part.identity = Some(snapshot.keys.identity.clone());
            while part.groups.len() < snapshot.keys.len {
                let at = part.groups.len();
                let (chunk, from) = (&snapshot.keys.chunks[at / CHUNK], at % CHUNK);
                let rows = (snapshot.keys.len - at).min(CHUNK - from);
                let columns = chunk.iter().map(|column| column.slice(from, rows)).collect();
                let options = RecordBatchOptions::new().with_row_count(Some(rows));
                let batch = RecordBatch::try_new_with_options(schema.clone(), columns, &options)?;
                part.learn(&self.plan, &mut self.keys, &batch, &mut self.shortfall)?;
            }
        }
        Ok(())
    }

    /// The ids in a part that belong to these groups, if they are few.
    fn few_ids(&self, part: usize, only: &IdSet) -> Option<Vec<u32>> {
        if only.len() > FEW_KEYS {
            return None;
        }
        let groups = self.parts[part].groups.iter().enumerate();
        let ids = groups.filter(|(_, group)| **group != NONE && only.contains(**group)).map(|(id, _)| id as u32);
        let few: Vec<u32> = ids.take(FEW_KEYS + 1).collect();
        (few.len() <= FEW_KEYS).then_some(few)
    }

    fn image(
        &mut self,
        part: usize,
        snapshot: &StoreSnapshot,
        of: snapshot::Part<'_>,
        few: Option<&[u32]>,
    ) -> Result<Arc<SliceBatch>, ExecError> {
        let key = match of {
            snapshot::Part::Open(open) => ImageOf::Open(Arc::as_ptr(open) as usize),
            snapshot::Part::Closed(Run { pane: Some(pane), .. }) => ImageOf::Pane(part, pane),
            snapshot::Part::Closed(Run { pane: None, slices }) => ImageOf::Slice(part, slices[0].slice),
        };
        if let Some(known) = self.images.get_mut(&key) {
            known.used = self.reads;
            return Ok(known.image.clone());
        }
        let slice = snapshot.batch(of)?;
        if let Some(few) = few {
            let rows = few.iter().filter_map(|id| slice.ids.binary_search(id).ok()).map(|row| row as u32).collect();
            return Ok(Arc::new(self.regroup(part, &slice, rows)?));
        }
        let rows = (0..slice.ids.len() as u32).collect();
        let image = Arc::new(self.regroup(part, &slice, rows)?);
        let bytes = image.bytes;
        let open = matches!(of, snapshot::Part::Open(_)).then(|| Arc::downgrade(&slice));
        self.images.insert(key, Image { open, image: image.clone(), bytes, used: self.reads });
        self.image_bytes += bytes;
        Ok(image)
    }

    /// These rows of a slice by their groups.
    fn regroup(&self, part: usize, slice: &SliceBatch, rows: Vec<u32>) -> Result<SliceBatch, ExecError> {
        let known = &self.parts[part];
        let group_of = |row: &u32| known.groups[slice.ids[*row as usize] as usize];
        let rows: Vec<u32> = rows.into_iter().filter(|row| group_of(row) != NONE).collect();
        let mut present = IdSet::new(self.keys.len());
        rows.iter().for_each(|row| present.insert(group_of(row)));
        present.seal();
        let slots: Vec<u32> = rows.iter().map(|row| present.rank(group_of(row))).collect();
        let mut counts = vec![0; present.len()];
        for (row, &slot) in rows.iter().zip(&slots) {
            counts[slot as usize] += slice.counts[*row as usize];
        }
        let is_whole = rows.len() == slice.ids.len();
        let rows = UInt32Array::from(rows);
        let slots_of = UInt32Array::from(slots);
        let mut states = Vec::with_capacity(self.plan.measures.len());
        let mut conditions = known.conditions.iter();
        for (origin, measure) in self.plan.measures.iter().zip(&self.plan.layout.measures) {
            let all: ArrayRef = match origin.held {
                Held::Measure(fine) => slice.states[fine].clone(),
                Held::Rows => Arc::new(Int64Array::from(slice.counts.clone())),
            };
            let mut merged = measure.create();
            merged.resize(present.len());
            match &origin.when {
                None if is_whole => merged.merge(slots_of.values(), &all)?,
                None => merged.merge(slots_of.values(), &take(&all, &rows, None)?)?,
                Some(_) => {
                    let holds = conditions.next().expect("one for each condition of the plan");
                    let holds = |row: &u32| holds[slice.ids[*row as usize] as usize];
                    let mask: BooleanArray = rows.values().iter().map(|row| Some(holds(row))).collect();
                    let rows: UInt32Array = rows.values().iter().copied().filter(|row| holds(row)).collect();
                    let slots = filter(&slots_of, &mask)?;
                    let slots = slots.as_any().downcast_ref::<UInt32Array>().expect("filter keeps the type");
                    merged.merge(slots.values(), &take(&all, &rows, None)?)?;
                }
            }
            states.push(merged.states()?);
        }
        Ok(SliceBatch::new(slice.slice, present.ids(), counts, states))
    }

    /// Lets go of images of slices that are gone, and of the oldest where there are too many.
    fn forget_images(&mut self, first_kept: Option<i64>) {
        let mut left = 0;
        self.images.retain(|_, image| {
            let stays = match &image.open {
                Some(open) => open.strong_count() > 0,
                None => first_kept.is_none_or(|first| image.image.slice >= first),
            };
            left += if stays { image.bytes } else { 0 };
            stays
        });
        self.image_bytes = left;
        if self.image_bytes <= MAX_IMAGE_BYTES {
            return;
        }
        let mut by_age: Vec<_> = self.images.iter().map(|(key, image)| (image.used, *key, image.bytes)).collect();
        by_age.sort_unstable();
        for (_, key, bytes) in by_age {
            if self.image_bytes <= MAX_IMAGE_BYTES {
                break;
            }
            self.images.remove(&key);
            self.image_bytes -= bytes;
        }
    }
}

impl Part {
    /// Takes in the next keys.
    fn learn(
        &mut self,
        plan: &Regrouping,
        keys: &mut KeyDictionary,
        batch: &RecordBatch,
        shortfall: &mut Shortfall,
    ) -> Result<(), ExecError> {
        let mut note = |evaluator: Evaluator| {
            shortfall.add(Shortfall { errors: evaluator.errors, sample: evaluator.sample, left_out: 0 });
        };
        let mut holds = |condition: &Expr| -> Result<BooleanArray, ExecError> {
            let mut evaluator = Evaluator::new(condition.clone());
            let passed = evaluator.evaluate_predicate(batch)?;
            note(evaluator);
            Ok(passed)
        };
        let mut stays: Option<BooleanArray> = None;
        for filter in &plan.filters {
            let passed = holds(filter)?;
            stays = Some(match stays {
                None => passed,
                Some(before) => arrow::compute::and(&before, &passed)?,
            });
        }
        let conditions: Vec<&Expr> = plan.measures.iter().filter_map(|origin| origin.when.as_ref()).collect();
        self.conditions.resize(conditions.len(), Vec::new());
        for (known, condition) in self.conditions.iter_mut().zip(conditions) {
            known.extend(holds(condition)?.values().iter());
        }
        let kept = match &stays {
            None => batch.clone(),
            Some(mask) => arrow::compute::filter_record_batch(batch, mask)?,
        };
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(plan.keys.len());
        for key in &plan.keys {
            let mut evaluator = Evaluator::new(key.clone());
            columns.push(evaluator.evaluate(&kept)?);
            note(evaluator);
        }
        let mut ids = Vec::with_capacity(kept.num_rows());
        keys.intern(&columns, kept.num_rows(), &mut ids)?;
        let mut ids = ids.into_iter();
        self.groups.extend((0..batch.num_rows()).map(|row| match &stays {
            Some(mask) if !mask.value(row) => NONE,
            _ => ids.next().expect("an id for each key that stays"),
        }));
        Ok(())
    }
}

/// Windows that begin before this slice are no longer whole in some part.
pub fn first_kept(parts: &[StoreSnapshot]) -> Option<i64> {
    parts.iter().filter_map(|part| part.first_kept).max()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use arrow::array::{Array, AsArray};
    use arrow::datatypes::{DataType, Field, Int64Type};
    use arrow::row::{OwnedRow, RowConverter, SortField};
    use datafusion::logical_expr::Operator;
    use datafusion::physical_expr::expressions::{Column, binary, lit};
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::exec::Delta;
    use crate::exec::regroup_changes::RegroupedChanges;
    use crate::exec::slice_store::{Grid, SliceStore, StoreRows};
    use crate::exec::state::Measure;
    use crate::exec::window_view::{Group, Shown, WindowView};
    use crate::planner::stream_plan::{Call, Emit, Function, Window};

    /// (slice, a, b, value), each a row.
    type Row = (i64, i64, i64, i64);
    /// By `a`: rows, rows where `a` is odd, sum, sum where `b` is 1.
    type Expected = BTreeMap<i64, (i64, i64, Option<i64>, Option<i64>)>;

    fn column(name: &str, i: usize) -> Expr {
        Arc::new(Column::new(name, i))
    }

    fn measures(names: &[Function]) -> Vec<Measure> {
        let input = Schema::new(vec![Field::new("v", DataType::Int64, true)]);
        let measure = |function: &Function| {
            let args = if matches!(function, Function::Count) { vec![] } else { vec![column("v", 0)] };
            let output = Arc::new(Field::new("x", DataType::Int64, true));
            let call = Call { function: function.clone(), args, filter: None, distinct: false, output };
            Measure::new(&call, &input, false).unwrap()
        };
        names.iter().map(measure).collect()
    }

    /// Stores of (a, b), one for each worker; groups of `a` alone where `b` is not 3.
    struct Case {
        stores: Vec<SliceStore>,
        regrouped: Regrouped,
        rows: Vec<Row>,
    }

    impl Case {
        fn new(parts: usize) -> Case {
            let key = |name: &str| Arc::new(Field::new(name, DataType::Int64, true));
            let grid = Some(Grid { width_us: 1, phase_us: 0 });
            let fine = Arc::new(StoreLayout {
                keys: vec![key("a"), key("b")],
                grid,
                sessions: None,
                measures: measures(&[Function::Sum]),
            });
            let calls = [Function::Count, Function::Count, Function::Sum, Function::Sum];
            let layout =
                Arc::new(StoreLayout { keys: vec![key("a")], grid, sessions: None, measures: measures(&calls) });
            let schema = Schema::new(fine.keys.to_vec());
            let is = |left: Expr, op, right: i64| binary(left, op, lit(right), &schema).unwrap();
            let odd = is(is(column("a", 0), Operator::Modulo, 2), Operator::Eq, 1);
            let plan = Regrouping {
                fine: fine.clone(),
                filters: vec![is(column("b", 1), Operator::NotEq, 3)],
                keys: vec![column("a", 0)],
                measures: vec![
                    Origin { held: Held::Rows, when: None },
                    Origin { held: Held::Rows, when: Some(odd) },
                    Origin { held: Held::Measure(0), when: None },
                    Origin { held: Held::Measure(0), when: Some(is(column("b", 1), Operator::Eq, 1)) },
                ],
                layout,
            };
            Case {
                stores: (0..parts).map(|_| SliceStore::new(fine.clone()).unwrap()).collect(),
                regrouped: Regrouped::new(Arc::new(plan)).unwrap(),
                rows: Vec::new(),
            }
        }

        fn add(&mut self, rows: &[Row]) {
            let parts = self.stores.len() as i64;
            for (part, store) in self.stores.iter_mut().enumerate() {
                let mine: Vec<&Row> = rows.iter().filter(|r| (r.1 + r.2).rem_euclid(parts) == part as i64).collect();
                let values = |get: fn(&Row) -> i64| -> ArrayRef {
                    Arc::new(mine.iter().map(|row| get(row)).collect::<Int64Array>())
                };
                let batch = StoreRows {
                    rows: mine.len(),
                    slices: mine.iter().map(|r| r.0).collect(),
                    keys: vec![values(|r| r.1), values(|r| r.2)],
                    args: vec![vec![values(|r| r.3)]],
                    filters: vec![None],
                    weights: None,
                };
                store.apply(&batch).unwrap();
            }
            self.rows.extend(rows);
        }

        fn parts(&mut self) -> Vec<StoreSnapshot> {
            self.stores.iter_mut().map(|store| store.snapshot().unwrap()).collect()
        }

        fn check(&mut self, parts: &[StoreSnapshot], range: Range<i64>, only: Option<&[i64]>) {
            let mut expected = Expected::new();
            for &(slice, a, b, value) in &self.rows {
                if range.contains(&slice) && b != 3 && only.is_none_or(|only| only.contains(&a)) {
                    let group = expected.entry(a).or_default();
                    group.0 += 1;
                    group.1 += i64::from(a % 2 == 1);
                    group.2 = Some(group.2.unwrap_or(0) + value);
                    if b == 1 {
                        group.3 = Some(group.3.unwrap_or(0) + value);
                    }
                }
            }
            let (_, keys) = self.regrouped.keys(parts).unwrap();
            let key = |id: u32| keys.take(&[id]).unwrap()[0].as_primitive::<Int64Type>().value(0);
            let only = only.map(|only| {
                let mut ids = IdSet::new(keys.len);
                (0..keys.len as u32).filter(|&id| only.contains(&key(id))).for_each(|id| ids.insert(id));
                ids.seal();
                ids
            });
            let snapshot = self.regrouped.snapshot(parts, range.clone(), only.as_ref()).unwrap();
            let merged = snapshot.merge(range, &[0, 1, 2, 3], only.as_ref()).unwrap();
            let value = |output: usize, row: usize| {
                let values = merged.outputs[output].as_primitive::<Int64Type>();
                values.is_valid(row).then(|| values.value(row))
            };
            let read = merged.ids.iter().enumerate().map(|(row, &id)| {
                let counts = (value(0, row).unwrap(), value(1, row).unwrap());
                (key(id), (counts.0, counts.1, value(2, row), value(3, row)))
            });
            assert_eq!(read.collect::<Expected>(), expected);
        }
    }

    #[test]
    fn groups_equal_those_worked_out_from_the_rows() {
        for seed in 0..60 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut case = Case::new(random.random_range(1..4));
            let mut closed = 0;
            for _ in 0..random.random_range(2..8) {
                let rows: Vec<Row> = (0..random.random_range(0..40))
                    .map(|_| {
                        let (a, b) = (random.random_range(0..6), random.random_range(0..5));
                        (closed + random.random_range(0..14), a, b, random.random_range(-9..9))
                    })
                    .collect();
                case.add(&rows);
                if random.random_bool(0.6) {
                    closed += random.random_range(0..8);
                    case.stores.iter_mut().for_each(|store| store.close(closed).unwrap());
                }
                let parts = case.parts();
                for _ in 0..3 {
                    let from = random.random_range(0..closed + 14);
                    case.check(&parts, from..from + random.random_range(1..40), None);
                    case.check(&parts, from..from + 9, Some(&[1, random.random_range(0..9)]));
                }
            }
        }
    }

    /// Changes that are told tick by tick, also by who goes on where another has stopped, add up to what is read.
    #[test]
    fn changes_add_up_to_what_is_read() {
        let time = DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, None);
        let mut fields = vec![Field::new("a", DataType::Int64, true), Field::new("window_end", time, true)];
        fields.extend(["n", "odd", "s", "one"].map(|name| Field::new(name, DataType::Int64, true)));
        let schema = Arc::new(Schema::new(fields));
        for seed in 0..60 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut case = Case::new(random.random_range(1..4));
            let view = WindowView {
                window: Some(Window::hop(random.random_range(1..9), random.random_range(1..4), 0)),
                group: vec![Group::Key(0), Group::WindowEnd],
                measures: vec![0, 1, 2, 3],
                schema: schema.clone(),
                emit: if random.random_bool(0.5) { Emit::OnUpdate } else { Emit::OnWindowClose },
                shows_empty: false,
                overflows: Arc::default(),
            };
            let converter =
                RowConverter::new(schema.fields().iter().map(|f| SortField::new(f.data_type().clone())).collect());
            let converter = converter.unwrap();
            let add = |told: &mut BTreeMap<OwnedRow, i64>, delta: &Delta| {
                let rows = converter.convert_columns(delta.rows.columns()).unwrap();
                for (i, row) in rows.iter().enumerate() {
                    *told.entry(row.owned()).or_default() += delta.weight(i);
                }
                told.retain(|_, weight| *weight != 0);
            };
            let mut changes = RegroupedChanges::new(view.clone()).unwrap();
            let mut told = BTreeMap::new();
            let mut closed = 0;
            for _ in 0..random.random_range(2..9) {
                let rows: Vec<Row> = (0..random.random_range(0..20))
                    .map(|_| {
                        let (a, b) = (random.random_range(0..4), random.random_range(0..5));
                        (closed + random.random_range(0..8), a, b, random.random_range(-9..9))
                    })
                    .collect();
                case.add(&rows);
                closed += random.random_range(0..5);
                let shown = Shown { horizon_us: None, final_until_us: Some(closed) };
                let parts = case.parts();
                add(&mut told, &changes.step(&mut case.regrouped, &parts, &shown).unwrap());
                case.stores.iter_mut().for_each(|store| store.close(closed).unwrap());
                let parts = case.parts();
                if random.random_bool(0.3) {
                    changes = RegroupedChanges::new(view.clone()).unwrap();
                    changes.resume(&mut case.regrouped, &parts, &shown).unwrap();
                }
                let mut all = BTreeMap::new();
                let mut fresh = RegroupedChanges::new(view.clone()).unwrap();
                add(&mut all, &fresh.step(&mut case.regrouped, &parts, &shown).unwrap());
                assert!(told == all, "seed {seed}");
            }
        }
    }

    /// An old snapshot is read while the store has gone on, and numbers its keys anew.
    #[test]
    fn keys_that_are_numbered_anew_are_found_again() {
        let mut case = Case::new(2);
        let many: Vec<Row> = (0..60_000).map(|i| (0, i, i % 3, 1)).collect();
        case.add(&many);
        case.add(&[(5, 3, 1, 7), (5, 59_999, 0, 8)]);
        let before = case.parts();
        case.check(&before, 0..9, Some(&[3, 59_999, 12_345]));
        case.check(&before, 5..6, None);
        for store in &mut case.stores {
            store.close(5).unwrap();
            assert!(store.forget(5).unwrap().is_some(), "the dictionary is rebuilt");
        }
        let all = std::mem::take(&mut case.rows);
        case.rows = all.iter().copied().filter(|row| row.0 >= 5).collect();
        case.add(&[(6, 4, 1, 1)]);
        let after = case.parts();
        case.check(&after, 5..9, None);
        case.rows = all;
        case.check(&before, 0..6, Some(&[3, 59_999, 12_345]));
    }

    #[test]
    fn closed_slices_that_are_replaced_are_regrouped_anew() {
        let mut case = Case::new(1);
        case.add(&(0..80).map(|i| (i % 8, i % 5, i % 4, i)).collect::<Vec<_>>());
        case.stores[0].close(8).unwrap();
        let parts = case.parts();
        case.check(&parts, 0..8, None);
        let right: Vec<Row> = case.rows.iter().copied().filter(|row| row.0 != 2 || row.1 != 2).collect();
        let mut other = Case::new(1);
        other.add(&right.iter().copied().filter(|row| row.0 == 2).collect::<Vec<_>>());
        case.stores[0].replace(2..3, &other.stores[0].drain().unwrap()).unwrap();
        case.rows = right;
        let parts = case.parts();
        case.check(&parts, 0..8, None);
        case.check(&parts, 2..3, None);
        assert_eq!(case.regrouped.image_bytes, case.regrouped.images.values().map(|image| image.bytes).sum::<usize>());
    }

    #[test]
    fn images_are_kept_while_their_slices_stay() {
        let mut case = Case::new(1);
        case.add(&(0..20).map(|i| (i % 4, i, 0, 1)).collect::<Vec<_>>());
        let parts = case.parts();
        case.check(&parts, 0..4, None);
        let images = case.regrouped.images.len();
        assert_eq!(images, 4);
        case.add(&[(3, 1, 1, 1)]);
        let later = case.parts();
        drop(parts);
        case.check(&later, 0..4, None);
        assert_eq!(case.regrouped.images.len(), 4, "the image of what slice 3 was has gone");
        assert_eq!(case.regrouped.image_bytes, case.regrouped.images.values().map(|image| image.bytes).sum::<usize>());
    }
}
