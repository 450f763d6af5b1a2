//! Arrow columns → the values of Postgres' `DataRow`, in text or binary.
//!
//! A [`RowEncoder`] is made once per result from the types its `RowDescription` promised. Each batch is brought to the storage form
//! of those types column by column ([`RowEncoder::batch`]), then written row by row ([`Rows::put`]): one `match` and one downcast a cell.

use std::borrow::Cow;
use std::sync::Arc;

use crate::catalog::PgType;
use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Date32Array, Decimal128Array, Decimal256Array, Float32Array, Float64Array,
    Int16Array, Int32Array, Int64Array, IntervalMonthDayNanoArray, ListArray, RecordBatch, StringArray,
    Time64MicrosecondArray, TimestampMicrosecondArray, UInt32Array,
};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, IntervalUnit, TimeUnit};
use arrow::util::display::FormatOptions;
use bytes::{BufMut, BytesMut};
use chrono_tz::Tz;

use super::error::PgError;
use super::numeric;
use super::pg_type::PgColumn;
use super::sqlstate as code;
use super::text::{self, FloatDigits, MICROS_PER_DAY, POSTGRES_EPOCH_DAYS};

/// How a column goes over the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    #[default]
    Text,
    Binary,
}

/// The session's settings that show in text.
#[derive(Debug, Clone, Copy)]
pub struct TextStyle {
    pub zone: Tz,
    pub float_digits: FloatDigits,
}

impl Default for TextStyle {
    fn default() -> Self {
        TextStyle { zone: Tz::UTC, float_digits: FloatDigits(1) }
    }
}

/// Writes rows of one shape.
#[derive(Debug)]
pub struct RowEncoder {
    columns: Vec<Column>,
    style: TextStyle,
}

#[derive(Debug)]
struct Column {
    pg_type: &'static PgType,
    storage: DataType,
    cell: Cell,
    format: Format,
}

/// How a cell is read from its array and written.
#[derive(Debug, Clone)]
enum Cell {
    Bool,
    Int2,
    Int4,
    Int8,
    Oid,
    Float4,
    Float8,
    Numeric128(i8),
    Numeric256(i8),
    Text,
    Bytea,
    Date,
    Timestamp,
    TimestampTz,
    Time,
    Interval,
    Array(Box<Cell>, u32),
}

/// One batch, ready to be written.
pub struct Rows<'a> {
    encoder: &'a RowEncoder,
    arrays: Vec<ArrayRef>,
    num_rows: usize,
}

impl RowEncoder {
    /// `formats` gives each column's format.
    pub fn new(columns: &[PgColumn], formats: &[Format], style: TextStyle) -> Result<RowEncoder, PgError> {
        let columns = columns
            .iter()
            .zip(formats)
            .map(|(column, format)| {
                let (storage, cell) = storage(column.pg_type, &column.data_type)?;
                Ok(Column { pg_type: column.pg_type, storage, cell, format: *format })
            })
            .collect::<Result<_, PgError>>()?;
        Ok(RowEncoder { columns, style })
    }

    pub fn num_columns(&self) -> usize {
        self.columns.len()
    }

    /// Brings a batch to storage form. Fails if a value does not fit the type that was promised.
    pub fn batch(&self, batch: &RecordBatch) -> Result<Rows<'_>, PgError> {
        let arrays = self
            .columns
            .iter()
            .zip(batch.columns())
            .map(|(column, array)| normalise(array, &column.storage, column.pg_type))
            .collect::<Result<_, PgError>>()?;
        Ok(Rows { encoder: self, arrays, num_rows: batch.num_rows() })
    }
}

impl Rows<'_> {
    pub fn num_rows(&self) -> usize {
        self.num_rows
    }

    /// Appends the row's values, each after its length; -1 stands for NULL.
    pub fn put(&self, row: usize, out: &mut BytesMut) -> Result<(), PgError> {
        for (column, array) in self.encoder.columns.iter().zip(&self.arrays) {
            if array.is_null(row) {
                out.put_i32(-1);
                continue;
            }
            put_sized(out, |out| match column.format {
                Format::Text => put_text(out, &column.cell, array, row, &self.encoder.style),
                Format::Binary => put_binary(out, &column.cell, array, row),
            })?;
        }
        Ok(())
    }

    /// Appends one value as text without a length. False if it is NULL, and nothing was appended.
    pub fn put_text(&self, row: usize, column: usize, out: &mut BytesMut) -> Result<bool, PgError> {
        if self.arrays[column].is_null(row) {
            return Ok(false);
        }
        put_text(out, &self.encoder.columns[column].cell, &self.arrays[column], row, &self.encoder.style)?;
        Ok(true)
    }
}

