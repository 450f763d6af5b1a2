//! Subqueries over system tables, and functions that stand for tables.

use std::collections::HashSet;
use std::ops::ControlFlow;

use sqlparser::ast::helpers::attached_token::AttachedToken;
use sqlparser::ast::{
    BinaryOperator, CaseWhen, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentClause, FunctionArguments,
    GroupByExpr, Ident, JoinOperator, LambdaFunction, LambdaFunctionParameter, LambdaSyntax, ObjectName,
    ObjectNamePart, OneOrManyWithParens, OrderByKind, Query, Select, SelectItem, SelectItemQualifiedWildcardKind,
    SetExpr, TableAlias, TableFactor, TableWithJoins, UnaryOperator, VisitMut, VisitorMut, visit_expressions,
};

use super::{boolean, call, folded, is_named, null, parsed, take, text, unqualify};
use crate::catalog::functions::SINGLE_VALUE;
use crate::catalog::system::definitions::Definition;
use crate::catalog::{INFORMATION_SCHEMA, Oid, PG_CATALOG};

const AGGREGATES: [&str; 12] = [
    "count",
    "sum",
    "min",
    "max",
    "avg",
    "array_agg",
    "string_agg",
    "bool_and",
    "bool_or",
    "every",
    "json_agg",
    SINGLE_VALUE,
];

/// A SELECT over a system table that has no rows here has none itself, so what it computes from subqueries need not be
/// planned: those items become NULL, the condition false.
pub fn without_rows(select: &mut Select) {
    if !reads_nothing(select) || has_aggregate(select) {
        return;
    }
    select.selection = Some(boolean(false));
    for item in &mut select.projection {
        match item {
            SelectItem::UnnamedExpr(expr) if has_subquery(expr) => {
                *item = SelectItem::ExprWithAlias {
                    expr: parsed("CAST(NULL AS TEXT)"),
                    alias: Ident::with_quote('"', "?column?"),
                };
            }
            SelectItem::ExprWithAlias { expr, .. } if has_subquery(expr) => *expr = parsed("CAST(NULL AS TEXT)"),
            _ => {}
        }
    }
}

/// An expression on the way down.
pub fn rewrite(expr: &mut Expr) {
    match expr {
        Expr::Function(function) if is_named(&function.name, "array") => {
            if let FunctionArguments::Subquery(query) = &mut function.args {
                *expr = array(query);
            }
        }
        Expr::Subquery(query) => match plain_select(query) {
            Some(select) if reads_nothing(select) && !has_aggregate(select) => *expr = null(),
            Some(_) => scalar(expr),
            None => {}
        },
        Expr::Exists { subquery, negated } | Expr::InSubquery { subquery, negated, .. }
            if plain_select(subquery).is_some_and(|select| reads_nothing(select) && !has_aggregate(select)) =>
        {
            *expr = boolean(*negated);
        }
        _ => {}
    }
}

/// `x IN (SELECT ...)` and `EXISTS (SELECT ...)` in a SELECT list, where DataFusion plans no semi-join: a search in the
/// array of the subquery's rows, a count of them. Only for subqueries over system tables and functions, the first only if
/// it refers to nothing outside.
pub fn in_projection(expr: &mut Expr) {
    struct InProjection;
    impl VisitorMut for InProjection {
        type Break = ();
        fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
            let (value, negated) = match expr {
                Expr::InSubquery { expr: needle, subquery, negated } => {
                    let Some(select) = plain_select(subquery) else { return ControlFlow::Continue(()) };
                    if Scope::of(select).is_none_or(|scope| scope.refers_outside(select)) {
                        return ControlFlow::Continue(());
                    }
                    (call("array_has", vec![array(subquery), take(needle)]), *negated)
                }
                Expr::Exists { subquery, negated } => {
                    let Some(select) = plain_select_mut(subquery) else { return ControlFlow::Continue(()) };
                    if reads_nothing(select) || has_aggregate(select) || Scope::of(select).is_none() {
                        return ControlFlow::Continue(());
                    }
                    select.projection = vec![SelectItem::UnnamedExpr(parsed("count(*)"))];
                    let some = Expr::BinaryOp {
                        left: Box::new(Expr::Subquery(subquery.clone())),
                        op: BinaryOperator::Gt,
                        right: Box::new(parsed("0")),
                    };
                    (some, *negated)
                }
                _ => return ControlFlow::Continue(()),
            };
            *expr = if negated {
                Expr::UnaryOp { op: UnaryOperator::Not, expr: Box::new(Expr::Nested(Box::new(value))) }
            } else {
                value
            };
            ControlFlow::Continue(())
        }
    }
    let _ = expr.visit(&mut InProjection);
}

