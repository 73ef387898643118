//! What tests of several roles need.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    net::TcpListener,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

/// A port of loopback that nobody listens on, for this process alone until it ends: no other caller gets it,
/// in this process or in another, also while nobody listens on it. It is below those that the system gives to
/// outgoing connections.
///
/// # Panics
///
/// Where no port is left.
#[must_use]
pub fn free_port() -> u16 {
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 22_000;
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    let begin = std::process::id().wrapping_mul(16);
    let next = |_| {
        let number = begin.wrapping_add(TAKEN.fetch_add(1, Ordering::Relaxed));
        u16::try_from(FIRST + number % COUNT).unwrap()
    };
    let is_free = |port: &u16| is_kept(*port) && TcpListener::bind(("127.0.0.1", *port)).is_ok();
    (0..COUNT).map(next).find(is_free).unwrap()
}

/// Whether a port is this process's from now on. The sign is a name of a socket, which ends with its process
/// and is, like the port, one of a network namespace.
fn is_kept(port: u16) -> bool {
    static KEPT: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());
    let name = SocketAddr::from_abstract_name(format!("sandmesh-test-port-{port}")).unwrap();
    let sign = UnixListener::bind_addr(&name);
    sign.map(|sign| KEPT.lock().unwrap().push(sign)).is_ok()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_port_is_given_once_also_to_who_counts_from_the_same_number() {
        let ports: Vec<u16> = (0..100).map(|_| free_port()).collect();
        assert_eq!(ports.iter().collect::<HashSet<_>>().len(), ports.len());
        assert!(ports.iter().all(|port| !is_kept(*port)), "nobody else can have one");
    }
}
