//! Deltas as text, for tests.
//!
//! ```text
//! ad:i country:s at:t
//! +    1 DE 00:00:05
//! -    7 .  00:00:05
//! +3   1 "a b" 90000.5
//! ```
//!
//! The first line gives name and type of each column (`i` alone is a column without a name of its own); each other line is
//! a weight and a row, `.` is NULL. Types: `i` BIGINT, `j` INT, `h` SMALLINT, `f` DOUBLE, `b` BOOLEAN, `s` VARCHAR,
//! `d` NUMERIC(38,10), `t` TIMESTAMPTZ, `n` TIMESTAMP, `D` DATE. Times are seconds since the epoch, or HH:MM:SS of its
//! first day; dates are days since the epoch.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int16Array, Int32Array,
    Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Field, Float64Type, Int16Type, Int32Type, Int64Type, Schema, SchemaRef,
    TimeUnit, TimestampMicrosecondType, UInt64Type,
};

use super::Delta;
use super::rows::{RowCodec, batch_of};

/// Weights are left out where every row is added once, as on an append-only stream.
pub fn parse(text: &str) -> Delta {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let schema = parse_schema(lines.next().expect("a header"));
    let mut weights = Vec::new();
    let mut cells: Vec<Vec<Option<String>>> = vec![Vec::new(); schema.fields().len()];
    for line in lines {
        let mut words = words(line).into_iter();
        let weight = words.next().flatten().expect("a weight");
        weights.push(match weight.as_str() {
            "+" => 1,
            "-" => -1,
            other => other.parse().unwrap_or_else(|_| panic!("not a weight: {other} in {line}")),
        });
        for column in &mut cells {
            column.push(words.next().unwrap_or_else(|| panic!("too few values: {line}")));
        }
        assert!(words.next().is_none(), "too many values: {line}");
    }
    let columns = schema.fields().iter().zip(cells).map(|(field, cells)| build(field.data_type(), cells)).collect();
    let rows = batch_of(&schema, columns, weights.len()).expect("columns of the header's types");
    if weights.iter().all(|&weight| weight == 1) { Delta::inserts(rows) } else { Delta::weighted(rows, weights) }
}

/// A header line alone.
pub fn parse_schema(header: &str) -> SchemaRef {
    let field = |(i, word): (usize, &str)| {
        let (name, kind) =
            word.split_once(':').map_or((format!("c{i}"), word), |(name, kind)| (name.to_string(), kind));
        let data_type = match kind {
            "i" => DataType::Int64,
            "j" => DataType::Int32,
            "h" => DataType::Int16,
            "f" => DataType::Float64,
            "b" => DataType::Boolean,
            "s" => DataType::Utf8,
            "d" => DataType::Decimal128(38, 10),
            "t" => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            "n" => DataType::Timestamp(TimeUnit::Microsecond, None),
            "D" => DataType::Date32,
            other => panic!("no such type in delta notation: {other}"),
        };
        Field::new(name, data_type, true)
    };
    Arc::new(Schema::new(header.split_whitespace().enumerate().map(field).collect::<Vec<_>>()))
}

/// The delta's one canonical form: equal rows as one line, lines sorted by the row, nothing where the weights cancel.
pub fn print(delta: &Delta) -> String {
    let codec = RowCodec::whole(&delta.rows.schema()).expect("types that sort");
    let rows = codec.encode(&delta.rows).expect("types that sort");
    let mut order: Vec<usize> = (0..delta.num_rows()).collect();
    order.sort_by(|&a, &b| rows.row(a).cmp(&rows.row(b)));
    let mut lines = Vec::new();
    for equal in order.chunk_by(|&a, &b| rows.row(a) == rows.row(b)) {
        let weight: i64 = equal.iter().map(|&row| delta.weight(row)).sum();
        let values: Vec<String> = delta.rows.columns().iter().map(|column| show(column, equal[0])).collect();
        match weight {
            0 => continue,
            1 => lines.push(format!("+ {}", values.join(" "))),
            -1 => lines.push(format!("- {}", values.join(" "))),
            _ => lines.push(format!("{weight:+} {}", values.join(" "))),
        }
    }
    lines.join("\n")
}

/// The rows of a snapshot in [`print()`]'s form.
pub fn print_rows(schema: &SchemaRef, batches: &[RecordBatch]) -> String {
    let rows = arrow::compute::concat_batches(schema, batches).expect("batches of one schema");
    print(&Delta::inserts(rows))
}

/// Words between blanks; `"..."` is one word, `.` is NULL.
fn words(line: &str) -> Vec<Option<String>> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() {
        if let Some(quoted) = rest.strip_prefix('"') {
            let (word, after) = quoted.split_once('"').unwrap_or_else(|| panic!("no closing quote: {line}"));
            words.push(Some(word.to_string()));
            rest = after.trim_start();
        } else {
            let (word, after) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            words.push((word != ".").then(|| word.to_string()));
            rest = after.trim_start();
        }
    }
    words
}

