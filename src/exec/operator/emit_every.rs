use arrow::datatypes::SchemaRef;
use serde::{Deserialize, Serialize};

use super::Durable;
use crate::exec::durable::Saved;
use crate::exec::emitted_times::{EmittedTimes, SavedTimes};
use crate::exec::rows::{consolidate, take_rows};
use crate::exec::saved_columns::{only_sections, since_whole, weighted_rows, weighted_section};
use crate::exec::tail::{Times, concat};
use crate::exec::unsaved::Unsaved;
use crate::exec::{Delta, ExecError};

/// Holds changes back and lets them go at once, at most once in an interval: `EMIT EVERY INTERVAL '10 seconds'`.
///
/// - Input: one, and the clock. Output: its columns; nothing between emissions, and at one the net change since the last, rows
///   that go before rows that come. Event times downstream move with the emissions.
/// - State: the changes since the last emission, added up when they have doubled: so many rows as changed. Of input that never
///   takes a row back all of them.
/// - Cost: a hash a row when changes are added up, and again at the emission; nothing else per tick.
/// - A row that comes and goes between two emissions is never seen.
pub struct EmitEvery {
    interval_us: i64,
    schema: SchemaRef,
    append_only: bool,
    emitted: EmittedTimes,
    /// The clock at the last emission.
    last_us: Option<i64>,
    pending: Vec<Delta>,
    rows: usize,
    /// Added up when there are more than this.
    most: usize,
    unsaved: Option<Unsaved>,
    said: Option<Notes>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Notes {
    last_us: Option<i64>,
    times: SavedTimes,
}

/// Fewer rows are not worth adding up.
const FEW: usize = 1024;

impl EmitEvery {
    /// `schema` is that of input and output; `append_only`: the input never takes a row back.
    pub fn new(interval_us: i64, schema: SchemaRef, append_only: bool, emitted: EmittedTimes) -> Self {
        EmitEvery {
            interval_us,
            schema,
            append_only,
            emitted,
            last_us: None,
            pending: Vec::new(),
            rows: 0,
            most: FEW,
            unsaved: None,
            said: None,
        }
    }

    /// Has a multiple of the interval passed since the last emission? The first is due at any time.
    pub fn is_due(&self, now_us: i64) -> bool {
        let interval = |us: i64| us.div_euclid(self.interval_us);
        self.last_us.is_none_or(|last_us| interval(now_us) > interval(last_us))
    }

    /// The clock at the last emission, in microseconds since the epoch.
    pub fn last_us(&self) -> Option<i64> {
        self.last_us
    }

    /// Would an emission change nothing that can be seen?
    pub fn is_settled(&self, times: &dyn Times) -> bool {
        self.last_us.is_some() && self.pending.is_empty() && self.emitted.stand(times)
    }

    /// One tick; `emission`: the clock, if it is one.
    pub fn step(&mut self, input: &Delta, emission: Option<i64>, times: &dyn Times) -> Result<Delta, ExecError> {
        if !input.is_empty() {
            self.hold(input)?;
        }
        let Some(now_us) = emission else { return Ok(Delta::empty(self.schema.clone())) };
        self.last_us = Some(now_us);
        self.emitted.advance(times);
        let all = concat(&self.schema, &std::mem::take(&mut self.pending))?;
        (self.rows, self.most) = (0, FEW);
        if self.unsaved.is_some() && !all.is_empty() {
            // What was saved of it is over.
            self.unsaved = Some(Unsaved::new(true, self.append_only));
        }
        if self.append_only { Ok(all) } else { going_first(consolidate(&all)?) }
    }

    fn hold(&mut self, input: &Delta) -> Result<(), ExecError> {
        match self.pending.last_mut() {
            // Ticks that change little would leave many small batches.
            Some(last) if last.num_rows() + input.num_rows() < FEW => {
                *last = concat(&self.schema, &[last.clone(), input.clone()])?;
            }
            _ => self.pending.push(input.clone()),
        }
        self.rows += input.num_rows();
        if !self.append_only && self.rows > self.most {
            let net = consolidate(&concat(&self.schema, &self.pending)?)?;
            self.rows = net.num_rows();
            self.most = (2 * self.rows).max(FEW);
            self.pending = if net.is_empty() { Vec::new() } else { vec![net] };
        }
        match &mut self.unsaved {
            Some(unsaved) => unsaved.add(input, self.rows),
            None => Ok(()),
        }
    }

