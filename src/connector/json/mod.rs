//! JSON records to Arrow, in one pass and without a heap object per record.
//!
//! A record is a JSON object; its fields are the columns. Each record gets a verdict that depends on its bytes and the
//! declared columns alone, never on which columns are built:
//!
//! | record | verdict |
//! |---|---|
//! | null value | skipped (tombstone) |
//! | empty, not UTF-8, not JSON, cut short, something after the object, not an object | dead |
//! | objects and arrays nested deeper than 128 levels, wherever | dead |
//! | a field twice that is a column | dead |
//! | unknown fields, once or more, of any kind and size | ignored |
//! | a column's field is missing or `null` | NULL; dead if the column is NOT NULL |
//! | a value that does not fit its column | dead |
//!
//! Names match exactly; a column that has no field of exactly its name takes one that differs in case only. (Two such are
//! a field twice. A field that differs in case from several columns belongs to none.)
//!
//! | column | string | number | true, false | object, array |
//! |---|---|---|---|---|
//! | BOOLEAN | dead | dead | value | dead |
//! | SMALLINT, INT, BIGINT | as the number, if all of it is one | if integral (`1.0`, `1e3` are) and in range | dead | dead |
//! | REAL, DOUBLE | as the number, if all of it is one | nearest value; dead if beyond the largest | dead | dead |
//! | NUMERIC(p, s) | as the number, if all of it is one | exact; dead if non-zero digits exceed s, or all exceed p | dead | dead |
//! | VARCHAR | value; dead with `\u0000` or half a surrogate pair | its text as written | dead | dead |
//! | BYTEA | `\x` and hexadecimal digits | dead | dead | dead |
//! | DATE | `YYYY-MM-DD` | dead | dead | dead |
//! | TIME | `HH:MM[:SS[.f]]` | dead | dead | dead |
//! | TIMESTAMP, TIMESTAMPTZ | ISO 8601, see below | epoch number, see [`TimestampMode`] | dead | dead |
//!
//! Timestamps as text: `YYYY-MM-DD`, then `T` or a space and `HH:MM[:SS[.fraction]]`, then `Z`, `UTC`, `+02`, `+0200`, `+02:00`
//! or nothing, which means UTC. A zone on a TIMESTAMP converts to UTC. Fractions have 1 to 9 digits; those beyond
//! microseconds are cut. Dates that do not exist, second 60, hour 24 and years outside 1 to 9999 are dead.
//!
//! NaN and Infinity are not JSON: dead. Nothing is ever turned into NULL because it does not fit.

mod column;
mod exact;
mod scan;
mod time;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use ahash::AHashMap;
use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{self, DataType, Schema, SchemaRef, TimeUnit};

use self::column::{Kind, Misfit, Rows, Values};
use self::scan::{Scanner, Syntax, Text, unescape};
use super::error::{ConnectorError, nearest};
use super::records::Records;

pub use self::time::{EpochUnit, TimestampMode};

/// A column as declared: its name as stored, and where its values come from.
#[derive(Debug, Clone)]
pub struct ColumnSpec {
    pub name: String,
    pub data_type: DataType,
    pub not_null: bool,
    /// `None`: a field of the payload.
    pub include: Option<IncludeKind>,
}

/// What of a record beside its payload a column can hold, and the type it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IncludeKind {
    /// Int32.
    Partition,
    /// Int64.
    Offset,
    /// Timestamp(us) with or without zone; NULL if the record has none.
    Timestamp,
    /// Utf8 or Binary; NULL if the record has none. A key that is not UTF-8 does not fit Utf8: dead.
    Key,
}

/// `ENCODE JSON (...)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct JsonOptions {
    pub timestamps: TimestampMode,
}

/// What became of a range of records.
#[derive(Debug)]
pub struct Decoded {
    /// The wanted columns of the rows, in the order wanted.
    pub batch: RecordBatch,
    /// For each row the index of its record.
    pub rows: Vec<u32>,
    pub dead: Vec<Dead>,
    /// Indexes of tombstones.
    pub skipped: Vec<u32>,
}

/// A record that does not fit the source, by its index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dead {
    pub record: u32,
    pub reason: String,
}

/// Decodes records of one source. Keeps the order of fields it has seen, so that equal records are matched without hashing.
///
/// Cost: one pass over the bytes (two over those that are not ASCII); per field a comparison with the name seen at this
/// place last time; nothing per record on the heap but for dead ones.
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
    scratch: Vec<u8>,
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

#[derive(Debug)]
struct Field {
    /// The name as written and its closing quote.
    name: Vec<u8>,
    target: Target,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    No,
    Folded,
    Exact,
}

enum Fault {
    Syntax(Syntax),
    Reason(String),
}

impl From<Syntax> for Fault {
    fn from(syntax: Syntax) -> Self {
        Fault::Syntax(syntax)
    }
}

/// After so many records a column never seen is worth telling.
const UNSEEN_AFTER: u64 = 1000;
/// So many names are remembered; beyond them (names that are data) each is looked up anew.
const MAX_FIELDS: usize = 1024;
const EXCERPT_BYTES: usize = 60;

