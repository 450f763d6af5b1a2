//! Rows that come from an aggregation, through filters and projections.

use std::sync::Arc;

use arrow::datatypes::{Field, IntervalMonthDayNano, Schema, SchemaRef};
use datafusion::common::ScalarValue;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{BinaryExpr, CastExpr, Column, Literal};
use datafusion::physical_expr::utils::{collect_columns, conjunction_opt, split_conjunction};

use super::calls::{Merging, without_round_trips};
use crate::planner::explain::{call_text, expr_text};
use crate::planner::stream_plan::{
    Aggregate, Call, Emit, GroupColumn, Node, NodeId, Oid, Op, ScanKind, StreamPlan, Window, window_type,
};

pub(super) type Expr = Arc<dyn PhysicalExpr>;

#[derive(Clone)]
pub(super) struct Grouped {
    /// What is aggregated: a scan, then filters and projections. The last one is the aggregation's input.
    base: Vec<Node>,
    aggregate: Aggregate,
    /// The aggregation's columns.
    schema: SchemaRef,
    /// All must be true; over `schema`.
    filters: Vec<Expr>,
    /// What comes out, over `schema`.
    columns: Vec<Expr>,
    pub emit: Emit,
    /// It shows what is final of a view that shows more.
    pub closes: bool,
    /// An aggregation above has been merged with the one below.
    pub is_merged: bool,
    /// The views whose plans are in this.
    pub over: Vec<(Oid, String)>,
}

/// What a column of an aggregation is.
enum Kind {
    Key(Expr),
    Start,
    End,
    Call(usize),
}

impl Grouped {
    /// A scan of a view whose plan is an aggregation under filters and projections.
    pub fn of_view(oid: Oid, name: &str, plan: &StreamPlan, projection: &[usize]) -> Option<Grouped> {
        let mut at = plan.nodes.len() - 1;
        let mut above = Vec::new();
        let aggregate = loop {
            let node = &plan.nodes[at];
            match &node.op {
                Op::Filter { .. } | Op::Project { .. } => above.push(node),
                Op::Aggregate(aggregate) => break aggregate,
                _ => return None,
            }
            at = *node.inputs.first()?;
        };
        let mut grouped = Grouped::of_aggregate(aggregate, &plan.nodes[at], plan)?;
        for node in above.into_iter().rev() {
            grouped = match &node.op {
                Op::Filter { predicate } => grouped.filtered(predicate)?,
                Op::Project { exprs } => grouped.projected(exprs)?,
                _ => return None,
            };
        }
        grouped.columns = projection.iter().map(|&i| grouped.columns.get(i).cloned()).collect::<Option<_>>()?;
        grouped.over = vec![(oid, name.to_string())];
        Some(grouped)
    }

    pub fn of_aggregate(aggregate: &Aggregate, node: &Node, plan: &StreamPlan) -> Option<Grouped> {
        let mut base = Vec::new();
        let mut at = *node.inputs.first()?;
        loop {
            let below = &plan.nodes[at];
            base.push(below.clone());
            match &below.op {
                Op::Scan { .. } => break,
                Op::Filter { .. } | Op::Project { .. } => at = *below.inputs.first()?,
                _ => return None,
            }
        }
        base.reverse();
        let schema = Arc::clone(&node.schema);
        let columns = (0..schema.fields().len()).map(|i| column(&schema, i)).collect();
        let emit = if aggregate.window.is_some() { plan.emit } else { Emit::OnUpdate };
        let aggregate = aggregate.clone();
        Some(Grouped {
            base,
            aggregate,
            schema,
            filters: vec![],
            columns,
            emit,
            closes: false,
            is_merged: false,
            over: vec![],
        })
    }

    /// What is final of it.
    pub fn closing(self) -> Grouped {
        Grouped { closes: self.emit == Emit::OnUpdate, emit: Emit::OnWindowClose, ..self }
    }

    pub fn is_over_view(&self) -> bool {
        !self.over.is_empty()
    }

    pub fn is_over_source(&self) -> bool {
        matches!(self.base.first().map(|node| &node.op), Some(Op::Scan { kind: ScanKind::Source, .. }))
    }

    pub fn filtered(&self, predicate: &Expr) -> Option<Grouped> {
        let predicate = substitute(predicate, &self.columns)?;
        let mut filtered = self.clone();
        filtered.filters.extend(split_conjunction(&predicate).into_iter().cloned());
        Some(filtered)
    }

    pub fn projected(&self, exprs: &[Expr]) -> Option<Grouped> {
        let columns = exprs.iter().map(|e| substitute(e, &self.columns)).collect::<Option<_>>()?;
        Some(Grouped { columns, ..self.clone() })
    }

