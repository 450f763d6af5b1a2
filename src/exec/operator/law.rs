//! The law of every operator, after DBSP: the sum of its outputs so far is what a naive, from-scratch version of it says of
//! the sum of its inputs so far. Random ticks of additions and of valid retractions, from a seed.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::logical_expr::Operator as Sign;
use datafusion::physical_expr::expressions::{binary, col, lit};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{AssignWindows, Filter, Operator, Project, Ranks, TopN, UnionAll};
use crate::exec::text::{parse, parse_schema, print};
use crate::planner::stream_plan::{OrderBy, Window};

/// Columns a, b and time, in that order.
type Row = [Option<i64>; 3];
const INPUT: &str = "a:i b:i time:t";

/// Rows and how often each is there; none with 0.
#[derive(Default, Clone)]
struct Bag(BTreeMap<Row, i64>);

impl Bag {
    fn rows(&self) -> impl Iterator<Item = Row> {
        self.0.iter().flat_map(|(row, &weight)| std::iter::repeat_n(*row, weight as usize))
    }
}

fn show(values: impl IntoIterator<Item = Option<i64>>) -> String {
    let show = |value: Option<i64>| value.map_or(".".to_string(), |value| value.to_string());
    values.into_iter().map(show).collect::<Vec<_>>().join(" ")
}

/// A tick's change of one input: text in delta notation.
fn tick(bag: &mut Bag, append_only: bool, random: &mut StdRng) -> String {
    let mut lines = vec![INPUT.to_string()];
    for _ in 0..random.random_range(0..6) {
        let value = |random: &mut StdRng, range| random.random_bool(0.9).then(|| random.random_range(range));
        let row = [value(random, 0..3), value(random, -3..4), value(random, -40..40)];
        let (row, weight) = match bag.0.iter().nth(random.random_range(0..=bag.0.len())) {
            Some((held, &weight)) if !append_only && random.random_bool(0.6) => {
                (*held, -random.random_range(1..=weight))
            }
            _ => (row, random.random_range(1..3)),
        };
        let held = bag.0.entry(row).or_default();
        *held += weight;
        bag.0.retain(|_, weight| *weight != 0);
        lines.push(format!("{weight} {}", show(row)));
    }
    lines.join("\n")
}

/// `naive` gives the output's rows, each as text.
fn check(
    make: impl Fn() -> Box<dyn Operator>,
    inputs: usize,
    append_only: bool,
    naive: impl Fn(&[Bag]) -> Vec<String>,
) {
    for seed in 0..5 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut operator = make();
        let mut bags = vec![Bag::default(); inputs];
        let mut total: BTreeMap<String, i64> = BTreeMap::new();
        for n in 0..30 {
            let ticks: Vec<String> = bags.iter_mut().map(|bag| tick(bag, append_only, &mut random)).collect();
            let deltas: Vec<_> = ticks.iter().map(|text| parse(text)).collect();
            for line in print(&operator.step(&deltas).unwrap()).lines() {
                let (weight, row) = line.split_once(' ').unwrap();
                *total.entry(row.to_string()).or_default() += match weight {
                    "+" => 1,
                    "-" => -1,
                    more => more.parse().unwrap(),
                };
            }
            total.retain(|_, weight| *weight != 0);
            let mut expected: BTreeMap<String, i64> = BTreeMap::new();
            for row in naive(&bags) {
                *expected.entry(row).or_default() += 1;
            }
            assert_eq!(total, expected, "seed {seed}, tick {n}: {ticks:?}");
        }
    }
}

/// A row as delta notation prints it: times below a day as HH:MM:SS.
fn text(row: Row) -> String {
    let time = row[2].map_or(".".to_string(), show_time);
    format!("{} {time}", show([row[0], row[1]]))
}

fn show_time(seconds: i64) -> String {
    if seconds < 0 { seconds.to_string() } else { format!("00:{:02}:{:02}", seconds / 60, seconds % 60) }
}

