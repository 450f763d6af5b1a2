//! Owns the catalog, the dataflows and the ticks; the only place where time passes.
//!
//! ```text
//!  Engine (api)  ──requests──►  Coordinator thread  ──commands──►  Worker threads ◄──exchange──► Worker threads
//!     ▲  DDL, reads, writes      ends ticks, steps tails            read, judge, feed, own stores
//!     └────────── versions, acks ◄──────────────────── reports ◄────────────┘
//! ```

mod accepted_table;
mod alter;
mod api;
mod backfill;
mod checkpoint;
mod checkpointer;
mod checkpoints;
mod clock;
mod coordinator;
mod damage;
mod dataflow;
mod decoding;
mod duplicates;
mod edge;
mod emissions;
mod error;
mod figures;
mod finality;
mod former_format;
mod freshness;
mod gathering;
mod install;
mod jobs;
mod judge;
mod keeping;
mod kept;
pub mod kept_rows;
mod log_stream;
mod memory;
mod orders;
mod owners;
mod partition;
mod pushdown;
mod read;
mod reader;
mod reconcile;
mod reconciliations;
mod repair;
mod request;
mod restore;
mod session_part;
mod session_table;
mod sharing;
mod slice_index;
mod source_table;
mod stats;
mod subscription;
mod table;
mod table_log;
mod topic;
mod verdicts;
mod version;
mod view_table;
mod window_table;
mod worker;
mod worker_saves;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Sender, unbounded};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{oneshot, watch};

pub use crate::connector::ConnectorError;
pub use api::{DdlOutcome, Engine, ReadVersion, TableChange, TickId, WriteOutcome};
pub use clock::{Stopwatch, TickClock, now_us};
pub use error::{EngineError, tick_number, tick_of_number};
pub use keeping::CHECKPOINT_INTERVAL;
pub use reconcile::{Comparable, ShownWindows};
pub use reconciliations::{Reconciliation, Work};
pub use repair::{Damage, Repaired};
pub use stats::{
    CheckpointStats, Ids, JobPartition, JobStats, MemoryStats, PartitionStats, SliceStats, SourceStats, Stats,
    ViewStats,
};
pub use subscription::{Subscription, Update};
pub use verdicts::Counts;

use self::checkpoint::Checkpoint;
use self::coordinator::{Coordinator, Lines};
use self::memory::Memory;
use self::reader::SourceSetup;
use self::request::{Explained, NewSource, Reply, Request};
use self::verdicts::LateInto;
use self::worker::{Channels, Seat, Worker};
use crate::catalog::{Catalog, NameContext, Object, ObjectKind, Oid, Source};
use crate::connector::{ColumnSpec, IncludeKind, JsonOptions, SourceOptions};
use crate::exec::dedup::Deduplicate;
use crate::exec::law::Bounds;
use crate::planner::{self, stream_plan::StreamPlan};
use crate::sql::{Drop, Include, Name, Statement, interval_us};
use crate::storage::{self, Blobs, IfDamaged, Opened, Storage, StorageError};

#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Threads that read, decode and aggregate.
    pub workers: usize,
    /// Where state is kept: a folder, or `s3://`, `gs://` or `az://` with a bucket and a prefix. None: it ends with the process.
    pub data: Option<String>,
    /// The longest time between two checkpoints while something changes.
    pub checkpoint_interval: Duration,
    /// What state may take of memory.
    pub memory_limit_bytes: Option<usize>,
    /// Of what is kept, what is damaged and follows from sources and tables is made anew, where else the start is refused.
    pub rebuild_damaged: bool,
    /// After the storage has failed; it doubles with each failure that follows, up to ten seconds.
    pub retry_pause: Duration,
    /// What `now()` is in views, and what EMIT EVERY goes by.
    pub clock: TickClock,
}

impl Default for EngineOptions {
    /// One worker per core.
    fn default() -> Self {
        EngineOptions {
            workers: thread::available_parallelism().map_or(1, usize::from),
            data: None,
            checkpoint_interval: CHECKPOINT_INTERVAL,
            memory_limit_bytes: None,
            rebuild_damaged: false,
            retry_pause: FIRST_PAUSE,
            clock: TickClock::System,
        }
    }
}

