//! Functions and operators of Postgres that DataFusion lacks, or means otherwise.

use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::array::timezone::Tz;
use arrow::array::{Array, ArrayRef, AsArray, TimestampMicrosecondArray};
use arrow::compute::{cast, kernels::numeric::rem};
use arrow::datatypes::{DataType, Field, FieldRef, TimeUnit, TimestampMicrosecondType};
use chrono::{DateTime, Offset, TimeZone};
use datafusion::common::{Result, ScalarValue, exec_err};
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::physical_expr_common::datum::apply;
use sqlparser::ast::{
    self, Expr, FunctionArg, FunctionArgExpr, FunctionArgumentList, FunctionArguments, Ident, ObjectName, VisitMut,
    VisitorMut,
};

use super::error::{PlanError, Refusal};
use super::types::{UTC, timestamp, timestamptz};

pub(super) fn functions() -> Vec<ScalarUDF> {
    vec![ScalarUDF::from(TimeZoneOf::new()), ScalarUDF::from(Modulo::new())]
}

/// Functions of DataFusion whose names Postgres has too, with other formats: a wrong answer is worse than none.
pub(super) const MEANT_OTHERWISE: [&str; 2] = ["to_char", "date_format"];

/// `t AT TIME ZONE zone` becomes `timezone(zone, t)`, as in Postgres.
pub(super) fn rewrite_operators(statement: &mut ast::Statement) {
    let _ = statement.visit(&mut Operators);
}

struct Operators;

impl VisitorMut for Operators {
    type Break = ();

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
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
    if matches!(times.data_type(), DataType::Timestamp(_, None)) {
        let local = cast(times, &DataType::Timestamp(TimeUnit::Microsecond, Some(name.into())))?;
        let moments = local.as_primitive::<TimestampMicrosecondType>().clone().with_timezone(UTC);
        return Ok(Arc::new(moments));
    }
    let moments = cast(times, &timestamptz())?;
    let shown = moments.as_primitive::<TimestampMicrosecondType>().iter().map(|moment| {
        let moment = moment?;
        let offset = zone.offset_from_utc_datetime(&DateTime::from_timestamp_micros(moment)?.naive_utc());
        moment.checked_add(i64::from(offset.fix().local_minus_utc()) * 1_000_000)
    });
    Ok(Arc::new(shown.collect::<TimestampMicrosecondArray>()))
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
