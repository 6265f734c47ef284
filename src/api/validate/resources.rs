//! Limits and reservations of a posted service.

use crate::api::error::{ApiError, Result};
use crate::model::task::{GenericResource, Resources};
use std::collections::BTreeSet;

/// Smallest CPU share, in units of 1e-9 CPUs.
const MIN_CPU: i64 = 1_000_000;
/// Smallest memory size, in bytes.
const MIN_MEMORY: i64 = 4 << 20;
/// Smallest memory limit that an engine takes, in bytes.
const MIN_MEMORY_OF_ENGINE: i64 = 6 << 20;

/// Refuses amounts as SwarmKit does, and those that it takes although no node can run the task.
///
/// # Errors
/// 400 with `InvalidArgument`.
pub(super) fn check(resources: &Resources) -> Result<()> {
    let limits = resources.limits.unwrap_or_default();
    check_amounts(limits.nano_cpus, limits.memory_bytes)?;
    if limits.memory_bytes != 0 && limits.memory_bytes < MIN_MEMORY_OF_ENGINE {
        return Err(ApiError::invalid_argument(format!(
            "TaskTemplate.Resources.Limits.MemoryBytes {}: Minimum memory limit allowed is 6MB",
            limits.memory_bytes
        )));
    }
    check_swap(resources, limits.memory_bytes)?;
    let Some(reserved) = &resources.reservations else { return Ok(()) };
    check_amounts(reserved.nano_cpus, reserved.memory_bytes)?;
    let mut kinds = BTreeSet::new();
    for (i, resource) in reserved.generic_resources.iter().enumerate() {
        let refuse = |why: String| {
            let path = format!("TaskTemplate.Resources.Reservations.GenericResources[{i}]");
            Err(ApiError::invalid_argument(format!("{path}: {why}")))
        };
        match check_generic(resource) {
            Err(why) => return refuse(why),
            Ok(kind) if !kinds.insert(kind) => return refuse(format!("generic resource {kind} is listed twice")),
            Ok(_) => {}
        }
    }
    Ok(())
}

fn check_swap(resources: &Resources, limit: i64) -> Result<()> {
    match (resources.swap_bytes, resources.memory_swappiness) {
        (Some(swap), _) if swap < -1 => Err(ApiError::invalid_argument(format!("invalid swap value {swap}: must be -1 or more"))),
        (Some(swap), _) if swap > 0 && limit == 0 => Err(ApiError::invalid_argument("a limit of swap needs a limit of memory")),
        (Some(swap), _) if limit.checked_add(swap).is_none() => {
            Err(ApiError::invalid_argument(format!("invalid swap value {swap}: with the memory limit it is too large")))
        }
        (_, Some(swappiness)) if !(-1..=100).contains(&swappiness) => {
            Err(ApiError::invalid_argument(format!("invalid memory swappiness {swappiness}: must be from -1 to 100")))
        }
        _ => Ok(()),
    }
}

fn check_amounts(nano_cpus: i64, memory_bytes: i64) -> Result<()> {
    if nano_cpus != 0 && nano_cpus < MIN_CPU {
        #[expect(clippy::cast_precision_loss, reason = "shown to people")]
        let cpus = nano_cpus as f64 / 1e9;
        return Err(ApiError::invalid_argument(format!("invalid cpu value {}: Must be at least 0.001", go_number(cpus))));
    }
    if memory_bytes != 0 && memory_bytes < MIN_MEMORY {
        return Err(ApiError::invalid_argument(format!("invalid memory value {memory_bytes}: Must be at least 4MiB")));
    }
    Ok(())
}

/// As Go's `%g` writes a number: an exponent of two digits below 0.0001.
fn go_number(number: f64) -> String {
    if number.abs() >= 1e-4 {
        return number.to_string();
    }
    let text = format!("{number:e}");
    match text.split_once("e-") {
        Some((digits, exponent)) if exponent.len() == 1 => format!("{digits}e-0{exponent}"),
        _ => text,
    }
}

