//! INSERT, UPDATE and DELETE as queries for the rows to add and to take away.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use datafusion::common::{Column, DFSchema};
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder};
use datafusion::sql::planner::{PlannerContext, SqlToRel};
use sqlparser::ast::{
    self, AssignmentTarget, ConflictTarget, FromTable, Ident, ObjectName, OnConflictAction, OnInsert, Query,
    SelectItem, SetExpr, TableFactor, TableObject,
};

use super::error::{At, PlanError, Refusal};
use super::names::name_columns;
use super::query::{Reads, bind, prepare};
use super::relations::{parse_query, resolve};
use super::scope::{Scope, parameter_fields};
use super::select::{item, select};
use super::types::sql_name;
use crate::catalog::{CatalogError, Object, ObjectKind, Oid, Table};
use crate::sql::{Name, OnConflict, Statement, fold};

/// A change to a table: execute the plan, and its rows say what to do.
#[derive(Debug, Clone)]
pub struct DmlPlan {
    pub table: Oid,
    pub kind: DmlKind,
    pub plan: LogicalPlan,
    /// The INSERT's own ON CONFLICT.
    pub on_conflict: Option<OnConflict>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DmlKind {
    /// The plan's columns are the table's, of its types, defaults filled in.
    Insert,
    /// The plan's columns are the table's twice: the row as it is, then as it shall be.
    Update,
    /// The plan's rows are those to delete.
    Delete,
}

/// Plans INSERT, UPDATE or DELETE. Values are cast as Postgres casts in assignments; NOT NULL and keys are for the table to
/// check. `parameter_types` as for [`super::plan_query`].
pub async fn plan_dml(
    statement: &Statement,
    reads: &Reads,
    parameter_types: &[Option<DataType>],
) -> Result<DmlPlan, PlanError> {
    let planner = Dml { scope: reads.scope()?, reads, parameters: parameter_types.to_vec() };
    match statement {
        Statement::Insert(insert) => planner.insert(insert),
        Statement::Update(update) => match update.as_ref() {
            ast::Statement::Update(update) => planner.update(update),
            _ => Err(PlanError::invalid("this statement changes no rows")),
        },
        Statement::Delete(delete) => planner.delete(delete),
        _ => Err(PlanError::invalid("this statement changes no rows")),
    }
}

struct Dml<'a> {
    scope: Scope,
    reads: &'a Reads,
    parameters: Vec<Option<DataType>>,
}

/// The table that a statement changes.
struct Target {
    object: Arc<Object>,
    table: Arc<Table>,
}

impl Target {
    fn width(&self) -> usize {
        self.object.columns.fields().len()
    }

    fn field(&self, i: usize) -> &Field {
        self.object.columns.field(i)
    }

    fn column(&self, name: &ObjectName) -> Result<usize, PlanError> {
        let written = name.0.last().and_then(|part| part.as_ident()).map(fold).unwrap_or_default();
        let found = self.object.columns.fields().iter().position(|field| *field.name() == written);
        found.ok_or_else(|| {
            let message = format!("column \"{written}\" of relation \"{}\" does not exist", self.object.name);
            PlanError::UndefinedColumn(Refusal::new(message).at(At::of(name)))
        })
    }

    fn default(&self, i: usize) -> Result<ast::Expr, PlanError> {
        let text = self.table.defaults.get(&i).map_or("NULL", String::as_str);
        match *parse_query(&format!("SELECT {text}"))?.body {
            SetExpr::Select(select) => match select.projection.into_iter().next() {
                Some(SelectItem::UnnamedExpr(expr)) => Ok(expr),
                _ => Err(PlanError::invalid(format!(
                    "the default of column \"{}\" is no expression",
                    self.field(i).name()
                ))),
            },
            _ => {
                Err(PlanError::invalid(format!("the default of column \"{}\" is no expression", self.field(i).name())))
            }
        }
    }
}

