//! `SESSION` as a node of DataFusion's plans: for one-shot queries it is executed as it stands, for views it is lowered away.
//!
//! Whose sessions they are is said by GROUP BY, which stands above the node: [`bind_sessions`] brings the keys down to it.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, RecordBatch, TimestampMicrosecondArray};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{Field, FieldRef, SchemaRef};
use arrow::row::{OwnedRow, RowConverter, SortField};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, DFSchemaRef, ExprSchema, Result, TableReference, plan_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::utils::{conjunction, split_conjunction_owned};
use datafusion::logical_expr::{Aggregate, Expr, Extension, Filter, LogicalPlan, UserDefinedLogicalNodeCore};
use datafusion::physical_expr::{
    Distribution, EquivalenceProperties, LexOrdering, OrderingRequirements, Partitioning, PhysicalExpr,
    PhysicalSortExpr,
};
use datafusion::physical_plan::execution_plan::{
    ChildrenPropertiesMode, EmissionType, PlanProperties, ReplaceChildrenOptions,
};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, InputDistributionRequirements,
};
use futures::{StreamExt, TryStreamExt};

use super::assign_windows::{WINDOW_END, WINDOW_START, passed, times_us};
use super::error::{PlanError, Refusal};
use super::stream_plan::{Session, window_type};

/// Gives each row the bounds of its session. Output: as of [`super::assign_windows::AssignWindows`]. Rows whose time is NULL
/// are in no session, nor are those at the end of time ([`Session::takes`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssignSessions {
    pub input: Arc<LogicalPlan>,
    /// A column of the input: Timestamp(us) or Date32.
    pub time: Column,
    pub session: Session,
    pub keys: Keys,
    schema: DFSchemaRef,
}

/// Whose sessions they are; expressions over the input.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd)]
pub enum Keys {
    /// Not known yet.
    OfGroup,
    /// What the GROUP BY above groups by, besides the session.
    Grouped(Vec<Expr>),
    /// PARTITION BY.
    Partition(Vec<Expr>),
}

impl Keys {
    pub fn exprs(&self) -> &[Expr] {
        match self {
            Keys::OfGroup => &[],
            Keys::Grouped(exprs) | Keys::Partition(exprs) => exprs,
        }
    }
}

impl AssignSessions {
    pub fn try_new(input: Arc<LogicalPlan>, time: Column, session: Session, keys: Keys) -> Result<AssignSessions> {
        let time_type = input.schema().field_from_column(&time)?.data_type();
        let new = Arc::new(Field::new(WINDOW_START, window_type(time_type), false));
        let mut fields: Vec<(Option<TableReference>, FieldRef)> = passed(input.schema())
            .map(|i| input.schema().qualified_field(i))
            .map(|(q, f)| (q.cloned(), f.clone()))
            .collect();
        fields.push((None, Arc::clone(&new)));
        fields.push((None, Arc::new(new.as_ref().clone().with_name(WINDOW_END))));
        let schema = DFSchema::new_with_metadata(fields, input.schema().as_arrow().metadata().clone())?;
        Ok(AssignSessions { input, time, session, keys, schema: Arc::new(schema) })
    }

    /// For each output column but the last two, the input's column that it is.
    pub fn passed(&self) -> Vec<usize> {
        passed(self.input.schema()).collect()
    }
}

impl Hash for AssignSessions {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.input, &self.time, &self.session, &self.keys).hash(state);
    }
}

impl PartialOrd for AssignSessions {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        let key = |node: &Self| (node.time.clone(), node.session);
        match key(self).partial_cmp(&key(other)) {
            Some(Ordering::Equal) => self.input.partial_cmp(&other.input),
            different => different,
        }
    }
}

impl UserDefinedLogicalNodeCore for AssignSessions {
    fn name(&self) -> &str {
        "AssignSessions"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        std::iter::once(Expr::Column(self.time.clone())).chain(self.keys.exprs().iter().cloned()).collect()
    }

