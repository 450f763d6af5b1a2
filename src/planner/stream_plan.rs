//! What the executor is told to do: plain data in execution order. `EXPLAIN` prints exactly this.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{DataType, FieldRef, SchemaRef};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;

pub use crate::catalog::Oid;

/// Index of a node in [`StreamPlan::nodes`].
pub type NodeId = usize;

/// The dataflow of one view. Nodes stand in execution order: every input of a node comes before it, the last node is
/// the view's output.
#[derive(Debug, Clone)]
pub struct StreamPlan {
    pub nodes: Vec<Node>,
    /// A bound on the windows kept, in microseconds of event time behind the watermark (`WITH (retention = ...)`).
    pub retention_us: Option<i64>,
    pub emit: Emit,
    pub store: StoreChoice,
    /// The views, by OID and name, whose aggregations this plan reads in the place of their rows.
    pub over: Vec<(Oid, String)>,
}

/// Whether an aggregation over a source may read a store that is there (`WITH (store = ...)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreChoice {
    /// It reads one that holds what it needs, and makes its own else. One that has to be worked out from finer keys it reads
    /// only where nobody waits for its changes tick by tick.
    Auto,
    Own,
    /// It reads one, or is refused.
    Shared,
}

/// When a window view shows a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Emit {
    /// Open windows are shown with their value so far, and corrected.
    OnUpdate,
    /// A window is shown once, when it is final.
    OnWindowClose,
}

#[derive(Debug, Clone)]
pub struct Node {
    pub op: Op,
    pub inputs: Vec<NodeId>,
    /// The columns this node puts out.
    pub schema: SchemaRef,
    /// True if this node's output never takes a row back.
    pub append_only: bool,
}

#[derive(Debug, Clone)]
pub enum Op {
    /// Rows of a source, a table or a materialized view: the columns at `projection` of the object's schema.
    Scan {
        object: Oid,
        name: String,
        kind: ScanKind,
        projection: Vec<usize>,
    },
    /// Keeps the rows for which the predicate is true (not NULL).
    Filter {
        predicate: Arc<dyn PhysicalExpr>,
    },
    /// Keeps each row while all bounds are true by the clock: rows come and go as time passes.
    TemporalFilter {
        clock: Clock,
        bounds: Vec<TimeBound>,
    },
    /// One output column per expression.
    Project {
        exprs: Vec<Arc<dyn PhysicalExpr>>,
    },
    /// Copies each row into every window that covers it, adding `window_start` and `window_end` as the last two
    /// columns. Used only where the aggregation above cannot be kept as slices.
    AssignWindows {
        time_column: usize,
        window: Window,
    },
    /// Groups, by window if there is one. Output: the `group` columns in order, then one column per call.
    Aggregate(Aggregate),
    /// Groups by session. Output: as of an [`Op::Aggregate`].
    Sessions(Sessions),
    UnionAll,
    /// Keeps rows `offset + 1 ..= offset + limit` of each partition in the given order; ties are broken by the whole row.
    /// With `row_number`, a last column (Int64 or UInt64 by the schema) gives the row's position, from 1.
    TopN {
        partition_by: Vec<usize>,
        order_by: Vec<OrderBy>,
        offset: u64,
        limit: u64,
        row_number: bool,
    },
    /// Passes on what has changed at most once in each interval of the tick's clock, which are counted from the epoch. Stands
    /// at the top of a plan alone.
    EmitEvery {
        interval_us: i64,
    },
}

/// What moves a temporal filter. It never goes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Clock {
    /// `now()`: the clock of the tick.
    Now,
    /// `watermark('name')` of a source, table or view. Before there is one, no bound is true.
    Watermark { object: Oid, name: String },
}

