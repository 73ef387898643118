use sandmesh_proto::{
    executor::{SignalRequest, StdinChunk, StdinClose},
    session::send_input_request::Input,
};

use super::*;

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

#[tokio::test]
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

#[tokio::test]
async fn input_that_nobody_can_read_is_refused() {
    let mut bench = Bench::new().await;
    let execution = reading(&mut bench, false).await;
    let closed = send(&mut bench, &execution, chunk(0, "a")).await;
    refused(closed, Code::InvalidArgument, "INVALID_ARGUMENT");
    let signal = send(&mut bench, &execution, Input::Signal(SignalRequest { signal: 32, sequence: 0 })).await;
    refused(signal, Code::InvalidArgument, "INVALID_ARGUMENT");
    send(&mut bench, &execution, Input::Signal(SignalRequest { signal: 2, sequence: 0 })).await.unwrap();
}
