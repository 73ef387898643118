//! Hands a call to the process that its session belongs to, where several share a database.
//!
//! A call is read as far as its first message, which says what it is about, and then goes on as it came:
//! there is no method in here but in the list of what each is about.

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use futures::{StreamExt, future::BoxFuture, stream};
use http_body::Frame;
use http_body_util::{BodyExt, BodyStream, StreamBody};
use prost::Message;
use sandmesh_mesh::{MAX_MESSAGE_BYTES, not_sent, status, was_not_sent};
use tonic::{Status, body::Body, server::NamedService};
use tower::{Service as _, ServiceExt};

use crate::{
    replica::{Replica, TERM},
    service::{Place, Service, Subject},
};

type Request = http::Request<Body>;
type Response = http::Response<Body>;

/// Says that a call was handed over once: it is not handed over again.
const HANDED_OVER: &str = "sandmesh-handed-over";

/// What is before each message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// How long to wait until somebody is asked again who was not there.
const PAUSE: Duration = Duration::from_millis(200);

/// A service of this role with the calls that are for others handed over.
#[derive(Debug, Clone)]
pub(crate) struct Routed<S> {
    pub(crate) inner: S,
    pub(crate) service: Arc<Service>,
}

impl<S: NamedService> NamedService for Routed<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> tower::Service<Request> for Routed<S>
where
    S: tower::Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let Some(about) = About::of(request.uri().path()).filter(|_| self.service.replica.is_some()) else {
            return Box::pin(self.inner.call(request));
        };
        let Self { inner, service } = self.clone();
        Box::pin(async move {
            let answer = match service.replica.as_ref() {
                Some(replica) => hand_over(&service, replica, about, request).await,
                None => Ok(request),
            };
            match answer {
                Ok(request) => inner.oneshot(request).await,
                Err(answer) => Ok(*answer),
            }
        })
    }
}

/// What a method is about, by where its first message says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum About {
    /// A session, in its first field.
    Session,
    /// The same, and it must not be done twice.
    SessionOnce,
    /// An execution, in its first field.
    Execution,
    /// A session, in the message in its first field; more messages follow.
    SessionWithin,
    /// An execution, in the message in its first field; more messages follow.
    ExecutionWithin,
}

impl About {
    /// `None` for what any process does.
    fn of(path: &str) -> Option<Self> {
        Some(match path.rsplit('/').next()? {
            "TerminateSession" | "DeleteSession" | "ListExecutions" | "ListFiles" | "DownloadFile"
            | "PresignFile" | "ReportSandboxLost" => Self::Session,
            "Execute"
            | "StartExecution"
            | "MoveFile"
            | "MakeDirectory"
            | "DeleteFile"
            | "InstallDependencies" => Self::SessionOnce,
            "GetExecution" | "WaitExecution" | "AttachExecution" | "CancelExecution" | "SendInput"
            | "DownloadArtifact" => Self::Execution,
            "UploadFile" => Self::SessionWithin,
            "InteractExecution" => Self::ExecutionWithin,
            _ => return None,
        })
    }

    /// What a message is about; `None` where it does not say, or is none.
    fn subject(self, message: &[u8]) -> Option<Subject> {
        let id = match self {
            Self::Session | Self::SessionOnce | Self::Execution => Id::decode(message).ok()?.id,
            Self::SessionWithin | Self::ExecutionWithin => Within::decode(message).ok()?.first?.id,
        };
        let id = Some(id).filter(|id| !id.is_empty())?;
        Some(match self {
            Self::Session | Self::SessionOnce | Self::SessionWithin => Subject::Session(id),
            Self::Execution | Self::ExecutionWithin => Subject::Execution(id),
        })
    }

    fn has_one_message(self) -> bool {
        !matches!(self, Self::SessionWithin | Self::ExecutionWithin)
    }

    /// It may be asked of another what one may have done that is gone.
    fn is_repeatable(self) -> bool {
        matches!(self, Self::Session | Self::Execution)
    }
}

/// The first field of every request that is about one thing.
#[derive(Clone, PartialEq, Message)]
struct Id {
    #[prost(string, tag = "1")]
    id: String,
}

/// The first message of a stream of them.
#[derive(Clone, PartialEq, Message)]
struct Within {
    #[prost(message, optional, tag = "1")]
    first: Option<Id>,
}

