//! Random views over random streams: after every few steps each view equals the batch engine's answer on the rows accepted so
//! far, and these are what a naive reading of the partitions' logs comes to. The same logs in other batches, interleaved
//! otherwise and read by other numbers of workers, end in the same views.
//!
//! A case is one definition on one stream; all of a seed share a stream and an engine, and so stores. A case that fails is tried
//! alone and made smaller, step by step, row by row, call by call, as long as it fails.
//! `RIVERRUN_ORACLE_SEEDS=FROM..TO` runs other seeds, [`VIEWS`] cases each.

use std::collections::HashMap;
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
use riverrun::connector::{EmbeddedBroker, Producer};
use riverrun::planner;
use riverrun::sql::{self, Name, Statement};

use crate::db::Db;
use crate::oracle::seeds;
use crate::random_streams::{Kind, Step, Stream, batch};
use crate::random_views::View;

/// How many views a seed has.
const VIEWS: usize = 40;

/// What is tried when a case is made smaller, at most.
const MOST_TRIES: usize = 400;

#[derive(Clone)]
struct Case {
    stream: Stream,
    views: Vec<View>,
    workers: usize,
    /// How many steps there have been when the views are created.
    created_after: usize,
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
                logs.producer.send(topic, partition, None, Some(json.as_bytes()), 0).expect("a record sent");
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
    let db = Db::start(case.workers);
    let shown = AssertUnwindSafe(steps(case, &db, logs, &topic, reference)).catch_unwind().await;
    db.engine.stop().await;
    shown.unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().cloned();
        Err(Failure { view: None, kind: "panics", said: said.unwrap_or("see above".into()) })
    })
}

async fn steps(
    case: &Case,
    db: &Db,
    logs: &Logs,
    topic: &str,
    reference: Option<&[Vec<Line>]>,
) -> Result<Vec<Vec<Line>>, Failure> {
    let stream = &case.stream;
    db.run(&stream.create(topic, &logs.broker.servers())).await;
    let mut shown = Vec::new();
    let last = stream.steps.len();
    for at in 0..=last {
        if at > 0 {
            apply(db, stream, &stream.steps[at - 1], logs, topic).await;
        }
        if at == case.created_after.min(last) {
            for (i, view) in case.views.iter().enumerate() {
                let made = match db.try_run(&view.create(i)).await {
                    // No store to be had.
                    Err(error) if view.store == Some("shared") && error.to_string().contains("store") => {
                        db.try_run(&view.in_any_store().create(i)).await
                    }
                    made => made,
                };
                made.map_err(|error| Failure { view: Some(i), kind: "refused", said: error.to_string() })?;
            }
        }
        if at < case.created_after.min(last) || (reference.is_some() && at < last) {
            continue;
        }
        shown = compare(case, db, at, reference).await?;
    }
    Ok(shown)
}

