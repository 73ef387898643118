//! A request made of words that the contract knows and of words that it does not.

use axum::body::Body;
use bolero::TypeGenerator;
use form_urlencoded::byte_serialize;
use http::{HeaderValue, Request};

use super::Word;
use crate::rest::{ALIASES, routes};

#[derive(Debug, TypeGenerator)]
pub(super) struct Ask {
    method: u8,
    path: u8,
    any_path: Option<Word>,
    id: Word,
    query: Vec<(Word, Word)>,
    headers: [Option<Header>; 3],
    /// The content type; JSON if it is even.
    declared: u8,
    body: Content,
}

#[derive(Debug, TypeGenerator)]
enum Header {
    LastEventId(Word),
    IdempotencyKey(Word),
    RequestId(Word),
    Host(Word),
    Origin(Word),
    Authorization(Word),
    Accept(Word),
}

#[derive(Debug, TypeGenerator)]
#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
enum Content {
    Nothing,
    Bytes(Vec<u8>),
    /// A body that is fine, and some of its fields with other values.
    Object(u8, [Option<(Word, Word)>; 4]),
}

const METHODS: [&str; 8] = ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "BREW"];

const DECLARED: [&str; 6] =
    ["text/plain", "application/vnd.x+json", "", "application/grpc", "application/grpc-web+proto", "/"];

impl Ask {
    /// `None` if no client could send it.
    pub(super) fn request(&self) -> Option<Request<Body>> {
        let method = METHODS[usize::from(self.method) % METHODS.len()];
        let mut request = Request::builder().method(method).uri(format!("{}{}", self.path(), self.query()));
        for header in self.headers.iter().flatten() {
            let (name, value) = header.get();
            request = request.header(name, HeaderValue::from_str(&value).ok()?);
        }
        let declared = match self.declared {
            even if even % 2 == 0 => "application/json",
            odd => DECLARED[usize::from(odd / 2) % DECLARED.len()],
        };
        request.header("content-type", declared).body(self.body.get()).ok()
    }

    fn path(&self) -> String {
        if let Some(path) = &self.any_path {
            return path.of(&["/", "/docs", "/docs/", "/openapi.json", "/api/v1", "//", "/api/v1/sessions/"]);
        }
        let paths: Vec<&str> =
            routes().into_iter().map(|(path, _)| path).chain(ALIASES.map(|(alias, _)| alias)).collect();
        let known = ["s", "unknown", "slow", "expired", "breaks", ".."];
        let raw = ["%ff", "%00", "%2F", "%", "%e2%82%ac", "a%20b", "%0d%0a", "\u{20ac}"];
        let id = match raw.get(usize::from(self.id.choice / 16)) {
            Some(raw) => (*raw).to_owned(),
            None => byte_serialize(self.id.of(&known).as_bytes()).collect(),
        };
        paths[usize::from(self.path) % paths.len()].replace("{id}", &id)
    }

    fn query(&self) -> String {
        let names = words(
            "status template_id limit offset page_token sync_timeout poll_interval stdout_offset stderr_offset",
        );
        let values =
            ["", "1", "0", "-1", "300", "1e3", "running", "18446744073709551615", "NaN", "%zz", "a&a=b"];
        let pair = |(name, value): &(Word, Word)| format!("{}={}", name.of(&names), value.of(&values));
        let pairs: Vec<String> = self.query.iter().take(4).map(pair).collect();
        if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) }
    }
}

impl Header {
    fn get(&self) -> (&'static str, String) {
        let most = u64::MAX;
        match self {
            Self::LastEventId(word) => {
                ("last-event-id", word.of(&["0.0", "9.1", &format!("{most}.{most}"), ".", "-1.0", "1"]))
            }
            Self::IdempotencyKey(word) => ("idempotency-key", word.of(&["", "k", &"k".repeat(129)])),
            Self::RequestId(word) => ("x-request-id", word.of(&["", "r", "a b", &"r".repeat(129)])),
            Self::Host(word) => ("host", word.of(&["localhost:8000", "evil.example", "[::1", "", ":", "@"])),
            Self::Origin(word) => {
                ("origin", word.of(&["http://localhost:8000", "null", "http://evil.example"]))
            }
            Self::Authorization(word) => {
                ("authorization", word.of(&["Bearer ", "Bearer x", "bearer", "Basic x"]))
            }
            Self::Accept(word) => ("accept", word.of(&["text/event-stream", "*/*"])),
        }
    }
}

impl Content {
    fn get(&self) -> Body {
        match self {
            Self::Nothing => Body::empty(),
            Self::Bytes(bytes) => Body::from(bytes.clone()),
            Self::Object(base, changes) => Body::from(object(*base, changes)),
        }
    }
}

/// Bodies that are fine, one for each shape.
const FINE: [&[(&str, &str)]; 3] = [
    &[("template_id", "\"python-basic\""), ("timeout", "300")],
    &[("code", "\"pass\""), ("language", "\"python\"")],
    &[("id", "\"t\""), ("name", "\"t\""), ("image_url", "\"i\""), ("runtime_type", "\"python3.11\"")],
];

const FIELDS: &str = "id template_id timeout idle_timeout cpu memory disk resources env_vars dependencies \
    install_timeout fail_on_dependency_error python_package_index_url network labels request_id code language \
    event stdin execution_id entrypoint mode sync_timeout poll_interval name description image_url runtime_type \
    default_cpu_cores default_memory_mb default_disk_mb default_timeout default_timeout_sec default_env_vars \
    pre_installed_packages pool is_active gpu";

/// JSON texts, one after another.
const VALUES: &str = r#"null true 0 -1 1 0.5 300 4294967296 18446744073709551615 18446744073709551616 1e400 -0 1e-9
    "" "1" "0.5" "500m" "512Mi" "1Gi" "python" "shell" "script" "none" "\u0000" "\ud800" [] [null] ["a"] {}
    {"A":"b"} {"A":1} {"":null} {"cpu":1,"memory":"1Gi","disk":2} {"min":1,"max":0} [{"name":"click","version":"1"}]
    [[[[[[[[]]]]]]]] {"A":"b","A":"c"} {"name":1}
    {"max":1,"profiles":[{"resources":{"memory":"1Gi"},"max":1}]}"#;

fn words(text: &'static str) -> Vec<&'static str> {
    text.split_whitespace().collect()
}

fn object(base: u8, changes: &[Option<(Word, Word)>; 4]) -> String {
    let fine = FINE[usize::from(base) % FINE.len()];
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let (fields, values) = (words(FIELDS), words(VALUES));
    let changed = changes.iter().flatten().map(|(field, value)| {
        let value = match values.get(usize::from(value.choice) % (values.len() + 1)) {
            Some(value) => (*value).to_owned(),
            None => quoted(&value.any),
        };
        (field.of(&fields), value)
    });
    let changed: Vec<_> = changed.collect();
    let kept = fine.iter().filter(|(name, _)| base >= 128 || !changed.iter().any(|(field, _)| field == name));
    let kept = kept.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let fields =
        kept.chain(changed.iter().cloned()).map(|(name, value)| format!("{}:{value}", quoted(&name)));
    format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
}
