//! SUBSCRIBE over a connection: whoever sums the weights of what comes has the view.
//!
//! Random changes while clients listen, some from the beginning and some from later on. Each adds up what it is sent until a mark says
//! that it has all up to the last change; that must be what SELECT shows.

use std::collections::BTreeMap;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use riverrun::connector::{EmbeddedBroker, Producer};
use riverrun::engine::{Engine, EngineOptions};
use riverrun::server::{Server, ServerOptions};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use crate::oracle::QUERIES;

struct Running {
    engine: Engine,
    server: Server,
}

impl Running {
    async fn start(workers: usize) -> Running {
        Running::start_with(EngineOptions { workers, ..EngineOptions::default() }).await
    }

    async fn start_at(workers: usize, folder: &Path) -> Running {
        let data = Some(folder.to_str().expect("a path in UTF-8").to_string());
        let checkpoint_interval = Duration::from_millis(20);
        Running::start_with(EngineOptions { workers, data, checkpoint_interval, ..EngineOptions::default() }).await
    }

    async fn start_with(options: EngineOptions) -> Running {
        let engine = Engine::start(options).expect("an engine");
        let options = ServerOptions { listen: ([127, 0, 0, 1], 0).into(), ..ServerOptions::default() };
        let server = Server::start(engine.clone(), options).await.expect("a server");
        Running { engine, server }
    }

    async fn client(&self) -> Client {
        let url = format!("host=127.0.0.1 port={} user=tester", self.server.address().port());
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await.expect("a connection");
        tokio::spawn(connection);
        client
    }

    async fn stop(self) {
        self.server.stop().await;
        self.engine.stop().await;
    }
}

/// Rows as text, with how often each is there.
type Rows = BTreeMap<Vec<Option<String>>, i64>;

fn code(error: &tokio_postgres::Error) -> &str {
    error.code().map_or("no code", tokio_postgres::error::SqlState::code)
}

fn texts(row: &tokio_postgres::SimpleQueryRow) -> Vec<Option<String>> {
    (0..row.len()).map(|i| row.get(i).map(str::to_string)).collect()
}

async fn select(client: &Client, name: &str) -> Rows {
    let mut rows = Rows::new();
    for message in client.simple_query(&format!("SELECT * FROM {name}")).await.expect("rows") {
        if let SimpleQueryMessage::Row(row) = message {
            *rows.entry(texts(&row)).or_default() += 1;
        }
    }
    rows
}

/// Adds up what a subscription sends until all up to the tick that `target` names has come.
fn listen(client: Client, name: String, committed: bool, mut target: watch::Receiver<i128>) -> JoinHandle<Rows> {
    tokio::spawn(async move {
        let text = format!("SUBSCRIBE TO {name} WITH (PROGRESS, COMMITTED = {committed})");
        let mut messages = pin!(client.simple_query_raw(&text).await.expect("a subscription"));
        let (mut rows, mut newest) = (Rows::new(), 0);
        while let Some(message) = messages.try_next().await.expect("a subscription that goes on") {
            let SimpleQueryMessage::Row(row) = message else { continue };
            let mut values = texts(&row);
            let tick: i128 = values[0].as_deref().and_then(|tick| tick.parse().ok()).expect("a tick");
            if values[1].as_deref() == Some("t") {
                assert!(tick >= newest, "{name}: a mark of {tick} after {newest}");
                newest = tick;
                if tick >= *target.borrow_and_update() {
                    break;
                }
                continue;
            }
            assert!(tick > newest || newest == 0, "{name}: a row of {tick} after the mark of {newest}");
            let diff: i64 = values[2].as_deref().and_then(|diff| diff.parse().ok()).expect("a weight");
            let weight = rows.entry(values.split_off(3)).or_default();
            *weight += diff;
        }
        rows.retain(|_, weight| *weight != 0);
        rows
    })
}

/// The tick that has just ended.
async fn newest_tick(client: &Client, table: &str) -> i128 {
    let text = format!(
        "BEGIN; DECLARE c CURSOR FOR SUBSCRIBE TO {table} WITH (SNAPSHOT = false, PROGRESS); FETCH 1 c; ROLLBACK"
    );
    let messages = client.simple_query(&text).await.expect("a mark");
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    row.and_then(|tick| tick.parse().ok()).expect("a tick")
}

