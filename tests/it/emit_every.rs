//! EMIT EVERY by a clock that the test moves: what is shown stays between emissions and is whole at each, over tables and topics, to
//! views above and to subscribers, over restarts; and what each form of EMIT shows, as the README says it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use futures::FutureExt;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use riverrun::connector::{EmbeddedBroker, Producer};
use riverrun::engine::{EngineOptions, Subscription, TickClock, Update};
use riverrun::server::{Server, ServerOptions};
use riverrun::sql::Name;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use crate::db::{Db, lines};
use crate::oracle::{Events, OVER_VIEWS, QUERIES, change, over_rows, seeds, source_of};

const SECOND: i64 = 1_000_000;

/// A clock that stands at a multiple of an hour.
fn clock() -> Arc<AtomicI64> {
    Arc::new(AtomicI64::new(3_600 * SECOND))
}

/// Moves the clock on, and has a tick end by it, as a read of a table or view does.
async fn pass(db: &Db, read: &str, clock: &AtomicI64, seconds: i64) {
    clock.fetch_add(seconds * SECOND, Ordering::Relaxed);
    db.rows(&format!("SELECT count(*) FROM {read}")).await;
}

fn options(workers: usize, clock: &Arc<AtomicI64>) -> EngineOptions {
    EngineOptions { workers, clock: TickClock::Hand(clock.clone()), ..EngineOptions::default() }
}

fn lasting(workers: usize, clock: &Arc<AtomicI64>, folder: &Path) -> EngineOptions {
    let data = Some(folder.to_str().expect("a path in UTF-8").to_string());
    EngineOptions { data, checkpoint_interval: Duration::from_millis(20), ..options(workers, clock) }
}

