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
    assert_eq!(broken(|f| f.pool.kept = Kept { min: 2, max: 2, buffer: 1 }), []);
    assert_eq!(broken(|f| f.pool.kept = Kept { min: 3, max: 2, buffer: 0 })[0].0, "template.pool.max");
}

/// One warm, with the template's limits but for so much memory.
fn with_memory(mebibytes: u64) -> Profile {
    let resources = Resources { memory_bytes: mebibytes * MIB, ..Resources::default() };
    Profile { resources, kept: Kept { min: 1, max: 1, buffer: 0 } }
}

#[test]
fn a_profile_keeps_the_rules_of_limits_and_numbers_and_some_are_warm() {
    let broken_of = |profile| {
        let broken = broken(|f| f.pool.profiles = vec![with_memory(300), profile]);
        let name = |field: String| field.replace("template.pool.profiles.1", "");
        broken.into_iter().map(|(field, kind)| (name(field), kind)).collect::<Vec<_>>()
    };
    assert_eq!(broken_of(with_memory(128)), []);
    assert_eq!(broken_of(with_memory(127)), [(".resources.memory_bytes".to_owned(), "greater_than_equal")]);
    let kept = |min, max| Profile { kept: Kept { min, max, buffer: 0 }, ..with_memory(400) };
    assert_eq!(broken_of(kept(0, 1)), []);
    assert_eq!(broken_of(kept(0, 0)), [(".max".to_owned(), "greater_than_equal")]);
    assert_eq!(broken_of(kept(3, 2)), [(".max".to_owned(), "greater_than_equal")]);
    assert_eq!(broken_of(kept(0, 10_001)), [(".max".to_owned(), "less_than_equal")]);
}

#[test]
fn eight_profiles_are_taken_and_not_a_ninth() {
    let profiles = |count| (0..count).map(|n| with_memory(300 + n)).collect();
    assert_eq!(broken(|f| f.pool.profiles = profiles(8)), []);
    assert_eq!(
        broken(|f| f.pool.profiles = profiles(9)),
        [("template.pool.profiles".to_owned(), "too_long")]
    );
}

#[test]
fn a_profile_like_another_or_like_the_template_is_refused_by_name() {
    let refused = |index| vec![(format!("template.pool.profiles.{index}.resources"), "value_error")];
    let set = |profiles: Vec<Profile>| broken(|f| f.pool.profiles = profiles);
    assert_eq!(set(vec![with_memory(300), with_memory(300)]), refused(1));
    assert_eq!(set(vec![with_memory(300), with_memory(512)]), refused(1), "as the template's, said in words");
    assert_eq!(set(vec![Profile { kept: with_memory(1).kept, ..Profile::default() }]), refused(0));
    let said = Resources { cpu_millis: 500, ..with_memory(300).resources };
    assert_eq!(set(vec![with_memory(300), Profile { resources: said, ..with_memory(300) }]), refused(1));
    let became_alike = broken(|f| {
        f.pool.profiles = vec![with_memory(300)];
        f.resources.memory_bytes = 300 * MIB;
    });
    assert_eq!(became_alike, refused(0), "a template that comes to be like a profile of its own");
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
        pool: Pool { kept: Kept { min: 7, max: 8, buffer: 9 }, profiles: vec![with_memory(300)] },
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
    fn any_profile()(resources in any_resources(), min in 0u32..3, max in 0u32..3) -> Profile {
        Profile { resources, kept: Kept { min, max, buffer: 0 } }
    }
}

prop_compose! {
    fn few_resources()(cpu in 0u32..3, memory in 0u64..3) -> Resources {
        Resources { cpu_millis: cpu * 250, memory_bytes: memory * 256 * MIB, ..Resources::default() }
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
        profiles in proptest::collection::vec(any_profile(), 0..4),
    ) -> Fields {
        let pool = Pool { kept: Kept { min, max, buffer: 0 }, profiles };
        Fields {
            template_id, name, image_url, resources, timeout_seconds, env,
            runtime_type: runtime_type.to_owned(), pool, ..Fields::default()
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
    fn profiles_pass_exactly_when_no_session_could_be_for_two_of_them(
        all in proptest::collection::vec(few_resources(), 0..5),
    ) {
        let kept = with_memory(1).kept;
        let profiles = all.iter().map(|resources| Profile { resources: *resources, kept }).collect();
        let template = good().resources;
        let mut told: Vec<_> = all.iter().map(|one| {
            let cpu_millis = if one.cpu_millis == 0 { template.cpu_millis } else { one.cpu_millis };
            let memory_bytes = if one.memory_bytes == 0 { template.memory_bytes } else { one.memory_bytes };
            (cpu_millis, memory_bytes)
        }).collect();
        told.push((template.cpu_millis, template.memory_bytes));
        told.sort_unstable();
        let before = told.len();
        told.dedup();
        prop_assert_eq!(broken(|f| f.pool.profiles = profiles).is_empty(), told.len() == before);
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
