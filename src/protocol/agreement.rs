//! Which format of the protocol two nodes speak: the newest that both have. The first message of a connection names the
//! sender's range, and beside it one number for builds that know no ranges: those compare it with their own for equality.

use super::FORMATS;
use crate::model::FormatRange;
use serde::{Deserialize, Serialize};

/// First format with views in pieces and with [`super::ToManager::Troubles`].
pub const PIECES: u32 = 3;
/// First format in which a joiner proves that it has the private key of its tunnel.
pub const KEY_PROOF: u32 = 4;

/// First format in which the backends of a published port travel one by one and large documents are compressed, and with
/// [`super::ToManager::Behind`], [`super::ToManager::Restarting`], [`super::ToManager::Attachments`] and [`super::ToManager::Load`].
pub const BACKENDS: u32 = 5;

/// First format with [`super::ToManager::Demand`].
pub const DEMAND: u32 = 6;

/// A manager and a node have no format in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error, Serialize, Deserialize)]
#[error("the manager speaks protocol {manager}, this node {node}: upgrade skep on {}", to_upgrade(*.manager, *.node))]
pub struct NoCommonFormat {
    pub manager: FormatRange,
    pub node: FormatRange,
}

fn to_upgrade(manager: FormatRange, node: FormatRange) -> &'static str {
    if manager.newest < node.newest { "the manager" } else { "this node" }
}

/// The format that a manager and a node speak.
///
/// # Errors
/// They have none in common.
pub fn agree(manager: FormatRange, node: FormatRange) -> Result<u32, NoCommonFormat> {
    manager.common(node).ok_or(NoCommonFormat { manager, node })
}

/// The formats of a peer, from the number and the range of its first message. A build that knows no ranges names the number
/// alone.
#[must_use]
pub fn formats_of_peer(format: u32, formats: Option<FormatRange>) -> FormatRange {
    formats.unwrap_or(FormatRange::only(format))
}

/// The formats that a first message names, whatever else it contains: a newer protocol is recognised without being
/// understood.
#[must_use]
pub fn formats_in(document: &[u8]) -> Option<FormatRange> {
    let value: serde_json::Value = serde_json::from_slice(document).ok()?;
    let first = value.get("Request").or_else(|| value.get("Hello"))?;
    let number = |value: &serde_json::Value| u32::try_from(value.as_u64()?).ok();
    let format = number(first.get("format")?)?;
    let range = first
        .get("formats")
        .and_then(|range| Some(FormatRange { oldest: number(range.get("oldest")?)?, newest: number(range.get("newest")?)? }));
    Some(formats_of_peer(format, range))
}

/// The format of a manager that knows no ranges, from the text by which it refuses another number; `None` if the text is
/// another, or this build does not have the format. To be named in a further attempt.
#[must_use]
pub fn format_in_refusal(text: &str, named: u32) -> Option<u32> {
    let (format, rest) = text.strip_prefix("the manager speaks protocol ")?.split_once(", this node ")?;
    let format = format.parse().ok()?;
    (rest.starts_with(&format!("{named}:")) && format != named && FORMATS.contains(format)).then_some(format)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_of_a_single_number_has_that_format_and_no_other() {
        assert_eq!(formats_of_peer(2, None), FormatRange::only(2));
        assert_eq!(formats_of_peer(2, Some(FormatRange::new(1, 7))), FormatRange::new(1, 7));
        assert_eq!(agree(FORMATS, FormatRange::only(2)), Ok(2), "the release before ranges");
        assert_eq!(agree(FORMATS, FORMATS), Ok(FORMATS.newest));
    }

    #[test]
    fn an_error_names_both_ranges_and_the_side_to_upgrade() {
        let error = agree(FormatRange::new(2, 3), FormatRange::new(4, 6)).unwrap_err().to_string();
        assert_eq!(error, "the manager speaks protocol 2 to 3, this node 4 to 6: upgrade skep on the manager");
        let error = agree(FormatRange::new(4, 6), FormatRange::only(2)).unwrap_err().to_string();
        assert_eq!(error, "the manager speaks protocol 4 to 6, this node 2: upgrade skep on this node");
    }

    #[test]
    fn the_formats_of_a_newer_protocol_are_recognised() {
        let range = br#"{"Hello":{"format":4,"formats":{"oldest":4,"newest":9,"why":0},"letters":[]}}"#;
        assert_eq!(formats_in(range), Some(FormatRange::new(4, 9)));
        assert_eq!(formats_in(br#"{"Request":{"format":7,"letters":[]}}"#), Some(FormatRange::only(7)));
        assert_eq!(formats_in(br#"{"Hello":{"format":2,"formats":{"newest":3}}}"#), Some(FormatRange::only(2)));
        for none in [&b"{}"[..], b"", b"[1]", br#"{"Hello":{"format":-1}}"#, br#"{"Alive":{"format":1}}"#] {
            assert_eq!(formats_in(none), None);
        }
    }

    #[test]
    fn the_refusal_of_a_manager_without_ranges_names_its_format() {
        let text = |manager: &str, node| format!("the manager speaks protocol {manager}, this node {node}: install the same …");
        assert_eq!(format_in_refusal(&text("3", 2), 2), Some(3));
        assert_eq!(format_in_refusal(&text("2", 3), 3), Some(2));
        for (other, named) in
            [(text("2", 2), 2), (text("9", 2), 2), (text("2 to 3", 9), 9), (text("3", 20), 2), (String::new(), 2)]
        {
            assert_eq!(format_in_refusal(&other, named), None, "{other}");
        }
    }
}
