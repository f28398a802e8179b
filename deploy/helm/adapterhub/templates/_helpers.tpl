{{- define "hub.labels" -}}
app.kubernetes.io/name: adapterhub
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "hub.selector" -}}
app.kubernetes.io/name: adapterhub
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "hub.name" -}}
{{ .root.Release.Name }}-{{ .component }}
{{- end }}

{{- define "hub.image" -}}
{{ with .root.Values.image.registry }}{{ . }}/{{ end }}{{ .image }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}{{ with get .root.Values.image.digests .image }}@{{ . }}{{ end }}
{{- end }}

{{- define "hub.claim" -}}
{{ .Values.storage.existingClaim | default (printf "%s-home" .Release.Name) }}
{{- end }}

{{- define "hub.secretFile" -}}
/run/secrets/adapterhub/{{ . }}
{{- end }}

{{/* Where replicas may be: the operator's, and each fleet's headless service. */}}
{{- define "hub.engineHosts" -}}
{{- $hosts := .Values.engineHosts }}
{{- range .Values.vllm.fleets }}{{ $hosts = append $hosts (printf "%s-vllm-%s.%s.svc:8000" $.Release.Name .name $.Release.Namespace) }}{{ end }}
{{- join "," $hosts }}
{{- end }}

{{/* Variables of all that runs Django. Secrets come as files, but for those of the pods that may not see them. */}}
{{- define "hub.env" -}}
{{ include "hub.ownEnv" . }}
{{- range $name, $value := .Values.settings }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- range $name, $key := .Values.secretSettings }}
- {name: {{ $name }}_FILE, value: {{ include "hub.secretFile" $key }}}
{{- end }}
{{- end }}

{{- define "hub.ownEnv" -}}
- {name: ADAPTERHUB_HOSTS, value: {{ printf "%s,%s-web,127.0.0.1" (required "host: set the name of the site" .Values.host) .Release.Name | quote }}}
- {name: ADAPTERHUB_HTTPS, value: "1"}
- {name: ADAPTERHUB_PROXIES, value: {{ join "," .Values.proxies | quote }}}
- {name: ADAPTERHUB_SECRET_KEY_FILE, value: {{ include "hub.secretFile" "secret_key" }}}
- {name: ADAPTERHUB_AUDIT_KEY_FILE, value: {{ include "hub.secretFile" "audit_key" }}}
- {name: DATABASE_URL_FILE, value: {{ include "hub.secretFile" "database_url" }}}
- {name: REDIS_URL_FILE, value: {{ include "hub.secretFile" "redis_url" }}}
- {name: ADAPTERHUB_ROUTER_SECRET_PATH, value: {{ include "hub.secretFile" "router_secret" }}}
- {name: ADAPTERHUB_SIGNER_URL, value: "http://{{ .Release.Name }}-signer:8010"}
- {name: ADAPTERHUB_ROUTER_URL, value: "http://{{ .Release.Name }}-router:8080"}
- {name: ADAPTERHUB_ENGINE_HOSTS, value: {{ include "hub.engineHosts" . | quote }}}
- {name: ADAPTERHUB_BASE_MODEL_SOURCES, value: {{ join "," .Values.baseModelSources | quote }}}
- {name: ADAPTERHUB_TABLE_MAX_AGE_S, value: {{ .Values.router.tableMaxAgeS | int | quote }}}
- {name: ADAPTERHUB_ALIVE_PATH, value: /tmp/alive}
- {name: ADAPTERHUB_LOG_FORMAT, value: json}
{{ include "hub.storeEnv" . }}
{{- end }}

