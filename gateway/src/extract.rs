//! Reading requests: JSON bodies, queries and path segments, with every mistake told by its place.
//!
//! Fields that are not known are not an error, because existing clients send some; they are noted in the
//! request's [`Context`] and named in the response.

use std::time::Duration;

use axum::{
    body::Body,
    extract::{FromRequest, FromRequestParts, Multipart, Path, Request},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderMap, header, request::Parts};
use http_body::Body as _;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::{Deserializer, Serialize, de::DeserializeOwned};

use crate::{
    app::App,
    error::{ApiError, Edge, Violation},
    request::Context,
};

/// How much of a body that is too large is taken, so that the client gets to read the answer.
const DISCARD_BYTES: usize = 64 << 20;
/// For how long.
const DISCARD_TIME: Duration = Duration::from_secs(5);

/// A JSON body, read or written.
#[derive(Debug)]
pub(crate) struct Json<T>(pub(crate) T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

impl<T: DeserializeOwned> FromRequest<App> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        if !is_json(request.headers()) {
            return Err(Edge::UnsupportedMediaType.into());
        }
        let context = request.extensions().get::<Context>().cloned();
        let body = read(request, app).await?;
        let mut deserializer = serde_json::Deserializer::from_slice(&body);
        let value = deserialize(&mut deserializer, "body", context.as_ref())?;
        deserializer.end().map_err(|error| invalid_json(&error))?;
        Ok(Self(value))
    }
}

/// The whole body, within its limits of size and time.
async fn read(request: Request, app: &App) -> Result<Bytes, ApiError> {
    let limit = app.config().max_body.0;
    let size = usize::try_from(limit).unwrap_or(usize::MAX);
    let declared = request.body().size_hint().upper().unwrap_or(limit);
    if declared > limit {
        discard(request.into_body(), DISCARD_BYTES, DISCARD_TIME).await;
        return Err(Edge::PayloadTooLarge(limit).into());
    }
    let memory = app.body_memory(declared).await?;
    if let Some(context) = request.extensions().get::<Context>() {
        context.hold(memory);
    }
    let mut body = request.into_body();
    let whole = Limited::new(&mut body, size).collect();
    let whole =
        tokio::time::timeout(app.config().body_timeout.0, whole).await.map_err(|_| Edge::BodyTimeout)?;
    match whole {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            discard(body, DISCARD_BYTES, DISCARD_TIME).await;
            Err(Edge::PayloadTooLarge(limit).into())
        }
        Err(_) => Err(Edge::BodyUnreadable.into()),
    }
}

/// Takes what a client goes on to send, for a while: one that still sends when the connection is closed
/// may never see the answer.
pub(crate) async fn discard(mut body: Body, most: usize, time: Duration) {
    let mut left = most;
    let all = async {
        while left > 0
            && let Some(Ok(frame)) = body.frame().await
        {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
        }
    };
    // Whoever sends more, or more slowly, gets the answer cut off.
    let _ = tokio::time::timeout(time, all).await;
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

/// The query of a request.
#[derive(Debug)]
pub(crate) struct Query<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let query = parts.uri.query().unwrap_or_default();
        let pairs = form_urlencoded::parse(query.as_bytes());
        let deserializer = serde_urlencoded::Deserializer::new(pairs);
        deserialize(deserializer, "query", parts.extensions.get::<Context>()).map(Self)
    }
}

/// The id in a path.
#[derive(Debug)]
pub(crate) struct Id(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let id = Path::<String>::from_request_parts(parts, state).await;
        id.map(|Path(id)| Self(id)).map_err(|_| Edge::InvalidPath.into())
    }
}

/// The session and the path of a file in a path such as `/sessions/{id}/files/{path}`.
#[derive(Debug)]
pub(crate) struct FilePath(pub(crate) String, pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for FilePath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let (id, path) = nested(parts.uri.path(), "/sessions/", "/files/")?;
        Ok(Self(id, path))
    }
}

/// The execution and the path of a file in a path such as `/executions/{id}/artifacts/{path}`.
#[derive(Debug)]
pub(crate) struct ArtifactPath(pub(crate) String, pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for ArtifactPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let (id, path) = nested(parts.uri.path(), "/executions/", "/artifacts/")?;
        Ok(Self(id, path))
    }
}

