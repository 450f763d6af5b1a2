//! Lengths of time as text → microseconds.

use super::SqlError;

const SECOND: i128 = 1_000_000;
const MINUTE: i128 = 60 * SECOND;
const HOUR: i128 = 60 * MINUTE;
const DAY: i128 = 24 * HOUR;

/// An interval in Postgres' words (`10 seconds`, `1 minute 30 seconds`, `1h`, `00:01:00`, `P1DT2H`, a bare number of
/// seconds, `... ago`) as microseconds. A day is 24 hours. Months and longer have no fixed length: an error, as is whatever
/// does not fit 64 bits.
pub fn interval_us(text: &str) -> Result<i64, SqlError> {
    let invalid = || SqlError::value(format!("invalid input syntax for type interval: \"{text}\""));
    let lower = text.trim().to_ascii_lowercase();
    let micros = if let Some(iso) = lower.strip_prefix('p') { iso_us(iso) } else { words_us(&lower) };
    let micros = match micros {
        Ok(micros) => micros,
        Err(Fault::Invalid) => return Err(invalid()),
        Err(Fault::Calendar(unit)) => {
            return Err(SqlError::value(format!("an interval of {unit} has no fixed length here: \"{text}\""))
                .with_hint("write it in days, such as '30 days'"));
        }
    };
    i64::try_from(micros).map_err(|_| SqlError::value(format!("interval out of range: \"{text}\"")))
}

enum Fault {
    Invalid,
    Calendar(&'static str),
}

/// `1 day 02:03:04.5`, `1h30m`, `-5 seconds`, `2 days ago`.
fn words_us(text: &str) -> Result<i128, Fault> {
    let (text, ago) = match text.strip_suffix("ago") {
        Some(rest) => (rest.trim_end(), true),
        None => (text, false),
    };
    let mut rest = text.trim_start();
    if rest.is_empty() {
        return Err(Fault::Invalid);
    }
    let mut total = 0i128;
    while !rest.is_empty() {
        let (negative, unsigned) = sign(rest);
        let (number, after) = split_at(unsigned, |c| c.is_ascii_digit() || c == '.' || c == ':');
        let amount = if number.contains(':') {
            rest = after.trim_start();
            clock_us(number)?
        } else {
            let (unit, after) = split_at(after.trim_start(), |c| c.is_ascii_alphabetic() || c == 'µ');
            rest = after.trim_start();
            decimal_us(number, unit_us(unit)?)?
        };
        total = total.checked_add(if negative { -amount } else { amount }).ok_or(Fault::Invalid)?;
    }
    Ok(if ago { -total } else { total })
}

/// What follows the `P` of ISO 8601: `1DT2H3M4.5S`, in lower case.
fn iso_us(text: &str) -> Result<i128, Fault> {
    let (mut rest, mut in_time, mut total) = (text, false, 0i128);
    if rest.is_empty() || rest == "t" {
        return Err(Fault::Invalid);
    }
    while !rest.is_empty() {
        if let (false, Some(after)) = (in_time, rest.strip_prefix('t')) {
            (rest, in_time) = (after, true);
            continue;
        }
        let (negative, unsigned) = sign(rest);
        let (number, after) = split_at(unsigned, |c| c.is_ascii_digit() || c == '.');
        let mut chars = after.chars();
        let unit = match (chars.next(), in_time) {
            (Some('w'), false) => 7 * DAY,
            (Some('d'), false) => DAY,
            (Some('h'), true) => HOUR,
            (Some('m'), true) => MINUTE,
            (Some('s'), true) => SECOND,
            (Some('y'), false) => return Err(Fault::Calendar("years")),
            (Some('m'), false) => return Err(Fault::Calendar("months")),
            _ => return Err(Fault::Invalid),
        };
        rest = chars.as_str();
        let amount = decimal_us(number, unit)?;
        total = total.checked_add(if negative { -amount } else { amount }).ok_or(Fault::Invalid)?;
    }
    Ok(total)
}

fn sign(text: &str) -> (bool, &str) {
    match text.strip_prefix('-') {
        Some(rest) => (true, rest.trim_start()),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    }
}

fn split_at(text: &str, belongs: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !belongs(c)).unwrap_or(text.len()))
}

