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
{{- if and .Values.ingress.enabled (not .Values.ingress.host) }}{{ fail "ingress.host is empty, and ingress.enabled is true" }}{{ end }}
{{- if and .Values.gatewayApi.enabled (not .Values.gatewayApi.parentRefs) }}{{ fail "gatewayApi.parentRefs is empty, and gatewayApi.enabled is true" }}{{ end }}
{{- end }}
