//! A storage that fails, takes its time, tears, loses and damages what it keeps, and crashes as a seed says, below a whole engine: what
//! was acknowledged is there once, what was not is there whole or not at all, nothing damaged is read as good, and when all is well
//! again every view equals its query over the accepted rows. Each start has another number of workers; some sources deduplicate,
//! and ALTER SOURCE changes what is accepted meanwhile.
//!
//! The seed decides what is done and how often calls fail; which call fails depends on the threads, too.
//! `RIVERRUN_ORACLE_SEEDS=FROM..TO` runs other seeds; a failure names its seed.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use futures::future::join_all;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use riverrun::connector::{EmbeddedBroker, Producer};
use riverrun::engine::EngineError;
use riverrun::storage::sim::{Faults, Kind, SimDisk};

use crate::db::Db;
use crate::duplicates::Log;
use crate::oracle::{BY_WATERMARK, FINAL, OVER_VIEWS, QUERIES, over_rows, seeds, tell_progress};

/// Seeds share a broker in groups of this size, and run on so many threads.
const SEEDS_PER_BROKER: u64 = 50;
const THREADS: usize = 4;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

#[test]
fn runs_with_faults_and_crashes_lose_nothing() {
    // RUST_LOG shows what the engine says meanwhile, and what is done to it.
    let shown = tracing_subscriber::EnvFilter::from_default_env();
    let _ = tracing_subscriber::fmt().with_env_filter(shown).with_writer(std::io::stderr).try_init();
    let seeds = seeds(0..200);
    let next = AtomicU64::new(seeds.start);
    let failed = parking_lot::Mutex::new(BTreeSet::new());
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let mut broker = None;
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let (_, broker) = match &mut broker {
                        Some((runs, broker)) if *runs < SEEDS_PER_BROKER => {
                            *runs += 1;
                            (*runs, broker)
                        }
                        other => {
                            let (runs, broker) = other.insert((1, EmbeddedBroker::start().expect("a broker")));
                            (*runs, broker)
                        }
                    };
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("tokio");
                    let run = || runtime.block_on(run(seed, broker));
                    let fails = catch_unwind(AssertUnwindSafe(run)).is_err();
                    let mut failed = failed.lock();
                    if fails {
                        failed.insert(seed);
                    }
                    if fails || seed % 10 == 9 {
                        tell_progress(&format!("seed {seed} of {seeds:?}, failed so far: {failed:?}"));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner();
    assert!(failed.is_empty(), "seeds that failed, each with its message above: {failed:?}");
}

/// The keys of a table with an order among its writes.
type Keyed = BTreeMap<i64, i64>;

struct Run<'a> {
    seed: u64,
    random: StdRng,
    disk: SimDisk,
    broker: &'a EmbeddedBroker,
    log: Log,
    /// An ALTER whose fate is not known, and how many changes were listed before.
    altering: Option<(Alteration, usize)>,
    views: Vec<View>,
    /// Made, and told so.
    made: BTreeSet<String>,
    /// What `t` may hold after a crash: what was acknowledged last, then one more for each change whose fate is not known. A later
    /// change is not there without those before it.
    possible: Vec<Keyed>,
    /// Rows of each statement on `b`.
    acknowledged: BTreeMap<i64, i64>,
    unknown: BTreeMap<i64, i64>,
    statements: i64,
}

#[derive(Debug, Clone, Copy)]
enum Alteration {
    Lateness(i64),
    TakeBack(i64),
}

struct View {
    name: String,
    /// Behind its name.
    with: &'static str,
    sql: String,
    law: Law,
}

/// What a view equals.
enum Law {
    OverRows(String),
    /// Over tables and other views, as they stand.
    Query(String),
    /// Where windows are final.
    Final(String),
}

fn over_rows_of(name: String, query: &str) -> View {
    View { name, with: "", sql: query.to_string(), law: Law::OverRows(query.to_string()) }
}

/// Views that forget. Their conditions are their own, so that no other view is derived from what they leave.
const FORGETTING: [&str; 2] = [
    "SELECT k, window_start, window_end, count(*) AS n, max(v) AS hi FROM HOP(r, ts, INTERVAL '20 seconds', INTERVAL '1 minute') WHERE v <> 100 GROUP BY k, window_start, window_end",
    "SELECT k, window_start, window_end, count(*) AS n, sum(v) AS s FROM SESSION(r, ts, INTERVAL '12 seconds') WHERE v <> 101 GROUP BY k, window_start, window_end",
];

