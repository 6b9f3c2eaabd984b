package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

// directory is a registry whose database is a map, and which notes what is asked.
type directory struct {
	*registry
	devices map[pipeline.DeviceKey]pipeline.Device
	asked   []string
	during  func() // runs while a look-up is on its way, after the database has answered
}

func newDirectory(ttl time.Duration, provisions bool) *directory {
	d := &directory{devices: make(map[pipeline.DeviceKey]pipeline.Device), during: func() {}}
	d.registry = newRegistry(ttl, nil, provisions, slog.New(slog.DiscardHandler))
	d.listening(true)
	d.find = func(_ context.Context, keys []pipeline.DeviceKey) (map[pipeline.DeviceKey]pipeline.Device, error) {
		found := make(map[pipeline.DeviceKey]pipeline.Device)
		var names []string
		for _, k := range keys {
			names = append(names, k.Device)
			if device, ok := d.devices[k]; ok {
				found[k] = device
			}
		}
		slices.Sort(names)
		d.asked = append(d.asked, fmt.Sprint(names))
		d.during()
		return found, nil
	}
	return d
}

func device(tenant, name string) *pipeline.Message {
	m := new(pipeline.Message)
	d := pipeline.Delivery{Path: pipeline.PathMQTT, Topic: "tenant/" + tenant + "/device/" + name + "/telemetry", Body: []byte(`{"site_id":"s1","ts":"2026-11-23T12:00:00Z"}`)}
	pipeline.NewDecoder("").Decode(m, &d)
	return m
}

func shadowOf(tenant, name string) *pipeline.Message {
	m := device(tenant, name)
	m.Kind = pipeline.KindShadow
	return m
}

// ask judges messages as a worker does and says whether their devices are known.
func (d *directory) ask(t *testing.T, now time.Time, messages ...*pipeline.Message) []string {
	t.Helper()
	w := make(wanted)
	answers := make([]*pipeline.Device, len(messages))
	var left []int
	for i, m := range messages {
		var ok bool
		if answers[i], ok = d.cached(now, m); !ok {
			w.add(m)
			left = append(left, i)
		}
	}
	if len(left) > 0 {
		if err := d.lookup(t.Context(), now, w); err != nil {
			t.Fatal(err)
		}
	}
	for _, i := range left {
		answers[i] = w.of(messages[i])
	}
	names := make([]string, len(answers))
	for i, a := range answers {
		switch {
		case a == nil:
			names[i] = "unknown"
		case a == pipeline.NoRoom:
			names[i] = "no room"
		default:
			names[i] = a.Site
		}
	}
	return names
}

func (d *directory) wantAsked(t *testing.T, want ...string) {
	t.Helper()
	if !slices.Equal(d.asked, want) {
		t.Errorf("the database was asked for %q, want %q", d.asked, want)
	}
	d.asked = nil
}

