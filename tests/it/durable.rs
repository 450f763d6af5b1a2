//! What survives: an engine that is crashed and started again at random moments, with other numbers of workers, holds what one that
//! was never stopped would. The views and their queries are those of the oracle.

use std::fs;
use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use riverrun::connector::{EmbeddedBroker, Producer};

use crate::db::Db;
use crate::oracle::{
    BY_WATERMARK, DERIVED, Events, FINAL, FINE, OVER_FINE, OVER_VIEWS, QUERIES, change, check_derived, create_derived,
    create_views, over_rows, seeds, source_of,
};

/// An engine that keeps its state in the folder, with the source `r` over a topic of its own, and what is to be sent there.
async fn begun(topic: String, broker: &EmbeddedBroker, random: &mut StdRng, folder: &Path) -> (Db, Events) {
    let partitions = random.random_range(1..4);
    broker.create_topic(&topic, partitions).expect("a topic");
    let db = Db::start_at(random.random_range(1..4), folder);
    db.run(&source_of(&topic, broker)).await;
    (db, Events::new(topic, partitions))
}

/// Ends the engine, mostly as a crash does, and starts it again.
async fn restarted(db: Db, random: &mut StdRng, folder: &Path) -> Db {
    if random.random_bool(0.8) {
        db.engine.crash().await;
    } else {
        db.stop().await;
    }
    drop(db);
    Db::start_at(random.random_range(1..4), folder)
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_and_views_over_them_survive_crashes() {
    for seed in seeds(0..2) {
        let mut random = StdRng::seed_from_u64(seed);
        let folder = tempfile::tempdir().expect("a folder");
        let mut db = Db::start_at(random.random_range(1..4), folder.path());
        db.run("CREATE TABLE r (k VARCHAR, v BIGINT, ts TIMESTAMPTZ)").await;
        create_views(&db).await;
        create_derived(&db).await;
        for step in 0..6 {
            let statement = change(&db, &mut random).await;
            let rows = db.rows("SELECT * FROM r").await;
            if random.random_bool(0.7) {
                db = restarted(db, &mut random, folder.path()).await;
            }
            assert_eq!(db.rows("SELECT * FROM r").await, rows, "seed {seed}, step {step}: r after {statement}");
            let views = QUERIES.iter().enumerate().map(|(i, q)| (format!("v{i}"), q.to_string()));
            let over = OVER_VIEWS.iter().enumerate().map(|(i, q)| (format!("w{i}"), q.replace("(v6)", "v6")));
            let on_stores = [("f", &FINE[..]), ("d", &DERIVED[..]), ("o", &OVER_FINE[..])];
            let on_stores = on_stores.into_iter().flat_map(|(prefix, queries)| {
                queries.iter().enumerate().map(move |(i, q)| (format!("{prefix}{i}"), q.to_string()))
            });
            for (view, query) in views.chain(over).chain(on_stores) {
                let kept = db.rows(&format!("SELECT * FROM {view}")).await;
                let worked_out = db.rows(&query).await;
                assert_eq!(kept, worked_out, "seed {seed}, step {step}: {view} after {statement}\n{query}");
            }
        }
        db.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sources_and_views_over_them_survive_crashes() {
    let broker = EmbeddedBroker::start().expect("a broker");
    let producer = Producer::new(&broker.servers(), &[]).expect("a producer");
    for seed in seeds(0..2) {
        let mut random = StdRng::seed_from_u64(seed);
        let folder = tempfile::tempdir().expect("a folder");
        let (mut db, mut events) = begun(format!("durable{seed}"), &broker, &mut random, folder.path()).await;
        let created_after = random.random_range(0..3);
        for step in 0..6 {
            if step == created_after {
                create_views(&db).await;
                for (i, query) in BY_WATERMARK.iter().enumerate() {
                    db.run(&format!("CREATE MATERIALIZED VIEW t{i} AS {query}")).await;
                }
            }
            events.send(&producer, &mut random);
            if random.random_bool(0.3) {
                db = restarted(db, &mut random, folder.path()).await;
            }
            if step < created_after {
                continue;
            }
            db.run("WAIT FOR r").await;
            if random.random_bool(0.7) {
                db = restarted(db, &mut random, folder.path()).await;
                db.run("WAIT FOR r").await;
            }
            let counts =
                "SELECT sum(read), sum(accepted), sum(read - accepted - late - dead) FROM riverrun.source_partitions";
            let told = format!("{}|{}|0", events.sent, events.accepted.len());
            assert_eq!(db.rows(counts).await, [told], "seed {seed}, step {step}");
            for (prefix, queries) in [("v", QUERIES), ("t", BY_WATERMARK)] {
                for (i, query) in queries.iter().enumerate() {
                    let kept = db.rows(&format!("SELECT * FROM {prefix}{i}")).await;
                    let worked_out = over_rows(&db, query, &events.accepted).await;
                    assert_eq!(kept, worked_out, "seed {seed}, step {step}: {prefix}{i}\n{query}");
                }
            }
            for (i, query) in OVER_VIEWS.iter().enumerate() {
                let kept = db.rows(&format!("SELECT * FROM w{i}")).await;
                let worked_out = db.rows(&query.replace("(v6)", "v6")).await;
                assert_eq!(kept, worked_out, "seed {seed}, step {step}: w{i}\n{query}");
            }
        }
        db.stop().await;
    }
}

/// Views that share a store, regroup it, and show only what is final. The view that made the store may be gone.
#[tokio::test(flavor = "multi_thread")]
async fn shared_stores_survive_crashes() {
    let broker = EmbeddedBroker::start().expect("a broker");
    let producer = Producer::new(&broker.servers(), &[]).expect("a producer");
    for seed in seeds(0..2) {
        let mut random = StdRng::seed_from_u64(seed);
        let folder = tempfile::tempdir().expect("a folder");
        let (mut db, mut events) = begun(format!("durable_shared{seed}"), &broker, &mut random, folder.path()).await;
        // It makes the store, and goes again.
        db.run(&format!("CREATE MATERIALIZED VIEW first AS {}", FINE[0])).await;
        create_derived(&db).await;
        for (i, (query, _)) in FINAL.iter().enumerate() {
            db.run(&format!("CREATE MATERIALIZED VIEW c{i} AS {query}")).await;
        }
        db.run("CREATE MATERIALIZED VIEW e0 AS SELECT k, count(*) AS windows, sum(n) AS n FROM c0 GROUP BY k").await;
        for step in 0..6 {
            if step == 2 {
                db.run("DROP MATERIALIZED VIEW first").await;
            }
            events.send(&producer, &mut random);
            if random.random_bool(0.3) {
                db = restarted(db, &mut random, folder.path()).await;
            }
            db.run("WAIT FOR r").await;
            if random.random_bool(0.7) {
                db = restarted(db, &mut random, folder.path()).await;
                db.run("WAIT FOR r").await;
            }
            let when = format!("seed {seed}, step {step}");
            let kept = db.rows("SELECT * FROM f0").await;
            assert_eq!(kept, over_rows(&db, FINE[0], &events.accepted).await, "{when}: f0");
            check_derived(&db, &events.accepted, &when).await;
        }
        let stores =
            db.rows("SELECT DISTINCT stores FROM riverrun.materialized_views WHERE name NOT IN ('o11', 'e0')").await;
        assert_eq!(stores, ["store_1"], "seed {seed}: the store outlives the view that made it");
        db.stop().await;
    }
}

/// A checkpoint may be taken in any tick, also in the one in which a view turns out to have all its history.
#[tokio::test(flavor = "multi_thread")]
async fn views_that_have_just_read_their_history_survive_crashes() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut db = Db::start_at(2, folder.path());
    db.run("CREATE TABLE t (i INT)").await;
    db.run(
        "CREATE SOURCE s (id BIGINT, ts TIMESTAMPTZ, WATERMARK FOR ts AS ts) WITH (connector = 'datagen', \
         datagen.rows.total = 3000, datagen.rows.per.second = 1000000, datagen.split.num = 3, \
         datagen.start.timestamp.millis = 1767225600000, fields.id.kind = 'sequence')",
    )
    .await;
    db.run("CREATE MATERIALIZED VIEW v0 AS SELECT count(*) AS n FROM s").await;
    for view in 1..12 {
        let query = format!("SELECT id % {view} AS k, count(*) AS n FROM s GROUP BY id % {view}");
        db.run(&format!("CREATE MATERIALIZED VIEW v{view} AS {query}")).await;
        // Each ends a tick, and gives it something to keep.
        let state = format!("SELECT state FROM riverrun.materialized_views WHERE name = 'v{view}'");
        while db.rows(&state).await != ["current"] {
            db.run("INSERT INTO t VALUES (1)").await;
        }
        db.engine.crash().await;
        drop(db);
        db = Db::start_at(1 + view % 3, folder.path());
        db.run("WAIT FOR s").await;
        for view in 0..=view {
            assert_eq!(db.rows(&format!("SELECT sum(n) FROM v{view}")).await, ["3000"], "v{view}");
        }
    }
    db.stop().await;
}

/// Names in other schemas and databases, views replaced by others over newer tables, and what was dropped.
#[tokio::test(flavor = "multi_thread")]
async fn the_catalog_survives_a_crash() {
    let folder = tempfile::tempdir().expect("a folder");
    let db = Db::start_at(2, folder.path());
    for statement in [
        "CREATE SCHEMA s",
        "CREATE TABLE s.t (id INT PRIMARY KEY, v NUMERIC(10, 2) DEFAULT 1.5 NOT NULL) ON CONFLICT OVERWRITE",
        "CREATE TABLE \"Odd name\" (\"A b\" VARCHAR, ts TIMESTAMP, WATERMARK FOR ts AS ts - INTERVAL '1 second') APPEND ONLY",
        "CREATE VIEW w AS SELECT id FROM s.t",
        "CREATE MATERIALIZED VIEW s.m AS SELECT v, count(*) AS n FROM s.t GROUP BY v",
        "CREATE MATERIALIZED VIEW m2 AS SELECT sum(n) AS n FROM s.m",
        "CREATE TABLE later (id INT)",
        "CREATE OR REPLACE VIEW w AS SELECT id FROM later",
        "CREATE MATERIALIZED VIEW over_w AS SELECT count(*) AS n FROM w",
        "CREATE TABLE gone (v INT)",
        "CREATE DATABASE other",
        "DROP TABLE gone",
        "INSERT INTO s.t (id) VALUES (1), (2)",
        "INSERT INTO s.t VALUES (2, 7), (3, 7)",
        "INSERT INTO \"Odd name\" VALUES ('x', '2026-01-01 00:00:10'), ('late', '2026-01-01 00:00:00')",
        "INSERT INTO \"Odd name\" VALUES ('late', '2026-01-01 00:00:00'), ('y', '2026-01-01 00:00:20')",
        "INSERT INTO later VALUES (5)",
    ] {
        db.run(statement).await;
    }
    let questions = [
        "SELECT * FROM s.t",
        "SELECT * FROM s.m",
        "SELECT * FROM m2",
        "SELECT * FROM over_w",
        "SELECT * FROM \"Odd name\"",
        "SELECT source, reason, payload FROM riverrun.late_rows",
    ];
    let objects = |db: &Db| {
        let catalog = db.engine.catalog();
        let mut all: Vec<String> =
            catalog.objects("dev").map(|o| format!("{} {}.{} {}", o.oid, o.schema, o.name, o.sql)).collect();
        all.push(format!("{:?} {:?}", catalog.databases(), catalog.schemas("dev")));
        all
    };
    let (known, mut answers) = (objects(&db), Vec::new());
    for question in questions {
        answers.push(db.rows(question).await);
    }
    assert_eq!(answers[0], ["1|1.50", "2|7.00", "3|7.00"]);
    db.engine.crash().await;
    let db = Db::start_at(3, folder.path());
    assert_eq!(objects(&db), known);
    for (question, answer) in questions.iter().zip(&answers) {
        assert_eq!(&db.rows(question).await, answer, "{question}");
    }
    db.run("CREATE TABLE newer (v INT)").await;
    let newest = db.engine.catalog().objects("dev").map(|o| o.oid).max();
    assert!(newest > Some(known.len() as u32), "no OID comes twice");
    db.stop().await;
}

/// `format_1` is a folder that was written before format 2.
/// Of nobody.
const CERTIFICATE: &str = "\
-----BEGIN CERTIFICATE-----
MIIBejCCAR+gAwIBAgIUHIX0sUvM4VZFouYBg9QEZ//Lp5cwCgYIKoZIzj0EAwIw
ETEPMA0GA1UEAwwGbm9ib2R5MCAXDTI2MTEyMjAyNDgyNFoYDzIxMjYxMDI5MDI0
ODI0WjARMQ8wDQYDVQQDDAZub2JvZHkwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNC
AASVHb7lF1oK0ou3qB8nQeTX/FKsfVqwl5c2gGEw9xwN5T8Jp9HiuVnE0BkAw8Ll
AkxT/wmsrtUk6n5Gx2F2YUM/o1MwUTAdBgNVHQ4EFgQUaQOsM7xOtH/KE4gt/BdT
ARWKPw8wHwYDVR0jBBgwFoAUaQOsM7xOtH/KE4gt/BdTARWKPw8wDwYDVR0TAQH/
BAUwAwEB/zAKBggqhkjOPQQDAgNJADBGAiEAoosIbbv4sKJ9BJXA0O6PebPFCo0E
iMKWUO/TXl2ibDYCIQCtvFO2rsWKudBG7JsG5lD5reaOK9pmppoSSKdDt6fqsQ==
-----END CERTIFICATE-----
";

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_gone_keeps_one_source_from_reading_and_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), CERTIFICATE).expect("written");
    let source = |name: &str| {
        format!(
            "CREATE SOURCE {name} (v INT) WITH (connector = 'kafka', topic = 't', properties.bootstrap.server = '127.0.0.1:9',
                properties.security.protocol = 'ssl', properties.ssl.ca.location = '{}') FORMAT PLAIN ENCODE JSON",
            file.path().display()
        )
    };
    let db = Db::start_at(1, folder.path());
    db.run(&source("e")).await;
    db.run(
        "CREATE MATERIALIZED VIEW n AS SELECT count(*) AS n FROM e; CREATE TABLE t (v INT); INSERT INTO t VALUES (1)",
    )
    .await;
    db.stop().await;
    let again = source("f");
    drop(file);
    let db = Db::start_at(1, folder.path());
    assert_eq!(db.rows("SELECT v FROM t").await, ["1"]);
    db.until("SELECT state FROM riverrun.sources WHERE message LIKE '%ssl.ca.location%'", &["retrying"]).await;
    let error = db.error(&again).await;
    assert!(error.contains("ssl.ca.location"), "{error}");
    db.run("DROP SOURCE e CASCADE").await;
    db.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_of_a_former_format_is_read() {
    let folder = tempfile::tempdir().expect("a folder");
    for part in ["data", "log", "manifest"] {
        fs::create_dir(folder.path().join(part)).expect("a folder");
        for file in fs::read_dir(Path::new("tests/it/format_1").join(part)).expect("files") {
            let file = file.expect("a file");
            fs::copy(file.path(), folder.path().join(part).join(file.file_name())).expect("a copy");
        }
    }
    let manifest = folder.path().join("manifest");
    let newest = || fs::read_dir(&manifest).expect("manifests").map(|file| file.expect("one").file_name()).max();
    let before = newest();
    let answers = [
        ("SELECT count(*), sum(n), sum(v), max(window_end) FROM w", &["119|4500|226608|2026-01-01T00:02:50Z"][..]),
        ("SELECT window_end, v FROM c", &["2026-01-01T00:01:00Z|99", "2026-01-01T00:02:00Z|99"]),
        ("SELECT count(*), sum(n), max(n) FROM n", &["91|1500|77"]),
        ("SELECT id, count(*) FROM top GROUP BY id", &["0|2", "1|2", "6|1"]),
        ("SELECT sum(k), count(*) FROM t", &["1169|18"]),
        ("SELECT sum(read), sum(accepted), sum(late) FROM riverrun.source_partitions", &["1500|1500|0"]),
    ];
    let w = "SELECT id, window_end, count(*), sum(v) FROM HOP(s, ts, INTERVAL '10 s', INTERVAL '30 s') \
             GROUP BY id, window_end";
    let g = "SELECT window_end, count(*) FROM TUMBLE(t, at, INTERVAL '1 minute') GROUP BY window_end";
    for workers in [2, 3, 1] {
        let db = Db::start_at(workers, folder.path());
        for (query, rows) in answers {
            assert_eq!(db.rows(query).await, rows, "{query}, {workers} workers");
        }
        for (view, query) in [("w", w), ("g", g)] {
            let kept = db.rows(&format!("SELECT * FROM {view}")).await;
            assert_eq!(kept, db.rows(query).await, "{view}, {workers} workers");
        }
        db.stop().await;
    }
    assert!(newest() > before, "another checkpoint has been written");
}
