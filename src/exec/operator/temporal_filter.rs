use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use serde::{Deserialize, Serialize};

use super::Durable;
use crate::exec::durable::Saved;
use crate::exec::expr::Evaluator;
use crate::exec::feed::micros;
use crate::exec::rows::{Net, RowCodec, batch_of, take_rows};
use crate::exec::saved_columns::{SavedColumns, only_sections, since_whole, weighted_rows, weighted_section, wrong};
use crate::exec::unsaved::Unsaved;
use crate::exec::{Delta, ExecError};
use crate::planner::stream_plan::{Comparison, Moment, TimeBound};

/// Keeps each row while it lies within bounds that move with a clock, as in `ts > now() - INTERVAL '1 hour'`.
///
/// - Input: one, and the clock. Output: its columns. A row comes when the clock has reached its first moment, and is taken back
///   when its last one is over; a row that comes after that is never shown.
/// - State: the rows that will still come or go, by the reading of the clock at which they do.
/// - Cost: the bounds' expressions and one insertion into an ordered index a row; per tick, the rows that come and go.
/// - Deletions take the row out of the index, whichever it stands in. Those of a row that has gone change nothing.
/// - A NULL time is within no bounds. Before the clock has a reading nothing is shown, and rows wait.
pub struct TemporalFilter {
    bounds: Vec<(Evaluator, Comparison, Moment)>,
    codec: RowCodec,
    schema: SchemaRef,
    clock_us: Option<i64>,
    waiting: Vec<Delta>,
    /// (reading at which it comes, row) → (reading at which it goes, weight).
    coming: BTreeMap<At, (i64, i64)>,
    /// (reading at which it goes, row) → weight.
    going: BTreeMap<At, i64>,
    bytes: usize,
    unsaved: Option<UnsavedSpans>,
}

/// What the next save has to give.
struct UnsavedSpans {
    /// Of [`with_span`] of the rows.
    rows: Unsaved,
    /// So many of the deltas that wait are saved.
    waiting: usize,
    /// As it was saved.
    clock_us: Option<i64>,
}

#[derive(Serialize, Deserialize)]
struct Notes {
    clock_us: Option<i64>,
    /// How many rows there are once the save has been taken in: those that come or go, and those that wait.
    held: usize,
    waiting: usize,
}

/// A reading of the clock, and a row.
type At = (i64, Box<[u8]>);

/// The reading of the clock at which a row that stays for ever goes.
const NEVER: i64 = i64::MAX;
/// What an entry of the index takes besides the row.
const ENTRY_BYTES: usize = 64;

impl TemporalFilter {
    /// `schema` is that of input and output.
    pub fn new(bounds: &[TimeBound], schema: SchemaRef) -> Result<Self, ExecError> {
        let bound = |bound: &TimeBound| (Evaluator::new(bound.time.clone()), bound.comparison, bound.moment.clone());
        Ok(TemporalFilter {
            bounds: bounds.iter().map(bound).collect(),
            codec: RowCodec::whole(&schema)?,
            schema,
            clock_us: None,
            waiting: Vec::new(),
            coming: BTreeMap::new(),
            going: BTreeMap::new(),
            bytes: 0,
            unsaved: None,
        })
    }

    /// One tick, at this reading of the clock; one that goes back counts as the last.
    pub fn step(&mut self, input: &Delta, clock_us: Option<i64>) -> Result<Delta, ExecError> {
        self.clock_us = self.clock_us.max(clock_us);
        let Some(now_us) = self.clock_us else {
            if !input.is_empty() {
                self.waiting.push(input.clone());
            }
            return Ok(Delta::empty(self.schema.clone()));
        };
        let mut out: Vec<(Box<[u8]>, i64)> = Vec::new();
        for delta in std::mem::take(&mut self.waiting) {
            self.take_in(&delta, now_us, &mut out)?;
        }
        self.take_in(input, now_us, &mut out)?;
        self.pass(now_us, &mut out);
        let columns = self.codec.decode(out.iter().map(|(row, _)| row.as_ref()))?;
        let weights = out.iter().map(|(_, weight)| *weight).collect();
        Ok(Delta::weighted(batch_of(&self.schema, columns, out.len())?, weights))
    }

