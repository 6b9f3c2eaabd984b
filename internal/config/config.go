// Package config is the configuration of crossfade's commands: what can be set,
// where it may be set, and what is wrong with it.
//
// Every setting has three names that follow from one another, and a value is
// taken from the first place that has one:
//
//	flag         --mqtt-tls-ca           on the command line
//	environment  CROSSFADE_MQTT_TLS_CA
//	file         mqtt: {tls: {ca: …}}    YAML, named by --config or CROSSFADE_CONFIG
//	default      in the struct tags of this file
//
// The structs are plain data for kong (github.com/alecthomas/kong): a command
// embeds those parts that it needs, and passes [Options] to kong.New.
//
//	type statusCommand struct {
//		Common   config.Common   `embed:""`
//		Database config.Database `embed:"" group:"PostgreSQL"`
//	}
//
// Parsing refuses what cannot be read (an unknown key in the file, "ten" where a
// number belongs). What can be read but cannot work is found by Validate, which
// reports everything at once, and by Warnings. A file is held against all
// settings, whichever command reads it, so that one file serves every command.
//
// Nothing here connects to anything, and nothing here is a type of the packages
// that do: cmd/crossfade translates.
//
// Variables that begin with CROSSFADE_ belong to this package; a command must not
// invent others, or UnknownEnvironment will warn of them.
package config

import (
	"os"
	"time"
)

//go:generate go run ./gendoc -o ../../docs/configuration.md

// Run is everything that `crossfade run` can be told. The zero value is not
// useful: the defaults come from kong ([Options]).
type Run struct {
	Common   Common   `embed:"" group:"General"`
	Database Database `embed:"" group:"PostgreSQL"`
	MQTT     MQTT     `embed:"" group:"MQTT"`
	NATS     NATS     `embed:"" group:"NATS JetStream"`
	Mirror   Mirror   `embed:"" group:"Mirror"`
	Downlink Downlink `embed:"" group:"Downlink"`
	Pipeline Pipeline `embed:"" group:"Pipeline"`
	Bridge   Bridge   `embed:"" group:"Bridge"`
	Stages   Stages   `embed:"" group:"Stages"`
	Flags    Flags    `embed:"" group:"Flags"`
	HTTP     HTTP     `embed:"" group:"HTTP"`
	API      API      `embed:"" group:"API"`
}

// AfterApply fills in the settings whose default depends on another setting or
// on the host: the instance's name and the MQTT client IDs. kong calls it after
// parsing; calling it again changes nothing.
func (r *Run) AfterApply() error {
	if r.Bridge.Instance == "" {
		// A host without a name leaves it empty, and Validate says what to do.
		r.Bridge.Instance, _ = os.Hostname()
	}
	if r.MQTT.ClientID == "" && r.Bridge.Instance != "" {
		r.MQTT.ClientID = "crossfade-" + r.Bridge.Instance
	}
	if r.Mirror.ClientID == "" && r.Bridge.Instance != "" {
		r.Mirror.ClientID = "crossfade-mirror-" + r.Bridge.Instance
	}
	if r.Downlink.ClientID == "" && r.Bridge.Instance != "" {
		r.Downlink.ClientID = "crossfade-downlink-" + r.Bridge.Instance
	}
	return nil
}

// Common is what every command understands.
type Common struct {
	Config    File   `name:"config" env:"CROSSFADE_CONFIG" placeholder:"FILE" help:"YAML file with any of these settings. Unknown keys are refused."`
	LogLevel  string `name:"log-level" env:"CROSSFADE_LOG_LEVEL" default:"info" enum:"debug,info,warn,error" help:"Least severity that is logged: ${enum}."`
	LogFormat string `name:"log-format" env:"CROSSFADE_LOG_FORMAT" default:"text" enum:"text,json" help:"Form of the log on standard error: ${enum}."`
}

