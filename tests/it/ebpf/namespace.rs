//! The network namespaces that tests open sockets and run commands in: of a lab host, of a container, of the lab's bridge.

use super::super::load::namespace_of;
use super::super::swarm::kit::*;
use serde_json::Value;
use skep::datapath::netns;
use skep::lab::{Host, Lab, output};
use socket2::{Domain, Protocol, Socket, Type};
use std::fs::File;
use std::io::{self, Read as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::time::Duration;
use tokio::process::{Child, Command};

pub struct Namespace {
    /// Name of the host; a container has that of its node.
    pub name: String,
    pub path: PathBuf,
    /// The container's id; empty for others.
    pub container: String,
    fd: File,
    /// A process that keeps the namespace alive, if nothing else does.
    holder: Option<Child>,
}

impl Namespace {
    fn new(name: &str, path: PathBuf, container: &str, holder: Option<Child>) -> Self {
        let fd = File::open(&path).unwrap_or_else(|e| panic!("namespace {}: {e}", path.display()));
        Self { name: name.to_owned(), path, container: container.to_owned(), fd, holder }
    }

    pub fn at(name: &str, path: &str) -> Self {
        Self::new(name, path.into(), "", None)
    }

    pub fn of_host(host: &Host) -> Self {
        Self::new(host.name(), format!("/proc/{}/ns/net", host.pid()).into(), "", None)
    }

    /// The container of a task, named after its node.
    pub async fn of_task(swarm: &Swarm, task: &Value) -> Self {
        let id = task["Status"]["ContainerStatus"]["ContainerID"].as_str().expect("container");
        let (host, path) = namespace_of(swarm, task).await;
        Self::new(host.name(), path, id, None)
    }

    /// The lab's bridge between the hosts.
    pub async fn of_bridge(lab: &Lab) -> Self {
        let holder =
            lab.command("sleep").arg("infinity").kill_on_drop(true).spawn().expect("a process in the bridge's namespace");
        let outer = holder.id().expect("runs");
        let inner = within(5, "a process in the bridge's namespace", || async {
            let children = std::fs::read_to_string(format!("/proc/{outer}/task/{outer}/children"))?;
            children.split_whitespace().next().map(str::to_owned).ok_or_else(|| anyhow::anyhow!("none yet"))
        })
        .await;
        Self::new("bridge", format!("/proc/{inner}/ns/net").into(), "", Some(holder))
    }

    /// A new namespace, created by a process in this one, as an engine inside a container does.
    pub async fn nested(&self) -> Self {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path.display())).args(["unshare", "--net", "sleep", "infinity"]).kill_on_drop(true);
        let holder = command.spawn().expect("unshare");
        let path: PathBuf = format!("/proc/{}/ns/net", holder.id().expect("runs")).into();
        within(5, "another namespace", || async {
            let name = std::fs::read_to_string(path.with_file_name("../comm"))?;
            anyhow::ensure!(name.trim() == "sleep", "{name}");
            Ok(())
        })
        .await;
        Self::new("nested", path, "", Some(holder))
    }

    /// The process that keeps a nested namespace alive.
    pub fn holder(&self) -> u32 {
        self.holder.as_ref().and_then(Child::id).expect("a nested namespace")
    }

    /// Runs `f` inside; sockets that it opens stay in the namespace.
    pub fn inside<T>(&self, f: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        netns::briefly(self.fd.as_fd(), f)
    }

    /// Runs a command inside, words split at blanks.
    pub async fn run(&self, line: &str) -> String {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path.display())).args(line.split_whitespace());
        output(&mut command).await.unwrap_or_else(|e| panic!("in {}: {e:#}", self.name))
    }

    /// A connection, from an address that others may use at the same time.
    pub fn tcp(&self, from: Option<SocketAddr>, to: SocketAddr) -> io::Result<TcpStream> {
        self.inside(|| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
            if let Some(from) = from {
                socket.set_reuse_address(true)?;
                socket.bind(&from.into())?;
            }
            socket.connect_timeout(&to.into(), Duration::from_secs(3))?;
            socket.set_read_timeout(Some(Duration::from_secs(20)))?;
            socket.set_write_timeout(Some(Duration::from_secs(20)))?;
            Ok(socket.into())
        })
    }

    /// A socket for datagrams to one address, from an address that others may use at the same time.
    pub fn udp(&self, from: Option<SocketAddr>, to: SocketAddr) -> io::Result<UdpSocket> {
        self.inside(|| {
            let socket = Socket::new(Domain::for_address(to), Type::DGRAM, None)?;
            if let Some(from) = from {
                socket.set_reuse_address(true)?;
                socket.bind(&from.into())?;
            }
            socket.connect(&to.into())?;
            socket.set_read_timeout(Some(Duration::from_secs(2)))?;
            Ok(socket.into())
        })
    }

    /// A socket that sends IPv4 packets with the header that the caller wrote.
    pub fn raw(&self) -> Socket {
        self.inside(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255)))).expect("a raw socket (root needed)")
    }

    /// Captures every frame of every device.
    pub fn capture(&self) -> Capture {
        let all = Protocol::from(i32::from(0x0003_u16.to_be()));
        let socket = self.inside(|| Socket::new(Domain::PACKET, Type::RAW, Some(all))).expect("a capture (root needed)");
        socket.set_nonblocking(true).expect("non-blocking");
        socket.set_recv_buffer_size(8 << 20).expect("buffer");
        Capture(socket)
    }
}

pub struct Capture(Socket);

impl Capture {
    /// The frames since the last call.
    pub fn frames(&self) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        let mut buffer = vec![0; 65_536];
        while let Ok(length) = (&self.0).read(&mut buffer) {
            all.push(buffer[..length].to_vec());
        }
        all
    }
}

/// Number of frames that contain a text.
pub fn frames_with(frames: &[Vec<u8>], text: &[u8]) -> usize {
    frames.iter().filter(|frame| frame.windows(text.len()).any(|window| window == text)).count()
}
