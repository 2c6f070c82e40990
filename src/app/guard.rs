//! The guard of the admin port when there is Kubernetes: its reviews judge the tokens.

use std::sync::Arc;

use crate::admin::access::{self, Access, Judge, Judgement};
use crate::discovery::kubernetes::Cluster;
use crate::discovery::kubernetes::reviews::{NoVerdict, Reviews, Verdict};
use crate::lifecycle::clock::Clock;

/// A guard that lets bearer tokens through as `cluster` says.
pub fn tokens(cluster: &Cluster, clock: &Arc<dyn Clock>) -> Access {
    Access::new(Arc::new(ByReview(Reviews::new(cluster))), Arc::clone(clock))
}

struct ByReview(Reviews);

impl Judge for ByReview {
    fn judge(&self, token: String, path: String) -> Judgement {
        let reviews = self.0.clone();
        Box::pin(async move {
            match reviews.review(&token, &path).await {
                Ok(Verdict::Allowed) => Ok(access::Verdict::Allowed),
                Ok(Verdict::Forbidden(user)) => {
                    tracing::info!(user, path, "not allowed to read this page of the metrics port");
                    Ok(access::Verdict::Forbidden)
                }
                Ok(Verdict::Unknown) => Ok(access::Verdict::Unknown),
                Err(error @ NoVerdict::NotAllowed(_)) => Err(access::NoVerdict::Broken(error.to_string())),
                Err(error @ NoVerdict::Unavailable(_)) => Err(access::NoVerdict::Unavailable(error.to_string())),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use http::header::AUTHORIZATION;
    use http::{HeaderMap, HeaderValue};

    use super::*;
    use crate::admin::access::Denied;
    use crate::discovery::kubernetes::fake_api::{FakeApi, TokioClock};

    #[tokio::test(start_paused = true)]
    async fn the_api_server_decides_and_is_asked_once_a_minute() {
        let api = FakeApi::default();
        api.0.lock().tokens.insert("good", "prometheus");
        api.0.lock().allowed.push(("prometheus", "/metrics"));
        let access = tokens(&api.cluster().0, &TokioClock::start());
        let check = async |token: &'static str, path: &'static str| {
            let headers = HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_static(token))]);
            access.check(&headers, path, Some(path)).await
        };
        for _ in 0..10 {
            assert_eq!(check("Bearer good", "/metrics").await, Ok(()));
        }
        assert_eq!(api.0.lock().reviews.len(), 2);
        assert_eq!(check("Bearer good", "/debug/config").await, Err(Denied::Forbidden));
        assert_eq!(check("Bearer bad", "/metrics").await, Err(Denied::Unauthorized));
        api.0.lock().refuse.insert("create", 403);
        assert!(
            matches!(check("Bearer new", "/metrics").await, Err(Denied::Broken(why)) if why.contains("ClusterRole"))
        );
        api.0.lock().refuse.insert("create", 500);
        assert!(matches!(check("Bearer new", "/metrics").await, Err(Denied::Unavailable(_))));
        api.0.lock().away = true;
        assert!(matches!(check("Bearer new", "/metrics").await, Err(Denied::Unavailable(_))));
        assert_eq!(check("Bearer good", "/metrics").await, Ok(()), "what is known stays known");
    }
}
