//! The UAPI socket for `wg show`, read-only: a write through it would drop sessions without the daemon's knowledge.

use gotatun::device::uapi::command::{Get, Request};
use gotatun::device::uapi::{UapiClient, UapiServer};
use std::path::{Path, PathBuf};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};

/// Directory in which `wg` expects the sockets.
const DIRECTORY: &str = "/var/run/wireguard";

/// Reply to a request that is refused: `EOPNOTSUPP`.
const REFUSED: &[u8] = b"errno=95\n\n";

/// Serves `device` for `wg show`; `None` if that is not possible, which is only logged: the tunnel works without it.
pub(super) fn serve(device: &str) -> Option<(UapiServer, UapiSocketFile)> {
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
    let (client, server) = UapiServer::new();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream, client.clone()));
        }
    });
    Some((server, UapiSocketFile(path)))
}

/// The file of the socket, removed when dropped.
pub(super) struct UapiSocketFile(PathBuf);

impl Drop for UapiSocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

async fn answer(stream: UnixStream, client: UapiClient) {
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
            Some(true) => match client.send(Request::Get(Get::default())).await {
                Ok(response) => format!("{response}\n").into_bytes(),
                Err(_) => return,
            },
            _ => REFUSED.to_vec(),
        };
        if writer.write_all(&reply).await.is_err() {
            return;
        }
    }
}
