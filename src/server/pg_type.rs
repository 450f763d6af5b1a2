//! Arrow types under their Postgres names.

use arrow::datatypes::{DataType, Field, Schema};

use crate::catalog::{PgType, pg_type_of, typmod_of};

/// One column of a result as `RowDescription` tells it.
#[derive(Debug, Clone, PartialEq)]
pub struct PgColumn {
    pub name: String,
    pub pg_type: &'static PgType,
    /// `atttypmod`: precision and scale of NUMERIC, -1 for none.
    pub modifier: i32,
    /// The Arrow type of the column in the result's batches.
    pub data_type: DataType,
}

impl PgColumn {
    pub fn of(field: &Field) -> PgColumn {
        PgColumn {
            name: field.name().clone(),
            pg_type: pg_type_of(field),
            modifier: typmod_of(field),
            data_type: field.data_type().clone(),
        }
    }

    pub fn all(schema: &Schema) -> Vec<PgColumn> {
        schema.fields().iter().map(|field| PgColumn::of(field)).collect()
    }
}

/// A message with Arrow's type names replaced by SQL's.
pub fn in_postgres_words(message: &str) -> String {
    const SIMPLE: [(&str, &str); 16] = [
        ("Boolean", "boolean"),
        ("Int8", "smallint"),
        ("Int16", "smallint"),
        ("Int32", "integer"),
        ("Int64", "bigint"),
        ("UInt64", "bigint"),
        ("Float32", "real"),
        ("Float64", "double precision"),
        ("Utf8", "text"),
        ("LargeUtf8", "text"),
        ("Utf8View", "text"),
        ("Binary", "bytea"),
        ("Date32", "date"),
        ("Decimal128", "numeric"),
        ("Decimal256", "numeric"),
        ("Null", "unknown"),
    ];
    let mut words = String::with_capacity(message.len());
    let mut rest = message;
    while let Some(start) = rest.find(|c: char| c.is_ascii_uppercase()) {
        // Only whole words count.
        let joined = rest[..start].chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_');
        words.push_str(&rest[..start]);
        rest = &rest[start..];
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len());
        let word = &rest[..end];
        let (plain, zoned) = ("timestamp without time zone", "timestamp with time zone");
        let parameters = rest[end..].strip_prefix('(').and_then(|inner| inner.find(')')).map(|close| end + close + 2);
        match (word, parameters) {
            _ if joined => {
                words.push_str(word);
                rest = &rest[end..];
            }
            ("Timestamp", Some(close)) => {
                words.push_str(if rest[..close].contains("None") || !rest[..close].contains(',') {
                    plain
                } else {
                    zoned
                });
                // `Some("UTC")` has a parenthesis of its own.
                let inner = if rest[..close].contains("Some(") { 1 } else { 0 };
                rest = rest.get(close + inner..).unwrap_or_default();
            }
            ("Time64" | "Time32", Some(close)) => {
                words.push_str("time without time zone");
                rest = &rest[close..];
            }
            ("Interval", Some(close)) => {
                words.push_str("interval");
                rest = &rest[close..];
            }
            _ => {
                let name = SIMPLE.iter().find(|(arrow, _)| *arrow == word).map_or(word, |(_, name)| name);
                words.push_str(name);
                rest = &rest[end..];
            }
        }
    }
    words.push_str(rest);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_types_as_sql_does() {
        for (arrow, sql) in [
            ("Utf8 = Int64", "text = bigint"),
            ("Timestamp(Microsecond, Some(\"UTC\")) + Boolean", "timestamp with time zone + boolean"),
            ("Timestamp(µs) - Interval(MonthDayNano)", "timestamp without time zone - interval"),
            ("MyInt64 Int64x Decimal128(38, 10)", "MyInt64 Int64x numeric(38, 10)"),
        ] {
            assert_eq!(in_postgres_words(arrow), sql);
        }
    }
}
