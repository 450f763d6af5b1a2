//! `DEDUPLICATE BY (id) WITHIN interval`: of the accepted rows with one id, in the order (event time, partition, offset), a row
//! is a duplicate if a kept row lies less than the interval before it.
//!
//! Which rows are duplicates is a function of the set of accepted rows, so it depends neither on batches nor on the order in
//! which partitions are read. A row that comes later may sort first; then rows that were kept become duplicates, and
//! rows that were duplicates may be kept again ([`AcrossPartitions`]). Where equal ids share a partition, the order of that
//! partition's log decides instead, and nothing is taken back ([`WithinPartition`]).
//!
//! A verdict depends on rows that sort before its row alone. No row below `final_until` is accepted any more, so no verdict on a row
//! below it changes any more: windows over a deduplicated source are final when those over the plain one are.
//!
//! A row with a NULL in its id has no id, as in a UNIQUE constraint: it is no duplicate of anything.

mod across_partitions;
mod across_saves;
mod id_key;
mod id_table;
mod offset_set;
mod unsaved_ids;
mod within_partition;

pub use across_partitions::{AcrossPartitions, Resolved};
pub use id_key::IdKeys;
pub use offset_set::OffsetSet;
pub use within_partition::WithinPartition;

use arrow::array::RecordBatch;
use serde::{Deserialize, Serialize};

/// The clause, bound to the columns of its source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deduplicate {
    /// Columns of the id, by index.
    pub columns: Vec<usize>,
    /// Above 0.
    pub interval_us: i64,
    /// Promised: equal ids are in one partition.
    pub same_partition: bool,
}

/// Rows that the law has accepted, with where they stood in the log.
#[derive(Debug, Clone)]
pub struct AcceptedRows {
    /// Every column of the source.
    pub rows: RecordBatch,
    pub partitions: Vec<i32>,
    pub offsets: Vec<i64>,
}

/// Where a row stands in its source's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place {
    pub partition: i32,
    pub offset: i64,
}

/// A row that has become a duplicate, or is none any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub place: Place,
    pub duplicate: Option<DuplicateOf>,
}

/// What a duplicate repeats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DuplicateOf {
    /// The id as text; of several columns `(a, b)`.
    pub id: String,
    pub event_time_us: i64,
    /// The kept row, as of when the duplicate was found.
    pub kept: Place,
}
