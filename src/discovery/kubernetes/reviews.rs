//! Asks the API server who a bearer token belongs to and whether that user may read a page.
//!
//! TokenReview, then SubjectAccessReview on the path with the verb `get`, as the metrics port of the
//! picker we replace does it (llm-d-router.md 1.1). Verbs: `create` on `tokenreviews` and
//! `subjectaccessreviews`, both cluster-wide. Nothing is kept here; the asker keeps the answers.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::authorization::v1::{NonResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};

use super::Cluster;

/// What the API server says of a token and a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The user may read it.
    Allowed,
    /// The user, whose name this is, may not.
    Forbidden(String),
    /// The token is nobody's.
    Unknown,
}

/// There is no verdict.
#[derive(Debug, thiserror::Error)]
pub enum NoVerdict {
    /// This process may not ask.
    #[error("this picker's service account may not create {0}: bind it to a ClusterRole that allows it")]
    NotAllowed(&'static str),
    /// The API server did not answer, or not with a verdict.
    #[error("the API server gave no verdict: {0}")]
    Unavailable(String),
}

/// Reviews by one cluster.
#[derive(Clone)]
pub struct Reviews {
    client: Client,
}

impl fmt::Debug for Reviews {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reviews").finish_non_exhaustive()
    }
}

impl Reviews {
    /// Reviews by `cluster`.
    pub fn new(cluster: &Cluster) -> Self {
        Self { client: cluster.client().clone() }
    }

    /// Whether the owner of `token` may `get` the path `path`. Two calls, without a time limit of
    /// their own.
    ///
    /// # Errors
    /// See [`NoVerdict`].
    pub async fn review(&self, token: &str, path: &str) -> Result<Verdict, NoVerdict> {
        let spec = TokenReviewSpec { token: token.to_owned(), ..TokenReviewSpec::default() };
        let asked = TokenReview { spec, ..TokenReview::default() };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let review = api.create(&PostParams::default(), &asked).await.map_err(|e| none("tokenreviews", &e))?;
        let status = review.status.unwrap_or_default();
        let Some(user) = status.user.filter(|_| status.authenticated == Some(true)) else {
            return Ok(Verdict::Unknown);
        };
        let name = user.username.clone().unwrap_or_default();
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let asked = SubjectAccessReview { spec: may(user, path), ..SubjectAccessReview::default() };
        let review = api.create(&PostParams::default(), &asked).await.map_err(|e| none("subjectaccessreviews", &e))?;
        let status = review.status.unwrap_or_default();
        match status.allowed && status.denied != Some(true) {
            true => Ok(Verdict::Allowed),
            false => Ok(Verdict::Forbidden(name)),
        }
    }
}

fn may(user: UserInfo, path: &str) -> SubjectAccessReviewSpec {
    SubjectAccessReviewSpec {
        user: user.username,
        uid: user.uid,
        groups: user.groups,
        extra: user.extra.map(BTreeMap::from_iter),
        non_resource_attributes: Some(NonResourceAttributes { path: Some(path.to_owned()), verb: Some("get".into()) }),
        ..SubjectAccessReviewSpec::default()
    }
}

fn none(what: &'static str, error: &kube::Error) -> NoVerdict {
    match error {
        kube::Error::Api(status) if status.code == 403 => NoVerdict::NotAllowed(what),
        // It never holds the token: that is in the request's body only.
        other => NoVerdict::Unavailable(other.to_string()),
    }
}

#[cfg(test)]
mod tests;
