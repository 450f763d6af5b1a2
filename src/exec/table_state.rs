//! The rows of a table, and what an INSERT, UPDATE or DELETE does to them.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::row::Rows;
use hashbrown::HashMap;

use super::arrangement::{Arrangement, At, Snapshot};
use super::durable::Saved;
use super::rows::{RowCodec, describe_row, gather_rows};
use super::{Delta, ExecError};

/// What happens to a new row whose primary key is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnConflict {
    Error,
    /// The row that is there stays.
    DoNothing,
    /// The new row takes its place; of several new ones the last.
    Overwrite,
}

/// One statement's change: whole rows in the table's column order.
#[derive(Debug, Clone)]
pub struct Change {
    /// -1 takes away one row that is equal in every column. Removals come before additions, wherever they stand.
    pub delta: Delta,
    /// For a change that only adds. One that also removes is an UPDATE, and must not run into another row's key.
    pub on_conflict: OnConflict,
}

/// Changes that were found possible, and what they amount to.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// For the table and for every view over it: no row both added and taken back.
    pub delta: Delta,
    /// Rows stored, overwritten or removed, by change; a row updated counts once.
    pub affected: Vec<u64>,
}

/// The rows of one table. With a primary key every key has at most one row; without, rows are a multiset, or a list where
/// the table is append-only.
pub struct TableState {
    rows: Arrangement,
    keyed: bool,
    whole: RowCodec,
}

impl TableState {
    /// `primary_key` is empty for none. Its columns hold no NULL: that is checked before.
    pub fn new(schema: SchemaRef, primary_key: Vec<usize>, append_only: bool) -> Result<Self, ExecError> {
        let whole = RowCodec::whole(&schema)?;
        let keyed = !primary_key.is_empty();
        let rows = match (keyed, append_only) {
            (true, _) => Arrangement::keyed(schema, primary_key)?,
            (false, true) => Arrangement::append_only(schema),
            (false, false) => Arrangement::multiset(schema)?,
        };
        Ok(TableState { rows, keyed, whole })
    }

    pub fn schema(&self) -> &SchemaRef {
        self.rows.schema()
    }

    pub fn rows(&self) -> usize {
        self.rows.rows()
    }

    pub fn bytes(&self) -> usize {
        self.rows.bytes()
    }

    pub fn snapshot(&mut self) -> Arc<Snapshot> {
        self.rows.snapshot()
    }

    /// What these changes, one after the other, do to the rows as they are; nothing is done yet. Fails as a whole:
    /// [`ExecError::DuplicateKey`], or [`ExecError::RowMissing`] where a row to be removed is not there.
    pub fn prepare(&self, changes: &[Change]) -> Result<Prepared, ExecError> {
        match self.rows.key() {
            None => self.prepare_appends(changes),
            Some(key) => {
                let keys =
                    changes.iter().map(|change| key.encode(&change.delta.rows)).collect::<Result<Vec<_>, _>>()?;
                let ids = KeyIds::of(&self.rows, &keys);
                if self.keyed { self.prepare_keyed(key, changes, ids) } else { self.prepare_multiset(changes, ids) }
            }
        }
    }

    /// Takes over what [`TableState::prepare`] gave for the same rows.
    pub fn apply(&mut self, delta: &Delta) -> Result<(), ExecError> {
        self.rows.apply(delta)
    }

    /// See [`Arrangement::track_saves`].
    pub fn track_saves(&mut self) {
        self.rows.track_saves();
    }

    /// See [`Arrangement::save`].
    pub fn save(&mut self, whole: bool) -> Result<Saved, ExecError> {
        self.rows.save(whole)
    }

    /// See [`Arrangement::load`].
    pub fn load(&mut self, saves: &[Saved]) -> Result<(), ExecError> {
        self.rows.load(saves)
    }

    fn prepare_appends(&self, changes: &[Change]) -> Result<Prepared, ExecError> {
        let mut outcome = Outcome::default();
        for (c, change) in changes.iter().enumerate() {
            if (0..change.delta.num_rows()).any(|row| change.delta.weight(row) < 0) {
                let hint = "Only INSERT changes it; make the table without APPEND ONLY.".to_string();
                return Err(ExecError::Unsupported { what: "a row taken from an append-only table".into(), hint });
            }
            let rows = 0..change.delta.num_rows();
            outcome.net.extend(rows.clone().map(|row| ((c + 1, row), change.delta.weight(row))));
            outcome.affected.push(rows.map(|row| change.delta.weight(row) as u64).sum());
        }
        outcome.finish(self.schema(), &RecordBatch::new_empty(Arc::clone(self.schema())), changes)
    }

