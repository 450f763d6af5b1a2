//! Values in Postgres' binary form → the text that Postgres would send for them: so that one expected result serves both
//! protocols, and the binary encodings are tested by every query.

use std::error::Error;
use std::fmt::Write;

use chrono::{DateTime, Datelike, Duration, NaiveDate, NaiveDateTime};
use tokio_postgres::types::{FromSql, Type};

pub struct Text(pub String);

type Fallible<T> = Result<T, Box<dyn Error + Sync + Send>>;

impl<'a> FromSql<'a> for Text {
    fn from_sql(kind: &Type, raw: &'a [u8]) -> Fallible<Text> {
        Ok(Text(match *kind {
            Type::BOOL => if bool::from_sql(kind, raw)? { "t" } else { "f" }.to_string(),
            Type::INT2 => i16::from_sql(kind, raw)?.to_string(),
            Type::INT4 => i32::from_sql(kind, raw)?.to_string(),
            Type::INT8 => i64::from_sql(kind, raw)?.to_string(),
            Type::OID => u32::from_sql(kind, raw)?.to_string(),
            Type::CHAR => char::from(raw.first().copied().unwrap_or_default()).to_string(),
            Type::FLOAT4 => float(&format!("{:e}", f32::from_sql(kind, raw)?), 6),
            Type::FLOAT8 => float(&format!("{:e}", f64::from_sql(kind, raw)?), 15),
            Type::NUMERIC => numeric(raw)?,
            Type::BYTEA => raw.iter().fold(String::from("\\x"), |mut text, byte| {
                let _infallible = write!(text, "{byte:02x}");
                text
            }),
            Type::DATE => {
                let days = i32::from_be_bytes(raw.try_into()?);
                of_era(epoch().date() + Duration::days(days.into()), "")
            }
            Type::TIME => {
                let time = epoch() + Duration::microseconds(i64::from_be_bytes(raw.try_into()?));
                time.format("%H:%M:%S").to_string() + &fraction(time.and_utc().timestamp_subsec_micros())
            }
            Type::TIMESTAMP => timestamp(raw, "")?,
            Type::TIMESTAMPTZ => timestamp(raw, "+00")?,
            Type::INTERVAL => interval(raw)?,
            _ => String::from_utf8(raw.to_vec())?,
        }))
    }

    fn accepts(_kind: &Type) -> bool {
        true
    }
}

/// The shortest digits that mean the number, with an exponent if it is below -4 or has more places than the type is sure of.
fn float(scientific: &str, places: i32) -> String {
    let Some((digits, exponent)) = scientific.split_once('e') else {
        return scientific.replace("inf", "Infinity");
    };
    let exponent: i32 = exponent.parse().expect("an exponent is a number");
    if !(-4..places).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let (sign, digits) = digits.strip_prefix('-').map_or(("", digits), |digits| ("-", digits));
    let digits = digits.replace('.', "");
    let text = match usize::try_from(exponent) {
        Ok(after) if digits.len() > after + 1 => format!("{}.{}", &digits[..=after], &digits[after + 1..]),
        Ok(after) => format!("{digits:0<width$}", width = after + 1),
        Err(_) => format!("0.{}{digits}", "0".repeat((-exponent - 1) as usize)),
    };
    format!("{sign}{text}")
}

/// Midnight of 2000-01-01, from which Postgres counts.
fn epoch() -> NaiveDateTime {
    NaiveDate::from_ymd_opt(2000, 1, 1).and_then(|day| day.and_hms_opt(0, 0, 0)).expect("a date that exists")
}

fn timestamp(raw: &[u8], zone: &str) -> Fallible<String> {
    let micros = i64::from_be_bytes(raw.try_into()?) + epoch().and_utc().timestamp_micros();
    let time = DateTime::from_timestamp_micros(micros).ok_or("a timestamp out of range")?;
    let clock = time.format("%H:%M:%S").to_string() + &fraction(time.timestamp_subsec_micros());
    Ok(of_era(time.date_naive(), &format!(" {clock}{zone}")))
}

/// A date and what stands behind it; before the year 1 the era comes last.
fn of_era(day: NaiveDate, rest: &str) -> String {
    let (is_ad, year) = day.year_ce();
    let (month, day) = (day.month(), day.day());
    format!("{year:04}-{month:02}-{day:02}{rest}{}", if is_ad { "" } else { " BC" })
}

/// `.5` for 500000, nothing for 0.
fn fraction(micros: u32) -> String {
    if micros == 0 { String::new() } else { format!(".{micros:06}").trim_end_matches('0').to_string() }
}

/// `1 mon 2 days 03:04:05`.
fn interval(raw: &[u8]) -> Fallible<String> {
    let micros = i64::from_be_bytes(raw[..8].try_into()?);
    let days = i32::from_be_bytes(raw[8..12].try_into()?);
    let months = i32::from_be_bytes(raw[12..16].try_into()?);
    let mut parts = Vec::new();
    for (count, one, many) in [(months / 12, "year", "years"), (months % 12, "mon", "mons"), (days, "day", "days")] {
        if count != 0 {
            parts.push(format!("{count} {}", if count == 1 { one } else { many }));
        }
    }
    if micros != 0 || parts.is_empty() {
        let (sign, all) = (if micros < 0 { "-" } else { "" }, micros.unsigned_abs());
        let (hours, minutes, seconds) = (all / 3_600_000_000, all / 60_000_000 % 60, all / 1_000_000 % 60);
        parts.push(format!("{sign}{hours:02}:{minutes:02}:{seconds:02}{}", fraction((all % 1_000_000) as u32)));
    }
    Ok(parts.join(" "))
}

/// Digits to the base 10 000, the weight of the first, sign, and how many decimals to show.
fn numeric(raw: &[u8]) -> Fallible<String> {
    let field = |i: usize| -> Fallible<i16> {
        Ok(i16::from_be_bytes(raw.get(i * 2..i * 2 + 2).ok_or("a short numeric")?.try_into()?))
    };
    let (count, weight, sign, scale) = (field(0)?, field(1)?, field(2)? as u16, field(3)?);
    match sign {
        0xC000 => return Ok("NaN".into()),
        0xD000 => return Ok("Infinity".into()),
        0xF000 => return Ok("-Infinity".into()),
        _ => {}
    }
    let digit = |place: i16| -> Fallible<i16> {
        let index = weight - place;
        if (0..count).contains(&index) { field(4 + index as usize) } else { Ok(0) }
    };
    let mut text = String::from(if sign == 0x4000 { "-" } else { "" });
    let mut whole = String::new();
    for place in (0..=weight.max(0)).rev() {
        write!(whole, "{:04}", digit(place)?)?;
    }
    let whole = whole.trim_start_matches('0');
    text.push_str(if whole.is_empty() { "0" } else { whole });
    if scale > 0 {
        let mut decimals = String::new();
        for place in 1..=(scale + 3) / 4 {
            write!(decimals, "{:04}", digit(-place)?)?;
        }
        decimals.truncate(scale as usize);
        text.push('.');
        text.push_str(&decimals);
    }
    Ok(text)
}
