//! Tables that the system computes.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::catalog::TableProvider;

/// A set of computed tables: those of `pg_catalog` and `information_schema` come from the catalog, those of `riverrun`
/// from the engine.
pub trait SystemTables: Send + Sync {
    /// The table as of now; nothing is computed for tables that nobody asks for.
    fn table(&self, schema: &str, name: &str) -> Option<Arc<dyn TableProvider>>;

    /// (schema, name, columns) of every table, always in the same order.
    fn names(&self) -> Vec<(String, String, SchemaRef)>;
}
