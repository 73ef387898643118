//! The one way out of the jail of an installer: an HTTP proxy on a unix socket, that connects to the hosts of
//! a list and to nothing else.
//!
//! To hosts that speak TLS it makes tunnels (`CONNECT`), and knows nothing of what goes through them. Plain
//! HTTP is for hosts of which the operator says so; there a connection serves one request. Names are resolved
//! here, once, and it is connected to what came out.

use std::{io, net::SocketAddr, str::FromStr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpStream, UnixListener, UnixStream, lookup_host},
    task::JoinSet,
    time::timeout,
};

/// Connections of an installer at once.
const CONNECTIONS: usize = 64;
/// The longest head of a request.
const HEAD_BYTES: usize = 64 << 10;
/// How long a head may take to come, and a host to be connected to.
const PATIENCE: Duration = Duration::from_secs(20);
/// The longest name of a host.
const HOST_MAX: usize = 253;

/// A host that may be reached: `HOST` or `HOST:PORT` by TLS, `http://HOST[:PORT]` in plain HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Host {
    name: String,
    port: u16,
    plain: bool,
}

impl FromStr for Host {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (plain, rest) = match text.strip_prefix("http://") {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix("https://").unwrap_or(text)),
        };
        let default = if plain { 80 } else { 443 };
        let (name, port) = authority(rest, default).ok_or("must be HOST, HOST:PORT or http://HOST:PORT")?;
        Ok(Self { name, port, plain })
    }
}

/// The host, in lowercase, and the port of `HOST[:PORT]`; `None` when it has not that form.
fn authority(text: &str, default: u16) -> Option<(String, u16)> {
    let (name, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (name, rest) = rest.split_once(']')?;
            (name, rest.strip_prefix(':').or_else(|| rest.is_empty().then_some("")).map(str::to_owned)?)
        }
        None => match text.rsplit_once(':') {
            Some((name, port)) => (name, port.to_owned()),
            None => (text, String::new()),
        },
    };
    let port = if port.is_empty() { default } else { port.parse().ok()? };
    let is_address = name.parse::<std::net::Ipv6Addr>().is_ok();
    let inside = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let fits = is_address || (!text.starts_with('[') && name.chars().all(inside));
    (!name.is_empty() && name.len() <= HOST_MAX && fits).then(|| (name.to_ascii_lowercase(), port))
}

/// What a request asks for.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    /// A tunnel.
    Tunnel(Host),
    /// One request, whose head is to be sent to this host.
    Forward(Host, Vec<u8>),
}

/// Why a request is not done, as the installer is told.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Refused {
    status: &'static str,
    why: String,
}

fn refused(status: &'static str, why: impl Into<String>) -> Refused {
    Refused { status, why: why.into() }
}

const FORBIDDEN: &str = "403 Forbidden";
const BAD_REQUEST: &str = "400 Bad Request";
const BAD_GATEWAY: &str = "502 Bad Gateway";

