use sandmesh_proto::session::session::State;

use super::*;

on_every_database!(
    pages_show_every_session_once_and_the_newest_first,
    an_offset_skips_and_the_total_stays,
    a_filter_shows_only_what_matches,
    a_page_token_or_state_that_is_not_ours_is_refused,
    executions_are_listed_newest_first_with_their_real_total,
    a_list_shows_what_a_caller_reads_and_a_page_too_large_ends_earlier,
    sessions_are_listed_by_their_labels_whatever_is_in_them,
);

async fn pages(bench: &mut Bench, size: u32) -> Vec<Vec<String>> {
    let mut request = pb::ListSessionsRequest { page_size: size, ..Default::default() };
    let mut pages = Vec::new();
    loop {
        let page = bench.client.list_sessions(request.clone()).await.unwrap().into_inner();
        assert_eq!(page.total, 5);
        pages.push(page.sessions.into_iter().map(|session| session.session_id).collect());
        if page.next_page_token.is_empty() {
            return pages;
        }
        request.page_token = page.next_page_token;
    }
}

async fn five(bench: &mut Bench) -> Vec<String> {
    let mut ids = Vec::new();
    for number in 0..5 {
        let request = pb::CreateSessionRequest { session_id: format!("s{number}"), ..new_session() };
        ids.push(bench.create(request).await.unwrap().session_id);
        // Two at the same moment: the id decides.
        bench.clock.advance(Duration::from_secs(number % 2));
    }
    ids.reverse();
    ids
}

async fn pages_show_every_session_once_and_the_newest_first() {
    let mut bench = Bench::new().await;
    let ids = five(&mut bench).await;
    let pages = pages(&mut bench, 2).await;
    assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 1]);
    assert_eq!(pages.concat(), ids);
}

async fn an_offset_skips_and_the_total_stays() {
    let mut bench = Bench::new().await;
    let ids = five(&mut bench).await;
    let request = pb::ListSessionsRequest { page_size: 1, offset: 1, ..Default::default() };
    let page = bench.client.list_sessions(request).await.unwrap().into_inner();
    assert_eq!((page.total, page.sessions.len()), (5, 1));
    assert_eq!(page.sessions[0].session_id, ids[1]);
    assert!(!page.next_page_token.is_empty());
    let beyond = pb::ListSessionsRequest { offset: 9, ..Default::default() };
    let page = bench.client.list_sessions(beyond).await.unwrap().into_inner();
    assert_eq!((page.total, page.sessions.len(), page.next_page_token.as_str()), (5, 0, ""));
}

async fn a_filter_shows_only_what_matches() {
    let mut bench = Bench::new().await;
    let ids = five(&mut bench).await;
    let end = pb::TerminateSessionRequest { session_id: ids[3].clone() };
    bench.client.terminate_session(end).await.unwrap();
    let request = pb::ListSessionsRequest { state: State::Terminated.into(), ..Default::default() };
    let page = bench.client.list_sessions(request).await.unwrap().into_inner();
    assert_eq!((page.total, page.sessions[0].session_id.as_str()), (1, ids[3].as_str()));
    let request = pb::ListSessionsRequest { template_id: "other".into(), ..Default::default() };
    assert_eq!(bench.client.list_sessions(request).await.unwrap().into_inner().total, 0);
}

async fn a_page_token_or_state_that_is_not_ours_is_refused() {
    let mut bench = Bench::new().await;
    for token in ["x", "00", "5b5d"] {
        let request = pb::ListSessionsRequest { page_token: token.into(), ..Default::default() };
        refused(bench.client.list_sessions(request).await, Code::InvalidArgument, "PAGE_TOKEN_INVALID");
    }
    let request = pb::ListSessionsRequest { state: 99, ..Default::default() };
    refused(bench.client.list_sessions(request).await, Code::InvalidArgument, "INVALID_ARGUMENT");
    let request = pb::ListSessionsRequest { page_token: "x".into(), offset: 1, ..Default::default() };
    refused(bench.client.list_sessions(request).await, Code::InvalidArgument, "INVALID_ARGUMENT");
}

