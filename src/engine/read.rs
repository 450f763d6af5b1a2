//! Views, tables and sources as DataFusion tables: immutable, as of one tick.

use std::any::Any;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{BooleanArray, RecordBatch, RecordBatchOptions};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, DataFusionError, Result, ScalarValue};
use datafusion::execution::TaskContext;
use datafusion::logical_expr::{BinaryExpr, Expr, Operator, TableProviderFilterPushDown, TableType};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::utils::{collect_columns, split_conjunction};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use datafusion::physical_plan::{ExecutionPlan, SendableRecordBatchStream};
use parking_lot::Mutex;

use crate::exec::ExecError;
use crate::exec::arrangement::Snapshot;
use crate::exec::expr::Evaluator;
use crate::exec::flow::{over_present, substitute};
use crate::exec::id_set::IdSet;
use crate::exec::keys::{CHUNK, KeySnapshot};
use crate::exec::regroup::Regrouped;
use crate::exec::slice_store::StoreLayout;
use crate::exec::store_snapshot::StoreSnapshot;
use crate::exec::window_cursor::WindowCursor;
use crate::exec::window_view::{Group, Shown, WindowView, Within};
use crate::planner::stream_plan::{Node, Op};

type Physical = Arc<dyn PhysicalExpr>;

/// A view that is read from slices: some windows of some keys, through the filters and projections that the view puts above its
/// aggregation.
#[derive(Clone)]
pub struct WindowTable {
    parts: Vec<Part>,
    shown: Shown,
    /// Over the aggregation's columns.
    filters: Vec<Physical>,
    /// Those of them that look at keys alone, over the store's keys: they narrow what is read.
    key_filters: Vec<Physical>,
    columns: Vec<Physical>,
    schema: SchemaRef,
}

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

impl WindowTable {
    /// `post`: the plan's filters and projections above the aggregation, bottom first.
    pub fn new(parts: Vec<Part>, shown: Shown, post: &[Node], schema: SchemaRef) -> Result<Self, ExecError> {
        let (mut filters, mut columns): (Vec<Physical>, Vec<Physical>) = (Vec::new(), Vec::new());
        if let Some(part) = parts.first() {
            columns = part
                .view
                .schema
                .fields()
                .iter()
                .enumerate()
                .map(|(i, f)| Arc::new(Column::new(f.name(), i)) as Physical)
                .collect();
        }
        for node in post {
            match &node.op {
                Op::Filter { predicate } => filters.push(substitute(predicate, &columns)?),
                Op::Project { exprs } => {
                    columns = exprs.iter().map(|e| substitute(e, &columns)).collect::<Result<_, _>>()?;
                }
                other => return Err(ExecError::Invariant(format!("{other:?} stands between a view and its store"))),
            }
        }
        let key_filters = match parts.first() {
            Some(part) => filters.iter().flat_map(split_conjunction).filter_map(|f| over_keys(f, &part.view)).collect(),
            None => Vec::new(),
        };
        Ok(WindowTable { parts, shown, filters, key_filters, columns, schema })
    }

    /// All rows, for a consumer that begins here.
    pub fn rows(&self) -> Result<Vec<RecordBatch>, ExecError> {
        let all: Vec<usize> = (0..self.columns.len()).collect();
        let mut batches = Vec::new();
        for part in 0..self.parts.len() {
            let scan = self.scan_part(part, &all, &Within::default(), &[])?;
            for window in scan.into_windows() {
                batches.extend(window?);
            }
        }
        Ok(batches)
    }

    /// The aggregation's column that an output column is, if it is one as it stands.
    fn origin(&self, output: usize) -> Option<usize> {
        (self.columns.get(output)?.as_ref() as &dyn Any).downcast_ref::<Column>().map(Column::index)
    }

    fn group_of(&self, output: usize) -> Option<Group> {
        self.parts.first()?.view.group.get(self.origin(output)?).copied()
    }

