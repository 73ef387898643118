//! Behaviour 38 and what goes with it: files get in and out by REST, and what an execution made is its own.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Api, Wiring, eventually};

in_both_wirings!(
    file_is_uploaded_listed_read_by_code_and_downloaded_byte_for_byte,
    file_that_code_made_is_its_artifact_and_stays_as_it_was,
    list_ends_where_a_component_does_and_goes_on_page_by_page,
    files_are_moved_made_and_deleted,
    ranges_and_tags_are_those_of_the_standard,
    wrong_paths_and_forms_are_refused,
    large_file_goes_in_and_out_and_beyond_the_limit_none,
    files_of_unknown_and_ended_sessions,
);

/// Every byte, and names that are not ASCII.
fn bytes() -> Vec<u8> {
    (0..=255u8).cycle().take(100_003).collect()
}

// 38
pub(crate) async fn file_is_uploaded_listed_read_by_code_and_downloaded_byte_for_byte(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    let session = api.session().await;
    for path in ["data/nested/test.csv", "данные/файл ü?#%.csv"] {
        let uploaded = api.upload(&session, path, bytes()).await.is(200);
        assert_eq!(uploaded["file_path"], path);
        assert_eq!((&uploaded["size"], &uploaded["session_id"]), (&json!(100_003), &json!(session)));
        let read = json!({"language": "python", "event": {"path": path},
            "code": "import hashlib\ndef handler(event):\n    data = open(event['path'], 'rb').read()\n    return ['sha256:' + hashlib.sha256(data).hexdigest(), len(data)]"});
        let run = api.execute(&session, read).await;
        assert_eq!(run["return_value"], json!([uploaded["checksum"], 100_003]), "{run}");
        assert_eq!(run["artifacts"], json!([]), "reading makes none: {run}");
        let mut url = reqwest::Url::parse("http://x").unwrap();
        url.set_path(path);
        let encoded = url.path().to_owned();
        assert_eq!(api.content(&format!("/sessions/{session}/files{encoded}")).await, bytes());
    }
    let list = api.get(&format!("/sessions/{session}/files")).await.is(200);
    let file = &list["files"][0];
    assert_eq!(file["name"], "data/nested/test.csv", "{list}");
    assert_eq!(file["container_path"], "/workspace/data/nested/test.csv");
    assert_eq!((&file["size"], &list["count"]), (&json!(100_003), &json!(2)));
    assert!(file["etag"].as_str().is_some_and(|etag| !etag.is_empty()), "{file}");
    assert!(file["modified_time"].as_str().is_some_and(|time| time.ends_with('Z')), "{file}");
    api.get(&format!("/sessions/{session}/files/missing")).await.refused(404, "Sandbox.FileNotFound");
    // Replaced at once, with the name of what is done to files.
    api.upload(&session, "upload", "one").await.is(200);
    api.upload(&session, "upload", "two").await.is(200);
    assert_eq!(api.content(&format!("/sessions/{session}/files/upload")).await, b"two");
    api.delete(&format!("/sessions/{session}/files/upload")).await.is(204);
}

