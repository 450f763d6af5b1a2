//! Names and values as text, and the reading of it.

use super::{Answer, Eval, Function, Returns, function};
use crate::catalog::system::value::Value;
use crate::catalog::types::{PgType, format_type, pg_type_of};
use crate::catalog::{CatalogError, SystemScope};
use datafusion::logical_expr::Volatility;

pub(super) const FUNCTIONS: &[Function] = &[
    function("quote_ident", 1..=1, "text", |_, a| Ok(a[0].as_text().map(quote_identifier).into())).immutable(),
    function("quote_literal", 1..=1, "text", |_, a| Ok(a[0].to_text().map(|t| quote_text(&t)).into())).immutable(),
    function("quote_nullable", 1..=1, "text", |_, a| {
        Ok(a[0].to_text().map_or("NULL".to_string(), |t| quote_text(&t)).into())
    })
    .immutable()
    .lenient(),
    function("parse_ident", 1..=2, "_text", |_, a| match a[0].as_text() {
        Some(text) => Ok(parse_name(text)?.into()),
        None => Ok(Value::Null),
    })
    .immutable(),
    function("format", 1..=10, "text", |_, a| match a[0].as_text() {
        Some(pattern) => Ok(format_values(pattern, &a[1..])?.into()),
        None => Ok(Value::Null),
    })
    .immutable()
    .lenient(),
    function("format_type", 2..=2, "text", |_, a| {
        let typmod = a[1].as_int().and_then(|typmod| typmod.try_into().ok());
        Ok(a[0].as_oid().map(|oid| format_type(oid, typmod)).into())
    })
    .immutable()
    .lenient(),
    Function {
        name: "pg_typeof",
        arity: 1..=1,
        returns: Returns::Type("text"),
        strict: false,
        volatility: Volatility::Immutable,
        eval: Eval::Fields(|fields| fields.first().map(|field| pg_type_of(field).sql_name).into()),
    },
    function("array_upper", 2..=2, "int4", |_, a| Ok(bounds(a).map(|(_, upper)| upper).into())).immutable(),
    function("array_lower", 2..=2, "int4", |_, a| Ok(bounds(a).map(|(lower, _)| lower).into())).immutable(),
    function("pg_size_pretty", 1..=1, "text", |_, a| Ok(a[0].as_int().map(size_pretty).into())).immutable(),
    function("pg_encoding_to_char", 1..=1, "name", |_, a| {
        Ok(match a[0].as_int() {
            Some(6) => "UTF8",
            Some(0) => "SQL_ASCII",
            _ => "",
        }
        .into())
    })
    .immutable(),
    function("pg_char_to_encoding", 1..=1, "int4", |_, a| {
        Ok(match a[0].as_text().map(str::to_ascii_lowercase).as_deref() {
            Some("utf8" | "utf-8" | "unicode") => 6,
            Some("sql_ascii") => 0,
            _ => -1,
        }
        .into())
    })
    .immutable(),
    function("oidin", 1..=1, "oid", |_, a| match a[0].as_int() {
        Some(oid) if u32::try_from(oid).is_ok() => Ok(oid.into()),
        Some(_) => Err(CatalogError::BadArgument("OID out of range".into())),
        None => Err(bad_input("oid", &a[0])),
    })
    .immutable(),
    function("namein", 1..=1, "name", |_, a| {
        Ok(a[0].to_text().map(|text| text.chars().take(63).collect::<String>()).into())
    })
    .immutable(),
    function("charin", 1..=1, "char", |_, a| {
        Ok(a[0].to_text().map(|text| text.chars().take(1).collect::<String>()).into())
    })
    .immutable(),
    function("regtypein", 1..=1, "oid", |_, a| match (&a[0], a[0].as_int()) {
        (_, Some(oid)) => Ok(oid.into()),
        (Value::Text(text), _) => match PgType::by_sql_name(text) {
            Some(pg_type) => Ok(pg_type.oid.into()),
            None => Err(CatalogError::NoType(text.clone())),
        },
        (other, _) => Err(bad_input("regtype", other)),
    })
    .immutable(),
    function("regtypeout", 1..=1, "text", |_, a| {
        Ok(match PgType::by_oid(a[0].as_oid().unwrap_or(0)) {
            Some(pg_type) => pg_type.sql_name.into(),
            None => number_or_dash(&a[0]),
        })
    })
    .immutable(),
    function("to_regtype", 1..=1, "regtype", |_, a| {
        Ok(a[0].as_text().and_then(PgType::by_sql_name).map(|pg_type| pg_type.oid).into())
    })
    .immutable(),
    function("pg_options_to_table", 1..=1, "text", options_to_table)
        .set(&[("option_name", "text"), ("option_value", "text")])
        .immutable(),
    function("_pg_expandarray", 1..=1, "text", expand_array).set(&[("x", "int8"), ("n", "int4")]).immutable(),
];