/// What is after the first `before`, and after the first `between` from there. A `/` of a file's path may be
/// written as it is or as `%2F`.
fn nested(path: &str, before: &str, between: &str) -> Result<(String, String), ApiError> {
    let (_, rest) = path.split_once(before).ok_or(Edge::InvalidPath)?;
    let (id, path) = rest.split_once(between).ok_or(Edge::InvalidPath)?;
    let decoded = |text: &str| {
        let text = percent_encoding::percent_decode_str(text).decode_utf8();
        text.map(std::borrow::Cow::into_owned).map_err(|_| Edge::InvalidPath)
    };
    Ok((decoded(id)?, decoded(path)?))
}

/// A multipart form, read part by part.
#[derive(Debug)]
pub(crate) struct Form(pub(crate) Multipart);

impl FromRequest<App> for Form {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let form = Multipart::from_request(request, app).await;
        form.map(Self).map_err(|refused| Edge::InvalidForm(refused.body_text()).into())
    }
}

/// The header `Idempotency-Key`: the request id of a create or an execute. Empty when not given.
#[derive(Debug)]
pub(crate) struct IdempotencyKey(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let Some(value) = parts.headers.get("idempotency-key") else { return Ok(Self(String::new())) };
        match value.to_str() {
            Ok(key) if (1..=128).contains(&key.len()) => Ok(Self(key.to_owned())),
            _ => {
                let loc = ["header", "Idempotency-Key"];
                let problem = "must be 1 to 128 visible ASCII characters";
                Err(ApiError::field(Violation::new(&loc, "value_error", problem)))
            }
        }
    }
}

fn deserialize<'de, T, D>(deserializer: D, place: &str, context: Option<&Context>) -> Result<T, ApiError>
where
    T: DeserializeOwned,
    D: Deserializer<'de>,
    D::Error: Explain,
{
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(deserializer, &mut track);
    let ignored = |path: serde_ignored::Path<'_>| {
        if let Some(context) = context {
            context.ignore(dotted(&path));
        }
    };
    match serde_ignored::deserialize(tracked, ignored) {
        Ok(value) => Ok(value),
        Err(error) => Err(error.explain(place, &track.path())),
    }
}

/// A path as clients write it: steps that only Rust knows are left out.
fn dotted(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path;
    let (parent, step) = match path {
        Path::Root => return String::new(),
        Path::Seq { parent, index } => (parent, index.to_string()),
        Path::Map { parent, key } => (parent, key.clone()),
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => {
            return dotted(parent);
        }
    };
    let parent = dotted(parent);
    if parent.is_empty() { step } else { format!("{parent}.{step}") }
}

/// An error of a deserialiser that can be told to a client.
trait Explain: serde::de::Error {
    fn explain(self, place: &str, path: &serde_path_to_error::Path) -> ApiError;
}

impl Explain for serde_json::Error {
    fn explain(self, place: &str, path: &serde_path_to_error::Path) -> ApiError {
        match self.classify() {
            serde_json::error::Category::Data => wrong_type(&self.to_string(), place, path),
            _ => invalid_json(&self),
        }
    }
}

impl Explain for serde::de::value::Error {
    fn explain(self, place: &str, path: &serde_path_to_error::Path) -> ApiError {
        wrong_type(&self.to_string(), place, path)
    }
}

fn invalid_json(error: &serde_json::Error) -> ApiError {
    ApiError::field(Violation::new(&["body"], "json_invalid", format!("not valid JSON: {error}")))
}

/// One field does not have the type it must have.
fn wrong_type(message: &str, place: &str, path: &serde_path_to_error::Path) -> ApiError {
    use serde_path_to_error::Segment;
    let message = message.split(" at line ").next().unwrap_or(message);
    let mut loc = vec![place.to_owned()];
    loc.extend(path.iter().filter_map(|segment| match segment {
        Segment::Seq { index } => Some(index.to_string()),
        Segment::Map { key } => Some(key.clone()),
        Segment::Enum { variant } => Some(variant.clone()),
        Segment::Unknown => None,
    }));
    let quoted = || message.split('`').nth(1).unwrap_or_default().to_owned();
    if message.starts_with("missing field") {
        loc.push(quoted());
    }
    let loc: Vec<&str> = loc.iter().map(String::as_str).collect();
    ApiError::field(Violation::new(&loc, kind(message), message))
}

