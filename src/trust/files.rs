//! The files of a node's identity: `node.key`, `node.crt` and `ca.crt` in one directory, for root only. They are written
//! into a new directory that replaces the old one in one step, so that a crash leaves one of the two complete.

use super::{Identity, NodeName, TrustError, name};
use crate::durable::ignore_missing;
use crate::model::{ClusterId, NodeId, Secret};
use crate::sync::lock;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

const KEY: &str = "node.key";
const CERTIFICATE: &str = "node.crt";
const CA: &str = "ca.crt";

/// Why the files cannot be used. Each text names the file and what to do.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// A system call failed.
    #[error("cannot {verb} {}: {source}", path.display())]
    Io { verb: &'static str, path: PathBuf, source: io::Error },
    /// One file is missing while others exist.
    #[error("{} is missing while other files of this node's identity exist; restore it from a backup; if other managers are up, run `skep leave --force` and join again instead", path.display())]
    Missing { path: PathBuf },
    /// A file exists and cannot be used.
    #[error("{} is damaged: {why}; restore it from a backup; if other managers are up, run `skep leave --force` and join again instead", path.display())]
    Damaged { path: PathBuf, why: TrustError },
    /// The key is sealed, and what it is sealed with is not there or does not open it.
    #[error("{} cannot be opened: {why}", path.display())]
    Sealed { path: PathBuf, why: String },
    /// The directory belongs to another cluster.
    #[error("{} belongs to cluster {found}, not to {expected}: this is the data directory of another cluster; start with the right --data-dir, or move {} away and join again", path.display(), path.parent().unwrap_or(path).display())]
    OtherCluster {
        /// The node certificate.
        path: PathBuf,
        /// Cluster that the certificate names.
        found: ClusterId,
        /// Cluster of the rest of the data directory.
        expected: ClusterId,
    },
}

/// Begins the text of a key that is sealed.
const SEALED: &str = "skep-sealed-key/1 ";

/// Encrypts a node's private key on its way to the disk, where the swarm locks its managers.
pub trait KeySealer: Send + Sync + std::fmt::Debug {
    /// The key of a node as it is to lie on the disk: a text without line breaks. `None`: as it is.
    ///
    /// # Errors
    /// Why it cannot be sealed, for people.
    fn seal_key(&self, node: &NodeId, key: &str) -> Result<Option<String>, String>;
    /// The key that was sealed.
    ///
    /// # Errors
    /// Why it cannot be opened, for people.
    fn open_key(&self, node: &NodeId, sealed: &str) -> Result<Secret<String>, String>;
}

/// The directory of a node's identity.
#[derive(Clone, Debug)]
pub struct CertificateFiles {
    dir: PathBuf,
    sealer: Option<Arc<dyn KeySealer>>,
    /// Held while the files are replaced.
    writing: Arc<Mutex<()>>,
}

