//! Operators of intervals where DataFusion's are not Postgres'. `interval * number` and `/`: what is not whole of a month counts as days,
//! 30 to a month, and what is not whole of a day as time of day. Comparisons, by the length. A date and an interval make a timestamp.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Decimal128Array, IntervalMonthDayNanoArray};
use arrow::datatypes::{DataType, Float64Type, IntervalMonthDayNano, IntervalMonthDayNanoType, IntervalUnit, TimeUnit};
use arrow::error::ArrowError;
use datafusion::common::{DFSchema, Result, ScalarValue, exec_err};
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ExprSchemable, Operator, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
    binary_expr, cast,
};
use sqlparser::ast::BinaryOperator;

const INTERVAL: DataType = DataType::Interval(IntervalUnit::MonthDayNano);
const TIMESTAMP: DataType = DataType::Timestamp(TimeUnit::Microsecond, None);
const DAYS_PER_MONTH: f64 = 30.0;
const NANOS_PER_DAY: f64 = 86_400e9;

#[derive(Debug)]
pub struct IntervalPlanner;

/// What an operand is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Interval,
    Date,
    Number,
    /// NULL, or a parameter whose type is not known yet.
    Open,
    Other,
}

fn kind(expr: &Expr, schema: &DFSchema) -> Kind {
    match (expr, expr.get_type(schema)) {
        (_, Ok(DataType::Interval(_) | DataType::Duration(_))) => Kind::Interval,
        (_, Ok(DataType::Date32)) => Kind::Date,
        (_, Ok(DataType::Null)) => Kind::Open,
        (Expr::Placeholder(_), Err(_)) => Kind::Open,
        (_, Ok(data_type)) if data_type.is_numeric() => Kind::Number,
        _ => Kind::Other,
    }
}

impl ExprPlanner for IntervalPlanner {
    fn plan_binary_op(&self, expr: RawBinaryExpr, schema: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
        use BinaryOperator as Op;
        let RawBinaryExpr { op, left, right } = expr;
        let is_number = |kind| matches!(kind, Kind::Number | Kind::Open);
        let planned = match (&op, kind(&left, schema), kind(&right, schema)) {
            (Op::Multiply, Kind::Interval, other) if is_number(other) => times(left, right, false),
            (Op::Multiply, other, Kind::Interval) if is_number(other) => times(right, left, false),
            (Op::Divide, Kind::Interval, other) if is_number(other) => times(left, right, true),
            (Op::Plus | Op::Minus, Kind::Date, Kind::Interval) => {
                binary_expr(cast(left, TIMESTAMP), if op == Op::Plus { Operator::Plus } else { Operator::Minus }, right)
            }
            (Op::Plus, Kind::Interval, Kind::Date) => binary_expr(left, Operator::Plus, cast(right, TIMESTAMP)),
            (_, Kind::Interval, Kind::Interval) => match comparison(&op) {
                Some(operator) => binary_expr(length(left), operator, length(right)),
                None => return Ok(PlannerResult::Original(RawBinaryExpr { op, left, right })),
            },
            _ => return Ok(PlannerResult::Original(RawBinaryExpr { op, left, right })),
        };
        Ok(PlannerResult::Planned(planned))
    }
}

fn comparison(op: &BinaryOperator) -> Option<Operator> {
    Some(match op {
        BinaryOperator::Eq => Operator::Eq,
        BinaryOperator::NotEq => Operator::NotEq,
        BinaryOperator::Lt => Operator::Lt,
        BinaryOperator::LtEq => Operator::LtEq,
        BinaryOperator::Gt => Operator::Gt,
        BinaryOperator::GtEq => Operator::GtEq,
        _ => return None,
    })
}

fn times(interval: Expr, number: Expr, divides: bool) -> Expr {
    let function = IntervalTimes { divides, signature: Signature::any(2, Volatility::Immutable) };
    ScalarUDF::from(function).call(vec![cast(interval, INTERVAL), cast(number, DataType::Float64)])
}

/// What an interval is compared by: a month as 30 days, a day as 24 hours.
pub fn length(interval: Expr) -> Expr {
    let function = IntervalLength { signature: Signature::any(1, Volatility::Immutable) };
    ScalarUDF::from(function).call(vec![cast(interval, INTERVAL)])
}

/// An interval in nanoseconds.
#[derive(Debug, PartialEq, Eq, Hash)]
struct IntervalLength {
    signature: Signature,
}

const NANOS: DataType = DataType::Decimal128(38, 0);

impl ScalarUDFImpl for IntervalLength {
    fn name(&self) -> &str {
        "interval_length"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(NANOS)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let is_scalar = matches!(args.args.as_slice(), [ColumnarValue::Scalar(_)]);
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        let Some(intervals) = arrays.first().and_then(|array| array.as_primitive_opt::<IntervalMonthDayNanoType>())
        else {
            return exec_err!("{} takes an interval", self.name());
        };
        let lengths: Decimal128Array = intervals.iter().map(|interval| interval.map(nanos)).collect();
        let lengths: ArrayRef = Arc::new(lengths.with_precision_and_scale(38, 0)?);
        Ok(match is_scalar {
            true => ColumnarValue::Scalar(ScalarValue::try_from_array(&lengths, 0)?),
            false => ColumnarValue::Array(lengths),
        })
    }
}

