//! `cost-picker` over the accounts, through the director: picking and reserving are one step here too.

use super::*;
use pointsman::domain::{InferenceRequest, Signals, Timestamp};

/// Nothing else is configured: the producers that the picker reads are created.
const COST: &str = "
plugins:
- type: cost-picker
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: cost-picker
";

const MIX: &str = "
plugins:
- type: prefix-cache-scorer
- type: outstanding-prefill-scorer
- type: kv-cache-utilization-scorer
- type: max-score-picker
schedulingProfiles:
- name: default
  plugins:
  - {pluginRef: prefix-cache-scorer, weight: 3}
  - {pluginRef: outstanding-prefill-scorer, weight: 2}
  - {pluginRef: kv-cache-utilization-scorer, weight: 1}
  - pluginRef: max-score-picker
";

fn long(text: &str, words: usize) -> CompleteRequest {
    let headers =
        Headers::from([(":method", "POST"), (":path", "/v1/completions"), ("content-type", "application/json")]);
    let body = Bytes::from(format!(r#"{{"model":"m","stream":true,"prompt":"{}"}}"#, format!("{text} ").repeat(words)));
    CompleteRequest { headers, body, has_body: true, subset: None, may_wait: false }
}

/// Outstanding prefill in seconds and requests in flight, by slot.
fn accounts(directed: &Directed, pool: &Pool) -> Vec<(f32, u32)> {
    let now: Timestamp = directed.0.parts().clock.now();
    let mut signals = Signals { now, ..Signals::default() };
    for producer in &directed.0.parts().producers {
        producer.producer.produce(&InferenceRequest::default(), &pool.snapshot(), &mut signals);
    }
    signals.accounts.expect("accounts").endpoints.iter().map(|a| (a.outstanding, a.in_flight)).collect()
}

#[test]
fn prompts_of_equal_length_spread_and_a_long_one_is_avoided() {
    for document in [COST, MIX] {
        let (directed, pool) = director(document, (1..=4).map(|i| spec(i, "decode")).collect());
        let mut open = Vec::new();
        let mut send = |text: &str, words: usize| {
            let mut exchange = directed.open();
            let route = exchange.decide(long(text, words)).expect("routed");
            open.push(exchange);
            route.destination.to_string()
        };
        let busy = send("a prompt of very many words", 20_000);
        let mut rest: Vec<String> = (0..6).map(|i| send(&format!("{i} begins unlike the others"), 500)).collect();
        assert!(!rest.contains(&busy), "{document}: {busy} is busy for long, {rest:?}");
        rest.sort();
        let counts: Vec<usize> = rest.chunk_by(|a, b| a == b).map(<[String]>::len).collect();
        assert_eq!(counts, [2, 2, 2], "{document}");

        // Streamed answers begin: nothing is outstanding, all are in flight; then they end.
        for exchange in &mut open {
            exchange.response_headers(200, Headers::default(), &Served::default(), false);
            exchange.response_body(&Bytes::from_static(b"data: {}\n\n"), false);
        }
        let now = accounts(&directed, &pool);
        assert!(now.iter().all(|a| a.0 == 0.0 && a.1 > 0), "{now:?}");
        open.pop();
        open.iter_mut().for_each(|exchange| exchange.end(Outcome::Completed));
        assert_eq!(accounts(&directed, &pool), [(0.0, 0); 4]);
    }
}

#[test]
fn a_burst_from_many_threads_is_priced_one_after_another() {
    let (directed, pool) = director(COST, (1..=8).map(|i| spec(i, "decode")).collect());
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            let directed = directed.clone();
            std::thread::spawn(move || {
                let send = |i: usize| {
                    let mut exchange = directed.open();
                    exchange.decide(long(&format!("{thread} {i:02} a beginning of its own"), 100)).expect("routed");
                    exchange
                };
                (0..32).map(send).collect::<Vec<_>>()
            })
        })
        .collect();
    let open: Vec<_> = threads.into_iter().flat_map(|t| t.join().expect("no panic")).collect();
    let counts: Vec<u32> = accounts(&directed, &pool).iter().map(|a| a.1).collect();
    assert_eq!(counts.iter().sum::<u32>(), 128);
    let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
    assert!(most - least <= 3, "{counts:?}");
    drop(open);
    assert_eq!(accounts(&directed, &pool), [(0.0, 0); 8]);
}
