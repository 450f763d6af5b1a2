//! One immutable version of all names.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::error::word;
use super::{CatalogError, FIRST_USER_OID, Object, ObjectKind, Oid};
use crate::sql::{Name, ObjectType};

/// The database that is there from the start, and its OID.
pub const DEFAULT_DATABASE: &str = "dev";
const DEFAULT_DATABASE_OID: Oid = 5;
pub const PUBLIC: &str = "public";
pub const PG_CATALOG: &str = "pg_catalog";
pub const INFORMATION_SCHEMA: &str = "information_schema";
pub const RIVERRUN: &str = "riverrun";

/// Who owns everything until roles exist.
pub const OWNER: &str = "riverrun";
pub const OWNER_OID: Oid = 10;

/// Schemas of every database, with the OIDs that Postgres gives them where it has them. All but `public` are read-only.
const FIXED_SCHEMAS: [(&str, Oid); 4] =
    [(PG_CATALOG, 11), (PUBLIC, 2200), (INFORMATION_SCHEMA, 13000), (RIVERRUN, 13500)];

/// What unqualified names mean to a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameContext {
    pub database: String,
    /// As set; `$user` stands for the user's name. Schemas that do not exist are passed over.
    pub search_path: Vec<String>,
    pub user: String,
}

impl NameContext {
    /// The default search path, `"$user", public`.
    pub fn new(database: impl Into<String>, user: impl Into<String>) -> NameContext {
        NameContext {
            database: database.into(),
            search_path: vec!["$user".to_string(), PUBLIC.to_string()],
            user: user.into(),
        }
    }
}

/// One version of the catalog. A change makes another; a clone costs two reference counts.
#[derive(Debug, Clone)]
pub struct Catalog {
    pub(super) version: u64,
    pub(super) next_oid: Oid,
    pub(super) databases: Arc<BTreeMap<String, Database>>,
    pub(super) objects: Arc<BTreeMap<Oid, Arc<Object>>>,
}

#[derive(Debug, Clone)]
pub(super) struct Database {
    pub oid: Oid,
    pub schemas: BTreeMap<String, Schema>,
}

#[derive(Debug, Clone)]
pub(super) struct Schema {
    pub oid: Oid,
    /// Sources, tables, views and materialized views share one namespace.
    pub relations: BTreeMap<String, Oid>,
}

/// A database or a schema, for listings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    pub oid: Oid,
    pub name: String,
    pub owner: String,
}

/// What a DROP takes away.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DropPlan {
    /// Objects, dependents before what they depend on.
    pub oids: Vec<Oid>,
    /// (database, schema), to go after the objects.
    pub schemas: Vec<(String, String)>,
    pub databases: Vec<String>,
    /// NOTICEs in order.
    pub notices: Vec<String>,
}

impl Default for Catalog {
    fn default() -> Self {
        Catalog::new()
    }
}

impl Database {
    fn new(oid: Oid) -> Database {
        let schemas = FIXED_SCHEMAS
            .iter()
            .map(|(name, oid)| (name.to_string(), Schema { oid: *oid, relations: BTreeMap::new() }))
            .collect();
        Database { oid, schemas }
    }
}

/// True of the schemas that only the system fills.
pub fn is_system_schema(schema: &str) -> bool {
    matches!(schema, PG_CATALOG | INFORMATION_SCHEMA | RIVERRUN)
}

impl Catalog {
    /// The database `dev` with the schema `public` and the system schemas.
    pub fn new() -> Catalog {
        let databases = BTreeMap::from([(DEFAULT_DATABASE.to_string(), Database::new(DEFAULT_DATABASE_OID))]);
        Catalog {
            version: 0,
            next_oid: FIRST_USER_OID,
            databases: Arc::new(databases),
            objects: Arc::new(BTreeMap::new()),
        }
    }

    /// Grows with every change.
    pub fn version(&self) -> u64 {
        self.version
    }

    pub fn get(&self, oid: Oid) -> Option<Arc<Object>> {
        self.objects.get(&oid).cloned()
    }

    /// The objects of one database, by OID.
    pub fn objects(&self, database: &str) -> impl Iterator<Item = Arc<Object>> {
        self.objects.values().filter(move |object| object.database == database).cloned()
    }

    /// By name.
    pub fn databases(&self) -> Vec<Namespace> {
        self.databases.iter().map(|(name, database)| namespace(name, database.oid)).collect()
    }

