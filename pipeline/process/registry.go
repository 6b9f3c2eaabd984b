package process

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

// Bounds of the caches' memory, in devices of some bytesOfDevice. Devices that are not
// registered have a cache of their own, for topics are hostile input, and invented
// names must not push out real devices.
const (
	maxCachedDevices = 1_000_000
	maxCachedUnknown = 100_000
	bytesOfDevice    = 300
)

// unknownTTL is how long a device is taken for unknown: it is often switched on
// just after it was registered.
const unknownTTL = time.Second

// deafTTL is how long an entry is believed while changes may be missed.
const deafTTL = 5 * time.Second

// registry caches what the device registry says, and is told of what changes in it.
type registry struct {
	find      func(context.Context, []pipeline.DeviceKey) (map[pipeline.DeviceKey]pipeline.Device, error)
	provision func(context.Context, []store.NewDevice) (noRoom []pipeline.DeviceKey, refused, err error) // nil: devices are not provisioned
	log       *slog.Logger

	mu      sync.RWMutex
	ttl     time.Duration // while changes are heard of
	deaf    bool
	known   *cache
	unknown *cache               // nil, or pipeline.NoRoom
	flights map[*flight]struct{} // look-ups on their way
	refused time.Time            // when it was last logged that devices are refused,
	told    time.Time            // and that one cannot be read
}

// flight is what changed while a look-up was on its way: its answers on that are
// good for the messages that it was made for, and not to be kept.
type flight struct {
	devices map[pipeline.DeviceKey]struct{}
	tenants map[string]struct{}
	all     bool
}

func (f *flight) spoiled(k pipeline.DeviceKey) bool {
	if f.all {
		return true
	}
	if _, ok := f.tenants[k.Tenant]; ok {
		return true
	}
	_, ok := f.devices[k]
	return ok
}

func newRegistry(ttl time.Duration, s *store.Store, provisions bool, log *slog.Logger) *registry {
	r := &registry{find: s.Devices, ttl: ttl, deaf: true, log: log,
		known: newCache(maxCachedDevices), unknown: newCache(maxCachedUnknown), flights: make(map[*flight]struct{})}
	if provisions {
		r.provision = s.Provision
	}
	return r
}

// wanted are devices that the cache could not tell of, each with the answer once
// lookup has run.
type wanted map[pipeline.DeviceKey]want

type want struct {
	// site is that of the first telemetry message, which may have the device
	// provisioned; empty for none.
	site   string
	device *pipeline.Device
}

// add asks for a message's device.
func (w wanted) add(m *pipeline.Message) {
	key := keyOf(m)
	e := w[key]
	if e.site == "" {
		e.site = siteToProvision(m)
	}
	w[key] = e
}

// provision tells whether a device may have to be provisioned.
func (w wanted) provision() bool {
	for _, e := range w {
		if e.site != "" {
			return true
		}
	}
	return false
}

// halves splits w between two tenants, or where that cannot be between two devices
// if apart is set. The first half is empty where there is nothing to split.
func (w wanted) halves(apart bool) (first, second wanted) {
	keys := slices.SortedFunc(maps.Keys(w), func(a, b pipeline.DeviceKey) int {
		return cmp.Or(strings.Compare(a.Tenant, b.Tenant), strings.Compare(a.Device, b.Device))
	})
	middle := len(keys) / 2
	cut := middle
	for cut > 0 && keys[cut-1].Tenant == keys[middle].Tenant {
		cut--
	}
	if cut == 0 {
		for cut = middle; cut < len(keys) && keys[cut].Tenant == keys[middle].Tenant; {
			cut++
		}
	}
	switch {
	case cut < len(keys):
	case apart:
		cut = middle
	default:
		cut = 0
	}
	first, second = make(wanted), make(wanted)
	for i, k := range keys {
		if i < cut {
			first[k] = w[k]
		} else {
			second[k] = w[k]
		}
	}
	return first, second
}

// of is the answer for a message.
func (w wanted) of(m *pipeline.Message) *pipeline.Device { return w[keyOf(m)].device }

func keyOf(m *pipeline.Message) pipeline.DeviceKey {
	return pipeline.DeviceKey{Tenant: m.Tenant, Device: m.Device}
}

// siteToProvision is empty for messages that can't have a device provisioned.
func siteToProvision(m *pipeline.Message) string {
	if m.Kind != pipeline.KindTelemetry {
		return ""
	}
	site, _ := m.Fields.SiteID.Text()
	return site
}

// cached returns what the cache has of a message's device, nil for one that is not
// registered; ok is false where it has nothing, and where telemetry may have the
// device provisioned.
func (r *registry) cached(now time.Time, m *pipeline.Message) (device *pipeline.Device, ok bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.get(now, keyOf(m), siteToProvision(m))
}

func (r *registry) get(now time.Time, k pipeline.DeviceKey, site string) (*pipeline.Device, bool) {
	ttl := r.ttl
	if r.deaf {
		ttl = min(ttl, deafTTL)
	}
	if c, ok := r.known.get(k); ok && now.Sub(c.at) < ttl && (c.device.Unreadable == "" || now.Sub(c.at) < deafTTL) {
		return c.device, true
	}
	c, ok := r.unknown.get(k)
	if ok = ok && now.Sub(c.at) < min(ttl, unknownTTL); ok && c.device == nil && site != "" && r.provision != nil {
		return nil, false // it was asked for by a message that does not provision
	}
	return c.device, ok
}

