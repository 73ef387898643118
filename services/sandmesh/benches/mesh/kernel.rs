//! What is asked of the kernel by hand: processes in sessions of their own, and CPU time to the microsecond.
//!
//! The only unsafe code of the bench. `posix_spawn` is used because it does not copy the page tables of
//! this process, as a fork does: the baselines are as cheap as they can be.

#![expect(unsafe_code, reason = "the standard library neither starts a session nor tells what a child used")]

use std::{
    ffi::{CStr, CString, c_char, c_int},
    io,
    mem::MaybeUninit,
    os::unix::process::ExitStatusExt as _,
    process::ExitStatus,
    ptr,
    time::{Duration, Instant},
};

/// What a process took from its start until it was reaped.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spent {
    /// Time on the clock.
    pub(crate) wall: Duration,
    /// CPU time of the process and of those that it reaped.
    pub(crate) cpu: Duration,
}

const NULL_DEVICE: &CStr = c"/dev/null";
const PATH: &CStr = c"PATH=/usr/bin:/bin";

/// Runs a program to its end in a kernel session of its own, as each execution runs in one: the scheduler
/// shares the CPU among sessions. Input and output are `/dev/null`.
///
/// # Errors
/// When it cannot be started or waited for.
pub(crate) fn run(argv: &[CString]) -> io::Result<(ExitStatus, Spent)> {
    let plan = Plan::new()?;
    let arguments = pointers(argv.iter().map(CString::as_c_str));
    let environment = pointers([PATH].into_iter());
    let began = Instant::now();
    let pid = plan.spawn(&arguments, &environment)?;
    let (status, cpu) = wait(pid)?;
    Ok((ExitStatus::from_raw(status), Spent { wall: began.elapsed(), cpu }))
}

/// The CPU time of this process until now.
pub(crate) fn own_cpu() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the answer. The clock exists on every Linux; without it the
    // answer stays zero.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_nanos(u64::try_from(time.tv_nsec).unwrap_or(0))
}

/// Whether two processes run in one memory. A kernel that does not tell says no.
pub(crate) fn share_memory(one: i32, other: i32) -> bool {
    const KCMP_VM: i32 = 1;
    // SAFETY: numbers go in and a number comes out.
    unsafe { libc::syscall(libc::SYS_kcmp, one, other, KCMP_VM, 0, 0) == 0 }
}

/// A vector of C strings as the kernel wants it: with a null at its end.
fn pointers<'a>(strings: impl Iterator<Item = &'a CStr>) -> Vec<*mut c_char> {
    strings.map(|string| string.as_ptr().cast_mut()).chain([ptr::null_mut()]).collect()
}

/// How a child begins.
struct Plan {
    attributes: libc::posix_spawnattr_t,
    files: libc::posix_spawn_file_actions_t,
}

impl Plan {
    fn new() -> io::Result<Self> {
        let mut attributes = MaybeUninit::uninit();
        let mut files = MaybeUninit::uninit();
        // SAFETY: both functions initialise what they are given; neither can fail on Linux but by lack of
        // memory, which is reported before anything is read.
        let mut plan = unsafe {
            check(libc::posix_spawnattr_init(attributes.as_mut_ptr()))?;
            check(libc::posix_spawn_file_actions_init(files.as_mut_ptr()))?;
            Self { attributes: attributes.assume_init(), files: files.assume_init() }
        };
        // SAFETY: `plan` is initialised, and the path is a constant.
        unsafe {
            check(libc::posix_spawnattr_setflags(&raw mut plan.attributes, libc::POSIX_SPAWN_SETSID))?;
            for (descriptor, flags) in [(0, libc::O_RDONLY), (1, libc::O_WRONLY), (2, libc::O_WRONLY)] {
                let files = &raw mut plan.files;
                let path = NULL_DEVICE.as_ptr();
                check(libc::posix_spawn_file_actions_addopen(files, descriptor, path, flags, 0))?;
            }
        }
        Ok(plan)
    }

    /// `argv` and `environment` end with a null, and `argv` has a first word.
    fn spawn(&self, argv: &[*mut c_char], environment: &[*mut c_char]) -> io::Result<libc::pid_t> {
        let mut pid = 0;
        // SAFETY: both vectors end with a null and point to strings that outlive the call; the plan is
        // initialised.
        check(unsafe {
            libc::posix_spawn(
                &raw mut pid,
                argv[0],
                &raw const self.files,
                &raw const self.attributes,
                argv.as_ptr(),
                environment.as_ptr(),
            )
        })?;
        Ok(pid)
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: both were initialised by `new` and are not used again.
        unsafe {
            libc::posix_spawn_file_actions_destroy(&raw mut self.files);
            libc::posix_spawnattr_destroy(&raw mut self.attributes);
        }
    }
}

/// Waits for a child. Returns its status as the kernel writes it, and the CPU time it used.
fn wait(pid: libc::pid_t) -> io::Result<(c_int, Duration)> {
    let mut status = 0;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    loop {
        // SAFETY: both are valid places for the answer.
        if unsafe { libc::wait4(pid, &raw mut status, 0, usage.as_mut_ptr()) } == pid {
            // SAFETY: it was zeroed, which is a valid value, and then filled.
            let usage = unsafe { usage.assume_init() };
            return Ok((status, time(usage.ru_utime) + time(usage.ru_stime)));
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

fn time(value: libc::timeval) -> Duration {
    let seconds = u64::try_from(value.tv_sec).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_micros(u64::try_from(value.tv_usec).unwrap_or(0))
}

fn check(code: c_int) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) }
}
