//! Output columns named as Postgres names them: `count(*)` is `count`, `1 + 1` is `?column?`.

use std::collections::HashSet;
use std::ops::ControlFlow;

use datafusion::logical_expr::LogicalPlan;
use sqlparser::ast::{Expr, Ident, Query, Select, SelectItem, SetExpr, VisitMut, VisitorMut};

use super::select::expand_table_commands;
use crate::sql::fold;

/// Separates a column's name from the number that tells it from others of that name: plans need unique names, results do
/// not. No identifier that a client can write ends like this and means something else.
const SAME_NAME: char = '\u{1}';

/// Gives every unnamed column of every SELECT the name that Postgres would. Within the query a name that would not be
/// unique is left to the planner; the columns of the result are told apart by a suffix that [`result_name`] takes off.
pub fn name_columns(query: &mut Query) {
    let _ = query.visit(&mut Namer);
    if let Some(select) = first_select(&mut query.body) {
        name_result(select, false);
    }
}

/// For a query whose columns turned out not to be unique, such as `SELECT *, lower(a) AS a`: tells all columns of the result
/// apart that are not from a wildcard. False if there is no wildcard to blame.
pub fn tell_apart(query: &mut Query) -> bool {
    let Some(select) = first_select(&mut query.body) else { return false };
    let is_wildcard = |item: &SelectItem| matches!(item, SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..));
    if !select.projection.iter().any(is_wildcard) {
        return false;
    }
    name_result(select, true);
    true
}

/// The name that the client sees of a column of a planned query.
pub fn result_name(name: &str) -> &str {
    name.split(SAME_NAME).next().unwrap_or(name)
}

/// The names of a planned query's columns, as the client sees them.
pub fn result_names(plan: &LogicalPlan) -> Vec<String> {
    plan.schema().fields().iter().map(|field| result_name(field.name()).to_string()).collect()
}

struct Namer;

impl VisitorMut for Namer {
    type Break = ();

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<()> {
        expand_table_commands(&mut query.body);
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<()> {
        let names: Vec<Option<String>> = select.projection.iter().map(item_name).collect();
        // A name taken from inside an expression would mean that expression in HAVING and QUALIFY.
        let aliases_reach = select.having.is_some() || select.qualify.is_some();
        for (i, item) in select.projection.iter_mut().enumerate() {
            let SelectItem::UnnamedExpr(expr) = item else { continue };
            let Some(name) = &names[i] else { continue };
            let unique = names.iter().filter(|other| other.as_ref() == Some(name)).count() == 1;
            if is_column(expr) || !unique || (aliases_reach && !is_call(expr)) {
                continue;
            }
            alias(item, name.clone());
        }
        ControlFlow::Continue(())
    }
}

/// The leftmost SELECT: it names the columns of a set operation.
fn first_select(body: &mut SetExpr) -> Option<&mut Select> {
    match body {
        SetExpr::Select(select) => Some(select),
        SetExpr::Query(query) => first_select(&mut query.body),
        SetExpr::SetOperation { left, .. } => first_select(left),
        _ => None,
    }
}

fn name_result(select: &mut Select, all: bool) {
    let mut taken: HashSet<String> = HashSet::new();
    let aliases_reach = select.having.is_some() || select.qualify.is_some();
    for (i, item) in select.projection.iter_mut().enumerate() {
        let Some(name) = item_name(item) else { continue };
        let name = result_name(&name).to_string();
        let apart = !taken.insert(name.clone()) || all;
        match item {
            _ if apart => alias(item, format!("{name}{SAME_NAME}{i}")),
            // Under its own name it could be taken for what HAVING means.
            SelectItem::UnnamedExpr(expr) if !is_column(expr) && aliases_reach => {
                alias(item, format!("{name}{SAME_NAME}{i}"));
            }
            SelectItem::UnnamedExpr(expr) if !is_column(expr) => alias(item, name),
            _ => {}
        }
    }
}

fn alias(item: &mut SelectItem, name: String) {
    let expr = match item {
        SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => expr.clone(),
        _ => return,
    };
    *item = SelectItem::ExprWithAlias { expr, alias: Ident::with_quote('"', name) };
}

fn is_column(expr: &Expr) -> bool {
    matches!(expr, Expr::Identifier(_) | Expr::CompoundIdentifier(_))
}

fn is_call(expr: &Expr) -> bool {
    matches!(expr, Expr::Function(_))
}

fn item_name(item: &SelectItem) -> Option<String> {
    match item {
        SelectItem::UnnamedExpr(expr) => Some(figure(expr).unwrap_or_else(|| "?column?".into())),
        SelectItem::ExprWithAlias { alias, .. } => Some(fold(alias)),
        _ => None,
    }
}

/// Postgres' FigureColname.
fn figure(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Identifier(ident) => Some(fold(ident)),
        Expr::CompoundIdentifier(parts) => parts.last().map(fold),
        Expr::Nested(inner) | Expr::Collate { expr: inner, .. } => figure(inner),
        Expr::Function(call) => call.name.0.last()?.as_ident().map(fold),
        Expr::Cast { expr, data_type, .. } => figure(expr).or_else(|| type_name(&data_type.to_string())),
        Expr::TypedString(typed) => type_name(&typed.data_type.to_string()),
        Expr::Case { else_result, .. } => {
            else_result.as_deref().and_then(|e| figure(e).filter(|_| is_column(e))).or(Some("case".into()))
        }
        Expr::Extract { .. } => Some("extract".into()),
        Expr::Substring { .. } => Some("substring".into()),
        Expr::Trim { .. } => Some("btrim".into()),
        Expr::Position { .. } => Some("position".into()),
        Expr::Overlay { .. } => Some("overlay".into()),
        Expr::Ceil { .. } => Some("ceil".into()),
        Expr::Floor { .. } => Some("floor".into()),
        Expr::Interval(_) => Some("interval".into()),
        Expr::Exists { .. } => Some("exists".into()),
        Expr::Array(_) => Some("array".into()),
        Expr::AtTimeZone { .. } => Some("timezone".into()),
        Expr::Value(value) => match value.value {
            sqlparser::ast::Value::Boolean(_) => Some("bool".into()),
            _ => None,
        },
        Expr::Subquery(query) => match query.body.as_ref() {
            SetExpr::Select(select) => select.projection.first().and_then(item_name).filter(|name| name != "?column?"),
            _ => None,
        },
        _ => None,
    }
}

fn type_name(written: &str) -> Option<String> {
    let word = written.split(['(', ' ']).next()?.to_lowercase();
    let word = word.rsplit('.').next()?;
    Some(
        match word {
            "int" | "integer" => "int4",
            "bigint" => "int8",
            "smallint" => "int2",
            "boolean" => "bool",
            "real" => "float4",
            "double" | "float" => "float8",
            "decimal" | "dec" => "numeric",
            "character" | "char" => "bpchar",
            "timestamp" if written.to_lowercase().contains("with time zone") => "timestamptz",
            other => other,
        }
        .to_string(),
    )
}
