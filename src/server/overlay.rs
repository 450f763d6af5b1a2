//! A table as a transaction sees it that has changed it and not committed: the rows of its tick with the changes on top.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{RecordBatch, UInt64Array};
use arrow::compute::{filter_record_batch, take_record_batch};
use arrow::datatypes::Schema;
use arrow::row::{OwnedRow, RowConverter, SortField};
use datafusion::catalog::TableProvider;
use datafusion::datasource::MemTable;

use super::error::PgError;
use super::sqlstate::{self as code, from_arrow};
use crate::catalog::{Object, Table};
use crate::engine::TableChange;
use crate::sql::OnConflict;

/// The rows after the changes, in memory.
///
/// # Errors
/// 23505 if an inserted row's primary key is there already, as COMMIT would find.
pub fn overlay(
    object: &Object,
    table: &Table,
    rows: Vec<RecordBatch>,
    changes: &[&TableChange],
) -> Result<Arc<dyn TableProvider>, PgError> {
    let mut state = State::new(object, table, rows)?;
    for change in changes {
        state.apply(change, table, &object.name)?;
    }
    state.into_table(object)
}

/// All rows, base and inserted, and which of them are still there. A row's place is its index over all parts.
struct State {
    parts: Vec<RecordBatch>,
    alive: Vec<bool>,
    /// Each row's content, by place.
    contents: Vec<OwnedRow>,
    /// Each row's primary key, by place; empty for a table without.
    keys: Vec<OwnedRow>,
    whole: RowConverter,
    key: Option<(Vec<usize>, RowConverter)>,
    /// Places of live rows.
    by_content: HashMap<OwnedRow, Vec<usize>>,
    by_key: HashMap<OwnedRow, usize>,
}

fn converter(schema: &Schema, columns: impl IntoIterator<Item = usize>) -> Result<RowConverter, PgError> {
    let fields = columns.into_iter().map(|i| SortField::new(schema.field(i).data_type().clone())).collect();
    RowConverter::new(fields).map_err(from_arrow)
}

impl State {
    fn new(object: &Object, table: &Table, rows: Vec<RecordBatch>) -> Result<State, PgError> {
        let key = match table.primary_key.as_slice() {
            [] => None,
            key => Some((key.to_vec(), converter(&object.columns, key.iter().copied())?)),
        };
        let mut state = State {
            parts: Vec::new(),
            alive: Vec::new(),
            contents: Vec::new(),
            keys: Vec::new(),
            whole: converter(&object.columns, 0..object.columns.fields().len())?,
            key,
            by_content: HashMap::new(),
            by_key: HashMap::new(),
        };
        for batch in rows {
            state.append(batch)?;
        }
        Ok(state)
    }

    /// Adds rows without asking for conflicts.
    fn append(&mut self, rows: RecordBatch) -> Result<(), PgError> {
        let start = self.alive.len();
        let (contents, keys) = (self.whole_rows(&rows)?, self.keys_of(&rows)?);
        for (i, content) in contents.iter().enumerate() {
            self.by_content.entry(content.clone()).or_default().push(start + i);
        }
        for (i, key) in keys.iter().enumerate() {
            self.by_key.insert(key.clone(), start + i);
        }
        self.contents.extend(contents);
        self.keys.extend(keys);
        self.alive.resize(start + rows.num_rows(), true);
        self.parts.push(rows);
        Ok(())
    }

    fn whole_rows(&self, rows: &RecordBatch) -> Result<Vec<OwnedRow>, PgError> {
        let rows = self.whole.convert_columns(rows.columns()).map_err(from_arrow)?;
        Ok(rows.iter().map(|row| row.owned()).collect())
    }

    /// The primary key of each row; none for a table without.
    fn keys_of(&self, rows: &RecordBatch) -> Result<Vec<OwnedRow>, PgError> {
        let Some((columns, converter)) = &self.key else { return Ok(Vec::new()) };
        let columns: Vec<_> = columns.iter().map(|&i| rows.column(i).clone()).collect();
        let keys = converter.convert_columns(&columns).map_err(from_arrow)?;
        Ok(keys.iter().map(|key| key.owned()).collect())
    }

    fn remove(&mut self, place: usize) {
        self.alive[place] = false;
        if let Some(places) = self.by_content.get_mut(&self.contents[place]) {
            places.retain(|other| *other != place);
        }
        if let Some(key) = self.keys.get(place)
            && self.by_key.get(key) == Some(&place)
        {
            self.by_key.remove(key);
        }
    }

    fn apply(&mut self, change: &TableChange, table: &Table, name: &str) -> Result<(), PgError> {
        let rows = &change.delta.rows;
        let content = self.whole_rows(rows)?;
        // What is taken away goes first, so that an UPDATE may keep its key.
        for (i, row) in content.iter().enumerate() {
            for _ in change.delta.weight(i)..0 {
                if let Some(place) = self.by_content.get(row).and_then(|places| places.last()).copied() {
                    self.remove(place);
                }
            }
        }
        let rule = change.on_conflict.unwrap_or(table.on_conflict);
        let keys = self.keys_of(rows)?;
        let mut inserted: Vec<u64> = Vec::new();
        // Where each key of this change stands in `inserted`.
        let mut fresh: HashMap<&OwnedRow, usize> = HashMap::new();
        for i in 0..rows.num_rows() {
            if change.delta.weight(i) <= 0 {
                continue;
            }
            if let Some(key) = keys.get(i) {
                let there = self.by_key.get(key).copied();
                match (rule, there, fresh.get(key).copied()) {
                    (_, None, None) => {
                        fresh.insert(key, inserted.len());
                    }
                    (OnConflict::DoNothing, _, _) => continue,
                    (OnConflict::Error, _, _) => {
                        let message = format!("duplicate key value violates unique constraint \"{name}_pkey\"");
                        return Err(PgError::new(code::UNIQUE_VIOLATION, message));
                    }
                    (OnConflict::Overwrite, _, Some(earlier)) => {
                        inserted[earlier] = i as u64;
                        continue;
                    }
                    (OnConflict::Overwrite, Some(place), None) => {
                        self.remove(place);
                        fresh.insert(key, inserted.len());
                    }
                }
            }
            inserted.extend(std::iter::repeat_n(i as u64, change.delta.weight(i) as usize));
        }
        let taken = take_record_batch(rows, &UInt64Array::from(inserted)).map_err(from_arrow)?;
        self.append(taken)
    }