{{/* Values that fit no schema: lengths of names that are put together, and what is said twice. */}}
{{- define "hub.checks" -}}
{{- if gt (len .Release.Name) 45 }}
{{- fail (printf "release %s: give it a name of at most 45 characters, as the names of its Services and jobs begin with it" .Release.Name) }}
{{- end }}
{{- $fleets := list }}
{{- range .Values.vllm.fleets }}
{{- $name := printf "%s-vllm-%s" $.Release.Name .name }}
{{- if gt (len $name) 63 }}
{{- fail (printf "vllm.fleets: %s makes a Service called %s, of %d characters: 63 are allowed, shorten the fleet's name or the release's" .name $name (len $name)) }}
{{- end }}
{{- if has .name $fleets }}{{ fail (printf "vllm.fleets: %s is there twice" .name) }}{{ end }}
{{- $fleets = append $fleets .name }}
{{- end }}
{{- $own := regexFindAll "name: [A-Z0-9_]+" (include "hub.ownEnv" .) -1 }}
{{- range $name := concat (keys .Values.settings) (keys .Values.secretSettings) | sortAlpha }}
{{- if or (has (printf "name: %s" $name) $own) (has (printf "name: %s_FILE" $name) $own) (has (printf "name: %s" (trimSuffix "_FILE" $name)) $own) }}
{{- fail (printf "settings: the chart sets %s itself, from other values" $name) }}
{{- end }}
{{- if and (hasKey $.Values.settings $name) (hasKey $.Values.secretSettings $name) }}{{ fail (printf "settings and secretSettings both set %s" $name) }}{{ end }}
{{- end }}
{{- $variables := concat $own (list "name: REMAP_SIGTERM") }}
{{- range $name := concat (keys .Values.settings) (keys .Values.secretSettings) }}{{ $variables = concat $variables (list (printf "name: %s" $name) (printf "name: %s_FILE" $name)) }}{{ end }}
{{- range .Values.pods.env }}
{{- if has (printf "name: %s" .name) $variables }}{{ fail (printf "pods.env: %s is set already" .name) }}{{ end }}
{{- end }}
{{- $keys := concat (splitList " " (include "hub.secretKeys" .)) (list "database_owner_url" "database_signer_url" "metrics_token" "api_token" "backup_passphrase") }}
{{- range $key, $_ := .Values.secretKeys }}
{{- if not (has $key $keys) }}{{ fail (printf "secretKeys: nothing reads %s; the keys are %s" $key (join ", " (sortAlpha $keys))) }}{{ end }}
{{- end }}
{{- end }}

{{/* Where a key of the Secret is: in existingSecret, unless secretKeys names another one. */}}
{{- define "hub.secretRef" -}}
{{- $other := get .root.Values.secretKeys .key | default dict -}}
{name: {{ $other.name | default .root.Values.existingSecret }}, key: {{ $other.key | default .key }}}
{{- end }}

{{- define "hub.storeEnv" -}}
- {name: ARTIFACT_STORE, value: {{ required "artifacts.store: set s3://bucket/prefix" .Values.artifacts.store | quote }}}
- {name: S3_ENDPOINT_URL, value: {{ .Values.artifacts.endpoint | quote }}}
{{- if .Values.artifacts.useCredentials }}
- {name: AWS_SHARED_CREDENTIALS_FILE, value: {{ include "hub.secretFile" "store_credentials" }}}
{{- end }}
{{- end }}

{{/* Keys of the Secret that pods of the control plane see: neither the owner's nor the signer's. */}}
{{- define "hub.secretKeys" -}}
{{- $keys := list "secret_key" "audit_key" "database_url" "redis_url" "router_secret" }}
{{- if .Values.artifacts.useCredentials }}{{ $keys = append $keys "store_credentials" }}{{ end }}
{{- range .Values.secretSettings }}{{ $keys = append $keys . }}{{ end }}
{{- join " " (uniq $keys) }}
{{- end }}

{{- define "hub.secretVolume" -}}
- name: secrets
  projected:
    defaultMode: 0440
    sources:
      {{- range $key := .keys }}
      {{- $ref := fromYaml (include "hub.secretRef" (dict "root" $.root "key" $key)) }}
      - secret: {name: {{ $ref.name }}, items: [{key: {{ $ref.key }}, path: {{ $key }}}]}
      {{- end }}
{{- end }}

{{- define "hub.podSecurity" -}}
{{- $security := .root.Values.podSecurity }}
automountServiceAccountToken: {{ .token | default false }}
securityContext:
  runAsNonRoot: true
  {{- with $security.runAsUser }}
  runAsUser: {{ $.user | default . | int64 }}
  runAsGroup: {{ $.user | default . | int64 }}
  {{- end }}
  {{- with $security.fsGroup }}
  fsGroup: {{ . | int64 }}
  fsGroupChangePolicy: OnRootMismatch
  {{- end }}
  seccompProfile: {type: RuntimeDefault}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ if kindIs "map" . }}{{ .name }}{{ else }}{{ . }}{{ end }}
  {{- end }}
{{- end }}
{{- end }}

{{/* Where pods may run: a part's own wishes, and those of `pods`. */}}
{{- define "hub.placement" -}}
{{- $pods := .root.Values.pods }}
{{- with merge (deepCopy (.nodeSelector | default dict)) $pods.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with concat (.tolerations | default list) $pods.tolerations | uniq }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $pods.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $pods.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{/* Labels and annotations of pods: what chooses them, and those of `pods`. */}}
{{- define "hub.podMetadata" -}}
labels:
  {{- toYaml (merge (fromYaml (include "hub.selector" .)) (.labels | default dict) .root.Values.pods.labels) | nindent 2 }}
{{- with .root.Values.pods.annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "hub.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{/* Pods of one kind are spread over nodes, so that the loss of one takes few of them. */}}
{{- define "hub.spread" -}}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "hub.selector" . | nindent 8 }}
{{- end }}

