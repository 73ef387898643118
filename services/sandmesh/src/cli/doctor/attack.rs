//! `sandmesh doctor --attack`: the suite against a deployment, and its table.

use std::path::PathBuf;

use serde::Serialize;
use tokio::select;

use super::{
    super::{Format, Globals, failure::Failure, interrupts::Interrupts, output, table::Table},
    DoctorArgs, UNWELL, machine,
};
use crate::attack::{self, CASES, Case, Local, OwnServer, Row, Target, Verdict};

/// The table as a document.
#[derive(Debug, Serialize)]
struct Document {
    ok: bool,
    rows: Vec<Row>,
}

pub(super) async fn run(args: DoctorArgs, globals: &Globals) -> Result<u8, Failure> {
    let cases: Vec<&Case> =
        CASES.iter().filter(|case| args.cases.is_empty() || args.cases.contains(&case.number)).collect();
    if let Some(unknown) = args.cases.iter().find(|number| !CASES.iter().any(|case| case.number == **number))
    {
        return Err(Failure::usage(format!("there is no case {unknown}; they are 1 to 45")));
    }
    let mut interrupts = Interrupts::listen()?;
    let work = async {
        if args.own_server {
            let settings = machine::settings(&args)?;
            let program = own_program()?;
            let server = OwnServer::start(&program, &args.template, &settings.agent).await.map_err(broken)?;
            return rows(&cases, &server.target).await;
        }
        rows(&cases, &target(&args, globals).await?).await
    };
    let rows = select! {
        rows = work => rows?,
        () = interrupts.recv() => return Err(Failure::Interrupted),
    };
    let failed = rows.iter().any(|row| row.verdict.is_failure());
    match globals.output {
        Format::Json => output::json(&Document { ok: !failed, rows })?,
        Format::Text => output::text(&text(&rows))?,
    }
    Ok(if failed { UNWELL } else { 0 })
}

#[expect(clippy::needless_pass_by_value, reason = "the signature that map_err wants")]
fn broken(error: anyhow::Error) -> Failure {
    Failure::broken(format!("{error:#}"))
}

fn own_program() -> Result<PathBuf, Failure> {
    std::env::current_exe()
        .map_err(|error| Failure::broken(format!("cannot find the running program: {error}")))
}

/// One case after the other: each measures what the machine does, and would disturb the others.
async fn rows(cases: &[&Case], target: &Target) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    for (n, case) in cases.iter().enumerate() {
        output::note(&format!("[{}/{}] {} {}", n + 1, cases.len(), case.number, case.name));
        let row = attack::run(case, target).await.map_err(broken)?;
        if row.verdict.is_failure() {
            output::note(&format!("       {}: {}", row.verdict, super::super::table::plain(&row.got)));
        }
        rows.push(row);
    }
    Ok(rows)
}

/// The deployment at `--url`, with what of it is on this machine.
async fn target(args: &DoctorArgs, globals: &Globals) -> Result<Target, Failure> {
    let data_dir = machine::settings(args)?.mesh.data_dir;
    let shown = data_dir.display().to_string();
    let local = Local { data_dir, pids: Vec::new(), logs: Vec::new(), secrets: Vec::new() };
    let mut target = Target {
        url: globals.url.clone(),
        api_key: globals.api_key.clone(),
        template: args.template.clone(),
        local: Some(local),
        program: Some(own_program()?),
    };
    if !attack::is_local(&target).await.map_err(broken)? {
        if args.data_dir.is_some() {
            let message = format!("sandboxes of {} are not in `{shown}`, or it cannot be read", globals.url);
            return Err(Failure::usage(message));
        }
        output::note(&format!(
            "{}: its sandboxes are not in `{shown}`; what only its host sees is not looked at",
            globals.url
        ));
        target.local = None;
    }
    Ok(target)
}

/// The table and the sum.
fn text(rows: &[Row]) -> String {
    const WIDEST: usize = 110;
    let short = |text: &str| match text.char_indices().nth(WIDEST) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    };
    let cells = |row: &Row| {
        let number = format!("{:>2}", row.number);
        [
            number,
            row.case.into(),
            row.runtime.clone(),
            row.expected.into(),
            row.verdict.to_string(),
            short(&row.got),
        ]
    };
    let table = Table::new(["NR", "CASE", "RUNTIME", "EXPECTED", "VERDICT", "GOT"], rows.iter().map(cells));
    let count = |verdict| rows.iter().filter(|row| row.verdict == verdict).count();
    let failed = rows.iter().filter(|row| row.verdict.is_failure()).count();
    format!("{table}\n{} held, {failed} failed, {} not run\n", count(Verdict::Held), count(Verdict::NotRun))
}
