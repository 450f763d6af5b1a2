//! Flink's spelling of window functions → ours, on the tokens.

use std::ops::Range;

use sqlparser::tokenizer::{Token, TokenWithSpan};

/// Rewrites `TABLE(HOP(TABLE t, DESCRIPTOR(ts), a, b))` to `HOP(t, ts, a, b)`, and likewise TUMBLE, CUMULATE and SESSION,
/// with or without the outer `TABLE( )`; `SESSION(t PARTITION BY a, b, DESCRIPTOR(ts), gap)` to
/// `SESSION(t, partition_by(a, b), ts, gap)`. Tokens that stay keep their places, and new ones have those of their neighbours.
pub(super) fn rewrite(tokens: &mut Vec<TokenWithSpan>) {
    let candidates: Vec<usize> = (0..tokens.len()).filter(|&i| is_window_call(tokens, i)).collect();
    if candidates.is_empty() {
        return;
    }
    let closing = closing_brackets(tokens);
    let mut keep = vec![true; tokens.len()];
    let mut brackets: Vec<(usize, Token)> = Vec::new();
    for call in candidates {
        let open = call + 1;
        let Some(close) = closing[open] else { continue };
        if call >= 2
            && tokens[call - 1].token == Token::LParen
            && is_word(tokens, call - 2, "TABLE")
            && closing[call - 1] == Some(close + 1)
        {
            (keep[call - 2], keep[call - 1], keep[close + 1]) = (false, false, false);
        }
        if is_word(tokens, call, "SESSION") {
            partition_by(tokens, open..close, &closing, &mut brackets);
        }
        let mut i = open + 1;
        while i < close {
            let starts_argument = matches!(tokens[i - 1].token, Token::LParen | Token::Comma | Token::RArrow);
            if starts_argument && is_word(tokens, i, "TABLE") && matches!(tokens[i + 1].token, Token::Word(_)) {
                keep[i] = false;
            } else if starts_argument
                && is_word(tokens, i, "DESCRIPTOR")
                && let Some(end) = closing[i + 1]
                && end == i + 3
            {
                (keep[i], keep[i + 1], keep[end]) = (false, false, false);
            }
            i = closing[i].map_or(i + 1, |end| end + 1);
        }
    }
    for (i, token) in std::mem::take(tokens).into_iter().enumerate() {
        let new = brackets.iter().filter(|(before, _)| *before == i);
        tokens.extend(new.map(|(_, bracket)| TokenWithSpan { token: bracket.clone(), span: token.span }));
        if keep[i] {
            tokens.push(token);
        }
    }
}

/// Makes an argument of `PARTITION BY`; the brackets that it lacks are to be put in before these tokens.
fn partition_by(
    tokens: &mut [TokenWithSpan],
    call: Range<usize>,
    closing: &[Option<usize>],
    brackets: &mut Vec<(usize, Token)>,
) {
    let mut outer = Vec::new();
    let mut i = call.start + 1;
    while i < call.end {
        outer.push(i);
        i = closing[i].map_or(i + 1, |end| end + 1);
    }
    let Some(at) = outer.iter().position(|&i| is_word(tokens, i, "PARTITION") && is_word(tokens, i + 1, "BY")) else {
        return;
    };
    let commas = |from: usize| outer.iter().copied().filter(move |&i| i >= from);
    let (partition, keys) = (outer[at], outer[at] + 2);
    let is_comma = |i: &usize| tokens[*i].token == Token::Comma;
    if commas(0).take_while(|&i| i < partition).any(|i| is_comma(&i)) {
        return;
    }
    // The list ends where the time begins: at DESCRIPTOR, or else at the first comma.
    let before_time = |i: &usize| is_comma(i) && is_word(tokens, i + 1, "DESCRIPTOR");
    let first_comma = commas(keys).find(|i| is_comma(i));
    let Some(end) = commas(keys).find(before_time).or(first_comma) else { return };
    let in_brackets = tokens[keys].token == Token::LParen && closing[keys].is_some_and(|close| close + 1 == end);
    if !in_brackets {
        brackets.extend([(keys, Token::LParen), (end, Token::RParen)]);
    }
    tokens[partition].token = Token::Comma;
    tokens[partition + 1].token = Token::make_word(PARTITION_BY, None);
}

/// What `PARTITION BY` inside SESSION becomes: a call of this name.
pub const PARTITION_BY: &str = "partition_by";

fn is_window_call(tokens: &[TokenWithSpan], i: usize) -> bool {
    ["HOP", "TUMBLE", "CUMULATE", "SESSION"].iter().any(|name| is_word(tokens, i, name))
        && tokens.get(i + 1).is_some_and(|next| next.token == Token::LParen)
}

fn is_word(tokens: &[TokenWithSpan], i: usize, expected: &str) -> bool {
    matches!(tokens.get(i), Some(TokenWithSpan { token: Token::Word(word), .. })
        if word.quote_style.is_none() && word.value.eq_ignore_ascii_case(expected))
}

/// For each opening parenthesis the index of its closing one.
fn closing_brackets(tokens: &[TokenWithSpan]) -> Vec<Option<usize>> {
    let mut closing = vec![None; tokens.len()];
    let mut open = Vec::new();
    for (i, token) in tokens.iter().enumerate() {
        match token.token {
            Token::LParen => open.push(i),
            Token::RParen => {
                if let Some(start) = open.pop() {
                    closing[start] = Some(i);
                }
            }
            _ => {}
        }
    }
    closing
}
