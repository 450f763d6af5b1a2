//! Batches that are read from a log by a thread, as a stream: calls to brokers may block.

use std::thread;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::common::{DataFusionError, Result};
use datafusion::physical_plan::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use tokio::sync::mpsc;

/// Where the thread puts its batches; closed once nobody listens.
pub(super) type Out = mpsc::Sender<Result<RecordBatch>>;

/// What `read` gives, in a thread of this name; its error comes last.
pub(super) fn log_stream(
    name: &str,
    schema: SchemaRef,
    read: impl FnOnce(&Out) -> Result<()> + Send + 'static,
) -> SendableRecordBatchStream {
    let (send, receive) = mpsc::channel(2);
    let spawned = thread::Builder::new().name(name.into()).spawn(move || {
        if let Err(error) = read(&send) {
            // Nobody listens any more: then nobody misses the error either.
            let _ = send.blocking_send(Err(error));
        }
    });
    let failed = spawned.err().map(|e| Err(DataFusionError::External(Box::new(e))));
    let batches =
        futures::stream::unfold(
            receive,
            |mut receive| async move { receive.recv().await.map(|batch| (batch, receive)) },
        );
    let all = futures::StreamExt::chain(futures::stream::iter(failed), batches);
    Box::pin(RecordBatchStreamAdapter::new(schema, all))
}
