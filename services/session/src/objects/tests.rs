//! What every object store does here, with the same bodies for each that there is.

use std::{
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use sandmesh_mesh::{Fault as _, Secret};
use tempfile::TempDir;
use tonic::Code;

use super::*;
use crate::{
    config::ObjectStoreConfig,
    testing::{self, Bucket},
};

/// An object store of a test.
struct Place {
    objects: Objects,
    directory: TempDir,
    bucket: Option<Bucket>,
}

impl Place {
    fn directory() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let objects = Objects::directory(directory.path()).unwrap();
        Self { objects, directory, bucket: None }
    }

    fn bucket() -> Self {
        let bucket = Bucket::start();
        let objects = Objects::open(&of(configured(&bucket)), FsPath::new("/unused")).unwrap();
        Self { objects, directory: tempfile::tempdir().unwrap(), bucket: Some(bucket) }
    }

    /// A server that somebody runs, as `SANDMESH_TEST_S3` says: `session.object_store` in JSON.
    fn external() -> Self {
        #[expect(clippy::disallowed_methods, reason = "an option of this test")]
        let given = std::env::var("SANDMESH_TEST_S3").expect("SANDMESH_TEST_S3 says where the server is");
        let mut config: ObjectStoreConfig = serde_json::from_str(&given).unwrap();
        config.url = format!("{}/test-{}", config.url.trim_end_matches('/'), id::nonce());
        let objects = Objects::open(&of(config), FsPath::new("/unused")).unwrap();
        Self { objects, directory: tempfile::tempdir().unwrap(), bucket: None }
    }

    async fn keys(&self) -> Vec<String> {
        let all = self.objects.store.list(None).map_ok(|object| object.location.to_string());
        let mut all: Vec<String> = all.try_collect().await.unwrap();
        all.sort();
        all
    }

    /// Nothing is there, nor anything that nobody would find.
    async fn expect_nothing(&self) {
        assert_eq!(self.keys().await, Vec::<String>::new());
        let unfinished = self.bucket.as_ref().map_or_else(Vec::new, Bucket::unfinished);
        assert_eq!(unfinished, Vec::<String>::new());
        assert_eq!(testing::files_below(self.directory.path()), Vec::<PathBuf>::new());
    }

    fn file(&self, content: &[u8]) -> Arc<fs::File> {
        let file = tempfile::tempfile_in(self.directory.path()).unwrap();
        (&file).write_all(content).unwrap();
        Arc::new(file)
    }
}

fn of(object_store: ObjectStoreConfig) -> Config {
    let config = Config { object_store, ..Config::default() };
    config.validate().unwrap();
    config
}

fn configured(bucket: &Bucket) -> ObjectStoreConfig {
    ObjectStoreConfig {
        url: format!("{}/a/prefix", bucket.url()),
        endpoint: bucket.endpoint(),
        access_key_id: Some(Secret::new(testing::KEY)),
        secret_access_key: Some(Secret::new(testing::SECRET)),
        allow_http: true,
        ..ObjectStoreConfig::default()
    }
}

/// Three tests of each body. The third is for a server that somebody runs: see CONTRIBUTING.md.
macro_rules! for_every_store {
    ($($body:ident),+ $(,)?) => {
        mod directory {
            $(#[tokio::test]
            async fn $body() {
                super::$body(super::Place::directory()).await;
            })+
        }
        mod bucket {
            $(#[tokio::test]
            async fn $body() {
                super::$body(super::Place::bucket()).await;
            })+
        }
        mod external {
            $(#[tokio::test]
            #[ignore = "wants a server in SANDMESH_TEST_S3"]
            async fn $body() {
                super::$body(super::Place::external()).await;
            })+
        }
    };
}

