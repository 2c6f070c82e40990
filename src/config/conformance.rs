//! The test mode for the conformance suite of the Gateway API inference extension.
//!
//! The suite's manifests start a picker without a configuration and expect it to obey the header
//! `test-epp-endpoint-selection` and to return `x-conformance-test-served-endpoint`. So the mode is a flag or an
//! environment variable (which an image can carry) and adds two plugins to the document, whichever it is: the
//! filter, first in every profile, and the response plugin. What the document declares itself stays as it is.

use super::Settings;
use super::legacy::{add_plugin, entries, get_mut, mapping, plugins, text, type_of};
use crate::domain::node::{Node, Position, Problems, Value};

const FILTER: &str = "header-based-testing-filter";
const VERIFIER: &str = "destination-endpoint-served-verifier";

/// Adds the test plugins to `document` if the mode is on.
pub(super) fn apply(document: &mut Node, settings: &Settings, problems: &mut Problems) {
    let mode = settings.conformance;
    let nowhere = Position::default();
    if mode.echo_destination && !mode.test_mode {
        problems.warn(
            nowhere,
            "--conformance-echo-destination",
            "without --conformance-test-mode the flag has no effect",
            "remove it",
        );
    }
    if !mode.test_mode || entries(document).is_none() {
        return;
    }
    problems.warn(
        nowhere,
        "--conformance-test-mode",
        "clients choose their endpoint by a header and are shown pod addresses: this is for conformance tests only",
        "switch it off in production",
    );
    if !plugins(document).iter().any(|p| type_of(p) == FILTER) {
        add_plugin(document, nowhere, mapping(nowhere, vec![("type", text(nowhere, FILTER))]));
        for profile in items(get_mut(document, "schedulingProfiles")) {
            let reference = mapping(nowhere, vec![("pluginRef", text(nowhere, FILTER))]);
            match get_mut(profile, "plugins").map(|n| &mut n.value) {
                Some(Value::Sequence(references)) => references.insert(0, reference),
                Some(empty @ Value::Null) => *empty = Value::Sequence(vec![reference]),
                _ => {}
            }
        }
    }
    if !plugins(document).iter().any(|p| type_of(p) == VERIFIER) {
        let mut fields = vec![("type", text(nowhere, VERIFIER))];
        if mode.echo_destination {
            let on = Node { at: nowhere, value: Value::Bool(true) };
            fields.push(("parameters", mapping(nowhere, vec![("echoDestination", on)])));
        }
        add_plugin(document, nowhere, mapping(nowhere, fields));
    }
}

/// The entries of a list; none if it is absent or something else, which the decoder reports.
fn items(node: Option<&mut Node>) -> &mut [Node] {
    match node.map(|n| &mut n.value) {
        Some(Value::Sequence(items)) => items,
        _ => &mut [],
    }
}

#[cfg(test)]
mod tests {
    use crate::config::settings::Conformance;
    use crate::config::{Config, Purpose, Settings, Tables, resolve};

    fn config(document: &str, test_mode: bool, echo_destination: bool) -> Config {
        let settings = Settings { conformance: Conformance { test_mode, echo_destination }, ..Settings::default() };
        let head = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n";
        let text = format!("{head}{document}");
        let written = (!document.is_empty()).then_some(text.as_bytes());
        resolve("t", written, settings, &Tables::standard(), Purpose::Check).unwrap_or_else(|e| panic!("{e}"))
    }

    fn filters(config: &Config) -> Vec<Vec<&str>> {
        config.scheduler.profiles.iter().map(|p| p.filters.iter().map(|(name, _)| name.as_ref()).collect()).collect()
    }

    #[test]
    fn off_means_off() {
        let config = config("", false, false);
        assert_eq!(filters(&config), [[""; 0]]);
        assert_eq!(config.registry.test_switches, Default::default());
        assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    }

    #[test]
    fn on_it_adds_the_filter_to_every_profile_and_the_verifier() {
        let profiles = "plugins: [{type: decode-filter}, {type: queue-scorer}]\nschedulingProfiles: \
                        [{name: one, plugins: [{pluginRef: decode-filter}, {pluginRef: queue-scorer}]}]\n";
        let implied = "plugins: [{type: queue-scorer}]\n";
        for (document, expected) in [
            ("", vec![super::FILTER]),
            (profiles, vec![super::FILTER, "decode-filter"]),
            (implied, vec![super::FILTER]),
        ] {
            let config = config(document, true, false);
            assert_eq!(filters(&config), [expected], "{document}");
            assert!(config.commits.iter().any(|(name, _)| name.as_ref() == super::VERIFIER), "{document}");
            assert!(config.registry.test_switches.beats_subset.is_some());
            assert!(!config.registry.test_switches.echo_destination);
            assert!(config.warning_lines().any(|line| line.contains("for conformance tests only")));
            // What is rendered is the same without the mode.
            let again = resolve(
                "t",
                Some(config.render().as_bytes()),
                Settings::default(),
                &Tables::standard(),
                Purpose::Check,
            );
            assert_eq!(filters(&again.unwrap()), filters(&config));
        }
    }

    #[test]
    fn what_the_document_declares_stays() {
        let document = "plugins: [{type: header-based-testing-filter, name: mine, parameters: {requireHeader: true}}, \
                        {type: queue-scorer}]\nschedulingProfiles: \
                        [{name: one, plugins: [{pluginRef: queue-scorer}, {pluginRef: mine}]}]\n";
        assert_eq!(filters(&config(document, true, false)), [["mine"]]);
    }

    #[test]
    fn the_echo_needs_the_mode() {
        assert!(config("", true, true).registry.test_switches.echo_destination);
        let alone = config("", false, true);
        assert!(!alone.registry.test_switches.echo_destination);
        assert!(alone.warning_lines().any(|line| line.contains("--conformance-echo-destination")));
    }
}
