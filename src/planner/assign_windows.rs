//! `HOP` and `TUMBLE` as a node of DataFusion's plans: for one-shot queries it is executed as it stands, for views it is
//! lowered away.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, TimestampMicrosecondArray, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::{DataType, Date32Type, Field, FieldRef, SchemaRef, TimestampMicrosecondType};
use async_trait::async_trait;
use datafusion::catalog::Session;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Column, DFSchema, DFSchemaRef, ExprSchema, Result, TableReference, plan_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{Expr, LogicalPlan, UserDefinedLogicalNode, UserDefinedLogicalNodeCore};
use datafusion::physical_expr::{EquivalenceProperties, Partitioning, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{
    ChildrenPropertiesMode, EmissionType, PlanProperties, ReplaceChildrenOptions,
};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties};
use datafusion::physical_planner::{ExtensionPlanner, PhysicalPlanner};
use futures::StreamExt;

use super::stream_plan::{Window, window_type};

pub const WINDOW_START: &str = "window_start";
pub const WINDOW_END: &str = "window_end";

/// Copies each row into every window that covers it. Output: the input's columns but for those called `window_start` and
/// `window_end`, then the window's own `window_start` and `window_end`, unqualified, of the type of the time column (DATE
/// having become TIMESTAMP). Rows whose time is NULL are in no window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssignWindows {
    pub input: Arc<LogicalPlan>,
    /// A column of the input: Timestamp(us) or Date32.
    pub time: Column,
    pub window: Window,
    schema: DFSchemaRef,
}

impl AssignWindows {
    pub fn try_new(input: Arc<LogicalPlan>, time: Column, window: Window) -> Result<AssignWindows> {
        let time_type = input.schema().field_from_column(&time)?.data_type();
        let new = Arc::new(Field::new(WINDOW_START, window_type(time_type), false));
        let mut fields: Vec<(Option<TableReference>, FieldRef)> = passed(input.schema())
            .map(|i| input.schema().qualified_field(i))
            .map(|(q, f)| (q.cloned(), f.clone()))
            .collect();
        fields.push((None, Arc::clone(&new)));
        fields.push((None, Arc::new(new.as_ref().clone().with_name(WINDOW_END))));
        let schema = DFSchema::new_with_metadata(fields, input.schema().as_arrow().metadata().clone())?;
        Ok(AssignWindows { input, time, window, schema: Arc::new(schema) })
    }

    /// The fields of `window_start` and `window_end`.
    pub fn schema_of_bounds(&self) -> [FieldRef; 2] {
        let n = self.schema.fields().len();
        [Arc::clone(&self.schema.fields()[n - 2]), Arc::clone(&self.schema.fields()[n - 1])]
    }

    /// For each output column but the last two, the input's column that it is.
    pub fn passed(&self) -> Vec<usize> {
        passed(self.input.schema()).collect()
    }
}

fn passed(schema: &DFSchema) -> impl Iterator<Item = usize> + '_ {
    let hidden = |name: &str| name == WINDOW_START || name == WINDOW_END;
    (0..schema.fields().len()).filter(move |&i| !hidden(schema.field(i).name()))
}

impl Hash for AssignWindows {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.input, &self.time, &self.window).hash(state);
    }
}

impl PartialOrd for AssignWindows {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        let key =
            |node: &Self| (node.window.size_us, node.window.slide_us, node.window.offset_us, node.window.cumulates);
        match (&self.time, key(self)).partial_cmp(&(&other.time, key(other))) {
            Some(Ordering::Equal) => self.input.partial_cmp(&other.input),
            different => different,
        }
    }
}

impl UserDefinedLogicalNodeCore for AssignWindows {
    fn name(&self) -> &str {
        "AssignWindows"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        vec![Expr::Column(self.time.clone())]
    }

    fn prevent_predicate_push_down_columns(&self) -> HashSet<String> {
        HashSet::from([WINDOW_START.to_string(), WINDOW_END.to_string()])
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AssignWindows: {}, {}", self.time, self.window)
    }

    fn with_exprs_and_inputs(&self, exprs: Vec<Expr>, inputs: Vec<LogicalPlan>) -> Result<Self> {
        let (Some(time), Some(input)) = (exprs.into_iter().next(), inputs.into_iter().next()) else {
            return plan_err!("a window needs a time and an input");
        };
        match time.unalias() {
            Expr::Column(time) => AssignWindows::try_new(Arc::new(input), time, self.window),
            other => plan_err!("the time of a window must be a column, not {other}"),
        }
    }

    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        let passed = self.passed();
        let mut needed: Vec<usize> = output_columns.iter().filter_map(|&i| passed.get(i).copied()).collect();
        needed.extend(self.input.schema().maybe_index_of_column(&self.time));
        needed.sort_unstable();
        needed.dedup();
        Some(vec![needed])
    }
}

/// Plans [`AssignWindows`] for execution.
#[derive(Debug)]
pub struct WindowsPlanner;

