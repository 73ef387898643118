//! Several processes of one role behind one link: each call goes to the next that is there. A read that one was
//! working on, or answering, when it died is made again at the next.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http_body_util::{BodyExt, Full, Limited};
use tokio::time::Instant;
use tonic::{Code, Status, body::Body};

use super::{Link, Request, Response, was_not_sent};
use crate::MAX_MESSAGE_BYTES;

/// How long nobody is sought first where nobody was.
const AWAY: Duration = Duration::from_secs(1);

/// What is around a message that has the most bytes.
const AROUND: usize = 1 << 10;

/// The links to each.
#[derive(Debug)]
pub(super) struct Several {
    links: Vec<Link>,
    next: AtomicUsize,
    /// Until when each counts as away.
    away: Mutex<Vec<Option<Instant>>>,
}

impl Several {
    pub(super) fn new(links: Vec<Link>) -> Self {
        let away = Mutex::new(vec![None; links.len()]);
        Self { links, next: AtomicUsize::new(0), away }
    }

    /// Each of them.
    pub(super) fn each(&self) -> &[Link] {
        &self.links
    }

    /// Calls the next that is there. A stream of messages is only tried once, as it is used up by that.
    pub(super) async fn call(&self, request: Request) -> Response {
        let order = order(self.next.fetch_add(1, Ordering::Relaxed), &self.away(), Instant::now());
        if sandmesh_proto::is_client_streaming(request.uri().path()) {
            return self.call_one(order.first().copied().unwrap_or(0), request).await;
        }
        let (head, body) = request.into_parts();
        let message = match Limited::new(body, MAX_MESSAGE_BYTES + AROUND).collect().await {
            Ok(message) => message.to_bytes(),
            Err(error) => return Status::from_error(error).into_http(),
        };
        let is_read = sandmesh_proto::is_read(head.uri.path());
        let mut answer = super::not_sent("there is no address").into_http();
        for index in order {
            let again = Request::from_parts(head.clone(), Body::new(Full::new(message.clone())));
            answer = self.call_one(index, again).await;
            if is_read {
                answer = whole(answer).await;
            }
            if !(had_no_effect(&answer) || (is_read && is_broken(&answer))) {
                break;
            }
        }
        answer
    }

    async fn call_one(&self, index: usize, request: Request) -> Response {
        let Some(link) = self.links.get(index) else {
            return super::not_sent("there is no address").into_http();
        };
        let answer = link.clone().answer(request).await;
        let away = had_no_effect(&answer).then(|| Instant::now() + AWAY);
        if let Some(place) = self.away().get_mut(index) {
            *place = away;
        }
        answer
    }

    fn away(&self) -> MutexGuard<'_, Vec<Option<Instant>>> {
        self.away.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn had_no_effect(answer: &Response) -> bool {
    Status::from_header_map(answer.headers()).is_some_and(|status| was_not_sent(&status))
}

/// Whoever was asked went away before there was an answer: one that answers says why it does not do it.
fn is_broken(answer: &Response) -> bool {
    Status::from_header_map(answer.headers()).as_ref().is_some_and(tells_nobody)
}

fn tells_nobody(status: &Status) -> bool {
    status.code() == Code::Unavailable && status.details().is_empty()
}

/// An answer with all that comes after its head; where it breaks off there, one that has only the status.
async fn whole(answer: Response) -> Response {
    let (head, body) = answer.into_parts();
    let body = match Limited::new(body, MAX_MESSAGE_BYTES + AROUND).collect().await {
        Ok(body) => body,
        Err(error) => return Status::from_error(error).into_http(),
    };
    match body.trailers().and_then(Status::from_header_map).filter(tells_nobody) {
        Some(status) => status.into_http(),
        None => Response::from_parts(head, Body::new(body)),
    }
}

/// In which order they are tried: from the next on, and those that were away lately last.
fn order(next: usize, away: &[Option<Instant>], now: Instant) -> Vec<usize> {
    let count = away.len();
    let mut order: Vec<_> = (0..count).map(|place| (next % count.max(1) + place) % count.max(1)).collect();
    order.sort_by_key(|index| away[*index].is_some_and(|until| until > now));
    order
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use http_body_util::StreamBody;

    use super::*;
    use crate::answer::Answer;

    /// Begins to answer, and goes away.
    async fn broken() -> Response {
        let frames = [Ok(http_body::Frame::data("beg".into())), Err(std::io::Error::other("it died"))];
        Response::new(Answer::of(Body::new(StreamBody::new(futures::stream::iter(frames)))))
    }

    async fn good() -> Response {
        Response::new(Body::new(Full::from("answer")))
    }

    #[tokio::test]
    async fn read_whose_answer_breaks_off_is_made_again_and_nothing_else_is() {
        let links = [Router::new().fallback(broken), Router::new().fallback(good)].map(Link::local);
        let several = Several::new(links.into());
        let mut answers = Vec::new();
        for method in ["GetSession", "TerminateSession"] {
            several.next.store(0, Ordering::Relaxed);
            let path = format!("/sandmesh.session.v1.SessionService/{method}");
            let request = http::Request::post(path).body(Body::empty()).unwrap();
            let body = several.call(request).await.into_body().collect().await.unwrap();
            answers.push((body.trailers().cloned(), body.to_bytes()));
        }
        assert_eq!(answers[0], (None, "answer".into()));
        assert_eq!(answers[1].1, "beg");
        assert!(answers[1].0.is_some(), "it is told that it broke off");
    }

    #[test]
    fn each_has_its_turn_and_who_is_away_comes_last() {
        let now = Instant::now();
        let here = [None, None, None];
        assert_eq!([0, 1, 2, 3].map(|next| order(next, &here, now)[0]), [0, 1, 2, 0]);
        assert_eq!(order(usize::MAX, &here, now).len(), 3);
        let away = [None, Some(now + AWAY), None];
        assert_eq!(order(1, &away, now), [2, 0, 1]);
        assert_eq!(order(1, &away, now + AWAY), [1, 2, 0], "it may be there again");
        assert_eq!(order(5, &[], now), Vec::<usize>::new());
    }
}
