//! Objects of the catalog: their names, definitions and sizes.

use super::text::{bad_input, number_or_dash, parse_name, quote_identifier};
use super::{Answer, Function, function};
use crate::catalog::system::pg_catalog::{
    comment, procedure_name, procedure_oid, procedure_types, relation_oid, role_name, role_oid, shown_name,
};
use crate::catalog::system::relations::{PrimaryKey, rule_oid, system_name};
use crate::catalog::system::value::Value;
use crate::catalog::types::{PgType, format_type};
use crate::catalog::{CatalogError, Object, Oid, SystemScope};
use crate::sql::Name;

pub(super) const FUNCTIONS: &[Function] = &[
    function("pg_get_userbyid", 1..=1, "name", |s, a| {
        let name = a[0].as_oid().and_then(|oid| role_name(oid, &s.names.user));
        Ok(name.unwrap_or_else(|| format!("unknown (OID={})", a[0].as_int().unwrap_or(0))).into())
    }),
    function("pg_table_is_visible", 1..=1, "bool", |s, a| Ok(a[0].as_oid().and_then(|oid| visible(s, oid)).into())),
    function("pg_type_is_visible", 1..=1, "bool", |_, a| {
        Ok(a[0].as_oid().and_then(PgType::by_oid).map(|_| true).into())
    }),
    function("pg_function_is_visible", 1..=1, "bool", |_, a| {
        Ok(a[0].as_oid().and_then(procedure_name).map(|_| true).into())
    }),
    function("pg_collation_is_visible", 1..=1, "bool", |_, a| {
        Ok(matches!(a[0].as_oid(), Some(100 | 950)).then_some(true).into())
    }),
    // What has no rows in its catalog has no OID, and of an OID that stands for nothing these say NULL.
    function("pg_operator_is_visible", 1..=1, "bool", nothing),
    function("pg_opclass_is_visible", 1..=1, "bool", nothing),
    function("pg_opfamily_is_visible", 1..=1, "bool", nothing),
    function("pg_statistics_obj_is_visible", 1..=1, "bool", nothing),
    function("pg_get_partkeydef", 1..=1, "text", nothing),
    function("pg_get_partition_constraintdef", 1..=1, "text", nothing),
    function("pg_get_statisticsobjdef", 1..=1, "text", nothing),
    function("pg_get_statisticsobjdef_columns", 1..=1, "text", nothing),
    function("pg_get_triggerdef", 1..=2, "text", nothing),
    function("pg_get_functiondef", 1..=1, "text", nothing),
    function("pg_get_serial_sequence", 2..=2, "text", nothing),
    function("pg_relation_is_publishable", 1..=1, "bool", |_, _| Ok(false.into())),
    // Sizes are the engine's to know: `riverrun.materialized_views` has them.
    function("pg_relation_size", 1..=2, "int8", nothing),
    function("pg_table_size", 1..=1, "int8", nothing),
    function("pg_indexes_size", 1..=1, "int8", nothing),
    function("pg_total_relation_size", 1..=1, "int8", nothing),
    function("pg_database_size", 1..=1, "int8", nothing),
    function("pg_tablespace_size", 1..=1, "int8", nothing),
    function("pg_tablespace_location", 1..=1, "text", |_, _| Ok("".into())),
    function("pg_get_expr", 2..=3, "text", |_, a| Ok(a[0].clone())),
    function("pg_get_viewdef", 1..=2, "text", |s, a| {
        let oid = match a[0].as_oid() {
            Some(oid) => Some(oid),
            None => Some(relation(s, a[0].as_text().unwrap_or_default())?),
        };
        Ok(oid.and_then(|oid| view_definition(s.catalog.get(oid)?.as_ref())).into())
    }),
    function("pg_get_ruledef", 1..=2, "text", |s, a| {
        let oid = a[0].as_oid();
        let mut objects = s.catalog.objects(&s.names.database);
        let view = objects.find(|object| object.query().is_some() && Some(rule_oid(object.oid)) == oid);
        let definition = view.and_then(|view| Some((view.name.clone(), view_definition(&view)?)));
        let rule = definition.map(|(name, query)| {
            format!("CREATE RULE \"_RETURN\" AS ON SELECT TO {} DO INSTEAD {query}", quote_identifier(&name))
        });
        Ok(rule.into())
    }),
    function("pg_get_indexdef", 1..=3, "text", |s, a| {
        let key = a[0].as_oid().and_then(|oid| PrimaryKey::find(&s.catalog, oid));
        let key = key.filter(|key| Some(key.index_oid) == a[0].as_oid());
        Ok(match (key, a.get(1).and_then(Value::as_int)) {
            (Some(key), None | Some(0)) => index_definition(&key).into(),
            (Some(key), Some(n)) => {
                let name = usize::try_from(n - 1).ok().and_then(|n| key.column_names().get(n).copied());
                name.map(quote_identifier).into()
            }
            (None, _) => Value::Null,
        })
    }),
    function("pg_get_constraintdef", 1..=2, "text", |s, a| {
        let key = a[0].as_oid().and_then(|oid| PrimaryKey::find(&s.catalog, oid));
        let key = key.filter(|key| Some(key.constraint_oid) == a[0].as_oid());
        Ok(key.map(|key| format!("PRIMARY KEY ({})", column_list(&key))).into())
    }),
    function("pg_get_function_result", 1..=1, "text", |_, a| {
        Ok(a[0].as_oid().and_then(procedure_types).map(|(result, _)| format_type(result, None)).into())
    }),
    function("pg_get_function_arguments", 1..=1, "text", arguments),
    function("pg_get_function_identity_arguments", 1..=1, "text", arguments),
    function("obj_description", 1..=2, "text", |_, a| Ok(a[0].as_oid().and_then(comment).into())),
    function("col_description", 2..=2, "text", nothing),
    function("shobj_description", 2..=2, "text", nothing),
    function("to_regclass", 1..=1, "regclass", |s, a| {
        let name = parse_name(a[0].as_text().unwrap_or_default())?;
        Ok(relation_oid(s, &Name(name)).into())
    }),
    function("to_regnamespace", 1..=1, "regnamespace", |s, a| {
        Ok(a[0].as_text().and_then(|name| s.catalog.schema_oid(&s.names.database, name)).into())
    }),
    function("to_regrole", 1..=1, "regrole", |s, a| {
        Ok(a[0].as_text().and_then(|name| role_oid(name, &s.names.user)).into())
    }),
    function("to_regproc", 1..=1, "regproc", |_, a| Ok(a[0].as_text().map(procedure).filter(|oid| *oid != 0).into())),
    function("regclassin", 1..=1, "oid", |s, a| match (a[0].as_int(), a[0].as_text()) {
        (Some(oid), _) => Ok(oid.into()),
        (_, Some("-")) => Ok(0.into()),
        (_, Some(name)) => Ok(relation(s, name)?.into()),
        _ => Err(bad_input("regclass", &a[0])),
    }),
    function("regclassout", 1..=1, "text", |s, a| {
        Ok(a[0].as_oid().and_then(|oid| shown_name(s, oid)).map_or_else(|| number_or_dash(&a[0]), Value::from))
    }),
    function("regnamespacein", 1..=1, "oid", |s, a| match (a[0].as_int(), a[0].as_text()) {
        (Some(oid), _) => Ok(oid.into()),
        (_, Some(text)) => {
            let parts = parse_name(text)?;
            let schema = parts.first().filter(|_| parts.len() == 1);
            let oid = schema.and_then(|schema| s.catalog.schema_oid(&s.names.database, schema));
            oid.map(Value::from).ok_or_else(|| CatalogError::NoSchema(text.to_string()))
        }
        _ => Err(bad_input("regnamespace", &a[0])),
    }),
    function("regnamespaceout", 1..=1, "text", |s, a| {
        let mut schemas = s.catalog.schemas(&s.names.database).into_iter();
        let schema = schemas.find(|schema| Some(schema.oid) == a[0].as_oid());
        Ok(schema.map_or_else(|| number_or_dash(&a[0]), |schema| quote_identifier(&schema.name).into()))
    }),
    function("regrolein", 1..=1, "oid", |s, a| match (a[0].as_int(), a[0].as_text()) {
        (Some(oid), _) => Ok(oid.into()),
        (_, Some(name)) => {
            let oid = role_oid(name, &s.names.user);
            oid.map(Value::from).ok_or_else(|| CatalogError::NoRole(name.to_string()))
        }
        _ => Err(bad_input("regrole", &a[0])),
    }),
    function("regroleout", 1..=1, "text", |s, a| {
        let name = a[0].as_oid().and_then(|oid| role_name(oid, &s.names.user));
        Ok(name.map_or_else(|| number_or_dash(&a[0]), |name| quote_identifier(&name).into()))
    }),
    function("regprocin", 1..=1, "oid", |_, a| match (a[0].as_int(), a[0].as_text()) {
        (Some(oid), _) => Ok(oid.into()),
        (_, Some("-")) => Ok(0.into()),
        (_, Some(name)) => match procedure(name) {
            0 => Err(CatalogError::NoFunction(name.to_string())),
            oid => Ok(oid.into()),
        },
        _ => Err(bad_input("regproc", &a[0])),
    }),
    function("regprocout", 1..=1, "text", |_, a| {
        Ok(a[0].as_oid().and_then(procedure_name).map_or_else(|| number_or_dash(&a[0]), Value::from))
    }),
];

