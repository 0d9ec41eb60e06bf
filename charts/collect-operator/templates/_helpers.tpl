{{- define "collect.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "collect.fullname" -}}
{{- $name := include "collect.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 53 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 53 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- /* Objects without a namespace carry that of the release in their name. */}}
{{- define "collect.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "collect.fullname" .) | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "collect.selectorLabels" -}}
app.kubernetes.io/name: {{ include "collect.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- /* Of the pod of `helm test`: not those that the Service leads to. */}}
{{- define "collect.checkLabels" -}}
app.kubernetes.io/name: {{ printf "%s-check" (include "collect.name" . | trunc 57 | trimSuffix "-") | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- /* Where a key is given twice, the chart's own value wins: no object may have a key twice. */}}
{{- define "collect.labels" -}}
{{- $own := dict
  "app.kubernetes.io/version" .Chart.AppVersion
  "app.kubernetes.io/part-of" "collect-operator"
  "app.kubernetes.io/managed-by" .Release.Service
  "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_") }}
{{- merge $own (include "collect.selectorLabels" . | fromYaml) .Values.commonLabels | toYaml }}
{{- end }}

{{- define "collect.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "collect.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- required "serviceAccount.name is needed when serviceAccount.create is false" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- /* Reference of an image: (dict "image" .Values.image "chart" .Chart) */}}
{{- define "collect.image" -}}
{{- if .image.digest }}
{{- printf "%s@%s" .image.repository .image.digest }}
{{- else }}
{{- printf "%s:%s" .image.repository (default .chart.AppVersion .image.tag) }}
{{- end }}
{{- end }}

{{- define "collect.tlsSecretName" -}}
{{- default (printf "%s-tls" (include "collect.fullname" .)) .Values.endpoint.tls.secretName }}
{{- end }}

{{- define "collect.endpointUrl" -}}
{{- default (printf "https://%s.%s.svc:%v" (include "collect.fullname" .) .Release.Namespace .Values.endpoint.port) .Values.endpoint.url }}
{{- end }}

{{- /* Names of the endpoint's certificate, comma-separated: those of the Service, then those of the user. */}}
{{- define "collect.sans" -}}
{{- $service := printf "%s.%s" (include "collect.fullname" .) .Release.Namespace }}
{{- $own := list (include "collect.fullname" .) $service (printf "%s.svc" $service) (printf "%s.svc.cluster.local" $service) }}
{{- concat $own .Values.endpoint.tls.extraSANs | uniq | join "," }}
{{- end }}

{{- /* Stops if the cluster lacks an API: (list $ "serviceMonitor" "monitoring.coreos.com/v1") */}}
{{- define "collect.requireApi" -}}
{{- $root := index . 0 }}
{{- if not (or $root.Values.skipApiChecks ($root.Capabilities.APIVersions.Has (index . 2))) }}
{{- fail (printf "%s.enabled: the cluster does not have the API %s; install the operator that brings it, or set skipApiChecks=true where helm can't ask the cluster" (index . 1) (index . 2)) }}
{{- end }}
{{- end }}

{{- /* The rights on the API server, the same in one namespace and in all. None on Secrets. */}}
{{- define "collect.rules" -}}
- apiGroups: [collect.dev]
  resources: [collecttasks, collectshards, validationreports]
  verbs: [get, list, watch, create, delete]
- apiGroups: [collect.dev]
  resources: [collecttasks/status, collectshards/status, validationreports/status]
  verbs: [patch]
# To be named as an owner that blocks deletion, where the API server asks for that right.
- apiGroups: [collect.dev]
  resources: [collecttasks/finalizers, collectshards/finalizers]
  verbs: [update]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
# Chunks of plans.
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, list, create, delete]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}
