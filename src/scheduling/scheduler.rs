//! Runs the profiles that the handler asks for and assembles the decision.

use smallvec::SmallVec;
use std::sync::Arc;

use crate::domain::{Decision, ProfileResult, Rejection, RejectionReason, Slot};

use super::plugin::{Cycle, Handler, Next};
use super::profile::{Profile, Scratch};

/// The configured profiles and their handler.
#[derive(Clone)]
pub struct Scheduler {
    /// Profiles by index.
    pub profiles: Vec<Profile>,
    /// Which of them run.
    pub handler: Arc<dyn Handler>,
}

impl Scheduler {
    /// Decides for one request among `base` (ascending slots, not empty).
    ///
    /// # Errors
    /// [`Rejection::ResourceExhausted`] when the primary profile's filters left no endpoint, as in
    /// the picker we replace (429, `rejected-saturated`).
    pub fn schedule(
        &self,
        cx: &Cycle<'_>,
        base: &[Slot],
        rng: &mut fastrand::Rng,
        scratch: &mut Scratch,
        explain: bool,
    ) -> Result<Decision, Rejection> {
        let mut finished: Vec<(usize, Option<ProfileResult>)> = Vec::with_capacity(1);
        // A handler can ask for each profile once; the bound also stops one that never finishes.
        let primary = loop {
            match self.handler.next(cx, &finished) {
                Next::Run(index) if finished.len() < self.profiles.len() && index < self.profiles.len() => {
                    let result = self.profiles[index].run(cx, base, rng, scratch, explain);
                    finished.push((index, result));
                }
                Next::Run(index) => {
                    return Err(Rejection::Internal(format!(
                        "the profile handler asked for profile {index} out of turn"
                    )));
                }
                Next::Finish(index) => break index,
            }
        };
        if finished.get(primary).is_none_or(|(_, result)| result.is_none()) {
            return Err(Rejection::ResourceExhausted {
                message: "failed to find target endpoint: the filters of the scheduling profile left no candidate"
                    .into(),
                reason: RejectionReason::Saturated,
            });
        }
        let headers = self.handler.headers(&finished);
        let mut position = 0;
        let mut profiles = SmallVec::new();
        for (i, (_, result)) in finished.into_iter().enumerate() {
            if let Some(result) = result {
                if i == primary {
                    position = profiles.len();
                }
                profiles.push(result);
            }
        }
        Ok(Decision { profiles, primary: position, headers })
    }
}
