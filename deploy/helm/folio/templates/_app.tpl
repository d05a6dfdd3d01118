{{/* A Deployment of Folio's image in a role with data, and its Service: (list $ role closeSeconds). */}}
{{- define "folio.app" -}}
{{- $root := index . 0 -}}
{{- $role := index . 1 -}}
{{- $values := index $root.Values $role -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  {{- include "folio.metadata" (list $root $role) | nindent 2 }}
spec:
  {{- if eq $role "all" }}
  replicas: 1
  # SQLite and Milvus Lite belong to one process.
  strategy: {type: Recreate}
  {{- else }}
  replicas: {{ include "folio.replicas" (list $root $role) }}
  strategy:
    type: RollingUpdate
    rollingUpdate: {maxUnavailable: 25%, maxSurge: 25%}
  minReadySeconds: 5
  {{- end }}
  revisionHistoryLimit: 5
  selector:
    matchLabels:
      {{- include "folio.selector" (list $root $role) | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "folio.labels" (list $root $role) | nindent 8 }}
      annotations:
        # New settings or passwords start new pods.
        folio/config: {{ include "folio.config" $root | sha256sum }}
        folio/secrets: {{ toJson $root.Values.secrets | sha256sum }}
    spec:
      {{- include "folio.pod" (list $root $role 10001) | nindent 6 }}
      {{- include "folio.spread" (list $root $role) | nindent 6 }}
      # The wait before the stop, and the application's own shutdown: at most 30 s.
      terminationGracePeriodSeconds: {{ add $values.preStopSeconds 35 }}
      containers:
        - name: folio
          {{- include "folio.image" (list $root $root.Values.image) | nindent 10 }}
          envFrom:
            - configMapRef: {name: {{ include "folio.fullname" $root }}-config}
          env:
            {{- include "folio.env" (list $root $role) | nindent 12 }}
          ports:
            - {name: http, containerPort: 8000}
          {{- include "folio.probes" $root | nindent 10 }}
          {{- include "folio.preStop" $values.preStopSeconds | nindent 10 }}
          {{- include "folio.container" $root | nindent 10 }}
          resources:
            {{- toYaml $values.resources | nindent 12 }}
          volumeMounts:
            - {name: data, mountPath: /data}
            - {name: tmp, mountPath: /tmp}
      volumes:
        - name: data
          persistentVolumeClaim:
            claimName: {{ $root.Values.persistence.existingClaim | default (printf "%s-data" (include "folio.fullname" $root)) }}
        - name: tmp
          emptyDir: {sizeLimit: 4Gi}
---
apiVersion: v1
kind: Service
metadata:
  {{- include "folio.metadata" (list $root $role) | nindent 2 }}
spec:
  {{- if eq $role "ingest" }}
  # For its figures alone.
  clusterIP: None
  {{- end }}
  {{- if eq $role "all" }}
  # The web interface can say what is still being loaded.
  publishNotReadyAddresses: true
  {{- end }}
  selector:
    {{- include "folio.selector" (list $root $role) | nindent 4 }}
  ports:
    - {name: http, port: 8000, targetPort: http}
{{- end }}

{{/* How many now: the live number where an autoscaler decides. (list $ role) */}}
{{- define "folio.replicas" -}}
{{- $root := index . 0 -}}
{{- $role := index . 1 -}}
{{- $live := dict -}}
{{- if and (eq $role "api") $root.Values.api.autoscaling.enabled -}}
{{- $live = lookup "apps/v1" "Deployment" $root.Release.Namespace (printf "%s-%s" (include "folio.fullname" $root) $role) -}}
{{- end -}}
{{- if $live -}}{{ $live.spec.replicas }}{{- else -}}{{ (index $root.Values $role).replicas }}{{- end -}}
{{- end }}

{{/* Evictions take one replica at a time: (list $ component). */}}
{{- define "folio.budget" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "folio.metadata" . | nindent 2 }}
spec:
  maxUnavailable: 1
  selector:
    matchLabels:
      {{- include "folio.selector" . | nindent 6 }}
{{- end }}
