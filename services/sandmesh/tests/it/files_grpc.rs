//! The same over gRPC: streams of frames, checksums, and the errors of the contract.

use sandmesh_proto::session::{
    self as pb, download_file_response::Frame, file_service_client::FileServiceClient, upload_file_request,
};
use tonic::{Code, Response, Status, transport::Channel};
use tonic_types::StatusExt;

use crate::harness::{Grpc, Wiring, refused};

in_both_wirings!(
    file_goes_in_and_out_in_frames,
    upload_that_breaks_off_leaves_nothing,
    errors_say_what_is_wrong,
);

type Files = FileServiceClient<Channel>;

async fn upload(
    files: &mut Files,
    start: pb::UploadStart,
    pieces: &[&[u8]],
) -> Result<pb::UploadFileResponse, Status> {
    use upload_file_request::Frame;
    let data = pieces.iter().map(|piece| Frame::Data(piece.to_vec().into()));
    let end = Frame::End(pb::UploadEnd {});
    let frames = [Frame::Start(start)].into_iter().chain(data).chain([end]);
    let frames: Vec<_> = frames.map(|frame| pb::UploadFileRequest { frame: Some(frame) }).collect();
    files.upload_file(tokio_stream::iter(frames)).await.map(Response::into_inner)
}

fn start(session_id: &str, path: &str) -> pb::UploadStart {
    pb::UploadStart { session_id: session_id.into(), path: path.into(), ..Default::default() }
}

async fn download(
    files: &mut Files,
    request: pb::DownloadFileRequest,
) -> Result<(pb::File, Vec<u8>), Status> {
    let mut frames = files.download_file(request).await?.into_inner();
    let Some(Frame::File(file)) = frames.message().await?.and_then(|frame| frame.frame) else {
        panic!("the first frame is not the file")
    };
    let mut data = Vec::new();
    while let Some(frame) = frames.message().await? {
        let Some(Frame::Data(piece)) = frame.frame else { panic!("not data: {frame:?}") };
        assert!(piece.len() <= 1 << 20);
        data.extend_from_slice(&piece);
    }
    Ok((file, data))
}

fn whole(session_id: &str, path: &str) -> pb::DownloadFileRequest {
    pb::DownloadFileRequest { session_id: session_id.into(), path: path.into(), offset: 0, length: None }
}

async fn connected(wiring: Wiring) -> (crate::harness::Server, Grpc, Files, String) {
    let server = wiring.start().await;
    let mut grpc = server.grpc().await;
    let files = FileServiceClient::new(grpc.channel.clone()).max_decoding_message_size(4 << 20);
    let session = grpc.session().await;
    (server, grpc, files, session)
}

async fn file_goes_in_and_out_in_frames(wiring: Wiring) {
    let (_server, mut grpc, mut files, session) = connected(wiring).await;
    let piece = vec![7; 1 << 20];
    let mode = pb::UploadStart { mode: Some(0o755), ..start(&session, "bin/tool") };
    let answer = upload(&mut files, mode, &[&piece, b"", b"end"]).await.unwrap();
    let file = answer.file.unwrap();
    assert_eq!((file.size_bytes, &*file.path, file.is_directory), ((1 << 20) + 3, "bin/tool", false));
    let again = pb::UploadStart {
        checksum: answer.checksum.to_uppercase().replace("SHA256", "sha256"),
        ..start(&session, "copy")
    };
    assert_eq!(upload(&mut files, again, &[&piece, b"end"]).await.unwrap().checksum, answer.checksum);
    let (read, data) = download(&mut files, whole(&session, "bin/tool")).await.unwrap();
    assert!(data.len() == piece.len() + 3 && data.ends_with(b"end") && read.etag == file.etag);
    let part = pb::DownloadFileRequest { offset: 1 << 20, length: Some(2), ..whole(&session, "copy") };
    assert_eq!(download(&mut files, part).await.unwrap().1, b"en");
    let run =
        grpc.python(&session, "import os\ndef handler(event): return os.access('bin/tool', os.X_OK)").await;
    assert_eq!(run.result.return_value_json.as_deref(), Some("true"));
    let list = pb::ListFilesRequest { session_id: session.clone(), ..Default::default() };
    let listed = files.list_files(list).await.unwrap().into_inner().files;
    let names: Vec<_> = listed.iter().map(|file| (&*file.path, file.is_directory)).collect();
    assert_eq!(names, [("bin", true), ("bin/tool", false), ("copy", false)]);
}

async fn upload_that_breaks_off_leaves_nothing(wiring: Wiring) {
    let (_server, mut grpc, mut files, session) = connected(wiring).await;
    upload(&mut files, start(&session, "a"), &[b"before"]).await.unwrap();
    let (frames, receiver) = tokio::sync::mpsc::channel(4);
    let frame = |frame| pb::UploadFileRequest { frame: Some(frame) };
    frames.send(frame(upload_file_request::Frame::Start(start(&session, "a")))).await.unwrap();
    frames.send(frame(upload_file_request::Frame::Data(vec![1; 100_000].into()))).await.unwrap();
    let mut other = files.clone();
    let call = tokio::spawn(async move {
        other.upload_file(tokio_stream::wrappers::ReceiverStream::new(receiver)).await
    });
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    call.abort();
    let _ = call.await;
    drop(frames);
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert_eq!(download(&mut files, whole(&session, "a")).await.unwrap().1, b"before");
    let run = grpc.python(&session, "import os\ndef handler(event): return os.listdir('.')").await;
    assert_eq!(run.result.return_value_json.as_deref(), Some("[\"a\"]"));
}

/// The status of what was refused for this reason.
fn refuses<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, reason: &str) -> Status {
    refused(answer.map(Response::new), code, reason)
}

async fn errors_say_what_is_wrong(wiring: Wiring) {
    let (_server, _grpc, mut files, session) = connected(wiring).await;
    let answer = upload(&mut files, start(&session, "../x"), &[b"x"]).await;
    let status = refuses(answer, Code::InvalidArgument, "INVALID_PATH");
    let details = status.get_error_details();
    assert_eq!(details.bad_request().unwrap().field_violations[0].field, "path");
    let answer = upload(&mut files, start("sess_none", "x"), &[b"x"]).await;
    refuses(answer, Code::NotFound, "SESSION_NOT_FOUND");
    let wrong = pb::UploadStart { checksum: format!("sha256:{}", "0".repeat(64)), ..start(&session, "x") };
    refuses(upload(&mut files, wrong, &[b"x"]).await, Code::InvalidArgument, "CHECKSUM_MISMATCH");
    let large = vec![0; (1 << 20) + 1];
    let answer = upload(&mut files, start(&session, "x"), &[&large]).await;
    refuses(answer, Code::InvalidArgument, "INVALID_ARGUMENT");
    let only_data = pb::UploadFileRequest { frame: Some(upload_file_request::Frame::Data("x".into())) };
    let answer = files.upload_file(tokio_stream::iter([only_data])).await;
    refused(answer, Code::InvalidArgument, "INVALID_ARGUMENT");
    refuses(download(&mut files, whole(&session, "x")).await, Code::NotFound, "FILE_NOT_FOUND");
    upload(&mut files, start(&session, "d/f"), &[b"x"]).await.unwrap();
    refuses(download(&mut files, whole(&session, "d")).await, Code::FailedPrecondition, "NOT_A_FILE");
    let beyond = pb::DownloadFileRequest { offset: 2, ..whole(&session, "d/f") };
    refuses(download(&mut files, beyond).await, Code::OutOfRange, "OUT_OF_RANGE");
}
