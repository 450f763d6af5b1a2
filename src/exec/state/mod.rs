//! Aggregate states: what one aggregate call keeps for each of many groups.
//!
//! | call | state per group | Arrow form | subtract |
//! |---|---|---|---|
//! | `count` | rows | Int64 | yes |
//! | `sum`, `avg` of whole numbers and decimals | exact sum, count | Struct {sum, count, carry} | yes |
//! | `sum`, `avg` of floats | exact sum, count | Struct {fixed, count, wide} | yes |
//! | `min`, `max` | the value | the value or NULL | no |
//! | `approx_distinct` | HyperLogLog | Binary | no |
//! | any other | DataFusion's partial state | Struct {s0, ...} or NULL | no |
//! | with DISTINCT; and, over input that retracts, all that cannot subtract | values by weight | List of Struct {v0, ..., weight} | yes |
//!
//! Details stand with each type.
//!
//! A state stays correct whatever the order in which rows and states arrive; inside a tick a row may be taken back before it
//! comes.

mod by_value;
mod count;
mod datafusion;
mod float;
mod hll;
mod minmax;
mod multiset;
mod rows;
mod sketch;
mod sum;
#[cfg(test)]
mod tests;
mod wide_float;

use std::sync::Arc;

use ::datafusion::physical_expr::PhysicalExpr;
use ::datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use arrow::array::{ArrayRef, AsArray, BooleanArray};
use arrow::datatypes::{
    DataType, Decimal128Type, Field, FieldRef, Fields, Float32Type, Float64Type, Int64Type, Schema,
};

use super::ExecError;
use crate::planner::stream_plan::{Call, Function};

/// How one aggregate call is kept.
#[derive(Debug, Clone)]
pub struct Measure {
    kind: Kind,
    args: Vec<Arc<dyn PhysicalExpr>>,
    filter: Option<Arc<dyn PhysicalExpr>>,
    output: FieldRef,
    state_type: DataType,
    key: String,
}

#[derive(Debug, Clone)]
enum Kind {
    Count,
    SumInt,
    SumDecimal { scale: i8 },
    SumFloat,
    AvgDecimal { scale: i8 },
    AvgFloat,
    Extreme { max: bool },
    Sketch,
    DataFusion { expr: Arc<AggregateFunctionExpr>, fields: Fields },
    ByValue { columns: Vec<DataType>, of: Box<Kind>, distinct: bool },
}

/// The states of one call for many groups, by slot: a dense number that the caller gives to each group.
pub trait States: Send + Sync {
    /// Grows to `slots` states, new ones empty.
    fn resize(&mut self, slots: usize);

    fn len(&self) -> usize;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds raw rows: row i goes to `slots[i]` with `weights[i]`, or +1 each. Rows where `filter` is not true are left out.
    /// `args` are the values of [`Measure::args`].
    fn update(
        &mut self,
        slots: &[u32],
        args: &[ArrayRef],
        filter: Option<&BooleanArray>,
        weights: Option<&[i64]>,
    ) -> Result<(), ExecError>;

    /// Adds states in Arrow form: row i into `slots[i]`.
    fn merge(&mut self, slots: &[u32], states: &ArrayRef) -> Result<(), ExecError>;

    /// Takes states in Arrow form away, only if [`Measure::invertible`].
    fn subtract(&mut self, slots: &[u32], states: &ArrayRef) -> Result<(), ExecError>;

    /// The states of these slots, or of all in their order, in Arrow form: [`Measure::state_type`].
    fn form(&self, slots: Option<&[u32]>) -> Result<ArrayRef, ExecError>;

    /// All states in Arrow form.
    fn states(&self) -> Result<ArrayRef, ExecError> {
        self.form(None)
    }

    /// The states of these slots in Arrow form.
    fn take(&self, slots: &[u32]) -> Result<ArrayRef, ExecError> {
        self.form(Some(slots))
    }

    /// The value SQL shows by slot, of the type of [`Measure::output`]. A value that does not fit it is NULL.
    fn finish(&self) -> Result<ArrayRef, ExecError>;

    /// How many slots hold a value that does not fit the output type.
    fn overflowed(&self) -> usize {
        0
    }

    /// Memory, roughly.
    fn bytes(&self) -> usize;
}