/// The kind; an error if no node could ever give the task what it asks for. Swarm takes such a spec, and gives 0 all that is left.
fn check_generic(resource: &GenericResource) -> Result<&str, String> {
    if let Some(named) = &resource.named_resource_spec {
        return Err(format!(
            "invalid generic-resource request `{}={}`, Named Generic Resources is not supported for service create or update",
            named.kind, named.value
        ));
    }
    match &resource.discrete_resource_spec {
        Some(discrete) if discrete.kind.is_empty() => Err("its kind is missing".to_owned()),
        Some(discrete) if discrete.value < 0 => Err(format!("cannot ask for negative resource {}", discrete.kind)),
        Some(discrete) if discrete.value == 0 => Err(format!("cannot ask for 0 of resource {}", discrete.kind)),
        Some(discrete) => Ok(&discrete.kind),
        None => Err("its DiscreteResourceSpec is missing".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn refusal(resources: Value) -> Option<String> {
        check(&serde_json::from_value(resources).unwrap()).err().map(|error| error.message)
    }

    #[test]
    fn amounts_are_refused_in_swarms_words() {
        let prefix = "rpc error: code = InvalidArgument desc = ";
        for part in ["Limits", "Reservations"] {
            for (amounts, expected) in [
                (json!({"NanoCPUs": 100_000}), "invalid cpu value 0.0001: Must be at least 0.001"),
                (json!({"NanoCPUs": -1}), "invalid cpu value -1e-09: Must be at least 0.001"),
                (json!({"NanoCPUs": 999}), "invalid cpu value 9.99e-07: Must be at least 0.001"),
                (json!({"NanoCPUs": -2_000_000_000_i64}), "invalid cpu value -2: Must be at least 0.001"),
                (json!({"MemoryBytes": 4_194_303}), "invalid memory value 4194303: Must be at least 4MiB"),
                (json!({"MemoryBytes": -1}), "invalid memory value -1: Must be at least 4MiB"),
                (json!({"MemoryBytes": i64::MIN}), "invalid memory value -9223372036854775808: Must be at least 4MiB"),
            ] {
                assert_eq!(refusal(json!({ part: amounts })), Some(format!("{prefix}{expected}")));
            }
            assert_eq!(refusal(json!({ part: {"NanoCPUs": 1_000_000, "MemoryBytes": 6 << 20} })), None);
            assert_eq!(
                refusal(json!({ part: {"NanoCPUs": i64::MAX, "MemoryBytes": i64::MAX} })),
                None,
                "too much is a matter of nodes"
            );
        }
    }

    #[test]
    fn a_memory_limit_that_no_engine_takes_is_refused_and_a_reservation_of_it_is_not() {
        for bytes in [4 << 20, (6 << 20) - 1] {
            let why = refusal(json!({"Limits": {"MemoryBytes": bytes}})).unwrap();
            assert!(why.contains("Limits.MemoryBytes") && why.contains("Minimum memory limit allowed is 6MB"), "{why}");
            assert_eq!(refusal(json!({"Reservations": {"MemoryBytes": bytes}})), None);
        }
    }

    #[test]
    fn swap_has_bounds_and_needs_a_limit_of_memory() {
        let limited = |swap: i64| refusal(json!({"Limits": {"MemoryBytes": 64 << 20}, "SwapBytes": swap}));
        assert_eq!((limited(-1), limited(0), limited(64 << 20)), (None, None, None));
        assert_eq!((refusal(json!({"SwapBytes": 0})), refusal(json!({"SwapBytes": -1}))), (None, None));
        for (resources, expected) in [
            (json!({"SwapBytes": 1}), "a limit of swap needs a limit of memory"),
            (json!({"SwapBytes": -2}), "invalid swap value -2: must be -1 or more"),
            (
                json!({"Limits": {"MemoryBytes": 64 << 20}, "SwapBytes": i64::MAX}),
                "invalid swap value 9223372036854775807: with the memory limit it is too large",
            ),
            (json!({"MemorySwappiness": -2}), "invalid memory swappiness -2: must be from -1 to 100"),
            (json!({"MemorySwappiness": 101}), "invalid memory swappiness 101: must be from -1 to 100"),
        ] {
            assert_eq!(refusal(resources), Some(format!("rpc error: code = InvalidArgument desc = {expected}")));
        }
        for swappiness in [-1, 0, 100] {
            assert_eq!(refusal(json!({"MemorySwappiness": swappiness})), None);
        }
    }

    #[test]
    fn generic_resources_that_no_node_can_give_are_refused() {
        let discrete = |kind: &str, value: i64| json!({"DiscreteResourceSpec": {"Kind": kind, "Value": value}});
        let reserve = |list: Value| refusal(json!({"Reservations": {"GenericResources": list}}));
        for (list, expected) in [
            (json!([discrete("gpu", 0)]), "GenericResources[0]: cannot ask for 0 of resource gpu"),
            (json!([discrete("ssd", 1), discrete("gpu", -1)]), "GenericResources[1]: cannot ask for negative resource gpu"),
            (json!([discrete("", 1)]), "kind is missing"),
            (json!([{}]), "DiscreteResourceSpec is missing"),
            (json!([discrete("gpu", 1), discrete("gpu", 2)]), "GenericResources[1]: generic resource gpu is listed twice"),
            (
                json!([{"NamedResourceSpec": {"Kind": "gpu", "Value": "G1"}}]),
                "`gpu=G1`, Named Generic Resources is not supported",
            ),
        ] {
            let why = reserve(list).unwrap();
            assert!(why.contains(expected), "{why}");
        }
        assert_eq!(reserve(json!([discrete("gpu", 1), discrete("ssd", i64::MAX)])), None);
    }
}
