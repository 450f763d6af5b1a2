//! RECONCILE: a materialized view's rows against what its query gives over the log, both as of one tick.
//!
//! Columns: those that name a row, `difference` (`differs`, `missing`: recomputed and not there, `extra`: there and not recomputed,
//! `repeated`), then of each other column `c` what is live and what was recomputed as `c_live` and `c_recomputed`. Where no columns name
//! a row: all columns, `difference`, and how often the row is there (`rows_live`) and should be (`rows_recomputed`). Only rows that
//! differ come.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float32Array, Float64Array, RecordBatch, StringArray};
use arrow::compute::kernels::cmp::not_distinct;
use arrow::compute::{cast, filter_record_batch, max, min};
use arrow::datatypes::{
    DataType, Field, Float32Type, Float64Type, Int64Type, Schema, SchemaRef, TimestampMicrosecondType,
};
use datafusion::common::ScalarValue;
use futures::{StreamExt, stream};
use sqlparser::ast;

use super::error::{Notice, PgError};
use super::pg_type::PgColumn;
use super::reading::Batches;
use super::rows::{RowStream, RowsTag};
use super::session::Session;
use super::sqlstate as code;
use crate::catalog::{Object, ObjectKind};
use crate::engine::{Comparable, Damage, Reconciliation, tick_number};
use crate::planner::{self, Reads, Recomputed, Within, timestamp_text};
use crate::sql::{Name, Reconcile};

/// Floats that aggregates have added up are equal to so many of the larger: the engine rounds an exact sum once, a batch engine
/// rounds each step.
const FLOAT_ERROR: f64 = 1e-9;
const REAL_ERROR: f32 = 1e-5;

/// How differing rows are laid out.
#[derive(Clone)]
struct Shape {
    schema: SchemaRef,
    /// Columns that rows are put together by.
    grouped: usize,
    keyed: bool,
}

/// What a comparison has come to.
#[derive(Debug, Default)]
struct Totals {
    rows: AtomicU64,
    differ: AtomicU64,
}

impl Shape {
    fn new(view: &Object, recomputed: &Recomputed) -> Shape {
        let columns = view.columns.fields();
        let field = |i: usize, name: String| columns[i].as_ref().clone().with_name(name).with_nullable(true);
        let grouped = recomputed.grouped();
        let keyed = recomputed.keys.is_some();
        let mut fields: Vec<Field> = grouped.iter().map(|&i| field(i, columns[i].name().clone())).collect();
        fields.push(Field::new("difference", DataType::Utf8, true));
        if !keyed {
            fields.extend(["rows_live", "rows_recomputed"].map(|name| Field::new(name, DataType::Int64, true)));
        }
        let values = recomputed.values();
        for &i in &values {
            let name = columns[i].name();
            fields.extend([field(i, format!("{name}_live")), field(i, format!("{name}_recomputed"))]);
        }
        Shape { schema: Arc::new(Schema::new(fields)), grouped: grouped.len(), keyed }
    }

    /// The rows of a comparison's batch that differ.
    fn differing(&self, batch: &RecordBatch, totals: &Totals) -> Result<RecordBatch, PgError> {
        let counts = |at: usize| batch.column(self.grouped + at).as_primitive::<Int64Type>();
        let (live, recomputed) = (counts(0), counts(1));
        let mut equal: Vec<bool> = (0..batch.num_rows()).map(|row| live.value(row) == recomputed.value(row)).collect();
        if self.keyed {
            equal.iter_mut().enumerate().for_each(|(row, equal)| *equal &= live.value(row) == 1);
        }
        for pair in batch.columns()[self.grouped + 2..].chunks(2) {
            let same = same(&pair[0], &pair[1])?;
            equal.iter_mut().zip(same).for_each(|(equal, same)| *equal &= same);
        }
        let there = (0..batch.num_rows()).filter(|&row| live.value(row) + recomputed.value(row) > 0).count();
        totals.rows.fetch_add(there as u64, Ordering::Relaxed);
        let differs = BooleanArray::from(equal.iter().map(|equal| !equal).collect::<Vec<_>>());
        let batch = filter_record_batch(batch, &differs).map_err(code::from_arrow)?;
        totals.differ.fetch_add(batch.num_rows() as u64, Ordering::Relaxed);
        self.rows(&batch)
    }

