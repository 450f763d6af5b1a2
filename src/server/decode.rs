//! Values that a client sends → [`ScalarValue`]s: parameters in text or binary, and the fields of COPY.

use std::str;

use arrow::datatypes::IntervalMonthDayNano;
use bytes::Buf;
use chrono_tz::Tz;
use datafusion::common::ScalarValue;

use crate::catalog::PgType;
use crate::planner::{self, PlanError, moment};

use super::encode::Format;
use super::error::PgError;
use super::numeric;
use super::sqlstate as code;
use super::text::{MICROS_PER_DAY, POSTGRES_EPOCH_DAYS};

/// One value of `pg_type`; `None` is NULL. Times without a zone are local to `zone` where the type has one.
///
/// # Errors
/// 22P02, 22007 and 22003 for text, 22P03 for binary, 22021 for text that is not UTF-8.
pub fn decode(value: Option<&[u8]>, format: Format, pg_type: &PgType, zone: Tz) -> Result<ScalarValue, PgError> {
    match (value, format) {
        (None, _) => null(pg_type),
        (Some(bytes), Format::Text) => from_text(utf8(bytes)?, pg_type, zone),
        (Some(bytes), Format::Binary) => from_binary(bytes, pg_type),
    }
}

fn null(pg_type: &PgType) -> Result<ScalarValue, PgError> {
    ScalarValue::try_new_null(&pg_type.arrow())
        .map_err(|_| PgError::unsupported(format!("parameters of type {} are not supported", pg_type.sql_name)))
}

pub fn utf8(bytes: &[u8]) -> Result<&str, PgError> {
    let text = str::from_utf8(bytes).map_err(|error| {
        let wrong = bytes[error.valid_up_to()..].iter().take(4).map(|b| format!(" 0x{b:02x}")).collect::<String>();
        PgError::new(code::CHARACTER_NOT_IN_REPERTOIRE, format!("invalid byte sequence for encoding \"UTF8\":{wrong}"))
    })?;
    if text.contains('\0') {
        return Err(PgError::new(
            code::CHARACTER_NOT_IN_REPERTOIRE,
            "invalid byte sequence for encoding \"UTF8\": 0x00",
        ));
    }
    Ok(text)
}

/// A value from its text, as Postgres' input functions read it.
pub fn from_text(text: &str, pg_type: &PgType, zone: Tz) -> Result<ScalarValue, PgError> {
    let invalid = || code::invalid_text(pg_type.sql_name, text);
    let refused = |error: PlanError| code::from_plan(&error, "");
    let trimmed = text.trim();
    Ok(match pg_type.name {
        "bool" => ScalarValue::Boolean(Some(bool_of(trimmed).ok_or_else(invalid)?)),
        "int2" => ScalarValue::Int16(Some(int_of(text, pg_type)?)),
        "int4" => ScalarValue::Int32(Some(int_of(text, pg_type)?)),
        "int8" => ScalarValue::Int64(Some(int_of(text, pg_type)?)),
        "float4" => {
            let value: f32 = trimmed.parse().map_err(|_| invalid())?;
            ScalarValue::Float32(Some(finite(value, value.is_infinite(), text, pg_type)?))
        }
        "float8" => {
            let value: f64 = trimmed.parse().map_err(|_| invalid())?;
            ScalarValue::Float64(Some(finite(value, value.is_infinite(), text, pg_type)?))
        }
        "numeric" => {
            decimal(trimmed).map_err(|too_large| if too_large { out_of_range(text, pg_type) } else { invalid() })?
        }
        "bytea" => ScalarValue::Binary(Some(planner::bytea(text).map_err(refused)?)),
        "date" => ScalarValue::Date32(Some(moment::date(text).map_err(refused)?)),
        "timestamp" => ScalarValue::TimestampMicrosecond(Some(moment::timestamp(text).map_err(refused)?), None),
        "timestamptz" => {
            let read = moment::timestamptz(text, zone).map_err(refused)?;
            ScalarValue::TimestampMicrosecond(Some(read), Some("UTC".into()))
        }
        "time" => ScalarValue::Time64Microsecond(Some(moment::time(text).map_err(refused)?)),
        "interval" => ScalarValue::IntervalMonthDayNano(Some(planner::interval_value(text).map_err(refused)?)),
        // oid and its kin: four bytes without a sign.
        _ if pg_type.len == 4 && pg_type.arrow().is_integer() => {
            let value: i64 = int_of(text, pg_type)?;
            u32::try_from(value).map_err(|_| out_of_range(text, pg_type))?;
            ScalarValue::Int64(Some(value))
        }
        _ => match element(pg_type) {
            Some(element) => {
                let values = split_array(text)
                    .ok_or_else(|| {
                        PgError::new(code::INVALID_TEXT_REPRESENTATION, format!("malformed array literal: \"{text}\""))
                    })?
                    .iter()
                    .map(|value| match value {
                        Some(value) => from_text(value, element, zone),
                        None => null(element),
                    })
                    .collect::<Result<Vec<_>, _>>()?;
                list(&values, element)
            }
            None => ScalarValue::Utf8(Some(text.to_string())),
        },
    })
}

