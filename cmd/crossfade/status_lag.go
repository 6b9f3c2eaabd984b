package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/crossfade-io/crossfade/bridge/control"
	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/pipeline"
)

// lagStatus is how far each path is behind for a tenant.
type lagStatus struct {
	MQTT      pathLag `json:"mqtt"`
	JetStream pathLag `json:"jetstream"`
}

// pathLag is what is known of a tenant's messages that are on a path and not settled,
// and of how long that path takes. Null is not known, with the reason beside it.
type pathLag struct {
	Messages *int64 `json:"messages"`
	AtLeast  *int64 `json:"messages_at_least"`
	AtMost   *int64 `json:"messages_at_most"`
	// Oldest is the age of the oldest of them; 0 if there is none.
	Oldest        *float64 `json:"oldest_seconds"`
	OldestAtLeast *float64 `json:"oldest_seconds_at_least"`
	Unknown       string   `json:"unknown,omitempty"`
	// Seconds is how long the last sentinel took until all before it was settled, and
	// SeenAt when that was.
	Seconds        *float64   `json:"seconds"`
	SecondsUnknown string     `json:"seconds_unknown,omitempty"`
	SeenAt         *time.Time `json:"seen_at,omitempty"`
	// WaitingSince is since when a sentinel has been out: the path takes that long at
	// least. MissingSince is the same once it should have come.
	WaitingSince *time.Time `json:"waiting_since,omitempty"`
	MissingSince *time.Time `json:"missing_since,omitempty"`
}

func (o *overview) lagOf(tenant string, s stage.Stage) (l lagStatus) {
	took, waiting := o.latencies[tenant], o.waiting[tenant]
	l.MQTT = pathLag{SeenAt: took.MQTTSeen, WaitingSince: waiting.MQTT, MissingSince: took.MQTTMissing}
	l.JetStream = pathLag{SeenAt: took.JetStreamSeen, WaitingSince: waiting.JetStream, MissingSince: took.JetStreamMissing}
	l.MQTT.measured(took.MQTT, s)
	l.JetStream.measured(took.JetStream, s)
	l.MQTT.counted(o.lag.Of(tenant, pipeline.PathMQTT))
	l.JetStream.counted(o.lag.Of(tenant, pipeline.PathJetStream))
	return l
}

func (l *pathLag) measured(took *time.Duration, s stage.Stage) {
	switch {
	case took != nil:
		seconds := took.Seconds()
		l.Seconds = &seconds
	case s == "" || s.Outer():
		l.SecondsUnknown = "sentinels that measure are sent in shadow and live only"
	default:
		l.SecondsUnknown = "no sentinel has come out yet"
	}
}

func (l *pathLag) counted(b control.Bounds) {
	l.Unknown = b.Unknown
	if b.Least >= 0 {
		l.AtLeast, l.OldestAtLeast = &b.Least, &b.Oldest
	}
	if b.Most >= 0 {
		l.AtMost = &b.Most
	}
	if b.Least >= 0 && b.Least == b.Most {
		l.Messages, l.Oldest = &b.Least, &b.Oldest
	}
}

// number is how many messages wait: "3", "3+" for three or more, "?".
func (l *pathLag) number() string {
	switch {
	case l.Messages != nil:
		return fmt.Sprint(*l.Messages)
	case l.AtLeast != nil && (*l.AtLeast > 0 || l.AtMost == nil):
		return fmt.Sprintf("%d+", *l.AtLeast)
	case l.AtMost != nil:
		return fmt.Sprintf("0-%d", *l.AtMost)
	}
	return "?"
}

// took is how far behind the path is in time: how long a sentinel took, unless
// something has been waiting for longer.
func (l *pathLag) took(now time.Time) string {
	if l.MissingSince != nil {
		return "none for " + age(now.Sub(*l.MissingSince))
	}
	var longest time.Duration
	if l.OldestAtLeast != nil {
		longest = seconds(*l.OldestAtLeast)
	}
	exact := l.Oldest != nil
	if l.WaitingSince != nil && now.Sub(*l.WaitingSince) > longest {
		longest, exact = now.Sub(*l.WaitingSince), false
	}
	switch {
	case l.Seconds != nil && seconds(*l.Seconds) >= longest:
		return fmt.Sprintf("%.2fs", *l.Seconds)
	case exact:
		return age(longest)
	case longest > 0:
		return age(longest) + "+"
	}
	return "?"
}

// text is for the table.
func (l *pathLag) text(now time.Time) string { return l.number() + " " + l.took(now) }

