//! COPY in text and CSV: how rows are written as lines, and COPY TO STDOUT. COPY FROM STDIN is [`super::copy_in`].

use bytes::{BufMut, Bytes, BytesMut};
use sqlparser::ast::{self, CopyLegacyCsvOption, CopyLegacyOption, CopyOption, CopySource};

use super::encode::{Format, RowEncoder, TextStyle};
use super::error::PgError;
use super::prepared::Prepared;
use super::rows::RowStream;
use super::session::{Response, Session};
use super::sqlstate as code;
use crate::sql::{self, Statement, fold, quote};

/// Rows that are written at once.
const BATCH_ROWS: usize = 8_192;

/// How lines are written.
#[derive(Debug, Clone, PartialEq)]
pub struct CopyFormat {
    pub(super) csv: bool,
    pub(super) delimiter: u8,
    pub(super) null: String,
    pub(super) header: bool,
    pub(super) quote: u8,
    pub(super) escape: u8,
}

/// Options as they are given, before those not given have their values.
#[derive(Clone, Default)]
pub(super) struct Given {
    pub(super) csv: bool,
    pub(super) delimiter: Option<char>,
    pub(super) null: Option<String>,
    pub(super) header: bool,
    pub(super) quote: Option<char>,
    pub(super) escape: Option<char>,
}

impl CopyFormat {
    fn new(options: &[CopyOption], legacy: &[CopyLegacyOption]) -> Result<CopyFormat, PgError> {
        let mut given = Given::default();
        let unsupported = |what: &dyn std::fmt::Display| {
            PgError::unsupported(format!("COPY with {what} is not supported"))
                .hint("The options are FORMAT text or csv, DELIMITER, NULL, HEADER, QUOTE, ESCAPE and ENCODING 'UTF8'.")
        };
        for option in options {
            match option {
                CopyOption::Format(name) => match fold(name).as_str() {
                    "text" => given.csv = false,
                    "csv" => given.csv = true,
                    _ => return Err(unsupported(option)),
                },
                CopyOption::Delimiter(c) => given.delimiter = Some(*c),
                CopyOption::Null(null) => given.null = Some(null.clone()),
                CopyOption::Header(header) => given.header = *header,
                CopyOption::Quote(c) => given.quote = Some(*c),
                CopyOption::Escape(c) => given.escape = Some(*c),
                CopyOption::Encoding(name)
                    if name.eq_ignore_ascii_case("utf8") || name.eq_ignore_ascii_case("utf-8") => {}
                CopyOption::Freeze(false) => {}
                other => return Err(unsupported(other)),
            }
        }
        for option in legacy {
            match option {
                CopyLegacyOption::Delimiter(c) => given.delimiter = Some(*c),
                CopyLegacyOption::Null(null) => given.null = Some(null.clone()),
                CopyLegacyOption::Header => given.header = true,
                CopyLegacyOption::Csv(options) => {
                    given.csv = true;
                    for option in options {
                        match option {
                            CopyLegacyCsvOption::Header => given.header = true,
                            CopyLegacyCsvOption::Quote(c) => given.quote = Some(*c),
                            CopyLegacyCsvOption::Escape(c) => given.escape = Some(*c),
                            other => return Err(unsupported(other)),
                        }
                    }
                }
                other => return Err(unsupported(other)),
            }
        }
        given.checked()
    }
}

impl Given {
    pub(super) fn checked(self) -> Result<CopyFormat, PgError> {
        let invalid = |message: &str| PgError::new(code::INVALID_PARAMETER_VALUE, message);
        let byte = |c: Option<char>, default: u8, what: &str| match c {
            None => Ok(default),
            Some(c) if c.is_ascii() && !matches!(c, '\n' | '\r' | '\0') => Ok(c as u8),
            Some(_) => Err(invalid(&format!("COPY {what} must be a single one-byte character"))),
        };
        if !self.csv && (self.quote.is_some() || self.escape.is_some()) {
            return Err(PgError::unsupported("COPY quote and escape are available only in CSV mode"));
        }
        let delimiter = byte(self.delimiter, if self.csv { b',' } else { b'\t' }, "delimiter")?;
        let quote = byte(self.quote, b'"', "quote")?;
        let escape = byte(self.escape, quote, "escape")?;
        if !self.csv && (delimiter.is_ascii_lowercase() || delimiter.is_ascii_digit() || b"\\.".contains(&delimiter)) {
            return Err(invalid(&format!("COPY delimiter cannot be \"{}\"", char::from(delimiter))));
        }
        if self.csv && delimiter == quote {
            return Err(invalid("COPY delimiter and quote must be different"));
        }
        let null = self.null.unwrap_or_else(|| if self.csv { String::new() } else { "\\N".into() });
        if null.contains(['\n', '\r']) || null.as_bytes().contains(&delimiter) {
            return Err(invalid("COPY null representation cannot hold newlines or the delimiter"));
        }
        Ok(CopyFormat { csv: self.csv, delimiter, null, header: self.header, quote, escape })
    }
}

/// Rows on their way out.
pub struct CopyOut {
    format: CopyFormat,
    rows: RowStream,
    encoder: RowEncoder,
    header: bool,
    sent: u64,
}

