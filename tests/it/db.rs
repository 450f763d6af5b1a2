//! An engine in the process, spoken to in SQL without a wire: what tests of the engine itself need.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use datafusion::catalog::TableProvider;
use riverrun::catalog::{NameContext, Oid};
use riverrun::engine::{Engine, EngineError, EngineOptions, Subscription, TableChange};
use riverrun::exec::Delta;
use riverrun::planner::{self, DmlKind, Reads, Runtime};
use riverrun::sql::{self, Name, Statement};
use riverrun::storage::Blobs;

pub struct Db {
    pub engine: Engine,
    pub names: NameContext,
    runtime: Arc<Runtime>,
}

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

/// A test that waits longer for one thing says what for, and how the engine stands.
const DEADLINE: Duration = Duration::from_secs(120);

impl Db {
    pub fn start(workers: usize) -> Db {
        let engine = Engine::start(EngineOptions { workers, ..EngineOptions::default() }).expect("an engine");
        let runtime = Runtime::new(1 << 30).expect("a runtime");
        Db { engine, names: NameContext::new("dev", "tester"), runtime }
    }

    /// An engine whose state is kept in a folder.
    pub fn start_at(workers: usize, folder: &Path) -> Db {
        let data = Some(folder.to_str().expect("a path in UTF-8").to_string());
        let checkpoint_interval = Duration::from_millis(20);
        let options = EngineOptions { workers, data, checkpoint_interval, ..EngineOptions::default() };
        Db::start_as(options).unwrap_or_else(|error| panic!("no engine: {error}"))
    }

    pub fn start_as(options: EngineOptions) -> Result<Db, EngineError> {
        let engine = Engine::start(options)?;
        let runtime = Runtime::new(1 << 30).expect("a runtime");
        Ok(Db { engine, names: NameContext::new("dev", "tester"), runtime })
    }

    /// An engine whose state is kept in these blobs, tried again soon where they fail.
    pub fn start_on(workers: usize, blobs: Arc<dyn Blobs>) -> Result<Db, EngineError> {
        Db::start_on_damaged(workers, blobs, false)
    }

    pub fn start_on_damaged(workers: usize, blobs: Arc<dyn Blobs>, rebuild_damaged: bool) -> Result<Db, EngineError> {
        let checkpoint_interval = Duration::from_millis(20);
        let retry_pause = Duration::from_millis(5);
        let options =
            EngineOptions { workers, checkpoint_interval, retry_pause, rebuild_damaged, ..EngineOptions::default() };
        Db::start_with(options, blobs)
    }

    pub fn start_with(options: EngineOptions, blobs: Arc<dyn Blobs>) -> Result<Db, EngineError> {
        let engine = Engine::start_on(options, blobs)?;
        let runtime = Runtime::new(1 << 30).expect("a runtime");
        Ok(Db { engine, names: NameContext::new("dev", "tester"), runtime })
    }

    /// Runs statements that must succeed; returns the last one's rows.
    pub async fn run(&self, text: &str) -> Vec<RecordBatch> {
        match self.try_run(text).await {
            Ok(rows) => rows,
            Err(error) => panic!("{error}\n{text}"),
        }
    }

    /// The rows as lines of `a|b|c`, sorted.
    pub async fn rows(&self, text: &str) -> Vec<String> {
        lines(&self.run(text).await)
    }

    pub async fn error(&self, text: &str) -> String {
        match self.try_run(text).await {
            Ok(rows) => panic!("no error but {} batches: {text}", rows.len()),
            Err(error) => error.to_string(),
        }
    }

    pub async fn try_run(&self, text: &str) -> Fallible<Vec<RecordBatch>> {
        let mut rows = Vec::new();
        for parsed in sql::parse(text)? {
            rows = self.in_time(text, self.statement(&parsed.statement)).await?;
        }
        Ok(rows)
    }

    pub async fn subscribe(&self, name: &str, committed: bool) -> Result<Subscription, EngineError> {
        let object = self.engine.catalog().resolve(&Name(vec![name.into()]), &self.names).expect("it is there");
        self.in_time("SUBSCRIBE", self.engine.subscribe(object.oid, None, committed)).await
    }

    /// Asks until the answer is this; each question is answered by a tick.
    pub async fn until(&self, query: &str, expected: &[&str]) {
        let begun = riverrun::engine::Stopwatch::start();
        loop {
            let rows = self.rows(query).await;
            if rows == expected {
                return;
            }
            let in_time = begun.elapsed() < DEADLINE;
            assert!(in_time, "{query}\nis {rows:?}, never {expected:?}\n{:#?}", self.engine.stats().sources);
        }
    }

    pub async fn stop(&self) {
        self.in_time("the engine's stop", self.engine.stop()).await;
    }

