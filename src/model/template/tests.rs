use super::*;
use proptest::prelude::*;

fn context() -> TemplateContext {
    let labels = [("color", "red"), ("a.b", "dot")];
    TemplateContext {
        service_id: "s1".into(),
        service_name: "web".into(),
        service_labels: labels.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        node_id: "n1".into(),
        node_hostname: "host1".into(),
        node_architecture: "x86_64".into(),
        node_os: "linux".into(),
        task_id: "t1".into(),
        task_name: "web.3.t1".into(),
        task_slot: "3".into(),
    }
}

fn expanded(text: &str) -> String {
    expand(text, &context(), None).unwrap_or_else(|e| e.to_string())
}

#[test]
fn every_field_has_its_value() {
    for (text, value) in [
        ("{{.Service.ID}} {{.Service.Name}} {{ .Node.ID }}", "s1 web n1"),
        ("{{.Node.Hostname}}-{{.Node.Platform.Architecture}}/{{.Node.Platform.OS}}", "host1-x86_64/linux"),
        ("{{.Task.ID}} {{.Task.Name}} {{.Task.Slot}}", "t1 web.3.t1 3"),
        ("{{.Service.Labels}}", "map[a.b:dot color:red]"),
        (r#"{{index .Service.Labels "color"}}{{index .Service.Labels "none"}}"#, "red"),
        ("{{.Service.Labels.color}} {{.Service.Labels.a.b}}", "red dot"),
        (r#"{{join "-" .Service.Name "x" `y"`}}"#, "web-x-y\""),
        (r#"{{"}}"}}"#, "}}"),
        ("a {{- /* a comment */ -}} b {{.Task.Slot -}}\n\n c", "ab 3c"),
        ("no placeholder } { }}", "no placeholder } { }}"),
        ("ä{{.Task.Slot}}ö", "ä3ö"),
    ] {
        assert_eq!(expanded(text), value, "{text}");
    }
}

#[test]
fn what_there_is_not_is_refused_as_go_does() {
    let type_of_service = "struct { ID string; Name string; Labels map[string]string }";
    for (text, error) in [
        ("{{.Foo}}", "1:2: executing \"expansion\" at <.Foo>: can't evaluate field Foo in type *template.Context".to_owned()),
        (
            "x\nab{{ .Service.Foo }}",
            format!("2:13: executing \"expansion\" at <.Service.Foo>: can't evaluate field Foo in type {type_of_service}"),
        ),
        (
            "{{.Service.Labels.no}}",
            "1:2: executing \"expansion\" at <.Service.Labels.no>: map has no entry for key \"no\"".to_owned(),
        ),
        ("{{env \"X\"}}", "1: function \"env\" not defined".to_owned()),
        ("{{nope .Task.ID}}", "1: function \"nope\" not defined".to_owned()),
        ("a {{.Task.ID", "1: unclosed action".to_owned()),
        ("{{}}", "1: missing value for command".to_owned()),
        ("{{.Task.ID | nope}}", "1: unexpected \"|\" in operand".to_owned()),
        ("{{.Task.}}", "1: unexpected <.Task.> in operand".to_owned()),
        ("{{\"a}}", "1: unclosed action".to_owned()),
        ("{{\"\\q\"}}", "1: unterminated quoted string".to_owned()),
    ] {
        assert_eq!(expanded(text), format!("template: expansion:{error}"), "{text}");
    }
    for text in ["{{if .Task.ID}}a{{end}}", "{{printf \"%s\" .Task.ID}}", "{{range .Service.Labels}}{{end}}"] {
        assert!(expanded(text).contains("is not supported by skep"), "{text}: {}", expanded(text));
    }
    assert!(expanded("{{.Service}}").contains("name one of its fields"));
}

#[test]
fn contents_have_functions_and_a_largest_size() {
    let functions = |kind: ContentFunction, name: &str| match (kind, name) {
        (ContentFunction::Env, "MODE") => Ok("prod".to_owned()),
        (ContentFunction::Env, _) => Ok(String::new()),
        (ContentFunction::Secret, "big") => Ok("x".repeat(MOST_EXPANDED / 4)),
        (ContentFunction::Secret, _) => Err(format!("secret target {name} not found")),
        (ContentFunction::Config, _) => Ok("conf".to_owned()),
    };
    let expand = |text: &str| expand(text, &context(), Some(&functions)).map_err(|e| e.to_string());
    assert_eq!(expand("{{env \"MODE\"}}{{env \"X\"}} {{config \"c\"}} {{.Task.Slot}}"), Ok("prod conf 3".to_owned()));
    let missing = expand("{{secret \"no\"}}").unwrap_err();
    assert!(missing.ends_with("error calling secret: secret target no not found"), "{missing}");
    assert!(expand("{{env}}").unwrap_err().ends_with("wrong number of args for env: got 0"));
    assert!(expand("{{env .Service.Labels}}").unwrap_err().contains("expected string"));
    assert_eq!(expand(&"{{secret \"big\"}}".repeat(4)).map(|text| text.len()), Ok(MOST_EXPANDED));
    assert!(expand(&"{{secret \"big\"}}".repeat(5)).unwrap_err().contains("longer than 4 MiB"));
}

proptest! {
    #[test]
    fn any_text_is_expanded_or_refused(text in "[a-zA-Z.{}\"`\\\\ \n|()*/-ä]{0,40}") {
        let _ = expand(&text, &context(), None);
        if !is_template(&text) {
            prop_assert_eq!(expand(&text, &context(), None), Ok(text));
        }
    }
}
