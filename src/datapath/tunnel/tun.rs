//! The TUN device under the in-process WireGuard: opened in the mesh namespace, persistent, read and written from any thread.
#![allow(unsafe_code, reason = "TUN devices are created by ioctl")]

use super::link::{IoctlSocket, request_for};
use super::namespace::Namespace;
use super::offload::{LARGEST, VNET_HEADER, VnetHeader, group, join, segment};
use anyhow::Context as _;
use gotatun::packet::{Ip, Packet, PacketBufPool};
use gotatun::tun::{IpRecv, IpSend, MtuWatcher};
use std::fs::File;
use std::io::{self, IoSlice, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};

/// An open TUN device.
#[derive(Debug)]
pub(super) struct Tun {
    file: File,
    control: IoctlSocket,
    device: String,
}

impl Tun {
    /// Creates `device` in `mesh`, or attaches to the one of an earlier process, and sets it up with `mtu` in bytes.
    pub(super) fn open(mesh: &Namespace, device: &str, mtu: u32) -> anyhow::Result<Self> {
        let name = device.to_owned();
        let tun = mesh.run(move || {
            let file = attach(&name)?;
            let control = IoctlSocket::new().context("cannot create a socket in the mesh namespace")?;
            control.set_mtu(&name, mtu).with_context(|| format!("cannot set MTU {mtu}"))?;
            control.up(&name).context("cannot set it up")?;
            Ok(Self { file, control, device: name })
        });
        tun.with_context(|| format!("cannot open the TUN device {device} in the mesh namespace"))
    }

    /// MTU of the device, bytes.
    pub(super) fn mtu(&self) -> io::Result<u32> {
        self.control.mtu(&self.device)
    }

    /// Makes the device disappear with its last descriptor, instead of remaining for the next process.
    pub(super) fn clear_persistent(&self) -> io::Result<()> {
        set_persistent(&self.file, false)
    }
}

fn attach(device: &str) -> anyhow::Result<File> {
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .context("cannot open /dev/net/tun (is the module tun loaded?)")?;
    let mut request = request_for(device)?;
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR)?;
    // SAFETY: the descriptor is open; TUNSETIFF takes an `ifreq`, which outlives the call.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
        let error = io::Error::last_os_error();
        return Err(match error.raw_os_error() {
            Some(libc::EBUSY) => anyhow::Error::new(error).context("another process is attached to it"),
            Some(libc::EINVAL) => anyhow::Error::new(error).context("a device of that name exists and is no TUN device"),
            _ => error.into(),
        });
    }
    set_persistent(&file, true).context("cannot make it persistent")?;
    set_offloads(&file).context("cannot set its offloads")?;
    Ok(file)
}

/// Checksums and segmentation are left to this process. An earlier one may have left other settings.
fn set_offloads(file: &File) -> io::Result<()> {
    let set = |code: libc::Ioctl, argument: libc::c_ulong| {
        // SAFETY: the descriptor is open; TUNSETOFFLOAD takes a number.
        if unsafe { libc::ioctl(file.as_raw_fd(), code, argument) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    let size = libc::c_int::try_from(VNET_HEADER).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open; TUNSETVNETHDRSZ takes a pointer to a number, which outlives the call.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    let udp = libc::TUN_F_USO4 | libc::TUN_F_USO6;
    // UDP since Linux 6.2.
    set(libc::TUNSETOFFLOAD, libc::c_ulong::from(tcp | udp)).or_else(|_| set(libc::TUNSETOFFLOAD, libc::c_ulong::from(tcp)))
}

fn set_persistent(file: &File, on: bool) -> io::Result<()> {
    // SAFETY: the descriptor is open; TUNSETPERSIST takes a number.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETPERSIST, libc::c_ulong::from(on)) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Packets that may wait to be written, and may be joined in one batch.
const BATCH: usize = 128;

/// Queues decrypted packets for the writer.
pub(super) struct TunSend(mpsc::Sender<Packet<Ip>>);

/// Reads packets to encrypt.
pub(super) struct TunReceive {
    tun: Arc<AsyncFd<Tun>>,
    mtu: watch::Receiver<u16>,
    /// One read of the device: a header and a packet that may be larger than the MTU.
    buffer: Vec<u8>,
    /// Its segments.
    packets: Vec<Packet<Ip>>,
}

impl std::os::fd::AsRawFd for Tun {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.file.as_raw_fd()
    }
}

/// Both directions of `tun`; must be called within a runtime. A changed MTU is noticed within seconds.
pub(super) fn split(tun: Tun) -> io::Result<(TunSend, TunReceive, Arc<AsyncFd<Tun>>)> {
    let (sender, mtu) = watch::channel(u16::try_from(tun.mtu()?).unwrap_or(u16::MAX));
    // SAFETY: `Tun` owns its descriptor, names no other, and closes it only when dropped, which is after the `AsyncFd`.
    let tun = Arc::new(unsafe { AsyncFd::register(tun) }.map_err(io::Error::from)?);
    tokio::spawn(watch_mtu(Arc::downgrade(&tun), sender));
    let (packets, queue) = mpsc::channel(BATCH);
    tokio::spawn(write_all(Arc::clone(&tun), queue));
    let receive =
        TunReceive { tun: Arc::clone(&tun), mtu, buffer: vec![0; VNET_HEADER + LARGEST], packets: Vec::with_capacity(BATCH) };
    Ok((TunSend(packets), receive, tun))
}

async fn watch_mtu(tun: Weak<AsyncFd<Tun>>, sender: watch::Sender<u16>) {
    loop {
        tokio::time::sleep(Duration::from_secs(3)).await;
        let Some(tun) = tun.upgrade() else { return };
        let Ok(now) = tun.get_ref().mtu() else { continue };
        let now = u16::try_from(now).unwrap_or(u16::MAX);
        sender.send_if_modified(|mtu| std::mem::replace(mtu, now) != now);
    }
}

/// Whether the device itself is gone. Any other error concerns one packet.
fn device_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADFD | libc::EBADF | libc::ENODEV))
}

