//! Placeholders of Go's `text/template` as far as Swarm has values for them: fields, `index`, `join`, and in the content of
//! secrets and configs `env`, `secret` and `config`. Everything else of that language is refused by name. Errors begin as Go's do.
//! Pure.

mod parse;

use parse::{Operand, Piece, Placeholder, parse};
use std::collections::BTreeMap;

pub use parse::TemplateError;

/// Longest result, in bytes: a small text may name a large secret often.
pub const MOST_EXPANDED: usize = 4 << 20;

/// What the fields stand for.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct TemplateContext {
    pub service_id: String,
    pub service_name: String,
    pub service_labels: BTreeMap<String, String>,
    pub node_id: String,
    pub node_hostname: String,
    /// As the node's engine names it: `x86_64`.
    pub node_architecture: String,
    pub node_os: String,
    pub task_id: String,
    /// The container's name.
    pub task_name: String,
    pub task_slot: String,
}

/// A function that only the content of secrets and configs has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ContentFunction {
    /// The value of a variable of the container's environment; empty without one.
    Env,
    /// The content of the secret with this target.
    Secret,
    /// The content of the config with this target.
    Config,
}

/// Calls a [`ContentFunction`]; the error is for people.
pub type ContentFunctions<'a> = &'a dyn Fn(ContentFunction, &str) -> Result<String, String>;

/// Whether a text has a placeholder.
#[must_use]
pub fn is_template(text: &str) -> bool {
    text.contains("{{")
}

/// The text with its placeholders replaced.
///
/// # Errors
/// It is no template, names what there is not, or becomes longer than [`MOST_EXPANDED`].
pub fn expand(text: &str, context: &TemplateContext, functions: Option<ContentFunctions<'_>>) -> Result<String, TemplateError> {
    let mut out = String::new();
    for piece in parse(text)? {
        match piece {
            Piece::Text(text) => out.push_str(text),
            Piece::Placeholder(placeholder) => out.push_str(&evaluate(&placeholder, context, functions)?),
        }
        if out.len() > MOST_EXPANDED {
            return Err(TemplateError(format!("1: the result is longer than {} MiB", MOST_EXPANDED >> 20)));
        }
    }
    Ok(out)
}

/// A value of a template.
enum TemplateValue {
    Text(String),
    Map(BTreeMap<String, String>),
}

fn evaluate(
    placeholder: &Placeholder,
    context: &TemplateContext,
    functions: Option<ContentFunctions<'_>>,
) -> Result<String, TemplateError> {
    let Some(function) = &placeholder.function else {
        let [operand] = placeholder.operands.as_slice() else {
            return Err(placeholder.error("one value stands in a placeholder"));
        };
        return Ok(match value_of(placeholder, operand, context)? {
            TemplateValue::Text(text) => text,
            // As Go prints a map.
            TemplateValue::Map(map) => {
                let entries: Vec<String> = map.iter().map(|(key, value)| format!("{key}:{value}")).collect();
                format!("map[{}]", entries.join(" "))
            }
        });
    };
    let text = |operand: &Operand| match value_of(placeholder, operand, context)? {
        TemplateValue::Text(text) => Ok(text),
        TemplateValue::Map(_) => Err(placeholder.error("wrong type for value; expected string; got map[string]string")),
    };
    match (function.as_str(), placeholder.operands.as_slice()) {
        ("index", [map, key]) => match value_of(placeholder, map, context)? {
            TemplateValue::Map(map) => Ok(map.get(&text(key)?).cloned().unwrap_or_default()),
            TemplateValue::Text(_) => Err(placeholder.error("error calling index: cannot index slice/array with type string")),
        },
        ("join", [separator, parts @ ..]) => {
            let parts: Vec<String> = parts.iter().map(text).collect::<Result<_, _>>()?;
            Ok(parts.join(&text(separator)?))
        }
        ("env" | "secret" | "config", [name]) if functions.is_some() => {
            let kind = match function.as_str() {
                "env" => ContentFunction::Env,
                "secret" => ContentFunction::Secret,
                _ => ContentFunction::Config,
            };
            let call = functions.unwrap_or(&|_, _| Ok(String::new()));
            call(kind, &text(name)?).map_err(|why| placeholder.error(&format!("error calling {function}: {why}")))
        }
        ("index" | "join" | "env" | "secret" | "config", _) if is_known(function, functions.is_some()) => {
            Err(placeholder.error(&format!("wrong number of args for {function}: got {}", placeholder.operands.len())))
        }
        (other, _) if GO.contains(&other) => Err(TemplateError(format!(
            "{}: {other} is not supported by skep: a placeholder is a field, index, join, or in the content of secrets and \
             configs env, secret or config",
            placeholder.line
        ))),
        (other, _) => Err(TemplateError(format!("{}: function {other:?} not defined", placeholder.line))),
    }
}

