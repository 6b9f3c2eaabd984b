package fleet

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// recordFormat is the first line's "fleet_record": raise it when the lines change.
const recordFormat = 1

type recordHeader struct {
	Format   int   `json:"fleet_record"`
	Devices  int   `json:"devices"`
	Repeated int64 `json:"repeated"`
}

// recordLine is one device; sets are written as Set.Ranges. Tokens are left out:
// they are secrets, and the seed brings them back.
type recordLine struct {
	Tenant          string  `json:"tenant"`
	Device          string  `json:"device"`
	Site            string  `json:"site"`
	Seed            uint64  `json:"seed"`
	Attempted       []int64 `json:"attempted,omitempty"`
	Acked           []int64 `json:"acked,omitempty"`
	Unrouted        []int64 `json:"unrouted,omitempty"`
	Bad             []int64 `json:"bad,omitempty"`
	Refused         []int64 `json:"refused,omitempty"`
	ShadowAttempted int64   `json:"shadow_attempted,omitempty"`
	ShadowAcked     int64   `json:"shadow_acked,omitempty"`
	ShadowSent      int64   `json:"shadow_sent,omitempty"`
}

// Write writes the record as JSON lines: a header, then a line per device.
func (r *Record) Write(w io.Writer) error {
	r.mu.Lock()
	header := recordHeader{Format: recordFormat, Devices: len(r.devices), Repeated: r.repeated}
	r.mu.Unlock()
	enc := json.NewEncoder(w)
	if err := enc.Encode(header); err != nil {
		return fmt.Errorf("fleet: write the record: %w", err)
	}
	for _, d := range r.devices {
		if err := enc.Encode(d.line()); err != nil {
			return fmt.Errorf("fleet: write the record: %w", err)
		}
	}
	return nil
}

func (d *deviceRecord) line() recordLine {
	d.mu.Lock()
	defer d.mu.Unlock()
	return recordLine{
		Tenant: d.device.Tenant, Device: d.device.ID, Site: d.device.Site, Seed: d.device.Seed,
		Attempted: d.attempted.Ranges(), Acked: d.acked.Ranges(), Unrouted: d.unrouted.Ranges(),
		Bad: d.bad.Ranges(), Refused: d.refused.Ranges(),
		ShadowAttempted: d.shadowAttempted, ShadowAcked: d.shadowAcked, ShadowSent: d.shadowSent,
	}
}

// ReadRecord reads what Write wrote. A record that ends early is an error: its
// missing devices would pass for devices that sent nothing.
func ReadRecord(r io.Reader) (*Record, error) {
	dec := json.NewDecoder(bufio.NewReader(r))
	var h recordHeader
	if err := dec.Decode(&h); err != nil {
		return nil, fmt.Errorf("fleet: read the record's first line: %w", err)
	}
	if h.Format != recordFormat {
		return nil, fmt.Errorf("fleet: the record has format %d, this program reads %d: is it a file that the fleet wrote?", h.Format, recordFormat)
	}
	rec := NewRecord(nil)
	rec.repeated = h.Repeated
	for {
		var l recordLine
		if err := dec.Decode(&l); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("fleet: read device %d of the record: %w", len(rec.devices)+1, err)
		}
		if err := rec.addLine(l); err != nil {
			return nil, fmt.Errorf("fleet: read device %s/%s of the record: %w", l.Tenant, l.Device, err)
		}
	}
	if len(rec.devices) != h.Devices {
		return nil, fmt.Errorf("fleet: the record holds %d of its %d devices: it was cut short", len(rec.devices), h.Devices)
	}
	return rec, nil
}

func (r *Record) addLine(l recordLine) error {
	d := &deviceRecord{
		device:          Device{Tenant: l.Tenant, ID: l.Device, Site: l.Site, Seed: l.Seed},
		shadowAttempted: l.ShadowAttempted, shadowAcked: l.ShadowAcked, shadowSent: l.ShadowSent,
	}
	for _, f := range []struct {
		name   string
		set    *Set
		ranges []int64
	}{
		{"attempted", &d.attempted, l.Attempted}, {"acked", &d.acked, l.Acked},
		{"unrouted", &d.unrouted, l.Unrouted}, {"bad", &d.bad, l.Bad}, {"refused", &d.refused, l.Refused},
	} {
		set, err := setOf(f.ranges)
		if err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		*f.set = set
	}
	if _, ok := r.index[d.device.String()]; ok {
		return errors.New("the device is listed twice")
	}
	r.index[d.device.String()] = len(r.devices)
	r.devices = append(r.devices, d)
	return nil
}

// Save writes the record to a file, replacing an older one only when the new
// one is complete.
func (r *Record) Save(path string) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("fleet: save the record: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	buffered := bufio.NewWriter(f)
	if err := errors.Join(r.Write(buffered), buffered.Flush(), f.Close()); err != nil {
		return fmt.Errorf("fleet: save the record as %s: %w", path, err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("fleet: save the record: %w", err)
	}
	return nil
}

// LoadRecord reads a file that Save wrote.
func LoadRecord(path string) (*Record, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("fleet: load the record: %w", err)
	}
	defer f.Close()
	r, err := ReadRecord(f)
	if err != nil {
		return nil, fmt.Errorf("%w (file %s)", err, path)
	}
	return r, nil
}
