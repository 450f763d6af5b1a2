//! DataFusion's session, set up for Postgres' SQL and our types.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, LazyLock};

use async_trait::async_trait;
use chrono_tz::Tz;
use datafusion::catalog::Session;
use datafusion::common::config::{ConfigEntry, ConfigExtension, ConfigOptions, Dialect, ExtensionOptions};
use datafusion::common::{Result, exec_err};
use datafusion::execution::SessionStateDefaults;
use datafusion::execution::context::{QueryPlanner, SessionContext};
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::execution::{FunctionRegistry, disk_manager::DiskManagerBuilder, disk_manager::DiskManagerMode};
use datafusion::logical_expr::planner::ExprPlanner;
use datafusion::logical_expr::{LogicalPlan, ScalarUDF};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_planner::{DefaultPhysicalPlanner, PhysicalPlanner};
use datafusion::prelude::SessionConfig;

use super::assign_windows::WindowsPlanner;
use super::bounded::Bounded;
use super::functions::{Clock, EventTime};
use super::interval_arithmetic::IntervalPlanner;
use super::postgres_functions::MEANT_OTHERWISE;
use super::single_distinct::optimizer_rules;
use super::types::{SqlTypes, UTC};
use super::window_relation::WindowRelations;
use super::{Reads, postgres_functions, postgres_rules};
use crate::catalog::pg_aggregates;

/// What queries share: one bound on the memory of all that run at once, and DataFusion's functions.
pub struct Runtime {
    base: SessionState,
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime").field("memory_pool", &self.base.runtime_env().memory_pool).finish()
    }
}

impl Runtime {
    /// Queries together hold at most `memory_bytes` of sorts, groups and joins; what is more is an error (53200), nothing
    /// is spilled to disk.
    pub fn new(memory_bytes: usize) -> Result<Arc<Runtime>> {
        let environment = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(FairSpillPool::new(memory_bytes)))
            .with_disk_manager_builder(DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled))
            .build_arc()?;
        Ok(Arc::new(Runtime { base: base(environment) }))
    }
}

/// The connection's TimeZone, for the rules that plans go through. UTC where there is no connection: in definitions.
#[derive(Debug, Clone, Copy)]
pub(super) struct SessionZone(Tz);

impl SessionZone {
    pub fn of(options: &ConfigOptions) -> Tz {
        options.extensions.get::<SessionZone>().map_or(Tz::UTC, |zone| zone.0)
    }
}

impl ConfigExtension for SessionZone {
    const PREFIX: &'static str = "session_zone";
}

impl ExtensionOptions for SessionZone {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }

    fn cloned(&self) -> Box<dyn ExtensionOptions> {
        Box::new(*self)
    }

    fn set(&mut self, key: &str, _: &str) -> Result<()> {
        exec_err!("session_zone has no option {key}")
    }

    fn entries(&self) -> Vec<ConfigEntry> {
        Vec::new()
    }
}

/// Plans what is not executed: definitions of objects.
static PLANNING: LazyLock<SessionState> = LazyLock::new(|| base(Arc::new(RuntimeEnv::default())));

/// A session for planning a definition. Its event times and clock cannot be folded.
pub(super) fn planning_state(functions: Vec<ScalarUDF>) -> Result<SessionState> {
    with_functions(&PLANNING, functions)
}

/// A session in which plans made for `reads` are optimised and executed.
pub fn session(reads: &Reads) -> Result<SessionContext> {
    Ok(SessionContext::new_with_state(session_state(reads)?))
}

pub(super) fn session_state(reads: &Reads) -> Result<SessionState> {
    let mut functions = reads.functions.clone();
    functions.extend(EventTime::functions(&reads.catalog, &reads.names, reads.event_times.as_ref()));
    functions.extend(Clock::functions(Some((reads.now_us, reads.zone))));
    let mut state = with_functions(&reads.runtime.base, functions)?;
    if reads.zone != Tz::UTC {
        state.config_mut().options_mut().extensions.insert(SessionZone(reads.zone));
    }
    Ok(state)
}

fn with_functions(base: &SessionState, functions: Vec<ScalarUDF>) -> Result<SessionState> {
    let mut state = base.clone();
    for function in functions {
        state.register_udf(Arc::new(function))?;
    }
    Ok(state)
}

fn base(environment: Arc<RuntimeEnv>) -> SessionState {
    let mut config = SessionConfig::new()
        .with_create_default_catalog_and_schema(false)
        .with_information_schema(false)
        .with_collect_statistics(false);
    let options = config.options_mut();
    options.execution.time_zone = Some(UTC.into());
    // `x IS NOT TRUE` is never NULL by the logical plan, and may be by the physical one: no reason to refuse a query.
    options.execution.skip_physical_aggregate_schema_check = true;
    options.sql_parser.dialect = Dialect::PostgreSQL;
    options.sql_parser.enable_ident_normalization = true;
    options.sql_parser.map_string_types_to_utf8view = false;
    options.sql_parser.collect_spans = true;
    options.sql_parser.parse_float_as_decimal = true;
    let mut state = SessionStateBuilder::new()
        .with_config(config)
        .with_runtime_env(environment)
        .with_default_features()
        .with_expr_planners(expr_planners())
        .with_relation_planners(vec![Arc::new(WindowRelations)])
        .with_type_planner(Arc::new(SqlTypes))
        .with_analyzer_rules(postgres_rules::analyzer().rules)
        .with_optimizer_rules(optimizer_rules())
        .with_query_planner(Arc::new(WindowsQueryPlanner))
        .build();
    // Ours, registered per session, stand in their place; none of these may be found where no clock is.
    let clocks = ["now", "current_timestamp", "current_date", "today", "current_time"];
    for name in clocks.into_iter().chain(MEANT_OTHERWISE) {
        let removed = state.deregister_udf(name);
        debug_assert!(removed.is_ok());
    }
    let bounded = Bounded::functions(|name| state.scalar_functions().get(name).cloned());
    for function in postgres_functions::functions().into_iter().chain(bounded) {
        let replaced = state.register_udf(Arc::new(function));
        debug_assert!(replaced.is_ok());
    }
    for function in pg_aggregates() {
        let replaced = state.register_udaf(Arc::new(function));
        debug_assert!(replaced.is_ok());
    }
    state
}

/// Ours come first.
fn expr_planners() -> Vec<Arc<dyn ExprPlanner>> {
    let ours = [Arc::new(IntervalPlanner) as Arc<dyn ExprPlanner>];
    ours.into_iter().chain(SessionStateDefaults::default_expr_planners()).collect()
}

/// DataFusion's physical planner, which also knows [`super::assign_windows::AssignWindows`].
#[derive(Debug)]
struct WindowsQueryPlanner;

#[async_trait]
impl QueryPlanner for WindowsQueryPlanner {
    async fn create_physical_plan(&self, plan: &LogicalPlan, session: &dyn Session) -> Result<Arc<dyn ExecutionPlan>> {
        DefaultPhysicalPlanner::with_extension_planners(vec![Arc::new(WindowsPlanner)])
            .create_physical_plan(plan, session)
            .await
    }
}
