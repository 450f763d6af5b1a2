//! Queries: names → one tick's rows → a plan → a stream.

use std::future::Future;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::display::DisplayableExecutionPlan;
use datafusion::physical_plan::execute_stream;
use datafusion::prelude::SessionContext;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use sqlparser::ast;

use super::error::PgError;
use super::overlay::overlay;
use super::pg_type::PgColumn;
use super::prepared::Prepared;
use super::rows::{RowStream, RowsTag, texts};
use super::session::{SHORT_TEXT_BYTES, Session};
use super::sqlstate as code;
use super::transaction::Tables;
use crate::catalog::{Catalog, ObjectKind, Oid, PgCatalog, SessionFacts, SystemScope, SystemTables, pg_functions};
use crate::engine::TableChange;
use crate::planner::{self, DmlPlan, EventTimes, PlanError, Reads};
use crate::sql::{self, Name, Statement};

/// Batches as they come, or the error that ends them.
pub(super) type Batches = BoxStream<'static, Result<RecordBatch, PgError>>;

impl Session {
    /// What a statement may see, with the rows of `tables`.
    fn reads(&self, catalog: Arc<Catalog>, tables: Tables, event_times: Option<Arc<dyn EventTimes>>) -> Reads {
        let names = self.name_context();
        let scope = SystemScope {
            catalog: Arc::clone(&catalog),
            names: names.clone(),
            session: SessionFacts {
                backend_pid: self.client.pid,
                started_us: self.shared.started_us,
                client: self.client.peer,
                server: self.client.server,
                settings: self.shared_settings(),
            },
            extra: self.shared.engine.stats(),
        };
        let now_us = self.block.transaction().map_or_else(crate::engine::now_us, |transaction| transaction.started_us);
        let functions = pg_functions(&scope);
        let system: Arc<dyn SystemTables> = Arc::new(PgCatalog::new(scope));
        Reads {
            catalog,
            names,
            tables,
            event_times,
            system,
            functions,
            now_us,
            zone: self.settings().zone(),
            runtime: Arc::clone(&self.shared.runtime),
        }
    }

    /// What a statement may see, without rows: enough to describe it.
    pub(super) fn reads_without_rows(&self) -> Reads {
        self.reads(self.catalog(), Tables::new(), None)
    }

    /// What a statement may see, with the rows of the objects it names as of one tick, and the block's own changes on top.
    pub(super) async fn reads_for(&mut self, statement: &Statement, text: &str) -> Result<Reads, PgError> {
        let catalog = self.catalog();
        let names = self.name_context();
        let objects = if text.len() <= SHORT_TEXT_BYTES {
            planner::objects_in(statement, &catalog, &names)
        } else {
            let (statement, catalog) = (statement.clone(), Arc::clone(&catalog));
            self.work(async move { planner::objects_in(&statement, &catalog, &names) }).await?
        };
        let objects = objects.map_err(|error| code::from_plan(&error, text))?;
        let (mut tables, event_times) = self.version(&objects).await?;
        let changed = self.block.transaction().map(super::transaction::Transaction::changed).unwrap_or_default();
        for oid in objects.iter().filter(|oid| changed.contains(oid)) {
            self.lay_over(&catalog, *oid, &mut tables).await?;
        }
        Ok(self.reads(catalog, tables, event_times))
    }

    /// Puts a table with the transaction's changes in the place of the table.
    async fn lay_over(&mut self, catalog: &Arc<Catalog>, oid: Oid, tables: &mut Tables) -> Result<(), PgError> {
        let (Some(object), Some(provider)) = (catalog.get(oid), tables.get(&oid).cloned()) else { return Ok(()) };
        let ObjectKind::Table(table) = &object.kind else { return Ok(()) };
        let reads = self.reads_without_rows();
        let context = planner::session(&reads).map_err(|error| code::from_datafusion(error, ""))?;
        let frame = context.read_table(provider).map_err(|error| code::from_datafusion(error, ""))?;
        let collected = async {
            let collected = self.shared.compute.place().run(frame.collect()).await?;
            collected.map_err(|error| code::from_datafusion(error, ""))
        };
        let rows = self.interrupt.guard(collected).await?;
        let pending = self.block.transaction().map(|transaction| transaction.pending.as_slice()).unwrap_or_default();
        let changes: Vec<&TableChange> = pending.iter().filter(|change| change.table == oid).collect();
        tables.insert(oid, overlay(&object, table, rows, &changes)?);
        Ok(())
    }