    /// The aggregation `outer`, at `node`, over these rows; `None` where merging the two would not be equal.
    pub fn aggregated(&self, outer: &Aggregate, node: &Node, emit: Emit) -> Option<Grouped> {
        let (time, inner_window) = self.aggregate.window?;
        let (key_filters, bound_filters) = self.sorted_filters(outer.window.is_some())?;

        let mut group = Vec::with_capacity(outer.group.len());
        for wanted in &outer.group {
            group.push(match wanted {
                GroupColumn::WindowStart => GroupColumn::WindowStart,
                GroupColumn::WindowEnd => GroupColumn::WindowEnd,
                GroupColumn::Key(expr) => {
                    let expr = substitute(expr, &self.columns)?;
                    match self.kind_of(&expr) {
                        Some(Kind::Start) if outer.window.is_none() => GroupColumn::WindowStart,
                        Some(Kind::End) if outer.window.is_none() => GroupColumn::WindowEnd,
                        _ => GroupColumn::Key(self.over_base(&expr)?),
                    }
                }
            });
        }
        // Windows that cumulate share their starts.
        let names_window = |column: &GroupColumn| match column {
            GroupColumn::Key(_) => false,
            GroupColumn::WindowStart => !inner_window.cumulates,
            GroupColumn::WindowEnd => true,
        };
        let window = match outer.window {
            None if !group.iter().any(names_window) => return None,
            None => inner_window,
            Some((time, window)) => {
                let past_start_us = self.past_start_us(self.columns.get(time)?, inner_window)?;
                windows_agree(inner_window, past_start_us, window).then_some(window)?
            }
        };
        // Larger windows over what is shown when final are final later than it, and till then hold a part only.
        let emit = match (self.emit, emit) {
            (Emit::OnUpdate, emit) => emit,
            (Emit::OnWindowClose, Emit::OnUpdate) if outer.window.is_some() => return None,
            (Emit::OnWindowClose, _) => Emit::OnWindowClose,
        };

        let mut base = self.base.clone();
        if let Some(predicate) = conjunction_opt(key_filters) {
            let below = base.last()?;
            let (schema, append_only) = (Arc::clone(&below.schema), below.append_only);
            base.push(Node { op: Op::Filter { predicate }, inputs: vec![], schema, append_only });
        }
        let asked = group.len();
        let mut bounds = Vec::with_capacity(bound_filters.len());
        for filter in &bound_filters {
            bounds.push(self.over_bounds(filter, &mut group)?);
        }

        let base_schema = Arc::clone(&base.last()?.schema);
        let time_type = window_type(base_schema.field(time).data_type());
        let mut fields = Vec::with_capacity(group.len());
        for (i, column) in group.iter().enumerate() {
            fields.push(match column {
                GroupColumn::Key(expr) => {
                    Field::new(expr_text(expr, &base_schema), expr.data_type(&base_schema).ok()?, true)
                }
                GroupColumn::WindowStart if i < asked => node.schema.field(i).clone(),
                GroupColumn::WindowEnd if i < asked => node.schema.field(i).clone(),
                GroupColumn::WindowStart => Field::new("window_start", time_type.clone(), true),
                GroupColumn::WindowEnd => Field::new("window_end", time_type.clone(), true),
            });
        }
        let mut merging = Merging::new(self, group.len());
        let mut columns: Vec<Expr> = (0..asked).map(|i| column_named(fields[i].name(), i)).collect();
        for call in &outer.calls {
            columns.push(merging.call(call)?);
        }
        let calls: Vec<Call> = merging
            .calls
            .into_iter()
            .map(|call| {
                let name = call_text(&call, &base_schema);
                Call { output: Arc::new(call.output.as_ref().clone().with_name(name)), ..call }
            })
            .collect();
        fields.extend(calls.iter().map(|call| call.output.as_ref().clone()));
        let schema = Arc::new(Schema::new(fields));
        let columns: Vec<Expr> = columns.iter().map(|c| renamed(c, &schema)).collect::<Option<_>>()?;
        // A merged column of another type than the plan says would be a mistake of ours; the rows of the inner view are right.
        let fits =
            |(column, field): (&Expr, &Arc<Field>)| column.data_type(&schema).is_ok_and(|is| &is == field.data_type());
        if !columns.iter().zip(node.schema.fields()).all(fits) {
            return None;
        }
        let aggregate = Aggregate { group, window: Some((time, window)), calls };
        let over = self.over.clone();
        Some(Grouped {
            base,
            aggregate,
            schema,
            filters: bounds,
            columns,
            emit,
            closes: self.closes,
            is_merged: true,
            over,
        })
    }