    fn prepare_multiset(&self, changes: &[Change], ids: KeyIds) -> Result<Prepared, ExecError> {
        let before: Vec<i64> = ids.places.iter().map(|place| place.map_or(0, |at| self.rows.weight(at))).collect();
        let mut now = before.clone();
        let mut outcome = Outcome::default();
        for (c, change) in changes.iter().enumerate() {
            let (mut removed, mut added) = (0, 0);
            for (row, weight) in removals(&change.delta) {
                let now = &mut now[ids.of[c][row]];
                *now += weight;
                removed += weight.unsigned_abs();
                if *now < 0 {
                    return Err(missing(&change.delta, row));
                }
            }
            for (row, weight) in additions(&change.delta) {
                now[ids.of[c][row]] += weight;
                added += weight as u64;
            }
            outcome.affected.push(removed.max(added));
        }
        let nets = ids.first.iter().zip(before.iter().zip(&now));
        outcome.net = nets.map(|(&(c, row), (before, now))| ((c + 1, row), now - before)).collect();
        outcome.finish(self.schema(), &RecordBatch::new_empty(Arc::clone(self.schema())), changes)
    }

    fn prepare_keyed(&self, key: &RowCodec, changes: &[Change], ids: KeyIds) -> Result<Prepared, ExecError> {
        let held = self.rows.fetch(&ids.places.iter().flatten().copied().collect::<Vec<_>>())?;
        let whole_held = self.whole.encode(&held)?;
        let whole =
            changes.iter().map(|change| self.whole.encode(&change.delta.rows)).collect::<Result<Vec<_>, _>>()?;
        // A row is (0, row of `held`) or (change + 1, its row).
        let bytes = |(batch, row): (usize, usize)| match batch {
            0 => whole_held.row(row).data(),
            change => whole[change - 1].row(row).data(),
        };
        let mut next = 0..;
        let before: Vec<Option<(usize, usize)>> =
            ids.places.iter().map(|place| place.and_then(|_| next.next()).map(|row| (0, row))).collect();
        let mut now = before.clone();

        let mut outcome = Outcome::default();
        for (c, change) in changes.iter().enumerate() {
            let (mut removed, mut added) = (0, 0);
            for (row, weight) in removals(&change.delta) {
                let now = &mut now[ids.of[c][row]];
                if weight != -1 || now.is_none_or(|now| bytes(now) != bytes((c + 1, row))) {
                    return Err(missing(&change.delta, row));
                }
                *now = None;
                removed += 1;
            }
            let rule = if removed > 0 { OnConflict::Error } else { change.on_conflict };
            for (row, weight) in additions(&change.delta) {
                let now = &mut now[ids.of[c][row]];
                let taken = now.is_some() || weight > 1;
                match rule {
                    OnConflict::Error if taken => {
                        return Err(ExecError::DuplicateKey { key: key.describe(&change.delta.rows, row) });
                    }
                    OnConflict::DoNothing if now.is_some() => {}
                    OnConflict::Error | OnConflict::DoNothing => {
                        *now = Some((c + 1, row));
                        added += 1;
                    }
                    OnConflict::Overwrite => {
                        *now = Some((c + 1, row));
                        added += weight as u64;
                    }
                }
            }
            outcome.affected.push(removed.max(added));
        }
        for (before, now) in before.iter().zip(&now) {
            if before.map(bytes) != now.map(bytes) {
                outcome.net.extend(before.map(|row| (row, -1)));
                outcome.net.extend(now.map(|row| (row, 1)));
            }
        }
        outcome.finish(self.schema(), &held, changes)
    }
}

/// The distinct keys of several changes, numbered.
struct KeyIds {
    /// The number of each row's key, by change.
    of: Vec<Vec<usize>>,
    /// Where a key first comes: change, row.
    first: Vec<(usize, usize)>,
    /// The row that the table holds under a key.
    places: Vec<Option<At>>,
}

impl KeyIds {
    fn of(table: &Arrangement, keys: &[Rows]) -> Self {
        let mut numbers: HashMap<&[u8], usize> = HashMap::new();
        let mut ids = KeyIds { of: Vec::with_capacity(keys.len()), first: Vec::new(), places: Vec::new() };
        for (c, rows) in keys.iter().enumerate() {
            let found = table.find(rows);
            let mut of = Vec::with_capacity(rows.num_rows());
            for (row, place) in found.into_iter().enumerate() {
                let new = numbers.len();
                let id = *numbers.entry(rows.row(row).data()).or_insert(new);
                if id == new {
                    ids.first.push((c, row));
                    ids.places.push(place);
                }
                of.push(id);
            }
            ids.of.push(of);
        }
        ids
    }
}

/// Net weights of rows: (0, row held by the table) or (change + 1, its row).
#[derive(Default)]
struct Outcome {
    net: Vec<((usize, usize), i64)>,
    affected: Vec<u64>,
}

impl Outcome {
    fn finish(mut self, schema: &SchemaRef, held: &RecordBatch, changes: &[Change]) -> Result<Prepared, ExecError> {
        self.net.retain(|&(_, weight)| weight != 0);
        let batches: Vec<&RecordBatch> =
            std::iter::once(held).chain(changes.iter().map(|change| &change.delta.rows)).collect();
        let (picked, weights): (Vec<_>, Vec<i64>) = self.net.into_iter().unzip();
        let rows = gather_rows(schema, &batches, &picked)?;
        let append = weights.iter().all(|&weight| weight == 1);
        let delta = if append { Delta::inserts(rows) } else { Delta::weighted(rows, weights) };
        Ok(Prepared { delta, affected: self.affected })
    }
}

