package flags_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/flags"
)

// dialect is one way to ask for a flag over HTTP: how the service says things, and
// the provider that understands it.
type dialect struct {
	provider func(flags.RemoteOptions) (flags.Provider, error)
	path     string // of the evaluation; anything else is not there
	value    func(w http.ResponseWriter, value, reason string)
	fault    func(w http.ResponseWriter, code string) // FLAG_NOT_FOUND and the like
	tenant   func(body []byte) string
}

func reply(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	io.WriteString(w, body)
}

func contextOf(body []byte) string {
	var r struct{ Context struct{ TargetingKey string } }
	if err := json.Unmarshal(body, &r); err != nil {
		return err.Error()
	}
	return r.Context.TargetingKey
}

func newFlagd(o flags.RemoteOptions) (flags.Provider, error) { return flags.NewFlagdProvider(o) }
func newOFREP(o flags.RemoteOptions) (flags.Provider, error) { return flags.NewOFREPProvider(o) }

func flagdDialect(version string) dialect {
	return dialect{
		provider: newFlagd,
		path:     "/flagd.evaluation." + version + ".Service/ResolveString",
		value: func(w http.ResponseWriter, value, reason string) {
			reply(w, 200, fmt.Sprintf(`{"value":%s,"reason":%q,"variant":"v","metadata":{}}`, value, reason))
		},
		fault: func(w http.ResponseWriter, code string) {
			names := map[string]string{"FLAG_NOT_FOUND": "not_found", "TYPE_MISMATCH": "invalid_argument", "PARSE_ERROR": "data_loss"}
			reply(w, map[string]int{"FLAG_NOT_FOUND": 404, "TYPE_MISMATCH": 400, "PARSE_ERROR": 500}[code],
				fmt.Sprintf(`{"code":%q,"message":%q}`, names[code], code))
		},
		tenant: contextOf,
	}
}

var dialects = map[string]dialect{
	"flagd v2": flagdDialect("v2"),
	"flagd v1": flagdDialect("v1"),
	"ofrep": {
		provider: newOFREP,
		path:     "/ofrep/v1/evaluate/flags/ingest-source",
		value: func(w http.ResponseWriter, value, reason string) {
			reply(w, 200, fmt.Sprintf(`{"key":"ingest-source","value":%s,"reason":%q,"variant":"v"}`, value, reason))
		},
		fault: func(w http.ResponseWriter, code string) {
			reply(w, map[string]int{"FLAG_NOT_FOUND": 404}[code]|400, fmt.Sprintf(`{"key":"ingest-source","errorCode":%q,"errorDetails":"x"}`, code))
		},
		tenant: contextOf,
	},
}

// service is a real HTTP server whose behaviour a test changes as it goes.
type service struct {
	*httptest.Server
	dialect
	behave atomic.Pointer[func(w http.ResponseWriter, r *http.Request, tenant string)]
	also   atomic.Pointer[func(http.ResponseWriter, *http.Request) bool] // asked first; true where it has answered
	asked  atomic.Int64                                                  // for tenants, probes left out
	ended  chan struct{}
}

func startService(t *testing.T, d dialect) *service {
	t.Helper()
	s := &service{dialect: d, ended: make(chan struct{})}
	s.answer(`"live"`, "STATIC")
	s.Server = httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(func() { close(s.ended); s.CloseClientConnections(); s.Close() })
	return s
}

func (s *service) serve(w http.ResponseWriter, r *http.Request) {
	if also := s.also.Load(); also != nil && (*also)(w, r) {
		return
	}
	if r.URL.Path != s.path || r.Method != http.MethodPost {
		http.NotFound(w, r)
		return
	}
	body, _ := io.ReadAll(r.Body)
	tenant := s.tenant(body)
	if tenant != "crossfade-probe" {
		s.asked.Add(1)
	}
	(*s.behave.Load())(w, r, tenant)
}

func (s *service) do(f func(w http.ResponseWriter, r *http.Request, tenant string)) {
	s.behave.Store(&f)
}

