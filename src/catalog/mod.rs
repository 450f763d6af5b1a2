//! Names → objects with stable OIDs.

#[allow(clippy::module_inception)]
mod catalog;
mod error;
mod object;
mod system_tables;

pub use catalog::*;
pub use error::CatalogError;
pub use object::*;
pub use system_tables::SystemTables;
