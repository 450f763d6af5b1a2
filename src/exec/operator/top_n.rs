use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, UInt64Array};
use arrow::compute::SortOptions;
use arrow::datatypes::{DataType, SchemaRef};
use arrow::row::SortField;
use hashbrown::{HashMap, HashSet};
use serde::{Deserialize, Serialize};

use super::{Durable, Operator};
use crate::exec::durable::Saved;
use crate::exec::rows::{Net, RowCodec, batch_of, describe_row};
use crate::exec::saved_columns::{only_sections, since_whole, weighted_rows, weighted_section, wrong};
use crate::exec::unsaved::Unsaved;
use crate::exec::{Delta, ExecError};
use crate::planner::stream_plan::OrderBy;

/// Keeps the rows at positions `offset + 1 ..= offset + limit` of each partition, in a given order; ties are broken by the
/// whole row, column by column, ascending, NULL first.
///
/// - Input: one. Output: its columns, and with `row_number` the row's position, from 1, as a last column.
/// - State: every row of every partition, sorted; of an append-only input only the first `offset + limit`.
/// - Cost: a look-up in the partition's tree per row, and per tick `offset + limit` steps for each partition touched.
/// - Deletions take the row out of the tree, and the next one moves up. A row that counts n times takes n positions. With
///   `row_number` a row that moves is taken back at its old position and added at the new one.
/// - NULL partitions are one partition; NULLs sort as the order says.
pub struct TopN {
    ranks: Ranks,
    schema: SchemaRef,
    input: SchemaRef,
    partition: RowCodec,
    /// The order's columns, each in its direction, then the whole row.
    sorted: RowCodec,
    order_columns: usize,
    partitions: HashMap<Box<[u8]>, Partition>,
    rows: usize,
    bytes: usize,
    unsaved: Option<Unsaved>,
}

/// How many distinct rows there are once a save has been taken in.
#[derive(Serialize, Deserialize)]
struct Notes {
    rows: usize,
}

/// So many rows are saved in one piece.
const SECTION_ROWS: usize = 65_536;

/// Which positions of a partition are put out.
#[derive(Debug, Clone, Copy)]
pub struct Ranks {
    pub offset: u64,
    pub limit: u64,
    pub row_number: bool,
    /// The input never takes a row back.
    pub append_only: bool,
}

#[derive(Default)]
struct Partition {
    /// Sorted row → weight, above 0.
    tree: BTreeMap<Arc<[u8]>, i64>,
    /// The sum of the weights.
    total: u64,
}

/// What a row of the tree costs beside its bytes: the reference, its counters, and its share of the node.
const ROW_OVERHEAD_BYTES: usize = 56;

impl TopN {
    /// `schema` is the output's.
    pub fn new(
        partition_by: &[usize],
        order_by: &[OrderBy],
        ranks: Ranks,
        schema: SchemaRef,
    ) -> Result<Self, ExecError> {
        let input_columns = schema.fields().len() - usize::from(ranks.row_number);
        let (mut columns, mut fields) = (Vec::new(), Vec::new());
        for order in order_by {
            let options = SortOptions { descending: order.descending, nulls_first: order.nulls_first };
            columns.push(order.column);
            fields.push(SortField::new_with_options(schema.field(order.column).data_type().clone(), options));
        }
        for column in 0..input_columns {
            columns.push(column);
            fields.push(SortField::new(schema.field(column).data_type().clone()));
        }
        Ok(TopN {
            ranks,
            partition: RowCodec::of(&schema, partition_by.to_vec())?,
            sorted: RowCodec::sorted(columns, fields)?,
            order_columns: order_by.len(),
            input: Arc::new(schema.project(&(0..input_columns).collect::<Vec<_>>())?),
            schema,
            partitions: HashMap::new(),
            rows: 0,
            bytes: 0,
            unsaved: None,
        })
    }

