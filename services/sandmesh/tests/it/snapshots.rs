//! What the warm Pythons of a node have in common, and that a setting undoes it.

use serde_json::{Value, json};

use crate::harness::{Server, Wiring};

in_both_wirings!(pythons_of_a_node_come_of_one_snapshot, each_session_has_its_own_python_where_that_is_set);

/// What two sessions see: whether their memory is that of a snapshot, and a hash.
async fn seen(server: &Server) -> [Value; 2] {
    const LOOK: &str =
        "def handler(event): return ['.snapshot' in open('/proc/self/maps').read(), hash('a')]";
    let [first, second] = [server.api.session().await, server.api.session().await];
    [server.api.python(&first, LOOK).await, server.api.python(&second, LOOK).await]
        .map(|mut run| run["return_value"].take())
}

async fn pythons_of_a_node_come_of_one_snapshot(wiring: Wiring) {
    let [first, second] = seen(&wiring.start().await).await;
    assert_eq!((&first[0], &first), (&json!(true), &second));
}

async fn each_session_has_its_own_python_where_that_is_set(wiring: Wiring) {
    let server = wiring.start_with(&[("SANDMESH_AGENT__ISOLATION__SNAPSHOTS", "false")]).await;
    let [first, second] = seen(&server).await;
    assert_eq!((&first[0], &second[0]), (&json!(false), &json!(false)));
    assert_ne!(first[1], second[1], "each has a seed of its own");
}
