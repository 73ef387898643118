//! Cases 19 to 21: whatever could be reached over a network or a socket.
//!
//! The suite listens on the host itself, so that the verdict is what arrived there.

use std::{
    io::ErrorKind,
    net::{TcpListener, UdpSocket},
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram, UnixListener},
    },
};

use serde_json::{Value, json};

use super::{interactive, prepare};
use crate::attack::{
    arena::{Arena, Wish, with_env},
    host::Canary,
    judge::{self, UNREACHABLE},
    verdict::{Evidence, Witness},
};

const REACH: &str = include_str!("../programs/reach.py");
const LISTEN: &str = include_str!("../programs/listen.py");

/// What one attempt is aimed at: a label, how, where, and a port.
fn aim(label: &str, how: &str, place: &str, port: u16) -> Value {
    json!([label, how, place, port])
}

/// Runs the attempts in a session of their own; all must fail.
async fn unreachable(arena: &Arena, targets: Vec<Value>) -> anyhow::Result<Evidence> {
    let (session, sandbox) = prepare(arena, Wish::default()).await?;
    let mut evidence = Evidence::default();
    let least = targets.len();
    let spec = with_env(arena.python(REACH), &[("ATTACK_TARGETS", &Value::from(targets).to_string())]);
    let outcome = arena.run(&session, spec).await?;
    let mut answers = UNREACHABLE.to_vec();
    answers.extend(["lo", "0"]);
    judge::attempts(&mut evidence, &outcome.stdout, least, &answers);
    arena.still_well(&mut evidence, &session, sandbox.as_ref()).await?;
    Ok(evidence)
}

/// Services of the host that wait for a visit.
struct Trap {
    tcp: Vec<TcpListener>,
    udp: UdpSocket,
    abstract_name: String,
    abstract_socket: UnixListener,
    socket: UnixListener,
    datagrams: UnixDatagram,
    canary: Canary,
}

impl Trap {
    fn set() -> anyhow::Result<Self> {
        let canary = Canary::new()?;
        let abstract_name = format!("sandmesh-trap-{:016x}", rand::random::<u64>());
        let place = |name: &str| canary.path().join("inner").join(name);
        let mut tcp = vec![TcpListener::bind("0.0.0.0:0")?];
        tcp.extend(TcpListener::bind("[::1]:0"));
        let trap = Self {
            udp: UdpSocket::bind("0.0.0.0:0")?,
            abstract_socket: UnixListener::bind_addr(&SocketAddr::from_abstract_name(&abstract_name)?)?,
            socket: UnixListener::bind(place("socket"))?,
            datagrams: UnixDatagram::bind(place("datagrams"))?,
            tcp,
            abstract_name,
            canary,
        };
        trap.tcp.iter().try_for_each(|listener| listener.set_nonblocking(true))?;
        trap.udp.set_nonblocking(true)?;
        trap.abstract_socket.set_nonblocking(true)?;
        trap.socket.set_nonblocking(true)?;
        trap.datagrams.set_nonblocking(true)?;
        Ok(trap)
    }

    /// The address that the machine has towards the outside; loopback where it has none.
    fn outward() -> String {
        let ask = || -> std::io::Result<String> {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            // Nothing is sent: this only asks for the route.
            socket.connect("192.0.2.1:9")?;
            Ok(socket.local_addr()?.ip().to_string())
        };
        ask().unwrap_or_else(|_| "127.0.0.1".to_owned())
    }

