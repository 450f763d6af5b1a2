//! Random rows go into states by every way in: as rows, as merged states, as states that are merged and taken away again.
//! What the states show must be what DataFusion's aggregate makes of the rows that are left.

use std::sync::Arc;

use ::datafusion::functions_aggregate as functions;
use ::datafusion::logical_expr::AggregateUDF;
use ::datafusion::physical_expr::PhysicalExpr;
use ::datafusion::physical_expr::aggregate::{AggregateExprBuilder, AggregateFunctionExpr};
use ::datafusion::physical_expr::expressions::{PhysicalSortExpr, col, lit};
use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int64Array, RecordBatch,
    StringArray, TimestampMicrosecondArray, UInt32Array,
};
use arrow::compute::{SortColumn, SortOptions, concat, filter_record_batch, lexsort_to_indices, take};
use arrow::datatypes::{DataType, Field, Float64Type, Int64Type, Schema, SchemaRef, TimeUnit};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{Measure, States};
use crate::planner::stream_plan::{Call, Function};

const SLOTS: usize = 5;
const ROWS: usize = 240;

fn schema() -> SchemaRef {
    let field = |name: &str, t| Field::new(name, t, true);
    Arc::new(Schema::new(vec![
        field("int", DataType::Int64),
        field("dec", DataType::Decimal128(20, 4)),
        field("float", DataType::Float64),
        field("text", DataType::Utf8),
        field("time", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))),
        field("date", DataType::Date32),
        field("bool", DataType::Boolean),
        field("num", DataType::Float64),
        field("num2", DataType::Float64),
        field("seq", DataType::Int64),
    ]))
}

/// Rows with their slots and weights; no row's weights add up to less than 0.
struct Rows {
    batch: RecordBatch,
    slots: Vec<u32>,
    weights: Vec<i64>,
}

impl Rows {
    fn random(rng: &mut StdRng, retracts: bool) -> Rows {
        let n = ROWS / 2;
        let mut opt =
            |hi: i64| (0..n).map(|_| (!rng.random_bool(0.2)).then(|| rng.random_range(-hi..hi))).collect::<Vec<_>>();
        let floats = [0.1, -2.5, 1e15, 1e-20, 3.0, f64::MAX / 1e9, 1e-300];
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from(opt(12))),
            Arc::new(
                opt(90_000)
                    .iter()
                    .map(|v| v.map(i128::from))
                    .collect::<Decimal128Array>()
                    .with_precision_and_scale(20, 4)
                    .unwrap(),
            ),
            Arc::new(
                opt(30)
                    .iter()
                    .map(|v| v.map(|v| floats[v.unsigned_abs() as usize % 7] * v as f64))
                    .collect::<Float64Array>(),
            ),
            Arc::new(
                opt(8).iter().map(|v| v.map(|v| "näive-".repeat(v.unsigned_abs() as usize))).collect::<StringArray>(),
            ),
            Arc::new(TimestampMicrosecondArray::from(opt(9_000)).with_timezone("UTC")),
            Arc::new(opt(20).iter().map(|v| v.map(|v| v as i32)).collect::<Date32Array>()),
            Arc::new(opt(5).iter().map(|v| v.map(|v| v > 0)).collect::<BooleanArray>()),
            Arc::new(opt(30).iter().map(|v| v.map(|v| v as f64 / 4.0)).collect::<Float64Array>()),
            Arc::new(opt(30).iter().map(|v| v.map(|v| v as f64 / 4.0)).collect::<Float64Array>()),
            Arc::new(Int64Array::from_iter_values(0..n as i64)),
        ];
        // Each row comes once or twice; of input that retracts, half go again, some before they came.
        let mut order: Vec<(u32, i64)> = (0..n as u32).map(|row| (row, rng.random_range(1..=2))).collect();
        if retracts {
            let back: Vec<_> = order.iter().filter(|_| rng.random_bool(0.5)).map(|&(row, w)| (row, -w)).collect();
            order.extend(back);
        }
        for i in (1..order.len()).rev() {
            order.swap(i, rng.random_range(0..=i));
        }
        let slot_of: Vec<u32> = (0..n).map(|_| rng.random_range(0..SLOTS as u32 - 1)).collect();
        let indices = UInt32Array::from_iter_values(order.iter().map(|o| o.0));
        let columns = columns.iter().map(|c| take(c, &indices, None).unwrap()).collect();
        Rows {
            batch: RecordBatch::try_new(schema(), columns).unwrap(),
            slots: order.iter().map(|o| slot_of[o.0 as usize]).collect(),
            weights: order.iter().map(|o| o.1).collect(),
        }
    }

    fn slice(&self, from: usize, to: usize) -> Rows {
        Rows {
            batch: self.batch.slice(from, to - from),
            slots: self.slots[from..to].to_vec(),
            weights: self.weights[from..to].to_vec(),
        }
    }

    fn update(&self, measure: &Measure, states: &mut dyn States) {
        let values = |e: &Arc<dyn PhysicalExpr>| e.evaluate(&self.batch).unwrap().into_array(self.slots.len()).unwrap();
        let args: Vec<ArrayRef> = measure.args().iter().map(values).collect();
        let kept = measure.filter().map(values);
        let kept = kept.as_ref().map(|k| k.as_boolean());
        states.update(&self.slots, &args, kept, Some(&self.weights)).unwrap();
    }

    /// The rows of one slot that are left.
    fn left(&self, slot: u32) -> RecordBatch {
        let seq = self.batch.column_by_name("seq").unwrap().as_primitive::<Int64Type>().values();
        let mut rows = Vec::new();
        for (row, &of) in self.slots.iter().enumerate() {
            if of == slot && !seq[..row].contains(&seq[row]) {
                let weight: i64 = (row..seq.len()).filter(|&r| seq[r] == seq[row]).map(|r| self.weights[r]).sum();
                rows.extend(std::iter::repeat_n(row as u32, weight.try_into().unwrap()));
            }
        }
        let rows = UInt32Array::from(rows);
        let columns = self.batch.columns().iter().map(|c| take(c, &rows, None).unwrap()).collect();
        RecordBatch::try_new(schema(), columns).unwrap()
    }
}

