{{/* `component` is api or triton; `root` the chart's context. */}}
{{- define "foley.selector" -}}
app.kubernetes.io/name: foley
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}
{{- define "foley.labels" -}}
{{ include "foley.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}
{{/* Settings of both kinds of pod. */}}
{{- define "foley.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false # their variables would collide with the API's settings, FOLEY_API_*
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001 # reads the secrets, writes the scratch volumes
  fsGroupChangePolicy: OnRootMismatch # a large bundle is not walked at every start
  seccompProfile: { type: RuntimeDefault }
{{- with .root.Values.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
topologySpreadConstraints:
  {{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    matchLabelKeys: [pod-template-hash]
    labelSelector:
      matchLabels: {{- include "foley.selector" $ | nindent 8 }}
  {{- end }}
{{- end }}
{{/* Without privileges. The decoder's sandbox (Landlock and seccomp) needs none. */}}
{{- define "foley.security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end }}
