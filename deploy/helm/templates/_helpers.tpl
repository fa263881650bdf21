{{/* At most 33 characters: CloudNativePG allows 50, and -notifications-db is appended. */}}
{{- define "forage.name" -}}
{{- (contains "forage" .Release.Name | ternary .Release.Name (printf "%s-forage" .Release.Name)) | trunc 33 | trimSuffix "-" }}
{{- end }}

{{/* For one part: (dict "root" $ "part" "orders"). */}}
{{- define "forage.selector" -}}
app.kubernetes.io/name: forage
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end }}

{{- define "forage.labels" -}}
{{ include "forage.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{/* For every resource: (dict "root" $ "part" "orders"), with "name" if it is not the part's. */}}
{{- define "forage.metadata" -}}
name: {{ include "forage.name" .root }}-{{ .name | default .part }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "forage.labels" . | nindent 2 }}
{{- end }}

{{- define "forage.image" -}}
{{- $values := .root.Values.image }}
{{- required "image.registry is not set: the registry with the images forage and forage-frontend, like ghcr.io/your-company." $values.registry }}/{{ .image }}
{{- with index $values.digests .image }}@{{ . }}{{ else }}:{{ $values.tag | default $.root.Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "forage.is_production" -}}
{{- if ne .Values.settings.ENVIRONMENT "development" }}true{{ end }}
{{- end }}

{{- define "forage.url" -}}
{{- required "url is not set: the shop's own address, like https://shop.example.com." .Values.url | trimSuffix "/" }}
{{- end }}

{{- define "forage.hostname" -}}
{{- (include "forage.url" . | urlParse).hostname }}
{{- end }}

{{/* A full name, because nginx does not use the search list of resolv.conf. */}}
{{- define "forage.gateway_host" -}}
{{ include "forage.name" . }}-gateway.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}
{{- end }}

{{- define "forage.broker" -}}
{{ include "forage.name" . }}-rabbitmq
{{- end }}

{{- define "forage.broker_tls_secret" -}}
{{- if .Values.rabbitmq.enabled }}{{ .Values.rabbitmq.tlsSecret }}{{ else }}{{ .Values.tls.broker.name }}{{ end }}
{{- end }}

{{- define "forage.broker_port" -}}
{{- if .Values.rabbitmq.enabled }}{{ ternary 5671 5672 (ne .Values.rabbitmq.tlsSecret "") }}{{ else }}{{ .Values.networkPolicy.ports.broker }}{{ end }}
{{- end }}

{{- define "forage.database_port" -}}
{{- .Values.cloudnativepg.enabled | ternary 5432 .Values.networkPolicy.ports.database }}
{{- end }}

{{- define "forage.broker_host_uri" -}}
{{ ternary "amqps" "amqp" (ne .Values.rabbitmq.tlsSecret "") }}://%s{{ include "forage.broker" . }}.{{ .Release.Namespace }}.svc:{{ include "forage.broker_port" . }}/
{{- end }}

{{/* True if the release makes databases or Secrets: they do not exist yet when the hooks before it run. */}}
{{- define "forage.migrates_late" -}}
{{- if or .Values.cloudnativepg.enabled .Values.externalSecrets.enabled }}true{{ end }}
{{- end }}

{{- define "forage.from_secret" -}}
- name: {{ .variable }}
  valueFrom:
    secretKeyRef: { name: {{ .name }}, key: {{ .key }} }
{{- end }}

