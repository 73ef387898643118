//! The rules about the values of a template, each told in the words of the request.

use std::ops::RangeInclusive;

use sandmesh_mesh::FieldViolation;

use super::{Fields, MIB, Pool, RUNTIME_TYPES, Resources};

const MAX_ENV: usize = 256;
const MAX_ENV_KEY_BYTES: usize = 128;
const MAX_ENV_VALUE_BYTES: usize = 32 * 1024;
const MAX_PACKAGES: usize = 1000;
const MAX_POOL: u32 = 10_000;

/// Every rule that `fields` breaks.
pub(super) fn broken_by(fields: &Fields) -> Vec<FieldViolation> {
    let mut broken = Vec::new();
    id(&mut broken, &fields.template_id);
    text(&mut broken, "template.name", &fields.name, 1..=255);
    text(&mut broken, "template.description", &fields.description, 0..=8192);
    text(&mut broken, "template.image_url", &fields.image_url, 1..=512);
    runtime_type(&mut broken, &fields.runtime_type);
    resources(&mut broken, &fields.resources);
    number(&mut broken, "template.default_timeout_seconds", fields.timeout_seconds.into(), 60..=3600);
    env(&mut broken, fields);
    packages(&mut broken, &fields.packages);
    pool(&mut broken, &fields.pool);
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

fn resources(broken: &mut Broken, resources: &Resources) {
    let path = |name: &str| format!("template.default_resources.{name}");
    number(broken, &path("cpu_millis"), resources.cpu_millis.into(), 100..=4000);
    number(broken, &path("memory_bytes"), resources.memory_bytes, 128 * MIB..=8192 * MIB);
    number(broken, &path("disk_bytes"), resources.disk_bytes, 256 * MIB..=51_200 * MIB);
    number(broken, &path("max_processes"), resources.max_processes.into(), 1..=4096);
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

fn pool(broken: &mut Broken, pool: &Pool) {
    for (name, value) in [("min", pool.min), ("max", pool.max), ("buffer", pool.buffer)] {
        number(broken, &format!("template.pool.{name}"), value.into(), 0..=MAX_POOL.into());
    }
    if pool.min > pool.max {
        let rule = format!("must be at least `pool.min`, which is {}, is {}", pool.min, pool.max);
        broken.push(FieldViolation::new("template.pool.max", "greater_than_equal", rule));
    }
}
