//! `sandmesh session`: create, list, get, install, terminate, delete.

use std::time::Duration;

use std::collections::HashMap;

use clap::{Args, Subcommand, ValueEnum};
use sandmesh_proto::{
    executor::Resources,
    session::{
        CreateSessionRequest, DeleteSessionRequest, Dependency, DependencyInstallation, GetSessionRequest,
        InstallDependenciesRequest, InstalledDependency, ListSessionsRequest, Session,
        TerminateSessionRequest, dependency_installation::State as InstallState, session::State,
    },
};
use serde::Serialize;
use tokio::time::sleep;

use super::{
    Context, Format, args,
    client::timed,
    failure::Failure,
    output,
    pages::{self, Found},
    table::{Table, plain},
    view::SessionView,
};

/// What to do with sessions.
#[derive(Debug, Subcommand)]
pub enum SessionCommand {
    /// Create a session and print its id
    Create(CreateArgs),
    /// List sessions, newest first
    List(ListArgs),
    /// Show a session
    Get {
        /// The session
        #[arg(value_name = "ID")]
        session: String,
    },
    /// Install packages into a session that runs, and wait for the end of that
    Install {
        /// The session
        #[arg(value_name = "ID")]
        session: String,
        /// Packages, for example click, click==8.1 or left-pad@^1.3
        #[arg(required = true, value_name = "PACKAGE", value_parser = args::dependency)]
        packages: Vec<Dependency>,
        /// The index to install from [default: the session's]
        #[arg(long, value_name = "URL")]
        index_url: Option<String>,
    },
    /// End sessions; their records stay
    Terminate {
        /// The sessions
        #[arg(required = true, value_name = "ID")]
        sessions: Vec<String>,
    },
    /// End sessions and forget them, with their executions and files
    Delete {
        /// The sessions
        #[arg(required = true, value_name = "ID")]
        sessions: Vec<String>,
    },
}

/// The session to create; what is left out comes from the template.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// The template
    #[arg(short, long, value_name = "ID")]
    pub template: String,
    /// The id of the session [default: one is made]
    #[arg(long)]
    pub id: Option<String>,
    /// Lifetime, for example 300s or 1h
    #[arg(long, value_name = "DURATION", value_parser = args::seconds)]
    pub timeout: Option<u32>,
    /// End after this long without use
    #[arg(long, value_name = "DURATION", value_parser = args::seconds)]
    pub idle_timeout: Option<u32>,
    /// Cores, for example 1, 0.5 or 500m
    #[arg(long, value_name = "CORES", value_parser = args::cpu_millis)]
    pub cpu: Option<u32>,
    /// Memory, for example 512Mi
    #[arg(long, value_name = "SIZE", value_parser = args::bytes)]
    pub memory: Option<u64>,
    /// Size of the workspace, for example 1Gi
    #[arg(long, value_name = "SIZE", value_parser = args::bytes)]
    pub disk: Option<u64>,
    /// Environment variable of every execution; may be repeated
    #[arg(short, long = "env", value_name = "KEY=VALUE", value_parser = args::pair)]
    pub env: Vec<(String, String)>,
    /// Label; may be repeated
    #[arg(short, long = "label", value_name = "KEY=VALUE", value_parser = args::pair)]
    pub labels: Vec<(String, String)>,
    /// Package to install, for example click==8.1 or left-pad@^1.3; may be repeated
    #[arg(long = "dep", value_name = "PACKAGE", value_parser = args::dependency)]
    pub dependencies: Vec<Dependency>,
    /// Keep the session when its packages cannot be installed
    #[arg(long)]
    pub keep_on_dependency_error: bool,
}

/// Which sessions to list.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only sessions in this state
    #[arg(long, value_enum)]
    pub status: Option<StatusArg>,
    /// Only sessions of this template
    #[arg(short, long, value_name = "ID")]
    pub template: Option<String>,
    /// Only sessions with this label; may be repeated
    #[arg(short, long = "label", value_name = "KEY=VALUE", value_parser = args::pair)]
    pub labels: Vec<(String, String)>,
    /// At most this many
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub limit: u32,
}

