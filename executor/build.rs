//! Builds `native/` by itself into the shared objects that warm interpreters load.
//!
//! Cargo cannot make two kinds of output of one package that differ in whether there is a standard
//! library, so the compiler is called here. The results need no library: they work with any libc.

use std::{env, error::Error, path::PathBuf, process::Command};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=native");
    build("lib.rs", "libsandmesh.so")?;
    build("node.rs", "sandmesh.node")
}

fn build(source: &str, name: &str) -> Result<(), Box<dyn Error>> {
    let variable = |name: &str| env::var_os(name).ok_or_else(|| format!("{name} is not set"));
    let output = PathBuf::from(variable("OUT_DIR")?).join(name);
    let mut rustc = Command::new(variable("RUSTC")?);
    rustc.args(["--edition", "2024", "--crate-type", "cdylib", "--crate-name", "sandmesh_native"]);
    rustc.arg("--target").arg(variable("TARGET")?);
    // A shared object, whatever the executor itself is.
    rustc.args(["-C", "target-feature=-crt-static", "-C", "panic=abort", "-C", "opt-level=s"]);
    rustc.args(["-C", "strip=symbols", "-C", "link-args=-nostdlib -nostartfiles"]);
    if let Some(linker) = env::var_os("RUSTC_LINKER") {
        rustc.arg("-C").arg(format!("linker={}", linker.display()));
    }
    let source = format!("native/{source}");
    let status = rustc.arg(&source).arg("-o").arg(&output).status()?;
    if status.success() { Ok(()) } else { Err(format!("cannot compile {source}: {status}").into()) }
}
