//! `single-profile-handler`: runs the only profile, and its pick is the destination.
//!
//! Rule: run profile 0, then finish with it. That there is exactly one profile is checked when the
//! configuration is resolved, where the error can name the profile that is too many.
//!
//! Inputs: none.
//!
//! When it misleads: it does not; it is what a configuration with one profile gets when it names no
//! handler.
//!
//! ```yaml
//! - type: single-profile-handler
//! ```

use crate::domain::ProfileResult;
use crate::scheduling::params::Params as _;
use crate::scheduling::plugin::{About, Build, Built, Cycle, Handler, Next, Row, Stability};

crate::params! {
    /// The handler has no parameters.
    pub struct Params {}
}

/// This plugin in the table.
pub const ROW: Row = Row {
    about: About {
        kind: "single-profile-handler",
        aliases: &[],
        stability: Stability::Beta,
        summary: "Runs the only profile.",
        params: Params::SPEC,
        sample: "- type: single-profile-handler\n",
    },
    build,
};

fn build(b: &mut Build<'_>) -> Option<Built> {
    let Params {} = b.params();
    Some(Built::handler(SingleProfile))
}

struct SingleProfile;

impl Handler for SingleProfile {
    fn next(&self, _: &Cycle<'_>, finished: &[(usize, Option<ProfileResult>)]) -> Next {
        if finished.is_empty() { Next::Run(0) } else { Next::Finish(0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduling::fixtures::{build, pool};

    #[test]
    fn runs_once_and_finishes_even_if_nothing_was_found() {
        let (scene, built) = (pool(1), build(&ROW, vec![]));
        let handler = built.handler.unwrap();
        assert_eq!(handler.next(&scene.cycle(), &[]), Next::Run(0));
        assert_eq!(handler.next(&scene.cycle(), &[(0, None)]), Next::Finish(0));
    }
}
