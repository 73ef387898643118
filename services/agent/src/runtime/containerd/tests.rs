use super::*;
use crate::{
    Error,
    runtime::{
        Found, Runtime,
        container::tests::{BUSYBOX, ContainerBench, Kind, TestEngine, container_suite, order_of},
        contract::{Bench, id, order},
        executor::answered,
    },
};

container_suite!(Kind::Containerd);

fn image_problem(error: Error) -> ImageProblem {
    match error {
        Error::NoImage { problem, .. } => problem,
        error => panic!("{error}"),
    }
}

#[tokio::test]
async fn an_image_that_is_not_there_is_told_with_how_to_bring_it() {
    let mut bench = ContainerBench::new(Kind::Containerd);
    let told = image_problem(bench.made().create(&order_of(1, "nobody/nothing:1")).await.unwrap_err());
    let text = told.to_string();
    assert!(matches!(told, ImageProblem::Absent(_)), "{text}");
    assert!(text.contains("ctr --namespace sandmesh images import"), "{text}");
    let told = image_problem(bench.made().create(&order_of(1, "../a")).await.unwrap_err());
    assert!(matches!(told, ImageProblem::Invalid), "{told:?}");
    bench.config.containerd.image = String::new();
    let told = image_problem(bench.made().create(&order(1)).await.unwrap_err());
    assert!(matches!(told, ImageProblem::Unnamed("containerd")), "{told:?}");
    assert_eq!(bench.traces(&id(1)), [""; 0]);
}

#[tokio::test]
async fn an_image_that_another_snapshotter_unpacked_is_told_as_that() {
    let mut bench = ContainerBench::new(Kind::Containerd);
    bench.config.containerd.snapshotter = "native".to_owned();
    let told = image_problem(bench.made().create(&order(1)).await.unwrap_err()).to_string();
    assert!(told.contains("not unpacked by snapshotter `native`"), "{told}");
}

#[tokio::test]
async fn what_is_missing_is_told_with_its_setting() {
    let mut bench = ContainerBench::new(Kind::Containerd);
    bench.config.containerd.snapshotter = "nothing".to_owned();
    let told = bench.made().check().await.unwrap_err().to_string();
    assert!(told.contains("`agent.containerd.snapshotter`"), "{told}");
    bench.config.containerd.socket = "/nonexistent/containerd.sock".into();
    let told = bench.made().check().await.unwrap_err().to_string();
    assert!(told.contains("`agent.containerd.socket`") && told.contains("/nonexistent"), "{told}");
}

#[tokio::test]
async fn a_container_that_lost_its_task_or_its_snapshot_is_cleared_away() {
    let bench = ContainerBench::new(Kind::Containerd);
    let runtime = bench.made();
    for n in [1, 2] {
        runtime.create(&order(n)).await.unwrap();
        bench.engine.said(&["tasks", "delete", "--force", &bench.name(n)]);
    }
    bench.engine.said(&["snapshots", "remove", &bench.name(2)]);
    let next = bench.made();
    let found = next.adopt().await.unwrap();
    assert_eq!(found.len(), 2);
    for found in found {
        let Found::Whole(sandbox) = found else { panic!("{found:?}") };
        assert!(sandbox.reason.contains("its task was removed"), "{}", sandbox.reason);
        next.delete(&sandbox.id).await.unwrap();
        assert_eq!(bench.traces(&sandbox.id), [""; 0]);
    }
}

#[tokio::test]
async fn a_snapshot_that_is_left_over_is_replaced() {
    let bench = ContainerBench::new(Kind::Containerd);
    let name = bench.name(1);
    bench.engine.said(&["snapshots", "prepare", &name]);
    let runtime = bench.made();
    runtime.create(&order(1)).await.unwrap();
    runtime.delete(&id(1)).await.unwrap();
    assert_eq!(bench.traces(&id(1)), [""; 0]);
}

