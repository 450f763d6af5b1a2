//! One-shot queries and DML, planned by our rules and executed by DataFusion over rows in memory.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::catalog::TableProvider;
use datafusion::datasource::MemTable;
use datafusion::logical_expr::LogicalPlan;
use futures::executor::block_on;
use insta::assert_snapshot;

use super::plan_tests::{OBJECTS, catalog, names};
use super::*;
use crate::catalog::{
    Catalog, Oid, PgCatalog, SessionFacts, Setting, Settings, SystemScope, SystemTables, pg_functions,
};
use crate::sql::{self, Statement};

/// 2024-01-01 00:00:00 UTC.
const NOW_US: i64 = 1_704_067_200_000_000;

#[derive(Debug)]
struct Times;

impl EventTimes for Times {
    fn watermark_us(&self, _: Oid) -> Result<Option<i64>, PlanError> {
        Ok(Some(NOW_US))
    }

    fn closed_window_end_us(&self, _: Oid) -> Result<Option<i64>, PlanError> {
        Ok(Some(NOW_US - 60_000_000))
    }

    fn final_window_end_us(&self, _: Oid) -> Result<Option<i64>, PlanError> {
        Ok(None)
    }

    fn live_window_end_us(&self, _: Oid) -> Result<Option<i64>, PlanError> {
        Err(PlanError::NotReady(Refusal::new("nothing is live")))
    }
}

struct NoTables;

impl SystemTables for NoTables {
    fn table(&self, _: &str, _: &str) -> Option<Arc<dyn TableProvider>> {
        None
    }

    fn names(&self) -> Vec<(String, String, arrow::datatypes::SchemaRef)> {
        Vec::new()
    }
}

struct NoSettings;

impl Settings for NoSettings {
    fn get(&self, _: &str) -> Option<String> {
        None
    }

    fn all(&self) -> Vec<Setting> {
        Vec::new()
    }

    fn set(&self, name: &str, _: &str, _: bool) -> Result<String, String> {
        Err(format!("{name} cannot be changed"))
    }
}

fn reads(catalog: Arc<Catalog>, tables: HashMap<Oid, Arc<dyn TableProvider>>) -> Reads {
    let session =
        SessionFacts { backend_pid: 7, started_us: 0, client: None, server: None, settings: Arc::new(NoSettings) };
    let scope = SystemScope { catalog: Arc::clone(&catalog), names: names(), session, extra: Arc::new(NoTables) };
    Reads {
        catalog,
        names: names(),
        tables,
        event_times: Some(Arc::new(Times)),
        functions: pg_functions(&scope),
        system: Arc::new(PgCatalog::new(scope)),
        now_us: NOW_US,
        zone: chrono_tz::Tz::UTC,
        runtime: Runtime::new(64 << 20).expect("a runtime"),
    }
}

fn statement(text: &str) -> Statement {
    sql::parse(text).expect("the statement parses").remove(0).statement
}

fn execute(plan: LogicalPlan, reads: &Reads) -> Result<Vec<RecordBatch>, PlanError> {
    // DataFusion's operators want tokio's clock and threads.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("tokio starts");
    runtime.block_on(async { Ok(session(reads)?.execute_logical_plan(plan).await?.collect().await?) })
}

/// The rows that each INSERT makes, table by table, and the catalog.
fn filled(inserts: &str) -> Reads {
    let catalog = catalog(OBJECTS);
    let mut tables: HashMap<Oid, Arc<dyn TableProvider>> = HashMap::new();
    for object in catalog.objects("dev") {
        let empty = MemTable::try_new(Arc::clone(&object.columns), vec![vec![]]).expect("a table");
        tables.insert(object.oid, Arc::new(empty));
    }
    let mut reads = reads(catalog, tables);
    for parsed in sql::parse(inserts).expect("the INSERTs parse") {
        let dml = block_on(plan_dml(&parsed.statement, &reads, &[])).expect("the INSERT is fine");
        let schema = Arc::clone(&reads.catalog.get(dml.table).expect("the table").columns);
        let rows = execute(dml.plan, &reads).expect("the rows are fine");
        let rows = rows.into_iter().map(|b| RecordBatch::try_new(Arc::clone(&schema), b.columns().to_vec()));
        let rows = rows.collect::<Result<Vec<_>, _>>().expect("rows of the table's types");
        reads.tables.insert(dml.table, Arc::new(MemTable::try_new(schema, vec![rows]).expect("a table")));
    }
    reads
}

