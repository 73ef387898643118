use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::{packages::tests::set, sandbox::Language};

const KEEP: Keep = Keep { bytes: 100, unused: Duration::from_secs(3600) };

fn key(number: u32) -> LayerKey {
    set(&[("pkg", &number.to_string())]).key("python3")
}

fn id(number: u32) -> SandboxId {
    format!("sbx_{number:016x}").parse().unwrap()
}

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
}

fn opened(dir: &TempDir) -> Layers {
    let layers = Layers::new(dir.path(), KEEP);
    layers.load().unwrap();
    layers
}

fn make(layers: &Layers, number: u32, bytes: u64) -> LayerKey {
    let dir = layers.begin(&key(number)).unwrap();
    fs::create_dir(dir.join("files")).unwrap();
    let layer = Layer {
        key: key(number),
        fingerprint: format!("set {number}"),
        language: Language::Python,
        installed: Vec::new(),
        bytes,
        installed_at: at(0),
    };
    layers.finish(&dir, layer).unwrap().key.clone()
}

#[test]
fn a_layer_is_found_by_the_next_agent_and_what_is_half_made_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let layers = opened(&dir);
    let made = make(&layers, 1, 10);
    let half = layers.begin(&key(2)).unwrap();
    fs::create_dir(root(dir.path()).join(key(3).to_string())).unwrap();
    drop(layers);
    let layers = opened(&dir);
    assert_eq!(layers.get(&made).unwrap().bytes, 10);
    assert_eq!(layers.fingerprints(), ["set 1"]);
    assert!(layers.get(&key(2)).is_none() && !half.exists());
    assert!(layers.get(&key(3)).is_none() && !root(dir.path()).join(key(3).to_string()).exists());
}

#[test]
fn a_layer_is_kept_while_a_sandbox_has_it_and_removed_when_it_is_too_old() {
    let dir = tempfile::tempdir().unwrap();
    let layers = opened(&dir);
    let made = make(&layers, 1, 1000);
    assert!(layers.hold(&id(1), &made, at(10)).is_some());
    assert_eq!(layers.evict(at(100_000)), 0, "however old and large");
    layers.release(&id(1), at(100_000));
    assert_eq!(layers.evict(at(100_030)), 0, "it was used just now");
    assert_eq!(layers.evict(at(100_100)), 1, "it is too large");
    assert!(layers.get(&made).is_none());
    assert_eq!(fs::read_dir(root(dir.path())).unwrap().count(), 0);
}

#[test]
fn a_layer_that_a_sandbox_did_not_get_is_not_kept_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let layers = opened(&dir);
    assert!(layers.hold(&id(1), &key(1), at(0)).is_none(), "it is not there yet");
    make(&layers, 1, 10);
    assert_eq!(layers.evict(at(10_000)), 0);
    layers.unhold(&id(1), &key(1));
    assert_eq!(layers.evict(at(10_000)), 1);
}

proptest! {
    #[test]
    fn what_is_removed_is_neither_in_use_nor_more_than_must_be(
        layers in proptest::collection::vec((0_u64..60, 0_i64..7200, any::<bool>()), 0..12),
    ) {
        let now = at(7200);
        let all: Vec<Candidate> = (0..).zip(&layers).map(|(number, (bytes, used, in_use))| Candidate {
            key: key(number), bytes: *bytes, last_used: at(*used), in_use: *in_use,
        }).collect();
        let gone = surplus(all.clone(), KEEP, now);
        let (removed, kept): (Vec<_>, Vec<_>) = all.into_iter().partition(|one| gone.contains(&one.key));
        let age = |one: &Candidate| (now - one.last_used).to_std().unwrap();
        let left: u64 = kept.iter().map(|one| one.bytes).sum();
        prop_assert!(removed.iter().all(|one| !one.in_use && age(one) >= FRESH));
        prop_assert!(left <= KEEP.bytes || kept.iter().all(|one| one.in_use || age(one) < FRESH));
        prop_assert!(kept.iter().all(|one| one.in_use || age(one) < KEEP.unused));
        // Those that were not used for longest go first.
        let movable = kept.iter().filter(|one| !one.in_use && age(one) >= FRESH).map(|one| one.last_used).min();
        let last = removed.iter().map(|one| one.last_used).max();
        prop_assert!(movable.is_none() || last <= movable);
    }
}
