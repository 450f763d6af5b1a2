//! The EMIT clause of a materialized view.

use sqlparser::tokenizer::Token;

use super::ddl::{interval_text, string_of};
use super::parser::Cursor;
use super::{EmitClause, SqlError, TICK_US, interval_us};

impl Cursor<'_> {
    /// Where the EMIT clause begins, counted from the next token. EMIT is no reserved word: `FROM t emit` is an alias.
    pub(super) fn emit_at(&self) -> Option<usize> {
        let tokens: Vec<&Token> = self.coming().collect();
        let (mut depth, mut found) = (0usize, None);
        for (i, token) in tokens.iter().enumerate() {
            match token {
                Token::LParen => depth += 1,
                Token::RParen => depth = depth.saturating_sub(1),
                token if depth == 0 && is(token, "EMIT") => {
                    let behind = |n: usize, words: &[&str]| {
                        tokens.get(i + n).is_some_and(|token| words.iter().any(|word| is(token, word)))
                    };
                    if (behind(1, &["ON"]) && behind(2, &["WINDOW", "UPDATE", "DELTA"]))
                        || behind(1, &["EVERY", "CHANGES", "AFTER", "FINAL", "IMMEDIATELY", "WITH"])
                    {
                        // Two clauses in a row are told from an alias by the first being whole.
                        found = found.filter(|&first: &usize| is_emit_clause(&tokens[first..i])).or(Some(i));
                    }
                }
                _ => {}
            }
        }
        found
    }

    pub(super) fn emit(&mut self) -> Result<EmitClause, SqlError> {
        let at = self.position();
        self.expect("EMIT")?;
        let clause = if self.take("ON WINDOW CLOSE") {
            EmitClause::OnWindowClose
        } else if self.take("ON UPDATE") {
            EmitClause::OnUpdate
        } else if self.take("EVERY") {
            self.emit_every()?
        } else {
            let form: Vec<String> = self.upcoming(2);
            return Err(SqlError::unsupported(
                format!("EMIT {}", form.join(" ")),
                "use EMIT ON WINDOW CLOSE, EMIT EVERY INTERVAL '10 seconds', or no EMIT clause for a view that is always \
                 current",
            )
            .at(at));
        };
        if ["EMIT ON", "EMIT EVERY", "EVERY", "ON WINDOW CLOSE", "ON UPDATE"].iter().any(|more| self.at(more)) {
            return Err(self.unsupported(
                "more than one way to EMIT",
                "choose ON WINDOW CLOSE, which shows a window once when it is final, or EVERY, which shows what there is at \
                 most once in an interval",
            ));
        }
        Ok(clause)
    }

    /// What follows EMIT EVERY: an interval, or its text alone.
    fn emit_every(&mut self) -> Result<EmitClause, SqlError> {
        let at = self.position();
        let expr = self.expr()?;
        let Some(text) = interval_text(&expr).or_else(|| string_of(&expr)) else {
            let hint = "write EMIT EVERY INTERVAL '10 seconds' or the like";
            return Err(SqlError::unsupported(format!("EMIT EVERY {expr}"), hint).at(at));
        };
        let interval_us = interval_us(&text).map_err(|error| error.at(at))?;
        if interval_us <= 0 {
            return Err(SqlError::value("the interval of EMIT EVERY must be longer than zero").at(at));
        }
        if interval_us < TICK_US {
            let hint = "leave EMIT EVERY out: a view changes at most once a tick, which is every 100 milliseconds";
            return Err(SqlError::value("the interval of EMIT EVERY is shorter than a tick").with_hint(hint).at(at));
        }
        Ok(EmitClause::Every { text, interval_us })
    }
}

/// A word that is not in quotes.
fn is(token: &Token, word: &str) -> bool {
    matches!(token, Token::Word(w) if w.quote_style.is_none() && w.value.eq_ignore_ascii_case(word))
}

/// Are these tokens an EMIT clause from its first word to its last?
fn is_emit_clause(tokens: &[&Token]) -> bool {
    let words = |words: &[&str]| tokens.len() == words.len() && tokens.iter().zip(words).all(|(t, word)| is(t, word));
    let every = tokens.len() > 2 && tokens.len() < 6 && is(tokens[1], "EVERY");
    every || words(&["EMIT", "ON", "WINDOW", "CLOSE"]) || words(&["EMIT", "ON", "UPDATE"])
}
