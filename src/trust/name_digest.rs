//! Names that all nodes must recognise and need not know: their digests are sent. Who tries names finds those that he guesses.

use crate::model::mesh::MeshPrefix;
use sha2::{Digest as _, Sha256};

/// Begins what is digested.
const CONTEXT: &[u8] = b"skep-name/1\0";
/// Bytes of the digest. A name that has another one's by chance could not be given to a network of a node's own.
const LENGTH: usize = 8;

/// The digest of a name in a cluster, in hexadecimal digits; in another cluster the name has another one.
#[must_use]
pub fn name_digest(mesh: MeshPrefix, name: &str) -> String {
    let digest = Sha256::new().chain_update(CONTEXT).chain_update(mesh.0.addr().octets()).chain_update(name).finalize();
    let hex = |text: String, byte: &u8| text + &format!("{byte:02x}");
    digest[..LENGTH].iter().fold(String::new(), hex)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_the_same_digest_on_all_nodes_of_a_cluster_and_another_elsewhere() {
        let mesh = |text: &str| MeshPrefix(text.parse().unwrap());
        let (here, there) = (mesh("fd12:3456:789a::/48"), mesh("fd12:3456:789b::/48"));
        assert_eq!(name_digest(here, "back"), "f7c2a7bbbd99b318");
        assert_ne!(name_digest(here, "back"), name_digest(here, "Back"));
        assert_ne!(name_digest(here, "back"), name_digest(there, "back"));
    }
}