impl Dml<'_> {
    fn target(&self, name: &ObjectName, verb: &str) -> Result<Target, PlanError> {
        let at = At::of(name);
        let parsed = Name::try_from(name).map_err(|e| PlanError::Syntax(Refusal::new(e.to_string()).at(at)))?;
        let object = resolve(&self.scope.catalog, &self.scope.names, &parsed).map_err(|e| e.or_at(at))?;
        let Some(object) = object else {
            let error = CatalogError::NoRelation { kind: "relation", name: parsed.0.join(".") };
            return Err(PlanError::Catalog { error, at });
        };
        let (what, hint) = match &object.kind {
            ObjectKind::Table(table) if table.append_only && verb != "insert into" => {
                ("APPEND ONLY table", "Rows of an APPEND ONLY table stay as they are; create it without APPEND ONLY.")
            }
            ObjectKind::Table(table) => {
                let table = Arc::clone(table);
                return Ok(Target { object, table });
            }
            ObjectKind::Source(_) => {
                ("source", "Rows of a source come from outside: write to its topic, or use a table.")
            }
            ObjectKind::View { .. } => ("view", "Change the tables that it reads."),
            ObjectKind::MaterializedView(_) => ("materialized view", "Change the tables that it reads."),
        };
        let message = format!("cannot {verb} {what} \"{}\"", object.name);
        Err(PlanError::WrongObject(Refusal::new(message).hint(hint).at(at)))
    }

    fn insert(mut self, insert: &ast::Insert) -> Result<DmlPlan, PlanError> {
        refuse_returning(insert.returning.is_some())?;
        let TableObject::TableName(name) = &insert.table else {
            return Err(PlanError::Syntax(Refusal::new("INSERT needs the name of a table")));
        };
        let target = self.target(name, "insert into")?;
        let on_conflict = insert.on.as_ref().map(|on| conflict(on, &target)).transpose()?;

        let mut columns = Vec::with_capacity(target.width());
        for name in &insert.columns {
            let i = target.column(name)?;
            if columns.contains(&i) {
                let message = format!("column \"{}\" specified more than once", target.field(i).name());
                return Err(PlanError::DuplicateColumn(Refusal::new(message).at(At::of(name))));
            }
            columns.push(i);
        }
        let listed = !columns.is_empty();
        if !listed {
            columns = (0..target.width()).collect();
        }

        let plan = match &insert.source {
            // DEFAULT VALUES.
            None => {
                columns.clear();
                LogicalPlanBuilder::empty(true).build()?
            }
            Some(source) => {
                let (plan, literal) = self.insert_source(source, &target, &mut columns, listed)?;
                self.assign(plan, &literal, &target, &columns)?
            }
        };

        // The table's columns in order: what was given, then defaults for the rest.
        let given: Vec<Column> = plan.schema().columns();
        let mut exprs = Vec::with_capacity(target.width());
        for i in 0..target.width() {
            let field = target.field(i);
            let expr = match columns.iter().position(|&column| column == i) {
                Some(at) => Expr::Column(given[at].clone()),
                None => {
                    let default = target.default(i)?;
                    let empty = DFSchema::empty();
                    SqlToRel::new(&self.scope)
                        .sql_to_expr(default, &empty, &mut PlannerContext::new())?
                        .cast_to(field.data_type(), &empty)?
                }
            };
            exprs.push(expr.alias(field.name()));
        }
        let plan = LogicalPlanBuilder::from(plan).project(exprs)?.build()?;
        self.finish(plan, &target, DmlKind::Insert, on_conflict)
    }

    /// The rows to insert as a plan, and for each column whether a text in it is a literal. Fewer values than columns
    /// are fine if no columns were named: the rest take their defaults.
    fn insert_source(
        &mut self,
        source: &Query,
        target: &Target,
        columns: &mut Vec<usize>,
        listed: bool,
    ) -> Result<(LogicalPlan, Vec<bool>), PlanError> {
        let mut source = source.clone();
        let mut context = PlannerContext::new();
        let is_values = matches!(source.body.as_ref(), SetExpr::Values(_));
        if let SetExpr::Values(values) = source.body.as_mut() {
            let width = values.rows.iter().map(|row| row.content.len()).max().unwrap_or(0);
            if values.rows.iter().any(|row| row.content.len() != width) {
                return Err(PlanError::Syntax(Refusal::new("VALUES lists must all be the same length")));
            }
            self.check_width(width, columns, listed)?;
            for row in &mut values.rows {
                for (value, &column) in row.content.iter_mut().zip(columns.iter()) {
                    if is_default(value) {
                        *value = target.default(column)?;
                    }
                    self.parameter(value, target.field(column).data_type());
                }
            }
            let fields: Vec<Field> = columns.iter().map(|&i| target.field(i).clone().with_nullable(true)).collect();
            context.set_table_schema(Some(Arc::new(DFSchema::try_from(Schema::new(fields))?)));
        } else {
            name_columns(&mut source);
        }
        let mut context = context.with_prepare_param_data_types(parameter_fields(&self.parameters));
        let plan = prepare(self.scope.plan_in(source, &mut context)?, &self.scope)?;
        let width = plan.schema().fields().len();
        self.check_width(width, columns, listed)?;
        let literal = match &plan {
            LogicalPlan::Projection(projection) => projection.expr.iter().map(is_literal).collect(),
            _ => vec![is_values; width],
        };
        Ok((plan, literal))
    }

    fn check_width(&self, width: usize, columns: &mut Vec<usize>, listed: bool) -> Result<(), PlanError> {
        if width > columns.len() {
            return Err(PlanError::Syntax(Refusal::new("INSERT has more expressions than target columns")));
        }
        if width < columns.len() && listed {
            return Err(PlanError::Syntax(Refusal::new("INSERT has more target columns than expressions")));
        }
        columns.truncate(width);
        Ok(())
    }

    fn update(mut self, update: &ast::Update) -> Result<DmlPlan, PlanError> {
        refuse_returning(update.returning.is_some())?;
        if update.from.is_some() || !update.table.joins.is_empty() {
            return Err(PlanError::unsupported(
                "UPDATE ... FROM is not supported",
                "Use a subquery: SET v = (SELECT ...) WHERE key IN (SELECT ...).",
            ));
        }
        let TableFactor::Table { name, .. } = &update.table.relation else {
            return Err(PlanError::Syntax(Refusal::new("UPDATE needs the name of a table")));
        };
        let target = self.target(name, "update")?;
        let mut assigned: Vec<Option<ast::Expr>> = vec![None; target.width()];
        for assignment in &update.assignments {
            let AssignmentTarget::ColumnName(name) = &assignment.target else {
                return Err(PlanError::unsupported(
                    "assigning several columns at once is not supported",
                    "Write SET a = ..., b = ....",
                ));
            };
            let i = target.column(name)?;
            let mut value = assignment.value.clone();
            if is_default(&value) {
                value = target.default(i)?;
            }
            self.parameter(&value, target.field(i).data_type());
            if assigned[i].replace(value).is_some() {
                let message = format!("multiple assignments to same column \"{}\"", target.field(i).name());
                return Err(PlanError::Syntax(Refusal::new(message).at(At::of(name))));
            }
        }
        let column = |i: usize| ast::Expr::Identifier(Ident::with_quote('"', target.field(i).name()));
        let mut items: Vec<SelectItem> =
            (0..target.width()).map(|i| item(column(i), format!("old {}", target.field(i).name()))).collect();
        for (i, value) in assigned.into_iter().enumerate() {
            items.push(item(value.unwrap_or_else(|| column(i)), format!("new {}", target.field(i).name())));
        }
        let query = select(items, update.table.clone(), update.selection.clone());
        let plan = prepare(self.scope.plan(query, &self.parameters)?, &self.scope)?;
        let literal: Vec<bool> = match &plan {
            LogicalPlan::Projection(projection) => projection.expr.iter().map(is_literal).collect(),
            _ => vec![false; 2 * target.width()],
        };
        let both: Vec<usize> = (0..target.width()).chain(0..target.width()).collect();
        let plan = self.assign(plan, &literal, &target, &both)?;
        self.finish(plan, &target, DmlKind::Update, None)
    }

    fn delete(self, delete: &ast::Delete) -> Result<DmlPlan, PlanError> {
        refuse_returning(delete.returning.is_some())?;
        if delete.using.is_some() {
            return Err(PlanError::unsupported(
                "DELETE ... USING is not supported",
                "Use a subquery: DELETE FROM t WHERE key IN (SELECT ...).",
            ));
        }
        let (FromTable::WithFromKeyword(from) | FromTable::WithoutKeyword(from)) = &delete.from;
        let [table] = from.as_slice() else {
            return Err(PlanError::Syntax(Refusal::new("DELETE needs the name of one table")));
        };
        let TableFactor::Table { name, .. } = &table.relation else {
            return Err(PlanError::Syntax(Refusal::new("DELETE needs the name of a table")));
        };
        let target = self.target(name, "delete from")?;
        let column = |i: usize| {
            let name = target.field(i).name();
            item(ast::Expr::Identifier(Ident::with_quote('"', name)), name.clone())
        };
        let query = select((0..target.width()).map(column).collect(), table.clone(), delete.selection.clone());
        let plan = prepare(self.scope.plan(query, &self.parameters)?, &self.scope)?;
        self.finish(plan, &target, DmlKind::Delete, None)
    }

    /// Notes that a bare parameter is for a column of this type, unless the client said otherwise.
    fn parameter(&mut self, value: &ast::Expr, data_type: &DataType) {
        let ast::Expr::Value(value) = value else { return };
        let ast::Value::Placeholder(id) = &value.value else { return };
        let Some(i) = id.strip_prefix('$').and_then(|n| n.parse::<usize>().ok()).and_then(|n| n.checked_sub(1)) else {
            return;
        };
        if self.parameters.len() <= i {
            self.parameters.resize(i + 1, None);
        }
        self.parameters[i].get_or_insert_with(|| data_type.clone());
    }

    /// Casts each column of the plan to the type of the table's column that it is for, as an assignment does.
    fn assign(
        &self,
        plan: LogicalPlan,
        literal: &[bool],
        target: &Target,
        columns: &[usize],
    ) -> Result<LogicalPlan, PlanError> {
        let schema = Arc::clone(plan.schema());
        let mut exprs = Vec::with_capacity(columns.len());
        for (at, &i) in columns.iter().enumerate() {
            let (relation, given) = schema.qualified_field(at);
            let wanted = target.field(i);
            let (from, to) = (given.data_type(), wanted.data_type());
            if !assignable(from, to, literal.get(at).copied().unwrap_or(false)) {
                let message = format!(
                    "column \"{}\" is of type {} but expression is of type {}",
                    wanted.name(),
                    sql_name(to),
                    sql_name(from)
                );
                return Err(PlanError::TypeMismatch(
                    Refusal::new(message).hint("You will need to rewrite or cast the expression."),
                ));
            }
            let column = Expr::Column(Column::from((relation, given)));
            exprs.push(column.cast_to(to, &schema)?.alias(format!("{at} {}", wanted.name())));
        }
        Ok(LogicalPlanBuilder::from(plan).project(exprs)?.build()?)
    }

    fn finish(
        &self,
        plan: LogicalPlan,
        target: &Target,
        kind: DmlKind,
        on_conflict: Option<OnConflict>,
    ) -> Result<DmlPlan, PlanError> {
        // Once more for what the assignment added: a number is rounded on its way to an integer.
        let plan = prepare(plan, &self.scope)?;
        Ok(DmlPlan { table: target.object.oid, kind, plan: bind(plan, self.reads)?, on_conflict })
    }
}