    /// A row that is taken away below may split a session, unless its whole key goes.
    fn prevent_predicate_push_down_columns(&self) -> HashSet<String> {
        let is_key =
            |name: &str| self.keys.exprs().iter().any(|key| matches!(key, Expr::Column(column) if column.name == name));
        self.schema.fields().iter().map(|field| field.name().clone()).filter(|name| !is_key(name)).collect()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<String> = self.keys.exprs().iter().map(|key| key.to_string()).collect();
        write!(f, "AssignSessions: {}, {}, keys=[{}]", self.time, self.session, keys.join(", "))
    }

    fn with_exprs_and_inputs(&self, exprs: Vec<Expr>, inputs: Vec<LogicalPlan>) -> Result<Self> {
        let mut exprs = exprs.into_iter();
        let (Some(time), Some(input)) = (exprs.next(), inputs.into_iter().next()) else {
            return plan_err!("a session needs a time and an input");
        };
        let keys = match &self.keys {
            Keys::OfGroup => Keys::OfGroup,
            Keys::Grouped(_) => Keys::Grouped(exprs.collect()),
            Keys::Partition(_) => Keys::Partition(exprs.collect()),
        };
        match time.unalias() {
            Expr::Column(time) => AssignSessions::try_new(Arc::new(input), time, self.session, keys),
            other => plan_err!("the time of a session must be a column, not {other}"),
        }
    }

    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        let (passed, input) = (self.passed(), self.input.schema());
        let mut needed: Vec<usize> = output_columns.iter().filter_map(|&i| passed.get(i).copied()).collect();
        needed.extend(input.maybe_index_of_column(&self.time));
        for key in self.keys.exprs() {
            needed.extend(key.column_refs().into_iter().filter_map(|column| input.maybe_index_of_column(column)));
        }
        needed.sort_unstable();
        needed.dedup();
        Some(vec![needed])
    }
}

/// Takes the keys of sessions from the GROUP BY above them. WHERE between the two comes first: sessions are part of the
/// grouping, so they are made of the rows that it lets through. Fails for a SESSION that nothing groups by.
pub(super) fn bind_sessions(plan: LogicalPlan) -> Result<LogicalPlan, PlanError> {
    let bound = plan.transform_up_with_subqueries(|plan| match plan {
        LogicalPlan::Aggregate(aggregate) => match bind(&aggregate)? {
            Some(bound) => Ok(Transformed::yes(bound)),
            None => Ok(Transformed::no(LogicalPlan::Aggregate(aggregate))),
        },
        other => Ok(Transformed::no(other)),
    })?;
    bound.data.apply_with_subqueries(|plan| match sessions(plan) {
        Some(AssignSessions { keys: Keys::OfGroup, .. }) => Err(PlanError::Grouping(
            Refusal::new("SESSION needs a GROUP BY that says whose sessions they are").hint(
                "GROUP BY the keys, window_start and window_end; or write SESSION(t PARTITION BY key, ts, gap) in a query \
                 that wants the rows.",
            ),
        )
        .into()),
        _ => Ok(TreeNodeRecursion::Continue),
    })?;
    Ok(bound.data)
}

pub(super) fn sessions(plan: &LogicalPlan) -> Option<&AssignSessions> {
    match plan {
        LogicalPlan::Extension(Extension { node }) => node.as_any().downcast_ref(),
        _ => None,
    }
}

