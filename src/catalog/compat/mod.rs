//! What Postgres's tools write and DataFusion does not read, put in words that it reads. The meaning stays.
//!
//! | written | planned as |
//! |---|---|
//! | `pg_catalog.f(x)`, `x::pg_catalog.text`, `a OPERATOR(pg_catalog.~) b` | the same without the schema |
//! | `x COLLATE pg_catalog.default` | `x`: text compares by its bytes, which is `C` |
//! | `'t'::regclass`, `oid::regclass` | `regclassin('t')`; where it is shown, `regclassout(oid)` |
//! | `ARRAY(SELECT ...)` | `array_agg` in a subquery, or `array_transform` over a function's rows |
//! | `FROM generate_series(a, b) i` | a derived table over `unnest` |
//! | `(f(x)).n` | `get_field(f(x), 'n')` |
//! | `c.oid, c.*` over a system table | all columns, the second `oid` under another name |
//! | a correlated subquery that yields one row | [`single_value`](super::functions) over it, joined by its equalities |
//! | a subquery over a system table that has no rows here | NULL, false or the empty array |

mod casts;
mod subqueries;

use std::ops::ControlFlow;

use sqlparser::ast::{
    AccessExpr, BinaryOperator, Cte, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList,
    FunctionArguments, Ident, ObjectName, ObjectNamePart, OrderBy, OrderByKind, Query, Select, SelectItem, TableFactor,
    Value, VisitMut, VisitorMut,
};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser;

use super::PG_CATALOG;
use super::system::definitions::Definition;

/// Rewrites a statement, a query or an expression in place.
pub fn rewrite(node: &mut impl VisitMut) {
    let mut hiding = HidesSystemTable;
    let system = node.visit(&mut hiding).is_continue();
    let _ = node.visit(&mut Rewrite { system });
}

struct Rewrite {
    /// True if the names of system tables mean these.
    system: bool,
}

/// Stops at a common table expression that has the name of a system table.
struct HidesSystemTable;

impl VisitorMut for HidesSystemTable {
    type Break = ();

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<()> {
        let hides = |cte: &Cte| Definition::find(PG_CATALOG, &folded(&cte.alias.name)).is_some();
        match &query.with {
            Some(with) if with.cte_tables.iter().any(hides) => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    }
}

impl VisitorMut for Rewrite {
    type Break = ();

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<()> {
        if self.system
            && let Some(OrderBy { kind: OrderByKind::Expressions(by), .. }) = &mut query.order_by
        {
            by.iter_mut().for_each(|by| subqueries::in_projection(&mut by.expr));
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<()> {
        if self.system {
            subqueries::without_rows(select);
            subqueries::table_oids(select);
            subqueries::expand_wildcards(select);
        }
        name_apart(&mut select.projection);
        for item in &mut select.projection {
            if let SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } = item {
                casts::show_reg(expr);
                if self.system {
                    subqueries::in_projection(expr);
                }
            }
        }
        ControlFlow::Continue(())
    }

    fn post_visit_table_factor(&mut self, table: &mut TableFactor) -> ControlFlow<()> {
        subqueries::function_in_from(table);
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        casts::reg_as_text(expr);
        if self.system {
            subqueries::rewrite(expr);
        }
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
            Expr::CompoundFieldAccess { root, access_chain } => {
                if let [AccessExpr::Dot(Expr::Identifier(field))] = access_chain.as_slice() {
                    let field = text(&folded(field));
                    *expr = call("get_field", vec![take(root), field]);
                }
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

/// `SELECT NULL, NULL`: plans want unique names. What stands behind the control character is not shown to clients.
fn name_apart(items: &mut [SelectItem]) {
    for at in 1..items.len() {
        let (before, rest) = items.split_at_mut(at);
        if let SelectItem::UnnamedExpr(expr) = &mut rest[0]
            && before.iter().any(|item| matches!(item, SelectItem::UnnamedExpr(other) if same(other, expr)))
        {
            let name = match expr {
                Expr::CompoundIdentifier(parts) => parts.last().map_or_else(String::new, folded),
                Expr::Identifier(name) => folded(name),
                _ => "?column?".to_string(),
            };
            let alias = Ident::with_quote('"', format!("{name}\u{1}{at}"));
            rest[0] = SelectItem::ExprWithAlias { expr: take(expr), alias };
        }
    }
}

fn same(left: &Expr, right: &Expr) -> bool {
    match (left, right) {
        (Expr::CompoundIdentifier(left), Expr::CompoundIdentifier(right)) => {
            left.iter().map(folded).eq(right.iter().map(folded))
        }
        _ => left == right,
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
