//! Room for the connections of all published ports. One port, or one client, may take as much as is free beside it: it
//! can never use up all, however many do the same. [`Shares`] is pure; [`ConnectionRoom`] waits.

use super::plan::PortKey;
use crate::sync::lock;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex};
use tokio::sync::Notify;

/// Why there is no room for a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoRoom {
    /// The port has its share.
    Port,
    /// The client's address has its share.
    Source,
}

/// The connections that are open, by port and by client.
///
/// A port may have as many connections as there is room free, so one busy port gets half of all, two get a third each, and
/// with n busy ports the share of one stays free for any other. A client's address may have half as many as are free: alone
/// it gets a third. Loopback clients are processes of this node and have no share of their own.
#[derive(Debug)]
pub struct Shares {
    total: usize,
    per_port: usize,
    used: usize,
    ports: BTreeMap<PortKey, usize>,
    sources: BTreeMap<IpAddr, usize>,
}

impl Shares {
    /// Room for `total` connections, at most `per_port` of one port.
    #[must_use]
    pub fn new(total: usize, per_port: usize) -> Self {
        Self { total: total.max(1), per_port: per_port.max(1), used: 0, ports: BTreeMap::new(), sources: BTreeMap::new() }
    }

    /// Takes room for a connection.
    ///
    /// # Errors
    /// There is none.
    pub fn add(&mut self, port: PortKey, client: IpAddr) -> Result<(), NoRoom> {
        let free = self.total - self.used;
        let of_port = self.ports.get(&port).copied().unwrap_or_default();
        if of_port >= free.min(self.per_port) {
            return Err(NoRoom::Port);
        }
        if let Some(source) = source(client) {
            let of_source = self.sources.get(&source).copied().unwrap_or_default();
            if of_source >= free.div_ceil(2) {
                return Err(NoRoom::Source);
            }
            self.sources.insert(source, of_source + 1);
        }
        self.ports.insert(port, of_port + 1);
        self.used += 1;
        Ok(())
    }

    /// Gives the room of a connection back.
    pub fn remove(&mut self, port: PortKey, client: IpAddr) {
        self.used = self.used.saturating_sub(1);
        subtract(&mut self.ports, &port);
        if let Some(source) = source(client) {
            subtract(&mut self.sources, &source);
        }
    }
}

fn subtract<K: Ord>(counts: &mut BTreeMap<K, usize>, key: &K) {
    match counts.get_mut(key) {
        Some(count) if *count > 1 => *count -= 1,
        _ => drop(counts.remove(key)),
    }
}

/// What counts as one client: an IPv4 address, or an IPv6 /64, of which one machine may use every address. `None`: the node.
#[must_use]
pub fn source(client: IpAddr) -> Option<IpAddr> {
    let client = client.to_canonical();
    match client {
        _ if client.is_loopback() => None,
        IpAddr::V4(_) => Some(client),
        IpAddr::V6(v6) => Some(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64)).into()),
    }
}

/// [`Shares`] for the accept loops of all ports.
#[derive(Debug)]
pub(super) struct ConnectionRoom {
    shares: Mutex<Shares>,
    /// A connection ended.
    released: Notify,
}

/// Room for one connection, given back when dropped.
pub(super) struct ConnectionPermit {
    room: Arc<ConnectionRoom>,
    port: PortKey,
    client: IpAddr,
}

/// The client has its share.
#[derive(Debug)]
pub(super) struct SourceIsFull;

impl ConnectionRoom {
    pub fn new(total: usize, per_port: usize) -> Arc<Self> {
        Arc::new(Self { shares: Mutex::new(Shares::new(total, per_port)), released: Notify::new() })
    }

    /// Waits until the port has room. At most one client of a port and family waits here, further ones in the backlog; a
    /// client that has its share does not wait, so that others do not wait for it.
    pub async fn permit(self: &Arc<Self>, port: PortKey, client: IpAddr) -> Result<ConnectionPermit, SourceIsFull> {
        loop {
            let mut released = std::pin::pin!(self.released.notified());
            released.as_mut().enable();
            let added = lock(&self.shares).add(port, client);
            match added {
                Ok(()) => return Ok(ConnectionPermit { room: Arc::clone(self), port, client }),
                Err(NoRoom::Source) => return Err(SourceIsFull),
                Err(NoRoom::Port) => released.await,
            }
        }
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        lock(&self.room.shares).remove(self.port, self.client);
        self.room.released.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;

    fn port(number: u16) -> PortKey {
        (Protocol::Tcp, number)
    }

    fn client(n: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(0x0a00_0000 + n).into()
    }

    /// As many connections as there is room for, each from another address if `spread`.
    fn flood(shares: &mut Shares, number: u16, spread: bool) -> usize {
        (0..100_000_u32).take_while(|n| shares.add(port(number), client(if spread { *n } else { 0 })).is_ok()).count()
    }

    #[test]
    fn attacked_ports_leave_room_for_the_others() {
        let mut shares = Shares::new(16_384, usize::MAX);
        assert_eq!(flood(&mut shares, 80, true), 8_192, "half");
        let mut room = 16_384 - 8_192;
        for number in 81..90 {
            let taken = flood(&mut shares, number, true);
            room -= taken;
            assert!(taken >= 1 && room >= 1, "{number}: {taken} taken, {room} left");
        }
        let mut two = Shares::new(16_384, usize::MAX);
        for n in 0..100_000 {
            // Both at once: each adds whenever it may.
            let _ = (two.add(port(80), client(n)), two.add(port(81), client(1_000_000 + n)));
        }
        assert!(two.total - two.used >= 5_400, "the third share is free: {}", two.total - two.used);
    }

    #[test]
    fn one_client_cannot_use_up_a_port() {
        let mut shares = Shares::new(16_384, usize::MAX);
        let one = flood(&mut shares, 80, false);
        assert!((5_400..5_500).contains(&one), "a third: {one}");
        assert_eq!(shares.add(port(80), client(0)), Err(NoRoom::Source));
        assert_eq!(shares.add(port(81), client(0)), Err(NoRoom::Source), "on no port");
        assert_eq!(shares.add(port(80), client(1)), Ok(()), "others may");
        shares.remove(port(80), client(1));
        shares.remove(port(80), client(0));
        assert_eq!(shares.add(port(80), client(0)), Ok(()));
    }

    #[test]
    fn an_ipv6_network_is_one_client_and_a_mapped_address_is_the_ipv4_one() {
        let of = |text: &str| source(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_eq!((of("127.0.0.1"), of("::1"), of("::ffff:127.0.0.1")), (None, None, None));
    }

    #[test]
    fn the_least_room_serves_one_connection_after_the_other() {
        let mut shares = Shares::new(1, 1);
        for n in 0..3 {
            assert_eq!(shares.add(port(80), client(n)), Ok(()));
            assert_eq!(shares.add(port(81), client(n)), Err(NoRoom::Port));
            shares.remove(port(80), client(n));
        }
        assert_eq!((shares.used, shares.ports.len(), shares.sources.len()), (0, 0, 0));
    }

    #[tokio::test]
    async fn a_full_port_waits_for_room() {
        let room = ConnectionRoom::new(2, 1);
        let first = room.permit(port(80), client(1)).await.unwrap();
        let waiting = tokio::spawn({
            let room = Arc::clone(&room);
            async move { room.permit(port(80), client(2)).await.is_ok() }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(first);
        assert!(waiting.await.unwrap());
    }
}