fn oracle(expr: &AggregateFunctionExpr, measure: &Measure, rows: &Rows) -> ArrayRef {
    let mut values = Vec::new();
    for slot in 0..SLOTS as u32 {
        let mut left = rows.left(slot);
        if let Some(f) = measure.filter() {
            let kept = f.evaluate(&left).unwrap().into_array(left.num_rows()).unwrap();
            left = filter_record_batch(&left, kept.as_boolean()).unwrap();
        }
        let mut accumulator = expr.create_accumulator().unwrap();
        let args = expr.all_expressions();
        let args = args.args.iter().chain(&args.order_by_exprs);
        let args: Vec<ArrayRef> =
            args.map(|a| a.evaluate(&left).unwrap().into_array(left.num_rows()).unwrap()).collect();
        // As its aggregation does before accumulators that need an order.
        let order: Vec<_> = expr
            .order_bys()
            .iter()
            .map(|o| SortColumn {
                values: o.expr.evaluate(&left).unwrap().into_array(left.num_rows()).unwrap(),
                options: Some(o.options),
            })
            .collect();
        let args = if order.is_empty() {
            args
        } else {
            let indices = lexsort_to_indices(&order, None).unwrap();
            args.iter().map(|a| take(a, &indices, None).unwrap()).collect()
        };
        if left.num_rows() > 0 {
            accumulator.update_batch(&args).unwrap();
        }
        values.push(accumulator.evaluate().unwrap().to_array().unwrap());
    }
    concat(&values.iter().map(|v| v.as_ref()).collect::<Vec<_>>()).unwrap()
}

fn assert_same(ours: &ArrayRef, theirs: &ArrayRef, what: &str) {
    if let (Some(ours), Some(theirs)) =
        (ours.as_primitive_opt::<Float64Type>(), theirs.as_primitive_opt::<Float64Type>())
    {
        for (a, b) in ours.iter().zip(theirs) {
            let close = match (a, b) {
                (Some(a), Some(b)) => a == b || (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1e-3),
                (a, b) => a == b,
            };
            assert!(close, "{what}: {a:?} is not {b:?}");
        }
        return;
    }
    assert_eq!(ours, theirs, "{what}");
}

struct Case {
    function: Function,
    udaf: Arc<AggregateUDF>,
    args: Vec<Arc<dyn PhysicalExpr>>,
    distinct: bool,
    order: Option<&'static str>,
}

impl Case {
    fn of(function: Function, udaf: Arc<AggregateUDF>, column: &str) -> Case {
        let args = if column.is_empty() { vec![] } else { vec![col(column, &schema()).unwrap()] };
        Case { function, udaf, args, distinct: false, order: None }
    }