    fn scan_part(
        &self,
        part: usize,
        projection: &[usize],
        within: &Within,
        key_filters: &[Physical],
    ) -> Result<PartScan, ExecError> {
        let part = &self.parts[part];
        let view = &part.view;
        let key_filters: Vec<Physical> = self.key_filters.iter().chain(key_filters).cloned().collect();
        let columns: Vec<Physical> = projection.iter().map(|&i| self.columns[i].clone()).collect();
        let mut needed: Vec<usize> =
            self.filters.iter().chain(&columns).flat_map(collect_columns).map(|c| c.index()).collect();
        needed.sort_unstable();
        needed.dedup();
        let at = |e: &Physical| over_present(e, &needed);
        let fields: Vec<_> = needed.iter().map(|&i| view.schema.field(i).clone()).collect();
        Ok(PartScan {
            filters: self.filters.iter().map(at).collect::<Result<_, _>>()?,
            columns: columns.iter().map(at).collect::<Result<_, _>>()?,
            inner: Arc::new(Schema::new(fields)),
            schema: Arc::new(self.schema.project(projection)?),
            needed,
            within: within.clone(),
            only: match &part.rows {
                Rows::Store(snapshot) => Only::Ids(keys_where(&snapshot.layout, &snapshot.keys, &key_filters)?),
                Rows::Regrouped { .. } => Only::Where(key_filters, Arc::default()),
            },
            part: part.clone(),
            shown: self.shown,
        })
    }

    /// Leaves of `within` what a filter can be true for; false if it does not speak of a window's start or end.
    fn narrow(&self, within: &mut Within, filter: &Expr) -> bool {
        let Some((side, range)) = self.window_range(filter) else { return false };
        let bounds = if side == Group::WindowEnd { &mut within.ends } else { &mut within.starts };
        *bounds = bounds.start.max(range.start)..bounds.end.min(range.end);
        true
    }

