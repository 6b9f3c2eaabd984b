package fleet

import (
	"fmt"
	"sync"
)

// Record is what a fleet knows of its own sending, one bit per message and
// fact. All methods may be called concurrently, also while the fleet runs.
type Record struct {
	devices []*deviceRecord
	index   map[string]int // by Device.String

	mu       sync.Mutex
	repeated int64
}

// deviceRecord is one device's part. A shadow report is superseded by the next
// one, so only the last of them count.
type deviceRecord struct {
	device Device

	mu        sync.Mutex
	attempted Set // handed to the broker, that is: its first byte may have been written
	acked     Set // PUBACKed, with success or no matching subscribers
	unrouted  Set // the part of acked that reached nobody
	bad       Set // the part of attempted that belongs in quarantine
	refused   Set // PUBACKed with an error: not accepted, not sent again

	shadowAttempted, shadowAcked int64 // highest versions
	shadowSent                   int64 // acknowledged reports
}

// NewRecord is an empty record of these devices. Of devices that are listed
// twice only the first is kept.
func NewRecord(devices []Device) *Record {
	r := &Record{index: make(map[string]int, len(devices))}
	for _, d := range devices {
		if _, ok := r.index[d.String()]; ok {
			continue
		}
		r.index[d.String()] = len(r.devices)
		r.devices = append(r.devices, &deviceRecord{device: d})
	}
	return r
}

// Devices are the devices recorded. A record that was read from a file does
// not know their tokens.
func (r *Record) Devices() []Device {
	out := make([]Device, len(r.devices))
	for i, d := range r.devices {
		out[i] = d.device
	}
	return out
}

// Counts are numbers of messages, without shadow reports unless it says so.
type Counts struct {
	Attempted int64 `json:"attempted"` // handed to the broker
	Acked     int64 `json:"acked"`     // PUBACKed
	Unrouted  int64 `json:"unrouted"`  // of these: with "no matching subscribers", so they reached nobody
	Refused   int64 `json:"refused"`   // PUBACKed with an error
	Bad       int64 `json:"bad"`       // attempted ones that belong in quarantine
	Repeated  int64 `json:"repeated"`  // publishes repeated after a lost connection
	Shadow    int64 `json:"shadow"`    // shadow reports PUBACKed
}

// Uncertain is the number of attempted messages that nobody acknowledged.
func (c Counts) Uncertain() int64 { return c.Attempted - c.Acked }

// Counts sums all devices. While the fleet runs, devices are read one after
// another, each consistently.
func (r *Record) Counts() Counts {
	r.mu.Lock()
	c := Counts{Repeated: r.repeated}
	r.mu.Unlock()
	for _, d := range r.devices {
		d.mu.Lock()
		c.Attempted += d.attempted.Len()
		c.Acked += d.acked.Len()
		c.Unrouted += d.unrouted.Len()
		c.Refused += d.refused.Len()
		c.Bad += d.bad.Len()
		c.Shadow += d.shadowSent
		d.mu.Unlock()
	}
	return c
}

// Attempted notes that a message is about to be handed to the broker. Devices
// that are not in the record are ignored.
func (r *Record) Attempted(d Device, seq int64, kind Kind) {
	if i, ok := r.index[d.String()]; ok {
		r.devices[i].attempt(seq, kind)
	}
}

// Acked notes a PUBACK that accepts the message; reached is false for "no
// matching subscribers".
func (r *Record) Acked(d Device, seq int64, kind Kind, reached bool) {
	if i, ok := r.index[d.String()]; ok {
		r.devices[i].ack(seq, kind, reached)
	}
}

func (r *Record) repeat() {
	r.mu.Lock()
	r.repeated++
	r.mu.Unlock()
}

func (d *deviceRecord) attempt(seq int64, kind Kind) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if kind == KindShadow {
		d.shadowAttempted = max(d.shadowAttempted, seq)
		return
	}
	d.attempted.Add(seq)
	if kind == KindBad {
		d.bad.Add(seq)
	}
}

func (d *deviceRecord) ack(seq int64, kind Kind, reached bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if kind == KindShadow {
		d.shadowSent++
		d.shadowAcked = max(d.shadowAcked, seq)
		return
	}
	d.acked.Add(seq)
	if !reached {
		d.unrouted.Add(seq)
	}
}

func (d *deviceRecord) refuse(seq int64, kind Kind) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if kind != KindShadow {
		d.refused.Add(seq)
	}
}

// last is the highest seq attempted.
func (d *deviceRecord) last() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.attempted.Max()
}

// forDevices checks that a record can be continued by these devices, and gives
// it what files leave out (tokens, seeds).
func (r *Record) forDevices(devices []Device) error {
	if len(r.devices) != len(devices) {
		return fmt.Errorf("fleet: the record to continue has %d devices, the configuration %d: use the Tenants, Devices and Seed of the run that wrote it", len(r.devices), len(devices))
	}
	for _, d := range devices {
		i, ok := r.index[d.String()]
		if !ok {
			return fmt.Errorf("fleet: the record to continue does not know %s: use the Tenants, Devices and Seed of the run that wrote it", d)
		}
		if seed := r.devices[i].device.Seed; seed != d.Seed {
			return fmt.Errorf("fleet: the record to continue was written with another Seed (device %s): use the Seed of that run", d)
		}
		r.devices[i].device = d
	}
	return nil
}
