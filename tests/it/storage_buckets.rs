//! Storage through its public face, and whole engines upon it: in a folder, or in the bucket of RIVERRUN_TEST_BUCKET, which
//! `scripts/bucket start CLOUD` prints together with the variables that tell how to reach it.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::StdRng;
use riverrun::connector::{EmbeddedBroker, Producer};
use riverrun::engine::EngineOptions;
use riverrun::storage::{Opened, SectionRef, Storage, StorageError, backup, restore};
use serde_json::json;
use tempfile::TempDir;

use crate::db::Db;
use crate::oracle::{Events, QUERIES, over_rows, source_of};

/// A place of a test's own.
struct Place {
    url: String,
    in_bucket: bool,
    _folder: Option<TempDir>,
}

/// `s3://riverrun`, if there is one.
fn bucket() -> Option<String> {
    std::env::var("RIVERRUN_TEST_BUCKET").ok()
}

impl Place {
    fn new() -> Place {
        static PLACES: AtomicU32 = AtomicU32::new(0);
        let Some(bucket) = bucket() else {
            return Place::folder();
        };
        let n = PLACES.fetch_add(1, Ordering::Relaxed);
        let url = format!("{bucket}/tests/{}/{n}", std::process::id());
        Place { url, in_bucket: true, _folder: None }
    }

    fn folder() -> Place {
        let folder = TempDir::new().expect("a folder");
        // Not there yet, as a prefix is not.
        let url = folder.path().join("state").to_str().expect("UTF-8").to_string();
        Place { url, in_bucket: false, _folder: Some(folder) }
    }

    fn open(&self) -> Opened {
        Storage::open(&self.url, 7).expect("it opens")
    }
}

fn records(of: &[&str]) -> Vec<Bytes> {
    of.iter().map(|record| Bytes::copy_from_slice(record.as_bytes())).collect()
}

fn log(opened: &Opened) -> Vec<(u64, &str)> {
    opened.log.iter().map(|(n, record)| (*n, std::str::from_utf8(record).expect("text"))).collect()
}

/// Commits some sections as the whole state.
fn commit(storage: &Storage, sections: &[Bytes], log_through: u64) -> Result<u64, StorageError> {
    let sections = storage.write(sections)?;
    let files = BTreeSet::from([sections[0].file.clone()]);
    storage.commit(json!({ "sections": sections }), files, log_through, 7)
}

fn sections(opened: &Opened) -> Vec<Bytes> {
    let manifest = opened.manifest.as_ref().expect("a manifest");
    let sections: Vec<SectionRef> = serde_json::from_value(manifest.body["sections"].clone()).expect("sections");
    sections.iter().map(|section| opened.storage.read(section).expect("a section")).collect()
}

#[test]
fn state_and_log_are_there_for_the_next_process() {
    let place = Place::new();
    let first = place.open();
    assert!(first.manifest.is_none() && first.log.is_empty());
    let storage = first.storage;
    storage.append(1, &records(&["a", "b"])).expect("appended");
    // More than goes in one request.
    let large = Bytes::from((0..20 << 20).map(|i: u32| (i % 251) as u8).collect::<Vec<u8>>());
    let state = [Bytes::from_static(b"small"), large, Bytes::new()];
    assert_eq!(commit(&storage, &state, 1), Ok(2));
    storage.append(3, &records(&["c"])).expect("appended");
    drop(storage);

    let second = place.open();
    assert_eq!(log(&second), [(2, "b"), (3, "c")]);
    assert_eq!(sections(&second), state);
    assert_eq!(second.storage.generation(), 2);
    let written = second.storage.written();
    assert_eq!((written.reads, written.read_bytes), (3, 5 + (20 << 20)));
}

#[tokio::test]
async fn calls_may_come_from_a_thread_of_a_runtime() {
    let place = Place::new();
    let storage = place.open().storage;
    assert_eq!(commit(&storage, &records(&["state"]), 0), Ok(2));
}