const ROWS: &str = "
INSERT INTO facts VALUES (1, 10, 9223372036854775807, 0.5, '2024-01-01', 'a'), (1, 20, 9223372036854775807, 1.5, '2024-01-02', NULL),
                         (2, 30, 1, NULL, NULL, 'c');
INSERT INTO t VALUES (1, '2024-01-01 00:00:05'), (2, '2024-01-01 00:00:25'), (3, NULL), (4, '1969-12-31 23:59:55');
";

fn show(plan: Result<LogicalPlan, PlanError>, reads: &Reads) -> String {
    let shown = plan.and_then(|plan| {
        let names = result_names(&plan);
        let types: Vec<String> = plan.schema().fields().iter().map(|f| sql_name(f.data_type())).collect();
        let head: Vec<String> = names.iter().zip(types).map(|(name, t)| format!("{name}: {t}")).collect();
        let mut lines = vec![head.join(", ")];
        for batch in execute(plan, reads)? {
            let options = FormatOptions::new().with_null("NULL");
            for row in 0..batch.num_rows() {
                let cell = |column| ArrayFormatter::try_new(column, &options).map(|f| f.value(row).to_string());
                let cells = batch.columns().iter().map(|column| cell(column.as_ref()).unwrap_or_default());
                lines.push(cells.collect::<Vec<_>>().join(" | "));
            }
        }
        Ok(lines.join("\n"))
    });
    shown.unwrap_or_else(|error| {
        let hint = error.hint().map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
        format!("error: {error}{hint}")
    })
}

/// Columns with types, and rows of a query over a few rows; or the plan's change of a table; or, where there are any, the
/// types of the parameters.
fn check(text: &str) -> String {
    let reads = filled(ROWS);
    let (head, plan) = match statement(text) {
        Statement::Query(query) => (String::new(), block_on(plan_query(&query, &reads, &[]))),
        dml => match block_on(plan_dml(&dml, &reads, &[])) {
            Ok(dml) => {
                let rule = dml.on_conflict.map(|rule| format!(" {rule:?}")).unwrap_or_default();
                (format!("{:?}{rule} ", dml.kind), Ok(dml.plan))
            }
            Err(error) => (String::new(), Err(error)),
        },
    };
    match (plan, text.matches('$').count()) {
        (Ok(plan), parameters @ 1..) => {
            let types = parameter_types(&plan, parameters).expect("types of the parameters");
            types.iter().map(sql_name).collect::<Vec<_>>().join(", ")
        }
        (plan, _) => head + &show(plan, &reads),
    }
}

