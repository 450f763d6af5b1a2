//! A look into a topic: `SELECT ... FROM source` reads the log from the source's start to its end as of the statement.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use datafusion::physical_plan::{ExecutionPlan, SendableRecordBatchStream};

use super::clock::Stopwatch;
use super::log_stream::{Out, log_stream};
use super::reader::SourceSetup;
use super::topic;
use crate::connector::{ConnectorError, Health, JsonDecoder, PartitionOffset, Records};

const POLL_BYTES: usize = 1 << 20;
const POLL_WAIT: Duration = Duration::from_millis(100);
/// A topic that cannot be read for this long ends the statement with the reason.
const PATIENCE: Duration = Duration::from_secs(15);

/// The records of a source that can be decoded, whether or not the law accepts them.
#[derive(Clone)]
pub struct SourceTable {
    setup: SourceSetup,
    /// Offsets fixed when the source was created; other partitions begin at their first record.
    starts: BTreeMap<i32, i64>,
}

impl SourceTable {
    pub fn new(setup: SourceSetup, starts: BTreeMap<i32, i64>) -> Self {
        SourceTable { setup, starts }
    }
}

impl fmt::Debug for SourceTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SourceTable({})", self.setup.source)
    }
}

#[async_trait]
impl TableProvider for SourceTable {
    fn schema(&self) -> SchemaRef {
        self.setup.schema.clone()
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
        let projection = projection.cloned().unwrap_or_else(|| (0..self.setup.schema.fields().len()).collect());
        let schema = Arc::new(self.setup.schema.project(&projection)?);
        let scan = SourceScan { table: self.clone(), projection, schema: schema.clone() };
        Ok(Arc::new(StreamingTableExec::try_new(schema, vec![Arc::new(scan)], None, None, false, limit)?))
    }
}

#[derive(Debug)]
struct SourceScan {
    table: SourceTable,
    projection: Vec<usize>,
    schema: SchemaRef,
}

impl PartitionStream for SourceScan {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let (table, projection, schema) = (self.table.clone(), self.projection.clone(), self.schema.clone());
        log_stream("topic-scan", self.schema.clone(), move |out| scan(&table, &projection, &schema, out))
    }
}

/// Reads in its own thread; ends early when the reader of the channel has gone (LIMIT, cancel).
fn scan(table: &SourceTable, projection: &[usize], schema: &SchemaRef, out: &Out) -> Result<()> {
    let failed = |error: ConnectorError| DataFusionError::External(Box::new(error));
    let setup = &table.setup;
    let topic = topic::look_once(&setup.options, &table.starts).map_err(failed)?;
    let ends: BTreeMap<i32, i64> = topic.ends.into_iter().collect();
    let mut left: BTreeMap<i32, i64> = BTreeMap::new();
    let mut assigned = Vec::new();
    for (partition, start) in topic.starts {
        let end = ends.get(&partition).copied().unwrap_or(start);
        if start < end {
            left.insert(partition, end);
            assigned.push(PartitionOffset { partition, offset: start });
        }
    }
    if left.is_empty() {
        return Ok(());
    }
    let mut present = projection.to_vec();
    present.sort_unstable();
    present.dedup();
    let mut decoder = JsonDecoder::new(&setup.columns, &present, setup.decode).map_err(failed)?;
    let mut reader = setup.options.reader().map_err(failed)?;
    reader.assign(&assigned).map_err(failed)?;
    let mut records = Records::default();
    let mut silence = Stopwatch::start();
    while !left.is_empty() && !out.is_closed() {
        records.clear();
        match reader.poll(&mut records, POLL_BYTES, POLL_WAIT) {
            // The log begins later by now.
            Err(ConnectorError::OffsetLost { partition, .. }) => {
                let again = PartitionOffset { partition, offset: PartitionOffset::EARLIEST };
                reader.add(&[again]).map_err(failed)?;
            }
            polled => polled.map_err(failed)?,
        }
        records.records.retain(|r| left.get(&r.partition).is_some_and(|end| r.offset < *end));
        if !records.is_empty() {
            silence = Stopwatch::start();
            let decoded = decoder.decode(&records, 0..records.len());
            let columns = projection
                .iter()
                .map(|c| {
                    decoded.batch.column(present.binary_search(c).expect("every projected column is built")).clone()
                })
                .collect();
            let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(decoded.batch.num_rows()));
            let batch = RecordBatch::try_new_with_options(schema.clone(), columns, &options)?;
            if out.blocking_send(Ok(batch)).is_err() {
                return Ok(());
            }
        } else if silence.elapsed() > PATIENCE {
            let reason = match reader.health() {
                Health::Retrying { message } => message.clone(),
                Health::Running => "no record came for 15 seconds".to_string(),
            };
            return Err(failed(ConnectorError::Kafka { doing: "reading the topic", reason }));
        }
        left.retain(|partition, end| reader.position(*partition).is_none_or(|position| position < *end));
    }
    Ok(())
}
