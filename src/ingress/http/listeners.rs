//! The listening sockets, and those of the process before.

use super::app::{ClientConnections, IngressApp};
use super::certificates::Certificates;
use super::protocol::ListenerFd;
use super::proxy::IngressProxy;
use super::state::HttpListenerStatus;
use super::table::HttpPorts;
use super::tls;
use crate::datapath::Sockets;
use crate::datapath::sockets::HereSockets;
use parking_lot::Mutex;
use pingora::apps::ServerApp as _;
use pingora::listeners::tls::Acceptor;
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::{GetSocketDigest as _, SocketDigest, Ssl as _};
use pingora::proxy::HttpProxy;
use pingora::server::Fds;
use pingora::services::Service as _;
use pingora::services::listening::Service;
use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd as _, IntoRawFd as _};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// After a connection that could not be accepted.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// What a connection is given to.
pub(super) struct Serving {
    pub proxy: Arc<HttpProxy<IngressProxy>>,
    pub connections: Arc<ClientConnections>,
    pub certificates: Arc<Certificates>,
    /// See [`IngressApp::first_head`].
    pub first_head: Duration,
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
        let name = address.to_string();
        let Serving { proxy, connections, certificates, first_head } = &self.serving;
        let app = IngressApp { proxy: proxy.clone(), connections: connections.clone(), first_head: *first_head };
        let (stop, stopped) = watch::channel(false);
        if tls {
            socket.set_nonblocking(true)?;
            let listener = tokio::net::TcpListener::from_std(socket.try_clone()?)?;
            tokio::spawn(accept_tls(listener, tls::acceptor(certificates.clone())?, Arc::new(app), stopped));
            return Ok(OpenListener { socket, stop });
        }
        let mut fds = Fds::new();
        fds.add(name.clone(), socket.try_clone()?.into_raw_fd());
        let mut service = Service::new(name.clone(), app);
        service.add_tcp(&name);
        tokio::spawn(async move { service.start_service(Some(Arc::new(Mutex::new(fds))), stopped, 1).await });
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

/// Accepts connections with TLS until `stop`; those that are open go on. pingora's own listeners agree on no protocol of a
/// certificate authority beside those of browsers.
async fn accept_tls(listener: tokio::net::TcpListener, acceptor: Acceptor, app: Arc<IngressApp>, stop: watch::Receiver<bool>) {
    let (acceptor, mut stopped) = (Arc::new(acceptor), stop.clone());
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stopped.wait_for(|stop| *stop) => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((tcp, peer)) = accepted else {
            // Out of descriptors, mostly: the connection stays in the backlog.
            tokio::time::sleep(ACCEPT_AGAIN).await;
            continue;
        };
        let _ = tcp.set_nodelay(true);
        let (acceptor, app, stop) = (acceptor.clone(), app.clone(), stop.clone());
        tokio::spawn(async move {
            let digest = SocketDigest::from_raw_fd(tcp.as_raw_fd());
            let _ = digest.peer_addr.set(Some(peer.into()));
            let mut stream = Stream::from(tcp);
            stream.set_socket_digest(digest);
            let handshake = tokio::time::timeout(app.first_head, acceptor.tls_handshake(stream)).await;
            let Ok(Ok(stream)) = handshake else { return };
            if tls::is_challenge(stream.selected_alpn_proto().as_ref()) {
                return;
            }
            let mut next: Option<pingora::protocols::Stream> = Some(Box::new(stream));
            while let Some(stream) = next {
                next = app.process_new(stream, &stop).await;
            }
        });
    }
}
