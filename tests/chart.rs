//! The Helm chart, rendered by real Helm: objects, rights, arguments, refusals, and an Envoy that runs with the
//! rendered bootstrap in front of a picker that runs with the rendered arguments.

#[path = "chart/documents.rs"]
mod documents;
#[path = "chart/envoy.rs"]
mod envoy;
#[path = "process/harness.rs"]
#[allow(dead_code, reason = "written for the process tests")]
mod harness;
#[path = "shared/helm.rs"]
mod helm;

use std::collections::BTreeSet;

use helm::{CASES, arguments, names, object, picker, root, template, template_set, text, texts, try_set};
use serde_json::{Value, json};

/// Every case in each of its modes.
fn every_case() -> impl Iterator<Item = (&'static str, &'static str)> {
    CASES.iter().flat_map(|(case, modes)| modes.iter().map(move |mode| (*case, *mode)))
}

#[test]
fn helm_finds_no_fault_with_the_chart() {
    let chart = root("deploy/helm/pointsman").display().to_string();
    for (case, mode) in every_case() {
        let (mode, file) =
            (format!("mode={mode}"), root(&format!("tests/data/helm/{case}.yaml")).display().to_string());
        let output =
            helm::helm(&["lint", &chart, "--strict", "--kube-version", "1.35.0", "--values", &file, "--set", &mode]);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && !said.contains("[WARNING]"), "{case}, {mode}:\n{said}");
    }
}

/// From 1.30 on the API server takes a `sleep` before a pod's end.
#[test]
fn older_clusters_are_refused() {
    let elected = ["--set", "router.modelServers.matchLabels.app=vllm,router.epp.replicas=2", "--kube-version"];
    let said = helm::render(&[&elected[..], &["1.29.9"]].concat()).expect_err("1.29 has no such handler");
    assert!(said.contains("1.30"), "{said}");
    let objects = helm::render(&[&elected[..], &["1.30.0"]].concat()).unwrap();
    assert!(picker(&objects)["lifecycle"]["preStop"]["sleep"].is_object());
}

#[test]
fn every_values_file_of_the_folder_is_a_case() {
    let files = std::fs::read_dir(root("tests/data/helm")).unwrap();
    let files: BTreeSet<String> = files.map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(files, CASES.iter().map(|(case, _)| format!("{case}.yaml")).collect());
}

/// One namespace, one set of labels, no object twice, and only labels that the API server takes.
#[test]
fn objects_are_named_labelled_and_unique() {
    for (case, mode) in every_case() {
        let objects = template(case, mode);
        let all = names(&objects);
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "{case}, {mode}: {all:?}");
        for o in &objects {
            let (kind, meta) = (text(&o["kind"]), &o["metadata"]);
            assert_eq!(meta.get("namespace").is_none(), kind.starts_with("Cluster"), "{o}");
            assert_eq!(meta["labels"]["app.kubernetes.io/instance"], "demo", "{o}");
        }
        let deployment = &object(&objects, "Deployment", "demo-epp")["spec"];
        let (selector, labels) =
            (&deployment["selector"]["matchLabels"], &deployment["template"]["metadata"]["labels"]);
        assert!(selector.as_object().unwrap().iter().all(|(k, v)| labels[k] == *v));
        assert_eq!(object(&objects, "Service", "demo-epp")["spec"]["selector"], *selector);
    }
}