const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// How long a start waits for another process to let go of the data.
const LONGEST_LOCK: Duration = Duration::from_secs(3);
/// The most workers: each owns at least one of the 256 buckets.
pub const MOST_WORKERS: usize = 256;

pub(crate) struct Inner {
    catalog: RwLock<Arc<Catalog>>,
    /// The dataflows of materialized views, as they run.
    plans: RwLock<planner::Plans>,
    /// One DDL statement at a time.
    ddl: tokio::sync::Mutex<()>,
    requests: Sender<Request>,
    stats: Arc<RwLock<Arc<Stats>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Why it has ended; empty for one that was told to.
    ended: watch::Receiver<Option<String>>,
}

impl Inner {
    /// `blobs` instead of [`EngineOptions::data`].
    fn start(options: EngineOptions, blobs: Option<Arc<dyn Blobs>>) -> Result<Arc<Inner>, EngineError> {
        let workers = options.workers;
        if workers == 0 || workers > MOST_WORKERS {
            return Err(EngineError::Invalid {
                message: format!("{workers} workers: from 1 to {MOST_WORKERS} are possible"),
                hint: "Leave --workers out for one per core.".into(),
            });
        }
        let (requests, asked) = unbounded();
        let (reports, reported) = unbounded();
        let stats = Arc::new(RwLock::new(Arc::new(Stats::default())));
        let (owners, inboxes): (Vec<_>, Vec<_>) = (0..workers).map(|_| unbounded()).unzip();
        let blobs = match blobs {
            Some(blobs) => Some(blobs),
            None => options.data.as_deref().map(storage::at).transpose()?,
        };
        let if_damaged = if options.rebuild_damaged { IfDamaged::GoOn } else { IfDamaged::Refuse };
        let opened = blobs.map(|blobs| open_storage(&blobs, if_damaged)).transpose()?;
        let checkpoint = opened.as_ref().and_then(|opened| opened.manifest.as_ref()).map(restore::checkpoint_of);
        let checkpoint: Option<Checkpoint> = checkpoint.transpose()?.flatten();
        // Each start has an epoch of its own, so that a tick's id never comes twice, whatever the clock says.
        let last = checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.body.tick.0);
        let epoch = u64::try_from(now_us()).unwrap_or(0).max(last + 1);
        let memory = Memory::new(options.memory_limit_bytes);
        let mut threads = Vec::new();
        let mut commands = Vec::new();
        let failed = |e: std::io::Error| EngineError::NotReady {
            message: format!("a thread cannot be started: {e}"),
            hint: "Raise the limit of threads for this process.".into(),
        };
        for (index, incoming) in inboxes.into_iter().enumerate() {
            let (send, receive) = unbounded();
            commands.push(send);
            let transport = Box::new(Channels { owners: owners.clone() });
            let seat = Seat { index, workers, epoch, cache: memory.cache.clone(), lasts: opened.is_some() };
            let worker = Worker::new(seat, receive, reports.clone(), incoming, transport);
            let name = format!("worker-{index}");
            threads.push(thread::Builder::new().name(name).spawn(move || worker.run()).map_err(failed)?);
        }
        drop(reports);
        let (ended, end) = watch::channel(None);
        let lines = Lines { requests: asked, say: requests.clone(), commands, reports: reported, ended };
        let mut coordinator = Coordinator::new(epoch, lines, stats.clone(), memory, options.clock.clone());
        let mut plans = planner::Plans::default();
        if let Some(opened) = opened {
            plans = coordinator.take_up(opened, checkpoint, &options)?;
        }
        let catalog = coordinator.catalog.clone();
        let run = move || coordinator.run();
        threads.push(thread::Builder::new().name("coordinator".into()).spawn(run).map_err(failed)?);
        Ok(Arc::new(Inner {
            catalog: RwLock::new(catalog),
            plans: RwLock::new(plans),
            ddl: tokio::sync::Mutex::new(()),
            requests,
            stats,
            threads: Mutex::new(threads),
            ended: end,
        }))
    }

    /// Returns when the engine has ended, with the reason unless it was told to.
    async fn ended(&self) -> Option<String> {
        let mut ended = self.ended.clone();
        let reason = ended.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        reason.filter(|reason| !reason.is_empty())
    }

    fn catalog(&self) -> Arc<Catalog> {
        self.catalog.read().clone()
    }

    fn stats(&self) -> Arc<Stats> {
        self.stats.read().clone()
    }

    async fn ask<T>(&self, make: impl FnOnce(Reply<T>) -> Request) -> Result<T, EngineError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(make(reply)).map_err(|_| EngineError::Stopped)?;
        answer.await.map_err(|_| EngineError::Stopped)?
    }

    async fn create(&self, statement: &Statement, names: &NameContext) -> Result<DdlOutcome, EngineError> {
        let _one_at_a_time = self.ddl.lock().await;
        let catalog = self.catalog();
        match statement {
            Statement::CreateSchema { name, if_not_exists } => {
                let (database, schema) = catalog.schema_name(name, names)?;
                let made = catalog.create_schema(&database, &schema);
                return self.made_namespace(made, "CREATE SCHEMA", &schema, *if_not_exists).await;
            }
            Statement::CreateDatabase { name, if_not_exists } => {
                let database = name.to_string();
                let made = catalog.create_database(&database);
                return self.made_namespace(made, "CREATE DATABASE", &database, *if_not_exists).await;
            }
            _ => {}
        }
        let mut statement = Cow::Borrowed(statement);
        if matches!(*statement, Statement::CreateSource(_))
            && let Statement::CreateSource(create) = statement.to_mut()
        {
            SourceOptions::fix_start(&mut create.options, now_us() / 1000);
        }
        let definition = planner::define(&statement, &catalog, names)?;
        let tag = tag_of(&definition.object.kind).to_string();
        let mut notices = definition.notices;
        let made = if definition.replace {
            catalog.replace_view(definition.object)
        } else {
            catalog.create(definition.object)
        };
        let (next, oid) = match made {
            Err(error) if definition.if_not_exists && error.is_already_there() => {
                notices.push(format!("{error}, skipping"));
                return Ok(DdlOutcome { tag, notices, created: None });
            }
            made => made?,
        };
        let object = next.get(oid).ok_or(EngineError::Stopped)?;
        let setup = match &object.kind {
            ObjectKind::Source(source) => {
                Some(Box::new(self.prepare_source(&object, source, &next, &mut notices).await?))
            }
            _ => None,
        };
        let plan = definition.plan.map(|plan| planner::onto_slices(plan, &self.plans.read())).transpose()?;
        let running = plan.clone().map(Box::new);
        let next = Arc::new(next);
        let catalog = next.clone();
        let made = self.ask(|reply| Request::Create { object, setup, plan: running, catalog, reply }).await;
        if let Some(plan) = plan {
            self.plans.write().insert(oid, Arc::new(plan));
        }
        notices.extend(self.in_force(made, next)?);
        Ok(DdlOutcome { tag, notices, created: Some(oid) })
    }

    async fn made_namespace(
        &self,
        made: Result<Catalog, crate::catalog::CatalogError>,
        tag: &str,
        name: &str,
        if_not_exists: bool,
    ) -> Result<DdlOutcome, EngineError> {
        let mut notices = Vec::new();
        match made {
            Ok(next) => {
                let next = Arc::new(next);
                let catalog = next.clone();
                let done = self.ask(|reply| Request::Namespaces { catalog, reply }).await;
                self.in_force(done, next)?;
            }
            Err(error) if if_not_exists && error.is_already_there() => {
                notices.push(format!("\"{name}\" already exists, skipping"));
            }
            Err(error) => return Err(error.into()),
        }
        Ok(DdlOutcome { tag: tag.to_string(), notices, created: None })
    }

    /// Checks a source's options and, as far as brokers answer, its topic.
    async fn prepare_source(
        &self,
        object: &Object,
        source: &Source,
        catalog: &Catalog,
        notices: &mut Vec<String>,
    ) -> Result<NewSource, EngineError> {
        let (setup, connector) = source_setup(object, source, catalog)?;
        setup.options.check()?;
        let options = setup.options.clone();
        let must_know = options.starts_at_a_moment();
        let look = move || if must_know { topic::fixed_starts(&options) } else { topic::starts_if_reachable(&options) };
        let looked = tokio::task::spawn_blocking(look).await.map_err(|_| EngineError::Stopped)?;
        let (topic_id, starts) = match looked {
            Ok(beginning) => beginning,
            Err(error) if must_know || !error.is_retryable() => return Err(error.into()),
            Err(error) => {
                notices.push(format!("{error}; reading begins once that is mended"));
                (None, BTreeMap::new())
            }
        };
        Ok(NewSource { setup, connector, starts, topic_id })
    }

    /// Takes the catalog that a statement has made, also where it was done and nobody knows whether it outlives a restart.
    fn in_force<T>(&self, outcome: Result<T, EngineError>, next: Arc<Catalog>) -> Result<T, EngineError> {
        if matches!(outcome, Ok(_) | Err(EngineError::Unknown { .. })) {
            *self.catalog.write() = next;
        }
        let catalog = self.catalog();
        self.plans.write().retain(|oid, _| catalog.get(*oid).is_some());
        outcome
    }

    async fn drop_objects(&self, statement: &Drop, names: &NameContext) -> Result<DdlOutcome, EngineError> {
        let _one_at_a_time = self.ddl.lock().await;
        let catalog = self.catalog();
        let plan =
            catalog.drop_plan(statement.kind, &statement.names, statement.if_exists, statement.cascade, names)?;
        let next = Arc::new(catalog.after_drop(&plan)?);
        let (oids, catalog) = (plan.oids.clone(), next.clone());
        let dropped = self.ask(|reply| Request::Drop { oids, catalog, reply }).await;
        self.in_force(dropped, next)?;
        let kind = match statement.kind {
            crate::sql::ObjectType::Source => "SOURCE",
            crate::sql::ObjectType::Table => "TABLE",
            crate::sql::ObjectType::View => "VIEW",
            crate::sql::ObjectType::MaterializedView => "MATERIALIZED VIEW",
            crate::sql::ObjectType::Schema => "SCHEMA",
            crate::sql::ObjectType::Database => "DATABASE",
        };
        Ok(DdlOutcome { tag: format!("DROP {kind}"), notices: plan.notices, created: None })
    }

    async fn read(&self, objects: &[Oid], allow_partial: bool) -> Result<Arc<dyn ReadVersion>, EngineError> {
        let objects = objects.to_vec();
        let version = self.ask(|reply| Request::Read { objects, allow_partial, reply }).await?;
        Ok(version)
    }

    async fn subscribe(
        &self,
        object: Oid,
        as_of: Option<TickId>,
        committed: bool,
    ) -> Result<Subscription, EngineError> {
        self.ask(|reply| Request::Subscribe { object, as_of, committed, reply }).await
    }

    async fn write(&self, changes: Vec<TableChange>) -> Result<WriteOutcome, EngineError> {
        self.ask(|reply| Request::Write { changes, reply }).await
    }

    async fn explain_view(&self, oid: Oid, analyze: bool) -> Result<Vec<String>, EngineError> {
        self.ask(|reply| Request::Explain { what: Explained::View { oid, analyze }, reply }).await
    }

    async fn explain_plan(&self, plan: StreamPlan) -> Result<Vec<String>, EngineError> {
        let plan = Box::new(planner::onto_slices(plan, &self.plans.read())?);
        self.ask(|reply| Request::Explain { what: Explained::Plan(plan), reply }).await
    }

    async fn wait_for(&self, name: &Name, names: &NameContext, timeout: Option<Duration>) -> Result<(), EngineError> {
        let object = self.catalog().resolve(name, names)?;
        let (sources, views) = self.beneath(object.oid);
        within(timeout, format!("WAIT FOR {name}"), self.wait_for_sources(sources, views)).await
    }

    async fn flush(&self) -> Result<(), EngineError> {
        let catalog = self.catalog();
        let all = catalog.databases().into_iter().flat_map(|d| catalog.objects(&d.name).collect::<Vec<_>>());
        let sources = all.filter(|o| matches!(o.kind, ObjectKind::Source(_))).map(|o| o.oid).collect();
        self.wait_for_sources(sources, BTreeSet::new()).await
    }

    /// The sources that an object stands on, and the materialized views among it and those beneath.
    fn beneath(&self, oid: Oid) -> (BTreeSet<Oid>, BTreeSet<Oid>) {
        let catalog = self.catalog();
        let (mut sources, mut views) = (BTreeSet::new(), BTreeSet::new());
        let mut left = vec![oid];
        while let Some(object) = left.pop().and_then(|oid| catalog.get(oid)) {
            match object.kind {
                ObjectKind::Source(_) => {
                    sources.insert(object.oid);
                }
                ObjectKind::MaterializedView(_) => {
                    views.insert(object.oid);
                    left.extend(&object.depends_on);
                }
                ObjectKind::Table(_) | ObjectKind::View { .. } => left.extend(&object.depends_on),
            }
        }
        (sources, views)
    }

    /// Ends are taken now; a source that no view reads has nothing to wait for.
    async fn wait_for_sources(&self, sources: BTreeSet<Oid>, views: BTreeSet<Oid>) -> Result<(), EngineError> {
        let catalog = self.catalog();
        let stats = self.stats();
        let read: BTreeSet<Oid> = stats.sources.iter().filter(|s| s.state != "idle").map(|s| s.oid).collect();
        if let Some(failed) = stats.sources.iter().find(|s| s.state == "failed" && sources.contains(&s.oid)) {
            let lost = failed.partitions.iter().find_map(|p| p.error.as_deref());
            return Err(alter::source_failed(&failed.name, lost.or(failed.message.as_deref()).unwrap_or_default()));
        }
        let mut ends = BTreeMap::new();
        for oid in sources.into_iter().filter(|oid| read.contains(oid)) {
            let Some(object) = catalog.get(oid) else { continue };
            let ObjectKind::Source(source) = &object.kind else { continue };
            let (setup, _) = source_setup(&object, source, &catalog)?;
            let look = move || topic::look_once(&setup.options, &BTreeMap::new());
            let topic = tokio::task::spawn_blocking(look).await.map_err(|_| EngineError::Stopped)??;
            ends.insert(oid, topic.ends);
        }
        self.ask(|reply| Request::Wait { ends, views: views.into_iter().collect(), reply }).await
    }

    async fn stop(&self) {
        self.end(false).await;
    }

    async fn end(&self, at_once: bool) {
        // A coordinator that has gone already needs no word.
        let _ = self.requests.send(Request::Stop { at_once });
        let threads = std::mem::take(&mut *self.threads.lock());
        let join = move || {
            for thread in threads {
                if thread.join().is_err() {
                    tracing::error!("a thread of the engine panicked");
                }
            }
        };
        if let Err(error) = tokio::task::spawn_blocking(join).await {
            tracing::error!(%error, "waiting for the engine's threads failed");
        }
    }
}

