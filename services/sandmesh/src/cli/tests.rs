//! The command line, word by word.

use clap::{Parser, error::ErrorKind};

use super::*;

/// The program without `serve`, with its fields in sight.
#[derive(Debug, Parser)]
#[command(name = "sandmesh")]
struct Parsed {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

fn parse(words: &str) -> Result<Parsed, clap::Error> {
    Parsed::try_parse_from(std::iter::once("sandmesh").chain(words.split_whitespace()))
}

fn exec(words: &str) -> ExecArgs {
    match parse(words).unwrap().command {
        Command::Exec(args) => args,
        other => panic!("{other:?}"),
    }
}

fn run_args(words: &str) -> RunArgs {
    match parse(words).unwrap().command {
        Command::Run(args) => *args,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_command_line_is_consistent() {
    Program::command().debug_assert();
}

#[test]
fn options_of_every_command_may_stand_behind_it() {
    let program = parse("session list -o json --url http://example:1").unwrap();
    assert_eq!(program.globals.output, Format::Json);
    assert_eq!(program.globals.url, "http://example:1");
}

#[test]
fn an_api_key_is_not_shown_by_debug_or_help() {
    let program = parse("--api-key hunter2 template list").unwrap();
    assert!(!format!("{program:?}").contains("hunter2"));
}

#[test]
fn everything_behind_the_session_belongs_to_the_command() {
    for words in ["exec sess_1 -- ls -la -o json --help", "exec sess_1 ls -la -o json --help"] {
        let args = exec(words);
        assert_eq!(args.session, "sess_1");
        assert_eq!(args.command, ["ls", "-la", "-o", "json", "--help"]);
    }
}

#[test]
fn options_of_exec_stand_before_the_command() {
    let args = exec("exec --timeout 5m -e A=1 --env B= sess_1 -n -- env");
    assert_eq!(args.timeout, Some(300));
    assert_eq!(args.env, [("A".to_owned(), "1".to_owned()), ("B".to_owned(), String::new())]);
    assert!(args.no_stdin);
    assert_eq!(args.command, ["env"]);
}

#[test]
fn exec_without_a_command_is_refused() {
    assert_eq!(parse("exec sess_1").unwrap_err().kind(), ErrorKind::MissingRequiredArgument);
}

#[test]
fn run_takes_a_file_and_says_how() {
    let args = run_args(r#"run a.py --event {"a":1} --timeout 90 --keep --language js --entrypoint main"#);
    assert_eq!((args.file.as_str(), args.timeout, args.keep), ("a.py", Some(90), true));
    assert_eq!(args.event.as_deref(), Some(r#"{"a":1}"#));
    assert_eq!(args.language, Some(LanguageArg::JavaScript));
    assert_eq!(run_args("run -").file, "-");
}

#[test]
fn a_copy_has_two_ends() {
    match parse("cp -r ./dir sess_1:data/").unwrap().command {
        Command::Cp(args) => {
            assert_eq!(args.source, Place::Local("./dir".into()));
            assert!(args.recursive && matches!(args.target, Place::Remote { is_directory: true, .. }));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(parse("cp a").unwrap_err().kind(), ErrorKind::MissingRequiredArgument);
    assert_eq!(parse("cp sess_1:../a b").unwrap_err().kind(), ErrorKind::ValueValidation);
}

#[test]
fn what_excludes_each_other_is_refused() {
    for words in ["run a.py --script --entrypoint main", "run a.py --session s --template t"] {
        assert_eq!(parse(words).unwrap_err().kind(), ErrorKind::ArgumentConflict, "{words}");
    }
}

#[test]
fn wrong_values_are_refused_with_the_exit_code_for_usage() {
    for words in [
        "run a.py --timeout soon",
        "run a.py --env A",
        "run a.py --language ruby",
        "session create --template t --memory 512M",
        "session create --template t --cpu none",
        "session list --status asleep",
        "session list --limit 0",
        "session terminate",
        "-o yaml template list",
        "completions tcl",
    ] {
        assert_eq!(parse(words).unwrap_err().exit_code(), 2, "{words}");
    }
}

#[test]
fn a_session_is_created_with_what_was_said() {
    let words = "session create -t python-basic --cpu 0.5 --memory 512Mi --disk 1Gi --idle-timeout 1m -l a=b";
    match parse(words).unwrap().command {
        Command::Session(SessionCommand::Create(args)) => {
            assert_eq!((args.cpu, args.memory, args.disk), (Some(500), Some(512 << 20), Some(1 << 30)));
            assert_eq!((args.timeout, args.idle_timeout), (None, Some(60)));
            assert_eq!(args.labels, [("a".to_owned(), "b".to_owned())]);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn profiles_of_a_pool_are_read_one_by_one() {
    let words =
        "pools set t --max 2 --profile cpu=2,memory=2Gi,max=4 --profile processes=9,min=1,max=1,buffer=1";
    match parse(words).unwrap().command {
        Command::Pools(PoolsArgs { command: Some(PoolCommand::Set { profile, .. }) }) => {
            let told: Vec<_> = profile.iter().map(|one| (one.min, one.max, one.buffer)).collect();
            assert_eq!(told, [(0, 4, 0), (1, 1, 1)]);
            let limits = profile.iter().filter_map(|one| one.resources);
            let limits: Vec<_> =
                limits.map(|one| (one.cpu_millis, one.memory_bytes, one.max_processes)).collect();
            assert_eq!(limits, [(2000, 2 << 30, 0), (0, 0, 9)]);
        }
        other => panic!("{other:?}"),
    }
    for wrong in ["cpu=x,max=1", "memory=2G,max=1", "max=-1", "gpu=1,max=1", "max", ""] {
        let words = ["sandmesh", "pools", "set", "t", "--max", "1", "--profile", wrong];
        assert_eq!(Parsed::try_parse_from(words).unwrap_err().exit_code(), 2, "{wrong}");
    }
}

#[test]
fn a_completion_script_knows_the_commands() {
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        let script = String::from_utf8(completions(shell)).unwrap();
        assert!(
            ["terminate", "completions", "entrypoint"].iter().all(|word| script.contains(word)),
            "{shell}"
        );
    }
}
