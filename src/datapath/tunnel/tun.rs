//! The TUN device under the in-process WireGuard: opened in the mesh namespace, persistent, read and written from
//! anywhere.
#![allow(unsafe_code, reason = "TUN devices are made by ioctl")]

use super::link::{Control, request_for};
use super::namespace::Namespace;
use anyhow::Context as _;
use gotatun::packet::{Ip, Packet, PacketBufPool};
use gotatun::tun::{IpRecv, IpSend, MtuWatcher};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

/// An open TUN device and a way to ask for its MTU.
#[derive(Debug)]
pub(super) struct Tun {
    file: File,
    control: Control,
    device: String,
}

impl Tun {
    /// Makes `device` in `mesh`, or attaches to the one that an earlier process left, and sets it up with `mtu`.
    pub(super) fn open(mesh: &Namespace, device: &str, mtu: u32) -> anyhow::Result<Self> {
        let name = device.to_owned();
        let tun = mesh.run(move || {
            let file = attach(&name)?;
            let control = Control::new().context("cannot make a socket in the mesh namespace")?;
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

    /// Lets the device vanish with the last descriptor, instead of staying for the next process.
    pub(super) fn forget(&self) -> io::Result<()> {
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
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_TUN | libc::IFF_NO_PI)?;
    // SAFETY: the descriptor is open; TUNSETIFF takes an `ifreq`, which outlives the call.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
        let error = io::Error::last_os_error();
        return Err(match error.raw_os_error() {
            Some(libc::EBUSY) => anyhow::Error::new(error).context("another process is attached to it"),
            Some(libc::EINVAL) => anyhow::Error::new(error).context("a device of that name is there and is no TUN device"),
            _ => error.into(),
        });
    }
    set_persistent(&file, true).context("cannot make it persistent")?;
    Ok(file)
}

fn set_persistent(file: &File, on: bool) -> io::Result<()> {
    // SAFETY: the descriptor is open; TUNSETPERSIST takes a number.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETPERSIST, libc::c_ulong::from(on)) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Writes decrypted packets.
pub(super) struct TunSend(Arc<AsyncFd<Tun>>);

/// Reads packets to encrypt.
pub(super) struct TunReceive {
    tun: Arc<AsyncFd<Tun>>,
    mtu: watch::Receiver<u16>,
}

impl std::os::fd::AsRawFd for Tun {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.file.as_raw_fd()
    }
}

/// Both directions of `tun`; must be called within a runtime. The device is looked at every few seconds for a new MTU.
pub(super) fn split(tun: Tun) -> io::Result<(TunSend, TunReceive, Arc<AsyncFd<Tun>>)> {
    let (sender, mtu) = watch::channel(u16::try_from(tun.mtu()?).unwrap_or(u16::MAX));
    // SAFETY: `Tun` owns its descriptor, names no other, and closes it only when dropped, which is after the `AsyncFd`.
    let tun = Arc::new(unsafe { AsyncFd::register(tun) }.map_err(io::Error::from)?);
    let weak = Arc::downgrade(&tun);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_secs(3)).await;
            let Some(tun) = weak.upgrade() else { return };
            let Ok(now) = tun.get_ref().mtu() else { continue };
            let now = u16::try_from(now).unwrap_or(u16::MAX);
            sender.send_if_modified(|mtu| std::mem::replace(mtu, now) != now);
        }
    });
    Ok((TunSend(Arc::clone(&tun)), TunReceive { tun: Arc::clone(&tun), mtu }, tun))
}

/// Whether the device itself is gone. Any other error concerns one packet.
fn device_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADFD | libc::EBADF | libc::ENODEV))
}

impl IpSend for TunSend {
    async fn send(&mut self, packet: Packet<Ip>) -> io::Result<()> {
        let packet = packet.into_bytes();
        loop {
            let mut guard = self.0.writable().await?;
            match guard.try_io(|tun| (&tun.get_ref().file).write(&packet)) {
                Ok(Ok(_)) => return Ok(()),
                // A packet that the kernel refuses must not end the writer: gotatun takes "invalid input" as the end.
                Ok(Err(error)) if !device_gone(&error) => {
                    tracing::trace!(%error, length = packet.len(), "packet refused by the TUN device");
                    return Ok(());
                }
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }
}

impl IpRecv for TunReceive {
    async fn recv<'a>(&'a mut self, pool: &mut PacketBufPool) -> io::Result<impl Iterator<Item = Packet<Ip>> + Send + 'a> {
        let mut packet = pool.get();
        loop {
            let mut guard = self.tun.readable().await?;
            match guard.try_io(|tun| (&tun.get_ref().file).read(&mut packet)) {
                Ok(Ok(length)) => {
                    packet.truncate(length);
                    return Ok(packet.try_into_ip().ok().into_iter());
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