/// `hh:mm` or `hh:mm:ss[.fraction]`; hours may exceed 23.
fn clock_us(text: &str) -> Result<i128, Fault> {
    let mut parts = text.split(':');
    let mut part = |unit: i128, below: Option<i128>| -> Result<i128, Fault> {
        let amount = decimal_us(parts.next().ok_or(Fault::Invalid)?, unit)?;
        if below.is_some_and(|below| amount >= below * unit) { Err(Fault::Invalid) } else { Ok(amount) }
    };
    let (hours, minutes) = (part(HOUR, None)?, part(MINUTE, Some(60))?);
    let seconds = if text.matches(':').count() == 2 { part(SECOND, Some(60))? } else { 0 };
    if parts.next().is_some() {
        return Err(Fault::Invalid);
    }
    Ok(hours + minutes + seconds)
}

/// A decimal number of units, rounded to the microsecond.
fn decimal_us(number: &str, unit: i128) -> Result<i128, Fault> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Fault::Invalid);
    }
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| Fault::Invalid)? };
    // Twelve digits settle the microsecond of any unit up to a week; with them the product stays far below 2^127.
    let digits = fraction.get(..12).unwrap_or(fraction);
    let scale = 10i128.pow(digits.len() as u32);
    let part: i128 = if digits.is_empty() { 0 } else { digits.parse().map_err(|_| Fault::Invalid)? };
    let whole = whole.checked_mul(unit).ok_or(Fault::Invalid)?;
    whole.checked_add((part * unit + scale / 2) / scale).ok_or(Fault::Invalid)
}

fn unit_us(unit: &str) -> Result<i128, Fault> {
    Ok(match unit {
        "us" | "µs" | "usec" | "usecs" | "usecond" | "useconds" | "microsecond" | "microseconds" => 1,
        "ms" | "msec" | "msecs" | "msecond" | "mseconds" | "millisecond" | "milliseconds" => 1_000,
        "" | "s" | "sec" | "secs" | "second" | "seconds" => SECOND,
        "m" | "min" | "mins" | "minute" | "minutes" => MINUTE,
        "h" | "hr" | "hrs" | "hour" | "hours" => HOUR,
        "d" | "day" | "days" => DAY,
        "w" | "week" | "weeks" => 7 * DAY,
        "mon" | "mons" | "month" | "months" => return Err(Fault::Calendar("months")),
        "y" | "yr" | "yrs" | "year" | "years" => return Err(Fault::Calendar("years")),
        _ => return Err(Fault::Invalid),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let got = match interval_us(text) {
            Ok(micros) => micros.to_string(),
            Err(error) => error.to_string(),
        };
        assert_eq!(got, expected, "{text}");
    }

    #[test]
    fn lengths() {
        check("10 seconds", "10000000");
        check("1 minute 30 seconds", "90000000");
        check("1h", "3600000000");
        check("1h30m", "5400000000");
        check("00:01:00", "60000000");
        check("1 day 02:00:00.5", "93600500000");
        check("-00:00:01", "-1000000");
        check("2 DAYS", "172800000000");
        check("1.5 hours", "5400000000");
        check("0.0000015 s", "2");
        check("10", "10000000");
        check("3 days ago", "-259200000000");
        check("250ms", "250000");
        check("P1DT2H", "93600000000");
        check("PT0.5S", "500000");
        check("0", "0");
    }

    #[test]
    fn refusals() {
        check("", "invalid input syntax for type interval: \"\"");
        check("ago", "invalid input syntax for type interval: \"ago\"");
        check("ten seconds", "invalid input syntax for type interval: \"ten seconds\"");
        check("5 parsecs", "invalid input syntax for type interval: \"5 parsecs\"");
        check("1:2:3:4", "invalid input syntax for type interval: \"1:2:3:4\"");
        check("00:61", "invalid input syntax for type interval: \"00:61\"");
        check("1..2 s", "invalid input syntax for type interval: \"1..2 s\"");
        check("P", "invalid input syntax for type interval: \"P\"");
        check("99999999999 weeks", "interval out of range: \"99999999999 weeks\"");
        check(&"9".repeat(60), &format!("invalid input syntax for type interval: \"{}\"", "9".repeat(60)));
        check("1 month", "an interval of months has no fixed length here: \"1 month\"");
        check("P1Y", "an interval of years has no fixed length here: \"P1Y\"");
        assert_eq!(interval_us("1 year").unwrap_err().hint(), Some("Write it in days, such as '30 days'."));
    }
}