    /// By name, the system schemas among them; empty if there is no such database.
    pub fn schemas(&self, database: &str) -> Vec<Namespace> {
        let schemas = self.databases.get(database).map(|database| &database.schemas);
        schemas.into_iter().flatten().map(|(name, schema)| namespace(name, schema.oid)).collect()
    }

    pub fn has_database(&self, database: &str) -> bool {
        self.databases.contains_key(database)
    }

    /// The schemas in which an unqualified name is sought, in order. `pg_catalog` is first unless the path names it.
    pub fn search_path(&self, ctx: &NameContext) -> Vec<String> {
        let mut path = self.explicit_search_path(ctx);
        if !path.iter().any(|schema| schema == PG_CATALOG) {
            path.insert(0, PG_CATALOG.to_string());
        }
        path
    }

    /// The search path without what is sought implicitly: what `current_schemas(false)` shows.
    pub fn explicit_search_path(&self, ctx: &NameContext) -> Vec<String> {
        let Some(database) = self.databases.get(&ctx.database) else { return Vec::new() };
        let mut path: Vec<String> = Vec::new();
        for schema in &ctx.search_path {
            let schema = if schema == "$user" { &ctx.user } else { schema };
            if database.schemas.contains_key(schema) && !path.contains(schema) {
                path.push(schema.clone());
            }
        }
        path
    }

    /// The places where `name` may stand, in the order in which they are tried: (schema, name). System schemas are among
    /// them; their tables are no objects of the catalog but of [`super::SystemTables`].
    pub fn candidates(&self, name: &Name, ctx: &NameContext) -> Result<Vec<(String, String)>, CatalogError> {
        let (schema, relation) = split(name, ctx)?;
        match schema {
            Some(schema) => {
                self.schema(&ctx.database, schema)?;
                Ok(vec![(schema.to_string(), relation.to_string())])
            }
            None => Ok(self.search_path(ctx).into_iter().map(|schema| (schema, relation.to_string())).collect()),
        }
    }

    /// The source, table, view or materialized view that `name` means.
    pub fn resolve(&self, name: &Name, ctx: &NameContext) -> Result<Arc<Object>, CatalogError> {
        for (schema, relation) in self.candidates(name, ctx)? {
            if let Some(oid) = self.relation(&ctx.database, &schema, &relation) {
                return Ok(Arc::clone(&self.objects[&oid]));
            }
        }
        Err(CatalogError::NoRelation { kind: "relation", name: written(name) })
    }

    /// Where CREATE puts `name`: (database, schema, name).
    pub fn target_schema(&self, name: &Name, ctx: &NameContext) -> Result<(String, String, String), CatalogError> {
        let (schema, relation) = split(name, ctx)?;
        let schema = match schema {
            Some(schema) => {
                self.schema(&ctx.database, schema)?;
                schema.to_string()
            }
            None => self.explicit_search_path(ctx).into_iter().next().ok_or(CatalogError::NoTargetSchema)?,
        };
        if is_system_schema(&schema) {
            return Err(CatalogError::System(format!("schema \"{schema}\"")));
        }
        Ok((ctx.database.clone(), schema, relation.to_string()))
    }

    /// Adds `object` under a fresh OID, whatever its `oid` says.
    pub fn create(&self, object: Object) -> Result<(Catalog, Oid), CatalogError> {
        if is_system_schema(&object.schema) {
            return Err(CatalogError::System(format!("schema \"{}\"", object.schema)));
        }
        let mut next = self.next();
        let oid = next.fresh_oid();
        let schema = next.schema_mut(&object.database, &object.schema)?;
        if schema.relations.contains_key(&object.name) {
            return Err(CatalogError::RelationExists(object.name));
        }
        schema.relations.insert(object.name.clone(), oid);
        Arc::make_mut(&mut next.objects).insert(oid, Arc::new(Object { oid, ..object }));
        Ok((next, oid))
    }

    /// CREATE OR REPLACE VIEW: `object` takes the place and the OID of the view of its name. The old columns must be the
    /// first of the new, so that what depends on them stays valid.
    pub fn replace_view(&self, object: Object) -> Result<(Catalog, Oid), CatalogError> {
        let Some(oid) = self.relation(&object.database, &object.schema, &object.name) else {
            return self.create(object);
        };
        let old = &self.objects[&oid];
        if !matches!(old.kind, ObjectKind::View { .. }) {
            let (name, is) = (object.name, old.kind.object_type());
            return Err(CatalogError::WrongKind { name, wanted: ObjectType::View, is });
        }
        for (i, was) in old.columns.fields().iter().enumerate() {
            let Some(now) = object.columns.fields().get(i) else {
                return Err(CatalogError::ViewColumns("cannot drop columns from view".into()));
            };
            if was.name() != now.name() {
                let message = format!("cannot change name of view column \"{}\" to \"{}\"", was.name(), now.name());
                return Err(CatalogError::ViewColumns(message));
            }
            if was.data_type() != now.data_type() {
                let message = format!("cannot change data type of view column \"{}\"", was.name());
                return Err(CatalogError::ViewColumns(message));
            }
        }
        let mut next = self.next();
        Arc::make_mut(&mut next.objects).insert(oid, Arc::new(Object { oid, ..object }));
        Ok((next, oid))
    }

