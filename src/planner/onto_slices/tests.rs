//! What is put onto slices, and what is not. `check` shows the plan of a view over these.

use std::sync::Arc;

use insta::assert_snapshot;

use super::{Plans, onto_slices};
use crate::planner::plan_tests::{catalog, names};
use crate::planner::{define, explain};
use crate::sql;

const VIEWS: &str = "
CREATE SOURCE e (ad BIGINT, country VARCHAR, kind VARCHAR, price DOUBLE PRECISION, n INT, ts TIMESTAMPTZ, WATERMARK FOR ts AS ts)
WITH (connector = 'kafka', topic = 'e', properties.bootstrap.server = 'localhost:9092') FORMAT PLAIN ENCODE JSON;
CREATE TABLE t (k VARCHAR, v BIGINT, ts TIMESTAMPTZ);
CREATE MATERIALIZED VIEW minutes AS
SELECT ad, country, window_start, window_end, count(*) AS rows, count(*) FILTER (WHERE kind = 'click') AS clicks, sum(n) AS total,
       sum(price) AS spent, min(price) AS cheapest, max(n) AS most, avg(price) AS mean, bool_or(kind = 'click') AS any_click,
       count(DISTINCT kind) AS kinds
FROM TUMBLE(e, ts, INTERVAL '1 minute') GROUP BY ad, country, window_start, window_end;
CREATE MATERIALIZED VIEW hops AS
SELECT lower(country) AS land, window_end, sum(n)::bigint AS total FROM HOP(e, ts, INTERVAL '10 seconds', INTERVAL '1 minute') GROUP BY lower(country), window_end;
CREATE MATERIALIZED VIEW so_far AS
SELECT ad, window_start, window_end, count(*) AS rows FROM CUMULATE(e, ts, INTERVAL '1 minute', INTERVAL '1 hour') GROUP BY ad, window_start, window_end;
CREATE MATERIALIZED VIEW closed AS
SELECT ad, window_start, count(*) AS rows FROM TUMBLE(e, ts, INTERVAL '1 minute') GROUP BY ad, window_start EMIT ON WINDOW CLOSE;
CREATE MATERIALIZED VIEW busy AS
SELECT ad, window_start, count(*) AS rows FROM TUMBLE(e, ts, INTERVAL '1 minute') GROUP BY ad, window_start HAVING count(*) > 10;
CREATE MATERIALIZED VIEW every_10s AS
SELECT ad, window_start, count(*) AS rows FROM TUMBLE(e, ts, INTERVAL '1 minute') GROUP BY ad, window_start EMIT EVERY INTERVAL '10 seconds';
CREATE MATERIALIZED VIEW of_table AS SELECT k, window_start, sum(v) AS s FROM TUMBLE(t, ts, INTERVAL '1 minute') GROUP BY k, window_start;
";

fn check(query: &str) -> String {
    let mut catalog = catalog("CREATE TABLE unused (x INT)");
    let mut running = Plans::new();
    let mut text = String::new();
    for parsed in sql::parse(&format!("{VIEWS} CREATE MATERIALIZED VIEW outermost AS {query}")).expect("SQL") {
        let definition = define(&parsed.statement, &catalog, &names()).expect("a definition");
        let (next, oid) = catalog.create(definition.object).expect("the name is free");
        catalog = Arc::new(next);
        if let Some(plan) = definition.plan {
            let plan = match onto_slices(plan, &running) {
                Ok(plan) => plan,
                Err(error) => return error.to_string(),
            };
            text = explain(&plan);
            running.insert(oid, Arc::new(plan));
        }
    }
    text
}