// lookup answers all that is wanted: one query for all that the cache lacks, and
// where devices are provisioned and some are not registered, one transaction and
// one query more. The keys' memory may be reused afterwards.
func (r *registry) lookup(ctx context.Context, now time.Time, w wanted) error {
	missing, f := r.depart(now, w)
	defer r.land(f)
	if len(missing) == 0 {
		return nil
	}
	found, err := r.find(ctx, missing)
	if err != nil {
		return err
	}
	full, err := r.register(ctx, w, missing, found)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, k := range missing {
		c, in := cached{at: now}, r.unknown
		if d, ok := found[k]; ok {
			c.device, in = &d, r.known
			r.noteUnreadable(now, k, d.Unreadable)
		} else if full[k] {
			c.device = pipeline.NoRoom
		}
		w[k] = want{w[k].site, c.device}
		if !f.spoiled(k) {
			in.put(k, c)
		}
	}
	return nil
}

// unreadable keeps for a while that PostgreSQL can make nothing of a device's rows:
// that was found by a look-up of its own. It returns what stands for the device.
func (r *registry) unreadable(k pipeline.DeviceKey, err error) *pipeline.Device {
	d := &pipeline.Device{Unreadable: store.Detail(err)}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	r.known.put(k, cached{at: now, device: d})
	r.noteUnreadable(now, k, d.Unreadable)
	return d
}

// noteUnreadable logs one of them in ten seconds; r.mu is held.
func (r *registry) noteUnreadable(now time.Time, k pipeline.DeviceKey, why string) {
	if why == "" || now.Sub(r.told) <= 10*time.Second {
		return
	}
	r.told = now
	r.log.Warn("what the registry says of a device cannot be read, and its messages go to quarantine until it can: mend its rows in device_registry, device_certificates or device_tiers, then replay them",
		"tenant", k.Tenant, "device", k.Device, "error", why)
}

// depart answers from the cache what somebody else has asked for meanwhile, and
// begins to note what changes.
func (r *registry) depart(now time.Time, w wanted) (missing []pipeline.DeviceKey, f *flight) {
	f = &flight{devices: make(map[pipeline.DeviceKey]struct{}), tenants: make(map[string]struct{})}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.flights[f] = struct{}{}
	for k, e := range w {
		if device, ok := r.get(now, k, e.site); ok {
			w[k] = want{e.site, device}
		} else {
			missing = append(missing, k)
		}
	}
	return missing, f
}

func (r *registry) land(f *flight) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.flights, f)
}

// register has devices provisioned that are wanted and were not found, adds them to
// found, and returns those for which there is no room.
func (r *registry) register(ctx context.Context, w wanted, missing []pipeline.DeviceKey, found map[pipeline.DeviceKey]pipeline.Device) (full map[pipeline.DeviceKey]bool, err error) {
	if r.provision == nil {
		return nil, nil
	}
	var devices []store.NewDevice
	var keys []pipeline.DeviceKey
	for _, k := range missing {
		if _, ok := found[k]; !ok && w[k].site != "" {
			devices, keys = append(devices, store.NewDevice{DeviceKey: k, Site: w[k].site}), append(keys, k)
		}
	}
	if len(devices) == 0 {
		return nil, nil
	}
	noRoom, refused, err := r.provision(ctx, devices)
	if err != nil {
		return nil, err
	}
	r.noteRefused(refused)
	registered, err := r.find(ctx, keys)
	if err != nil {
		return nil, err
	}
	for k, d := range registered {
		found[k] = d
	}
	full = make(map[pipeline.DeviceKey]bool, len(noRoom))
	for _, k := range noRoom {
		full[k] = true
	}
	return full, nil
}

// noteRefused logs once a minute: whoever can publish can invent names.
func (r *registry) noteRefused(refused error) {
	if refused == nil {
		return
	}
	r.mu.Lock()
	silent := time.Since(r.refused) < time.Minute
	if !silent {
		r.refused = time.Now()
	}
	r.mu.Unlock()
	if !silent {
		r.log.Error("PostgreSQL refuses devices that are to be provisioned, and their messages are quarantined as UNREGISTERED_DEVICE: mend what device_registry demands (defaults for columns of your own), or switch --pipeline-auto-provision off", "error", refused)
	}
}

// maxSpoiled bounds a flight's memory, however many changes come meanwhile.
const maxSpoiled = 10_000

func (r *registry) deviceChanged(k pipeline.DeviceKey) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.known.drop(k)
	r.unknown.drop(k)
	for f := range r.flights {
		if f.all = f.all || len(f.devices) >= maxSpoiled; !f.all {
			f.devices[k] = struct{}{}
		}
	}
}

func (r *registry) tenantChanged(tenant string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.known.dropTenant(tenant)
	r.unknown.dropTenant(tenant)
	for f := range r.flights {
		if f.all = f.all || len(f.tenants) >= maxSpoiled; !f.all {
			f.tenants[tenant] = struct{}{}
		}
	}
}

func (r *registry) everythingChanged() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.known.clear()
	r.unknown.clear()
	for f := range r.flights {
		f.all = true
	}
}

// listening says whether changes are heard of from now on.
func (r *registry) listening(yes bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.deaf = !yes
}
