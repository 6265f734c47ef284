//! WireGuard in this process, on the TUN device and the UDP socket of this module: two threads carry packets, one task looks
//! after timers. Peers are changed in place: their sessions stay.

use super::super::{TunnelState, TunnelStep};
use super::difference::{INITIATE_PERIOD, endpoint_change};
use super::peers::{Outgoing, Peers};
use super::pump::{Ends, incoming, outgoing};
use super::stop::StopSignal;
use super::tun::Tun;
use super::uapi;
use super::udp::TunnelSocket;
use crate::model::WgKey;
use anyhow::Context as _;
use std::io;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Time between looks at timers.
const TICK: Duration = Duration::from_millis(250);

/// A running device.
pub(super) struct WireGuard {
    ends: Arc<Ends>,
    port: u16,
    started: Instant,
    /// Gets the error with which a thread ended.
    ended: mpsc::Receiver<io::Error>,
    threads: Vec<JoinHandle<()>>,
    uapi: Option<uapi::UapiSocketFile>,
}

impl WireGuard {
    /// Starts the device without peers; the UDP socket receives at once.
    pub(super) fn start(private: [u8; 32], tun: Tun, socket: TunnelSocket, name: &str) -> anyhow::Result<Self> {
        let port = socket.local_address()?.port();
        let stop = StopSignal::new().context("cannot create an eventfd")?;
        let ends = Arc::new(Ends { tun, socket, peers: Peers::new(private), stop });
        ends.peers.set_mtu(ends.tun.mtu().context("cannot read the MTU of the TUN device")?);
        let (sender, ended) = mpsc::channel(2);
        let run = |name: &str, direction: fn(&Ends) -> io::Error| {
            let (ends, sender) = (Arc::clone(&ends), sender.clone());
            std::thread::Builder::new().name(name.to_owned()).spawn(move || {
                // If it panics, the sender is dropped, which is noticed too.
                let _ = sender.blocking_send(direction(&ends));
            })
        };
        let threads = vec![run("outgoing", outgoing)?, run("incoming", incoming)?];
        tokio::spawn(tick(Arc::downgrade(&ends), sender));
        let uapi = uapi::serve(name, port, &ends);
        Ok(Self { ends, port, started: Instant::now(), ended, threads, uapi })
    }

    /// The current state.
    pub(super) fn observe(&self) -> anyhow::Result<TunnelState> {
        let mtu = self.ends.tun.mtu().context("cannot read the MTU of the TUN device")?;
        Ok(TunnelState { implementation: "skep tunnel".into(), port: self.port, mtu, peers: self.ends.peers.observe() })
    }

    /// Applies the steps in order.
    pub(super) fn apply(&self, steps: &[TunnelStep]) {
        let actual = self.ends.peers.observe();
        let mut with_new_endpoint = Vec::new();
        for step in steps {
            match step {
                TunnelStep::Set(key, peer) => {
                    let endpoint = endpoint_change(peer, actual.get(key));
                    self.ends.peers.set(*key, peer, endpoint);
                    with_new_endpoint.extend(endpoint.map(|_| *key));
                }
                TunnelStep::Redirect(key, redirect) => {
                    if self.ends.peers.redirect(*key, redirect) {
                        with_new_endpoint.push(*key);
                    }
                }
                TunnelStep::Remove(key) => self.ends.peers.remove(*key),
                TunnelStep::Succeed { old, new } => self.ends.peers.succeed(*old, *new),
            }
        }
        if self.started.elapsed() <= INITIATE_PERIOD {
            send(&self.ends, self.ends.peers.initiate(&with_new_endpoint));
        }
    }

    /// Uses another private key, and begins handshakes with it. Returns the public half.
    pub(super) fn rekey(&self, private: [u8; 32]) -> WgKey {
        let (public, initiations) = self.ends.peers.rekey(private);
        send(&self.ends, initiations);
        public
    }

    /// Returns when the device cannot continue, for instance because it was deleted.
    pub(super) async fn wait(&mut self) {
        if let Some(error) = self.ended.recv().await {
            tracing::error!(%error, "the TUN device or the UDP socket is gone");
        }
    }

    /// Ends the threads and closes the socket and the TUN device, which is deleted unless `keep_device`. The next process can
    /// bind and attach at once.
    pub(super) fn stop(self, keep_device: bool) {
        if !keep_device && let Err(error) = self.ends.tun.clear_persistent() {
            tracing::warn!(%error, "the TUN device is not deleted");
        }
        drop(self.uapi);
        // Nothing waits for the errors of the threads any more.
        drop(self.ended);
        self.ends.stop.set();
        self.ends.socket.end_receiving();
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}

fn send(ends: &Ends, datagrams: Vec<Outgoing>) {
    for (packet, to) in datagrams {
        ends.socket.send(to, 0, &[packet]);
    }
}

/// Sends what is due, follows the MTU of the device, and ends when a thread has ended by a panic.
async fn tick(ends: Weak<Ends>, ended: mpsc::Sender<io::Error>) {
    loop {
        tokio::time::sleep(TICK).await;
        let Some(ends) = ends.upgrade() else { return };
        // Held by the two threads, the device and this task.
        if Arc::strong_count(&ends) < 4 {
            let _ = ended.send(io::Error::other("a thread of the tunnel has ended")).await;
            return;
        }
        if let Ok(mtu) = ends.tun.mtu() {
            ends.peers.set_mtu(mtu);
        }
        send(&ends, ends.peers.tick());
    }
}
