//! A client's session: SQL in, rows and tags out. It knows no bytes.
//!
//! [`Session::execute`] takes one statement to the room that knows it: queries to [`super::reading`], DML and COPY to
//! [`super::writing`], SHOW and its kin to [`super::show`], DDL to the engine. What transactions mean stands in
//! [`super::transaction`].

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use datafusion::common::ScalarValue;
use parking_lot::Mutex;

use super::compute::Compute;
use super::copy::CopyOut;
use super::copy_in::CopyIn;
use super::error::{Notice, PgError};
use super::interrupt::Interrupt;
use super::prepared::Prepared;
use super::rows::RowStream;
use super::settings::{SessionSettings, Settings};
use super::sqlstate as code;
use super::transaction::{Block, Transaction};
use crate::catalog::{DEFAULT_DATABASE, NameContext};
use crate::engine::Engine;
use crate::planner::Runtime;
use crate::sql::{self, FetchCount, Isolation, Parsed, Set, Statement};

/// What is read sooner than it is brought to another thread.
pub(super) const SHORT_TEXT_BYTES: usize = 16 << 10;

/// What all sessions of a server share.
pub struct Shared {
    pub engine: Engine,
    pub runtime: Arc<Runtime>,
    pub compute: Compute,
    /// What queries together may hold.
    pub query_memory_bytes: usize,
    /// When the server started, in microseconds since the epoch.
    pub started_us: i64,
    /// Held by an UPDATE or DELETE outside a block from its read to its write, so that none takes away a row that another has
    /// just changed.
    pub changing: tokio::sync::Mutex<()>,
}

/// Who is at the other end.
#[derive(Debug, Clone, Copy)]
pub struct Client {
    pub pid: i32,
    pub peer: Option<SocketAddr>,
    pub server: Option<SocketAddr>,
}

/// What a statement gives.
pub enum Response {
    /// A command tag.
    Done(String),
    Rows(RowStream),
    /// The client's turn: it sends rows, then [`Session::finish_copy`].
    CopyIn(Box<CopyIn>),
    CopyOut(Box<CopyOut>),
}

/// What ReadyForQuery tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Idle,
    InBlock,
    Failed,
}

pub struct Session {
    pub(super) shared: Arc<Shared>,
    pub(super) client: Client,
    pub(super) interrupt: Arc<Interrupt>,
    settings: Arc<SessionSettings>,
    /// Database and user; the search path stands in the settings.
    pub(super) names: NameContext,
    pub(super) block: Block,
    pub(super) statements: HashMap<String, Arc<Prepared>>,
    /// Cursors of DECLARE. FETCH takes turns on one.
    cursors: HashMap<String, Arc<tokio::sync::Mutex<RowStream>>>,
    notices: Vec<Notice>,
    /// What is told when the rows of a statement have come.
    pub(super) told_last: Arc<Mutex<Vec<Notice>>>,
}

impl Session {
    /// A session of `user` in `database`, by default the one of the user's name, or `dev` if there is none.
    ///
    /// # Errors
    /// 3D000 for an unknown database, and what [`Settings::new`] says of the options.
    pub fn new(
        shared: Arc<Shared>,
        client: Client,
        interrupt: Arc<Interrupt>,
        user: &str,
        database: Option<&str>,
        options: &[(String, String)],
    ) -> Result<Session, PgError> {
        let catalog = shared.engine.catalog();
        let wanted = database.unwrap_or(user);
        let database = match catalog.has_database(wanted) {
            true => wanted,
            // Clients name the user's database when they were told none.
            false if wanted == user => DEFAULT_DATABASE,
            false => {
                let message = format!("database \"{wanted}\" does not exist");
                return Err(PgError::new(code::INVALID_CATALOG_NAME, message));
            }
        };
        let settings = Settings::new(user, options.iter().map(|(name, value)| (name.as_str(), value.as_str())))?;
        let names = NameContext::new(database, user);
        Ok(Session {
            shared,
            client,
            interrupt,
            settings: Arc::new(SessionSettings(Mutex::new(settings))),
            names,
            block: Block::Idle,
            statements: HashMap::new(),
            cursors: HashMap::new(),
            notices: Vec::new(),
            told_last: Arc::default(),
        })
    }