    fn rows(&self, batch: &RecordBatch) -> Result<RecordBatch, PgError> {
        let (grouped, rest) = batch.columns().split_at(self.grouped);
        let counts = |at: usize| rest[at].as_primitive::<Int64Type>();
        let word = |row: usize| match (counts(0).value(row), counts(1).value(row)) {
            (_, 0) => "extra",
            (0, _) => "missing",
            (1, 1) => "differs",
            (live, recomputed) if !self.keyed && live < recomputed => "missing",
            (live, recomputed) if !self.keyed && live > recomputed => "extra",
            _ => "repeated",
        };
        let words: StringArray = (0..batch.num_rows()).map(|row| Some(word(row))).collect();
        let mut columns: Vec<ArrayRef> = grouped.to_vec();
        columns.push(Arc::new(words));
        columns.extend_from_slice(&rest[if self.keyed { 2 } else { 0 }..]);
        let typed = columns.iter().zip(self.schema.fields()).map(|(column, field)| cast(column, field.data_type()));
        let columns = typed.collect::<Result<_, _>>().map_err(code::from_arrow)?;
        RecordBatch::try_new(Arc::clone(&self.schema), columns).map_err(code::from_arrow)
    }
}

/// Equal in each row, floats but for what their sums are rounded.
fn same(live: &ArrayRef, recomputed: &ArrayRef) -> Result<Vec<bool>, PgError> {
    let exact = not_distinct(live, recomputed).map_err(code::from_arrow)?;
    let mut same: Vec<bool> = exact.values().iter().collect();
    match live.data_type() {
        DataType::Float64 => {
            let (a, b): (&Float64Array, &Float64Array) =
                (live.as_primitive::<Float64Type>(), recomputed.as_primitive::<Float64Type>());
            for (row, same) in same.iter_mut().enumerate().filter(|(row, _)| a.is_valid(*row) && b.is_valid(*row)) {
                let (a, b) = (a.value(row), b.value(row));
                *same |= (a - b).abs() <= FLOAT_ERROR * a.abs().max(b.abs()) && a.is_finite() && b.is_finite();
            }
        }
        DataType::Float32 => {
            let (a, b): (&Float32Array, &Float32Array) =
                (live.as_primitive::<Float32Type>(), recomputed.as_primitive::<Float32Type>());
            for (row, same) in same.iter_mut().enumerate().filter(|(row, _)| a.is_valid(*row) && b.is_valid(*row)) {
                let (a, b) = (a.value(row), b.value(row));
                *same |= (a - b).abs() <= REAL_ERROR * a.abs().max(b.abs()) && a.is_finite() && b.is_finite();
            }
        }
        _ => {}
    }
    Ok(same)
}

impl Session {
    fn materialized_view(&self, name: &Name) -> Result<Arc<Object>, PgError> {
        let object = self.catalog().resolve(name, &self.name_context())?;
        match object.kind {
            ObjectKind::MaterializedView(_) => Ok(object),
            _ => {
                let message = format!("\"{}\" is not a materialized view", object.name);
                Err(PgError::new(code::WRONG_OBJECT_TYPE, message).hint("SHOW MATERIALIZED VIEWS lists them."))
            }
        }
    }

    /// What definitions see. Without `comparable` enough to know the columns.
    fn reads_of_definitions(&self, view: &Object, comparable: Option<&Comparable>) -> Reads {
        let reads = self.reads_without_rows();
        Reads {
            names: planner::definition_names(&view.database),
            zone: chrono_tz::Tz::UTC,
            now_us: comparable.map_or(reads.now_us, |comparable| comparable.now_us),
            tables: comparable.map(|comparable| comparable.tables.clone()).unwrap_or_default(),
            event_times: comparable.map(|comparable| Arc::clone(&comparable.event_times)),
            ..reads
        }
    }

