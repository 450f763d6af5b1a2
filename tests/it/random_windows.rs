//! Random views over random streams: after every few steps each view equals the batch engine's answer on the rows accepted so
//! far, and these are what a naive reading of the partitions' logs comes to. The same logs in other batches, interleaved
//! otherwise and read by other numbers of workers, end in the same views. Engines are crashed or stopped between steps, and
//! started with other numbers of workers.
//!
//! Where partitions fall idle, what is accepted depends on when they do: there the rows are what a view of all rows holds.
//!
//! A case is one definition on one stream; all of a seed share a stream and an engine, and so stores. A case that fails is tried
//! alone and made smaller, step by step, row by row, call by call, as long as it fails.
//! `RIVERRUN_ORACLE_SEEDS=FROM..TO` runs other seeds, [`VIEWS`] cases each.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float64Type};
use datafusion::datasource::MemTable;
use futures::FutureExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use riverrun::catalog::ObjectKind;
use riverrun::connector::{EmbeddedBroker, Producer};
use riverrun::planner;
use riverrun::sql::{self, Name, Statement};
use riverrun::storage::sim::{Kind as SimKind, SimDisk};

use crate::db::Db;
use crate::oracle::{seeds, tell_progress};
use crate::random_streams::{Kind, Step, Stream, batch};
use crate::random_views::View;

/// How many views a seed has.
const VIEWS: usize = 40;

/// What is tried when a case is made smaller, at most; a try counts by its views.
const MOST_TRIES: usize = 600;

#[derive(Clone)]
struct Case {
    stream: Stream,
    views: Vec<View>,
    workers: usize,
    /// How many steps there have been when the views are created.
    created_after: usize,
    restarts: Vec<Restart>,
}

#[derive(Debug, Clone, Copy)]
struct Restart {
    after: usize,
    workers: usize,
    crashes: bool,
}

/// The engine of a case, and what outlives it.
struct Running {
    db: Option<Db>,
    disk: SimDisk,
}

impl Running {
    fn db(&self) -> &Db {
        self.db.as_ref().expect("it runs but while it is started again")
    }

    async fn restart(&mut self, restart: Restart) {
        let db = self.db.take().expect("it runs");
        match restart.crashes {
            true => db.engine.crash().await,
            false => db.stop().await,
        }
        drop(db);
        if restart.crashes {
            self.disk.crash();
        }
        self.db = Some(Db::start_on(restart.workers, self.disk.process()).expect("an engine again"));
    }
}

/// A view that is not what it should be.
struct Failure {
    view: Option<usize>,
    kind: &'static str,
    said: String,
}

impl Failure {
    fn is_like(&self, other: &Failure) -> bool {
        self.kind == other.kind && (self.kind != "refused" || self.said == other.said)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let view = self.view.map_or(String::new(), |view| format!("v{view} "));
        write!(f, "{view}{}: {}", self.kind, self.said)
    }
}

/// A row: what is compared as text, and floats.
#[derive(Debug, Clone, PartialEq, PartialOrd)]
struct Line(String, Vec<Option<f64>>);

fn as_lines(batches: &[RecordBatch]) -> Vec<Line> {
    let mut all = Vec::new();
    for batch in batches {
        let (floats, others): (Vec<usize>, Vec<usize>) =
            (0..batch.num_columns()).partition(|&i| batch.column(i).data_type() == &DataType::Float64);
        let others = batch.project(&others).expect("columns");
        let options = arrow::util::display::FormatOptions::default().with_null("NULL");
        let texts: Vec<_> = others
            .columns()
            .iter()
            .map(|c| arrow::util::display::ArrayFormatter::try_new(c, &options).expect("a printable column"))
            .collect();
        for row in 0..batch.num_rows() {
            let text: Vec<String> = texts.iter().map(|column| column.value(row).to_string()).collect();
            let float = |&i: &usize| {
                let column = batch.column(i).as_primitive::<Float64Type>();
                column.is_valid(row).then(|| column.value(row))
            };
            all.push(Line(text.join("|"), floats.iter().map(float).collect()));
        }
    }
    all.sort_by(|a, b| a.partial_cmp(b).expect("no NaN among them"));
    all
}

