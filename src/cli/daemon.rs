//! `skep daemon`: settings from file, variables and flags, then the node.

use crate::settings::{EbpfMode, Settings, TunnelPlane};
use anyhow::Context as _;
use std::path::PathBuf;

/// Flags of the daemon. Each is also a settings key and a variable.
#[derive(clap::Args, Debug)]
pub(super) struct DaemonArgs {
    /// Settings file [default: /etc/skep/skep.toml, which may be missing]
    #[arg(long, env = "SKEP_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// What lives longer than a boot: identity, keys, log, ledger [default: /var/lib/skep]
    #[arg(long, env = "SKEP_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Sockets and the pin of the mesh namespace [default: /run/skep]
    #[arg(long, env = "SKEP_RUN_DIR", value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Docker Engine [default: unix:///var/run/docker.sock]
    #[arg(long, env = "SKEP_ENGINE", value_name = "URL")]
    engine: Option<String>,
    /// Where the engine looks for plugins [default: /run/docker/plugins]
    #[arg(long, env = "SKEP_PLUGIN_DIR", value_name = "DIR")]
    plugin_dir: Option<PathBuf>,
    /// Filter of the log, as `info` or `skep=debug` [default: info]
    #[arg(long, env = "SKEP_LOG", value_name = "FILTER")]
    log: Option<String>,
    /// WireGuard of the kernel or of `skep tunnel`: auto, kernel, process [default: auto]
    #[arg(long, env = "SKEP_TUNNEL", value_name = "PLANE", value_parser = plane)]
    tunnel: Option<TunnelPlane>,
    /// Virtual addresses and published ports in the kernel: auto, off [default: auto]
    #[arg(long, alias = "fast-plane", env = "SKEP_EBPF_DATAPATH", value_name = "MODE", value_parser = ebpf_datapath)]
    ebpf_datapath: Option<EbpfMode>,
    /// MTU of the path between nodes [default: 1500]
    #[arg(long, env = "SKEP_PATH_MTU", value_name = "BYTES")]
    path_mtu: Option<u32>,
}

fn plane(text: &str) -> Result<TunnelPlane, String> {
    match text {
        "auto" => Ok(TunnelPlane::Auto),
        "kernel" => Ok(TunnelPlane::Kernel),
        "process" => Ok(TunnelPlane::Process),
        _ => Err("one of auto, kernel, process".to_owned()),
    }
}

fn ebpf_datapath(text: &str) -> Result<EbpfMode, String> {
    match text {
        "auto" => Ok(EbpfMode::Auto),
        "off" => Ok(EbpfMode::Off),
        _ => Err("one of auto, off".to_owned()),
    }
}

impl DaemonArgs {
    fn settings(self) -> anyhow::Result<Settings> {
        let mut settings = Settings::read(self.config.as_deref())?;
        macro_rules! over {
            ($($key:ident),+) => {$( if let Some(value) = self.$key { settings.$key = value; } )+};
        }
        over!(data_dir, run_dir, engine, plugin_dir, log, tunnel, ebpf_datapath, path_mtu);
        Ok(settings)
    }
}

pub(super) fn run(args: DaemonArgs) -> anyhow::Result<()> {
    let settings = args.settings()?;
    crate::telemetry::start(&settings.log)?;
    anyhow::ensure!(rustix::process::geteuid().is_root(), "skep daemon makes network namespaces and devices: run it as root");
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let shutdown = tokio_util::sync::CancellationToken::new();
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let token = shutdown.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            token.cancel();
        });
        crate::node::run(settings, shutdown).await.context("the node daemon cannot go on")
    })
}