#[test]
fn a_process_that_was_replaced_writes_nothing_more() {
    let place = Place::new();
    let old = place.open().storage;
    old.append(1, &records(&["a"])).expect("appended");
    if !place.in_bucket {
        let error = Storage::open(&place.url, 7).expect_err("one process at a time");
        assert!(matches!(error, StorageError::Locked { .. }), "{error}");
        return;
    }
    let new = place.open();
    assert_eq!(log(&new), [(1, "a")]);
    let fenced =
        |outcome: Result<(), StorageError>| assert!(matches!(outcome, Err(StorageError::Fenced { .. })), "{outcome:?}");
    fenced(old.append(2, &records(&["lost?"])));
    fenced(old.append(2, &records(&["lost?"])));
    fenced(old.commit(json!(1), BTreeSet::new(), 1, 7).map(drop));
    fenced(old.sweep().map(drop));
    new.storage.append(2, &records(&["b"])).expect("appended");
    assert_eq!(commit(&new.storage, &records(&["state"]), 2), Ok(3));

    let third = place.open();
    assert_eq!(sections(&third), records(&["state"]));
    let again = place.open();
    // Not told by the log, but by the manifest.
    fenced(third.storage.commit(json!(1), BTreeSet::new(), 2, 7).map(drop));
    assert_eq!(sections(&again), records(&["state"]));
}

#[test]
fn a_sweep_leaves_what_is_needed() {
    let place = Place::new();
    let storage = place.open().storage;
    for n in 1..=5 {
        storage.append(n, &records(&["r"])).expect("appended");
        commit(&storage, &records(&[&format!("state {n}")]), n).expect("committed");
    }
    let swept = storage.sweep().expect("swept");
    assert_eq!((swept.files, swept.manifests, swept.log_groups), (3, 4, 4));
    assert_eq!(storage.sweep().expect("swept").files, 0);
    drop(storage);
    let opened = place.open();
    assert_eq!(sections(&opened), records(&["state 5"]));
    assert_eq!(log(&opened), []);
}

#[test]
fn a_backup_of_a_running_process_is_restored() {
    let (place, copy, target) = (Place::new(), Place::folder(), Place::new());
    let storage = place.open().storage;
    assert!(matches!(backup(&target.url, &copy.url), Err(StorageError::NotFound { .. })), "there is nothing to copy");
    storage.append(1, &records(&["a", "b"])).expect("appended");
    commit(&storage, &records(&["one"]), 1).expect("committed");
    commit(&storage, &records(&["two", "three"]), 1).expect("committed");
    storage.append(3, &records(&["c"])).expect("appended");

    let copied = backup(&place.url, &copy.url).expect("copied");
    assert_eq!((copied.manifest, copied.files, copied.log_records), (3, 1, 2));
    let refused = backup(&place.url, &copy.url).expect_err("refused");
    assert!(matches!(refused, StorageError::NotEmpty { .. }), "{refused}");
    storage.append(4, &records(&["later"])).expect("the process goes on");

    restore(&copy.url, &target.url).expect("restored");
    let opened = target.open();
    assert_eq!(sections(&opened), records(&["two", "three"]));
    assert_eq!(log(&opened), [(2, "b"), (3, "c")]);
    opened.storage.append(4, &records(&["d"])).expect("appended");
}

#[test]
fn a_start_that_fails_says_why_and_no_more() {
    let folder = TempDir::new().expect("a folder");
    let run = |before: &str, place: &str| {
        let text = format!(
            "{before} exec '{}' serve --listen 127.0.0.1:0 --data-dir '{place}'",
            env!("CARGO_BIN_EXE_riverrun")
        );
        let ended = Command::new("sh").args(["-c", &text]).env("RUST_BACKTRACE", "1").output().expect("a process");
        (ended.status.code(), String::from_utf8(ended.stderr).expect("text"))
    };
    let file = folder.path().join("file");
    std::fs::write(&file, "no folder").expect("writable");
    let file = file.to_str().expect("UTF-8");
    let told = format!(
        "Error: the engine does not start\n\nCaused by:\n    {file} holds no data of riverrun but a file where a folder is needed; \
         choose an empty or a new place\n"
    );
    assert_eq!(run("", file), (Some(1), told));
    // A limit for the size of a file is no end by a signal.
    let place = folder.path().join("state");
    let (code, told) = run("ulimit -f 0;", place.to_str().expect("UTF-8"));
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("no space left: ") && told.contains("File too large"), "{told}");
}