for_every_store!(
    what_is_put_is_read_whole_and_in_part,
    what_is_written_again_is_the_later,
    a_file_becomes_an_object_also_where_there_is_one_already,
    a_large_object_is_whole_also_at_the_edges_of_its_pieces,
    an_object_that_breaks_off_leaves_nothing,
    deleting_a_session_leaves_one_with_a_longer_name,
    what_is_not_there_is_deleted_already,
    of_two_who_delete_the_same_none_fails,
    more_than_a_page_is_deleted,
    names_may_be_of_any_language,
    an_object_that_is_missing_is_no_reason_to_wait,
    a_probe_leaves_nothing_behind,
);

async fn what_is_put_is_read_whole_and_in_part(place: Place) {
    let objects = &place.objects;
    objects.put("sessions/s/e", "stdout", "0123456789").await.unwrap();
    objects.put("sessions/s/e", "empty", "").await.unwrap();
    assert_eq!(objects.get("sessions/s/e", "stdout").await.unwrap(), "0123456789");
    assert_eq!(objects.get("sessions/s/e", "empty").await.unwrap(), "");
    assert_eq!(objects.range("sessions/s/e", "stdout", 2, 5).await.unwrap(), "234");
    assert_eq!(objects.range("sessions/s/e", "stdout", 8, 10).await.unwrap(), "89");
    objects.put("sessions/s/files", "sum", "abc").await.unwrap();
    for (range, expected) in [(0..3, "abc"), (1..2, "b"), (3..3, ""), (0..0, "")] {
        let pieces: Vec<Bytes> = objects.kept("s", "sum", range).await.unwrap().try_collect().await.unwrap();
        assert_eq!(pieces.concat(), expected.as_bytes());
    }
    objects.delete_session("s").await.unwrap();
    place.expect_nothing().await;
}

async fn what_is_written_again_is_the_later(place: Place) {
    for text in ["first", "second", ""] {
        place.objects.put("sessions/s/e", "value", text).await.unwrap();
        assert_eq!(place.objects.get("sessions/s/e", "value").await.unwrap(), text);
    }
    place.objects.delete_session("s").await.unwrap();
    place.expect_nothing().await;
}

async fn a_file_becomes_an_object_also_where_there_is_one_already(place: Place) {
    for text in ["first", "second"] {
        let file = place.file(text.as_bytes());
        place.objects.put_file("sessions/s/e", "stdout", &file).await.unwrap();
        assert_eq!(place.objects.get("sessions/s/e", "stdout").await.unwrap(), text);
    }
    place.objects.delete_session("s").await.unwrap();
    place.expect_nothing().await;
}

async fn a_large_object_is_whole_also_at_the_edges_of_its_pieces(place: Place) {
    let piece = place.objects.piece(0);
    let pattern = |size: usize| (0..size).map(|n| u8::try_from(n % 251).unwrap()).collect::<Vec<u8>>();
    for size in [piece - 1, piece, piece + 1, 2 * piece, 3 * piece + 7] {
        let content = pattern(size);
        let whole = Whole::Long(place.file(&content));
        place.objects.keep("s", &size.to_string(), &whole).await.unwrap();
        // As a copy, where a directory would only name the file.
        let path = Path::from(format!("sessions/s/e/{size}"));
        place.objects.write(path, size as u64, &content[..]).await.unwrap();
        assert!(place.objects.get("sessions/s/e", &size.to_string()).await.unwrap() == content, "{size}");
        let edge = (piece as u64).min(size as u64);
        let range = edge - 5..(edge + 5).min(size as u64);
        let part = place.objects.kept("s", &size.to_string(), range.clone()).await.unwrap();
        let part: Vec<Bytes> = part.try_collect().await.unwrap();
        let (start, end) = (usize::try_from(range.start).unwrap(), usize::try_from(range.end).unwrap());
        assert_eq!(part.concat(), content[start..end], "{size}");
    }
    place.objects.delete_session("s").await.unwrap();
    place.expect_nothing().await;
}

