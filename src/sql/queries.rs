//! What sqlparser accepts and no planner reads: refused here, so that nothing is accepted that does nothing. Standard
//! spellings that the planner lacks are turned into those it knows.

use std::ops::ControlFlow;

use sqlparser::ast::{
    CopyTarget, Delete, Expr, Fetch, FromTable, GroupByExpr, Insert, LimitClause, OnInsert, OrderByKind, Query, Select,
    SetExpr, Statement, TableFactor, TableObject, Update, Value, VisitMut, VisitorMut,
};

use super::SqlError;

/// The most columns of a SELECT, and entries of GROUP BY and ORDER BY, as in Postgres.
const MAX_COLUMNS: usize = 1664;

/// A query or an expression with queries in it. Errors carry no position.
pub(super) fn normalise(tree: &mut impl VisitMut) -> Result<(), SqlError> {
    match tree.visit(&mut Normalise) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(error) => Err(error),
    }
}

/// INSERT, UPDATE, DELETE and COPY.
pub(super) fn normalise_statement(statement: &mut Statement) -> Result<(), SqlError> {
    let foreign = match statement {
        Statement::Insert(insert) => in_insert(insert),
        Statement::Update(update) => in_update(update),
        Statement::Delete(delete) => in_delete(delete),
        Statement::Copy { target, .. } => match target {
            CopyTarget::Stdin | CopyTarget::Stdout => None,
            CopyTarget::File { .. } => Some(("COPY of a file on the server", "use STDIN or STDOUT, or psql's \\copy")),
            CopyTarget::Program { .. } => Some(("COPY with PROGRAM", "use STDIN or STDOUT")),
        },
        _ => None,
    };
    match foreign {
        Some((what, hint)) => refuse(what, hint),
        None => normalise(statement),
    }
}

type Foreign = Option<(&'static str, &'static str)>;

fn in_insert(insert: &Insert) -> Foreign {
    let other = insert.or.is_some()
        || insert.ignore
        || insert.overwrite
        || insert.replace_into
        || insert.has_table_keyword
        || insert.partitioned.is_some()
        || insert.priority.is_some()
        || insert.insert_alias.is_some()
        || insert.settings.is_some()
        || insert.format_clause.is_some()
        || insert.multi_table_insert_type.is_some()
        || insert.output.is_some()
        || !insert.after_columns.is_empty()
        || !insert.assignments.is_empty();
    if other || !matches!(insert.table, TableObject::TableName(_)) {
        return Some(("this form of INSERT", "write INSERT INTO table [(columns)] VALUES (...) or a query"));
    }
    matches!(insert.on, Some(OnInsert::DuplicateKeyUpdate(_))).then_some(("ON DUPLICATE KEY UPDATE", "use ON CONFLICT"))
}

fn in_update(update: &Update) -> Foreign {
    let other = update.or.is_some() || update.output.is_some() || !update.order_by.is_empty() || update.limit.is_some();
    other.then_some(("this form of UPDATE", "write UPDATE table SET column = value WHERE condition"))
}

fn in_delete(delete: &Delete) -> Foreign {
    let other = !delete.tables.is_empty()
        || delete.output.is_some()
        || !delete.order_by.is_empty()
        || delete.limit.is_some()
        || matches!(delete.from, FromTable::WithoutKeyword(_));
    other.then_some(("this form of DELETE", "write DELETE FROM table WHERE condition"))
}

fn refuse<T>(what: &str, hint: &str) -> Result<T, SqlError> {
    Err(SqlError::unsupported(what, hint))
}

struct Normalise;

impl VisitorMut for Normalise {
    type Break = SqlError;

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<SqlError> {
        flow(check_query(query))
    }

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<SqlError> {
        flow(check_select(select))
    }

    fn pre_visit_table_factor(&mut self, table: &mut TableFactor) -> ControlFlow<SqlError> {
        flow(check_table(table))
    }
}

fn flow(result: Result<(), SqlError>) -> ControlFlow<SqlError> {
    result.map_or_else(ControlFlow::Break, ControlFlow::Continue)
}