    /// Rows that come and go now.
    fn pass(&mut self, now_us: i64, out: &mut Vec<(Box<[u8]>, i64)>) {
        while let Some(entry) = self.coming.first_entry().filter(|entry| entry.key().0 <= now_us) {
            let ((_, row), (goes_us, weight)) = entry.remove_entry();
            self.bytes -= row.len() + ENTRY_BYTES;
            if goes_us > now_us {
                out.push((row.clone(), weight));
                self.note_going(goes_us, row, weight);
            }
        }
        while let Some(entry) = self.going.first_entry().filter(|entry| entry.key().0 <= now_us) {
            let ((_, row), weight) = entry.remove_entry();
            self.bytes -= row.len() + ENTRY_BYTES;
            out.push((row, -weight));
        }
    }

    fn take_in(&mut self, delta: &Delta, now_us: i64, out: &mut Vec<(Box<[u8]>, i64)>) -> Result<(), ExecError> {
        if delta.is_empty() {
            return Ok(());
        }
        let (comes, goes) = self.spans(delta)?;
        let net = Net::of(&self.codec, delta)?;
        let mut held: Vec<(u32, i64)> = Vec::new();
        for &(row, weight) in &net.entries {
            let (comes_us, goes_us) = (comes[row as usize], goes[row as usize]);
            if goes_us <= now_us || comes_us >= goes_us {
                continue;
            }
            if comes_us > now_us || goes_us < NEVER {
                held.push((row, weight));
            }
            self.hold(comes_us, goes_us, net.bytes(row).into(), weight, now_us, out);
        }
        if let Some(unsaved) = &mut self.unsaved {
            let rows = take_rows(&delta.rows, held.iter().map(|&(row, _)| row).collect())?;
            let times = |times: &[i64]| held.iter().map(|&(row, _)| times[row as usize]).collect::<Vec<_>>();
            let weights = held.iter().map(|&(_, weight)| weight).collect();
            let change = with_span(&self.schema, times(&comes), times(&goes), rows.columns(), weights)?;
            unsaved.rows.add(&change, self.coming.len() + self.going.len())?;
        }
        Ok(())
    }

    /// A row that is there at some reading of the clock that is still to come, or now.
    fn hold(
        &mut self,
        comes_us: i64,
        goes_us: i64,
        row: Box<[u8]>,
        weight: i64,
        now_us: i64,
        out: &mut Vec<(Box<[u8]>, i64)>,
    ) {
        if comes_us <= now_us {
            out.push((row.clone(), weight));
            return self.note_going(goes_us, row, weight);
        }
        let len = row.len() + ENTRY_BYTES;
        let key = (comes_us, row);
        match self.coming.get_mut(&key) {
            Some((_, held)) => {
                *held += weight;
                if *held == 0 {
                    self.coming.remove(&key);
                    self.bytes -= len;
                }
            }
            None => {
                self.coming.insert(key, (goes_us, weight));
                self.bytes += len;
            }
        }
    }

    fn note_going(&mut self, goes_us: i64, row: Box<[u8]>, weight: i64) {
        if goes_us == NEVER {
            return;
        }
        let len = row.len() + ENTRY_BYTES;
        let key = (goes_us, row);
        match self.going.get_mut(&key) {
            Some(held) => {
                *held += weight;
                if *held == 0 {
                    self.going.remove(&key);
                    self.bytes -= len;
                }
            }
            None => {
                self.going.insert(key, weight);
                self.bytes += len;
            }
        }
    }

