//! The file of the node's WireGuard key: base 64, mode 600.

use crate::durable;
use crate::model::{Secret, WgKey};
use anyhow::{Context as _, anyhow};
use std::path::Path;
use x25519_dalek::{PublicKey, StaticSecret};

/// Creates a private key at `path` and returns its public key. An existing file is replaced as a whole.
///
/// # Errors
/// The file cannot be written.
pub fn generate_key(path: &Path) -> anyhow::Result<WgKey> {
    let mut secret = [0u8; 32];
    rand::TryRngCore::try_fill_bytes(&mut rand::rngs::OsRng, &mut secret).context("no randomness from the kernel")?;
    let line = Secret::new(format!("{}\n", WgKey(secret).to_base64()));
    durable::replace(path, line.expose().as_bytes())
        .with_context(|| format!("cannot write the WireGuard key {}", path.display()))?;
    Ok(public_key_of(secret))
}

/// The public key of the private key at `path`.
///
/// # Errors
/// The file cannot be read or contains no key.
pub fn public_key(path: &Path) -> anyhow::Result<WgKey> {
    private_key(path).map(|key| public_key_of(*key.expose()))
}

/// The private key at `path`.
///
/// # Errors
/// The file cannot be read or contains no key.
pub fn private_key(path: &Path) -> anyhow::Result<Secret<[u8; 32]>> {
    let text =
        Secret::new(std::fs::read_to_string(path).with_context(|| format!("cannot read the WireGuard key {}", path.display()))?);
    let key = WgKey::from_base64(text.expose()).ok_or_else(|| {
        anyhow!("{} contains no WireGuard key (44 characters of base 64): restore it, or leave and join again", path.display())
    })?;
    Ok(Secret::new(key.0))
}

fn public_key_of(secret: [u8; 32]) -> WgKey {
    WgKey(PublicKey::from(&StaticSecret::from(secret)).to_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_key_is_written_privately_and_read_back() {
        let folder = std::env::temp_dir().join(format!("skep-tunnel-key-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("wg.key");
        let public = generate_key(&path).unwrap();
        assert_eq!(public_key(&path).unwrap(), public);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        for malformed in ["", "hello", "AAAA", "\u{fffd}"] {
            std::fs::write(&path, malformed).unwrap();
            let error = public_key(&path).unwrap_err().to_string();
            assert!(error.contains("wg.key"), "{error}");
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
