//! The raft crate logs with slog; this forwards its records to tracing. Its debug level prints whole messages, which contain
//! the cluster's secrets: that level is not forwarded.

use slog::{Drain, Level, Logger, Never, OwnedKVList, Record, o};
use std::fmt;

/// The logger for the raft crate.
pub(super) fn logger() -> Logger {
    Logger::root(ToTracing, o!())
}

struct ToTracing;

impl Drain for ToTracing {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, _: &OwnedKVList) -> Result<(), Never> {
        match record.level() {
            Level::Critical | Level::Error => tracing::error!(target: "skep::raft", "{}", text(record)),
            Level::Warning => tracing::warn!(target: "skep::raft", "{}", text(record)),
            Level::Info if tracing::enabled!(target: "skep::raft", tracing::Level::DEBUG) => {
                tracing::debug!(target: "skep::raft", "{}", text(record));
            }
            _ => {}
        }
        Ok(())
    }

    fn is_enabled(&self, level: Level) -> bool {
        level.is_at_least(Level::Info)
    }
}

fn text(record: &Record<'_>) -> String {
    let mut text = RecordText(record.msg().to_string());
    // Writing to a String does not fail.
    let _ = slog::KV::serialize(&record.kv(), record, &mut text);
    text.0
}

struct RecordText(String);

impl slog::Serializer for RecordText {
    fn emit_arguments(&mut self, key: slog::Key, value: &fmt::Arguments<'_>) -> slog::Result {
        use fmt::Write as _;
        write!(self.0, " {key}={value}").map_err(Into::into)
    }
}
