//! What a name stands for.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;

use crate::sql::{Include, OnConflict};

/// An object's identity, stable for its lifetime and shown as its Postgres OID. User objects start at [`FIRST_USER_OID`].
pub type Oid = u32;

pub const FIRST_USER_OID: Oid = 16384;

/// One object of the catalog. `sql` is its durable form: start-up plans it again.
#[derive(Debug, Clone)]
pub struct Object {
    pub oid: Oid,
    pub database: String,
    pub schema: String,
    pub name: String,
    /// The statement that made it, normalised, as `SHOW CREATE` prints it.
    pub sql: String,
    /// The columns in order; empty for none. Arrow types as in ARCHITECTURE.md, "Types".
    pub columns: SchemaRef,
    pub kind: ObjectKind,
    /// What its definition names: what a view reads, the table of a source's late rows.
    pub depends_on: Vec<Oid>,
}

#[derive(Debug, Clone)]
pub enum ObjectKind {
    Source(Arc<Source>),
    Table(Arc<Table>),
    /// A plain view: its query as text, planned anew wherever it is named.
    View {
        query: String,
    },
    MaterializedView(Arc<MaterializedView>),
}

/// `WATERMARK FOR column AS column - delay`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watermark {
    /// Index of the event-time column.
    pub column: usize,
    pub delay_us: i64,
}

/// `DEDUPLICATE BY (id) WITHIN interval`, and what is promised of ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deduplicate {
    /// Columns of the id, by index.
    pub columns: Vec<usize>,
    pub interval_us: i64,
    /// Equal ids are in one partition: then no row is ever taken back.
    pub same_partition: bool,
}

/// A stream of records outside. Its options are those of `WITH (...)`, keys in lower case, checked by
/// `connector::SourceOptions::parse` before the object exists.
#[derive(Debug, Clone)]
pub struct Source {
    pub options: BTreeMap<String, String>,
    pub watermark: Option<Watermark>,
    pub deduplicate: Option<Deduplicate>,
    /// Columns that do not come from the payload: `INCLUDE partition AS p`, by column index.
    pub includes: Vec<(usize, Include)>,
    /// Columns with `NOT NULL`: a record with a NULL there is dead.
    pub not_null: Vec<usize>,
    /// `LATE ROWS INTO table`: the object depends on that table.
    pub late_rows: Option<LateRows>,
}

/// Where a source's late rows go.
#[derive(Debug, Clone)]
pub struct LateRows {
    pub table: Oid,
    /// What goes into each column of the table.
    pub columns: Vec<LateColumn>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LateColumn {
    /// A column of the source, by its index.
    Source(usize),
    /// `late_reason`: late, future or null_time.
    Reason,
    /// `late_watermark`: what the row was held against.
    Watermark,
    /// `late_partition`.
    Partition,
    /// `late_offset`.
    Offset,
}

impl Source {
    /// Does no row that it has given ever go again?
    pub fn append_only(&self) -> bool {
        self.deduplicate.as_ref().is_none_or(|deduplicate| deduplicate.same_partition)
    }
}

#[derive(Debug, Clone)]
pub struct Table {
    /// Column indexes of the primary key; empty for none.
    pub primary_key: Vec<usize>,
    pub not_null: Vec<usize>,
    /// `DEFAULT` expressions as SQL text, by column index.
    pub defaults: BTreeMap<usize, String>,
    pub append_only: bool,
    pub watermark: Option<Watermark>,
    /// The table's own `ON CONFLICT` rule, as in RisingWave: DO NOTHING or OVERWRITE.
    pub on_conflict: OnConflict,
}

#[derive(Debug, Clone)]
pub struct MaterializedView {
    /// The query alone, as text.
    pub query: String,
    pub options: BTreeMap<String, String>,
    pub emit_on_window_close: bool,
    /// True if no row of the view is ever taken back.
    pub append_only: bool,
    /// The columns that carry event time: the bounds of its windows, or an event-time column passed through. Views over
    /// this one close their windows by these.
    pub event_time: Vec<usize>,
}