    pub fn interrupt(&self) -> &Arc<Interrupt> {
        &self.interrupt
    }

    /// A copy of the settings as they are.
    pub fn settings(&self) -> Settings {
        self.settings.0.lock().clone()
    }

    pub(super) fn shared_settings(&self) -> Arc<SessionSettings> {
        Arc::clone(&self.settings)
    }

    pub(super) fn name_context(&self) -> NameContext {
        NameContext { search_path: self.settings().search_path(), ..self.names.clone() }
    }

    pub fn status(&self) -> Status {
        match self.block {
            Block::Idle | Block::Implicit(_) => Status::Idle,
            Block::Open(_) => Status::InBlock,
            Block::Failed(_) => Status::Failed,
        }
    }

    pub fn take_notices(&mut self) -> Vec<Notice> {
        let settings = self.settings();
        let mut notices = std::mem::take(&mut self.notices);
        notices.append(&mut self.told_last.lock());
        notices.into_iter().filter(|notice| settings.wants(notice.level)).collect()
    }

    pub(super) fn notice(&mut self, message: impl Into<String>) {
        self.notices.push(Notice::new(message));
    }

    fn warn(&mut self, code: &'static str, message: &str) {
        self.notices.push(Notice::warning(code, message));
    }

    /// The statements of a text.
    pub async fn parse(&self, text: &Arc<str>) -> Result<Vec<Parsed>, PgError> {
        if text.len() <= SHORT_TEXT_BYTES {
            return Ok(sql::parse(text)?);
        }
        let text = Arc::clone(text);
        Ok(self.work(async move { sql::parse(&text) }).await??)
    }

    /// From here on the running statement can be cancelled and has its time.
    pub fn start_statement(&self) {
        self.interrupt.start(self.settings().statement_timeout());
    }

    pub fn finish_statement(&self) {
        self.interrupt.finish();
    }

    /// An error has been told: the block fails, or what was sent together is undone.
    pub fn fail(&mut self) {
        match std::mem::take(&mut self.block) {
            Block::Implicit(transaction) => self.undo(transaction),
            Block::Open(transaction) | Block::Failed(transaction) => self.block = Block::Failed(transaction),
            Block::Idle => {}
        }
    }

    /// Commits what was sent together without BEGIN.
    pub async fn finish_batch(&mut self) -> Result<(), PgError> {
        match std::mem::take(&mut self.block) {
            Block::Implicit(transaction) => self.commit(transaction).await,
            other => {
                self.block = other;
                Ok(())
            }
        }
    }

    /// Applies a transaction's changes, and ends it.
    async fn commit(&mut self, transaction: Transaction) -> Result<(), PgError> {
        self.cursors.clear();
        let saved = transaction.saved;
        let result = self.apply(transaction.pending).await;
        match result {
            Ok(_) => self.settings.0.lock().end_transaction(),
            Err(_) => *self.settings.0.lock() = saved,
        }
        result.map(|_| ())
    }

    fn undo(&mut self, transaction: Transaction) {
        self.cursors.clear();
        *self.settings.0.lock() = transaction.saved;
    }

    /// Runs one statement. `last` says that nothing follows it in its implicit block.
    pub async fn execute(
        &mut self,
        prepared: &Prepared,
        parameters: Vec<ScalarValue>,
        last: bool,
    ) -> Result<Response, PgError> {
        let Some(parsed) = &prepared.parsed else { return Ok(Response::Done(String::new())) };
        if matches!(self.block, Block::Failed(_))
            && !matches!(parsed.statement, Statement::Commit | Statement::Rollback)
        {
            let message = "current transaction is aborted, commands ignored until end of transaction block";
            return Err(PgError::new(code::IN_FAILED_SQL_TRANSACTION, message));
        }
        if matches!(self.block, Block::Idle) {
            let saved = self.settings();
            let read_only = if saved.default_read_only() { "on" } else { "off" };
            let mut settings = self.settings.0.lock();
            settings.set("transaction_read_only", Some(read_only), true)?;
            settings.set("transaction_isolation", Some(saved.default_isolation()), true)?;
            drop(settings);
            self.block = Block::Implicit(Transaction::new(saved));
        }
        self.dispatch(prepared, parsed, parameters, last).await
    }

