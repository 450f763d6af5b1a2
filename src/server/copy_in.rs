//! COPY FROM STDIN: lines → rows.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::CastOptions;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use chrono_tz::Tz;
use datafusion::common::ScalarValue;
use sqlparser::ast;

use super::copy::CopyFormat;
use super::decode::{from_text, utf8};
use super::error::PgError;
use super::session::Session;
use super::sqlstate as code;
use crate::catalog::{ObjectKind, PgType, pg_type_of};
use crate::sql::{Name, fold, quote};

/// The longest line.
const MAX_LINE_BYTES: usize = 64 << 20;
/// The most that one COPY may bring.
const MAX_COPY_BYTES: usize = 512 << 20;
/// Rows of a batch.
const BATCH_ROWS: usize = 8_192;

struct CopyColumn {
    name: String,
    pg_type: &'static PgType,
    data_type: DataType,
}

/// Rows on their way in: bytes in any portions, one record after another.
pub struct CopyIn {
    format: CopyFormat,
    /// The table as SQL names it.
    target: String,
    columns: Vec<CopyColumn>,
    zone: Tz,
    /// Bytes that are no whole record yet.
    partial: Vec<u8>,
    /// So many of them have been looked at.
    seen: usize,
    in_quotes: bool,
    /// The byte before was an escape in text.
    escaped: bool,
    line: u64,
    skip_header: bool,
    /// `\.` was read: nothing more counts.
    ended: bool,
    bytes: usize,
    values: Vec<Vec<ScalarValue>>,
    batches: Vec<RecordBatch>,
}

impl CopyIn {
    fn new(target: String, columns: Vec<CopyColumn>, format: CopyFormat, zone: Tz) -> CopyIn {
        CopyIn {
            skip_header: format.header,
            format,
            target,
            values: columns.iter().map(|_| Vec::new()).collect(),
            columns,
            zone,
            partial: Vec::new(),
            seen: 0,
            in_quotes: false,
            escaped: false,
            line: 0,
            ended: false,
            bytes: 0,
            batches: Vec::new(),
        }
    }

    pub fn num_columns(&self) -> usize {
        self.columns.len()
    }

    pub fn target(&self) -> &str {
        &self.target
    }

    pub fn column_names(&self) -> impl Iterator<Item = &str> {
        self.columns.iter().map(|column| column.name.as_str())
    }

