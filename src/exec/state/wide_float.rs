//! An exact sum of any doubles.

use super::ExecError;

/// A sum of doubles as a sparse number in base 2^32, as in Neal, "Fast exact summation using small and large
/// superaccumulators" (2015), with the values that are no numbers counted apart.
#[derive(Debug, Clone, Default)]
pub(super) struct WideFloat {
    nan: i64,
    positive_infinity: i64,
    negative_infinity: i64,
    /// (k, c) stands for c * 2^(32 k); ascending by k, no zeros, magnitudes not bounded by the base.
    digits: Vec<(i16, i128)>,
}

const BASE_BITS: i32 = 32;
/// The place of the fixed-point numbers' lowest digit.
const FIXED_PLACE: i16 = -2;
const VERSION: u8 = 1;

impl WideFloat {
    pub fn add(&mut self, value: f64, weight: i64) {
        if value.is_nan() {
            self.nan += weight;
        } else if value == f64::INFINITY {
            self.positive_infinity += weight;
        } else if value == f64::NEG_INFINITY {
            self.negative_infinity += weight;
        } else if value != 0.0 {
            let bits = value.to_bits();
            let exponent = ((bits >> 52) & 0x7ff) as i32;
            let fraction = u128::from(bits & ((1 << 52) - 1));
            let (mantissa, exponent) =
                if exponent == 0 { (fraction, -1074) } else { (fraction | (1 << 52), exponent - 1075) };
            let place = exponent.div_euclid(BASE_BITS) as i16;
            let shifted = mantissa << exponent.rem_euclid(BASE_BITS);
            let weight = if value < 0.0 { -i128::from(weight) } else { i128::from(weight) };
            self.add_digits(place, shifted, weight);
        }
    }

    /// Adds a multiple of 2^-64.
    pub fn add_fixed(&mut self, value: i128) {
        self.add_digits(FIXED_PLACE, value.unsigned_abs(), value.signum());
    }

    pub fn subtract_fixed(&mut self, value: i128) {
        self.add_digits(FIXED_PLACE, value.unsigned_abs(), -value.signum());
    }

    /// Adds `sign` times another sum.
    pub fn combine(&mut self, other: &WideFloat, sign: i64) {
        self.nan += sign * other.nan;
        self.positive_infinity += sign * other.positive_infinity;
        self.negative_infinity += sign * other.negative_infinity;
        for &(place, digit) in &other.digits {
            self.add_digit(place, digit * i128::from(sign));
        }
        self.normalise();
    }

    fn add_digits(&mut self, mut place: i16, mut magnitude: u128, factor: i128) {
        while magnitude != 0 {
            self.add_digit(place, (magnitude & 0xffff_ffff) as i128 * factor);
            magnitude >>= BASE_BITS;
            place += 1;
        }
        self.normalise();
    }

    fn add_digit(&mut self, place: i16, digit: i128) {
        match self.digits.binary_search_by_key(&place, |d| d.0) {
            Ok(at) => self.digits[at].1 += digit,
            Err(at) => self.digits.insert(at, (place, digit)),
        }
    }

    /// Brings every digit below the base, all of the sign of the highest one: the one way to write a number.
    fn normalise(&mut self) {
        let magnitude_of = |digits: &mut Vec<(i16, i128)>| {
            let mut at = 0;
            while at < digits.len() {
                let (place, digit) = digits[at];
                let carry = digit >> BASE_BITS;
                if carry != 0 && !(carry == -1 && at + 1 == digits.len()) {
                    digits[at].1 = digit & 0xffff_ffff;
                    match digits.get_mut(at + 1) {
                        Some(next) if next.0 == place + 1 => next.1 += carry,
                        _ => digits.insert(at + 1, (place + 1, carry)),
                    }
                }
                at += 1;
            }
            digits.retain(|d| d.1 != 0);
        };
        magnitude_of(&mut self.digits);
        // Now all digits but the highest are positive. If that one is negative, the number's magnitude is written instead.
        if self.digits.last().is_some_and(|d| d.1 < 0) {
            self.digits.iter_mut().for_each(|d| d.1 = -d.1);
            magnitude_of(&mut self.digits);
            self.digits.iter_mut().for_each(|d| d.1 = -d.1);
        }
    }

    pub fn is_zero(&self) -> bool {
        self.nan == 0 && self.positive_infinity == 0 && self.negative_infinity == 0 && self.digits.is_empty()
    }

