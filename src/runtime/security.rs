//! Security options of a container as the engine takes them, the same as in Swarm. Pure.

use crate::model::container_privileges::Privileges;
use base64::{Engine as _, engine::general_purpose::STANDARD};

/// `NAME=VALUE` each.
pub(super) fn security_options(privileges: &Privileges) -> Vec<String> {
    let mut options = Vec::new();
    if privileges.no_new_privileges {
        options.push("no-new-privileges=true".to_owned());
    }
    if let Some(context) = &privileges.selinux_context {
        if context.disable {
            options.push("label=disable".to_owned());
        }
        let labels = [("user", &context.user), ("role", &context.role), ("level", &context.level), ("type", &context.kind)];
        options
            .extend(labels.into_iter().filter(|(_, value)| !value.is_empty()).map(|(key, value)| format!("label={key}:{value}")));
    }
    if let Some(seccomp) = &privileges.seccomp {
        match seccomp.mode.as_str() {
            "unconfined" => options.push("seccomp=unconfined".to_owned()),
            "custom" => {
                // The API has checked that it is base64.
                let profile = STANDARD.decode(&seccomp.profile).unwrap_or_default();
                options.push(format!("seccomp={}", String::from_utf8_lossy(&profile)));
            }
            _ => {}
        }
    }
    if privileges.app_armor.as_ref().is_some_and(|options| options.mode == "disabled") {
        options.push("apparmor=unconfined".to_owned());
    }
    options
}
