//! The wire between hosts: a bridge in a namespace of its own, so that the machine's firewall never meets it.

use super::{Host, holder::Holder, output};
use anyhow::Context as _;
use std::path::{Path, PathBuf};
use tokio::process::Command;

/// A set of hosts on one bridge. Dropping it removes everything.
pub struct Lab {
    dir: PathBuf,
    fabric: Holder,
}

impl Lab {
    /// Makes the fabric. `dir` must be short (sockets lie below it); it is made if missing and removed by [`Lab::stop`].
    ///
    /// # Errors
    /// Not root, or a program is missing.
    pub async fn new(dir: impl Into<PathBuf>) -> anyhow::Result<Self> {
        let dir = dir.into();
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let fabric = Holder::start("fabric").await?;
        output(fabric.command("ip").args(["link", "add", "br0", "type", "bridge"])).await?;
        output(fabric.command("ip").args(["link", "set", "br0", "up"])).await?;
        Ok(Self { dir, fabric })
    }

    /// Adds a host with the address 192.0.2.`number`/24 and no default route.
    ///
    /// # Errors
    /// Namespaces or links cannot be made.
    pub async fn host(&self, name: &str, number: u8) -> anyhow::Result<Host> {
        let holder = Holder::start(name).await?;
        let port = format!("p{number}");
        let address = std::net::Ipv4Addr::new(192, 0, 2, number);
        self.wire(&port, &holder, address).await?;
        let dir = self.dir.join(name);
        std::fs::create_dir_all(&dir)?;
        Ok(Host::new(name, address, port, dir, holder))
    }

    async fn wire(&self, port: &str, holder: &Holder, address: std::net::Ipv4Addr) -> anyhow::Result<()> {
        let (fabric, inside) = (self.fabric.pid.to_string(), holder.pid.to_string());
        let pair = ["link", "add", port, "netns", &fabric, "type", "veth", "peer", "name", "eth0", "netns", &inside];
        output(Command::new("ip").args(pair)).await?;
        output(self.fabric.command("ip").args(["link", "set", port, "master", "br0", "up"])).await?;
        output(holder.command("ip").args(["addr", "add", &format!("{address}/24"), "dev", "eth0"])).await?;
        output(holder.command("ip").args(["link", "set", "eth0", "up"])).await.map(drop)
    }

    /// Takes a host's wire and its network device away, and lays a new one.
    ///
    /// # Errors
    /// Links cannot be removed or made.
    pub async fn rewire(&self, host: &Host) -> anyhow::Result<()> {
        output(self.command("ip").args(["link", "del", host.port()])).await?;
        self.wire(host.port(), host.holder(), host.address()).await
    }

    /// A command in the fabric's namespace, for captures on the wire.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.fabric.command(program)
    }

    /// Cuts a host's wire.
    ///
    /// # Errors
    /// The link is gone.
    pub async fn cut(&self, host: &Host) -> anyhow::Result<()> {
        output(self.command("ip").args(["link", "set", host.port(), "down"])).await.map(drop)
    }

    /// Mends a host's wire.
    ///
    /// # Errors
    /// The link is gone.
    pub async fn heal(&self, host: &Host) -> anyhow::Result<()> {
        output(self.command("ip").args(["link", "set", host.port(), "up"])).await.map(drop)
    }

    /// Where the hosts' files lie.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Removes the fabric and all files. Stop the hosts first.
    ///
    /// # Errors
    /// Files could not be removed.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.fabric.stop().await;
        std::fs::remove_dir_all(&self.dir).with_context(|| format!("cannot remove {}", self.dir.display()))
    }
}
