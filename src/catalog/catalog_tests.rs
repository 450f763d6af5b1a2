use arrow::datatypes::Schema as Columns;
use insta::assert_snapshot;

use super::*;

/// A catalog made by lines such as `view v <- t s.u`, in database `dev`; names may be qualified by a schema.
fn catalog(lines: &[&str]) -> Catalog {
    let mut catalog = Catalog::new();
    for line in lines {
        let (head, reads) = line.split_once(" <- ").unwrap_or((line, ""));
        let (kind, name) = head.split_once(' ').expect("kind and name");
        if kind == "schema" {
            catalog = catalog.create_schema("dev", name).expect("schema");
            continue;
        }
        let kind = match kind {
            "view" => ObjectKind::View { query: String::new() },
            "table" => ObjectKind::Table(Arc::new(crate::catalog::Table {
                primary_key: vec![],
                not_null: vec![],
                defaults: BTreeMap::new(),
                append_only: false,
                watermark: None,
                on_conflict: crate::sql::OnConflict::Error,
            })),
            other => panic!("no kind {other}"),
        };
        let (database, schema, name) = catalog.target_schema(&self::name(name), &ctx()).expect("target");
        let depends_on =
            reads.split_whitespace().map(|r| catalog.resolve(&self::name(r), &ctx()).expect("read").oid).collect();
        let columns = Arc::new(Columns::empty());
        let object = Object { oid: 0, database, schema, name, sql: String::new(), columns, kind, depends_on };
        catalog = catalog.create(object).expect("create").0;
    }
    catalog
}

fn ctx() -> NameContext {
    NameContext::new("dev", "ann")
}

fn name(text: &str) -> Name {
    Name(text.split('.').map(str::to_string).collect())
}

/// What `drop` (kind, names, options) does: the names dropped in order and the notices, or the error with detail and hint.
fn check(lines: &[&str], kind: ObjectType, names: &str, if_exists: bool, cascade: bool) -> String {
    let catalog = catalog(lines);
    let names: Vec<Name> = names.split(' ').map(name).collect();
    match catalog.drop_plan(kind, &names, if_exists, cascade, &ctx()) {
        Ok(plan) => {
            let names: Vec<String> = plan.oids.iter().map(|o| catalog.get(*o).expect("object").name.clone()).collect();
            let after = catalog.after_drop(&plan).expect("the plan can be carried out");
            assert!(plan.oids.iter().all(|oid| after.get(*oid).is_none()));
            format!("{}\n{}", names.join(" "), plan.notices.join("\n"))
        }
        Err(e) => format!("{e}\n{}\n{}", e.detail().unwrap_or_default(), e.hint().unwrap_or_default()),
    }
}

const CHAIN: [&str; 5] = ["table t", "view a <- t", "schema s", "view s.b <- a t", "table u"];

#[test]
fn drops_dependents_first() {
    assert_snapshot!(check(&CHAIN, ObjectType::Table, "t", false, true), @r"
    b a t
    drop cascades to 2 other objects: view a, view s.b
    ");
    assert_snapshot!(check(&CHAIN, ObjectType::Schema, "s", false, true), @r"
    b
    drop cascades to view s.b
    ");
    assert_snapshot!(check(&CHAIN, ObjectType::View, "a s.b nix", true, false), @r#"
    b a
    view "nix" does not exist, skipping
    "#);
}

#[test]
fn refuses_to_drop() {
    assert_snapshot!(check(&CHAIN, ObjectType::Table, "t", false, false), @r"
    cannot drop table t because other objects depend on it
    view a depends on table t
    view s.b depends on table t
    Use DROP ... CASCADE to drop the dependent objects too.
    ");
    assert_snapshot!(check(&CHAIN, ObjectType::Table, "t u", false, false).lines().next().unwrap_or_default(), @"cannot drop desired object(s) because other objects depend on them");
    assert_snapshot!(check(&CHAIN, ObjectType::View, "t", false, false), @r#"
    "t" is not a view

    Use DROP TABLE to remove a table.
    "#);
    assert_snapshot!(check(&CHAIN, ObjectType::Schema, "s", false, false).lines().nth(1).unwrap_or_default(), @"view s.b depends on schema s");
    assert_snapshot!(check(&CHAIN, ObjectType::Table, "pg_catalog.pg_class", false, false).trim(), @r#"permission denied: "pg_catalog.pg_class" belongs to the system"#);
    assert_snapshot!(check(&CHAIN, ObjectType::Database, "dev", false, false).trim(), @"cannot drop the currently open database");
}

#[test]
fn names_resolve_along_the_search_path() {
    let catalog = catalog(&["table t", "schema ann", "table ann.t", "schema s", "table s.only"]);
    let resolve = |text: &str| match catalog.resolve(&name(text), &ctx()) {
        Ok(object) => format!("{}.{}", object.schema, object.name),
        Err(e) => e.to_string(),
    };
    assert_eq!(resolve("t"), "ann.t");
    assert_eq!(resolve("public.t"), "public.t");
    assert_eq!(resolve("dev.public.t"), "public.t");
    assert_eq!(resolve("only"), "relation \"only\" does not exist");
    assert_eq!(resolve("x.t"), "schema \"x\" does not exist");
    assert_eq!(resolve("other.public.t"), "cross-database references are not implemented: \"other.public.t\"");
    assert_eq!(catalog.search_path(&ctx()), ["pg_catalog", "ann", "public"]);
    assert_eq!(catalog.target_schema(&name("n"), &ctx()), Ok(("dev".into(), "ann".into(), "n".into())));
}

#[test]
fn oids_are_never_used_again() {
    let one = catalog(&["table t"]);
    let t = one.resolve(&name("t"), &ctx()).expect("t").oid;
    let object = Object::clone(&one.get(t).expect("t"));
    assert_eq!(one.create(object.clone()).err(), Some(CatalogError::RelationExists("t".into())));
    let (again, oid) = one.dropped(&[t]).create(object).expect("the name is free");
    assert!(oid > t && again.version() > one.version());
    assert!(again.create_database("two").and_then(|c| c.drop_database("two")).is_ok());
}
