//! A storage that fails for a while, or holds what is not right: what the engine says then, what goes on, and that nothing is lost.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::FutureExt;
use rand::SeedableRng;
use rand::rngs::StdRng;
use riverrun::connector::{EmbeddedBroker, Producer};
use riverrun::engine::{EngineError, EngineOptions, Stopwatch, Subscription};
use riverrun::storage::StorageError;
use riverrun::storage::sim::{Kind, SimDisk};

use crate::db::{Db, lines};
use crate::oracle::{Events, QUERIES, over_rows, source_of};

/// Groups, and windows whose slices close.
const VIEWS: [usize; 2] = [1, 6];

/// A source with views, and a table, on a simulated disk.
struct Scene {
    disk: SimDisk,
    db: Db,
    broker: EmbeddedBroker,
    producer: Producer,
    events: Events,
    random: StdRng,
}

impl Scene {
    async fn new(kind: Kind, seed: u64) -> Scene {
        let broker = EmbeddedBroker::start().expect("a broker");
        let producer = Producer::new(&broker.servers(), &[]).expect("a producer");
        broker.create_topic("events", 2).expect("a topic");
        let disk = SimDisk::new(kind, seed);
        let db = started(&disk, 2);
        db.run(&source_of("events", &broker)).await;
        for i in VIEWS {
            db.run(&format!("CREATE MATERIALIZED VIEW v{i} AS {}", QUERIES[i])).await;
        }
        db.run("CREATE TABLE t (v BIGINT)").await;
        let events = Events::new("events".into(), 2);
        let mut scene = Scene { disk, db, broker, producer, events, random: StdRng::seed_from_u64(seed) };
        scene.goes_on(1).await;
        scene
    }

    fn send(&mut self) {
        for _ in 0..4 {
            self.events.send(&self.producer, &mut self.random);
        }
    }

    /// Events and a row of the table.
    async fn goes_on(&mut self, v: i64) {
        self.send();
        self.db.run(&format!("INSERT INTO t VALUES ({v})")).await;
        self.db.run("WAIT FOR r").await;
    }

    async fn counts(&self) -> Vec<String> {
        self.db.rows("SELECT sum(read), sum(read - accepted - late - dead) FROM riverrun.source_partitions").await
    }

    async fn check(&self, t: &[&str]) {
        self.db.run("WAIT FOR r").await;
        assert_eq!(self.counts().await, [format!("{}|0", self.events.sent)]);
        for i in VIEWS {
            let kept = self.db.rows(&format!("SELECT * FROM v{i}")).await;
            assert_eq!(kept, over_rows(&self.db, QUERIES[i], &self.events.accepted).await, "v{i}");
        }
        assert_eq!(self.db.rows("SELECT v FROM t").await, t);
    }

    async fn crash(&mut self, workers: usize) {
        self.db.engine.crash().await;
        self.disk.crash();
        self.db = started(&self.disk, workers);
    }
}

fn started(disk: &SimDisk, workers: usize) -> Db {
    Db::start_on(workers, disk.process()).unwrap_or_else(|error| panic!("no engine: {error}"))
}