/// Floats are added in another order by the batch engine.
fn equal(a: &[Line], b: &[Line]) -> bool {
    let near = |(a, b): (&Option<f64>, &Option<f64>)| match (a, b) {
        (Some(a), Some(b)) => (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1.0),
        _ => a == b,
    };
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.0 == b.0 && a.1.iter().zip(&b.1).all(near))
}

fn difference(kept: &[Line], right: &[Line]) -> String {
    let only = |these: &[Line], those: &[Line]| {
        let one = |line: &Line| {
            let alone = std::slice::from_ref(line);
            !those.iter().any(|that| equal(alone, std::slice::from_ref(that)))
        };
        let list = these.iter().filter(|line| one(line)).take(8);
        list.map(|line| format!("\n    {} {:?}", line.0, line.1)).collect::<String>()
    };
    format!(
        "{} rows instead of {}; wrong:{}\n  missing:{}",
        kept.len(),
        right.len(),
        only(kept, right),
        only(right, kept)
    )
}

/// A broker that all cases of a run share; each has a topic of its own.
struct Logs {
    broker: EmbeddedBroker,
    producer: Producer,
    topics: AtomicU64,
}

impl Logs {
    fn start() -> Logs {
        let broker = EmbeddedBroker::start().expect("a broker");
        let producer = Producer::new(&broker.servers(), &[]).expect("a producer");
        Logs { broker, producer, topics: AtomicU64::new(0) }
    }

    fn topic(&self, partitions: usize) -> String {
        let topic = format!("random{}", self.topics.fetch_add(1, Ordering::Relaxed));
        self.broker.create_topic(&topic, partitions as i32).expect("a topic");
        topic
    }
}

async fn apply(db: &Db, stream: &Stream, step: &Step, logs: &Logs, topic: &str) {
    match step {
        Step::Change(statement) => drop(db.run(statement).await),
        Step::Rows(rows) if stream.kind == Kind::Source => {
            for row in rows {
                let json = stream.json(row);
                let partition = Some(row.partition as i32);
                let value = json.as_ref().map(String::as_bytes);
                logs.producer.send(topic, partition, None, value, 0).expect("a record sent");
            }
            logs.producer.flush(Duration::from_secs(30)).expect("everything delivered");
        }
        Step::Rows(rows) => drop(db.run(&stream.insert(rows)).await),
    }
}

/// What each view shows in the end. `reference` is what it should show then, if not what the batch engine says.
async fn run(case: &Case, logs: &Logs, reference: Option<&[Vec<Line>]>) -> Result<Vec<Vec<Line>>, Failure> {
    let stream = &case.stream;
    let topic = if stream.kind == Kind::Source { logs.topic(stream.partitions) } else { String::new() };
    let disk = SimDisk::new(SimKind::Local, 0);
    let db = match case.restarts.is_empty() {
        true => Db::start(case.workers),
        false => Db::start_on(case.workers, disk.process()).expect("an engine"),
    };
    let mut running = Running { db: Some(db), disk };
    let shown = AssertUnwindSafe(steps(case, &mut running, logs, &topic, reference)).catch_unwind().await;
    if let Some(db) = running.db {
        db.stop().await;
    }
    shown.unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().cloned();
        Err(Failure { view: None, kind: "panics", said: said.unwrap_or("see above".into()) })
    })
}

async fn steps(
    case: &Case,
    running: &mut Running,
    logs: &Logs,
    topic: &str,
    reference: Option<&[Vec<Line>]>,
) -> Result<Vec<Vec<Line>>, Failure> {
    let stream = &case.stream;
    running.db().run(&stream.create(topic, &logs.broker.servers())).await;
    if stream.idle {
        running.db().run(View::ALL).await;
    }
    let mut shown = Vec::new();
    let last = stream.steps.len();
    let created_after = case.created_after.min(last);
    for at in 0..=last {
        if at > 0 {
            apply(running.db(), stream, &stream.steps[at - 1], logs, topic).await;
        }
        if at == created_after {
            create_views(case, running.db()).await?;
        }
        if at >= created_after && (reference.is_none() || at == last) {
            shown = compare(case, running.db(), at, reference).await?;
        }
        for restart in case.restarts.iter().filter(|restart| restart.after == at) {
            running.restart(*restart).await;
            if at >= created_after && (reference.is_none() || at == last) {
                shown = compare(case, running.db(), at, reference).await?;
            }
        }
    }
    Ok(shown)
}

