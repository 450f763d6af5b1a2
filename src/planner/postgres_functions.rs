//! Functions and operators of Postgres that DataFusion lacks, or means otherwise.

use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::array::timezone::Tz;
use arrow::array::{Array, ArrayRef, AsArray, TimestampMicrosecondArray};
use arrow::compute::cast;
use arrow::compute::kernels::{cast_utils::parse_interval_month_day_nano, numeric::rem};
use arrow::datatypes::{DataType, Field, FieldRef, IntervalMonthDayNano, TimestampMicrosecondType};
use datafusion::common::{Result, ScalarValue, exec_err};
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::physical_expr_common::datum::apply;
use sqlparser::ast::{
    self, Expr, FunctionArg, FunctionArgExpr, FunctionArgumentList, FunctionArguments, Ident, ObjectName, Value,
    VisitMut, VisitorMut,
};

use super::error::{At, PlanError, Refusal};
use super::moment::{local_to_utc, utc_to_local};
use super::text_input::interval_value;
use super::types::{UTC, timestamp, timestamptz};

/// Digits of a NUMERIC.
const MOST_DIGITS: usize = 38;

pub(super) fn functions() -> Vec<ScalarUDF> {
    vec![ScalarUDF::from(TimeZoneOf::new()), ScalarUDF::from(Modulo::new())]
}

/// Functions of DataFusion whose names Postgres has too, with other formats: a wrong answer is worse than none.
pub(super) const MEANT_OTHERWISE: [&str; 2] = ["to_char", "date_format"];

/// Expressions that DataFusion's SQL planner reads otherwise than Postgres, as ones that it reads alike: `t AT TIME ZONE zone`
/// becomes `timezone(zone, t)`; intervals are read by Postgres' rules; numbers too large for BIGINT and those with an exponent
/// are NUMERIC, or DOUBLE PRECISION where NUMERIC cannot hold them.
pub(super) fn rewrite_operators(statement: &mut ast::Statement) -> std::result::Result<(), PlanError> {
    match statement.visit(&mut Operators) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(error) => Err(error),
    }
}

struct Operators;

