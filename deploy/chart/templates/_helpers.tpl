{{- define "foley.selector" -}}
app.kubernetes.io/name: foley
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{- define "foley.labels" -}}
{{ include "foley.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}
{{- define "foley.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag }}
{{- end }}
{{/* A process that may do nothing but serve. */}}
{{- define "foley.security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end }}
{{- define "foley.bundle" -}}
- { name: bundle, mountPath: /bundle, readOnly: true, subPath: {{ .Values.bundle.path | quote }} }
{{- end }}