// sentence is for a tenant's block.
func (l *pathLag) sentence(now time.Time) string {
	var parts []string
	switch {
	case l.Messages != nil && *l.Messages == 0:
		parts = append(parts, "no message waits")
	case l.Messages != nil:
		parts = append(parts, fmt.Sprintf("%d messages wait, the oldest for %s", *l.Messages, age(seconds(*l.Oldest))))
	case l.AtLeast == nil:
		parts = append(parts, "nobody tells how many messages wait")
	default:
		most := " or more"
		if l.AtMost != nil {
			most = fmt.Sprintf(" to %d", *l.AtMost)
		}
		parts = append(parts, fmt.Sprintf("%d%s messages wait", *l.AtLeast, most))
		if *l.AtLeast > 0 {
			parts = append(parts, "the oldest for "+age(seconds(*l.OldestAtLeast))+" or longer")
		}
	}
	text := strings.Join(parts, ", ")
	if l.Unknown != "" {
		text += " (" + l.Unknown + ")"
	}
	text += "; "
	switch {
	case l.Seconds == nil:
		text += l.SecondsUnknown
	case l.SeenAt == nil:
		text += fmt.Sprintf("the last sentinel took %.2fs", *l.Seconds)
	default:
		text += fmt.Sprintf("the last sentinel took %.2fs, %s ago", *l.Seconds, age(now.Sub(*l.SeenAt)))
	}
	switch {
	case l.MissingSince != nil:
		text += ", and none has come out for " + age(now.Sub(*l.MissingSince))
	case l.WaitingSince != nil:
		text += ", and one has been out for " + age(now.Sub(*l.WaitingSince))
	}
	return text
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// lagSources is what figures of lag are made of, without the tenants.
type lagSources struct {
	Streams []control.Stream `json:"streams"`
	// Instances are what each has in hand.
	Instances []control.Hand `json:"instances"`
	// Silent run and have not told what they have in hand; Away do not run, and their
	// MQTT sessions may hold messages.
	Silent []string `json:"silent,omitempty"`
	Away   []string `json:"away,omitempty"`
}

func lagSourcesOf(l *control.Lag) lagSources {
	s := lagSources{Streams: []control.Stream{}, Instances: []control.Hand{}, Silent: l.Silent, Away: l.Away}
	for _, stream := range l.Streams {
		stream.Tenants = withoutTenants(stream.Tenants)
		s.Streams = append(s.Streams, stream)
	}
	for _, hand := range l.Hands {
		hand.MQTT, hand.JetStream = withoutTenants(hand.MQTT), withoutTenants(hand.JetStream)
		s.Instances = append(s.Instances, hand)
	}
	return s
}

func withoutTenants(c *control.Census) *control.Census {
	if c == nil {
		return nil
	}
	short := *c
	short.Tenants = nil
	return &short
}

func showStreams(out io.Writer, a statusAnswer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nSTREAM\tUNDELIVERED\tIN HAND\tOLDEST\tASKED")
	for _, s := range a.Lag.Streams {
		asked := fmt.Sprintf("%s ago by %s", age(a.At.Sub(s.MeasuredAt)), cell(s.MeasuredBy, 40))
		oldest := "-"
		switch {
		case s.Failed:
			fmt.Fprintf(w, "%s\t?\t?\t?\t%s\n", cell(s.Stream, 40), cell(s.Unknown, 100))
			continue
		case s.Oldest != nil:
			oldest = age(seconds(*s.Oldest))
		case s.Undelivered+s.InHand > 0:
			oldest = "?"
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%s\n", cell(s.Stream, 40), s.Undelivered, s.InHand, oldest, asked)
	}
	if len(a.Lag.Streams) == 0 {
		fmt.Fprintln(w, "?\t\t\t\tno running instance has asked JetStream lately")
	}
	return w.Flush()
}

// overdue says what keeps a tenant from moving since the ledger could not judge an
// undelivered message of its any more; empty: nothing. The way back to MQTT is free.
func (o *overview) overdue(tenant string, walk []stage.Step) string {
	why := o.lag.Overdue(tenant)
	if why == "" || len(walk) == 0 {
		return ""
	}
	if backToMQTT(walk[0]) {
		if len(walk) == 1 {
			return ""
		}
		return fmt.Sprintf("it goes back to %s, and no further: %s", walk[0].To, why)
	}
	return why
}

// backToMQTT reports whether a step gives MQTT its authority back.
func backToMQTT(s stage.Step) bool {
	return s.From.Authoritative() != s.To.Authoritative() && s.To.Authoritative() == pipeline.PathMQTT
}
