//! The two directions of the tunnel, each on a thread of its own that takes a batch of packets from its source to its
//! destination: one look-up, one lock and one system call for many packets, and no hand-over in between.

use super::datagrams::{ReceivedDatagram, Receiver};
use super::inner::Inner;
use super::offload::{LARGEST, VNET_HEADER, VnetHeader, group, join, segment};
use super::peers::{LivePeer, Peers, Received};
use super::stop::StopSignal;
use super::tun::{Tun, device_gone};
use super::udp::TunnelSocket;
use bytes::BytesMut;
use gotatun::packet::Packet;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::Duration;

/// Packets that are gathered before they are sent, if more are there.
const GATHER: usize = 32;
/// Bytes that are allocated at once for packets to encrypt.
const BLOCK: usize = 256 << 10;

/// What the threads share.
pub(super) struct Ends {
    pub tun: Tun,
    pub socket: TunnelSocket,
    pub peers: Peers,
    pub stop: StopSignal,
}

/// Packets for one peer that are sent together.
#[derive(Default)]
struct Batch {
    peer: Option<Arc<LivePeer>>,
    ecn: u8,
    packets: Vec<Packet>,
    sealed: Vec<Packet>,
}

impl Batch {
    fn flush(&mut self, ends: &Ends) {
        let Some(peer) = self.peer.take() else { return };
        if let Some(endpoint) = ends.peers.seal(&peer, &mut self.packets, &mut self.sealed) {
            ends.socket.send(endpoint, self.ecn, &self.sealed);
        }
        self.sealed.clear();
    }
}

/// From the device to the peers; returns when the device is gone, or the tunnel stops.
pub(super) fn outgoing(ends: &Ends) -> io::Error {
    let mut buffer = vec![0; VNET_HEADER + LARGEST];
    let mut block = BytesMut::new();
    let mut batch = Batch::default();
    loop {
        if ends.stop.is_set() {
            return StopSignal::error();
        }
        match ends.tun.read(&mut buffer) {
            Ok(length) => {
                take(ends, &mut buffer[..length], &mut block, &mut batch);
                if batch.packets.len() >= GATHER {
                    batch.flush(ends);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                batch.flush(ends);
                if let Err(error) = ends.tun.wait(&ends.stop) {
                    tracing::debug!(%error, "waiting for the TUN device");
                }
            }
            Err(error) if device_gone(&error) => return error,
            Err(error) => {
                tracing::debug!(%error, "reading from the TUN device");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// Adds what was read from the device to the batch; sends the batch before if this is for another peer.
fn take(ends: &Ends, read: &mut [u8], block: &mut BytesMut, batch: &mut Batch) {
    let Some(header) = VnetHeader::read(read) else { return };
    let packet = &mut read[VNET_HEADER..];
    let Some(Inner { destination, ecn, .. }) = Inner::of_headers(packet) else { return };
    let Some(peer) = ends.peers.towards(destination) else { return };
    if !batch.peer.as_ref().is_some_and(|last| Arc::ptr_eq(last, &peer)) || batch.ecn != ecn {
        batch.flush(ends);
        batch.peer = Some(peer);
        batch.ecn = ecn;
    }
    segment(header, packet, |headers, payload| {
        let length = headers.len() + payload.len();
        let padded = ends.peers.padded(length);
        if block.capacity() < padded {
            *block = BytesMut::with_capacity(BLOCK.max(padded));
        }
        block.extend_from_slice(headers);
        block.extend_from_slice(payload);
        block.resize(padded, 0);
        batch.packets.push(Packet::from_bytes(block.split()));
    });
}

/// From the peers to the device; returns when the device or the socket is gone, or the tunnel stops.
pub(super) fn incoming(ends: &Ends) -> io::Error {
    let mut receiver = Receiver::new();
    let mut datagrams: Vec<ReceivedDatagram> = Vec::new();
    let mut packets: Vec<Packet> = Vec::new();
    loop {
        if ends.stop.is_set() {
            return StopSignal::error();
        }
        if let Err(error) = ends.socket.receive(&mut receiver, &mut datagrams) {
            if error.raw_os_error() == Some(libc::EBADF) {
                return error;
            }
            if error.kind() != io::ErrorKind::Interrupted {
                // Out of memory, for instance: one batch is lost.
                tracing::debug!(%error, "receiving from the UDP socket");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        for ReceivedDatagram { packet, from, ecn } in datagrams.drain(..) {
            match ends.peers.open(packet, from, ecn) {
                Received::Nothing => {}
                Received::Packet(packet) => packets.push(packet),
                Received::Answers(answers) => {
                    for (answer, to) in answers {
                        ends.socket.send(to, 0, &[answer]);
                    }
                }
            }
        }
        for group in group(&packets) {
            let (header, parts) = join(&group, &mut packets);
            let header = header.write();
            let mut all = Vec::with_capacity(parts.len() + 1);
            all.push(IoSlice::new(&header));
            all.extend(parts);
            if let Err(error) = ends.tun.write(&all) {
                return error;
            }
        }
        packets.clear();
    }
}
