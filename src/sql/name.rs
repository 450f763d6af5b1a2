//! How names are folded and quoted.

use std::borrow::Cow;
use std::fmt;

use sqlparser::ast::{Ident, ObjectName};

use super::{Name, SqlError};

/// The words that Postgres reserves: as names they need quotes. OFFSET is left out, because Kafka made it a column's name.
#[rustfmt::skip]
const RESERVED: &[&str] = &[
    "all", "analyse", "analyze", "and", "any", "array", "as", "asc", "asymmetric", "both", "case", "cast", "check",
    "collate", "column", "constraint", "create", "current_catalog", "current_date", "current_role", "current_time",
    "current_timestamp", "current_user", "default", "deferrable", "desc", "distinct", "do", "else", "end", "except",
    "false", "fetch", "for", "foreign", "from", "grant", "group", "having", "in", "initially", "intersect", "into",
    "lateral", "leading", "limit", "localtime", "localtimestamp", "not", "null", "on", "only", "or", "order", "placing",
    "primary", "references", "returning", "select", "session_user", "some", "symmetric", "table", "then", "to",
    "trailing", "true", "union", "unique", "user", "using", "variadic", "when", "where", "window", "with",
];

/// An identifier as Postgres folds it: ASCII letters to lower case unless quoted.
pub fn fold(ident: &Ident) -> String {
    match ident.quote_style {
        None => ident.value.to_ascii_lowercase(),
        Some(_) => ident.value.clone(),
    }
}

/// An identifier as it must stand in SQL to mean this name.
pub fn quote(name: &str) -> Cow<'_, str> {
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'$')
        && !is_reserved(name)
        && name != "offset";
    if plain { Cow::Borrowed(name) } else { Cow::Owned(format!("\"{}\"", name.replace('"', "\"\""))) }
}

pub(super) fn is_reserved(lower_case: &str) -> bool {
    RESERVED.binary_search(&lower_case).is_ok()
}

impl TryFrom<&ObjectName> for Name {
    type Error = SqlError;

    /// From sqlparser's name, such as the table of an INSERT. An error for more than three parts.
    fn try_from(name: &ObjectName) -> Result<Self, SqlError> {
        let parts: Option<Vec<String>> = name.0.iter().map(|part| part.as_ident().map(fold)).collect();
        match parts {
            Some(parts) if !parts.is_empty() && parts.len() <= 3 => Ok(Name(parts)),
            _ => Err(SqlError::Syntax {
                message: format!("improper qualified name (too many dotted names): {name}"),
                hint: None,
                position: None,
            }),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, part) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(".")?;
            }
            f.write_str(&quote(part))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoting() {
        assert!(RESERVED.is_sorted());
        for (name, text) in
            [("ad_1m", "ad_1m"), ("Ads", "\"Ads\""), ("select", "\"select\""), ("a\"b", "\"a\"\"b\""), ("", "\"\"")]
        {
            assert_eq!(quote(name), text);
        }
        assert_eq!(Name(vec!["public".into(), "My View".into()]).to_string(), "public.\"My View\"");
    }
}
