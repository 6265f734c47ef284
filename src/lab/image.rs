//! The demo's image, built from the machine's static busybox, because the machine may reach no registry. It serves its host
//! name and the client address of the connection.

use super::command::output;
use super::host::Host;
use anyhow::Context as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// Name of the image.
pub const WHOAMI_IMAGE: &str = "skep/whoami:1";

const TOOLS: [&str; 13] =
    ["sh", "timeout", "httpd", "hostname", "cat", "echo", "wget", "nslookup", "sleep", "nc", "ip", "ping", "ls"];
const PAGE: &str = "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n'\necho \"$(hostname) $REMOTE_ADDR\"\n";

/// Builds the image on a host's engine. Its default command serves `HOSTNAME CLIENT-ADDRESS` at `/` on port 80.
///
/// # Errors
/// No static busybox on the machine, or the engine refuses the image.
pub async fn whoami_image(host: &Host) -> anyhow::Result<()> {
    let root = host.dir().join("image");
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|p| Path::new(p).exists());
    let busybox = busybox.context("this machine has no busybox: install it with `apt-get install busybox-static`")?;
    for dir in ["bin", "www/cgi-bin", "etc", "tmp", "proc", "sys", "dev"] {
        std::fs::create_dir_all(root.join(dir))?;
    }
    std::fs::copy(busybox, root.join("bin/busybox"))?;
    for tool in TOOLS {
        let link = root.join("bin").join(tool);
        if !link.exists() {
            std::os::unix::fs::symlink("busybox", link)?;
        }
    }
    let page = root.join("www/cgi-bin/index.cgi");
    std::fs::write(&page, PAGE)?;
    std::fs::set_permissions(&page, std::fs::Permissions::from_mode(0o755))?;
    let tar = host.dir().join("image.tar");
    output(tokio::process::Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&tar).arg(".")).await?;
    output(
        host.engine_cli()
            .args(["import", "--change", r#"CMD ["/bin/httpd","-f","-p","80","-h","/www"]"#])
            .arg(&tar)
            .arg(WHOAMI_IMAGE),
    )
    .await
    .map(drop)
}
