//! Sums and averages of floats: exact too, so that they do not depend on the order of rows, can be subtracted, and survive
//! an infinity that comes and goes. Rounded once, when shown.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, FixedSizeBinaryArray, Float64Array, Int64Array, StructArray,
};
use arrow::buffer::Buffer;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Fields, Float64Type, Int64Type};
use hashbrown::HashMap;

use super::rows::Rows;
use super::wide_float::WideFloat;
use super::{ExecError, States, field, pick};

/// A sum and a count of the values that were not NULL per slot; no values, no sum: NULL.
///
/// The sum is a fixed-point number: a multiple of 2^-64 in 128 bits. That holds every double from 2^-12 to 2^62 and all
/// whole multiples of 2^-64, exactly. What it does not hold (smaller or larger values, NaN, infinities) is kept beside it in a
/// [`WideFloat`], for the few slots that have such values.
///
/// Arrow form: Struct {fixed: FixedSizeBinary(16), little-endian; count: Int64; wide: Binary or NULL}.
pub(super) struct FloatSums {
    fixed: Vec<i128>,
    counts: Vec<i64>,
    wide: HashMap<u32, WideFloat>,
    average: bool,
    output: DataType,
}

pub(super) fn state_type() -> DataType {
    DataType::Struct(fields())
}

fn fields() -> Fields {
    let wide = Arc::new(field("wide", DataType::Binary).as_ref().clone().with_nullable(true));
    [field("fixed", DataType::FixedSizeBinary(16)), field("count", DataType::Int64), wide].into()
}

impl FloatSums {
    pub fn new(average: bool, output: DataType) -> Self {
        FloatSums { fixed: Vec::new(), counts: Vec::new(), wide: HashMap::new(), average, output }
    }

    #[inline(always)]
    fn add(&mut self, slot: usize, value: f64, weight: i64) {
        match to_fixed(value).and_then(|v| v.checked_mul(i128::from(weight))) {
            Some(v) => self.add_fixed(slot, v),
            None => self.wide_at(slot, |wide| wide.add(value, weight)),
        }
    }

    #[inline(always)]
    fn add_fixed(&mut self, slot: usize, value: i128) {
        match self.fixed[slot].checked_add(value) {
            Some(sum) => self.fixed[slot] = sum,
            None => self.wide_at(slot, |wide| wide.add_fixed(value)),
        }
    }

    #[cold]
    fn wide_at(&mut self, slot: usize, change: impl FnOnce(&mut WideFloat)) {
        let wide = self.wide.entry(slot as u32).or_default();
        change(wide);
        if wide.is_zero() {
            self.wide.remove(&(slot as u32));
        }
    }

    fn combine(&mut self, slots: &[u32], states: &ArrayRef, sign: i64) -> Result<(), ExecError> {
        let states = states.as_struct();
        let fixed = states.column(0).as_fixed_size_binary();
        let counts = states.column(1).as_primitive::<Int64Type>().values();
        let wides = states.column(2).as_binary::<i32>();
        for (row, &slot) in slots.iter().enumerate() {
            let slot = slot as usize;
            let value = i128::from_le_bytes(fixed.value(row).try_into().expect("the type says 16 bytes"));
            match value.checked_mul(i128::from(sign)) {
                Some(value) => self.add_fixed(slot, value),
                None => self.wide_at(slot, |wide| wide.subtract_fixed(value)),
            }
            self.counts[slot] += sign * counts[row];
        }
        if wides.null_count() < wides.len() {
            for (row, &slot) in slots.iter().enumerate().filter(|(row, _)| wides.is_valid(*row)) {
                let other = WideFloat::decode(wides.value(row))?;
                self.wide_at(slot as usize, |wide| wide.combine(&other, sign));
            }
        }
        Ok(())
    }

    fn value(&self, slot: usize) -> Option<f64> {
        let count = self.counts[slot];
        if count <= 0 {
            return None;
        }
        let sum = match self.wide.get(&(slot as u32)) {
            None => self.fixed[slot] as f64 / FIXED_ONE,
            Some(wide) => wide.sum_with(self.fixed[slot]),
        };
        Some(if self.average { sum / count as f64 } else { sum })
    }
}

/// 1.0 in fixed point.
const FIXED_ONE: f64 = 18_446_744_073_709_551_616.0;

/// `value * 2^64`, if that is whole and below 2^126.
#[inline(always)]
fn to_fixed(value: f64) -> Option<i128> {
    let bits = value.to_bits();
    let exponent = ((bits >> 52) & 0x7ff) as i32;
    let fraction = bits & ((1 << 52) - 1);
    // value = mantissa * 2^(exponent - 1075), so that in fixed point the mantissa moves left by this many bits.
    let shift = exponent - 1075 + 64;
    let mantissa = fraction | (1 << 52);
    let magnitude = if (0..=73).contains(&shift) {
        i128::from(mantissa) << shift
    } else if (-52..0).contains(&shift) && mantissa.trailing_zeros() as i32 >= -shift {
        i128::from(mantissa >> -shift)
    } else if exponent == 0 && fraction == 0 {
        0
    } else {
        return None;
    };
    Some(if value < 0.0 { -magnitude } else { magnitude })
}