    pub(super) async fn reconcile_columns(&self, reconcile: &Reconcile) -> Result<Arc<[PgColumn]>, PgError> {
        let view = self.materialized_view(&reconcile.name)?;
        let reads = self.reads_of_definitions(&view, None);
        let of_view = Arc::clone(&view);
        let recomputed = self.work(async move { planner::recompute(&of_view, &reads, None) }).await?;
        let recomputed = recomputed.map_err(|error| code::from_plan(&error, ""))?;
        Ok(PgColumn::all(&Shape::new(&view, &recomputed).schema).into())
    }

    /// The moment that FROM or TO names; `zoned`: of a TIMESTAMPTZ.
    async fn moment(&mut self, expr: &ast::Expr, zoned: bool) -> Result<i64, PgError> {
        if matches!(expr, ast::Expr::Value(value) if matches!(value.value, ast::Value::Number(..))) {
            let message = format!("RECONCILE: {expr} is not a moment");
            return Err(PgError::new(code::DATATYPE_MISMATCH, message).hint("Write it as '2026-01-31 12:00:00'."));
        }
        let data_type = if zoned { "timestamptz" } else { "timestamp" };
        let value = self.evaluate(&[format!("CAST({expr} AS {data_type})")]).await?.pop();
        match value {
            Some(ScalarValue::TimestampMicrosecond(Some(us), _)) => Ok(us),
            _ => Err(PgError::new(code::INVALID_PARAMETER_VALUE, "RECONCILE: a bound of the windows is NULL")),
        }
    }

    pub(super) async fn reconcile(&mut self, reconcile: &Reconcile) -> Result<RowStream, PgError> {
        self.not_in_a_block("RECONCILE")?;
        if reconcile.repair {
            self.writable("RECONCILE ... REPAIR")?;
        }
        let view = self.materialized_view(&reconcile.name)?;
        let zoned = view.columns.fields().iter().any(|f| matches!(f.data_type(), DataType::Timestamp(_, Some(_))));
        let mut asked = Within::default();
        if let Some(from) = &reconcile.from {
            asked.from_us = Some(self.moment(from, zoned).await?);
        }
        if let Some(to) = &reconcile.to {
            asked.to_us = Some(self.moment(to, zoned).await?);
        }
        if let (Some(from), Some(to)) = (asked.from_us, asked.to_us)
            && from >= to
        {
            let message =
                format!("RECONCILE: no window lies between {} and {}", timestamp_text(from), timestamp_text(to));
            return Err(PgError::new(code::INVALID_PARAMETER_VALUE, message).hint("FROM is the earlier moment."));
        }
        let engine = self.shared.engine.clone();
        let comparable = async { engine.comparable(&view).await.map_err(PgError::from) };
        let comparable = self.interrupt.guard(comparable).await?;
        if reconcile.repair {
            comparable.running.check_repairs()?;
        }
        let mut compared = self.compare(&view, &comparable, asked).await?;
        let columns = PgColumn::all(&compared.shape.schema);
        let rows = if reconcile.repair {
            let found = self.repair(&view, &mut compared, reconcile.corrections).await?;
            stream::iter(found.into_iter().map(Ok)).boxed()
        } else {
            compared.rows()
        };
        Ok(RowStream::new(columns, RowsTag::Reconcile, rows, Arc::clone(&self.interrupt)))
    }

