//! `sandmesh-executor restore`: the loader. It becomes what a snapshot is of, or else executes that program.

use std::{
    convert::Infallible,
    fs::{self, File},
    io::{self, Read as _},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, IntoRawFd as _},
        unix::{fs::FileExt as _, process::CommandExt as _},
    },
    path::Path,
    process::{Command, ExitCode},
    ptr,
};

use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::{SigHandler, Signal, signal};

use super::{Area, Content, Snapshot, Stamp, maps};
use crate::{
    cli::RestoreOptions,
    native::snapshot::{AUXILIARY_WORDS, Handover, MESSAGE_BYTES, MOST_AREAS, go_on},
};

/// What a loader has to be started with, and nobody else: its C library is not to have the kernel write to memory of
/// its thread, which is there no longer when another goes on.
pub(crate) const ENVIRONMENT: (&str, &str) = ("GLIBC_TUNABLES", "glibc.pthread.rseq=0");

/// Part of a large page of a program, see `merge_program` of the runner.
const LARGE: usize = 2 << 20;

/// Goes on as the template; returns only if not even the program could be executed.
#[expect(unsafe_code, reason = "a descriptor by its number")]
pub(crate) fn run(options: &RestoreOptions) -> ExitCode {
    // SAFETY: whoever started this opened it for this alone.
    let file = unsafe { File::from_raw_fd(options.snapshot) };
    let Err(why) = restore(&file, options);
    drop(file);
    eprintln!("the snapshot is not used: {why:#}");
    let (program, args) =
        options.command.split_first().map_or_else(Default::default, |(a, b)| (a.clone(), b));
    let err = Command::new(program).args(args).env_remove(ENVIRONMENT.0).exec();
    eprintln!("cannot execute Python: {err}");
    ExitCode::from(127)
}

fn restore(file: &File, options: &RestoreOptions) -> anyhow::Result<Infallible> {
    // The template had this id, and its C library knows that.
    ensure!(std::process::id() == 1, "this is not the first process of a jail");
    let (snapshot, memory) = Snapshot::read(file).context("cannot read it")?;
    let program = File::open(&snapshot.program).context("cannot open its program")?;
    for area in &snapshot.areas {
        map(area, file, memory).with_context(|| format!("cannot map {:x}", area.begin))?;
    }
    map_stack(snapshot.stack, file, memory).context("cannot map the stack")?;
    for (begin, end) in &snapshot.own {
        const POPULATE_WRITE: i32 = 23;
        advise(*begin, *end, POPULATE_WRITE).context("cannot copy pages")?;
    }
    for area in snapshot.areas.iter().filter(|area| area.is_filled_first()) {
        protect(area).context("cannot protect memory")?;
    }
    move_kernel_pages(&snapshot).context("cannot move what the kernel shows")?;
    // From here on there is nothing that tells the time.
    hand_over(&snapshot, program, &message(options)?)?;
    forget_handlers()?;
    leave(snapshot.stack_pointer, snapshot.thread)
}

/// Our handlers would not know what they run on.
#[expect(unsafe_code, reason = "signal dispositions")]
fn forget_handlers() -> nix::Result<()> {
    for fault in [Signal::SIGSEGV, Signal::SIGBUS] {
        // SAFETY: the default disposition installs no handler.
        unsafe { signal(fault, SigHandler::SigDfl)? };
    }
    Ok(())
}

#[expect(unsafe_code, reason = "becomes another")]
fn leave(stack: usize, thread: usize) -> ! {
    // SAFETY: all of its memory is here.
    unsafe { go_on(stack, thread) }
}

