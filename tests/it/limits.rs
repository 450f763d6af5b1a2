//! At the limits of memory: the cache gives way first, then reading rests and says so, reads and changes of tables go on, and once
//! there is room again so does reading, with nothing lost. A query past its own limit ends alone.

use std::time::Duration;

use riverrun::connector::{EmbeddedBroker, Producer};
use riverrun::engine::{EngineOptions, MemoryStats};
use riverrun::server::{Server, ServerOptions};
use riverrun::storage::sim::{Kind, SimDisk};
use tokio_postgres::NoTls;

use crate::db::Db;

const LIMIT_BYTES: usize = 12 << 20;
const START_MS: i64 = 1_767_225_600_000;
const PARTITIONS: i64 = 2;

struct Scene {
    disk: SimDisk,
    db: Db,
    broker: EmbeddedBroker,
    producer: Producer,
    sent: i64,
}

fn started(disk: &SimDisk) -> Db {
    let options = EngineOptions {
        workers: 2,
        checkpoint_interval: Duration::from_millis(20),
        memory_limit_bytes: Some(LIMIT_BYTES),
        ..EngineOptions::default()
    };
    Db::start_with(options, disk.process()).expect("an engine")
}

impl Scene {
    async fn new() -> Scene {
        let broker = EmbeddedBroker::start().expect("a broker");
        let producer = Producer::new(&broker.servers(), &[]).expect("a producer");
        broker.create_topic("e", PARTITIONS as i32).expect("a topic");
        let disk = SimDisk::new(Kind::Local, 1);
        let db = started(&disk);
        db.run(&format!(
            "CREATE SOURCE e (id BIGINT, ts TIMESTAMPTZ, WATERMARK FOR ts AS ts) WITH (connector = 'kafka', topic = 'e',
               properties.bootstrap.server = '{}') FORMAT PLAIN ENCODE JSON;
             CREATE MATERIALIZED VIEW minutes AS SELECT id % 20000 AS k, window_start, window_end, count(*) AS n
               FROM TUMBLE(e, ts, INTERVAL '1 minute') GROUP BY id % 20000, window_start, window_end;
             CREATE TABLE t (v BIGINT, pad VARCHAR)",
            broker.servers()
        ))
        .await;
        Scene { disk, db, broker, producer, sent: 0 }
    }

    /// So many events, 400 of them a second.
    fn send(&mut self, events: i64) {
        for id in self.sent..self.sent + events {
            let json = format!(r#"{{"id":{id},"ts":{}}}"#, START_MS + id * 1000 / 400);
            let partition = Some((id % PARTITIONS) as i32);
            self.producer.send("e", partition, None, Some(json.as_bytes()), 0).expect("a record sent");
        }
        self.producer.flush(Duration::from_secs(60)).expect("everything delivered");
        self.sent += events;
    }

    async fn read(&self) -> i64 {
        let read = self.db.rows("SELECT coalesce(sum(read), 0)::bigint FROM riverrun.source_partitions").await;
        read[0].parse().expect("a number")
    }

    async fn state(&self) -> String {
        self.db.rows("SELECT state FROM riverrun.sources").await.remove(0)
    }

    fn memory(&self) -> MemoryStats {
        self.db.engine.stats().memory
    }

    /// Events come until reading rests, with some that are not read.
    async fn fill(&mut self) {
        while self.state().await != "resting" {
            assert!(self.sent < 2_000_000, "{:?}", self.memory());
            self.send(4000);
            while self.read().await < self.sent && self.state().await != "resting" {}
        }
        self.send(4000);
        let read = self.read().await;
        // Each is answered at the end of a tick.
        for _ in 0..50 {
            assert_eq!(self.read().await, read);
        }
        assert!(read < self.sent);
    }

    async fn check(&self) {
        self.db.run("WAIT FOR e").await;
        assert_eq!(self.db.rows("SELECT state, message FROM riverrun.sources").await, ["running|NULL"]);
        let counts = "SELECT sum(read)::bigint, sum(accepted)::bigint FROM riverrun.source_partitions";
        assert_eq!(self.db.rows(counts).await, [format!("{0}|{0}", self.sent)]);
        assert_eq!(self.db.rows("SELECT sum(n)::bigint FROM minutes").await, [self.sent.to_string()]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_limit_the_cache_gives_way_and_then_reading_rests_until_there_is_room() {
    let mut scene = Scene::new().await;
    // Ten minutes in files, and read again into the cache.
    scene.send(24_000 * 10);
    scene.check().await;
    // A statement that changes the catalog waits for a checkpoint.
    while scene.memory().cached_bytes < 2 << 20 {
        scene.db.run("CREATE SCHEMA s").await;
        scene.db.run("DROP SCHEMA s").await;
        scene.check().await;
    }

    scene.db.run("CREATE MATERIALIZED VIEW ids AS SELECT id, count(*) AS n FROM e GROUP BY id").await;
    scene.fill().await;
    let message = scene.db.rows("SELECT message FROM riverrun.sources").await.remove(0);
    assert!(
        message.starts_with("nothing is read: state takes ") && message.contains(" MiB of memory_limit, 12 MiB;"),
        "{message}"
    );
    let memory = scene.memory();
    assert!(memory.cached_bytes <= LIMIT_BYTES as u64 / 10, "{memory:?}");
    // Reads of what is in files, and changes, go on.
    let first = "SELECT count(*), sum(n)::bigint FROM minutes WHERE window_start = '2026-01-01 00:01:00+00'";
    assert_eq!(scene.db.rows(first).await, ["20000|24000"]);
    scene.db.run("INSERT INTO t VALUES (1, 'x')").await;

    // It rests after a crash, too.
    scene.db.engine.crash().await;
    scene.disk.crash();
    scene.db = started(&scene.disk);
    scene.fill().await;
    scene.db.run("DROP MATERIALIZED VIEW ids").await;
    scene.check().await;

    // A table takes the room, and gives it back.
    let mut rows = 0;
    while scene.state().await != "resting" {
        assert!(rows < 100_000, "{:?}", scene.memory());
        let (from, to) = (rows + 1, rows + 1000);
        rows = to;
        let made = format!("SELECT g, repeat('x', 500) || g FROM generate_series({from}, {to}) AS s(g)");
        scene.db.run(&format!("INSERT INTO t {made}")).await;
    }
    scene.send(1000);
    scene.db.run("DELETE FROM t WHERE v < 1000000").await;
    scene.check().await;
    scene.db.stop().await;
    drop(scene.broker);
}

#[tokio::test(flavor = "multi_thread")]
async fn history_that_is_too_large_rests_while_current_views_go_on() {
    let mut scene = Scene::new().await;
    scene.send(24_000 * 20);
    scene.check().await;
    scene
        .db
        .run(
            "CREATE MATERIALIZED VIEW ids AS SELECT id::varchar || ' is an id that takes some room in memory' AS name, count(*) AS n
               FROM e GROUP BY id::varchar || ' is an id that takes some room in memory'",
        )
        .await;
    let rests = "SELECT count(*) FROM riverrun.materialized_views WHERE name = 'ids' AND state = 'reading history'
                   AND message LIKE 'history is not read: state takes % MiB of memory_limit, 12 MiB, and what is left is for current views;%'";
    while scene.db.rows(rests).await != ["1"] {
        let ids = scene.db.rows("SELECT state FROM riverrun.materialized_views WHERE name = 'ids'").await;
        assert_eq!(ids, ["reading history"], "{:?}", scene.memory());
        assert_eq!(scene.state().await, "running", "{:?}", scene.memory());
    }
    let error = scene.db.error("SELECT count(*) FROM ids").await;
    assert!(error.contains("is still reading history: history is not read: state takes "), "{error}");
    // It rests, and what comes now does not wait for it.
    let progress = "SELECT progress FROM riverrun.materialized_views WHERE name = 'ids'";
    let before = scene.db.rows(progress).await;
    scene.send(2000);
    while scene.read().await < scene.sent {
        assert_eq!(scene.state().await, "running", "{:?}", scene.memory());
    }
    assert_eq!(scene.db.rows("SELECT sum(n)::bigint FROM minutes").await, [scene.sent.to_string()]);
    assert_eq!(scene.db.rows(rests).await, ["1"]);
    let after = scene.db.rows(progress).await;
    assert!(before[0].parse::<f64>().expect("a number") < 1.0 && after[0].parse::<f64>().expect("a number") < 1.0);
    scene.db.run("DROP MATERIALIZED VIEW ids").await;
    scene.check().await;
    scene.db.stop().await;
    drop(scene.broker);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_past_its_memory_ends_while_reading_goes_on() {
    let mut scene = Scene::new().await;
    let options =
        ServerOptions { listen: ([127, 0, 0, 1], 0).into(), query_memory_bytes: 4 << 20, ..ServerOptions::default() };
    let server = Server::start(scene.db.engine.clone(), options).await.expect("a server");
    let url = format!("host=127.0.0.1 port={} user=tester dbname=dev", server.address().port());
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await.expect("a connection");
    tokio::spawn(connection);
    for query in [
        "SELECT g % 1000000 AS k, count(DISTINCT g) FROM generate_series(1, 3000000) AS s(g) GROUP BY 1 ORDER BY 2 DESC LIMIT 1",
        "SELECT g FROM generate_series(1, 3000000) AS s(g) ORDER BY -g OFFSET 2999999",
        "SELECT a.g FROM generate_series(1, 1000000) AS a(g) JOIN generate_series(1, 1000000) AS b(g) ON a.g = b.g OFFSET 999999",
    ] {
        let before = scene.read().await;
        scene.send(2000);
        let (told, _) = tokio::join!(client.simple_query(query), scene.db.run("WAIT FOR e"));
        let error = told.expect_err("more than it may have");
        let error = error.as_db_error().expect("an error of the server");
        assert_eq!(error.code().code(), "53200", "{query}: {error}");
        assert_eq!(scene.read().await, before + 2000);
    }
    scene
        .db
        .run(
            "CREATE MATERIALIZED VIEW visits AS SELECT id, window_start, window_end, count(*) AS n
               FROM SESSION(e, ts, INTERVAL '1 second') GROUP BY id, window_start, window_end",
        )
        .await;
    scene.send(60_000);
    scene.db.run("WAIT FOR e").await;
    let error = client.simple_query("RECONCILE MATERIALIZED VIEW visits").await.expect_err("more than it may have");
    let error = error.as_db_error().expect("an error of the server");
    let told = (error.code().code(), error.message());
    assert_eq!(told, ("53200", "the comparison takes more memory than queries have together, 4 MiB"));
    assert!(
        error.hint().is_some_and(|hint| hint.contains("FROM and TO") && hint.contains("--query-memory-mib")),
        "{error}"
    );
    let part = "RECONCILE MATERIALIZED VIEW visits FROM '2026-01-01 00:01:00' TO '2026-01-01 00:01:02'";
    client.simple_query(part).await.expect("a part is small enough");
    scene.db.run("DROP MATERIALIZED VIEW visits").await;
    // What others do is none of it.
    let rows = client.simple_query("SELECT sum(n)::bigint FROM minutes").await.expect("rows");
    assert!(rows.len() > 1);
    scene.check().await;
    server.stop().await;
    scene.db.stop().await;
}