    fn targets(&self) -> anyhow::Result<Vec<Value>> {
        let outward = Self::outward();
        let mut targets = Vec::new();
        for listener in &self.tcp {
            let port = listener.local_addr()?.port();
            let places = if listener.local_addr()?.is_ipv6() {
                vec!["::1"]
            } else {
                vec!["127.0.0.1", &outward, "0.0.0.0"]
            };
            for place in places {
                for how in ["tcp", "fast open", "from elsewhere", "to a device"] {
                    targets.push(aim(&format!("{how} to the host at {place}"), how, place, port));
                }
            }
        }
        let port = self.udp.local_addr()?.port();
        for place in ["127.0.0.1", &outward] {
            targets.push(aim(&format!("udp to the host at {place}"), "udp", place, port));
        }
        targets.push(aim("abstract socket of the host", "unix", &format!("@{}", self.abstract_name), 0));
        let inner = self.canary.path().join("inner");
        for prefix in ["", "/proc/1/root", "/proc/self/root"] {
            let place = |name: &str| format!("{prefix}{}", inner.join(name).display());
            targets.push(aim(&format!("socket of the host by {prefix}/"), "unix", &place("socket"), 0));
            let datagrams = place("datagrams");
            targets.push(aim(&format!("datagram of the host by {prefix}/"), "unix datagram", &datagrams, 0));
        }
        Ok(targets)
    }

    /// How many came.
    fn caught(&self) -> Vec<&'static str> {
        let came = |result: std::io::Result<()>| match result {
            Err(error) => error.kind() != ErrorKind::WouldBlock,
            Ok(()) => true,
        };
        let mut byte = [0];
        let mut caught = Vec::new();
        let mut note = |what, result| {
            if came(result) {
                caught.push(what);
            }
        };
        for listener in &self.tcp {
            note("a TCP connection", listener.accept().map(drop));
        }
        note("a UDP packet", self.udp.recv(&mut byte).map(drop));
        note("a connection to an abstract socket", self.abstract_socket.accept().map(drop));
        note("a connection to a socket", self.socket.accept().map(drop));
        note("a datagram", self.datagrams.recv(&mut byte).map(drop));
        caught
    }
}

pub(super) async fn any_network(arena: &Arena) -> anyhow::Result<Evidence> {
    let trap = Trap::set()?;
    let mut targets = trap.targets()?;
    for place in [
        "1.1.1.1",
        "8.8.8.8",
        "192.0.2.1",
        "10.0.0.1",
        "172.17.0.1",
        "192.168.0.1",
        "2606:4700:4700::1111",
        "fe80::1",
        "ff02::1",
    ] {
        targets.push(aim(&format!("tcp {place}"), "tcp", place, 443));
        targets.push(aim(&format!("udp {place}"), "udp", place, 9));
        targets.push(aim(&format!("icmp {place}"), "icmp", place, 0));
        targets.push(aim(&format!("raw {place}"), "raw", place, 0));
    }
    targets.push(aim("broadcast", "broadcast", "255.255.255.255", 9));
    targets.push(aim("multicast", "broadcast", "224.0.0.251", 5353));
    for name in ["example.com", "example.com.", "secret.attacker.example", "localhost.localdomain"] {
        targets.push(aim(&format!("name {name}"), "name", name, 80));
    }
    for server in
        ["127.0.0.53", "127.0.0.1", "1.1.1.1", "8.8.8.8"].into_iter().map(str::to_owned).chain(nameservers())
    {
        targets.push(aim(&format!("dns at {server} by udp"), "dns", &server, 53));
        targets.push(aim(&format!("dns at {server} by tcp"), "tcp", &server, 53));
    }
    let mut evidence = unreachable(arena, targets).await?;
    let caught = trap.caught();
    let told = if caught.is_empty() { "nothing".to_owned() } else { caught.join(", ") };
    evidence.host("what arrived at listeners on this machine", caught.is_empty(), told);
    Ok(evidence)
}

fn nameservers() -> Vec<String> {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    text.lines()
        .filter_map(|line| line.strip_prefix("nameserver "))
        .map(|server| server.trim().to_owned())
        .collect()
}

