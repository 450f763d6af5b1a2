//! One pass over the bytes of a JSON text: full grammar, no allocation, no recursion.

/// Where and why a text is not JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Syntax {
    pub at: usize,
    pub what: &'static str,
}

/// Objects and arrays inside one another, the record's own object counted.
pub(super) const MAX_DEPTH: u32 = 128;

/// The text is UTF-8; the caller has checked that.
#[derive(Clone)]
pub(super) struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// The text between two quotes, as written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Text<'a> {
    pub raw: &'a [u8],
    pub escaped: bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Number<'a> {
    pub text: &'a [u8],
    /// The value, if it is written as an integer of at most 18 digits.
    pub integer: Option<i64>,
}

impl<'a> Scanner<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Scanner { bytes, at: 0 }
    }

    pub fn position(&self) -> usize {
        self.at
    }

    /// Everything from `start` on, for excerpts.
    pub fn from(&self, start: usize) -> &'a [u8] {
        &self.bytes[start.min(self.bytes.len())..]
    }

    #[inline]
    pub fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    #[inline]
    pub fn bump(&mut self) {
        self.at += 1;
    }

    #[inline]
    pub fn skip_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }

    #[inline]
    pub fn eat(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    #[inline]
    pub fn expect(&mut self, byte: u8, what: &'static str) -> Result<(), Syntax> {
        if self.eat(byte) { Ok(()) } else { Err(self.error(what)) }
    }

    /// Passes `pattern` if it comes next.
    #[inline]
    pub fn eat_all(&mut self, pattern: &Pattern) -> bool {
        let found = pattern.begins(&self.bytes[self.at..]);
        if found {
            self.at += pattern.bytes.len();
        }
        found
    }

    /// What has been passed since position `start`.
    pub fn passed(&self, start: usize) -> &'a [u8] {
        &self.bytes[start..self.at]
    }

    #[cold]
    pub fn error(&self, what: &'static str) -> Syntax {
        Syntax { at: self.at, what: if self.at >= self.bytes.len() { "it ends too early" } else { what } }
    }

    /// The rest of a string whose opening quote has been passed.
    // Inlined by force, like `number`: returned through memory, the outcome costs more than finding it.
    #[inline(always)]
    pub fn text(&mut self) -> Result<Text<'a>, Syntax> {
        let start = self.at;
        self.at = find_special(self.bytes, start);
        if self.peek() == Some(b'"') {
            let raw = &self.bytes[start..self.at];
            self.at += 1;
            return Ok(Text { raw, escaped: false });
        }
        self.escaped_text(start)
    }

    #[inline(never)]
    fn escaped_text(&mut self, start: usize) -> Result<Text<'a>, Syntax> {
        loop {
            match self.peek() {
                Some(b'"') => {
                    let raw = &self.bytes[start..self.at];
                    self.at += 1;
                    return Ok(Text { raw, escaped: true });
                }
                Some(b'\\') => {
                    self.at += 1;
                    self.escape()?;
                }
                _ => return Err(self.error("a control character in a string must be escaped")),
            }
            self.at = find_special(self.bytes, self.at);
        }
    }

    fn escape(&mut self) -> Result<(), Syntax> {
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.at += 1;
                Ok(())
            }
            Some(b'u') => {
                self.at += 1;
                for _ in 0..4 {
                    match self.peek() {
                        Some(b) if b.is_ascii_hexdigit() => self.at += 1,
                        _ => return Err(self.error("\\u needs four hexadecimal digits")),
                    }
                }
                Ok(())
            }
            _ => Err(self.error("no such escape in a string")),
        }
    }

    /// A number, whose first character comes next.
    #[inline(always)]
    pub fn number(&mut self) -> Result<Number<'a>, Syntax> {
        let start = self.at;
        let negative = self.eat(b'-');
        let digits = self.at;
        let mut value = 0i64;
        if let Some(eight) = self.bytes[digits..].first_chunk::<8>() {
            let (first, count) = leading_digits(*eight);
            value = first;
            self.at += count;
        }
        if self.at == digits || self.at == digits + 8 {
            while let Some(digit @ b'0'..=b'9') = self.peek() {
                value = value.wrapping_mul(10).wrapping_add(i64::from(digit - b'0'));
                self.at += 1;
            }
        }
        let count = self.at - digits;
        if count == 0 {
            return Err(self.error("expected a digit"));
        }
        if count > 1 && self.bytes[digits] == b'0' {
            self.at = digits;
            return Err(self.error("a number must not begin with 0"));
        }
        let mut integer = (count <= 18).then_some(if negative { value.wrapping_neg() } else { value });
        if let Some(b'.' | b'e' | b'E') = self.peek() {
            integer = None;
            self.fraction()?;
        }
        Ok(Number { text: &self.bytes[start..self.at], integer })
    }

    #[inline(never)]
    fn fraction(&mut self) -> Result<(), Syntax> {
        if self.eat(b'.') {
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), Syntax> {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        if self.at == start { Err(self.error("expected a digit")) } else { Ok(()) }
    }

    /// `true`, `false` or `null`, whose first character comes next.
    #[inline]
    pub fn word(&mut self, word: &'static [u8]) -> Result<(), Syntax> {
        if !self.bytes[self.at..].starts_with(word) {
            return Err(self.error("expected a value"));
        }
        self.at += word.len();
        Ok(())
    }

    /// Passes one value of any kind, `depth` objects and arrays deep, checking its grammar.
    pub fn skip_value(&mut self, depth: u32) -> Result<(), Syntax> {
        // Bit i of `objects` tells whether the i-th open bracket is that of an object.
        let (mut objects, mut open) = (0u128, 0u32);
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    self.text()?;
                }
                Some(b'-' | b'0'..=b'9') => {
                    self.number()?;
                }
                Some(b't') => self.word(b"true")?,
                Some(b'f') => self.word(b"false")?,
                Some(b'n') => self.word(b"null")?,
                Some(bracket @ (b'{' | b'[')) => {
                    if depth + open >= MAX_DEPTH {
                        return Err(self.error("objects and arrays are nested deeper than 128 levels"));
                    }
                    self.at += 1;
                    self.skip_space();
                    let is_object = bracket == b'{';
                    if !self.eat(if is_object { b'}' } else { b']' }) {
                        objects = objects & !(1 << open) | u128::from(is_object) << open;
                        open += 1;
                        if is_object {
                            self.skip_key()?;
                        }
                        continue;
                    }
                }
                _ => return Err(self.error("expected a value")),
            }
            // A value has ended: close what ends with it, up to the next value.
            loop {
                if open == 0 {
                    return Ok(());
                }
                let in_object = objects >> (open - 1) & 1 == 1;
                self.skip_space();
                if self.eat(b',') {
                    self.skip_space();
                    if in_object {
                        self.skip_key()?;
                    }
                    break;
                }
                match in_object {
                    true => self.expect(b'}', "expected ',' or '}'")?,
                    false => self.expect(b']', "expected ',' or ']'")?,
                }
                open -= 1;
            }
        }
    }

    fn skip_key(&mut self) -> Result<(), Syntax> {
        self.expect(b'"', "expected the name of a field")?;
        self.text()?;
        self.skip_space();
        self.expect(b':', "expected ':'")?;
        self.skip_space();
        Ok(())
    }
}

