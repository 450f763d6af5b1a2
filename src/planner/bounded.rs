//! Functions whose result may be far larger than their arguments, with a bound on it.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::cast;
use arrow::compute::kernels::length::length;
use arrow::datatypes::{DataType, FieldRef, Int64Type, IntervalMonthDayNanoType};
use datafusion::common::Result;
use datafusion::logical_expr::{
    ColumnarValue, Documentation, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    simplify::{ExprSimplifyResult, SimplifyContext},
};

use super::error::{PlanError, Refusal};

/// The most that one call may make of one batch of rows.
const MOST_BYTES: i128 = 256 << 20;

/// The bytes that a call would make of one row, at most.
type Size = fn(&Sizes, usize) -> i128;

/// `repeat('x', 2000000000)` is computed while a query is planned, `replace(x, 'a', repeat('b', 1000000))` row by row while it runs:
/// neither is seen by the bound on the memory of queries, and what cannot be allocated ends the process.
const BOUNDED: [(&str, Size); 9] = [
    ("repeat", |sizes, row| sizes.length(0, row) * sizes.number(1, row).max(0)),
    // A character takes up to four bytes.
    ("lpad", |sizes, row| sizes.number(1, row).max(0) * 4),
    ("rpad", |sizes, row| sizes.number(1, row).max(0) * 4),
    ("replace", |sizes, row| {
        let (text, from, to) = (sizes.length(0, row), sizes.length(1, row), sizes.length(2, row));
        if from == 0 { text } else { text + text / from * to }
    }),
    // What stands for a match may name groups of it.
    ("regexp_replace", |sizes, row| sizes.length(0, row) + (sizes.length(0, row) + 1) * sizes.length(2, row)),
    ("array_repeat", |sizes, row| (sizes.width(0) + 8) * sizes.number(1, row).max(0)),
    ("array_resize", |sizes, row| sizes.number(1, row).max(0) * 16),
    ("range", series),
    ("generate_series", series),
];

fn series(sizes: &Sizes, row: usize) -> i128 {
    let (from, to) =
        if sizes.count() == 1 { (0, sizes.number(0, row)) } else { (sizes.number(0, row), sizes.number(1, row)) };
    let step = if sizes.count() > 2 { sizes.number(2, row).abs().max(1) } else { 1 };
    ((to - from).abs() / step + 1) * 8
}

/// One of DataFusion's functions that refuses (54000) to make more than [`MOST_BYTES`] at once.
#[derive(Debug)]
pub struct Bounded {
    inner: Arc<ScalarUDF>,
    size: Size,
}

impl Bounded {
    /// In the place of those that `find` knows.
    pub fn functions(find: impl Fn(&str) -> Option<Arc<ScalarUDF>>) -> Vec<ScalarUDF> {
        let bounded = BOUNDED.into_iter().filter_map(|(name, size)| Some(Bounded { inner: find(name)?, size }));
        bounded.map(ScalarUDF::from).collect()
    }

    fn check(&self, args: &ScalarFunctionArgs) -> Result<()> {
        let rows =
            if args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_))) { 1 } else { args.number_rows };
        let sizes = Sizes::of(&args.args, rows)?;
        let bytes: i128 = (0..rows).map(|row| (self.size)(&sizes, row)).sum();
        if bytes > MOST_BYTES {
            let message = format!("{}() would make up to {bytes} bytes at once", self.name());
            let hint = format!("At most {} MiB are possible.", MOST_BYTES >> 20);
            return Err(PlanError::TooLarge(Refusal::new(message).hint(hint)).into());
        }
        Ok(())
    }
}

/// What can be known of the arguments before the call: of each the lengths of its texts, or its numbers. One value stands for all
/// rows.
struct Sizes {
    lengths: Vec<Vec<i64>>,
    numbers: Vec<Vec<i64>>,
    widths: Vec<i128>,
}

