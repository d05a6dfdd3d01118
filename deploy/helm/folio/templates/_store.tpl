{{/* A StatefulSet of one pod and its headless Service: (list $ component uid ports mountPath container).
`container` is the name of a template with the rest of the container. */}}
{{- define "folio.store" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $ports := index . 3 -}}
{{- $values := index $root.Values $component -}}
apiVersion: apps/v1
kind: StatefulSet
metadata:
  {{- include "folio.metadata" (list $root $component) | nindent 2 }}
spec:
  replicas: 1
  serviceName: {{ include "folio.fullname" $root }}-{{ $component }}
  selector:
    matchLabels:
      {{- include "folio.selector" (list $root $component) | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "folio.labels" (list $root $component) | nindent 8 }}
    spec:
      {{- include "folio.pod" (list $root $component (index . 2)) | nindent 6 }}
      terminationGracePeriodSeconds: 60
      containers:
        - name: {{ $component }}
          {{- include "folio.image" (list $root $values.image) | nindent 10 }}
          ports:
            {{- range $name, $port := $ports }}
            - {name: {{ $name }}, containerPort: {{ $port }}}
            {{- end }}
          {{- include (printf "folio.%s" $component) $root | nindent 10 }}
          {{- include "folio.container" $root | nindent 10 }}
          resources:
            {{- toYaml $values.resources | nindent 12 }}
          volumeMounts:
            - {name: data, mountPath: {{ index . 4 }}}
            - {name: tmp, mountPath: /tmp}
            {{- if eq $component "postgres" }}
            - {name: tmp, mountPath: /var/run/postgresql, subPath: run}
            {{- end }}
      volumes:
        - name: tmp
          emptyDir: {sizeLimit: 1Gi}
  volumeClaimTemplates:
    - metadata:
        name: data
        labels:
          {{- include "folio.selector" (list $root $component) | nindent 10 }}
      spec:
        accessModes: [ReadWriteOnce]
        {{- with $values.persistence.storageClass }}
        storageClassName: {{ . }}
        {{- end }}
        resources: {requests: {storage: {{ $values.persistence.size }}}}
---
apiVersion: v1
kind: Service
metadata:
  {{- include "folio.metadata" (list $root $component) | nindent 2 }}
spec:
  clusterIP: None
  selector:
    {{- include "folio.selector" (list $root $component) | nindent 4 }}
  ports:
    {{- range $name, $port := $ports }}
    - {name: {{ $name }}, port: {{ $port }}, targetPort: {{ $name }}}
    {{- end }}
{{- end }}
