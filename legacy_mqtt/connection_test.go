package legacy_mqtt

import (
	"errors"
	"strings"
	"testing"

	"github.com/eclipse/paho.golang/paho"
)

// TestTakenOverIsNamed: a broker that gives the reason has it passed on,
// whichever of its two messengers comes first.
func TestTakenOverIsNamed(t *testing.T) {
	for _, reasonFirst := range []bool{true, false} {
		s, err := New(goodConfig())
		if err != nil {
			t.Fatal(err)
		}
		s.link.up = true
		takenOver := func() { s.link.serverDisconnected(&paho.Disconnect{ReasonCode: codeTakenOver}) }
		if reasonFirst {
			takenOver()
		}
		s.link.connectionDown()
		if !reasonFirst {
			takenOver()
		}
		if err := s.Health(); err == nil || !strings.Contains(err.Error(), "another client uses the same client ID") {
			t.Errorf("reason first: %v: Health = %v", reasonFirst, err)
		}
	}
}

func TestSubscribeErrorNamesRefusedFilters(t *testing.T) {
	topics := []string{"a/+", "b/+", "c/+"}
	if err := subscribeError(topics, []byte{1, 1, 0}); err != nil {
		t.Errorf("granted: %v", err)
	}
	err := subscribeError(topics, []byte{1, 0x87, 0x9E})
	for _, want := range []string{"b/+: not authorized", "c/+: the broker does not support shared"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not mention %q", err, want)
		}
	}
	if err != nil && strings.Contains(err.Error(), "a/+") {
		t.Errorf("%v mentions the filter that was granted", err)
	}
}

// TestHealthAfterTheEnd: what is still heard of the connection does not make a
// source that has ended look alive.
func TestHealthAfterTheEnd(t *testing.T) {
	s, err := New(goodConfig())
	if err != nil {
		t.Fatal(err)
	}
	s.endIntake()
	s.link.say(nil)
	if err := s.Health(); !errors.Is(err, errIntakeEnded) {
		t.Errorf("Health = %v", err)
	}
}