#[test]
fn the_picker_gets_exactly_these_arguments() {
    let objects = template_set(&[]);
    let usual = ["--grpc-port", "9002", "--grpc-health-port", "9003", "--metrics-port", "9090", "--tracing=false"];
    let config = ["--zap-encoder", "json", "--config-file", "/config/default-plugins.yaml"];
    let pool = ["--pool-name", "demo", "--pool-namespace", "llm", "--pool-group", "inference.networking.k8s.io"];
    assert_eq!(arguments(&objects), [&pool[..], &config, &usual].concat());

    let objects = template("standalone-envoy", "standalone");
    let selector = ["--endpoint-selector", "llm-d.ai/guide=optimized-baseline", "--endpoint-target-ports", "8000,8001"];
    assert_eq!(arguments(&objects), [&selector[..], &config, &usual].concat());

    let objects = template("high-availability", "gateway");
    let ha = ["--ha-enable-leader-election"];
    let rest = ["--drain-timeout=20s", "--tracing=false", "--metrics-endpoint-auth=false"];
    assert_eq!(arguments(&objects), [&pool[..], &config, &ha, &usual[..6], &rest].concat());

    let objects = template("custom-plugins", "gateway");
    let said = arguments(&objects);
    for flag in ["--v=4", "--max-request-body=16777216", "--allow-experimental-plugins=true"] {
        assert!(said.contains(&flag), "{said:?}");
    }
    assert!(said.contains(&"/config/custom-plugins.yaml"));

    let objects = template("everything", "gateway");
    let said = arguments(&objects);
    for flag in [
        "--cert-path=/etc/pointsman/tls",
        "--enable-cert-reload",
        "--metrics-cert-dir=/etc/pointsman/metrics-tls",
        "--metrics-client-ca-file=/etc/pointsman/metrics-client-ca/ca.crt",
    ] {
        assert!(said.contains(&flag), "{said:?}");
    }
    let mounts = picker(&objects)["volumeMounts"].as_array().unwrap();
    let mounts: Vec<&str> = mounts.iter().map(|m| text(&m["mountPath"])).collect();
    let folders = ["/config", "/etc/pointsman/tls", "/etc/pointsman/metrics-tls", "/etc/pointsman/metrics-client-ca"];
    assert_eq!(mounts, folders);
}

/// A flag beats the value that says the same, and is given once.
#[test]
fn flags_beat_values() {
    let objects = template_set(&[
        "router.epp.replicas=2",
        "router.epp.flags.ha-enable-leader-election=false",
        "router.epp.flags.tracing=true",
        "router.epp.flags.zap-encoder=console",
        "router.epp.flags.metrics-endpoint-auth=false",
        "router.monitoring.prometheus.enabled=true",
    ]);
    let said = arguments(&objects).join(" ");
    for (flag, value) in [("ha-enable-leader-election", "false"), ("tracing", "true"), ("zap-encoder", "console")] {
        assert_eq!(said.matches(flag).count(), 1, "{said}");
        assert!(said.contains(&format!("--{flag}={value}")), "{said}");
    }
    assert!(!objects.iter().any(|o| o["kind"] == "ClusterRole"), "nobody asks about tokens");
    assert!(!names(&objects).contains(&"Role demo-epp-leader-election".to_owned()));
}

/// Every rendered file is a configuration, and the arguments are ones that the binary takes.
#[tokio::test]
async fn configurations_and_arguments_pass_the_check() {
    let extra = [
        &["router.modelServers.type=triton"][..],
        &["router.modelServers.type=sglang"],
        &["router.epp.pluginsConfigFile=weighted-plugins.yaml"],
        &[
            "router.epp.pluginsConfig.kind=EndpointPickerConfig",
            "router.epp.pluginsConfig.apiVersion=llm-d.ai/v1alpha1",
            "router.epp.pluginsConfig.plugins[0].type=queue-scorer",
        ],
    ];
    let renderings = every_case().map(|(case, mode)| template(case, mode)).chain(extra.iter().map(|s| template_set(s)));
    for objects in renderings.chain(documents::values_of_the_pages()) {
        let files = object(&objects, "ConfigMap", "demo-epp")["data"].as_object().unwrap();
        for name in ["default-plugins.yaml", "weighted-plugins.yaml", "payload-agnostic.yaml"] {
            assert!(files.contains_key(name), "{name}");
        }
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = folder.path().join(name);
            std::fs::write(&path, text(content)).unwrap();
            // Session affinity may still be marked experimental.
            let args = ["check", "--allow-experimental-plugins", "--config-file", path.to_str().unwrap()];
            let ended = harness::run(&args).await;
            assert_eq!(ended.code, Some(0), "{name}: {}", ended.err);
        }
        let at = format!("{}/", folder.path().display());
        let args: Vec<String> = arguments(&objects).iter().map(|a| a.replace("/config/", &at)).collect();
        let args: Vec<&str> = std::iter::once("check").chain(args.iter().map(String::as_str)).collect();
        let ended = harness::run(&args).await;
        assert_eq!(ended.code, Some(0), "{args:?}: {}", ended.err);
    }
}

