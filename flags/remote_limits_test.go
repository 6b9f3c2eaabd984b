package flags_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/flags"
)

// TestRemoteHonoursRetryAfter: not a request before that, though the retries are
// quick and though others, begun before, still end well.
func TestRemoteHonoursRetryAfter(t *testing.T) {
	eachDialect(t, func(t *testing.T, s *service) {
		c := s.client(t, func(o *flags.RemoteOptions) { o.RetryMax, o.Timeout = time.Hour, time.Hour }, func(o *flags.Options) { o.Timeout = time.Hour })
		await(t, c, "a", is(flags.Live))
		slow, goOn := make(chan struct{}), make(chan struct{})
		refused, again := make(chan time.Time, 1), make(chan time.Time, 1)
		s.do(func(w http.ResponseWriter, _ *http.Request, tenant string) {
			switch {
			case tenant == "slow":
				close(slow)
				<-goOn
			case len(refused) == 0:
				refused <- time.Now()
				w.Header().Set("Retry-After", "1")
				reply(w, 429, `{}`)
				return
			case len(again) == 0:
				again <- time.Now()
			}
			s.value(w, `"live"`, "STATIC")
		})
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			if v, err := c.Desired(t.Context(), "slow"); v != "" && err != nil {
				t.Errorf("%q, %v", v, err)
			}
		}()
		<-slow
		if v, err := c.Desired(t.Context(), "a"); err == nil {
			t.Fatalf("an answer, %q", v)
		}
		close(goOn)
		<-ended
		await(t, c, "a", is(flags.Live))
		first, next := <-refused, <-again
		if pause := next.Sub(first); pause < 950*time.Millisecond {
			t.Errorf("asked again after %s, though we were told to wait for a second", pause)
		}
	})
}

// TestRemoteDoesNotFollow: a redirect would carry the credential to whoever it names.
func TestRemoteDoesNotFollow(t *testing.T) {
	eachDialect(t, func(t *testing.T, s *service) {
		elsewhere := startService(t, s.dialect)
		s.do(func(w http.ResponseWriter, _ *http.Request, tenant string) {
			if tenant == "crossfade-probe" {
				s.value(w, `"live"`, "STATIC")
				return
			}
			w.Header().Set("Location", elsewhere.URL+s.path)
			reply(w, 307, `{}`)
		})
		if v, err := s.client(t, nil, nil).Desired(t.Context(), "a"); !fails(flags.CauseError)(v, err) || !strings.Contains(err.Error(), "redirect") {
			t.Errorf("%q, %v", v, err)
		}
		if n := elsewhere.asked.Load(); n != 0 {
			t.Errorf("followed %d times", n)
		}
	})
}

// TestRemoteEndlessAnswer: it is given up after MaxBody, and not when time is up.
func TestRemoteEndlessAnswer(t *testing.T) {
	eachDialect(t, func(t *testing.T, s *service) {
		s.do(func(w http.ResponseWriter, r *http.Request, tenant string) {
			if tenant == "crossfade-probe" {
				s.value(w, `"live"`, "STATIC")
				return
			}
			w.WriteHeader(200)
			io.WriteString(w, `{"value":"live","reason":"STATIC"}`) // and then space, which is still valid
			for space := strings.Repeat(" ", 1<<16); r.Context().Err() == nil; {
				if _, err := io.WriteString(w, space); err != nil {
					return
				}
			}
		})
		c := s.client(t, func(o *flags.RemoteOptions) { o.Timeout = time.Hour }, func(o *flags.Options) { o.Timeout = deadline })
		if v, err := c.Desired(t.Context(), "a"); !fails(flags.CauseError)(v, err) || !strings.Contains(err.Error(), "larger than 65536 bytes") {
			t.Errorf("%q, %v", v, err)
		}
	})
}

// TestRemoteSecrets: the credential is sent, rotated, and never shown, even where
// the service repeats it.
func TestRemoteSecrets(t *testing.T) {
	eachDialect(t, func(t *testing.T, s *service) {
		var token atomic.Value
		token.Store("hunter2")
		s.do(func(w http.ResponseWriter, r *http.Request, tenant string) {
			if tenant == "echo" {
				reply(w, 404, fmt.Sprintf(`{"key":"ingest-source","code":"not_found","errorCode":"GENERAL","message":%[1]q,"errorDetails":%[1]q}`, r.Header.Get("Authorization")+r.Header.Get("X-API-Key")))
				return
			}
			if got := r.Header.Get("Authorization"); got != "Bearer "+token.Load().(string) {
				reply(w, 403, `{}`)
				return
			}
			s.value(w, `"live"`, "STATIC")
		})
		log, logged := newLog()
		c := s.client(t, func(o *flags.RemoteOptions) {
			o.Logger = log
			o.Token = func() (string, error) { return token.Load().(string), nil }
		}, nil)
		await(t, c, "a", is(flags.Live))
		token.Store("rotated")
		await(t, c, "a", is(flags.Live))
		token.Store("hunter2")
		_, err := c.Desired(t.Context(), "echo")
		if err == nil || strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), "redacted") {
			t.Errorf("error %v", err)
		}
		logged.mu.Lock()
		defer logged.mu.Unlock()
		if strings.Contains(logged.text.String(), "hunter2") {
			t.Error("the log shows the token")
		}
	})
}

