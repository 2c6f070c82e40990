{{/* The picker's arguments, in the order of llm-d's charts. */}}
{{- define "pointsman.args" -}}
{{- $f := include "pointsman.facts" . | fromJson -}}
{{- $r := .Values.router -}}
{{- $epp := $r.epp -}}
{{- $flags := $epp.flags | default dict -}}
{{- if $f.pool }}
- --pool-name
- {{ $f.poolName | quote }}
- --pool-namespace
- {{ .Release.Namespace | quote }}
- --pool-group
- inference.networking.k8s.io
{{- else }}
- --endpoint-selector
- {{ include "pointsman.selector" . | quote }}
- --endpoint-target-ports
- {{ include "pointsman.targetPorts" . | quote }}
{{- end }}
{{- if not (hasKey $flags "zap-encoder") }}
- --zap-encoder
- json
{{- end }}
- --config-file
- {{ printf "/config/%s" $epp.pluginsConfigFile | quote }}
{{- if and $f.leader (not (hasKey $flags "ha-enable-leader-election")) }}
- --ha-enable-leader-election
{{- end }}
- --grpc-port
- {{ int $epp.extProcPort | quote }}
- --grpc-health-port
- {{ int $epp.grpcHealthPort | quote }}
- --metrics-port
- {{ int $r.metricsPort | quote }}
{{- if $epp.tls.secretName }}
- --cert-path=/etc/pointsman/tls
{{- if $epp.tls.reload }}
- --enable-cert-reload
{{- end }}
{{- end }}
{{- if $r.monitoring.tls.secretName }}
- --metrics-cert-dir=/etc/pointsman/metrics-tls
{{- end }}
{{- if $r.monitoring.tls.clientCAConfigMap }}
- --metrics-client-ca-file=/etc/pointsman/metrics-client-ca/ca.crt
{{- end }}
{{- range $key, $value := $flags }}
- {{ printf "--%s=%s" $key (include "pointsman.scalar" $value) | quote }}
{{- end }}
{{- if not (hasKey $flags "tracing") }}
- --tracing={{ $r.tracing.enabled }}
{{- end }}
{{- if and (not $f.metricsAuth) (not (hasKey $flags "metrics-endpoint-auth")) }}
- --metrics-endpoint-auth=false
{{- end }}
{{- end -}}
