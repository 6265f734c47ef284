//! What nodes send each other: messages, their limits, and the encoding of a view as a difference. No IO: `rpc` carries
//! these.

mod agreement;
mod certificate;
pub mod compression;
pub mod entries;
mod join;
mod key_change;
mod membership;
#[cfg(test)]
mod payload_tests;
mod session;
pub mod shared_documents;
pub mod view_delta;
pub mod view_piece;
pub mod view_stream;

use crate::model::FormatRange;

pub use agreement::{BACKENDS, DEMAND, KEY_PROOF, NoCommonFormat, PIECES, agree, format_in_refusal, formats_in, formats_of_peer};
pub use certificate::{RenewalAnswer, RenewalRefused, RenewalRequest, RenewedCertificate};
pub use join::{FromJoiner, JoinRefused, JoinReply, JoinRequest, KeyAnswer, Proof, ToJoiner};
pub use key_change::{FromKeyChanger, KeyChangeRequest, ToKeyChanger};
pub use membership::{MembershipAnswer, removal_reason};
pub use session::{ToManager, ToNode};

/// Formats of the protocol that this build speaks. 2: views are sent whole. 3: views travel in pieces, nodes report troubles.
/// 4: a joiner proves that it has the private key of its tunnel. 5: backends travel one by one, views are compressed, nodes say that a
/// view does not fit theirs, that they restart, and what their plain containers need. 6: nodes report the demand for services that are
/// scaled by load.
pub const FORMATS: FormatRange = FormatRange::new(2, DEMAND);
/// The newest format that this build speaks.
pub const FORMAT: u32 = FORMATS.newest;
/// Largest frame between members, in bytes.
pub const MAX_FRAME: usize = 16 << 20;
/// Largest frame accepted from a joiner, in bytes.
pub const MAX_JOINER_FRAME: usize = 1 << 20;

/// Largest frame of an answer about a membership, in bytes.
pub const MAX_MEMBERSHIP_FRAME: usize = 16 << 10;

/// Largest frame of a certificate renewal, in bytes.
pub const MAX_RENEWAL_FRAME: usize = 64 << 10;