/// The built-in configurations are the binary's default and the sample with weights, engines and metrics pages aside.
#[test]
fn the_built_in_configurations_are_the_binary_s() {
    let objects = template_set(&[]);
    let read = |path: &str| helm::documents(&std::fs::read_to_string(root(path)).unwrap()).unwrap().remove(0);
    for (file, own) in
        [("default-plugins.yaml", "config/default.yaml"), ("weighted-plugins.yaml", "config/weighted-scorers.yaml")]
    {
        let rendered = text(&object(&objects, "ConfigMap", "demo-epp")["data"][file]);
        let rendered = &helm::documents(rendered).unwrap()[0];
        let own = &read(own);
        assert_eq!(rendered["schedulingProfiles"], own["schedulingProfiles"], "{file}");
        let scheduling: Vec<&Value> = rendered["plugins"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|p| !["metrics-data-source", "core-metrics-extractor"].contains(&text(&p["type"])))
            .collect();
        assert_eq!(scheduling, own["plugins"].as_array().unwrap().iter().collect::<Vec<_>>(), "{file}");
    }
    let payload = text(&object(&objects, "ConfigMap", "demo-epp")["data"]["payload-agnostic.yaml"]);
    let own = std::fs::read_to_string(root("config/payload-agnostic.yaml")).unwrap();
    assert_eq!(helm::documents(payload), helm::documents(&own));
}

/// Rules of all roles that are bound to the picker's account, as "scope groups resources [names] verbs".
fn rights(objects: &[Value], account: &str) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for binding in objects.iter().filter(|o| text(&o["kind"]).ends_with("Binding")) {
        let subjects = binding["subjects"].as_array().unwrap();
        assert!(subjects.iter().all(|s| s["namespace"] == "llm" && s["kind"] == "ServiceAccount"), "{binding}");
        if !subjects.iter().any(|s| s["name"] == account) {
            continue;
        }
        let role = object(objects, text(&binding["roleRef"]["kind"]), text(&binding["roleRef"]["name"]));
        for rule in role["rules"].as_array().unwrap() {
            let list = |key: &str| rule.get(key).map(|v| texts(v).join(",")).unwrap_or_default();
            let parts = ["apiGroups", "resources", "resourceNames", "nonResourceURLs", "verbs"].map(list);
            all.insert(format!("{}: {}", text(&role["kind"]), parts.join(" | ")));
        }
    }
    all
}

