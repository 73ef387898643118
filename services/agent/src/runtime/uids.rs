//! The uids that sandboxes get of their own, so that one cannot touch the processes or files of another.

use std::collections::HashSet;

/// Hands out uids of one range; none twice while it is held.
#[derive(Debug)]
pub(in crate::runtime) struct Uids {
    base: u32,
    count: u32,
    next: u32,
    held: HashSet<u32>,
}

impl Uids {
    /// Those from `base` on, `count` of them; `first` of the range is handed out first.
    pub(in crate::runtime) fn new(base: u32, count: u32, first: u32) -> Self {
        Self { base, count, next: first % count, held: HashSet::new() }
    }

    /// The first of the range, whether it is held or not.
    pub(in crate::runtime) fn base(&self) -> u32 {
        self.base
    }

    /// A free uid; the one that was free for longest, so that what a former holder may have left behind
    /// does not meet the next one soon. `None` when all are held.
    pub(in crate::runtime) fn take(&mut self) -> Option<u32> {
        for _ in 0..self.count {
            let uid = self.base + self.next;
            self.next = (self.next + 1) % self.count;
            if self.held.insert(uid) {
                return Some(uid);
            }
        }
        None
    }

    /// Takes over a uid that a sandbox found on the machine holds.
    pub(in crate::runtime) fn hold(&mut self, uid: u32) {
        self.held.insert(uid);
    }

    pub(in crate::runtime) fn free(&mut self, uid: u32) {
        self.held.remove(&uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uid_is_held_once_and_comes_back_last() {
        let mut uids = Uids::new(1000, 3, 0);
        uids.hold(1001);
        assert_eq!((uids.take(), uids.take(), uids.take()), (Some(1000), Some(1002), None));
        uids.free(1000);
        uids.free(1001);
        assert_eq!((uids.take(), uids.take(), uids.take()), (Some(1000), Some(1001), None));
    }

    #[test]
    fn a_freed_uid_is_not_the_next_one_taken() {
        let mut uids = Uids::new(1000, 10, 9);
        let first = uids.take().unwrap();
        uids.free(first);
        assert_ne!(uids.take(), Some(first));
    }
}
