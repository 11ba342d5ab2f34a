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

{{/*
A pool's StatefulSet. Kubernetes puts eleven more letters into a label of its pods, which may have 63; what is longer ends in a
hash of the whole.
*/}}
{{- define "janus.stageName" -}}
{{- $name := printf "%s-stage-%s" (include "janus.fullname" .root) .pool }}
{{- if gt (len $name) 52 }}
{{- $name = printf "%s-%s" ($name | trunc 43 | trimSuffix "-") (sha256sum $name | trunc 8) }}
{{- end }}
{{- $name }}
{{- end }}

{{- define "janus.pipelines" -}}
{{- if .Values.coordinator.pipelines }}{{ .Values.coordinator.pipelines }}{{ else }}{{ len .Values.pools }}{{ end }}
{{- end }}

{{/*
Mebibytes that a stage of the pool needs for layers and KV, as the planner counts them: with a tenth more for a cut that is
not even, and half a gibibyte (64 MiB for the small model) for everything else. All layers fit on one node less than a pipeline
of the pool has, so that each can hand its layers over before it goes.
*/}}
{{- define "janus.stageMemoryMi" -}}
{{- $sizes := include "janus.sizes" .root | fromYaml }}
{{- $format := default "bf16" .root.Values.model.weights }}
{{- $weights := get $sizes.weights $format }}
{{- $kv := int64 (get $sizes.kv .root.Values.model.kv) }}
{{- $layers := int64 $sizes.layers }}
{{- $pipelines := int64 (include "janus.pipelines" .root) }}
{{- $pools := len .root.Values.pools }}
{{- $each := div (sub (add $pipelines $pools) 1) $pools }}
{{- $stages := div (int64 (include "janus.leastReplicas" .pool)) $each }}
{{- if .root.Values.drain.spareMemory }}{{ $stages = sub $stages 1 }}{{ end }}
{{- with .root.Values.coordinator.stages }}{{ $stages = min $stages (int64 .) }}{{ end }}
{{- $stages = max 1 $stages }}
{{- $share := div (sub (add $layers $stages) 1) $stages }}
{{- $perLayer := add (int64 $weights.layer) (mul $kv (int64 .root.Values.coordinator.kvPositions)) }}
{{- $bytes := add (mul $share $perLayer) (int64 $weights.embeddings) (int64 $weights.heads) }}
{{- $rest := ternary 64 512 (eq .root.Values.model.preset "shapes") }}
{{- add (div (div (mul $bytes 11) 10) 1048576) $rest }}
{{- end }}

{{/* How few pods of a role or pool there may be. */}}
{{- define "janus.leastReplicas" -}}
{{- ternary .autoscaling.minReplicas .replicas .autoscaling.enabled }}
{{- end }}

{{- define "janus.stageMemory" -}}
{{- default (printf "%sMi" (include "janus.stageMemoryMi" .)) .pool.memory }}
{{- end }}

{{/* The same, in the units of `--memory`; the schema lets in no other. */}}
{{- define "janus.memoryFlag" -}}
{{- regexReplaceAll "(Ki|Mi|Gi|M|G)$" . "${1}B" }}
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

{{/* What is under way at SIGTERM may take so long. */}}
{{- define "janus.longestPicture" -}}
{{- $sizes := include "janus.sizes" . | fromYaml }}
{{- int64 (default $sizes.longestPictureSeconds .Values.drain.longestPictureSeconds) }}
{{- end }}

{{/* A picture, the hand-over's own time, and the pause before it. */}}
{{- define "janus.terminationSeconds" -}}
{{- add (int64 (include "janus.longestPicture" .)) (int64 .Values.drain.preStopSeconds) 30 }}
{{- end }}

{{- define "janus.tls" -}}
{{- if ne .Values.tls.mode "none" }}true{{ end }}
{{- end }}

{{- define "janus.tlsSecret" -}}
{{- printf "%s-%s" (default (printf "%s-tls" (include "janus.fullname" .root)) .root.Values.tls.secretPrefix) .role }}
{{- end }}

{{/* Whether the namespace has a Secret, with a key if one is given. Where manifests are rendered without the cluster, it never has. */}}
{{- define "janus.hasSecret" -}}
{{- with lookup "v1" "Secret" .root.Release.Namespace .name }}{{ if or (not $.key) (hasKey .data $.key) }}true{{ end }}{{ end }}
{{- end }}

{{/*
A name in the certificates of those who may use the bundled etcd; the address of nobody. Empty if their certificates may lack it,
because the Job did not make them: the authority that it keeps says so.
*/}}
{{- define "janus.etcdClientName" -}}
{{- $name := printf "etcd-client.%s" (include "janus.fullname" .) }}
{{- if eq .Values.tls.mode "certManager" }}
{{- $name }}
{{- else if eq .Values.tls.mode "job" }}
{{- $authority := include "janus.tlsSecret" (dict "root" . "role" "ca") }}
{{- $coordinator := include "janus.tlsSecret" (dict "root" . "role" "coordinator") }}
{{- $others := or (include "janus.hasSecret" (dict "root" . "name" $authority)) (include "janus.hasSecret" (dict "root" . "name" $coordinator)) }}
{{- if or (not $others) (include "janus.hasSecret" (dict "root" . "name" $authority "key" "etcd-client")) }}{{ $name }}{{ end }}
{{- end }}
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
