//! The decoder: one pass over each record, straight into columns.

use std::ops::Range;
use std::sync::Arc;

use ahash::AHashMap;
use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{self, DataType, Schema, SchemaRef, TimeUnit};

use super::column::{Kind, Misfit, Rows, Scratch, Values};
use super::scan::{Pattern, Scanner, Text, unescape};
use super::verdict::{Fault, misfit, not_an_object, reason};
use super::{ColumnSpec, Dead, Decoded, IncludeKind, JsonOptions};
use crate::connector::error::ConnectorError;
use crate::connector::records::Records;

/// Decodes records of one source. Keeps the fields it has seen and the bytes between them, so that records that look alike
/// are matched without tokenising names or hashing.
///
/// Cost: one pass over the bytes, two where they are not ASCII; per field one comparison of two words or so with the bytes
/// seen at this place before; nothing per record on the heap but for dead ones.
#[derive(Debug)]
pub struct JsonDecoder {
    columns: Vec<Column>,
    includes: Vec<(usize, IncludeKind)>,
    schema: SchemaRef,
    wanted: Vec<usize>,
    by_name: AHashMap<Vec<u8>, u16>,
    /// By lower-case name: the only column with it, or none if there are several.
    by_folded: AHashMap<Vec<u8>, Option<u16>>,
    /// Names met so far, in the order they came in records.
    fields: Vec<Field>,
    /// The same by name as written.
    field_index: AHashMap<Vec<u8>, usize>,
    /// By column: what this record has had for it.
    seen: Vec<Seen>,
    /// By column: whether any record has had it. Counted for the first records.
    ever: Vec<bool>,
    records: u64,
    scratch: Scratch,
    /// Misfits of fields whose name differs in case: void if the exact name comes too.
    tentative: Vec<(u16, String)>,
}

#[derive(Debug)]
struct Column {
    name: String,
    kind: Kind,
    data_type: DataType,
    not_null: bool,
    include: bool,
    /// There if the column is wanted.
    rows: Option<Rows>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Ignore,
    Exact(u16),
    /// Differs in case only.
    Folded(u16),
}

/// A name met in records.
#[derive(Debug)]
struct Field {
    target: Target,
    /// All that stood between the value before it (or the record's beginning) and its own value when it came in its place:
    /// `, "name": `. Where the same bytes come again, they mean the same.
    glue: Pattern,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    No,
    Folded,
    Exact,
}

/// After so many records a column never seen is worth telling.
const UNSEEN_AFTER: u64 = 1000;
/// So many names are remembered; beyond them (names that are data) each is looked up anew.
const MAX_FIELDS: usize = 1024;

impl JsonDecoder {
    /// `columns` are all declared columns, `wanted` the indexes of those to build. Fails if a column's type cannot be read
    /// from JSON, or an included column has not the type it needs.
    pub fn new(columns: &[ColumnSpec], wanted: &[usize], options: JsonOptions) -> Result<JsonDecoder, ConnectorError> {
        let mut by_name = AHashMap::new();
        let mut by_folded: AHashMap<Vec<u8>, Option<u16>> = AHashMap::new();
        let mut includes = Vec::new();
        let mut built = Vec::with_capacity(columns.len());
        for (i, spec) in columns.iter().enumerate() {
            let index = u16::try_from(i).map_err(|_| ConnectorError::InvalidOption {
                option: spec.name.clone(),
                reason: "a source has at most 65 536 columns".into(),
            })?;
            let refuse = |instead| ConnectorError::UnsupportedColumn {
                column: spec.name.clone(),
                data_type: spec.data_type.clone(),
                from: "JSON",
                instead,
            };
            let kind = Kind::of(&spec.data_type, options.timestamps)
                .ok_or_else(|| refuse("use VARCHAR for a string, or leave the column out"))?;
            if let Some(include) = spec.include {
                let fits = match include {
                    IncludeKind::Partition => spec.data_type == DataType::Int32,
                    IncludeKind::Offset => spec.data_type == DataType::Int64,
                    IncludeKind::Timestamp => matches!(spec.data_type, DataType::Timestamp(TimeUnit::Microsecond, _)),
                    IncludeKind::Key => matches!(spec.data_type, DataType::Utf8 | DataType::Binary),
                };
                if !fits {
                    return Err(refuse(
                        "INCLUDE partition is INT, offset BIGINT, timestamp TIMESTAMPTZ, key VARCHAR or BYTEA",
                    ));
                }
                includes.push((i, include));
            } else {
                by_name.insert(spec.name.clone().into_bytes(), index);
                by_folded.entry(spec.name.to_lowercase().into_bytes()).and_modify(|c| *c = None).or_insert(Some(index));
            }
            let rows = wanted.contains(&i).then(|| Rows::new(&kind, &spec.data_type));
            built.push(Column {
                name: spec.name.clone(),
                kind,
                data_type: spec.data_type.clone(),
                not_null: spec.not_null,
                include: spec.include.is_some(),
                rows,
            });
        }
        let fields: Vec<datatypes::Field> = wanted
            .iter()
            .map(|i| &columns[*i])
            .map(|spec| datatypes::Field::new(&spec.name, spec.data_type.clone(), !spec.not_null))
            .collect();
        Ok(JsonDecoder {
            seen: vec![Seen::No; built.len()],
            ever: built.iter().map(|c| c.include).collect(),
            columns: built,
            includes,
            schema: Arc::new(Schema::new(fields)),
            wanted: wanted.to_vec(),
            by_name,
            by_folded,
            fields: Vec::new(),
            field_index: AHashMap::new(),
            records: 0,
            scratch: Scratch::default(),
            tentative: Vec::new(),
        })
    }

