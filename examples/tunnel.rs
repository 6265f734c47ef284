//! `skep tunnel` alone, until `main.rs` has it.

use clap::Parser;

#[derive(Parser)]
enum Program {
    /// The tunnel process.
    Tunnel(skep::datapath::tunnel::TunnelArgs),
}

fn main() -> anyhow::Result<()> {
    let Program::Tunnel(args) = Program::parse();
    skep::datapath::tunnel::process_main(args)
}
