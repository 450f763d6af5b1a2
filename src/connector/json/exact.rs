//! Exact arithmetic on numbers as they are written.

/// Why a number does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Inexact {
    /// Digits that are not zero would be lost.
    Fraction,
    OutOfRange,
}

/// What to do with digits beyond the scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Excess {
    Refuse,
    Cut,
}

/// The number times 10^`scale`. `text` is a number in JSON's grammar.
pub(super) fn scaled(text: &[u8], scale: i32, excess: Excess) -> Result<i128, Inexact> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (mantissa, exponent) = match text.iter().position(|b| matches!(b, b'e' | b'E')) {
        Some(e) => (&text[..e], exponent(&text[e + 1..])),
        None => (text, 0),
    };
    let (whole, fraction) = match mantissa.iter().position(|b| *b == b'.') {
        Some(point) => (&mantissa[..point], &mantissa[point + 1..]),
        None => (mantissa, &[][..]),
    };
    let mut digits = whole.iter().chain(fraction).map(|d| i128::from(d - b'0'));
    let count = (whole.len() + fraction.len()) as i64;
    // So many of the digits stand before the point once it is moved by exponent and scale.
    let keep = whole.len() as i64 + exponent + i64::from(scale);
    let mut value = 0i128;
    for digit in digits.by_ref().take(keep.clamp(0, count) as usize) {
        value = value.checked_mul(10).and_then(|v| v.checked_add(digit)).ok_or(Inexact::OutOfRange)?;
    }
    if excess == Excess::Refuse && digits.any(|d| d != 0) {
        return Err(Inexact::Fraction);
    }
    if value != 0 && keep > count {
        let zeros = u32::try_from(keep - count).map_err(|_| Inexact::OutOfRange)?;
        let factor = 10i128.checked_pow(zeros).ok_or(Inexact::OutOfRange)?;
        value = value.checked_mul(factor).ok_or(Inexact::OutOfRange)?;
    }
    Ok(if negative { -value } else { value })
}

fn exponent(text: &[u8]) -> i64 {
    let (negative, digits) = match text.first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let value = digits.iter().fold(0i64, |v, d| (v * 10 + i64::from(d - b'0')).min(1 << 40));
    if negative { -value } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_exactly() {
        let check = |text: &str, scale| scaled(text.as_bytes(), scale, Excess::Refuse);
        assert_eq!(check("1.0", 0), Ok(1));
        assert_eq!(check("1e3", 0), Ok(1000));
        assert_eq!(check("-12.50e1", 0), Ok(-125));
        assert_eq!(check("0.1", 1), Ok(1));
        assert_eq!(check("1200e-2", 0), Ok(12));
        assert_eq!(check("1250e-2", 0), Err(Inexact::Fraction));
        assert_eq!(check("0.001", 2), Err(Inexact::Fraction));
        assert_eq!(check("0.0010", 3), Ok(1));
        assert_eq!(check("0e999999999999999999", 0), Ok(0));
        assert_eq!(check("1e999999999999999999", 0), Err(Inexact::OutOfRange));
        assert_eq!(check("1e-999999999999999999", 10), Err(Inexact::Fraction));
        assert_eq!(check("170141183460469231731687303715884105728", 0), Err(Inexact::OutOfRange));
        assert_eq!(scaled(b"1700000000.1234567", 6, Excess::Cut), Ok(1_700_000_000_123_456));
        assert_eq!(scaled(b"0.0000001", 6, Excess::Cut), Ok(0));
    }
}
