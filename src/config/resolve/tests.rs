use super::*;
use crate::config::fakes;
use crate::config::yaml;
use proptest::prelude::*;

const HEAD: &str = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n";

fn run(text: &str, settings: Settings, tables: &Tables) -> Result<Config, ConfigError> {
    resolve("f.yaml", Some(text.as_bytes()), settings, tables, Purpose::Check)
}

fn good(body: &str) -> Config {
    run(&format!("{HEAD}{body}"), Settings::default(), &fakes::tables()).unwrap_or_else(|e| panic!("{body}\n{e}"))
}

fn bad(body: &str) -> Vec<String> {
    match run(&format!("{HEAD}{body}"), Settings::default(), &fakes::tables()) {
        Ok(config) => panic!("accepted:\n{body}\n{}", config.render()),
        Err(error) => error.lines().collect(),
    }
}

fn warnings(config: &Config) -> Vec<String> {
    config.warning_lines().collect()
}

fn names(config: &Config) -> Vec<&str> {
    config.registry.instances.iter().map(|(n, _)| n.as_ref()).collect()
}

#[test]
fn without_a_configuration_the_defaults_run() {
    for text in [None, Some(""), Some("# nothing\n"), Some("---\n")] {
        let config = resolve("f", text.map(str::as_bytes), Settings::default(), &fakes::tables(), Purpose::Check)
            .unwrap_or_else(|e| panic!("{e}"));
        let profile = &config.scheduler.profiles[0];
        assert_eq!((config.scheduler.profiles.len(), profile.name.as_ref()), (1, "default"));
        assert!(profile.filters.is_empty() && profile.scorers.is_empty());
        assert_eq!(profile.picker.0.as_ref(), "cost-picker");
        assert_eq!(config.dispatch.as_deref(), Some(&crate::scheduling::dispatch::Dispatch::default()));
        let parsers: Vec<_> = config.parsers.iter().map(|p| p.kind).collect();
        assert_eq!(parsers, ["openai-parser", "anthropic-parser", "vllmhttp-parser", "passthrough-parser"]);
        assert_eq!(config.sources.len(), 1);
        assert_eq!(config.sources[0].source.kind, "metrics-data-source");
        assert_eq!(config.sources[0].extractors[0].kind, "core-metrics-extractor");
        assert_eq!(config.saturation.kind, "utilization-detector");
        assert_eq!(
            config.producers.iter().map(|p| p.kind).collect::<Vec<_>>(),
            ["mirror-prefix-cache-producer", "prefill-account-producer"]
        );
        assert!(names(&config).contains(&"single-profile-handler"));
        assert_eq!(config.gates, Gates { flow_control: false, populate_standby: true });
        assert_eq!(config.pool.name, "epp");
        assert!(config.warnings.is_empty(), "{:?}", warnings(&config));
    }
}

#[test]
fn without_profiles_everything_declared_is_in_one_profile_in_file_order() {
    let config = good(
        "plugins:\n- type: load-aware-scorer\n- type: by-label\n- {name: b, type: label-selector-filter}\n- type: random-picker\n- type: queue-scorer\n",
    );
    let profile = &config.scheduler.profiles[0];
    assert_eq!(profile.filters.iter().map(|(n, _)| n.as_ref()).collect::<Vec<_>>(), ["by-label", "b"]);
    assert_eq!(
        profile.scorers.iter().map(|s| (s.name.as_ref(), s.weight)).collect::<Vec<_>>(),
        [("load-aware-scorer", 1.0), ("queue-scorer", 1.0)]
    );
    assert_eq!(profile.picker.0.as_ref(), "random-picker");
    assert!(warnings(&config)[0].starts_with("f.yaml:5:9: plugins[1].type: `by-label` is an old name"));
}

