//! What happens before anything is served: flags, configuration, ports.

use std::net::TcpListener;

use super::client::Call;
use super::harness::{Folder, Picker, run, run_with};

/// A port that is taken for as long as the listener lives.
fn taken() -> (TcpListener, String) {
    let listener = TcpListener::bind("[::]:0").or_else(|_| TcpListener::bind("0.0.0.0:0")).unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    (listener, port)
}

#[tokio::test]
async fn every_error_of_a_configuration_is_listed_before_a_port_is_bound() {
    let folder = Folder::usual();
    let text = folder.document().replace("active-request-scorer}\n", "active-request-scorer, weight: -1}\n")
        + "extra: 1\n- no";
    folder.write("config.yaml", &text);
    let broken_yaml = run(&["--config-file", &folder.text("config.yaml")]).await;
    assert_eq!(broken_yaml.code, Some(64), "{broken_yaml:?}");

    let after = folder.document().lines().count() + 1;
    let text = folder.document()
        + "extra: 1\n\
           featureGates: [noSuchGate]\n\
           requestHandler: {parsers: [{pluginRef: nobody}]}\n";
    folder.write("config.yaml", &text);
    // The port is taken: were it bound first, the error would be another one.
    let (_held, port) = taken();
    let file = folder.text("config.yaml");
    let ended = run(&["--config-file", &file, "--grpc-port", &port]).await;
    assert_eq!(ended.code, Some(64), "{ended:?}");
    let lines: Vec<_> = ended.err.lines().collect();
    assert_eq!(lines.len(), 3, "{lines:#?}");
    for (line, (place, words)) in lines.iter().zip([(after, "extra"), (after + 1, "noSuchGate"), (after + 2, "nobody")])
    {
        assert!(line.starts_with(&format!("error: {file}:{place}:")) && line.contains(words), "{lines:#?}");
        let column = line[format!("error: {file}:{place}:").len()..].split(':').next().unwrap();
        assert!(column.parse::<u32>().is_ok_and(|c| c > 0), "{line}");
        assert!(line.contains("fix: "), "{line}");
    }
}

#[tokio::test]
async fn a_taken_port_is_an_error_that_names_flag_and_address() {
    let folder = Folder::usual();
    let config = folder.text("config.yaml");
    for flag in ["--grpc-port", "--grpc-health-port", "--metrics-port"] {
        let (_held, port) = taken();
        let mut args = vec!["--config-file", config.as_str(), flag, &port];
        args.extend(
            ["--grpc-port", "--grpc-health-port", "--metrics-port"]
                .iter()
                .filter(|f| **f != flag)
                .flat_map(|f| [*f, "0"]),
        );
        let ended = run(&args).await;
        assert_eq!(ended.code, Some(1), "{ended:?}");
        ended.says(&[flag, &format!(":{port}")]);
    }
}

#[tokio::test]
async fn check_prints_a_configuration_that_loads_again() {
    let folder = Folder::usual();
    let first = run(&["check", "--config-file", &folder.text("config.yaml")]).await;
    assert_eq!(first.code, Some(0), "{first:?}");
    assert!(first.out.contains("max-score-picker") && first.out.contains("openai-parser"), "{}", first.out);
    for line in [
        "#   prefix index: approx-prefix-cache-producer\n",
        "#   accounting of work in flight: inflight-load-producer\n",
        "#   token counts of the answer: --token-metrics\n",
        "; metrics pages of the endpoints; scores in the metadata",
    ] {
        assert!(first.out.contains(line), "no `{line}` in {}", first.out);
    }
    folder.write("resolved.yaml", &first.out);
    let resolved = folder.text("resolved.yaml");
    let again = run(&["check", "--config-file", &resolved]).await;
    assert_eq!(again.code, Some(0), "{again:?}");
    // Without the comments, which say what the first run added.
    let meaning = |text: &str| -> Vec<String> {
        let code = text.lines().map(|l| l.split('#').next().unwrap_or(l).trim_end().to_owned());
        code.filter(|l| !l.is_empty()).collect()
    };
    assert_eq!(meaning(&again.out), meaning(&first.out));
    folder.write("config.yaml", &first.out);
    Picker::start(&folder, &["--drain-timeout=0s"]).await.stop().await;

    folder.write(
        "config.yaml",
        "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins: [{type: queue-score}]",
    );
    let wrong = run(&["check", "--config-file", &folder.text("config.yaml")]).await;
    assert_eq!((wrong.code, wrong.out.as_str()), (Some(64), ""));
    wrong.says(&["config.yaml:3:", "did you mean `queue-scorer`?"]);
}

#[tokio::test]
async fn unknown_flags_are_refused_together() {
    let ended = run(&["--grpc-prt=1", "--nonsense", "--pool-name=x"]).await;
    assert_eq!(ended.code, Some(64), "{ended:?}");
    ended.says(&["did you mean `--grpc-port`?", "`--nonsense` is not a flag"]);
}

#[tokio::test]
async fn old_spellings_work_with_a_warning() {
    let folder = Folder::usual();
    let config = folder.text("config.yaml");
    let picker = Picker::start_with(&[
        "-configFile",
        &config,
        "-poolName=old",
        "-grpcPort",
        "0",
        "-grpcHealthPort=0",
        "-metricsPort",
        "0",
        "-secureServing=false",
        "-v",
        "2",
        "--zap-encoder",
        "json",
        "--modelServerMetricsPort=8000",
        "--drain-timeout=0s",
    ])
    .await;
    let warned = picker.log.with(&["`-poolName` is an old spelling", "write `--pool-name`"]).await;
    assert_eq!(serde_json::from_str::<serde_json::Value>(&warned).unwrap()["level"], "warn");
    picker.log.with(&["--model-server-metrics-port", "no longer exists"]).await;
    let mut call = Call::open(&picker.plain().await).await.unwrap();
    let routed = call.request(&[], r#"{"model":"m","prompt":"p"}"#).await.unwrap();
    assert!(routed.destination.starts_with("192.0.2."), "{routed:?}");
    drop(call);
    assert_eq!(picker.metric(r#"llm_d_epp_ready_endpoints{name="old"}"#).await, Some(4.0));
    picker.stop().await;
}

#[tokio::test]
async fn without_an_api_server_the_flags_of_kubernetes_end_the_start() {
    let folder = Folder::usual();
    let nowhere = folder.path("no-kubeconfig");
    for args in [&["--pool-name=p"][..], &["--endpoint-selector=app=a", "--endpoint-target-ports=8000"]] {
        let ended = run_with(args, &[("KUBECONFIG", nowhere.to_str().unwrap())]).await;
        assert_eq!(ended.code, Some(64), "{ended:?}");
        ended.says(&["there is no Kubernetes API server to ask"]);
    }
    let nothing = run(&[]).await;
    assert_eq!(nothing.code, Some(64));
    nothing.says(&["nothing says where endpoints come from", "file-discovery"]);
}

#[tokio::test]
async fn help_and_version() {
    let help = run(&["--help"]).await;
    assert_eq!(help.code, Some(0));
    assert!(help.err.is_empty() && help.out.contains("--shutdown-grace") && help.out.contains("check"), "{help:?}");
    let version = run(&["--version"]).await;
    assert_eq!((version.code, version.out.trim()), (Some(0), concat!("pointsman ", env!("CARGO_PKG_VERSION"))));
    let of_check = run(&["check", "--help"]).await;
    assert_eq!(of_check.code, Some(0), "{of_check:?}");
}
