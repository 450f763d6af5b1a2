//! `count(*)` and `count(x)`.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, Int64Array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};

use super::rows::Rows;
use super::{ExecError, States, pick};

/// A number of rows per slot. Arrow form: Int64.
pub(super) struct Counts {
    counts: Vec<i64>,
    output: DataType,
}

impl Counts {
    pub fn new(output: DataType) -> Self {
        Counts { counts: Vec::new(), output }
    }
}

impl States for Counts {
    fn resize(&mut self, slots: usize) {
        self.counts.resize(slots, 0);
    }

    fn len(&self) -> usize {
        self.counts.len()
    }

    fn update(
        &mut self,
        slots: &[u32],
        args: &[ArrayRef],
        filter: Option<&BooleanArray>,
        weights: Option<&[i64]>,
    ) -> Result<(), ExecError> {
        let counts = self.counts.as_mut_slice();
        Rows::new(slots, args, filter, weights).for_each(|_, slot, weight| counts[slot] += weight);
        Ok(())
    }

    fn merge(&mut self, slots: &[u32], states: &ArrayRef) -> Result<(), ExecError> {
        for (&slot, n) in slots.iter().zip(states.as_primitive::<Int64Type>().values()) {
            self.counts[slot as usize] += n;
        }
        Ok(())
    }

    fn subtract(&mut self, slots: &[u32], states: &ArrayRef) -> Result<(), ExecError> {
        for (&slot, n) in slots.iter().zip(states.as_primitive::<Int64Type>().values()) {
            self.counts[slot as usize] -= n;
        }
        Ok(())
    }

    fn form(&self, slots: Option<&[u32]>) -> Result<ArrayRef, ExecError> {
        Ok(Arc::new(Int64Array::from(pick(&self.counts, slots))))
    }

    fn finish(&self) -> Result<ArrayRef, ExecError> {
        match self.output {
            DataType::Int64 => self.form(None),
            _ => Ok(cast(&self.form(None)?, &self.output)?),
        }
    }

    fn bytes(&self) -> usize {
        self.counts.capacity() * size_of::<i64>()
    }
}
