//! Statements as the parser gives them: names unresolved, types as written.

use std::collections::BTreeMap;

use sqlparser::ast;

/// A possibly qualified name, folded as Postgres folds it: `[[database.]schema.]name`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Name(pub Vec<String>);

/// One statement and where it stood in the text sent.
#[derive(Debug, Clone)]
pub struct Parsed {
    pub statement: Statement,
    /// The statement's own text, without the closing semicolon.
    pub text: String,
    /// Number of parameters: the largest `$n`.
    pub parameters: usize,
}

#[derive(Debug, Clone)]
pub enum Statement {
    CreateSource(CreateSource),
    CreateTable(CreateTable),
    CreateView(CreateView),
    CreateMaterializedView(CreateMaterializedView),
    CreateSchema {
        name: Name,
        if_not_exists: bool,
    },
    CreateDatabase {
        name: Name,
        if_not_exists: bool,
    },
    Drop(Drop),
    AlterSource {
        name: Name,
        if_exists: bool,
        change: AlterSource,
    },
    /// `SHOW SOURCES | TABLES | VIEWS | MATERIALIZED VIEWS | SCHEMAS | DATABASES [FROM schema] [LIKE 'p']`.
    ShowObjects {
        what: ShowWhat,
        schema: Option<Name>,
        like: Option<String>,
    },
    ShowCreate {
        kind: ObjectType,
        name: Name,
    },
    /// Views that read history.
    ShowJobs,
    CancelJobs {
        ids: Vec<u32>,
    },
    /// `SHOW name` or `SHOW ALL` of a setting.
    ShowSetting {
        name: Option<String>,
    },
    /// `DESCRIBE name`, `SHOW COLUMNS FROM name`.
    Describe {
        name: Name,
    },
    Explain {
        statement: Box<Statement>,
        analyze: bool,
        verbose: bool,
    },
    /// `EXPLAIN ANALYZE MATERIALIZED VIEW v`.
    ExplainView {
        name: Name,
        analyze: bool,
    },
    Reconcile(Box<Reconcile>),
    WaitFor {
        name: Name,
        timeout_ms: Option<u64>,
    },
    Flush,
    /// SELECT, VALUES, TABLE, WITH ...
    Query(Box<ast::Query>),
    Insert(Box<ast::Insert>),
    Update(Box<ast::Statement>),
    Delete(Box<ast::Delete>),
    /// `COPY t [(columns)] FROM STDIN` or `COPY (query | t) TO STDOUT`; anything but STDIN and STDOUT is refused.
    Copy(Box<ast::Statement>),
    /// `SUBSCRIBE [TO] name ...`.
    Subscribe(Subscribe),
    /// `COPY (SUBSCRIBE ...) TO STDOUT`; `copy` has the format.
    CopySubscription {
        subscribe: Subscribe,
        copy: Box<ast::Statement>,
    },
    Set(Set),
    Begin {
        read_only: bool,
        isolation: Option<Isolation>,
    },
    Commit,
    Rollback,
    /// `PREPARE name [(types)] AS statement`.
    Prepare {
        name: String,
        types: Vec<ast::DataType>,
        statement: Box<Parsed>,
    },
    Execute {
        name: String,
        arguments: Vec<ast::Expr>,
    },
    Deallocate {
        name: Option<String>,
    },
    Discard,
    Declare {
        cursor: String,
        query: Box<ast::Query>,
    },
    /// `DECLARE cursor CURSOR FOR SUBSCRIBE ...`.
    DeclareSubscription {
        cursor: String,
        subscribe: Subscribe,
    },
    /// `FETCH ... [WITH (timeout = '1s')]`.
    Fetch {
        cursor: String,
        count: FetchCount,
        timeout_ms: Option<u64>,
    },
    Close {
        cursor: Option<String>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscribe {
    pub name: Name,
    /// Begin with the rows that are there.
    pub snapshot: bool,
    /// Say how far the rows go.
    pub progress: bool,
    /// Only what a checkpoint holds.
    pub committed: bool,
    /// The number of the tick to begin at.
    pub as_of: Option<i128>,
}

/// `RECONCILE MATERIALIZED VIEW name [FROM moment] [TO moment] [WITH (corrections = true)] [REPAIR]`.
#[derive(Debug, Clone)]
pub struct Reconcile {
    pub name: Name,
    /// Windows that begin at or after it.
    pub from: Option<ast::Expr>,
    /// Windows that end at or before it.
    pub to: Option<ast::Expr>,
    pub repair: bool,
    /// Windows that were shown as final may be corrected.
    pub corrections: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FetchCount {
    Rows(u64),
    All,
}

#[derive(Debug, Clone)]
pub enum Set {
    /// `SET [SESSION | LOCAL] name = value`; `None` is DEFAULT, also `RESET name`.
    Setting {
        name: String,
        value: Option<String>,
        local: bool,
    },
    ResetAll,
    /// `SET TRANSACTION` and `SET SESSION CHARACTERISTICS` with more than one mode: settings in the order given.
    Several(Vec<Set>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    ReadCommitted,
    RepeatableRead,
    Serializable,
}

impl Isolation {
    /// As the setting `transaction_isolation` shows it.
    pub fn as_str(self) -> &'static str {
        match self {
            Isolation::ReadCommitted => "read committed",
            Isolation::RepeatableRead => "repeatable read",
            Isolation::Serializable => "serializable",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShowWhat {
    Sources,
    Tables,
    Views,
    MaterializedViews,
    Schemas,
    Databases,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectType {
    Source,
    Table,
    View,
    MaterializedView,
    Schema,
    Database,
}

#[derive(Debug, Clone)]
pub struct Drop {
    pub kind: ObjectType,
    pub names: Vec<Name>,
    pub if_exists: bool,
    pub cascade: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AlterSource {
    /// `SET (option = value, ...)`.
    Set(BTreeMap<String, String>),
    /// `RESET (option, ...)`: back to the default.
    Reset(Vec<String>),
    /// `RESET TO earliest | latest`.
    ResetTo(Place),
    /// `RESET WATERMARK [TO 'timestamp']`.
    ResetWatermark { to: Option<String> },
}

/// A place in a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Earliest,
    Latest,
}

#[derive(Debug, Clone)]
pub struct ColumnDef {
    pub name: String,
    pub data_type: ast::DataType,
    pub not_null: bool,
    pub primary_key: bool,
    pub default: Option<ast::Expr>,
}

/// `WATERMARK FOR column AS expr`; the parser accepts `column` and `column - INTERVAL '...'`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatermarkDef {
    pub column: String,
    /// The delay as microseconds, 0 for the bare column.
    pub delay_us: i64,
}

/// `DEDUPLICATE BY (column, ...) WITHIN INTERVAL '...'`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeduplicateDef {
    pub columns: Vec<String>,
    /// Above 0.
    pub interval_us: i64,
}

#[derive(Debug, Clone)]
pub struct CreateSource {
    pub name: Name,
    pub if_not_exists: bool,
    pub columns: Vec<ColumnDef>,
    pub watermark: Option<WatermarkDef>,
    pub deduplicate: Option<DeduplicateDef>,
    /// `INCLUDE partition AS p`: (what, column name; without AS `_rw_kafka_` + what, as RisingWave names it).
    pub includes: Vec<(Include, String)>,
    /// Keys in lower case, values as text.
    pub options: BTreeMap<String, String>,
    /// `FORMAT PLAIN ENCODE JSON [( ... )]`: both in upper case, with the encode options. PLAIN and JSON if not given.
    pub format: String,
    pub encode: String,
    pub encode_options: BTreeMap<String, String>,
    /// `LATE ROWS INTO table`.
    pub late_rows_into: Option<Name>,
}

#[derive(Debug, Clone)]
pub struct CreateTable {
    pub name: Name,
    pub if_not_exists: bool,
    pub columns: Vec<ColumnDef>,
    /// From a table constraint or from columns.
    pub primary_key: Vec<String>,
    pub watermark: Option<WatermarkDef>,
    pub append_only: bool,
    pub on_conflict: OnConflict,
    /// `CREATE TABLE t AS SELECT ...`.
    pub query: Option<Box<ast::Query>>,
}

#[derive(Debug, Clone)]
pub struct CreateView {
    pub name: Name,
    pub or_replace: bool,
    pub if_not_exists: bool,
    pub columns: Vec<String>,
    pub query: Box<ast::Query>,
}

#[derive(Debug, Clone)]
pub struct CreateMaterializedView {
    pub name: Name,
    pub if_not_exists: bool,
    pub columns: Vec<String>,
    pub query: Box<ast::Query>,
    pub options: BTreeMap<String, String>,
    pub emit: EmitClause,
}

/// When a materialized view shows what has changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum EmitClause {
    /// At every tick.
    #[default]
    OnUpdate,
    /// A window once, when it is final.
    OnWindowClose,
    /// At most once in an interval. `text` is the interval as it was written.
    Every { text: String, interval_us: i64 },
}

/// What `INCLUDE` can bring into a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Include {
    /// Int32.
    Partition,
    /// Int64.
    Offset,
    /// Timestamp(us, UTC): the record's own timestamp.
    Timestamp,
    /// Utf8 or Binary: the record's key.
    Key,
}

/// What an insert does to a row whose primary key is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub enum OnConflict {
    #[default]
    Error,
    DoNothing,
    Overwrite,
}