#[test]
fn a_profile_without_a_picker_takes_the_first_declared_one() {
    let config = good(
        "plugins: [{type: queue-scorer}, {name: p, type: random-picker}, {type: max-score-picker}]\nschedulingProfiles: [{name: x, plugins: [{pluginRef: queue-scorer}]}]\n",
    );
    assert_eq!(config.scheduler.profiles[0].picker.0.as_ref(), "p");
    assert!(warnings(&config).iter().any(|w| w.contains("`max-score-picker` is declared but used nowhere")));
}

#[test]
fn producers_are_built_before_their_readers_and_run_in_order_of_dependency() {
    // The file names them in the wrong order on purpose.
    let config = good(
        "plugins:\n- type: active-request-scorer\n- {name: load, type: inflight-load-producer, parameters: {prefixMatchInfoProducerName: mine}}\n- {name: s, type: prefix-cache-scorer, parameters: {prefixMatchInfoProducerName: mine}}\n- {name: mine, type: approx-prefix-cache-producer}\n",
    );
    assert_eq!(config.producers.iter().map(|p| p.name.as_ref()).collect::<Vec<_>>(), ["mine", "load"]);
    assert_eq!(config.commits.len(), 2);
    assert!(config.registry.needs(&crate::scheduling::plugin::Need::Prompts));

    // A default producer can lack a producer itself.
    let config = good("plugins: [{type: active-request-scorer}]\n");
    assert_eq!(
        config.producers.iter().map(|p| p.name.as_ref()).collect::<Vec<_>>(),
        ["mirror-prefix-cache-producer", "inflight-load-producer"]
    );
}

