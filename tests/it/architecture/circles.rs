//! No file of a room imports, directly or by way of others, a file that imports it. A parent's `pub use` is no import: a
//! path through it leads to the file that defines the item.

use super::source::{code, expand, files, is_test_file, root};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// A module's path below `crate`, as `ingress::ebpf::plan`.
type Module = String;

#[test]
fn no_imports_of_files_form_a_circle() {
    for folder in ["src", "ebpf/src"] {
        let folder = root().join(folder);
        let mut modules = BTreeMap::new();
        for file in files(&folder, &["rs"]).into_iter().filter(|file| !is_test_file(file)) {
            let path = file.strip_prefix(&folder).unwrap().with_extension("");
            let module = path.iter().map(|part| part.to_str().unwrap()).collect::<Vec<_>>().join("::");
            if module != "lib" && module != "main" {
                modules.insert(module, code(&fs::read_to_string(file).unwrap()));
            }
        }
        let circles = circles(&modules);
        assert!(circles.is_empty(), "import circles below {}:\n{}\n", folder.display(), circles.join("\n"));
    }
}

#[test]
fn a_circle_is_found_also_through_a_re_export_and_a_re_export_alone_is_none() {
    let modules = |texts: &[(&str, &str)]| texts.iter().map(|(m, t)| ((*m).to_owned(), code(t))).collect::<BTreeMap<_, _>>();
    let direct = modules(&[("a", "mod b;\nmod c;"), ("a::b", "use super::c::C;"), ("a::c", "fn f() { super::b::g() }")]);
    assert_eq!(circles(&direct).len(), 1);
    let through = modules(&[("a", "mod b;\nmod c;\npub use b::B;"), ("a::b", "use super::c::C;"), ("a::c", "use super::B;")]);
    assert_eq!(circles(&through).len(), 1);
    let none = modules(&[("a", "mod b;\npub use b::B;\npub struct A;"), ("a::b", "use super::A;\n// super::c")]);
    assert_eq!(circles(&none), Vec::<String>::new());
    let parent = modules(&[("a", "mod b;\npub struct A;\nfn f() { b::g() }"), ("a::b", "use crate::a::A;")]);
    assert_eq!(circles(&parent).len(), 1);
}

/// One line for each circle: the files in it and one of the imports between each two.
fn circles(modules: &BTreeMap<Module, String>) -> Vec<String> {
    let exports: BTreeMap<&Module, BTreeMap<String, Module>> =
        modules.iter().map(|(module, text)| (module, re_exports(module, text, modules))).collect();
    let mut edges: BTreeMap<&Module, BTreeMap<Module, String>> = BTreeMap::new();
    for (module, text) in modules {
        let targets = edges.entry(module).or_default();
        for path in paths(text) {
            let Some(absolute) = absolute(module, &path, modules) else { continue };
            let target = resolve(&absolute, modules, &exports);
            if let Some(target) = target.filter(|target| target != module) {
                targets.entry(target).or_insert(path);
            }
        }
    }
    let reach: BTreeMap<&Module, BTreeSet<Module>> = edges.keys().map(|module| (*module, reachable(module, &edges))).collect();
    let mut found = BTreeSet::new();
    for module in modules.keys().filter(|module| reach[module].contains(*module)) {
        let circle: Vec<&Module> = modules.keys().filter(|m| reach[module].contains(*m) && reach[m].contains(module)).collect();
        let imports = circle.iter().flat_map(|from| {
            let inside = edges[*from].iter().filter(|(to, _)| circle.contains(to));
            inside.map(move |(to, path)| format!("    {from} -> {to} ({path})"))
        });
        let names = circle.iter().map(|m| m.as_str()).collect::<Vec<_>>().join(", ");
        found.insert(format!("{names}:\n{}", imports.collect::<Vec<_>>().join("\n")));
    }
    found.into_iter().collect()
}

