//! The rules of a template, checked at their limits and by property.

use proptest::prelude::*;

use super::*;

fn good() -> Fields {
    seeds()[0].clone()
}

fn broken(change: impl FnOnce(&mut Fields)) -> Vec<(String, &'static str)> {
    let mut fields = good();
    change(&mut fields);
    let violations = Spec::check(fields).err().unwrap_or_default();
    violations.into_iter().map(|violation| (violation.field, violation.kind)).collect()
}

#[test]
fn every_seed_keeps_every_rule() {
    for seed in seeds() {
        assert_eq!(Spec::check(seed.clone()).map(|spec| spec.fields().clone()), Ok(seed));
    }
}

#[test]
fn every_broken_rule_is_told_at_once() {
    let violations = Spec::check(Fields::default()).unwrap_err();
    let fields: Vec<&str> = violations.iter().map(|violation| violation.field.as_str()).collect();
    assert_eq!(
        fields,
        [
            "template.template_id",
            "template.name",
            "template.image_url",
            "template.runtime_type",
            "template.default_resources.cpu_millis",
            "template.default_resources.memory_bytes",
            "template.default_resources.disk_bytes",
            "template.default_resources.max_processes",
            "template.default_timeout_seconds",
        ]
    );
}

#[test]
fn what_is_left_out_gets_its_default() {
    let fields = Fields::default().with_defaults();
    let expected =
        Resources { cpu_millis: 500, memory_bytes: 512 * MIB, disk_bytes: 1024 * MIB, max_processes: 128 };
    assert_eq!((fields.resources, fields.timeout_seconds), (expected, 300));
}

#[test]
fn a_number_is_taken_at_its_limits_and_refused_beyond() {
    type Set = fn(&mut Fields, u64);
    let cases: [(&str, Set, u64, u64); 4] = [
        ("cpu_millis", |f, v| f.resources.cpu_millis = u32::try_from(v).unwrap(), 100, 4000),
        ("memory_bytes", |f, v| f.resources.memory_bytes = v, 128 * MIB, 8192 * MIB),
        ("disk_bytes", |f, v| f.resources.disk_bytes = v, 256 * MIB, 51_200 * MIB),
        ("default_timeout_seconds", |f, v| f.timeout_seconds = u32::try_from(v).unwrap(), 60, 3600),
    ];
    for (name, set, min, max) in cases {
        assert_eq!(broken(|f| set(f, min)), [], "{name}");
        assert_eq!(broken(|f| set(f, max)), [], "{name}");
        let below = broken(|f| set(f, min - 1));
        assert!(below[0].0.ends_with(name) && below[0].1 == "greater_than_equal", "{below:?}");
        let above = broken(|f| set(f, max + 1));
        assert!(above[0].0.ends_with(name) && above[0].1 == "less_than_equal", "{above:?}");
    }
}

#[test]
fn an_id_that_could_be_a_path_is_refused() {
    for id in ["../etc", "a/b", ".a", "-a", "_a", "a b", "a.b", "ä", "a\0"] {
        assert_eq!(broken(|f| f.template_id = id.to_owned()).len(), 1, "{id}");
    }
    assert_eq!(broken(|f| f.template_id = "x".repeat(64)), []);
    assert_eq!(broken(|f| f.template_id = "x".repeat(65))[0].1, "string_too_long");
}

#[test]
fn lengths_count_characters_not_bytes() {
    assert_eq!(broken(|f| f.name = "ü".repeat(255)), []);
    assert_eq!(broken(|f| f.name = "ü".repeat(256)), [("template.name".to_owned(), "string_too_long")]);
    assert_eq!(broken(|f| f.image_url = String::new()), [("template.image_url".to_owned(), "missing")]);
}

#[test]
fn an_unknown_runtime_type_is_refused() {
    assert_eq!(
        broken(|f| f.runtime_type = "ruby".to_owned()),
        [("template.runtime_type".to_owned(), "enum")]
    );
}

#[test]
fn an_env_name_that_no_shell_takes_is_refused() {
    for key in ["", "1A", "A-B", "A=B", "A B", "Ä"] {
        assert_eq!(broken(|f| _ = f.env.insert(key.to_owned(), String::new())).len(), 1, "{key}");
    }
    assert_eq!(broken(|f| _ = f.env.insert("_A1".to_owned(), "x".repeat(32 * 1024))), []);
    let long = broken(|f| _ = f.env.insert("A".to_owned(), "x".repeat(32 * 1024 + 1)));
    assert_eq!(long, [("template.default_env.A".to_owned(), "string_too_long")]);
}

