{{/* What pods of every role have in common. */}}

{{/* Where the checkpoint is, for --model. */}}
{{- define "janus.modelPath" -}}
{{- if eq .Values.model.source "builtin" }}shapes
{{- else if eq .Values.model.source "pull" }}/models/checkpoint
{{- else if .Values.model.subPath }}/models/{{ .Values.model.subPath }}
{{- else }}/models
{{- end }}
{{- end }}

{{- define "janus.modelVolume" -}}
{{- $model := .Values.model }}
{{- if eq $model.source "pvc" }}
- name: model
  persistentVolumeClaim: {claimName: {{ $model.pvc.claimName | quote }}, readOnly: true}
{{- else if eq $model.source "hostPath" }}
- name: model
  hostPath: {path: {{ $model.hostPath.path | quote }}, type: Directory}
{{- else if eq $model.source "image" }}
- name: model
  image: {reference: {{ $model.image.reference | quote }}, pullPolicy: {{ $model.image.pullPolicy }}}
{{- else if eq $model.source "pull" }}
- name: model
  emptyDir: {sizeLimit: {{ $model.pull.sizeLimit }}}
{{- end }}
{{- end }}

{{/* Fetches the checkpoint, if that is asked for, and compares its digest, before anything else starts. */}}
{{- define "janus.modelContainers" -}}
{{- $model := .Values.model }}
{{- if eq $model.source "pull" }}
- name: pull
  image: {{ include "janus.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  args: [pull, {{ $model.pull.repository | quote }}, --revision, {{ $model.pull.revision | quote }}, --to, {{ include "janus.modelPath" . | quote }}]
  env:
    - {name: HF_HOME, value: /models/.cache}
    {{- with $model.pull.endpoint }}
    - {name: HF_ENDPOINT, value: {{ . | quote }}}
    {{- end }}
    {{- if $model.pull.tokenSecret.name }}
    - name: HF_TOKEN
      valueFrom: {secretKeyRef: {name: {{ $model.pull.tokenSecret.name }}, key: {{ $model.pull.tokenSecret.key }}}}
    {{- end }}
  securityContext: {{- include "janus.containerSecurity" . | nindent 4 }}
  resources:
    requests: {cpu: 250m, memory: 256Mi}
    limits: {memory: 1Gi}
  volumeMounts:
    - {name: model, mountPath: /models}
    - {name: tmp, mountPath: /tmp}
{{- end }}
{{- if ne $model.source "builtin" }}
- name: verify
  image: {{ include "janus.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  args: [inspect, --model, {{ include "janus.modelPath" . | quote }}, --digest, {{ $model.digest | quote }}]
  securityContext: {{- include "janus.containerSecurity" . | nindent 4 }}
  resources:
    requests: {cpu: 250m, memory: 256Mi}
    limits: {memory: 1Gi}
  volumeMounts:
    - {name: model, mountPath: /models, readOnly: true}
{{- end }}
{{- end }}

{{/* Arguments of whoever uses the store and the model. */}}
{{- define "janus.nodeArgs" -}}
- --cluster={{ include "janus.cluster" . }}
- --etcd={{ include "janus.etcdUrls" . }}
{{- if .Values.etcd.bundled }}
{{- if include "janus.tls" . }}
- --etcd-ca=/etc/janus/tls/ca.crt
- --etcd-cert=/etc/janus/tls/tls.crt
- --etcd-key=/etc/janus/tls/tls.key
{{- end }}
{{- else }}
{{- if .Values.externalEtcd.tlsSecret }}
- --etcd-ca=/etc/janus/etcd/ca.crt
{{- if .Values.externalEtcd.clientCertificate }}
- --etcd-cert=/etc/janus/etcd/tls.crt
- --etcd-key=/etc/janus/etcd/tls.key
{{- end }}
{{- end }}
{{- if .Values.externalEtcd.authSecret }}
- --etcd-user=$(JANUS_ETCD_USER)
- --etcd-password-file=/etc/janus/etcd-auth/password
{{- end }}
{{- end }}
- --ttl={{ .Values.coordinator.ttlSeconds }}
- --model={{ include "janus.modelPath" . }}
{{- with .Values.model.weights }}
- --weights={{ . }}
{{- end }}
- --kv={{ .Values.model.kv }}
{{- end }}

{{/* Arguments of every role. */}}
{{- define "janus.commonArgs" -}}
{{- if include "janus.tls" . }}
- --tls-ca=/etc/janus/tls/ca.crt
- --tls-cert=/etc/janus/tls/tls.crt
- --tls-key=/etc/janus/tls/tls.key
{{- else }}
- --insecure
{{- end }}
{{- if .Values.metrics.port }}
- --metrics=0.0.0.0:{{ .Values.metrics.port }}
{{- end }}
{{- with .Values.otlpEndpoint }}
- --otlp={{ . }}
{{- end }}
- --log-format={{ .Values.logFormat }}
{{- end }}

{{- define "janus.workerArgs" -}}
- worker
- --role={{ .role }}
- --name=$(POD_NAME)
- --listen=0.0.0.0:{{ include "janus.port.grpc" .root }}
- --advertise={{ .advertise }}
- --health=0.0.0.0:{{ include "janus.port.health" .root }}
- --grace={{ include "janus.longestPicture" .root }}
{{- with .values.threads }}
- --threads={{ . }}
{{- end }}
{{ include "janus.nodeArgs" .root }}
{{ include "janus.commonArgs" .root }}
{{- end }}

{{/*
The whole pod. Takes root, role (certificate and component), values (of the role: scheduling, extras), args (a YAML list),
store and model (whether it uses them), probes ("grpc" or "http"), ports, resources, labels, affinity, spread.
*/}}
{{- define "janus.pod" -}}
{{- $root := .root }}
metadata:
  labels:
    {{- include "janus.labels" $root | nindent 4 }}
    app.kubernetes.io/component: {{ .role }}
    {{- with .labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    checksum/config: {{ printf "%s %s %s" .args (toJson $root.Values.model) (toJson $root.Values.tls) | sha256sum }}
    kubectl.kubernetes.io/default-container: janus
    {{- with .values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ include "janus.terminationSeconds" $root }}
  securityContext: {{- include "janus.podSecurity" $root | nindent 4 }}
  {{- with $root.Values.image.pullSecrets }}
  imagePullSecrets: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .values.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if .values.affinity }}
  affinity: {{- toYaml .values.affinity | nindent 4 }}
  {{- else if .affinity }}
  affinity: {{- .affinity | nindent 4 }}
  {{- end }}
  {{- with .spread }}
  topologySpreadConstraints: {{- . | nindent 4 }}
  {{- end }}
  {{- if .model }}
  {{- with include "janus.modelContainers" $root | trim }}
  initContainers:
    {{- . | nindent 4 }}
  {{- end }}
  {{- end }}
  containers:
    - name: janus
      image: {{ include "janus.image" $root }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      args:
        {{- .args | trim | nindent 8 }}
        {{- with .values.extraArgs }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      env:
        - {name: JANUS_LOG, value: {{ $root.Values.logLevel | quote }}}
        - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
        {{- if and .store $root.Values.externalEtcd.authSecret (not $root.Values.etcd.bundled) }}
        - name: JANUS_ETCD_USER
          valueFrom: {secretKeyRef: {name: {{ $root.Values.externalEtcd.authSecret }}, key: username}}
        {{- end }}
        {{- with .values.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      ports:
        {{- .ports | nindent 8 }}
        {{- if $root.Values.metrics.port }}
        - {name: metrics, containerPort: {{ $root.Values.metrics.port }}}
        {{- end }}
      {{- if eq .probes "grpc" }}
      startupProbe:
        grpc: {port: {{ include "janus.port.health" $root }}, service: started}
        periodSeconds: 5
        failureThreshold: {{ div (add (int64 (include "janus.startupSeconds" $root)) 4) 5 }}
      livenessProbe:
        grpc: {port: {{ include "janus.port.health" $root }}, service: live}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 3
      readinessProbe:
        grpc: {port: {{ include "janus.port.health" $root }}, service: ready}
        periodSeconds: 2
        timeoutSeconds: 2
        failureThreshold: 2
      {{- else }}
      {{- $scheme := ternary "HTTPS" "HTTP" (eq (include "janus.tls" $root) "true") }}
      startupProbe:
        httpGet: {path: /healthz, port: http, scheme: {{ $scheme }}}
        periodSeconds: 2
        failureThreshold: 30
      livenessProbe:
        httpGet: {path: /healthz, port: http, scheme: {{ $scheme }}}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 3
      readinessProbe:
        httpGet: {path: /readyz, port: http, scheme: {{ $scheme }}}
        periodSeconds: 2
        timeoutSeconds: 2
        failureThreshold: 2
      {{- end }}
      lifecycle:
        preStop: {sleep: {seconds: {{ $root.Values.drain.preStopSeconds }}}}
      securityContext: {{- include "janus.containerSecurity" $root | nindent 8 }}
      resources: {{- toYaml .resources | nindent 8 }}
      volumeMounts:
        - {name: tmp, mountPath: /tmp}
        {{- if include "janus.tls" $root }}
        - {name: tls, mountPath: /etc/janus/tls, readOnly: true}
        {{- end }}
        {{- if and (eq .role "coordinator") (include "janus.tls" $root) }}
        - {name: operator, mountPath: /etc/janus/operator, readOnly: true}
        {{- end }}
        {{- if and (eq .role "coordinator") $root.Values.coordinator.jobs.claimName }}
        - {name: jobs, mountPath: /var/lib/janus/jobs}
        {{- end }}
        {{- if and .store (not $root.Values.etcd.bundled) }}
        {{- if $root.Values.externalEtcd.tlsSecret }}
        - {name: etcd-tls, mountPath: /etc/janus/etcd, readOnly: true}
        {{- end }}
        {{- if $root.Values.externalEtcd.authSecret }}
        - {name: etcd-auth, mountPath: /etc/janus/etcd-auth, readOnly: true}
        {{- end }}
        {{- end }}
        {{- if and .model (ne $root.Values.model.source "builtin") }}
        - {name: model, mountPath: /models, readOnly: true}
        {{- end }}
  volumes:
    - name: tmp
      emptyDir: {}
    {{- if include "janus.tls" $root }}
    - name: tls
      secret: {secretName: {{ include "janus.tlsSecret" (dict "root" $root "role" .role) }}, defaultMode: 0440}
    {{- end }}
    {{- if and (eq .role "coordinator") (include "janus.tls" $root) }}
    {{- include "janus.operatorVolume" $root | nindent 4 }}
    {{- end }}
    {{- if eq .role "coordinator" }}
    {{- with $root.Values.coordinator.jobs.claimName }}
    - name: jobs
      persistentVolumeClaim: {claimName: {{ . }}}
    {{- end }}
    {{- end }}
    {{- if and .store (not $root.Values.etcd.bundled) }}
    {{- with $root.Values.externalEtcd.tlsSecret }}
    - name: etcd-tls
      secret: {secretName: {{ . }}, defaultMode: 0440}
    {{- end }}
    {{- with $root.Values.externalEtcd.authSecret }}
    - name: etcd-auth
      secret: {secretName: {{ . }}, defaultMode: 0440, items: [{key: password, path: password}]}
    {{- end }}
    {{- end }}
    {{- if .model }}
    {{- with include "janus.modelVolume" $root | trim }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- end }}
{{- end }}

{{/* Replicas of one role on different hosts and zones, if that is possible. */}}
{{- define "janus.spread" -}}
{{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
- maxSkew: 1
  topologyKey: {{ $key }}
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      {{- include "janus.selector" $.root | nindent 6 }}
      app.kubernetes.io/component: {{ $.role }}
{{- end }}
{{- end }}