    /// This sum and a multiple of 2^-64 together, rounded to the nearest double.
    pub fn sum_with(&self, fixed: i128) -> f64 {
        match (self.nan > 0, self.positive_infinity > 0, self.negative_infinity > 0) {
            (true, _, _) | (_, true, true) => return f64::NAN,
            (_, true, _) => return f64::INFINITY,
            (_, _, true) => return f64::NEG_INFINITY,
            _ => {}
        }
        let mut total = self.clone();
        total.add_fixed(fixed);
        let Some(&(top, highest)) = total.digits.last() else {
            return 0.0;
        };
        // The four highest places are at least 97 bits; whether anything is below them decides a tie.
        let mut magnitude = 0u128;
        let mut rest = false;
        for &(place, digit) in &total.digits {
            let depth = i32::from(top - place);
            if depth < 4 {
                magnitude |= digit.unsigned_abs() << (BASE_BITS * (3 - depth));
            } else {
                rest = true;
            }
        }
        magnitude |= u128::from(rest);
        let value = scale(magnitude as f64, BASE_BITS * (i32::from(top) - 3));
        if highest < 0 { -value } else { value }
    }

    /// Version (1 byte); NaNs, infinities, negative infinities (8 bytes each); the digits from the lowest place, each as its
    /// place (2 bytes) and value (8 bytes). Little-endian, signed.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(25 + 10 * self.digits.len());
        bytes.push(VERSION);
        for count in [self.nan, self.positive_infinity, self.negative_infinity] {
            bytes.extend_from_slice(&count.to_le_bytes());
        }
        for &(place, digit) in &self.digits {
            bytes.extend_from_slice(&place.to_le_bytes());
            bytes.extend_from_slice(&(digit as i64).to_le_bytes());
        }
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Result<WideFloat, ExecError> {
        let parts =
            bytes.split_first_chunk::<25>().filter(|(head, digits)| head[0] == VERSION && digits.len() % 10 == 0);
        let Some((head, digits)) = parts else {
            return Err(ExecError::State {
                function: "a float sum".into(),
                reason: format!("{} bytes of version {:?}", bytes.len(), bytes.first()),
            });
        };
        let int = |bytes: &[u8]| i64::from_le_bytes(bytes.try_into().expect("eight bytes were cut off"));
        Ok(WideFloat {
            nan: int(&head[1..9]),
            positive_infinity: int(&head[9..17]),
            negative_infinity: int(&head[17..25]),
            digits: digits
                .chunks_exact(10)
                .map(|d| (i16::from_le_bytes([d[0], d[1]]), i128::from(int(&d[2..]))))
                .collect(),
        })
    }

    pub fn bytes(&self) -> usize {
        self.digits.capacity() * size_of::<(i16, i128)>()
    }
}

/// `value * 2^exponent` in steps that neither overflow nor vanish before the result does.
fn scale(mut value: f64, mut exponent: i32) -> f64 {
    while exponent != 0 {
        let step = exponent.clamp(-512, 512);
        value *= 2f64.powi(step);
        exponent -= step;
    }
    value
}

#[cfg(test)]
mod tests {
    use super::WideFloat;

    fn check(values: &[f64]) -> f64 {
        let mut sum = WideFloat::default();
        for &v in values {
            sum.add(v, 1);
        }
        let mut back = WideFloat::decode(&sum.encode()).unwrap();
        let shown = back.sum_with(0);
        for &v in values {
            back.add(v, -1);
        }
        assert!(back.is_zero(), "taking all of {values:?} back leaves {back:?}");
        shown
    }

    #[test]
    fn sums_are_exact() {
        assert_eq!(check(&[1e300, 1.0, -1e300]), 1.0);
        assert_eq!(check(&[1e308, 1e308, -1e308]), 1e308);
        assert_eq!(check(&[1e308, 1e308]), f64::INFINITY);
        assert_eq!(check(&[f64::MAX]), f64::MAX);
        assert_eq!(check(&[-f64::MIN_POSITIVE, 5e-324]), -2.225073858507201e-308);
        assert_eq!(check(&[0.1, 0.2, -0.3]), 2.7755575615628914e-17);
        assert_eq!(check(&[1.0, f64::EPSILON / 2.0, 1e-40]), 1.0 + f64::EPSILON);
        assert_eq!(check(&[f64::INFINITY, 1.0]), f64::INFINITY);
        assert!(check(&[f64::INFINITY, f64::NEG_INFINITY]).is_nan());
        assert_eq!(check(&[-1e20, 3.0, 1e-20]), -99999999999999999997.0);
    }
}
