//! A Docker Engine of a host's own: the machine's dockerd, or one in a root directory of another distribution.

use super::Host;
use std::path::PathBuf;
use std::process::Stdio;
use tokio::process::Child;

/// Where dockerd comes from.
#[derive(Clone, Debug, Default)]
pub enum EngineRoot {
    /// The machine's own.
    #[default]
    Machine,
    /// A root directory (from debootstrap) that is entered by `pivot_root`.
    Directory(PathBuf),
}

/// Enters the root directory with the parts of the machine that a host needs, then starts dockerd.
const ENTER: &str = r#"
root=$1; shift
mount --bind "$root" "$root" && cd "$root" || exit 1
for part in proc sys dev tmp run work root home; do [ -d "/$part" ] && mkdir -p "$root/$part" && mount --rbind "/$part" "$root/$part"; done
mkdir -p old && pivot_root . old && cd / || exit 1
exec "$@"
"#;

pub(super) fn start(host: &Host, root: &EngineRoot) -> anyhow::Result<Child> {
    let dir = host.dir();
    std::fs::create_dir_all(dir)?;
    // The machine's own daemon.json has keys that clash with the flags, and an empty file is refused.
    let config = dir.join("engine.json");
    if !config.exists() {
        std::fs::write(&config, "{}")?;
    }
    let log = std::fs::OpenOptions::new().create(true).append(true).open(dir.join("engine.log"))?;
    let mut command = match root {
        EngineRoot::Machine => host.command("dockerd"),
        EngineRoot::Directory(path) => {
            let mut command = host.command("unshare");
            command.args(["--mount", "--propagation", "unchanged", "sh", "-c", ENTER, "sh"]).arg(path).arg("dockerd");
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
        .arg(format!("unix://{}", host.engine_socket().display()))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    Ok(command.spawn()?)
}