#[test]
fn what_a_failed_copy_leaves_is_told() {
    let (place, copy, target) = (Place::folder(), Place::folder(), Place::folder());
    let storage = place.open().storage;
    commit(&storage, &records(&["state"]), 0).expect("committed");
    storage.append(1, &records(&["a", "b"])).expect("appended");
    backup(&place.url, &copy.url).expect("copied");
    let log =
        std::fs::read_dir(format!("{}/log", copy.url)).expect("a folder").next().expect("a file").expect("readable");
    let mut bytes = std::fs::read(log.path()).expect("readable");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(log.path(), bytes).expect("writable");
    let failed = restore(&copy.url, &target.url).expect_err("damaged");
    assert!(matches!(&failed, StorageError::Unfinished { cause, .. } if cause.is_damage()), "{failed:?}");
    let told = format!("is left in {}: remove it before another try", target.url);
    assert!(failed.to_string().ends_with(&told), "{failed}");
    // It is as it says.
    assert!(matches!(restore(&place.url, &target.url), Err(StorageError::NotEmpty { .. })));
    std::fs::remove_dir_all(&target.url).expect("removed");
    restore(&place.url, &target.url).expect("restored");
}

#[test]
fn a_bucket_that_is_not_there_is_said_so() {
    let Some(bucket) = bucket() else {
        return;
    };
    let (scheme, _) = bucket.split_once("://").expect("a URL");
    let url = format!("{scheme}://nobody-has-made-this/x");
    let expected = format!("{url} is no place to keep data: there is no such bucket");
    assert_eq!(Storage::open(&url, 7).expect_err("refused").to_string(), expected);
    assert_eq!(backup(&url, &Place::folder().url).expect_err("refused").to_string(), expected);
    assert_eq!(restore(&existing_backup().url, &url).expect_err("refused").to_string(), expected);
}

fn existing_backup() -> Place {
    let (place, copy) = (Place::folder(), Place::folder());
    commit(&place.open().storage, &records(&["state"]), 0).expect("committed");
    backup(&place.url, &copy.url).expect("copied");
    copy
}

#[test]
fn wrong_credentials_are_refused_and_not_shown() {
    let wrong: Vec<(&str, String)> = match bucket() {
        Some(url) if url.starts_with("az://") => vec![
            ("AZURE_STORAGE_ACCOUNT_KEY", "aHVzaC1odXNoLWh1c2g=".into()),
            (
                "AZURE_STORAGE_SAS_TOKEN",
                "sv=2023-11-03&ss=b&srt=co&sp=rl&se=2099-01-01&sig=aHVzaC1odXNoLWh1c2g%3D".into(),
            ),
        ],
        Some(url) if url.starts_with("gs://") => {
            let file = std::fs::read(std::env::var("GOOGLE_SERVICE_ACCOUNT").expect("a file")).expect("a file");
            let account: serde_json::Value = serde_json::from_slice(&file).expect("JSON");
            let unsigned = json!({
                "gcs_base_url": account["gcs_base_url"], "disable_oauth": true, "client_email": "",
                "private_key_id": "", "private_key": "aHVzaC1odXNoLWh1c2g",
            });
            vec![("GOOGLE_SERVICE_ACCOUNT_KEY", unsigned.to_string())]
        }
        // moto lets everybody in.
        _ => return,
    };
    let place = Place::new();
    commit(&place.open().storage, &records(&["state"]), 0).expect("committed");
    let folder = TempDir::new().expect("a folder");
    for (name, value) in wrong {
        let mut command = Command::new(env!("CARGO_BIN_EXE_riverrun"));
        command.args(["backup", "--data-dir", &place.url, "--to"]).arg(folder.path().join("copy"));
        command.env_remove("AZURE_STORAGE_ACCOUNT_KEY").env_remove("GOOGLE_SERVICE_ACCOUNT").env(name, value);
        let output = command.output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{said}");
        assert!(said.contains(&format!("no permission: listing {}", place.url)), "{said}");
        assert!(!said.contains("aHVzaC1odXNoLWh1c2g"), "{said}");
    }
}

/// What is compared of an engine in the bucket.
struct Scene {
    place: Place,
    broker: EmbeddedBroker,
    producer: Producer,
    events: Events,
    random: StdRng,
}

const VIEWS: [usize; 5] = [1, 6, 7, 10, 20];

impl Scene {
    fn new() -> Scene {
        let broker = EmbeddedBroker::start().expect("a broker");
        let producer = Producer::new(&broker.servers(), &[]).expect("a producer");
        broker.create_topic("events", 2).expect("a topic");
        let (events, random) = (Events::new("events".into(), 2), StdRng::seed_from_u64(1));
        Scene { place: Place::new(), broker, producer, events, random }
    }

