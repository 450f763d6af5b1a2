//! The files of `queries/`: each is planned as it stands over `ad_events.sql`; those of `queries/rejected/` end with a
//! statement that is refused with the message of their first line.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use insta::assert_snapshot;

use super::plan_tests::{catalog, names};
use super::*;
use crate::catalog::Catalog;
use crate::sql;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("queries")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("the folder is there").map(|entry| entry.expect("an entry").path());
    let mut files: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|e| e == "sql")).collect();
    files.sort();
    files
}

/// The objects that a file needs.
fn sources(file: &Path) -> Arc<Catalog> {
    let is = |name: &str| file.ends_with(name);
    let needed = |name: &str| read(file).contains(name.trim_end_matches(".sql")) && !is(name);
    let ddl: Vec<String> = ["ad_events.sql", "page_views.sql"]
        .into_iter()
        .filter(|name| needed(name))
        .map(|name| read(&folder().join(name)))
        .collect();
    catalog(&ddl.concat())
}

/// The plans of a file's views.
fn check(file: &str) -> String {
    let mut catalog = sources(&folder().join(file));
    let (mut plans, mut running) = (Vec::new(), Plans::new());
    for parsed in sql::parse(&read(&folder().join(file))).expect("the file parses") {
        let definition = define(&parsed.statement, &catalog, &names()).expect("the file is fine");
        assert!(definition.notices.is_empty(), "{:?}", definition.notices);
        let name = definition.object.name.clone();
        let (next, oid) = catalog.create(definition.object).expect("the name is free");
        catalog = Arc::new(next);
        if let Some(plan) = definition.plan {
            let plan = onto_slices(plan, &running).expect("it can be put there");
            plans.push(format!("{name}\n{}", explain(&plan)));
            running.insert(oid, Arc::new(plan));
        }
    }
    plans.join("\n\n")
}

