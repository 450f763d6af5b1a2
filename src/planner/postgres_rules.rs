//! Where DataFusion's arithmetic is not Postgres': rules that run around its type coercion, for views and one-shot queries
//! alike, so that both obey one law.

use std::sync::Arc;

use arrow::datatypes::DataType;
use chrono_tz::Tz;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, Result, ScalarValue};
use datafusion::functions::math::expr_fn::round;
use datafusion::logical_expr::expr::{AggregateFunction, Cast, WindowFunction};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{
    BinaryExpr, Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder, Operator, Union, WindowFunctionDefinition, cast,
    lit,
};
use datafusion::optimizer::AnalyzerRule;
use datafusion::optimizer::analyzer::Analyzer;
use datafusion::optimizer::analyzer::resolve_grouping_function::ResolveGroupingFunction;
use datafusion::optimizer::analyzer::type_coercion::TypeCoercion;

use super::arithmetic::{CheckedArithmetic, DecimalArithmetic, FloatDivision};
use super::interval_arithmetic::length;
use super::postgres_functions::at_time_zone;
use super::session::SessionZone;
use super::text_input::TextInput;
use super::types::timestamp;

/// The analyzer of every plan that we make.
pub fn analyzer() -> Analyzer {
    Analyzer::with_rules(vec![
        Arc::new(ResolveGroupingFunction::new()),
        Arc::new(BeforeCoercion),
        Arc::new(TypeCoercion::new()),
        Arc::new(ExactArithmetic),
        Arc::new(PostgresCasts),
    ])
}

/// `sum` of BIGINT is NUMERIC, and so is `avg` of any integer: their arguments become decimals, of which type coercion would
/// make floats for `avg`. And where a NUMERIC meets a float, both become floats, of which type coercion would make decimals.
#[derive(Debug)]
struct BeforeCoercion;

/// `+`, `-` and `*` of integers fail when they overflow, quotients are Postgres', a NUMERIC that was rounded has the digits that
/// were asked for, and a number is rounded on its way to an integer. It runs after type coercion, when both sides have one type.
#[derive(Debug)]
struct ExactArithmetic;

/// Text is read as Postgres reads it, and between TIMESTAMP and TIMESTAMPTZ stands the session's zone.
#[derive(Debug)]
struct PostgresCasts;

impl AnalyzerRule for BeforeCoercion {
    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        let plan = rewrite(plan, &|expr, schema| match expr {
            Expr::AggregateFunction(_) | Expr::WindowFunction(_) => exact_aggregate(expr, schema),
            other => float_wins(by_length(other, schema), schema),
        })?;
        Ok(plan.transform_up_with_subqueries(float_wins_in_union)?.data)
    }

    fn name(&self) -> &str {
        "before_coercion"
    }
}

impl AnalyzerRule for ExactArithmetic {
    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        rewrite(plan, &exact_arithmetic)
    }

    fn name(&self) -> &str {
        "exact_arithmetic"
    }
}

impl AnalyzerRule for PostgresCasts {
    fn analyze(&self, plan: LogicalPlan, options: &ConfigOptions) -> Result<LogicalPlan> {
        let zone = SessionZone::of(options);
        rewrite(plan, &|expr, schema| postgres_cast(expr, schema, zone))
    }

    fn name(&self) -> &str {
        "postgres_casts"
    }
}

/// Rewrites every expression bottom up, keeping the columns' names, and gives each node its new types.
fn rewrite(plan: LogicalPlan, rule: &dyn Fn(Expr, &DFSchema) -> Result<Transformed<Expr>>) -> Result<LogicalPlan> {
    let rewritten = plan.transform_up_with_subqueries(|plan| {
        // The schema of VALUES and of scans is their own.
        if plan.inputs().is_empty() && !matches!(plan, LogicalPlan::Values(_) | LogicalPlan::EmptyRelation(_)) {
            return Ok(Transformed::no(plan));
        }
        let schema = merge_schema(&plan.inputs());
        let saver = NamePreserver::new(&plan);
        plan.map_expressions(|expr| {
            let name = saver.save(&expr);
            Ok(expr.transform_up(|expr| rule(expr, &schema))?.update_data(|expr| name.restore(expr)))
        })?
        // The inputs may have new types even where no expression changed.
        .map_data(LogicalPlan::recompute_schema)
    })?;
    Ok(rewritten.data)
}

