//! The managers that a node asks to join: every form of an address that users type, in one spelling.

use crate::api::error::{ApiError, Result};
use crate::model::mesh::DEFAULT_PORT;
use serde_json::Value;
use std::net::{IpAddr, SocketAddr};

/// `RemoteAddrs` of a posted join, each as `host:port` or `[address]:port`.
///
/// # Errors
/// 400 if there are none, or one of them is no address.
pub fn remote_addresses(posted: &Value) -> Result<Vec<String>> {
    let all = posted["RemoteAddrs"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let all = all.map(|text| {
        remote_address(text).map_err(|why| ApiError::bad(format!("invalid remoteAddr {}: {why}", crate::api::query::quote(text))))
    });
    let all: Vec<String> = all.collect::<Result<_>>()?;
    if all.is_empty() { Err(ApiError::bad("at least 1 RemoteAddr is required to join")) } else { Ok(all) }
}

fn remote_address(text: &str) -> Result<String, String> {
    let text = text.trim().trim_start_matches("tcp://").trim_end_matches('/');
    if text.is_empty() {
        return Err("invalid empty address".to_owned());
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return with_port(address.ip(), address.port());
    }
    // An IPv6 address may stand in brackets without a port, or without both.
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return with_port(ip, DEFAULT_PORT);
    }
    let (name, port) = match text.split_once(':') {
        None => (text, DEFAULT_PORT),
        Some((name, port)) => (name, port.parse().map_err(|_| format!("{port:?} is not a port"))?),
    };
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || !name.chars().all(is_name) {
        return Err("it is neither an address nor a host name, with or without a port".to_owned());
    }
    if port == 0 { Err("port 0 is not a port".to_owned()) } else { Ok(format!("{name}:{port}")) }
}

fn with_port(ip: IpAddr, port: u16) -> Result<String, String> {
    if ip.is_unspecified() {
        return Err("it is the address of no host".to_owned());
    }
    if port == 0 { Err("port 0 is not a port".to_owned()) } else { Ok(SocketAddr::new(ip, port).to_string()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_form_of_an_address_is_understood() {
        for (typed, expected) in [
            ("192.0.2.1", "192.0.2.1:2377"),
            ("192.0.2.1:2400", "192.0.2.1:2400"),
            ("2001:db8::1", "[2001:db8::1]:2377"),
            ("[2001:db8::1]", "[2001:db8::1]:2377"),
            ("[2001:DB8:0::1]:2400", "[2001:db8::1]:2400"),
            ("manager-1.example", "manager-1.example:2377"),
            ("manager_1:2400", "manager_1:2400"),
            ("tcp://192.0.2.1:2377", "192.0.2.1:2377"),
            (" 10.0.0.1 ", "10.0.0.1:2377"),
        ] {
            assert_eq!(remote_addresses(&json!({"RemoteAddrs": [typed]})).unwrap(), [expected], "{typed}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused_at_once() {
        for (typed, why) in [
            ("", "invalid remoteAddr \"\": invalid empty address"),
            ("192.0.2.1:", "\"\" is not a port"),
            ("192.0.2.1:http", "\"http\" is not a port"),
            ("192.0.2.1:99999", "\"99999\" is not a port"),
            ("192.0.2.1:0", "port 0"),
            ("0.0.0.0:2377", "the address of no host"),
            ("[2001:db8::1", "is not a port"),
            ("http://a/b", "not a port"),
            ("a b", "neither an address nor a host name"),
        ] {
            let error = remote_addresses(&json!({"RemoteAddrs": ["192.0.2.9", typed]})).unwrap_err();
            assert_eq!(error.status.as_u16(), 400, "{typed}");
            assert!(error.message.contains(why), "{typed}: {error}");
        }
        let none = remote_addresses(&json!({})).unwrap_err().message;
        assert_eq!(none, "at least 1 RemoteAddr is required to join");
    }
}
