//! CREATE, ALTER and DROP.

use std::collections::BTreeMap;

use sqlparser::ast;
use sqlparser::tokenizer::Token;

use super::parser::Cursor;
use super::{
    AlterSource, ColumnDef, CreateMaterializedView, CreateSource, CreateTable, CreateView, DeduplicateDef, Drop,
    EmitClause, Include, ObjectType, OnConflict, Place, SqlError, Statement, WatermarkDef, interval_us, name, refusals,
};

impl Cursor<'_> {
    pub(super) fn create(&mut self) -> Result<Statement, SqlError> {
        self.expect("CREATE")?;
        let or_replace = self.take("OR REPLACE");
        if or_replace && !self.at("VIEW") {
            return Err(match refusals::create(&self.upcoming(2)) {
                Some(refusal) => refusal.at(self.position()),
                None => self.unsupported("CREATE OR REPLACE of anything but a view", "DROP it first"),
            });
        }
        if self.take("SOURCE") {
            self.create_source()
        } else if self.take("TABLE") {
            self.create_table()
        } else if self.take("VIEW") {
            self.create_view(or_replace)
        } else if self.take("MATERIALIZED VIEW") {
            self.create_materialized_view()
        } else if self.take("SCHEMA") {
            let if_not_exists = self.take("IF NOT EXISTS");
            if self.at("AUTHORIZATION") {
                return Err(self.unsupported("AUTHORIZATION in CREATE SCHEMA", "roles do not own schemas"));
            }
            let name = self.name()?;
            if !self.at_end() {
                return Err(self.unsupported("anything behind the name in CREATE SCHEMA", ""));
            }
            Ok(Statement::CreateSchema { name, if_not_exists })
        } else if self.take("DATABASE") {
            let if_not_exists = self.take("IF NOT EXISTS");
            let name = self.name()?;
            if !self.at_end() {
                return Err(self.unsupported("an option of CREATE DATABASE", "every database is in UTF-8"));
            }
            Ok(Statement::CreateDatabase { name, if_not_exists })
        } else {
            Err(refusals::create(&self.upcoming(2)).map_or_else(|| self.unexpected(), |e| e.at(self.position())))
        }
    }

    /// The next words in upper case, for refusals.
    pub(super) fn upcoming(&self, count: usize) -> Vec<String> {
        (0..count).map_while(|n| self.word(n).map(|word| word.to_ascii_uppercase())).collect()
    }

    fn create_source(&mut self) -> Result<Statement, SqlError> {
        let if_not_exists = self.take("IF NOT EXISTS");
        let name = self.name()?;
        if !self.at_symbol(&Token::LParen) {
            return Err(match self.word(0) {
                Some(_) => self.unsupported("CREATE SOURCE without a list of columns", "list the columns and types"),
                None => self.unexpected(),
            });
        }
        let body = self.columns(Owner::Source)?;
        let mut source = CreateSource {
            name,
            if_not_exists,
            columns: body.columns,
            watermark: body.watermark,
            deduplicate: body.deduplicate,
            includes: Vec::new(),
            options: BTreeMap::new(),
            format: "PLAIN".into(),
            encode: "JSON".into(),
            encode_options: BTreeMap::new(),
            late_rows_into: None,
        };
        let (mut with, mut format) = (false, false);
        loop {
            if self.at("DEDUPLICATE BY") {
                self.deduplicate(Owner::Source, &mut source.deduplicate)?;
            } else if self.at("INCLUDE") {
                let include = self.include(&source)?;
                source.includes.push(include);
            } else if !with && self.take("WITH") {
                with = true;
                source.options = self.options()?;
            } else if !format && self.take("FORMAT") {
                format = true;
                source.format = self.label()?.to_ascii_uppercase();
                self.expect("ENCODE")?;
                source.encode = self.label()?.to_ascii_uppercase();
                if self.at_symbol(&Token::LParen) {
                    source.encode_options = self.options()?;
                }
            } else if source.late_rows_into.is_none() && self.take("LATE ROWS INTO") {
                source.late_rows_into = Some(self.name()?);
            } else {
                break;
            }
        }
        Ok(Statement::CreateSource(source))
    }

    /// `INCLUDE partition AS p`.
    fn include(&mut self, source: &CreateSource) -> Result<(Include, String), SqlError> {
        self.expect("INCLUDE")?;
        let at = self.position();
        let what = self.label()?;
        let include = match what.as_str() {
            "partition" => Include::Partition,
            "offset" => Include::Offset,
            "timestamp" => Include::Timestamp,
            "key" => Include::Key,
            _ => {
                return Err(SqlError::unsupported(
                    format!("INCLUDE {}", what.to_ascii_uppercase()),
                    "partition, offset, timestamp and key can be included",
                )
                .at(at));
            }
        };
        let at = self.position();
        let column = if self.take("AS") { self.label()? } else { format!("_rw_kafka_{what}") };
        let taken =
            source.columns.iter().map(|c| &c.name).chain(source.includes.iter().map(|(_, c)| c)).any(|c| *c == column);
        if taken {
            return Err(SqlError::DuplicateColumn { column, position: Some(at) });
        }
        Ok((include, column))
    }

    fn create_table(&mut self) -> Result<Statement, SqlError> {
        let if_not_exists = self.take("IF NOT EXISTS");
        let name = self.name()?;
        let body = if self.at_symbol(&Token::LParen) { self.columns(Owner::Table)? } else { Body::default() };
        let mut table = CreateTable {
            name,
            if_not_exists,
            columns: body.columns,
            primary_key: body.primary_key,
            watermark: body.watermark,
            append_only: false,
            on_conflict: OnConflict::default(),
            query: None,
        };
        loop {
            if self.take("APPEND ONLY") {
                table.append_only = true;
            } else if self.take("ON CONFLICT") {
                table.on_conflict = if self.take("DO NOTHING") {
                    OnConflict::DoNothing
                } else if self.take("OVERWRITE") {
                    OnConflict::Overwrite
                } else if self.at("DO UPDATE") {
                    return Err(self.unsupported("ON CONFLICT DO UPDATE of a table", "use ON CONFLICT OVERWRITE"));
                } else {
                    return Err(self.unexpected());
                };
            } else if self.at("WITH") {
                return Err(self.unsupported(
                    "WITH on a table",
                    "a table is fed by INSERT and COPY; for a connector use CREATE SOURCE",
                ));
            } else if let Some(refusal) = refusals::table_clause(&self.upcoming(1)) {
                return Err(refusal.at(self.position()));
            } else {
                break;
            }
        }
        if self.take("AS") {
            if !table.columns.is_empty() {
                return Err(
                    self.unsupported("a list of columns in CREATE TABLE AS", "name the columns in the query, with AS")
                );
            }
            table.query = Some(self.query()?);
            self.with_data()?;
        } else if table.columns.is_empty() {
            return Err(self.unexpected());
        }
        Ok(Statement::CreateTable(table))
    }

    fn create_view(&mut self, or_replace: bool) -> Result<Statement, SqlError> {
        let if_not_exists = self.take("IF NOT EXISTS");
        let name = self.name()?;
        let columns = self.column_names()?;
        if self.at("WITH") {
            return Err(self.unsupported("WITH on a view", ""));
        }
        self.expect("AS")?;
        let query = self.query()?;
        if self.at("WITH") {
            return Err(self.unsupported("WITH CHECK OPTION", "views cannot be written to"));
        }
        Ok(Statement::CreateView(CreateView { name, or_replace, if_not_exists, columns, query }))
    }

    fn create_materialized_view(&mut self) -> Result<Statement, SqlError> {
        let if_not_exists = self.take("IF NOT EXISTS");
        let name = self.name()?;
        let columns = self.column_names()?;
        let options = if self.take("WITH") { self.options()? } else { BTreeMap::new() };
        self.expect("AS")?;
        let emit = self.emit_at().map(|at| self.split_off(at));
        let query = self.query()?;
        self.with_data()?;
        let mut clause = EmitClause::OnUpdate;
        if let Some(mut emit) = emit {
            self.expect_end()?;
            std::mem::swap(self, &mut emit);
            clause = self.emit()?;
        }
        let view = CreateMaterializedView { name, if_not_exists, columns, query, options, emit: clause };
        Ok(Statement::CreateMaterializedView(view))
    }

    /// `WITH DATA` says what happens anyway.
    fn with_data(&mut self) -> Result<(), SqlError> {
        if self.at("WITH NO DATA") {
            return Err(self.unsupported("WITH NO DATA", "leave it out: the object is filled when it is created"));
        }
        self.take("WITH DATA");
        Ok(())
    }

    /// `( name, ... )` or nothing.
    fn column_names(&mut self) -> Result<Vec<String>, SqlError> {
        if !self.at_symbol(&Token::LParen) {
            return Ok(Vec::new());
        }
        let mut names: Vec<String> = Vec::new();
        self.list(|cursor| {
            let at = cursor.position();
            let column = cursor.identifier()?;
            if names.contains(&column) {
                return Err(SqlError::DuplicateColumn { column, position: Some(at) });
            }
            names.push(column);
            Ok(())
        })?;
        Ok(names)
    }

    /// `( column type [constraint ...], WATERMARK FOR ..., PRIMARY KEY (...) )`.
    fn columns(&mut self, owner: Owner) -> Result<Body, SqlError> {
        let mut body = Body::default();
        self.list(|cursor| cursor.column_or_constraint(owner, &mut body))?;
        for (column, at) in std::mem::take(&mut body.key_names) {
            if !body.columns.iter().any(|c| c.name == column) {
                let message = format!("column \"{column}\" named in key does not exist");
                return Err(SqlError::syntax(message, at));
            }
        }
        Ok(body)
    }

    fn column_or_constraint(&mut self, owner: Owner, body: &mut Body) -> Result<(), SqlError> {
        if self.at("WATERMARK FOR") {
            if body.watermark.is_some() {
                return Err(SqlError::syntax("multiple watermarks are not allowed", self.position()));
            }
            body.watermark = Some(self.watermark()?);
            return Ok(());
        }
        if self.at("DEDUPLICATE BY") {
            return self.deduplicate(owner, &mut body.deduplicate);
        }
        if self.at("CONSTRAINT") {
            self.skip(1);
            self.identifier()?;
        }
        if self.at("PRIMARY KEY") {
            self.check_key(owner, body)?;
            self.skip(2);
            body.primary_key = Vec::new();
            return self
                .list(|cursor| {
                    let at = cursor.position();
                    let column = cursor.identifier()?;
                    if body.primary_key.contains(&column) {
                        let message = format!("column \"{column}\" appears twice in primary key constraint");
                        return Err(SqlError::syntax(message, at));
                    }
                    body.key_names.push((column.clone(), at));
                    body.primary_key.push(column);
                    Ok(())
                })
                .map(drop);
        }
        if let Some(refusal) = refusals::table_constraint(&self.upcoming(2)) {
            return Err(refusal.at(self.position()));
        }
        let column = self.column(owner, body)?;
        body.columns.push(column);
        Ok(())
    }

    fn check_key(&self, owner: Owner, body: &Body) -> Result<(), SqlError> {
        if owner == Owner::Source {
            return Err(self.unsupported("PRIMARY KEY on a source", "a source is a stream of records, each a new row"));
        }
        if !body.primary_key.is_empty() {
            return Err(SqlError::syntax("multiple primary keys are not allowed", self.position()));
        }
        Ok(())
    }

    fn column(&mut self, owner: Owner, body: &mut Body) -> Result<ColumnDef, SqlError> {
        let at = self.position();
        let name = self.identifier()?;
        if body.columns.iter().any(|column| column.name == name) {
            return Err(SqlError::DuplicateColumn { column: name, position: Some(at) });
        }
        let data_type = self.data_type()?;
        let mut column = ColumnDef { name, data_type, not_null: false, primary_key: false, default: None };
        loop {
            if self.at("CONSTRAINT") {
                self.skip(1);
                self.identifier()?;
            }
            if self.take("NOT NULL") {
                column.not_null = true;
            } else if self.take("NULL") {
            } else if self.at("PRIMARY KEY") {
                self.check_key(owner, body)?;
                self.skip(2);
                column.primary_key = true;
                body.primary_key = vec![column.name.clone()];
            } else if self.at("DEFAULT") {
                if owner == Owner::Source {
                    return Err(self.unsupported("DEFAULT on a source", "a field that a record lacks is NULL"));
                }
                column.default = Some(self.default_clause()?);
            } else if let Some(refusal) = refusals::column_clause(&self.upcoming(1)) {
                return Err(refusal.at(self.position()));
            } else {
                return Ok(column);
            }
        }
    }

    /// `WATERMARK FOR column AS column [- INTERVAL '...']`.
    fn watermark(&mut self) -> Result<WatermarkDef, SqlError> {
        self.expect("WATERMARK FOR")?;
        let column = self.identifier()?;
        self.expect("AS")?;
        let at = self.position();
        let expr = self.expr()?;
        let same = |expr: &ast::Expr| matches!(expr, ast::Expr::Identifier(ident) if name::fold(ident) == column);
        let delay = match &expr {
            expr if same(expr) => Some(Ok(0)),
            ast::Expr::BinaryOp { left, op: ast::BinaryOperator::Minus, right } if same(left) => {
                interval_text(right).map(|text| interval_us(&text))
            }
            _ => None,
        };
        match delay {
            Some(Ok(delay_us)) if delay_us >= 0 => Ok(WatermarkDef { column, delay_us }),
            Some(Ok(_)) => Err(SqlError::value("the delay of a watermark cannot be negative").at(at)),
            Some(Err(error)) => Err(error.at(at)),
            None => Err(SqlError::unsupported(
                format!("the watermark expression {expr}"),
                &format!("write WATERMARK FOR {column} AS {column} - INTERVAL '10 seconds'"),
            )
            .at(at)),
        }
    }

    /// `DEDUPLICATE BY (column, ...) WITHIN INTERVAL '...'`, among the columns or behind them.
    fn deduplicate(&mut self, owner: Owner, known: &mut Option<DeduplicateDef>) -> Result<(), SqlError> {
        if owner == Owner::Table {
            return Err(self.unsupported(
                "DEDUPLICATE BY on a table",
                "declare a PRIMARY KEY and ON CONFLICT DO NOTHING: the first row of each key stays",
            ));
        }
        if known.is_some() {
            return Err(SqlError::syntax("multiple DEDUPLICATE BY are not allowed", self.position()));
        }
        self.expect("DEDUPLICATE BY")?;
        let mut columns: Vec<String> = Vec::new();
        self.list(|cursor| {
            let at = cursor.position();
            let column = cursor.identifier()?;
            if columns.contains(&column) {
                return Err(SqlError::DuplicateColumn { column, position: Some(at) });
            }
            columns.push(column);
            Ok(())
        })?;
        if !self.at("WITHIN") {
            return Err(self.unsupported(
                "DEDUPLICATE BY without WITHIN",
                "say for how long an id is remembered: DEDUPLICATE BY (event_id) WITHIN INTERVAL '1 hour'",
            ));
        }
        self.skip(1);
        let at = self.position();
        let expr = self.expr()?;
        let interval_us = match interval_text(&expr) {
            Some(text) => interval_us(&text).map_err(|error| error.at(at))?,
            None => {
                let hint = "write WITHIN INTERVAL '1 hour' or the like";
                return Err(SqlError::unsupported(format!("WITHIN {expr}"), hint).at(at));
            }
        };
        if interval_us <= 0 {
            return Err(SqlError::value("the interval of DEDUPLICATE BY must be longer than zero").at(at));
        }
        *known = Some(DeduplicateDef { columns, interval_us });
        Ok(())
    }

    /// `( a.b.c = 'v', n = 5, flag = true )`.
    pub(super) fn options(&mut self) -> Result<BTreeMap<String, String>, SqlError> {
        let mut options = BTreeMap::new();
        self.list(|cursor| {
            let at = cursor.position();
            let key = cursor.option_name()?;
            cursor.expect_symbol(&Token::Eq)?;
            let value = match cursor.peek_string() {
                Some(_) => cursor.string()?,
                None => match cursor.number() {
                    Some(number) => number,
                    None => cursor.label()?,
                },
            };
            if options.contains_key(&key) {
                return Err(SqlError::syntax(format!("option \"{key}\" provided more than once"), at));
            }
            options.insert(key, value);
            Ok(())
        })?;
        Ok(options)
    }

    /// `a.b.c`.
    fn option_name(&mut self) -> Result<String, SqlError> {
        let mut name = self.label()?;
        while self.take_symbol(&Token::Period) {
            name.push('.');
            name.push_str(&self.label()?);
        }
        Ok(name)
    }

    /// `ALTER SOURCE [IF EXISTS] name SET (...) | RESET (...) | RESET TO place | RESET WATERMARK [TO 'timestamp']`.
    pub(super) fn alter(&mut self) -> Result<Statement, SqlError> {
        if !self.take("ALTER SOURCE") {
            let refusal = refusals::alter(&self.upcoming(3));
            return Err(refusal.at(self.position()));
        }
        let if_exists = self.take("IF EXISTS");
        let name = self.name()?;
        let change = if self.take("SET") {
            AlterSource::Set(self.options()?)
        } else if self.take("RESET WATERMARK") {
            let to = if self.take("TO") {
                let _ = self.take("TIMESTAMPTZ") || self.take("TIMESTAMP");
                Some(self.string()?)
            } else {
                None
            };
            AlterSource::ResetWatermark { to }
        } else if self.take("RESET TO") {
            AlterSource::ResetTo(if self.take("EARLIEST") {
                Place::Earliest
            } else if self.take("LATEST") {
                Place::Latest
            } else {
                return Err(self.unexpected().with_hint("write RESET TO earliest or RESET TO latest"));
            })
        } else if self.take("RESET") {
            AlterSource::Reset(self.list(Self::option_name)?)
        } else {
            return Err(match self.word(0).map(|word| word.to_ascii_uppercase()) {
                Some(word) => self.unsupported(
                    format!("ALTER SOURCE ... {word}"),
                    "there are SET (...), RESET (...), RESET TO earliest | latest and RESET WATERMARK",
                ),
                None => self.unexpected(),
            });
        };
        Ok(Statement::AlterSource { name, if_exists, change })
    }

    pub(super) fn drop_objects(&mut self) -> Result<Statement, SqlError> {
        self.expect("DROP")?;
        let Some(kind) = self.object_type() else {
            return Err(refusals::drop(&self.upcoming(2)).map_or_else(|| self.unexpected(), |e| e.at(self.position())));
        };
        let if_exists = self.take("IF EXISTS");
        let mut names = vec![self.name()?];
        while self.take_symbol(&Token::Comma) {
            names.push(self.name()?);
        }
        let cascade = self.take("CASCADE");
        if !cascade {
            self.take("RESTRICT");
        }
        if kind == ObjectType::Database && (self.at("WITH") || self.at_symbol(&Token::LParen)) {
            return Err(self.unsupported("DROP DATABASE with FORCE", "leave WITH (FORCE) out"));
        }
        Ok(Statement::Drop(Drop { kind, names, if_exists, cascade }))
    }

    /// `SOURCE`, `TABLE`, `VIEW`, `MATERIALIZED VIEW`, `SCHEMA` or `DATABASE`.
    pub(super) fn object_type(&mut self) -> Option<ObjectType> {
        [
            ("SOURCE", ObjectType::Source),
            ("TABLE", ObjectType::Table),
            ("VIEW", ObjectType::View),
            ("MATERIALIZED VIEW", ObjectType::MaterializedView),
            ("SCHEMA", ObjectType::Schema),
            ("DATABASE", ObjectType::Database),
        ]
        .into_iter()
        .find_map(|(words, kind)| self.take(words).then_some(kind))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    Source,
    Table,
}

#[derive(Default)]
struct Body {
    columns: Vec<ColumnDef>,
    primary_key: Vec<String>,
    watermark: Option<WatermarkDef>,
    deduplicate: Option<DeduplicateDef>,
    /// Columns that the table form of PRIMARY KEY names, which may stand before them, and where.
    key_names: Vec<(String, usize)>,
}

/// The text of an interval literal: `INTERVAL '10 seconds'`, `INTERVAL '10' SECOND`, `'10 seconds'::interval`.
pub(super) fn interval_text(expr: &ast::Expr) -> Option<String> {
    match expr {
        ast::Expr::Interval(ast::Interval { value, leading_field, last_field: None, .. }) => {
            let text = string_of(value)?;
            Some(leading_field.as_ref().map_or(text.clone(), |unit| format!("{text} {unit}")))
        }
        ast::Expr::Cast { expr, data_type: ast::DataType::Interval { .. }, .. } => string_of(expr),
        ast::Expr::Nested(inner) => interval_text(inner),
        _ => None,
    }
}

/// The text of a literal in quotes.
pub(super) fn string_of(expr: &ast::Expr) -> Option<String> {
    match expr {
        ast::Expr::Value(value) => value.value.clone().into_string(),
        _ => None,
    }
}