#[test]
fn a_pool_has_at_least_its_minimum_as_maximum() {
    assert_eq!(broken(|f| f.pool = Pool { min: 2, max: 2, buffer: 1 }), []);
    assert_eq!(broken(|f| f.pool = Pool { min: 3, max: 2, buffer: 0 })[0].0, "template.pool.max");
}

#[test]
fn a_mask_names_fields_that_can_change_or_is_refused() {
    let paths = |paths: &[&str]| paths.iter().map(|&path| path.to_owned()).collect::<Vec<_>>();
    assert_eq!(Mask::parse(&[]).unwrap_err()[0].kind, "missing");
    let refused = Mask::parse(&paths(&["name", "template_id", "colour", "created_at"])).unwrap_err();
    assert_eq!(refused.len(), 3);
    assert!(refused.iter().all(|violation| violation.field == "update_mask"));
}

#[test]
fn every_path_of_a_mask_changes_its_field() {
    let new = Fields {
        template_id: "other".to_owned(),
        name: "n".to_owned(),
        description: "d".to_owned(),
        image_url: "i".to_owned(),
        runtime_type: "bash".to_owned(),
        resources: Resources { cpu_millis: 1, memory_bytes: 2, disk_bytes: 3, max_processes: 4 },
        timeout_seconds: 61,
        env: BTreeMap::from([("A".to_owned(), "B".to_owned())]),
        packages: vec!["p".to_owned()],
        pool: Pool { min: 7, max: 8, buffer: 9 },
        is_active: false,
    };
    for path in UPDATABLE {
        let mask = Mask::parse(&[path.to_owned()]).unwrap();
        assert_ne!(mask.apply(good(), &new), good(), "{path}");
    }
    let all: Vec<String> = UPDATABLE.map(str::to_owned).to_vec();
    let changed = Mask::parse(&all).unwrap().apply(good(), &new);
    assert_eq!(changed, Fields { template_id: good().template_id, ..new });
}

prop_compose! {
    fn any_resources()(cpu_millis in 0u32..5000, memory in 0u64..9000, disk in 0u64..52000, max_processes in 0u32..5000)
        -> Resources {
        Resources { cpu_millis, memory_bytes: memory * MIB, disk_bytes: disk * MIB, max_processes }
    }
}

prop_compose! {
    fn any_fields()(
        template_id in "[A-Za-z0-9_-]{0,66}",
        name in ".{0,260}",
        image_url in "[a-z:/.]{0,10}",
        runtime_type in proptest::sample::select([&RUNTIME_TYPES[..], &["ruby", ""]].concat()),
        resources in any_resources(),
        timeout_seconds in 0u32..4000,
        env in proptest::collection::btree_map("[A-Z_0-9]{0,3}", ".{0,3}", 0..3),
        min in 0u32..3, max in 0u32..3,
    ) -> Fields {
        Fields {
            template_id, name, image_url, resources, timeout_seconds, env,
            runtime_type: runtime_type.to_owned(), pool: Pool { min, max, buffer: 0 }, ..Fields::default()
        }
    }
}

proptest! {
    #[test]
    fn what_passes_the_rules_is_what_was_written_and_passes_again(fields in any_fields()) {
        if let Ok(spec) = Spec::check(fields.clone()) {
            prop_assert_eq!(spec.fields(), &fields);
            prop_assert_eq!(Spec::check(spec.fields().clone()), Ok(spec));
        }
    }

    #[test]
    fn defaults_never_change_what_was_given(fields in any_fields()) {
        let filled = fields.clone().with_defaults();
        if fields.resources.cpu_millis != 0 {
            prop_assert_eq!(filled.resources.cpu_millis, fields.resources.cpu_millis);
        }
        prop_assert_eq!(filled.clone().with_defaults(), filled);
    }

    #[test]
    fn an_update_changes_nothing_outside_its_mask(new in any_fields(), index in 0..UPDATABLE.len()) {
        let all: Vec<String> = UPDATABLE.map(str::to_owned).to_vec();
        let mask = Mask::parse(&all[index..=index]).unwrap();
        let changed = mask.apply(good(), &new);
        // Putting the old value back under the same mask undoes the update.
        prop_assert_eq!(mask.apply(changed, &good()), good());
    }

    #[test]
    fn a_rule_never_panics_on_any_text(id in any::<String>(), key in any::<String>(), value in any::<String>()) {
        let mut fields = good();
        fields.template_id = id;
        fields.env.insert(key, value);
        let _ = Spec::check(fields);
    }
}
