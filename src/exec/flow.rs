//! From a [`StreamPlan`] to its parts: what workers do to a source's rows, and what comes after.
//!
//! Filters and projections over a source are folded into the expressions of what stands above them, so that two views that
//! say the same in different words of SQL have the same feed, and can share a store.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, SchemaRef};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{CastExpr, Column};

use super::ExecError;
use super::emitted_times::EmittedTimes;
use super::horizon::{Horizon, OldestSession};
use super::session_store::SessionLayout;
use super::slice_store::{Grid, StoreLayout};
use super::state::Measure;
use super::tail::Times;
use super::window_view::{Group, WindowView};
use crate::planner::stream_plan::Oid;
use crate::planner::stream_plan::{
    Aggregate, Clock, Comparison, Emit, GroupColumn, Moment, Node, Op, ScanKind, Session, StreamPlan,
};

type Expr = Arc<dyn PhysicalExpr>;

/// A plan taken apart.
#[derive(Debug, Clone)]
pub struct Flow {
    /// Aggregations straight over a source, kept by the workers.
    pub feeds: Vec<Feed>,
    /// Rows of a source that go on as they are.
    pub passes: Vec<Pass>,
    /// What comes after, in execution order.
    pub tail: Vec<TailNode>,
    pub output: Output,
    /// Where the view's changes come out.
    pub last: Input,
    /// Per output column: the time below which nothing changes in it any more, if that is known.
    pub horizons: Vec<Option<Horizon>>,
    /// The same with temporal filters left out, which change rows of any time: what a reader is told.
    pub shown_horizons: Vec<Option<Horizon>>,
    pub schema: SchemaRef,
}

/// Rows of a source after filters, as expressions over the source's schema.
#[derive(Debug, Clone)]
pub struct SourceRows {
    pub source: Oid,
    pub filters: Vec<Expr>,
    pub columns: Vec<Expr>,
}

/// An aggregation over a source: what its store holds and how rows get there.
#[derive(Debug, Clone)]
pub struct Feed {
    pub source: Oid,
    /// All must be true. Expressions of a feed are over the source's schema.
    pub filters: Vec<Expr>,
    pub time: Option<Expr>,
    pub keys: Vec<Expr>,
    pub args: Vec<Vec<Expr>>,
    pub call_filters: Vec<Option<Expr>>,
    pub layout: Arc<StoreLayout>,
    pub view: WindowView,
    /// Of sessions: to be set once a tick.
    pub oldest: Option<OldestSession>,
    pub floors: Vec<Floor>,
}

#[derive(Debug, Clone)]
pub struct Pass {
    pub rows: SourceRows,
    pub schema: SchemaRef,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// Changes of a feed's view.
    Feed(usize),
    Pass(usize),
    Node(usize),
    /// Changes of a table or of a materialized view.
    Object(Oid),
}

#[derive(Debug, Clone)]
pub struct TailNode {
    pub node: Node,
    pub inputs: Vec<Input>,
    pub input_schemas: Vec<SchemaRef>,
    /// No input ever takes a row back.
    pub append_only_inputs: bool,
    /// For an Aggregate or Sessions: how it is kept, and below which time its slices or sessions are final.
    pub aggregate: Option<(TailAggregate, Option<Horizon>)>,
    /// For a TemporalFilter.
    pub clock: Option<ClockReader>,
    /// For an EmitEvery: to be moved on at each emission.
    pub emitted: Option<EmittedTimes>,
}

/// What reads a temporal filter's clock.
#[derive(Debug, Clone)]
pub enum ClockReader {
    Now,
    EventTime(Horizon),
}

impl ClockReader {
    fn of(clock: &Clock, objects: &dyn Objects) -> Result<Self, ExecError> {
        let Clock::Watermark { object, name } = clock else { return Ok(ClockReader::Now) };
        let horizon = objects.watermark(*object).ok_or_else(|| ExecError::Unsupported {
            what: format!("a condition on the watermark of \"{name}\", which has none,"),
            hint: "Declare WATERMARK FOR ts AS ts - INTERVAL '10 seconds' on the source, or use now().".into(),
        })?;
        Ok(ClockReader::EventTime(horizon))
    }

    /// `None` while there is no watermark.
    pub fn read_us(&self, now_us: i64, times: &dyn Times) -> Option<i64> {
        match self {
            ClockReader::Now => Some(now_us),
            ClockReader::EventTime(horizon) => horizon.watermark_us(times),
        }
    }
}

