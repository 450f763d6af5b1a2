//! Recursive descent over one statement's tokens. Expressions, types, queries and DML are sqlparser's work; every other
//! statement is ours, in [`super::ddl`] and [`super::commands`].

use std::borrow::Cow;
use std::ops::Range;

use sqlparser::ast;
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::{Token, TokenWithSpan};

use super::dialect::Postgres;
use super::name::{fold, is_reserved};
use super::tokens::{self, Text};
use super::{Name, Parsed, SqlError, Statement, queries, refusals, table_command, windows};

/// Expressions, queries and tables within each other, as sqlparser counts them.
const MAX_RECURSION: usize = 100;

/// Every statement of a text, in order. Statements are separated by semicolons; empty ones are skipped. One error, and
/// none of them is returned.
pub fn parse(text: &str) -> Result<Vec<Parsed>, SqlError> {
    let whole = Text::new(text);
    let mut statements = Vec::new();
    for mut piece in tokens::split(text)? {
        let parameters = tokens::count_parameters(&piece.tokens)?;
        let first_parameter = piece.tokens.iter().find(|t| matches!(t.token, Token::Placeholder(_))).cloned();
        windows::rewrite(&mut piece.tokens);
        table_command::rewrite(&mut piece.tokens);
        let dialect = Postgres::new(piece.tokens.len());
        let sql = whole.from(piece.range.start, piece.position);
        let mut cursor = Cursor::new(sql, &dialect, piece.tokens, piece.range.end, piece.behind);
        let statement = cursor.statement(parameters)?;
        cursor.expect_end()?;
        if let (Some(parameter), true) = (first_parameter, is_definition(&statement)) {
            let message = format!("there is no parameter {}", parameter.token);
            return Err(SqlError::syntax(message, tokens::position(&parameter)));
        }
        // Those of PREPARE belong to the statement inside.
        let parameters = if matches!(statement, Statement::Prepare { .. }) { 0 } else { parameters };
        statements.push(Parsed { statement, text: text[piece.range].to_string(), parameters });
    }
    Ok(statements)
}

fn is_definition(statement: &Statement) -> bool {
    matches!(
        statement,
        Statement::CreateSource(_)
            | Statement::CreateTable(_)
            | Statement::CreateView(_)
            | Statement::CreateMaterializedView(_)
    )
}

/// A place in one statement's tokens.
pub(super) struct Cursor<'a> {
    text: Text<'a>,
    dialect: &'a Postgres,
    parser: Parser<'a>,
    /// Where the statement's text ends, in bytes.
    text_end: usize,
    /// What stands behind the last token, as positions: a semicolon, a token of another cursor, or nothing.
    end: Range<usize>,
}

impl<'a> Cursor<'a> {
    fn new(
        text: Text<'a>,
        dialect: &'a Postgres,
        tokens: Vec<TokenWithSpan>,
        text_end: usize,
        end: Range<usize>,
    ) -> Self {
        let parser = Parser::new(dialect).with_recursion_limit(MAX_RECURSION).with_tokens_with_locations(tokens);
        Cursor { text, dialect, parser, text_end, end }
    }

    fn statement(&mut self, parameters: usize) -> Result<Statement, SqlError> {
        if self.parser.peek_token_ref().token == Token::LParen {
            return self.query().map(Statement::Query);
        }
        let Some(word) = self.word(0) else { return Err(self.unexpected()) };
        match word.to_ascii_uppercase().as_str() {
            "SELECT" | "WITH" | "VALUES" | "TABLE" => self.query().map(Statement::Query),
            "INSERT" | "UPDATE" | "DELETE" => self.dml(),
            "COPY" if self.at_copy_of_subscription() => self.copy_subscription(),
            "COPY" => self.copy(),
            "SUBSCRIBE" => self.subscribe().map(Statement::Subscribe),
            "CREATE" => self.create(),
            "DROP" => self.drop_objects(),
            "ALTER" => self.alter(),
            "CANCEL" => self.cancel(),
            "RECONCILE" => self.reconcile(),
            "SHOW" => self.show(),
            "DESCRIBE" | "DESC" => self.describe(),
            "EXPLAIN" => self.explain(),
            "WAIT" => self.wait_for(),
            "FLUSH" => self.flush(),
            "SET" => self.set(),
            "RESET" => self.reset(),
            "BEGIN" | "START" => self.begin(),
            "COMMIT" | "END" => self.commit(),
            "ROLLBACK" | "ABORT" => self.rollback(),
            "PREPARE" => self.prepare(parameters),
            "EXECUTE" => self.execute(),
            "DEALLOCATE" => self.deallocate(),
            "DISCARD" => self.discard(),
            "DECLARE" => self.declare(),
            "FETCH" => self.fetch(),
            "CLOSE" => self.close(),
            _ => Err(refusals::statement(&word).map_or_else(|| self.unexpected(), |error| error.at(self.position()))),
        }
    }

