//! The catalog in its durable form: names, OIDs, and objects as the statements that make them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::catalog::{Database, Schema};
use super::{Catalog, CatalogError, FIRST_USER_OID, Object, Oid};

/// All but the definitions' meaning, for which they are planned again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CatalogText {
    pub version: u64,
    pub next_oid: Oid,
    pub databases: Vec<DatabaseText>,
    /// Each after all that its definition names.
    pub objects: Vec<ObjectText>,
    /// Views that have been dropped while others read stores that were made for them; by OID.
    pub ghosts: Vec<ObjectText>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DatabaseText {
    pub oid: Oid,
    pub name: String,
    /// (OID, name).
    pub schemas: Vec<(Oid, String)>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ObjectText {
    pub oid: Oid,
    pub database: String,
    pub schema: String,
    pub name: String,
    /// What `SHOW CREATE` prints.
    pub sql: String,
    pub depends_on: Vec<Oid>,
}

impl From<&Object> for ObjectText {
    fn from(object: &Object) -> Self {
        ObjectText {
            oid: object.oid,
            database: object.database.clone(),
            schema: object.schema.clone(),
            name: object.name.clone(),
            sql: object.sql.clone(),
            depends_on: object.depends_on.clone(),
        }
    }
}

impl Catalog {
    pub fn to_text(&self) -> CatalogText {
        let databases = self.databases.iter().map(|(name, database)| DatabaseText {
            oid: database.oid,
            name: name.clone(),
            schemas: database.schemas.iter().map(|(name, schema)| (schema.oid, name.clone())).collect(),
        });
        CatalogText {
            version: self.version,
            next_oid: self.next_oid,
            databases: databases.collect(),
            objects: self.in_order_of_making().iter().map(|object| ObjectText::from(&**object)).collect(),
            ghosts: Vec::new(),
        }
    }

    /// By OID, but for an object that names a newer one, as CREATE OR REPLACE makes them: that comes first.
    fn in_order_of_making(&self) -> Vec<Arc<Object>> {
        fn visit(catalog: &Catalog, oid: Oid, seen: &mut BTreeSet<Oid>, order: &mut Vec<Arc<Object>>) {
            let Some(object) = catalog.objects.get(&oid) else { return };
            if seen.insert(oid) {
                object.depends_on.iter().for_each(|&below| visit(catalog, below, seen, order));
                order.push(object.clone());
            }
        }
        let (mut seen, mut order) = (BTreeSet::new(), Vec::new());
        self.objects.keys().for_each(|&oid| visit(self, oid, &mut seen, &mut order));
        order
    }

    /// The databases and schemas of a text; its objects are to be planned and put in, in their order.
    pub fn of_text(text: &CatalogText) -> Catalog {
        let databases = text.databases.iter().map(|database| {
            let schemas = database.schemas.iter().map(|(oid, name)| {
                let schema = Schema { oid: *oid, relations: BTreeMap::new() };
                (name.clone(), schema)
            });
            (database.name.clone(), Database { oid: database.oid, schemas: schemas.collect() })
        });
        Catalog {
            version: text.version,
            next_oid: text.next_oid.max(FIRST_USER_OID),
            databases: Arc::new(databases.collect()),
            objects: Arc::default(),
        }
    }

    /// With this object under the OID that it has. Of two with one name the later hides the earlier.
    pub fn with_restored(&self, object: Object) -> Result<Catalog, CatalogError> {
        let mut next = self.clone();
        next.next_oid = next.next_oid.max(object.oid.saturating_add(1));
        let schema = next.schema_mut(&object.database, &object.schema)?;
        schema.relations.insert(object.name.clone(), object.oid);
        Arc::make_mut(&mut next.objects).insert(object.oid, Arc::new(object));
        Ok(next)
    }
}
