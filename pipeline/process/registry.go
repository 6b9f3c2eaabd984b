package process

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/crossfade-io/crossfade/pipeline"
)

// maxCachedDevices bounds the cache's memory (some 200 bytes a device).
const maxCachedDevices = 1_000_000

// registry caches what the device registry says, devices that it lacks included
// (for a shorter time, since a device is often switched on just after it was
// registered).
type registry struct {
	find       func(context.Context, []pipeline.DeviceKey) (map[pipeline.DeviceKey]pipeline.Device, error)
	ttl        time.Duration
	unknownTTL time.Duration

	mu      sync.RWMutex
	devices map[pipeline.DeviceKey]cached
}

type cached struct {
	device  *pipeline.Device // nil: not registered
	expires time.Time
}

func newRegistry(ttl time.Duration, find func(context.Context, []pipeline.DeviceKey) (map[pipeline.DeviceKey]pipeline.Device, error)) *registry {
	return &registry{find: find, ttl: ttl, unknownTTL: min(ttl, time.Second), devices: make(map[pipeline.DeviceKey]cached)}
}

// cached returns what the cache has of a device, nil for one that is not
// registered; ok is false where it has nothing.
func (r *registry) cached(now time.Time, k pipeline.DeviceKey) (device *pipeline.Device, ok bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	c, ok := r.devices[k]
	return c.device, ok && now.Before(c.expires)
}

// lookup fills found with every one of keys, asking the database once for all
// that the cache lacks. The keys' memory may be reused afterwards.
func (r *registry) lookup(ctx context.Context, now time.Time, keys map[pipeline.DeviceKey]*pipeline.Device) error {
	var missing []pipeline.DeviceKey
	r.mu.RLock()
	for k := range keys {
		if c, ok := r.devices[k]; ok && now.Before(c.expires) {
			keys[k] = c.device
		} else {
			missing = append(missing, k)
		}
	}
	r.mu.RUnlock()
	if len(missing) == 0 {
		return nil
	}
	answer, err := r.find(ctx, missing)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.devices)+len(missing) > maxCachedDevices {
		clear(r.devices)
	}
	for _, k := range missing {
		c := cached{expires: now.Add(r.unknownTTL)}
		if d, ok := answer[k]; ok {
			c.device, c.expires = &d, now.Add(r.ttl)
		}
		keys[k] = c.device
		r.devices[pipeline.DeviceKey{Tenant: strings.Clone(k.Tenant), Device: strings.Clone(k.Device)}] = c
	}
	return nil
}