#[async_trait]
impl ExtensionPlanner for WindowsPlanner {
    async fn plan_extension(
        &self,
        _planner: &dyn PhysicalPlanner,
        node: &dyn UserDefinedLogicalNode,
        _logical_inputs: &[&LogicalPlan],
        physical_inputs: &[Arc<dyn ExecutionPlan>],
        _session: &dyn Session,
        _planning: &PhysicalPlanningContext,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let (Some(node), [input]) = (node.as_any().downcast_ref::<AssignWindows>(), physical_inputs) else {
            return Ok(None);
        };
        Ok(Some(Arc::new(AssignWindowsExec::new(
            Arc::clone(input),
            node.input.schema().index_of_column(&node.time)?,
            node.passed(),
            node.window,
            Arc::new(node.schema.as_arrow().clone()),
        ))))
    }
}

/// The execution of [`AssignWindows`]: streams, holding one input batch and one output batch of at most the session's
/// batch size.
#[derive(Debug)]
struct AssignWindowsExec {
    input: Arc<dyn ExecutionPlan>,
    time: usize,
    passed: Vec<usize>,
    window: Window,
    properties: Arc<PlanProperties>,
    schema: SchemaRef,
}

impl AssignWindowsExec {
    fn new(
        input: Arc<dyn ExecutionPlan>,
        time: usize,
        passed: Vec<usize>,
        window: Window,
        schema: SchemaRef,
    ) -> AssignWindowsExec {
        let partitions = input.output_partitioning().partition_count();
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&schema)),
            Partitioning::UnknownPartitioning(partitions),
            EmissionType::Incremental,
            input.boundedness(),
        ));
        AssignWindowsExec { input, time, passed, window, properties, schema }
    }
}

impl DisplayAs for AssignWindowsExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AssignWindowsExec: time={}, {}", self.time, self.window)
    }
}

impl ExecutionPlan for AssignWindowsExec {
    fn name(&self) -> &str {
        "AssignWindowsExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let [input] = children.as_slice() else { return plan_err!("AssignWindowsExec has one input") };
        Ok(Arc::new(AssignWindowsExec::new(
            Arc::clone(input),
            self.time,
            self.passed.clone(),
            self.window,
            Arc::clone(&self.schema),
        )))
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = self.input.execute(partition, Arc::clone(&context))?;
        let (time, window, batch_size) = (self.time, self.window, context.session_config().batch_size());
        let (passed, schema) = (self.passed.clone(), Arc::clone(&self.schema));
        let batches = input.flat_map(move |batch| {
            let expanded = batch.and_then(|batch| {
                let times = times_us(batch.column(time))?;
                Ok(Expansion {
                    batch: Some(batch),
                    times,
                    row: 0,
                    pending: Vec::new(),
                    passed: passed.clone(),
                    window,
                    batch_size,
                    schema: Arc::clone(&schema),
                })
            });
            match expanded {
                Ok(expansion) => futures::stream::iter(expansion).left_stream(),
                Err(e) => futures::stream::once(async { Err(e) }).right_stream(),
            }
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), batches)))
    }
}

/// The times of a column in microseconds, NULL where it is NULL.
fn times_us(column: &ArrayRef) -> Result<Vec<Option<i64>>> {
    match column.data_type() {
        DataType::Timestamp(_, _) => match column.as_primitive_opt::<TimestampMicrosecondType>() {
            Some(times) => Ok(times.iter().collect()),
            None => plan_err!("a window's time is in microseconds, not {}", column.data_type()),
        },
        DataType::Date32 => {
            let days = column.as_primitive::<Date32Type>();
            Ok(days.iter().map(|day| day.map(|day| i64::from(day) * 86_400_000_000)).collect())
        }
        other => plan_err!("a window's time cannot be {other}"),
    }
}

/// One input batch on its way out.
struct Expansion {
    batch: Option<RecordBatch>,
    times: Vec<Option<i64>>,
    row: usize,
    /// (row, window end) found but not yet put out.
    pending: Vec<(u32, i64)>,
    passed: Vec<usize>,
    window: Window,
    batch_size: usize,
    schema: SchemaRef,
}

impl Iterator for Expansion {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Result<RecordBatch>> {
        let batch = self.batch.as_ref()?;
        while self.pending.len() < self.batch_size && self.row < self.times.len() {
            if let Some(time) = self.times[self.row] {
                let row = self.row as u32;
                self.pending.extend(self.window.ends(time).map(|end| (row, end)));
            }
            self.row += 1;
        }
        if self.pending.is_empty() {
            self.batch = None;
            return None;
        }
        let rest = self.pending.split_off(self.pending.len().min(self.batch_size));
        let rows = std::mem::replace(&mut self.pending, rest);
        Some(self.project(batch, &rows))
    }
}

impl Expansion {
    fn project(&self, batch: &RecordBatch, rows: &[(u32, i64)]) -> Result<RecordBatch> {
        let indices = UInt32Array::from_iter_values(rows.iter().map(|(row, _)| *row));
        let mut columns = Vec::with_capacity(self.passed.len() + 2);
        for &i in &self.passed {
            columns.push(take(batch.column(i), &indices, None)?);
        }
        let ends: Vec<i64> = rows.iter().map(|(_, end)| *end).collect();
        let starts = ends.iter().map(|&end| self.window.start_of(end)).collect();
        for bounds in [starts, ends] {
            let times = TimestampMicrosecondArray::from(bounds);
            let data_type = self.schema.field(columns.len()).data_type();
            columns.push(Arc::new(times.with_data_type(data_type.clone())));
        }
        Ok(RecordBatch::try_new(Arc::clone(&self.schema), columns)?)
    }
}
