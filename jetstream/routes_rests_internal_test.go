package jetstream

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// TestRests: when a tenant whose messages fail is tried again, and when it is none any more.
func TestRests(t *testing.T) {
	r := &rests{base: time.Second}
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	want := func(what string, at time.Time, names ...string) {
		t.Helper()
		got := r.list(at)
		if slices.Sort(got); !slices.Equal(got, names) {
			t.Errorf("%s: %q rest, want %q", what, got, names)
		}
	}
	// Many messages of one turn are one failure: the pause is half a second to one.
	for range 100 {
		r.failed("t1", now)
	}
	want("a turn", now.Add(499*time.Millisecond), "t1")
	want("a second later", now.Add(time.Second))
	// Others of the same turn that succeed, another route's say, change nothing.
	r.succeeded("t1", now)
	want("with others that succeed", now.Add(499*time.Millisecond), "t1")
	// The pauses grow.
	for range 2 {
		now = now.Add(time.Second)
		r.failed("t1", now)
	}
	want("three turns", now.Add(1999*time.Millisecond), "t1")
	if r.none(now) {
		t.Error("nobody is taken to have failed")
	}
	// A turn that succeeds ends it all: the next failure is the first.
	now = now.Add(4 * time.Second)
	r.succeeded("t1", now)
	want("a turn that succeeds", now.Add(-3*time.Second))
	if !r.none(now) {
		t.Error("a tenant whose messages are stored is taken to fail")
	}
	r.failed("t1", now)
	want("the next failure", now.Add(time.Second))
	// It had nothing left to publish when it was due.
	want("within a minute of that", now.Add(forgetAfter))
	if r.none(now.Add(forgetAfter)) || !r.none(now.Add(forgetAfter+2*time.Second)) {
		t.Error("who has nothing to publish any more is forgotten too soon, or never")
	}
}

// TestRestsAreBounded: tenants beyond the bound are tried at every turn.
func TestRestsAreBounded(t *testing.T) {
	r := &rests{base: time.Second}
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	for i := range maxResting + 10 {
		r.failed(fmt.Sprint(i), now)
	}
	r.failed("0", now.Add(time.Second)) // one that is known goes on
	if n := len(r.list(now)); n != maxResting {
		t.Errorf("%d tenants are remembered, want %d", n, maxResting)
	}
	if !slices.Contains(r.list(now.Add(1999*time.Millisecond)), "0") {
		t.Error("a tenant that rests already does not rest longer")
	}
	r.clear()
	if !r.none(now) {
		t.Error("tenants are left of what was cleared")
	}
}