{{/* The environment of secret settings: (dict "root" $ "secrets" (list "AMQP_URI") "maybe" (list)). */}}
{{- define "forage.secrets" -}}
{{- $root := .root }}
{{- range .secrets }}
{{- $service := trimSuffix "_DB_URI" . | lower }}
{{- if and (eq . "AMQP_URI") $root.Values.rabbitmq.enabled }}
{{- $user := printf "%s-default-user" (include "forage.broker" $root) }}
{{ include "forage.from_secret" (dict "variable" "BROKER_USER" "name" $user "key" "username") }}
{{ include "forage.from_secret" (dict "variable" "BROKER_PASSWORD" "name" $user "key" "password") }}
- name: AMQP_URI
  value: {{ printf (include "forage.broker_host_uri" $root) "$(BROKER_USER):$(BROKER_PASSWORD)@" }}
{{- else if and (hasSuffix "_DB_URI" .) $root.Values.cloudnativepg.enabled }}
{{- $cluster := printf "%s-%s-db" (include "forage.name" $root) $service }}
{{ include "forage.from_secret" (dict "variable" (printf "%s_DB_PASSWORD" (upper $service)) "name" (printf "%s-app" $cluster) "key" "password") }}
- name: {{ . }}
  value: postgresql+psycopg2://{{ $service }}:$({{ upper $service }}_DB_PASSWORD)@{{ $cluster }}-rw:5432/{{ $service }}_db?sslmode=verify-full&sslrootcert=/etc/forage/tls/{{ $service }}-db.crt
{{- else }}
{{- $secret := index $root.Values.secrets . }}
{{- $name := required (printf "secrets.%s.name is not set: the Secret that contains it." .) $secret.name }}
{{ include "forage.from_secret" (dict "variable" . "name" $name "key" $secret.key) }}
{{- end }}
{{- end }}
{{- range $variable := .maybe }}
{{- with index $root.Values.secrets $variable }}
{{- if .name }}
{{ include "forage.from_secret" (dict "variable" $variable "name" .name "key" .key) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* The authorities of the certificates that a pod verifies: (dict "root" $ "part" "orders" "secrets" (list "AMQP_URI")). */}}
{{- define "forage.authorities" -}}
{{- $root := .root }}
{{- $external := false }}
{{- range .secrets }}
{{- if eq . "AMQP_URI" }}
{{- with include "forage.broker_tls_secret" $root }}
- secret: { name: {{ . }}, items: [{ key: {{ $root.Values.rabbitmq.enabled | ternary "ca.crt" $root.Values.tls.broker.key }}, path: broker.crt }] }
{{- end }}
{{- else if and (hasSuffix "_DB_URI" .) $root.Values.cloudnativepg.enabled }}
{{- $database := printf "%s-db" (trimSuffix "_DB_URI" . | lower) }}
- secret: { name: {{ include "forage.name" $root }}-{{ $database }}-ca, items: [{ key: ca.crt, path: {{ $database }}.crt }] }
{{- else if hasSuffix "_DB_URI" . }}
{{- $external = true }}
{{- end }}
{{- end }}
{{- if and (eq .part "notifications") $root.Values.tls.mail.name }}
- secret: { name: {{ $root.Values.tls.mail.name }}, items: [{ key: {{ $root.Values.tls.mail.key }}, path: mail.crt }] }
{{- end }}
{{- if $external }}
{{- with $root.Values.tls.database }}
{{- if .name }}
- secret: { name: {{ .name }}, items: [{ key: {{ .key }}, path: database.crt }] }
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* For every pod: only /tmp is writable, no process runs as root, no pod has a Kubernetes token. */}}
{{- define "forage.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile: { type: RuntimeDefault }
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "forage.container" -}}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: { drop: [ALL] }
{{- end }}

{{/* (dict "root" $ "secrets" (list "AMQP_URI")) */}}
{{- define "forage.mounts" -}}
volumeMounts:
  - { name: tmp, mountPath: /tmp }
  {{- if include "forage.authorities" . }}
  - { name: tls, mountPath: /etc/forage/tls, readOnly: true }
  {{- end }}
{{- end }}

{{- define "forage.volumes" -}}
volumes:
  - name: tmp
    emptyDir: { sizeLimit: 64Mi }
  {{- with include "forage.authorities" . }}
  - name: tls
    projected:
      sources:
        {{- . | nindent 8 }}
  {{- end }}
{{- end }}

{{- define "forage.trusted_proxies" -}}
{{- .Values.settings.TRUSTED_PROXIES -}}
{{- /* A sidecar passes requests to its own pod from these addresses. */ -}}
{{- if .Values.istio.enabled }},127.0.0.6,::6{{ end -}}
{{- end }}
