//! Intervals as text → months, days and microseconds.

use super::SqlError;

const SECOND: i128 = 1_000_000;
const MINUTE: i128 = 60 * SECOND;
const HOUR: i128 = 60 * MINUTE;
const DAY: i128 = 24 * HOUR;
/// Fractions of months and days are kept to twelve digits before they spill into smaller units.
const PICO: i128 = 1_000_000_000_000;

/// An interval as Postgres keeps it: the three parts do not carry over into each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interval {
    pub months: i32,
    pub days: i32,
    pub micros: i64,
}

/// Why a text is no interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IntervalFault {
    Invalid,
    OutOfRange,
}

/// Postgres' input of intervals: `1 year 2 mons -3 days +04:05:06.7`, `1 day 02:03:04`, `1 2:03:04`, `1-2`, `1h30m`, `P1Y2M3DT4H`,
/// a bare number of seconds, `... ago`. A fraction of a unit spills into the smaller ones, a month being 30 days.
pub fn interval(text: &str) -> Result<Interval, IntervalFault> {
    let lower = text.trim().to_ascii_lowercase();
    let lower = lower.strip_prefix('@').map_or(lower.as_str(), str::trim_start);
    let sum = if let Some(iso) = lower.strip_prefix('p') { of_iso(iso)? } else { of_words(lower)? };
    let fits = || {
        Some(Interval {
            months: i32::try_from(sum.months).ok()?,
            days: i32::try_from(sum.days).ok()?,
            micros: i64::try_from(sum.micros).ok()?,
        })
    };
    fits().ok_or(IntervalFault::OutOfRange)
}

/// An interval of fixed length as microseconds. A day is 24 hours. Months and longer have no fixed length: an error, as is
/// whatever does not fit 64 bits.
pub fn interval_us(text: &str) -> Result<i64, SqlError> {
    let out_of_range = || SqlError::value(format!("interval out of range: \"{text}\""));
    let Interval { months, days, micros } = interval(text).map_err(|fault| match fault {
        IntervalFault::Invalid => SqlError::value(format!("invalid input syntax for type interval: \"{text}\"")),
        IntervalFault::OutOfRange => out_of_range(),
    })?;
    if months != 0 {
        let unit = if months % 12 == 0 { "years" } else { "months" };
        return Err(SqlError::value(format!("an interval of {unit} has no fixed length here: \"{text}\""))
            .with_hint("write it in days, such as '30 days'"));
    }
    i64::try_from(i128::from(days) * DAY + i128::from(micros)).map_err(|_| out_of_range())
}

#[derive(Default)]
struct Sum {
    months: i128,
    days: i128,
    micros: i128,
}

#[derive(Clone, Copy)]
enum Unit {
    Months(i128),
    Days(i128),
    Micros(i128),
}

impl Sum {
    /// Adds a decimal number of units.
    fn add(&mut self, number: &str, unit: Unit, negative: bool) -> Result<(), IntervalFault> {
        let mut part = Sum::default();
        match unit {
            Unit::Months(each) => {
                let picos = decimal(number, each * PICO)?;
                part.months = picos / PICO;
                let rest = picos % PICO;
                if each > 1 {
                    part.months += (rest + PICO / 2) / PICO;
                } else {
                    part.add_days(rest * 30);
                }
            }
            Unit::Days(each) => part.add_days(decimal(number, each * PICO)?),
            Unit::Micros(each) => part.micros = decimal(number, each)?,
        }
        self.add_all(&part, negative)
    }

    fn add_days(&mut self, picos: i128) {
        self.days += picos / PICO;
        self.micros += (picos % PICO * DAY + PICO / 2) / PICO;
    }

    fn add_all(&mut self, part: &Sum, negative: bool) -> Result<(), IntervalFault> {
        let signed = |value: i128| if negative { -value } else { value };
        for (sum, value) in
            [(&mut self.months, part.months), (&mut self.days, part.days), (&mut self.micros, part.micros)]
        {
            *sum = sum.checked_add(signed(value)).ok_or(IntervalFault::OutOfRange)?;
        }
        Ok(())
    }
}

/// `1 day 02:03:04.5`, `1h30m`, `-5 seconds`, `2 days ago`.
fn of_words(text: &str) -> Result<Sum, IntervalFault> {
    let (text, ago) = match text.strip_suffix("ago") {
        Some(rest) => (rest.trim_end(), true),
        None => (text, false),
    };
    let mut rest = text.trim_start();
    if rest.is_empty() {
        return Err(IntervalFault::Invalid);
    }
    let mut sum = Sum::default();
    while !rest.is_empty() {
        let (negative, unsigned) = sign(rest);
        let (number, after) = split_at(unsigned, |c| c.is_ascii_digit() || c == '.' || c == ':');
        let years_and_months = after.strip_prefix('-').filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
        if number.contains(':') {
            rest = after.trim_start();
            sum.add_all(&Sum { micros: clock(number)?, ..Sum::default() }, negative)?;
        } else if let Some(after) = years_and_months {
            let (months, after) = split_at(after, |c| c.is_ascii_digit());
            rest = after.trim_start();
            sum.add(number, Unit::Months(12), negative)?;
            sum.add(months, Unit::Months(1), negative)?;
        } else {
            let (word, after) = split_at(after.trim_start(), |c| c.is_ascii_alphabetic() || c == 'µ');
            rest = after.trim_start();
            // `1 2:03:04`: days before a clock; at the end seconds.
            let unit = match word {
                "" if rest.contains(':') => Unit::Days(1),
                "" if !rest.is_empty() => return Err(IntervalFault::Invalid),
                word => unit_of(word)?,
            };
            sum.add(number, unit, negative)?;
        }
    }
    let mut total = Sum::default();
    total.add_all(&sum, ago)?;
    Ok(total)
}

