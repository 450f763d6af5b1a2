//! What the server asks of the engine.

use std::sync::Arc;
use std::time::Duration;

use datafusion::catalog::TableProvider;

use super::{EngineError, EngineOptions, Stats, Subscription};
use crate::catalog::{Catalog, NameContext, Oid};
use crate::exec::Delta;
use crate::planner::EventTimes;
use crate::planner::stream_plan::StreamPlan;
use crate::sql::{AlterSource, Drop, Name, OnConflict, Statement};
use crate::storage::Blobs;

/// The engine: one catalog, its dataflows, its ticks. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    pub(super) inner: Arc<super::Inner>,
}

/// A tick's id: (epoch, n).
pub type TickId = (u64, u64);

/// What a DDL statement did.
#[derive(Debug, Clone, Default)]
pub struct DdlOutcome {
    /// The command tag, such as `CREATE MATERIALIZED VIEW`.
    pub tag: String,
    /// NOTICEs in order.
    pub notices: Vec<String>,
    /// The object that a CREATE made; none if there was one already (`IF NOT EXISTS`), and for namespaces.
    pub created: Option<Oid>,
}

/// A change to one table, from one DML statement.
#[derive(Debug, Clone)]
pub struct TableChange {
    pub table: Oid,
    /// Whole rows in the table's column order; -1 takes away one row that is equal in every column.
    pub delta: Delta,
    /// The statement's own ON CONFLICT, else the table's.
    pub on_conflict: Option<OnConflict>,
}

/// What became of a write.
#[derive(Debug, Clone, Default)]
pub struct WriteOutcome {
    /// Rows stored or changed, by change, in the order given.
    pub affected: Vec<u64>,
    /// Rows of a table with a WATERMARK that came too late and went to `riverrun.late_rows`.
    pub late: u64,
}

/// Everything a statement may read, as of one tick.
pub trait ReadVersion: Send + Sync {
    fn tick(&self) -> TickId;
    /// The rows of a source, table or materialized view that was named to [`Engine::read`].
    fn table(&self, oid: Oid) -> Option<Arc<dyn TableProvider>>;
    /// For `watermark()` and its kin.
    fn event_times(&self) -> Arc<dyn EventTimes>;
}

impl Engine {
    /// Starts threads and serves until [`Engine::stop`].
    pub fn start(options: EngineOptions) -> Result<Engine, EngineError> {
        super::Inner::start(options, None).map(|inner| Engine { inner })
    }

    /// [`Engine::start`] with state in these blobs instead of [`EngineOptions::data`]. For tests.
    #[doc(hidden)]
    pub fn start_on(options: EngineOptions, blobs: Arc<dyn Blobs>) -> Result<Engine, EngineError> {
        super::Inner::start(options, Some(blobs)).map(|inner| Engine { inner })
    }

    /// The catalog as it is now; a later DDL makes a new one.
    pub fn catalog(&self) -> Arc<Catalog> {
        self.inner.catalog()
    }

    /// CREATE SOURCE | TABLE | VIEW | MATERIALIZED VIEW | SCHEMA | DATABASE. A `CREATE TABLE ... AS` makes the table without
    /// its rows: the caller inserts them.
    pub async fn create(&self, statement: &Statement, names: &NameContext) -> Result<DdlOutcome, EngineError> {
        let (inner, statement, names) = (self.inner.clone(), statement.clone(), names.clone());
        to_the_end(async move { inner.create(&statement, &names).await }).await
    }

    /// ALTER SOURCE.
    pub async fn alter_source(
        &self,
        name: &Name,
        if_exists: bool,
        change: &AlterSource,
        names: &NameContext,
    ) -> Result<DdlOutcome, EngineError> {
        let (inner, name, change, names) = (self.inner.clone(), name.clone(), change.clone(), names.clone());
        to_the_end(async move { inner.alter_source(&name, if_exists, &change, &names).await }).await
    }

    /// CANCEL JOB: the ids are those of [`Stats::jobs`].
    pub async fn cancel_jobs(&self, ids: &[Oid], names: &NameContext) -> Result<DdlOutcome, EngineError> {
        let (inner, ids, names) = (self.inner.clone(), ids.to_vec(), names.clone());
        to_the_end(async move { inner.cancel_jobs(&ids, &names).await }).await
    }

    pub async fn drop(&self, statement: &Drop, names: &NameContext) -> Result<DdlOutcome, EngineError> {
        let (inner, statement, names) = (self.inner.clone(), statement.clone(), names.clone());
        to_the_end(async move { inner.drop_objects(&statement, &names).await }).await
    }

    /// One tick's version of the objects. A view that still reads history is an error unless `allow_partial`.
    pub async fn read(&self, objects: &[Oid], allow_partial: bool) -> Result<Arc<dyn ReadVersion>, EngineError> {
        self.inner.read(objects, allow_partial).await
    }

    /// A table's or a materialized view's rows as of one tick, and what changes from then on. `as_of` may name that tick. With
    /// `committed` all of it waits until a checkpoint holds it. A view that still reads history is an error.
    pub async fn subscribe(
        &self,
        object: Oid,
        as_of: Option<TickId>,
        committed: bool,
    ) -> Result<Subscription, EngineError> {
        let mut subscription = self.inner.subscribe(object, as_of, committed).await?;
        subscription.released().await?;
        Ok(subscription)
    }

    /// Applies all changes in one tick, or none. Returns when every view over the tables has absorbed them.
    pub async fn write(&self, changes: Vec<TableChange>) -> Result<WriteOutcome, EngineError> {
        self.inner.write(changes).await
    }

    /// Returns when the source, or every source under a view, has been read to its end offsets as of now and the views
    /// have absorbed that.
    pub async fn wait_for(
        &self,
        name: &Name,
        names: &NameContext,
        timeout: Option<Duration>,
    ) -> Result<(), EngineError> {
        self.inner.wait_for(name, names, timeout).await
    }

    /// Ends at once, as a crash would: nothing more is kept. For tests.
    #[doc(hidden)]
    pub async fn crash(&self) {
        self.inner.end(true).await;
    }

    /// Returns when the engine has ended, with the reason unless it was told to.
    pub async fn ended(&self) -> Option<String> {
        self.inner.ended().await
    }

    /// [`Engine::wait_for`] for everything.
    pub async fn flush(&self) -> Result<(), EngineError> {
        self.inner.flush().await
    }

    /// What EXPLAIN says of a materialized view: its dataflow and the stores it reads; with ANALYZE also state and rows by
    /// operator and store.
    pub async fn explain_view(&self, view: Oid, analyze: bool) -> Result<Vec<String>, EngineError> {
        self.inner.explain_view(view, analyze).await
    }

    /// What EXPLAIN says of a view that is not there yet: the dataflow, and the stores it would join or make.
    pub async fn explain_plan(&self, plan: StreamPlan) -> Result<Vec<String>, EngineError> {
        self.inner.explain_plan(plan).await
    }

    /// Figures for the tables of the schema `riverrun`, as of the last tick.
    pub fn stats(&self) -> Arc<Stats> {
        self.inner.stats()
    }

    /// Stops every thread; returns when they have ended.
    pub async fn stop(&self) {
        self.inner.stop().await
    }
}

/// Runs a change of the catalog to its end, even if whoever asked for it goes away half-way.
async fn to_the_end<T: Send + 'static>(
    change: impl Future<Output = Result<T, EngineError>> + Send + 'static,
) -> Result<T, EngineError> {
    match tokio::spawn(change).await {
        Ok(outcome) => outcome,
        Err(ended) => match ended.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(EngineError::Stopped),
        },
    }
}
