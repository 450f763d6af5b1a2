//! From a [`StreamPlan`] to its parts: what workers do to a source's rows, and what comes after.
//!
//! Filters and projections over a source are folded into the expressions of what stands above them, so that two views that
//! say the same in different words of SQL have the same feed, and can share a store.

use std::sync::Arc;

use arrow::datatypes::{Field, FieldRef, SchemaRef};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;

use super::ExecError;
use super::horizon::Horizon;
use super::slice_store::{Grid, StoreLayout};
use super::state::Measure;
use super::window_view::{Group, WindowView};
use crate::planner::stream_plan::Oid;
use crate::planner::stream_plan::{Aggregate, Emit, GroupColumn, Node, Op, ScanKind, StreamPlan};

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
    /// For an Aggregate: how it is kept, and below which time its slices are final.
    pub aggregate: Option<(TailAggregate, Option<Horizon>)>,
}

#[derive(Debug, Clone)]
pub struct TailAggregate {
    pub time: Option<usize>,
    pub keys: Vec<Expr>,
    pub args: Vec<Vec<Expr>>,
    pub call_filters: Vec<Option<Expr>>,
    pub layout: Arc<StoreLayout>,
    pub view: WindowView,
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
            schema: plan.output().schema.clone(),
        };
        let mut streams: Vec<Stream> = Vec::new();
        let mut horizons: Vec<Vec<Option<Horizon>>> = Vec::new();
        for node in &plan.nodes {
            horizons.push(node_horizons(node, &horizons, objects));
            let stream = flow.add(node, plan, &streams, &horizons)?;
            streams.push(stream);
        }
        (flow.output, flow.last) = flow.find_output(plan, &streams);
        flow.horizons = horizons.pop().unwrap_or_default();
        Ok(flow)
    }

    fn add(
        &mut self,
        node: &Node,
        plan: &StreamPlan,
        streams: &[Stream],
        horizons: &[Vec<Option<Horizon>>],
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
            (Op::Aggregate(aggregate), Some(rows)) => {
                let input = &plan.nodes[node.inputs[0]];
                let feed = Feed::new(aggregate, rows, input, &node.schema, plan.emit)?;
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
                let aggregate = match op {
                    Op::Aggregate(aggregate) => {
                        let retracts = !plan.nodes[node.inputs[0]].append_only;
                        let kept = TailAggregate::new(aggregate, &schemas[0], &node.schema, plan.emit, retracts)?;
                        let horizon = aggregate
                            .window
                            .and_then(|(time, _)| horizons[node.inputs[0]].get(time).cloned().flatten());
                        Some((kept, horizon))
                    }
                    _ => None,
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
        self.tail.push(TailNode { node, inputs, input_schemas, append_only_inputs, aggregate });
        Stream::Tail(Input::Node(self.tail.len() - 1))
    }

    fn pass(&mut self, rows: &SourceRows, schema: &SchemaRef) -> Input {
        self.passes.push(Pass { rows: rows.clone(), schema: schema.clone() });
        Input::Pass(self.passes.len() - 1)
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
            (Op::Aggregate(_), Stream::Tail(Input::Feed(feed))) => Output::Feed { feed: *feed, post },
            (Op::Aggregate(_), Stream::Tail(Input::Node(node))) => Output::Aggregate { node: *node, post },
            _ => Output::Rows(last),
        };
        (output, last)
    }
}

/// What an [`Aggregate`] needs of its input, whichever kind of input that is.
struct Parts {
    keys: Vec<Expr>,
    layout: Arc<StoreLayout>,
    view: WindowView,
}

fn parts(
    aggregate: &Aggregate,
    input: &SchemaRef,
    output: &SchemaRef,
    emit: Emit,
    retracts: bool,
) -> Result<Parts, ExecError> {
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
    let view = WindowView {
        window: aggregate.window.map(|(_, window)| window),
        group,
        measures: (0..measures.len()).collect(),
        schema: output.clone(),
        emit: if aggregate.window.is_some() { emit } else { Emit::OnUpdate },
        shows_empty: aggregate.group.is_empty(),
        overflows: Arc::default(),
    };
    Ok(Parts { keys, layout: Arc::new(StoreLayout { keys: key_fields, grid, measures }), view })
}

impl Feed {
    fn new(
        aggregate: &Aggregate,
        rows: &SourceRows,
        input: &Node,
        output: &SchemaRef,
        emit: Emit,
    ) -> Result<Feed, ExecError> {
        let Parts { keys, layout, view } = parts(aggregate, &input.schema, output, emit, !input.append_only)?;
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
            time: aggregate.window.map(|(time, _)| rows.columns[time].clone()),
            keys: over_source(&keys)?,
            args,
            call_filters,
            layout,
            view,
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
        aggregate: &Aggregate,
        input: &SchemaRef,
        output: &SchemaRef,
        emit: Emit,
        retracts: bool,
    ) -> Result<TailAggregate, ExecError> {
        let Parts { keys, layout, view } = parts(aggregate, input, output, emit, retracts)?;
        let measures = &layout.measures;
        let (args, call_filters) = measures.iter().map(|m| (m.args().to_vec(), m.filter().cloned())).unzip();
        Ok(TailAggregate { time: aggregate.window.map(|(time, _)| time), keys, args, call_filters, layout, view })
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

fn node_horizons(node: &Node, before: &[Vec<Option<Horizon>>], objects: &dyn Objects) -> Vec<Option<Horizon>> {
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
        Op::Filter { .. } => input(0).to_vec(),
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