    /// A statement that PREPARE takes, with its text.
    pub(super) fn preparable(&mut self, parameters: usize) -> Result<Parsed, SqlError> {
        let start = self.text.byte(self.position());
        let statement = self.query_or_dml()?;
        let text = self.text.whole().get(start..self.text_end).unwrap_or_default().to_string();
        Ok(Parsed { statement, text, parameters })
    }

    /// A statement that EXPLAIN takes.
    pub(super) fn explainable(&mut self) -> Result<Statement, SqlError> {
        match self.word(0).as_deref() {
            Some(word) if word.eq_ignore_ascii_case("CREATE") => self.create(),
            Some(word) if word.eq_ignore_ascii_case("RECONCILE") => {
                Err(self.unsupported("EXPLAIN RECONCILE", "EXPLAIN the SELECT of the view: that is what is recomputed"))
            }
            _ => self.query_or_dml(),
        }
    }

    fn query_or_dml(&mut self) -> Result<Statement, SqlError> {
        let dml = ["INSERT", "UPDATE", "DELETE"].iter().any(|word| self.at(word));
        if dml { self.dml() } else { self.query().map(Statement::Query) }
    }

    pub(super) fn query(&mut self) -> Result<Box<ast::Query>, SqlError> {
        let starts = ["SELECT", "WITH", "VALUES", "TABLE"].iter().any(|word| self.at(word));
        if !starts && self.parser.peek_token_ref().token != Token::LParen {
            return Err(self.unexpected());
        }
        let at = self.position();
        let mut query = self.run(Parser::parse_query)?;
        queries::normalise(&mut query).map_err(|error| error.at(at))?;
        Ok(query)
    }

    fn dml(&mut self) -> Result<Statement, SqlError> {
        let at = self.position();
        let mut statement = self.run(Parser::parse_statement)?;
        queries::normalise_statement(&mut statement).map_err(|error| error.at(at))?;
        match statement {
            ast::Statement::Insert(insert) => Ok(Statement::Insert(Box::new(insert))),
            ast::Statement::Delete(delete) => Ok(Statement::Delete(Box::new(delete))),
            update @ ast::Statement::Update(_) => Ok(Statement::Update(Box::new(update))),
            _ => Err(self.unexpected()),
        }
    }

    pub(super) fn copy(&mut self) -> Result<Statement, SqlError> {
        let at = self.position();
        let mut statement = self.run(Parser::parse_statement)?;
        queries::normalise_statement(&mut statement).map_err(|error| error.at(at))?;
        Ok(Statement::Copy(Box::new(statement)))
    }

    pub(super) fn expr(&mut self) -> Result<ast::Expr, SqlError> {
        let at = self.position();
        let mut expr = self.run(Parser::parse_expr)?;
        queries::normalise(&mut expr).map_err(|error| error.at(at))?;
        Ok(expr)
    }

    /// A column's `DEFAULT expr`, where `NOT NULL` behind it is not part of the expression.
    pub(super) fn default_clause(&mut self) -> Result<ast::Expr, SqlError> {
        let at = self.position();
        match self.run(Parser::parse_optional_column_option)? {
            Some(ast::ColumnOption::Default(mut expr)) => {
                queries::normalise(&mut expr).map_err(|error| error.at(at))?;
                Ok(expr)
            }
            _ => Err(self.unexpected()),
        }
    }

    pub(super) fn data_type(&mut self) -> Result<ast::DataType, SqlError> {
        if self.word(0).is_none() {
            return Err(self.unexpected());
        }
        self.run(Parser::parse_data_type)
    }

