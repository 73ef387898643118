//! The shared object that a warm interpreter loads: two calls over [`native`], made by its one thread.

#![no_std]
#![no_builtins]
#![allow(dead_code, reason = "the executor uses all of it, this library some")]

mod bare;
#[path = "mod.rs"]
mod native;

use core::cell::UnsafeCell;

use native::{
    parent::{Fork, Parent},
    sys::Fd,
};

/// Where the parent's orders come from.
const CONTROL: Fd = 0;

struct State(UnsafeCell<Parent>);

// SAFETY: the interpreter that loads this has one thread.
unsafe impl Sync for State {}

static STATE: State = State(UnsafeCell::new(Parent::new(CONTROL)));

/// Serves orders. Returns in the user's process of each new nest: 1 if there is time to warm up, 0 if a
/// request is there already; ends that process if a step fails. The parent never returns. The
/// arguments are what the interpreter does before a fork, the C library's fork, what the interpreter does
/// after it in the child and in the parent, and where that library keeps its restartable sequences.
#[unsafe(no_mangle)]
pub extern "C" fn sandmesh_serve(
    before: extern "C" fn(),
    fork: extern "C" fn() -> i32,
    in_child: extern "C" fn(),
    in_parent: extern "C" fn(),
    sequences_offset: isize,
    sequences_bytes: u32,
) -> i32 {
    let fork = Fork { before, fork, in_child, in_parent, sequences: (sequences_offset, sequences_bytes) };
    // SAFETY: the interpreter has one thread, and a static stays where it is.
    let parent = unsafe { &mut *STATE.0.get() };
    // SAFETY: as above.
    let nest = unsafe { parent.next(&fork) };
    i32::from(nest.enter(parent.settings()))
}