/// One wrong thing each: a file, the place of the error, and words that it must contain.
#[test]
fn every_rule_has_an_error_with_place_path_and_fix() {
    let plugin = "plugins: [{type: queue-scorer}, {type: single-profile-handler}, {type: openai-parser}]\n";
    for (body, place, words) in [
        ("plugins:\n- name: x\n", "4:3: plugins[0].type", "no type"),
        ("plugins:\n- type: queue-score\n", "4:9: plugins[0].type", "did you mean `queue-scorer`?"),
        (
            "plugins:\n- type: latency-scorer\n",
            "4:9: plugins[0].type",
            "known to llm-d-router but not supported by this version",
        ),
        (
            "plugins:\n- type: zzz\n",
            "4:9: plugins[0].type",
            "unknown plugin type `zzz`; the known types are label-selector-filter",
        ),
        ("plugins: [{type: queue-scorer}, {type: queue-scorer}]\n", "3:40: plugins[1].name", "two plugins are called"),
        ("plugins: [{type: queue-scorer, parameters: {x: 1}}]\n", "3:45: plugins[0].parameters.x", "unknown field"),
        (
            "plugins: [{type: load-aware-scorer, parameters: {threshold: 0}}]\n",
            "3:61: plugins[0].parameters.threshold",
            "at least 1",
        ),
        ("plugins: [{type: queue-scorer, param: {}}]\n", "3:32: plugins[0].param", "did you mean `parameters`?"),
        ("plugins: [{type: session-affinity-scorer}]\n", "3:18: plugins[0].type", "--allow-experimental-plugins"),
        (
            "plugins: [{type: prefix-cache-scorer, parameters: {prefixMatchInfoProducerName: x}}]\n",
            "3:81",
            "no producer is called `x`",
        ),
        ("schedulingProfiles: [{plugins: []}]\n", "3:22: schedulingProfiles[0].name", "no name"),
        (
            "plugins: [{type: two-profile-handler}]\nschedulingProfiles: [{name: a}, {name: a}]\n",
            "4:40: schedulingProfiles[1].name",
            "two profiles are called `a`",
        ),
        (
            "schedulingProfiles: [{name: a, plugins: [{weight: 1}]}]\n",
            "3:42: schedulingProfiles[0].plugins[0].pluginRef",
            "names no plugin",
        ),
        (
            "schedulingProfiles: [{name: a, plugins: [{pluginRef: queue-scorer}]}]\n",
            "3:54",
            "add `- type: queue-scorer` to plugins",
        ),
        (
            "plugins: [{type: random-picker}, {type: max-score-picker}]\n",
            "3:34: plugins[1]",
            "two pickers, `random-picker` and `max-score-picker`",
        ),
        (
            "plugins: [{type: single-profile-handler}, {type: two-profile-handler}]\n",
            "3:43: plugins[1]",
            "both profile handlers",
        ),
        ("schedulingProfiles: [{name: a}, {name: b}]\n", "plugins", "no profile handler"),
        (
            "plugins: [{type: single-profile-handler}]\nschedulingProfiles: [{name: a}, {name: b}]\n",
            "3:11: plugins[0]",
            "runs one profile",
        ),
        ("dataLayer: {sources: [{pluginRef: x}]}\n", "3:35: dataLayer.sources[0].pluginRef", "no plugin is called `x`"),
        ("featureGates: [flowControll]\n", "3:16: featureGates[0]", "did you mean `flowControl`?"),
        ("featureGates: [flowControl=maybe]\n", "3:16: featureGates[0]", "not a boolean"),
        ("featureGates: [flowControl]\n", "3:16: featureGates[0]", "not supported by this version"),
        ("flowControl: {maxBytes: -1}\n", "3:25: flowControl.maxBytes", "expected quantity"),
        (
            "flowControl: {priorityBands: [{priority: 1}, {priority: 1}]}\n",
            "3:57: flowControl.priorityBands[1].priority",
            "two bands",
        ),
        ("flowControl: {priorityBands: [{}]}\n", "3:31: flowControl.priorityBands[0].priority", "no priority"),
        ("requestControl: {}\n", "3:1: requestControl", "unknown field"),
        ("plugins: 3\n", "3:10: plugins", "expected list, found `3`"),
        ("dataLayer: {peerDiscovery: {pluginRef: x}}\n", "3:40", "no plugin is called `x`"),
        ("saturationDetector: {pluginRef: nope}\n", "3:33: saturationDetector.pluginRef", "no plugin is called `nope`"),
        (&format!("{plugin}dataLayer: {{sources: [{{pluginRef: queue-scorer}}]}}\n"), "4:35", "not a data source"),
        (
            &format!("{plugin}requestHandler: {{parsers: [{{pluginRef: queue-scorer}}]}}\n"),
            "4:40",
            "is of type `queue-scorer`, which is not a parser",
        ),
        (
            &format!("{plugin}flowControl: {{saturationDetector: {{pluginRef: openai-parser}}}}\n"),
            "4:47",
            "not a saturation detector",
        ),
        (&format!("{plugin}dataLayer: {{discovery: {{pluginRef: openai-parser}}}}\n"), "4:36", "not a discovery"),
        (
            &format!("{plugin}dataLayer: {{peerDiscovery: {{pluginRef: openai-parser}}}}\n"),
            "4:40",
            "not a peer discovery",
        ),
    ] {
        let errors = bad(body);
        assert_eq!(errors.len(), 1, "{body}: {errors:#?}");
        let place = if place.starts_with(|c: char| c.is_ascii_digit()) {
            format!("f.yaml:{place}")
        } else {
            format!("f.yaml: {place}")
        };
        assert!(errors[0].starts_with(&place), "{body}: expected {place}: {}", errors[0]);
        assert!(errors[0].contains(words), "{body}: expected {words}: {}", errors[0]);
        assert!(errors[0].contains("; fix: "), "{}", errors[0]);
    }
}

#[test]
fn weights_are_finite_and_not_negative() {
    let with = |weight: &str| {
        format!(
            "plugins: [{{type: queue-scorer}}]\nschedulingProfiles: [{{name: a, plugins: [{{pluginRef: queue-scorer, weight: {weight}}}]}}]\n"
        )
    };
    for wrong in ["-1", "-0.5", ".nan", ".inf", "-.inf", "1e39", "heavy", "true", "[1]"] {
        let errors = bad(&with(wrong));
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].contains("schedulingProfiles[0].plugins[0].weight: the weight is"), "{}", errors[0]);
    }
    for (right, value) in [("0", 0.0), ("2", 2.0), ("2.5", 2.5), ("1e3", 1000.0)] {
        assert_eq!(good(&with(right)).scheduler.profiles[0].scorers[0].weight, value);
    }
}

