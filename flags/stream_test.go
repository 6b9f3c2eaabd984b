package flags_test

import (
	"encoding/binary"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/flags"
)

// flagdWithStream is flagd with its event stream; the test sends frames on events.
type flagdWithStream struct {
	*service
	events chan string   // what is written to the stream as it is; "" ends it
	opened chan struct{} // a stream was opened
}

func frame(kind byte, message string) string {
	header := binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(message)))
	return string(header) + message
}

func startFlagd(t *testing.T) *flagdWithStream {
	t.Helper()
	s := startService(t, dialects["flagd v2"])
	f := &flagdWithStream{service: s, events: make(chan string), opened: make(chan struct{}, 100)}
	s.also.Store(new(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != "/flagd.evaluation.v2.Service/EventStream" {
			return false
		}
		body, _ := io.ReadAll(r.Body)
		if string(body) != frame(0, "{}") || r.Header.Get("Content-Type") != "application/connect+json" {
			t.Errorf("request %q, %s", body, r.Header.Get("Content-Type"))
		}
		w.Header().Set("Content-Type", "application/connect+json")
		io.WriteString(w, frame(0, `{"type":"provider_ready"}`))
		w.(http.Flusher).Flush()
		f.opened <- struct{}{}
		for {
			select {
			case e := <-f.events:
				if e == "" {
					return true
				}
				io.WriteString(w, e)
				w.(http.Flusher).Flush()
			case <-r.Context().Done():
				return true
			case <-s.ended:
				return true
			}
		}
	}))
	return f
}

func TestFlagdEventStream(t *testing.T) {
	f := startFlagd(t)
	c := f.client(t, patient, nil)
	await(t, c, "a", is(flags.Live))
	<-f.opened
	for range 5 {
		for _, event := range []string{
			`{"type":"configuration_change","data":{"flags":{"ingest-source":{"type":"update"},"x":{}}}}`,
			`{"type":"configuration_change","data":{}}`,
			`{"type":"configuration_change"}`,
		} {
			drain(c)
			f.events <- frame(0, event)
			heard(t, c)
		}
	}
}

// patient keeps a busy machine from passing for a dead service: a stream that is
// given up may still eat an event.
func patient(o *flags.RemoteOptions) { o.Timeout = deadline }

// drain takes a signal that waits. One that is still on its way makes a round prove
// nothing, hence the many rounds.
func drain(c *flags.Client) {
	select {
	case <-c.Changes():
	default:
	}
}

// heard waits for a signal.
func heard(t *testing.T, c *flags.Client) {
	t.Helper()
	select {
	case <-c.Changes():
	case <-time.After(deadline):
		t.Fatal("nothing is heard")
	}
}

// TestFlagdStreamBreaks: whatever comes on the stream, it is opened again, and what
// may have been missed meanwhile is looked at.
func TestFlagdStreamBreaks(t *testing.T) {
	for name, event := range map[string]string{
		"ends":       "",
		"end frame":  frame(2, `{"error":{"code":"unavailable"}}`),
		"shutdown":   frame(0, `{"type":"provider_shutdown"}`),
		"huge":       frame(0, strings.Repeat("x", 1<<20)),
		"lies":       "\x00\xff\xff\xff\xff",
		"compressed": frame(1, "x"),
		"no JSON":    frame(0, "<html>"),
	} {
		t.Run(name, func(t *testing.T) {
			f := startFlagd(t)
			c := f.client(t, patient, nil)
			await(t, c, "a", is(flags.Live))
			<-f.opened
			for range 10 {
				drain(c) // what changes while there is no stream has no event
				f.events <- event
				<-f.opened
				heard(t, c)
			}
		})
	}
}

func TestFlagdSilentStreamIsOpenedAnew(t *testing.T) {
	f := startFlagd(t)
	f.client(t, func(o *flags.RemoteOptions) { o.StreamIdle = 20 * time.Millisecond }, nil)
	for range 3 {
		select {
		case <-f.opened:
		case <-time.After(deadline):
			t.Fatal("the stream is not opened anew")
		}
	}
}

// TestFlagdChangesItsVersion: an older flagd in place of a newer one, and back.
func TestFlagdChangesItsVersion(t *testing.T) {
	s := startService(t, dialects["flagd v2"])
	var speaks atomic.Value
	speaks.Store("v2")
	s.also.Store(new(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != "/flagd.evaluation."+speaks.Load().(string)+".Service/ResolveString" {
			http.NotFound(w, r)
		} else {
			s.value(w, `"live"`, "STATIC")
		}
		return true
	}))
	c := s.client(t, nil, nil)
	for _, version := range []string{"v2", "v1", "v1", "v2"} {
		speaks.Store(version)
		if v, err := c.Desired(t.Context(), "a"); !is(flags.Live)(v, err) {
			t.Errorf("%s: %q, %v", version, v, err)
		}
	}
}