/// A value from the form that Postgres' receive functions read.
fn from_binary(mut bytes: &[u8], pg_type: &PgType) -> Result<ScalarValue, PgError> {
    let wrong = || PgError::new(code::INVALID_BINARY_REPRESENTATION, "incorrect binary data format");
    let fixed = |size: usize| if bytes.len() == size { Ok(()) } else { Err(wrong()) };
    let late = || PgError::new(code::DATETIME_FIELD_OVERFLOW, format!("{} out of range", pg_type.sql_name));
    let infinite = || {
        PgError::unsupported(format!("infinite values of type {} are not supported", pg_type.sql_name))
            .hint("Use NULL, or a moment far away such as '9999-12-31'.")
    };
    let epoch_us = POSTGRES_EPOCH_DAYS * MICROS_PER_DAY;
    Ok(match pg_type.name {
        "bool" => {
            fixed(1)?;
            ScalarValue::Boolean(Some(bytes.get_u8() != 0))
        }
        "int2" => {
            fixed(2)?;
            ScalarValue::Int16(Some(bytes.get_i16()))
        }
        "int4" => {
            fixed(4)?;
            ScalarValue::Int32(Some(bytes.get_i32()))
        }
        "int8" => {
            fixed(8)?;
            ScalarValue::Int64(Some(bytes.get_i64()))
        }
        "float4" => {
            fixed(4)?;
            ScalarValue::Float32(Some(bytes.get_f32()))
        }
        "float8" => {
            fixed(8)?;
            ScalarValue::Float64(Some(bytes.get_f64()))
        }
        "numeric" => {
            let text = numeric::to_text(bytes).ok_or_else(wrong)?;
            decimal(&text).map_err(|too_large| if too_large { out_of_range(&text, pg_type) } else { wrong() })?
        }
        "bytea" => ScalarValue::Binary(Some(bytes.to_vec())),
        "date" => {
            fixed(4)?;
            let days = match bytes.get_i32() {
                i32::MIN | i32::MAX => return Err(infinite()),
                days => i64::from(days) + POSTGRES_EPOCH_DAYS,
            };
            ScalarValue::Date32(Some(i32::try_from(days).map_err(|_| late())?))
        }
        "timestamp" | "timestamptz" => {
            fixed(8)?;
            let micros = match bytes.get_i64() {
                i64::MIN | i64::MAX => return Err(infinite()),
                micros => micros.checked_add(epoch_us).ok_or_else(late)?,
            };
            let zone = (pg_type.name == "timestamptz").then(|| "UTC".into());
            ScalarValue::TimestampMicrosecond(Some(micros), zone)
        }
        "time" => {
            fixed(8)?;
            let micros = bytes.get_i64();
            if !(0..=MICROS_PER_DAY).contains(&micros) {
                return Err(late());
            }
            ScalarValue::Time64Microsecond(Some(micros))
        }
        "interval" => {
            fixed(16)?;
            let (micros, days, months) = (bytes.get_i64(), bytes.get_i32(), bytes.get_i32());
            let nanos = micros.checked_mul(1_000).ok_or_else(late)?;
            ScalarValue::IntervalMonthDayNano(Some(IntervalMonthDayNano::new(months, days, nanos)))
        }
        _ if pg_type.len == 4 && pg_type.arrow().is_integer() => {
            fixed(4)?;
            ScalarValue::Int64(Some(i64::from(bytes.get_u32())))
        }
        _ => match element(pg_type) {
            Some(element) => {
                let values = binary_array(bytes, element)?;
                list(&values, element)
            }
            None => ScalarValue::Utf8(Some(utf8(bytes)?.to_string())),
        },
    })
}

/// The element type of an array type.
fn element(pg_type: &PgType) -> Option<&'static PgType> {
    if pg_type.category == "A" { PgType::by_oid(pg_type.elem) } else { None }
}

fn list(values: &[ScalarValue], element: &PgType) -> ScalarValue {
    ScalarValue::List(ScalarValue::new_list_nullable(values, &element.arrow()))
}

