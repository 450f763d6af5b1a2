//! The rows of `pg_catalog`.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use super::definitions::Definition;
use super::relations::{PrimaryKey, Relation, default_oid, rule_oid, system_oid};
use super::rows::Rows;
use super::value::Value;
use crate::catalog::functions::{index_definition, quote_identifier, view_definition};
use crate::catalog::types::{PgType, pg_type_of, typmod_of};
use crate::catalog::{OWNER, OWNER_OID, ObjectKind, Oid, PG_CATALOG, RIVERRUN, SystemScope};

const PG_CLASS: Oid = 1259;
const PG_REWRITE: Oid = 2618;
const PG_CONSTRAINT: Oid = 2606;
const PG_NAMESPACE: Oid = 2615;
const BTREE: Oid = 403;
const UTF8: i32 = 6;
const DEFAULT_TABLESPACE: Oid = 1663;
/// The session's user has one OID whoever it is, as long as roles are not kept.
const SESSION_USER_OID: Oid = 11000;
const FIRST_WRAPPER_OID: Oid = 14000;

/// On schemas.
const COMMENTS: [(Oid, &str); 2] = [(2200, "standard public schema"), (13500, "what the engine knows of itself")];

/// The rows of `table`; none for the tables that list what does not exist here.
pub fn fill(table: &Definition, scope: &SystemScope, rows: &mut Rows) {
    match table.name {
        "pg_am" => rows.add([("oid", BTREE.into()), ("amname", "btree".into()), ("amtype", "i".into())]),
        "pg_attrdef" => attrdef(scope, rows),
        "pg_attribute" => attribute(scope, rows),
        "pg_authid" => roles(scope, |(oid, name)| {
            rows.add([
                ("oid", oid.into()),
                ("rolname", name.into()),
                ("rolsuper", true.into()),
                ("rolinherit", true.into()),
                ("rolcreaterole", true.into()),
                ("rolcreatedb", true.into()),
                ("rolcanlogin", true.into()),
                ("rolbypassrls", true.into()),
                ("rolconnlimit", (-1).into()),
            ]);
        }),
        "pg_class" => class(scope, rows),
        "pg_collation" => {
            for (oid, name, provider) in [(100u32, "default", "d"), (950, "C", "c")] {
                rows.add([
                    ("oid", oid.into()),
                    ("collname", name.into()),
                    ("collnamespace", 11.into()),
                    ("collowner", OWNER_OID.into()),
                    ("collprovider", provider.into()),
                    ("collisdeterministic", true.into()),
                    ("collencoding", (-1).into()),
                    ("collcollate", "C".into()),
                    ("collctype", "C".into()),
                ]);
            }
        }
        "pg_constraint" => constraint(scope, rows),
        "pg_database" => {
            for database in scope.catalog.databases() {
                rows.add([
                    ("oid", database.oid.into()),
                    ("datname", database.name.into()),
                    ("datdba", OWNER_OID.into()),
                    ("encoding", UTF8.into()),
                    ("datlocprovider", "c".into()),
                    ("datallowconn", true.into()),
                    ("datconnlimit", (-1).into()),
                    ("dattablespace", DEFAULT_TABLESPACE.into()),
                    ("datcollate", "C".into()),
                    ("datctype", "C".into()),
                ]);
            }
        }
        "pg_depend" => depend(scope, rows),
        "pg_description" => {
            for (oid, comment) in COMMENTS {
                rows.add([("objoid", oid.into()), ("classoid", PG_NAMESPACE.into()), ("description", comment.into())]);
            }
        }
        "pg_foreign_data_wrapper" => {
            for name in connectors(scope) {
                rows.add([
                    ("oid", wrapper_oid(&name).into()),
                    ("fdwname", name.into()),
                    ("fdwowner", OWNER_OID.into()),
                ]);
            }
        }
        "pg_foreign_server" => {
            for name in connectors(scope) {
                rows.add([
                    ("oid", server_oid(&name).into()),
                    ("srvname", name.as_str().into()),
                    ("srvowner", OWNER_OID.into()),
                    ("srvfdw", wrapper_oid(&name).into()),
                ]);
            }
        }
        "pg_foreign_table" => {
            for relation in scope.relations() {
                let Some((connector, options)) = source_options(&relation) else { continue };
                rows.add([
                    ("ftrelid", relation.oid.into()),
                    ("ftserver", server_oid(&connector).into()),
                    ("ftoptions", options.into()),
                ]);
            }
        }
        "pg_index" => index(scope, rows),
        "pg_indexes" => {
            for key in keys(scope) {
                rows.add([
                    ("schemaname", key.table.schema.clone().into()),
                    ("tablename", key.table.name.clone().into()),
                    ("indexname", key.name.clone().into()),
                    ("indexdef", index_definition(&key).into()),
                ]);
            }
        }
        "pg_language" => {
            for (oid, name) in [(12u32, "internal"), (14, "sql")] {
                rows.add([("oid", oid.into()), ("lanname", name.into()), ("lanowner", OWNER_OID.into())]);
            }
        }
        "pg_matviews" => {
            for relation in scope.relations().iter().filter(|relation| relation.kind == "m") {
                rows.add([
                    ("schemaname", relation.schema.clone().into()),
                    ("matviewname", relation.name.clone().into()),
                    ("matviewowner", OWNER.into()),
                    ("hasindexes", false.into()),
                    ("ispopulated", true.into()),
                    ("definition", relation.object.as_deref().and_then(view_definition).into()),
                ]);
            }
        }
        "pg_namespace" => {
            for schema in scope.catalog.schemas(&scope.names.database) {
                rows.add([("oid", schema.oid.into()), ("nspname", schema.name.into()), ("nspowner", OWNER_OID.into())]);
            }
        }
        "pg_proc" => procs(rows),
        "pg_rewrite" => {
            for view in views(scope) {
                rows.add([
                    ("oid", rule_oid(view.oid).into()),
                    ("rulename", "_RETURN".into()),
                    ("ev_class", view.oid.into()),
                    ("ev_type", "1".into()),
                    ("ev_enabled", "O".into()),
                    ("is_instead", true.into()),
                    ("ev_qual", "<>".into()),
                    ("ev_action", view.object.as_ref().and_then(|o| o.query().map(str::to_string)).into()),
                ]);
            }
        }
        "pg_roles" => roles(scope, |(oid, name)| {
            rows.add([
                ("rolname", name.into()),
                ("rolsuper", true.into()),
                ("rolinherit", true.into()),
                ("rolcreaterole", true.into()),
                ("rolcreatedb", true.into()),
                ("rolcanlogin", true.into()),
                ("rolreplication", false.into()),
                ("rolconnlimit", (-1).into()),
                ("rolbypassrls", true.into()),
                ("oid", oid.into()),
            ]);
        }),
        "pg_settings" => {
            for setting in scope.session.settings.all() {
                rows.add([
                    ("name", setting.name.into()),
                    ("setting", setting.value.clone().into()),
                    ("category", "Settings of the session".into()),
                    ("short_desc", setting.description.into()),
                    ("context", if setting.read_only { "internal" } else { "user" }.into()),
                    ("vartype", "string".into()),
                    ("source", if setting.value == setting.reset_value { "default" } else { "session" }.into()),
                    ("boot_val", setting.reset_value.clone().into()),
                    ("reset_val", setting.reset_value.into()),
                    ("pending_restart", false.into()),
                ]);
            }
        }
        "pg_shadow" => roles(scope, |(oid, name)| {
            rows.add([
                ("usename", name.into()),
                ("usesysid", oid.into()),
                ("usecreatedb", true.into()),
                ("usesuper", true.into()),
                ("userepl", false.into()),
                ("usebypassrls", true.into()),
            ]);
        }),
        "pg_tables" => {
            for relation in scope.relations().iter().filter(|relation| relation.kind == "r") {
                rows.add([
                    ("schemaname", relation.schema.clone().into()),
                    ("tablename", relation.name.clone().into()),
                    ("tableowner", OWNER.into()),
                    ("hasindexes", relation.primary_key().is_some().into()),
                    ("hasrules", false.into()),
                    ("hastriggers", false.into()),
                    ("rowsecurity", false.into()),
                ]);
            }
        }
        "pg_tablespace" => {
            for (oid, name) in [(DEFAULT_TABLESPACE, "pg_default"), (1664, "pg_global")] {
                rows.add([("oid", oid.into()), ("spcname", name.into()), ("spcowner", OWNER_OID.into())]);
            }
        }
        "pg_type" => types(rows),
        "pg_user" => roles(scope, |(oid, name)| {
            rows.add([
                ("usename", name.into()),
                ("usesysid", oid.into()),
                ("usecreatedb", true.into()),
                ("usesuper", true.into()),
                ("userepl", false.into()),
                ("usebypassrls", true.into()),
                ("passwd", "********".into()),
            ]);
        }),
        "pg_views" => {
            for view in views(scope).iter().filter(|view| view.kind == "v") {
                rows.add([
                    ("schemaname", view.schema.clone().into()),
                    ("viewname", view.name.clone().into()),
                    ("viewowner", OWNER.into()),
                    ("definition", view.object.as_deref().and_then(view_definition).into()),
                ]);
            }
        }
        _ => {}
    }
}

