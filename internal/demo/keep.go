package demo

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/internal/fleet"
)

// keep leaves the stack up until ctx ends, or until `crossfade run` ends by itself,
// which is an error.
func (d *demo) keep(ctx context.Context, s *stack) error {
	program := d.Program
	if program == "" {
		program = os.Args[0]
	}
	d.screen.say("\n%s\n", d.screen.bold("Everything but the devices is still running. To have a look:"))
	for _, way := range d.ways(s, program) {
		d.screen.say("  # %s\n  %s\n", way[0], way[1])
	}
	if !s.database.Private() {
		d.screen.say("PostgreSQL's password is the one in DATABASE_URL.")
	}
	d.screen.say("Ctrl-C ends everything and removes all data.")
	<-ctx.Done()
	return d.childDeath(ctx)
}

// ways are the ways to reach each part: what it shows, and the command.
func (d *demo) ways(s *stack, program string) [][2]string {
	broker := strings.Replace(s.broker.URL(), "://", "://"+s.broker.User()+":"+s.broker.Password()+"@", 1)
	self, neighbour := shellQuoted(program), shellQuoted(filepath.Join(filepath.Dir(program), "fleet"))
	database, tenant := shellQuoted(shown(s.database)), shellQuoted(fleet.TenantName(0))
	crossfade := "DATABASE_URL=" + database + " " + self
	return [][2]string{
		{"the rows", "psql " + database + ` -c 'SELECT * FROM telemetry ORDER BY time DESC LIMIT 10'`},
		{"what devices publish", "mosquitto_sub -V mqttv5 -v -L " + shellQuoted(broker+"/tenant/+/device/+/+")},
		{"the streams", "nats --server " + shellQuoted(s.nats.URL()) + " stream report"},
		{"counters", "curl -s http://" + s.instance.address() + "/metrics"},
		{"readiness", "curl -s http://" + s.instance.address() + "/readyz"},
		{"the stages of all tenants", crossfade + " status"},
		{"move a tenant", crossfade + " flip " + tenant + " jetstream"},
		{"bring it back", crossfade + " flip " + tenant + " mqtt"},
		{"let the same devices publish for another minute", fmt.Sprintf("FLEET_BROKER=%s %s run --tenants %d --devices %d --rate %g --duration 1m",
			shellQuoted(broker), neighbour, d.Tenants, d.Devices, d.Rate)},
	}
}

// shown is how the database is named for people. The password of a private one is
// random; the one in DATABASE_URL is not ours to show.
func shown(d *devstack.Database) string {
	if d.Private() {
		return d.URL()
	}
	c, err := pgx.ParseConfig(d.URL())
	if err != nil {
		return "dbname=" + d.Name()
	}
	return fmt.Sprintf("host=%s port=%d user=%s dbname=%s", c.Host, c.Port, c.User, d.Name())
}

// shellQuoted is text as one word of a POSIX shell.
func shellQuoted(text string) string {
	safe := strings.IndexFunc(text, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./:", r))
	}) < 0
	if safe && text != "" {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}