#[derive(Debug, Clone)]
pub struct TailAggregate {
    pub time: Option<usize>,
    pub keys: Vec<Expr>,
    pub args: Vec<Vec<Expr>>,
    pub call_filters: Vec<Option<Expr>>,
    pub layout: Arc<StoreLayout>,
    pub view: WindowView,
    /// Of sessions: to be set once a tick.
    pub oldest: Option<OldestSession>,
    pub floors: Vec<Floor>,
}

/// What a temporal filter above an aggregation leaves of its windows: those that end at or before a moment are gone for good, so
/// that they need not be kept.
#[derive(Debug, Clone)]
pub struct Floor {
    clock: ClockReader,
    moment: Moment,
    /// From the moment to the end of the newest window that is gone.
    add_us: i64,
}

/// The latest of several floors; `None` while no clock has a reading.
pub fn floor_us(floors: &[Floor], now_us: i64, times: &dyn Times) -> Option<i64> {
    let one = |floor: &Floor| {
        let clock_us = floor.clock.read_us(now_us, times)?;
        Some(floor.moment.at_us(clock_us).saturating_add(floor.add_us))
    };
    floors.iter().filter_map(one).max()
}

/// Where a reader of the view finds its rows.
#[derive(Debug, Clone)]
pub enum Output {
    /// In a feed's store, through these filters and projections.
    Feed { feed: usize, post: Vec<Node> },
    /// In the store of an aggregation of the tail.
    Aggregate { node: usize, post: Vec<Node> },
    /// In an arrangement of this input's rows.
    Rows(Input),
}

/// What a node of the plan has become.
#[derive(Clone)]
enum Stream {
    Source(SourceRows),
    Tail(Input),
}

/// Where a scan's time columns come from.
pub trait Objects {
    /// Per column of a source's, table's or view's schema.
    fn horizons(&self, oid: Oid) -> Vec<Option<Horizon>>;

    /// What `watermark('...')` of the object follows; `None` if it has none.
    fn watermark(&self, oid: Oid) -> Option<Horizon> {
        self.horizons(oid).iter().flatten().next().map(|horizon| horizon.base().clone())
    }
}

impl Flow {
    pub fn of(plan: &StreamPlan, objects: &dyn Objects) -> Result<Flow, ExecError> {
        let mut flow = Flow {
            feeds: Vec::new(),
            passes: Vec::new(),
            tail: Vec::new(),
            output: Output::Rows(Input::Node(0)),
            last: Input::Node(0),
            horizons: Vec::new(),
            shown_horizons: Vec::new(),
            schema: plan.output().schema.clone(),
        };
        let mut streams: Vec<Stream> = Vec::new();
        let mut horizons: Vec<Vec<Option<Horizon>>> = Vec::new();
        let mut shown = horizons.clone();
        for node in &plan.nodes {
            let (oldest, emitted) = (OldestSession::default(), EmittedTimes::default());
            shown.push(node_horizons(node, &shown, &oldest, &emitted, objects));
            horizons.push(match &node.op {
                Op::TemporalFilter { .. } => vec![None; node.schema.fields().len()],
                _ => node_horizons(node, &horizons, &oldest, &emitted, objects),
            });
            let stream = flow.add(node, plan, &streams, &horizons, oldest)?;
            if let (Op::TemporalFilter { clock, .. }, Some(last)) = (&node.op, flow.tail.last_mut()) {
                last.clock = Some(ClockReader::of(clock, objects)?);
            }
            if let (Op::EmitEvery { .. }, Some(last)) = (&node.op, flow.tail.last_mut()) {
                last.emitted = Some(emitted);
            }
            streams.push(stream);
        }
        flow.find_floors(plan, &streams);
        (flow.output, flow.last) = flow.find_output(plan, &streams);
        flow.horizons = horizons.pop().unwrap_or_default();
        flow.shown_horizons = shown.pop().unwrap_or_default();
        Ok(flow)
    }