    fn add(&mut self, partition: &[u8], row: &[u8], change: i64) -> Result<(), i64> {
        let keep = if self.ranks.append_only { self.ranks.end() } else { u64::MAX };
        let Partition { tree, total } =
            self.partitions.get_mut(partition).expect("a partition is there while a tick touches it");
        if *total >= keep && tree.last_key_value().is_none_or(|(last, _)| row > last.as_ref()) {
            return Ok(());
        }
        let weight = tree.get(row).copied().unwrap_or(0) + change;
        if weight < 0 {
            return Err(weight);
        }
        *total = total.saturating_add_signed(change);
        if weight == 0 {
            tree.remove(row);
            self.rows -= 1;
            self.bytes -= row.len() + ROW_OVERHEAD_BYTES;
        } else if let Some(held) = tree.get_mut(row) {
            *held = weight;
        } else {
            tree.insert(row.into(), weight);
            self.rows += 1;
            self.bytes += row.len() + ROW_OVERHEAD_BYTES;
        }
        while let Some(last) = tree.last_entry().filter(|last| *total - *last.get() as u64 >= keep) {
            let (row, weight) = last.remove_entry();
            *total -= weight as u64;
            self.rows -= 1;
            self.bytes -= row.len() + ROW_OVERHEAD_BYTES;
        }
        Ok(())
    }

    fn emit(&self, changes: Vec<(Arc<[u8]>, u64, i64)>) -> Result<Delta, ExecError> {
        let decoded = self.sorted.decode(changes.iter().map(|(row, _, _)| row.as_ref()))?;
        let mut columns: Vec<ArrayRef> = decoded[self.order_columns..].to_vec();
        if self.ranks.row_number {
            let ranks = changes.iter().map(|&(_, rank, _)| rank);
            let number_type = self.schema.fields().last().map(|field| field.data_type());
            columns.push(match number_type {
                Some(DataType::UInt64) => Arc::new(UInt64Array::from_iter_values(ranks)),
                _ => Arc::new(Int64Array::from_iter_values(ranks.map(|rank| rank as i64))),
            });
        }
        let rows: RecordBatch = batch_of(&self.schema, columns, changes.len())?;
        Ok(Delta::weighted(rows, changes.into_iter().map(|(_, _, weight)| weight).collect()))
    }
}

impl Operator for TopN {
    fn step(&mut self, inputs: &[Delta]) -> Result<Delta, ExecError> {
        let [input] = inputs else { unreachable!("a top-n has one input") };
        let net = Net::of(&self.sorted, input)?;
        let partition_of = self.partition.encode(&input.rows)?;

        let mut touched: Vec<(&[u8], Vec<Place>)> = Vec::new();
        let mut seen: HashSet<&[u8]> = HashSet::new();
        for &(row, change) in &net.entries {
            let partition = partition_of.row(row as usize).data();
            if seen.insert(partition) {
                let held = self.partitions.entry_ref(partition).or_default();
                touched.push((partition, held.places(self.ranks)));
            }
            self.add(partition, net.bytes(row), change).map_err(|weight| ExecError::NegativeWeight {
                row: describe_row(input.rows.columns(), row as usize),
                weight,
            })?;
        }
        if let Some(unsaved) = &mut self.unsaved {
            unsaved.add(input, self.rows)?;
        }

        let mut changes = Vec::new();
        for (partition, before) in touched {
            let after = self.partitions.get(partition).map_or_else(Vec::new, |held| held.places(self.ranks));
            if self.ranks.row_number {
                by_position(&before, &after, &mut changes);
            } else {
                by_row(&before, &after, &mut changes);
            }
            if self.partitions.get(partition).is_some_and(|held| held.tree.is_empty()) {
                self.partitions.remove(partition);
            }
        }
        self.emit(changes)
    }

    fn rows(&self) -> usize {
        self.rows
    }

    fn bytes(&self) -> usize {
        self.bytes + self.partitions.capacity() * size_of::<(Box<[u8]>, Partition)>()
    }

    fn durable(&mut self) -> Option<&mut dyn Durable> {
        Some(self)
    }
}

/// Saved as rows with weights: those held, or what the input has changed since. Where no more than the limit is kept, the same
/// rows remain, in whatever pieces they come.
impl Durable for TopN {
    fn track_saves(&mut self) {
        self.unsaved.get_or_insert_with(|| Unsaved::new(true, false));
    }

