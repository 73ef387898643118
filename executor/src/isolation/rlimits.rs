//! Resource limits of the user's process, set by the jail's init right before it becomes user code.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

/// The limits to set. They hold per process, besides what the control groups enforce for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rlimits {
    /// Open files.
    pub(crate) open_files: u64,
    /// The largest file, in bytes.
    pub(crate) file_bytes: Option<u64>,
    /// Private writable memory in bytes; only where no control group limits it.
    pub(crate) data_bytes: Option<u64>,
    /// Processes of the jail; only where no control group limits them.
    pub(crate) processes: Option<u64>,
}

impl Rlimits {
    /// Sets them, soft and hard, on this process; never above what it may have already. There are no
    /// core dumps and little locked memory.
    pub(crate) fn apply(&self) -> nix::Result<()> {
        const LOCKED_BYTES: u64 = 8 << 20;
        let set = |resource, value: Option<u64>| {
            let Some(value) = value else { return Ok(()) };
            let value = value.min(getrlimit(resource)?.1);
            setrlimit(resource, value, value)
        };
        set(Resource::RLIMIT_CORE, Some(0))?;
        set(Resource::RLIMIT_NOFILE, Some(self.open_files))?;
        set(Resource::RLIMIT_MEMLOCK, Some(LOCKED_BYTES))?;
        set(Resource::RLIMIT_FSIZE, self.file_bytes)?;
        set(Resource::RLIMIT_DATA, self.data_bytes)?;
        set(Resource::RLIMIT_NPROC, self.processes)
    }
}