impl JsonOptions {
    /// The options of `ENCODE JSON (...)`; RisingWave's `guess_number_unit` is our `guess`.
    pub fn parse(options: &BTreeMap<String, String>) -> Result<JsonOptions, ConnectorError> {
        const MODE: &str = "timestamptz.handling.mode";
        let mut parsed = JsonOptions::default();
        for (key, value) in options {
            if key != MODE {
                return Err(ConnectorError::UnknownOption { option: key.clone(), nearest: nearest(key, [MODE]) });
            }
            parsed.timestamps = match value.to_ascii_lowercase().as_str() {
                "guess" | "guess_number_unit" => TimestampMode::Guess,
                "seconds" => TimestampMode::Unit(EpochUnit::Seconds),
                "milli" => TimestampMode::Unit(EpochUnit::Millis),
                "micro" => TimestampMode::Unit(EpochUnit::Micros),
                "nano" => TimestampMode::Unit(EpochUnit::Nanos),
                "utc_string" => TimestampMode::UtcString,
                "utc_without_suffix" => TimestampMode::UtcWithoutSuffix,
                _ => {
                    return Err(ConnectorError::InvalidOption {
                        option: key.clone(),
                        reason: format!(
                            "'{value}' is none of guess, seconds, milli, micro, nano, utc_string, utc_without_suffix"
                        ),
                    });
                }
            };
        }
        Ok(parsed)
    }
}

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
            scratch: Vec::new(),
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
        scanner.skip_space();
        if !scanner.eat(b'{') {
            return Err(not_an_object(scanner));
        }
        scanner.skip_space();
        if !scanner.eat(b'}') {
            let mut next = 0;
            loop {
                scanner.expect(b'"', "expected the name of a field")?;
                let target = self.target(scanner, &mut next)?;
                scanner.skip_space();
                scanner.expect(b':', "expected ':'")?;
                scanner.skip_space();
                match target {
                    Target::Exact(column) => self.exact(scanner, column, row)?,
                    Target::Ignore => scanner.skip_value(1)?,
                    Target::Folded(column) => self.folded(scanner, column, row)?,
                }
                scanner.skip_space();
                if !scanner.eat(b',') {
                    break;
                }
                scanner.skip_space();
            }
            scanner.expect(b'}', "expected ',' or '}'")?;
        }
        scanner.skip_space();
        match scanner.peek() {
            None => Ok(()),
            Some(_) => Err(scanner.error("something follows the object").into()),
        }
    }

    /// The column of the field whose name comes next. `next` is the field that is likely: the one after the last; the one
    /// after that is tried too, because fields may be left out.
    #[inline]
    fn target(&mut self, scanner: &mut Scanner<'_>, next: &mut usize) -> Result<Target, Syntax> {
        for likely in *next..(*next + 2).min(self.fields.len()) {
            if scanner.eat_all(&self.fields[likely].name) {
                *next = likely + 1;
                return Ok(self.fields[likely].target);
            }
        }
        self.look_up(scanner, next)
    }

    fn look_up(&mut self, scanner: &mut Scanner<'_>, next: &mut usize) -> Result<Target, Syntax> {
        let text = scanner.text()?;
        if let Some(field) = self.field_index.get(text.raw) {
            *next = field + 1;
            return Ok(self.fields[*field].target);
        }
        let target = self.resolve(text);
        if self.fields.len() < MAX_FIELDS {
            self.field_index.insert(text.raw.to_vec(), self.fields.len());
            let mut name = text.raw.to_vec();
            name.push(b'"');
            self.fields.push(Field { name, target });
            *next = self.fields.len();
        }
        Ok(target)
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
        self.scratch.clear();
        match std::str::from_utf8(name) {
            Ok(text) if !text.is_ascii() => self.scratch.extend_from_slice(text.to_lowercase().as_bytes()),
            _ => self.scratch.extend(name.iter().map(u8::to_ascii_lowercase)),
        }
        match self.by_folded.get(&self.scratch) {
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
    fn value(&mut self, scanner: &mut Scanner<'_>, row: usize, scratch: &mut Vec<u8>) -> Result<(), Fault> {
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
        outcome.map_err(|misfit| self.misfit(misfit, scanner.from(start)))
    }

    #[cold]
    fn misfit(&self, misfit: Misfit, found: &[u8]) -> Fault {
        let expected = sql_name(&self.data_type);
        let name = &self.name;
        let (what, shown) = describe(found);
        Fault::Reason(match misfit {
            Misfit::Kind => format!("column {name}: expected {expected}, found {what}{shown}"),
            Misfit::OutOfRange => format!("column {name}:{shown} is out of range for {expected}"),
            Misfit::Fraction => format!("column {name}:{shown} has more fractional digits than {expected} holds"),
            Misfit::Because(why) => format!("column {name}: expected {expected}, found {what}{shown}: {why}"),
        })
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

#[cold]
fn not_an_object(scanner: &Scanner<'_>) -> Fault {
    let start = scanner.position();
    match scanner.peek() {
        None => Fault::Reason("empty value".into()),
        Some(b'[' | b'"' | b'-' | b'0'..=b'9' | b't' | b'f' | b'n') => {
            let (what, shown) = describe(scanner.from(start));
            Fault::Reason(format!("expected an object, found {what}{shown}"))
        }
        Some(_) => scanner.error("expected an object").into(),
    }
}

#[cold]
fn reason(fault: Fault, value: &[u8]) -> String {
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
