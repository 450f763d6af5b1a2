//! Dates and times as text → numbers, as Postgres' input functions read ISO 8601.

use std::str::FromStr;

use arrow::datatypes::DataType;
use chrono::{DateTime, NaiveDate, NaiveDateTime, Offset, TimeDelta, TimeZone};
use chrono_tz::{TZ_VARIANTS, Tz};

use super::error::{PlanError, Refusal};
use super::types::{self, sql_name};

const SECOND_US: i64 = 1_000_000;
const DAY_US: i64 = 86_400 * SECOND_US;
/// 4713 BC, where Postgres' calendar begins. It ends where that of chrono ends, which the functions on dates compute with:
/// in 262142.
const FIRST_YEAR: i32 = -4712;

/// A day and a time of day as written, without a decision what its zone means.
struct Moment {
    /// From 1970-01-01.
    days: i32,
    /// Since midnight; of 24:00:00 a whole day.
    micros: i64,
    zone: Option<Zone>,
}

#[derive(Clone, Copy)]
enum Zone {
    OffsetSeconds(i64),
    Named(Tz),
}

/// Why a text is no moment.
enum Fault {
    Invalid,
    Overflow,
    Infinite,
    /// `now` and its kin.
    Clock,
}

/// Days from 1970-01-01; a time of day behind it is ignored.
///
/// # Errors
/// Of this and its siblings: 22007, 22008 for a field or a whole out of range, 0A000 for `infinity`.
pub fn date(text: &str) -> Result<i32, PlanError> {
    moment(text).map(|moment| moment.days).map_err(|fault| refused(fault, &DataType::Date32, text))
}

/// Microseconds since midnight.
pub fn time(text: &str) -> Result<i64, PlanError> {
    let target = types::time();
    let mut rest = text.trim();
    if let Some((_, behind)) = rest.split_once([' ', 'T', 't']).filter(|(day, _)| day.matches('-').count() == 2) {
        rest = behind.trim_start();
    }
    time_of_day(&mut rest).and_then(|micros| zone(rest).map(|_| micros)).map_err(|fault| refused(fault, &target, text))
}

/// Microseconds from 1970-01-01 on the clock that is meant; a zone is ignored.
pub fn timestamp(text: &str) -> Result<i64, PlanError> {
    moment(text).and_then(|moment| moment.clock_us()).map_err(|fault| refused(fault, &types::timestamp(), text))
}

/// Microseconds from 1970-01-01 UTC. Without a zone the text says what clocks in `local` show.
pub fn timestamptz(text: &str, local: Tz) -> Result<i64, PlanError> {
    let read = || {
        let moment = moment(text)?;
        let clock_us = moment.clock_us()?;
        let moment_us = match moment.zone {
            Some(Zone::OffsetSeconds(east)) => clock_us.checked_sub(east * SECOND_US),
            Some(Zone::Named(zone)) => local_to_utc(clock_us, &zone),
            None => local_to_utc(clock_us, &local),
        };
        moment_us.ok_or(Fault::Overflow)
    };
    read().map_err(|fault| refused(fault, &types::timestamptz(), text))
}

/// A zone by its name in the IANA database, whatever the case.
pub fn named_zone(name: &str) -> Option<Tz> {
    TZ_VARIANTS.iter().find(|zone| zone.name().eq_ignore_ascii_case(name)).copied()
}

/// The moment at which clocks in the zone show this. What a clock skips counts with the offset before the gap; what it shows
/// twice is the second, as in Postgres. `None` beyond the years that chrono knows.
pub fn local_to_utc<Z: TimeZone>(clock_us: i64, zone: &Z) -> Option<i64> {
    let naive = |us: i64| Some(DateTime::from_timestamp_micros(us)?.naive_utc());
    let local: NaiveDateTime = naive(clock_us)?;
    let east_of = |local: &NaiveDateTime| {
        zone.offset_from_local_datetime(local).latest().map(|offset| i64::from(offset.fix().local_minus_utc()))
    };
    let east = east_of(&local).or_else(|| east_of(&local.checked_sub_signed(TimeDelta::hours(3))?))?;
    clock_us.checked_sub(east * SECOND_US)
}

