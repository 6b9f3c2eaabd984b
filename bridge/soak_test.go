package bridge_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/internal/devstack"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/crossfade-io/crossfade/bridge"
	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/flags"
	"github.com/crossfade-io/crossfade/internal/fleet"
)

// soakEnv is how long TestSoak flips, e.g. 10m (make soak); a short while without it.
const soakEnv = "CROSSFADE_SOAK"

const shortSoak = 25 * time.Second

// TestSoak flips tenants at random to any of the four stages, on three instances that
// share the subscription and the mirror and that are killed and started again all the
// time, while a fleet plays. Nothing is lost and nothing doubled (P1, P2, P4). With the
// instances left alone it then measures how long a rollback takes until MQTT has the
// authority on every one of them.
func TestSoak(t *testing.T) {
	duration := shortSoak
	if v := os.Getenv(soakEnv); v != "" {
		var err error
		if duration, err = time.ParseDuration(v); err != nil {
			t.Fatalf("%s: %v", soakEnv, err)
		}
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)

	s := newStack(t)
	// What a killed instance had in hand comes again soon; our own consumers wait a minute.
	for stream, durable := range map[string]string{"TELEMETRY": "ingest-workers", "SHADOW": "ingest-shadow", "COMMANDS": "ingest-commands"} {
		s.consumer(s.jetstream(), stream, strings.ToLower(stream)+".>", natsjs.ConsumerConfig{
			Durable: durable, AckPolicy: natsjs.AckExplicitPolicy, AckWait: 5 * time.Second, MaxAckPending: 20_000})
	}
	fc := fleet.DefaultConfig()
	fc.Tenants, fc.Devices, fc.Rate = 20, 60, 400
	fc.PerDevice = int64(duration.Seconds() * fc.Rate / float64(fc.Devices))
	tenants := fleet.TenantNames(fc)

	var configs []bridge.Config
	var running []*child
	for _, name := range []string{"a", "b", "c"} {
		c := s.config(name)
		c.MQTT.Group, c.Mirror.Group = "ingest", "mirror"
		configs = append(configs, c)
		running = append(running, s.spawn(c))
	}
	record := s.playing(fc)
	devstack.Await(t, "rows arrive", func() bool { return s.count(`SELECT count(*) FROM telemetry`) > 0 })

	end := time.Now().Add(duration)
	flips, kills := 0, 0
	var flipping sync.WaitGroup
	flipping.Go(func() {
		random := rand.New(rand.NewPCG(seed, 0))
		for ; time.Now().Before(end); flips++ {
			wish := flags.Variant(stage.All()[random.IntN(4)])
			tenant := tenants[random.IntN(len(tenants))]
			if _, err := flags.OpenStore(s.pool).SetTargets(t.Context(), []string{tenant}, wish, "soak", ""); err != nil {
				t.Errorf("flip %s to %s: %v", tenant, wish, err)
				return
			}
			time.Sleep(time.Duration(random.Int64N(int64(300 * time.Millisecond))))
		}
	})
	random := rand.New(rand.NewPCG(seed, 1))
	for ; time.Now().Before(end); kills++ {
		time.Sleep(2*time.Second + time.Duration(random.Int64N(int64(3*time.Second))))
		i := random.IntN(len(running))
		running[i].kill()
		time.Sleep(time.Duration(random.Int64N(int64(2 * time.Second))))
		running[i] = s.spawn(configs[i])
	}
	flipping.Wait()
	s.reconcile(record())
	for _, k := range running {
		_, metrics := k.get("/metrics")
		t.Logf("%s", strings.Join(slices.DeleteFunc(strings.Split(metrics, "\n"), func(l string) bool {
			return !strings.HasPrefix(l, "crossfade_dropped_total") && !strings.HasPrefix(l, "crossfade_standby_total")
		}), "  "))
	}
	visits := s.visits()
	t.Logf("%d flips, %d kills; stages entered: %v", flips, kills, visits)
	for _, st := range stage.All() {
		if visits[string(st)] == 0 {
			t.Errorf("no tenant has ever entered stage %s", st)
		}
	}
	s.measureRollbacks(tenants)
}

// visits counts how often each stage was entered.
func (s *stack) visits() map[string]int {
	s.t.Helper()
	rows, err := s.pool.Query(s.t.Context(), `SELECT to_stage, count(*) FROM crossfade_stage_history GROUP BY 1`)
	if err != nil {
		s.t.Fatal(err)
	}
	defer rows.Close()
	visits := make(map[string]int)
	for rows.Next() {
		var name string
		var n int
		if err := rows.Scan(&name, &n); err != nil {
			s.t.Fatal(err)
		}
		visits[name] = n
	}
	if err := rows.Err(); err != nil {
		s.t.Fatal(err)
	}
	return visits
}

// measureRollbacks rolls tenants back one by one, from live and from jetstream, and
// reports how long it takes until every instance decides by it.
func (s *stack) measureRollbacks(tenants []string) {
	s.t.Helper()
	const back = `
SELECT EXISTS (SELECT FROM crossfade_stages WHERE tenant_id = $1 AND stage IN ('shadow', 'mqtt'))
   AND NOT EXISTS (SELECT FROM crossfade_instances AS i, crossfade_stages AS s
                    WHERE s.tenant_id = $1 AND i.lease_until > now() AND i.confirmed_revision < s.epoch)`
	s.flip(flags.JetStream, tenants...)
	var took []time.Duration
	for _, tenant := range tenants {
		began := time.Now()
		if _, err := flags.OpenStore(s.pool).SetTargets(s.t.Context(), []string{tenant}, flags.MQTT, "soak", ""); err != nil {
			s.t.Fatal(err)
		}
		devstack.Await(s.t, "MQTT has the authority on every instance", func() bool {
			var done bool
			if err := s.pool.QueryRow(s.t.Context(), back, tenant).Scan(&done); err != nil {
				s.t.Fatal(err)
			}
			return done
		})
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	s.t.Logf("from the wish to MQTT's authority on all instances: %s", histogram(took))
}

// histogram shows sorted durations in buckets.
func histogram(took []time.Duration) string {
	text := fmt.Sprintf("median %v, worst %v;", took[len(took)/2].Round(time.Millisecond), took[len(took)-1].Round(time.Millisecond))
	rest := took
	for _, most := range []time.Duration{25, 50, 100, 250, 500, 1000, 2500, 1e6} {
		n, _ := slices.BinarySearch(rest, most*time.Millisecond+1)
		if n > 0 {
			text += fmt.Sprintf(" ≤%v: %d", most*time.Millisecond, n)
		}
		rest = rest[n:]
	}
	return text
}
