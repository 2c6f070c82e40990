{{/* Name of everything that belongs to the picker, as llm-d's charts call it. */}}
{{- define "pointsman.name" -}}
{{ .Release.Name | lower | trunc 40 | trimSuffix "-" | trimSuffix "." }}-epp
{{- end -}}

{{/*
Name of cluster-wide objects, unique by release and namespace. Where a dash within one of the two, or a cut, would let
another pair come to the same name (a-b in c, a in b-c), a hash of both follows; "/" is in neither.
*/}}
{{- define "pointsman.clusterName" -}}
{{- $release := .Release.Name | lower | trunc 40 -}}
{{- $namespace := .Release.Namespace | trunc 40 -}}
{{- $whole := printf "%s/%s" .Release.Namespace .Release.Name -}}
{{- $plain := printf "%s-%s-epp" $release $namespace -}}
{{- if or (contains "-" $whole) (ne $whole (printf "%s/%s" $namespace $release)) -}}
{{ printf "%s-%s" $plain ($whole | sha256sum | trunc 8) }}
{{- else -}}
{{ $plain }}
{{- end -}}
{{- end -}}

{{/* Secret with the token of whoever scrapes. */}}
{{- define "pointsman.metricsSecret" -}}
{{ .Values.router.monitoring.prometheus.auth.secretName | default (printf "%s-metrics-reader" (include "pointsman.name" .)) }}
{{- end -}}

{{- define "pointsman.selectorLabels" -}}
{{- if .Values.router.epp.selectorLabels -}}
{{ toYaml .Values.router.epp.selectorLabels }}
{{- else -}}
app.kubernetes.io/name: pointsman
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}
{{- end -}}

{{- define "pointsman.labels" -}}
app.kubernetes.io/name: pointsman
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "pointsman.serviceAccount" -}}
{{ .Values.router.epp.serviceAccount.name | default (include "pointsman.name" .) }}
{{- end -}}

{{/* A flag's value. Helm reads numbers as floats, which would print 1000000 as 1e+06. */}}
{{- define "pointsman.scalar" -}}
{{- if and (kindIs "float64" .) (eq . (floor .)) -}}{{ printf "%d" (int64 .) }}{{- else -}}{{ printf "%v" . }}{{- end -}}
{{- end -}}

{{/*
What follows from the values, as JSON, decided in one place:
  standalone, proxy      which mode, and whether Envoy is there
  pool                   whether the picker watches an InferencePool (else pods by selector)
  poolName               the pool's name, which is also in the name of the lease
  several                whether more than one picker may run
  leader                 leader election
  secure, metricsAuth    TLS on the ext_proc port, tokens on the metrics port
  monitored              whether something that this chart renders scrapes the metrics
A flag in router.epp.flags beats the value that says the same.
*/}}
{{- define "pointsman.facts" -}}
{{- $r := .Values.router -}}
{{- $flags := $r.epp.flags | default dict -}}
{{- $standalone := eq .Values.mode "standalone" -}}
{{- $several := or (gt (int $r.epp.replicas) 1) $r.epp.autoscaling.enabled -}}
{{- $leader := and (gt (int $r.epp.replicas) 1) (not $r.epp.autoscaling.enabled) -}}
{{- if not (kindIs "invalid" $r.epp.leaderElection) }}{{ $leader = $r.epp.leaderElection }}{{ end -}}
{{- if hasKey $flags "ha-enable-leader-election" }}{{ $leader = eq (toString (index $flags "ha-enable-leader-election")) "true" }}{{ end -}}
{{- $secure := true -}}
{{- if hasKey $flags "secure-serving" }}{{ $secure = eq (toString (index $flags "secure-serving")) "true" }}{{ end -}}
{{- $metricsAuth := $r.monitoring.prometheus.auth.enabled -}}
{{- if hasKey $flags "metrics-endpoint-auth" }}{{ $metricsAuth = eq (toString (index $flags "metrics-endpoint-auth")) "true" }}{{ end -}}
{{- $proxy := $standalone -}}
{{- if not (kindIs "invalid" $r.proxy.enabled) }}{{ $proxy = $r.proxy.enabled }}{{ end -}}
{{- $pool := $r.inferencePool.create -}}
{{- dict
  "standalone" $standalone
  "proxy" $proxy
  "pool" $pool
  "poolName" (ternary .Release.Name (include "pointsman.name" .) $pool)
  "several" $several
  "leader" $leader
  "secure" $secure
  "metricsAuth" $metricsAuth
  "monitored" (or $r.monitoring.prometheus.enabled $r.monitoring.podMonitor.enabled)
  | toJson -}}
{{- end -}}

{{/* Ports of the model servers, separated by commas. */}}
{{- define "pointsman.targetPorts" -}}
{{- $ports := list -}}
{{- range .Values.router.modelServers.targetPorts }}{{ $ports = append $ports (toString (int .number)) }}{{ end -}}
{{- join "," $ports -}}
{{- end -}}

{{/* matchLabels as the text of a label selector. */}}
{{- define "pointsman.selector" -}}
{{- $terms := list -}}
{{- range $key, $value := .Values.router.modelServers.matchLabels }}{{ $terms = append $terms (printf "%s=%s" $key $value) }}{{ end -}}
{{- join "," $terms -}}
{{- end -}}

{{/* Host name of a Service of this release. */}}
{{- define "pointsman.host" -}}
{{ printf "%s.%s.svc.%s" .service .root.Release.Namespace .root.Values.router.clusterDomain }}
{{- end -}}
