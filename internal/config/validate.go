package config

import (
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kong"
)

// ValidateOption adjusts what Validate looks at.
type ValidateOption int

// SkipFiles leaves out whether files can be read, for a configuration that is
// meant for another host. What only the content of a file could tell is left
// out with it.
const SkipFiles ValidateOption = iota + 1

// Validate returns nil or an [*Error] with every problem. Its signature keeps
// kong from calling it by itself: `crossfade config check` has to get past
// parsing to list everything.
func (r *Run) Validate(options ...ValidateOption) error {
	p := &problems{}
	p.ranges(r)
	files := !slices.Contains(options, SkipFiles)
	r.Database.validate(p, files)
	r.Bridge.validate(p)
	r.Stages.validate(p)
	r.Flags.validate(p, files)
	r.HTTP.validate(p)
	r.API.validate(p, files, r.HTTP)
	r.validateSources(p)
	if r.MQTT.Enabled || r.Mirror.Enabled || r.Downlink.Enabled {
		r.MQTT.validate(p, files)
	}
	if r.NATS.Enabled {
		r.NATS.validate(p, files)
	}
	r.validateMirror(p)
	r.Downlink.validate(p, r)
	r.validateRetention(p)
	return p.err()
}

// Validate returns nil or an [*Error] with every problem.
func (d *Database) Validate(options ...ValidateOption) error {
	p := &problems{}
	p.ranges(d)
	d.validate(p, !slices.Contains(options, SkipFiles))
	return p.err()
}

// Validate returns nil or an [*Error] with every problem.
func (h *HTTP) Validate(...ValidateOption) error {
	p := &problems{}
	h.validate(p)
	return p.err()
}

func (r *Run) validateSources(p *problems) {
	if !r.MQTT.Enabled && !r.NATS.Enabled {
		p.add("mqtt", "neither MQTT nor NATS is enabled, so nothing would be received",
			"enable it, or set --nats, or both")
	}
}

func (r *Run) validateMirror(p *problems) {
	if !r.Mirror.Enabled {
		return
	}
	if !r.NATS.Enabled {
		p.add("mirror", "copies into JetStream, but NATS is not enabled", "set --nats, or leave the mirror off")
	}
	clientID(p, "mirror-client-id", r.Mirror.ClientID)
	if r.MQTT.Enabled && r.Mirror.ClientID != "" && r.Mirror.ClientID == r.MQTT.ClientID {
		p.add("mirror-client-id", "is the same as --mqtt-client-id: the broker would cut off one connection whenever the other comes",
			"choose another")
	}
	shareGroup(p, "mirror-group", r.Mirror.Group)
	if r.MQTT.Enabled && r.Mirror.Group != "" && r.Mirror.Group == r.MQTT.Group {
		p.add("mirror-group", "is the same as --mqtt-group: source and mirror would each get only a part of the messages",
			"choose another")
	}
}

func (r *Run) validateRetention(p *problems) {
	retention, expiry := r.Pipeline.LedgerRetention, r.MQTT.SessionExpiry
	if r.MQTT.Enabled && retention < expiry {
		p.add("pipeline-ledger-retention",
			fmt.Sprintf("%s is shorter than --mqtt-session-expiry (%s): a copy that the broker kept longer would take effect twice", retention, expiry),
			"make it at least as long, or the session expiry shorter")
	}
	for flag, kept := range map[string]time.Duration{
		"pipeline-telemetry-retention":  r.Pipeline.TelemetryRetention,
		"pipeline-quarantine-retention": r.Pipeline.QuarantineRetention,
	} {
		// A bare "30" is refused as no duration; "30s" is the slip that is left.
		if kept > 0 && kept < time.Hour {
			p.add(flag, kept.String()+" is so short that rows would be deleted as they come", "set 1h or more (720h are 30 days), or 0 to keep them for ever")
		}
	}
}

// instancePattern keeps instance names usable in client IDs, logs and SQL
// comments alike.
var instancePattern = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

func (b *Bridge) validate(p *problems) {
	switch {
	case b.Instance == "":
		p.add("bridge-instance", "is empty and the host has no name", "give each instance a name that stays the same over restarts")
	case !instancePattern.MatchString(b.Instance):
		p.add("bridge-instance", "does not fit", "use 1 to 64 letters, digits, '.', '_' and '-'")
	}
}