/// The kind of a mistake, from the words of serde.
fn kind(message: &str) -> &'static str {
    let expected = message.rsplit("expected ").next().unwrap_or_default();
    let is_one_of = |words: &[&str]| words.iter().any(|word| expected.starts_with(word));
    match message {
        _ if message.starts_with("missing field") => "missing",
        _ if message.starts_with("unknown variant") => "enum",
        _ if message.starts_with("invalid value: integer `-") => "greater_than_equal",
        _ if message.starts_with("invalid value: integer") => "less_than_equal",
        _ if message.contains("digit found in string") => "int_parsing",
        _ if message.contains("number too ") => "int_parsing_size",
        _ if message.starts_with("invalid float") => "float_parsing",
        _ if !message.starts_with("invalid type") => "value_error",
        _ if is_one_of(&["u8", "u16", "u32", "u64", "i32", "i64", "usize"]) => "int_type",
        _ if is_one_of(&["f32", "f64"]) => "float_type",
        _ if is_one_of(&["a boolean"]) => "bool_type",
        _ if is_one_of(&["a sequence"]) => "list_type",
        _ if is_one_of(&["a map", "struct"]) => "dict_type",
        _ => "string_type",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use serde::Deserialize;
    use serde_json::{json, value::RawValue};

    use super::*;

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only reading it is tested")]
    struct Inner {
        number: u32,
    }

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only reading it is tested")]
    struct Outer {
        name: Option<String>,
        list: Option<Vec<Inner>>,
        map: Option<HashMap<String, String>>,
        event: Option<Box<RawValue>>,
    }

    fn parse(text: &str) -> Result<Outer, String> {
        let mut deserializer = serde_json::Deserializer::from_str(text);
        deserialize(&mut deserializer, "body", None).map_err(|error| detail(&error))
    }

    fn detail(error: &ApiError) -> String {
        serde_json::to_value(error.body("")).unwrap()["detail"].to_string()
    }

    #[test]
    fn a_wrong_type_is_told_by_its_place() {
        for (text, loc, kind) in [
            (r#"{"name": 1}"#, json!(["body", "name"]), "string_type"),
            (
                r#"{"list": [{"number": 1}, {"number": "x"}]}"#,
                json!(["body", "list", 1, "number"]),
                "int_type",
            ),
            (r#"{"list": [{"number": -1}]}"#, json!(["body", "list", 0, "number"]), "greater_than_equal"),
            (r#"{"list": [{}]}"#, json!(["body", "list", 0, "number"]), "missing"),
            (r#"{"map": {"A": 1}}"#, json!(["body", "map", "A"]), "string_type"),
            (r#"{"map": []}"#, json!(["body", "map"]), "dict_type"),
            ("[1, 2, 3, 4, 5]", json!(["body", 0]), "string_type"),
            ("3", json!(["body"]), "dict_type"),
        ] {
            let error: serde_json::Value = serde_json::from_str(&parse(text).unwrap_err()).unwrap();
            assert_eq!((&error[0]["loc"], error[0]["type"].as_str().unwrap()), (&loc, kind), "{text}");
        }
    }

    #[test]
    fn text_that_is_not_json_is_told_as_such() {
        for text in ["", "{", "{\"name\": }", "\u{feff}{}"] {
            assert!(parse(text).unwrap_err().contains("json_invalid"), "{text}");
        }
    }

    #[test]
    fn raw_json_is_kept_to_the_letter() {
        let outer = parse(r#"{"event": {"big": 12345678901234567890123, "x": 1.10}}"#).unwrap();
        assert_eq!(outer.event.unwrap().get(), r#"{"big": 12345678901234567890123, "x": 1.10}"#);
        assert!(parse(r#"{"event": null}"#).unwrap().event.is_none());
    }

    #[test]
    fn a_query_mistake_is_told_by_its_place() {
        let pairs = form_urlencoded::parse(b"number=abc");
        let error = deserialize::<Inner, _>(serde_urlencoded::Deserializer::new(pairs), "query", None);
        let error: serde_json::Value = serde_json::from_str(&detail(&error.unwrap_err())).unwrap();
        assert_eq!(error[0]["loc"], json!(["query", "number"]));
        assert_eq!(error[0]["type"], "int_parsing");
    }

    #[test]
    fn only_json_types_are_json() {
        for (value, expected) in [
            ("application/json", true),
            ("Application/JSON; charset=utf-8", true),
            ("application/vnd.x+json", true),
            ("text/plain", false),
            ("application/x-www-form-urlencoded", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, value.parse().unwrap())]);
            assert_eq!(is_json(&headers), expected, "{value}");
        }
    }
}
