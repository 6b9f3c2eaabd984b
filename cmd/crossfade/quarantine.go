package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kong"

	"github.com/crossfade-io/crossfade/internal/config"
	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

type quarantineCommand struct {
	List   quarantineListCommand   `cmd:"" help:"List quarantined messages, newest first, or count them by tenant and reason."`
	Show   quarantineShowCommand   `cmd:"" help:"Show all there is of one quarantined message."`
	Replay quarantineReplayCommand `cmd:"" help:"Run quarantined messages through the pipeline again, once what they were refused for is mended."`
	Purge  quarantinePurgeCommand  `cmd:"" help:"Delete quarantined messages for good."`
}

// quarantineFilter selects messages; list, replay and purge share it.
type quarantineFilter struct {
	Tenant []string `sep:"none" placeholder:"TENANT" help:"Only this tenant's; may be repeated. Empty: those of which no tenant could be read."`
	Device []string `sep:"none" placeholder:"DEVICE" help:"Only this device's; may be repeated."`
	Reason []string `sep:"none" placeholder:"CODE" help:"Only those with this reason code, as TOKEN_INVALID; may be repeated."`
	Since  *string  `placeholder:"TIME" help:"Only those that arrived then or later: RFC 3339, a date, or how long ago, as 2h or 7d."`
	Until  *string  `placeholder:"TIME" help:"Only those that arrived before then."`
	ID     rowIDs   `name:"id" placeholder:"ID" help:"Only the row with this ID; may be repeated."`
}

// rowIDs are given one by one, or with commas between them. Kong would take an empty
// text for no ID at all, and the filter for one that selects every row.
type rowIDs []int64

// Decode reads what one flag was given.
func (r *rowIDs) Decode(ctx *kong.DecodeContext) error {
	var list string
	if err := ctx.Scan.PopValueInto("ID", &list); err != nil {
		return err
	}
	for text := range strings.SplitSeq(list, ",") {
		id, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
		if err != nil {
			return fmt.Errorf("%q is not the ID of a row: give a whole number, as crossfade quarantine list shows it", text)
		}
		*r = append(*r, id)
	}
	return nil
}

// resolve turns what was given into what the store understands.
func (q *quarantineFilter) resolve(ctx context.Context, s *store.Store, now time.Time) (f store.QuarantineFilter, err error) {
	f.IDs, f.Tenants, f.Devices = q.ID, q.Tenant, q.Device
	if f.Since, err = parseBound("--since", q.Since, now); err != nil {
		return f, err
	}
	if f.Until, err = parseBound("--until", q.Until, now); err != nil {
		return f, err
	}
	if !f.Since.IsZero() && !f.Until.IsZero() && !f.Since.Before(f.Until) {
		return f, usageError{fmt.Errorf("--since %s is not before --until %s", *q.Since, *q.Until)}
	}
	for _, list := range q.Reason {
		for code := range strings.SplitSeq(list, ",") {
			r, err := knownReason(ctx, s, code)
			if err != nil {
				return f, err
			}
			f.Reasons = append(f.Reasons, r)
		}
	}
	return f, nil
}

// knownReason refuses what can only be a slip, and "" above all.
func knownReason(ctx context.Context, s *store.Store, code string) (pipeline.Reason, error) {
	if r := pipeline.Reason(strings.ToUpper(code)); slices.Contains(reasons, r) {
		return r, nil
	}
	// A service before this one may have had codes of its own.
	r := pipeline.Reason(code)
	if has, err := s.HasReason(ctx, r); err != nil || !has {
		return "", errors.Join(err, usageError{fmt.Errorf("--reason %s is no reason code, and no message has it; choose of %s", dash(printable(code)), reasonList())})
	}
	return r, nil
}