    /// Makes the slices anew in which rows differ. The rows as they were found.
    async fn repair(
        &mut self,
        view: &Arc<Object>,
        compared: &mut Compared,
        corrections: bool,
    ) -> Result<Vec<RecordBatch>, PgError> {
        let most_bytes = self.shared.query_memory_bytes;
        let (mut found, mut bytes) = (Vec::new(), 0);
        let interrupt = Arc::clone(&self.interrupt);
        while let Some(batch) = interrupt.guard(compared.next()).await? {
            bytes += batch.get_array_memory_size();
            if bytes > most_bytes {
                let message = format!("the rows that differ take more than {} MiB", most_bytes >> 20);
                return Err(PgError::new(code::OUT_OF_MEMORY, message).hint("Repair them in parts: give FROM and TO."));
            }
            if batch.num_rows() > 0 {
                found.push(batch);
            }
        }
        if found.is_empty() {
            return Ok(found);
        }
        compared.running.check_repairs()?;
        let damage = Damage {
            starts_us: span(&found, compared.windows.0),
            ends_us: span(&found, compared.windows.1),
            rows: found.iter().map(|batch| batch.num_rows() as u64).sum(),
        };
        let engine = self.shared.engine.clone();
        let running = Arc::clone(&compared.running);
        let repaired = async {
            tokio::select! {
                biased;
                () = running.cancelled() => Err(job_cancelled()),
                repaired = engine.repair(view, damage, corrections, most_bytes, &running) => Ok(repaired?),
            }
        };
        let repaired = interrupt.guard(repaired).await.inspect_err(|_| running.cancel())?;
        self.told_last.lock().push(Notice::new(format!(
            "repaired in tick {}: {}",
            tick_number(repaired.tick),
            repaired.views.join(", ")
        )));
        Ok(found)
    }

    /// Plans and starts a comparison.
    async fn compare(
        &mut self,
        view: &Arc<Object>,
        comparable: &Comparable,
        asked: Within,
    ) -> Result<Compared, PgError> {
        let failed = |error| code::from_plan(&error, "");
        let reads = self.reads_of_definitions(view, Some(comparable));
        let (of_view, of_reads, finals_us) = (Arc::clone(view), reads.clone(), comparable.finals_us.clone());
        let planned = self.work(async move { planner::recompute(&of_view, &of_reads, Some(&finals_us)) });
        let recomputed = planned.await?.map_err(failed)?;
        let mut within = Within { after_us: comparable.shown.after_us, ..asked };
        let mut notices = Vec::new();
        let whole_us = comparable.shown.from_us.and_then(|us| recomputed.whole_from_us(us));
        if comparable.shown.is_cut && whole_us.is_none() {
            let message =
                format!("\"{}\" cannot be recomputed: a log beneath it no longer has its first records", view.name);
            return Err(PgError::new(code::OBJECT_NOT_IN_PREREQUISITE_STATE, message)
                .hint("Views that group by windows can be compared from where on the log is whole."));
        }
        if let Some(us) = whole_us.or(comparable.shown.from_us) {
            if within.from_us.is_none_or(|from| from < us) {
                notices.push(format!(
                    "windows that begin before {} are not compared: they are not whole, or not in the log any more",
                    timestamp_text(us)
                ));
            }
            within.from_us = within.from_us.max(Some(us));
        }
        for &column in &recomputed.left_out {
            notices.push(format!(
                "column \"{}\" is not compared: it is an estimate, and the batch engine estimates otherwise",
                view.columns.field(column).name()
            ));
        }
        notices.into_iter().for_each(|notice| self.notice(notice));
        let shape = Shape::new(view, &recomputed);
        let windows = recomputed.window_columns();
        let grouped = recomputed.grouped();
        let place = |column: Option<usize>| grouped.iter().position(|&at| Some(at) == column);
        let windows = (place(windows.0), place(windows.1));
        let live = comparable.tables.get(&view.oid).cloned().ok_or_else(|| {
            PgError::new(code::UNDEFINED_TABLE, format!("materialized view \"{}\" has been dropped", view.name))
        })?;
        let of_reads = reads.clone();
        let most_bytes = self.shared.query_memory_bytes;
        let plan = self.work(async move { recomputed.comparison(live, &within, &of_reads) }).await?.map_err(failed)?;
        let batches = self.run(plan, &reads, &[], "").await.map_err(|error| of_comparison(error, most_bytes))?;
        Ok(Compared {
            shape,
            windows,
            totals: Arc::default(),
            batches,
            most_bytes,
            reads_logs: comparable.reads_logs,
            running: Arc::clone(&comparable.running),
            tick: tick_number(comparable.tick),
            told: Arc::clone(&self.told_last),
        })
    }
}

