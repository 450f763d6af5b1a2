//! The log of what statements do to tables: written before they are acknowledged, read again after a crash.
//!
//! Records that have gathered while the last group was written are the next group. A record holds the changes of one transaction as
//! they were asked for; put to the same state in the same order they do the same again.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use bytes::Bytes;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};

use super::TableChange;
use crate::catalog::Oid;
use crate::exec::durable::Saved;
use crate::exec::{Delta, ExecError};
use crate::sql::OnConflict;
use crate::storage::{Storage, StorageError, decode, encode};

/// What became of a group of records.
#[derive(Debug)]
pub(super) struct Logged {
    pub first: u64,
    pub records: u64,
    /// A group that could not be written is tried until it is.
    pub outcome: Result<(), StorageError>,
}

/// How far the log has been written.
#[derive(Debug, Clone, Default)]
pub(super) struct LogEnd(Arc<(Mutex<u64>, Condvar)>);

impl LogEnd {
    fn reach(&self, number: u64) {
        *self.0.0.lock() = number;
        self.0.1.notify_all();
    }

    /// Waits until the record is in the log; false if that takes longer.
    pub fn wait_for(&self, number: u64, longest: Duration) -> bool {
        let mut reached = self.0.0.lock();
        !self.0.1.wait_while_for(&mut reached, |reached| *reached < number, longest).timed_out()
    }
}

/// The thread that writes groups; it ends with its last sender.
pub(super) struct TableLog {
    records: Sender<(u64, Bytes)>,
    end: LogEnd,
    thread: Option<JoinHandle<()>>,
}

/// After a failure the pause doubles up to this.
const MOST_PAUSE: Duration = Duration::from_secs(10);

impl TableLog {
    /// `last`: the number of the last record that is there.
    pub fn start(
        storage: Storage,
        last: u64,
        first_pause: Duration,
        say: impl Fn(Logged) -> bool + Send + 'static,
    ) -> io::Result<TableLog> {
        let (records, asked) = unbounded();
        let end = LogEnd(Arc::new((Mutex::new(last), Condvar::new())));
        let reached = end.clone();
        let run = move || run(&storage, &asked, &reached, first_pause, &say);
        let thread = thread::Builder::new().name("table-log".into()).spawn(run)?;
        Ok(TableLog { records, end, thread: Some(thread) })
    }

    pub fn end(&self) -> LogEnd {
        self.end.clone()
    }

    /// Records are numbered without a gap.
    pub fn append(&self, number: u64, record: Bytes) {
        // A thread that has ended is noticed as what it does not say.
        let _ = self.records.send((number, record));
    }

    /// Ends once what it was given is written, or cannot be.
    pub fn stop(mut self) {
        drop(self.records);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the log of tables panicked");
        }
    }
}

fn run(
    storage: &Storage,
    asked: &Receiver<(u64, Bytes)>,
    reached: &LogEnd,
    first_pause: Duration,
    say: &dyn Fn(Logged) -> bool,
) {
    // What could not be written goes first, and as it was: it may be there after all.
    let mut group: Vec<(u64, Bytes)> = Vec::new();
    let mut pause = first_pause;
    loop {
        let next = match group.is_empty() {
            true => asked.recv().map_err(|_| RecvTimeoutError::Disconnected),
            false => asked.recv_timeout(pause),
        };
        match next {
            Ok(record) => group.push(record),
            Err(RecvTimeoutError::Timeout) => pause = (pause * 2).min(MOST_PAUSE),
            Err(RecvTimeoutError::Disconnected) => return,
        }
        group.extend(asked.try_iter());
        let (first, last) = (group[0].0, group[group.len() - 1].0);
        let records: Vec<Bytes> = group.iter().map(|(_, record)| record.clone()).collect();
        let outcome = storage.append(first, &records);
        if outcome.is_ok() {
            group.clear();
            pause = first_pause;
            reached.reach(last);
        }
        if !say(Logged { first, records: records.len() as u64, outcome }) {
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
