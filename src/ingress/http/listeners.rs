//! The listening sockets, and those of the process before.

use super::app::IngressApp;
use super::certificates::Certificates;
use super::protocol::ListenerFd;
use super::state::HttpListenerStatus;
use super::table::HttpPorts;
use super::tls;
use crate::accept::keep_alive;
use crate::datapath::Sockets;
use crate::datapath::sockets::HereSockets;
use pingora::listeners::tls::Acceptor;
use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Connections that the kernel keeps until they are accepted; it has a bound of its own too.
const BACKLOG: i32 = 65_535;
/// After a connection that could not be accepted: the process has no descriptor left.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Silence after which a client has to show that it is there: an upgraded connection may wait for one that is gone.
const IDLE: Duration = Duration::from_mins(1);

/// What a connection is given to.
pub(super) struct Serving {
    pub app: Arc<IngressApp>,
    pub certificates: Arc<Certificates>,
}

/// The sockets of this process.
pub(super) struct Listeners {
    serving: Serving,
    open: BTreeMap<(SocketAddr, bool), OpenListener>,
    failed: BTreeMap<(SocketAddr, bool), String>,
    /// Of the process before, until they are used.
    inherited: BTreeMap<SocketAddr, TcpListener>,
}

struct OpenListener {
    /// For the process that takes over.
    socket: TcpListener,
    stop: watch::Sender<bool>,
}

impl Listeners {
    pub fn new(serving: Serving, inherited: BTreeMap<SocketAddr, TcpListener>) -> Self {
        Self { serving, open: BTreeMap::new(), failed: BTreeMap::new(), inherited }
    }

    /// Opens and closes sockets until they are those of the ports. What the kernel refuses is tried again at the next call.
    pub fn follow(&mut self, ports: HttpPorts) {
        let any = |port: u16| [SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))];
        let with_tls = |(port, tls): (u16, bool)| any(port).map(|address| (address, tls));
        let wanted: Vec<(SocketAddr, bool)> =
            [(ports.plain, false), (ports.tls, true)].into_iter().filter(|(port, _)| *port != 0).flat_map(with_tls).collect();
        self.failed.retain(|key, _| wanted.contains(key));
        self.open.retain(|key, listener| {
            let keep = wanted.contains(key);
            if !keep {
                tracing::info!(address = %key.0, "HTTP listener closed");
                listener.stop.send_replace(true);
            }
            keep
        });
        for (address, tls) in wanted {
            if self.open.contains_key(&(address, tls)) {
                continue;
            }
            match self.listen(address, tls) {
                Ok(listener) => {
                    tracing::info!(%address, tls, "HTTP listener open");
                    self.failed.remove(&(address, tls));
                    self.open.insert((address, tls), listener);
                }
                Err(error) => {
                    let error = error.to_string();
                    if self.failed.get(&(address, tls)) != Some(&error) {
                        tracing::warn!(%address, %error, "cannot listen for HTTP, tries again; see `ss -lntup`");
                        self.failed.insert((address, tls), error);
                    }
                }
            }
        }
        self.inherited.clear();
    }

    fn listen(&mut self, address: SocketAddr, tls: bool) -> io::Result<OpenListener> {
        let socket = match self.inherited.remove(&address) {
            Some(socket) => socket,
            None => HereSockets.listen(address)?,
        };
        // Connections that are accepted have these too.
        socket2::SockRef::from(&socket).set_tcp_nodelay(true)?;
        keep_alive(&socket, IDLE)?;
        socket2::SockRef::from(&socket).listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        let accepting = tokio::net::TcpListener::from_std(socket.try_clone()?)?;
        let tls = tls.then(|| tls::acceptor(self.serving.certificates.clone())).transpose()?.map(Arc::new);
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(accept(accepting, self.serving.app.clone(), address.port(), tls, stopped));
        Ok(OpenListener { socket, stop })
    }

    /// Accepts no more. The sockets stay open while another process has them.
    pub fn close(&mut self) {
        for (_, listener) in std::mem::take(&mut self.open) {
            listener.stop.send_replace(true);
        }
    }

    /// The sockets, for the process that takes over.
    pub fn fds(&self) -> Vec<ListenerFd> {
        let fd = |((address, _), open): (&(SocketAddr, bool), &OpenListener)| ListenerFd {
            address: address.to_string(),
            fd: open.socket.as_raw_fd(),
        };
        self.open.iter().map(fd).collect()
    }

    pub fn status(&self) -> Vec<HttpListenerStatus> {
        let status = |(address, tls): &(SocketAddr, bool), error: Option<&String>| HttpListenerStatus {
            address: address.to_string(),
            tls: *tls,
            error: error.cloned(),
        };
        let open = self.open.keys().map(|key| status(key, None));
        open.chain(self.failed.iter().map(|(key, error)| status(key, Some(error)))).collect()
    }
}

/// Accepts connections until `stop`; those that are open go on.
async fn accept(
    listener: tokio::net::TcpListener,
    app: Arc<IngressApp>,
    port: u16,
    tls: Option<Arc<Acceptor>>,
    stop: watch::Receiver<bool>,
) {
    let mut stopped = stop.clone();
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stopped.wait_for(|stop| *stop) => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                tokio::spawn(app.clone().serve(stream, (peer, port), tls.clone(), stop.clone()));
            }
            Err(error) => {
                tracing::debug!(%error, "a connection is not accepted");
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}