/// Words of Go's language that skep has not.
const GO: &[&str] = &[
    "and", "block", "break", "call", "continue", "define", "else", "end", "eq", "false", "ge", "gt", "html", "if", "js", "le",
    "len", "lt", "ne", "nil", "not", "or", "print", "printf", "println", "range", "slice", "template", "true", "urlquery",
    "with",
];

fn is_known(function: &str, in_content: bool) -> bool {
    in_content || ["index", "join"].contains(&function)
}

fn value_of(placeholder: &Placeholder, operand: &Operand, context: &TemplateContext) -> Result<TemplateValue, TemplateError> {
    let (column, path) = match operand {
        Operand::Text(text) => return Ok(TemplateValue::Text(text.clone())),
        Operand::Field(column, path) => (*column, path),
    };
    let names: Vec<&str> = path.iter().map(String::as_str).collect();
    let text = match names.as_slice() {
        ["Service", "ID"] => &context.service_id,
        ["Service", "Name"] => &context.service_name,
        ["Service", "Labels"] => return Ok(TemplateValue::Map(context.service_labels.clone())),
        // The label's own name may have dots.
        ["Service", "Labels", label @ ..] => {
            let label = label.join(".");
            match context.service_labels.get(&label) {
                Some(value) => value,
                None => return Err(placeholder.at(column, path, &format!("map has no entry for key {label:?}"))),
            }
        }
        ["Node", "ID"] => &context.node_id,
        ["Node", "Hostname"] => &context.node_hostname,
        ["Node", "Platform", "Architecture"] => &context.node_architecture,
        ["Node", "Platform", "OS"] => &context.node_os,
        ["Task", "ID"] => &context.task_id,
        ["Task", "Name"] => &context.task_name,
        ["Task", "Slot"] => &context.task_slot,
        ["Service" | "Node" | "Task"] | ["Node", "Platform"] => {
            return Err(placeholder.at(column, path, "it is no text: name one of its fields"));
        }
        _ => return Err(unknown_field(placeholder, column, path)),
    };
    Ok(TemplateValue::Text(text.clone()))
}

/// Go's words for a field that there is not.
fn unknown_field(placeholder: &Placeholder, column: usize, path: &[String]) -> TemplateError {
    let names: Vec<&str> = path.iter().map(String::as_str).collect();
    let (at, parent) = match names.as_slice() {
        ["Node", "Platform", ..] => (2, "template.Platform"),
        ["Service", ..] => (1, "struct { ID string; Name string; Labels map[string]string }"),
        ["Node", ..] => (1, "struct { ID string; Hostname string; Platform struct { Architecture string; OS string } }"),
        ["Task", ..] => (1, "struct { ID string; Name string; Slot string }"),
        _ => (0, "*template.Context"),
    };
    let field = names.get(at).copied().unwrap_or_default();
    // Go counts from the second field of a chain.
    let column = if path.len() > 1 { column + 1 + path[0].len() } else { column };
    placeholder.at(column, path, &format!("can't evaluate field {field} in type {parent}"))
}

impl Placeholder {
    /// An error of the whole placeholder.
    fn error(&self, what: &str) -> TemplateError {
        TemplateError(format!("{}:{}: executing \"expansion\": {what}", self.line, self.column))
    }
    /// An error of a field, at this column of its line.
    fn at(&self, column: usize, path: &[String], what: &str) -> TemplateError {
        TemplateError(format!("{}:{column}: executing \"expansion\" at <.{}>: {what}", self.line, path.join(".")))
    }
}

#[cfg(test)]
mod tests;