/// `time <comparison> moment`, where the moment follows a clock.
#[derive(Debug, Clone)]
pub struct TimeBound {
    /// Over the input's columns: Timestamp or Date32. NULL is never true.
    pub time: Arc<dyn PhysicalExpr>,
    pub comparison: Comparison,
    pub moment: Moment,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// What these steps make of a clock, first to last, in microseconds since the epoch. It never goes back if the clock does not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Moment(pub Vec<MomentStep>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MomentStep {
    Add {
        us: i64,
    },
    /// Down to a multiple of `width_us` past `phase_us`.
    Floor {
        width_us: i64,
        phase_us: i64,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScanKind {
    Source,
    Table,
    MaterializedView,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OrderBy {
    pub column: usize,
    pub descending: bool,
    pub nulls_first: bool,
}

/// A family of half-open windows `[start, end)`, counted from the epoch; no two end at the same moment. All microseconds.
///
/// HOP: `end = start + size`, `start = offset (mod slide)`. TUMBLE is `slide == size`. CUMULATE: `start = offset (mod size)`
/// and `end` is one of `start + slide, start + 2 slide, ..., start + size`; the slide divides the size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Window {
    pub size_us: i64,
    pub slide_us: i64,
    pub offset_us: i64,
    /// CUMULATE.
    pub cumulates: bool,
}

#[derive(Debug, Clone)]
pub struct Aggregate {
    /// Group columns in the order of the output.
    pub group: Vec<GroupColumn>,
    /// With windows: the time column of the input (Timestamp(us) with or without zone, or Date32) and the family. The time
    /// is never an expression; the planner projects first.
    pub window: Option<(usize, Window)>,
    pub calls: Vec<Call>,
}

/// An aggregation by session: the keys of its group say whose sessions they are.
#[derive(Debug, Clone)]
pub struct Sessions {
    /// Has no `window`; its group has a window's bound.
    pub aggregate: Aggregate,
    /// The time column of the input, as in [`Aggregate::window`].
    pub time: usize,
    pub session: Session,
}

/// What makes one session of a key's rows: a row at or after the end of the session before it begins another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Session {
    /// Above zero.
    pub gap_us: i64,
    /// No session is longer; at least the gap.
    pub max_us: Option<i64>,
}

#[derive(Debug, Clone)]
pub enum GroupColumn {
    Key(Arc<dyn PhysicalExpr>),
    WindowStart,
    WindowEnd,
}

/// One aggregate call over the input's columns.
#[derive(Debug, Clone)]
pub struct Call {
    pub function: Function,
    pub args: Vec<Arc<dyn PhysicalExpr>>,
    pub filter: Option<Arc<dyn PhysicalExpr>>,
    pub distinct: bool,
    /// Name and type of the output column.
    pub output: FieldRef,
}

/// Functions whose states are ours, and the rest that DataFusion merges from partial states.
#[derive(Debug, Clone)]
pub enum Function {
    /// `count(*)` has no arguments; `count(x)` counts rows where x is not NULL.
    Count,
    /// Exact for integers and decimals; the argument has been cast to the output's kind (Int64, Float64, Decimal128).
    Sum,
    Min,
    Max,
    /// Output Float64 or Decimal128, of a Float64 or Decimal128 argument.
    Avg,
    /// HyperLogLog over one argument; output Int64 or UInt64 by `output`.
    ApproxDistinct,
    /// Any other aggregate function DataFusion can merge from partial state. It carries its own arguments, DISTINCT and
    /// ORDER BY; `Call::args` repeats the argument expressions for evaluation, `Call::filter` stays ours.
    DataFusion(Arc<AggregateFunctionExpr>),
}

/// No window, slide or gap of a session is longer: ten thousand years of 365.25 days.
pub const LONGEST_US: i64 = 3_652_500 * 86_400_000_000;

/// Whether a moment stands in windows, of whatever length: one so far away, some 272 000 years, that a window over it could end
/// outside the range of a timestamp stands in none.
#[inline]
pub fn stands_in_windows(time_us: i64) -> bool {
    (i64::MIN + 2 * LONGEST_US..=i64::MAX - 2 * LONGEST_US).contains(&time_us)
}

impl Window {
    /// Slices of this width, aligned to `offset_us`, tile every window of the family.
    pub fn slice_us(&self) -> i64 {
        let (mut a, mut b) = (self.size_us, self.slide_us);
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    }

    /// HOP, or TUMBLE.
    pub fn hop(size_us: i64, slide_us: i64, offset_us: i64) -> Window {
        Window { size_us, slide_us, offset_us, cumulates: false }
    }

    /// Where the window that ends at `end_us` begins. Meaningful for ends of the family.
    pub fn start_of(&self, end_us: i64) -> i64 {
        if !self.cumulates {
            return end_us.saturating_sub(self.size_us);
        }
        let last = i128::from(end_us) - 1;
        let start = last - (last - i128::from(self.offset_us)).rem_euclid(i128::from(self.size_us));
        start.max(i128::from(i64::MIN)) as i64
    }

    /// The ends of the windows that contain `time_us`, oldest first. There are none for a moment too far away
    /// ([`stands_in_windows`]) nor between windows, where the slide is longer than the size.
    pub fn ends(&self, time_us: i64) -> impl Iterator<Item = i64> + use<> {
        let Window { size_us, slide_us, offset_us, cumulates } = *self;
        let (time, slide, size) = (i128::from(time_us), i128::from(slide_us), i128::from(size_us));
        let past = |width: i128| (time - i128::from(offset_us)).rem_euclid(width);
        // The first end past the time, and where the last lies.
        let (first, last) = if cumulates {
            (time - past(slide) + slide, time - past(size) + size)
        } else {
            let last = time - past(slide) + size;
            (last - (last - time - 1).div_euclid(slide) * slide, last)
        };
        let count = if last > time && stands_in_windows(time_us) { (last - first) / slide + 1 } else { 0 };
        (0..count).map(move |n| (first + n * slide) as i64)
    }

