//! The command line: the verbs that Docker's CLI has no word for. Everything else is `docker -H unix://<run-dir>/docker.sock …`.

mod daemon;
mod demo;
mod netns;
mod status;
mod swarm;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// A swarm of Docker hosts: WireGuard overlay, routing mesh, DNS and Raft beside an unmodified Docker Engine.
///
/// The swarm itself is driven with the stock docker CLI against skep's socket:
///   docker -H unix:///run/skep/docker.sock swarm init
///   docker -H unix:///run/skep/docker.sock service create --name web --publish 8080:80 nginx
#[derive(Parser)]
#[command(name = "skep", version, verbatim_doc_comment)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run the node daemon (started by systemd)
    Daemon(daemon::DaemonArgs),
    /// Run the WireGuard tunnel process (started by the daemon where the kernel has no WireGuard)
    Tunnel(crate::datapath::tunnel::TunnelArgs),
    /// Show it all on this machine: three hosts, a service, a port on every node, names, a cut
    Demo(demo::DemoArgs),
    /// Show nodes, paths, planes and ports as this node sees them
    Status(status::StatusArgs),
    /// Run a command in the mesh namespace, as `skep netns wg show`
    Netns(netns::NetnsArgs),
    /// Start a swarm on this node (short for `docker swarm init`)
    Init(swarm::InitArgs),
    /// Join a swarm (short for `docker swarm join`)
    Join(swarm::JoinArgs),
    /// Leave the swarm and take everything of skep's down (short for `docker swarm leave`)
    Leave(swarm::LeaveArgs),
}

/// Reads the command line and does what it says. Exit codes: 0 done, 1 failed, 2 usage.
pub fn main() -> ExitCode {
    let done = match Cli::parse().verb {
        Verb::Daemon(args) => daemon::run(args),
        Verb::Tunnel(args) => crate::datapath::tunnel::process_main(args),
        Verb::Demo(args) => blocking(demo::run(args)),
        Verb::Status(args) => blocking(status::run(args)),
        Verb::Netns(args) => netns::run(&args),
        Verb::Init(args) => blocking(swarm::init(args)),
        Verb::Join(args) => blocking(swarm::join(args)),
        Verb::Leave(args) => blocking(swarm::leave(args)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("skep: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// One thread is enough for a client, and the thread that starts processes must live as long as they do.
fn blocking(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

/// Where a daemon's sockets are.
#[derive(clap::Args, Clone, Debug)]
struct Target {
    /// Run directory of the daemon to talk to
    #[arg(long, env = "SKEP_RUN_DIR", default_value = "/run/skep", value_name = "DIR")]
    run_dir: std::path::PathBuf,
}

impl Target {
    fn docker(&self) -> crate::http::UnixClient {
        crate::http::UnixClient::new(self.run_dir.join("docker.sock"))
    }
    fn admin(&self) -> crate::http::UnixClient {
        crate::http::UnixClient::new(self.run_dir.join("admin.sock"))
    }
}
