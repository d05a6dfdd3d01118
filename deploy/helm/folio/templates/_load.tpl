{{/* The pod that sends documents to the API: (list $ name). Exit codes: see the script's --help. */}}
{{- define "folio.load" -}}
{{- $root := index . 0 -}}
{{- $values := index $root.Values (index . 1) -}}
backoffLimit: 6
activeDeadlineSeconds: 86400
podFailurePolicy:
  rules:
    # 1: some files failed (the log and the library name them); 2: wrong arguments. Another try
    # changes neither; 3, nobody answers yet, is tried again.
    - action: FailJob
      onExitCodes: {containerName: load, operator: In, values: [1, 2]}
    - action: Ignore
      onPodConditions: [{type: DisruptionTarget, status: "True"}]
template:
  metadata:
    labels:
      {{- include "folio.labels" (list $root "load") | nindent 6 }}
  spec:
    {{- include "folio.pod" (list $root "load" 10001) | nindent 4 }}
    restartPolicy: Never
    containers:
      - name: load
        {{- include "folio.image" (list $root $root.Values.image) | nindent 8 }}
        command: [python, -m, app.scripts.initialize_data]
        args:
          {{- if $values.documents }}
          - /documents
          {{- end }}
          {{- range $values.urls }}
          - --urls={{ . }}
          {{- end }}
          - --collection={{ $values.collection }}
          - --url=http://{{ include "folio.fullname" $root }}-{{ include "folio.face" $root }}:8000
          {{- if $values.delete }}
          - --delete
          {{- end }}
        envFrom:
          - configMapRef: {name: {{ include "folio.fullname" $root }}-config}
        env:
          {{- include "folio.secretEnv" (list $root "FOLIO_API_KEY" "api-key") | nindent 10 }}
        {{- include "folio.container" $root | nindent 8 }}
        resources:
          {{- toYaml $values.resources | nindent 10 }}
        volumeMounts:
          - {name: tmp, mountPath: /tmp}
          # What it remembers of web pages; without it they are only fetched again.
          - {name: tmp, mountPath: /data, subPath: data}
          {{- if $values.documents }}
          - {name: documents, mountPath: /documents, readOnly: true}
          {{- end }}
    volumes:
      - name: tmp
        emptyDir: {sizeLimit: 4Gi}
      {{- with $values.documents }}
      - name: documents
        {{- toYaml . | nindent 8 }}
      {{- end }}
{{- end }}
