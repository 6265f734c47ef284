//! TCP backends: each sends its number, then echoes until the other side closes, then closes.

use super::*;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use tokio::task::JoinSet;

#[derive(Default)]
pub struct Seen {
    /// Connections by backend.
    pub visits: BTreeMap<u8, usize>,
    /// Their source addresses.
    pub sources: Vec<SocketAddr>,
}

pub struct Backends {
    pub seen: Arc<Mutex<Seen>>,
    /// Connections open now, and the most at one time.
    pub open: Arc<AtomicUsize>,
    pub most: Arc<AtomicUsize>,
    loops: BTreeMap<u8, JoinSet<()>>,
}

impl Backends {
    pub fn start(net: Net, numbers: &[u8]) -> Self {
        let mut all = Self { seen: Arc::default(), open: Arc::default(), most: Arc::default(), loops: BTreeMap::new() };
        for n in numbers {
            all.add(net, *n);
        }
        all
    }
    pub fn add(&mut self, net: Net, n: u8) {
        let listener = HereSockets.listen((net.host(n), TARGET).into()).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let (seen, open, most) = (Arc::clone(&self.seen), Arc::clone(&self.open), Arc::clone(&self.most));
        let mut loops = JoinSet::new();
        loops.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let Ok((mut stream, peer)) = listener.accept().await else { continue };
                {
                    let mut seen = seen.lock().unwrap();
                    *seen.visits.entry(n).or_default() += 1;
                    seen.sources.push(peer);
                }
                let open = Arc::clone(&open);
                most.fetch_max(open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                connections.spawn(async move {
                    let _ = stream.write_u8(n).await;
                    let (mut reader, mut writer) = stream.split();
                    let _ = tokio::io::copy(&mut reader, &mut writer).await;
                    // Before the client can see the close, so that the count is never too high.
                    open.fetch_sub(1, Ordering::SeqCst);
                    let _ = writer.shutdown().await;
                });
                while connections.try_join_next().is_some() {}
            }
        });
        self.loops.insert(n, loops);
    }
    /// Stops a backend and closes all its connections.
    pub async fn kill(&mut self, n: u8) {
        if let Some(mut loops) = self.loops.remove(&n) {
            loops.shutdown().await;
        }
    }
    pub fn visits(&self) -> BTreeMap<u8, usize> {
        self.seen.lock().unwrap().visits.clone()
    }
}
