//! A view that is read from a store, as a DataFusion table: immutable, as of one tick.

use std::fmt;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::Result;
use datafusion::execution::TaskContext;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::utils::{collect_columns, split_conjunction};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use datafusion::physical_plan::{ExecutionPlan, SendableRecordBatchStream};

use super::pushdown::{Physical, key_filter, narrow, over_keys, plain_column};
use super::read::{batch_of, external};
use crate::exec::ExecError;
use crate::exec::expr::Evaluator;
use crate::exec::flow::{over_present, substitute};
use crate::exec::window_view::{Group, Shown, WindowView, Within};
use crate::planner::stream_plan::{Node, Op};

/// Some windows of some keys, through the filters and projections that the view puts above its aggregation.
#[derive(Clone)]
pub struct ViewTable<P> {
    parts: Vec<P>,
    shown: Shown,
    /// Over the aggregation's columns.
    filters: Vec<Physical>,
    /// Those of them that look at keys alone, over the store's keys: they narrow what is read.
    key_filters: Vec<Physical>,
    columns: Vec<Physical>,
    schema: SchemaRef,
}

/// A part of a store, or a whole one, and how it is read.
pub trait ViewPart: Clone + Send + Sync + 'static {
    /// The keys that a scan is about.
    type Only: Clone + Send + Sync + 'static;

    fn view(&self) -> &WindowView;

    /// Those for which all filters, over the store's keys, are true.
    fn only(&self, key_filters: Vec<Physical>) -> Result<Self::Only, ExecError>;

    /// Columns `needed` of the aggregation, each time with their number of rows.
    fn read(
        self,
        only: Self::Only,
        shown: Shown,
        within: Within,
        needed: Vec<usize>,
    ) -> impl Iterator<Item = Result<Vec<(usize, Vec<ArrayRef>)>, ExecError>> + Send + 'static;
}

impl<P: ViewPart> ViewTable<P> {
    /// `post`: the plan's filters and projections above the aggregation, bottom first.
    pub fn new(parts: Vec<P>, shown: Shown, post: &[Node], schema: SchemaRef) -> Result<Self, ExecError> {
        let view = parts.first().map(ViewPart::view);
        let (filters, columns) = over_columns(view, post)?;
        let over_keys = |view| filters.iter().flat_map(split_conjunction).filter_map(|f| over_keys(f, view)).collect();
        let key_filters = view.map(over_keys).unwrap_or_default();
        Ok(ViewTable { parts, shown, filters, key_filters, columns, schema })
    }

    /// All rows, for a consumer that begins here.
    pub fn rows(&self) -> Result<Vec<RecordBatch>, ExecError> {
        let all: Vec<usize> = (0..self.columns.len()).collect();
        let mut batches = Vec::new();
        for part in &self.parts {
            for some in self.scan_part(part, &all, &Within::default(), &[])?.batches() {
                batches.extend(some?);
            }
        }
        Ok(batches)
    }

    /// What an output column is grouped by, if it is one of the aggregation's as it stands.
    fn group_of(&self, output: usize) -> Option<Group> {
        self.parts.first()?.view().group.get(plain_column(self.columns.get(output)?)?).copied()
    }

    fn scan_part(
        &self,
        part: &P,
        projection: &[usize],
        within: &Within,
        key_filters: &[Physical],
    ) -> Result<PartScan<P>, ExecError> {
        let key_filters: Vec<Physical> = self.key_filters.iter().chain(key_filters).cloned().collect();
        let columns: Vec<Physical> = projection.iter().map(|&i| self.columns[i].clone()).collect();
        let mut needed: Vec<usize> =
            self.filters.iter().chain(&columns).flat_map(collect_columns).map(|c| c.index()).collect();
        needed.sort_unstable();
        needed.dedup();
        let at = |e: &Physical| over_present(e, &needed);
        let fields: Vec<_> = needed.iter().map(|&i| part.view().schema.field(i).clone()).collect();
        Ok(PartScan {
            filters: self.filters.iter().map(at).collect::<Result<_, _>>()?,
            columns: columns.iter().map(at).collect::<Result<_, _>>()?,
            inner: Arc::new(Schema::new(fields)),
            schema: Arc::new(self.schema.project(projection)?),
            needed,
            within: within.clone(),
            only: part.only(key_filters)?,
            part: part.clone(),
            shown: self.shown,
        })
    }
}