async fn executions_are_listed_newest_first_with_their_real_total() {
    let mut bench = Bench::new().await;
    let session = bench.session().await;
    let other = bench.session().await;
    let mut ids = Vec::new();
    for code in ["out:1", "out:2 exit:1", "fill:100000"] {
        ids.insert(0, bench.run(&session, code).await.execution_id);
        bench.clock.advance(Duration::from_secs(1));
    }
    bench.run(&other, "out:x").await;
    let mut request =
        pb::ListExecutionsRequest { session_id: session.session_id, page_size: 2, ..Default::default() };
    let page = bench.client.list_executions(request.clone()).await.unwrap().into_inner();
    assert_eq!((page.total, page.executions.len()), (3, 2));
    assert_eq!((&page.executions[0].execution_id, &page.executions[1].execution_id), (&ids[0], &ids[1]));
    assert_eq!((page.executions[0].stdout.len(), page.executions[0].stdout_truncated), (100_000, false));
    request.page_token = page.next_page_token;
    let page = bench.client.list_executions(request.clone()).await.unwrap().into_inner();
    assert_eq!(
        (page.executions[0].execution_id.as_str(), page.next_page_token.as_str()),
        (ids[2].as_str(), "")
    );
    request.page_token = String::new();
    request.state = pb::execution::State::Failed.into();
    let page = bench.client.list_executions(request).await.unwrap().into_inner();
    assert_eq!((page.total, &page.executions[0].execution_id), (1, &ids[1]));
}

async fn a_list_shows_what_a_caller_reads_and_a_page_too_large_ends_earlier() {
    let mut bench = Bench::new().await;
    let session = bench.session().await;
    let mut alone = Vec::new();
    for number in 0..3 {
        let code = format!("{}fill:50000 bigvalue:{}", " ".repeat(100_000), 14_000_000 + number);
        alone.insert(0, bench.run(&session, &code).await);
        bench.clock.advance(Duration::from_secs(1));
    }
    let mut request = pb::ListExecutionsRequest { session_id: session.session_id, ..Default::default() };
    let mut listed = Vec::new();
    let mut client = bench.client.clone();
    for expected in [2, 1] {
        let page = client.list_executions(request.clone()).await.unwrap().into_inner();
        assert_eq!((page.total, page.executions.len()), (3, expected));
        assert_eq!(page.next_page_token.is_empty(), expected == 1);
        listed.extend(page.executions);
        request.page_token = page.next_page_token;
    }
    assert!(listed == alone, "each is whole");
    assert!(!listed[0].code.is_empty() && !listed[0].stdout_truncated);
}

async fn sessions_are_listed_by_their_labels_whatever_is_in_them() {
    let mut bench = Bench::new().await;
    let odd = ("a \"b\" $.c".to_owned(), "x'; -- \u{fc}".to_owned());
    let team = |name: &str| ("team".to_owned(), name.to_owned());
    for labels in [vec![team("blue")], vec![team("red")], vec![team("blue"), odd.clone()]] {
        let labels = labels.into_iter().collect();
        bench.create(pb::CreateSessionRequest { labels, ..new_session() }).await.unwrap();
    }
    for (labels, expected) in [
        (vec![], 3),
        (vec![team("blue")], 2),
        (vec![team("blu")], 0),
        (vec![("tea".to_owned(), "blue".to_owned())], 0),
        (vec![odd.clone()], 1),
        (vec![team("red"), odd.clone()], 0),
        (vec![team("blue"), odd], 1),
    ] {
        let request =
            pb::ListSessionsRequest { labels: labels.clone().into_iter().collect(), ..Default::default() };
        let found = bench.client.list_sessions(request).await.unwrap().into_inner();
        assert_eq!((found.total, found.sessions.len() as u64), (expected, expected), "{labels:?}");
    }
    let many = (0..9).map(|n| (n.to_string(), String::new())).collect();
    let request = pb::ListSessionsRequest { labels: many, ..Default::default() };
    refused(bench.client.list_sessions(request).await, Code::InvalidArgument, "INVALID_ARGUMENT");
}