/// Serves an installer until it is dropped, and all its connections with it.
pub(crate) async fn serve(listener: UnixListener, hosts: Arc<Vec<Host>>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if connections.len() >= CONNECTIONS {
            connections.join_next().await;
            continue;
        }
        match listener.accept().await {
            Ok((stream, _)) => drop(connections.spawn(connection(stream, Arc::clone(&hosts)))),
            Err(error) => {
                tracing::warn!(%error, "the proxy of an installer takes no connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(mut stream: UnixStream, hosts: Arc<Vec<Host>>) {
    if let Err(Refused { status, why }) = served(&mut stream, &hosts).await {
        tracing::info!(why, "an installer was refused a connection");
        let answer = format!(
            "HTTP/1.1 {status}\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{why}",
            why.len()
        );
        let _ = stream.write_all(answer.as_bytes()).await;
        let _ = stream.shutdown().await;
    }
}

async fn served(stream: &mut UnixStream, hosts: &[Host]) -> Result<(), Refused> {
    let head = timeout(PATIENCE, read_head(stream)).await;
    let (head, rest) = head.map_err(|_| refused(BAD_REQUEST, "the request did not come"))??;
    let wanted = wanted(&head)?;
    let (Wanted::Tunnel(host) | Wanted::Forward(host, _)) = &wanted;
    allowed(host, hosts)?;
    let unreachable =
        |error: io::Error| refused(BAD_GATEWAY, format!("`{}` cannot be reached: {error}", host.name));
    let mut upstream = connect(host).await.map_err(unreachable)?;
    let first: &[u8] = match &wanted {
        Wanted::Tunnel(_) => {
            let done = stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await;
            done.map_err(unreachable)?;
            &[]
        }
        Wanted::Forward(_, head) => head,
    };
    let copied = async {
        upstream.write_all(&[first, &rest].concat()).await?;
        copy_bidirectional(stream, &mut upstream).await
    };
    // From here on what is wrong is between the two of them.
    let _ = copied.await;
    Ok(())
}

/// The head of a request, and what came with it.
async fn read_head(stream: &mut UnixStream) -> Result<(String, Vec<u8>), Refused> {
    let mut bytes = Vec::new();
    loop {
        let mut buffer = [0; 4096];
        let count =
            stream.read(&mut buffer).await.map_err(|error| refused(BAD_REQUEST, error.to_string()))?;
        bytes.extend_from_slice(&buffer[..count]);
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let rest = bytes.split_off(end + 4);
            let head = String::from_utf8(bytes).map_err(|_| refused(BAD_REQUEST, "the head is not text"))?;
            return Ok((head, rest));
        }
        if count == 0 || bytes.len() > HEAD_BYTES {
            return Err(refused(BAD_REQUEST, "the head of the request has no end, or is too long"));
        }
    }
}

/// What the head of a request asks for.
fn wanted(head: &str) -> Result<Wanted, Refused> {
    let bad = |why: &str| refused(BAD_REQUEST, why);
    let (line, fields) = head.split_once("\r\n").ok_or_else(|| bad("the request has no line"))?;
    let words: Vec<&str> = line.split(' ').collect();
    let [method, target, version] = words[..] else {
        return Err(bad("the request line has not three words"));
    };
    if !version.starts_with("HTTP/1.") {
        return Err(bad("only HTTP/1 is spoken here"));
    }
    if method == "CONNECT" {
        let (name, port) = authority(target, 443).ok_or_else(|| bad("the target is not HOST:PORT"))?;
        return Ok(Wanted::Tunnel(Host { name, port, plain: false }));
    }
    let rest = target.strip_prefix("http://").ok_or_else(|| bad("the target is not an http URL"))?;
    let (at, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let (name, port) = authority(at, 80).ok_or_else(|| bad("the target is not an http URL"))?;
    // The fields that matter for one connection only are ours: it serves one request.
    let ours = ["connection", "proxy-connection", "keep-alive", "proxy-authorization", "host"];
    let is_theirs = |field: &&str| {
        let name = field.split(':').next().unwrap_or_default().trim().to_ascii_lowercase();
        !field.is_empty() && !ours.contains(&name.as_str())
    };
    let fields: String = fields.split("\r\n").filter(is_theirs).map(|field| format!("{field}\r\n")).collect();
    let slash = if path.starts_with('/') { "" } else { "/" };
    let head = format!("{method} {slash}{path} HTTP/1.1\r\nhost: {at}\r\nconnection: close\r\n{fields}\r\n");
    Ok(Wanted::Forward(Host { name, port, plain: true }, head.into_bytes()))
}

fn allowed(host: &Host, hosts: &[Host]) -> Result<(), Refused> {
    if hosts.contains(host) {
        return Ok(());
    }
    let Host { name, port, plain } = host;
    let how = if *plain { "in plain HTTP" } else { "by TLS" };
    let why = format!(
        "`{name}` at port {port} is not among the hosts that packages come from {how}: setting `agent.packages.hosts`"
    );
    Err(refused(FORBIDDEN, why))
}

async fn connect(host: &Host) -> io::Result<TcpStream> {
    let connected = async {
        let addresses: Vec<SocketAddr> = lookup_host((host.name.as_str(), host.port)).await?.collect();
        TcpStream::connect(&addresses[..]).await
    };
    timeout(PATIENCE, connected).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::net::TcpListener;

    use super::*;

    fn host(text: &str) -> Host {
        text.parse().unwrap()
    }

    #[test]
    fn hosts_are_told_from_what_is_none() {
        assert_eq!(host("PyPI.org"), Host { name: "pypi.org".into(), port: 443, plain: false });
        assert_eq!(host("http://127.0.0.1:8080"), Host { name: "127.0.0.1".into(), port: 8080, plain: true });
        assert_eq!(host("[::1]:8443"), Host { name: "::1".into(), port: 8443, plain: false });
        for text in
            ["", ":80", "a b", "host:99999", "host:x", "user@host", "host/path", "[::1", "[host]", "*.x/"]
        {
            assert!(text.parse::<Host>().is_err(), "{text}");
        }
    }

    #[test]
    fn only_what_is_listed_is_allowed_at_its_port_and_in_its_way() {
        let hosts = [host("pypi.org"), host("http://127.0.0.1:8080")];
        let ask = |line: &str| {
            let wanted = wanted(&format!("{line}\r\nHost: pypi.org\r\n\r\n"));
            wanted.and_then(|wanted| match wanted {
                Wanted::Tunnel(host) | Wanted::Forward(host, _) => allowed(&host, &hosts),
            })
        };
        for good in [
            "CONNECT pypi.org:443 HTTP/1.1",
            "CONNECT PYPI.ORG:443 HTTP/1.1",
            "GET http://127.0.0.1:8080/x HTTP/1.1",
        ] {
            assert_eq!(ask(good), Ok(()), "{good}");
        }
        for bad in [
            "CONNECT pypi.org:22 HTTP/1.1",
            "CONNECT pypi.org.evil.example:443 HTTP/1.1",
            "CONNECT evil.example:443 HTTP/1.1",
            "CONNECT pypi.org@evil.example:443 HTTP/1.1",
            "CONNECT 127.0.0.1:8080 HTTP/1.1",
            "GET http://pypi.org/ HTTP/1.1",
            "GET http://127.0.0.1:8080@evil.example/ HTTP/1.1",
            "GET http://127.0.0.1/ HTTP/1.1",
            "GET http://169.254.169.254/latest HTTP/1.1",
            "GET /simple HTTP/1.1",
            "GET https://pypi.org/ HTTP/1.1",
            "GET http://127.0.0.1:8080/x HTTP/2",
            "nonsense",
        ] {
            assert!(ask(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_forwarded_request_names_the_host_that_was_allowed() {
        let head = "GET http://127.0.0.1:8080/simple/x?y HTTP/1.1\r\nHost: evil.example\r\nAccept: */*\r\n\
            Proxy-Authorization: x\r\nConnection: keep-alive\r\n\r\n";
        let Ok(Wanted::Forward(_, head)) = wanted(head) else { panic!("not forwarded") };
        let expected =
            "GET /simple/x?y HTTP/1.1\r\nhost: 127.0.0.1:8080\r\nconnection: close\r\nAccept: */*\r\n\r\n";
        assert_eq!(String::from_utf8(head).unwrap(), expected);
    }

    proptest! {
        #[test]
        fn whatever_is_asked_nothing_else_is_reached(line in "[ -~]{0,60}", host in "[a-z@:/.\\[\\]]{0,20}") {
            let list = [self::host("pypi.org")];
            for line in [line, format!("CONNECT {host} HTTP/1.1"), format!("CONNECT pypi.org{host}:443 HTTP/1.1")] {
                if let Ok(Wanted::Tunnel(found) | Wanted::Forward(found, _)) = wanted(&format!("{line}\r\n\r\n")) {
                    prop_assert!(allowed(&found, &list).is_err() || (found.name == "pypi.org" && found.port == 443));
                }
            }
        }
    }

    #[tokio::test]
    async fn a_tunnel_leads_to_what_is_listed_and_a_refusal_says_why() {
        let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = upstream.local_addr().unwrap().port();
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("proxy.sock");
        let serving =
            serve(UnixListener::bind(&socket).unwrap(), Arc::new(vec![host(&format!("127.0.0.1:{port}"))]));
        let echo = async {
            let (mut stream, _) = upstream.accept().await.unwrap();
            let (mut from, mut to) = stream.split();
            tokio::io::copy(&mut from, &mut to).await.unwrap();
        };
        let ask = async |target: String, then: &[u8]| {
            let mut stream = UnixStream::connect(&socket).await.unwrap();
            stream.write_all(format!("CONNECT {target} HTTP/1.1\r\n\r\n").as_bytes()).await.unwrap();
            stream.write_all(then).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let asked = async {
            let answer = ask(format!("127.0.0.1:{port}"), b"hello").await;
            assert_eq!(answer, "HTTP/1.1 200 Connection established\r\n\r\nhello");
            let answer = ask("169.254.169.254:80".to_owned(), b"").await;
            assert!(
                answer.starts_with("HTTP/1.1 403") && answer.contains("agent.packages.hosts"),
                "{answer}"
            );
        };
        tokio::select! {
            () = serving => panic!("it does not end"),
            _ = async { tokio::join!(echo, asked) } => {}
        }
    }
}
