package store

import (
	"context"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/route"
)

// Entry is one message with the verdict of the checks.
type Entry struct {
	Msg *pipeline.Message
	// Reason is why the message goes to quarantine; Accepted for one to be written.
	Reason pipeline.Reason
	Detail string
	// Device is the registry's entry; nil where there is none or no check got so far
	// as to ask. A message to be written always has one.
	Device *pipeline.Device
	// Routes are those that the message matches: each gets a row in the outbox.
	Routes []*route.Route
	// Bare asks for the shortest possible quarantine row, for a table that refuses
	// the full one: see bareText.
	Bare bool
	// Metered entries are charged to their device's rate limit if they take effect;
	// Rate is what came of it.
	Metered bool
	Rate    Rate

	// Fresh is set by Commit: this copy took effect. Otherwise the message was
	// there already and this copy changed nothing.
	Fresh bool
}

// Rate is what the rate limit says of an entry. Once given it stays, however often
// the batch is run again: a message is charged once.
type Rate uint8

// An entry is not charged before its first transaction finds it to be new.
const (
	RateOpen Rate = iota
	RateCharged
	RateLimited
)

func (e *Entry) outcome() outcome {
	if e.Reason != pipeline.Accepted {
		return outcomeQuarantined
	}
	return outcomeWritten
}

// Commit writes a batch in one transaction: every message that the ledger does
// not have yet takes effect and enters the ledger, all the others change nothing.
// It sets Fresh on the entries. Entries may hold the same message more than once.
//
// On an error nothing counts as written: Fresh is then meaningless. After ErrLocked
// some of the entries may go through by themselves. After
// ErrUnavailable the transaction may have been committed all the same, which the
// ledger will show when the batch is run again.
func (s *Store) Commit(ctx context.Context, entries []Entry) error {
	return s.CommitMetered(ctx, entries, nil)
}

// CommitMetered is Commit under a rate limit. charge is called, unless it is nil,
// for every entry that takes effect, is Metered and has its Rate open, in order of
// arrival; it sets Rate, and Reason where the entry is to go to quarantine.
func (s *Store) CommitMetered(ctx context.Context, entries []Entry, charge func(*Entry)) error {
	order := make([]*Entry, len(entries))
	for i := range entries {
		entries[i].Fresh = false
		order[i] = &entries[i]
	}
	slices.SortStableFunc(order, func(a, b *Entry) int { return compareIDs(a.Msg.ID, b.Msg.ID) })
	// Of anonymous copies in one slot any may be the one that counts: the ledger decides.
	order = slices.CompactFunc(order, func(a, b *Entry) bool { return a.Msg.ID == b.Msg.ID && !a.Msg.Anonymous })

	tx, err := s.begin(ctx)
	if err != nil {
		return translate("begin", err)
	}
	defer rollback(tx)
	if err := claim(ctx, tx, order); err != nil {
		return translate("insert into the ledger", err)
	}
	if err := meter(ctx, tx, entries, charge); err != nil {
		return translate("correct the ledger", err)
	}
	if err := s.writeEffects(ctx, tx, entries); err != nil {
		return err
	}
	return commit(ctx, tx)
}

// writeEffects writes what the fresh entries leave behind, in order of arrival.
func (s *Store) writeEffects(ctx context.Context, tx pgx.Tx, entries []Entry) error {
	var telemetry, shadows, acks, quarantined []*Entry
	for i := range entries {
		e := &entries[i]
		switch {
		case !e.Fresh:
		case e.Reason != pipeline.Accepted:
			quarantined = append(quarantined, e)
		case e.Msg.Kind == pipeline.KindShadow:
			shadows = append(shadows, e)
		case e.Msg.Kind == pipeline.KindCommandAck:
			acks = append(acks, e)
		default:
			telemetry = append(telemetry, e)
		}
	}
	devices := lockedWith(telemetry, shadows)
	for _, step := range []struct {
		name    string
		entries []*Entry
		write   func(context.Context, pgx.Tx, []*Entry) error
	}{
		{"copy into telemetry", telemetry, writeTelemetry},
		{"write devices", devices, writeDevices},
		{"copy into crossfade_outbox", telemetry, writeOutbox}, // under the devices' locks, which keep their messages in order
		{"update device_state", shadows, writeShadows},
		{"update device_commands", acks, s.writeAcks},
		{"insert into quarantine_events", quarantined, writeQuarantine},
		{"notify telemetry_inserted", telemetry, notifyTenants},
	} {
		if len(step.entries) == 0 {
			continue
		}
		if err := step.write(ctx, tx, step.entries); err != nil {
			return translate(step.name, err)
		}
	}
	return nil
}

// lockedWith is the telemetry, followed by the shadow reports that come with it;
// reports that come alone need no other lock than their own.
func lockedWith(telemetry, shadows []*Entry) []*Entry {
	if len(telemetry) == 0 || len(shadows) == 0 {
		return telemetry
	}
	return slices.Concat(telemetry, shadows)
}