/// The Arrow form in which a Postgres type is read, and how its cells are written.
fn storage(pg_type: &PgType, data_type: &DataType) -> Result<(DataType, Cell), PgError> {
    let micros = TimeUnit::Microsecond;
    let elements = match data_type {
        DataType::List(f) | DataType::LargeList(f) | DataType::FixedSizeList(f, _) | DataType::ListView(f) => Some(f),
        _ => None,
    };
    if let Some(inner) = elements {
        let Some(element) = PgType::by_oid(pg_type.elem) else {
            return Err(PgError::unsupported(format!("a column of type {} cannot be sent", pg_type.sql_name)));
        };
        // A list of lists is the same array type with one dimension more.
        let nested = matches!(inner.data_type(), DataType::List(_) | DataType::LargeList(_));
        let (inner_storage, cell) = storage(if nested { pg_type } else { element }, inner.data_type())?;
        let field = Arc::new(Field::new(inner.name(), inner_storage, true));
        return Ok((DataType::List(field), Cell::Array(Box::new(cell), element.oid)));
    }
    Ok(match pg_type.name {
        "bool" => (DataType::Boolean, Cell::Bool),
        "int2" => (DataType::Int16, Cell::Int2),
        "int4" => (DataType::Int32, Cell::Int4),
        "int8" => (DataType::Int64, Cell::Int8),
        "float4" => (DataType::Float32, Cell::Float4),
        "float8" => (DataType::Float64, Cell::Float8),
        "numeric" => match data_type {
            DataType::Decimal256(precision, scale) => {
                (DataType::Decimal256(*precision, *scale), Cell::Numeric256(*scale))
            }
            DataType::Decimal128(precision, scale) => {
                (DataType::Decimal128(*precision, *scale), Cell::Numeric128(*scale))
            }
            DataType::Decimal32(_, scale) | DataType::Decimal64(_, scale) => {
                (DataType::Decimal128(38, *scale), Cell::Numeric128(*scale))
            }
            _ => (DataType::Decimal128(38, 0), Cell::Numeric128(0)),
        },
        "bytea" => (DataType::Binary, Cell::Bytea),
        "date" => (DataType::Date32, Cell::Date),
        "timestamp" => (DataType::Timestamp(micros, None), Cell::Timestamp),
        "timestamptz" => (DataType::Timestamp(micros, Some("UTC".into())), Cell::TimestampTz),
        "time" => (DataType::Time64(micros), Cell::Time),
        "interval" => (DataType::Interval(IntervalUnit::MonthDayNano), Cell::Interval),
        _ if matches!(data_type, DataType::Struct(_) | DataType::Map(..) | DataType::Union(..)) => {
            return Err(PgError::unsupported(format!("a column of type {} cannot be sent", pg_type.sql_name))
                .hint("Select its fields one by one."));
        }
        // oid and its kin: four bytes without a sign.
        _ if data_type.is_integer() && pg_type.len == 4 => (DataType::UInt32, Cell::Oid),
        // The rest are read and written as their text: text, varchar, name, "char" and the catalog's own types.
        _ => (DataType::Utf8, Cell::Text),
    })
}

fn normalise(array: &ArrayRef, storage: &DataType, pg_type: &PgType) -> Result<ArrayRef, PgError> {
    if array.data_type() == storage {
        return Ok(Arc::clone(array));
    }
    let options = CastOptions { safe: false, format_options: FormatOptions::default() };
    cast_with_options(array, storage, &options).map_err(|_| {
        PgError::new(code::NUMERIC_VALUE_OUT_OF_RANGE, format!("a value is out of range for type {}", pg_type.sql_name))
    })
}