    /// Runs a query.
    pub(super) async fn query(
        &mut self,
        query: &ast::Query,
        prepared: &Prepared,
        parameters: &[ScalarValue],
    ) -> Result<RowStream, PgError> {
        let statement = Statement::Query(Box::new(query.clone()));
        let reads = self.reads_for(&statement, &prepared.text).await?;
        let plan = self.plan(query, &reads, &prepared.declared(), &prepared.text).await?;
        let columns = columns_of(&plan);
        let batches = self.run(plan, &reads, parameters, &prepared.text).await?;
        Ok(RowStream::new(columns, RowsTag::Select, batches, Arc::clone(&self.interrupt)))
    }

    /// Has something computed on the threads of queries, unless the statement is stopped first. What was begun is not heard of
    /// any more then, but goes on to its next pause: what it works on is bounded.
    pub(super) async fn work<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, PgError> {
        self.interrupt.guard(self.shared.compute.place().run(work)).await
    }

    async fn plan(
        &self,
        query: &ast::Query,
        reads: &Reads,
        declared: &[Option<DataType>],
        text: &str,
    ) -> Result<LogicalPlan, PgError> {
        let (query, reads, declared) = (query.clone(), reads.clone(), declared.to_vec());
        let planned = self.work(async move { planner::plan_query(&query, &reads, &declared).await }).await?;
        planned.map_err(|error| code::from_plan(&error, text))
    }

    pub(super) async fn plan_change(
        &self,
        statement: &Statement,
        reads: &Reads,
        declared: &[Option<DataType>],
        text: &str,
    ) -> Result<DmlPlan, PgError> {
        let (statement, reads, declared) = (statement.clone(), reads.clone(), declared.to_vec());
        let planned = self.work(async move { planner::plan_dml(&statement, &reads, &declared).await }).await?;
        planned.map_err(|error| code::from_plan(&error, text))
    }

    /// Optimises a plan with its parameters in place, and starts it.
    pub(super) async fn run(
        &self,
        plan: LogicalPlan,
        reads: &Reads,
        parameters: &[ScalarValue],
        text: &str,
    ) -> Result<Batches, PgError> {
        let text: Arc<str> = text.into();
        let failed = |error| code::from_datafusion(error, &text);
        let plan = match parameters {
            [] => plan,
            parameters => plan.with_param_values(parameters.to_vec()).map_err(failed)?,
        };
        let context = planner::session(reads).map_err(failed)?;
        let state = context.state();
        let place = self.shared.compute.place();
        let started = self.work(async move {
            let physical = state.create_physical_plan(&plan).await?;
            execute_stream(physical, context.task_ctx())
        });
        let stream = started.await?.map_err(failed)?;
        Ok(stream::try_unfold(stream, move |mut stream| {
            let (text, place) = (Arc::clone(&text), place.clone());
            async move {
                let (batch, stream) = place.run(async move { (stream.next().await, stream) }).await?;
                let batch = batch.transpose().map_err(|error| code::from_datafusion(error, &text))?;
                Ok(batch.map(|batch| (batch, stream)))
            }
        })
        .boxed())
    }

    /// All rows of a plan.
    pub(super) async fn collect(
        &self,
        plan: LogicalPlan,
        reads: &Reads,
        parameters: &[ScalarValue],
        text: &str,
    ) -> Result<Vec<RecordBatch>, PgError> {
        let mut batches = self.run(plan, reads, parameters, text).await?;
        let mut collected = Vec::new();
        while let Some(batch) = self.interrupt.guard(async { batches.next().await.transpose() }).await? {
            collected.push(batch);
        }
        Ok(collected)
    }