func (d *Database) validate(p *problems, files bool) {
	if d.LockTimeout >= d.StatementTimeout {
		p.add("database-lock-timeout",
			fmt.Sprintf("%s is not below --database-statement-timeout (%s): what waits for a lock would look like what is slow, and would hold up its whole batch instead of being set aside", d.LockTimeout, d.StatementTimeout),
			"make it shorter (5s is the default), or the statement timeout longer")
	}
	if d.URL != "" && d.URLFile != "" {
		p.add("database-url-file", "is set together with --database-url", "keep one of them")
		return
	}
	url, named := d.URL, "database-url"
	if d.URLFile != "" {
		named = "database-url-file"
		if !files {
			return
		}
		content, err := readSecret(d.URLFile)
		if err != nil {
			p.add(named, "cannot be read: "+err.Error(), "name a readable file that holds the URL and nothing else")
			return
		}
		url = content
	}
	if url == "" {
		if envOf([]string{"PGHOST", "PGHOSTADDR", "PGDATABASE", "PGSERVICE", "PGSERVICEFILE", "PGPORT", "PGUSER"}) == "" {
			p.add("database-url", "no database is given",
				"set it (or DATABASE_URL) to postgres://user:password@host:5432/name, or set PGHOST, PGDATABASE, PGUSER")
		}
		return
	}
	if !databaseURLForm(url.Reveal()) {
		p.add(named, "is neither a URL nor a libpq keyword string",
			"write postgres://user:password@host:5432/name (special characters in the password percent-encoded) or host=… dbname=… user=…")
	}
}

var keywordForm = regexp.MustCompile(`^\s*[a-z_]+\s*=`)

// databaseURLForm judges only the form; what pgx makes of the rest it says
// itself, at the first connection.
func databaseURLForm(text string) bool {
	if strings.HasPrefix(text, "postgres://") || strings.HasPrefix(text, "postgresql://") {
		// url.Parse is not asked: libpq allows several hosts, it does not.
		return !strings.ContainsAny(text, " \t\r\n")
	}
	return keywordForm.MatchString(text)
}

func (h *HTTP) validate(p *problems) {
	host, port, err := net.SplitHostPort(h.Listen)
	if err != nil {
		p.add("http-listen", "is not HOST:PORT", "write for example 127.0.0.1:9464, or [::1]:9464")
		return
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil {
		p.add("http-listen", "the port is not a number from 0 to 65535", "write for example 127.0.0.1:9464")
	} else if n == 0 && h.AllowRemote {
		p.add("http-listen", "port 0 (any free one) makes no sense for remote callers", "choose a port")
	}
	if !loopback(host) && !h.AllowRemote {
		p.add("http-listen", fmt.Sprintf("%q is not loopback, and the listener asks for no password", host),
			"use 127.0.0.1, or set --http-allow-remote where only monitoring can reach it")
	}
}

// LocalURL returns the URL of a path ("/readyz") of the listener as seen from
// this host: for an address that stands for all interfaces, over loopback.
func (h HTTP) LocalURL(path string) string {
	host, port, err := net.SplitHostPort(h.Listen)
	if err != nil {
		return "http://" + h.Listen + path
	}
	if addr, err := netip.ParseAddr(host); host == "" || (err == nil && addr.IsUnspecified()) {
		host = "127.0.0.1"
		if err == nil && addr.Is6() {
			host = "::1"
		}
	}
	return "http://" + net.JoinHostPort(host, port) + path
}

// loopback reports whether a host is this one for sure. A name other than
// localhost is not: what it resolves to can change.
func loopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}

// ranges holds every number and duration of a struct against its range tag, and
// every word against its enum. kong itself checks only what it parsed, and only
// enums.
func (p *problems) ranges(target any) {
	parser, err := kong.New(target, append(Options(), kong.NoDefaultHelp())...)
	if err != nil {
		panic("config: struct tags: " + err.Error())
	}
	for _, flag := range parser.Model.Flags {
		if tag := flag.Tag.Get("range"); tag != "" {
			p.inRange(flag.Name, flag.Target, tag)
		}
		if flag.Enum != "" && !flag.EnumMap()[flag.Target.String()] {
			p.add(flag.Name, "is none of the words it may be", "use one of "+strings.ReplaceAll(flag.Enum, ",", ", "))
		}
	}
}

func (p *problems) inRange(flag string, value reflect.Value, tag string) {
	low, high, _ := strings.Cut(tag, "..")
	if value.Kind() == reflect.Float64 {
		// Written so that NaN is out of range too.
		if f := value.Float(); !(f >= float64(mustInt(low)) && f <= float64(mustInt(high))) {
			p.add(flag, strconv.FormatFloat(f, 'g', -1, 64)+" is out of range", fmt.Sprintf("choose from %s to %s", low, high))
		}
		return
	}
	n, lowest, highest := value.Int(), int64(0), int64(0)
	shown := strconv.FormatInt(n, 10)
	if value.Type() == reflect.TypeFor[time.Duration]() {
		shown = time.Duration(n).String()
		lowest, highest = int64(mustDuration(low)), int64(mustDuration(high))
	} else {
		lowest, highest = mustInt(low), mustInt(high)
	}
	if n < lowest || n > highest {
		p.add(flag, shown+" is out of range", fmt.Sprintf("choose from %s to %s", low, high))
	}
}

// mustDuration and mustInt read range tags, which are ours and tested.
func mustDuration(s string) time.Duration {
	d, err := time.ParseDuration(s)
	if err != nil {
		panic("config: range tag: " + err.Error())
	}
	return d
}

func mustInt(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		panic("config: range tag: " + err.Error())
	}
	return n
}
