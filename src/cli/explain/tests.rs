use serde_json::json;

use super::*;

fn shown(page: &Value, id: Option<&str>, rows: usize) -> String {
    table::write(choose(page, id).unwrap(), rows)
}

fn scores() -> Value {
    json!({
        "id": "3fa9-1", "requestId": "r-1", "at": "2026-11-20T12:00:00.250Z", "heldMs": 0.0, "path": "/v1/completions",
        "model": "m", "targetModel": "m", "priority": 0, "fairnessId": "default-flow", "promptTokens": 812,
        "profiles": [{
            "profile": "default",
            "picked": [{ "endpoint": "pod-1", "address": "10.0.0.1:8000", "score": 3.8 }],
            "explanation": {
                "picker": "max-score-picker",
                "scorers": [{ "name": "queue-scorer", "weight": 2.0 }, { "name": "prefix-cache-scorer", "weight": 3.0 }],
                "costs": null,
                "candidates": [
                    { "endpoint": "pod-0", "values": [1.0, 0.0], "total": 2.0, "prefixBlocks": [0] },
                    { "endpoint": "pod-1", "values": [0.4, 1.0], "total": 3.8, "prefixBlocks": [12] },
                    { "endpoint": "pod-3", "values": [0.71, 0.5], "total": 2.92, "prefixBlocks": [6] },
                ],
                "removed": [
                    { "endpoint": "pod-2", "slot": 2, "filter": "decode-filter" },
                    { "endpoint": "pod-4", "slot": 4, "filter": "decode-filter" },
                    { "endpoint": "pod-5", "slot": 5, "filter": "utilization-filter" },
                ],
            },
            "verdict": {
                "winner": "pod-1", "runnerUp": "pod-3", "margin": 0.88, "unit": null, "decidedBy": "margin",
                "tieRule": "lot",
                "flips": [
                    { "endpoint": "pod-3", "column": "prefix-cache-scorer", "from": 0.5, "to": 0.7933 },
                    { "endpoint": "pod-1", "column": "prefix-cache-scorer", "from": 1.0, "to": 0.7067 },
                ],
            },
        }],
        "outcome": {
            "outcome": "completed", "status": 200, "ttftMs": 312.5, "totalMs": 2000.0, "promptTokens": 800,
            "cachedTokens": 640, "outputTokens": 88, "servedBy": "10.0.0.1:8000",
        },
    })
}

#[test]
fn scores_as_a_table() {
    let page = json!({ "capacity": 256, "decisions": [scores()] });
    let expected = "\
decision 3fa9-1 on request r-1 at 2026-11-20T12:00:00.250Z
/v1/completions, model m, prompt about 812 tokens, priority 0, fairness id default-flow

profile default: pod-1 (10.0.0.1:8000) by max-score-picker
    endpoint  cached blocks  queue-scorer x2  prefix-cache-scorer x3  total
  * pod-1                12              0.4                       1    3.8
    pod-3                 6             0.71                     0.5   2.92
    pod-0                 0                1                       0      2
  removed by decode-filter: pod-2, pod-4
  removed by utilization-filter: pod-5
  margin 0.88 to pod-3
  any one of these would have closed it:
    prefix-cache-scorer of pod-3 higher by 0.2933: 0.7933 instead of 0.5
    prefix-cache-scorer of pod-1 lower by 0.2933: 0.7067 instead of 1

outcome: completed, status 200, first token after 312.5 ms, over after 2000 ms, 640 of 800 prompt tokens from its cache, 88 tokens of output, answered by 10.0.0.1:8000
";
    assert_eq!(shown(&page, Some("r-1"), 20), expected);
    assert_eq!(shown(&page, Some("3fa9-1"), 20), expected);
    assert_eq!(shown(&scores(), Some("whatever"), 20), expected, "a file with one decision");
    let short = shown(&page, None, 1);
    assert!(short.contains("\n  2 more (--rows=0 shows all)\n") && !short.contains("pod-0"), "{short}");
}

