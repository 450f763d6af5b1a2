//! `approx_distinct` over input that never retracts.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, BinaryBuilder, BooleanArray, Int64Array, UInt64Array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, IntervalUnit, TimeUnit};
use arrow::error::ArrowError;

use super::rows::Rows;
use super::sketch::Sketch;
use super::{ExecError, States};
use crate::exec::bucket;

/// A [`Sketch`] per slot. Arrow form: Binary, see [`Sketch::encode`].
pub(super) struct Sketches {
    sketches: Vec<Sketch>,
    heap_bytes: usize,
    output: DataType,
}

impl Sketches {
    pub fn new(output: DataType) -> Self {
        Sketches { sketches: Vec::new(), heap_bytes: 0, output }
    }

    /// Adds hashes that are there already.
    pub fn insert(&mut self, slot: usize, hash: u64) {
        let sketch = &mut self.sketches[slot];
        self.heap_bytes -= sketch.heap_bytes();
        sketch.insert(hash);
        self.heap_bytes += sketch.heap_bytes();
    }
}

impl States for Sketches {
    fn resize(&mut self, slots: usize) {
        self.sketches.resize(slots, Sketch::default());
    }

    fn len(&self) -> usize {
        self.sketches.len()
    }

    fn update(
        &mut self,
        slots: &[u32],
        args: &[ArrayRef],
        filter: Option<&BooleanArray>,
        weights: Option<&[i64]>,
    ) -> Result<(), ExecError> {
        let hashes = hashes(&args[0]);
        Rows::new(slots, args, filter, weights).for_each(|row, slot, weight| {
            assert!(weight >= 0, "input declared append-only has taken a row back");
            if weight > 0 {
                self.insert(slot, hashes[row]);
            }
        });
        Ok(())
    }

    fn merge(&mut self, slots: &[u32], states: &ArrayRef) -> Result<(), ExecError> {
        for (&slot, bytes) in slots.iter().zip(states.as_binary::<i32>()) {
            if let Some(bytes) = bytes {
                let sketch = &mut self.sketches[slot as usize];
                self.heap_bytes -= sketch.heap_bytes();
                sketch.merge_encoded(bytes)?;
                self.heap_bytes += sketch.heap_bytes();
            }
        }
        Ok(())
    }

    fn subtract(&mut self, _: &[u32], _: &ArrayRef) -> Result<(), ExecError> {
        Err(super::not_invertible("approx_distinct"))
    }

    fn form(&self, slots: Option<&[u32]>) -> Result<ArrayRef, ExecError> {
        let encode = |chosen: &mut dyn Iterator<Item = &Sketch>| -> Result<BinaryArray, ExecError> {
            let mut builder = BinaryBuilder::new();
            let (mut bytes, mut total) = (Vec::new(), 0);
            for sketch in chosen {
                bytes.clear();
                sketch.encode(&mut bytes);
                total += bytes.len();
                if total > i32::MAX as usize {
                    return Err(ArrowError::OffsetOverflowError(total).into());
                }
                builder.append_value(&bytes);
            }
            Ok(builder.finish())
        };
        Ok(Arc::new(match slots {
            None => encode(&mut self.sketches.iter())?,
            Some(slots) => encode(&mut slots.iter().map(|&slot| &self.sketches[slot as usize]))?,
        }))
    }

    fn finish(&self) -> Result<ArrayRef, ExecError> {
        let estimates = self.sketches.iter().map(Sketch::estimate);
        Ok(match self.output {
            DataType::UInt64 => Arc::new(UInt64Array::from_iter_values(estimates)),
            _ => cast(&Int64Array::from_iter_values(estimates.map(|e| e as i64)), &self.output)?,
        })
    }

    fn bytes(&self) -> usize {
        self.sketches.capacity() * size_of::<Sketch>() + self.heap_bytes
    }
}

/// Whether [`hashes`] knows the type.
pub(super) fn supports(data_type: &DataType) -> bool {
    use DataType::*;
    data_type.is_integer()
        || matches!(data_type, Boolean | Float32 | Float64 | Decimal128(..) | Date32)
        || matches!(data_type, Timestamp(TimeUnit::Microsecond, _) | Time64(TimeUnit::Microsecond))
        || matches!(data_type, Utf8 | LargeUtf8 | Utf8View | Binary | LargeBinary | BinaryView)
        || matches!(data_type, Interval(IntervalUnit::MonthDayNano))
}

/// Each value's hash as [`crate::exec::bucket`] freezes it.
pub(super) fn hashes(array: &ArrayRef) -> Vec<u64> {
    bucket::hashes(std::slice::from_ref(array), array.len()).expect("there is a column")
}