    /// The catalog with this object in the place of the one of its OID and name.
    pub fn with_replaced(&self, object: Arc<Object>) -> Catalog {
        let mut next = self.next();
        Arc::make_mut(&mut next.objects).insert(object.oid, object);
        next
    }

    pub fn create_schema(&self, database: &str, schema: &str) -> Result<Catalog, CatalogError> {
        if schema.starts_with("pg_") {
            return Err(CatalogError::ReservedSchema(schema.to_string()));
        }
        let mut next = self.next();
        let oid = next.fresh_oid();
        let database = next.database_mut(database)?;
        if database.schemas.contains_key(schema) {
            return Err(CatalogError::SchemaExists(schema.to_string()));
        }
        database.schemas.insert(schema.to_string(), Schema { oid, relations: BTreeMap::new() });
        Ok(next)
    }

    pub fn create_database(&self, database: &str) -> Result<Catalog, CatalogError> {
        if self.databases.contains_key(database) {
            return Err(CatalogError::DatabaseExists(database.to_string()));
        }
        let mut next = self.next();
        let oid = next.fresh_oid();
        Arc::make_mut(&mut next.databases).insert(database.to_string(), Database::new(oid));
        Ok(next)
    }

    /// The database and schema that `CREATE SCHEMA name` or `DROP SCHEMA name` means.
    pub fn schema_name(&self, name: &Name, ctx: &NameContext) -> Result<(String, String), CatalogError> {
        // One part more than a schema has makes `split` read it as `schema.relation`; so do it with the parts it has.
        match name.0.as_slice() {
            [schema] => Ok((ctx.database.clone(), schema.clone())),
            [database, schema] if *database == ctx.database => Ok((ctx.database.clone(), schema.clone())),
            [_, _] => Err(CatalogError::CrossDatabase(written(name))),
            _ => Err(CatalogError::TooManyParts(written(name))),
        }
    }

    /// Removes an empty schema.
    pub fn drop_schema(&self, database: &str, schema: &str) -> Result<Catalog, CatalogError> {
        if is_system_schema(schema) {
            return Err(CatalogError::System(format!("schema \"{schema}\"")));
        }
        let held = self.schema(database, schema)?.relations.values().map(|oid| &self.objects[oid]);
        let what = format!("schema {schema}");
        let dependents: Vec<String> = held.map(|o| format!("{} depends on {what}", describe(o, false))).collect();
        if !dependents.is_empty() {
            return Err(CatalogError::DependedOn { what, dependents });
        }
        let mut next = self.next();
        next.database_mut(database)?.schemas.remove(schema);
        Ok(next)
    }

    /// Removes a database and all that is in it.
    pub fn drop_database(&self, database: &str) -> Result<Catalog, CatalogError> {
        let held: Vec<Oid> = self.objects(database).map(|object| object.oid).collect();
        let mut next = self.dropped(&held);
        match Arc::make_mut(&mut next.databases).remove(database) {
            Some(_) => Ok(next),
            None => Err(CatalogError::NoDatabase(database.to_string())),
        }
    }

    /// The catalog without these objects. Unknown OIDs are passed over.
    pub fn dropped(&self, oids: &[Oid]) -> Catalog {
        let mut next = self.next();
        for oid in oids {
            let Some(object) = Arc::make_mut(&mut next.objects).remove(oid) else { continue };
            if let Ok(schema) = next.schema_mut(&object.database, &object.schema) {
                schema.relations.remove(&object.name);
            }
        }
        next
    }

    /// The catalog after a DROP.
    pub fn after_drop(&self, plan: &DropPlan) -> Result<Catalog, CatalogError> {
        let mut next = self.dropped(&plan.oids);
        for (database, schema) in &plan.schemas {
            next = next.drop_schema(database, schema)?;
        }
        for database in &plan.databases {
            next = next.drop_database(database)?;
        }
        Ok(next)
    }