/// Sums of BIGINT, averages of integers, overflow, rounding.
#[test]
fn numbers_are_exact() {
    assert_snapshot!(check("SELECT k, sum(n), avg(s), count(*), sum(s) FROM facts GROUP BY k ORDER BY k"), @r"
    k: integer, sum: numeric, avg: numeric, count: bigint, sum: bigint
    1 | 18446744073709551614 | 15.0000000000000000 | 2 | 30
    2 | 1 | 30.0000000000000000 | 1 | 30
    ");
    assert_snapshot!(check("SELECT n + 1 AS n FROM facts WHERE k = 1"), @r"error: value out of range");
    assert_snapshot!(check("SELECT k * 2000000000 AS a, -s AS b, 7 / 2 AS c FROM facts ORDER BY s"), @r"
    a: bigint, b: smallint, c: bigint
    2000000000 | -10 | 3
    2000000000 | -20 | 3
    4000000000 | -30 | 3
    ");
    assert_snapshot!(check("SELECT 1 / 0"), @r"error: division by zero");
    assert_snapshot!(check("SELECT 2.5::int AS a, (-1.5)::bigint AS b, '12'::smallint AS c, x::int AS d FROM facts ORDER BY s"), @r"
    a: integer, b: bigint, c: smallint, d: integer
    3 | -2 | 12 | 1
    3 | -2 | 12 | 2
    3 | -2 | 12 | NULL
    ");
    assert_snapshot!(check("SELECT sum(k + s) FROM facts"), @r"
    sum: bigint
    64
    ");
}

#[test]
fn columns_are_named_as_in_postgres() {
    assert_snapshot!(check("SELECT 1, 2, k + 1, count(*), max(k), k::text, lower(note), CASE WHEN k = 1 THEN 'x' END, now() FROM facts WHERE k = 2 GROUP BY k, note"), @r"
    ?column?: bigint, ?column?: bigint, ?column?: bigint, count: bigint, max: integer, k: text, lower: text, case: text, now: timestamp with time zone
    1 | 2 | 3 | 1 | 2 | 2 | c | NULL | 2024-01-01T00:00:00Z
    ");
    assert_snapshot!(check("SELECT k, k, facts.* FROM facts WHERE k = 2"), @r"
    k: integer, k: integer, k: integer, s: smallint, n: bigint, x: double precision, d: date, note: text
    2 | 2 | 2 | 30 | 1 | NULL | NULL | c
    ");
    assert_snapshot!(check("SELECT *, note || '!' AS note FROM facts WHERE k = 2 ORDER BY k"), @r"
    k: integer, s: smallint, n: bigint, x: double precision, d: date, note: text, note: text
    2 | 30 | 1 | NULL | NULL | c | c!
    ");
    assert_snapshot!(check("SELECT c.count FROM (SELECT count(*) FROM facts) c"), @r"
    count: bigint
    3
    ");
    assert_snapshot!(check("SELECT d::timestamp, max(x) FROM facts GROUP BY d::timestamp HAVING max(d) IS NOT NULL ORDER BY 1"), @r"
    d: timestamp without time zone, max: double precision
    2024-01-01T00:00:00 | 0.5
    2024-01-02T00:00:00 | 1.5
    ");
}

/// Half-open, before the epoch too; rows without a time are in none.
#[test]
fn windows_copy_rows() {
    assert_snapshot!(check("SELECT v, window_start, window_end FROM HOP(t, ts, INTERVAL '10 seconds', INTERVAL '30 seconds') ORDER BY v, window_start"), @r"
    v: integer, window_start: timestamp without time zone, window_end: timestamp without time zone
    1 | 2023-12-31T23:59:40 | 2024-01-01T00:00:10
    1 | 2023-12-31T23:59:50 | 2024-01-01T00:00:20
    1 | 2024-01-01T00:00:00 | 2024-01-01T00:00:30
    2 | 2024-01-01T00:00:00 | 2024-01-01T00:00:30
    2 | 2024-01-01T00:00:10 | 2024-01-01T00:00:40
    2 | 2024-01-01T00:00:20 | 2024-01-01T00:00:50
    4 | 1969-12-31T23:59:30 | 1970-01-01T00:00:00
    4 | 1969-12-31T23:59:40 | 1970-01-01T00:00:10
    4 | 1969-12-31T23:59:50 | 1970-01-01T00:00:20
    ");
    assert_snapshot!(check("WITH late AS (SELECT * FROM t WHERE v < 3) SELECT w.window_end, count(*) FROM TUMBLE(late, ts, '20 seconds', '5 seconds') AS w GROUP BY w.window_end ORDER BY 1"), @r"
    window_end: timestamp without time zone, count: bigint
    2024-01-01T00:00:25 | 1
    2024-01-01T00:00:45 | 1
    ");
    assert_snapshot!(check("SELECT window_start, window_end, k FROM TUMBLE((SELECT k, d AS window_start FROM facts), window_start, INTERVAL '2 days') ORDER BY k"), @r"
    window_start: timestamp without time zone, window_end: timestamp without time zone, k: integer
    2023-12-31T00:00:00 | 2024-01-02T00:00:00 | 1
    2024-01-02T00:00:00 | 2024-01-04T00:00:00 | 1
    ");
    assert_snapshot!(check("SELECT a.v FROM TUMBLE(t, ts, INTERVAL '1 minute') a JOIN TUMBLE(t, ts, INTERVAL '1 minute') b ON a.window_start = b.window_start AND a.v < b.v"), @r"
    v: integer
    1
    ");
}

/// Event times are literals of the type of the object's event time.
#[test]
fn constants_of_the_read() {
    assert_snapshot!(check("SELECT watermark('ad_events') AS a, watermark('t') AS b, closed_window_end('public.AD_1M') AS c, final_window_end('ad_1m') AS d, now() - watermark('clicks') AS e"), @r"
    a: timestamp with time zone, b: timestamp without time zone, c: timestamp with time zone, d: timestamp with time zone, e: interval
    2024-01-01T00:00:00Z | 2024-01-01T00:00:00 | 2023-12-31T23:59:00Z | NULL | 0 secs
    ");
    assert_snapshot!(check("SELECT live_window_end('ad_1m')"), @r"error: nothing is live");
    assert_snapshot!(check("SELECT watermark('nix')"), @r#"error: relation "nix" does not exist"#);
    assert_snapshot!(check("SELECT watermark(note) FROM facts"), @r"
    error: watermark() takes the name of a source or a view as constant text
    hint: Write watermark('name').
    ");
    assert_snapshot!(check("SELECT v FROM t WHERE ts < watermark('t') + INTERVAL '10 seconds' ORDER BY v"), @r"
    v: integer
    1
    4
    ");
    assert_snapshot!(check("SELECT current_date, localtimestamp, current_timestamp"), @r"
    current_date: date, localtimestamp: timestamp without time zone, current_timestamp: timestamp with time zone
    2024-01-01 | 2024-01-01T00:00:00 | 2024-01-01T00:00:00Z
    ");
    assert_snapshot!(check("SELECT c.relname, format_type(a.atttypid, a.atttypmod) FROM pg_class c JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid WHERE c.relname = 'ad_1m' ORDER BY a.attnum"), @r"
    relname: text, format_type: text
    ad_1m | bigint
    ad_1m | character varying
    ad_1m | timestamp with time zone
    ad_1m | timestamp with time zone
    ad_1m | bigint
    ad_1m | bigint
    ");
}

/// INSERT, UPDATE and DELETE as rows to add and to take away.
#[test]
fn changes() {
    assert_snapshot!(check("INSERT INTO facts (n, k) VALUES (1.5, '2'), (DEFAULT, 3)"), @r"
    Insert k: integer, s: smallint, n: bigint, x: double precision, d: date, note: text
    2 | NULL | 2 | NULL | NULL | none
    3 | NULL | NULL | NULL | NULL | none
    ");
    assert_snapshot!(check("INSERT INTO facts SELECT k, s FROM facts WHERE k = 2"), @r"
    Insert k: integer, s: smallint, n: bigint, x: double precision, d: date, note: text
    2 | 30 | NULL | NULL | NULL | none
    ");
    assert_snapshot!(check("INSERT INTO facts (k) SELECT note FROM facts"), @r#"
    error: column "k" is of type integer but expression is of type text
    hint: You will need to rewrite or cast the expression.
    "#);
    assert_snapshot!(check("INSERT INTO facts (k, k) VALUES (1, 2)"), @r#"error: column "k" specified more than once"#);
    assert_snapshot!(check("INSERT INTO facts (k) VALUES (1, 2)"), @r"error: INSERT has more expressions than target columns");
    assert_snapshot!(check("INSERT INTO facts (nix) VALUES (1)"), @r#"error: column "nix" of relation "facts" does not exist"#);
    assert_snapshot!(check("INSERT INTO facts (note) SELECT sum(n) FROM facts"), @r"
    Insert k: integer, s: smallint, n: bigint, x: double precision, d: date, note: text
    NULL | NULL | NULL | NULL | NULL | 18446744073709551615
    ");
    assert_snapshot!(check("INSERT INTO campaigns VALUES (1, 'x') ON CONFLICT (ad_id) DO UPDATE SET campaign = excluded.campaign"), @r"
    Insert Overwrite ad_id: bigint, campaign: text
    1 | x
    ");
    assert_snapshot!(check("INSERT INTO ad_events (ad_id) VALUES (1)"), @r#"
    error: cannot insert into source "ad_events"
    hint: Rows of a source come from outside: write to its topic, or use a table.
    "#);
    assert_snapshot!(check("INSERT INTO ad_1m (ad_id) VALUES (1)"), @r#"
    error: cannot insert into materialized view "ad_1m"
    hint: Change the tables that it reads.
    "#);
    assert_snapshot!(check("INSERT INTO facts (k) VALUES (1) RETURNING k"), @r"
    error: RETURNING is not supported
    hint: Select the rows after the change.
    ");
    assert_snapshot!(check("UPDATE facts SET s = s + 1, note = DEFAULT WHERE k = (SELECT max(k) FROM facts)"), @r"
    Update 0 k: integer, 1 s: smallint, 2 n: bigint, 3 x: double precision, 4 d: date, 5 note: text, 6 k: integer, 7 s: smallint, 8 n: bigint, 9 x: double precision, 10 d: date, 11 note: text
    2 | 30 | 1 | NULL | NULL | c | 2 | 31 | 1 | NULL | NULL | none
    ");
    assert_snapshot!(check("UPDATE facts f SET k = 1, k = 2"), @r#"error: multiple assignments to same column "k""#);
    assert_snapshot!(check("UPDATE facts SET s = note"), @r#"
    error: column "s" is of type smallint but expression is of type text
    hint: You will need to rewrite or cast the expression.
    "#);
    assert_snapshot!(check("UPDATE t SET v = 1"), @r#"
    error: cannot update APPEND ONLY table "t"
    hint: Rows of an APPEND ONLY table stay as they are; create it without APPEND ONLY.
    "#);
    assert_snapshot!(check("DELETE FROM facts WHERE s > 10 AND note IS NULL"), @r"
    Delete k: integer, s: smallint, n: bigint, x: double precision, d: date, note: text
    1 | 20 | 9223372036854775807 | 1.5 | 2024-01-02 | NULL
    ");
}

#[test]
fn postgres_operators_and_functions() {
    assert_snapshot!(check("SELECT ts AT TIME ZONE 'Europe/Berlin' AS moment, (ts AT TIME ZONE 'Europe/Berlin') AT TIME ZONE 'America/New_York' AS there, now() AT TIME ZONE '+02:00' AS local FROM t WHERE v = 1"), @r"
    moment: timestamp with time zone, there: timestamp without time zone, local: timestamp without time zone
    2023-12-31T23:00:05Z | 2023-12-31T18:00:05 | 2024-01-01T02:00:00
    ");
    assert_snapshot!(check("SELECT ts AT TIME ZONE 'Mars' FROM t"), @r#"error: time zone "Mars" not recognized"#);
    assert_snapshot!(check("SELECT mod(k, 2), mod(n, 10) FROM facts ORDER BY s"), @r"
    mod: bigint, mod: bigint
    1 | 7
    1 | 7
    0 | 1
    ");
    assert_snapshot!(check("SELECT to_char(ts, 'YYYY') FROM t"), @r"error: function to_char does not exist");
    assert_snapshot!(check("TABLE facts"), @r"
    k: integer, s: smallint, n: bigint, x: double precision, d: date, note: text
    1 | 10 | 9223372036854775807 | 0.5 | 2024-01-01 | a
    1 | 20 | 9223372036854775807 | 1.5 | 2024-01-02 | NULL
    2 | 30 | 1 | NULL | NULL | c
    ");
    assert_snapshot!(check("SELECT (SELECT max(v) FROM t WHERE v <= k) FROM facts"), @r"
    error: a correlated subquery of this form is not supported
    hint: Correlate by equalities joined with AND, or write a join.
    ");
}

/// Types are those of the place where a parameter stands.
#[test]
fn parameters() {
    assert_snapshot!(check("SELECT * FROM facts WHERE k = $1 AND note LIKE $2 LIMIT $3"), @r"integer, text, bigint");
    assert_snapshot!(check("INSERT INTO facts (k, d, note) VALUES ($1, $2, lower($3))"), @r"integer, date, text");
    assert_snapshot!(check("UPDATE facts SET s = $1, n = n + $2 WHERE k = $3"), @r"smallint, bigint, integer");
    assert_snapshot!(check("SELECT $1, $2::int"), @r"text, text");
}
