//! What has changed in a bag of rows since it was last saved.

use arrow::datatypes::SchemaRef;

use super::rows::consolidate;
use super::tail::concat;
use super::{Delta, ExecError};

/// Deltas since the last save, added up when there are many. Where they come to more than the rows themselves, the next save
/// is to give those instead, and nothing is remembered until then.
pub struct Unsaved {
    deltas: Vec<Delta>,
    rows: usize,
    /// Added up when there are more than this.
    most: usize,
    needs_whole: bool,
    /// Rows are only ever added: nothing is added up.
    append_only: bool,
}

/// Fewer rows are not worth a look.
const FEW: usize = 1024;

impl Unsaved {
    /// `needs_whole`: nothing has been saved before.
    pub fn new(needs_whole: bool, append_only: bool) -> Self {
        Unsaved { deltas: Vec::new(), rows: 0, most: 2 * FEW, needs_whole, append_only }
    }

    /// Notes a change, after which `held` rows are there.
    pub fn add(&mut self, delta: &Delta, held: usize) -> Result<(), ExecError> {
        if self.needs_whole || delta.is_empty() {
            return Ok(());
        }
        self.deltas.push(delta.clone());
        self.rows += delta.num_rows();
        if self.append_only || self.rows <= self.most.max(2 * held) {
            return Ok(());
        }
        let net = consolidate(&concat(&delta.rows.schema(), &self.deltas)?)?;
        self.rows = net.num_rows();
        self.most = (2 * self.rows).max(2 * FEW);
        self.deltas = vec![net];
        if self.rows > held.max(FEW) {
            self.needs_whole = true;
            self.deltas = Vec::new();
        }
        Ok(())
    }

    /// The net change since the last call; `None` if all rows are to be given. Until [`Unsaved::given`] the next call asks for all.
    pub fn take(&mut self, whole: bool, schema: &SchemaRef) -> Result<Option<Delta>, ExecError> {
        let before = std::mem::replace(self, Unsaved::new(true, self.append_only));
        if whole || before.needs_whole {
            return Ok(None);
        }
        let all = concat(schema, &before.deltas)?;
        Ok(Some(if self.append_only { all } else { consolidate(&all)? }))
    }

    /// What was taken counts as saved.
    pub fn given(&mut self) {
        self.needs_whole = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::text::{parse, parse_schema, print};

    /// Ticks of `(rows, how many are held then)`, and what is to be saved after them.
    fn check(append_only: bool, ticks: &[(&str, usize)]) -> Option<String> {
        let mut unsaved = Unsaved::new(false, append_only);
        for (rows, held) in ticks {
            unsaved.add(&parse(&format!("i\n{}", rows.replace(", ", "\n"))), *held).unwrap();
        }
        unsaved.take(false, &parse_schema("i")).unwrap().map(|delta| print(&delta).replace('\n', ", "))
    }

    #[test]
    fn what_cancels_is_not_saved() {
        assert_eq!(check(false, &[("+ 1, + 2", 2), ("- 2, + 3", 2)]), Some("+ 1, + 3".into()));
        assert_eq!(check(true, &[("+ 1", 1), ("+ 1", 2)]), Some("+2 1".into()));
        assert_eq!(check(false, &[]), Some(String::new()));
    }

    #[test]
    fn more_change_than_there_are_rows_calls_for_all_of_them() {
        let many: String = (0..1500).map(|n| format!("+ {n}, ")).collect();
        let back = many.replace('+', "-");
        assert_eq!(check(false, &[(&many, 1500), (&back, 0)]), Some(String::new()), "it comes to nothing");
        let twice: String = (0..1500).map(|n| format!("- {n}, + {}, ", n + 9000)).collect();
        assert_eq!(
            check(false, &[(&twice, 1500)]).map(|all| all.lines().count()),
            Some(1),
            "no more than twice the rows"
        );
        assert_eq!(check(false, &[(&twice, 1400), ("+ 7", 1400)]), None);
        let mut unsaved = Unsaved::new(true, false);
        assert!(unsaved.take(false, &parse_schema("i")).unwrap().is_none(), "the first");
        assert!(unsaved.take(false, &parse_schema("i")).unwrap().is_none(), "it failed");
        unsaved.given();
        assert!(unsaved.take(false, &parse_schema("i")).unwrap().is_some());
        unsaved.given();
        assert!(unsaved.take(true, &parse_schema("i")).unwrap().is_none(), "asked for");
    }
}
