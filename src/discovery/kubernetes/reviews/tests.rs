//! Reviews by an API server in this process.

use super::super::fake_api::FakeApi;
use super::*;

fn api() -> (FakeApi, Reviews) {
    let api = FakeApi::default();
    let mut state = api.0.lock();
    state.tokens.insert("good", "system:serviceaccount:monitoring:prometheus");
    state.tokens.insert("other", "somebody");
    state.allowed.push(("system:serviceaccount:monitoring:prometheus", "/metrics"));
    drop(state);
    let reviews = Reviews::new(&api.cluster().0);
    (api, reviews)
}

#[tokio::test]
async fn the_owner_of_a_token_is_asked_for_with_all_that_is_known_of_it() {
    let (api, reviews) = api();
    assert_eq!(reviews.review("good", "/metrics").await.unwrap(), Verdict::Allowed);
    let asked = api.0.lock().reviews[1].clone();
    let expected = serde_json::json!({
        "user": "system:serviceaccount:monitoring:prometheus", "uid": "u-1", "groups": ["readers"],
        "extra": {"k": ["v"]}, "nonResourceAttributes": {"path": "/metrics", "verb": "get"}});
    assert_eq!(asked["spec"], expected);
    assert_eq!(
        reviews.review("good", "/debug/config").await.unwrap(),
        Verdict::Forbidden("system:serviceaccount:monitoring:prometheus".into())
    );
    assert_eq!(reviews.review("other", "/metrics").await.unwrap(), Verdict::Forbidden("somebody".into()));
    assert_eq!(reviews.review("bad", "/metrics").await.unwrap(), Verdict::Unknown);
    let calls = api.0.lock().calls.clone();
    assert_eq!(calls.last().unwrap(), "create /apis/authentication.k8s.io/v1/tokenreviews", "nothing more is asked");
}

#[tokio::test]
async fn what_cannot_be_asked_is_said_without_the_token() {
    let (api, reviews) = api();
    api.0.lock().refuse.insert("create", 403);
    let error = reviews.review("good", "/metrics").await.unwrap_err();
    assert!(matches!(error, NoVerdict::NotAllowed("tokenreviews")), "{error}");
    api.0.lock().refuse.insert("create", 500);
    let error = reviews.review("secret-token", "/metrics").await.unwrap_err();
    assert!(matches!(error, NoVerdict::Unavailable(_)) && !error.to_string().contains("secret-token"), "{error}");
}
