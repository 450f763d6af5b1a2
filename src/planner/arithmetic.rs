//! Arithmetic where DataFusion's is not Postgres': integers that overflow, decimals that are divided, floats divided by zero.

use arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, Datum, PrimitiveArray};
use arrow::compute::kernels::numeric::{add, mul, sub};
use arrow::datatypes::{DataType, Decimal128Type, Float32Type, Float64Type, i256};
use arrow::error::ArrowError;
use datafusion::common::{Result, exec_err};
use datafusion::logical_expr::{
    ColumnarValue, Expr, Operator, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::physical_expr_common::datum::apply;

/// Digits behind the point of a quotient, and the most that a product gets of its own: Postgres shows as many significant ones.
const DIGITS: i8 = 16;
const MOST_DIGITS: u8 = 38;

/// `+`, `-` and `*` of two integers of one type; an overflow is an error instead of a wrong number.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct CheckedArithmetic {
    pub op: Operator,
    signature: Signature,
}

impl CheckedArithmetic {
    /// `None` for an operator that cannot overflow unnoticed.
    pub fn call(op: Operator, left: Expr, right: Expr) -> Option<Expr> {
        matches!(op, Operator::Plus | Operator::Minus | Operator::Multiply).then(|| {
            let function = CheckedArithmetic { op, signature: Signature::any(2, Volatility::Immutable) };
            ScalarUDF::from(function).call(vec![left, right])
        })
    }
}

/// As it was written.
fn infix(op: Operator, args: &[Expr]) -> Option<String> {
    let [left, right] = args else { return None };
    Some(format!("{left} {op} {right}"))
}

impl ScalarUDFImpl for CheckedArithmetic {
    fn name(&self) -> &str {
        match self.op {
            Operator::Plus => "checked_add",
            Operator::Minus => "checked_sub",
            _ => "checked_mul",
        }
    }

    fn display_name(&self, args: &[Expr]) -> Result<String> {
        Ok(infix(self.op, args).unwrap_or_else(|| self.name().to_string()))
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, args: &[DataType]) -> Result<DataType> {
        match args {
            [left, right] if left == right && left.is_integer() => Ok(left.clone()),
            _ => exec_err!("{} takes two integers of one type", self.name()),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [left, right] = args.args.as_slice() else { return exec_err!("{} takes two arguments", self.name()) };
        match self.op {
            Operator::Plus => apply(left, right, add),
            Operator::Minus => apply(left, right, sub),
            _ => apply(left, right, mul),
        }
    }
}

/// `/` of two decimals, and `*` where the exact product would have too many digits behind the point: rounded half away from zero,
/// as Postgres rounds.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct DecimalArithmetic {
    op: Operator,
    signature: Signature,
}

impl DecimalArithmetic {
    /// `None` where Arrow's own operator will do.
    pub fn call(op: Operator, left: (Expr, &DataType), right: (Expr, &DataType)) -> Option<Expr> {
        let (DataType::Decimal128(_, s1), DataType::Decimal128(_, s2)) = (left.1, right.1) else { return None };
        if *s1 < 0 || *s2 < 0 {
            return None;
        }
        let rounds = match op {
            Operator::Divide => true,
            Operator::Multiply => i16::from(*s1) + i16::from(*s2) > i16::from(DIGITS.max(*s1).max(*s2)),
            _ => false,
        };
        rounds.then(|| {
            let function = DecimalArithmetic { op, signature: Signature::any(2, Volatility::Immutable) };
            ScalarUDF::from(function).call(vec![left.0, right.0])
        })
    }

    fn scales(types: &[DataType]) -> Option<(i8, i8, i8)> {
        match types {
            [DataType::Decimal128(_, s1), DataType::Decimal128(_, s2)] => Some((*s1, *s2, DIGITS.max(*s1).max(*s2))),
            _ => None,
        }
    }
}

impl ScalarUDFImpl for DecimalArithmetic {
    fn name(&self) -> &str {
        match self.op {
            Operator::Divide => "numeric_div",
            _ => "numeric_mul",
        }
    }

