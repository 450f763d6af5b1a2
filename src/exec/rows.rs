//! Rows as bytes: equal rows have equal bytes, and bytes sort as the rows do.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::compute::{interleave, take};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::row::{Row, RowConverter, RowParser, Rows, SortField};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use hashbrown::HashTable;

use super::Delta;

/// Encodes some columns of a batch row by row, by arrow's row format. NULL equals NULL; floats are told apart by their bits.
pub struct RowCodec {
    columns: Vec<usize>,
    converter: RowConverter,
    parser: RowParser,
}

impl RowCodec {
    /// Every column of the schema.
    pub fn whole(schema: &SchemaRef) -> Result<Self, ArrowError> {
        Self::of(schema, (0..schema.fields().len()).collect())
    }

    /// The given columns in the given order, ascending.
    pub fn of(schema: &SchemaRef, columns: Vec<usize>) -> Result<Self, ArrowError> {
        let fields = columns.iter().map(|&i| SortField::new(schema.field(i).data_type().clone())).collect();
        Self::sorted(columns, fields)
    }

    /// The given columns, each with its own direction.
    pub fn sorted(columns: Vec<usize>, fields: Vec<SortField>) -> Result<Self, ArrowError> {
        let converter = RowConverter::new(fields)?;
        let parser = converter.parser();
        Ok(RowCodec { columns, converter, parser })
    }

    pub fn encode(&self, batch: &RecordBatch) -> Result<Rows, ArrowError> {
        if !self.columns.is_empty() {
            return self.converter.convert_columns(&self.pick(batch));
        }
        let mut rows = self.converter.empty_rows(batch.num_rows(), 0);
        (0..batch.num_rows()).for_each(|_| rows.push(self.parse(&[])));
        Ok(rows)
    }

    fn pick(&self, batch: &RecordBatch) -> Vec<ArrayRef> {
        self.columns.iter().map(|&i| Arc::clone(batch.column(i))).collect()
    }

    /// The encoded columns of one row for people, as Postgres names a key: `(a, b)=(1, x)`.
    pub fn describe(&self, batch: &RecordBatch, row: usize) -> String {
        let schema = batch.schema();
        let names: Vec<&str> = self.columns.iter().map(|&i| schema.field(i).name().as_str()).collect();
        format!("({})={}", names.join(", "), describe_row(&self.pick(batch), row))
    }

    /// Room for rows of this codec that are pushed one by one.
    pub fn empty(&self, row_capacity: usize) -> Rows {
        self.converter.empty_rows(row_capacity, 0)
    }

    /// Bytes that this codec made, as a row again.
    pub fn parse<'a>(&'a self, bytes: &'a [u8]) -> Row<'a> {
        self.parser.parse(bytes)
    }

    /// The encoded columns, in the codec's order, of bytes that this codec made.
    pub fn decode<'a>(&'a self, rows: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<ArrayRef>, ArrowError> {
        self.converter.convert_rows(rows.into_iter().map(|bytes| self.parse(bytes)))
    }
}

/// A batch of these columns; the row count stands for itself where there are none.
pub fn batch_of(schema: &SchemaRef, columns: Vec<ArrayRef>, num_rows: usize) -> Result<RecordBatch, ArrowError> {
    let options = RecordBatchOptions::new().with_row_count(Some(num_rows));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)
}

/// The rows at `indices`, in that order; one may come several times.
pub fn take_rows(batch: &RecordBatch, indices: Vec<u32>) -> Result<RecordBatch, ArrowError> {
    let num_rows = indices.len();
    let indices = UInt32Array::from(indices);
    let columns = batch.columns().iter().map(|column| take(column, &indices, None)).collect::<Result<_, _>>()?;
    batch_of(&batch.schema(), columns, num_rows)
}

/// Rows picked from several batches of one schema, as (batch, row).
pub fn gather_rows(
    schema: &SchemaRef,
    batches: &[&RecordBatch],
    picked: &[(usize, usize)],
) -> Result<RecordBatch, ArrowError> {
    if picked.is_empty() {
        return Ok(RecordBatch::new_empty(Arc::clone(schema)));
    }
    let column = |i: usize| {
        let parts: Vec<&dyn Array> = batches.iter().map(|batch| batch.column(i).as_ref()).collect();
        interleave(&parts, picked)
    };
    let columns = (0..schema.fields().len()).map(column).collect::<Result<_, _>>()?;
    batch_of(schema, columns, picked.len())
}