    fn add(
        &mut self,
        node: &Node,
        plan: &StreamPlan,
        streams: &[Stream],
        horizons: &[Vec<Option<Horizon>>],
        oldest: OldestSession,
    ) -> Result<Stream, ExecError> {
        let source = node.inputs.first().and_then(|&input| match &streams[input] {
            Stream::Source(rows) => Some(rows),
            Stream::Tail(_) => None,
        });
        Ok(match (&node.op, source) {
            (Op::Scan { object, kind: ScanKind::Source, projection, .. }, _) => Stream::Source(SourceRows {
                source: *object,
                filters: Vec::new(),
                columns: projection
                    .iter()
                    .zip(node.schema.fields())
                    .map(|(&i, field)| Arc::new(Column::new(field.name(), i)) as Expr)
                    .collect(),
            }),
            (Op::Scan { object, projection, .. }, _) => {
                // A tail node narrows the object's rows to the columns asked for.
                let exprs = projection
                    .iter()
                    .zip(node.schema.fields())
                    .map(|(&i, field)| Arc::new(Column::new(field.name(), i)) as Expr)
                    .collect();
                let project = Node { op: Op::Project { exprs }, ..node.clone() };
                self.push(project, vec![Input::Object(*object)], Vec::new(), node.append_only, None)
            }
            (Op::Filter { predicate }, Some(rows)) => {
                let mut rows = rows.clone();
                rows.filters.push(substitute(predicate, &rows.columns)?);
                Stream::Source(rows)
            }
            (Op::Project { exprs }, Some(rows)) => {
                let mut rows = rows.clone();
                rows.columns = exprs.iter().map(|e| substitute(e, &rows.columns)).collect::<Result<_, _>>()?;
                Stream::Source(rows)
            }
            (Op::Aggregate(_) | Op::Sessions(_), Some(rows)) => {
                let input = &plan.nodes[node.inputs[0]];
                let grouping = Grouping::of(&node.op, oldest).expect("it is one of the two");
                let feed = Feed::new(&grouping, rows, input, &node.schema, plan.emit)?;
                self.feeds.push(feed);
                Stream::Tail(Input::Feed(self.feeds.len() - 1))
            }
            (op, _) => {
                let mut inputs = Vec::new();
                for &input in &node.inputs {
                    inputs.push(match &streams[input] {
                        Stream::Tail(input) => *input,
                        Stream::Source(rows) => self.pass(rows, &plan.nodes[input].schema),
                    });
                }
                let schemas: Vec<_> = node.inputs.iter().map(|&i| plan.nodes[i].schema.clone()).collect();
                let aggregate = match Grouping::of(op, oldest) {
                    Some(grouping) => {
                        let retracts = !plan.nodes[node.inputs[0]].append_only;
                        let kept = TailAggregate::new(&grouping, &schemas[0], &node.schema, plan.emit, retracts)?;
                        let horizon =
                            grouping.time.and_then(|time| horizons[node.inputs[0]].get(time).cloned().flatten());
                        Some((kept, horizon))
                    }
                    None => None,
                };
                let append_only = node.inputs.iter().all(|&i| plan.nodes[i].append_only);
                self.push(node.clone(), inputs, schemas, append_only, aggregate)
            }
        })
    }

    fn push(
        &mut self,
        node: Node,
        inputs: Vec<Input>,
        input_schemas: Vec<SchemaRef>,
        append_only_inputs: bool,
        aggregate: Option<(TailAggregate, Option<Horizon>)>,
    ) -> Stream {
        self.tail.push(TailNode {
            node,
            inputs,
            input_schemas,
            append_only_inputs,
            aggregate,
            clock: None,
            emitted: None,
        });
        Stream::Tail(Input::Node(self.tail.len() - 1))
    }

    fn pass(&mut self, rows: &SourceRows, schema: &SchemaRef) -> Input {
        self.passes.push(Pass { rows: rows.clone(), schema: schema.clone() });
        Input::Pass(self.passes.len() - 1)
    }

    /// Looks for temporal filters on the bounds of windows, up from each aggregation.
    fn find_floors(&mut self, plan: &StreamPlan, streams: &[Stream]) {
        for (at, node) in plan.nodes.iter().enumerate() {
            let (group, size_us) = match &node.op {
                // Windows that grow from one start, and sessions, end at some time after it.
                Op::Aggregate(a) => match a.window {
                    Some((_, window)) => (&a.group, if window.cumulates { 0 } else { window.size_us }),
                    None => continue,
                },
                Op::Sessions(sessions) => (&sessions.aggregate.group, 0),
                _ => continue,
            };
            let floors = floors_above(plan, at, group, size_us, &self.tail, streams);
            match &streams[at] {
                Stream::Tail(Input::Feed(feed)) => self.feeds[*feed].floors = floors,
                Stream::Tail(Input::Node(node)) => {
                    if let Some((aggregate, _)) = &mut self.tail[*node].aggregate {
                        aggregate.floors = floors;
                    }
                }
                _ => {}
            }
        }
    }

