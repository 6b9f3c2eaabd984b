package process

import (
	"strings"
	"time"

	"github.com/crossfade-io/crossfade/pipeline"
)

// cached is an answer of the registry's, and when it was asked for.
type cached struct {
	device *pipeline.Device
	at     time.Time
}

// size is how many usual devices take as much memory: the modules of one may rename
// thousands of metrics.
func (e cached) size() int {
	if e.device == nil {
		return 1
	}
	bytes := len(e.device.Unreadable)
	for _, c := range e.device.Certificates {
		bytes += 64 + len(c.CommonName)
	}
	for key, name := range e.device.KeyMap {
		bytes += 64 + len(key) + len(name)
	}
	return 1 + bytes/bytesOfDevice
}

// cache holds at most limit devices, by tenant, so that a tenant is dropped at once.
// It has two generations: when the younger has half of the limit it becomes the
// older, and what was the older goes. So an entry stays while at least limit/2
// others come, and what is in use is soon asked for again.
type cache struct {
	limit      int
	young, old map[string]map[string]cached
	sizes      map[string]int // of each tenant in young,
	size       int            // and of all
}

func newCache(limit int) *cache {
	return &cache{limit: limit, young: make(map[string]map[string]cached), old: make(map[string]map[string]cached), sizes: make(map[string]int)}
}

func (c *cache) get(k pipeline.DeviceKey) (cached, bool) {
	if e, ok := c.young[k.Tenant][k.Device]; ok {
		return e, true
	}
	e, ok := c.old[k.Tenant][k.Device]
	return e, ok
}

// put keeps no memory of the key's.
func (c *cache) put(k pipeline.DeviceKey, e cached) {
	c.dropYoung(k)
	size := e.size()
	if c.size > 0 && c.size+size > c.limit/2 {
		c.old, c.young, c.sizes, c.size = c.young, make(map[string]map[string]cached), make(map[string]int), 0
	}
	devices := c.young[k.Tenant]
	if devices == nil {
		devices = make(map[string]cached)
		k.Tenant = strings.Clone(k.Tenant)
		c.young[k.Tenant], c.sizes[k.Tenant] = devices, 0
	}
	devices[strings.Clone(k.Device)] = e
	c.sizes[k.Tenant] += size
	c.size += size
}

func (c *cache) dropYoung(k pipeline.DeviceKey) {
	devices := c.young[k.Tenant]
	e, ok := devices[k.Device]
	if !ok {
		return
	}
	if len(devices) == 1 {
		c.dropTenantYoung(k.Tenant) // or names of tenants would pile up
		return
	}
	delete(devices, k.Device)
	c.sizes[k.Tenant] -= e.size()
	c.size -= e.size()
}

func (c *cache) dropTenantYoung(tenant string) {
	c.size -= c.sizes[tenant]
	delete(c.young, tenant)
	delete(c.sizes, tenant)
}

func (c *cache) drop(k pipeline.DeviceKey) {
	c.dropYoung(k)
	delete(c.old[k.Tenant], k.Device)
}

func (c *cache) dropTenant(tenant string) {
	c.dropTenantYoung(tenant)
	delete(c.old, tenant)
}

func (c *cache) clear() {
	*c = *newCache(c.limit)
}
