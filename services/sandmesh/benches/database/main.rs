//! `just bench-database`: fills a database with sessions and executions, and prints how long it takes to read
//! and list them at the front door.
//!
//! Everything in it has ended, so that nothing but the reads and the server's own sweeps works.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::large_futures,
    dead_code,
    unused_imports,
    reason = "it shares the harness of the tests, which fails by panicking and has more than is used here"
)]

#[path = "../../tests/it/harness/mod.rs"]
mod harness;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::{Parser, ValueEnum};
use rand::Rng;
use sandmesh_mesh::{
    DatabaseUrl,
    database::{
        retried,
        testing::{Kind, OwnServer},
    },
};
use sandmesh_proto::session::{
    GetExecutionRequest, GetSessionRequest, ListExecutionsRequest, ListSessionsRequest, session::State,
};
use sea_orm::{ConnectionTrait, Database, DatabaseConnection, DbBackend};

use crate::harness::{Grpc, Wiring, settings_of};

/// Fills a database and measures how it is read.
#[derive(Debug, Parser)]
struct Args {
    /// Where it is kept
    #[arg(long, value_enum, default_value = "sqlite")]
    on: On,
    /// How many sessions there are
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(100..=1_000_000))]
    sessions: u64,
    /// How many executions each has
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    executions: u64,
    /// How often each call is made
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(10..=1_000_000))]
    calls: u64,
    /// Given by cargo bench
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum On {
    Sqlite,
    Mariadb,
    Postgres,
}

#[tokio::main]
async fn main() {
    let args = Args::parse();
    let own = match args.on {
        On::Sqlite => None,
        On::Mariadb => Some(OwnServer::start(Kind::MariaDb)),
        On::Postgres => Some(OwnServer::start(Kind::Postgres)),
    };
    let url = match &own {
        Some(own) => Some(own.database().await.url()),
        None => None,
    };
    let settings = url.as_ref().map(settings_of);
    let server = Wiring::Embedded.start_with(settings.as_ref().map_or(&[], |own| own)).await;
    let file = format!("sqlite://{}", server.data_dir().join("session.db").display());
    let database = Database::connect(url.as_ref().map_or(file.as_str(), DatabaseUrl::expose)).await.unwrap();
    let start = Instant::now();
    fill(&database, &args).await;
    println!(
        "{:?}: {} sessions, {} executions, filled in {:.0?}\n",
        args.on,
        args.sessions,
        args.sessions * args.executions,
        start.elapsed()
    );
    println!("| call | p50, ms | p99, ms |\n|---|--:|--:|");
    measure(&args, server.grpc().await).await;
}

/// So many sessions in one statement: MariaDB counts no further in one.
const BATCH: u64 = 900;

async fn fill(database: &DatabaseConnection, args: &Args) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros();
    let mut first = 0;
    while first < args.sessions {
        let last = (first + BATCH).min(args.sessions) - 1;
        fill_sessions(database, first, last, now).await;
        first = last + 1;
    }
    for round in 0..args.executions {
        fill_executions(database, round, now).await;
    }
    let analyse = match database.get_database_backend() {
        DbBackend::Postgres => "VACUUM ANALYZE",
        DbBackend::MySql => "ANALYZE TABLE sessions, executions",
        _ => return,
    };
    database.execute_unprepared(analyse).await.unwrap();
}

async fn fill_sessions(database: &DatabaseConnection, first: u64, last: u64, now: u128) {
    let mysql = database.get_database_backend() == DbBackend::MySql;
    let join = |word: &str, number: &str| match mysql {
        true => format!("CONCAT('{word}', {number})"),
        false => format!("'{word}' || ({number})"),
    };
    let numbers =
        format!("WITH RECURSIVE n(n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM n WHERE n < {last})");
    let values = format!(
        "SELECT {}, {}, CASE n % 5 WHEN 0 THEN 'failed' WHEN 1 THEN 'completed' ELSE 'terminated' END, '',
         '{{\"cpu_millis\":500,\"memory_bytes\":536870912,\"disk_bytes\":1073741824,\"max_processes\":128}}',
         'python:3.11-slim', '/w', 'process', 'python3.11', 'node', {}, '', TRUE, '{{}}', '{{}}', '', 300,
         0, {now} - n, {now}, {now}, {now}, {now} FROM n",
        join("s", "n"),
        join("t", "n % 20"),
        join("sbx", "n"),
    );
    let insert =
        "INSERT INTO sessions (id, template_id, state, status_reason, resources, image, workspace_path,
         runtime_type, language_runtime, node_id, sandbox_id, endpoint, sandbox_removed, env, labels,
         python_package_index_url, timeout_seconds, idle_timeout_seconds, created_at, updated_at,
         last_activity_at, expires_at, completed_at)";
    let sql = match mysql {
        true => format!("{insert} {numbers} {values}"),
        false => format!("{numbers} {insert} {values}"),
    };
    database.execute_unprepared(&sql).await.unwrap();
}

