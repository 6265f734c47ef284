//! Network devices by name, in the calling thread's namespace: MTU, state, kind, creation, removal, move.
#![allow(unsafe_code, reason = "interface ioctls have no safe wrapper")]

use anyhow::Context as _;
use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo};
use rtnetlink::{LinkUnspec, LinkWireguard};
use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd as _, RawFd};

/// A socket for interface ioctls, which apply to the namespace that it was created in, from any thread.
#[derive(Debug)]
pub(super) struct IoctlSocket(UdpSocket);

impl IoctlSocket {
    /// In the calling thread's namespace.
    pub(super) fn new() -> io::Result<Self> {
        // Any datagram socket works; the wildcard address needs no configured address.
        UdpSocket::bind("0.0.0.0:0").map(Self)
    }

    /// The MTU of `device` in bytes.
    pub(super) fn mtu(&self, device: &str) -> io::Result<u32> {
        let mut request = request_for(device)?;
        self.ioctl(libc::SIOCGIFMTU, &mut request)?;
        // SAFETY: SIOCGIFMTU filled this member.
        let mtu = unsafe { request.ifr_ifru.ifru_mtu };
        u32::try_from(mtu).map_err(io::Error::other)
    }

    /// Sets the MTU of `device`, in bytes.
    pub(super) fn set_mtu(&self, device: &str, mtu: u32) -> io::Result<()> {
        let mut request = request_for(device)?;
        request.ifr_ifru.ifru_mtu = i32::try_from(mtu).map_err(io::Error::other)?;
        self.ioctl(libc::SIOCSIFMTU, &mut request)
    }

    /// Sets `device` up.
    pub(super) fn up(&self, device: &str) -> io::Result<()> {
        let mut request = request_for(device)?;
        self.ioctl(libc::SIOCGIFFLAGS, &mut request)?;
        // SAFETY: SIOCGIFFLAGS filled this member.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        request.ifr_ifru.ifru_flags = flags | i16::try_from(libc::IFF_UP).unwrap_or(1);
        self.ioctl(libc::SIOCSIFFLAGS, &mut request)
    }

    fn ioctl(&self, code: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
        // SAFETY: the descriptor is open, and every code used here takes an `ifreq`, which outlives the call.
        if unsafe { libc::ioctl(self.0.as_raw_fd(), code, std::ptr::from_mut(request)) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

/// An `ifreq` that names `device`.
pub(super) fn request_for(device: &str) -> io::Result<libc::ifreq> {
    // SAFETY: `ifreq` is plain data; all zeros is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let bytes = device.as_bytes();
    if bytes.is_empty() || bytes.len() >= request.ifr_name.len() || bytes.contains(&0) || bytes.contains(&b'/') {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{device:?} is no valid device name")));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(bytes) {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    Ok(request)
}

/// The kind of the device as netlink names it (`wireguard`, `tun`); `None` if there is no such device.
pub(super) fn kind(device: &str) -> anyhow::Result<Option<String>> {
    let device = device.to_owned();
    netlink(async move |handle| {
        let mut links = handle.link().get().match_name(device).execute();
        let link = match links.try_next().await {
            Ok(Some(link)) => link,
            Ok(None) => return Ok(None),
            Err(error) if is_errno(&error, libc::ENODEV) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let kind = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => infos.iter().find_map(|info| match info {
                LinkInfo::Kind(InfoKind::Wireguard) => Some("wireguard".to_owned()),
                LinkInfo::Kind(InfoKind::Tun) => Some("tun".to_owned()),
                LinkInfo::Kind(other) => Some(format!("{other:?}")),
                _ => None,
            }),
            _ => None,
        });
        Ok(Some(kind.unwrap_or_else(|| "unknown".to_owned())))
    })
}

/// Deletes `device`, which need not exist.
pub(super) fn delete(device: &str) -> anyhow::Result<()> {
    let name = device.to_owned();
    netlink(async move |handle| match handle.link().del_with_message(LinkUnspec::new_with_name(&name).build()).execute().await {
        Err(error) if !is_errno(&error, libc::ENODEV) => Err(error.into()),
        _ => Ok(()),
    })
    .with_context(|| format!("cannot delete the device {device}"))
}

/// Creates a WireGuard device. Returns `false` if this kernel has no WireGuard.
pub(super) fn add_wireguard(device: &str) -> anyhow::Result<bool> {
    let name = device.to_owned();
    netlink(async move |handle| match handle.link().add(LinkWireguard::new(&name).build()).execute().await {
        Ok(()) => Ok(true),
        Err(error) if is_errno(&error, libc::EOPNOTSUPP) => Ok(false),
        Err(error) => Err(error.into()),
    })
    .with_context(|| format!("cannot create the WireGuard device {device}"))
}

/// Moves `device` into another namespace under the name `as_name`.
pub(super) fn move_to(device: &str, namespace: RawFd, as_name: &str) -> anyhow::Result<()> {
    let (name, new_name) = (device.to_owned(), as_name.to_owned());
    netlink(async move |handle| {
        let link = handle.link().get().match_name(name).execute().try_next().await?.context("it no longer exists")?;
        let message = LinkUnspec::new_with_index(link.header.index).name(new_name).setns_by_fd(namespace).build();
        Ok(handle.link().set(message).execute().await?)
    })
    .with_context(|| format!("cannot move the device {device} into the mesh namespace"))
}

fn is_errno(error: &rtnetlink::Error, errno: i32) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code().abs() == errno)
}

/// Runs netlink requests in the calling thread's namespace. The caller's thread must not belong to a runtime.
fn netlink<T>(work: impl AsyncFnOnce(rtnetlink::Handle) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let connection = tokio::spawn(connection);
        let result = work(handle).await;
        connection.abort();
        result
    })
}
