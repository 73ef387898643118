//! Quantities as the API writes them: cores such as `0.5`, sizes such as `512Mi`.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error, Visitor},
};
use utoipa::ToSchema;

/// One core, in the unit of the wire.
const CORE: u32 = 1000;

const UNITS: [(&str, u64); 3] = [("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)];

/// CPU as a client writes it: `"1"`, `"0.5"`, `"500m"`, or a number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(value_type = String, example = "0.5")]
pub(crate) struct Cpu(pub(super) String);

impl<'de> Deserialize<'de> for Cpu {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrNumber;

        impl Visitor<'_> for TextOrNumber {
            type Value = Cpu;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string such as \"0.5\" or \"500m\"")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Cpu, E> {
                Ok(Cpu(text.to_owned()))
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Cpu, E> {
                Ok(Cpu(number.to_string()))
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Cpu, E> {
                Ok(Cpu(number.to_string()))
            }

            fn visit_f64<E: Error>(self, number: f64) -> Result<Cpu, E> {
                Ok(Cpu(number.to_string()))
            }
        }

        deserializer.deserialize_any(TextOrNumber)
    }
}

/// Thousandths of a core; more than three decimals are rounded up.
pub(super) fn cpu_millis(text: &str) -> Option<u32> {
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if let Some(millis) = text.strip_suffix('m') {
        return if digits(millis) { millis.parse().ok() } else { None };
    }
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    if whole.is_empty() || fraction.is_empty() || !digits(whole) || !digits(fraction) {
        return None;
    }
    let (thousandths, rest) = fraction.split_at_checked(3).unwrap_or((fraction, ""));
    let thousandths: u32 = format!("{thousandths:0<3}").parse().ok()?;
    let up = u32::from(rest.bytes().any(|digit| digit != b'0'));
    whole.parse::<u32>().ok()?.checked_mul(CORE)?.checked_add(thousandths)?.checked_add(up)
}

/// Cores, as short as possible: `1`, `0.5`.
pub(super) fn cpu_text(millis: u32) -> String {
    let text = format!("{}.{:03}", millis / CORE, millis % CORE);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Bytes of a size such as `512Mi`.
pub(super) fn bytes(text: &str) -> Option<u64> {
    let (number, unit) = UNITS.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit)))?;
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    number.parse::<u64>().ok()?.checked_mul(unit)
}

/// A size in the largest unit that keeps it whole.
pub(super) fn size_text(bytes: u64) -> String {
    let unit = UNITS.iter().find(|(_, unit)| bytes > 0 && bytes.is_multiple_of(*unit));
    unit.map_or_else(|| bytes.to_string(), |(name, unit)| format!("{}{name}", bytes / unit))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn cores_read_back_as_written(millis: u32) {
            prop_assert_eq!(cpu_millis(&cpu_text(millis)), Some(millis));
        }

        #[test]
        fn sizes_read_back_as_written(kibibytes in 1u64..1 << 40) {
            prop_assert_eq!(bytes(&size_text(kibibytes * 1024)), Some(kibibytes * 1024));
        }

        #[test]
        fn no_text_panics(text in "\\PC*") {
            let _ = (cpu_millis(&text), bytes(&text));
        }
    }

    #[test]
    fn cores_are_read_in_every_form() {
        for (text, millis) in [
            ("1", Some(1000)),
            ("0.5", Some(500)),
            ("500m", Some(500)),
            ("0.25", Some(250)),
            ("0.0001", Some(1)),
            ("1.0000", Some(1000)),
            ("0", Some(0)),
            ("abc", None),
            ("", None),
            ("-1", None),
            ("1.", None),
            (".5", None),
            ("1e3", None),
            ("+1", None),
            ("m", None),
            ("4294968", None),
        ] {
            assert_eq!(cpu_millis(text), millis, "{text}");
        }
    }

    #[test]
    fn sizes_need_a_binary_unit() {
        for (text, expected) in [
            ("512Mi", Some(512 << 20)),
            ("1Gi", Some(1 << 30)),
            ("64Ki", Some(64 << 10)),
            ("512M", None),
            ("512", None),
            ("Mi", None),
            ("1.5Gi", None),
            ("-1Gi", None),
            ("+1Gi", None),
            (" 1Gi", None),
            ("1GiB", None),
            ("99999999999999999Gi", None),
        ] {
            assert_eq!(bytes(text), expected, "{text}");
        }
    }
}
