//! Cases 26 to 29: processes that do not want to end.

use std::time::Instant;

use sandmesh_proto::{executor::Cause, session::execution::State};

use super::{interactive, prepare};
use crate::attack::{
    arena::{Arena, Wish, with_env, within},
    host::{marked, nothing_left},
    verdict::Evidence,
};

const STUBBORN: &str = include_str!("../programs/stubborn.py");

pub(super) async fn cpu_hog(arena: &Arena) -> anyhow::Result<Evidence> {
    let (session, sandbox) = prepare(arena, Wish { cpu_millis: 4000, ..Wish::default() }).await?;
    let mut evidence = Evidence::default();
    let spec = with_env(interactive(arena.python(STUBBORN)), &[("ATTACK_WAY", "spin")]);
    let mut live = arena.open(&session, spec).await?;
    live.stage("spinning").await?;
    live.go_on().await?;
    let began = Instant::now();
    let record = live.cancel().await?;
    let took = began.elapsed();
    let outcome = live.end().await?;
    let cancelled = record.state() == State::Cancelled && outcome.result.cause() == Cause::Cancelled;
    evidence.client("its end after a cancel", cancelled, outcome.ending());
    evidence.note(format!("cancelled in {} ms", took.as_millis()));
    if sandbox.is_some() {
        nothing_left(&mut evidence, &arena.mark).await;
    }
    arena.still_well(&mut evidence, &session, sandbox.as_ref()).await?;
    Ok(evidence)
}

pub(super) async fn orphans(arena: &Arena) -> anyhow::Result<Evidence> {
    let (session, sandbox) = prepare(arena, Wish::default()).await?;
    let mut evidence = Evidence::default();
    for (way, cause) in [
        ("orphans", Cause::Unspecified),
        ("orphans and a deadline", Cause::Timeout),
        ("orphans that fork on", Cause::Timeout),
        ("a name like another", Cause::Timeout),
        ("uninterruptible", Cause::Timeout),
    ] {
        let spec = within(with_env(arena.python(STUBBORN), &[("ATTACK_WAY", way)]), 2);
        let outcome = arena.run(&session, spec).await?;
        let code = (cause == Cause::Unspecified).then_some(5);
        let held = outcome.result.cause() == cause
            && outcome.result.exit_code == code
            && outcome.stdout == b"begun\n";
        evidence.client(way, held, format!("{} {}", outcome.ending(), outcome.complaint()));
        if sandbox.is_some() {
            nothing_left(&mut evidence, &arena.mark).await;
        }
    }
    arena.still_well(&mut evidence, &session, sandbox.as_ref()).await?;
    Ok(evidence)
}

pub(super) async fn zombies(arena: &Arena) -> anyhow::Result<Evidence> {
    let (session, sandbox) = prepare(arena, Wish { processes: 100, ..Wish::default() }).await?;
    let mut evidence = Evidence::default();
    let spec = with_env(interactive(arena.python(STUBBORN)), &[("ATTACK_WAY", "zombies")]);
    let mut live = arena.open(&session, spec).await?;
    live.stage("dead").await?;
    if sandbox.is_some() {
        let dead = marked(&arena.mark).iter().filter(|process| process.state.starts_with('Z')).count();
        // Its forty own children, which only it can reap; none of the four hundred orphans.
        evidence.host("zombies of forty children and 400 orphans", dead <= 40, dead.to_string());
    }
    live.go_on().await?;
    let outcome = live.end().await?;
    evidence.client("its end", outcome.result.exit_code == Some(6), outcome.ending());
    if sandbox.is_some() {
        nothing_left(&mut evidence, &arena.mark).await;
    }
    arena.still_well(&mut evidence, &session, sandbox.as_ref()).await?;
    Ok(evidence)
}

pub(super) async fn deadlines(arena: &Arena) -> anyhow::Result<Evidence> {
    let (session, sandbox) = prepare(arena, Wish::default()).await?;
    let mut evidence = Evidence::default();
    for way in ["stop self", "stop everybody", "stop by terminal", "clock tricks", "deaf"] {
        let spec = within(with_env(arena.python(STUBBORN), &[("ATTACK_WAY", way)]), 2);
        let began = Instant::now();
        let outcome = arena.run(&session, spec).await?;
        let held = outcome.result.state() == State::Timeout && outcome.stdout == b"begun\n";
        let told = format!(
            "{} after {:.1} s {}",
            outcome.ending(),
            began.elapsed().as_secs_f64(),
            outcome.complaint()
        );
        evidence.client(way, held, told);
        if sandbox.is_some() {
            nothing_left(&mut evidence, &arena.mark).await;
        }
    }
    arena.still_well(&mut evidence, &session, sandbox.as_ref()).await?;
    Ok(evidence)
}
