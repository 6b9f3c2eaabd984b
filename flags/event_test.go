package flags

import "testing"

func TestEventsThatConcernOurFlag(t *testing.T) {
	for message, want := range map[string]bool{
		`{"type":"configuration_change","data":{"flags":{"ingest-source":{"type":"update"}}}}`: true,
		`{"type":"configuration_change","data":{"flags":{"other":{}}}}`:                        false,
		`{"type":"configuration_change","data":{"flags":{}}}`:                                  false,
		`{"type":"configuration_change","data":{"flags":["other"]}}`:                           true, // who knows
		`{"type":"configuration_change"}`:                                                      true,
		`{"type":"provider_ready"}`:                                                            false,
		`{"type":"keep_alive"}`:                                                                false,
		`{"type":"something_new"}`:                                                             false,
	} {
		if got, err := new(flagd).event([]byte(message)); err != nil || got != want {
			t.Errorf("%s: %v, %v", message, got, err)
		}
	}
	for _, message := range []string{"", "<html>", `[]`, `{"type":"provider_shutdown"}`} {
		if got, err := new(flagd).event([]byte(message)); err == nil || got {
			t.Errorf("%q ends no stream", message)
		}
	}
}