impl CertificateFiles {
    /// In this directory; a new identity is prepared in a directory beside it, with the extension `new`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), sealer: None, writing: Arc::default() }
    }

    /// With what seals and opens the key.
    #[must_use]
    pub fn sealed_by(self, sealer: Arc<dyn KeySealer>) -> Self {
        Self { sealer: Some(sealer), ..self }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Reads and checks the identity; `None` if there is none. With `cluster` it must belong to that cluster.
    ///
    /// # Errors
    /// See [`FilesError`].
    pub fn load(&self, cluster: Option<&ClusterId>) -> Result<Option<Identity>, FilesError> {
        let [key, certificate, ca] = [KEY, CERTIFICATE, CA].map(|name| self.read(name));
        let (key, certificate, ca) = match (key?, certificate?, ca?) {
            (None, None, None) => return Ok(None),
            (Some(key), Some(certificate), Some(ca)) => (key, certificate, ca),
            (key, certificate, _) => {
                let name = if key.is_none() {
                    KEY
                } else if certificate.is_none() {
                    CERTIFICATE
                } else {
                    CA
                };
                return Err(FilesError::Missing { path: self.dir.join(name) });
            }
        };
        let key = self.opened(key, &certificate)?;
        let identity = Identity::new(key.expose(), &certificate, &ca).map_err(|why| {
            let name = match &why {
                TrustError::Unreadable { what, .. } | TrustError::WrongKind { what } if what.contains("key") => KEY,
                TrustError::Unreadable { what, .. } if what.contains("CA") => CA,
                TrustError::KeyMismatch => KEY,
                _ => CERTIFICATE,
            };
            FilesError::Damaged { path: self.dir.join(name), why }
        })?;
        match cluster {
            Some(expected) if expected != identity.cluster_id() => Err(FilesError::OtherCluster {
                path: self.dir.join(CERTIFICATE),
                found: identity.cluster_id().clone(),
                expected: expected.clone(),
            }),
            _ => Ok(Some(identity)),
        }
    }

    /// Writes the identity and replaces an existing one.
    ///
    /// # Errors
    /// A system call failed; the identity before is untouched.
    pub fn store(&self, identity: &Identity) -> Result<(), FilesError> {
        let _writing = lock(&self.writing);
        self.replace(identity)
    }

    /// Whether the key on the disk is sealed.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn is_sealed(&self) -> Result<bool, FilesError> {
        Ok(self.read(KEY)?.is_some_and(|key| key.starts_with(SEALED)))
    }

    /// Writes the identity that is on the disk once more, with its key as it is to lie there now.
    ///
    /// # Errors
    /// See [`FilesError`]; the files before are untouched.
    pub fn seal_again(&self) -> Result<(), FilesError> {
        let _writing = lock(&self.writing);
        self.load(None)?.map_or(Ok(()), |identity| self.replace(&identity))
    }

    /// The key, opened if it is sealed.
    fn opened(&self, key: String, certificate: &str) -> Result<Secret<String>, FilesError> {
        let Some(sealed) = key.strip_prefix(SEALED) else { return Ok(key.into()) };
        let at = |why| FilesError::Sealed { path: self.dir.join(KEY), why };
        let sealer = self.sealer.as_ref().ok_or_else(|| at("it is sealed with the swarm's unlock key".to_owned()))?;
        let damaged = |why| FilesError::Damaged { path: self.dir.join(CERTIFICATE), why };
        let der = name::certificate_der("the node certificate", certificate).map_err(damaged)?;
        let node = NodeName::of_der(&der).map_err(damaged)?.node_id;
        sealer.open_key(&node, sealed.trim_end()).map_err(at)
    }

    fn replace(&self, identity: &Identity) -> Result<(), FilesError> {
        let sealed = match &self.sealer {
            Some(sealer) => sealer
                .seal_key(identity.node_id(), identity.key())
                .map_err(|why| FilesError::Sealed { path: self.dir.join(KEY), why })?,
            None => None,
        };
        let sealed = sealed.map(|text| format!("{SEALED}{text}\n"));
        let key = sealed.as_deref().unwrap_or(identity.key());
        let new = self.beside();
        remove(&new)?;
        let parent = self.dir.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(parent).map_err(io_error("make", parent))?;
        fs::DirBuilder::new().mode(0o700).create(&new).map_err(io_error("make", &new))?;
        for (name, text) in [(KEY, key), (CERTIFICATE, identity.certificate()), (CA, identity.ca_certificate())] {
            let path = new.join(name);
            write(&path, text).map_err(io_error("write", &path))?;
        }
        sync(&new)?;
        match renameat_with(CWD, &new, CWD, &self.dir, RenameFlags::EXCHANGE) {
            Ok(()) => remove(&new)?,
            Err(rustix::io::Errno::NOENT) => fs::rename(&new, &self.dir).map_err(io_error("write", &self.dir))?,
            Err(e) => return Err(io_error("replace", &self.dir)(e.into())),
        }
        sync(parent)
    }

    /// Removes the identity, for a node that has left its cluster. Missing files are no error.
    ///
    /// # Errors
    /// A system call failed.
    pub fn remove(&self) -> Result<(), FilesError> {
        remove(&self.beside())?;
        remove(&self.dir)
    }

    /// Removes what a crash left beside the directory: a new identity that was not complete, or the one before, perhaps with its key in
    /// the clear. Neither is used.
    ///
    /// # Errors
    /// A system call failed.
    pub fn remove_leftover(&self) -> Result<(), FilesError> {
        let _writing = lock(&self.writing);
        remove(&self.beside())
    }

    fn beside(&self) -> PathBuf {
        self.dir.with_extension("new")
    }

    /// Reads one file; `None` if it does not exist. A key that other users may read is restricted to root, with a warning.
    fn read(&self, name: &str) -> Result<Option<String>, FilesError> {
        let path = self.dir.join(name);
        let bytes = match fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(io_error("read", &path))?,
        };
        let mode = fs::metadata(&path).map_err(io_error("read", &path))?.permissions().mode();
        if mode & 0o077 != 0 && name == KEY {
            tracing::warn!(path = %path.display(), mode = format!("{:o}", mode & 0o777), "other users could read the node's key; restricted it to root");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(io_error("protect", &path))?;
        }
        // Bytes that are not text are not PEM either: the check that follows reports it.
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn sync(dir: &Path) -> Result<(), FilesError> {
    fs::File::open(dir).and_then(|d| d.sync_all()).map_err(io_error("write", dir))
}