    fn window_range(&self, filter: &Expr) -> Option<(Group, Range<i64>)> {
        match filter {
            Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
                let (column, op, literal) = match (left.as_ref(), right.as_ref()) {
                    (column, Expr::Literal(value, _)) => (column, *op, value),
                    (Expr::Literal(value, _), column) => (column, op.swap()?, value),
                    _ => return None,
                };
                let us = micros_of(literal)?;
                let range = match op {
                    Operator::Eq => us..us.saturating_add(1),
                    Operator::Lt => i64::MIN..us,
                    Operator::LtEq => i64::MIN..us.saturating_add(1),
                    Operator::Gt => us.saturating_add(1)..i64::MAX,
                    Operator::GtEq => us..i64::MAX,
                    _ => return None,
                };
                Some((self.window_side(column)?, range))
            }
            Expr::Between(between) if !between.negated => {
                let low = BinaryExpr::new(between.expr.clone(), Operator::GtEq, between.low.clone());
                let high = BinaryExpr::new(between.expr.clone(), Operator::LtEq, between.high.clone());
                let (side, low) = self.window_range(&Expr::BinaryExpr(low))?;
                let (_, high) = self.window_range(&Expr::BinaryExpr(high))?;
                Some((side, low.start..high.end))
            }
            _ => None,
        }
    }

    fn window_side(&self, expr: &Expr) -> Option<Group> {
        let Expr::Column(column) = expr else { return None };
        match self.group_of(self.schema.index_of(&column.name).ok()?)? {
            Group::Key(_) => None,
            side => Some(side),
        }
    }

    /// The filter over key columns alone, if it is one.
    fn key_filter(&self, state: &dyn Session, filter: &Expr) -> Result<Option<Physical>> {
        let mut over_keys = true;
        filter.apply(|e| {
            match e {
                Expr::Column(column) => {
                    let group = self.schema.index_of(&column.name).ok().and_then(|i| self.group_of(i));
                    over_keys &= matches!(group, Some(Group::Key(_)));
                }
                Expr::ScalarFunction(call)
                    if call.func.signature().volatility != datafusion::logical_expr::Volatility::Immutable =>
                {
                    over_keys = false;
                }
                Expr::OuterReferenceColumn(..) | Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_) => {
                    over_keys = false;
                }
                _ => {}
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
        if !over_keys || filter.column_refs().is_empty() {
            return Ok(None);
        }
        let unqualified = filter.clone().transform_columns()?;
        let schema = DFSchema::try_from(self.schema.as_ref().clone())?;
        let physical = state.create_physical_expr(unqualified, &schema)?;
        let keys: Vec<Physical> = (0..self.schema.fields().len())
            .map(|i| {
                let key = match self.group_of(i) {
                    Some(Group::Key(key)) => key,
                    _ => usize::MAX,
                };
                Arc::new(Column::new(self.schema.field(i).name(), key)) as Physical
            })
            .collect();
        Ok(Some(substitute(&physical, &keys).map_err(external)?))
    }
}

trait Unqualified: Sized {
    fn transform_columns(self) -> Result<Self>;
}

impl Unqualified for Expr {
    /// Columns by their bare names.
    fn transform_columns(self) -> Result<Expr> {
        use datafusion::common::tree_node::Transformed;
        let stripped = self.transform(|e| {
            Ok(match e {
                Expr::Column(column) => {
                    Transformed::yes(Expr::Column(datafusion::common::Column::new_unqualified(column.name)))
                }
                other => Transformed::no(other),
            })
        })?;
        Ok(stripped.data)
    }
}

/// A condition on an aggregation's columns as one on the store's keys, if it looks at nothing else.
fn over_keys(filter: &Physical, view: &WindowView) -> Option<Physical> {
    let columns = collect_columns(filter);
    let key_of = |i: usize| match view.group.get(i) {
        Some(Group::Key(key)) => Some(*key),
        _ => None,
    };
    if columns.is_empty() || columns.iter().any(|column| key_of(column.index()).is_none()) {
        return None;
    }
    let keys: Vec<Physical> = (0..view.schema.fields().len())
        .map(|i| Arc::new(Column::new(view.schema.field(i).name(), key_of(i).unwrap_or(usize::MAX))) as Physical)
        .collect();
    substitute(filter, &keys).ok()
}

fn micros_of(value: &ScalarValue) -> Option<i64> {
    match value {
        ScalarValue::TimestampMicrosecond(us, _) => *us,
        // Finer than a microsecond: only where nothing is cut off.
        ScalarValue::TimestampNanosecond(Some(ns), _) if ns % 1000 == 0 => Some(ns / 1000),
        ScalarValue::TimestampMillisecond(Some(ms), _) => ms.checked_mul(1_000),
        ScalarValue::TimestampSecond(Some(s), _) => s.checked_mul(1_000_000),
        _ => None,
    }
}

/// Ids of the keys for which every filter is true; `None` without filters.
fn keys_where(layout: &StoreLayout, keys: &KeySnapshot, filters: &[Physical]) -> Result<Option<Arc<IdSet>>, ExecError> {
    if filters.is_empty() {
        return Ok(None);
    }
    let mut evaluators: Vec<Evaluator> = filters.iter().map(|f| Evaluator::new(f.clone())).collect();
    let schema = Arc::new(Schema::new(layout.keys.to_vec()));
    let mut ids = IdSet::new(keys.len);
    for (i, chunk) in keys.chunks.iter().enumerate() {
        let rows = (keys.len - i * CHUNK).min(CHUNK);
        let batch = batch_of(&schema, chunk.to_vec(), rows)?;
        let mut mask = vec![true; rows];
        for evaluator in &mut evaluators {
            let passed = evaluator.evaluate_predicate(&batch)?;
            mask.iter_mut().enumerate().for_each(|(row, keep)| *keep &= is_true(&passed, row));
        }
        mask.iter().enumerate().filter(|(_, keep)| **keep).for_each(|(row, _)| ids.insert((i * CHUNK + row) as u32));
    }
    ids.seal();
    Ok(Some(Arc::new(ids)))
}

fn is_true(mask: &BooleanArray, row: usize) -> bool {
    use arrow::array::Array;
    mask.is_valid(row) && mask.value(row)
}

fn batch_of(schema: &SchemaRef, columns: Vec<arrow::array::ArrayRef>, rows: usize) -> Result<RecordBatch, ExecError> {
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    Ok(RecordBatch::try_new_with_options(schema.clone(), columns, &options)?)
}

/// The keys that a scan is about.
#[derive(Clone)]
enum Only {
    /// `None`: all.
    Ids(Option<Arc<IdSet>>),
    /// Those for which these are true, worked out when the first window is read; ids are of the numbering that stands beside
    /// them.
    Where(Vec<Physical>, Arc<Mutex<Option<KnownIds>>>),
}

/// Ids, all if `None`, and the numbering that they are of.
type KnownIds = (u64, Option<Arc<IdSet>>);

/// One part of a scan: gives a window's batches at a time.
#[derive(Clone)]
struct PartScan {
    part: Part,
    shown: Shown,
    within: Within,
    only: Only,
    /// Columns of the aggregation that are read.
    needed: Vec<usize>,
    inner: SchemaRef,
    filters: Vec<Physical>,
    columns: Vec<Physical>,
    schema: SchemaRef,
}

impl PartScan {
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

    /// The batches of each window, one window after the other.
    fn into_windows(self) -> impl Iterator<Item = Result<Vec<RecordBatch>, ExecError>> {
        let windows = self.windows();
        // A regrouped snapshot is of one window.
        let one_for_all = matches!(self.part.rows, Rows::Store(_));
        let mut kept = None;
        (0..windows.len()).map(move |i| {
            let mut cursor = match kept.take() {
                Some(cursor) => cursor,
                None => self.cursor(windows[i])?,
            };
            let next_us = windows.get(i + 1).filter(|_| one_for_all).copied();
            let batches = self.read(&mut cursor, windows[i], next_us);
            kept = one_for_all.then_some(cursor);
            batches
        })
    }

    fn read(
        &self,
        cursor: &mut WindowCursor,
        end_us: i64,
        next_us: Option<i64>,
    ) -> Result<Vec<RecordBatch>, ExecError> {
        let mut batches = Vec::new();
        for (rows, columns) in self.part.view.read(cursor, end_us, next_us, &self.needed)? {
            let mut batch = batch_of(&self.inner, columns, rows)?;
            for filter in &self.filters {
                let mask = Evaluator::new(filter.clone()).evaluate_predicate(&batch)?;
                batch = filter_record_batch(&batch, &mask)?;
            }
            let columns = self
                .columns
                .iter()
                .map(|e| Evaluator::new(e.clone()).evaluate(&batch))
                .collect::<Result<Vec<_>, _>>()?;
            if batch.num_rows() > 0 {
                batches.push(batch_of(&self.schema, columns, batch.num_rows())?);
            }
        }
        Ok(batches)
    }
}

impl fmt::Debug for PartScan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "windows that start in {:?} and end in {:?}", self.within.starts, self.within.ends)
    }
}