    fn display_name(&self, args: &[Expr]) -> Result<String> {
        Ok(infix(self.op, args).unwrap_or_else(|| self.name().to_string()))
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, args: &[DataType]) -> Result<DataType> {
        match DecimalArithmetic::scales(args) {
            Some((_, _, scale)) => Ok(DataType::Decimal128(MOST_DIGITS, scale)),
            None => exec_err!("{} takes two decimals", self.name()),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [left, right] = args.args.as_slice() else { return exec_err!("{} takes two arguments", self.name()) };
        let Some((s1, s2, scale)) = DecimalArithmetic::scales(&[left.data_type(), right.data_type()]) else {
            return exec_err!("{} takes two decimals", self.name());
        };
        let typed = |values: PrimitiveArray<Decimal128Type>| values.with_precision_and_scale(MOST_DIGITS, scale);
        if self.op == Operator::Divide {
            let shift = power_of_ten(i32::from(scale) - i32::from(s1) + i32::from(s2));
            return apply(left, right, |l, r| {
                boxed(typed(each::<Decimal128Type>(l, r, |l, r| quotient(l, r, shift))?)?)
            });
        }
        let shift = power_of_ten(i32::from(s1) + i32::from(s2) - i32::from(scale));
        apply(left, right, |l, r| boxed(typed(each::<Decimal128Type>(l, r, |l, r| product(l, r, shift))?)?))
    }
}

fn boxed<T: Array + 'static>(array: T) -> Result<ArrayRef, ArrowError> {
    Ok(std::sync::Arc::new(array))
}

/// At most 10^76, which 256 bits hold.
fn power_of_ten(exponent: i32) -> i256 {
    (0..exponent.max(0)).fold(i256::ONE, |power, _| power.wrapping_mul(i256::from_i128(10)))
}

fn quotient(left: i128, right: i128, shift: i256) -> Result<i128, ArrowError> {
    if right == 0 {
        return Err(ArrowError::DivideByZero);
    }
    let numerator = i256::from_i128(left).checked_mul(shift).ok_or_else(overflow)?;
    rounded(numerator, i256::from_i128(right))
}

fn product(left: i128, right: i128, shift: i256) -> Result<i128, ArrowError> {
    let exact = i256::from_i128(left).checked_mul(i256::from_i128(right)).ok_or_else(overflow)?;
    rounded(exact, shift)
}

/// The quotient, half away from zero, if it has no more than 38 digits.
fn rounded(numerator: i256, divisor: i256) -> Result<i128, ArrowError> {
    let whole = numerator.checked_div(divisor).ok_or_else(overflow)?;
    let rest = numerator.wrapping_rem(divisor).wrapping_abs();
    let is_negative = (numerator < i256::ZERO) != (divisor < i256::ZERO);
    // Not doubled: the rest may be as large as the divisor.
    let away = rest >= divisor.wrapping_abs().wrapping_sub(rest);
    let value = match (away && rest != i256::ZERO, is_negative) {
        (false, _) => whole,
        (true, false) => whole.wrapping_add(i256::ONE),
        (true, true) => whole.wrapping_sub(i256::ONE),
    };
    value.to_i128().filter(|value| value.unsigned_abs() < 10u128.pow(u32::from(MOST_DIGITS))).ok_or_else(overflow)
}

fn overflow() -> ArrowError {
    ArrowError::ArithmeticOverflow("Overflow happened on: an operation on numeric values".into())
}

/// `/` of two floats: a divisor of zero is an error, and so is a quotient too large to be finite.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct FloatDivision {
    signature: Signature,
}

impl FloatDivision {
    pub fn call(left: Expr, right: Expr) -> Expr {
        let function = FloatDivision { signature: Signature::any(2, Volatility::Immutable) };
        ScalarUDF::from(function).call(vec![left, right])
    }
}

impl ScalarUDFImpl for FloatDivision {
    fn name(&self) -> &str {
        "float_div"
    }