/// The filters and columns that a view's filters and projections make over its aggregation.
fn over_columns(view: Option<&WindowView>, post: &[Node]) -> Result<(Vec<Physical>, Vec<Physical>), ExecError> {
    let fields = view.into_iter().flat_map(|view| view.schema.fields()).enumerate();
    let mut columns: Vec<Physical> = fields.map(|(i, f)| Arc::new(Column::new(f.name(), i)) as Physical).collect();
    let mut filters = Vec::new();
    for node in post {
        match &node.op {
            Op::Filter { predicate } => filters.push(substitute(predicate, &columns)?),
            Op::Project { exprs } => {
                columns = exprs.iter().map(|e| substitute(e, &columns)).collect::<Result<_, _>>()?;
            }
            other => return Err(ExecError::Invariant(format!("{other:?} stands between a view and its store"))),
        }
    }
    Ok((filters, columns))
}

/// One part of a scan.
#[derive(Clone)]
struct PartScan<P: ViewPart> {
    part: P,
    shown: Shown,
    within: Within,
    only: P::Only,
    /// Columns of the aggregation that are read.
    needed: Vec<usize>,
    inner: SchemaRef,
    filters: Vec<Physical>,
    columns: Vec<Physical>,
    schema: SchemaRef,
}

impl<P: ViewPart> PartScan<P> {
    fn batches(self) -> impl Iterator<Item = Result<Vec<RecordBatch>, ExecError>> + Send {
        let (part, needed) = (self.part.clone(), self.needed.clone());
        let read = part.read(self.only.clone(), self.shown, self.within.clone(), needed);
        read.map(move |some| {
            let mut batches = Vec::new();
            for (rows, columns) in some? {
                batches.extend(self.above(rows, columns)?);
            }
            Ok(batches)
        })
    }

    /// What the filters and projections above make of columns of the aggregation.
    fn above(&self, rows: usize, columns: Vec<ArrayRef>) -> Result<Option<RecordBatch>, ExecError> {
        let mut batch = batch_of(&self.inner, columns, rows)?;
        for filter in &self.filters {
            let mask = Evaluator::new(filter.clone()).evaluate_predicate(&batch)?;
            batch = filter_record_batch(&batch, &mask)?;
        }
        let columns = self.columns.iter().map(|e| Evaluator::new(e.clone()).evaluate(&batch));
        let columns = columns.collect::<Result<Vec<_>, _>>()?;
        (batch.num_rows() > 0).then(|| batch_of(&self.schema, columns, batch.num_rows())).transpose()
    }
}

impl<P: ViewPart> fmt::Debug for PartScan<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "windows that start in {:?} and end in {:?}", self.within.starts, self.within.ends)
    }
}

impl<P: ViewPart> PartitionStream for PartScan<P> {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let batches = self.clone().batches().flat_map(|some| match some {
            Ok(batches) => batches.into_iter().map(Ok).collect::<Vec<_>>(),
            Err(error) => vec![Err(external(error))],
        });
        Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), futures::stream::iter(batches)))
    }
}

impl<P> fmt::Debug for ViewTable<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ViewTable({} parts)", self.parts.len())
    }
}

#[async_trait]
impl<P: ViewPart> TableProvider for ViewTable<P> {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
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
            if narrow(&mut within, filter, &self.schema, &|i| self.group_of(i)) {
                continue;
            }
            if let Some(filter) = key_filter(state, filter, &self.schema, &|i| self.group_of(i))? {
                key_filters.push(filter);
            }
        }
        let schema = Arc::new(self.schema.project(projection)?);
        let mut parts: Vec<Arc<dyn PartitionStream>> = Vec::new();
        for part in &self.parts {
            parts.push(Arc::new(self.scan_part(part, projection, &within, &key_filters).map_err(external)?));
        }
        Ok(Arc::new(StreamingTableExec::try_new(schema, parts, None, None, false, None)?))
    }
}