/// Writes a value after its length in bytes.
fn put_sized(out: &mut BytesMut, put: impl FnOnce(&mut BytesMut) -> Result<(), PgError>) -> Result<(), PgError> {
    let start = out.len();
    out.put_i32(0);
    put(out)?;
    let size = i32::try_from(out.len() - start - 4)
        .map_err(|_| PgError::new(code::PROGRAM_LIMIT_EXCEEDED, "a value is too large to be sent"))?;
    out[start..start + 4].copy_from_slice(&size.to_be_bytes());
    Ok(())
}

fn put_text(out: &mut BytesMut, cell: &Cell, array: &dyn Array, row: usize, style: &TextStyle) -> Result<(), PgError> {
    match cell {
        Cell::Bool => text::put_bool(out, value::<BooleanArray>(array).value(row)),
        Cell::Int2 => text::put_int(out, value::<Int16Array>(array).value(row).into()),
        Cell::Int4 => text::put_int(out, value::<Int32Array>(array).value(row).into()),
        Cell::Int8 => text::put_int(out, value::<Int64Array>(array).value(row).into()),
        Cell::Oid => text::put_int(out, value::<UInt32Array>(array).value(row).into()),
        Cell::Float4 => text::put_float4(out, value::<Float32Array>(array).value(row), style.float_digits),
        Cell::Float8 => text::put_float8(out, value::<Float64Array>(array).value(row), style.float_digits),
        Cell::Numeric128(scale) => text::put_numeric(out, &unscaled(cell, array, row), *scale),
        Cell::Numeric256(scale) => text::put_numeric(out, &unscaled(cell, array, row), *scale),
        Cell::Text => out.put_slice(value::<StringArray>(array).value(row).as_bytes()),
        Cell::Bytea => text::put_bytea(out, array.as_binary::<i32>().value(row)),
        Cell::Date => text::put_date(out, value::<Date32Array>(array).value(row)),
        Cell::Timestamp => text::put_timestamp(out, value::<TimestampMicrosecondArray>(array).value(row)),
        Cell::TimestampTz => {
            text::put_timestamptz(out, value::<TimestampMicrosecondArray>(array).value(row), style.zone)
        }
        Cell::Time => text::put_time(out, value::<Time64MicrosecondArray>(array).value(row)),
        Cell::Interval => {
            let interval = value::<IntervalMonthDayNanoArray>(array).value(row);
            text::put_interval(out, interval.months, interval.days, interval.nanoseconds / 1_000);
        }
        Cell::Array(element, _) => {
            let list = value::<ListArray>(array).value(row);
            let mut scratch = BytesMut::new();
            out.put_u8(b'{');
            for i in 0..list.len() {
                if i > 0 {
                    out.put_u8(b',');
                }
                if list.is_null(i) {
                    out.put_slice(b"NULL");
                } else if matches!(**element, Cell::Array(..)) {
                    put_text(out, element, &list, i, style)?;
                } else {
                    scratch.clear();
                    put_text(&mut scratch, element, &list, i, style)?;
                    put_element(out, &scratch);
                }
            }
            out.put_u8(b'}');
        }
    }
    Ok(())
}

/// An array's element, quoted where Postgres quotes it.
fn put_element(out: &mut BytesMut, element: &[u8]) {
    let special = |b: &u8| b.is_ascii_whitespace() || matches!(b, b'{' | b'}' | b'"' | b',' | b'\\' | 0x0b);
    if !element.is_empty() && !element.eq_ignore_ascii_case(b"null") && !element.iter().any(special) {
        return out.put_slice(element);
    }
    out.put_u8(b'"');
    for byte in element {
        if matches!(byte, b'"' | b'\\') {
            out.put_u8(b'\\');
        }
        out.put_u8(*byte);
    }
    out.put_u8(b'"');
}