impl Sizes {
    fn of(args: &[ColumnarValue], rows: usize) -> Result<Sizes> {
        let mut sizes = Sizes { lengths: Vec::new(), numbers: Vec::new(), widths: Vec::new() };
        for arg in args {
            let (values, count) = match arg {
                ColumnarValue::Array(array) => (Arc::clone(array), rows),
                ColumnarValue::Scalar(value) => (value.to_array()?, 1),
            };
            let is_text = matches!(values.data_type(), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
            sizes.lengths.push(if is_text { integers(&length(&values)?)? } else { Vec::new() });
            sizes.numbers.push(if is_text { Vec::new() } else { numbers(&values)? });
            sizes.widths.push((values.get_array_memory_size() / count.max(1)) as i128);
        }
        Ok(sizes)
    }

    fn count(&self) -> usize {
        self.numbers.len()
    }

    fn length(&self, arg: usize, row: usize) -> i128 {
        at(&self.lengths, arg, row)
    }

    fn number(&self, arg: usize, row: usize) -> i128 {
        at(&self.numbers, arg, row)
    }

    /// Bytes of a value on average.
    fn width(&self, arg: usize) -> i128 {
        self.widths.get(arg).copied().unwrap_or(0)
    }
}

fn at(values: &[Vec<i64>], arg: usize, row: usize) -> i128 {
    let Some(values) = values.get(arg) else { return 0 };
    values.get(row).or(if values.len() == 1 { values.first() } else { None }).map_or(0, |value| i128::from(*value))
}

/// Integers as they are, moments in microseconds, steps in microseconds with a month of 28 days; nothing of other types.
fn numbers(values: &ArrayRef) -> Result<Vec<i64>> {
    const DAY_US: i64 = 86_400_000_000;
    match values.data_type() {
        data_type if data_type.is_integer() => integers(values),
        DataType::Date32 => Ok(integers(values)?.into_iter().map(|days| days.saturating_mul(DAY_US)).collect()),
        DataType::Timestamp(..) => integers(&cast(values, &super::types::timestamp())?),
        DataType::Interval(_) => {
            let steps = cast(values, &DataType::Interval(arrow::datatypes::IntervalUnit::MonthDayNano))?;
            let steps = steps.as_primitive::<IntervalMonthDayNanoType>().iter();
            Ok(steps
                .map(|step| {
                    let step = step.unwrap_or_default();
                    let days = i64::from(step.months) * 28 + i64::from(step.days);
                    days.saturating_mul(DAY_US).saturating_add(step.nanoseconds / 1_000)
                })
                .collect())
        }
        _ => Ok(Vec::new()),
    }
}

/// NULL as 0.
fn integers(values: &ArrayRef) -> Result<Vec<i64>> {
    let values = cast(values, &DataType::Int64)?;
    Ok(values.as_primitive::<Int64Type>().iter().map(Option::unwrap_or_default).collect())
}

impl PartialEq for Bounded {
    fn eq(&self, other: &Self) -> bool {
        self.inner == other.inner
    }
}

impl Eq for Bounded {}

impl std::hash::Hash for Bounded {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.inner.hash(state);
    }
}

impl ScalarUDFImpl for Bounded {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(types)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        self.inner.return_field_from_args(args)
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.coerce_types(types)
    }

    fn simplify(&self, args: Vec<Expr>, info: &SimplifyContext) -> Result<ExprSimplifyResult> {
        self.inner.simplify(args, info)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.inner.documentation()
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        self.check(&args)?;
        self.inner.invoke_with_args(args)
    }
}

#[cfg(test)]
mod tests {
    use datafusion::common::ScalarValue;

    use super::*;

    fn size(function: &str, args: &[ScalarValue]) -> i128 {
        let args: Vec<ColumnarValue> = args.iter().cloned().map(ColumnarValue::Scalar).collect();
        let (_, size) = BOUNDED.into_iter().find(|(name, _)| *name == function).expect("a function of the table");
        size(&Sizes::of(&args, 1).expect("sizes"), 0)
    }

    #[test]
    fn sizes_are_known_before_the_call() {
        let text = |text: &str| ScalarValue::from(text);
        let number = |n: i64| ScalarValue::from(n);
        assert_eq!(size("repeat", &[text("ab"), number(1_000)]), 2_000);
        assert_eq!(size("repeat", &[text("ab"), number(-1)]), 0);
        assert_eq!(size("repeat", &[text("ab"), number(i64::MAX)]), 2 * i128::from(i64::MAX));
        assert_eq!(size("lpad", &[text("ab"), number(10)]), 40);
        assert_eq!(size("replace", &[text("aaaa"), text("a"), text("xyz")]), 16);
        assert_eq!(size("range", &[number(10)]), 88);
        assert_eq!(size("generate_series", &[number(0), number(-100), number(-10)]), 88);
        let day = |days| ScalarValue::Date32(Some(days));
        let step = ScalarValue::IntervalMonthDayNano(Some(arrow::datatypes::IntervalMonthDayNano::new(0, 0, 1_000)));
        assert_eq!(size("generate_series", &[day(0), day(1), step]), (86_400_000_000 + 1) * 8);
    }
}
