package demo

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

func TestEndsWithNothingLostOrDoubled(t *testing.T) {
	dir, admin := place(t)
	var out bytes.Buffer
	screen := NewScreen(&out, false)
	o := Options{Duration: 8 * time.Second, Rate: 300, Devices: 12, Tenants: 3, Program: crossfade}
	o.Verdict = func(r *Report) error { r.WriteText(screen); return nil }
	report, err := Run(t.Context(), o, screen)
	if err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	if !report.OK || report.Sent == 0 || report.Interrupted || report.Kills != 0 || len(report.Flips) != 4 {
		t.Errorf("report: %+v", report)
	}
	for _, f := range report.Flips {
		if f.ProvedMilliseconds < max(f.Milliseconds, dwell.Milliseconds()) {
			t.Errorf("the flip has not dwelt in an inner stage: %+v", f)
		}
	}
	if line := lastLine(out.String()); !strings.HasSuffix(line, "  lost 0  duplicated 0") || strings.Contains(line, "sent 0 ") {
		t.Errorf("the last line is %q", line)
	}
	for _, want := range []string{"Flip acme to jetstream", "Flip globex to jetstream", "Flip initech to jetstream",
		"Stage live after", "Proved for acme, globex, initech: stage jetstream, ", "MQTT's copies are dropped unseen",
		"Roll acme back to mqtt", "Stage shadow after", "Proved for acme: stage mqtt, ", "JetStream's copies are dropped unseen", "written/s mqtt"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the story lacks %q:\n%s", want, &out)
		}
	}
	if strings.Contains(out.String(), "\x1b") || strings.Contains(out.String(), "\r") {
		t.Errorf("control characters, though this is no terminal: %q", &out)
	}
	nothingLeft(t, dir, admin)
}

func TestSurvivesChaos(t *testing.T) {
	dir, admin := place(t)
	var out bytes.Buffer
	screen := NewScreen(&out, true)
	// Long enough for the proof that waits for what a killed process had in hand.
	d := newDemo(Options{Duration: 16 * time.Second, Rate: 300, Devices: 12, Tenants: 3, Chaos: true, Program: crossfade}, screen)
	var log string
	d.begun = func(s *stack) {
		log = s.instance.log
		redeliversSoon(t, s.nats.URL())
	}
	d.beforeVerdict = func(context.Context, *pgxpool.Pool) error {
		text, err := os.ReadFile(log)
		if bytes.Contains(text, []byte("ack_wait")) {
			t.Errorf("crossfade run complains of the ack_wait that it was told to set:\n%s", text)
		}
		return err
	}
	report, err := d.run(t.Context())
	if err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	if report.Kills != 3 || len(report.Flips) != 4 || !report.Flips[1].Killed || !report.Flips[3].Killed {
		t.Errorf("kills %d, flips %+v", report.Kills, report.Flips)
	}
	if !report.OK || report.Effective["mqtt"] == 0 || report.Effective["jetstream"] == 0 {
		t.Errorf("report: %+v", report)
	}
	if !strings.Contains(out.String(), "kill -9") || !strings.Contains(out.String(), "\r\x1b[K") {
		t.Errorf("the story of a terminal:\n%q", &out)
	}
	nothingLeft(t, dir, admin)
}

// redeliversSoon: what a killed process held comes again after ackWait.
func redeliversSoon(t *testing.T, url string) {
	t.Helper()
	conn, err := nats.Connect(url)
	if err != nil {
		t.Error(err)
		return
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		t.Error(err)
		return
	}
	consumer, err := js.Consumer(t.Context(), "TELEMETRY", "ingest-workers")
	if err != nil {
		t.Error(err)
		return
	}
	if got := consumer.CachedInfo().Config.AckWait; got != ackWait {
		t.Errorf("ack_wait of the consumer is %v, want %v", got, ackWait)
	}
}

// TestVerdictFails spoils the database behind the demo's back.
func TestVerdictFails(t *testing.T) {
	for name, c := range map[string]struct {
		spoil            string
		lost, duplicated int64
	}{
		"a row deleted": {`DELETE FROM telemetry WHERE (tenant_id, device_id, seq) =
			(SELECT tenant_id, device_id, seq FROM telemetry LIMIT 1)`, 1, 0},
		"a row doubled": {`INSERT INTO telemetry SELECT * FROM telemetry LIMIT 1`, 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			dir, admin := place(t)
			var out bytes.Buffer
			d := newDemo(Options{Duration: 2 * time.Second, Rate: 300, Devices: 5, Tenants: 1, Program: crossfade}, NewScreen(&out, false))
			d.patience = time.Second
			d.beforeVerdict = func(ctx context.Context, pool *pgxpool.Pool) error {
				tag, err := pool.Exec(ctx, c.spoil)
				if err == nil && tag.RowsAffected() != 1 {
					t.Errorf("%d rows were spoilt", tag.RowsAffected())
				}
				return err
			}
			report, err := d.run(t.Context())
			if err != nil {
				t.Fatalf("%v\n%s", err, &out)
			}
			if report.OK || report.Lost != c.lost || report.Duplicated != c.duplicated {
				t.Errorf("lost %d duplicated %d ok %v", report.Lost, report.Duplicated, report.OK)
			}
			report.WriteText(d.screen)
			if line := lastLine(out.String()); !strings.HasPrefix(line, "FAILED") {
				t.Errorf("the last line is %q", line)
			}
			nothingLeft(t, dir, admin)
		})
	}
}

