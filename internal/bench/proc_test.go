package bench

import (
	"strings"
	"testing"
	"time"
)

func TestProcStat(t *testing.T) {
	const line = "4711 (a (very) odd name) S 42 4711 4711 0 -1 4194560 100 200 0 0 150 50 1000 500 20 0 1 0 12345 1000000 500"
	s, err := parseProcStat(line)
	want := procStat{parent: 42, own: 2 * time.Second, reaped: 15 * time.Second}
	if err != nil || s != want {
		t.Errorf("%+v, %v; want %+v", s, err, want)
	}
	for _, bad := range []string{"", "1 (x) S 2", "1 x S 42 4711 4711 0 -1 4194560 100 200 0 0 150 50 1000 500", strings.Replace(line, " 150 ", " x ", 1)} {
		if _, err := parseProcStat(bad); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}