    /// The wanted columns in the order wanted.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Once 1 000 records have been decoded: the columns that no record had a field for.
    pub fn unseen_columns(&self) -> Vec<String> {
        if self.records < UNSEEN_AFTER {
            return Vec::new();
        }
        self.columns.iter().zip(&self.ever).filter(|(_, ever)| !**ever).map(|(c, _)| c.name.clone()).collect()
    }

    /// Decodes the records at `range`. The outcome of a record does not depend on the others.
    pub fn decode(&mut self, records: &Records, range: Range<usize>) -> Decoded {
        let mut rows = Vec::with_capacity(range.len());
        let mut dead = Vec::new();
        let mut skipped = Vec::new();
        let ascii = span(records, range.clone()).is_ascii();
        for index in range {
            let Some(value) = records.value(index) else {
                skipped.push(index as u32);
                continue;
            };
            self.records += 1;
            let row = rows.len();
            match self.record(records, index, value, ascii, row) {
                Ok(()) => rows.push(index as u32),
                Err(fault) => {
                    for rows in self.columns.iter_mut().filter_map(|c| c.rows.as_mut()) {
                        rows.truncate(row);
                    }
                    dead.push(Dead { record: index as u32, reason: reason(fault, value) });
                }
            }
        }
        Decoded { batch: self.finish(rows.len()), rows, dead, skipped }
    }