#[tokio::test]
async fn the_network_of_a_container_is_its_own_and_gone_with_it() {
    let bench = ContainerBench::new(Kind::Containerd);
    let runtime = bench.made();
    runtime.create(&order(1)).await.unwrap();
    let network = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    let own = network(bench.pid(1));
    assert_ne!(own, fs::read_link("/proc/self/ns/net").unwrap());
    let devices = fs::read_to_string(format!("/proc/{}/net/dev", bench.pid(1))).unwrap();
    let devices: Vec<&str> =
        devices.lines().skip(2).filter_map(|line| line.trim().split(':').next()).collect();
    assert!(devices.contains(&"lo") && devices.iter().all(|name| !name.starts_with("eth")), "{devices:?}");
    runtime.delete(&id(1)).await.unwrap();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let left =
        processes.filter(|entry| fs::read_link(entry.path().join("ns/net")).is_ok_and(|net| net == own));
    assert_eq!(left.count(), 0);
}

#[tokio::test]
async fn sandboxes_survive_a_killed_containerd_and_their_death_is_seen_without_it() {
    let mut bench = ContainerBench::on(TestEngine::own(Kind::Containerd, BUSYBOX, false));
    let runtime = bench.made();
    let tasks = sandmesh_mesh::Tasks::new();
    runtime.start(&tasks);
    for n in [1, 2] {
        runtime.create(&order(n)).await.unwrap();
    }
    bench.engine.kill();
    assert!(runtime.check().await.is_err(), "nobody is there");
    let dir = bench.sandbox_dir(&id(1));
    let answers = async || answered(&dir, &id(1), Duration::from_secs(5), None).await;
    assert!(answers().await.is_ok());
    let refused = runtime.create(&order(3)).await.unwrap_err().to_string();
    assert!(refused.contains("cannot be reached"), "{refused}");
    bench.kill(&id(2)).await;
    let reason = tokio::time::timeout(Duration::from_secs(1), runtime.wait(&id(2))).await.unwrap();
    assert!(reason.contains("containerd was not there"), "{reason}");
    bench.engine.start_again();
    assert!(answers().await.is_ok());
    let waited = tokio::time::timeout(Duration::from_millis(500), runtime.wait(&id(1))).await;
    assert!(waited.is_err(), "{waited:?}");
    runtime.create(&order(3)).await.unwrap();
    for n in [1, 2, 3] {
        runtime.delete(&id(n)).await.unwrap();
        assert_eq!(bench.traces(&id(n)), [""; 0]);
    }
    assert_eq!(tasks.shut_down(Duration::from_secs(5)).await, 0);
}

#[tokio::test]
async fn a_container_whose_shim_is_killed_is_dead_within_a_second_and_leaves_nothing() {
    let bench = ContainerBench::new(Kind::Containerd);
    let runtime = bench.made();
    runtime.create(&order(1)).await.unwrap();
    let stat = fs::read_to_string(format!("/proc/{}/stat", bench.pid(1))).unwrap();
    let shim: i32 = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap().parse().unwrap();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(shim).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    let reason = tokio::time::timeout(Duration::from_secs(2), runtime.wait(&id(1))).await.unwrap();
    assert!(reason.contains("its task was removed") || reason.contains("signal 9"), "{reason}");
    runtime.delete(&id(1)).await.unwrap();
    assert_eq!(bench.traces(&id(1)), [""; 0]);
}

#[test]
fn memory_that_ran_out_is_told() {
    let notes = Notes::default();
    let event = TaskOom { container_id: "sandmesh-x".to_owned() };
    let value = prost::Message::encode_to_vec(&event);
    let event = Some(Any { type_url: "containerd.events.TaskOOM".to_owned(), value });
    note(&Envelope { event, ..Default::default() }, &notes);
    let ended = Ended { code: Some(137), ..Default::default() };
    assert!(ended.told(&notes.of("sandmesh-x")).contains("ran out of memory"));
}

#[test]
fn a_path_is_a_url_whatever_is_in_it() {
    assert_eq!(file_url(Path::new("/a b/c%d/ü.log")), "file:///a%20b/c%25d/%C3%BC.log");
}
