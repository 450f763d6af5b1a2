//! Text → tokens, cut into statements, with the bounds that keep later work off the end of the stack.

use std::ops::Range;

use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::keywords::Keyword;
use sqlparser::tokenizer::{Location, Token, TokenWithSpan, Tokenizer, Whitespace};

use super::SqlError;

/// Brackets open at once.
const MAX_NESTING: usize = 128;
/// Operators in one run without a bracket or comma: `a OR b OR c` becomes a tree as deep as it is long. Cloning one of this
/// depth takes some 9 MiB of stack in a debug build, hence the threads of 16 MiB that statements run on.
const MAX_CHAIN: usize = 2000;
/// Words, signs and blanks of one text. A token takes some hundred bytes, and what becomes of it more.
const MAX_TOKENS: usize = 1_000_000;
/// UNION, EXCEPT and INTERSECT in one run, which make a deep tree of larger nodes.
const MAX_SETS: usize = 400;
/// `INTERVAL INTERVAL ...`, `ARRAY<ARRAY<...`, `TABLE (a TABLE (...`: sqlparser goes down these without a bound.
const MAX_RUN: usize = 8;

/// Part of the text that was sent, for positions in it. Positions count characters of the whole text from 1, as Postgres
/// counts them. Every token's span has line 1 and such a position as its column, so that any error made from a span knows
/// its position.
#[derive(Clone, Copy)]
pub(super) struct Text<'a> {
    whole: &'a str,
    /// A byte offset and its position; asked for are later ones.
    base: (usize, usize),
}

impl<'a> Text<'a> {
    pub(super) fn new(whole: &'a str) -> Self {
        Text { whole, base: (0, 1) }
    }

    pub(super) fn whole(self) -> &'a str {
        self.whole
    }

    /// For positions from this one on.
    pub(super) fn from(self, byte: usize, position: usize) -> Self {
        Text { base: (byte, position), ..self }
    }

    /// Byte offset of a position; the end of the text for one past it.
    pub(super) fn byte(self, position: usize) -> usize {
        let rest = self.whole.get(self.base.0..).unwrap_or_default();
        let offset = rest.char_indices().nth(position.saturating_sub(self.base.1)).map_or(rest.len(), |(i, _)| i);
        self.base.0 + offset
    }

    /// The text between two positions.
    pub(super) fn slice(self, range: Range<usize>) -> &'a str {
        self.whole.get(self.byte(range.start)..self.byte(range.end)).unwrap_or_default()
    }

    /// `syntax error at or near "..."`.
    pub(super) fn near(self, range: Range<usize>) -> SqlError {
        let token = self.slice(range.clone());
        SqlError::syntax(format!("syntax error at or near \"{token}\""), range.start)
    }
}

/// One statement: tokens without white space, never empty.
pub(super) struct Piece {
    pub tokens: Vec<TokenWithSpan>,
    /// Where it stands in the text, in bytes, without the closing semicolon.
    pub range: Range<usize>,
    /// Where it begins, as a position.
    pub position: usize,
    /// What stands behind it, as positions: a semicolon, or nothing at the end of the text.
    pub behind: Range<usize>,
}

/// Tokenises once and cuts at semicolons; empty statements are left out.
pub(super) fn split(sql: &str) -> Result<Vec<Piece>, SqlError> {
    if let Some(byte) = sql.find('\0') {
        return Err(SqlError::syntax("null character in a statement", count(&sql[..byte]) + 1));
    }
    if has_more_tokens(sql, MAX_TOKENS) {
        return Err(SqlError::TooComplex { most: MAX_TOKENS });
    }
    let mut tokens = Vec::new();
    if Tokenizer::new(&PostgreSqlDialect {}, sql).tokenize_with_location_into_buf(&mut tokens).is_err() {
        let end = tokens.last().map_or(Location::new(1, 1), |last| last.span.end);
        let (byte, position) = Walk::new(sql).to(end);
        return Err(bad_token(&sql[byte..], position));
    }

    let mut pieces: Vec<Piece> = Vec::new();
    let mut walk = Walk::new(sql);
    let (mut begins_statement, mut newline) = (true, false);
    for TokenWithSpan { token, span } in tokens {
        match token {
            Token::Whitespace(Whitespace::Newline | Whitespace::SingleLineComment { .. }) => newline = true,
            Token::Whitespace(_) => {}
            Token::SemiColon => {
                let (_, position) = walk.to(span.start);
                if let (false, Some(piece)) = (begins_statement, pieces.last_mut()) {
                    piece.behind = position..position + 1;
                }
                begins_statement = true;
            }
            token => {
                let (start_byte, start) = walk.to(span.start);
                let (end_byte, end) = walk.to(span.end);
                if std::mem::take(&mut begins_statement) {
                    let (tokens, range, behind) = (Vec::new(), start_byte..end_byte, 0..0);
                    pieces.push(Piece { tokens, range, position: start, behind });
                    newline = false;
                }
                if let Some(piece) = pieces.last_mut() {
                    piece.range.end = end_byte;
                    push(&mut piece.tokens, token, start, end, newline);
                }
                newline = false;
            }
        }
    }
    if let (false, Some(piece)) = (begins_statement, pieces.last_mut()) {
        let (_, end) = walk.to(Location::new(u64::MAX, 1));
        piece.behind = end..end;
    }
    for piece in &pieces {
        check_depth(&piece.tokens)?;
    }
    Ok(pieces)
}

