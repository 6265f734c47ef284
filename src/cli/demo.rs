//! `skep demo`: builds a swarm of three hosts on this machine and checks it step by step. The hosts are namespaces; engines,
//! daemons, tunnels and packets are those of a real cluster. [`steps`] holds the steps, [`report`] prints them.

mod cluster;
mod report;
mod requests;
mod site;
mod steps;
mod wait;
mod wire;

use crate::lab::{EngineRoot, Lab};
use cluster::DemoCluster;
use ipnet::Ipv4Net;
use report::DemoReport;
use std::net::Ipv4Addr;
use std::path::PathBuf;

/// The hosts' network. It is in 10.0.0.0/8, as most offices and clouds are, and as the pool that networks of a swarm get their
/// subnets from by default.
const LAN: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 123, 0, 0), 24);

/// Flags of `skep demo`.
#[derive(clap::Args, Debug)]
pub(super) struct DemoArgs {
    /// Exit after the last step instead of running until Ctrl-C
    #[arg(long)]
    once: bool,
    /// Print one JSON document instead of a line per step
    #[arg(long)]
    json: bool,
    /// Directory for the hosts' files; its path must be short, sockets are created in it [default: /tmp/skep-demo]
    #[arg(long, value_name = "DIR", default_value = "/tmp/skep-demo")]
    dir: PathBuf,
    /// Run dockerd from this root directory (made with debootstrap) instead of the machine's own
    #[arg(long, value_name = "DIR")]
    engine_root: Option<PathBuf>,
}

pub(super) async fn run(args: DemoArgs) -> anyhow::Result<()> {
    anyhow::ensure!(
        rustix::process::geteuid().is_root(),
        "the demo makes network namespaces: run it as root, with `sudo skep demo` or `make demo`"
    );
    need_programs()?;
    anyhow::ensure!(
        !args.dir.exists(),
        "{} exists already: another demo runs, or one was killed. Remove it with `rm -r {0}`, or choose another with --dir",
        args.dir.display()
    );
    let mut report = DemoReport::new(args.json);
    let root = args.engine_root.clone().map_or(EngineRoot::Machine, EngineRoot::Directory);

    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut cluster = None;
    let outcome = tokio::select! {
        outcome = perform(&args, &root, &mut report, &mut cluster) => outcome,
        _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted")),
        _ = terminate.recv() => Err(anyhow::anyhow!("terminated")),
    };
    if outcome.is_err()
        && let Some(cluster) = &cluster
    {
        for node in &cluster.nodes {
            eprintln!("--- log of {}\n{}", node.name(), node.log_tail());
        }
    }
    report.finish(outcome.as_ref().err());
    if outcome.is_ok() && !args.once {
        if !args.json {
            println!("\nThe cluster runs until Ctrl-C.");
        }
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    }
    let removed = match cluster {
        Some(cluster) => cluster.remove().await,
        None => crate::durable::ignore_missing(std::fs::remove_dir_all(&args.dir)).map_err(Into::into),
    };
    outcome.and(removed)
}

async fn perform(
    args: &DemoArgs,
    root: &EngineRoot,
    report: &mut DemoReport,
    slot: &mut Option<DemoCluster>,
) -> anyhow::Result<()> {
    report.begin("three hosts and a client on this machine");
    let lab = Lab::on(LAN, &args.dir).await?;
    let client = lab.host("client", 100).await?;
    let cluster = slot.insert(DemoCluster { lab, nodes: Vec::new(), client });
    for (name, number) in [("alpha", 1), ("beta", 2), ("gamma", 3)] {
        cluster.nodes.push(cluster.lab.host(name, number).await?);
    }
    wire::start(cluster).await?;
    report.done("namespaces, connected by one bridge only".to_owned());
    steps::all(cluster, root, report).await
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
    anyhow::ensure!(missing.is_empty(), "the demo needs programs that are not installed: {}", missing.join(", "));
    Ok(())
}

fn which(program: &str) -> Option<PathBuf> {
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .map(|dir| PathBuf::from(dir).join(program))
        .find(|path| path.exists())
}