/// What clocks in the zone show at a moment.
pub fn utc_to_local<Z: TimeZone>(moment_us: i64, zone: &Z) -> Option<i64> {
    let utc = DateTime::from_timestamp_micros(moment_us)?.naive_utc();
    let east = zone.offset_from_utc_datetime(&utc).fix().local_minus_utc();
    moment_us.checked_add(i64::from(east) * SECOND_US)
}

impl Moment {
    fn clock_us(&self) -> Result<i64, Fault> {
        i64::from(self.days).checked_mul(DAY_US).and_then(|us| us.checked_add(self.micros)).ok_or(Fault::Overflow)
    }
}

fn refused(fault: Fault, target: &DataType, text: &str) -> PlanError {
    let name = sql_name(target);
    match fault {
        Fault::Invalid => {
            PlanError::InvalidDatetime(Refusal::new(format!("invalid input syntax for type {name}: \"{text}\"")))
        }
        Fault::Overflow => {
            PlanError::DatetimeOverflow(Refusal::new(format!("date/time field value out of range: \"{text}\"")))
        }
        Fault::Infinite => PlanError::unsupported(
            format!("infinite values of type {name} are not supported"),
            "Use NULL, or a moment far away such as '9999-12-31'.",
        ),
        Fault::Clock => PlanError::unsupported(
            format!("\"{text}\" as a value of type {name} is not supported"),
            "Use now(), current_date or an expression over them.",
        ),
    }
}

fn moment(text: &str) -> Result<Moment, Fault> {
    let mut rest = text.trim();
    match rest.to_ascii_lowercase().trim_start_matches(['+', '-']) {
        "infinity" | "inf" => return Err(Fault::Infinite),
        "now" | "today" | "tomorrow" | "yesterday" => return Err(Fault::Clock),
        "epoch" => return Ok(Moment { days: 0, micros: 0, zone: Some(Zone::OffsetSeconds(0)) }),
        _ => {}
    }
    let before_christ = match rest.len().checked_sub(2).and_then(|at| rest.split_at_checked(at)) {
        Some((front, era)) if era.eq_ignore_ascii_case("bc") || era.eq_ignore_ascii_case("ad") => {
            rest = front.trim_end();
            era.eq_ignore_ascii_case("bc")
        }
        _ => false,
    };
    let (year, month, day) = day_fields(&mut rest)?;
    let year = match (year, before_christ) {
        (0, _) => return Err(Fault::Overflow),
        (year, true) => 1 - year,
        (year, false) => year,
    };
    let date = NaiveDate::from_ymd_opt(year, month, day).filter(|_| year >= FIRST_YEAR).ok_or(Fault::Overflow)?;
    let days = date.signed_duration_since(NaiveDate::default()).num_days();
    let days = i32::try_from(days).map_err(|_| Fault::Overflow)?;
    let (mut micros, mut written) = (0, None);
    if let Some(behind) = rest.strip_prefix(['T', 't']).or_else(|| rest.starts_with(' ').then(|| rest.trim_start())) {
        rest = behind;
        micros = time_of_day(&mut rest)?;
        written = zone(rest)?;
    } else if !rest.is_empty() {
        return Err(Fault::Invalid);
    }
    Ok(Moment { days, micros, zone: written })
}

/// `YYYY-MM-DD` or `YYYYMMDD`, off the front of the text.
fn day_fields(rest: &mut &str) -> Result<(i32, u32, u32), Fault> {
    let year = digits(rest);
    if year.len() == 8 && !rest.starts_with('-') {
        return Ok((number(&year[..4])?, number(&year[4..6])?, number(&year[6..])?));
    }
    // Fewer digits could be a month or a day in another order of the fields.
    if year.len() < 4 {
        return Err(Fault::Invalid);
    }
    let mut field = || {
        *rest = rest.strip_prefix('-').ok_or(Fault::Invalid)?;
        match digits(rest) {
            text if (1..=2).contains(&text.len()) => number(text),
            _ => Err(Fault::Invalid),
        }
    };
    Ok((number(year)?, field()?, field()?))
}

