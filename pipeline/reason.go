package pipeline

// Reason is why a message is quarantined: one of the codes of CONTRACT.md, or
// Accepted. Dashboards and other services rely on the codes.
type Reason string

// The reasons, in the order in which they are checked.
const (
	Accepted               Reason = ""
	InvalidJSON            Reason = "INVALID_JSON"
	BadTopicFormat         Reason = "BAD_TOPIC_FORMAT"
	TenantMismatchEnvelope Reason = "TENANT_MISMATCH_TOPIC_VS_ENVELOPE"
	UnsupportedVersion     Reason = "UNSUPPORTED_ENVELOPE_VERSION"
	PayloadTooLarge        Reason = "PAYLOAD_TOO_LARGE"
	MetricsInvalid         Reason = "METRICS_INVALID"
	TooManyMetrics         Reason = "TOO_MANY_METRICS"
	MetricKeyTooLong       Reason = "METRIC_KEY_TOO_LONG"
	MetricKeyInvalid       Reason = "METRIC_KEY_INVALID"
	MetricValueInvalid     Reason = "METRIC_VALUE_INVALID"
	SeqInvalid             Reason = "SEQ_INVALID"
	RateLimited            Reason = "RATE_LIMITED"
	TenantMismatchPayload  Reason = "TENANT_MISMATCH_TOPIC_VS_PAYLOAD"
	MissingSiteID          Reason = "MISSING_SITE_ID"
	UnregisteredDevice     Reason = "UNREGISTERED_DEVICE"
	NoSubscriptionCapacity Reason = "NO_SUBSCRIPTION_CAPACITY"
	SubscriptionSuspended  Reason = "SUBSCRIPTION_SUSPENDED"
	SubscriptionExpired    Reason = "SUBSCRIPTION_EXPIRED"
	DeviceRevoked          Reason = "DEVICE_REVOKED"
	SiteMismatch           Reason = "SITE_MISMATCH_REGISTRY_VS_PAYLOAD"
	TokenNotSet            Reason = "TOKEN_NOT_SET_IN_REGISTRY"
	TokenMissing           Reason = "TOKEN_MISSING"
	TokenInvalid           Reason = "TOKEN_INVALID"
	ShadowInvalid          Reason = "SHADOW_INVALID"
	CommandAckInvalid      Reason = "COMMAND_ACK_INVALID"
)