    /// Runs one of sqlparser's functions and gives its errors Postgres' words.
    fn run<T>(&mut self, parse: impl FnOnce(&mut Parser<'a>) -> Result<T, ParserError>) -> Result<T, SqlError> {
        parse(&mut self.parser).map_err(|error| match error {
            ParserError::RecursionLimitExceeded => SqlError::TooDeep { position: Some(self.position()) },
            ParserError::TokenizerError(message) | ParserError::ParserError(message) => self.explain_error(&message),
        })
    }

    /// sqlparser tells the place only in its message: `Expected: a, found: b at Line: 1, Column: 8`; none means the end.
    fn explain_error(&self, message: &str) -> SqlError {
        let place = message.rsplit_once(" at Line: 1, Column: ").and_then(|(_, place)| place.parse::<usize>().ok());
        if let Some(position) = place {
            let found = (0..)
                .map(|i| self.parser.token_at(i))
                .take_while(|token| token.token != Token::EOF)
                .find(|token| tokens::position(token) == position);
            return found.map_or_else(|| self.unexpected(), |token| self.text.near(range(token)));
        }
        if message.contains("found: EOF") {
            return self.unexpected_end();
        }
        let mut message = message.to_string();
        if let Some(first) = message.get_mut(..1) {
            first.make_ascii_lowercase();
        }
        SqlError::syntax(message, self.position())
    }

    /// Cuts the coming tokens before the one at `index`, counted from here. The rest is a cursor of its own.
    pub(super) fn split_off(&mut self, index: usize) -> Cursor<'a> {
        let at = self.parser.index();
        let parser = std::mem::replace(&mut self.parser, Parser::new(self.dialect));
        let mut coming = parser.into_tokens().split_off(at);
        let rest = coming.split_off(index.min(coming.len()));
        let end = rest.first().map_or(self.end.clone(), range);
        let rest = Cursor::new(self.text, self.dialect, rest, self.text_end, self.end.clone());
        *self = Cursor::new(self.text, self.dialect, coming, self.text_end, end);
        rest
    }

    /// Puts tokens before those still to come, where the last one stands.
    pub(super) fn put_in_front(&mut self, tokens: impl IntoIterator<Item = Token>) {
        let at = self.parser.index();
        let parser = std::mem::replace(&mut self.parser, Parser::new(self.dialect));
        let coming = parser.into_tokens().split_off(at);
        let place = coming.first().map_or(sqlparser::tokenizer::Span::empty(), |token| token.span);
        let front = tokens.into_iter().map(|token| TokenWithSpan::new(token, place));
        let tokens: Vec<TokenWithSpan> = front.chain(coming).collect();
        *self = Cursor::new(self.text, self.dialect, tokens, self.text_end, self.end.clone());
    }

    /// The tokens still to come.
    pub(super) fn coming(&self) -> impl Iterator<Item = &Token> {
        (self.parser.index()..).map(|i| &self.parser.token_at(i).token).take_while(|token| **token != Token::EOF)
    }

    /// The next token as positions, or what stands behind the last.
    fn here(&self) -> Range<usize> {
        match self.parser.peek_token_ref() {
            token if token.token == Token::EOF => self.end.clone(),
            token => range(token),
        }
    }

    /// Where the next token stands, in characters from 1.
    pub(super) fn position(&self) -> usize {
        self.here().start
    }

    /// A syntax error at the next token.
    pub(super) fn unexpected(&self) -> SqlError {
        match self.parser.peek_token_ref().token {
            Token::EOF => self.unexpected_end(),
            _ => self.text.near(self.here()),
        }
    }

    fn unexpected_end(&self) -> SqlError {
        if self.end.is_empty() {
            SqlError::syntax("syntax error at end of input", self.end.start)
        } else {
            self.text.near(self.end.clone())
        }
    }

    /// A refusal that stands at the next token.
    pub(super) fn unsupported(&self, what: impl Into<String>, hint: &str) -> SqlError {
        SqlError::unsupported(what, hint).at(self.position())
    }

