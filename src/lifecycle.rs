//! Start, readiness, drain and stop: the process around the picker.

pub mod clock;
