package jetstream

// maxWarnedTenants bounds the memory of who was warned about: tenants' names
// come from whoever may publish.
const maxWarnedTenants = 1000

// warnedTenants remembers the tenants that were warned about. After
// maxWarnedTenants it stays silent.
type warnedTenants struct {
	names map[string]struct{}
}

// first reports whether the tenant is to be warned about, and whether it is the
// last for which there is room.
func (w *warnedTenants) first(tenant string) (warn, last bool) {
	tenant = abridged(tenant)
	if _, seen := w.names[tenant]; seen || len(w.names) >= maxWarnedTenants {
		return false, false
	}
	if w.names == nil {
		w.names = map[string]struct{}{}
	}
	w.names[tenant] = struct{}{}
	return true, len(w.names) == maxWarnedTenants
}

// warnTenant warns once for each tenant.
func (m *Mirror) warnTenant(tenant, text string, args ...any) {
	warn, last := m.warned.first(tenant)
	if !warn {
		return
	}
	m.log.Warn(text, append([]any{"tenant", abridged(tenant)}, args...)...)
	if last {
		m.log.Warn("too many tenants of which messages cannot be mirrored; further ones are only counted", "tenants", maxWarnedTenants)
	}
}

// abridged keeps a name of any length from filling memory or a log.
func abridged(name string) string {
	const limit = 128
	if len(name) <= limit {
		return name
	}
	return name[:limit] + "…"
}