/// `t.tableoid` of a system table: the table's OID.
pub fn table_oids(select: &mut Select) {
    struct TableOids(Vec<(String, Oid)>);
    impl VisitorMut for TableOids {
        type Break = ();
        fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
            if let Expr::CompoundIdentifier(parts) = expr
                && let [table, column] = parts.as_slice()
                && folded(column) == "tableoid"
                && let Some((_, oid)) = self.0.iter().find(|(name, _)| *name == folded(table))
            {
                *expr = parsed(&oid.to_string());
            }
            ControlFlow::Continue(())
        }
    }
    let mut oids = TableOids(system_tables(select).map(|(name, table)| (name, table.oid)).collect());
    if !oids.0.is_empty() {
        let _ = select.projection.visit(&mut oids);
        let _ = select.selection.visit(&mut oids);
        let _ = select.from.visit(&mut oids);
    }
}

/// `c.oid, c.*`: where a column of a system table is named beside all of them, the columns one by one.
pub fn expand_wildcards(select: &mut Select) {
    let tables: Vec<(String, &Definition)> = system_tables(select).collect();
    let named = |table: &str| {
        select.projection.iter().any(|item| match item {
            SelectItem::UnnamedExpr(Expr::CompoundIdentifier(parts)) => folded(&parts[0]) == table,
            _ => false,
        })
    };
    let wildcard = |item: &SelectItem| match item {
        SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::ObjectName(name), _) => {
            let name = last_name(name)?;
            tables.iter().find(|(table, _)| *table == name && named(table))
        }
        _ => None,
    };
    let mut items = Vec::with_capacity(select.projection.len());
    for item in &select.projection {
        match wildcard(item) {
            Some((table, definition)) => items.extend(definition.columns.fields().iter().map(|field| {
                let parts = [table, field.name()].map(|part| Ident::with_quote('"', part));
                SelectItem::UnnamedExpr(Expr::CompoundIdentifier(parts.into()))
            })),
            None => items.push(item.clone()),
        }
    }
    select.projection = items;
}

/// The system tables of a FROM clause by the names they have there.
fn system_tables(select: &Select) -> impl Iterator<Item = (String, &'static Definition)> {
    let from = select.from.iter();
    let tables = from.flat_map(|from| [&from.relation].into_iter().chain(from.joins.iter().map(|join| &join.relation)));
    tables.filter_map(|table| match (system_table(table)?, table) {
        (definition, TableFactor::Table { alias, .. }) => {
            let name = alias.as_ref().map_or(definition.name.to_string(), |alias| folded(&alias.name));
            Some((name, definition))
        }
        _ => None,
    })
}

/// `ARRAY(SELECT item FROM ...)`, empty where the query has no rows.
fn array(query: &mut Query) -> Expr {
    let empty = || parsed("CAST(ARRAY[] AS TEXT[])");
    let order_by = match &query.order_by {
        Some(order) => match &order.kind {
            OrderByKind::Expressions(by) => by.clone(),
            OrderByKind::All(_) => Vec::new(),
        },
        None => Vec::new(),
    };
    let Some(select) = plain_select_mut(query) else {
        return Expr::Subquery(Box::new(query.clone()));
    };
    if reads_nothing(select) && !has_aggregate(select) {
        return empty();
    }
    let [SelectItem::UnnamedExpr(item) | SelectItem::ExprWithAlias { expr: item, .. }] =
        select.projection.as_mut_slice()
    else {
        return Expr::Subquery(Box::new(query.clone()));
    };
    let item = take(item);
    if let Some(mapped) = over_function(select, &item) {
        return mapped;
    }
    // ORDER BY 1 is by the item.
    let by = order_by.into_iter().map(|mut by| {
        if matches!(&by.expr, Expr::Value(_)) {
            by.expr = item.clone();
        }
        by
    });
    let by: Vec<_> = by.collect();
    let mut aggregate = call("array_agg", vec![item]);
    if let Expr::Function(Function { args: FunctionArguments::List(list), .. }) = &mut aggregate
        && !by.is_empty()
    {
        list.clauses.push(FunctionArgumentClause::OrderBy(by));
    }
    select.projection = vec![SelectItem::UnnamedExpr(aggregate)];
    query.order_by = None;
    call("coalesce", vec![Expr::Subquery(Box::new(query.clone())), parsed("make_array()")])
}