    fn distinct(mut self) -> Case {
        self.distinct = true;
        self
    }

    /// A function that DataFusion keeps.
    fn other(udaf: Arc<AggregateUDF>, args: Vec<Arc<dyn PhysicalExpr>>, order: Option<&'static str>) -> Case {
        let mut case = Case { function: Function::Count, udaf, args, distinct: false, order };
        case.function = Function::DataFusion(Arc::new(case.expr()));
        case
    }

    fn expr(&self) -> AggregateFunctionExpr {
        // DataFusion's count(*) is the count of a literal.
        let args = if self.args.is_empty() { vec![lit(1i64)] } else { self.args.clone() };
        let order = self.order.map(|o| {
            let options = SortOptions { descending: true, nulls_first: false };
            vec![
                PhysicalSortExpr { expr: col(o, &schema()).unwrap(), options },
                PhysicalSortExpr { expr: col("seq", &schema()).unwrap(), options },
            ]
        });
        AggregateExprBuilder::new(self.udaf.clone(), args)
            .schema(schema())
            .alias("out")
            .with_distinct(self.distinct)
            .order_by(order.unwrap_or_default())
            .build()
            .unwrap()
    }
}

fn check(case: Case) {
    let expr = case.expr();
    let filters = [None, Some(col("bool", &schema()).unwrap())];
    for (seed, (retracts, filter)) in
        [false, true].into_iter().flat_map(|r| filters.iter().map(move |f| (r, f))).enumerate()
    {
        let call = Call {
            function: case.function.clone(),
            args: case.args.clone(),
            filter: filter.clone(),
            distinct: case.distinct,
            output: expr.field(),
        };
        let measure = Measure::new(&call, &schema(), retracts).unwrap();
        let mut rng = StdRng::seed_from_u64(seed as u64);
        let rows = Rows::random(&mut rng, retracts);
        let what = measure.key().to_string();
        let all_slots: Vec<u32> = (0..SLOTS as u32).collect();
        let fresh = || {
            let mut states = measure.create();
            states.resize(SLOTS);
            states
        };
        let mut states = fresh();
        let n = rows.slots.len();
        for (i, part) in
            [(0, n / 4), (n / 4, n / 2), (n / 2, n - 9), (n - 9, n)].map(|(a, b)| rows.slice(a, b)).iter().enumerate()
        {
            if i % 2 == 0 {
                part.update(&measure, states.as_mut());
            } else {
                let mut apart = fresh();
                part.update(&measure, apart.as_mut());
                states.merge(&all_slots, &apart.states().unwrap()).unwrap();
            }
        }
        if measure.invertible() {
            let passing = Rows::random(&mut rng, retracts);
            let mut apart = fresh();
            passing.update(&measure, apart.as_mut());
            passing.update(&measure, states.as_mut());
            states.subtract(&all_slots, &apart.states().unwrap()).unwrap();
        }
        let theirs = oracle(&expr, &measure, &rows);
        let ours = states.finish().unwrap();
        assert_eq!(ours.data_type(), measure.output().data_type(), "{what}");
        assert_same(&ours, &theirs, &what);
        assert_eq!(states.overflowed(), 0, "{what}");

        let form = states.states().unwrap();
        assert_eq!(form.data_type(), measure.state_type(), "{what}");
        let mut back = fresh();
        back.merge(&all_slots, &form).unwrap();
        assert_eq!(&back.states().unwrap(), &form, "{what}: states that went through their Arrow form");
        let some = [3, 0];
        assert_eq!(
            &states.take(&some).unwrap().to_data(),
            &take(&form, &UInt32Array::from(some.to_vec()), None).unwrap().to_data(),
            "{what}"
        );
        let mut both = fresh();
        both.merge(&[1, 1], &states.take(&some).unwrap()).unwrap();
        assert!(states.bytes() > 0 && both.len() == SLOTS);
    }
}

#[test]
fn counts() {
    check(Case::of(Function::Count, functions::count::count_udaf(), ""));
    check(Case::of(Function::Count, functions::count::count_udaf(), "text"));
    for column in ["int", "dec", "float", "text", "time", "date", "bool"] {
        check(Case::of(Function::Count, functions::count::count_udaf(), column).distinct());
    }
}

