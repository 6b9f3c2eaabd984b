package store

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"github.com/crossfade-io/crossfade/pipeline"
)

// upsertShadows sorts its rows, so that transactions lock devices in one order. A device
// without a row is one with version 0, whether another message of the batch has made the
// row or not: a negative version changes nothing.
const upsertShadows = `
INSERT INTO device_state (tenant_id, device_id, site_id, reported_state, reported_version, shadow_updated_at)
SELECT t, d, s, CASE WHEN v < 0 THEN '{}' ELSE r::jsonb END, greatest(v, 0), CASE WHEN v >= 0 THEN now() END
  FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::int8[]) AS u(t, d, s, r, v)
 ORDER BY t COLLATE "C", d COLLATE "C"
    ON CONFLICT (tenant_id, device_id) DO UPDATE
   SET reported_state = EXCLUDED.reported_state,
       reported_version = EXCLUDED.reported_version,
       shadow_updated_at = EXCLUDED.shadow_updated_at
 WHERE EXCLUDED.shadow_updated_at IS NOT NULL AND EXCLUDED.reported_version >= coalesce(device_state.reported_version, 0)`

// writeShadows replaces reported states. Of several reports by one device in a
// batch the one with the highest version counts, of equal versions the last.
func writeShadows(ctx context.Context, tx pgx.Tx, entries []*Entry) error {
	latest := make(map[pipeline.DeviceKey]*Entry, len(entries))
	for _, e := range entries {
		key := pipeline.DeviceKey{Tenant: e.Msg.Tenant, Device: e.Msg.Device}
		if old, ok := latest[key]; !ok || shadowVersion(e) >= shadowVersion(old) {
			latest[key] = e
		}
	}
	var tenants, devices, sites, states []string
	var versions []int64
	for key, e := range latest {
		tenants, devices, sites = append(tenants, key.Tenant), append(devices, key.Device), append(sites, e.Device.Site)
		states = append(states, string(e.Msg.Fields.Reported.AppendCanonical(nil)))
		versions = append(versions, shadowVersion(e))
	}
	_, err := tx.Exec(ctx, upsertShadows, tenants, devices, sites, states, versions)
	return err
}

// shadowVersion is 0 where the report has none.
func shadowVersion(e *Entry) int64 {
	v, _ := e.Msg.Fields.Version.Int()
	return v
}

// findDevices reads identifiers and statuses as text: in adopted databases they may be
// text in one table and uuid, integer or an enum in the other. It reads key maps as text
// too, for in a column of json there may be what jsonb refuses; the longest fill a
// batch's memory. A certificate without a common name proves nothing. When it ends may be
// text as well: a cast that fails would fail the look-up of all that is asked for with it.
const findDevices = `
SELECT r.tenant_id, r.device_id, coalesce(r.site_id::text, ''), coalesce(r.status::text, ''), coalesce(lower(r.provision_token_hash), ''),
       coalesce(sub.status::text, ''), least(greatest(coalesce(r.sensor_limit, tier.default_sensor_limit, $3), 0), 1000000)::int8, ` + locationPinned + `,
       cert.names, cert.expiries, map.texts
  FROM device_registry AS r
  JOIN unnest($1::text[], $2::text[]) AS k(tenant_id, device_id) USING (tenant_id, device_id)
  LEFT JOIN subscriptions AS sub ON sub.tenant_id = r.tenant_id AND sub.subscription_id::text = r.subscription_id::text
  LEFT JOIN device_tiers AS tier ON tier.tier_id::text = r.tier_id::text
 CROSS JOIN LATERAL (
       SELECT array_agg(common_name::text ORDER BY fingerprint_sha256) AS names,
              array_agg(to_jsonb(not_after) #>> '{}' ORDER BY fingerprint_sha256) AS expiries
         FROM device_certificates
        WHERE tenant_id = r.tenant_id AND device_id = r.device_id AND status = 'ACTIVE' AND common_name IS NOT NULL) AS cert
 CROSS JOIN LATERAL (
       SELECT array_agg(metric_key_map::text) AS texts
         FROM device_modules
        WHERE tenant_id = r.tenant_id AND device_id = r.device_id AND status = 'ACTIVE' AND octet_length(metric_key_map::text) <= $4) AS map`

