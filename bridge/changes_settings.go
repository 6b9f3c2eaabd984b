package bridge

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/crossfade-io/crossfade/internal/backoff"
	"github.com/crossfade-io/crossfade/pipeline/check"
)

// appSettingsBeat is how often app_settings is read though nothing was announced,
// and appSettingsPause the least between two readings.
const (
	appSettingsBeat  = 5 * time.Second
	appSettingsPause = 50 * time.Millisecond
)

// appSetting is a row of app_settings that overrides what is configured.
type appSetting struct {
	key  string
	want string // for people
	set  func(s *check.Settings, value string) bool
}

var appSettingRows = []appSetting{
	{"RATE_LIMIT_RPS", "a number of messages a second, 0 (no limit) to 1000000", func(s *check.Settings, value string) bool {
		f, err := strconv.ParseFloat(value, 64)
		s.RateLimit = f
		return err == nil && f >= 0 && f <= 1e6 && !math.Signbit(f)
	}},
	{"RATE_LIMIT_BURST", "a whole number of messages, 1 to 1000000", func(s *check.Settings, value string) bool {
		return setInt(&s.RateBurst, value, 1, 1e6)
	}},
	{"MAX_PAYLOAD_BYTES", "a whole number of bytes, 64 to 1048576", func(s *check.Settings, value string) bool {
		return setInt(&s.MaxPayloadBytes, value, 64, 1<<20)
	}},
}

func setInt(field *int, value string, low, high int) bool {
	n, err := strconv.Atoi(value)
	*field = n
	return err == nil && n >= low && n <= high
}

// appSettings has the rows of app_settings take effect: upon notification, and on a
// beat in case one was lost. A row overrides what is configured; without one, what
// is configured holds again.
type appSettings struct {
	read       func(ctx context.Context, keys []string) (map[string]string, error)
	apply      func(check.Settings) error
	configured check.Settings
	log        *slog.Logger
	changed    chan struct{}
	beat       time.Duration

	// Of the goroutine that reads:
	current check.Settings
	good    map[string]string // the last usable value of each row
	told    map[string]string // the unusable ones that were logged
	failing bool
}

func newAppSettings(configured check.Settings, read func(context.Context, []string) (map[string]string, error), apply func(check.Settings) error, log *slog.Logger) *appSettings {
	return &appSettings{read: read, apply: apply, configured: configured, current: configured, log: log,
		changed: make(chan struct{}, 1), beat: appSettingsBeat, good: make(map[string]string), told: make(map[string]string)}
}

// follow works until ctx ends.
func (a *appSettings) follow(ctx context.Context) {
	beat := time.NewTicker(a.beat)
	defer beat.Stop()
	for ctx.Err() == nil {
		err := a.load(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil && !a.failing {
			a.log.Warn("app_settings cannot be read; the settings stay as they are", "error", err)
		}
		a.failing = err != nil
		backoff.Sleep(ctx, appSettingsPause)
		select {
		case <-ctx.Done():
		case <-a.changed:
		case <-beat.C:
		}
	}
}

// load reads the rows and has them take effect.
func (a *appSettings) load(ctx context.Context) error {
	keys := make([]string, len(appSettingRows))
	for i, row := range appSettingRows {
		keys[i] = row.key
	}
	values, err := a.read(ctx, keys)
	if err != nil {
		return err
	}
	s := a.configured
	for _, row := range appSettingRows {
		a.override(&s, row, values)
	}
	if s == a.current {
		return nil
	}
	if err := a.apply(s); err != nil {
		return fmt.Errorf("app_settings: %w", err)
	}
	a.current = s
	a.log.Info("settings have changed", "rate_limit_rps", s.RateLimit, "rate_limit_burst", s.RateBurst, "max_payload_bytes", s.MaxPayloadBytes)
	return nil
}

// override sets what a row says. Of one that says nothing usable the last usable
// value stays.
func (a *appSettings) override(s *check.Settings, row appSetting, values map[string]string) {
	raw, ok := values[row.key]
	if !ok {
		delete(a.good, row.key)
		delete(a.told, row.key)
		return
	}
	value := strings.Trim(raw, " \t\r\n\"") // quotes are those of a jsonb text
	tried := *s
	if row.set(&tried, value) {
		*s, a.good[row.key] = tried, value
		delete(a.told, row.key)
		return
	}
	if told, ok := a.told[row.key]; !ok || told != raw {
		a.told[row.key] = raw
		a.log.Warn("a row of app_settings cannot be used; what held before stays", "key", row.key, "value", fmt.Sprintf("%.64s", raw),
			"remedy", "set it to "+row.want+", or delete the row to use what is configured")
	}
	if good, ok := a.good[row.key]; ok {
		row.set(s, good)
	}
}