async fn refusal(db: &Db, sql: &str) -> EngineError {
    match db.try_run(sql).await {
        Ok(_) => panic!("no error: {sql}"),
        Err(error) => *error.downcast::<EngineError>().expect("an error of the engine"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_nothing_can_be_written_reading_rests_and_reads_go_on() {
    let (doing, reason) = ("writing".to_string(), "simulated".to_string());
    let full = StorageError::Full { doing: doing.clone(), reason: reason.clone() };
    let denied = StorageError::Denied { doing, reason };
    for error in [full, denied] {
        let mut scene = Scene::new(Kind::Local, 1).await;
        let before = scene.counts().await;
        let shown = scene.db.rows("SELECT * FROM v6").await;
        scene.disk.refuse_puts(Some(error.clone()));

        // Under way when it happens: it is there, but not on disk.
        let told = refusal(&scene.db, "INSERT INTO t VALUES (2)").await;
        assert!(matches!(told, EngineError::Unknown { .. }), "{told:?}");
        assert_eq!(told.to_string(), format!("the change is there, but not on disk: {error}"));
        for sql in ["INSERT INTO t VALUES (3)", "CREATE TABLE u (v INT)", "DROP TABLE t", "CREATE SCHEMA s"] {
            let told = refusal(&scene.db, sql).await;
            assert!(matches!(told, EngineError::Storage { .. }), "{sql}: {told:?}");
            assert_eq!(told.to_string(), error.to_string(), "{sql}");
        }
        let resting = format!("resting|nothing is read until the storage is mended: {error}");
        assert_eq!(scene.db.rows("SELECT state, message FROM riverrun.sources").await, [resting]);
        let failing = "SELECT state, tries > 2, error, number FROM riverrun.checkpoints WHERE state <> 'committed'";
        scene.db.until(failing, &[&format!("failing|true|{error}|NULL")]).await;
        scene.send();
        assert_eq!(scene.db.rows("SELECT v FROM t").await, ["1", "2"]);
        assert_eq!(scene.db.rows("SELECT * FROM v6").await, shown);
        assert_eq!(scene.counts().await, before, "nothing is read meanwhile");

        scene.disk.refuse_puts(None);
        scene.check(&["1", "2"]).await;
        assert_eq!(scene.db.rows("SELECT state, message FROM riverrun.sources").await, ["running|NULL"]);
        scene.goes_on(3).await;
        let tried = "SELECT count(*) FROM riverrun.checkpoints WHERE state = 'committed' AND tries > 2";
        assert_eq!(scene.db.rows(tried).await, ["1"]);
        scene.crash(3).await;
        scene.check(&["1", "2", "3"]).await;
        scene.db.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_checkpoint_that_fails_is_told() {
    let mut scene = Scene::new(Kind::Local, 3).await;
    let error = StorageError::Full { doing: "writing".into(), reason: "simulated".into() };
    // Nobody else asks for one that fails first.
    scene.db.stop().await;
    let (checkpoint_interval, retry_pause) = (Duration::from_secs(36_000), Duration::from_millis(5));
    let options = EngineOptions { workers: 2, checkpoint_interval, retry_pause, ..EngineOptions::default() };
    scene.db = Db::start_with(options, scene.disk.process()).expect("it starts");
    scene.db.run("CREATE TABLE first (v INT)").await;
    scene.disk.refuse_puts(Some(error.clone()));
    let told = refusal(&scene.db, "CREATE TABLE u (v INT)").await;
    assert!(matches!(told, EngineError::Unknown { .. }), "{told:?}");
    let refused = refusal(&scene.db, "DROP TABLE first").await;
    assert!(matches!(refused, EngineError::Storage { .. }), "{refused:?}");
    assert!(scene.db.rows("SELECT * FROM u").await.is_empty());
    scene.disk.refuse_puts(None);
    scene.goes_on(2).await;
    scene.crash(2).await;
    scene.check(&["1", "2"]).await;
    assert!(scene.db.rows("SELECT * FROM u").await.is_empty());
    scene.db.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_corrupt_is_read_as_good() {
    let mut scene = Scene::new(Kind::Local, 2).await;
    scene.goes_on(2).await;
    scene.db.until("SELECT bool_or(closed) FROM riverrun.slices", &["true"]).await;
    scene.db.stop().await;
    let flip = |bytes: &mut Vec<u8>| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    };
    let mut refused = 0;
    let files: BTreeSet<String> = scene.disk.names().into_iter().filter(|name| name.starts_with("data/")).collect();
    for file in files {
        // What ran in between may have swept it.
        if !scene.disk.damage(&file, flip) {
            continue;
        }
        match Db::start_on(2, scene.disk.process()) {
            Err(error) => {
                let error = error.to_string();
                assert!(error.contains(&file) && error.contains("is damaged"), "{error}");
                refused += 1;
            }
            Ok(db) => {
                scene.db = db;
                let right = over_rows(&scene.db, QUERIES[6], &scene.events.accepted).await;
                match scene.db.try_run("SELECT * FROM v6").await {
                    Ok(rows) => assert_eq!(crate::db::lines(&rows), right),
                    Err(error) => {
                        let error = error.to_string();
                        assert!(error.contains(&file) && error.contains("is damaged"), "{error}");
                        // What lies elsewhere is read.
                        let groups = over_rows(&scene.db, QUERIES[1], &scene.events.accepted).await;
                        assert_eq!(scene.db.rows("SELECT * FROM v1").await, groups);
                    }
                }
                scene.db.stop().await;
            }
        }
        scene.disk.crash();
        scene.disk.damage(&file, flip);
    }
    assert!(refused > 0, "no start was refused");
    scene.db = started(&scene.disk, 2);
    scene.check(&["1", "2"]).await;
    scene.db.stop().await;
}

/// What follows from the log is read again; the catalog, tables and what is known of a source are refused still.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_is_made_anew_if_that_is_asked_for() {
    let mut scene = Scene::new(Kind::Local, 3).await;
    scene.goes_on(2).await;
    scene.db.until("SELECT bool_or(closed) FROM riverrun.slices", &["true"]).await;
    scene.db.stop().await;
    let flip = |bytes: &mut Vec<u8>, at: f64| {
        let at = (bytes.len() as f64 * at) as usize;
        bytes[at] ^= 1;
    };
    let mut rebuilt = 0;
    for i in 0..12 {
        let files: Vec<String> = scene.disk.names().into_iter().filter(|name| name.starts_with("data/")).collect();
        let (file, at) = (&files[i % files.len()], f64::from(i as u32 % 7) / 7.0);
        scene.disk.damage(file, |bytes| flip(bytes, at));
        let without = Db::start_on(2, scene.disk.process());
        let begins = without.is_ok();
        if let Ok(db) = without {
            db.engine.crash().await;
        }
        scene.disk.crash();
        match Db::start_on_damaged(2, scene.disk.process(), true) {
            Err(error) => {
                let error = error.to_string();
                assert!(error.contains(file) && error.contains("is damaged"), "{error}");
            }
            Ok(db) => {
                scene.db = db;
                scene.check(&["1", "2"]).await;
                scene.db.stop().await;
                // What was made anew has been saved, and nothing else names what is damaged.
                scene.db = started(&scene.disk, 2);
                scene.check(&["1", "2"]).await;
                scene.db.stop().await;
                rebuilt += usize::from(!begins);
            }
        }
        scene.disk.crash();
        scene.disk.damage(file, |bytes| flip(bytes, at));
    }
    assert!(rebuilt > 0, "each start would have been one without it");
    scene.db = started(&scene.disk, 3);
    scene.check(&["1", "2"]).await;
    scene.db.stop().await;
}

/// With hours between checkpoints.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_created_is_kept_without_a_checkpoint() {
    let mut scene = Scene::new(Kind::Local, 4).await;
    scene.db.stop().await;
    let checkpoint_interval = Duration::from_secs(36_000);
    let options = EngineOptions { workers: 2, checkpoint_interval, ..EngineOptions::default() };
    scene.db = Db::start_with(options, scene.disk.process()).expect("it starts");
    // To the first of a process nothing can be added yet.
    scene.db.run("CREATE TABLE first (v BIGINT)").await;
    let committed = "SELECT count(*) FROM riverrun.checkpoints WHERE state = 'committed'";
    let before = scene.db.rows(committed).await;
    scene.send();
    scene.db.run("WAIT FOR r").await;
    let other = source_of("events", &scene.broker).replacen("SOURCE r", "SOURCE other", 1);
    for sql in [
        &other,
        &format!("CREATE MATERIALIZED VIEW shares AS {}", QUERIES[VIEWS[0]]),
        &format!("CREATE MATERIALIZED VIEW reads WITH (store = 'own') AS {}", QUERIES[VIEWS[0]]),
        &format!("CREATE MATERIALIZED VIEW others AS {}", QUERIES[VIEWS[0]].replace("FROM r ", "FROM other ")),
        "CREATE TABLE u (v BIGINT)",
        "INSERT INTO u VALUES (1), (2)",
        "CREATE MATERIALIZED VIEW sums AS SELECT sum(v) AS s FROM u",
        "CREATE VIEW plain AS SELECT s + 1 AS s FROM sums",
        "INSERT INTO u VALUES (3)",
    ] {
        scene.db.run(sql).await;
    }
    assert_eq!(scene.db.rows(committed).await, before, "no checkpoint was made");
    scene.crash(3).await;
    scene.db.run("WAIT FOR r").await;
    scene.db.run("WAIT FOR other").await;
    let right = over_rows(&scene.db, QUERIES[VIEWS[0]], &scene.events.accepted).await;
    for view in ["shares", "reads", "others"] {
        assert_eq!(scene.db.rows(&format!("SELECT * FROM {view}")).await, right, "{view}");
    }
    assert_eq!(scene.db.rows("SELECT * FROM plain").await, ["7"]);
    scene.db.run("DROP SOURCE other CASCADE").await;
    scene.check(&["1"]).await;
    scene.db.stop().await;
}

/// Which partitions are idle is decided by the clock, and once more after a crash: windows wait for a checkpoint before they are shown.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_shown_as_final_stays_so_over_crashes() {
    let broker = EmbeddedBroker::start().expect("a broker");
    let producer = Producer::new(&broker.servers(), &[]).expect("a producer");
    broker.create_topic("events", 2).expect("a topic");
    let send = |partition: i32, ts_s: i64| {
        let event = format!(r#"{{"v":1,"ts":{ts_s}}}"#);
        producer.send("events", Some(partition), None, Some(event.as_bytes()), 0).expect("sent");
        producer.flush(Duration::from_secs(60)).expect("written");
    };
    let disk = SimDisk::new(Kind::Local, 6);
    let start = |disk: &SimDisk| {
        let checkpoint_interval = Duration::from_secs(36_000);
        let options = EngineOptions { workers: 2, checkpoint_interval, ..EngineOptions::default() };
        Db::start_with(options, disk.process()).expect("it starts")
    };
    let mut db = start(&disk);
    db.run(&format!(
        "CREATE SOURCE r (v BIGINT, ts TIMESTAMPTZ, WATERMARK FOR ts AS ts)
         WITH (connector = 'kafka', topic = 'events', properties.bootstrap.server = '{}', idle_timeout = '100 milliseconds')
         FORMAT PLAIN ENCODE JSON",
        broker.servers()
    ))
    .await;
    for (view, window) in
        [("tumbles", "TUMBLE(r, ts, INTERVAL '10 seconds')"), ("sessions", "SESSION(r, ts, INTERVAL '3 seconds')")]
    {
        db.run(&format!(
            "CREATE MATERIALIZED VIEW {view} AS SELECT window_start, window_end, sum(v) AS n FROM {window} \
             GROUP BY window_start, window_end EMIT ON WINDOW CLOSE"
        ))
        .await;
    }
    db.run("CREATE MATERIALIZED VIEW above AS SELECT count(*) AS windows, sum(n) AS n FROM tumbles").await;
    let shown = "SELECT 'tumbles', * FROM tumbles UNION ALL SELECT 'sessions', * FROM sessions";
    let mut all = BTreeSet::new();
    for round in 1..=6 {
        let now_s = 1_748_736_000 + round * 100;
        for i in 0..9 {
            send(0, now_s + i * 10);
        }
        // The other partition is idle by then. While both are, the watermark stays: so this one goes on.
        let passed = format!("SELECT watermark('r') >= to_timestamp({})", now_s + 80);
        let since = Stopwatch::start();
        while db.rows(&passed).await != ["true"] {
            assert!(since.elapsed() < Duration::from_secs(120), "{:#?}", db.engine.stats().sources);
            send(0, now_s + 80);
        }
        db.run("WAIT FOR r").await;
        let now = db.rows(shown).await;
        assert!(now.len() > all.len(), "nothing new is final: {now:?}");
        all.extend(now);
        // Into windows that have been shown.
        for i in 1..6 {
            send(1, now_s + i * 10 + round % 5);
        }
        if round % 3 > 0 {
            db.engine.crash().await;
            disk.crash();
            db = start(&disk);
        }
        db.run("WAIT FOR r").await;
        let now = BTreeSet::from_iter(db.rows(shown).await);
        let gone: Vec<&String> = all.difference(&now).collect();
        assert!(gone.is_empty(), "round {round}: {gone:?} were final, now {now:?}");
        all.extend(now);
        let (above, sum) = ("SELECT * FROM above", "SELECT count(*), sum(n) FROM tumbles");
        assert_eq!(db.rows(above).await, db.rows(sum).await);
    }
    assert_eq!(
        db.rows("SELECT bool_and(late > 0) FROM riverrun.source_partitions WHERE partition = 1").await,
        ["true"]
    );
    db.stop().await;
}

/// The rows that a subscription tells next.
async fn told(subscription: &mut Subscription) -> Result<Vec<String>, String> {
    let (update, _) = subscription.next(false).await.map_err(|error| error.to_string())?;
    Ok(update.into_iter().flat_map(|update| update.deltas).flat_map(|delta| lines(&[delta.rows])).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_told_as_committed_outlives_a_crash() {
    let full = StorageError::Full { doing: "writing".into(), reason: "simulated".into() };
    for is_mended in [true, false] {
        let mut scene = Scene::new(Kind::Local, 8).await;
        scene.db.stop().await;
        // No checkpoint that nobody waits for comes in between.
        let (checkpoint_interval, retry_pause) = (Duration::from_secs(36_000), Duration::from_millis(5));
        let options = EngineOptions { workers: 2, checkpoint_interval, retry_pause, ..EngineOptions::default() };
        scene.db = Db::start_with(options, scene.disk.process()).unwrap_or_else(|error| panic!("no engine: {error}"));
        let mut published = scene.db.subscribe("t", false).await.expect("a subscription");
        let mut committed = scene.db.subscribe("t", true).await.expect("a subscription");
        scene.goes_on(2).await;
        for subscription in [&mut published, &mut committed] {
            assert_eq!(told(subscription).await, Ok(vec!["2".to_string()]));
        }
        scene.disk.refuse_puts(Some(full.clone()));
        assert!(matches!(refusal(&scene.db, "INSERT INTO t VALUES (3)").await, EngineError::Unknown { .. }));
        assert_eq!(told(&mut published).await, Ok(vec!["3".to_string()]));
        assert!(told(&mut committed).now_or_never().is_none(), "no checkpoint holds it");
        let Err(refused) = scene.db.subscribe("t", true).await else { panic!("nothing can be committed") };
        assert!(matches!(refused, EngineError::Storage { .. }), "{refused}");
        if is_mended {
            scene.disk.refuse_puts(None);
            assert_eq!(told(&mut committed).await, Ok(vec!["3".to_string()]));
            scene.db.run("DELETE FROM t WHERE v < 3; INSERT INTO t VALUES (4)").await;
            scene.db.stop().await;
            // The last checkpoint is told of, too.
            assert_eq!(told(&mut committed).await, Ok(vec!["1".to_string(), "2".to_string()]));
            assert_eq!(told(&mut committed).await, Ok(vec!["4".to_string()]));
            assert_eq!(told(&mut committed).await, Err(EngineError::Stopped.to_string()));
        } else {
            scene.db.engine.crash().await;
            scene.disk.refuse_puts(None);
            scene.disk.crash();
            assert_eq!(told(&mut committed).await, Err(EngineError::Stopped.to_string()));
            scene.db = started(&scene.disk, 2);
            scene.check(&["1", "2"]).await;
            scene.db.stop().await;
        }
    }
}

/// Slices that are put together as one come into files by themselves, outlive a crash, and are made anew for other workers.
#[tokio::test(flavor = "multi_thread")]
async fn panes_are_kept() {
    let mut scene = Scene::new(Kind::Local, 5).await;
    let many = "SELECT count(DISTINCT slice_start) > 15 FROM riverrun.slices WHERE closed";
    while scene.db.rows(many).await != ["true"] {
        scene.goes_on(1).await;
    }
    let kept = "SELECT count(*) > 0 FROM riverrun.slices WHERE panes > 0";
    scene.db.until(kept, &["true"]).await;
    scene.db.run("DELETE FROM t").await;
    for (v, workers) in [(2, 2), (3, 3), (4, 3)] {
        scene.goes_on(v).await;
        // That lasts once a manifest says so, which names the panes, too.
        scene.db.run(&format!("CREATE TABLE t{v} (v BIGINT)")).await;
        scene.crash(workers).await;
        if v != 3 {
            assert_eq!(scene.db.rows(kept).await, ["true"], "for as many workers they are what they were");
        }
        scene.db.until(kept, &["true"]).await;
        scene.check(&["2", "3", "4"][..v as usize - 1]).await;
    }
    scene.db.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_manifest_gives_way_to_the_one_before() {
    let mut scene = Scene::new(Kind::Local, 3).await;
    let committed = "SELECT count(*) > 8 FROM riverrun.checkpoints WHERE state = 'committed'";
    let mut v = 1;
    while scene.db.rows(committed).await != ["true"] {
        v += 1;
        scene.goes_on(v).await;
    }
    let rows = scene.db.rows("SELECT v FROM t").await;
    scene.db.engine.crash().await;
    scene.disk.crash();
    let newest = scene.disk.names().into_iter().rfind(|name| name.starts_with("manifest/")).expect("a manifest");
    assert!(scene.disk.damage(&newest, |bytes| bytes.truncate(bytes.len() / 2)));
    scene.db = started(&scene.disk, 1);
    let rows: Vec<&str> = rows.iter().map(String::as_str).collect();
    scene.check(&rows).await;
    scene.crash(2).await;
    scene.check(&rows).await;
    scene.db.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_was_replaced_ends() {
    for sql in ["INSERT INTO t VALUES (9)", "CREATE TABLE u (v INT)"] {
        let mut scene = Scene::new(Kind::Bucket, 4).await;
        let new = started(&scene.disk, 1);
        let old = std::mem::replace(&mut scene.db, new);
        let told = refusal(&old, sql).await;
        assert!(matches!(told, EngineError::Stopped), "{sql}: {told:?}");
        let reason = old.engine.ended().await.expect("a reason");
        assert_eq!(reason, "another process has taken over the data: this one ends");
        for sql in ["SELECT * FROM t", "INSERT INTO t VALUES (9)", "CREATE TABLE u (v INT)", "WAIT FOR r"] {
            let told = refusal(&old, sql).await;
            assert!(matches!(told, EngineError::Stopped), "{sql}: {told:?}");
        }
        old.stop().await;
        scene.goes_on(2).await;
        scene.check(&["1", "2"]).await;
        scene.crash(2).await;
        scene.check(&["1", "2"]).await;
        assert!(scene.db.error("SELECT * FROM u").await.contains("does not exist"));
        scene.db.stop().await;
    }
}