// Database is the way to PostgreSQL. Without URL and URLFile the libpq variables
// (PGHOST, PGPORT, PGDATABASE, PGUSER, PGPASSWORD, PGPASSFILE, PGSSLMODE,
// PGSERVICE and the rest) decide, as they do for psql; they also fill in what the
// URL leaves out.
type Database struct {
	URL              Secret        `name:"database-url" env:"CROSSFADE_DATABASE_URL,DATABASE_URL" placeholder:"URL" help:"PostgreSQL to write to, as postgres://user:password@host:5432/name?sslmode=verify-full or as a libpq keyword string. What it leaves out comes from the PG* variables, as for psql."`
	URLFile          string        `name:"database-url-file" env:"CROSSFADE_DATABASE_URL_FILE" type:"filename" placeholder:"FILE" help:"File that holds the database URL, instead of --database-url. At most 64 KiB; a newline at the end is cut."`
	MaxConns         int           `name:"database-max-conns" env:"CROSSFADE_DATABASE_MAX_CONNS" default:"10" range:"2..1000" help:"Most connections to PostgreSQL from this process."`
	StatementTimeout time.Duration `name:"database-statement-timeout" env:"CROSSFADE_DATABASE_STATEMENT_TIMEOUT" default:"30s" range:"1s..1h" help:"PostgreSQL gives up a statement after this long; the batch is tried again."`
	LockTimeout      time.Duration `name:"database-lock-timeout" env:"CROSSFADE_DATABASE_LOCK_TIMEOUT" default:"5s" range:"100ms..10m" help:"PostgreSQL gives up waiting for a lock after this long. Keeps one stuck transaction from holding up the other path. Shorter than --database-statement-timeout, or what is locked cannot be told from what is slow, and is not set aside."`
}

// TLS is how a connection is encrypted. Empty fields leave Go's defaults: the
// system's certificate authorities, no client certificate, the URL's host name.
type TLS struct {
	CA         string `name:"ca" env:"CA" type:"filename" placeholder:"FILE" help:"PEM file of the certificate authorities to trust instead of the system's."`
	Cert       string `name:"cert" env:"CERT" type:"filename" placeholder:"FILE" help:"PEM file of the client certificate; needs the key too."`
	Key        string `name:"key" env:"KEY" type:"filename" placeholder:"FILE" help:"PEM file of the client certificate's private key."`
	ServerName string `name:"server-name" env:"SERVER_NAME" placeholder:"NAME" help:"Name that the server's certificate must carry, where it is not the URL's host."`
}

// Set reports whether any of the TLS settings was given.
func (t TLS) Set() bool { return t != TLS{} }

// MQTT is the subscription that is to be left behind, and the broker that the
// mirror reads.
type MQTT struct {
	Enabled          bool          `name:"mqtt" env:"CROSSFADE_MQTT_ENABLED" default:"true" negatable:"" help:"Take messages from the MQTT broker."`
	URL              Endpoint      `name:"mqtt-url" env:"CROSSFADE_MQTT_URL" placeholder:"URL" help:"The broker: mqtt://host:1883, or mqtts://host:8883 for TLS. It must speak MQTT 5."`
	ClientID         string        `name:"mqtt-client-id" env:"CROSSFADE_MQTT_CLIENT_ID" placeholder:"ID" help:"MQTT client ID, 1 to 65535 bytes. Must stay the same over restarts and differ between instances: the broker keeps unacknowledged messages under it. Default: crossfade-<instance>."`
	User             string        `name:"mqtt-user" env:"CROSSFADE_MQTT_USER" placeholder:"NAME" help:"MQTT user name."`
	Password         Secret        `name:"mqtt-password" env:"CROSSFADE_MQTT_PASSWORD" placeholder:"PASSWORD" help:"MQTT password. Prefer the file: a command line can be read by every user of the host."`
	PasswordFile     string        `name:"mqtt-password-file" env:"CROSSFADE_MQTT_PASSWORD_FILE" type:"filename" placeholder:"FILE" help:"File that holds the MQTT password. At most 64 KiB; a newline at the end is cut."`
	TLS              TLS           `embed:"" prefix:"mqtt-tls-" envprefix:"CROSSFADE_MQTT_TLS_"`
	Group            string        `name:"mqtt-group" env:"CROSSFADE_MQTT_GROUP" placeholder:"NAME" help:"Name of a shared subscription ($$share/NAME/…): instances with the same group divide the messages. Empty: this instance receives all."`
	ReceiveMaximum   int           `name:"mqtt-receive-maximum" env:"CROSSFADE_MQTT_RECEIVE_MAXIMUM" default:"8000" range:"1..65535" help:"Most QoS 1 messages that the broker may have sent and not yet seen acknowledged."`
	WindowBytes      int           `name:"mqtt-window-bytes" env:"CROSSFADE_MQTT_WINDOW_BYTES" default:"134217728" range:"1048576..536870912" help:"Most bytes of MQTT messages that are read and not settled, for each of the source and the mirror. At the limit reading waits, and with it the answers to pings: the connection may be made anew meanwhile."`
	SessionExpiry    time.Duration `name:"mqtt-session-expiry" env:"CROSSFADE_MQTT_SESSION_EXPIRY" default:"24h" range:"1m..1193046h" help:"How long the broker keeps this subscription and its messages while we are away. Whole seconds. Not longer than --pipeline-ledger-retention."`
	Keepalive        time.Duration `name:"mqtt-keepalive" env:"CROSSFADE_MQTT_KEEPALIVE" default:"30s" range:"5s..18h" help:"Longest silence before a ping; a broker that stays silent for half as long again is taken for dead. Whole seconds."`
	Filters          []string      `name:"mqtt-filters" env:"CROSSFADE_MQTT_FILTERS" default:"tenant/+/device/+/+,tenant/+/device/+/shadow/reported,tenant/+/device/+/commands/ack" placeholder:"FILTER" help:"Topic filters to subscribe to, for the source and for the mirror."`
	UsernameProperty string        `name:"mqtt-username-property" env:"CROSSFADE_MQTT_USERNAME_PROPERTY" placeholder:"NAME" help:"MQTT user property in which the broker tells the sender's user name. Only for brokers that set it in every message: a device could send it too. Where a message has several that differ, none counts. Empty: none."`
}