impl CopyOut {
    fn new(format: CopyFormat, rows: RowStream, style: TextStyle) -> Result<CopyOut, PgError> {
        let encoder = RowEncoder::new(&rows.columns, &vec![Format::Text; rows.columns.len()], style)?;
        Ok(CopyOut { header: format.header, format, rows, encoder, sent: 0 })
    }

    pub fn num_columns(&self) -> usize {
        self.rows.columns.len()
    }

    pub fn tag(&self) -> String {
        format!("COPY {}", self.sent)
    }

    /// The next lines; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Vec<Bytes>>, PgError> {
        let mut lines = Vec::new();
        if std::mem::take(&mut self.header) {
            let names: Vec<String> = self.rows.columns.iter().map(|column| column.name.clone()).collect();
            lines.push(self.line(names.len(), |i, out| {
                out.put_slice(names[i].as_bytes());
                Ok(true)
            })?);
        }
        let Some(batch) = self.rows.next(BATCH_ROWS).await? else {
            return Ok((!lines.is_empty()).then_some(lines));
        };
        let batch = self.encoder.batch(&batch)?;
        for row in 0..batch.num_rows() {
            lines.push(self.line(self.num_columns(), |i, out| batch.put_text(row, i, out))?);
        }
        self.sent += batch.num_rows() as u64;
        Ok(Some(lines))
    }

    fn line(
        &self,
        columns: usize,
        put: impl Fn(usize, &mut BytesMut) -> Result<bool, PgError>,
    ) -> Result<Bytes, PgError> {
        let (mut line, mut field) = (BytesMut::new(), BytesMut::new());
        for i in 0..columns {
            if i > 0 {
                line.put_u8(self.format.delimiter);
            }
            field.clear();
            if !put(i, &mut field)? {
                line.put_slice(self.format.null.as_bytes());
            } else if self.format.csv {
                put_csv(&mut line, &field, &self.format, columns);
            } else {
                put_escaped(&mut line, &field, self.format.delimiter);
            }
        }
        line.put_u8(b'\n');
        Ok(line.freeze())
    }
}

fn put_csv(out: &mut BytesMut, field: &[u8], format: &CopyFormat, columns: usize) {
    let special = |b: &u8| *b == format.delimiter || *b == format.quote || matches!(b, b'\n' | b'\r');
    let ends_data = columns == 1 && field == b"\\.";
    if !field.iter().any(special) && field != format.null.as_bytes() && !ends_data {
        return out.put_slice(field);
    }
    out.put_u8(format.quote);
    for byte in field {
        if *byte == format.quote || *byte == format.escape {
            out.put_u8(format.escape);
        }
        out.put_u8(*byte);
    }
    out.put_u8(format.quote);
}

fn put_escaped(out: &mut BytesMut, field: &[u8], delimiter: u8) {
    for &byte in field {
        let escaped = match byte {
            0x08 => b'b',
            0x0c => b'f',
            b'\n' => b'n',
            b'\r' => b'r',
            b'\t' => b't',
            0x0b => b'v',
            b'\\' => b'\\',
            byte if byte == delimiter => delimiter,
            plain => {
                out.put_u8(plain);
                continue;
            }
        };
        out.put_u8(b'\\');
        out.put_u8(escaped);
    }
}

impl Session {
    pub(super) async fn copy(&mut self, copy: &ast::Statement, prepared: &Prepared) -> Result<Response, PgError> {
        let ast::Statement::Copy { source, to, options, legacy_options, .. } = copy else {
            return Err(PgError::new(code::SYNTAX_ERROR, "COPY was expected"));
        };
        let format = CopyFormat::new(options, legacy_options)?;
        if !to {
            let CopySource::Table { table_name, columns } = source else {
                return Err(PgError::new(code::SYNTAX_ERROR, "COPY FROM needs a table"));
            };
            self.writable("COPY FROM")?;
            return self.copy_in(table_name, columns, format).map(|copy| Response::CopyIn(Box::new(copy)));
        }
        let query = match source {
            CopySource::Query(query) => query.clone(),
            CopySource::Table { table_name, columns } => {
                let list: Vec<String> = columns.iter().map(|column| quote(&fold(column)).into_owned()).collect();
                let list = if list.is_empty() { "*".to_string() } else { list.join(", ") };
                let parsed = sql::parse(&format!("SELECT {list} FROM {table_name}"))?;
                match parsed.into_iter().next().map(|parsed| parsed.statement) {
                    Some(Statement::Query(query)) => query,
                    _ => return Err(PgError::new(code::SYNTAX_ERROR, "COPY needs a table")),
                }
            }
        };
        let rows = self.query(&query, prepared, &[]).await?;
        let style = self.settings().style();
        Ok(Response::CopyOut(Box::new(CopyOut::new(format, rows, style)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_written_so_that_they_read_back() {
        let mut out = BytesMut::new();
        put_escaped(&mut out, b"a\tb\\c\n|", b'|');
        assert_eq!(&out[..], b"a\\tb\\\\c\\n\\|");
        let format = Given { csv: true, ..Given::default() }.checked().expect("valid options");
        let mut csv = |field: &[u8]| {
            out.clear();
            put_csv(&mut out, field, &format, 1);
            String::from_utf8_lossy(&out).into_owned()
        };
        assert_eq!([csv(b"a"), csv(b"a\"b"), csv(b""), csv(b"\\.")], ["a", "\"a\"\"b\"", "\"\"", "\"\\.\""]);
    }
}