/// The aggregation with its sessions' keys known, if it is one over sessions that lack them.
fn bind(aggregate: &Aggregate) -> Result<Option<LogicalPlan>> {
    let mut exprs: Vec<Expr> = aggregate.group_expr.clone();
    // Filters on the way down, each over what stands at its place.
    let mut path: Vec<&LogicalPlan> = Vec::new();
    let mut plan = aggregate.input.as_ref();
    let node = loop {
        match plan {
            LogicalPlan::Projection(projection) => replace(&mut exprs, &projection.schema, &projection.expr)?,
            LogicalPlan::SubqueryAlias(alias) => {
                let columns: Vec<Expr> = alias.input.schema().columns().into_iter().map(Expr::Column).collect();
                replace(&mut exprs, &alias.schema, &columns)?;
            }
            LogicalPlan::Filter(_) => {}
            other => match sessions(other) {
                Some(node) if node.keys == Keys::OfGroup => break node,
                _ => return Ok(None),
            },
        }
        path.push(plan);
        plan = plan.inputs()[0];
    };

    let bounds = [WINDOW_START, WINDOW_END].map(Column::new_unqualified);
    let mut keys = Vec::new();
    let mut by_session = false;
    for expr in exprs {
        let expr = expr.unalias_nested().data;
        match &expr {
            Expr::Column(column) if bounds.contains(column) => by_session = true,
            Expr::GroupingSet(_) => return Ok(None),
            _ if expr.column_refs().iter().any(|column| bounds.contains(column)) => {}
            _ => keys.push(expr),
        }
    }
    if !by_session {
        return Ok(None);
    }
    replace(&mut keys, &node.schema, &passed_exprs(node))?;

    // Bottom up: filters on rows go under the sessions, what stood above is put back.
    let mut below: Vec<Expr> = Vec::new();
    let mut above: Vec<LogicalPlan> = Vec::new();
    for (depth, step) in path.iter().enumerate().rev() {
        let LogicalPlan::Filter(filter) = step else {
            above.push((*step).clone());
            continue;
        };
        let mut kept = Vec::new();
        for conjunct in split_conjunction_owned(filter.predicate.clone()) {
            let mut over_node = vec![conjunct.clone()];
            for under in &path[depth + 1..] {
                match under {
                    LogicalPlan::Projection(p) => replace(&mut over_node, &p.schema, &p.expr)?,
                    LogicalPlan::SubqueryAlias(alias) => {
                        let columns: Vec<Expr> = alias.input.schema().columns().into_iter().map(Expr::Column).collect();
                        replace(&mut over_node, &alias.schema, &columns)?;
                    }
                    _ => {}
                }
            }
            if over_node[0].column_refs().iter().any(|column| bounds.contains(column)) {
                kept.push(conjunct);
            } else {
                replace(&mut over_node, &node.schema, &passed_exprs(node))?;
                below.append(&mut over_node);
            }
        }
        if let Some(predicate) = conjunction(kept) {
            above.push(LogicalPlan::Filter(Filter::new(predicate, Arc::clone(&filter.input))));
        }
    }
    let input = match conjunction(below) {
        Some(predicate) => Arc::new(LogicalPlan::Filter(Filter::try_new(predicate, Arc::clone(&node.input))?)),
        None => Arc::clone(&node.input),
    };
    let node = AssignSessions::try_new(input, node.time.clone(), node.session, Keys::Grouped(keys))?;
    let mut plan = LogicalPlan::Extension(Extension { node: Arc::new(node) });
    for step in above {
        let exprs = step.expressions();
        plan = step.with_new_exprs(exprs, vec![plan])?;
    }
    let rebuilt = Aggregate::try_new_with_schema(
        Arc::new(plan),
        aggregate.group_expr.clone(),
        aggregate.aggr_expr.clone(),
        Arc::clone(&aggregate.schema),
    )?;
    Ok(Some(LogicalPlan::Aggregate(rebuilt)))
}

/// The node's output columns as expressions over its input; its bounds stay as they are.
fn passed_exprs(node: &AssignSessions) -> Vec<Expr> {
    let input = node.input.schema();
    let own = node.passed().into_iter().map(|i| Expr::Column(Column::from(input.qualified_field(i))));
    own.chain([WINDOW_START, WINDOW_END].map(|name| Expr::Column(Column::new_unqualified(name)))).collect()
}

/// Puts an expression in the place of each column: `with` has one for each column of `schema`.
fn replace(exprs: &mut [Expr], schema: &DFSchema, with: &[Expr]) -> Result<()> {
    for expr in exprs {
        let replaced = std::mem::take(expr).transform_up(|expr| match &expr {
            Expr::Column(column) => {
                let i = schema.index_of_column(column)?;
                Ok(Transformed::yes(with[i].clone().unalias_nested().data))
            }
            _ => Ok(Transformed::no(expr)),
        })?;
        *expr = replaced.data;
    }
    Ok(())
}

