{{- define "folio.fullname" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" (.Release.Name | trunc 34 | trimSuffix "-") .Chart.Name }}{{ end }}
{{- end }}

{{/* The labels of a selector: (list $ component). */}}
{{- define "folio.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ $root.Chart.Name }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* metadata of an object: (list $ component [name]). */}}
{{- define "folio.metadata" -}}
{{- $root := index . 0 -}}
name: {{ include "folio.fullname" $root }}-{{ last . }}
namespace: {{ $root.Release.Namespace }}
labels:
  {{- include "folio.labels" (list $root (index . 1)) | nindent 2 }}
{{- end }}

{{- define "folio.labels" -}}
{{- $root := index . 0 -}}
{{ include "folio.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ $root.Chart.Name }}-{{ $root.Chart.Version }}
{{- end }}

{{/* An image: (list $ image). */}}
{{- define "folio.image" -}}
{{- $image := index . 1 -}}
image: {{ printf "%s:%s" $image.repository (default (index . 0).Chart.AppVersion $image.tag) }}
imagePullPolicy: {{ $image.pullPolicy }}
{{- end }}

{{- define "folio.secret" -}}
{{ .Values.secrets.existing | default (printf "%s-secrets" (include "folio.fullname" .)) }}
{{- end }}

{{/* The component that serves HTTP: all, or api. */}}
{{- define "folio.face" -}}
{{ if eq .Values.mode "all" }}all{{ else }}api{{ end }}
{{- end }}

{{/* Stops what cannot run, with the way out. Included once, by the ConfigMap. */}}
{{- define "folio.check" -}}
{{- $v := .Values -}}
{{- if and $v.milvus.enabled $v.milvus.external.uri }}{{ fail "milvus.enabled and milvus.external.uri are both set: choose one" }}{{ end }}
{{- if and $v.postgres.enabled $v.postgres.external.url }}{{ fail "postgres.enabled and postgres.external.url are both set: choose one" }}{{ end }}
{{- if eq $v.mode "split" }}
{{- if not (or $v.milvus.enabled $v.milvus.external.uri) }}{{ fail "mode split shares one index: set milvus.enabled or milvus.external.uri" }}{{ end }}
{{- if not (or $v.postgres.enabled $v.postgres.external.url) }}{{ fail "mode split shares one database: set postgres.enabled or postgres.external.url" }}{{ end }}
{{- end }}
{{- if and $v.generate.enabled $v.config.LLM_BASE_URL }}{{ fail "generate.enabled sets LLM_BASE_URL itself: remove config.LLM_BASE_URL, or disable generate" }}{{ end }}
{{- if and $v.generate.enabled (has (toString ($v.config.LLM_MODEL | default "auto")) (list "auto" "extractive")) }}{{ fail "generate.enabled needs a model: set config.LLM_MODEL to a hub name or a folder" }}{{ end }}
{{- if and $v.generate.enabled (gt (int $v.generate.replicas) 1) $v.generate.models.size (ne $v.generate.models.accessMode "ReadWriteMany") }}{{ fail "generate.replicas above 1 share the claim of models: set generate.models.accessMode to ReadWriteMany, or its size to \"\"" }}{{ end }}
{{- if and $v.ingress.enabled (not $v.ingress.hosts) }}{{ fail "ingress.enabled needs a name: set ingress.hosts" }}{{ end }}
{{- if gt (int $v.api.autoscaling.minReplicas) (int $v.api.autoscaling.maxReplicas) }}{{ fail (printf "api.autoscaling.minReplicas %v is above maxReplicas %v" $v.api.autoscaling.minReplicas $v.api.autoscaling.maxReplicas) }}{{ end }}
{{- range $name := list "initialize" "sync" }}
{{- $job := index $v $name }}
{{- if and $job.enabled (not $job.urls) (not $job.documents) }}{{ fail (printf "%s.enabled has nothing to load: set %s.urls or %s.documents" $name $name $name) }}{{ end }}
{{- end }}
{{- end }}
