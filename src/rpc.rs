//! The node-to-node protocol over mutual TLS: join, certificates, sessions (later raft and logs). Frames are a length
//! and one JSON document. Knows the messages and the transport, not what is done with them: that is behind traits.

pub mod message;
