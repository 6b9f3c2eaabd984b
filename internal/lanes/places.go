package lanes

import (
	"maps"
	"slices"
)

// Places is where the rings of tenants and devices go on, within lanes whose rows are
// read some at a time. It matters for fairness only: it may be lost at any time.
type Places struct {
	Tenants map[int16]string  // by lane
	Devices map[Tenant]string // of tenants that had more devices than were read
}

// Tenant is a tenant's part of a lane.
type Tenant struct {
	Lane   int16
	Tenant string
}

// Keys are devices, column by column.
type Keys struct {
	Lanes            []int16
	Tenants, Devices []string
}

// maxPlaces bounds what is remembered, and sent with every statement.
const maxPlaces = 10_000

// NewPlaces begins every ring at its first.
func NewPlaces() Places {
	return Places{Tenants: make(map[int16]string), Devices: make(map[Tenant]string)}
}

// Arguments are the tenants to begin after, for each lane (nil: at the first), and the
// devices. Places in other lanes are forgotten.
func (p *Places) Arguments(lanes []int16) (after []*string, devices Keys) {
	maps.DeleteFunc(p.Tenants, func(lane int16, _ string) bool { return !slices.Contains(lanes, lane) })
	maps.DeleteFunc(p.Devices, func(k Tenant, _ string) bool { return !slices.Contains(lanes, k.Lane) })
	for _, lane := range lanes {
		if tenant, ok := p.Tenants[lane]; ok {
			after = append(after, &tenant)
		} else {
			after = append(after, nil)
		}
	}
	for k, device := range p.Devices {
		devices.Lanes, devices.Tenants, devices.Devices = append(devices.Lanes, k.Lane), append(devices.Tenants, k.Tenant), append(devices.Devices, device)
	}
	return after, devices
}

// Bound forgets devices that have become too many.
func (p *Places) Bound() {
	if len(p.Devices) > maxPlaces {
		clear(p.Devices)
	}
}