/// Bytes to be compared with often, in words of eight.
#[derive(Debug, Default)]
pub(super) struct Pattern {
    bytes: Vec<u8>,
    words: Vec<u64>,
    /// Which bits of the last word count.
    last_mask: u64,
}

impl Pattern {
    pub fn new(bytes: &[u8]) -> Pattern {
        let words: Vec<u64> = bytes
            .chunks(8)
            .map(|chunk| {
                let mut word = [0; 8];
                word[..chunk.len()].copy_from_slice(chunk);
                u64::from_le_bytes(word)
            })
            .collect();
        let last_bits = (bytes.len() * 8).saturating_sub(words.len().saturating_sub(1) * 64) as u32;
        Pattern { bytes: bytes.to_vec(), words, last_mask: u64::MAX.checked_shr(64 - last_bits).unwrap_or(0) }
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// True if `text` begins with this. An empty pattern stands for none and is never found.
    #[inline]
    fn begins(&self, text: &[u8]) -> bool {
        let Some((last, words)) = self.words.split_last() else { return false };
        let Some(text) = text.get(..self.words.len() * 8) else { return text.starts_with(&self.bytes) };
        let (chunks, _) = text.as_chunks::<8>();
        let mut differ = 0;
        for (word, chunk) in words.iter().zip(chunks) {
            differ |= word ^ u64::from_le_bytes(*chunk);
        }
        differ |= (last ^ u64::from_le_bytes(chunks[words.len()])) & self.last_mask;
        differ == 0
    }
}

/// How many of the eight are digits, from the first on, and their value.
#[inline]
fn leading_digits(eight: [u8; 8]) -> (i64, usize) {
    const ONES: u64 = u64::MAX / 255;
    let word = u64::from_le_bytes(eight);
    let nibbles = word ^ (ONES * b'0' as u64);
    // The high half of a byte is zero for 0..=15, and stays so after adding 6 for 0..=9. Carries go to higher bytes only.
    let marks = (nibbles | nibbles.wrapping_add(ONES * 6)) & (ONES * 0xf0);
    let count = if marks == 0 { 8 } else { marks.trailing_zeros() as usize / 8 };
    if count == 0 {
        return (0, 0);
    }
    // The digits move to the high end, zeros before them; then pairs, fours and eights are added up.
    let digits = nibbles << (64 - 8 * count);
    let pairs = (digits * 10 + (digits >> 8)) & 0x00ff_00ff_00ff_00ff;
    let fours = (pairs * 100 + (pairs >> 16)) & 0x0000_ffff_0000_ffff;
    let value = (fours.wrapping_mul(10_000).wrapping_add(fours >> 32)) & 0xffff_ffff;
    (value as i64, count)
}

/// The first quote, backslash or control character at or after `at`, eight bytes at a time.
#[inline]
fn find_special(bytes: &[u8], mut at: usize) -> usize {
    const ONES: u64 = u64::MAX / 255;
    const HIGH: u64 = ONES << 7;
    while let Some(chunk) = bytes.get(at..at + 8) {
        let word = u64::from_le_bytes(chunk.try_into().expect("eight bytes"));
        let quote = word ^ (ONES * b'"' as u64);
        let backslash = word ^ (ONES * b'\\' as u64);
        // The lowest byte marked is exact; borrows can only mark higher ones wrongly.
        let zero = |w: u64| w.wrapping_sub(ONES) & !w;
        let control = word.wrapping_sub(ONES * 0x20) & !word;
        let marks = (zero(quote) | zero(backslash) | control) & HIGH;
        if marks != 0 {
            return at + marks.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    while at < bytes.len() && !matches!(bytes[at], b'"' | b'\\' | 0..=0x1f) {
        at += 1;
    }
    at
}

/// Writes the text that `raw` stands for. Its escapes have been checked for form; what no VARCHAR can hold is refused here.
pub(super) fn unescape(raw: &[u8], out: &mut Vec<u8>) -> Result<(), &'static str> {
    let mut rest = raw;
    while let Some(slash) = rest.iter().position(|b| *b == b'\\') {
        out.extend_from_slice(&rest[..slash]);
        let kind = rest[slash + 1];
        rest = &rest[slash + 2..];
        let plain = match kind {
            b'b' => 0x08,
            b'f' => 0x0c,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                let mut code = hex4(rest);
                rest = &rest[4..];
                if (0xd800..0xdc00).contains(&code) && rest.starts_with(b"\\u") {
                    let low = hex4(&rest[2..]);
                    if (0xdc00..0xe000).contains(&low) {
                        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
                        rest = &rest[6..];
                    }
                }
                let c = char::from_u32(code).ok_or("half of a surrogate pair is no character")?;
                if c == '\0' {
                    return Err("\\u0000 cannot be stored");
                }
                out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                continue;
            }
            other => other,
        };
        out.push(plain);
    }
    out.extend_from_slice(rest);
    Ok(())
}

fn hex4(digits: &[u8]) -> u32 {
    digits[..4].iter().fold(0, |code, d| code * 16 + (*d as char).to_digit(16).expect("checked by the scanner"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn valid(text: &[u8]) -> bool {
        let mut scanner = Scanner::new(text);
        scanner.skip_space();
        let ok = scanner.skip_value(0).is_ok();
        scanner.skip_space();
        ok && scanner.peek().is_none()
    }

    /// Bytes that are nearly JSON.
    fn nearly_json() -> impl Strategy<Value = Vec<u8>> {
        let pieces = [
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "\"",
            "\"a\"",
            "\"\\n\"",
            "\\",
            "\\u00e9",
            "\\ud800",
            "0",
            "12",
            "-",
            ".",
            "5",
            "e",
            "E+",
            "true",
            "false",
            "null",
            "nul",
            " ",
            "\n",
            "\t",
            "\u{1}",
            "é",
            "\"key\":",
            "[1,2]",
            "{\"a\":{\"b\":[]}}",
            "1e5",
            "01",
        ];
        prop::collection::vec(prop::sample::select(pieces.to_vec()), 0..12).prop_map(|v| v.concat().into_bytes())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn accepts_what_serde_json_accepts(text in nearly_json()) {
            let theirs = serde_json::from_slice::<serde::de::IgnoredAny>(&text).is_ok();
            prop_assert_eq!(valid(&text), theirs, "{:?}", String::from_utf8_lossy(&text));
        }

        #[test]
        fn numbers_have_their_value(text in "-?(0|[1-9][0-9]{0,17})", rest in "[,} ]{0,9}") {
            let bytes = format!("{text}{rest}").into_bytes();
            let number = Scanner::new(&bytes).number().expect("a number");
            prop_assert_eq!(number.text, text.as_bytes());
            prop_assert_eq!(number.integer, text.parse().ok());
        }

        #[test]
        fn patterns_are_found(bytes in prop::collection::vec(0u8..3, 1..20), text in prop::collection::vec(0u8..3, 0..40)) {
            prop_assert_eq!(Pattern::new(&bytes).begins(&text), text.starts_with(&bytes));
            let text = [&bytes[..], &text].concat();
            prop_assert!(Pattern::new(&bytes).begins(&text));
        }

        #[test]
        fn special_characters_are_found(bytes in prop::collection::vec(prop_oneof![0u8..=255, Just(b'"'), Just(b'a')], 0..40), at in 0usize..40) {
            let at = at.min(bytes.len());
            let expected = bytes[at..].iter().position(|b| matches!(b, b'"' | b'\\' | 0..=0x1f)).map_or(bytes.len(), |i| at + i);
            prop_assert_eq!(find_special(&bytes, at), expected);
        }
    }

    #[test]
    fn nesting() {
        let nested = |n: usize| ["[".repeat(n), "]".repeat(n)].concat();
        assert!(valid(nested(128).as_bytes()));
        assert!(!valid(nested(129).as_bytes()));
        assert!(!valid(nested(100_000).as_bytes()));
    }

    #[test]
    fn unescapes() {
        let check = |raw: &str| {
            let mut out = Vec::new();
            unescape(raw.as_bytes(), &mut out).map(|()| String::from_utf8(out).expect("UTF-8"))
        };
        assert_eq!(check(r#"a\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00z"#), Ok("a\"\\/\u{8}\u{c}\n\r\té😀z".into()));
        assert_eq!(check(r"\ud83dx"), Err("half of a surrogate pair is no character"));
        assert_eq!(check(r"\ud83d\u0041"), Err("half of a surrogate pair is no character"));
        assert_eq!(check(r"a\u0000"), Err("\\u0000 cannot be stored"));
    }
}