#[test]
fn filter() {
    let schema = parse_schema(INPUT);
    let predicate = binary(col("b", &schema).unwrap(), Sign::Gt, lit(0i64), &schema).unwrap();
    let naive = |bags: &[Bag]| bags[0].rows().filter(|row| row[1].is_some_and(|b| b > 0)).map(text).collect();
    check(|| Box::new(Filter::new(Arc::clone(&predicate))), 1, false, naive);
}

#[test]
fn project() {
    let schema = parse_schema(INPUT);
    let sum = binary(col("a", &schema).unwrap(), Sign::Plus, col("b", &schema).unwrap(), &schema).unwrap();
    let naive = |bags: &[Bag]| bags[0].rows().map(|row| show([row[0].zip(row[1]).map(|(a, b)| a + b)])).collect();
    check(|| Box::new(Project::new(std::slice::from_ref(&sum), parse_schema("s:i"))), 1, false, naive);
}

#[test]
fn union_all() {
    let naive = |bags: &[Bag]| bags.iter().flat_map(Bag::rows).map(text).collect();
    check(|| Box::new(UnionAll::new(parse_schema(INPUT))), 3, false, naive);
}

#[test]
fn assign_windows() {
    for (slide, size, offset) in [(10, 10, 0), (5, 12, 3), (20, 7, -1)] {
        let naive = |bags: &[Bag]| {
            let mut rows = Vec::new();
            for row in bags[0].rows() {
                let Some(time) = row[2] else { continue };
                let covers = |start: &i64| (start - offset) % slide == 0 && *start <= time && time < start + size;
                let windows = (-100..100).filter(covers);
                rows.extend(windows.map(|w| format!("{} {} {}", text(row), show_time(w), show_time(w + size))));
            }
            rows
        };
        let window = Window::hop(size * 1_000_000, slide * 1_000_000, offset * 1_000_000);
        let schema = parse_schema(&format!("{INPUT} window_start:t window_end:t"));
        check(|| Box::new(AssignWindows::new(2, window, Arc::clone(&schema)).unwrap()), 1, false, naive);
    }
}

#[test]
fn top_n() {
    let orders = [(1, true, false), (1, false, true), (2, false, false)];
    for (i, order) in orders.into_iter().cycle().take(12).enumerate() {
        let (column, descending, nulls_first) = order;
        let partition_by: &[usize] = if i % 2 == 0 { &[0] } else { &[] };
        let ranks = Ranks { offset: i as u64 % 3, limit: 1 + i as u64 % 4, row_number: i % 4 > 1, append_only: i > 7 };
        let naive = |bags: &[Bag]| {
            let mut partitions: BTreeMap<Option<i64>, Vec<Row>> = BTreeMap::new();
            for row in bags[0].rows() {
                partitions.entry(if partition_by.is_empty() { None } else { row[0] }).or_default().push(row);
            }
            let mut out = Vec::new();
            for rows in partitions.values_mut() {
                // The whole row decides ties; None sorts first there, and in the order where it says so.
                rows.sort_by_key(|row| {
                    let null = row[column].is_none() != nulls_first;
                    let value = row[column].map(|value| if descending { -value } else { value });
                    (null, value, *row)
                });
                let top = rows.iter().enumerate().skip(ranks.offset as usize).take(ranks.limit as usize);
                out.extend(top.map(|(i, row)| match ranks.row_number {
                    true => format!("{} {}", text(*row), i + 1),
                    false => text(*row),
                }));
            }
            out
        };
        let number = if ranks.row_number { " n:i" } else { "" };
        let order = OrderBy { column, descending, nulls_first };
        let schema = parse_schema(&format!("{INPUT}{number}"));
        let make =
            || Box::new(TopN::new(partition_by, &[order], ranks, Arc::clone(&schema)).unwrap()) as Box<dyn Operator>;
        check(make, 1, ranks.append_only, naive);
    }
}
