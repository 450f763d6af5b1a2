//! Numbers and times as text into a buffer that is used again.

use std::io::Write as _;

pub(super) fn push_u64(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

pub(super) fn push_i64(out: &mut Vec<u8>, value: i64) {
    if value < 0 {
        out.push(b'-');
    }
    push_u64(out, value.unsigned_abs());
}

/// `value` at `scale` digits after the point.
pub(super) fn push_decimal(out: &mut Vec<u8>, value: i128, scale: u32) {
    let unit = 10u128.pow(scale);
    let (whole, fraction) = (value.unsigned_abs() / unit, value.unsigned_abs() % unit);
    let sign = if value < 0 { "-" } else { "" };
    let written = match scale {
        0 => write!(out, "{sign}{whole}"),
        _ => write!(out, "{sign}{whole}.{fraction:0width$}", width = scale as usize),
    };
    written.expect("a Vec takes every write");
}

/// `YYYY-MM-DD` of days since the epoch.
pub(super) fn push_date(out: &mut Vec<u8>, days: i64) {
    let (year, month, day) = civil_from_days(days);
    write!(out, "{year:04}-{month:02}-{day:02}").expect("a Vec takes every write");
}

/// `HH:MM:SS.ffffff` of microseconds since midnight.
pub(super) fn push_time(out: &mut Vec<u8>, us: i64) {
    let (seconds, fraction) = (us / 1_000_000, us % 1_000_000);
    write!(out, "{:02}:{:02}:{:02}.{fraction:06}", seconds / 3600, seconds / 60 % 60, seconds % 60)
        .expect("a Vec takes every write");
}

/// Proleptic Gregorian (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day_of_year - (153 * shifted + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes() {
        let check = |write: &dyn Fn(&mut Vec<u8>)| {
            let mut out = Vec::new();
            write(&mut out);
            String::from_utf8(out).expect("text")
        };
        assert_eq!(check(&|o| push_u64(o, 0)), "0");
        assert_eq!(check(&|o| push_u64(o, u64::MAX)), u64::MAX.to_string());
        assert_eq!(check(&|o| push_i64(o, i64::MIN)), i64::MIN.to_string());
        assert_eq!(check(&|o| push_decimal(o, -5, 2)), "-0.05");
        assert_eq!(check(&|o| push_decimal(o, 12345, 0)), "12345");
        assert_eq!(check(&|o| push_date(o, 19_782)), "2024-02-29");
        assert_eq!(check(&|o| push_date(o, -1)), "1969-12-31");
        assert_eq!(check(&|o| push_time(o, 86_399_000_001)), "23:59:59.000001");
    }
}
