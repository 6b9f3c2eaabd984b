package fleet

import "fmt"

// Tally is the outcome of a comparison for some devices. It counts messages of
// table telemetry, except where a line says something else. Bad messages, which
// belong in quarantine, are in the Bad fields only.
type Tally struct {
	Attempted int64 `json:"attempted"` // handed to the broker
	Sent      int64 `json:"sent"`      // of these: PUBACKed
	Unrouted  int64 `json:"unrouted"`  // of these: PUBACKed with "no matching subscribers"
	Stored    int64 `json:"stored"`    // attempted and in the database
	Rows      int64 `json:"rows"`      // rows of these devices, of whatever content

	Lost         int64 `json:"lost"`          // sent and not in the database
	LostUnrouted int64 `json:"lost_unrouted"` // of these: reached nobody, says the broker
	Duplicated   int64 `json:"duplicated"`    // rows beyond the first of one message
	Unexpected   int64 `json:"unexpected"`    // rows of bad messages, or with a seq never attempted

	Uncertain       int64 `json:"uncertain"` // attempted and not PUBACKed
	UncertainStored int64 `json:"uncertain_stored"`

	BadSent int64 `json:"bad_sent"` // bad messages PUBACKed

	// A device is behind when its device_state.reported_version is not the
	// version of a report that is as new as the last one PUBACKed.
	ShadowDevices int64 `json:"shadow_devices"` // devices that had a shadow report PUBACKed
	ShadowBehind  int64 `json:"shadow_behind"`
}

func (t *Tally) add(o Tally) {
	t.Attempted += o.Attempted
	t.Sent += o.Sent
	t.Unrouted += o.Unrouted
	t.Stored += o.Stored
	t.Rows += o.Rows
	t.Lost += o.Lost
	t.LostUnrouted += o.LostUnrouted
	t.Duplicated += o.Duplicated
	t.Unexpected += o.Unexpected
	t.Uncertain += o.Uncertain
	t.UncertainStored += o.UncertainStored
	t.BadSent += o.BadSent
	t.ShadowDevices += o.ShadowDevices
	t.ShadowBehind += o.ShadowBehind
}

// OK says that nothing that was sent is missing and nothing is there that
// should not be.
func (t Tally) OK() bool {
	return t.Lost == 0 && t.Duplicated == 0 && t.Unexpected == 0 && t.ShadowBehind == 0
}

// Report compares a record with a database.
type Report struct {
	Tally
	Tenants map[string]Tally `json:"tenants"`
	// Quarantined counts the rows of quarantine_events of the fleet's tenants
	// by reason, whoever caused them.
	Quarantined map[string]int64 `json:"quarantined,omitempty"`
	// Examples name a few messages of each kind of trouble: "lost acme/dev-0001 seq 7".
	Examples []string `json:"examples,omitempty"`
}

// Quarantine is the sum of Quarantined.
func (r Report) Quarantine() int64 {
	var n int64
	for _, v := range r.Quarantined {
		n += v
	}
	return n
}

// String is the verdict in one line, in the words of CONTRACT.md's readers.
func (r Report) String() string {
	s := fmt.Sprintf("sent %d  stored %d  lost %d  duplicated %d  unexpected %d  uncertain %d (stored %d)",
		r.Sent, r.Stored, r.Lost, r.Duplicated, r.Unexpected, r.Uncertain, r.UncertainStored)
	if r.Unrouted > 0 {
		s += fmt.Sprintf("  without subscriber %d (lost %d)", r.Unrouted, r.LostUnrouted)
	}
	if q := r.Quarantine(); q > 0 || r.BadSent > 0 {
		s += fmt.Sprintf("  bad %d  quarantined %d", r.BadSent, q)
	}
	if r.ShadowBehind > 0 {
		s += fmt.Sprintf("  shadows behind %d of %d", r.ShadowBehind, r.ShadowDevices)
	}
	return s
}

// maxExamples is per kind of trouble.
const maxExamples = 5

// examples collects a few of each kind.
type examples struct {
	seen map[string]int
	list []string
}

func (e *examples) add(kind, device, what string) {
	if e.seen == nil {
		e.seen = map[string]int{}
	}
	if e.seen[kind]++; e.seen[kind] <= maxExamples {
		e.list = append(e.list, kind+" "+device+" "+what)
	}
}