/// Groups of views, of which each run has a few.
fn menu() -> Vec<Vec<View>> {
    let mut menu: Vec<Vec<View>> = Vec::new();
    menu.extend(QUERIES.iter().enumerate().map(|(i, query)| vec![over_rows_of(format!("v{i}"), query)]));
    menu.extend(BY_WATERMARK.iter().enumerate().map(|(i, query)| vec![over_rows_of(format!("t{i}"), query)]));
    let below = [6, 7, 1, 20, 20, 7];
    menu.extend(OVER_VIEWS.iter().enumerate().map(|(i, query)| {
        let below = below[i];
        let query = query.replace("(v6)", "v6");
        let over = View { name: format!("w{i}"), with: "", sql: query.clone(), law: Law::Query(query) };
        vec![over_rows_of(format!("v{below}"), QUERIES[below]), over]
    }));
    let closing = FINAL[0].0;
    let whole = closing.strip_suffix(" EMIT ON WINDOW CLOSE").expect("a view of final windows");
    for _ in 0..6 {
        let sum = FINAL[1].0;
        menu.push(vec![
            View { name: "c0".into(), with: "", sql: closing.into(), law: Law::Final(whole.into()) },
            View { name: "c1".into(), with: "", sql: sum.into(), law: Law::Query(sum.into()) },
        ]);
    }
    for (i, query) in FORGETTING.iter().enumerate() {
        // What is kept is longer than any lateness.
        let shown = "(window_end > watermark('r') - INTERVAL '2 minutes') IS NOT FALSE";
        let law = Law::OverRows(format!("SELECT * FROM ({query}) WHERE {shown}"));
        let with = " WITH (retention = '2 minutes')";
        menu.push(vec![View { name: format!("p{i}"), with, sql: query.to_string(), law }]);
    }
    menu
}

/// Over the tables.
const OF_TABLES: [&str; 5] = [
    "SELECT count(*) AS keys, sum(n) AS n FROM t",
    "SELECT k, n FROM t ORDER BY n DESC, k LIMIT 3",
    "SELECT k % 3 AS m, max(n) AS hi, min(n) AS lo FROM t GROUP BY k % 3",
    "SELECT statement, count(*) AS rows, sum(row) AS s FROM b GROUP BY statement",
    "SELECT DISTINCT statement % 2 AS odd FROM b",
];

async fn run(seed: u64, broker: &EmbeddedBroker) {
    let mut random = StdRng::seed_from_u64(seed);
    let producer = Producer::new(&broker.servers(), &[]).expect("a producer");
    let mut log = Log::new(&mut random);
    log.deduplicates = random.random_bool(0.4);
    broker.create_topic(&topic_of(seed), log.partitions).expect("a topic");
    let kind = if random.random_bool(0.5) { Kind::Local } else { Kind::Bucket };
    let mut menu = menu();
    let mut views: Vec<View> = Vec::new();
    for _ in 0..random.random_range(1..5) {
        let chosen = menu.swap_remove(random.random_range(0..menu.len()));
        for view in chosen {
            if views.iter().all(|known| known.name != view.name) {
                views.push(view);
            }
        }
    }
    let of_tables = random.random_range(0..OF_TABLES.len());
    let query = OF_TABLES[of_tables];
    views.push(View { name: format!("x{of_tables}"), with: "", sql: query.into(), law: Law::Query(query.into()) });
    let mut run = Run {
        seed,
        random,
        disk: SimDisk::new(kind, seed),
        broker,
        log,
        altering: None,
        views,
        made: BTreeSet::new(),
        possible: vec![Keyed::new()],
        acknowledged: BTreeMap::new(),
        unknown: BTreeMap::new(),
        statements: 0,
    };
    run.catch_up(&producer).await;
}

fn topic_of(seed: u64) -> String {
    format!("faults{seed}")
}

