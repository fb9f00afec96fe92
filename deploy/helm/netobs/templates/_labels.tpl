{{- define "netobs.selector" -}}
app.kubernetes.io/name: netobs
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "netobs.labels" -}}
{{ include "netobs.selector" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}