    /// Follows filters and projections down to a store.
    fn find_output(&mut self, plan: &StreamPlan, streams: &[Stream]) -> (Output, Input) {
        let top = plan.nodes.len() - 1;
        let last = match &streams[top] {
            Stream::Tail(input) => *input,
            Stream::Source(rows) => self.pass(rows, &plan.nodes[top].schema),
        };
        let mut at = top;
        let mut post = Vec::new();
        while matches!(plan.nodes[at].op, Op::Filter { .. } | Op::Project { .. }) {
            post.push(plan.nodes[at].clone());
            at = plan.nodes[at].inputs[0];
        }
        post.reverse();
        let output = match (&plan.nodes[at].op, &streams[at]) {
            (Op::Aggregate(_) | Op::Sessions(_), Stream::Tail(Input::Feed(feed))) => Output::Feed { feed: *feed, post },
            (Op::Aggregate(_) | Op::Sessions(_), Stream::Tail(Input::Node(node))) => {
                Output::Aggregate { node: *node, post }
            }
            _ => Output::Rows(last),
        };
        (output, last)
    }
}

fn floors_above(
    plan: &StreamPlan,
    aggregation: usize,
    group: &[GroupColumn],
    size_us: i64,
    tail: &[TailNode],
    streams: &[Stream],
) -> Vec<Floor> {
    let mut bounds: Vec<Option<GroupColumn>> = group.iter().cloned().map(Some).collect();
    let (mut at, mut floors) = (aggregation, Vec::new());
    while let Some(next) = plan.nodes.iter().position(|node| node.inputs.contains(&at)) {
        let bound = |expr: &Expr| bounds.get(without_casts(expr)?).cloned().flatten();
        match &plan.nodes[next].op {
            Op::Filter { .. } => {}
            Op::Project { exprs } => bounds = exprs.iter().map(bound).collect(),
            Op::TemporalFilter { bounds: conditions, .. } => {
                let Stream::Tail(Input::Node(node)) = &streams[next] else { break };
                let Some(clock) = &tail[*node].clock else { break };
                for condition in conditions {
                    let past_us = match condition.comparison {
                        Comparison::Greater => 0,
                        Comparison::GreaterOrEqual => -1,
                        Comparison::Less | Comparison::LessOrEqual => continue,
                    };
                    let add_us = match bound(&condition.time) {
                        Some(GroupColumn::WindowEnd) => past_us,
                        Some(GroupColumn::WindowStart) => size_us.saturating_add(past_us),
                        _ => continue,
                    };
                    floors.push(Floor { clock: clock.clone(), moment: condition.moment.clone(), add_us });
                }
            }
            _ => break,
        }
        at = next;
    }
    floors
}

/// The column under casts from one kind of timestamp to another, which move no moment.
pub fn without_casts(expr: &Expr) -> Option<usize> {
    match expr.downcast_ref::<CastExpr>() {
        Some(cast) if matches!(cast.cast_type(), DataType::Timestamp(..)) => without_casts(cast.expr()),
        Some(_) => None,
        None => expr.downcast_ref::<Column>().map(Column::index),
    }
}

/// An aggregation with the time by which it groups, if it does.
struct Grouping<'a> {
    aggregate: &'a Aggregate,
    time: Option<usize>,
    sessions: Option<(Session, OldestSession)>,
}

impl<'a> Grouping<'a> {
    fn of(op: &'a Op, oldest: OldestSession) -> Option<Self> {
        match op {
            Op::Aggregate(aggregate) => {
                Some(Grouping { aggregate, time: aggregate.window.map(|(time, _)| time), sessions: None })
            }
            Op::Sessions(of) => {
                Some(Grouping { aggregate: &of.aggregate, time: Some(of.time), sessions: Some((of.session, oldest)) })
            }
            _ => None,
        }
    }

    fn oldest(&self) -> Option<OldestSession> {
        self.sessions.as_ref().map(|(_, oldest)| oldest.clone())
    }
}

/// What an aggregation needs of its input, whichever kind of input that is.
struct Parts {
    keys: Vec<Expr>,
    layout: Arc<StoreLayout>,
    view: WindowView,
}

