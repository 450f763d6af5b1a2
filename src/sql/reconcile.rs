//! RECONCILE.

use super::parser::Cursor;
use super::{Reconcile, SqlError, Statement};

impl Cursor<'_> {
    /// `RECONCILE MATERIALIZED VIEW name [FROM moment] [TO moment] [WITH (corrections = true)] [REPAIR]`.
    pub(super) fn reconcile(&mut self) -> Result<Statement, SqlError> {
        self.expect("RECONCILE")?;
        for other in ["SOURCE", "TABLE", "VIEW"] {
            if self.at(other) {
                let hint =
                    "RECONCILE takes a MATERIALIZED VIEW: it compares the rows that the engine keeps with its query";
                return Err(self.unsupported(format!("RECONCILE {other}"), hint));
            }
        }
        self.expect("MATERIALIZED VIEW")?;
        let mut reconcile = Reconcile { name: self.name()?, from: None, to: None, repair: false, corrections: false };
        if self.take("FROM") {
            reconcile.from = Some(self.expr()?);
        }
        if self.take("TO") {
            reconcile.to = Some(self.expr()?);
        }
        let options_at = self.position();
        if self.take("WITH") {
            self.list(|cursor| {
                let at = cursor.position();
                let option = cursor.label()?;
                match option.as_str() {
                    "corrections" => reconcile.corrections = cursor.option_value()?,
                    _ => {
                        let what = format!("option {} of RECONCILE", option.to_ascii_uppercase());
                        return Err(SqlError::unsupported(what, "the option is CORRECTIONS, of REPAIR").at(at));
                    }
                }
                Ok(())
            })?;
        }
        reconcile.repair = self.take("REPAIR");
        if reconcile.corrections && !reconcile.repair {
            let hint = "without REPAIR nothing is changed: leave the option out, or write REPAIR at the end";
            return Err(SqlError::unsupported("RECONCILE ... WITH (corrections) without REPAIR", hint).at(options_at));
        }
        Ok(Statement::Reconcile(Box::new(reconcile)))
    }
}