    /// The token `n` ahead if it is a word without quotes.
    pub(super) fn word(&self, n: usize) -> Option<Cow<'_, str>> {
        match &self.parser.peek_nth_token_ref(n).token {
            Token::Word(word) if word.quote_style.is_none() => Some(Cow::Borrowed(word.value.as_str())),
            _ => None,
        }
    }

    /// True if these words, separated by blanks, come next.
    pub(super) fn at(&self, words: &str) -> bool {
        words.split(' ').enumerate().all(|(n, word)| self.word(n).is_some_and(|next| next.eq_ignore_ascii_case(word)))
    }

    /// Takes these words if they come next.
    pub(super) fn take(&mut self, words: &str) -> bool {
        let found = self.at(words);
        if found {
            self.skip(words.split(' ').count());
        }
        found
    }

    pub(super) fn expect(&mut self, words: &str) -> Result<(), SqlError> {
        for word in words.split(' ') {
            if !self.take(word) {
                return Err(self.unexpected());
            }
        }
        Ok(())
    }

    pub(super) fn at_symbol(&self, symbol: &Token) -> bool {
        self.parser.peek_token_ref().token == *symbol
    }

    pub(super) fn take_symbol(&mut self, symbol: &Token) -> bool {
        self.parser.consume_token(symbol)
    }

    pub(super) fn expect_symbol(&mut self, symbol: &Token) -> Result<(), SqlError> {
        if self.take_symbol(symbol) { Ok(()) } else { Err(self.unexpected()) }
    }

    pub(super) fn skip(&mut self, tokens: usize) {
        for _ in 0..tokens {
            self.parser.advance_token();
        }
    }

    pub(super) fn at_end(&self) -> bool {
        self.at_symbol(&Token::EOF)
    }

    pub(super) fn expect_end(&self) -> Result<(), SqlError> {
        if self.at_end() { Ok(()) } else { Err(self.unexpected()) }
    }

    /// A name or part of a name, folded.
    pub(super) fn identifier(&mut self) -> Result<String, SqlError> {
        if let Some(word) = self.word(0)
            && is_reserved(&word.to_ascii_lowercase())
        {
            let hint = format!("\"{word}\" is a reserved word: as a name it stands in double quotes");
            return Err(self.unexpected().with_hint(&hint));
        }
        self.label()
    }

    /// A name where a reserved word is no danger, as behind a dot.
    pub(super) fn label(&mut self) -> Result<String, SqlError> {
        let Token::Word(word) = &self.parser.peek_token_ref().token else { return Err(self.unexpected()) };
        let name = fold(&word.to_ident(sqlparser::tokenizer::Span::empty()));
        if name.is_empty() {
            return Err(SqlError::syntax("zero-length delimited identifier", self.position()));
        }
        self.skip(1);
        Ok(name)
    }

    /// `[[database.]schema.]name`.
    pub(super) fn name(&mut self) -> Result<Name, SqlError> {
        let at = self.position();
        let mut parts = vec![self.identifier()?];
        while self.take_symbol(&Token::Period) {
            parts.push(self.label()?);
        }
        if parts.len() > 3 {
            let message = format!("improper qualified name (too many dotted names): {}", parts.join("."));
            return Err(SqlError::syntax(message, at));
        }
        Ok(Name(parts))
    }

    /// A string literal.
    pub(super) fn string(&mut self) -> Result<String, SqlError> {
        let value = self.peek_string().ok_or_else(|| self.unexpected())?;
        self.skip(1);
        Ok(value)
    }

    pub(super) fn peek_string(&self) -> Option<String> {
        match &self.parser.peek_token_ref().token {
            Token::SingleQuotedString(value)
            | Token::EscapedStringLiteral(value)
            | Token::UnicodeStringLiteral(value) => Some(value.clone()),
            Token::DollarQuotedString(value) => Some(value.value.clone()),
            _ => None,
        }
    }

    /// A number with its sign, as written.
    pub(super) fn number(&mut self) -> Option<String> {
        let (sign, n) = match self.parser.peek_token_ref().token {
            Token::Minus => ("-", 1),
            Token::Plus => ("", 1),
            _ => ("", 0),
        };
        let Token::Number(digits, _) = &self.parser.peek_nth_token_ref(n).token else { return None };
        let number = format!("{sign}{digits}");
        self.skip(n + 1);
        Some(number)
    }

    /// `( item, item, ... )`, at least one.
    pub(super) fn list<T>(
        &mut self,
        mut item: impl FnMut(&mut Self) -> Result<T, SqlError>,
    ) -> Result<Vec<T>, SqlError> {
        self.expect_symbol(&Token::LParen)?;
        let mut items = vec![item(self)?];
        while self.take_symbol(&Token::Comma) {
            items.push(item(self)?);
        }
        self.expect_symbol(&Token::RParen)?;
        Ok(items)
    }
}

fn range(token: &TokenWithSpan) -> Range<usize> {
    tokens::position(token)..token.span.end.column as usize
}