// ReadPassword returns the password, from PasswordFile where that is set. It
// reads the file each time, so a reconnect picks up a rotated password.
func (m MQTT) ReadPassword() (Secret, error) {
	return secretOrFile(m.Password, m.PasswordFile, "mqtt-password-file")
}

// NATS is the JetStream that tenants move to.
type NATS struct {
	Enabled      bool          `name:"nats" env:"CROSSFADE_NATS_ENABLED" default:"true" negatable:"" help:"Take messages from NATS JetStream."`
	URLs         []Endpoint    `name:"nats-url" env:"CROSSFADE_NATS_URL" placeholder:"URL" help:"Servers of one NATS cluster: nats://host:4222, or tls://host:4222 where TLS is a must."`
	Credentials  string        `name:"nats-credentials-file" env:"CROSSFADE_NATS_CREDENTIALS_FILE" type:"filename" placeholder:"FILE" help:"Credentials file (.creds: user JWT and seed)."`
	NKeySeed     string        `name:"nats-nkey-seed-file" env:"CROSSFADE_NATS_NKEY_SEED_FILE" type:"filename" placeholder:"FILE" help:"File that holds the NKey seed of a user."`
	Token        Secret        `name:"nats-token" env:"CROSSFADE_NATS_TOKEN" placeholder:"TOKEN" help:"NATS token. Prefer the file."`
	TokenFile    string        `name:"nats-token-file" env:"CROSSFADE_NATS_TOKEN_FILE" type:"filename" placeholder:"FILE" help:"File that holds the NATS token. At most 64 KiB; a newline at the end is cut."`
	User         string        `name:"nats-user" env:"CROSSFADE_NATS_USER" placeholder:"NAME" help:"NATS user name."`
	Password     Secret        `name:"nats-password" env:"CROSSFADE_NATS_PASSWORD" placeholder:"PASSWORD" help:"NATS password. Prefer the file."`
	PasswordFile string        `name:"nats-password-file" env:"CROSSFADE_NATS_PASSWORD_FILE" type:"filename" placeholder:"FILE" help:"File that holds the NATS password. At most 64 KiB; a newline at the end is cut."`
	TLS          TLS           `embed:"" prefix:"nats-tls-" envprefix:"CROSSFADE_NATS_TLS_"`
	Replicas     int           `name:"nats-replicas" env:"CROSSFADE_NATS_REPLICAS" default:"1" range:"1..5" help:"Replicas of the streams that we create; an odd number, at most the servers in the cluster. Existing streams keep theirs."`
	Adjust       bool          `name:"nats-adjust" env:"CROSSFADE_NATS_ADJUST" default:"false" negatable:"" help:"Change settings of existing streams and consumers that would lose messages or stall (max_deliver, a short ack_wait, a small max_ack_pending). Without it they are only reported."`
	AckWait      time.Duration `name:"nats-ack-wait" env:"CROSSFADE_NATS_ACK_WAIT" default:"60s" range:"1s..1h" help:"How long JetStream waits for the acknowledgement of a message before it delivers it again, on consumers that we create. So long do messages wait that a killed instance had in hand; below 30s, a pause of that length delivers again what is being written. Existing consumers keep theirs."`
	Window       int           `name:"nats-window" env:"CROSSFADE_NATS_WINDOW" default:"16000" range:"1..1000000" help:"Most JetStream messages in hand and not yet acknowledged, per instance."`
	WindowBytes  int           `name:"nats-window-bytes" env:"CROSSFADE_NATS_WINDOW_BYTES" default:"134217728" range:"1048576..536870912" help:"Most bytes of JetStream messages in hand, per consumer. What is more is given back for a second."`
}