impl PartitionStream for PartScan {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let batches = self.clone().into_windows().flat_map(|window| match window {
            Ok(batches) => batches.into_iter().map(Ok).collect::<Vec<_>>(),
            Err(error) => vec![Err(external(error))],
        });
        Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), futures::stream::iter(batches)))
    }
}

fn external(error: ExecError) -> DataFusionError {
    match error {
        ExecError::DataFusion(error) => *error,
        other => DataFusionError::External(Box::new(other)),
    }
}

impl fmt::Debug for WindowTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WindowTable({} parts)", self.parts.len())
    }
}

#[async_trait]
impl TableProvider for WindowTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        // What is pushed narrows what is read; the query still applies it, so nothing depends on it being complete.
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let all: Vec<usize> = (0..self.schema.fields().len()).collect();
        let projection = projection.map_or(all.as_slice(), Vec::as_slice);
        let mut within = Within::default();
        let mut key_filters = Vec::new();
        for filter in filters {
            if self.narrow(&mut within, filter) {
                continue;
            }
            if let Some(filter) = self.key_filter(state, filter)? {
                key_filters.push(filter);
            }
        }
        let schema = Arc::new(self.schema.project(projection)?);
        let mut parts: Vec<Arc<dyn PartitionStream>> = Vec::new();
        for part in 0..self.parts.len() {
            parts.push(Arc::new(self.scan_part(part, projection, &within, &key_filters).map_err(external)?));
        }
        Ok(Arc::new(StreamingTableExec::try_new(schema, parts, None, None, false, None)?))
    }
}

/// Rows that stand in an arrangement: those of a table, or of a view without windows.
#[derive(Debug, Clone)]
pub struct RowsTable {
    pub snapshot: Arc<Snapshot>,
    pub schema: SchemaRef,
}

#[derive(Debug)]
struct RowsScan {
    snapshot: Arc<Snapshot>,
    projection: Vec<usize>,
    schema: SchemaRef,
}

impl PartitionStream for RowsScan {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let (snapshot, projection, schema) = (self.snapshot.clone(), self.projection.clone(), self.schema.clone());
        let batches = (0..snapshot.num_parts()).map(move |i| {
            let part = snapshot.part(i, Some(&projection))?;
            let options = RecordBatchOptions::new().with_row_count(Some(part.num_rows()));
            Ok(RecordBatch::try_new_with_options(schema.clone(), part.columns().to_vec(), &options)?)
        });
        Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), futures::stream::iter(batches)))
    }
}

#[async_trait]
impl TableProvider for RowsTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let projection = projection.cloned().unwrap_or_else(|| (0..self.schema.fields().len()).collect());
        let schema = Arc::new(self.schema.project(&projection)?);
        let scan = RowsScan { snapshot: self.snapshot.clone(), projection, schema: schema.clone() };
        Ok(Arc::new(StreamingTableExec::try_new(schema, vec![Arc::new(scan)], None, None, false, limit)?))
    }
}
