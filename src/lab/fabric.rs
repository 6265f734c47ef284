//! The network between hosts: a bridge in its own network namespace, where the machine's firewall does not apply.

use super::command::output;
use super::holder::Holder;
use super::host::Host;
use anyhow::Context as _;
use ipnet::Ipv4Net;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use tokio::process::Command;

/// A set of hosts on one bridge. Dropping it ends the bridge's namespace; files stay, see [`Lab::stop`].
pub struct Lab {
    dir: PathBuf,
    fabric: Holder,
    lan: Ipv4Net,
}

/// The hosts' network unless another one is asked for: 192.0.2.0/24.
const DOCUMENTATION: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(192, 0, 2, 0), 24);

impl Lab {
    /// A lab whose hosts are in 192.0.2.0/24; see [`Lab::on`].
    ///
    /// # Errors
    /// Not root, or a program is missing.
    pub async fn new(dir: impl Into<PathBuf>) -> anyhow::Result<Self> {
        Self::on(DOCUMENTATION, dir).await
    }

    /// Creates the bridge of hosts in the /24 `lan`, and `dir` if it is missing. The path must be short: sockets are created
    /// below it.
    ///
    /// # Errors
    /// Not root, or a program is missing.
    pub async fn on(lan: Ipv4Net, dir: impl Into<PathBuf>) -> anyhow::Result<Self> {
        let dir = dir.into();
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let fabric = Holder::start("fabric").await?;
        output(fabric.command("ip").args(["link", "add", "br0", "type", "bridge"])).await?;
        output(fabric.command("ip").args(["link", "set", "br0", "up"])).await?;
        Ok(Self { dir, fabric, lan })
    }

    /// Adds a host with the `number`th address of the network and no default route.
    ///
    /// # Errors
    /// Namespaces or links cannot be created.
    pub async fn host(&self, name: &str, number: u8) -> anyhow::Result<Host> {
        let holder = Holder::start(name).await?;
        let port = format!("p{number}");
        let address = Ipv4Addr::from(u32::from(self.lan.network()) + u32::from(number));
        self.connect(&port, &holder, address).await?;
        let dir = self.dir.join(name);
        std::fs::create_dir_all(&dir)?;
        Ok(Host::new(name, address, port, dir, holder))
    }

    async fn connect(&self, port: &str, holder: &Holder, address: Ipv4Addr) -> anyhow::Result<()> {
        let (fabric, inside) = (self.fabric.pid.to_string(), holder.pid.to_string());
        let pair = ["link", "add", port, "netns", &fabric, "type", "veth", "peer", "name", "eth0", "netns", &inside];
        output(Command::new("ip").args(pair)).await?;
        output(self.fabric.command("ip").args(["link", "set", port, "master", "br0", "up"])).await?;
        output(holder.command("ip").args(["addr", "add", &format!("{address}/24"), "dev", "eth0"])).await?;
        output(holder.command("ip").args(["link", "set", "eth0", "up"])).await.map(drop)
    }

    /// Replaces the veth pair between a host and the bridge: the host's network device is another one with the same address.
    ///
    /// # Errors
    /// Links cannot be removed or created.
    pub async fn rewire(&self, host: &Host) -> anyhow::Result<()> {
        output(self.command("ip").args(["link", "del", host.port()])).await?;
        self.connect(host.port(), host.holder(), host.address()).await
    }

    /// A command in the bridge's namespace, for captures and packet filters.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.fabric.command(program)
    }

    /// Disconnects a host: sets its link to the bridge down.
    ///
    /// # Errors
    /// The link does not exist.
    pub async fn cut(&self, host: &Host) -> anyhow::Result<()> {
        output(self.command("ip").args(["link", "set", host.port(), "down"])).await.map(drop)
    }

    /// Connects a disconnected host again.
    ///
    /// # Errors
    /// The link does not exist.
    pub async fn heal(&self, host: &Host) -> anyhow::Result<()> {
        output(self.command("ip").args(["link", "set", host.port(), "up"])).await.map(drop)
    }

    /// Sets the MTU of a host's network device and of its port at the bridge, in bytes.
    ///
    /// # Errors
    /// The links do not exist.
    pub async fn set_mtu(&self, host: &Host, mtu: u32) -> anyhow::Result<()> {
        let mtu = mtu.to_string();
        output(self.command("ip").args(["link", "set", host.port(), "mtu", &mtu])).await?;
        output(host.holder().command("ip").args(["link", "set", "eth0", "mtu", &mtu])).await.map(drop)
    }

    /// Directory of the hosts' files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Removes the bridge and all files. Stop the hosts first.
    ///
    /// # Errors
    /// Files cannot be removed.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.fabric.stop().await;
        std::fs::remove_dir_all(&self.dir).with_context(|| format!("cannot remove {}", self.dir.display()))
    }
}