fn exact_aggregate(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    match expr {
        Expr::AggregateFunction(AggregateFunction { func, mut params }) => {
            let changed = cast_argument(func.name(), &mut params.args, schema)?;
            Ok(Transformed::new_transformed(Expr::AggregateFunction(AggregateFunction { func, params }), changed))
        }
        Expr::WindowFunction(mut call) => {
            let WindowFunction { fun, params } = call.as_mut();
            let changed = match fun {
                WindowFunctionDefinition::AggregateUDF(func) => cast_argument(func.name(), &mut params.args, schema)?,
                WindowFunctionDefinition::WindowUDF(_) => false,
            };
            Ok(Transformed::new_transformed(Expr::WindowFunction(call), changed))
        }
        other => Ok(Transformed::no(other)),
    }
}

fn cast_argument(function: &str, args: &mut [Expr], schema: &DFSchema) -> Result<bool> {
    let [argument] = args else { return Ok(false) };
    if !matches!(function, "sum" | "avg") {
        return Ok(false);
    }
    // A column of an outer query has no type here.
    let Ok(data_type) = argument.get_type(schema) else { return Ok(false) };
    let target = match (function, data_type) {
        // Type coercion has widened it, and the plan is analyzed once more: the sum of INTEGER stays BIGINT.
        ("sum", DataType::Int64) if is_widened(argument, schema) => return Ok(false),
        ("sum", DataType::Int64) => DataType::Decimal128(19, 0),
        ("sum", DataType::UInt64) => DataType::Decimal128(20, 0),
        // DataFusion adds four digits behind the point to those of the argument: 16 in all, as Postgres shows.
        ("avg", integer) if integer.is_integer() => DataType::Decimal128(31, 12),
        ("avg", DataType::Decimal128(precision, scale)) if (0..12).contains(&scale) => {
            let whole = precision.saturating_sub(scale.unsigned_abs());
            // A NUMERIC that fills its digits keeps them.
            if whole > 26 {
                return Ok(false);
            }
            DataType::Decimal128(whole + 12, 12)
        }
        _ => return Ok(false),
    };
    let inner = std::mem::take(argument);
    *argument = Expr::Cast(Cast::new(Box::new(inner), target));
    Ok(true)
}

fn is_widened(argument: &Expr, schema: &DFSchema) -> bool {
    let Expr::Cast(cast) = argument else { return false };
    let from = cast.expr.get_type(schema);
    from.is_ok_and(|from| from.is_integer() && from.primitive_width().is_some_and(|bytes| bytes < 8))
}

/// BETWEEN and IN of intervals; operators are planned so ([`super::interval_arithmetic`]).
fn by_length(mut expr: Expr, schema: &DFSchema) -> Expr {
    let compared: Vec<&mut Expr> = match &mut expr {
        Expr::Between(between) => vec![&mut *between.expr, &mut *between.low, &mut *between.high],
        Expr::InList(list) => [&mut *list.expr].into_iter().chain(&mut list.list).collect(),
        _ => return expr,
    };
    let is_interval = |expr: &Expr| matches!(expr.get_type(schema), Ok(DataType::Interval(_) | DataType::Duration(_)));
    if compared.iter().all(|expr| is_interval(expr)) {
        compared.into_iter().for_each(|expr| *expr = length(std::mem::take(expr)));
    }
    expr
}

