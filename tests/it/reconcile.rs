//! RECONCILE and REPAIR: views are compared with their queries over the log, damaged, found wrong, and mended.
//!
//! A view is damaged by taking the rows out of some of its slices, as a fault would that nobody noticed.

use std::collections::BTreeMap;
use std::future;
use std::path::Path;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use riverrun::connector::{EmbeddedBroker, Producer};
use riverrun::engine::Damage;
use riverrun::server::{Server, ServerOptions};
use riverrun::sql::Name;
use tokio_postgres::{AsyncMessage, Client, NoTls, SimpleQueryMessage};

use crate::db::Db;
use crate::oracle::{
    BY_WATERMARK, DERIVED, Events, FINAL, FINE, OVER_FINE, OVER_VIEWS, QUERIES, create_derived, create_views, seeds,
    source_of,
};

struct Running {
    db: Db,
    server: Server,
    client: Client,
}

impl Running {
    async fn start(workers: usize) -> Running {
        Running::serve(Db::start(workers)).await
    }

    async fn serve(db: Db) -> Running {
        let options = ServerOptions { listen: ([127, 0, 0, 1], 0).into(), ..ServerOptions::default() };
        let server = Server::start(db.engine.clone(), options).await.expect("a server");
        let client = connect(&server).await;
        Running { db, server, client }
    }

    /// What RECONCILE of a view gives, as lines.
    async fn reconcile(&self, what: &str) -> Vec<String> {
        rows(&self.client, &format!("RECONCILE MATERIALIZED VIEW {what}")).await
    }

    /// What is told beside the rows of a statement, without the tick's number.
    async fn notices(&self, text: &str) -> Vec<String> {
        let url = format!("host=127.0.0.1 port={} user=tester dbname=dev", self.server.address().port());
        let (client, mut connection) = tokio_postgres::connect(&url, NoTls).await.expect("a connection");
        let told = tokio::spawn(async move {
            let mut told = Vec::new();
            while let Some(Ok(message)) = future::poll_fn(|context| connection.poll_message(context)).await {
                if let AsyncMessage::Notice(notice) = message {
                    told.push(notice.message().to_string());
                }
            }
            told
        });
        client.simple_query(text).await.unwrap_or_else(|error| panic!("{error:?}\n{text}"));
        drop(client);
        let digits = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit());
        let cut = |notice: String| match notice.split_once(" as of tick ") {
            Some((told, rest)) if digits(rest.split(',').next().unwrap_or_default()) => {
                format!("{told},{}", rest.split_once(',').map_or("", |(_, rest)| rest))
            }
            _ => notice,
        };
        told.await.expect("a connection that ends").into_iter().map(cut).collect()
    }

    async fn error(&self, text: &str) -> String {
        let error = self.client.simple_query(text).await.expect_err("an error");
        let error = error.as_db_error().expect("an error of the server");
        format!("{}: {} [{}]", error.code().code(), error.message(), error.hint().unwrap_or_default())
    }

    /// Takes the rows out of the slices from one second to another after the start.
    async fn damage(&self, view: &str, from: i64, to: i64) {
        let object = self.db.engine.catalog().resolve(&Name(vec![view.into()]), &self.db.names).expect("the view");
        let (from_us, to_us) = (second(from), second(to));
        let damage = Damage { starts_us: Some((from_us, from_us)), ends_us: Some((to_us, to_us)), rows: 0 };
        self.db.engine.damage(&object, damage).await.expect("damage done");
    }

    async fn stop(self) {
        self.server.stop().await;
        self.db.stop().await;
    }

    /// The next process on the folder.
    async fn restarted(self, crashes: bool, workers: usize, folder: &Path) -> Running {
        let Running { db, server, client } = self;
        drop(client);
        server.stop().await;
        match crashes {
            true => db.engine.crash().await,
            false => db.stop().await,
        }
        drop(db);
        Running::serve(Db::start_at(workers, folder)).await
    }
}