async fn an_object_that_breaks_off_leaves_nothing(place: Place) {
    let piece = place.objects.piece(0);
    for whole_pieces in [0, 1, 3] {
        let begun = stream::iter(vec![Bytes::from(vec![b'x'; piece]); whole_pieces]).map(Ok);
        let broken = stream::iter([Ok(Bytes::from("some more")), Err(io::Error::other("broken off"))]);
        let content = tokio_util::io::StreamReader::new(begun.chain(broken));
        let path = Path::from("sessions/s/files/half");
        let error = place.objects.write(path, 0, content).await.unwrap_err();
        assert_eq!(error.code(), Code::Internal, "it is no error of the object store: {error:?}");
        place.expect_nothing().await;
    }
}

async fn deleting_a_session_leaves_one_with_a_longer_name(place: Place) {
    let objects = &place.objects;
    let (short, long) = (Objects::prefix("a", "e"), Objects::prefix("ab", "e"));
    objects.put(&short, "stdout", "x").await.unwrap();
    objects.put(&long, "stdout", "y").await.unwrap();
    objects.put("sessions/a/e1", "stdout", "x").await.unwrap();
    objects.put("sessions/a/e11", "stdout", "z").await.unwrap();
    objects.delete_below("sessions/a/e1").await.unwrap();
    assert_eq!(objects.get("sessions/a/e11", "stdout").await.unwrap(), "z");
    objects.delete_session("a").await.unwrap();
    assert!(objects.get(&short, "stdout").await.is_err());
    assert_eq!(objects.get(&long, "stdout").await.unwrap(), "y");
    objects.delete_session("ab").await.unwrap();
    place.expect_nothing().await;
}

async fn what_is_not_there_is_deleted_already(place: Place) {
    place.objects.put("sessions/s/e", "one", "x").await.unwrap();
    for _ in 0..2 {
        place.objects.delete("sessions/s/e", "one").await.unwrap();
        place.objects.delete_below("sessions/s/e").await.unwrap();
        place.objects.delete_session("s").await.unwrap();
    }
    place.expect_nothing().await;
}

async fn of_two_who_delete_the_same_none_fails(place: Place) {
    for number in 0..200 {
        place.objects.put("sessions/a/e", &number.to_string(), "x").await.unwrap();
    }
    let delete = || place.objects.delete_session("a");
    let (one, two, three) = tokio::join!(delete(), delete(), delete());
    for result in [one, two, three] {
        result.unwrap();
    }
    place.expect_nothing().await;
}

async fn more_than_a_page_is_deleted(place: Place) {
    let put =
        async |number: usize| place.objects.put("sessions/a/e", &number.to_string(), "x").await.unwrap();
    stream::iter(0..1100).for_each_concurrent(8, put).await;
    assert_eq!(place.keys().await.len(), 1100);
    place.objects.delete_session("a").await.unwrap();
    place.expect_nothing().await;
}

async fn names_may_be_of_any_language(place: Place) {
    let names = ["größe", "名前 2", "a+b&c=d", "per%20cent", "~tilde", "quote\"'"];
    for name in names {
        place.objects.put("sessions/sé/e", name, name.to_owned()).await.unwrap();
    }
    for name in names {
        assert_eq!(place.objects.get("sessions/sé/e", name).await.unwrap(), name);
        assert_eq!(place.objects.range("sessions/sé/e", name, 0, 1).await.unwrap(), name.as_bytes()[..1]);
    }
    assert_eq!(place.keys().await.len(), names.len());
    place.objects.delete_session("sé").await.unwrap();
    place.expect_nothing().await;
}

async fn an_object_that_is_missing_is_no_reason_to_wait(place: Place) {
    let objects = &place.objects;
    let codes = [
        objects.get("sessions/s/e", "x").await.unwrap_err().code(),
        objects.range("sessions/s/e", "x", 0, 1).await.unwrap_err().code(),
        objects.kept("s", "x", 0..1).await.err().unwrap().code(),
    ];
    assert_eq!(codes, [Code::Internal; 3]);
}

async fn a_probe_leaves_nothing_behind(place: Place) {
    let ping = || place.objects.ping();
    let (one, two) = tokio::join!(ping(), ping());
    one.and(two).unwrap();
    place.expect_nothing().await;
}

