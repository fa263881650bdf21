{{/* The parts of the shop: the command, the secrets (`maybe`: only if they are given) and the queues of each. tests/deploy
checks the queues against contracts/. */}}
{{- define "forage.parts" -}}
users:
  run: services.users
  secrets: [AMQP_URI, USERS_DB_URI, JWT_SECRET]
  maybe: [JWT_SECRET_PREVIOUS, GOOGLE_CLIENT_SECRET]
  queues: [rpc-users]
products:
  run: services.products
  secrets: [AMQP_URI, PRODUCTS_DB_URI]
  queues:
    - rpc-products
    - evt-orders-order.created--products.commit_reservation
    - evt-orders-order.status.updated--products.return_cancelled_stock
    - evt-orders-order.abandoned--products.release_abandoned_stock
orders:
  run: services.orders
  secrets: [AMQP_URI, ORDERS_DB_URI]
  queues: [rpc-orders]
notifications:
  run: services.notifications
  secrets: [AMQP_URI, NOTIFICATIONS_DB_URI]
  maybe: [SMTP_PASSWORD]
  queues:
    - rpc-notifications
    - evt-orders-order.created--notifications.confirm_order
    - evt-orders-order.status.updated--notifications.tell_status
    - evt-users-user.registered--notifications.send_verification
    - evt-users-user.verification_requested--notifications.send_verification_again
    - evt-users-user.password_reset_requested--notifications.send_password_reset
gateway:
  run: gateway
  port: 3000
  secrets: [AMQP_URI, JWT_SECRET]
  maybe: [JWT_SECRET_PREVIOUS, RATE_LIMIT_STORAGE_URI]
frontend:
  port: 8080
{{- end }}

{{/* The parts that own a database. */}}
{{- define "forage.owners" -}}
{{- range $part, $is := include "forage.parts" . | fromYaml }}{{ if $is.queues }}{{ $part }} {{ end }}{{ end }}
{{- end }}

{{/* Fails on a value that is for a part which does not exist. values.schema.json checks all other names. */}}
{{- define "forage.refuse_unknown_names" -}}
{{- $parts := include "forage.parts" . | fromYaml }}
{{- range $name, $is := .Values.processes }}
{{- if not (hasKey $parts $name) }}{{ fail (printf "processes.%s is not known: there is no such process." $name) }}{{ end }}
{{- end }}
{{- $owners := include "forage.owners" . | trim | splitList " " }}
{{- range $name, $is := .Values.secrets }}
{{- if and (hasSuffix "_DB_URI" $name) (not (has (trimSuffix "_DB_URI" $name | lower) $owners)) }}
{{- fail (printf "secrets.%s is not known: no service has this database." $name) }}
{{- end }}
{{- end }}
{{- range $name, $is := .Values.networkPolicy.peers }}
{{- if and (hasSuffix "-db" $name) (not (has (trimSuffix "-db" $name) $owners)) }}
{{- fail (printf "networkPolicy.peers.%s is not known: no service has this database." $name) }}
{{- end }}
{{- end }}
{{- end }}