    /// For each row the readings of the clock from which on and until which it is within all bounds.
    fn spans(&mut self, delta: &Delta) -> Result<(Vec<i64>, Vec<i64>), ExecError> {
        let rows = delta.num_rows();
        let (mut comes, mut goes) = (vec![i64::MIN; rows], vec![NEVER; rows]);
        for (time, comparison, moment) in &mut self.bounds {
            let times: Int64Array = micros(&time.evaluate(&delta.rows)?)?;
            for row in 0..rows {
                if times.is_null(row) {
                    goes[row] = i64::MIN;
                    continue;
                }
                let time_us = times.value(row);
                let (at, after) = (|| moment.reaches_us(time_us), || moment.reaches_us(time_us.saturating_add(1)));
                match comparison {
                    Comparison::Greater => goes[row] = goes[row].min(at()),
                    Comparison::GreaterOrEqual => goes[row] = goes[row].min(after()),
                    Comparison::LessOrEqual => comes[row] = comes[row].max(at()),
                    Comparison::Less => comes[row] = comes[row].max(after()),
                }
            }
        }
        Ok((comes, goes))
    }

    pub fn rows(&self) -> usize {
        self.coming.len() + self.going.len() + self.waiting.iter().map(Delta::num_rows).sum::<usize>()
    }

    pub fn bytes(&self) -> usize {
        self.bytes + self.waiting.iter().map(|delta| delta.rows.get_array_memory_size()).sum::<usize>()
    }

    /// Times that became NULL because their expression failed, and what the first of them said.
    pub fn errors(&self) -> (u64, Option<String>) {
        let count = self.bounds.iter().map(|(time, _, _)| time.errors).sum();
        (count, self.bounds.iter().find_map(|(time, _, _)| time.sample.clone()))
    }
}

/// Rows with the readings of the clock at which they come and go.
fn with_span(
    schema: &SchemaRef,
    comes_us: Vec<i64>,
    goes_us: Vec<i64>,
    columns: &[ArrayRef],
    weights: Vec<i64>,
) -> Result<Delta, ExecError> {
    let times = [comes_us, goes_us].map(|times| Arc::new(Int64Array::from(times)) as ArrayRef);
    let columns = times.into_iter().chain(columns.iter().cloned()).collect();
    Ok(Delta::weighted(batch_of(&span_schema(schema), columns, weights.len())?, weights))
}

fn span_schema(schema: &SchemaRef) -> SchemaRef {
    let times = ["comes_us", "goes_us"].map(|name| Arc::new(Field::new(name, DataType::Int64, false)));
    Arc::new(Schema::new(times.into_iter().chain(schema.fields().iter().cloned()).collect::<Vec<_>>()))
}

/// Saved are the clock and, with weights, the rows that come or go at a reading that is still to come; what is not yet known to
/// be there at any reading is saved as it came. A row that had come by then is put where it goes.
impl Durable for TemporalFilter {
    fn track_saves(&mut self) {
        let unsaved = || UnsavedSpans { rows: Unsaved::new(true, false), waiting: 0, clock_us: None };
        self.unsaved.get_or_insert_with(unsaved);
    }

    fn save(&mut self, whole: bool) -> Result<Saved, ExecError> {
        let schema = span_schema(&self.schema);
        let changed = match &mut self.unsaved {
            Some(unsaved) => unsaved.rows.take(whole, &schema)?,
            None => None,
        };
        let mut saved = Saved { whole: changed.is_none(), ..Saved::default() };
        match changed {
            Some(delta) if delta.is_empty() => {}
            Some(delta) => saved.push("rows", weighted_section(&delta)?),
            None => {
                let going = self.going.iter().map(|((goes_us, row), &weight)| (i64::MIN, *goes_us, row, weight));
                let coming = self.coming.iter().map(|((comes_us, row), &(goes_us, w))| (*comes_us, goes_us, row, w));
                let all: Vec<_> = going.chain(coming).collect();
                let columns = self.codec.decode(all.iter().map(|(_, _, row, _)| row.as_ref()))?;
                let (comes, goes) = (all.iter().map(|row| row.0).collect(), all.iter().map(|row| row.1).collect());
                let weights = all.iter().map(|row| row.3).collect();
                saved.push("rows", weighted_section(&with_span(&self.schema, comes, goes, &columns, weights)?)?);
            }
        }
        let known = self.unsaved.as_ref().filter(|_| !saved.whole).map_or(0, |unsaved| unsaved.waiting);
        let mut waiting = 0;
        for delta in self.waiting.iter().skip(known) {
            saved.push("waiting", weighted_section(delta)?);
            waiting += delta.num_rows();
        }
        let same_clock = self.unsaved.as_ref().is_some_and(|unsaved| unsaved.clock_us == self.clock_us);
        if !saved.is_empty() || !same_clock {
            let held = self.coming.len() + self.going.len();
            saved.notes = serde_json::json!(Notes { clock_us: self.clock_us, held, waiting });
        }
        if let Some(unsaved) = &mut self.unsaved {
            unsaved.rows.given();
            (unsaved.waiting, unsaved.clock_us) = (self.waiting.len(), self.clock_us);
        }
        Ok(saved)
    }

