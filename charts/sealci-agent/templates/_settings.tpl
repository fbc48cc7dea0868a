{{- /* The settings file of the agents: the second half of the values, and values that the chart computes. Holds no secret. */ -}}
{{- define "sealci-agent.settings" -}}
{{- $renew := .Values.cluster.lease_renew -}}
{{- $duration := .Values.cluster.lease_duration -}}
{{- if or (eq (toString $renew) (toString $duration)) (gt (include "sealci-agent.seconds" $renew | int) (include "sealci-agent.seconds" $duration | int)) -}}
{{- fail "cluster.lease_renew must be shorter than cluster.lease_duration" -}}
{{- end -}}
{{- $settings := dict -}}
{{- range $section := list "scheduler" "agent" "cluster" "environment" "warm" "policy" "services" "artifacts" "objects" "logs" "http" "metrics" "traces" "logging" -}}
{{- $_ := set $settings $section (deepCopy (index $.Values $section)) -}}
{{- end -}}
{{- $_ := set $settings.scheduler "address" (include "sealci-agent.schedulerAddress" .) -}}
{{- if and (include "sealci-agent.classic" .) (not .Values.scheduler.classic.ca_file) -}}
{{- /* The NetworkPolicy admits only `networkPolicy.agent.schedulerFrom`. */ -}}
{{- $_ := set $settings.scheduler.classic "open" true -}}
{{- end -}}
{{- if include "sealci-agent.demo" . -}}
{{- $_ := set $settings.scheduler.tls "enabled" false -}}
{{- end -}}
{{- if and (include "sealci-agent.classic" .) (not .Values.scheduler.classic.host) -}}
{{- $_ := set $settings.scheduler.classic "host" (printf "%s.%s.svc" (include "sealci-agent.classicName" .) .Release.Namespace) -}}
{{- end -}}
{{- if include "sealci-agent.tokenSecret" . -}}
{{- $_ := set $settings.scheduler "token_file" (printf "/etc/sealci/token/%s" (include "sealci-agent.tokenKey" .)) -}}
{{- end -}}
{{- if .Values.credentials.ca.existingSecret -}}
{{- $_ := set $settings.scheduler.tls "ca_file" (printf "/etc/sealci/ca/%s" .Values.credentials.ca.key) -}}
{{- end -}}
{{- if .Values.credentials.certificate.existingSecret -}}
{{- $_ := set $settings.scheduler.tls "cert_file" "/etc/sealci/certificate/tls.crt" -}}
{{- $_ := set $settings.scheduler.tls "key_file" "/etc/sealci/certificate/tls.key" -}}
{{- end -}}
{{- $_ := set $settings.agent "pool" (include "sealci-agent.pool" .) -}}
{{- $_ := set $settings.agent "anchor" (include "sealci-agent.anchor" .) -}}
{{- $_ := set $settings.cluster "namespace" (include "sealci-agent.actionsNamespace" .) -}}
{{- $_ := set $settings.environment "image" (default (include "sealci-agent.image" .) .Values.environment.image) -}}
{{- with .Values.proxy -}}
{{- $_ := set $settings.environment "proxy" (dict "http" .http "https" .https "no_proxy" .noProxy) -}}
{{- end -}}
{{- if .Values.actions.serviceAccount.create -}}
{{- $account := dict "spec" (dict "serviceAccountName" (include "sealci-agent.actionsAccount" .)) -}}
{{- $_ := set $settings.environment "pod_template" (mergeOverwrite $account $settings.environment.pod_template) -}}
{{- end -}}
{{- toYaml $settings -}}
{{- end -}}
