//! SHOW, SET, transactions, prepared statements, cursors, and the engine's own commands.

use sqlparser::tokenizer::Token;

use super::parser::Cursor;
use super::{FetchCount, Isolation, ObjectType, Set, ShowWhat, SqlError, Statement, interval_us, name};

impl Cursor<'_> {
    pub(super) fn show(&mut self) -> Result<Statement, SqlError> {
        self.expect("SHOW")?;
        if self.take("CREATE") {
            let Some(kind) = self.object_type() else { return Err(self.unexpected()) };
            if matches!(kind, ObjectType::Schema | ObjectType::Database) {
                return Err(self.unsupported("SHOW CREATE of a schema or database", ""));
            }
            return Ok(Statement::ShowCreate { kind, name: self.name()? });
        }
        if self.take("JOBS") {
            return Ok(Statement::ShowJobs);
        }
        if self.take("COLUMNS") {
            self.expect("FROM")?;
            return Ok(Statement::Describe { name: self.name()? });
        }
        let what = [
            ("SOURCES", ShowWhat::Sources),
            ("TABLES", ShowWhat::Tables),
            ("VIEWS", ShowWhat::Views),
            ("MATERIALIZED VIEWS", ShowWhat::MaterializedViews),
            ("SCHEMAS", ShowWhat::Schemas),
            ("DATABASES", ShowWhat::Databases),
        ]
        .into_iter()
        .find_map(|(words, what)| self.take(words).then_some(what));
        if let Some(what) = what {
            let has_schemas = !matches!(what, ShowWhat::Schemas | ShowWhat::Databases);
            let schema = if has_schemas && self.take("FROM") { Some(self.name()?) } else { None };
            let like = if self.take("LIKE") { Some(self.string()?) } else { None };
            return Ok(Statement::ShowObjects { what, schema, like });
        }
        if self.take("ALL") {
            return Ok(Statement::ShowSetting { name: None });
        }
        Ok(Statement::ShowSetting { name: Some(self.setting_name()?) })
    }

    /// A setting's name in lower case; the names of several words are those of Postgres' grammar.
    fn setting_name(&mut self) -> Result<String, SqlError> {
        for (words, name) in [
            ("TIME ZONE", "timezone"),
            ("TRANSACTION ISOLATION LEVEL", "transaction_isolation"),
            ("SESSION AUTHORIZATION", "session_authorization"),
        ] {
            if self.take(words) {
                return Ok(name.into());
            }
        }
        let mut name = self.label()?;
        while self.take_symbol(&Token::Period) {
            name.push('.');
            name.push_str(&self.label()?);
        }
        Ok(name.to_ascii_lowercase())
    }

    pub(super) fn describe(&mut self) -> Result<Statement, SqlError> {
        self.skip(1);
        Ok(Statement::Describe { name: self.name()? })
    }

    pub(super) fn explain(&mut self) -> Result<Statement, SqlError> {
        self.expect("EXPLAIN")?;
        let (mut analyze, mut verbose) = (false, false);
        if self.at_symbol(&Token::LParen) && !self.opens_query() {
            self.list(|cursor| {
                let at = cursor.position();
                let option = cursor.label()?;
                match option.as_str() {
                    "analyze" => analyze = cursor.switch()?,
                    "verbose" => verbose = cursor.switch()?,
                    "format" if cursor.take("TEXT") => {}
                    "costs" if !cursor.switch()? => {}
                    _ => {
                        return Err(SqlError::unsupported(
                            format!("this {} option of EXPLAIN", option.to_ascii_uppercase()),
                            "the options are ANALYZE, VERBOSE, COSTS OFF and FORMAT TEXT",
                        )
                        .at(at));
                    }
                }
                Ok(())
            })?;
        } else {
            analyze = self.take("ANALYZE");
            verbose = self.take("VERBOSE");
        }
        if self.take("MATERIALIZED VIEW") {
            return Ok(Statement::ExplainView { name: self.name()?, analyze });
        }
        let statement = Box::new(self.explainable()?);
        Ok(Statement::Explain { statement, analyze, verbose })
    }

    /// `EXPLAIN (SELECT 1)`: the parenthesis begins the query, not options.
    fn opens_query(&self) -> bool {
        let inside = self.coming().find(|token| **token != Token::LParen);
        matches!(inside, Some(Token::Word(word)) if word.quote_style.is_none()
            && ["SELECT", "WITH", "VALUES", "TABLE"].iter().any(|w| word.value.eq_ignore_ascii_case(w)))
    }

    /// The value of an EXPLAIN option; none means on.
    fn switch(&mut self) -> Result<bool, SqlError> {
        if self.at_symbol(&Token::Comma) || self.at_symbol(&Token::RParen) {
            return Ok(true);
        }
        if self.take("ON") || self.take("TRUE") {
            return Ok(true);
        }
        if self.take("OFF") || self.take("FALSE") {
            return Ok(false);
        }
        match self.number().as_deref() {
            Some("1") => Ok(true),
            Some("0") => Ok(false),
            _ => Err(self.unexpected()),
        }
    }

    /// `WAIT FOR name [TIMEOUT '10s' | TIMEOUT INTERVAL '10 seconds']`.
    pub(super) fn wait_for(&mut self) -> Result<Statement, SqlError> {
        self.expect("WAIT FOR")?;
        let name = self.name()?;
        let mut timeout_ms = None;
        if self.take("TIMEOUT") {
            self.take("INTERVAL");
            let at = self.position();
            let micros = interval_us(&self.string()?).map_err(|error| error.at(at))?;
            let micros = u64::try_from(micros).map_err(|_| SqlError::value("a timeout cannot be negative").at(at))?;
            timeout_ms = Some(micros.div_ceil(1000));
        }
        Ok(Statement::WaitFor { name, timeout_ms })
    }

    /// `CANCEL JOB id [, ...]`, also `CANCEL JOBS`.
    pub(super) fn cancel(&mut self) -> Result<Statement, SqlError> {
        self.expect("CANCEL")?;
        if !self.take("JOBS") {
            self.expect("JOB")?;
        }
        let mut ids = Vec::new();
        loop {
            let at = self.position();
            let number = self.number().ok_or_else(|| self.unexpected())?;
            ids.push(number.parse().map_err(|_| SqlError::value(format!("there is no job {number}")).at(at))?);
            if !self.take_symbol(&Token::Comma) {
                return Ok(Statement::CancelJobs { ids });
            }
        }
    }

    pub(super) fn flush(&mut self) -> Result<Statement, SqlError> {
        self.expect("FLUSH")?;
        Ok(Statement::Flush)
    }

    pub(super) fn set(&mut self) -> Result<Statement, SqlError> {
        self.expect("SET")?;
        if self.take("SESSION CHARACTERISTICS AS TRANSACTION") {
            return self.transaction_settings("default_transaction_", false);
        }
        if self.take("TRANSACTION") {
            if self.at("SNAPSHOT") {
                return Err(self.unsupported("SET TRANSACTION SNAPSHOT", ""));
            }
            return self.transaction_settings("transaction_", true);
        }
        let local = if self.at("SESSION AUTHORIZATION") {
            false
        } else {
            let local = self.take("LOCAL");
            if !local {
                self.take("SESSION");
            }
            local
        };
        if self.at("CONSTRAINTS") {
            return Err(self.unsupported("SET CONSTRAINTS", "constraints are checked at once"));
        }
        let setting = |name: &str, value| Ok(Statement::Set(Set::Setting { name: name.into(), value, local }));
        if self.take("TIME ZONE") {
            if self.take("LOCAL") || self.take("DEFAULT") {
                return setting("timezone", None);
            }
            if self.at("INTERVAL") {
                return Err(
                    self.unsupported("SET TIME ZONE INTERVAL", "name the zone, such as 'Europe/Berlin' or '-08'")
                );
            }
            let value = self.setting_value("timezone")?;
            return setting("timezone", Some(value));
        }
        if self.take("NAMES") {
            let value = if self.at_end() || self.take("DEFAULT") { None } else { Some(self.string()?) };
            return setting("client_encoding", value);
        }
        for (words, name) in [("SESSION AUTHORIZATION", "session_authorization"), ("ROLE", "role")] {
            if self.at(words) && !matches!(self.coming().nth(1), Some(Token::Eq)) && !self.at("ROLE TO") {
                self.take(words);
                let value = if self.take("DEFAULT") { None } else { Some(self.setting_value(name)?) };
                return setting(name, value);
            }
        }
        let name = self.setting_name()?;
        if !self.take("TO") {
            self.expect_symbol(&Token::Eq)?;
        }
        if self.take("DEFAULT") {
            return setting(&name, None);
        }
        let mut value = self.setting_value(&name)?;
        while self.take_symbol(&Token::Comma) {
            value.push_str(", ");
            value.push_str(&self.setting_value(&name)?);
        }
        setting(&name, Some(value))
    }

    /// One element of a setting's value. Names in a search path are quoted where needed, as SHOW prints them.
    fn setting_value(&mut self, setting: &str) -> Result<String, SqlError> {
        if let Some(number) = self.number() {
            return Ok(number);
        }
        let value = match self.peek_string() {
            Some(_) => self.string()?,
            None => self.label()?,
        };
        Ok(if setting == "search_path" { name::quote(&value).into_owned() } else { value })
    }

    /// `SET TRANSACTION` and its like as settings: `prefix` + isolation, read_only or deferrable.
    fn transaction_settings(&mut self, prefix: &str, local: bool) -> Result<Statement, SqlError> {
        let modes = self.modes()?;
        let setting = |name: &str, value: &str| Set::Setting {
            name: format!("{prefix}{name}"),
            value: Some(value.into()),
            local,
        };
        let on_off = |on: bool| if on { "on" } else { "off" };
        let mut settings = Vec::new();
        settings.extend(modes.isolation.map(|isolation| setting("isolation", isolation.as_str())));
        settings.extend(modes.read_only.map(|on| setting("read_only", on_off(on))));
        settings.extend(modes.deferrable.map(|on| setting("deferrable", on_off(on))));
        match settings.len() {
            0 => Err(self.unexpected()),
            1 => Ok(Statement::Set(settings.remove(0))),
            _ => Ok(Statement::Set(Set::Several(settings))),
        }
    }

    fn modes(&mut self) -> Result<Modes, SqlError> {
        let mut modes = Modes::default();
        loop {
            if self.take("ISOLATION LEVEL") {
                modes.isolation = Some(if self.take("READ COMMITTED") {
                    Isolation::ReadCommitted
                } else if self.take("REPEATABLE READ") {
                    Isolation::RepeatableRead
                } else if self.take("SERIALIZABLE") {
                    Isolation::Serializable
                } else if self.at("READ UNCOMMITTED") {
                    return Err(self.unsupported("ISOLATION LEVEL READ UNCOMMITTED", "use READ COMMITTED"));
                } else {
                    return Err(self.unexpected());
                });
            } else if self.take("READ ONLY") {
                modes.read_only = Some(true);
            } else if self.take("READ WRITE") {
                modes.read_only = Some(false);
            } else if self.take("NOT DEFERRABLE") {
                modes.deferrable = Some(false);
            } else if self.take("DEFERRABLE") {
                modes.deferrable = Some(true);
            } else {
                return Ok(modes);
            }
            if self.take_symbol(&Token::Comma) && self.at_end() {
                return Err(self.unexpected());
            }
        }
    }

    pub(super) fn reset(&mut self) -> Result<Statement, SqlError> {
        self.expect("RESET")?;
        if self.take("ALL") {
            return Ok(Statement::Set(Set::ResetAll));
        }
        Ok(Statement::Set(Set::Setting { name: self.setting_name()?, value: None, local: false }))
    }

    pub(super) fn begin(&mut self) -> Result<Statement, SqlError> {
        if self.take("START") {
            self.expect("TRANSACTION")?;
        } else {
            self.expect("BEGIN")?;
            self.work();
        }
        let modes = self.modes()?;
        if modes.deferrable == Some(true) {
            return Err(
                SqlError::unsupported("a DEFERRABLE transaction", "leave it out: reads never wait").at(self.position())
            );
        }
        Ok(Statement::Begin { read_only: modes.read_only.unwrap_or(false), isolation: modes.isolation })
    }

    fn work(&mut self) {
        if !self.take("WORK") {
            self.take("TRANSACTION");
        }
    }

    pub(super) fn commit(&mut self) -> Result<Statement, SqlError> {
        self.skip(1);
        if self.at("PREPARED") {
            return Err(self.unsupported("COMMIT PREPARED", ""));
        }
        self.work();
        self.chain()?;
        Ok(Statement::Commit)
    }

    pub(super) fn rollback(&mut self) -> Result<Statement, SqlError> {
        self.skip(1);
        if self.at("PREPARED") {
            return Err(self.unsupported("ROLLBACK PREPARED", ""));
        }
        self.work();
        if self.at("TO") {
            return Err(
                self.unsupported("ROLLBACK TO SAVEPOINT", "a transaction is committed or rolled back as a whole")
            );
        }
        self.chain()?;
        Ok(Statement::Rollback)
    }

    fn chain(&mut self) -> Result<(), SqlError> {
        if self.at("AND CHAIN") {
            return Err(self.unsupported("AND CHAIN", "send BEGIN next"));
        }
        self.take("AND NO CHAIN");
        Ok(())
    }

    /// `PREPARE name [(type, ...)] AS statement`; the parameters are those of the statement.
    pub(super) fn prepare(&mut self, parameters: usize) -> Result<Statement, SqlError> {
        self.expect("PREPARE")?;
        if self.at("TRANSACTION") {
            return Err(self.unsupported("PREPARE TRANSACTION", ""));
        }
        let name = self.identifier()?;
        let types = if self.at_symbol(&Token::LParen) { self.list(Self::data_type)? } else { Vec::new() };
        self.expect("AS")?;
        let statement = Box::new(self.preparable(parameters.max(types.len()))?);
        Ok(Statement::Prepare { name, types, statement })
    }

    pub(super) fn execute(&mut self) -> Result<Statement, SqlError> {
        self.expect("EXECUTE")?;
        let name = self.identifier()?;
        let arguments = if self.at_symbol(&Token::LParen) { self.list(Self::expr)? } else { Vec::new() };
        Ok(Statement::Execute { name, arguments })
    }

    pub(super) fn deallocate(&mut self) -> Result<Statement, SqlError> {
        self.expect("DEALLOCATE")?;
        self.take("PREPARE");
        let name = if self.take("ALL") { None } else { Some(self.identifier()?) };
        Ok(Statement::Deallocate { name })
    }

    pub(super) fn discard(&mut self) -> Result<Statement, SqlError> {
        self.expect("DISCARD")?;
        if self.take("ALL") {
            return Ok(Statement::Discard);
        }
        match self.word(0).map(|word| word.to_ascii_uppercase()).as_deref() {
            Some(word @ ("PLANS" | "SEQUENCES" | "TEMP" | "TEMPORARY")) => {
                Err(self.unsupported(format!("DISCARD {word}"), "use DISCARD ALL"))
            }
            _ => Err(self.unexpected()),
        }
    }

    pub(super) fn declare(&mut self) -> Result<Statement, SqlError> {
        self.expect("DECLARE")?;
        let cursor = self.identifier()?;
        loop {
            if self.at("BINARY") {
                return Err(self.unsupported("a BINARY cursor", "use the extended protocol for binary results"));
            } else if self.at("SCROLL") {
                return Err(self.unsupported("a SCROLL cursor", "leave SCROLL out and fetch forward"));
            } else if !(self.take("NO SCROLL") || self.take("INSENSITIVE") || self.take("ASENSITIVE")) {
                break;
            }
        }
        self.expect("CURSOR")?;
        if self.at("WITH HOLD") {
            return Err(self.unsupported("a cursor WITH HOLD", "use the cursor inside a transaction"));
        }
        self.take("WITHOUT HOLD");
        self.expect("FOR")?;
        Ok(Statement::Declare { cursor, query: self.query()? })
    }

    /// `FETCH [NEXT | n | ALL | FORWARD [n | ALL]] [FROM | IN] cursor`.
    pub(super) fn fetch(&mut self) -> Result<Statement, SqlError> {
        self.expect("FETCH")?;
        for backward in ["PRIOR", "FIRST", "LAST", "ABSOLUTE", "RELATIVE", "BACKWARD"] {
            if self.at(backward) {
                return Err(self.unsupported(format!("FETCH {backward}"), "cursors only go forward"));
            }
        }
        let forward = self.take("FORWARD");
        let at = self.position();
        let count = if let Some(number) = self.number() {
            match number.parse::<u64>() {
                Ok(rows) if rows > 0 => FetchCount::Rows(rows),
                _ => {
                    return Err(
                        SqlError::unsupported(format!("FETCH {number}"), "fetch one row or more, or ALL").at(at)
                    );
                }
            }
        } else if self.take("ALL") {
            FetchCount::All
        } else {
            if !forward {
                self.take("NEXT");
            }
            FetchCount::Rows(1)
        };
        if !self.take("FROM") {
            self.take("IN");
        }
        Ok(Statement::Fetch { cursor: self.identifier()?, count })
    }

    pub(super) fn close(&mut self) -> Result<Statement, SqlError> {
        self.expect("CLOSE")?;
        let cursor = if self.take("ALL") { None } else { Some(self.identifier()?) };
        Ok(Statement::Close { cursor })
    }
}

#[derive(Default)]
struct Modes {
    isolation: Option<Isolation>,
    read_only: Option<bool>,
    deferrable: Option<bool>,
}
