//! Names → objects with stable OIDs; `pg_catalog`, `information_schema` and `riverrun.*` as tables.

#[allow(clippy::module_inception)]
mod catalog;
mod catalog_text;
pub mod compat;
mod error;
mod functions;
mod object;
mod system;
mod system_tables;
mod types;

pub use catalog::*;
pub use catalog_text::{CatalogText, DatabaseText, ObjectText};
pub use error::CatalogError;
pub use functions::{SERVER_VERSION, pg_aggregates, pg_functions};
pub use object::*;
pub use system_tables::{PgCatalog, SessionFacts, Setting, Settings, SystemScope, SystemTables};
pub use types::{PG_TYPE, PgType, format_type, pg_type_of, typmod_of, with_pg_type};

#[cfg(test)]
mod system_tests;