/// `SELECT item FROM f(x) a` with a function of a set: the item of each of its rows.
fn over_function(select: &Select, item: &Expr) -> Option<Expr> {
    let [from] = select.from.as_slice() else { return None };
    if !from.joins.is_empty() || select.selection.is_some() {
        return None;
    }
    let (name, arguments, alias) = table_function(&from.relation)?;
    let row = alias.map_or_else(|| Ident::new("row"), |alias| alias.name.clone());
    let mut body = item.clone();
    let rows = match name.as_str() {
        "unnest" => arguments.into_iter().next()?,
        "pg_options_to_table" => {
            struct Fields(Ident);
            impl VisitorMut for Fields {
                type Break = ();
                fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
                    if let Expr::Identifier(name) = expr
                        && matches!(name.value.as_str(), "option_name" | "option_value")
                    {
                        *expr = call("get_field", vec![Expr::Identifier(self.0.clone()), text(&name.value)]);
                    }
                    ControlFlow::Continue(())
                }
            }
            let _ = body.visit(&mut Fields(row.clone()));
            call("pg_options_to_table", arguments)
        }
        _ => return None,
    };
    let lambda = Expr::Lambda(LambdaFunction {
        params: OneOrManyWithParens::One(LambdaFunctionParameter { name: row, data_type: None }),
        body: Box::new(body),
        syntax: LambdaSyntax::Arrow,
    });
    Some(call("array_transform", vec![rows, lambda]))
}

/// A correlated subquery of one row: conditions on the outer row alone become a CASE around it, an outer column that
/// equals an inner one is replaced by it in the other conditions, and [`SINGLE_VALUE`] stands over the item, so that
/// DataFusion can join by the equalities.
fn scalar(expr: &mut Expr) {
    let Expr::Subquery(query) = expr else { return };
    if query.order_by.is_some() || query.limit_clause.is_some() || query.fetch.is_some() {
        return;
    }
    let Some(select) = plain_select_mut(query) else { return };
    let Some(scope) = Scope::of(select) else { return };
    if has_aggregate(select) || select.distinct.is_some() || !scope.refers_outside(select) {
        return;
    }
    let Some(condition) = select.selection.take() else { return };
    let mut conjuncts = Vec::new();
    split(condition, &mut conjuncts);
    let (outer, mut inner): (Vec<Expr>, Vec<Expr>) = conjuncts.into_iter().partition(|c| !scope.names_inside(c));

    let equal: Vec<(Expr, Expr)> = inner.iter().filter_map(|c| scope.outer_equality(c)).collect();
    for conjunct in inner.iter_mut().filter(|conjunct| scope.outer_equality(conjunct).is_none()) {
        replace(conjunct, &equal);
    }
    select.selection = inner.into_iter().reduce(and);
    if let [SelectItem::UnnamedExpr(item) | SelectItem::ExprWithAlias { expr: item, .. }] =
        select.projection.as_mut_slice()
    {
        *item = call(SINGLE_VALUE, vec![take(item)]);
    }
    if let Some(condition) = outer.into_iter().reduce(and) {
        *expr = Expr::Case {
            case_token: AttachedToken::empty(),
            end_token: AttachedToken::empty(),
            operand: None,
            conditions: vec![CaseWhen { condition, result: take(expr) }],
            else_result: None,
        };
    }
}

fn and(left: Expr, right: Expr) -> Expr {
    Expr::BinaryOp { left: Box::new(left), op: BinaryOperator::And, right: Box::new(right) }
}

fn split(condition: Expr, conjuncts: &mut Vec<Expr>) {
    match condition {
        Expr::BinaryOp { left, op: BinaryOperator::And, right } => {
            split(*left, conjuncts);
            split(*right, conjuncts);
        }
        Expr::Nested(inner) => split(*inner, conjuncts),
        other => conjuncts.push(other),
    }
}

fn replace(expr: &mut Expr, equal: &[(Expr, Expr)]) {
    struct Replace<'a>(&'a [(Expr, Expr)]);
    impl VisitorMut for Replace<'_> {
        type Break = ();
        fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
            if let Some((_, inner)) = self.0.iter().find(|(outer, _)| outer == expr) {
                *expr = inner.clone();
            }
            ControlFlow::Continue(())
        }
    }
    let _ = expr.visit(&mut Replace(equal));
}

