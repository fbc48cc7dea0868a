{{- /* The container of the agent and the container of `helm test` share environment, mounts and volumes. */ -}}
{{- define "sealci-agent.env" -}}
- name: SEALCI_CONFIG
  value: /etc/sealci/settings/settings.yaml
- name: SEALCI_AGENT__ID
  valueFrom:
    fieldRef:
      fieldPath: metadata.uid
{{- with .Values.proxy }}
{{- if or .http .https }}
{{- /* The kubelet expands the address of the API server, which no proxy reaches. */ -}}
{{- $direct := list "$(KUBERNETES_SERVICE_HOST)" "localhost" "127.0.0.1" ".svc" }}
{{- $direct = join "," (ternary (append $direct .noProxy) $direct (ne .noProxy "")) }}
{{- range $name, $value := dict "HTTP_PROXY" .http "HTTPS_PROXY" .https "NO_PROXY" $direct }}
{{- if $value }}
- name: {{ $name }}
  value: {{ $value | quote }}
- name: {{ lower $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "sealci-agent.mounts" -}}
- name: settings
  mountPath: /etc/sealci/settings
  readOnly: true
- name: tmp
  mountPath: /tmp
{{- if include "sealci-agent.tokenSecret" . }}
- name: token
  mountPath: /etc/sealci/token
  readOnly: true
{{- end }}
{{- if .Values.credentials.ca.existingSecret }}
- name: ca
  mountPath: /etc/sealci/ca
  readOnly: true
{{- end }}
{{- if .Values.credentials.certificate.existingSecret }}
- name: certificate
  mountPath: /etc/sealci/certificate
  readOnly: true
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "sealci-agent.volumes" -}}
- name: settings
  configMap:
    name: {{ include "sealci-agent.fullname" . }}
- name: tmp
  emptyDir: {}
{{- with include "sealci-agent.tokenSecret" . }}
- name: token
  secret:
    secretName: {{ . }}
    items:
      - key: {{ include "sealci-agent.tokenKey" $ }}
        path: {{ include "sealci-agent.tokenKey" $ }}
{{- end }}
{{- with .Values.credentials.ca }}
{{- if .existingSecret }}
- name: ca
  secret:
    secretName: {{ .existingSecret }}
    items:
      - key: {{ .key }}
        path: {{ .key }}
{{- end }}
{{- end }}
{{- with .Values.credentials.certificate }}
{{- if .existingSecret }}
- name: certificate
  secret:
    secretName: {{ .existingSecret }}
{{- end }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* Name resolution and runtime of the agents' pods and of the pod of `helm test`. */ -}}
{{- define "sealci-agent.podNetwork" -}}
dnsPolicy: {{ .Values.dnsPolicy }}
{{- with .Values.dnsConfig }}
dnsConfig:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.hostAliases }}
hostAliases:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- end -}}

{{- /* Pull secrets and user of a pod that only waits, in the namespace of actions. */ -}}
{{- define "sealci-agent.idlePod" -}}
{{- $secrets := default list (default dict .Values.environment.pod_template.spec).imagePullSecrets -}}
{{- range .Values.environment.image_pull_secrets -}}
{{- $secrets = append $secrets (dict "name" .) -}}
{{- end -}}
{{- with $secrets | uniq -}}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{ end -}}
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: 1
securityContext:
  runAsNonRoot: true
  runAsUser: {{ .Values.environment.user }}
  runAsGroup: {{ .Values.environment.user }}
  seccompProfile:
    type: RuntimeDefault
{{- end -}}

{{- /* A container that waits until it is stopped. Takes (list . resources). */ -}}
{{- define "sealci-agent.waitContainer" -}}
{{- $root := index . 0 -}}
- name: wait
  image: {{ default (include "sealci-agent.image" $root) $root.Values.environment.image | quote }}
  imagePullPolicy: IfNotPresent
  command:
    - python3
    - -ISc
    - import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]); signal.sigwait([signal.SIGTERM])
  resources:
    {{- toYaml (index . 1) | nindent 4 }}
  securityContext:
    allowPrivilegeEscalation: false
    readOnlyRootFilesystem: true
    capabilities:
      drop: [ALL]
{{- end -}}
