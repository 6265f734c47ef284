//! The tunnel with real packets: two hosts with a mesh namespace each and a tunnel between them. Needs root.
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
mod rekey;
mod traffic;

const SOON: Duration = Duration::from_secs(20);

/// A lab host with a mesh namespace and the configuration of its tunnel.
struct TunnelHost {
    number: u8,
    host: Host,
    config: TunnelConfig,
    key: WgKey,
    /// Its threads are in the host's network namespace, as those of the daemon.
    runtime: Option<tokio::runtime::Runtime>,
}

impl TunnelHost {
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
            keep_mtu: false,
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

    /// Configures the addresses of the device and the routes to the other hosts.
    async fn configure_addresses(&self) -> anyhow::Result<()> {
        let (n, device) = (self.number, &self.config.device);
        self.mesh(&format!("ip addr add 10.66.{n}.1/32 dev {device}")).await?;
        self.mesh(&format!("ip addr add fd5e:0:0:{n}::1/64 dev {device} nodad")).await?;
        self.mesh(&format!("ip route add 10.66.0.0/16 dev {device}")).await?;
        self.mesh(&format!("ip route add fd5e::/48 dev {device}")).await.map(drop)
    }

    /// Runs a command in the mesh namespace.
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

    /// Its configuration as a peer.
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

impl Drop for TunnelHost {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        self.kill();
        let _ = rustix::mount::unmount(&self.config.mesh_pin, rustix::mount::UnmountFlags::DETACH);
        // After a failure nothing else removes them; the last host removes the directory of the lab.
        let _ = std::fs::remove_dir_all(&self.config.run_dir);
        let _ = self.config.run_dir.parent().map(std::fs::remove_dir);
    }
}

/// Two hosts with tunnels that have each other as peers.
struct Fixture {
    a: TunnelHost,
    b: TunnelHost,
    tunnel_a: Arc<dyn Tunnel>,
    tunnel_b: Arc<dyn Tunnel>,
    lab: Lab,
}

impl Fixture {
    async fn new(name: &str) -> anyhow::Result<Self> {
        Self::with_kernel(name, KernelChoice::Never).await
    }

    async fn with_kernel(name: &str, kernel: KernelChoice) -> anyhow::Result<Self> {
        let (lab, mut a, mut b) = hosts(name).await?;
        (a.config.kernel, b.config.kernel) = (kernel, kernel);
        let (tunnel_a, tunnel_b) = (a.open().await?, b.open().await?);
        a.configure_addresses().await?;
        b.configure_addresses().await?;
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

    /// The state of peer B on A.
    async fn b_from_a(&self) -> anyhow::Result<TunnelPeerState> {
        peer_of(&self.tunnel_a.observe().await?, self.b.key)
    }

    async fn ping(&self) -> anyhow::Result<()> {
        // Of two handshakes that cross both are dropped; they are repeated after 5 s.
        let line = format!("busybox ping -c 1 -W 2 {}", self.b.v6());
        eventually("a reply through the tunnel", SOON, || self.a.mesh(&line)).await.map(drop)
    }
}

async fn hosts(name: &str) -> anyhow::Result<(Lab, TunnelHost, TunnelHost)> {
    let id = std::process::id();
    let lab = Lab::new(format!("/tmp/skt-{name}-{id}")).await?;
    // The UAPI socket has the name of the device, and its directory is shared by the whole machine.
    let device = |n: u8| format!("t{name}{n}.{}", id % 100_000);
    let a = TunnelHost::new(&lab, 1, &device(1)).await?;
    let b = TunnelHost::new(&lab, 2, &device(2)).await?;
    Ok((lab, a, b))
}

/// Stops the tunnels before their files are removed, then the lab.
async fn finish(lab: Lab, a: TunnelHost, b: TunnelHost) -> anyhow::Result<()> {
    let dir = lab.dir().to_path_buf();
    drop((a, b));
    std::fs::create_dir_all(dir)?;
    lab.stop().await
}

fn peer_of(state: &TunnelState, key: WgKey) -> anyhow::Result<TunnelPeerState> {
    state.peers.get(&key).cloned().context("there is no such peer")
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
    // A new thread that is not used again, since it stays in the namespace.
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

/// A pseudo-random byte sequence (xorshift), so that misplaced bytes are detected.
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

/// Starts a TCP transfer from `to`, which serves, to `from`, which connects and checks; the result is the number of bytes checked.
async fn transfer(
    from: &TunnelHost,
    to: (&TunnelHost, IpAddr),
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

/// A complete [`transfer`].
async fn whole_transfer(from: &TunnelHost, to: (&TunnelHost, IpAddr), bytes: u64) -> anyhow::Result<()> {
    let seen = transfer(from, to, bytes, Arc::default()).await?.await??;
    ensure!(seen == bytes);
    Ok(())
}
