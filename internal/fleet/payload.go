package fleet

import (
	"strconv"
	"time"
)

// AppendPayload appends the body that the device publishes as message seq of
// the kind, created at ts (used to the millisecond; ignored by KindTimeless
// and KindShadow). It is pure: equal arguments give equal bytes. The body is a
// JSON object, except for those bad messages that are meant not to be JSON.
func AppendPayload(dst []byte, d Device, seq int64, ts time.Time, kind Kind) []byte {
	l := layoutOf(d)
	if kind == KindShadow {
		return appendShadow(dst, d, seq, l)
	}
	return appendMessage(dst, message{d: d, seq: seq, ts: ts, kind: kind, flaw: flawOf(d, seq, kind)}, l)
}

// message is what appendMessage writes.
type message struct {
	d    Device
	seq  int64
	ts   time.Time
	kind Kind
	flaw flaw
	// injected is set where a producer adds a ts, as a float of Unix seconds,
	// to a message whose device sent none.
	injected bool
}

// layout is how one device's firmware writes JSON; it means the same whatever
// the layout is.
type layout struct {
	order   [8]member
	spaced  bool // a space after colons and commas
	numbers numberFormat
	times   timeFormat
	tenant  bool // sends tenant_id
	version bool // sends version
	place   placeNames
}

type member uint8

const (
	memberTS member = iota
	memberSite
	memberSeq
	memberTenant
	memberToken
	memberVersion
	memberPlace
	memberMetrics
)

type numberFormat uint8

const (
	numberShort    numberFormat = iota // 22.5
	numberFixed                        // 22.50
	numberExponent                     // 2250e-2
)

type timeFormat uint8

const (
	timeRFC3339 timeFormat = iota // 2026-02-09T09:15:23.045Z
	timeOffset                    // 2026-02-09T11:15:23.045+02:00
	timeSpace                     // 2026-02-09 09:15:23Z
	timeBasic                     // 20260209T091523Z
)

type placeNames uint8

const (
	placeNone placeNames = iota
	placeShort
	placeLong
)

var orders = [...][8]member{
	{memberTS, memberSite, memberSeq, memberTenant, memberToken, memberVersion, memberPlace, memberMetrics},
	{memberToken, memberTenant, memberSite, memberSeq, memberTS, memberMetrics, memberPlace, memberVersion},
	{memberMetrics, memberSeq, memberTS, memberVersion, memberPlace, memberSite, memberToken, memberTenant},
}

// sortedOrder is roughly what a producer writes that sorts members.
var sortedOrder = [8]member{memberPlace, memberMetrics, memberToken, memberSeq, memberSite, memberTenant, memberTS, memberVersion}

func layoutOf(d Device) layout {
	h := mix(d.Seed, saltLayout)
	pick := func(n uint64) uint64 {
		v := h % n
		h /= n
		return v
	}
	return layout{
		order:   orders[pick(uint64(len(orders)))],
		spaced:  pick(6) == 0,
		numbers: [...]numberFormat{numberShort, numberShort, numberFixed, numberExponent}[pick(4)],
		times:   [...]timeFormat{timeRFC3339, timeRFC3339, timeRFC3339, timeOffset, timeSpace, timeBasic}[pick(6)],
		tenant:  pick(2) == 0,
		version: pick(3) == 0,
		place:   [...]placeNames{placeNone, placeNone, placeShort, placeLong}[pick(4)],
	}
}

// writer appends JSON objects; first says whether a comma is due.
type writer struct {
	b      []byte
	spaced bool
	first  bool
}

func (w *writer) open() { w.b, w.first = append(w.b, '{'), true }
func (w *writer) shut() { w.b, w.first = append(w.b, '}'), false }

// name begins a member. Names and values come from this package or from
// device names, which need no escaping.
func (w *writer) name(s string) {
	if !w.first {
		w.b = append(w.b, ',')
		if w.spaced {
			w.b = append(w.b, ' ')
		}
	}
	w.first = false
	w.b = append(w.b, '"')
	w.b = append(w.b, s...)
	w.b = append(w.b, '"', ':')
	if w.spaced {
		w.b = append(w.b, ' ')
	}
}

func (w *writer) text(name, value string) {
	w.name(name)
	w.b = append(w.b, '"')
	w.b = append(w.b, value...)
	w.b = append(w.b, '"')
}

func (w *writer) integer(name string, v int64) {
	w.name(name)
	w.b = strconv.AppendInt(w.b, v, 10)
}

