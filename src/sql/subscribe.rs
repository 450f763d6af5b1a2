//! SUBSCRIBE, by itself, in a cursor and in COPY.

use sqlparser::tokenizer::Token;

use super::parser::Cursor;
use super::{SqlError, Statement, Subscribe};

impl Cursor<'_> {
    /// `SUBSCRIBE [TO] name [WITH (SNAPSHOT [= on], PROGRESS [= on], COMMITTED [= on])] [AS OF tick]`.
    pub(super) fn subscribe(&mut self) -> Result<Subscribe, SqlError> {
        self.expect("SUBSCRIBE")?;
        self.take("TO");
        if self.at_symbol(&Token::LParen) || self.at("SELECT") {
            return Err(
                self.unsupported("SUBSCRIBE to a query", "make a materialized view of it, and subscribe to that")
            );
        }
        let mut subscribe =
            Subscribe { name: self.name()?, snapshot: true, progress: false, committed: false, as_of: None };
        for (words, hint) in [
            ("ENVELOPE", "keep the rows by their columns: diff says what comes and goes"),
            ("WITHIN", "the rows of one tick belong together and have no order"),
        ] {
            if self.at(words) {
                return Err(self.unsupported(format!("SUBSCRIBE ... {words}"), hint));
            }
        }
        if self.take("WITH") {
            self.list(|cursor| {
                let at = cursor.position();
                let option = cursor.label()?;
                let on = cursor.option_value()?;
                match option.as_str() {
                    "snapshot" => subscribe.snapshot = on,
                    "progress" => subscribe.progress = on,
                    "committed" => subscribe.committed = on,
                    _ => {
                        let what = format!("option {} of SUBSCRIBE", option.to_ascii_uppercase());
                        return Err(
                            SqlError::unsupported(what, "the options are SNAPSHOT, PROGRESS and COMMITTED").at(at)
                        );
                    }
                }
                Ok(())
            })?;
        }
        if self.take("AS OF") {
            if self.at("AT LEAST") {
                return Err(self.unsupported("AS OF AT LEAST", "leave AS OF out: the newest tick is taken"));
            }
            let at = self.position();
            let tick = self.number().and_then(|number| number.parse::<i128>().ok()).filter(|tick| *tick >= 0);
            subscribe.as_of = Some(tick.ok_or_else(|| SqlError::value("AS OF takes the number of a tick").at(at))?);
        }
        if self.at("UP TO") {
            return Err(self.unsupported("SUBSCRIBE ... UP TO", "stop reading where you like"));
        }
        Ok(subscribe)
    }

    /// `= value` of an option that is on or off; none means on.
    pub(super) fn option_value(&mut self) -> Result<bool, SqlError> {
        if self.take_symbol(&Token::Eq) && (self.at_symbol(&Token::Comma) || self.at_symbol(&Token::RParen)) {
            return Err(self.unexpected());
        }
        if self.peek_string().is_none() {
            return self.switch();
        }
        let at = self.position();
        match self.string()?.to_ascii_lowercase().as_str() {
            "on" | "true" => Ok(true),
            "off" | "false" => Ok(false),
            _ => Err(SqlError::value("an option is on or off").at(at)),
        }
    }

    /// True if `COPY (SUBSCRIBE ...` comes next.
    pub(super) fn at_copy_of_subscription(&self) -> bool {
        let mut coming = self.coming().skip(1);
        coming.next() == Some(&Token::LParen)
            && matches!(coming.next(), Some(Token::Word(word)) if word.value.eq_ignore_ascii_case("SUBSCRIBE"))
    }

    /// `COPY (SUBSCRIBE ...) TO STDOUT [...]`.
    pub(super) fn copy_subscription(&mut self) -> Result<Statement, SqlError> {
        self.expect("COPY")?;
        self.expect_symbol(&Token::LParen)?;
        let subscribe = self.subscribe()?;
        self.expect_symbol(&Token::RParen)?;
        if !self.at("TO") {
            return Err(self.unexpected());
        }
        // What follows is read as that of `COPY name`.
        self.put_in_front([Token::make_keyword("COPY"), Token::make_word("subscription", None)]);
        let Statement::Copy(copy) = self.copy()? else { return Err(self.unexpected()) };
        Ok(Statement::CopySubscription { subscribe, copy })
    }
}
