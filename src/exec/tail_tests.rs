//! Tails that are saved and loaded between ticks against tails that are not: random rows through plans of every kind of node
//! that keeps something. Both must put out the same, node by node and tick by tick.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, SchemaRef};
use datafusion::logical_expr::Operator as Sign;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{Column, binary, lit};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::ExecError;
use super::closed_slice::SliceFile;
use super::durable::Saved;
use super::flow::{Flow, Input, Objects, Output};
use super::horizon::Horizon;
use super::session_batch::{SessionSnapshot, forgotten_until};
use super::store_saved::ClosedEntry;
use super::tail::{Tail, Times, shown};
use super::tail_saves::InFiles;
use super::text::{parse, parse_schema, print};
use super::window_view::Shown;
use crate::planner::stream_plan::{
    Aggregate, Call, Clock, Comparison, Emit, Function, GroupColumn, Moment, MomentStep, Node, Oid, Op, OrderBy,
    ScanKind, Session, Sessions, StoreChoice, StreamPlan, TimeBound, Window,
};

const TABLE: Oid = 1;
const ROWS: &str = "k:i v:i ts:n";
const SECOND: i64 = 1_000_000;

type Expr = Arc<dyn PhysicalExpr>;

/// Nodes one upon the other.
struct Plan {
    nodes: Vec<Node>,
    append_only: bool,
}

impl Plan {
    fn new(append_only: bool) -> Self {
        let scan = Op::Scan { object: TABLE, name: "t".into(), kind: ScanKind::Table, projection: vec![0, 1, 2] };
        let node = Node { op: scan, inputs: Vec::new(), schema: parse_schema(ROWS), append_only };
        Plan { nodes: vec![node], append_only }
    }

    fn column(&self, name: &str) -> Expr {
        let schema = &self.nodes.last().unwrap().schema;
        Arc::new(Column::new(name, schema.index_of(name).unwrap()))
    }

    fn push(mut self, op: Op, schema: SchemaRef, append_only: bool) -> Self {
        let inputs = vec![self.nodes.len() - 1];
        self.nodes.push(Node { op, inputs, schema, append_only });
        self
    }

    /// `1000 / v` in the place of v, which fails for 0.
    fn dividing(self) -> Self {
        let schema = self.nodes[0].schema.clone();
        let quotient = binary(lit(1000i64), Sign::Divide, self.column("v"), &schema).unwrap();
        let exprs = vec![self.column("k"), quotient, self.column("ts")];
        let append_only = self.append_only;
        self.push(Op::Project { exprs }, schema, append_only)
    }

    fn calls(&self, value: &str) -> Vec<Call> {
        let output = |name: &str| Arc::new(Field::new(name, DataType::Int64, true));
        let call = |function, args, name| Call { function, args, filter: None, distinct: false, output: output(name) };
        vec![
            call(Function::Count, Vec::new(), "n"),
            call(Function::Sum, vec![self.column(value)], "s"),
            call(Function::Max, vec![self.column(value)], "m"),
        ]
    }

    /// By `key` if there is one, and by window if there is one.
    fn aggregate(self, key: Option<&str>, window: Option<(&str, Window)>, value: &str, emit: Emit) -> Self {
        let keys = key.map(|key| GroupColumn::Key(self.column(key))).into_iter();
        let bounds = window.map(|_| [GroupColumn::WindowStart, GroupColumn::WindowEnd]).into_iter().flatten();
        let time = |name: &str| self.nodes.last().unwrap().schema.index_of(name).unwrap();
        let aggregate = Aggregate {
            group: keys.chain(bounds).collect(),
            window: window.map(|(name, window)| (time(name), window)),
            calls: self.calls(value),
        };
        let key = if key.is_some() { "k:i " } else { "" };
        let bounds = if window.is_some() { "window_start:n window_end:n " } else { "" };
        let schema = parse_schema(&format!("{key}{bounds}n:i s:i m:i"));
        self.push(Op::Aggregate(aggregate), schema, window.is_some() && emit == Emit::OnWindowClose)
    }

    fn sessions(self, session: Session, emit: Emit) -> Self {
        let group = vec![GroupColumn::Key(self.column("k")), GroupColumn::WindowStart, GroupColumn::WindowEnd];
        let aggregate = Aggregate { group, window: None, calls: self.calls("v") };
        let schema = parse_schema("k:i window_start:n window_end:n n:i s:i m:i");
        self.push(Op::Sessions(Sessions { aggregate, time: 2, session }), schema, emit == Emit::OnWindowClose)
    }

