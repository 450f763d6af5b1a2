//! What tools ask of the system tables, run on DataFusion as the planner runs it: parse, rewrite, plan, execute. The
//! catalog under test has a source, a table, a view and a materialized view.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::util::pretty::pretty_format_batches;
use async_trait::async_trait;
use datafusion::catalog::{MemoryCatalogProvider, SchemaProvider, TableProvider};
use datafusion::common::Result;
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion::sql::parser::Statement;
use insta::assert_snapshot;
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser;

use super::*;
use crate::sql::{Name, OnConflict};

struct NoSettings;

impl Settings for NoSettings {
    fn get(&self, name: &str) -> Option<String> {
        self.all().into_iter().find(|setting| setting.name == name).map(|setting| setting.value)
    }

    fn all(&self) -> Vec<Setting> {
        let setting = |name: &str, value: &str| Setting {
            name: name.into(),
            value: value.into(),
            reset_value: value.into(),
            description: String::new(),
            read_only: false,
        };
        vec![setting("search_path", "\"$user\", public"), setting("server_version_num", "150000")]
    }

    fn set(&self, name: &str, _: &str, _: bool) -> std::result::Result<String, String> {
        Err(format!("{name} cannot be changed"))
    }
}

/// One table of the engine, `riverrun.sources`.
struct Engine;

impl SystemTables for Engine {
    fn table(&self, schema: &str, name: &str) -> Option<Arc<dyn TableProvider>> {
        let (_, _, columns) = self.names().into_iter().find(|(s, n, _)| s == schema && n == name)?;
        let empty = RecordBatch::new_empty(Arc::clone(&columns));
        Some(Arc::new(datafusion::datasource::MemTable::try_new(columns, vec![vec![empty]]).ok()?))
    }

    fn names(&self) -> Vec<(String, String, SchemaRef)> {
        let columns = Schema::new(vec![Field::new("name", DataType::Utf8, false)]);
        vec![(RIVERRUN.into(), "sources".into(), Arc::new(columns))]
    }
}

fn scope() -> SystemScope {
    let names = NameContext::new("dev", "ann");
    let mut catalog = Catalog::new();
    let mut create = |name: &str, columns: Vec<Field>, kind: ObjectKind, reads: &[&str]| {
        let reads = reads.iter().map(|read| catalog.resolve(&Name(vec![read.to_string()]), &names).expect("read").oid);
        let object = Object {
            oid: 0,
            database: "dev".into(),
            schema: PUBLIC.into(),
            name: name.into(),
            sql: String::new(),
            columns: Arc::new(Schema::new(columns)),
            kind,
            depends_on: reads.collect(),
        };
        catalog = catalog.create(object).expect("created").0;
    };
    let at = || Field::new("at", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true);
    let varchar = |name: &str| PgType::by_name("varchar").expect("varchar").field(name);
    let ad = || Field::new("ad_id", DataType::Int64, true);
    let source = Source {
        options: [("connector", "kafka"), ("topic", "events"), ("properties.sasl.password", "hidden")]
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .into(),
        watermark: None,
        includes: vec![],
        not_null: vec![0],
    };
    create("src", vec![ad(), at()], ObjectKind::Source(Arc::new(source)), &[]);
    let table = Table {
        primary_key: vec![0],
        not_null: vec![1],
        defaults: BTreeMap::from([(1, "'x'".to_string())]),
        append_only: false,
        watermark: None,
        on_conflict: OnConflict::Error,
    };
    let price = Field::new("price", DataType::Decimal128(10, 2), true);
    let columns = vec![ad(), varchar("campaign"), price, at()];
    create("campaigns", columns, ObjectKind::Table(Arc::new(table)), &[]);
    let view = ObjectKind::View { query: "SELECT ad_id, campaign FROM campaigns".into() };
    create("v", vec![ad(), varchar("campaign")], view, &["campaigns"]);
    let query = "SELECT campaign, count(*) AS n FROM campaigns GROUP BY campaign".to_string();
    let view = MaterializedView {
        query,
        options: BTreeMap::new(),
        emit_on_window_close: false,
        append_only: false,
        event_time: vec![],
    };
    let columns = vec![varchar("campaign"), Field::new("n", DataType::Int64, true)];
    create("mv", columns, ObjectKind::MaterializedView(Arc::new(view)), &["campaigns"]);
    let session =
        SessionFacts { backend_pid: 7, started_us: 0, client: None, server: None, settings: Arc::new(NoSettings) };
    SystemScope { catalog: Arc::new(catalog), names, session, extra: Arc::new(Engine) }
}

