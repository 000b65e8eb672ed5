//! The `chatmesh` executable. It chooses the allocator and calls the command line of the library.

use std::process::ExitCode;

/// The allocator of the process. Allocating and freeing short strings is a large part of the cost
/// of a message: with the C library's allocator it took a fifth of a worker's time.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    chatmesh::cli::main(std::env::args_os())
}
