package bridge_test

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/crossfade-io/crossfade/internal/devstack"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/crossfade-io/crossfade/bridge"
	"github.com/crossfade-io/crossfade/bridge/api"
	"github.com/crossfade-io/crossfade/legacy_mqtt"
	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/pipelinetest"
)

// hostileWay is one of the three ways in.
type hostileWay struct {
	*stack
	configure func(*bridge.Config)
	// send returns false for what cannot come this way at all: no client could say it, or
	// whoever stands before us refuses it.
	send func(topic, payload string) bool
}

// TestHostileByEveryWay: the hostile cases as they really come, through Mosquitto,
// through a NATS server, and as HTTP requests, among good messages of their own devices and
// of neighbours. All that gets in ends as the case says; nothing else is hurt.
func TestHostileByEveryWay(t *testing.T) {
	cases := pipelinetest.HostileCases()
	for name, way := range map[string]func(*stack) *hostileWay{"mqtt": hostileMQTT, "jetstream": hostileJetStream, "http": hostileHTTP} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStack(t)
			s.exec(`INSERT INTO device_registry (tenant_id, device_id, site_id, sensor_limit) SELECT 't1', k || i, 's1', 100 FROM generate_series(0, $1) AS i, (VALUES ('h'), ('n')) AS v(k)`, len(cases))
			c := s.config("a")
			c.Mirror, c.StandbyWait, c.Pipeline.Settings.RequireToken = nil, 10*time.Millisecond, false
			w := way(s)
			w.configure(&c)
			i := s.start(c)
			if c.API != nil {
				w.send = s.hostileRequests(i)
			}
			var sent []pipelinetest.Hostile
			var topics []string
			var times []time.Time
			good := 0
			for n, hc := range cases {
				topic := hc.TopicOf(fmt.Sprintf("h%d", n))
				if !w.send(topic, hc.Payload) {
					if readable(hc) {
						t.Errorf("%s: does not get in", hc.Name)
					}
					continue
				}
				sent, topics, times = append(sent, hc), append(topics, topic), append(times, time.Now())
				if len(sent)%10 != 0 {
					continue
				}
				for _, device := range []string{"n", "h"} {
					if good++; !w.send(fmt.Sprintf("tenant/t1/device/%s%d/telemetry", device, n), `{"seq":7000000,"site_id":"s1","metrics":{"good":1}}`) {
						t.Fatalf("the good message after %q is refused", hc.Name)
					}
				}
			}
			devstack.Await(t, "all is in the ledger", func() bool {
				return s.count(`SELECT count(*) FROM crossfade_ledger`) >= good+len(sent)
			})
			if n := s.count(`SELECT count(*) FROM telemetry WHERE seq = 7000000 AND metrics ? 'good'`); n != good {
				t.Errorf("%d good messages of %d are written", n, good)
			}
			if n := s.count(`SELECT count(*) FROM quarantine_events WHERE detail LIKE '%PostgreSQL%'`); n != 0 {
				t.Errorf("PostgreSQL had to find %d of them", n)
			}
			for n, hc := range sent {
				s.wantEnd(hc, topics[n], times[n])
			}
			if r := i.Ready(); !r.Ready {
				t.Errorf("not ready afterwards: %+v", r)
			}
		})
	}
}

// readable reports whether a case gets in whichever way it comes: it is an object of moderate
// size, on an ordinary topic of one level after the device's.
func readable(hc pipelinetest.Hostile) bool {
	return !hc.Elsewhere && !strings.ContainsAny(hc.MsgType, "/\n") && len(hc.MsgType)+len(hc.Payload) < 10_000 &&
		strings.HasPrefix(hc.Payload, "{") && hc.Want != pipeline.InvalidJSON
}

// wantEnd fails the test unless the case has come to what it says. The ID is that of the
// message on any path.
func (s *stack) wantEnd(hc pipelinetest.Hostile, topic string, at time.Time) {
	s.t.Helper()
	d := pipeline.Delivery{Path: pipeline.PathMQTT, Topic: topic, Body: []byte(hc.Payload), Receipt: receiptOf(at)}
	var m pipeline.Message
	pipeline.NewDecoder(pipeline.DefaultMessageIDMember).Decode(&m, &d)
	ids := [][16]byte{m.ID}
	if m.Anonymous {
		ids = nil
		for _, id := range m.ID.Neighbours() {
			ids = append(ids, id)
		}
	}
	var got string
	if err := s.pool.QueryRow(s.t.Context(), `SELECT CASE outcome WHEN 1 THEN '' ELSE coalesce((SELECT min(reason) FROM quarantine_events q WHERE q.message_id = l.message_id AND raw IS NOT NULL), 'no quarantine row') END
		FROM (SELECT) one LEFT JOIN crossfade_ledger l ON message_id = ANY($1)`, ids).Scan(&got); err != nil {
		s.t.Fatal(err)
	}
	if got != string(hc.Want) {
		s.t.Errorf("%s: ended as %q, want %q", hc.Name, got, hc.Want)
	}
}

