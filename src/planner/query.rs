//! One-shot queries: an AST and what may be read → DataFusion's logical plan.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field};
use chrono_tz::Tz;
use datafusion::catalog::TableProvider;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, DataFusionError};
use datafusion::datasource::provider_as_source;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder, ScalarUDF};
use sqlparser::ast;

use super::error::{PlanError, Refusal};
use super::functions::fold_constants_of_the_read;
use super::names::{name_columns, tell_apart};
use super::scope::{ObjectSource, Scope};
use super::session::{Runtime, session_state};
use super::types::output_type;
use crate::catalog::{Catalog, NameContext, Oid, SystemTables};

/// The most columns of a result, as in Postgres.
const MOST_COLUMNS: usize = 1664;

/// Constants of the read's tick. `None` is NULL, before the first row; an error is a refusal with its text, such as for an
/// object without a watermark.
pub trait EventTimes: Send + Sync + Debug {
    /// `watermark('x')`.
    fn watermark_us(&self, oid: Oid) -> Result<Option<i64>, PlanError>;
    /// `closed_window_end('v')`.
    fn closed_window_end_us(&self, oid: Oid) -> Result<Option<i64>, PlanError>;
    /// `final_window_end('v')`.
    fn final_window_end_us(&self, oid: Oid) -> Result<Option<i64>, PlanError>;
    /// `live_window_end('v')`.
    fn live_window_end_us(&self, oid: Oid) -> Result<Option<i64>, PlanError>;
}

/// All that a statement may read, as of one tick.
#[derive(Clone)]
pub struct Reads {
    pub catalog: Arc<Catalog>,
    pub names: NameContext,
    /// The rows of the objects that [`super::objects_in`] found. A plan over others can be described, not executed.
    pub tables: HashMap<Oid, Arc<dyn TableProvider>>,
    pub event_times: Option<Arc<dyn EventTimes>>,
    pub system: Arc<dyn SystemTables>,
    /// Postgres' functions that tools call, as the session sees them.
    pub functions: Vec<ScalarUDF>,
    /// `now()`: the start of the transaction, in microseconds since the epoch.
    pub now_us: i64,
    /// Where times without a zone are local.
    pub zone: Tz,
    pub runtime: Arc<Runtime>,
}

impl Reads {
    pub(super) fn scope(&self) -> Result<Scope, PlanError> {
        Ok(Scope {
            catalog: Arc::clone(&self.catalog),
            names: self.names.clone(),
            system: Some(Arc::clone(&self.system)),
            state: session_state(self)?,
            nested_views: 0,
        })
    }
}

/// The analyzed plan of a query. Its columns have types that SQL can name (or lists of them) and names that
/// [`super::result_names`] turns into those that the client sees. `parameter_types` are those that the client declared, by
/// number from 1; the others are inferred, and text where nothing tells: see [`parameter_types`].
pub async fn plan_query(
    query: &ast::Query,
    reads: &Reads,
    parameter_types: &[Option<DataType>],
) -> Result<LogicalPlan, PlanError> {
    let scope = reads.scope()?;
    let mut query = query.clone();
    name_columns(&mut query);
    let plan = match scope.plan(query.clone(), parameter_types) {
        Err(PlanError::DuplicateColumn(_) | PlanError::AmbiguousColumn(_)) if tell_apart(&mut query) => {
            scope.plan(query, parameter_types)?
        }
        planned => planned?,
    };
    let plan = prepare(plan, &scope)?;
    if plan.schema().fields().len() > MOST_COLUMNS {
        let message = format!("target lists can have at most {MOST_COLUMNS} entries");
        return Err(PlanError::TooManyColumns(Refusal::new(message)));
    }
    bind(with_output_types(plan)?, reads)
}

/// From a plan as it stands to one of which every type is known and every constant of the read is a literal.
pub(super) fn prepare(plan: LogicalPlan, scope: &Scope) -> Result<LogicalPlan, PlanError> {
    let plan = settle_parameters(plan)?;
    let plan = fold_constants_of_the_read(plan)?;
    scope.analyze(plan)
}