async fn connect(server: &Server) -> Client {
    let url = format!("host=127.0.0.1 port={} user=tester dbname=dev", server.address().port());
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await.expect("a connection");
    tokio::spawn(connection);
    client
}

/// The last statement's rows as lines of `a|b|c`, sorted.
async fn rows(client: &Client, text: &str) -> Vec<String> {
    let messages = client.simple_query(text).await.unwrap_or_else(|error| panic!("{error:?}\n{text}"));
    let mut lines = Vec::new();
    for message in messages {
        if let SimpleQueryMessage::Row(row) = message {
            let values: Vec<&str> = (0..row.len()).map(|i| row.get(i).unwrap_or("NULL")).collect();
            lines.push(values.join("|"));
        }
    }
    lines.sort();
    lines
}

fn second(n: i64) -> i64 {
    1_767_225_600_000_000 + n * 1_000_000
}

/// Every query of the oracle, over random events with late ones among them, and views over views.
#[tokio::test(flavor = "multi_thread")]
async fn views_over_topics_reconcile() {
    let broker = EmbeddedBroker::start().expect("a broker");
    let producer = Producer::new(&broker.servers(), &[]).expect("a producer");
    for seed in seeds(0..2) {
        let mut random = StdRng::seed_from_u64(seed);
        let topic = format!("r{seed}");
        let partitions = random.random_range(1..4);
        broker.create_topic(&topic, partitions).expect("a topic");
        let running = Running::start(random.random_range(1..4)).await;
        running.db.run(&source_of(&topic, &broker)).await;
        let mut events = Events::new(topic, partitions);
        events.send(&producer, &mut random);
        create_views(&running.db).await;
        create_derived(&running.db).await;
        for (i, query) in BY_WATERMARK.iter().enumerate() {
            running.db.run(&format!("CREATE MATERIALIZED VIEW t{i} AS {query}")).await;
        }
        for (i, (query, _)) in FINAL.iter().enumerate() {
            running.db.run(&format!("CREATE MATERIALIZED VIEW c{i} AS {query}")).await;
        }
        for _ in 0..2 {
            events.send(&producer, &mut random);
            running.db.run("WAIT FOR r").await;
            let families = [
                ("v", QUERIES.len()),
                ("w", OVER_VIEWS.len()),
                ("t", BY_WATERMARK.len()),
                ("f", FINE.len()),
                ("d", DERIVED.len()),
                ("o", OVER_FINE.len()),
                ("c", FINAL.len()),
            ];
            for (prefix, count) in families {
                for i in 0..count {
                    // It groups by an estimate.
                    if (prefix, i) == ("o", 11) {
                        continue;
                    }
                    let differing = running.reconcile(&format!("{prefix}{i}")).await;
                    assert_eq!(differing, Vec::<String>::new(), "seed {seed}: {prefix}{i}");
                }
            }
        }
        running.stop().await;
    }
}