/// A state of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StatusArg {
    /// Its sandbox is being made
    Creating,
    /// It takes executions
    Running,
    /// It ended after its work was done
    Completed,
    /// Its sandbox could not be made, or died
    Failed,
    /// It reached the end of its lifetime
    Timeout,
    /// Somebody ended it
    Terminated,
}

impl From<StatusArg> for State {
    fn from(status: StatusArg) -> Self {
        match status {
            StatusArg::Creating => Self::Creating,
            StatusArg::Running => Self::Running,
            StatusArg::Completed => Self::Completed,
            StatusArg::Failed => Self::Failed,
            StatusArg::Timeout => Self::Timeout,
            StatusArg::Terminated => Self::Terminated,
        }
    }
}

pub(super) async fn run(command: SessionCommand, context: &Context) -> Result<(), Failure> {
    match command {
        SessionCommand::Create(args) => create(args, context).await,
        SessionCommand::List(args) => list(args, context).await,
        SessionCommand::Get { session } => get(session, context).await,
        SessionCommand::Install { session, packages, index_url } => {
            install(session, packages, index_url, context).await
        }
        SessionCommand::Terminate { sessions } => terminate(sessions, context).await,
        SessionCommand::Delete { sessions } => delete(sessions, context).await,
    }
}

async fn create(args: CreateArgs, context: &Context) -> Result<(), Failure> {
    let request = CreateSessionRequest {
        session_id: args.id.unwrap_or_default(),
        template_id: args.template,
        resources: Some(Resources {
            cpu_millis: args.cpu.unwrap_or_default(),
            memory_bytes: args.memory.unwrap_or_default(),
            disk_bytes: args.disk.unwrap_or_default(),
            max_processes: 0,
        }),
        timeout_seconds: args.timeout,
        idle_timeout_seconds: args.idle_timeout,
        env: args.env.into_iter().collect(),
        labels: args.labels.into_iter().collect(),
        dependencies: args.dependencies,
        fail_on_dependency_error: args.keep_on_dependency_error.then_some(false),
        ..CreateSessionRequest::default()
    };
    let session = context.client.sessions().create_session(timed(request)).await?.into_inner().session;
    let session = session.unwrap_or_default();
    let (id, failed, reason) =
        (session.session_id.clone(), session.state() == State::Failed, session.status_reason.clone());
    match context.format {
        Format::Json => output::json(&SessionView::from(session))?,
        Format::Text => output::text(&format!("{id}\n"))?,
    }
    if failed {
        return Err(Failure::broken(format!("session `{id}` is failed: {reason}")));
    }
    Ok(())
}

/// How often a session is looked at while packages are being installed into it.
const INSTALL_POLL: Duration = Duration::from_millis(250);

async fn install(
    session_id: String,
    packages: Vec<Dependency>,
    index_url: Option<String>,
    context: &Context,
) -> Result<(), Failure> {
    let request = InstallDependenciesRequest {
        session_id: session_id.clone(),
        dependencies: packages,
        python_package_index_url: index_url.unwrap_or_default(),
    };
    let answer = context.client.dependencies().install_dependencies(timed(request)).await?;
    let mut session = answer.into_inner().session.unwrap_or_default();
    let installing = |session: &Session| {
        let state = session.dependency_installation.as_ref().map(DependencyInstallation::state);
        matches!(state, Some(InstallState::Pending | InstallState::Installing))
    };
    while installing(&session) {
        sleep(INSTALL_POLL).await;
        let request = timed(GetSessionRequest { session_id: session_id.clone() });
        session =
            context.client.sessions().get_session(request).await?.into_inner().session.unwrap_or_default();
    }
    let installation = session.dependency_installation.clone().unwrap_or_default();
    match context.format {
        Format::Json => output::json(&SessionView::from(session))?,
        Format::Text => {
            let line = |one: &InstalledDependency| format!("{} {}\n", plain(&one.name), plain(&one.version));
            output::text(&installation.installed.iter().map(line).collect::<String>())?;
        }
    }
    match installation.state() {
        InstallState::Failed => Err(Failure::broken(format!("not installed: {}", installation.error))),
        _ => Ok(()),
    }
}

