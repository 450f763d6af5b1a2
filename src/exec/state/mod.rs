//! Aggregate states: what one aggregate call keeps for each of many groups.
//!
//! | call | state per group | Arrow form | subtract |
//! |---|---|---|---|
//! | `count` | rows | Int64 | yes |
//! | `sum`, `avg` of whole numbers and decimals | exact sum, count | Struct {sum, count, carry} | yes |
//! | `sum`, `avg` of floats | exact sum, count | Struct {fixed, count, wide} | yes |
//! | `min`, `max` | the value | the value or NULL | no |
//!
//! A state stays correct whatever the order in which rows and states arrive; inside a tick a row may be taken back before it
//! comes.

mod count;
mod float;
mod minmax;
mod rows;
mod sum;
mod wide_float;

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray};
use arrow::datatypes::{DataType, Decimal128Type, Field, FieldRef, Float32Type, Float64Type, Int64Type, Schema};
use datafusion::physical_expr::PhysicalExpr;

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
        let types = call.args.iter().map(|a| a.data_type(input)).collect::<Result<Vec<_>, _>>()?;
        let output = call.output.data_type();
        let (kind, state_type) = match (&call.function, types.as_slice(), output) {
            (Function::Count, _, _) => (Kind::Count, DataType::Int64),
            (Function::Sum, [DataType::Int64], _) => (Kind::SumInt, sum::state_type(&DataType::Int64)),
            (Function::Sum, [DataType::Decimal128(_, scale)], DataType::Decimal128(_, to)) if scale == to => {
                (Kind::SumDecimal { scale: *scale }, sum::state_type(&wide_decimal(*scale)))
            }
            (Function::Sum, [DataType::Float64], _) => (Kind::SumFloat, float::state_type()),
            (Function::Avg, [DataType::Decimal128(_, scale)], DataType::Decimal128(_, to)) if scale <= to => {
                (Kind::AvgDecimal { scale: *scale }, sum::state_type(&wide_decimal(*scale)))
            }
            (Function::Avg, [DataType::Float64], _) => (Kind::AvgFloat, float::state_type()),
            (Function::Min | Function::Max, [t], _) if !minmax::supports(t) => return Err(refusal(call, &types)),
            (Function::Min, [t], _) => (Kind::Extreme { max: false }, t.clone()),
            (Function::Max, [t], _) => (Kind::Extreme { max: true }, t.clone()),
            _ => return Err(refusal(call, &types)),
        };
        let args = call.args.clone();
        Ok(Measure {
            key: key(call, retracts),
            args,
            filter: call.filter.clone(),
            output: Arc::clone(&call.output),
            kind,
            state_type,
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
        !matches!(self.kind, Kind::Extreme { .. })
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

    /// No states yet.
    pub fn create(&self) -> Box<dyn States> {
        let output = self.output.data_type().clone();
        match self.kind {
            Kind::Count => Box::new(count::Counts::new(output)),
            Kind::SumInt => Box::new(sum::Sums::<Int64Type>::new(DataType::Int64, sum::Finish::Sum(output))),
            Kind::SumDecimal { scale } => {
                Box::new(sum::Sums::<Decimal128Type>::new(wide_decimal(scale), sum::Finish::Sum(output)))
            }
            Kind::AvgDecimal { scale } => {
                let factor = match &output {
                    DataType::Decimal128(_, to) => 10i128.pow((to - scale) as u32),
                    _ => 1,
                };
                Box::new(sum::Sums::<Decimal128Type>::new(wide_decimal(scale), sum::Finish::Avg { factor, output }))
            }
            Kind::SumFloat => Box::new(float::FloatSums::new(false, output)),
            Kind::AvgFloat => Box::new(float::FloatSums::new(true, output)),
            Kind::Extreme { max } => minmax::create(&self.state_type, max),
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
    let name = function_name(&call.function);
    format!("{name}({distinct}{}){filter} -> {} {input}", args.join(", "), call.output.data_type())
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