    /// Writes the nodes; those that come last give `output`.
    pub fn write(mut self, output: &SchemaRef, nodes: &mut Vec<Node>) -> NodeId {
        self.forget_unused_calls();
        for (i, node) in self.base.into_iter().enumerate() {
            let inputs = if i == 0 { Vec::new() } else { vec![nodes.len() - 1] };
            nodes.push(Node { inputs, ..node });
        }
        let append_only = self.emit == Emit::OnWindowClose;
        let mut push = |op: Op, schema: SchemaRef| {
            let inputs = vec![nodes.len() - 1];
            nodes.push(Node { op, inputs, schema, append_only });
        };
        push(Op::Aggregate(self.aggregate), Arc::clone(&self.schema));
        if let Some(predicate) = conjunction_opt(self.filters) {
            push(Op::Filter { predicate }, Arc::clone(&self.schema));
        }
        let simpler: Result<Vec<Expr>, _> =
            self.columns.iter().map(|column| without_round_trips(column, &self.schema)).collect();
        push(Op::Project { exprs: simpler.unwrap_or(self.columns) }, Arc::clone(output));
        nodes.len() - 1
    }

    pub fn has_unused_calls(&self) -> bool {
        self.used_columns().len() < self.schema.fields().len()
    }

    /// The aggregation's columns that count: those of the group, and the calls that something looks at.
    fn used_columns(&self) -> Vec<usize> {
        let first = self.aggregate.group.len();
        let used: Vec<usize> =
            self.columns.iter().chain(&self.filters).flat_map(collect_columns).map(|c| c.index()).collect();
        (0..self.schema.fields().len()).filter(|i| *i < first || used.contains(i)).collect()
    }

    /// Leaves out calls that nothing looks at.
    fn forget_unused_calls(&mut self) {
        let first = self.aggregate.group.len();
        let kept = self.used_columns();
        let fields: Vec<Field> = kept.iter().map(|&i| self.schema.field(i).clone()).collect();
        let schema: SchemaRef = Arc::new(Schema::new(fields));
        let moved: Vec<Expr> = (0..self.schema.fields().len())
            .map(|i| column_named(self.schema.field(i).name(), kept.iter().position(|&k| k == i).unwrap_or(usize::MAX)))
            .collect();
        let over_kept = |exprs: &[Expr]| exprs.iter().map(|e| substitute(e, &moved)).collect::<Option<Vec<_>>>();
        if let (Some(columns), Some(filters)) = (over_kept(&self.columns), over_kept(&self.filters)) {
            let calls = std::mem::take(&mut self.aggregate.calls);
            let kept_calls = calls.into_iter().enumerate().filter(|(i, _)| kept.contains(&(first + i)));
            self.aggregate.calls = kept_calls.map(|(_, call)| call).collect();
            (self.columns, self.filters, self.schema) = (columns, filters, schema);
        }
    }

    fn kind(&self, output: usize) -> Option<Kind> {
        Some(match self.aggregate.group.get(output) {
            Some(GroupColumn::Key(key)) => Kind::Key(Arc::clone(key)),
            Some(GroupColumn::WindowStart) => Kind::Start,
            Some(GroupColumn::WindowEnd) => Kind::End,
            None => Kind::Call(output.checked_sub(self.aggregate.group.len())?),
        })
    }

    fn kind_of(&self, expr: &Expr) -> Option<Kind> {
        self.kind(expr.downcast_ref::<Column>()?.index())
    }

    /// The expression over the base, if it looks at keys alone.
    pub fn over_base(&self, expr: &Expr) -> Option<Expr> {
        let keys: Vec<Option<Expr>> = (0..self.schema.fields().len())
            .map(|i| match self.kind(i) {
                Some(Kind::Key(key)) => Some(key),
                _ => None,
            })
            .collect();
        substitute_known(expr, &keys)
    }

    /// A column of this's output over the aggregation's columns.
    pub fn over_groups(&self, expr: &Expr) -> Option<Expr> {
        substitute(expr, &self.columns)
    }

    /// The call that an expression over the aggregation's columns is.
    pub fn call_of(&self, expr: &Expr) -> Option<&Call> {
        match self.kind_of(expr)? {
            Kind::Call(call) => self.aggregate.calls.get(call),
            _ => None,
        }
    }

    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The filters on keys, over the base, and those on window bounds, over the aggregation's columns.
    fn sorted_filters(&self, has_own_windows: bool) -> Option<(Vec<Expr>, Vec<Expr>)> {
        let (mut keys, mut bounds) = (Vec::new(), Vec::new());
        for filter in &self.filters {
            let is_bound = |c: &Column| matches!(self.kind(c.index()), Some(Kind::Start | Kind::End));
            if let Some(filter) = self.over_base(filter) {
                keys.push(filter);
            } else if !has_own_windows && collect_columns(filter).iter().all(is_bound) {
                bounds.push(Arc::clone(filter));
            } else {
                return None;
            }
        }
        Some((keys, bounds))
    }