    fn temporal(self, time: &str, comparison: Comparison, add_us: i64, clock: Clock) -> Self {
        let bound =
            TimeBound { time: self.column(time), comparison, moment: Moment(vec![MomentStep::Add { us: add_us }]) };
        let schema = self.nodes.last().unwrap().schema.clone();
        self.push(Op::TemporalFilter { clock, bounds: vec![bound] }, schema, false)
    }

    fn top(self, partition_by: Vec<usize>, column: usize, row_number: bool) -> Self {
        let below = self.nodes.last().unwrap().schema.clone();
        let mut fields: Vec<Field> = below.fields().iter().map(|field| field.as_ref().clone()).collect();
        if row_number {
            fields.push(Field::new("rank", DataType::Int64, true));
        }
        let order_by = vec![OrderBy { column, descending: true, nulls_first: false }];
        let op = Op::TopN { partition_by, order_by, offset: 0, limit: 2, row_number };
        self.push(op, Arc::new(arrow::datatypes::Schema::new(fields)), false)
    }

    /// The rows of the last node twice.
    fn doubled(mut self) -> Self {
        let last = self.nodes.len() - 1;
        let Node { schema, append_only, .. } = self.nodes[last].clone();
        self.nodes.push(Node { op: Op::UnionAll, inputs: vec![last, last], schema, append_only });
        self
    }

    fn every(self, interval_us: i64) -> Self {
        let Node { schema, append_only, .. } = self.nodes.last().unwrap().clone();
        self.push(Op::EmitEvery { interval_us }, schema, append_only)
    }

    fn done(self, emit: Emit, retention_us: Option<i64>) -> StreamPlan {
        StreamPlan { nodes: self.nodes, retention_us, emit, store: StoreChoice::Auto, over: Vec::new() }
    }
}

/// The table's time has a watermark if rows of it never go.
struct Tables {
    append_only: bool,
}

impl Objects for Tables {
    fn horizons(&self, _: Oid) -> Vec<Option<Horizon>> {
        vec![None, None, self.append_only.then_some(Horizon::Source(TABLE))]
    }
}

#[derive(Clone, Copy, Default)]
struct Now {
    clock_us: i64,
    watermark_us: Option<i64>,
    lateness_us: i64,
}

impl Times for Now {
    fn watermark_us(&self, _: Oid) -> Option<i64> {
        self.watermark_us
    }

    fn final_until_us(&self, _: Oid) -> Option<i64> {
        self.watermark_us.map(|us| us - self.lateness_us)
    }
}

#[derive(Debug)]
struct InMemory(Saved);

impl SliceFile for InMemory {
    fn read(&self) -> Result<Saved, ExecError> {
        Ok(self.0.clone())
    }
}

/// A closed slice in a file.
struct Kept {
    rows: usize,
    bytes: usize,
    file: Arc<dyn SliceFile>,
}

/// What is kept of a tail.
#[derive(Default)]
struct Store {
    saves: Vec<Saved>,
    closed: BTreeMap<(usize, i64), Kept>,
}

impl Store {
    fn save(&mut self, tail: &mut Tail, whole: bool) {
        let saved = tail.save(whole).unwrap();
        for (node, slice) in saved.closed {
            let file: Arc<dyn SliceFile> = Arc::new(InMemory(slice.to_save().unwrap()));
            slice.keep_in(file.clone());
            let kept = Kept { rows: slice.rows(), bytes: slice.bytes(), file };
            self.closed.insert((node, slice.slice), kept);
        }
        assert_eq!(saved.saved.whole, whole || self.saves.is_empty());
        self.saves.push(saved.saved);
    }

    fn load(&self, flow: &Flow, now: Now, retention_us: Option<i64>) -> Result<Tail, ExecError> {
        let entry = |(&(node, slice), kept): (&(usize, i64), &Kept)| {
            (node, ClosedEntry { slice, rows: kept.rows, bytes: kept.bytes, file: kept.file.clone() })
        };
        let in_files = InFiles { closed: self.closed.iter().map(entry).collect(), panes: Vec::new() };
        Tail::load(flow, &self.saves, in_files, &now, now.clock_us, retention_us, &Arc::default())
    }
}