    /// Takes the next bytes.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), PgError> {
        self.bytes += bytes.len();
        if self.bytes > MAX_COPY_BYTES {
            return Err(PgError::new(code::PROGRAM_LIMIT_EXCEEDED, "COPY brings too much at once")
                .detail(format!("At most {} MiB are possible.", MAX_COPY_BYTES >> 20))
                .hint("Split it into several."));
        }
        self.partial.extend_from_slice(bytes);
        let partial = std::mem::take(&mut self.partial);
        let (mut start, mut at) = (0, self.seen);
        while let Some(&byte) = partial.get(at) {
            at += 1;
            if !self.ends_record(byte) {
                continue;
            }
            self.record(&partial[start..at - 1])?;
            start = at;
        }
        self.partial = partial[start..].to_vec();
        self.seen = self.partial.len();
        if self.seen > MAX_LINE_BYTES {
            return Err(self.located(PgError::new(code::PROGRAM_LIMIT_EXCEEDED, "a line is too long"), ""));
        }
        Ok(())
    }

    /// Whether a byte is the newline at the end of a record; keeps track of quotes and escapes.
    fn ends_record(&mut self, byte: u8) -> bool {
        if self.format.csv {
            // A doubled quote leaves the field and enters it again.
            if self.in_quotes && self.escaped {
                self.escaped = false;
            } else if self.in_quotes && byte == self.format.escape && self.format.escape != self.format.quote {
                self.escaped = true;
            } else if byte == self.format.quote {
                self.in_quotes = !self.in_quotes;
            }
            return byte == b'\n' && !self.in_quotes;
        }
        let escaped = self.escaped;
        self.escaped = byte == b'\\' && !escaped;
        byte == b'\n' && !escaped
    }

    /// All rows, in the order in which they came.
    pub fn finish(mut self) -> Result<(SchemaRef, Vec<RecordBatch>), PgError> {
        if self.in_quotes && !self.ended {
            return Err(self.located(PgError::new(code::BAD_COPY_FILE_FORMAT, "unterminated CSV quoted field"), ""));
        }
        let rest = std::mem::take(&mut self.partial);
        if !rest.is_empty() {
            self.record(&rest)?;
        }
        self.finish_batch()?;
        Ok((self.schema(), self.batches))
    }

    fn schema(&self) -> SchemaRef {
        let fields = self.columns.iter().map(|column| Field::new(&column.name, column.data_type.clone(), true));
        Arc::new(Schema::new(fields.collect::<Vec<_>>()))
    }

    fn record(&mut self, record: &[u8]) -> Result<(), PgError> {
        self.line += 1;
        let record = record.strip_suffix(b"\r").unwrap_or(record);
        if self.ended || std::mem::take(&mut self.skip_header) {
            return Ok(());
        }
        if record == b"\\." {
            self.ended = true;
            return Ok(());
        }
        let fields = if self.format.csv { self.csv_fields(record)? } else { self.text_fields(record)? };
        let wrong = |message: String| PgError::new(code::BAD_COPY_FILE_FORMAT, message);
        if let Some(missing) = self.columns.get(fields.len()) {
            let error = wrong(format!("missing data for column \"{}\"", missing.name));
            return Err(self.located(error, &String::from_utf8_lossy(record)));
        }
        if fields.len() > self.columns.len() {
            let error = wrong("extra data after last expected column".into());
            return Err(self.located(error, &String::from_utf8_lossy(record)));
        }
        for (i, field) in fields.into_iter().enumerate() {
            let value = self.value(i, field.as_deref())?;
            self.values[i].push(value);
        }
        if self.values.first().is_some_and(|values| values.len() >= BATCH_ROWS) {
            self.finish_batch()?;
        }
        Ok(())
    }

    fn value(&self, i: usize, field: Option<&[u8]>) -> Result<ScalarValue, PgError> {
        let column = &self.columns[i];
        let Some(field) = field else {
            return ScalarValue::try_from(&column.data_type).map_err(|error| code::from_datafusion(error, ""));
        };
        let options = CastOptions { safe: false, ..Default::default() };
        let read = utf8(field).and_then(|text| from_text(text, column.pg_type, self.zone)).and_then(|value| {
            value.cast_to_with_options(&column.data_type, &options).map_err(|_| {
                let name = column.pg_type.sql_name;
                PgError::new(code::NUMERIC_VALUE_OUT_OF_RANGE, format!("value is out of range for type {name}"))
            })
        });
        read.map_err(|error| {
            let shown = String::from_utf8_lossy(&field[..field.len().min(100)]).into_owned();
            let place = format!("COPY {}, line {}, column {}: \"{shown}\"", self.target, self.line, column.name);
            error.context(place)
        })
    }

    fn finish_batch(&mut self) -> Result<(), PgError> {
        if self.values.first().is_none_or(Vec::is_empty) {
            return Ok(());
        }
        let arrays = self.values.iter_mut().map(|values| ScalarValue::iter_to_array(std::mem::take(values)));
        let arrays = arrays.collect::<Result<Vec<_>, _>>().map_err(|error| code::from_datafusion(error, ""))?;
        let batch = RecordBatch::try_new(self.schema(), arrays).map_err(code::from_arrow)?;
        self.batches.push(batch);
        Ok(())
    }

    fn located(&self, error: PgError, record: &str) -> PgError {
        let shown: String = record.chars().take(100).collect();
        error.context(format!("COPY {}, line {}: \"{shown}\"", self.target, self.line))
    }

    fn text_fields(&self, record: &[u8]) -> Result<Vec<Option<Vec<u8>>>, PgError> {
        let mut fields = Vec::with_capacity(self.columns.len());
        let mut rest = record;
        loop {
            let mut end = 0;
            while end < rest.len() && rest[end] != self.format.delimiter {
                end += if rest[end] == b'\\' { 2 } else { 1 };
            }
            let end = end.min(rest.len());
            let raw = &rest[..end];
            fields.push((raw != self.format.null.as_bytes()).then(|| unescape(raw)));
            match rest.get(end + 1..) {
                Some(more) => rest = more,
                None => return Ok(fields),
            }
        }
    }

    fn csv_fields(&self, record: &[u8]) -> Result<Vec<Option<Vec<u8>>>, PgError> {
        let CopyFormat { delimiter, quote, escape, .. } = self.format;
        let mut fields = Vec::with_capacity(self.columns.len());
        let mut bytes = record.iter().copied().peekable();
        loop {
            let (mut field, mut quoted, mut inside) = (Vec::new(), false, false);
            let more = loop {
                let Some(byte) = bytes.next() else { break false };
                if inside {
                    if byte == escape && bytes.peek().is_some_and(|next| *next == quote || *next == escape) {
                        field.extend(bytes.next());
                    } else if byte == quote {
                        inside = false;
                    } else {
                        field.push(byte);
                    }
                } else if byte == delimiter {
                    break true;
                } else if byte == quote {
                    (quoted, inside) = (true, true);
                } else {
                    field.push(byte);
                }
            };
            // A quoted field is never NULL.
            fields.push((quoted || field != self.format.null.as_bytes()).then_some(field));
            if !more {
                return Ok(fields);
            }
        }
    }
}

