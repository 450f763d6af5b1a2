//! The rows of `information_schema`.

use super::definitions::Definition;
use super::pg_catalog::{connectors, keys, source_options, views};
use super::relations::Relation;
use super::rows::Rows;
use super::value::Value;
use crate::catalog::functions::view_definition;
use crate::catalog::types::{format_type, pg_type_of};
use crate::catalog::{OWNER, ObjectKind, SystemScope};
use arrow::datatypes::{DataType, Field};

/// The rows of `table`; none for the tables that list what does not exist here.
pub fn fill(table: &Definition, scope: &SystemScope, rows: &mut Rows) {
    let database = || Value::from(scope.names.database.as_str());
    match table.name {
        "applicable_roles" if scope.names.user != OWNER => rows.add([
            ("grantee", scope.names.user.as_str().into()),
            ("role_name", OWNER.into()),
            ("is_grantable", "NO".into()),
        ]),
        "character_sets" => rows.add([
            ("character_set_name", "UTF8".into()),
            ("character_repertoire", "UCS".into()),
            ("form_of_use", "UTF8".into()),
            ("default_collate_catalog", database()),
            ("default_collate_schema", "pg_catalog".into()),
            ("default_collate_name", "C".into()),
        ]),
        "collations" => {
            for name in ["default", "C"] {
                rows.add([
                    ("collation_catalog", database()),
                    ("collation_schema", "pg_catalog".into()),
                    ("collation_name", name.into()),
                    ("pad_attribute", "NO PAD".into()),
                ]);
            }
        }
        "columns" => columns(scope, rows),
        "constraint_column_usage" => {
            for key in keys(scope) {
                for column in key.column_names() {
                    rows.add([
                        ("table_catalog", database()),
                        ("table_schema", key.table.schema.as_str().into()),
                        ("table_name", key.table.name.as_str().into()),
                        ("column_name", column.into()),
                        ("constraint_catalog", database()),
                        ("constraint_schema", key.table.schema.as_str().into()),
                        ("constraint_name", key.name.as_str().into()),
                    ]);
                }
            }
        }
        "enabled_roles" => {
            rows.add([("role_name", OWNER.into())]);
            if scope.names.user != OWNER {
                rows.add([("role_name", scope.names.user.as_str().into())]);
            }
        }
        "foreign_data_wrappers" => {
            for connector in connectors(scope) {
                rows.add([
                    ("foreign_data_wrapper_catalog", database()),
                    ("foreign_data_wrapper_name", connector.into()),
                    ("authorization_identifier", OWNER.into()),
                ]);
            }
        }
        "foreign_servers" => {
            for connector in connectors(scope) {
                rows.add([
                    ("foreign_server_catalog", database()),
                    ("foreign_server_name", connector.as_str().into()),
                    ("foreign_data_wrapper_catalog", database()),
                    ("foreign_data_wrapper_name", connector.as_str().into()),
                    ("authorization_identifier", OWNER.into()),
                ]);
            }
        }
        "foreign_tables" => {
            for relation in scope.relations() {
                let Some((connector, _)) = source_options(&relation) else { continue };
                rows.add([
                    ("foreign_table_catalog", database()),
                    ("foreign_table_schema", relation.schema.as_str().into()),
                    ("foreign_table_name", relation.name.as_str().into()),
                    ("foreign_server_catalog", database()),
                    ("foreign_server_name", connector.into()),
                ]);
            }
        }
        "foreign_table_options" => {
            for relation in scope.relations() {
                let options = source_options(&relation).into_iter().flat_map(|(_, options)| options);
                for (key, value) in
                    options.filter_map(|o| o.split_once('=').map(|(k, v)| (k.to_string(), v.to_string())))
                {
                    rows.add([
                        ("foreign_table_catalog", database()),
                        ("foreign_table_schema", relation.schema.as_str().into()),
                        ("foreign_table_name", relation.name.as_str().into()),
                        ("option_name", key.into()),
                        ("option_value", value.into()),
                    ]);
                }
            }
        }
        "information_schema_catalog_name" => rows.add([("catalog_name", database())]),
        "key_column_usage" => {
            for key in keys(scope) {
                for (at, column) in key.column_names().into_iter().enumerate() {
                    rows.add([
                        ("constraint_catalog", database()),
                        ("constraint_schema", key.table.schema.as_str().into()),
                        ("constraint_name", key.name.as_str().into()),
                        ("table_catalog", database()),
                        ("table_schema", key.table.schema.as_str().into()),
                        ("table_name", key.table.name.as_str().into()),
                        ("column_name", column.into()),
                        ("ordinal_position", (at + 1).into()),
                    ]);
                }
            }
        }
        "schemata" => {
            for schema in scope.catalog.schemas(&scope.names.database) {
                rows.add([
                    ("catalog_name", database()),
                    ("schema_name", schema.name.into()),
                    ("schema_owner", schema.owner.into()),
                ]);
            }
        }
        "table_constraints" => {
            for key in keys(scope) {
                rows.add([
                    ("constraint_catalog", database()),
                    ("constraint_schema", key.table.schema.as_str().into()),
                    ("constraint_name", key.name.as_str().into()),
                    ("table_catalog", database()),
                    ("table_schema", key.table.schema.as_str().into()),
                    ("table_name", key.table.name.as_str().into()),
                    ("constraint_type", "PRIMARY KEY".into()),
                    ("is_deferrable", "NO".into()),
                    ("initially_deferred", "NO".into()),
                    ("enforced", "YES".into()),
                ]);
            }
        }
        "table_privileges" => {
            for relation in scope.relations().iter().filter(|relation| relation.object.is_some()) {
                let changes: &[&str] = if relation.kind == "r" { &["INSERT", "UPDATE", "DELETE"] } else { &[] };
                for privilege in ["SELECT"].iter().chain(changes) {
                    rows.add([
                        ("grantor", OWNER.into()),
                        ("grantee", OWNER.into()),
                        ("table_catalog", database()),
                        ("table_schema", relation.schema.as_str().into()),
                        ("table_name", relation.name.as_str().into()),
                        ("privilege_type", (*privilege).into()),
                        ("is_grantable", "YES".into()),
                        ("with_hierarchy", if *privilege == "SELECT" { "YES" } else { "NO" }.into()),
                    ]);
                }
            }
        }
        "tables" => {
            for relation in scope.relations() {
                rows.add([
                    ("table_catalog", database()),
                    ("table_schema", relation.schema.as_str().into()),
                    ("table_name", relation.name.as_str().into()),
                    ("table_type", table_type(&relation).into()),
                    ("is_insertable_into", if can_insert(&relation) { "YES" } else { "NO" }.into()),
                    ("is_typed", "NO".into()),
                ]);
            }
        }
        "view_table_usage" => {
            for view in views(scope).iter().filter(|view| view.kind == "v") {
                for read in view.object.iter().flat_map(|object| &object.depends_on) {
                    let Some(read) = scope.catalog.get(*read) else { continue };
                    rows.add([
                        ("view_catalog", database()),
                        ("view_schema", view.schema.as_str().into()),
                        ("view_name", view.name.as_str().into()),
                        ("table_catalog", database()),
                        ("table_schema", read.schema.as_str().into()),
                        ("table_name", read.name.as_str().into()),
                    ]);
                }
            }
        }
        "views" => {
            for view in views(scope).iter().filter(|view| view.kind == "v") {
                rows.add([
                    ("table_catalog", database()),
                    ("table_schema", view.schema.as_str().into()),
                    ("table_name", view.name.as_str().into()),
                    ("view_definition", view.object.as_deref().and_then(view_definition).into()),
                    ("check_option", "NONE".into()),
                    ("is_updatable", "NO".into()),
                    ("is_insertable_into", "NO".into()),
                    ("is_trigger_updatable", "NO".into()),
                    ("is_trigger_deletable", "NO".into()),
                    ("is_trigger_insertable_into", "NO".into()),
                ]);
            }
        }
        _ => {}
    }
}

