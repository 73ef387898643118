use std::sync::atomic::{AtomicUsize, Ordering};

use sandmesh_proto::{
    executor::{SignalRequest, StdinChunk, StdinClose},
    session::{interact_execution_request::Frame as Interaction, send_input_request::Input},
};

use super::*;
use crate::drivers::MOST_INPUTS;

on_every_database!(
    input_reaches_the_run_once_and_in_order,
    who_repeats_input_that_is_not_read_is_not_read_either_until_it_is,
    input_that_nobody_can_read_is_refused,
);

async fn send(bench: &mut Bench, execution: &pb::Execution, input: Input) -> Result<(), Status> {
    let request = pb::SendInputRequest { execution_id: execution.execution_id.clone(), input: Some(input) };
    bench.client.send_input(request).await.map(|_| ())
}

fn chunk(offset: u64, data: &'static str) -> Input {
    Input::Stdin(StdinChunk { offset, data: data.into() })
}

async fn reading(bench: &mut Bench, keep_stdin_open: bool) -> pb::Execution {
    let session = bench.session().await;
    let mut request = start(&session.session_id, if keep_stdin_open { "input" } else { "forever" });
    request.spec.as_mut().unwrap().keep_stdin_open = keep_stdin_open;
    let execution = bench.try_start(request).await.unwrap();
    bench.running(&execution).await;
    execution
}

async fn input_reaches_the_run_once_and_in_order() {
    let mut bench = Bench::new().await;
    let execution = reading(&mut bench, true).await;
    send(&mut bench, &execution, chunk(0, "ab")).await.unwrap();
    send(&mut bench, &execution, chunk(0, "ab")).await.unwrap();
    send(&mut bench, &execution, chunk(2, "cd")).await.unwrap();
    let gap = send(&mut bench, &execution, chunk(9, "x")).await;
    refused(gap, Code::InvalidArgument, "INVALID_ARGUMENT");
    send(&mut bench, &execution, Input::CloseStdin(StdinClose::default())).await.unwrap();
    assert_eq!(bench.ended(&execution).await.stdout, "abcd");
    let late = send(&mut bench, &execution, chunk(4, "e")).await;
    refused(late, Code::FailedPrecondition, "EXECUTION_NOT_RUNNING");
}

async fn who_repeats_input_that_is_not_read_is_not_read_either_until_it_is() {
    let mut bench = Bench::new().await;
    let session = bench.session().await;
    let executor = bench.executor(&session);
    executor.stall(true);
    let mut request = start(&session.session_id, "input");
    request.spec.as_mut().unwrap().keep_stdin_open = true;
    let execution = bench.try_start(request).await.unwrap();
    bench.running(&execution).await;
    let attach = pb::AttachExecutionRequest {
        execution_id: execution.execution_id.clone(),
        ..pb::AttachExecutionRequest::default()
    };
    let many = 3 * MOST_INPUTS;
    let sent = Arc::new(AtomicUsize::new(0));
    let repeats = (0..many).map(|_| Interaction::Stdin(StdinChunk { offset: 0, data: "ab".into() }));
    let frames = std::iter::once(Interaction::Attach(attach))
        .chain(repeats)
        .chain(std::iter::once(Interaction::CloseStdin(StdinClose::default())));
    let counter = Arc::clone(&sent);
    let frames = futures::stream::iter(frames.map(move |frame| {
        counter.fetch_add(1, Ordering::Relaxed);
        pb::InteractExecutionRequest { frame: Some(frame) }
    }));
    let mut events = bench.client.interact_execution(frames).await.unwrap().into_inner();
    eventually("it is read no more", || sent.load(Ordering::Relaxed) >= MOST_INPUTS).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(sent.load(Ordering::Relaxed) < many, "all of it was read");
    executor.stall(false);
    while events.message().await.unwrap().is_some() {}
    assert_eq!(bench.ended(&execution).await.stdout, "ab");
}

async fn input_that_nobody_can_read_is_refused() {
    let mut bench = Bench::new().await;
    let execution = reading(&mut bench, false).await;
    let closed = send(&mut bench, &execution, chunk(0, "a")).await;
    refused(closed, Code::InvalidArgument, "INVALID_ARGUMENT");
    let signal = send(&mut bench, &execution, Input::Signal(SignalRequest { signal: 32, sequence: 0 })).await;
    refused(signal, Code::InvalidArgument, "INVALID_ARGUMENT");
    send(&mut bench, &execution, Input::Signal(SignalRequest { signal: 2, sequence: 0 })).await.unwrap();
}
