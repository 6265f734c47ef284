//! Joins a client and the API of one node, byte by byte.

use crate::api::error::{ApiError, Result};
use crate::api::proxy::{RequestHead, refuse};
use crate::http::{BoxedStream, ByteStream};
use crate::splice::splice;
use tokio::io::AsyncWriteExt as _;

/// Sends a request, of which some bytes are read already, to a node's API under another target, and joins both then. Without a
/// connection, the client gets the reason.
pub async fn relay(client: impl ByteStream, head: &RequestHead, read: &[u8], api: Result<BoxedStream>, target: &str) {
    let mut api = match api {
        Ok(api) => api,
        Err(error) => return refuse(client, error).await,
    };
    let sent = async {
        api.write_all(&head.for_engine_at(read, target)).await?;
        api.flush().await
    };
    if let Err(error) = sent.await {
        return refuse(client, ApiError::unavailable(format!("the node has closed the connection: {error}"))).await;
    }
    splice(client, api).await;
}