fn reachable(from: &Module, edges: &BTreeMap<&Module, BTreeMap<Module, String>>) -> BTreeSet<Module> {
    let (mut found, mut next) = (BTreeSet::new(), vec![from.clone()]);
    while let Some(module) = next.pop() {
        for target in edges.get(&module).into_iter().flat_map(BTreeMap::keys) {
            if found.insert(target.clone()) {
                next.push(target.clone());
            }
        }
    }
    found
}

/// Every path that the code names: the trees of its `use`s, and paths with `::` elsewhere. Not those of a `pub use`.
fn paths(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = String::new();
    for statement in text.split_inclusive(';') {
        let start = statement.trim_start();
        let start = start
            .rsplit_once('}')
            .map_or(start, |(before, after)| if before.contains("use ") { start } else { after.trim_start() });
        if is_re_export(start) {
            continue;
        }
        match start.strip_prefix("use ") {
            Some(tree) => found.extend(expand(&flat(tree))),
            None => rest.push_str(statement),
        }
    }
    let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let named = rest.split(|c| !is_path(c)).filter(|path| path.contains("::"));
    found.extend(named.map(|path| path.trim_matches(':').to_owned()));
    found
}

fn flat(tree: &str) -> String {
    tree.trim_end().trim_end_matches(';').split_whitespace().collect::<Vec<_>>().join(" ")
}

fn is_re_export(statement: &str) -> bool {
    statement.starts_with("pub use ")
        || (statement.starts_with("pub(") && statement.split_once(") use ").is_some_and(|(v, _)| !v.contains(' ')))
}

/// Names that a module exports from others, with the module that they come from.
fn re_exports(module: &Module, text: &str, modules: &BTreeMap<Module, String>) -> BTreeMap<String, Module> {
    let mut found = BTreeMap::new();
    for statement in text.split_inclusive(';') {
        let start = statement.trim_start();
        if !is_re_export(start) {
            continue;
        }
        let tree = start.split_once("use ").map_or("", |(_, tree)| tree);
        for path in expand(&flat(tree)) {
            if let Some(absolute) = absolute(module, &path, modules)
                && let Some(target) = prefix(&absolute, modules)
                && let Some(name) = absolute.rsplit("::").next()
            {
                found.insert(name.to_owned(), target);
            }
        }
    }
    found
}

/// The path from the crate's root on; `None` for what is not of this crate.
fn absolute(module: &Module, path: &str, modules: &BTreeMap<Module, String>) -> Option<String> {
    let mut steps: Vec<&str> = path.split("::").map(str::trim).filter(|step| !step.is_empty()).collect();
    let mut base: Vec<&str> = module.split("::").collect();
    match *steps.first()? {
        "crate" => {
            base.clear();
            steps.remove(0);
        }
        "self" => {
            steps.remove(0);
        }
        "super" => {
            while steps.first() == Some(&"super") {
                base.pop();
                steps.remove(0);
            }
        }
        first if modules.contains_key(&format!("{module}::{first}")) => {}
        _ => return None,
    }
    base.extend(steps);
    Some(base.join("::"))
}

/// The longest part of a path that is a module.
fn prefix(path: &str, modules: &BTreeMap<Module, String>) -> Option<Module> {
    let mut path = path;
    loop {
        if modules.contains_key(path) {
            return Some(path.to_owned());
        }
        path = path.rsplit_once("::")?.0;
    }
}

/// The module that defines what a path names.
fn resolve(
    path: &str,
    modules: &BTreeMap<Module, String>,
    exports: &BTreeMap<&Module, BTreeMap<String, Module>>,
) -> Option<Module> {
    let module = prefix(path, modules)?;
    let item = path[module.len()..].trim_start_matches("::").split("::").next().unwrap_or_default();
    match exports.get(&module).and_then(|exports| exports.get(item)) {
        Some(target) if *target != module => Some(target.clone()),
        _ => Some(module),
    }
}
