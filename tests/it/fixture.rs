//! Fixtures of several rooms' tests. Values of the model are in `skep::model::fixture`.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU8, Ordering};

/// A /24 of 127/8 that no other test uses: derived from the pid, because several runs may share a machine, and a counter.
#[derive(Clone, Copy)]
pub struct LoopbackNet(pub [u8; 3]);

impl LoopbackNet {
    pub fn new() -> Self {
        static NEXT: AtomicU8 = AtomicU8::new(0);
        let pid = std::process::id();
        Self([
            127,
            16 + u8::try_from(pid % 200).unwrap(),
            NEXT.fetch_add(1, Ordering::Relaxed).wrapping_add((pid / 200 % 251) as u8),
        ])
    }
    pub fn host(self, last: u8) -> Ipv4Addr {
        let [a, b, c] = self.0;
        Ipv4Addr::new(a, b, c, last)
    }
    pub fn gateway(self) -> Ipv4Addr {
        self.host(1)
    }
}