    /// The objects whose definitions read `oid` directly, by OID.
    pub fn dependents(&self, oid: Oid) -> Vec<Oid> {
        self.objects.values().filter(|object| object.depends_on.contains(&oid)).map(|object| object.oid).collect()
    }

    /// What `DROP kind names [CASCADE]` takes away. Without CASCADE an error if anything else depends on it.
    pub fn drop_plan(
        &self,
        kind: ObjectType,
        names: &[Name],
        if_exists: bool,
        cascade: bool,
        ctx: &NameContext,
    ) -> Result<DropPlan, CatalogError> {
        let mut plan = DropPlan::default();
        // What is named, then the objects inside named schemas: these need CASCADE as if they depended on the schema.
        let mut roots: Vec<Oid> = Vec::new();
        let mut inside: Vec<(Oid, String)> = Vec::new();
        for name in names {
            match self.drop_one(kind, name, ctx, &mut plan, &mut roots, &mut inside) {
                Err(
                    e @ (CatalogError::NoRelation { .. } | CatalogError::NoSchema(_) | CatalogError::NoDatabase(_)),
                ) if if_exists => plan.notices.push(format!("{e}, skipping")),
                other => other?,
            }
        }
        if kind == ObjectType::Database {
            plan.oids = self.in_drop_order(&roots);
            return Ok(plan);
        }

        let mut dropped: BTreeSet<Oid> = roots.iter().copied().collect();
        let mut others: Vec<Oid> = Vec::new();
        let mut lines: Vec<String> = Vec::new();
        for (oid, schema) in inside {
            if dropped.insert(oid) {
                others.push(oid);
                lines.push(format!("{} depends on schema {schema}", self.describe_in(&self.objects[&oid], ctx)));
            }
        }
        let mut queue: Vec<Oid> = roots.iter().chain(&others).copied().collect();
        let mut at = 0;
        while at < queue.len() {
            let oid = queue[at];
            at += 1;
            for dependent in self.dependents(oid) {
                if dropped.insert(dependent) {
                    queue.push(dependent);
                    others.push(dependent);
                    let (a, b) = (&self.objects[&dependent], &self.objects[&oid]);
                    lines.push(format!("{} depends on {}", self.describe_in(a, ctx), self.describe_in(b, ctx)));
                }
            }
        }
        if !others.is_empty() && !cascade {
            let what = match (names, roots.as_slice()) {
                ([_], [root]) => self.describe_in(&self.objects[root], ctx),
                ([name], _) => format!("{} {}", word(kind), written(name)),
                _ => "desired object(s)".to_string(),
            };
            return Err(CatalogError::DependedOn { what, dependents: lines });
        }
        let listed: Vec<String> = others.iter().map(|oid| self.describe_in(&self.objects[oid], ctx)).collect();
        match listed.as_slice() {
            [] => {}
            [one] => plan.notices.push(format!("drop cascades to {one}")),
            more => plan.notices.push(format!("drop cascades to {} other objects: {}", more.len(), more.join(", "))),
        }
        let all: Vec<Oid> = dropped.into_iter().collect();
        plan.oids = self.in_drop_order(&all);
        Ok(plan)
    }

    fn drop_one(
        &self,
        kind: ObjectType,
        name: &Name,
        ctx: &NameContext,
        plan: &mut DropPlan,
        roots: &mut Vec<Oid>,
        inside: &mut Vec<(Oid, String)>,
    ) -> Result<(), CatalogError> {
        match kind {
            ObjectType::Database => {
                let [database] = name.0.as_slice() else { return Err(CatalogError::TooManyParts(written(name))) };
                if !self.has_database(database) {
                    return Err(CatalogError::NoDatabase(database.clone()));
                }
                if *database == ctx.database {
                    return Err(CatalogError::CurrentDatabase);
                }
                roots.extend(self.objects(database).map(|object| object.oid));
                plan.databases.push(database.clone());
            }
            ObjectType::Schema => {
                let (database, schema) = self.schema_name(name, ctx)?;
                if is_system_schema(&schema) {
                    return Err(CatalogError::System(format!("schema \"{schema}\"")));
                }
                let held = self.schema(&database, &schema)?;
                inside.extend(held.relations.values().map(|oid| (*oid, schema.clone())));
                plan.schemas.push((database, schema));
            }
            relation => {
                let object = self.resolve(name, ctx).map_err(|e| match e {
                    CatalogError::NoRelation { name: written, .. } => match split(name, ctx) {
                        Ok((Some(schema), _)) if is_system_schema(schema) => {
                            CatalogError::System(format!("\"{written}\""))
                        }
                        _ => CatalogError::NoRelation { kind: word(relation), name: written },
                    },
                    other => other,
                })?;
                let is = object.kind.object_type();
                if is != relation {
                    return Err(CatalogError::WrongKind { name: object.name.clone(), wanted: relation, is });
                }
                if !roots.contains(&object.oid) {
                    roots.push(object.oid);
                }
            }
        }
        Ok(())
    }