async fn file_that_code_made_is_its_artifact_and_stays_as_it_was(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    let session = api.session().await;
    let write = |text: &str| format!("mkdir -p out; printf '{text}' > out/report.html; printf x > 'out/ü b'");
    let first = api.run(&session, "shell", &write("first")).await;
    let second = api.run(&session, "shell", "printf second > out/report.html; rm 'out/ü b'").await;
    let names = |run: &Value| {
        let names = run["artifacts"].as_array().unwrap().iter().map(|file| file["path"].clone());
        let mut names: Vec<_> = names.map(|name| name.as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&first), ["out/report.html", "out/ü b"], "{first}");
    assert_eq!(names(&second), ["out/report.html"], "{second}");
    let artifact = &second["artifacts"][0];
    assert_eq!((&artifact["size"], &artifact["mime_type"]), (&json!(6), &json!("text/html")));
    assert_eq!(
        artifact["checksum"],
        "sha256:16367aacb67a4a017c8da8ab95682ccb390863780f7114dda0a0e0c55644c7c4"
    );
    let path =
        |run: &Value, name: &str| format!("/executions/{}/artifacts/{name}", run["id"].as_str().unwrap());
    let check = async |when: &str| {
        assert_eq!(api.content(&path(&first, "out/report.html")).await, b"first", "{when}");
        assert_eq!(api.content(&path(&second, "out/report.html")).await, b"second", "{when}");
        assert_eq!(api.content(&path(&first, "out/%C3%BC%20b")).await, b"x", "{when}");
        let list = api.get(&format!("/executions/{}/artifacts", first["id"].as_str().unwrap())).await.is(200);
        assert_eq!(list["count"], 2, "{when}: {list}");
        assert_eq!(
            api.content(&format!("/sessions/{session}/files/out/report.html")).await,
            b"second",
            "{when}"
        );
        assert_eq!(api.files(&session, "").await, ["out/report.html"], "{when}");
    };
    check("while it runs").await;
    api.get(&path(&second, "out/other")).await.refused(404, "Sandbox.ArtifactNotFound");
    api.get("/executions/exec_none/artifacts/x").await.refused(404, "Sandbox.ExecutionNotFound");
    api.get("/executions/exec_none/artifacts").await.refused(404, "Sandbox.ExecutionNotFound");
    // It is nothing that a browser would show as a page of this server.
    let reply = api.get(&path(&first, "out/report.html")).await;
    assert!(reply.header("content-disposition").starts_with("attachment"), "{:?}", reply.headers);
    assert_eq!(
        (reply.header("content-security-policy"), reply.header("x-content-type-options")),
        ("sandbox", "nosniff")
    );
    api.post(&format!("/sessions/{session}/terminate"), json!({})).await.is(200);
    check("after its end").await;
    api.delete(&format!("/sessions/{session}")).await.is(204);
    api.get(&path(&first, "out/report.html")).await.refused(404, "Sandbox.ExecutionNotFound");
    api.get(&format!("/sessions/{session}/files")).await.refused(404, "Sandbox.SessionNotFound");
    let objects = server.data_dir().join("objects");
    let is_empty = async || std::fs::read_dir(&objects).unwrap().count() == 0;
    eventually("nothing of it is kept", Duration::from_secs(10), is_empty).await;
}

async fn list_ends_where_a_component_does_and_goes_on_page_by_page(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    let (one, two) = (api.session().await, api.session().await);
    let make = "mkdir -p a/b ab; touch a/1 a/b/2 ab/3 a.txt; ln -s a link; mkfifo fifo";
    assert_eq!(api.run(&one, "shell", make).await["status"], "completed");
    assert_eq!(api.files(&one, "a").await, ["a/1", "a/b/2"]);
    assert_eq!(api.files(&one, "a/").await, ["a/1", "a/b/2"]);
    assert_eq!(api.files(&one, "a.txt").await, ["a.txt"]);
    assert_eq!(api.files(&one, "none").await, Vec::<String>::new());
    assert_eq!(api.files(&two, "").await, Vec::<String>::new(), "no session sees the files of another");
    let all = api.files(&one, "").await;
    assert_eq!(all, ["a.txt", "a/1", "a/b/2", "ab/3"]);
    let (mut paged, mut token) = (Vec::new(), None::<String>);
    loop {
        let mut request = api.request("GET", &format!("/sessions/{one}/files")).query(&[("limit", "3")]);
        if let Some(token) = &token {
            request = request.query(&[("page_token", token)]);
        }
        let page = api.send(request).await.is(200);
        paged.extend(
            page["files"].as_array().unwrap().iter().map(|file| file["name"].as_str().unwrap().to_owned()),
        );
        token = page["next_page_token"].as_str().map(str::to_owned);
        if token.is_none() {
            break;
        }
    }
    assert_eq!(paged, all);
    let everything = api.get(&format!("/sessions/{one}/files?directories=true")).await.is(200);
    assert_eq!(everything["count"], 8, "{everything}");
    assert_eq!(everything["incomplete"], false, "{everything}");
    assert_eq!(
        api.run(&one, "shell", "mkdir shut; touch shut/in; chmod 0 shut").await["status"],
        "completed"
    );
    let list = api.get(&format!("/sessions/{one}/files")).await.is(200);
    assert_eq!((&list["count"], &list["incomplete"]), (&json!(4), &json!(true)), "{list}");
    for limit in ["0", "10001", "-1", "x"] {
        api.get(&format!("/sessions/{one}/files?limit={limit}")).await.names("query.limit");
    }
    api.get(&format!("/sessions/{one}/files?page_token=zz")).await.is(422);
    api.get(&format!("/sessions/{one}/files?path=../x")).await.refused(400, "Sandbox.InvalidPath");
}

