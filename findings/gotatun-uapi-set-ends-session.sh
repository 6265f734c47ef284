#!/usr/bin/env bash
# gotatun 0.10.2 (userspace WireGuard): any `set` of a known peer over UAPI throws its session away.
# Expected: what the kernel and wireguard-go do: a new keepalive or one more allowed address leaves the handshake alone.
# Instead: the peer is removed and made anew. `get` shows no handshake and zero bytes. What the other side still sends in
# the old session is dropped without an error until one side shakes hands again, which it does not do at once.
# The same change by the crate's modify_peer() keeps the session.
# Why it matters: a mesh that adds an address for each task by `wg set` or wireguard-control cuts all traffic of that peer
# each time. The process that owns the device must be told in another way; UAPI is for reading.
# Needs cargo and a C compiler. Run time: one to two minutes, nearly all of it compiling. Uses two UDP ports, no
# device and no privilege.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
export CARGO_TARGET_DIR="$tmp/target" RUST_BACKTRACE=0
mkdir src
cat >Cargo.toml <<'E'
[package]
name = "finding"
version = "0.0.0"
edition = "2021"
[dependencies]
gotatun = { version = "=0.10.2", default-features = false, features = ["device", "ring"] }
ipnetwork = "=0.21.1"
tokio = { version = "=1.54.1", features = ["macros", "rt", "sync", "time"] }
x25519-dalek = { version = "=2.0.1", features = ["static_secrets"] }
[profile.dev]
debug = 0
E
cat >src/main.rs <<'E'
use gotatun::{
    device::{configure::Stats, uapi::{command, UapiServer}, Device, DeviceBuilder, DeviceTransports, Peer},
    packet::{Ip, Packet, PacketBufPool},
    tun::{IpRecv, IpSend, MtuWatcher},
};
use ipnetwork::IpNetwork;
use std::{io, iter, net::SocketAddr, time::Duration};
use tokio::sync::mpsc;
use x25519_dalek::{PublicKey, StaticSecret};

struct Out(mpsc::UnboundedSender<()>); // tells of each packet that came out of the tunnel
struct In(mpsc::UnboundedReceiver<Packet<Ip>>);

impl IpSend for Out {
    async fn send(&mut self, _: Packet<Ip>) -> io::Result<()> {
        self.0.send(()).map_err(io::Error::other)
    }
}

impl IpRecv for In {
    async fn recv<'a>(&'a mut self, _: &mut PacketBufPool) -> io::Result<impl Iterator<Item = Packet<Ip>> + Send + 'a> {
        self.0.recv().await.map(iter::once).ok_or(io::ErrorKind::UnexpectedEof.into())
    }
    fn mtu(&self) -> MtuWatcher {
        MtuWatcher::new(1420)
    }
}

// An empty IPv4 packet between the two ends of the tunnel.
fn packet(from: u8, to: u8) -> Packet<Ip> {
    let bytes = [0x45, 0, 0, 20, 0, 0, 0, 0, 64, 253, 0, 0, 10, 0, 0, from, 10, 0, 0, to];
    Packet::copy_from(&bytes[..]).try_into_ip().unwrap()
}

async fn arrives(rx: &mut mpsc::UnboundedReceiver<()>) -> bool {
    tokio::time::timeout(Duration::from_secs(2), rx.recv()).await.is_ok()
}

async fn stats(device: &Device<impl DeviceTransports>) -> Stats {
    device.read(async |d| d.peers().await).await.remove(0).stats
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let free = || std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (addr_a, addr_b): (SocketAddr, SocketAddr) = (free(), free());
    let (key_a, key_b) = (StaticSecret::from([1; 32]), StaticSecret::from([2; 32]));
    let (pub_a, pub_b) = (PublicKey::from(&key_a), PublicKey::from(&key_b));
    let peer = |key, n: u8, at| Peer::new(key).with_allowed_ip(format!("10.0.0.{n}/32").parse().unwrap()).with_endpoint(at);

    let (in_a, rx) = mpsc::unbounded_channel();
    let (tx, mut out_a) = mpsc::unbounded_channel();
    let (uapi, server) = UapiServer::new();
    let a = DeviceBuilder::new().with_default_udp().with_ip_pair(Out(tx), In(rx)).with_private_key(key_a)
        .with_listen_port(addr_a.port()).with_peer(peer(pub_b, 2, addr_b)).with_uapi(server).build().await.unwrap();
    let (in_b, rx) = mpsc::unbounded_channel();
    let (tx, mut out_b) = mpsc::unbounded_channel();
    let _b = DeviceBuilder::new().with_default_udp().with_ip_pair(Out(tx), In(rx)).with_private_key(key_b)
        .with_listen_port(addr_b.port()).with_peer(peer(pub_a, 1, addr_a)).build().await.unwrap();

    in_a.send(packet(1, 2)).unwrap();
    assert!(arrives(&mut out_b).await, "the tunnel works from a to b");
    in_b.send(packet(2, 1)).unwrap();
    assert!(arrives(&mut out_a).await, "the tunnel works from b to a");

    let more: IpNetwork = "10.0.1.0/24".parse().unwrap();
    a.write(async |d| d.modify_peer(&pub_b, |p| p.add_allowed_ip(more)).await).await.unwrap();
    let kept = stats(&a).await;
    assert!(kept.last_handshake.is_some() && kept.rx_bytes > 0, "modify_peer() keeps the session: {kept:?}");
    in_b.send(packet(2, 1)).unwrap();
    assert!(arrives(&mut out_a).await, "the tunnel works after modify_peer()");

    let mut change = command::SetPeer::new(*pub_b.as_bytes()).update_only();
    change.peer.allowed_ip.push("10.0.2.0/24".parse().unwrap());
    uapi.send(command::Set::builder().build().peer(change)).await.unwrap();
    let after = stats(&a).await;
    assert!(after.last_handshake.is_none(), "CHANGED: the handshake is kept over a set by UAPI: {after:?}");
    assert_eq!((after.rx_bytes, after.tx_bytes), (0, 0), "CHANGED: the counters are kept over a set by UAPI");
    in_b.send(packet(2, 1)).unwrap();
    assert!(!arrives(&mut out_a).await, "CHANGED: a packet of the old session arrives after a set by UAPI");
    println!("gotatun 0.10.2: one more allowed address by modify_peer(): {kept:?}, traffic goes on; by UAPI: {after:?}, \
        the other side's next packet is lost");
}
E
cargo run --quiet
