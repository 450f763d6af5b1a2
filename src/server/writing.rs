//! INSERT, UPDATE, DELETE and COPY FROM: a plan's rows → a change → the engine.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use datafusion::catalog::TableProvider;
use datafusion::common::ScalarValue;
use datafusion::datasource::MemTable;

use super::copy_in::CopyIn;
use super::error::PgError;
use super::prepared::Prepared;
use super::session::{Response, Session};
use super::sqlstate as code;
use super::transaction::Block;
use crate::catalog::{Oid, PG_CATALOG, SystemTables};
use crate::engine::TableChange;
use crate::exec::Delta;
use crate::planner::{DmlKind, DmlPlan, Reads};
use crate::sql::{self, CreateTable, Drop, Name, ObjectType, Parsed, Statement};

/// The table under which COPY's rows are planned. No client can have made one of that name.
const COPIED: &str = "copied rows";

impl Session {
    pub(super) async fn dml(
        &mut self,
        prepared: &Prepared,
        parsed: &Parsed,
        parameters: &[ScalarValue],
        last: bool,
    ) -> Result<Response, PgError> {
        let (word, tag) = match &parsed.statement {
            Statement::Insert(_) => ("INSERT", "INSERT 0"),
            Statement::Update(_) => ("UPDATE", "UPDATE"),
            _ => ("DELETE", "DELETE"),
        };
        self.writable(word)?;
        let shared = Arc::clone(&self.shared);
        let changes_rows = !matches!(parsed.statement, Statement::Insert(_));
        let _one_at_a_time = match &self.block {
            Block::Implicit(_) if changes_rows => {
                Some(self.interrupt.guard(async { Ok(shared.changing.lock().await) }).await?)
            }
            _ => None,
        };
        let reads = self.reads_for(&parsed.statement, &prepared.text).await?;
        let dml = self.plan_change(&parsed.statement, &reads, &prepared.declared(), &prepared.text).await?;
        let rows = self.change(dml, &reads, parameters, &prepared.text, last).await?;
        Ok(Response::Done(format!("{tag} {rows}")))
    }

    /// Computes a change, and applies it or keeps it for COMMIT. Gives the number of rows.
    async fn change(
        &mut self,
        dml: DmlPlan,
        reads: &Reads,
        parameters: &[ScalarValue],
        text: &str,
        last: bool,
    ) -> Result<u64, PgError> {
        let batches = self.collect(dml.plan.clone(), reads, parameters, text).await?;
        let columns = reads.catalog.get(dml.table).map(|object| Arc::clone(&object.columns));
        let Some(columns) = columns else {
            return Err(table_is_gone());
        };
        let (delta, rows) = delta_of(dml.kind, &columns, &batches).map_err(code::from_arrow)?;
        let change = TableChange { table: dml.table, delta, on_conflict: dml.on_conflict };
        let Some(transaction) = self.block.transaction_mut() else {
            return Err(PgError::new(code::INTERNAL_ERROR, "a change outside any transaction"));
        };
        transaction.push(change)?;
        match &mut self.block {
            Block::Implicit(transaction) if last => {
                let pending = std::mem::take(&mut transaction.pending);
                let affected = self.apply(pending).await?;
                // Only the engine knows which rows of an INSERT met a conflict.
                Ok(affected.last().copied().filter(|_| dml.kind == DmlKind::Insert).unwrap_or(rows))
            }
            _ => Ok(rows),
        }
    }

    /// Applies changes in one tick. Gives the rows affected by each.
    ///
    /// Never interrupted: once the engine has them they will be applied, and the client must learn of it.
    pub(super) async fn apply(&mut self, changes: Vec<TableChange>) -> Result<Vec<u64>, PgError> {
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        let outcome = self.shared.engine.write(changes).await?;
        if outcome.late > 0 {
            let late = outcome.late;
            let rows = if late == 1 { "row was" } else { "rows were" };
            self.notice(format!("{late} {rows} too late for the watermark and went to riverrun.late_rows"));
        }
        Ok(outcome.affected)
    }

