//! Whether a feed's view can be read from another feed's store, and how (SEMANTICS 3.2).
//!
//! A store tells of a row its slice and its keys, and of each group its states. So a view can be read from it if it has the
//! source and the time, if the windows are made of whole slices, if the rows that the store leaves out are left out by the view
//! too, and if all else that the view asks (keys, further filters, FILTER of its calls) depends on the store's keys alone. Each
//! call must be there, in any form with the same states: `avg` is read from those of `sum`. `count(*)` needs no call: a store
//! knows the rows of each of its groups.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::utils::split_conjunction;

use super::flow::Feed;
use super::regroup::{Held, Origin, Regrouping};
use super::slice_store::{Grid, StoreLayout};
use super::window_view::{Group, WindowView};

type Expr = Arc<dyn PhysicalExpr>;

/// How a view is read from a store that holds what it needs.
#[derive(Debug, Clone)]
pub enum Derived {
    /// The store's groups are the view's.
    Same(WindowView),
    /// They are made of the store's at each read.
    Regrouped(Arc<Regrouping>),
}

/// What a store lacks. Expressions are over the source's columns.
#[derive(Debug, Clone)]
pub enum Misfit {
    /// Nothing in common: another source, another time, or windows on one side only.
    Apart,
    /// The store's grid cannot make up the view's windows.
    Grid(Grid),
    /// The store holds no rows but those for which this is true.
    LeavesOut(Expr),
    /// The view's filter looks at more than the store's keys.
    Filter(Expr),
    /// A key that the store's keys do not tell.
    Key(Expr),
    /// The store does not hold this call, by its index.
    Call(usize),
}

impl Feed {
    /// How this feed's view is read from the store of `store`; the first thing that is in the way if it cannot be.
    pub fn derived_from(&self, store: &Feed) -> Result<Derived, Misfit> {
        if self.source != store.source || self.time != store.time {
            return Err(Misfit::Apart);
        }
        let grid = match (self.layout.grid, store.layout.grid) {
            (None, None) => None,
            (Some(mine), Some(theirs)) => {
                if mine.width_us % theirs.width_us != 0 || mine.phase_us.rem_euclid(theirs.width_us) != theirs.phase_us
                {
                    return Err(Misfit::Grid(theirs));
                }
                Some(theirs)
            }
            _ => return Err(Misfit::Apart),
        };
        let (mine, theirs) = (conjuncts(&self.filters), conjuncts(&store.filters));
        if let Some(missing) = theirs.iter().find(|filter| !mine.contains(filter)) {
            return Err(Misfit::LeavesOut(missing.clone()));
        }
        let over_keys = |expr: &Expr| over_keys(expr, store);
        let mut filters = Vec::new();
        for filter in mine.iter().filter(|filter| !theirs.contains(filter)) {
            filters.push(over_keys(filter).ok_or_else(|| Misfit::Filter(filter.clone()))?);
        }
        let keys: Vec<Expr> = self
            .keys
            .iter()
            .map(|key| over_keys(key).ok_or_else(|| Misfit::Key(key.clone())))
            .collect::<Result<_, _>>()?;
        let measures: Vec<Origin> = (0..self.args.len())
            .map(|call| self.origin(call, store).ok_or(Misfit::Call(call)))
            .collect::<Result<_, _>>()?;
        if let (Some(view), true) = (self.same_groups(&keys, &measures, store), filters.is_empty()) {
            return Ok(Derived::Same(view));
        }
        let layout = StoreLayout { keys: self.layout.keys.clone(), grid, measures: self.layout.measures.clone() };
        Ok(Derived::Regrouped(Arc::new(Regrouping {
            fine: store.layout.clone(),
            filters,
            keys,
            measures,
            layout: Arc::new(layout),
        })))
    }

    /// The view over the store's own groups, if these keys (over the store's) are all of them and the calls are shown as the
    /// store's are.
    fn same_groups(&self, keys: &[Expr], measures: &[Origin], store: &Feed) -> Option<WindowView> {
        let keys: Vec<usize> =
            keys.iter().map(|key| key.downcast_ref::<Column>().map(Column::index)).collect::<Option<_>>()?;
        if !(0..store.keys.len()).all(|key| keys.contains(&key)) {
            return None;
        }
        let measures = measures
            .iter()
            .enumerate()
            .map(|(mine, origin)| match origin {
                Origin { held: Held::Measure(theirs), when: None } => {
                    self.layout.measures[mine].is_shown_as(&store.layout.measures[*theirs]).then_some(*theirs)
                }
                _ => None,
            })
            .collect::<Option<_>>()?;
        let group = self
            .view
            .group
            .iter()
            .map(|group| match group {
                Group::Key(key) => Group::Key(keys[*key]),
                bound => *bound,
            })
            .collect();
        Some(WindowView { group, measures, ..self.view.clone() })
    }

    /// Where the states of a call come from.
    fn origin(&self, call: usize, store: &Feed) -> Option<Origin> {
        let measure = &self.layout.measures[call];
        let mine = conjuncts(self.call_filters[call].as_slice());
        let among = |held: Held, theirs: &[Expr]| {
            let has_all = theirs.iter().all(|filter| mine.contains(filter));
            let rest = mine.iter().filter(|filter| !theirs.contains(filter));
            let rest: Vec<Expr> = rest.map(|filter| over_keys(filter, store)).collect::<Option<_>>()?;
            let when = datafusion::physical_expr::utils::conjunction_opt(rest);
            has_all.then_some(Origin { held, when })
        };
        let held = (0..store.args.len())
            .filter(|&theirs| {
                measure.has_states_of(&store.layout.measures[theirs]) && self.args[call] == store.args[theirs]
            })
            .filter_map(|theirs| among(Held::Measure(theirs), &conjuncts(store.call_filters[theirs].as_slice())));
        // A call that is there as it stands before one that leaves out keys.
        let held = held.min_by_key(|origin| origin.when.is_some());
        held.or_else(|| if measure.counts_rows() { among(Held::Rows, &[]) } else { None })
    }
}

/// What must be true, one condition each.
fn conjuncts(filters: &[Expr]) -> Vec<Expr> {
    filters.iter().flat_map(|filter| split_conjunction(filter)).cloned().collect()
}

/// An expression over the source as one over the store's keys, if they tell its value.
fn over_keys(expr: &Expr, store: &Feed) -> Option<Expr> {
    let mut is_told = true;
    let replaced = expr.clone().transform_down(|expr| {
        if let Some(key) = store.keys.iter().position(|key| key.eq(&expr)) {
            let column: Expr = Arc::new(Column::new(store.layout.keys[key].name(), key));
            return Ok(Transformed::new(column, true, TreeNodeRecursion::Jump));
        }
        is_told &= !expr.is::<Column>();
        Ok(Transformed::no(expr))
    });
    replaced.ok().filter(|_| is_told).map(|replaced| replaced.data)
}