    /// Dependents first; among the rest the newest first.
    fn in_drop_order(&self, oids: &[Oid]) -> Vec<Oid> {
        let mut left: BTreeSet<Oid> = oids.iter().copied().collect();
        let mut order = Vec::with_capacity(left.len());
        while !left.is_empty() {
            let free = left.iter().rev().find(|oid| !self.dependents(**oid).iter().any(|d| left.contains(d)));
            let oid = *free.expect("definitions read only what was there before them, so they form no cycle");
            left.remove(&oid);
            order.push(oid);
        }
        order
    }

    /// "table t", qualified unless the search path finds it.
    fn describe_in(&self, object: &Object, ctx: &NameContext) -> String {
        describe(object, self.is_visible(object.oid, ctx))
    }

    /// True if the object's bare name means it.
    pub fn is_visible(&self, oid: Oid, ctx: &NameContext) -> bool {
        let Some(object) = self.objects.get(&oid) else { return false };
        self.resolve(&Name(vec![object.name.clone()]), ctx).is_ok_and(|found| found.oid == oid)
    }

    /// The OID of a schema.
    pub fn schema_oid(&self, database: &str, schema: &str) -> Option<Oid> {
        self.schema(database, schema).ok().map(|schema| schema.oid)
    }

    fn relation(&self, database: &str, schema: &str, relation: &str) -> Option<Oid> {
        self.databases.get(database)?.schemas.get(schema)?.relations.get(relation).copied()
    }

    fn schema(&self, database: &str, schema: &str) -> Result<&Schema, CatalogError> {
        let database = self.databases.get(database).ok_or_else(|| CatalogError::NoDatabase(database.to_string()))?;
        database.schemas.get(schema).ok_or_else(|| CatalogError::NoSchema(schema.to_string()))
    }

    fn next(&self) -> Catalog {
        Catalog { version: self.version + 1, ..self.clone() }
    }

    fn fresh_oid(&mut self) -> Oid {
        let oid = self.next_oid;
        self.next_oid += 1;
        oid
    }

    fn database_mut(&mut self, database: &str) -> Result<&mut Database, CatalogError> {
        let databases = Arc::make_mut(&mut self.databases);
        databases.get_mut(database).ok_or_else(|| CatalogError::NoDatabase(database.to_string()))
    }

    pub(super) fn schema_mut(&mut self, database: &str, schema: &str) -> Result<&mut Schema, CatalogError> {
        let database = self.database_mut(database)?;
        database.schemas.get_mut(schema).ok_or_else(|| CatalogError::NoSchema(schema.to_string()))
    }
}

impl ObjectKind {
    pub fn object_type(&self) -> ObjectType {
        match self {
            ObjectKind::Source(_) => ObjectType::Source,
            ObjectKind::Table(_) => ObjectType::Table,
            ObjectKind::View { .. } => ObjectType::View,
            ObjectKind::MaterializedView(_) => ObjectType::MaterializedView,
        }
    }
}

fn namespace(name: &str, oid: Oid) -> Namespace {
    Namespace { oid, name: name.to_string(), owner: OWNER.to_string() }
}

/// (schema if named, relation).
fn split<'a>(name: &'a Name, ctx: &NameContext) -> Result<(Option<&'a str>, &'a str), CatalogError> {
    match name.0.as_slice() {
        [relation] => Ok((None, relation)),
        [schema, relation] => Ok((Some(schema), relation)),
        [database, schema, relation] if *database == ctx.database => Ok((Some(schema), relation)),
        [_, _, _] => Err(CatalogError::CrossDatabase(written(name))),
        _ => Err(CatalogError::TooManyParts(written(name))),
    }
}

fn written(name: &Name) -> String {
    name.0.join(".")
}

fn describe(object: &Object, bare: bool) -> String {
    let kind = word(object.kind.object_type());
    if bare { format!("{kind} {}", object.name) } else { format!("{kind} {}.{}", object.schema, object.name) }
}

#[cfg(test)]
#[path = "catalog_tests.rs"]
mod tests;