async fn create_views(case: &Case, db: &Db) -> Result<(), Failure> {
    for (i, view) in case.views.iter().enumerate() {
        let made = match db.try_run(&view.create(i)).await {
            // No store to be had.
            Err(error) if view.store == Some("shared") && error.to_string().contains("store") => {
                db.try_run(&view.in_any_store().create(i)).await
            }
            // It is not read from the slices of the view beneath.
            Err(error) if view.closes_below() && error.to_string().starts_with("EMIT ON WINDOW CLOSE") => {
                db.try_run(&view.without_emit().create(i)).await
            }
            made => made,
        };
        made.map_err(|error| Failure { view: Some(i), kind: "refused", said: error.to_string() })?;
    }
    Ok(())
}

/// Until everything has been read and, where partitions fall idle, all of them have: then the watermark stands.
async fn settle(stream: &Stream, db: &Db) {
    db.run("WAIT FOR r").await;
    let all_idle = "SELECT bool_and(idle) FROM riverrun.source_partitions";
    while stream.idle && db.rows(all_idle).await != ["true"] {}
}

async fn compare(case: &Case, db: &Db, at: usize, reference: Option<&[Vec<Line>]>) -> Result<Vec<Vec<Line>>, Failure> {
    let stream = &case.stream;
    let judged = stream.judged(at);
    let object = db.engine.catalog().resolve(&Name(vec!["r".into()]), &db.names).expect("r");
    let mut counting = vec![batch(&judged.counting, &object.columns)];
    let (mut watermark_us, mut final_until_us) = (judged.watermark_us, judged.final_until_us());
    if stream.kind == Kind::Source {
        settle(stream, db).await;
        let sent = stream.sent(at);
        let counts = "SELECT sum(read)::bigint, sum(read - accepted - late - duplicate - dead - skipped)::bigint, \
                      sum(dead)::bigint, sum(skipped)::bigint FROM riverrun.source_partitions";
        expect_line(&db.rows(counts).await, &format!("{sent}|0|{}|{}", judged.dead, judged.skipped), "counts")?;
        let counts = "SELECT sum(accepted)::bigint, sum(accepted + duplicate)::bigint FROM riverrun.source_partitions";
        let counts = db.rows(counts).await;
        if stream.idle {
            counting = db.run("SELECT * FROM accepted").await;
            let rows: usize = counting.iter().map(RecordBatch::num_rows).sum();
            let (counted, in_time) = counts[0].split_once('|').expect("two counts");
            expect_line(&[counted.to_string()], &rows.to_string(), "counts")?;
            // Being idle raises watermarks and lowers none.
            if in_time.parse::<usize>().expect("a count") > judged.accepted {
                let said = format!("{in_time} in time, where none is idle {}", judged.accepted);
                return Err(Failure { view: None, kind: "counts", said });
            }
            let micros = "SELECT (extract(epoch FROM watermark('r')) * 1000000)::bigint";
            watermark_us = db.rows(micros).await[0].parse().ok();
            final_until_us = watermark_us.map(|us| us - judged.lateness_us);
        } else {
            expect_line(&counts, &format!("{}|{}", judged.counting.len(), judged.accepted), "counts")?;
        }
    }
    if stream.kind == Kind::AppendOnly {
        expect_line(&db.rows("SELECT count(*) FROM r").await, &judged.counting.len().to_string(), "accepted")?;
    }
    let rows = MemTable::try_new(object.columns.clone(), vec![counting]);
    let rows = Arc::new(rows.expect("a table"));
    let mut shown = Vec::new();
    for (i, view) in case.views.iter().enumerate() {
        let failure = |kind, said| Failure { view: Some(i), kind, said: format!("after {at} steps: {said}") };
        if view.every || view.over.is_some_and(|over| case.views[over].every) {
            db.try_run(&format!("WAIT FOR v{i}")).await.map_err(|e| failure("does not emit", e.to_string()))?;
        }
        let kept =
            db.try_run(&format!("SELECT * FROM v{i}")).await.map_err(|e| failure("unreadable", e.to_string()))?;
        let kept = as_lines(&kept);
        let right = match reference {
            Some(reference) => reference[i].clone(),
            None => {
                let query = shown_of(case, db, i, watermark_us, final_until_us).await?;
                let instead = (stream.kind != Kind::Table && view.over.is_none()).then_some((object.oid, &rows));
                match answer(db, &query, instead).await {
                    Ok(answer) => as_lines(&answer),
                    // It scales what it averages by more digits than fit.
                    Err(error) if error.to_string().contains("Overflow in AvgAccumulator") => kept.clone(),
                    Err(error) => return Err(failure("batch engine", error.to_string())),
                }
            }
        };
        if !equal(&kept, &right) {
            return Err(failure("differs", difference(&kept, &right)));
        }
        shown.push(kept);
    }
    Ok(shown)
}