impl Measure {
    /// `input`: what the call's expressions read; `retracts`: whether rows of it can be taken back.
    pub fn new(call: &Call, input: &Schema, retracts: bool) -> Result<Measure, ExecError> {
        let mut args = call.args.clone();
        if let Function::DataFusion(expr) = &call.function {
            args.extend(expr.order_bys().iter().map(|o| Arc::clone(&o.expr)));
        }
        let types = args.iter().map(|a| a.data_type(input)).collect::<Result<Vec<_>, _>>()?;
        let plain = Kind::of(call, &types)?;
        let kind = if plain.wants_values(call.distinct, retracts) {
            let columns = if matches!(plain, Kind::Sketch) { vec![DataType::UInt64] } else { types.clone() };
            if !by_value::supports(&columns) {
                return Err(refusal(call, &types));
            }
            Kind::ByValue { columns, of: Box::new(plain), distinct: call.distinct }
        } else {
            plain
        };
        Ok(Measure {
            state_type: kind.state_type(call),
            kind,
            args,
            filter: call.filter.clone(),
            output: Arc::clone(&call.output),
            key: key(call, retracts),
        })
    }

    /// The columns that [`States::update`] wants, in order.
    pub fn args(&self) -> &[Arc<dyn PhysicalExpr>] {
        &self.args
    }

    pub fn filter(&self) -> Option<&Arc<dyn PhysicalExpr>> {
        self.filter.as_ref()
    }

    /// Whether [`States::subtract`] works.
    pub fn invertible(&self) -> bool {
        !matches!(self.kind, Kind::Extreme { .. } | Kind::Sketch | Kind::DataFusion { .. })
    }

    /// Whether states merge to the same whatever their order. DataFusion rounds as it goes.
    pub fn is_exact(&self) -> bool {
        !matches!(self.kind, Kind::DataFusion { .. })
    }

    /// Arrow form of one state; see the table at the top.
    pub fn state_type(&self) -> &DataType {
        &self.state_type
    }

    pub fn output(&self) -> &FieldRef {
        &self.output
    }

    /// Equal keys over one input: equal states, which can be shared.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// What decides how the call is kept, as text. States that DataFusion makes are of one version of it.
    pub fn fingerprint(&self) -> String {
        let version = match self.kind {
            Kind::DataFusion { .. } => format!(", of DataFusion {}", ::datafusion::DATAFUSION_VERSION),
            _ => String::new(),
        };
        format!("{}: {}{version}", self.key, self.state_type)
    }

    /// Over equal arguments: do states of the other call say what this one shows?
    pub fn has_states_of(&self, other: &Measure) -> bool {
        self.state_type == other.state_type && self.kind.has_states_of(&other.kind)
    }

    /// Over equal arguments: is it the same call?
    pub fn is_shown_as(&self, other: &Measure) -> bool {
        self.has_states_of(other)
            && std::mem::discriminant(&self.kind) == std::mem::discriminant(&other.kind)
            && self.output.data_type() == other.output.data_type()
    }

    /// `count(*)`, with or without a FILTER.
    pub fn counts_rows(&self) -> bool {
        matches!(self.kind, Kind::Count) && self.args.is_empty()
    }

    /// No states yet.
    pub fn create(&self) -> Box<dyn States> {
        self.kind.create(self.output.data_type())
    }
}

impl Kind {
    /// How the call is kept over input that never retracts, DISTINCT apart.
    fn of(call: &Call, types: &[DataType]) -> Result<Kind, ExecError> {
        use DataType::{Decimal128, Float64, Int64};
        Ok(match (&call.function, types, call.output.data_type()) {
            (Function::Count, _, _) => Kind::Count,
            (Function::Sum, [Int64], _) => Kind::SumInt,
            (Function::Sum, &[Decimal128(_, scale)], &Decimal128(_, to)) if scale == to => Kind::SumDecimal { scale },
            (Function::Sum, [Float64], _) => Kind::SumFloat,
            (Function::Avg, &[Decimal128(_, scale)], &Decimal128(_, to)) if scale <= to => Kind::AvgDecimal { scale },
            (Function::Avg, [Float64], _) => Kind::AvgFloat,
            (Function::Min, [t], to) if minmax::supports(t) && t == to => Kind::Extreme { max: false },
            (Function::Max, [t], to) if minmax::supports(t) && t == to => Kind::Extreme { max: true },
            (Function::ApproxDistinct, [t], _) if hll::supports(t) => Kind::Sketch,
            (Function::DataFusion(expr), _, _) => {
                Kind::DataFusion { expr: Arc::clone(expr), fields: datafusion::fields(expr)? }
            }
            _ => return Err(refusal(call, types)),
        })
    }