/// SQL's standard has no materialized views, and Postgres leaves them out of `tables`; tools that list tables only from here
/// would then not see them, so they stand as views.
fn table_type(relation: &Relation) -> &'static str {
    match relation.kind {
        "f" => "FOREIGN",
        "r" => "BASE TABLE",
        _ => "VIEW",
    }
}

fn can_insert(relation: &Relation) -> bool {
    matches!(relation.object.as_ref().map(|object| &object.kind), Some(ObjectKind::Table(_)))
}

fn columns(scope: &SystemScope, rows: &mut Rows) {
    for relation in scope.relations() {
        for (at, field) in relation.columns.fields().iter().enumerate() {
            let pg_type = pg_type_of(field);
            let (precision, radix, scale) = numeric(field);
            let default = relation.table().and_then(|table| table.defaults.get(&at).cloned());
            let array = pg_type.category == "A" && pg_type.len == -1 && pg_type.name.starts_with('_');
            rows.add([
                ("table_catalog", scope.names.database.as_str().into()),
                ("table_schema", relation.schema.as_str().into()),
                ("table_name", relation.name.as_str().into()),
                ("column_name", field.name().as_str().into()),
                ("ordinal_position", (at + 1).into()),
                ("column_default", default.into()),
                ("is_nullable", if relation.not_null(at, field) { "NO" } else { "YES" }.into()),
                ("data_type", if array { "ARRAY".to_string() } else { format_type(pg_type.oid, None) }.into()),
                (
                    "character_octet_length",
                    matches!(pg_type.name, "text" | "varchar" | "bpchar").then_some(1 << 30).into(),
                ),
                ("numeric_precision", precision.into()),
                ("numeric_precision_radix", radix.into()),
                ("numeric_scale", scale.into()),
                ("datetime_precision", datetime_precision(pg_type.name).into()),
                ("udt_catalog", scope.names.database.as_str().into()),
                ("udt_schema", "pg_catalog".into()),
                ("udt_name", pg_type.name.into()),
                ("dtd_identifier", (at + 1).to_string().into()),
                ("is_self_referencing", "NO".into()),
                ("is_identity", "NO".into()),
                ("identity_cycle", "NO".into()),
                ("is_generated", "NEVER".into()),
                ("is_updatable", if can_insert(&relation) { "YES" } else { "NO" }.into()),
            ]);
        }
    }
}

/// (precision, its radix, scale) of a number.
fn numeric(field: &Field) -> (Option<i32>, Option<i32>, Option<i32>) {
    if let DataType::Decimal128(precision, scale) | DataType::Decimal256(precision, scale) = field.data_type() {
        return (Some(i32::from(*precision)), Some(10), Some(i32::from(*scale)));
    }
    match pg_type_of(field).name {
        "int2" => (Some(16), Some(2), Some(0)),
        "int4" => (Some(32), Some(2), Some(0)),
        "int8" => (Some(64), Some(2), Some(0)),
        "float4" => (Some(24), Some(2), None),
        "float8" => (Some(53), Some(2), None),
        _ => (None, None, None),
    }
}

fn datetime_precision(pg_type: &str) -> Option<i32> {
    match pg_type {
        "date" => Some(0),
        "time" | "timestamp" | "timestamptz" | "interval" => Some(6),
        _ => None,
    }
}