/// Where Postgres would make DOUBLE PRECISION of a NUMERIC beside a float.
fn float_wins(mut expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let changed = match &mut expr {
        Expr::BinaryExpr(BinaryExpr { left, op, right })
            if op.supports_propagation() || op.is_numerical_operators() =>
        {
            as_floats([left.as_mut(), right.as_mut()], schema)?
        }
        Expr::Between(between) => {
            as_floats([between.expr.as_mut(), between.low.as_mut(), between.high.as_mut()], schema)?
        }
        Expr::InList(list) => as_floats([list.expr.as_mut()].into_iter().chain(&mut list.list), schema)?,
        Expr::Case(case) => {
            let (whens, thens): (Vec<&mut Expr>, Vec<&mut Expr>) =
                case.when_then_expr.iter_mut().map(|(when, then)| (when.as_mut(), then.as_mut())).unzip();
            let results = as_floats(thens.into_iter().chain(case.else_expr.as_deref_mut()), schema)?;
            match case.expr.as_deref_mut() {
                Some(value) => as_floats([value].into_iter().chain(whens), schema)? || results,
                None => results,
            }
        }
        Expr::ScalarFunction(call)
            if matches!(call.name(), "coalesce" | "nullif" | "greatest" | "least" | "nvl" | "ifnull") =>
        {
            as_floats(&mut call.args, schema)?
        }
        _ => false,
    };
    Ok(Transformed::new_transformed(expr, changed))
}

/// Makes floats of the decimals if there is a float among them.
fn as_floats<'a>(exprs: impl IntoIterator<Item = &'a mut Expr>, schema: &DFSchema) -> Result<bool> {
    let mut exprs: Vec<&mut Expr> = exprs.into_iter().collect();
    // A column of an outer query has no type here, and a parameter none yet.
    let types: Vec<Option<DataType>> = exprs.iter().map(|expr| expr.get_type(schema).ok()).collect();
    if !types.iter().flatten().any(DataType::is_floating) {
        return Ok(false);
    }
    let mut changed = false;
    for (expr, data_type) in exprs.iter_mut().zip(types) {
        if matches!(data_type, Some(DataType::Decimal128(..) | DataType::Decimal256(..))) {
            let inner = std::mem::take(*expr);
            **expr = match &inner {
                Expr::Literal(value, _) => Expr::Literal(value.cast_to(&DataType::Float64)?, None),
                _ => cast(inner, DataType::Float64),
            };
            changed = true;
        }
    }
    Ok(changed)
}

/// The same for the columns of UNION.
fn float_wins_in_union(plan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
    let LogicalPlan::Union(union) = plan else { return Ok(Transformed::no(plan)) };
    let types_of =
        |i: usize| union.inputs.iter().filter_map(move |input| Some(input.schema().fields().get(i)?.data_type()));
    let is_decimal = |data_type: &DataType| matches!(data_type, DataType::Decimal128(..));
    let mixed: Vec<usize> = (0..union.schema.fields().len())
        .filter(|&i| types_of(i).any(DataType::is_floating) && types_of(i).any(is_decimal))
        .collect();
    if mixed.is_empty() {
        return Ok(Transformed::no(LogicalPlan::Union(union)));
    }
    let Union { inputs, schema } = union;
    let inputs = inputs.into_iter().map(|input| {
        let exprs = input.schema().iter().enumerate().map(|(i, (relation, field))| {
            let column = Expr::from((relation, field));
            match mixed.contains(&i) && is_decimal(field.data_type()) {
                true => cast(column, DataType::Float64).alias_qualified(relation.cloned(), field.name()),
                false => column,
            }
        });
        let exprs: Vec<Expr> = exprs.collect();
        Ok(Arc::new(LogicalPlanBuilder::from(input.as_ref().clone()).project(exprs)?.build()?))
    });
    Ok(Transformed::yes(LogicalPlan::Union(Union { inputs: inputs.collect::<Result<_>>()?, schema })))
}

fn postgres_cast(expr: Expr, schema: &DFSchema, zone: Tz) -> Result<Transformed<Expr>> {
    let Expr::Cast(Cast { expr: inner, field }) = &expr else { return Ok(Transformed::no(expr)) };
    let to = field.data_type();
    let Ok(from) = inner.get_type(schema) else { return Ok(Transformed::no(expr)) };
    if matches!(from, DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8) {
        return Ok(match TextInput::cast(inner, to, zone)? {
            Some(read) => Transformed::yes(read),
            None => Transformed::no(expr),
        });
    }
    if zone == Tz::UTC {
        return Ok(Transformed::no(expr));
    }
    let inner = inner.as_ref().clone();
    let local = match (&from, to) {
        (DataType::Timestamp(_, None), DataType::Timestamp(_, Some(_))) => at_time_zone(zone, inner),
        (DataType::Date32, DataType::Timestamp(_, Some(_))) => at_time_zone(zone, cast(inner, timestamp())),
        (DataType::Timestamp(_, Some(_)), DataType::Timestamp(_, None) | DataType::Date32 | DataType::Time64(_)) => {
            at_time_zone(zone, inner)
        }
        _ => return Ok(Transformed::no(expr)),
    };
    let is_there = local.get_type(schema)? == *to;
    Ok(Transformed::yes(if is_there { local } else { cast(local, to.clone()) }))
}