    fn has_states_of(&self, other: &Kind) -> bool {
        use Kind::{AvgDecimal, AvgFloat, ByValue, Count, DataFusion, Extreme, Sketch, SumDecimal, SumFloat, SumInt};
        match (self, other) {
            (Count, Count) | (SumInt, SumInt) | (Sketch, Sketch) => true,
            (SumDecimal { scale: a } | AvgDecimal { scale: a }, SumDecimal { scale: b } | AvgDecimal { scale: b }) => {
                a == b
            }
            (SumFloat | AvgFloat, SumFloat | AvgFloat) => true,
            (Extreme { max: a }, Extreme { max: b }) => a == b,
            (DataFusion { expr: a, .. }, DataFusion { expr: b, .. }) => is_same_function(a, b),
            (ByValue { columns: a, of: f, distinct: d }, ByValue { columns: b, of: g, distinct: e }) => {
                a == b && d == e && std::mem::discriminant(&**f) == std::mem::discriminant(&**g) && f.has_states_of(g)
            }
            _ => false,
        }
    }

    /// Whether the call must be kept as values by weight.
    fn wants_values(&self, distinct: bool, retracts: bool) -> bool {
        match self {
            Kind::Extreme { .. } | Kind::Sketch => retracts,
            // An accumulator that needs its rows in order cannot take them in the order of arrival. WITHIN GROUP only names
            // the argument.
            Kind::DataFusion { expr, .. } => {
                retracts || (expr.order_sensitivity().hard_requires() && !expr.fun().supports_within_group_clause())
            }
            _ => distinct,
        }
    }

    fn state_type(&self, call: &Call) -> DataType {
        match self {
            Kind::Count => DataType::Int64,
            Kind::SumInt => sum::state_type(&DataType::Int64),
            Kind::SumDecimal { scale } | Kind::AvgDecimal { scale } => sum::state_type(&wide_decimal(*scale)),
            Kind::SumFloat | Kind::AvgFloat => float::state_type(),
            Kind::Extreme { .. } => call.output.data_type().clone(),
            Kind::Sketch => DataType::Binary,
            Kind::DataFusion { fields, .. } => DataType::Struct(fields.clone()),
            Kind::ByValue { columns, .. } => by_value::state_type(columns),
        }
    }

    fn create(&self, output: &DataType) -> Box<dyn States> {
        let output = output.clone();
        match self {
            Kind::Count => Box::new(count::Counts::new(output)),
            Kind::SumInt => Box::new(sum::Sums::<Int64Type>::new(DataType::Int64, sum::Finish::Sum(output))),
            Kind::SumDecimal { scale } => {
                Box::new(sum::Sums::<Decimal128Type>::new(wide_decimal(*scale), sum::Finish::Sum(output)))
            }
            Kind::AvgDecimal { scale } => {
                let factor = match &output {
                    DataType::Decimal128(_, to) => 10i128.pow((to - scale).unsigned_abs().into()),
                    _ => 1,
                };
                Box::new(sum::Sums::<Decimal128Type>::new(wide_decimal(*scale), sum::Finish::Avg { factor, output }))
            }
            Kind::SumFloat => Box::new(float::FloatSums::new(false, output)),
            Kind::AvgFloat => Box::new(float::FloatSums::new(true, output)),
            Kind::Extreme { max } => minmax::create(&output, *max),
            Kind::Sketch => Box::new(hll::Sketches::new(output)),
            Kind::DataFusion { expr, fields } => {
                Box::new(datafusion::PartialStates::new(Arc::clone(expr), fields.clone(), output))
            }
            Kind::ByValue { columns, of, distinct } => {
                let make = |of: &Kind| -> by_value::Make {
                    let (of, output) = (of.clone(), output.clone());
                    Box::new(move || of.create(&output))
                };
                let (nulls, outcome) = match &**of {
                    Kind::Count => (false, by_value::Outcome::Count),
                    Kind::Extreme { max } => (false, by_value::Outcome::Extreme { max: *max }),
                    Kind::Sketch => (false, by_value::Outcome::Sketch),
                    Kind::DataFusion { expr, .. } if *distinct && expr.order_bys().is_empty() => {
                        (true, by_value::Outcome::Distinct(make(of)))
                    }
                    Kind::DataFusion { expr, .. } => {
                        let order = expr.order_bys().iter().map(|o| o.options).collect();
                        (true, by_value::Outcome::All { make: make(of), order })
                    }
                    _ => (false, by_value::Outcome::Distinct(make(of))),
                };
                by_value::create(columns, nulls, outcome, output)
            }
        }
    }
}

