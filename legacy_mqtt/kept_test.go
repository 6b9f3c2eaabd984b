package legacy_mqtt

import (
	"math"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"
)

// TestKept: what the broker grants counts where it is longer than what was asked.
func TestKept(t *testing.T) {
	cfg := goodConfig()
	cfg.SessionExpiry, cfg.KeepAlive = time.Hour, 30*time.Second
	asked := time.Hour + 45*time.Second + unnoticed
	expiry := func(seconds uint32) *uint32 { return &seconds }
	alive := func(seconds uint16) *uint16 { return &seconds }
	for name, c := range map[string]struct {
		granted *paho.ConnackProperties
		want    time.Duration
	}{
		"nothing said":        {nil, asked},
		"as asked":            {&paho.ConnackProperties{}, asked},
		"less":                {&paho.ConnackProperties{SessionExpiryInterval: expiry(60), ServerKeepAlive: alive(10)}, asked},
		"longer":              {&paho.ConnackProperties{SessionExpiryInterval: expiry(7200)}, asked + time.Hour},
		"noticed later":       {&paho.ConnackProperties{ServerKeepAlive: alive(60)}, asked + 45*time.Second},
		"for good":            {&paho.ConnackProperties{SessionExpiryInterval: expiry(math.MaxUint32)}, Forever},
		"it never notices it": {&paho.ConnackProperties{ServerKeepAlive: alive(0)}, Forever},
	} {
		s, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.Kept(); got != asked {
			t.Errorf("%s: before the first connection: %v", name, got)
		}
		s.closed = true // nothing is to be subscribed
		s.connectionUp(nil, &paho.Connack{Properties: c.granted})
		if got := s.Kept(); got != c.want {
			t.Errorf("%s: kept for %v, want %v", name, got, c.want)
		}
	}
}
