package downlink

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// bar is what keeps lanes from being taken over: the MQTT client that held them before
// cannot be cut off.
type bar struct {
	lanes    records
	err      error
	failures int
	until    time.Time // when it is tried again
	told     bool
}

// records are lanes that a client is recorded to hold, and since when. A record that is
// renewed is another one: the client has come back by itself, and left again or not.
type records map[int16]time.Time

func (r records) slice() []int16 { return slices.Collect(maps.Keys(r)) }

// mostFencing bounds what cutting off former holders takes of a turn.
const mostFencing = 10 * time.Second

// lookAtBars forgets bars that are gone, and has the lanes of the others left alone
// until they are to be tried again.
func (n *session) lookAtBars(ctx context.Context) error {
	if len(n.barred) == 0 {
		n.hold.Avoid(nil)
		return nil
	}
	rows, err := n.hold.Conn().Query(ctx, `SELECT lane, client_id, since FROM crossfade_downlink_lanes WHERE client_id = ANY($1)`, slices.Collect(maps.Keys(n.barred)))
	if err != nil {
		return fmt.Errorf("read crossfade_downlink_lanes: %w", err)
	}
	recorded, err := byClient(rows)
	if err != nil {
		return err
	}
	var avoid []int16
	for clientID, b := range n.barred {
		maps.DeleteFunc(b.lanes, func(lane int16, since time.Time) bool { return !recorded[clientID][lane].Equal(since) })
		switch {
		case len(b.lanes) == 0: // somebody has taken them over, or an operator has deleted the record
			delete(n.barred, clientID)
		case time.Now().Before(b.until):
			avoid = append(avoid, b.lanes.slice()...)
		}
	}
	n.hold.Avoid(avoid)
	return nil
}

func byClient(rows pgx.Rows) (map[string]records, error) {
	lanes := make(map[string]records)
	var lane int16
	var clientID string
	var since time.Time
	_, err := pgx.ForEachRow(rows, []any{&lane, &clientID, &since}, func() error {
		if lanes[clientID] == nil {
			lanes[clientID] = make(records)
		}
		lanes[clientID][lane] = since
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read crossfade_downlink_lanes: %w", err)
	}
	return lanes, nil
}

// take takes lanes over. What a former holder may still have under way is cut off
// before the lanes are ours to read; those of one that cannot be cut off go back, and
// hold up no others.
func (n *session) take(ctx context.Context, wanted []int16) error {
	taken, err := n.hold.Take(ctx, wanted)
	if err != nil || len(taken) == 0 {
		return err
	}
	barred, err := n.fence(ctx, taken)
	if err != nil {
		return errors.Join(err, n.hold.Release(ctx, taken))
	}
	if len(barred) == 0 {
		return nil
	}
	return n.hold.Release(ctx, barred)
}

// fence cuts former holders of lanes off and enters this one. It returns the lanes of
// which it could not.
func (n *session) fence(ctx context.Context, taken []int16) (barred []int16, err error) {
	rows, err := n.hold.Conn().Query(ctx, `SELECT lane, client_id, since FROM crossfade_downlink_lanes WHERE lane = ANY($1)`, taken)
	if err != nil {
		return nil, fmt.Errorf("read crossfade_downlink_lanes: %w", err)
	}
	former, err := byClient(rows)
	if err != nil {
		return nil, err
	}
	bounded, cancel := context.WithTimeout(ctx, mostFencing)
	defer cancel()
	for _, clientID := range slices.Sorted(maps.Keys(former)) {
		if !n.cutOff(bounded, clientID, former[clientID]) {
			barred = append(barred, former[clientID].slice()...)
		}
	}
	ours := slices.DeleteFunc(slices.Clone(taken), func(l int16) bool { return slices.Contains(barred, l) })
	_, err = n.hold.Conn().Exec(ctx, `
INSERT INTO crossfade_downlink_lanes (lane, client_id) SELECT lane, $2 FROM unnest($1::int2[]) AS lane
    ON CONFLICT (lane) DO UPDATE SET client_id = EXCLUDED.client_id, since = now()`, ours, n.clientID)
	if err != nil {
		return nil, fmt.Errorf("write crossfade_downlink_lanes: %w", err)
	}
	for _, lane := range ours {
		delete(n.dirty, lane) // if it was ours, its connection has been cut off
	}
	return barred, nil
}

func (n *session) cutOff(ctx context.Context, clientID string, lanes records) bool {
	b := n.barred[clientID]
	if b != nil && time.Now().Before(b.until) {
		maps.Copy(b.lanes, lanes)
		return false
	}
	err := n.evict(ctx, clientID)
	if err == nil {
		delete(n.barred, clientID)
		return true
	}
	if b == nil {
		b = &bar{lanes: make(records)}
		n.barred[clientID] = b
	}
	maps.Copy(b.lanes, lanes)
	b.err, b.until = err, time.Now().Add(n.delay(b.failures))
	b.failures++
	return false
}

// sayFenced has Health and the log speak of lanes that cannot be taken over.
func (s *Sender) sayFenced(barred map[string]*bar) {
	if len(barred) == 0 {
		if s.fenced.Swap(nil) != nil {
			s.log.Info("all lanes of the downlink can be taken over again")
		}
		return
	}
	var errs []error
	for _, clientID := range slices.Sorted(maps.Keys(barred)) {
		b := barred[clientID]
		err := fmt.Errorf("nothing is sent to the devices of %d of the %d lanes: the MQTT client %q, which held them before, cannot be cut off: %w; let the MQTT user connect with that client ID or, if nothing runs under it any more, DELETE FROM crossfade_downlink_lanes WHERE client_id = '%s'",
			len(b.lanes), queue.Lanes, clientID, b.err, strings.ReplaceAll(clientID, "'", "''"))
		if !b.told {
			b.told = true
			s.log.Warn("lanes of the downlink cannot be taken over; trying again until they can", "error", err)
		}
		errs = append(errs, err)
	}
	err := errors.Join(errs...)
	s.fenced.Store(&err)
}
