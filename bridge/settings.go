package bridge

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/crossfade-io/crossfade/jetstream"
)

// How often JetStream's streams and consumers are looked at.
const (
	settingsBeat  = time.Minute
	settingsRetry = time.Second // while there is no answer
)

// settings sets JetStream up, streams that only others read included, and tells
// the operator which existing settings are dangerous: in the log once, in
// readiness for as long as it is so.
type settings struct {
	trouble trouble
	told    map[string]bool // what was logged
}

func (b *Bridge) watchSettings(ctx context.Context) {
	s := &b.settings
	s.told = make(map[string]bool)
	for ctx.Err() == nil {
		wait := settingsBeat
		if b.nats.Health() != nil {
			wait = settingsRetry // the source says that NATS is away
		} else if err := b.lookAtSettings(ctx); err != nil {
			wait = settingsRetry
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

func (b *Bridge) lookAtSettings(ctx context.Context) error {
	report, err := jetstream.Ensure(ctx, b.nats, b.config.JetStream.Setup)
	if ctx.Err() != nil {
		return err
	}
	for _, object := range report.Created {
		b.log.Info("created in JetStream", "object", object)
	}
	s := &b.settings
	var lines []string
	for _, f := range report.Findings {
		line := f.String()
		if !f.Adjusted {
			lines = append(lines, line)
		}
		if !s.told[line] {
			s.told[line] = true
			b.log.Warn("dangerous JetStream setting", "object", f.Object, "setting", f.Setting, "have", f.Have, "want", f.Want,
				"consequence", f.Consequence, "changed", f.Adjusted)
		}
	}
	switch {
	case len(lines) > 0:
		trouble := fmt.Errorf("%d dangerous settings: %s", len(lines), strings.Join(lines, "; "))
		s.trouble.Store(&trouble)
	case err != nil:
		s.trouble.Store(&err)
	default:
		s.trouble.Store(nil)
	}
	return err
}