    fn load(&mut self, saves: &[Saved]) -> Result<(), ExecError> {
        let schema = span_schema(&self.schema);
        for saved in since_whole(saves)?.iter().filter(|saved| !saved.is_empty()) {
            only_sections(saved, &["rows", "waiting"])?;
            let notes: Notes = saved.notes()?;
            if notes.clock_us.is_some() {
                // They have been looked at since.
                self.waiting.clear();
            }
            let mut waiting = 0;
            for rows in saved.rows("waiting") {
                self.waiting.push(weighted_rows("waiting", rows, &self.schema)?);
                waiting += rows.num_rows();
            }
            self.clock_us = notes.clock_us;
            let mut out = Vec::new();
            for rows in saved.rows("rows") {
                self.load_rows(rows, &schema, &mut out)?;
            }
            if let Some(now_us) = self.clock_us {
                self.pass(now_us, &mut out);
            }
            if (notes.held, notes.waiting) != (self.coming.len() + self.going.len(), waiting) {
                return Err(wrong(format!("{} rows were saved, others are there", notes.held + notes.waiting)));
            }
        }
        let (waiting, clock_us) = (self.waiting.len(), self.clock_us);
        self.unsaved = Some(UnsavedSpans { rows: Unsaved::new(false, false), waiting, clock_us });
        Ok(())
    }
}