/// Returns when a checkpoint holds what has been emitted. A crash before that goes back to an earlier tick, and emits that anew.
async fn keep(db: &Db) {
    db.run("CREATE TABLE kept (k INT)").await;
    db.run("DROP TABLE kept").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_back_stops_nothing() {
    let clock = clock();
    let folder = tempfile::tempdir().expect("a folder");
    let db = Db::start_as(lasting(1, &clock, folder.path())).expect("an engine");
    db.run("CREATE TABLE t (v BIGINT)").await;
    db.run("CREATE MATERIALIZED VIEW v AS SELECT count(*) AS n FROM t EMIT EVERY INTERVAL '100 milliseconds'").await;
    clock.fetch_sub(2 * 3_600 * SECOND, Ordering::Relaxed);
    let shows = async |db: &Db, n: &str| while db.rows("SELECT n FROM v").await != [n] {};
    db.run("INSERT INTO t VALUES (1)").await;
    shows(&db, "1").await;
    // Nor is it forgotten over a restart how far the ticks have come.
    keep(&db).await;
    db.stop().await;
    let db = Db::start_as(lasting(1, &clock, folder.path())).expect("an engine");
    db.run("INSERT INTO t VALUES (2)").await;
    shows(&db, "2").await;
    // When the clock is further on, it is what counts again.
    db.run("INSERT INTO t VALUES (3)").await;
    clock.fetch_add(3 * 3_600 * SECOND, Ordering::Relaxed);
    shows(&db, "3").await;
    let emitted = "SELECT emitted_at >= to_timestamp(7200) FROM riverrun.materialized_views";
    assert_eq!(db.rows(emitted).await, ["true"]);
    db.stop().await;
}

/// Adds up what a subscriber is sent.
struct Listener {
    subscription: Subscription,
    rows: BTreeMap<String, i64>,
}

impl Listener {
    async fn to(db: &Db, view: &str, shown: &[String]) -> Listener {
        let subscription = db.subscribe(view, false).await.expect("a subscription");
        let mut rows = BTreeMap::new();
        shown.iter().for_each(|row| *rows.entry(row.clone()).or_default() += 1);
        Listener { subscription, rows }
    }

    /// Takes in what is there; returns how many ticks it is of.
    fn listen(&mut self) -> usize {
        let mut ticks = 0;
        while let Some(next) = self.subscription.next(false).now_or_never() {
            let (Some(Update { deltas, .. }), _) = next.expect("it goes on") else { continue };
            ticks += 1;
            for delta in deltas {
                for row in 0..delta.num_rows() {
                    let line = lines(&[delta.rows.slice(row, 1)]).remove(0);
                    *self.rows.entry(line).or_default() += delta.weight(row);
                }
            }
        }
        self.rows.retain(|_, weight| *weight != 0);
        ticks
    }

    fn all(&self) -> Vec<String> {
        self.rows.iter().flat_map(|(row, &weight)| std::iter::repeat_n(row.clone(), weight as usize)).collect()
    }
}

/// Views `v{i}` that emit every 10 seconds, `w{i}` over them that are always current, `x{i}` over them that emit every 20.
struct Family {
    /// By view, what it must show.
    shown: BTreeMap<String, Vec<String>>,
    listeners: Vec<(String, Listener)>,
}

const LISTENED: [&str; 5] = ["v1", "v6", "v10", "w0", "x1"];

impl Family {
    async fn create(db: &Db) {
        for (i, query) in QUERIES.iter().enumerate() {
            db.run(&format!("CREATE MATERIALIZED VIEW v{i} AS {query} EMIT EVERY INTERVAL '10 seconds'")).await;
        }
        for (i, query) in OVER_VIEWS.iter().enumerate() {
            let query = query.replace("(v6)", "v6");
            db.run(&format!("CREATE MATERIALIZED VIEW w{i} AS {query}")).await;
            db.run(&format!("CREATE MATERIALIZED VIEW x{i} AS {query} EMIT EVERY '20 seconds'")).await;
        }
    }

    /// `answers`: what `v{i}` would show if they emitted now.
    async fn emitted(&mut self, db: &Db, answers: Vec<Vec<String>>, every_20: bool) {
        for (i, answer) in answers.into_iter().enumerate() {
            self.shown.insert(format!("v{i}"), answer);
        }
        for (i, query) in OVER_VIEWS.iter().enumerate() {
            let answer = db.rows(&query.replace("(v6)", "v6")).await;
            if every_20 {
                self.shown.insert(format!("x{i}"), answer.clone());
            }
            self.shown.insert(format!("w{i}"), answer);
        }
    }

    async fn listen(&mut self, db: &Db) {
        self.listeners.clear();
        for view in LISTENED {
            self.listeners.push((view.to_string(), Listener::to(db, view, &self.shown[view]).await));
        }
    }

    async fn check(&mut self, db: &Db, when: &str) {
        for (view, shown) in &self.shown {
            assert_eq!(&db.rows(&format!("SELECT * FROM {view}")).await, shown, "{when}: {view}");
        }
        for (view, listener) in &mut self.listeners {
            let before = listener.all();
            let ticks = listener.listen();
            assert!(ticks <= 1 && (ticks == 0) == (before == listener.all()), "{when}: {view} in {ticks} ticks");
            assert_eq!(&listener.all(), &self.shown[view], "{when}: a subscriber of {view}");
        }
    }
}

/// Is a multiple of the seconds passed?
fn passes(clock: &AtomicI64, by: i64, every: i64) -> bool {
    let now = clock.load(Ordering::Relaxed) / SECOND;
    (now + by) / every > now / every
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tables_what_is_shown_is_as_of_the_last_emission() {
    for seed in seeds(0..2) {
        let mut random = StdRng::seed_from_u64(seed);
        let folder = tempfile::tempdir().expect("a folder");
        let clock = clock();
        let mut db = Db::start_as(lasting(random.random_range(1..4), &clock, folder.path())).expect("an engine");
        db.run("CREATE TABLE r (k VARCHAR, v BIGINT, ts TIMESTAMPTZ)").await;
        change(&db, &mut random).await;
        Family::create(&db).await;
        keep(&db).await;
        let mut family = Family { shown: BTreeMap::new(), listeners: Vec::new() };
        family.emitted(&db, answers(&db, None).await, true).await;
        family.listen(&db).await;
        let mut emissions = 0;
        for step in 0..7 {
            let statement = change(&db, &mut random).await;
            if random.random_bool(0.4) {
                db.engine.crash().await;
                drop(db);
                db = Db::start_as(lasting(random.random_range(1..4), &clock, folder.path())).expect("an engine");
                family.check_rows(&db, &format!("seed {seed}, step {step}, restarted")).await;
                family.listen(&db).await;
            }
            let by = random.random_range(0..13);
            let (every_10, every_20) = (passes(&clock, by, 10), passes(&clock, by, 20));
            pass(&db, "r", &clock, by).await;
            if every_10 {
                emissions += 1;
                family.emitted(&db, answers(&db, None).await, every_20).await;
                keep(&db).await;
            }
            family.check(&db, &format!("seed {seed}, step {step} after {statement}")).await;
        }
        assert!((1..7).contains(&emissions), "seed {seed}: {emissions} emissions");
        db.stop().await;
    }
}

/// The batch engine's answers to [`QUERIES`]; over the rows of the table, or these.
async fn answers(db: &Db, rows: Option<&[crate::oracle::Row]>) -> Vec<Vec<String>> {
    let mut answers = Vec::new();
    for query in QUERIES {
        answers.push(match rows {
            Some(rows) => over_rows(db, query, rows).await,
            None => db.rows(query).await,
        });
    }
    answers
}

impl Family {
    async fn check_rows(&self, db: &Db, when: &str) {
        for (view, shown) in &self.shown {
            assert_eq!(&db.rows(&format!("SELECT * FROM {view}")).await, shown, "{when}: {view}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn over_topics_what_is_shown_is_as_of_the_last_emission() {
    let broker = EmbeddedBroker::start().expect("a broker");
    let producer = Producer::new(&broker.servers(), &[]).expect("a producer");
    for seed in seeds(0..2) {
        let mut random = StdRng::seed_from_u64(seed);
        let topic = format!("every{seed}");
        let partitions = random.random_range(1..4);
        broker.create_topic(&topic, partitions).expect("a topic");
        let folder = tempfile::tempdir().expect("a folder");
        let clock = clock();
        let mut db = Db::start_as(lasting(random.random_range(1..4), &clock, folder.path())).expect("an engine");
        db.run(&source_of(&topic, &broker)).await;
        let mut events = Events::new(topic, partitions);
        if random.random_bool(0.7) {
            events.send(&producer, &mut random);
        }
        Family::create(&db).await;
        // What is final goes by the emissions of what it is over.
        let closing = "SELECT window_start, window_end, sum(n) AS n FROM TUMBLE(v6, window_start, INTERVAL '2 minutes') GROUP BY window_start, window_end";
        db.run(&format!("CREATE MATERIALIZED VIEW closed AS {closing} EMIT ON WINDOW CLOSE")).await;
        db.run("WAIT FOR r").await;
        let mut family = Family { shown: BTreeMap::new(), listeners: Vec::new() };
        family.emitted(&db, answers(&db, Some(&events.accepted)).await, true).await;
        keep(&db).await;
        family.listen(&db).await;
        let times = "SELECT watermark('v6')::text, closed_window_end('v6')::text, live_window_end('v6')::text, final_window_end('v6')::text, final_window_end('closed')::text";
        let mut known = db.rows(times).await;
        for step in 0..5 {
            let when = format!("seed {seed}, step {step}");
            events.send(&producer, &mut random);
            db.run("WAIT FOR r").await;
            if random.random_bool(0.4) {
                db.engine.crash().await;
                drop(db);
                db = Db::start_as(lasting(random.random_range(1..4), &clock, folder.path())).expect("an engine");
                family.check_rows(&db, &format!("{when}, restarted")).await;
                assert_eq!(db.rows(times).await, known, "{when}, restarted: times");
                family.listen(&db).await;
                db.run("WAIT FOR r").await;
            }
            let by = random.random_range(0..13);
            let (every_10, every_20) = (passes(&clock, by, 10), passes(&clock, by, 20));
            pass(&db, "v0", &clock, by).await;
            if every_10 {
                family.emitted(&db, answers(&db, Some(&events.accepted)).await, every_20).await;
                known = db.rows(times).await;
                let live = db.rows("SELECT watermark('r')::text, watermark('v6')::text").await.remove(0);
                let (source, view) = live.split_once('|').expect("two");
                assert_eq!(source, view, "{when}: an emission has the source's watermark");
                keep(&db).await;
            }
            family.check(&db, &when).await;
            assert_eq!(db.rows(times).await, known, "{when}: times");
            let until = known[0].rsplit_once('|').expect("five").1;
            let until = if until == "NULL" { until.into() } else { format!("'{until}'::timestamptz") };
            let right = db.rows(&format!("SELECT * FROM ({closing}) WHERE window_end <= {until}")).await;
            assert_eq!(db.rows("SELECT * FROM closed").await, right, "{when}: closed");
        }
        db.stop().await;
    }
}

/// A client in whose transaction block cursors listen.
struct Reader {
    client: Client,
}

impl Reader {
    async fn of(server: &Server) -> Reader {
        let url = format!("host=127.0.0.1 port={} user=tester dbname=dev", server.address().port());
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await.expect("a connection");
        tokio::spawn(connection);
        Reader { client }
    }

    /// Rows as text; of a change first its weight.
    async fn rows(&self, text: &str, from: usize) -> Vec<String> {
        let messages = self.client.simple_query(text).await.unwrap_or_else(|error| panic!("{error:?}\n{text}"));
        let row = |message: SimpleQueryMessage| match message {
            SimpleQueryMessage::Row(row) => {
                Some((from..row.len()).map(|i| row.get(i).unwrap_or("NULL").to_string()).collect::<Vec<_>>().join(" "))
            }
            _ => None,
        };
        messages.into_iter().filter_map(row).collect()
    }
}

/// The table of the README.
#[tokio::test(flavor = "multi_thread")]
async fn what_each_form_shows() {
    let clock = Arc::new(AtomicI64::new(100 * SECOND));
    let db = Db::start_as(options(2, &clock)).expect("an engine");
    let server_options = ServerOptions { listen: ([127, 0, 0, 1], 0).into(), ..ServerOptions::default() };
    let server = Server::start(db.engine.clone(), server_options).await.expect("a server");
    let (writer, reader) = (Reader::of(&server).await, Reader::of(&server).await);
    let query = "SELECT window_end, count(*) AS clicks FROM TUMBLE(clicks, ts, INTERVAL '1 minute') GROUP BY window_start, window_end";
    writer.rows("CREATE TABLE clicks (ad BIGINT, ts TIMESTAMP, WATERMARK FOR ts AS ts) APPEND ONLY", 0).await;
    let forms = [("always", ""), ("final", "EMIT ON WINDOW CLOSE"), ("every_10s", "EMIT EVERY INTERVAL '10 seconds'")];
    for (view, emit) in forms {
        writer.rows(&format!("CREATE MATERIALIZED VIEW {view} AS {query} {emit}"), 0).await;
        let total = format!(
            "CREATE MATERIALIZED VIEW {view}_total AS SELECT count(*) AS minutes, sum(clicks) AS clicks FROM {view}"
        );
        writer.rows(&total, 0).await;
    }
    reader.rows("BEGIN", 0).await;
    for (view, _) in forms {
        for view in [view.to_string(), format!("{view}_total")] {
            reader.rows(&format!("DECLARE {view} CURSOR FOR SUBSCRIBE TO {view} WITH (SNAPSHOT = off)"), 0).await;
        }
    }
    let mut told = String::new();
    let steps = [(101, Some("10:00:05")), (102, Some("10:00:40")), (110, None), (113, Some("10:01:10")), (120, None)];
    for (second, click) in steps {
        clock.store(second * SECOND, Ordering::Relaxed);
        match click {
            Some(at) => {
                told += &format!("{second}: a click at {at}\n");
                writer.rows(&format!("INSERT INTO clicks VALUES (1, '2026-01-01 {at}')"), 0).await;
            }
            None => {
                told += &format!("{second}:\n");
                writer.rows("SELECT count(*) FROM clicks", 0).await;
            }
        }
        for (view, _) in forms {
            for view in [view.to_string(), format!("{view}_total")] {
                // What is there, or nothing if nothing comes.
                let mut changes = reader.rows(&format!("FETCH ALL FROM {view} WITH (timeout = '1ms')"), 1).await;
                changes.sort();
                if !changes.is_empty() {
                    told += &format!("  {view} tells {}\n", changes.join(", ").replace("2026-01-01 ", ""));
                }
            }
        }
        let mut shown = Vec::new();
        for (view, _) in forms {
            let rows = writer.rows(&format!("SELECT * FROM {view} ORDER BY 1"), 0).await.join(", ");
            let closed = writer.rows(&format!("SELECT closed_window_end('{view}')::time"), 0).await.join("");
            shown.push(format!("{view} [{}] closed until {closed}", rows.replace("2026-01-01 ", "")));
        }
        told += &format!("  {}\n", shown.join("; "));
    }
    insta::assert_snapshot!(told, @r"
    101: a click at 10:00:05
      always tells 1 10:01:00 1
      always_total tells -1 0 NULL, 1 1 1
      always [10:01:00 1] closed until 10:00:00; final [] closed until 10:00:00; every_10s [] closed until NULL
    102: a click at 10:00:40
      always tells -1 10:01:00 1, 1 10:01:00 2
      always_total tells -1 1 1, 1 1 2
      always [10:01:00 2] closed until 10:00:00; final [] closed until 10:00:00; every_10s [] closed until NULL
    110:
      every_10s tells 1 10:01:00 2
      every_10s_total tells -1 0 NULL, 1 1 2
      always [10:01:00 2] closed until 10:00:00; final [] closed until 10:00:00; every_10s [10:01:00 2] closed until 10:00:00
    113: a click at 10:01:10
      always tells 1 10:02:00 1
      always_total tells -1 1 2, 1 2 3
      final tells 1 10:01:00 2
      final_total tells -1 0 NULL, 1 1 2
      always [10:01:00 2, 10:02:00 1] closed until 10:01:00; final [10:01:00 2] closed until 10:01:00; every_10s [10:01:00 2] closed until 10:00:00
    120:
      every_10s tells 1 10:02:00 1
      every_10s_total tells -1 1 2, 1 2 3
      always [10:01:00 2, 10:02:00 1] closed until 10:01:00; final [10:01:00 2] closed until 10:01:00; every_10s [10:01:00 2, 10:02:00 1] closed until 10:01:00
    ");
    server.stop().await;
    db.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_forgets_at_emissions_and_nobody_is_told() {
    let clock = clock();
    let db = Db::start_as(options(2, &clock)).expect("an engine");
    db.run("CREATE TABLE r (k VARCHAR, ts TIMESTAMPTZ, WATERMARK FOR ts AS ts) APPEND ONLY").await;
    let query = "SELECT extract(epoch FROM window_end)::bigint AS until, window_end, count(*) AS n FROM TUMBLE(r, ts, INTERVAL '10 seconds') GROUP BY window_end";
    db.run(&format!("CREATE MATERIALIZED VIEW v WITH (retention = '20 seconds') AS {query} EMIT EVERY '10 s'")).await;
    db.run("CREATE MATERIALIZED VIEW w AS SELECT until, n FROM v").await;
    let insert = async |at: i64| db.run(&format!("INSERT INTO r VALUES ('a', to_timestamp({at}))")).await;
    let shown = async || db.rows("SELECT until, n FROM v").await;
    insert(5).await;
    insert(15).await;
    pass(&db, "r", &clock, 10).await;
    assert_eq!(shown().await, ["10|1", "20|1"]);
    // The watermark is at 37: what ends by 17 goes with the next emission.
    insert(37).await;
    assert_eq!(shown().await, ["10|1", "20|1"]);
    pass(&db, "r", &clock, 10).await;
    assert_eq!(shown().await, ["20|1", "40|1"]);
    assert_eq!(db.rows("SELECT * FROM w").await, ["10|1", "20|1", "40|1"]);
    for wrong in ["SELECT k, count(*) AS n FROM r GROUP BY k", "SELECT k, ts FROM r"] {
        let create = format!("CREATE MATERIALIZED VIEW no WITH (retention = '1 hour') AS {wrong} EMIT EVERY '10 s'");
        assert!(db.error(&create).await.starts_with("retention needs"), "{wrong}");
    }
    db.stop().await;
}

/// Changes are worked out at emissions, from slices: before those are forgotten, if that comes first.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_store_forgets_between_emissions_is_not_lost() {
    let broker = EmbeddedBroker::start().expect("a broker");
    let producer = Producer::new(&broker.servers(), &[]).expect("a producer");
    let mut random = StdRng::seed_from_u64(7);
    broker.create_topic("forgets", 2).expect("a topic");
    let clock = clock();
    let db = Db::start_as(options(2, &clock)).expect("an engine");
    db.run(&source_of("forgets", &broker)).await;
    let query = "SELECT k, window_start, count(*) AS n, sum(v) AS s FROM HOP(r, ts, INTERVAL '5 seconds', INTERVAL '15 seconds') GROUP BY k, window_start";
    db.run(&format!("CREATE MATERIALIZED VIEW v WITH (retention = '10 seconds') AS {query}")).await;
    db.run("CREATE MATERIALIZED VIEW every_minute AS SELECT * FROM v EMIT EVERY INTERVAL '1 minute'").await;
    db.run("WAIT FOR r").await;
    let mut events = Events::new("forgets".into(), 2);
    for _ in 0..2 {
        for _ in 0..6 {
            events.send(&producer, &mut random);
            db.run("WAIT FOR r").await;
        }
        pass(&db, "v", &clock, 60).await;
        let shown = db.rows("SELECT * FROM every_minute").await;
        assert_eq!(shown, over_rows(&db, query, &events.accepted).await);
        assert!(db.rows("SELECT * FROM v").await.len() < shown.len(), "the view beneath has forgotten some");
    }
    db.stop().await;
}

/// Where there is no event time nothing but the rows tells that something is held back.
#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_view_waits_for_an_emission_of_what_is_there() {
    let broker = EmbeddedBroker::start().expect("a broker");
    let producer = Producer::new(&broker.servers(), &[]).expect("a producer");
    broker.create_topic("plain", 1).expect("a topic");
    let send = |k: &str| {
        let json = format!(r#"{{"k":"{k}"}}"#);
        producer.send("plain", Some(0), None, Some(json.as_bytes()), 0).expect("a record sent");
        producer.flush(Duration::from_secs(30)).expect("everything delivered");
    };
    let clock = clock();
    let db = Db::start_as(options(2, &clock)).expect("an engine");
    db.run(&format!(
        "CREATE SOURCE p (k VARCHAR) WITH (connector = 'kafka', topic = 'plain', properties.bootstrap.server = '{}')
         FORMAT PLAIN ENCODE JSON",
        broker.servers()
    ))
    .await;
    db.run("CREATE MATERIALIZED VIEW v AS SELECT k, count(*) AS n FROM p GROUP BY k EMIT EVERY INTERVAL '10 s'").await;
    db.run("CREATE MATERIALIZED VIEW w AS SELECT sum(n) AS n FROM v EMIT EVERY INTERVAL '30 s'").await;
    send("a");
    db.run("WAIT FOR p").await;
    for (view, seconds, right) in [("v", 10, ["a|1"]), ("w", 20, ["1"])] {
        pass(&db, "v", &clock, seconds).await;
        // It holds nothing back.
        db.run(&format!("WAIT FOR {view}")).await;
        assert_eq!(db.rows(&format!("SELECT * FROM {view}")).await, right);
    }
    send("b");
    db.run("WAIT FOR p").await;
    let wait = async |view: &str, ms| {
        let name = Name(vec![view.into()]);
        db.engine.wait_for(&name, &db.names, Some(Duration::from_millis(ms))).await.is_ok()
    };
    assert!(!wait("v", 300).await && !wait("w", 300).await, "no emission has come");
    pass(&db, "v", &clock, 10).await;
    assert!(wait("v", 60_000).await && !wait("w", 300).await, "one of v has");
    assert_eq!(db.rows("SELECT * FROM v").await, ["a|1", "b|1"]);
    assert_eq!(db.rows("SELECT * FROM w").await, ["1"]);
    pass(&db, "v", &clock, 20).await;
    assert!(wait("w", 60_000).await);
    assert_eq!(db.rows("SELECT * FROM w").await, ["2"]);
    db.stop().await;
}
