//! Tables that the system computes.

use std::net::SocketAddr;
use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::datasource::MemTable;

use super::system::definitions::Definition;
use super::system::relations::{Relation, relations};
use super::system::rows::Rows;
use super::system::{information_schema, pg_catalog};
use super::{Catalog, INFORMATION_SCHEMA, NameContext, PG_CATALOG, RIVERRUN};

/// A set of computed tables: those of `pg_catalog` and `information_schema` come from the catalog, those of `riverrun`
/// from the engine.
pub trait SystemTables: Send + Sync {
    /// The table as of now; nothing is computed for tables that nobody asks for.
    fn table(&self, schema: &str, name: &str) -> Option<Arc<dyn TableProvider>>;

    /// (schema, name, columns) of every table, always in the same order.
    fn names(&self) -> Vec<(String, String, SchemaRef)>;
}

/// One setting of a session, as `SHOW` and `pg_settings` give it.
#[derive(Debug, Clone)]
pub struct Setting {
    pub name: String,
    pub value: String,
    /// What RESET restores.
    pub reset_value: String,
    pub description: String,
    /// True of what only the server fixes, such as `server_version`.
    pub read_only: bool,
}

/// The settings of one session.
pub trait Settings: Send + Sync {
    /// The value of a setting by its name in lower case.
    fn get(&self, name: &str) -> Option<String>;

    /// All settings by name.
    fn all(&self) -> Vec<Setting>;

    /// What `SET [LOCAL] name = value` does; gives the value as it then shows, or why it was refused.
    fn set(&self, name: &str, value: &str, local: bool) -> Result<String, String>;
}

/// What functions such as `pg_backend_pid()` say of the session.
#[derive(Clone)]
pub struct SessionFacts {
    pub backend_pid: i32,
    /// When the server started, in microseconds since the epoch.
    pub started_us: i64,
    pub client: Option<SocketAddr>,
    pub server: Option<SocketAddr>,
    pub settings: Arc<dyn Settings>,
}

/// From what system tables and functions are computed.
#[derive(Clone)]
pub struct SystemScope {
    pub catalog: Arc<Catalog>,
    pub names: NameContext,
    pub session: SessionFacts,
    /// The tables of the schema `riverrun`.
    pub extra: Arc<dyn SystemTables>,
}

impl SystemScope {
    /// What `pg_class` lists, without indexes.
    pub fn relations(&self) -> Vec<Relation> {
        relations(&self.catalog, &self.names, self.extra.as_ref())
    }
}

/// The system tables of one session: `pg_catalog` and `information_schema` for its database, and `riverrun`.
#[derive(Clone)]
pub struct PgCatalog {
    scope: SystemScope,
}

impl PgCatalog {
    pub fn new(scope: SystemScope) -> PgCatalog {
        PgCatalog { scope }
    }
}

impl SystemTables for PgCatalog {
    fn table(&self, schema: &str, name: &str) -> Option<Arc<dyn TableProvider>> {
        if schema == RIVERRUN {
            return self.scope.extra.table(schema, name);
        }
        let definition = Definition::find(schema, name)?;
        let columns = nullable(&definition.columns);
        let mut rows = Rows::new(&definition.columns);
        match schema {
            PG_CATALOG => pg_catalog::fill(definition, &self.scope, &mut rows),
            INFORMATION_SCHEMA => information_schema::fill(definition, &self.scope, &mut rows),
            _ => return None,
        }
        let batch = rows.into_batch(&columns);
        let table = MemTable::try_new(columns, vec![vec![batch]]).expect("the batch was built from these columns");
        Some(Arc::new(table))
    }

    fn names(&self) -> Vec<(String, String, SchemaRef)> {
        let own = Definition::all().iter().map(|d| (d.schema.to_string(), d.name.to_string(), nullable(&d.columns)));
        own.chain(self.scope.extra.names()).collect()
    }
}

/// Outer joins and defaults are simpler to plan when any column may be NULL; `pg_attribute` says which may not.
fn nullable(columns: &SchemaRef) -> SchemaRef {
    Arc::new(Schema::new(columns.fields().iter().map(|f| f.as_ref().clone().with_nullable(true)).collect::<Vec<_>>()))
}
