use super::*;
use crate::domain::node::Problems;
use crate::scheduling::plugin::Registry;

fn built(yaml: &str) -> (Option<Arc<Dispatch>>, Problems, Registry) {
    let text = format!("parameters: {yaml}\n");
    let mut problems = Problems::default();
    let node = crate::config::yaml::read(text.as_bytes(), &mut problems).expect("reads");
    let mut registry = Registry::default();
    let mut b = Build {
        name: "d",
        path: "plugins[0].parameters".into(),
        at: node.at,
        parameters: node.get("parameters"),
        registry: &mut registry,
        problems: &mut problems,
    };
    let built = build(&mut b);
    (built.and_then(|built| built.dispatch), problems, registry)
}

#[test]
fn parameters_and_their_defaults() {
    let (dispatch, problems, registry) = built("{}");
    assert_eq!(dispatch.as_deref(), Some(&Dispatch::default()));
    assert!(problems.errors.is_empty(), "{:?}", problems.errors);
    assert!(registry.needs(&Need::Prompts) && registry.needs(&Need::Metric(Metric::KvUsage)));
    assert!(registry.needs(&Need::Caches) && !registry.needs(&Need::Metric(Metric::Waiting)));

    let text = "{mode: immediate, holdAbove: 1.5s, orderWeight: 10, planDepth: 8, maxRequests: 5, maxBytes: 1Mi, \
                maxHold: 2s, minSamples: 3, fairnessQuantum: 500ms, writePriority: true}";
    let (dispatch, problems, _) = built(text);
    assert!(problems.errors.is_empty(), "{:?}", problems.errors);
    let expected = Dispatch {
        mode: DispatchMode::Immediate,
        hold_above: 1.5,
        order_weight: 10.0,
        plan_depth: 8,
        max_requests: 5,
        max_bytes: 1 << 20,
        max_hold: Duration::from_secs(2),
        min_samples: 3,
        fairness_quantum: Duration::from_millis(500),
        write_priority: true,
        prefix: 0,
    };
    assert_eq!(dispatch.as_deref(), Some(&expected));
}

#[test]
fn off_asks_for_nothing() {
    let (dispatch, problems, mut registry) = built("{mode: off}");
    assert!(problems.errors.is_empty(), "{:?}", problems.errors);
    assert_eq!(dispatch.map(|d| d.mode), Some(DispatchMode::Off));
    assert!(registry.needs.is_empty() && registry.take_missing().is_empty());
}

#[test]
fn wrong_values_are_named() {
    for (text, key) in [("{mode: sometimes}", "mode"), ("{planDepth: 0}", "planDepth"), ("{hold: 1}", "hold")] {
        let (_, problems, _) = built(text);
        assert_eq!(problems.errors.len(), 1, "{text}");
        assert!(problems.errors[0].path.ends_with(key), "{:?}", problems.errors[0]);
    }
}

#[test]
fn limits_that_hold_nothing_are_noticed() {
    let (_, problems, _) = built("{maxBytes: 0}");
    assert_eq!((problems.errors.len(), problems.warnings.len()), (1, 0));
    assert!(problems.errors[0].path.ends_with("maxBytes") && problems.errors[0].fix.contains("1Gi"));
    for (text, key) in
        [("{maxHold: 0s}", "maxHold"), ("{holdAbove: 2s, maxHold: 2s}", "holdAbove"), ("{holdAbove: 90s}", "holdAbove")]
    {
        let (_, problems, _) = built(text);
        assert_eq!((problems.errors.len(), problems.warnings.len()), (0, 1), "{text}");
        assert!(problems.warnings[0].path.ends_with(key), "{:?}", problems.warnings[0]);
    }
    for text in ["{mode: immediate, maxBytes: 0, maxHold: 0s}", "{holdAbove: 0s}"] {
        let (_, problems, _) = built(text);
        assert!(problems.errors.is_empty() && problems.warnings.is_empty(), "{text}");
    }
}

#[test]
fn keys_grow_with_arrival_and_prefill_and_never_overflow() {
    let at = Timestamp(5_000_000);
    assert_eq!(order_key(at, 20.0, 0.0), 5_000_000);
    assert_eq!(order_key(at, 20.0, 0.5), 15_000_000);
    assert_eq!(order_key(at, 0.0, 9.0), 5_000_000, "first come, first served");
    for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1.0] {
        assert_eq!(order_key(at, 20.0, odd), 5_000_000);
    }
    assert_eq!(order_key(Timestamp(u64::MAX - 1), 1e4, f32::MAX), u64::MAX);
}
