use std::path::Path;

use chrono::TimeDelta;
use proptest::prelude::*;
use rustls::client::danger::ServerCertVerifier;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::{verify::ByToken, *};

fn now() -> DateTime<Utc> {
    SystemClock.now()
}

fn authority(dir: &Path) -> Authority {
    Authority::open(&dir.join("cert.pem"), &dir.join("key.pem"), now()).unwrap()
}

fn identity(authority: &Authority, name: &Name) -> Identity {
    let (key, request) = signing_request().unwrap();
    let certificate = authority.certify(&request, (name, None), now(), Duration::from_secs(60)).unwrap();
    Identity::new(key, Some(certificate)).unwrap()
}

fn node(id: &str) -> Name {
    Name::Node(id.to_owned())
}

/// What happens when `client` meets `server`, taking it for `name`: the peer that the server sees.
async fn meet(client: ClientConfig, server: ServerConfig, name: &Name) -> io::Result<Peer> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let serve = async {
        let (stream, _) = listener.accept().await?;
        let stream = TlsAcceptor::from(Arc::new(server)).accept(stream).await?;
        Ok(Peer::of(stream.get_ref().1.peer_certificates()))
    };
    let (seen, opened) = tokio::join!(serve, open(&address, name, Arc::new(client)));
    opened?;
    seen
}

#[tokio::test]
async fn both_sides_know_whom_they_meet() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path());
    let (control, one) = (identity(&authority, &Name::Control), identity(&authority, &node("one")));
    let seen = meet(control.client().unwrap(), one.server(false).unwrap(), &node("one")).await.unwrap();
    assert!(seen.is(&Name::Control) && !seen.is(&node("one")) && seen.is_known());
    let seen = meet(one.client().unwrap(), control.server(true).unwrap(), &Name::Control).await.unwrap();
    assert!(seen.is(&node("one")) && !seen.is(&node("two")) && !seen.is(&Name::Control));
}

#[test]
fn a_certificate_tells_the_machine_and_when_it_was_signed() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path());
    let (one, now) = (node("one"), now());
    let certify = |machine: Option<&str>| {
        let (_, request) = signing_request().unwrap();
        let certificate = authority.certify(&request, (&one, machine), now, Duration::from_secs(60)).unwrap();
        shown_by(&certificate.der).unwrap()
    };
    let (first, other) = (certify(None), certify(None));
    assert_ne!(first.machine, other.machine);
    assert_eq!(certify(Some(&first.machine)).machine, first.machine, "the next of the same");
    assert_eq!(first.issued_at.timestamp(), now.timestamp());
    assert_eq!(first.expires_at.timestamp(), now.timestamp() + 60);
}

#[tokio::test]
async fn a_node_cannot_pass_for_another_nor_for_the_control_plane() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path());
    let (control, one) = (identity(&authority, &Name::Control), identity(&authority, &node("one")));
    for meant in [node("two"), Name::Control] {
        let met = meet(control.client().unwrap(), one.server(false).unwrap(), &meant).await;
        assert_eq!(met.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}

#[tokio::test]
async fn other_authorities_are_not_heeded() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (ours, theirs) = (authority(dir.path()), authority(other.path()));
    let (control, node_of_theirs) = (identity(&ours, &Name::Control), identity(&theirs, &node("one")));
    let met = meet(control.client().unwrap(), node_of_theirs.server(true).unwrap(), &node("one")).await;
    assert!(met.is_err(), "a server of another authority is refused");
    let met = meet(node_of_theirs.client().unwrap(), control.server(true).unwrap(), &Name::Control).await;
    assert!(met.is_err(), "and so is a client, where strangers are spoken to");
}

#[tokio::test]
async fn strangers_are_spoken_to_only_where_they_may_be() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path());
    let control = identity(&authority, &Name::Control);
    let stranger = || {
        let token = authority.token(now() + TimeDelta::hours(1));
        stranger(Arc::new(ByToken::new(token)) as Arc<dyn ServerCertVerifier>)
    };
    let seen = meet(stranger(), control.server(true).unwrap(), &Name::Control).await.unwrap();
    assert!(!seen.is_known() && !seen.is(&Name::Control));
    assert!(meet(stranger(), control.server(false).unwrap(), &Name::Control).await.is_err());
}

#[tokio::test]
async fn a_token_tells_the_mesh_that_it_is_for_from_others() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (ours, theirs) = (authority(dir.path()), authority(other.path()));
    let token = ours.token(now() + TimeDelta::hours(1));
    let impostor = identity(&theirs, &Name::Control).server(true).unwrap();
    let met = meet(stranger(Arc::new(ByToken::new(token.clone()))), impostor, &Name::Control).await;
    assert_eq!(met.unwrap_err().kind(), io::ErrorKind::InvalidData);
    // One that is of the mesh, but a node.
    let node = identity(&ours, &node("one")).server(true).unwrap();
    let met = meet(stranger(Arc::new(ByToken::new(token))), node, &Name::Control).await;
    assert_eq!(met.unwrap_err().kind(), io::ErrorKind::InvalidData);
}

#[test]
fn a_token_works_until_its_time_and_at_its_authority() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (ours, theirs) = (authority(dir.path()), authority(other.path()));
    let (now, hour) = (now(), TimeDelta::hours(1));
    let token = ours.token(now + hour);
    assert!(ours.admits(&token, now));
    assert!(!ours.admits(&token, now + hour + TimeDelta::seconds(1)));
    assert!(!theirs.admits(&token, now));
    let again = authority(dir.path());
    assert!(again.admits(&token, now), "also after a start on the same files");
}

#[test]
fn an_authority_with_half_of_its_files_is_not_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    authority(dir.path());
    std::fs::remove_file(dir.path().join("key.pem")).unwrap();
    let error = Authority::open(&dir.path().join("cert.pem"), &dir.path().join("key.pem"), now());
    assert!(error.unwrap_err().to_string().contains("key.pem"));
}

#[test]
fn what_is_no_signing_request_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path());
    for request in [&b""[..], b"nothing", &[0x30, 0x82, 0xff, 0xff]] {
        assert!(authority.certify(request, (&Name::Control, None), now(), Duration::from_secs(60)).is_err());
    }
    let (_, mut tampered) = signing_request().unwrap();
    *tampered.last_mut().unwrap() ^= 1;
    assert!(authority.certify(&tampered, (&Name::Control, None), now(), Duration::from_secs(60)).is_err());
}

proptest! {
    #[test]
    fn a_changed_token_is_refused(at in 0usize..72, change in 1u8..) {
        let dir = tempfile::tempdir().unwrap();
        let authority = authority(dir.path());
        let token = authority.token(now() + TimeDelta::hours(1));
        let text = token.to_string();
        prop_assert_eq!(&text.parse::<JoinToken>().unwrap(), &token);
        let mut bytes = base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, &text[4..]).unwrap();
        bytes[at] ^= change;
        let changed = format!("smj_{}", base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, bytes));
        prop_assert!(!authority.admits(&changed.parse().unwrap(), now()));
    }

    #[test]
    fn any_text_is_a_token_or_refused(text in "\\PC{0,120}") {
        let _ = text.parse::<JoinToken>();
        let _ = format!("smj_{text}").parse::<JoinToken>();
    }
}