async fn list(args: ListArgs, context: &Context) -> Result<(), Failure> {
    let state = args.status.map_or(State::Unspecified, State::from);
    let template_id = args.template.unwrap_or_default();
    let labels: HashMap<String, String> = args.labels.into_iter().collect();
    let found = pages::collect(args.limit, async |page_size, page_token| {
        let request = ListSessionsRequest {
            state: state.into(),
            template_id: template_id.clone(),
            page_size,
            page_token,
            offset: 0,
            labels: labels.clone(),
        };
        let page = context.client.sessions().list_sessions(timed(request)).await?.into_inner();
        Ok(Found { items: page.sessions, next_page_token: page.next_page_token, total: page.total })
    })
    .await?;
    let page = pages::view(found, args.limit, SessionView::from);
    match context.format {
        Format::Json => output::json(&page),
        Format::Text => {
            let rows = page.items.iter().map(row);
            output::text(
                &Table::new(["ID", "TEMPLATE", "STATUS", "RUNTIME", "CREATED", "EXPIRES"], rows).to_string(),
            )?;
            pages::note(&page);
            Ok(())
        }
    }
}

fn row(session: &SessionView) -> [String; 6] {
    let or_dash = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
    [
        session.id.clone(),
        session.template_id.clone(),
        session.status.clone(),
        or_dash(&session.runtime_type),
        or_dash(&session.created_at),
        or_dash(&session.expires_at),
    ]
}

async fn get(session_id: String, context: &Context) -> Result<(), Failure> {
    let answer = context.client.sessions().get_session(timed(GetSessionRequest { session_id })).await?;
    let view = SessionView::from(answer.into_inner().session.unwrap_or_default());
    match context.format {
        Format::Json => output::json(&view),
        Format::Text => output::text(&view.fields().to_string()),
    }
}

async fn terminate(sessions: Vec<String>, context: &Context) -> Result<(), Failure> {
    each(sessions, context, "terminated", async |session_id| {
        let request = timed(TerminateSessionRequest { session_id });
        let session = context.client.sessions().terminate_session(request).await?.into_inner().session;
        Ok(SessionView::from(session.unwrap_or_default()))
    })
    .await
}

/// A session that is forgotten.
#[derive(Debug, Serialize)]
struct Deleted {
    id: String,
    deleted: bool,
}

async fn delete(sessions: Vec<String>, context: &Context) -> Result<(), Failure> {
    each(sessions, context, "deleted", async |session_id| {
        let request = timed(DeleteSessionRequest { session_id: session_id.clone() });
        context.client.sessions().delete_session(request).await?;
        Ok(Deleted { id: session_id, deleted: true })
    })
    .await
}

/// Does something to each of the sessions, also after one that failed, and reports the first failure.
async fn each<T: Serialize>(
    sessions: Vec<String>,
    context: &Context,
    done: &str,
    act: impl AsyncFn(String) -> Result<T, Failure>,
) -> Result<(), Failure> {
    let mut answers = Vec::new();
    let mut failures = Vec::new();
    for session in sessions {
        match act(session.clone()).await {
            Ok(answer) => {
                answers.push(answer);
                if context.format == Format::Text {
                    output::text(&format!("{} {done}\n", plain(&session)))?;
                }
            }
            Err(failure) => failures.push(failure),
        }
    }
    if context.format == Format::Json {
        output::json(&answers)?;
    }
    Failure::all(failures)
}
