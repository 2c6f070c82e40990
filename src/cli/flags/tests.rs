use super::*;
use crate::config::settings::{CipherSuite, TlsVersion};
use crate::config::{Purpose, Tables};

fn run(args: &[&str]) -> Result<Invocation, Vec<Problem>> {
    parse(args.iter().map(|a| (*a).to_owned()), &BTreeMap::new())
}

fn good(args: &[&str]) -> Start {
    match run(args) {
        Ok(Invocation::Serve(start)) => *start,
        other => panic!("{args:?}: {other:?}"),
    }
}

fn bad(args: &[&str]) -> Vec<String> {
    run(args).expect_err(&format!("{args:?} was accepted")).iter().map(ToString::to_string).collect()
}

#[test]
fn without_flags_the_settings_have_their_defaults() {
    let start = good(&[]);
    assert_eq!(start.settings, Settings::default());
    assert_eq!(start.source, Source::Default);
    assert!(start.warnings.is_empty());
}

#[test]
fn what_the_charts_render_is_accepted_without_a_word() {
    let start = good(&[
        "--pool-name",
        "pool",
        "--pool-namespace",
        "ns",
        "--pool-group",
        "inference.networking.k8s.io",
        "--zap-encoder",
        "json",
        "--config-file",
        "/config/default-plugins.yaml",
        "--ha-enable-leader-election",
        "--grpc-port",
        "9102",
        "--grpc-health-port",
        "9103",
        "--v=4",
        "--tracing=false",
        "--metrics-endpoint-auth=false",
        "--secure-serving=false",
    ]);
    assert!(start.warnings.is_empty(), "{:?}", start.warnings);
    assert_eq!(start.source, Source::File("/config/default-plugins.yaml".into()));
    let s = start.settings;
    assert_eq!((s.ports.grpc, s.ports.health, s.ports.metrics), (9102, 9103, 9090));
    assert_eq!((s.pool.name.as_deref(), s.pool.namespace.as_str()), (Some("pool"), "ns"));
    assert_eq!((s.leader_election, s.tracing, s.metrics.auth, s.tls.enabled), (true, false, false, false));
    assert_eq!((s.logging.verbosity, s.logging.encoder), (4, LogEncoder::Json));

    let start = good(&["--endpoint-selector", "app=a,b in (c,d)", "--endpoint-target-ports=8000,8001,8000"]);
    assert_eq!(start.settings.pool.selector.as_deref(), Some("app=a,b in (c,d)"));
    assert_eq!(start.settings.pool.target_ports, [8000, 8001]);
}

#[test]
fn go_syntax_is_understood() {
    for args in [&["-v", "4"][..], &["-v=4"], &["--v=4"], &["--v", "4"], &["-v4"]] {
        let start = good(args);
        assert_eq!(start.settings.logging.verbosity, 4, "{args:?}");
        assert!(start.warnings.is_empty(), "{args:?}: {:?}", start.warnings);
    }
    for (args, on) in [
        (&["--tracing"][..], true),
        (&["--tracing=true"], true),
        (&["--tracing=0"], false),
        (&["--tracing=F"], false),
        (&["--tracing", "--tracing=false"], false),
        (&["--tracing=false", "--tracing"], true),
    ] {
        assert_eq!(good(args).settings.tracing, on, "{args:?}");
    }
    // The last value counts, lists add up, a value may start with a dash.
    assert_eq!(good(&["--grpc-port=1", "--grpc-port", "2"]).settings.ports.grpc, 2);
    let ports = good(&["--endpoint-selector=a", "--endpoint-target-ports=1,2", "--endpoint-target-ports=3"]);
    assert_eq!(ports.settings.pool.target_ports, [1, 2, 3]);
    assert_eq!(good(&["--config-text", "- a: b=c"]).source, Source::Text("- a: b=c".into()));
    assert_eq!(good(&["--config-text=x=y"]).source, Source::Text("x=y".into()));
    assert_eq!(good(&["--grpc-max-recv-msg-size", "16MiB"]).settings.limits.grpc_receive, Some(16 << 20));
    assert_eq!(good(&["--drain-timeout=1m30s"]).settings.intervals.drain, Duration::from_secs(90));
}

