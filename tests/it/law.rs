//! The law of acceptance against a second, naive implementation: SEMANTICS in as few words as possible, quadratic, over whole
//! logs.
//!
//! A random case is some partitions' logs and what happens while they are read: rows in batches of any size, ticks, partitions
//! that fall idle or come later, bounds changed and watermarks taken back. A failing case shrinks to a small one.
//! `RIVERRUN_ORACLE_SEEDS=FROM..TO` runs other seeds, a hundred cases each.

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use riverrun::exec::law::{
    Bounds, Facts, Finality, LateReason, PartitionLaw, PartitionProgress, Row, SourceTime, Terms,
};

use crate::oracle::seeds;

type Verdict = Result<(), LateReason>;

#[derive(Debug, Clone, Copy)]
struct LogRow {
    time: Option<i64>,
    /// When it was appended, for a log that says so.
    arrival: i64,
}

#[derive(Debug, Clone)]
enum Step {
    /// Reads so many rows of a partition.
    Read(usize, usize),
    /// The clock goes on, and a tick ends; partitions that have had no row since the last may be idle for so long.
    Tick(i64, Vec<Option<i64>>),
    Bounds(Bounds),
    TakeBack(Option<i64>),
}

#[derive(Debug, Clone)]
struct Case {
    bounds: Bounds,
    arrival_in_log: bool,
    logs: Vec<Vec<LogRow>>,
    steps: Vec<Step>,
}

fn bounds() -> impl Strategy<Value = Bounds> {
    (0..12_i64, 0..25_i64, 5..60_i64, any::<bool>()).prop_map(|(delay, lateness, max_future_us, idle_advance)| Bounds {
        delay_us: Some(delay),
        allowed_lateness_us: lateness,
        max_future_us,
        idle_timeout_us: 10,
        idle_advance,
    })
}

fn log() -> impl Strategy<Value = Vec<LogRow>> {
    let row = (-25..6_i64, prop_oneof![12 => Just(0), 1 => 20..90_i64], prop::bool::weighted(0.06), 0..8_i64);
    // Some partitions are empty.
    let rows = prop_oneof![1 => Just(0..1_usize), 5 => Just(1..40_usize)];
    rows.prop_flat_map(move |rows| prop::collection::vec(row.clone(), rows)).prop_map(|rows| {
        let row = |(i, (jitter, jump, null, delayed)): (usize, (i64, i64, bool, i64))| {
            let at = 4 * i as i64;
            LogRow { time: (!null).then_some(at + jitter + jump), arrival: at + delayed }
        };
        rows.into_iter().enumerate().map(row).collect()
    })
}

fn step(partitions: usize) -> impl Strategy<Value = Step> {
    let idle_us = || (10..80_i64).prop_map(Some);
    let idle = prop_oneof![3 => Just(None), 1 => idle_us()];
    let idle = prop_oneof![
        4 => prop::collection::vec(idle, partitions),
        1 => prop::collection::vec(idle_us(), partitions),
    ];
    prop_oneof![
        8 => (0..partitions, 1..8_usize).prop_map(|(partition, rows)| Step::Read(partition, rows)),
        6 => (0..25_i64, idle).prop_map(|(passed, idle)| Step::Tick(passed, idle)),
        1 => bounds().prop_map(Step::Bounds),
        1 => prop::option::of(0..150_i64).prop_map(Step::TakeBack),
    ]
}

fn case() -> impl Strategy<Value = Case> {
    (1..4_usize).prop_flat_map(|partitions| {
        let logs = prop::collection::vec(log(), partitions);
        let steps = prop::collection::vec(step(partitions), 0..60);
        (bounds(), any::<bool>(), logs, steps).prop_map(|(bounds, arrival_in_log, logs, steps)| Case {
            bounds,
            arrival_in_log,
            logs,
            steps,
        })
    })
}