/// A comparison that has begun.
struct Compared {
    shape: Shape,
    /// The places of the bounds of windows among the columns.
    windows: (Option<usize>, Option<usize>),
    totals: Arc<Totals>,
    batches: Batches,
    /// What all queries together may hold.
    most_bytes: usize,
    /// There are records that it is recomputed from.
    reads_logs: bool,
    running: Arc<Reconciliation>,
    tick: i128,
    told: Arc<parking_lot::Mutex<Vec<Notice>>>,
}

impl Compared {
    /// The rows that differ; at their end it is told how many there are.
    fn rows(self) -> Batches {
        stream::try_unfold(
            self,
            |mut compared| async move { Ok(compared.next().await?.map(|batch| (batch, compared))) },
        )
        .boxed()
    }

    async fn next(&mut self) -> Result<Option<RecordBatch>, PgError> {
        let batch = tokio::select! {
            biased;
            () = self.running.cancelled() => {
                return Err(job_cancelled());
            }
            batch = self.batches.next() => batch,
        };
        match batch {
            Some(batch) => {
                let batch = batch.map_err(|error| of_comparison(error, self.most_bytes))?;
                self.shape.differing(&batch, &self.totals).map(Some)
            }
            None => {
                let (rows, differ) =
                    (self.totals.rows.load(Ordering::Relaxed), self.totals.differ.load(Ordering::Relaxed));
                let mut told = self.told.lock();
                let thinned = self.running.thinned().into_iter();
                told.extend(thinned.map(|why| Notice::new(format!("{why}: rows that differ prove nothing"))));
                let read = if self.reads_logs {
                    format!("{} records read, ", self.running.work.records())
                } else {
                    String::new()
                };
                let proof = if rows == 0 { ": nothing is proven" } else { "" };
                let compared = format!("{read}{rows} rows compared as of tick {}, {differ} differ{proof}", self.tick);
                told.push(Notice::new(compared));
                Ok(None)
            }
        }
    }
}

fn job_cancelled() -> PgError {
    PgError::new(code::QUERY_CANCELED, "canceling statement due to CANCEL JOB")
}

/// The least and the greatest time of a column.
fn span(batches: &[RecordBatch], column: Option<usize>) -> Option<(i64, i64)> {
    let columns =
        batches.iter().filter_map(|batch| batch.column(column?).as_primitive_opt::<TimestampMicrosecondType>());
    let spans = columns.filter_map(|times| min(times).zip(max(times)));
    spans.reduce(|all, (from, to)| (all.0.min(from), all.1.max(to)))
}

/// What ends a comparison: with what can be done of it. What is NULL in a view where an expression fails is an error in a query.
fn of_comparison(error: PgError, most_bytes: usize) -> PgError {
    if error.code == code::OUT_OF_MEMORY {
        let message = format!("the comparison takes more memory than queries have together, {} MiB", most_bytes >> 20);
        return PgError::new(code::OUT_OF_MEMORY, message).hint(
            "Compare fewer windows at once with FROM and TO, or start the server with more memory for queries \
             (--query-memory-mib).",
        );
    }
    if error.code.starts_with("22") && error.hint.is_none() {
        return error.hint(
            "An expression of the view fails on a row: the view takes NULL for it and counts it in expression_errors of \
             riverrun.materialized_views, a query cannot. Write it so that it cannot fail, such as with NULLIF.",
        );
    }
    error
}