#[test]
fn every_boolean_has_the_syntax_of_go() {
    let command = command();
    let defaults = |arg: &clap::Arg| arg.get_default_values().first().map(|v| v.to_string_lossy().into_owned());
    let booleans: Vec<&str> = command
        .get_arguments()
        .filter(|arg| matches!(defaults(arg).as_deref(), Some("true" | "false")))
        .filter_map(|arg| arg.get_long())
        .collect();
    assert!(booleans.len() >= 15, "{booleans:?}");
    for name in booleans {
        let (bare, t, f) = (format!("--{name}"), format!("--{name}=t"), format!("--{name}=FALSE"));
        assert_eq!(good(&[&bare]).settings, good(&[&t]).settings, "{name}");
        assert_ne!(good(&[&t, "--cert-path=c"]).settings, good(&[&f, "--cert-path=c"]).settings, "{name}");
        assert!(bad(&[&format!("--{name}=2")])[0].contains("a boolean is true or false"), "{name}");
    }
}

#[test]
fn camel_case_and_single_dashes_are_translated_with_a_warning() {
    let start = good(&[
        "-poolName=p",
        "-poolNamespace",
        "n",
        "-grpcPort",
        "9102",
        "-grpcHealthPort=9103",
        "--metricsPort=9190",
        "-refreshMetricsInterval=60ms",
        "-refreshPrometheusMetricsInterval=6s",
        "-secureServing=false",
        "-healthChecking",
        "-certPath",
        "/c",
        "-configFile",
        "f.yaml",
        "-enablePprof=false",
        "-v",
        "3",
    ]);
    let s = &start.settings;
    assert_eq!((s.pool.name.as_deref(), s.pool.namespace.as_str()), (Some("p"), "n"));
    assert_eq!((s.ports.grpc, s.ports.health, s.ports.metrics), (9102, 9103, 9190));
    assert_eq!((s.tls.enabled, s.health_checking, s.metrics.pprof, s.logging.verbosity), (false, true, false, 3));
    assert_eq!(s.intervals.refresh_metrics, Duration::from_millis(60));
    assert_eq!(start.warnings.len(), 12, "{:#?}", start.warnings);
    assert_eq!(start.warnings[0].to_string(), "--pool-name: `-poolName` is an old spelling (fix: write `--pool-name`)");
}

#[test]
fn flags_of_older_releases_are_dropped_with_a_warning() {
    let start = good(&[
        "--model-server-metrics-port",
        "8000",
        "--model-server-metrics-path=/m",
        "-modelServerMetricsPath",
        "/m",
        "--model-server-metrics-scheme=https",
        "--model-server-metrics-https-insecure-skip-verify",
        "-destinationEndpointHintKey",
        "k",
        "-destinationEndpointHintMetadataNamespace=envoy.lb",
        "--grpc-port=1",
    ]);
    assert_eq!(start.settings.ports.grpc, 1);
    assert_eq!(start.warnings.iter().filter(|w| w.message.contains("no longer exists")).count(), 7);
}

#[test]
fn metric_flags_point_at_the_extractor() {
    let errors =
        bad(&["--total-queued-requests-metric=a", "-kvCacheUsagePercentageMetric", "b", "--lora-info-metric", "c"]);
    assert_eq!(errors.len(), 3);
    assert!(errors.iter().all(|e| e.contains("core-metrics-extractor") && e.contains("engineConfigs")), "{errors:?}");
}