{{/* A Deployment of the control plane: component, command, replicas, resources, and what differs. */}}
{{- define "hub.deployment" -}}
{{- $root := .root }}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ include "hub.name" . }}
  labels:
    {{- include "hub.labels" $root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
spec:
  replicas: {{ .replicas }}
  {{- if .single }}
  strategy: {type: Recreate}
  {{- else }}
  strategy: {type: RollingUpdate, rollingUpdate: {maxUnavailable: 0, maxSurge: 1}}
  {{- end }}
  selector:
    matchLabels:
      {{- include "hub.selector" . | nindent 6 }}
  template:
    metadata:
      {{- include "hub.podMetadata" . | nindent 6 }}
    spec:
      {{- include "hub.podSecurity" (dict "root" $root "user" .user "token" .token) | nindent 6 }}
      {{- include "hub.placement" . | nindent 6 }}
      {{- with .serviceAccount }}
      serviceAccountName: {{ . }}
      {{- end }}
      {{- include "hub.spread" . | nindent 6 }}
      terminationGracePeriodSeconds: {{ .grace | default 30 }}
      containers:
        - name: {{ .component }}
          image: {{ include "hub.image" (dict "root" $root "image" (.image | default "adapterhub")) }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          command: {{ toJson .command }}
          {{- include "hub.containerSecurity" . | nindent 10 }}
          env:
            {{- if .env }}
            {{- .env | nindent 12 }}
            {{- else }}
            {{- include "hub.env" $root | nindent 12 }}
            {{- end }}
            {{- if .worker }}
            # Celery waits for running tasks for ever at SIGTERM; at SIGQUIT it hands them back.
            - {name: REMAP_SIGTERM, value: SIGQUIT}
            {{- end }}
            {{- with $root.Values.pods.env }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          {{- if .port }}
          ports:
            - {name: http, containerPort: {{ .port }}}
          readinessProbe:
            httpGet: {path: {{ .ready | default "/healthz" }}, port: http, httpHeaders: [{name: Host, value: 127.0.0.1}]}
            periodSeconds: 5
          livenessProbe:
            httpGet: {path: /healthz, port: http, httpHeaders: [{name: Host, value: 127.0.0.1}]}
            initialDelaySeconds: 30
            periodSeconds: 15
            failureThreshold: 4
          {{- else }}
          # A worker and beat renew the file every few seconds while they take messages and send them.
          livenessProbe:
            exec:
              command: [python, -c, "import os, sys, time; sys.exit(time.time() - os.stat('/tmp/alive').st_mtime > 60)"]
            initialDelaySeconds: 60
            periodSeconds: 30
            timeoutSeconds: 5
          {{- end }}
          resources:
            {{- $resources := deepCopy .resources }}
            {{- if .gpus }}
            {{- $_ := set $resources "limits" (merge (dict "nvidia.com/gpu" .gpus) ($resources.limits | default dict)) }}
            {{- end }}
            {{- toYaml $resources | nindent 12 }}
          volumeMounts:
            - {name: secrets, mountPath: /run/secrets/adapterhub, readOnly: true}
            - {name: tmp, mountPath: /tmp}
            {{- if .home }}
            - {name: home, mountPath: /var/lib/adapterhub}
            {{- end }}
            {{- if .sharedMemory }}
            - {name: shm, mountPath: /dev/shm}
            {{- end }}
            {{- if .scratch }}
            - {name: scratch, mountPath: {{ .scratch }}}
            {{- end }}
      volumes:
        {{- include "hub.secretVolume" (dict "root" $root "keys" .keys) | nindent 8 }}
        - {name: tmp, emptyDir: {sizeLimit: 1Gi}}
        {{- if .home }}
        - {name: home, persistentVolumeClaim: {claimName: {{ include "hub.claim" $root }}}}
        {{- end }}
        {{- if .sharedMemory }}
        - {name: shm, emptyDir: {medium: Memory, sizeLimit: {{ .sharedMemory }}}}
        {{- end }}
        {{- if .scratch }}
        - {name: scratch, emptyDir: {sizeLimit: 2Gi}}
        {{- end }}
{{- end }}