/// A schema of system tables; `public` finds `pg_catalog`'s too, as an unqualified name does.
#[derive(Debug)]
struct System(&'static str);

#[async_trait]
impl SchemaProvider for System {
    fn table_names(&self) -> Vec<String> {
        Vec::new()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let schema = if self.0 == PUBLIC { PG_CATALOG } else { self.0 };
        Ok(PgCatalog::new(scope()).table(schema, name))
    }

    fn table_exist(&self, name: &str) -> bool {
        PgCatalog::new(scope()).names().iter().any(|(_, table, _)| table == name)
    }
}

async fn run(sql: &str) -> Result<Vec<RecordBatch>> {
    let config = SessionConfig::new().with_default_catalog_and_schema("dev", PUBLIC).with_target_partitions(1);
    let config = config.set_str("datafusion.sql_parser.dialect", "postgres");
    let config = config.set_bool("datafusion.sql_parser.map_string_types_to_utf8view", false);
    let context = SessionContext::new_with_config(config);
    let catalog = MemoryCatalogProvider::new();
    for schema in [PUBLIC, PG_CATALOG, INFORMATION_SCHEMA, RIVERRUN] {
        datafusion::catalog::CatalogProvider::register_schema(&catalog, schema, Arc::new(System(schema)))?;
    }
    context.register_catalog("dev", Arc::new(catalog));
    pg_functions(&scope()).into_iter().for_each(|function| context.register_udf(function));
    pg_aggregates().into_iter().for_each(|function| context.register_udaf(function));
    let mut statement = Parser::parse_sql(&PostgreSqlDialect {}, sql)
        .map_err(|e| datafusion::error::DataFusionError::Plan(e.to_string()))?
        .remove(0);
    compat::rewrite(&mut statement);
    let plan = context.state().statement_to_plan(Statement::Statement(Box::new(statement))).await?;
    context.execute_logical_plan(plan).await?.collect().await
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().expect("runtime").block_on(work)
}

/// The result as a table without its frame.
fn check(sql: &str) -> String {
    match block_on(run(sql)) {
        Ok(batches) => {
            let table = pretty_format_batches(&batches).expect("printable").to_string();
            let rows =
                table.lines().filter(|line| !line.starts_with('+')).map(|line| line.trim_matches('|').trim_end());
            rows.collect::<Vec<_>>().join("\n")
        }
        Err(e) => format!("error: {e}"),
    }
}

/// psql's queries by command.
fn psql() -> HashMap<&'static str, Vec<&'static str>> {
    let mut commands: HashMap<&str, Vec<&str>> = HashMap::new();
    for block in include_str!("system/psql.sql").split("\n-- ").skip(1) {
        let (command, queries) = block.split_once('\n').expect("a command and its queries");
        commands.insert(command, queries.split(";\n").map(str::trim).filter(|query| !query.is_empty()).collect());
    }
    commands
}

#[test]
fn psql_is_answered() {
    let mut failed = Vec::new();
    for (command, queries) in psql() {
        for query in queries {
            if let Err(e) = block_on(run(query)) {
                failed.push(format!("{command}: {}\n{query}\n", e.to_string().lines().next().unwrap_or_default()));
            }
        }
    }
    failed.sort();
    assert!(failed.is_empty(), "{} fail:\n{}", failed.len(), failed.join("\n"));
}
