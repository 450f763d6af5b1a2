//! One column while a batch is decoded: how a JSON value becomes one of its values, and the values so far.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float32Array, Float64Array, Int16Array,
    Int32Array, Int64Array, StringArray, Time64MicrosecondArray, TimestampMicrosecondArray,
};
use arrow::buffer::{BooleanBuffer, Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, TimeUnit};

use super::exact::{self, Excess, Inexact};
use super::scan::{Number, Scanner, Text, unescape};
use super::time::{self, DateCache, EpochUnit, TimestampMode};

/// What a column holds, as far as decoding cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Bool,
    /// SMALLINT, INT or BIGINT by its largest value.
    Int {
        max: i64,
    },
    Real,
    Double,
    Numeric {
        precision: u8,
        scale: i8,
    },
    Text,
    Bytes,
    Date,
    Time,
    Timestamp {
        mode: TimestampMode,
    },
}

/// Values of the rows so far; NULL rows hold a default.
#[derive(Debug)]
pub(super) enum Values {
    Bool(Vec<bool>),
    I16(Vec<i16>),
    I32(Vec<i32>),
    I64(Vec<i64>),
    I128(Vec<i128>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bytes { ends: Vec<i32>, data: Vec<u8> },
}

/// Values and which rows are NULL, in order.
#[derive(Debug)]
pub(super) struct Rows {
    pub values: Values,
    nulls: Vec<u32>,
    data_type: DataType,
}

/// What decoding needs for a moment.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    pub text: Vec<u8>,
    dates: DateCache,
}

/// Why a value does not fit its column: the words after "column x: ". The value's own text is added by the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Misfit {
    /// Not of a kind that the column's type can be read from.
    Kind,
    OutOfRange,
    /// Not integral, or more fractional digits than the scale.
    Fraction,
    Because(&'static str),
}

impl Kind {
    /// `None` for types that are not read from JSON.
    pub fn of(data_type: &DataType, mode: TimestampMode) -> Option<Kind> {
        Some(match data_type {
            DataType::Boolean => Kind::Bool,
            DataType::Int16 => Kind::Int { max: i16::MAX.into() },
            DataType::Int32 => Kind::Int { max: i32::MAX.into() },
            DataType::Int64 => Kind::Int { max: i64::MAX },
            DataType::Float32 => Kind::Real,
            DataType::Float64 => Kind::Double,
            DataType::Decimal128(precision, scale) => Kind::Numeric { precision: *precision, scale: *scale },
            DataType::Utf8 => Kind::Text,
            DataType::Binary => Kind::Bytes,
            DataType::Date32 => Kind::Date,
            DataType::Time64(TimeUnit::Microsecond) => Kind::Time,
            DataType::Timestamp(TimeUnit::Microsecond, _) => Kind::Timestamp { mode },
            _ => return None,
        })
    }

    /// Checks a string and, with `rows`, appends it.
    pub fn text(&self, text: Text<'_>, scratch: &mut Scratch, rows: Option<&mut Rows>) -> Result<(), Misfit> {
        if let (Kind::Text, false) = (self, text.escaped) {
            if let Some(rows) = rows {
                rows.push_bytes(text.raw);
            }
            return Ok(());
        }
        let raw = match text.escaped {
            false => text.raw,
            true => {
                scratch.text.clear();
                unescape(text.raw, &mut scratch.text).map_err(Misfit::Because)?;
                scratch.text.as_slice()
            }
        };
        match self {
            Kind::Text => {
                if let Some(rows) = rows {
                    rows.push_bytes(raw);
                }
                Ok(())
            }
            Kind::Bool => Err(Misfit::Kind),
            Kind::Int { .. } | Kind::Real | Kind::Double | Kind::Numeric { .. } => {
                let mut scanner = Scanner::new(raw);
                match scanner.number() {
                    Ok(number) if scanner.peek().is_none() => self.number(number, rows),
                    _ => Err(Misfit::Kind),
                }
            }
            Kind::Bytes => {
                let decoded = hex(raw)?;
                if let Some(rows) = rows {
                    rows.push_bytes(&decoded);
                }
                Ok(())
            }
            Kind::Date => {
                let days = time::date(raw).map_err(Misfit::Because)?;
                if let Some(Values::I32(values)) = rows.map(|r| &mut r.values) {
                    values.push(days);
                }
                Ok(())
            }
            Kind::Time => push_i64(rows, time::time(raw).map_err(Misfit::Because)?),
            Kind::Timestamp { mode } => {
                let (us, zone) = time::timestamp(raw, &mut scratch.dates).map_err(Misfit::Because)?;
                match mode {
                    TimestampMode::UtcString if !zone => {
                        Err(Misfit::Because("timestamptz.handling.mode = 'utc_string' needs a zone"))
                    }
                    TimestampMode::UtcWithoutSuffix if zone => {
                        Err(Misfit::Because("timestamptz.handling.mode = 'utc_without_suffix' allows no zone"))
                    }
                    _ => push_i64(rows, us),
                }
            }
        }
    }