async fn files_are_moved_made_and_deleted(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    let session = api.session().await;
    let base = format!("/sessions/{session}/files");
    let rename = async |from: &str, to: &str, overwrite: bool| {
        let body = json!({"source_path": from, "target_path": to, "overwrite": overwrite});
        api.post(&format!("{base}/move"), body).await
    };
    api.upload(&session, "a", "1").await.is(200);
    api.upload(&session, "b", "2").await.is(200);
    rename("a", "b", false).await.refused(409, "Sandbox.FileExists");
    rename("none", "c", false).await.refused(404, "Sandbox.FileNotFound");
    rename("a", "../c", false).await.refused(400, "Sandbox.InvalidPath");
    assert_eq!(rename("a", "b", true).await.is(200)["name"], "b");
    assert_eq!(rename("b", "new/deep/c", false).await.is(200)["size"], 1);
    rename("new", "new/inside", false).await.refused(409, "Sandbox.InvalidMove");
    assert_eq!(api.files(&session, "").await, ["new/deep/c"]);
    let mkdir = async |path: &str| api.post(&format!("{base}/mkdir"), json!({"path": path})).await;
    assert_eq!(mkdir("x/y").await.is(200)["is_directory"], true);
    mkdir("x/y").await.is(200);
    mkdir("new/deep/c/d").await.refused(409, "Sandbox.NotADirectory");
    mkdir("").await.refused(400, "Sandbox.InvalidPath");
    api.post(&format!("{base}/mkdir"), json!({})).await.names("body.path");
    api.upload(&session, "x", "1").await.refused(409, "Sandbox.NotAFile");
    api.delete(&format!("{base}/x")).await.refused(409, "Sandbox.DirectoryNotEmpty");
    api.delete(&format!("{base}/x/y")).await.is(204);
    api.delete(&format!("{base}/x/y")).await.refused(404, "Sandbox.FileNotFound");
    api.get(&format!("{base}/new")).await.refused(409, "Sandbox.NotAFile");
    let run = api.run(&session, "shell", "find . -mindepth 1 | sort").await;
    assert_eq!(run["stdout"], "./new\n./new/deep\n./new/deep/c\n./x\n");
}

async fn ranges_and_tags_are_those_of_the_standard(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    let session = api.session().await;
    api.upload(&session, "digits", "0123456789").await.is(200);
    let path = format!("/sessions/{session}/files/digits");
    let range = async |range: &str| api.send(api.request("GET", &path).header("Range", range)).await;
    for (asked, text, told) in [
        ("bytes=2-4", "234", "bytes 2-4/10"),
        ("bytes=8-", "89", "bytes 8-9/10"),
        ("bytes=-3", "789", "bytes 7-9/10"),
    ] {
        let reply = range(asked).await;
        assert_eq!((reply.status, &*reply.text, reply.header("content-range")), (206, text, told));
    }
    range("bytes=10-").await.refused(416, "Sandbox.OutOfRange");
    assert_eq!(range("bytes=5-4").await.status, 200);
    let reply = api.get(&path).await;
    let tag = reply.header("etag").to_owned();
    assert_eq!((reply.header("content-length"), reply.header("accept-ranges")), ("10", "bytes"));
    let again = api.send(api.request("GET", &path).header("If-None-Match", &tag)).await;
    assert_eq!((again.status, &*again.text), (304, ""));
    api.upload(&session, "digits", "9876543210").await.is(200);
    let again = api.send(api.request("GET", &path).header("If-None-Match", &tag)).await;
    assert_eq!((again.status, &*again.text), (200, "9876543210"));
    let part = api.request("GET", &path).header("Range", "bytes=0-0").header("If-Range", &tag);
    assert_eq!(api.send(part).await.status, 200, "the file is another now");
    let head = api.send(api.request("HEAD", &path)).await;
    assert_eq!((head.status, head.header("content-length"), &*head.text), (200, "10", ""));
    api.get(&format!("{path}?presigned=true")).await.refused(409, "Sandbox.PresigningNotSupported");
}