// hundredths writes v/100.
func (w *writer) hundredths(name string, v int64, f numberFormat) {
	w.name(name)
	switch f {
	case numberFixed:
		w.b = strconv.AppendFloat(w.b, float64(v)/100, 'f', 2, 64)
	case numberExponent:
		w.b = strconv.AppendInt(w.b, v, 10)
		w.b = append(w.b, "e-2"...)
	default:
		w.b = strconv.AppendFloat(w.b, float64(v)/100, 'f', -1, 64)
	}
}

func appendMessage(dst []byte, m message, l layout) []byte {
	w := writer{b: dst, spaced: l.spaced}
	start := len(dst)
	w.open()
	for _, member := range l.order {
		w.member(member, m, l)
	}
	w.shut()
	if m.flaw == flawNotJSON {
		return w.b[:start+(len(w.b)-start)*2/3] // a body cut short in transfer
	}
	return w.b
}

func (w *writer) member(which member, m message, l layout) {
	switch which {
	case memberTS:
		w.time(m, l)
	case memberSite:
		switch m.flaw {
		case flawNoSite:
		case flawSite:
			w.text("site_id", "elsewhere")
		default:
			w.text("site_id", m.d.Site)
		}
	case memberSeq:
		w.integer("seq", m.seq)
	case memberTenant:
		if m.flaw == flawTenant {
			w.text("tenant_id", m.d.Tenant+"-other")
		} else if l.tenant {
			w.text("tenant_id", m.d.Tenant)
		}
	case memberToken:
		switch m.flaw {
		case flawNoToken:
		case flawToken:
			w.text("provision_token", "tok-wrong")
		default:
			w.text("provision_token", m.d.Token)
		}
	case memberVersion:
		if m.flaw == flawVersion {
			w.text("version", "9")
		} else if l.version {
			w.text("version", "1")
		}
	case memberPlace:
		w.place(m, l)
	case memberMetrics:
		w.metrics(m, l)
	}
}

func (w *writer) time(m message, l layout) {
	if m.kind == KindTimeless {
		if m.injected {
			w.name("ts")
			ms := m.ts.UnixMilli()
			w.b = strconv.AppendFloat(w.b, float64(ms)/1000, 'f', -1, 64)
		}
		return
	}
	w.name("ts")
	w.b = append(w.b, '"')
	t := m.ts.UTC()
	switch l.times {
	case timeOffset:
		w.b = t.In(twoHoursEast).AppendFormat(w.b, "2006-01-02T15:04:05.000-07:00")
	case timeSpace:
		w.b = t.AppendFormat(w.b, "2006-01-02 15:04:05Z")
	case timeBasic:
		w.b = t.AppendFormat(w.b, "20060102T150405Z")
	default:
		w.b = t.AppendFormat(w.b, "2006-01-02T15:04:05.000Z")
	}
	w.b = append(w.b, '"')
}

var twoHoursEast = time.FixedZone("", 2*60*60)

func (w *writer) place(m message, l layout) {
	if l.place == placeNone || m.kind == KindHeartbeat {
		return
	}
	lat, lng := "lat", "lng"
	if l.place == placeLong {
		lat, lng = "latitude", "longitude"
	}
	at := mix(m.d.Seed, saltLayout)
	w.hundredths(lat, 4700+int64(at%800), l.numbers)
	w.hundredths(lng, 600+int64(at>>32%800), l.numbers)
}

func (w *writer) metrics(m message, l layout) {
	if m.flaw == flawMetrics {
		w.name("metrics")
		w.b = append(w.b, "[1]"...)
		return
	}
	if m.kind == KindHeartbeat {
		return
	}
	h := mix(m.d.Seed^saltValue, m.seq)
	w.name("metrics")
	w.open()
	w.hundredths("temp_c", int64(h%6000)-2000, l.numbers)
	w.integer("battery", int64(h>>16%101))
	w.name("door_open")
	w.b = strconv.AppendBool(w.b, h>>32&1 == 1)
	w.text("mode", [...]string{"eco", "boost", "off"}[h>>33%3])
	w.shut()
}

func appendShadow(dst []byte, d Device, version int64, l layout) []byte {
	w := writer{b: dst, spaced: l.spaced}
	h := mix(d.Seed^saltShadow, -version)
	w.open()
	w.name("reported")
	w.open()
	w.text("firmware", [...]string{"1.8.2", "1.9.0"}[h&1])
	w.integer("interval_s", int64(h>>1%120)+1)
	w.hundredths("setpoint_c", int64(h>>8%1000)+1500, l.numbers)
	w.shut()
	w.integer("version", version)
	w.shut()
	return w.b
}
