//! Arbitrary bytes and values against what reads what others wrote: the frames of callers, the records of
//! nests, the results of user code.
//!
//! A target replays what `__fuzz__/` keeps and then runs for a moment on inputs of chance. `just fuzz` gives
//! all of them longer, and `cargo bolero test NAME` looks for inputs that reach new code. An input that fails
//! is kept in `__fuzz__/NAME/crashes`, or becomes a test of its own.

mod frames;
mod records;

use std::{fs, path::Path, time::Duration};

use bolero::TypeGenerator;

/// How long a target runs where nobody asks for more.
const BUDGET: Duration = Duration::from_secs(1);

/// A kept input with changes.
#[derive(Debug, TypeGenerator)]
struct Mutant {
    seed: u8,
    edits: [Option<Edit>; 4],
}

#[derive(Debug, TypeGenerator)]
enum Edit {
    Set(u16, u8),
    Flip(u16, u8),
    Insert(u16, u8),
    Remove(u16, u8),
    Repeat(u16, u8),
    Truncate(u16),
}

impl Mutant {
    fn of(&self, kept: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = kept[usize::from(self.seed) % kept.len()].clone();
        self.edits.iter().flatten().for_each(|edit| edit.apply(&mut bytes));
        bytes
    }
}

impl Edit {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let place = |at: u16| usize::from(at) % bytes.len().max(1);
        let end = |at: u16, count: u8| (place(at) + usize::from(count)).min(bytes.len());
        match *self {
            _ if bytes.is_empty() => {}
            Self::Set(at, byte) => {
                let at = place(at);
                bytes[at] = byte;
            }
            Self::Flip(at, bit) => {
                let at = place(at);
                bytes[at] ^= 1 << (bit % 8);
            }
            Self::Insert(at, byte) => bytes.insert(place(at), byte),
            Self::Remove(at, count) => drop(bytes.drain(place(at)..end(at, count))),
            Self::Repeat(at, count) => bytes.extend_from_within(place(at)..end(at, count)),
            Self::Truncate(at) => bytes.truncate(place(at)),
        }
    }
}

/// The kept inputs of a target.
fn kept(target: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/fuzz/__fuzz__").join(target).join("corpus");
    let files = fs::read_dir(&dir).unwrap().map(|file| fs::read(file.unwrap().path()).unwrap());
    let kept: Vec<_> = files.collect();
    assert!(!kept.is_empty(), "nothing is kept in {}", dir.display());
    kept
}