    fn engine(&self, workers: usize) -> Db {
        let options = EngineOptions {
            workers,
            data: Some(self.place.url.clone()),
            checkpoint_interval: Duration::from_millis(20),
            ..EngineOptions::default()
        };
        Db::start_as(options).unwrap_or_else(|error| panic!("no engine: {error}"))
    }

    fn send(&mut self) {
        for _ in 0..4 {
            self.events.send(&self.producer, &mut self.random);
        }
    }

    async fn check(&self, db: &Db, t: &[&str]) {
        db.run("WAIT FOR r").await;
        let counts = "SELECT sum(read)::bigint, sum(accepted)::bigint, sum(read - accepted - late - dead)::bigint FROM riverrun.source_partitions";
        assert_eq!(db.rows(counts).await, [format!("{}|{}|0", self.events.sent, self.events.accepted.len())]);
        for i in VIEWS {
            let kept = db.rows(&format!("SELECT * FROM v{i}")).await;
            assert_eq!(kept, over_rows(db, QUERIES[i], &self.events.accepted).await, "v{i}");
        }
        assert_eq!(db.rows("SELECT v FROM t").await, t);
        assert_eq!(db.rows("SELECT s FROM over").await, db.rows("SELECT sum(v)::bigint AS s FROM t").await);
    }
}

/// In a folder the older one must have ended, as two cannot have the lock.
#[tokio::test(flavor = "multi_thread")]
async fn an_engine_takes_over_from_one_that_crashed_and_from_one_that_still_runs() {
    let mut scene = Scene::new();
    let mut db = scene.engine(2);
    db.run(&source_of("events", &scene.broker)).await;
    for i in VIEWS {
        db.run(&format!("CREATE MATERIALIZED VIEW v{i} AS {}", QUERIES[i])).await;
    }
    db.run("CREATE TABLE t (v BIGINT); CREATE MATERIALIZED VIEW over AS SELECT sum(v)::bigint AS s FROM t").await;
    scene.send();
    db.run("INSERT INTO t VALUES (1)").await;
    scene.check(&db, &["1"]).await;
    db.engine.crash().await;
    drop(db);
    scene.send();
    db = scene.engine(3);
    scene.check(&db, &["1"]).await;

    if scene.place.in_bucket {
        // The older one is paused, as it were, with a change under way.
        scene.send();
        let older = std::mem::replace(&mut db, scene.engine(1));
        for sql in ["INSERT INTO t VALUES (1000)", "CREATE TABLE u (v BIGINT)", "UPDATE t SET v = 1000"] {
            assert!(older.try_run(sql).await.is_err(), "{sql} by an engine that was replaced");
        }
        let reason = older.engine.ended().await.expect("a reason");
        assert_eq!(reason, "another process has taken over the data: this one ends");
        assert!(older.try_run("SELECT * FROM t").await.is_err());
        older.stop().await;
    }
    db.run("INSERT INTO t VALUES (2)").await;
    scene.check(&db, &["1", "2"]).await;
    let taken = db.rows("SELECT count(*) FROM riverrun.checkpoints WHERE state = 'failing'").await;
    assert_eq!(taken, ["0"]);
    assert!(db.error("SELECT * FROM u").await.contains("does not exist"));

    db.stop().await;
    drop(db);
    scene.send();
    db = scene.engine(2);
    scene.check(&db, &["1", "2"]).await;
    db.run("DROP MATERIALIZED VIEW v10; DELETE FROM t WHERE v = 1").await;
    db.engine.crash().await;
    drop(db);
    db = scene.engine(2);
    assert!(db.error("SELECT * FROM v10").await.contains("does not exist"));
    assert_eq!(db.rows("SELECT v FROM t").await, ["2"]);
    db.stop().await;

    // A copy of it is another engine's.
    let copy = Place::folder();
    backup(&scene.place.url, &copy.url).expect("copied");
    scene.place = Place::new();
    restore(&copy.url, &scene.place.url).expect("restored");
    let db = scene.engine(1);
    scene.send();
    db.run(&format!("WAIT FOR r; CREATE MATERIALIZED VIEW v10 AS {}; WAIT FOR r", QUERIES[10])).await;
    scene.check(&db, &["2"]).await;
    db.stop().await;
}
