//! Rows of one system table, by column name.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::datatypes::SchemaRef;

use super::value::{Value, array_of};

pub struct Rows {
    schema: SchemaRef,
    columns: Vec<Vec<Value>>,
    len: usize,
}

impl Rows {
    pub fn new(schema: &SchemaRef) -> Rows {
        Rows { schema: Arc::clone(schema), columns: vec![Vec::new(); schema.fields().len()], len: 0 }
    }

    /// Adds a row. Columns not given are NULL, or 0, false or empty where NULL may not stand.
    ///
    /// # Panics
    /// If the table has no column of a name given, or the names do not stand in the table's order.
    pub fn add<const N: usize>(&mut self, values: [(&'static str, Value); N]) {
        let mut at = 0;
        let fields = self.schema.fields();
        for (name, value) in values {
            while fields.get(at).is_some_and(|field| field.name() != name) {
                self.columns[at].push(absent(&self.schema, at));
                at += 1;
            }
            assert!(at < fields.len(), "no column {name} there");
            self.columns[at].push(value);
            at += 1;
        }
        for rest in at..fields.len() {
            self.columns[rest].push(absent(&self.schema, rest));
        }
        self.len += 1;
    }

    /// All rows as a batch with `schema`, the table's columns with any of them nullable.
    pub fn into_batch(self, schema: &SchemaRef) -> RecordBatch {
        let fields = schema.fields().iter();
        let arrays: Vec<ArrayRef> = fields.zip(&self.columns).map(|(f, v)| array_of(f.data_type(), v)).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(self.len));
        RecordBatch::try_new_with_options(Arc::clone(schema), arrays, &options)
            .expect("the arrays were built from the schema's types")
    }
}

fn absent(schema: &SchemaRef, column: usize) -> Value {
    let field = schema.field(column);
    if field.is_nullable() { Value::Null } else { Value::zero(field.data_type()) }
}
