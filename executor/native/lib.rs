//! The shared object that a warm interpreter loads: five calls over [`native`], made by its one thread.

#![no_std]
#![no_builtins]
#![allow(dead_code, reason = "the executor uses all of it, this library some")]

mod bare;
#[path = "mod.rs"]
mod native;

use core::{cell::UnsafeCell, slice};

use native::{
    parent::{Fork, Parent},
    rehearsal::{self, Area, Memory, Notes},
    snapshot::Template,
    sys::{self, Fd},
};

/// Where the parent's orders come from.
const CONTROL: Fd = 0;

struct State {
    parent: Parent,
    /// What is to be rehearsed before the first order.
    play: Option<(Memory, &'static [u8])>,
    notes: Option<Notes>,
    /// Whether to be a template before the first order.
    is_template: bool,
    template: Template,
}

struct OfOneThread(UnsafeCell<State>);

// SAFETY: the interpreter that loads this has one thread.
unsafe impl Sync for OfOneThread {}

static STATE: OfOneThread = OfOneThread(UnsafeCell::new(State {
    parent: Parent::new(CONTROL),
    play: None,
    notes: None,
    is_template: false,
    template: Template::new(),
}));

/// What [`sandmesh_serve`] returns in the child of a rehearsal.
const REHEARSAL: i32 = 2;

/// What [`sandmesh_serve`] returns in a process that was made of a snapshot and has a [`sandmesh_message`].
const RESTORED: i32 = 3;

/// Serves orders. Returns in the user's process of each new nest: 1 if there is time to warm up, 0 if a
/// request is there already; ends that process if a step fails. The parent never returns. The
/// arguments are what the interpreter does before a fork, the C library's fork, what the interpreter does
/// after it in the child and in the parent, and where that library keeps its restartable sequences.
///
/// After [`sandmesh_rehearse`] it returns 2 in a child that is to answer that request, and then to call
/// [`sandmesh_rehearsed`].
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
    let State { parent, play, notes, is_template, template } = unsafe { &mut *STATE.0.get() };
    if let Some((memory, request)) = play.take() {
        // SAFETY: by the word of whoever called `sandmesh_rehearse`.
        *notes = unsafe { rehearsal::hold(&fork, memory, request) };
        if notes.is_some() {
            return REHEARSAL;
        }
    }
    if core::mem::take(is_template) {
        // SAFETY: the interpreter has one thread, and a static stays where it is.
        unsafe { template.wait(CONTROL, fork.sequences) };
        if !template.message().is_empty() {
            return RESTORED;
        }
    }
    // SAFETY: the interpreter has one thread.
    let nest = unsafe { parent.next(&fork) };
    i32::from(nest.enter(parent.settings()))
}

/// Has [`sandmesh_serve`] first hold a [`rehearsal`] with this request, and keep the memory of these areas by it. They
/// are as many pairs of a beginning and a count of pages, each of so many bytes.
///
/// # Safety
/// The areas and the request stay where they are; so does the memory of the areas, in which there is no stack and no
/// memory of a thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sandmesh_rehearse(
    page: usize,
    areas: *const Area,
    area_count: usize,
    request: *const u8,
    request_bytes: usize,
) {
    // SAFETY: by the caller's word.
    let (areas, request) =
        unsafe { (slice::from_raw_parts(areas, area_count), slice::from_raw_parts(request, request_bytes)) };
    // SAFETY: the interpreter has one thread, and nobody has a reference.
    unsafe { (*STATE.0.get()).play = Some((Memory { page, areas }, request)) };
}

/// What a loader wants this process to know, as a string of C.
#[unsafe(no_mangle)]
pub extern "C" fn sandmesh_message() -> *const u8 {
    // SAFETY: the interpreter has one thread, and nobody has a reference.
    unsafe { (*STATE.0.get()).template.message().as_ptr() }
}

/// Has [`sandmesh_serve`] first be a template of a [`snapshot`](native::snapshot): it goes on in processes that are
/// made of it, as if they had been started. Where there is a [`sandmesh_message`] it returns 3 first, to be called
/// again.
#[unsafe(no_mangle)]
pub extern "C" fn sandmesh_be_template() {
    // SAFETY: the interpreter has one thread, and nobody has a reference.
    unsafe { (*STATE.0.get()).is_template = true };
}

/// Ends the child of [`sandmesh_rehearse`].
#[unsafe(no_mangle)]
pub extern "C" fn sandmesh_rehearsed(_status: i32) -> ! {
    // SAFETY: the interpreter has one thread, and nobody has a reference.
    let complete = unsafe { (*STATE.0.get()).notes.as_ref().map(Notes::complete) };
    sys::exit(i32::from(complete != Some(Ok(()))))
}
