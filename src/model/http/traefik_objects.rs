//! The routers, services and middlewares in a service's labels of Traefik.

use std::collections::BTreeMap;

/// Options of a router, service or middleware by what follows its name, in lower case.
pub(super) type Options = BTreeMap<String, String>;

/// By kind and name.
pub(super) struct TraefikObjects(BTreeMap<(String, String), Options>);

impl TraefikObjects {
    pub(super) fn new(objects: BTreeMap<(String, String), Options>) -> Self {
        Self(objects)
    }

    /// Those of a kind.
    pub(super) fn of<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = (&'a str, &'a Options)> {
        self.0.iter().filter(move |((of, _), _)| of == kind).map(|((_, name), options)| (name.as_str(), options))
    }

    /// A middleware of this service.
    ///
    /// # Errors
    /// It is another provider's, or there is none of that name.
    pub(super) fn middleware(&self, name: &str) -> Result<&Options, String> {
        let (name, provider) = name.split_once('@').unwrap_or((name, "swarm"));
        if !matches!(provider, "swarm" | "docker") {
            return Err(format!("{name}@{provider} is not in these labels"));
        }
        self.get("middlewares", name).ok_or_else(|| format!("{name} is not in these labels"))
    }

    /// By kind and name.
    pub(super) fn get(&self, kind: &str, name: &str) -> Option<&Options> {
        self.0.get(&(kind.to_owned(), name.to_ascii_lowercase()))
    }
}