/// The execution of [`AssignSessions`]: streams rows sorted by key and time, holding the rows of one session at a time.
#[derive(Debug)]
pub(super) struct AssignSessionsExec {
    input: Arc<dyn ExecutionPlan>,
    time: usize,
    keys: Vec<Arc<dyn PhysicalExpr>>,
    passed: Vec<usize>,
    session: Session,
    properties: Arc<PlanProperties>,
    schema: SchemaRef,
}

impl AssignSessionsExec {
    pub fn new(
        input: Arc<dyn ExecutionPlan>,
        node: &AssignSessions,
        keys: Vec<Arc<dyn PhysicalExpr>>,
    ) -> Result<AssignSessionsExec> {
        let time = node.input.schema().index_of_column(&node.time)?;
        let schema = Arc::new(node.schema.as_arrow().clone());
        Ok(Self::over(input, time, keys, node.passed(), node.session, schema))
    }

    fn over(
        input: Arc<dyn ExecutionPlan>,
        time: usize,
        keys: Vec<Arc<dyn PhysicalExpr>>,
        passed: Vec<usize>,
        session: Session,
        schema: SchemaRef,
    ) -> AssignSessionsExec {
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&schema)),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            input.boundedness(),
        ));
        AssignSessionsExec { input, time, keys, passed, session, properties, schema }
    }

    fn time_expr(&self) -> Arc<dyn PhysicalExpr> {
        let name = self.input.schema().field(self.time).name().clone();
        Arc::new(datafusion::physical_expr::expressions::Column::new(&name, self.time))
    }
}

impl DisplayAs for AssignSessionsExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AssignSessionsExec: time={}, {}", self.time, self.session)
    }
}

impl ExecutionPlan for AssignSessionsExec {
    fn name(&self) -> &str {
        "AssignSessionsExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        let mut recursion = TreeNodeRecursion::Continue;
        for key in &self.keys {
            recursion = f(key)?;
        }
        Ok(recursion)
    }

    fn input_distribution_requirements(&self) -> InputDistributionRequirements {
        InputDistributionRequirements::new(vec![Distribution::SinglePartition])
    }

    fn required_input_ordering(&self) -> Vec<Option<OrderingRequirements>> {
        let ascending = |expr: Arc<dyn PhysicalExpr>| PhysicalSortExpr::new_default(expr);
        let order = self.keys.iter().cloned().chain([self.time_expr()]).map(ascending);
        vec![LexOrdering::new(order).map(OrderingRequirements::from)]
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let [input] = children.as_slice() else { return plan_err!("AssignSessionsExec has one input") };
        Ok(Arc::new(Self::over(
            Arc::clone(input),
            self.time,
            self.keys.clone(),
            self.passed.clone(),
            self.session,
            Arc::clone(&self.schema),
        )))
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = self.input.execute(partition, context)?;
        let input_schema = self.input.schema();
        let types = self.keys.iter().map(|key| Ok(SortField::new(key.data_type(&input_schema)?)));
        let cutter = Cutter {
            time: self.time,
            keys: self.keys.clone(),
            converter: RowConverter::new(types.collect::<Result<_>>()?)?,
            passed: self.passed.clone(),
            session: self.session,
            schema: Arc::clone(&self.schema),
            current: None,
            held: Vec::new(),
        };
        // `None` after the last batch: what is held is a whole session then.
        let ends = futures::stream::iter([Ok(None)]);
        let batches = input.map_ok(Some).chain(ends).scan(cutter, |cutter, batch| {
            let cut = batch.and_then(|batch| match batch {
                Some(batch) => cutter.cut(batch),
                None => cutter.release(),
            });
            futures::future::ready(Some(cut))
        });
        let flat = batches.flat_map(|cut| match cut {
            Ok(batches) => futures::stream::iter(batches).map(Ok).left_stream(),
            Err(e) => futures::stream::once(async { Err(e) }).right_stream(),
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), flat)))
    }
}

