//! Scalar functions that the planner owns: constants of a read (event times and the clock), which are folded to literals so
//! that they can be pushed into scans.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, TimeUnit};
use chrono_tz::Tz;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Result, ScalarValue, exec_err};
use datafusion::logical_expr::{
    ColumnarValue, Expr, LogicalPlan, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility,
};

use super::error::{PlanError, Refusal};
use super::moment::utc_to_local;
use super::relations::parse_name;
use super::types::{UTC, timestamp, timestamptz};
use super::{EventTimes, event_time_type};
use crate::catalog::{Catalog, NameContext, Object, ObjectKind};

/// Which event time of an object is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventTimeKind {
    Watermark,
    ClosedWindowEnd,
    FinalWindowEnd,
    LiveWindowEnd,
}

impl EventTimeKind {
    const ALL: [EventTimeKind; 4] = [
        EventTimeKind::Watermark,
        EventTimeKind::ClosedWindowEnd,
        EventTimeKind::FinalWindowEnd,
        EventTimeKind::LiveWindowEnd,
    ];

    pub fn name(self) -> &'static str {
        match self {
            EventTimeKind::Watermark => "watermark",
            EventTimeKind::ClosedWindowEnd => "closed_window_end",
            EventTimeKind::FinalWindowEnd => "final_window_end",
            EventTimeKind::LiveWindowEnd => "live_window_end",
        }
    }

    pub fn of_name(name: &str) -> Option<EventTimeKind> {
        EventTimeKind::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// `watermark('x')` and its kin: the argument is the name of a source or a view as constant text, resolved along the
/// search path. TIMESTAMPTZ or TIMESTAMP, as the object's event time is. NULL before the first row.
#[derive(Debug)]
pub struct EventTime {
    kind: EventTimeKind,
    catalog: Arc<Catalog>,
    names: NameContext,
    times: Option<Arc<dyn EventTimes>>,
    signature: Signature,
}

impl EventTime {
    /// One function for each kind. Without `times` they can be planned but not folded.
    pub fn functions(
        catalog: &Arc<Catalog>,
        names: &NameContext,
        times: Option<&Arc<dyn EventTimes>>,
    ) -> Vec<ScalarUDF> {
        let function = |kind| EventTime {
            kind,
            catalog: Arc::clone(catalog),
            names: names.clone(),
            times: times.cloned(),
            signature: Signature::uniform(1, vec![DataType::Utf8], Volatility::Stable),
        };
        EventTimeKind::ALL.into_iter().map(function).map(ScalarUDF::from).collect()
    }

    fn object(&self, argument: Option<&ScalarValue>) -> std::result::Result<Arc<Object>, PlanError> {
        let Some(ScalarValue::Utf8(Some(text)) | ScalarValue::Utf8View(Some(text))) = argument else {
            let message = format!("{}() takes the name of a source or a view as constant text", self.kind.name());
            return Err(PlanError::Invalid(Refusal::new(message).hint(format!("Write {}('name').", self.kind.name()))));
        };
        named_object(&self.catalog, &self.names, text)
    }

    fn value(
        &self,
        times: &dyn EventTimes,
        argument: Option<&ScalarValue>,
    ) -> std::result::Result<ScalarValue, PlanError> {
        let object = self.object(argument)?;
        let micros = match self.kind {
            EventTimeKind::Watermark => times.watermark_us(object.oid),
            EventTimeKind::ClosedWindowEnd => times.closed_window_end_us(object.oid),
            EventTimeKind::FinalWindowEnd => times.final_window_end_us(object.oid),
            EventTimeKind::LiveWindowEnd => times.live_window_end_us(object.oid),
        }?;
        Ok(match event_time_type(&object, &self.catalog) {
            DataType::Timestamp(_, zone) => ScalarValue::TimestampMicrosecond(micros, zone),
            _ => ScalarValue::TimestampMicrosecond(micros, None),
        })
    }
}

/// The source, table or materialized view that a text names; a plain view stands for the one object that it reads.
pub fn named_object(catalog: &Catalog, names: &NameContext, text: &str) -> std::result::Result<Arc<Object>, PlanError> {
    let mut object = catalog.resolve(&parse_name(text)?, names)?;
    while let ObjectKind::View { .. } = object.kind {
        let [only] = object.depends_on.as_slice() else {
            let message = format!("the view \"{}\" reads more than one object", object.name);
            return Err(PlanError::WrongObject(
                Refusal::new(message).hint("Name the source or the materialized view that is meant."),
            ));
        };
        object = catalog
            .get(*only)
            .ok_or_else(|| PlanError::invalid(format!("the view \"{}\" reads an object that is gone", object.name)))?;
    }
    Ok(object)
}

impl PartialEq for EventTime {
    fn eq(&self, other: &Self) -> bool {
        self.kind == other.kind && self.names == other.names && self.catalog.version() == other.catalog.version()
    }
}

impl Eq for EventTime {}

impl Hash for EventTime {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.kind.hash(state);
    }
}

