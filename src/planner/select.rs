//! SELECTs that the planner writes itself.

use sqlparser::ast::{
    self, Ident, ObjectName, Query, Select, SelectItem, SetExpr, TableFactor, TableWithJoins, WildcardAdditionalOptions,
};

/// `expr AS alias`.
pub(super) fn item(expr: ast::Expr, alias: String) -> SelectItem {
    SelectItem::ExprWithAlias { expr, alias: Ident::with_quote('"', alias) }
}

/// `SELECT items FROM table WHERE selection`.
pub(super) fn select(items: Vec<SelectItem>, table: TableWithJoins, selection: Option<ast::Expr>) -> Query {
    let select = Select {
        select_token: ast::helpers::attached_token::AttachedToken::empty(),
        optimizer_hints: vec![],
        distinct: None,
        select_modifiers: None,
        top: None,
        top_before_distinct: false,
        projection: items,
        exclude: None,
        into: None,
        from: vec![table],
        lateral_views: vec![],
        prewhere: None,
        selection,
        connect_by: vec![],
        group_by: ast::GroupByExpr::Expressions(vec![], vec![]),
        cluster_by: vec![],
        distribute_by: vec![],
        sort_by: vec![],
        having: None,
        named_window: vec![],
        qualify: None,
        window_before_qualify: false,
        value_table_mode: None,
        flavor: ast::SelectFlavor::Standard,
    };
    Query {
        with: None,
        body: Box::new(SetExpr::Select(Box::new(select))),
        order_by: None,
        limit_clause: None,
        fetch: None,
        locks: vec![],
        for_clause: None,
        settings: None,
        format_clause: None,
        pipe_operators: vec![],
    }
}

/// The relation of this name in FROM.
pub(super) fn table(name: ObjectName) -> TableFactor {
    TableFactor::Table {
        name,
        alias: None,
        args: None,
        with_hints: vec![],
        version: None,
        with_ordinality: false,
        partitions: vec![],
        json_path: None,
        sample: None,
        index_hints: vec![],
    }
}

/// `TABLE t` as the `SELECT * FROM t` that it stands for, in every part of a set operation.
pub(super) fn expand_table_commands(body: &mut SetExpr) {
    match body {
        SetExpr::Table(command) => {
            let parts = command.schema_name.iter().chain(&command.table_name);
            let name = ObjectName::from(parts.map(|part| Ident::new(part.as_str())).collect::<Vec<_>>());
            let all = SelectItem::Wildcard(WildcardAdditionalOptions::default());
            let from = TableWithJoins { relation: table(name), joins: vec![] };
            *body = *select(vec![all], from, None).body;
        }
        SetExpr::SetOperation { left, right, .. } => {
            expand_table_commands(left);
            expand_table_commands(right);
        }
        _ => {}
    }
}
