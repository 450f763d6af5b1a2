//! Statements in, what was understood out; refusals with the place they point at.

use super::*;

/// What was understood, one statement a line.
fn show(text: &str) -> String {
    match parse(text) {
        Ok(statements) => statements.iter().map(|s| one(&s.statement)).collect::<Vec<_>>().join("\n"),
        Err(error) => failure(text, &error),
    }
}

/// `position: message (hint)`, with the rest of the text at the position.
fn failure(text: &str, error: &SqlError) -> String {
    let position = error.position().expect("an error of parse() has a position");
    let rest: String = text.chars().skip(position - 1).take(12).collect();
    let hint = error.hint().map(|hint| format!(" ({hint})")).unwrap_or_default();
    format!("{position}: {error}{hint} at <{rest}>")
}

fn one(statement: &Statement) -> String {
    match statement {
        Statement::Reconcile(r) => {
            let bound = |bound: &Option<sqlparser::ast::Expr>| bound.as_ref().map(ToString::to_string);
            format!(
                "reconcile {} {:?} {:?} repair={} {}",
                r.name,
                bound(&r.from),
                bound(&r.to),
                r.repair,
                r.corrections
            )
        }
        Statement::CreateSource(s) => format!(
            "source {}{} {} watermark={:?}{} include={:?} with={:?} {} {} {:?}{}",
            s.name,
            if s.if_not_exists { "?" } else { "" },
            columns(&s.columns),
            s.watermark.as_ref().map(|w| (&w.column, w.delay_us)),
            s.deduplicate.as_ref().map(|d| format!(" ids={:?} {}", d.columns, d.interval_us)).unwrap_or_default(),
            s.includes,
            s.options,
            s.format,
            s.encode,
            s.encode_options,
            s.late_rows_into.as_ref().map(|table| format!(" late={table}")).unwrap_or_default()
        ),
        Statement::CreateTable(t) => format!(
            "table {}{} {} key={:?} watermark={:?} append_only={} {:?} as {}",
            t.name,
            if t.if_not_exists { "?" } else { "" },
            columns(&t.columns),
            t.primary_key,
            t.watermark.as_ref().map(|w| (&w.column, w.delay_us)),
            t.append_only,
            t.on_conflict,
            t.query.as_ref().map_or("-".into(), ToString::to_string)
        ),
        Statement::CreateView(v) => {
            format!("view {} or_replace={} ?={} {:?} as {}", v.name, v.or_replace, v.if_not_exists, v.columns, v.query)
        }
        Statement::CreateMaterializedView(v) => format!(
            "materialized view {} ?={} {:?} with={:?} emit={:?} as {}",
            v.name, v.if_not_exists, v.columns, v.options, v.emit, v.query
        ),
        Statement::Drop(d) => {
            let names: Vec<String> = d.names.iter().map(Name::to_string).collect();
            format!("drop {:?} {} ?={} cascade={}", d.kind, names.join(" "), d.if_exists, d.cascade)
        }
        Statement::Query(q) => q.to_string(),
        Statement::Insert(s) => s.to_string(),
        Statement::Update(s) | Statement::Copy(s) => s.to_string(),
        Statement::Delete(s) => s.to_string(),
        Statement::Prepare { name, types, statement } => {
            format!("prepare {name} {types:?} <{}> {}", statement.text, statement.parameters)
        }
        Statement::Execute { name, arguments } => {
            format!("execute {name} {}", arguments.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        }
        Statement::Explain { statement, analyze, verbose } => {
            format!("explain analyze={analyze} verbose={verbose} {}", one(statement))
        }
        Statement::Declare { cursor, query } => format!("declare {cursor} {query}"),
        Statement::CopySubscription { subscribe, copy } => format!("{subscribe:?} {copy}"),
        other => format!("{other:?}"),
    }
}

fn columns(columns: &[ColumnDef]) -> String {
    let one = |c: &ColumnDef| {
        let mut text = format!("{} {}", quote(&c.name), c.data_type);
        if c.not_null {
            text.push_str(" NOT NULL");
        }
        if c.primary_key {
            text.push_str(" KEY");
        }
        if let Some(default) = &c.default {
            text.push_str(&format!(" DEFAULT {default}"));
        }
        text
    };
    format!("({})", columns.iter().map(one).collect::<Vec<_>>().join(", "))
}

/// Each line of `texts` is one statement.
fn check(texts: &str) -> String {
    texts.lines().map(str::trim).filter(|line| !line.is_empty()).map(show).collect::<Vec<_>>().join("\n")
}

#[test]
fn sources() {
    insta::assert_snapshot!(show(
        "CREATE SOURCE IF NOT EXISTS Ads.ad_events (
           event_id VARCHAR, \"adId\" BIGINT NOT NULL, price NUMERIC(10, 2), at TIME, ts TIMESTAMPTZ,
           WATERMARK FOR ts AS ts - INTERVAL '10 seconds'
         ) INCLUDE partition INCLUDE offset AS o INCLUDE timestamp AS kafka_ts INCLUDE key AS k
         WITH (connector = 'kafka', Topic = 'ad_events', properties.bootstrap.server = 'localhost:9092',
               scan.startup.timestamp.millis = 5, flag = TRUE, low = -1.5)
         FORMAT PLAIN ENCODE JSON (timestamptz.handling.mode = 'milli')"
    ), @r#"source ads.ad_events? (event_id VARCHAR, "adId" BIGINT NOT NULL, price NUMERIC(10,2), at TIME, ts TIMESTAMPTZ) watermark=Some(("ts", 10000000)) include=[(Partition, "_rw_kafka_partition"), (Offset, "o"), (Timestamp, "kafka_ts"), (Key, "k")] with={"connector": "kafka", "flag": "true", "low": "-1.5", "properties.bootstrap.server": "localhost:9092", "scan.startup.timestamp.millis": "5", "topic": "ad_events"} PLAIN JSON {"timestamptz.handling.mode": "milli"}"#);
    insta::assert_snapshot!(check("
        CREATE SOURCE s (ts TIMESTAMP, WATERMARK FOR ts AS ts) WITH (connector = 'datagen')
        CREATE SOURCE s (ts TIMESTAMP, WATERMARK FOR ts AS ts - INTERVAL '5' SECOND)
        CREATE SOURCE s (ts TIMESTAMP, WATERMARK FOR ts AS ts - '1 min'::interval)
        CREATE SOURCE s (a INT, A INT)
        CREATE SOURCE s (a INT) INCLUDE key AS a
        CREATE SOURCE s (a INT) INCLUDE header AS h
        CREATE SOURCE s (a INT PRIMARY KEY)
        CREATE SOURCE s (a INT DEFAULT 1)
        CREATE SOURCE s WITH (connector = 'kafka')
        CREATE SOURCE s (a INT) WITH (topic = 'a', TOPIC = 'b')
        CREATE SOURCE s (a INT) WITH (topic 'a')
        CREATE SOURCE s (a INT) FORMAT PLAIN
        CREATE SOURCE s (ts TIMESTAMP, WATERMARK FOR ts AS ts + INTERVAL '1 s')
        CREATE SOURCE s (ts TIMESTAMP, WATERMARK FOR ts AS ts - INTERVAL '1 month')
        CREATE SOURCE s (ts TIMESTAMP, WATERMARK FOR ts AS ts, WATERMARK FOR ts AS ts)
        CREATE SOURCE s (a INT, ts TIMESTAMP, DEDUPLICATE BY (a, B) WITHIN INTERVAL '1 hour', WATERMARK FOR ts AS ts)
        CREATE SOURCE s (a INT) INCLUDE key AS k DEDUPLICATE BY (k) WITHIN INTERVAL '90' SECOND WITH (connector = 'datagen')
        CREATE SOURCE s (deduplicate INT, within INT)
        CREATE SOURCE s (a INT, DEDUPLICATE BY (a))
        CREATE SOURCE s (a INT, DEDUPLICATE BY (a, a) WITHIN INTERVAL '1 hour')
        CREATE SOURCE s (a INT, DEDUPLICATE BY (a) WITHIN INTERVAL '1 month')
        CREATE SOURCE s (a INT, DEDUPLICATE BY (a) WITHIN INTERVAL '0 s')
        CREATE SOURCE s (a INT, DEDUPLICATE BY (a) WITHIN 60)
        CREATE SOURCE s (a INT, DEDUPLICATE BY (a) WITHIN INTERVAL '1 s') DEDUPLICATE BY (a) WITHIN INTERVAL '1 s'
        CREATE TABLE t (a INT, DEDUPLICATE BY (a) WITHIN INTERVAL '1 hour')
        CREATE SOURCE s (a)
        CREATE SOURCE s ()
        CREATE SOURCE select (a INT)
    "), @r#"
    source s (ts TIMESTAMP) watermark=Some(("ts", 0)) include=[] with={"connector": "datagen"} PLAIN JSON {}
    source s (ts TIMESTAMP) watermark=Some(("ts", 5000000)) include=[] with={} PLAIN JSON {}
    source s (ts TIMESTAMP) watermark=Some(("ts", 60000000)) include=[] with={} PLAIN JSON {}
    25: column "a" specified more than once at <A INT)>
    37: column "a" specified more than once at <AS a>
    33: INCLUDE HEADER is not supported (Partition, offset, timestamp and key can be included.) at <header AS h>
    24: PRIMARY KEY on a source is not supported (A source is a stream of records, each a new row.) at <PRIMARY KEY)>
    24: DEFAULT on a source is not supported (A field that a record lacks is NULL.) at <DEFAULT 1)>
    17: CREATE SOURCE without a list of columns is not supported (List the columns and types.) at <WITH (connec>
    44: option "topic" provided more than once at <TOPIC = 'b')>
    37: syntax error at or near "'a'" at <'a')>
    37: syntax error at end of input at <>
    52: the watermark expression ts + INTERVAL '1 s' is not supported (Write WATERMARK FOR ts AS ts - INTERVAL '10 seconds'.) at <ts + INTERVA>
    52: an interval of months has no fixed length here: "1 month" (Write it in days, such as '30 days'.) at <ts - INTERVA>
    56: multiple watermarks are not allowed at <WATERMARK FO>
    source s (a INT, ts TIMESTAMP) watermark=Some(("ts", 0)) ids=["a", "b"] 3600000000 include=[] with={} PLAIN JSON {}
    source s (a INT) watermark=None ids=["k"] 90000000 include=[(Key, "k")] with={"connector": "datagen"} PLAIN JSON {}
    source s (deduplicate INT, within INT) watermark=None include=[] with={} PLAIN JSON {}
    43: DEDUPLICATE BY without WITHIN is not supported (Say for how long an id is remembered: DEDUPLICATE BY (event_id) WITHIN INTERVAL '1 hour'.) at <)>
    44: column "a" specified more than once at <a) WITHIN IN>
    51: an interval of months has no fixed length here: "1 month" (Write it in days, such as '30 days'.) at <INTERVAL '1 >
    51: the interval of DEDUPLICATE BY must be longer than zero at <INTERVAL '0 >
    51: WITHIN 60 is not supported (Write WITHIN INTERVAL '1 hour' or the like.) at <60)>
    67: multiple DEDUPLICATE BY are not allowed at <DEDUPLICATE >
    24: DEDUPLICATE BY on a table is not supported (Declare a PRIMARY KEY and ON CONFLICT DO NOTHING: the first row of each key stays.) at <DEDUPLICATE >
    19: syntax error at or near ")" at <)>
    18: syntax error at or near ")" at <)>
    15: syntax error at or near "select" ("select" is a reserved word: as a name it stands in double quotes.) at <select (a IN>
    "#);
}

