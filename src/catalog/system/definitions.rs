//! The columns and OIDs of the tables of `pg_catalog` and `information_schema`, as PostgreSQL 15 has them.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use arrow::datatypes::{Field, Schema, SchemaRef};

use crate::catalog::types::with_pg_type;
use crate::catalog::{Oid, PgType};

/// One system table.
#[derive(Debug, Clone)]
pub struct Definition {
    pub schema: &'static str,
    pub name: &'static str,
    pub oid: Oid,
    /// `relkind`: `r` or `v`.
    pub kind: &'static str,
    pub columns: SchemaRef,
    /// True if it lists what does not exist here, so that it has no rows whatever the catalog holds.
    pub empty: bool,
}

static DEFINITIONS: LazyLock<Vec<Definition>> = LazyLock::new(|| {
    let mut lines = include_str!("tables.txt").lines().filter(|line| !line.starts_with('#')).peekable();
    let mut definitions = Vec::new();
    while let Some(head) = lines.next() {
        let mut columns = Vec::new();
        while let Some(line) = lines.next_if(|line| line.starts_with(' ')) {
            columns.extend(line.split_whitespace().map(column));
        }
        let columns: Vec<Field> = columns.into_iter().collect::<Option<_>>().expect("every column names a known type");
        definitions.push(table(head, columns).expect("tables.txt gives schema.table, OID and kind"));
    }
    definitions
});

static BY_NAME: LazyLock<HashMap<(&'static str, &'static str), &'static Definition>> =
    LazyLock::new(|| DEFINITIONS.iter().map(|table| ((table.schema, table.name), table)).collect());

fn table(head: &'static str, columns: Vec<Field>) -> Option<Definition> {
    let mut words = head.split(' ');
    let (schema, name) = words.next()?.split_once('.')?;
    let (oid, kind) = (words.next()?.parse().ok()?, words.next()?);
    let empty = words.next() == Some("empty");
    Some(Definition { schema, name, oid, kind, columns: Arc::new(Schema::new(columns)), empty })
}

/// `name:type`, with `?` if it may be NULL.
fn column(text: &str) -> Option<Field> {
    let (name, pg_type) = text.split_once(':')?;
    let (pg_type, nullable) = match pg_type.strip_suffix('?') {
        Some(pg_type) => (pg_type, true),
        None => (pg_type, false),
    };
    let pg_type = PgType::by_name(pg_type)?;
    Some(with_pg_type(pg_type.field(name).with_nullable(nullable), pg_type))
}

impl Definition {
    /// Those of `pg_catalog`, then those of `information_schema`, each by name.
    pub fn all() -> &'static [Definition] {
        &DEFINITIONS
    }

    pub fn find(schema: &str, name: &str) -> Option<&'static Definition> {
        BY_NAME.get(&(schema, name)).copied()
    }
}