    /// Checks a number and, with `rows`, appends it.
    #[inline]
    pub fn number(&self, number: Number<'_>, rows: Option<&mut Rows>) -> Result<(), Misfit> {
        match self {
            Kind::Int { max } => {
                let value = match number.integer {
                    Some(value) => value,
                    None => {
                        let exact = exact::scaled(number.text, 0, Excess::Refuse)?;
                        i64::try_from(exact).map_err(|_| Misfit::OutOfRange)?
                    }
                };
                if value > *max || value < -*max - 1 {
                    return Err(Misfit::OutOfRange);
                }
                match rows.map(|r| &mut r.values) {
                    Some(Values::I64(values)) => values.push(value),
                    Some(Values::I32(values)) => values.push(value as i32),
                    Some(Values::I16(values)) => values.push(value as i16),
                    _ => {}
                }
                Ok(())
            }
            Kind::Double => {
                let value: f64 = float(number.text)?;
                if !value.is_finite() {
                    return Err(Misfit::OutOfRange);
                }
                if let Some(Values::F64(values)) = rows.map(|r| &mut r.values) {
                    values.push(value);
                }
                Ok(())
            }
            Kind::Real => {
                let value: f32 = float(number.text)?;
                if !value.is_finite() {
                    return Err(Misfit::OutOfRange);
                }
                if let Some(Values::F32(values)) = rows.map(|r| &mut r.values) {
                    values.push(value);
                }
                Ok(())
            }
            Kind::Numeric { precision, scale } => {
                let value = exact::scaled(number.text, i32::from(*scale), Excess::Refuse)?;
                if value.unsigned_abs() >= 10u128.pow(u32::from(*precision)) {
                    return Err(Misfit::OutOfRange);
                }
                if let Some(Values::I128(values)) = rows.map(|r| &mut r.values) {
                    values.push(value);
                }
                Ok(())
            }
            Kind::Text => {
                if let Some(rows) = rows {
                    rows.push_bytes(number.text);
                }
                Ok(())
            }
            Kind::Timestamp { mode } => {
                let unit: Option<EpochUnit> = match mode {
                    TimestampMode::Guess => None,
                    TimestampMode::Unit(unit) => Some(*unit),
                    TimestampMode::UtcString | TimestampMode::UtcWithoutSuffix => {
                        return Err(Misfit::Because("timestamptz.handling.mode allows text only"));
                    }
                };
                push_i64(rows, time::epoch(number.text, number.integer, unit).map_err(Misfit::Because)?)
            }
            Kind::Bool | Kind::Bytes | Kind::Date | Kind::Time => Err(Misfit::Kind),
        }
    }

    /// Checks `true` or `false` and, with `rows`, appends it.
    pub fn boolean(&self, value: bool, rows: Option<&mut Rows>) -> Result<(), Misfit> {
        if *self != Kind::Bool {
            return Err(Misfit::Kind);
        }
        if let Some(Values::Bool(values)) = rows.map(|r| &mut r.values) {
            values.push(value);
        }
        Ok(())
    }

    fn values(&self, data_type: &DataType, capacity: usize, data_capacity: usize) -> Values {
        match self {
            Kind::Bool => Values::Bool(Vec::with_capacity(capacity)),
            Kind::Int { .. } => match data_type {
                DataType::Int16 => Values::I16(Vec::with_capacity(capacity)),
                DataType::Int32 => Values::I32(Vec::with_capacity(capacity)),
                _ => Values::I64(Vec::with_capacity(capacity)),
            },
            Kind::Real => Values::F32(Vec::with_capacity(capacity)),
            Kind::Double => Values::F64(Vec::with_capacity(capacity)),
            Kind::Numeric { .. } => Values::I128(Vec::with_capacity(capacity)),
            Kind::Text | Kind::Bytes => {
                let mut ends = Vec::with_capacity(capacity + 1);
                ends.push(0);
                Values::Bytes { ends, data: Vec::with_capacity(data_capacity) }
            }
            Kind::Date => Values::I32(Vec::with_capacity(capacity)),
            Kind::Time | Kind::Timestamp { .. } => Values::I64(Vec::with_capacity(capacity)),
        }
    }
}

impl Rows {
    pub fn new(kind: &Kind, data_type: &DataType) -> Rows {
        Rows { values: kind.values(data_type, 0, 0), nulls: Vec::new(), data_type: data_type.clone() }
    }

    #[inline]
    pub fn push_bytes(&mut self, bytes: &[u8]) {
        if let Values::Bytes { ends, data } = &mut self.values {
            data.extend_from_slice(bytes);
            ends.push(data.len() as i32);
        }
    }

