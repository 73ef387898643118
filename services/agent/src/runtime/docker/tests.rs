use std::sync::Mutex;

use super::*;
use crate::{
    Error,
    runtime::{
        Found, Runtime,
        container::tests::{BUSYBOX, ContainerBench, Kind, TestEngine, container_suite, order_of},
        contract::{Bench, id, order},
        executor::answered,
        life,
        record::Record,
    },
};

container_suite!(Kind::Docker);

#[tokio::test]
async fn an_image_that_cannot_be_had_is_told_by_its_kind() {
    let mut bench = ContainerBench::new(Kind::Docker);
    let problem = |error: Error| match error {
        Error::NoImage { problem, .. } => problem,
        error => panic!("{error}"),
    };
    // Nobody listens there.
    let unreachable = order_of(1, "127.0.0.1:1/nobody/nothing:1");
    let told = problem(bench.made().create(&unreachable).await.unwrap_err());
    assert!(matches!(told, ImageProblem::Unreachable(_)), "{told:?}");
    let told = problem(bench.made().create(&order_of(1, "../../containers/json")).await.unwrap_err());
    assert!(matches!(told, ImageProblem::Invalid), "{told:?}");
    bench.config.docker.pull = crate::config::Pull::Never;
    let told = problem(bench.made().create(&unreachable).await.unwrap_err());
    assert!(matches!(told, ImageProblem::Absent(_)), "{told:?}");
    bench.config.docker.image = String::new();
    let told = problem(bench.made().create(&order(1)).await.unwrap_err());
    assert!(matches!(told, ImageProblem::Unnamed(_)), "{told:?}");
    assert_eq!(bench.traces(&id(1)), [""; 0]);
}

#[tokio::test]
async fn an_image_that_is_pulled_by_several_is_asked_for_once() {
    let bench = ContainerBench::new(Kind::Docker);
    let (address, asked) = registry_that_knows_nothing().await;
    let image = format!("{address}/some/image:1");
    let runtime = Arc::new(bench.made());
    let creates = (1..=4).map(|n| {
        let (runtime, order) = (Arc::clone(&runtime), order_of(n, &image));
        async move { runtime.create(&order).await.unwrap_err() }
    });
    for error in futures::future::join_all(creates).await {
        let Error::NoImage { problem: ImageProblem::NotFound(_), .. } = error else { panic!("{error:?}") };
    }
    let manifests = asked.lock().unwrap().iter().filter(|line| line.contains("/manifests/1")).count();
    assert!((1..=2).contains(&manifests), "asked {manifests} times: {:?}", asked.lock().unwrap());
}

/// A registry that answers every question about a manifest after a while with that there is none.
async fn registry_that_knows_nothing() -> (String, Arc<Mutex<Vec<String>>>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = Arc::clone(&asked);
    let serve = async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = vec![0; 4096];
            let read = stream.read(&mut request).await.unwrap_or(0);
            let text = String::from_utf8_lossy(&request[..read]).into_owned();
            let line = text.lines().next().unwrap_or_default().to_owned();
            let body = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
            let (status, body) =
                if line.contains("/manifests/") { ("404 Not Found", body) } else { ("200 OK", "{}") };
            seen.lock().unwrap().push(line);
            if status.starts_with("404") {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            let answer = format!(
                "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    };
    #[expect(clippy::disallowed_methods, reason = "it ends with the test")]
    drop(tokio::spawn(serve));
    (address, asked)
}

#[tokio::test]
async fn sandboxes_survive_an_engine_that_restores_and_are_reported_by_one_that_does_not() {
    for live_restore in [true, false] {
        let mut bench = ContainerBench::on(TestEngine::own(Kind::Docker, BUSYBOX, live_restore));
        let runtime = Arc::new(bench.made());
        let tasks = sandmesh_mesh::Tasks::new();
        runtime.start(&tasks);
        let facts = runtime.create(&order(1)).await.unwrap();
        bench.engine.kill();
        assert!(runtime.check().await.is_err(), "nobody is there");
        assert!(answered(&bench.sandbox_dir(&id(1)), &id(1), Duration::from_secs(5), None).await.is_ok());
        let refused = runtime.create(&order(2)).await.unwrap_err().to_string();
        assert!(refused.contains("cannot be reached"), "{refused}");
        bench.engine.start_again();
        let waited = tokio::time::timeout(Duration::from_secs(5), runtime.wait(&id(1))).await;
        if live_restore {
            assert!(waited.is_err(), "{waited:?}");
            assert!(answered(&bench.sandbox_dir(&id(1)), &id(1), Duration::from_secs(5), None).await.is_ok());
        } else {
            let reason = waited.unwrap();
            assert!(reason.contains("engine was lost"), "{reason}");
        }
        runtime.create(&order(2)).await.unwrap();
        for n in [1, 2] {
            runtime.delete(&id(n)).await.unwrap();
            assert_eq!(bench.traces(&id(n)), [""; 0], "{facts:?}");
        }
        assert_eq!(tasks.shut_down(Duration::from_secs(5)).await, 0);
    }
}

/// As one does that is killed while it starts or ends a container.
#[tokio::test]
async fn what_runs_in_a_container_that_the_engine_forgot_is_ended_by_its_control_groups() {
    let mut bench = ContainerBench::on(TestEngine::own(Kind::Docker, BUSYBOX, true));
    bench.made().create(&order(1)).await.unwrap();
    let (pid, container) = (bench.pid(1), bench.container_of(&id(1)).remove(0));
    let dir = bench.sandbox_dir(&id(1));
    Record { process: None, facts: None, ..Record::load(&dir).unwrap() }.save(&dir).unwrap();
    bench.engine.kill();
    let of_engine = bench.engine.socket().with_file_name("data");
    std::fs::remove_dir_all(of_engine.join("containers").join(&container)).unwrap();
    bench.engine.start_again();
    assert_eq!(bench.container_of(&id(1)), [""; 0]);
    assert!(life::start_time(pid).is_some(), "it runs, and its engine does not know");
    // Nothing else leads to it.
    std::fs::remove_file(dir.join("executor.pid")).unwrap();
    let next = bench.made();
    assert!(matches!(&*next.adopt().await.unwrap(), [Found::HalfMade(_)]));
    next.delete(&id(1)).await.unwrap();
    assert!(life::start_time(pid).is_none());
    assert!(!dir.exists());
    // Control groups of hierarchies that only the engine uses stay, and are empty.
    bench.traces(&id(1)).iter().for_each(|group| std::fs::remove_dir(group).unwrap());
}
