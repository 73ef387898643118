//! Opaque page tokens: a list of strings, so that a cursor can hold a sort key and an id.

use std::fmt::Write;

/// A page token that this mesh did not make.
#[derive(Debug, thiserror::Error)]
#[error("the page token was not made by this service")]
pub struct InvalidPageToken;

/// Makes a token of the parts of a cursor.
#[must_use]
pub fn encode(parts: &[&str]) -> String {
    let text = serde_json::Value::from(parts).to_string();
    text.bytes().fold(String::with_capacity(text.len() * 2), |mut token, byte| {
        let _ = write!(token, "{byte:02x}");
        token
    })
}

/// Reads the parts of a cursor back.
///
/// # Errors
/// When the token was not made by [`encode`].
pub fn decode(token: &str) -> Result<Vec<String>, InvalidPageToken> {
    let nibbles: Option<Vec<u8>> =
        token.chars().map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
    let nibbles = nibbles.filter(|n| n.len().is_multiple_of(2)).ok_or(InvalidPageToken)?;
    let bytes: Vec<u8> = nibbles.chunks_exact(2).map(|pair| (pair[0] << 4) | pair[1]).collect();
    serde_json::from_slice(&bytes).map_err(|_| InvalidPageToken)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_cursor_survives_its_token(parts in proptest::collection::vec(".*", 0..4)) {
            let borrowed: Vec<&str> = parts.iter().map(String::as_str).collect();
            prop_assert_eq!(decode(&encode(&borrowed)).unwrap(), parts);
        }

        #[test]
        fn a_foreign_token_is_refused_and_does_not_panic(token in "[^0-9a-f]+") {
            prop_assert!(decode(&token).is_err());
        }
    }
}
