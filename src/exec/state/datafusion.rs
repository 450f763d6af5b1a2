//! Any other function over input that never retracts: DataFusion's partial states, merged as its aggregation does in two
//! stages. Its accumulators live for one call only.

use std::sync::Arc;

use ::datafusion::logical_expr::{EmitTo, GroupsAccumulator};
use ::datafusion::physical_expr::GroupsAccumulatorAdapter;
use ::datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, StructArray, UInt32Array, new_empty_array};
use arrow::compute::{cast, concat, interleave, take};
use arrow::datatypes::{DataType, Field, Fields};

use super::{ExecError, States};

/// Partial states as rows of immutable chunks, with the place of each slot's. What an update touches is written to a new
/// chunk; when most rows are dead the living are copied together.
///
/// Arrow form: Struct of the function's own state fields, named s0, s1, ...; NULL for a slot without rows.
pub(super) struct PartialStates {
    expr: Arc<AggregateFunctionExpr>,
    fields: Fields,
    /// Chunk 0 is one NULL row: the place of an empty state.
    chunks: Vec<ArrayRef>,
    /// (chunk, row) by slot.
    places: Vec<(u32, u32)>,
    chunk_rows: usize,
    output: DataType,
    /// Scratch: by slot, its index among the slots touched by this call; `NOT_TOUCHED` in between.
    touched: Vec<u32>,
}

const EMPTY: (u32, u32) = (0, 0);
const NOT_TOUCHED: u32 = u32::MAX;
/// Chunks are merged at this number, or when this many times more rows are kept than there are slots.
const MAX_CHUNKS: usize = 64;
const MAX_DEAD: usize = 3;

/// The Arrow form of one state.
pub(super) fn fields(expr: &AggregateFunctionExpr) -> Result<Fields, ExecError> {
    let fields = expr.state_fields()?;
    Ok(fields.iter().enumerate().map(|(i, f)| Field::new(format!("s{i}"), f.data_type().clone(), true)).collect())
}

impl PartialStates {
    pub fn new(expr: Arc<AggregateFunctionExpr>, fields: Fields, output: DataType) -> Self {
        let empty: ArrayRef = Arc::new(StructArray::new_null(fields.clone(), 1));
        PartialStates {
            expr,
            fields,
            chunks: vec![empty],
            places: Vec::new(),
            chunk_rows: 0,
            output,
            touched: Vec::new(),
        }
    }

    fn accumulator(&self) -> Result<Box<dyn GroupsAccumulator>, ExecError> {
        if self.expr.groups_accumulator_supported() {
            return Ok(self.expr.create_groups_accumulator()?);
        }
        let expr = Arc::clone(&self.expr);
        Ok(Box::new(GroupsAccumulatorAdapter::new(move || expr.create_accumulator())))
    }

    /// The different ones of `slots`, and for each of `slots` its index among them.
    fn touch(&mut self, slots: &[u32]) -> (Vec<u32>, Vec<usize>) {
        self.touched.resize(self.places.len(), NOT_TOUCHED);
        let mut different = Vec::new();
        let mut groups = Vec::with_capacity(slots.len());
        for &slot in slots {
            let group = &mut self.touched[slot as usize];
            if *group == NOT_TOUCHED {
                *group = different.len() as u32;
                different.push(slot);
            }
            groups.push(*group as usize);
        }
        for &slot in &different {
            self.touched[slot as usize] = NOT_TOUCHED;
        }
        (different, groups)
    }

    /// Merges the states `new`, one for each of `slots` (all different), with those there and keeps the result.
    fn absorb(&mut self, slots: &[u32], new: Vec<ArrayRef>) -> Result<(), ExecError> {
        let there: Vec<usize> = (0..slots.len()).filter(|&i| self.places[slots[i] as usize] != EMPTY).collect();
        let merged = if there.is_empty() {
            new
        } else {
            let old_slots: Vec<u32> = there.iter().map(|&i| slots[i]).collect();
            let old = self.form(Some(&old_slots))?;
            // In one call: DataFusion takes every group below the number given for one that has come in this call or before.
            let groups: Vec<usize> = there.iter().copied().chain(0..slots.len()).collect();
            let both = old.as_struct().columns().iter().zip(&new);
            let both = both.map(|(old, new)| concat(&[old.as_ref(), new.as_ref()])).collect::<Result<Vec<_>, _>>()?;
            let mut accumulator = self.accumulator()?;
            accumulator.merge_batch(&both, &groups, slots.len())?;
            accumulator.state(EmitTo::All)?
        };
        self.keep(slots, merged)
    }

    fn keep(&mut self, slots: &[u32], states: Vec<ArrayRef>) -> Result<(), ExecError> {
        let columns = states
            .iter()
            .zip(&self.fields)
            .map(|(c, f)| if c.data_type() == f.data_type() { Ok(c.clone()) } else { cast(c, f.data_type()) })
            .collect::<Result<Vec<_>, _>>()?;
        let chunk = StructArray::try_new(self.fields.clone(), columns, None)?;
        if chunk.len() != slots.len() {
            return Err(self.broken(format!("{} states for {} groups", chunk.len(), slots.len())));
        }
        let number = self.chunks.len() as u32;
        for (row, &slot) in slots.iter().enumerate() {
            self.places[slot as usize] = (number, row as u32);
        }
        self.chunk_rows += chunk.len();
        self.chunks.push(Arc::new(chunk));
        if self.chunks.len() > MAX_CHUNKS || self.chunk_rows > MAX_DEAD * self.places.len() {
            self.compact()?;
        }
        Ok(())
    }