fn put_binary(out: &mut BytesMut, cell: &Cell, array: &dyn Array, row: usize) -> Result<(), PgError> {
    match cell {
        Cell::Bool => out.put_u8(u8::from(value::<BooleanArray>(array).value(row))),
        Cell::Int2 => out.put_i16(value::<Int16Array>(array).value(row)),
        Cell::Int4 => out.put_i32(value::<Int32Array>(array).value(row)),
        Cell::Int8 => out.put_i64(value::<Int64Array>(array).value(row)),
        Cell::Oid => out.put_u32(value::<UInt32Array>(array).value(row)),
        Cell::Float4 => out.put_f32(value::<Float32Array>(array).value(row)),
        Cell::Float8 => out.put_f64(value::<Float64Array>(array).value(row)),
        Cell::Numeric128(scale) => numeric::put(out, &unscaled(cell, array, row), *scale),
        Cell::Numeric256(scale) => numeric::put(out, &unscaled(cell, array, row), *scale),
        Cell::Text => out.put_slice(value::<StringArray>(array).value(row).as_bytes()),
        Cell::Bytea => out.put_slice(array.as_binary::<i32>().value(row)),
        Cell::Date => {
            let days = i64::from(value::<Date32Array>(array).value(row)) - POSTGRES_EPOCH_DAYS;
            out.put_i32(i32::try_from(days).map_err(|_| out_of_range("date"))?);
        }
        Cell::Timestamp | Cell::TimestampTz => {
            let micros = value::<TimestampMicrosecondArray>(array).value(row);
            let since_2000 = micros.checked_sub(POSTGRES_EPOCH_DAYS * MICROS_PER_DAY);
            out.put_i64(since_2000.ok_or_else(|| out_of_range("timestamp"))?);
        }
        Cell::Time => out.put_i64(value::<Time64MicrosecondArray>(array).value(row)),
        Cell::Interval => {
            let interval = value::<IntervalMonthDayNanoArray>(array).value(row);
            out.put_i64(interval.nanoseconds / 1_000);
            out.put_i32(interval.days);
            out.put_i32(interval.months);
        }
        Cell::Array(element, oid) => {
            if matches!(**element, Cell::Array(..)) {
                return Err(PgError::unsupported("arrays of arrays cannot be sent in binary format")
                    .hint("Ask for text format, or cast the column to text."));
            }
            let list = value::<ListArray>(array).value(row);
            let count = i32::try_from(list.len()).map_err(|_| out_of_range("array"))?;
            out.put_i32(i32::from(count > 0));
            out.put_i32(i32::from(list.null_count() > 0));
            out.put_u32(*oid);
            if count > 0 {
                out.put_i32(count);
                out.put_i32(1);
            }
            for i in 0..list.len() {
                if list.is_null(i) {
                    out.put_i32(-1);
                } else {
                    put_sized(out, |out| put_binary(out, element, &list, i))?;
                }
            }
        }
    }
    Ok(())
}

fn out_of_range(what: &str) -> PgError {
    PgError::new(code::DATETIME_FIELD_OVERFLOW, format!("{what} out of range"))
}

/// The digits of a decimal without its point.
fn unscaled(cell: &Cell, array: &dyn Array, row: usize) -> Cow<'static, str> {
    match cell {
        Cell::Numeric256(_) => value::<Decimal256Array>(array).value(row).to_string().into(),
        _ => value::<Decimal128Array>(array).value(row).to_string().into(),
    }
}