/// Clients that listen to all views, each from a step that is drawn.
struct Listeners {
    /// With the step, and whether only what is committed is told.
    begin: Vec<(String, usize, bool)>,
    running: Vec<(String, JoinHandle<Rows>)>,
    target: watch::Sender<i128>,
}

impl Listeners {
    fn new(names: impl IntoIterator<Item = String>, steps: usize, random: &mut StdRng) -> Listeners {
        let begin = names.into_iter().map(|name| (name, random.random_range(0..steps), random.random())).collect();
        Listeners { begin, running: Vec::new(), target: watch::Sender::new(i128::MAX) }
    }

    async fn begin(&mut self, running: &Running, step: usize) {
        for (name, _, committed) in self.begin.iter().filter(|(_, begin, _)| *begin == step) {
            let listener = listen(running.client().await, name.clone(), *committed, self.target.subscribe());
            self.running.push((name.clone(), listener));
        }
    }

    /// Each has what SELECT shows.
    async fn check(self, client: &Client, table: &str, seed: u64) {
        self.target.send_replace(newest_tick(client, table).await);
        for (name, listener) in self.running {
            let told = listener.await.expect("a listener that comes to its end");
            assert_eq!(told, select(client, &name).await, "seed {seed}: {name}");
        }
    }
}

async fn create_views(client: &Client) -> Vec<String> {
    let mut names = Vec::new();
    for (i, query) in QUERIES.iter().enumerate() {
        client.batch_execute(&format!("CREATE MATERIALIZED VIEW v{i} AS {query}")).await.expect(query);
        names.push(format!("v{i}"));
    }
    client
        .batch_execute("CREATE MATERIALIZED VIEW w AS SELECT k, sum(n) AS n FROM v7 GROUP BY k")
        .await
        .expect("a view");
    names.push("w".into());
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_rebuild_views_over_tables() {
    const STEPS: usize = 6;
    for seed in 0..3 {
        let mut random = StdRng::seed_from_u64(seed);
        let folder = tempfile::tempdir().expect("a folder");
        let running = Running::start_at(random.random_range(1..4), folder.path()).await;
        let client = running.client().await;
        client.batch_execute("CREATE TABLE r (k VARCHAR, v BIGINT, ts TIMESTAMPTZ)").await.expect("a table");
        client
            .batch_execute("INSERT INTO r VALUES ('a', 1, to_timestamp(5)), ('b', NULL, to_timestamp(70))")
            .await
            .expect("rows");
        let names = create_views(&client).await;
        let mut listeners = Listeners::new(names.into_iter().chain(["r".into()]), STEPS, &mut random);
        for step in 0..STEPS {
            listeners.begin(&running, step).await;
            for _ in 0..3 {
                let (v, seconds): (i32, i32) = (random.random_range(-5..6), random.random_range(-100..300));
                let k = ["'a'", "'b'", "'c'", "NULL"][random.random_range(0..4)];
                let statement = match random.random_range(0..4) {
                    0 => format!("DELETE FROM r WHERE v % 3 = {}", random.random_range(0..3)),
                    1 => format!(
                        "UPDATE r SET v = v + {v}, ts = ts + INTERVAL '{} seconds' WHERE k = {k}",
                        seconds.abs()
                    ),
                    _ => {
                        format!("INSERT INTO r VALUES ({k}, {v}, to_timestamp({seconds})), ('a', {v}, to_timestamp(1))")
                    }
                };
                client.batch_execute(&statement).await.expect(&statement);
            }
        }
        listeners.check(&client, "r", seed).await;
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_rebuild_views_over_topics() {
    const STEPS: usize = 4;
    let broker = EmbeddedBroker::start().expect("a broker");
    let producer = Producer::new(&broker.servers(), &[]).expect("a producer");
    for seed in 0..2 {
        let mut random = StdRng::seed_from_u64(seed);
        let topic = format!("changes{seed}");
        broker.create_topic(&topic, 2).expect("a topic");
        let folder = tempfile::tempdir().expect("a folder");
        let running = Running::start_at(random.random_range(1..4), folder.path()).await;
        let client = running.client().await;
        let source = format!(
            "CREATE TABLE marker (x INT);
             CREATE SOURCE r (k VARCHAR, v BIGINT, ts TIMESTAMPTZ, WATERMARK FOR ts AS ts - INTERVAL '10 seconds')
             WITH (connector = 'kafka', topic = '{topic}', properties.bootstrap.server = '{}', allowed_lateness = '20 seconds',
                   idle_timeout = '1 day')
             FORMAT PLAIN ENCODE JSON",
            broker.servers()
        );
        client.batch_execute(&source).await.expect("a source");
        let mut names = create_views(&client).await;
        let closing = "SELECT k, window_end, count(*) AS n FROM HOP(r, ts, INTERVAL '20 seconds', INTERVAL '1 minute') \
                       GROUP BY k, window_end EMIT ON WINDOW CLOSE";
        client.batch_execute(&format!("CREATE MATERIALIZED VIEW closing AS {closing}")).await.expect("a view");
        names.push("closing".into());
        let mut listeners = Listeners::new(names, STEPS, &mut random);
        let mut sent = 0;
        for step in 0..STEPS {
            client.batch_execute("WAIT FOR r").await.expect("everything read");
            listeners.begin(&running, step).await;
            for _ in 0..random.random_range(1..60) {
                sent += 1;
                let k = ["\"a\"", "\"b\"", "null"][random.random_range(0..3)];
                let time_ms = 1_767_225_600_000i64 + sent * 2_000 - random.random_range(0..3) * 20_000;
                let json = format!("{{\"k\":{k},\"v\":{},\"ts\":{time_ms}}}", random.random_range(-9..9));
                let partition = random.random_range(0..2);
                producer.send(&topic, Some(partition), None, Some(json.as_bytes()), 0).expect("a record sent");
            }
            producer.flush(Duration::from_secs(30)).expect("everything delivered");
        }
        client.batch_execute("WAIT FOR r").await.expect("everything read");
        listeners.check(&client, "marker", seed).await;
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_ends_with_its_object_or_by_the_client() {
    let running = Running::start(2).await;
    let (client, reader) = (running.client().await, running.client().await);
    client.batch_execute("CREATE TABLE t (k INT, s VARCHAR)").await.expect("a table");
    let columns = reader.prepare("SUBSCRIBE TO t WITH (PROGRESS)").await.expect("prepared");
    let columns: Vec<String> =
        columns.columns().iter().map(|column| format!("{} {}", column.name(), column.type_())).collect();
    assert_eq!(columns, ["tick numeric", "progressed bool", "diff int8", "k int4", "s varchar"]);

    // The time of a statement does not count, a request to cancel does.
    reader.batch_execute("SET statement_timeout = 1").await.expect("set");
    {
        let no_parameters: [&str; 0] = [];
        let mut rows = pin!(reader.query_raw("SUBSCRIBE TO t", no_parameters).await.expect("a subscription"));
        client.batch_execute("INSERT INTO t VALUES (1, 'x')").await.expect("a row");
        let row = rows.next().await.expect("a row").expect("no error");
        assert_eq!((row.get::<_, i64>(1), row.get::<_, i32>(2), row.get::<_, &str>(3)), (1, 1, "x"));
        reader.cancel_token().cancel_query(NoTls).await.expect("a cancel request");
        assert_eq!(code(&rows.next().await.expect("an end").expect_err("cancelled")), "57014");
    }
    reader.batch_execute("SET statement_timeout = 0").await.expect("set");

    let copied = running.client().await;
    let mut lines = pin!(copied.copy_out("COPY (SUBSCRIBE TO t) TO STDOUT WITH (FORMAT csv)").await.expect("lines"));
    let first = lines.next().await.expect("a line").expect("no error");
    assert!(first.ends_with(b",1,1,x\n"), "{first:?}");
    client.batch_execute("UPDATE t SET s = 'a,b'").await.expect("a change");
    let changed = [lines.next().await, lines.next().await].map(|line| line.expect("a line").expect("no error"));
    assert!(changed.iter().any(|line| line.ends_with(b",-1,1,x\n")), "{changed:?}");
    assert!(changed.iter().any(|line| line.ends_with(b",1,1,\"a,b\"\n")), "{changed:?}");

    let mut messages =
        pin!(reader.simple_query_raw("SUBSCRIBE TO t WITH (SNAPSHOT = false, PROGRESS)").await.expect("rows"));
    while !matches!(messages.try_next().await, Ok(Some(SimpleQueryMessage::Row(_)))) {}
    client.batch_execute("DROP TABLE t").await.expect("dropped");
    let ended = loop {
        match messages.try_next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the subscription ended without a word"),
            Err(error) => break error,
        }
    };
    assert_eq!(code(&ended), "42P01");
    assert_eq!(code(&lines.next().await.expect("an end").expect_err("dropped")), "42P01");
    running.stop().await;
}
