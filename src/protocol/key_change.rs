//! Messages of a node that changes its WireGuard key, between it and any manager, through the tunnel with the key that it has. TLS has
//! authenticated both sides; nothing in a message says who the node is.

use super::KeyAnswer;
use crate::model::{KeyChallenge, WgKey};
use serde::{Deserialize, Serialize};

/// From the node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum FromKeyChanger {
    /// First message.
    Request(KeyChangeRequest),
    /// The proof that the node has the private half of the key to begin with.
    Proof(KeyAnswer),
}

/// What the node is about to do, or has done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum KeyChangeRequest {
    /// This is to be its key. The manager answers with a challenge.
    Begin(WgKey),
    /// It uses this one: the key before is to be forgotten.
    InUse(WgKey),
}

/// From the manager.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ToKeyChanger {
    Challenge(KeyChallenge),
    /// It is written.
    Done,
    /// For people.
    Refused(String),
}