impl States for FloatSums {
    fn resize(&mut self, slots: usize) {
        self.fixed.resize(slots, 0);
        self.counts.resize(slots, 0);
    }

    fn len(&self) -> usize {
        self.fixed.len()
    }

    fn update(
        &mut self,
        slots: &[u32],
        args: &[ArrayRef],
        filter: Option<&BooleanArray>,
        weights: Option<&[i64]>,
    ) -> Result<(), ExecError> {
        let values = args[0].as_primitive::<Float64Type>().values();
        Rows::new(slots, args, filter, weights).for_each(|row, slot, weight| {
            self.add(slot, values[row], weight);
            self.counts[slot] += weight;
        });
        Ok(())
    }

    fn merge(&mut self, slots: &[u32], states: &ArrayRef) -> Result<(), ExecError> {
        self.combine(slots, states, 1)
    }

    fn subtract(&mut self, slots: &[u32], states: &ArrayRef) -> Result<(), ExecError> {
        self.combine(slots, states, -1)
    }

    fn form(&self, slots: Option<&[u32]>) -> Result<ArrayRef, ExecError> {
        let fixed = pick(&self.fixed, slots);
        let wide: BinaryArray = match slots {
            _ if self.wide.is_empty() => BinaryArray::new_null(fixed.len()),
            None => (0..fixed.len() as u32).map(|slot| self.wide.get(&slot).map(WideFloat::encode)).collect(),
            Some(slots) => slots.iter().map(|slot| self.wide.get(slot).map(WideFloat::encode)).collect(),
        };
        let little_endian: Vec<i128> = fixed.into_iter().map(i128::to_le).collect();
        let columns: Vec<ArrayRef> = vec![
            Arc::new(FixedSizeBinaryArray::try_new(16, Buffer::from_vec(little_endian), None)?),
            Arc::new(Int64Array::from(pick(&self.counts, slots))),
            Arc::new(wide),
        ];
        Ok(Arc::new(StructArray::try_new(fields(), columns, None)?))
    }

    fn finish(&self) -> Result<ArrayRef, ExecError> {
        let values: Float64Array = (0..self.fixed.len()).map(|slot| self.value(slot)).collect();
        Ok(if self.output == DataType::Float64 { Arc::new(values) } else { cast(&values, &self.output)? })
    }

    fn bytes(&self) -> usize {
        let wide: usize = self.wide.values().map(|w| w.bytes() + size_of::<(u32, WideFloat)>()).sum();
        self.fixed.capacity() * size_of::<i128>() + self.counts.capacity() * size_of::<i64>() + wide
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A window of 360 slices moves on by one slice at a time; plain doubles lose the small values as soon as a large one has
    /// passed.
    #[test]
    fn after_a_million_hops_the_total_is_the_sum_of_the_window() {
        const SLICES: usize = 360;
        let value = |slice: usize| if slice % 1000 == 7 { 1e17 } else { (slice % 977) as f64 / 7.0 };
        let state = |value: f64| {
            let mut states = FloatSums::new(false, DataType::Float64);
            states.resize(1);
            states.update(&[0], &[Arc::new(Float64Array::from(vec![value]))], None, None).unwrap();
            states.states().unwrap()
        };
        let forms: Vec<ArrayRef> = (0..2000).map(|s| state(value(s))).collect();
        let at = |hop: usize| &forms[hop % forms.len()];
        let mut total = FloatSums::new(false, DataType::Float64);
        total.resize(1);
        for hop in 0..1_000_000 + SLICES {
            total.merge(&[0], at(hop)).unwrap();
            if hop >= SLICES {
                total.subtract(&[0], at(hop - SLICES)).unwrap();
            }
        }
        let mut fresh = FloatSums::new(false, DataType::Float64);
        fresh.resize(1);
        (1_000_000..1_000_000 + SLICES).for_each(|hop| fresh.merge(&[0], at(hop)).unwrap());
        assert_eq!(total.fixed, fresh.fixed);
        assert_eq!((total.value(0), total.wide.len()), (fresh.value(0), fresh.wide.len()));
        let plain = (0..1_000_000 + SLICES).fold(0.0, |sum: f64, hop| {
            sum + value(hop % forms.len()) - if hop >= SLICES { value((hop - SLICES) % forms.len()) } else { 0.0 }
        });
        assert_ne!(Some(plain), total.value(0), "the test shows nothing");
    }
}
