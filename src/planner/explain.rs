//! A stream plan as EXPLAIN prints it: the output first, what it reads indented below, one line per node.

use std::fmt::{self, Write};
use std::sync::Arc;

use arrow::datatypes::{DataType, Schema};
use datafusion::common::ScalarValue;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{Column, Literal};

use super::stream_plan::{
    Aggregate, Call, Emit, Function, GroupColumn, Micros, NodeId, Op, OrderBy, ScanKind, Sessions, StoreChoice,
    StreamPlan, TimeBound,
};

/// The text of a plan, without a closing line break.
pub fn explain(plan: &StreamPlan) -> String {
    let mut text = String::new();
    // Writing to a String does not fail.
    let _ = Explain { plan }.write(&mut text);
    text
}

struct Explain<'a> {
    plan: &'a StreamPlan,
}

impl Explain<'_> {
    fn write(&self, out: &mut String) -> fmt::Result {
        let mut view = Vec::new();
        if self.plan.emit == Emit::OnWindowClose {
            view.push("EMIT ON WINDOW CLOSE".to_string());
        }
        if let Some(retention) = self.plan.retention_us {
            view.push(format!("retention={}", Micros(retention)));
        }
        match self.plan.store {
            StoreChoice::Auto => {}
            StoreChoice::Own => view.push("store=own".into()),
            StoreChoice::Shared => view.push("store=shared".into()),
        }
        if !self.plan.over.is_empty() {
            let names: Vec<&str> = self.plan.over.iter().map(|(_, name)| name.as_str()).collect();
            view.push(format!("read through the slices of [{}]", names.join(", ")));
        }
        if !view.is_empty() {
            writeln!(out, "View: {}", view.join(", "))?;
        }
        self.node(self.plan.nodes.len() - 1, usize::from(!view.is_empty()), out)?;
        out.truncate(out.trim_end().len());
        Ok(())
    }

    fn node(&self, id: NodeId, depth: usize, out: &mut String) -> fmt::Result {
        let node = &self.plan.nodes[id];
        write!(out, "{:1$}", "", 2 * depth)?;
        self.op(id, out)?;
        if node.append_only {
            out.push_str(" append-only");
        }
        out.push('\n');
        node.inputs.iter().try_for_each(|&input| self.node(input, depth + 1, out))
    }

    fn op(&self, id: NodeId, out: &mut String) -> fmt::Result {
        let node = &self.plan.nodes[id];
        let input = node.inputs.first().map(|&input| self.plan.nodes[input].schema.as_ref());
        let none = Schema::empty();
        let input = input.unwrap_or(&none);
        match &node.op {
            Op::Scan { object, name, kind, .. } => {
                let kind = match kind {
                    ScanKind::Source => "source",
                    ScanKind::Table => "table",
                    ScanKind::MaterializedView => "materialized view",
                };
                write!(out, "Scan: {kind} {name} (oid {object}), columns=[{}]", names(&node.schema))
            }
            Op::Filter { predicate } => write!(out, "Filter: {}", expr_text(predicate, input)),
            Op::TemporalFilter { clock, bounds } => {
                let bound =
                    |b: &TimeBound| format!("{} {} {}", expr_text(&b.time, input), b.comparison, b.moment.text(clock));
                write!(out, "TemporalFilter: {}", bounds.iter().map(bound).collect::<Vec<_>>().join(" AND "))
            }
            Op::Project { exprs } => {
                let columns = exprs.iter().zip(node.schema.fields()).map(|(e, field)| {
                    let text = expr_text(e, input);
                    if text == *field.name() { text } else { format!("{text} AS {}", field.name()) }
                });
                write!(out, "Project: {}", columns.collect::<Vec<_>>().join(", "))
            }
            Op::AssignWindows { time_column, window } => {
                write!(out, "AssignWindows: {window} of {}", input.field(*time_column).name())
            }
            Op::Aggregate(aggregate) => write!(out, "Aggregate: {}", aggregate_text(aggregate, input, &node.schema)),
            Op::Sessions(Sessions { aggregate, time, session }) => {
                let time = input.field(*time).name();
                write!(out, "Sessions: {session} of {time}, {}", aggregate_text(aggregate, input, &node.schema))
            }
            Op::UnionAll => write!(out, "UnionAll"),
            Op::EmitEvery { interval_us } => write!(out, "EmitEvery: {}", Micros(*interval_us)),
            Op::TopN { partition_by, order_by, offset, limit, row_number } => {
                write!(out, "TopN: ")?;
                if !partition_by.is_empty() {
                    let columns: Vec<&str> = partition_by.iter().map(|&i| input.field(i).name().as_str()).collect();
                    write!(out, "partition=[{}], ", columns.join(", "))?;
                }
                let order: Vec<String> = order_by.iter().map(|order| order_text(order, input)).collect();
                write!(out, "order=[{}], ", order.join(", "))?;
                if *offset > 0 {
                    write!(out, "offset={offset}, ")?;
                }
                write!(out, "limit={limit}")?;
                if *row_number { write!(out, ", row_number") } else { Ok(()) }
            }
        }
    }
}

