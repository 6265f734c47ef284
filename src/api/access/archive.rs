//! One archive for several nodes at once. An archive that is cut off must not look complete to any of them.

use crate::api::error::{ApiError, Result};
use axum::body::Body;
use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream::{Stream, unfold};
use http_body_util::BodyExt as _;
use std::io;
use std::time::Duration;
use tokio::sync::mpsc;

/// Parts that wait for a node.
const QUEUE: usize = 16;

/// Parts for one node; `None` is the end of the archive.
pub type ArchiveQueue = mpsc::Sender<Option<Bytes>>;

/// A queue of parts, and the body of the request that they become: it ends in an error unless the end was put in.
pub fn queue() -> (ArchiveQueue, impl Stream<Item = io::Result<Bytes>> + Send + 'static) {
    let (sender, receiver) = mpsc::channel::<Option<Bytes>>(QUEUE);
    let parts = unfold(Some(receiver), async |receiver| {
        let mut receiver = receiver?;
        match receiver.recv().await {
            Some(Some(part)) => Some((Ok(part), Some(receiver))),
            Some(None) => None,
            None => Some((Err(io::Error::other("the archive was cut off")), None)),
        }
    });
    (sender, parts)
}

/// Puts a body into all queues. Says of each queue whether it was left out, because its node took nothing for `stuck`.
///
/// # Errors
/// The client has cut the body off: then it has no end in any queue.
pub async fn pass_on(mut body: Body, queues: Vec<ArchiveQueue>, stuck: Duration) -> Result<Vec<bool>> {
    let mut queues: Vec<(Option<ArchiveQueue>, bool)> = queues.into_iter().map(|queue| (Some(queue), false)).collect();
    loop {
        let part = match body.frame().await {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => Some(data),
                Err(_) => continue,
            },
            Some(Err(error)) => return Err(ApiError::bad(format!("the body of the request was cut off: {error}"))),
            None => None,
        };
        let sent = queues.iter_mut().map(async |(queue, is_stuck)| {
            let Some(sender) = queue else { return };
            let sent = tokio::time::timeout(stuck, sender.send(part.clone())).await;
            *is_stuck = sent.is_err();
            // A node that has ended the connection says why in its reply.
            if !matches!(sent, Ok(Ok(()))) {
                *queue = None;
            }
        });
        join_all(sent).await;
        if part.is_none() || queues.iter().all(|(queue, _)| queue.is_none()) {
            return Ok(queues.into_iter().map(|(_, is_stuck)| is_stuck).collect());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream::{StreamExt as _, iter};
    use tokio::io::AsyncReadExt as _;

    const LAST_CHUNK: &[u8] = b"\r\n0\r\n\r\n";

    /// What a node gets of an archive of one part.
    async fn received(with_end: bool) -> Vec<u8> {
        let (near, mut far) = tokio::io::duplex(1 << 16);
        let (queue, parts) = queue();
        let request = hyper::Request::post("/images/load").body(Body::from_stream(parts)).unwrap();
        let sent = tokio::spawn(crate::http::exchange(near, request));
        queue.send(Some(Bytes::from_static(b"part"))).await.unwrap();
        if with_end {
            queue.send(None).await.unwrap();
        }
        drop(queue);
        let mut read = Vec::new();
        while !read.ends_with(LAST_CHUNK) && far.read_buf(&mut read).await.unwrap() > 0 {}
        drop(far);
        assert!(sent.await.unwrap().is_err(), "no reply");
        read
    }

    #[tokio::test]
    async fn an_archive_that_is_cut_off_has_no_last_chunk() {
        assert!(received(true).await.ends_with(LAST_CHUNK));
        let cut = received(false).await;
        assert!(!cut.ends_with(LAST_CHUNK), "{}", String::from_utf8_lossy(&cut));
    }

    #[tokio::test]
    async fn a_client_that_goes_away_cuts_the_archive_of_every_node() {
        let sent = iter([Ok(Bytes::from_static(b"part")), Err(io::Error::other("gone"))]);
        let (first, parts) = queue();
        let refused = pass_on(Body::from_stream(sent), vec![first], Duration::from_secs(20)).await;
        assert!(refused.unwrap_err().message.contains("cut off"));
        let got: Vec<bool> = parts.map(|part| part.is_ok()).collect().await;
        assert_eq!(got, [true, false]);
    }

    #[tokio::test]
    async fn a_node_that_takes_nothing_is_left_out_and_the_others_get_all() {
        let sent = iter((0..QUEUE + 2).map(|_| Ok::<_, io::Error>(Bytes::from_static(b"part"))));
        let ((slow, held), (fast, parts)) = (queue(), queue());
        let taken = tokio::spawn(parts.map(|part| part.is_ok()).collect::<Vec<bool>>());
        let stuck = pass_on(Body::from_stream(sent), vec![slow, fast], Duration::from_millis(20)).await.unwrap();
        assert_eq!(stuck, [true, false]);
        assert_eq!(taken.await.unwrap(), [true; QUEUE + 2]);
        let held: Vec<bool> = held.map(|part| part.is_ok()).collect().await;
        assert_eq!(held.last(), Some(&false), "its archive is cut off");
    }
}