/// One row for people: `(1, DE, null)`, cut after some 200 characters.
pub fn describe_row(columns: &[ArrayRef], row: usize) -> String {
    let options = FormatOptions::default().with_null("null");
    let value = |column: &ArrayRef| match ArrayFormatter::try_new(column, &options) {
        Ok(formatter) => formatter.value(row).to_string(),
        Err(_) => format!("<{}>", column.data_type()),
    };
    let mut text = columns.iter().map(value).collect::<Vec<_>>().join(", ");
    if let Some((cut, _)) = text.char_indices().nth(200) {
        text.truncate(cut);
        text.push('…');
    }
    format!("({text})")
}

/// A delta with equal rows added up.
pub struct Net {
    /// The delta's rows, encoded: all of them, in the delta's order.
    pub rows: Rows,
    /// For each distinct row whose weights do not cancel: where it first stands, and its weight, which is not zero.
    pub entries: Vec<(u32, i64)>,
}

impl Net {
    /// `codec` encodes every column of the delta.
    pub fn of(codec: &RowCodec, delta: &Delta) -> Result<Net, ArrowError> {
        let rows = codec.encode(&delta.rows)?;
        let mut entries: Vec<(u32, i64)> = Vec::with_capacity(delta.num_rows());
        let hasher = ahash::RandomState::new();
        let mut seen: HashTable<(u64, u32)> = HashTable::with_capacity(delta.num_rows());
        for row in 0..delta.num_rows() {
            let bytes = rows.row(row);
            let hash = hasher.hash_one(bytes.data());
            let same = |&(h, entry): &(u64, u32)| h == hash && rows.row(entries[entry as usize].0 as usize) == bytes;
            match seen.find(hash, same) {
                Some(&(_, entry)) => entries[entry as usize].1 += delta.weight(row),
                None => {
                    seen.insert_unique(hash, (hash, entries.len() as u32), |&(h, _)| h);
                    entries.push((row as u32, delta.weight(row)));
                }
            }
        }
        entries.retain(|&(_, weight)| weight != 0);
        Ok(Net { rows, entries })
    }

    pub fn bytes(&self, row: u32) -> &[u8] {
        self.rows.row(row as usize).data()
    }
}

/// The same change with every row named once; rows whose weights cancel are gone. Rows keep the order in which they first
/// came.
pub fn consolidate(delta: &Delta) -> Result<Delta, ArrowError> {
    let net = Net::of(&RowCodec::whole(&delta.rows.schema())?, delta)?;
    if net.entries.len() == delta.num_rows() {
        return Ok(delta.clone());
    }
    let rows = take_rows(&delta.rows, net.entries.iter().map(|&(row, _)| row).collect())?;
    Ok(Delta::weighted(rows, net.entries.iter().map(|&(_, weight)| weight).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::text::{parse, parse_schema};

    fn check(text: &str) -> Vec<(String, i64)> {
        let delta = consolidate(&parse(text)).unwrap();
        (0..delta.num_rows()).map(|row| (describe_row(delta.rows.columns(), row), delta.weight(row))).collect()
    }

    #[test]
    fn consolidating_adds_up_and_drops_what_cancels() {
        let rows = check("i s\n+ 1 a\n- 2 b\n+ 1 .\n+2 1 a\n+ 2 b\n- 3 c");
        assert_eq!(rows, [("(1, a)".to_string(), 3), ("(1, null)".to_string(), 1), ("(3, c)".to_string(), -1)]);
        let delta = Delta::weighted(batch_of(&parse_schema(""), vec![], 3).unwrap(), vec![1, 1, -3]);
        assert_eq!(consolidate(&delta).unwrap().weights, Some(vec![-1]));
    }

    #[test]
    fn rows_without_columns_keep_their_number() {
        let schema = parse_schema("");
        let batch = batch_of(&schema, vec![], 3).unwrap();
        assert_eq!(take_rows(&batch, vec![0, 2]).unwrap().num_rows(), 2);
        assert_eq!(gather_rows(&schema, &[&batch, &batch], &[(0, 1), (1, 1)]).unwrap().num_rows(), 2);
        assert_eq!(RowCodec::whole(&schema).unwrap().encode(&batch).unwrap().num_rows(), 3);
    }
}
