//! The TUN device under the in-process WireGuard: opened in the mesh namespace, persistent, read and written from any thread.
#![allow(unsafe_code, reason = "TUN devices are created by ioctl")]

use super::link::{IoctlSocket, request_for};
use super::namespace::Namespace;
use super::offload::VNET_HEADER;
use super::stop::StopSignal;
use anyhow::Context as _;
use rustix::event::{PollFd, PollFlags, poll};
use std::fs::File;
use std::io::{self, IoSlice, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::Duration;

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

    /// Reads one packet with its header; `WouldBlock` if there is none.
    pub(super) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(buffer)
    }

    /// Waits until there is a packet, or the signal is set.
    pub(super) fn wait(&self, stop: &StopSignal) -> io::Result<()> {
        let one = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        poll(&mut [one(self.file.as_fd()), one(stop.as_fd())], None)?;
        Ok(())
    }

    /// Writes one packet, header first. One that the kernel refuses is lost.
    ///
    /// # Errors
    /// The device is gone.
    pub(super) fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        loop {
            match (&self.file).write_vectored(parts) {
                Err(error) if device_gone(&error) => return Err(error),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(1)),
                Err(error) => {
                    tracing::debug!(%error, "a packet was refused by the TUN device");
                    return Ok(());
                }
                Ok(_) => return Ok(()),
            }
        }
    }
}

/// Whether the device itself is gone. Any other error concerns one packet.
pub(super) fn device_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADFD | libc::EBADF | libc::ENODEV))
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
