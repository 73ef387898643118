use proptest::prelude::*;
use serde_json::json;

use super::*;

fn paging(limit: Option<i64>, offset: u32, token: &str) -> Paging {
    Paging::new(limit, Some(offset), Some(token))
}

proptest! {
    #[test]
    fn a_limit_is_always_in_bounds(limit in any::<Option<i64>>()) {
        prop_assert!((1..=MAX_LIMIT).contains(&paging(limit, 0, "").limit));
    }

    #[test]
    fn pages_by_offset_reach_the_end_and_stop(total in 0u64..50, size in 1usize..7) {
        let mut offset = 0;
        let mut seen = 0;
        loop {
            let left = usize::try_from(total - seen).unwrap();
            let page = paging(None, offset, "").page(vec![(); size.min(left)], total, String::new());
            seen += u64::try_from(page.items.len()).unwrap();
            offset += u32::try_from(page.items.len()).unwrap();
            if !page.has_more {
                break;
            }
        }
        prop_assert_eq!(seen, total);
    }

    #[test]
    fn any_json_is_returned_to_the_letter(value in "[ -~]{0,40}") {
        let json = json!({ "value": value }).to_string();
        let execution = sandmesh_proto::session::Execution {
            state: 3,
            return_value_json: Some(json.clone()),
            ..Default::default()
        };
        let text = serde_json::to_string(&execution::Execution::try_from(execution).unwrap()).unwrap();
        let expected = format!("\"return_value\":{json}");
        prop_assert!(text.contains(&expected));
    }
}

#[test]
fn falsy_return_values_are_kept() {
    for value in ["0", "\"\"", "[]", "{}", "false", "null", "0.0"] {
        let execution = sandmesh_proto::session::Execution {
            state: 3,
            return_value_json: Some(value.into()),
            ..Default::default()
        };
        let text = serde_json::to_string(&execution::Execution::try_from(execution).unwrap()).unwrap();
        assert!(text.contains(&format!("\"return_value\":{value},")), "{text}");
    }
}

#[test]
fn a_record_without_a_state_is_an_internal_error() {
    assert!(execution::Execution::try_from(sandmesh_proto::session::Execution::default()).is_err());
    assert!(session::Session::try_from(sandmesh_proto::session::Session::default()).is_err());
}

#[test]
fn a_sandbox_is_named_by_what_it_is() {
    for (runtime, container, pod) in [
        ("process", json!(null), json!(null)),
        ("docker", json!("sbx"), json!(null)),
        ("containerd", json!("sbx"), json!(null)),
        ("kubernetes", json!(null), json!("sbx")),
    ] {
        let wire = sandmesh_proto::session::Session {
            state: 2,
            runtime_type: runtime.into(),
            sandbox_id: "sbx".into(),
            ..Default::default()
        };
        let session = serde_json::to_value(session::Session::try_from(wire).unwrap()).unwrap();
        assert_eq!((&session["container_id"], &session["pod_name"]), (&container, &pod), "{runtime}");
    }
}
