//! The tunnel with real packets: two hosts, a mesh namespace each, `skep tunnel` between them. Needs root.
#![allow(clippy::unwrap_used, reason = "tests")]

use anyhow::{Context as _, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use skep::datapath::tunnel::{self, KernelChoice, TunnelConfig};
use skep::datapath::{Tunnel, TunnelPeer, TunnelPeerState, TunnelState, TunnelStep};
use skep::lab::{Host, Lab, eventually, output};
use skep::model::WgKey;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::process::Command;

mod bad_input;
mod kernel;
mod lifetime;
mod traffic;

const SOON: Duration = Duration::from_secs(20);

/// One host with its mesh namespace and what opens tunnels on it.
struct Side {
    number: u8,
    host: Host,
    config: TunnelConfig,
    key: WgKey,
    /// Threads in the host's network namespace: where the daemon would be.
    runtime: Option<tokio::runtime::Runtime>,
}

impl Side {
    async fn new(lab: &Lab, number: u8, device: &str) -> anyhow::Result<Self> {
        let host = lab.host(&format!("h{number}"), number).await?;
        let run_dir = host.dir().to_path_buf();
        let mesh_pin = run_dir.join("mesh");
        File::create(&mesh_pin)?;
        output(Command::new("unshare").arg(format!("--net={}", mesh_pin.display())).args(["ip", "link", "set", "lo", "up"]))
            .await?;
        let private_key_file = run_dir.join("wg.key");
        let key = tunnel::generate_key(&private_key_file)?;
        let namespace = Arc::new(File::open(format!("/proc/{}/ns/net", host.pid()))?);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .on_thread_start(move || {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            })
            .build()?;
        let config = TunnelConfig {
            mesh_pin,
            run_dir,
            private_key_file,
            listen: "0.0.0.0:2377".parse()?,
            mtu: 1420,
            device: device.into(),
            kernel: KernelChoice::Never,
            program: program(),
        };
        Ok(Self { number, host, config, key, runtime: Some(runtime) })
    }

    /// Opens the tunnel as the daemon does: from the host's namespace.
    async fn open(&self) -> anyhow::Result<Arc<dyn Tunnel>> {
        self.open_as(self.config.clone()).await
    }

    async fn open_as(&self, config: TunnelConfig) -> anyhow::Result<Arc<dyn Tunnel>> {
        self.runtime.as_ref().unwrap().spawn(tunnel::open(config)).await?
    }

    async fn close(&self) -> anyhow::Result<()> {
        let config = self.config.clone();
        self.runtime.as_ref().unwrap().spawn(async move { tunnel::close(&config).await }).await?
    }

    /// Gives the device its addresses and the routes to the others.
    async fn address(&self) -> anyhow::Result<()> {
        let (n, device) = (self.number, &self.config.device);
        self.mesh(&format!("ip addr add 10.66.{n}.1/32 dev {device}")).await?;
        self.mesh(&format!("ip addr add fd5e:0:0:{n}::1/64 dev {device} nodad")).await?;
        self.mesh(&format!("ip route add 10.66.0.0/16 dev {device}")).await?;
        self.mesh(&format!("ip route add fd5e::/48 dev {device}")).await.map(drop)
    }

    /// A command in the mesh namespace.
    async fn mesh(&self, line: &str) -> anyhow::Result<String> {
        let mut words = line.split_whitespace();
        let mut command = Command::new("nsenter");
        output(command.arg(format!("--net={}", self.config.mesh_pin.display())).arg(words.next().unwrap()).args(words)).await
    }

    fn v4(&self) -> IpAddr {
        format!("10.66.{}.1", self.number).parse().unwrap()
    }

    fn v6(&self) -> IpAddr {
        format!("fd5e:0:0:{}::1", self.number).parse().unwrap()
    }

    fn endpoint(&self) -> SocketAddr {
        (self.host.address(), 2377).into()
    }

    /// As the others shall know it.
    fn peer(&self) -> TunnelPeer {
        let nets = [format!("10.66.{}.1/32", self.number), format!("fd5e:0:0:{}::/64", self.number)];
        TunnelPeer {
            endpoint: Some(self.endpoint()),
            allowed_ips: nets.iter().map(|net| net.parse().unwrap()).collect(),
            keepalive: None,
        }
    }

    fn set(&self) -> TunnelStep {
        TunnelStep::Set(self.key, self.peer())
    }

    fn pid(&self) -> Option<i32> {
        std::fs::read_to_string(self.config.run_dir.join("tunnel.pid")).ok()?.trim().parse().ok()
    }

    fn kill(&self) {
        if let Some(pid) = self.pid().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        self.kill();
        let _ = rustix::mount::unmount(&self.config.mesh_pin, rustix::mount::UnmountFlags::DETACH);
        // After a failure nobody else does; the last side takes the folder of the lab along.
        let _ = std::fs::remove_dir_all(&self.config.run_dir);
        let _ = self.config.run_dir.parent().map(std::fs::remove_dir);
    }
}

/// Two sides that know each other.
struct Pair {
    a: Side,
    b: Side,
    tunnel_a: Arc<dyn Tunnel>,
    tunnel_b: Arc<dyn Tunnel>,
    lab: Lab,
}

impl Pair {
    async fn new(name: &str) -> anyhow::Result<Self> {
        Self::of(name, KernelChoice::Never).await
    }

    async fn of(name: &str, kernel: KernelChoice) -> anyhow::Result<Self> {
        let (lab, mut a, mut b) = sides(name).await?;
        (a.config.kernel, b.config.kernel) = (kernel, kernel);
        let (tunnel_a, tunnel_b) = (a.open().await?, b.open().await?);
        a.address().await?;
        b.address().await?;
        tunnel_a.apply(&[b.set()]).await?;
        tunnel_b.apply(&[a.set()]).await?;
        Ok(Self { a, b, tunnel_a, tunnel_b, lab })
    }

    async fn end(self) -> anyhow::Result<()> {
        self.a.close().await?;
        self.b.close().await?;
        let Self { a, b, lab, .. } = self;
        finish(lab, a, b).await
    }

    /// What A sees of B.
    async fn b_from_a(&self) -> anyhow::Result<TunnelPeerState> {
        peer_of(&self.tunnel_a.observe().await?, self.b.key)
    }

    async fn ping(&self) -> anyhow::Result<()> {
        // Handshakes that cross are both dropped, and repeated after 5 s.
        let line = format!("busybox ping -c 1 -W 2 {}", self.b.v6());
        eventually("an answer through the tunnel", SOON, || self.a.mesh(&line)).await.map(drop)
    }
}

async fn sides(name: &str) -> anyhow::Result<(Lab, Side, Side)> {
    let id = std::process::id();
    let lab = Lab::new(format!("/tmp/skt-{name}-{id}")).await?;
    // The name of a device is also that of the socket which `wg show` asks, and that is one for the whole machine.
    let device = |n: u8| format!("t{name}{n}.{}", id % 100_000);
    let a = Side::new(&lab, 1, &device(1)).await?;
    let b = Side::new(&lab, 2, &device(2)).await?;
    Ok((lab, a, b))
}

/// Stops the hosts before their files go.
async fn finish(lab: Lab, a: Side, b: Side) -> anyhow::Result<()> {
    let dir = lab.dir().to_path_buf();
    drop((a, b));
    std::fs::create_dir_all(dir)?;
    lab.stop().await
}

fn peer_of(state: &TunnelState, key: WgKey) -> anyhow::Result<TunnelPeerState> {
    state.peers.get(&key).cloned().context("the peer is not there")
}

/// The skep binary.
fn program() -> PathBuf {
    env!("CARGO_BIN_EXE_skep").into()
}

/// Runs `work` on a thread in the namespace pinned at `pin`.
fn inside<T: Send + 'static>(
    pin: &Path,
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> tokio::task::JoinHandle<anyhow::Result<T>> {
    let pin = pin.to_path_buf();
    // A thread of its own that is not used again: its namespace is changed for good.
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let enter = || {
            let file = File::open(&pin)?;
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
            work()
        };
        let _ = sender.send(enter());
    });
    tokio::spawn(async move { receiver.await? })
}

