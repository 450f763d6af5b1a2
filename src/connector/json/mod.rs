//! JSON records to Arrow, in one pass and without a heap object per record.
//!
//! A record is a JSON object; its fields are the columns. Each record gets a verdict that depends on its bytes and the
//! declared columns alone, never on which columns are built:
//!
//! | record | verdict |
//! |---|---|
//! | null value | skipped (tombstone) |
//! | empty, not UTF-8, not JSON, cut short, something after the object, not an object | dead |
//! | objects and arrays nested deeper than 128 levels, wherever | dead |
//! | a field twice that is a column | dead |
//! | unknown fields, once or more, of any kind and size | ignored |
//! | a column's field is missing or `null` | NULL; dead if the column is NOT NULL |
//! | a value that does not fit its column | dead |
//!
//! Names match exactly; a column that has no field of exactly its name takes one that differs in case only. (Two such are
//! a field twice. A field that differs in case from several columns belongs to none.)
//!
//! | column | string | number | true, false | object, array |
//! |---|---|---|---|---|
//! | BOOLEAN | dead | dead | value | dead |
//! | SMALLINT, INT, BIGINT | as the number, if all of it is one | if integral (`1.0`, `1e3` are) and in range | dead | dead |
//! | REAL, DOUBLE | as the number, if all of it is one | nearest value; dead if beyond the largest | dead | dead |
//! | NUMERIC(p, s) | as the number, if all of it is one | exact; dead if non-zero digits exceed s, or all exceed p | dead | dead |
//! | VARCHAR | value; dead with `\u0000` or half a surrogate pair | its text as written | dead | dead |
//! | BYTEA | `\x` and hexadecimal digits | dead | dead | dead |
//! | DATE | `YYYY-MM-DD` | dead | dead | dead |
//! | TIME | `HH:MM[:SS[.f]]` | dead | dead | dead |
//! | TIMESTAMP, TIMESTAMPTZ | ISO 8601, see below | epoch number, see [`TimestampMode`] | dead | dead |
//!
//! Timestamps as text: `YYYY-MM-DD`, then `T` or a space and `HH:MM[:SS[.fraction]]`, then `Z`, `UTC`, `+02`, `+0200`, `+02:00`
//! or nothing, which means UTC. A zone on a TIMESTAMP converts to UTC. Fractions have 1 to 9 digits; those beyond
//! microseconds are cut. Dates that do not exist, second 60, hour 24 and years outside 1 to 9999 are dead.
//!
//! NaN and Infinity are not JSON: dead. Nothing is ever turned into NULL because it does not fit.

mod column;
mod decoder;
mod exact;
mod options;
mod scan;
#[cfg(test)]
mod tests;
mod time;
mod verdict;

use arrow::array::RecordBatch;
use arrow::datatypes::DataType;

pub use self::decoder::JsonDecoder;
pub use self::options::JsonOptions;
pub use self::time::{EpochUnit, TimestampMode};

/// A column as declared: its name as stored, and where its values come from.
#[derive(Debug, Clone)]
pub struct ColumnSpec {
    pub name: String,
    pub data_type: DataType,
    pub not_null: bool,
    /// `None`: a field of the payload.
    pub include: Option<IncludeKind>,
}

/// What of a record beside its payload a column can hold, and the type it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IncludeKind {
    /// Int32.
    Partition,
    /// Int64.
    Offset,
    /// Timestamp(us) with or without zone; NULL if the record has none.
    Timestamp,
    /// Utf8 or Binary; NULL if the record has none. A key that is not UTF-8 does not fit Utf8: dead.
    Key,
}

/// What became of a range of records.
#[derive(Debug)]
pub struct Decoded {
    /// The wanted columns of the rows, in the order wanted.
    pub batch: RecordBatch,
    /// For each row the index of its record.
    pub rows: Vec<u32>,
    pub dead: Vec<Dead>,
    /// Indexes of tombstones.
    pub skipped: Vec<u32>,
}

/// A record that does not fit the source, by its index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dead {
    pub record: u32,
    pub reason: String,
}
