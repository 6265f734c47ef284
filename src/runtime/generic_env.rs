//! The generic resources of a task as its container sees them: as in Swarm, one variable per kind.

use crate::model::task::GenericResource;

/// `DOCKER_RESOURCE_GPU=G1,G2` for names, `DOCKER_RESOURCE_SSD=2` for a number; kinds in the order in which they come.
pub(super) fn environment(resources: &[GenericResource]) -> Vec<String> {
    let mut variables: Vec<(String, Vec<String>)> = Vec::new();
    for resource in resources {
        let name = format!("DOCKER_RESOURCE_{}", resource.kind().to_uppercase());
        let named = resource.named_resource_spec.as_ref().map(|named| named.value.clone());
        let number = resource.discrete_resource_spec.as_ref().map(|discrete| discrete.value.to_string());
        let Some(value) = named.or(number) else { continue };
        match variables.iter_mut().find(|(known, _)| *known == name) {
            Some((_, values)) => values.push(value),
            None => variables.push((name, vec![value])),
        }
    }
    variables.into_iter().map(|(name, values)| format!("{name}={}", values.join(","))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_a_kind_share_a_variable() {
        let resources = [
            GenericResource::named("gpu", "G1"),
            GenericResource::named("gpu", "G2"),
            GenericResource::discrete("ssd", 2),
            GenericResource::default(),
        ];
        assert_eq!(environment(&resources), ["DOCKER_RESOURCE_GPU=G1,G2", "DOCKER_RESOURCE_SSD=2"]);
        assert_eq!(environment(&[]), Vec::<String>::new());
    }
}
