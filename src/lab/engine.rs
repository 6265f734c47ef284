//! A host's Docker Engine: the machine's dockerd, or that of another distribution in a root directory.

use super::holder::Holder;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::process::Child;

/// The dockerd that a host runs.
#[derive(Clone, Debug, Default)]
pub enum EngineRoot {
    /// The machine's.
    #[default]
    Machine,
    /// That of a root directory (from debootstrap), entered by `pivot_root`.
    Directory(PathBuf),
}

/// Makes the directory of the host's files a mount that is shared with the engine's mount namespace: what skep mounts below it
/// later, as secrets in memory, is seen there too.
const SHARE: &str = r#"
dir=$1; shift
mountpoint -q "$dir" || { mount --rbind "$dir" "$dir" && mount --make-shared "$dir"; } || exit 1
exec unshare --mount --propagation unchanged "$@"
"#;

/// Enters the root directory, with the machine's directories that a host shares mounted in it, then starts dockerd.
const ENTER: &str = r#"
root=$1; shift
mount --bind "$root" "$root" && cd "$root" || exit 1
for part in proc sys dev tmp run work root home; do [ -d "/$part" ] && mkdir -p "$root/$part" && mount --rbind "/$part" "$root/$part"; done
mkdir -p old && pivot_root . old && cd / || exit 1
exec "$@"
"#;

/// Starts dockerd in the holder's namespaces, with its files in `dir` and its API at `socket`.
pub(super) fn start(holder: &Holder, dir: &Path, socket: &Path, root: &EngineRoot) -> anyhow::Result<Child> {
    std::fs::create_dir_all(dir)?;
    // dockerd refuses keys of the machine's daemon.json that are also flags, and an empty file.
    let config = dir.join("engine.json");
    if !config.exists() {
        std::fs::write(&config, "{}")?;
    }
    let log = std::fs::OpenOptions::new().create(true).append(true).open(dir.join("engine.log"))?;
    let mut command = match root {
        EngineRoot::Machine => holder.command("dockerd"),
        EngineRoot::Directory(path) => {
            let mut command = holder.command("sh");
            command.args(["-c", SHARE, "sh"]).arg(dir).args(["sh", "-c", ENTER, "sh"]).arg(path).arg("dockerd");
            command
        }
    };
    command
        .arg("--config-file")
        .arg(&config)
        .arg("--data-root")
        .arg(dir.join("engine"))
        .args(["--exec-root", "/run/engine", "--pidfile", "/run/engine.pid"])
        .arg("--host")
        .arg(format!("unix://{}", socket.display()))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    Ok(command.spawn()?)
}
