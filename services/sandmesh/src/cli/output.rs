//! What a command prints at its end, at once: text, JSON, and notes for the person at the terminal.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use super::failure::Failure;

/// Prints text to the standard output as it is.
pub(super) fn text(text: &str) -> Result<(), Failure> {
    bytes(text.as_bytes())
}

/// Prints bytes to the standard output.
pub(super) fn bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(|error| Failure::output(&error))
}

/// Prints one JSON document and a newline: indented on a terminal, else on one line.
pub(super) fn json(value: &impl Serialize) -> Result<(), Failure> {
    let document = serde_json::to_string(value)
        .map_err(|error| Failure::broken(format!("cannot write the answer as JSON: {error}")))?;
    json_text(&document)
}

/// Prints JSON text and a newline: indented on a terminal, else as it is.
pub(super) fn json_text(json: &str) -> Result<(), Failure> {
    let json = if io::stdout().is_terminal() { indent(json) } else { json.to_owned() };
    text(&(json + "\n"))
}

/// Tells the person something, on the standard error. That nobody listens is no failure.
pub(super) fn note(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// The same JSON, indented. It works on the text, because a parser would round large numbers.
fn indent(json: &str) -> String {
    let mut text = String::with_capacity(json.len() * 2);
    let mut depth = 0usize;
    let mut chars = json.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '"' => {
                text.push('"');
                copy_string(&mut chars, &mut text);
            }
            '{' | '[' => {
                text.push(char);
                skip_space(&mut chars);
                if chars.peek().is_some_and(|next| matches!(next, '}' | ']')) {
                    text.extend(chars.next());
                } else {
                    depth += 1;
                    new_line(&mut text, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                new_line(&mut text, depth);
                text.push(char);
            }
            ',' => {
                text.push(',');
                new_line(&mut text, depth);
            }
            ':' => text.push_str(": "),
            char if char.is_ascii_whitespace() => {}
            char => text.push(char),
        }
    }
    text
}

type Chars<'a> = std::iter::Peekable<std::str::Chars<'a>>;

/// Copies the rest of a string literal, its closing quote included.
fn copy_string(chars: &mut Chars<'_>, text: &mut String) {
    while let Some(char) = chars.next() {
        text.push(char);
        match char {
            '\\' => text.extend(chars.next()),
            '"' => return,
            _ => {}
        }
    }
}

fn skip_space(chars: &mut Chars<'_>) {
    while chars.next_if(char::is_ascii_whitespace).is_some() {}
}

fn new_line(text: &mut String, depth: usize) {
    text.push('\n');
    for _ in 0..depth {
        text.push_str("  ");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indented_json_is_the_same_value_in_the_usual_form() {
        for json in [
            r#"{"a":[1,{"b":null},[]],"c":{},"d":"x,{\"y\":\\"}"#,
            r#"[ ]"#,
            r#""plain""#,
            r#"[{ "k" : [ true , false ] }]"#,
        ] {
            let value: serde_json::Value = serde_json::from_str(json).unwrap();
            assert_eq!(indent(json), serde_json::to_string_pretty(&value).unwrap());
        }
    }

    #[test]
    fn large_numbers_keep_their_digits() {
        assert_eq!(indent("[123456789012345678901234567890]"), "[\n  123456789012345678901234567890\n]");
    }
}