/// What has happened over all seeds, so that no check is of nothing.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    loads: usize,
    increments: usize,
    changes: usize,
}

/// Ticks of random rows through one plan; the random source says when the tail is saved, loaded, and followed.
fn run(plan: &StreamPlan, append_only: bool, seed: u64, seen: &mut Seen) {
    let mut random = StdRng::seed_from_u64(seed);
    let tables = Tables { append_only };
    let flow = || Flow::of(plan, &tables).unwrap();
    let (flows, mut cut_flow) = (flow(), flow());
    let (mut straight, mut cut) = (Tail::new(&flows).unwrap(), Tail::new(&cut_flow).unwrap());
    let mut store = Store::default();
    cut.track_saves();
    let in_place = match flows.output {
        Output::Aggregate { node, .. } => Some(node),
        _ => None,
    };
    let mut now = Now { lateness_us: random.random_range(0..3) * 5 * SECOND, ..Now::default() };
    let mut bag: BTreeMap<(i64, i64, i64), i64> = BTreeMap::new();
    for tick in 0..25 {
        now.clock_us += random.random_range(0..8) * SECOND;
        let least = now.final_until_us(TABLE).map_or(now.clock_us / SECOND - 40, |us| us.div_euclid(SECOND));
        let mut lines = vec![ROWS.to_string()];
        for _ in 0..random.random_range(0..7) {
            let old = bag.keys().nth(random.random_range(0..=bag.len())).copied();
            let (row, weight) = match old.filter(|_| !append_only && random.random_bool(0.5)) {
                Some(row) => (row, -1),
                None => {
                    ((random.random_range(0..4), random.random_range(-3..4), least + random.random_range(0..40)), 1)
                }
            };
            *bag.entry(row).or_default() += weight;
            bag.retain(|_, weight| *weight != 0);
            lines.push(format!("{weight} {} {} {}", row.0, row.1, row.2));
        }
        let delta = parse(&lines.join("\n"));
        if append_only && random.random_bool(0.6) {
            now.watermark_us = now.watermark_us.max(Some((least + random.random_range(0..25)) * SECOND));
        }
        let external = |input: Input| match input {
            Input::Object(TABLE) => vec![delta.clone()],
            other => panic!("{other:?}"),
        };
        let mut told = [&mut straight, &mut cut].map(|tail| {
            tail.emits = tail.every().is_some_and(|every| every.is_due(now.clock_us));
            let outputs = tail.step(&external, &now, now.clock_us, plan.retention_us).unwrap();
            outputs.iter().map(print).collect::<Vec<String>>()
        });
        if let Some(node) = in_place {
            if random.random_bool(0.2) && !straight.gives_changes(node) {
                for (tail, told) in [&mut straight, &mut cut].into_iter().zip(&mut told) {
                    told.push(print(&tail.begin_changes(node, &now, plan.retention_us).unwrap()));
                }
            }
            assert_eq!(straight.gives_changes(node), cut.gives_changes(node));
            let shown = shown(Some(&Horizon::Source(TABLE)), &now, plan.retention_us);
            told[0].push(rows(&mut straight, node, &shown));
            told[1].push(rows(&mut cut, node, &shown));
        }
        let ops: Vec<_> = plan.nodes.iter().map(|node| node.op.clone()).collect();
        assert_eq!(told[0], told[1], "seed {seed}, tick {tick}: {ops:?}");
        seen.changes += told[0].iter().skip(1).filter(|text| !text.is_empty()).count();
        assert_eq!(straight.shortfall(), cut.shortfall(), "seed {seed}, tick {tick}");
        if random.random_bool(0.4) {
            store.save(&mut cut, random.random_bool(0.1));
            let last = store.saves.last().unwrap();
            seen.increments += usize::from(!last.whole && !last.sections.is_empty());
            if random.random_bool(0.6) {
                cut_flow = flow();
                cut = store.load(&cut_flow, now, plan.retention_us).unwrap();
                cut.track_saves();
                seen.loads += 1;
            }
        }
    }
}

