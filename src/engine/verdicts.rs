//! What becomes of a record: the counts, and what is kept of those that do not count.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray, UInt32Array,
};
use arrow::compute::take;
use arrow::datatypes::SchemaRef;
use serde::{Deserialize, Serialize};

use crate::catalog::{LateColumn, Oid};
use crate::exec::dedup::{DuplicateOf, Place};
use crate::exec::law::LateReason;

/// How many records of a partition got which verdict.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub read: u64,
    pub accepted: u64,
    pub late: u64,
    pub duplicate: u64,
    pub dead: u64,
    pub skipped: u64,
}

/// A record that does not count, with why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LateRow {
    pub source: Oid,
    pub partition: i32,
    pub offset: i64,
    pub event_time_us: Option<i64>,
    pub watermark_us: Option<i64>,
    pub payload: Vec<u8>,
    pub reason: LateReason,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    pub source: Oid,
    pub partition: i32,
    pub offset: i64,
    /// The record's own timestamp, -1 if it has none.
    pub timestamp_ms: i64,
    pub payload: Vec<u8>,
    pub reason: String,
}

/// A record that repeats another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DuplicateRow {
    pub source: Oid,
    pub place: Place,
    pub of: DuplicateOf,
}

/// Records of a tick that do not count.
#[derive(Debug, Default)]
pub struct Verdicts {
    pub duplicates: Vec<DuplicateRow>,
    /// No duplicates any more.
    pub kept_after_all: Vec<(Oid, Place)>,
    pub late: Vec<LateRow>,
    pub dead: Vec<DeadLetter>,
    /// Late rows as rows of the tables that `LATE ROWS INTO` names.
    pub late_into: Vec<(Oid, RecordBatch)>,
}

impl Verdicts {
    pub fn append(&mut self, other: &mut Verdicts) {
        self.duplicates.append(&mut other.duplicates);
        self.kept_after_all.append(&mut other.kept_after_all);
        self.late.append(&mut other.late);
        self.dead.append(&mut other.dead);
        self.late_into.append(&mut other.late_into);
    }
}

/// The table that keeps a source's late rows.
#[derive(Debug, Clone)]
pub struct LateInto {
    pub table: Oid,
    pub schema: SchemaRef,
    /// What goes into each of its columns.
    pub columns: Vec<LateColumn>,
}

impl LateInto {
    /// Columns of the source that the table wants.
    pub fn source_columns(&self) -> impl Iterator<Item = usize> {
        self.columns.iter().filter_map(|column| match column {
            LateColumn::Source(column) => Some(*column),
            _ => None,
        })
    }

    /// The table's rows for these rows of a decoded batch, which holds the source's columns at `present`.
    pub fn rows(&self, batch: &RecordBatch, present: &[usize], rows: Vec<u32>, late: &[LateRow]) -> RecordBatch {
        let rows = UInt32Array::from(rows);
        let column = |column: &LateColumn| -> ArrayRef {
            match column {
                LateColumn::Source(column) => {
                    let at = present.binary_search(column).expect("every column the table wants is built");
                    take(batch.column(at), &rows, None).expect("the rows are of this batch")
                }
                LateColumn::Reason => {
                    Arc::new(late.iter().map(|row| Some(row.reason.as_str())).collect::<StringArray>())
                }
                LateColumn::Watermark => {
                    let watermarks: TimestampMicrosecondArray = late.iter().map(|row| row.watermark_us).collect();
                    Arc::new(watermarks.with_timezone("UTC"))
                }
                LateColumn::Partition => Arc::new(late.iter().map(|row| row.partition).collect::<Int32Array>()),
                LateColumn::Offset => Arc::new(late.iter().map(|row| row.offset).collect::<Int64Array>()),
            }
        };
        let columns = self.columns.iter().map(column).collect();
        RecordBatch::try_new(self.schema.clone(), columns).expect("CREATE SOURCE compared the types")
    }
}