func (s *service) answer(value, reason string) {
	s.do(func(w http.ResponseWriter, _ *http.Request, _ string) { s.value(w, value, reason) })
}

// hang accepts and never answers.
func (s *service) hang(_ http.ResponseWriter, r *http.Request, _ string) {
	select {
	case <-r.Context().Done():
	case <-s.ended:
	}
}

func remoteOptions(url string) flags.RemoteOptions {
	o := flags.DefaultRemoteOptions()
	o.URL, o.Timeout = url, 500*time.Millisecond
	o.RetryMin, o.RetryMax = 5*time.Millisecond, 50*time.Millisecond
	return o
}

func (s *service) client(t *testing.T, change func(*flags.RemoteOptions), more func(*flags.Options)) *flags.Client {
	t.Helper()
	ro := remoteOptions(s.URL)
	if change != nil {
		change(&ro)
	}
	p, err := s.provider(ro)
	if err != nil {
		t.Fatal(err)
	}
	o := flags.DefaultOptions()
	o.Provider, o.Rate = p, 0
	if more != nil {
		more(&o)
	}
	return newClient(t, o)
}

func eachDialect(t *testing.T, test func(t *testing.T, s *service)) {
	for name, d := range dialects {
		t.Run(name, func(t *testing.T) { test(t, startService(t, d)) })
	}
}

func TestRemoteCleanAnswers(t *testing.T) {
	eachDialect(t, func(t *testing.T, s *service) {
		s.do(func(w http.ResponseWriter, _ *http.Request, tenant string) {
			s.value(w, fmt.Sprintf("%q", strings.TrimPrefix(tenant, "wants-")), "TARGETING_MATCH")
		})
		c := s.client(t, nil, nil)
		for _, v := range flags.Variants() {
			a, err := c.Evaluate(t.Context(), "wants-"+string(v))
			if err != nil || a != (flags.Answer{Variant: v, Reason: flags.ReasonTarget}) {
				t.Errorf("%+v, %v; want %s", a, err, v)
			}
		}
		if err := c.Health(); err != nil {
			t.Error(err)
		}
	})
}

