//! A route netlink socket: send a message and wait for the kernel's word, or dump. Bound for life to the namespace of
//! the thread that opened it. Knows nothing of what the messages mean.

use futures_util::StreamExt;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use std::io;

/// Set by the kernel on a dump that a change ran into: the answer may miss something.
const NLM_F_DUMP_INTR: u16 = 0x10;
const DUMP_ATTEMPTS: u32 = 5;

/// An open socket; its task ends when this is dropped.
pub(super) struct Netlink {
    handle: rtnetlink::Handle,
    /// The kernel carries out one dump at a time on a socket and refuses another meanwhile.
    dumping: tokio::sync::Mutex<()>,
}

impl Netlink {
    /// Opens a socket where the calling thread is. Must be called in the context of a tokio runtime, which drives it.
    pub(super) fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self { handle, dumping: tokio::sync::Mutex::new(()) })
    }

    /// Sends a request with these flags beside REQUEST and ACK, waits until it is carried out, and gives what was answered.
    pub(super) async fn change(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        Ok(self.talk(message, NLM_F_ACK | flags).await?.0)
    }

    /// Everything of a kind. Repeated while changes run into it.
    pub(super) async fn dump(&self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        let _turn = self.dumping.lock().await;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let (all, interrupted) = self.talk(message.clone(), NLM_F_DUMP).await?;
            if !interrupted || attempt == DUMP_ATTEMPTS {
                return Ok(all);
            }
        }
    }

    async fn talk(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<(Vec<RouteNetlinkMessage>, bool)> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        let mut answers = self.handle.clone().request(request).map_err(|e| io::Error::other(e.to_string()))?;
        let (mut all, mut interrupted) = (Vec::new(), false);
        while let Some(answer) = answers.next().await {
            interrupted |= answer.header.flags & NLM_F_DUMP_INTR != 0;
            match answer.payload {
                NetlinkPayload::InnerMessage(inner) => all.push(inner),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                _ => {}
            }
        }
        Ok((all, interrupted))
    }
}

/// Done, or was already so: what was to be added exists.
pub(super) fn exists_is_fine<T>(result: io::Result<T>) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error() != Some(libc::EEXIST) => Err(error),
        _ => Ok(()),
    }
}

/// Done, or was already so: what was to be removed is gone, or its device is.
pub(super) fn gone_is_fine<T>(result: io::Result<T>) -> io::Result<()> {
    const GONE: [i32; 5] = [libc::ENOENT, libc::ESRCH, libc::ENODEV, libc::EADDRNOTAVAIL, libc::ENXIO];
    match result {
        Err(error) if !error.raw_os_error().is_some_and(|code| GONE.contains(&code)) => Err(error),
        _ => Ok(()),
    }
}
