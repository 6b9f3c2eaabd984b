package legacy_mqtt

import (
	"math"
	"time"

	"github.com/eclipse/paho.golang/paho"
)

// Forever is what Kept returns for a session that does not expire.
const Forever time.Duration = -1

// unnoticed is what a broker may take longer than it should until it misses a client.
const unnoticed = 10 * time.Second

// Kept is for how long the broker keeps the session after it has last heard of this
// client: the expiry and the keep-alive that were asked for, or those that its last
// CONNACK grants where they are longer, and some seconds besides. [Forever] where it
// keeps it for good. Before the first connection it is what is going to be asked for.
func (s *Source) Kept() time.Duration {
	if kept := s.kept.Load(); kept != 0 {
		return time.Duration(kept)
	}
	return s.cfg.Kept()
}

// Kept is what [Source.Kept] says of a broker that grants what it is asked for.
func (c *Config) Kept() time.Duration { return c.kept(nil) }

func (c *Config) kept(granted *paho.ConnackProperties) time.Duration {
	expiry, alive := c.SessionExpiry, c.KeepAlive
	if granted != nil && granted.SessionExpiryInterval != nil {
		if *granted.SessionExpiryInterval == math.MaxUint32 {
			return Forever
		}
		expiry = max(expiry, time.Duration(*granted.SessionExpiryInterval)*time.Second)
	}
	if granted != nil && granted.ServerKeepAlive != nil {
		if *granted.ServerKeepAlive == 0 {
			return Forever // it may never miss us
		}
		alive = max(alive, time.Duration(*granted.ServerKeepAlive)*time.Second)
	}
	return expiry + 3*alive/2 + unnoticed
}
