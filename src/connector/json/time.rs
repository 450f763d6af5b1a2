//! Dates and times as text and as epoch numbers.

use super::exact::{self, Excess};

/// How a TIMESTAMP or TIMESTAMPTZ is written in the records: `timestamptz.handling.mode`, in RisingWave's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TimestampMode {
    /// ISO 8601 text with or without zone, or an epoch number whose unit follows from its size: seconds below 10^11,
    /// milliseconds below 10^14, microseconds below 10^17, nanoseconds from there on. Seconds so reach the year 5138, and
    /// milliseconds begin in March 1973. RisingWave's default.
    #[default]
    Guess,
    /// Text as above; a number is in the unit named.
    Unit(EpochUnit),
    /// Text that names its zone; nothing else.
    UtcString,
    /// Text without a zone, which is UTC; nothing else.
    UtcWithoutSuffix,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EpochUnit {
    Seconds,
    Millis,
    Micros,
    Nanos,
}

const MICROS_PER_DAY: i64 = 86_400_000_000;
/// 0001-01-01 and the last microsecond of 9999, what can be written with four digits.
const RANGE_US: std::ops::RangeInclusive<i64> = -62_135_596_800_000_000..=253_402_300_799_999_999;

/// The last date read: events of one day come together.
#[derive(Debug, Default)]
pub(super) struct DateCache {
    text: [u8; 10],
    days: i32,
}

impl DateCache {
    #[inline]
    fn days(&mut self, text: &[u8]) -> Result<i32, &'static str> {
        if text.get(..10) != Some(&self.text) {
            self.days = date_at(text)?;
            self.text.copy_from_slice(&text[..10]);
        }
        Ok(self.days)
    }
}

/// Microseconds since the epoch of `YYYY-MM-DD[(T| )HH:MM[:SS[.fraction]][zone]]`, and whether a zone was there. Without one
/// the time is UTC. Digits beyond microseconds are cut.
pub(super) fn timestamp(text: &[u8], dates: &mut DateCache) -> Result<(i64, bool), &'static str> {
    let days = dates.days(text)?;
    let mut us = i64::from(days) * MICROS_PER_DAY;
    let mut zone = false;
    if text.len() > 10 {
        if !matches!(text[10], b'T' | b't' | b' ') {
            return Err("it is not YYYY-MM-DD HH:MM:SS");
        }
        let (time_us, rest) = time_of_day(&text[11..])?;
        let offset = offset_us(rest)?;
        zone = offset.is_some();
        us += time_us - offset.unwrap_or(0);
    }
    if RANGE_US.contains(&us) { Ok((us, zone)) } else { Err("it is outside the years 1 to 9999") }
}

/// Days since the epoch of `YYYY-MM-DD`.
pub(super) fn date(text: &[u8]) -> Result<i32, &'static str> {
    if text.len() != 10 {
        return Err("it is not YYYY-MM-DD");
    }
    date_at(text)
}

/// Microseconds since midnight of `HH:MM[:SS[.fraction]]`.
pub(super) fn time(text: &[u8]) -> Result<i64, &'static str> {
    match time_of_day(text)? {
        (us, []) => Ok(us),
        _ => Err("it is not HH:MM:SS"),
    }
}

/// Microseconds since the epoch of an epoch number in JSON's grammar. Digits beyond microseconds are cut.
pub(super) fn epoch(text: &[u8], integer: Option<i64>, unit: Option<EpochUnit>) -> Result<i64, &'static str> {
    const RANGE: &str = "it is outside the years 1 to 9999";
    let whole = match integer {
        Some(value) => i128::from(value),
        None => exact::scaled(text, 0, Excess::Cut).map_err(|_| RANGE)?,
    };
    let unit = unit.unwrap_or(match whole.unsigned_abs() {
        0..100_000_000_000 => EpochUnit::Seconds,
        100_000_000_000..100_000_000_000_000 => EpochUnit::Millis,
        100_000_000_000_000..100_000_000_000_000_000 => EpochUnit::Micros,
        _ => EpochUnit::Nanos,
    });
    let us = match (unit, integer) {
        (EpochUnit::Seconds, Some(_)) => whole * 1_000_000,
        (EpochUnit::Millis, Some(_)) => whole * 1_000,
        (EpochUnit::Seconds, None) => exact::scaled(text, 6, Excess::Cut).map_err(|_| RANGE)?,
        (EpochUnit::Millis, None) => exact::scaled(text, 3, Excess::Cut).map_err(|_| RANGE)?,
        (EpochUnit::Micros, _) => whole,
        (EpochUnit::Nanos, _) => whole.div_euclid(1_000),
    };
    match i64::try_from(us) {
        Ok(us) if RANGE_US.contains(&us) => Ok(us),
        _ => Err(RANGE),
    }
}