// TestEvaluateAllIsBounded: many tenants, few at once, and a hanging service costs
// a few time-outs and not one for each.
func TestEvaluateAllIsBounded(t *testing.T) {
	eachDialect(t, func(t *testing.T, s *service) {
		var now, most atomic.Int64
		s.do(func(w http.ResponseWriter, _ *http.Request, tenant string) {
			if n := now.Add(1); n > most.Load() {
				most.Store(n)
			}
			defer now.Add(-1)
			time.Sleep(2 * time.Millisecond) // a service takes its time, or they would never meet
			s.value(w, `"live"`, "STATIC")
		})
		c := s.client(t, func(o *flags.RemoteOptions) { o.Timeout = 10 * time.Second }, func(o *flags.Options) { o.Concurrency, o.Timeout = 4, 10*time.Second })
		var tenants []string
		for i := range 400 {
			tenants = append(tenants, fmt.Sprint("t", i))
		}
		seen := map[string]int{}
		c.EvaluateAll(t.Context(), tenants, func(tenant string, a flags.Answer, err error) {
			if err != nil || a.Variant != flags.Live {
				t.Errorf("%s: %+v, %v", tenant, a, err)
			}
			seen[tenant]++
		})
		if len(seen) != len(tenants) || most.Load() > 4 {
			t.Errorf("%d of %d tenants, %d at once", len(seen), len(tenants), most.Load())
		}
	})
}

func TestEvaluateAllOnAHangingService(t *testing.T) {
	eachDialect(t, func(t *testing.T, s *service) {
		c := s.client(t, func(o *flags.RemoteOptions) { o.Timeout = 200 * time.Millisecond }, nil)
		await(t, c, "a", is(flags.Live))
		s.do(s.hang)
		before, n := s.asked.Load(), 0
		c.EvaluateAll(t.Context(), make10k(), func(_ string, _ flags.Answer, err error) {
			if err == nil {
				t.Error("an answer from a service that hangs")
			}
			n++
		})
		if asked := s.asked.Load() - before; n != 10_000 || asked > 50 {
			t.Errorf("%d results; asked %d times, though it hung from the first", n, asked)
		}
	})
}

func make10k() []string {
	tenants := make([]string, 10_000)
	for i := range tenants {
		tenants[i] = fmt.Sprint("t", i)
	}
	return tenants
}

// TestEvaluateAllKeepsItsRate, and its end: what was not reached has no answer.
func TestEvaluateAllKeepsItsRate(t *testing.T) {
	s := startService(t, dialects["ofrep"])
	c := s.client(t, nil, func(o *flags.Options) { o.Rate = 100 })
	ctx, cancel := context.WithCancel(t.Context())
	began, answers, others := time.Now(), 0, 0
	c.EvaluateAll(ctx, make10k(), func(_ string, _ flags.Answer, err error) {
		switch {
		case err == nil:
			if answers++; answers == 20 {
				cancel()
			}
		case causeOf(err) == flags.CauseCancelled:
			others++
		default:
			t.Errorf("error %v", err)
		}
	})
	// The first goes at once, the 20th no sooner than 19 hundredths of a second later.
	if took := time.Since(began); took < 190*time.Millisecond {
		t.Errorf("20 evaluations took %s at 100 a second", took)
	}
	if answers+others != 10_000 || answers > 20+8 {
		t.Errorf("%d answers and %d without", answers, others)
	}
}

// TestRemoteConcurrency: evaluations, outages and shutdown at once, for -race.
func TestRemoteConcurrency(t *testing.T) {
	eachDialect(t, func(t *testing.T, s *service) {
		var n atomic.Int64
		s.do(func(w http.ResponseWriter, r *http.Request, tenant string) {
			if n.Add(1)%5 < 2 {
				reply(w, 503, `{}`)
				return
			}
			s.value(w, `"live"`, "STATIC")
		})
		c := s.client(t, func(o *flags.RemoteOptions) { o.GiveUpAfter = 2 }, nil)
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				for range 50 {
					if v, err := c.Desired(t.Context(), "a"); err == nil && v != flags.Live || err != nil && v != "" {
						t.Errorf("%q, %v", v, err)
					}
				}
			})
		}
		all.Wait()
	})
}