fn parts(
    grouping: &Grouping<'_>,
    input: &SchemaRef,
    output: &SchemaRef,
    emit: Emit,
    retracts: bool,
) -> Result<Parts, ExecError> {
    let aggregate = grouping.aggregate;
    let session = grouping.sessions.as_ref().map(|(session, _)| *session);
    let mut keys: Vec<Expr> = Vec::new();
    let mut key_fields: Vec<FieldRef> = Vec::new();
    let mut group = Vec::new();
    for (i, column) in aggregate.group.iter().enumerate() {
        group.push(match column {
            GroupColumn::WindowStart => Group::WindowStart,
            GroupColumn::WindowEnd => Group::WindowEnd,
            GroupColumn::Key(expr) => {
                key_fields.push(Arc::new(Field::new(output.field(i).name(), expr.data_type(input)?, true)));
                keys.push(expr.clone());
                Group::Key(keys.len() - 1)
            }
        });
    }
    let measures = aggregate
        .calls
        .iter()
        .map(|call| Measure::new(call, input, retracts))
        .collect::<Result<Vec<_>, ExecError>>()?;
    let grid = aggregate.window.map(|(_, window)| {
        let width_us = window.slice_us();
        Grid { width_us, phase_us: window.offset_us.rem_euclid(width_us) }
    });
    let sessions = session.map(|session| SessionLayout { session, by_time: retracts || session.max_us.is_some() });
    let grid = if sessions.is_some() { Some(Grid::MICROSECONDS) } else { grid };
    let view = WindowView {
        window: aggregate.window.map(|(_, window)| window),
        group,
        measures: (0..measures.len()).collect(),
        schema: output.clone(),
        emit: if grid.is_some() { emit } else { Emit::OnUpdate },
        shows_empty: aggregate.group.is_empty(),
        overflows: Arc::default(),
    };
    Ok(Parts { keys, layout: Arc::new(StoreLayout { keys: key_fields, grid, measures, sessions }), view })
}

impl Feed {
    fn new(
        grouping: &Grouping<'_>,
        rows: &SourceRows,
        input: &Node,
        output: &SchemaRef,
        emit: Emit,
    ) -> Result<Feed, ExecError> {
        let Parts { keys, layout, view } = parts(grouping, &input.schema, output, emit, !input.append_only)?;
        let over_source =
            |exprs: &[Expr]| exprs.iter().map(|e| substitute(e, &rows.columns)).collect::<Result<Vec<_>, _>>();
        let (mut args, mut call_filters) = (Vec::new(), Vec::new());
        for measure in &layout.measures {
            args.push(over_source(measure.args())?);
            call_filters.push(measure.filter().map(|f| substitute(f, &rows.columns)).transpose()?);
        }
        Ok(Feed {
            source: rows.source,
            filters: rows.filters.clone(),
            time: grouping.time.map(|time| rows.columns[time].clone()),
            keys: over_source(&keys)?,
            args,
            call_filters,
            layout,
            view,
            oldest: grouping.oldest(),
            floors: Vec::new(),
        })
    }

    /// Columns of the source that the feed reads.
    pub fn source_columns(&self) -> Vec<usize> {
        let all = self.filters.iter().chain(&self.time).chain(&self.keys).chain(self.args.iter().flatten());
        columns_of(all.chain(self.call_filters.iter().flatten()))
    }
}

impl Pass {
    pub fn source_columns(&self) -> Vec<usize> {
        columns_of(self.rows.filters.iter().chain(&self.rows.columns))
    }
}

impl TailAggregate {
    fn new(
        grouping: &Grouping<'_>,
        input: &SchemaRef,
        output: &SchemaRef,
        emit: Emit,
        retracts: bool,
    ) -> Result<TailAggregate, ExecError> {
        let Parts { keys, layout, view } = parts(grouping, input, output, emit, retracts)?;
        let measures = &layout.measures;
        let (args, call_filters) = measures.iter().map(|m| (m.args().to_vec(), m.filter().cloned())).unzip();
        let (time, oldest) = (grouping.time, grouping.oldest());
        Ok(TailAggregate { time, keys, args, call_filters, layout, view, oldest, floors: Vec::new() })
    }
}

/// Ascending, each once.
fn columns_of<'a>(exprs: impl Iterator<Item = &'a Expr>) -> Vec<usize> {
    let mut columns = std::collections::BTreeSet::new();
    for expr in exprs {
        columns.extend(datafusion::physical_expr::utils::collect_columns(expr).iter().map(Column::index));
    }
    columns.into_iter().collect()
}

/// The expression with column `i` replaced by `columns[i]`.
pub fn substitute(expr: &Expr, columns: &[Expr]) -> Result<Expr, ExecError> {
    let replaced = expr.clone().transform_up(|e| {
        Ok(match e.downcast_ref::<Column>() {
            Some(column) => Transformed::yes(columns[column.index()].clone()),
            None => Transformed::no(e),
        })
    })?;
    Ok(replaced.data)
}