impl PartialEq for Measure {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Eq for Measure {}

fn key(call: &Call, retracts: bool) -> String {
    let args: Vec<String> = call.args.iter().map(|a| a.to_string()).collect();
    let filter = call.filter.as_ref().map(|f| format!(" FILTER {f}")).unwrap_or_default();
    let distinct = if call.distinct { "DISTINCT " } else { "" };
    let input = if retracts { "retracting" } else { "append-only" };
    let mut name = function_name(&call.function);
    if let Function::DataFusion(expr) = &call.function {
        let order: Vec<String> = expr.order_bys().iter().map(|o| o.to_string()).collect();
        name += &format!("[{} {} {}]", order.join(", "), expr.ignore_nulls(), expr.is_reversed());
    }
    format!("{name}({distinct}{}){filter} -> {} {input}", args.join(", "), call.output.data_type())
}

/// The same function of rows in the same order, arguments apart.
fn is_same_function(a: &AggregateFunctionExpr, b: &AggregateFunctionExpr) -> bool {
    let order = |e: &AggregateFunctionExpr| e.order_bys().iter().map(|o| o.options).collect::<Vec<_>>();
    a.fun() == b.fun()
        && order(a) == order(b)
        && a.ignore_nulls() == b.ignore_nulls()
        && a.is_reversed() == b.is_reversed()
        && a.is_distinct() == b.is_distinct()
}

fn function_name(function: &Function) -> String {
    match function {
        Function::Count => "count".into(),
        Function::Sum => "sum".into(),
        Function::Min => "min".into(),
        Function::Max => "max".into(),
        Function::Avg => "avg".into(),
        Function::ApproxDistinct => "approx_distinct".into(),
        Function::DataFusion(expr) => expr.fun().name().to_string(),
    }
}

fn refusal(call: &Call, types: &[DataType]) -> ExecError {
    let types: Vec<String> = types.iter().map(|t| t.to_string()).collect();
    ExecError::Unsupported {
        what: format!("{}({}) as {}", function_name(&call.function), types.join(", "), call.output.data_type()),
        hint: "Cast the argument to BIGINT, NUMERIC or DOUBLE PRECISION.".into(),
    }
}

fn not_invertible(function: &str) -> ExecError {
    ExecError::Unsupported {
        what: format!("taking a state of {function} away from another"),
        hint: "Merge the states that remain.".into(),
    }
}

fn wide_decimal(scale: i8) -> DataType {
    DataType::Decimal128(38, scale)
}

fn field(name: &str, data_type: DataType) -> FieldRef {
    Arc::new(Field::new(name, data_type, false))
}

fn pick<T: Copy>(values: &[T], slots: Option<&[u32]>) -> Vec<T> {
    match slots {
        None => values.to_vec(),
        Some(slots) => slots.iter().map(|&slot| values[slot as usize]).collect(),
    }
}

/// The same values with every NaN the positive one, which sorts after all numbers.
fn canonical(array: &ArrayRef) -> ArrayRef {
    match array.data_type() {
        DataType::Float64 if array.as_primitive::<Float64Type>().values().iter().any(|v| v.is_nan()) => Arc::new(
            array.as_primitive::<Float64Type>().unary::<_, Float64Type>(|v| if v.is_nan() { f64::NAN } else { v }),
        ),
        DataType::Float32 if array.as_primitive::<Float32Type>().values().iter().any(|v| v.is_nan()) => Arc::new(
            array.as_primitive::<Float32Type>().unary::<_, Float32Type>(|v| if v.is_nan() { f32::NAN } else { v }),
        ),
        _ => Arc::clone(array),
    }
}
