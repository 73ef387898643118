//! The rules about the values of a template, each told in the words of the request.

use std::ops::RangeInclusive;

use sandmesh_mesh::FieldViolation;

use super::{Fields, Kept, MIB, Profile, RUNTIME_TYPES, Resources};

const MAX_ENV: usize = 256;
const MAX_ENV_KEY_BYTES: usize = 128;
const MAX_ENV_VALUE_BYTES: usize = 32 * 1024;
const MAX_PACKAGES: usize = 1000;
const MAX_POOL: u32 = 10_000;
const MAX_PROFILES: usize = 8;

/// Every rule that `fields` breaks.
pub(super) fn broken_by(fields: &Fields) -> Vec<FieldViolation> {
    let mut broken = Vec::new();
    id(&mut broken, &fields.template_id);
    text(&mut broken, "template.name", &fields.name, 1..=255);
    text(&mut broken, "template.description", &fields.description, 0..=8192);
    text(&mut broken, "template.image_url", &fields.image_url, 1..=512);
    runtime_type(&mut broken, &fields.runtime_type);
    resources(&mut broken, "template.default_resources", limits(&fields.resources));
    number(&mut broken, "template.default_timeout_seconds", fields.timeout_seconds.into(), 60..=3600);
    env(&mut broken, fields);
    packages(&mut broken, &fields.packages);
    kept(&mut broken, "template.pool", &fields.pool.kept, 0);
    profiles(&mut broken, fields);
    broken
}

type Broken = Vec<FieldViolation>;

fn id(broken: &mut Broken, id: &str) {
    let before = broken.len();
    text(broken, "template.template_id", id, 1..=64);
    let well_formed = id.starts_with(|c: char| c.is_ascii_alphanumeric())
        && id.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    if broken.len() == before && !well_formed {
        broken.push(FieldViolation::new(
            "template.template_id",
            "string_pattern_mismatch",
            "must be letters, digits, `_` and `-`, and start with a letter or digit",
        ));
    }
}

fn text(broken: &mut Broken, field: &str, value: &str, length: RangeInclusive<usize>) {
    let characters = value.chars().count();
    if characters > *length.end() {
        let rule = format!("must have at most {} characters, has {characters}", length.end());
        broken.push(FieldViolation::new(field, "string_too_long", rule));
    } else if value.is_empty() && *length.start() > 0 {
        broken.push(FieldViolation::new(field, "missing", "is required"));
    } else if value.contains('\0') {
        broken.push(FieldViolation::new(field, "value_error", "must not contain a NUL character"));
    }
}

fn runtime_type(broken: &mut Broken, runtime_type: &str) {
    const FIELD: &str = "template.runtime_type";
    if runtime_type.is_empty() {
        broken.push(FieldViolation::new(FIELD, "missing", "is required"));
    } else if !RUNTIME_TYPES.contains(&runtime_type) {
        let rule = format!("must be one of {}", RUNTIME_TYPES.join(", "));
        broken.push(FieldViolation::new(FIELD, "enum", rule));
    }
}

