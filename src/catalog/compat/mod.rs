//! What Postgres's tools write and DataFusion does not read, put in words that it reads. The meaning stays.
//!
//! | written | planned as |
//! |---|---|
//! | `pg_catalog.f(x)`, `x::pg_catalog.text`, `a OPERATOR(pg_catalog.~) b` | the same without the schema |
//! | `x COLLATE pg_catalog.default` | `x`: text compares by its bytes, which is `C` |
//! | `'t'::regclass`, `oid::regclass` | `regclassin('t')`; where it is shown, `regclassout(oid)` |
//! | `ARRAY(SELECT ...)` | `array_agg` in a subquery, or `array_transform` over a function's rows |
//! | `FROM generate_series(a, b) i` | a derived table over `unnest` |
//! | a correlated subquery that yields one row | [`single_value`](super::functions) over it, joined by its equalities |
//! | a subquery over a system table that has no rows here | NULL, false or the empty array |

mod casts;
mod subqueries;

use std::ops::ControlFlow;

use sqlparser::ast::{
    BinaryOperator, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList, FunctionArguments, Ident,
    ObjectName, ObjectNamePart, Select, SelectItem, TableFactor, Value, VisitMut, VisitorMut,
};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser;

/// Rewrites a statement, a query or an expression in place.
pub fn rewrite(node: &mut impl VisitMut) {
    let _ = node.visit(&mut Rewrite);
}

struct Rewrite;

impl VisitorMut for Rewrite {
    type Break = ();

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<()> {
        subqueries::without_rows(select);
        for item in &mut select.projection {
            if let SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } = item {
                casts::show_reg(expr);
                subqueries::in_list(expr);
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, table: &mut TableFactor) -> ControlFlow<()> {
        subqueries::function_in_from(table);
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        casts::reg_as_text(expr);
        subqueries::rewrite(expr);
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        match expr {
            Expr::Collate { expr: inner, collation } if is_binary_collation(collation) => {
                *expr = take(inner);
            }
            Expr::BinaryOp { op, .. } => {
                if let BinaryOperator::PGCustomBinaryOperator(parts) = op
                    && let Some(plain) = parts.last().and_then(|part| operator(part))
                {
                    *op = plain;
                }
            }
            Expr::Function(function) => {
                unqualify(&mut function.name);
                if is_named(&function.name, "_pg_expandarray") {
                    *expr = call("unnest", vec![take(expr)]);
                }
            }
            Expr::Cast { .. } => casts::rewrite(expr),
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

/// Takes `pg_catalog.` or `information_schema.` from a function's name.
fn unqualify(name: &mut ObjectName) {
    if let [schema, _] = name.0.as_slice()
        && let Some(schema) = schema.as_ident()
        && matches!(schema.value.to_ascii_lowercase().as_str(), "pg_catalog" | "information_schema")
    {
        name.0.remove(0);
    }
}

fn is_binary_collation(collation: &ObjectName) -> bool {
    let last = collation.0.last().and_then(ObjectNamePart::as_ident);
    last.is_some_and(|name| matches!(name.value.as_str(), "default" | "C" | "POSIX" | "C.UTF-8" | "ucs_basic"))
}

fn operator(text: &str) -> Option<BinaryOperator> {
    Some(match text {
        "=" => BinaryOperator::Eq,
        "<>" | "!=" => BinaryOperator::NotEq,
        "<" => BinaryOperator::Lt,
        "<=" => BinaryOperator::LtEq,
        ">" => BinaryOperator::Gt,
        ">=" => BinaryOperator::GtEq,
        "~" => BinaryOperator::PGRegexMatch,
        "~*" => BinaryOperator::PGRegexIMatch,
        "!~" => BinaryOperator::PGRegexNotMatch,
        "!~*" => BinaryOperator::PGRegexNotIMatch,
        "~~" => BinaryOperator::PGLikeMatch,
        "~~*" => BinaryOperator::PGILikeMatch,
        "!~~" => BinaryOperator::PGNotLikeMatch,
        "!~~*" => BinaryOperator::PGNotILikeMatch,
        "||" => BinaryOperator::StringConcat,
        "+" => BinaryOperator::Plus,
        "-" => BinaryOperator::Minus,
        "*" => BinaryOperator::Multiply,
        "/" => BinaryOperator::Divide,
        "%" => BinaryOperator::Modulo,
        _ => return None,
    })
}

/// True if the last part of a name is `word`, which is in lower case.
fn is_named(name: &ObjectName, word: &str) -> bool {
    name.0.last().and_then(ObjectNamePart::as_ident).is_some_and(|ident| folded(ident) == word)
}

/// A name as Postgres folds it.
fn folded(ident: &Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_ascii_lowercase() }
}

fn take(expr: &mut Expr) -> Expr {
    std::mem::replace(expr, null())
}

fn null() -> Expr {
    Expr::Value(Value::Null.into())
}

fn boolean(value: bool) -> Expr {
    Expr::Value(Value::Boolean(value).into())
}

fn text(value: &str) -> Expr {
    Expr::Value(Value::SingleQuotedString(value.to_string()).into())
}

/// `name(args)`.
fn call(name: &str, args: Vec<Expr>) -> Expr {
    let args = args.into_iter().map(|arg| FunctionArg::Unnamed(FunctionArgExpr::Expr(arg))).collect();
    Expr::Function(Function {
        name: ObjectName::from(Ident::new(name)),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList { duplicate_treatment: None, args, clauses: vec![] }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: vec![],
    })
}

/// An expression of this module's own, as text.
fn parsed(sql: &str) -> Expr {
    let parser = Parser::new(&PostgreSqlDialect {}).try_with_sql(sql);
    parser.and_then(|mut parser| parser.parse_expr()).expect("the module's own SQL is well-formed")
}