impl VisitorMut for Operators {
    type Break = PlanError;

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<PlanError> {
        // The one number of BIGINT that has no positive.
        if let Expr::UnaryOp { op: ast::UnaryOperator::Minus, expr: inner } = expr
            && matches!(inner.as_ref(), Expr::Value(value) if matches!(&value.value, Value::Number(digits, _) if digits == "9223372036854775808"))
        {
            *expr = cast_of("-9223372036854775808".into(), ast::DataType::BigInt(None));
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<PlanError> {
        match expr {
            Expr::Value(ast::ValueWithSpan { value: Value::Number(digits, _), .. }) => {
                match number(&digits.replace('_', "")) {
                    Ok(Some(number)) => *expr = number,
                    Ok(None) => {}
                    Err(error) => return ControlFlow::Break(error),
                }
            }
            // DataFusion would put the sign before the text, where it reaches the first part alone.
            Expr::UnaryOp { op: ast::UnaryOperator::Minus, expr: inner } => {
                if let Expr::Interval(interval) = inner.as_mut()
                    && let Some(negative) = negated(interval)
                {
                    *expr = negative;
                }
            }
            Expr::Interval(interval) => {
                if let Err(error) = read_interval(interval) {
                    return ControlFlow::Break(error.or_at(At::of(&*expr)));
                }
            }
            _ => {}
        }
        if let Expr::AtTimeZone { timestamp, time_zone } = expr {
            let args = [time_zone, timestamp].map(|e| FunctionArg::Unnamed(FunctionArgExpr::Expr(e.as_ref().clone())));
            let list = FunctionArgumentList { duplicate_treatment: None, args: args.to_vec(), clauses: vec![] };
            *expr = Expr::Function(ast::Function {
                name: ObjectName::from(vec![Ident::new("timezone")]),
                uses_odbc_syntax: false,
                parameters: FunctionArguments::None,
                args: FunctionArguments::List(list),
                filter: None,
                null_treatment: None,
                over: None,
                within_group: vec![],
            });
        }
        ControlFlow::Continue(())
    }
}

fn cast_of(text: String, data_type: ast::DataType) -> Expr {
    let text = Value::SingleQuotedString(text).with_empty_span();
    Expr::Cast { kind: ast::CastKind::Cast, expr: Box::new(Expr::Value(text)), data_type, array: false, format: None }
}

/// A number that DataFusion would not read as Postgres does; `None` if it would.
fn number(text: &str) -> std::result::Result<Option<Expr>, PlanError> {
    let read = otherwise_read(text);
    match &read {
        Some(Expr::Cast { data_type: ast::DataType::DoublePrecision, .. })
            if text.parse::<f64>().is_ok_and(f64::is_infinite) =>
        {
            Err(PlanError::OutOfRange(Refusal::new(format!("\"{text}\" is out of range for type double precision"))))
        }
        _ => Ok(read),
    }
}

fn otherwise_read(text: &str) -> Option<Expr> {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent.parse::<i32>().unwrap_or(i32::MAX))),
        None => (text, None),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if !(whole.bytes().chain(fraction.bytes())).all(|b| b.is_ascii_digit()) {
        return None;
    }
    if exponent.is_none() && !mantissa.contains('.') && text.parse::<i64>().is_ok() {
        return None;
    }
    let double = || cast_of(text.to_string(), ast::DataType::DoublePrecision);
    let scale = i64::try_from(fraction.len()).ok()? - i64::from(exponent.unwrap_or(0));
    let significant = [whole, fraction].concat().trim_start_matches('0').to_string();
    let zeros = usize::try_from(-scale).unwrap_or(0);
    let scale = usize::try_from(scale).unwrap_or(0);
    let precision = significant.len().saturating_add(zeros).max(scale).max(1);
    if precision > MOST_DIGITS {
        return Some(double());
    }
    if exponent.is_none() && scale > 0 {
        return None;
    }
    let digits = format!("{significant}{:0<zeros$}", "");
    let padded = format!("{digits:0>width$}", width = scale + 1);
    let (whole, fraction) = padded.split_at(padded.len() - scale);
    let plain = if scale > 0 { format!("{whole}.{fraction}") } else { whole.to_string() };
    let info = ast::ExactNumberInfo::PrecisionAndScale(precision as u64, scale as i64);
    Some(cast_of(plain, ast::DataType::Numeric(info)))
}

/// Writes an interval so that any reader takes it as Postgres does.
fn read_interval(interval: &mut ast::Interval) -> std::result::Result<(), PlanError> {
    if interval.last_field.is_some() {
        return Ok(());
    }
    let Expr::Value(ast::ValueWithSpan { value: Value::SingleQuotedString(text), .. }) = interval.value.as_mut() else {
        return Ok(());
    };
    let whole = match &interval.leading_field {
        None => text.clone(),
        Some(field) if text.trim().parse::<f64>().is_ok() => format!("{} {field}", text.trim()),
        Some(field) => {
            return Err(PlanError::unsupported(
                format!("INTERVAL '{text}' {field} is not supported"),
                "Write the units in the text: INTERVAL '1 day 2 hours'.",
            ));
        }
    };
    let value = interval_value(&whole)?;
    // What both read alike stays as it is written, for messages that quote it.
    if parse_interval_month_day_nano(&whole).is_ok_and(|read| read == value) {
        *text = whole;
    } else {
        *text = parts(value);
    }
    interval.leading_field = None;
    Ok(())
}

fn parts(value: IntervalMonthDayNano) -> String {
    format!("{} months {} days {} microseconds", value.months, value.days, value.nanoseconds / 1_000)
}

/// The negative of an interval that has been read.
fn negated(interval: &ast::Interval) -> Option<Expr> {
    let Expr::Value(ast::ValueWithSpan { value: Value::SingleQuotedString(text), span }) = interval.value.as_ref()
    else {
        return None;
    };
    let value = interval_value(text).ok()?;
    let nanos = value.nanoseconds.checked_neg()?;
    let negative = IntervalMonthDayNano::new(value.months.checked_neg()?, value.days.checked_neg()?, nanos);
    let text = Value::SingleQuotedString(parts(negative)).with_span(*span);
    Some(Expr::Interval(ast::Interval { value: Box::new(Expr::Value(text)), ..interval.clone() }))
}

