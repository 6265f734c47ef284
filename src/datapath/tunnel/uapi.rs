//! The socket that `wg show` asks: reading only. Writing through it would drop sessions behind the daemon's back.

use gotatun::device::uapi::command::{Get, Request};
use gotatun::device::uapi::{UapiClient, UapiServer};
use std::path::{Path, PathBuf};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};

/// Where `wg` looks.
const FOLDER: &str = "/var/run/wireguard";

/// Errno of a request that is refused: not supported.
const REFUSED: &[u8] = b"errno=95\n\n";

/// Serves `device` for `wg show`; `None`, with a word in the log, if that cannot be: it is a convenience.
pub(super) fn serve(device: &str) -> Option<(UapiServer, Socket)> {
    let path = Path::new(FOLDER).join(format!("{device}.sock"));
    if std::os::unix::net::UnixStream::connect(&path).is_ok() {
        tracing::info!(path = %path.display(), "another process answers `wg show` for a device of this name");
        return None;
    }
    let _ = std::fs::remove_file(&path);
    let listener = match std::fs::create_dir_all(FOLDER).and_then(|()| UnixListener::bind(&path)) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::info!(%error, path = %path.display(), "`wg show` will not see this device");
            return None;
        }
    };
    let (client, server) = UapiServer::new();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream, client.clone()));
        }
    });
    Some((server, Socket(path)))
}

/// The file of the socket; goes with its owner.
pub(super) struct Socket(PathBuf);

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

async fn answer(stream: UnixStream, client: UapiClient) {
    let (reader, mut writer) = stream.into_split();
    // What `wg` sends is a line and an empty line.
    let mut lines = BufReader::new(reader.take(4096)).lines();
    let mut get = None;
    while let Ok(Some(line)) = lines.next_line().await {
        if !line.is_empty() {
            get = Some(get.unwrap_or(true) && line == "get=1");
            continue;
        }
        let reply = match get.take() {
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
