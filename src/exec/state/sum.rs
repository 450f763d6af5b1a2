//! Sums and averages of whole numbers and decimals: exact whatever the order, so that they can be subtracted.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, Int8Array, Int64Array, PrimitiveArray, StructArray};
use arrow::compute::cast;
use arrow::datatypes::{ArrowPrimitiveType, DataType, Decimal128Type, DecimalType, Fields, Int64Type, i256};

use super::rows::Rows;
use super::{ExecError, States, field, pick};

/// What [`Sums`] adds: Int64 or the digits of a Decimal128.
pub(super) trait Whole: ArrowPrimitiveType<Native: Digits> {}
impl Whole for Int64Type {}
impl Whole for Decimal128Type {}

/// A two's complement number of N bits, with what [`Sums`] needs to keep sums of more than N bits.
pub(super) trait Digits: Copy + Default + PartialOrd + Send + Sync + 'static {
    fn add(self, other: Self) -> (Self, bool);
    fn sub(self, other: Self) -> (Self, bool);
    /// `self * weight` as a low part and a number of 2^N.
    fn times(self, weight: i64) -> (Self, i8);
    fn wide(self) -> i128;
}

impl Digits for i64 {
    fn add(self, other: i64) -> (i64, bool) {
        self.overflowing_add(other)
    }
    fn sub(self, other: i64) -> (i64, bool) {
        self.overflowing_sub(other)
    }
    fn times(self, weight: i64) -> (i64, i8) {
        let product = i128::from(self) * i128::from(weight);
        let low = product as i64;
        (low, saturate((product - i128::from(low)) >> 64))
    }
    fn wide(self) -> i128 {
        i128::from(self)
    }
}

impl Digits for i128 {
    fn add(self, other: i128) -> (i128, bool) {
        self.overflowing_add(other)
    }
    fn sub(self, other: i128) -> (i128, bool) {
        self.overflowing_sub(other)
    }
    fn times(self, weight: i64) -> (i128, i8) {
        if let Some(product) = self.checked_mul(i128::from(weight)) {
            return (product, 0);
        }
        let (low, high) = i256::from_i128(self).wrapping_mul(i256::from_i128(i128::from(weight))).to_parts();
        let low = low as i128;
        (low, saturate(high + i128::from(low < 0)))
    }
    fn wide(self) -> i128 {
        self
    }
}

fn saturate(carry: i128) -> i8 {
    carry.clamp(i128::from(i8::MIN), i128::from(i8::MAX)) as i8
}

/// What the sums become in the end.
pub(super) enum Finish {
    /// The sum, of this type.
    Sum(DataType),
    /// sum * `factor` / count, cut off towards zero as DataFusion does, of this Decimal128 type.
    Avg { factor: i128, output: DataType },
}

/// A sum and a count of the values that were not NULL per slot; no values, no sum: NULL.
///
/// The sum is exact: `sum + carry * 2^N` with N = 64 or 128 bits. A carry beyond ±127 sticks there. A sum that does not fit
/// its output type is shown as NULL and counted by [`States::overflowed`].
///
/// Arrow form: Struct {sum: Int64 | Decimal128(38, scale), count: Int64, carry: Int8}. A sum's digits may exceed 38.
pub(super) struct Sums<T: Whole> {
    sums: Vec<T::Native>,
    counts: Vec<i64>,
    /// Empty as long as every carry is zero.
    carries: Vec<i8>,
    /// The type of `sum` in the Arrow form.
    sum_type: DataType,
    finish: Finish,
}

/// [`Sums`]' Arrow form, `sum` being of `sum_type`.
pub(super) fn state_type(sum_type: &DataType) -> DataType {
    DataType::Struct(fields(sum_type))
}

fn fields(sum_type: &DataType) -> Fields {
    [field("sum", sum_type.clone()), field("count", DataType::Int64), field("carry", DataType::Int8)].into()
}

impl<T: Whole> Sums<T> {
    pub fn new(sum_type: DataType, finish: Finish) -> Self {
        Sums { sums: Vec::new(), counts: Vec::new(), carries: Vec::new(), sum_type, finish }
    }

    #[cold]
    fn carry(&mut self, slot: usize, by: i8) {
        self.carries.resize(self.sums.len(), 0);
        self.carries[slot] = self.carries[slot].saturating_add(by);
    }

    #[inline(always)]
    fn add(&mut self, slot: usize, value: T::Native) {
        let (sum, overflow) = self.sums[slot].add(value);
        self.sums[slot] = sum;
        if overflow {
            self.carry(slot, if value < T::Native::default() { -1 } else { 1 });
        }
    }

    #[inline(always)]
    fn sub(&mut self, slot: usize, value: T::Native) {
        let (sum, overflow) = self.sums[slot].sub(value);
        self.sums[slot] = sum;
        if overflow {
            self.carry(slot, if value < T::Native::default() { 1 } else { -1 });
        }
    }