// TestRemoteOddAnswers: the service errs and lies. Nothing of it is an answer, and
// what it says about a flag takes nothing away from other tenants.
func TestRemoteOddAnswers(t *testing.T) {
	raw := func(status int, body string) func(*service, http.ResponseWriter) {
		return func(_ *service, w http.ResponseWriter) { reply(w, status, body) }
	}
	odd := map[string]struct {
		do   func(s *service, w http.ResponseWriter)
		want flags.Cause
	}{
		"flag not found":   {func(s *service, w http.ResponseWriter) { s.fault(w, "FLAG_NOT_FOUND") }, flags.CauseError},
		"type mismatch":    {func(s *service, w http.ResponseWriter) { s.fault(w, "TYPE_MISMATCH") }, flags.CauseError},
		"parse error":      {func(s *service, w http.ResponseWriter) { s.fault(w, "PARSE_ERROR") }, flags.CauseError},
		"disabled":         {func(s *service, w http.ResponseWriter) { s.value(w, `"live"`, "DISABLED") }, flags.CauseReason},
		"disabled, none":   {func(s *service, w http.ResponseWriter) { s.value(w, `null`, "DISABLED") }, flags.CauseError},
		"error reason":     {func(s *service, w http.ResponseWriter) { s.value(w, `"live"`, "ERROR") }, flags.CauseReason},
		"unknown reason":   {func(s *service, w http.ResponseWriter) { s.value(w, `"live"`, "UNKNOWN") }, flags.CauseReason},
		"stale reason":     {func(s *service, w http.ResponseWriter) { s.value(w, `"live"`, "STALE") }, flags.CauseReason},
		"no reason":        {func(s *service, w http.ResponseWriter) { s.value(w, `"live"`, "") }, flags.CauseReason},
		"default, no code": {func(s *service, w http.ResponseWriter) { s.value(w, `""`, "DEFAULT") }, flags.CauseVariant},
		"unknown variant":  {func(s *service, w http.ResponseWriter) { s.value(w, `"warp"`, "STATIC") }, flags.CauseVariant},
		"other case":       {func(s *service, w http.ResponseWriter) { s.value(w, `"Live"`, "STATIC") }, flags.CauseVariant},
		"number":           {func(s *service, w http.ResponseWriter) { s.value(w, `1`, "STATIC") }, flags.CauseError},
		"boolean":          {func(s *service, w http.ResponseWriter) { s.value(w, `true`, "STATIC") }, flags.CauseError},
		"list":             {func(s *service, w http.ResponseWriter) { s.value(w, `["live"]`, "STATIC") }, flags.CauseError},
		"object":           {func(s *service, w http.ResponseWriter) { s.value(w, `{"live":"live"}`, "STATIC") }, flags.CauseError},
		"other shape":      {raw(200, `{"flag":"ingest-source","on":true}`), flags.CauseError},
		"names in capital": {raw(200, `{"Value":"live","Reason":"STATIC"}`), flags.CauseError},
		"reason a number":  {raw(200, `{"value":"live","reason":7}`), flags.CauseError},
		"error and value":  {raw(400, `{"value":"live","reason":"STATIC"}`), flags.CauseError},
		"empty body":       {raw(200, ``), flags.CauseError},
		"list of answers":  {raw(200, `[{"value":"live","reason":"STATIC"}]`), flags.CauseError},
		"null":             {raw(200, `null`), flags.CauseError},
		"two answers":      {raw(200, `{"value":"live","reason":"STATIC"}{"value":"mqtt","reason":"STATIC"}`), flags.CauseError},
		"half an answer":   {raw(200, `{"value":"live","reason":"STA`), flags.CauseError},
		"a page":           {raw(200, `<html>live</html>`), flags.CauseError},
		"huge":             {raw(200, `{"value":"live","reason":"STATIC","x":"`+strings.Repeat("x", 1<<20)+`"}`), flags.CauseError},
		"500":              {raw(500, `{"value":"live","reason":"STATIC"}`), flags.CauseError},
		"502 page":         {raw(502, `<html>`), flags.CauseError},
		"redirect": {func(s *service, w http.ResponseWriter) {
			w.Header().Set("Location", s.URL+s.path)
			reply(w, 307, `{"value":"live","reason":"STATIC"}`)
		}, flags.CauseError},
		"hangs up": {func(_ *service, w http.ResponseWriter) {
			conn, _, _ := w.(http.Hijacker).Hijack()
			conn.Close()
		}, flags.CauseError},
	}
	eachDialect(t, func(t *testing.T, s *service) {
		s.do(func(w http.ResponseWriter, _ *http.Request, tenant string) {
			if name, ok := strings.CutPrefix(tenant, "odd "); ok {
				odd[name].do(s, w)
				return
			}
			s.value(w, `"live"`, "STATIC")
		})
		c := s.client(t, nil, nil)
		for name, o := range odd {
			if v, err := c.Desired(t.Context(), "odd "+name); !fails(o.want)(v, err) || len(err.Error()) > 1200 {
				t.Errorf("%s: variant %q, error %v; want no answer because of %s", name, v, err, o.want)
			}
			if v, err := c.Desired(t.Context(), "other"); !is(flags.Live)(v, err) {
				t.Fatalf("after %q another tenant has %q, %v", name, v, err)
			}
		}
	})
}

func TestOFREPAnswerAboutAnotherFlag(t *testing.T) {
	s := startService(t, dialects["ofrep"])
	s.do(func(w http.ResponseWriter, _ *http.Request, _ string) {
		reply(w, 200, `{"key":"other","value":"live","reason":"STATIC"}`)
	})
	if v, err := s.client(t, nil, nil).Desired(t.Context(), "a"); !fails(flags.CauseError)(v, err) || !strings.Contains(err.Error(), "other") {
		t.Errorf("%q, %v", v, err)
	}
}