fn refuse_returning(there: bool) -> Result<(), PlanError> {
    if there {
        return Err(PlanError::unsupported("RETURNING is not supported", "Select the rows after the change."));
    }
    Ok(())
}

/// ON CONFLICT as one of the rules that a table knows.
fn conflict(on: &OnInsert, target: &Target) -> Result<OnConflict, PlanError> {
    let OnInsert::OnConflict(on) = on else {
        return Err(PlanError::unsupported("ON DUPLICATE KEY UPDATE is not supported", "Use ON CONFLICT."));
    };
    let key = &target.table.primary_key;
    match &on.conflict_target {
        None => {}
        Some(ConflictTarget::Columns(columns)) => {
            let mut named = Vec::with_capacity(columns.len());
            for column in columns {
                named.push(target.column(&ObjectName::from(vec![column.clone()]))?);
            }
            named.sort_unstable();
            let mut wanted = key.clone();
            wanted.sort_unstable();
            if named != wanted || key.is_empty() {
                return Err(PlanError::Invalid(
                    Refusal::new("there is no unique or exclusion constraint matching the ON CONFLICT specification")
                        .hint("Name the columns of the primary key."),
                ));
            }
        }
        Some(ConflictTarget::OnConstraint(name)) => {
            return Err(PlanError::unsupported(
                format!("ON CONFLICT ON CONSTRAINT {name} is not supported"),
                "Name the columns of the primary key.",
            ));
        }
    }
    let update = match &on.action {
        OnConflictAction::DoNothing => return Ok(OnConflict::DoNothing),
        OnConflictAction::DoUpdate(update) => update,
    };
    let mut replaced = key.clone();
    let mut plain = update.selection.is_none() && !key.is_empty();
    for assignment in &update.assignments {
        match &assignment.target {
            AssignmentTarget::ColumnName(name) => {
                let i = target.column(name)?;
                plain &= is_excluded(&assignment.value, target.field(i).name());
                replaced.push(i);
            }
            AssignmentTarget::Tuple(_) => plain = false,
        }
    }
    replaced.sort_unstable();
    replaced.dedup();
    if plain && replaced.len() == target.width() {
        return Ok(OnConflict::Overwrite);
    }
    Err(PlanError::unsupported(
        "ON CONFLICT DO UPDATE is supported only if it replaces the whole row",
        "Set every column to EXCLUDED's, such as SET v = EXCLUDED.v, or use UPDATE.",
    ))
}

