{{/*
Envoy's bootstrap. The picker's answer is a header, which an ORIGINAL_DST cluster dials; it is the same design as
config/envoy/original-dst.yaml. To fail open, requests without that header go to the pool in turn: while the picker
works every request has the header, because routes are chosen again once it has answered.
*/}}
{{- define "pointsman.bootstrap" -}}
{{- $r := .Values.router -}}
{{- $p := $r.proxy -}}
{{- $f := include "pointsman.facts" . | fromJson -}}
{{- $both := ternary ", ipv4_compat: true" "" (eq $p.listenAddress "::") -}}
{{- $reports := include "pointsman.servedReport" . -}}
{{- if $p.bootstrap -}}
{{ $p.bootstrap }}
{{- else -}}
admin:
  address:
    socket_address: { address: 127.0.0.1, port_value: 19000 }
static_resources:
  listeners:
  - name: inference
    address:
      socket_address: { address: {{ $p.listenAddress | quote }}, port_value: {{ int $p.port }}{{ $both }} }
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: inference
          # A client outside the cluster must not speak for other addresses or for the proxy itself.
          use_remote_address: true
          normalize_path: true
          merge_slashes: true
          path_with_escaped_slashes_action: UNESCAPE_AND_REDIRECT
          server_header_transformation: PASS_THROUGH
          http_protocol_options: { enable_trailers: true } # let HTTP/1.1 request trailers reach the picker
          http2_protocol_options:
            max_concurrent_streams: 100
            initial_stream_window_size: 65536
            initial_connection_window_size: 1048576
          stream_idle_timeout: {{ $p.timeouts.streamIdle }}
          {{- if $p.accessLog }}
          access_log:
          - name: envoy.access_loggers.stdout
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog
              log_format:
                json_format:
                  time: "%START_TIME%"
                  method: "%REQ(:METHOD)%"
                  path: "%REQ(:PATH)%"
                  status: "%RESPONSE_CODE%"
                  flags: "%RESPONSE_FLAGS%"
                  details: "%RESPONSE_CODE_DETAILS%"
                  upstream: "%UPSTREAM_REMOTE_ADDRESS%"
                  durationMs: "%DURATION%"
                  requestId: "%REQ(X-REQUEST-ID)%"
          {{- end }}
          route_config:
            name: inference
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              {{- if $p.failOpen }}
              - match:
                  prefix: "/"
                  headers: [{ name: x-gateway-destination-endpoint, present_match: true }]
                route: { cluster: picked_endpoint, timeout: {{ $p.timeouts.route }} }
                {{- $reports | nindent 16 }}
              - match: { prefix: "/" }
                route: { cluster: any_endpoint, timeout: {{ $p.timeouts.route }} }
              {{- else }}
              - match: { prefix: "/" }
                route: { cluster: picked_endpoint, timeout: {{ $p.timeouts.route }} }
                {{- $reports | nindent 16 }}
              {{- end }}
          http_filters:
          - name: strip_spoofed_destination # a client must not be able to choose the upstream itself
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation
              mutations:
                request_mutations:
                - remove: x-gateway-destination-endpoint
          - name: envoy.filters.http.ext_proc
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor
              grpc_service: { envoy_grpc: { cluster_name: epp } }
              failure_mode_allow: {{ $p.failOpen }}
              message_timeout: 1000s # Envoy looks at it only in the modes that are not full duplex
              processing_mode:
                request_header_mode: SEND
                request_body_mode: FULL_DUPLEX_STREAMED
                request_trailer_mode: SEND
                response_header_mode: SEND
                response_body_mode: FULL_DUPLEX_STREAMED
                response_trailer_mode: SEND
              metadata_options:
                receiving_namespaces: { untyped: ["envoy.lb"] }
                forwarding_namespaces: { untyped: ["envoy.lb", "envoy.lb.subset_hint"] }
          - name: served_endpoint_to_metadata # runs before ext_proc on the way back
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.header_to_metadata.v3.Config
              response_rules:
              - header: x-envoy-served-endpoint
                on_header_present:
                  { metadata_namespace: envoy.lb, key: x-gateway-destination-endpoint-served, type: STRING }
                remove: true
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
              suppress_envoy_headers: true
  - name: ready
    address:
      socket_address: { address: {{ $p.listenAddress | quote }}, port_value: {{ int $p.readyPort }}{{ $both }} }
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: ready
          route_config:
            name: ready
            virtual_hosts:
            - name: statistics
              domains: ["*"]
              routes:
              - match: { path: /stats/prometheus }
                route: { cluster: admin }
          http_filters:
          - name: envoy.filters.http.health_check
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.health_check.v3.HealthCheck
              pass_through_mode: false
              headers: [{ name: ":path", string_match: { exact: /ready } }]
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
  clusters:
  - name: picked_endpoint
    type: ORIGINAL_DST
    lb_policy: CLUSTER_PROVIDED
    connect_timeout: {{ $p.timeouts.connect }}
    circuit_breakers:
      thresholds: [{ max_connections: 40000, max_pending_requests: 40000, max_requests: 40000 }]
    original_dst_lb_config: { use_http_header: true, http_header_name: x-gateway-destination-endpoint }
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: { http_protocol_options: { enable_trailers: true } }
  {{- if $p.failOpen }}
  - name: any_endpoint
    type: STRICT_DNS
    lb_policy: ROUND_ROBIN
    connect_timeout: {{ $p.timeouts.connect }}
    circuit_breakers:
      thresholds: [{ max_connections: 40000, max_pending_requests: 40000, max_requests: 40000 }]
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: { http_protocol_options: { enable_trailers: true } }
    load_assignment:
      cluster_name: any_endpoint
      endpoints:
      - lb_endpoints:
        {{- $host := include "pointsman.host" (dict "root" . "service" (printf "%s-endpoints" (include "pointsman.name" .))) }}
        {{- range $r.modelServers.targetPorts }}
        - endpoint:
            address:
              socket_address: { address: {{ $host | quote }}, port_value: {{ int .number }} }
        {{- end }}
  {{- end }}
  - name: epp
    type: STATIC
    lb_policy: LEAST_REQUEST
    connect_timeout: 1s
    # Each HTTP exchange holds a stream, so the default of 1024 requests would be a hidden limit.
    circuit_breakers:
      thresholds: [{ max_connections: 40000, max_pending_requests: 40000, max_requests: 40000 }]
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: { http2_protocol_options: {} }
    {{- if $f.secure }}
    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        common_tls_context:
          alpn_protocols: ["h2"]
          validation_context: {} # over loopback to the neighbour, whose certificate is of its own making
    {{- end }}
    health_checks:
    - timeout: 1s
      interval: {{ $p.timeouts.healthInterval }}
      no_traffic_interval: {{ $p.timeouts.healthInterval }} # the default is 60 s
      unhealthy_threshold: 1
      healthy_threshold: 1
      # Not readiness: a picker that drains still answers, and Kubernetes already sends nobody new to this pod.
      grpc_health_check: { service_name: liveness }
      {{- if $f.secure }}
      tls_options: { alpn_protocols: ["h2"] }
      {{- end }}
    # Without this a lone unhealthy picker would still get the requests and fail-open would not happen.
    common_lb_config: { healthy_panic_threshold: { value: 0 } }
    load_assignment:
      cluster_name: epp
      endpoints:
      - lb_endpoints:
        - endpoint:
            address:
              socket_address: { address: 127.0.0.1, port_value: {{ int $r.epp.extProcPort }} }
  - name: admin
    type: STATIC
    connect_timeout: 1s
    load_assignment:
      cluster_name: admin
      endpoints:
      - lb_endpoints:
        - endpoint:
            address:
              socket_address: { address: 127.0.0.1, port_value: 19000 }
{{- end -}}
{{- end -}}

{{/* An ORIGINAL_DST cluster does not report which endpoint served; this header and a filter stand in for that. */}}
{{- define "pointsman.servedReport" -}}
response_headers_to_add:
- header: { key: x-envoy-served-endpoint, value: "%UPSTREAM_REMOTE_ADDRESS%" }
  append_action: OVERWRITE_IF_EXISTS_OR_ADD
{{- end -}}
