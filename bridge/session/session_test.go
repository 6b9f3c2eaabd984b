package session_test

import (
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/crossfade-io/crossfade/bridge/session"
	"github.com/crossfade-io/crossfade/internal/devstack"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(devstack.Main(m)) }

func open(t *testing.T, config *pgx.ConnConfig, silence time.Duration) *pgx.Conn {
	t.Helper()
	conn, err := session.Open(t.Context(), config, session.Options{Application: "crossfade test", Silence: silence, StatementTimeout: 15 * time.Second, LockTimeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { session.Close(conn) })
	return conn
}

// TestSilenceLosesTheLock: who holds a lock and says nothing more loses it to another,
// within a transaction too.
func TestSilenceLosesTheLock(t *testing.T) {
	config, err := pgx.ParseConfig(devstack.TestDatabase(t))
	if err != nil {
		t.Fatal(err)
	}
	other := open(t, config, time.Hour)
	for what, says := range map[string]string{"idle": "SELECT 1", "idle in a transaction": "BEGIN"} {
		frozen := open(t, config, time.Second)
		for _, sql := range []string{"SELECT pg_advisory_lock(7)", says} {
			if _, err := frozen.Exec(t.Context(), sql); err != nil {
				t.Fatal(err)
			}
		}
		mine := false
		for deadline := time.Now().Add(time.Minute); !mine && time.Now().Before(deadline); {
			if err := other.QueryRow(t.Context(), "SELECT pg_try_advisory_lock(7)").Scan(&mine); err != nil {
				t.Fatal(err)
			}
		}
		if !mine {
			t.Errorf("%s: the lock is still held", what)
		}
		if _, err := other.Exec(t.Context(), "SELECT pg_advisory_unlock_all()"); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSettings: a peer that is gone is noticed within Silence as well, and waits are
// bounded as they are to be.
func TestSettings(t *testing.T) {
	config, err := pgx.ParseConfig(devstack.TestDatabase(t))
	if err != nil {
		t.Fatal(err)
	}
	for silence, probe := range map[time.Duration]string{4 * time.Second: "1", 10 * time.Second: "2"} {
		conn := open(t, config, silence)
		for name, want := range map[string]string{
			"application_name": "crossfade test", "TimeZone": "UTC", "default_transaction_isolation": "read committed",
			"statement_timeout": "15s", "lock_timeout": "1s", "idle_session_timeout": silence.String(), "idle_in_transaction_session_timeout": silence.String(),
			"tcp_keepalives_idle": probe, "tcp_keepalives_interval": probe, "tcp_keepalives_count": "3", "tcp_user_timeout": strconv.FormatInt(silence.Milliseconds(), 10),
		} {
			var got string
			if err := conn.QueryRow(t.Context(), "SHOW "+name).Scan(&got); err != nil || got != want {
				t.Errorf("%s is %q, want %q (%v)", name, got, want, err)
			}
		}
	}
}
