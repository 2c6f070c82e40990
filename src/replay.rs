//! Traces through the deciding code in virtual time: what would this configuration have done with that traffic?
//!
//! [`picker::Picker`] is the real thing without its edges: the configuration, plugins, index, accounts and queue
//! of a process, over a clock that moves only when told to. Two drivers feed it: [`protocol`] takes events from a
//! simulator in another process, [`run`] plays a [`trace`] against simulated servers ([`pod`]). [`compare`] does that
//! for several configurations, loads and seeds at once; [`table`] and [`report`] say what came out.
//!
//! Invariants: nothing here reads a clock or draws a random number without a seed; one seed gives one result, on
//! any number of threads; no request needs more memory than its prompt, and that only until it is sent.
//!
//! Rejected: driving the ext_proc stream of a bound process (true to the last byte, and a thousand times slower
//! than the simulated time needs), and a second implementation of the policies for simulation (it would measure
//! itself).

pub mod compare;
pub mod picker;
pub mod pod;
pub mod preset;
pub mod protocol;
pub mod report;
pub mod run;
pub mod table;
pub mod text;
pub mod trace;
