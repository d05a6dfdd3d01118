{{/* What every pod has: (list $ component uid). */}}
{{- define "folio.pod" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $uid := index . 2 -}}
serviceAccountName: {{ include "folio.fullname" $root }}
automountServiceAccountToken: false
# A Service named folio would set FOLIO_PORT to an address.
enableServiceLinks: false
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: {{ $uid }}
  runAsGroup: {{ $uid }}
  fsGroup: {{ $uid }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- if eq $component "generate" }}
{{- with merge (deepCopy $root.Values.generate.nodeSelector) $root.Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with concat $root.Values.tolerations $root.Values.generate.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- else }}
{{- with $root.Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $root.Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}

{{/* Replicas on different nodes and zones: (list $ component). */}}
{{- define "folio.spread" -}}
{{- $kind := (index . 0).Values.antiAffinity -}}
{{- if eq $kind "required" }}
affinity:
  podAntiAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      - topologyKey: kubernetes.io/hostname
        # Old and new replicas may meet on a node during an update (from Kubernetes 1.31 on).
        matchLabelKeys: [pod-template-hash]
        labelSelector:
          matchLabels:
            {{- include "folio.selector" . | nindent 12 }}
{{- else if eq $kind "preferred" }}
affinity:
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels:
              {{- include "folio.selector" . | nindent 14 }}
{{- end }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: topology.kubernetes.io/zone
    whenUnsatisfiable: ScheduleAnyway
    matchLabelKeys: [pod-template-hash]
    labelSelector:
      matchLabels:
        {{- include "folio.selector" . | nindent 8 }}
{{- end }}

{{/* Of every container. */}}
{{- define "folio.container" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{/* Folio's own routes; loading models does not count as being dead. */}}
{{- define "folio.probes" -}}
startupProbe:
  httpGet: {path: /health, port: http}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /health, port: http}
  periodSeconds: 15
  timeoutSeconds: 5
  failureThreshold: 4
readinessProbe:
  httpGet: {path: /ready, port: http}
  periodSeconds: 10
  timeoutSeconds: 10
  failureThreshold: 3
{{- end }}

{{/* While it waits the pod gets no new requests and goes on with those it has: (seconds). */}}
{{- define "folio.preStop" -}}
{{- if . }}
lifecycle:
  preStop:
    exec: {command: [sleep, {{ . | quote }}]}
{{- end }}
{{- end }}

{{/* A variable from the Secret: (list $ NAME key). The application takes an empty one for none. */}}
{{- define "folio.secretEnv" -}}
- name: {{ index . 1 }}
  valueFrom:
    secretKeyRef: {name: {{ include "folio.secret" (index . 0) }}, key: {{ index . 2 }}, optional: true}
{{- end }}

{{/* As many threads as the limit has cores, not as the node has. */}}
{{- define "folio.threads" -}}
{{- if not (hasKey .Values.config "FOLIO_NUM_THREADS") }}
- name: FOLIO_NUM_THREADS
  valueFrom:
    resourceFieldRef: {resource: limits.cpu}
{{- end }}
{{- end }}

{{/* The environment of the roles with data: (list $ role). */}}
{{- define "folio.env" -}}
{{- $root := index . 0 -}}
{{- $v := $root.Values -}}
{{- $name := include "folio.fullname" $root -}}
- name: FOLIO_ROLE
  value: {{ index . 1 }}
{{- include "folio.threads" $root }}
{{- if or $v.postgres.enabled $v.postgres.external.url }}
- name: PGPASSWORD
  valueFrom:
    secretKeyRef: {name: {{ include "folio.secret" $root }}, key: postgres-password}
- name: FOLIO_DATABASE_URL
  value: {{ $v.postgres.external.url | default (printf "postgresql://folio@%s-postgres:5432/folio" $name) | quote }}
{{- end }}
{{- if or $v.milvus.enabled $v.milvus.external.uri }}
- name: MILVUS_PASSWORD
  valueFrom:
    secretKeyRef: {name: {{ include "folio.secret" $root }}, key: milvus-password}
- name: FOLIO_MILVUS_URI
  value: {{ $v.milvus.external.uri | default (printf "http://%s-milvus:19530" $name) | quote }}
- name: FOLIO_MILVUS_TOKEN
  value: {{ printf "%s:$(MILVUS_PASSWORD)" ($v.milvus.enabled | ternary "root" $v.milvus.external.user) | quote }}
{{- end }}
{{- if $v.generate.enabled }}
- name: LLM_BASE_URL
  value: http://{{ $name }}-generate:8000/v1
{{- end }}
{{ include "folio.secretEnv" (list $root "FOLIO_API_KEY" "api-key") }}
{{ include "folio.secretEnv" (list $root "LLM_API_KEY" "llm-api-key") }}
{{ include "folio.secretEnv" (list $root "FOLIO_DOCUMENT_PASSWORDS" "document-passwords") }}
{{- end }}

