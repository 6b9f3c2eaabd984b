package store

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/canonical"
	"github.com/crossfade-io/crossfade/pipeline/check"
)

// FuzzDescribeMetric: every key gets a name, in text that a column can hold.
func FuzzDescribeMetric(f *testing.F) {
	for _, key := range []string{"temp_c", "", "_", "c", "C_c", "batteryPct", "ǆ_c", "\u0301", "ß", "__proto__", "😀", "a\u0000", "temp\u00a0c", "humidityRH", strings.Repeat("_a", 64)} {
		f.Add(key)
	}
	f.Fuzz(func(t *testing.T, key string) {
		name, unit := describeMetric(key)
		if key != "" && name == "" {
			t.Fatalf("%q has no name", key)
		}
		if storableText(key) && (!storableText(name) || !utf8.ValidString(unit)) {
			t.Fatalf("%q is called %q in %q", key, name, unit)
		}
	})
}

// FuzzChange: whatever is notified is read as some change, and one of a device as
// that device's.
func FuzzChange(f *testing.F) {
	for _, s := range []string{`{"d":["t1","d1"]}`, `{"s":"t1"}`, `{"r":"t1"}`, `{"c":1}`, `{}`, ``, `[]`, `{"d":["t1"]}`, `{"d":["t1",null]}`, `{"d":["a\ud800","\u0000"]}`, "{\"d\":[\"\xff\",\"d1\"]}", `{"D":["a","b"]}`, `null`, `{"c":1e99}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, payload string) {
		c := parseChange(payload)
		if c.Kind != ChangeDevice && c.Device != "" || c.Kind < ChangeEverything || c.Kind > ChangeSettings {
			t.Fatalf("%q is read as %+v", payload, c)
		}
		if (c.Kind == ChangeEverything || c.Kind == ChangeSettings) && c.Tenant != "" {
			t.Fatalf("%q is read as %+v", payload, c)
		}
	})
}

// FuzzRename: whatever modules rename, a message's metrics stay an object that jsonb takes,
// with no name twice, and none that no metric may have.
func FuzzRename(f *testing.F) {
	f.Add(`{"a":1,"b":2}`, "a", "b", "b", "a")
	f.Add(`{"a":1,"c":null,"a":3}`, "a", "c", "x", "")
	f.Add(`{"a":1}`, "a", strings.Repeat("x", 129), "a", "\n")
	f.Add(`{"\u0061":{"z":1,"y":2}}`, "a", "\"\\\u00e9", "", "z")
	f.Fuzz(func(t *testing.T, metrics, from1, to1, from2, to2 string) {
		for _, s := range []string{from1, to1, from2, to2} {
			if !storableText(s) {
				return // jsonb has no such keys
			}
		}
		var maps []string
		for _, m := range [][2]string{{from1, to1}, {from2, to2}} {
			text, err := json.Marshal(map[string]string{m[0]: m[1]})
			if err != nil {
				t.Fatal(err)
			}
			maps = append(maps, string(text))
		}
		d := pipeline.Delivery{Path: pipeline.PathMQTT, Topic: "tenant/t1/device/d1/telemetry", Body: []byte(`{"site_id":"s1","metrics":` + metrics + `}`), Receipt: nobodys{}}
		e := Entry{Msg: new(pipeline.Message), Device: &pipeline.Device{KeyMap: keyMap(maps)}}
		pipeline.NewDecoder(pipeline.DefaultMessageIDMember).Decode(e.Msg, &d)
		settings := check.DefaultSettings()
		if check.Content(check.Input{Message: e.Msg, Settings: &settings}).Reason != pipeline.Accepted {
			return
		}
		var stored map[string]json.RawMessage
		text := storedMetrics(&e)
		if err := json.Unmarshal(text, &stored); err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		var doc canonical.Doc
		if err := doc.Parse(text); err != nil || string(doc.Root().AppendCanonical(nil)) != string(text) {
			t.Fatalf("%q is not canonical (%v)", text, err)
		}
		seen := map[string]bool{}
		visitMetrics(&e, func(key string, _ canonical.Value) { seen[key] = true })
		for key := range stored {
			if !seen[key] || utf8.RuneCountInString(key) > maxMetricKey || strings.ContainsFunc(key, unicode.IsControl) {
				t.Fatalf("%q is stored, sensors see %v", text, seen)
			}
		}
	})
}

// nobodys is the receipt of a message that nobody waits for.
type nobodys struct{}

func (nobodys) Ack() error          { return nil }
func (nobodys) Release() error      { return nil }
func (nobodys) Occurred() time.Time { return time.Unix(1_795_435_200, 0) }

// FuzzBound: a partition's bound that is read is written the same, or refused.
func FuzzBound(f *testing.F) {
	for _, s := range []string{"MINVALUE", "MAXVALUE", "'-infinity'", "'2026-11-23 00:00:00+00'", "'2026-11-23 00:00:00.5+00'", "'019c41af-2425-0000-0000-000000000000'", "'ffffffff-ffff-0000-0000-000000000000'", "''", "'10000-01-01 00:00:00+00'"} {
		f.Add(s, true)
		f.Add(s, false)
	}
	f.Fuzz(func(t *testing.T, text string, byTime bool) {
		kind := keyID
		if byTime {
			kind = keyTime
		}
		bound, err := kind.parseBound(text)
		if err != nil || bound == minBound || bound == maxBound {
			return
		}
		if whole, err := kind.parseSpan("FOR VALUES FROM (" + text + ") TO (" + kind.literal(bound) + ")"); err == nil && whole != (span{bound, bound}) {
			t.Fatalf("%q is %+v", text, whole)
		}
		if again, err := kind.parseBound(kind.literal(bound)); err != nil || again != bound {
			t.Fatalf("%q is %d, written as %s, which is %d (%v)", text, bound, kind.literal(bound), again, err)
		}
	})
}

// FuzzJSONString: what is written of a renamed key is read as the key.
func FuzzJSONString(f *testing.F) {
	for _, s := range []string{"", "a\"b\\", "\b\t\n\f\r\x01\x1f", "°😀\u2028", "\x7f"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if !utf8.ValidString(s) {
			return
		}
		var back string
		if err := json.Unmarshal(appendJSONString(nil, s), &back); err != nil || back != s {
			t.Fatalf("%q is written as %s (%v)", s, appendJSONString(nil, s), err)
		}
	})
}

// FuzzClean: any text is made one that a column can hold, within its limit.
func FuzzClean(f *testing.F) {
	f.Add("a\x00b\xff", 2)
	f.Add("é", 1)
	f.Add("\xed\xa0\x80", 64)
	f.Fuzz(func(t *testing.T, s string, limit int) {
		limit &= 0xff
		if limit == 0 {
			return
		}
		got := clean(s, limit)
		if (got == nil) != (s == "") {
			t.Fatalf("%q becomes %v", s, got)
		}
		if got == nil {
			return
		}
		if !storableText(*got) {
			t.Fatalf("%q becomes %q", s, *got)
		}
		if len(s) <= limit && storableText(s) && *got != s {
			t.Fatalf("%q was fine, and becomes %q", s, *got)
		}
	})
}