fn check_query(query: &mut Query) -> Result<(), SqlError> {
    match query.body.as_ref() {
        SetExpr::Insert(_) => {
            return refuse("INSERT behind or inside WITH", "put WITH behind it: INSERT INTO t WITH ... SELECT ...");
        }
        SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_) => {
            return refuse("a change of data behind or inside WITH", "use a subquery in its WHERE clause");
        }
        _ => {}
    }
    let sorted = query.order_by.as_ref().map_or(0, |order| match &order.kind {
        OrderByKind::Expressions(list) => list.len(),
        OrderByKind::All(_) => 0,
    });
    at_most("ORDER BY lists", sorted)?;
    if let SetExpr::Values(values) = query.body.as_ref() {
        at_most("VALUES lists", values.rows.iter().map(|row| row.content.len()).max().unwrap_or(0))?;
    }
    if !query.locks.is_empty() {
        return refuse("FOR UPDATE or FOR SHARE", "leave it out: a read sees one version and locks nothing");
    }
    if query.for_clause.is_some() || query.settings.is_some() || query.format_clause.is_some() {
        return refuse("this FOR clause", "leave it out");
    }
    if !query.pipe_operators.is_empty() {
        return refuse("the pipe operator |>", "use a subquery");
    }
    match &query.limit_clause {
        Some(LimitClause::OffsetCommaLimit { .. }) => {
            let message = "LIMIT #,# syntax is not supported".into();
            let error = SqlError::Syntax { message, hint: None, position: None };
            return Err(error.with_hint("use separate LIMIT and OFFSET clauses"));
        }
        Some(LimitClause::LimitOffset { limit_by, .. }) if !limit_by.is_empty() => {
            return refuse("LIMIT BY", "use row_number() OVER (PARTITION BY ...) in a subquery");
        }
        _ => {}
    }
    match query.fetch.take() {
        Some(fetch) => fetch_as_limit(query, fetch),
        None => Ok(()),
    }
}

fn fetch_as_limit(query: &mut Query, fetch: Fetch) -> Result<(), SqlError> {
    if fetch.with_ties || fetch.percent {
        return refuse("FETCH FIRST with PERCENT or WITH TIES", "use FETCH FIRST n ROWS ONLY, or LIMIT");
    }
    let rows = fetch.quantity.unwrap_or_else(|| Expr::value(Value::Number("1".into(), false)));
    match &mut query.limit_clause {
        Some(LimitClause::LimitOffset { limit: limit @ None, .. }) => *limit = Some(rows),
        Some(_) => {
            return Err(SqlError::Syntax {
                message: "multiple LIMIT clauses not allowed".into(),
                hint: None,
                position: None,
            });
        }
        None => {
            query.limit_clause =
                Some(LimitClause::LimitOffset { limit: Some(rows), offset: None, limit_by: Vec::new() });
        }
    }
    Ok(())
}

fn at_most(what: &'static str, entries: usize) -> Result<(), SqlError> {
    if entries > MAX_COLUMNS {
        return Err(SqlError::TooManyColumns { what, most: MAX_COLUMNS, position: None });
    }
    Ok(())
}

fn check_select(select: &Select) -> Result<(), SqlError> {
    at_most("target lists", select.projection.len())?;
    if let GroupByExpr::Expressions(list, _) = &select.group_by {
        at_most("GROUP BY lists", list.len())?;
    }
    if select.into.is_some() {
        return refuse("SELECT INTO", "use CREATE TABLE ... AS SELECT");
    }
    if select.top.is_some() {
        return refuse("TOP", "use LIMIT");
    }
    let other = !select.lateral_views.is_empty()
        || select.prewhere.is_some()
        || !select.connect_by.is_empty()
        || !select.cluster_by.is_empty()
        || !select.distribute_by.is_empty()
        || !select.sort_by.is_empty()
        || select.value_table_mode.is_some()
        || select.select_modifiers.is_some();
    if other { refuse("this form of SELECT", "use the clauses that Postgres has") } else { Ok(()) }
}

fn check_table(table: &TableFactor) -> Result<(), SqlError> {
    match table {
        TableFactor::Table { sample: Some(_), .. } | TableFactor::Derived { sample: Some(_), .. } => {
            refuse("TABLESAMPLE", "use a condition in WHERE")
        }
        TableFactor::Table { with_ordinality: true, .. } | TableFactor::Function { with_ordinality: true, .. } => {
            refuse("WITH ORDINALITY", "use row_number() OVER ()")
        }
        TableFactor::Table { with_hints, version, partitions, index_hints, .. }
            if !with_hints.is_empty() || version.is_some() || !partitions.is_empty() || !index_hints.is_empty() =>
        {
            refuse("this form of a table in FROM", "name the table alone, with an alias if you like")
        }
        TableFactor::TableFunction { .. } => {
            refuse("TABLE(...) around anything but a window function", "HOP, TUMBLE, CUMULATE and SESSION go there")
        }
        _ => Ok(()),
    }
}
