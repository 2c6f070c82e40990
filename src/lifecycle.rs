//! Start, readiness, drain and stop: the process around the picker.
//!
//! The order of a stop: a signal ([`signal`]) makes the process not ready for good ([`ready`]), which
//! takes it out of rotation; it goes on serving for the drain timeout; then the drain ([`drain`])
//! refuses new work, waits for what is open and forces the rest. A task that must not end
//! ([`task`]) stops the process in the same way, with an error.

pub mod certificate;
pub mod clock;
pub mod drain;
pub mod open_files;
pub mod ready;
pub mod signal;
pub mod task;
pub mod watch_file;
