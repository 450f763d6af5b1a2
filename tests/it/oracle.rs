//! The law of the engine: after every tick a view equals the batch engine's answer to the same SQL over the rows accepted
//! so far.
//!
//! Random changes of tables, and random events of a topic with late ones among them; each view is compared with DataFusion
//! running its query. `RIVERRUN_ORACLE_SEEDS=FROM..TO` runs other seeds; a failure names its seed.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use datafusion::datasource::MemTable;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use riverrun::connector::{EmbeddedBroker, Producer};
use riverrun::planner;
use riverrun::sql::{self, Name, Statement};

use crate::db::{Db, lines};

pub fn seeds(default: Range<u64>) -> Range<u64> {
    let Ok(text) = std::env::var("RIVERRUN_ORACLE_SEEDS") else { return default };
    let (from, to) = text.split_once("..").expect("RIVERRUN_ORACLE_SEEDS=FROM..TO");
    from.parse().expect("a seed")..to.parse().expect("a seed")
}

/// Says how far a run over seeds that were asked for has come, whatever is captured.
pub fn tell_progress(line: &str) {
    if std::env::var_os("RIVERRUN_ORACLE_SEEDS").is_some() {
        // Nobody may be listening.
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}

/// Over rows `r(k VARCHAR, v BIGINT, ts TIMESTAMPTZ)`.
pub const QUERIES: &[&str] = &[
    "SELECT k, v FROM r WHERE v > 0",
    "SELECT k, count(*) AS n, sum(v) AS s, min(v) AS lo, max(v) AS hi FROM r GROUP BY k",
    "SELECT count(*) AS n, sum(v) AS s, max(v) AS m FROM r",
    "SELECT k, avg(v) AS a, count(v) FILTER (WHERE v % 2 = 0) AS even FROM r GROUP BY k HAVING count(*) > 1",
    "SELECT k, count(DISTINCT v) AS d, sum(DISTINCT v) AS s FROM r GROUP BY k",
    "SELECT v % 3 AS m, bool_or(k = 'a') AS any_a, bit_xor(v) AS x FROM r GROUP BY v % 3",
    "SELECT k, window_start, window_end, count(*) AS n, sum(v) AS s FROM TUMBLE(r, ts, INTERVAL '1 minute') GROUP BY k, window_start, window_end",
    "SELECT k, window_end, count(*) AS n, max(v) AS m FROM HOP(r, ts, INTERVAL '20 seconds', INTERVAL '1 minute') GROUP BY k, window_end",
    "SELECT window_start, sum(v) FILTER (WHERE k = 'a') AS a FROM HOP(r, ts, INTERVAL '20 seconds', INTERVAL '50 seconds') WHERE v <> 0 GROUP BY window_start",
    "SELECT window_start, count(DISTINCT k) AS d FROM HOP(r, ts, INTERVAL '30 seconds', INTERVAL '2 minutes', INTERVAL '7 seconds') GROUP BY window_start",
    "SELECT k, v, ts FROM r ORDER BY v DESC, k, ts LIMIT 3",
    "SELECT k, v, n FROM (SELECT k, v, row_number() OVER (PARTITION BY k ORDER BY v DESC, ts) AS n FROM r) WHERE n <= 2",
    "SELECT k FROM r UNION ALL SELECT k FROM r WHERE v < 0",
    "SELECT DISTINCT k, v % 2 AS odd FROM r",
    "SELECT n, count(*) AS keys FROM (SELECT k, count(*) AS n FROM r GROUP BY k) GROUP BY n",
    "SELECT upper(k) AS u, coalesce(sum(v), 0) * 2 + count(*) AS x FROM r GROUP BY upper(k)",
    "SELECT date_trunc('minute', window_start) AS m, count(*) AS n FROM HOP(r, ts, INTERVAL '20 seconds', INTERVAL '40 seconds') GROUP BY date_trunc('minute', window_start)",
    "SELECT window_start, k, n FROM (SELECT window_start, k, n, row_number() OVER (PARTITION BY window_start ORDER BY n DESC, k) AS place FROM (SELECT window_start, k, count(*) AS n FROM TUMBLE(r, ts, INTERVAL '1 minute') GROUP BY window_start, k)) WHERE place = 1",
    "SELECT k, window_start, window_end, count(*) AS n, sum(v) AS s FROM CUMULATE(r, ts, INTERVAL '20 seconds', INTERVAL '2 minutes') GROUP BY k, window_start, window_end",
    "SELECT window_end, min(v) AS lo, count(DISTINCT k) AS d FROM CUMULATE(r, ts, INTERVAL '30 seconds', INTERVAL '90 seconds', INTERVAL '-40 seconds') GROUP BY window_end",
    "SELECT k, window_start, window_end, count(*) AS n, sum(v) AS s, max(v) AS m FROM SESSION(r, ts, INTERVAL '15 seconds') GROUP BY k, window_start, window_end",
    "SELECT upper(k) AS u, window_start, count(DISTINCT v) AS d, count(*) FILTER (WHERE v > 0) AS up, extract(epoch FROM window_end - window_start) AS length FROM SESSION(r, ts, INTERVAL '20 seconds', INTERVAL '45 seconds') WHERE v <> 0 GROUP BY upper(k), window_start, window_end HAVING count(*) > 1",
    "SELECT window_start, window_end, avg(v) AS a, min(k) AS k FROM SESSION(r, ts, INTERVAL '4 seconds') GROUP BY window_start, window_end",
    "SELECT k, window_end, sum(v) AS s FROM TABLE(SESSION(TABLE r PARTITION BY k, DESCRIPTOR(ts), INTERVAL '10' SECOND)) GROUP BY k, window_start, window_end",
    "SELECT window_start, count(*) AS n, sum(v) AS s FROM TUMBLE((SELECT * FROM (SELECT k, v, ts, row_number() OVER (PARTITION BY v ORDER BY ts, k) AS place FROM r) WHERE place = 1), ts, INTERVAL '20 seconds') GROUP BY window_start",
    "SELECT window_end, k, count(*) AS n, max(v) AS hi FROM HOP((SELECT DISTINCT ON (k, v) k, v, ts FROM r ORDER BY k, v, ts), ts, INTERVAL '20 seconds', INTERVAL '1 minute') GROUP BY window_end, k",
    "SELECT window_start, count(*) AS n, min(v) AS lo FROM TUMBLE((SELECT v, ts FROM (SELECT v, ts, row_number() OVER (PARTITION BY k ORDER BY v DESC, ts) AS place FROM r) WHERE place <= 3), ts, INTERVAL '1 minute') GROUP BY window_start",
];

/// Views over views of [`QUERIES`], by number.
pub const OVER_VIEWS: &[&str] = &[
    "SELECT window_start, window_end, sum(n) AS n, max(s) AS s FROM TUMBLE((v6), window_start, INTERVAL '2 minutes') GROUP BY window_start, window_end",
    "SELECT k, sum(n) AS n FROM v7 GROUP BY k",
    "SELECT k, s FROM v1 ORDER BY s DESC NULLS LAST, k LIMIT 2",
    "SELECT window_start, window_end, count(*) AS sessions, sum(n) AS n FROM TUMBLE(v20, window_start, INTERVAL '1 minute') GROUP BY window_start, window_end",
    "SELECT window_start, count(*) AS ended FROM HOP(v20, window_end, INTERVAL '30 seconds', INTERVAL '1 minute') GROUP BY window_start",
    "SELECT k, window_start, window_end, sum(n) AS n FROM SESSION(v7, window_end, INTERVAL '25 seconds') GROUP BY k, window_start, window_end",
];

/// Over a source: what moves with its watermark.
pub const BY_WATERMARK: &[&str] = &[
    "SELECT k, v, ts FROM r WHERE ts > watermark('r') - INTERVAL '15 seconds'",
    "SELECT k, window_end, count(*) AS n, max(v) AS m FROM HOP(r, ts, INTERVAL '10 seconds', INTERVAL '30 seconds') WHERE window_end > watermark('r') AND window_start <= watermark('r') GROUP BY k, window_start, window_end",
    "SELECT k, count(*) AS n, sum(v) AS s FROM r WHERE ts >= date_trunc('minute', watermark('r')) GROUP BY k",
    "SELECT k, window_start, count(*) AS n FROM SESSION(r, ts, INTERVAL '8 seconds') WHERE window_end > watermark('r') - INTERVAL '10 seconds' GROUP BY k, window_start, window_end",
];

/// A view whose store others are derived from, and one that is read from it as it stands.
pub const FINE: [&str; 2] = [
    "SELECT k, v % 3 AS m, window_start, window_end, count(*) AS n, sum(v) AS s, min(v) AS lo, max(v) AS hi, count(v) FILTER (WHERE v % 2 = 0) AS even, count(DISTINCT v) AS d, approx_distinct(v) AS about, bool_or(v > 5) AS big, sum(v::double precision / 8) AS eighths FROM HOP(r, ts, INTERVAL '20 seconds', INTERVAL '1 minute') GROUP BY k, v % 3, window_start, window_end",
    "SELECT v % 3 AS m, k, window_start, window_end, count(*) AS n, sum(v) AS s, min(v) AS lo, max(v) AS hi, count(v) FILTER (WHERE v % 2 = 0) AS even, sum(v::double precision / 8) AS eighths FROM TUMBLE(r, ts, INTERVAL '20 seconds') GROUP BY k, v % 3, window_start, window_end",
];

/// Views that are derived from that store: other windows, coarser keys, filters on keys, fewer or other calls.
pub const DERIVED: [&str; 9] = [
    "SELECT k, window_start, count(*) AS n, sum(v) AS s, avg(v) AS a, min(v) AS lo, max(v) AS hi FROM HOP(r, ts, INTERVAL '20 seconds', INTERVAL '1 minute') GROUP BY k, window_start",
    "SELECT v % 3 AS m, window_end, count(*) FILTER (WHERE k = 'a') AS a, sum(v) FILTER (WHERE k <> 'b') AS s, count(v) FILTER (WHERE v % 2 = 0 AND k = 'c') AS even FROM TUMBLE(r, ts, INTERVAL '1 minute') GROUP BY v % 3, window_end",
    "SELECT window_start, count(*) AS n, count(DISTINCT v) AS d, approx_distinct(v) AS about, bool_or(v > 5) AS big FROM TUMBLE(r, ts, INTERVAL '40 seconds', INTERVAL '20 seconds') WHERE k = 'a' GROUP BY window_start",
    "SELECT upper(k) AS u, window_start, sum(v::double precision / 8) AS eighths, count(*) AS n FROM HOP(r, ts, INTERVAL '20 seconds', INTERVAL '2 minutes') WHERE v % 3 <> 1 AND k IS NOT NULL GROUP BY upper(k), window_start",
    "SELECT window_start, k, v % 3 AS m, avg(v) AS a, max(v) AS hi FROM TUMBLE(r, ts, INTERVAL '20 seconds') GROUP BY v % 3, k, window_start",
    "SELECT k, window_end, sum(v) AS s FROM TUMBLE(r, ts, INTERVAL '1 minute') GROUP BY k, window_end HAVING count(*) > 2",
    "SELECT k = 'a' AS is_a, window_end, max(v) AS hi, min(v) FILTER (WHERE k IN ('b', 'c')) AS lo FROM HOP(r, ts, INTERVAL '40 seconds', INTERVAL '100 seconds') GROUP BY k = 'a', window_end",
    "SELECT v % 3 AS m, k, window_start, count(*) AS n FROM HOP(r, ts, INTERVAL '1 minute', INTERVAL '3 minutes') WHERE k = 'b' GROUP BY k, v % 3, window_start",
    "SELECT k, window_start, window_end, count(*) AS n, max(v) AS hi FROM HOP(r, ts, INTERVAL '20 seconds', INTERVAL '1 minute') GROUP BY k, window_start, window_end",
];

/// Views over views, by name: over the two of [`FINE`], `f0` and `f1`, over each other, and over [`DERIVED`]. The first
/// [`ON_SLICES`] are read from the store, too; the others follow changes, the last those of a view as it stands.
pub const OVER_FINE: [&str; 12] = [
    "SELECT k, window_start, window_end, n, s * 2 AS twice FROM f0 WHERE k = 'a' AND n > 1",
    "SELECT k, window_end, sum(n) AS n, sum(s) AS s, min(lo) AS lo, max(hi) AS hi, bool_or(big) AS big, sum(even) FILTER (WHERE m = 1) AS even, sum(s) FILTER (WHERE m <> 1) AS others FROM f0 GROUP BY k, window_end",
    "SELECT window_start, sum(n)::bigint AS n, sum(eighths) AS e FROM TUMBLE(f1, window_start, INTERVAL '1 minute') GROUP BY window_start",
    "SELECT k, window_end, sum(s) AS s, max(hi) AS hi FROM HOP(f1, window_start, INTERVAL '40 seconds', INTERVAL '2 minutes') WHERE m <> 0 GROUP BY k, window_end",
    "SELECT window_start, window_end, sum(n) AS n FROM TUMBLE(o2, window_start, INTERVAL '3 minutes') GROUP BY window_start, window_end",
    "SELECT k, window_start, sum(even) AS even FROM TUMBLE((SELECT *, window_end - INTERVAL '1 second' AS moment FROM f1), moment, INTERVAL '1 minute') GROUP BY k, window_start",
    "SELECT window_end, count(*) AS groups, max(n) AS most FROM o1 GROUP BY window_end",
    "SELECT k, window_end, n FROM (SELECT k, window_end, n, row_number() OVER (PARTITION BY window_end ORDER BY n DESC, k) AS place FROM o1) WHERE place = 1",
    "SELECT n, count(*) AS windows FROM d2 GROUP BY n",
    "SELECT k, sum(s) AS s FROM o3 GROUP BY k",
    "SELECT window_start, sum(n) AS n FROM f0 WHERE n > 1 GROUP BY window_start",
    "SELECT d, about, big, sum(n) AS n FROM d2 GROUP BY d, about, big",
];
const ON_SLICES: usize = 6;

/// EMIT ON WINDOW CLOSE, derived and over each other: each with the query whose final windows it shows.
pub const FINAL: [(&str, &str); 4] = [
    (
        "SELECT k, window_start, window_end, count(*) AS n, max(v) AS hi FROM HOP(r, ts, INTERVAL '20 seconds', INTERVAL '1 minute') GROUP BY k, window_start, window_end EMIT ON WINDOW CLOSE",
        "SELECT k, window_start, window_end, n, hi FROM d8",
    ),
    (
        "SELECT window_end, sum(n) AS n FROM c0 GROUP BY window_end",
        "SELECT window_end, sum(n) AS n FROM d8 GROUP BY window_end",
    ),
    (
        "SELECT window_end, hi * 2 AS twice FROM c0 WHERE k = 'b'",
        "SELECT window_end, hi * 2 AS twice FROM d8 WHERE k = 'b'",
    ),
    (
        "SELECT window_end, sum(n) AS n FROM TUMBLE(f1, window_start, INTERVAL '1 minute') GROUP BY window_end EMIT ON WINDOW CLOSE",
        "SELECT window_end, sum(n) AS n FROM TUMBLE(f1, window_start, INTERVAL '1 minute') GROUP BY window_end",
    ),
];

pub async fn create_derived(db: &Db) {
    for (prefix, queries) in [("f", &FINE[..]), ("d", &DERIVED[..]), ("o", &OVER_FINE[..])] {
        for (i, query) in queries.iter().enumerate() {
            db.run(&format!("CREATE MATERIALIZED VIEW {prefix}{i} AS {query}")).await;
        }
    }
}

const MINUTE_US: i64 = 60_000_000;
pub const START_US: i64 = 1_767_225_600_000_000;

pub async fn create_views(db: &Db) {
    for (i, query) in QUERIES.iter().enumerate() {
        db.run(&format!("CREATE MATERIALIZED VIEW v{i} AS {query}")).await;
    }
    for (i, query) in OVER_VIEWS.iter().enumerate() {
        let query = query.replace("(v6)", "v6");
        db.run(&format!("CREATE MATERIALIZED VIEW w{i} AS {query}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn views_over_tables_equal_their_queries() {
    for seed in seeds(0..4) {
        let mut random = StdRng::seed_from_u64(seed);
        let db = Db::start(random.random_range(1..4));
        db.run("CREATE TABLE r (k VARCHAR, v BIGINT, ts TIMESTAMPTZ)").await;
        if random.random_bool(0.5) {
            change(&db, &mut random).await;
        }
        create_views(&db).await;
        create_derived(&db).await;
        for step in 0..8 {
            let statement = change(&db, &mut random).await;
            let views = QUERIES.iter().enumerate().map(|(i, q)| (format!("v{i}"), q.to_string()));
            let over = OVER_VIEWS.iter().enumerate().map(|(i, q)| (format!("w{i}"), q.replace("(v6)", "v6")));
            let on_stores = [("f", &FINE[..]), ("d", &DERIVED[..]), ("o", &OVER_FINE[..])];
            let on_stores = on_stores.into_iter().flat_map(|(prefix, queries)| {
                queries.iter().enumerate().map(move |(i, q)| (format!("{prefix}{i}"), q.to_string()))
            });
            // Every other step, as they are many.
            let on_stores = on_stores.filter(|_| step % 2 == 1);
            for (view, query) in views.chain(over).chain(on_stores) {
                let kept = db.rows(&format!("SELECT * FROM {view}")).await;
                let worked_out = db.rows(&query).await;
                assert_eq!(kept, worked_out, "seed {seed}, step {step}: {view} after {statement}\n{query}");
            }
        }
        db.stop().await;
    }
}

/// One random INSERT, UPDATE or DELETE.
pub async fn change(db: &Db, random: &mut StdRng) -> String {
    let statement = match random.random_range(0..5) {
        0 => format!("DELETE FROM r WHERE v % 3 = {}", random.random_range(0..3)),
        1 => format!(
            "UPDATE r SET v = v + {}, ts = ts + INTERVAL '{} seconds' WHERE k = '{}'",
            random.random_range(-3..4),
            random.random_range(0..50),
            ["a", "b", "c"][random.random_range(0..3)]
        ),
        _ => {
            let rows: Vec<String> = (0..random.random_range(1..10))
                .map(|_| {
                    let k = ["'a'", "'b'", "'c'", "NULL"][random.random_range(0..4)];
                    let v =
                        if random.random_bool(0.1) { "NULL".into() } else { random.random_range(-9..9).to_string() };
                    format!("({k}, {v}, to_timestamp({}))", random.random_range(-100..300))
                })
                .collect();
            format!("INSERT INTO r VALUES {}", rows.join(", "))
        }
    };
    db.run(&statement).await;
    statement
}

/// A partition's law, as simple as it can be written.
pub struct NaiveLaw {
    pub watermark_us: Option<i64>,
    pub lateness_us: i64,
    /// What lies before this is final.
    pub floor_us: Option<i64>,
}

impl Default for NaiveLaw {
    fn default() -> NaiveLaw {
        NaiveLaw { watermark_us: None, lateness_us: 20_000_000, floor_us: None }
    }
}

impl NaiveLaw {
    pub fn accepts(&mut self, time_us: i64) -> bool {
        let least_us = self.watermark_us.map(|w| w - self.lateness_us).max(self.floor_us);
        let accepted = least_us.is_none_or(|least_us| time_us >= least_us);
        if accepted {
            self.watermark_us = self.watermark_us.max(Some(time_us - 10_000_000));
        }
        accepted
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn views_over_topics_equal_their_queries_over_the_accepted_rows() {
    let broker = EmbeddedBroker::start().expect("a broker");
    let producer = Producer::new(&broker.servers(), &[]).expect("a producer");
    for seed in seeds(0..3) {
        let mut random = StdRng::seed_from_u64(seed);
        let topic = format!("r{seed}");
        let partitions = random.random_range(1..4);
        broker.create_topic(&topic, partitions).expect("a topic");
        let db = Db::start(random.random_range(1..4));
        db.run(&source_of(&topic, &broker)).await;
        let mut events = Events::new(topic, partitions);
        let created_after = random.random_range(0..3);
        for step in 0..4 {
            if step == created_after {
                create_views(&db).await;
                for (i, query) in BY_WATERMARK.iter().enumerate() {
                    db.run(&format!("CREATE MATERIALIZED VIEW t{i} AS {query}")).await;
                }
            }
            events.send(&producer, &mut random);
            if step < created_after {
                continue;
            }
            db.run("WAIT FOR r").await;
            for (i, query) in QUERIES.iter().enumerate() {
                let kept = db.rows(&format!("SELECT * FROM v{i}")).await;
                let worked_out = over_rows(&db, query, &events.accepted).await;
                assert_eq!(kept, worked_out, "seed {seed}, step {step}: v{i}\n{query}");
            }
            for (i, query) in BY_WATERMARK.iter().enumerate() {
                let kept = db.rows(&format!("SELECT * FROM t{i}")).await;
                let worked_out = over_rows(&db, query, &events.accepted).await;
                assert_eq!(kept, worked_out, "seed {seed}, step {step}: t{i}\n{query}");
            }
            for (i, query) in OVER_VIEWS.iter().enumerate() {
                let kept = db.rows(&format!("SELECT * FROM w{i}")).await;
                let worked_out = db.rows(&query.replace("(v6)", "v6")).await;
                assert_eq!(kept, worked_out, "seed {seed}, step {step}: w{i}\n{query}");
            }
            let counts =
                "SELECT sum(read), sum(accepted), sum(read - accepted - late - dead) FROM riverrun.source_partitions";
            assert_eq!(db.rows(counts).await, [format!("{}|{}|0", events.sent, events.accepted.len())], "seed {seed}");
        }
        db.stop().await;
    }
}

/// Views derived from one store, and views over them, made before and after rows have come: they are complete at once, and hold
/// no store of their own.
#[tokio::test(flavor = "multi_thread")]
async fn views_derived_from_a_store_equal_their_queries() {
    let broker = EmbeddedBroker::start().expect("a broker");
    let producer = Producer::new(&broker.servers(), &[]).expect("a producer");
    for seed in seeds(0..4) {
        let mut random = StdRng::seed_from_u64(seed);
        let topic = format!("derived{seed}");
        let partitions = random.random_range(1..4);
        broker.create_topic(&topic, partitions).expect("a topic");
        let db = Db::start(random.random_range(1..4));
        db.run(&source_of(&topic, &broker)).await;
        let mut events = Events::new(topic, partitions);
        let derived_in = random.random_range(0..3);
        for step in 0..4 {
            if step == 0 {
                db.run(&format!("CREATE MATERIALIZED VIEW f0 AS {}", FINE[0])).await;
            }
            if step == derived_in {
                db.run(&format!("CREATE MATERIALIZED VIEW f1 AS {}", FINE[1])).await;
                for (prefix, queries) in [("d", &DERIVED[..]), ("o", &OVER_FINE[..])] {
                    for (i, query) in queries.iter().enumerate() {
                        db.run(&format!("CREATE MATERIALIZED VIEW {prefix}{i} AS {query}")).await;
                    }
                }
                for (i, (query, _)) in FINAL.iter().enumerate() {
                    db.run(&format!("CREATE MATERIALIZED VIEW c{i} AS {query}")).await;
                }
                // Follows what closes in a view that is regrouped.
                db.run("CREATE MATERIALIZED VIEW e0 AS SELECT k, count(*) AS windows, sum(n) AS n FROM c0 GROUP BY k")
                    .await;
                // Nothing is waited for here: what the store holds is there at once, if it was whole.
                if step > 0 {
                    check_derived(&db, &events.accepted, &format!("seed {seed}, just made")).await;
                }
            }
            events.send(&producer, &mut random);
            db.run("WAIT FOR r").await;
            let kept = db.rows("SELECT * FROM f0").await;
            assert_eq!(kept, over_rows(&db, FINE[0], &events.accepted).await, "seed {seed}, step {step}: f0");
            if step >= derived_in {
                check_derived(&db, &events.accepted, &format!("seed {seed}, step {step}")).await;
            }
        }
        let stores =
            db.rows("SELECT name, stores FROM riverrun.materialized_views WHERE name NOT IN ('o11', 'e0')").await;
        assert!(stores.iter().all(|line| line.ends_with("|store_1")), "seed {seed}: all on one store: {stores:?}");
        for i in 0..OVER_FINE.len() {
            let lines = db.engine.explain_view(oid(&db, &format!("o{i}")), false).await.expect("a plan").join("\n");
            assert_eq!(lines.contains("read through the slices"), i < OVER_FINE.len() - 1, "o{i}\n{lines}");
            assert_eq!(
                lines.contains("followed tick by tick"),
                (ON_SLICES..OVER_FINE.len() - 1).contains(&i),
                "o{i}\n{lines}"
            );
        }
        db.stop().await;
    }
}

fn oid(db: &Db, name: &str) -> u32 {
    db.engine.catalog().resolve(&Name(vec![name.into()]), &db.names).expect("the view").oid
}

pub async fn check_derived(db: &Db, accepted: &[Row], when: &str) {
    for (prefix, queries) in [("f", &FINE[1..]), ("d", &DERIVED[..])] {
        for (i, query) in queries.iter().enumerate() {
            let view = if prefix == "f" { "f1".into() } else { format!("{prefix}{i}") };
            let kept = db.rows(&format!("SELECT * FROM {view}")).await;
            assert_eq!(kept, over_rows(db, query, accepted).await, "{when}: {view}\n{query}");
        }
    }
    for (i, query) in OVER_FINE.iter().enumerate() {
        let kept = db.rows(&format!("SELECT * FROM o{i}")).await;
        assert_eq!(kept, db.rows(query).await, "{when}: o{i}\n{query}");
    }
    for (i, (query, all)) in FINAL.iter().enumerate() {
        let until = db.rows(&format!("SELECT final_window_end('c{i}')::text")).await.remove(0);
        let until = if until == "NULL" { "NULL".into() } else { format!("'{until}'") };
        let kept = db.rows(&format!("SELECT * FROM c{i} WHERE window_end <= {until}::timestamptz")).await;
        let final_ones = db.rows(&format!("SELECT * FROM ({all}) WHERE window_end <= {until}::timestamptz")).await;
        assert_eq!(kept, final_ones, "{when}: c{i}, final until {until}\n{query}");
    }
    let summed = db.rows("SELECT k, count(*) AS windows, sum(n) AS n FROM c0 GROUP BY k").await;
    assert_eq!(db.rows("SELECT * FROM e0").await, summed, "{when}: e0");
    // Conditions that are pushed into the scan change nothing but what is read.
    for view in ["d0", "o1", "o3"] {
        for condition in ["k = 'a'", "k IS NULL", "k < 'c'", "k = 'b' OR k = 'z'"] {
            let pushed = db.rows(&format!("SELECT * FROM {view} WHERE {condition}")).await;
            let late = format!("SELECT * FROM (SELECT *, random() AS x FROM {view}) WHERE ({condition}) AND x >= 0");
            let columns = db.rows(&late).await;
            let columns: Vec<String> =
                columns.iter().map(|line| line.rsplit_once('|').expect("x comes last").0.to_string()).collect();
            assert_eq!(pushed, columns, "{when}: {view} WHERE {condition}");
        }
    }
}

/// `(k, v, ts)`.
pub type Row = (Option<&'static str>, Option<i64>, i64);

pub fn source_of(topic: &str, broker: &EmbeddedBroker) -> String {
    format!(
        "CREATE SOURCE r (k VARCHAR, v BIGINT, ts TIMESTAMPTZ, WATERMARK FOR ts AS ts - INTERVAL '10 seconds')
         WITH (connector = 'kafka', topic = '{topic}', properties.bootstrap.server = '{}', allowed_lateness = '20 seconds', idle_timeout = '1 hour')
         FORMAT PLAIN ENCODE JSON",
        broker.servers()
    )
}

/// Random events of a topic, late ones among them.
pub struct Events {
    topic: String,
    partitions: i32,
    laws: BTreeMap<i32, NaiveLaw>,
    pub accepted: Vec<Row>,
    pub sent: i64,
}

impl Events {
    pub fn new(topic: String, partitions: i32) -> Events {
        Events { topic, partitions, laws: BTreeMap::new(), accepted: Vec::new(), sent: 0 }
    }

    pub fn send(&mut self, producer: &Producer, random: &mut StdRng) {
        for _ in 0..random.random_range(1..60) {
            self.sent += 1;
            let partition = random.random_range(0..self.partitions);
            let k = [Some("a"), Some("b"), Some("c"), None][random.random_range(0..4)];
            let v = (!random.random_bool(0.1)).then(|| random.random_range(-9..9));
            let late_us = if random.random_bool(0.2) { random.random_range(0..2) * MINUTE_US } else { 0 };
            let time_us = START_US + self.sent * 2_000_000 + random.random_range(0..9) * 1_000_000 - late_us;
            let json = format!(
                r#"{{"k":{},"v":{},"ts":{}}}"#,
                k.map_or("null".into(), |k| format!("{k:?}")),
                v.map_or("null".into(), |v: i64| v.to_string()),
                time_us / 1000
            );
            producer.send(&self.topic, Some(partition), None, Some(json.as_bytes()), 0).expect("a record sent");
            if self.laws.entry(partition).or_default().accepts(time_us) {
                self.accepted.push((k, v, time_us));
            }
        }
        producer.flush(Duration::from_secs(30)).expect("everything delivered");
    }
}

/// The batch engine's answer over these rows in the place of the source's, whose further columns nobody looks at.
pub async fn over_rows(db: &Db, query: &str, rows: &[Row]) -> Vec<String> {
    let source = db.engine.catalog().resolve(&Name(vec!["r".into()]), &db.names).expect("the source");
    let mut columns: Vec<ArrayRef> = vec![
        Arc::new(rows.iter().map(|r| r.0).collect::<StringArray>()),
        Arc::new(rows.iter().map(|r| r.1).collect::<Int64Array>()),
        Arc::new(rows.iter().map(|r| Some(r.2)).collect::<TimestampMicrosecondArray>().with_timezone("UTC")),
    ];
    let further = source.columns.fields().iter().skip(columns.len());
    columns.extend(further.map(|field| arrow::array::new_null_array(field.data_type(), rows.len())));
    let batch = RecordBatch::try_new(source.columns.clone(), columns).expect("the source's columns");
    let table = MemTable::try_new(source.columns.clone(), vec![vec![batch]]).expect("a table");
    let parsed = sql::parse(query).expect("a query").remove(0);
    let Statement::Query(query) = &parsed.statement else { panic!("not a query") };
    let instead = HashMap::from([(source.oid, Arc::new(table) as _)]);
    let reads = db.reads(&parsed.statement, instead).await.expect("reads");
    let plan = planner::plan_query(query, &reads, &[]).await.expect("a plan");
    let session = planner::session(&reads).expect("a session");
    lines(&session.execute_logical_plan(plan).await.expect("a run").collect().await.expect("rows"))
}