/// Counts, before any are made, at least as many tokens as there will be: a quoted text is one, and so is a word or a number;
/// what stands in comments and dollar quotes is counted as if it did not.
fn has_more_tokens(sql: &str, most: usize) -> bool {
    if sql.len() <= most {
        return false;
    }
    let (mut tokens, mut quote, mut in_word) = (0, None, false);
    for byte in sql.bytes() {
        match quote {
            Some(open) => {
                if byte == open {
                    quote = None;
                }
            }
            None => {
                let is_word = byte.is_ascii_alphanumeric() || byte == b'_' || !byte.is_ascii();
                tokens += usize::from(!(is_word && in_word));
                in_word = is_word;
                quote = matches!(byte, b'\'' | b'"').then_some(byte);
            }
        }
    }
    tokens > most
}

/// Adds a token with its positions as its span. `'a'` and `'b'` on two lines are one string.
fn push(tokens: &mut Vec<TokenWithSpan>, token: Token, start: usize, end: usize, newline: bool) {
    let place = |position: usize| Location::new(1, position as u64);
    match (tokens.last_mut(), token) {
        (Some(TokenWithSpan { token: Token::SingleQuotedString(before), span }), Token::SingleQuotedString(after))
            if newline =>
        {
            before.push_str(&after);
            span.end = place(end);
        }
        (_, token) => tokens.push(TokenWithSpan::at(token, place(start), place(end))),
    }
}

/// Where a token begins, as a position.
pub(super) fn position(token: &TokenWithSpan) -> usize {
    token.span.start.column as usize
}

fn count(text: &str) -> usize {
    text.chars().count()
}

/// What the tokenizer could not finish, in Postgres' words.
fn bad_token(rest: &str, position: usize) -> SqlError {
    let what = match rest.bytes().find(|b| !b.is_ascii_alphabetic() && *b != b'&') {
        Some(b'\'') => "unterminated quoted string",
        Some(b'"') => "unterminated quoted identifier",
        Some(b'$') => "unterminated dollar-quoted string",
        Some(b'/') if rest.starts_with("/*") => "unterminated /* comment",
        _ => "syntax error",
    };
    let shown: String = rest.chars().take(80).collect();
    SqlError::syntax(format!("{what} at or near \"{shown}\""), position)
}