async fn wrong_paths_and_forms_are_refused(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    let session = api.session().await;
    let long = "x".repeat(300);
    for path in ["../x", "/etc/passwd", "a/../../x", "a//b", "./a", "nul\0", &long] {
        api.upload(&session, path, "x").await.refused(400, "Sandbox.InvalidPath");
    }
    for path in ["..%2f..%2fetc%2fpasswd", "%2e%2e/x", "a/%2e%2e/%2e%2e/x", "%00", &long] {
        // As it is: a client that knows URLs would resolve the dots.
        let answer = raw_get(api, server.port, &format!("/api/v1/sessions/{session}/files/{path}")).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{path}: {answer}");
    }
    assert_eq!(api.files(&session, "").await, Vec::<String>::new());
    let upload = || api.request("POST", &format!("/sessions/{session}/files/upload")).query(&[("path", "a")]);
    api.send(upload().json(&json!({}))).await.refused(400, "Sandbox.InvalidForm");
    let form = reqwest::multipart::Form::new().text("other", "x");
    api.send(upload().multipart(form)).await.refused(400, "Sandbox.InvalidForm");
    api.send(upload().multipart(reqwest::multipart::Form::new())).await.refused(400, "Sandbox.InvalidForm");
    // A client may send what it likes before the file, within bounds.
    let long = reqwest::multipart::Form::new().text("other", "x".repeat(9000)).text("file", "x");
    api.send(upload().multipart(long)).await.refused(400, "Sandbox.InvalidForm");
    let many = (0..20).fold(reqwest::multipart::Form::new(), |form, _| form.text("other", "x"));
    api.send(upload().multipart(many.text("file", "x"))).await.refused(400, "Sandbox.InvalidForm");
    let part =
        || reqwest::multipart::Form::new().part("file", reqwest::multipart::Part::bytes(b"abc".to_vec()));
    let sum = format!("sha256:{}", "0".repeat(64));
    let wrong = upload().query(&[("checksum", &*sum)]).multipart(part());
    api.send(wrong).await.refused(400, "Sandbox.ChecksumMismatch");
    api.send(upload().query(&[("checksum", "md5:1")]).multipart(part())).await.is(422);
    assert_eq!(api.files(&session, "").await, Vec::<String>::new(), "nothing of it is kept");
    let nameless = api.request("POST", &format!("/sessions/{session}/files/upload")).multipart(part());
    api.send(nameless).await.refused(400, "Sandbox.InvalidPath");
    let fields = |path: &str| {
        let file = reqwest::multipart::Part::bytes(b"abc".to_vec()).file_name("name.bin");
        let form = reqwest::multipart::Form::new().text("note", "x").text("path", path.to_owned());
        form.part("file", file)
    };
    let url = format!("/sessions/{session}/files/upload");
    let told = api.send(api.request("POST", &url).multipart(fields("of/form"))).await.is(200);
    assert_eq!(told["file_path"], "of/form");
    let told = api.send(upload().multipart(fields("of/form"))).await.is(200);
    assert_eq!(told["file_path"], "a", "the query is asked first");
    api.send(api.request("POST", &url).multipart(fields("../x"))).await.refused(400, "Sandbox.InvalidPath");
}

/// An answer to a request whose path is sent as it is.
async fn raw_get(_: &Api, port: u16, path: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

async fn large_file_goes_in_and_out_and_beyond_the_limit_none(wiring: Wiring) {
    let server = wiring.start_with(&[("SANDMESH_GATEWAY__MAX_UPLOAD", "120MiB")]).await;
    let api = &server.api;
    let session = api.create(json!({"template_id": "python-basic", "disk": "300Mi"})).await;
    let session = session["id"].as_str().unwrap();
    let data: Vec<u8> = (0..100 << 18).flat_map(u32::to_le_bytes).collect();
    api.upload(session, "large", data.clone()).await.is(200);
    assert!(api.content(&format!("/sessions/{session}/files/large")).await == data);
    api.upload(session, "larger", vec![0; 121 << 20]).await.refused(413, "Sandbox.PayloadTooLarge");
    api.upload(session, "second", vec![1; 100 << 20]).await.is(200);
    api.upload(session, "third", vec![2; 110 << 20]).await.refused(413, "Sandbox.DiskLimit");
    assert_eq!(api.files(session, "").await, ["large", "second"]);
}

async fn files_of_unknown_and_ended_sessions(wiring: Wiring) {
    let server = wiring.start().await;
    let api = &server.api;
    api.upload("sess_none", "a", "x").await.refused(404, "Sandbox.SessionNotFound");
    api.upload("sess_none", "a", vec![0; 10 << 20]).await.refused(404, "Sandbox.SessionNotFound");
    api.get("/sessions/sess_none/files").await.refused(404, "Sandbox.SessionNotFound");
    api.get("/sessions/sess_none/files/a").await.refused(404, "Sandbox.SessionNotFound");
    api.delete("/sessions/sess_none/files/a").await.refused(404, "Sandbox.SessionNotFound");
    let session = api.session().await;
    api.upload(&session, "a", "kept").await.is(200);
    api.post(&format!("/sessions/{session}/terminate"), json!({})).await.is(200);
    assert_eq!(api.content(&format!("/sessions/{session}/files/a")).await, b"kept");
    api.upload(&session, "b", "x").await.refused(409, "Sandbox.SessionNotActive");
    api.delete(&format!("/sessions/{session}/files/a")).await.refused(409, "Sandbox.SessionNotActive");
    let rename = json!({"source_path": "a", "target_path": "b"});
    api.post(&format!("/sessions/{session}/files/move"), rename)
        .await
        .refused(409, "Sandbox.SessionNotActive");
    api.get(&format!("/sessions/{session}/files/b")).await.refused(404, "Sandbox.FileNotFound");
}