    fn finish(&mut self, rows: usize) -> RecordBatch {
        let mut arrays: Vec<Option<ArrayRef>> = vec![None; self.columns.len()];
        let columns = self
            .wanted
            .iter()
            .map(|i| {
                let Column { kind, rows: built, .. } = &mut self.columns[*i];
                let built = built.as_mut().expect("wanted columns are built");
                Arc::clone(arrays[*i].get_or_insert_with(|| built.finish(kind, rows)))
            })
            .collect();
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)
            .expect("every wanted column has the rows and the type of the schema")
    }

    /// Decodes one record into row `row`; on a fault the columns may hold part of it.
    fn record(&mut self, records: &Records, index: usize, value: &[u8], ascii: bool, row: usize) -> Result<(), Fault> {
        if value.is_empty() {
            return Err(Fault::Reason("empty value".into()));
        }
        if !ascii && let Err(error) = std::str::from_utf8(value) {
            return Err(Fault::Reason(format!("invalid UTF-8 at byte {}", error.valid_up_to())));
        }
        self.seen.fill(Seen::No);
        self.tentative.clear();
        let mut scanner = Scanner::new(value);
        self.object(&mut scanner, row)?;
        if !self.tentative.is_empty() {
            self.settle_tentative()?;
        }
        for (i, seen) in self.seen.iter().enumerate() {
            let column = &mut self.columns[i];
            if *seen == Seen::No && !column.include {
                if column.not_null {
                    return Err(Fault::Reason(format!(
                        "column {}: it is missing, and the column is NOT NULL",
                        column.name
                    )));
                }
                if let Some(rows) = &mut column.rows {
                    rows.push_null(row);
                }
            }
        }
        for i in 0..self.includes.len() {
            self.include(records, index, self.includes[i], row)?;
        }
        if self.records <= UNSEEN_AFTER {
            for (ever, seen) in self.ever.iter_mut().zip(&self.seen) {
                *ever |= *seen != Seen::No;
            }
        }
        Ok(())
    }

    fn object(&mut self, scanner: &mut Scanner<'_>, row: usize) -> Result<(), Fault> {
        let mut next = 0;
        let mut first = true;
        while let Some(target) = self.target(scanner, &mut next, first)? {
            first = false;
            match target {
                Target::Exact(column) => self.exact(scanner, column, row)?,
                Target::Ignore => scanner.skip_value(1)?,
                Target::Folded(column) => self.folded(scanner, column, row)?,
            }
        }
        scanner.skip_space();
        match scanner.peek() {
            None => Ok(()),
            Some(_) => Err(scanner.error("something follows the object").into()),
        }
    }

    /// Passes everything up to the value of the next field and tells its column; `None` at the end of the object, which is
    /// passed. `next` is the field that is likely: the one after the last; the one after that is tried too, because fields
    /// may be left out.
    #[inline]
    fn target(&mut self, scanner: &mut Scanner<'_>, next: &mut usize, first: bool) -> Result<Option<Target>, Fault> {
        for likely in *next..(*next + 2).min(self.fields.len()) {
            let field = &self.fields[likely];
            if scanner.eat_all(&field.glue) {
                *next = likely + 1;
                return Ok(Some(field.target));
            }
        }
        self.spelt_out(scanner, next, first)
    }

    fn spelt_out(&mut self, scanner: &mut Scanner<'_>, next: &mut usize, first: bool) -> Result<Option<Target>, Fault> {
        let start = scanner.position();
        scanner.skip_space();
        if first {
            if !scanner.eat(b'{') {
                return Err(not_an_object(scanner));
            }
            scanner.skip_space();
            if scanner.eat(b'}') {
                return Ok(None);
            }
        } else {
            if !scanner.eat(b',') {
                scanner.expect(b'}', "expected ',' or '}'")?;
                return Ok(None);
            }
            scanner.skip_space();
        }
        scanner.expect(b'"', "expected the name of a field")?;
        let name = scanner.text()?;
        scanner.skip_space();
        scanner.expect(b':', "expected ':'")?;
        scanner.skip_space();
        let expected = *next;
        let field = match self.field_index.get(name.raw) {
            Some(field) => *field,
            None if self.fields.len() < MAX_FIELDS => {
                let field = Field { target: self.resolve(name), glue: Pattern::default() };
                self.field_index.insert(name.raw.to_vec(), self.fields.len());
                self.fields.push(field);
                self.fields.len() - 1
            }
            None => return Ok(Some(self.resolve(name))),
        };
        *next = field + 1;
        let Field { target, glue } = &mut self.fields[field];
        // Only the first field's glue begins with the brace, so that it is not looked for elsewhere.
        if glue.is_empty() && field == expected && first == (field == 0) {
            *glue = Pattern::new(scanner.passed(start));
        }
        Ok(Some(*target))
    }

    fn resolve(&mut self, text: Text<'_>) -> Target {
        let mut name = text.raw;
        let mut unescaped = Vec::new();
        if text.escaped {
            if unescape(text.raw, &mut unescaped).is_err() {
                return Target::Ignore;
            }
            name = &unescaped;
        }
        if let Some(column) = self.by_name.get(name) {
            return Target::Exact(*column);
        }
        let folded = &mut self.scratch.text;
        folded.clear();
        match std::str::from_utf8(name) {
            Ok(text) if !text.is_ascii() => folded.extend_from_slice(text.to_lowercase().as_bytes()),
            _ => folded.extend(name.iter().map(u8::to_ascii_lowercase)),
        }
        match self.by_folded.get(folded) {
            Some(Some(column)) => Target::Folded(*column),
            _ => Target::Ignore,
        }
    }

    #[inline]
    fn exact(&mut self, scanner: &mut Scanner<'_>, column: u16, row: usize) -> Result<(), Fault> {
        let i = usize::from(column);
        match self.seen[i] {
            Seen::No => {}
            Seen::Exact => return Err(self.twice(column)),
            Seen::Folded => {
                // The exact name takes precedence over one that differs in case.
                if let Some(rows) = &mut self.columns[i].rows {
                    rows.truncate(row);
                }
                self.tentative.retain(|(c, _)| *c != column);
            }
        }
        self.seen[i] = Seen::Exact;
        self.columns[i].value(scanner, row, &mut self.scratch)
    }

    fn folded(&mut self, scanner: &mut Scanner<'_>, column: u16, row: usize) -> Result<(), Fault> {
        let i = usize::from(column);
        let fault = match self.seen[i] {
            Seen::Exact => None,
            Seen::Folded => Some(self.twice(column)),
            Seen::No => {
                self.seen[i] = Seen::Folded;
                let mut ahead = scanner.clone();
                match self.columns[i].value(&mut ahead, row, &mut self.scratch) {
                    Ok(()) => {
                        *scanner = ahead;
                        return Ok(());
                    }
                    Err(Fault::Syntax(syntax)) => return Err(syntax.into()),
                    Err(fault) => Some(fault),
                }
            }
        };
        if let Some(Fault::Reason(reason)) = fault {
            self.tentative.push((column, reason));
        }
        scanner.skip_value(1)?;
        Ok(())
    }

    #[cold]
    fn settle_tentative(&mut self) -> Result<(), Fault> {
        let first = self.tentative.drain(..).min_by_key(|(column, _)| *column);
        match first {
            Some((_, reason)) => Err(Fault::Reason(reason)),
            None => Ok(()),
        }
    }

    #[cold]
    fn twice(&self, column: u16) -> Fault {
        Fault::Reason(format!("column {}: the field is there twice", self.columns[usize::from(column)].name))
    }

    /// Fills a column from beside the payload.
    fn include(
        &mut self,
        records: &Records,
        index: usize,
        (column, kind): (usize, IncludeKind),
        row: usize,
    ) -> Result<(), Fault> {
        let record = &records.records[index];
        let Column { name, data_type, not_null, rows, .. } = &mut self.columns[column];
        let null = match kind {
            IncludeKind::Partition | IncludeKind::Offset => false,
            IncludeKind::Timestamp => record.timestamp_ms < 0,
            IncludeKind::Key => record.key.is_none(),
        };
        if null && *not_null {
            return Err(Fault::Reason(format!("column {name}: the record has none, and the column is NOT NULL")));
        }
        let key = records.key(index);
        if let Some(key) = key
            && kind == IncludeKind::Key
            && *data_type == DataType::Utf8
            && let Err(error) = std::str::from_utf8(key)
        {
            let at = error.valid_up_to();
            return Err(Fault::Reason(format!("column {name}: the key has invalid UTF-8 at byte {at}")));
        }
        let Some(rows) = rows else { return Ok(()) };
        if null {
            rows.push_null(row);
            return Ok(());
        }
        match (kind, &mut rows.values) {
            (IncludeKind::Partition, Values::I32(values)) => values.push(record.partition),
            (IncludeKind::Offset, Values::I64(values)) => values.push(record.offset),
            (IncludeKind::Timestamp, Values::I64(values)) => values.push(record.timestamp_ms.saturating_mul(1_000)),
            (IncludeKind::Key, _) => rows.push_bytes(key.unwrap_or_default()),
            _ => unreachable!("the types of included columns are checked"),
        }
        Ok(())
    }
}