/// Cuts rows sorted by key and time into sessions.
struct Cutter {
    time: usize,
    keys: Vec<Arc<dyn PhysicalExpr>>,
    converter: RowConverter,
    passed: Vec<usize>,
    session: Session,
    schema: SchemaRef,
    /// Key (if there are key columns), first and last time of the session at hand.
    current: Option<(Option<OwnedRow>, i64, i64)>,
    /// Its rows that came in earlier batches.
    held: Vec<RecordBatch>,
}

impl Cutter {
    /// The rows whose sessions are known to have ended.
    fn cut(&mut self, batch: RecordBatch) -> Result<Vec<RecordBatch>> {
        let times = times_us(batch.column(self.time))?;
        let taken: BooleanArray =
            times.iter().map(|time| Some(time.is_some_and(|us| self.session.takes(us)))).collect();
        let batch = filter_record_batch(&batch, &taken)?;
        let times: Vec<i64> = times.into_iter().flatten().filter(|&us| self.session.takes(us)).collect();
        if times.is_empty() {
            return Ok(Vec::new());
        }
        let keys: Vec<ArrayRef> =
            self.keys.iter().map(|key| key.evaluate(&batch)?.into_array(batch.num_rows())).collect::<Result<_>>()?;
        let keys = match keys.is_empty() {
            true => None,
            false => Some(self.converter.convert_columns(&keys)?),
        };

        let mut out = Vec::new();
        let (mut starts, mut ends): (Vec<i64>, Vec<i64>) = (Vec::new(), Vec::new());
        for (row, &time_us) in times.iter().enumerate() {
            let key = keys.as_ref().map(|keys| keys.row(row));
            let goes_on = self.current.as_ref().is_some_and(|(held, first_us, last_us)| {
                key == held.as_ref().map(OwnedRow::row) && time_us < self.session.end_us(*first_us, *last_us)
            });
            if goes_on {
                if let Some((_, _, last_us)) = &mut self.current {
                    *last_us = time_us;
                }
                continue;
            }
            self.bound(&mut out, row - starts.len(), &mut starts, &mut ends)?;
            self.current = Some((key.map(|key| key.owned()), time_us, time_us));
        }
        let whole = starts.len();
        if whole > 0 {
            out.push(self.project(&batch.slice(0, whole), starts, ends)?);
        }
        self.held.push(batch.slice(whole, batch.num_rows() - whole));
        Ok(out)
    }

    /// Ends the session at hand: what was held of it goes out, and `rows` of this batch get its bounds.
    fn bound(
        &mut self,
        out: &mut Vec<RecordBatch>,
        rows: usize,
        starts: &mut Vec<i64>,
        ends: &mut Vec<i64>,
    ) -> Result<()> {
        let Some((_, first_us, last_us)) = &self.current else { return Ok(()) };
        let (start_us, end_us) = (*first_us, self.session.end_us(*first_us, *last_us));
        for held in std::mem::take(&mut self.held) {
            let rows = held.num_rows();
            out.push(self.project(&held, vec![start_us; rows], vec![end_us; rows])?);
        }
        starts.resize(starts.len() + rows, start_us);
        ends.resize(ends.len() + rows, end_us);
        Ok(())
    }

    /// No more rows come.
    fn release(&mut self) -> Result<Vec<RecordBatch>> {
        let mut out = Vec::new();
        self.bound(&mut out, 0, &mut Vec::new(), &mut Vec::new())?;
        Ok(out)
    }

    fn project(&self, rows: &RecordBatch, starts: Vec<i64>, ends: Vec<i64>) -> Result<RecordBatch> {
        let mut columns: Vec<ArrayRef> = self.passed.iter().map(|&i| Arc::clone(rows.column(i))).collect();
        for times in [starts, ends] {
            let data_type = self.schema.field(columns.len()).data_type();
            columns.push(Arc::new(TimestampMicrosecondArray::from(times).with_data_type(data_type.clone())));
        }
        Ok(RecordBatch::try_new(Arc::clone(&self.schema), columns)?)
    }
}
