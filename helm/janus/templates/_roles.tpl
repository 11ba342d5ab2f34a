{{- define "janus.coordinatorArgs" -}}
- coordinator
- --name=$(POD_NAME)
- --listen=0.0.0.0:{{ include "janus.port.grpc" . }}
- --advertise=$(POD_IP):{{ include "janus.port.grpc" . }}
- --health=0.0.0.0:{{ include "janus.port.health" . }}
- --pipelines={{ include "janus.pipelines" . }}
{{- with .Values.coordinator.stages }}
- --stages={{ . }}
{{- end }}
- --spares={{ .Values.coordinator.spares }}
- --kv-positions={{ .Values.coordinator.kvPositions }}
- --log-every={{ .Values.coordinator.logEverySeconds }}
{{ include "janus.nodeArgs" . }}
{{ include "janus.commonArgs" . }}
{{- end }}

{{- define "janus.gatewayArgs" -}}
- gateway
- --endpoint={{ include "janus.coordinators" . }}
- --listen=0.0.0.0:{{ include "janus.port.http" . }}
{{ include "janus.commonArgs" . }}
{{- end }}