// reasons are all the codes, in the order in which they are checked.
var reasons = []pipeline.Reason{
	pipeline.InvalidJSON, pipeline.BadTopicFormat, pipeline.TenantMismatchEnvelope, pipeline.UnsupportedVersion, pipeline.PayloadTooLarge,
	pipeline.MetricsInvalid, pipeline.TooManyMetrics, pipeline.MetricKeyTooLong, pipeline.MetricKeyInvalid, pipeline.MetricValueInvalid, pipeline.SeqInvalid,
	pipeline.RateLimited, pipeline.TenantMismatchPayload, pipeline.MissingSiteID, pipeline.UnregisteredDevice, pipeline.NoSubscriptionCapacity,
	pipeline.SubscriptionSuspended, pipeline.SubscriptionExpired, pipeline.DeviceRevoked, pipeline.SiteMismatch,
	pipeline.TokenNotSet, pipeline.TokenMissing, pipeline.TokenInvalid, pipeline.ShadowInvalid, pipeline.CommandAckInvalid,
}

func reasonList() string {
	names := make([]string, len(reasons))
	for i, r := range reasons {
		names[i] = string(r)
	}
	return strings.Join(names, ", ")
}

// parseBound reads a bound of a filter, nil for none. An empty one is a script's variable
// that was never set: to take it for no bound would delete what it was to spare.
func parseBound(flag string, s *string, now time.Time) (time.Time, error) {
	switch {
	case s == nil:
		return time.Time{}, nil
	case *s == "":
		return time.Time{}, usageError{fmt.Errorf("%s is empty: give a time, or leave it out", flag)}
	}
	return parseMoment(flag, *s, now)
}

// parseMoment reads a time, or how long ago it was; "" is the zero time, which no other
// text is.
func parseMoment(flag, s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{time.RFC3339Nano, time.DateOnly} {
		if t, err := time.Parse(layout, s); err == nil && !t.IsZero() {
			return t, nil
		}
	}
	ago, err := time.ParseDuration(s)
	if days, isDays := strings.CutSuffix(s, "d"); isDays {
		var n int
		n, err = strconv.Atoi(days)
		if n < 0 || n > 100_000 { // more than a Duration holds would come round to minutes ago
			err = strconv.ErrRange
		}
		ago = time.Duration(n) * 24 * time.Hour
	}
	if err != nil || ago < 0 {
		return time.Time{}, usageError{fmt.Errorf("%s is %q: give a time as 2026-11-23T09:00:00Z or 2026-11-23, or how long ago as 90m, 2h or 7d", flag, s)}
	}
	return now.Add(-ago), nil
}

// openStore connects, with an error that says what to do where that fails.
func openStore(ctx context.Context, d config.Database) (*store.Store, error) {
	if err := d.Validate(); err != nil {
		return nil, err
	}
	sc, err := storeConfig(d)
	if err != nil {
		return nil, err
	}
	return connect(ctx, sc)
}

func connect(ctx context.Context, sc store.Config) (*store.Store, error) {
	s, err := store.Open(ctx, sc)
	if err != nil {
		return nil, err
	}
	if err := s.Ping(ctx); err != nil {
		s.Close()
		return nil, fmt.Errorf("PostgreSQL cannot be reached (check --database-url or DATABASE_URL): %w", err)
	}
	return s, nil
}

// confirm asks on standard error and reads the answer from standard input. Only
// "y" and "yes" are a yes; no answer at all is a mistake of usage.
func confirm(ctx context.Context, c *console, question string) error {
	fmt.Fprintf(c.err, "%s [y/N] ", question)
	type answer struct {
		line string
		err  error
	}
	answers := make(chan answer, 1)
	go func() {
		line, err := bufio.NewReader(os.Stdin).ReadString('\n')
		answers <- answer{line, err}
	}()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case a := <-answers:
		switch line := strings.ToLower(strings.TrimSpace(a.line)); {
		case line == "y" || line == "yes":
			return nil
		case line == "" && a.err != nil:
			return usageError{errors.New("there is nobody to ask: pass --yes")}
		}
		return fmt.Errorf("%w: nothing was changed", errNo)
	}
}

func messages(n int64) string {
	if n == 1 {
		return "1 message"
	}
	return strconv.FormatInt(n, 10) + " messages"
}