fn map(area: &Area, memory: &File, begins: u64) -> anyhow::Result<()> {
    match &area.content {
        Content::Nothing => map_at(area, None, 0),
        Content::Wiped(is_droppable) => map_wiped(area, *is_droppable),
        Content::Memory(offset) => map_at(area, Some(memory), begins + offset),
        Content::File(path, offset, stamp) => {
            let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
            ensure!(Stamp::of(&file.metadata()?) == *stamp, "{} is not what it was", path.display());
            map_at(area, Some(&file), *offset)?;
            if area.access.contains('x') && area.begin.is_multiple_of(LARGE) && area.end - area.begin >= LARGE
            {
                // Where there are no large pages all works as well.
                let _ = advise(area.begin, area.end, libc::MADV_HUGEPAGE);
            }
            Ok(())
        }
    }
}

/// Maps it where nothing is so far.
fn map_at(area: &Area, file: Option<&File>, offset: u64) -> anyhow::Result<()> {
    let access = access(area) | if area.is_filled_first() { libc::PROT_WRITE } else { 0 };
    let kind = if area.access.ends_with('s') { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
    let kind = if file.is_none() { kind | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE } else { kind };
    map_fixed((area.begin, area.end), access, kind, file.map(|file| (file, offset)))
}

fn map_wiped(area: &Area, is_droppable: bool) -> anyhow::Result<()> {
    const MAP_DROPPABLE: i32 = 8;
    let kind = if is_droppable { MAP_DROPPABLE } else { libc::MAP_PRIVATE };
    map_fixed((area.begin, area.end), access(area), kind | libc::MAP_ANONYMOUS, None)?;
    match is_droppable {
        true => Ok(()),
        false => Ok(advise(area.begin, area.end, libc::MADV_WIPEONFORK)?),
    }
}

fn access(area: &Area) -> i32 {
    let flags = [('r', libc::PROT_READ), ('w', libc::PROT_WRITE), ('x', libc::PROT_EXEC)];
    flags.iter().filter(|(letter, _)| area.access.contains(*letter)).map(|(_, flag)| flag).sum()
}

#[expect(unsafe_code, reason = "memory at a fixed place")]
fn protect(area: &Area) -> io::Result<()> {
    let place = ptr::with_exposed_provenance_mut(area.begin);
    // SAFETY: just mapped, and nobody uses it yet.
    match unsafe { libc::mprotect(place, area.end - area.begin, access(area)) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[expect(unsafe_code, reason = "memory at a fixed place")]
fn map_fixed(
    (begin, end): (usize, usize),
    access: i32,
    flags: i32,
    file: Option<(&File, u64)>,
) -> anyhow::Result<()> {
    let (fd, offset) = file.map_or((-1, 0), |(file, offset)| (file.as_raw_fd(), offset));
    let place = ptr::with_exposed_provenance_mut(begin);
    let flags = flags | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: nothing is replaced.
    let mapped = unsafe { libc::mmap(place, end - begin, access, flags, fd, i64::try_from(offset)?) };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error().into());
    }
    // An old kernel takes the place for a wish.
    ensure!(mapped == place, "it is somewhere else");
    Ok(())
}

/// Has the stack where it was, which grows as it did.
#[expect(unsafe_code, reason = "memory at a fixed place")]
fn map_stack((begin, end, offset): (usize, usize, u64), file: &File, begins: u64) -> anyhow::Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_GROWSDOWN | libc::MAP_STACK;
    map_fixed((begin, end), libc::PROT_READ | libc::PROT_WRITE, flags, None)?;
    // SAFETY: just mapped, and nobody else knows of it.
    let bytes =
        unsafe { std::slice::from_raw_parts_mut(ptr::with_exposed_provenance_mut::<u8>(begin), end - begin) };
    Ok(file.read_exact_at(bytes, begins + offset)?)
}

