//! `HOP(t, ts, slide, size [, offset])`, `TUMBLE(t, ts, size [, offset])`, `CUMULATE(t, ts, step, size [, offset])` and
//! `SESSION(t, ts, gap [, maximum length])` in FROM.

use std::sync::Arc;

use arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::{Column, DFSchema, ExprSchema, Result, ScalarValue};
use datafusion::logical_expr::planner::{PlannedRelation, RelationPlanner, RelationPlannerContext, RelationPlanning};
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{Expr, ExprSchemable, Extension, LogicalPlan, LogicalPlanBuilder};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use sqlparser::ast::{self, FunctionArg, FunctionArgExpr, FunctionArguments, TableFactor};

use super::assign_sessions::{AssignSessions, Keys};
use super::assign_windows::AssignWindows;
use super::error::{At, PlanError, Refusal};
use super::relations::{relation_argument, window_function};
use super::select::table;
use super::stream_plan::{LONGEST_US, Micros, Session, Window};
use super::text_input::interval_value;
use super::types::{self, sql_name};
use crate::sql::fold;

/// More windows to a row than anybody means; a slide of a second under a size of a day has 86 400.
const MOST_WINDOWS_PER_ROW: i64 = 100_000;
const DAY_US: i64 = 86_400_000_000;

/// Plans calls of window functions in FROM as [`AssignWindows`] or [`AssignSessions`]. The relation may be a source, table, view, CTE or a
/// subquery in brackets.
#[derive(Debug)]
pub struct WindowRelations;

impl RelationPlanner for WindowRelations {
    fn plan_relation(
        &self,
        relation: TableFactor,
        context: &mut dyn RelationPlannerContext,
    ) -> Result<RelationPlanning> {
        let TableFactor::Table { name, alias, args: Some(args), .. } = &relation else {
            return Ok(RelationPlanning::Original(Box::new(relation)));
        };
        let Some(function) = window_function(name) else {
            return Ok(RelationPlanning::Original(Box::new(relation)));
        };
        let at = At::of(name);
        let plan = match function {
            "session" => plan_session(&args.args, context),
            _ => plan_window(function, &args.args, context),
        };
        let plan = plan.map_err(|e| PlanError::from(e).or_at(at))?;
        Ok(RelationPlanning::Planned(Box::new(PlannedRelation::new(plan, alias.clone()))))
    }
}

fn usage(function: &str) -> String {
    match function {
        "hop" => "Write HOP(relation, time column, slide, size [, offset]).".into(),
        "session" => "Write SESSION(relation [PARTITION BY key], time column, gap [, maximum length]).".into(),
        "cumulate" => "Write CUMULATE(relation, time column, step, size [, offset]).".into(),
        _ => "Write TUMBLE(relation, time column, size [, offset]).".into(),
    }
}

fn invalid(message: String, function: &str) -> PlanError {
    PlanError::Invalid(Refusal::new(message).hint(usage(function)))
}

fn plan_window(
    function: &'static str,
    args: &[FunctionArg],
    context: &mut dyn RelationPlannerContext,
) -> Result<LogicalPlan> {
    let upper = function.to_uppercase();
    let exprs = unnamed(args, &upper, function)?;
    let intervals = if function == "tumble" { 1 } else { 2 };
    if exprs.len() < 2 + intervals || exprs.len() > 3 + intervals {
        let message = format!("{upper} takes {} or {} arguments, not {}", 2 + intervals, 3 + intervals, exprs.len());
        return Err(invalid(message, function).into());
    }

    let input = context.plan(relation(exprs[0], &upper, function)?)?;
    let (input, time) = time_column(input, exprs[1], &upper, function, context)?;
    let what = if function == "cumulate" { "step and the size" } else { "slide and the size" };
    let first = length(exprs[2], &upper, what, context)?;
    let (slide_us, size_us) =
        if intervals == 2 { (first, length(exprs[3], &upper, what, context)?) } else { (first, first) };
    let offset_us = match exprs.get(2 + intervals) {
        Some(offset) => interval(offset, &upper, context)?,
        None => 0,
    };
    let window = checked_window(
        Window { cumulates: function == "cumulate", ..Window::hop(size_us, slide_us, offset_us) },
        &upper,
    )?;
    let node = AssignWindows::try_new(Arc::new(input), time, window)?;
    Ok(LogicalPlan::Extension(Extension { node: Arc::new(node) }))
}

fn unnamed<'a>(args: &'a [FunctionArg], upper: &str, function: &str) -> Result<Vec<&'a ast::Expr>, PlanError> {
    let expr = |argument: &'a FunctionArg| match argument {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Ok(expr),
        other => Err(invalid(format!("{upper} does not take the argument {other}"), function)),
    };
    args.iter().map(expr).collect()
}

