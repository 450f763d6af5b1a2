//! Temporal filters: conditions that compare a time with `now()` or with a watermark, and so change while no row does.

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::logical_expr::expr::Cast;
use datafusion::logical_expr::{BinaryExpr, Expr, Operator};

use super::Lowering;
use crate::planner::error::PlanError;
use crate::planner::functions::{Reading, constant_of_a_read, reading};
use crate::planner::stream_plan::{Clock, Comparison, Moment, MomentStep, TimeBound};

const DAY_US: i64 = 86_400_000_000;
/// The first Monday after the epoch began.
const MONDAY_US: i64 = 4 * DAY_US;
const FORM: &str = "Compare a time with it, as in ts > now() - INTERVAL '1 hour', alone or joined by AND.";

/// A comparison of a time with a moment, before it is made physical.
pub(super) struct Bound {
    pub clock: Clock,
    time: Expr,
    comparison: Comparison,
    moment: Moment,
}

/// Whether the expression reads a clock.
pub(super) fn reads_clock(expr: &Expr) -> bool {
    let mut found = false;
    let walked = expr.apply(|expr| {
        if let Expr::ScalarFunction(call) = expr
            && constant_of_a_read(&call.func).is_some()
        {
            found = true;
            return Ok(TreeNodeRecursion::Stop);
        }
        Ok(TreeNodeRecursion::Continue)
    });
    debug_assert!(walked.is_ok());
    found
}

/// The bounds that a condition sets, or why it cannot be kept.
pub(super) fn bounds_of(conjunct: &Expr) -> Result<Vec<Bound>, PlanError> {
    match conjunct {
        Expr::Alias(alias) => bounds_of(&alias.expr),
        Expr::Between(between) if !between.negated => {
            let mut bounds = compare(&between.expr, Operator::GtEq, &between.low)?;
            bounds.extend(compare(&between.expr, Operator::LtEq, &between.high)?);
            Ok(bounds)
        }
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => {
            let mut bounds = bounds_of(left)?;
            bounds.extend(bounds_of(right)?);
            Ok(bounds)
        }
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => compare(left, *op, right),
        other => Err(refusal(other)),
    }
}

fn compare(left: &Expr, op: Operator, right: &Expr) -> Result<Vec<Bound>, PlanError> {
    let whole = || Expr::BinaryExpr(BinaryExpr::new(Box::new(left.clone()), op, Box::new(right.clone())));
    let (time, moment, swapped) = match (reads_clock(left), reads_clock(right)) {
        (false, true) => (left, right, false),
        (true, false) => (right, left, true),
        _ => return Err(refusal(&whole())),
    };
    let comparisons = match op {
        Operator::Lt => vec![Comparison::Less],
        Operator::LtEq => vec![Comparison::LessOrEqual],
        Operator::Gt => vec![Comparison::Greater],
        Operator::GtEq => vec![Comparison::GreaterOrEqual],
        Operator::Eq => vec![Comparison::LessOrEqual, Comparison::GreaterOrEqual],
        _ => return Err(refusal(&whole())),
    };
    if !moment.column_refs().is_empty() {
        return Err(PlanError::unsupported(
            "a condition on the difference of a column and a clock cannot be kept in a view",
            "Bring the column to the other side: ts > now() - INTERVAL '1 hour' instead of now() - ts < INTERVAL '1 hour'.",
        ));
    }
    if time.column_refs().is_empty() {
        return Err(PlanError::unsupported("a condition on the clock alone cannot be kept in a view", FORM));
    }
    let mut steps = Vec::new();
    let clock = steps_of(moment, &mut steps)?;
    let bound = |comparison: Comparison| Bound {
        clock: clock.clone(),
        time: time.clone(),
        comparison: if swapped { comparison.swapped() } else { comparison },
        moment: Moment(steps.clone()),
    };
    Ok(comparisons.into_iter().map(bound).collect())
}

