//! The functions of `pg_catalog` that tools call, over the catalog and the session.
//!
//! They answer row by row from single values: catalogs are small. A strict function gives NULL for a NULL argument.

mod objects;
mod session;
mod single_value;
mod text;

use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::RangeInclusive;
use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::{DataType, Field, FieldRef, Fields};
use datafusion::common::{DataFusionError, Result, ScalarValue};
use datafusion::logical_expr::{
    AggregateUDF, ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    TypeSignature, Volatility,
};

use super::system::value::{Value, array_of, values_of};
use super::types::with_pg_type;
use super::{CatalogError, PgType, SystemScope};

pub(super) use objects::{index_definition, view_definition};
pub use session::SERVER_VERSION;
pub use single_value::SINGLE_VALUE;
pub(super) use text::quote_identifier;

type Answer = std::result::Result<Value, CatalogError>;

/// One function, as data.
struct Function {
    name: &'static str,
    arity: RangeInclusive<usize>,
    returns: Returns,
    strict: bool,
    volatility: Volatility,
    eval: Eval,
}

#[derive(Clone, Copy)]
enum Returns {
    /// A Postgres type by `typname`.
    Type(&'static str),
    /// A list of structs with these fields; the function stands for one that returns a set of rows.
    Set(&'static [(&'static str, &'static str)]),
}

#[derive(Clone, Copy)]
enum Eval {
    Values(fn(&SystemScope, &[Value]) -> Answer),
    /// Over the arguments' types alone.
    Fields(fn(&[FieldRef]) -> Value),
}

/// A strict function whose answer holds for the statement.
const fn function(
    name: &'static str,
    arity: RangeInclusive<usize>,
    returns: &'static str,
    eval: fn(&SystemScope, &[Value]) -> Answer,
) -> Function {
    Function {
        name,
        arity,
        returns: Returns::Type(returns),
        strict: true,
        volatility: Volatility::Stable,
        eval: Eval::Values(eval),
    }
}

impl Function {
    /// The same, called with NULLs too.
    const fn lenient(mut self) -> Function {
        self.strict = false;
        self
    }

    const fn immutable(mut self) -> Function {
        self.volatility = Volatility::Immutable;
        self
    }

    const fn volatile(mut self) -> Function {
        self.volatility = Volatility::Volatile;
        self
    }

    const fn set(mut self, columns: &'static [(&'static str, &'static str)]) -> Function {
        self.returns = Returns::Set(columns);
        self
    }
}

/// The functions for one session and one version of the catalog.
pub fn pg_functions(scope: &SystemScope) -> Vec<ScalarUDF> {
    let scope = Arc::new(scope.clone());
    let all = [objects::FUNCTIONS, session::FUNCTIONS, text::FUNCTIONS].into_iter().flatten();
    all.map(|function| ScalarUDF::from(PgFunction::new(function, Arc::clone(&scope)))).collect()
}

/// The aggregate functions that [`super::compat::rewrite`] puts in.
pub fn pg_aggregates() -> Vec<AggregateUDF> {
    vec![AggregateUDF::from(single_value::SingleValue::new())]
}

struct PgFunction {
    function: &'static Function,
    scope: Arc<SystemScope>,
    signature: Signature,
}

impl PgFunction {
    fn new(function: &'static Function, scope: Arc<SystemScope>) -> PgFunction {
        let signatures = function.arity.clone().map(|n| match n {
            0 => TypeSignature::Nullary,
            n => TypeSignature::Any(n),
        });
        let signature = Signature::one_of(signatures.collect(), function.volatility);
        PgFunction { function, scope, signature }
    }

    fn returns(&self) -> Field {
        match self.function.returns {
            Returns::Type(name) => {
                let pg_type = PgType::by_name(name).expect("functions return types of types.txt");
                with_pg_type(pg_type.field(self.function.name), pg_type)
            }
            Returns::Set(columns) => {
                let columns = columns.iter().map(|(name, pg_type)| {
                    PgType::by_name(pg_type).expect("functions return types of types.txt").field(*name)
                });
                let row = DataType::Struct(Fields::from_iter(columns));
                Field::new(self.function.name, DataType::List(Arc::new(Field::new_list_field(row, true))), true)
            }
        }
    }

    fn row(&self, args: &[Value], fields: &[FieldRef]) -> Answer {
        if self.function.strict && args.contains(&Value::Null) {
            return Ok(Value::Null);
        }
        match self.function.eval {
            Eval::Values(eval) => eval(&self.scope, args),
            Eval::Fields(eval) => Ok(eval(fields)),
        }
    }
}

impl fmt::Debug for PgFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PgFunction").field("name", &self.function.name).finish()
    }
}

impl PartialEq for PgFunction {
    fn eq(&self, other: &Self) -> bool {
        self.function.name == other.function.name && Arc::ptr_eq(&self.scope, &other.scope)
    }
}

impl Eq for PgFunction {}

impl Hash for PgFunction {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.function.name.hash(state);
    }
}

impl ScalarUDFImpl for PgFunction {
    fn name(&self) -> &str {
        self.function.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(self.returns().data_type().clone())
    }

    fn return_field_from_args(&self, _: ReturnFieldArgs) -> Result<FieldRef> {
        Ok(Arc::new(self.returns()))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let constant = self.function.volatility != Volatility::Volatile
            && args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        let rows = if constant { 1 } else { args.number_rows };
        let columns: Vec<Vec<Value>> = args
            .args
            .iter()
            .map(|arg| {
                let array: ArrayRef = match arg {
                    ColumnarValue::Array(array) => Arc::clone(array),
                    ColumnarValue::Scalar(scalar) => scalar.to_array_of_size(rows)?,
                };
                Ok(values_of(&array)?)
            })
            .collect::<Result<_>>()?;
        let mut answers = Vec::with_capacity(rows);
        let mut row = Vec::with_capacity(columns.len());
        for at in 0..rows {
            row.clear();
            row.extend(columns.iter().map(|column| column[at].clone()));
            answers.push(self.row(&row, &args.arg_fields).map_err(|e| DataFusionError::External(Box::new(e)))?);
        }
        let array = array_of(args.return_field.data_type(), &answers);
        if !constant {
            return Ok(ColumnarValue::Array(array));
        }
        Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&array, 0)?))
    }
}
