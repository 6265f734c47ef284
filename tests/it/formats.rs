//! What earlier builds wrote is read, and what a newer build wrote is refused by name, not read in part.

mod unknown_fields;