/// Every query of the oracle over a table that changes.
#[tokio::test(flavor = "multi_thread")]
async fn views_over_tables_reconcile() {
    let running = Running::start(2).await;
    running.db.run("CREATE TABLE r (k VARCHAR, v BIGINT, ts TIMESTAMPTZ)").await;
    create_views(&running.db).await;
    running
        .db
        .run(
            "INSERT INTO r SELECT chr(97 + n % 4), n % 17 - 8, to_timestamp(n * 7 % 300) FROM generate_series(1, 200) AS g(n);
             DELETE FROM r WHERE v % 3 = 0; UPDATE r SET v = v + 1 WHERE k = 'a'",
        )
        .await;
    for (prefix, count) in [("v", QUERIES.len()), ("w", OVER_VIEWS.len())] {
        for i in 0..count {
            let differing = running.reconcile(&format!("{prefix}{i}")).await;
            assert_eq!(differing, Vec::<String>::new(), "{prefix}{i}");
        }
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notice_says_what_was_read_and_compared() {
    let (topic, running) = with_views(2, "", "").await;
    let whole = running.notices("RECONCILE MATERIALIZED VIEW coarse").await;
    assert_eq!(whole, ["904 records read, 5 rows compared, 0 differ"]);
    running.db.run("CREATE TABLE t (v BIGINT); INSERT INTO t VALUES (1), (2)").await;
    running.db.run("CREATE MATERIALIZED VIEW of_rows AS SELECT sum(v) AS s FROM t").await;
    assert_eq!(running.notices("RECONCILE MATERIALIZED VIEW of_rows").await, ["1 rows compared, 0 differ"]);
    running.stop().await;
    drop(topic);
}

/// Only Apache Kafka tells of a topic's settings.
#[tokio::test(flavor = "multi_thread")]
async fn a_compacted_log_proves_nothing_and_repairs_nothing() {
    let Ok(servers) = std::env::var("KAFKA_BOOTSTRAP") else { return };
    let topic = format!("compacted_{}", std::process::id());
    let admin: AdminClient<DefaultClientContext> =
        rdkafka::ClientConfig::new().set("bootstrap.servers", &servers).create().expect("a client");
    let compacted = NewTopic::new(&topic, 1, TopicReplication::Fixed(1)).set("cleanup.policy", "compact,delete");
    let made = admin.create_topics([&compacted], &AdminOptions::new()).await.expect("an answer");
    assert!(made.iter().all(Result::is_ok), "{made:?}");
    let producer = Producer::new(&servers, &[]).expect("a producer");
    for id in 0..100 {
        let event = format!(r#"{{"id":{id},"ts":{}}}"#, second(id) / 1000);
        producer.send(&topic, Some(0), Some(b"k"), Some(event.as_bytes()), 0).expect("a record sent");
    }
    producer.flush(Duration::from_secs(60)).expect("everything delivered");
    let running = Running::start(2).await;
    running
        .db
        .run(&format!(
            "CREATE SOURCE e (id BIGINT, ts TIMESTAMPTZ, WATERMARK FOR ts AS ts) WITH (connector = 'kafka', topic = '{topic}',
               properties.bootstrap.server = '{servers}') FORMAT PLAIN ENCODE JSON;
             CREATE MATERIALIZED VIEW v AS SELECT window_start, window_end, count(*) AS n FROM TUMBLE(e, ts, INTERVAL '10 seconds')
               GROUP BY window_start, window_end;
             WAIT FOR v"
        ))
        .await;
    let why = format!("the log of topic \"{topic}\" is compacted, and no longer holds every record that was read");
    let told = running.notices("RECONCILE MATERIALIZED VIEW v").await;
    assert_eq!(told[0], format!("{why}: rows that differ prove nothing"));
    assert!(told[1].ends_with(" records read, 10 rows compared, 0 differ"), "{told:?}");
    running.damage("v", 20, 30).await;
    let damaged = rows(&running.client, "SELECT * FROM v").await;
    assert_eq!(running.reconcile("v").await.len(), 1);
    let error = running.error("RECONCILE MATERIALIZED VIEW v REPAIR").await;
    assert!(error.starts_with(&format!("0A000: REPAIR of \"v\" is not supported: {why} [")), "{error}");
    assert_eq!(rows(&running.client, "SELECT * FROM v").await, damaged);
    running.stop().await;
}

struct Topic {
    broker: EmbeddedBroker,
    producer: Producer,
}

impl Topic {
    fn new(partitions: i32) -> Topic {
        let broker = EmbeddedBroker::start().expect("a broker");
        broker.create_topic("e", partitions).expect("a topic");
        let producer = Producer::new(&broker.servers(), &[]).expect("a producer");
        Topic { broker, producer }
    }

    fn send(&self, partition: i32, value: &str) {
        self.producer.send("e", Some(partition), None, Some(value.as_bytes()), 0).expect("a record sent");
    }

    fn event(&self, partition: i32, id: i64, at: i64) {
        self.send(partition, &format!(r#"{{"id":{id},"v":{},"ts":{}}}"#, id * 3 % 7, second(at) / 1000));
    }

    fn flush(&self) {
        self.producer.flush(Duration::from_secs(60)).expect("everything delivered");
    }

    fn source(&self, options: &str, behind: &str) -> String {
        format!(
            "CREATE SOURCE e (id BIGINT, v BIGINT, ts TIMESTAMPTZ, WATERMARK FOR ts AS ts - INTERVAL '10 seconds') {behind}
             WITH (connector = 'kafka', topic = 'e', properties.bootstrap.server = '{}', timestamptz.handling.mode = 'milli'{options})
             FORMAT PLAIN ENCODE JSON",
            self.broker.servers()
        )
    }
}

/// Views of one store: 3 ids a second for 300 seconds, final up to second 290.
async fn with_views(workers: usize, options: &str, behind: &str) -> (Topic, Running) {
    let running = Running::start(workers).await;
    (make_views(&running, options, behind).await, running)
}

async fn make_views(running: &Running, options: &str, behind: &str) -> Topic {
    let topic = Topic::new(2);
    running.db.run(&topic.source(options, behind)).await;
    running
        .db
        .run(
            "CREATE MATERIALIZED VIEW fine AS SELECT id % 5 AS k, window_start, window_end, count(*) AS n, sum(v) AS s, max(v) AS hi
             FROM HOP(e, ts, INTERVAL '10 seconds', INTERVAL '30 seconds') GROUP BY id % 5, window_start, window_end;
             CREATE MATERIALIZED VIEW coarse AS SELECT window_start, window_end, count(*) AS n
             FROM TUMBLE(e, ts, INTERVAL '60 seconds') GROUP BY window_start, window_end;
             CREATE MATERIALIZED VIEW top AS SELECT k, window_end, s FROM fine ORDER BY s DESC, k, window_end LIMIT 4",
        )
        .await;
    for id in 0..900 {
        topic.event((id % 2) as i32, id, id / 3);
    }
    // Late, dead, a tombstone's like, twice.
    topic.event(0, 5, 1);
    topic.send(1, "no json");
    topic.event(1, 899, 299);
    topic.event(0, 898, 299);
    topic.flush();
    running.db.run("WAIT FOR e").await;
    topic
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_is_found_and_mended_in_all_views_of_the_store() {
    for workers in [1, 3] {
        let (topic, running) = with_views(workers, "", "").await;
        assert_eq!(running.reconcile("fine").await, Vec::<String>::new());
        let whole = rows(&running.client, "SELECT * FROM fine").await;
        let top = rows(&running.client, "SELECT * FROM top").await;
        let coarse = rows(&running.client, "SELECT * FROM coarse").await;
        // Open slices as well as final ones.
        for (from, to) in [(100, 110), (280, 300)] {
            let when = format!("{workers} workers, {from} to {to}");
            running.damage("fine", from, to).await;
            assert_ne!(rows(&running.client, "SELECT * FROM coarse").await, coarse, "{when}");
            let found = running.reconcile("fine").await;
            let now = rows(&running.client, "SELECT * FROM fine").await;
            let changed = whole.iter().filter(|line| !now.contains(line)).count();
            assert!(changed > 0 && found.len() == changed, "{when}: {changed} changed, found {found:?}");
            // As seen from a view that is regrouped from the same store.
            assert_eq!(running.reconcile("coarse").await.len(), 1, "{when}");
            assert_eq!(running.reconcile("fine FROM '2026-01-01 00:02:30' TO '2026-01-01 00:04:00'").await.len(), 0);
            let mended = running.reconcile("fine REPAIR").await;
            assert_eq!(mended, found, "{when}: what was found is told");
            for (view, before) in [("fine", &whole), ("top", &top), ("coarse", &coarse)] {
                assert_eq!(&rows(&running.client, &format!("SELECT * FROM {view}")).await, before, "{when}: {view}");
                assert_eq!(running.reconcile(view).await, Vec::<String>::new(), "{when}: {view}");
            }
            assert_eq!(running.reconcile("fine REPAIR").await, Vec::<String>::new(), "nothing to mend");
        }
        let listed = r#"SELECT view, rows, "from"::text, "to"::text, changed_views, changed_final_views IS NULL FROM riverrun.corrections"#;
        let listed = rows(&running.client, listed).await;
        assert_eq!(listed.len(), 2, "{listed:?}");
        assert!(
            listed[0].starts_with("fine|") && listed[0].ends_with("|public.fine, public.coarse, public.top|t"),
            "{listed:?}"
        );
        // Reading goes on after the source was held.
        topic.event(0, 900, 300);
        topic.flush();
        running.db.run("WAIT FOR e").await;
        assert_eq!(rows(&running.client, "SELECT sum(n) FROM coarse").await, ["903"]);
        assert_eq!(running.reconcile("fine").await, Vec::<String>::new());
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_mended_is_right_after_a_restart() {
    // Slices that are closed and in files, some of them with others, and open ones.
    for (n, (from, to, crashes)) in [(0, 270, true), (280, 300, false)].into_iter().enumerate() {
        let when = format!("{from} to {to}, crashes: {crashes}");
        let folder = tempfile::tempdir().expect("a folder");
        let mut running = Running::serve(Db::start_at(1 + n, folder.path())).await;
        let topic = make_views(&running, "", "").await;
        let views = ["fine", "coarse", "top"];
        let mut whole = Vec::new();
        for view in views {
            whole.push(rows(&running.client, &format!("SELECT * FROM {view}")).await);
        }
        if crashes {
            running = running.restarted(true, 2, folder.path()).await;
            running.db.run("WAIT FOR e").await;
        }
        running.damage("fine", from, to).await;
        assert!(!running.reconcile("fine REPAIR").await.is_empty(), "{when}");
        for restart in 0..2 {
            // At once, and after another checkpoint that holds more.
            running = running.restarted(crashes, 3 - restart, folder.path()).await;
            running.db.run("WAIT FOR e").await;
            for (view, before) in views.iter().zip(&whole) {
                let now = rows(&running.client, &format!("SELECT * FROM {view}")).await;
                assert_eq!(&now, before, "{when}, restart {restart}: {view}");
                assert_eq!(running.reconcile(view).await, Vec::<String>::new(), "{when}, restart {restart}: {view}");
            }
            running.db.run("CREATE TABLE more (v INT); DROP TABLE more").await;
        }
        topic.event(0, 900, 300);
        topic.flush();
        running.db.run("WAIT FOR e").await;
        assert_eq!(rows(&running.client, "SELECT sum(n) FROM coarse").await, ["903"], "{when}");
        assert_eq!(running.reconcile("fine").await, Vec::<String>::new(), "{when}");
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_on_other_views_is_mended_with_them() {
    let (_topic, running) = with_views(2, "", "").await;
    let top = rows(&running.client, "SELECT * FROM top").await;
    running.damage("fine", 0, 300).await;
    assert_eq!(rows(&running.client, "SELECT * FROM top").await, Vec::<String>::new());
    assert_eq!(running.reconcile("top").await.len(), 4);
    let error = running.error("RECONCILE MATERIALIZED VIEW top REPAIR").await;
    assert!(error.starts_with("0A000: REPAIR of \"top\" is not supported: its rows do not come straight"), "{error}");
    assert!(error.contains("Repair the views beneath it"), "{error}");
    assert!(!running.reconcile("coarse REPAIR").await.is_empty());
    assert_eq!(rows(&running.client, "SELECT * FROM top").await, top);
    running.stop().await;
}

/// Whoever follows a view's changes is given the repair as rows taken back and rows added.
#[tokio::test(flavor = "multi_thread")]
async fn subscribers_see_a_repair_as_a_change() {
    let (_topic, running) = with_views(2, "", "").await;
    let before = rows(&running.client, "SELECT * FROM fine").await;
    let subscriber = connect(&running.server).await;
    let begin = "BEGIN; DECLARE c CURSOR FOR SUBSCRIBE TO fine WITH (SNAPSHOT = false)";
    subscriber.simple_query(begin).await.expect("a subscription");
    let mut told: BTreeMap<String, i64> = BTreeMap::new();
    for repairs in [false, true] {
        if repairs {
            assert!(!running.reconcile("fine REPAIR").await.is_empty());
        } else {
            running.damage("fine", 100, 110).await;
        }
        let changes = rows(&subscriber, "FETCH ALL c").await;
        assert!(!changes.is_empty());
        for line in changes {
            let mut parts = line.splitn(3, '|');
            let weight: i64 = parts.nth(1).and_then(|weight| weight.parse().ok()).expect("a weight");
            *told.entry(parts.next().expect("columns").to_string()).or_default() += weight;
        }
        let shown = rows(&running.client, "SELECT * FROM fine").await;
        for (line, weight) in &told {
            let was = i64::from(before.contains(line));
            assert_eq!(was + weight, i64::from(shown.contains(line)), "repairs: {repairs}, {line}");
        }
    }
    assert!(told.values().all(|weight| *weight == 0), "{told:?}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn final_windows_are_corrected_only_where_that_is_allowed() {
    let (_topic, running) = with_views(2, "", "").await;
    running
        .db
        .run(
            "CREATE MATERIALIZED VIEW bill AS SELECT window_end, count(*) AS n FROM TUMBLE(e, ts, INTERVAL '30 seconds')
             GROUP BY window_end EMIT ON WINDOW CLOSE",
        )
        .await;
    let whole = rows(&running.client, "SELECT * FROM bill").await;
    running.damage("fine", 60, 90).await;
    assert_eq!(running.reconcile("bill").await, ["2026-01-01 00:01:30+00|missing|NULL|90"]);
    for view in ["bill", "fine"] {
        let error = running.error(&format!("RECONCILE MATERIALIZED VIEW {view} REPAIR")).await;
        assert!(error.starts_with("0A000: REPAIR would change final windows of \"bill\""), "{error}");
    }
    assert_eq!(running.reconcile("bill WITH (corrections = true) REPAIR").await.len(), 1);
    assert_eq!(rows(&running.client, "SELECT * FROM bill").await, whole);
    assert_eq!(running.reconcile("fine").await, Vec::<String>::new());
    let marked = "SELECT view, rows, changed_final_views FROM riverrun.corrections";
    assert_eq!(rows(&running.client, marked).await, ["bill|1|public.bill"]);
    // Whoever took final windows for good cannot take them back.
    running
        .db
        .run(
            "CREATE MATERIALIZED VIEW own WITH (store = 'own') AS SELECT window_end, count(*) AS n
             FROM TUMBLE(e, ts, INTERVAL '30 seconds') GROUP BY window_end EMIT ON WINDOW CLOSE; WAIT FOR e",
        )
        .await;
    running.damage("own", 120, 150).await;
    running.db.run("CREATE MATERIALIZED VIEW most AS SELECT max(n) AS most FROM own").await;
    let error = running.error("RECONCILE MATERIALIZED VIEW own WITH (corrections = true) REPAIR").await;
    assert!(error.starts_with("0A000: REPAIR of final windows is not supported under \"most\""), "{error}");
    running.db.run("DROP MATERIALIZED VIEW most").await;
    assert_eq!(running.reconcile("own WITH (corrections = true) REPAIR").await.len(), 1);
    assert_eq!(running.reconcile("own").await, Vec::<String>::new());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn duplicates_do_not_count_in_what_is_recomputed() {
    let (topic, running) = with_views(3, "", "DEDUPLICATE BY (id) WITHIN INTERVAL '1 minute'").await;
    assert_eq!(rows(&running.client, "SELECT sum(duplicate) FROM riverrun.source_partitions").await, ["2"]);
    for view in ["fine", "coarse", "top"] {
        assert_eq!(running.reconcile(view).await, Vec::<String>::new(), "{view}");
    }
    running.damage("fine", 100, 110).await;
    assert!(!running.reconcile("fine REPAIR").await.is_empty());
    assert_eq!(running.reconcile("fine").await, Vec::<String>::new());
    running.damage("fine", 290, 300).await;
    let error = running.error("RECONCILE MATERIALIZED VIEW fine REPAIR").await;
    assert!(error.contains("REPAIR of open windows of \"fine\" is not supported: duplicates"), "{error}");
    // They become final, and can be repaired.
    topic.event(0, 1000, 400);
    topic.event(1, 1001, 400);
    topic.flush();
    running.db.run("WAIT FOR e").await;
    assert!(!running.reconcile("fine REPAIR").await.is_empty());
    assert_eq!(running.reconcile("fine").await, Vec::<String>::new());
    running.stop().await;
}

/// The broker keeps the last 5 MiB of a partition.
#[tokio::test(flavor = "multi_thread")]
async fn only_what_the_log_still_has_is_compared() {
    let topic = Topic::new(1);
    let running = Running::start(2).await;
    running.db.run(&topic.source("", "")).await;
    running
        .db
        .run(
            "CREATE MATERIALIZED VIEW w AS SELECT window_start, window_end, count(*) AS n FROM TUMBLE(e, ts, INTERVAL '10 seconds')
             GROUP BY window_start, window_end;
             CREATE MATERIALIZED VIEW total AS SELECT count(*) AS n FROM e",
        )
        .await;
    for id in 0..60 {
        let pad = "x".repeat(200 << 10);
        topic.send(0, &format!(r#"{{"id":{id},"pad":"{pad}","ts":{}}}"#, second(id) / 1000));
        // In small steps, so that the log is read before it goes.
        if id % 5 == 4 {
            topic.flush();
            running.db.run("WAIT FOR e").await;
        }
    }
    running.damage("w", 0, 10).await;
    running.damage("w", 50, 60).await;
    let found = running.reconcile("w").await;
    assert_eq!(found, ["2026-01-01 00:00:50+00|2026-01-01 00:01:00+00|missing|NULL|10"], "only of what the log has");
    let error = running.error("RECONCILE MATERIALIZED VIEW total").await;
    assert!(error.starts_with("55000: \"total\" cannot be recomputed: a log beneath it"), "{error}");
    assert_eq!(running.reconcile("w REPAIR").await, found);
    assert_eq!(running.reconcile("w").await, Vec::<String>::new());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reconciliation_is_a_job_that_can_be_cancelled() {
    let running = Running::start(1).await;
    running
        .db
        .run(
            "CREATE SOURCE s (id BIGINT, ts TIMESTAMPTZ, WATERMARK FOR ts AS ts)
             WITH (connector = 'datagen', datagen.rows.total = 400000, datagen.start.timestamp.millis = 1767225600000,
                   fields.id.kind = 'sequence') FORMAT PLAIN ENCODE JSON;
             CREATE MATERIALIZED VIEW n AS SELECT id % 10 AS k, count(*) AS n FROM s GROUP BY id % 10; WAIT FOR n",
        )
        .await;
    for by_job in [true, false] {
        let client = connect(&running.server).await;
        let token = client.cancel_token();
        let reconciling =
            tokio::spawn(async move { client.simple_query("RECONCILE MATERIALIZED VIEW n").await.map(drop) });
        let job = loop {
            let jobs = rows(&running.client, "SELECT id, kind, name FROM riverrun.jobs WHERE records_read > 0").await;
            if let Some(job) = jobs.first() {
                break job.clone();
            }
        };
        assert!(job.ends_with("|reconcile|n"), "{job}");
        if by_job {
            let id = job.split('|').next().expect("an id");
            running.client.simple_query(&format!("CANCEL JOB {id}")).await.expect("cancelled");
        } else {
            token.cancel_query(NoTls).await.expect("cancelled");
        }
        let error = reconciling.await.expect("a task").expect_err("an error");
        assert_eq!(error.code().map(|code| code.code()), Some("57014"));
        while !rows(&running.client, "SELECT id FROM riverrun.jobs").await.is_empty() {}
    }
    running.stop().await;
}