#[test]
fn all_errors_are_reported_together_in_file_order() {
    let errors = bad(
        "plugins:\n- type: queue-score\n- type: load-aware-scorer\n  parameters: {threshold: x, other: 1}\n- name: nameless\nschedulingProfiles:\n- name: p\n  plugins:\n  - pluginRef: queue-score\n  - pluginRef: nameless\n  - pluginRef: load-aware-scorer\n    weight: -1\n  - pluginRef: lost\n",
    );
    let places: Vec<_> = errors.iter().map(|e| e.split(": ").next().unwrap()).collect();
    // The references to refused plugins are not reported again.
    assert_eq!(
        places,
        ["f.yaml:4:9", "f.yaml:6:27", "f.yaml:6:30", "f.yaml:7:3", "f.yaml:14:13", "f.yaml:15:16"],
        "{errors:#?}"
    );
}

#[test]
fn absurd_lists_are_refused_and_floods_of_errors_are_cut() {
    let many = |n: usize, entry: &str| (0..n).map(|i| entry.replace('#', &i.to_string())).collect::<String>();
    let errors = bad(&format!("plugins:\n{}", many(1001, "- {name: p#, type: queue-scorer}\n")));
    assert!(errors.len() == 1 && errors[0].contains("plugins: 1001 entries are more than"), "{errors:?}");
    let errors = bad(&format!("schedulingProfiles:\n- name: a\n  plugins:\n{}", many(1001, "  - pluginRef: p#\n")));
    assert!(errors.len() == 1 && errors[0].contains("schedulingProfiles[0].plugins: 1001 entries"), "{errors:?}");
    let errors = bad(&format!("plugins:\n{}", many(300, "- type: zz#\n")));
    assert_eq!(errors.len(), 201);
    assert!(errors[200].contains("100 more problems are not shown"), "{}", errors[200]);
}

#[test]
fn the_document_says_what_it_is() {
    for (text, words) in [
        ("plugins: []\n", "apiVersion"),
        ("apiVersion: v1\nkind: EndpointPickerConfig\n", "`v1` is not an API version"),
        ("apiVersion: llm-d.ai/v1alpha1\nkind: Pod\n", "`Pod` is not the kind"),
        ("- a\n", "expected a mapping"),
        ("just text\n", "expected a mapping"),
    ] {
        let error = run(text, Settings::default(), &fakes::tables()).expect_err(text);
        assert!(error.to_string().contains(words), "{error}");
    }
    let old = run("apiVersion: inference.networking.x-k8s.io/v1alpha1\nkind: EndpointPickerConfig\nplugins: [{type: queue-scorer}]\n", Settings::default(), &fakes::tables())
        .expect("the old group is accepted");
    assert!(warnings(&old)[0].starts_with("f.yaml:1:13: apiVersion: "));
}

#[test]
fn deprecated_places_are_read_with_a_warning() {
    let config = good(
        "plugins: [{type: queue-scorer}, {type: passthrough-parser}, {name: c, type: concurrency-detector}]\nparser: {pluginRef: passthrough-parser}\nsaturationDetector: {pluginRef: c}\n",
    );
    assert_eq!(config.parsers.iter().map(|p| p.kind).collect::<Vec<_>>(), ["passthrough-parser"]);
    assert_eq!((config.saturation.name.as_ref(), config.saturation.kind), ("c", "concurrency-detector"));
    let shown = warnings(&config).join("\n");
    assert!(
        shown.contains("requestHandler: {parsers") && shown.contains("flowControl: {saturationDetector"),
        "{shown}"
    );
}

