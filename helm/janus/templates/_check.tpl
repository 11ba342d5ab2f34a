{{/* What the schema cannot say: keys that were removed, and values that do not go together. */}}
{{- define "janus.check" -}}
{{- $removed := dict
  "metricsPort" "metrics.port"
  "apiKey" "operatorKey"
}}
{{- range $key, $now := $removed }}
{{- if hasKey $.Values $key }}{{ fail (printf "%s was removed: set %s instead" $key $now) }}{{ end }}
{{- end }}
{{- $model := .Values.model }}
{{- if and (ne $model.source "builtin") (not $model.digest) }}
{{- fail "model.digest is empty: set it to the SHA-256 that `janus inspect --model DIR` prints, so that no pod serves another checkpoint" }}
{{- end }}
{{- if and (eq $model.source "builtin") (ne $model.preset "shapes") }}
{{- fail (printf "model.source is builtin, which is the model shapes, and model.preset is %s: set model.source to pvc, hostPath, image or pull" $model.preset) }}
{{- end }}
{{- if and (eq $model.source "pvc") (not $model.pvc.claimName) }}{{ fail "model.pvc.claimName is empty, and model.source is pvc" }}{{ end }}
{{- if and (eq $model.source "hostPath") (not $model.hostPath.path) }}{{ fail "model.hostPath.path is empty, and model.source is hostPath" }}{{ end }}
{{- if and (eq $model.source "image") (not $model.image.reference) }}{{ fail "model.image.reference is empty, and model.source is image" }}{{ end }}
{{- if and (eq $model.source "pull") (not $model.pull.repository) }}{{ fail "model.pull.repository is empty, and model.source is pull" }}{{ end }}
{{- if and (not .Values.etcd.bundled) (not .Values.externalEtcd.endpoints) }}
{{- fail "etcd.bundled is false and externalEtcd.endpoints is empty: a cluster needs an etcd" }}
{{- end }}
{{- if and .Values.externalEtcd.clientCertificate (not .Values.externalEtcd.tlsSecret) }}
{{- fail "externalEtcd.clientCertificate needs externalEtcd.tlsSecret" }}
{{- end }}
{{- $jobs := .Values.coordinator.jobs }}
{{- if and $jobs.url $jobs.claimName }}{{ fail "coordinator.jobs.url and coordinator.jobs.claimName: set one" }}{{ end }}
{{- $names := list }}
{{- range .Values.pools }}
{{- if has .name $names }}{{ fail (printf "pools: two are called %s" .name) }}{{ end }}
{{- $names = append $names .name }}
{{- end }}
{{- $most := 0 }}
{{- range $pool := (include "janus.pools" . | fromJson).pools }}
{{- $scaling := $pool.autoscaling }}
{{- $most = add $most (ternary $scaling.maxReplicas $pool.replicas $scaling.enabled) }}
{{- include "janus.checkScaling" (dict "root" $ "name" (printf "pools (%s)" $pool.name) "scaling" $scaling) }}
{{- end }}
{{- range $role := list "encoder" "decoder" "gateway" }}
{{- include "janus.checkScaling" (dict "root" $ "name" $role "scaling" (get $.Values $role).autoscaling) }}
{{- end }}
{{- $pipelines := int64 (include "janus.pipelines" .) }}
{{- $needed := mul $pipelines (int64 .Values.coordinator.stages) }}
{{- if gt $needed $most }}
{{- fail (printf "coordinator.stages is %v and there are %v pipelines, which takes %v stage pods, and the pools have no more than %v" .Values.coordinator.stages $pipelines $needed $most) }}
{{- end }}
{{- if has (toString .Values.metrics.port) (list (include "janus.port.grpc" .) (include "janus.port.health" .) (include "janus.port.http" .)) }}
{{- fail (printf "metrics.port is %v, which another port of the pods has already" .Values.metrics.port) }}
{{- end }}
{{- if and .Values.ingress.enabled (not .Values.ingress.host) }}{{ fail "ingress.host is empty, and ingress.enabled is true" }}{{ end }}
{{- if and .Values.gatewayApi.enabled (not .Values.gatewayApi.parentRefs) }}{{ fail "gatewayApi.parentRefs is empty, and gatewayApi.enabled is true" }}{{ end }}
{{- end }}

{{- define "janus.checkScaling" -}}
{{- if .scaling.enabled }}
{{- if gt (int64 .scaling.minReplicas) (int64 .scaling.maxReplicas) }}
{{- fail (printf "%s: autoscaling.minReplicas is %v and more than autoscaling.maxReplicas, %v" .name .scaling.minReplicas .scaling.maxReplicas) }}
{{- end }}
{{- if and .scaling.targetBusyPercent (not .root.Values.metrics.port) }}
{{- fail (printf "%s: autoscaling goes by metrics, and metrics.port is 0" .name) }}
{{- end }}
{{- end }}
{{- end }}
