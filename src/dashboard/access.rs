//! Who may see the page: requests that name a loopback host (a page of another site could have its own name resolve to loopback),
//! that no other site has caused, and, for what the page shows, that come with the token. The page itself holds nothing: its files need none.
//!
//! The token is after the `#` of the address, which a browser sends to no server; the page keeps it for its window and port alone, and sends
//! it in a header. A cookie would go to every port of the host, and so to servers of other users.

use crate::model::Secret;
use axum::http::HeaderMap;
use sha2::{Digest as _, Sha256};
use std::fmt::Write as _;

/// Header that the page sends the token in. Another site cannot: a browser would ask here first whether it may.
const TOKEN: &str = "skep-dashboard-token";

/// By what a page is guarded.
#[derive(Clone, Debug)]
pub(super) enum PageAccess {
    /// By its token, on loopback.
    Token(PageToken),
    /// By the password of its HTTP route: the process that has asked for it is the only one that can connect.
    Route,
}

impl PageAccess {
    /// Decides on a request, for a file of the page or for data. Pure.
    pub fn admit(&self, is_file: bool, headers: &HeaderMap) -> PageAdmission {
        match self {
            Self::Token(token) => token.admit(is_file, headers),
            Self::Route if is_of_another_site(headers) => PageAdmission::Refused(403, OTHER_SITE),
            Self::Route => PageAdmission::Granted,
        }
    }
}

const OTHER_SITE: &str = "another site may not ask for this page\n";

/// `none`: the user's own doing, as a bookmark.
fn is_of_another_site(headers: &HeaderMap) -> bool {
    headers.get("sec-fetch-site").is_some_and(|site| site != "same-origin" && site != "none")
}

/// What the page's address ends with.
#[derive(Clone, Debug)]
pub struct PageToken {
    token: Secret<String>,
    port: u16,
}

/// What becomes of a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum PageAdmission {
    Granted,
    /// With a status and what to do.
    Refused(u16, &'static str),
}

impl PageToken {
    /// For a page on this port. `random` is not to be guessed.
    pub fn new(random: [u8; 32], port: u16) -> Self {
        let mut token = String::new();
        for byte in random {
            let _ = write!(token, "{byte:02x}");
        }
        Self { token: Secret::new(token), port }
    }

    /// What to open in a browser.
    pub fn address(&self, host: &str) -> String {
        format!("http://{host}:{}/#token={}", self.port, self.token.expose())
    }

    /// By digest, so that the time says nothing of the token.
    fn is_it(&self, given: &str) -> bool {
        Sha256::digest(given) == Sha256::digest(self.token.expose())
    }

    /// Decides on a request, for a file of the page or for data. Pure.
    pub(super) fn admit(&self, is_file: bool, headers: &HeaderMap) -> PageAdmission {
        let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
        if !header("host").is_some_and(is_loopback) || headers.get_all("host").iter().count() != 1 {
            return PageAdmission::Refused(421, "open this page by localhost, 127.0.0.1 or [::1]\n");
        }
        if is_of_another_site(headers) {
            return PageAdmission::Refused(403, OTHER_SITE);
        }
        if is_file || header(TOKEN).is_some_and(|token| self.is_it(token)) {
            PageAdmission::Granted
        } else {
            PageAdmission::Refused(401, NO_TOKEN)
        }
    }
}

const NO_TOKEN: &str = "this page needs the address that `skep dashboard` has printed, with its token\n";

/// A host of a `Host` header, whatever its port: a tunnel of ssh may have another one.
fn is_loopback(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some(("::1", rest)) => ("::1", rest.strip_prefix(':').or_else(|| rest.is_empty().then_some(""))),
        Some(_) => return false,
        None => host.split_once(':').map_or((host, Some("")), |(name, port)| (name, Some(port))),
    };
    let is_port = port.is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit()));
    is_port && (name == "::1" || name == "127.0.0.1" || name.eq_ignore_ascii_case("localhost"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(is_file: bool, headers: &[(&'static str, &str)]) -> PageAdmission {
        let token = PageToken::new([7; 32], 2380);
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        token.admit(is_file, &map)
    }

    fn status(admission: &PageAdmission) -> u16 {
        match admission {
            PageAdmission::Granted => 200,
            PageAdmission::Refused(status, _) => *status,
        }
    }

    #[test]
    fn only_loopback_names_are_served_whatever_the_port() {
        for host in ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:2380", "[::1]", "[::1]:9"] {
            let status = [true, false].map(|is_file| status(&admitted(is_file, &[("host", host)])));
            assert_eq!(status, [200, 401], "{host}");
        }
        for host in [
            "",
            "evil.test",
            "localhost.evil.test",
            "127.0.0.1.evil.test:2380",
            "127.0.0.2",
            "[::2]",
            "[::1]x",
            "::1",
            "localhost:a",
        ] {
            assert_eq!(status(&admitted(true, &[("host", host)])), 421, "{host}");
        }
        assert_eq!(status(&admitted(true, &[])), 421);
        assert_eq!(status(&admitted(true, &[("host", "localhost"), ("host", "localhost")])), 421);
    }

    #[test]
    fn the_token_counts_in_its_header_alone_and_for_no_other_site() {
        let token = "07".repeat(32);
        let of = |name, value: &str| status(&admitted(false, &[("host", "localhost"), (name, value)]));
        assert_eq!((of(TOKEN, &token), of(TOKEN, ""), of(TOKEN, "07"), of(TOKEN, &token[1..])), (200, 401, 401, 401));
        // What a browser also sends to other ports is not where it may be.
        assert_eq!((of("cookie", &format!("skep-dashboard-2380={token}")), of("authorization", &token)), (401, 401));
        let from =
            |is_file, site: &str| status(&admitted(is_file, &[("host", "localhost"), (TOKEN, &token), ("sec-fetch-site", site)]));
        for is_file in [true, false] {
            let all = ["same-origin", "none", "cross-site", "same-site"].map(|site| from(is_file, site));
            assert_eq!(all, [200, 200, 403, 403]);
        }
        assert_eq!(PageToken::new([7; 32], 2380).address("localhost"), format!("http://localhost:2380/#token={token}"));
    }
}
