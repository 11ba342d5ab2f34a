{{- define "janus.coordinatorArgs" -}}
- coordinator
- --name=$(POD_NAME)
- --listen=0.0.0.0:{{ include "janus.port.grpc" . }}
- --advertise=$(POD_IP):{{ include "janus.port.grpc" . }}
- --health=0.0.0.0:{{ include "janus.port.health" . }}
- --grace={{ include "janus.longestPicture" . }}
- --pipelines={{ include "janus.pipelines" . }}
{{- with .Values.coordinator.stages }}
- --stages={{ . }}
{{- end }}
- --spares={{ .Values.coordinator.spares }}
- --kv-positions={{ .Values.coordinator.kvPositions }}
- --log-every={{ .Values.coordinator.logEverySeconds }}
- --keep-results={{ .Values.coordinator.keepResultsSeconds }}
- --other-numerics={{ .Values.coordinator.otherNumerics }}
{{- with include "janus.jobsUrl" . }}
- --jobs={{ . }}
- --jobs-window={{ $.Values.coordinator.jobs.window }}
- --jobs-keep={{ $.Values.coordinator.jobs.keepDays }}
{{- end }}
{{- if include "janus.tls" . }}
- --operator-key-file=/etc/janus/operator/key
{{- end }}
{{ include "janus.nodeArgs" . }}
{{ include "janus.commonArgs" . }}
{{- end }}

{{- define "janus.jobsUrl" -}}
{{- if .Values.coordinator.jobs.claimName }}file:///var/lib/janus/jobs{{ else }}{{ .Values.coordinator.jobs.url }}{{ end }}
{{- end }}

{{- define "janus.operatorSecret" -}}
{{- default (printf "%s-operator" (include "janus.fullname" .)) .Values.operatorKey.existingSecret }}
{{- end }}

{{- define "janus.operatorVolume" -}}
- name: operator
  secret: {secretName: {{ include "janus.operatorSecret" . }}, defaultMode: 0440, items: [{key: {{ .Values.operatorKey.key }}, path: key}]}
{{- end }}

{{- define "janus.gatewayArgs" -}}
- gateway
- --endpoint={{ include "janus.coordinators" . }}
- --listen=0.0.0.0:{{ include "janus.port.http" . }}
- --grace={{ include "janus.longestPicture" . }}
{{ include "janus.commonArgs" . }}
{{- end }}
