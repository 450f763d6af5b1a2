//! What the catalog refuses.

use thiserror::Error;

use crate::sql::ObjectType;

/// Every refusal of the catalog. The SQLSTATE that Postgres gives stands at each variant; the server assigns it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CatalogError {
    /// 42P01. `kind` is the word of the statement: "relation", or what DROP named.
    #[error("{kind} \"{name}\" does not exist")]
    NoRelation { kind: &'static str, name: String },
    /// 3F000.
    #[error("schema \"{0}\" does not exist")]
    NoSchema(String),
    /// 3F000: the search path names no schema that exists.
    #[error("no schema has been selected to create in")]
    NoTargetSchema,
    /// 3D000.
    #[error("database \"{0}\" does not exist")]
    NoDatabase(String),
    /// 42P07.
    #[error("relation \"{0}\" already exists")]
    RelationExists(String),
    /// 42P06.
    #[error("schema \"{0}\" already exists")]
    SchemaExists(String),
    /// 42P04.
    #[error("database \"{0}\" already exists")]
    DatabaseExists(String),
    /// 0A000.
    #[error("cross-database references are not implemented: \"{0}\"")]
    CrossDatabase(String),
    /// 42601.
    #[error("improper qualified name (too many dotted names): {0}")]
    TooManyParts(String),
    /// 42939.
    #[error("unacceptable schema name \"{0}\"")]
    ReservedSchema(String),
    /// 42501: something of the system schemas was to be created, changed or dropped.
    #[error("permission denied: {0} belongs to the system")]
    System(String),
    /// 55006.
    #[error("cannot drop the currently open database")]
    CurrentDatabase,
    /// 42809. `is` is what stands under that name.
    #[error("\"{name}\" is not {}", with_article(.wanted))]
    WrongKind { name: String, wanted: ObjectType, is: ObjectType },
    /// 2BP01. `what` is "table t" or "desired object(s)"; `dependents` has a line for each dependency.
    #[error("cannot drop {what} because other objects depend on {}", if what.ends_with(')') { "them" } else { "it" })]
    DependedOn { what: String, dependents: Vec<String> },
    /// 42704.
    #[error("unrecognized configuration parameter \"{0}\"")]
    NoSetting(String),
    /// 42704.
    #[error("type \"{0}\" does not exist")]
    NoType(String),
    /// 42704.
    #[error("role \"{0}\" does not exist")]
    NoRole(String),
    /// 42883.
    #[error("function \"{0}\" does not exist")]
    NoFunction(String),
    /// 22023: an argument that a function of the catalog cannot take.
    #[error("{0}")]
    BadArgument(String),
    /// 42P16: CREATE OR REPLACE VIEW with columns that the old ones do not begin.
    #[error("{0}")]
    ViewColumns(String),
}

impl CatalogError {
    /// What IF NOT EXISTS forgives.
    pub fn is_already_there(&self) -> bool {
        matches!(self, Self::RelationExists(_) | Self::SchemaExists(_) | Self::DatabaseExists(_))
    }

    /// The DETAIL line, if there is one.
    pub fn detail(&self) -> Option<String> {
        match self {
            CatalogError::DependedOn { dependents, .. } => Some(dependents.join("\n")),
            CatalogError::ReservedSchema(_) => Some("The prefix \"pg_\" is reserved for system schemas.".into()),
            _ => None,
        }
    }

    /// The HINT line, if there is one.
    pub fn hint(&self) -> Option<String> {
        match self {
            CatalogError::DependedOn { .. } => Some("Use DROP ... CASCADE to drop the dependent objects too.".into()),
            CatalogError::WrongKind { is, .. } => {
                Some(format!("Use DROP {} to remove {}.", word(*is).to_uppercase(), with_article(is)))
            }
            CatalogError::NoTargetSchema => {
                Some("Set search_path to a schema that exists, or qualify the name.".into())
            }
            CatalogError::ViewColumns(_) => Some("Drop the view and create it anew.".into()),
            _ => None,
        }
    }
}

/// The kind in lower case, as messages have it.
pub(super) fn word(kind: ObjectType) -> &'static str {
    match kind {
        ObjectType::Source => "source",
        ObjectType::Table => "table",
        ObjectType::View => "view",
        ObjectType::MaterializedView => "materialized view",
        ObjectType::Schema => "schema",
        ObjectType::Database => "database",
    }
}

fn with_article(kind: &ObjectType) -> String {
    format!("a {}", word(*kind))
}