/// What a store holds, in the form that is saved.
fn rows(tail: &mut Tail, node: usize, shown: &Shown) -> String {
    match tail.snapshot(node) {
        Ok(snapshot) => {
            let mut text = Vec::new();
            for slice in snapshot.slices(i64::MIN..i64::MAX) {
                let batch = slice.batch().unwrap();
                let keys = snapshot.keys.take(&batch.ids).unwrap();
                let mut of_slice: Vec<String> = (0..batch.ids.len())
                    .map(|row| {
                        let of = |column: &arrow::array::ArrayRef| format!("{:?}", column.slice(row, 1));
                        let all: Vec<String> = keys.iter().chain(&batch.states).map(of).collect();
                        format!("{} {} {}", slice.number(), batch.counts[row], all.join(" "))
                    })
                    .collect();
                of_slice.sort();
                text.extend(of_slice);
            }
            text.join("\n")
        }
        Err(_) => {
            let SessionSnapshot { closed, open, .. } = tail.session_snapshot(node).unwrap();
            let mut ends: Vec<_> = closed
                .iter()
                .chain([&open])
                .flat_map(|batch| {
                    batch.ids.iter().copied().zip(batch.starts_us.iter().copied().zip(batch.ends_us.clone()))
                })
                .collect();
            // What is forgotten may go at once, or with its batch.
            ends.retain(|(_, (_, end_us))| forgotten_until(shown).is_none_or(|us| *end_us > us));
            ends.sort_unstable();
            format!("{ends:?}")
        }
    }
}

/// Every plan with every way of showing windows, with and without retention.
fn plans(random: &mut StdRng) -> Vec<(StreamPlan, bool)> {
    let mut all = Vec::new();
    let close = |append_only: bool| if append_only { Emit::OnWindowClose } else { Emit::OnUpdate };
    for append_only in [true, false] {
        for emit in [Emit::OnUpdate, close(append_only)] {
            let slide_us = random.random_range(1..6) * 5 * SECOND;
            let window = match random.random_bool(0.3) {
                true => Window { cumulates: true, ..Window::hop(3 * slide_us, slide_us, 0) },
                false => Window::hop(random.random_range(1..5) * 5 * SECOND, slide_us, 3 * SECOND),
            };
            let session = Session { gap_us: random.random_range(1..12) * SECOND, max_us: None };
            let longest = random.random_bool(0.5).then_some(20 * SECOND);
            let session = Session { max_us: longest, ..session };
            let keeps = (append_only && random.random_bool(0.5)).then_some(30 * SECOND);
            let new = || Plan::new(append_only);
            let by_window = |plan: Plan| plan.aggregate(Some("k"), Some(("ts", window)), "v", emit);
            let watermark = || match append_only {
                true => Clock::Watermark { object: TABLE, name: "t".into() },
                false => Clock::Now,
            };
            let plans = [
                by_window(new().dividing()),
                by_window(new()).top(vec![2], 3, random.random_bool(0.5)),
                new().aggregate(Some("k"), None, "v", emit).aggregate(None, None, "n", emit),
                new().aggregate(Some("k"), None, "v", emit).aggregate(None, None, "n", emit).top(vec![], 0, false),
                new().sessions(session, emit),
                new()
                    .sessions(session, emit)
                    .aggregate(Some("k"), Some(("window_start", Window::hop(20 * SECOND, 20 * SECOND, 0))), "n", emit)
                    .top(vec![1], 3, true),
                new().temporal("ts", Comparison::Greater, -20 * SECOND, Clock::Now).aggregate(
                    Some("k"),
                    None,
                    "v",
                    emit,
                ),
                new().temporal("ts", Comparison::LessOrEqual, 5 * SECOND, watermark()).top(vec![0], 1, false).doubled(),
                by_window(new()).temporal("window_end", Comparison::Greater, -15 * SECOND, watermark()),
                new().dividing().top(vec![], 1, true),
                by_window(new()).every(10 * SECOND),
                new().sessions(session, emit).every(15 * SECOND),
            ];
            all.extend(plans.into_iter().map(|plan| (plan.done(emit, keeps), append_only)));
        }
    }
    all
}

#[test]
fn a_tail_that_was_saved_goes_on_as_it_was() {
    let mut seen = vec![Seen::default(); 48];
    for seed in 0..25 {
        let mut random = StdRng::seed_from_u64(1000 + seed);
        for (i, (plan, append_only)) in plans(&mut random).iter().enumerate() {
            run(plan, *append_only, seed * 100 + i as u64, &mut seen[i]);
        }
    }
    for (i, seen) in seen.iter().enumerate() {
        assert!(seen.loads > 50 && seen.increments > 50 && seen.changes > 50, "plan {i}: {seen:?}");
    }
}

