//! One field of a generated row.

use std::collections::BTreeMap;

use arrow::datatypes::DataType;

use crate::connector::error::{ConnectorError, nearest};
use crate::connector::json::ColumnSpec;
use crate::connector::random::{Random, Zipf};
use crate::connector::text::{push_date, push_decimal, push_i64, push_time};

/// A column and how its values are made.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Field {
    /// `"name":`, escaped.
    name: Vec<u8>,
    seed: u64,
    maker: Maker,
}

#[derive(Debug, Clone, PartialEq)]
enum Maker {
    Boolean,
    /// Fixed-point numbers: integers at scale 0. Inclusive bounds.
    Random {
        min: i128,
        max: i128,
        scale: u32,
    },
    Sequence {
        start: i128,
        end: i128,
        scale: u32,
    },
    ZipfNumber {
        min: i128,
        zipf: Zipf,
    },
    Float {
        min: f64,
        max: f64,
    },
    Text {
        length: usize,
    },
    Hex {
        length: usize,
    },
    OneOf {
        values: Vec<Vec<u8>>,
        zipf: Option<Zipf>,
    },
    /// The row's time, less up to `max_past_us`.
    Time {
        form: TimeForm,
        max_past_us: u64,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TimeForm {
    Timestamp,
    Date,
    Time,
}

const MICROS_PER_DAY: i64 = 86_400_000_000;
const ALPHABET: &[u8; 64] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZab";

impl Field {
    /// `options` are those of this column, without the prefix. Every one of them must mean something for its type and kind.
    pub fn parse(column: &ColumnSpec, options: BTreeMap<&str, &str>, seed: u64) -> Result<Field, ConnectorError> {
        let mut options = Options { column: &column.name, left: options, asked: Vec::new() };
        let kind = options.take("kind").unwrap_or("random").to_ascii_lowercase();
        let seed = match options.number::<u64>("seed")? {
            Some(seed) => seed,
            None => column.name.bytes().fold(seed, |s, b| s.wrapping_mul(0x0100_0000_01b3) ^ u64::from(b)),
        };
        let maker = Maker::parse(&column.data_type, &kind, &mut options)?;
        options.finish()?;
        let mut name = serde_json::to_vec(&column.name).expect("a string is JSON");
        name.push(b':');
        Ok(Field { name, seed, maker })
    }

    /// Appends `"name":value` of row `row`, whose time is `time_us`.
    pub fn write(&self, out: &mut Vec<u8>, row: u64, time_us: i64) {
        out.extend_from_slice(&self.name);
        let mut random = Random::at(self.seed, row);
        match &self.maker {
            Maker::Boolean => out.extend_from_slice(if random.below(2) == 0 { b"false" } else { b"true" }),
            Maker::Random { min, max, scale } => {
                let span = (max - min) as u128 + 1;
                let offset = match u64::try_from(span) {
                    Ok(span) => u128::from(random.below(span)),
                    Err(_) => (u128::from(random.next_u64()) << 64 | u128::from(random.next_u64())) % span,
                };
                push_number(out, min + offset as i128, *scale);
            }
            Maker::Sequence { start, end, scale } => {
                let unit = 10i128.pow(*scale);
                let count = (end - start) / unit + 1;
                push_number(out, start + i128::from(row) % count * unit, *scale);
            }
            Maker::ZipfNumber { min, zipf } => push_number(out, min + i128::from(zipf.rank(&mut random)) - 1, 0),
            Maker::Float { min, max } => {
                let value = min + random.unit() * (max - min);
                serde_json::to_writer(&mut *out, &value).expect("a finite number is JSON");
            }
            Maker::Text { length } => {
                out.push(b'"');
                out.extend((0..*length).map(|_| ALPHABET[random.below(62) as usize]));
                out.push(b'"');
            }
            Maker::Hex { length } => {
                out.extend_from_slice(b"\"\\\\x");
                out.extend((0..2 * *length).map(|_| ALPHABET[random.below(16) as usize]));
                out.push(b'"');
            }
            Maker::OneOf { values, zipf } => {
                let index = match zipf {
                    Some(zipf) => zipf.rank(&mut random) as usize - 1,
                    None => random.below(values.len() as u64) as usize,
                };
                out.extend_from_slice(&values[index]);
            }
            Maker::Time { form, max_past_us } => {
                let us = time_us - random.below(max_past_us + 1) as i64;
                out.push(b'"');
                if *form != TimeForm::Time {
                    push_date(out, us.div_euclid(MICROS_PER_DAY));
                }
                if *form == TimeForm::Timestamp {
                    out.push(b'T');
                }
                if *form != TimeForm::Date {
                    push_time(out, us.rem_euclid(MICROS_PER_DAY));
                }
                if *form == TimeForm::Timestamp {
                    out.push(b'Z');
                }
                out.push(b'"');
            }
        }
    }
}

impl Maker {
    fn parse(data_type: &DataType, kind: &str, options: &mut Options<'_>) -> Result<Maker, ConnectorError> {
        match (data_type, kind) {
            (DataType::Boolean, "random") => Ok(Maker::Boolean),
            (DataType::Int16, _) => Maker::integer(kind, i16::MAX.into(), options),
            (DataType::Int32, _) => Maker::integer(kind, i32::MAX.into(), options),
            (DataType::Int64, _) => Maker::integer(kind, i64::MAX.into(), options),
            (DataType::Float32 | DataType::Float64, "random") => {
                let (min, max) = (options.float("min", 0.0)?, options.float("max", 1000.0)?);
                options.in_order("max", min <= max)?;
                Ok(Maker::Float { min, max })
            }
            (DataType::Float32 | DataType::Float64, "sequence") => Maker::sequence(6, 1 << 50, options),
            (DataType::Decimal128(precision, scale), "random" | "sequence") => {
                let scale = u32::try_from(*scale).unwrap_or(0);
                let most = 10i128.pow(u32::from(*precision)) - 1;
                if kind == "sequence" {
                    Maker::sequence(scale, most, options)
                } else {
                    Maker::random(scale, most, options)
                }
            }
            (DataType::Utf8, "random" | "zipf") => match options.take("values") {
                Some(values) => {
                    let values: Vec<Vec<u8>> = values
                        .split(',')
                        .map(|value| serde_json::to_vec(value.trim()).expect("a string is JSON"))
                        .collect();
                    let exponent = if kind == "zipf" { Some(options.exponent()?) } else { None };
                    let zipf = exponent.map(|s| Zipf::new(values.len() as u64, s));
                    Ok(Maker::OneOf { values, zipf })
                }
                None if kind == "zipf" => Err(options.invalid("kind", "zipf for text needs values = 'a,b,c'".into())),
                None => Ok(Maker::Text { length: options.length()? }),
            },
            (DataType::Binary, "random") => Ok(Maker::Hex { length: options.length()? }),
            (DataType::Timestamp(..) | DataType::Date32 | DataType::Time64(_), "random") => {
                let form = match data_type {
                    DataType::Date32 => TimeForm::Date,
                    DataType::Time64(_) => TimeForm::Time,
                    _ => TimeForm::Timestamp,
                };
                Ok(Maker::Time { form, max_past_us: options.duration_us("max_past")? })
            }
            (_, "random" | "sequence" | "zipf") => {
                Err(options.invalid("kind", format!("'{kind}' does not go with the type of this column")))
            }
            (_, other) => Err(options.invalid("kind", format!("'{other}' is none of random, sequence, zipf"))),
        }
    }

    fn integer(kind: &str, most: i128, options: &mut Options<'_>) -> Result<Maker, ConnectorError> {
        match kind {
            "random" => Maker::random(0, most, options),
            "sequence" => Maker::sequence(0, most, options),
            "zipf" => {
                let Maker::Random { min, max, .. } = Maker::random(0, most, options)? else {
                    unreachable!("random makes Random")
                };
                let ranks = u64::try_from(max - min + 1).unwrap_or(u64::MAX);
                Ok(Maker::ZipfNumber { min, zipf: Zipf::new(ranks, options.exponent()?) })
            }
            other => Err(options.invalid("kind", format!("'{other}' is none of random, sequence, zipf"))),
        }
    }

    fn random(scale: u32, most: i128, options: &mut Options<'_>) -> Result<Maker, ConnectorError> {
        let default_max = (1000 * 10i128.pow(scale)).min(most);
        let min = options.fixed("min", scale, most)?.unwrap_or(0);
        let max = options.fixed("max", scale, most)?.unwrap_or(default_max.max(min));
        options.in_order("max", min <= max)?;
        Ok(Maker::Random { min, max, scale })
    }

    fn sequence(scale: u32, most: i128, options: &mut Options<'_>) -> Result<Maker, ConnectorError> {
        let start = options.fixed("start", scale, most)?.unwrap_or(0);
        let end = options.fixed("end", scale, most)?.unwrap_or(most);
        options.in_order("end", start <= end)?;
        Ok(Maker::Sequence { start, end, scale })
    }
}

fn push_number(out: &mut Vec<u8>, value: i128, scale: u32) {
    match i64::try_from(value) {
        Ok(value) if scale == 0 => push_i64(out, value),
        _ => push_decimal(out, value, scale),
    }
}

/// The options of one column, taken one by one; what is left at the end is unknown.
struct Options<'a> {
    column: &'a str,
    left: BTreeMap<&'a str, &'a str>,
    asked: Vec<&'static str>,
}

impl<'a> Options<'a> {
    fn take(&mut self, name: &'static str) -> Option<&'a str> {
        self.asked.push(name);
        self.left.remove(name).map(str::trim)
    }

    fn invalid(&self, name: &str, reason: String) -> ConnectorError {
        ConnectorError::InvalidOption { option: format!("fields.{}.{name}", self.column), reason }
    }

    fn number<T: std::str::FromStr>(&mut self, name: &'static str) -> Result<Option<T>, ConnectorError> {
        match self.take(name) {
            None => Ok(None),
            Some(text) => match text.parse() {
                Ok(value) => Ok(Some(value)),
                Err(_) => Err(self.invalid(name, format!("'{text}' is not such a number"))),
            },
        }
    }

    fn float(&mut self, name: &'static str, default: f64) -> Result<f64, ConnectorError> {
        match self.number::<f64>(name)?.unwrap_or(default) {
            value if value.is_finite() => Ok(value),
            value => Err(self.invalid(name, format!("{value} is not finite"))),
        }
    }

    /// A number at `scale`, at most `most` from zero.
    fn fixed(&mut self, name: &'static str, scale: u32, most: i128) -> Result<Option<i128>, ConnectorError> {
        let Some(text) = self.take(name) else { return Ok(None) };
        let refuse = || self.invalid(name, format!("'{text}' is not a number that the column can hold"));
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        if fraction.len() > scale as usize || !fraction.bytes().all(|b| b.is_ascii_digit()) {
            return Err(refuse());
        }
        let padded = format!("{whole}{fraction:0<width$}", width = scale as usize);
        match padded.parse::<i128>() {
            Ok(value) if value.abs() <= most => Ok(Some(value)),
            _ => Err(refuse()),
        }
    }

    fn exponent(&mut self) -> Result<f64, ConnectorError> {
        match self.float("exponent", 1.0)? {
            s if s > 0.0 && s <= 10.0 => Ok(s),
            s => Err(self.invalid("exponent", format!("{s} is not above 0 and at most 10"))),
        }
    }

    fn length(&mut self) -> Result<usize, ConnectorError> {
        match self.number::<usize>("length")?.unwrap_or(10) {
            length if length <= 1 << 20 => Ok(length),
            length => Err(self.invalid("length", format!("{length} is more than 1048576"))),
        }
    }

    /// `90s`, `2h 30min`: numbers with units ms, s, min (m), h, d, added up.
    fn duration_us(&mut self, name: &'static str) -> Result<u64, ConnectorError> {
        let Some(text) = self.take(name) else { return Ok(0) };
        let parts = text.split_whitespace().map(|part| {
            let digits = part.bytes().take_while(u8::is_ascii_digit).count();
            let unit_us = match &part[digits..] {
                "ms" => 1_000,
                "s" | "sec" => 1_000_000,
                "m" | "min" => 60_000_000,
                "h" | "hour" | "hours" => 3_600_000_000,
                "d" | "day" | "days" => 86_400_000_000,
                _ => return None,
            };
            part[..digits].parse::<u64>().ok()?.checked_mul(unit_us)
        });
        let sum = parts.into_iter().try_fold(0u64, |sum, part| sum.checked_add(part?));
        match sum {
            Some(us) if us <= 100 * 365 * MICROS_PER_DAY as u64 => Ok(us),
            _ => Err(self.invalid(name, format!("'{text}' is not a duration such as '90s' or '2h 30min'"))),
        }
    }

    fn in_order(&self, name: &str, ordered: bool) -> Result<(), ConnectorError> {
        if ordered { Ok(()) } else { Err(self.invalid(name, "it is below the lower bound".into())) }
    }

    fn finish(self) -> Result<(), ConnectorError> {
        let Some(name) = self.left.keys().next() else { return Ok(()) };
        let option = |name: &str| format!("fields.{}.{name}", self.column);
        let nearest = nearest(name, self.asked.iter().copied()).map(|name| option(&name));
        Err(ConnectorError::UnknownOption { option: option(name), nearest })
    }
}