    /// Inserts what COPY brought.
    pub async fn finish_copy(&mut self, copy: CopyIn, last: bool) -> Result<String, PgError> {
        self.writable("COPY FROM")?;
        let target = copy.target().to_string();
        let columns: Vec<String> = copy.column_names().map(|name| sql::quote(name).into_owned()).collect();
        let text = format!("INSERT INTO {target} ({}) SELECT * FROM {PG_CATALOG}.\"{COPIED}\"", columns.join(", "));
        let (schema, batches) = copy.finish()?;
        let statement = statement(&text)?;
        let table = MemTable::try_new(Arc::clone(&schema), vec![batches])
            .map_err(|error| code::from_datafusion(error, &text))?;
        let mut reads = self.reads_for(&statement, &text).await?;
        reads.system = Arc::new(WithCopied { others: reads.system, rows: Arc::new(table), schema });
        let dml = self.plan_change(&statement, &reads, &[], &text).await?;
        let rows = self.change(dml, &reads, &[], &text, last).await?;
        Ok(format!("COPY {rows}"))
    }

    /// CREATE TABLE AS: puts the query's rows into the table that was made, or takes it away again. A table that was there
    /// before stays as it is.
    pub(super) async fn fill(
        &mut self,
        create: &CreateTable,
        created: Option<Oid>,
        prepared: &Prepared,
    ) -> Result<Response, PgError> {
        let (Some(oid), Some(query)) = (created, &create.query) else {
            return Ok(Response::Done("CREATE TABLE AS".into()));
        };
        let Some(object) = self.shared.engine.catalog().get(oid) else { return Err(table_is_gone()) };
        let name = Name(vec![object.schema.clone(), object.name.clone()]);
        let text = format!("INSERT INTO {name} {query}");
        let filled = async {
            let statement = statement(&text)?;
            let reads = self.reads_for(&statement, &prepared.text).await?;
            let dml = self.plan_change(&statement, &reads, &[], &prepared.text).await?;
            // Another connection may have put another table in its place.
            if dml.table != oid {
                return Err(table_is_gone());
            }
            self.change(dml, &reads, &[], &prepared.text, true).await
        };
        match filled.await {
            Ok(rows) => Ok(Response::Done(format!("SELECT {rows}"))),
            Err(error) => {
                if self.shared.engine.catalog().get(oid).is_some() {
                    let drop = Drop { kind: ObjectType::Table, names: vec![name], if_exists: true, cascade: false };
                    self.shared.engine.drop(&drop, &self.name_context()).await?;
                }
                Err(error)
            }
        }
    }
}

fn table_is_gone() -> PgError {
    PgError::new(code::UNDEFINED_TABLE, "the table has been dropped")
}

fn statement(text: &str) -> Result<Statement, PgError> {
    let parsed = sql::parse(text)?.into_iter().next();
    parsed.map(|parsed| parsed.statement).ok_or_else(|| PgError::new(code::SYNTAX_ERROR, "a statement was expected"))
}

/// The system's tables and, hidden, the rows of a COPY.
struct WithCopied {
    others: Arc<dyn SystemTables>,
    rows: Arc<dyn TableProvider>,
    schema: SchemaRef,
}

impl SystemTables for WithCopied {
    fn table(&self, schema: &str, name: &str) -> Option<Arc<dyn TableProvider>> {
        if schema == PG_CATALOG && name == COPIED {
            return Some(Arc::clone(&self.rows));
        }
        self.others.table(schema, name)
    }

    fn names(&self) -> Vec<(String, String, SchemaRef)> {
        let copied = (PG_CATALOG.to_string(), COPIED.to_string(), Arc::clone(&self.schema));
        self.others.names().into_iter().chain([copied]).collect()
    }
}

/// A plan's rows as what they add and take away, and the number of rows that the client is told.
fn delta_of(kind: DmlKind, columns: &SchemaRef, batches: &[RecordBatch]) -> Result<(Delta, u64), ArrowError> {
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    let width = columns.fields().len();
    // Nullability and metadata of a plan's columns are its own; the rows are the table's.
    let part = |range: std::ops::Range<usize>| {
        let parts = batches
            .iter()
            .map(|batch| RecordBatch::try_new(Arc::clone(columns), batch.columns()[range.clone()].to_vec()));
        concat_batches(columns, &parts.collect::<Result<Vec<_>, _>>()?)
    };
    let delta = match kind {
        DmlKind::Insert => Delta::inserts(part(0..width)?),
        DmlKind::Delete => Delta::weighted(part(0..width)?, vec![-1; rows]),
        DmlKind::Update => {
            let both = concat_batches(columns, &[part(0..width)?, part(width..2 * width)?])?;
            Delta::weighted(both, [vec![-1; rows], vec![1; rows]].concat())
        }
    };
    Ok((delta, rows as u64))
}