#[test]
fn costs_as_a_table() {
    let decision = json!({
        "id": "3fa9-2", "requestId": "r\u{1b}[2J", "heldMs": 41.5, "path": "/v1/chat/completions", "model": "alias",
        "targetModel": "m", "priority": -1, "fairnessId": "tenant",
        "profiles": [{
            "profile": "default",
            "picked": [{ "endpoint": "pod-1", "address": "10.0.0.1:8000", "score": 0.0 }],
            "explanation": {
                "picker": "cost-picker",
                "scorers": [],
                "costs": { "terms": ["prefill", "wait"], "unit": "s", "tolerance": 0.0226 },
                "candidates": [
                    { "endpoint": "pod-0", "values": [], "total": 0.0, "prefixBlocks": [], "costs": [0.5, 0.4], "cost": 0.9 },
                    { "endpoint": "pod-1", "values": [], "total": 0.0, "prefixBlocks": [], "costs": [0.25, 0.38], "cost": 0.63 },
                    { "endpoint": "pod-2", "values": [], "total": 0.0, "prefixBlocks": [], "costs": [0.6, null], "cost": null },
                ],
                "removed": [],
            },
            "verdict": {
                "winner": "pod-1", "runnerUp": "pod-0", "margin": 0.27, "unit": "s", "decidedBy": "margin",
                "tieRule": null,
                "flips": [{ "endpoint": "pod-0", "column": "prefill", "from": 0.5, "to": 0.23 }],
            },
        }],
        "outcome": null,
    });
    let expected = "\
decision 3fa9-2 on request r?[2J
/v1/chat/completions, model alias sent as m, priority -1, fairness id tenant, held 41.5 ms

profile default: pod-1 (10.0.0.1:8000) by cost-picker
    endpoint  prefill s  wait s  cost s
  * pod-1          0.25    0.38    0.63
    pod-0           0.5     0.4     0.9
    pod-2           0.6       -       -
  margin 0.27 s to pod-0
  any one of these would have closed it:
    prefill of pod-0 lower by 0.27 s: 0.23 instead of 0.5

outcome: not ended yet
";
    assert_eq!(shown(&decision, None, 20), expected);
    let by = |decided_by: &str, rule: Value| {
        let mut decision = decision.clone();
        let verdict = &mut decision["profiles"][0]["verdict"];
        (verdict["decidedBy"], verdict["tieRule"], verdict["flips"]) = (decided_by.into(), rule, json!([]));
        let text = shown(&decision, None, 20);
        text.lines().find(|l| l.contains("margin") || l.contains("only")).unwrap().to_owned()
    };
    assert_eq!(
        by("tie-rule", "least intake lately".into()),
        "  margin 0.27 s to pod-0: within 0.0226 s of each other count as equal, and are decided by least intake lately"
    );
    assert_eq!(by("picker", Value::Null), "  margin 0.27 s to pod-0: cost-picker does not go by the best alone");
    assert_eq!(by("only-candidate", Value::Null), "  it was the only candidate");
}

#[test]
fn what_is_missing_is_said_and_anything_can_be_shown() {
    let wrong = |page: Value, id: Option<&str>| choose(&page, id).unwrap_err().to_string();
    assert!(wrong(json!({ "capacity": 0, "decisions": [] }), Some("x")).contains("--debug-decisions=N"));
    assert!(wrong(json!({ "capacity": 9, "decisions": [scores()] }), Some("x")).contains("`x`"));
    assert!(wrong(json!({ "capacity": 9, "decisions": [] }), None).contains("no decision yet"));
    assert!(wrong(json!([1, 2]), None).contains("not what /debug/decisions answers"));
    for odd in [json!({ "profiles": [] }), json!({ "profiles": [{}] }), json!({ "profiles": [{ "explanation": 3 }] })] {
        assert!(shown(&odd, None, 0).starts_with("decision - on request -"), "{odd}");
    }
    assert_eq!(encoded("a/b %\u{e4}-."), "a%2Fb%20%25%C3%A4-.");
}

#[tokio::test]
async fn an_address_is_found_or_the_url_refused() {
    let found = resolve("http://127.0.0.1:9/x").await.unwrap();
    assert_eq!(found, ("127.0.0.1:9".to_owned(), "127.0.0.1:9".parse().unwrap()));
    assert_eq!(resolve("http://[::1]:9090").await.unwrap().1, "[::1]:9090".parse().unwrap());
    assert!(resolve("https://127.0.0.1:9").await.unwrap_err().to_string().contains("--file"));
    assert!(resolve("127.0.0.1:9").await.is_err());
}
