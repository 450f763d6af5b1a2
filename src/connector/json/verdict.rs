//! Why a record is dead, in words.

use arrow::datatypes::DataType;

use super::column::Misfit;
use super::scan::{Scanner, Syntax};

const EXCERPT_BYTES: usize = 60;

pub(super) enum Fault {
    Syntax(Syntax),
    Reason(String),
}

impl From<Syntax> for Fault {
    fn from(syntax: Syntax) -> Self {
        Fault::Syntax(syntax)
    }
}

/// The value at the beginning of `found` does not fit the column.
#[cold]
pub(super) fn misfit(misfit: Misfit, name: &str, data_type: &DataType, found: &[u8]) -> Fault {
    let expected = sql_name(data_type);
    let (what, shown) = describe(found);
    Fault::Reason(match misfit {
        Misfit::Kind => format!("column {name}: expected {expected}, found {what}{shown}"),
        Misfit::OutOfRange => format!("column {name}:{shown} is out of range for {expected}"),
        Misfit::Fraction => format!("column {name}:{shown} has more fractional digits than {expected} holds"),
        Misfit::Because(why) => format!("column {name}: expected {expected}, found {what}{shown}: {why}"),
    })
}

#[cold]
pub(super) fn not_an_object(scanner: &Scanner<'_>) -> Fault {
    if scanner.peek().is_none() {
        return Fault::Reason("empty value".into());
    }
    let mut ahead = scanner.clone();
    let is_value = ahead.peek() != Some(b'{') && ahead.skip_value(0).is_ok();
    if !is_value {
        return scanner.error("expected an object").into();
    }
    let (what, shown) = describe(scanner.from(scanner.position()));
    Fault::Reason(format!("expected an object, found {what}{shown}"))
}

#[cold]
pub(super) fn reason(fault: Fault, value: &[u8]) -> String {
    match fault {
        Fault::Reason(reason) => reason,
        Fault::Syntax(Syntax { at, what }) => {
            let rest = &value[at.min(value.len())..];
            let near = if rest.is_empty() { String::new() } else { format!(" near {}", excerpt(rest)) };
            format!("invalid JSON at byte {at}: {what}{near}")
        }
    }
}

/// What kind of value stands at the beginning of `found`, and its text, shortened, after a space.
fn describe(found: &[u8]) -> (&'static str, String) {
    let token = |end: usize| format!(" {}", excerpt(&found[..end.min(found.len())]));
    let mut scanner = Scanner::new(found);
    match found.first() {
        Some(b'"') => {
            scanner.bump();
            let end = if scanner.text().is_ok() { scanner.position() } else { found.len() };
            ("string", token(end))
        }
        Some(b't' | b'f') => ("boolean", token(if found[0] == b't' { 4 } else { 5 })),
        Some(b'n') => ("null", String::new()),
        Some(b'{') => ("an object", String::new()),
        Some(b'[') => ("an array", String::new()),
        _ => {
            let end = if scanner.number().is_ok() { scanner.position() } else { found.len() };
            ("number", token(end))
        }
    }
}

/// At most 60 bytes of it, cut between characters.
fn excerpt(bytes: &[u8]) -> String {
    if bytes.len() <= EXCERPT_BYTES {
        return String::from_utf8_lossy(bytes).into_owned();
    }
    let mut end = EXCERPT_BYTES;
    while end > 0 && bytes[end] & 0xc0 == 0x80 {
        end -= 1;
    }
    format!("{}...", String::from_utf8_lossy(&bytes[..end]))
}

fn sql_name(data_type: &DataType) -> String {
    match data_type {
        DataType::Boolean => "BOOLEAN".into(),
        DataType::Int16 => "SMALLINT".into(),
        DataType::Int32 => "INT".into(),
        DataType::Int64 => "BIGINT".into(),
        DataType::Float32 => "REAL".into(),
        DataType::Float64 => "DOUBLE PRECISION".into(),
        DataType::Decimal128(precision, scale) => format!("NUMERIC({precision},{scale})"),
        DataType::Utf8 => "VARCHAR".into(),
        DataType::Binary => "BYTEA".into(),
        DataType::Date32 => "DATE".into(),
        DataType::Time64(_) => "TIME".into(),
        DataType::Timestamp(_, None) => "TIMESTAMP".into(),
        DataType::Timestamp(_, Some(_)) => "TIMESTAMPTZ".into(),
        other => other.to_string(),
    }
}
