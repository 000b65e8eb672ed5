//! The `chatmesh` executable: command line to library to exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    chatmesh::cli::main(std::env::args_os())
}
