//! Views as the stream plans they become. A catalog is made by DDL; `check` shows the plan of one more view, or why it is
//! refused.

use std::sync::Arc;

use insta::assert_snapshot;

use super::*;
use crate::catalog::{Catalog, NameContext};
use crate::sql;

/// The objects of DESIGN's examples, and some more.
pub(super) const OBJECTS: &str = "
CREATE SOURCE ad_events (
  event_id VARCHAR, ad_id BIGINT, event_type VARCHAR, user_id BIGINT,
  country VARCHAR, device VARCHAR, ts TIMESTAMPTZ,
  WATERMARK FOR ts AS ts - INTERVAL '10 seconds'
) WITH (
  connector = 'kafka', topic = 'ad_events',
  properties.bootstrap.server = 'localhost:9092',
  scan.startup.mode = 'earliest'
) FORMAT PLAIN ENCODE JSON;
CREATE TABLE campaigns (ad_id BIGINT PRIMARY KEY, campaign VARCHAR);
CREATE TABLE t (v INT, ts TIMESTAMP, WATERMARK FOR ts AS ts - INTERVAL '1 second') APPEND ONLY;
CREATE TABLE facts (k INT, s SMALLINT, n BIGINT, x DOUBLE PRECISION, d DATE, note VARCHAR DEFAULT 'none');
CREATE VIEW clicks AS SELECT * FROM ad_events WHERE event_type = 'click';
CREATE MATERIALIZED VIEW ad_1m AS
SELECT ad_id, country, window_start, window_end,
       count(*) FILTER (WHERE event_type = 'click')      AS clicks,
       count(*) FILTER (WHERE event_type = 'impression') AS impressions
FROM HOP(ad_events, ts, INTERVAL '10 seconds', INTERVAL '1 minute')
GROUP BY ad_id, country, window_start, window_end;
";

pub(super) fn names() -> NameContext {
    NameContext::new("dev", "ann")
}

/// The catalog that these statements make.
pub(super) fn catalog(ddl: &str) -> Arc<Catalog> {
    let mut catalog = Arc::new(Catalog::new());
    for parsed in sql::parse(ddl).expect("the DDL parses") {
        let definition = define(&parsed.statement, &catalog, &names()).expect("the DDL is fine");
        catalog = Arc::new(catalog.create(definition.object).expect("the name is free").0);
    }
    catalog
}

/// Notices and plan of `CREATE MATERIALIZED VIEW v AS query`, or the error with its hint.
fn check(query: &str) -> String {
    let text = if query.contains("CREATE ") { query.into() } else { format!("CREATE MATERIALIZED VIEW v AS {query}") };
    let statement = match sql::parse(&text) {
        Ok(mut parsed) => parsed.remove(0).statement,
        Err(error) => return format!("error: {error}"),
    };
    match define(&statement, &catalog(OBJECTS), &names()) {
        Ok(definition) => {
            let mut lines: Vec<String> = definition.notices.iter().map(|n| format!("notice: {n}")).collect();
            lines.extend(definition.plan.as_ref().map(explain));
            lines.join("\n")
        }
        Err(error) => {
            let place = error.position(&text).map(|at| format!(" (at {at})")).unwrap_or_default();
            let hint = error.hint().map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
            format!("error: {error}{place}{hint}")
        }
    }
}

