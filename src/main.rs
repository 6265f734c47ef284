//! The `skep` program: see `skep --help`.

fn main() -> std::process::ExitCode {
    skep::cli::main()
}
