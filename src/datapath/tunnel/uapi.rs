//! The UAPI socket for `wg show`, read-only: a write through it would drop sessions without the daemon's knowledge.

use super::super::TunnelPeerState;
use super::pump::Ends;
use crate::accept::accept_each;
use crate::clock::{Clock as _, SystemClock};
use crate::model::WgKey;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Directory in which `wg` expects the sockets.
const DIRECTORY: &str = "/var/run/wireguard";

/// Reply to a request that is refused: `EOPNOTSUPP`.
const REFUSED: &[u8] = b"errno=95\n\n";

/// Serves `device` for `wg show`; `None` if that is not possible, which is only logged: the tunnel works without it.
pub(super) fn serve(device: &str, port: u16, ends: &Arc<Ends>) -> Option<UapiSocketFile> {
    let path = Path::new(DIRECTORY).join(format!("{device}.sock"));
    if std::os::unix::net::UnixStream::connect(&path).is_ok() {
        tracing::info!(path = %path.display(), "another process answers `wg show` for a device of this name");
        return None;
    }
    let _ = std::fs::remove_file(&path);
    let listener = match std::fs::create_dir_all(DIRECTORY).and_then(|()| UnixListener::bind(&path)) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::info!(%error, path = %path.display(), "`wg show` does not show this device");
            return None;
        }
    };
    let ends = Arc::downgrade(ends);
    let stop = CancellationToken::new();
    let served = stop.clone();
    tokio::spawn(async move {
        accept_each(listener, "the socket of `wg show`", &served, |stream, ()| {
            tokio::spawn(answer(stream, port, Weak::clone(&ends)));
        })
        .await;
    });
    Some(UapiSocketFile { path, _stop: stop.drop_guard() })
}

/// The file of the socket, removed when dropped; no connection is accepted then.
pub(super) struct UapiSocketFile {
    path: PathBuf,
    _stop: DropGuard,
}

impl Drop for UapiSocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn answer(stream: UnixStream, port: u16, ends: Weak<Ends>) {
    let (reader, mut writer) = stream.into_split();
    // `wg` sends one line and an empty one.
    let mut lines = BufReader::new(reader.take(4096)).lines();
    let mut is_get = None;
    while let Ok(Some(line)) = lines.next_line().await {
        if !line.is_empty() {
            is_get = Some(is_get.unwrap_or(true) && line == "get=1");
            continue;
        }
        let reply = match is_get.take() {
            Some(true) => {
                let of = |ends: Arc<Ends>| (ends.peers.private_key(), ends.peers.observe());
                let Some((private, peers)) = ends.upgrade().map(of) else { return };
                let now = Duration::from_nanos(u64::try_from(SystemClock.now().0).unwrap_or(0));
                document(private, port, &peers, now).into_bytes()
            }
            _ => REFUSED.to_vec(),
        };
        if writer.write_all(&reply).await.is_err() {
            return;
        }
    }
}

/// The device in the form of WireGuard's cross-platform interface.
fn document(private: [u8; 32], port: u16, peers: &BTreeMap<WgKey, TunnelPeerState>, now: Duration) -> String {
    let mut out = format!("private_key={}\nlisten_port={port}\n", hex(private));
    for (key, state) in peers {
        let _ = writeln!(out, "public_key={}\nprotocol_version=1", hex(key.0));
        if let Some(endpoint) = state.peer.endpoint {
            let _ = writeln!(out, "endpoint={endpoint}");
        }
        if let Some(seconds) = state.peer.keepalive {
            let _ = writeln!(out, "persistent_keepalive_interval={seconds}");
        }
        if let Some(at) = state.handshake_age.map(|age| now.saturating_sub(age)) {
            let _ = writeln!(out, "last_handshake_time_sec={}\nlast_handshake_time_nsec={}", at.as_secs(), at.subsec_nanos());
        }
        let _ = writeln!(out, "rx_bytes={}\ntx_bytes={}", state.rx_bytes, state.tx_bytes);
        for net in &state.peer.allowed_ips {
            let _ = writeln!(out, "allowed_ip={net}");
        }
    }
    out + "errno=0\n\n"
}

fn hex(key: [u8; 32]) -> String {
    key.iter().fold(String::with_capacity(64), |text, byte| text + &format!("{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::TunnelPeer;

    #[test]
    fn a_device_with_a_peer_is_written_as_wg_reads_it() {
        let peer = TunnelPeer {
            endpoint: Some("192.0.2.1:2377".parse().unwrap()),
            allowed_ips: vec!["10.0.0.1/32".parse().unwrap(), "fd00::/64".parse().unwrap()],
            keepalive: Some(25),
        };
        let state = TunnelPeerState { peer, handshake_age: Some(Duration::from_secs(2)), rx_bytes: 3, tx_bytes: 4 };
        let text = document([1; 32], 2377, &BTreeMap::from([(WgKey([0xab; 32]), state)]), Duration::new(100, 5));
        let (own, other) = ("01".repeat(32), "ab".repeat(32));
        assert_eq!(
            text,
            format!(
                "private_key={own}\nlisten_port=2377\npublic_key={other}\nprotocol_version=1\nendpoint=192.0.2.1:2377\n\
                 persistent_keepalive_interval=25\nlast_handshake_time_sec=98\nlast_handshake_time_nsec=5\n\
                 rx_bytes=3\ntx_bytes=4\nallowed_ip=10.0.0.1/32\nallowed_ip=fd00::/64\nerrno=0\n\n"
            )
        );
    }
}
