//! Has a warm interpreter keep its memory so that a fork of it copies little.
//!
//! A fork copies an entry for each page that the parent has, and the end of the copy takes each away again,
//! though a child needs one page in five. So the memory is put into a file without a name, which is mapped in
//! its place, privately: what is in no page table costs nothing, and a child that does need it is given it as
//! it is given pages of its program. Of the pages that every child needs the parent keeps copies of its own,
//! as a child gets those with the fork and not one by one.
//!
//! Which these are, a rehearsal tells: one child that answers a request of ours, and for which the kernel
//! maps no page but those it touches. Where that does not work, the memory stays as it was.
//!
//! The file has every page, and is sealed: a child can neither change it nor have pages added to it, which
//! others could tell, and which would be charged to nobody.

use super::{
    parent::Fork,
    sys::{self, Errno, Fd, OnExec, Patience},
    wire::{REQUEST_FD, RESULT_FD, START_FD},
};

const STDIN: Fd = 0;
const STDOUT: Fd = 1;
const STDERR: Fd = 2;

/// Pages in a row of the memory that is to be kept in a file.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Area {
    begin: usize,
    pages: usize,
}

/// All of that memory, and the bytes of a page.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    pub(crate) page: usize,
    pub(crate) areas: &'static [Area],
}

/// What the child notes for its parent, in memory that both have: for each page whether it was touched.
#[derive(Debug)]
pub(crate) struct Notes {
    memory: Memory,
    begin: usize,
}

/// Holds the rehearsal. Returns the notes in its child, which is to answer the request as always and then to call
/// [`Notes::complete`]; and nothing in the parent, when that has ended.
///
/// # Safety
/// The process has one thread and no other child; the areas are its memory, and in none is its stack, or what the
/// kernel or the C library change at a fork: the memory of the thread.
pub(crate) unsafe fn hold(fork: &Fork, memory: Memory, request: &[u8]) -> Option<Notes> {
    let notes = Notes::new(memory).ok()?;
    if let Ok(file) = sys::memory_file(c"interpreter") {
        // SAFETY: by the caller's word.
        if unsafe { play(fork, memory, file, request) } {
            return Some(notes);
        }
        if notes.are_complete() && memory.write(file).is_ok() && keep(memory, file, &notes).is_err() {
            // Half of it done is worse than none: another takes the place of this one.
            sys::exit(1);
        }
        sys::close(file);
    }
    notes.forget();
    None
}

/// Forks the child, and waits for its end in the parent. Says whether this is the child.
///
/// # Safety
/// As for [`hold`].
unsafe fn play(fork: &Fork, memory: Memory, file: Fd, request: &[u8]) -> bool {
    (fork.before)();
    let child = if memory.write(file).is_ok() { (fork.fork)() } else { -1 };
    if child == 0 {
        // SAFETY: the file has what is there, as nothing but the stack was changed since it was written.
        let shown = unsafe { memory.show(file) };
        if shown.and_then(|()| memory.separate()).and_then(|()| furnish(request)).is_err() {
            sys::exit(1);
        }
        (fork.in_child)();
        return true;
    }
    (fork.in_parent)();
    const EINTR: Errno = 4;
    while child > 0 && sys::wait(Patience::Wait) == Err(EINTR) {}
    false
}

/// Gives this process the descriptors of an execution, as far as the runner uses them.
fn furnish(request: &[u8]) -> Result<(), Errno> {
    let [reader, writer] = sys::pipe()?;
    sys::write(writer, request)?;
    let reader = sys::dup_above(reader, START_FD)?;
    let nothing = sys::dup_above(sys::open_to_write(c"/dev/null")?, START_FD)?;
    sys::dup_to(reader, REQUEST_FD, OnExec::Close)?;
    for number in [STDIN, STDOUT, STDERR, RESULT_FD, START_FD] {
        sys::dup_to(nothing, number, OnExec::Close)?;
    }
    sys::close_from(START_FD + 1)
}

