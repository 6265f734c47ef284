//! `skep netns CMD…`: the mesh namespace is not in /run/netns, so `ip netns` does not see it.

use super::target::DaemonTarget;
use anyhow::Context as _;
use std::os::unix::process::CommandExt as _;

/// A command to run in the mesh namespace.
#[derive(clap::Args, Debug)]
pub(super) struct NetnsArgs {
    #[command(flatten)]
    target: DaemonTarget,
    /// The command, for example `wg show` or `ip route show table all`
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

pub(super) fn run(args: &NetnsArgs) -> anyhow::Result<()> {
    crate::datapath::mesh::enter(&args.target.mesh_pin())?;
    let (program, rest) = args.command.split_first().context("no command is named")?;
    let error = std::process::Command::new(program).args(rest).exec();
    Err(error).with_context(|| format!("cannot run {program}"))
}