/// Dimensions, a flag for NULLs, the element's OID, then each element after its length.
fn binary_array(mut bytes: &[u8], element: &PgType) -> Result<Vec<ScalarValue>, PgError> {
    let wrong = || PgError::new(code::INVALID_BINARY_REPRESENTATION, "incorrect binary data format");
    if bytes.len() < 12 {
        return Err(wrong());
    }
    let dimensions = bytes.get_i32();
    bytes.advance(8);
    match dimensions {
        0 => return Ok(Vec::new()),
        1 if bytes.len() >= 8 => {}
        1 => return Err(wrong()),
        _ => return Err(PgError::unsupported("arrays of more than one dimension are not supported as parameters")),
    }
    let count = usize::try_from(bytes.get_i32()).map_err(|_| wrong())?;
    bytes.advance(4);
    // An element takes at least its length's four bytes.
    if count > bytes.len() / 4 {
        return Err(wrong());
    }
    let mut values = Vec::with_capacity(count);
    for _ in 0..count {
        if bytes.len() < 4 {
            return Err(wrong());
        }
        match usize::try_from(bytes.get_i32()) {
            Err(_) => values.push(null(element)?),
            Ok(size) if size <= bytes.len() => {
                values.push(from_binary(&bytes[..size], element)?);
                bytes.advance(size);
            }
            Ok(_) => return Err(wrong()),
        }
    }
    if bytes.is_empty() { Ok(values) } else { Err(wrong()) }
}

fn out_of_range(text: &str, pg_type: &PgType) -> PgError {
    PgError::new(
        code::NUMERIC_VALUE_OUT_OF_RANGE,
        format!("value \"{text}\" is out of range for type {}", pg_type.sql_name),
    )
}

/// Any unambiguous beginning of true, false, yes, no, on, off, or 1 or 0.
pub fn bool_of(text: &str) -> Option<bool> {
    let text = text.to_ascii_lowercase();
    let begins = |word: &str, least: usize| text.len() >= least && word.starts_with(&text);
    if begins("true", 1) || begins("yes", 1) || begins("on", 2) || text == "1" {
        Some(true)
    } else if begins("false", 1) || begins("no", 1) || begins("off", 2) || text == "0" {
        Some(false)
    } else {
        None
    }
}

fn int_of<T: str::FromStr<Err = std::num::ParseIntError>>(text: &str, pg_type: &PgType) -> Result<T, PgError> {
    use std::num::IntErrorKind::{NegOverflow, PosOverflow};
    text.trim().parse().map_err(|error: std::num::ParseIntError| match error.kind() {
        PosOverflow | NegOverflow => out_of_range(text, pg_type),
        _ => code::invalid_text(pg_type.sql_name, text),
    })
}

/// A float whose text did not say infinity must not have become infinite.
fn finite<T>(value: T, infinite: bool, text: &str, pg_type: &PgType) -> Result<T, PgError> {
    if infinite && !text.to_ascii_lowercase().contains("inf") {
        return Err(PgError::new(
            code::NUMERIC_VALUE_OUT_OF_RANGE,
            format!("\"{text}\" is out of range for type {}", pg_type.sql_name),
        ));
    }
    Ok(value)
}

/// A decimal number in the smallest type that holds it. The error tells whether it is one, but too large.
fn decimal(text: &str) -> Result<ScalarValue, bool> {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().map_err(|_| false)?),
        None => (text, 0),
    };
    let (sign, unsigned) = match mantissa.as_bytes().first() {
        Some(b'-') => ("-", &mantissa[1..]),
        Some(b'+') => ("", &mantissa[1..]),
        _ => ("", mantissa),
    };
    let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
    let digits = [whole, fraction].concat();
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(false);
    }
    let mut scale = i64::try_from(fraction.len()).map_err(|_| true)? - i64::from(exponent);
    let mut significant = digits.trim_start_matches('0').to_string();
    if scale < 0 && !significant.is_empty() {
        if -scale > 38 {
            return Err(true);
        }
        significant.push_str(&"0".repeat(scale.unsigned_abs() as usize));
    }
    scale = scale.max(0);
    // Zeros at the end of a fraction that would not fit say nothing.
    while scale > 38 && significant.ends_with('0') {
        significant.pop();
        scale -= 1;
    }
    if significant.len() > 38 || scale > 38 {
        return Err(true);
    }
    let value = if significant.is_empty() { 0 } else { significant.parse::<i128>().map_err(|_| true)? };
    let value = if sign == "-" { -value } else { value };
    let precision = significant.len().max(scale as usize).max(1);
    Ok(ScalarValue::Decimal128(Some(value), precision as u8, scale as i8))
}