#[test]
fn all_wrong_flags_are_reported_together() {
    let errors = bad(&[
        "--grpc-prt=1",
        "--grpc-port=70000",
        "--drain-timeout",
        "soon",
        "--tracing=maybe",
        "--zap-encoder=xml",
        "--tls-min-version=VersionTLS9",
        "--endpoint-target-ports=0,x",
        "--max-request-body=-1",
        "--nonsense",
        "--config-file=a",
        "--config-text=b",
    ]);
    let shown = errors.join("\n");
    for words in [
        "--grpc-prt: `--grpc-prt` is not a flag (fix: did you mean `--grpc-port`?)",
        "--grpc-port: `70000` is not allowed",
        "--drain-timeout: `soon` is not allowed: a duration is written",
        "--tracing: `maybe` is not allowed: a boolean is true or false",
        "--zap-encoder: `xml` is not one of json, console",
        "--tls-min-version: `VersionTLS9` is not one of",
        "--endpoint-target-ports: `0` is not a port",
        "--endpoint-target-ports: `x` is not a port",
        "--max-request-body: `-1` is not allowed: a size is",
        "--nonsense: `--nonsense` is not a flag",
        "--config-text: `--config-file` and `--config-text` are both set",
    ] {
        assert!(shown.contains(words), "{words}\n{shown}");
    }
    assert_eq!(errors.len(), 11, "{shown}");
}

#[test]
fn rules_over_several_flags() {
    for (args, words) in [
        (&["--metrics-client-ca-file=a"][..], "set --metrics-cert-dir"),
        (&["--metrics-cert-dir=a", "--metrics-endpoint-auth=false"], "without any check"),
        (&["--endpoint-selector=a"], "needs the ports"),
        (&["--endpoint-selector=a", "--endpoint-target-ports=1,2,3,4,5,6,7,8,9"], "more than the 8"),
        (&["--grpc-port=9090"], "also the port of `--grpc-port`"),
        (&["--max-request-body="], "without a limit"),
        (&["--grpc-port"], "needs a value"),
        (&["--tracing", "false"], "takes its value after `=`"),
        (&["chek"], "did you mean `check`?"),
        (&["check", "file.yaml"], "--config-file"),
        (&["--metrics-staleness-threshold=0"], "too short"),
        (&["--v=99"], "is not allowed"),
    ] {
        let errors = bad(args);
        assert!(errors.len() == 1 && errors[0].contains(words), "{args:?}: {errors:?}");
    }
    let start = good(&["--refresh-metrics-interval=10ms"]);
    assert_eq!(start.settings.intervals.refresh_metrics, Duration::from_millis(50));
    assert_eq!(start.warnings.len(), 1);
    good(&["--grpc-port=0", "--grpc-health-port=0", "--metrics-port=0"]);
}

#[test]
fn tls_names_are_those_of_go() {
    let start = good(&[
        "--tls-min-version=VersionTLS10",
        "--tls-cipher-suites=TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,TLS_RSA_WITH_AES_128_CBC_SHA",
        "--tls-cipher-suites=TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305",
    ]);
    assert_eq!(start.settings.tls.min_version, TlsVersion::Tls12);
    assert_eq!(
        start.settings.tls.cipher_suites,
        [CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256]
    );
    assert_eq!(start.warnings.len(), 2, "{:?}", start.warnings);
    assert_eq!(good(&["--tls-min-version=VersionTLS13"]).settings.tls.min_version, TlsVersion::Tls13);
    assert!(bad(&["--tls-cipher-suites=TLS_RSA_WITH_AES_128_CBC_SHA"])[0].contains("none of the suites"));
    assert!(bad(&["--tls-cipher-suites=TLS_AES_128_GCM"])[0].contains("did you mean `TLS_AES_128_GCM_SHA256`?"));
}

