//! What names mean while a query is planned: our catalog's rules instead of DataFusion's.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, SchemaRef};
use datafusion::catalog::TableFunctionArgs;
use datafusion::common::config::ConfigOptions;
use datafusion::common::{Result, TableReference};
use datafusion::datasource::cte_worktable::CteWorkTable;
use datafusion::datasource::provider_as_source;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::planner::{ContextProvider, ExprPlanner, RelationPlanner, TypePlanner};
use datafusion::logical_expr::{
    AggregateUDF, Expr, HigherOrderUDF, LogicalPlan, LogicalPlanBuilder, ScalarUDF, TableSource, WindowUDF,
};
use datafusion::sql::planner::{PlannerContext, SqlToRel};
use sqlparser::ast;

use super::error::{PlanError, Refusal};
use super::names::name_columns;
use super::postgres_functions::rewrite_operators;
use super::relations::{definition_names, parse_query};
use super::types::SqlTypes;
use crate::catalog::{Catalog, CatalogError, NameContext, Object, ObjectKind, SystemTables, compat, is_system_schema};
use crate::sql::Name;

/// Views upon views upon views: more than this is a mistake, and would exhaust the stack.
const MOST_NESTED_VIEWS: usize = 32;

/// A source, table or materialized view as a relation of a plan. It can be planned; to be executed, its rows are put in its
/// place by [`super::bind`].
#[derive(Debug)]
pub struct ObjectSource {
    pub object: Arc<Object>,
}

impl TableSource for ObjectSource {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.object.columns)
    }
}

/// A plain view, planned anew.
struct ViewSource {
    schema: SchemaRef,
    plan: LogicalPlan,
}

impl TableSource for ViewSource {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn get_logical_plan(&self) -> Option<Cow<'_, LogicalPlan>> {
        Some(Cow::Borrowed(&self.plan))
    }
}

/// The names and functions that one statement sees.
pub(super) struct Scope {
    pub catalog: Arc<Catalog>,
    pub names: NameContext,
    /// Absent where only our own objects may be named: in definitions.
    pub system: Option<Arc<dyn SystemTables>>,
    pub state: SessionState,
    pub nested_views: usize,
}

impl Scope {
    /// The plan of a query as it stands: not analyzed, types of literals and parameters not settled.
    pub fn plan(&self, query: ast::Query, parameters: &[Option<DataType>]) -> Result<LogicalPlan, PlanError> {
        let mut context = PlannerContext::new().with_prepare_param_data_types(parameter_fields(parameters));
        self.plan_in(query, &mut context)
    }

    /// [`Scope::plan`] with more to know, such as the columns that a VALUES list is for.
    pub fn plan_in(&self, query: ast::Query, context: &mut PlannerContext) -> Result<LogicalPlan, PlanError> {
        let mut statement = ast::Statement::Query(Box::new(query));
        compat::rewrite(&mut statement);
        rewrite_operators(&mut statement)?;
        Ok(SqlToRel::new(self).sql_statement_to_plan_with_context(statement, context)?)
    }

    /// Analyzed: every type settled, arithmetic and aggregates as in Postgres.
    pub fn analyze(&self, plan: LogicalPlan) -> Result<LogicalPlan, PlanError> {
        Ok(self.state.analyzer().execute_and_check(plan, self.state.config_options(), |_, _| {})?)
    }

    fn source(&self, name: &Name) -> Result<Arc<dyn TableSource>, PlanError> {
        for (schema, relation) in self.catalog.candidates(name, &self.names)? {
            if is_system_schema(&schema) {
                if let Some(table) = self.system.as_ref().and_then(|system| system.table(&schema, &relation)) {
                    return Ok(provider_as_source(table));
                }
                if self.system.is_none() && name.0.len() > 1 {
                    return Err(PlanError::unsupported(
                        format!("a definition cannot read {schema}.{relation}"),
                        "Tables of the system can be read by a SELECT, not by a view.",
                    ));
                }
                continue;
            }
            match self.catalog.resolve(&Name(vec![schema, relation]), &self.names) {
                Ok(object) => return self.object(object),
                Err(CatalogError::NoRelation { .. }) => {}
                Err(other) => return Err(other.into()),
            }
        }
        let written = name.0.join(".");
        Err(CatalogError::NoRelation { kind: "relation", name: written }.into())
    }

