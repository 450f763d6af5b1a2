//! Text → tokens, cut into statements, with the bounds that keep later work off the end of the stack.

use std::ops::Range;

use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::tokenizer::{Location, Token, TokenWithSpan, Tokenizer, Whitespace};

use super::SqlError;

/// Brackets open at once.
const MAX_NESTING: usize = 200;
/// Operators in one run without a bracket or comma: `a OR b OR c` becomes a tree as deep as it is long.
const MAX_CHAIN: usize = 4000;

/// The text that was sent, for positions in it.
#[derive(Clone, Copy)]
pub(super) struct Text<'a>(pub &'a str);

impl Text<'_> {
    /// Byte offset of a line and column; the end of the text for a location past it.
    pub(super) fn byte(self, location: Location) -> usize {
        Walk::new(self.0).to(location)
    }

    /// Characters from 1, as errors count them.
    pub(super) fn position(self, location: Location) -> usize {
        self.position_of_byte(self.byte(location))
    }

    pub(super) fn position_of_byte(self, byte: usize) -> usize {
        self.0.get(..byte).map_or(1, |before| before.chars().count() + 1)
    }

    pub(super) fn end(self) -> usize {
        self.position_of_byte(self.0.len())
    }

    /// `syntax error at or near "..."`.
    pub(super) fn near(self, range: Range<usize>) -> SqlError {
        let token = self.0.get(range.clone()).unwrap_or_default();
        SqlError::syntax(format!("syntax error at or near \"{token}\""), self.position_of_byte(range.start))
    }
}

/// One statement: tokens without white space, never empty.
pub(super) struct Piece {
    pub tokens: Vec<TokenWithSpan>,
    /// Where it stands in the text, in bytes, without the closing semicolon.
    pub range: Range<usize>,
    /// The closing semicolon in bytes, if there is one.
    pub semicolon: Option<usize>,
}

/// Tokenises once and cuts at semicolons; empty statements are left out.
pub(super) fn split(sql: &str) -> Result<Vec<Piece>, SqlError> {
    let text = Text(sql);
    if let Some(byte) = sql.find('\0') {
        return Err(SqlError::syntax("null character in a statement", text.position_of_byte(byte)));
    }
    let mut tokens = Vec::new();
    if Tokenizer::new(&PostgreSqlDialect {}, sql).tokenize_with_location_into_buf(&mut tokens).is_err() {
        let start = tokens.last().map_or(Location::new(1, 1), |last| last.span.end);
        return Err(bad_token(text, text.byte(start)));
    }

    let mut pieces = Vec::new();
    let mut current: Vec<TokenWithSpan> = Vec::new();
    let mut newline = false;
    let mut walk = Walk::new(sql);
    let mut close = |tokens: Vec<TokenWithSpan>, semicolon: Option<Location>| {
        if let (Some(first), Some(last)) = (tokens.first(), tokens.last()) {
            let range = walk.to(first.span.start)..walk.to(last.span.end);
            let semicolon = semicolon.map(|at| walk.to(at));
            pieces.push(Piece { tokens, range, semicolon });
        }
    };
    for token in tokens {
        match token.token {
            Token::Whitespace(Whitespace::Newline | Whitespace::SingleLineComment { .. }) => newline = true,
            Token::Whitespace(_) => {}
            Token::SemiColon => close(std::mem::take(&mut current), Some(token.span.start)),
            _ => {
                match (current.last_mut(), token.token) {
                    // 'a' and 'b' on two lines are one string.
                    (
                        Some(TokenWithSpan { token: Token::SingleQuotedString(before), span }),
                        Token::SingleQuotedString(after),
                    ) if newline => {
                        before.push_str(&after);
                        span.end = token.span.end;
                    }
                    (_, other) => current.push(TokenWithSpan::new(other, token.span)),
                }
                newline = false;
            }
        }
    }
    close(current, None);
    for piece in &pieces {
        check_depth(text, &piece.tokens)?;
    }
    Ok(pieces)
}

/// What the tokenizer could not finish, in Postgres' words.
fn bad_token(text: Text, start: usize) -> SqlError {
    let rest = text.0.get(start..).unwrap_or_default();
    let what = match rest.bytes().find(|b| !b.is_ascii_alphabetic() && *b != b'&') {
        Some(b'\'') => "unterminated quoted string",
        Some(b'"') => "unterminated quoted identifier",
        Some(b'$') => "unterminated dollar-quoted string",
        Some(b'/') if rest.starts_with("/*") => "unterminated /* comment",
        _ => "syntax error",
    };
    let shown: String = rest.chars().take(80).collect();
    SqlError::syntax(format!("{what} at or near \"{shown}\""), text.position_of_byte(start))
}

/// Refuses what would make a tree so deep that dropping or cloning it could exhaust the stack.
fn check_depth(text: Text, tokens: &[TokenWithSpan]) -> Result<(), SqlError> {
    let too_deep = |token: &TokenWithSpan| SqlError::TooDeep { position: Some(text.position(token.span.start)) };
    // Per open bracket: operators since the last comma, and set operations.
    let mut open = vec![(0usize, 0usize)];
    for token in tokens {
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
        if open.len() > MAX_NESTING || chain > MAX_CHAIN || sets > MAX_CHAIN {
            return Err(too_deep(token));
        }
    }
    Ok(())
}

/// The largest `$n` among the tokens, 0 for none.
pub(super) fn count_parameters(text: Text, tokens: &[TokenWithSpan]) -> Result<usize, SqlError> {
    let mut largest = 0;
    for token in tokens {
        let Token::Placeholder(name) = &token.token else { continue };
        let position = || text.position(token.span.start);
        match name.strip_prefix('$').map(str::parse::<u16>) {
            Some(Ok(number)) if number > 0 => largest = largest.max(usize::from(number)),
            Some(_) if name.len() > 1 && name[1..].bytes().all(|b| b.is_ascii_digit()) => {
                return Err(SqlError::syntax(format!("there is no parameter {name}"), position()));
            }
            _ => return Err(SqlError::syntax(format!("syntax error at or near \"{name}\""), position())),
        }
    }
    Ok(largest)
}

/// Goes through a text once, turning lines and columns that do not go back into byte offsets.
struct Walk<'a> {
    rest: std::str::CharIndices<'a>,
    at: Location,
}

impl<'a> Walk<'a> {
    fn new(text: &'a str) -> Self {
        Walk { rest: text.char_indices(), at: Location::new(1, 1) }
    }

    fn to(&mut self, target: Location) -> usize {
        while (self.at.line, self.at.column) < (target.line, target.column) {
            match self.rest.next() {
                Some((_, '\n')) => self.at = Location::new(self.at.line + 1, 1),
                Some(_) => self.at.column += 1,
                None => break,
            }
        }
        self.rest.offset()
    }
}