fn date_at(text: &[u8]) -> Result<i32, &'static str> {
    const FORM: &str = "it is not YYYY-MM-DD";
    let Some(text) = text.first_chunk::<10>() else { return Err(FORM) };
    let (Some(century), Some(years), Some(month), Some(day)) = (two(text, 0), two(text, 2), two(text, 5), two(text, 8))
    else {
        return Err(FORM);
    };
    if text[4] != b'-' || text[7] != b'-' {
        return Err(FORM);
    }
    let year = century * 100 + years;
    if year == 0 || !(1..=12).contains(&month) || day == 0 || day > days_in_month(year, month) {
        return Err("there is no such date");
    }
    Ok(days_from_civil(year as i32, month, day))
}

/// `HH:MM[:SS[.f{1,9}]]` and what follows it.
fn time_of_day(text: &[u8]) -> Result<(i64, &[u8]), &'static str> {
    const FORM: &str = "it is not HH:MM:SS";
    let (Some(hour), Some(b':'), Some(minute)) = (two(text, 0), text.get(2), two(text, 3)) else { return Err(FORM) };
    let mut us = (i64::from(hour) * 60 + i64::from(minute)) * 60_000_000;
    let mut second = 0;
    let mut rest = &text[5..];
    if rest.first() == Some(&b':') {
        second = two(rest, 1).ok_or(FORM)?;
        us += i64::from(second) * 1_000_000;
        rest = &rest[3..];
        if rest.first() == Some(&b'.') {
            let digits = rest[1..].iter().take_while(|b| b.is_ascii_digit()).count();
            if !(1..=9).contains(&digits) {
                return Err("a fraction of a second has 1 to 9 digits");
            }
            for place in 0..6 {
                let digit = if place < digits { rest[1 + place] - b'0' } else { 0 };
                us += i64::from(digit) * 10i64.pow(5 - place as u32);
            }
            rest = &rest[1 + digits..];
        }
    }
    if hour > 23 || minute > 59 || second > 59 {
        return Err("there is no such time of day");
    }
    Ok((us, rest))
}

/// `Z`, `UTC`, `+02`, `+0200` or `+02:00`, after a space if any; `None` if nothing is there.
fn offset_us(zone: &[u8]) -> Result<Option<i64>, &'static str> {
    const FORM: &str = "its zone is not Z, UTC, +HH, +HHMM or +HH:MM";
    let zone = match zone {
        [] => return Ok(None),
        [b' ', rest @ ..] => rest,
        zone => zone,
    };
    let (sign, digits) = match zone {
        [b'Z' | b'z'] | [b'U', b'T', b'C'] => return Ok(Some(0)),
        [b'+', digits @ ..] => (1, digits),
        [b'-', digits @ ..] => (-1, digits),
        _ => return Err(FORM),
    };
    let minutes = match digits.len() {
        2 => Some(0),
        4 => two(digits, 2),
        5 if digits[2] == b':' => two(digits, 3),
        _ => None,
    };
    match (two(digits, 0), minutes) {
        (Some(hours @ 0..=15), Some(minutes @ 0..=59)) => {
            Ok(Some(sign * (i64::from(hours) * 60 + i64::from(minutes)) * 60_000_000))
        }
        _ => Err(FORM),
    }
}

#[inline]
fn two(text: &[u8], at: usize) -> Option<u32> {
    let pair = text.get(at..at + 2)?;
    let (tens, ones) = (pair[0].wrapping_sub(b'0'), pair[1].wrapping_sub(b'0'));
    (tens < 10 && ones < 10).then_some(u32::from(tens) * 10 + u32::from(ones))
}