fn nothing(_: &SystemScope, _: &[Value]) -> Answer {
    Ok(Value::Null)
}

fn procedure(name: &str) -> Oid {
    procedure_oid(name.strip_prefix("pg_catalog.").unwrap_or(name))
}

fn arguments(_: &SystemScope, args: &[Value]) -> Answer {
    let types = args[0].as_oid().and_then(procedure_types).map(|(_, arguments)| arguments);
    let shown = types.map(|types| types.into_iter().map(|oid| format_type(oid, None)).collect::<Vec<_>>().join(", "));
    Ok(shown.into())
}

fn relation(scope: &SystemScope, text: &str) -> Result<Oid, CatalogError> {
    let name = Name(parse_name(text)?);
    relation_oid(scope, &name).ok_or_else(|| CatalogError::NoRelation { kind: "relation", name: name.0.join(".") })
}

/// Some if the OID is that of a relation.
pub(super) fn exists(scope: &SystemScope, oid: Oid) -> Option<()> {
    let object = scope.catalog.get(oid).is_some() || PrimaryKey::find(&scope.catalog, oid).is_some();
    (object || system_name(oid).is_some()).then_some(())
}

fn visible(scope: &SystemScope, oid: Oid) -> Option<bool> {
    exists(scope, oid)?;
    let oid = PrimaryKey::find(&scope.catalog, oid).map_or(oid, |key| key.table.oid);
    match system_name(oid) {
        Some((schema, _)) => Some(scope.catalog.search_path(&scope.names).iter().any(|path| path == schema)),
        None => Some(scope.catalog.is_visible(oid, &scope.names)),
    }
}

/// A view's query with a semicolon, as `pg_get_viewdef` gives it.
pub fn view_definition(object: &Object) -> Option<String> {
    object.query().map(|query| format!("{};", query.trim().trim_end_matches(';')))
}

pub fn index_definition(key: &PrimaryKey) -> String {
    let (schema, table) = (quote_identifier(&key.table.schema), quote_identifier(&key.table.name));
    let name = quote_identifier(&key.name);
    format!("CREATE UNIQUE INDEX {name} ON {schema}.{table} USING btree ({})", column_list(key))
}

fn column_list(key: &PrimaryKey) -> String {
    key.column_names().into_iter().map(quote_identifier).collect::<Vec<_>>().join(", ")
}
