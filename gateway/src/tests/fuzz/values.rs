//! What is written as text and reaches a role, or a setting, as a value.

use axum::body::Body;
use bolero::{TypeGenerator, check};
use form_urlencoded::Serializer;
use http::Request;
use sandmesh_mesh::{ByteSize, HumanDuration};
use serde_json::json;

use super::{BUDGET, Bench, Word};

/// A text that is nearly a quantity.
#[derive(Debug, TypeGenerator)]
struct Quantity {
    number: Word,
    fraction: Option<Word>,
    unit: Word,
}

const NUMBERS: [&str; 10] =
    ["0", "1", "512", "007", "4294967", "4294968", "18446744073709551615", "", "+1", "-1"];

impl Quantity {
    fn text(&self) -> String {
        let fraction = |word: &Word| format!(".{}", word.of(&["5", "0001", "000", "9999", ""]));
        let fraction = self.fraction.as_ref().map(fraction).unwrap_or_default();
        format!("{}{fraction}{}", self.number.of(&NUMBERS), self.unit.of(&["", "m", "Ki", "Mi", "Gi", "GiB"]))
    }
}

fn digits(text: &str) -> Option<u128> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}

/// Thousandths of a core by the words of the contract, rounded up.
fn millis(text: &str) -> Option<u128> {
    if let Some(millis) = text.strip_suffix('m') {
        return digits(millis);
    }
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    digits(fraction)?;
    let scale =
        u128::try_from(fraction.len()).ok().and_then(|places| 10_u128.checked_pow(places.try_into().ok()?));
    let part = (digits(fraction)? * 1000).div_ceil(scale?);
    digits(whole)?.checked_mul(1000)?.checked_add(part)
}

/// Bytes by the words of the contract.
fn bytes(text: &str) -> Option<u128> {
    let units = [("Ki", 1 << 10), ("Mi", 1 << 20), ("Gi", 1 << 30)];
    let (number, unit) = units.into_iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)))?;
    digits(number)?.checked_mul(unit)
}

#[test]
fn any_quantity_reaches_the_role_as_written_or_is_refused() {
    let bench = Bench::new();
    let quantities = check!(name = "quantities").with_type::<(Quantity, Quantity)>();
    quantities.with_test_time(BUDGET).for_each(|(cpu, memory)| {
        let bench = &*bench;
        let (cpu, memory) = (cpu.text(), memory.text());
        let body = json!({ "template_id": "t", "cpu": cpu, "memory": memory }).to_string();
        let request = Request::post("/api/v1/sessions").header("content-type", "application/json");
        let answer = bench.ask(request.body(Body::from(body)).unwrap());
        let millis = millis(&cpu).and_then(|millis| u32::try_from(millis).ok()).filter(|millis| *millis > 0);
        let bytes = bytes(&memory).and_then(|bytes| u64::try_from(bytes).ok()).filter(|bytes| *bytes > 0);
        let created = bench.door.fakes.created.lock().unwrap();
        let asked = created.first().and_then(|asked| asked.resources);
        let asked = asked.map(|resources| (resources.cpu_millis, resources.memory_bytes));
        assert_eq!(asked, millis.zip(bytes), "`{cpu}` `{memory}`: {answer:?}");
    });
}

#[test]
fn any_page_token_and_offset_reach_the_role_as_written() {
    let bench = Bench::new();
    let pages = check!(name = "pages").with_type::<(String, u32, i64)>();
    pages.with_test_time(BUDGET).for_each(|(token, offset, limit)| {
        let bench = &*bench;
        let mut query = Serializer::new(String::new());
        query.append_pair("page_token", token).append_pair("offset", &offset.to_string());
        let query = query.append_pair("limit", &limit.to_string()).finish();
        let request = Request::get(format!("/api/v1/sessions?{query}")).body(Body::empty()).unwrap();
        let answer = bench.ask(request);
        let listed = bench.door.fakes.listed.lock().unwrap();
        let asked = listed.first().unwrap_or_else(|| panic!("{answer:?}"));
        assert_eq!((&asked.page_token, asked.offset), (token, *offset));
        assert_eq!(i64::from(asked.page_size), (*limit).clamp(1, 200));
    });
}

#[test]
fn any_setting_that_is_understood_reads_back_as_written() {
    let settings = check!(name = "settings").with_type::<[(Word, Word); 2]>();
    settings.with_test_time(BUDGET).for_each(|parts| {
        let units = ["s", "ms", "m", "h", "days", "y", "MiB", "Ki", "B", " ", "ns"];
        let part = |(number, unit): &(Word, Word)| format!("{}{}", number.of(&NUMBERS), unit.of(&units));
        for text in [part(&parts[0]), parts.iter().map(part).collect()] {
            if let Ok(size) = text.parse::<ByteSize>() {
                assert_eq!(size.to_string().parse(), Ok(size), "{text}");
            }
            if let Ok(duration) = text.parse::<HumanDuration>() {
                assert_eq!(duration.to_string().parse(), Ok(duration), "{text}");
            }
        }
    });
}
