//! Tables: rows that statements change, and the law for those with a WATERMARK.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, BooleanArray, RecordBatch};

use super::checkpoint::TableBody;
use super::coordinator::Coordinator;
use super::dataflow::TickData;
use super::error::EngineError;
use super::request::Reply;
use super::verdicts::LateRow;
use super::{TableChange, WriteOutcome, clock};
use crate::catalog::{self, Object, ObjectKind, Oid};
use crate::exec::durable::Saved;
use crate::exec::feed::{micros, retain};
use crate::exec::law::LateReason;
use crate::exec::rows::describe_row;
use crate::exec::table_state::{Change, OnConflict, Prepared, TableState};
use crate::exec::{Delta, ExecError};
use crate::sql;

pub(super) struct Table {
    pub object: Arc<Object>,
    definition: Arc<catalog::Table>,
    pub state: TableState,
    watermark_us: Option<i64>,
    /// Rows inserted so far: the offset of the next, for `riverrun.late_rows`.
    rows_seen: i64,
}

impl Table {
    pub fn new(object: Arc<Object>) -> Result<Table, EngineError> {
        let ObjectKind::Table(definition) = &object.kind else {
            return Err(ExecError::Invariant(format!("{} was to be made as a table", object.name)).into());
        };
        let state = TableState::new(object.columns.clone(), definition.primary_key.clone(), definition.append_only)?;
        Ok(Table { definition: definition.clone(), object, state, watermark_us: None, rows_seen: 0 })
    }

    /// As it was saved.
    pub fn restored(object: Arc<Object>, saved: &[Saved], body: &TableBody) -> Result<Table, EngineError> {
        let mut table = Table::new(object)?;
        table.state.load(saved)?;
        (table.watermark_us, table.rows_seen) = (body.watermark_us, body.rows_seen);
        Ok(table)
    }

    pub fn watermark_us(&self) -> Option<i64> {
        self.watermark_us
    }

    pub fn rows_seen(&self) -> i64 {
        self.rows_seen
    }

    fn check_not_null(&self, delta: &Delta) -> Result<(), EngineError> {
        let required = self.definition.not_null.iter().chain(&self.definition.primary_key);
        for &column in required {
            let values = delta.column(column);
            if values.null_count() == 0 {
                continue;
            }
            if (0..delta.num_rows()).any(|row| delta.weight(row) > 0 && values.is_null(row)) {
                let column = self.object.columns.field(column).name().clone();
                return Err(EngineError::NotNull { table: self.object.name.clone(), column });
            }
        }
        Ok(())
    }

    /// Splits one statement's rows by the watermark as of the statement before; returns what is on time, the watermark
    /// after it, and the late rows.
    fn on_time(
        &self,
        delta: Delta,
        watermark_us: Option<i64>,
    ) -> Result<(Delta, Option<i64>, Vec<LateRow>), EngineError> {
        let Some(rule) = &self.definition.watermark else { return Ok((delta, watermark_us, Vec::new())) };
        let times = micros(delta.column(rule.column))?;
        let mut late = Vec::new();
        let mut reached_us = watermark_us;
        let mut mask = Vec::with_capacity(delta.num_rows());
        for row in 0..delta.num_rows() {
            let time_us = times.is_valid(row).then(|| times.value(row));
            let reason = match time_us {
                None => Some(LateReason::NullTime),
                Some(us) if watermark_us.is_some_and(|w| us < w) => Some(LateReason::Late),
                Some(us) => {
                    let reached = us.saturating_sub(rule.delay_us);
                    reached_us = Some(reached_us.map_or(reached, |w| w.max(reached)));
                    None
                }
            };
            mask.push(reason.is_none());
            late.extend(reason.map(|reason| LateRow {
                source: self.object.oid,
                partition: 0,
                offset: self.rows_seen + row as i64,
                event_time_us: time_us,
                watermark_us,
                payload: describe_row(delta.rows.columns(), row).into_bytes(),
                reason,
            }));
        }
        if late.is_empty() {
            return Ok((delta, reached_us, late));
        }
        Ok((retain(&delta, &BooleanArray::from(mask))?, reached_us, late))
    }
}

/// A write that has been applied, or why not, and who asked for it.
pub(super) struct Written {
    pub outcome: Result<WriteOutcome, EngineError>,
    /// Its number in the log.
    pub record: Option<u64>,
    /// Rows of a source are in the table as well: a checkpoint keeps it.
    pub mixed: bool,
    pub reply: Reply<WriteOutcome>,
}

impl Written {
    pub fn waits_for_checkpoint(&self) -> bool {
        self.mixed && self.outcome.is_ok()
    }
}