/// Bytes that can be told from any others, at any place.
struct Pattern(u64);

impl Pattern {
    fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            chunk.copy_from_slice(&self.0.to_le_bytes()[..chunk.len()]);
        }
    }
}

/// A TCP transfer from `to` (which serves) to `from` (which connects and checks); returns the bytes checked when it ends.
async fn transfer(
    from: &Side,
    to: (&Side, IpAddr),
    bytes: u64,
    progress: Arc<AtomicU64>,
) -> anyhow::Result<tokio::task::JoinHandle<anyhow::Result<u64>>> {
    const SEED: u64 = 0x5eed_0bad_cafe_f00d;
    const BLOCK: usize = 1 << 16;
    let (ready, listening) = tokio::sync::oneshot::channel();
    let address = to.1;
    let server = inside(&to.0.config.mesh_pin, move || {
        let listener = TcpListener::bind((address, 0))?;
        let _ = ready.send(listener.local_addr()?);
        let (mut stream, _) = listener.accept()?;
        stream.set_write_timeout(Some(SOON))?;
        let (mut pattern, mut block, mut left) = (Pattern(SEED), vec![0; BLOCK], bytes);
        while left > 0 {
            pattern.fill(&mut block);
            let now = usize::try_from(left)?.min(BLOCK);
            stream.write_all(&block[..now])?;
            left -= now as u64;
        }
        Ok(())
    });
    let address = listening.await.context("the server did not listen")?;
    let client = inside(&from.config.mesh_pin, move || {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(SOON))?;
        let (mut pattern, mut wanted, mut got, mut seen) = (Pattern(SEED), vec![0; BLOCK], vec![0; BLOCK], 0);
        while seen < bytes {
            pattern.fill(&mut wanted);
            let now = usize::try_from(bytes - seen)?.min(BLOCK);
            stream.read_exact(&mut got[..now]).with_context(|| format!("after {seen} bytes"))?;
            ensure!(got[..now] == wanted[..now], "other bytes than sent, near {seen}");
            seen += now as u64;
            progress.store(seen, Ordering::Relaxed);
        }
        Ok(seen)
    });
    Ok(tokio::spawn(async move {
        let seen = client.await??;
        server.await??;
        Ok(seen)
    }))
}

/// A [`transfer`] to its end.
async fn whole_transfer(from: &Side, to: (&Side, IpAddr), bytes: u64) -> anyhow::Result<()> {
    let seen = transfer(from, to, bytes, Arc::default()).await?.await??;
    ensure!(seen == bytes);
    Ok(())
}
