//! Rows that stand somewhere as DataFusion tables: immutable, as of one tick.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use datafusion::physical_plan::{ExecutionPlan, SendableRecordBatchStream};

use crate::exec::ExecError;
use crate::exec::arrangement::Snapshot;

pub(super) fn external(error: ExecError) -> DataFusionError {
    match error {
        ExecError::DataFusion(error) => *error,
        other => DataFusionError::External(Box::new(other)),
    }
}

pub(super) fn batch_of(schema: &SchemaRef, columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch, ExecError> {
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    Ok(RecordBatch::try_new_with_options(schema.clone(), columns, &options)?)
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