/// A function in FROM whose arguments need not be constants: a derived table with one column of the alias's name.
pub fn function_in_from(table: &mut TableFactor) {
    let Some((name, arguments, alias)) = table_function(table) else { return };
    let constant = arguments.iter().all(|argument| match argument {
        Expr::UnaryOp { expr, .. } => matches!(expr.as_ref(), Expr::Value(_)),
        other => matches!(other, Expr::Value(_)),
    });
    let value = match name.as_str() {
        // DataFusion's own gives rows one by one, in a column `value`.
        "generate_series" if constant => parsed("value"),
        "generate_series" => call("unnest", vec![call("generate_series", arguments)]),
        "string_to_array" | "current_schemas" | "current_setting" => call(&name, arguments),
        _ => return,
    };
    let column = match alias.and_then(|alias| alias.columns.first()) {
        Some(column) => column.name.clone(),
        None => alias.map_or_else(|| Ident::new(&name), |alias| alias.name.clone()),
    };
    let from_series = name == "generate_series" && constant;
    let alias = alias.map_or_else(|| Ident::new(&name), |alias| alias.name.clone());
    let Expr::Subquery(mut subquery) = parsed("(SELECT 1 AS x)") else { return };
    if let Some(select) = plain_select_mut(&mut subquery) {
        select.projection = vec![SelectItem::ExprWithAlias { expr: value, alias: column }];
        if from_series {
            let mut series = table.clone();
            if let TableFactor::Table { alias, .. } | TableFactor::Function { alias, .. } = &mut series {
                *alias = None;
            }
            select.from = vec![TableWithJoins { relation: series, joins: vec![] }];
        }
    }
    let alias = TableAlias { explicit: true, name: alias, columns: vec![], at: None };
    *table = TableFactor::Derived { lateral: false, subquery, alias: Some(alias), sample: None };
}

/// (name, arguments, alias) of a function that stands as a table.
fn table_function(table: &TableFactor) -> Option<(String, Vec<Expr>, Option<&TableAlias>)> {
    let plain = |args: &[FunctionArg]| {
        let args = args.iter().map(|arg| match arg {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr.clone()),
            _ => None,
        });
        args.collect::<Option<Vec<Expr>>>()
    };
    match table {
        TableFactor::Table { name, args: Some(args), alias, with_ordinality: false, .. } => {
            Some((last_name(name)?, plain(&args.args)?, alias.as_ref()))
        }
        TableFactor::Function { name, args, alias, with_ordinality: false, .. } => {
            Some((last_name(name)?, plain(args)?, alias.as_ref()))
        }
        TableFactor::UNNEST { array_exprs, alias, with_ordinality: false, with_offset: false, .. } => {
            Some(("unnest".to_string(), array_exprs.clone(), alias.as_ref()))
        }
        _ => None,
    }
}

fn last_name(name: &ObjectName) -> Option<String> {
    let mut name = name.clone();
    unqualify(&mut name);
    match name.0.as_slice() {
        [ObjectNamePart::Identifier(ident)] => Some(folded(ident)),
        _ => None,
    }
}

fn plain_select(query: &Query) -> Option<&Select> {
    match query.body.as_ref() {
        SetExpr::Select(select) if query.with.is_none() => Some(select),
        _ => None,
    }
}

fn plain_select_mut(query: &mut Query) -> Option<&mut Select> {
    match query.body.as_mut() {
        SetExpr::Select(select) if query.with.is_none() => Some(select),
        _ => None,
    }
}

/// True if one of the tables that every row must come from is a system table without rows.
fn reads_nothing(select: &Select) -> bool {
    let empty = |table: &TableFactor| system_table(table).is_some_and(|table| table.empty);
    select.from.iter().any(|from| {
        let mut found = empty(&from.relation);
        for join in &from.joins {
            match &join.join_operator {
                JoinOperator::Join(_) | JoinOperator::Inner(_) | JoinOperator::CrossJoin(_) => {
                    found |= empty(&join.relation);
                }
                JoinOperator::Left(_) | JoinOperator::LeftOuter(_) => {}
                // The other side's rows, or unmatched ones, come through whatever was found so far.
                _ => found = false,
            }
        }
        found
    })
}

