//! The session, the server and what the user may do.

use super::{Answer, Function, function};
use crate::catalog::system::pg_catalog::{relation_oid, role_oid};
use crate::catalog::system::value::Value;
use crate::catalog::{CatalogError, SystemScope};
use crate::sql::Name;

/// The version of Postgres whose catalog and behaviour clients find.
pub const SERVER_VERSION: &str = "15.0";

pub(super) const FUNCTIONS: &[Function] = &[
    function("version", 0..=0, "text", |_, _| {
        Ok(format!("PostgreSQL {SERVER_VERSION} (Riverrun {})", env!("CARGO_PKG_VERSION")).into())
    }),
    function("current_database", 0..=0, "name", |s, _| Ok(s.names.database.as_str().into())),
    function("current_catalog", 0..=0, "name", |s, _| Ok(s.names.database.as_str().into())),
    function("current_user", 0..=0, "name", |s, _| Ok(s.names.user.as_str().into())),
    function("session_user", 0..=0, "name", |s, _| Ok(s.names.user.as_str().into())),
    function("current_role", 0..=0, "name", |s, _| Ok(s.names.user.as_str().into())),
    function("user", 0..=0, "name", |s, _| Ok(s.names.user.as_str().into())),
    function("current_schema", 0..=0, "name", |s, _| {
        Ok(s.catalog.explicit_search_path(&s.names).into_iter().next().into())
    }),
    function("current_schemas", 1..=1, "_name", |s, a| {
        let implicit = a[0] == Value::Bool(true);
        Ok(if implicit { s.catalog.search_path(&s.names) } else { s.catalog.explicit_search_path(&s.names) }.into())
    }),
    function("pg_backend_pid", 0..=0, "int4", |s, _| Ok(s.session.backend_pid.into())),
    function("pg_is_in_recovery", 0..=0, "bool", |_, _| Ok(false.into())),
    function("pg_my_temp_schema", 0..=0, "oid", |_, _| Ok(0.into())),
    function("pg_is_other_temp_schema", 1..=1, "bool", |_, _| Ok(false.into())),
    function("pg_postmaster_start_time", 0..=0, "timestamptz", |s, _| Ok(s.session.started_us.into())),
    function("pg_conf_load_time", 0..=0, "timestamptz", |s, _| Ok(s.session.started_us.into())),
    function("inet_client_addr", 0..=0, "text", |s, _| Ok(s.session.client.map(|a| a.ip().to_string()).into())),
    function("inet_client_port", 0..=0, "int4", |s, _| Ok(s.session.client.map(|a| i32::from(a.port())).into())),
    function("inet_server_addr", 0..=0, "text", |s, _| Ok(s.session.server.map(|a| a.ip().to_string()).into())),
    function("inet_server_port", 0..=0, "int4", |s, _| Ok(s.session.server.map(|a| i32::from(a.port())).into())),
    function("getdatabaseencoding", 0..=0, "name", |_, _| Ok("UTF8".into())),
    function("pg_client_encoding", 0..=0, "name", |s, _| Ok(s.session.settings.get("client_encoding").into())),
    function("current_setting", 1..=2, "text", |s, a| {
        let name = a[0].as_text().unwrap_or_default().to_lowercase();
        match s.session.settings.get(&name) {
            Some(value) => Ok(value.into()),
            None if a.get(1) == Some(&Value::Bool(true)) => Ok(Value::Null),
            None => Err(CatalogError::NoSetting(name)),
        }
    }),
    function("set_config", 3..=3, "text", |s, a| {
        let (Some(name), Some(value)) = (a[0].as_text(), a[1].as_text()) else { return Ok(Value::Null) };
        let local = a[2] == Value::Bool(true);
        let set = s.session.settings.set(&name.to_lowercase(), value, local);
        set.map(Value::from).map_err(CatalogError::BadArgument)
    })
    .volatile(),
    // There are no roles yet: who is connected may do everything that anybody may.
    function("pg_has_role", 2..=3, "bool", |s, a| {
        let role = &a[a.len() - 2];
        match role.as_text() {
            Some(name) if role_oid(name, &s.names.user).is_none() => Err(CatalogError::NoRole(name.to_string())),
            _ => Ok(true.into()),
        }
    }),
    function("has_table_privilege", 2..=3, "bool", |s, a| on_relation(s, &a[a.len() - 2])),
    function("has_any_column_privilege", 2..=3, "bool", |s, a| on_relation(s, &a[a.len() - 2])),
    function("has_column_privilege", 3..=4, "bool", |s, a| on_relation(s, &a[a.len() - 3])),
    function("has_schema_privilege", 2..=3, "bool", |s, a| {
        let mut schemas = s.catalog.schemas(&s.names.database).into_iter();
        match &a[a.len() - 2] {
            Value::Text(name) if !schemas.any(|schema| schema.name == *name) => {
                Err(CatalogError::NoSchema(name.clone()))
            }
            Value::Int(oid) if !schemas.any(|schema| i64::from(schema.oid) == *oid) => Ok(Value::Null),
            _ => Ok(true.into()),
        }
    }),
    function("has_database_privilege", 2..=3, "bool", |s, a| {
        let mut databases = s.catalog.databases().into_iter();
        match &a[a.len() - 2] {
            Value::Text(name) if !s.catalog.has_database(name) => Err(CatalogError::NoDatabase(name.clone())),
            Value::Int(oid) if !databases.any(|database| i64::from(database.oid) == *oid) => Ok(Value::Null),
            _ => Ok(true.into()),
        }
    }),
];

fn on_relation(scope: &SystemScope, relation: &Value) -> Answer {
    match relation {
        Value::Text(name) => match relation_oid(scope, &Name(super::text::parse_name(name)?)) {
            Some(_) => Ok(true.into()),
            None => Err(CatalogError::NoRelation { kind: "relation", name: name.clone() }),
        },
        oid => Ok(oid.as_oid().and_then(|oid| super::objects::exists(scope, oid)).map(|()| true).into()),
    }
}