func wantNames(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func keyNamed(name string) pipeline.DeviceKey { return pipeline.DeviceKey{Tenant: "t1", Device: name} }

func TestRegistryForgetsInTime(t *testing.T) {
	d := newDirectory(time.Minute, false)
	d.devices[keyNamed("a")] = pipeline.Device{Site: "old"}
	a, b := device("t1", "a"), device("t1", "b")
	wantNames(t, d.ask(t, noon, a, b, a), "old", "unknown", "old")
	d.devices[keyNamed("a")] = pipeline.Device{Site: "new"}
	d.devices[keyNamed("b")] = pipeline.Device{Site: "b"}
	wantNames(t, d.ask(t, noon.Add(unknownTTL-1), a, b), "old", "unknown")
	d.wantAsked(t, "[a b]")
	wantNames(t, d.ask(t, noon.Add(unknownTTL), a, b), "old", "b")
	d.wantAsked(t, "[b]")
	wantNames(t, d.ask(t, noon.Add(time.Minute-1), a), "old")
	wantNames(t, d.ask(t, noon.Add(time.Minute), a), "new")
	d.wantAsked(t, "[a]")

	// What is not heard of is believed for a short time.
	d.listening(false)
	wantNames(t, d.ask(t, noon.Add(time.Minute+deafTTL-1), a), "new")
	wantNames(t, d.ask(t, noon.Add(time.Minute+deafTTL), a), "new")
	d.wantAsked(t, "[a]")
}

func TestRegistryForgetsWhatChanged(t *testing.T) {
	d := newDirectory(time.Hour, false)
	messages := []*pipeline.Message{device("t1", "a"), device("t1", "b"), device("t1", "gone"), device("t2", "a")}
	d.devices[keyNamed("a")], d.devices[keyNamed("b")] = pipeline.Device{Site: "s"}, pipeline.Device{Site: "s"}
	d.devices[pipeline.DeviceKey{Tenant: "t2", Device: "a"}] = pipeline.Device{Site: "s"}
	for _, c := range []struct {
		change func()
		want   []string
	}{
		{func() {}, nil},
		{func() { d.deviceChanged(keyNamed("a")) }, []string{"[a]"}},
		{func() { d.deviceChanged(keyNamed("gone")) }, []string{"[gone]"}},
		{func() { d.deviceChanged(keyNamed("x")); d.tenantChanged("t3") }, nil},
		{func() { d.tenantChanged("t1") }, []string{"[a b gone]"}},
		{func() { d.everythingChanged() }, []string{"[a a b gone]"}},
	} {
		d.ask(t, noon, messages...)
		d.asked = nil
		c.change()
		d.ask(t, noon, messages...)
		d.wantAsked(t, c.want...)
	}
}

// TestRegistryAndChangesOnTheWay: an answer from before a change is not kept, and
// one on another device is.
func TestRegistryAndChangesOnTheWay(t *testing.T) {
	for name, c := range map[string]struct {
		change func(d *directory)
		want   []string
	}{
		"device":     {func(d *directory) { d.deviceChanged(keyNamed("a")) }, []string{"[a]"}},
		"tenant":     {func(d *directory) { d.tenantChanged("t1") }, []string{"[a b]"}},
		"everything": {func(d *directory) { d.everythingChanged() }, []string{"[a b]"}},
		"another":    {func(d *directory) { d.deviceChanged(keyNamed("c")); d.tenantChanged("t2") }, nil},
		"very many": {func(d *directory) {
			for i := range 2 * maxSpoiled {
				d.deviceChanged(keyNamed(fmt.Sprint(i)))
			}
		}, []string{"[a b]"}},
		"very many tenants": {func(d *directory) {
			for i := range 2 * maxSpoiled {
				d.tenantChanged(fmt.Sprint(i))
			}
		}, []string{"[a b]"}},
	} {
		d := newDirectory(time.Hour, false)
		d.devices[keyNamed("a")] = pipeline.Device{Site: "old"}
		d.during = func() {
			c.change(d)
			for f := range d.flights {
				if len(f.devices) > maxSpoiled || len(f.tenants) > maxSpoiled {
					t.Errorf("%s: the look-up keeps %d devices and %d tenants", name, len(f.devices), len(f.tenants))
				}
			}
		}
		wantNames(t, d.ask(t, noon, device("t1", "a"), device("t1", "b")), "old", "unknown")
		d.asked, d.during = nil, func() {}
		d.ask(t, noon, device("t1", "a"), device("t1", "b"))
		if !slices.Equal(d.asked, c.want) {
			t.Errorf("%s: asked again for %q, want %q", name, d.asked, c.want)
		}
		if len(d.flights) != 0 {
			t.Errorf("%s: %d look-ups are taken to be on their way", name, len(d.flights))
		}
	}
}

// TestRegistryProvisions: telemetry of an unknown device, and nothing else, and once
// a batch.
func TestRegistryProvisions(t *testing.T) {
	d := newDirectory(time.Hour, true)
	var wanted []string
	d.provision = func(_ context.Context, devices []store.NewDevice) (noRoom []pipeline.DeviceKey, refused, err error) {
		var names []string
		for _, n := range devices {
			names = append(names, n.Device+"@"+n.Site)
			switch n.Device {
			case "full":
				noRoom = append(noRoom, n.DeviceKey)
			case "refused":
				refused = errors.New("refused")
			default:
				d.devices[n.DeviceKey] = pipeline.Device{Site: n.Site}
			}
		}
		slices.Sort(names)
		wanted = append(wanted, fmt.Sprint(names))
		return noRoom, refused, nil
	}
	d.devices[keyNamed("a")] = pipeline.Device{Site: "a"}
	batch := []*pipeline.Message{device("t1", "a"), device("t1", "new"), device("t1", "full"), device("t1", "refused"), shadowOf("t1", "quiet"), shadowOf("t1", "both"), device("t1", "both"), shadowOf("t1", "full")}
	wantNames(t, d.ask(t, noon, batch...), "a", "s1", "no room", "unknown", "unknown", "s1", "s1", "no room")
	wantNames(t, wanted, "[both@s1 full@s1 new@s1 refused@s1]")
	d.wantAsked(t, "[a both full new quiet refused]", "[both full new refused]")

	// A second later at most there may be room; until then nobody asks. Telemetry of a
	// device that a shadow report has asked for is another matter.
	wanted = nil
	wantNames(t, d.ask(t, noon, batch[2], batch[4]), "no room", "unknown")
	wantNames(t, wanted)
	wantNames(t, d.ask(t, noon, device("t1", "quiet")), "s1")
	wantNames(t, wanted, "[quiet@s1]")
	wanted = nil
	d.ask(t, noon.Add(unknownTTL), batch[2])
	wantNames(t, wanted, "[full@s1]")

	d.registry.provision = nil
	wanted = nil
	wantNames(t, d.ask(t, noon.Add(time.Minute), device("t1", "later")), "unknown")
	wantNames(t, wanted)
}

// TestCacheIsBounded: it never holds more than its limit, keeps what came last, and
// counts right whatever is dropped.
func TestCacheIsBounded(t *testing.T) {
	const limit = 100
	c := newCache(limit)
	held := func() (n int) {
		for _, generation := range []map[string]map[string]cached{c.young, c.old} {
			for _, devices := range generation {
				n += len(devices)
			}
		}
		return n
	}
	for i := range 10 * limit {
		k := pipeline.DeviceKey{Tenant: fmt.Sprint("t", i%7), Device: fmt.Sprint("d", i)}
		c.put(k, cached{})
		c.put(k, cached{at: noon})
		for back := range min(i+1, limit/2-15) {
			k := pipeline.DeviceKey{Tenant: fmt.Sprint("t", (i-back)%7), Device: fmt.Sprint("d", i-back)}
			if e, ok := c.get(k); !ok && (i-back)%13 != 0 || ok && !e.at.Equal(noon) {
				t.Fatalf("after %d the last but %d is lost", i, back)
			}
		}
		if i%13 == 0 {
			c.drop(k)
			c.drop(k)
			if _, ok := c.get(k); ok {
				t.Fatal("what was dropped is there")
			}
		}
		if n := held(); n > limit {
			t.Fatalf("after %d it holds %d", i, n)
		}
	}
	c.dropTenant("t3")
	if _, ok := c.get(pipeline.DeviceKey{Tenant: "t3", Device: fmt.Sprint("d", 10*limit-10*limit%7+3-7)}); ok {
		t.Error("a tenant that was dropped is there")
	}
	young := 0
	for _, devices := range c.young {
		young += len(devices)
	}
	if young != c.size {
		t.Errorf("the younger generation has %d, and is taken to have %d", young, c.size)
	}
	for tenant, devices := range c.old {
		for name := range devices {
			c.drop(pipeline.DeviceKey{Tenant: tenant, Device: name})
		}
	}
	if n := held(); n != young {
		t.Errorf("%d are left of %d in the younger generation, and none in the older", n, young)
	}
	if c.clear(); held() != 0 || c.size != 0 {
		t.Error("something is left of what was cleared")
	}
}

// TestCacheIsBoundedInBytes: a device that takes as much memory as many counts for as
// many, and what is dropped leaves nothing behind.
func TestCacheIsBoundedInBytes(t *testing.T) {
	large := cached{device: &pipeline.Device{KeyMap: make(map[string]string)}}
	for i := range 100 {
		large.device.KeyMap[fmt.Sprintf("key-%018d", i)] = fmt.Sprintf("name-%017d", i)
	}
	c := newCache(1000)
	for i := range 1000 {
		c.put(keyNamed(fmt.Sprint(i)), large)
		c.put(keyNamed(fmt.Sprint(i)), large)
	}
	if n := (len(c.young["t1"]) + len(c.old["t1"])) * 100 * (64 + 22 + 22); n > 1000*bytesOfDevice || n < 100*bytesOfDevice {
		t.Errorf("%d bytes of names are held, want up to those of 1000 devices", n)
	}
	c.clear()
	for i := range 1000 {
		k := pipeline.DeviceKey{Tenant: fmt.Sprint(i), Device: "d"}
		c.put(k, large)
		c.put(k, cached{})
		c.drop(k)
	}
	if c.size != 0 || len(c.young) != 0 || len(c.sizes) != 0 {
		t.Errorf("%d is the size and %d tenants are held, of nothing", c.size, len(c.young))
	}
}

// TestInventedNamesPushOutNobody: devices that are not registered have a cache of
// their own.
func TestInventedNamesPushOutNobody(t *testing.T) {
	d := newDirectory(time.Hour, false)
	d.known, d.unknown = newCache(10), newCache(10)
	d.devices[keyNamed("a")] = pipeline.Device{Site: "s"}
	d.ask(t, noon, device("t1", "a"))
	for i := range 100 {
		d.ask(t, noon, device(fmt.Sprint("t", i), "x"))
	}
	d.asked = nil
	d.ask(t, noon, device("t1", "a"))
	d.wantAsked(t)
}