/// A process that has just been killed may still hold its lock.
#[expect(clippy::disallowed_methods, reason = "nothing tells when another process has gone")]
fn open_storage(blobs: &Arc<dyn Blobs>, if_damaged: IfDamaged) -> Result<Opened, StorageError> {
    let since = Stopwatch::start();
    loop {
        match Storage::open_with(blobs.clone(), rand::random(), now_us(), if_damaged) {
            Err(StorageError::Locked { .. }) if since.elapsed() < LONGEST_LOCK => {
                thread::sleep(Duration::from_millis(50));
            }
            opened => return opened,
        }
    }
}

async fn within<T>(
    timeout: Option<Duration>,
    waiting: String,
    work: impl Future<Output = Result<T, EngineError>>,
) -> Result<T, EngineError> {
    match timeout {
        None => work.await,
        Some(timeout) => tokio::time::timeout(timeout, work).await.unwrap_or(Err(EngineError::Timeout { waiting })),
    }
}

fn tag_of(kind: &ObjectKind) -> &'static str {
    match kind {
        ObjectKind::Source(_) => "CREATE SOURCE",
        ObjectKind::Table(_) => "CREATE TABLE",
        ObjectKind::View { .. } => "CREATE VIEW",
        ObjectKind::MaterializedView(_) => "CREATE MATERIALIZED VIEW",
    }
}

