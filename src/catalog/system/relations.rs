//! Everything that `pg_class` lists, and the OIDs of what hangs on it.

use std::sync::Arc;

use arrow::datatypes::{FieldRef, SchemaRef};

use super::definitions::Definition;
use crate::catalog::{Catalog, NameContext, Object, ObjectKind, Oid, RIVERRUN, SystemTables, Table};

/// The tables of the schema `riverrun` in the order of their OIDs, so that these stay when tables are added at the end.
const RIVERRUN_TABLES: [&str; 11] = [
    "sources",
    "source_partitions",
    "materialized_views",
    "slices",
    "late_rows",
    "dead_letters",
    "checkpoints",
    "source_gaps",
    "source_changes",
    "jobs",
    "job_partitions",
];
const FIRST_RIVERRUN_OID: Oid = 15000;

// What has no OID of its own takes one from what it hangs on: the high bits say what it is.
const INDEX: Oid = 0x2000_0000;
const CONSTRAINT: Oid = 0x3000_0000;
const RULE: Oid = 0x4000_0000;
const DEFAULT: Oid = 0x5000_0000;
const HANGING: Oid = 0x0fff_ffff;

/// A table, view, materialized view, source or system table.
pub struct Relation {
    pub oid: Oid,
    pub schema: String,
    pub schema_oid: Oid,
    pub name: String,
    /// `relkind`. A source is a foreign table: its rows lie outside, and its options say where.
    pub kind: &'static str,
    pub columns: SchemaRef,
    /// None for a system table.
    pub object: Option<Arc<Object>>,
}

/// The index that a table's primary key is for Postgres's tools.
pub struct PrimaryKey {
    pub index_oid: Oid,
    pub constraint_oid: Oid,
    /// Of the index and of the constraint.
    pub name: String,
    pub table: Arc<Object>,
    pub columns: Vec<usize>,
}

/// The user's objects by OID, then system tables.
pub fn relations(catalog: &Catalog, names: &NameContext, extra: &dyn SystemTables) -> Vec<Relation> {
    let mut all: Vec<Relation> = Vec::new();
    for object in catalog.objects(&names.database) {
        let Some(schema_oid) = catalog.schema_oid(&object.database, &object.schema) else { continue };
        all.push(Relation {
            oid: object.oid,
            schema: object.schema.clone(),
            schema_oid,
            name: object.name.clone(),
            kind: object.relkind(),
            columns: Arc::clone(&object.columns),
            object: Some(object),
        });
    }
    let mut system = |oid, schema: &str, name: &str, kind, columns: &SchemaRef| {
        let Some(schema_oid) = catalog.schema_oid(&names.database, schema) else { return };
        let (schema, name, columns) = (schema.to_string(), name.to_string(), Arc::clone(columns));
        all.push(Relation { oid, schema, schema_oid, name, kind, columns, object: None });
    };
    for table in Definition::all() {
        system(table.oid, table.schema, table.name, table.kind, &table.columns);
    }
    for (schema, name, columns) in extra.names() {
        if let Some(oid) = riverrun_oid(&schema, &name) {
            system(oid, &schema, &name, "v", &columns);
        }
    }
    all
}

fn riverrun_oid(schema: &str, name: &str) -> Option<Oid> {
    let at = RIVERRUN_TABLES.iter().position(|table| *table == name).filter(|_| schema == RIVERRUN)?;
    Some(FIRST_RIVERRUN_OID + at as Oid)
}

/// The OID of a system table.
pub fn system_oid(schema: &str, name: &str) -> Option<Oid> {
    Definition::find(schema, name).map(|table| table.oid).or_else(|| riverrun_oid(schema, name))
}

/// (schema, name) of a system table.
pub fn system_name(oid: Oid) -> Option<(&'static str, &'static str)> {
    if let Some(table) = Definition::all().iter().find(|table| table.oid == oid) {
        return Some((table.schema, table.name));
    }
    let name = RIVERRUN_TABLES.get(oid.checked_sub(FIRST_RIVERRUN_OID)? as usize)?;
    Some((RIVERRUN, name))
}

impl Relation {
    /// True if a NULL in the column is refused.
    pub fn not_null(&self, column: usize, field: &FieldRef) -> bool {
        match self.object.as_ref().map(|object| &object.kind) {
            Some(ObjectKind::Table(table)) => table.not_null.contains(&column) || table.primary_key.contains(&column),
            Some(ObjectKind::Source(source)) => source.not_null.contains(&column),
            Some(_) => false,
            None => self.kind == "r" && !field.is_nullable(),
        }
    }

    pub fn table(&self) -> Option<&Table> {
        self.object.as_ref().and_then(|object| object.as_table())
    }

    pub fn primary_key(&self) -> Option<PrimaryKey> {
        self.object.as_ref().and_then(PrimaryKey::of)
    }
}

impl Object {
    /// The kind as `pg_class.relkind` has it.
    pub fn relkind(&self) -> &'static str {
        match &self.kind {
            ObjectKind::Source(_) => "f",
            ObjectKind::Table(_) => "r",
            ObjectKind::View { .. } => "v",
            ObjectKind::MaterializedView(_) => "m",
        }
    }

    /// The query of a view or materialized view.
    pub fn query(&self) -> Option<&str> {
        match &self.kind {
            ObjectKind::View { query } => Some(query),
            ObjectKind::MaterializedView(view) => Some(&view.query),
            ObjectKind::Source(_) | ObjectKind::Table(_) => None,
        }
    }

    pub fn as_table(&self) -> Option<&Table> {
        if let ObjectKind::Table(table) = &self.kind { Some(table) } else { None }
    }
}

impl PrimaryKey {
    /// None if the object is no table with a primary key.
    pub fn of(object: &Arc<Object>) -> Option<PrimaryKey> {
        let columns = object.as_table()?.primary_key.clone();
        (!columns.is_empty()).then(|| PrimaryKey {
            index_oid: INDEX | object.oid,
            constraint_oid: CONSTRAINT | object.oid,
            name: format!("{}_pkey", object.name),
            table: Arc::clone(object),
            columns,
        })
    }

    /// The key whose index or constraint has that OID.
    pub fn find(catalog: &Catalog, oid: Oid) -> Option<PrimaryKey> {
        let key = PrimaryKey::of(&catalog.get(oid & HANGING)?)?;
        (key.index_oid == oid || key.constraint_oid == oid).then_some(key)
    }

    pub fn column_names(&self) -> Vec<&str> {
        self.columns.iter().map(|column| self.table.columns.field(*column).name().as_str()).collect()
    }
}

/// The OID in `pg_rewrite` of a view's rule.
pub fn rule_oid(view: Oid) -> Oid {
    RULE | view
}

/// The OID in `pg_attrdef` of the default of a column, counted from 1. Distinct up to OID 147000 and 2047 columns.
pub fn default_oid(table: Oid, attnum: usize) -> Oid {
    DEFAULT | ((table << 11 | attnum as Oid) & HANGING)
}