/// Has the file in the place of the memory that was just written to it, but for what was touched.
fn keep(memory: Memory, file: Fd, notes: &Notes) -> Result<(), Errno> {
    // SAFETY: only the stack was changed since.
    unsafe { memory.show(file)? };
    let mut rest = notes.touched();
    for area in memory.areas {
        let (touched, others) = rest.split_at_checked(area.pages).unwrap_or_default();
        let mut begin = area.begin;
        for run in touched.chunk_by(|page, next| page == next) {
            let bytes = run.len() * memory.page;
            if run[0] == TOUCHED {
                sys::copy_pages(begin, bytes)?;
            }
            begin += bytes;
        }
        rest = others;
    }
    sys::seal(file)
}

impl Memory {
    fn pages(&self) -> usize {
        self.areas.iter().map(|area| area.pages).sum()
    }

    /// Writes all of it to the beginning of a file.
    fn write(&self, file: Fd) -> Result<(), Errno> {
        let mut offset = 0;
        for area in self.areas {
            sys::write_memory(file, offset, area.begin, area.pages * self.page)?;
            offset += area.pages * self.page;
        }
        Ok(())
    }

    /// Maps what was written in the place of what is there.
    ///
    /// # Safety
    /// That is the same.
    unsafe fn show(&self, file: Fd) -> Result<(), Errno> {
        let mut offset = 0;
        for area in self.areas {
            // SAFETY: by the caller's word.
            unsafe { sys::map_in_place(file, offset, area.begin, area.pages * self.page)? };
            offset += area.pages * self.page;
        }
        Ok(())
    }

    /// Makes an area of its own of each page: where one is touched, the kernel maps its neighbours of the same
    /// area, too. Areas are those whose advice differs.
    fn separate(&self) -> Result<(), Errno> {
        for area in self.areas {
            for page in (0..area.pages).step_by(2) {
                sys::advise_sequential(area.begin + page * self.page, self.page)?;
            }
        }
        Ok(())
    }
}

/// The note of a page that was touched.
const TOUCHED: u8 = 1;

impl Notes {
    /// None yet: a byte for each page, and one that says whether they are complete.
    fn new(memory: Memory) -> Result<Self, Errno> {
        sys::can_copy_pages()?;
        Ok(Self { memory, begin: sys::map_shared(memory.pages() + 1)? })
    }

    fn forget(self) {
        let _ = sys::unmap(self.begin, self.memory.pages() + 1);
    }

    fn bytes(&self) -> *mut u8 {
        core::ptr::with_exposed_provenance_mut(self.begin)
    }

    fn are_complete(&self) -> bool {
        // SAFETY: the last byte; the child has ended.
        unsafe { self.bytes().add(self.memory.pages()).read() == TOUCHED }
    }

    fn touched(&self) -> &[u8] {
        // SAFETY: mapped, and only this process has it since the child has ended.
        unsafe { core::slice::from_raw_parts(self.bytes(), self.memory.pages()) }
    }

    /// Notes in the child which pages are there, that is, were touched. See
    /// <https://docs.kernel.org/admin-guide/mm/pagemap.html>.
    pub(crate) fn complete(&self) -> Result<(), Errno> {
        const PRESENT: u64 = 1 << 63;
        let page_map = sys::open_to_read(c"/proc/self/pagemap")?;
        let mut index = 0;
        for area in self.memory.areas {
            for page in 0..area.pages {
                let entry =
                    sys::read_word(page_map, (area.begin / self.memory.page + page) * size_of::<u64>())?;
                // SAFETY: one of the bytes, which only this process writes to.
                unsafe { self.bytes().add(index).write(if entry & PRESENT == 0 { 0 } else { TOUCHED }) };
                index += 1;
            }
        }
        // SAFETY: the last one.
        unsafe { self.bytes().add(index).write(TOUCHED) };
        Ok(())
    }
}
