//! Swarm settings as posted.

use crate::api::error::{ApiError, Result};
use crate::api::query::quote;
use crate::model::mesh::DEFAULT_POOL;
use crate::model::{Availability, ClusterSpec, Nanos};
use ipnet::{IpNet, Ipv4Net};
use serde_json::Value;
use std::net::{IpAddr, SocketAddr};

/// Shortest lifetime of a node certificate: an hour.
const MIN_CERT_EXPIRY: Nanos = Nanos(3_600_000_000_000);
/// Longest prefix of a network's subnet.
const MAX_SUBNET_SIZE: u64 = 29;

/// Parses an availability; empty is active.
///
/// # Errors
/// 400.
pub fn availability(text: &str) -> Result<Availability> {
    match text {
        "" | "active" => Ok(Availability::Active),
        "pause" => Ok(Availability::Pause),
        "drain" => Ok(Availability::Drain),
        other => Err(ApiError::bad(format!("invalid Availability: {}", quote(other)))),
    }
}

/// `DataPathAddr`: an IP address or an interface; empty, as the CLI sends it by default, for the advertised address.
///
/// # Errors
/// 400 for what is no address of a host.
pub fn data_path_address(posted: &Value) -> Result<String> {
    let data_path = posted["DataPathAddr"].as_str().unwrap_or_default();
    let has_port = data_path.parse::<SocketAddr>().is_ok() || (data_path.parse::<IpAddr>().is_err() && data_path.contains(':'));
    if has_port || data_path.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified()) {
        return Err(ApiError::bad(
            "data path address must be a non-zero IP address or network interface (without a port number)",
        ));
    }
    Ok(data_path.to_owned())
}

/// The UDP port of the tunnel; `None` for the default.
///
/// # Errors
/// 400 outside 1024 to 49151.
pub fn data_path_port(posted: &Value) -> Result<Option<u16>> {
    match posted["DataPathPort"].as_u64().unwrap_or(0) {
        0 => Ok(None),
        port => match u16::try_from(port) {
            Ok(port @ 1024..=49151) => Ok(Some(port)),
            _ => Err(ApiError::bad(format!("Datapath port number is not in valid range (1024-49151) : {port}"))),
        },
    }
}

/// The pools that subnets of networks are allocated from, and the prefix length of these subnets.
///
/// # Errors
/// 500, as the real server answers: invalid or overlapping pools, a prefix length out of range.
pub fn address_pools(posted: &Value) -> Result<(Vec<Ipv4Net>, u8)> {
    let size = match posted["SubnetSize"].as_u64().unwrap_or(0) {
        0 => 24,
        size => size,
    };
    if size > MAX_SUBNET_SIZE {
        return Err(ApiError::failed(format!("subnet size is out of range: {size}")));
    }
    let mut pools: Vec<Ipv4Net> = Vec::new();
    for text in posted["DefaultAddrPool"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        let too_small = || ApiError::failed(format!("invalid CIDR: {}. Subnet size is too small for pool: {size}", quote(text)));
        let pool = match text.parse() {
            Ok(IpNet::V4(pool)) if u64::from(pool.prefix_len()) <= size => pool,
            // Subnets of networks are IPv4.
            Ok(_) => return Err(too_small()),
            Err(_) => return Err(ApiError::failed(format!("invalid base pool {text}: invalid CIDR address: {text}"))),
        };
        if let Some(other) = pools.iter().find(|other| other.contains(&pool) || pool.contains(*other)) {
            return Err(ApiError::failed(format!("list of CIDRs overlap: {other}, {pool}")));
        }
        pools.push(pool.trunc());
    }
    // The default pool is meant then.
    if pools.is_empty() && size < u64::from(DEFAULT_POOL.prefix_len()) {
        let pool = quote(&DEFAULT_POOL.to_string());
        return Err(ApiError::failed(format!("invalid CIDR: {pool}. Subnet size is too small for pool: {size}")));
    }
    Ok((pools, u8::try_from(size).unwrap_or(24)))
}

