//! `interval * number`, `number * interval` and `interval / number`, as Postgres has them: what is not whole of a month counts as days, 30
//! to a month, and what is not whole of a day as time of day.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, IntervalMonthDayNanoArray};
use arrow::datatypes::{DataType, Float64Type, IntervalMonthDayNano, IntervalMonthDayNanoType, IntervalUnit};
use arrow::error::ArrowError;
use datafusion::common::{DFSchema, Result, exec_err};
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr};
use datafusion::logical_expr::{
    ColumnarValue, ExprSchemable, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility, cast,
};
use sqlparser::ast::BinaryOperator;

const INTERVAL: DataType = DataType::Interval(IntervalUnit::MonthDayNano);
const DAYS_PER_MONTH: f64 = 30.0;
const NANOS_PER_DAY: f64 = 86_400e9;

#[derive(Debug)]
pub struct IntervalPlanner;

impl ExprPlanner for IntervalPlanner {
    fn plan_binary_op(&self, expr: RawBinaryExpr, schema: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
        let RawBinaryExpr { op, left, right } = expr;
        let (Ok(of_left), Ok(of_right)) = (left.get_type(schema), right.get_type(schema)) else {
            return Ok(PlannerResult::Original(RawBinaryExpr { op, left, right }));
        };
        let is_interval = |data_type: &DataType| matches!(data_type, DataType::Interval(_));
        let (divides, interval, number) = match op {
            BinaryOperator::Multiply if is_interval(&of_left) && of_right.is_numeric() => (false, left, right),
            BinaryOperator::Multiply if is_interval(&of_right) && of_left.is_numeric() => (false, right, left),
            BinaryOperator::Divide if is_interval(&of_left) && of_right.is_numeric() => (true, left, right),
            _ => return Ok(PlannerResult::Original(RawBinaryExpr { op, left, right })),
        };
        let function = IntervalTimes { divides, signature: Signature::any(2, Volatility::Immutable) };
        let args = vec![cast(interval, INTERVAL), cast(number, DataType::Float64)];
        Ok(PlannerResult::Planned(ScalarUDF::from(function).call(args)))
    }
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
            both.then(|| times(intervals.value(row), numbers.value(row), self.divides)).transpose()
        };
        let results: IntervalMonthDayNanoArray = (0..intervals.len()).map(of).collect::<Result<_, ArrowError>>()?;
        let results: ArrayRef = Arc::new(results);
        Ok(match is_scalar {
            true => ColumnarValue::Scalar(datafusion::common::ScalarValue::try_from_array(&results, 0)?),
            false => ColumnarValue::Array(results),
        })
    }
}

fn times(interval: IntervalMonthDayNano, number: f64, divides: bool) -> Result<IntervalMonthDayNano, ArrowError> {
    if divides && number == 0.0 {
        return Err(ArrowError::DivideByZero);
    }
    let scaled = |value: f64| if divides { value / number } else { value * number };
    let months = scaled(f64::from(interval.months));
    // Rounded to microseconds, so that a third of a month does not lose one to the float.
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
        let got = times(IntervalMonthDayNano::new(months, days, nanos), number, divides).unwrap();
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
            |number, divides| times(IntervalMonthDayNano::new(1, 0, 0), number, divides).unwrap_err().to_string();
        assert_eq!(error(1e10, false), "Arithmetic overflow: interval out of range");
        assert_eq!(error(f64::NAN, false), "Arithmetic overflow: interval out of range");
        assert_eq!(error(0.0, true), "Divide by zero error");
    }
}
