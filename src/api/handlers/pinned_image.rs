//! The digest of a service's image: newer clients ask for it themselves, for those of an API below 1.30 the server does.

use super::request::ApiRequest;
use crate::api::validate;
use crate::model::docker::ApiVersion;
use crate::model::service::ServiceSpec;
use bytes::Bytes;
use serde_json::Value;

/// First version whose clients write the digest into the spec.
const CLIENTS_ASK: ApiVersion = ApiVersion::v1(30);
const AUTH: &str = "x-registry-auth";

/// Writes the digest that the registry has now into the spec of an old client's request, whose image is valid. Returns the warning of
/// the real server if there is none: its nodes may run different images then.
pub async fn pin(request: &ApiRequest, spec: &mut ServiceSpec) -> Vec<String> {
    let image = &mut spec.task_template.container_spec.image;
    if request.version >= CLIENTS_ASK || image.contains('@') || image.is_empty() {
        return Vec::new();
    }
    match digest(request, image).await {
        Some(digest) => {
            *image = pinned(image, &digest);
            Vec::new()
        }
        None => vec![format!(
            "image {image} could not be accessed on a registry to record\nits digest. Each node will access {image} independently,\n\
             possibly leading to different nodes running different\nversions of the image.\n"
        )],
    }
}

/// What the engine learns from the registry, with the credentials of the request.
async fn digest(request: &ApiRequest, image: &str) -> Option<String> {
    let auth = request.headers.get(AUTH).and_then(|value| value.to_str().ok());
    let fields: Vec<(&str, &str)> = auth.map(|value| (AUTH, value)).into_iter().collect();
    // Without a version: that of the client has no such request.
    let reply = request.api.engine.send("GET", &format!("/distribution/{image}/json"), &fields, Bytes::new()).await.ok()?;
    let found: Value = serde_json::from_slice(&reply.body).ok().filter(|_| reply.status.is_success())?;
    let digest = found["Descriptor"]["digest"].as_str()?;
    validate::is_reference(&pinned(image, digest)).then(|| digest.to_owned())
}

/// A reference as Docker writes it: without its own registry, with a tag and the digest.
fn pinned(image: &str, digest: &str) -> String {
    let name = ["docker.io/library/", "index.docker.io/library/", "docker.io/", "index.docker.io/"]
        .into_iter()
        .find_map(|registry| image.strip_prefix(registry))
        .unwrap_or(image);
    // A colon before a slash belongs to a port.
    let is_tagged = name.rsplit_once(':').is_some_and(|(_, tag)| !tag.contains('/'));
    format!("{name}{}@{digest}", if is_tagged { "" } else { ":latest" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_written_behind_the_tag() {
        for (image, expected) in [
            ("nginx", "nginx:latest@sha256:1"),
            ("docker.io/library/nginx:1.29", "nginx:1.29@sha256:1"),
            ("docker.io/traefik/whoami", "traefik/whoami:latest@sha256:1"),
            ("registry.example:5000/app", "registry.example:5000/app:latest@sha256:1"),
        ] {
            assert_eq!(pinned(image, "sha256:1"), expected);
        }
    }
}