#[test]
fn a_detector_that_is_named_asks_for_metrics_and_the_default_one_does_not() {
    let standard = |body: &str, settings: Settings| {
        run(&format!("{HEAD}{body}"), settings, &Tables::standard()).unwrap_or_else(|e| panic!("{body}\n{e}"))
    };
    let scraped = |config: &Config| config.features.iter().any(|f| f.name == "scraping" && f.is_on());
    let plugins = |more: &str| format!("plugins: [{{type: active-request-scorer}}{more}]\n");
    let detector = ", {type: utilization-detector}";
    let named = "flowControl: {saturationDetector: {pluginRef: utilization-detector}}\n";
    for (body, asks) in [
        (plugins(""), false),
        (plugins(detector), true),
        (format!("{}{named}", plugins(detector)), true),
        (format!("{}flowControl: {{enableEviction: false}}\n", plugins("")), false),
        (format!("{}flowControl: {{}}\n", plugins("")), false),
    ] {
        let config = standard(&body, Settings::default());
        assert!(config.detector.is_some(), "{body}");
        assert_eq!((config.saturation.kind, scraped(&config)), ("utilization-detector", asks), "{body}");
        let rendered = config.render();
        assert_eq!(rendered.contains("type: utilization-detector"), asks, "{rendered}");
        let again =
            run(rendered, Settings::default(), &Tables::standard()).unwrap_or_else(|e| panic!("{rendered}\n{e}"));
        // Only the comments on what was added differ.
        let lines = |text: &str| text.lines().filter(|l| !l.contains("# added")).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!((lines(again.render()), &again.features), (lines(rendered), &config.features), "{body}");
    }
    let concurrent = standard(
        "plugins: [{type: random-picker}, {type: concurrency-detector}]\n\
         flowControl: {saturationDetector: {pluginRef: concurrency-detector}}\n",
        Settings::default(),
    );
    assert!(names(&concurrent).contains(&"inflight-load-producer") && !scraped(&concurrent));

    let mut slow = Settings::default();
    slow.intervals.refresh_metrics = std::time::Duration::from_secs(1);
    let shown = |body: &str| warnings(&standard(body, slow.clone())).join("\n");
    assert!(shown(&plugins(detector)).contains("metrics are read every 1s and count as stale after 200ms"));
    let patient = ", {type: utilization-detector, parameters: {metricsStalenessThreshold: 3s}}";
    for quiet in [plugins(patient), plugins("")] {
        assert!(!shown(&quiet).contains("count as stale"), "{quiet}");
    }
}

#[test]
fn the_data_layer_is_completed_unless_told_otherwise() {
    let config =
        good("plugins: [{type: queue-scorer}, {name: m, type: metrics-data-source, parameters: {scheme: https}}]\n");
    assert_eq!(config.sources[0].source.name.as_ref(), "m");
    assert_eq!(config.sources[0].extractors.len(), 1);
    let config = good(
        "plugins: [{type: queue-scorer}, {name: m, type: metrics-data-source}]\ndataLayer: {injectDefaults: false, sources: [{pluginRef: m}]}\n",
    );
    assert_eq!((config.sources.len(), config.sources[0].extractors.len()), (1, 0));
    assert!(good("plugins: [{type: queue-scorer}]\ndataLayer: {injectDefaults: false}\n").sources.is_empty());
}

#[test]
fn serving_needs_a_place_that_endpoints_come_from() {
    let serve = |body: &str, settings: Settings| {
        let text = format!(
            "{HEAD}plugins: [{{type: queue-scorer}}, {{type: file-discovery, parameters: {{path: e.yaml}}}}]\n{body}"
        );
        resolve("f.yaml", Some(text.as_bytes()), settings, &fakes::tables(), Purpose::Serve)
    };
    let with = |change: fn(&mut Settings)| {
        let mut settings = Settings::default();
        change(&mut settings);
        settings
    };
    let refused = |settings: Settings| serve("", settings).expect_err("refused").to_string();
    let named = with(|s| s.pool.name = Some("pool".into()));
    let discovery = "dataLayer: {discovery: {pluginRef: file-discovery}}\n";

    assert_eq!(serve(discovery, Settings::default()).expect("file discovery").pool.name, "epp");
    assert_eq!(serve(discovery, named.clone()).expect("file discovery").pool.name, "pool");
    assert_eq!(serve("", named).expect("a pool").pool.name, "pool");
    let error = refused(Settings::default());
    assert!(error.contains("nothing says where endpoints come from") && error.contains("file-discovery"), "{error}");
    let error = refused(with(|s| {
        s.pool.name = Some("pool".into());
        s.pool.selector = Some("a=b".into());
    }));
    assert!(error.contains("exactly one"), "{error}");
    let error = refused(with(|s| {
        s.pool.name = Some("pool".into());
        s.pool.group = "example.com".into();
    }));
    assert!(error.contains("inference.networking.x-k8s.io"), "{error}");
    let error = refused(with(|s| s.pool.selector = Some("a~b".into())));
    assert!(error.starts_with("--endpoint-selector: `a~b` is no label key"), "{error}");
}

