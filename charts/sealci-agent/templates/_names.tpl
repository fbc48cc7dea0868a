{{- /* Names, labels, and values that follow from other values. */ -}}

{{- define "sealci-agent.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "sealci-agent.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains (include "sealci-agent.name" .) .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "sealci-agent.name" .) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- /* A name that is unique in the cluster, because two releases may share a namespace of actions. */ -}}
{{- define "sealci-agent.unique" -}}
{{- $name := printf "%s-%s" .Release.Namespace (include "sealci-agent.fullname" .) -}}
{{- if gt (len $name) 44 -}}
{{- printf "%s-%s" ($name | trunc 35 | trimSuffix "-") ($name | sha256sum | trunc 8) -}}
{{- else -}}
{{- $name -}}
{{- end -}}
{{- end -}}

{{- define "sealci-agent.pool" -}}
{{- default (include "sealci-agent.unique" .) .Values.agent.pool -}}
{{- end -}}

{{- /* An account that creates pods in a namespace can mount every Secret in it, so actions get a namespace of their own. */ -}}
{{- define "sealci-agent.actionsNamespace" -}}
{{- if .Values.cluster.namespace -}}
{{- .Values.cluster.namespace -}}
{{- else if gt (len .Release.Namespace) 45 -}}
{{- printf "%s-%s-actions" (.Release.Namespace | trunc 36 | trimSuffix "-") (.Release.Namespace | sha256sum | trunc 8) -}}
{{- else -}}
{{- printf "%s-actions" .Release.Namespace -}}
{{- end -}}
{{- end -}}

{{- /* "true" if the chart creates the namespace of actions. */ -}}
{{- define "sealci-agent.createsNamespace" -}}
{{- $switch := toString .Values.actions.createNamespace -}}
{{- if or (eq $switch "true") (and (eq $switch "auto") (not .Values.cluster.namespace)) -}}true{{- end -}}
{{- end -}}

{{- /* The Secret with the token for the scheduler. The demo scheduler has a token of its own. */ -}}
{{- define "sealci-agent.tokenSecret" -}}
{{- if .Values.credentials.token.existingSecret -}}
{{- .Values.credentials.token.existingSecret -}}
{{- else if include "sealci-agent.demo" . -}}
{{- include "sealci-agent.schedulerName" . -}}
{{- end -}}
{{- end -}}

{{- define "sealci-agent.tokenKey" -}}
{{- if .Values.credentials.token.existingSecret -}}{{- .Values.credentials.token.key -}}{{- else -}}token{{- end -}}
{{- end -}}

{{- define "sealci-agent.anchor" -}}
{{- printf "%s-anchor" (include "sealci-agent.unique" .) -}}
{{- end -}}

{{- define "sealci-agent.actionsAccount" -}}
{{- printf "%s-actions" (include "sealci-agent.unique" .) -}}
{{- end -}}

{{- define "sealci-agent.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "sealci-agent.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "sealci-agent.priorityClassName" -}}
{{- if .Values.priorityClass.name -}}
{{- .Values.priorityClass.name -}}
{{- else if .Values.priorityClass.create -}}
{{- include "sealci-agent.unique" . -}}
{{- end -}}
{{- end -}}

{{- define "sealci-agent.image" -}}
{{- $name := .Values.image.repository -}}
{{- if .Values.image.registry -}}
{{- $name = printf "%s/%s" .Values.image.registry $name -}}
{{- end -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" $name .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{- /* Labels for selectors. Kubernetes does not allow a change of them. Takes (list . component). */ -}}
{{- define "sealci-agent.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "sealci-agent.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "sealci-agent.labels" -}}
{{- $root := index . 0 -}}
{{ include "sealci-agent.selector" . }}
app.kubernetes.io/part-of: sealci
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* Annotations of an object: `commonAnnotations`, and its own, which win. Takes (list . annotations). */ -}}
{{- define "sealci-agent.annotations" -}}
{{- with merge (dict) (default dict (index . 1)) (default dict (index . 0).Values.commonAnnotations) }}
  annotations:
    {{- toYaml . | nindent 4 }}
{{- end }}
{{- end -}}

{{- /* Labels of objects that no upgrade may change. They hold no version. */ -}}
{{- define "sealci-agent.lastingLabels" -}}
{{ include "sealci-agent.selector" . }}
app.kubernetes.io/part-of: sealci
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
{{- end -}}