    /// Changes that are held back.
    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn bytes(&self) -> usize {
        self.pending.iter().map(|delta| delta.rows.get_array_memory_size()).sum()
    }
}

/// The same change, rows that are taken back before those that come.
fn going_first(delta: Delta) -> Result<Delta, ExecError> {
    let rows = 0..delta.num_rows();
    let (goes, comes): (Vec<usize>, Vec<usize>) = rows.partition(|&row| delta.weight(row) < 0);
    if goes.is_empty() || goes.iter().enumerate().all(|(i, &row)| i == row) {
        return Ok(delta);
    }
    let order: Vec<usize> = goes.into_iter().chain(comes).collect();
    let weights = order.iter().map(|&row| delta.weight(row)).collect();
    Ok(Delta::weighted(take_rows(&delta.rows, order.into_iter().map(|row| row as u32).collect())?, weights))
}

/// Saved are the changes since the last emission, with its clock and event times.
impl Durable for EmitEvery {
    fn track_saves(&mut self) {
        self.unsaved.get_or_insert_with(|| Unsaved::new(true, self.append_only));
    }

    fn save(&mut self, whole: bool) -> Result<Saved, ExecError> {
        let changed = match &mut self.unsaved {
            Some(unsaved) => unsaved.take(whole, &self.schema)?,
            None => None,
        };
        let mut saved = Saved { whole: changed.is_none(), ..Saved::default() };
        match changed {
            Some(delta) if delta.is_empty() => {}
            Some(delta) => saved.push("rows", weighted_section(&delta)?),
            None => {
                for delta in &self.pending {
                    saved.push("rows", weighted_section(delta)?);
                }
            }
        }
        let notes = Notes { last_us: self.last_us, times: self.emitted.save() };
        if !saved.is_empty() || self.said.as_ref() != Some(&notes) {
            saved.notes = serde_json::json!(notes);
        }
        self.said = Some(notes);
        self.unsaved.iter_mut().for_each(Unsaved::given);
        Ok(saved)
    }

