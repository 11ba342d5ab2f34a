{{/* Names, labels, and what several objects share. */}}

{{- define "janus.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "janus.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "janus.cluster" -}}
{{- default (include "janus.fullname" .) .Values.clusterName }}
{{- end }}

{{- define "janus.selector" -}}
app.kubernetes.io/name: {{ include "janus.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "janus.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "janus.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: {{ include "janus.fullname" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "janus.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end }}
{{- end }}

{{/* Ports, the same in every pod. */}}
{{- define "janus.port.grpc" -}}7070{{- end }}
{{- define "janus.port.health" -}}7079{{- end }}
{{- define "janus.port.http" -}}8080{{- end }}

{{- define "janus.sizes" -}}
{{- $all := .Files.Get "files/sizes.yaml" | fromYaml }}
{{- get $all .Values.model.preset | toYaml }}
{{- end }}

{{/* Each pool with the defaults it does not replace, as a list in JSON. */}}
{{- define "janus.pools" -}}
{{- $defaults := .Values.poolDefaults }}
{{- $pools := list }}
{{- range .Values.pools }}
{{- $pools = append $pools (mergeOverwrite (deepCopy $defaults) (deepCopy .)) }}
{{- end }}
{{- dict "pools" $pools | toJson }}
{{- end }}

{{- define "janus.pipelines" -}}
{{- if .Values.coordinator.pipelines }}{{ .Values.coordinator.pipelines }}{{ else }}{{ len .Values.pools }}{{ end }}
{{- end }}

{{/*
Mebibytes that a stage of the pool needs for layers and KV, as the planner counts them: with a tenth more for a cut that is
not even, and half a gibibyte (64 MiB for the small model) for everything else.
*/}}
{{- define "janus.stageMemoryMi" -}}
{{- $sizes := include "janus.sizes" .root | fromYaml }}
{{- $format := default "bf16" .root.Values.model.weights }}
{{- $weights := get $sizes.weights $format }}
{{- $kv := int64 (get $sizes.kv .root.Values.model.kv) }}
{{- $layers := int64 $sizes.layers }}
{{- $stages := int64 .pool.replicas }}
{{- if .root.Values.coordinator.stages }}{{ $stages = int64 .root.Values.coordinator.stages }}{{ end }}
{{- $share := div (sub (add $layers $stages) 1) $stages }}
{{- $perLayer := add (int64 $weights.layer) (mul $kv (int64 .root.Values.coordinator.kvPositions)) }}
{{- $bytes := add (mul $share $perLayer) (int64 $weights.embeddings) (int64 $weights.heads) }}
{{- $rest := ternary 64 512 (eq .root.Values.model.preset "shapes") }}
{{- add (div (div (mul $bytes 11) 10) 1048576) $rest }}
{{- end }}

{{- define "janus.stageMemory" -}}
{{- default (printf "%sMi" (include "janus.stageMemoryMi" .)) .pool.memory }}
{{- end }}

{{/* The same, in the units of `--memory`. */}}
{{- define "janus.memoryFlag" -}}
{{- . | replace "Gi" "GiB" | replace "Mi" "MiB" | replace "Ki" "KiB" }}
{{- end }}

{{/* Seconds until a pod has read its weights: ten, and one for each 50 MB of the checkpoint (read, hashed, repacked). */}}
{{- define "janus.startupSeconds" -}}
{{- if .Values.startup.seconds }}
{{- .Values.startup.seconds }}
{{- else }}
{{- $sizes := include "janus.sizes" . | fromYaml }}
{{- $bytes := add (mul (int64 $sizes.layers) (int64 $sizes.weights.bf16.layer)) (int64 $sizes.weights.bf16.embeddings) (int64 $sizes.weights.bf16.heads) }}
{{- add 60 (div $bytes 50000000) }}
{{- end }}
{{- end }}

{{/* A picture, the hand-over's own time, and the pause before it. */}}
{{- define "janus.terminationSeconds" -}}
{{- add (int64 .Values.drain.longestPictureSeconds) (int64 .Values.drain.preStopSeconds) 30 }}
{{- end }}

{{- define "janus.tls" -}}
{{- if ne .Values.tls.mode "none" }}true{{ end }}
{{- end }}

{{- define "janus.tlsSecret" -}}
{{- printf "%s-%s" (default (printf "%s-tls" (include "janus.fullname" .root)) .root.Values.tls.secretPrefix) .role }}
{{- end }}

{{- define "janus.etcdUrls" -}}
{{- if .Values.etcd.bundled }}
{{- $scheme := ternary "https" "http" (eq (include "janus.tls" .) "true") }}
{{- $name := include "janus.fullname" . }}
{{- $urls := list }}
{{- range until 3 }}
{{- $urls = append $urls (printf "%s://%s-etcd-%d.%s-etcd.%s.svc:2379" $scheme $name . $name $.Release.Namespace) }}
{{- end }}
{{- join "," $urls }}
{{- else }}
{{- join "," .Values.externalEtcd.endpoints }}
{{- end }}
{{- end }}

{{- define "janus.coordinators" -}}
{{ include "janus.fullname" . }}-coordinator.{{ .Release.Namespace }}.svc:{{ include "janus.port.grpc" . }}
{{- end }}

{{- define "janus.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "janus.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}