    fn display_name(&self, args: &[Expr]) -> Result<String> {
        Ok(infix(Operator::Divide, args).unwrap_or_else(|| self.name().to_string()))
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, args: &[DataType]) -> Result<DataType> {
        match args {
            [left, right] if left == right && left.is_floating() => Ok(left.clone()),
            _ => exec_err!("{} takes two floats of one type", self.name()),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [left, right] = args.args.as_slice() else { return exec_err!("{} takes two arguments", self.name()) };
        match (left.data_type(), right.data_type()) {
            (DataType::Float64, DataType::Float64) => {
                apply(left, right, |l, r| boxed(each::<Float64Type>(l, r, |l, r| checked_quotient(l / r, l, r))?))
            }
            (DataType::Float32, DataType::Float32) => apply(left, right, |l, r| {
                boxed(each::<Float32Type>(l, r, |l, r| checked_quotient(l / r, l.into(), r.into()))?)
            }),
            _ => exec_err!("{} takes two floats of one type", self.name()),
        }
    }
}

fn checked_quotient<T: Into<f64> + Copy>(quotient: T, left: f64, right: f64) -> Result<T, ArrowError> {
    if right == 0.0 && !left.is_nan() {
        return Err(ArrowError::DivideByZero);
    }
    if quotient.into().is_infinite() && left.is_finite() {
        return Err(ArrowError::ArithmeticOverflow(format!("Overflow happened on: {left:e} / {right:e}")));
    }
    Ok(quotient)
}

/// The operation on each pair of values; NULL with anything is NULL.
fn each<T: ArrowPrimitiveType>(
    left: &dyn Datum,
    right: &dyn Datum,
    operation: impl Fn(T::Native, T::Native) -> Result<T::Native, ArrowError>,
) -> Result<PrimitiveArray<T>, ArrowError> {
    let ((left, left_is_scalar), (right, right_is_scalar)) = (left.get(), right.get());
    let (left, right) = (left.as_primitive::<T>(), right.as_primitive::<T>());
    let rows = if left_is_scalar { right.len() } else { left.len() };
    let at = |array: &PrimitiveArray<T>, is_scalar: bool, row: usize| {
        let row = if is_scalar { 0 } else { row };
        array.is_valid(row).then(|| array.value(row))
    };
    let pairs = (0..rows).map(|row| at(left, left_is_scalar, row).zip(at(right, right_is_scalar, row)));
    pairs.map(|pair| pair.map(|(left, right)| operation(left, right)).transpose()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Left and right in hundredths.
    fn check(op: Operator, left: i128, right: i128, expected: &str) {
        let got = match op {
            Operator::Divide => quotient(left, right, power_of_ten(i32::from(DIGITS))),
            _ => product(left, right, power_of_ten(2)),
        };
        let got = got.map_or_else(|error| error.to_string(), |value| value.to_string());
        assert_eq!(got, expected, "{left} {op} {right}");
    }

    #[test]
    fn decimals_are_rounded_half_away_from_zero() {
        check(Operator::Divide, 100, 300, "3333333333333333");
        check(Operator::Divide, 200, 300, "6666666666666667");
        check(Operator::Divide, -200, 300, "-6666666666666667");
        check(Operator::Divide, 1, 0, "Divide by zero error");
        let most = 10i128.pow(38) - 1;
        check(Operator::Divide, most, 1, "Arithmetic overflow: Overflow happened on: an operation on numeric values");
        check(Operator::Divide, most, most, "10000000000000000");
        check(Operator::Multiply, 15, 10, "2");
        check(Operator::Multiply, -15, 10, "-2");
        check(Operator::Multiply, 14, 10, "1");
        check(
            Operator::Multiply,
            most,
            most,
            "Arithmetic overflow: Overflow happened on: an operation on numeric values",
        );
    }

    #[test]
    fn floats_are_not_divided_by_zero() {
        let divide = |left: f64, right: f64| checked_quotient(left / right, left, right).map_err(|e| e.to_string());
        assert_eq!(divide(1.0, 4.0), Ok(0.25));
        assert_eq!(divide(1.0, -0.0), Err("Divide by zero error".into()));
        assert!(divide(f64::NAN, 0.0).is_ok_and(f64::is_nan));
        assert_eq!(divide(f64::INFINITY, 2.0), Ok(f64::INFINITY));
        assert!(divide(1e300, 1e-300).is_err());
        assert!(checked_quotient(1e30f32 / 1e-30f32, 1e30, 1e-30).is_err());
    }
}