fn remove(dir: &Path) -> Result<(), FilesError> {
    ignore_missing(fs::remove_dir_all(dir)).map_err(io_error("remove", dir))
}

fn io_error(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FilesError {
    let path = path.to_owned();
    move |source| FilesError::Io { verb, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{NodeId, Role, Timestamp};
    use crate::trust::{NodeKey, NodeName, RootCa, issue};
    use std::time::Duration;

    const NOW: Timestamp = Timestamp(1_795_000_000_000_000_000);

    struct Dir(PathBuf);
    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
    fn dir(name: &str) -> Dir {
        let path = std::env::temp_dir().join(format!("rpc-trust-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Dir(path)
    }
    fn identity(cluster: &str) -> Identity {
        let rng = &mut rand::rng();
        let ca = RootCa::generate(rng, NOW).unwrap();
        let key = NodeKey::generate().unwrap();
        let name = NodeName { node_id: NodeId::draw(rng), role: Role::Worker, cluster_id: cluster.into() };
        let certificate = issue(&ca, &key.request().unwrap(), &name, NOW, Duration::ZERO, rng).unwrap();
        Identity::new(&key.to_pem(), &certificate, ca.certificate()).unwrap()
    }

    #[test]
    fn an_identity_round_trips_and_is_readable_by_root_only() {
        let dir = dir("roundtrip");
        let files = CertificateFiles::new(dir.0.join("certificates"));
        assert!(files.load(None).unwrap().is_none());
        for cluster in ["one", "two"] {
            let identity = identity(cluster);
            files.store(&identity).unwrap();
            assert_eq!(files.load(Some(&cluster.into())).unwrap(), Some(identity));
        }
        assert_eq!(fs::metadata(files.dir()).unwrap().permissions().mode() & 0o777, 0o700);
        for name in [KEY, CERTIFICATE, CA] {
            assert_eq!(fs::metadata(files.dir().join(name)).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(fs::read_dir(&dir.0).unwrap().count(), 1, "the temporary directory is removed");
        files.remove().unwrap();
        files.remove().unwrap();
        assert!(files.load(None).unwrap().is_none());
    }

    #[test]
    fn what_a_crash_left_beside_the_directory_is_removed_and_the_identity_stays() {
        let dir = dir("leftover");
        let files = CertificateFiles::new(dir.0.join("certificates"));
        let identity = identity("one");
        files.remove_leftover().unwrap();
        files.store(&identity).unwrap();
        let left = dir.0.join("certificates.new");
        fs::create_dir(&left).unwrap();
        fs::write(left.join(KEY), identity.key()).unwrap();
        files.remove_leftover().unwrap();
        assert!(!left.exists());
        assert_eq!(files.load(None).unwrap(), Some(identity));
    }

    #[test]
    fn damage_names_the_file_and_what_to_do() {
        let dir = dir("damage");
        let files = CertificateFiles::new(dir.0.join("certificates"));
        let (good, other) = (identity("one"), identity("one"));
        let check = |name: &str, text: Option<&[u8]>, expected: &str| {
            files.store(&good).unwrap();
            match text {
                Some(text) => fs::write(files.dir().join(name), text).unwrap(),
                None => fs::remove_file(files.dir().join(name)).unwrap(),
            }
            let error = files.load(None).expect_err(name).to_string();
            assert!(error.contains(&*files.dir().join(name).to_string_lossy()), "{error}");
            assert!(error.contains(expected) && error.contains("skep leave --force"), "{error}");
        };
        for name in [KEY, CERTIFICATE, CA] {
            check(name, None, "missing");
            check(name, Some(b""), "damaged");
            check(name, Some(b"\xff\xfe\x00"), "damaged");
        }
        check(KEY, Some(&good.key().as_bytes()[..80]), "damaged");
        check(KEY, Some(other.key().as_bytes()), "does not belong");
        check(CERTIFICATE, Some(other.certificate().as_bytes()), "not issued by this cluster's CA");
    }

    #[test]
    fn another_clusters_directory_is_refused() {
        let dir = dir("other");
        let files = CertificateFiles::new(dir.0.join("certificates"));
        files.store(&identity("theirs")).unwrap();
        let error = files.load(Some(&"ours".into())).expect_err("refused").to_string();
        assert!(error.contains("node.crt belongs to cluster theirs, not to ours"), "{error}");
        assert!(error.contains("--data-dir"), "{error}");
    }

    /// Seals with a key of its own, for one node.
    #[derive(Debug)]
    struct Sealer(crate::trust::StateKey);

    impl KeySealer for Sealer {
        fn seal_key(&self, node: &NodeId, key: &str) -> Result<Option<String>, String> {
            let sealed = self.0.seal(node.as_str(), key.as_bytes(), &mut rand::rng()).map_err(|e| e.to_string())?;
            let hex = |text: String, byte: &u8| text + &format!("{byte:02x}");
            Ok(Some(sealed.iter().fold(String::new(), hex)))
        }
        fn open_key(&self, node: &NodeId, sealed: &str) -> Result<Secret<String>, String> {
            let byte = |at| u8::from_str_radix(sealed.get(at..at + 2).unwrap_or("x"), 16).map_err(|e| e.to_string());
            let bytes = (0..sealed.len()).step_by(2).map(byte).collect::<Result<Vec<u8>, _>>()?;
            let opened = self.0.open(node.as_str(), &bytes).map_err(|e| e.to_string())?;
            Ok(String::from_utf8_lossy(opened.expose()).into_owned().into())
        }
    }

    #[test]
    fn a_sealed_key_is_opened_by_its_sealer_with_its_own_certificate_only() {
        let dir = dir("sealed");
        let plain = CertificateFiles::new(dir.0.join("certificates"));
        let sealer = || Arc::new(Sealer(crate::trust::StateKey::draw(&mut rand::rng())));
        let files = plain.clone().sealed_by(sealer());
        let (own, other) = (identity("one"), identity("one"));
        plain.store(&own).unwrap();
        assert_eq!(files.load(None).unwrap(), Some(own.clone()), "a key that was not sealed is read");
        assert!(!files.is_sealed().unwrap());
        files.seal_again().unwrap();
        let text = |name: &str| fs::read_to_string(files.dir().join(name)).unwrap();
        assert!(files.is_sealed().unwrap() && !text(KEY).contains(&own.key()[40..60]));
        assert_eq!(files.load(None).unwrap(), Some(own.clone()));
        for reader in [plain.clone(), plain.clone().sealed_by(sealer())] {
            let error = reader.load(None).expect_err("refused").to_string();
            assert!(error.contains("node.key cannot be opened"), "{error}");
        }
        // The key of this node beside the certificate of another one.
        let sealed = text(KEY);
        files.store(&other).unwrap();
        fs::write(files.dir().join(KEY), &sealed).unwrap();
        assert!(matches!(files.load(None), Err(FilesError::Sealed { .. })));
        files.store(&own).unwrap();
        fs::write(files.dir().join(KEY), &sealed[..sealed.len() - 9]).unwrap();
        assert!(matches!(files.load(None), Err(FilesError::Sealed { .. })), "cut short");
    }
}
