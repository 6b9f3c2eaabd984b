package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// locked runs a statement in a transaction that stays open until release, or the end of
// the test.
func (t operatorTest) locked(sql string, args ...any) (release func()) {
	t.Helper()
	conn, err := pgx.ConnectConfig(t.Context(), t.pool.Config().ConnConfig)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), `BEGIN`); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	release = func() {
		if _, err := conn.Exec(t.Context(), `ROLLBACK`); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(func() { _ = conn.Close(t.Context()) })
	return release
}

func (t operatorTest) await(what string, condition func() bool) {
	t.Helper()
	// Sooner than the pool's statement_timeout ends what it must not wait for.
	for deadline := time.Now().Add(20 * time.Second); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("gave up waiting until %s", what)
		}
	}
}

// wished counts the tenants that the rollback has wished back.
func (t operatorTest) wished(tenants ...string) int {
	t.Helper()
	return t.count(`SELECT count(*) FROM crossfade_flag_targets WHERE variant = 'mqtt' AND tenant_id = ANY ($1)`, tenants)
}

// TestRollbackWhileTheRegistryIsLocked: by somebody who alters it behind a long query.
func TestRollbackWhileTheRegistryIsLocked(tt *testing.T) {
	t := newOperatorTest(tt)
	t.fact("acme", "jetstream", "jetstream", "")
	t.want(exitDone, "flip wisher jetstream --new --no-wait")
	t.locked(`LOCK TABLE device_registry IN ACCESS EXCLUSIVE MODE`)
	t.want(exitDone, "rollback acme --yes --no-wait")
	out := t.want(exitDone, "rollback wisher stranger --yes --no-wait", "device_registry cannot be read, so names are not checked")
	if n := t.wished("acme", "wisher", "stranger"); n != 3 {
		t.Errorf("%d of those named are wished back\n%s", n, out)
	}
	t.exec(`DELETE FROM crossfade_flag_targets WHERE tenant_id <> 'wisher'`)
	t.exec(`UPDATE crossfade_flag_rules SET default_variant = 'live', percent = 10, percent_variant = 'live'`)
	t.want(exitError, "rollback --all --yes --no-wait", "neither a stage nor a wish yet get no wish", "device_registry could not be read: repeat")
	if n := t.wished("acme", "wisher"); n != 2 {
		t.Errorf("%d of all are wished back, want 2", n)
	}
	if n := t.count(`SELECT count(*) FROM crossfade_flag_rules WHERE percent = 0 AND default_variant = 'mqtt'`); n != 1 {
		t.Error("tenants that follow the rule would still go to JetStream")
	}
}

// TestRollbackPastALockedWish: it holds up nobody else, and is set once it is free.
func TestRollbackPastALockedWish(tt *testing.T) {
	t := newOperatorTest(tt)
	t.fact("acme", "jetstream", "jetstream", "")
	t.want(exitDone, "flip globex jetstream --no-wait")
	t.exec(`UPDATE crossfade_flag_rules SET default_variant = 'live'`)
	release := t.locked(`SELECT FROM crossfade_flag_targets WHERE tenant_id = 'globex' FOR UPDATE`)
	t.want(exitError, "rollback --all --yes --no-wait --timeout 100ms", "1 tenant are still locked by another session after 100ms", "not set: globex", "acme")
	if t.wished("acme") != 1 || t.wished("globex") != 0 || t.count(`SELECT count(*) FROM crossfade_flag_rules WHERE default_variant = 'mqtt'`) != 1 {
		t.Error("who is not locked, and the rule, are not set")
	}
	t.exec(`DELETE FROM crossfade_flag_targets WHERE tenant_id = 'acme'`)
	ended := make(chan string, 1)
	go func() {
		code, out, errs := call(t, "rollback", "--all", "--yes", "--no-wait", "--timeout", "10m")
		ended <- fmt.Sprintf("exit %d\n%s%s", code, out, errs)
	}()
	t.await("acme is wished back while globex is locked", func() bool { return t.wished("acme") == 1 })
	release()
	if said := <-ended; !strings.HasPrefix(said, "exit 0\n") || t.wished("globex") != 1 {
		t.Errorf("once it is free: %s", said)
	}
}

// TestRollbackPastALockedRollout: the wishes do not wait for the rollout's row, and it
// is paused when that is free. What the rollout has written meanwhile is overruled.
func TestRollbackPastALockedRollout(tt *testing.T) {
	t := newOperatorTest(tt)
	t.fact("acme", "jetstream", "jetstream", "")
	t.exec(`INSERT INTO crossfade_rollouts (name, state, phase, plan) VALUES ('r', 'running', 'flipping', '{"name": "r", "stage": "jetstream", "waves": [{"tenants": ["acme"]}]}')`)
	t.exec(`INSERT INTO crossfade_rollout_tenants (rollout, tenant_id, wave, state, wish, before) VALUES ('r', 'acme', 0, 'moving', 'jetstream', 'mqtt')`)
	for name, lock := range map[string]string{
		"row":   `SELECT FROM crossfade_rollouts FOR UPDATE`,
		"table": `LOCK TABLE crossfade_rollouts IN ACCESS EXCLUSIVE MODE`,
	} {
		t.exec(`DELETE FROM crossfade_flag_targets`)
		t.exec(`UPDATE crossfade_rollouts SET state = 'running', cause = NULL`)
		release := t.locked(lock)
		ended := make(chan string, 1)
		go func() {
			code, out, errs := call(t, "rollback", "acme", "--yes", "--no-wait", "--timeout", "10m")
			ended <- fmt.Sprintf("exit %d\n%s%s", code, out, errs)
		}()
		t.await("acme is wished back while the rollout is locked", func() bool { return t.wished("acme") == 1 })
		t.exec(`UPDATE crossfade_flag_targets SET variant = 'jetstream', updated_by = 'rollout r'`) // in the rollout's last step
		release()
		said := <-ended
		if !strings.HasPrefix(said, "exit 0\n") || !strings.Contains(said, "rollout r is paused") || t.wished("acme") != 1 {
			t.Errorf("%s: %s", name, said)
		}
	}
}