    async fn dispatch(
        &mut self,
        prepared: &Prepared,
        parsed: &Parsed,
        parameters: Vec<ScalarValue>,
        last: bool,
    ) -> Result<Response, PgError> {
        match &parsed.statement {
            Statement::Query(query) => self.query(query, prepared, &parameters).await.map(Response::Rows),
            Statement::Insert(_) | Statement::Update(_) | Statement::Delete(_) => {
                self.dml(prepared, parsed, &parameters, last).await
            }
            Statement::Copy(copy) => self.copy(copy, prepared).await,
            Statement::CreateSource(_)
            | Statement::CreateTable(_)
            | Statement::CreateView(_)
            | Statement::CreateMaterializedView(_)
            | Statement::CreateSchema { .. }
            | Statement::CreateDatabase { .. }
            | Statement::AlterSource { .. }
            | Statement::CancelJobs { .. }
            | Statement::Drop(_) => self.ddl(&parsed.statement, prepared).await,
            Statement::Begin { read_only, isolation } => self.begin(*read_only, *isolation),
            Statement::Commit => self.end(true).await,
            Statement::Rollback => self.end(false).await,
            Statement::Set(set) => self.set(set),
            Statement::Prepare { name, types, statement } => {
                let text = Arc::clone(&prepared.text);
                let inner = self.prepare_parsed(text, Some((**statement).clone()), types).await?;
                if self.statements.contains_key(name) {
                    let message = format!("prepared statement \"{name}\" already exists");
                    return Err(PgError::new(code::DUPLICATE_PREPARED_STATEMENT, message));
                }
                self.statements.insert(name.clone(), Arc::new(inner));
                Ok(Response::Done("PREPARE".into()))
            }
            Statement::Execute { name, arguments } => {
                let inner = self.prepared(name)?;
                let parameters = self.arguments(name, &inner, arguments).await?;
                Box::pin(self.execute(&inner, parameters, last)).await
            }
            Statement::Deallocate { name } => match name {
                Some(name) => {
                    self.prepared(name)?;
                    self.statements.remove(name);
                    Ok(Response::Done("DEALLOCATE".into()))
                }
                None => {
                    self.statements.clear();
                    Ok(Response::Done("DEALLOCATE ALL".into()))
                }
            },
            Statement::Discard => {
                self.not_in_a_block("DISCARD ALL")?;
                self.statements.clear();
                self.cursors.clear();
                self.settings.0.lock().reset_all();
                Ok(Response::Done("DISCARD ALL".into()))
            }
            Statement::Declare { cursor, query } => {
                self.check_new_cursor(cursor)?;
                let rows = self.query(query, prepared, &parameters).await?;
                self.cursors.insert(cursor.clone(), Arc::new(tokio::sync::Mutex::new(rows)));
                Ok(Response::Done("DECLARE CURSOR".into()))
            }
            Statement::DeclareSubscription { cursor, subscribe } => {
                self.check_new_cursor(cursor)?;
                let rows = self.subscribe(subscribe).await?;
                self.cursors.insert(cursor.clone(), Arc::new(tokio::sync::Mutex::new(rows)));
                Ok(Response::Done("DECLARE CURSOR".into()))
            }
            Statement::Subscribe(subscribe) => self.subscribe(subscribe).await.map(Response::Rows),
            Statement::CopySubscription { subscribe, copy } => self.copy_subscription(subscribe, copy).await,
            Statement::Fetch { cursor, count, timeout_ms } => {
                self.fetch(cursor, *count, timeout_ms.map(Duration::from_millis)).await.map(Response::Rows)
            }
            Statement::Close { cursor } => match cursor {
                Some(name) if self.cursors.remove(name).is_none() => Err(no_cursor(name)),
                Some(_) => Ok(Response::Done("CLOSE CURSOR".into())),
                None => {
                    self.cursors.clear();
                    Ok(Response::Done("CLOSE CURSOR ALL".into()))
                }
            },
            Statement::WaitFor { name, timeout_ms } => {
                let (engine, names) = (self.shared.engine.clone(), self.name_context());
                let timeout = timeout_ms.map(Duration::from_millis);
                let waited = async { engine.wait_for(name, &names, timeout).await.map_err(PgError::from) };
                self.interrupt.guard(waited).await?;
                Ok(Response::Done("WAIT FOR".into()))
            }
            Statement::Flush => {
                let engine = self.shared.engine.clone();
                self.interrupt.guard(async { engine.flush().await.map_err(PgError::from) }).await?;
                Ok(Response::Done("FLUSH".into()))
            }
            Statement::Explain { statement, analyze, verbose } => {
                self.explain(statement, *analyze, *verbose, prepared, &parameters).await.map(Response::Rows)
            }
            Statement::ExplainView { name, analyze } => self.explain_view(name, *analyze).await.map(Response::Rows),
            Statement::Reconcile(reconcile) => self.reconcile(reconcile).await.map(Response::Rows),
            Statement::ShowObjects { .. }
            | Statement::ShowCreate { .. }
            | Statement::ShowJobs
            | Statement::ShowSetting { .. }
            | Statement::Describe { .. } => self.show(&parsed.statement).map(Response::Rows),
        }
    }

