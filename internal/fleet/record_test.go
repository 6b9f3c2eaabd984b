package fleet_test

import (
	"bytes"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/crossfade-io/crossfade/internal/fleet"
)

func TestSetAgainstAMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var set fleet.Set
		model := map[int64]bool{}
		for _, seq := range rapid.SliceOf(rapid.Int64Range(-2, 300)).Draw(t, "seqs") {
			added := set.Add(seq)
			if want := seq >= 1 && !model[seq]; added != want {
				t.Fatalf("Add(%d) = %v, want %v", seq, added, want)
			}
			if seq >= 1 {
				model[seq] = true
			}
		}
		var want []int64
		for seq := int64(-2); seq <= 400; seq++ {
			if set.Has(seq) != model[seq] {
				t.Fatalf("Has(%d) = %v", seq, set.Has(seq))
			}
			if model[seq] {
				want = append(want, seq)
			}
		}
		if got := slices.Collect(set.All()); !slices.Equal(got, want) {
			t.Fatalf("All %v, want %v", got, want)
		}
		highest := int64(0)
		if len(want) > 0 {
			highest = want[len(want)-1]
		}
		if set.Len() != int64(len(want)) || set.Max() != highest {
			t.Fatalf("Len %d, Max %d of %v", set.Len(), set.Max(), want)
		}
		var fromRanges []int64
		for r := range slices.Chunk(set.Ranges(), 2) {
			for seq := r[0]; seq <= r[1]; seq++ {
				fromRanges = append(fromRanges, seq)
			}
		}
		if !slices.Equal(fromRanges, want) {
			t.Fatalf("Ranges %v of %v", set.Ranges(), want)
		}
		clone := set.Clone()
		clone.Add(1000)
		if set.Has(1000) {
			t.Fatal("a clone is not independent")
		}
	})
}

func TestSetRefusesWhatWouldExhaustMemory(t *testing.T) {
	var set fleet.Set
	if set.Add(1<<62) || set.Has(1<<62) || set.Len() != 0 {
		t.Error("a seq far out of range was taken")
	}
}

func TestRecordSurvivesItsFile(t *testing.T) {
	cfg := fleet.DefaultConfig()
	devices := fleet.Devices(cfg)[:5]
	path := filepath.Join(t.TempDir(), "record.jsonl")
	rapid.Check(t, func(t *rapid.T) {
		rec := fleet.NewRecord(devices)
		kinds := []fleet.Kind{fleet.KindTelemetry, fleet.KindBad, fleet.KindShadow}
		for i := range rapid.IntRange(0, 60).Draw(t, "messages") {
			d := rapid.SampledFrom(devices).Draw(t, "device")
			seq := rapid.Int64Range(1, 200).Draw(t, fmt.Sprint("seq", i))
			kind := rapid.SampledFrom(kinds).Draw(t, "kind")
			rec.Attempted(d, seq, kind)
			if rapid.Bool().Draw(t, "acked") {
				rec.Acked(d, seq, kind, rapid.Bool().Draw(t, "reached"))
			}
		}
		if err := rec.Save(path); err != nil {
			t.Fatal(err)
		}
		back, err := fleet.LoadRecord(path)
		if err != nil {
			t.Fatal(err)
		}
		if back.Counts() != rec.Counts() {
			t.Fatalf("counts %+v, want %+v", back.Counts(), rec.Counts())
		}
		var before, after bytes.Buffer
		if err := rec.Write(&before); err != nil {
			t.Fatal(err)
		}
		if err := back.Write(&after); err != nil {
			t.Fatal(err)
		}
		if before.String() != after.String() {
			t.Fatalf("wrote\n%s\nread and wrote\n%s", &before, &after)
		}
	})
	if left, err := filepath.Glob(filepath.Join(filepath.Dir(path), "*")); err != nil || len(left) != 1 {
		t.Errorf("files left behind: %v, %v", left, err)
	}
}

func TestRecordHoldsNoToken(t *testing.T) {
	devices := fleet.Devices(fleet.DefaultConfig())
	var b bytes.Buffer
	if err := fleet.NewRecord(devices).Write(&b); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(b.String(), devices[0].Token) {
		t.Error("the record shows a provision token")
	}
}

func TestDamagedRecordsAreRefused(t *testing.T) {
	devices := fleet.Devices(fleet.DefaultConfig())[:2]
	rec := fleet.NewRecord(devices)
	rec.Attempted(devices[0], 1, fleet.KindTelemetry)
	var b bytes.Buffer
	if err := rec.Write(&b); err != nil {
		t.Fatal(err)
	}
	whole := b.String()
	lines := strings.SplitAfter(whole, "\n")
	for name, text := range map[string]string{
		"empty":          "",
		"foreign":        `{"hello":1}`,
		"cut at a line":  lines[0] + lines[1],
		"cut in a line":  whole[:len(whole)-5],
		"device twice":   lines[0] + lines[1] + lines[1],
		"odd ranges":     strings.Replace(whole, `"attempted":[1,1]`, `"attempted":[1]`, 1),
		"reversed range": strings.Replace(whole, `"attempted":[1,1]`, `"attempted":[2,1]`, 1),
		"endless range":  strings.Replace(whole, `"attempted":[1,1]`, `"attempted":[1,4611686018427387904]`, 1),
	} {
		if text == whole {
			t.Fatalf("%s: the case changes nothing", name)
		}
		if _, err := fleet.ReadRecord(strings.NewReader(text)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestContinuingNeedsTheSameFleet(t *testing.T) {
	cfg := fleet.DefaultConfig()
	cfg.BrokerURL = "mqtt://127.0.0.1:1"
	cfg.Record = fleet.NewRecord(fleet.Devices(cfg))
	if _, err := fleet.New(cfg); err != nil {
		t.Errorf("its own record: %v", err)
	}
	for name, change := range map[string]func(*fleet.Config){
		"Seed":    func(c *fleet.Config) { c.Seed++ },
		"Devices": func(c *fleet.Config) { c.Devices++ },
		"Tenants": func(c *fleet.Config) { c.Tenants++ },
	} {
		other := cfg
		change(&other)
		if _, err := fleet.New(other); err == nil {
			t.Errorf("a record of other %s was taken", name)
		}
	}
}