    /// The most windows that one moment can be in.
    pub fn windows_per_row(&self) -> i64 {
        (self.size_us / self.slide_us + i64::from(self.size_us % self.slide_us != 0)).max(1)
    }
}

impl Session {
    /// `window_end` of rows from `first_us` to `last_us`.
    pub fn end_us(&self, first_us: i64, last_us: i64) -> i64 {
        let end_us = last_us.saturating_add(self.gap_us);
        self.max_us.map_or(end_us, |max_us| end_us.min(first_us.saturating_add(max_us)))
    }

    /// Whether a session of a row at this time would end within the range of a timestamp. Rows that have none are in no
    /// session.
    pub fn takes(&self, time_us: i64) -> bool {
        let end_us = time_us.checked_add(self.gap_us.max(self.max_us.unwrap_or(0)));
        stands_in_windows(time_us) && end_us.is_some_and(|end_us| end_us < i64::MAX)
    }
}

impl StreamPlan {
    pub fn output(&self) -> &Node {
        self.nodes.last().expect("a plan has at least a scan")
    }

    /// The interval of an EMIT EVERY view.
    pub fn every_us(&self) -> Option<i64> {
        match self.output().op {
            Op::EmitEvery { interval_us } => Some(interval_us),
            _ => None,
        }
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.cumulates {
            write!(f, "CUMULATE(step={}, size={}", Micros(self.slide_us), Micros(self.size_us))?;
        } else if self.size_us == self.slide_us {
            write!(f, "TUMBLE(size={}", Micros(self.size_us))?;
        } else {
            write!(f, "HOP(slide={}, size={}", Micros(self.slide_us), Micros(self.size_us))?;
        }
        if self.offset_us != 0 {
            write!(f, ", offset={}", Micros(self.offset_us))?;
        }
        f.write_str(")")
    }
}

impl Moment {
    /// At this reading of the clock.
    pub fn at_us(&self, clock_us: i64) -> i64 {
        self.0.iter().fold(clock_us, |us, step| match *step {
            MomentStep::Add { us: by } => us.saturating_add(by),
            MomentStep::Floor { width_us, phase_us } => floor_us(us, width_us, phase_us),
        })
    }

    /// The first reading of the clock at which the moment is at or after `us`. Ends of time stand for never and always.
    pub fn reaches_us(&self, us: i64) -> i64 {
        self.0.iter().rev().fold(us, |us, step| match *step {
            _ if us == i64::MIN || us == i64::MAX => us,
            MomentStep::Add { us: by } => us.saturating_sub(by),
            MomentStep::Floor { width_us, phase_us } => {
                let floor_us = floor_us(us, width_us, phase_us);
                if floor_us == us { us } else { floor_us.saturating_add(width_us) }
            }
        })
    }
}

fn floor_us(us: i64, width_us: i64, phase_us: i64) -> i64 {
    let past = (i128::from(us) - i128::from(phase_us)).rem_euclid(i128::from(width_us));
    // Below one width, so it fits.
    us.saturating_sub(past as i64)
}

impl Comparison {
    pub fn swapped(self) -> Comparison {
        match self {
            Comparison::Less => Comparison::Greater,
            Comparison::LessOrEqual => Comparison::GreaterOrEqual,
            Comparison::Greater => Comparison::Less,
            Comparison::GreaterOrEqual => Comparison::LessOrEqual,
        }
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Comparison::Less => "<",
            Comparison::LessOrEqual => "<=",
            Comparison::Greater => ">",
            Comparison::GreaterOrEqual => ">=",
        })
    }
}

impl Moment {
    /// The moment in words, of a clock called `name`.
    pub fn text(&self, clock: &Clock) -> String {
        let clock = match clock {
            Clock::Now => "now()".to_string(),
            Clock::Watermark { name, .. } => format!("watermark('{name}')"),
        };
        self.0.iter().fold(clock, |text, step| match *step {
            MomentStep::Add { us } if us < 0 => format!("{text} - {}", Micros(us.saturating_neg())),
            MomentStep::Add { us } => format!("{text} + {}", Micros(us)),
            MomentStep::Floor { width_us, .. } => format!("floor({text}, {})", Micros(width_us)),
        })
    }
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SESSION(gap={}", Micros(self.gap_us))?;
        if let Some(max_us) = self.max_us {
            write!(f, ", max={}", Micros(max_us))?;
        }
        f.write_str(")")
    }
}

/// A duration in the largest unit that divides it, for people.
pub struct Micros(pub i64);

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(i64, &str); 5] =
            [(86_400_000_000, "d"), (3_600_000_000, "h"), (60_000_000, "m"), (1_000_000, "s"), (1_000, "ms")];
        for (unit, name) in UNITS {
            if self.0 != 0 && self.0 % unit == 0 {
                return write!(f, "{}{name}", self.0 / unit);
            }
        }
        write!(f, "{}us", self.0)
    }
}

/// The type that a group column of a window carries: that of the time column, DATE having become a timestamp.
pub fn window_type(time: &DataType) -> DataType {
    match time {
        DataType::Timestamp(_, zone) => DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, zone.clone()),
        _ => DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, None),
    }
}
