//! The `skep` program: see `skep --help`.

/// Each request of `skep http serve` allocates some dozens of times: with the C library's allocator it takes a fifth more time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    skep::cli::main()
}
