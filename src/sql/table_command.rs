//! `TABLE t` → `SELECT * FROM t`, on the tokens. sqlparser takes the three tokens behind TABLE whatever they are, and so would
//! lose a LIMIT.

use sqlparser::keywords::Keyword;
use sqlparser::tokenizer::{Token, TokenWithSpan};

/// Rewrites TABLE where a query may begin: at the start, in brackets, and behind AS, EXPLAIN and set operations.
pub(super) fn rewrite(tokens: &mut Vec<TokenWithSpan>) {
    let begins = |i: usize| {
        is_keyword(&tokens[i].token, &[Keyword::TABLE])
            && matches!(tokens.get(i + 1), Some(next) if matches!(next.token, Token::Word(_)))
            && match i.checked_sub(1).map(|before| &tokens[before].token) {
                None | Some(Token::LParen | Token::RParen) => true,
                Some(before) => is_keyword(
                    before,
                    &[
                        Keyword::AS,
                        Keyword::EXPLAIN,
                        Keyword::ANALYZE,
                        Keyword::VERBOSE,
                        Keyword::UNION,
                        Keyword::EXCEPT,
                        Keyword::INTERSECT,
                        Keyword::ALL,
                        Keyword::DISTINCT,
                    ],
                ),
            }
    };
    let places: Vec<usize> = (0..tokens.len()).filter(|&i| begins(i)).collect();
    for i in places.into_iter().rev() {
        let span = tokens[i].span;
        let select = [Token::make_keyword("SELECT"), Token::Mul, Token::make_keyword("FROM")];
        tokens.splice(i..=i, select.map(|token| TokenWithSpan::new(token, span)));
    }
}

fn is_keyword(token: &Token, keywords: &[Keyword]) -> bool {
    matches!(token, Token::Word(word) if word.quote_style.is_none() && keywords.contains(&word.keyword))
}

#[cfg(test)]
mod tests {
    use crate::sql::{Statement, parse};

    fn check(text: &str, expected: &str) {
        match parse(text).expect("it parses").remove(0).statement {
            Statement::Query(query) => assert_eq!(query.to_string(), expected),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_table_command_is_a_select() {
        check("TABLE t LIMIT 1", "SELECT * FROM t LIMIT 1");
        check("TABLE s.t UNION ALL (TABLE u ORDER BY 1)", "SELECT * FROM s.t UNION ALL (SELECT * FROM u ORDER BY 1)");
        check("WITH c AS (TABLE t) TABLE c", "WITH c AS (SELECT * FROM t) SELECT * FROM c");
    }
}
