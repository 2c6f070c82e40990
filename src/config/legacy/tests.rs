use crate::config::{Config, ConfigError, Purpose, Settings, fakes, resolve};
use crate::domain::node::Value;

fn run(text: &str) -> Result<Config, ConfigError> {
    resolve("old.yaml", Some(text.as_bytes()), Settings::default(), &fakes::tables(), Purpose::Check)
}

fn good(text: &str) -> (Config, String) {
    let config = run(text).unwrap_or_else(|e| panic!("{text}\n{e}"));
    let warnings = config.warning_lines().collect::<Vec<_>>().join("\n");
    (config, warnings)
}

/// The parameters of `name` in the rendering.
fn parameter(config: &Config, name: &str, key: &str) -> Option<Value> {
    let node = crate::config::yaml::read(config.render().as_bytes(), &mut Default::default())?;
    let Value::Sequence(plugins) = node.get("plugins")?.value.clone() else { return None };
    let plugin = plugins.into_iter().find(|p| p.get("name").and_then(|n| n.as_str()) == Some(name))?;
    Some(plugin.get("parameters")?.get(key)?.value.clone())
}

#[test]
fn gaie_v0_5() {
    let (config, warnings) = good(
        "apiVersion: inference.networking.x-k8s.io/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: prefix-cache-scorer
  parameters:
    hashBlockSize: 64
    maxPrefixBlocksToMatch: 256
    lruCapacityPerServer: 31250
- type: kv-cache-scorer
- type: queue-scorer
- type: max-score-picker
- type: single-profile-handler
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: max-score-picker
  - pluginRef: prefix-cache-scorer
    weight: 50
  - pluginRef: kv-cache-scorer
    weight: 1
  - pluginRef: queue-scorer
    weight: 1
",
    );
    let scorers: Vec<_> = config.scheduler.profiles[0].scorers.iter().map(|s| (s.name.as_ref(), s.weight)).collect();
    assert_eq!(scorers, [("prefix-cache-scorer", 50.0), ("kv-cache-scorer", 1.0), ("queue-scorer", 1.0)]);
    let producer = "approx-prefix-cache-producer";
    assert_eq!(parameter(&config, producer, "autoTune"), Some(Value::Bool(false)));
    assert_eq!(parameter(&config, producer, "blockSizeTokens"), Some(Value::Integer(16)));
    assert_eq!(parameter(&config, producer, "maxPrefixTokensToMatch"), Some(Value::Integer(4096)));
    assert_eq!(parameter(&config, producer, "lruCapacityPerServer"), Some(Value::Integer(31250)));
    assert_eq!(
        parameter(&config, "prefix-cache-scorer", "prefixMatchInfoProducerName"),
        Some(Value::String(producer.into()))
    );
    for words in [
        "old.yaml:1:13: apiVersion:",
        "old.yaml:6:5: plugins[0].parameters: hashBlockSize, maxPrefixBlocksToMatch, lruCapacityPerServer:",
        "prefixMatchInfoProducerName: approx-prefix-cache-producer",
        "old.yaml:9:9: plugins[1].type: `kv-cache-scorer` is now called `kv-cache-utilization-scorer`",
    ] {
        assert!(warnings.contains(words), "{words}\n{warnings}");
    }
}

#[test]
fn gaie_v1_2_with_auto_tuning_and_inline_saturation() {
    let (config, warnings) = good(
        "apiVersion: inference.networking.x-k8s.io/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: prefix-cache-scorer
  parameters: {autoTune: true, blockSize: 5, maxPrefixBlocksToMatch: 0}
- type: queue-scorer
schedulingProfiles:
- name: default
  plugins: [{pluginRef: queue-scorer, weight: 2}, {pluginRef: prefix-cache-scorer, weight: 3}]
saturationDetector: {queueDepthThreshold: 7, kvCacheUtilThreshold: 0.75, metricsStalenessThreshold: 150ms}
",
    );
    let producer = "approx-prefix-cache-producer";
    assert_eq!(parameter(&config, producer, "autoTune"), Some(Value::Bool(true)));
    assert_eq!(parameter(&config, producer, "blockSizeTokens"), Some(Value::Integer(1)));
    assert_eq!(parameter(&config, producer, "maxPrefixTokensToMatch"), Some(Value::Integer(0)));
    assert_eq!(parameter(&config, producer, "maxPrefixBlocksToMatch"), Some(Value::Integer(0)));
    assert_eq!(config.saturation.kind, "utilization-detector");
    assert_eq!(parameter(&config, "utilization-detector", "queueDepthThreshold"), Some(Value::Integer(7)));
    assert!(warnings.contains("flowControl: {saturationDetector: {pluginRef: utilization-detector}}"), "{warnings}");
}

