//! Who may see the page: requests that name a loopback host (a page of another site could have its own name resolve to loopback),
//! that no other site has caused, and that come with the token.

use crate::model::Secret;
use axum::http::{HeaderMap, Uri};
use sha2::{Digest as _, Sha256};
use std::fmt::Write as _;

/// Cookie that a browser keeps the token in. Cookies do not depend on the port: its number is added.
const COOKIE: &str = "skep-dashboard";

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
    /// It came with the token in its address: the browser keeps this cookie, and asks again without.
    Keep(String),
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
        format!("http://{host}:{}/?token={}", self.port, self.token.expose())
    }

    /// By digest, so that the time says nothing of the token.
    fn is_it(&self, given: &str) -> bool {
        Sha256::digest(given) == Sha256::digest(self.token.expose())
    }

    /// Decides on a request. Pure.
    pub(super) fn admit(&self, uri: &Uri, headers: &HeaderMap) -> PageAdmission {
        let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
        if !header("host").is_some_and(is_loopback) || headers.get_all("host").iter().count() != 1 {
            return PageAdmission::Refused(421, "open this page by localhost, 127.0.0.1 or [::1]\n");
        }
        let name = format!("{COOKIE}-{}", self.port);
        let token = uri.query().into_iter().flat_map(|query| query.split('&')).find_map(|pair| pair.strip_prefix("token="));
        if let Some(token) = token.filter(|_| uri.path() == "/") {
            return if self.is_it(token) {
                PageAdmission::Keep(format!("{name}={}; Path=/; HttpOnly; SameSite=Strict", self.token.expose()))
            } else {
                PageAdmission::Refused(401, NO_TOKEN)
            };
        }
        // `none`: the user's own doing, as a bookmark.
        if header("sec-fetch-site").is_some_and(|site| site != "same-origin" && site != "none") {
            return PageAdmission::Refused(403, "another site may not ask for this page\n");
        }
        let cookies = headers.get_all("cookie").iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(';'));
        let mut kept = cookies.filter_map(|cookie| cookie.trim().split_once('=')).filter(|(key, _)| *key == name);
        if kept.any(|(_, value)| self.is_it(value)) { PageAdmission::Granted } else { PageAdmission::Refused(401, NO_TOKEN) }
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

    fn admitted(target: &str, headers: &[(&'static str, &str)]) -> PageAdmission {
        let token = PageToken::new([7; 32], 2380);
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        token.admit(&target.parse().unwrap(), &map)
    }

    fn status(admission: &PageAdmission) -> u16 {
        match admission {
            PageAdmission::Granted => 200,
            PageAdmission::Keep(_) => 303,
            PageAdmission::Refused(status, _) => *status,
        }
    }

    #[test]
    fn only_loopback_names_are_served_whatever_the_port() {
        for host in ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:2380", "[::1]", "[::1]:9"] {
            assert_eq!(status(&admitted("/", &[("host", host)])), 401, "{host}");
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
            assert_eq!(status(&admitted("/", &[("host", host)])), 421, "{host}");
        }
        assert_eq!(status(&admitted("/", &[])), 421);
        assert_eq!(status(&admitted("/", &[("host", "localhost"), ("host", "localhost")])), 421);
    }

    #[test]
    fn the_token_becomes_a_cookie_and_the_cookie_is_what_counts() {
        let token = "07".repeat(32);
        let right = admitted(&format!("/?token={token}"), &[("host", "localhost")]);
        let PageAdmission::Keep(cookie) = right else { panic!("{right:?}") };
        assert_eq!(cookie, format!("skep-dashboard-2380={token}; Path=/; HttpOnly; SameSite=Strict"));
        let cookie = cookie.split(';').next().unwrap();
        let of = |cookie: &str| status(&admitted("/api/overview", &[("host", "localhost"), ("cookie", cookie)]));
        assert_eq!((of(cookie), of(&format!("a=b; {cookie}"))), (200, 200));
        assert_eq!((of("skep-dashboard-2380=07"), of(&format!("skep-dashboard-9={token}")), of("")), (401, 401, 401));
        assert_eq!(status(&admitted("/?token=", &[("host", "localhost"), ("cookie", cookie)])), 401);
        let from = |site: &str| status(&admitted("/", &[("host", "localhost"), ("cookie", cookie), ("sec-fetch-site", site)]));
        assert_eq!((from("same-origin"), from("none"), from("cross-site"), from("same-site")), (200, 200, 403, 403));
    }
}
