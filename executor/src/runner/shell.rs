//! Shell: a script, which needs no runner of ours.
//!
//! It finds the event in the file `$EVENT_FILE`, and in `$EVENT_JSON` unless it is too large for an
//! environment variable; it returns JSON over descriptor 3 or in the file `$RESULT_FILE`.

use std::path::Path;

use bytes::Bytes;

use super::Returned;
use crate::{isolation::jail::Scene, native::wire::RESULT_FILE_MARK, parent::Spec, request::Start};

/// The largest event that is in `$EVENT_JSON`; the kernel takes 128 KiB per string.
const MAX_EVENT_IN_ENV: usize = 96 << 10;

pub(super) fn spec(interpreter: &Path, scene: &Scene, start: &Start, code: &Bytes) -> Spec {
    let event = &start.event;
    let place = |name: &str| scene.scratch.join(name).display().to_string();
    let (script, event_file) = (place("script.sh"), place("event.json"));
    let result_file = scene.result_file().display().to_string();
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    let mut env =
        vec![("EVENT_FILE".to_owned(), event_file.clone()), ("RESULT_FILE".to_owned(), result_file)];
    if event.len() <= MAX_EVENT_IN_ENV {
        env.push(("EVENT_JSON".to_owned(), text(event)));
    }
    Spec {
        argv: vec![interpreter.display().to_string(), script.clone()],
        env,
        files: vec![(script, text(code)), (event_file, text(event))],
        has_result: true,
        ..Spec::default()
    }
}

/// The descriptor's bytes, or else those of the file, which follow a mark. Nothing but white space
/// is nothing.
pub(super) fn read_result(raw: &[u8]) -> Returned {
    let mut sources = raw.splitn(2, |byte| *byte == RESULT_FILE_MARK).map(<[u8]>::trim_ascii);
    match sources.find(|source| !source.is_empty()) {
        Some(json) => Returned::value(Bytes::copy_from_slice(json)),
        None => Returned::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptor_comes_before_file_and_blank_is_nothing() {
        let value = |raw: &[u8]| read_result(raw).value;
        assert_eq!(value(b""), None);
        assert_eq!(value(b" \n\0\n"), None);
        assert_eq!(value(b"{\"a\":1}\n").as_deref(), Some(&b"{\"a\":1}"[..]));
        assert_eq!(value(b"\0[2]\n").as_deref(), Some(&b"[2]"[..]));
        assert_eq!(value(b"1\0[2]").as_deref(), Some(&b"1"[..]));
        assert_eq!(read_result(b"hello").error.unwrap().r#type, "ReturnValueNotJson");
    }
}