/// A source as a worker reads it.
struct Live<'a> {
    case: &'a Case,
    bounds: Bounds,
    /// A partition is there from the first time it is read.
    laws: Vec<Option<PartitionLaw>>,
    verdicts: Vec<Vec<Verdict>>,
    /// The watermark before each row.
    before: Vec<Vec<Option<i64>>>,
    had_rows: Vec<bool>,
    time: SourceTime,
    /// Since the last tick.
    taken_back: bool,
    floor: Option<i64>,
    now: i64,
}

impl<'a> Live<'a> {
    fn new(case: &'a Case) -> Live<'a> {
        let partitions = case.logs.len();
        Live {
            case,
            bounds: case.bounds,
            laws: vec![None; partitions],
            verdicts: vec![Vec::new(); partitions],
            before: vec![Vec::new(); partitions],
            had_rows: vec![false; partitions],
            time: SourceTime::default(),
            taken_back: false,
            floor: None,
            now: 0,
        }
    }

    fn add(&mut self, partition: usize) {
        if self.laws[partition].is_none() {
            let mut law = PartitionLaw::new(0, Terms { bounds: self.bounds, floor_us: self.floor, watermark_us: None });
            law.source_stands_at(self.time.watermark_us, true);
            self.laws[partition] = Some(law);
        }
    }

    fn read(&mut self, partition: usize, rows: usize) -> Result<(), TestCaseError> {
        self.add(partition);
        for _ in 0..rows {
            let offset = self.verdicts[partition].len();
            let Some(row) = self.case.logs[partition].get(offset) else { return Ok(()) };
            self.had_rows[partition] = true;
            let law = self.laws[partition].as_mut().expect("just added");
            self.before[partition].push(law.watermark_us());
            let verdict = law.judge(seen(self.case, offset, row, self.now)).map_err(|(reason, _)| reason);
            if let (Ok(()), Some(time), Some(final_until)) = (verdict, row.time, self.time.final_until_us) {
                prop_assert!(time >= final_until, "accepted at {time}, final until {final_until}");
            }
            self.verdicts[partition].push(verdict);
        }
        Ok(())
    }

    fn tick(&mut self, passed: i64, idle: &[Option<i64>]) -> Result<(), TestCaseError> {
        self.now += passed;
        let before = self.time;
        let mut progress = Vec::new();
        for (partition, law) in self.laws.iter().enumerate() {
            let Some(law) = law else { continue };
            let idle_us = idle[partition].filter(|_| !self.had_rows[partition]);
            progress.push(PartitionProgress { partition: partition as i32, watermark_us: law.watermark_us(), idle_us });
        }
        self.time.advance(&self.bounds, Finality::AtOnce, progress.iter().copied());
        let taken_back = std::mem::take(&mut self.taken_back);
        if !self.bounds.idle_advance {
            prop_assert_eq!(self.time.watermark_us, naive_watermark(before, taken_back, &progress));
        }
        prop_assert!(self.time.final_until_us >= before.final_until_us);
        prop_assert!(self.time.watermark_us >= self.time.final_until_us);
        for p in progress {
            let law = self.laws[p.partition as usize].as_mut().expect("it has said how far it is");
            law.source_stands_at(self.time.watermark_us, p.idle_us.is_some());
        }
        self.had_rows.fill(false);
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        let floor = self.time.final_until_us;
        let each = |live: &mut Self, alter: &mut dyn FnMut(&mut PartitionLaw, i64)| {
            live.floor = live.floor.max(floor);
            for (law, verdicts) in live.laws.iter_mut().zip(&live.verdicts) {
                law.iter_mut().for_each(|law| alter(law, verdicts.len() as i64));
            }
        };
        match step {
            Step::Read(partition, rows) => self.read(*partition, *rows)?,
            Step::Tick(passed, idle) => self.tick(*passed, idle)?,
            Step::Bounds(bounds) => {
                // The delay is part of the source's definition.
                self.bounds = Bounds { delay_us: self.case.bounds.delay_us, ..*bounds };
                let bounds = self.bounds;
                each(self, &mut |law, at| law.alter(at, bounds, floor));
            }
            Step::TakeBack(to) => {
                self.time.take_back();
                self.taken_back = true;
                each(self, &mut |law, at| {
                    law.take_back(at, *to, floor);
                });
            }
        }
        Ok(())
    }
}

fn seen(case: &Case, offset: usize, row: &LogRow, now: i64) -> Row {
    let arrival_us = if case.arrival_in_log { row.arrival } else { now };
    Row { offset: offset as i64, event_time_us: row.time, arrival_us, arrival_in_log: case.arrival_in_log }
}

/// The source's watermark after a tick, if it does not move on by the clock.
fn naive_watermark(before: SourceTime, taken_back: bool, partitions: &[PartitionProgress]) -> Option<i64> {
    let least = if taken_back { before.final_until_us } else { before.watermark_us };
    let busy: Vec<_> = partitions.iter().filter(|p| p.idle_us.is_none()).map(|p| p.watermark_us).collect();
    let told: Vec<i64> = partitions.iter().filter_map(|p| p.watermark_us).collect();
    let now = match least {
        // One of them may still say anything.
        _ if busy.contains(&None) => None,
        _ if !busy.is_empty() => busy.into_iter().flatten().min(),
        None => told.into_iter().min(),
        Some(least) if before.watermark_us > Some(least) => told.into_iter().max().min(before.watermark_us),
        Some(_) => None,
    };
    least.max(now)
}

/// SEMANTICS 2.1 to 2.3 and 1.3, from one partition's log and facts: each verdict worked out from the beginning.
fn naive(log: &[LogRow], facts: &Facts, arrival_in_log: bool) -> Vec<Verdict> {
    let mut verdicts: Vec<Verdict> = Vec::new();
    for (at, row) in log.iter().enumerate() {
        let offset = at as i64;
        let (since, terms) = facts.terms().filter(|(from, _)| *from <= offset).last().expect("reading began somewhere");
        let Bounds { delay_us, allowed_lateness_us, max_future_us, .. } = terms.bounds;
        let accepted = (since as usize..at).filter(|&i| verdicts[i].is_ok()).filter_map(|i| log[i].time);
        let reached = accepted.map(|time| time - delay_us.expect("every case has a watermark")).max();
        let raised = facts.raised_us().filter(|(o, _)| (since..=offset).contains(o)).map(|(_, us)| us).max();
        let watermark = terms.watermark_us.max(reached).max(raised);
        verdicts.push(match row.time {
            None => Err(LateReason::NullTime),
            Some(time) if arrival_in_log && time > row.arrival + max_future_us => Err(LateReason::Future),
            Some(_) if !arrival_in_log && facts.is_future(offset) => Err(LateReason::Future),
            Some(time) if watermark.is_some_and(|w| time < w - allowed_lateness_us) => Err(LateReason::Late),
            Some(time) if terms.floor_us.is_some_and(|floor| time < floor) => Err(LateReason::Late),
            Some(_) => Ok(()),
        });
    }
    verdicts
}

fn check(case: &Case, resume_at: usize) -> Result<(), TestCaseError> {
    let mut live = Live::new(case);
    for step in &case.steps {
        live.step(step)?;
    }
    for partition in 0..case.logs.len() {
        live.read(partition, usize::MAX)?;
    }
    for (partition, log) in case.logs.iter().enumerate() {
        let law = live.laws[partition].as_ref().expect("every partition has been read");
        let verdicts = &live.verdicts[partition];
        prop_assert_eq!(&naive(log, law.facts(), case.arrival_in_log), verdicts, "partition {}", partition);
        // A second reader, which looks at another clock.
        let judge_from = |mut second: PartitionLaw, from: usize| -> Vec<Verdict> {
            let rows = log.iter().enumerate().skip(from);
            rows.map(|(i, row)| second.judge(seen(case, i, row, 1_000_000)).map_err(|(reason, _)| reason)).collect()
        };
        prop_assert_eq!(&judge_from(PartitionLaw::replaying(law.facts().clone()), 0), verdicts);
        // One that begins where the log begins by now, knowing the watermark there.
        let from = resume_at.min(log.len());
        if let Some(&watermark) = live.before[partition].get(from) {
            let mut facts = law.facts().clone();
            facts.trim(from as i64);
            let resumed = PartitionLaw::resuming(facts, from as i64, watermark);
            prop_assert_eq!(&judge_from(resumed, from), &verdicts[from..]);
        }
    }
    Ok(())
}

fn run<S: Strategy>(strategy: &S, test: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    for seed in seeds(0..4) {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let config = Config { cases: 100, failure_persistence: None, max_shrink_iters: 20_000, ..Config::default() };
        let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
        if let Err(error) = runner.run(strategy, &test) {
            panic!("seed {seed}: {error}");
        }
    }
}

#[test]
fn verdicts_are_what_a_naive_reader_of_logs_and_facts_works_out() {
    run(&(case(), 0..40_usize), |(case, resume_at)| check(&case, resume_at));
}

/// Where nothing depends on anything but the log, no facts arise: all partitions are there from the start, none is idle, and
/// the log says when rows arrived.
#[test]
fn the_same_logs_in_other_batches_give_the_same_verdicts() {
    let other = prop::collection::vec(step(3), 0..80);
    run(&(case(), other), |(case, other)| {
        let read = |steps: &[Step]| -> Result<Vec<Vec<Verdict>>, TestCaseError> {
            let case = Case { arrival_in_log: true, ..case.clone() };
            let mut live = Live::new(&case);
            (0..case.logs.len()).for_each(|partition| live.add(partition));
            for step in steps {
                match step {
                    Step::Read(partition, rows) if *partition < case.logs.len() => live.read(*partition, *rows)?,
                    Step::Tick(passed, _) => live.tick(*passed, &vec![None; case.logs.len()])?,
                    _ => {}
                }
            }
            for partition in 0..case.logs.len() {
                live.read(partition, usize::MAX)?;
            }
            let facts = live.laws.iter().flatten().map(PartitionLaw::facts);
            prop_assert_eq!(facts.map(|f| f.raised_us().count() + f.terms().count()).max(), Some(1));
            Ok(live.verdicts)
        };
        prop_assert_eq!(read(&case.steps)?, read(&other)?);
        Ok(())
    });
}

/// The cases reach every verdict and every kind of fact; else the tests above would say little.
#[test]
fn cases_are_of_every_kind() {
    use std::cell::RefCell;
    let found = RefCell::new([0_usize; 8]);
    run(&case(), |case| {
        let mut live = Live::new(&case);
        let mut found = found.borrow_mut();
        for step in &case.steps {
            let had_none = live.time.watermark_us.is_none();
            live.step(step)?;
            let silent = live.laws.iter().flatten().any(|law| law.watermark_us().is_none());
            found[7] += usize::from(had_none && silent && live.time.watermark_us.is_some());
        }
        for verdict in live.verdicts.iter().flatten() {
            found[match verdict {
                Ok(()) => 0,
                Err(LateReason::Late) => 1,
                Err(LateReason::Future) => 2,
                Err(LateReason::NullTime) => 3,
            }] += 1;
        }
        for law in live.laws.iter().flatten() {
            found[4] += law.facts().raised_us().count();
            found[5] += law.facts().terms().filter(|(_, terms)| terms.floor_us.is_some()).count();
            found[6] += (0..40).filter(|&o| law.facts().is_future(o)).count();
        }
        Ok(())
    });
    assert!(found.borrow().iter().all(|&count| count > 20), "{found:?}");
}