/// Everything that is asked of a store, and what became of it.
async fn all_of(objects: &Objects) -> Vec<Error> {
    let path = Path::from("sessions/s/files/large");
    let large = vec![0; 2 * objects.piece(0)];
    vec![
        objects.put("sessions/s/e", "x", "x").await.unwrap_err(),
        objects.get("sessions/s/e", "x").await.unwrap_err(),
        objects.range("sessions/s/e", "x", 0, 1).await.unwrap_err(),
        objects.kept("s", "x", 0..1).await.err().unwrap(),
        objects.write(path, 0, &large[..]).await.unwrap_err(),
        objects.delete("sessions/s/e", "x").await.unwrap_err(),
        objects.delete_session("s").await.unwrap_err(),
        objects.ping().await.unwrap_err(),
    ]
}

fn expect_unavailable(errors: &[Error]) {
    for error in errors {
        assert_eq!((error.code(), error.reason()), (Code::Unavailable, "OBJECT_STORE_UNAVAILABLE"));
        assert_eq!(error.retry_after(), Some(Duration::from_secs(1)));
        assert!(!format!("{error:?} {error}").contains(testing::SECRET), "{error:?}");
    }
}

#[tokio::test]
async fn a_server_that_is_gone_is_told_soon_and_may_come_back() {
    let mut place = Place::bucket();
    place.objects.put("sessions/s/e", "x", "kept").await.unwrap();
    place.bucket.as_mut().unwrap().stop();
    let start = Instant::now();
    let errors = all_of(&place.objects).await;
    let took = start.elapsed();
    expect_unavailable(&errors);
    assert!(took < Duration::from_secs(30), "{} requests took {took:?}", errors.len());
    let start = Instant::now();
    place.objects.ping().await.unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(1), "who asks for health does not wait");
    place.bucket.as_mut().unwrap().start_again();
    assert_eq!(place.objects.get("sessions/s/e", "x").await.unwrap(), "kept");
    place.objects.ping().await.unwrap();
}

#[tokio::test]
async fn a_server_that_is_silent_is_given_up() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let config = ObjectStoreConfig {
        endpoint: format!("http://{}", silent.local_addr().unwrap()),
        timeout: sandmesh_mesh::HumanDuration(Duration::from_secs(1)),
        ..configured(&Bucket::start())
    };
    let objects = Objects::open(&of(config), FsPath::new("/unused")).unwrap();
    let start = Instant::now();
    let error = objects.put("sessions/s/e", "x", "x").await.unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    let start = Instant::now();
    let late = objects.ping().await.unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    expect_unavailable(&[error, late]);
}

#[tokio::test]
async fn a_wrong_key_is_told() {
    let bucket = Bucket::start();
    let wrong = ObjectStoreConfig { secret_access_key: Some(Secret::new("wrong")), ..configured(&bucket) };
    let objects = Objects::open(&of(wrong), FsPath::new("/unused")).unwrap();
    expect_unavailable(&all_of(&objects).await);
    let Error::ObjectStore(why) = objects.ping().await.unwrap_err() else { panic!("the store refused it") };
    assert!(format!("{why:#}").contains("SignatureDoesNotMatch"), "an operator reads why: {why:#}");
}

#[tokio::test]
async fn everything_is_below_the_prefix() {
    let place = Place::bucket();
    place.objects.put("sessions/s/e", "x", "x").await.unwrap();
    let file = place.file(&vec![0; 2 * place.objects.piece(0)]);
    place.objects.put_file("sessions/s/e", "y", &file).await.unwrap();
    let expected = ["a/prefix/sessions/s/e/x", "a/prefix/sessions/s/e/y"];
    assert_eq!(place.bucket.as_ref().unwrap().keys(), expected);
}