// ReadPassword returns the password, from PasswordFile where that is set. It
// reads the file each time, so a reconnect picks up a rotated password.
func (n NATS) ReadPassword() (Secret, error) {
	return secretOrFile(n.Password, n.PasswordFile, "nats-password-file")
}

// ReadToken returns the token, from TokenFile where that is set. It reads the
// file each time, so a reconnect picks up a rotated token.
func (n NATS) ReadToken() (Secret, error) {
	return secretOrFile(n.Token, n.TokenFile, "nats-token-file")
}

// Mirror copies MQTT messages to JetStream where nothing else does. It uses the
// broker, credentials and filters of MQTT, on a connection of its own.
type Mirror struct {
	Enabled  bool   `name:"mirror" env:"CROSSFADE_MIRROR_ENABLED" default:"false" negatable:"" help:"Republish MQTT messages to JetStream as envelopes, acknowledging to the broker only what JetStream has stored."`
	ClientID string `name:"mirror-client-id" env:"CROSSFADE_MIRROR_CLIENT_ID" placeholder:"ID" help:"MQTT client ID of the mirror's connection, stable and distinct like --mqtt-client-id. Default: crossfade-mirror-<instance>."`
	Group    string `name:"mirror-group" env:"CROSSFADE_MIRROR_GROUP" placeholder:"NAME" help:"Shared subscription of the mirrors: set it as soon as more than one instance mirrors, and not to the same as --mqtt-group. Empty: every mirror copies everything."`
}

// Pipeline is how messages are checked and written.
type Pipeline struct {
	BatchSize           int           `name:"pipeline-batch-size" env:"CROSSFADE_PIPELINE_BATCH_SIZE" default:"4000" range:"1..10000" help:"Most messages in one transaction."`
	Linger              time.Duration `name:"pipeline-linger" env:"CROSSFADE_PIPELINE_LINGER" default:"5ms" range:"0s..1s" help:"How long a batch that is not full waits for more."`
	Workers             int           `name:"pipeline-workers" env:"CROSSFADE_PIPELINE_WORKERS" default:"2" range:"1..64" help:"Transactions at the same time; each takes a database connection."`
	MessageIDMember     string        `name:"pipeline-message-id-member" env:"CROSSFADE_PIPELINE_MESSAGE_ID_MEMBER" default:"message_id" placeholder:"NAME" help:"Payload member that holds a device's own message ID, where it sends one. Empty: always derive the ID from the content. All instances must agree."`
	MaxPayloadBytes     int           `name:"pipeline-max-payload-bytes" env:"CROSSFADE_PIPELINE_MAX_PAYLOAD_BYTES" default:"8192" range:"64..1048576" help:"Largest payload in bytes, measured on its canonical form; above it a message is quarantined as PAYLOAD_TOO_LARGE. A row MAX_PAYLOAD_BYTES in app_settings overrides it while running."`
	RateLimitRPS        float64       `name:"pipeline-rate-limit-rps" env:"CROSSFADE_PIPELINE_RATE_LIMIT_RPS" default:"5" range:"0..1000000" help:"Messages a second that a device may send in the long run; what is above is quarantined as RATE_LIMITED. A message counts once, however many copies come. Each instance counts what it writes itself: several that share the work let up to so many times as much pass. 0: no limit. A row RATE_LIMIT_RPS in app_settings overrides it while running."`
	RateLimitBurst      int           `name:"pipeline-rate-limit-burst" env:"CROSSFADE_PIPELINE_RATE_LIMIT_BURST" default:"20" range:"1..1000000" help:"Messages that a device may send at once. A row RATE_LIMIT_BURST in app_settings overrides it while running."`
	RequireToken        bool          `name:"pipeline-require-token" env:"CROSSFADE_PIPELINE_REQUIRE_TOKEN" default:"true" negatable:"" help:"Quarantine telemetry whose provision_token does not match the registry's."`
	CertAuthEnabled     bool          `name:"pipeline-cert-auth-enabled" env:"CROSSFADE_PIPELINE_CERT_AUTH_ENABLED" default:"false" negatable:"" help:"Let telemetry pass without a token when the broker's user name is {tenant}/{device} and device_certificates has an ACTIVE, unexpired certificate with that common name. MQTT copies carry a user name only with --mqtt-username-property."`
	CertTrustTopic      bool          `name:"pipeline-cert-trust-topic" env:"CROSSFADE_PIPELINE_CERT_TRUST_TOPIC" default:"false" negatable:"" help:"With --pipeline-cert-auth-enabled: let a message without a user name pass too, for the device of its topic. Only where the broker lets nobody publish under a device's topic but the holder of its certificate; otherwise anybody may write for every device that has one."`
	AutoProvision       bool          `name:"pipeline-auto-provision" env:"CROSSFADE_PIPELINE_AUTO_PROVISION" default:"false" negatable:"" help:"Register a device that is not, when it sends telemetry, under its tenant's active MAIN subscription if that has room (else NO_SUBSCRIPTION_CAPACITY). Whoever may publish for a tenant may then fill its subscription. A device registered so has no token: with --pipeline-require-token its messages are quarantined as TOKEN_NOT_SET_IN_REGISTRY until one is set, or it logs in by certificate."`
	RegistryTTL         time.Duration `name:"pipeline-registry-ttl" env:"CROSSFADE_PIPELINE_REGISTRY_TTL" default:"1m" range:"100ms..24h" help:"How long an answer of the device registry is reused if no change is announced; changes take effect at once. While announcements cannot be heard, and on tables without our triggers, this is how long a revoked device may still write; in the first case no longer than 5s."`
	LedgerRetention     time.Duration `name:"pipeline-ledger-retention" env:"CROSSFADE_PIPELINE_LEDGER_RETENTION" default:"24h" range:"1h..8760h" help:"How long the ledger remembers a message. At least as long as a broker or stream may keep a copy, or a late copy takes effect twice."`
	TelemetryRetention  time.Duration `name:"pipeline-telemetry-retention" env:"CROSSFADE_PIPELINE_TELEMETRY_RETENTION" default:"0s" range:"0s..876000h" help:"How long telemetry is kept, by the message's own time: 0 for ever, otherwise 1h or more. Older rows are deleted for good, by the day; set it to the same on all instances."`
	QuarantineRetention time.Duration `name:"pipeline-quarantine-retention" env:"CROSSFADE_PIPELINE_QUARANTINE_RETENTION" default:"0s" range:"0s..876000h" help:"How long quarantined messages, and their counts per minute, are kept, by their time of arrival: 0 for ever, otherwise 1h or more. Older ones are deleted for good, messages by the day; set it to the same on all instances."`
}