    fn into_table(self, object: &Object) -> Result<Arc<dyn TableProvider>, PgError> {
        let mut kept = Vec::with_capacity(self.parts.len());
        let mut start = 0;
        for part in self.parts {
            let end = start + part.num_rows();
            let alive = self.alive[start..end].to_vec().into();
            let part = filter_record_batch(&part, &alive)
                .and_then(|rows| RecordBatch::try_new(Arc::clone(&object.columns), rows.columns().to_vec()));
            kept.push(part.map_err(from_arrow)?);
            start = end;
        }
        let table = MemTable::try_new(Arc::clone(&object.columns), vec![kept]);
        Ok(Arc::new(table.map_err(|error| code::from_datafusion(error, ""))?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ArrayRef, AsArray, Int32Array};
    use arrow::datatypes::{DataType, Field, Int32Type};
    use datafusion::prelude::SessionContext;

    use crate::catalog::ObjectKind;
    use crate::exec::Delta;

    fn rows(pairs: &[(i32, i32)]) -> RecordBatch {
        let column =
            |pick: fn(&(i32, i32)) -> i32| Arc::new(pairs.iter().map(pick).collect::<Int32Array>()) as ArrayRef;
        let columns = vec![column(|pair| pair.0), column(|pair| pair.1)];
        let fields = ["k", "v"].map(|name| Field::new(name, DataType::Int32, true));
        RecordBatch::try_new(Arc::new(Schema::new(fields.to_vec())), columns).expect("two columns of one length")
    }

    fn change(pairs: &[(i32, i32, i64)], on_conflict: Option<OnConflict>) -> TableChange {
        let content: Vec<(i32, i32)> = pairs.iter().map(|(k, v, _)| (*k, *v)).collect();
        let weights = pairs.iter().map(|(_, _, weight)| *weight).collect();
        TableChange { table: 1, delta: Delta::weighted(rows(&content), weights), on_conflict }
    }

    /// The table's rows in order, or the error's code.
    async fn check(key: &[usize], changes: &[TableChange], expected: Result<&[(i32, i32)], &str>) {
        let base = rows(&[(1, 10), (2, 20), (2, 20)]);
        let base = if key.is_empty() { base } else { base.slice(0, 2) };
        let table = Table {
            primary_key: key.to_vec(),
            not_null: vec![],
            defaults: Default::default(),
            append_only: false,
            watermark: None,
            on_conflict: OnConflict::Error,
        };
        let object = Object {
            oid: 1,
            database: "dev".into(),
            schema: "public".into(),
            name: "t".into(),
            sql: String::new(),
            columns: base.schema(),
            kind: ObjectKind::Table(Arc::new(table.clone())),
            depends_on: vec![],
        };
        let got = match overlay(&object, &table, vec![base], &changes.iter().collect::<Vec<_>>()) {
            Err(error) => Err(error.code),
            Ok(provider) => {
                let rows = SessionContext::new().read_table(provider).expect("a table").collect().await.expect("rows");
                let mut pairs: Vec<(i32, i32)> = Vec::new();
                for batch in &rows {
                    let column = |i: usize| batch.column(i).as_primitive::<Int32Type>().values().to_vec();
                    pairs.extend(column(0).into_iter().zip(column(1)));
                }
                pairs.sort_unstable();
                Ok(pairs)
            }
        };
        assert_eq!(got, expected.map(<[_]>::to_vec));
    }

    #[tokio::test]
    async fn changes_lie_on_top_of_the_rows() {
        let update = change(&[(2, 20, -1), (2, 21, 1)], None);
        check(&[], std::slice::from_ref(&update), Ok(&[(1, 10), (2, 20), (2, 21)])).await;
        check(&[], &[change(&[(1, 10, 2)], None)], Ok(&[(1, 10), (1, 10), (1, 10), (2, 20), (2, 20)])).await;
        check(&[0], &[update.clone(), change(&[(2, 21, -1)], None)], Ok(&[(1, 10)])).await;
        check(&[0], &[change(&[(1, 11, 1)], None)], Err("23505")).await;
        check(&[0], &[change(&[(3, 1, 1), (3, 2, 1)], None)], Err("23505")).await;
        let nothing = change(&[(1, 11, 1), (3, 1, 1), (3, 2, 1)], Some(OnConflict::DoNothing));
        check(&[0], &[nothing], Ok(&[(1, 10), (2, 20), (3, 1)])).await;
        let overwrite = change(&[(1, 11, 1), (3, 1, 1), (3, 2, 1)], Some(OnConflict::Overwrite));
        check(&[0], &[overwrite, update], Ok(&[(1, 11), (2, 21), (3, 2)])).await;
    }
}
