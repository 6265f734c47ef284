//! What is left of a certificate's life, for people.

/// `89 days left`, `expired`.
pub(super) fn time_left(seconds: u64) -> String {
    match seconds {
        0 => "expired".to_owned(),
        seconds @ 1..7200 => format!("{seconds} s left"),
        seconds @ 7200..172_800 => format!("{} h left", seconds / 3600),
        seconds => format!("{} days left", seconds / 86_400),
    }
}