#[expect(unsafe_code, reason = "memory at a fixed place")]
fn advise(begin: usize, end: usize, advice: i32) -> io::Result<()> {
    // SAFETY: none of these advices changes what is in the memory of this process.
    match unsafe { libc::madvise(ptr::with_exposed_provenance_mut(begin), end - begin, advice) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has what the kernel shows to each process where the template had it, whose C library calls it there.
fn move_kernel_pages(snapshot: &Snapshot) -> anyhow::Result<()> {
    let here = maps::of(Path::new("/proc/self"))?;
    for (name, begin, end) in &snapshot.kernel {
        let found =
            here.iter().find(|map| map.name == *name).with_context(|| format!("there is no {name}"))?;
        ensure!(found.end - found.begin == end - begin, "{name} has another size");
        if found.begin != *begin {
            let is_free = here.iter().all(|map| map.end <= *begin || *end <= map.begin);
            ensure!(is_free, "something is where {name} was");
            move_to(found.begin, *begin, end - begin)?;
        }
    }
    Ok(())
}

#[expect(unsafe_code, reason = "memory at a fixed place")]
fn move_to(from: usize, to: usize, bytes: usize) -> io::Result<()> {
    let [from, to] = [from, to].map(ptr::with_exposed_provenance_mut::<libc::c_void>);
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: nothing is there, and nobody here asks for the time.
    match unsafe { libc::mremap(from, bytes, bytes, flags, to) } {
        libc::MAP_FAILED => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// What the runner is to be told: two lines, or nothing.
fn message(options: &RestoreOptions) -> anyhow::Result<Vec<u8>> {
    let packages = options.packages.as_deref().unwrap_or_default();
    let message = options.path.as_ref().map(|path| format!("{path}\n{packages}\0")).unwrap_or_default();
    ensure!(message.len() <= MESSAGE_BYTES, "there is too much to tell");
    Ok(message.into_bytes())
}

/// Leaves what is to be known of this process to whoever goes on in it.
#[expect(unsafe_code, reason = "memory of a template")]
fn hand_over(snapshot: &Snapshot, program: File, message: &[u8]) -> anyhow::Result<()> {
    let place = ptr::with_exposed_provenance_mut::<Handover>(snapshot.handover);
    // SAFETY: it is mapped, is what the template has there, and nobody else uses it yet.
    let handover = unsafe { &mut *place };
    handover.layout[..snapshot.layout.len()].copy_from_slice(&snapshot.layout);
    handover.message[..message.len()].copy_from_slice(message);
    handover.auxiliary = [0; AUXILIARY_WORDS];
    handover.auxiliary[..snapshot.auxiliary.len()].copy_from_slice(&snapshot.auxiliary);
    let auxiliary_bytes = (snapshot.auxiliary.len() * size_of::<u64>()) as u64;
    let program = u64::try_from(program.into_raw_fd())?;
    handover.layout[11] = handover.auxiliary.as_ptr() as u64;
    handover.layout[12] = auxiliary_bytes | program << 32;
    note_own_areas(snapshot, &mut handover.areas)
}

/// Notes all that is mapped and not of the snapshot. Once that is read, nothing may be mapped any more.
fn note_own_areas(snapshot: &Snapshot, areas: &mut [[usize; 2]; MOST_AREAS]) -> anyhow::Result<()> {
    const ENOUGH: usize = 64 << 10;
    let (stack, stack_end, _) = snapshot.stack;
    let theirs = |place: usize| {
        let is_in = |begin: usize, end: usize| (begin..end).contains(&place);
        is_in(stack, stack_end)
            || snapshot.areas.iter().any(|area| is_in(area.begin, area.end))
            || snapshot.kernel.iter().any(|(_, begin, end)| is_in(*begin, *end))
    };
    let mut text = String::with_capacity(ENOUGH);
    fs::File::open("/proc/self/maps")?.read_to_string(&mut text)?;
    let mut free = areas.iter_mut();
    for line in text.lines().filter(|line| !line.ends_with("[vsyscall]")) {
        let (begin, end) = maps::range(line.split(' ').next().unwrap_or_default()).context("strange maps")?;
        if theirs(begin) {
            continue;
        }
        match free.next() {
            Some(area) => *area = [begin, end - begin],
            None => bail!("the loader has too many areas"),
        }
    }
    ensure!(text.capacity() == ENOUGH, "there is more mapped than is looked at");
    free.for_each(|area| *area = [0; 2]);
    Ok(())
}
