package main

import (
	"context"

	"github.com/crossfade-io/crossfade/bridge"
	"github.com/crossfade-io/crossfade/bridge/api"
	"github.com/crossfade-io/crossfade/bridge/downlink"
	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/internal/config"
	"github.com/crossfade-io/crossfade/jetstream"
	"github.com/crossfade-io/crossfade/legacy_mqtt"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

type runCommand struct {
	Config config.Run `embed:""`
}

// Help is shown by --help below the summary.
func (runCommand) Help() string {
	return `Every setting may stand on the command line, in the environment or in the YAML file: see docs/configuration.md. SIGTERM stops gracefully: what is in hand is written and acknowledged first; a second signal skips that.

Examples:

  crossfade run --config crossfade.yaml
  crossfade run --database-url postgres://crossfade@db/iot --mqtt-url mqtts://broker:8883 --mqtt-user bridge --mqtt-password-file /run/secrets/mqtt --nats-url nats://nats:4222 --mirror
  CROSSFADE_MQTT_GROUP=ingest crossfade run --config crossfade.yaml --bridge-instance b2`
}

// Run runs an instance until ctx ends.
func (r *runCommand) Run(ctx context.Context, c *console) error {
	log := c.logger(r.Config.Common)
	if err := r.Config.Validate(); err != nil {
		return err
	}
	for _, w := range append(r.Config.Warnings(), unknownEnvironment()...) {
		log.Warn(w)
	}
	log.Debug("configuration", "settings", &r.Config)
	bc, err := bridgeConfig(&r.Config)
	if err != nil {
		return err
	}
	bc.Logger = log
	if err := wireFlagProvider(&bc.Flags, r.Config.Flags, log); err != nil {
		return err
	}
	b, err := bridge.New(ctx, bc)
	if err != nil {
		return err
	}
	return b.Run(ctx)
}

// bridgeConfig translates the settings for the packages that use them.
func bridgeConfig(r *config.Run) (bridge.Config, error) {
	sc, err := storeConfig(r.Database)
	if err != nil {
		return bridge.Config{}, err
	}
	bc := bridge.DefaultConfig(sc.URL)
	bc.Instance, bc.Version = r.Bridge.Instance, version
	bc.Store = sc
	bc.Partitions.LedgerRetention = r.Pipeline.LedgerRetention
	bc.Partitions.TelemetryRetention, bc.Partitions.QuarantineRetention = r.Pipeline.TelemetryRetention, r.Pipeline.QuarantineRetention
	p := &bc.Pipeline
	p.Settings.MaxPayloadBytes, p.Settings.RequireToken = r.Pipeline.MaxPayloadBytes, r.Pipeline.RequireToken
	p.Settings.RateLimit, p.Settings.RateBurst = r.Pipeline.RateLimitRPS, r.Pipeline.RateLimitBurst
	p.Settings.CertAuth, p.Settings.CertTrustTopic, p.AutoProvision = r.Pipeline.CertAuthEnabled, r.Pipeline.CertTrustTopic, r.Pipeline.AutoProvision
	p.IDMember, p.BatchSize, p.Linger = r.Pipeline.MessageIDMember, r.Pipeline.BatchSize, r.Pipeline.Linger
	p.Workers, p.RegistryTTL = r.Pipeline.Workers, r.Pipeline.RegistryTTL
	bc.StandbyWait, bc.StandbyBuffer = r.Bridge.StandbyWait, r.Bridge.StandbyBuffer
	bc.DefaultStage, bc.FlagBeat = stage.Stage(r.Bridge.DefaultStage), r.Bridge.FlagBeat
	stages := &bc.Control
	stages.Dwell, stages.LeaseTTL, stages.Renew = r.Stages.Dwell, r.Stages.LeaseTTL, min(stages.Renew, r.Stages.LeaseTTL/5)
	stages.BeatEvery, stages.BeatRate, stages.Missing = r.Stages.BeatEvery, r.Stages.BeatRate, r.Stages.Missing
	bc.ShutdownTimeout, bc.Listen = r.Bridge.ShutdownTimeout, r.HTTP.Listen
	bc.API = apiConfig(r.API)
	if r.MQTT.Enabled || r.Mirror.Enabled || r.Downlink.Enabled {
		mc, err := mqttConfig(r.MQTT)
		if err != nil {
			return bc, err
		}
		if r.MQTT.Enabled {
			bc.MQTT = &mc
		}
		if r.Mirror.Enabled {
			mirror := mc
			mirror.ClientID, mirror.Group = r.Mirror.ClientID, r.Mirror.Group
			bc.Mirror = &mirror
		}
		if r.Downlink.Enabled {
			bc.Downlink = downlinkOptions(r.Downlink, mc)
		}
	}
	if r.NATS.Enabled || r.Mirror.Enabled {
		nc, err := natsConfig(r.NATS, r.Bridge.Instance)
		if err != nil {
			return bc, err
		}
		bc.NATS = &nc
	}
	if r.NATS.Enabled {
		js := jetstream.DefaultSourceConfig()
		js.Window, js.WindowBytes = r.NATS.Window, int64(r.NATS.WindowBytes)
		js.Fetch = min(js.Fetch, js.Window)
		js.Setup.Replicas, js.Setup.Adjust, js.Setup.Batch = r.NATS.Replicas, r.NATS.Adjust, r.Pipeline.BatchSize
		js.Setup.AckWait = r.NATS.AckWait
		bc.JetStream = &js
	}
	return bc, nil
}

func storeConfig(d config.Database) (store.Config, error) {
	url, err := d.ConnString()
	if err != nil {
		return store.Config{}, err
	}
	sc := store.DefaultConfig(url.Reveal())
	sc.MaxConns, sc.StatementTimeout, sc.LockTimeout = d.MaxConns, d.StatementTimeout, d.LockTimeout
	return sc, nil
}

// apiConfig is nil where there is to be no API.
func apiConfig(a config.API) *api.Config {
	if !a.Enabled() {
		return nil
	}
	c := api.DefaultConfig()
	c.Listen, c.CertFile, c.KeyFile, c.AllowPlaintext = a.Listen, a.TLSCert, a.TLSKey, a.AllowPlaintext
	c.MaxConns, c.DeviceRate, c.TokenRate, c.Version = a.DatabaseConns, a.DeviceRate, a.TokenRate, version
	return &c
}

// downlinkOptions sends to the same broker, with the same login, under a name of its own.
func downlinkOptions(d config.Downlink, broker legacy_mqtt.Config) *downlink.Options {
	o := downlink.DefaultOptions()
	o.MQTT, o.ClientID, o.Window, o.Missed = broker, d.ClientID, d.Window, d.Missed
	return &o
}

func mqttConfig(m config.MQTT) (legacy_mqtt.Config, error) {
	password, err := m.ReadPassword()
	if err != nil {
		return legacy_mqtt.Config{}, err
	}
	mc := legacy_mqtt.DefaultConfig()
	mc.URL, mc.ClientID = string(m.URL), m.ClientID
	mc.Username, mc.Password = m.User, password.Reveal()
	mc.TLS = legacy_mqtt.TLSConfig{CAFile: m.TLS.CA, CertFile: m.TLS.Cert, KeyFile: m.TLS.Key, ServerName: m.TLS.ServerName}
	mc.Group, mc.Filters, mc.UsernameProperty = m.Group, m.Filters, m.UsernameProperty
	mc.Window, mc.WindowBytes, mc.SessionExpiry, mc.KeepAlive = m.ReceiveMaximum, int64(m.WindowBytes), m.SessionExpiry, m.Keepalive
	return mc, nil
}

func natsConfig(n config.NATS, instance string) (jetstream.Config, error) {
	password, err := n.ReadPassword()
	if err != nil {
		return jetstream.Config{}, err
	}
	token, err := n.ReadToken()
	if err != nil {
		return jetstream.Config{}, err
	}
	nc := jetstream.DefaultConfig()
	nc.URLs = nc.URLs[:0]
	for _, u := range n.URLs {
		nc.URLs = append(nc.URLs, string(u))
	}
	nc.Name = "crossfade " + instance
	nc.CredentialsFile, nc.NKeySeedFile = n.Credentials, n.NKeySeed
	nc.Token, nc.User, nc.Password = token.Reveal(), n.User, password.Reveal()
	nc.TLSCAFile, nc.TLSCertFile, nc.TLSKeyFile, nc.TLSServerName = n.TLS.CA, n.TLS.Cert, n.TLS.Key, n.TLS.ServerName
	return nc, nil
}
