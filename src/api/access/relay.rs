//! Joins a client and the API of one node, byte by byte.

use super::context::AccessContext;
use super::engine_node::EngineNode;
use crate::api::proxy::{RequestHead, refuse};
use crate::http::ByteStream;
use crate::splice::splice;
use tokio::io::AsyncWriteExt as _;

/// Sends a request, of which some bytes are read already, to a node under another target, and joins both then.
pub async fn relay(
    access: &AccessContext,
    client: impl ByteStream,
    head: &RequestHead,
    read: &[u8],
    node: &EngineNode,
    target: &str,
) {
    let mut api = match access.connect(node).await {
        Ok(api) => api,
        Err(error) => return refuse(client, error).await,
    };
    let sent = async {
        api.write_all(&head.for_engine_at(read, target)).await?;
        api.flush().await
    };
    if let Err(error) = sent.await {
        let message = format!("node {} has closed the connection: {error}", node.name);
        return refuse(client, crate::api::error::ApiError::unavailable(message)).await;
    }
    splice(client, api).await;
}