/// Splits a source's options into the engine's and the connector's.
fn source_setup(object: &Object, source: &Source, catalog: &Catalog) -> Result<(SourceSetup, String), EngineError> {
    let mut options = source.options.clone();
    let mut bounds = Bounds { delay_us: source.watermark.as_ref().map(|w| w.delay_us), ..Bounds::default() };
    for (name, bound) in [
        ("allowed_lateness", &mut bounds.allowed_lateness_us),
        ("idle_timeout", &mut bounds.idle_timeout_us),
        ("max_future", &mut bounds.max_future_us),
    ] {
        let Some(text) = options.remove(name) else { continue };
        if source.watermark.is_none() {
            return Err(needs_watermark(name));
        }
        *bound = interval_us(&text)?;
        if *bound < 0 {
            return Err(EngineError::Invalid {
                message: format!("option {name} is negative"),
                hint: "Give an interval such as '1 minute'.".into(),
            });
        }
    }
    if let Some(text) = options.remove("idle_advance") {
        bounds.idle_advance = match text.to_ascii_lowercase().as_str() {
            "true" | "on" => true,
            "false" | "off" => false,
            _ => {
                return Err(EngineError::Invalid {
                    message: format!("option idle_advance: '{text}' is neither true nor false"),
                    hint: "Write idle_advance = true, or leave it out.".into(),
                });
            }
        };
        if source.watermark.is_none() {
            return Err(needs_watermark("idle_advance"));
        }
    }
    let mut columns: Vec<ColumnSpec> = object
        .columns
        .fields()
        .iter()
        .enumerate()
        .map(|(i, field)| ColumnSpec {
            name: field.name().clone(),
            data_type: field.data_type().clone(),
            not_null: source.not_null.contains(&i),
            include: None,
        })
        .collect();
    for (column, include) in &source.includes {
        columns[*column].include = Some(match include {
            Include::Partition => IncludeKind::Partition,
            Include::Offset => IncludeKind::Offset,
            Include::Timestamp => IncludeKind::Timestamp,
            Include::Key => IncludeKind::Key,
        });
    }
    // The planner has read it.
    options.remove("deduplicate.same_partition");
    let decode_options = ["timestamptz.handling.mode"]
        .into_iter()
        .filter_map(|name| Some((name.to_string(), options.remove(name)?)))
        .collect();
    let decode = JsonOptions::parse(&decode_options)?;
    let connector = options.get("connector").cloned().unwrap_or_default();
    let setup = SourceSetup {
        source: object.oid,
        options: SourceOptions::parse(&options, &columns)?,
        decode,
        columns,
        schema: object.columns.clone(),
        time_column: source.watermark.as_ref().map(|w| w.column),
        bounds,
        late_into: source.late_rows.as_ref().and_then(|late| {
            let schema = catalog.get(late.table)?.columns.clone();
            Some(LateInto { table: late.table, schema, columns: late.columns.clone() })
        }),
        deduplicate: source.deduplicate.as_ref().map(|deduplicate| Deduplicate {
            columns: deduplicate.columns.clone(),
            interval_us: deduplicate.interval_us,
            same_partition: deduplicate.same_partition,
        }),
    };
    Ok((setup, connector))
}

fn needs_watermark(option: &str) -> EngineError {
    EngineError::Invalid {
        message: format!("option {option} needs a watermark"),
        hint: "Declare WATERMARK FOR ts AS ts - INTERVAL '10 seconds' among the columns.".into(),
    }
}