#[test]
fn the_namespace_comes_from_flag_then_environment_then_default() {
    let with = |args: &[&str], env: &[(&str, &str)]| {
        let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        match parse(args.iter().map(|a| (*a).to_owned()), &env) {
            Ok(Invocation::Serve(start)) => start.settings.pool.namespace,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(with(&["--pool-namespace=f"], &[("NAMESPACE", "e")]), "f");
    assert_eq!(with(&[], &[("NAMESPACE", "e")]), "e");
    assert_eq!(with(&[], &[("NAMESPACE", "")]), "default");
}

#[test]
fn subcommands_have_their_own_arguments() {
    match run(&["check", "--config-file", "f.yaml", "-allow-experimental-plugins"]) {
        Ok(Invocation::Check(start)) => {
            assert_eq!(start.source, Source::File("f.yaml".into()));
            assert!(start.settings.allow_experimental);
            assert_eq!(start.warnings.len(), 1);
        }
        other => panic!("{other:?}"),
    }
    match run(&["sim", "--port", "8100", "--count=3"]) {
        Ok(Invocation::Sim(args)) => assert_eq!((args.port, args.count), (8100, 3)),
        other => panic!("{other:?}"),
    }
    assert!(matches!(run(&["demo"]), Ok(Invocation::Demo(_))));
    match run(&["--help"]) {
        Ok(Invocation::Print(text)) => assert!(text.contains("--pool-name") && text.contains("check")),
        other => panic!("{other:?}"),
    }
    assert!(matches!(run(&["--version"]), Ok(Invocation::Print(_))));
}

/// The arguments of the conformance suite, and the test mode that its image carries.
#[test]
fn what_the_conformance_manifests_pass_starts() {
    let args = [
        "--pool-name",
        "primary-inference-pool",
        "--pool-namespace",
        "inference-conformance-app-backend",
        "--zap-encoder",
        "json",
        "--grpc-port",
        "9002",
        "--grpc-health-port",
        "9003",
    ];
    let start = good(&args);
    assert!(start.warnings.is_empty(), "{:?}", start.warnings);
    assert_eq!(start.settings.pool.name.as_deref(), Some("primary-inference-pool"));
    assert_eq!(start.settings.conformance, Conformance::default(), "off unless it is asked for");
    let kubernetes = Tables::standard();
    let resolve = |start: &Start| {
        let config = crate::config::load(&start.source, start.settings.clone(), &kubernetes, Purpose::Serve);
        config.unwrap_or_else(|e| panic!("{e}"))
    };
    assert!(resolve(&start).warnings.is_empty());

    let with = |variables: &[(&str, &str)]| {
        let env = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        parse(args.iter().map(|a| (*a).to_owned()), &env)
    };
    let mode = |variables: &[(&str, &str)]| match with(variables) {
        Ok(Invocation::Serve(start)) => start.settings.conformance,
        other => panic!("{variables:?}: {other:?}"),
    };
    const MODE: &str = "POINTSMAN_CONFORMANCE_TEST_MODE";
    const ECHO: &str = "POINTSMAN_CONFORMANCE_ECHO_DESTINATION";
    let on = |test_mode, echo_destination| Conformance { test_mode, echo_destination };
    assert_eq!(mode(&[(MODE, "true")]), on(true, false));
    assert_eq!(mode(&[(MODE, "1"), (ECHO, "true")]), on(true, true));
    assert_eq!(mode(&[(MODE, ""), (ECHO, "false")]), on(false, false));
    let wrong = with(&[(MODE, "maybe")]).expect_err("not a boolean");
    assert!(wrong[0].to_string().contains("`maybe` is not a boolean"), "{wrong:?}");
    let start = good(&["--pool-name=p", "--conformance-test-mode", "--conformance-echo-destination=true"]);
    assert_eq!(start.settings.conformance, on(true, true));
    assert_eq!(resolve(&start).warnings.len(), 1, "the mode is loud");
}

#[test]
fn every_flag_is_in_the_documentation() {
    let doc = include_str!("../../../docs/configuration.md");
    let command = command();
    let flags: Vec<&str> = command.get_arguments().filter_map(|a| a.get_long()).collect();
    assert!(flags.len() > 40, "{}", flags.len());
    for flag in flags {
        assert!(doc.contains(&format!("`--{flag}`")), "docs/configuration.md does not name `--{flag}`");
    }
}

#[test]
fn the_command_line_is_well_formed() {
    command().debug_assert();
}

proptest::proptest! {
    // Each case builds the whole command line, which takes milliseconds.
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(32))]
    #[test]
    fn arbitrary_words_never_panic(words in proptest::collection::vec("(--?)?[a-zA-Z-]{0,9}(=[ -~]{0,5})?|.{0,6}", 0..6)) {
        let _ = parse(words, &BTreeMap::new());
    }
}