    fn load(&mut self, saves: &[Saved]) -> Result<(), ExecError> {
        for saved in since_whole(saves)?.iter().filter(|saved| !saved.is_empty()) {
            only_sections(saved, &["rows"])?;
            for rows in saved.rows("rows") {
                self.hold(&weighted_rows("rows", rows, &self.schema)?)?;
            }
            let notes: Notes = saved.notes()?;
            self.last_us = notes.last_us;
            self.emitted.load(&notes.times)?;
            self.said = Some(notes);
        }
        self.unsaved = Some(Unsaved::new(false, self.append_only));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::exec::horizon::Horizon;
    use crate::exec::horizon::tests::At;
    use crate::exec::text::{parse, parse_schema, print};

    const COLUMNS: &str = "k:i v:i";

    fn at(us: i64) -> At {
        At { watermark_us: Some(us), final_until_us: Some(us) }
    }

    fn every(append_only: bool) -> EmitEvery {
        EmitEvery::new(10, parse_schema(COLUMNS), append_only, EmittedTimes::default())
    }

    fn step(every: &mut EmitEvery, now_us: i64, rows: &str) -> String {
        let delta = parse(&format!("{COLUMNS}\n{}", rows.replace(", ", "\n")));
        let emission = every.is_due(now_us).then_some(now_us);
        print(&every.step(&delta, emission, &at(now_us)).unwrap()).replace('\n', ", ")
    }

    /// Ticks of (clock, rows): what each gives.
    fn check(append_only: bool, ticks: &[(i64, &str)]) -> String {
        let mut every = every(append_only);
        let lines: Vec<String> =
            ticks.iter().map(|(now, rows)| format!("{now}: {}", step(&mut every, *now, rows))).collect();
        format!("{}\n{} held", lines.join("\n"), every.rows())
    }

    #[test]
    fn an_emission_comes_with_the_first_tick_of_an_interval() {
        insta::assert_snapshot!(check(false, &[
            (13, "+ 1 1"),
            (19, "- 1 1, + 1 2"),
            (20, "+ 2 1"),
            (21, "- 1 2, + 1 3, + 3 1"),
            (29, "- 1 3, + 1 4, - 3 1"),
            (55, ""),
            (59, "+ 5 5"),
        ]), @r"
        13: + 1 1
        19: 
        20: - 1 1, + 1 2, + 2 1
        21: 
        29: 
        55: - 1 2, + 1 4
        59: 
        1 held
        ");
    }

    #[test]
    fn what_cancels_out_is_not_seen() {
        insta::assert_snapshot!(check(false, &[(0, ""), (1, "+ 1 1"), (2, "- 1 1"), (10, ""), (11, "+ 1 1, - 1 1")]), @r"
        0: 
        1: 
        2: 
        10: 
        11: 
        2 held
        ");
        insta::assert_snapshot!(check(true, &[(-7, "+ 1 1"), (-1, "+ 1 1, + 2 2"), (0, "+ 1 1")]), @r"
        -7: + 1 1
        -1: 
        0: +2 1 1, + 2 2
        0 held
        ");
    }

    /// The law, over restarts: what has come out is what had gone in by the last emission, and event time stands there too.
    #[test]
    fn the_sum_of_the_output_is_the_input_as_of_the_last_emission() {
        let mut held_most = 0;
        for seed in 0..60 {
            let mut random = StdRng::seed_from_u64(seed);
            let append_only = random.random_bool(0.3);
            let make = || {
                let times = EmittedTimes::default();
                let source = times.of(&Horizon::Source(1));
                (EmitEvery::new(10, parse_schema(COLUMNS), append_only, times), source)
            };
            let ((mut every, mut source), mut saves) = (make(), Vec::new());
            every.track_saves();
            let (mut bag, mut shown, mut told) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
            let (mut now_us, mut emitted_us) = (-30i64, None);
            for _ in 0..60 {
                now_us += random.random_range(0..4);
                let mut rows = Vec::new();
                // Now and then more than is kept without being added up.
                let most = if random.random_bool(0.02) { 2 * FEW } else { 6 };
                for _ in 0..random.random_range(0..most) {
                    let old = bag.keys().nth(random.random_range(0..=bag.len().min(9))).copied();
                    let (row, weight) = match old.filter(|_| !append_only && random.random_bool(0.5)) {
                        Some(row) => (row, -1),
                        None => ((random.random_range(0..3i64), random.random_range(0..4i64)), 1),
                    };
                    *bag.entry(row).or_insert(0i64) += weight;
                    bag.retain(|_, weight| *weight != 0);
                    rows.push(format!("{weight} {} {}", row.0, row.1));
                }
                let last = emitted_us;
                if emitted_us.is_none_or(|us: i64| now_us.div_euclid(10) > us.div_euclid(10)) {
                    (shown, emitted_us) = (bag.clone(), Some(now_us));
                }
                let out = step(&mut every, now_us, &rows.join(", "));
                assert!(last != emitted_us || out.is_empty(), "seed {seed}: between emissions");
                for line in out.split(", ").filter(|line| !line.is_empty()) {
                    let (weight, row) = line.split_once(' ').unwrap();
                    let weight = match weight {
                        "+" => 1,
                        "-" => -1,
                        more => more.parse::<i64>().unwrap(),
                    };
                    let (k, v) = row.split_once(' ').unwrap();
                    *told.entry((k.parse().unwrap(), v.parse().unwrap())).or_insert(0) += weight;
                }
                told.retain(|_, weight| *weight != 0);
                assert_eq!(told, shown, "seed {seed} at {now_us}");
                assert_eq!(source.watermark_us(&at(now_us)), emitted_us, "seed {seed} at {now_us}");
                if !append_only {
                    held_most = held_most.max(every.rows());
                }
                if random.random_bool(0.4) {
                    saves.push(every.save(random.random_bool(0.1)).unwrap());
                    if random.random_bool(0.6) {
                        (every, source) = make();
                        every.load(&saves).unwrap();
                        every.track_saves();
                    }
                }
            }
        }
        assert!((FEW / 9..=FEW).contains(&held_most), "{held_most} changes were held of a dozen rows");
    }

    #[test]
    fn it_is_settled_when_an_emission_would_change_nothing() {
        let times = EmittedTimes::default();
        times.of(&Horizon::Source(1));
        let mut every = EmitEvery::new(10, parse_schema(COLUMNS), false, times);
        assert!(!every.is_settled(&at(1)), "nothing has been shown");
        step(&mut every, 1, "+ 1 1");
        assert!(every.is_settled(&at(1)) && !every.is_settled(&at(2)), "event time has moved on");
        step(&mut every, 1, "+ 1 1");
        assert!(!every.is_settled(&at(1)), "a row is held back");
    }
}