fn exact_arithmetic(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op, right })
            if matches!(op, Operator::Plus | Operator::Minus | Operator::Multiply)
                && is_integer(&left, schema)
                && is_integer(&right, schema) =>
        {
            match CheckedArithmetic::call(op, (*left).clone(), (*right).clone()) {
                Some(checked) => Ok(Transformed::yes(checked)),
                None => Ok(Transformed::no(Expr::BinaryExpr(BinaryExpr { left, op, right }))),
            }
        }
        Expr::BinaryExpr(BinaryExpr { left, op, right })
            if matches!(op, Operator::Multiply | Operator::Divide) && !is_integer(&left, schema) =>
        {
            let (Ok(of_left), Ok(of_right)) = (left.get_type(schema), right.get_type(schema)) else {
                return Ok(Transformed::no(Expr::BinaryExpr(BinaryExpr { left, op, right })));
            };
            if op == Operator::Divide && of_left.is_floating() && of_left == of_right {
                return Ok(Transformed::yes(FloatDivision::call(*left, *right)));
            }
            match DecimalArithmetic::call(op, (left.as_ref().clone(), &of_left), (right.as_ref().clone(), &of_right)) {
                Some(exact) => Ok(Transformed::yes(exact)),
                None => Ok(Transformed::no(Expr::BinaryExpr(BinaryExpr { left, op, right }))),
            }
        }
        Expr::Negative(inner) if is_integer(&inner, schema) => {
            let data_type = inner.get_type(schema)?;
            let zero = lit(0i64).cast_to(&data_type, schema)?;
            match CheckedArithmetic::call(Operator::Minus, zero, (*inner).clone()) {
                Some(checked) => Ok(Transformed::yes(checked)),
                None => Ok(Transformed::no(Expr::Negative(inner))),
            }
        }
        Expr::ScalarFunction(call) if matches!(call.name(), "round" | "trunc" | "ceil" | "floor") => {
            let scale = match call.args.as_slice() {
                [_] => Some(0),
                [_, digits] => constant(digits).map(|digits| digits.clamp(0, 38) as i8),
                _ => None,
            };
            match (call.args[0].get_type(schema), scale) {
                (Ok(DataType::Decimal128(_, given)), Some(scale)) if given != scale => {
                    let target = DataType::Decimal128(38, scale);
                    Ok(Transformed::yes(cast(Expr::ScalarFunction(call), target)))
                }
                _ => Ok(Transformed::no(Expr::ScalarFunction(call))),
            }
        }
        Expr::Cast(Cast { expr, field }) if field.data_type().is_integer() && rounds(&expr, schema) => {
            Ok(Transformed::yes(Expr::Cast(Cast { expr: Box::new(round(vec![*expr])), field })))
        }
        other => Ok(Transformed::no(other)),
    }
}

/// A whole number that is written out, whatever type coercion made of it.
fn constant(expr: &Expr) -> Option<i64> {
    match expr {
        Expr::Literal(value, _) => match value.cast_to(&DataType::Int64) {
            Ok(ScalarValue::Int64(number)) => number,
            _ => None,
        },
        Expr::Cast(cast) => constant(&cast.expr),
        _ => None,
    }
}

fn is_integer(expr: &Expr, schema: &DFSchema) -> bool {
    expr.get_type(schema).is_ok_and(|data_type| data_type.is_integer())
}

/// True of a number with digits behind the point that has not been rounded yet.
fn rounds(expr: &Expr, schema: &DFSchema) -> bool {
    if matches!(expr, Expr::ScalarFunction(call) if call.name() == "round") {
        return false;
    }
    match expr.get_type(schema) {
        Ok(DataType::Float32 | DataType::Float64) => true,
        Ok(DataType::Decimal128(_, scale)) => scale > 0,
        _ => false,
    }
}