    fn combine(&mut self, slots: &[u32], states: &ArrayRef, subtract: bool) {
        let states = states.as_struct();
        let sums = states.column(0).as_primitive::<T>().values();
        let counts = states.column(1).as_primitive::<Int64Type>().values();
        let carries = states.column(2).as_primitive::<arrow::datatypes::Int8Type>().values();
        for ((&slot, &sum), &count) in slots.iter().zip(sums).zip(counts) {
            let slot = slot as usize;
            if subtract {
                self.sub(slot, sum);
                self.counts[slot] -= count;
            } else {
                self.add(slot, sum);
                self.counts[slot] += count;
            }
        }
        if carries.iter().any(|&c| c != 0) {
            for (&slot, &carry) in slots.iter().zip(carries) {
                self.carry(slot as usize, if subtract { carry.saturating_neg() } else { carry });
            }
        }
    }

    fn carry_of(&self, slot: usize) -> i8 {
        self.carries.get(slot).copied().unwrap_or(0)
    }

    /// `None` if the value does not fit the output; slots without values are not asked.
    fn value(&self, slot: usize) -> Option<i128> {
        let (sum, carry) = (self.sums[slot].wide(), self.carry_of(slot));
        match &self.finish {
            Finish::Sum(output) => (carry == 0 && fits(sum, output)).then_some(sum),
            Finish::Avg { factor, output } => {
                let count = i128::from(self.counts[slot]);
                let avg = match (carry, sum.checked_mul(*factor)) {
                    (0, Some(scaled)) => scaled / count,
                    _ => {
                        // No Decimal128 input makes N less than 128, and 136 + 13 bits are well below 256.
                        let sum = i256::from_i128(sum).wrapping_add(i256::from_parts(0, i128::from(carry)));
                        let scaled = sum.wrapping_mul(i256::from_i128(*factor));
                        scaled.checked_div(i256::from_i128(count))?.to_i128()?
                    }
                };
                fits(avg, output).then_some(avg)
            }
        }
    }

    fn output(&self) -> &DataType {
        match &self.finish {
            Finish::Sum(output) | Finish::Avg { output, .. } => output,
        }
    }
}

fn fits(value: i128, output: &DataType) -> bool {
    match output {
        DataType::Decimal128(precision, scale) => {
            Decimal128Type::validate_decimal_precision(value, *precision, *scale).is_ok()
        }
        _ => i64::try_from(value).is_ok(),
    }
}

impl<T: Whole> States for Sums<T> {
    fn resize(&mut self, slots: usize) {
        self.sums.resize(slots, T::Native::default());
        self.counts.resize(slots, 0);
        if !self.carries.is_empty() {
            self.carries.resize(slots, 0);
        }
    }

    fn len(&self) -> usize {
        self.sums.len()
    }

    fn update(
        &mut self,
        slots: &[u32],
        args: &[ArrayRef],
        filter: Option<&BooleanArray>,
        weights: Option<&[i64]>,
    ) -> Result<(), ExecError> {
        let values = args[0].as_primitive::<T>().values();
        let rows = Rows::new(slots, args, filter, weights);
        if weights.is_none() {
            rows.for_each(|row, slot, _| {
                self.add(slot, values[row]);
                self.counts[slot] += 1;
            });
            return Ok(());
        }
        rows.for_each(|row, slot, weight| {
            self.counts[slot] += weight;
            match weight {
                1 => self.add(slot, values[row]),
                -1 => self.sub(slot, values[row]),
                _ => {
                    let (low, carry) = values[row].times(weight);
                    self.add(slot, low);
                    if carry != 0 {
                        self.carry(slot, carry);
                    }
                }
            }
        });
        Ok(())
    }

    fn merge(&mut self, slots: &[u32], states: &ArrayRef) -> Result<(), ExecError> {
        self.combine(slots, states, false);
        Ok(())
    }

    fn subtract(&mut self, slots: &[u32], states: &ArrayRef) -> Result<(), ExecError> {
        self.combine(slots, states, true);
        Ok(())
    }

    fn form(&self, slots: Option<&[u32]>) -> Result<ArrayRef, ExecError> {
        let sums = PrimitiveArray::<T>::new(pick(&self.sums, slots).into(), None);
        let carries = match (self.carries.is_empty(), slots) {
            (true, _) => vec![0; sums.len()],
            (false, slots) => pick(&self.carries, slots),
        };
        let columns: Vec<ArrayRef> = vec![
            Arc::new(sums.with_data_type(self.sum_type.clone())),
            Arc::new(Int64Array::from(pick(&self.counts, slots))),
            Arc::new(Int8Array::from(carries)),
        ];
        Ok(Arc::new(StructArray::new(fields(&self.sum_type), columns, None)))
    }

    fn finish(&self) -> Result<ArrayRef, ExecError> {
        let values = (0..self.sums.len()).map(|slot| if self.counts[slot] > 0 { self.value(slot) } else { None });
        Ok(match self.output() {
            DataType::Decimal128(..) => {
                Arc::new(PrimitiveArray::<Decimal128Type>::from_iter(values).with_data_type(self.output().clone()))
            }
            output => {
                let values: Int64Array = values.map(|v| v.map(|v| v as i64)).collect();
                cast(&values, output)?
            }
        })
    }

    fn overflowed(&self) -> usize {
        (0..self.sums.len()).filter(|&slot| self.counts[slot] > 0 && self.value(slot).is_none()).count()
    }

    fn bytes(&self) -> usize {
        self.sums.capacity() * size_of::<T::Native>()
            + self.counts.capacity() * size_of::<i64>()
            + self.carries.capacity()
    }
}
