//! Sections made of columns, and read back.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, AsArray, BinaryArray, Int64Array, PrimitiveArray, RecordBatch,
};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};

use super::durable::Saved;
use super::rows::batch_of;
use super::{Delta, ExecError};

/// The last save that is whole, and those behind it. Fails if there is none.
pub fn since_whole(saves: &[Saved]) -> Result<&[Saved], ExecError> {
    let whole = saves.iter().rposition(|saved| saved.whole);
    whole.map(|at| &saves[at..]).ok_or_else(|| wrong("there is no whole one to begin with"))
}

/// The sections of a part are known by name: an unknown one is of another version.
pub fn only_sections(saved: &Saved, names: &[&str]) -> Result<(), ExecError> {
    match saved.sections.iter().find(|section| !names.contains(&section.name.as_str())) {
        Some(section) => Err(wrong(format!("there is a section {} besides {}", section.name, names.join(", ")))),
        None => Ok(()),
    }
}

pub fn wrong(what: impl Into<String>) -> ExecError {
    ExecError::Saved { what: what.into() }
}

/// A section of columns of equal length, at least one.
pub fn section(columns: Vec<(&str, ArrayRef)>) -> Result<RecordBatch, ExecError> {
    section_before(columns, &[])
}

/// The same with columns behind them that are found by position: keys, states, a user's rows.
pub fn section_before(own: Vec<(&str, ArrayRef)>, rest: &[ArrayRef]) -> Result<RecordBatch, ExecError> {
    let rows = own.first().map_or(0, |(_, column)| column.len());
    let mut fields: Vec<Field> =
        own.iter().map(|(name, column)| Field::new(*name, column.data_type().clone(), true)).collect();
    fields.extend(
        rest.iter().enumerate().map(|(i, column)| Field::new(format!("c{i}"), column.data_type().clone(), true)),
    );
    let columns = own.into_iter().map(|(_, column)| column).chain(rest.iter().cloned()).collect();
    Ok(batch_of(&Arc::new(Schema::new(fields)), columns, rows)?)
}

/// The columns of a section that was read back. Each must be there, of its type; all else is [`ExecError::Saved`].
pub struct SavedColumns<'a> {
    section: &'a str,
    rows: &'a RecordBatch,
}

impl<'a> SavedColumns<'a> {
    pub fn of(section: &'a str, rows: &'a RecordBatch) -> Self {
        SavedColumns { section, rows }
    }

    pub fn num_rows(&self) -> usize {
        self.rows.num_rows()
    }

    /// With NULLs.
    pub fn nullable<T: ArrowPrimitiveType>(&self, name: &str) -> Result<&'a PrimitiveArray<T>, ExecError> {
        let column = self.rows.column_by_name(name).and_then(|column| column.as_primitive_opt::<T>());
        column.ok_or_else(|| self.wrong(&format!("column {name} is missing or of another type")))
    }

    pub fn values<T: ArrowPrimitiveType>(&self, name: &str) -> Result<&'a [T::Native], ExecError> {
        let column = self.nullable::<T>(name)?;
        if column.null_count() > 0 {
            return Err(self.wrong(&format!("column {name} has a NULL")));
        }
        Ok(column.values())
    }

    pub fn bytes(&self, name: &str) -> Result<&'a BinaryArray, ExecError> {
        let column = self.rows.column_by_name(name).and_then(|column| column.as_binary_opt::<i32>());
        column.ok_or_else(|| self.wrong(&format!("column {name} is missing or of another type")))
    }

    pub fn text(&self, name: &str) -> Result<&'a arrow::array::StringArray, ExecError> {
        let column = self.rows.column_by_name(name).and_then(|column| column.as_string_opt::<i32>());
        column.ok_or_else(|| self.wrong(&format!("column {name} is missing or of another type")))
    }

    /// All columns from the one at `from` on, which must have these types.
    pub fn rest(&self, from: usize, types: &[DataType]) -> Result<&'a [ArrayRef], ExecError> {
        let columns = self.rows.columns().get(from..).unwrap_or_default();
        match columns.iter().map(|column| column.data_type()).eq(types) {
            true => Ok(columns),
            false => Err(self.wrong(&format!("it has not the columns {types:?}"))),
        }
    }

    pub fn wrong(&self, what: &str) -> ExecError {
        wrong(format!("section {}: {what}", self.section))
    }
}

/// Rows with weights, as a section.
pub fn weighted_section(delta: &Delta) -> Result<RecordBatch, ExecError> {
    let weights = match &delta.weights {
        Some(weights) => Int64Array::from(weights.clone()),
        None => Int64Array::from_value(1, delta.num_rows()),
    };
    section_before(vec![("weight", Arc::new(weights))], delta.rows.columns())
}

/// What [`weighted_section`] made, of rows with this schema.
pub fn weighted_rows(section: &str, rows: &RecordBatch, schema: &SchemaRef) -> Result<Delta, ExecError> {
    let saved = SavedColumns::of(section, rows);
    let weights = saved.values::<Int64Type>("weight")?;
    let types: Vec<DataType> = schema.fields().iter().map(|field| field.data_type().clone()).collect();
    let columns = saved.rest(1, &types)?.to_vec();
    let rows = batch_of(schema, columns, rows.num_rows()).map_err(|e| saved.wrong(&e.to_string()))?;
    Ok(Delta::weighted(rows, weights.to_vec()))
}