impl TemporalFilter {
    fn load_rows(
        &mut self,
        rows: &RecordBatch,
        schema: &SchemaRef,
        out: &mut Vec<(Box<[u8]>, i64)>,
    ) -> Result<(), ExecError> {
        let columns = SavedColumns::of("rows", rows);
        let delta = weighted_rows("rows", rows, schema)?;
        let (comes, goes) = (columns.values::<Int64Type>("c0")?, columns.values::<Int64Type>("c1")?);
        let now_us = match self.clock_us {
            Some(now_us) => now_us,
            None if delta.is_empty() => return Ok(()),
            None => return Err(columns.wrong("there are rows without a reading of the clock")),
        };
        let held = batch_of(&self.schema, delta.rows.columns()[2..].to_vec(), delta.num_rows())?;
        let bytes = self.codec.encode(&held)?;
        for row in 0..delta.num_rows() {
            if goes[row] > now_us && comes[row] < goes[row] {
                self.hold(comes[row], goes[row], bytes.row(row).data().into(), delta.weight(row), now_us, out);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use datafusion::physical_expr::expressions::col;
    use proptest::prelude::*;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::exec::text::{parse, parse_schema, print};
    use crate::planner::stream_plan::MomentStep;

    const SECOND: i64 = 1_000_000;
    const COLUMNS: &str = "a:i from:t to:t";

    fn filter(bounds: &[(&str, Comparison, Vec<MomentStep>)]) -> TemporalFilter {
        let schema = parse_schema(COLUMNS);
        let bound = |(column, comparison, steps): &(&str, Comparison, Vec<MomentStep>)| TimeBound {
            time: col(column, &schema).unwrap(),
            comparison: *comparison,
            moment: Moment(steps.clone()),
        };
        TemporalFilter::new(&bounds.iter().map(bound).collect::<Vec<_>>(), schema.clone()).unwrap()
    }

    /// Ticks of (reading in seconds, rows); what each puts out, and the rows held at the end.
    fn check(mut filter: TemporalFilter, ticks: &[(Option<i64>, &str)]) -> String {
        let mut lines = Vec::new();
        for (clock, rows) in ticks {
            let delta = parse(&format!("{COLUMNS}\n{}", rows.replace(", ", "\n")));
            let out = filter.step(&delta, clock.map(|s| s * SECOND)).unwrap();
            lines.push(print(&out).replace('\n', ", "));
        }
        assert_eq!(filter.rows() == 0, filter.bytes() == 0);
        lines.push(format!("= {} rows", filter.rows()));
        lines.join("\n")
    }

    fn last_minute() -> Vec<MomentStep> {
        vec![MomentStep::Add { us: -60 * SECOND }]
    }

    #[test]
    fn rows_go_when_the_clock_has_passed_them() {
        insta::assert_snapshot!(check(filter(&[("from", Comparison::Greater, last_minute())]), &[
            (None, "+ 1 00:00:10 ."),
            (Some(0), "+ 2 00:00:20 ., + 3 . ., +2 4 -70 ."),
            (Some(69), "- 2 00:00:20 ., + 5 00:00:09 ."),
            (Some(70), "+ 2 00:00:20 ., + 6 00:00:11 ."),
            (Some(65), "+ 7 00:00:12 ."),
            (Some(71), "- 6 00:00:11 ., - 5 00:00:09 ."),
            (Some(80), ""),
        ]), @r"

        + 1 00:00:10 ., + 2 00:00:20 .
        - 2 00:00:20 .
        - 1 00:00:10 ., + 2 00:00:20 ., + 6 00:00:11 .
        + 7 00:00:12 .
        - 6 00:00:11 .
        - 2 00:00:20 ., - 7 00:00:12 .
        = 0 rows
        ");
    }

    #[test]
    fn rows_come_and_go() {
        let now = Vec::new;
        let filter = filter(&[("from", Comparison::LessOrEqual, now()), ("to", Comparison::Greater, now())]);
        insta::assert_snapshot!(check(filter, &[
            (Some(0), "+ 1 00:00:10 00:00:20, + 2 -1 00:00:05, + 3 00:00:30 00:00:30, + 4 00:00:07 00:01:00, + 4 00:00:07 00:01:00"),
            (Some(9), "- 4 00:00:07 00:01:00, + 5 00:00:20 00:00:40"),
            (Some(10), "- 5 00:00:20 00:00:40"),
            (Some(60), ""),
        ]), @r"
        + 2 -1 00:00:05
        - 2 -1 00:00:05, + 4 00:00:07 00:01:00
        + 1 00:00:10 00:00:20
        - 1 00:00:10 00:00:20, - 4 00:00:07 00:01:00
        = 0 rows
        ");
    }

    #[test]
    fn a_day_is_over_at_midnight() {
        let day = vec![MomentStep::Floor { width_us: 86_400 * SECOND, phase_us: 0 }];
        let today = [("from", Comparison::GreaterOrEqual, day.clone()), ("from", Comparison::LessOrEqual, day)];
        insta::assert_snapshot!(check(filter(&today), &[
            (Some(100), "+ 1 00:00:00 ., + 2 00:00:01 ., + 3 86400 ., + 4 -86400 ."),
            (Some(86_399), ""),
            (Some(86_400), ""),
            (Some(172_800), ""),
        ]), @r"
        + 1 00:00:00 .

        - 1 00:00:00 ., + 3 86400 .
        - 3 86400 .
        = 0 rows
        ");
    }

    /// Random ticks with retractions against the bounds looked at afresh.
    #[test]
    fn the_sum_of_the_output_is_what_the_bounds_let_through() {
        for seed in 0..60 {
            let mut random = StdRng::seed_from_u64(seed);
            let comparison = |random: &mut StdRng| {
                use Comparison::*;
                [Less, LessOrEqual, Greater, GreaterOrEqual][random.random_range(0..4)]
            };
            let moment = |random: &mut StdRng| -> Vec<MomentStep> {
                let step = |random: &mut StdRng| match random.random_range(0..2) {
                    0 => MomentStep::Add { us: random.random_range(-20..20) * SECOND },
                    _ => MomentStep::Floor { width_us: random.random_range(1..9) * SECOND, phase_us: 3 * SECOND },
                };
                (0..random.random_range(0..3)).map(|_| step(random)).collect()
            };
            let bounds: Vec<(&str, Comparison, Vec<MomentStep>)> = (0..random.random_range(1..4))
                .map(|_| {
                    let column = ["from", "to"][random.random_range(0..2)];
                    (column, comparison(&mut random), moment(&mut random))
                })
                .collect();
            let mut filter = filter(&bounds);
            let mut held: BTreeMap<(i64, i64, i64), i64> = BTreeMap::new();
            let mut told: BTreeMap<String, i64> = BTreeMap::new();
            let mut clock = -10;
            for _ in 0..20 {
                clock += random.random_range(0..8);
                let mut rows = Vec::new();
                for _ in 0..random.random_range(0..6) {
                    let old = held.keys().nth(random.random_range(0..=held.len())).copied();
                    let (row, weight) = match old.filter(|_| random.random_bool(0.5)) {
                        Some(row) => (row, -1),
                        None => {
                            let time = |random: &mut StdRng| clock + random.random_range(-25..25);
                            ((random.random_range(0..2), time(&mut random), time(&mut random)), 1)
                        }
                    };
                    *held.entry(row).or_default() += weight;
                    held.retain(|_, weight| *weight != 0);
                    rows.push(format!("{weight} {} {} {}", row.0, row.1, row.2));
                }
                let delta = parse(&format!("{COLUMNS}\n{}", rows.join("\n")));
                let out = filter.step(&delta, Some(clock * SECOND)).unwrap();
                for line in print(&out).lines() {
                    let (weight, row) = line.split_once(' ').unwrap();
                    let weight = match weight {
                        "+" => 1,
                        "-" => -1,
                        more => more.parse().unwrap(),
                    };
                    *told.entry(row.to_string()).or_default() += weight;
                }
                told.retain(|_, weight| *weight != 0);
                let within = |row: &(i64, i64, i64)| {
                    bounds.iter().all(|(column, comparison, steps)| {
                        let time = if *column == "from" { row.1 } else { row.2 } * SECOND;
                        let moment = Moment(steps.clone()).at_us(clock * SECOND);
                        match comparison {
                            Comparison::Less => time < moment,
                            Comparison::LessOrEqual => time <= moment,
                            Comparison::Greater => time > moment,
                            Comparison::GreaterOrEqual => time >= moment,
                        }
                    })
                };
                let mut expected: BTreeMap<String, i64> = BTreeMap::new();
                for (row, weight) in held.iter().filter(|(row, _)| within(row)) {
                    let text = parse(&format!("{COLUMNS}\n+ {} {} {}", row.0, row.1, row.2));
                    *expected.entry(print(&text)[2..].to_string()).or_default() += weight;
                }
                assert_eq!(told, expected, "seed {seed} at {clock}: {bounds:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn a_moment_is_reached_when_it_is(
            clock in -1000i64..1000, us in -1000i64..1000, by in -50i64..50, width in 1i64..40, phase in -9i64..9,
        ) {
            let steps = [MomentStep::Add { us: by }, MomentStep::Floor { width_us: width, phase_us: phase }];
            for moment in [Moment(steps.to_vec()), Moment(steps.into_iter().rev().collect())] {
                prop_assert_eq!(moment.at_us(clock) >= us, clock >= moment.reaches_us(us));
            }
        }
    }
}