/// The view of DESIGN section 3, in both spellings of HOP.
#[test]
fn design_view() {
    assert_snapshot!(check("SELECT ad_id, country, window_start, window_end,
               count(*) FILTER (WHERE event_type = 'click')      AS clicks,
               count(*) FILTER (WHERE event_type = 'impression') AS impressions
        FROM HOP(ad_events, ts, INTERVAL '10 seconds', INTERVAL '1 minute')
        GROUP BY ad_id, country, window_start, window_end"), @r"
    Project: ad_id, country, window_start, window_end, count(*) FILTER (event_type = 'click') AS clicks, count(*) FILTER (event_type = 'impression') AS impressions
      Aggregate: HOP(slide=10s, size=1m) of ts, slice=10s, group=[ad_id, country, window_start, window_end], calls=[count(*) FILTER (event_type = 'click'), count(*) FILTER (event_type = 'impression')]
        Scan: source ad_events (oid 16384), columns=[ad_id, event_type, country, ts] append-only
    ");
    assert_snapshot!(check("SELECT ad_id, country, window_start, window_end,
               count(*) FILTER (WHERE event_type = 'click')      AS clicks,
               count(*) FILTER (WHERE event_type = 'impression') AS impressions
        FROM TABLE(HOP(TABLE ad_events, DESCRIPTOR(ts), INTERVAL '10 seconds', INTERVAL '1 minute'))
        GROUP BY ad_id, country, window_start, window_end"), @r"
    Project: ad_id, country, window_start, window_end, count(*) FILTER (event_type = 'click') AS clicks, count(*) FILTER (event_type = 'impression') AS impressions
      Aggregate: HOP(slide=10s, size=1m) of ts, slice=10s, group=[ad_id, country, window_start, window_end], calls=[count(*) FILTER (event_type = 'click'), count(*) FILTER (event_type = 'impression')]
        Scan: source ad_events (oid 16384), columns=[ad_id, event_type, country, ts] append-only
    ");
}

/// What stands between GROUP BY and the window is put where it belongs.
#[test]
fn windows_are_looked_for_below_projections_and_filters() {
    assert_snapshot!(check("WITH e AS (SELECT lower(country) AS c, window_start AS s, event_type = 'click' AS is_click, user_id
                   FROM TUMBLE(ad_events, ts, INTERVAL '1 minute', INTERVAL '15 seconds') w WHERE device <> 'bot' AND window_end > '2024-01-01')
        SELECT c, s, count(*) FILTER (WHERE is_click) AS clicks, count(DISTINCT user_id) AS users FROM e WHERE c IN ('de', 'fr') GROUP BY c, s HAVING count(*) > 10"), @r"
    Project: lower(country) AS c, s, count(*) FILTER (event_type = 'click') AS clicks, count(DISTINCT user_id) AS users
      Filter: count(*) > 10
        Project: lower(country), s, count(*) FILTER (event_type = 'click'), count(DISTINCT user_id), count(*)
          Filter: window_end > '2024-01-01T00:00:00Z'
            Aggregate: TUMBLE(size=1m, offset=15s) of ts, slice=1m, group=[lower(country), window_start, window_end], calls=[count(*) FILTER (event_type = 'click'), count(DISTINCT user_id), count(*)]
              Filter: device != 'bot' AND (lower(country) = 'de' OR lower(country) = 'fr') append-only
                Scan: source ad_events (oid 16384), columns=[event_type, user_id, country, device, ts] append-only
    ");
    assert_snapshot!(check("SELECT window_end, round(100.0 * count(*) FILTER (WHERE event_type = 'click') / nullif(count(*), 0)) AS ctr FROM HOP(clicks, ts, '1 minute', '1 hour') GROUP BY window_end"), @r"
    Project: window_end, round(numeric_div(100.0 * CAST(count(*) FILTER (event_type = 'click') AS Decimal128(20, 0)), CAST(nullif(count(*), 0) AS Decimal128(20, 0)))) AS ctr
      Aggregate: HOP(slide=1m, size=1h) of ts, slice=1m, group=[window_end], calls=[count(*) FILTER (event_type = 'click'), count(*)]
        Filter: event_type = 'click' append-only
          Scan: source ad_events (oid 16384), columns=[event_type, ts] append-only
    ");
}

/// Not grouped by the window alone: rows are copied.
#[test]
fn rows_are_copied_where_slices_do_not_do() {
    assert_snapshot!(check("SELECT * FROM TUMBLE(t, ts, INTERVAL '1 minute')"), @r"
    AssignWindows: TUMBLE(size=1m) of ts append-only
      Scan: table t (oid 16386), columns=[v, ts] append-only
    ");
    assert_snapshot!(check("SELECT date_trunc('hour', window_start) AS h, count(*) AS n FROM HOP(ad_events, ts, INTERVAL '1 minute', INTERVAL '5 minutes') GROUP BY 1"), @r"
    notice: each row is held 5 times, once for every window that covers it: the view does not group by window and columns alone
    Project: date_trunc('hour', window_start) AS h, count(*) AS n
      Aggregate: group=[date_trunc('hour', window_start)], calls=[count(*)]
        Project: window_start append-only
          AssignWindows: HOP(slide=1m, size=5m) of ts append-only
            Scan: source ad_events (oid 16384), columns=[ts] append-only
    ");
    assert_snapshot!(check("SELECT count(*) AS n FROM HOP(ad_events, ts, INTERVAL '1 second', INTERVAL '1 day')"), @r"
    error: the view would hold each row 86400 times, once for every window that covers it
    hint: Group by window_start or window_end and by columns that do not depend on them, or choose a longer slide: at most 1000 times is possible.
    ");
}

/// Types as in Postgres; our functions and DataFusion's.
#[test]
fn aggregates() {
    assert_snapshot!(check("SELECT k, count(*) AS c, count(note) AS cn, sum(s) AS ss, sum(n) AS sn, avg(k) AS ak, avg(x) AS ax, min(d) AS d, max(DISTINCT note) AS m, sum(k + s) AS ks FROM facts GROUP BY k"), @r"
    Project: k, count(*) AS c, count(note) AS cn, sum(CAST(s AS Int64)) AS ss, sum(CAST(n AS Decimal128(19, 0))) AS sn, avg(CAST(k AS Decimal128(19, 0))) AS ak, avg(x) AS ax, min(d) AS d, max(note) AS m, sum(CAST(k + CAST(s AS Int32) AS Int64)) AS ks
      Aggregate: group=[k], calls=[count(*), count(note), sum(CAST(s AS Int64)), sum(CAST(n AS Decimal128(19, 0))), avg(CAST(k AS Decimal128(19, 0))), avg(x), min(d), max(note), sum(CAST(k + CAST(s AS Int32) AS Int64))]
        Scan: table facts (oid 16387), columns=[k, s, n, x, d, note]
    ");
    assert_snapshot!(check("SELECT stddev(x) AS dev, approx_percentile_cont(0.9) WITHIN GROUP (ORDER BY x) AS p90, approx_distinct(note) AS notes, bool_and(k > 0) AS positive FROM facts"), @r"
    Project: stddev(x) AS dev, approx_percentile_cont(x, 0.9) AS p90, CAST(approx_distinct(note) AS Int64) AS notes, bool_and(k > 0) AS positive
      Aggregate: group=[], calls=[stddev(x), approx_percentile_cont(x, 0.9), approx_distinct(note), bool_and(k > 0)]
        Scan: table facts (oid 16387), columns=[k, x, note]
    ");
    assert_snapshot!(check("SELECT max(c) AS most FROM (SELECT k, count(*) AS c FROM facts GROUP BY k) g"), @r"
    Project: max(c) AS most
      Aggregate: group=[], calls=[max(c)]
        Project: count(*) AS c
          Aggregate: group=[k], calls=[count(*)]
            Scan: table facts (oid 16387), columns=[k]
    ");
    assert_snapshot!(check("SELECT DISTINCT k, s FROM facts"), @r"
    Aggregate: group=[k, s], calls=[]
      Scan: table facts (oid 16387), columns=[k, s]
    ");
}

/// Plain views are planned in place, materialized ones are scanned.
#[test]
fn plain_views_unions_and_views_over_views() {
    assert_snapshot!(check("SELECT ad_id, user_id FROM clicks UNION ALL SELECT n, k FROM facts"), @r"
    UnionAll
      Project: ad_id, user_id append-only
        Filter: event_type = 'click' append-only
          Scan: source ad_events (oid 16384), columns=[ad_id, event_type, user_id] append-only
      Project: n AS ad_id, CAST(k AS Int64) AS user_id
        Scan: table facts (oid 16387), columns=[k, n]
    ");
    assert_snapshot!(check("SELECT ad_id, sum(clicks) AS clicks FROM ad_1m WHERE country = 'DE' GROUP BY ad_id"), @r"
    Project: ad_id, sum(CAST(clicks AS Decimal128(19, 0))) AS clicks
      Aggregate: group=[ad_id], calls=[sum(CAST(clicks AS Decimal128(19, 0)))]
        Project: ad_id, clicks
          Filter: country = 'DE'
            Scan: materialized view ad_1m (oid 16389), columns=[ad_id, country, clicks]
    ");
    assert_snapshot!(check("SELECT ad_id, window_start, window_end, sum(clicks) AS clicks FROM TUMBLE(ad_1m, window_start, INTERVAL '5 minutes') GROUP BY ad_id, window_start, window_end"), @r"
    Project: ad_id, window_start, window_end, sum(CAST(clicks AS Decimal128(19, 0))) AS clicks
      Aggregate: TUMBLE(size=5m) of window_start, slice=5m, group=[ad_id, window_start, window_end], calls=[sum(CAST(clicks AS Decimal128(19, 0)))]
        Scan: materialized view ad_1m (oid 16389), columns=[ad_id, window_start, clicks]
    ");
    assert_snapshot!(check("SELECT k FROM facts UNION SELECT s FROM facts"), @r"
    Aggregate: group=[k], calls=[]
      UnionAll
        Scan: table facts (oid 16387), columns=[k]
        Project: CAST(s AS Int32) AS k
          Scan: table facts (oid 16387), columns=[s]
    ");
}

/// ORDER BY with LIMIT, and row_number() with a bound.
#[test]
fn top_n() {
    assert_snapshot!(check("SELECT ad_id, clicks FROM ad_1m ORDER BY clicks DESC, ad_id LIMIT 10 OFFSET 5"), @r"
    TopN: order=[clicks DESC, ad_id], offset=5, limit=10
      Scan: materialized view ad_1m (oid 16389), columns=[ad_id, clicks]
    ");
    assert_snapshot!(check("SELECT k FROM facts ORDER BY x + k LIMIT 3"), @r"
    Project: k
      TopN: order=[order 2], limit=3
        Project: k, x, x + CAST(k AS Float64) AS order 2
          Scan: table facts (oid 16387), columns=[k, x]
    ");
    assert_snapshot!(check("SELECT * FROM (SELECT ad_id, window_start, clicks, row_number() OVER (PARTITION BY window_start ORDER BY clicks DESC) AS rank FROM ad_1m) r WHERE rank <= 3 AND clicks > 0"), @r"
    Project: ad_id, window_start, clicks, CAST(row_number AS Int64) AS rank
      Filter: clicks > 0
        TopN: partition=[window_start], order=[clicks DESC], limit=3, row_number
          Scan: materialized view ad_1m (oid 16389), columns=[ad_id, window_start, clicks]
    ");
    assert_snapshot!(check("SELECT ad_id FROM (SELECT *, row_number() OVER (PARTITION BY date_trunc('hour', window_start) ORDER BY clicks / 2 DESC) AS rank FROM ad_1m) r WHERE rank = 1"), @r"
    Project: ad_id
      TopN: partition=[order 3], order=[order 4 DESC], limit=1
        Project: ad_id, window_start, clicks, date_trunc('hour', window_start) AS order 3, clicks / 2 AS order 4
          Scan: materialized view ad_1m (oid 16389), columns=[ad_id, window_start, clicks]
    ");
    assert_snapshot!(check("SELECT k FROM facts ORDER BY k"), @r"
    notice: the ORDER BY of the view is ignored: rows of a view have no order; put it into the SELECT on the view
    Scan: table facts (oid 16387), columns=[k]
    ");
}

/// Needs windows over a watermark; its output is append-only.
#[test]
fn emit_on_window_close() {
    assert_snapshot!(check("CREATE MATERIALIZED VIEW v WITH (retention = '30 days') AS SELECT ad_id, window_end AS until, count(*) AS n FROM TUMBLE(ad_events, ts, INTERVAL '1 minute') GROUP BY ad_id, window_end EMIT ON WINDOW CLOSE"), @r"
    View: EMIT ON WINDOW CLOSE, retention=30d
      Project: ad_id, window_end AS until, count(*) AS n append-only
        Aggregate: TUMBLE(size=1m) of ts, slice=1m, group=[ad_id, window_end], calls=[count(*)] append-only
          Scan: source ad_events (oid 16384), columns=[ad_id, ts] append-only
    ");
    assert_snapshot!(check("CREATE MATERIALIZED VIEW v AS SELECT * FROM (SELECT ad_id, window_start, count(*) AS n, row_number() OVER (PARTITION BY window_start ORDER BY count(*) DESC) AS rank FROM TUMBLE(ad_events, ts, INTERVAL '1 minute') GROUP BY ad_id, window_start) r WHERE rank <= 3 EMIT ON WINDOW CLOSE"), @r"
    View: EMIT ON WINDOW CLOSE
      Project: ad_id, window_start, count(*) AS n, CAST(row_number AS Int64) AS rank append-only
        TopN: partition=[window_start], order=[count(*) DESC], limit=3, row_number append-only
          Aggregate: TUMBLE(size=1m) of ts, slice=1m, group=[ad_id, window_start], calls=[count(*)] append-only
            Scan: source ad_events (oid 16384), columns=[ad_id, ts] append-only
    ");
    assert_snapshot!(check("CREATE MATERIALIZED VIEW v AS SELECT ad_id, count(*) AS n FROM ad_events GROUP BY ad_id EMIT ON WINDOW CLOSE"), @r"
    error: EMIT ON WINDOW CLOSE needs a view that groups by windows
    hint: Select FROM TUMBLE(...), HOP(...) or SESSION(...) and GROUP BY window_start or window_end, or leave EMIT ON WINDOW CLOSE out.
    ");
    assert_snapshot!(check("CREATE MATERIALIZED VIEW v AS SELECT window_start, count(*) AS n FROM TUMBLE(facts, d, INTERVAL '1 day') GROUP BY window_start EMIT ON WINDOW CLOSE"), @r"
    error: EMIT ON WINDOW CLOSE needs windows over a column with a watermark
    hint: Declare WATERMARK FOR on the source (or on the table, which must be APPEND ONLY) and use that column as the time of the windows.
    ");
}

/// Names, columns, windows.
#[test]
fn errors_say_where_and_what_instead() {
    assert_snapshot!(check("SELECT ad_ID, contry FROM ad_events"), @r#"
    error: column "contry" does not exist (at 45)
    hint: Perhaps you meant to reference the column "ad_events.country".
    "#);
    assert_snapshot!(check("SELECT * FROM nix"), @r#"error: relation "nix" does not exist (at 45)"#);
    assert_snapshot!(check("SELECT foo(ad_id) AS f FROM ad_events"), @r"error: function foo does not exist (at 38)");
    assert_snapshot!(check("SELECT k, k FROM facts"), @r#"
    error: column "k" specified more than once
    hint: Give each column a name of its own with AS.
    "#);
    assert_snapshot!(check("SELECT count(*), count(k) FROM facts"), @r#"
    error: column "count" specified more than once
    hint: Give each column a name of its own with AS.
    "#);
    assert_snapshot!(check("SELECT k, sum(n) AS n FROM facts"), @r#"error: column "facts.k" must appear in the GROUP BY clause or be used in an aggregate function (at 38)"#);
    assert_snapshot!(check("SELECT * FROM TUMBLE(facts, note, INTERVAL '1 day')"), @r#"
    error: the time of TUMBLE cannot be of type text: column "note" (at 45)
    hint: It must be TIMESTAMPTZ, TIMESTAMP or DATE. Write TUMBLE(relation, time column, size [, offset]).
    "#);
    assert_snapshot!(check("SELECT * FROM TUMBLE(facts, nix, INTERVAL '1 day')"), @r#"
    error: column "nix" does not exist (at 59)
    hint: Perhaps you meant to reference the column "facts.n".
    "#);
    assert_snapshot!(check("SELECT * FROM TUMBLE(ad_events, ts, INTERVAL '1 month')"), @r"
    error: TUMBLE cannot use INTERVAL '1 month': months and years have no fixed length (at 76)
    hint: Write it in days, such as INTERVAL '30 days'.
    ");
    assert_snapshot!(check("SELECT * FROM TUMBLE(ad_events, ts, INTERVAL '0 seconds')"), @r"error: the slide and the size of TUMBLE must be longer than zero: INTERVAL '0 seconds' (at 76)");
    assert_snapshot!(check("SELECT * FROM HOP(ad_events, ts, INTERVAL '-1 second', INTERVAL '1 minute')"), @r"error: the slide and the size of HOP must be longer than zero: INTERVAL '-1 second' (at 73)");
    assert_snapshot!(check("SELECT * FROM HOP(ad_events, ts, INTERVAL '1 millisecond', INTERVAL '1 hour')"), @r"
    error: HOP puts each row into 3600000 windows (at 45)
    hint: Choose a longer slide: at most 100000 are possible.
    ");
    assert_snapshot!(check("SELECT * FROM HOP(ad_events, ts, ad_id, INTERVAL '1 hour')"), @r"
    error: HOP takes constant intervals, not ad_id (at 64)
    hint: Write INTERVAL '10 seconds' or the like.
    ");
    assert_snapshot!(check("SELECT * FROM HOP(ad_events, ts, INTERVAL '1 hour')"), @r"
    error: HOP takes 4 or 5 arguments, not 3 (at 45)
    hint: Write HOP(relation, time column, slide, size [, offset]).
    ");
    assert_snapshot!(check("SELECT * FROM HOP(nix, ts, INTERVAL '1 minute', INTERVAL '1 hour')"), @r#"error: relation "nix" does not exist (at 49)"#);
    assert_snapshot!(check("CREATE MATERIALIZED VIEW v WITH (retention = '1 month') AS SELECT window_start, count(*) AS n FROM TUMBLE(ad_events, ts, INTERVAL '1 day') GROUP BY window_start"), @r#"
    error: retention: an interval of months has no fixed length here: "1 month"
    hint: Write it in days, such as '30 days'.
    "#);
    assert_snapshot!(check("CREATE MATERIALIZED VIEW v WITH (color = 'red') AS SELECT k FROM facts"), @r#"
    error: unrecognized option of a materialized view: "color"
    hint: There are retention, such as WITH (retention = '30 days'), and store = 'auto', 'own' or 'shared'.
    "#);
}

/// GROUP BY says whose sessions they are, WHERE comes before it, and bounds are group columns like any other.
#[test]
fn sessions() {
    assert_snapshot!(check("SELECT upper(country) AS c, user_id AS u, window_end, sum(ad_id) AS ads
        FROM SESSION(clicks, ts, INTERVAL '30 minutes', INTERVAL '12 hours') WHERE device <> 'tv' AND window_start > '2026-01-01'
        GROUP BY upper(country), user_id, window_end HAVING count(*) > 1 AND upper(country) <> 'XX'"), @r"
    Project: upper(country) AS c, user_id AS u, window_end, sum(CAST(ad_id AS Decimal128(19, 0))) AS ads
      Filter: count(*) > 1
        Project: upper(country), user_id, window_end, sum(CAST(ad_id AS Decimal128(19, 0))), count(*)
          Filter: upper(country) != 'XX' AND window_start > '2026-01-01T00:00:00Z'
            Sessions: SESSION(gap=30m, max=12h) of ts, group=[upper(country), user_id, window_end, window_start], calls=[sum(CAST(ad_id AS Decimal128(19, 0))), count(*)]
              Project: ad_id, user_id, country, ts append-only
                Filter: event_type = 'click' AND device != 'tv' append-only
                  Scan: source ad_events (oid 16384), columns=[ad_id, event_type, user_id, country, device, ts] append-only
    ");
    assert_snapshot!(check("SELECT user_id, window_start, count(*) AS n
        FROM (SELECT * FROM TABLE(SESSION(TABLE ad_events PARTITION BY (country, user_id), DESCRIPTOR(ts), INTERVAL '30' MINUTE))) AS s
        WHERE country = 'DE' GROUP BY user_id, country, window_start EMIT ON WINDOW CLOSE"), @r"
    View: EMIT ON WINDOW CLOSE
      Project: user_id, window_start, count(*) AS n append-only
        Sessions: SESSION(gap=30m) of ts, group=[user_id, country, window_start], calls=[count(*)] append-only
          Filter: country = 'DE' append-only
            Scan: source ad_events (oid 16384), columns=[user_id, country, ts] append-only
    ");
    assert_snapshot!(check("SELECT window_start, count(*) AS n FROM SESSION(campaigns, campaign, INTERVAL '1 hour') GROUP BY window_start"), @r#"
    error: the time of SESSION cannot be of type text: column "campaign" (at 71)
    hint: It must be TIMESTAMPTZ, TIMESTAMP or DATE. Write SESSION(relation [PARTITION BY key], time column, gap [, maximum length]).
    "#);
    assert_snapshot!(check("SELECT user_id, window_start, max(window_end) AS e FROM SESSION(ad_events, ts, INTERVAL '1 hour') GROUP BY user_id, window_start"), @r"
    error: rows with the bounds of their sessions cannot be kept in a view
    hint: GROUP BY the keys, window_start and window_end, and let no aggregate look at the bounds; they can stand in the SELECT list and in HAVING.
    ");
    assert_snapshot!(check("SELECT user_id, count(*) AS n FROM SESSION(ad_events, ts, INTERVAL '1 hour') GROUP BY ROLLUP (user_id, window_start)"), @r"
    error: SESSION needs a GROUP BY that says whose sessions they are
    hint: GROUP BY the keys, window_start and window_end; or write SESSION(t PARTITION BY key, ts, gap) in a query that wants the rows.
    ");
}

/// Conditions on now() and on watermarks, in every form that can be kept.
#[test]
fn temporal_filters() {
    assert_snapshot!(check("SELECT ad_id, window_end, sum(clicks) AS c FROM ad_1m WHERE window_end > now() - INTERVAL '1 hour' AND ad_id > 0 GROUP BY ad_id, window_end"), @r"
    Project: ad_id, window_end, sum(CAST(clicks AS Decimal128(19, 0))) AS c
      Aggregate: group=[ad_id, window_end], calls=[sum(CAST(clicks AS Decimal128(19, 0)))]
        TemporalFilter: window_end > now() - 1h
          Filter: ad_id > 0
            Scan: materialized view ad_1m (oid 16389), columns=[ad_id, window_end, clicks]
    ");
    assert_snapshot!(check("SELECT ad_id, window_end, count(*) AS n FROM TUMBLE(ad_events, ts, INTERVAL '1 minute')
        WHERE window_end > watermark('ad_events') - INTERVAL '10 minutes' GROUP BY ad_id, window_start, window_end HAVING count(*) > 1"), @r"
    Project: ad_id, window_end, count(Int64(1)) AS n
      Filter: count(Int64(1)) > 1
        Project: ad_id, window_end, count(*) AS count(Int64(1))
          TemporalFilter: window_end > watermark('ad_events') - 10m
            Aggregate: TUMBLE(size=1m) of ts, slice=1m, group=[ad_id, window_start, window_end], calls=[count(*)]
              Scan: source ad_events (oid 16384), columns=[ad_id, ts] append-only
    ");
    assert_snapshot!(check("SELECT k FROM facts WHERE d = current_date OR d IS NULL"), @r"
    error: this condition on a clock cannot be kept in a view: facts.d = current_date() OR facts.d IS NULL
    hint: Compare a time with it, as in ts > now() - INTERVAL '1 hour', alone or joined by AND.
    ");
    assert_snapshot!(check("SELECT k FROM facts WHERE d = current_date AND d > current_date - 7 AND d + INTERVAL '1 month' >= date_trunc('week', now() - INTERVAL '1 day')"), @r#"
    Project: k
      TemporalFilter: d <= floor(now(), 1d) AND d >= floor(now(), 1d) AND d > floor(now(), 1d) - 7d AND CAST(CAST(d AS Timestamp(µs)) + '1 mons' AS Timestamp(µs, "UTC")) >= floor(now() - 1d, 7d)
        Scan: table facts (oid 16387), columns=[k, d]
    "#);
    assert_snapshot!(check("SELECT v FROM t WHERE now() BETWEEN ts AND ts + INTERVAL '1 hour' AND ts < localtimestamp"), @r#"
    Project: v
      TemporalFilter: CAST(ts AS Timestamp(µs, "UTC")) <= now() AND CAST(ts + '1 hours' AS Timestamp(µs, "UTC")) >= now() AND ts < now()
        Scan: table t (oid 16386), columns=[v, ts] append-only
    "#);
    assert_snapshot!(check("SELECT v, max(ts) AS m FROM t GROUP BY v HAVING NOT max(ts) <= now() - INTERVAL '1 day'"), @r#"
    Project: v, max(ts) AS m
      TemporalFilter: CAST(max(ts) AS Timestamp(µs, "UTC")) > now() - 1d
        Aggregate: group=[v], calls=[max(ts)]
          Scan: table t (oid 16386), columns=[v, ts] append-only
    "#);
    assert_snapshot!(check("SELECT v, row_number() OVER (PARTITION BY v ORDER BY ts DESC) AS n FROM t WHERE ts <= current_timestamp QUALIFY n = 1"), @r#"
    Project: v, CAST(row_number AS Int64) AS n
      TopN: partition=[v], order=[ts DESC], limit=1, row_number
        TemporalFilter: CAST(ts AS Timestamp(µs, "UTC")) <= now() append-only
          Scan: table t (oid 16386), columns=[v, ts] append-only
    "#);
    assert_snapshot!(check("SELECT v, ts FROM t WHERE ts > now() - INTERVAL '1 hour' ORDER BY ts DESC LIMIT 3"), @r#"
    TopN: order=[ts DESC], limit=3
      TemporalFilter: CAST(ts AS Timestamp(µs, "UTC")) > now() - 1h
        Scan: table t (oid 16386), columns=[v, ts] append-only
    "#);
}

/// What cannot be kept, with what can.
#[test]
fn temporal_filters_refused() {
    let conditions = [
        "now() - ts < INTERVAL '1 hour'",
        "ts > now() - INTERVAL '1 month'",
        "ts <> now()",
        "ts > now() OR v = 1",
        "ts > least(now(), ts)",
        "now() > '2027-01-01'",
        "extract(hour FROM now()) = 3",
        "ts > closed_window_end('ad_1m')",
        "ts::time < current_time",
        "ts NOT BETWEEN now() - INTERVAL '1 hour' AND now()",
    ];
    let refused: Vec<String> =
        conditions.iter().map(|condition| check(&format!("SELECT v FROM t WHERE {condition}"))).collect();
    assert_snapshot!(refused.join("\n"), @r#"
    error: a condition on the difference of a column and a clock cannot be kept in a view
    hint: Bring the column to the other side: ts > now() - INTERVAL '1 hour' instead of now() - ts < INTERVAL '1 hour'.
    error: months and years have no fixed length beside a clock in a view
    hint: Write days, such as now() - INTERVAL '30 days', or put them on the other side: ts + INTERVAL '1 month' > now().
    error: this condition on a clock cannot be kept in a view: CAST(t.ts AS Timestamp(µs, "UTC")) != now()
    hint: Compare a time with it, as in ts > now() - INTERVAL '1 hour', alone or joined by AND.
    error: this condition on a clock cannot be kept in a view: CAST(t.ts AS Timestamp(µs, "UTC")) > now() OR t.v = Int32(1)
    hint: Compare a time with it, as in ts > now() - INTERVAL '1 hour', alone or joined by AND.
    error: a condition on the difference of a column and a clock cannot be kept in a view
    hint: Bring the column to the other side: ts > now() - INTERVAL '1 hour' instead of now() - ts < INTERVAL '1 hour'.
    error: a condition on the clock alone cannot be kept in a view
    hint: Compare a time with it, as in ts > now() - INTERVAL '1 hour', alone or joined by AND.
    error: a condition on the clock alone cannot be kept in a view
    hint: Compare a time with it, as in ts > now() - INTERVAL '1 hour', alone or joined by AND.
    error: closed_window_end() cannot be kept in a view: it does not only grow
    hint: now(), current_date and watermark('name') can stand in a condition on a time.
    error: current_time() cannot be kept in a view: it does not only grow
    hint: now(), current_date and watermark('name') can stand in a condition on a time.
    error: this condition on a clock cannot be kept in a view: CAST(t.ts AS Timestamp(µs, "UTC")) < now() - IntervalMonthDayNano("IntervalMonthDayNano { months: 0, days: 0, nanoseconds: 3600000000000 }") OR CAST(t.ts AS Timestamp(µs, "UTC")) > now()
    hint: Compare a time with it, as in ts > now() - INTERVAL '1 hour', alone or joined by AND.
    "#);
    assert_snapshot!(check("SELECT v, now() - ts AS age FROM t"), @r"
    error: now() cannot be kept in a view but in WHERE and HAVING: its value changes with every tick
    hint: Filter by it, as in WHERE ts > now() - INTERVAL '1 hour', and compute with it in the SELECT on the view.
    ");
    assert_snapshot!(check("SELECT v, count(*) FILTER (WHERE ts > now()) AS n FROM t GROUP BY v"), @r"
    error: now() cannot be kept in a view but in WHERE and HAVING: its value changes with every tick
    hint: Filter by it, as in WHERE ts > now() - INTERVAL '1 hour', and compute with it in the SELECT on the view.
    ");
    assert_snapshot!(check("SELECT v, window_start FROM TUMBLE(t, ts, INTERVAL '1 hour') WHERE ts > now() GROUP BY v, window_start EMIT ON WINDOW CLOSE"), @r"
    error: EMIT ON WINDOW CLOSE needs windows over a column with a watermark
    hint: Declare WATERMARK FOR on the source (or on the table, which must be APPEND ONLY) and use that column as the time of the windows.
    ");
}
