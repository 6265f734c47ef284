//! What nodes send each other: messages, their limits, and the encoding of a view as a difference. No IO: `rpc` carries
//! these.

mod certificate;
pub mod entries;
mod join;
mod session;
pub mod shared_documents;
pub mod view_delta;
pub mod view_piece;
pub mod view_stream;

pub use certificate::{RenewalAnswer, RenewalRefused, RenewalRequest, RenewedCertificate};
pub use join::{FromJoiner, JoinRefused, JoinReply, JoinRequest, Proof, ToJoiner};
pub use session::{ToManager, ToNode};

/// Number of the protocol; both sides send theirs in the first message and refuse any other.
pub const FORMAT: u32 = 3;
/// Largest frame between members, in bytes.
pub const MAX_FRAME: usize = 16 << 20;
/// Largest frame accepted from a joiner, in bytes.
pub const MAX_JOINER_FRAME: usize = 1 << 20;

/// Largest frame of a certificate renewal, in bytes.
pub const MAX_RENEWAL_FRAME: usize = 64 << 10;

/// The format that a first message names, whatever else it contains: a newer protocol is recognised without being
/// understood.
#[must_use]
pub fn format_of(document: &[u8]) -> Option<u32> {
    let value: serde_json::Value = serde_json::from_slice(document).ok()?;
    let first = value.get("Request").or_else(|| value.get("Hello"))?;
    u32::try_from(first.get("format")?.as_u64()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_of_a_newer_protocol_is_recognised() {
        assert_eq!(format_of(br#"{"Request":{"format":7,"letters":[]}}"#), Some(7));
        assert_eq!(format_of(br#"{"Hello":{"format":2}}"#), Some(2));
        for none in [&b"{}"[..], b"", b"[1]", br#"{"Hello":{"format":-1}}"#, br#"{"Alive":{"format":1}}"#] {
            assert_eq!(format_of(none), None);
        }
    }
}