fn class(scope: &SystemScope, rows: &mut Rows) {
    for relation in scope.relations() {
        let has_key = relation.primary_key().is_some();
        rows.add([
            ("oid", relation.oid.into()),
            ("relname", relation.name.clone().into()),
            ("relnamespace", relation.schema_oid.into()),
            ("relowner", OWNER_OID.into()),
            ("reltuples", (-1.0).into()),
            ("relhasindex", has_key.into()),
            ("relpersistence", "p".into()),
            ("relkind", relation.kind.into()),
            ("relnatts", relation.columns.fields().len().into()),
            ("relhasrules", matches!(relation.kind, "v" | "m").into()),
            ("relispopulated", true.into()),
            ("relreplident", if relation.object.is_some() { "d" } else { "n" }.into()),
        ]);
    }
    for key in keys(scope) {
        rows.add([
            ("oid", key.index_oid.into()),
            ("relname", key.name.into()),
            ("relnamespace", scope.catalog.schema_oid(&key.table.database, &key.table.schema).into()),
            ("relowner", OWNER_OID.into()),
            ("relam", BTREE.into()),
            ("reltuples", (-1.0).into()),
            ("relpersistence", "p".into()),
            ("relkind", "i".into()),
            ("relnatts", key.columns.len().into()),
            ("relispopulated", true.into()),
            ("relreplident", "n".into()),
        ]);
    }
}

