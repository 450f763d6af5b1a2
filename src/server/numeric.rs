//! The binary form of NUMERIC: sign, weight, scale and base-10000 digits.

use bytes::{Buf, BufMut, BytesMut};

const POSITIVE: u16 = 0x0000;
const NEGATIVE: u16 = 0x4000;
const NAN: u16 = 0xC000;

/// Writes an unscaled integer, given as its decimal text, with `scale` digits after the point.
pub fn put(out: &mut BytesMut, text: &str, scale: i8) {
    let (negative, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut digits: Vec<u8> = unsigned.bytes().map(|b| b - b'0').collect();
    if scale < 0 {
        digits.resize(digits.len() + usize::from(scale.unsigned_abs()), 0);
    }
    let fraction = usize::from(scale.max(0).unsigned_abs());
    // Groups of four are aligned to the decimal point on both sides.
    let whole = digits.len().saturating_sub(fraction);
    let mut aligned = vec![0u8; (4 - whole % 4) % 4];
    if digits.len() < fraction {
        aligned.resize(fraction - digits.len(), 0);
    }
    let whole_groups = whole.div_ceil(4);
    aligned.extend_from_slice(&digits);
    aligned.resize(aligned.len().next_multiple_of(4), 0);
    let groups: Vec<i16> =
        aligned.chunks_exact(4).map(|d| d.iter().fold(0i16, |sum, &d| sum * 10 + i16::from(d))).collect();
    let leading = groups.iter().take_while(|&&g| g == 0).count();
    let trailing = groups.iter().skip(leading).rev().take_while(|&&g| g == 0).count();
    let kept = &groups[leading..groups.len() - trailing];
    out.put_i16(kept.len() as i16);
    out.put_i16(if kept.is_empty() { 0 } else { whole_groups as i16 - 1 - leading as i16 });
    out.put_u16(if negative && !kept.is_empty() { NEGATIVE } else { POSITIVE });
    out.put_u16(fraction as u16);
    for group in kept {
        out.put_i16(*group);
    }
}

/// Reads the binary form as the text of a decimal number, such as `-12.50`. `None` if it is malformed, NaN or infinite.
pub fn to_text(mut bytes: &[u8]) -> Option<String> {
    if bytes.len() < 8 {
        return None;
    }
    let count = bytes.get_u16();
    let weight = i32::from(bytes.get_i16());
    let sign = bytes.get_u16();
    let scale = usize::from(bytes.get_u16());
    if bytes.len() != usize::from(count) * 2 || sign >= NAN || scale > 16_383 {
        return None;
    }
    let mut groups = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        let group = bytes.get_i16();
        if !(0..10_000).contains(&group) {
            return None;
        }
        groups.push(group);
    }
    let group = |place: i32| usize::try_from(weight - place).ok().and_then(|i| groups.get(i)).copied().unwrap_or(0);
    let mut text = String::new();
    if sign == NEGATIVE {
        text.push('-');
    }
    if weight < 0 {
        text.push('0');
    }
    for place in (0..=weight).rev() {
        let digits = format!("{:04}", group(place));
        text.push_str(if place == weight { digits.trim_start_matches('0') } else { &digits });
    }
    if text.is_empty() || text == "-" {
        text.push('0');
    }
    if scale > 0 {
        text.push('.');
        let start = text.len();
        let mut place = -1;
        while text.len() - start < scale {
            text.push_str(&format!("{:04}", group(place)));
            place -= 1;
        }
        text.truncate(start + scale);
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(text: &str, scale: i8) -> (Vec<i16>, i16, u16, u16) {
        let mut out = BytesMut::new();
        put(&mut out, text, scale);
        let n = out.get_i16();
        let (weight, sign, scale) = (out.get_i16(), out.get_u16(), out.get_u16());
        ((0..n).map(|_| out.get_i16()).collect(), weight, sign, scale)
    }

    #[test]
    fn groups_are_aligned_to_the_point() {
        assert_eq!(groups("0", 2), (vec![], 0, POSITIVE, 2));
        assert_eq!(groups("1", 0), (vec![1], 0, POSITIVE, 0));
        assert_eq!(groups("-12345678", 3), (vec![1, 2345, 6780], 1, NEGATIVE, 3));
        assert_eq!(groups("5", 6), (vec![500], -2, POSITIVE, 6));
        assert_eq!(groups("10000", 0), (vec![1], 1, POSITIVE, 0));
        assert_eq!(groups("12", -4), (vec![12], 1, POSITIVE, 0));
    }

    #[test]
    fn text_comes_back() {
        for (text, scale, expected) in [
            ("0", 2, "0.00"),
            ("-12345678", 3, "-12345.678"),
            ("5", 6, "0.000005"),
            ("10000", 0, "10000"),
            ("170141183460469231731687303715884105727", 10, "17014118346046923173168730371.5884105727"),
        ] {
            let mut out = BytesMut::new();
            put(&mut out, text, scale);
            assert_eq!(to_text(&out).as_deref(), Some(expected));
        }
        assert_eq!(to_text(&[0, 1, 0, 0, 0, 0, 0]), None);
        assert_eq!(to_text(&[0, 0, 0, 0, 0xC0, 0, 0, 0]), None);
    }
}