/// Writes queued packets, joined where possible within a batch, until the device is deleted or the sender dropped.
async fn write_all(tun: Arc<AsyncFd<Tun>>, mut queue: mpsc::Receiver<Packet<Ip>>) {
    let mut received = Vec::with_capacity(BATCH);
    let mut packets: Vec<Packet> = Vec::with_capacity(BATCH);
    while queue.recv_many(&mut received, BATCH).await > 0 {
        packets.extend(received.drain(..).map(Packet::into_bytes));
        for group in group(&packets) {
            let (header, parts) = join(&group, &mut packets);
            let header = header.write();
            let mut all = Vec::with_capacity(parts.len() + 1);
            all.push(IoSlice::new(&header));
            all.extend(parts);
            if let Err(error) = write_one(&tun, &all).await {
                tracing::error!(%error, "the TUN device is gone");
                return;
            }
        }
        packets.clear();
    }
}

async fn write_one(tun: &AsyncFd<Tun>, parts: &[IoSlice<'_>]) -> io::Result<()> {
    loop {
        let mut guard = tun.writable().await?;
        match guard.try_io(|tun| (&tun.get_ref().file).write_vectored(parts)) {
            Ok(Ok(_)) => return Ok(()),
            // The writer continues after a packet that the kernel refuses.
            Ok(Err(error)) if !device_gone(&error) => {
                tracing::debug!(%error, "a packet was refused by the TUN device");
                return Ok(());
            }
            Ok(Err(error)) => return Err(error),
            Err(_would_block) => {}
        }
    }
}

impl IpSend for TunSend {
    async fn send(&mut self, packet: Packet<Ip>) -> io::Result<()> {
        self.0.send(packet).await.map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))
    }
}

impl IpRecv for TunReceive {
    async fn recv<'a>(&'a mut self, pool: &mut PacketBufPool) -> io::Result<impl Iterator<Item = Packet<Ip>> + Send + 'a> {
        loop {
            let mut guard = self.tun.readable().await?;
            match guard.try_io(|tun| (&tun.get_ref().file).read(&mut self.buffer)) {
                Ok(Ok(length)) => {
                    let Some(header) = VnetHeader::read(&self.buffer[..length]) else { continue };
                    segment(header, &mut self.buffer[VNET_HEADER..length], |headers, payload| {
                        let mut packet = pool.get();
                        let bytes = packet.buf_mut();
                        bytes.clear();
                        bytes.extend_from_slice(headers);
                        bytes.extend_from_slice(payload);
                        self.packets.extend(packet.try_into_ip().ok());
                    });
                    return Ok(self.packets.drain(..));
                }
                Ok(Err(error)) if device_gone(&error) => return Err(error),
                Ok(Err(error)) => {
                    tracing::debug!(%error, "reading from the TUN device");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Err(_would_block) => {}
            }
        }
    }

    fn mtu(&self) -> MtuWatcher {
        self.mtu.clone().into()
    }
}