#[test]
fn rejected() {
    let mut wrong = Vec::new();
    for path in files(&folder().join("rejected")) {
        let text = read(&path);
        let expected = text.lines().next().and_then(|line| line.strip_prefix("-- error: ")).expect("the error first");
        let mut parsed = match sql::parse(&text) {
            Ok(parsed) => parsed,
            Err(e) if e.to_string().contains(expected) => continue,
            Err(e) => panic!("{}: {e}", path.display()),
        };
        let last = parsed.pop().expect("a statement");
        let mut catalog: Arc<Catalog> = catalog(&read(&folder().join("ad_events.sql")));
        for before in parsed {
            let object = define(&before.statement, &catalog, &names()).expect("what comes before is fine").object;
            catalog = Arc::new(catalog.create(object).expect("the name is free").0);
        }
        match define(&last.statement, &catalog, &names()) {
            Ok(_) => wrong.push(format!("{}: not refused", path.display())),
            Err(e) if !e.to_string().contains(expected) => wrong.push(format!("{}: {e}", path.display())),
            Err(_) => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// SHOW CREATE prints a statement that makes the same object again.
#[test]
fn definitions_survive_being_stored() {
    for path in files(&folder()) {
        let mut catalog = sources(&path);
        for parsed in sql::parse(&read(&path)).expect("the file parses") {
            let first = define(&parsed.statement, &catalog, &names()).expect("the file is fine");
            let stored = sql::parse(&first.object.sql).expect("stored SQL parses").remove(0);
            let again = define(&stored.statement, &catalog, &names()).expect("stored SQL is fine");
            assert_eq!(format!("{:?}", first.object), format!("{:?}", again.object));
            catalog = Arc::new(catalog.create(first.object).expect("the name is free").0);
        }
    }
}

#[test]
fn top_ads() {
    assert_snapshot!(check("top_ads.sql"), @r"
    ad_1m
    Project: ad_id, country, window_start, window_end, count(*) FILTER (event_type = 'click') AS clicks, count(*) FILTER (event_type = 'impression') AS impressions
      Aggregate: HOP(slide=10s, size=1m) of ts, slice=10s, group=[ad_id, country, window_start, window_end], calls=[count(*) FILTER (event_type = 'click'), count(*) FILTER (event_type = 'impression')]
        Scan: source ad_events (oid 16384), columns=[ad_id, event_type, country, ts] append-only

    ad_10m
    Project: ad_id, country, window_start, window_end, count(*) FILTER (event_type = 'click') AS clicks, count(*) FILTER (event_type = 'impression') AS impressions
      Aggregate: HOP(slide=10s, size=10m) of ts, slice=10s, group=[ad_id, country, window_start, window_end], calls=[count(*) FILTER (event_type = 'click'), count(*) FILTER (event_type = 'impression')]
        Scan: source ad_events (oid 16384), columns=[ad_id, event_type, country, ts] append-only

    ad_1h
    Project: ad_id, country, window_start, window_end, count(*) FILTER (event_type = 'click') AS clicks, count(*) FILTER (event_type = 'impression') AS impressions
      Aggregate: HOP(slide=10s, size=1h) of ts, slice=10s, group=[ad_id, country, window_start, window_end], calls=[count(*) FILTER (event_type = 'click'), count(*) FILTER (event_type = 'impression')]
        Scan: source ad_events (oid 16384), columns=[ad_id, event_type, country, ts] append-only
    ");
}

#[test]
fn scoreboard() {
    assert_snapshot!(check("scoreboard.sql"), @r"
    scoreboard
    EmitEvery: 5s
      Project: country, window_start, window_end, count(*) FILTER (event_type = 'click') AS clicks, count(*) FILTER (event_type = 'impression') AS impressions
        Aggregate: TUMBLE(size=1m) of ts, slice=1m, group=[country, window_start, window_end], calls=[count(*) FILTER (event_type = 'click'), count(*) FILTER (event_type = 'impression')]
          Scan: source ad_events (oid 16384), columns=[event_type, country, ts] append-only

    scoreboard_leader
    Project: window_end, country, clicks
      TopN: partition=[window_end], order=[clicks DESC, country], limit=1
        Scan: materialized view scoreboard (oid 16385), columns=[country, window_end, clicks]
    ");
}

#[test]
fn ctr_per_ad() {
    assert_snapshot!(check("ctr_per_ad.sql"), @r"
    ad_ctr
    Project: ad_id, window_start, window_end, count(*) FILTER (event_type = 'click') AS clicks, count(*) FILTER (event_type = 'impression') AS impressions, round(numeric_div(100.0 * CAST(count(*) FILTER (event_type = 'click') AS Decimal128(20, 0)), CAST(nullif(count(*) FILTER (event_type = 'impression'), 0) AS Decimal128(20, 0))), 2) AS ctr_percent
      Aggregate: TUMBLE(size=1m) of ts, slice=1m, group=[ad_id, window_start, window_end], calls=[count(*) FILTER (event_type = 'click'), count(*) FILTER (event_type = 'impression')]
        Scan: source ad_events (oid 16384), columns=[ad_id, event_type, ts] append-only
    ");
}

#[test]
fn by_country_device() {
    assert_snapshot!(check("by_country_device.sql"), @r"
    country_device
    Project: country, device, window_start, window_end, count(*) FILTER (event_type = 'click') AS clicks, count(*) FILTER (event_type = 'impression') AS impressions, CAST(approx_distinct(user_id) AS Int64) AS users
      Aggregate: HOP(slide=10s, size=5m) of ts, slice=10s, group=[country, device, window_start, window_end], calls=[count(*) FILTER (event_type = 'click'), count(*) FILTER (event_type = 'impression'), approx_distinct(user_id)]
        Scan: source ad_events (oid 16384), columns=[event_type, user_id, country, device, ts] append-only

    country_podium
    View: read through the slices of [country_device]
      Project: device, window_end, CAST(row_number AS Int64) AS place, country, clicks
        TopN: partition=[device, window_end], order=[clicks DESC, country], limit=3, row_number
          Project: country, device, window_end, count(*) FILTER (event_type = 'click') AS clicks
            Aggregate: HOP(slide=10s, size=5m) of ts, slice=10s, group=[country, device, window_start, window_end], calls=[count(*) FILTER (event_type = 'click')]
              Scan: source ad_events (oid 16384), columns=[event_type, user_id, country, device, ts] append-only
    ");
}

#[test]
fn minute_history() {
    assert_snapshot!(check("minute_history.sql"), @r"
    ad_minutes
    View: EMIT ON WINDOW CLOSE, retention=730d
      Project: ad_id, window_start, window_end, count(*) FILTER (event_type = 'click') AS clicks, count(*) FILTER (event_type = 'impression') AS impressions append-only
        Aggregate: TUMBLE(size=1m) of ts, slice=1m, group=[ad_id, window_start, window_end], calls=[count(*) FILTER (event_type = 'click'), count(*) FILTER (event_type = 'impression')] append-only
          Scan: source ad_events (oid 16384), columns=[ad_id, event_type, ts] append-only
    ");
}

#[test]
fn day_so_far() {
    assert_snapshot!(check("day_so_far.sql"), @r"
    country_day
    View: retention=2d
      Project: country, window_start, window_end, count(*) FILTER (event_type = 'click') AS clicks, count(*) FILTER (event_type = 'impression') AS impressions
        Aggregate: CUMULATE(step=1m, size=1d) of ts, slice=1m, group=[country, window_start, window_end], calls=[count(*) FILTER (event_type = 'click'), count(*) FILTER (event_type = 'impression')]
          Scan: source ad_events (oid 16384), columns=[event_type, country, ts] append-only
    ");
}

#[test]
fn billing() {
    assert_snapshot!(check("billing.sql"), @r"
    billed_clicks
    View: EMIT ON WINDOW CLOSE
      Project: ad_id, window_start, window_end, count(*) AS clicks append-only
        Aggregate: TUMBLE(size=1m) of ts, slice=1m, group=[ad_id, window_start, window_end], calls=[count(*)] append-only
          Filter: event_type = 'click'
            Scan: source paid_events (oid 16386), columns=[ad_id, event_type, ts]

    credit_notes
    Project: ad_id, count(*) AS clicks
      Aggregate: group=[ad_id], calls=[count(*)]
        Project: ad_id
          Filter: event_type = 'click'
            Scan: table unbilled_events (oid 16385), columns=[ad_id, event_type]
    ");
}

#[test]
fn unique_visitors() {
    assert_snapshot!(check("unique_visitors.sql"), @r"
    page_minutes
    Project: page, window_start, window_end, count(*) AS views, CAST(approx_distinct(user_id) AS Int64) AS visitors
      Aggregate: TUMBLE(size=1m) of ts, slice=1m, group=[page, window_start, window_end], calls=[count(*), approx_distinct(user_id)]
        Scan: source page_views (oid 16384), columns=[page, user_id, ts] append-only
    ");
}

#[test]
fn rollup() {
    assert_snapshot!(check("rollup.sql"), @r"
    country_1m
    Project: country, window_start, window_end, count(*) FILTER (event_type = 'click') AS clicks, count(*) FILTER (event_type = 'impression') AS impressions
      Aggregate: TUMBLE(size=1m) of ts, slice=1m, group=[country, window_start, window_end], calls=[count(*) FILTER (event_type = 'click'), count(*) FILTER (event_type = 'impression')]
        Scan: source ad_events (oid 16384), columns=[event_type, country, ts] append-only

    country_5m
    View: read through the slices of [country_1m]
      Project: country, window_start, window_end, count(*) FILTER (event_type = 'click') AS clicks, count(*) FILTER (event_type = 'impression') AS impressions
        Aggregate: TUMBLE(size=5m) of ts, slice=5m, group=[country, window_start, window_end], calls=[count(*) FILTER (event_type = 'click'), count(*) FILTER (event_type = 'impression')]
          Scan: source ad_events (oid 16384), columns=[event_type, country, ts] append-only

    country_1h
    View: read through the slices of [country_5m]
      Project: country, window_start, window_end, count(*) FILTER (event_type = 'click') AS clicks, count(*) FILTER (event_type = 'impression') AS impressions
        Aggregate: TUMBLE(size=1h) of ts, slice=1h, group=[country, window_start, window_end], calls=[count(*) FILTER (event_type = 'click'), count(*) FILTER (event_type = 'impression')]
          Scan: source ad_events (oid 16384), columns=[event_type, country, ts] append-only

    world_1h
    View: read through the slices of [country_1h]
      Project: window_start, window_end, count(*) FILTER (event_type = 'click') AS clicks, count(*) FILTER (event_type = 'impression') AS impressions
        Aggregate: TUMBLE(size=1h) of ts, slice=1h, group=[window_start, window_end], calls=[count(*) FILTER (event_type = 'click'), count(*) FILTER (event_type = 'impression')]
          Scan: source ad_events (oid 16384), columns=[event_type, country, ts] append-only
    ");
}

#[test]
fn sessions() {
    assert_snapshot!(check("sessions.sql"), @r"
    visits
    Project: user_id, window_start, window_end, count(*) AS pages, count(DISTINCT page) AS different_pages
      Sessions: SESSION(gap=30m) of ts, group=[user_id, window_start, window_end], calls=[count(*), count(DISTINCT page)]
        Scan: source page_views (oid 16384), columns=[page, user_id, ts] append-only

    visits_per_hour
    View: EMIT ON WINDOW CLOSE
      Project: window_end AS hour, count(*) AS visits, sum(CAST(pages AS Decimal128(19, 0))) AS pages, count(*) FILTER (pages = 1) AS bounces append-only
        Aggregate: TUMBLE(size=1h) of window_end, slice=1h, group=[window_end], calls=[count(*), sum(CAST(pages AS Decimal128(19, 0))), count(*) FILTER (pages = 1)] append-only
          Scan: materialized view visits (oid 16385), columns=[window_end, pages]
    ");
}

#[test]
fn last_hour() {
    assert_snapshot!(check("last_hour.sql"), @r"
    page_last_hour
    Project: page, window_end, count(*) AS views
      TemporalFilter: window_end > now() - 1h
        Aggregate: TUMBLE(size=1m) of ts, slice=1m, group=[page, window_start, window_end], calls=[count(*)]
          Scan: source page_views (oid 16384), columns=[page, ts] append-only

    top_pages
    Project: CAST(row_number AS Int64) AS place, page, views
      TopN: order=[views DESC, page], limit=10, row_number
        Project: page, sum(CAST(views AS Decimal128(19, 0))) AS views
          Aggregate: group=[page], calls=[sum(CAST(views AS Decimal128(19, 0)))]
            Scan: materialized view page_last_hour (oid 16385), columns=[page, views]
    ");
}