/// `HH:MM[:SS[.fraction]] [AM | PM]`, off the front of the text, in microseconds.
fn time_of_day(rest: &mut &str) -> Result<i64, Fault> {
    let mut hours: i64 = short(rest)?;
    *rest = rest.strip_prefix(':').ok_or(Fault::Invalid)?;
    let minutes: i64 = short(rest)?;
    let (mut seconds, mut micros) = (0, 0);
    if let Some(behind) = rest.strip_prefix(':') {
        *rest = behind;
        seconds = short(rest)?;
        if let Some(behind) = rest.strip_prefix('.') {
            *rest = behind;
            // Seven digits settle how the sixth is rounded.
            let fraction = digits(rest);
            let padded = format!("{fraction:0<7}");
            micros = (number::<i64>(&padded[..7])? + 5) / 10;
        }
    }
    let half = rest.trim_start();
    for (word, is_afternoon) in [("am", false), ("pm", true)] {
        let is_word = half.get(..2).is_some_and(|found| found.eq_ignore_ascii_case(word));
        // `America/New_York` is a zone.
        if is_word && !half[2..].starts_with(|c: char| c.is_ascii_alphanumeric()) {
            if !(1..=12).contains(&hours) {
                return Err(Fault::Overflow);
            }
            hours = hours % 12 + if is_afternoon { 12 } else { 0 };
            *rest = &half[2..];
        }
    }
    let whole = ((hours * 60 + minutes) * 60 + seconds) * SECOND_US + micros;
    // A second of 60 is the next minute's first.
    if minutes > 59 || seconds > 60 || whole > DAY_US {
        return Err(Fault::Overflow);
    }
    Ok(whole)
}

/// What is left of a text behind its time of day: nothing, or a zone.
fn zone(rest: &str) -> Result<Option<Zone>, Fault> {
    let rest = rest.trim_start();
    if rest.is_empty() {
        return Ok(None);
    }
    if rest.eq_ignore_ascii_case("z") {
        return Ok(Some(Zone::OffsetSeconds(0)));
    }
    let east = match rest.as_bytes()[0] {
        b'+' => 1,
        b'-' => -1,
        _ => return named_zone(rest).map(|zone| Some(Zone::Named(zone))).ok_or(Fault::Invalid),
    };
    let mut rest = &rest[1..];
    let first = digits(&mut rest);
    let (hours, mut minutes, mut seconds) = match first.len() {
        1 | 2 => (number::<i64>(first)?, 0, 0),
        4 => (number(&first[..2])?, number(&first[2..])?, 0),
        6 => (number(&first[..2])?, number(&first[2..4])?, number(&first[4..])?),
        _ => return Err(Fault::Invalid),
    };
    if let (true, Some(behind)) = (first.len() <= 2, rest.strip_prefix(':')) {
        rest = behind;
        minutes = short(&mut rest)?;
        if let Some(behind) = rest.strip_prefix(':') {
            rest = behind;
            seconds = short(&mut rest)?;
        }
    }
    if !rest.is_empty() {
        return Err(Fault::Invalid);
    }
    if hours > 15 || minutes > 59 || seconds > 59 {
        return Err(Fault::Overflow);
    }
    Ok(Some(Zone::OffsetSeconds(east * ((hours * 60 + minutes) * 60 + seconds))))
}

/// A field of one or two digits, off the front of the text.
fn short(rest: &mut &str) -> Result<i64, Fault> {
    match digits(rest) {
        text if (1..=2).contains(&text.len()) => number(text),
        _ => Err(Fault::Invalid),
    }
}

/// The digits at the front of the text, taken off it.
fn digits<'a>(rest: &mut &'a str) -> &'a str {
    let (front, behind) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len()));
    *rest = behind;
    front
}