/// Backslash sequences of the text format.
fn unescape(raw: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        if first != b'\\' {
            out.push(first);
            continue;
        }
        let Some((&kind, tail)) = rest.split_first() else {
            out.push(b'\\');
            break;
        };
        rest = tail;
        let digits = |radix: u32, most: usize, from: &[u8]| {
            from.iter().take(most).take_while(|b| char::from(**b).is_digit(radix)).count()
        };
        match kind {
            b'b' => out.push(0x08),
            b'f' => out.push(0x0c),
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b't' => out.push(b'\t'),
            b'v' => out.push(0x0b),
            b'x' if digits(16, 2, rest) > 0 => {
                let count = digits(16, 2, rest);
                let value = rest[..count].iter().filter_map(|b| char::from(*b).to_digit(16)).fold(0, |v, d| v * 16 + d);
                out.push(value as u8);
                rest = &rest[count..];
            }
            b'0'..=b'7' => {
                let count = digits(8, 2, rest);
                let more = rest[..count].iter().map(|b| u32::from(b - b'0'));
                out.push(more.fold(u32::from(kind - b'0'), |v, d| v * 8 + d) as u8);
                rest = &rest[count..];
            }
            other => out.push(other),
        }
    }
    out
}

impl Session {
    /// Where the rows of COPY go.
    pub(super) fn copy_in(
        &self,
        table: &ast::ObjectName,
        columns: &[ast::Ident],
        format: CopyFormat,
    ) -> Result<CopyIn, PgError> {
        let name = Name(table.0.iter().filter_map(|part| part.as_ident()).map(fold).collect());
        let object = self.catalog().resolve(&name, &self.name_context())?;
        if !matches!(object.kind, ObjectKind::Table(_)) {
            let message = format!("cannot copy to \"{}\": it is not a table", object.name);
            return Err(PgError::new(code::WRONG_OBJECT_TYPE, message));
        }
        let all = object.columns.fields();
        let mut chosen: Vec<CopyColumn> = Vec::new();
        let names: Vec<String> = match columns {
            [] => all.iter().map(|field| field.name().clone()).collect(),
            columns => columns.iter().map(fold).collect(),
        };
        for name in names {
            let Some(field) = all.iter().find(|field| *field.name() == name) else {
                let message = format!("column \"{name}\" of relation \"{}\" does not exist", object.name);
                return Err(PgError::new(code::UNDEFINED_COLUMN, message));
            };
            if chosen.iter().any(|column| column.name == name) {
                let message = format!("column \"{name}\" specified more than once");
                return Err(PgError::new(code::DUPLICATE_COLUMN, message));
            }
            chosen.push(CopyColumn { name, pg_type: pg_type_of(field), data_type: field.data_type().clone() });
        }
        let target = format!("{}.{}", quote(&object.schema), quote(&object.name));
        Ok(CopyIn::new(target, chosen, format, self.settings().zone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::copy::Given;

    fn column(name: &str, type_name: &str) -> CopyColumn {
        let pg_type = PgType::by_name(type_name).expect("a type of types.txt");
        CopyColumn { name: name.into(), pg_type, data_type: pg_type.arrow() }
    }

    /// The rows that a text brings, whatever the portions it comes in, or the error.
    fn check(given: Given, text: &str, expected: &str) {
        for portion in [1, 3, 1_000] {
            let format = given.clone().checked().expect("valid options");
            let columns = vec![column("a", "int4"), column("b", "text")];
            let mut copy = CopyIn::new("t".into(), columns, format, Tz::UTC);
            let pushed = text.as_bytes().chunks(portion).try_for_each(|chunk| copy.push(chunk));
            let got = match pushed.and_then(|()| copy.finish()) {
                Err(error) => format!("{} {} [{}]", error.code, error.message, error.context.unwrap_or_default()),
                Ok((_, batches)) => {
                    let rows = batches.iter().flat_map(|batch| (0..batch.num_rows()).map(move |row| (batch, row)));
                    let cell = |batch: &RecordBatch, row, i| {
                        ScalarValue::try_from_array(batch.column(i), row).expect("a value").to_string()
                    };
                    rows.map(|(b, row)| format!("{}|{}", cell(b, row, 0), cell(b, row, 1)))
                        .collect::<Vec<_>>()
                        .join(" ")
                }
            };
            assert_eq!(got, expected, "in portions of {portion}");
        }
    }

    #[test]
    fn lines_become_rows() {
        let text = Given::default;
        check(text(), "1\tx\n2\t\\N\n", "1|x 2|NULL");
        check(text(), "1\ta\\tb\\\\c\\x41\\101\n2\tz", "1|a\tb\\cAA 2|z");
        check(text(), "1\ta\\\nb\n", "1|a\nb");
        check(text(), "1\tx\r\n\\.\nrubbish", "1|x");
        check(text(), "1\n", "22P04 missing data for column \"b\" [COPY t, line 1: \"1\"]");
        check(text(), "1\tx\ty\n", "22P04 extra data after last expected column [COPY t, line 1: \"1\tx\ty\"]");
        check(
            text(),
            "1\tx\nz\tx\n",
            "22P02 invalid input syntax for type integer: \"z\" [COPY t, line 2, column a: \"z\"]",
        );
        let csv = || Given { csv: true, ..Given::default() };
        check(csv(), "1,x\n2,\n3,\"\"\n", "1|x 2|NULL 3|");
        check(csv(), "1,\"a,\"\"b\"\"\nc\"\n2,y", "1|a,\"b\"\nc 2|y");
        check(Given { header: true, ..csv() }, "a,b\n1,x\n", "1|x");
        check(Given { escape: Some('\\'), ..csv() }, "1,\"a\\\"b\n\"\n2,y\n", "1|a\"b\n 2|y");
        check(csv(), "1,\"x\n", "22P04 unterminated CSV quoted field [COPY t, line 0: \"\"]");
    }
}
