//! The node's WireGuard key file: base 64, mode 600.

use crate::model::WgKey;
use anyhow::{Context as _, anyhow};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use x25519_dalek::{PublicKey, StaticSecret};

/// Makes a new private key at `path` and returns its public one. An existing file is replaced only as a whole.
///
/// # Errors
/// The file cannot be written.
pub fn generate_key(path: &Path) -> anyhow::Result<WgKey> {
    let mut secret = [0u8; 32];
    rand::TryRngCore::try_fill_bytes(&mut rand::rngs::OsRng, &mut secret).context("no randomness from the kernel")?;
    let temporary = path.with_extension("new");
    let write = || {
        let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        writeln!(file, "{}", WgKey(secret).to_base64())?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    write().with_context(|| format!("cannot write the WireGuard key {}", path.display()))?;
    Ok(public_of(secret))
}

/// The public key that belongs to the private one at `path`.
///
/// # Errors
/// The file cannot be read or holds no key.
pub fn public_key(path: &Path) -> anyhow::Result<WgKey> {
    private_key(path).map(public_of)
}

/// The private key at `path`.
pub(super) fn private_key(path: &Path) -> anyhow::Result<[u8; 32]> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the WireGuard key {}", path.display()))?;
    let key = WgKey::from_base64(&text).ok_or_else(|| {
        anyhow!(
            "{} holds no WireGuard key (44 characters of base 64 wanted): restore it, or leave and join again",
            path.display()
        )
    })?;
    Ok(key.0)
}

fn public_of(secret: [u8; 32]) -> WgKey {
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
        for rubbish in ["", "hello", "AAAA", "\u{fffd}"] {
            std::fs::write(&path, rubbish).unwrap();
            let error = public_key(&path).unwrap_err().to_string();
            assert!(error.contains("wg.key"), "{error}");
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