#[test]
fn filters_and_projections_read_the_inner_store() {
    assert_snapshot!(check("SELECT ad, clicks * 2 AS twice, window_end FROM minutes WHERE country = 'DE' AND clicks > 3"), @r"
    View: read through the slices of [minutes]
      Project: ad, count(*) FILTER (kind = 'click') * 2 AS twice, window_end
        Filter: country = 'DE' AND count(*) FILTER (kind = 'click') > 3
          Aggregate: TUMBLE(size=1m) of ts, slice=1m, group=[ad, country, window_start, window_end], calls=[count(*) FILTER (kind = 'click')]
            Scan: source e (oid 16385), columns=[ad, country, kind, price, n, ts] append-only
    ");
    assert_snapshot!(check("SELECT ad, rows FROM closed WHERE ad < 5"), @r"
    View: EMIT ON WINDOW CLOSE, read through the slices of [closed]
      Project: ad, count(*) AS rows append-only
        Filter: ad < 5 append-only
          Aggregate: TUMBLE(size=1m) of ts, slice=1m, group=[ad, window_start], calls=[count(*)] append-only
            Scan: source e (oid 16385), columns=[ad, ts] append-only
    ");
    assert_snapshot!(check("SELECT k, s FROM of_table WHERE s > 0"), @r"
    Filter: s > 0
      Scan: materialized view of_table (oid 16393), columns=[k, s]
    ");
}

#[test]
fn coarser_keys() {
    assert_snapshot!(check("SELECT upper(country) AS land, window_start, sum(rows) AS rows, sum(clicks) FILTER (WHERE ad < 9)::bigint AS some, sum(total) AS total,
        sum(spent) AS spent, min(cheapest) AS cheapest, max(most) AS most, bool_or(any_click) AS any_click
        FROM minutes WHERE ad > 0 AND window_end > '2026-01-01' GROUP BY upper(country), window_start"), @r"
    View: read through the slices of [minutes]
      Project: upper(country) AS land, window_start, CAST(count(*) AS Decimal128(29, 0)) AS rows, CASE WHEN count(*) FILTER (ad < 9) > 0 THEN count(*) FILTER (kind = 'click' AND ad < 9) END AS some, CAST(sum(CAST(n AS Int64)) AS Decimal128(29, 0)) AS total, sum(price) AS spent, min(price) AS cheapest, max(n) AS most, bool_or(kind = 'click') AS any_click
        Filter: window_end > '2026-01-01T00:00:00Z'
          Aggregate: TUMBLE(size=1m) of ts, slice=1m, group=[upper(country), window_start, window_end], calls=[count(*), count(*) FILTER (kind = 'click' AND ad < 9), count(*) FILTER (ad < 9), sum(CAST(n AS Int64)), sum(price), min(price), max(n), bool_or(kind = 'click')]
            Filter: ad > 0 append-only
              Scan: source e (oid 16385), columns=[ad, country, kind, price, n, ts] append-only
    ");
    assert_snapshot!(check("SELECT window_end, sum(total) AS total FROM hops GROUP BY window_end"), @r"
    View: read through the slices of [hops]
      Project: window_end, CAST(sum(CAST(n AS Int64)) AS Decimal128(29, 0)) AS total
        Aggregate: HOP(slide=10s, size=1m) of ts, slice=10s, group=[window_end], calls=[sum(CAST(n AS Int64))]
          Scan: source e (oid 16385), columns=[country, n, ts] append-only
    ");
    assert_snapshot!(check("SELECT window_start, sum(rows) AS rows FROM closed GROUP BY window_start"), @r"
    View: EMIT ON WINDOW CLOSE, read through the slices of [closed]
      Project: window_start, CAST(count(*) AS Decimal128(29, 0)) AS rows append-only
        Aggregate: TUMBLE(size=1m) of ts, slice=1m, group=[window_start], calls=[count(*)] append-only
          Scan: source e (oid 16385), columns=[ad, ts] append-only
    ");
    assert_snapshot!(check("SELECT window_start, sum(s) AS s FROM of_table GROUP BY window_start"), @r"
    View: read through the slices of [of_table]
      Project: window_start, CAST(sum(CAST(v AS Decimal128(19, 0))) AS Decimal128(38, 0)) AS s
        Aggregate: TUMBLE(size=1m) of ts, slice=1m, group=[window_start], calls=[sum(CAST(v AS Decimal128(19, 0)))]
          Scan: table t (oid 16386), columns=[k, v, ts]
    ");
}

#[test]
fn larger_windows() {
    assert_snapshot!(check("SELECT ad, window_start, sum(clicks)::bigint AS clicks FROM TUMBLE(minutes, window_start, INTERVAL '5 minutes') GROUP BY ad, window_start"), @r"
    View: read through the slices of [minutes]
      Project: ad, window_start, count(*) FILTER (kind = 'click') AS clicks
        Aggregate: TUMBLE(size=5m) of ts, slice=5m, group=[ad, window_start], calls=[count(*) FILTER (kind = 'click')]
          Scan: source e (oid 16385), columns=[ad, country, kind, price, n, ts] append-only
    ");
    assert_snapshot!(check("SELECT window_end, sum(total) AS total FROM HOP((SELECT *, window_end - INTERVAL '1 millisecond' AS moment FROM minutes), moment, INTERVAL '2 minutes', INTERVAL '1 hour') GROUP BY window_end"), @r"
    View: read through the slices of [minutes]
      Project: window_end, CAST(sum(CAST(n AS Int64)) AS Decimal128(29, 0)) AS total
        Aggregate: HOP(slide=2m, size=1h) of ts, slice=2m, group=[window_end], calls=[sum(CAST(n AS Int64))]
          Scan: source e (oid 16385), columns=[ad, country, kind, price, n, ts] append-only
    ");
    assert_snapshot!(check("SELECT window_start, window_end, sum(rows) AS rows FROM so_far WHERE ad > 7 GROUP BY window_start, window_end"), @r"
    View: read through the slices of [so_far]
      Project: window_start, window_end, CAST(count(*) AS Decimal128(29, 0)) AS rows
        Aggregate: CUMULATE(step=1m, size=1h) of ts, slice=1m, group=[window_start, window_end], calls=[count(*)]
          Filter: ad > 7 append-only
            Scan: source e (oid 16385), columns=[ad, ts] append-only
    ");
    assert_snapshot!(check("SELECT window_start, window_end, sum(rows) AS rows FROM CUMULATE(minutes, window_start, INTERVAL '10 minutes', INTERVAL '1 day') GROUP BY window_start, window_end"), @r"
    View: read through the slices of [minutes]
      Project: window_start, window_end, CAST(count(*) AS Decimal128(29, 0)) AS rows
        Aggregate: CUMULATE(step=10m, size=1d) of ts, slice=10m, group=[window_start, window_end], calls=[count(*)]
          Scan: source e (oid 16385), columns=[ad, country, kind, price, n, ts] append-only
    ");
    assert_snapshot!(check("SELECT t, sum(clicks) AS clicks FROM (SELECT ad, window_start AS t, sum(clicks) AS clicks FROM minutes GROUP BY ad, window_start) GROUP BY t"), @r"
    View: read through the slices of [minutes]
      Project: t, CAST(count(*) FILTER (kind = 'click') AS Decimal128(38, 0)) AS clicks
        Aggregate: TUMBLE(size=1m) of ts, slice=1m, group=[window_start], calls=[count(*) FILTER (kind = 'click')]
          Scan: source e (oid 16385), columns=[ad, country, kind, price, n, ts] append-only
    ");
    assert_snapshot!(check("SELECT window_start, sum(rows) AS rows FROM TUMBLE(closed, window_start, INTERVAL '1 hour') GROUP BY window_start EMIT ON WINDOW CLOSE"), @r"
    View: EMIT ON WINDOW CLOSE, read through the slices of [closed]
      Project: window_start, CAST(count(*) AS Decimal128(29, 0)) AS rows append-only
        Aggregate: TUMBLE(size=1h) of ts, slice=1h, group=[window_start], calls=[count(*)] append-only
          Scan: source e (oid 16385), columns=[ad, ts] append-only
    ");
}

/// What emits is behind the slices beneath it, and is read by its rows; below its own emissions it is read from slices.
#[test]
fn emissions() {
    assert_snapshot!(check("SELECT ad, window_start, clicks FROM minutes WHERE ad > 7 EMIT EVERY INTERVAL '10 seconds'"), @r"
    View: read through the slices of [minutes]
      EmitEvery: 10s
        Project: ad, window_start, count(*) FILTER (kind = 'click') AS clicks
          Filter: ad > 7
            Aggregate: TUMBLE(size=1m) of ts, slice=1m, group=[ad, country, window_start, window_end], calls=[count(*) FILTER (kind = 'click')]
              Scan: source e (oid 16385), columns=[ad, country, kind, price, n, ts] append-only
    ");
    assert_snapshot!(check("SELECT window_start, sum(rows) AS rows FROM closed GROUP BY window_start EMIT EVERY INTERVAL '10 seconds'"), @r"
    EmitEvery: 10s
      Project: window_start, sum(CAST(rows AS Decimal128(19, 0))) AS rows
        Aggregate: group=[window_start], calls=[sum(CAST(rows AS Decimal128(19, 0)))]
          Scan: materialized view closed (oid 16390), columns=[window_start, rows] append-only
    ");
    assert_snapshot!(check("SELECT window_start, sum(rows) AS rows FROM TUMBLE(every_10s, window_start, INTERVAL '1 hour') GROUP BY window_start"), @r"
    Project: window_start, sum(CAST(rows AS Decimal128(19, 0))) AS rows
      Aggregate: TUMBLE(size=1h) of window_start, slice=1h, group=[window_start], calls=[sum(CAST(rows AS Decimal128(19, 0)))]
        Scan: materialized view every_10s (oid 16392), columns=[window_start, rows]
    ");
}

/// What is final of a view that shows more: always from its slices.
#[test]
fn final_rows_of_a_view_that_shows_more() {
    assert_snapshot!(check("SELECT window_end, sum(total) AS total FROM hops GROUP BY window_end EMIT ON WINDOW CLOSE"), @r"
    View: EMIT ON WINDOW CLOSE, read through the slices of [hops]
      Project: window_end, CAST(sum(CAST(n AS Int64)) AS Decimal128(29, 0)) AS total append-only
        Aggregate: HOP(slide=10s, size=1m) of ts, slice=10s, group=[window_end], calls=[sum(CAST(n AS Int64))] append-only
          Scan: source e (oid 16385), columns=[country, n, ts] append-only
    ");
    assert_snapshot!(check("SELECT ad, window_start, rows FROM busy WHERE ad < 5 EMIT ON WINDOW CLOSE"), @r"
    View: EMIT ON WINDOW CLOSE, read through the slices of [busy]
      Project: ad, window_start, count(*) AS rows append-only
        Filter: count(*) > 10 AND ad < 5 append-only
          Aggregate: TUMBLE(size=1m) of ts, slice=1m, group=[ad, window_start], calls=[count(*)] append-only
            Scan: source e (oid 16385), columns=[ad, ts] append-only
    ");
    assert_snapshot!(check("SELECT ad, rows, window_start FROM (SELECT *, row_number() OVER (PARTITION BY window_start ORDER BY rows DESC, ad) AS place FROM busy)
        WHERE place <= 3 EMIT ON WINDOW CLOSE"), @r"
    View: EMIT ON WINDOW CLOSE, read through the slices of [busy]
      Project: ad, rows, window_start append-only
        TopN: partition=[window_start], order=[rows DESC, ad], limit=3 append-only
          Project: ad, window_start, count(*) AS rows append-only
            Filter: count(*) > 10 append-only
              Aggregate: TUMBLE(size=1m) of ts, slice=1m, group=[ad, window_start], calls=[count(*)] append-only
                Scan: source e (oid 16385), columns=[ad, ts] append-only
    ");
    let refused = [
        ("SELECT window_start, count(*) AS groups FROM minutes GROUP BY window_start", "minutes"),
        ("SELECT ad, window_start, rows FROM every_10s", "every_10s"),
        ("SELECT ad, window_start, rows FROM busy UNION ALL SELECT ad, window_start, rows FROM every_10s", "every_10s"),
    ];
    for (query, of) in refused {
        let error = check(&format!("{query} EMIT ON WINDOW CLOSE"));
        let told = format!("EMIT ON WINDOW CLOSE cannot tell when rows of \"{of}\" are final");
        assert_eq!(error, told, "{query}");
    }
}

/// Where it would not be equal, the inner view's rows are taken, with those of its aggregates that are needed.
#[test]
fn what_is_not_put_onto_slices() {
    let unequal = [
        // Of groups, not of rows.
        "SELECT country, window_start, count(*) AS groups FROM minutes GROUP BY country, window_start",
        "SELECT country, window_start, avg(clicks) AS a FROM minutes GROUP BY country, window_start",
        "SELECT country, window_start, max(clicks) AS a FROM minutes GROUP BY country, window_start",
        "SELECT country, window_start, min(most) AS a FROM minutes GROUP BY country, window_start",
        "SELECT country, window_start, sum(DISTINCT clicks) AS a FROM minutes GROUP BY country, window_start",
        "SELECT country, window_start, sum(kinds) AS a FROM minutes GROUP BY country, window_start",
        "SELECT country, window_start, avg(mean) AS a FROM minutes GROUP BY country, window_start",
        "SELECT country, window_start, sum(clicks + 1) AS a FROM minutes GROUP BY country, window_start",
        // Groups that an aggregate decides about.
        "SELECT window_start, sum(rows) AS a FROM busy GROUP BY window_start",
        "SELECT window_start, sum(rows) AS a FROM minutes WHERE clicks > 0 GROUP BY window_start",
        "SELECT window_start, sum(rows) FILTER (WHERE clicks > 0) AS a FROM minutes GROUP BY window_start",
        "SELECT clicks, window_start, sum(rows) AS a FROM minutes GROUP BY clicks, window_start",
        // No window, or one that the inner windows do not tile.
        "SELECT ad, sum(rows) AS a FROM minutes GROUP BY ad",
        "SELECT window_start, sum(rows) AS a FROM TUMBLE(minutes, window_start, INTERVAL '90 seconds') GROUP BY window_start",
        "SELECT window_start, sum(rows) AS a FROM TUMBLE(minutes, window_start, INTERVAL '5 minutes', INTERVAL '30 seconds') GROUP BY window_start",
        "SELECT window_start, sum(rows) AS a FROM TUMBLE(minutes, window_end, INTERVAL '5 minutes') GROUP BY window_start",
        "SELECT window_start, sum(total) AS a FROM TUMBLE(hops, window_end, INTERVAL '5 minutes') GROUP BY window_start",
        "SELECT w.window_start, sum(rows) AS a FROM TUMBLE((SELECT rows, window_start AS s, window_end AS e FROM minutes), s, INTERVAL '5 minutes') w WHERE e > '2026-01-01' GROUP BY w.window_start",
        "SELECT window_start, sum(rows) AS a FROM so_far GROUP BY window_start",
        "SELECT window_start, sum(rows) AS a FROM TUMBLE(so_far, window_start, INTERVAL '1 hour') GROUP BY window_start",
        // What the inner view holds back would be shown.
        "SELECT window_start, sum(rows) AS a FROM TUMBLE(closed, window_start, INTERVAL '1 hour') GROUP BY window_start",
        // Not an aggregation.
        "SELECT ad, clicks FROM minutes ORDER BY clicks DESC, ad LIMIT 3",
    ];
    for query in unequal {
        let plan = check(query);
        let own = plan.matches("Aggregate:").count() + plan.matches("TopN:").count();
        let read = plan.matches("Scan: materialized view").count();
        assert_eq!(own + read, 2, "one for the inner view, one for the outer: {query}\n{plan}");
    }
}