/// Postgres's `format`: `%s`, `%I`, `%L`, `%%`, with `n$` to name an argument; widths are refused.
fn format_values(pattern: &str, args: &[Value]) -> Result<String, CatalogError> {
    let bad = |message: &str| CatalogError::BadArgument(message.to_string());
    let mut shown = String::new();
    let mut next = 0;
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            shown.push(c);
            continue;
        }
        let mut digits = String::new();
        while let Some(digit) = chars.next_if(char::is_ascii_digit) {
            digits.push(digit);
        }
        if !digits.is_empty() {
            if chars.next() != Some('$') {
                return Err(bad("a width in the pattern of format() is not supported; use lpad() or rpad()"));
            }
            let at: usize = digits.parse().map_err(|_| bad("argument number is out of range"))?;
            next = at
                .checked_sub(1)
                .ok_or_else(|| bad("format specifies argument 0, but arguments are numbered from 1"))?;
        }
        let kind = chars.next().ok_or_else(|| bad("unterminated format() type specifier"))?;
        if kind == '%' {
            shown.push('%');
            continue;
        }
        let value = args.get(next).ok_or_else(|| bad("too few arguments for format()"))?.to_text();
        next += 1;
        match (kind, value) {
            ('s', value) => shown.push_str(&value.unwrap_or_default()),
            ('I', Some(name)) => shown.push_str(&quote_identifier(&name)),
            ('I', None) => return Err(bad("null values cannot be formatted as an SQL identifier")),
            ('L', value) => shown.push_str(&value.map_or("NULL".into(), |value| quote_text(&value))),
            (other, _) => {
                return Err(bad(&format!("unrecognized format() type specifier \"{other}\"")));
            }
        }
    }
    Ok(shown)
}

/// What an OID shows that names nothing: `-` for 0, else the number.
pub(super) fn number_or_dash(oid: &Value) -> Value {
    match oid.as_int() {
        Some(0) => "-".into(),
        Some(oid) => oid.to_string().into(),
        None => Value::Null,
    }
}

pub(super) fn bad_input(pg_type: &str, value: &Value) -> CatalogError {
    let text = value.to_text().unwrap_or_default();
    CatalogError::BadArgument(format!("invalid input syntax for type {pg_type}: \"{text}\""))
}

/// (1, length) of a list's first dimension; None if it is empty or another dimension is asked for.
fn bounds(args: &[Value]) -> Option<(usize, usize)> {
    match &args[0] {
        Value::List(items) if !items.is_empty() && args[1].as_int() == Some(1) => Some((1, items.len())),
        _ => None,
    }
}

/// `{a=b}` → rows (a, b).
fn options_to_table(_: &SystemScope, args: &[Value]) -> Answer {
    let Value::List(options) = &args[0] else { return Ok(Value::Null) };
    let rows = options.iter().filter_map(Value::as_text).map(|option| match option.split_once('=') {
        Some((name, value)) => Value::List(vec![name.into(), value.into()]),
        None => Value::List(vec![option.into(), Value::Null]),
    });
    Ok(Value::List(rows.collect()))
}