// receiptOf is that of a message that arrived then, and that nobody waits for.
type receiptOf time.Time

func (receiptOf) Ack() error            { return nil }
func (receiptOf) Release() error        { return nil }
func (r receiptOf) Occurred() time.Time { return time.Time(r) }

func hostileMQTT(s *stack) *hostileWay {
	p := s.sender()
	largest := int(legacy_mqtt.DefaultConfig().MaxPacket)
	return &hostileWay{s, func(c *bridge.Config) { c.NATS, c.JetStream = nil, nil }, func(topic, payload string) bool {
		if !subscribed(topic) || len(topic)+len(payload) > largest-100 {
			return false
		}
		s.device(p, topic, payload)
		return true
	}}
}

// subscribed reports whether Mosquitto takes a topic, and has it for us.
func subscribed(topic string) bool {
	no := func(r rune) bool { return unicode.IsControl(r) || r == '+' || r == '#' }
	if !utf8.ValidString(topic) || len(topic) > 65_535 || strings.ContainsFunc(topic, no) {
		return false
	}
	levels := strings.SplitN(topic, "/", 5)
	return len(levels) == 5 && levels[0] == "tenant" && levels[2] == "device" &&
		(!strings.Contains(levels[4], "/") || levels[4] == "shadow/reported" || levels[4] == "commands/ack")
}

func hostileJetStream(s *stack) *hostileWay {
	js := s.jetstream()
	return &hostileWay{s, func(c *bridge.Config) { c.MQTT = nil }, func(topic, payload string) bool {
		subject, stream := "telemetry."+pipeline.TopicTenant(topic), "telemetry"
		if strings.HasSuffix(topic, "/shadow/reported") {
			stream = "shadow"
		} else if strings.HasSuffix(topic, "/commands/ack") {
			stream = "commands"
		}
		subject = stream + strings.TrimPrefix(subject, "telemetry")
		body := pipelinetest.Mirror(topic, []byte(payload), time.Now())
		if strings.HasSuffix(subject, ".") || strings.ContainsAny(subject, " *>") || len(subject) > 3_000 || len(body) > 1<<20 || !utf8.ValidString(topic) {
			return false
		}
		if _, err := js.Publish(s.t.Context(), subject, body, natsjs.WithExpectStream(strings.ToUpper(stream))); err != nil {
			s.t.Fatalf("%.60q: %v", topic, err)
		}
		return true
	}}
}

func hostileHTTP(s *stack) *hostileWay {
	return &hostileWay{stack: s, configure: func(c *bridge.Config) {
		c.MQTT = nil
		ac := api.DefaultConfig()
		ac.Listen, ac.TokenRate = "127.0.0.1:0", 0
		c.API = &ac
	}}
}

// hostileRequests sends with a gateway's token. What is refused must be refused with the
// sender's error, 4xx, and a reason; what could be read as a message must not be.
func (s *stack) hostileRequests(i *instance) func(topic, payload string) bool {
	secret, _, err := api.CreateToken(s.t.Context(), s.pool, api.NewToken{Name: "gateway", Scopes: []string{"ingest"}})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(http.DefaultClient.CloseIdleConnections)
	return func(topic, payload string) bool {
		levels := strings.SplitN(topic, "/", 5)
		if len(levels) != 5 || levels[0] != "tenant" || levels[2] != "device" {
			return false
		}
		u := fmt.Sprintf("http://%s/ingest/v1/tenant/%s/device/%s/%s", i.APIAddress(), url.PathEscape(levels[1]), url.PathEscape(levels[3]), url.PathEscape(levels[4]))
		req, err := http.NewRequestWithContext(s.t.Context(), "POST", u, strings.NewReader(payload))
		if err != nil {
			s.t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+secret)
		req.Header.Set("Content-Type", "application/json")
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			s.t.Fatalf("%.60q: %v", topic, err)
		}
		defer res.Body.Close()
		answer, _ := io.ReadAll(res.Body)
		switch {
		case res.StatusCode == http.StatusAccepted:
			return true
		case res.StatusCode < 400 || res.StatusCode >= 500 || len(answer) == 0:
			s.t.Errorf("%.60q, %.60q: answered with %s: %s", topic, payload, res.Status, answer)
		}
		return false
	}
}