#[test]
fn gaie_v1_3_data_section_and_gates() {
    let (config, warnings) = good(
        "apiVersion: inference.networking.x-k8s.io/v1alpha1
kind: EndpointPickerConfig
featureGates: [dataLayer, prepareDataPlugins, haPopulateNonLeaderDatastore=false]
plugins:
- type: queue-scorer
- type: metrics-data-source
- type: core-metrics-extractor
data:
  sources:
  - pluginRef: metrics-data-source
    extractors: [{pluginRef: core-metrics-extractor}]
",
    );
    assert_eq!((config.sources.len(), config.sources[0].extractors.len()), (1, 1));
    assert!(!config.gates.populate_standby);
    for words in [
        "featureGates[0]: the feature gate `dataLayer`",
        "featureGates[1]: the feature gate `prepareDataPlugins`",
        "rename it to `dataLayer`",
    ] {
        assert!(warnings.contains(words), "{words}\n{warnings}");
    }
}

#[test]
fn gaie_v1_5_references_at_the_top() {
    let (config, warnings) = good(
        "apiVersion: inference.networking.x-k8s.io/v1alpha1
kind: EndpointPickerConfig
featureGates: [enableLegacyMetrics=true]
plugins:
- type: queue-scorer
- type: utilization-detector
- type: openai-parser
saturationDetector: {pluginRef: utilization-detector}
parser: {pluginRef: openai-parser}
",
    );
    assert_eq!(config.parsers.len(), 1);
    assert_eq!(config.saturation.name.as_ref(), "utilization-detector");
    assert!(warnings.contains("enableLegacyMetrics"), "{warnings}");
}

#[test]
fn two_scorers_get_a_producer_each() {
    let (config, _) = good(
        "apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- {name: a, type: prefix-cache-scorer, parameters: {blockSizeTokens: 32, maxPrefixTokensToMatch: 1000}}
- {name: b, type: prefix-cache-scorer, parameters: {lruCapacityPerServer: 10, mode: estimate}}
- {name: c, type: prefix-cache-scorer}
",
    );
    assert_eq!(
        parameter(&config, "approx-prefix-cache-producer", "maxPrefixTokensToMatch"),
        Some(Value::Integer(1000))
    );
    assert_eq!(parameter(&config, "b-producer", "lruCapacityPerServer"), Some(Value::Integer(10)));
    assert_eq!(parameter(&config, "b", "prefixMatchInfoProducerName"), Some(Value::String("b-producer".into())));
    assert_eq!(config.producers.len(), 2);
}

#[test]
fn llm_d_v0_4_parameters_without_effect() {
    let (config, warnings) = good(
        "apiVersion: inference.networking.x-k8s.io/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: active-request-scorer
  parameters: {requestTimeout: 2m}
- type: no-hit-lru-scorer
  parameters: {lruSize: 2048, prefixPluginName: prefix-cache-scorer, prefixPluginType: prefix-cache-scorer}
- type: approx-prefix-cache-producer
  parameters: {blockSize: 256}
- type: load-aware-scorer
  parameters: {threshold: 10}
",
    );
    assert_eq!(parameter(&config, "approx-prefix-cache-producer", "blockSizeTokens"), Some(Value::Integer(64)));
    for key in ["requestTimeout", "prefixPluginName", "prefixPluginType", "blockSize"] {
        assert!(warnings.contains(&format!(".{key}: ")), "{key}\n{warnings}");
    }
}

#[test]
fn what_cannot_be_translated_is_an_error_at_its_place() {
    let head = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n";
    for (body, place, words) in [
        (
            "plugins: [{type: prefix-cache-scorer, parameters: {mode: cache_tracking}}]\n",
            "3:52",
            "precise-prefix-cache-producer",
        ),
        ("plugins: [{type: prefix-cache-scorer, parameters: {mode: 3}}]\n", "3:52", "not one of estimate"),
        ("plugins: [{type: prefix-cache-scorer, parameters: {blockSize: x}}]\n", "3:63", "expected integer"),
        (
            "plugins: [{type: prefix-cache-scorer, parameters: {maxPrefixBlocksToMatch: -3}}]\n",
            "3:76",
            "expected an integer from 0",
        ),
        (
            "plugins: [{type: prefix-cache-scorer, parameters: {blockSize: 4, prefixMatchInfoProducerName: x}}]\n",
            "3:52",
            "stand beside",
        ),
        ("data: {}\ndataLayer: {}\n", "3:7", "both there"),
        ("saturationDetector: {pluginRef: x, queueDepthThreshold: 1}\n", "3:21", "inline thresholds"),
        ("saturationDetector: {queueDepthThreshold: 1, other: 2}\n", "3:46", "unknown field `other`"),
        (
            "plugins: [{type: pd-profile-handler, parameters: {threshold: 10}}]\n",
            "3:18",
            "not supported by this version",
        ),
    ] {
        let error = run(&format!("{head}{body}")).expect_err(body);
        let lines: Vec<String> = error.lines().collect();
        assert!(
            lines.iter().any(|l| l.starts_with(&format!("old.yaml:{place}: ")) && l.contains(words)),
            "{body}: {lines:#?}"
        );
    }
}
