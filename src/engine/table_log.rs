//! The log of what statements do to tables: written before they are acknowledged, read again after a crash.
//!
//! Records that have gathered while the last group was written are the next group. A record holds the changes of one transaction as
//! they were asked for; put to the same state in the same order they do the same again.

use std::thread::{self, JoinHandle};

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, unbounded};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

use super::TableChange;
use crate::catalog::Oid;
use crate::exec::durable::Saved;
use crate::exec::{Delta, ExecError};
use crate::sql::OnConflict;
use crate::storage::{Storage, StorageError, decode, encode};

/// Records from `first` on were written, or were not and never will be.
#[derive(Debug)]
pub(super) struct Logged {
    pub first: u64,
    pub records: u64,
    pub outcome: Result<(), StorageError>,
}

/// The thread that writes groups; it ends with its last sender.
pub(super) struct TableLog {
    orders: Sender<Order>,
    thread: Option<JoinHandle<()>>,
}

enum Order {
    Append(u64, Bytes),
    /// After a failure nothing is written until those who asked have taken note of it: there must be no gap.
    Resume,
}

impl TableLog {
    pub fn start(storage: Storage, say: impl Fn(Logged) -> bool + Send + 'static) -> std::io::Result<TableLog> {
        let (orders, asked) = unbounded();
        let thread = thread::Builder::new().name("table-log".into()).spawn(move || run(&storage, &asked, &say))?;
        Ok(TableLog { orders, thread: Some(thread) })
    }

    /// Records are numbered without a gap.
    pub fn append(&self, number: u64, record: Bytes) {
        // A thread that has ended is noticed as what it does not say.
        let _ = self.orders.send(Order::Append(number, record));
    }

    /// What could not be written is in a checkpoint: records after it may come.
    pub fn resume(&self) {
        let _ = self.orders.send(Order::Resume);
    }

    pub fn stop(mut self) {
        drop(self.orders);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the log of tables panicked");
        }
    }
}

fn run(storage: &Storage, asked: &Receiver<Order>, say: &dyn Fn(Logged) -> bool) {
    let mut failure: Option<StorageError> = None;
    while let Ok(order) = asked.recv() {
        let (mut first, mut group) = (None, Vec::new());
        for order in std::iter::once(order).chain(asked.try_iter()) {
            match order {
                Order::Append(number, record) => {
                    first.get_or_insert(number);
                    group.push(record);
                }
                // Whoever failed has been told, so that nothing of it is in the group.
                Order::Resume => failure = None,
            }
        }
        let Some(first) = first else { continue };
        let outcome = match &failure {
            Some(error) => Err(error.clone()),
            None => storage.append(first, &group),
        };
        failure = outcome.as_ref().err().cloned();
        if !say(Logged { first, records: group.len() as u64, outcome }) {
            return;
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Notes {
    /// (table, the statement's ON CONFLICT) of each section.
    changes: Vec<(Oid, Option<OnConflict>)>,
}

const WEIGHT: &str = "riverrun weight";

/// A transaction's changes as a record.
pub(super) fn record_of(changes: &[TableChange]) -> Result<Bytes, ExecError> {
    let notes = Notes { changes: changes.iter().map(|change| (change.table, change.on_conflict)).collect() };
    let mut saved = Saved { whole: true, notes: to_notes(&notes)?, ..Saved::default() };
    for change in changes {
        saved.push("change", with_weights(&change.delta)?);
    }
    encode(&saved).map_err(unreadable)
}

pub(super) fn changes_of(record: &Bytes) -> Result<Vec<TableChange>, ExecError> {
    let saved = decode(record).map_err(unreadable)?;
    let notes: Notes = saved.notes()?;
    if notes.changes.len() != saved.sections.len() {
        return Err(ExecError::Saved { what: "a record of the log of tables".into() });
    }
    let sections = notes.changes.into_iter().zip(saved.sections);
    let change = |((table, on_conflict), section): ((Oid, _), crate::exec::durable::Section)| {
        Ok(TableChange { table, on_conflict, delta: without_weights(section.rows)? })
    };
    sections.map(change).collect()
}

fn unreadable(error: StorageError) -> ExecError {
    ExecError::Storage { what: error.to_string() }
}

fn to_notes(notes: &impl Serialize) -> Result<serde_json::Value, ExecError> {
    serde_json::to_value(notes).map_err(|error| ExecError::Saved { what: error.to_string() })
}

/// The rows with their weights as a last column.
fn with_weights(delta: &Delta) -> Result<RecordBatch, ExecError> {
    let mut fields: Vec<_> = delta.rows.schema().fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new(WEIGHT, DataType::Int64, false)));
    let weights = Int64Array::from_iter_values((0..delta.num_rows()).map(|row| delta.weight(row)));
    let columns = delta.rows.columns().iter().cloned().chain([Arc::new(weights) as ArrayRef]).collect();
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}

fn without_weights(rows: RecordBatch) -> Result<Delta, ExecError> {
    let last = rows.num_columns().checked_sub(1).filter(|last| rows.schema().field(*last).name() == WEIGHT);
    let wrong = || ExecError::Saved { what: "a record of the log of tables".into() };
    let last = last.ok_or_else(wrong)?;
    let weights = rows.column(last).as_primitive_opt::<Int64Type>().ok_or_else(wrong)?.values().to_vec();
    let columns: Vec<usize> = (0..last).collect();
    Ok(Delta::weighted(rows.project(&columns)?, weights))
}
