//! Variables of nginx-proxy, which reads them from the environment of containers: `VIRTUAL_HOST` with its port, path and protocol.

use super::host_and_path::{characters, host};
use super::route::{HttpEntry, HttpRedirect, HttpRoute, HttpScheme, PrefixEnd};
use std::collections::BTreeMap;

/// What the variables say: routes, variables that are not carried out with the reason, and what is carried out in another way.
#[derive(Default)]
pub(super) struct NginxProxyVariables {
    pub routes: Vec<HttpRoute>,
    pub refused: Vec<String>,
    pub notes: Vec<String>,
}

const HOST: &str = "VIRTUAL_HOST";

/// Whether there is a route among the variables, each `NAME=VALUE`.
pub(super) fn has_host(env: &[String]) -> bool {
    env.iter().any(|one| one.strip_prefix(HOST).is_some_and(|rest| rest.starts_with('=') && rest.len() > 1))
}

/// Reads them; other variables are ignored.
pub(super) fn read(env: &[String]) -> NginxProxyVariables {
    let mut read = NginxProxyVariables::default();
    if !has_host(env) {
        return read;
    }
    let variables: BTreeMap<&str, &str> = env.iter().filter_map(|one| one.split_once('=')).map(|(k, v)| (k, v.trim())).collect();
    match route(&variables, &mut read.notes) {
        Ok(route) => read.routes.push(route),
        Err(why) => read.refused.push(format!("variable {why}")),
    }
    read
}