fn attribute(scope: &SystemScope, rows: &mut Rows) {
    let mut add = |relation: Oid, attnum: usize, field: &arrow::datatypes::Field, not_null: bool, default: bool| {
        let pg_type = pg_type_of(field);
        rows.add([
            ("attrelid", relation.into()),
            ("attname", field.name().as_str().into()),
            ("atttypid", pg_type.oid.into()),
            ("attstattarget", (-1).into()),
            ("attlen", pg_type.len.into()),
            ("attnum", attnum.into()),
            ("attndims", i32::from(pg_type.category == "A").into()),
            ("attcacheoff", (-1).into()),
            ("atttypmod", typmod_of(field).into()),
            ("attbyval", pg_type.by_value.into()),
            ("attalign", pg_type.align.into()),
            ("attstorage", pg_type.storage.into()),
            ("attnotnull", not_null.into()),
            ("atthasdef", default.into()),
            ("attislocal", true.into()),
            ("attcollation", pg_type.collation.into()),
        ]);
    };
    for relation in scope.relations() {
        for (at, field) in relation.columns.fields().iter().enumerate() {
            let default = relation.table().is_some_and(|table| table.defaults.contains_key(&at));
            add(relation.oid, at + 1, field, relation.not_null(at, field), default);
        }
    }
    for key in keys(scope) {
        for (at, column) in key.columns.iter().enumerate() {
            add(key.index_oid, at + 1, key.table.columns.field(*column), false, false);
        }
    }
}