/// The clock under an expression, and what is done to it.
fn steps_of(expr: &Expr, steps: &mut Vec<MomentStep>) -> Result<Clock, PlanError> {
    use arrow::datatypes::DataType::{Date32, Timestamp};
    const WHOLE_DAYS: MomentStep = MomentStep::Floor { width_us: DAY_US, phase_us: 0 };
    match expr {
        Expr::Alias(alias) => steps_of(&alias.expr, steps),
        Expr::ScalarFunction(call) => match reading(call)? {
            Some(Reading::Now) => Ok(Clock::Now),
            Some(Reading::Today) => {
                steps.push(WHOLE_DAYS);
                Ok(Clock::Now)
            }
            Some(Reading::Watermark { object, name }) => Ok(Clock::Watermark { object, name }),
            Some(Reading::Other { name }) => Err(PlanError::unsupported(
                format!("{name}() cannot be kept in a view: it does not only grow"),
                "now(), current_date and watermark('name') can stand in a condition on a time.",
            )),
            None => match (call.func.name(), call.args.as_slice()) {
                ("date_trunc", [Expr::Literal(unit, _), inner]) => {
                    let clock = steps_of(inner, steps)?;
                    steps.push(truncation(unit).ok_or_else(|| refusal(expr))?);
                    Ok(clock)
                }
                _ => Err(refusal(expr)),
            },
        },
        Expr::Cast(Cast { expr: inner, field }) => {
            let clock = steps_of(inner, steps)?;
            match field.data_type() {
                Date32 => steps.push(WHOLE_DAYS),
                Timestamp(..) => {}
                _ => return Err(refusal(expr)),
            }
            Ok(clock)
        }
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
            let (inner, by, sign) = match op {
                Operator::Plus if reads_clock(right) => (right, left, 1),
                Operator::Plus => (left, right, 1),
                Operator::Minus if reads_clock(left) => (left, right, -1),
                _ => return Err(refusal(expr)),
            };
            let clock = steps_of(inner, steps)?;
            let us = length_us(by)?.ok_or_else(|| refusal(expr))?;
            steps.push(MomentStep::Add { us: us.checked_mul(sign).ok_or_else(|| refusal(expr))? });
            Ok(clock)
        }
        other => Err(refusal(other)),
    }
}

fn truncation(unit: &ScalarValue) -> Option<MomentStep> {
    let (ScalarValue::Utf8(Some(unit)) | ScalarValue::Utf8View(Some(unit))) = unit else { return None };
    let floor = |width_us, phase_us| Some(MomentStep::Floor { width_us, phase_us });
    match unit.to_ascii_lowercase().as_str() {
        "millisecond" | "milliseconds" => floor(1_000, 0),
        "second" => floor(1_000_000, 0),
        "minute" => floor(60_000_000, 0),
        "hour" => floor(3_600_000_000, 0),
        "day" => floor(DAY_US, 0),
        "week" => floor(7 * DAY_US, MONDAY_US),
        _ => None,
    }
}

/// A constant length of time, or of days, in microseconds.
fn length_us(expr: &Expr) -> Result<Option<i64>, PlanError> {
    let expr = match expr {
        Expr::Cast(Cast { expr, .. }) => expr,
        other => other,
    };
    let Expr::Literal(value, _) = expr else { return Ok(None) };
    Ok(match value {
        ScalarValue::IntervalMonthDayNano(Some(value)) => {
            if value.months != 0 {
                return Err(PlanError::unsupported(
                    "months and years have no fixed length beside a clock in a view",
                    "Write days, such as now() - INTERVAL '30 days', or put them on the other side: ts + INTERVAL '1 month' > now().",
                ));
            }
            let days = i64::from(value.days).checked_mul(DAY_US);
            days.filter(|_| value.nanoseconds % 1000 == 0).and_then(|us| us.checked_add(value.nanoseconds / 1000))
        }
        // A date and a number of days.
        ScalarValue::Int32(Some(days)) => i64::from(*days).checked_mul(DAY_US),
        ScalarValue::Int64(Some(days)) => days.checked_mul(DAY_US),
        _ => None,
    })
}

fn refusal(expr: &Expr) -> PlanError {
    PlanError::unsupported(format!("this condition on a clock cannot be kept in a view: {expr}"), FORM)
}

impl Lowering {
    pub(super) fn time_bound(&self, bound: &Bound, schema: &DFSchema) -> Result<TimeBound, PlanError> {
        let time = self.physical(&bound.time, schema)?;
        Ok(TimeBound { time, comparison: bound.comparison, moment: bound.moment.clone() })
    }
}