    fn object(&self, object: Arc<Object>) -> Result<Arc<dyn TableSource>, PlanError> {
        let ObjectKind::View { query } = &object.kind else { return Ok(Arc::new(ObjectSource { object })) };
        if self.nested_views >= MOST_NESTED_VIEWS {
            return Err(PlanError::Invalid(
                Refusal::new(format!("more than {MOST_NESTED_VIEWS} views stand upon each other"))
                    .hint("Make one of them a materialized view."),
            ));
        }
        let inner = Scope {
            catalog: Arc::clone(&self.catalog),
            names: definition_names(&object.database),
            system: self.system.clone(),
            state: self.state.clone(),
            nested_views: self.nested_views + 1,
        };
        let mut query = parse_query(query)?;
        name_columns(&mut query);
        let plan = inner.plan(query, &[])?;
        let names = object.columns.fields().iter().map(|field| field.name());
        let renamed: Vec<Expr> =
            plan.schema().columns().into_iter().zip(names).map(|(c, name)| Expr::Column(c).alias(name)).collect();
        let plan = LogicalPlanBuilder::from(plan).project(renamed)?.build()?;
        Ok(Arc::new(ViewSource { schema: Arc::clone(&object.columns), plan }))
    }
}

/// Parameter types as DataFusion wants them.
pub(super) fn parameter_fields(types: &[Option<DataType>]) -> Vec<Option<FieldRef>> {
    types.iter().map(|t| t.as_ref().map(|t| Arc::new(Field::new("", t.clone(), true)))).collect()
}

fn name_of(reference: &TableReference) -> Name {
    let parts = [reference.catalog(), reference.schema(), Some(reference.table())];
    Name(parts.into_iter().flatten().map(str::to_string).collect())
}

/// A function's name without the schema in which Postgres keeps its own.
fn unqualified(function: &str) -> &str {
    function.strip_prefix("pg_catalog.").unwrap_or(function)
}

impl ContextProvider for Scope {
    fn get_table_source(&self, name: TableReference) -> Result<Arc<dyn TableSource>> {
        Ok(self.source(&name_of(&name))?)
    }

    fn get_table_function_source(&self, name: &str, args: Vec<Expr>) -> Result<Arc<dyn TableSource>> {
        match self.state.table_functions().get(&name.to_ascii_lowercase()) {
            Some(function) => {
                let args = TableFunctionArgs::new(&args, &self.state);
                Ok(provider_as_source(function.create_table_provider_with_args(args)?))
            }
            None => {
                let refusal = Refusal::new(format!("function {name} does not exist, or does not return a table"));
                Err(PlanError::UndefinedFunction(refusal).into())
            }
        }
    }

    fn create_cte_work_table(&self, name: &str, schema: SchemaRef) -> Result<Arc<dyn TableSource>> {
        Ok(provider_as_source(Arc::new(CteWorkTable::new(name, schema))))
    }

    fn get_expr_planners(&self) -> &[Arc<dyn ExprPlanner>] {
        self.state.expr_planners()
    }

    fn get_relation_planners(&self) -> &[Arc<dyn RelationPlanner>] {
        self.state.relation_planners()
    }

    fn get_type_planner(&self) -> Option<Arc<dyn TypePlanner>> {
        Some(Arc::new(SqlTypes))
    }

    fn get_function_meta(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        self.state.scalar_functions().get(unqualified(name)).cloned()
    }

    fn get_higher_order_meta(&self, name: &str) -> Option<Arc<HigherOrderUDF>> {
        self.state.higher_order_functions().get(unqualified(name)).cloned()
    }

    fn get_aggregate_meta(&self, name: &str) -> Option<Arc<AggregateUDF>> {
        self.state.aggregate_functions().get(unqualified(name)).cloned()
    }

    fn get_window_meta(&self, name: &str) -> Option<Arc<WindowUDF>> {
        self.state.window_functions().get(unqualified(name)).cloned()
    }

    fn get_variable_type(&self, _: &[String]) -> Option<DataType> {
        None
    }

    fn options(&self) -> &ConfigOptions {
        self.state.config_options()
    }

    fn udf_names(&self) -> Vec<String> {
        self.state.scalar_functions().keys().cloned().collect()
    }

    fn higher_order_function_names(&self) -> Vec<String> {
        self.state.higher_order_functions().keys().cloned().collect()
    }

    fn udaf_names(&self) -> Vec<String> {
        self.state.aggregate_functions().keys().cloned().collect()
    }

    fn udwf_names(&self) -> Vec<String> {
        self.state.window_functions().keys().cloned().collect()
    }
}