#[test]
fn tables() {
    insta::assert_snapshot!(check("
        CREATE TABLE campaigns (ad_id BIGINT PRIMARY KEY, campaign VARCHAR)
        CREATE TABLE t (v INT NOT NULL DEFAULT 1 + 2, w TEXT DEFAULT 'x' NOT NULL, ts TIMESTAMP, WATERMARK FOR ts AS ts - INTERVAL '1 second') APPEND ONLY
        CREATE TABLE IF NOT EXISTS s.t (a INT, b DOUBLE PRECISION NULL, CONSTRAINT pk PRIMARY KEY (a, b)) ON CONFLICT DO NOTHING
        CREATE TABLE t (PRIMARY KEY (a), a INT) ON CONFLICT OVERWRITE
        CREATE TABLE t AS SELECT 1 AS a
        CREATE TABLE t AS VALUES (1) WITH DATA
        CREATE TABLE t (a INT PRIMARY KEY, PRIMARY KEY (a))
        CREATE TABLE t (a INT, PRIMARY KEY (b))
        CREATE TABLE t (a INT CHECK (a > 0))
        CREATE TABLE t (a INT UNIQUE)
        CREATE TABLE t (a INT REFERENCES u (b))
        CREATE TABLE t (a INT, UNIQUE (a))
        CREATE TABLE t (a INT, FOREIGN KEY (a) REFERENCES u (b))
        CREATE TABLE t (a INT GENERATED ALWAYS AS IDENTITY)
        CREATE TABLE t (LIKE u)
        CREATE TABLE t (a INT) WITH (connector = 'kafka')
        CREATE TABLE t (a INT) PARTITION BY RANGE (a)
        CREATE TABLE t (a INT) ON CONFLICT DO UPDATE
        CREATE TABLE t AS SELECT 1 WITH NO DATA
        CREATE TABLE t (a INT,)
        CREATE TABLE t (a INT
        CREATE TABLE t
        CREATE TABLE a.b.c.d (a INT)
        CREATE TABLE \"\" (a INT)
        CREATE TEMP TABLE t (a INT)
    "), @r#"
    table campaigns (ad_id BIGINT KEY, campaign VARCHAR) key=["ad_id"] watermark=None append_only=false Error as -
    table t (v INT NOT NULL DEFAULT 1 + 2, w TEXT NOT NULL DEFAULT 'x', ts TIMESTAMP) key=[] watermark=Some(("ts", 1000000)) append_only=true Error as -
    table s.t? (a INT, b DOUBLE PRECISION) key=["a", "b"] watermark=None append_only=false DoNothing as -
    table t (a INT) key=["a"] watermark=None append_only=false Overwrite as -
    table t () key=[] watermark=None append_only=false Error as SELECT 1 AS a
    table t () key=[] watermark=None append_only=false Error as VALUES (1)
    36: multiple primary keys are not allowed at <PRIMARY KEY >
    37: column "b" named in key does not exist at <b))>
    23: a CHECK constraint is not supported (The constraints are NOT NULL and PRIMARY KEY.) at <CHECK (a > 0>
    23: a UNIQUE constraint is not supported (The constraints are NOT NULL and PRIMARY KEY.) at <UNIQUE)>
    23: a REFERENCES constraint is not supported (The constraints are NOT NULL and PRIMARY KEY.) at <REFERENCES u>
    24: a UNIQUE constraint is not supported (The constraints are NOT NULL and PRIMARY KEY.) at <UNIQUE (a))>
    24: a FOREIGN KEY constraint is not supported (The constraints are NOT NULL and PRIMARY KEY.) at <FOREIGN KEY >
    23: a generated column is not supported (Compute it in a view.) at <GENERATED AL>
    17: LIKE in CREATE TABLE is not supported (List the columns.) at <LIKE u)>
    24: WITH on a table is not supported (A table is fed by INSERT and COPY; for a connector use CREATE SOURCE.) at <WITH (connec>
    24: PARTITION on a table is not supported at <PARTITION BY>
    36: ON CONFLICT DO UPDATE of a table is not supported (Use ON CONFLICT OVERWRITE.) at <DO UPDATE>
    28: WITH NO DATA is not supported (Leave it out: the object is filled when it is created.) at <WITH NO DATA>
    23: syntax error at or near ")" at <)>
    22: syntax error at end of input at <>
    15: syntax error at end of input at <>
    14: improper qualified name (too many dotted names): a.b.c.d at <a.b.c.d (a I>
    14: zero-length delimited identifier at <"" (a INT)>
    8: CREATE TEMP is not supported (Tables and views are kept until they are dropped.) at <TEMP TABLE t>
    "#);
}