fn removals(delta: &Delta) -> impl Iterator<Item = (usize, i64)> {
    (0..delta.num_rows()).map(|row| (row, delta.weight(row))).filter(|&(_, weight)| weight < 0)
}

fn additions(delta: &Delta) -> impl Iterator<Item = (usize, i64)> {
    (0..delta.num_rows()).map(|row| (row, delta.weight(row))).filter(|&(_, weight)| weight > 0)
}

fn missing(delta: &Delta, row: usize) -> ExecError {
    ExecError::RowMissing { row: describe_row(delta.rows.columns(), row) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::text::{parse, print, print_rows};

    /// Applies groups of changes to a table of (k BIGINT PRIMARY KEY, v VARCHAR): per group the delta and the rows
    /// affected, or the error; then what the table holds.
    fn check(primary_key: Vec<usize>, groups: &[&[(&str, OnConflict)]]) -> String {
        let mut table = TableState::new(parse("k:i v:s").rows.schema(), primary_key, false).unwrap();
        let mut lines = Vec::new();
        for group in groups {
            let change = |&(rows, on_conflict): &(&str, OnConflict)| {
                let delta = parse(&format!("k:i v:s\n{}", rows.replace(", ", "\n")));
                Change { delta, on_conflict }
            };
            match table.prepare(&group.iter().map(change).collect::<Vec<_>>()) {
                Ok(prepared) => {
                    table.apply(&prepared.delta).unwrap();
                    let delta = print(&prepared.delta).replace('\n', ", ");
                    lines.push(format!("{delta} -> {:?}", prepared.affected));
                }
                Err(error) => lines.push(error.to_string()),
            }
        }
        let snapshot = table.snapshot();
        assert_eq!(snapshot.num_rows(), table.rows());
        lines.push("=".to_string());
        lines.push(print_rows(table.schema(), &snapshot.batches(None).unwrap()));
        lines.join("\n")
    }

    use OnConflict::{DoNothing, Error, Overwrite};

    #[test]
    fn insert_by_key() {
        insta::assert_snapshot!(check(vec![0], &[
            &[("+ 1 a, + 2 b", Error)],
            &[("+ 3 c, + 2 x", Error)],
            &[("+ 3 c, + 3 d", Error)],
            &[("+ 3 c, + 3 d, + 2 x", DoNothing)],
            &[("+ 1 a, + 2 y, + 4 e, + 4 f", Overwrite)],
            &[("+ 5 g", Error), ("+ 5 h", Error)],
            &[("+ 5 g", Error), ("+ 5 h", Overwrite)],
        ]), @r"
        + 1 a, + 2 b -> [2]
        key (k)=(2) already exists
        key (k)=(3) already exists
        + 3 c -> [1]
        - 2 b, + 2 y, + 4 f -> [4]
        key (k)=(5) already exists
        + 5 h -> [1, 1]
        =
        + 1 a
        + 2 y
        + 3 c
        + 4 f
        + 5 h
        ");
    }

    #[test]
    fn update_and_delete_by_key() {
        insta::assert_snapshot!(check(vec![0], &[
            &[("+ 1 a, + 2 b, + 3 c", Error)],
            &[("- 1 a, + 1 z", Error)],
            &[("- 1 a", Error)],
            &[("- 1 z, + 2 z", Overwrite)],
            &[("- 1 z, + 2 z, - 2 b, + 3 b, - 3 c, + 4 c", Error)],
            &[("- 2 z, + 2 z", Error)],
            &[("- 2 z", Error), ("+ 2 n", Error), ("- 2 n", Error), ("+ 2 z", Error)],
            &[("- 3 b", Error), ("- 3 b", Error)],
        ]), @r"
        + 1 a, + 2 b, + 3 c -> [3]
        - 1 a, + 1 z -> [1]
        row (1, a) is not there
        key (k)=(2) already exists
        - 1 z, - 2 b, + 2 z, + 3 b, - 3 c, + 4 c -> [3]
         -> [1]
         -> [1, 1, 1, 1]
        row (3, b) is not there
        =
        + 2 z
        + 3 b
        + 4 c
        ");
    }

    #[test]
    fn a_table_without_key_is_a_multiset() {
        insta::assert_snapshot!(check(vec![], &[
            &[("+ 1 a, + 1 a, + . .", Error)],
            &[("- 1 a", Error)],
            &[("- 1 a", Error), ("- 1 a", Error)],
            &[("- 1 a, + 1 b", Error), ("- 1 b", Error), ("+ 2 c, + 2 c", DoNothing)],
            &[("- . ., + . .", Error)],
        ]), @r"
        + . ., +2 1 a -> [3]
        - 1 a -> [1]
        row (1, a) is not there
        - 1 a, +2 2 c -> [1, 1, 2]
         -> [1]
        =
        + . .
        +2 2 c
        ");
    }
}
