{{/* The built-in configurations: what the picker also has without a file (weighted: false), or the three scorers of llm-d-router's
default (weighted: true), with what the values say about parsers and metrics pages. */}}
{{- define "pointsman.builtinPlugins" -}}
{{- $epp := .root.Values.router.epp -}}
{{- $source := $epp.metricsDataSource -}}
{{- $engine := .root.Values.router.modelServers.type -}}
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
{{- if .weighted }}
- type: queue-scorer
- type: kv-cache-utilization-scorer
- type: prefix-cache-scorer
{{- else }}
- type: cost-picker
- type: just-in-time-dispatch
  parameters:
    mode: hold
    maxHold: 60s
- type: prefill-account-producer
- type: mirror-prefix-cache-producer
{{- end }}
- type: metrics-data-source
  parameters:
    scheme: {{ $source.scheme | quote }}
    path: {{ $source.path | quote }}
    insecureSkipVerify: {{ $source.insecureSkipVerify }}
- type: core-metrics-extractor
  parameters:
    defaultEngine: {{ $engine | quote }}
{{- range $epp.parsers }}
- type: {{ . }}
{{- end }}
schedulingProfiles:
- name: default
  plugins:
  {{- if .weighted }}
  - pluginRef: queue-scorer
    weight: 2
  - pluginRef: kv-cache-utilization-scorer
    weight: 2
  - pluginRef: prefix-cache-scorer
    weight: 3
  {{- else }}
  - pluginRef: cost-picker
  {{- end }}
{{- with $epp.parsers }}
requestHandler:
  parsers:
  {{- range . }}
  - pluginRef: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* For bodies of any kind: nothing in them is read. */}}
{{- define "pointsman.payloadAgnostic" -}}
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: passthrough-parser
- type: active-request-scorer
- type: session-affinity-scorer
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: active-request-scorer
    weight: 1
  - pluginRef: session-affinity-scorer
    weight: 2
requestHandler:
  parsers:
  - pluginRef: passthrough-parser
{{- end -}}

{{/* Every configuration file, name to text; what the user gives beats what is built in. */}}
{{- define "pointsman.configFiles" -}}
{{- $epp := .Values.router.epp -}}
{{- $files := dict "default-plugins.yaml" (include "pointsman.builtinPlugins" (dict "root" . "weighted" false)) "weighted-plugins.yaml" (include "pointsman.builtinPlugins" (dict "root" . "weighted" true)) "payload-agnostic.yaml" (include "pointsman.payloadAgnostic" .) -}}
{{- with $epp.pluginsConfig }}{{ $_ := set $files $epp.pluginsConfigFile (toYaml .) }}{{ end -}}
{{- range $name, $text := $epp.pluginsCustomConfig }}{{ $_ := set $files $name $text }}{{ end -}}
{{- toYaml $files -}}
{{- end -}}
