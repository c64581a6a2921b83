{{/* The admission policy, the webhook and the certificates name this namespace. */}}
{{- define "namespace" -}}
{{- if ne .Release.Namespace "cloudprovider-system" -}}
{{- fail (printf "install into the namespace cloudprovider-system, not %s: helm install --namespace cloudprovider-system" .Release.Namespace) -}}
{{- end -}}
cloudprovider-system
{{- end -}}

{{- define "image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- define "pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "traces" -}}
{{- range $name, $value := .Values.traces }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end -}}
