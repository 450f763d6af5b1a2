//! `min` and `max` over input that never retracts: the best value so far.
//!
//! NaN is greater than every number, as in Postgres.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, ArrowNativeTypeOp, ArrowPrimitiveType, AsArray, BinaryArray, BooleanArray, PrimitiveArray, StringArray,
    downcast_primitive, new_null_array,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::DataType;
use arrow::error::ArrowError;
use arrow::row::{RowConverter, SortField};

use super::rows::Rows;
use super::{ExecError, States, canonical, pick};

/// Whether values of this type have an order that [`create`] knows.
pub(super) fn supports(data_type: &DataType) -> bool {
    RowConverter::supports_fields(&[SortField::new(data_type.clone())])
}

/// States of `min` (or `max`) for values of a type that [`supports`] accepts. Arrow form: the value, NULL for none.
pub(super) fn create(data_type: &DataType, max: bool) -> Box<dyn States> {
    macro_rules! primitive {
        ($t:ty) => {
            Box::new(Extremes::<$t> { values: vec![], present: vec![], max, data_type: data_type.clone() })
        };
    }
    downcast_primitive! {
        data_type => (primitive),
        DataType::Utf8 => Box::new(ByteExtremes::new(Codec::Utf8, max)),
        DataType::Binary => Box::new(ByteExtremes::new(Codec::Binary, max)),
        _ => {
            let converter = RowConverter::new(vec![SortField::new(data_type.clone())]).expect("the type is supported");
            let null = converter.convert_columns(&[new_null_array(data_type, 1)]).expect("NULL has a row");
            let null = null.row(0).data().into();
            Box::new(ByteExtremes::new(Codec::Row { converter, null }, max))
        }
    }
}

struct Extremes<T: ArrowPrimitiveType> {
    values: Vec<T::Native>,
    present: Vec<bool>,
    max: bool,
    data_type: DataType,
}

impl<T: ArrowPrimitiveType> Extremes<T> {
    #[inline(always)]
    fn offer(&mut self, slot: usize, value: T::Native) {
        let best = self.values[slot];
        if !self.present[slot] || (if self.max { value.is_gt(best) } else { value.is_lt(best) }) {
            self.values[slot] = value;
            self.present[slot] = true;
        }
    }
}

impl<T: ArrowPrimitiveType> States for Extremes<T> {
    fn resize(&mut self, slots: usize) {
        self.values.resize(slots, T::Native::default());
        self.present.resize(slots, false);
    }

    fn len(&self) -> usize {
        self.values.len()
    }

    fn update(
        &mut self,
        slots: &[u32],
        args: &[ArrayRef],
        filter: Option<&BooleanArray>,
        weights: Option<&[i64]>,
    ) -> Result<(), ExecError> {
        let column = canonical(&args[0]);
        let values = column.as_primitive::<T>().values();
        Rows::new(slots, args, filter, weights).for_each(|row, slot, weight| {
            if adds(weight) {
                self.offer(slot, values[row]);
            }
        });
        Ok(())
    }

    fn merge(&mut self, slots: &[u32], states: &ArrayRef) -> Result<(), ExecError> {
        self.update(slots, std::slice::from_ref(states), None, None)
    }

    fn subtract(&mut self, _: &[u32], _: &ArrayRef) -> Result<(), ExecError> {
        Err(super::not_invertible(if self.max { "max" } else { "min" }))
    }

    fn form(&self, slots: Option<&[u32]>) -> Result<ArrayRef, ExecError> {
        let nulls = NullBuffer::from(pick(&self.present, slots));
        let values = PrimitiveArray::<T>::new(pick(&self.values, slots).into(), Some(nulls));
        Ok(Arc::new(values.with_data_type(self.data_type.clone())))
    }

    fn finish(&self) -> Result<ArrayRef, ExecError> {
        self.form(None)
    }

    fn bytes(&self) -> usize {
        self.values.capacity() * size_of::<T::Native>() + self.present.capacity()
    }
}

/// Whether a row of input that never retracts is there at all.
#[inline(always)]
fn adds(weight: i64) -> bool {
    assert!(weight >= 0, "input declared append-only has taken a row back");
    weight > 0
}