/// Puts the rows of the read in the place of the objects that a plan names. Objects without rows stay as they are.
pub fn bind(plan: LogicalPlan, reads: &Reads) -> Result<LogicalPlan, PlanError> {
    let bound = plan.transform_up_with_subqueries(|plan| {
        let LogicalPlan::TableScan(mut scan) = plan else { return Ok(Transformed::no(plan)) };
        let rows = scan.source.downcast_ref::<ObjectSource>().and_then(|source| reads.tables.get(&source.object.oid));
        Ok(match rows {
            Some(rows) => {
                scan.source = provider_as_source(Arc::clone(rows));
                Transformed::yes(LogicalPlan::TableScan(scan))
            }
            None => Transformed::no(LogicalPlan::TableScan(scan)),
        })
    })?;
    Ok(bound.data)
}

/// The types of a plan's parameters, by number from 1.
pub fn parameter_types(plan: &LogicalPlan, count: usize) -> Result<Vec<DataType>, PlanError> {
    let found = plan.get_parameter_types()?;
    if let Some(unknown) = found.keys().find(|id| parameter_number(id).is_none_or(|n| n > count)) {
        return Err(PlanError::UndefinedParameter(Refusal::new(format!("there is no parameter {unknown}"))));
    }
    let of = |n: usize| found.get(&format!("${n}")).cloned().flatten().unwrap_or(DataType::Utf8);
    Ok((1..=count).map(of).collect())
}

fn parameter_number(id: &str) -> Option<usize> {
    id.strip_prefix('$')?.parse().ok()
}

/// In `x = ANY($1)` the parameter is an array of what x is.
fn settle_arrays(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>, DataFusionError> {
    expr.transform_up(|expr| match expr {
        Expr::ScalarFunction(mut call) if call.func.name() == "array_has" && call.args.len() == 2 => {
            let element = call.args[1].get_type(schema)?;
            let Expr::Placeholder(parameter) = &mut call.args[0] else {
                return Ok(Transformed::no(Expr::ScalarFunction(call)));
            };
            if parameter.field.is_some() || element.is_null() {
                return Ok(Transformed::no(Expr::ScalarFunction(call)));
            }
            let array = DataType::List(Arc::new(Field::new_list_field(element, true)));
            parameter.field = Some(Arc::new(Field::new("", array, true)));
            Ok(Transformed::yes(Expr::ScalarFunction(call)))
        }
        other => Ok(Transformed::no(other)),
    })
}

/// Parameters of which nothing tells the type are text; behind LIMIT and OFFSET they are BIGINT.
fn settle_parameters(plan: LogicalPlan) -> Result<LogicalPlan, PlanError> {
    let settled = plan.transform_up_with_subqueries(|plan| {
        let data_type = if matches!(plan, LogicalPlan::Limit(_)) { DataType::Int64 } else { DataType::Utf8 };
        let saver = NamePreserver::new(&plan);
        let schema = merge_schema(&plan.inputs());
        let plan = plan.map_expressions(|expr| {
            let name = saver.save(&expr);
            let expr = settle_arrays(expr, &schema)?.data.transform_up(|expr| match expr {
                Expr::Placeholder(mut parameter) if parameter.field.is_none() => {
                    parameter.field = Some(Arc::new(Field::new("", data_type.clone(), true)));
                    Ok(Transformed::yes(Expr::Placeholder(parameter)))
                }
                other => Ok(Transformed::no(other)),
            })?;
            Ok(expr.update_data(|expr| name.restore(expr)))
        })?;
        if plan.transformed { plan.map_data(LogicalPlan::recompute_schema) } else { Ok(plan) }
    })?;
    Ok(settled.data)
}

/// Casts the columns that have a type SQL cannot name, such as an unsigned integer, to the nearest that it can.
pub(super) fn with_output_types(plan: LogicalPlan) -> Result<LogicalPlan, PlanError> {
    let schema = Arc::clone(plan.schema());
    let mut changed = false;
    let mut exprs = Vec::with_capacity(schema.fields().len());
    for (relation, field) in schema.iter() {
        let column = Expr::from((relation, field));
        exprs.push(match output_type(field.data_type()) {
            Some(target) if target != *field.data_type() => {
                changed = true;
                column.cast_to(&target, &schema)?.alias_qualified(relation.cloned(), field.name())
            }
            _ => column,
        });
    }
    if !changed {
        return Ok(plan);
    }
    Ok(LogicalPlanBuilder::from(plan).project(exprs)?.build()?)
}