#[test]
fn sums_and_averages() {
    for column in ["int", "dec", "float"] {
        check(Case::of(Function::Sum, functions::sum::sum_udaf(), column));
        check(Case::of(Function::Sum, functions::sum::sum_udaf(), column).distinct());
    }
    for column in ["dec", "float"] {
        check(Case::of(Function::Avg, functions::average::avg_udaf(), column));
        check(Case::of(Function::Avg, functions::average::avg_udaf(), column).distinct());
    }
}

#[test]
fn extremes() {
    for column in ["int", "dec", "float", "text", "time", "date", "bool"] {
        check(Case::of(Function::Min, functions::min_max::min_udaf(), column));
        check(Case::of(Function::Max, functions::min_max::max_udaf(), column));
    }
}

#[test]
fn approximate_distinct_is_exact_for_a_few() {
    for column in ["int", "dec", "float", "text", "time", "date", "bool"] {
        check(Case::of(Function::ApproxDistinct, functions::count::count_udaf(), column).distinct());
    }
}

#[test]
fn other_functions() {
    let column = |name: &str| col(name, &schema()).unwrap();
    check(Case::other(functions::variance::var_samp_udaf(), vec![column("num")], None));
    check(Case::other(functions::stddev::stddev_udaf(), vec![column("num")], None));
    check(Case::other(functions::correlation::corr_udaf(), vec![column("num"), column("num2")], None));
    check(Case::other(functions::median::median_udaf(), vec![column("dec")], None));
    check(Case::other(functions::bool_and_or::bool_and_udaf(), vec![column("bool")], None));
    check(Case::other(functions::bit_and_or_xor::bit_or_udaf(), vec![column("int")], None));
    check(Case::other(
        functions::approx_percentile_cont::approx_percentile_cont_udaf(),
        vec![column("num"), lit(0.5)],
        None,
    ));
    check(Case::other(functions::array_agg::array_agg_udaf(), vec![column("text")], Some("int")));
    check(Case::other(functions::string_agg::string_agg_udaf(), vec![column("text"), lit(",")], Some("int")));
    check(Case::other(functions::first_last::first_value_udaf(), vec![column("text")], Some("int")));
    check(Case::other(functions::first_last::last_value_udaf(), vec![column("text")], Some("time")));
    check(Case::other(functions::nth_value::nth_value_udaf(), vec![column("text"), lit(2i64)], Some("int")));
}

#[test]
fn sums_out_of_range_are_null_and_come_back() {
    let schema = Schema::new(vec![Field::new("v", DataType::Decimal128(38, 0), true)]);
    let call = Call {
        function: Function::Sum,
        args: vec![col("v", &schema).unwrap()],
        filter: None,
        distinct: false,
        output: Arc::new(Field::new("s", DataType::Decimal128(38, 0), true)),
    };
    let measure = Measure::new(&call, &schema, true).unwrap();
    let mut states = measure.create();
    states.resize(2);
    let most = 10i128.pow(38) - 1;
    let values: ArrayRef =
        Arc::new(Decimal128Array::from(vec![most, -most, -7]).with_precision_and_scale(38, 0).unwrap());
    states.update(&[0, 1, 1], std::slice::from_ref(&values), None, Some(&[5, 5, 3])).unwrap();
    assert_eq!((states.finish().unwrap().null_count(), states.overflowed()), (2, 2));
    let form = states.states().unwrap();
    states.update(&[0, 1, 1], std::slice::from_ref(&values), None, Some(&[-4, -4, -2])).unwrap();
    let shown = states.finish().unwrap();
    let shown = shown.as_primitive::<arrow::datatypes::Decimal128Type>();
    assert_eq!((shown.value(0), shown.is_null(1)), (most, true), "-most - 7 has 39 digits");
    states.merge(&[0, 1], &form).unwrap();
    states.subtract(&[0, 1], &form).unwrap();
    assert_eq!(states.overflowed(), 1);
}

#[test]
fn equal_calls_have_equal_keys() {
    let call = |name: &str, distinct| {
        let case = Case::of(Function::Count, functions::count::count_udaf(), name);
        let output = case.expr().field();
        Call { function: Function::Count, args: case.args, filter: None, distinct, output }
    };
    let measure = |name, distinct, retracts| Measure::new(&call(name, distinct), &schema(), retracts).unwrap();
    assert_eq!(measure("int", false, false), measure("int", false, false));
    for other in [measure("dec", false, false), measure("int", true, false), measure("int", false, true)] {
        assert_ne!(measure("int", false, false), other);
    }
    insta::assert_snapshot!(measure("int", true, false).key(), @"count(DISTINCT int@0) -> Int64 append-only");
}