    fn save(&mut self, whole: bool) -> Result<Saved, ExecError> {
        let changed = self.unsaved.as_mut().map(|unsaved| unsaved.take(whole, &self.input)).transpose()?.flatten();
        let mut saved = Saved { whole: changed.is_none(), ..Saved::default() };
        match changed {
            Some(delta) if delta.is_empty() => {}
            Some(delta) => saved.push("rows", weighted_section(&delta)?),
            None => {
                let all: Vec<(&[u8], i64)> = self
                    .partitions
                    .values()
                    .flat_map(|held| held.tree.iter().map(|(row, &weight)| (row.as_ref(), weight)))
                    .collect();
                for rows in all.chunks(SECTION_ROWS) {
                    let columns = self.sorted.decode(rows.iter().map(|(row, _)| *row))?;
                    let batch = batch_of(&self.input, columns[self.order_columns..].to_vec(), rows.len())?;
                    let weights = rows.iter().map(|&(_, weight)| weight).collect();
                    saved.push("rows", weighted_section(&Delta::weighted(batch, weights))?);
                }
            }
        }
        if !saved.is_empty() {
            saved.notes = serde_json::json!(Notes { rows: self.rows });
        }
        self.unsaved.iter_mut().for_each(Unsaved::given);
        Ok(saved)
    }

    fn load(&mut self, saves: &[Saved]) -> Result<(), ExecError> {
        for saved in since_whole(saves)?.iter().filter(|saved| !saved.is_empty()) {
            only_sections(saved, &["rows"])?;
            for rows in saved.rows("rows") {
                let delta = weighted_rows("rows", rows, &self.input)?;
                let net = Net::of(&self.sorted, &delta)?;
                let partition_of = self.partition.encode(&delta.rows)?;
                for &(row, change) in &net.entries {
                    let partition = partition_of.row(row as usize).data();
                    self.partitions.entry_ref(partition).or_default();
                    self.add(partition, net.bytes(row), change)
                        .map_err(|_| wrong("section rows: a row is taken back that is not there"))?;
                }
            }
            let Notes { rows } = saved.notes()?;
            if rows != self.rows {
                return Err(wrong(format!("{rows} rows were saved, {} are there", self.rows)));
            }
        }
        self.partitions.retain(|_, held| !held.tree.is_empty());
        self.unsaved = Some(Unsaved::new(false, false));
        Ok(())
    }
}

impl Ranks {
    fn end(self) -> u64 {
        self.offset.saturating_add(self.limit)
    }
}

/// A row that is put out, and the positions it takes: `first .. first + count`, from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    row: Arc<[u8]>,
    first: u64,
    count: u64,
}

impl Partition {
    /// What of this partition is put out, in order.
    fn places(&self, ranks: Ranks) -> Vec<Place> {
        let mut places = Vec::new();
        let mut passed = 0u64;
        for (row, &weight) in &self.tree {
            let (from, to) = (passed.max(ranks.offset), passed.saturating_add(weight as u64).min(ranks.end()));
            if from < to {
                places.push(Place { row: Arc::clone(row), first: from + 1, count: to - from });
            }
            passed = passed.saturating_add(weight as u64);
            if passed >= ranks.end() {
                break;
            }
        }
        places
    }
}

/// The difference of two sorted lists of rows: (row, 0, weight).
fn by_row(before: &[Place], after: &[Place], changes: &mut Vec<(Arc<[u8]>, u64, i64)>) {
    let mut after = after.iter().peekable();
    for old in before {
        while let Some(new) = after.next_if(|new| new.row < old.row) {
            changes.push((Arc::clone(&new.row), 0, new.count as i64));
        }
        let kept = after.next_if(|new| new.row == old.row).map_or(0, |new| new.count);
        if kept != old.count {
            changes.push((Arc::clone(&old.row), 0, kept as i64 - old.count as i64));
        }
    }
    changes.extend(after.map(|new| (Arc::clone(&new.row), 0, new.count as i64)));
}

/// The positions at which two sorted lists hold different rows: (row, position, ±1).
fn by_position(before: &[Place], after: &[Place], changes: &mut Vec<(Arc<[u8]>, u64, i64)>) {
    let mut old = positions(before).peekable();
    let mut new = positions(after).peekable();
    loop {
        let (was, is) = match (old.peek(), new.peek()) {
            (None, None) => return,
            _ => (old.next(), new.next()),
        };
        if was.map(|(row, _)| row) == is.map(|(row, _)| row) {
            continue;
        }
        changes.extend(was.map(|(row, rank)| (Arc::clone(row), rank, -1)));
        changes.extend(is.map(|(row, rank)| (Arc::clone(row), rank, 1)));
    }
}