/// The query of a view, without the windows that it does not show.
async fn shown_of(
    case: &Case,
    db: &Db,
    i: usize,
    watermark_us: Option<i64>,
    final_until_us: Option<i64>,
) -> Result<String, Failure> {
    let (stream, view) = (&case.stream, &case.views[i]);
    let mut query = view.query();
    if view.over.is_some() {
        let object = db.engine.catalog().resolve(&Name(vec![format!("v{i}")]), &db.names).expect("a view");
        if matches!(&object.kind, ObjectKind::MaterializedView(view) if view.emit_on_window_close) {
            let until = db.rows(&format!("SELECT final_window_end('v{i}')::text")).await.remove(0);
            let until = if until == "NULL" { until } else { format!("'{until}'") };
            query = format!("SELECT * FROM ({query}) WHERE window_end <= {until}");
        }
        return Ok(query);
    }
    if let Some((closes, forgotten_us)) = view.shown(watermark_us, final_until_us) {
        let mut conditions = Vec::new();
        if closes {
            conditions.push(format!("window_end <= {}", stream.bound(final_until_us)));
        }
        if let Some(us) = forgotten_us {
            conditions.push(format!("window_end > {}", stream.bound(Some(us))));
        }
        if !conditions.is_empty() {
            query = format!("SELECT * FROM ({query}) WHERE {}", conditions.join(" AND "));
        }
    }
    let complete = format!(
        "SELECT (extract(epoch FROM complete_from) * 1000000)::bigint FROM riverrun.materialized_views WHERE name = 'v{i}'"
    );
    let complete_us = db.rows(&complete).await;
    // A temporal filter says itself what is let go.
    if complete_us != ["NULL"] && !view.is_temporal() {
        let told = || format!("complete from {complete_us:?}");
        // Only what others let go may be missing.
        if !stream.forgets || !view.shows_bounds() {
            return Err(Failure { view: Some(i), kind: "incomplete", said: told() });
        }
        let from = stream.bound(complete_us[0].parse().ok());
        query = format!("SELECT * FROM ({query}) WHERE window_start >= {from}");
    }
    Ok(query)
}

fn expect_line(said: &[String], right: &str, kind: &'static str) -> Result<(), Failure> {
    match said == [right] {
        true => Ok(()),
        false => Err(Failure { view: None, kind, said: format!("{said:?} instead of {right}") }),
    }
}

/// The batch engine's answer, over other rows in the place of an object's.
async fn answer(
    db: &Db,
    text: &str,
    instead: Option<(u32, &Arc<MemTable>)>,
) -> Result<Vec<RecordBatch>, Box<dyn std::error::Error>> {
    let parsed = sql::parse(text)?.remove(0);
    let Statement::Query(query) = &parsed.statement else { panic!("not a query: {text}") };
    let instead: HashMap<_, _> = instead.into_iter().map(|(oid, rows)| (oid, Arc::clone(rows) as _)).collect();
    let reads = db.reads(&parsed.statement, instead).await?;
    let plan = planner::plan_query(query, &reads, &[]).await?;
    Ok(planner::session(&reads)?.execute_logical_plan(plan).await?.collect().await?)
}