fn plan_session(args: &[FunctionArg], context: &mut dyn RelationPlannerContext) -> Result<LogicalPlan> {
    let (function, upper) = ("session", "SESSION");
    let mut exprs = unnamed(args, upper, function)?;
    let partition_by = match exprs.get(1).and_then(|expr| partition_by(expr)) {
        Some(keys) => {
            exprs.remove(1);
            Some(keys)
        }
        None => None,
    };
    if !(3..=4).contains(&exprs.len()) {
        let message = format!("SESSION takes 3 or 4 arguments, not {}", exprs.len());
        return Err(invalid(message, function).into());
    }
    let input = context.plan(relation(exprs[0], upper, function)?)?;
    let (input, time) = time_column(input, exprs[1], upper, function, context)?;
    let gap_us = length(exprs[2], upper, "gap", context)?;
    let max_us = exprs.get(3).map(|max| length(max, upper, "maximum length", context)).transpose()?;
    if let Some(max_us) = max_us.filter(|&max_us| max_us < gap_us) {
        let message =
            format!("the maximum length of SESSION, {}, is shorter than its gap, {}", Micros(max_us), Micros(gap_us));
        let hint = "A session of one row is as long as the gap: choose a shorter gap or a longer maximum.";
        return Err(PlanError::Invalid(Refusal::new(message).hint(hint).at(At::of(exprs[3]))).into());
    }
    let keys = match partition_by {
        Some(keys) => {
            let planned = keys.iter().map(|key| context.sql_to_expr(key.clone(), input.schema()));
            Keys::Partition(planned.collect::<Result<_>>()?)
        }
        None => Keys::OfGroup,
    };
    let node = AssignSessions::try_new(Arc::new(input), time, Session { gap_us, max_us }, keys)?;
    Ok(LogicalPlan::Extension(Extension { node: Arc::new(node) }))
}

/// The keys of `PARTITION BY`, which the parser's tokens have become a call of.
fn partition_by(expr: &ast::Expr) -> Option<Vec<ast::Expr>> {
    let ast::Expr::Function(call) = expr else { return None };
    let [part] = call.name.0.as_slice() else { return None };
    let FunctionArguments::List(list) = &call.args else { return None };
    if fold(part.as_ident()?) != crate::sql::PARTITION_BY {
        return None;
    }
    let key = |argument: &FunctionArg| match argument {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr.clone()),
        _ => None,
    };
    list.args.iter().map(key).collect()
}

fn checked_window(window: Window, upper: &str) -> Result<Window, PlanError> {
    let Window { size_us, slide_us, offset_us, cumulates } = window;
    if cumulates && size_us % slide_us != 0 {
        let message =
            format!("the size of CUMULATE must be a multiple of its step: {}, {}", Micros(slide_us), Micros(size_us));
        return Err(PlanError::Invalid(
            Refusal::new(message).hint("CUMULATE(t, ts, INTERVAL '1 minute', INTERVAL '1 day') is one."),
        ));
    }
    let offset_us = offset_us.rem_euclid(if cumulates { size_us } else { slide_us });
    let window = Window { offset_us, ..window };
    if window.windows_per_row() > MOST_WINDOWS_PER_ROW {
        let message = format!("{upper} puts each row into {} windows", window.windows_per_row());
        return Err(PlanError::Invalid(
            Refusal::new(message).hint(format!("Choose a longer slide: at most {MOST_WINDOWS_PER_ROW} are possible.")),
        ));
    }
    // Slices of a microsecond under a window of an hour are legal arithmetic and no use to anybody.
    if size_us / window.slice_us() > MOST_WINDOWS_PER_ROW {
        let message = format!("{upper} would cut its windows into {} slices", size_us / window.slice_us());
        return Err(PlanError::Invalid(
            Refusal::new(message).hint("Choose a slide and a size with a larger common divisor."),
        ));
    }
    Ok(window)
}

/// The first argument as a table factor.
fn relation(expr: &ast::Expr, upper: &str, function: &str) -> Result<TableFactor, PlanError> {
    if let Some(name) = relation_argument(expr) {
        return Ok(table(name));
    }
    match expr {
        ast::Expr::Subquery(query) => {
            Ok(TableFactor::Derived { lateral: false, subquery: query.clone(), alias: None, sample: None })
        }
        ast::Expr::Nested(inner) => relation(inner, upper, function),
        other => Err(invalid(format!("the first argument of {upper} is a relation, not {other}"), function)),
    }
}

