package downlink_test

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/crossfade-io/crossfade/internal/devstack"
)

// endSessions ends the sessions in PostgreSQL of all senders: what the server does by
// itself to one that is silent for a minute.
const endSessions = `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'crossfade downlink'`

// TestPacketsOfALostHolderNeverArrive: what a sender has put on its connection before
// it lost its lanes is cut off before anybody else sends (the fence).
func TestPacketsOfALostHolderNeverArrive(t *testing.T) {
	r := newRig(t)
	r.listen("#")
	w := r.wire()
	slow := r.options("slow")
	slow.MQTT.URL = w.url()
	r.start(slow)
	r.desire("d1", `{"v": 1}`)
	devstack.Await(t, "version 1", func() bool { return len(r.bodies(desiredTopic("d1"))) == 1 })
	r.becomes("0", `SELECT count(*) FROM crossfade_downlink`)
	w.hold(true)
	r.desire("d1", `{"v": 2}`) // stays in the wire
	devstack.Await(t, "version 2 to be under way", w.carries)
	// The second sender finds no free lane until the first has lost its session, and the
	// first cannot come back while its wire is held.
	r.start(r.options("fast"))
	r.becomes("2", `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'crossfade downlink'`)
	r.desire("d1", `{"v": 3}`)
	r.exec(endSessions)
	devstack.Await(t, "version 3", func() bool { return r.inOrder()["tenant/t1/device/d1"] == 3 })
	w.hold(false)
	// Both go on, and share: what the wire held is through or gone by then.
	for i := range 20 {
		r.desire(numbered(i), fmt.Sprintf(`{"w": %d}`, i))
	}
	devstack.Await(t, "all states", func() bool { return len(r.inOrder()) == 20 })
	r.becomes("0", `SELECT count(*) FROM crossfade_downlink`)
	if list := strings.Join(r.bodies(desiredTopic("d1")), " "); strings.Contains(list, `"v":2`) {
		t.Errorf("version 2 came through: %s", list)
	}
	r.inOrder()
}

// TestManySendersOneFrozen: three processes compete while states change; one after the
// other is frozen until its lanes are taken over, and thawed again. No older version
// follows a newer one, and the last of each device arrives.
func TestManySendersOneFrozen(t *testing.T) {
	r := newRig(t)
	r.listen("#")
	var children []*child
	for i := range 3 {
		children = append(children, r.spawn("sender-"+numbered(i), r.broker.URL()))
	}
	r.becomes("3", `SELECT count(DISTINCT client_id) FROM crossfade_downlink_lanes`)
	const devices = 100
	version := 0
	change := func(rounds int) {
		for range rounds {
			version++
			r.exec(`INSERT INTO device_state (tenant_id, device_id, desired_state) SELECT 't1', 'd' || i, jsonb_build_object('v', $1::int) FROM generate_series(1, $2::int) AS i
				ON CONFLICT (tenant_id, device_id) DO UPDATE SET desired_state = EXCLUDED.desired_state`, version, devices)
		}
	}
	change(5)
	for round := range 3 {
		k := children[round%3]
		name := "sender-" + numbered(round%3)
		change(3)
		k.send(syscall.SIGSTOP) // in the midst of it
		change(3)
		r.exec(`SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_stat_activity USING (pid)
			WHERE locktype = 'advisory' AND classid::int8 = 2019976300 AND datname = current_database()
			  AND objid::int8 IN (SELECT lane FROM crossfade_downlink_lanes WHERE client_id = $1)`, name)
		r.becomes("0", `SELECT count(*) FROM crossfade_downlink_lanes WHERE client_id = $1`, name)
		change(2)
		r.becomes("0", `SELECT count(*) FROM crossfade_downlink`)
		change(2)
		k.send(syscall.SIGCONT)
		change(5)
		r.becomes("true", `SELECT count(*) > 5 FROM crossfade_downlink_lanes WHERE client_id = $1`, name)
		r.inOrder()
	}
	r.becomes("0", `SELECT count(*) FROM crossfade_downlink`)
	devstack.Await(t, "the last version of every device", func() bool {
		last := r.inOrder()
		for i := range devices {
			if last[fmt.Sprintf("tenant/t1/device/d%d", i+1)] != int64(version) {
				return false
			}
		}
		return true
	})
}

// TestReplacedProcess: a process that comes under the name of one that is frozen has
// the broker cut that one off.
func TestReplacedProcess(t *testing.T) {
	r := newRig(t)
	r.listen("#")
	old := r.spawn("sender", r.broker.URL())
	r.desire("d1", `{"v": 1}`)
	devstack.Await(t, "version 1", func() bool { return len(r.bodies(desiredTopic("d1"))) == 1 })
	old.send(syscall.SIGSTOP)
	r.exec(endSessions)
	r.desire("d1", `{"v": 2}`)
	r.start(r.options("sender"))
	devstack.Await(t, "version 2", func() bool { return len(r.bodies(desiredTopic("d1"))) >= 2 })
	old.send(syscall.SIGCONT)
	for v := 3; v < 20; v++ {
		r.desire("d1", fmt.Sprintf(`{"v": %d}`, v))
		devstack.Await(t, "the next version", func() bool { return r.inOrder()["tenant/t1/device/d1"] == int64(v) })
	}
}

// TestReconnectAsksTheGuard: a sender that has lost its lanes unnoticed does not send
// again on a new connection what was under way on the old one.
func TestReconnectAsksTheGuard(t *testing.T) {
	r := newRig(t)
	r.listen("#")
	w := r.wire()
	k := r.spawn("slow", w.url())
	r.desire("d1", `{"v": 1}`)
	devstack.Await(t, "version 1", func() bool { return len(r.bodies(desiredTopic("d1"))) == 1 })
	r.becomes("0", `SELECT count(*) FROM crossfade_downlink`)
	w.hold(true)
	r.desire("d1", `{"v": 2}`) // under way for as long as the wire is held
	devstack.Await(t, "version 2 to be under way", w.carries)
	k.send(syscall.SIGSTOP)
	r.start(r.options("fast"))
	r.desire("d1", `{"v": 3}`)
	r.exec(endSessions)
	devstack.Await(t, "version 3", func() bool { return r.inOrder()["tenant/t1/device/d1"] == 3 })
	w.hold(false)
	k.send(syscall.SIGCONT) // its connection is gone: it connects again, with version 2 in hand
	for i := range 40 {
		r.desire(fmt.Sprintf("e%d", i), `{"w": 1}`)
	}
	r.becomes("2", `SELECT count(DISTINCT client_id) FROM crossfade_downlink_lanes`) // it is back
	devstack.Await(t, "all states", func() bool { return len(r.inOrder()) == 41 })
	if list := strings.Join(r.bodies(desiredTopic("d1")), " "); strings.Contains(list, `"v":2`) {
		t.Errorf("version 2 came through: %s", list)
	}
}