fn nanos(interval: IntervalMonthDayNano) -> i128 {
    let days = i128::from(interval.months) * 30 + i128::from(interval.days);
    days * 86_400_000_000_000 + i128::from(interval.nanoseconds)
}

/// An interval times a float, or through one.
#[derive(Debug, PartialEq, Eq, Hash)]
struct IntervalTimes {
    divides: bool,
    signature: Signature,
}

impl ScalarUDFImpl for IntervalTimes {
    fn name(&self) -> &str {
        if self.divides { "interval_div" } else { "interval_mul" }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(INTERVAL)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let is_scalar = args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        let (Some(intervals), Some(numbers)) = (
            arrays.first().and_then(|array| array.as_primitive_opt::<IntervalMonthDayNanoType>()),
            arrays.get(1).and_then(|array| array.as_primitive_opt::<Float64Type>()),
        ) else {
            return exec_err!("{} takes an interval and a float", self.name());
        };
        let of = |row: usize| {
            let both = intervals.is_valid(row) && numbers.is_valid(row);
            both.then(|| product(intervals.value(row), numbers.value(row), self.divides)).transpose()
        };
        let results: IntervalMonthDayNanoArray = (0..intervals.len()).map(of).collect::<Result<_, ArrowError>>()?;
        let results: ArrayRef = Arc::new(results);
        Ok(match is_scalar {
            true => ColumnarValue::Scalar(ScalarValue::try_from_array(&results, 0)?),
            false => ColumnarValue::Array(results),
        })
    }
}

fn product(interval: IntervalMonthDayNano, number: f64, divides: bool) -> Result<IntervalMonthDayNano, ArrowError> {
    if divides && number == 0.0 {
        return Err(ArrowError::DivideByZero);
    }
    let scaled = |value: f64| if divides { value / number } else { value * number };
    let months = scaled(f64::from(interval.months));
    // Rounded, so that a third of a month is ten days and not a float's breadth less.
    let days_of_months = rounded((months - months.trunc()) * DAYS_PER_MONTH, 1e12);
    let days = scaled(f64::from(interval.days));
    let nanos_of_days = (days - days.trunc() + days_of_months - days_of_months.trunc()) * NANOS_PER_DAY;
    let nanos = scaled(interval.nanoseconds as f64) + nanos_of_days;
    let whole = |value: f64, least: f64, most: f64| {
        let is_in_range = value.is_finite() && value >= least && value <= most;
        is_in_range.then_some(value).ok_or_else(|| ArrowError::ArithmeticOverflow("interval out of range".into()))
    };
    let (least, most) = (f64::from(i32::MIN), f64::from(i32::MAX));
    Ok(IntervalMonthDayNano::new(
        whole(months.trunc(), least, most)? as i32,
        whole(days.trunc() + days_of_months.trunc(), least, most)? as i32,
        whole(rounded(nanos, 1e-3), -(2f64.powi(63)), 2f64.powi(63) - 1024.0)? as i64,
    ))
}

/// To so many parts of one.
fn rounded(value: f64, parts: f64) -> f64 {
    (value * parts).round() / parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(interval: (i32, i32, i64), number: f64, divides: bool, expected: (i32, i32, i64)) {
        let (months, days, nanos) = interval;
        let got = product(IntervalMonthDayNano::new(months, days, nanos), number, divides).unwrap();
        assert_eq!((got.months, got.days, got.nanoseconds), expected, "{interval:?} {number} {divides}");
    }

    const HOUR: i64 = 3_600_000_000_000;

    #[test]
    fn what_is_not_whole_goes_down() {
        check((0, 1, 0), 2.0, false, (0, 2, 0));
        check((0, 1, 0), 1.5, false, (0, 1, 12 * HOUR));
        check((1, 0, 0), 0.5, false, (0, 15, 0));
        check((0, 0, HOUR), 1.5, false, (0, 0, HOUR + HOUR / 2));
        check((1, 0, 0), 3.0, true, (0, 10, 0));
        check((0, -1, 0), 0.5, false, (0, 0, -12 * HOUR));
        check((14, 3, HOUR), 0.0, false, (0, 0, 0));
        check((0, 0, 1_000_000), 3.0, true, (0, 0, 333_000));
    }

    #[test]
    fn what_is_too_large_is_an_error() {
        let error =
            |number, divides| product(IntervalMonthDayNano::new(1, 0, 0), number, divides).unwrap_err().to_string();
        assert_eq!(error(1e10, false), "Arithmetic overflow: interval out of range");
        assert_eq!(error(f64::NAN, false), "Arithmetic overflow: interval out of range");
        assert_eq!(error(0.0, true), "Divide by zero error");
    }
}
