//! A route netlink socket: changes with acknowledgement, and dumps. It stays in the namespace of the thread that opened it.
//! Knows nothing of what the messages mean.

use futures_util::StreamExt;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use std::io;

/// Set by the kernel on a dump that was interrupted by a change: it may be incomplete.
const NLM_F_DUMP_INTR: u16 = 0x10;
const DUMP_ATTEMPTS: u32 = 5;

/// An open socket; the spawned connection ends when this is dropped.
pub(super) struct Netlink {
    handle: rtnetlink::Handle,
    /// The kernel carries out one dump at a time on a socket and refuses another meanwhile.
    dumping: tokio::sync::Mutex<()>,
}

impl Netlink {
    /// Opens a socket in the namespace of the calling thread. Must be called in the context of a tokio runtime.
    pub(super) fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self { handle, dumping: tokio::sync::Mutex::new(()) })
    }

    /// Sends a request with these flags beside REQUEST and ACK, waits for the acknowledgement, and returns the replies.
    pub(super) async fn change(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        Ok(self.exchange(message, NLM_F_ACK | flags).await?.0)
    }

    /// Dumps all objects of a kind. Repeated while changes interrupt it.
    pub(super) async fn dump(&self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        let _lock = self.dumping.lock().await;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let (all, interrupted) = self.exchange(message.clone(), NLM_F_DUMP).await?;
            if !interrupted || attempt == DUMP_ATTEMPTS {
                return Ok(all);
            }
        }
    }

    async fn exchange(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<(Vec<RouteNetlinkMessage>, bool)> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        let mut replies = self.handle.clone().request(request).map_err(|e| io::Error::other(e.to_string()))?;
        let (mut all, mut interrupted) = (Vec::new(), false);
        while let Some(reply) = replies.next().await {
            interrupted |= reply.header.flags & NLM_F_DUMP_INTR != 0;
            match reply.payload {
                NetlinkPayload::InnerMessage(inner) => all.push(inner),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                _ => {}
            }
        }
        Ok((all, interrupted))
    }
}

/// The result of an addition where the object may exist already.
pub(super) fn ignore_existing<T>(result: io::Result<T>) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error() != Some(libc::EEXIST) => Err(error),
        _ => Ok(()),
    }
}

/// The result of a removal where the object, or its device, may be gone already.
pub(super) fn ignore_missing<T>(result: io::Result<T>) -> io::Result<()> {
    const MISSING: [i32; 5] = [libc::ENOENT, libc::ESRCH, libc::ENODEV, libc::EADDRNOTAVAIL, libc::ENXIO];
    match result {
        Err(error) if !error.raw_os_error().is_some_and(|code| MISSING.contains(&code)) => Err(error),
        _ => Ok(()),
    }
}