impl Run<'_> {
    async fn catch_up(&mut self, producer: &Producer) {
        let mut db = self.started().await;
        for _ in 0..self.random.random_range(3..6) {
            self.fail_as_chance_wills();
            self.log.send(producer, &topic_of(self.seed), &mut self.random);
            let crashes = self.random.random_bool(0.6);
            if crashes {
                if self.random.random_bool(0.3) {
                    self.disk.tear_manifest();
                }
                if self.random.random_bool(0.7) {
                    self.disk.crash_in(self.random.random_range(1..30));
                }
                let (disk, before) = (self.disk.clone(), self.disk.crashes());
                let engine = db.engine.clone();
                let crashing = async move {
                    tokio::task::spawn_blocking(move || disk.wait_for_crash_after(before)).await.expect("a crash");
                    engine.crash().await;
                };
                let disk = self.disk.clone();
                let working = async {
                    self.work(&db).await;
                    if disk.crashes() == before {
                        disk.crash();
                    }
                };
                tokio::join!(working, crashing);
            } else {
                self.work(&db).await;
                if self.random.random_bool(0.5) {
                    self.check(&db).await;
                    continue;
                }
                db.stop().await;
            }
            drop(db);
            if self.random.random_bool(0.3) {
                self.look_at_damage().await;
            }
            db = self.started().await;
        }
        self.disk.set_faults(Faults::default());
        self.make_all(&db).await;
        self.wait_and_check(&db).await;
        self.disk.crash();
        db.engine.crash().await;
        drop(db);
        let db = self.started().await;
        self.wait_and_check(&db).await;
        db.stop().await;
    }

    fn fail_as_chance_wills(&mut self) {
        let most = *[0.0, 0.05, 0.2].choose(&mut self.random).expect("one of them");
        let faults = Faults {
            before: self.random.random_range(0.0..=most),
            after: self.random.random_range(0.0..=most),
            late: self.random.random_range(0.0..=most),
            delay: *[0, 0, 5, 100].choose(&mut self.random).expect("one of them"),
        };
        self.disk.set_faults(faults);
    }

    /// The next process, which may itself fail or crash while it starts.
    async fn started(&mut self) -> Db {
        let mut tries = 0;
        let db = loop {
            tries += 1;
            if tries > 20 {
                self.disk.set_faults(Faults::default());
            } else if self.random.random_bool(0.1) {
                self.disk.crash_in(self.random.random_range(1..15));
            }
            let workers = self.random.random_range(1..4);
            tracing::info!(self.seed, workers, "starts");
            match Db::start_on(workers, self.disk.process()) {
                Ok(db) => break db,
                Err(error) => {
                    let error = error.to_string();
                    assert!(error.contains("simulated"), "seed {}: no start: {error}", self.seed);
                    assert!(tries < 30, "seed {}: no start: {error}", self.seed);
                    // Its threads may hold the lock for a moment yet.
                    self.disk.crash();
                }
            }
        };
        // What was armed for the start only may still be.
        self.disk.crash_in(u64::MAX);
        self.check_after_start(&db).await;
        db
    }

    /// A process that begins while a file is cut short or has another bit: what is damaged is said to be, and what can be read is right;
    /// or all that can be is made anew.
    async fn look_at_damage(&mut self) {
        self.disk.set_faults(Faults::default());
        // A manifest that was whole and is no longer would take with it what was acknowledged.
        let files: Vec<String> = self.disk.names().into_iter().filter(|name| !name.starts_with("manifest/")).collect();
        let Some(file) = files.choose(&mut self.random).cloned() else { return };
        let (cut, at) = (self.random.random_bool(0.5), self.random.random_range(0.0..1.0));
        let mut whole = Vec::new();
        self.disk.damage(&file, |bytes| {
            whole.clone_from(bytes);
            let at = (bytes.len() as f64 * at) as usize;
            match bytes.get_mut(at) {
                Some(_) if cut => bytes.truncate(at),
                Some(byte) => *byte ^= 1 << (at % 8),
                None => {}
            }
        });
        tracing::info!(self.seed, file, cut, at, "damages");
        let told = |error: &str| error.contains(&file) && error.contains("is damaged");
        let rebuild_damaged = self.random.random_bool(0.5);
        let workers = self.random.random_range(1..4);
        match Db::start_on_damaged(workers, self.disk.process(), rebuild_damaged) {
            Err(error) => assert!(told(&error.to_string()), "seed {}: {file} is damaged: {error}", self.seed),
            Ok(db) => {
                self.check_after_start(&db).await;
                let mut rests = false;
                // With other workers all slices are written anew, and the source rests until that one can be read.
                if self.exists(&db, "r")
                    && let Err(error) = db.try_run("WAIT FOR r").await
                {
                    let message = db.rows("SELECT message FROM riverrun.sources WHERE state = 'resting'").await;
                    assert!(!rebuild_damaged, "seed {}: {file} is damaged, and not made anew: {error}", self.seed);
                    assert!(message.iter().any(|message| told(message)), "seed {}: {error}, {message:?}", self.seed);
                    rests = true;
                }
                for view in self.views.iter().filter(|view| self.exists(&db, &view.name)) {
                    // What was not read yet is in no view.
                    let outcome = match rests {
                        true => lines(&db, &format!("SELECT * FROM {}", view.name)).await.map(drop),
                        false => self.check_view(&db, view).await,
                    };
                    if let Err(error) = outcome {
                        assert!(!rebuild_damaged, "seed {}: {file} is damaged, and not made anew: {error}", self.seed);
                        assert!(told(&error.to_string()), "seed {}: {}: {error}", self.seed, view.name);
                    }
                }
                db.engine.crash().await;
            }
        }
        self.disk.crash();
        self.disk.damage(&file, |bytes| *bytes = whole);
    }

    /// What statements were told must be so.
    async fn check_after_start(&mut self, db: &Db) {
        let seed = self.seed;
        if let Some((alteration, before)) = self.altering.take()
            && self.changes(db).await.expect("it has just begun") > before
        {
            self.altered(alteration);
        }
        let catalog = db.engine.catalog();
        let there: BTreeSet<String> = catalog.objects("dev").map(|object| object.name.clone()).collect();
        for name in &self.made {
            assert!(there.contains(name), "seed {seed}: {name} was made, and is not there");
        }
        if there.contains("t") {
            let kept = keyed(&db.rows("SELECT k, n FROM t").await);
            assert!(self.possible.contains(&kept), "seed {seed}: t is {kept:?}, possible are {:?}", self.possible);
            self.possible = vec![kept];
        }
        if there.contains("b") {
            let kept = keyed(&db.rows("SELECT statement, count(*) FROM b GROUP BY statement").await);
            let twice = db.rows("SELECT statement, row FROM b GROUP BY statement, row HAVING count(*) > 1").await;
            assert!(twice.is_empty(), "seed {seed}: rows of b are there twice: {twice:?}");
            for (statement, rows) in &self.acknowledged {
                assert_eq!(kept.get(statement), Some(rows), "seed {seed}: statement {statement} was acknowledged");
            }
            for (statement, rows) in &kept {
                let told = self.acknowledged.get(statement).or(self.unknown.get(statement));
                assert_eq!(told, Some(rows), "seed {seed}: statement {statement} is there in part, or was refused");
            }
            self.acknowledged = kept;
            self.unknown.clear();
        }
    }

    async fn work(&mut self, db: &Db) {
        for (name, sql) in [
            ("t", "CREATE TABLE t (k BIGINT PRIMARY KEY, n BIGINT) ON CONFLICT OVERWRITE"),
            ("b", "CREATE TABLE b (statement BIGINT, row BIGINT)"),
        ] {
            self.make(db, name, sql).await;
        }
        for _ in 0..self.random.random_range(1..5) {
            match self.random.random_range(0..9) {
                0 | 1 => self.make_next(db).await,
                2 | 3 => self.burst(db).await,
                4 | 5 => self.try_to_wait(db).await,
                6 => self.alter(db).await,
                _ => self.change(db).await,
            }
        }
    }

    fn exists(&self, db: &Db, name: &str) -> bool {
        db.engine.catalog().objects("dev").any(|object| object.name == name)
    }

    /// CREATE, which may be refused, or fail with the engine.
    async fn make(&mut self, db: &Db, name: &str, sql: &str) -> bool {
        if self.exists(db, name) {
            return true;
        }
        let outcome = db.try_run(sql).await;
        tracing::info!(self.seed, name, error = outcome.as_ref().err().map(ToString::to_string), "made");
        match outcome {
            Ok(_) => {
                self.made.insert(name.to_string());
                true
            }
            Err(error) => {
                // Or it could not read what it is to stand on, and was never made.
                let unread = error.to_string().contains("simulated");
                assert!(may_fail(&*error) || unread, "seed {}: {error}\n{sql}", self.seed);
                false
            }
        }
    }

    /// The next object that is not there yet.
    async fn make_next(&mut self, db: &Db) {
        let source = self.log.create(&topic_of(self.seed), &self.broker.servers());
        if !self.make(db, "r", &source).await || !self.exists(db, "t") || !self.exists(db, "b") {
            return;
        }
        let create = |View { name, with, sql, .. }: &View| format!("CREATE MATERIALIZED VIEW {name}{with} AS {sql}");
        let next = self.views.iter().find(|view| !self.exists(db, &view.name));
        if let Some((name, create)) = next.map(|view| (view.name.clone(), create(view))) {
            self.make(db, &name, &create).await;
        }
    }

    async fn make_all(&mut self, db: &Db) {
        self.work(db).await;
        while !self.views.iter().all(|view| self.exists(db, &view.name)) {
            self.make_next(db).await;
        }
    }

    async fn changes(&self, db: &Db) -> Outcome<usize> {
        Ok(lines(db, "SELECT source FROM riverrun.source_changes").await?.len())
    }

    fn altered(&mut self, alteration: Alteration) {
        tracing::info!(self.seed, ?alteration, "has altered");
        match alteration {
            Alteration::Lateness(us) => self.log.set_lateness(us),
            Alteration::TakeBack(to_us) => self.log.take_back(to_us),
        }
    }

    /// Other lateness, or a watermark that is taken back, once all that was sent has been read.
    async fn alter(&mut self, db: &Db) {
        let is_read = "SELECT state FROM riverrun.sources WHERE state <> 'idle'";
        let is_read = lines(db, is_read).await.is_ok_and(|sources| !sources.is_empty());
        if !is_read || db.try_run("WAIT FOR r").await.is_err() {
            return;
        }
        let Ok(before) = self.changes(db).await else { return };
        // What a watermark that moved on has let go for good does not come back.
        let keeps = |view: &View| !view.sql.contains("watermark(") && view.with.is_empty();
        let furthest_us = self.log.furthest_us().filter(|_| self.views.iter().all(keeps));
        let (alteration, sql) = match furthest_us.filter(|_| self.random.random_bool(0.4)) {
            Some(us) => {
                let to_us = us - self.random.random_range(0..90) * 1_000_000;
                let to =
                    chrono::DateTime::from_timestamp_micros(to_us).expect("a moment").format("%Y-%m-%d %H:%M:%S%.6f");
                (Alteration::TakeBack(to_us), format!("ALTER SOURCE r RESET WATERMARK TO '{to}'"))
            }
            None => {
                let seconds = self.random.random_range(0..80);
                (
                    Alteration::Lateness(seconds * 1_000_000),
                    format!("ALTER SOURCE r SET (allowed_lateness = '{seconds} seconds')"),
                )
            }
        };
        match db.try_run(&sql).await {
            Ok(_) => self.altered(alteration),
            Err(error) => match error.downcast_ref::<EngineError>() {
                Some(EngineError::Storage { .. }) => {}
                Some(EngineError::Stopped | EngineError::Unknown { .. }) => self.altering = Some((alteration, before)),
                _ => panic!("seed {}: {error}\n{sql}", self.seed),
            },
        }
    }

    async fn try_to_wait(&mut self, db: &Db) {
        if self.exists(db, "r")
            && let Err(error) = db.try_run("WAIT FOR r").await
        {
            assert!(may_fail(&*error), "seed {}: WAIT FOR r: {error}", self.seed);
        }
    }

    /// One change of `t`, whose writes have an order.
    async fn change(&mut self, db: &Db) {
        if !self.exists(db, "t") {
            return;
        }
        let mut next = self.possible.last().expect("one at least").clone();
        let k = self.random.random_range(0..6);
        let sql = match self.random.random_range(0..4) {
            0 => {
                next.remove(&k);
                format!("DELETE FROM t WHERE k = {k}")
            }
            1 => {
                next.iter_mut().filter(|(other, _)| **other >= k).for_each(|(_, n)| *n += 1000);
                format!("UPDATE t SET n = n + 1000 WHERE k >= {k}")
            }
            _ => {
                self.statements += 1;
                let n = self.statements;
                next.extend((k..k + 3).map(|k| (k, n)));
                format!("INSERT INTO t VALUES ({k}, {n}), ({}, {n}), ({}, {n})", k + 1, k + 2)
            }
        };
        match written(db.try_run(&sql).await) {
            Written::Acknowledged => self.possible = vec![next],
            Written::Refused => {}
            Written::Unknown => self.possible.push(next),
            Written::Failed(error) => panic!("seed {}: {error}\n{sql}", self.seed),
        }
    }

    /// Several writers at once.
    async fn burst(&mut self, db: &Db) {
        if !self.exists(db, "b") {
            return;
        }
        let writers = (0..self.random.random_range(1..5)).map(|_| {
            self.statements += 1;
            (self.statements, self.random.random_range(1..4))
        });
        let writers: Vec<(i64, i64)> = writers.collect();
        let all = join_all(writers.iter().map(|(statement, rows)| async move {
            let rows: Vec<String> = (0..*rows).map(|row| format!("({statement}, {row})")).collect();
            db.try_run(&format!("INSERT INTO b VALUES {}", rows.join(", "))).await
        }));
        for ((statement, rows), outcome) in writers.iter().zip(all.await) {
            match written(outcome) {
                Written::Acknowledged => drop(self.acknowledged.insert(*statement, *rows)),
                Written::Refused => {}
                Written::Unknown => drop(self.unknown.insert(*statement, *rows)),
                Written::Failed(error) => panic!("seed {}: {error}", self.seed),
            }
        }
    }

    /// While reading from the storage may fail: what can be read is right.
    async fn check(&mut self, db: &Db) {
        if self.exists(db, "t") {
            let kept = keyed(&db.rows("SELECT k, n FROM t").await);
            assert_eq!(Some(&kept), self.possible.last(), "seed {}: t", self.seed);
        }
        if !self.exists(db, "r") {
            return;
        }
        db.run("WAIT FOR r").await;
        tracing::info!(self.seed, sent = self.log.counts().0, "checks");
        for view in &self.views {
            if self.exists(db, &view.name)
                && let Err(error) = self.check_view(db, view).await
            {
                let text = error.to_string();
                assert!(text.contains("simulated"), "seed {}: {}: {text}", self.seed, view.name);
            }
        }
    }

    async fn wait_and_check(&mut self, db: &Db) {
        let seed = self.seed;
        db.run("WAIT FOR r").await;
        let (sent, in_time) = self.log.counts();
        tracing::info!(self.seed, sent, "checks everything");
        let counts = "SELECT sum(read), sum(accepted), sum(duplicate), sum(read - accepted - late - duplicate - dead - skipped) \
                      FROM riverrun.source_partitions";
        let rows = self.log.rows().len();
        let told = format!("{sent}|{rows}|{}|0", in_time - rows);
        let read = db.rows("SELECT state FROM riverrun.sources").await;
        if read != ["idle"] {
            assert_eq!(db.rows(counts).await, [told], "seed {seed}: counts");
        }
        for view in &self.views {
            let outcome = self.check_view(db, view).await;
            outcome.unwrap_or_else(|error| panic!("seed {seed}: {}: {error}\n{}", view.name, view.sql));
        }
    }

    /// Errors are those of reading the view.
    async fn check_view(&self, db: &Db, view: &View) -> Outcome<()> {
        let View { name, sql, law, .. } = view;
        let rows = self.log.rows();
        let (kept, right) = match law {
            Law::OverRows(query) => {
                let kept = lines(db, &format!("SELECT * FROM {name}")).await?;
                (kept, over_rows(db, query, &rows).await)
            }
            Law::Query(query) => (lines(db, &format!("SELECT * FROM {name}")).await?, lines(db, query).await?),
            Law::Final(query) => {
                let until = lines(db, &format!("SELECT final_window_end('{name}')::text")).await?.remove(0);
                let until = if until == "NULL" { "NULL".into() } else { format!("'{until}'") };
                let of = |what: &str| format!("SELECT * FROM {what} WHERE window_end <= {until}::timestamptz");
                let kept = lines(db, &of(name)).await?;
                (kept, over_rows(db, &of(&format!("({query})")), &rows).await)
            }
        };
        assert_eq!(kept, right, "seed {}: {name}\n{sql}", self.seed);
        Ok(())
    }
}

async fn lines(db: &Db, sql: &str) -> Outcome<Vec<String>> {
    Ok(crate::db::lines(&db.try_run(sql).await?))
}

fn keyed(lines: &[String]) -> Keyed {
    let number = |text: &str| text.parse::<i64>().expect("a number");
    lines.iter().filter_map(|line| line.split_once('|')).map(|(k, n)| (number(k), number(n))).collect()
}

enum Written {
    Acknowledged,
    Refused,
    /// There or not, as a whole.
    Unknown,
    Failed(String),
}

fn written<T>(outcome: Outcome<T>) -> Written {
    let Err(error) = outcome else { return Written::Acknowledged };
    match error.downcast_ref::<EngineError>() {
        Some(EngineError::Storage { .. }) => Written::Refused,
        Some(EngineError::Unknown { .. } | EngineError::Stopped) => Written::Unknown,
        _ => Written::Failed(error.to_string()),
    }
}

fn may_fail(error: &(dyn std::error::Error + 'static)) -> bool {
    matches!(error.downcast_ref::<EngineError>(), Some(EngineError::Storage { .. } | EngineError::Stopped))
}
