//! `skep demo`: a swarm on three hosts of this machine, built and proved step by step. The hosts are namespaces, the
//! rest is real: engines, daemons, tunnels, packets. See [`steps`] for what is shown and [`report`] for how.

mod report;
mod requests;
mod steps;
mod wire;

use crate::lab::{EngineRoot, Host, Lab};
use anyhow::Context as _;
use report::Report;
use std::path::PathBuf;

/// Flags of `skep demo`.
#[derive(clap::Args, Debug)]
pub(super) struct DemoArgs {
    /// End after the proof instead of staying up until Ctrl-C
    #[arg(long)]
    once: bool,
    /// Print one JSON document instead of lines
    #[arg(long)]
    json: bool,
    /// Folder for the hosts' files; its path must be short [default: /tmp/skep-demo]
    #[arg(long, value_name = "DIR", default_value = "/tmp/skep-demo")]
    dir: PathBuf,
    /// Take dockerd from this root directory (made with debootstrap) instead of the machine's own
    #[arg(long, value_name = "DIR")]
    engine_root: Option<PathBuf>,
}

/// The three nodes and the client.
struct Stage {
    lab: Lab,
    nodes: Vec<Host>,
    client: Host,
}

pub(super) async fn run(args: DemoArgs) -> anyhow::Result<()> {
    anyhow::ensure!(
        rustix::process::geteuid().is_root(),
        "the demo makes network namespaces: run it as root, with `sudo skep demo` or `make demo`"
    );
    need_programs()?;
    anyhow::ensure!(
        !args.dir.exists(),
        "{} is there already: another demo runs, or one was killed: remove it with `rm -r {0}`, or choose another with --dir",
        args.dir.display()
    );
    let mut report = Report::new(args.json);
    let root = args.engine_root.clone().map_or(EngineRoot::Machine, EngineRoot::Directory);

    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut stage = None;
    let outcome = tokio::select! {
        outcome = perform(&args, &root, &mut report, &mut stage) => outcome,
        _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted")),
        _ = terminate.recv() => Err(anyhow::anyhow!("terminated")),
    };
    if outcome.is_err()
        && let Some(stage) = &stage
    {
        for node in &stage.nodes {
            eprintln!("--- log of {}\n{}", node.name(), node.log_tail());
        }
    }
    report.finish(outcome.as_ref().err());
    if outcome.is_ok() && !args.once {
        if !args.json {
            println!("\nStays up until Ctrl-C.");
        }
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    }
    let removed = match stage {
        Some(stage) => stage.remove().await,
        None => match std::fs::remove_dir_all(&args.dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e.into()),
            _ => Ok(()),
        },
    };
    outcome.and(removed)
}

async fn perform(args: &DemoArgs, root: &EngineRoot, report: &mut Report, slot: &mut Option<Stage>) -> anyhow::Result<()> {
    report.begin("three hosts and a client on this machine");
    let lab = Lab::new(&args.dir).await?;
    let client = lab.host("client", 100).await?;
    let stage = slot.insert(Stage { lab, nodes: Vec::new(), client });
    for (name, number) in [("alpha", 1), ("beta", 2), ("gamma", 3)] {
        stage.nodes.push(stage.lab.host(name, number).await?);
    }
    wire::start(&stage.lab).await?;
    report.done("namespaces on one bridge, nothing else in common".to_owned());
    steps::all(stage, root, report).await
}

impl Stage {
    async fn remove(self) -> anyhow::Result<()> {
        for node in &self.nodes {
            // The daemon takes its own things down first: containers, networks, tunnel, namespace.
            let _ = requests::leave(node).await;
        }
        let mut stops = tokio::task::JoinSet::new();
        for host in self.nodes.into_iter().chain([self.client]) {
            stops.spawn(host.stop());
        }
        stops.join_all().await;
        self.lab.stop().await
    }
}

fn need_programs() -> anyhow::Result<()> {
    const NEEDED: [(&str, &str); 8] = [
        ("dockerd", "docker.io"),
        ("docker", "docker-cli (or docker.io)"),
        ("ip", "iproute2"),
        ("nft", "nftables"),
        ("iptables", "iptables"),
        ("unshare", "util-linux"),
        ("tar", "tar"),
        ("busybox", "busybox-static"),
    ];
    let missing: Vec<String> = NEEDED
        .iter()
        .filter(|(program, _)| which(program).is_none())
        .map(|(program, package)| format!("{program} (apt-get install {package})"))
        .collect();
    anyhow::ensure!(missing.is_empty(), "the demo needs programs that are not on this machine: {}", missing.join(", "));
    Ok(())
}

fn which(program: &str) -> Option<PathBuf> {
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .map(|dir| PathBuf::from(dir).join(program))
        .find(|path| path.exists())
}

/// This very program, for the hosts' daemons.
fn program() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("cannot find this program's own file")
}
