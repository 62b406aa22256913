{{/* Everything of a release starts with this name. */}}
{{- define "larder.name" -}}
{{- if contains "larder" .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-larder" .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* The name is fixed: by it instances' network policies know who may speak to their agents. */}}
{{- define "larder.selector" -}}
app.kubernetes.io/name: larder-serve
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "larder.labels" -}}
{{ include "larder.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "larder.image" -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}

{{/* Where instances are made. */}}
{{- define "larder.instancesNamespace" -}}
{{- .Values.containerCluster.namespace | default .Release.Namespace -}}
{{- end -}}

{{/* Secrets are of one namespace: those of the control plane's image are of use beside it alone. */}}
{{- define "larder.instancesPullSecrets" -}}
{{- $own := .Values.containerCluster.pullSecrets -}}
{{- if and (not $own) (eq (include "larder.instancesNamespace" .) .Release.Namespace) -}}
{{- $own = .Values.image.pullSecrets -}}
{{- end -}}
{{- $own | toJson -}}
{{- end -}}

{{- define "larder.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "larder.name" .) -}}
{{- else -}}
{{- required "serviceAccount.name is needed where serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* Rights on the whole cluster are named by the namespace too: another release may have the same name. */}}
{{- define "larder.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "larder.name" .) -}}
{{- end -}}

{{- define "larder.adminSecret" -}}
{{- .Values.adminPassword.existingSecret | default (printf "%s-admin" (include "larder.name" .)) -}}
{{- end -}}

{{- define "larder.claim" -}}
{{- .Values.persistence.existingClaim | default (printf "%s-data" (include "larder.name" .)) -}}
{{- end -}}

{{- define "larder.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "larder.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}
