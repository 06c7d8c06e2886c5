{{/* Name that every object starts with. */}}
{{- define "culvert.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains "culvert" .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-culvert" .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What selects pods: (list $ "operator"). Never to be changed: selectors are immutable. */}}
{{- define "culvert.selectorLabels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: culvert
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Labels of every object: (list $ "operator"). */}}
{{- define "culvert.labels" -}}
{{- $root := index . 0 -}}
{{ include "culvert.selectorLabels" . }}
app.kubernetes.io/part-of: culvert
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Reference of an image: (list $ "operator"). */}}
{{- define "culvert.image" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $image := (index $root.Values $component).image -}}
{{- $repository := $image.repository | default (printf "%s/%s" $root.Values.image.registry $component) -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository ($image.tag | default $root.Values.image.tag | default $root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* Pull secrets of a pod or ServiceAccount. */}}
{{- define "culvert.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Names of the pull secrets, for the relays that the operator makes. */}}
{{- define "culvert.pullSecretNames" -}}
{{- $names := list -}}
{{- range .Values.image.pullSecrets -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- join "," $names -}}
{{- end -}}

{{/* Pods that pass the "restricted" standard. */}}
{{- define "culvert.restrictedPod" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* Containers that pass the "restricted" standard. */}}
{{- define "culvert.restrictedContainer" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* What the agent may do on its node: the data path, nothing else. Legacy iptables needs NET_RAW. */}}
{{- define "culvert.agentContainer" -}}
privileged: false
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsUser: 0
runAsGroup: 0
capabilities: {drop: [ALL], add: [NET_ADMIN, NET_RAW]}
{{- end -}}

{{/* What the agent sees of its node. */}}
{{- define "culvert.agentMounts" -}}
- {name: state, mountPath: {{ .Values.agent.stateDir }}}
- {name: tun, mountPath: /dev/net/tun}
- {name: xtables-lock, mountPath: /run/xtables.lock}
{{- end -}}

{{- define "culvert.agentVolumes" -}}
- name: state
  hostPath: {path: {{ .Values.agent.stateDir }}, type: DirectoryOrCreate}
- name: tun
  hostPath: {path: /dev/net/tun, type: CharDevice}
- name: xtables-lock
  hostPath: {path: /run/xtables.lock, type: FileOrCreate}
{{- end -}}

{{/* Annotations of a hook: (list "pre-delete" "-5"). A failed one stays, to be looked at, until the next attempt. */}}
{{- define "culvert.hook" -}}
helm.sh/hook: {{ index . 0 }}
helm.sh/hook-weight: {{ index . 1 | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}
