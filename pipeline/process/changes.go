package process

import "github.com/crossfade-io/crossfade/pipeline"

// DeviceChanged says that the registry's entry of a device may have changed, or what
// else is kept of it: from now on messages are judged by what the database says then.
func (p *Processor) DeviceChanged(tenant, device string) {
	p.registry.deviceChanged(pipeline.DeviceKey{Tenant: tenant, Device: device})
}

// TenantChanged says so of all devices of a tenant, and of its subscriptions.
func (p *Processor) TenantChanged(tenant string) { p.registry.tenantChanged(tenant) }

// EverythingChanged says so of all devices.
func (p *Processor) EverythingChanged() { p.registry.everythingChanged() }

// Listening says whether the Processor is told of changes from now on. While it is
// not, which is how it begins, entries are believed for some seconds at most.
func (p *Processor) Listening(yes bool) { p.registry.listening(yes) }