/// One more execution for each session.
async fn fill_executions(database: &DatabaseConnection, round: u64, now: u128) {
    let id = match database.get_database_backend() {
        DbBackend::MySql => format!("CONCAT('e', SUBSTRING(id, 2), '-{round}')"),
        _ => format!("'e' || SUBSTR(id, 2) || '-{round}'"),
    };
    let (bytes, empty) = match database.get_database_backend() {
        DbBackend::Postgres => ("'some output'::bytea", "''::bytea"),
        _ => ("x'736f6d65206f7574707574'", "x''"),
    };
    let sql = format!(
        "INSERT INTO executions (id, session_id, state, cause_detail, language, mode, code, event,
         keep_stdin_open, entrypoint, command, env, timeout_seconds, exit_code, stdout, stdout_kept,
         stdout_truncated, stderr, stderr_kept, stderr_truncated, return_value, return_value_bytes,
         object_prefix, retry_count, created_at, started_at, completed_at)
         SELECT {id}, id, CASE WHEN {round} % 10 = 0 THEN 'failed' ELSE 'completed' END, '', 'python',
         'handler', 'def handler(event): return 42', '{{}}', FALSE, '', '[]', '{{}}', 30, 0, {bytes}, 11,
         FALSE, {empty}, 0, FALSE, '42', 2, '', 0, created_at + {round}, {now}, {now} FROM sessions"
    );
    // The server takes over the sessions meanwhile, which nobody had.
    retried(|| database.execute_unprepared(&sql)).await.unwrap();
}

/// Makes one kind of call many times, and prints how long it took.
async fn row(args: &Args, name: &str, mut call: impl AsyncFnMut(u64)) {
    let mut times = Vec::new();
    for _ in 0..args.calls {
        let any = rand::rng().random_range(0..args.sessions);
        let start = Instant::now();
        call(any).await;
        times.push(start.elapsed());
    }
    times.sort();
    let at = |share: usize| times[(times.len() - 1) * share / 100].as_secs_f64() * 1e3;
    println!("| {name} | {:.2} | {:.2} |", at(50), at(99));
}

async fn measure(args: &Args, grpc: Grpc) {
    let sessions = &grpc.sessions;
    row(args, "get a session", async |any| {
        let request = GetSessionRequest { session_id: format!("s{any}") };
        sessions.clone().get_session(request).await.unwrap();
    })
    .await;
    row(args, "get an execution", async |any| {
        let request = GetExecutionRequest { execution_id: format!("e{any}-0") };
        sessions.clone().get_execution(request).await.unwrap();
    })
    .await;
    let list = async |request: ListSessionsRequest| {
        let page = sessions.clone().list_sessions(request).await.unwrap().into_inner();
        assert!(!page.sessions.is_empty() && page.total > 0);
        page
    };
    row(args, "list 50 sessions", async |_| {
        list(ListSessionsRequest { page_size: 50, ..Default::default() }).await;
    })
    .await;
    row(args, "list 50 sessions of a state", async |_| {
        let state = State::Failed.into();
        list(ListSessionsRequest { page_size: 50, state, ..Default::default() }).await;
    })
    .await;
    row(args, "list 50 sessions of a template", async |any| {
        let template_id = format!("t{}", any % 20);
        list(ListSessionsRequest { page_size: 50, template_id, ..Default::default() }).await;
    })
    .await;
    let mut token = String::new();
    row(args, "list 50 sessions, page after page", async |_| {
        let page_token = std::mem::take(&mut token);
        let request = ListSessionsRequest { page_size: 50, page_token, ..Default::default() };
        token = list(request).await.next_page_token;
    })
    .await;
    row(args, "list 50 executions of a session", async |any| {
        let request =
            ListExecutionsRequest { session_id: format!("s{any}"), page_size: 50, ..Default::default() };
        let page = sessions.clone().list_executions(request).await.unwrap().into_inner();
        assert_eq!(page.total, args.executions);
    })
    .await;
}