fn attrdef(scope: &SystemScope, rows: &mut Rows) {
    for relation in scope.relations() {
        for (column, default) in relation.table().into_iter().flat_map(|table| &table.defaults) {
            rows.add([
                ("oid", default_oid(relation.oid, column + 1).into()),
                ("adrelid", relation.oid.into()),
                ("adnum", (column + 1).into()),
                ("adbin", default.as_str().into()),
            ]);
        }
    }
}

fn index(scope: &SystemScope, rows: &mut Rows) {
    for key in keys(scope) {
        let n = key.columns.len();
        rows.add([
            ("indexrelid", key.index_oid.into()),
            ("indrelid", key.table.oid.into()),
            ("indnatts", n.into()),
            ("indnkeyatts", n.into()),
            ("indisunique", true.into()),
            ("indisprimary", true.into()),
            ("indimmediate", true.into()),
            ("indisvalid", true.into()),
            ("indisready", true.into()),
            ("indislive", true.into()),
            ("indkey", attnums(&key)),
            ("indcollation", vec![0i32; n].into()),
            ("indclass", vec![0i32; n].into()),
            ("indoption", vec![0i32; n].into()),
        ]);
    }
}

fn constraint(scope: &SystemScope, rows: &mut Rows) {
    for key in keys(scope) {
        rows.add([
            ("oid", key.constraint_oid.into()),
            ("conname", key.name.clone().into()),
            ("connamespace", scope.catalog.schema_oid(&key.table.database, &key.table.schema).into()),
            ("contype", "p".into()),
            ("convalidated", true.into()),
            ("conrelid", key.table.oid.into()),
            ("conindid", key.index_oid.into()),
            ("conislocal", true.into()),
            ("connoinherit", true.into()),
            ("conkey", attnums(&key)),
        ]);
    }
}

fn attnums(key: &PrimaryKey) -> Value {
    key.columns.iter().map(|column| column + 1).collect::<Vec<usize>>().into()
}

/// A view depends on what it reads through its rule, an index on its constraint and that on its table.
fn depend(scope: &SystemScope, rows: &mut Rows) {
    let mut add = |classid: Oid, objid: Oid, refclassid: Oid, refobjid: Oid, refobjsubid: usize, deptype: &str| {
        rows.add([
            ("classid", classid.into()),
            ("objid", objid.into()),
            ("refclassid", refclassid.into()),
            ("refobjid", refobjid.into()),
            ("refobjsubid", refobjsubid.into()),
            ("deptype", deptype.into()),
        ]);
    };
    for relation in scope.relations() {
        let Some(object) = &relation.object else { continue };
        add(PG_CLASS, object.oid, PG_NAMESPACE, relation.schema_oid, 0, "n");
        // A view hangs on what it reads by its rule; a source on the table of its late rows by itself.
        let (class, id) = match object.query() {
            Some(_) => (PG_REWRITE, rule_oid(object.oid)),
            None => (PG_CLASS, object.oid),
        };
        if object.query().is_some() {
            add(class, id, PG_CLASS, object.oid, 0, "i");
        }
        for read in &object.depends_on {
            add(class, id, PG_CLASS, *read, 0, "n");
        }
    }
    for key in keys(scope) {
        add(PG_CLASS, key.index_oid, PG_CONSTRAINT, key.constraint_oid, 0, "i");
        for column in &key.columns {
            add(PG_CONSTRAINT, key.constraint_oid, PG_CLASS, key.table.oid, column + 1, "a");
        }
    }
}

