//! Text → values where Postgres reads text otherwise than Arrow casts it: BYTEA, dates and times, intervals.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, BinaryArray, Date32Array, IntervalMonthDayNanoArray, Time64MicrosecondArray,
    TimestampMicrosecondArray,
};
use arrow::compute::cast;
use arrow::datatypes::{DataType, IntervalMonthDayNano, IntervalUnit};
use chrono_tz::Tz;
use datafusion::common::{Result, ScalarValue, exec_err};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use super::error::{PlanError, Refusal};
use super::moment;
use super::types::{UTC, sql_name, time, timestamp, timestamptz};
use crate::sql::{IntervalFault, interval};

/// Bytes from Postgres' two formats: `\x` and hex digits, or the escape format (`\\` and `\ooo`).
///
/// # Errors
/// 22P02.
pub fn bytea(text: &str) -> Result<Vec<u8>, PlanError> {
    let invalid = |message: String| PlanError::InvalidValue(Refusal::new(message));
    let Some(hex) = text.strip_prefix("\\x") else {
        return escaped_bytes(text)
            .ok_or_else(|| invalid(format!("invalid input syntax for type {}", sql_name(&DataType::Binary))));
    };
    let mut bytes = Vec::with_capacity(hex.len() / 2);
    let mut high: Option<u8> = None;
    for c in hex.chars() {
        match (c.to_digit(16).map(|digit| digit as u8), high) {
            (Some(digit), None) => high = Some(digit),
            (Some(digit), Some(before)) => {
                bytes.push(before << 4 | digit);
                high = None;
            }
            (None, None) if c.is_ascii_whitespace() => {}
            (None, _) => return Err(invalid(format!("invalid hexadecimal digit: \"{c}\""))),
        }
    }
    match high {
        None => Ok(bytes),
        Some(_) => Err(invalid("invalid hexadecimal data: odd number of digits".into())),
    }
}

fn escaped_bytes(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        if first != b'\\' {
            bytes.push(first);
        } else if tail.first() == Some(&b'\\') {
            bytes.push(b'\\');
            rest = &tail[1..];
        } else {
            let octal = tail.get(..3).filter(|digits| digits.iter().all(|d| (b'0'..=b'7').contains(d)))?;
            let value = octal.iter().fold(0u32, |sum, d| sum * 8 + u32::from(d - b'0'));
            bytes.push(u8::try_from(value).ok()?);
            rest = &tail[3..];
        }
    }
    Some(bytes)
}

/// An interval in the form of its column.
///
/// # Errors
/// 22007, and 22008 for what does not fit.
pub fn interval_value(text: &str) -> Result<IntervalMonthDayNano, PlanError> {
    let read = interval(text).map_err(|fault| match fault {
        IntervalFault::Invalid => {
            PlanError::InvalidDatetime(Refusal::new(format!("invalid input syntax for type interval: \"{text}\"")))
        }
        IntervalFault::OutOfRange => too_long(text),
    })?;
    let nanos = read.micros.checked_mul(1_000).ok_or_else(|| too_long(text))?;
    Ok(IntervalMonthDayNano::new(read.months, read.days, nanos))
}

fn too_long(text: &str) -> PlanError {
    PlanError::DatetimeOverflow(Refusal::new(format!("interval field value out of range: \"{text}\"")))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Target {
    Bytea,
    Date,
    Time,
    Timestamp,
    /// Text without a zone is local to this one.
    Timestamptz(Tz),
    Interval,
}

/// A cast of text as Postgres' input function of the type does it.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct TextInput {
    target: Target,
    signature: Signature,
}

impl TextInput {
    /// The value of `text` (of a text type) as `to`, or `None` if Arrow's own cast will do. A literal is read at once.
    pub fn cast(text: &Expr, to: &DataType, zone: Tz) -> Result<Option<Expr>> {
        let target = match to {
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView => Target::Bytea,
            DataType::Date32 => Target::Date,
            DataType::Time32(_) | DataType::Time64(_) => Target::Time,
            DataType::Timestamp(_, None) => Target::Timestamp,
            DataType::Timestamp(_, Some(_)) => Target::Timestamptz(zone),
            DataType::Interval(_) => Target::Interval,
            _ => return Ok(None),
        };
        let input = TextInput { target, signature: Signature::any(1, Volatility::Immutable) };
        let own_type = input.data_type();
        let value = match text {
            Expr::Literal(ScalarValue::Utf8(text) | ScalarValue::Utf8View(text) | ScalarValue::LargeUtf8(text), _) => {
                Expr::Literal(input.read(text.as_deref())?, None)
            }
            other => ScalarUDF::from(input).call(vec![other.clone()]),
        };
        Ok(Some(if own_type == *to { value } else { datafusion::logical_expr::cast(value, to.clone()) }))
    }

    fn data_type(&self) -> DataType {
        match self.target {
            Target::Bytea => DataType::Binary,
            Target::Date => DataType::Date32,
            Target::Time => time(),
            Target::Timestamp => timestamp(),
            Target::Timestamptz(_) => timestamptz(),
            Target::Interval => DataType::Interval(IntervalUnit::MonthDayNano),
        }
    }