fn number<T: FromStr>(digits: &str) -> Result<T, Fault> {
    digits.parse().map_err(|_| Fault::Overflow)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(read: Result<i64, PlanError>, text: &str, expected: &str) {
        let got = match read {
            Ok(micros) => match DateTime::from_timestamp_micros(micros) {
                Some(moment) => moment.naive_utc().to_string(),
                None => micros.to_string(),
            },
            Err(PlanError::InvalidDatetime(refusal)) => format!("22007 {refusal}"),
            Err(PlanError::DatetimeOverflow(refusal)) => format!("22008 {refusal}"),
            Err(other) => other.to_string(),
        };
        assert_eq!(got, expected, "{text}");
    }

    #[test]
    fn clocks_and_zones() {
        for (text, expected) in [
            ("2026-01-02", "2026-01-02 00:00:00"),
            ("20260102", "2026-01-02 00:00:00"),
            ("2026-1-2 3:04", "2026-01-02 03:04:00"),
            ("2026-01-02T03:04:05.1234567Z", "2026-01-02 03:04:05.123457"),
            ("2026-01-02 24:00", "2026-01-03 00:00:00"),
            ("2026-01-02 23:59:60", "2026-01-03 00:00:00"),
            ("2026-01-02 12:30 AM", "2026-01-02 00:30:00"),
            ("2026-01-02 12:30:01pm", "2026-01-02 12:30:01"),
            ("  2026-01-02   03:04:05 +01  ", "2026-01-02 03:04:05"),
            ("epoch", "1970-01-01 00:00:00"),
            ("0044-03-15 BC", "-0043-03-15 00:00:00"),
            ("12026-01-02", "+12026-01-02 00:00:00"),
            ("2026-02-30", "22008 date/time field value out of range: \"2026-02-30\""),
            ("2026-01-02 25:00", "22008 date/time field value out of range: \"2026-01-02 25:00\""),
            ("0000-01-01", "22008 date/time field value out of range: \"0000-01-01\""),
            ("9999-01-01 BC", "22008 date/time field value out of range: \"9999-01-01 BC\""),
            ("999999999999-01-01", "22008 date/time field value out of range: \"999999999999-01-01\""),
            ("1/2/2026", "22007 invalid input syntax for type timestamp without time zone: \"1/2/2026\""),
            ("26-01-02", "22007 invalid input syntax for type timestamp without time zone: \"26-01-02\""),
            ("2026-01-02x", "22007 invalid input syntax for type timestamp without time zone: \"2026-01-02x\""),
            ("2026-01-02 03", "22007 invalid input syntax for type timestamp without time zone: \"2026-01-02 03\""),
            ("", "22007 invalid input syntax for type timestamp without time zone: \"\""),
            ("ä", "22007 invalid input syntax for type timestamp without time zone: \"ä\""),
            ("-infinity", "infinite values of type timestamp without time zone are not supported"),
            ("now", "\"now\" as a value of type timestamp without time zone is not supported"),
        ] {
            check(timestamp(text), text, expected);
        }
    }

    #[test]
    fn moments_follow_the_zone_written_or_else_the_local_one() {
        for (text, expected) in [
            ("2026-01-01 12:00", "2026-01-01 11:00:00"),
            ("2026-07-01 12:00", "2026-07-01 10:00:00"),
            ("2026-01-01 12:00+00", "2026-01-01 12:00:00"),
            ("2026-01-01 12:00:00-08:30", "2026-01-01 20:30:00"),
            ("2026-01-01 12:00 -0830", "2026-01-01 20:30:00"),
            ("2026-01-01 12:00 America/New_York", "2026-01-01 17:00:00"),
            ("2026-01-01 12:00 utc", "2026-01-01 12:00:00"),
            ("epoch", "1970-01-01 00:00:00"),
            // Skipped by the clock, and shown twice.
            ("2026-03-29 02:30", "2026-03-29 01:30:00"),
            ("2026-10-25 02:30", "2026-10-25 01:30:00"),
            (
                "2026-01-01 12:00 Nowhere",
                "22007 invalid input syntax for type timestamp with time zone: \"2026-01-01 12:00 Nowhere\"",
            ),
            ("2026-01-01 12:00+16", "22008 date/time field value out of range: \"2026-01-01 12:00+16\""),
        ] {
            check(timestamptz(text, Tz::Europe__Berlin), text, expected);
        }
    }

    #[test]
    fn days_and_times_of_day() {
        assert_eq!(date("1970-01-02 12:00"), Ok(1));
        assert_eq!(date("0001-01-01 BC"), Ok(-719_528));
        for (text, expected) in [
            ("12:34:56.789", Some(45_296_789_000)),
            ("04:05 PM", Some(57_900_000_000)),
            ("04:05:06+02", Some(14_706_000_000)),
            ("2026-01-01 00:00:01", Some(1_000_000)),
            ("24:00:00", Some(86_400_000_000)),
            ("24:00:01", None),
            ("13:00 PM", None),
            ("noon", None),
        ] {
            assert_eq!(time(text).ok(), expected, "{text}");
        }
    }
}
