//! RECONCILE.

use sqlparser::tokenizer::Token;

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
            // So that `INTERVAL '1 day' TO ...` is not read as an interval of fields.
            let rest = self.top_level("TO").map(|at| self.split_off(at));
            reconcile.from = Some(self.expr()?);
            if let Some(rest) = rest {
                if !self.at_end() {
                    return Err(self.unexpected());
                }
                *self = rest;
            }
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

    /// How many tokens ahead a word stands outside of brackets.
    fn top_level(&self, wanted: &str) -> Option<usize> {
        let mut depth = 0;
        self.coming().position(|token| {
            match token {
                Token::LParen => depth += 1,
                Token::RParen => depth -= 1,
                _ => {}
            }
            let is_wanted = matches!(token, Token::Word(word)
                if word.quote_style.is_none() && word.value.eq_ignore_ascii_case(wanted));
            depth == 0 && is_wanted
        })
    }
}