/// The elements of `{a,"b c",NULL}`. `None` if the text is no array of one dimension.
fn split_array(text: &str) -> Option<Vec<Option<String>>> {
    let inner = text.trim().strip_prefix('{')?.strip_suffix('}')?;
    let mut elements = Vec::new();
    if inner.trim().is_empty() {
        return Some(elements);
    }
    let mut chars = inner.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        let mut element = String::new();
        if chars.next_if_eq(&'"').is_some() {
            loop {
                match chars.next()? {
                    '"' => break,
                    '\\' => element.push(chars.next()?),
                    c => element.push(c),
                }
            }
            while chars.next_if(|c| c.is_whitespace()).is_some() {}
            elements.push(Some(element));
        } else {
            while let Some(c) = chars.next_if(|c| *c != ',') {
                match c {
                    '\\' => element.push(chars.next()?),
                    '{' | '}' | '"' => return None,
                    c => element.push(c),
                }
            }
            let trimmed = element.trim_end();
            if trimmed.is_empty() {
                return None;
            }
            elements.push((!trimmed.eq_ignore_ascii_case("null")).then(|| trimmed.to_string()));
        }
        match chars.next() {
            None => return Some(elements),
            Some(',') => {}
            Some(_) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(name: &str) -> &'static PgType {
        PgType::by_name(name).expect("a type of types.txt")
    }

    /// What a text is read as, or the error.
    fn check(type_name: &str, text: &str, expected: &str) {
        let got = match decode(Some(text.as_bytes()), Format::Text, typed(type_name), Tz::Europe__Berlin) {
            Ok(value) => format!("{value:?}"),
            Err(error) => format!("{}: {}", error.code, error.message),
        };
        assert_eq!(got, expected, "{type_name} {text:?}");
    }

    #[test]
    fn texts() {
        check("bool", " yes ", "Boolean(true)");
        check("bool", "o", "22P02: invalid input syntax for type boolean: \"o\"");
        check("int2", "-5", "Int16(-5)");
        check("int2", "40000", "22003: value \"40000\" is out of range for type smallint");
        check("int4", "4x", "22P02: invalid input syntax for type integer: \"4x\"");
        check("float8", "-Infinity", "Float64(-inf)");
        check("float8", "1e999", "22003: \"1e999\" is out of range for type double precision");
        check("numeric", "-12.50", "Decimal128(-12.50,4,2)");
        check("numeric", "1e3", "Decimal128(1000,4,0)");
        check("numeric", "0.001", "Decimal128(0.001,3,3)");
        check("numeric", "1e40", "22003: value \"1e40\" is out of range for type numeric");
        check("numeric", ".", "22P02: invalid input syntax for type numeric: \".\"");
        check("bytea", "\\x00fF", "Binary(\"0,255\")");
        check("bytea", "a\\\\\\001", "Binary(\"97,92,1\")");
        check("date", "2026-02-30", "22008: date/time field value out of range: \"2026-02-30\"");
        check("timestamp", "infinity", "0A000: infinite values of type timestamp without time zone are not supported");
        check(
            "interval",
            "1 day 02:03:04",
            "IntervalMonthDayNano(\"IntervalMonthDayNano { months: 0, days: 1, nanoseconds: 7384000000000 }\")",
        );
        check("bytea", "\\x0", "22P02: invalid hexadecimal data: odd number of digits");
        check("timestamp", "1970-01-01 00:00:01+05", "TimestampMicrosecond(1000000, None)");
        check("timestamptz", "1970-01-01 00:00:01+01", "TimestampMicrosecond(-3599000000, Some(\"UTC\"))");
        check("timestamptz", "2026-07-01 02:00:00", "TimestampMicrosecond(1782864000000000, Some(\"UTC\"))");
        check("_int4", "{1, NULL,3}", "List([1, , 3])");
        check("_text", "{\"a,\\\"b\",c}", "List([a,\"b, c])");
        check("_text", "{a", "22P02: malformed array literal: \"{a\"");
        check("oid", "4294967296", "22003: value \"4294967296\" is out of range for type oid");
    }

    #[test]
    fn binaries_of_a_wrong_size_are_refused() {
        for pg_type in PgType::all() {
            let fixed = pg_type.len > 0 && pg_type.name != "name" && pg_type.name != "char";
            for size in 0..40usize {
                let bytes = vec![1u8; size];
                let read = decode(Some(&bytes), Format::Binary, pg_type, Tz::UTC);
                if fixed && pg_type.arrow() != arrow::datatypes::DataType::Utf8 {
                    assert!(read.is_err() || size == pg_type.len as usize, "{} {size}", pg_type.name);
                }
            }
        }
    }
}