    /// Appends NULL as the value of row `row`.
    pub fn push_null(&mut self, row: usize) {
        self.nulls.push(row as u32);
        match &mut self.values {
            Values::Bool(v) => v.push(false),
            Values::I16(v) => v.push(0),
            Values::I32(v) => v.push(0),
            Values::I64(v) => v.push(0),
            Values::I128(v) => v.push(0),
            Values::F32(v) => v.push(0.0),
            Values::F64(v) => v.push(0.0),
            Values::Bytes { ends, data } => ends.push(data.len() as i32),
        }
    }

    /// Forgets what was appended for row `rows` and after it.
    pub fn truncate(&mut self, rows: usize) {
        while self.nulls.last().is_some_and(|row| *row as usize >= rows) {
            self.nulls.pop();
        }
        match &mut self.values {
            Values::Bool(v) => v.truncate(rows),
            Values::I16(v) => v.truncate(rows),
            Values::I32(v) => v.truncate(rows),
            Values::I64(v) => v.truncate(rows),
            Values::I128(v) => v.truncate(rows),
            Values::F32(v) => v.truncate(rows),
            Values::F64(v) => v.truncate(rows),
            Values::Bytes { ends, data } => {
                ends.truncate(rows + 1);
                data.truncate(ends[rows] as usize);
            }
        }
    }

    /// The `rows` values so far as an array. Leaves room for as many again.
    pub fn finish(&mut self, kind: &Kind, rows: usize) -> ArrayRef {
        let data_len = match &self.values {
            Values::Bytes { data, .. } => data.len(),
            _ => 0,
        };
        let values = std::mem::replace(&mut self.values, kind.values(&self.data_type, rows, data_len));
        let nulls = (!self.nulls.is_empty()).then(|| {
            let mut valid = vec![true; rows];
            for row in self.nulls.drain(..) {
                valid[row as usize] = false;
            }
            NullBuffer::from(valid)
        });
        match (values, &self.data_type) {
            (Values::Bool(v), _) => Arc::new(BooleanArray::new(BooleanBuffer::from(v), nulls)),
            (Values::I16(v), _) => Arc::new(Int16Array::new(v.into(), nulls)),
            (Values::I32(v), DataType::Date32) => Arc::new(Date32Array::new(v.into(), nulls)),
            (Values::I32(v), _) => Arc::new(Int32Array::new(v.into(), nulls)),
            (Values::I64(v), DataType::Time64(_)) => Arc::new(Time64MicrosecondArray::new(v.into(), nulls)),
            (Values::I64(v), DataType::Timestamp(_, zone)) => {
                Arc::new(TimestampMicrosecondArray::new(v.into(), nulls).with_timezone_opt(zone.clone()))
            }
            (Values::I64(v), _) => Arc::new(Int64Array::new(v.into(), nulls)),
            (Values::I128(v), data_type) => {
                Arc::new(Decimal128Array::new(v.into(), nulls).with_data_type(data_type.clone()))
            }
            (Values::F32(v), _) => Arc::new(Float32Array::new(v.into(), nulls)),
            (Values::F64(v), _) => Arc::new(Float64Array::new(v.into(), nulls)),
            (Values::Bytes { ends, data }, data_type) => {
                let offsets = OffsetBuffer::new(ScalarBuffer::from(ends));
                let data = Buffer::from_vec(data);
                match data_type {
                    DataType::Binary => Arc::new(BinaryArray::new(offsets, data, nulls)),
                    // SAFETY: every piece is a piece of a record that was checked to be UTF-8, cut at quotes, or was
                    // unescaped into characters, or is a key that was checked.
                    _ => Arc::new(unsafe { StringArray::new_unchecked(offsets, data, nulls) }),
                }
            }
        }
    }
}

impl From<Inexact> for Misfit {
    fn from(inexact: Inexact) -> Self {
        match inexact {
            Inexact::Fraction => Misfit::Fraction,
            Inexact::OutOfRange => Misfit::OutOfRange,
        }
    }
}

#[inline]
fn push_i64(rows: Option<&mut Rows>, value: i64) -> Result<(), Misfit> {
    if let Some(Values::I64(values)) = rows.map(|r| &mut r.values) {
        values.push(value);
    }
    Ok(())
}

fn float<F: std::str::FromStr>(text: &[u8]) -> Result<F, Misfit> {
    std::str::from_utf8(text).ok().and_then(|t| t.parse().ok()).ok_or(Misfit::Kind)
}

/// Postgres' hex form of a BYTEA.
fn hex(text: &[u8]) -> Result<Vec<u8>, Misfit> {
    const FORM: Misfit = Misfit::Because("it is not \\x and an even number of hexadecimal digits");
    let digits = text.strip_prefix(b"\\x").ok_or(FORM)?;
    if digits.len() % 2 != 0 {
        return Err(FORM);
    }
    let digit = |b: u8| (b as char).to_digit(16).ok_or(FORM);
    digits.chunks_exact(2).map(|pair| Ok((digit(pair[0])? * 16 + digit(pair[1])?) as u8)).collect()
}