    /// The values of expressions that stand for themselves.
    pub(super) async fn evaluate(&mut self, expressions: &[String]) -> Result<Vec<ScalarValue>, PgError> {
        let text = format!("SELECT {}", expressions.join(", "));
        let parsed = sql::parse(&text)?.into_iter().next();
        let Some(statement @ Statement::Query(_)) = parsed.map(|parsed| parsed.statement) else {
            return Err(PgError::new(code::SYNTAX_ERROR, "an expression was expected"));
        };
        let Statement::Query(query) = &statement else { return Ok(Vec::new()) };
        let reads = self.reads_for(&statement, &text).await?;
        let plan = self.plan(query, &reads, &[], &text).await?;
        let batches = self.collect(plan, &reads, &[], &text).await?;
        let Some(row) = batches.iter().find(|batch| batch.num_rows() > 0) else { return Ok(Vec::new()) };
        let values = row.columns().iter().map(|column| ScalarValue::try_from_array(column, 0));
        values.collect::<Result<_, _>>().map_err(|error| code::from_datafusion(error, &text))
    }

    /// The parameter types and columns of a query, DML or EXPLAIN; `None` for other statements.
    pub(super) async fn plan_to_describe(
        &mut self,
        statement: &Statement,
        declared: &[Option<DataType>],
        text: &str,
    ) -> Result<Option<(Vec<DataType>, Option<Arc<[PgColumn]>>)>, PgError> {
        let failed = |error: PlanError| code::from_plan(&error, text);
        let reads = self.reads_without_rows();
        let planned = matches!(
            statement,
            Statement::Query(_) | Statement::Insert(_) | Statement::Update(_) | Statement::Delete(_)
        );
        if planned {
            // Names that mean nothing are told by what knows their places.
            planner::objects_in(statement, &reads.catalog, &reads.names).map_err(failed)?;
        }
        let (plan, gives_rows) = match statement {
            Statement::Query(query) | Statement::Declare { query, .. } => {
                let plan = self.plan(query, &reads, declared, text).await?;
                (plan, matches!(statement, Statement::Query(_)))
            }
            Statement::Insert(_) | Statement::Update(_) | Statement::Delete(_) => {
                (self.plan_change(statement, &reads, declared, text).await?.plan, false)
            }
            Statement::Explain { statement, .. } => {
                let inner = Box::pin(self.plan_to_describe(statement, declared, text)).await?;
                let types = inner.map(|(types, _)| types).unwrap_or_default();
                return Ok(Some((
                    types,
                    super::show::columns(&Statement::Explain {
                        statement: statement.clone(),
                        analyze: false,
                        verbose: false,
                    })?
                    .map(Into::into),
                )));
            }
            _ => return Ok(None),
        };
        let types = planner::parameter_types(&plan, declared.len()).map_err(failed)?;
        Ok(Some((types, gives_rows.then(|| columns_of(&plan).into()))))
    }