/// True of `EXCLUDED.column`.
fn is_excluded(expr: &ast::Expr, column: &str) -> bool {
    match expr {
        ast::Expr::CompoundIdentifier(parts) => match parts.as_slice() {
            [table, name] => fold(table) == "excluded" && fold(name) == column,
            _ => false,
        },
        _ => false,
    }
}

fn is_default(expr: &ast::Expr) -> bool {
    matches!(expr, ast::Expr::Identifier(ident) if ident.quote_style.is_none() && ident.value.eq_ignore_ascii_case("default"))
}

fn is_literal(expr: &Expr) -> bool {
    match expr {
        Expr::Literal(..) | Expr::Placeholder(_) => true,
        Expr::Alias(alias) => is_literal(&alias.expr),
        _ => false,
    }
}

/// Postgres' assignment casts. A literal text becomes anything, whatever its value then says.
fn assignable(from: &DataType, to: &DataType, literal: bool) -> bool {
    let is_text = |t: &DataType| matches!(t, DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8);
    let is_time = |t: &DataType| matches!(t, DataType::Date32 | DataType::Timestamp(..));
    let is_bytes = |t: &DataType| matches!(t, DataType::Binary | DataType::BinaryView | DataType::LargeBinary);
    let is_span = |t: &DataType| matches!(t, DataType::Interval(_) | DataType::Duration(_));
    from == to
        || from.is_null()
        || (is_text(from) && (is_text(to) || literal))
        || (is_text(to) && !is_bytes(from))
        || (from.is_numeric() && to.is_numeric())
        || (is_time(from) && is_time(to))
        || (is_bytes(from) && is_bytes(to))
        || (is_span(from) && is_span(to))
        || matches!((from, to), (DataType::Timestamp(..) | DataType::Time64(_), DataType::Time64(_)))
}