fn value<A: Array + 'static>(array: &dyn Array) -> &A {
    array.as_any().downcast_ref().expect("normalise() brought the array to its storage form")
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{
        BinaryArray, DictionaryArray, Int32Builder, ListBuilder, StringBuilder, StringViewArray,
        TimestampNanosecondArray, UInt64Array,
    };
    use arrow::datatypes::{Int32Type, IntervalMonthDayNano};

    /// Every value of the array in both formats: `text | hex of binary`, one a line.
    fn check(array: impl Array + 'static, pg_type: &str, expected: &[&str]) {
        let pg_type = PgType::by_name(pg_type).expect("a type of types.txt");
        let array: ArrayRef = Arc::new(array);
        let (name, data_type) = ("c".to_string(), array.data_type().clone());
        let column = PgColumn { name, pg_type, modifier: -1, data_type };
        let batch = RecordBatch::try_from_iter([("c", Arc::clone(&array))]).expect("one column makes a batch");
        let written = |format, row| {
            let encoder = RowEncoder::new(std::slice::from_ref(&column), &[format], TextStyle::default())?;
            let mut out = BytesMut::new();
            encoder.batch(&batch)?.put(row, &mut out)?;
            Ok::<_, PgError>(out)
        };
        for (row, expected) in expected.iter().enumerate() {
            let text = written(Format::Text, row).expect("text");
            let binary = written(Format::Binary, row).expect("binary");
            if array.is_null(row) {
                assert_eq!((&text[..], &binary[..], *expected), (&[255; 4][..], &[255; 4][..], "NULL"));
                continue;
            }
            let hex: String = binary[4..].iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(format!("{} | {hex}", String::from_utf8_lossy(&text[4..])), *expected);
            assert_eq!(text[..4], ((text.len() - 4) as i32).to_be_bytes());
        }
    }

    #[test]
    fn scalars() {
        check(BooleanArray::from(vec![Some(true), None]), "bool", &["t | 01", "NULL"]);
        check(Int16Array::from(vec![-2]), "int2", &["-2 | fffe"]);
        check(Int64Array::from(vec![i64::MIN]), "int8", &["-9223372036854775808 | 8000000000000000"]);
        check(UInt64Array::from(vec![7]), "int8", &["7 | 0000000000000007"]);
        check(Int64Array::from(vec![4_294_967_295]), "oid", &["4294967295 | ffffffff"]);
        let floats = Float64Array::from(vec![1.5, f64::INFINITY]);
        check(floats, "float8", &["1.5 | 3ff8000000000000", "Infinity | 7ff0000000000000"]);
        let decimal = Decimal128Array::from(vec![-150]).with_precision_and_scale(38, 2).expect("a valid type");
        check(decimal, "numeric", &["-1.50 | 000200004000000200011388"]);
        check(BinaryArray::from(vec![&b"a\0"[..]]), "bytea", &["\\x6100 | 6100"]);
        check(StringViewArray::from(vec![Some("ä"), None]), "text", &["ä | c3a4", "NULL"]);
        let dictionary: DictionaryArray<Int32Type> = vec!["x", "x"].into_iter().collect();
        check(dictionary, "text", &["x | 78", "x | 78"]);
        check(Date32Array::from(vec![10_958]), "date", &["2000-01-02 | 00000001"]);
        let nanos = TimestampNanosecondArray::from(vec![946_684_800_000_001_999]);
        check(nanos, "timestamp", &["2000-01-01 00:00:00.000001 | 0000000000000001"]);
        let zoned = TimestampMicrosecondArray::from(vec![0]).with_timezone("UTC");
        check(zoned, "timestamptz", &["1970-01-01 00:00:00+00 | fffca2fec4c82000"]);
        check(Time64MicrosecondArray::from(vec![1]), "time", &["00:00:00.000001 | 0000000000000001"]);
        let interval = IntervalMonthDayNanoArray::from(vec![IntervalMonthDayNano::new(1, 2, 3_000)]);
        check(interval, "interval", &["1 mon 2 days 00:00:00.000003 | 00000000000000030000000200000001"]);
    }

    #[test]
    fn arrays() {
        let mut ints = ListBuilder::new(Int32Builder::new());
        ints.append_value([Some(1), None]);
        ints.append_value([]);
        check(
            ints.finish(),
            "_int4",
            &[
                "{1,NULL} | 00000001000000010000001700000002000000010000000400000001ffffffff",
                "{} | 000000000000000000000017",
            ],
        );
        let mut texts = ListBuilder::new(StringBuilder::new());
        texts.append_value([Some("a b"), Some(""), Some("null"), Some("q\"\\")]);
        check(
            texts.finish(),
            "_text",
            &["{\"a b\",\"\",\"null\",\"q\\\"\\\\\"} | \
             0000000100000000000000190000000400000001000000036120620000000000000004\
             6e756c6c0000000371225c"],
        );
    }

    #[test]
    fn a_value_that_does_not_fit_is_an_error() {
        let array: ArrayRef = Arc::new(UInt64Array::from(vec![u64::MAX]));
        let batch = RecordBatch::try_from_iter([("c", array)]).expect("one column makes a batch");
        let columns = PgColumn::all(&batch.schema());
        let encoder = RowEncoder::new(&columns, &[Format::Text], TextStyle::default()).expect("a known type");
        let error = encoder.batch(&batch).err().expect("no bigint holds it");
        assert_eq!(error.to_string(), "a value is out of range for type bigint (22003)");
    }
}