fn types(rows: &mut Rows) {
    for t in PgType::all() {
        rows.add([
            ("oid", t.oid.into()),
            ("typname", t.name.into()),
            ("typnamespace", 11.into()),
            ("typowner", OWNER_OID.into()),
            ("typlen", t.len.into()),
            ("typbyval", t.by_value.into()),
            ("typtype", t.kind.into()),
            ("typcategory", t.category.into()),
            ("typispreferred", t.preferred.into()),
            ("typisdefined", true.into()),
            ("typdelim", ",".into()),
            ("typelem", t.elem.into()),
            ("typarray", t.array.into()),
            ("typinput", procedure_oid(t.input).into()),
            ("typoutput", procedure_oid(t.output).into()),
            ("typreceive", procedure_oid(t.receive).into()),
            ("typsend", procedure_oid(t.send).into()),
            ("typalign", t.align.into()),
            ("typstorage", t.storage.into()),
            ("typtypmod", (-1).into()),
            ("typcollation", t.collation.into()),
        ]);
    }
}

/// The functions that types name; SQL's functions have no OIDs here.
fn procs(rows: &mut Rows) {
    for (oid, name, returns, arguments) in procedures() {
        let arguments: Vec<i64> = arguments.split(',').filter_map(|oid| oid.parse().ok()).collect();
        rows.add([
            ("oid", oid.into()),
            ("proname", name.into()),
            ("pronamespace", 11.into()),
            ("proowner", OWNER_OID.into()),
            ("prolang", 12.into()),
            ("procost", 1.0.into()),
            ("prokind", "f".into()),
            ("proisstrict", true.into()),
            ("provolatile", "s".into()),
            ("proparallel", "s".into()),
            ("pronargs", arguments.len().into()),
            ("prorettype", returns.into()),
            ("proargtypes", arguments.into()),
            ("prosrc", name.into()),
        ]);
    }
}

/// (oid, name, OID of the result's type, OIDs of the arguments' types).
static PROCEDURES: LazyLock<Vec<(Oid, &str, Oid, &str)>> = LazyLock::new(|| {
    let lines = include_str!("procs.txt").lines().filter(|line| !line.starts_with('#'));
    let procedure = |line: &'static str| {
        let mut words = line.split(' ');
        Some((words.next()?.parse().ok()?, words.next()?, words.next()?.parse().ok()?, words.next()?))
    };
    lines.map(|line| procedure(line).expect("procs.txt has 4 columns in each line")).collect()
});

fn procedures() -> impl Iterator<Item = (Oid, &'static str, Oid, &'static str)> {
    PROCEDURES.iter().copied()
}

/// The OID of a function of `pg_proc`, 0 if there is none.
pub fn procedure_oid(name: &str) -> Oid {
    procedures().find(|procedure| procedure.1 == name).map_or(0, |procedure| procedure.0)
}

pub fn procedure_name(oid: Oid) -> Option<&'static str> {
    procedures().find(|procedure| procedure.0 == oid).map(|procedure| procedure.1)
}

/// (OID of the result's type, OIDs of the arguments' types).
pub fn procedure_types(oid: Oid) -> Option<(Oid, Vec<Oid>)> {
    let (_, _, result, arguments) = procedures().find(|procedure| procedure.0 == oid)?;
    Some((result, arguments.split(',').filter_map(|oid| oid.parse().ok()).collect()))
}

pub fn comment(oid: Oid) -> Option<&'static str> {
    COMMENTS.iter().find(|comment| comment.0 == oid).map(|comment| comment.1)
}

/// The owner of everything and the session's user, each once.
fn roles(scope: &SystemScope, mut add: impl FnMut((Oid, String))) {
    add((OWNER_OID, OWNER.to_string()));
    if scope.names.user != OWNER {
        add((SESSION_USER_OID, scope.names.user.clone()));
    }
}