fn build(data_type: &DataType, cells: Vec<Option<String>>) -> ArrayRef {
    fn each<T>(cells: Vec<Option<String>>, parse: impl Fn(&str) -> Option<T>) -> Vec<Option<T>> {
        let one = |cell: String| parse(&cell).unwrap_or_else(|| panic!("not a value of its column: {cell}"));
        cells.into_iter().map(|cell| cell.map(one)).collect()
    }
    match data_type {
        DataType::Int64 => Arc::new(Int64Array::from(each(cells, |c| c.parse().ok()))),
        DataType::Int32 => Arc::new(Int32Array::from(each(cells, |c| c.parse().ok()))),
        DataType::Int16 => Arc::new(Int16Array::from(each(cells, |c| c.parse().ok()))),
        DataType::Float64 => Arc::new(Float64Array::from(each(cells, |c| c.parse().ok()))),
        DataType::Boolean => Arc::new(BooleanArray::from(each(cells, |c| match c {
            "t" | "true" => Some(true),
            "f" | "false" => Some(false),
            _ => None,
        }))),
        DataType::Utf8 => Arc::new(StringArray::from(cells)),
        DataType::Date32 => Arc::new(Date32Array::from(each(cells, |c| c.parse().ok()))),
        DataType::Decimal128(precision, scale) => Arc::new(
            Decimal128Array::from(each(cells, |c| parse_fixed(c, *scale as usize)))
                .with_precision_and_scale(*precision, *scale)
                .expect("the notation's own decimal"),
        ),
        DataType::Timestamp(_, zone) => {
            Arc::new(TimestampMicrosecondArray::from(each(cells, parse_time_us)).with_timezone_opt(zone.clone()))
        }
        other => panic!("no such type in delta notation: {other}"),
    }
}

fn parse_time_us(text: &str) -> Option<i64> {
    let Some((hours, rest)) = text.split_once(':') else {
        return parse_fixed(text, 6).and_then(|us| i64::try_from(us).ok());
    };
    let (minutes, seconds) = rest.split_once(':')?;
    let whole: i64 = hours.parse::<i64>().ok()? * 3600 + minutes.parse::<i64>().ok()? * 60;
    Some(whole * 1_000_000 + i64::try_from(parse_fixed(seconds, 6)?).ok()?)
}

fn parse_fixed(text: &str, scale: usize) -> Option<i128> {
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |digits| (true, digits));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let value: i128 =
        (fraction.len() <= scale).then(|| format!("{whole}{fraction:0<scale$}").parse().ok()).flatten()?;
    Some(if negative { -value } else { value })
}

fn show_fixed(value: i128, scale: usize) -> String {
    let digits = format!("{:0>width$}", value.unsigned_abs(), width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    let fraction = fraction.trim_end_matches('0');
    let point = if fraction.is_empty() { "" } else { "." };
    format!("{}{whole}{point}{fraction}", if value < 0 { "-" } else { "" })
}

fn show_time_us(us: i64) -> String {
    if !(0..86_400_000_000).contains(&us) {
        return show_fixed(i128::from(us), 6);
    }
    let (hours, minutes, rest) = (us / 3_600_000_000, us / 60_000_000 % 60, us % 60_000_000);
    let seconds = show_fixed(i128::from(rest), 6);
    let zero = if rest < 10_000_000 { "0" } else { "" };
    format!("{hours:02}:{minutes:02}:{zero}{seconds}")
}

fn show(column: &ArrayRef, row: usize) -> String {
    if column.is_null(row) {
        return ".".to_string();
    }
    match column.data_type() {
        DataType::Int64 => column.as_primitive::<Int64Type>().value(row).to_string(),
        DataType::Int32 => column.as_primitive::<Int32Type>().value(row).to_string(),
        DataType::Int16 => column.as_primitive::<Int16Type>().value(row).to_string(),
        DataType::UInt64 => column.as_primitive::<UInt64Type>().value(row).to_string(),
        DataType::Float64 => column.as_primitive::<Float64Type>().value(row).to_string(),
        DataType::Boolean => if column.as_boolean().value(row) { "t" } else { "f" }.to_string(),
        DataType::Date32 => column.as_primitive::<Date32Type>().value(row).to_string(),
        DataType::Decimal128(_, scale) => {
            show_fixed(column.as_primitive::<Decimal128Type>().value(row), *scale as usize)
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            show_time_us(column.as_primitive::<TimestampMicrosecondType>().value(row))
        }
        DataType::Utf8 => match column.as_string::<i32>().value(row) {
            plain if !plain.is_empty() && plain != "." && !plain.contains(char::is_whitespace) => plain.to_string(),
            quoted => format!("\"{quoted}\""),
        },
        other => panic!("no such type in delta notation: {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printing_sorts_adds_up_and_reads_back() {
        let text = "k:i j h x:f b s d t n D
            + 2 . . . . . . . . .
            - 1 1 -1 1.5 t a -1.5 00:00:05 90000.25 3
            -2 1 1 -1 1.5 t a -1.5 5 90000.25 3
            + 1 1 -1 1.5 f \"\" 0.0000000001 23:59:59.5 -1 -3
            + 7 7 7 7 t \"a b\" 7 7 7 7
            - 7 7 7 7 t \"a b\" 7 7 7 7";
        let printed = print(&parse(text));
        insta::assert_snapshot!(printed, @r#"
        + 1 1 -1 1.5 f "" 0.0000000001 23:59:59.5 -1 -3
        -3 1 1 -1 1.5 t a -1.5 00:00:05 90000.25 3
        + 2 . . . . . . . . .
        "#);
        assert_eq!(print(&parse(&format!("k:i j h x:f b s d t n D\n{printed}"))), printed);
    }

    #[test]
    fn rows_added_once_need_no_weights() {
        assert!(parse("i\n+ 1\n+ 1").weights.is_none());
        assert_eq!(parse("i\n+ 1\n-3 2").weights, Some(vec![1, -3]));
    }
}
