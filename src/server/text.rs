//! Values as the text Postgres prints for them.
//!
//! Each function appends to a buffer and allocates nothing, for it runs once per cell. Dates and times use the proleptic Gregorian
//! calendar over `i64`, so that no value of the Arrow types is out of reach.

use bytes::{BufMut, BytesMut};
use chrono::{DateTime, Offset, TimeZone};
use chrono_tz::Tz;

/// Days from 1970-01-01 to 2000-01-01, the epoch of Postgres.
pub const POSTGRES_EPOCH_DAYS: i64 = 10_957;
pub const MICROS_PER_SECOND: i64 = 1_000_000;
pub const MICROS_PER_DAY: i64 = 86_400 * MICROS_PER_SECOND;

pub fn put_bool(out: &mut BytesMut, value: bool) {
    out.put_u8(if value { b't' } else { b'f' });
}

pub fn put_int(out: &mut BytesMut, value: i128) {
    let mut digits = [0u8; 40];
    let mut at = digits.len();
    let mut rest = value.unsigned_abs();
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if value < 0 {
        out.put_u8(b'-');
    }
    out.put_slice(&digits[at..]);
}

/// The integer in at least `width` digits.
fn put_padded(out: &mut BytesMut, value: u64, width: usize) {
    let mut digits = [b'0'; 20];
    let mut at = digits.len();
    let mut rest = value;
    while rest > 0 {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    out.put_slice(&digits[at.min(digits.len() - width)..]);
}

/// How many digits a float shows: the setting `extra_float_digits`, of which every positive value means the shortest text that reads
/// back as the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FloatDigits(pub i8);

pub fn put_float8(out: &mut BytesMut, value: f64, digits: FloatDigits) {
    match digits.0 {
        1.. => put_float(out, value, &format!("{value:e}"), 15),
        n => put_rounded(out, value, (15 + i32::from(n)).max(1)),
    }
}

pub fn put_float4(out: &mut BytesMut, value: f32, digits: FloatDigits) {
    match digits.0 {
        1.. => put_float(out, f64::from(value), &format!("{value:e}"), 6),
        n => put_rounded(out, f64::from(value), (6 + i32::from(n)).max(1)),
    }
}

/// C's `%.*g`.
fn put_rounded(out: &mut BytesMut, value: f64, precision: i32) {
    put_float(out, value, &format!("{value:.*e}", (precision - 1) as usize), precision);
}

/// Lays out `d.ddde<n>` as Postgres does: scientific below 1e-4 and from 10^`limit` on, fixed between.
fn put_float(out: &mut BytesMut, value: f64, scientific: &str, limit: i32) {
    if value.is_nan() {
        return out.put_slice(b"NaN");
    }
    if value.is_infinite() {
        return out.put_slice(if value > 0.0 { b"Infinity" } else { b"-Infinity" });
    }
    let (sign, unsigned) = match scientific.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", scientific),
    };
    let (mantissa, exponent) = unsigned.split_once('e').unwrap_or((unsigned, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let (first, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let fraction = fraction.trim_end_matches('0');
    out.put_slice(sign.as_bytes());
    if !(-4..limit).contains(&exponent) {
        out.put_slice(first.as_bytes());
        if !fraction.is_empty() {
            out.put_u8(b'.');
            out.put_slice(fraction.as_bytes());
        }
        out.put_slice(if exponent < 0 { b"e-" } else { b"e+" });
        put_padded(out, u64::from(exponent.unsigned_abs()), 2);
    } else if exponent < 0 {
        out.put_slice(b"0.");
        out.put_bytes(b'0', (-exponent - 1) as usize);
        out.put_slice(first.as_bytes());
        out.put_slice(fraction.as_bytes());
    } else {
        let whole = exponent as usize;
        out.put_slice(first.as_bytes());
        if fraction.len() > whole {
            out.put_slice(&fraction.as_bytes()[..whole]);
            out.put_u8(b'.');
            out.put_slice(&fraction.as_bytes()[whole..]);
        } else {
            out.put_slice(fraction.as_bytes());
            out.put_bytes(b'0', whole - fraction.len());
        }
    }
}

/// A decimal from its unscaled digits: always `scale` digits after the point.
pub fn put_numeric(out: &mut BytesMut, digits: &str, scale: i8) {
    let unsigned = match digits.strip_prefix('-') {
        Some(rest) => {
            out.put_u8(b'-');
            rest
        }
        None => digits,
    };
    if scale <= 0 {
        out.put_slice(unsigned.as_bytes());
        if unsigned != "0" {
            out.put_bytes(b'0', usize::from(scale.unsigned_abs()));
        }
        return;
    }
    let scale = scale as usize;
    if unsigned.len() > scale {
        let (whole, fraction) = unsigned.split_at(unsigned.len() - scale);
        out.put_slice(whole.as_bytes());
        out.put_u8(b'.');
        out.put_slice(fraction.as_bytes());
    } else {
        out.put_slice(b"0.");
        out.put_bytes(b'0', scale - unsigned.len());
        out.put_slice(unsigned.as_bytes());
    }
}

pub fn put_bytea(out: &mut BytesMut, bytes: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.put_slice(b"\\x");
    for byte in bytes {
        out.put_u8(HEX[usize::from(byte >> 4)]);
        out.put_u8(HEX[usize::from(byte & 15)]);
    }
}

/// Year, month and day of a day counted from 1970-01-01 (Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn civil(days: i64) -> (i64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month as u64, day as u64)
}

/// `YYYY-MM-DD`, and whether the year is before Christ.
fn put_day(out: &mut BytesMut, days: i64) -> bool {
    let (year, month, day) = civil(days);
    let (year, bc) = if year > 0 { (year as u64, false) } else { ((1 - year) as u64, true) };
    put_padded(out, year, 4);
    out.put_u8(b'-');
    put_padded(out, month, 2);
    out.put_u8(b'-');
    put_padded(out, day, 2);
    bc
}

pub fn put_date(out: &mut BytesMut, days: i32) {
    if put_day(out, i64::from(days)) {
        out.put_slice(b" BC");
    }
}

/// `HH:MM:SS[.ffffff]` without trailing zeros.
pub fn put_time(out: &mut BytesMut, micros: i64) {
    put_clock(out, micros.unsigned_abs());
}

fn put_clock(out: &mut BytesMut, micros: u64) {
    let seconds = micros / MICROS_PER_SECOND as u64;
    put_padded(out, seconds / 3_600, 2);
    out.put_u8(b':');
    put_padded(out, seconds / 60 % 60, 2);
    out.put_u8(b':');
    put_padded(out, seconds % 60, 2);
    let mut fraction = micros % MICROS_PER_SECOND as u64;
    if fraction > 0 {
        let mut width = 6;
        while fraction.is_multiple_of(10) {
            fraction /= 10;
            width -= 1;
        }
        out.put_u8(b'.');
        put_padded(out, fraction, width);
    }
}

pub fn put_timestamp(out: &mut BytesMut, micros: i64) {
    if put_moment(out, i128::from(micros)) {
        out.put_slice(b" BC");
    }
}

fn put_moment(out: &mut BytesMut, micros: i128) -> bool {
    let day = i128::from(MICROS_PER_DAY);
    let bc = put_day(out, micros.div_euclid(day) as i64);
    out.put_u8(b' ');
    put_clock(out, micros.rem_euclid(day) as u64);
    bc
}

/// The moment in the zone's local time with its offset, such as `2026-01-02 03:04:05+00`.
pub fn put_timestamptz(out: &mut BytesMut, micros: i64, zone: Tz) {
    let offset_s = offset_seconds(micros, zone);
    let bc = put_moment(out, i128::from(micros) + i128::from(offset_s) * i128::from(MICROS_PER_SECOND));
    out.put_u8(if offset_s < 0 { b'-' } else { b'+' });
    let offset = u64::from(offset_s.unsigned_abs());
    put_padded(out, offset / 3_600, 2);
    if !offset.is_multiple_of(3_600) {
        out.put_u8(b':');
        put_padded(out, offset / 60 % 60, 2);
        if !offset.is_multiple_of(60) {
            out.put_u8(b':');
            put_padded(out, offset % 60, 2);
        }
    }
    if bc {
        out.put_slice(b" BC");
    }
}

/// Seconds east of Greenwich at a moment. Beyond the years that chrono can tell, UTC.
fn offset_seconds(micros: i64, zone: Tz) -> i32 {
    if zone == Tz::UTC {
        return 0;
    }
    DateTime::from_timestamp_micros(micros)
        .map_or(0, |moment| zone.offset_from_utc_datetime(&moment.naive_utc()).fix().local_minus_utc())
}

/// The style `postgres`: `1 year 2 mons -3 days +04:05:06.5`.
pub fn put_interval(out: &mut BytesMut, months: i32, days: i32, micros: i64) {
    let mut first = true;
    let mut before_was_negative = false;
    for (value, unit) in [(months / 12, "year"), (months % 12, "mon"), (days, "day")] {
        if value == 0 {
            continue;
        }
        if !first {
            out.put_u8(b' ');
        }
        if before_was_negative && value > 0 {
            out.put_u8(b'+');
        }
        put_int(out, i128::from(value));
        out.put_u8(b' ');
        out.put_slice(unit.as_bytes());
        if value != 1 {
            out.put_u8(b's');
        }
        before_was_negative = value < 0;
        first = false;
    }
    if first || micros != 0 {
        if !first {
            out.put_u8(b' ');
        }
        if micros < 0 {
            out.put_u8(b'-');
        } else if before_was_negative {
            out.put_u8(b'+');
        }
        put_clock(out, micros.unsigned_abs());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(put: impl FnOnce(&mut BytesMut)) -> String {
        let mut out = BytesMut::new();
        put(&mut out);
        String::from_utf8(out.to_vec()).expect("text is UTF-8")
    }

    #[test]
    fn floats_print_as_postgres_prints_them() {
        let shortest = FloatDigits(1);
        let cases: [(f64, &str); 14] = [
            (0.0, "0"),
            (-0.0, "-0"),
            (1.0, "1"),
            (0.1 + 0.2, "0.30000000000000004"),
            (1e14, "100000000000000"),
            (1e15, "1e+15"),
            (123456789012345.6, "123456789012345.6"),
            (1234567890123456.0, "1.234567890123456e+15"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (1e300, "1e+300"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-Infinity"),
        ];
        for (value, expected) in cases {
            assert_eq!(text(|out| put_float8(out, value, shortest)), expected);
        }
        let cases: [(f32, &str); 4] = [(0.1, "0.1"), (123456.0, "123456"), (1e6, "1e+06"), (1.5e-5, "1.5e-05")];
        for (value, expected) in cases {
            assert_eq!(text(|out| put_float4(out, value, shortest)), expected);
        }
        assert_eq!(text(|out| put_float8(out, 0.1 + 0.2, FloatDigits(0))), "0.3");
        assert_eq!(text(|out| put_float8(out, 123456.789, FloatDigits(-12))), "1.23e+05");
    }

    #[test]
    fn decimals_keep_their_scale() {
        for (digits, scale, expected) in [
            ("150", 2, "1.50"),
            ("-5", 3, "-0.005"),
            ("0", 2, "0.00"),
            ("12", 0, "12"),
            ("12", -2, "1200"),
            ("0", -2, "0"),
        ] {
            assert_eq!(text(|out| put_numeric(out, digits, scale)), expected);
        }
        assert_eq!(text(|out| put_int(out, i128::MIN)), i128::MIN.to_string());
        assert_eq!(text(|out| put_int(out, 0)), "0");
    }

    #[test]
    fn dates_and_times() {
        for (days, expected) in [
            (0, "1970-01-01"),
            (20_455, "2026-01-02"),
            (-719_163, "0001-12-31 BC"),
            (-719_162, "0001-01-01"),
            (i32::MAX, "5881580-07-11"),
        ] {
            assert_eq!(text(|out| put_date(out, days)), expected);
        }
        let moment = 20_455 * MICROS_PER_DAY + 11_045_123_456;
        assert_eq!(text(|out| put_timestamp(out, moment)), "2026-01-02 03:04:05.123456");
        assert_eq!(text(|out| put_timestamp(out, -1)), "1969-12-31 23:59:59.999999");
        assert_eq!(text(|out| put_timestamp(out, 500_000)), "1970-01-01 00:00:00.5");
        for (zone, expected) in [
            (Tz::UTC, "2026-01-02 03:04:05.123456+00"),
            (Tz::Asia__Kolkata, "2026-01-02 08:34:05.123456+05:30"),
            (Tz::America__New_York, "2026-01-01 22:04:05.123456-05"),
        ] {
            assert_eq!(text(|out| put_timestamptz(out, moment, zone)), expected);
        }
        text(|out| put_timestamptz(out, i64::MIN, Tz::Europe__Berlin));
        assert_eq!(text(|out| put_time(out, 3_600_000_001)), "01:00:00.000001");
    }

    #[test]
    fn intervals() {
        for ((months, days, micros), expected) in [
            ((0, 0, 0), "00:00:00"),
            ((14, 3, 14_706_789_000), "1 year 2 mons 3 days 04:05:06.789"),
            ((-1, 0, 5_000_000), "-1 mons +00:00:05"),
            ((0, -1, -5_000_000), "-1 days -00:00:05"),
            ((1, 1, 0), "1 mon 1 day"),
            ((0, 0, 360_000_000_000), "100:00:00"),
        ] {
            assert_eq!(text(|out| put_interval(out, months, days, micros)), expected);
        }
    }
}
