{{/*
What the schema cannot say, or cannot say well. Each message names the key, the rule and the way out.
*/}}
{{- define "pointsman.validate" -}}
{{- $f := include "pointsman.facts" . | fromJson -}}
{{- $r := .Values.router -}}
{{- $old := dict
  "inferenceExtension" "write `router.epp` (and `router.modelServers`, `router.monitoring`, `router.tracing`, `router.proxy` for what belongs there)"
  "inferencePool" "write `router.modelServers` for labels, ports, type and protocol, and `router.inferencePool` for create and failureMode"
  "experimentalHttpRoute" "write `httpRoute`, with `create` for `enabled`"
  "inferenceObjectives" "write `router.inferenceObjectives`" -}}
{{- range $key, $advice := $old -}}
{{- if hasKey $.Values $key }}{{ fail (printf "the top-level key `%s` is of an older generation of charts: %s" $key $advice) }}{{ end -}}
{{- end -}}
{{- if not $r.modelServers.matchLabels -}}
{{- fail "router.modelServers.matchLabels is empty: give the labels of the model servers' pods, for example --set router.modelServers.matchLabels.app=vllm" -}}
{{- end -}}
{{- if ne $r.modelServers.protocol "http" -}}
{{- fail (printf "router.modelServers.protocol is %q, but this version has no parser for gRPC requests: use http" $r.modelServers.protocol) -}}
{{- end -}}
{{- if $r.tokenizer.enabled -}}
{{- fail "router.tokenizer.enabled is true, but this version counts tokens by estimate and has no tokenizer sidecar: leave it false" -}}
{{- end -}}
{{- if $r.latencyPredictor.enabled -}}
{{- fail "router.latencyPredictor.enabled is true, but this version has no latency prediction: leave it false" -}}
{{- end -}}
{{- if ne $r.proxy.proxyType "envoy" -}}
{{- fail (printf "router.proxy.proxyType is %q, but this chart brings only envoy: use envoy, or mode gateway with a Gateway of your own" $r.proxy.proxyType) -}}
{{- end -}}
{{- if ne $r.proxy.mode "sidecar" -}}
{{- fail (printf "router.proxy.mode is %q, but this chart puts the proxy only into the picker's pod: use sidecar and set router.epp.replicas for more of both" $r.proxy.mode) -}}
{{- end -}}
{{- if .Values.provider.gke.preferredBackends.enabled -}}
{{- fail "provider.gke.preferredBackends.enabled is true, but this chart has no StatefulSet with a Service per replica: leave it false" -}}
{{- end -}}
{{- if not (has $r.monitoring.provider.name (list "" "prometheusoperator")) -}}
{{- fail (printf "router.monitoring.provider.name is %q, but this chart renders objects of the Prometheus operator only: leave it empty and make your own PodMonitoring" $r.monitoring.provider.name) -}}
{{- end -}}
{{- if and (not $f.standalone) $f.proxy -}}
{{- fail "router.proxy.enabled is true in mode gateway, where the Gateway is the proxy: set mode: standalone" -}}
{{- end -}}
{{- if and $f.standalone .Values.httpRoute.create -}}
{{- fail "httpRoute.create is true in mode standalone, where no Gateway routes: set mode: gateway" -}}
{{- end -}}
{{- if and .Values.httpRoute.create (not $f.pool) -}}
{{- fail "httpRoute.create is true, but the route needs the InferencePool: set router.inferencePool.create: true" -}}
{{- end -}}
{{- if and $r.inferenceObjectives (not $f.pool) -}}
{{- fail "router.inferenceObjectives is set, but objectives refer to an InferencePool: set router.inferencePool.create: true" -}}
{{- end -}}
{{- if and $r.epp.autoscaling.enabled $f.leader -}}
{{- fail "router.epp.autoscaling.enabled is true, but with leader election only one picker works: set router.epp.leaderElection: false and remove the flag ha-enable-leader-election" -}}
{{- end -}}
{{- if and $r.epp.autoscaling.enabled (gt (int $r.epp.autoscaling.minReplicas) (int $r.epp.autoscaling.maxReplicas)) -}}
{{- fail "router.epp.autoscaling.minReplicas is greater than maxReplicas" -}}
{{- end -}}
{{- if and $r.epp.tls.secretName (not $f.secure) -}}
{{- fail "router.epp.tls.secretName is set, but the flag secure-serving is false: remove one of them" -}}
{{- end -}}
{{- if and $r.monitoring.tls.clientCAConfigMap (not $r.monitoring.tls.secretName) -}}
{{- fail "router.monitoring.tls.clientCAConfigMap is set, but client certificates need TLS: set router.monitoring.tls.secretName" -}}
{{- end -}}
{{- if and $r.monitoring.tls.secretName (not $f.metricsAuth) (not $r.monitoring.tls.clientCAConfigMap) -}}
{{- fail "router.monitoring.tls.secretName is set, but nobody is checked: set router.monitoring.tls.clientCAConfigMap or router.monitoring.prometheus.auth.enabled: true" -}}
{{- end -}}
{{- if and (not $r.epp.serviceAccount.create) (not $r.epp.serviceAccount.name) -}}
{{- fail "router.epp.serviceAccount.create is false: give the name of the account that exists in router.epp.serviceAccount.name" -}}
{{- end -}}
{{- $own := dict
  "grpc-port" "router.epp.extProcPort"
  "grpc-health-port" "router.epp.grpcHealthPort"
  "metrics-port" "router.metricsPort"
  "pool-name" "the name of the release"
  "pool-namespace" "the namespace of the release"
  "pool-group" "nothing: the chart renders inference.networking.k8s.io"
  "endpoint-selector" "router.modelServers.matchLabels and router.inferencePool.create: false"
  "endpoint-target-ports" "router.modelServers.targetPorts"
  "config-file" "router.epp.pluginsConfigFile"
  "config-text" "router.epp.pluginsCustomConfig"
  "cert-path" "router.epp.tls.secretName"
  "enable-cert-reload" "router.epp.tls.reload"
  "metrics-cert-dir" "router.monitoring.tls.secretName"
  "metrics-client-ca-file" "router.monitoring.tls.clientCAConfigMap" -}}
{{- range $key, $value := $r.epp.flags -}}
{{- if hasKey $own $key }}{{ fail (printf "router.epp.flags.%s: the chart sets this flag itself; use %s" $key (index $own $key)) }}{{ end -}}
{{- end -}}
{{- if not (hasKey (include "pointsman.configFiles" . | fromYaml) $r.epp.pluginsConfigFile) -}}
{{- fail (printf "router.epp.pluginsConfigFile is %q, which is neither default-plugins.yaml, weighted-plugins.yaml, payload-agnostic.yaml nor a key of router.epp.pluginsCustomConfig" $r.epp.pluginsConfigFile) -}}
{{- end -}}
{{- end -}}
