//! `skep daemon`: settings from file, variables and flags, then the node.

use crate::settings::{EbpfMode, Settings, TunnelMode};
use anyhow::Context as _;
use std::path::PathBuf;

/// Flags of the daemon. Each is also a settings key and a variable.
#[derive(clap::Args, Debug)]
pub(super) struct DaemonArgs {
    /// Settings file [default: /etc/skep/skep.toml, which may be missing]
    #[arg(long, env = "SKEP_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// What outlives a boot: identity, keys, log, ledger [default: /var/lib/skep]
    #[arg(long, env = "SKEP_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Sockets and the pin of the mesh namespace [default: /run/skep]
    #[arg(long, env = "SKEP_RUN_DIR", value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Docker Engine [default: unix:///var/run/docker.sock]
    #[arg(long, env = "SKEP_ENGINE", value_name = "URL")]
    engine: Option<String>,
    /// Directory in which the engine discovers plugins [default: /run/docker/plugins]
    #[arg(long, env = "SKEP_PLUGIN_DIR", value_name = "DIR")]
    plugin_dir: Option<PathBuf>,
    /// Filter of the log, as `info` or `skep=debug` [default: info]
    #[arg(long, env = "SKEP_LOG", value_name = "FILTER")]
    log: Option<String>,
    /// WireGuard of the kernel or of `skep tunnel`: auto, kernel, process [default: auto]
    #[arg(long, env = "SKEP_TUNNEL", value_name = "MODE", value_parser = tunnel_mode)]
    tunnel: Option<TunnelMode>,
    /// Virtual addresses and published ports in the kernel: auto, off [default: auto]
    #[arg(long, env = "SKEP_EBPF_DATAPATH", value_name = "MODE", value_parser = ebpf_mode)]
    ebpf_datapath: Option<EbpfMode>,
    /// Old name of --ebpf-datapath
    #[arg(long, env = "SKEP_FAST_PLANE", value_name = "MODE", value_parser = ebpf_mode, hide = true, conflicts_with = "ebpf_datapath")]
    fast_plane: Option<EbpfMode>,
    /// MTU of the paths between nodes; 0 for what each route says [default: 0]
    #[arg(long, env = "SKEP_PATH_MTU", value_name = "BYTES")]
    path_mtu: Option<u32>,
}

fn tunnel_mode(text: &str) -> Result<TunnelMode, String> {
    match text {
        "auto" => Ok(TunnelMode::Auto),
        "kernel" => Ok(TunnelMode::Kernel),
        "process" => Ok(TunnelMode::Process),
        _ => Err("one of auto, kernel, process".to_owned()),
    }
}

fn ebpf_mode(text: &str) -> Result<EbpfMode, String> {
    match text {
        "auto" => Ok(EbpfMode::Auto),
        "off" => Ok(EbpfMode::Off),
        _ => Err("one of auto, off".to_owned()),
    }
}

impl DaemonArgs {
    /// The settings file, overridden by variables and flags, and validated.
    pub(super) fn settings(mut self) -> anyhow::Result<Settings> {
        let mut settings = Settings::read(self.config.as_deref())?;
        self.ebpf_datapath = self.ebpf_datapath.or(self.fast_plane);
        macro_rules! overridden {
            ($($key:ident),+) => {$( if let Some(value) = self.$key { settings.$key = value; } )+};
        }
        overridden!(data_dir, run_dir, engine, plugin_dir, log, tunnel, ebpf_datapath, path_mtu);
        settings.validate()?;
        Ok(settings)
    }
}

pub(super) fn run(args: DaemonArgs) -> anyhow::Result<()> {
    let settings = args.settings()?;
    crate::telemetry::start(&settings.log)?;
    anyhow::ensure!(rustix::process::geteuid().is_root(), "skep daemon makes network namespaces and devices: run it as root");
    crate::memory::return_what_is_freed_at_once();
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
        crate::node::run(settings, shutdown).await.context("the node daemon cannot continue")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct DaemonCommand {
        #[command(flatten)]
        args: DaemonArgs,
    }

    /// Settings of these flags over an empty settings file.
    fn settings(flags: &[&str]) -> anyhow::Result<Settings> {
        let flags = ["skep", "--config", "/dev/null"].iter().chain(flags);
        DaemonCommand::try_parse_from(flags)?.args.settings()
    }

    #[test]
    fn the_old_flag_of_the_ebpf_datapath_is_read_and_both_flags_are_refused() {
        assert_eq!(settings(&[]).unwrap().ebpf_datapath, EbpfMode::Auto);
        for flag in ["--ebpf-datapath", "--fast-plane"] {
            assert_eq!(settings(&[flag, "off"]).unwrap().ebpf_datapath, EbpfMode::Off, "{flag}");
        }
        let error = settings(&["--ebpf-datapath", "off", "--fast-plane", "off"]).unwrap_err().to_string();
        assert!(error.contains("--ebpf-datapath") && error.contains("--fast-plane"), "{error}");
    }

    /// Help that names another default than the daemon has is worse than none.
    #[test]
    fn the_help_of_every_flag_names_the_default_of_its_setting() {
        use clap::CommandFactory as _;
        let defaults = serde_json::to_value(Settings::default()).unwrap();
        for arg in DaemonCommand::command().get_arguments().filter(|arg| !arg.is_hide_set()) {
            let (key, help) = (arg.get_id().as_str(), arg.get_help().unwrap().to_string());
            let shown = help.split_once("[default: ").and_then(|(_, rest)| rest.split([']', ',']).next());
            let expected = match defaults.get(key) {
                Some(serde_json::Value::String(text)) => text.clone(),
                Some(other) => other.to_string(),
                None => crate::settings::DEFAULT_FILE.to_owned(),
            };
            assert_eq!(shown, Some(expected.as_str()), "--{key}: {help}");
        }
    }

    #[test]
    fn flags_are_validated() {
        let error = settings(&["--path-mtu", "100"]).unwrap_err().to_string();
        assert!(error.contains("path_mtu is 100"), "{error}");
    }
}
