//! The program `sandmesh-executor`; see the library.

fn main() -> std::process::ExitCode {
    sandmesh_executor::main()
}