// Bridge is what decides between the two sources.
type Bridge struct {
	Instance        string        `name:"bridge-instance" env:"CROSSFADE_BRIDGE_INSTANCE" placeholder:"NAME" help:"Name of this process among its peers: letters, digits, '.', '_' and '-', at most 64. Must stay the same over restarts. Default: the host's name."`
	DefaultStage    string        `name:"bridge-default-stage" env:"CROSSFADE_BRIDGE_DEFAULT_STAGE" default:"mqtt" enum:"mqtt,shadow,live,jetstream" help:"Stage of a tenant for which nothing was set: ${enum}. All instances must agree."`
	StandbyWait     time.Duration `name:"bridge-standby-wait" env:"CROSSFADE_BRIDGE_STANDBY_WAIT" default:"5s" range:"10ms..5m" help:"How long a copy on the path that stands by waits for the other path before it is processed after all."`
	StandbyBuffer   int           `name:"bridge-standby-buffer" env:"CROSSFADE_BRIDGE_STANDBY_BUFFER" default:"8000" range:"1..1000000" help:"Most copies standing by, per path; when it is full the oldest are processed."`
	ShutdownTimeout time.Duration `name:"bridge-shutdown-timeout" env:"CROSSFADE_BRIDGE_SHUTDOWN_TIMEOUT" default:"30s" range:"1s..10m" help:"How long SIGTERM waits for messages in hand to be written and acknowledged. What is not done by then is delivered again at the next start."`
	FlagBeat        time.Duration `name:"bridge-flag-beat" env:"CROSSFADE_BRIDGE_FLAG_BEAT" default:"10s" range:"100ms..10m" help:"How often flags are read even if no change was announced."`
}

// HTTP is the listener for health and metrics.
type HTTP struct {
	Listen      string `name:"http-listen" env:"CROSSFADE_HTTP_LISTEN" default:"127.0.0.1:9464" placeholder:"HOST:PORT" help:"Address of /healthz, /readyz and /metrics. Port 0 takes a free one."`
	AllowRemote bool   `name:"http-allow-remote" env:"CROSSFADE_HTTP_ALLOW_REMOTE" default:"false" negatable:"" help:"Let --http-listen be other than loopback. The listener asks for no password: put it where only monitoring reaches it."`
}