#[test]
fn a_pool_without_an_object_is_named_after_the_picker() {
    let name = |pod: Option<&str>, leader_election: bool| {
        let mut settings = Settings { leader_election, ..Settings::default() };
        settings.pool.selector = Some("app in (a, b),!test".into());
        settings.pool.pod_name = pod.map(str::to_owned);
        resolve("f.yaml", None, settings, &Tables::standard(), Purpose::Serve)
    };
    for (pod, pool) in [("my-epp-5d8f7c9b4-x2x7q", "my-epp"), ("epp", "epp"), ("epp-0", "epp-0"), ("a-b-C", "a-b-C")] {
        assert_eq!(name(Some(pod), false).expect("a name").pool.name, pool, "{pod}");
        // Replicas of anything but a Deployment would each have a lease of their own.
        assert_eq!(name(Some(pod), true).is_ok(), pod != pool, "{pod}");
    }
    let error = name(Some("epp-0"), true).expect_err("all would lead").to_string();
    assert!(error.contains("`epp-0` is no name of a Deployment's pod"), "{error}");
    let config = name(None, false).expect("a name");
    assert_eq!(config.pool.name, "epp");
    assert!(config.warnings.iter().any(|w| w.message.contains("POD_NAME")));
    let error = name(None, true).expect_err("two pickers would share a lease").to_string();
    assert!(error.contains("POD_NAME"), "{error}");
}

#[test]
fn what_does_nothing_is_a_warning() {
    let config = good(
        "plugins:\n- {type: queue-scorer}\n- {type: load-aware-scorer}\n- {type: sglanghttp-parser}\n- {type: max-score-picker}\nschedulingProfiles:\n- name: p\n  plugins:\n  - {pluginRef: queue-scorer}\n  - {pluginRef: queue-scorer}\n  - {pluginRef: max-score-picker, weight: 2}\n  - {pluginRef: sglanghttp-parser}\nflowControl: {maxRequests: 10}\n",
    );
    let shown = warnings(&config).join("\n");
    for words in [
        "`load-aware-scorer` is declared but used nowhere",
        "twice",
        "its weight has no effect",
        "does nothing in a profile",
        "requests are not queued",
    ] {
        assert!(shown.contains(words), "{words}: {shown}");
    }
    assert!(warnings(&good("plugins: []\n"))[0].contains("no scorer"));
}

#[test]
fn a_profile_needs_no_scorer_if_its_picker_looks_at_load() {
    for row in crate::scheduling::pickers::TABLE {
        let kind = row.about.kind;
        let text = format!("{HEAD}plugins: [{{type: {kind}}}]\n");
        let config = run(&text, Settings::default(), &Tables::standard()).unwrap_or_else(|e| panic!("{kind}: {e}"));
        let blind = ["max-score-picker", "random-picker", "weighted-random-picker", "round-robin-picker"];
        let warned = warnings(&config).iter().any(|w| w.contains("no scorer") && w.contains("cost-picker"));
        assert_eq!(warned, blind.contains(&kind), "{kind}: {:?}", warnings(&config));
    }
}