/// Hands a call over where it is for another. Gives the call back where it is for this process.
async fn hand_over(
    service: &Service,
    replica: &Replica,
    about: About,
    request: Request,
) -> Result<Request, Box<Response>> {
    let (head, body) = request.into_parts();
    let (first, rest) = first_message(body).await.map_err(refused)?;
    let subject = first.get(PREFIX..).and_then(|message| about.subject(message));
    let again = |rest| {
        let chunks = stream::iter([Ok(Frame::data(first.clone()))]).chain(BodyStream::new(rest));
        http::Request::from_parts(head.clone(), Body::new(StreamBody::new(chunks)))
    };
    let Some(subject) = subject else { return Ok(again(rest)) };
    let handed_over = head.headers.contains_key(HANDED_OVER);
    let deadline = tokio::time::Instant::now() + 2 * TERM;
    let mut rest = Some(rest);
    loop {
        let place = service.place_of(replica, &subject).await.map_err(|error| refused(status(error)))?;
        let rest = rest.take().unwrap_or_default();
        let Place::At(owner, mut link) = place else { return Ok(again(rest)) };
        if handed_over {
            return Err(refused(not_sent("it belongs to another process now")));
        }
        let mut request = again(rest);
        request.headers_mut().insert(HANDED_OVER, http::HeaderValue::from_static("1"));
        let answer = tokio::select! {
            answer = link.call(request) => answer.unwrap_or_else(|error| Status::unavailable(error.to_string()).into_http()),
            () = service.until_gone(&owner) => gone(about).into_http(),
        };
        let had_no_effect =
            Status::from_header_map(answer.headers()).is_some_and(|status| was_not_sent(&status));
        // A stream of messages is used up; the only one of the others is here still.
        if !had_no_effect || !about.has_one_message() || tokio::time::Instant::now() >= deadline {
            return Err(Box::new(answer));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The answer in place of one who had the session and does not answer any more.
fn gone(about: About) -> Status {
    let message = "the process that had the session is gone; what was asked for may have been done, or not";
    if about.is_repeatable() { not_sent(message) } else { Status::unavailable(message) }
}

fn refused(status: Status) -> Box<Response> {
    Box::new(status.into_http())
}

/// Reads a body as far as its first message, with what came behind it in the same pieces. A body that ends
/// before is what it is.
async fn first_message(mut body: Body) -> Result<(Bytes, Body), Status> {
    let mut read = BytesMut::new();
    while !has_message(&read)? {
        match body.frame().await {
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    read.extend_from_slice(&data);
                }
            }
            Some(Err(status)) => return Err(status),
            None => break,
        }
    }
    Ok((read.freeze(), body))
}

fn has_message(read: &[u8]) -> Result<bool, Status> {
    let Some(mut length) = read.get(1..PREFIX) else { return Ok(false) };
    let length = usize::try_from(length.get_u32()).unwrap_or(usize::MAX);
    if length > MAX_MESSAGE_BYTES {
        return Err(Status::resource_exhausted(format!("a message has {MAX_MESSAGE_BYTES} bytes at most")));
    }
    Ok(read.len() - PREFIX >= length)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sandmesh_proto::{FILE_DESCRIPTOR_SET, session as pb};

    use super::*;

    fn told(about: About, message: &impl Message) -> Option<Subject> {
        about.subject(&message.encode_to_vec())
    }

    #[test]
    fn a_call_is_about_what_its_first_message_says() {
        let session = Some(Subject::Session("s".into()));
        let start = pb::StartExecutionRequest { session_id: "s".into(), ..Default::default() };
        assert_eq!(told(About::Session, &start), session);
        let start = pb::UploadStart { session_id: "s".into(), path: "p".into(), ..Default::default() };
        let upload = pb::UploadFileRequest { frame: Some(pb::upload_file_request::Frame::Start(start)) };
        assert_eq!(told(About::SessionWithin, &upload), session);
        let execution = Some(Subject::Execution("e".into()));
        let attach =
            pb::AttachExecutionRequest { execution_id: "e".into(), stdout_offset: 7, ..Default::default() };
        assert_eq!(told(About::Execution, &attach), execution);
        let interact = pb::InteractExecutionRequest {
            frame: Some(pb::interact_execution_request::Frame::Attach(attach)),
        };
        assert_eq!(told(About::ExecutionWithin, &interact), execution);
        for nothing in [&b""[..], b"\xff\xff", b"\x0a\x00"] {
            assert_eq!(About::Session.subject(nothing), None);
        }
    }

    /// Those that any process answers from the database, or that make something new.
    const ANYWHERE: [&str; 7] = [
        "CreateSession",
        "GetSession",
        "ListSessions",
        "GetStatistics",
        "GetSandboxSpec",
        "HoldLease",
        "ReleaseLease",
    ];

    #[test]
    fn every_method_of_this_role_is_about_something_or_done_anywhere() {
        let set = prost_types::FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
        let files = set.file.iter().filter(|file| file.package() == "sandmesh.session.v1");
        let methods = files.flat_map(|file| &file.service).flat_map(|service| &service.method);
        let mut count = 0;
        for method in methods {
            let about = About::of(&format!("/sandmesh.session.v1.X/{}", method.name()));
            assert_eq!(about.is_none(), ANYWHERE.contains(&method.name()), "{}", method.name());
            let one = about.is_none_or(About::has_one_message);
            assert_eq!(one, !method.client_streaming(), "{}", method.name());
            count += 1;
        }
        assert!(count > 20, "{count}");
    }

    fn framed(message: &[u8]) -> Vec<u8> {
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        [&[0], &length[..], message].concat()
    }

    proptest! {
        #[test]
        fn body_is_the_same_however_it_came(
            message in prop::collection::vec(any::<u8>(), 0..50),
            behind in prop::collection::vec(any::<u8>(), 0..50),
            piece in 1_usize..20,
        ) {
            let all = [framed(&message), behind].concat();
            let pieces: Vec<_> = all.chunks(piece).map(|piece| Ok::<_, Status>(Frame::data(Bytes::copy_from_slice(piece)))).collect();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let (first, rest) = runtime
                .block_on(first_message(Body::new(StreamBody::new(stream::iter(pieces)))))
                .unwrap();
            let rest = runtime.block_on(rest.collect()).unwrap().to_bytes();
            prop_assert!(first.starts_with(&framed(&message)));
            prop_assert!(first.len() < PREFIX + message.len() + piece);
            prop_assert_eq!([first, rest].concat(), all);
        }
    }

    #[tokio::test]
    async fn message_that_is_too_long_is_refused_before_it_is_read() {
        let head = [0, 0xff, 0xff, 0xff, 0xff];
        let error = first_message(Body::new(http_body_util::Full::new(Bytes::copy_from_slice(&head)))).await;
        assert_eq!(error.unwrap_err().code(), tonic::Code::ResourceExhausted);
    }
}