impl Column {
    /// Reads the value that comes next as one of this column, into row `row`.
    #[inline]
    fn value(&mut self, scanner: &mut Scanner<'_>, row: usize, scratch: &mut Scratch) -> Result<(), Fault> {
        let start = scanner.position();
        let outcome = match scanner.peek() {
            Some(b'"') => {
                scanner.bump();
                let text = scanner.text()?;
                self.kind.text(text, scratch, self.rows.as_mut())
            }
            Some(b'-' | b'0'..=b'9') => {
                let number = scanner.number()?;
                self.kind.number(number, self.rows.as_mut())
            }
            Some(first @ (b't' | b'f')) => {
                let value = first == b't';
                scanner.word(if value { b"true" } else { b"false" })?;
                self.kind.boolean(value, self.rows.as_mut())
            }
            Some(b'n') => {
                scanner.word(b"null")?;
                if self.not_null {
                    return Err(Fault::Reason(format!("column {}: it is null, and the column is NOT NULL", self.name)));
                }
                if let Some(rows) = &mut self.rows {
                    rows.push_null(row);
                }
                Ok(())
            }
            Some(b'{' | b'[') => Err(Misfit::Kind),
            _ => return Err(scanner.error("expected a value").into()),
        };
        outcome.map_err(|why| misfit(why, &self.name, &self.data_type, scanner.from(start)))
    }
}

/// The bytes of the records at `range`, keys included.
fn span(records: &Records, range: Range<usize>) -> &[u8] {
    let spans = || records.records[range.clone()].iter().flat_map(|r| [r.key, r.value]).flatten();
    match (spans().next(), spans().next_back()) {
        (Some(first), Some(last)) => &records.bytes[first.start as usize..(last.start + last.len) as usize],
        _ => &[],
    }
}
