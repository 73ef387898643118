//! What runs below the language of an execution: the loop of a warm parent, the first process of
//! each nest that it makes, and the way from there to a process of the user.
//!
//! A parent (a Python interpreter, or this program for everything that is executed) waits in
//! [`Parent::next`](parent::Parent::next) for orders. For each it clones the init of a nest into new
//! namespaces, which forks; in the forked process, and only there, the call returns, and
//! [`Nest::enter`](nest::Nest::enter) makes it the user's. The init watches over it until everything has
//! ended. The parent itself never sees code or data of a user.
//!
//! This is compiled into the executor, and twice by itself, without any library, into shared objects that an
//! interpreter of any C library can load: `lib.rs` for Python, `node.rs` for Node.js. So there is only `core` here.

#![allow(unsafe_code, reason = "system calls without a C library")]

pub(crate) mod birth;
pub(crate) mod keeper;
pub(crate) mod nest;
pub(crate) mod parent;
#[allow(dead_code, reason = "only an interpreter has one")]
pub(crate) mod rehearsal;
#[allow(dead_code, reason = "each program has one side of it")]
pub(crate) mod snapshot;
pub(crate) mod sys;
pub(crate) mod wire;