pub(super) async fn metadata_services(arena: &Arena) -> anyhow::Result<Evidence> {
    let mut targets = Vec::new();
    for place in [
        "169.254.169.254",
        "169.254.170.2",
        "169.254.170.23",
        "100.100.100.200",
        "192.0.0.192",
        "168.63.129.16",
        "fd00:ec2::254",
        "fd20:ce::254",
    ] {
        for port in [80, 443, 1338] {
            targets.push(aim(&format!("tcp {place} {port}"), "tcp", place, port));
        }
        targets.push(aim(&format!("udp {place}"), "udp", place, 53));
    }
    for name in ["metadata.google.internal", "metadata", "instance-data", "instance-data.ec2.internal"] {
        targets.push(aim(&format!("name {name}"), "name", name, 80));
    }
    unreachable(arena, targets).await
}

pub(super) async fn control_plane(arena: &Arena) -> anyhow::Result<Evidence> {
    let mut targets = Vec::new();
    let address = arena.door()?.address;
    let (host, port) = address.rsplit_once(':').unwrap_or((&address, "80"));
    let port = port.parse().unwrap_or(80);
    for place in [host.trim_matches(['[', ']']), "127.0.0.1", &Trap::outward()] {
        targets.push(aim(&format!("gateway at {place}"), "tcp", place, port));
    }
    for port in [22, 2375, 2376, 3306, 5432, 6379, 6443, 8000, 8001, 10250, 2379, 4317] {
        targets.push(aim(&format!("port {port} of the machine"), "tcp", "127.0.0.1", port));
    }
    let mut sockets: Vec<String> = [
        "/var/run/docker.sock",
        "/run/docker.sock",
        "/run/containerd/containerd.sock",
        "/run/podman/podman.sock",
        "/run/crio/crio.sock",
        "/run/dbus/system_bus_socket",
        "/run/systemd/private",
        "/run/systemd/journal/socket",
        "/run/sandmesh/executor.sock",
        "/run/user/0/bus",
        "@/containerd-shim/x",
        "@/org/freedesktop/systemd1/notify",
    ]
    .map(str::to_owned)
    .into();
    if let Some(host) = &arena.host {
        let own = arena.session(Wish::default()).await?;
        sockets.push(host.sandbox_dir(&own.sandbox_id).join("executor.sock").display().to_string());
        sockets.push(host.local.data_dir.join("session.db").display().to_string());
    }
    for socket in &sockets {
        targets.push(aim(&format!("socket {socket}"), "unix", socket, 0));
        if !socket.starts_with('@') {
            targets.push(aim(
                &format!("socket /proc/1/root{socket}"),
                "unix",
                &format!("/proc/1/root{socket}"),
                0,
            ));
        }
    }
    unreachable(arena, targets).await
}

pub(super) async fn sibling_sandboxes(arena: &Arena) -> anyhow::Result<Evidence> {
    let (listening, _) = prepare(arena, Wish::default()).await?;
    let name = format!("trap-{}", arena.mark);
    let spec = with_env(interactive(arena.python(LISTEN)), &[("ATTACK_NAME", &name)]);
    let mut live = arena.open(&listening, spec).await?;
    live.stage("listening").await?;
    let mut targets = vec![
        aim("loopback of the other", "tcp", "127.0.0.1", 5177),
        aim("loopback of the other, IPv6", "tcp", "::1", 5178),
        aim("loopback of the other, UDP", "udp", "127.0.0.1", 5177),
        aim("abstract socket of the other", "unix", &format!("@{name}"), 0),
        aim("its socket in the workspace", "unix", "/workspace/sock", 0),
        aim("its socket in /tmp", "unix", "/tmp/sock", 0),
    ];
    if let Some(host) = &arena.host {
        let socket = host.sandbox_dir(&listening.sandbox_id).join("workspace/sock");
        targets.push(aim("its socket by its path on the host", "unix", &socket.display().to_string(), 0));
    }
    let mut evidence = unreachable(arena, targets).await?;
    live.go_on().await?;
    let outcome = live.end().await?;
    // What comes first is that the trap works: it was reached from its own session.
    let expected = [("from its own session", "6"), ("from another session", "0")];
    judge::exactly(&mut evidence, &outcome.stdout, &expected);
    evidence.saw(Witness::Client, "the listener ends", outcome.result.exit_code == Some(0), outcome.ending());
    Ok(evidence)
}