    /// A filter on window bounds over the columns of an aggregation grouped by `group`, which gets the bounds it lacks.
    fn over_bounds(&self, filter: &Expr, group: &mut Vec<GroupColumn>) -> Option<Expr> {
        let mut at = vec![None; self.schema.fields().len()];
        for used in collect_columns(filter) {
            let wanted = match self.kind(used.index())? {
                Kind::Start => GroupColumn::WindowStart,
                Kind::End => GroupColumn::WindowEnd,
                _ => return None,
            };
            let alike = |c: &GroupColumn| std::mem::discriminant(c) == std::mem::discriminant(&wanted);
            let found = group.iter().position(alike).unwrap_or_else(|| {
                group.push(wanted.clone());
                group.len() - 1
            });
            at[used.index()] = Some(column_named(used.name(), found));
        }
        substitute_known(filter, &at)
    }

    /// How far behind its window's start a time lies that is that start, or the end, or a fixed step from one of them.
    fn past_start_us(&self, expr: &Expr, window: Window) -> Option<i64> {
        match self.kind_of(expr) {
            Some(Kind::Start) => return Some(0),
            Some(Kind::End) => return Some(window.size_us),
            _ => {}
        }
        if let Some(cast) = expr.downcast_ref::<CastExpr>() {
            let is = cast.expr().data_type(&self.schema).ok()?;
            return if &is == cast.cast_type() { self.past_start_us(cast.expr(), window) } else { None };
        }
        let binary = expr.downcast_ref::<BinaryExpr>()?;
        let step_us = micros(binary.right().downcast_ref::<Literal>()?.value())?;
        let from_us = self.past_start_us(binary.left(), window)?;
        match binary.op() {
            Operator::Plus => from_us.checked_add(step_us),
            Operator::Minus => from_us.checked_sub(step_us),
            _ => None,
        }
    }
}

/// Does a time `past_start_us` behind the start of each inner window lie in the outer windows that cover that inner window whole,
/// and in no other? The inner windows tile the outer ones, and the bounds of the outer ones are bounds of inner ones.
fn windows_agree(inner: Window, past_start_us: i64, outer: Window) -> bool {
    let width = inner.size_us;
    let tiles =
        !inner.cumulates && inner.slide_us == width && outer.size_us % width == 0 && outer.slide_us % width == 0;
    let phase = |window: Window| i128::from(window.offset_us).rem_euclid(i128::from(width));
    tiles && phase(inner) == phase(outer) && (0..width).contains(&past_start_us)
}

fn micros(value: &ScalarValue) -> Option<i64> {
    match value {
        ScalarValue::IntervalMonthDayNano(Some(IntervalMonthDayNano { months: 0, days, nanoseconds }))
            if nanoseconds % 1000 == 0 =>
        {
            i64::from(*days).checked_mul(86_400_000_000)?.checked_add(nanoseconds / 1000)
        }
        ScalarValue::DurationMicrosecond(Some(us)) => Some(*us),
        _ => None,
    }
}

pub(super) fn column_named(name: &str, i: usize) -> Expr {
    Arc::new(Column::new(name, i))
}

fn column(schema: &Schema, i: usize) -> Expr {
    column_named(schema.field(i).name(), i)
}

/// The expression with its columns called as the schema calls them.
fn renamed(expr: &Expr, schema: &Schema) -> Option<Expr> {
    let all: Vec<Expr> = (0..schema.fields().len()).map(|i| column(schema, i)).collect();
    substitute(expr, &all)
}

fn substitute(expr: &Expr, with: &[Expr]) -> Option<Expr> {
    let with: Vec<Option<Expr>> = with.iter().cloned().map(Some).collect();
    substitute_known(expr, &with)
}

/// The expression with column `i` replaced by `with[i]`, if that is there for every column.
fn substitute_known(expr: &Expr, with: &[Option<Expr>]) -> Option<Expr> {
    let mut all_known = true;
    let replaced = Arc::clone(expr).transform_up(|expr| {
        let Some(column) = expr.downcast_ref::<Column>() else { return Ok(Transformed::no(expr)) };
        match with.get(column.index()).and_then(Option::as_ref) {
            Some(with) => Ok(Transformed::yes(Arc::clone(with))),
            None => {
                all_known = false;
                Ok(Transformed::no(expr))
            }
        }
    });
    replaced.ok().filter(|_| all_known).map(|replaced| replaced.data)
}