/// `x AT TIME ZONE zone` of a planned expression.
pub(super) fn at_time_zone(
    zone: chrono_tz::Tz,
    time: datafusion::logical_expr::Expr,
) -> datafusion::logical_expr::Expr {
    ScalarUDF::from(TimeZoneOf::new()).call(vec![datafusion::logical_expr::lit(zone.name()), time])
}

/// `timezone(zone, t)`: of a TIMESTAMP, the moment at which clocks in the zone show it; of a TIMESTAMPTZ (or DATE), what they
/// show then. The zone is constant: a name, or an offset such as `+02:00`.
#[derive(Debug, PartialEq, Eq, Hash)]
struct TimeZoneOf {
    signature: Signature,
}

impl TimeZoneOf {
    fn new() -> TimeZoneOf {
        TimeZoneOf { signature: Signature::any(2, Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for TimeZoneOf {
    fn name(&self) -> &str {
        "timezone"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, args: &[DataType]) -> Result<DataType> {
        match args {
            [_, DataType::Timestamp(_, None)] => Ok(timestamptz()),
            [_, DataType::Timestamp(_, Some(_)) | DataType::Date32 | DataType::Utf8 | DataType::Null] => {
                Ok(timestamp())
            }
            _ => Err(PlanError::UndefinedFunction(
                Refusal::new("AT TIME ZONE takes a TIMESTAMP or TIMESTAMPTZ").hint("Cast it to one of them."),
            )
            .into()),
        }
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let types: Vec<DataType> = args.arg_fields.iter().map(|field| field.data_type().clone()).collect();
        Ok(Arc::new(Field::new(self.name(), self.return_type(&types)?, true)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [ColumnarValue::Scalar(ScalarValue::Utf8(Some(name))), time] = args.args.as_slice() else {
            return Err(PlanError::invalid("AT TIME ZONE takes a constant zone").into());
        };
        let is_scalar = matches!(time, ColumnarValue::Scalar(_));
        let times = time.to_array(if is_scalar { 1 } else { args.number_rows })?;
        let converted = in_zone(name, &times)?;
        Ok(match is_scalar {
            true => ColumnarValue::Scalar(ScalarValue::try_from_array(&converted, 0)?),
            false => ColumnarValue::Array(converted),
        })
    }
}

fn in_zone(name: &str, times: &ArrayRef) -> Result<ArrayRef> {
    let zone: Tz = name.parse().map_err(|_| PlanError::invalid(format!("time zone \"{name}\" not recognized")))?;
    let is_local = matches!(times.data_type(), DataType::Timestamp(_, None));
    let times = cast(times, &if is_local { timestamp() } else { timestamptz() })?;
    let convert = |us| if is_local { local_to_utc(us, &zone) } else { utc_to_local(us, &zone) };
    let converted = times.as_primitive::<TimestampMicrosecondType>().iter().map(|us| {
        let beyond = || PlanError::DatetimeOverflow(Refusal::new("timestamp out of range"));
        us.map(|us| convert(us).ok_or_else(beyond)).transpose()
    });
    let converted = converted.collect::<std::result::Result<TimestampMicrosecondArray, PlanError>>()?;
    Ok(if is_local { Arc::new(converted.with_timezone(UTC)) } else { Arc::new(converted) })
}

/// `mod(a, b)`: the remainder, with the sign of `a`.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Modulo {
    signature: Signature,
}

impl Modulo {
    fn new() -> Modulo {
        Modulo { signature: Signature::numeric(2, Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for Modulo {
    fn name(&self) -> &str {
        "mod"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, args: &[DataType]) -> Result<DataType> {
        match args {
            [left, right] if left == right => Ok(left.clone()),
            _ => exec_err!("mod takes two numbers of one type"),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        match args.args.as_slice() {
            [left, right] => apply(left, right, rem),
            _ => exec_err!("mod takes two arguments"),
        }
    }
}
