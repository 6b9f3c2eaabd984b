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

// cache holds at most limit devices, by tenant, so that a tenant is dropped at once.
// It has two generations: when the younger has half of the limit it becomes the
// older, and what was the older goes. So an entry stays while at least limit/2
// others come, and what is in use is soon asked for again.
type cache struct {
	limit      int
	young, old map[string]map[string]cached
	size       int // of young
}

func newCache(limit int) *cache {
	return &cache{limit: limit, young: make(map[string]map[string]cached), old: make(map[string]map[string]cached)}
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
	if _, ok := c.young[k.Tenant][k.Device]; ok {
		c.young[k.Tenant][k.Device] = e
		return
	}
	if c.size >= max(c.limit/2, 1) {
		c.old, c.young, c.size = c.young, make(map[string]map[string]cached), 0
	}
	devices := c.young[k.Tenant]
	if devices == nil {
		devices = make(map[string]cached)
		c.young[strings.Clone(k.Tenant)] = devices
	}
	devices[strings.Clone(k.Device)] = e
	c.size++
}

func (c *cache) drop(k pipeline.DeviceKey) {
	if _, ok := c.young[k.Tenant][k.Device]; ok {
		delete(c.young[k.Tenant], k.Device)
		c.size--
	}
	delete(c.old[k.Tenant], k.Device)
}

func (c *cache) dropTenant(tenant string) {
	c.size -= len(c.young[tenant])
	delete(c.young, tenant)
	delete(c.old, tenant)
}

func (c *cache) clear() {
	*c = *newCache(c.limit)
}