fn positions(places: &[Place]) -> impl Iterator<Item = (&Arc<[u8]>, u64)> {
    places.iter().flat_map(|place| (0..place.count).map(move |i| (&place.row, place.first + i)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::text::{parse, parse_schema, print};

    const BY_CLICKS: OrderBy = OrderBy { column: 1, descending: true, nulls_first: false };

    /// Feeds ticks over (p, clicks, ad) and gives each tick's output; `=` before the rows and bytes held at the end.
    fn check(partition_by: &[usize], ranks: Ranks, ticks: &[&str]) -> String {
        let number = if ranks.row_number { " n:i" } else { "" };
        let schema = parse_schema(&format!("p:s clicks:i ad:i{number}"));
        let mut top = TopN::new(partition_by, &[BY_CLICKS], ranks, schema).unwrap();
        let mut lines = Vec::new();
        for tick in ticks {
            let delta = parse(&format!("p:s clicks:i ad:i\n{}", tick.replace(", ", "\n")));
            lines.push(match top.step(&[delta]) {
                Ok(output) => print(&output).replace('\n', ", "),
                Err(error) => error.to_string(),
            });
        }
        lines.push(format!("= {} rows", top.rows()));
        assert_eq!(top.rows() == 0, top.partitions.is_empty(), "empty partitions are dropped");
        lines.join("\n")
    }

    const TOP_2: Ranks = Ranks { offset: 0, limit: 2, row_number: false, append_only: false };

    #[test]
    fn a_row_that_leaves_makes_room() {
        insta::assert_snapshot!(check(&[0], TOP_2, &[
            "+ x 5 1, + x 7 2, + x 6 3, + y . 4",
            "- x 7 2",
            "- x 5 1",
            "- x 6 3, + x 1 3, + y 1 5, + y 1 6",
            "- x 1 3, - y . 4, - y 1 5, - y 1 6",
        ]), @r"
        + x 6 3, + x 7 2, + y . 4
        + x 5 1, - x 7 2
        - x 5 1
        + x 1 3, - x 6 3, - y . 4, + y 1 5, + y 1 6
        - x 1 3, - y 1 5, - y 1 6
        = 0 rows
        ");
    }

    #[test]
    fn ties_go_by_the_whole_row_and_copies_take_positions() {
        insta::assert_snapshot!(check(&[], TOP_2, &[
            "+ x 5 2, + x 5 3, + . 5 9",
            "+ x 5 1",
            "+3 a 5 1",
            "-2 a 5 1",
            "-2 a 5 1",
        ]), @r"
        + . 5 9, + x 5 2
        + x 5 1, - x 5 2
        + a 5 1, - x 5 1

        row (a, 5, 1) was taken back more often than it was added (weight -1)
        = 5 rows
        ");
    }

    #[test]
    fn a_rank_that_changes_is_taken_back() {
        let ranks = Ranks { row_number: true, offset: 1, limit: 2, ..TOP_2 };
        insta::assert_snapshot!(check(&[0], ranks, &[
            "+ x 5 1, + x 7 2, + x 6 3",
            "+ x 9 4",
            "- x 9 4, +2 x 6 3",
        ]), @r"
        + x 5 1 3, + x 6 3 2
        - x 5 1 3, - x 6 3 2, + x 6 3 3, + x 7 2 2
        + x 6 3 2, - x 7 2 2
        = 3 rows
        ");
    }

    #[test]
    fn of_append_only_input_no_more_than_the_limit_is_kept() {
        let ranks = Ranks { append_only: true, offset: 1, ..TOP_2 };
        insta::assert_snapshot!(check(&[0], ranks, &[
            "+ x 5 1, + x 7 2, + x 6 3, + x 4 4, + x 3 5",
            "+ x 2 6",
            "+ x 8 7",
            "+ x 8 7",
        ]), @r"
        + x 5 1, + x 6 3

        - x 5 1, + x 7 2
        - x 6 3, + x 8 7
        = 2 rows
        ");
    }

    #[test]
    fn rank_numbers_are_of_the_type_asked_for() {
        let ranks = Ranks { row_number: true, ..TOP_2 };
        let fields = vec![
            arrow::datatypes::Field::new("a", DataType::Int64, true),
            arrow::datatypes::Field::new("n", DataType::UInt64, true),
        ];
        let mut top = TopN::new(&[], &[], ranks, Arc::new(arrow::datatypes::Schema::new(fields))).unwrap();
        assert_eq!(print(&top.step(&[parse("i\n+ 2\n+ 1\n+ .")]).unwrap()), "+ . 1\n+ 1 2");
    }
}