#[test]
fn rights_are_exactly_what_the_picker_uses() {
    let set = |rules: &[&str]| rules.iter().map(|r| (*r).to_owned()).collect::<BTreeSet<String>>();
    let pods = "Role:  | pods |  |  | get,list,watch";
    let pool = "Role: inference.networking.k8s.io | inferencepools |  |  | get,list,watch";
    let policies = "Role: llm-d.ai,inference.networking.x-k8s.io | inferenceobjectives,inferencemodelrewrites |  |  | get,list,watch";
    let tokens = "ClusterRole: authentication.k8s.io | tokenreviews |  |  | create";
    let access = "ClusterRole: authorization.k8s.io | subjectaccessreviews |  |  | create";
    let create = "Role: coordination.k8s.io | leases |  |  | create";
    let lease = "Role: coordination.k8s.io | leases | epp-llm-demo.llm-d.ai |  | get,watch,update";

    // Tokens are checked where something scrapes that shows one, and nowhere else.
    let open = "router.monitoring.prometheus.auth.enabled=false";
    let (service_monitor, pod_monitor) =
        ("router.monitoring.prometheus.enabled=true", "router.monitoring.podMonitor.enabled=true");
    for quiet in [&[][..], &[open], &[open, service_monitor], &[open, pod_monitor]] {
        let objects = template_set(quiet);
        assert_eq!(rights(&objects, "demo-epp"), set(&[pods, pool, policies]), "{quiet:?}");
        assert!(!objects.iter().any(|o| text(&o["kind"]).starts_with("Cluster")), "{quiet:?}");
    }
    for scraped in [&[service_monitor][..], &[pod_monitor], &[service_monitor, pod_monitor]] {
        let objects = template_set(scraped);
        assert_eq!(rights(&objects, "demo-epp"), set(&[pods, pool, policies, tokens, access]), "{scraped:?}");
    }
    let selector = "router.inferencePool.create=false";
    assert_eq!(rights(&template_set(&[open, selector]), "demo-epp"), set(&[pods]));
    for mode in ["gateway", "standalone"] {
        let expected = set(&[pods, pool, policies, create, lease]);
        assert_eq!(rights(&template("high-availability", mode), "demo-epp"), expected);
        // Whoever scrapes may read the page, and nothing else.
        let objects = template("monitoring", mode);
        assert_eq!(rights(&objects, "demo-epp"), set(&[pods, pool, policies, tokens, access]));
        assert_eq!(rights(&objects, "demo-epp-metrics-reader"), set(&["ClusterRole:  |  |  | /metrics | get"]));
    }
    // Without a pool the lease is named after the Deployment, as the picker names it.
    let named = "Role: coordination.k8s.io | leases | epp-llm-demo-epp.llm-d.ai |  | get,watch,update";
    let objects = template_set(&[open, selector, "router.epp.replicas=2"]);
    assert_eq!(rights(&objects, "demo-epp"), set(&[pods, create, named]));
    // An account of one's own gets nothing from here.
    let given = ["router.epp.serviceAccount.create=false", "router.epp.serviceAccount.name=own"];
    let objects = template_set(&given);
    assert_eq!(rights(&objects, "own"), set(&[]));
    assert_eq!(object(&objects, "Deployment", "demo-epp")["spec"]["template"]["spec"]["serviceAccountName"], "own");
    assert!(!objects.iter().any(|o| o["kind"] == "ServiceAccount"));
}