/// How a value's order is that of some bytes.
enum Codec {
    Utf8,
    Binary,
    /// Any other type, by Arrow's row format, which stays in memory.
    Row {
        converter: RowConverter,
        null: Box<[u8]>,
    },
}

struct ByteExtremes {
    codec: Codec,
    values: Vec<Option<Box<[u8]>>>,
    /// Length of all values.
    heap_bytes: usize,
    max: bool,
}

impl ByteExtremes {
    fn new(codec: Codec, max: bool) -> Self {
        ByteExtremes { codec, values: Vec::new(), heap_bytes: 0, max }
    }

    fn offer(&mut self, slot: usize, value: &[u8]) {
        let best = &mut self.values[slot];
        let better = match best {
            None => true,
            Some(b) if self.max => value > &**b,
            Some(b) => value < &**b,
        };
        if better {
            self.heap_bytes += value.len();
            self.heap_bytes -= best.as_ref().map_or(0, |b| b.len());
            *best = Some(value.into());
        }
    }

    fn to_array(&self, values: &[Option<&[u8]>]) -> Result<ArrayRef, ExecError> {
        if let Codec::Row { converter, null } = &self.codec {
            let parser = converter.parser();
            let rows = values.iter().map(|v| parser.parse(v.unwrap_or(null)));
            return Ok(converter.convert_rows(rows)?.swap_remove(0));
        }
        let bytes: Vec<u8> = values.iter().flatten().copied().collect::<Vec<_>>().concat();
        if bytes.len() > i32::MAX as usize {
            return Err(ArrowError::OffsetOverflowError(bytes.len()).into());
        }
        let offsets = OffsetBuffer::from_lengths(values.iter().map(|v| v.map_or(0, <[u8]>::len)));
        let nulls = NullBuffer::from_iter(values.iter().map(Option::is_some));
        Ok(match self.codec {
            Codec::Utf8 => Arc::new(StringArray::try_new(offsets, bytes.into(), Some(nulls))?),
            _ => Arc::new(BinaryArray::try_new(offsets, bytes.into(), Some(nulls))?),
        })
    }
}

impl States for ByteExtremes {
    fn resize(&mut self, slots: usize) {
        self.values.resize(slots, None);
    }

    fn len(&self) -> usize {
        self.values.len()
    }

    fn update(
        &mut self,
        slots: &[u32],
        args: &[ArrayRef],
        filter: Option<&BooleanArray>,
        weights: Option<&[i64]>,
    ) -> Result<(), ExecError> {
        let rows = Rows::new(slots, args, filter, weights);
        match &self.codec {
            Codec::Utf8 => {
                let values = args[0].as_string::<i32>();
                rows.for_each(|row, slot, weight| {
                    if adds(weight) {
                        self.offer(slot, values.value(row).as_bytes());
                    }
                });
            }
            Codec::Binary => {
                let values = args[0].as_binary::<i32>();
                rows.for_each(|row, slot, weight| {
                    if adds(weight) {
                        self.offer(slot, values.value(row));
                    }
                });
            }
            Codec::Row { converter, .. } => {
                let values = converter.convert_columns(&[canonical(&args[0])])?;
                rows.for_each(|row, slot, weight| {
                    if adds(weight) {
                        self.offer(slot, values.row(row).data());
                    }
                });
            }
        }
        Ok(())
    }

    fn merge(&mut self, slots: &[u32], states: &ArrayRef) -> Result<(), ExecError> {
        self.update(slots, std::slice::from_ref(states), None, None)
    }

    fn subtract(&mut self, _: &[u32], _: &ArrayRef) -> Result<(), ExecError> {
        Err(super::not_invertible(if self.max { "max" } else { "min" }))
    }

    fn form(&self, slots: Option<&[u32]>) -> Result<ArrayRef, ExecError> {
        match slots {
            None => self.to_array(&self.values.iter().map(Option::as_deref).collect::<Vec<_>>()),
            Some(slots) => {
                self.to_array(&slots.iter().map(|&s| self.values[s as usize].as_deref()).collect::<Vec<_>>())
            }
        }
    }

    fn finish(&self) -> Result<ArrayRef, ExecError> {
        self.form(None)
    }

    fn bytes(&self) -> usize {
        self.values.capacity() * size_of::<Option<Box<[u8]>>>() + self.heap_bytes
    }
}
