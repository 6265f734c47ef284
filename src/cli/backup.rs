//! `skep backup` and `skep restore`: a manager's state and keys in one encrypted file.

use super::target::DaemonTarget;
use crate::model::Secret;
use crate::node::restore_backup;
use crate::trust::{KeyCost, open_file, seal_file};
use anyhow::Context as _;
use serde_json::{Value, json};
use std::io::{IsTerminal as _, Read as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// Bytes of the shortest passphrase that a backup is encrypted with.
const SHORTEST: usize = 8;

/// Writes a backup of the cluster to a file, encrypted with a passphrase.
///
/// Run it on any manager, while that runs: the file has the cluster's state of one moment, its CA, and this node's keys. The passphrase
/// is the first line of --passphrase-file, or of standard input.
///
/// Examples:
///   skep backup swarm.skep --passphrase-file /root/passphrase
///   skep backup swarm.skep < /root/passphrase
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub(super) struct BackupArgs {
    #[command(flatten)]
    target: DaemonTarget,
    /// The file to write; it must not exist
    file: PathBuf,
    /// File with the passphrase [default: standard input]
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// Makes the data directory of a manager from a backup.
///
/// Run it while no daemon runs on the directory, then start the daemon: this node is the only manager of the cluster as it was at the time
/// of the backup. What was made later is gone. The other nodes follow it; other managers become workers. Nodes whose root CA was replaced
/// after the backup (`docker swarm ca --rotate`) do not trust it: run `skep leave --force` there, then join again.
///
/// Examples:
///   skep restore swarm.skep --passphrase-file /root/passphrase
///   skep restore swarm.skep --advertise-addr 192.168.1.7 < /root/passphrase
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub(super) struct RestoreArgs {
    /// The backup
    file: PathBuf,
    /// File with the passphrase [default: standard input]
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Data directory of the daemon
    #[arg(long, value_name = "DIR", default_value = "/var/lib/skep")]
    data_dir: PathBuf,
    /// Address at which other nodes reach this one [default: that of the backup]
    #[arg(long, value_name = "IP")]
    advertise_addr: Option<IpAddr>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

pub(super) async fn backup(args: BackupArgs) -> anyhow::Result<()> {
    let path = args.file.display();
    anyhow::ensure!(!args.file.exists(), "{path} exists: choose another name, or remove it");
    let passphrase = passphrase(args.passphrase_file.as_deref())?;
    anyhow::ensure!(
        passphrase.expose().len() >= SHORTEST,
        "the passphrase is shorter than {SHORTEST} bytes: all keys of the cluster are behind it"
    );
    let written: Value = args.target.admin().request("POST", "/backup", None).await?.json()?;
    let plain = PathBuf::from(written["path"].as_str().context("the daemon names no file")?);
    let content = std::fs::read(&plain).with_context(|| format!("cannot read {} (are you root?)", plain.display()));
    // Whether it could be read or not.
    let removed = std::fs::remove_file(&plain).with_context(|| format!("cannot remove {}", plain.display()));
    let content = Secret::new(content?);
    removed?;
    let sealed = seal_file(&passphrase, content.expose(), KeyCost::DEFAULT, &mut rand::rng())?;
    crate::durable::replace(&std::path::absolute(&args.file)?, &sealed).with_context(|| format!("cannot write {path}"))?;
    let warning = written["warning"].as_str();
    if args.json {
        println!("{}", json!({ "file": args.file, "bytes": sealed.len(), "warning": warning }));
    } else {
        if let Some(warning) = warning {
            eprintln!("Warning: {warning}");
        }
        println!("The cluster's state and this manager's keys are in {path} ({} bytes), encrypted.", sealed.len());
        println!("Restore it with `skep restore {path}` on a host without a swarm.");
    }
    Ok(())
}

pub(super) fn restore(args: &RestoreArgs) -> anyhow::Result<()> {
    let path = args.file.display();
    let file = std::fs::read(&args.file).with_context(|| format!("cannot read {path}"))?;
    let passphrase = passphrase(args.passphrase_file.as_deref())?;
    let content = Secret::new(open_file(&passphrase, &file).with_context(|| format!("{path} was not restored"))?);
    let restored = restore_backup(&args.data_dir, content.expose(), args.advertise_addr)?;
    let made = restored.made.to_rfc3339();
    if args.json {
        let (node, incarnation) = (&restored.node, restored.incarnation);
        println!("{}", json!({ "node": node, "made": made, "incarnation": incarnation, "services": restored.services }));
    } else {
        println!("Node {} and the cluster of {made} with {} services are restored.", restored.node, restored.services);
        println!("Start the daemon: this node is the only manager; add managers with `docker node promote NODE`.");
    }
    Ok(())
}

/// The first line of a file or of standard input.
fn passphrase(file: Option<&Path>) -> anyhow::Result<Secret<String>> {
    let text = if let Some(file) = file {
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?
    } else {
        let input = std::io::stdin();
        anyhow::ensure!(
            !input.is_terminal(),
            "give the passphrase in a file (--passphrase-file FILE) or on standard input: it is not read from a terminal, which would show it"
        );
        let mut text = String::new();
        input.lock().take(1 << 16).read_to_string(&mut text).context("the passphrase cannot be read")?;
        text
    };
    let text = Secret::new(text);
    let line = text.expose().lines().next().unwrap_or_default();
    anyhow::ensure!(!line.is_empty(), "the passphrase is empty");
    Ok(Secret::new(line.to_owned()))
}