#[test]
fn the_rendering_shows_what_was_added_and_reads_back() {
    let config = good("plugins: [{type: prefix-cache-scorer}]\n");
    let text = config.render();
    for words in [
        "prompts of the request body: mirror-prefix-cache-producer",
        "# added: a plugin reads its signals and none was declared\n- name: mirror-prefix-cache-producer",
        "# added: no parsers are named\n- name: openai-parser",
        "weight: 1.0",
        "# defaults: maxNumOfEndpoints 1",
    ] {
        assert!(text.contains(words), "{words}\n{text}");
    }
    reads_back(&config);
    reads_back(&good(""));
    reads_back(&good(
        "plugins:\n- {name: \"yes\", type: prefix-cache-scorer, parameters: {matchLengthWeight: 0.5, prefixMatchInfoProducerName: \"a b\"}}\n- {name: \"a b\", type: approx-prefix-cache-producer, parameters: {autoTune: false}}\n- {type: file-discovery, parameters: {path: \"true\"}}\ndataLayer: {discovery: {pluginRef: file-discovery}, injectDefaults: false}\nflowControl: {defaultRequestTTL: 1m30s, priorityBands: [{priority: -1}]}\n",
    ));
}

/// The rendering resolves to the same rendering, comments aside.
fn reads_back(config: &Config) {
    let again = run(config.render(), Settings::default(), &fakes::tables())
        .unwrap_or_else(|e| panic!("{}\n{e}", config.render()));
    assert_eq!(plain(config.render()), plain(again.render()));
}

fn plain(text: &str) -> Node {
    let mut node = yaml::read(text.as_bytes(), &mut Problems::default()).expect("a rendering is YAML");
    forget_places(&mut node);
    node
}

const RICH: &str = "apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
featureGates: [haPopulateNonLeaderDatastore=false]
plugins:
- type: queue-scorer
- name: prefix
  type: prefix-cache-scorer
  parameters: {matchLengthWeight: 0.5, hashBlockSize: 64}
- type: active-request-scorer
- type: max-score-picker
  parameters: {maxNumOfEndpoints: 2}
- type: file-discovery
  parameters: {path: x.yaml}
schedulingProfiles:
- name: p
  plugins:
  - pluginRef: queue-scorer
    weight: 2
  - pluginRef: prefix
  - pluginRef: max-score-picker
requestHandler:
  parsers: [{pluginRef: x}]
dataLayer:
  discovery: {pluginRef: file-discovery}
flowControl:
  priorityBands: [{priority: 1, maxBytes: 1G}]
saturationDetector: {queueDepthThreshold: 5}
";

proptest! {
    // Each case resolves up to twice; more would be slow without finding more.
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whatever an editor does to a file, the answer is a configuration or errors.
    #[test]
    fn a_mutated_document_gives_a_configuration_or_errors(
        cuts in proptest::collection::vec((0usize..1200, 0usize..40, "[-a-z0-9: \\n{}\\[\\],&*!'\"#.]{0,12}"), 1..4)
    ) {
        let mut text = RICH.replace("parsers: [{pluginRef: x}]", "parsers: []");
        for (at, remove, insert) in cuts {
            let at = at.min(text.len());
            let end = (at + remove).min(text.len());
            text.replace_range(at..end, &insert);
        }
        match run(&text, Settings::default(), &fakes::tables()) {
            Ok(config) => reads_back(&config),
            Err(error) => prop_assert!(!error.errors.is_empty()),
        }
    }

    /// Swapping whole lines keeps most files well-formed, which reaches the later rules.
    #[test]
    fn shuffled_lines_give_a_configuration_or_errors(swaps in proptest::collection::vec((0usize..28, 0usize..28), 1..5)) {
        let mut lines: Vec<&str> = RICH.lines().collect();
        for (a, b) in swaps {
            let (a, b) = (a % lines.len(), b % lines.len());
            lines.swap(a, b);
        }
        match run(&lines.join("\n"), Settings::default(), &fakes::tables()) {
            Ok(config) => reads_back(&config),
            Err(error) => prop_assert!(!error.errors.is_empty()),
        }
    }
}
