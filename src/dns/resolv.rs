//! The host's resolvers: reads resolv.conf, and again when it has changed.

use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use tracing::{info, warn};

/// The stub of systemd-resolved: works only where systemd-resolved runs, so the resolvers behind it are asked as well.
const STUB: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 53));
/// Where systemd-resolved lists them.
const BEHIND_STUB: &str = "/run/systemd/resolve/resolv.conf";

/// Addresses of `nameserver` lines, in order, each once. An address with a zone (`fe80::1%eth0`) is left out.
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

/// The resolvers of a resolv.conf, as they are now.
#[derive(Debug)]
pub struct Resolv {
    path: PathBuf,
    cached: Mutex<Cached>,
}

#[derive(Default, Debug)]
struct Cached {
    stamp: Option<Stamp>,
    nameservers: Vec<IpAddr>,
}

/// Tells a changed or replaced file from the one that was read.
type Stamp = (u64, i64, i64, u64);

impl Resolv {
    /// Reads `path` at the first question.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path, cached: Mutex::default() }
    }

    /// The resolvers listed now; none if the file is missing or lists none.
    #[must_use]
    pub fn nameservers(&self) -> Vec<IpAddr> {
        let stamp = stamp(&self.path);
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        if stamp.is_none() || cached.stamp != stamp {
            let text = std::fs::read_to_string(&self.path).unwrap_or_default();
            let mut found = nameservers(&text);
            if found.contains(&STUB) {
                let behind = nameservers(&std::fs::read_to_string(BEHIND_STUB).unwrap_or_default());
                found.extend(behind.into_iter().filter(|address| *address != STUB));
            }
            if cached.nameservers != found {
                info!(path = %self.path.display(), resolvers = ?found, "resolvers for foreign names");
            } else if found.is_empty() && stamp.is_some() {
                warn!(path = %self.path.display(), "no resolver listed: foreign names are answered SERVFAIL; add a nameserver line");
            }
            *cached = Cached { stamp, nameservers: found };
        }
        cached.nameservers.clone()
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nameserver_lines_are_taken_in_order_once_and_the_rest_is_skipped() {
        let text = "# nameserver 9.9.9.9\nsearch example.com\n nameserver\t192.0.2.1\nnameserver 2001:db8::1\nnameserver fe80::1%eth0\n\
                    nameserver\nnameserver nonsense\nnameserver 192.0.2.1 trailing\noptions ndots:0\n";
        assert_eq!(nameservers(text), [IpAddr::from([192, 0, 2, 1]), "2001:db8::1".parse().unwrap()]);
    }

    #[test]
    fn a_changed_file_is_read_again_and_a_missing_one_is_none() {
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