impl Case {
    fn random(seed: u64) -> (Case, StdRng) {
        let mut random = StdRng::seed_from_u64(seed);
        let stream = Stream::random(&mut random);
        let mut views: Vec<View> = Vec::new();
        for i in 0..VIEWS {
            let first: Vec<usize> = (0..i).filter(|&i| views[i].may_be_beneath()).collect();
            let over = first.choose(&mut random).copied().filter(|_| random.random_bool(0.3));
            views.push(match over {
                Some(over) => views[over].random_over(over, &mut random, &stream),
                None => View::random(&mut random, &stream),
            });
        }
        let created_after = random.random_range(0..stream.steps.len());
        let restarts = if random.random_bool(0.35) { random_restarts(&stream, &mut random) } else { Vec::new() };
        (Case { workers: random.random_range(1..4), stream, views, created_after, restarts }, random)
    }

    /// The view and what it is over.
    fn alone(&self, view: usize) -> Case {
        self.keeping(|i| i == view)
    }

    /// Of its views those that are chosen, and what they are over.
    fn keeping(&self, chosen: impl Fn(usize) -> bool) -> Case {
        let mut kept: BTreeSet<usize> = (0..self.views.len()).filter(|&i| chosen(i)).collect();
        let beneath: Vec<usize> = kept.iter().filter_map(|&i| self.views[i].over).collect();
        kept.extend(beneath);
        let number = |old: usize| kept.iter().take_while(|&&i| i < old).count();
        let views = kept.iter().map(|&i| self.views[i].over_another(self.views[i].over.map(number)));
        Case { views: views.collect(), ..self.clone() }
    }

    fn simpler(&self) -> Vec<Case> {
        let mut cases = Vec::new();
        // Halves, quarters, ... single views.
        let mut part = self.views.len() / 2;
        while part > 0 {
            for from in (0..self.views.len()).step_by(part) {
                let fewer = self.keeping(|i| !(from..from + part).contains(&i));
                if (1..self.views.len()).contains(&fewer.views.len()) {
                    cases.push(fewer);
                }
            }
            part /= 2;
        }
        for i in 0..self.restarts.len() {
            let mut case = self.clone();
            case.restarts.remove(i);
            cases.push(case);
        }
        let with_steps = |steps: Vec<Step>| Case { stream: self.stream.with_steps(steps), ..self.clone() };
        let steps = &self.stream.steps;
        for i in 0..steps.len() {
            let mut fewer = steps.clone();
            fewer.remove(i);
            cases.push(with_steps(fewer));
            let Step::Rows(rows) = &steps[i] else { continue };
            // Halves, quarters, ... single rows.
            let mut part = rows.len() / 2;
            while part > 0 {
                for from in (0..rows.len()).step_by(part) {
                    let mut fewer = rows.clone();
                    fewer.drain(from..(from + part).min(rows.len()));
                    if !fewer.is_empty() {
                        let mut steps = steps.clone();
                        steps[i] = Step::Rows(fewer);
                        cases.push(with_steps(steps));
                    }
                }
                part /= 2;
            }
        }
        for (i, view) in self.views.iter().enumerate().rev() {
            for view in view.simpler() {
                let mut case = self.clone();
                case.views[i] = view;
                cases.push(case);
            }
        }
        if self.workers > 1 {
            cases.push(Case { workers: 1, ..self.clone() });
        }
        if self.created_after > 0 {
            cases.push(Case { created_after: 0, ..self.clone() });
        }
        cases
    }
}

