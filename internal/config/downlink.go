package config

import "time"

// Downlink is what sends to devices (docs/downlink.md). It uses the broker and the
// credentials of MQTT, on a connection of its own, whether or not MQTT is enabled as a
// source.
type Downlink struct {
	Enabled  bool          `name:"downlink" env:"CROSSFADE_DOWNLINK_ENABLED" default:"false" negatable:"" help:"Send desired states, commands and answers to acks to devices over MQTT. Not while another service sends them: devices would get commands twice. One instance is enough; several share the work."`
	ClientID string        `name:"downlink-client-id" env:"CROSSFADE_DOWNLINK_CLIENT_ID" placeholder:"ID" help:"MQTT client ID of the connection that sends to devices, stable and distinct like --mqtt-client-id. The broker must let every instance connect with those of the others: that is how one that is frozen is cut off. Default: crossfade-downlink-<instance>."`
	Window   int           `name:"downlink-window" env:"CROSSFADE_DOWNLINK_WINDOW" default:"1000" range:"1..65535" help:"Most messages to devices that may be sent and not yet confirmed; the broker's Receive Maximum bounds it further."`
	Missed   time.Duration `name:"downlink-missed" env:"CROSSFADE_DOWNLINK_MISSED" default:"24h" range:"0s..8760h" help:"After how long a command without an expiry that was published and not acknowledged becomes missed: 1s or more, or 0 for never."`
}

func (d *Downlink) validate(p *problems, r *Run) {
	if !d.Enabled {
		return
	}
	clientID(p, "downlink-client-id", d.ClientID)
	for flag, other := range map[string]string{"mqtt": r.MQTT.ClientID, "mirror": r.Mirror.ClientID} {
		if d.ClientID != "" && d.ClientID == other {
			p.add("downlink-client-id", "is the same as --"+flag+"-client-id: the broker would cut off one connection whenever the other comes", "choose another")
		}
	}
	if d.Missed > 0 && d.Missed < time.Second {
		p.add("downlink-missed", d.Missed.String()+" is less than a device takes to answer", "set 1s or more (24h is the default), or 0 for never")
	}
}