    async fn in_time<T>(&self, what: &str, doing: impl Future<Output = T>) -> T {
        match tokio::time::timeout(DEADLINE, doing).await {
            Ok(done) => done,
            Err(_) => panic!("no end of: {what}\n{:#?}", self.engine.stats().sources),
        }
    }

    async fn statement(&self, statement: &Statement) -> Fallible<Vec<RecordBatch>> {
        match statement {
            Statement::Query(query) => {
                let reads = self.reads(statement, HashMap::new()).await?;
                let plan = planner::plan_query(query, &reads, &[]).await?;
                Ok(planner::session(&reads)?.execute_logical_plan(plan).await?.collect().await?)
            }
            Statement::Insert(_) | Statement::Update(_) | Statement::Delete(_) => {
                let reads = self.reads(statement, HashMap::new()).await?;
                let dml = planner::plan_dml(statement, &reads, &[]).await?;
                let batches = planner::session(&reads)?.execute_logical_plan(dml.plan).await?.collect().await?;
                let mut changes = Vec::new();
                for batch in batches.into_iter().filter(|b| b.num_rows() > 0) {
                    changes.push(TableChange {
                        table: dml.table,
                        delta: delta(dml.kind, batch)?,
                        on_conflict: dml.on_conflict,
                    });
                }
                self.engine.write(changes).await?;
                Ok(Vec::new())
            }
            Statement::WaitFor { name, .. } => {
                self.engine.wait_for(name, &self.names, Some(std::time::Duration::from_secs(60))).await?;
                Ok(Vec::new())
            }
            Statement::Drop(drop) => {
                self.engine.drop(drop, &self.names).await?;
                Ok(Vec::new())
            }
            other => {
                self.define(other).await?;
                Ok(Vec::new())
            }
        }
    }

    async fn define(&self, statement: &Statement) -> Fallible<Vec<String>> {
        let names = &self.names;
        let outcome = match statement {
            Statement::AlterSource { name, if_exists, change } => {
                self.engine.alter_source(name, *if_exists, change, names).await?
            }
            Statement::CancelJobs { ids } => self.engine.cancel_jobs(ids, names).await?,
            create => self.engine.create(create, names).await?,
        };
        Ok(outcome.notices)
    }

    /// What a CREATE, ALTER or CANCEL tells.
    pub async fn notices(&self, text: &str) -> Vec<String> {
        let mut notices = Vec::new();
        for parsed in sql::parse(text).expect("SQL") {
            notices.extend(self.define(&parsed.statement).await.unwrap_or_else(|error| panic!("{error}\n{text}")));
        }
        notices
    }

    /// What the statement may read; `instead` puts other rows in the place of objects.
    pub async fn reads(&self, statement: &Statement, instead: HashMap<Oid, Arc<dyn TableProvider>>) -> Fallible<Reads> {
        let catalog = self.engine.catalog();
        let objects = planner::objects_in(statement, &catalog, &self.names)?;
        let version = self.engine.read(&objects, false).await?;
        let mut tables: HashMap<_, _> = objects.iter().filter_map(|&oid| Some((oid, version.table(oid)?))).collect();
        tables.extend(instead);
        Ok(Reads {
            catalog,
            names: self.names.clone(),
            tables,
            event_times: Some(version.event_times()),
            system: self.engine.stats(),
            functions: Vec::new(),
            now_us: riverrun::engine::now_us(),
            zone: chrono_tz::Tz::UTC,
            runtime: self.runtime.clone(),
        })
    }
}

fn delta(kind: DmlKind, batch: RecordBatch) -> Fallible<Delta> {
    Ok(match kind {
        DmlKind::Insert => Delta::inserts(batch),
        DmlKind::Delete => {
            let rows = batch.num_rows();
            Delta::weighted(batch, vec![-1; rows])
        }
        DmlKind::Update => {
            let half = batch.num_columns() / 2;
            let old = batch.project(&(0..half).collect::<Vec<_>>())?;
            let new = batch.project(&(half..2 * half).collect::<Vec<_>>())?;
            let new = RecordBatch::try_new(old.schema(), new.columns().to_vec())?;
            let mut weights = vec![-1; old.num_rows()];
            weights.resize(2 * old.num_rows(), 1);
            Delta::weighted(arrow::compute::concat_batches(&old.schema(), [&old, &new])?, weights)
        }
    })
}

/// Rows as text, sorted: the form in which answers are compared.
pub fn lines(batches: &[RecordBatch]) -> Vec<String> {
    let options = arrow::util::display::FormatOptions::default().with_null("NULL");
    let mut lines = Vec::new();
    for batch in batches {
        let columns: Vec<_> = batch
            .columns()
            .iter()
            .map(|c| arrow::util::display::ArrayFormatter::try_new(c, &options).expect("a printable column"))
            .collect();
        for row in 0..batch.num_rows() {
            lines.push(columns.iter().map(|c| c.value(row).to_string()).collect::<Vec<_>>().join("|"));
        }
    }
    lines.sort();
    lines
}