// maxKeyMap bounds a module's key map, in bytes of its text. A longer one is ignored.
const maxKeyMap = 64 << 10

// Devices looks devices up in the registry, all in one query. What is not in the
// result is not registered.
func (s *Store) Devices(ctx context.Context, keys []pipeline.DeviceKey) (map[pipeline.DeviceKey]pipeline.Device, error) {
	var tenants, devices []string
	for _, k := range keys {
		if storableText(k.Tenant) && storableText(k.Device) {
			tenants, devices = append(tenants, k.Tenant), append(devices, k.Device)
		}
	}
	found := make(map[pipeline.DeviceKey]pipeline.Device, len(tenants))
	if len(tenants) == 0 {
		return found, nil
	}
	query := s.pool.Query
	if s.beginQuery != "" {
		tx, err := s.begin(ctx)
		if err != nil {
			return nil, translate("look up devices", err)
		}
		defer rollback(tx)
		query = tx.Query
	}
	rows, err := query(ctx, findDevices, tenants, devices, pipeline.DefaultSensorLimit, maxKeyMap)
	if err != nil {
		return nil, translate("look up devices", err)
	}
	var k pipeline.DeviceKey
	var d pipeline.Device
	var subjects, maps []string
	var expiries []*string
	columns := []any{&k.Tenant, &k.Device, &d.Site, &d.Status, &d.TokenHash, &d.Subscription, &d.SensorLimit, &d.LocationPinned, &subjects, &expiries, &maps}
	_, err = pgx.ForEachRow(rows, columns, func() error {
		d.KeyMap = keyMap(maps)
		d.Certificates, d.Unreadable = certificates(subjects, expiries)
		found[k] = d
		return nil
	})
	return found, translate("look up devices", err)
}

// certificates also returns what is wrong, where it cannot be told when one ends.
func certificates(subjects []string, expiries []*string) (list []pipeline.Certificate, unreadable string) {
	for i, name := range subjects {
		end, ok := expiry(expiries[i])
		if !ok {
			return nil, fmt.Sprintf("device_certificates.not_after of an ACTIVE certificate is %.40q: no time of ISO 8601", *expiries[i])
		}
		list = append(list, pipeline.Certificate{CommonName: name, NotAfter: end})
	}
	return list, ""
}

// expiry reads a column of whatever type in the form that it has in JSON. Zero is never;
// what ended before 1970 did so then, and what ends after 9999 does so before.
func expiry(text *string) (end time.Time, ok bool) {
	epoch := time.Unix(0, 0).UTC()
	switch {
	case text == nil || *text == "infinity":
		return time.Time{}, true
	case *text == "-infinity" || strings.HasSuffix(*text, " BC"):
		return epoch, true
	}
	s := strings.TrimSpace(*text)
	if year := strings.IndexByte(s, '-'); year > 4 && strings.Trim(s[:year], "0123456789") == "" {
		s = "9996" + s[year:] // a leap year
	}
	if zone, found := strings.CutSuffix(s, " UTC"); found {
		s = zone + "Z"
	}
	if end, ok = pipeline.ParseTimestamp(s); ok && end.Before(epoch) {
		end = epoch
	}
	return end, ok
}

// maxMetricKey bounds, in characters, the names that modules may give, as the
// checks do for those that devices give: a longer one might not fit into an index.
const maxMetricKey = 128

// keyMap merges what the modules say, nil for nothing. Where two of them rename one
// key the name that sorts first counts; a name that no metric may have is ignored, and
// so is what is no JSON object.
func keyMap(texts []string) map[string]string {
	var merged map[string]string
	for _, text := range texts {
		var names map[string]json.RawMessage // of any value: jsonb holds numbers that no float64 does
		if json.Unmarshal([]byte(text), &names) != nil {
			continue
		}
		for key, value := range names {
			var name string
			if json.Unmarshal(value, &name) != nil || name == "" || utf8.RuneCountInString(name) > maxMetricKey || strings.ContainsFunc(name, unicode.IsControl) {
				continue
			}
			if merged == nil {
				merged = make(map[string]string, len(names))
			}
			if other, ok := merged[key]; !ok || name < other {
				merged[key] = name
			}
		}
	}
	return merged
}
