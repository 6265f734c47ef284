//! Two byte streams joined: what one side sends, the other gets.

use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

/// How long data of the client is still read after the reply has ended: closing earlier would reset the connection, and
/// the client could lose the reply.
pub const LINGER: Duration = Duration::from_secs(2);

/// Copies both ways until the server has closed its side. The end of one direction is passed on as a half-close.
pub async fn splice(client: impl AsyncRead + AsyncWrite + Unpin, server: impl AsyncRead + AsyncWrite + Unpin) {
    let (client_read, mut client_write) = tokio::io::split(client);
    let (mut server_read, server_write) = tokio::io::split(server);
    let up = copy_to_end(client_read, server_write);
    let down = async {
        let _ = tokio::io::copy(&mut server_read, &mut client_write).await;
        let _ = client_write.shutdown().await;
    };
    tokio::pin!(up, down);
    tokio::select! {
        () = &mut down => { let _ = tokio::time::timeout(LINGER, up).await; }
        () = &mut up => down.await,
    }
}

async fn copy_to_end(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
    let _ = tokio::io::copy(&mut from, &mut to).await;
    let _ = to.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt as _;

    #[tokio::test]
    async fn a_half_closed_client_still_gets_the_rest_of_the_reply() {
        let ((mut client, near), (far, mut server)) = (tokio::io::duplex(64), tokio::io::duplex(64));
        let joined = tokio::spawn(splice(near, far));
        client.write_all(b"input").await.expect("written");
        client.shutdown().await.expect("half-closed");
        let mut got = String::new();
        server.read_to_string(&mut got).await.expect("to the end");
        server.write_all(b"answer").await.expect("written");
        drop(server);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.expect("to the end");
        assert_eq!((got.as_str(), answer.as_str()), ("input", "answer"));
        joined.await.expect("it has ended");
    }
}