async fn compare(case: &Case, db: &Db, at: usize, reference: Option<&[Vec<Line>]>) -> Result<Vec<Vec<Line>>, Failure> {
    let stream = &case.stream;
    let judged = stream.judged(at);
    if stream.kind == Kind::Source {
        db.run("WAIT FOR r").await;
        let counts = "SELECT sum(read)::bigint, sum(accepted)::bigint, sum(late)::bigint, sum(duplicate)::bigint FROM riverrun.source_partitions";
        let (sent, counting) = (stream.sent(at), judged.counting.len());
        let right = format!("{sent}|{counting}|{}|{}", sent - judged.accepted, judged.accepted - counting);
        expect_line(&db.rows(counts).await, &right, "counts")?;
    }
    if stream.kind == Kind::AppendOnly {
        expect_line(&db.rows("SELECT count(*) FROM r").await, &judged.counting.len().to_string(), "accepted")?;
    }
    let object = db.engine.catalog().resolve(&Name(vec!["r".into()]), &db.names).expect("r");
    let rows = MemTable::try_new(object.columns.clone(), vec![vec![batch(&judged.counting, &object.columns)]]);
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
                let query = view.query();
                let query = match (view.emit, view.over, judged.final_until_us) {
                    (false, ..) => query,
                    (true, None, Some(us)) => {
                        format!("SELECT * FROM ({query}) WHERE window_end <= {}", stream.bound(us))
                    }
                    (true, None, None) => format!("SELECT * FROM ({query}) WHERE false"),
                    (true, Some(_), _) => {
                        let until = db.rows(&format!("SELECT final_window_end('v{i}')::text")).await.remove(0);
                        let until = if until == "NULL" { until } else { format!("'{until}'") };
                        format!("SELECT * FROM ({query}) WHERE window_end <= {until}")
                    }
                };
                let instead = (stream.kind != Kind::Table && view.over.is_none()).then_some((object.oid, &rows));
                let answer = answer(db, &query, instead).await.map_err(|e| failure("batch engine", e.to_string()))?;
                as_lines(&answer)
            }
        };
        if !equal(&kept, &right) {
            return Err(failure("differs", difference(&kept, &right)));
        }
        shown.push(kept);
    }
    Ok(shown)
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
            let first: Vec<usize> = (0..i).filter(|&i| views[i].over.is_none()).collect();
            let over = first.choose(&mut random).copied().filter(|_| random.random_bool(0.3));
            views.push(match over {
                Some(over) => views[over].random_over(over, &mut random, &stream),
                None => View::random(&mut random, &stream),
            });
        }
        let created_after = random.random_range(0..stream.steps.len());
        (Case { workers: random.random_range(1..4), stream, views, created_after }, random)
    }

    /// The view and what it is over.
    fn alone(&self, view: usize) -> Case {
        let mut views = vec![self.views[view].clone()];
        if let Some(over) = views[0].over {
            views[0].over = Some(0);
            views.insert(0, self.views[over].clone());
        }
        Case { views, ..self.clone() }
    }

    fn simpler(&self) -> Vec<Case> {
        let mut cases = Vec::new();
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

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "-- {} workers\n{};", self.workers, self.stream.create("t", "..."))?;
        for (i, step) in self.stream.steps.iter().chain([&Step::Rows(Vec::new())]).enumerate() {
            if i == self.created_after.min(self.stream.steps.len()) {
                for (i, view) in self.views.iter().enumerate() {
                    writeln!(f, "{};", view.create(i))?;
                }
            }
            match step {
                Step::Change(statement) => writeln!(f, "{statement};")?,
                Step::Rows(rows) if rows.is_empty() => {}
                Step::Rows(rows) if self.stream.kind == Kind::Source => {
                    writeln!(f, "-- records")?;
                    for row in rows {
                        writeln!(f, "--   {}: {}", row.partition, self.stream.json(row))?;
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
            tries += 1;
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
    let view = failure.view.map_or(String::new(), |view| case.alone(view).to_string());
    format!("{whole}\n\nnot without the other views:\n{view}\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn random_views_of_random_streams_equal_their_queries() {
    let mut kinds = [0; 3];
    let mut failures = Vec::new();
    for seed in seeds(0..8) {
        let logs = Logs::start();
        let (case, mut random) = Case::random(seed);
        kinds[case.stream.kind as usize] += 1;
        let shown = match run(&case, &logs, None).await {
            Ok(shown) => shown,
            Err(failure) => {
                failures.push(report(seed, &case, failure, &logs).await);
                continue;
            }
        };
        // The same in other batches, with other workers, and views made at another time.
        let stream = case.stream.recut(&mut random);
        let other = Case {
            created_after: random.random_range(0..=stream.steps.len()),
            workers: case.workers % 3 + 1,
            stream,
            ..case
        };
        if let Err(failure) = run(&other, &logs, Some(&shown)).await {
            failures.push(report(seed, &other, failure, &logs).await);
        }
        if failures.len() > 4 {
            break;
        }
    }
    let [tables, append_only, sources] = kinds.map(|streams| streams * VIEWS);
    println!("{tables} cases over tables, {append_only} over append-only tables, {sources} over sources");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