/// Refuses what would make a tree so deep that dropping or cloning it could exhaust the stack.
fn check_depth(tokens: &[TokenWithSpan]) -> Result<(), SqlError> {
    let mut words = Runs::default();
    // Per open bracket: operators since the last comma, and set operations.
    let mut open = vec![(0usize, 0usize)];
    for token in tokens {
        if words.too_long(&token.token) {
            return Err(SqlError::TooDeep { position: Some(position(token)) });
        }
        let level = open.len() - 1;
        match &token.token {
            Token::LParen | Token::LBracket | Token::LBrace => {
                if token.token == Token::LBracket {
                    open[level].0 += 1;
                }
                open.push((0, 0));
            }
            Token::RParen | Token::RBracket | Token::RBrace => {
                if level > 0 {
                    open.pop();
                }
            }
            Token::Comma => open[level].0 = 0,
            Token::Word(word) if word.quote_style.is_none() => {
                match word.value.to_ascii_uppercase().as_str() {
                    "UNION" | "EXCEPT" | "INTERSECT" => open[level].1 += 1,
                    "AND" | "OR" | "NOT" | "IS" | "IN" | "LIKE" | "ILIKE" | "SIMILAR" | "BETWEEN" | "ISNULL"
                    | "NOTNULL" | "AT" | "OPERATOR" | "COLLATE" | "INTERVAL" | "ARRAY" | "PRIOR" | "XOR" | "DIV"
                    | "RLIKE" | "REGEXP" | "MEMBER" | "OVERLAPS" => open[level].0 += 1,
                    // The operands of these lie side by side in the tree.
                    "SELECT" | "FROM" | "WHERE" | "GROUP" | "HAVING" | "ORDER" | "JOIN" | "ON" | "WHEN" | "THEN"
                    | "ELSE" => open[level].0 = 0,
                    _ => {}
                }
            }
            Token::Word(_)
            | Token::Number(..)
            | Token::SingleQuotedString(_)
            | Token::EscapedStringLiteral(_)
            | Token::Placeholder(_)
            | Token::Period
            | Token::Colon => {}
            _ => open[level].0 += 1,
        }
        let (chain, sets) = open.last().copied().unwrap_or_default();
        if open.len() > MAX_NESTING || chain > MAX_CHAIN || sets > MAX_SETS {
            return Err(SqlError::TooDeep { position: Some(position(token)) });
        }
    }
    Ok(())
}

/// How often INTERVAL, ARRAY and TABLE stand in each other.
#[derive(Default)]
struct Runs {
    last: Option<Keyword>,
    intervals: usize,
    arrays: usize,
    /// For each open parenthesis, whether it follows TABLE.
    tables: Vec<bool>,
}

impl Runs {
    fn too_long(&mut self, token: &Token) -> bool {
        let keyword = match token {
            Token::Word(word) => Some(word.keyword),
            _ => None,
        };
        match (self.last, token) {
            (_, Token::Word(word)) if word.keyword == Keyword::INTERVAL => self.intervals += 1,
            (Some(Keyword::ARRAY), Token::Lt) => self.arrays += 1,
            (_, Token::Word(word)) if word.keyword == Keyword::ARRAY && self.last.is_none() => {}
            (last, token) => {
                self.intervals = 0;
                self.arrays = 0;
                match token {
                    Token::LParen => self.tables.push(last == Some(Keyword::TABLE)),
                    Token::RParen => drop(self.tables.pop()),
                    _ => {}
                }
            }
        }
        self.last = keyword;
        self.intervals > MAX_RUN
            || self.arrays > MAX_RUN
            || self.tables.iter().filter(|table| **table).count() > MAX_RUN
    }
}

/// The largest `$n` among the tokens, 0 for none.
pub(super) fn count_parameters(tokens: &[TokenWithSpan]) -> Result<usize, SqlError> {
    let mut largest = 0;
    for token in tokens {
        let Token::Placeholder(name) = &token.token else { continue };
        match name.strip_prefix('$').map(str::parse::<u16>) {
            Some(Ok(number)) if number > 0 => largest = largest.max(usize::from(number)),
            Some(_) if name.len() > 1 && name[1..].bytes().all(|b| b.is_ascii_digit()) => {
                return Err(SqlError::syntax(format!("there is no parameter {name}"), position(token)));
            }
            _ => return Err(SqlError::syntax(format!("syntax error at or near \"{name}\""), position(token))),
        }
    }
    Ok(largest)
}

/// Goes through a text once, turning lines and columns that do not go back into byte offsets and positions.
struct Walk<'a> {
    rest: std::str::CharIndices<'a>,
    at: Location,
    position: usize,
}

impl<'a> Walk<'a> {
    fn new(text: &'a str) -> Self {
        Walk { rest: text.char_indices(), at: Location::new(1, 1), position: 1 }
    }

    fn to(&mut self, target: Location) -> (usize, usize) {
        while (self.at.line, self.at.column) < (target.line, target.column) {
            match self.rest.next() {
                Some((_, '\n')) => self.at = Location::new(self.at.line + 1, 1),
                Some(_) => self.at.column += 1,
                None => break,
            }
            self.position += 1;
        }
        (self.rest.offset(), self.position)
    }
}
