package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/route"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

// routesTest is a cache over a table of one route to a tenant.
type routesTest struct {
	*testing.T
	*routes
	log    strings.Builder
	asked  []string // the tenants of each query
	table  map[string]string
	during func() // runs while the database answers
	err    error
}

func newRoutesTest(tt *testing.T) *routesTest {
	t := &routesTest{T: tt, table: make(map[string]string)}
	t.routes = newRoutes(time.Minute, slog.New(slog.NewTextHandler(&t.log, nil)), func(_ context.Context, tenants []string) (map[string]*route.Set, []route.Problem, error) {
		t.asked = append(t.asked, strings.Join(tenants, " "))
		sets := make(map[string]*route.Set)
		var problems []route.Problem
		for _, tenant := range tenants {
			id, ok := t.table[tenant]
			if !ok {
				continue
			}
			r, err := route.Compile(route.Row{ID: id, Tenant: tenant, TopicFilter: "#", DestinationType: route.DestinationWebhook})
			if err != nil {
				tt.Fatal(err)
			}
			sets[tenant] = route.NewSet([]*route.Route{r})
			problems = append(problems, route.Problem{Tenant: tenant, ID: "9", Err: errors.New("broken")})
		}
		if t.during != nil {
			t.during()
		}
		return sets, problems, t.err
	})
	return t
}

// match returns the routes of a message of each tenant.
func (t *routesTest) match(at time.Time, tenants ...string) string {
	t.Helper()
	entries := make([]store.Entry, len(tenants))
	for i, tenant := range tenants {
		entries[i] = store.Entry{Msg: &pipeline.Message{Topic: pipeline.Topic{Tenant: tenant}, RawTopic: "a"}}
	}
	if err := t.routes.match(t.Context(), at, entries); err != nil {
		return err.Error()
	}
	var ids []string
	for i := range entries {
		for _, r := range entries[i].Routes {
			ids = append(ids, r.ID)
		}
	}
	return strings.Join(ids, " ")
}

func (t *routesTest) want(got, want string, asked ...string) {
	t.Helper()
	if got != want || fmt.Sprint(t.asked) != fmt.Sprint(asked) {
		t.Errorf("got %q after asking for %q, want %q after %q", got, t.asked, want, asked)
	}
	t.asked = nil
}

var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func TestRoutesAreCached(tt *testing.T) {
	t := newRoutesTest(tt)
	t.table["t1"], t.table["t2"] = "one", "two"
	t.want(t.match(now, "t1", "none", "t1", "t2"), "one one two", "t1 none t2")
	t.want(t.match(now.Add(59*time.Second), "t2", "none", "t3", "t1"), "two one", "t3")
	t.want(t.match(now.Add(time.Minute), "t1"), "one", "t1")
	t.forget("t1")
	t.want(t.match(now, "t1", "t2"), "one two", "t1")
	t.forgetAll()
	t.want(t.match(now, "t1", "t2"), "one two", "t1 t2")
	if n := strings.Count(t.log.String(), "left out"); n != 2 {
		t.Errorf("two unreadable routes were logged %d times:\n%s", n, &t.log)
	}
}

func TestOnlyWhatIsWrittenIsRouted(tt *testing.T) {
	t := newRoutesTest(tt)
	t.table["t1"] = "one"
	entries := make([]store.Entry, 4)
	for i, kind := range []pipeline.Kind{pipeline.KindTelemetry, pipeline.KindTelemetry, pipeline.KindShadow, pipeline.KindCommandAck} {
		entries[i].Msg = &pipeline.Message{Topic: pipeline.Topic{Tenant: "t1", Kind: kind}, RawTopic: "a"}
	}
	entries[0].Reason = pipeline.SiteMismatch
	for range 2 { // a batch may be matched again
		if err := t.routes.match(t.Context(), now, entries); err != nil {
			t.Fatal(err)
		}
		for i, e := range entries {
			if want := i == 1; (len(e.Routes) == 1) != want {
				t.Errorf("entry %d has routes %v", i, e.Routes)
			}
		}
	}
}

// TestAnswerFromBeforeAChangeIsNotKept: a change is announced while the database
// answers with what was before.
func TestAnswerFromBeforeAChangeIsNotKept(tt *testing.T) {
	t := newRoutesTest(tt)
	t.table["t1"] = "old"
	for _, forget := range []func(){func() { t.forget("t1") }, t.forgetAll} {
		t.during = forget
		t.match(now, "t1")
		t.during, t.asked = nil, nil
		t.table["t1"] = "new"
		t.want(t.match(now, "t1"), "new", "t1")
		t.forgetAll()
	}
}

func TestNoAnswerIsAnError(tt *testing.T) {
	t := newRoutesTest(tt)
	t.err = store.ErrUnavailable
	t.want(t.match(now, "t1"), store.ErrUnavailable.Error(), "t1")
	t.err = nil
	t.want(t.match(now, "t1"), "", "t1")
}

func TestRoutedTenantsAreBounded(tt *testing.T) {
	t := newRoutesTest(tt)
	tenants := make([]string, maxRoutedTenants)
	for i := range tenants {
		tenants[i] = fmt.Sprint(i)
	}
	t.match(now, tenants...)
	t.match(now, "one more")
	if n := len(t.tenants); n > maxRoutedTenants {
		t.Errorf("%d tenants are cached, %d are the most", n, maxRoutedTenants)
	}
}