/// The second argument, and the input with that column in microseconds.
fn time_column(
    input: LogicalPlan,
    expr: &ast::Expr,
    upper: &str,
    function: &str,
    context: &mut dyn RelationPlannerContext,
) -> Result<(LogicalPlan, Column)> {
    // Flink's DESCRIPTOR(ts).
    let expr = descriptor(expr).unwrap_or_else(|| expr.clone());
    let planned = context.sql_to_expr(expr, input.schema())?;
    let Expr::Column(time) = planned else {
        let message = format!("the time of {upper} must be a column");
        return Err(PlanError::Invalid(
            Refusal::new(message).hint("Compute it in a subquery or a CTE and name its column here."),
        )
        .into());
    };
    let data_type = input.schema().field_from_column(&time)?.data_type().clone();
    let micros = match &data_type {
        DataType::Date32 | DataType::Timestamp(TimeUnit::Microsecond, None) => data_type.clone(),
        DataType::Timestamp(_, None) => types::timestamp(),
        DataType::Timestamp(_, Some(_)) => types::timestamptz(),
        other => {
            let message =
                format!("the time of {upper} cannot be of type {}: column \"{}\"", sql_name(other), time.name);
            return Err(PlanError::TypeMismatch(
                Refusal::new(message).hint(format!("It must be TIMESTAMPTZ, TIMESTAMP or DATE. {}", usage(function))),
            )
            .into());
        }
    };
    if micros == data_type {
        return Ok((input, time));
    }
    let exprs: Vec<Expr> = input
        .schema()
        .columns()
        .into_iter()
        .map(|column| {
            if column != time {
                return Ok(Expr::Column(column));
            }
            let (relation, name) = (column.relation.clone(), column.name.clone());
            Ok(Expr::Column(column).cast_to(&micros, input.schema())?.alias_qualified(relation, name))
        })
        .collect::<Result<_>>()?;
    Ok((LogicalPlanBuilder::from(input).project(exprs)?.build()?, time))
}

fn descriptor(expr: &ast::Expr) -> Option<ast::Expr> {
    let ast::Expr::Function(call) = expr else { return None };
    let [part] = call.name.0.as_slice() else { return None };
    let FunctionArguments::List(list) = &call.args else { return None };
    match (fold(part.as_ident()?).as_str(), list.args.as_slice()) {
        ("descriptor", [FunctionArg::Unnamed(FunctionArgExpr::Expr(column))]) => Some(column.clone()),
        _ => None,
    }
}

/// A length of time: an interval above zero.
fn length(expr: &ast::Expr, upper: &str, what: &str, context: &mut dyn RelationPlannerContext) -> Result<i64> {
    let micros = interval(expr, upper, context)?;
    if micros <= 0 {
        let message = format!("the {what} of {upper} must be longer than zero: {expr}");
        return Err(PlanError::Invalid(Refusal::new(message).at(At::of(expr))).into());
    }
    if micros > LONGEST_US { Err(too_long(expr, upper).into()) } else { Ok(micros) }
}

fn too_long(expr: &ast::Expr, upper: &str) -> PlanError {
    let hint = format!("{} days are the longest.", LONGEST_US / DAY_US);
    PlanError::Invalid(Refusal::new(format!("{upper} cannot use {expr}: it is too long")).hint(hint).at(At::of(expr)))
}

/// A constant interval, in microseconds.
fn interval(expr: &ast::Expr, upper: &str, context: &mut dyn RelationPlannerContext) -> Result<i64> {
    let planned = context.sql_to_expr(expr.clone(), &DFSchema::empty()).map_err(|e| not_constant(expr, upper, e))?;
    let simplifier = ExprSimplifier::new(SimplifyContext::builder().build());
    let schema = DFSchema::empty();
    let planned = simplifier.coerce(planned, &schema).and_then(|expr| simplifier.simplify(expr))?;
    let value = match &planned {
        Expr::Literal(ScalarValue::IntervalMonthDayNano(Some(value)), _) => *value,
        // A bare literal takes the type that is wanted here, as any literal does in Postgres.
        Expr::Literal(ScalarValue::Utf8(Some(text)), _) => interval_value(text).map_err(|e| e.or_at(At::of(expr)))?,
        _ => {
            let refusal = Refusal::new(format!("{upper} takes constant intervals, not {expr}"));
            return Err(
                PlanError::Invalid(refusal.hint("Write INTERVAL '10 seconds' or the like.").at(At::of(expr))).into()
            );
        }
    };
    let cannot = |why: &str| Refusal::new(format!("{upper} cannot use {expr}: {why}")).at(At::of(expr));
    if value.months != 0 {
        let refusal = cannot("months and years have no fixed length");
        return Err(PlanError::Invalid(refusal.hint("Write it in days, such as INTERVAL '30 days'.")).into());
    }
    if value.nanoseconds % 1000 != 0 {
        return Err(PlanError::Invalid(cannot("time is in microseconds")).into());
    }
    let days_us = i64::from(value.days).checked_mul(DAY_US);
    let micros = days_us.and_then(|us| us.checked_add(value.nanoseconds / 1000));
    Ok(micros.ok_or_else(|| too_long(expr, upper))?)
}

/// A column where a constant should be is an error of its own, whatever the planner says of it.
fn not_constant(expr: &ast::Expr, upper: &str, error: datafusion::error::DataFusionError) -> PlanError {
    match PlanError::from(error) {
        PlanError::UndefinedColumn(_) => PlanError::Invalid(
            Refusal::new(format!("{upper} takes constant intervals, not {expr}"))
                .hint("Write INTERVAL '10 seconds' or the like.")
                .at(At::of(expr)),
        ),
        other => other,
    }
}
