//! States that keep every value with its weight: for DISTINCT, and for functions that cannot subtract over input that
//! retracts. The result is computed from the values when it is asked for.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Int64Array, ListArray, StructArray, UInt32Array, UInt64Array,
};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::compute::{SortColumn, SortOptions, cast, lexsort_to_indices, take};
use arrow::datatypes::{DataType, Field, Fields, Int64Type, UInt64Type};
use arrow::error::ArrowError;
use arrow::row::{RowConverter, SortField};

use super::hll::{self, Sketches};
use super::multiset::{Key, Multiset};
use super::rows::Rows;
use super::{ExecError, States, canonical};

/// What the values become in the end.
pub(super) enum Outcome {
    /// The number of different values.
    Count,
    /// The smallest or the largest one.
    Extreme { max: bool },
    /// An estimate of the number of different values; those kept are their hashes.
    Sketch,
    /// What these states make of the values, each given once.
    Distinct(Make),
    /// What these states make of the values, each given `weight` times, in the order of the last columns.
    All { make: Make, order: Vec<SortOptions> },
}

pub(super) type Make = Box<dyn Fn() -> Box<dyn States> + Send + Sync>;

/// Values by weight, per slot.
///
/// Arrow form: List of Struct {v0, v1, ...: the argument columns; weight: Int64}. `approx_distinct` has the hash of its
/// argument as UInt64 in place of it.
pub(super) struct ByValue<K> {
    slots: Vec<Multiset<K>>,
    keys: usize,
    key_heap_bytes: usize,
    converter: RowConverter,
    /// Of a row, if K is a number.
    width: usize,
    columns: Fields,
    /// Whether rows with NULL arguments count.
    nulls: bool,
    outcome: Outcome,
    output: DataType,
}

/// Whether [`create`] knows these columns.
pub(super) fn supports(columns: &[DataType]) -> bool {
    RowConverter::supports_fields(&sort_fields(columns))
}

fn sort_fields(columns: &[DataType]) -> Vec<SortField> {
    columns.iter().map(|t| SortField::new(t.clone())).collect()
}

pub(super) fn state_type(columns: &[DataType]) -> DataType {
    DataType::List(item(&fields(columns)))
}

fn fields(columns: &[DataType]) -> Fields {
    let values = columns.iter().enumerate().map(|(i, t)| Field::new(format!("v{i}"), t.clone(), true));
    values.chain([Field::new("weight", DataType::Int64, false)]).collect()
}

fn item(fields: &Fields) -> Arc<Field> {
    Arc::new(Field::new("item", DataType::Struct(fields.clone()), false))
}

/// For argument columns of types that [`supports`] accepts. `nulls`: rows with NULL arguments count too.
pub(super) fn create(columns: &[DataType], nulls: bool, outcome: Outcome, output: DataType) -> Box<dyn States> {
    let width = match columns {
        [t] if !nulls && *t != DataType::Boolean => t.primitive_width().filter(|&w| w <= 8).map(|w| w + 1),
        _ => None,
    };
    match width {
        Some(width) => Box::new(ByValue::<u64>::new(columns, width, nulls, outcome, output)),
        None => Box::new(ByValue::<Box<[u8]>>::new(columns, 0, nulls, outcome, output)),
    }
}

impl<K: Key> ByValue<K> {
    fn new(columns: &[DataType], width: usize, nulls: bool, outcome: Outcome, output: DataType) -> Self {
        ByValue {
            slots: Vec::new(),
            keys: 0,
            key_heap_bytes: 0,
            converter: RowConverter::new(sort_fields(columns)).expect("the types are supported"),
            width,
            columns: fields(columns),
            nulls,
            outcome,
            output,
        }
    }

    fn add(&mut self, slot: usize, row: &[u8], weight: i64) {
        let key = K::of(row);
        let heap = key.heap_bytes();
        let change = self.slots[slot].add(key, weight);
        self.keys = self.keys.saturating_add_signed(change);
        self.key_heap_bytes = self.key_heap_bytes.saturating_add_signed(change * heap as isize);
    }

    fn combine(&mut self, slots: &[u32], states: &ArrayRef, sign: i64) -> Result<(), ExecError> {
        let lists = states.as_list::<i32>();
        let offsets = lists.value_offsets();
        let first = offsets[0] as usize;
        let entries = lists.values().slice(first, offsets[lists.len()] as usize - first);
        let entries = entries.as_struct();
        let (weights, values) = entries.columns().split_last().expect("the weight is always there");
        let weights = weights.as_primitive::<Int64Type>().values();
        let rows = self.converter.convert_columns(values)?;
        for (i, &slot) in slots.iter().enumerate() {
            for at in offsets[i] as usize - first..offsets[i + 1] as usize - first {
                self.add(slot as usize, rows.row(at).data(), sign * weights[at]);
            }
        }
        Ok(())
    }