    fn read(&self, text: Option<&str>) -> Result<ScalarValue, PlanError> {
        Ok(match self.target {
            Target::Bytea => ScalarValue::Binary(text.map(bytea).transpose()?),
            Target::Date => ScalarValue::Date32(text.map(moment::date).transpose()?),
            Target::Time => ScalarValue::Time64Microsecond(text.map(moment::time).transpose()?),
            Target::Timestamp => ScalarValue::TimestampMicrosecond(text.map(moment::timestamp).transpose()?, None),
            Target::Timestamptz(zone) => {
                let read = text.map(|text| moment::timestamptz(text, zone)).transpose()?;
                ScalarValue::TimestampMicrosecond(read, Some(UTC.into()))
            }
            Target::Interval => ScalarValue::IntervalMonthDayNano(text.map(interval_value).transpose()?),
        })
    }

    fn read_all(&self, texts: &ArrayRef) -> Result<ArrayRef> {
        let texts = cast(texts, &DataType::Utf8)?;
        let texts = texts.as_string::<i32>().iter();
        fn all<'a, T, C: FromIterator<Option<T>>>(
            texts: impl Iterator<Item = Option<&'a str>>,
            read: impl Fn(&str) -> Result<T, PlanError>,
        ) -> Result<C, PlanError> {
            texts.map(|text| text.map(&read).transpose()).collect()
        }
        Ok(match self.target {
            Target::Bytea => Arc::new(all::<_, BinaryArray>(texts, bytea)?),
            Target::Date => Arc::new(all::<_, Date32Array>(texts, moment::date)?),
            Target::Time => Arc::new(all::<_, Time64MicrosecondArray>(texts, moment::time)?),
            Target::Timestamp => Arc::new(all::<_, TimestampMicrosecondArray>(texts, moment::timestamp)?),
            Target::Timestamptz(zone) => {
                let read = all::<_, TimestampMicrosecondArray>(texts, |text| moment::timestamptz(text, zone))?;
                Arc::new(read.with_timezone(UTC))
            }
            Target::Interval => Arc::new(all::<_, IntervalMonthDayNanoArray>(texts, interval_value)?),
        })
    }
}

impl ScalarUDFImpl for TextInput {
    /// As Postgres names its input functions.
    fn name(&self) -> &str {
        match self.target {
            Target::Bytea => "byteain",
            Target::Date => "date_in",
            Target::Time => "time_in",
            Target::Timestamp => "timestamp_in",
            Target::Timestamptz(_) => "timestamptz_in",
            Target::Interval => "interval_in",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(self.data_type())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        match args.args.as_slice() {
            [ColumnarValue::Array(texts)] => Ok(ColumnarValue::Array(self.read_all(texts)?)),
            [ColumnarValue::Scalar(text)] => match text.try_as_str() {
                Some(text) => Ok(ColumnarValue::Scalar(self.read(text)?)),
                None => exec_err!("{} takes a text", self.name()),
            },
            _ => exec_err!("{} takes one argument", self.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_in_hex_and_escapes() {
        for (text, expected) in [
            ("\\x0102", "[1, 2]"),
            ("\\xdE aD\n", "[222, 173]"),
            ("\\x", "[]"),
            ("", "[]"),
            ("ab\\\\\\001", "[97, 98, 92, 1]"),
            ("\\X01", "invalid input syntax for type bytea"),
            ("a\\", "invalid input syntax for type bytea"),
            ("a\\400", "invalid input syntax for type bytea"),
            ("\\x1", "invalid hexadecimal data: odd number of digits"),
            ("\\x0g", "invalid hexadecimal digit: \"g\""),
            ("\\x0 1", "invalid hexadecimal digit: \" \""),
            ("\\xä", "invalid hexadecimal digit: \"ä\""),
        ] {
            let got = bytea(text).map_or_else(|error| error.to_string(), |bytes| format!("{bytes:?}"));
            assert_eq!(got, expected, "{text}");
        }
    }

    #[test]
    fn a_literal_is_read_at_once_and_a_column_row_by_row() {
        let literal = TextInput::cast(&datafusion::logical_expr::lit("1 day 02:03:04"), &interval_type(), Tz::UTC);
        let expected = ScalarValue::IntervalMonthDayNano(Some(IntervalMonthDayNano::new(0, 1, 7_384_000_000_000)));
        assert_eq!(literal.expect("an interval"), Some(Expr::Literal(expected, None)));
        let column: ArrayRef = Arc::new(arrow::array::StringViewArray::from(vec![Some("\\x41"), None]));
        let input = TextInput { target: Target::Bytea, signature: Signature::any(1, Volatility::Immutable) };
        let read = input.read_all(&column).expect("bytes");
        assert_eq!(read.as_binary::<i32>().iter().collect::<Vec<_>>(), [Some(&b"A"[..]), None]);
        let bad: ArrayRef = Arc::new(arrow::array::StringArray::from(vec!["\\x4"]));
        assert!(matches!(input.read_all(&bad).map_err(PlanError::from), Err(PlanError::InvalidValue(_))));
        assert_eq!(
            TextInput::cast(&datafusion::logical_expr::lit("1"), &DataType::Int64, Tz::UTC).expect("none"),
            None
        );
    }

    fn interval_type() -> DataType {
        DataType::Interval(IntervalUnit::MonthDayNano)
    }
}