/// What follows the `P` of ISO 8601: `1DT2H3M4.5S`, in lower case.
fn of_iso(text: &str) -> Result<Sum, IntervalFault> {
    let (mut rest, mut in_time, mut sum) = (text, false, Sum::default());
    if rest.is_empty() || rest == "t" {
        return Err(IntervalFault::Invalid);
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
            (Some('y'), false) => Unit::Months(12),
            (Some('m'), false) => Unit::Months(1),
            (Some('w'), false) => Unit::Days(7),
            (Some('d'), false) => Unit::Days(1),
            (Some('h'), true) => Unit::Micros(HOUR),
            (Some('m'), true) => Unit::Micros(MINUTE),
            (Some('s'), true) => Unit::Micros(SECOND),
            _ => return Err(IntervalFault::Invalid),
        };
        rest = chars.as_str();
        sum.add(number, unit, negative)?;
    }
    Ok(sum)
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

/// `hh:mm` or `hh:mm:ss[.fraction]` in microseconds; hours may exceed 23.
fn clock(text: &str) -> Result<i128, IntervalFault> {
    let mut parts = text.split(':');
    let mut part = |unit: i128, below: Option<i128>| -> Result<i128, IntervalFault> {
        let amount = decimal(parts.next().ok_or(IntervalFault::Invalid)?, unit)?;
        if below.is_some_and(|below| amount >= below * unit) { Err(IntervalFault::Invalid) } else { Ok(amount) }
    };
    let (hours, minutes) = (part(HOUR, None)?, part(MINUTE, Some(60))?);
    let seconds = if text.matches(':').count() == 2 { part(SECOND, Some(60))? } else { 0 };
    if parts.next().is_some() {
        return Err(IntervalFault::Invalid);
    }
    Ok(hours + minutes + seconds)
}

/// A decimal number times `unit`, rounded.
fn decimal(number: &str, unit: i128) -> Result<i128, IntervalFault> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return Err(IntervalFault::Invalid);
    }
    // Beyond 20 digits nothing fits the result; the products below stay under 2^127.
    if whole.len() > 20 {
        return Err(IntervalFault::OutOfRange);
    }
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| IntervalFault::Invalid)? };
    let digits = fraction.get(..12).unwrap_or(fraction);
    let scale = 10i128.pow(digits.len() as u32);
    let part: i128 = if digits.is_empty() { 0 } else { digits.parse().map_err(|_| IntervalFault::Invalid)? };
    let whole = whole.checked_mul(unit).ok_or(IntervalFault::OutOfRange)?;
    whole.checked_add((part * unit + scale / 2) / scale).ok_or(IntervalFault::OutOfRange)
}

fn unit_of(word: &str) -> Result<Unit, IntervalFault> {
    Ok(match word {
        "us" | "µs" | "usec" | "usecs" | "usecond" | "useconds" | "microsecond" | "microseconds" => Unit::Micros(1),
        "ms" | "msec" | "msecs" | "msecond" | "mseconds" | "millisecond" | "milliseconds" => Unit::Micros(1_000),
        "" | "s" | "sec" | "secs" | "second" | "seconds" => Unit::Micros(SECOND),
        "m" | "min" | "mins" | "minute" | "minutes" => Unit::Micros(MINUTE),
        "h" | "hr" | "hrs" | "hour" | "hours" => Unit::Micros(HOUR),
        "d" | "day" | "days" => Unit::Days(1),
        "w" | "week" | "weeks" => Unit::Days(7),
        "mon" | "mons" | "month" | "months" => Unit::Months(1),
        "y" | "yr" | "yrs" | "year" | "years" => Unit::Months(12),
        "decade" | "decades" | "dec" | "decs" => Unit::Months(120),
        "c" | "cent" | "century" | "centuries" => Unit::Months(1_200),
        "mil" | "mils" | "millennium" | "millennia" => Unit::Months(12_000),
        _ => return Err(IntervalFault::Invalid),
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
    fn parts_stay_apart() {
        let parts = |text: &str| match interval(text) {
            Ok(Interval { months, days, micros }) => format!("{months} {days} {micros}"),
            Err(fault) => format!("{fault:?}"),
        };
        for (text, expected) in [
            ("1 day 02:03:04", "0 1 7384000000"),
            ("04:05:06", "0 0 14706000000"),
            ("1 year 2 mons -3 days +04:05:06.7", "14 -3 14706700000"),
            ("-1 day 02:00:00", "0 -1 7200000000"),
            ("1 2:03:04", "0 1 7384000000"),
            ("1-2", "14 0 0"),
            ("-1-2", "-14 0 0"),
            ("1.5 months", "1 15 0"),
            ("1.5 years", "18 0 0"),
            ("1.5 weeks", "0 10 43200000000"),
            ("0.1 days", "0 0 8640000000"),
            ("@ 1 minute ago", "0 0 -60000000"),
            ("1 mon 1 day ago", "-1 -1 0"),
            ("P1Y2M3DT4H", "14 3 14400000000"),
            ("1 2 days", "Invalid"),
            ("1 mon mon", "Invalid"),
            ("9999999999 days", "OutOfRange"),
            ("99999999999999999999999 years", "OutOfRange"),
        ] {
            assert_eq!(parts(text), expected, "{text}");
        }
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
        check(&"9".repeat(60), &format!("interval out of range: \"{}\"", "9".repeat(60)));
        check("1 month", "an interval of months has no fixed length here: \"1 month\"");
        check("P1Y", "an interval of years has no fixed length here: \"P1Y\"");
        assert_eq!(interval_us("1 year").unwrap_err().hint(), Some("Write it in days, such as '30 days'."));
    }
}