/// The expression over a batch that holds only the columns at `present` (ascending indexes of the schema it is over).
pub fn over_present(expr: &Expr, present: &[usize]) -> Result<Expr, ExecError> {
    let moved = expr.clone().transform_up(|e| {
        Ok(match e.downcast_ref::<Column>() {
            Some(column) => {
                let at = present.binary_search(&column.index()).expect("every column an expression names is built");
                Transformed::yes(Arc::new(Column::new(column.name(), at)) as Expr)
            }
            None => Transformed::no(e),
        })
    })?;
    Ok(moved.data)
}

fn node_horizons(
    node: &Node,
    before: &[Vec<Option<Horizon>>],
    oldest: &OldestSession,
    emitted: &EmittedTimes,
    objects: &dyn Objects,
) -> Vec<Option<Horizon>> {
    let width = node.schema.fields().len();
    let input = |i: usize| node.inputs.get(i).map(|&n| before[n].as_slice()).unwrap_or_default();
    let through = |expr: &Expr| {
        let column = expr.downcast_ref::<Column>()?;
        input(0).get(column.index()).cloned().flatten()
    };
    match &node.op {
        Op::Scan { object, projection, .. } => {
            let all = objects.horizons(*object);
            projection.iter().map(|&i| all.get(i).cloned().flatten()).collect()
        }
        Op::Filter { .. } | Op::TemporalFilter { .. } => input(0).to_vec(),
        Op::EmitEvery { .. } => input(0).iter().map(|live| Some(emitted.of(live.as_ref()?))).collect(),
        Op::Project { exprs } => exprs.iter().map(through).collect(),
        Op::AssignWindows { time_column, window } => {
            let time = input(0).get(*time_column).cloned().flatten();
            let mut all = input(0).to_vec();
            all.push(time.clone().map(|h| Horizon::WindowStart(Box::new(h), *window)));
            all.push(time.map(|h| Horizon::WindowEnd(Box::new(h), *window)));
            all
        }
        Op::Aggregate(aggregate) => {
            let time =
                aggregate.window.and_then(|(time, window)| Some((input(0).get(time).cloned().flatten()?, window)));
            let side = |start: bool| {
                let (horizon, window) = time.clone()?;
                let horizon = Box::new(horizon);
                Some(if start { Horizon::WindowStart(horizon, window) } else { Horizon::WindowEnd(horizon, window) })
            };
            let mut all: Vec<_> = aggregate
                .group
                .iter()
                .map(|column| match column {
                    GroupColumn::Key(expr) => through(expr),
                    GroupColumn::WindowStart => side(true),
                    GroupColumn::WindowEnd => side(false),
                })
                .collect();
            all.resize(width, None);
            all
        }
        Op::Sessions(sessions) => {
            let time = input(0).get(sessions.time).cloned().flatten();
            let of = |column: &GroupColumn| match column {
                GroupColumn::Key(expr) => through(expr),
                GroupColumn::WindowStart => {
                    time.clone().map(|horizon| Horizon::SessionStart(Box::new(horizon), oldest.clone()))
                }
                // A session that ends before it is final.
                GroupColumn::WindowEnd => time.clone(),
            };
            let mut all: Vec<_> = sessions.aggregate.group.iter().map(of).collect();
            all.resize(width, None);
            all
        }
        Op::UnionAll => (0..width)
            .map(|column| {
                let of_inputs: Option<Vec<Horizon>> =
                    (0..node.inputs.len()).map(|i| input(i).get(column).cloned().flatten()).collect();
                of_inputs.map(Horizon::least)
            })
            .collect(),
        Op::TopN { partition_by, order_by, .. } => {
            // A row that comes displaces rows of its own partition that sort behind it, and those are not before it if time comes
            // first in the order. In any other column the displaced row may be as old as it likes.
            let by_time = order_by.first().filter(|order| !order.descending).map(|order| order.column);
            let horizon = |i: usize| input(0).get(i).cloned().flatten();
            let partition: Vec<Horizon> = partition_by.iter().filter_map(|&i| horizon(i)).collect();
            let same = |h: &Horizon| partition.iter().any(|p| p.names_the_window_of(h));
            (0..width).map(|i| horizon(i).filter(|h| by_time == Some(i) || same(h))).collect()
        }
    }
}