fn system_table(table: &TableFactor) -> Option<&'static Definition> {
    let TableFactor::Table { name, args: None, .. } = table else { return None };
    match name.0.as_slice() {
        [ObjectNamePart::Identifier(name)] => Definition::find(PG_CATALOG, &folded(name)),
        [ObjectNamePart::Identifier(schema), ObjectNamePart::Identifier(name)] => {
            let schema = folded(schema);
            let known = schema == PG_CATALOG || schema == INFORMATION_SCHEMA;
            known.then(|| Definition::find(&schema, &folded(name))).flatten()
        }
        _ => None,
    }
}

/// True if the SELECT groups its rows; what its subqueries do does not count.
fn has_aggregate(select: &Select) -> bool {
    use sqlparser::ast::{Visit, Visitor};

    struct Aggregates {
        depth: usize,
    }
    impl Visitor for Aggregates {
        type Break = ();
        fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
            self.depth += 1;
            ControlFlow::Continue(())
        }
        fn post_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
            self.depth -= 1;
            ControlFlow::Continue(())
        }
        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
            match expr {
                Expr::Function(f) if self.depth == 0 && AGGREGATES.iter().any(|name| is_named(&f.name, name)) => {
                    ControlFlow::Break(())
                }
                _ => ControlFlow::Continue(()),
            }
        }
    }
    let grouped = !matches!(&select.group_by, GroupByExpr::Expressions(by, _) if by.is_empty());
    grouped || select.having.is_some() || select.projection.visit(&mut Aggregates { depth: 0 }).is_break()
}

fn has_subquery(expr: &Expr) -> bool {
    visit_expressions(expr, |expr| match expr {
        Expr::Subquery(_) | Expr::Exists { .. } | Expr::InSubquery { .. } => ControlFlow::Break(()),
        Expr::Function(f) if matches!(f.args, FunctionArguments::Subquery(_)) => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    })
    .is_break()
}

/// The names that a subquery's own tables give.
struct Scope {
    tables: HashSet<String>,
    columns: HashSet<String>,
}

impl Scope {
    /// None unless everything in FROM is a system table or one of the functions of [`function_in_from`].
    fn of(select: &Select) -> Option<Scope> {
        let mut scope = Scope { tables: HashSet::new(), columns: HashSet::new() };
        if select.from.is_empty() {
            return None;
        }
        for from in &select.from {
            scope.add(&from.relation)?;
            for join in &from.joins {
                scope.add(&join.relation)?;
            }
        }
        Some(scope)
    }

    fn add(&mut self, table: &TableFactor) -> Option<()> {
        if let Some((name, _, alias)) = table_function(table) {
            let name = alias.map_or(name, |alias| folded(&alias.name));
            let columns = alias.into_iter().flat_map(|alias| &alias.columns).map(|column| folded(&column.name));
            self.columns.extend(columns.chain([name.clone()]));
            self.tables.insert(name);
            return Some(());
        }
        let definition = system_table(table)?;
        let TableFactor::Table { alias, .. } = table else { return None };
        self.tables.insert(alias.as_ref().map_or(definition.name.to_string(), |alias| folded(&alias.name)));
        self.columns.extend(definition.columns.fields().iter().map(|field| field.name().clone()));
        Some(())
    }

    /// Whether a column is the subquery's own; None for what is no column.
    fn owns(&self, expr: &Expr) -> Option<bool> {
        match expr {
            Expr::Identifier(name) => Some(self.columns.contains(&folded(name))),
            Expr::CompoundIdentifier(parts) => match parts.as_slice() {
                [table, _] => Some(self.tables.contains(&folded(table))),
                _ => Some(false),
            },
            _ => None,
        }
    }

    fn refers_outside(&self, select: &Select) -> bool {
        let outside = |expr: &Expr| match self.owns(expr) {
            Some(false) => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        };
        visit_expressions(&select.projection, outside).is_break()
            || visit_expressions(&select.selection, outside).is_break()
    }

    fn names_inside(&self, expr: &Expr) -> bool {
        visit_expressions(expr, |expr| match self.owns(expr) {
            Some(true) => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        })
        .is_break()
    }

    /// (outer column, inner column) of `inner = outer`.
    fn outer_equality(&self, expr: &Expr) -> Option<(Expr, Expr)> {
        let Expr::BinaryOp { left, op: BinaryOperator::Eq, right } = expr else { return None };
        match (self.owns(left)?, self.owns(right)?) {
            (true, false) => Some((right.as_ref().clone(), left.as_ref().clone())),
            (false, true) => Some((left.as_ref().clone(), right.as_ref().clone())),
            _ => None,
        }
    }
}
