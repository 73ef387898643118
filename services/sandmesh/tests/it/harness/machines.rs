//! Machines for nodes that join: each is a network namespace with a cable to this one, which can be pulled.

use std::{fmt, process::Command};

use serde_json::json;

use super::{Server, Wiring, free_port, process::Launch};

/// A machine of its own, as far as the network goes.
#[derive(Debug)]
pub(crate) struct Machine {
    namespace: String,
    cable: String,
    /// The address of this machine as that one sees it.
    host: String,
}

impl Machine {
    /// The `number`th (0 to 3) machine of the server at a port.
    fn new(port: u16, number: u8) -> Self {
        let (namespace, cable) = (format!("smt-{port}-{number}"), format!("sm{port}-{number}"));
        // A network of four addresses for each.
        let [high, low] = (port >> 1).to_be_bytes();
        let base = (u8::try_from(port & 1).unwrap() << 7) + number * 4;
        let address = |last: u8| format!("10.{}.{low}.{}", 128 + high, base + last);
        let machine = Self { namespace, cable, host: address(1) };
        let (namespace, cable) = (&machine.namespace, &machine.cable);
        ip(format_args!("netns add {namespace}"));
        ip(format_args!("link add {cable} type veth peer name cable netns {namespace}"));
        ip(format_args!("addr add {}/30 dev {cable}", address(1)));
        ip(format_args!("link set {cable} up"));
        ip(format_args!("-n {namespace} addr add {}/30 dev cable", address(2)));
        ip(format_args!("-n {namespace} link set cable up"));
        ip(format_args!("-n {namespace} link set lo up"));
        machine
    }

    /// Pulls the cable.
    pub(crate) fn cut(&self) {
        ip(format_args!("link set {} down", self.cable));
    }

    /// Plugs it in again.
    pub(crate) fn mend(&self) {
        ip(format_args!("link set {} up", self.cable));
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.namespace]).status();
        let _ = Command::new("ip").args(["link", "del", &self.cable]).output();
    }
}

fn ip(words: fmt::Arguments<'_>) {
    let words = words.to_string();
    let made = Command::new("ip").args(words.split(' ')).output().expect("ip (package iproute2) is there");
    assert!(made.status.success(), "ip {words}: {}", String::from_utf8_lossy(&made.stderr));
}

/// A server that machines may join.
pub(crate) struct Open {
    pub(crate) server: Server,
    /// Dropped after the server: its nodes are on them.
    pub(crate) machines: Vec<Machine>,
    join_port: u16,
}

impl Open {
    /// Starts it with some settings.
    pub(crate) async fn start(wiring: Wiring, settings: &[(&str, &str)]) -> Self {
        let join_port = free_port();
        let listen = format!("0.0.0.0:{join_port}");
        let own = [("SANDMESH_SCHEDULER__JOIN__LISTEN", listen.as_str())];
        let server = wiring.start_with(&[&own, settings].concat()).await;
        Self { server, machines: Vec::new(), join_port }
    }

    /// A token to join with.
    pub(crate) async fn token(&self) -> String {
        let made = self.server.api.post("/nodes/join-tokens", json!({})).await.is(201);
        made["token"].as_str().unwrap().to_owned()
    }

    /// How the agent of another machine is started, as the node `name`.
    pub(crate) fn launch(&mut self, name: &str, token: &str) -> Launch {
        let number = u8::try_from(self.machines.len()).unwrap();
        let machine = Machine::new(self.server.port, number);
        let join = format!("{}:{}", machine.host, self.join_port);
        let data_dir = self.server.dir.path().join(name).display().to_string();
        let own = self.server.launch(name, &["--roles", "agent", "--join", &join], &[]);
        let mut launch = Launch { network: Some(machine.namespace.clone()), ..own };
        launch.args[2] = data_dir;
        for (key, value) in &mut launch.env {
            match key.as_str() {
                "SANDMESH_AGENT__CGROUP_PARENT" => value.push_str(&format!("-{number}")),
                "SANDMESH_AGENT__UID_BASE" => {
                    *value = (value.parse::<u32>().unwrap() + 75 * (u32::from(number) + 1)).to_string();
                }
                "SANDMESH_AGENT__UID_COUNT" => "75".clone_into(value),
                _ => {}
            }
        }
        launch.env.extend([
            ("SANDMESH_AGENT__NODE_ID".to_owned(), name.to_owned()),
            ("SANDMESH_AGENT__MAX_SANDBOXES".to_owned(), "50".to_owned()),
            ("SANDMESH_MESH__JOIN_TOKEN".to_owned(), token.to_owned()),
        ]);
        self.machines.push(machine);
        launch
    }

    /// Has another machine join as the node `name`, and waits until it is there.
    pub(crate) async fn join(&mut self, name: &str) {
        let token = self.token().await;
        let launch = self.launch(name, &token);
        self.server.processes.push(launch.spawn());
        self.node_is(name, "healthy").await;
    }

    /// Waits until a node is as it should be.
    pub(crate) async fn node_is(&self, name: &str, status: &str) {
        super::eventually(&format!("node {name} is {status}"), super::PATIENCE, async || {
            let node = self.server.api.get(&format!("/nodes/{name}")).await;
            node.status == 200 && node.body["status"] == status
        })
        .await;
    }

    /// A session on this node: the others take none meanwhile.
    pub(crate) async fn session_on(&self, node: &str) -> String {
        let api = &self.server.api;
        let nodes = api.get("/nodes").await.is(200);
        let names = nodes["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap());
        let others: Vec<&str> = names.filter(|name| *name != node).collect();
        for other in &others {
            api.post(&format!("/nodes/{other}/drain"), json!({})).await.is(200);
        }
        let id = api.session().await;
        for other in &others {
            api.post(&format!("/nodes/{other}/resume"), json!({})).await.is(200);
        }
        let session = api.get(&format!("/sessions/{id}")).await.is(200);
        assert_eq!(session["runtime_node"], node, "{session}");
        id
    }
}
