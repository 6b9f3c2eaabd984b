package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/crossfade-io/crossfade/internal/lanes"
)

// outboxQueue is how publishers share the outbox.
var outboxQueue = lanes.Queue{
	Name:        "routes",
	Channel:     "crossfade_outbox",
	Lanes:       OutboxLanes,
	LaneClass:   0x78666f62, // "xfob"
	MemberClass: 0x78666f6d, // "xfom"
}

// Lanes is one publisher's hold on a share of the outbox, on a connection of its
// own: the lanes are its to publish for as long as that lives, and free when it
// ends, however that comes about. Behind a connection pooler it needs one that
// pools sessions, not transactions. Not for concurrent use.
type Lanes struct {
	hold   *lanes.Hold
	places places // where the next Read goes on
}

// OpenLanes connects, and listens for new rows. It holds no lane before Balance.
// The caller calls Close.
func (s *Store) OpenLanes(ctx context.Context) (*Lanes, error) {
	hold, err := lanes.Open(ctx, s.pool.Config().ConnConfig, outboxQueue)
	if err != nil {
		return nil, translate("open the outbox", err)
	}
	return &Lanes{hold: hold, places: places{lanes.NewPlaces()}}, nil
}

// Close gives the lanes back. It takes a second at most.
func (l *Lanes) Close() { l.hold.Close() }

// Held are the lanes that are this publisher's.
func (l *Lanes) Held() []int16 { return l.hold.Held() }

// Balance takes free lanes, or gives some back, so that all publishers have equal
// shares but for one lane. Call it every second or so, and only while nothing that
// was read is being published: a lane that was given back may be read by another
// publisher at once.
func (l *Lanes) Balance(ctx context.Context) error {
	surplus, wanted, err := l.hold.Look(ctx)
	switch {
	case err != nil:
	case len(surplus) > 0:
		err = l.hold.Release(ctx, surplus)
	case len(wanted) > 0:
		_, err = l.hold.Take(ctx, wanted)
	}
	return translate("share the outbox", err)
}

// Wait returns when rows may be there that the last Read did not see, after d, or
// when ctx ends, whichever is first. Only a lost connection and the end of ctx are
// errors.
func (l *Lanes) Wait(ctx context.Context, d time.Duration) error {
	err := l.hold.Wait(ctx, d)
	if err == nil || ctx.Err() != nil {
		return err
	}
	if !errors.Is(err, ErrUnavailable) {
		err = fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return err
}