// TestRemoteDown: from the first request on, in the middle, and back; each turn is
// told by Changes, and a service that is down is not asked for tenants.
func TestRemoteDown(t *testing.T) {
	ways := map[string]func(s *service){
		"500":     func(s *service) { s.do(func(w http.ResponseWriter, _ *http.Request, _ string) { reply(w, 500, `{}`) }) },
		"hangs":   func(s *service) { s.do(s.hang) },
		"refuses": func(s *service) { s.do(func(w http.ResponseWriter, _ *http.Request, _ string) { reply(w, 401, `{}`) }) },
		"page": func(s *service) {
			s.do(func(w http.ResponseWriter, _ *http.Request, _ string) { reply(w, 200, `<html>`) })
		},
	}
	eachDialect(t, func(t *testing.T, s *service) {
		for name, breakIt := range ways {
			t.Run(name, func(t *testing.T) {
				breakIt(s)
				log, logged := newLog()
				c := s.client(t, func(o *flags.RemoteOptions) { o.Timeout, o.GiveUpAfter, o.Logger = 50*time.Millisecond, 3, log }, nil)
				if v, err := c.Desired(t.Context(), "a"); !fails(flags.CauseNotReady)(v, err) {
					t.Fatalf("down from the start: %q, %v", v, err)
				}
				for range 3 {
					s.answer(`"live"`, "STATIC")
					await(t, c, "a", is(flags.Live))
					breakIt(s)
					for range 3 {
						if v, err := c.Desired(t.Context(), "a"); err == nil {
							t.Fatalf("an answer, %q, from a broken service", v)
						}
					}
					await(t, c, "a", fails(flags.CauseNotReady))
					before := s.asked.Load()
					for i := range 1000 {
						if v, err := c.Desired(t.Context(), fmt.Sprint(i)); !fails(flags.CauseNotReady)(v, err) {
							t.Fatalf("%q, %v", v, err)
						}
					}
					if n := s.asked.Load() - before; n != 0 {
						t.Errorf("a service that is down was asked for %d tenants", n)
					}
					if err := c.Health(); err == nil || !strings.Contains(err.Error(), s.URL) || !strings.Contains(err.Error(), "crossfade flip") {
						t.Errorf("health: %v", err)
					}
				}
				logged.await(t, "flag service is down")
			})
		}
	})
}

func TestRemoteRefusesConnections(t *testing.T) {
	for name, d := range dialects {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			address := l.Addr().String()
			l.Close()
			p, err := d.provider(remoteOptions("http://" + address))
			if err != nil {
				t.Fatal(err)
			}
			c := clientOf(t, p)
			if v, err := c.Desired(t.Context(), "a"); !fails(flags.CauseNotReady)(v, err) {
				t.Fatalf("%q, %v", v, err)
			}
			// It comes up at last, at the same address.
			s := &service{dialect: d, ended: make(chan struct{})}
			s.answer(`"live"`, "STATIC")
			if l, err = net.Listen("tcp", address); err != nil {
				t.Fatal(err)
			}
			server := &http.Server{Handler: http.HandlerFunc(s.serve)}
			go server.Serve(l)
			defer server.Close()
			await(t, c, "a", is(flags.Live))
		})
	}
}

// TestRemoteFlaps: alternating answers are wishes, each a clean one; failures in
// between are no answers and do not put out the service.
func TestRemoteFlaps(t *testing.T) {
	eachDialect(t, func(t *testing.T, s *service) {
		var n atomic.Int64
		s.do(func(w http.ResponseWriter, _ *http.Request, tenant string) {
			switch {
			case tenant == "crossfade-probe":
				s.value(w, `"mqtt"`, "STATIC")
			case n.Add(1)%3 == 1:
				s.value(w, `"live"`, "STATIC")
			case n.Load()%3 == 2:
				reply(w, 500, `{}`)
			default:
				s.value(w, `"mqtt"`, "STATIC")
			}
		})
		c := s.client(t, nil, nil)
		for i := range 30 {
			v, err := c.Desired(t.Context(), "a")
			good := []func(flags.Variant, error) bool{is(flags.Live), fails(flags.CauseError), is(flags.MQTT)}[i%3]
			if !good(v, err) {
				t.Fatalf("evaluation %d: %q, %v", i, v, err)
			}
		}
	})
}
