//! A view of sessions as a DataFusion table: immutable, as of one tick.

use std::fmt;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::filter_record_batch;
use arrow::datatypes::{Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::Result;
use datafusion::execution::TaskContext;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_expr::utils::collect_columns;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use datafusion::physical_plan::{ExecutionPlan, SendableRecordBatchStream};

use super::read::{Physical, batch_of, external, key_filter, keys_where, narrow, over_columns, plain_column};
use crate::exec::ExecError;
use crate::exec::expr::Evaluator;
use crate::exec::flow::over_present;
use crate::exec::id_set::IdSet;
use crate::exec::session_batch::{SessionBatch, SessionSnapshot};
use crate::exec::window_view::{Group, Shown, WindowView, Within};
use crate::planner::stream_plan::Node;

/// Sessions of some keys with some bounds, through the filters and projections that the view puts above its aggregation.
#[derive(Clone)]
pub struct SessionTable {
    /// The store's parts, one a worker.
    parts: Vec<(SessionSnapshot, WindowView)>,
    shown: Shown,
    /// Over the aggregation's columns.
    filters: Vec<Physical>,
    columns: Vec<Physical>,
    schema: SchemaRef,
}

impl SessionTable {
    /// `post`: the plan's filters and projections above the aggregation, bottom first.
    pub fn new(
        parts: Vec<(SessionSnapshot, WindowView)>,
        shown: Shown,
        post: &[Node],
        schema: SchemaRef,
    ) -> std::result::Result<Self, ExecError> {
        let (filters, columns) = over_columns(parts.first().map(|(_, view)| view), post)?;
        Ok(SessionTable { parts, shown, filters, columns, schema })
    }

    /// All rows, for a consumer that begins here.
    pub fn rows(&self) -> std::result::Result<Vec<RecordBatch>, ExecError> {
        let all: Vec<usize> = (0..self.columns.len()).collect();
        let mut rows = Vec::new();
        for part in 0..self.parts.len() {
            let scan = self.scan_part(part, &all, Within::default(), &[])?;
            for batch in scan.batches() {
                rows.extend(scan.read(&batch)?);
            }
        }
        Ok(rows)
    }

    fn group_of(&self, output: usize) -> Option<Group> {
        self.parts.first()?.1.group.get(plain_column(self.columns.get(output)?)?).copied()
    }

    fn scan_part(
        &self,
        part: usize,
        projection: &[usize],
        within: Within,
        key_filters: &[Physical],
    ) -> std::result::Result<PartScan, ExecError> {
        let (snapshot, view) = &self.parts[part];
        let columns: Vec<Physical> = projection.iter().map(|&i| self.columns[i].clone()).collect();
        let mut needed: Vec<usize> =
            self.filters.iter().chain(&columns).flat_map(collect_columns).map(|c| c.index()).collect();
        needed.sort_unstable();
        needed.dedup();
        let at = |e: &Physical| over_present(e, &needed);
        let fields: Vec<_> = needed.iter().map(|&i| view.schema.field(i).clone()).collect();
        Ok(PartScan {
            filters: self.filters.iter().map(at).collect::<std::result::Result<_, _>>()?,
            columns: columns.iter().map(at).collect::<std::result::Result<_, _>>()?,
            inner: Arc::new(Schema::new(fields)),
            schema: Arc::new(self.schema.project(projection)?),
            needed,
            within,
            only: keys_where(&snapshot.layout, &snapshot.keys, key_filters)?,
            snapshot: snapshot.clone(),
            view: view.clone(),
            shown: self.shown,
        })
    }
}

/// One part of a scan: gives a batch of sessions at a time.
#[derive(Clone)]
struct PartScan {
    snapshot: SessionSnapshot,
    view: WindowView,
    shown: Shown,
    within: Within,
    only: Option<Arc<IdSet>>,
    /// Columns of the aggregation that are read.
    needed: Vec<usize>,
    inner: SchemaRef,
    filters: Vec<Physical>,
    columns: Vec<Physical>,
    schema: SchemaRef,
}

impl PartScan {
    fn batches(&self) -> Vec<Arc<SessionBatch>> {
        self.snapshot.batches(&self.view).cloned().collect()
    }

    fn read(&self, batch: &SessionBatch) -> std::result::Result<Vec<RecordBatch>, ExecError> {
        let PartScan { snapshot, view, shown, within, only, needed, .. } = self;
        let mut rows = Vec::new();
        for (count, columns) in snapshot.read(batch, view, shown, within, only.as_deref(), needed)? {
            let mut batch = batch_of(&self.inner, columns, count)?;
            for filter in &self.filters {
                let mask = Evaluator::new(filter.clone()).evaluate_predicate(&batch)?;
                batch = filter_record_batch(&batch, &mask)?;
            }
            let columns = self.columns.iter().map(|e| Evaluator::new(e.clone()).evaluate(&batch));
            let columns = columns.collect::<std::result::Result<Vec<_>, _>>()?;
            if batch.num_rows() > 0 {
                rows.push(batch_of(&self.schema, columns, batch.num_rows())?);
            }
        }
        Ok(rows)
    }
}

impl fmt::Debug for PartScan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sessions {:?}", self.within)
    }
}

impl PartitionStream for PartScan {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let scan = self.clone();
        let rows = scan.batches().into_iter().flat_map(move |batch| match scan.read(&batch) {
            Ok(rows) => rows.into_iter().map(Ok).collect::<Vec<_>>(),
            Err(error) => vec![Err(external(error))],
        });
        Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), futures::stream::iter(rows)))
    }
}

impl fmt::Debug for SessionTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionTable({} parts)", self.parts.len())
    }
}

#[async_trait]
impl TableProvider for SessionTable {
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
            if narrow(&mut within, filter, &self.schema, &|i| self.group_of(i)) {
                continue;
            }
            if let Some(filter) = key_filter(state, filter, &self.schema, &|i| self.group_of(i))? {
                key_filters.push(filter);
            }
        }
        let schema = Arc::new(self.schema.project(projection)?);
        let mut parts: Vec<Arc<dyn PartitionStream>> = Vec::new();
        for part in 0..self.parts.len() {
            parts.push(Arc::new(self.scan_part(part, projection, within.clone(), &key_filters).map_err(external)?));
        }
        Ok(Arc::new(StreamingTableExec::try_new(schema, parts, None, None, false, None)?))
    }
}
