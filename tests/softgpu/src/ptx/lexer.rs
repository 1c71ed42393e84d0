//! PTX text to tokens.

use super::PtxError;

/// A token; text borrows from the source.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Tok<'a> {
    /// `add`, `%r1`, `$L_1`, `_`.
    Ident(&'a str),
    /// `.b32`, without the dot; may contain `::`.
    Dot(&'a str),
    /// An integer literal, as 64 bits.
    Int(i64),
    /// An `0f` literal.
    F32(u32),
    /// An `0d` literal or a decimal fraction.
    F64(u64),
    /// A quoted string, without quotes.
    Str(&'a str),
    /// Punctuation.
    Punct(u8),
    /// End of text.
    End,
}

/// A token with its place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Token<'a> {
    pub tok: Tok<'a>,
    pub line: u32,
    /// Byte range in the source.
    pub start: usize,
    pub end: usize,
}

fn is_word(c: u8) -> bool {
    c.is_ascii_alphanumeric() || c == b'_' || c == b'$'
}

/// Splits `src` into tokens, ending in [`Tok::End`].
pub(super) fn lex(src: &str) -> Result<Vec<Token<'_>>, PtxError> {
    let s = src.as_bytes();
    let mut out = Vec::with_capacity(s.len() / 4);
    let mut line = 1u32;
    let mut i = 0;
    // Bytes are compared as ASCII; a slice boundary always falls on an ASCII byte, except in
    // strings and comments, which end on one.
    while i < s.len() {
        let c = s[i];
        let start = i;
        match c {
            b'\n' => {
                line += 1;
                i += 1;
                continue;
            }
            b' ' | b'\t' | b'\r' | 0 => {
                i += 1;
                continue;
            }
            b'/' if s.get(i + 1) == Some(&b'/') => {
                while i < s.len() && s[i] != b'\n' {
                    i += 1;
                }
                continue;
            }
            b'/' if s.get(i + 1) == Some(&b'*') => {
                i += 2;
                loop {
                    if i + 1 >= s.len() {
                        return Err(PtxError::new(line, "unterminated comment", "/*"));
                    }
                    if s[i] == b'*' && s[i + 1] == b'/' {
                        i += 2;
                        break;
                    }
                    if s[i] == b'\n' {
                        line += 1;
                    }
                    i += 1;
                }
                continue;
            }
            b'"' => {
                i += 1;
                while i < s.len() && s[i] != b'"' && s[i] != b'\n' {
                    i += 1;
                }
                if i >= s.len() || s[i] != b'"' {
                    return Err(PtxError::new(line, "unterminated string", "\""));
                }
                i += 1;
                out.push(Token { tok: Tok::Str(&src[start + 1..i - 1]), line, start, end: i });
                continue;
            }
            b'.' if s.get(i + 1).is_some_and(|&c| is_word(c)) => {
                i += 1;
                loop {
                    while i < s.len() && is_word(s[i]) {
                        i += 1;
                    }
                    let qualified = s.get(i) == Some(&b':')
                        && s.get(i + 1) == Some(&b':')
                        && s.get(i + 2).is_some_and(|&c| is_word(c));
                    if !qualified {
                        break;
                    }
                    i += 2;
                }
                out.push(Token { tok: Tok::Dot(&src[start + 1..i]), line, start, end: i });
                continue;
            }
            b'0'..=b'9' => {
                while i < s.len() && (is_word(s[i]) || s[i] == b'.') {
                    i += 1;
                    let exponent = matches!(s[i - 1], b'e' | b'E')
                        && src[start..i].contains('.')
                        && matches!(s.get(i), Some(b'+' | b'-'));
                    if exponent {
                        i += 1;
                    }
                }
                let text = &src[start..i];
                let tok =
                    number(text).ok_or_else(|| PtxError::new(line, "malformed number", text))?;
                out.push(Token { tok, line, start, end: i });
                continue;
            }
            b'%' | b'_' | b'$' | b'a'..=b'z' | b'A'..=b'Z' => {
                i += 1;
                while i < s.len() && is_word(s[i]) {
                    i += 1;
                }
                out.push(Token { tok: Tok::Ident(&src[start..i]), line, start, end: i });
                continue;
            }
            b'{' | b'}' | b'(' | b')' | b'[' | b']' | b'<' | b'>' | b',' | b';' | b':' | b'+'
            | b'-' | b'=' | b'!' | b'|' | b'@' | b'*' | b'~' => {
                i += 1;
                out.push(Token { tok: Tok::Punct(c), line, start, end: i });
            }
            _ => {
                return Err(PtxError::new(line, "unexpected character", format!("0x{c:02x}")));
            }
        }
    }
    out.push(Token { tok: Tok::End, line, start: s.len(), end: s.len() });
    Ok(out)
}

fn number(text: &str) -> Option<Tok<'static>> {
    let digits = text.trim_end_matches('U');
    let lower = digits.as_bytes();
    if lower.len() == 10 && matches!(&lower[..2], b"0f" | b"0F") {
        return u32::from_str_radix(&digits[2..], 16).ok().map(Tok::F32);
    }
    if lower.len() == 18 && matches!(&lower[..2], b"0d" | b"0D") {
        return u64::from_str_radix(&digits[2..], 16).ok().map(Tok::F64);
    }
    let value = match lower.get(..2) {
        Some(b"0x" | b"0X") => u64::from_str_radix(&digits[2..], 16).ok()?,
        Some(b"0b" | b"0B") => u64::from_str_radix(&digits[2..], 2).ok()?,
        _ if digits.contains('.') => {
            return digits.parse::<f64>().ok().map(|x| Tok::F64(x.to_bits()));
        }
        _ if lower.len() > 1 && lower[0] == b'0' => u64::from_str_radix(&digits[1..], 8).ok()?,
        _ => digits.parse::<u64>().ok()?,
    };
    Some(Tok::Int(value as i64))
}