fn route(variables: &BTreeMap<&str, &str>, notes: &mut Vec<String>) -> Result<HttpRoute, String> {
    let mut route = HttpRoute::default();
    let get = |name: &str| variables.get(name).copied().filter(|value| !value.is_empty());
    let wrong = |name: &str, why: &str| format!("{name}={}: {why}", variables.get(name).copied().unwrap_or_default());
    if let Some(name) = variables.keys().find(|name| name.starts_with("VIRTUAL_HOST_")) {
        return Err(wrong(name, "skep does not carry it out: give each port a service of its own, or labels of skep.http"));
    }
    let hosts: Option<Vec<String>> = get(HOST).unwrap_or_default().split(',').map(|one| host(one.trim())).collect();
    route.hosts =
        hosts.ok_or_else(|| wrong(HOST, "must be hosts separated by commas, as shop.example.com,*.shop.example.com"))?;
    route.hosts.sort_unstable();
    route.hosts.dedup();
    if let Some(port) = get("VIRTUAL_PORT") {
        let port = port.parse().ok().filter(|port| *port != 0);
        route.port = port.ok_or_else(|| wrong("VIRTUAL_PORT", "must be the port on which the containers listen, 1 to 65535"))?;
    } else {
        notes.push(format!("variable {HOST}: there is no VIRTUAL_PORT: requests go to port 80 of the containers"));
    }
    if let Some(path) = get("VIRTUAL_PATH") {
        let (prefix, end) = characters(path).ok_or_else(|| wrong("VIRTUAL_PATH", "must be a path, as /api"))?;
        // `location /api` is of `/apis` too. With a slash at its end nginx sends `/api` there.
        let end = if end == PrefixEnd::Slash { PrefixEnd::Segment } else { end };
        (route.prefix, route.prefix_end) = (prefix, end);
        match get("VIRTUAL_DEST") {
            None => {}
            Some("/") => route.strip = route.prefix != "/",
            Some(_) => return Err(wrong("VIRTUAL_DEST", "must be / (the path is taken off) or not there (the path is kept)")),
        }
    }
    route.scheme = match get("VIRTUAL_PROTO") {
        None | Some("http") => HttpScheme::Http,
        Some("https" | "grpcs") => HttpScheme::Https,
        Some("grpc" | "h2c") => HttpScheme::H2c,
        Some(_) => return Err(wrong("VIRTUAL_PROTO", "must be http, https, grpc or grpcs")),
    };
    if get("NETWORK_ACCESS").is_some_and(|access| access != "external") {
        return Err(wrong("NETWORK_ACCESS", "skep does not know which clients are internal: name them in skep.http.allow"));
    }
    let certificate = get("LETSENCRYPT_HOST");
    match get("HTTPS_METHOD") {
        // Without a certificate nginx-proxy serves both.
        None | Some("redirect") => {
            (route.redirect, route.redirects_if_certified) = (certificate.map(|_| HttpRedirect::Https), certificate.is_some());
        }
        Some("noredirect") => {}
        Some("nohttp") => route.entry = HttpEntry::Tls,
        Some("nohttps") => route.entry = HttpEntry::Plain,
        Some(_) => return Err(wrong("HTTPS_METHOD", "must be redirect, noredirect, nohttp or nohttps")),
    }
    if let Some(name) = certificate {
        notes.push(format!(
            "variable LETSENCRYPT_HOST={name}: certificates are ordered for the hosts of {HOST} once `skep http acme` is set; the label \
             skep.http.tls names a secret with certificate and key instead"
        ));
    }
    Ok(route)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_lines(lines: &[&str]) -> NginxProxyVariables {
        read(&lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn variables_become_a_route() {
        let route = |lines: &[&str]| read_lines(lines).routes.pop().expect("a route");
        let all = route(&[
            "PATH=/bin",
            "VIRTUAL_HOST=b.example.com, A.example.com,*.c.example.com",
            "VIRTUAL_PORT=8080",
            "VIRTUAL_PATH=/api/",
            "VIRTUAL_DEST=/",
            "VIRTUAL_PROTO=grpc",
            "HTTPS_METHOD=nohttp",
        ]);
        let expected = HttpRoute {
            hosts: ["*.c.example.com", "a.example.com", "b.example.com"].map(str::to_owned).to_vec(),
            prefix: "/api".to_owned(),
            entry: HttpEntry::Tls,
            port: 8080,
            scheme: HttpScheme::H2c,
            strip: true,
            ..HttpRoute::default()
        };
        assert_eq!(all, expected);
        let plain = read_lines(&["VIRTUAL_HOST=a.b"]);
        assert_eq!((plain.routes[0].port, plain.routes[0].redirect.clone(), plain.notes.len()), (80, None, 1));
        let secure = read_lines(&["VIRTUAL_HOST=a.b", "VIRTUAL_PORT=1", "LETSENCRYPT_HOST=a.b"]);
        assert_eq!((secure.routes[0].redirect.clone(), secure.notes.len()), (Some(HttpRedirect::Https), 1));
        assert!(secure.routes[0].redirects_if_certified, "without a certificate nginx-proxy serves both");
        assert!(secure.notes[0].contains("skep http acme"), "{:?}", secure.notes);
        for (path, expected) in
            [("/api", ("/api", PrefixEnd::Anything)), ("/api/", ("/api", PrefixEnd::Segment)), ("/", ("/", PrefixEnd::Segment))]
        {
            let route = route(&["VIRTUAL_HOST=a.b", "VIRTUAL_PORT=1", &format!("VIRTUAL_PATH={path}")]);
            assert_eq!((route.prefix.as_str(), route.prefix_end), expected, "{path}");
        }
        for lines in [&["PATH=/bin"][..], &["VIRTUAL_HOST="], &["VIRTUAL_PORT=80"], &[]] {
            let read = read_lines(lines);
            assert!(read.routes.is_empty() && read.refused.is_empty(), "{lines:?}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        for (line, expected) in [
            ("VIRTUAL_HOST=~^www\\..*", "VIRTUAL_HOST=~^www"),
            ("VIRTUAL_PORT=http", "VIRTUAL_PORT=http"),
            ("VIRTUAL_PATH=~/x", "VIRTUAL_PATH=~/x"),
            ("VIRTUAL_PATH=/a%20b", "VIRTUAL_PATH=/a%20b"),
            ("VIRTUAL_PROTO=fastcgi", "VIRTUAL_PROTO=fastcgi"),
            ("NETWORK_ACCESS=internal", "NETWORK_ACCESS=internal"),
            ("HTTPS_METHOD=maybe", "HTTPS_METHOD=maybe"),
            ("VIRTUAL_HOST_MULTIPORTS=a.b:", "VIRTUAL_HOST_MULTIPORTS"),
        ] {
            let read = read_lines(&["VIRTUAL_HOST=a.b", "VIRTUAL_PORT=80", line]);
            assert!(
                read.routes.is_empty() && read.refused.len() == 1 && read.refused[0].contains(expected),
                "{:?}",
                read.refused
            );
        }
        let dest = read_lines(&["VIRTUAL_HOST=a.b", "VIRTUAL_PATH=/a", "VIRTUAL_DEST=/b"]);
        assert!(dest.refused[0].contains("VIRTUAL_DEST=/b"), "{:?}", dest.refused);
    }
}