#[test]
fn counts_go_on_after_a_restart() {
    let plan = Plan::new(true).dividing().top(vec![], 1, false).done(Emit::OnUpdate, None);
    let flow = Flow::of(&plan, &Tables { append_only: true }).unwrap();
    let mut tail = Tail::new(&flow).unwrap();
    tail.track_saves();
    let mut store = Store::default();
    let mut counts = Vec::new();
    for _ in 0..3 {
        let delta = parse(&format!("{ROWS}\n+ 1 0 1\n+ 1 1 1"));
        tail.step(&|_| vec![delta.clone()], &Now::default(), 0, None).unwrap();
        store.save(&mut tail, false);
        tail = store.load(&flow, Now::default(), None).unwrap();
        let shortfall = tail.shortfall();
        counts.push((shortfall.errors, shortfall.sample.is_some()));
    }
    assert_eq!(counts, [(1, true), (2, true), (3, true)]);
}

#[test]
fn what_is_no_tail_is_refused() {
    let plan = || {
        let window = Window::hop(10 * SECOND, 10 * SECOND, 0);
        let windows = Plan::new(true).aggregate(Some("k"), Some(("ts", window)), "v", Emit::OnUpdate);
        windows.temporal("window_end", Comparison::Greater, 0, Clock::Now).top(vec![], 3, false)
    };
    let flow = |plan: Plan| Flow::of(&plan.done(Emit::OnUpdate, None), &Tables { append_only: true }).unwrap();
    let mut tail = Tail::new(&flow(plan())).unwrap();
    tail.track_saves();
    let delta = parse(&format!("{ROWS}\n+ 1 5 1\n+ 2 1 1"));
    tail.step(&|_| vec![delta.clone()], &Now::default(), 0, None).unwrap();
    let mut store = Store::default();
    store.save(&mut tail, false);
    let good = store.saves[0].clone();
    let load = |flow: &Flow, change: &dyn Fn(&mut Saved)| {
        let mut saved = good.clone();
        change(&mut saved);
        let store = Store { saves: vec![saved], ..Store::default() };
        match store.load(flow, Now::default(), None) {
            Ok(_) => "loaded".to_string(),
            Err(error @ ExecError::Saved { .. }) => error.to_string(),
            Err(error) => panic!("{error:?}"),
        }
    };
    let same = flow(plan());
    let mut tries = vec![load(&same, &|_| ()), load(&flow(plan().doubled()), &|_| ())];
    let names: Vec<String> = good.sections.iter().map(|section| section.name.clone()).collect();
    for (at, name) in names.iter().enumerate() {
        tries.push(format!("without {name}: {}", load(&same, &|saved| drop(saved.sections.remove(at)))));
        tries.push(format!("{name} cut: {}", load(&same, &|saved| drop(saved.sections[at].rows.remove_column(0)))));
    }
    tries.push(load(&same, &|saved| saved.sections[0].name = "9/keys".into()));
    tries.push(load(&same, &|saved| saved.sections[0].name = "keys".into()));
    tries.push(load(&same, &|saved| drop(saved.notes["nodes"].as_array_mut().unwrap().pop())));
    tries.push(load(&same, &|saved| saved.notes = serde_json::Value::Null));
    tries.push(load(&same, &|saved| saved.whole = false));
    insta::assert_snapshot!(tries.join("\n"), @r"
    loaded
    a saved state cannot be read: a tail of 4 nodes, which has 5 now
    without 1/keys: a saved state cannot be read: a section of a node of the tail is missing
    1/keys cut: a saved state cannot be read: keys of other types
    without 1/open: a saved state cannot be read: a section of a node of the tail is missing
    1/open cut: a saved state cannot be read: open slices of other types
    without 2/rows: a saved state cannot be read: a section of a node of the tail is missing
    2/rows cut: a saved state cannot be read: section rows: column weight is missing or of another type
    without 3/rows: a saved state cannot be read: a section of a node of the tail is missing
    3/rows cut: a saved state cannot be read: section rows: column weight is missing or of another type
    a saved state cannot be read: section 9/keys is of no node
    a saved state cannot be read: section keys is of no node
    a saved state cannot be read: section 3/rows is of no node
    a saved state cannot be read: notes: invalid type: null, expected struct Notes
    a saved state cannot be read: there is no whole one to begin with
    ");
}