/// `[a, b]` → rows (a, 1), (b, 2).
fn expand_array(_: &SystemScope, args: &[Value]) -> Answer {
    let Value::List(items) = &args[0] else { return Ok(Value::Null) };
    let rows = items.iter().enumerate().map(|(at, item)| Value::List(vec![item.clone(), (at + 1).into()]));
    Ok(Value::List(rows.collect()))
}

fn size_pretty(bytes: i64) -> String {
    const UNITS: [&str; 6] = ["bytes", "kB", "MB", "GB", "TB", "PB"];
    let mut size = bytes as f64;
    let mut unit = 0;
    while size.abs() >= 10240.0 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    format!("{} {}", size.round(), UNITS[unit])
}

fn quote_text(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') { format!(" E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

/// The words that stand for themselves only between quotes.
const RESERVED: &str = " all analyse analyze and any array as asc asymmetric authorization between bigint binary bit boolean both \
case cast char character check coalesce collate collation column concurrently constraint create cross current_catalog \
current_date current_role current_schema current_time current_timestamp current_user dec decimal default deferrable desc \
distinct do else end except exists extract false fetch float for foreign freeze from full grant greatest group grouping \
having ilike in initially inner inout int integer intersect interval into is isnull join lateral leading least left like \
limit localtime localtimestamp national natural nchar none not notnull null nullif numeric offset on only or order out \
outer overlaps overlay placing position precision primary real references returning right row select session_user setof \
similar smallint some substring symmetric table tablesample then time timestamp to trailing treat trim true union unique \
user using values varchar variadic verbose when where window with ";

/// An identifier as SQL must write it.
pub fn quote_identifier(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        && !RESERVED.contains(&format!(" {name} "));
    if plain { name.to_string() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

/// The parts of a dotted name, folded where they are not quoted.
pub fn parse_name(text: &str) -> Result<Vec<String>, CatalogError> {
    let bad = || CatalogError::BadArgument(format!("string is not a valid identifier: \"{text}\""));
    let mut parts = Vec::new();
    let mut rest = text.trim();
    loop {
        let part;
        if let Some(quoted) = rest.strip_prefix('"') {
            let mut name = String::new();
            let mut chars = quoted.char_indices().peekable();
            let end = loop {
                match chars.next() {
                    Some((_, '"')) if chars.next_if(|(_, c)| *c == '"').is_some() => name.push('"'),
                    Some((at, '"')) => break at + 1,
                    Some((_, c)) => name.push(c),
                    None => return Err(bad()),
                }
            };
            (part, rest) = (name, &quoted[end..]);
        } else {
            let end = rest.find(['.', '"']).unwrap_or(rest.len());
            (part, rest) = (rest[..end].trim().to_lowercase(), &rest[end..]);
        }
        if part.is_empty() {
            return Err(bad());
        }
        parts.push(part);
        rest = rest.trim_start();
        match rest.strip_prefix('.') {
            Some(more) => rest = more.trim_start(),
            None if rest.is_empty() => return Ok(parts),
            None => return Err(bad()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        for (text, parts) in [
            ("A.b", Ok(vec!["a", "b"])),
            ("\"A.\"\"b\" . c", Ok(vec!["A.\"b", "c"])),
            ("a.", Err(())),
            ("\"a", Err(())),
            ("\"a\"b", Err(())),
        ] {
            let parts = parts.map(|parts| parts.into_iter().map(str::to_string).collect::<Vec<_>>());
            assert_eq!(parse_name(text).map_err(|_| ()), parts, "{text}");
        }
        assert_eq!(quote_identifier("order"), "\"order\"");
        assert_eq!(quote_identifier("Ä"), "\"Ä\"");
        assert_eq!(quote_identifier("ad_1m"), "ad_1m");
        assert_eq!(quote_text("it's"), "'it''s'");
        let args = ["a", "b c"].map(Value::from);
        assert_eq!(format_values("%s.%I %2$L 1%%", &args), Ok("a.\"b c\" 'b c' 1%".into()));
        assert_eq!(size_pretty(7_000_000), "6836 kB");
    }
}
