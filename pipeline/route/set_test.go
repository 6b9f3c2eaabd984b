package route_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/crossfade-io/crossfade/pipeline/route"
)

// TestASetTakesWhatItsRoutesTake: the same ones as when each is asked by itself, each
// once and in their order, from one message to the next.
func TestASetTakesWhatItsRoutesTake(t *testing.T) {
	topics := rapid.SampledFrom([]string{"#", "tenant/#", "tenant/t1/device/d1/telemetry", "tenant/t1/device/d1/telemetry/#", "tenant/+/device/+/+",
		"+/+/+/d1/#", "tenant/t1/device/d2/#", "tenant/t2/#", "tenant/t1/device/d1", "+/+/+/+/+/+/+/+/+/#"})
	names := rapid.SampledFrom([]string{"a", "b", "c", "d", "e", "f", "ts", "seq", "metrics"})
	values := rapid.SampledFrom([]string{"1", "2", `"1"`, "null", `"null"`, "{}", "[1]"})
	conditions := rapid.SampledFrom([]string{"1", "2", "null", "{}", `{"$gt":1}`, `{"$lte":1}`, `{"$gt":1,"$ne":2}`, `[1]`})
	object := func(name, value *rapid.Generator[string], most int) *rapid.Generator[string] {
		return rapid.Custom(func(t *rapid.T) string {
			var members []string
			for range rapid.IntRange(0, most).Draw(t, "members") {
				members = append(members, fmt.Sprintf("%q:%s", name.Draw(t, "name"), value.Draw(t, "value")))
			}
			return "{" + strings.Join(members, ",") + "}"
		})
	}
	rapid.Check(t, func(t *rapid.T) {
		var routes []*route.Route
		for i := range rapid.IntRange(0, 12).Draw(t, "routes") {
			r, err := route.Compile(route.Row{ID: fmt.Sprint(i), Tenant: "t1", TopicFilter: topics.Draw(t, "topic filter"),
				DestinationType: rapid.SampledFrom([]string{route.DestinationWebhook, route.DestinationMQTTRepublish, route.DestinationPostgreSQL}).Draw(t, "destination"),
				PayloadFilter:   object(names, conditions, 3).Draw(t, "payload filter")})
			if err != nil {
				t.Fatal(err)
			}
			routes = append(routes, r)
		}
		set := route.NewSet(routes)
		for range 3 {
			payload := object(names, values, 6).Draw(t, "payload")
			payload = strings.TrimSuffix(payload, "}") + `,"metrics":` + object(names, values, 3).Draw(t, "metrics") + "}"
			payload = strings.Replace(payload, "{,", "{", 1)
			m := byMQTT(payload)
			if rapid.Bool().Draw(t, "with an injected time") {
				m = byJetStream(strings.TrimSuffix(payload, "}") + `,"ts":1795435200.001}`)
			}
			var want []*route.Route
			for _, r := range routes {
				if r.Published() && r.Match(m) {
					want = append(want, r)
				}
			}
			if got := set.Match(nil, m); !slices.Equal(got, want) {
				t.Fatalf("of %s the set takes %d routes, want %d", payload, len(got), len(want))
			}
		}
	})
}

// BenchmarkThousandsOfRoutes is what a message costs whose tenant has 5,000.
func BenchmarkThousandsOfRoutes(b *testing.B) {
	var members strings.Builder
	for i := range 900 {
		fmt.Fprintf(&members, `"%d":%d,`, i, i%10)
	}
	m := byMQTT(`{"site_id":"s1",` + members.String() + `"metrics":{"temp":20.25,"mode":"eco"}}`)
	for name, row := range map[string]route.Row{
		"by device":         {TopicFilter: "tenant/t1/device/d%d/+"},
		"by metric":         {TopicFilter: "tenant/t1/device/+/telemetry", PayloadFilter: `{"temp":{"$gt":80}}`},
		"by as many names":  {TopicFilter: "#", PayloadFilter: `{"x%d":{"$gt":80}}`},
		"by as many topics": {TopicFilter: "tenant/+/device/+/+/%d/#"},
	} {
		var routes []*route.Route
		for i := range 5000 {
			r := row
			r.ID, r.Tenant, r.DestinationType = fmt.Sprint(i), "t1", route.DestinationWebhook
			r.TopicFilter, r.PayloadFilter = strings.ReplaceAll(r.TopicFilter, "%d", r.ID+"0"), strings.ReplaceAll(r.PayloadFilter, "%d", r.ID+"0")
			compiled, err := route.Compile(r)
			if err != nil {
				b.Fatal(err)
			}
			routes = append(routes, compiled)
		}
		set := route.NewSet(routes)
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if len(set.Match(nil, m)) != 0 {
					b.Fatal("a route took it")
				}
			}
		})
	}
}
