//! The last word of a runner: that the user's code is done, and how its process will end.
//!
//! Taking an interpreter apart takes as long as running a small function, so its caller is not made to wait for that.
//! User code can say it, too: then that is its end, as if it had exited, and whatever it still does is killed.

use crate::supervise::{ChildUsage, Exit};

/// What begins it, after the result: no JSON text has it.
const MARK: u8 = 4;

/// The most that it may have.
const MOST_BYTES: usize = 128;

/// The farewell at the end of what came over the result descriptor, and where it begins: the mark, the exit
/// code, CPU time in microseconds, the peak of the memory in KiB, blocks read and written, a new line.
pub(crate) fn at_end(said: &[u8]) -> Option<(usize, Exit)> {
    let text = said.strip_suffix(b"\n")?;
    let tail = text.len().saturating_sub(MOST_BYTES);
    let mark = tail + text[tail..].iter().rposition(|byte| *byte == MARK)?;
    let mut words = std::str::from_utf8(&text[mark + 1..]).ok()?.split(' ');
    let code = words.next()?.parse::<u8>().ok()?;
    let mut figure = || words.next()?.parse::<u64>().ok();
    let usage = ChildUsage::of([figure()?, figure()?, figure()?, figure()?]);
    let exit = Exit { code: Some(code.into()), signal: None, usage };
    words.next().is_none().then_some((mark, exit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_a_result_or_none() {
        for before in ["", "R{}", "R\"a\\n\"", "\u{4}7 1 2 3 4\n"] {
            let said = format!("{before}\u{4}3 1500 2048 0 8\n");
            let (length, exit) = at_end(said.as_bytes()).unwrap();
            assert_eq!((length, exit.code, exit.signal), (before.len(), Some(3), None));
            assert_eq!((exit.usage.cpu_us, exit.usage.peak_rss_bytes), (1500, 2 << 20));
            assert_eq!((exit.usage.read_bytes, exit.usage.write_bytes), (0, 4096));
        }
    }

    #[test]
    fn what_is_not_whole_is_none() {
        let whole = "R1\u{4}0 1 2 3 4\n";
        for length in 0..whole.len() {
            assert!(at_end(&whole.as_bytes()[..length]).is_none(), "{length}");
        }
        for wrong in
            ["", "\n", "R1\n", "\u{4}\n", "\u{4}256 1 2 3 4\n", "\u{4}0 1 2 3 4 5\n", "\u{4}-1 1 2 3 4\n"]
        {
            assert!(at_end(wrong.as_bytes()).is_none(), "{wrong:?}");
        }
    }
}