fn days_in_month(year: u32, month: u32) -> u32 {
    match month {
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 in the proleptic Gregorian calendar (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn days_from_civil(year: i32, month: u32, day: u32) -> i32 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month as i32 + 9) % 12) + 2) / 5 + day as i32 - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use chrono::{Datelike, NaiveDate};

    use super::*;

    #[test]
    fn dates_agree_with_chrono() {
        let epoch = NaiveDate::from_ymd_opt(1970, 1, 1).expect("a date");
        let mut day = NaiveDate::from_ymd_opt(1, 1, 1).expect("a date");
        while day.year() < 10_000 {
            let text = day.format("%Y-%m-%d").to_string();
            assert_eq!(date(text.as_bytes()), Ok((day - epoch).num_days() as i32), "{text}");
            day = day + chrono::Days::new(13);
        }
    }

    #[test]
    fn texts() {
        let check = |text: &str| timestamp(text.as_bytes(), &mut DateCache::default());
        assert_eq!(check("1970-01-02"), Ok((MICROS_PER_DAY, false)));
        assert_eq!(check("1970-01-01T00:00:01Z"), Ok((1_000_000, true)));
        assert_eq!(check("1970-01-01 00:00:01.5"), Ok((1_500_000, false)));
        assert_eq!(check("1970-01-01t00:00:00.123456789z"), Ok((123_456, true)));
        assert_eq!(check("1970-01-01 02:00:00+02"), Ok((0, true)));
        assert_eq!(check("1970-01-01 02:00:00+0200"), Ok((0, true)));
        assert_eq!(check("1970-01-01 02:30+02:30"), Ok((0, true)));
        assert_eq!(check("1969-12-31 22:00:00 -02:00"), Ok((0, true)));
        assert_eq!(check("1970-01-01 00:00:00 UTC"), Ok((0, true)));
        assert_eq!(check("2024-02-29 00:00:00"), Ok((1_709_164_800_000_000, false)));
        for wrong in ["2023-02-29", "2024-13-01", "2024-00-10", "2024-04-31", "0000-01-01"] {
            assert_eq!(check(wrong), Err("there is no such date"), "{wrong}");
        }
        for wrong in ["2024-01-01 24:00:00", "2024-01-01 10:60:00", "2024-01-01 23:59:60"] {
            assert_eq!(check(wrong), Err("there is no such time of day"), "{wrong}");
        }
        for wrong in [
            "",
            "2024-1-1",
            "2024-01-01x",
            "2024-01-01T",
            "2024-01-01 10",
            "2024-01-01 10:00:00 CET",
            "2024-01-01 10:00:00+2",
            "2024-01-01 10:00:00.",
            "2024-01-01 10:00:00.1234567890",
            "2024-01-01 10:00:00+16:00",
            "0001-01-01 00:00:00+01",
            "٢٠٢٤-٠١-٠١",
        ] {
            assert!(check(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn epoch_numbers() {
        let guess = |n: i64| epoch(n.to_string().as_bytes(), Some(n), None);
        let second = Ok(1_700_000_000_000_000);
        for n in [1_700_000_000, 1_700_000_000_000, 1_700_000_000_000_000, 1_700_000_000_000_000_000] {
            assert_eq!(guess(n), second, "{n}");
        }
        assert_eq!(guess(99_999_999_999), Ok(99_999_999_999_000_000));
        assert_eq!(guess(100_000_000_000), Ok(100_000_000_000_000));
        assert_eq!(guess(-1), Ok(-1_000_000));
        assert_eq!(epoch(b"1700000000.25", None, None), Ok(1_700_000_000_250_000));
        assert_eq!(epoch(b"1.7e9", None, None), second);
        assert_eq!(epoch(b"5", Some(5), Some(EpochUnit::Millis)), Ok(5_000));
        assert_eq!(epoch(b"-1", Some(-1), Some(EpochUnit::Nanos)), Ok(-1));
        assert!(epoch(b"300000000000", Some(300_000_000_000), Some(EpochUnit::Seconds)).is_err());
        assert!(epoch(b"1e40", None, None).is_err());
    }
}