/// Two monitored releases of one cluster, or of one namespace, have no object in common.
#[test]
fn no_two_releases_share_an_object() {
    let chart = root("deploy/helm/pointsman").display().to_string();
    let long = |end: &str| format!("{}{end}", "n".repeat(45));
    let (first, second) = (long("1"), long("2"));
    let releases = [("a-b", "c"), ("a", "b-c"), ("a", "b"), ("b", "b"), ("a", &first), ("a", &second), ("ab", "c")];
    let mut seen = BTreeSet::new();
    for (release, namespace) in releases {
        let sets = "router.modelServers.matchLabels.app=vllm,router.monitoring.prometheus.enabled=true";
        let args = ["template", release, &chart, "--namespace", namespace, "--kube-version", "1.35.0", "--set", sets];
        let output = helm::helm(&args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        for o in helm::documents(&String::from_utf8(output.stdout).unwrap()).unwrap() {
            let (name, place) = (text(&o["metadata"]["name"]), &o["metadata"]["namespace"]);
            assert!(name.len() <= 253, "{name}");
            let key = format!("{} {place} {name}", text(&o["kind"]));
            assert!(seen.insert(key.clone()), "{release} in {namespace}: {key} is another release's");
        }
    }
    // Neither a dash nor a cut: the name says it all.
    assert!(seen.contains("ClusterRole null a-b-epp"), "{seen:?}");
}

#[test]
fn probes_ports_and_ends_fit_the_process() {
    for (case, mode) in every_case() {
        let objects = template(case, mode);
        let pod = &object(&objects, "Deployment", "demo-epp")["spec"]["template"]["spec"];
        let picker = picker(&objects);
        let said = arguments(&objects);
        let flag = |name: &str| said[said.iter().position(|a| *a == name).unwrap() + 1].parse::<u16>().unwrap();
        for (probe, service) in [("livenessProbe", "liveness"), ("readinessProbe", "readiness")] {
            assert_eq!(picker[probe]["grpc"], json!({"port": flag("--grpc-health-port"), "service": service}));
        }
        let port = |name: &str| {
            let ports = picker["ports"].as_array().unwrap();
            ports.iter().find(|p| p["name"] == name).map(|p| p["containerPort"].clone())
        };
        assert_eq!(port("grpc"), Some(flag("--grpc-port").into()));
        assert_eq!(port("grpc-health"), Some(flag("--grpc-health-port").into()));
        assert_eq!(port("metrics"), Some(flag("--metrics-port").into()));
        assert_eq!(pod["terminationGracePeriodSeconds"], 130);
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        let containers = [&pod["containers"], &pod["initContainers"]].into_iter().filter_map(Value::as_array).flatten();
        for container in containers {
            let context = &container["securityContext"];
            assert_eq!(context["readOnlyRootFilesystem"], true, "{container}");
            assert_eq!(context["allowPrivilegeEscalation"], false);
            assert_eq!(context["capabilities"], json!({"drop": ["ALL"]}));
            assert!(container["resources"]["requests"]["cpu"].is_string());
        }
        // The Service leads to what is served, and the pool to the Service.
        let service = &object(&objects, "Service", "demo-epp")["spec"]["ports"];
        let ports: Vec<&str> = service.as_array().unwrap().iter().map(|p| text(&p["name"])).collect();
        assert_eq!(ports[..2], ["grpc-ext-proc", "http-metrics"]);
        assert_eq!(
            ports.iter().filter(|p| **p == "http").count(),
            usize::from(mode == "standalone"),
            "{case}: {ports:?}"
        );
        for pool in objects.iter().filter(|o| o["kind"] == "InferencePool") {
            let reference = &pool["spec"]["endpointPickerRef"];
            assert_eq!((&reference["name"], &reference["port"]["number"]), (&json!("demo-epp"), &service[0]["port"]));
        }
    }
}

/// Sleep, drain and open streams are over before Kubernetes kills the pod.
#[test]
fn the_end_of_a_pod_fits_into_its_grace_period() {
    let elected = template_set(&["router.epp.replicas=2"]);
    let all = every_case().map(|(case, mode)| (format!("{case}, {mode}"), template(case, mode)));
    for (what, objects) in all.chain([("elected".to_owned(), elected)]) {
        let said = arguments(&objects);
        let seconds = |flag: &str, default: u64| {
            let given = said.iter().find_map(|a| a.strip_prefix(flag)?.strip_prefix('=')?.strip_suffix('s'));
            given.map_or(default, |n| n.parse().unwrap())
        };
        let sleep = picker(&objects)["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64().unwrap_or(0);
        let drain = seconds("--drain-timeout", 30);
        let grace = seconds("--shutdown-grace", pointsman::app::GRACE.as_secs());
        let period =
            object(&objects, "Deployment", "demo-epp")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
                .as_u64()
                .unwrap();
        assert!(sleep + drain + grace <= period, "{what}: {sleep} + {drain} + {grace} > {period}");
    }
}

#[test]
fn replicas_decide_strategy_budget_and_probes() {
    let strategy =
        |objects: &[Value]| object(objects, "Deployment", "demo-epp")["spec"]["strategy"]["rollingUpdate"].clone();
    let one = template_set(&[]);
    assert_eq!(strategy(&one), json!({"maxUnavailable": 0, "maxSurge": 1}));
    assert_eq!(picker(&one).get("lifecycle"), None);
    // Standbys are never ready: neither a rollout nor a budget may count on them.
    let elected = template_set(&["router.epp.replicas=3"]);
    assert_eq!(strategy(&elected), json!({"maxUnavailable": "100%", "maxSurge": "100%"}));
    assert_eq!(picker(&elected)["lifecycle"]["preStop"]["sleep"]["seconds"], 10);
    assert!(!elected.iter().any(|o| o["kind"] == "PodDisruptionBudget"));
    let all_work = template_set(&["router.epp.replicas=3", "router.epp.leaderElection=false"]);
    assert_eq!(strategy(&all_work), json!({"maxUnavailable": 0, "maxSurge": 1}));
    assert_eq!(object(&all_work, "PodDisruptionBudget", "demo-epp")["spec"]["maxUnavailable"], 1);
    assert!(!arguments(&all_work).contains(&"--ha-enable-leader-election"));

    let scaled = template("everything", "gateway");
    assert!(object(&scaled, "Deployment", "demo-epp")["spec"].get("replicas").is_none());
    let scaler = &object(&scaled, "HorizontalPodAutoscaler", "demo-epp")["spec"];
    assert_eq!((&scaler["minReplicas"], &scaler["maxReplicas"]), (&json!(2), &json!(6)));
    assert_eq!(scaler["metrics"].as_array().unwrap().len(), 2);
    assert_eq!(object(&scaled, "PodDisruptionBudget", "demo-epp")["spec"]["maxUnavailable"], "25%");
}

#[test]
fn what_surrounds_the_gateway_is_as_asked() {
    let objects = template("gateway-istio", "gateway");
    let pool = &object(&objects, "InferencePool", "demo")["spec"];
    assert_eq!(pool["selector"]["matchLabels"]["llm-d.ai/inference-serving"], "true");
    assert_eq!(pool["targetPorts"], json!([{"number": 8000}]));
    assert_eq!(object(&objects, "InferenceObjective", "batch")["spec"]["priority"], -1);
    let route = &object(&objects, "HTTPRoute", "demo")["spec"];
    assert_eq!(route["parentRefs"][0]["name"], "llm-d-inference-gateway");
    assert_eq!(route["rules"][0]["backendRefs"][0]["kind"], "InferencePool");
    assert_eq!(route["rules"][0]["timeouts"]["request"], "600s");
    let headers = route["rules"][0]["matches"][0]["headers"].as_array().unwrap();
    let headers: Vec<(&str, &str)> = headers.iter().map(|h| (text(&h["name"]), text(&h["value"]))).collect();
    assert_eq!(headers, [("X-Gateway-Base-Model-Name", "Qwen/Qwen3-32B"), ("x-team", "search")]);
    let rule = &object(&objects, "DestinationRule", "demo-epp")["spec"];
    assert_eq!(rule["host"], "demo-epp.llm.svc.cluster.local");
    assert_eq!(rule["trafficPolicy"]["tls"], json!({"mode": "SIMPLE", "insecureSkipVerify": true}));
    assert_eq!(rule["trafficPolicy"]["connectionPool"]["http"]["maxRequestsPerConnection"], 256_000);

    let plain = template_set(&["provider.name=istio", "router.epp.flags.secure-serving=false"]);
    assert_eq!(
        object(&plain, "DestinationRule", "demo-epp")["spec"]["trafficPolicy"]["tls"],
        json!({"mode": "DISABLE"})
    );
    let gke = template_set(&["provider.name=gke", "httpRoute.create=true"]);
    assert_eq!(object(&gke, "HealthCheckPolicy", "demo")["spec"]["targetRef"]["name"], "demo");
    assert!(object(&gke, "HTTPRoute", "demo")["spec"]["rules"][0].get("timeouts").is_none());
}

#[test]
fn monitoring_knows_how_to_get_in() {
    let objects = template("monitoring", "gateway");
    let monitor = object(&objects, "ServiceMonitor", "demo-epp");
    assert_eq!(monitor["metadata"]["labels"]["release"], "prometheus");
    let secret = "inference-gateway-sa-metrics-reader-secret";
    assert_eq!(
        monitor["spec"]["endpoints"][0]["authorization"]["credentials"],
        json!({"name": secret, "key": "token"})
    );
    let annotations = &object(&objects, "Secret", secret)["metadata"]["annotations"];
    assert_eq!(annotations["kubernetes.io/service-account.name"], "demo-epp-metrics-reader");
    // A secret of the release's own where no name is given.
    let unnamed = template_set(&["router.monitoring.prometheus.enabled=true"]);
    let own = "demo-epp-metrics-reader";
    let credentials = &object(&unnamed, "ServiceMonitor", "demo-epp")["spec"]["endpoints"][0]["authorization"];
    assert_eq!(credentials["credentials"]["name"], own);
    assert_eq!(object(&unnamed, "Secret", own)["type"], "kubernetes.io/service-account-token");
    let picker = picker(&objects);
    assert!(texts(&picker["args"]).contains(&"--tracing=true"));
    let variable = |name: &str| {
        let all = picker["env"].as_array().unwrap();
        all.iter().find(|v| v["name"] == name).map(|v| v["value"].clone()).unwrap_or_default()
    };
    assert_eq!(variable("OTEL_TRACES_EXPORTER"), "otlp");
    assert_eq!(variable("OTEL_EXPORTER_OTLP_ENDPOINT"), "http://otel-collector.observability:4317");
    assert_eq!(variable("OTEL_TRACES_SAMPLER_ARG"), "0.1");

    let objects = template("everything", "standalone");
    let endpoints = &object(&objects, "PodMonitor", "demo-epp")["spec"]["podMetricsEndpoints"];
    assert_eq!((&endpoints[0]["scheme"], &endpoints[1]["path"]), (&json!("https"), &json!("/stats/prometheus")));
    assert_eq!(endpoints[0]["tlsConfig"]["serverName"], "demo-epp.llm.svc.example.internal");
    let dashboard = object(&objects, "ConfigMap", "demo-epp-dashboard");
    assert_eq!(dashboard["metadata"]["labels"]["grafana_dashboard"], "1");
    let shown: Value = serde_json::from_str(text(&dashboard["data"]["pointsman.json"])).unwrap();
    let file: Value = serde_json::from_slice(&std::fs::read(root("deploy/grafana/pointsman.json")).unwrap()).unwrap();
    assert_eq!(shown, file);
}

#[test]
fn a_policy_admits_what_is_served() {
    let ports = |objects: &[Value]| {
        let rules = object(objects, "NetworkPolicy", "demo-epp")["spec"]["ingress"].as_array().unwrap().clone();
        rules
            .iter()
            .flat_map(|r| r["ports"].as_array().unwrap().clone())
            .map(|p| p["port"].as_u64().unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(ports(&template("everything", "gateway")), [9102, 9190, 9103]);
    assert_eq!(ports(&template("everything", "standalone")), [8181, 9190, 19101, 9103]);
}

/// (what is set, what the message must name)
const REFUSED: &[(&[&str], &[&str])] = &[
    // The schema.
    (&["mode=sidecar"], &["/mode", "gateway", "standalone"]),
    (&["colour=red"], &["'colour'"]),
    (&["router.colour=red"], &["/router", "'colour'"]),
    (&["router.epp.image.colour=red"], &["/router/epp/image", "'colour'"]),
    (&["router.epp.flags.colour=red"], &["/router/epp/flags", "'colour'"]),
    (&["router.proxy.presets.envoy=1"], &["/router/proxy", "'presets'"]),
    (&["router.epp.replicas=many"], &["/router/epp/replicas"]),
    (&["router.inferencePool.failureMode=FailClosed"], &["/router/inferencePool/failureMode", "FailClose"]),
    (&["router.modelServers.targetPorts[0].number=0"], &["/router/modelServers/targetPorts/0/number"]),
    (&["router.epp.parsers[0]=vllmgrpc-parser"], &["/router/epp/parsers/0"]),
    (&["router.inferenceObjectives[0].name=x"], &["/router/inferenceObjectives/0", "priority"]),
    // Keys of older generations.
    (&["inferenceExtension.replicas=2"], &["`inferenceExtension`", "`router.epp`"]),
    (
        &["inferencePool.targetPorts[0].number=8000"],
        &["`inferencePool`", "`router.modelServers`", "`router.inferencePool`"],
    ),
    (&["experimentalHttpRoute.enabled=true"], &["`experimentalHttpRoute`", "`httpRoute`"]),
    (&["inferenceObjectives[0].name=x"], &["`inferenceObjectives`", "`router.inferenceObjectives`"]),
    // What llm-d's charts have and this one has not.
    (&["router.tokenizer.enabled=true"], &["router.tokenizer.enabled"]),
    (&["router.latencyPredictor.enabled=true"], &["router.latencyPredictor.enabled"]),
    (&["mode=standalone", "router.proxy.proxyType=agentgateway"], &["router.proxy.proxyType", "agentgateway"]),
    (&["mode=standalone", "router.proxy.mode=service"], &["router.proxy.mode", "service"]),
    (&["provider.gke.preferredBackends.enabled=true"], &["provider.gke.preferredBackends.enabled"]),
    (&["router.monitoring.provider.name=gmp"], &["router.monitoring.provider.name", "gmp"]),
    (&["router.modelServers.protocol=grpc"], &["router.modelServers.protocol", "grpc"]),
    // What does not go together.
    (&["router.modelServers.matchLabels=null"], &["router.modelServers.matchLabels"]),
    (&["router.proxy.enabled=true"], &["router.proxy.enabled", "mode: standalone"]),
    (&["mode=standalone", "httpRoute.create=true"], &["httpRoute.create", "mode: gateway"]),
    (
        &["httpRoute.create=true", "router.inferencePool.create=false"],
        &["httpRoute.create", "router.inferencePool.create"],
    ),
    (
        &[
            "router.inferencePool.create=false",
            "router.inferenceObjectives[0].name=x",
            "router.inferenceObjectives[0].priority=1",
        ],
        &["router.inferenceObjectives"],
    ),
    (&["router.epp.autoscaling.enabled=true", "router.epp.leaderElection=true"], &["autoscaling", "leaderElection"]),
    (
        &["router.epp.autoscaling.enabled=true", "router.epp.flags.ha-enable-leader-election=true"],
        &["autoscaling", "ha-enable-leader-election"],
    ),
    (
        &["router.epp.tls.secretName=x", "router.epp.flags.secure-serving=false"],
        &["router.epp.tls.secretName", "secure-serving"],
    ),
    (&["router.monitoring.tls.clientCAConfigMap=x"], &["clientCAConfigMap", "router.monitoring.tls.secretName"]),
    (
        &["router.monitoring.tls.secretName=x", "router.monitoring.prometheus.auth.enabled=false"],
        &["router.monitoring.tls.secretName", "router.monitoring.prometheus.auth.enabled"],
    ),
    (&["router.epp.serviceAccount.create=false"], &["router.epp.serviceAccount.name"]),
    (&["router.epp.flags.grpc-port=9100"], &["router.epp.flags.grpc-port", "router.epp.extProcPort"]),
    (&["router.epp.flags.config-text=x"], &["router.epp.flags.config-text", "router.epp.pluginsCustomConfig"]),
    (&["router.epp.pluginsConfigFile=mine.yaml"], &["router.epp.pluginsConfigFile", "mine.yaml"]),
];

#[test]
fn refusals_name_the_key() {
    for (sets, words) in REFUSED {
        let said = try_set(sets).map(|_| "it renders".to_owned()).unwrap_or_else(|e| e);
        assert!(words.iter().all(|w| said.contains(w)), "{sets:?} should name {words:?}:\n{said}");
    }
}

/// A release of llm-d's chart keeps its Deployment's selector, which cannot change.
#[test]
fn selector_labels_can_be_those_of_an_installed_release() {
    let objects = template_set(&["router.epp.selectorLabels.llm-d-router-gateway=demo-epp"]);
    let labels = json!({"llm-d-router-gateway": "demo-epp"});
    assert_eq!(object(&objects, "Deployment", "demo-epp")["spec"]["selector"]["matchLabels"], labels);
    assert_eq!(object(&objects, "Service", "demo-epp")["spec"]["selector"], labels);
}