fn random_restarts(stream: &Stream, random: &mut StdRng) -> Vec<Restart> {
    let restart = |random: &mut StdRng| Restart {
        after: random.random_range(0..=stream.steps.len()),
        workers: random.random_range(1..4),
        crashes: random.random_bool(0.8),
    };
    (0..random.random_range(1..4)).map(|_| restart(random)).collect()
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "-- {} workers\n{};", self.workers, self.stream.create("t", "..."))?;
        if self.stream.idle {
            writeln!(f, "{};", View::ALL)?;
        }
        for (i, step) in self.stream.steps.iter().chain([&Step::Rows(Vec::new())]).enumerate() {
            if i == self.created_after.min(self.stream.steps.len()) {
                for (i, view) in self.views.iter().enumerate() {
                    writeln!(f, "{};", view.create(i))?;
                }
            }
            for restart in self.restarts.iter().filter(|restart| restart.after == i) {
                writeln!(f, "-- {restart:?}, here if views are to be looked at")?;
            }
            match step {
                Step::Change(statement) => writeln!(f, "{statement};")?,
                Step::Rows(rows) if rows.is_empty() => {}
                Step::Rows(rows) if self.stream.kind == Kind::Source => {
                    writeln!(f, "-- records")?;
                    for row in rows {
                        let json = self.stream.json(row);
                        writeln!(f, "--   {}: {}", row.partition, json.as_deref().unwrap_or("a tombstone"))?;
                    }
                }
                Step::Rows(rows) => writeln!(f, "{};", self.stream.insert(rows))?,
            }
        }
        Ok(())
    }
}

/// A smaller case that fails in the same way, and how; none if the view alone does not fail.
async fn shrunk(case: Case, like: &Failure, logs: &Logs) -> Option<(Case, Failure)> {
    let mut failure = run(&case, logs, None).await.err().filter(|f| f.is_like(like))?;
    let (mut case, mut tries) = (case, 0);
    'smaller: loop {
        for simpler in case.simpler() {
            tries += simpler.views.len();
            if tries > MOST_TRIES {
                return Some((case, failure));
            }
            if let Some(found) = run(&simpler, logs, None).await.err().filter(|f| f.is_like(like)) {
                (case, failure) = (simpler, found);
                continue 'smaller;
            }
        }
        return Some((case, failure));
    }
}

async fn report(seed: u64, case: &Case, failure: Failure, logs: &Logs) -> String {
    let whole = format!("seed {seed}: {failure}");
    let suspects = failure.view.map_or(0..case.views.len(), |view| view..view + 1);
    for view in suspects {
        if let Some((case, failure)) = shrunk(case.alone(view), &failure, logs).await {
            return format!("{whole}\n\nsmaller:\n{case}\n{failure}\n");
        }
    }
    if let Some((case, failure)) = shrunk(case.clone(), &failure, logs).await {
        return format!("{whole}\n\nsmaller, of several views:\n{case}\n{failure}\n");
    }
    let view = failure.view.map_or(String::new(), |view| case.alone(view).to_string());
    format!("{whole}\n\nnot a second time:\n{view}\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn random_views_of_random_streams_equal_their_queries() {
    let mut kinds = [0; 3];
    let mut failures = Vec::new();
    for seed in seeds(0..8) {
        let logs = Logs::start();
        let (case, mut random) = Case::random(seed);
        kinds[case.stream.kind as usize] += VIEWS;
        let failed = match run(&case, &logs, None).await {
            Ok(shown) => {
                // The same in other batches, with other workers, and views made at another time.
                let stream = case.stream.recut(&mut random);
                let restarts =
                    if random.random_bool(0.35) { random_restarts(&stream, &mut random) } else { Vec::new() };
                let created_after = random.random_range(0..=stream.steps.len());
                let other = Case { created_after, workers: case.workers % 3 + 1, stream, restarts, ..case };
                // When partitions are idle is nothing that is the same, and what is kept for a view made later may be less.
                let reference = (!other.stream.idle && !other.stream.forgets).then_some(&shown[..]);
                run(&other, &logs, reference).await.err().map(|failure| (other, failure))
            }
            Err(failure) => Some((case, failure)),
        };
        if let Some((case, failure)) = failed {
            let report = report(seed, &case, failure, &logs).await;
            tell_progress(&report);
            failures.push(report);
        }
        tell_progress(&format!("seed {seed}: {} cases so far, {} failed", kinds.iter().sum::<usize>(), failures.len()));
        if failures.len() > 12 {
            break;
        }
    }
    let [tables, append_only, sources] = kinds;
    println!("{tables} cases over tables, {append_only} over append-only tables, {sources} over sources");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
