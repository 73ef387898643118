//! Records of nests and results of user code.

use bolero::{TypeGenerator, check};

use super::BUDGET;
use crate::{
    native::wire::{REPORT_BYTES, Report, Settings},
    parent::Spec,
    runner::{Returned, Runner, is_json},
};

#[test]
fn bytes_are_a_report_that_reads_back_or_none() {
    let inputs = check!(name = "report").with_max_len(2 * REPORT_BYTES);
    inputs.with_test_time(BUDGET).for_each(|bytes: &[u8]| {
        let Some(report) = Report::decode(bytes) else { return };
        assert_eq!(Report::decode(&report.encode()), Some(report));
    });
}

#[test]
fn words_are_a_report_that_reads_back_or_none() {
    let words = check!(name = "report_words").with_type::<(u8, i32, [u64; 6])>();
    words.with_test_time(BUDGET).for_each(|(kind, number, rest)| {
        let words = [u64::from(*kind % 4), u64::from(number.cast_unsigned())];
        let bytes: Vec<u8> = words.iter().chain(rest).flat_map(|word| word.to_ne_bytes()).collect();
        let Some(report) = Report::decode(&bytes) else { return };
        assert_eq!(Report::decode(&report.encode()), Some(report));
    });
}

#[test]
fn settings_that_are_understood_are_whole() {
    let mut settings = Box::new(Settings::new());
    let inputs = check!(name = "settings").with_type::<([u64; 9], u16, [Option<u8>; 3])>();
    inputs.with_test_time(BUDGET).for_each(move |(words, count, lengths)| {
        let mut words = *words;
        // Mostly lengths that could be.
        for (word, length) in words[6..].iter_mut().zip(lengths) {
            *word = length.map_or(*word, u64::from);
        }
        for (slot, word) in settings.bytes.chunks_exact_mut(8).zip(words) {
            slot.copy_from_slice(&word.to_ne_bytes());
        }
        let fitting = words[6..].iter().try_fold(72_u64, |sum, length| sum.checked_add(*length));
        let count = match fitting.and_then(|fitting| usize::try_from(fitting).ok()) {
            Some(fitting) if count % 2 == 0 => fitting,
            _ => usize::from(*count),
        };
        let understood = settings.understand(count);
        let whole = count <= settings.bytes.len() && fitting == Some(count as u64);
        assert_eq!(understood, whole, "{words:?} {count}");
        if understood {
            let parts = [settings.tmpfs(), settings.parent_filter(), settings.user_filter()];
            assert_eq!(parts.map(|part| part.len() as u64), words[6..]);
        }
    });
}

#[test]
fn bytes_are_a_spec_or_an_error() {
    check!(name = "spec").with_test_time(BUDGET).for_each(|bytes: &[u8]| {
        let mut rest = bytes;
        let Ok(spec) = Spec::read(&mut rest) else { return };
        let length = u32::from_le_bytes(bytes[..4].try_into().unwrap());
        assert_eq!(bytes.len() - rest.len(), 4 + length as usize);
        assert_eq!(Spec::read(&mut spec.encode().as_slice()).unwrap(), spec);
    });
}

#[derive(Debug, TypeGenerator)]
struct AnySpec {
    argv: Vec<String>,
    env: Vec<(String, String)>,
    files: Vec<(String, String)>,
    workdir: String,
    flags: [bool; 2],
    rest: Vec<u8>,
}

#[test]
fn spec_reads_back_as_written_whatever_follows() {
    let specs = check!(name = "spec_fields").with_type::<AnySpec>();
    specs.with_test_time(BUDGET).for_each(|any| {
        let spec = Spec {
            argv: any.argv.clone(),
            env: any.env.clone(),
            files: any.files.clone(),
            workdir: any.workdir.clone(),
            has_result: any.flags[0],
            has_request: any.flags[1],
        };
        let bytes = [spec.encode(), any.rest.clone()].concat();
        let mut rest = bytes.as_slice();
        assert_eq!(Spec::read(&mut rest).unwrap(), spec);
        assert_eq!(rest, any.rest);
    });
}

#[test]
fn result_of_user_code_is_json_or_an_error_of_theirs() {
    check!(name = "result").with_test_time(BUDGET).for_each(|raw: &[u8]| {
        for runner in [Runner::Python("".into()), Runner::JavaScript("".into()), Runner::Shell("".into())] {
            let Returned { value, error } = runner.read_result(raw.to_vec());
            assert!(value.is_none() || error.is_none());
            assert!(value.is_none_or(|value| is_json(&value) && value.len() <= raw.len()));
            assert!(error.is_none_or(|error| error.traceback.len() <= raw.len()));
        }
        assert_eq!(Runner::Command.read_result(raw.to_vec()), Returned::default());
    });
}

/// Pieces of which results are made, besides a whole error.
const PIECES: [&str; 15] =
    ["R", "E", "{", "}", "[", "]", "1", "null", "\"", "\\ud800", " ", "\n", "\0", ",", ":"];
const ERROR: &str = "{\"type\":\"T\",\"message\":\"m\",\"traceback\":\"t\"}";

#[test]
fn result_of_pieces_is_json_or_an_error_of_theirs() {
    let pieces = check!(name = "result_pieces").with_type::<Vec<u8>>();
    pieces.with_test_time(BUDGET).for_each(|choices| {
        let piece = |choice: &u8| PIECES.get(usize::from(*choice) % (PIECES.len() + 1)).unwrap_or(&ERROR);
        let raw: String = choices.iter().take(12).map(piece).copied().collect();
        for runner in [Runner::Python("".into()), Runner::Shell("".into())] {
            let Returned { value, error } = runner.read_result(raw.clone().into_bytes());
            assert!(value.is_none() || error.is_none(), "{raw:?}");
            assert!(value.is_none_or(|value| is_json(&value)), "{raw:?}");
        }
    });
}