{{- /* Seconds of a duration such as 30, "90s", "10m" or "1h30m", rounded up. */ -}}
{{- define "sealci-agent.seconds" -}}
{{- $seconds := 0.0 -}}
{{- $text := toString . -}}
{{- if regexMatch "^[0-9.]+$" $text -}}
{{- $seconds = float64 $text -}}
{{- else -}}
{{- range $unit, $length := dict "d" 86400 "h" 3600 "m" 60 "s" 1 -}}
{{- $part := regexFind (printf "[0-9.]+%s" $unit) $text | trimSuffix $unit -}}
{{- if $part -}}
{{- $seconds = addf $seconds (mulf (float64 $part) $length) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- ceil $seconds -}}
{{- end -}}

{{- /* Seconds between SIGTERM and the end of an agent: the drain, the longest end of a session (grace, two deletions and a
       minute, as in the agent's shutdown), and 30 s for the stream. */ -}}
{{- define "sealci-agent.terminationGracePeriodSeconds" -}}
{{- if .Values.terminationGracePeriodSeconds -}}
{{- int .Values.terminationGracePeriodSeconds -}}
{{- else -}}
{{- $drain := include "sealci-agent.seconds" .Values.agent.drain_timeout | int -}}
{{- $grace := include "sealci-agent.seconds" .Values.environment.grace | int -}}
{{- $delete := include "sealci-agent.seconds" .Values.cluster.delete_timeout | int -}}
{{- add $drain $grace (mul 2 $delete) 60 30 -}}
{{- end -}}
{{- end -}}

{{- /* "true" if a switch (true, false, auto) is on. auto is on if the cluster has the kind. Takes (list . switch kind). */ -}}
{{- define "sealci-agent.switched" -}}
{{- $root := index . 0 -}}
{{- $switch := toString (index . 1) -}}
{{- if or (eq $switch "true") (and (eq $switch "auto") ($root.Capabilities.APIVersions.Has (index . 2))) -}}
true
{{- end -}}
{{- end -}}

{{- define "sealci-agent.schedulerName" -}}
{{- printf "%s-scheduler" (include "sealci-agent.fullname" .) -}}
{{- end -}}

{{- define "sealci-agent.schedulerAddress" -}}
{{- if .Values.scheduler.address -}}
{{- .Values.scheduler.address -}}
{{- else if .Values.demoScheduler.enabled -}}
{{- printf "%s.%s.svc:%d" (include "sealci-agent.schedulerName" .) .Release.Namespace (int .Values.demoScheduler.port) -}}
{{- else -}}
{{- fail "scheduler.address must be set to host:port. To try the agent without a scheduler, set demoScheduler.enabled=true" -}}
{{- end -}}
{{- end -}}

{{- /* The Service that a classic scheduler dials. */ -}}
{{- define "sealci-agent.classicName" -}}
{{- printf "%s-classic" (include "sealci-agent.fullname" .) -}}
{{- end -}}

{{- /* "true" if the scheduler dials the agents. The classic protocol has no password, so the values must name the scheduler. */ -}}
{{- define "sealci-agent.classic" -}}
{{- if eq .Values.scheduler.protocol "classic" -}}
{{- if include "sealci-agent.demo" . -}}
{{- fail "scheduler.protocol: the demo scheduler does not support classic, set scheduler.address" -}}
{{- end -}}
{{- if not (or .Values.networkPolicy.agent.schedulerFrom .Values.scheduler.classic.ca_file) -}}
{{- fail "networkPolicy.agent.schedulerFrom or scheduler.classic.ca_file must be set with scheduler.protocol=classic, because any peer that reaches an agent could run actions (ca_file needs a scheduler or a proxy with TLS, which SealCI 0.2 has not)" -}}
{{- end -}}
true
{{- end -}}
{{- end -}}

{{- /* "true" if the agents use the demo scheduler, which is plaintext. */ -}}
{{- define "sealci-agent.demo" -}}
{{- if and .Values.demoScheduler.enabled (not .Values.scheduler.address) -}}true{{- end -}}
{{- end -}}

{{- define "sealci-agent.autoscaled" -}}
{{- if or .Values.autoscaling.enabled .Values.keda.enabled -}}true{{- end -}}
{{- end -}}