/// What a write does to one table, before it is done.
struct Planned {
    changes: Vec<Change>,
    /// Places in the caller's list.
    places: Vec<usize>,
    watermark_us: Option<i64>,
    rows: i64,
}

impl Coordinator {
    pub(super) fn add_table(&mut self, object: Arc<Object>) -> Result<Vec<String>, EngineError> {
        if let ObjectKind::Table(_) = object.kind {
            let oid = object.oid;
            let mut table = Table::new(object)?;
            if self.lasts {
                table.state.track_saves();
            }
            self.tables.insert(oid, table);
        }
        Ok(Vec::new())
    }

    /// Applies all changes or none.
    pub(super) fn write(
        &mut self,
        changes: Vec<TableChange>,
        data: &mut TickData,
    ) -> Result<WriteOutcome, EngineError> {
        let mut outcome = WriteOutcome { affected: vec![0; changes.len()], late: 0 };
        let mut planned: BTreeMap<Oid, Planned> = BTreeMap::new();
        let mut late = Vec::new();
        for (place, change) in changes.into_iter().enumerate() {
            let table = self.tables.get(&change.table).ok_or_else(|| EngineError::NotReady {
                message: "the table has been dropped".into(),
                hint: "Run the statement again.".into(),
            })?;
            table.check_not_null(&change.delta)?;
            let plan = planned.entry(change.table).or_insert_with(|| Planned {
                changes: Vec::new(),
                places: Vec::new(),
                watermark_us: table.watermark_us,
                rows: 0,
            });
            plan.rows += change.delta.num_rows() as i64;
            let (delta, watermark_us, too_late) = table.on_time(change.delta, plan.watermark_us)?;
            plan.watermark_us = watermark_us;
            late.extend(too_late);
            let rule = change.on_conflict.unwrap_or(table.definition.on_conflict);
            plan.changes.push(Change { delta, on_conflict: rule_of(rule) });
            plan.places.push(place);
        }
        let mut prepared: Vec<(Oid, Prepared)> = Vec::new();
        for (&oid, plan) in &planned {
            let table = &self.tables[&oid];
            prepared.push((oid, table.state.prepare(&plan.changes).map_err(|e| write_error(&table.object.name, e))?));
        }
        for (oid, done) in prepared {
            let plan = &planned[&oid];
            let table = self.tables.get_mut(&oid).expect("looked up above");
            table.state.apply(&done.delta)?;
            table.watermark_us = plan.watermark_us;
            table.rows_seen += plan.rows;
            for (&place, affected) in plan.places.iter().zip(done.affected) {
                outcome.affected[place] = affected;
            }
            if !done.delta.is_empty() {
                data.outputs.entry(oid).or_default().push(done.delta);
            }
        }
        outcome.late = late.len() as u64;
        self.keep(clock::now_us(), late);
        Ok(outcome)
    }
}

impl Coordinator {
    /// Puts late rows of a source into the table that `LATE ROWS INTO` names: nothing there can refuse them.
    pub(super) fn keep_late_rows(&mut self, table: Oid, rows: RecordBatch, data: &mut TickData) {
        // Gone with the source in this very tick.
        let Some(table) = self.tables.get_mut(&table) else { return };
        let change = Change { delta: Delta::inserts(rows), on_conflict: OnConflict::Error };
        let stored = table.state.prepare(&[change]).and_then(|done| {
            table.state.apply(&done.delta)?;
            Ok(done.delta)
        });
        let oid = table.object.oid;
        match stored {
            Ok(delta) => data.outputs.entry(oid).or_default().push(delta),
            Err(error) => {
                tracing::error!(table = table.object.name, %error, "late rows are not in their table");
                let users = self.sources.values_mut().filter(|s| s.object.depends_on.contains(&oid));
                users.for_each(|source| source.late_into_trouble = Some(error.to_string()));
            }
        }
    }
}

fn rule_of(rule: sql::OnConflict) -> OnConflict {
    match rule {
        sql::OnConflict::Error => OnConflict::Error,
        sql::OnConflict::DoNothing => OnConflict::DoNothing,
        sql::OnConflict::Overwrite => OnConflict::Overwrite,
    }
}

fn write_error(table: &str, error: ExecError) -> EngineError {
    match error {
        ExecError::DuplicateKey { key } => EngineError::DuplicateKey { table: table.to_string(), key },
        ExecError::RowMissing { row } => EngineError::Conflict { detail: format!("row {row} was changed meanwhile") },
        other => EngineError::Exec(other),
    }
}