fn aggregate_text(aggregate: &Aggregate, input: &Schema, output: &Schema) -> String {
    let mut parts = Vec::new();
    if let Some((time, window)) = &aggregate.window {
        parts.push(format!("{window} of {}, slice={}", input.field(*time).name(), Micros(window.slice_us())));
    }
    let group = aggregate.group.iter().enumerate().map(|(i, column)| match column {
        GroupColumn::Key(key) => {
            let (text, name) = (expr_text(key, input), output.field(i).name());
            if text == *name { text } else { format!("{text} AS {name}") }
        }
        GroupColumn::WindowStart => "window_start".into(),
        GroupColumn::WindowEnd => "window_end".into(),
    });
    parts.push(format!("group=[{}]", group.collect::<Vec<_>>().join(", ")));
    let calls: Vec<String> = aggregate.calls.iter().map(|call| call_text(call, input)).collect();
    parts.push(format!("calls=[{}]", calls.join(", ")));
    parts.join(", ")
}

pub fn call_text(call: &Call, input: &Schema) -> String {
    let name = match &call.function {
        Function::Count => "count",
        Function::Sum => "sum",
        Function::Min => "min",
        Function::Max => "max",
        Function::Avg => "avg",
        Function::ApproxDistinct => "approx_distinct",
        Function::DataFusion(function) => function.fun().name(),
    };
    let args: Vec<String> = call.args.iter().map(|arg| expr_text(arg, input)).collect();
    let args = if args.is_empty() { "*".to_string() } else { args.join(", ") };
    let distinct = if call.distinct { "DISTINCT " } else { "" };
    let mut text = format!("{name}({distinct}{args})");
    if let Some(filter) = &call.filter {
        let _ = write!(text, " FILTER ({})", expr_text(filter, input));
    }
    text
}

fn order_text(order: &OrderBy, input: &Schema) -> String {
    let name = input.field(order.column).name();
    let direction = if order.descending { " DESC" } else { "" };
    // Postgres puts NULLs where they are largest.
    match (order.nulls_first, order.descending) {
        (true, false) => format!("{name} NULLS FIRST"),
        (false, true) => format!("{name} DESC NULLS LAST"),
        _ => format!("{name}{direction}"),
    }
}

fn names(schema: &Schema) -> String {
    schema.fields().iter().map(|field| field.name().as_str()).collect::<Vec<_>>().join(", ")
}

/// An expression with its columns by name, as the input calls them, and literals as SQL has them.
pub fn expr_text(expr: &Arc<dyn PhysicalExpr>, input: &Schema) -> String {
    let named = |literals: bool| {
        let named = Arc::clone(expr).transform_up(|expr| {
            let name = match (expr.downcast_ref::<Column>(), expr.downcast_ref::<Literal>()) {
                (Some(column), _) => input.fields().get(column.index()).map(|field| field.name().clone()),
                (_, Some(literal)) if literals => quoted(literal.value()),
                _ => None,
            };
            Ok(match name {
                Some(name) => Transformed::yes(Arc::new(Column::new(&format!("\u{1}{name}\u{2}"), 0)) as _),
                None => Transformed::no(expr),
            })
        });
        named.map(|named| named.data.to_string())
    };
    // Some expressions, such as a long IN list, do not let their literals be replaced.
    let text = named(true).or_else(|_| named(false)).unwrap_or_else(|_| expr.to_string());
    // DataFusion puts the index behind the name: `a@0`.
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some((before, after)) = rest.split_once('\u{1}') {
        plain.push_str(before);
        let (name, after) = after.split_once('\u{2}').unwrap_or((after, ""));
        plain.push_str(name);
        rest = after.strip_prefix("@0").unwrap_or(after);
    }
    plain.push_str(rest);
    plain
}

/// A literal that SQL puts in quotes.
fn quoted(value: &ScalarValue) -> Option<String> {
    if value.is_null() || value.data_type().is_numeric() || value.data_type() == DataType::Boolean {
        return None;
    }
    match value.cast_to(&DataType::Utf8) {
        Ok(ScalarValue::Utf8(Some(text))) => Some(format!("'{}'", text.replace('\'', "''"))),
        _ => None,
    }
}