/// The name of a role.
pub fn role_name(oid: Oid, user: &str) -> Option<String> {
    match oid {
        OWNER_OID => Some(OWNER.to_string()),
        SESSION_USER_OID => Some(user.to_string()),
        _ => None,
    }
}

pub fn role_oid(name: &str, user: &str) -> Option<Oid> {
    if name == OWNER {
        return Some(OWNER_OID);
    }
    (name == user).then_some(SESSION_USER_OID)
}

pub fn keys(scope: &SystemScope) -> Vec<PrimaryKey> {
    scope.relations().iter().filter_map(Relation::primary_key).collect()
}

pub fn views(scope: &SystemScope) -> Vec<Relation> {
    let mut relations = scope.relations();
    relations.retain(|relation| relation.object.as_ref().is_some_and(|object| object.query().is_some()));
    relations
}

/// The connectors that sources of this database use: each is a foreign server for Postgres's tools.
pub fn connectors(scope: &SystemScope) -> BTreeSet<String> {
    scope.relations().iter().filter_map(|relation| source_options(relation).map(|(connector, _)| connector)).collect()
}

/// A hash (FNV-1a) of the connector's name, so that it stays whatever other connectors are in use.
fn wrapper_oid(connector: &str) -> Oid {
    let hash = connector.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    FIRST_WRAPPER_OID + hash % 400
}

fn server_oid(connector: &str) -> Oid {
    wrapper_oid(connector) + 400
}

/// A source's connector and its options as `key=value`; what is secret is not shown.
pub fn source_options(relation: &Relation) -> Option<(String, Vec<String>)> {
    let Some(ObjectKind::Source(source)) = relation.object.as_ref().map(|object| &object.kind) else { return None };
    let connector = source.options.get("connector").cloned().unwrap_or_default();
    let shown = source.options.iter().filter(|(key, _)| *key != "connector");
    let options = shown.map(|(key, value)| {
        let secret = ["password", "secret", "token", "jaas", "key.pem"].iter().any(|word| key.contains(word));
        format!("{key}={}", if secret { "********" } else { value })
    });
    Some((connector, options.collect()))
}

/// The name as text that `regclass` shows: qualified where the search path does not find it, quoted where it must be.
pub fn shown_name(scope: &SystemScope, oid: Oid) -> Option<String> {
    let (schema, name, visible) = match scope.catalog.get(oid) {
        Some(object) => (object.schema.clone(), object.name.clone(), scope.catalog.is_visible(oid, &scope.names)),
        None => match PrimaryKey::find(&scope.catalog, oid) {
            Some(key) => {
                let visible = scope.catalog.is_visible(key.table.oid, &scope.names);
                (key.table.schema.clone(), key.name, visible)
            }
            None => {
                let (schema, name) = super::relations::system_name(oid)?;
                let path = scope.catalog.search_path(&scope.names);
                (schema.to_string(), name.to_string(), path.iter().any(|s| s == schema))
            }
        },
    };
    let name = quote_identifier(&name);
    Some(if visible { name } else { format!("{}.{name}", quote_identifier(&schema)) })
}

/// The relation that a name means: an object, an index or a system table.
pub fn relation_oid(scope: &SystemScope, name: &crate::sql::Name) -> Option<Oid> {
    let database = &scope.names.database;
    scope.catalog.candidates(name, &scope.names).ok()?.into_iter().find_map(|(schema, relation)| {
        if schema == PG_CATALOG || schema == RIVERRUN || schema == "information_schema" {
            return system_oid(&schema, &relation);
        }
        let qualified = crate::sql::Name(vec![schema.clone(), relation.clone()]);
        if let Ok(object) = scope.catalog.resolve(&qualified, &scope.names) {
            return Some(object.oid);
        }
        let mut objects = scope.catalog.objects(database).filter(|object| object.schema == schema);
        objects.find_map(|object| PrimaryKey::of(&object).filter(|key| key.name == relation)).map(|key| key.index_oid)
    })
}