/// A limit: its name, how much it is, and how much it may be.
type Limit = (&'static str, u64, RangeInclusive<u64>);

fn limits(resources: &Resources) -> [Limit; 4] {
    [
        ("cpu_millis", resources.cpu_millis.into(), 100..=4000),
        ("memory_bytes", resources.memory_bytes, 128 * MIB..=8192 * MIB),
        ("disk_bytes", resources.disk_bytes, 256 * MIB..=51_200 * MIB),
        ("max_processes", resources.max_processes.into(), 1..=4096),
    ]
}

fn resources(broken: &mut Broken, path: &str, limits: impl IntoIterator<Item = Limit>) {
    for (name, value, range) in limits {
        number(broken, &format!("{path}.{name}"), value, range);
    }
}

fn number(broken: &mut Broken, field: &str, value: u64, range: RangeInclusive<u64>) {
    let (min, max) = range.into_inner();
    if value < min {
        broken.push(FieldViolation::new(
            field,
            "greater_than_equal",
            format!("must be at least {min}, is {value}"),
        ));
    } else if value > max {
        broken.push(FieldViolation::new(
            field,
            "less_than_equal",
            format!("must be at most {max}, is {value}"),
        ));
    }
}

fn env(broken: &mut Broken, fields: &Fields) {
    const FIELD: &str = "template.default_env";
    if fields.env.len() > MAX_ENV {
        let rule = format!("must have at most {MAX_ENV} variables, has {}", fields.env.len());
        broken.push(FieldViolation::new(FIELD, "too_long", rule));
        return;
    }
    for (key, value) in &fields.env {
        if key.len() > MAX_ENV_KEY_BYTES || !is_variable_name(key) {
            let rule = format!(
                "`{}` must be letters, digits and `_`, not start with a digit, and have at most {MAX_ENV_KEY_BYTES} characters",
                key.chars().take(MAX_ENV_KEY_BYTES).collect::<String>().escape_debug()
            );
            broken.push(FieldViolation::new(FIELD, "string_pattern_mismatch", rule));
        } else if value.len() > MAX_ENV_VALUE_BYTES {
            let rule = format!("the value of `{key}` must have at most {MAX_ENV_VALUE_BYTES} bytes");
            broken.push(FieldViolation::new(format!("{FIELD}.{key}"), "string_too_long", rule));
        } else if value.contains('\0') {
            let rule = format!("the value of `{key}` must not contain a NUL character");
            broken.push(FieldViolation::new(format!("{FIELD}.{key}"), "value_error", rule));
        }
    }
}

fn is_variable_name(key: &str) -> bool {
    key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn packages(broken: &mut Broken, packages: &[String]) {
    const FIELD: &str = "template.pre_installed_packages";
    if packages.len() > MAX_PACKAGES {
        let rule = format!("must have at most {MAX_PACKAGES} packages, has {}", packages.len());
        broken.push(FieldViolation::new(FIELD, "too_long", rule));
        return;
    }
    for (index, package) in packages.iter().enumerate() {
        text(broken, &format!("{FIELD}.{index}"), package, 1..=255);
    }
}

fn kept(broken: &mut Broken, path: &str, kept: &Kept, most_at_least: u64) {
    let numbers = [("min", kept.min, 0), ("max", kept.max, most_at_least), ("buffer", kept.buffer, 0)];
    for (name, value, least) in numbers {
        number(broken, &format!("{path}.{name}"), value.into(), least..=MAX_POOL.into());
    }
    if kept.min > kept.max {
        let name = path.trim_start_matches("template.");
        let rule = format!("must be at least `{name}.min`, which is {}, is {}", kept.min, kept.max);
        broken.push(FieldViolation::new(format!("{path}.max"), "greater_than_equal", rule));
    }
}

fn profiles(broken: &mut Broken, fields: &Fields) {
    const FIELD: &str = "template.pool.profiles";
    let profiles = &fields.pool.profiles;
    if profiles.len() > MAX_PROFILES {
        let rule = format!("must have at most {MAX_PROFILES} profiles, has {}", profiles.len());
        broken.push(FieldViolation::new(FIELD, "too_long", rule));
        return;
    }
    for (index, profile) in profiles.iter().enumerate() {
        let path = format!("{FIELD}.{index}");
        let given = limits(&profile.resources).into_iter().filter(|(_, value, _)| *value > 0);
        resources(broken, &format!("{path}.resources"), given);
        kept(broken, &path, &profile.kept, 1);
        let has = |other: &Resources| other.or(fields.resources) == profile.resources.or(fields.resources);
        let before = |profile: &Profile| has(&profile.resources);
        let whose = match profiles.iter().take(index).position(before) {
            _ if has(&fields.resources) => "the template".to_owned(),
            Some(first) => format!("`pool.profiles.{first}`"),
            None => continue,
        };
        let rule = format!("must differ from those of {whose}: change a limit, or leave the profile out");
        broken.push(FieldViolation::new(format!("{path}.resources"), "value_error", rule));
    }
}
