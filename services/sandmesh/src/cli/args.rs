//! The words of the command line that are not plain text: durations, sizes, pairs, events.

use std::{convert::Infallible, fs::File, io::Read};

use sandmesh_mesh::{ByteSize, HumanDuration, Secret};
use sandmesh_proto::session::Dependency;

use super::failure::Failure;

/// The largest source text that the server takes.
pub(super) const MAX_CODE_BYTES: u64 = 1 << 20;
/// The largest event that the server takes.
pub(super) const MAX_EVENT_BYTES: u64 = 6 << 20;

/// A secret from the command line or the environment.
#[expect(clippy::unnecessary_wraps, reason = "the form clap wants")]
pub(super) fn secret(text: &str) -> Result<Secret, Infallible> {
    Ok(Secret::new(text))
}

/// `30s`, `5m`, `1h`, or a plain number of seconds.
pub(super) fn seconds(text: &str) -> Result<u32, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(seconds);
    }
    let HumanDuration(duration) = text.parse()?;
    match u32::try_from(duration.as_secs()) {
        Ok(seconds) if duration.subsec_nanos() == 0 => Ok(seconds),
        _ => Err(format!("`{text}` is not a whole number of seconds")),
    }
}

/// `1`, `0.5` or `500m` cores, in thousandths.
pub(super) fn cpu_millis(text: &str) -> Result<u32, String> {
    let millis = match text.strip_suffix('m') {
        Some(millis) => millis.parse().ok(),
        None => cores(text),
    };
    millis
        .filter(|millis| *millis > 0)
        .ok_or_else(|| format!("`{text}` is not a number of cores such as `1`, `0.5` or `500m`"))
}

/// Decimal cores, to the third digit.
fn cores(text: &str) -> Option<u32> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.len() > 3 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let fraction: u32 = format!("{fraction:0<3}").parse().ok()?;
    whole.parse::<u32>().ok()?.checked_mul(1000)?.checked_add(fraction)
}

/// `512Mi`, `1Gi`, `64MiB` or plain bytes.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(ByteSize(0)) => Err(format!("`{text}` is not more than nothing")),
        Ok(ByteSize(bytes)) => Ok(bytes),
        Err(_) => Err(format!("`{text}` is not a size such as `512Mi` or `1Gi`")),
    }
}

/// `KEY=VALUE`; the value may hold more `=` and may be empty.
pub(super) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is not of the form KEY=VALUE")),
    }
}

/// A package: `NAME` or `NAME==VERSION` and the like; for npm `NAME@RANGE`. What it may be the server knows.
pub(super) fn dependency(text: &str) -> Result<Dependency, String> {
    // A scope of npm begins with the sign that its version follows.
    let npm = text.get(1..).and_then(|rest| rest.find('@')).map(|at| (at + 1, at + 2));
    let python = text.find(['=', '<', '>', '!', '~', ' ']).map(|at| (at, at));
    let (end, start) = npm.or(python).unwrap_or((text.len(), text.len()));
    let (name, version) = (text[..end].trim(), text[start..].trim());
    if name.is_empty() {
        return Err(format!("`{text}` is not of the form NAME or NAME==VERSION"));
    }
    Ok(Dependency { name: name.to_owned(), version: version.to_owned() })
}

/// The event as JSON text: `text` itself, or the content of a file (`@path`) or of the standard input (`@-`).
pub(super) fn event(text: &str) -> Result<String, Failure> {
    let json = match text.strip_prefix('@') {
        Some(path) => read_text(path, MAX_EVENT_BYTES)?,
        None => text.to_owned(),
    };
    match serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&json) {
        Ok(_) => Ok(json),
        Err(error) => Err(Failure::usage(format!("the event is not a JSON object: {error}"))),
    }
}

/// Reads a whole file (`-`: the standard input) as UTF-8.
pub(super) fn read_text(path: &str, max_bytes: u64) -> Result<String, Failure> {
    let read = |source: &mut dyn Read| {
        let mut bytes = Vec::new();
        source.take(max_bytes + 1).read_to_end(&mut bytes).map(|_| bytes)
    };
    let bytes = match path {
        "-" => read(&mut std::io::stdin()),
        path => File::open(path).and_then(|mut file| read(&mut file)),
    };
    let bytes = bytes.map_err(|error| Failure::usage(format!("cannot read `{path}`: {error}")))?;
    if bytes.len() as u64 > max_bytes {
        return Err(Failure::usage(format!("`{path}` is longer than {}", ByteSize(max_bytes))));
    }
    String::from_utf8(bytes).map_err(|error| Failure::usage(format!("`{path}` is not UTF-8 text: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_human_or_seconds() {
        for (text, expected) in [("30s", 30), ("5m", 300), ("1h 1s", 3601), ("45", 45)] {
            assert_eq!(seconds(text), Ok(expected), "{text}");
        }
        for text in ["", "1.5s", "1500ms", "-3", "soon"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn cores_are_decimal_or_millis() {
        for (text, expected) in [("1", 1000), ("0.5", 500), ("2.25", 2250), ("500m", 500), ("1.", 1000)] {
            assert_eq!(cpu_millis(text), Ok(expected), "{text}");
        }
        for text in ["0", "0.0", "", ".5", "abc", "-1", "1.0001", "1e3", "4294967296", "1.+5"] {
            assert!(cpu_millis(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_need_a_known_unit() {
        assert_eq!(bytes("512Mi"), Ok(512 << 20));
        assert_eq!(bytes("1Gi"), Ok(1 << 30));
        for text in ["512M", "0", "lots"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_pair_splits_at_the_first_equals_sign() {
        assert_eq!(pair("A=b=c"), Ok(("A".to_owned(), "b=c".to_owned())));
        assert_eq!(pair("A="), Ok(("A".to_owned(), String::new())));
        assert!(pair("A").is_err());
        assert!(pair("=b").is_err());
    }

    #[test]
    fn a_package_is_split_into_its_name_and_its_version() {
        for (text, name, version) in [
            ("click", "click", ""),
            ("click==8.1", "click", "==8.1"),
            ("six >= 1, <2", "six", ">= 1, <2"),
            ("left-pad@^1.3", "left-pad", "^1.3"),
            ("@scope/x@>=1 <2", "@scope/x", ">=1 <2"),
            ("@scope/x", "@scope/x", ""),
        ] {
            let expected = Dependency { name: name.to_owned(), version: version.to_owned() };
            assert_eq!(dependency(text), Ok(expected), "{text}");
        }
        assert!(dependency("==1").is_err());
        assert!(dependency("").is_err());
    }

    #[test]
    fn an_event_is_a_json_object() {
        assert_eq!(event(r#"{"n": 12345678901234567890123}"#).unwrap(), r#"{"n": 12345678901234567890123}"#);
        for text in ["[1]", "3", "{", "@/does/not/exist"] {
            assert_eq!(event(text).unwrap_err().exit_code(), 2, "{text}");
        }
    }

    #[test]
    fn a_file_above_the_limit_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "12345").unwrap();
        let path = file.path().to_str().unwrap();
        assert_eq!(read_text(path, 5).unwrap(), "12345");
        assert!(read_text(path, 4).is_err());
    }
}