    /// EXPLAIN, one line a row: of a query or DML the optimised plan, of CREATE MATERIALIZED VIEW the dataflow it would make.
    pub(super) async fn explain(
        &mut self,
        statement: &Statement,
        analyze: bool,
        verbose: bool,
        prepared: &Prepared,
        parameters: &[ScalarValue],
    ) -> Result<RowStream, PgError> {
        let text = &prepared.text;
        let plan_failed = |error: PlanError| code::from_plan(&error, text);
        if let Statement::CreateMaterializedView(_) = statement {
            let (statement, catalog, names) = (statement.clone(), self.catalog(), self.name_context());
            let defined = self.work(async move { planner::define(&statement, &catalog, &names) }).await?;
            let definition = defined.map_err(plan_failed)?;
            let engine = self.shared.engine.clone();
            let asked = async {
                match definition.plan {
                    Some(plan) => engine.explain_plan(plan).await.map_err(PgError::from),
                    None => Ok(Vec::new()),
                }
            };
            let lines = self.interrupt.guard(asked).await?;
            return Ok(self.plan_lines(lines));
        }
        if analyze && !matches!(statement, Statement::Query(_)) {
            return Err(PgError::unsupported("EXPLAIN ANALYZE of a statement that changes rows is not supported")
                .hint("Use EXPLAIN, or EXPLAIN ANALYZE of the SELECT in it."));
        }
        let failed = |error| code::from_datafusion(error, text);
        let reads = self.reads_for(statement, text).await?;
        let plan = match statement {
            Statement::Query(query) => self.plan(query, &reads, &prepared.declared(), text).await?,
            Statement::Insert(_) | Statement::Update(_) | Statement::Delete(_) => {
                self.plan_change(statement, &reads, &prepared.declared(), text).await?.plan
            }
            _ => {
                return Err(PgError::unsupported("EXPLAIN of this statement is not supported")
                    .hint("EXPLAIN takes SELECT, INSERT, UPDATE, DELETE and CREATE MATERIALIZED VIEW."));
            }
        };
        let plan = match parameters {
            [] => plan,
            parameters => plan.with_param_values(parameters.to_vec()).map_err(failed)?,
        };
        let context = planner::session(&reads).map_err(failed)?;
        let place = self.shared.compute.place();
        let explained = async {
            let lines = place.run(async move { plan_text(&plan, &context, analyze, verbose).await });
            lines.await?.map_err(failed)
        };
        let lines = self.interrupt.guard(explained).await?;
        Ok(self.plan_lines(lines))
    }

    /// The dataflow of a materialized view and the stores it reads, and with ANALYZE what it holds and has done.
    pub(super) async fn explain_view(&mut self, name: &Name, analyze: bool) -> Result<RowStream, PgError> {
        let catalog = self.catalog();
        let object = catalog.resolve(name, &self.name_context())?;
        if !matches!(object.kind, ObjectKind::MaterializedView(_)) {
            let message = format!("\"{}\" is not a materialized view", object.name);
            return Err(PgError::new(code::WRONG_OBJECT_TYPE, message));
        }
        let engine = self.shared.engine.clone();
        let asked = async { engine.explain_view(object.oid, analyze).await.map_err(PgError::from) };
        let lines = self.interrupt.guard(asked).await?;
        Ok(self.plan_lines(lines))
    }

    /// Lines under the heading of EXPLAIN.
    pub(super) fn plan_lines(&self, lines: impl IntoIterator<Item = String>) -> RowStream {
        let rows: Vec<[Option<String>; 1]> = lines.into_iter().map(|line| [Some(line)]).collect();
        RowStream::of(texts(["QUERY PLAN"], &rows), RowsTag::Bare("EXPLAIN"), Arc::clone(&self.interrupt))
    }
}

/// What EXPLAIN says of a plan, by lines: optimised; with either flag also as it runs, with ANALYZE after it has run.
async fn plan_text(
    plan: &LogicalPlan,
    context: &SessionContext,
    analyze: bool,
    verbose: bool,
) -> datafusion::error::Result<Vec<String>> {
    let state = context.state();
    let optimised = state.optimize(plan)?;
    let mut lines: Vec<String> = optimised.display_indent().to_string().lines().map(str::to_string).collect();
    if analyze || verbose {
        let physical = state.query_planner().create_physical_plan(&optimised, &state).await?;
        if analyze {
            let mut rows = execute_stream(Arc::clone(&physical), context.task_ctx())?;
            while let Some(batch) = rows.next().await {
                batch?;
            }
        }
        let shown = if analyze {
            DisplayableExecutionPlan::with_metrics(physical.as_ref()).indent(verbose).to_string()
        } else {
            DisplayableExecutionPlan::new(physical.as_ref()).indent(verbose).to_string()
        };
        lines.push(String::new());
        lines.extend(shown.lines().map(str::to_string));
    }
    Ok(lines)
}

/// The columns of a plan as the client sees them.
fn columns_of(plan: &LogicalPlan) -> Vec<PgColumn> {
    let names = planner::result_names(plan);
    let fields = plan.schema().fields().iter();
    fields.zip(names).map(|(field, name)| PgColumn { name, ..PgColumn::of(field) }).collect()
}