    /// CREATE and DROP take effect at once and for all, so they cannot be part of what may be rolled back.
    async fn ddl(&mut self, statement: &Statement, prepared: &Prepared) -> Result<Response, PgError> {
        let what = match statement {
            Statement::Drop(_) => "DROP",
            Statement::AlterSource { .. } => "ALTER SOURCE",
            Statement::CancelJobs { .. } => "CANCEL JOB",
            _ => "CREATE",
        };
        self.not_in_a_block(what)?;
        if self.block.transaction().is_some_and(|transaction| !transaction.pending.is_empty()) {
            let message = format!("{what} cannot follow INSERT, UPDATE or DELETE in one transaction");
            return Err(PgError::new(code::ACTIVE_SQL_TRANSACTION, message).hint("Send the statements one by one."));
        }
        self.writable(what)?;
        let names = self.name_context();
        let engine = self.shared.engine.clone();
        // Not interrupted: a statement that was begun has its effect, and the client learns of it.
        let outcome = match statement {
            Statement::Drop(drop) => engine.drop(drop, &names).await,
            Statement::AlterSource { name, if_exists, change } => {
                engine.alter_source(name, *if_exists, change, &names).await
            }
            Statement::CancelJobs { ids } => engine.cancel_jobs(ids, &names).await,
            create => {
                let create = create.clone();
                self.shared.compute.place().run(async move { engine.create(&create, &names).await }).await?
            }
        };
        let outcome = outcome.map_err(|error| code::from_engine(error, &prepared.text))?;
        for notice in outcome.notices {
            self.notice(notice);
        }
        match statement {
            Statement::CreateTable(create) if create.query.is_some() => {
                self.fill(create, outcome.created, prepared).await
            }
            _ => Ok(Response::Done(outcome.tag)),
        }
    }

    /// An error inside BEGIN ... COMMIT.
    pub(super) fn not_in_a_block(&self, what: &str) -> Result<(), PgError> {
        if matches!(self.block, Block::Open(_)) {
            let message = format!("{what} cannot run inside a transaction block");
            return Err(PgError::new(code::ACTIVE_SQL_TRANSACTION, message).hint("Run it outside BEGIN ... COMMIT."));
        }
        Ok(())
    }

    /// An error in a transaction that only reads.
    pub(super) fn writable(&self, what: &str) -> Result<(), PgError> {
        if self.settings().read_only() {
            let message = format!("cannot execute {what} in a read-only transaction");
            return Err(PgError::new(code::READ_ONLY_SQL_TRANSACTION, message));
        }
        Ok(())
    }

    fn begin(&mut self, read_only: bool, isolation: Option<Isolation>) -> Result<Response, PgError> {
        if let Some(isolation) = isolation {
            self.settings.0.lock().set("transaction_isolation", Some(isolation.as_str()), true)?;
        }
        if read_only {
            self.settings.0.lock().set("transaction_read_only", Some("on"), true)?;
        }
        match std::mem::take(&mut self.block) {
            Block::Implicit(transaction) => self.block = Block::Open(transaction),
            other => {
                self.block = other;
                self.warn(code::ACTIVE_SQL_TRANSACTION, "there is already a transaction in progress");
            }
        }
        Ok(Response::Done("BEGIN".into()))
    }