#[tokio::test]
async fn a_url_works_for_anybody_for_that_object_and_not_for_long() {
    let bucket = Bucket::start();
    let lasts = sandmesh_mesh::HumanDuration(Duration::from_secs(2));
    let config = ObjectStoreConfig { presign_for: lasts, ..configured(&bucket) };
    let objects = Objects::open(&of(config), FsPath::new("/unused")).unwrap();
    objects.put("sessions/s/files", "sum", "content").await.unwrap();
    objects.put("sessions/s/files", "sum2", "secret").await.unwrap();
    let (url, until) = objects.presign("s", "sum").await.unwrap();
    assert_eq!(until, lasts.0);
    assert!(!url.contains(testing::SECRET), "{url}");
    let get = async |url: &str| reqwest::get(url).await.unwrap();
    let answer = get(&url).await;
    assert_eq!((answer.status().as_u16(), answer.text().await.unwrap().as_str()), (200, "content"));
    assert_eq!(get(&url.replace("/sum?", "/sum2?")).await.status(), 403, "it is for one object");
    assert_eq!(get(url.split_once('?').unwrap().0).await.status(), 403, "it is for who has it");
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(get(&url).await.status(), 403, "it is over");
}

#[test]
fn keys_are_not_shown() {
    let place = Place::bucket();
    let shown = format!("{:?}", place.objects);
    assert!(shown.contains("AmazonS3") && !shown.contains(testing::SECRET), "{shown}");
}

#[test]
fn the_largest_object_has_not_too_many_pieces() {
    let place = Place::bucket();
    for size in [0, 5 << 20, 50 << 30, (50 << 30) + 1, 5 << 40] {
        let piece = place.objects.piece(size) as u64;
        assert!(piece >= 5 << 20 && size.div_ceil(piece) <= MOST_IN_BUCKET, "{size}");
    }
}

#[tokio::test]
async fn what_a_killed_process_left_of_an_object_goes_with_its_session() {
    let place = Place::directory();
    place.objects.put("sessions/a/files", "whole", "x").await.unwrap();
    // As the store names what is not whole yet; it lists none of these.
    fs::write(place.directory.path().join("sessions/a/files/half#1"), "y").unwrap();
    place.objects.delete_session("a").await.unwrap();
    assert!(!place.directory.path().join("sessions/a").exists());
    place.objects.delete_session("a").await.unwrap();
}

#[test]
fn nobody_else_enters_the_directory() {
    let directory = tempfile::tempdir().unwrap();
    let (new, old) = (directory.path().join("new"), directory.path().join("old"));
    fs::create_dir(&old).unwrap();
    fs::set_permissions(&old, fs::Permissions::from_mode(0o755)).unwrap();
    for path in [new, old] {
        Objects::directory(&path).unwrap();
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o700);
    }
}

/// An upload whose later pieces take longer.
#[derive(Debug, Default)]
struct Slow {
    begun: usize,
    there: Arc<AtomicUsize>,
}

#[tonic::async_trait]
impl MultipartUpload for Slow {
    fn put_part(&mut self, _: PutPayload) -> UploadPart {
        self.begun += 1;
        let (steps, there) = (self.begun, Arc::clone(&self.there));
        Box::pin(async move {
            for _ in 0..steps {
                tokio::task::yield_now().await;
            }
            there.fetch_add(1, Ordering::Relaxed);
            Ok(())
        })
    }

    async fn complete(&mut self) -> object_store::Result<object_store::PutResult> {
        panic!("what breaks off is not whole")
    }

    async fn abort(&mut self) -> object_store::Result<()> {
        Ok(())
    }
}

/// A bucket keeps what comes after the end of its upload.
#[tokio::test]
async fn nothing_is_on_its_way_any_more_when_an_upload_is_given_up() {
    for whole_pieces in 0..4 {
        let begun = stream::iter(vec![Bytes::from("piece"); whole_pieces]).map(Ok);
        let broken = stream::once(async { Err(io::Error::other("broken off")) });
        let content = tokio_util::io::StreamReader::new(begun.chain(broken).boxed());
        let mut upload = Slow::default();
        let written = write_pieces(&mut upload, Bytes::from("first"), content, 5).await;
        assert!(written.is_err());
        assert_eq!(upload.begun, whole_pieces + 1);
        assert_eq!(upload.there.load(Ordering::Relaxed), upload.begun);
    }
}
