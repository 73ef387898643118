//! JSON strings of output. The library looks at one byte at a time, and output is long: here what needs no
//! escape is found in blocks, which the compiler makes into a few instructions each.

/// The bytes that are looked at together.
const BLOCK: usize = 32;

/// Adds `text` to `json`, in quotes.
pub(super) fn push_string(json: &mut String, text: &str) {
    json.reserve(text.len() + text.len() / 16 + 2);
    json.push('"');
    let mut rest = text;
    loop {
        let (plain, after) = rest.split_at(plain_prefix(rest.as_bytes()));
        json.push_str(plain);
        let Some(byte) = after.bytes().next() else { break };
        push_escape(json, byte);
        rest = &after[1..];
    }
    json.push('"');
}

/// All of these are characters of one byte, so text can be cut before and after each.
const fn is_escaped(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// How many bytes come before the first that is escaped.
fn plain_prefix(bytes: &[u8]) -> usize {
    // No early exit inside a block, or it would be one byte at a time again.
    let is_plain = |block: &[u8; BLOCK]| !block.iter().fold(false, |any, byte| any | is_escaped(*byte));
    let (blocks, _) = bytes.as_chunks::<BLOCK>();
    let start = blocks.iter().take_while(|block| is_plain(block)).count() * BLOCK;
    let rest = &bytes[start..];
    start + rest.iter().position(|byte| is_escaped(*byte)).unwrap_or(rest.len())
}

fn push_escape(json: &mut String, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    match byte {
        b'"' => json.push_str("\\\""),
        b'\\' => json.push_str("\\\\"),
        b'\n' => json.push_str("\\n"),
        b'\r' => json.push_str("\\r"),
        b'\t' => json.push_str("\\t"),
        0x08 => json.push_str("\\b"),
        0x0c => json.push_str("\\f"),
        _ => {
            json.push_str("\\u00");
            json.push(char::from(DIGITS[usize::from(byte >> 4)]));
            json.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn strings_are_those_of_the_library(
            text in prop_oneof![any::<String>(), "[a-z\"\\\\\u{0}-\u{1f}\u{7f}é€😀]{0,99}", "[a-z]{30,99}\n[a-z]{0,99}"],
        ) {
            let mut json = String::from("x");
            push_string(&mut json, &text);
            prop_assert_eq!(&json[1..], serde_json::to_string(&text).unwrap());
        }
    }
}
