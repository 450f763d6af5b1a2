//! Single values, and the Arrow arrays made of them: system tables are small, so they are built row by row.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float32Array, Float64Array, Int16Array, Int32Array, Int64Array, ListArray,
    StringArray, StructArray, TimestampMicrosecondArray, new_null_array,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, Int64Type, TimeUnit};
use arrow::error::ArrowError;

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    /// The items of a list, or the fields of a struct.
    List(Vec<Value>),
}

impl Value {
    pub fn as_int(&self) -> Option<i64> {
        match self {
            Value::Int(v) => Some(*v),
            Value::Text(text) => text.trim().parse().ok(),
            _ => None,
        }
    }

    pub fn as_oid(&self) -> Option<crate::catalog::Oid> {
        self.as_int().and_then(|v| v.try_into().ok())
    }

    /// A value as text, if it is a single one.
    pub fn to_text(&self) -> Option<String> {
        match self {
            Value::Text(text) => Some(text.clone()),
            Value::Int(v) => Some(v.to_string()),
            Value::Float(v) => Some(v.to_string()),
            Value::Bool(v) => Some(v.to_string()),
            Value::Null | Value::List(_) => None,
        }
    }

    pub fn as_text(&self) -> Option<&str> {
        match self {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// What stands in a column that may not be NULL where a row does not say: 0, false, the empty text or list.
    pub fn zero(data_type: &DataType) -> Value {
        match data_type {
            DataType::Boolean => Value::Bool(false),
            DataType::Utf8 => Value::Text(String::new()),
            DataType::List(_) => Value::List(Vec::new()),
            DataType::Float32 | DataType::Float64 => Value::Float(0.0),
            _ => Value::Int(0),
        }
    }
}

macro_rules! integers {
    ($($t:ty),*) => { $(impl From<$t> for Value { fn from(v: $t) -> Value { Value::Int(v as i64) } })* };
}
integers!(i16, i32, i64, u32, usize);

impl From<bool> for Value {
    fn from(v: bool) -> Value {
        Value::Bool(v)
    }
}

impl From<f64> for Value {
    fn from(v: f64) -> Value {
        Value::Float(v)
    }
}

impl From<&str> for Value {
    fn from(v: &str) -> Value {
        Value::Text(v.to_string())
    }
}

impl From<String> for Value {
    fn from(v: String) -> Value {
        Value::Text(v)
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(v: Option<T>) -> Value {
        v.map_or(Value::Null, Into::into)
    }
}

impl<T: Into<Value>> From<Vec<T>> for Value {
    fn from(v: Vec<T>) -> Value {
        Value::List(v.into_iter().map(Into::into).collect())
    }
}

/// An array of `data_type`; a value of another kind is NULL, and so is every value of a type that no system table fills.
pub fn array_of(data_type: &DataType, values: &[Value]) -> ArrayRef {
    let ints = || values.iter().map(Value::as_int);
    let floats = || {
        values.iter().map(|v| match v {
            Value::Float(v) => Some(*v),
            Value::Int(v) => Some(*v as f64),
            _ => None,
        })
    };
    match data_type {
        DataType::Boolean => {
            let bools = values.iter().map(|v| if let Value::Bool(v) = v { Some(*v) } else { None });
            Arc::new(bools.collect::<BooleanArray>())
        }
        DataType::Int16 => Arc::new(ints().map(|v| v.and_then(|v| v.try_into().ok())).collect::<Int16Array>()),
        DataType::Int32 => Arc::new(ints().map(|v| v.and_then(|v| v.try_into().ok())).collect::<Int32Array>()),
        DataType::Int64 => Arc::new(ints().collect::<Int64Array>()),
        DataType::Float32 => Arc::new(floats().map(|v| v.map(|v| v as f32)).collect::<Float32Array>()),
        DataType::Float64 => Arc::new(floats().collect::<Float64Array>()),
        DataType::Timestamp(TimeUnit::Microsecond, zone) => {
            let array = ints().collect::<TimestampMicrosecondArray>();
            Arc::new(array.with_timezone_opt(zone.clone()))
        }
        DataType::List(field) => {
            let mut inner = Vec::new();
            let mut lengths = Vec::with_capacity(values.len());
            for value in values {
                let items: &[Value] = if let Value::List(items) = value { items } else { &[] };
                inner.extend_from_slice(items);
                lengths.push(items.len());
            }
            let nulls = NullBuffer::from_iter(values.iter().map(|v| matches!(v, Value::List(_))));
            let items = array_of(field.data_type(), &inner);
            Arc::new(ListArray::new(Arc::clone(field), OffsetBuffer::from_lengths(lengths), items, Some(nulls)))
        }
        DataType::Struct(fields) => {
            let column = |at: usize| {
                let items = values.iter().map(|v| if let Value::List(v) = v { v[at].clone() } else { Value::Null });
                array_of(fields[at].data_type(), &items.collect::<Vec<_>>())
            };
            let columns = (0..fields.len()).map(column).collect();
            let nulls = NullBuffer::from_iter(values.iter().map(|v| *v != Value::Null));
            Arc::new(StructArray::new(fields.clone(), columns, Some(nulls)))
        }
        DataType::Utf8 => Arc::new(values.iter().map(Value::as_text).collect::<StringArray>()),
        other => new_null_array(other, values.len()),
    }
}

/// The values of an array: integers, floats, booleans and lists as such, all else as text.
pub fn values_of(array: &ArrayRef) -> Result<Vec<Value>, ArrowError> {
    Ok(match array.data_type() {
        DataType::Null => vec![Value::Null; array.len()],
        DataType::Boolean => array.as_boolean().iter().map(Value::from).collect(),
        t if t.is_integer() => {
            cast(array, &DataType::Int64)?.as_primitive::<Int64Type>().iter().map(Value::from).collect()
        }
        t if t.is_floating() => {
            cast(array, &DataType::Float64)?.as_primitive::<Float64Type>().iter().map(Value::from).collect()
        }
        DataType::List(_) => {
            let lists = array.as_list::<i32>().iter();
            lists
                .map(|list| list.map_or(Ok(Value::Null), |list| Ok(Value::List(values_of(&list)?))))
                .collect::<Result<_, ArrowError>>()?
        }
        _ => cast(array, &DataType::Utf8)?.as_string::<i32>().iter().map(Value::from).collect(),
    })
}
