//! Notifications of the kernel about the devices and addresses of a namespace.

use super::uplinks::is_engine_device;
use crate::datapath::mesh::wire;
use crate::datapath::netns;
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage as Message;
use std::io;
use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::time::Duration;

/// Changes come in groups: a new card is a device, which is set up and gets its addresses.
const GROUP: Duration = Duration::from_millis(20);

type Messages = Pin<Box<dyn Stream<Item = NetlinkMessage<Message>> + Send>>;

/// The device and address changes of one namespace, without those of the engine's devices, which change with each container.
pub struct DeviceChanges {
    /// `None` once the socket failed: only the slow tick notices changes then.
    messages: Option<Messages>,
}

impl DeviceChanges {
    /// Subscribes. Must be called in the context of a tokio runtime.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn subscribe(namespace: BorrowedFd<'_>) -> io::Result<Self> {
        let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
        let (connection, _, messages) = netns::briefly(namespace, || rtnetlink::new_multicast_connection(&groups))?;
        tokio::spawn(connection);
        Ok(Self { messages: Some(Box::pin(messages.map(|(message, _)| message))) })
    }

    /// No notifications, for a kernel that refuses them.
    #[must_use]
    pub fn none() -> Self {
        Self { messages: None }
    }

    /// Returns after a change, a moment later so that a group of changes is one.
    pub async fn changed(&mut self) {
        loop {
            let Some(messages) = &mut self.messages else { return std::future::pending().await };
            match messages.next().await {
                Some(message) if concerns(&message) => break,
                Some(_) => {}
                None => self.messages = None,
            }
        }
        tokio::time::sleep(GROUP).await;
        while let Some(messages) = &mut self.messages
            && matches!(messages.next().now_or_never(), Some(Some(_)))
        {}
    }
}

/// Whether the message may concern a device that clients are reached by.
fn concerns(message: &NetlinkMessage<Message>) -> bool {
    match &message.payload {
        NetlinkPayload::InnerMessage(Message::NewLink(link) | Message::DelLink(link)) => {
            wire::read_link(link).is_none_or(|(name, _)| !is_engine_device(&name))
        }
        NetlinkPayload::InnerMessage(Message::NewAddress(address) | Message::DelAddress(address)) => {
            wire::read_address(address).is_some()
        }
        // The kernel had no room for all notifications.
        NetlinkPayload::Overrun(_) => true,
        _ => false,
    }
}