// TestKeepIsLeftByInterrupting: the verdict is told while everything still runs, and
// nothing stays once the context has ended.
func TestKeepIsLeftByInterrupting(t *testing.T) {
	dir, admin := place(t)
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	story := &interrupter{word: "Ctrl-C ends everything", interrupt: interrupt}
	d := newDemo(Options{Duration: 2 * time.Second, Rate: 100, Devices: 4, Tenants: 1, Keep: true, Program: crossfade}, NewScreen(story, false))
	told := false
	d.Verdict = func(r *Report) error { told = r.OK && len(processesBelow(t, dir)) > 0; return nil }
	report, err := d.run(ctx)
	if err != nil || !report.OK || report.Interrupted || !told {
		t.Errorf("told %v, report %+v, %v\n%s", told, report, err, &story.text)
	}
	if !strings.Contains(story.text.String(), crossfade+" flip acme jetstream") {
		t.Errorf("the ways:\n%s", &story.text)
	}
	nothingLeft(t, dir, admin)
}

// interrupter interrupts when a word is written.
type interrupter struct {
	text      bytes.Buffer
	word      string
	interrupt func()
}

func (w *interrupter) Write(p []byte) (int, error) {
	n, err := w.text.Write(p)
	if bytes.Contains(w.text.Bytes(), []byte(w.word)) {
		w.interrupt()
	}
	return n, err
}

// TestReportsADeadInstance: crossfade run ending by itself is an error that shows
// the end of its log, and nothing stays behind.
func TestReportsADeadInstance(t *testing.T) {
	dir, admin := place(t)
	var out bytes.Buffer
	d := newDemo(Options{Duration: time.Minute, Rate: 50, Devices: 2, Tenants: 1, Program: crossfade}, NewScreen(&out, false))
	d.Verdict = func(*Report) error { return errors.New("there is no verdict to be shown") }
	d.begun = func(s *stack) {
		// As an operator's `kill` would: the demo does not expect it.
		if err := syscall.Kill(s.instance.pid(), syscall.SIGKILL); err != nil {
			t.Error(err)
		}
	}
	_, err := d.run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "crossfade run ended by itself: signal: killed") || !strings.Contains(err.Error(), "end of its log") {
		t.Errorf("error: %v", err)
	}
	nothingLeft(t, dir, admin)
}

// TestFailsHalfWay: what was started before the failure is stopped again.
func TestFailsHalfWay(t *testing.T) {
	broken := filepath.Join(t.TempDir(), "crossfade") // not below TMPDIR of the next line
	dir, admin := place(t)
	if err := os.WriteFile(broken, []byte("#!/bin/sh\necho broken on purpose >&2\nexit 1\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	o := DefaultOptions()
	o.Program = broken
	var out bytes.Buffer
	report, err := Run(t.Context(), o, NewScreen(&out, false))
	if report != nil || err == nil || !strings.Contains(err.Error(), "crossfade run ended by itself: exit status 1") || !strings.Contains(err.Error(), "broken on purpose") {
		t.Errorf("report %+v, %v", report, err)
	}
	nothingLeft(t, dir, admin)
}

// TestInterruptedBeforeItBegan has nothing to judge, and says so.
func TestInterruptedBeforeItBegan(t *testing.T) {
	dir, admin := place(t)
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	o := DefaultOptions()
	o.Program = crossfade
	report, err := Run(ctx, o, NewScreen(&interrupter{word: "Mosquitto ", interrupt: interrupt}, false))
	if report != nil || !errors.Is(err, errNotBegun) {
		t.Errorf("report %+v, %v", report, err)
	}
	nothingLeft(t, dir, admin)
}

func TestOptionsNameTheFieldAndTheRemedy(t *testing.T) {
	if err := DefaultOptions().Validate(); err != nil {
		t.Error(err)
	}
	for want, spoil := range map[string]func(*Options){
		"Duration is 4s: choose 5s to 24h":                            func(o *Options) { o.Duration = 4 * time.Second },
		"Duration is 25h0m0s: choose 5s to 24h":                       func(o *Options) { o.Duration = 25 * time.Hour },
		"Rate is 0: choose 1 to 100000":                               func(o *Options) { o.Rate = 0 },
		"Devices is 0: choose 1 to 100000":                            func(o *Options) { o.Devices = 0 },
		"Tenants is 0: choose 1 to 1000":                              func(o *Options) { o.Tenants = 0 },
		"Tenants is 7: choose at most as many as devices (6)":         func(o *Options) { o.Tenants, o.Devices = 7, 6 },
		"demo option Rate is 0.5: choose 1 to 100000\ndemo option De": func(o *Options) { o.Rate, o.Devices = 0.5, -1 },
	} {
		o := DefaultOptions()
		spoil(&o)
		_, err := Run(t.Context(), o, NewScreen(os.Stderr, false))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}
