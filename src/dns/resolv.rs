//! The host's resolvers: reads resolv.conf, again when it has changed.

use crate::sync::lock;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use tracing::{info, warn};

/// The stub listener of systemd-resolved: does not answer if systemd-resolved is stopped, so its upstreams are queried as well.
const STUB: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 53));
/// File in which systemd-resolved lists its upstreams.
const STUB_UPSTREAMS: &str = "/run/systemd/resolve/resolv.conf";

/// Addresses of `nameserver` lines, in order, without duplicates. An address with a zone (`fe80::1%eth0`) is omitted.
#[must_use]
pub fn nameservers(text: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() == Some("nameserver")
            && let Some(address) = words.next().and_then(|word| word.parse::<IpAddr>().ok())
            && !found.contains(&address)
        {
            found.push(address);
        }
    }
    found
}

/// The resolvers of a resolv.conf.
#[derive(Debug)]
pub struct Resolv {
    path: PathBuf,
    cached: Mutex<Cached>,
}

#[derive(Default, Debug)]
struct Cached {
    version: Option<FileVersion>,
    nameservers: Vec<IpAddr>,
}

/// Inode, modification time (seconds, nanoseconds) and length: differs after the file was changed or replaced.
type FileVersion = (u64, i64, i64, u64);

impl Resolv {
    /// Reads `path` at the first query.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path, cached: Mutex::default() }
    }

    /// The resolvers listed now; none if the file is missing or lists none.
    #[must_use]
    pub fn nameservers(&self) -> Vec<IpAddr> {
        let version = file_version(&self.path);
        let mut cached = lock(&self.cached);
        if version.is_none() || cached.version != version {
            let text = std::fs::read_to_string(&self.path).unwrap_or_default();
            let mut found = nameservers(&text);
            if found.contains(&STUB) {
                let upstreams = nameservers(&std::fs::read_to_string(STUB_UPSTREAMS).unwrap_or_default());
                found.extend(upstreams.into_iter().filter(|address| *address != STUB));
            }
            if cached.nameservers != found {
                info!(path = %self.path.display(), resolvers = ?found, "resolvers for names outside the cluster");
            } else if found.is_empty() && version.is_some() {
                warn!(path = %self.path.display(), "the file lists no resolver: names outside the cluster are answered SERVFAIL; add a nameserver line");
            }
            *cached = Cached { version, nameservers: found };
        }
        cached.nameservers.clone()
    }
}

fn file_version(path: &Path) -> Option<FileVersion> {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nameserver_lines_are_read_in_order_without_duplicates_and_other_lines_are_skipped() {
        let text = "# nameserver 9.9.9.9\nsearch example.com\n nameserver\t192.0.2.1\nnameserver 2001:db8::1\nnameserver fe80::1%eth0\n\
                    nameserver\nnameserver nonsense\nnameserver 192.0.2.1 trailing\noptions ndots:0\n";
        assert_eq!(nameservers(text), [IpAddr::from([192, 0, 2, 1]), "2001:db8::1".parse().unwrap()]);
    }

    #[test]
    fn a_changed_file_is_read_again_and_a_missing_file_has_no_resolvers() {
        let path = std::env::temp_dir().join(format!("skep-dns-resolv-{}", std::process::id()));
        let resolv = Resolv::new(path.clone());
        assert!(resolv.nameservers().is_empty());
        std::fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
        assert_eq!(resolv.nameservers(), [IpAddr::from([192, 0, 2, 1])]);
        std::fs::write(&path, "nameserver 192.0.2.1\nnameserver 192.0.2.2\n").unwrap();
        assert_eq!(resolv.nameservers().len(), 2);
        std::fs::remove_file(&path).unwrap();
        assert!(resolv.nameservers().is_empty());
    }
}