    fn compact(&mut self) -> Result<(), ExecError> {
        let living: Vec<u32> =
            (0..self.places.len() as u32).filter(|&slot| self.places[slot as usize] != EMPTY).collect();
        let chunk = self.form(Some(&living))?;
        self.chunks.truncate(1);
        self.chunks.push(chunk);
        for (row, &slot) in living.iter().enumerate() {
            self.places[slot as usize] = (1, row as u32);
        }
        self.chunk_rows = living.len();
        Ok(())
    }

    fn broken(&self, reason: String) -> ExecError {
        ExecError::State { function: self.expr.fun().name().to_string(), reason }
    }
}

impl States for PartialStates {
    fn resize(&mut self, slots: usize) {
        self.places.resize(slots, EMPTY);
    }

    fn len(&self) -> usize {
        self.places.len()
    }

    fn update(
        &mut self,
        slots: &[u32],
        args: &[ArrayRef],
        filter: Option<&BooleanArray>,
        weights: Option<&[i64]>,
    ) -> Result<(), ExecError> {
        if let Some(weights) = weights.filter(|w| w.iter().any(|&w| w != 1)) {
            let mut rows = Vec::new();
            for (row, &weight) in weights.iter().enumerate() {
                assert!(weight >= 0, "input declared append-only has taken a row back");
                rows.extend(std::iter::repeat_n(row as u32, weight as usize));
            }
            let slots: Vec<u32> = rows.iter().map(|&row| slots[row as usize]).collect();
            let rows = UInt32Array::from(rows);
            let args = args.iter().map(|a| take(a, &rows, None)).collect::<Result<Vec<_>, _>>()?;
            let filter = filter.map(|f| take(f, &rows, None)).transpose()?;
            return self.update(&slots, &args, filter.as_ref().map(|f| f.as_boolean()), None);
        }
        if slots.is_empty() {
            return Ok(());
        }
        let (different, groups) = self.touch(slots);
        let mut accumulator = self.accumulator()?;
        accumulator.update_batch(args, &groups, filter, different.len())?;
        let new = accumulator.state(EmitTo::All)?;
        self.absorb(&different, new)
    }

    fn merge(&mut self, slots: &[u32], states: &ArrayRef) -> Result<(), ExecError> {
        let states = states.as_struct();
        let present: Vec<u32> = (0..states.len() as u32).filter(|&row| states.is_valid(row as usize)).collect();
        if present.is_empty() {
            return Ok(());
        }
        let slots: Vec<u32> = present.iter().map(|&row| slots[row as usize]).collect();
        let rows = UInt32Array::from(present);
        let columns = states.columns().iter().map(|c| take(c, &rows, None)).collect::<Result<Vec<_>, _>>()?;
        let (different, groups) = self.touch(&slots);
        if different.len() == slots.len() {
            return self.absorb(&slots, columns);
        }
        let mut accumulator = self.accumulator()?;
        accumulator.merge_batch(&columns, &groups, different.len())?;
        let new = accumulator.state(EmitTo::All)?;
        self.absorb(&different, new)
    }

    fn subtract(&mut self, _: &[u32], _: &ArrayRef) -> Result<(), ExecError> {
        Err(super::not_invertible(self.expr.fun().name()))
    }

    fn form(&self, slots: Option<&[u32]>) -> Result<ArrayRef, ExecError> {
        let place = |(chunk, row): (u32, u32)| (chunk as usize, row as usize);
        let places: Vec<(usize, usize)> = match slots {
            None => self.places.iter().copied().map(place).collect(),
            Some(slots) => slots.iter().map(|&slot| place(self.places[slot as usize])).collect(),
        };
        if places.is_empty() {
            return Ok(new_empty_array(&DataType::Struct(self.fields.clone())));
        }
        let chunks: Vec<&dyn Array> = self.chunks.iter().map(|c| c.as_ref()).collect();
        Ok(interleave(&chunks, &places)?)
    }

    fn finish(&self) -> Result<ArrayRef, ExecError> {
        // A slot without rows shows what the function says of none. Accumulators for many groups cannot be asked: some take it
        // that every group has come.
        let mut values = vec![self.expr.create_accumulator()?.evaluate()?.to_array()?];
        let mut places = vec![(0, 0); self.places.len()];
        let living: Vec<u32> =
            (0..self.places.len() as u32).filter(|&slot| self.places[slot as usize] != EMPTY).collect();
        if !living.is_empty() {
            let groups: Vec<usize> = (0..living.len()).collect();
            let states = self.form(Some(&living))?;
            let mut accumulator = self.accumulator()?;
            accumulator.merge_batch(states.as_struct().columns(), &groups, living.len())?;
            values.push(accumulator.evaluate(EmitTo::All)?);
            living.iter().enumerate().for_each(|(row, &slot)| places[slot as usize] = (1, row));
        }
        if values.last().is_some_and(|v| v.len() != living.len().max(1)) {
            return Err(self.broken(format!("{} values for {} groups", values[1].len(), living.len())));
        }
        if places.is_empty() {
            return Ok(new_empty_array(&self.output));
        }
        for value in &mut values {
            if value.data_type() != &self.output {
                *value = cast(value, &self.output)?;
            }
        }
        Ok(interleave(&values.iter().map(|v| v.as_ref()).collect::<Vec<_>>(), &places)?)
    }

    fn bytes(&self) -> usize {
        let chunks: usize = self.chunks.iter().map(|c| c.get_array_memory_size()).sum();
        chunks + self.places.capacity() * size_of::<(u32, u32)>() + self.touched.capacity() * size_of::<u32>()
    }
}
