//! Contents of secrets and configs in a session: each travels once, and only as long as a task needs it.

use super::ToNode;
use super::view_stream::{ViewDecoder, ViewEncoder};
use crate::model::view::Tasks;
use crate::model::{Payload, PayloadId, Revision};
use std::collections::BTreeSet;
use std::sync::Arc;

fn payload(content: &str) -> Arc<Payload> {
    Arc::new(Payload { data: content.into(), templating: Some("golang".to_owned()) })
}

fn tasks(names: &[&str]) -> Arc<Tasks> {
    let payloads = names.iter().map(|name| (PayloadId::Secret((*name).into()), payload(&format!("content-{name}"))));
    Arc::new(Tasks { payloads: payloads.collect(), ..Tasks::default() })
}

#[test]
fn a_content_is_sent_once_and_dropped_when_no_task_needs_it() {
    let (mut encoder, mut decoder) = (ViewEncoder::default(), ViewDecoder::default());
    let mut index = 0;
    let mut travel = |tasks: &Arc<Tasks>| {
        index += 1;
        let revision = Revision { incarnation: 1, index };
        let message = ToNode::View { revision, tasks: Some(tasks.clone()), networks: None, cluster: None };
        assert!(!format!("{message:?}").contains("content"), "a message is shown in logs");
        let (mut sent, mut arrived) = (String::new(), None);
        for document in encoder.encode(message) {
            sent.push_str(std::str::from_utf8(&document).expect("JSON"));
            let Ok(ToNode::Piece(piece)) = serde_json::from_slice(&document) else { panic!("no piece") };
            arrived = decoder.take(piece).expect("fits");
        }
        let Some(ToNode::View { tasks: Some(arrived), .. }) = arrived else { panic!("no view") };
        assert_eq!(arrived, *tasks);
        let names: BTreeSet<&str> =
            ["a", "b", "c"].into_iter().filter(|name| sent.contains(&format!("content-{name}"))).collect();
        names.into_iter().collect::<String>()
    };
    assert_eq!(travel(&tasks(&["a", "b"])), "ab");
    assert_eq!(travel(&tasks(&["a", "b", "c"])), "c");
    assert_eq!(travel(&tasks(&["c"])), "");
    assert_eq!(travel(&tasks(&["a", "c"])), "a", "it is needed again");
}
