//! `pg_catalog` and `information_schema`: their columns as data, their rows from the catalog.

pub mod definitions;
pub mod information_schema;
pub mod pg_catalog;
pub mod relations;
pub mod rows;
pub mod value;