    async fn end(&mut self, commit: bool) -> Result<Response, PgError> {
        let block = std::mem::take(&mut self.block);
        if matches!(block, Block::Implicit(_)) {
            self.warn(code::NO_ACTIVE_SQL_TRANSACTION, "there is no transaction in progress");
        }
        match block {
            Block::Implicit(transaction) | Block::Open(transaction) if commit => {
                self.commit(transaction).await?;
                return Ok(Response::Done("COMMIT".into()));
            }
            Block::Implicit(transaction) | Block::Open(transaction) | Block::Failed(transaction) => {
                self.undo(transaction);
            }
            Block::Idle => {}
        }
        Ok(Response::Done("ROLLBACK".into()))
    }

    fn set(&mut self, set: &Set) -> Result<Response, PgError> {
        match set {
            Set::Setting { name, value, local } => {
                // What is of the transaction ends with it, however it was set.
                let of_transaction = name.starts_with("transaction_");
                if (*local || of_transaction) && !matches!(self.block, Block::Open(_)) {
                    let what = if of_transaction { "SET TRANSACTION" } else { "SET LOCAL" };
                    let message = format!("{what} can only be used in transaction blocks");
                    self.warn(code::NO_ACTIVE_SQL_TRANSACTION, &message);
                }
                self.settings.0.lock().set(name, value.as_deref(), *local || of_transaction)?;
                let word = if value.is_none() && !local { "RESET" } else { "SET" };
                Ok(Response::Done(word.into()))
            }
            Set::ResetAll => {
                self.settings.0.lock().reset_all();
                Ok(Response::Done("RESET".into()))
            }
            Set::Several(sets) => {
                for set in sets {
                    self.set(set)?;
                }
                Ok(Response::Done("SET".into()))
            }
        }
    }

    /// The columns of a cursor's rows.
    pub(super) fn cursor_columns(&self, name: &str) -> Option<Arc<[super::pg_type::PgColumn]>> {
        self.cursors.get(name)?.try_lock().ok().map(|rows| Arc::clone(&rows.columns))
    }

    fn check_new_cursor(&self, name: &str) -> Result<(), PgError> {
        if !matches!(self.block, Block::Open(_)) {
            let message = "DECLARE CURSOR can only be used in transaction blocks";
            return Err(PgError::new(code::NO_ACTIVE_SQL_TRANSACTION, message));
        }
        if self.cursors.contains_key(name) {
            return Err(PgError::new(code::DUPLICATE_CURSOR, format!("cursor \"{name}\" already exists")));
        }
        Ok(())
    }

    /// The next rows of a cursor. Those of a subscription are the ones that are there: if there are none it waits for some, at most
    /// for `timeout`.
    async fn fetch(&mut self, name: &str, count: FetchCount, timeout: Option<Duration>) -> Result<RowStream, PgError> {
        let cursor = Arc::clone(self.cursors.get(name).ok_or_else(|| no_cursor(name))?);
        let (columns, is_live) = {
            let rows = cursor.lock().await;
            (Arc::clone(&rows.columns), rows.is_live())
        };
        let left = match count {
            FetchCount::Rows(rows) => usize::try_from(rows).unwrap_or(usize::MAX),
            FetchCount::All => usize::MAX,
        };
        if is_live {
            self.interrupt.without_limit();
            let batches = super::subscribe::fetch(cursor, left, timeout);
            return Ok(RowStream::new(columns, super::rows::RowsTag::Fetch, batches, Arc::clone(&self.interrupt)));
        }
        if timeout.is_some() {
            return Err(PgError::unsupported("FETCH WITH (timeout) from a cursor of a query is not supported")
                .hint("Leave it out; statement_timeout bounds the time of a FETCH."));
        }
        let batches = futures::stream::try_unfold((cursor, left), |(cursor, left)| async move {
            if left == 0 {
                return Ok(None);
            }
            let batch = cursor.lock().await.next(left).await?;
            Ok(batch.map(|batch| {
                let left = left - batch.num_rows();
                (batch, (cursor, left))
            }))
        });
        let batches = Box::pin(batches);
        Ok(RowStream::new(columns, super::rows::RowsTag::Fetch, batches, Arc::clone(&self.interrupt)))
    }
}

fn no_cursor(name: &str) -> PgError {
    PgError::new(code::INVALID_CURSOR_NAME, format!("cursor \"{name}\" does not exist"))
}