#[test]
fn views() {
    insta::assert_snapshot!(check("
        CREATE OR REPLACE VIEW v (a, b) AS SELECT 1, 2
        CREATE VIEW IF NOT EXISTS v AS (SELECT 1)
        CREATE MATERIALIZED VIEW IF NOT EXISTS v (a) WITH (retention = '2 days') AS SELECT count(*) FROM HOP(s.ads, ts, INTERVAL '10 seconds', INTERVAL '1 minute') EMIT ON WINDOW CLOSE
        CREATE MATERIALIZED VIEW v AS SELECT * FROM t emit EMIT ON UPDATE
        CREATE MATERIALIZED VIEW v AS SELECT * FROM t JOIN u emit ON emit.a = t.a
        CREATE MATERIALIZED VIEW v AS SELECT window_start FROM TABLE(HOP(TABLE t, DESCRIPTOR(ts), INTERVAL '10' SECONDS, INTERVAL '1' MINUTE)) GROUP BY window_start
        CREATE MATERIALIZED VIEW v AS SELECT * FROM TUMBLE(TABLE a.t, DESCRIPTOR(ts), INTERVAL '1 minute') AS w, (SELECT * FROM TABLE(SESSION(TABLE u, DESCRIPTOR(at), INTERVAL '1 hour')))
        CREATE MATERIALIZED VIEW v AS SELECT a, count(*) FROM TABLE(SESSION(TABLE u PARTITION BY a, b + 1, DESCRIPTOR(at), INTERVAL '1 hour')) GROUP BY a, window_start
        CREATE MATERIALIZED VIEW v AS SELECT a, count(*) FROM SESSION(u PARTITION BY a, at, INTERVAL '1 hour') GROUP BY a, window_start
        CREATE MATERIALIZED VIEW v AS SELECT a, count(*) FROM SESSION(u PARTITION BY (a, b), at, INTERVAL '1 hour') GROUP BY a, b, window_start
        CREATE MATERIALIZED VIEW v AS SELECT a FROM SESSION(u, at PARTITION BY a, INTERVAL '1 hour') GROUP BY a, window_start
        CREATE MATERIALIZED VIEW v AS SELECT 1 EMIT EVERY INTERVAL '1 s'
        CREATE MATERIALIZED VIEW v AS SELECT * FROM t emit EMIT EVERY '1 minute 30 s'
        CREATE MATERIALIZED VIEW v AS SELECT 1 EMIT EVERY INTERVAL '10' SECONDS
        CREATE MATERIALIZED VIEW v AS SELECT 1 EMIT EVERY 10 SECONDS
        CREATE MATERIALIZED VIEW v AS SELECT 1 EMIT EVERY now()
        CREATE MATERIALIZED VIEW v AS SELECT 1 EMIT EVERY
        CREATE MATERIALIZED VIEW v AS SELECT 1 EMIT EVERY INTERVAL '1 month'
        CREATE MATERIALIZED VIEW v AS SELECT 1 EMIT EVERY '0 s'
        CREATE MATERIALIZED VIEW v AS SELECT 1 EMIT EVERY '-1 s'
        CREATE MATERIALIZED VIEW v AS SELECT 1 EMIT EVERY '99 ms'
        CREATE MATERIALIZED VIEW v AS SELECT 1 EMIT EVERY 'soon'
        CREATE MATERIALIZED VIEW v AS SELECT 1 EMIT EVERY '1 s' EMIT ON WINDOW CLOSE
        CREATE MATERIALIZED VIEW v AS SELECT 1 EMIT ON WINDOW CLOSE EMIT EVERY INTERVAL '1 s'
        CREATE MATERIALIZED VIEW v AS SELECT 1 EMIT ON WINDOW CLOSE EVERY INTERVAL '1 s'
        CREATE MATERIALIZED VIEW v AS SELECT 1 EMIT EVERY INTERVAL '1 s' ON WINDOW CLOSE
        CREATE MATERIALIZED VIEW v AS SELECT 1 EMIT EVERY INTERVAL '1 s' please
        CREATE MATERIALIZED VIEW v AS SELECT 1 EMIT FINAL
        CREATE MATERIALIZED VIEW v AS SELECT 1 EMIT ON WINDOW CLOSE EMIT
        CREATE MATERIALIZED VIEW v AS SELECT 1 + EMIT ON WINDOW CLOSE
        CREATE MATERIALIZED VIEW v AS SELECT 1 WITH NO DATA
        CREATE MATERIALIZED VIEW v AS INSERT INTO t VALUES (1)
        CREATE MATERIALIZED VIEW v AS SELECT $1
        CREATE OR REPLACE MATERIALIZED VIEW v AS SELECT 1
        CREATE VIEW v AS SELECT 1 WITH CHECK OPTION
        CREATE VIEW v WITH (security_barrier) AS SELECT 1
        CREATE RECURSIVE VIEW v AS SELECT 1
    "), @r#"
    view v or_replace=true ?=false ["a", "b"] as SELECT 1, 2
    view v or_replace=false ?=true [] as (SELECT 1)
    materialized view v ?=true ["a"] with={"retention": "2 days"} emit=OnWindowClose as SELECT count(*) FROM HOP(s.ads, ts, INTERVAL '10 seconds', INTERVAL '1 minute')
    materialized view v ?=false [] with={} emit=OnUpdate as SELECT * FROM t emit
    materialized view v ?=false [] with={} emit=OnUpdate as SELECT * FROM t JOIN u emit ON emit.a = t.a
    materialized view v ?=false [] with={} emit=OnUpdate as SELECT window_start FROM HOP(t, ts, INTERVAL '10' SECONDS, INTERVAL '1' MINUTE) GROUP BY window_start
    materialized view v ?=false [] with={} emit=OnUpdate as SELECT * FROM TUMBLE(a.t, ts, INTERVAL '1 minute') AS w, (SELECT * FROM SESSION(u, at, INTERVAL '1 hour'))
    materialized view v ?=false [] with={} emit=OnUpdate as SELECT a, count(*) FROM SESSION(u, partition_by(a, b + 1), at, INTERVAL '1 hour') GROUP BY a, window_start
    materialized view v ?=false [] with={} emit=OnUpdate as SELECT a, count(*) FROM SESSION(u, partition_by(a), at, INTERVAL '1 hour') GROUP BY a, window_start
    materialized view v ?=false [] with={} emit=OnUpdate as SELECT a, count(*) FROM SESSION(u, partition_by(a, b), at, INTERVAL '1 hour') GROUP BY a, b, window_start
    59: syntax error at or near "PARTITION" at <PARTITION BY>
    materialized view v ?=false [] with={} emit=Every { text: "1 s", interval_us: 1000000 } as SELECT 1
    materialized view v ?=false [] with={} emit=Every { text: "1 minute 30 s", interval_us: 90000000 } as SELECT * FROM t emit
    materialized view v ?=false [] with={} emit=Every { text: "10 SECONDS", interval_us: 10000000 } as SELECT 1
    51: EMIT EVERY 10 is not supported (Write EMIT EVERY INTERVAL '10 seconds' or the like.) at <10 SECONDS>
    51: EMIT EVERY now() is not supported (Write EMIT EVERY INTERVAL '10 seconds' or the like.) at <now()>
    50: syntax error at end of input at <>
    51: an interval of months has no fixed length here: "1 month" (Write it in days, such as '30 days'.) at <INTERVAL '1 >
    51: the interval of EMIT EVERY must be longer than zero at <'0 s'>
    51: the interval of EMIT EVERY must be longer than zero at <'-1 s'>
    51: the interval of EMIT EVERY is shorter than a tick (Leave EMIT EVERY out: a view changes at most once a tick, which is every 100 milliseconds.) at <'99 ms'>
    51: invalid input syntax for type interval: "soon" at <'soon'>
    57: more than one way to EMIT is not supported (Choose ON WINDOW CLOSE, which shows a window once when it is final, or EVERY, which shows what there is at most once in an interval.) at <EMIT ON WIND>
    61: more than one way to EMIT is not supported (Choose ON WINDOW CLOSE, which shows a window once when it is final, or EVERY, which shows what there is at most once in an interval.) at <EMIT EVERY I>
    61: more than one way to EMIT is not supported (Choose ON WINDOW CLOSE, which shows a window once when it is final, or EVERY, which shows what there is at most once in an interval.) at <EVERY INTERV>
    66: more than one way to EMIT is not supported (Choose ON WINDOW CLOSE, which shows a window once when it is final, or EVERY, which shows what there is at most once in an interval.) at <ON WINDOW CL>
    66: syntax error at or near "please" at <please>
    40: EMIT FINAL is not supported (Use EMIT ON WINDOW CLOSE, EMIT EVERY INTERVAL '10 seconds', or no EMIT clause for a view that is always current.) at <EMIT FINAL>
    61: syntax error at or near "EMIT" at <EMIT>
    42: syntax error at or near "EMIT" at <EMIT ON WIND>
    40: WITH NO DATA is not supported (Leave it out: the object is filled when it is created.) at <WITH NO DATA>
    31: syntax error at or near "INSERT" at <INSERT INTO >
    38: there is no parameter $1 at <$1>
    19: CREATE OR REPLACE MATERIALIZED VIEW is not supported (DROP it first.) at <MATERIALIZED>
    27: WITH CHECK OPTION is not supported (Views cannot be written to.) at <WITH CHECK O>
    15: WITH on a view is not supported at <WITH (securi>
    8: CREATE RECURSIVE VIEW is not supported (Write the query out without recursion.) at <RECURSIVE VI>
    "#);
}

#[test]
fn schemas_and_drops() {
    insta::assert_snapshot!(check("
        CREATE SCHEMA IF NOT EXISTS s
        CREATE DATABASE d
        CREATE SCHEMA AUTHORIZATION joe
        CREATE DATABASE d ENCODING 'UTF8'
        DROP MATERIALIZED VIEW IF EXISTS a, b.\"C\" CASCADE
        DROP TABLE t RESTRICT
        DROP SOURCE s
        DROP DATABASE d WITH (FORCE)
        DROP INDEX i
        DROP SINK s
        DROP NONSENSE s
        DROP TABLE
        CREATE INDEX i ON t (a)
        CREATE UNIQUE INDEX i ON t (a)
        CREATE SINK s FROM v
        CREATE FUNCTION f() RETURNS INT AS '' LANGUAGE sql
        CREATE USER joe
        CREATE NONSENSE x
        CREATE
    "), @r#"
    CreateSchema { name: Name(["s"]), if_not_exists: true }
    CreateDatabase { name: Name(["d"]), if_not_exists: false }
    15: AUTHORIZATION in CREATE SCHEMA is not supported (Roles do not own schemas.) at <AUTHORIZATIO>
    19: an option of CREATE DATABASE is not supported (Every database is in UTF-8.) at <ENCODING 'UT>
    drop MaterializedView a b."C" ?=true cascade=true
    drop Table t ?=false cascade=false
    drop Source s ?=false cascade=false
    17: DROP DATABASE with FORCE is not supported (Leave WITH (FORCE) out.) at <WITH (FORCE)>
    6: DROP INDEX is not supported (There are sources, tables, views, materialized views, schemas and databases to drop.) at <INDEX i>
    6: DROP SINK is not supported (There are sources, tables, views, materialized views, schemas and databases to drop.) at <SINK s>
    6: syntax error at or near "NONSENSE" at <NONSENSE s>
    11: syntax error at end of input at <>
    8: CREATE INDEX is not supported (Filter a materialized view with WHERE: there is nothing to tune.) at <INDEX i ON t>
    8: CREATE INDEX is not supported (Filter a materialized view with WHERE: there is nothing to tune.) at <UNIQUE INDEX>
    8: CREATE SINK is not supported (Read a materialized view with SELECT.) at <SINK s FROM >
    8: CREATE FUNCTION is not supported (Use the functions that are built in.) at <FUNCTION f()>
    8: CREATE USER is not supported (On loopback any user gets in without a password.) at <USER joe>
    8: syntax error at or near "NONSENSE" at <NONSENSE x>
    7: syntax error at end of input at <>
    "#);
}

#[test]
fn commands() {
    insta::assert_snapshot!(check("
        SHOW SOURCES
        SHOW MATERIALIZED VIEWS FROM s LIKE 'a%'
        SHOW DATABASES LIKE 'd'
        SHOW CREATE MATERIALIZED VIEW v
        SHOW COLUMNS FROM a.b
        DESCRIBE v
        SHOW ALL
        SHOW TIME ZONE
        SHOW Server_Version
        SHOW transaction isolation level
        EXPLAIN SELECT 1
        EXPLAIN ANALYZE VERBOSE SELECT 1
        EXPLAIN (ANALYZE, VERBOSE off, COSTS OFF) (SELECT 1)
        EXPLAIN (SELECT 1)
        EXPLAIN ANALYZE MATERIALIZED VIEW s.v
        EXPLAIN CREATE MATERIALIZED VIEW v AS SELECT 1 EMIT ON WINDOW CLOSE
        EXPLAIN (FORMAT JSON) SELECT 1
        EXPLAIN EXPLAIN SELECT 1
        WAIT FOR ad_events
        WAIT FOR s.v TIMEOUT '1.5s'
        WAIT FOR v TIMEOUT INTERVAL '1 minute'
        WAIT FOR v TIMEOUT '-1 s'
        WAIT FOR v TIMEOUT 10
        FLUSH
        FLUSH TABLES
        DECLARE \"C\" NO SCROLL CURSOR WITHOUT HOLD FOR SELECT 1
        DECLARE c SCROLL CURSOR FOR SELECT 1
        DECLARE c CURSOR WITH HOLD FOR SELECT 1
        FETCH FORWARD 100 FROM c
        FETCH ALL IN c
        FETCH c
        FETCH FORWARD ALL FROM c
        FETCH BACKWARD 1 FROM c
        FETCH 0 FROM c
        CLOSE ALL
        CLOSE c
        PREPARE p (INT, TEXT) AS SELECT $1, $2
        PREPARE p AS INSERT INTO t VALUES ($1)
        PREPARE p AS CREATE TABLE t (a INT)
        EXECUTE p (1, 'a' || 'b')
        EXECUTE p
        DEALLOCATE PREPARE ALL
        DEALLOCATE p
        DISCARD ALL
        DISCARD PLANS
    "), @r#"
    ShowObjects { what: Sources, schema: None, like: None }
    ShowObjects { what: MaterializedViews, schema: Some(Name(["s"])), like: Some("a%") }
    ShowObjects { what: Databases, schema: None, like: Some("d") }
    ShowCreate { kind: MaterializedView, name: Name(["v"]) }
    Describe { name: Name(["a", "b"]) }
    Describe { name: Name(["v"]) }
    ShowSetting { name: None }
    ShowSetting { name: Some("timezone") }
    ShowSetting { name: Some("server_version") }
    ShowSetting { name: Some("transaction_isolation") }
    explain analyze=false verbose=false SELECT 1
    explain analyze=true verbose=true SELECT 1
    explain analyze=true verbose=false (SELECT 1)
    explain analyze=false verbose=false (SELECT 1)
    ExplainView { name: Name(["s", "v"]), analyze: true }
    explain analyze=false verbose=false materialized view v ?=false [] with={} emit=OnWindowClose as SELECT 1
    10: this FORMAT option of EXPLAIN is not supported (The options are ANALYZE, VERBOSE, COSTS OFF and FORMAT TEXT.) at <FORMAT JSON)>
    9: syntax error at or near "EXPLAIN" at <EXPLAIN SELE>
    WaitFor { name: Name(["ad_events"]), timeout_ms: None }
    WaitFor { name: Name(["s", "v"]), timeout_ms: Some(1500) }
    WaitFor { name: Name(["v"]), timeout_ms: Some(60000) }
    20: a timeout cannot be negative at <'-1 s'>
    20: syntax error at or near "10" at <10>
    Flush
    7: syntax error at or near "TABLES" at <TABLES>
    declare C SELECT 1
    11: a SCROLL cursor is not supported (Leave SCROLL out and fetch forward.) at <SCROLL CURSO>
    18: a cursor WITH HOLD is not supported (Use the cursor inside a transaction.) at <WITH HOLD FO>
    Fetch { cursor: "c", count: Rows(100), timeout_ms: None }
    Fetch { cursor: "c", count: All, timeout_ms: None }
    Fetch { cursor: "c", count: Rows(1), timeout_ms: None }
    Fetch { cursor: "c", count: All, timeout_ms: None }
    7: FETCH BACKWARD is not supported (Cursors only go forward.) at <BACKWARD 1 F>
    7: FETCH 0 is not supported (Fetch one row or more, or ALL.) at <0 FROM c>
    Close { cursor: None }
    Close { cursor: Some("c") }
    prepare p [Int(None), Text] <SELECT $1, $2> 2
    prepare p [] <INSERT INTO t VALUES ($1)> 1
    14: syntax error at or near "CREATE" at <CREATE TABLE>
    execute p 1 'a' || 'b'
    execute p 
    Deallocate { name: None }
    Deallocate { name: Some("p") }
    Discard
    9: DISCARD PLANS is not supported (Use DISCARD ALL.) at <PLANS>
    "#);
}

#[test]
fn settings_and_transactions() {
    insta::assert_snapshot!(check("
        SET Statement_Timeout = 0
        SET search_path TO Public, \"My Schema\", 'a b'
        SET LOCAL timezone TO 'Europe/Berlin'
        SET SESSION x.y = on
        SET extra_float_digits = -1
        SET TIME ZONE 'UTC'
        SET TIME ZONE LOCAL
        SET TIME ZONE INTERVAL '1' HOUR
        SET NAMES 'UTF8'
        SET x TO DEFAULT
        SET ROLE none
        SET SESSION AUTHORIZATION joe
        SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY
        SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ WRITE
        SET TRANSACTION ISOLATION LEVEL READ UNCOMMITTED
        SET TRANSACTION
        SET x
        RESET ALL
        RESET search_path
        BEGIN
        BEGIN TRANSACTION ISOLATION LEVEL SERIALIZABLE READ ONLY
        START TRANSACTION READ WRITE
        START
        BEGIN READ ONLY,
        COMMIT WORK
        END
        ROLLBACK
        ABORT TRANSACTION
        COMMIT AND CHAIN
        ROLLBACK TO SAVEPOINT a
        SAVEPOINT a
        RELEASE a
    "), @r#"
    Set(Setting { name: "statement_timeout", value: Some("0"), local: false })
    Set(Setting { name: "search_path", value: Some("public, \"My Schema\", \"a b\""), local: false })
    Set(Setting { name: "timezone", value: Some("Europe/Berlin"), local: true })
    Set(Setting { name: "x.y", value: Some("on"), local: false })
    Set(Setting { name: "extra_float_digits", value: Some("-1"), local: false })
    Set(Setting { name: "timezone", value: Some("UTC"), local: false })
    Set(Setting { name: "timezone", value: None, local: false })
    15: SET TIME ZONE INTERVAL is not supported (Name the zone, such as 'Europe/Berlin' or '-08'.) at <INTERVAL '1'>
    Set(Setting { name: "client_encoding", value: Some("UTF8"), local: false })
    Set(Setting { name: "x", value: None, local: false })
    Set(Setting { name: "role", value: Some("none"), local: false })
    Set(Setting { name: "session_authorization", value: Some("joe"), local: false })
    Set(Setting { name: "default_transaction_read_only", value: Some("on"), local: false })
    Set(Several([Setting { name: "transaction_isolation", value: Some("repeatable read"), local: true }, Setting { name: "transaction_read_only", value: Some("off"), local: true }]))
    33: ISOLATION LEVEL READ UNCOMMITTED is not supported (Use READ COMMITTED.) at <READ UNCOMMI>
    16: syntax error at end of input at <>
    6: syntax error at end of input at <>
    Set(ResetAll)
    Set(Setting { name: "search_path", value: None, local: false })
    Begin { read_only: false, isolation: None }
    Begin { read_only: true, isolation: Some(Serializable) }
    Begin { read_only: false, isolation: None }
    6: syntax error at end of input at <>
    17: syntax error at end of input at <>
    Commit
    Commit
    Rollback
    Rollback
    8: AND CHAIN is not supported (Send BEGIN next.) at <AND CHAIN>
    10: ROLLBACK TO SAVEPOINT is not supported (A transaction is committed or rolled back as a whole.) at <TO SAVEPOINT>
    1: SAVEPOINT is not supported (A transaction is committed or rolled back as a whole.) at <SAVEPOINT a>
    1: RELEASE is not supported (A transaction is committed or rolled back as a whole.) at <RELEASE a>
    "#);
}

#[test]
fn queries_and_changes() {
    insta::assert_snapshot!(check("
        VALUES (1, 'a')
        TABLE t
        ((SELECT 1))
        WITH a AS (SELECT 1) SELECT * FROM a ORDER BY 1 OFFSET 2 FETCH FIRST 5 ROWS ONLY
        SELECT DISTINCT ON (a) a, b[1], c::int, x AT TIME ZONE 'UTC' FROM t WHERE a ~ 'x' AND b IS DISTINCT FROM c
        SELECT count(*) FILTER (WHERE a > 1), f(a => 1) FROM t GROUP BY ROLLUP (a)
        INSERT INTO s.t (a, b) VALUES (1, DEFAULT) ON CONFLICT (a) DO NOTHING RETURNING a
        INSERT INTO t SELECT * FROM u
        UPDATE t SET a = 1, b = b + 1 WHERE c RETURNING *
        DELETE FROM t WHERE a = $1
        COPY t (a, b) FROM STDIN WITH (FORMAT csv, HEADER true)
        COPY (SELECT 1) TO STDOUT
        COPY t FROM '/etc/passwd'
        COPY t TO PROGRAM 'cat'
        SELECT * FROM t FOR UPDATE
        SELECT * INTO u FROM t
        SELECT * FROM (SELECT * FROM t TABLESAMPLE SYSTEM (10)) x
        SELECT 1 LIMIT 1, 2
        SELECT 1 FETCH FIRST 1 ROW WITH TIES
        WITH x AS (INSERT INTO t VALUES (1) RETURNING a) SELECT * FROM x
        SELECT * FROM TABLE(f(1))
        INSERT OVERWRITE t SELECT 1
        MERGE INTO t USING u ON true WHEN MATCHED THEN DELETE
        TRUNCATE t
        ALTER TABLE t ADD COLUMN a INT
        VACUUM
        GRANT SELECT ON t TO joe
        REFRESH MATERIALIZED VIEW v
        LISTEN x
    "), @r#"
    VALUES (1, 'a')
    SELECT * FROM t
    ((SELECT 1))
    WITH a AS (SELECT 1) SELECT * FROM a ORDER BY 1 LIMIT 5 OFFSET 2
    SELECT DISTINCT ON (a) a, b[1], c::INT, x AT TIME ZONE 'UTC' FROM t WHERE a ~ 'x' AND b IS DISTINCT FROM c
    SELECT count(*) FILTER (WHERE a > 1), f(a => 1) FROM t GROUP BY ROLLUP (a)
    INSERT INTO s.t (a, b) VALUES (1, DEFAULT) ON CONFLICT(a) DO NOTHING RETURNING a
    INSERT INTO t SELECT * FROM u
    UPDATE t SET a = 1, b = b + 1 WHERE c RETURNING *
    DELETE FROM t WHERE a = $1
    COPY t (a, b) FROM STDIN (FORMAT csv, HEADER)
    COPY (SELECT 1) TO STDOUT
    1: COPY of a file on the server is not supported (Use STDIN or STDOUT, or psql's \copy.) at <COPY t FROM >
    1: COPY with PROGRAM is not supported (Use STDIN or STDOUT.) at <COPY t TO PR>
    1: FOR UPDATE or FOR SHARE is not supported (Leave it out: a read sees one version and locks nothing.) at <SELECT * FRO>
    1: SELECT INTO is not supported (Use CREATE TABLE ... AS SELECT.) at <SELECT * INT>
    1: TABLESAMPLE is not supported (Use a condition in WHERE.) at <SELECT * FRO>
    17: syntax error at or near "," at <, 2>
    1: FETCH FIRST with PERCENT or WITH TIES is not supported (Use FETCH FIRST n ROWS ONLY, or LIMIT.) at <SELECT 1 FET>
    1: INSERT behind or inside WITH is not supported (Put WITH behind it: INSERT INTO t WITH ... SELECT ....) at <WITH x AS (I>
    1: TABLE(...) around anything but a window function is not supported (HOP, TUMBLE, CUMULATE and SESSION go there.) at <SELECT * FRO>
    1: this form of INSERT is not supported (Write INSERT INTO table [(columns)] VALUES (...) or a query.) at <INSERT OVERW>
    1: MERGE is not supported (Use INSERT ... ON CONFLICT, UPDATE and DELETE.) at <MERGE INTO t>
    1: TRUNCATE is not supported (Use DELETE FROM without a WHERE clause.) at <TRUNCATE t>
    1: ALTER TABLE is not supported (Drop the object and create it again; of a source, ALTER SOURCE changes the bounds of its event time.) at <ALTER TABLE >
    1: VACUUM is not supported (The engine looks after its storage by itself.) at <VACUUM>
    1: GRANT is not supported (There are no privileges: whoever connects may do everything.) at <GRANT SELECT>
    1: REFRESH is not supported (A materialized view is always current.) at <REFRESH MATE>
    1: LISTEN is not supported (Ask a materialized view for changes with SELECT.) at <LISTEN x>
    "#);
}

#[test]
fn sources_are_altered_and_jobs_cancelled() {
    insta::assert_snapshot!(check("
        ALTER SOURCE s SET (allowed_lateness = '1 minute', idle_advance = true)
        ALTER SOURCE IF EXISTS a.s RESET (max_future, properties.x.y)
        ALTER SOURCE s RESET TO earliest
        ALTER SOURCE s RESET TO LATEST
        ALTER SOURCE s RESET WATERMARK
        ALTER SOURCE s RESET WATERMARK TO TIMESTAMPTZ '2026-01-01'
        SHOW JOBS
        CANCEL JOB 16390
        CANCEL JOBS 1, 2
        ALTER SOURCE s RESET TO 5
        ALTER SOURCE s RESET WATERMARK TO
        ALTER SOURCE s RENAME TO t
        ALTER MATERIALIZED VIEW v RENAME TO w
        CANCEL JOB x
        CANCEL JOB -1
    "), @r#"
    AlterSource { name: Name(["s"]), if_exists: false, change: Set({"allowed_lateness": "1 minute", "idle_advance": "true"}) }
    AlterSource { name: Name(["a", "s"]), if_exists: true, change: Reset(["max_future", "properties.x.y"]) }
    AlterSource { name: Name(["s"]), if_exists: false, change: ResetTo(Earliest) }
    AlterSource { name: Name(["s"]), if_exists: false, change: ResetTo(Latest) }
    AlterSource { name: Name(["s"]), if_exists: false, change: ResetWatermark { to: None } }
    AlterSource { name: Name(["s"]), if_exists: false, change: ResetWatermark { to: Some("2026-01-01") } }
    ShowJobs
    CancelJobs { ids: [16390] }
    CancelJobs { ids: [1, 2] }
    25: syntax error at or near "5" (Write RESET TO earliest or RESET TO latest.) at <5>
    34: syntax error at end of input at <>
    16: ALTER SOURCE ... RENAME is not supported (There are SET (...), RESET (...), RESET TO earliest | latest and RESET WATERMARK.) at <RENAME TO t>
    1: ALTER MATERIALIZED VIEW is not supported (Drop the object and create it again; of a source, ALTER SOURCE changes the bounds of its event time.) at <ALTER MATERI>
    12: syntax error at or near "x" at <x>
    12: there is no job -1 at <-1>
    "#);
    insta::assert_snapshot!(show(
        "CREATE SOURCE s (ts TIMESTAMP, WATERMARK FOR ts AS ts) WITH (connector = 'datagen') LATE ROWS INTO a.late FORMAT PLAIN ENCODE JSON"
    ), @r#"source s (ts TIMESTAMP) watermark=Some(("ts", 0)) include=[] with={"connector": "datagen"} PLAIN JSON {} late=a.late"#);
}

#[test]
fn views_are_reconciled() {
    insta::assert_snapshot!(check("
        RECONCILE MATERIALIZED VIEW a.v
        RECONCILE MATERIALIZED VIEW v FROM '2026-01-01' TO '2026-01-02' WITH (corrections = true) REPAIR
        RECONCILE MATERIALIZED VIEW v FROM now() - INTERVAL '1 day' TO now() REPAIR
        RECONCILE MATERIALIZED VIEW v TO '2026-01-01' WITH (corrections)
        RECONCILE MATERIALIZED VIEW v WITH (force = true) REPAIR
        RECONCILE MATERIALIZED VIEW v FROM 1 2 TO 3
        RECONCILE MATERIALIZED VIEW v FROM
        RECONCILE MATERIALIZED VIEW v REPAIR now
        RECONCILE VIEW v
        RECONCILE v
        EXPLAIN RECONCILE MATERIALIZED VIEW v
    "), @r#"
    reconcile a.v None None repair=false false
    reconcile v Some("'2026-01-01'") Some("'2026-01-02'") repair=true true
    reconcile v Some("now() - INTERVAL '1 day'") Some("now()") repair=true false
    47: RECONCILE ... WITH (corrections) without REPAIR is not supported (Without REPAIR nothing is changed: leave the option out, or write REPAIR at the end.) at <WITH (correc>
    37: option FORCE of RECONCILE is not supported (The option is CORRECTIONS, of REPAIR.) at <force = true>
    38: syntax error at or near "2" at <2 TO 3>
    35: syntax error at end of input at <>
    38: syntax error at or near "now" at <now>
    11: RECONCILE VIEW is not supported (RECONCILE takes a MATERIALIZED VIEW: it compares the rows that the engine keeps with its query.) at <VIEW v>
    11: syntax error at or near "v" at <v>
    9: EXPLAIN RECONCILE is not supported (EXPLAIN the SELECT of the view: that is what is recomputed.) at <RECONCILE MA>
    "#);
}

#[test]
fn syntax_errors_point_at_the_token() {
    insta::assert_snapshot!(check("
        SELEC 1
        SELECT 1 FROM
        SELECT * FROM t WHERE a = = 1
        SELECT 'ä', '日本' FROM t WHERE )
        SELECT 1; SELECT 2 FROM; SELECT 3
        SELECT 1 2
        SELECT (1
        SELECT 1)
        SELECT 'abc
        SELECT \"abc
        SELECT $$abc
        SELECT /* abc
        SELECT E'abc
        SELECT $0
        SELECT $70000
        SELECT $x
        INSERT INTO
        42
        ,
    "), @r#"
    1: syntax error at or near "SELEC" at <SELEC 1>
    14: syntax error at end of input at <>
    27: syntax error at or near "=" at <= 1>
    31: syntax error at or near ")" at <)>
    24: syntax error at or near ";" at <; SELECT 3>
    10: syntax error at or near "2" at <2>
    10: syntax error at end of input at <>
    9: syntax error at or near ")" at <)>
    8: unterminated quoted string at or near "'abc" at <'abc>
    8: unterminated quoted identifier at or near ""abc" at <"abc>
    8: unterminated dollar-quoted string at or near "$$abc" at <$$abc>
    8: unterminated /* comment at or near "/* abc" at </* abc>
    8: unterminated quoted string at or near "E'abc" at <E'abc>
    8: there is no parameter $0 at <$0>
    8: there is no parameter $70000 at <$70000>
    8: syntax error at or near "$x" at <$x>
    12: syntax error at end of input at <>
    1: syntax error at or near "42" at <42>
    1: syntax error at or near "," at <,>
    "#);
    assert_eq!(show("SELECT 1;\n\n  SELECT 'é'\n  FROM;"), "31: syntax error at or near \";\" at <;>");
}

#[test]
fn several_statements_keep_their_text_and_parameters() {
    let parsed =
        parse(" ;; SELECT 'a;b' , $2 ;\n-- a comment\nSHOW TABLES -- behind\n; /* x */ INSERT INTO t VALUES ($1);")
            .unwrap();
    let seen: Vec<(&str, usize)> = parsed.iter().map(|p| (p.text.as_str(), p.parameters)).collect();
    assert_eq!(seen, [("SELECT 'a;b' , $2", 2), ("SHOW TABLES", 0), ("INSERT INTO t VALUES ($1)", 1)]);
    assert!(parse(" ; -- nothing").unwrap().is_empty());
    assert_eq!(show("SELECT 'a'\n  'b'"), "SELECT 'ab'");
}

/// Whatever is sent, the answer is statements or an error: within a stack of 16 MiB, as the server gives its threads.
#[test]
fn hostile_texts() {
    let many = 100_000;
    let mut texts: Vec<String> = vec![
        "(".repeat(many),
        format!("SELECT {}", "(".repeat(many)),
        format!("SELECT {}1{}", "(".repeat(5000), ")".repeat(5000)),
        format!("SELECT {}", "[".repeat(many)),
        format!("SELECT 1{}", " OR 1".repeat(many / 5)),
        format!("SELECT 1{}", " UNION SELECT 1".repeat(many / 20)),
        format!("SELECT 1{}", "::int".repeat(many / 5)),
        format!("SELECT 1{}", " IS NULL".repeat(many / 8)),
        format!("CREATE TABLE t (a {}", "ARRAY<".repeat(many / 6)),
        format!("CREATE TABLE t (a INT{})", "[]".repeat(many / 2)),
        "SELECT \0".into(),
        "\u{feff}SELECT 1".into(),
        "'".repeat(many + 1),
        ";".repeat(many),
        "SELECT 1;".repeat(many / 10),
        format!("SELECT {}", "a.".repeat(many / 2)),
        format!("SELECT {}", "-".repeat(many)),
        format!("SELECT {}1", "- ".repeat(many / 2)),
        format!("SELECT {}", "/*".repeat(many / 2)),
        format!("SELECT * FROM {}", "a JOIN ".repeat(many / 7)),
    ];
    for n in [399, 400, 999, 1999, 2000] {
        texts.push(format!("SELECT 1{}", " OR 1".repeat(n)));
        texts.push(format!("SELECT 1{}", " UNION SELECT 1".repeat(n)));
        texts.push(format!("SELECT 1{}", "::int".repeat(n)));
        texts.push(format!("SELECT 1{}", " IS NULL".repeat(n)));
        texts.push(format!("CREATE TABLE t (a INT{})", "[]".repeat(n)));
        texts.push(format!("SELECT 1::INT{}", "[]".repeat(n)));
        texts.push(format!("CREATE TABLE t (a {}INT{})", "ARRAY<".repeat(n), ">".repeat(n)));
        texts.push(format!("SELECT 1::{}INT{}", "ARRAY<".repeat(n), ">".repeat(n)));
        texts.push(format!("SELECT a{}", "[1]".repeat(n)));
        texts.push(format!("SELECT 1 {}", " INTERVAL".repeat(n)));
    }
    for nested in [
        "SELECT f(",
        "SELECT CAST(",
        "SELECT SUBSTRING(",
        "SELECT EXTRACT(",
        "SELECT CASE WHEN ",
        "SELECT NOT ",
        "SELECT EXISTS(SELECT ",
        "SELECT * FROM (",
        "SELECT * FROM ((",
        "SELECT * FROM (SELECT * FROM ",
        "SELECT a IN (",
        "SELECT a IN ((",
        "WITH a AS (",
        "SELECT INTERVAL ",
        "EXPLAIN ",
        "SELECT ARRAY[",
        "SELECT ROW(",
        "SELECT TRIM(",
        "SELECT POSITION(",
        "SELECT * FROM LATERAL (",
        "SELECT * FROM TABLE(",
        "SELECT DATE ",
        "SELECT x -> ",
        "SELECT {",
        "PREPARE p AS ",
        "SELECT ALL(",
        "SELECT a = ANY(",
        "SELECT CASE ",
        "SELECT COALESCE(1, ",
        "CREATE TABLE t (a TABLE (a ",
        "SELECT 1::TABLE(a ",
        "SELECT CAST(1 AS TABLE(a ",
    ] {
        let (head, tail) = nested.split_at(nested.find(' ').map_or(0, |blank| blank + 1));
        let repeated = if tail.is_empty() { nested } else { tail };
        for n in [30, 60, 128, 2000] {
            texts.push(format!("{head}{}", repeated.repeat(n)));
            texts.push(format!("{head}{}1 !", repeated.repeat(n)));
            let closing: String =
                repeated.chars().filter(|c| "([{".contains(*c)).map(|c| if c == '(' { ')' } else { ']' }).collect();
            texts.push(format!("{head}{}1{}", repeated.repeat(n), closing.repeat(n)));
        }
    }
    let all = move || {
        for text in &texts {
            match parse(text) {
                Ok(statements) => drop(statements.clone()),
                Err(error) => assert!(error.position().is_some(), "{error}"),
            }
        }
    };
    let thread = std::thread::Builder::new().stack_size(16 << 20).spawn(all).expect("a thread starts");
    thread.join().expect("no text panics");
}