impl ScalarUDFImpl for EventTime {
    fn name(&self) -> &str {
        self.kind.name()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(timestamptz())
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let object = self.object(args.scalar_arguments.first().copied().flatten())?;
        Ok(Arc::new(Field::new(self.name(), event_time_type(&object, &self.catalog), true)))
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        exec_err!("{}() is folded before execution", self.name())
    }
}

/// `now()` and the other readings of the statement's clock.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Clock {
    name: &'static str,
    returns: DataType,
    /// Microseconds since the epoch, and the zone of local clocks; `None` where there is no clock.
    now: Option<(i64, Tz)>,
    signature: Signature,
}

impl Clock {
    pub fn functions(now: Option<(i64, Tz)>) -> Vec<ScalarUDF> {
        let time = DataType::Time64(TimeUnit::Microsecond);
        [
            ("now", timestamptz()),
            ("current_timestamp", timestamptz()),
            ("transaction_timestamp", timestamptz()),
            ("statement_timestamp", timestamptz()),
            ("clock_timestamp", timestamptz()),
            ("localtimestamp", timestamp()),
            ("current_date", DataType::Date32),
            ("today", DataType::Date32),
            ("current_time", time.clone()),
            ("localtime", time),
        ]
        .into_iter()
        .map(|(name, returns)| Clock { name, returns, now, signature: Signature::nullary(Volatility::Stable) })
        .map(ScalarUDF::from)
        .collect()
    }

    fn value(&self) -> std::result::Result<ScalarValue, PlanError> {
        const DAY_US: i64 = 86_400_000_000;
        let Some((now, zone)) = self.now else {
            return Err(PlanError::NotReady(Refusal::new(format!("{}() cannot be evaluated here", self.name))));
        };
        let local = utc_to_local(now, &zone);
        Ok(match &self.returns {
            DataType::Timestamp(_, Some(_)) => ScalarValue::TimestampMicrosecond(Some(now), Some(UTC.into())),
            DataType::Timestamp(_, None) => ScalarValue::TimestampMicrosecond(local, None),
            DataType::Date32 => ScalarValue::Date32(local.and_then(|us| i32::try_from(us.div_euclid(DAY_US)).ok())),
            _ => ScalarValue::Time64Microsecond(local.map(|us| us.rem_euclid(DAY_US))),
        })
    }
}

impl ScalarUDFImpl for Clock {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(self.returns.clone())
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        exec_err!("{}() is folded before execution", self.name)
    }
}

/// The name of the function if it is a constant of a read.
pub fn constant_of_a_read(function: &ScalarUDF) -> Option<&str> {
    let inner = function.inner();
    (inner.is::<EventTime>() || inner.is::<Clock>()).then(|| function.name())
}

/// Puts literals in place of event times and the clock, in subqueries too.
pub fn fold_constants_of_the_read(plan: LogicalPlan) -> Result<LogicalPlan> {
    let folded = plan.transform_up_with_subqueries(|plan| {
        let saver = datafusion::logical_expr::expr_rewriter::NamePreserver::new(&plan);
        plan.map_expressions(|expr| {
            let name = saver.save(&expr);
            Ok(expr.transform_up(fold)?.update_data(|expr| name.restore(expr)))
        })
    })?;
    Ok(folded.data)
}

fn fold(expr: Expr) -> Result<Transformed<Expr>> {
    let Expr::ScalarFunction(call) = &expr else { return Ok(Transformed::no(expr)) };
    let inner = call.func.inner();
    let value = if let Some(event_time) = inner.downcast_ref::<EventTime>() {
        // A plan made to learn the columns of a statement stays as it is; it does not run.
        let Some(times) = &event_time.times else { return Ok(Transformed::no(expr)) };
        let argument = match call.args.first() {
            Some(Expr::Literal(value, _)) => Some(value),
            _ => None,
        };
        event_time.value(times.as_ref(), argument)?
    } else if let Some(clock) = inner.downcast_ref::<Clock>() {
        clock.value()?
    } else {
        return Ok(Transformed::no(expr));
    };
    Ok(Transformed::yes(Expr::Literal(value, None)))
}