/// The default spec, overridden by every posted value that is not zero.
///
/// # Errors
/// 400 for a value that the spec cannot have.
pub fn merge_over_defaults(posted: &Value) -> Result<ClusterSpec> {
    let mut spec = serde_json::to_value(ClusterSpec::default()).unwrap_or_default();
    override_with(&mut spec, posted);
    let mut spec = parse_spec(spec)?;
    // Its zero, which clients leave out unless it is meant, is a value: no ended task is kept.
    if let Some(limit) = posted["Orchestration"]["TaskHistoryRetentionLimit"].as_i64() {
        spec.orchestration.task_history_retention_limit = Some(limit);
    }
    Ok(spec)
}

/// Overrides values of `base`, key by key; posted zero values, empty texts and nulls override nothing.
fn override_with(base: &mut Value, posted: &Value) {
    match (base, posted) {
        (Value::Object(base), Value::Object(posted)) => {
            for (key, value) in posted {
                override_with(base.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (_, Value::Null) => {}
        (base, Value::Number(n)) if n.as_f64() == Some(0.0) && base.is_number() => {}
        (base, Value::String(s)) if s.is_empty() && base.is_string() => {}
        (base, posted) => *base = posted.clone(),
    }
}

/// The posted spec in the place of the stored one. What is left out has its default, as at init: clients that post a part of the spec
/// would set the rest to zero. The lock stays, because its default would take it off.
///
/// # Errors
/// As [`merge_over_defaults`].
pub fn replacing(posted: &Value, stored: &ClusterSpec) -> Result<ClusterSpec> {
    let mut spec = merge_over_defaults(posted)?;
    if posted["EncryptionConfig"]["AutoLockManagers"].is_null() {
        spec.encryption_config.auto_lock_managers = stored.encryption_config.auto_lock_managers;
    }
    Ok(spec)
}

fn parse_spec(value: Value) -> Result<ClusterSpec> {
    let mut spec: ClusterSpec = serde_json::from_value(value).map_err(|e| ApiError::bad(format!("invalid swarm spec: {e}")))?;
    // The real server omits zero in these fields.
    spec.raft.snapshot_interval = spec.raft.snapshot_interval.filter(|n| *n != 0);
    spec.raft.log_entries_for_slow_followers = spec.raft.log_entries_for_slow_followers.filter(|n| *n != 0);
    spec.dispatcher.heartbeat_period = spec.dispatcher.heartbeat_period.filter(|n| n.0 != 0);
    spec.ca_config.node_cert_expiry = spec.ca_config.node_cert_expiry.filter(|n| n.0 != 0);
    Ok(spec)
}

/// Refuses a spec as the cluster does.
///
/// # Errors
/// 400.
pub fn checked(spec: ClusterSpec) -> Result<ClusterSpec> {
    if spec.name != "default" {
        return Err(ApiError::bad("swarm spec must be named \"default\""));
    }
    if spec.ca_config.node_cert_expiry.is_some_and(|t| t < MIN_CERT_EXPIRY) {
        return Err(ApiError::invalid_argument("minimum certificate expiry time is: 1h0m0s"));
    }
    if spec.dispatcher.heartbeat_period.is_some_and(|t| t.0 < 0) {
        return Err(ApiError::invalid_argument("heartbeat time period cannot be a negative duration"));
    }
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_data_path_address_has_no_port() {
        let read = |text: &str| data_path_address(&json!({ "DataPathAddr": text }));
        for text in ["", "192.0.2.9", "2001:db8::1", "eth0"] {
            assert_eq!(read(text).unwrap(), text);
        }
        for text in ["192.0.2.9:2377", "[2001:db8::1]:7", "eth0:1", "0.0.0.0", "::"] {
            let error = read(text).unwrap_err();
            assert!(error.status == 400 && error.message.contains("without a port number"), "{text}: {error}");
        }
    }
}