    /// The columns that stand for these keys.
    fn decode<'a>(&self, keys: impl Iterator<Item = &'a K>) -> Result<Vec<ArrayRef>, ExecError> {
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        for key in keys {
            key.write(self.width, &mut bytes);
            ends.push(bytes.len());
        }
        let parser = self.converter.parser();
        let mut start = 0;
        let rows = ends.iter().map(|&end| parser.parse(&bytes[std::mem::replace(&mut start, end)..end]));
        Ok(self.converter.convert_rows(rows)?)
    }

    fn extremes(&self, max: bool) -> Result<ArrayRef, ExecError> {
        let mut found = Vec::new();
        let mut places = Vec::with_capacity(self.slots.len());
        for slot in &self.slots {
            let best = if max { slot.present().next_back() } else { slot.present().next() };
            places.push(best.map(|(key, _)| {
                found.push(key);
                found.len() as u32 - 1
            }));
        }
        let values = self.decode(found.into_iter())?.swap_remove(0);
        Ok(take(&values, &UInt32Array::from(places), None)?)
    }

    /// Gives the values that are there to fresh states.
    fn feed(&self, mut states: Box<dyn States>, once: bool, order: &[SortOptions]) -> Result<ArrayRef, ExecError> {
        let (mut slots, mut weights, mut keys) = (Vec::new(), Vec::new(), Vec::new());
        for (slot, values) in self.slots.iter().enumerate() {
            for (key, weight) in values.present() {
                slots.push(slot as u32);
                weights.push(weight);
                keys.push(key);
            }
        }
        let mut columns = self.decode(keys.into_iter())?;
        if !order.is_empty() && !slots.is_empty() {
            let mut sort = vec![SortColumn { values: Arc::new(UInt32Array::from(slots.clone())), options: None }];
            let by = &columns[columns.len() - order.len()..];
            sort.extend(by.iter().zip(order).map(|(c, &o)| SortColumn { values: c.clone(), options: Some(o) }));
            let indices = lexsort_to_indices(&sort, None)?;
            columns = columns.iter().map(|c| take(c, &indices, None)).collect::<Result<_, _>>()?;
            weights = indices.values().iter().map(|&i| weights[i as usize]).collect();
        }
        states.resize(self.slots.len());
        states.update(&slots, &columns, None, (!once).then_some(weights.as_slice()))?;
        states.finish()
    }

    fn count(&self) -> Result<ArrayRef, ExecError> {
        let counts = Int64Array::from_iter_values(self.slots.iter().map(|s| s.present().count() as i64));
        Ok(cast(&counts, &self.output)?)
    }

    fn estimate(&self) -> Result<ArrayRef, ExecError> {
        let mut sketches = Sketches::new(self.output.clone());
        sketches.resize(self.slots.len());
        let present = self.slots.iter().enumerate().flat_map(|(slot, s)| s.present().map(move |(key, _)| (slot, key)));
        let (slots, keys): (Vec<usize>, Vec<&K>) = present.unzip();
        let hashes = self.decode(keys.into_iter())?;
        for (slot, &hash) in slots.into_iter().zip(hashes[0].as_primitive::<UInt64Type>().values()) {
            sketches.insert(slot, hash);
        }
        sketches.finish()
    }
}

impl<K: Key> States for ByValue<K> {
    fn resize(&mut self, slots: usize) {
        self.slots.resize_with(slots, Multiset::new);
    }

    fn len(&self) -> usize {
        self.slots.len()
    }

    fn update(
        &mut self,
        slots: &[u32],
        args: &[ArrayRef],
        filter: Option<&BooleanArray>,
        weights: Option<&[i64]>,
    ) -> Result<(), ExecError> {
        let rows = Rows::new(slots, if self.nulls { &[] } else { args }, filter, weights);
        let columns: Vec<ArrayRef> = match self.outcome {
            Outcome::Sketch => vec![Arc::new(UInt64Array::from(hll::hashes(&args[0])))],
            _ => args.iter().map(canonical).collect(),
        };
        let values = self.converter.convert_columns(&columns)?;
        rows.for_each(|row, slot, weight| self.add(slot, values.row(row).data(), weight));
        Ok(())
    }

    fn merge(&mut self, slots: &[u32], states: &ArrayRef) -> Result<(), ExecError> {
        self.combine(slots, states, 1)
    }

    fn subtract(&mut self, slots: &[u32], states: &ArrayRef) -> Result<(), ExecError> {
        self.combine(slots, states, -1)
    }

    fn form(&self, slots: Option<&[u32]>) -> Result<ArrayRef, ExecError> {
        let chosen: Vec<&Multiset<K>> = match slots {
            None => self.slots.iter().collect(),
            Some(slots) => slots.iter().map(|&slot| &self.slots[slot as usize]).collect(),
        };
        let total: usize = chosen.iter().map(|s| s.len()).sum();
        if total > i32::MAX as usize {
            return Err(ArrowError::OffsetOverflowError(total).into());
        }
        let offsets = OffsetBuffer::from_lengths(chosen.iter().map(|s| s.len()));
        let mut columns = self.decode(chosen.iter().flat_map(|s| s.iter().map(|(key, _)| key)))?;
        let weights: ScalarBuffer<i64> = chosen.iter().flat_map(|s| s.iter().map(|(_, weight)| weight)).collect();
        columns.push(Arc::new(Int64Array::new(weights, None)));
        let entries = StructArray::try_new(self.columns.clone(), columns, None)?;
        Ok(Arc::new(ListArray::try_new(item(&self.columns), offsets, Arc::new(entries), None)?))
    }

    fn finish(&self) -> Result<ArrayRef, ExecError> {
        match &self.outcome {
            Outcome::Count => self.count(),
            Outcome::Extreme { max } => self.extremes(*max),
            Outcome::Sketch => self.estimate(),
            Outcome::Distinct(make) => self.feed(make(), true, &[]),
            Outcome::All { make, order } => self.feed(make(), false, order),
        }
    }

    fn bytes(&self) -> usize {
        self.slots.capacity() * size_of::<Multiset<K>>() + self.keys * size_of::<(K, i64)>() + self.key_heap_bytes
    }
}
