//! Flink's spelling of window functions → ours, on the tokens.

use sqlparser::tokenizer::{Token, TokenWithSpan};

/// Rewrites `TABLE(HOP(TABLE t, DESCRIPTOR(ts), a, b))` to `HOP(t, ts, a, b)`, and likewise TUMBLE, CUMULATE and SESSION,
/// with or without the outer `TABLE( )`. Only tokens are taken away, so the rest keep their places.
pub(super) fn rewrite(tokens: &mut Vec<TokenWithSpan>) {
    let candidates: Vec<usize> = (0..tokens.len()).filter(|&i| is_window_call(tokens, i)).collect();
    if candidates.is_empty() {
        return;
    }
    let closing = closing_brackets(tokens);
    let mut keep = vec![true; tokens.len()];
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
    let mut kept = keep.iter();
    tokens.retain(|_| kept.next().copied().unwrap_or(true));
}

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
